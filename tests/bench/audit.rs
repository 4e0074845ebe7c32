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

use std::{
    env, fs,
    io::Read as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

#[path = "../apiserver/mod.rs"]
mod harness;

use harness::{
    Assets, Cluster, eventually,
    fleet::{self, Made},
};

const FEW: usize = 10_000;
const MANY: usize = 100_000;

/// Seconds of processor time for [`MANY`].
const PROCESSOR: f64 = 20.0;

/// MiB for [`MANY`].
const MEMORY: f64 = 150.0;

/// How much more an object may cost among many than among few: processor time is measured on a machine
/// that does other things, too.
const GROWTH: f64 = 1.25;

/// What a run took.
struct Cost {
    /// Seconds, of the user and of the system.
    processor: f64,
    /// MiB at the most.
    memory: f64,
    seconds: f64,
}

fn main() -> Result<ExitCode> {
    // As all other benchmarks: a mere test of the targets runs them without --bench.
    if !env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    let cluster = Cluster::start_with(
        &Assets::find()?,
        &[
            "--enable-priority-and-fairness=false",
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=0",
        ],
    )?;
    cluster.install_crds()?;
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
                per_object(&cost, objects),
                cost.seconds
            );
            row.push(cost);
        }
        costs.push(row);
    }
    for (of_few, of_many) in costs[0].iter().zip(&costs[1]) {
        let growth = per_object(of_many, many) / per_object(of_few, few);
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

#[allow(clippy::cast_precision_loss, reason = "numbers of objects")]
fn per_object(cost: &Cost, objects: usize) -> f64 {
    cost.processor * 1e6 / objects as f64
}

/// Audits as a process of its own.
fn audit(cluster: &Cluster, form: &str, objects: usize) -> Result<Cost> {
    let binary = env::var_os("GANGPLANK").unwrap_or_else(|| env!("CARGO_BIN_EXE_gangplank").into());
    let started = Instant::now();
    let mut child = Command::new(binary)
        .args(["audit", "--output", form, "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()?;
    let process = Path::new("/proc").join(child.id().to_string());
    // The peak is read before each piece of the report is, so that the last of them still waits to be
    // written: the process is there, and has nothing more to do.
    let mut report = Vec::new();
    let mut out = child.stdout.take().context("standard output is piped")?;
    let mut memory = 0.0;
    let mut piece = vec![0; 4096];
    loop {
        memory = peak(&process).unwrap_or(memory);
        match out.read(&mut piece)? {
            0 => break,
            count => report.extend_from_slice(&piece[..count]),
        }
    }
    // Whoever has ended is still known by its times until it is waited for.
    let processor = eventually("the audit ends", Duration::from_secs(60), || {
        ended(&process)
    })?;
    let status = child.wait()?;
    ensure!(status.code() == Some(1), "{status}");
    let denied = (0..objects)
        .filter(|number| matches!(fleet::object(*number).1, Made::Denied(_)))
        .count();
    if form == "json" {
        let report: Value = serde_json::from_slice(&report)?;
        let summary = &report["summary"];
        ensure!(summary["objects"] == objects, "{summary}");
        ensure!(summary["denied"] == denied, "{summary}");
    }
    Ok(Cost {
        processor,
        memory,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The most memory that was resident at any time, in MiB (proc_pid_status(5)).
fn peak(process: &Path) -> Option<f64> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Seconds of processor time of a process that has ended (proc_pid_stat(5)): of user and system, in
/// hundredths.
fn ended(process: &Path) -> Option<f64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // Behind the name, which may hold anything, fields are counted from the third.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    if fields[0] != "Z" {
        return None;
    }
    let ticks = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
    Some(ticks / 100.0)
}
