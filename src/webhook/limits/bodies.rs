//! A bound on the bytes of bodies.
//!
//! What has not come to its end may never do so: there, the newest bytes are let in, and the body that has
//! been unfinished for the longest time makes room for them. Bodies that are complete wait for their turn and
//! end by themselves: of those that are large, the newest is turned away where they have too many bytes. Small
//! ones that are complete are not bounded here: there are no more than requests in flight.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::webhook::BODY_LIMIT;

/// The bytes of bodies that are held, and the bounds on them.
#[derive(Clone, Debug)]
pub struct Bodies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    /// What unfinished bodies from one address may have.
    address_limit: usize,
    table: Mutex<Table>,
    held: Gauge,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    /// Bytes of unfinished bodies.
    unfinished: usize,
    addresses: BTreeMap<IpAddr, Unfinished>,
    /// Bytes of complete bodies that are large.
    large: usize,
}

/// The unfinished bodies of one address.
#[derive(Debug, Default)]
struct Unfinished {
    bytes: usize,
    /// In the order of their first bytes.
    bodies: BTreeMap<u64, Part>,
}

#[derive(Debug)]
struct Part {
    bytes: usize,
    given_up: Arc<Notify>,
}

/// There is no room for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl Bodies {
    /// Creates the bounds: `limit` bytes of unfinished bodies, of which one address may have half but no less
    /// than one whole body, and as many of complete ones that are large. All are counted in `held`.
    pub fn new(limit: u64, held: Gauge) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self(Arc::new(Shared {
            limit,
            address_limit: BODY_LIMIT.max(limit / 2),
            table: Mutex::default(),
            held,
        }))
    }

    /// Begins a body without bytes.
    pub fn begin(&self, address: IpAddr) -> Body {
        Body {
            shared: Arc::clone(&self.0),
            address,
            id: None,
            bytes: 0,
            given_up: Arc::default(),
        }
    }

    /// Returns how many bytes unfinished bodies may have, and again complete ones that are large.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, bytes: usize) {
        self.held.inc_by(gauge(bytes));
    }

    fn uncount(&self, bytes: usize) {
        self.held.dec_by(gauge(bytes));
    }
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Table {
    /// Finds the oldest unfinished body: of this address, or of the one that has the most bytes.
    fn oldest(&self, of: Option<IpAddr>) -> Option<(IpAddr, u64)> {
        let address = of.or_else(|| {
            let first = |unfinished: &Unfinished| unfinished.bodies.keys().next().copied();
            self.addresses
                .iter()
                .max_by_key(|(_, unfinished)| (unfinished.bytes, Reverse(first(unfinished))))
                .map(|(address, _)| *address)
        })?;
        let (id, _) = self.addresses.get(&address)?.bodies.first_key_value()?;
        Some((address, *id))
    }

    fn holds(&self, address: IpAddr, id: u64) -> bool {
        let unfinished = self.addresses.get(&address);
        unfinished.is_some_and(|unfinished| unfinished.bodies.contains_key(&id))
    }

    fn remove(&mut self, address: IpAddr, id: u64) -> Option<Part> {
        let unfinished = self.addresses.get_mut(&address)?;
        let part = unfinished.bodies.remove(&id)?;
        unfinished.bytes -= part.bytes;
        self.unfinished -= part.bytes;
        if unfinished.bodies.is_empty() {
            self.addresses.remove(&address);
        }
        Some(part)
    }
}

/// A body that is being read. It gives back what it takes when it is dropped.
#[derive(Debug)]
pub struct Body {
    shared: Arc<Shared>,
    address: IpAddr,
    /// From its first byte on.
    id: Option<u64>,
    bytes: usize,
    given_up: Arc<Notify>,
}

impl Body {
    /// Grows to that many bytes. Older bodies are given up where there is no room for them.
    ///
    /// # Errors
    /// Where this is the body that has to be given up, or was.
    pub fn reach(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let more = bytes.saturating_sub(self.bytes);
        let Shared {
            limit,
            address_limit,
            ..
        } = *self.shared;
        let mut table = self.shared.lock();
        // Nobody else makes room for a body that was given up.
        if self.id.is_some_and(|id| !table.holds(self.address, id)) {
            return Err(NoRoom);
        }
        let id = self.id.unwrap_or_else(|| {
            table.last_id += 1;
            let part = Part {
                bytes: 0,
                given_up: Arc::clone(&self.given_up),
            };
            let id = table.last_id;
            let unfinished = table.addresses.entry(self.address).or_default();
            unfinished.bodies.insert(id, part);
            id
        });
        self.id = Some(id);
        loop {
            let of_address = (table.addresses.get(&self.address)).map_or(0, |of| of.bytes);
            let oldest = if of_address.saturating_add(more) > address_limit {
                table.oldest(Some(self.address))
            } else if table.unfinished.saturating_add(more) > limit {
                table.oldest(None)
            } else {
                break;
            };
            let (address, oldest) = oldest.ok_or(NoRoom)?;
            let part = table.remove(address, oldest).ok_or(NoRoom)?;
            if oldest == id {
                return Err(NoRoom);
            }
            part.given_up.notify_one();
        }
        let unfinished = table.addresses.get_mut(&self.address).ok_or(NoRoom)?;
        let part = unfinished.bodies.get_mut(&id).ok_or(NoRoom)?;
        part.bytes += more;
        unfinished.bytes += more;
        table.unfinished += more;
        drop(table);
        self.bytes += more;
        self.shared.count(more);
        Ok(())
    }

    /// Waits until this body has to be given up for others.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// Returns what the body holds now that it has come to its end.
    ///
    /// # Errors
    /// Where it is large, and other large ones that are complete leave no room for it.
    pub fn complete(mut self, is_large: bool) -> Result<Held, NoRoom> {
        let mut table = self.shared.lock();
        let large = if is_large { self.bytes } else { 0 };
        let reached = table.large.saturating_add(large);
        if reached > self.shared.limit {
            return Err(NoRoom);
        }
        table.large = reached;
        if let Some(id) = self.id.take() {
            table.remove(self.address, id);
        }
        drop(table);
        Ok(Held {
            shared: Arc::clone(&self.shared),
            bytes: std::mem::take(&mut self.bytes),
            large,
        })
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.lock().remove(self.address, id);
        }
        self.shared.uncount(self.bytes);
    }
}

/// The bytes of a complete body, held until this is dropped.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    bytes: usize,
    large: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.large > 0 {
            self.shared.lock().large -= self.large;
        }
        self.shared.uncount(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

    fn is_given_up(body: &Body) -> bool {
        use futures_util::FutureExt as _;
        body.given_up().now_or_never().is_some()
    }

    #[test]
    fn the_body_that_is_unfinished_longest_makes_room() {
        let held = Gauge::default();
        let bodies = Bodies::new(32 * MIB as u64, held.clone());
        let mut all: Vec<Body> = (0..4).map(|_| bodies.begin(HERE)).collect();
        // Who has no bytes yet takes no place in the order.
        for body in all.iter_mut().rev() {
            body.reach(4 * MIB).unwrap();
        }
        assert_eq!(held.get(), 16 << 20);
        // An address may have half.
        let mut newest = bodies.begin(HERE);
        newest.reach(1).unwrap();
        let gone: Vec<bool> = all.iter().map(is_given_up).collect();
        assert_eq!(gone, [false, false, false, true]);
        // One that was given up takes nothing from the others.
        assert_eq!(all.pop().unwrap().reach(16 * MIB), Err(NoRoom));
        assert!(!all.iter().any(is_given_up));
        all[0].reach(7 * MIB).unwrap();
        // The oldest that is left, and it is the one that grows.
        assert_eq!(all[2].reach(8 * MIB), Err(NoRoom));
        drop(all);
        drop(newest);
        assert_eq!(held.get(), 0);
        assert_eq!(bodies.0.lock().unfinished, 0);
        assert!(bodies.0.lock().addresses.is_empty());
    }

    #[test]
    fn the_address_with_the_most_bytes_makes_room_for_others() {
        let bodies = Bodies::new(24 * MIB as u64, Gauge::default());
        let mut few = bodies.begin(HERE);
        few.reach(MIB).unwrap();
        let other = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));
        let mut many: Vec<Body> = [THERE, THERE, other, other]
            .map(|address| bodies.begin(address))
            .into();
        for (body, bytes) in many.iter_mut().zip([6, 6, 6, 5]) {
            body.reach(bytes * MIB).unwrap();
        }
        few.reach(2 * MIB).unwrap();
        let gone: Vec<bool> = many.iter().map(is_given_up).collect();
        assert_eq!(gone, [true, false, false, false]);
        assert!(!is_given_up(&few));
    }

    #[test]
    fn complete_bodies_that_are_large_have_a_bound_and_small_ones_have_room_beside_them() {
        let held = Gauge::default();
        let bodies = Bodies::new(8 * MIB as u64, held.clone());
        let body = |bytes| {
            let mut body = bodies.begin(HERE);
            body.reach(bytes).unwrap();
            body
        };
        let large = body(BODY_LIMIT).complete(true).unwrap();
        assert!(body(MIB).complete(true).is_err());
        let small = body(1000).complete(false).unwrap();
        // Nor do they keep an unfinished one from coming.
        drop(body(BODY_LIMIT));
        assert_eq!(held.get(), (8 << 20) + 1000);
        drop(large);
        drop(body(MIB).complete(true).unwrap());
        drop(small);
        assert_eq!(held.get(), 0);
    }
}
