//! What clients may take of the server: connections, reviews at a time, and time itself.
//!
//! An API server sends whole requests at once, over HTTP/1.1 to a Service and to any host but localhost
//! (k8s.io/apiserver 0.36, pkg/util/webhook/client.go: so that its requests spread over the replicas),
//! and keeps up to 25 unused connections (client-go, transport/cache.go). Whoever does otherwise must not
//! keep it from being answered, so everything here has a bound.
//!
//! Strangers and API servers may share an address (behind konnectivity, address translation or a control
//! plane's network interface), and nobody can tell them apart but by what they do. So whatever is of use, a
//! complete request, is bounded as a whole and never by its address; and whatever may never become of use,
//! a connection without a complete request or an unfinished body, makes room for what is newer. Addresses
//! only decide whose goes first.

use std::time::Duration;

use axum_server::{Address, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use self::{
    bodies::{Bodies, Body, Held, NoRoom},
    connections::{Connection, Connections, Counts, InFlight, Limited, Reason},
    gate::{Gate, Pass},
    lines::Lines,
    pool::{LargeSize, Pool, Thread, TooMuch, Turn, is_large, read_size},
};

mod bodies;
mod connections;
mod gate;
mod lines;
mod pool;

/// Connections at a time. Over HTTP/1.1 each request under way has one to itself, so there are as many
/// again as [`IN_FLIGHT`]: what is beyond that bound is answered, and the API server asks again; a
/// connection that is closed is a call that failed.
pub const CONNECTIONS: u32 = 1024;

/// Reviews at a time, from the last byte of the body to the answer. Above what an API server has
/// under way by default (`--max-requests-inflight` 400 and `--max-mutating-requests-inflight` 200
/// are one budget of 600 for reads and writes), of which most are reads. Large bodies may be half of them:
/// they wait for their turn, and small ones shall not wait for that.
pub const IN_FLIGHT: u32 = 512;

/// Bytes of unfinished bodies at a time, and again of large ones that are complete: twenty of the largest that
/// an API server stores.
pub const BODY_BYTES: &str = "32Mi";

/// Connections at a time to the admin port: the kubelet, a few Prometheus, somebody who looks.
pub const ADMIN_CONNECTIONS: u32 = 64;

/// A body that takes longer than this is not from an API server, which has it whole before it sends the head.
/// 8 MiB take 0.7 s at 100 Mbit/s. Bytes that have come are read before the time is looked at, so a busy
/// machine does not make a body late. The API server waits five seconds for all: of these enough are left
/// to ask again.
pub const BODY_DEADLINE: Duration = Duration::from_secs(1);

/// A handshake that takes longer than this is not from an API server: it takes two ways over the network and
/// back, and less than a millisecond of a processor. A second would do but for the packet that is lost, which
/// is sent again after one.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);

/// A connection whose first request has not begun within this time after the handshake is not from an API
/// server: that connects because it has a request to send. As for the handshake, a packet may be lost once.
const FIRST_DEADLINE: Duration = Duration::from_secs(2);

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

/// Requests at a time on one connection; Go's client opens another connection for more (net/http, http2
/// Transport without StrictMaxConcurrentStreams). An API server takes HTTP/2 to localhost alone.
const STREAMS: u32 = 32;

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
const OTHER_DESCRIPTORS: u64 = 2 * ADMIN_CONNECTIONS as u64 + 128;

/// Sees to it that the process may have as many descriptors as these connections take. A container
/// often begins with 1024 of the many that it may have: the soft limit stays low for programs that
/// use select(2), which nothing here does.
///
/// # Errors
/// How many it may have, and how many it needs, where the hard limit is lower.
pub fn make_room(connections: u32) -> Result<(), String> {
    // Those that make room for others are there for a moment longer.
    let leaving = connections::most_leaving(usize::try_from(connections).unwrap_or(usize::MAX));
    let needed = u64::from(connections) + leaving as u64 + OTHER_DESCRIPTORS;
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
    fn the_largest_body_fits_into_the_default_bound() {
        let bytes = Quantity::parse(BODY_BYTES).unwrap().ceil().unsigned_abs();
        let bodies = Bodies::new(bytes, prometheus_client::metrics::gauge::Gauge::default());
        let mut body = bodies.begin(std::net::Ipv4Addr::LOCALHOST.into());
        body.reach(BODY_LIMIT).unwrap();
        body.complete(true).unwrap();
    }
}
