//! The reader of queries: whatever stands in an autoscaler, it neither panics nor takes long. The first
//! byte chooses the language, the rest is the query.

use gangplank::{
    catalog::metrics::MetricCatalog,
    signal::{Dialect, classify_query},
    subject::Door,
};

/// Where a language stands among all, which is the letter that chooses it in a seed: one that is forgotten
/// does not compile.
const fn letter(dialect: Dialect) -> usize {
    match dialect {
        Dialect::PromQl => 0,
        Dialect::Name => 1,
        Dialect::Datadog => 2,
        Dialect::CloudWatch => 3,
        Dialect::Nrql => 4,
        Dialect::Stackdriver => 5,
        Dialect::SumoLogic => 6,
        Dialect::Influx => 7,
        Dialect::SignalFlow => 8,
        Dialect::Words => 9,
        Dialect::Text => 10,
    }
}

pub(crate) fn target(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let Ok(query) = std::str::from_utf8(rest) else {
        return;
    };
    let chosen = usize::from(first.wrapping_sub(b'a')) % Dialect::ALL.len();
    let dialect = Dialect::ALL[chosen];
    assert_eq!(letter(dialect), chosen);
    let signals = classify_query(MetricCatalog::builtin(), dialect, query);
    // As the rules do: nothing is denied that is not named, and the same text says the same.
    for signal in &signals {
        assert!(
            !signal.is_refused() || !signal.identity.is_empty(),
            "{signal:?}"
        );
    }
    assert_eq!(
        signals,
        classify_query(MetricCatalog::builtin(), dialect, query)
    );
    if dialect == Dialect::Name {
        let subject = super::created(super::hpa(query), Door::Validate).expect("a manifest");
        super::examine(&super::worlds()[0], &subject);
    }
}
