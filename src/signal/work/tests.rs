use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    catalog::metrics::MetricCatalog,
    signal::{Dialect, Reader},
};

#[path = "../../../tests/bench/hostile.rs"]
mod hostile;

fn cost(dialect: Dialect, query: &str) -> u64 {
    let budget = Budget::default();
    let _ = Reader::new(MetricCatalog::builtin(), &budget).query(dialect, query);
    budget.spent()
}

/// Where it was measured, a unit took two to three nanoseconds, and nothing took more than 0.6 ms
/// (tests/bench/queries.rs; a core of a shared machine, November 2026).
const MOST: u64 = 400_000;

#[test]
fn no_query_costs_more_than_its_budget_however_long_it_is() {
    let mut wrong = Vec::new();
    for dialect in Dialect::ALL {
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
    let budget = Budget::default();
    let mut placeholders = Placeholders::new(&budget);
    assert_eq!(placeholders.skip("${a}b"), Some("b"));
    for _ in 0..100 {
        assert_eq!(placeholders.skip("{{ a"), None);
    }
    assert_eq!(placeholders.skip("{{a}}b"), None, "given up");
    assert_eq!(placeholders.skip("$a.b"), Some(".b"), "needs no looking");
}

/// PromQL as its grammar allows it, and a little beyond.
fn promql() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("DCGM_FI_DEV_GPU_UTIL".to_owned()),
        Just("vllm:num_requests_waiting".to_owned()),
        Just("${METRIC}".to_owned()),
        "[a-z_:]{1,12}",
    ];
    let matcher = (
        prop_oneof![
            Just("__name__".to_owned()),
            Just("\"__name__\"".to_owned()),
            "[a-z]{1,4}"
        ],
        prop_oneof![Just("="), Just("!="), Just("=~"), Just("!~")],
        prop_oneof![
            "[a-zA-Z_.*|]{0,16}",
            "(\\([a-z]{1,3}\\)|\\.\\{1,9\\}|.){0,12}"
        ],
    )
        .prop_map(|(label, op, value)| format!("{label}{op}\"{}\"", value.escape_default()));
    let matchers = (vec(matcher, 0..6), prop_oneof![Just(","), Just(" or ")])
        .prop_map(|(all, between)| all.join(between));
    let selector = (
        name,
        matchers,
        prop_oneof![Just(""), Just("[5m]"), Just(" offset -5m")],
    )
        .prop_map(|(name, matchers, after)| match matchers.as_str() {
            "" => format!("{name}{after}"),
            matchers => format!("{name}{{{matchers}}}{after}"),
        });
    let leaf =
        prop_oneof![4 => selector, 1 => Just("1e3".to_owned()), 1 => Just("\"x\"".to_owned())];
    leaf.prop_recursive(12, 400, 6, |inner| {
        let call = prop_oneof![
            Just("sum"),
            Just("count"),
            Just("rate"),
            Just("absent"),
            Just("label_replace"),
            Just("quantile"),
            Just("median"),
            Just(""),
        ];
        let op = prop_oneof![
            Just("+"),
            Just("/"),
            Just(" and on(pod) "),
            Just(" unless "),
            Just(" or "),
            Just(">"),
            Just("== bool "),
            Just(" "),
        ];
        prop_oneof![
            (call, vec(inner.clone(), 0..4))
                .prop_map(|(call, args)| format!("{call}({})", args.join(","))),
            (inner.clone(), op, inner.clone())
                .prop_map(|(left, op, right)| format!("{left}{op}{right}")),
            inner.clone().prop_map(|inner| format!("-({inner})[1h:5m]")),
            vec(inner, 1..6).prop_map(|all| all.join(" + ")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_promql_makes_it_panic_or_exceed_its_budget(query in promql()) {
        for dialect in Dialect::ALL {
            let spent = cost(dialect, &query);
            prop_assert!(spent <= MOST, "{dialect:?}: {spent} for {query}");
        }
    }

    #[test]
    fn nor_does_any_text(pieces in vec("[ -~é\n]{1,12}", 0..400), repeated in 1_usize..64) {
        let query = pieces.concat().repeat(repeated);
        for dialect in Dialect::ALL {
            let spent = cost(dialect, &query);
            prop_assert!(spent <= MOST, "{dialect:?}: {spent} for {query}");
        }
    }
}
