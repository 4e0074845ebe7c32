//! Gangplank asked directly, over HTTPS, beside a webhook that does nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use super::{
    client::{self, Round, Target},
    cost, objects,
    rows::{Table, median, spread},
};

/// Rounds of each, in turn: whatever else the machine does falls on both.
const ROUNDS: usize = 7;

/// Of each round.
const PERIOD: Duration = Duration::from_millis(1_500);

/// As many writes at a time as a busy API server has.
const CONNECTIONS: usize = 8;

/// Requests a second of the open loop: far more writes than an API server takes.
const RATE: u32 = 1_000;

pub(crate) const OBJECTS: [&str; 3] = ["hpa", "gang-deployment", "deployment-10k"];

/// The least throughput, of that of the webhook that does nothing.
const LEAST: f64 = 0.9;

/// Rounds of both, and the processor time of each a request.
#[derive(Default)]
struct Both {
    rounds: [Vec<Round>; 2],
    processor: [Vec<f64>; 2],
}

impl Both {
    #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
    fn run(pair: [Target; 2], mut round: impl FnMut(Target) -> Result<Round>) -> Result<Self> {
        let mut both = Self::default();
        for number in 0..ROUNDS {
            // The one that is first changes: what heats up or fills up falls on both.
            for which in [number % 2, 1 - number % 2] {
                let target = pair[which];
                let used = || cost::processor(target.process).context("the server has ended");
                let before = used()?;
                let measured = round(target)?;
                let spent = (used()? - before) * 1e6 / measured.latencies.len() as f64;
                both.processor[which].push(spent);
                both.rounds[which].push(measured);
            }
        }
        Ok(both)
    }

    /// Gangplank's of the other's, round by round.
    fn ratios(&self, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        let [nothing, gangplank] = &self.rounds;
        let pairs = gangplank.iter().zip(nothing);
        pairs.map(|(one, other)| of(one) / of(other)).collect()
    }

    fn told(&self, table: &mut Table, what: &str, budget: Option<f64>) {
        let throughput = self.ratios(|round| round.throughput);
        let number = |of: &dyn Fn(&Round) -> f64, which: usize| {
            median(self.rounds[which].iter().map(of).collect())
        };
        let rate = |which| number(&|round| round.throughput, which);
        let seen = format!(
            "{:.2} ({}); {:.0}/s of {:.0}/s",
            median(throughput.clone()),
            spread(&throughput),
            rate(1),
            rate(0)
        );
        let what = format!("direct, {what}: throughput");
        match budget {
            Some(least) => table.at_least(&what, median(throughput), least, &seen),
            None => table.told(&what, &seen),
        }
    }

    fn latency(&self, table: &mut Table, what: &str) {
        let mut parts = Vec::new();
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let ratios = self.ratios(|round| round.quantile(part));
            let of = |which: usize| {
                let rounds = self.rounds[which].iter();
                median(rounds.map(|round| round.quantile(part)).collect())
            };
            parts.push(format!(
                "{name} {:.2} ({}; {:.0} µs of {:.0} µs)",
                median(ratios.clone()),
                spread(&ratios),
                of(1),
                of(0)
            ));
        }
        table.told(&format!("direct, {what}: latency"), &parts.join(", "));
    }

    fn spent(&self, table: &mut Table, what: &str) {
        let of = |which: usize| median(self.processor[which].clone());
        let seen = format!("{:.0} µs of {:.0} µs", of(1), of(0));
        table.told(
            &format!("direct, {what}: processor time a request, of the server"),
            &seen,
        );
    }
}

/// `pair` is the webhook that does nothing, then Gangplank.
pub(crate) fn measure(
    table: &mut Table,
    pair: [Target; 2],
    config: &Arc<ClientConfig>,
    runtime: &Runtime,
) -> Result<()> {
    for name in OBJECTS {
        let object = objects::object(name);
        let request = client::request("/validate", &object);
        let closed = Both::run(pair, |target| {
            client::closed(target, config, CONNECTIONS, PERIOD, &request)
        })?;
        let what = format!("{name}, HTTP/1.1, {CONNECTIONS} connections");
        closed.told(table, &what, Some(LEAST));
        closed.latency(table, &what);
        closed.spent(table, &what);
    }
    let name = OBJECTS[1];
    let object = objects::object(name);
    let multiplexed = Both::run(pair, |target| {
        let round = client::multiplexed(target, config, CONNECTIONS, PERIOD, &object);
        runtime.block_on(round)
    })?;
    let what = format!("{name}, HTTP/2, {CONNECTIONS} streams");
    multiplexed.told(table, &what, None);
    let request = client::request("/validate", &object);
    let open = Both::run(pair, |target| {
        let pace = (RATE, PERIOD);
        client::open(target, config, 2 * CONNECTIONS, pace, &request)
    })?;
    open.latency(table, &format!("{name}, open loop of {RATE}/s"));
    Ok(())
}
