//! What a hostile query costs: the slowest of every shape, in every language, at the length where a
//! query is still read and beyond it. Ends with 1 where one takes longer than it may.
//!
//! `cargo bench --bench queries`

#![allow(clippy::print_stdout, reason = "a benchmark says what it measured")]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use gangplank::{
    catalog::metrics::MetricCatalog,
    signal::{Dialect, classify_query},
};

mod hostile;

/// What one query may cost.
const MOST: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    let catalog = MetricCatalog::builtin();
    let mut slow = false;
    for dialect in Dialect::ALL {
        let mut all: Vec<(Duration, usize, &str)> = Vec::new();
        for length in [1024, 8 * 1024, 1024 * 1024] {
            for (shape, query) in hostile::queries(length) {
                // The best of several: what the machine does beside it is not the query's cost.
                let cost = (0..9)
                    .map(|_| {
                        let start = Instant::now();
                        black_box(classify_query(catalog, dialect, black_box(&query)));
                        start.elapsed()
                    })
                    .min()
                    .unwrap_or_default();
                all.push((cost, query.len(), shape));
            }
        }
        all.sort_unstable();
        println!("{dialect:?}");
        for (cost, length, shape) in all.iter().rev().take(5) {
            slow |= *cost > MOST;
            println!("{:>8} µs  {length:>8} bytes  {shape}", cost.as_micros());
        }
    }
    if slow {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
