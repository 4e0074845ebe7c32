//! What clients may take of the server: connections, reviews at a time, and time itself.
//!
//! An API server sends whole requests at once, over HTTP/1.1 to a Service and to any host but localhost
//! (k8s.io/apiserver 0.36, pkg/util/webhook/client.go: so that its requests spread over the replicas),
//! and keeps up to 25 unused connections (client-go, transport/cache.go). Whoever does otherwise must not
//! keep it from being answered, so everything here has a bound, and what is beyond it is turned away at
//! once rather than made to wait.

use std::{
    future::Future,
    io,
    pin::Pin,
    slice,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use axum::http::Request;
use axum_server::{Address, Server, accept::Accept};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections at a time. Over HTTP/1.1 each request under way has one to itself, so there are as many
/// again as [`IN_FLIGHT`]: what is beyond that bound is answered, and the API server asks again; a
/// connection that is closed is a call that failed.
pub const CONNECTIONS: u32 = 1024;

/// Reviews at a time, from the first byte of the body to the answer. Above what an API server has
/// under way by default (`--max-requests-inflight` 400 and `--max-mutating-requests-inflight` 200
/// are one budget of 600 for reads and writes), of which most are reads.
pub const IN_FLIGHT: u32 = 512;

/// Bytes of bodies at a time, from when they have come to the answer: ten of the largest that an API server
/// stores, or one of 64 KiB for each of [`IN_FLIGHT`]. What is beyond is not read, but shed.
pub const BODY_BYTES: &str = "32Mi";

/// Bytes of memory that bodies which are judged at a time may become ([`read_size`]). What is beyond waits for
/// its turn: for milliseconds, and a second at most for each before it whose exemption somebody else is asked
/// about. A body that is beyond it by itself is refused; an ordinary manifest of 1.5 MiB, the most that etcd
/// stores, becomes 30 MiB. Where an object is changed there is a copy of it, so that as much again may be
/// taken, for which the chart's limit of memory leaves room.
const JUDGED_BYTES: usize = 192 * 1024 * 1024;

/// A body below this takes no turn, and neither does one that becomes less than [`SMALL_SIZE`]: nearly
/// every body is one, and they are judged beside all others.
const SMALL_BODY: usize = 16 * 1024;

/// As many of these as [`IN_FLIGHT`] are 64 MiB.
const SMALL_SIZE: usize = 128 * 1024;

/// What turns are counted in, in bytes.
const TURN: usize = 1024;

/// Connections at a time to the admin port: the kubelet, a few Prometheus, somebody who looks.
pub const ADMIN_CONNECTIONS: u32 = 64;

/// A connection whose first request has not come within this time is not from an API server.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);

/// How long an HTTP/1 connection may go unused, and how long the head of a later request may take.
///
/// Longer than the client keeps it (90 s: IdleConnTimeout of Go's default transport, which
/// k8s.io/apimachinery 0.36 hands down in pkg/util/net/http.go): where the server is the first to
/// close, a request may be on its way already, and Go repeats no POST whose connection ended, so
/// that write would fail.
const IDLE_DEADLINE: Duration = Duration::from_secs(120);

/// A connection over which nothing comes is asked this often whether somebody is still there.
const PING_PERIOD: Duration = Duration::from_secs(30);

/// And closed when nobody says so within this time.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// Requests at a time on one connection; Go's client opens another connection for more.
const STREAMS: u32 = 250;

/// The headers of one request, in bytes. The API server sends a dozen short ones.
const HEADERS: u32 = 16 * 1024;

/// What HTTP/1 buffers of one connection, in bytes: no header is longer.
const BUFFER: usize = 64 * 1024;

/// Requests that were reset before they were looked at: more of them on one connection is an attack
/// ("rapid reset", CVE-2023-44487) and ends it. What h2 0.4 takes by default, said here so that it
/// stays.
const PENDING_RESETS: usize = 20;

/// Requests that were reset because they break the protocol (RUSTSEC-2024-0003): more of them on one
/// connection ends it. hyper's own default is 1024.
const ERROR_RESETS: usize = 128;

/// Descriptors for everything but connections to the admission port: the admin port, watches, files.
const OTHER_DESCRIPTORS: u64 = ADMIN_CONNECTIONS as u64 + 128;

/// Sees to it that the process may have as many descriptors as these connections take. A container
/// often begins with 1024 of the many that it may have: the soft limit stays low for programs that
/// use select(2), which nothing here does.
///
/// # Errors
/// How many it may have, and how many it needs, where the hard limit is lower.
pub fn make_room(connections: u32) -> Result<(), String> {
    let needed = u64::from(connections) + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(needed, |most| most.min(needed))),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("the limit of open files stays as it is: {error}"))?;
    match limit.maximum {
        Some(most) if most < needed => Err(format!(
            "this process may open {most} files, but {connections} connections take up to {needed}"
        )),
        _ => Ok(()),
    }
}

/// Bounds how many may be inside. One atomic counts them and is the metric as well.
#[derive(Clone, Debug)]
pub struct Gate {
    inside: Gauge,
    turned_away: Counter,
    limit: i64,
}

impl Gate {
    /// A gate for `limit` at a time, counted in `inside`; whoever it turns away is counted in
    /// `turned_away`.
    pub fn new(limit: u32, inside: Gauge, turned_away: Counter) -> Self {
        Self {
            inside,
            turned_away,
            limit: limit.into(),
        }
    }

    /// A gate that counts for itself alone.
    pub fn uncounted(limit: u32) -> Self {
        Self::new(limit, Gauge::default(), Counter::default())
    }

    /// Lets one in, until what is returned is dropped.
    ///
    /// # Errors
    /// How many were turned away by now, where it is full.
    pub fn enter(&self) -> Result<Pass, u64> {
        let one_more = |inside| (inside < self.limit).then_some(inside + 1);
        // Nothing else is ordered by the count.
        let entered =
            self.inside
                .inner()
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        match entered {
            Ok(_) => Ok(Pass(self.inside.clone())),
            Err(_) => Err(self.turned_away.inc() + 1),
        }
    }

    /// How many are inside.
    pub fn inside(&self) -> i64 {
        self.inside.get()
    }

    /// How many may be inside.
    pub fn limit(&self) -> i64 {
        self.limit
    }
}

/// Somebody whom a [`Gate`] let in.
#[derive(Debug)]
pub struct Pass(Gauge);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Bounds how many bytes may be held, by all requests together.
#[derive(Clone, Debug)]
pub struct Budget {
    held: Gauge,
    turned_away: Counter,
    limit: i64,
}

impl Budget {
    /// A budget of `limit` bytes, counted in `held`; whom it turns away is counted in `turned_away`.
    pub fn new(limit: u64, held: Gauge, turned_away: Counter) -> Self {
        Self {
            held,
            turned_away,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
        }
    }

    /// A share of nothing yet, which is given back when it is dropped.
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            bytes: 0,
        }
    }

    /// How many bytes may be held.
    pub fn limit(&self) -> i64 {
        self.limit
    }
}

/// What one request holds of a [`Budget`].
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: i64,
}

impl Share {
    /// Grows to that many bytes; a share that is larger stays as it is.
    ///
    /// # Errors
    /// How many were turned away by now, where so much is not left. The share stays as it was.
    pub fn reach(&mut self, bytes: usize) -> Result<(), u64> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let more = bytes.saturating_sub(self.bytes);
        if more <= 0 {
            return Ok(());
        }
        let Budget {
            held,
            turned_away,
            limit,
        } = &self.budget;
        let with_more = |held: i64| held.checked_add(more).filter(|held| held <= limit);
        // Nothing else is ordered by the count.
        let reached = held
            .inner()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_more);
        match reached {
            Ok(_) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(_) => Err(turned_away.inc() + 1),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.dec_by(self.bytes);
    }
}

/// What the values in a JSON text take once they are read, in bytes and rounded up: a few bytes can become
/// many. A map is a leaf of a B-tree, however little is in it, and its members have a key and half a leaf
/// at worst; a list begins with four places, and while it grows there are three for an element; a string with
/// an escape in it grows like that in a buffer before it is copied (serde_json 1.0, 64 bits).
pub fn read_size(text: &[u8]) -> usize {
    const MAP: usize = 704;
    const LIST: usize = 128;
    const MEMBER: usize = 144;
    const ELEMENT: usize = 96;
    const BUFFERED: usize = 3;
    let mut size = text.len();
    // The longest string that has an escape in it.
    let mut buffered = 0;
    let mut before = b' ';
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => {
                let (length, escaped) = skip_string(&mut rest);
                if escaped {
                    buffered = buffered.max(length);
                }
            }
            _ if byte.is_ascii_whitespace() => continue,
            // What is empty has no memory of its own.
            b'}' if before == b'{' => size = size.saturating_sub(MAP),
            b']' if before == b'[' => size = size.saturating_sub(LIST),
            b'{' => size = size.saturating_add(MAP),
            b'[' => size = size.saturating_add(LIST),
            b':' => size = size.saturating_add(MEMBER),
            b',' => size = size.saturating_add(ELEMENT),
            _ => {}
        }
        before = byte;
    }
    size.saturating_add(BUFFERED.saturating_mul(buffered))
}

/// Goes past a string whose first quote is behind. Says how long it is, and whether an escape is in it.
fn skip_string(rest: &mut slice::Iter<'_, u8>) -> (usize, bool) {
    let all = rest.len();
    let mut escaped = false;
    while let Some(b'\\') = rest.find(|byte| matches!(byte, b'"' | b'\\')) {
        escaped = true;
        // Whatever is escaped does not end the string.
        rest.next();
    }
    (all - rest.len(), escaped)
}

/// A body that is not judged at all, because of what it would become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the body would take {} MiB of memory once it is read, and {} MiB are the limit",
    .0 / MIB,
    JUDGED_BYTES / MIB
)]
pub struct TooMuch(usize);

const MIB: usize = 1024 * 1024;

/// Lets as much be judged at a time as memory is meant for.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(JUDGED_BYTES / TURN))
    }
}

impl Turns {
    /// Waits until this body may be judged: that is until what is returned is dropped. The first to come is
    /// the first to go on.
    ///
    /// # Errors
    /// Where it would take more than all others together may.
    pub async fn wait(&self, body: &[u8]) -> Result<Option<SemaphorePermit<'_>>, TooMuch> {
        if body.len() < SMALL_BODY {
            return Ok(None);
        }
        let size = read_size(body);
        if size < SMALL_SIZE {
            return Ok(None);
        }
        if size > JUDGED_BYTES {
            return Err(TooMuch(size));
        }
        let turns = u32::try_from(size / TURN).unwrap_or(u32::MAX);
        // Nobody closes it.
        Ok(self.0.acquire_many(turns).await.ok())
    }
}

/// Whether the n-th of many like it is worth a line in the log: the 1st, 2nd, 4th, 8th. A flood must
/// not become one of the log.
pub fn is_worth_a_line(nth: u64) -> bool {
    nth.is_power_of_two()
}

/// Closes connections beyond those that a [`Gate`] lets in, before anything is read from them.
#[derive(Clone, Debug)]
pub struct Doorkeeper<A> {
    inner: A,
    gate: Gate,
}

impl<A> Doorkeeper<A> {
    /// Stands before `inner`.
    pub fn new(gate: Gate, inner: A) -> Self {
        Self { inner, gate }
    }
}

impl<A, I, S> Accept<I, S> for Doorkeeper<A>
where
    A: Accept<I, Admitted<S>>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        match self.gate.enter() {
            Ok(pass) => Box::pin(self.inner.accept(
                stream,
                Admitted {
                    service,
                    _pass: Arc::new(pass),
                },
            )),
            Err(nth) => {
                if is_worth_a_line(nth) {
                    let limit = self.gate.limit();
                    tracing::warn!(
                        refused = nth,
                        limit,
                        "closed a connection: there are too many"
                    );
                }
                drop(stream);
                Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
            }
        }
    }
}

/// The service of a connection that was let in. It lives as long as the connection, from before the
/// TLS handshake.
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    service: S,
    _pass: Arc<Pass>,
}

impl<S: tower_service::Service<Request<B>>, B> tower_service::Service<Request<B>> for Admitted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.service.call(request)
    }
}

/// Sets what a connection may cost in time and memory.
pub fn bound<A: Address, Acceptor>(server: Server<A, Acceptor>) -> Server<A, Acceptor> {
    let mut server = server.first_request_timeout(FIRST_DEADLINE);
    let builder = server.http_builder();
    builder
        .http1()
        .header_read_timeout(IDLE_DEADLINE)
        .max_buf_size(BUFFER);
    builder
        .http2()
        .keep_alive_interval(Some(PING_PERIOD))
        .keep_alive_timeout(PING_DEADLINE)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS);
    server
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{subject::quantity::Quantity, webhook::BODY_LIMIT};

    #[test]
    fn a_gate_lets_in_as_many_as_it_says_and_again_when_they_leave() {
        let (inside, turned_away) = (Gauge::default(), Counter::default());
        let gate = Gate::new(2, inside.clone(), turned_away.clone());
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert_eq!(gate.enter().unwrap_err(), 1);
        assert_eq!(gate.enter().unwrap_err(), 2);
        assert_eq!((inside.get(), turned_away.get()), (2, 2));
        drop(first);
        assert_eq!(inside.get(), 1);
        let _third = gate.enter().unwrap();
        assert_eq!((inside.get(), turned_away.get()), (2, 2));
    }

    #[test]
    fn a_budget_holds_what_its_shares_have_reached_and_no_more_than_it_says() {
        let (held, turned_away) = (Gauge::default(), Counter::default());
        let budget = Budget::new(10, held.clone(), turned_away.clone());
        let (mut first, mut second) = (budget.share(), budget.share());
        first.reach(4).unwrap();
        first.reach(3).unwrap();
        second.reach(6).unwrap();
        assert_eq!((held.get(), turned_away.get()), (10, 0));
        assert_eq!(first.reach(5).unwrap_err(), 1);
        assert_eq!(budget.share().reach(1).unwrap_err(), 2);
        assert_eq!(budget.share().reach(usize::MAX).unwrap_err(), 3);
        assert_eq!((held.get(), turned_away.get()), (10, 3));
        drop(second);
        first.reach(10).unwrap();
        assert_eq!(held.get(), 10);
        drop(first);
        assert_eq!((held.get(), turned_away.get()), (0, 3));
    }

    #[test]
    fn the_largest_body_fits_into_the_default_budget() {
        let bytes = Quantity::parse(BODY_BYTES).unwrap().ceil().unsigned_abs();
        let mut share = Budget::new(bytes, Gauge::default(), Counter::default()).share();
        share.reach(BODY_LIMIT).unwrap();
    }

    #[tokio::test]
    async fn large_bodies_are_judged_one_after_another_and_small_ones_beside_them() {
        let now = |turns: &'static Turns, body: &[u8]| {
            let body = body.to_vec();
            async move {
                let turn = async { turns.wait(&body).await.unwrap() };
                tokio::time::timeout(Duration::ZERO, turn).await.ok()
            }
        };
        let turns: &'static Turns = Box::leak(Box::default());
        // Of two as large as this there is room for one.
        let large = b"{\"a\":1},".repeat(130_000);
        let one = now(turns, &large).await.unwrap();
        assert!(one.is_some());
        assert!(now(turns, &large).await.is_none());
        // What is small takes no turn, and what only looks small does.
        for small in [large[..SMALL_BODY - 1].to_vec(), vec![b' '; SMALL_SIZE - 1]] {
            assert!(now(turns, &small).await.unwrap().is_none());
        }
        assert!(now(turns, &large[..SMALL_BODY]).await.unwrap().is_some());
        drop(one);
        let (half, quarter) = large.split_at(large.len() / 2);
        let half = now(turns, half).await.unwrap();
        let other = now(turns, quarter).await.unwrap();
        assert!(half.is_some() && other.is_some());
        assert!(now(turns, &large).await.is_none());
        drop(half);
        drop(other);
        assert!(now(turns, &large).await.is_some());
        let all = b"{\"a\":1},".repeat(BODY_LIMIT / 8);
        let error = turns.wait(&all).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "the body would take 952 MiB of memory once it is read, and 192 MiB are the limit"
        );
    }

    #[test]
    fn what_a_string_holds_is_no_map() {
        for inner in ["{:,}", "[{]}", "::"] {
            let body = format!("[\"{inner}\"]");
            assert_eq!(read_size(body.as_bytes()), body.len() + 128, "{body}");
        }
        // Buffered from its first quote on.
        for inner in [r#"\"{:,"#, r#"\\\"{"#, r"[{\n"] {
            let body = format!("[\"{inner}\"]");
            let buffered = 3 * (inner.len() + 1);
            let size = body.len() + 128 + buffered;
            assert_eq!(read_size(body.as_bytes()), size, "{body}");
        }
        assert_eq!(read_size(b"{ }"), 3);
        assert_eq!(read_size(b"[[ ]]"), 128 + 5);
        assert!(read_size(br#"["\\",{"a":1}]"#) > 700);
    }

    #[test]
    fn a_flood_is_told_in_a_few_lines() {
        let lines = (1..=1_000_000).filter(|nth| is_worth_a_line(*nth)).count();
        assert_eq!(lines, 20);
        assert!(is_worth_a_line(1));
    }
}
