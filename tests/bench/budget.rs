//! What the dearest objects cost that an API server stores: the review of each as a new object, and as
//! an update of itself, where both are judged. Those that exceed the budget spend all of it, on every
//! kind of step. Counts time on a processor, which a busy machine does not lengthen as much. Ends with 1 where
//! one takes longer than it may.
//!
//! `cargo bench --bench budget`

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark says what it measured, and fails with what it is of"
)]

use std::{env, fs, hint::black_box, process::ExitCode, sync::Arc, time::Duration};

use gangplank::{
    budget::Budget,
    facts::Facts,
    policy::Policy,
    review::{Review, review},
    subject::{Door, Operation, Subject},
};
use jiff::Timestamp;
use serde_json::json;

mod giants;

/// What judging one object, and what it replaces, may take.
const MOST: Duration = Duration::from_millis(200);

/// Returns how long this thread has run on a processor (proc(5), schedstat).
fn on_processor() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn main() -> ExitCode {
    let (policy, facts) = (Policy::default(), Facts::unknown());
    let wanted: Vec<String> = env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    let measure = |subject: &Subject| -> (Duration, Review) {
        // The best of several: what the machine does beside it is not the object's cost.
        (0..3)
            .map(|_| {
                let start = on_processor();
                let review = review(&policy, &facts, black_box(subject), Timestamp::UNIX_EPOCH);
                (on_processor().saturating_sub(start), review)
            })
            .min_by_key(|(time, _)| *time)
            .unwrap()
    };
    let mut dearest = (Duration::ZERO, "");
    println!(
        "{:28} {:>9} {:>9} {:>11}",
        "1.5 MB of", "create", "update", "steps"
    );
    for (name, make) in giants::giants() {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let object = giants::sized(make, giants::LARGEST);
        let created = Subject::from_manifest(Arc::new(object.clone())).unwrap();
        let created = Subject {
            door: Door::Validate,
            ..created
        };
        let mut changed = object;
        changed["spec"]["paused"] = json!(true);
        let updated = Subject {
            operation: Operation::Update,
            old: Some(Arc::clone(&created.value)),
            ..created.with_value(changed)
        };
        let (create, seen) = measure(&created);
        let (update, _) = measure(&updated);
        dearest = dearest.max((create.max(update), name));
        let steps = seen.steps;
        let spent = if steps > Budget::STEPS { "spent" } else { "" };
        println!(
            "{name:28} {:>6.1} ms {:>6.1} ms {steps:>11} {spent:5} {:>5.1} ns a step, {} findings",
            create.as_secs_f64() * 1e3,
            update.as_secs_f64() * 1e3,
            create.as_secs_f64() * 1e9 / f64::from(u32::try_from(steps.max(1)).unwrap_or(u32::MAX)),
            seen.findings.len(),
        );
    }
    let (time, name) = dearest;
    println!(
        "the dearest is {name}: {:.2} of the {} ms that one may take",
        time.as_secs_f64() / MOST.as_secs_f64(),
        MOST.as_millis(),
    );
    if time > MOST {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
