//! Query languages other than PromQL, by their outline: where the name of a metric stands.

use super::work::{MOST_WORDS, Placeholders};
use super::{Class, Doubt, Reader, Signal};
use crate::{budget::Budget, catalog::metrics::Meaning};

/// The language that a metric source is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// A name and nothing else.
    Name,
    /// Prometheus and its relatives.
    PromQl,
    /// Datadog metric queries: `avg:name{tags}`.
    Datadog,
    /// `CloudWatch` metric math and Metrics Insights.
    CloudWatch,
    /// New Relic: what stands behind SELECT.
    Nrql,
    /// Google Cloud Monitoring filters: the value of `metric.type`.
    Stackdriver,
    /// Sumo Logic: the value of `metric`.
    SumoLogic,
    /// Flux and InfluxQL: measurement, field, and what stands behind SELECT.
    Influx,
    /// Splunk Observability: the argument of `data`.
    SignalFlow,
    /// Languages whose plain words are metric names: Graphite, Dynatrace selectors.
    Words,
    /// Languages whose words are mostly something else: SQL, KQL, LogQL, searches in JSON.
    Text,
}

impl Dialect {
    /// Every language. The letters by which fuzz seeds name one count from here.
    pub const ALL: [Self; 11] = [
        Self::PromQl,
        Self::Name,
        Self::Datadog,
        Self::CloudWatch,
        Self::Nrql,
        Self::Stackdriver,
        Self::SumoLogic,
        Self::Influx,
        Self::SignalFlow,
        Self::Words,
        Self::Text,
    ];
}

/// What a query of another language reads.
pub(super) fn classify(reader: &Reader<'_>, dialect: Dialect, written: &str) -> Vec<Signal> {
    let budget = reader.budget;
    let signal = |text: &str, functions: &[String]| {
        reader.name(text, &[]).doubted(
            functions
                .iter()
                .any(|name| counts(name))
                .then_some(Doubt::Counted),
        )
    };
    let mut out = Vec::new();
    let filled = without_placeholders(written, budget);
    let templated = filled.len() < written.len();
    let query = filled.as_str();
    let words = match dialect {
        Dialect::Name => return vec![reader.name(written, &[])],
        Dialect::PromQl => return reader.query(Dialect::PromQl, written),
        Dialect::Datadog => outline(&without_braces(query), budget),
        Dialect::Nrql => outline(clause(query, NRQL_ENDS, budget), budget),
        _ => outline(query, budget),
    };
    let mut more = words.len() > MOST_WORDS;
    let words = words.get(..MOST_WORDS).unwrap_or(&words);
    // Quoted texts have words of their own, and all together may be no more.
    let mut left = MOST_WORDS;
    let selects = has_select(query, budget);
    match dialect {
        Dialect::Datadog => {
            // `avg:` and the like come before a metric; what has none is a formula over names.
            let aggregated: Vec<_> = words.iter().filter(|word| word.before == ":").collect();
            let all = aggregated.is_empty();
            let names = words
                .iter()
                .filter(|word| all && !word.is_quoted() && !word.is_call);
            out.extend(
                aggregated
                    .into_iter()
                    .chain(names)
                    .map(|word| signal(&word.text, &[])),
            );
        }
        Dialect::Nrql | Dialect::Words => {
            for word in words {
                if word.is_call {
                    continue;
                }
                match word.quote {
                    None | Some('`') => out.push(signal(&word.text, &word.functions)),
                    Some(_) => out.extend(loose(reader, &word.text)),
                }
            }
        }
        Dialect::CloudWatch => {
            let select = outline(clause(query, &["from"], budget), budget);
            if selects {
                let names = select
                    .iter()
                    .filter(|word| word.quote != Some('\'') && !word.is_call);
                out.extend(names.map(|word| signal(&word.text, &word.functions)));
            } else {
                // SEARCH('{…} MetricName="name"', …) and METRICS(): the words of the search.
                for word in words.iter().filter(|word| word.is_quoted()) {
                    let mut inner = outline(&without_braces(&word.text), budget);
                    more |= inner.len() > left;
                    inner.truncate(left);
                    left -= inner.len();
                    let by_name: Vec<_> = inner
                        .iter()
                        .filter(|word| {
                            word.before == "=" && word.subject.eq_ignore_ascii_case("MetricName")
                        })
                        .collect();
                    let all = by_name.is_empty();
                    let rest = inner.iter().filter(|_| all);
                    out.extend(
                        by_name
                            .into_iter()
                            .chain(rest)
                            .map(|word| signal(&word.text, &[])),
                    );
                }
            }
        }
        Dialect::Stackdriver => {
            let names: Vec<_> = words
                .iter()
                .filter(|word| word.is_quoted() && word.subject == "metric.type")
                .map(|word| signal(&word.text, &[]))
                .collect();
            if names.is_empty() {
                out.push(Signal::opaque(query));
            }
            out.extend(names);
        }
        Dialect::SumoLogic => {
            let metric = |word: &&Word| word.subject == "metric" && word.before == "=";
            out.extend(
                words
                    .iter()
                    .filter(metric)
                    .map(|word| signal(&word.text, &[])),
            );
            out.extend(
                words
                    .iter()
                    .filter(|word| !metric(word))
                    .filter_map(|word| loose(reader, &word.text)),
            );
        }
        Dialect::Influx => {
            for word in words {
                let compared = matches!(word.subject.as_str(), "r._measurement" | "r._field");
                if compared && word.is_quoted() {
                    out.push(signal(&word.text, &word.functions));
                } else if !selects {
                    out.extend(loose(reader, &word.text));
                }
            }
            if selects {
                let select = outline(clause(query, &["from", "into"], budget), budget);
                let names = select
                    .iter()
                    .filter(|word| word.quote != Some('\'') && !word.is_call);
                out.extend(names.map(|word| signal(&word.text, &word.functions)));
            }
        }
        Dialect::SignalFlow => {
            for word in words {
                let data = word
                    .functions
                    .last()
                    .is_some_and(|function| function == "data");
                if data && word.is_quoted() && word.before == "(" {
                    out.push(signal(&word.text, &[]));
                } else {
                    out.extend(loose(reader, &word.text));
                }
            }
        }
        Dialect::Text => {
            for word in words {
                out.extend(loose(reader, &word.text));
                // A query within a query, as JSON carries it.
                if word.is_quoted() {
                    let mut inner = outline(&word.text, budget);
                    more |= inner.len() > left;
                    inner.truncate(left);
                    left -= inner.len();
                    out.extend(inner.iter().filter_map(|word| loose(reader, &word.text)));
                }
            }
        }
        Dialect::Name | Dialect::PromQl => {}
    }
    if more {
        out.push(Signal::opaque("a query of more words than are read"));
    }
    if templated && out.iter().all(|signal| signal.class == Class::Neutral) {
        out.push(Signal::opaque(written));
    }
    out
}

/// Functions that look at how many values there are, not at the values.
fn counts(function: &str) -> bool {
    [
        "count",
        "uniquecount",
        "cardinality",
        "dcount",
        "count_distinct",
    ]
    .iter()
    .any(|name| function.eq_ignore_ascii_case(name))
}

/// A word where a metric's name may stand among many other things: a metric that the catalogue
/// knows is that metric, a look-alike is in doubt, and the rest is nothing.
fn loose(reader: &Reader<'_>, text: &str) -> Option<Signal> {
    let signal = reader.name(text, &[]);
    let known = !signal.exporter.is_empty();
    signal
        .class
        .is_device_load()
        .then(|| signal.doubted((!known).then_some(Doubt::Loose)))
        .filter(|signal| {
            // One bare word that is in the catalogue is more likely a word.
            known || signal.meaning != Some(Meaning::Unclear) && signal.class != Class::Opaque
        })
}

const NRQL_ENDS: &[&str] = &[
    "from",
    "where",
    "facet",
    "since",
    "until",
    "limit",
    "timeseries",
    "compare",
    "with",
];

fn has_select(query: &str, budget: &Budget) -> bool {
    find_word(query, "select", budget).is_some()
}

/// The text behind the first SELECT, up to the first of the given words; everything where there is
/// no SELECT.
fn clause<'q>(query: &'q str, ends: &[&str], budget: &Budget) -> &'q str {
    let Some(start) = find_word(query, "select", budget) else {
        return query;
    };
    let rest = query.get(start + "select".len()..).unwrap_or("");
    let end = ends
        .iter()
        .filter_map(|word| find_word(rest, word, budget))
        .min()
        .unwrap_or(rest.len());
    rest.get(..end).unwrap_or(rest)
}

/// Where a word stands by itself, in any case.
fn find_word(text: &str, word: &str, budget: &Budget) -> Option<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    budget.spend(2 * text.len());
    let lower = text.to_ascii_lowercase();
    lower
        .match_indices(word)
        .map(|(position, _)| position)
        .find(|&position| {
            let before = lower
                .get(..position)
                .and_then(|text| text.chars().next_back());
            let after = lower
                .get(position + word.len()..)
                .and_then(|text| text.chars().next());
            !before.is_some_and(part) && !after.is_some_and(part)
        })
}

/// The text without the parts that a template is to fill, as far as they stand outside quotes.
fn without_placeholders(text: &str, budget: &Budget) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut placeholders = Placeholders::new(budget);
    budget.spend(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if quote.is_none()
            && let Some(after) = placeholders.skip(rest)
        {
            out.push(' ');
            rest = after;
            continue;
        }
        quote = match quote {
            None if matches!(c, '"' | '\'' | '`') => Some(c),
            Some(open) if open == c => None,
            same => same,
        };
        out.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or("");
    }
    out
}

/// The text without `{…}`.
fn without_braces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// A word or a quoted text of a query.
#[derive(Debug)]
struct Word {
    text: String,
    quote: Option<char>,
    /// Whether an opening bracket follows: a function.
    is_call: bool,
    /// The functions in whose brackets it stands.
    functions: Vec<String>,
    /// The symbol right before it; empty behind another word.
    before: String,
    /// The last unquoted word before it: what a comparison is about.
    subject: String,
}

impl Word {
    fn is_quoted(&self) -> bool {
        self.quote.is_some()
    }
}

/// The words of a query, up to one more than are looked at.
fn outline(query: &str, budget: &Budget) -> Vec<Word> {
    let mut out: Vec<Word> = Vec::new();
    let mut functions: Vec<String> = Vec::new();
    let mut before = String::new();
    let mut subject = String::new();
    budget.spend(query.len());
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        if out.len() > MOST_WORDS {
            break;
        }
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        if c.is_ascii_alphanumeric() || c == '_' {
            let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
            let (text, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
            let is_call = after.trim_start().starts_with('(');
            if !c.is_ascii_digit() {
                budget.spend(16 * functions.len() + subject.len() / 16);
                out.push(Word {
                    text: text.to_owned(),
                    quote: None,
                    is_call,
                    functions: functions.clone(),
                    before: std::mem::take(&mut before),
                    subject: subject.clone(),
                });
                if !is_call {
                    text.clone_into(&mut subject);
                }
            }
            if is_call && functions.len() < 32 {
                functions.push(text.to_owned());
                "(".clone_into(&mut before);
                rest = after.trim_start().strip_prefix('(').unwrap_or(after);
            } else {
                rest = after;
            }
            continue;
        }
        rest = match c {
            '"' | '\'' | '`' => {
                let end = after.find(c).unwrap_or(after.len());
                let (text, tail) = after.split_at_checked(end).unwrap_or((after, ""));
                out.push(Word {
                    text: text.to_owned(),
                    quote: Some(c),
                    is_call: false,
                    functions: functions.clone(),
                    before: std::mem::take(&mut before),
                    subject: subject.clone(),
                });
                tail.get(c.len_utf8()..).unwrap_or("")
            }
            '(' => {
                if functions.len() < 32 {
                    functions.push(String::new());
                }
                "(".clone_into(&mut before);
                after
            }
            ')' => {
                functions.pop();
                ")".clone_into(&mut before);
                after
            }
            _ if c.is_whitespace() => after,
            _ => {
                before = c.to_string();
                after
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::metrics::MetricCatalog, signal::classify_query};

    fn classes(dialect: Dialect, query: &str) -> Vec<Class> {
        let mut all: Vec<Class> = classify_query(MetricCatalog::builtin(), dialect, query)
            .into_iter()
            .filter(|signal| signal.is_refused() || signal.doubt.is_none())
            .map(|signal| signal.class)
            .filter(|class| *class != Class::Neutral)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    #[test]
    fn datadog_names_stand_outside_the_tags() {
        let dd = |query| classes(Dialect::Datadog, query);
        assert_eq!(
            dd("avg:dcgm.gpu_utilization{service:vllm}"),
            [Class::Utilization]
        );
        assert_eq!(
            dd("moving_rollup(max:nvml.fb_used{*} by {pod}, 60)"),
            [Class::Memory]
        );
        assert_eq!(
            dd("avg:vllm.num_requests.waiting{gpu_util:high} by {gpu}"),
            [Class::Serving]
        );
        assert_eq!(dd("avg:kubernetes.cpu.usage.total{gpu_type:h100}"), []);
    }

    #[test]
    fn nrql_names_stand_behind_select() {
        let nrql = |query| classes(Dialect::Nrql, query);
        assert_eq!(
            nrql("SELECT average(DCGM_FI_DEV_GPU_UTIL) FROM Metric SINCE 2 minutes ago"),
            [Class::Utilization]
        );
        assert_eq!(
            nrql("FROM Metric SELECT max(`nvidia_gpu_memory_used_bytes`) WHERE app = 'x'"),
            [Class::Memory]
        );
        assert_eq!(
            nrql("SELECT average(x) FROM Metric WHERE metricName != 'gpu_utilization'"),
            []
        );
        assert_eq!(
            nrql("SELECT uniqueCount(DCGM_FI_DEV_GPU_UTIL) FROM Metric"),
            []
        );
    }

    #[test]
    fn cloudwatch_names_stand_behind_select_or_in_a_search() {
        let cw = |query| classes(Dialect::CloudWatch, query);
        assert_eq!(
            cw("SELECT AVG(node_gpu_utilization) FROM \"ContainerInsights\""),
            [Class::Utilization]
        );
        assert_eq!(
            cw("SELECT MAX(\"pod_gpu_memory_used\") FROM x WHERE a = 'b'"),
            [Class::Memory]
        );
        assert_eq!(
            cw("SEARCH('{AWS/Bedrock,Gpu} MetricName=\"node_gpu_utilization\"', 'Average', 300)"),
            [Class::Utilization]
        );
        assert_eq!(cw("SELECT AVG(Backlog) FROM \"gpu_utilization\""), []);
    }

    #[test]
    fn stackdriver_names_are_the_metric_type() {
        let sd = |query| classes(Dialect::Stackdriver, query);
        assert_eq!(
            sd("metric.type=\"kubernetes.io/container/accelerator/duty_cycle\" AND x=\"y\""),
            [Class::Utilization]
        );
        assert_eq!(
            sd(
                "resource.labels.name=\"gpu_utilization\" AND metric.type = \"pubsub.googleapis.com/subscription/num_undelivered_messages\""
            ),
            [Class::Serving]
        );
        assert_eq!(
            sd("metric.type = starts_with(\"kubernetes.io/container/accelerator/memory_used\")"),
            [Class::Memory]
        );
        assert_eq!(sd("resource.type=\"x\""), [Class::Opaque]);
    }

    #[test]
    fn in_sql_only_a_known_metric_is_one() {
        let sql = |query| classes(Dialect::Text, query);
        assert_eq!(
            sql("SELECT avg(value) FROM samples WHERE metric = 'DCGM_FI_DEV_GPU_UTIL'"),
            [Class::Utilization]
        );
        assert_eq!(
            sql("SELECT count(*) FROM gpu_jobs WHERE state = 'gpu util wait'"),
            []
        );
        let all = classify_query(
            MetricCatalog::builtin(),
            Dialect::Text,
            "SELECT gpu_util FROM nodes",
        );
        let doubts: Vec<_> = all
            .iter()
            .map(|signal| (signal.class, signal.doubt))
            .collect();
        assert_eq!(doubts, [(Class::Utilization, Some(Doubt::Loose))]);
    }

    #[test]
    fn other_languages() {
        assert_eq!(
            classes(Dialect::SumoLogic, "metric=DCGM_FI_DEV_GPU_UTIL | avg"),
            [Class::Utilization]
        );
        assert_eq!(
            classes(Dialect::SumoLogic, "cluster=gpu-util metric=queue_size"),
            []
        );
        assert_eq!(
            classes(
                Dialect::Influx,
                "from(bucket:\"b\") |> filter(fn: (r) => r._field == \"utilization_gpu\")"
            ),
            [Class::Utilization]
        );
        assert_eq!(
            classes(
                Dialect::Influx,
                "SELECT mean(\"memory_used\") FROM \"queue\""
            ),
            [Class::Opaque]
        );
        assert_eq!(
            classes(
                Dialect::SignalFlow,
                "data('gpu.utilization', filter=filter('a', 'b')).mean().publish()"
            ),
            [Class::Utilization]
        );
        assert_eq!(
            classes(Dialect::Words, "averageSeries(servers.*.gpu.utilization)"),
            [Class::Utilization]
        );
        assert_eq!(
            classes(Dialect::Words, "averageSeries(servers.app.queue.depth)"),
            []
        );
    }

    #[test]
    fn a_query_that_is_only_a_placeholder_cannot_be_told() {
        assert_eq!(
            classes(Dialect::Nrql, "{{ .Values.query }}"),
            [Class::Opaque]
        );
    }
}
