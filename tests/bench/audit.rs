//! What an audit of a large cluster costs: `gangplank audit` as a process, on a real API server that
//! holds 10,000 objects, then 100,000.
//!
//! Fails where it takes more than 20 s of processor time or 150 MiB for 100,000 objects, or where an
//! object costs more among many than among few. `GANGPLANK` names another binary to measure, and two
//! numbers other sizes: `cargo bench --bench audit -- 1000 5000`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "what fails in a benchmark fails it"
)]

use std::{env, process::ExitCode, time::Instant};

use anyhow::Result;

mod cost;
#[path = "../apiserver/mod.rs"]
mod harness;

use cost::{Cost, audit};
use harness::fleet;

const FEW: usize = 10_000;
const MANY: usize = 100_000;

/// Seconds of processor time for [`MANY`].
const PROCESSOR: f64 = 20.0;

/// MiB for [`MANY`].
const MEMORY: f64 = 150.0;

/// How much more an object may cost among many than among few: processor time is measured on a machine
/// that does other things, too.
const GROWTH: f64 = 1.25;

fn main() -> Result<ExitCode> {
    // As all other benchmarks: a mere test of the targets runs them without --bench.
    if !env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    let cluster = cost::roomy()?;
    let numbers: Vec<usize> = env::args().filter_map(|text| text.parse().ok()).collect();
    let (few, many) = match numbers[..] {
        [few, many] => (few, many),
        _ => (FEW, MANY),
    };
    let mut failures = Vec::new();
    let mut there = 0;
    let mut costs: Vec<Vec<Cost>> = Vec::new();
    for objects in [few, many] {
        let started = Instant::now();
        runtime.block_on(fleet::populate(cluster.kubeconfig(), there..objects))?;
        println!(
            "{} objects created in {:.0} s",
            objects - there,
            started.elapsed().as_secs_f64()
        );
        there = objects;
        let mut row = Vec::new();
        for form in ["text", "json", "sarif", "junit", "html"] {
            let cost = audit(&cluster, form, objects)?;
            println!(
                "{objects:>7} objects, {form:<5} {:6.2} s of processor time, {:6.1} MiB, {:6.1} us an object ({:.0} s)",
                cost.processor,
                cost.memory,
                cost.per_object(objects),
                cost.seconds
            );
            row.push(cost);
        }
        costs.push(row);
    }
    for (of_few, of_many) in costs[0].iter().zip(&costs[1]) {
        let growth = of_many.per_object(many) / of_few.per_object(few);
        println!("an object costs {growth:.2} times as much among many as among few");
        if growth > GROWTH {
            failures.push(format!("{growth:.2} is more than {GROWTH}"));
        }
        let Cost {
            processor, memory, ..
        } = of_many;
        if *processor > PROCESSOR {
            failures.push(format!("{processor:.2} s are more than {PROCESSOR}"));
        }
        if *memory > MEMORY {
            failures.push(format!("{memory:.1} MiB are more than {MEMORY}"));
        }
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(ExitCode::from(u8::from(!failures.is_empty())))
}
