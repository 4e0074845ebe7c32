//! Every number that Gangplank holds itself to, measured in one run and told in one table, with the
//! machine. Ends with 1 where a budget does not hold.
//!
//! `cargo bench --bench table` takes about 20 minutes on two cores; name parts of it for less, as in
//! `cargo bench --bench table -- core direct`. `GANGPLANK` names another binary to measure. `UPDATE=1`
//! writes `docs/performance.md`.
//!
//! What is compared is measured in turn, in one run on one machine: ratios are what can be compared with
//! those of another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what fails in a benchmark fails it"
)]

use std::{env, ffi::OsString, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Result, ensure};

mod alone;
mod client;
mod cost;
mod crowd;
mod direct;
#[path = "../apiserver/mod.rs"]
mod harness;
mod nothing;
mod objects;
mod rows;
mod through;

use harness::{Assets, Cluster, Gangplank, pki::Pki};
use nothing::{Does, Nothing};
use rows::{Table, machine};

const PARTS: [&str; 7] = [
    "core",
    "check",
    "start",
    "direct",
    "apiserver",
    "requests",
    "cluster",
];

/// Where the last table is.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance.md");

/// What the page says around it. The table goes between them.
const HOW: &str = include_str!("table.md");

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let [first, certificate, key, does] = &arguments[..]
        && first == nothing::ARGUMENT
    {
        nothing::serve(certificate, key, does)?;
        return Ok(ExitCode::SUCCESS);
    }
    // As all other benchmarks: a mere test of the targets runs them without --bench.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    named.retain(|name| *name != "--bench");
    for name in &named {
        ensure!(
            PARTS.contains(name),
            "{name} is none of {}",
            PARTS.join(", ")
        );
    }
    let wanted = |name: &str| named.is_empty() || named.contains(&name);

    let started = Instant::now();
    let machine = machine();
    for line in &machine {
        println!("{line}");
    }
    let mut table = Table::default();
    let folder = tempfile::tempdir()?;
    let pki = Pki::create(folder.path())?;
    let config = client::trusting(&pki.ca)?;
    let certificate = || {
        let flag = |name: &str, path: &Path| {
            let mut flag = OsString::from(name);
            flag.push(path);
            flag
        };
        [
            flag("--tls-cert=", &pki.server_cert),
            flag("--tls-key=", &pki.server_key),
        ]
    };
    let other = |does: Does| Nothing::start(&pki.server_cert, &pki.server_key, &does);
    let runtime = tokio::runtime::Runtime::new()?;
    if wanted("core") {
        alone::core(&mut table)?;
    }
    if wanted("check") {
        alone::check(&mut table)?;
    }
    if wanted("start") {
        alone::start(&mut table)?;
    }
    if wanted("direct") {
        let (nothing, reader) = (other(Does::Nothing)?, other(Does::Read)?);
        let gangplank = Gangplank::start(Path::new(&cost::binary()), &certificate())?;
        let targets = [nothing.target(), reader.target(), target(&gangplank)];
        direct::measure(&mut table, targets, &config, &runtime)?;
    }
    if wanted("apiserver") {
        let cluster = Cluster::start(&Assets::find()?)?;
        // All that Gangplank registers for is there.
        cluster.install_crds()?;
        let nothing = other(Does::Nothing)?;
        let [cert, key] = certificate();
        let mut kubeconfig = OsString::from("--kubeconfig=");
        kubeconfig.push(cluster.kubeconfig());
        let args = [cert, key, "--watch".into(), kubeconfig];
        let gangplank = Gangplank::start(Path::new(&cost::binary()), &args)?;
        let patched = objects::object(through::PATCHED);
        let patch = client::patch(target(&gangplank), &config, &patched)?;
        let patching = other(Does::Patch(patch))?;
        let targets = [nothing.target(), patching.target(), target(&gangplank)];
        let measured = through::measure(&mut table, cluster.kubeconfig(), &pki.ca, targets);
        runtime.block_on(measured)?;
    }
    if wanted("requests") {
        crowd::requests(&mut table, &certificate(), &config)?;
    }
    if wanted("cluster") {
        crowd::cluster(&mut table, certificate(), &runtime)?;
    }

    println!("{:.0} s", started.elapsed().as_secs_f64());
    if env::var_os("UPDATE").is_some() {
        ensure!(named.is_empty(), "a part of the table is not written");
        let machine = format!("- {}\n", machine.join("\n- "));
        let page = HOW
            .replace("<!-- machine -->\n", &machine)
            .replace("<!-- table -->\n", &table.markdown());
        fs::create_dir_all(Path::new(PAGE).parent().unwrap())?;
        fs::write(PAGE, page)?;
    }
    let broken = table.broken();
    for line in &broken {
        println!("FAILED: {line}");
    }
    Ok(ExitCode::from(u8::from(!broken.is_empty())))
}

fn target(gangplank: &Gangplank) -> client::Target {
    client::Target {
        address: gangplank.webhook(),
        process: gangplank.id(),
    }
}
