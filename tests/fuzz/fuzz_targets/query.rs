//! The reader of queries: whatever stands in an autoscaler, it neither panics nor takes long. The first
//! byte chooses the language, the rest is the query.

#![no_main]

use gangplank::{
    catalog::metrics::MetricCatalog,
    signal::{Dialect, classify_query},
};
use libfuzzer_sys::fuzz_target;

const DIALECTS: [Dialect; 11] = [
    Dialect::PromQl,
    Dialect::Name,
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

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let Ok(query) = std::str::from_utf8(rest) else {
        return;
    };
    // Letters choose as well, so that seeds can be written by hand.
    let dialect = DIALECTS[usize::from(first.wrapping_sub(b'a')) % DIALECTS.len()];
    let signals = classify_query(MetricCatalog::builtin(), dialect, query);
    // As the rules do: nothing is denied that is not named, and the same text says the same.
    for signal in &signals {
        assert!(!signal.is_refused() || !signal.identity.is_empty(), "{signal:?}");
    }
    assert_eq!(
        signals,
        classify_query(MetricCatalog::builtin(), dialect, query)
    );
});
