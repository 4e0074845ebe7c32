//! The table: what was measured, and whether it is within its budget.

use std::{env, fmt::Write as _, fs, process::Command, thread};

use jiff::Timestamp;

use super::{cost, harness::Assets};

struct Row {
    what: String,
    seen: String,
    /// The budget, and whether it holds.
    budget: Option<(String, bool)>,
}

/// Prints each row as soon as it is known.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// What has no budget.
    pub(crate) fn told(&mut self, what: &str, seen: &str) {
        self.add(what, seen, None);
    }

    pub(crate) fn at_most(&mut self, what: &str, number: f64, limit: f64, seen: &str) {
        // What could not be measured is not within it either.
        let budget = (format!("≤ {limit}"), number <= limit);
        self.add(what, seen, Some(budget));
    }

    pub(crate) fn at_least(&mut self, what: &str, number: f64, limit: f64, seen: &str) {
        let budget = (format!("≥ {limit}"), number >= limit);
        self.add(what, seen, Some(budget));
    }

    fn add(&mut self, what: &str, seen: &str, budget: Option<(String, bool)>) {
        let row = Row {
            what: what.to_owned(),
            seen: seen.to_owned(),
            budget,
        };
        println!("{}", row.line());
        self.0.push(row);
    }

    /// What is not within its budget.
    pub(crate) fn broken(&self) -> Vec<String> {
        let broken = self
            .0
            .iter()
            .filter(|row| matches!(row.budget, Some((_, false))));
        broken.map(Row::line).collect()
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| what | measured | budget | |\n|---|---|---|---|\n");
        for row in &self.0 {
            let _ = writeln!(text, "{}", row.line());
        }
        text
    }
}

impl Row {
    fn line(&self) -> String {
        let (budget, holds) = match &self.budget {
            None => ("", ""),
            Some((budget, true)) => (budget.as_str(), "holds"),
            Some((budget, false)) => (budget.as_str(), "**does not hold**"),
        };
        format!("| {} | {} | {budget} | {holds} |", self.what, self.seen)
    }
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The least and the most.
pub(crate) fn spread(numbers: &[f64]) -> String {
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(0.0, f64::max);
    format!("{least:.2} to {most:.2}")
}

/// Which `gangplank` is measured.
#[allow(clippy::cast_precision_loss, reason = "the size of a file")]
fn binary() -> String {
    let size = fs::metadata(cost::binary()).map_or(0, |metadata| metadata.len());
    let mib = size as f64 / f64::from(1024 * 1024);
    let origin = if env::var_os("GANGPLANK").is_some() {
        "named by GANGPLANK"
    } else {
        "profile release"
    };
    format!("gangplank: {origin}, {mib:.1} MiB")
}

/// What all this was measured on, a line each.
pub(crate) fn machine() -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let member = |path: &str, name: &str| {
        let text = read(path);
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kubernetes = Assets::find().map_or_else(
        |error| format!("{error:#}"),
        |assets| said(&assets.kube_apiserver.to_string_lossy(), &["--version"]),
    );
    let load = read("/proc/loadavg");
    let loads: Vec<&str> = load.split(' ').take(3).collect();
    vec![
        format!("date: {}", Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")),
        format!(
            "processor: {}, {cores} cores; memory: {}",
            member("/proc/cpuinfo", "model name"),
            member("/proc/meminfo", "MemTotal")
        ),
        format!(
            "kernel: Linux {}",
            read("/proc/sys/kernel/osrelease").trim()
        ),
        format!("compiler: {}", said("rustc", &["--version"])),
        format!("API server: {kubernetes}"),
        binary(),
        format!("load before: {} (1, 5 and 15 minutes)", loads.join(", ")),
    ]
}
