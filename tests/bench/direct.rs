//! Gangplank asked directly, over HTTPS, beside webhooks that decide nothing.

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

/// Those that are asked: one that does nothing, one that reads the object and allows it, and Gangplank.
pub(crate) const NOTHING: usize = 0;
pub(crate) const READER: usize = 1;
pub(crate) const GANGPLANK: usize = 2;

pub(crate) type Targets = [Target; 3];

/// Rounds of each, and the processor time of each a request.
#[derive(Default)]
struct Rounds {
    rounds: [Vec<Round>; 3],
    processor: [Vec<f64>; 3],
}

impl Rounds {
    #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
    fn run(targets: Targets, mut round: impl FnMut(Target) -> Result<Round>) -> Result<Self> {
        let mut all = Self::default();
        for number in 0..ROUNDS {
            for turn in 0..targets.len() {
                // The one that is first changes: what heats up or fills up falls on all.
                let which = (number + turn) % targets.len();
                let target = targets[which];
                let used = || cost::processor(target.process).context("the server has ended");
                let before = used()?;
                let measured = round(target)?;
                let spent = (used()? - before) * 1e6 / measured.latencies.len() as f64;
                all.processor[which].push(spent);
                all.rounds[which].push(measured);
            }
        }
        Ok(all)
    }

    /// Of the one that does nothing, round by round.
    fn ratios(&self, which: usize, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        let pairs = self.rounds[which].iter().zip(&self.rounds[NOTHING]);
        pairs.map(|(one, other)| of(one) / of(other)).collect()
    }

    fn throughput(&self, which: usize) -> (f64, String) {
        let ratios = self.ratios(which, |round| round.throughput);
        let rate = |which: usize| {
            let rounds = self.rounds[which].iter();
            median(rounds.map(|round| round.throughput).collect())
        };
        let seen = format!(
            "{:.2} ({}); {:.0}/s of {:.0}/s",
            median(ratios.clone()),
            spread(&ratios),
            rate(which),
            rate(NOTHING)
        );
        (median(ratios), seen)
    }

    fn latency(&self, table: &mut Table, what: &str) {
        let mut parts = Vec::new();
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let ratios = self.ratios(GANGPLANK, |round| round.quantile(part));
            let of = |which: usize| {
                let rounds = self.rounds[which].iter();
                median(rounds.map(|round| round.quantile(part)).collect())
            };
            parts.push(format!(
                "{name} {:.2} ({}; {:.0} µs of {:.0} µs)",
                median(ratios.clone()),
                spread(&ratios),
                of(GANGPLANK),
                of(NOTHING)
            ));
        }
        table.told(&format!("direct, {what}: latency"), &parts.join(", "));
    }

    fn spent(&self, table: &mut Table, what: &str) {
        let of = |which: usize| median(self.processor[which].clone());
        let seen = format!(
            "{:.0} µs; to read and allow {:.0} µs; to do nothing {:.0} µs",
            of(GANGPLANK),
            of(READER),
            of(NOTHING)
        );
        table.told(
            &format!("direct, {what}: processor time a request, of the server"),
            &seen,
        );
    }
}

/// Asks each of them.
pub(crate) fn measure(
    table: &mut Table,
    targets: Targets,
    config: &Arc<ClientConfig>,
    runtime: &Runtime,
) -> Result<()> {
    for name in OBJECTS {
        let object = objects::object(name);
        let request = client::request("/validate", &object);
        let closed = Rounds::run(targets, |target| {
            client::closed(target, config, CONNECTIONS, PERIOD, &request)
        })?;
        let what = format!("{name}, HTTP/1.1, {CONNECTIONS} connections");
        let (ratio, seen) = closed.throughput(GANGPLANK);
        table.at_least(&format!("direct, {what}: throughput"), ratio, LEAST, &seen);
        let (_, seen) = closed.throughput(READER);
        table.told(
            &format!("direct, {what}: throughput of a webhook that reads and allows"),
            &seen,
        );
        closed.latency(table, &what);
        closed.spent(table, &what);
    }
    let name = OBJECTS[1];
    let object = objects::object(name);
    let multiplexed = Rounds::run(targets, |target| {
        let round = client::multiplexed(target, config, CONNECTIONS, PERIOD, &object);
        runtime.block_on(round)
    })?;
    let what = format!("direct, {name}, HTTP/2, {CONNECTIONS} streams: throughput");
    table.told(&what, &multiplexed.throughput(GANGPLANK).1);
    let request = client::request("/validate", &object);
    let open = Rounds::run(targets, |target| {
        let pace = (RATE, PERIOD);
        client::open(target, config, 2 * CONNECTIONS, pace, &request)
    })?;
    open.latency(table, &format!("{name}, open loop of {RATE}/s"));
    Ok(())
}
