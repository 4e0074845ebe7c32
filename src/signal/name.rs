//! Metric names, whatever adapter, cloud or query language they were written for.

use std::{borrow::Cow, iter::successors};

use super::work::Placeholders;
use crate::budget::Budget;

/// Segments that adapters append to tell a metric's type.
const TYPES: &[&str] = &[
    "gauge",
    "counter",
    "unknown",
    "histogram",
    "summary",
    "delta",
    "cumulative",
    "untyped",
];

/// Words that aggregation appends to a name, or that histograms split into.
const SUFFIXES: &[&str] = &[
    "avg",
    "average",
    "mean",
    "max",
    "min",
    "sum",
    "median",
    "p50",
    "p75",
    "p90",
    "p95",
    "p99",
    "total",
    "count",
    "bucket",
    "created",
    "rate",
    "gauge",
    "current",
    "value",
    "seconds",
    "relabelled",
    "relabeled",
    "1m",
    "2m",
    "5m",
    "10m",
    "15m",
    "30s",
];

/// Words that a collector puts in front of other people's names.
const PREFIXES: &[&str] = &["ray", "vertex", "amd", "custom", "external", "otel"];

/// A metric name, taken apart into its words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    words: Vec<String>,
    placeholder: bool,
}

impl Name {
    /// Takes a name apart. Any text will do.
    pub fn new(raw: &str) -> Self {
        Self::read(raw, &Budget::default())
    }

    pub(super) fn read(raw: &str, budget: &Budget) -> Self {
        let (text, placeholder) = without_placeholders(raw, budget);
        let mut segments: Vec<&str> = text
            .split(['|', '/'])
            .map(str::trim)
            .filter(|segment| !segment.is_empty())
            .collect();
        let mut domain = false;
        // An adapter puts its own domain in front of a cloud's.
        let mut own = 0;
        while own + 1 < segments.len()
            && segments.get(own).is_some_and(|first| {
                is_domain(first) && (!domain || matches!(*first, "kubernetes.io"))
            })
        {
            own += 1;
            domain = true;
        }
        segments.drain(..own);
        let least = usize::from(!domain);
        while segments.len() > least && segments.last().is_some_and(|last| is_type(last)) {
            segments.pop();
        }
        // Managed Prometheus writes the domain in front of a colon.
        if let [only] = segments.as_mut_slice()
            && let Some((domain, rest)) = only.split_once(':')
            && (domain == "kubernetes_io" || domain.ends_with("googleapis_com"))
        {
            *only = rest;
        }
        Self {
            words: segments.iter().flat_map(|segment| words(segment)).collect(),
            placeholder,
        }
    }

    /// The words, in lower case.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Whether a part of the name is a template's placeholder that nobody filled.
    pub fn has_placeholder(&self) -> bool {
        self.placeholder
    }

    /// The name as words joined by `_`: equal for all spellings that keep the words apart.
    pub fn spelling(&self) -> String {
        self.words.join("_")
    }

    /// The name without any separator: equal for humps and underscores alike.
    pub(crate) fn key(&self) -> String {
        self.words.concat()
    }

    /// The words of the name itself, then without those that collectors and aggregation add.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &[String]> {
        let words = self.words.as_slice();
        let shorter = match words {
            // Domains whose dots became something else.
            [domain, io, rest @ ..] if domain == "kubernetes" && io == "io" => rest,
            [_, apis, com, rest @ ..] if apis == "googleapis" && com == "com" => rest,
            [first, rest @ ..] if PREFIXES.contains(&first.as_str()) => rest,
            _ => &[],
        };
        let starts = [words, shorter].into_iter();
        // Three at most: `_seconds_bucket_avg`.
        starts
            .filter(|start| !start.is_empty())
            .flat_map(|start| successors(Some(start), without_last).take(4))
    }
}

/// The words without a last one that aggregation appends.
fn without_last<'w>(words: &&'w [String]) -> Option<&'w [String]> {
    let (last, rest) = words.split_last()?;
    (!rest.is_empty() && SUFFIXES.contains(&last.as_str())).then_some(rest)
}

fn is_domain(segment: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    segment.chars().all(plain)
        && [".com", ".io", ".net", ".org", ".dev", ".ai"]
            .iter()
            .any(|end| segment.ends_with(end))
}

fn is_type(segment: &str) -> bool {
    segment
        .split(':')
        .all(|part| TYPES.contains(&part.to_ascii_lowercase().as_str()))
}

/// Blanks out `${X}`, `$X`, `$(X)`, `{{ x }}`, `[[x]]` and `<X>`, and says whether there was one.
fn without_placeholders<'r>(raw: &'r str, budget: &Budget) -> (Cow<'r, str>, bool) {
    if !raw.contains(['$', '{', '[', '<']) {
        return (raw.into(), false);
    }
    let mut text = String::with_capacity(raw.len());
    let mut found = false;
    let mut placeholders = Placeholders::new(budget);
    // Without an end there is no `<X>`, however many begin.
    let last = raw.rfind('>').unwrap_or(0);
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let angled = || {
            let body = rest
                .strip_prefix('<')
                .filter(|_| raw.len() - rest.len() < last)?;
            let (inner, after) = body.split_once('>')?;
            budget.spend(inner.len());
            Some(after)
        };
        if let Some(after) = placeholders.skip(rest).or_else(angled) {
            text.push(' ');
            found = true;
            rest = after;
        } else {
            text.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    (text.into(), found)
}

/// The words of a text: split at everything but letters and digits, and at humps.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for part in text.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut word = String::with_capacity(part.len());
        let mut chars = part.chars().peekable();
        let mut before = None;
        while let Some(c) = chars.next() {
            // A hump starts at a capital after a small letter or a figure (gpuUtil, p95Latency),
            // and at the last capital of a run that small letters follow (GPUMemory).
            let next_is_small = chars.peek().is_some_and(char::is_ascii_lowercase);
            let starts = c.is_ascii_uppercase()
                && before.is_some_and(|b: char| {
                    b.is_ascii_lowercase()
                        || (b.is_ascii_digit() || b.is_ascii_uppercase()) && next_is_small
                });
            if starts && !word.is_empty() {
                out.push(std::mem::take(&mut word));
            }
            word.push(c.to_ascii_lowercase());
            before = Some(c);
        }
        if !word.is_empty() {
            out.push(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(raw: &str) -> String {
        Name::new(raw).spelling()
    }

    #[test]
    fn adapters_and_clouds_add_domain_and_type() {
        let dcgm = "dcgm_fi_dev_gpu_util";
        for raw in [
            "DCGM_FI_DEV_GPU_UTIL",
            "prometheus.googleapis.com|DCGM_FI_DEV_GPU_UTIL|gauge",
            "prometheus.googleapis.com/DCGM_FI_DEV_GPU_UTIL/unknown:counter",
            "prometheus_googleapis_com:DCGM_FI_DEV_GPU_UTIL",
            "dcgm.fi.dev.gpu.util",
            "DcgmFiDevGpuUtil",
        ] {
            assert_eq!(spelled(raw), dcgm, "{raw}");
        }
        assert_eq!(
            spelled("kubernetes.io|container|accelerator|duty_cycle"),
            "container_accelerator_duty_cycle"
        );
        assert_eq!(
            spelled("kubernetes_io:node_accelerator_duty_cycle"),
            "node_accelerator_duty_cycle"
        );
    }

    #[test]
    fn humps_are_words() {
        assert_eq!(spelled("GPUMemoryUtilization"), "gpu_memory_utilization");
        assert_eq!(spelled("HostGPUMemoryUsage"), "host_gpu_memory_usage");
        assert_eq!(spelled("targetGpuUtilization"), "target_gpu_utilization");
        assert_eq!(
            spelled("DCGM_FI_PROF_PIPE_FP64_ACTIVE"),
            "dcgm_fi_prof_pipe_fp64_active"
        );
    }

    #[test]
    fn a_placeholder_is_seen_and_left_out() {
        for raw in [
            "prometheus.googleapis.com|${m}|gauge",
            "{{ .Values.metric }}",
            "<METRIC>",
        ] {
            let name = Name::new(raw);
            assert!(
                name.has_placeholder() && name.words().is_empty(),
                "{raw}: {name:?}"
            );
        }
        assert_eq!(spelled("DCGM_FI_DEV_${X}"), "dcgm_fi_dev");
    }

    #[test]
    fn an_aggregate_is_looked_up_under_its_source_too() {
        let name = Name::new("ray_vllm_time_to_first_token_seconds_bucket_p95");
        let all: Vec<_> = name.candidates().map(|words| words.join("_")).collect();
        assert!(
            all.contains(&"vllm_time_to_first_token".to_owned()),
            "{all:?}"
        );
    }
}
