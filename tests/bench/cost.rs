//! What a process takes of the machine.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::harness::{
    Assets, Cluster, eventually,
    fleet::{self, Made},
};

/// What a run took.
pub(crate) struct Cost {
    /// Seconds, of the user and of the system.
    pub(crate) processor: f64,
    /// MiB at the most.
    pub(crate) memory: f64,
    pub(crate) seconds: f64,
}

impl Cost {
    /// Microseconds of processor time for each of so many objects.
    #[allow(clippy::cast_precision_loss, reason = "numbers of objects")]
    pub(crate) fn per_object(&self, objects: usize) -> f64 {
        self.processor * 1e6 / objects as f64
    }
}

/// The `gangplank` that is measured: `GANGPLANK`, or the one that was built with the benchmarks.
pub(crate) fn binary() -> OsString {
    env::var_os("GANGPLANK").unwrap_or_else(|| env!("CARGO_BIN_EXE_gangplank").into())
}

/// Audits as a process of its own.
pub(crate) fn audit(cluster: &Cluster, form: &str, objects: usize) -> Result<Cost> {
    let started = Instant::now();
    let mut child = Command::new(binary())
        .args(["audit", "--output", form, "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()?;
    let id = child.id();
    // The peak is read before each piece of the report is, so that the last of them still waits to be
    // written: the process is there, and has nothing more to do.
    let mut report = Vec::new();
    let mut out = child.stdout.take().context("standard output is piped")?;
    let mut memory = 0.0;
    let mut piece = vec![0; 4096];
    loop {
        memory = peak(id).unwrap_or(memory);
        match out.read(&mut piece)? {
            0 => break,
            count => report.extend_from_slice(&piece[..count]),
        }
    }
    // Whoever has ended is still known by its times until it is waited for.
    let processor = eventually("the audit ends", Duration::from_secs(60), || {
        let (state, seconds) = stat(id)?;
        (state == "Z").then_some(seconds)
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

/// The most memory that was resident at any time, in MiB (`proc_pid_status(5)`).
pub(crate) fn peak(process: u32) -> Option<f64> {
    status(process, "VmHWM:")
}

/// The memory that is resident, in MiB.
#[allow(dead_code, reason = "one of two benchmarks asks")]
pub(crate) fn resident(process: u32) -> Option<f64> {
    status(process, "VmRSS:")
}

/// Seconds of processor time of a process so far, of user and system.
#[allow(dead_code, reason = "one of two benchmarks asks")]
pub(crate) fn processor(process: u32) -> Option<f64> {
    Some(stat(process)?.1)
}

fn status(process: u32, member: &str) -> Option<f64> {
    let file = Path::new("/proc").join(process.to_string()).join("status");
    let status = fs::read_to_string(file).ok()?;
    let line = status.lines().find(|line| line.starts_with(member))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// A cluster whose API server takes as many writes at a time as come: what is measured is not its patience.
pub(crate) fn roomy() -> Result<Cluster> {
    let cluster = Cluster::start_with(
        &Assets::find()?,
        &[
            "--enable-priority-and-fairness=false",
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=0",
        ],
    )?;
    cluster.install_crds()?;
    Ok(cluster)
}

/// State and seconds of processor time of a process (`proc_pid_stat(5)`): of user and system, in
/// hundredths.
fn stat(process: u32) -> Option<(String, f64)> {
    let file = Path::new("/proc").join(process.to_string()).join("stat");
    let stat = fs::read_to_string(file).ok()?;
    // Behind the name, which may hold anything, fields are counted from the third.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
    Some((fields[0].to_owned(), ticks / 100.0))
}
