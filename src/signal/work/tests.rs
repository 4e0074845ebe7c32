use std::cell::Cell;

use super::*;
use crate::{
    catalog::metrics::MetricCatalog,
    signal::{Dialect, classify_query},
};

#[path = "../../../tests/bench/hostile.rs"]
mod hostile;

thread_local! {
    pub(super) static SPENT: Cell<usize> = const { Cell::new(0) };
}

const DIALECTS: [Dialect; 11] = [
    Dialect::Name,
    Dialect::PromQl,
    Dialect::Datadog,
    Dialect::CloudWatch,
    Dialect::Nrql,
    Dialect::Stackdriver,
    Dialect::SumoLogic,
    Dialect::Influx,
    Dialect::SignalFlow,
    Dialect::Words,
    Dialect::Text,
];

fn cost(dialect: Dialect, query: &str) -> usize {
    SPENT.set(0);
    let _ = classify_query(MetricCatalog::builtin(), dialect, query);
    SPENT.get()
}

/// A unit is a nanosecond or two where it was measured: see tests/bench/queries.rs.
const MOST: usize = 400_000;

#[test]
fn no_query_costs_more_than_its_budget_however_long_it_is() {
    let mut wrong = Vec::new();
    for dialect in DIALECTS {
        for length in [1024, LONGEST_QUERY, 16 * LONGEST_QUERY] {
            for (shape, query) in hostile::queries(length) {
                let spent = cost(dialect, &query);
                if spent > MOST {
                    wrong.push(format!("{dialect:?}, {shape}, {length} bytes: {spent}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_meter_counts() {
    let short = cost(Dialect::PromQl, "sum(a)");
    let long = cost(Dialect::PromQl, &"a ".repeat(LONGEST_QUERY / 2));
    assert!(short > 0 && long > 100 * short, "{short} {long}");
}

#[test]
fn brackets_that_are_never_closed_are_no_placeholders() {
    let mut placeholders = Placeholders::default();
    assert_eq!(placeholders.skip("${a}b"), Some("b"));
    for _ in 0..100 {
        assert_eq!(placeholders.skip("{{ a"), None);
    }
    assert_eq!(placeholders.skip("{{a}}b"), None, "given up");
    assert_eq!(placeholders.skip("$a.b"), Some(".b"), "needs no looking");
}
