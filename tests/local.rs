//! Runs Gangplank against a real API server on this machine.
//!
//! Starts etcd, kube-apiserver and the real `gangplank serve --register`, applies the manifests of
//! `tests/tour` with kubectl and shows what the API server answers to each.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

#[path = "apiserver/mod.rs"]
mod harness;

use harness::{Answer, Assets, Cluster, Gangplank, Kubectl};

/// Runs Gangplank against a real API server on this machine.
///
/// Builds what is missing (kube-apiserver, etcd and kubectl once, with Go, unless
/// `KUBEBUILDER_ASSETS` names a folder that holds them), starts everything on free ports of the
/// loopback interface, applies good and bad manifests and shows what the API server answers. Then
/// stays up until Ctrl-C, which leaves nothing running and nothing behind.
#[derive(Debug, Parser)]
#[command(name = "local")]
struct Args {
    /// End after the tour: with 0 if every answer was as expected, else with 1
    #[arg(long)]
    once: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut screen = Screen::new();

    let assets = Assets::find()?;
    let binary = build_gangplank()?;

    let started = Instant::now();
    let cluster = Cluster::start(&assets)?;
    cluster.install_crds()?;
    screen.step(
        "kube-apiserver and etcd",
        cluster.apiserver_address(),
        started,
    )?;
    let started = Instant::now();
    let mut gangplank = Gangplank::register::<&str>(&binary, &cluster, &[])?;
    screen.step("gangplank serve --register", gangplank.webhook(), started)?;

    let tour = tour();
    let mut differences = Vec::new();
    for (number, stop) in (1..).zip(&tour) {
        screen.line("")?;
        screen.line(screen.paint(BOLD, format_args!("{number:>2}. {}", stop.title)))?;
        if let Some(difference) = stop.make(cluster.kubectl(), &mut screen)? {
            differences.push(format!("{number}. {}: {difference}", stop.title));
        }
    }

    screen.line("")?;
    if differences.is_empty() {
        let all = format_args!("All {} answers were as expected.", tour.len());
        screen.line(screen.paint(GREEN, all))?;
    } else {
        let count = format_args!("{} of {} answers differ:", differences.len(), tour.len());
        screen.line(screen.paint(RED, count))?;
        for difference in &differences {
            screen.line(format_args!("  {difference}"))?;
        }
    }
    if !args.once {
        stay(&mut screen, &cluster, &mut gangplank)?;
    }
    Ok(if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The manifests, in the order in which they are applied, and what is to become of them.
fn tour() -> Vec<Stop> {
    macro_rules! stop {
        ($title:literal, $file:literal, $expected:expr) => {
            Stop {
                title: $title,
                path: concat!("tests/tour/", $file),
                expected: $expected,
            }
        };
    }
    use Expected::{Admitted, Denied};
    vec![
        stop!(
            "An HPA that scales on GPU utilization",
            "hpa-gpu-utilization.yaml",
            Denied("gpu-utilization-signal")
        ),
        stop!(
            "An HPA that scales on GPU memory",
            "hpa-gpu-memory.yaml",
            Denied("gpu-memory-signal")
        ),
        stop!(
            "A ScaledObject that scales on GPU memory, in PromQL",
            "scaledobject-gpu-memory.yaml",
            Denied("gpu-memory-signal")
        ),
        stop!(
            "A ScaledObject that scales on waiting requests and KV cache",
            "scaledobject-queue-and-cache.yaml",
            Admitted(vec![])
        ),
        stop!(
            "A GPU NodePool that lets Karpenter evict what runs",
            "nodepool-gpu-evicting.yaml",
            Denied("gpu-pool-consolidation")
        ),
        stop!(
            "A GPU NodePool that says nothing about disruption: filled",
            "nodepool-gpu-silent.yaml",
            Admitted(vec![
                ("/spec/disruption/consolidationPolicy", json!("WhenEmpty")),
                ("/spec/disruption/consolidateAfter", json!("1h")),
            ])
        ),
        stop!(
            "A NodePool without GPUs that says nothing either: left alone",
            "nodepool-cpu.yaml",
            Admitted(vec![
                (
                    "/spec/disruption/consolidationPolicy",
                    json!("WhenEmptyOrUnderutilized")
                ),
                ("/spec/disruption/consolidateAfter", json!("0s")),
            ])
        ),
        stop!(
            "A KAI queue for what follows",
            "queue.yaml",
            Admitted(vec![])
        ),
        stop!(
            "A Deployment over 8 GPUs of one pod, without a queue",
            "deployment-tp8-no-queue.yaml",
            Denied("gang-scheduling")
        ),
        stop!(
            "The same with a queue: sent to the gang scheduler, one pod a gang",
            "deployment-tp8.yaml",
            Admitted(vec![
                ("/spec/template/spec/schedulerName", json!("kai-scheduler")),
                (
                    "/metadata/annotations/kai.scheduler~1batch-min-member",
                    json!("1")
                ),
            ])
        ),
        stop!(
            "A Deployment of one model over 8 pods: made one gang of 8",
            "deployment-gang-of-eight.yaml",
            Admitted(vec![
                ("/spec/template/spec/schedulerName", json!("kai-scheduler")),
                (
                    "/metadata/annotations/kai.scheduler~1batch-min-member",
                    json!("8")
                ),
                ("/spec/strategy/type", json!("Recreate")),
            ])
        ),
        stop!(
            "The same gang with a minimum of 7",
            "deployment-gang-of-seven.yaml",
            Denied("gang-scheduling")
        ),
        stop!(
            "A Deployment on one GPU: time to finish its generations",
            "deployment-tp1.yaml",
            Admitted(vec![(
                "/spec/template/spec/terminationGracePeriodSeconds",
                json!(180)
            )])
        ),
    ]
}

/// One manifest of the tour.
#[derive(Debug)]
struct Stop {
    title: &'static str,
    /// The manifest, from the repository's root.
    path: &'static str,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    /// By this rule.
    Denied(&'static str),
    /// And read back, these JSON pointers hold these values.
    Admitted(Vec<(&'static str, Value)>),
}

impl Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(rule) => write!(f, "denied by {rule}"),
            Self::Admitted(fields) => {
                f.write_str("admitted")?;
                for (index, (pointer, value)) in fields.iter().enumerate() {
                    f.write_str(if index == 0 { " with " } else { ", " })?;
                    write!(f, "{} = {value}", last_key(pointer))?;
                }
                Ok(())
            }
        }
    }
}

impl Stop {
    /// Applies the manifest and shows the answer; gives what differed from the expectation.
    fn make(&self, kubectl: &Kubectl, screen: &mut Screen) -> Result<Option<String>> {
        screen.entry("apply", format_args!("kubectl apply -f {}", self.path))?;
        screen.entry("expected", &self.expected)?;
        let answer = kubectl.run(&["apply", "--filename", self.path], None)?;
        let outcome = if answer.accepted() {
            "admitted"
        } else {
            "denied"
        };
        screen.entry("answer", screen.paint(BOLD, outcome))?;
        for line in answer.stderr.trim_end().lines() {
            screen.quote(line)?;
        }

        let (held, difference) = self.compare(&answer, kubectl)?;
        for line in held {
            screen.quote(line)?;
        }
        match &difference {
            None => screen.entry("", screen.paint(GREEN, "as expected"))?,
            Some(difference) => screen.entry(
                "",
                screen.paint(RED, format_args!("NOT as expected: {difference}")),
            )?,
        }
        Ok(difference)
    }

    /// What the API server holds now of what was to be there, and what is wrong with the answer.
    fn compare(&self, answer: &Answer, kubectl: &Kubectl) -> Result<(Vec<String>, Option<String>)> {
        match &self.expected {
            Expected::Denied(_) if answer.accepted() => {
                Ok((Vec::new(), Some("it was admitted".to_owned())))
            }
            Expected::Denied(rule) => Ok((
                Vec::new(),
                (!answer.stderr.contains(rule)).then(|| format!("the text does not name {rule}")),
            )),
            Expected::Admitted(_) if !answer.accepted() => {
                Ok((Vec::new(), Some("it was not admitted".to_owned())))
            }
            Expected::Admitted(fields) => {
                let args = ["get", "--filename", self.path, "--output=json"];
                let text = kubectl.run(&args, None)?.success()?;
                let object: Value = serde_json::from_str(&text)
                    .with_context(|| format!("kubectl printed no JSON for {}", self.path))?;
                let mut held = Vec::new();
                let mut differences = Vec::new();
                for (pointer, expected) in fields {
                    let value = object.pointer(pointer).unwrap_or(&Value::Null);
                    held.push(format!("{} = {value}", field_path(pointer)));
                    if value != expected {
                        differences.push(format!("{} is {value}", last_key(pointer)));
                    }
                }
                let difference = (!differences.is_empty()).then(|| differences.join(", "));
                Ok((held, difference))
            }
        }
    }
}

/// The keys of a JSON pointer.
fn keys(pointer: &str) -> impl Iterator<Item = String> {
    pointer
        .split('/')
        .skip(1)
        .map(|key| key.replace("~1", "/").replace("~0", "~"))
}

fn last_key(pointer: &str) -> String {
    keys(pointer).last().unwrap_or_default()
}

/// A JSON pointer as people write paths: `metadata.annotations[kai.scheduler/queue]`.
fn field_path(pointer: &str) -> String {
    let mut path = String::new();
    for key in keys(pointer) {
        if key.contains(['.', '/']) {
            path.push('[');
            path.push_str(&key);
            path.push(']');
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&key);
        }
    }
    path
}

/// Builds the real binary in the profile of this example, which Cargo does not do by itself, and
/// gives its path.
fn build_gangplank() -> Result<PathBuf> {
    // target/<profile>/examples/local
    let example = env::current_exe().context("cannot tell where this example lies")?;
    let folder = example
        .ancestors()
        .nth(2)
        .and_then(Path::file_name)
        .unwrap_or_default();
    let profile = if folder == "debug" {
        "dev".as_ref()
    } else {
        folder
    };

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` describes this package to us in variables; build scripts that read such ones
    // would take them for a change, and much would be built anew.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let output = cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // This example too, which is there already: alone, the binary would need some of its
        // dependencies again, without the features that the development dependencies add.
        .args(["build", "--bin", "gangplank", "--example", "local"])
        .args(["--message-format", "json-render-diagnostics", "--profile"])
        .arg(profile)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not build gangplank ({})",
        output.status
    );
    // Cargo says where it put the binary; that folder depends on its configuration.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message
                .pointer("/target/kind/0")
                .is_some_and(|kind| kind == "bin")
        })
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .context("cargo built gangplank and did not say where")
}

/// Says how to use the cluster, then waits for Ctrl-C.
fn stay(screen: &mut Screen, cluster: &Cluster, gangplank: &mut Gangplank) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut look = tokio::time::interval(Duration::from_secs(1));

        screen.line("")?;
        screen.line("Everything stays up until Ctrl-C. In another terminal:")?;
        screen.line("")?;
        screen.line(format_args!(
            "  export KUBECONFIG={}",
            cluster.kubeconfig().display()
        ))?;
        if !harness::assets::is_on_path("kubectl") {
            let kubectl = cluster.kubectl().program();
            screen.line(format_args!("  alias kubectl={}", kubectl.display()))?;
        }
        screen.line("")?;
        for (command, outcome) in [
            (
                "kubectl apply -f tests/tour/hpa-gpu-utilization.yaml",
                "denied",
            ),
            (
                "kubectl get nodepools",
                "WhenEmpty after 1h, where there are GPUs",
            ),
            (
                "kubectl annotate --overwrite deployment gang-8 kai.scheduler/batch-min-member=7",
                "denied",
            ),
        ] {
            screen.line(format_args!(
                "  {command:<80} {}",
                screen.paint(DIM, format!("# {outcome}"))
            ))?;
        }
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                _ = look.tick() => {
                    if let Some(status) = gangplank.ended() {
                        bail!("gangplank ended ({status})\n{}", gangplank.log());
                    }
                }
            }
        }
        screen.line("")?;
        screen.line("Stopping.")
    })
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";

/// Standard output, in colours on a terminal.
#[derive(Debug)]
struct Screen {
    out: io::Stdout,
    colours: bool,
}

impl Screen {
    fn new() -> Self {
        let out = io::stdout();
        let colours = out.is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { out, colours }
    }

    fn line(&mut self, text: impl Display) -> Result<()> {
        writeln!(self.out, "{text}").context("cannot write to standard output")
    }

    /// A line of the start-up: what runs where, and how long it took to be ready.
    fn step(&mut self, what: &str, address: impl Display, started: Instant) -> Result<()> {
        let seconds = started.elapsed().as_secs_f64();
        self.line(format_args!(
            "{what:<27} https://{address}  ready in {seconds:.2} s"
        ))
    }

    fn entry(&mut self, name: &str, text: impl Display) -> Result<()> {
        self.line(format_args!("    {name:<9} {text}"))
    }

    fn quote(&mut self, text: impl Display) -> Result<()> {
        let bar = self.paint(DIM, "|");
        self.line(format_args!("    {:<9} {bar} {text}", ""))
    }

    fn paint(&self, style: &str, text: impl Display) -> String {
        if self.colours {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}
