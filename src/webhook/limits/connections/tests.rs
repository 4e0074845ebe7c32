use axum::{
    body::Body,
    http::{StatusCode, header},
};
use tower::ServiceExt as _;

use super::*;
use crate::{
    policy::Policy,
    webhook::{self, Desk},
};

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

/// A table whose time is told.
struct World {
    table: Table,
    limit: usize,
    now: Instant,
}

impl World {
    fn new(limit: usize) -> Self {
        Self {
            table: Table::default(),
            limit,
            now: Instant::now(),
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    /// Opens a connection; says whether it is let in, and what is closed for it.
    fn open(&mut self, address: IpAddr) -> Result<Option<(Reason, u64)>, &'static str> {
        let before: BTreeSet<u64> = self.table.entries.keys().copied().collect();
        let admitted = self.table.admit(address, self.limit, self.now);
        let (id, _, evicted) = admitted.ok_or("refused")?;
        assert_eq!(id, self.table.last_id);
        let gone = before
            .into_iter()
            .find(|id| !self.table.entries.contains_key(id));
        let evicted = evicted.map(|(reason, _)| (reason, gone.unwrap()));
        if let Some((_, id)) = evicted {
            // It ends at once.
            self.table.ended(id);
        }
        assert_eq!(self.table.leaving, 0);
        Ok(evicted)
    }

    fn opened(&mut self, address: IpAddr) -> u64 {
        assert_eq!(self.open(address), Ok(None));
        self.table.last_id
    }

    fn begin(&mut self, id: u64) {
        self.table.change(id, |entry| entry.in_flight += 1);
    }

    fn end(&mut self, id: u64) {
        let now = self.now;
        self.table.change(id, |entry| {
            entry.in_flight -= 1;
            entry.answered = Some(now);
        });
    }

    fn ask(&mut self, id: u64) {
        self.begin(id);
        self.end(id);
    }
}

#[test]
fn those_without_a_request_go_first_then_those_whose_last_is_longest_ago() {
    let mut world = World::new(4);
    let [a, b] = [world.opened(HERE), world.opened(HERE)];
    world.ask(a);
    world.ask(b);
    let c = world.opened(HERE);
    world.begin(c);
    let silent = world.opened(HERE);
    world.pass(1_000);
    world.ask(a);
    assert_eq!(world.open(HERE), Ok(Some((Reason::Unused, silent))));
    // The newcomer has time, and b was asked before a.
    assert_eq!(world.open(HERE), Ok(Some((Reason::Idle, b))));
    assert_eq!(world.open(HERE), Ok(Some((Reason::Address, c + 2))));
    assert!(world.table.entries.contains_key(&a));
    assert!(world.table.entries.contains_key(&c));
}

#[test]
fn one_with_a_request_in_flight_is_never_closed() {
    let mut world = World::new(3);
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(world.opened(HERE));
        world.begin(all[all.len() - 1]);
    }
    world.pass(3_600_000);
    assert_eq!(world.open(HERE), Err("refused"));
    assert_eq!(world.open(THERE), Err("refused"));
    world.end(all[1]);
    world.pass(60_000);
    assert_eq!(world.open(THERE), Ok(Some((Reason::Idle, all[1]))));
    // One that was told to end changes nothing any more.
    world.end(all[1]);
    assert_eq!(world.table.entries.len(), 3);
}

#[test]
fn an_address_has_half_of_all_for_connections_without_a_recent_request() {
    let mut world = World::new(8);
    let mut mine: Vec<u64> = (0..4).map(|_| world.opened(THERE)).collect();
    assert_eq!(
        world.open(THERE),
        Ok(Some((Reason::Address, mine.remove(0))))
    );
    mine.push(world.table.last_id);
    // With requests it may have more, and without recent ones it may not.
    for id in &mine {
        world.ask(*id);
    }
    let more = world.opened(THERE);
    world.ask(more);
    world.pass(31_000);
    world.ask(more);
    assert_eq!(world.open(THERE), Ok(Some((Reason::Address, mine[0]))));
    // Another address has its own.
    assert_eq!(world.open(HERE), Ok(None));
    // However few there may be, two are for each.
    let mut world = World::new(2);
    world.opened(HERE);
    world.opened(HERE);
}

#[test]
fn many_connections_of_a_stranger_do_not_cost_another_address_its_few() {
    let mut world = World::new(64);
    let mut first = Vec::new();
    for _ in 0..2 {
        let id = world.opened(HERE);
        world.ask(id);
        first.push(id);
    }
    let newcomer = world.opened(HERE);
    // Without requests, and with one for each.
    for asks in [false, true] {
        for _ in 0..450 {
            world.pass(1);
            assert!(world.open(THERE).is_ok());
            if asks {
                world.ask(world.table.last_id);
            }
            for id in first.iter().chain([&newcomer]) {
                assert!(world.table.entries.contains_key(id));
            }
        }
    }
}

#[test]
fn a_newcomer_has_time_for_its_request_whoever_holds_the_rest() {
    let mut world = World::new(1024);
    // A thousand of a stranger at the same address, one request each, a redial for each that is closed.
    for _ in 0..2_000 {
        assert!(world.open(HERE).is_ok());
        world.ask(world.table.last_id);
    }
    assert!(world.open(HERE).is_ok());
    let newcomer = world.table.last_id;
    // 500 dials without a word while it shakes hands, and as many with one.
    for number in 0..1_000 {
        if number % 2 == 0 {
            world.pass(1);
        }
        assert!(world.open(HERE).is_ok());
        if number % 2 == 0 {
            world.ask(world.table.last_id);
        }
        assert!(world.table.entries.contains_key(&newcomer), "{number}");
    }
}

#[test]
fn nothing_is_left_of_connections_that_have_ended() {
    let mut world = World::new(8);
    for _ in 0..8 {
        assert!(world.open(HERE).is_ok());
        assert!(world.open(THERE).is_ok());
        world.begin(world.table.last_id);
    }
    let ids: Vec<u64> = world.table.entries.keys().copied().collect();
    for id in ids {
        world.table.ended(id);
    }
    assert!(world.table.addresses.is_empty());
    assert_eq!(world.table.leaving, 0);
}

#[test]
fn strangers_without_a_request_cost_an_api_server_nothing_that_it_keeps() {
    let mut world = World::new(256);
    let mut kept: Vec<u64> = (0..25).map(|_| world.opened(HERE)).collect();
    for id in &kept {
        world.ask(*id);
    }
    for _ in 0..100 {
        let busy = world.opened(HERE);
        world.begin(busy);
    }
    for number in 0..1_000 {
        let stranger = IpAddr::from([127, 0, 1, u8::try_from(number % 100).unwrap()]);
        if number % 4 == 0 {
            world.pass(1);
        }
        assert!(world.open(stranger).is_ok());
        if number == 800 {
            assert!(world.open(HERE).is_ok());
            kept.push(world.table.last_id);
        }
        let is_open = |id: &u64| world.table.entries.contains_key(id);
        assert!(kept.iter().all(is_open), "{number}");
    }
}

#[tokio::test]
async fn a_connection_whose_request_was_shed_is_of_use() {
    let connections = Connections::new(4, Counts::default());
    let desk = Desk::new(Policy::default(), Arc::default()).with_in_flight(1);
    let _held = desk.in_flight.enter().unwrap();
    let shed = connections.admit(HERE).unwrap();
    let request = Request::post("/validate")
        .header(header::CONTENT_TYPE, "application/json")
        .extension(shed.connection.clone())
        .body(Body::from("{}"))
        .unwrap();
    let answer = webhook::router(Arc::new(desk)).oneshot(request).await;
    assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    // The answer may still be on its way when others come.
    let others: Vec<_> = (0..8).map(|_| connections.admit(HERE).unwrap()).collect();
    assert!(!shed.ending.has_begun());
    assert!(others[0].ending.has_begun());
}
