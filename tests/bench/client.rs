//! Asks a webhook as an API server does, and measures.
//!
//! The client is thin, a thread for each connection and no parser to speak of: it runs on the same
//! processors as the server, and what it takes would hide what the server takes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;

use super::objects;

/// A webhook under measurement.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Its process, to see what it takes.
    pub(crate) process: u32,
}

/// Trusts what this authority has signed.
pub(crate) fn trusting(authority: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The request for an object, in HTTP/1.1.
pub(crate) fn request(path: &str, object: &Value) -> Vec<u8> {
    let body = objects::review_of(object).to_string();
    let head = format!(
        "POST {path}?timeout=5s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: kube-apiserver-admission\r\n\
         Accept: application/json, */*\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// One connection of HTTP/1.1, kept open.
struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(target: Target, config: &Arc<ClientConfig>) -> Result<Self> {
        let socket = TcpStream::connect(target.address)?;
        socket.set_nodelay(true)?;
        let name = ServerName::from(target.address.ip());
        let session = ClientConnection::new(Arc::clone(config), name)?;
        Ok(Self {
            stream: StreamOwned::new(session, socket),
            answer: Vec::new(),
        })
    }

    /// Sends a request and reads all of its answer.
    fn ask(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request)?;
        self.stream.flush()?;
        self.answer.clear();
        let mut piece = [0; 16 * 1024];
        let mut wanted = None;
        while wanted.is_none_or(|wanted| self.answer.len() < wanted) {
            let count = self.stream.read(&mut piece)?;
            ensure!(count > 0, "the connection was closed");
            self.answer.extend_from_slice(&piece[..count]);
            if wanted.is_none() {
                wanted = whole(&self.answer)?;
            }
        }
        Ok(())
    }
}

/// What is answered on `/mutate` for an object: the patch, in base64.
pub(crate) fn patch(target: Target, config: &Arc<ClientConfig>, object: &Value) -> Result<String> {
    let mut connection = Connection::open(target, config)?;
    connection.ask(&request("/mutate", object))?;
    let answer = String::from_utf8_lossy(&connection.answer).into_owned();
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let review: Value = serde_json::from_str(body)?;
    let patch = review["response"]["patch"].as_str();
    Ok(patch
        .with_context(|| format!("no patch: {review}"))?
        .to_owned())
}

/// How long an answer is, once its headers are there.
fn whole(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    for line in head.lines() {
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(Some(end + 4 + value.trim().parse::<usize>()?));
        }
    }
    bail!("an answer without a length: {head}")
}

/// What was seen in one round.
#[derive(Default)]
pub(crate) struct Round {
    /// Answers a second.
    pub(crate) throughput: f64,
    /// Nanoseconds, in order.
    pub(crate) latencies: Vec<u64>,
}

impl Round {
    #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
    fn of(each: Vec<Vec<u64>>, elapsed: Duration) -> Self {
        let mut latencies: Vec<u64> = each.into_iter().flatten().collect();
        latencies.sort_unstable();
        Self {
            throughput: latencies.len() as f64 / elapsed.as_secs_f64(),
            latencies,
        }
    }

    /// Microseconds below which this part of the latencies lies.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.latencies, part)
    }
}

/// Microseconds below which this part of some nanoseconds, in order, lies.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of requests, and nanoseconds"
)]
pub(crate) fn quantile(ordered: &[u64], part: f64) -> f64 {
    let index = (ordered.len() as f64 * part) as usize;
    ordered
        .get(index.min(ordered.len().saturating_sub(1)))
        .map_or(f64::NAN, |nanos| *nanos as f64 / 1e3)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs one thread for each connection; `work` gets the connection, its number and the beginning.
fn on_connections(
    target: Target,
    config: &Arc<ClientConfig>,
    connections: usize,
    work: impl Fn(&mut Connection, usize, Instant) -> Result<Vec<u64>> + Sync,
    first: &[u8],
) -> Result<Round> {
    let barrier = Barrier::new(connections);
    let each = |number: usize| -> Result<(Vec<u64>, Duration)> {
        let opened = Connection::open(target, config).and_then(|mut connection| {
            connection.ask(first)?;
            Ok(connection)
        });
        // Also where it failed: nobody waits for it in vain.
        barrier.wait();
        let started = Instant::now();
        let latencies = work(&mut opened?, number, started)?;
        Ok((latencies, started.elapsed()))
    };
    let results: Result<Vec<_>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|number| {
                let each = &each;
                scope.spawn(move || each(number))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?)
            .collect()
    });
    let results = results?;
    let elapsed = results.iter().map(|(_, elapsed)| *elapsed).max();
    let each = results.into_iter().map(|(latencies, _)| latencies);
    Ok(Round::of(each.collect(), elapsed.unwrap_or_default()))
}

/// A closed loop: each connection asks as soon as it is answered.
pub(crate) fn closed(
    target: Target,
    config: &Arc<ClientConfig>,
    connections: usize,
    period: Duration,
    request: &[u8],
) -> Result<Round> {
    let work = |connection: &mut Connection, _, started: Instant| {
        let mut latencies = Vec::new();
        let mut before = started;
        while started.elapsed() < period {
            connection.ask(request)?;
            let after = Instant::now();
            latencies.push(nanos(after - before));
            before = after;
        }
        Ok(latencies)
    };
    on_connections(target, config, connections, work, request)
}

/// An open loop: so many requests a second whatever becomes of them. Latency counts from when each was
/// to be sent, so that one that waits for a slow answer before it counts that, too.
pub(crate) fn open(
    target: Target,
    config: &Arc<ClientConfig>,
    connections: usize,
    (rate, period): (u32, Duration),
    request: &[u8],
) -> Result<Round> {
    let step = Duration::from_secs(1) / rate;
    let work = |connection: &mut Connection, number: usize, started: Instant| {
        let mut latencies = Vec::new();
        let mut turn = u32::try_from(number)?;
        let stride = u32::try_from(connections)?;
        while step * turn < period {
            let due = started + step * turn;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.ask(request)?;
            latencies.push(nanos(due.elapsed()));
            turn += stride;
        }
        Ok(latencies)
    };
    on_connections(target, config, connections, work, request)
}

/// So many requests, of several kinds in turn, as fast as they are answered.
pub(crate) fn flood(
    target: Target,
    config: &Arc<ClientConfig>,
    connections: usize,
    count: usize,
    requests: &[Vec<u8>],
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = |connection: &mut Connection, _, _| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(Vec::new());
            }
            connection.ask(&requests[number % requests.len()])?;
        }
    };
    on_connections(target, config, connections, work, &requests[0]).map(|_| ())
}

/// A closed loop of so many streams on one connection of HTTP/2.
pub(crate) async fn multiplexed(
    target: Target,
    config: &Arc<ClientConfig>,
    streams: usize,
    period: Duration,
    object: &Value,
) -> Result<Round> {
    let mut sockets = HttpConnector::new();
    sockets.set_nodelay(true);
    sockets.enforce_http(false);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(ClientConfig::clone(config))
        .https_only()
        .enable_http2()
        .wrap_connector(sockets);
    let client: Client<_, Body> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build(connector);
    let body = Bytes::from(objects::review_of(object).to_string());
    let url = format!("https://{}/validate?timeout=5s", target.address);
    let ask = {
        let (client, body, url) = (client.clone(), body.clone(), url.clone());
        move || {
            let request = axum::http::Request::post(&url)
                .header("Content-Type", "application/json")
                .body(Body::from(body.clone()));
            let client = client.clone();
            async move {
                let answer = client.request(request?).await?;
                ensure!(answer.status().is_success(), "{}", answer.status());
                answer.into_body().collect().await?;
                anyhow::Ok(())
            }
        }
    };
    ask().await?;
    let started = Instant::now();
    let tasks: Vec<_> = (0..streams)
        .map(|_| {
            let ask = ask.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut before = started;
                while started.elapsed() < period {
                    ask().await?;
                    let after = Instant::now();
                    latencies.push(nanos(after - before));
                    before = after;
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut each = Vec::new();
    for task in tasks {
        each.push(task.await??);
    }
    Ok(Round::of(each, started.elapsed()))
}
