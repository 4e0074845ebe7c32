//! What a review and a request allocate: counted, and compared with `tests/allocations.txt`. Time
//! depends on the machine and what else it does; this does not.
//!
//! `UPDATE=1 cargo test --test allocations` writes the table again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails in a test fails it"
)]

use std::{collections::BTreeMap, env, fmt::Write as _, fs, sync::Arc};

use allocation_counter::AllocationInfo;
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use gangplank::{
    catalog::engines::Engines,
    facts::{Facts, Listed, Watched},
    metrics::Metrics,
    policy::Policy,
    review::review,
    subject::{Door, Subject},
    webhook::{self, Desk, limits::read_size},
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

#[path = "bench/objects.rs"]
mod objects;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/allocations.txt");

/// How far above the table a number may be: this part of it, and so many beyond.
const PART: u64 = 20;
const ALLOCATIONS: u64 = 10;
const BYTES: u64 = 1024;

/// As many as a large cluster has.
const WORKLOADS: usize = 20_000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

/// What a review alone allocates, its findings and patch included.
fn of_review(object: &Value, door: Door) -> AllocationInfo {
    let (policy, facts, now) = (Policy::default(), Facts::unknown(), Timestamp::now());
    let subject = Subject::from_manifest(Arc::new(object.clone())).unwrap();
    let subject = Subject { door, ..subject };
    // What is made once, such as the catalogues, is not of this review.
    review(&policy, &facts, &subject, now);
    allocation_counter::measure(|| {
        review(&policy, &facts, &subject, now);
    })
}

/// What a whole request allocates, from its body to the answer's.
fn of_request(desk: &Arc<Desk>, path: &str, object: &Value) -> AllocationInfo {
    let runtime = runtime();
    let router = webhook::router(Arc::clone(desk));
    let body = objects::review_of(object).to_string();
    let request = || {
        Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.clone()))
            .unwrap()
    };
    let answer = |request: Request<Body>| {
        let answer = runtime.block_on(router.clone().oneshot(request)).unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    };
    answer(request());
    // A large body is judged on another thread, which may have to be started: the least of several counts.
    let counts = (0..5).map(|_| {
        let again = request();
        allocation_counter::measure(|| answer(again))
    });
    counts.min_by_key(|info| info.count_total).unwrap()
}

fn desk(facts: Facts) -> Arc<Desk> {
    let desk = Desk::new(Policy::default(), Arc::new(Metrics::new()));
    desk.facts.store(Arc::new(facts));
    Arc::new(desk)
}

/// What watches know of a cluster with so many workloads, `inference/chat` among them.
fn cluster(workloads: usize) -> Facts {
    let server = objects::object("gang-deployment");
    let fact = Watched::Deployment
        .fact(&server, Engines::builtin())
        .unwrap();
    let mut listed = Listed::default();
    listed.add("inference", "chat", fact.clone());
    for number in 1..workloads {
        let namespace = format!("team-{:03}", number % 100);
        listed.add(&namespace, &format!("server-{number:05}"), fact.clone());
    }
    Facts::unknown().with_cluster(|cluster| {
        for kind in Watched::ALL {
            cluster.replace(kind, &Listed::default());
        }
        cluster.replace(Watched::Deployment, &listed);
    })
}

/// Allocations and bytes by what was done to which object.
fn counted() -> BTreeMap<String, (u64, u64)> {
    let desk = desk(Facts::unknown());
    let mut all = BTreeMap::new();
    for name in objects::NAMES {
        let object = objects::object(name);
        for (what, info) in [
            ("review/mutate", of_review(&object, Door::Mutate)),
            ("review/validate", of_review(&object, Door::Validate)),
            ("request/mutate", of_request(&desk, "/mutate", &object)),
            ("request/validate", of_request(&desk, "/validate", &object)),
        ] {
            let counts = (info.count_total, info.bytes_total);
            all.insert(format!("{name} {what}"), counts);
        }
    }
    all
}

fn written(counted: &BTreeMap<String, (u64, u64)>) -> String {
    let mut text = String::from(
        "# Allocations and their bytes, by object (tests/bench/objects.rs) and what is done to it:\n\
         # the review alone, or a whole request. UPDATE=1 cargo test --test allocations\n",
    );
    for (what, (allocations, bytes)) in counted {
        let _ = writeln!(text, "{what} {allocations} {bytes}");
    }
    text
}

#[test]
fn a_review_allocates_no_more_than_it_did() {
    let counted = counted();
    if env::var_os("UPDATE").is_some() {
        fs::write(TABLE, written(&counted)).unwrap();
    }
    let table = fs::read_to_string(TABLE).unwrap();
    let mut known = BTreeMap::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.rsplitn(3, ' ');
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let (bytes, allocations) = (number(), number());
        known.insert(words.next().unwrap().to_owned(), (allocations, bytes));
    }
    let names = |map: &BTreeMap<String, _>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&counted), names(&known), "write {TABLE} again");
    let mut more = String::new();
    for (what, (allocations, bytes)) in &counted {
        let (known_allocations, known_bytes) = known[what];
        if *allocations > known_allocations + known_allocations / PART + ALLOCATIONS
            || *bytes > known_bytes + known_bytes / PART + BYTES
        {
            let _ = writeln!(
                more,
                "{what}: {allocations} allocations of {bytes} bytes; it was {known_allocations} of {known_bytes}"
            );
        }
    }
    assert!(
        more.is_empty(),
        "{more}Where that is what it takes: UPDATE=1 cargo test --test allocations"
    );
}

#[test]
fn a_request_allocates_no_more_in_a_large_cluster() {
    let (small, large) = (desk(cluster(1)), desk(cluster(WORKLOADS)));
    assert_eq!(
        large.facts.load().cluster().count(Watched::Deployment),
        WORKLOADS
    );
    for name in objects::NAMES {
        let object = objects::object(name);
        for path in ["/mutate", "/validate"] {
            let counts = [&small, &large].map(|desk| {
                let info = of_request(desk, path, &object);
                (info.count_total, info.bytes_total)
            });
            assert_eq!(counts[0], counts[1], "{name} {path}");
        }
    }
}

/// What is said of a body before it is read is no less than what it takes, and not many times as much.
#[test]
fn the_size_of_what_is_read_is_known_before() {
    let list =
        |piece: &str, count: usize| format!("[{}{piece}]", format!("{piece},").repeat(count));
    let named = objects::NAMES.map(|name| objects::review_of(&objects::object(name)).to_string());
    let members: Vec<String> = (0..5000)
        .map(|index| format!("\"k{index}\":{index}"))
        .collect();
    let others = [
        list("0", 70_000),
        list("{}", 70_000),
        list(r#"{"":0}"#, 10_000),
        list(r#"{"name":"a"}"#, 10_000),
        list(r#"{"a":"b","c":"d","e":{"f":"g"}}"#, 10_000),
        list("[]", 10_000),
        list("[0]", 10_000),
        list("\"a\"", 10_000),
        format!("{{{}}}", members.join(",")),
        format!("\"{}\"", "x".repeat(100_000)),
        format!("\"{}\\n\"", "x".repeat(100_000)),
        format!("\"\\n{}\"", "x".repeat(70_000)),
        format!("\"{}\"", "\\n".repeat(40_000)),
    ];
    for text in named.iter().chain(&others) {
        let info = allocation_counter::measure(|| {
            let _ = serde_json::from_str::<Value>(text);
        });
        let (taken, said) = (info.bytes_max, read_size(text.as_bytes()) as u64);
        let start = &text[..text.len().min(60)];
        assert!(taken <= said + 1024, "{start}: {taken} bytes, {said} said");
        assert!(
            said < 4 * taken + 4096,
            "{start}: {taken} bytes, {said} said"
        );
    }
}

/// An update of an ordinary manifest of the size that etcd stores at most is read, with room to spare.
#[test]
fn the_largest_manifests_are_not_too_much_to_read() {
    let object = objects::object("deployment-1m");
    let largest = 1536 * 1024 * read_size(object.to_string().as_bytes()) / objects::HUGE;
    assert!(largest < 32 * 1024 * 1024, "{largest}");
}

#[test]
fn what_is_twice_as_large_allocates_twice_as_much() {
    let mut object = objects::object("scaled-object-200-triggers");
    let all = of_review(&object, Door::Validate).bytes_total;
    let triggers = object.pointer_mut("/spec/triggers").unwrap();
    triggers.as_array_mut().unwrap().truncate(100);
    let half = of_review(&object, Door::Validate).bytes_total;
    assert!(all < half * 11 / 5, "{half} bytes for half, {all} for all");
}

#[test]
fn the_objects_have_the_sizes_that_they_are_named_for() {
    for (name, size) in [
        ("deployment-10k", objects::LARGE),
        ("deployment-10k-denied", objects::LARGE),
        ("deployment-1m", objects::HUGE),
    ] {
        let length = objects::object(name).to_string().len();
        assert!(
            length.abs_diff(size) < size / 50,
            "{name}: {length} of {size}"
        );
    }
}

/// Without it a rule that finds nothing any more would count as thrift.
#[test]
fn the_objects_are_judged_as_they_are_named_for() {
    let (policy, facts, now) = (Policy::default(), Facts::unknown(), Timestamp::now());
    for name in objects::NAMES {
        let subject = Subject::from_manifest(Arc::new(objects::object(name))).unwrap();
        let at = |door| {
            let subject = Subject {
                door,
                ..subject.clone()
            };
            review(&policy, &facts, &subject, now)
        };
        let validated = at(Door::Validate);
        let verdict = match name {
            "gang-deployment-silent" => "deny",
            name if name.ends_with("-denied") => "deny",
            "leader-worker-set" => "warn",
            _ => "allow",
        };
        assert_eq!(validated.outcome(), verdict, "{name}: {validated:?}");
        let fills = !at(Door::Mutate).patch.0.is_empty();
        assert_eq!(fills, name == "gang-deployment-silent", "{name}");
    }
}
