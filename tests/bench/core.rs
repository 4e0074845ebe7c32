//! What a review costs, by object, and what the whole path of a request does, but for the socket.
//!
//! `cargo bench --bench core`

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails in a benchmark fails it"
)]

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Request, header},
};
use divan::{Bencher, black_box, counter::BytesCount};
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

mod objects;

fn main() {
    divan::main();
}

fn reviewed(bencher: Bencher<'_, '_>, name: &str, door: Door) {
    let (policy, facts, now) = (Policy::default(), Facts::unknown(), Timestamp::now());
    let object = objects::object(name);
    let size = BytesCount::new(object.to_string().len());
    let subject = Subject::from_manifest(Arc::new(object)).unwrap();
    let subject = Subject { door, ..subject };
    bencher
        .counter(size)
        .bench_local(|| review(&policy, &facts, black_box(&subject), now));
}

/// The review that `/mutate` asks for.
#[divan::bench(args = objects::NAMES)]
fn review_to_mutate(bencher: Bencher<'_, '_>, name: &str) {
    reviewed(bencher, name, Door::Mutate);
}

/// The review that `/validate` asks for.
#[divan::bench(args = objects::NAMES)]
fn review_to_validate(bencher: Bencher<'_, '_>, name: &str) {
    reviewed(bencher, name, Door::Validate);
}

/// From the bytes of a request to what is asked.
#[divan::bench(args = objects::NAMES)]
fn open(bencher: Bencher<'_, '_>, name: &str) {
    let body = objects::review_of(&objects::object(name)).to_string();
    bencher
        .counter(BytesCount::new(body.len()))
        .bench_local(|| envelope::open(black_box(body.as_bytes()), Door::Validate));
}

/// From the bytes of a request to those of its answer, by the router and all that it counts.
#[divan::bench(args = objects::NAMES)]
fn request(bencher: Bencher<'_, '_>, name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let desk = Arc::new(Desk::new(Policy::default(), Arc::new(Metrics::new())));
    let router = webhook::router(desk);
    let body = objects::review_of(&objects::object(name)).to_string();
    let request = || {
        Request::post("/validate")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.clone()))
            .unwrap()
    };
    bencher
        .counter(BytesCount::new(body.len()))
        .with_inputs(request)
        .bench_local_values(|request| runtime.block_on(router.clone().oneshot(request)));
}
