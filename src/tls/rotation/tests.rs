use std::time::UNIX_EPOCH;

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;

use super::*;

const LEAF: u64 = 70;
const AUTHORITY: u64 = 400;
const GRACE: u64 = 10;
const WAITS: Waits = Waits {
    grace: Duration::from_secs(GRACE),
    leaf: Duration::from_secs(LEAF),
};
const BEGIN: u64 = 1_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What one replica holds.
#[derive(Clone, Debug, Default)]
struct Replica {
    held: Option<Stored>,
    /// The leaf, and the true time of the look that it was signed after.
    leaf: Option<(Leaf, u64)>,
    memory: Memory,
    /// What it saw at its last look, and has not acted on yet.
    look: Option<Look>,
    /// A configuration that it is about to write: which, what version it saw, and what.
    write: Option<(usize, u64, BTreeSet<Anchor>)>,
}

#[derive(Clone, Debug)]
struct Look {
    version: u64,
    store: Store,
    published: Published,
    now: u64,
    true_time: u64,
}

/// A Secret, two configurations, some replicas and time.
#[derive(Debug)]
struct World {
    secret: Option<Stored>,
    secret_version: u64,
    configurations: [Option<BTreeSet<Anchor>>; 2],
    versions: [u64; 2],
    replicas: Vec<Replica>,
    /// Seconds that passed.
    time: u64,
    /// By how much the API server's clock is off.
    jump: i64,
    made: u8,
    steps: BTreeSet<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Look(usize),
    Act(usize),
    Read(usize, usize),
    Write(usize),
    /// Everything that a replica does at a look, without anybody between.
    Turn(usize),
    Crash(usize),
    Pass(u64),
    Jump(i64),
    Delete,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let replica = 0..3_usize;
    let event = prop_oneof![
        6 => replica.clone().prop_map(Event::Look),
        6 => replica.clone().prop_map(Event::Act),
        4 => (replica.clone(), 0..2_usize).prop_map(|(replica, which)| Event::Read(replica, which)),
        4 => replica.clone().prop_map(Event::Write),
        12 => replica.clone().prop_map(Event::Turn),
        1 => replica.prop_map(Event::Crash),
        8 => (1..20_u64).prop_map(Event::Pass),
        1 => (20..200_u64).prop_map(Event::Pass),
        // From one end to the other less than a leaf lives: more than that no clock is taken to be wrong.
        1 => (-30..30_i64).prop_map(Event::Jump),
        1 => Just(Event::Delete),
    ];
    prop::collection::vec(event, 1..400)
}

impl World {
    fn new() -> Self {
        Self {
            secret: None,
            secret_version: 0,
            configurations: [None, None],
            versions: [0, 0],
            replicas: vec![Replica::default(); 3],
            time: 0,
            jump: 0,
            made: 0,
            steps: BTreeSet::new(),
        }
    }

    fn now(&self) -> u64 {
        (BEGIN + self.time).checked_add_signed(self.jump).unwrap()
    }

    fn make(&mut self, now: u64) -> Anchor {
        self.made += 1;
        Anchor {
            not_before: at(now - 5),
            not_after: at(now + AUTHORITY),
            certificate: CertificateDer::from(vec![self.made]),
        }
    }

    fn published(&self) -> Published {
        Published {
            entries: self.configurations.iter().flatten().cloned().collect(),
        }
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Look(index) => self.look(index),
            Event::Act(index) => self.act(index),
            Event::Read(index, which) => self.read(index, which),
            Event::Write(index) => self.write(index),
            Event::Turn(index) => {
                self.look(index);
                self.act(index);
                for which in 0..2 {
                    self.read(index, which);
                    self.write(index);
                }
            }
            Event::Crash(index) => self.replicas[index] = Replica::default(),
            Event::Pass(seconds) => self.time += seconds,
            Event::Jump(by) => self.jump = by,
            // Nobody deletes it in the moment between its making and the first registration: until then
            // nothing else knows of it.
            Event::Delete if self.configurations.iter().any(Option::is_none) => {}
            // Before anything is registered nobody calls us, and whoever serves already is not
            // known to who comes next.
            Event::Delete if self.published().entries.is_empty() => {}
            Event::Delete => {
                self.secret = None;
                self.secret_version += 1;
                // Nobody deletes it twice within one look.
                for replica in &mut self.replicas {
                    replica.look = None;
                    replica.write = None;
                }
            }
        }
    }

    fn look(&mut self, index: usize) {
        let store = self.secret.clone().map_or(Store::Absent, Store::Holds);
        let (published, now, true_time) = (self.published(), self.now(), self.time);
        let version = self.secret_version;
        let replica = &mut self.replicas[index];
        if let Store::Holds(stored) = &store {
            replica.held = Some(stored.clone());
        }
        replica.memory.saw(
            &store,
            &published,
            Duration::from_secs(true_time),
            WAITS.grace,
        );
        replica.look = Some(Look {
            version,
            store,
            published,
            now,
            true_time,
        });
    }

    fn act(&mut self, index: usize) {
        let Some(look) = self.replicas[index].look.take() else {
            return;
        };
        let replica = self.replicas[index].clone();
        let state = State {
            store: &look.store,
            held: replica.held.as_ref(),
            leaf: replica.leaf.as_ref().map(|(leaf, _)| leaf),
            published: &look.published,
            memory: &replica.memory,
            waits: WAITS,
        };
        let step = next_step(&state, at(look.now));
        self.steps.insert(step.as_str());
        let mut stored = match &look.store {
            Store::Holds(stored) => Some(stored.clone()),
            Store::Absent | Store::Unusable => None,
        };
        match step {
            Step::Rest => return,
            Step::Sign => {
                let issuer = stored.or(replica.held).unwrap().signer;
                let leaf = Leaf {
                    not_before: at(look.now - 2),
                    renew_at: at(look.now + LEAF * 2 / 3),
                    not_after: at(look.now + LEAF).min(issuer.not_after),
                    issuer,
                };
                self.replicas[index].leaf = Some((leaf, look.true_time));
                return;
            }
            Step::Create(mut bundle) => {
                let signer = self.make(look.now);
                bundle.insert(signer.clone());
                stored = Some(Stored {
                    signer,
                    next: None,
                    bundle,
                });
            }
            Step::Restore(bundle) => {
                stored = replica.held.map(|held| Stored { bundle, ..held });
            }
            Step::Keep(anchor) => {
                stored.as_mut().unwrap().bundle.insert(anchor);
            }
            Step::Prepare => {
                let next = self.make(look.now);
                let stored = stored.as_mut().unwrap();
                stored.bundle.insert(next.clone());
                stored.next = Some(next);
            }
            Step::Promote => {
                let stored = stored.as_mut().unwrap();
                stored.signer = stored.next.take().unwrap();
            }
            Step::Drop(anchors) => {
                stored
                    .as_mut()
                    .unwrap()
                    .bundle
                    .retain(|anchor| !anchors.contains(anchor));
            }
        }
        if self.secret_version == look.version {
            self.secret_version += 1;
            self.secret = stored;
        }
    }

    /// The version of the configuration first, then the Secret.
    fn read(&mut self, index: usize, which: usize) {
        let Some(stored) = self.secret.clone() else {
            return;
        };
        let exists = self.configurations[which].is_some();
        let replica = &mut self.replicas[index];
        // Who serves nothing registers nothing, but keeps up what is there.
        if replica.leaf.is_none() && !exists {
            return;
        }
        let bundle = to_publish(&stored, replica.leaf.as_ref().map(|(leaf, _)| leaf));
        replica.write = Some((which, self.versions[which], bundle));
    }

    fn write(&mut self, index: usize) {
        if let Some((which, version, bundle)) = self.replicas[index].write.take()
            && self.versions[which] == version
        {
            self.versions[which] += 1;
            self.configurations[which] = Some(bundle);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (index, replica) in self.replicas.iter().enumerate() {
            let Some((leaf, since)) = &replica.leaf else {
                continue;
            };
            // Who has been cut off for a leaf's life serves one that has ended by every clock but one
            // that was turned back.
            let holds = leaf.not_before <= at(self.now())
                && at(self.now()) < leaf.not_after
                && self.time - since < LEAF;
            if !holds {
                continue;
            }
            for bundle in self.configurations.iter().flatten() {
                prop_assert!(
                    bundle.contains(&leaf.issuer),
                    "replica {index} serves a leaf of {:?}, and {bundle:?} does not verify it",
                    leaf.issuer
                );
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn what_is_published_verifies_every_leaf_that_is_served(events in events()) {
        let mut world = World::new();
        for event in events {
            world.play(event);
            world.check().map_err(|error| {
                TestCaseError::fail(format!("after {event:?} at {}: {error}", world.time))
            })?;
        }
    }

    #[test]
    fn whatever_happened_it_comes_to_rest_with_everybody_served(events in events()) {
        let mut world = World::new();
        for event in events {
            world.play(event);
        }
        world.jump = 0;
        for _ in 0..40 {
            world.time += GRACE / 2;
            for index in 0..3 {
                world.play(Event::Turn(index));
            }
        }
        let now = at(world.now());
        for replica in &world.replicas {
            let (leaf, _) = replica.leaf.as_ref().unwrap();
            prop_assert!(
                leaf.not_before <= now && now < leaf.not_after,
                "{leaf:?} at {now:?}: {:?}, {:?}",
                world.secret,
                world.configurations
            );
        }
        world.check()?;
    }
}

#[test]
fn years_pass_and_authorities_come_and_go() {
    let mut world = World::new();
    let mut signers = BTreeSet::new();
    let mut most = 0;
    while world.time < 20 * AUTHORITY {
        world.time += 3;
        for index in 0..3 {
            world.play(Event::Turn(index));
            world.check().unwrap();
        }
        let stored = world.secret.as_ref().unwrap();
        signers.insert(stored.signer.clone());
        most = most.max(stored.bundle.len());
    }
    // Two thirds of 405 seconds, some of which are spent waiting.
    assert!((26..31).contains(&signers.len()), "{}", signers.len());
    assert_eq!(
        most, 2,
        "the old one leaves the bundle before the next comes"
    );
    let all = ["create", "sign", "prepare", "promote", "drop", "rest"];
    assert_eq!(world.steps, BTreeSet::from(all));
}

#[test]
fn a_secret_that_is_not_usable_is_left_alone_and_the_leaf_is_kept_alive() {
    let mut world = World::new();
    for _ in 0..4 {
        world.play(Event::Turn(0));
    }
    let replica = world.replicas[0].clone();
    let published = world.published();
    let leaf = replica.leaf.as_ref().map(|(leaf, _)| leaf);
    let step = |held, leaf: Option<&Leaf>, now| {
        let state = State {
            store: &Store::Unusable,
            held,
            leaf,
            published: &published,
            memory: &replica.memory,
            waits: WAITS,
        };
        next_step(&state, now)
    };
    let held = replica.held.as_ref();
    assert_eq!(step(held, leaf, at(BEGIN)), Step::Rest);
    assert_eq!(step(held, leaf, at(BEGIN + LEAF)), Step::Sign);
    assert_eq!(step(None, None, at(BEGIN)), Step::Rest, "never overwritten");
}

#[test]
fn an_authority_that_ended_while_nobody_ran_is_replaced_without_hands() {
    for registered in [true, false] {
        let mut world = World::new();
        for _ in 0..4 {
            world.play(Event::Turn(0));
        }
        if !registered {
            world.configurations = [None, None];
        }
        world.replicas = vec![Replica::default(); 3];
        world.time += 10 * AUTHORITY;
        for _ in 0..20 {
            world.time += GRACE / 2;
            for index in 0..3 {
                world.play(Event::Turn(index));
                world.check().unwrap();
            }
        }
        let signer = &world.secret.as_ref().unwrap().signer;
        for replica in &world.replicas {
            assert_eq!(replica.leaf.as_ref().unwrap().0.issuer, *signer);
        }
    }
}
