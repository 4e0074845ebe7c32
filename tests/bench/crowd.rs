//! Memory: idle, after many requests, and where much is known of a large cluster; and the audit of it.

use std::{ffi::OsString, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use super::{
    alone, client, cost,
    harness::{Gangplank, eventually, fleet},
    objects,
    rows::Table,
};

/// MiB of an idle server.
const IDLE: f64 = 25.0;

/// MiB of a server that knows [`WORKLOADS`].
const KNOWING: f64 = 64.0;

const WORKLOADS: usize = 20_000;

/// Requests, after which memory is compared, and how much more it may be.
const FIRST: usize = 100_000;
const ALL: usize = 1_000_000;
const GROWTH: f64 = 1.05;

/// Objects to audit, and what more of them may cost.
const FEW: usize = 10_000;
const MANY: usize = 100_000;
const PROCESSOR: f64 = 20.0;
const MEMORY: f64 = 150.0;
const PER_OBJECT: f64 = 1.25;

const CONNECTIONS: usize = 8;

/// How long an idle server is given to settle.
const SETTLE: Duration = Duration::from_secs(2);

fn resident(gangplank: &Gangplank) -> Result<f64> {
    cost::resident(gangplank.id()).context("gangplank has ended")
}

/// Memory without a cluster: idle, then while requests come.
pub(crate) fn requests(
    table: &mut Table,
    certificate: &[OsString; 2],
    config: &Arc<ClientConfig>,
) -> Result<()> {
    let gangplank = Gangplank::start(Path::new(&cost::binary()), certificate)?;
    std::thread::sleep(SETTLE);
    let idle = resident(&gangplank)?;
    table.at_most("memory, idle", idle, IDLE, &format!("{idle:.1} MiB"));
    let target = client::Target {
        address: gangplank.webhook(),
        process: gangplank.id(),
    };
    // What is denied writes a line to the log each time, which is not ours to measure.
    let names = objects::NAMES.into_iter().filter(|name| {
        !name.ends_with("-denied")
            && !["deployment-1m", "scaled-object-200-triggers"].contains(name)
    });
    let requests: Vec<Vec<u8>> = names
        .map(|name| {
            let path = if name == "gang-deployment-silent" {
                "/mutate"
            } else {
                "/validate"
            };
            client::request(path, &objects::object(name))
        })
        .collect();
    client::flood(target, config, CONNECTIONS, FIRST, &requests)?;
    let first = resident(&gangplank)?;
    table.told(
        &format!("memory, after {FIRST} requests"),
        &format!("{first:.1} MiB"),
    );
    client::flood(target, config, CONNECTIONS, ALL - FIRST, &requests)?;
    let all = resident(&gangplank)?;
    let seen = format!("{:.2}; {all:.1} MiB", all / first);
    let what = format!("memory, after {ALL} requests, of that after {FIRST}");
    table.at_most(&what, all / first, GROWTH, &seen);
    Ok(())
}

/// A large cluster: what a server takes that watches it, and what an audit of it costs.
pub(crate) fn cluster(
    table: &mut Table,
    certificate: [OsString; 2],
    runtime: &Runtime,
) -> Result<()> {
    let cluster = cost::roomy()?;
    let mut there = 0;
    let mut populate = |until: usize| -> Result<()> {
        let all = fleet::populate(cluster.kubeconfig(), there..until);
        there = until;
        runtime.block_on(all)
    };

    populate(FEW)?;
    let few = cost::audit(&cluster, "text", FEW)?;

    populate(with_workloads(WORKLOADS))?;
    let [one, other] = certificate;
    let mut kubeconfig = OsString::from("--kubeconfig=");
    kubeconfig.push(cluster.kubeconfig());
    let args = [one, other, "--watch".into(), kubeconfig];
    let gangplank = Gangplank::start(Path::new(&cost::binary()), &args)?;
    eventually("the workloads are known", Duration::from_secs(60), || {
        let metrics = alone::get(gangplank.admin(), "/metrics").ok()?;
        (known(&metrics) >= WORKLOADS).then_some(())
    })?;
    std::thread::sleep(SETTLE);
    let knowing = resident(&gangplank)?;
    let peak = cost::peak(gangplank.id()).context("gangplank has ended")?;
    let seen = format!("{knowing:.1} MiB, {peak:.1} MiB at most");
    let what = format!("memory, {WORKLOADS} workloads known");
    table.at_most(&what, knowing, KNOWING, &seen);
    drop(gangplank);

    populate(MANY)?;
    let many = cost::audit(&cluster, "text", MANY)?;
    let what = format!("audit of {MANY} objects");
    let seen = format!("{:.1} s; {:.1} s in all", many.processor, many.seconds);
    table.at_most(
        &format!("{what}: processor time"),
        many.processor,
        PROCESSOR,
        &seen,
    );
    let seen = format!("{:.1} MiB", many.memory);
    table.at_most(&format!("{what}: memory"), many.memory, MEMORY, &seen);
    let (of_few, of_many) = (few.per_object(FEW), many.per_object(MANY));
    let seen = format!("{:.2}; {of_many:.0} µs of {of_few:.0} µs", of_many / of_few);
    let what = format!("{what}: cost of an object, of that among {FEW}");
    table.at_most(&what, of_many / of_few, PER_OBJECT, &seen);
    Ok(())
}

/// How many objects hold so many workloads.
fn with_workloads(wanted: usize) -> usize {
    let mut seen = 0;
    let mut objects = 0;
    while seen < wanted {
        let (object, _) = fleet::object(objects);
        seen += usize::from(object["kind"] == "Deployment" || object["kind"] == "LeaderWorkerSet");
        objects += 1;
    }
    objects
}

/// How many workloads the metrics tell of.
fn known(metrics: &str) -> usize {
    metrics
        .lines()
        .filter(|line| line.starts_with("gangplank_watch_objects{"))
        .filter(|line| line.contains("deployments.apps") || line.contains("leaderworkersets."))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
        .sum()
}
