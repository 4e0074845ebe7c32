//! A real Kubernetes API server for the tests and for the `local` example: etcd and kube-apiserver
//! on loopback, kubectl to speak to them, the real `gangplank` binary as a child process.
//!
//! Everything started here ends with the process that started it, however that one ends: see
//! [`leash`].

// Compiled into several crates, the integration tests, the example and benchmarks; none uses all of it.
#![allow(
    dead_code,
    unused_imports,
    reason = "shared by crates that use different parts"
)]

pub(crate) mod assets;
pub(crate) mod clock;
pub(crate) mod cluster;
#[allow(
    clippy::indexing_slicing,
    reason = "a member of a JSON value that is not there is null"
)]
pub(crate) mod fleet;
pub(crate) mod gangplank;
pub(crate) mod helm;
pub(crate) mod kubectl;
pub(crate) mod leash;
pub(crate) mod pki;
pub(crate) mod service;

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

pub(crate) use assets::Assets;
pub(crate) use cluster::Cluster;
pub(crate) use gangplank::Gangplank;
pub(crate) use helm::Helm;
pub(crate) use kubectl::{Answer, Kubectl};

/// How long anything that should happen soon may take on a busy machine with two cores.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Asks `condition` until it gives a value; an error once `deadline` has passed.
///
/// `what` completes the sentence "timed out waiting until ...".
pub(crate) fn eventually<T>(
    what: impl Display,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            bail!(
                "timed out after {} s waiting until {what}",
                deadline.as_secs()
            );
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// The cluster that all tests of one process share, with the project's CRDs installed.
///
/// Starting one costs seconds. Tests share it politely: each in a namespace of its own
/// ([`Cluster::namespace`]), with cluster-scoped names of its own. A test that registers webhooks
/// or stops servers starts its own with [`Cluster::start`].
pub(crate) fn shared_cluster() -> Result<&'static Cluster> {
    // A static is never dropped; the leash ends the servers when the process ends.
    static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
    SHARED
        .get_or_init(|| {
            let start = || {
                let cluster = Cluster::start(&Assets::find()?)?;
                cluster.install_crds()?;
                Ok(cluster)
            };
            start().map_err(|error: anyhow::Error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// A client by this kubeconfig. An API server gives a request up after a minute (`--request-timeout`) and says
/// so; whoever waits longer waits for nothing.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.read_timeout = Some(Duration::from_secs(70));
    Ok(Client::try_from(config)?)
}

/// Prints one line of progress. Goes past the test runner's capture on purpose: the first build
/// takes minutes, and silence looks like a hang.
fn progress(line: impl Display) {
    // Nowhere to complain to when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The last lines of a log file, for error messages.
fn tail(path: &Path, lines: usize) -> String {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("({}: {error})", path.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    let shown = all
        .get(all.len().saturating_sub(lines)..)
        .unwrap_or_default();
    format!("--- the end of {}\n{}", path.display(), shown.join("\n"))
}
