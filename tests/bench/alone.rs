//! What needs no API server: the core, `check`, and the start.

use std::{
    fs,
    hint::black_box,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    body::{Body, Bytes},
    http::{Request, header},
};
use gangplank::{
    facts::Facts,
    metrics::Metrics,
    policy::Policy,
    review::review,
    subject::{Door, Subject},
    webhook::{self, Desk, envelope},
};
use jiff::Timestamp;
use tower::ServiceExt as _;

use super::{
    cost,
    harness::{SOON, fleet, leash},
    objects,
    rows::{Table, median},
};

/// Microseconds for the review of a Deployment of 10 KB.
const REVIEW: f64 = 50.0;

/// Files, and seconds for all of them.
const FILES: usize = 2_000;
const CHECK: f64 = 1.0;

/// Milliseconds from the start to readiness.
const READY: f64 = 200.0;

/// How often anything short is done: the middle one counts.
const TIMES: usize = 15;

/// The review of each object, in this very process.
pub(crate) fn core(table: &mut Table) -> Result<()> {
    let (policy, facts, now) = (Policy::default(), Facts::unknown(), Timestamp::now());
    for name in objects::NAMES {
        let object = Arc::new(objects::object(name));
        let times = [Door::Mutate, Door::Validate].map(|door| {
            let Some(subject) = Subject::from_manifest(Arc::clone(&object)) else {
                return f64::NAN;
            };
            let subject = Subject { door, ..subject };
            each(|| {
                black_box(review(&policy, &facts, black_box(&subject), now));
            })
        });
        let seen = format!(
            "{:.1} µs to mutate, {:.1} µs to validate",
            times[0], times[1]
        );
        let what = format!("review of {name}, {} bytes", object.to_string().len());
        if name.starts_with("deployment-10k") {
            table.at_most(&what, times[0].max(times[1]), REVIEW, &seen);
        } else {
            table.told(&what, &seen);
        }
    }
    parts(table, &policy, &facts, now)
}

/// What a request takes but for the socket: opening its envelope, the review, and all of it by the router.
fn parts(table: &mut Table, policy: &Policy, facts: &Facts, now: Timestamp) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let router = webhook::router(Arc::new(Desk::new(
        Policy::default(),
        Arc::new(Metrics::new()),
    )));
    for name in super::direct::OBJECTS {
        let body = Bytes::from(objects::review_of(&objects::object(name)).to_string());
        let opened = each(|| {
            let _ = black_box(envelope::open(black_box(&body), Door::Validate));
        });
        let subject = envelope::open(&body, Door::Validate)?.subject;
        let reviewed = each(|| {
            black_box(review(policy, facts, black_box(&subject), now));
        });
        let all = each(|| {
            let request = Request::post("/validate")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.clone()));
            if let Ok(request) = request {
                let _ = black_box(runtime.block_on(router.clone().oneshot(request)));
            }
        });
        table.told(
            &format!(
                "request about {name}, {} bytes, without the socket",
                body.len()
            ),
            &format!(
                "{all:.1} µs, of which {opened:.1} µs to read it and {reviewed:.1} µs to review it"
            ),
        );
    }
    Ok(())
}

/// Microseconds for one of something short: the best of many batches, for what else the machine does
/// is not its cost.
fn each(mut work: impl FnMut()) -> f64 {
    const BATCHES: usize = 60;
    let started = Instant::now();
    work();
    work();
    // As many as take 5 ms, so that a batch is seldom interrupted.
    let once = (started.elapsed() / 2).as_secs_f64();
    let mut batch = 1;
    while f64::from(batch) * once < 0.005 && batch < 10_000 {
        batch *= 2;
    }
    let batches = (0..BATCHES).map(|_| {
        let started = Instant::now();
        for _ in 0..batch {
            work();
        }
        started.elapsed().as_secs_f64() * 1e6 / f64::from(batch)
    });
    batches.fold(f64::INFINITY, f64::min)
}

/// `check` of a folder.
pub(crate) fn check(table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for number in 0..FILES {
        let sub = folder.path().join(format!("team-{:02}", number / 100));
        fs::create_dir_all(&sub)?;
        let text = serde_saphyr::to_string(&fleet::object(number).0)?;
        fs::write(sub.join(format!("{number:04}.yaml")), text)?;
    }
    let mut seconds = Vec::new();
    for _ in 0..TIMES {
        let started = Instant::now();
        let status = Command::new(cost::binary())
            .arg("check")
            .arg(folder.path())
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        seconds.push(started.elapsed().as_secs_f64());
        ensure!(status.code() == Some(1), "{status}");
    }
    let seen = format!("{:.2} s", median(seconds.clone()));
    table.at_most(
        &format!("check of {FILES} files"),
        median(seconds),
        CHECK,
        &seen,
    );
    Ok(())
}

/// From the start of the process to the first 200 of /readyz.
pub(crate) fn start(table: &mut Table) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..TIMES {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (webhook, admin): (SocketAddr, SocketAddr) = (listen()?, listen()?);
        let mut command = leash::command(cost::binary().as_ref(), None);
        command
            .arg("serve")
            .arg(format!("--listen={webhook}"))
            .arg(format!("--admin-listen={admin}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let started = Instant::now();
        let mut process = leash::Leashed::spawn(command)?;
        while !is_ready(admin) {
            ensure!(started.elapsed() < SOON, "not ready in time");
            ensure!(process.ended().is_none(), "it ended");
            thread::sleep(Duration::from_millis(1));
        }
        all.push(started.elapsed().as_secs_f64() * 1e3);
        process.kill()?;
    }
    let worst = all.iter().copied().fold(0.0, f64::max);
    let seen = format!("{:.0} ms, {worst:.0} ms at worst", median(all.clone()));
    table.at_most("start to ready, without caches", median(all), READY, &seen);
    Ok(())
}

fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

/// What the admin port answers.
pub(crate) fn get(admin: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(admin).context("the admin port")?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
