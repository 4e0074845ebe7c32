//! The real `gangplank serve` as a child process.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::leash::{self, Leashed, Signal};
use super::{Cluster, SOON, eventually};

/// A running `gangplank serve`; killed on drop.
#[derive(Debug)]
pub(crate) struct Gangplank {
    process: Leashed,
    log: Log,
    webhook: SocketAddr,
    admin: SocketAddr,
}

impl Gangplank {
    /// Starts `gangplank serve` on free loopback ports with more arguments of the caller's, and
    /// waits until it says that it is ready.
    pub(crate) fn start<S: AsRef<OsStr>>(binary: &Path, args: &[S]) -> Result<Self> {
        Self::start_in(binary, args, &[])
    }

    /// As [`Gangplank::start`], with these variables of the environment.
    pub(crate) fn start_in<S: AsRef<OsStr>>(
        binary: &Path,
        args: &[S],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut started = Self::launch(binary, args, environment)?;
        started
            .wait_for("ready")
            .with_context(|| format!("gangplank does not come up\n{}", started.log()))?;
        Ok(started)
    }

    /// As [`Gangplank::start_in`], without waiting for more than that it listens.
    pub(crate) fn launch<S: AsRef<OsStr>>(
        binary: &Path,
        args: &[S],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let (log, stderr) = Log::new().context("a file for the log")?;
        let mut command = leash::command(binary, None);
        command
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--admin-listen=127.0.0.1:0",
            ])
            .arg("--log-format=json")
            .args(args)
            // The developer's own settings have no say.
            .env_remove("RUST_LOG")
            .env_remove("KUBECONFIG")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(stderr);
        let mut process = Leashed::spawn(command)?;

        let mut listening = || -> Result<(SocketAddr, SocketAddr)> {
            let listening = log.wait("listening", || process.ended())?;
            Ok((
                address(&listening, "webhook")?,
                address(&listening, "admin")?,
            ))
        };
        let (webhook, admin) =
            listening().with_context(|| format!("gangplank does not come up\n{}", log.text()))?;
        Ok(Self {
            process,
            log,
            webhook,
            admin,
        })
    }

    /// As [`Gangplank::start`], registered with `cluster` under its listening address.
    pub(crate) fn register<S: AsRef<OsStr>>(
        binary: &Path,
        cluster: &Cluster,
        args: &[S],
    ) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig().as_os_str();
        let mut all = vec![
            OsStr::new("--register"),
            OsStr::new("--kubeconfig"),
            kubeconfig,
        ];
        all.extend(args.iter().map(AsRef::as_ref));
        Self::start(binary, &all)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where it answers the API server.
    pub(crate) fn webhook(&self) -> SocketAddr {
        self.webhook
    }

    /// Where /livez, /readyz and /metrics are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until it logs this message and gives the whole line.
    pub(crate) fn wait_for(&mut self, message: &str) -> Result<Value> {
        self.log.wait(message, || self.process.ended())
    }

    /// What waits, elsewhere, until it logs a message that begins so.
    pub(crate) fn log_waiter(
        &self,
        message: &'static str,
    ) -> impl Fn() -> Result<()> + Clone + Send + 'static {
        let log = self.log.clone();
        move || {
            eventually(format_args!("gangplank logs {message:?}"), SOON, || {
                log.text().contains(message).then_some(())
            })
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.wait(deadline)
    }

    /// The exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Ends it as a failing node would, at once.
    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }
}

/// What came through standard error: a file without a name, in which a line stands before whatever
/// the process does next can be seen.
#[derive(Debug, Clone)]
struct Log(Arc<File>);

impl Log {
    /// An empty one, and what writes to it.
    fn new() -> io::Result<(Self, Stdio)> {
        let file = tempfile::tempfile()?;
        let stderr = file.try_clone()?.into();
        Ok((Self(Arc::new(file)), stderr))
    }

    fn text(&self) -> String {
        let length = self.0.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        // By position: the process writes where the file's own cursor stands.
        if let Err(error) = self.0.read_exact_at(&mut bytes, 0) {
            return format!("the log cannot be read: {error}");
        }
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    fn find(&self, message: &str) -> Option<Value> {
        self.text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| {
                line.pointer("/fields/message")
                    .is_some_and(|text| text == message)
            })
    }

    /// The first line with this message; an error if the process ends without it.
    fn wait(&self, message: &str, mut ended: impl FnMut() -> Option<ExitStatus>) -> Result<Value> {
        let outcome = eventually(format_args!("gangplank logs {message:?}"), SOON, || {
            // In this order: the line may be its last, and the last lines tell why it ended.
            let status = ended();
            self.find(message).map(Ok).or_else(|| status.map(Err))
        })?;
        match outcome {
            Ok(line) => Ok(line),
            Err(status) => bail!("gangplank ended ({status}) before it logged {message:?}"),
        }
    }
}

fn address(line: &Value, field: &str) -> Result<SocketAddr> {
    line.pointer("/fields")
        .and_then(|fields| fields.get(field)?.as_str()?.parse().ok())
        .with_context(|| format!("no address {field:?} in {line}"))
}
