//! A bound on connections: a newcomer is let in, and the least useful connection makes room for it.
//!
//! A connection is as useful as its complete requests: those that are in flight, then those that were
//! answered, the last one counting. An API server has hardly anything else, and a stranger who opens a
//! thousand connections loses its own, one by one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::http::Request;
use axum_server::accept::Accept;
use futures_util::task::AtomicWaker;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::Lines;

/// A newcomer has this long for its handshake and its first request before it counts as one that sends none.
/// An API server takes milliseconds for both. A handshake costs each side a signature and a key exchange;
/// a machine of two cores that a hundred of them keep busy is through within this time.
const GRACE: Duration = Duration::from_secs(1);

/// A connection whose last answer is longer ago counts in the bound of its address.
const RECENT: Duration = Duration::from_secs(30);

/// No address is given fewer connections than these.
const LEAST: usize = 2;

/// Connections that have been told to end may still be there, this many at least and a quarter of the bound
/// otherwise; beyond, newcomers are refused. It takes their tasks microseconds to end.
const LEAVING: usize = 64;

/// Returns how many connections beyond a bound may be on their way out.
pub(super) fn most_leaving(limit: usize) -> usize {
    LEAVING.max(limit / 4)
}

/// Why a connection is closed to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its address has too many without a complete request in the last 30 s.
    Address,
    /// There are too many, and this one has had no complete request.
    Unused,
    /// There are too many, and this one's last complete request is the longest ago.
    Idle,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Address, Self::Unused, Self::Idle];

    /// Returns the label of metrics and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Unused => "unused",
            Self::Idle => "idle",
        }
    }
}

/// What is counted of connections.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Those that are open.
    pub open: Gauge,
    /// Newcomers that were not let in.
    pub refused: Counter,
    /// Those closed to make room, in the order of [`Reason::ALL`].
    pub evicted: [Counter; Reason::ALL.len()],
}

/// The open connections of a port, and the bound on them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    table: Mutex<Table>,
    counts: Counts,
    lines: Lines,
}

impl Connections {
    /// Creates the bound of `limit` connections.
    pub fn new(limit: u32, counts: Counts) -> Self {
        Self(Arc::new(Shared {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            table: Mutex::default(),
            counts,
            lines: Lines::new("closed connections"),
        }))
    }

    /// Lets a newcomer in, and tells another connection to end where there is no room; `None` where there is
    /// a complete request in flight on every one.
    fn admit(&self, address: IpAddr) -> Option<Registered> {
        let Shared {
            limit,
            counts,
            lines,
            ..
        } = &*self.0;
        let address = address.to_canonical();
        let admitted = self.0.lock().admit(address, *limit, Instant::now());
        let Some((id, ending, evicted)) = admitted else {
            counts.refused.inc();
            lines.event("refused", |before| {
                tracing::warn!(
                    limit,
                    since_last_line = before,
                    "closed a new connection: every other one has a request in flight"
                );
            });
            return None;
        };
        counts.open.inc();
        if let Some((reason, from)) = evicted {
            if let Some(counter) = counts.evicted.get(reason as usize) {
                counter.inc();
            }
            lines.event(reason.as_str(), |before| {
                tracing::warn!(
                    limit,
                    reason = reason.as_str(),
                    address = %from,
                    since_last_line = before,
                    "closed the least useful connection to let in a new one"
                );
            });
        }
        Some(Registered {
            connection: Connection {
                shared: Arc::clone(&self.0),
                id,
                address,
            },
            ending,
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    entries: HashMap<u64, Entry>,
    addresses: BTreeMap<IpAddr, Address>,
    /// How many were told to end and have not ended.
    leaving: usize,
}

/// A connection that was not told to end.
#[derive(Debug)]
struct Entry {
    address: IpAddr,
    opened: Instant,
    in_flight: usize,
    /// When its last complete request was answered.
    answered: Option<Instant>,
    ending: Arc<Ending>,
}

/// The connections of one address without a request in flight, by when they were opened or last answered.
#[derive(Debug, Default)]
struct Address {
    /// Those without a complete request.
    unused: BTreeSet<(Instant, u64)>,
    /// Those with one.
    idle: BTreeSet<(Instant, u64)>,
}

impl Address {
    /// Returns how many have had no complete request recently.
    fn stale(&self, now: Instant) -> usize {
        let idle = now
            .checked_sub(RECENT)
            .map_or(0, |then| self.idle.range(..(then, 0)).count());
        self.unused.len() + idle
    }
}

type Evicted = (Reason, IpAddr);

impl Table {
    fn admit(
        &mut self,
        address: IpAddr,
        limit: usize,
        now: Instant,
    ) -> Option<(u64, Arc<Ending>, Option<Evicted>)> {
        if self.leaving >= most_leaving(limit) {
            return None;
        }
        let share = LEAST.max(limit / 2);
        let stale = self.addresses.get(&address).map_or(0, |of| of.stale(now));
        let evicted = if stale >= share {
            Some(self.of_address(address)?)
        } else if self.entries.len() >= limit {
            Some(self.least_useful(now)?)
        } else {
            None
        };
        let evicted = evicted.map(|(reason, id)| {
            let from = self.remove(id).map_or(address, |entry| {
                entry.ending.begin();
                entry.address
            });
            self.leaving += 1;
            (reason, from)
        });
        self.last_id += 1;
        let (id, ending) = (self.last_id, Arc::<Ending>::default());
        let entry = Entry {
            address,
            opened: now,
            in_flight: 0,
            answered: None,
            ending: Arc::clone(&ending),
        };
        self.enter(id, &entry);
        self.entries.insert(id, entry);
        Some((id, ending, evicted))
    }

    /// Finds the least useful connection of an address.
    fn of_address(&self, address: IpAddr) -> Option<(Reason, u64)> {
        let of = self.addresses.get(&address)?;
        let (_, id) = of.unused.first().or_else(|| of.idle.first())?;
        Some((Reason::Address, *id))
    }

    /// Finds the least useful connection of all.
    ///
    /// Those without a complete request go first, the oldest before the others. A newcomer has time for its
    /// handshake and its request: one of less than [`GRACE`] is spared while there are more of those that
    /// have had a request. Otherwise whoever holds these would leave newcomers no time, or strangers who say
    /// nothing would cost an API server what it keeps. Of those with a request the one goes whose last answer
    /// is longest ago. Of several addresses the one with the most such connections loses one, so that many
    /// connections of one stranger never cost another address its few.
    fn least_useful(&self, now: Instant) -> Option<(Reason, u64)> {
        let heaviest = |set: fn(&Address) -> &BTreeSet<(Instant, u64)>,
                        counts: &dyn Fn(Instant) -> bool| {
            self.addresses
                .values()
                .filter_map(|of| {
                    let (since, id) = set(of).first().filter(|(since, _)| counts(*since))?;
                    Some((set(of).len(), std::cmp::Reverse((*since, *id)), *id))
                })
                .max()
                .map(|(_, _, id)| id)
        };
        let had_time = |since: Instant| now.saturating_duration_since(since) >= GRACE;
        let count = |set: fn(&Address) -> &BTreeSet<(Instant, u64)>| -> usize {
            self.addresses.values().map(|of| set(of).len()).sum()
        };
        let unused = |id| (Reason::Unused, id);
        if let Some(id) = heaviest(|of| &of.unused, &had_time) {
            Some(unused(id))
        } else if count(|of| &of.unused) >= count(|of| &of.idle) {
            heaviest(|of| &of.unused, &|_| true).map(unused)
        } else {
            heaviest(|of| &of.idle, &|_| true).map(|id| (Reason::Idle, id))
        }
    }

    /// Puts a connection without a request in flight among the others of its address.
    fn enter(&mut self, id: u64, entry: &Entry) {
        let of = self.addresses.entry(entry.address).or_default();
        if let Some(answered) = entry.answered {
            of.idle.insert((answered, id));
        } else {
            of.unused.insert((entry.opened, id));
        }
    }

    /// Takes a connection from among the others of its address.
    fn leave(&mut self, id: u64, entry: &Entry) {
        let Some(of) = self.addresses.get_mut(&entry.address) else {
            return;
        };
        if let Some(answered) = entry.answered {
            of.idle.remove(&(answered, id));
        } else {
            of.unused.remove(&(entry.opened, id));
        }
        if of.unused.is_empty() && of.idle.is_empty() {
            self.addresses.remove(&entry.address);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if entry.in_flight == 0 {
            self.leave(id, &entry);
        }
        Some(entry)
    }

    /// Changes a connection; one that was told to end is not there any more.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Entry)) {
        let Some(mut entry) = self.remove(id) else {
            return;
        };
        change(&mut entry);
        if entry.in_flight == 0 {
            self.enter(id, &entry);
        }
        self.entries.insert(id, entry);
    }

    /// A connection has ended.
    fn ended(&mut self, id: u64) {
        if self.remove(id).is_none() {
            self.leaving = self.leaving.saturating_sub(1);
        }
    }
}

/// Tells a connection to end.
#[derive(Debug, Default)]
struct Ending {
    begun: AtomicBool,
    waker: AtomicWaker,
}

impl Ending {
    fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Returns whether it is to end; where not, the task is woken when it is.
    fn poll(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.has_begun()
    }
}

/// A connection that counts, until this is dropped.
#[derive(Debug)]
struct Registered {
    connection: Connection,
    ending: Arc<Ending>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Connection { shared, id, .. } = &self.connection;
        shared.lock().ended(*id);
        shared.counts.open.dec();
    }
}

/// The connection that a request came over, as an extension of the request.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    id: u64,
    address: IpAddr,
}

impl Connection {
    /// Returns the address that it comes from.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Notes that a request is complete. Its connection is not closed to make room until what is returned is
    /// dropped.
    pub fn begin(&self) -> InFlight {
        self.shared
            .lock()
            .change(self.id, |entry| entry.in_flight += 1);
        InFlight {
            connection: self.clone(),
            answered: false,
        }
    }
}

/// A complete request that is in flight.
#[derive(Debug)]
pub struct InFlight {
    connection: Connection,
    answered: bool,
}

impl InFlight {
    /// Notes that it made sense: the connection is of use.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Connection { shared, id, .. } = &self.connection;
        let answered = self.answered.then(Instant::now);
        shared.lock().change(*id, |entry| {
            entry.in_flight = entry.in_flight.saturating_sub(1);
            entry.answered = answered.or(entry.answered);
        });
    }
}

/// Accepts connections within a bound, before anything is read from them.
#[derive(Clone, Debug)]
pub struct Limited<A> {
    inner: A,
    connections: Connections,
}

impl<A> Limited<A> {
    /// Creates an acceptor that has `inner` accept what is let in.
    pub fn new(connections: Connections, inner: A) -> Self {
        Self { inner, connections }
    }
}

impl<A, S> Accept<TcpStream, S> for Limited<A>
where
    A: Accept<TcpStream, Known<S>>,
    A::Future: Send + 'static,
{
    type Stream = Closable<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let registered = match stream.peer_addr() {
            Ok(peer) => self
                .connections
                .admit(peer.ip())
                .ok_or_else(|| io::ErrorKind::ConnectionRefused.into()),
            // It has gone already.
            Err(error) => Err(error),
        };
        let registered = match registered {
            Ok(registered) => registered,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let connection = registered.connection.clone();
        let mut accepted = Box::pin(self.inner.accept(
            stream,
            Known {
                service,
                connection,
            },
        ));
        Box::pin(async move {
            let (stream, service) = poll_fn(|context| {
                if registered.ending.poll(context) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                accepted.as_mut().poll(context)
            })
            .await?;
            let stream = Closable { stream, registered };
            Ok((stream, service))
        })
    }
}

/// The service of a connection: its requests say which one they came over.
#[derive(Clone, Debug)]
pub struct Known<S> {
    service: S,
    connection: Connection,
}

impl<S: tower_service::Service<Request<B>>, B> tower_service::Service<Request<B>> for Known<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.connection.clone());
        self.service.call(request)
    }
}

/// A connection's bytes, which end when it is told to: reading comes to an end as if the client had
/// closed it, so that HTTP and TLS take their leave, and nobody waits for a client that does not read.
#[derive(Debug)]
pub struct Closable<S> {
    stream: S,
    registered: Registered,
}

impl<S> Closable<S> {
    /// What writing comes to: where the client does not take it, the end is not waited for.
    fn written<T>(
        &self,
        written: Poll<io::Result<T>>,
        context: &Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_pending() && self.registered.ending.poll(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Closable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.registered.ending.poll(context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Closable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.written(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_flush(context);
        self.written(written, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
