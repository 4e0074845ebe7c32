//! The triggers of KEDA's ScaledObject and ScaledJob, and which of their metadata say what they
//! read (kedacore/keda pkg/scaling/scalers_builder.go, pkg/scalers/*_scaler.go, 2.20 and main of
//! August 2026).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    finding::FieldPath,
    signal::{Dialect, words},
    subject::Subject,
};

/// One trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    /// Its type, as `prometheus`.
    pub kind: String,
    /// The name by which a formula knows it.
    pub name: Option<String>,
    /// Where its metadata stand.
    pub path: FieldPath,
    /// Its metadata as text.
    pub metadata: BTreeMap<String, String>,
    /// The TriggerAuthentication it uses, as written.
    pub authentication: Option<Value>,
    /// Whether the scaling formula, if there is one, leaves it out.
    pub inert: bool,
}

/// What one trigger says about its metric, in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<'t> {
    /// The metadata key; none where the trigger as a whole says it.
    pub key: Option<&'t str>,
    /// The text.
    pub text: &'t str,
    /// How it says it.
    pub how: How,
}

/// How a metadata value says what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is a name or a query.
    Query(Dialect),
    /// The key itself is the metric, its value a threshold.
    Key,
    /// It stands somewhere else: in a Secret, a saved search, another resource.
    Elsewhere,
    /// CPU or memory of the host.
    Host,
}

impl Trigger {
    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Whether it is one of the triggers that a program outside KEDA answers.
    pub fn is_external(&self) -> bool {
        matches!(self.kind.as_str(), "external" | "external-push")
    }
}

/// The triggers of a ScaledObject or ScaledJob.
pub fn triggers(subject: &Subject) -> Vec<Trigger> {
    let path = FieldPath::of(&["spec", "triggers"]);
    let listed = subject.at(&["spec", "triggers"]).and_then(Value::as_array);
    let formula = subject
        .at(&["spec", "advanced", "scalingModifiers", "formula"])
        .and_then(Value::as_str)
        .filter(|formula| !formula.trim().is_empty())
        .map(Formula::read);
    let mut out = Vec::new();
    for (index, trigger) in listed.into_iter().flatten().enumerate() {
        let text = |key: &str| trigger.get(key).and_then(Value::as_str);
        let Some(kind) = text("type") else { continue };
        let metadata = trigger
            .get("metadata")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), as_text(value)?)))
            .collect();
        let name = text("name").filter(|name| !name.is_empty());
        // cpu and memory reach the HPA beside the formula's result.
        let inert = !is_host(kind)
            && (formula.as_ref().zip(name)).is_some_and(|(formula, name)| !formula.uses(name));
        out.push(Trigger {
            kind: kind.to_owned(),
            name: name.map(str::to_owned),
            path: path.clone().index(index).key("metadata"),
            metadata,
            authentication: trigger.get("authenticationRef").cloned(),
            inert,
        });
    }
    out
}

/// The CRD wants strings; a file may hold figures.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

fn is_host(kind: &str) -> bool {
    matches!(kind, "cpu" | "memory")
}

/// A scaling formula (expr-lang), read once for all triggers.
struct Formula<'a> {
    text: &'a str,
    /// The names in it; none where it cannot be read.
    names: Option<BTreeSet<String>>,
}

impl<'a> Formula<'a> {
    fn read(text: &'a str) -> Self {
        let mut depth = 0_i32;
        let mut quote = None;
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            match quote {
                Some(open) if c == open => quote = None,
                Some(_) => continue,
                None => match c {
                    '"' | '\'' | '`' => quote = Some(c),
                    '(' | '[' => depth += 1,
                    ')' | ']' => depth -= 1,
                    _ => {}
                },
            }
            plain.push(if is_of_a_name(c) { c } else { ' ' });
        }
        let readable = depth == 0 && quote.is_none();
        let names = || plain.split_whitespace().map(str::to_owned).collect();
        Self {
            text,
            names: readable.then(names),
        }
    }

    /// Whether it uses a trigger. One that cannot be read uses all.
    fn uses(&self, name: &str) -> bool {
        if !name.chars().all(is_of_a_name) {
            return self.text.contains(name);
        }
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Trigger {
    /// The key and the name of what the metric is kept in: a namespace, a collection, an index.
    pub fn place(&self) -> Option<(&'static str, &str)> {
        let key = match self.kind.as_str() {
            "aws-cloudwatch" | "huawei-cloudeye" => "namespace",
            "azure-monitor" => "metricNamespace",
            "mongodb" | "arangodb" | "solr" => "collection",
            "elasticsearch" | "opensearch" => "index",
            _ => return None,
        };
        Some((key, self.get(key)?))
    }
}

/// What a trigger says about its metric. Empty for triggers that count work in a queue.
pub fn readings(trigger: &Trigger) -> Vec<Reading<'_>> {
    fn at<'t>(trigger: &'t Trigger, key: &'t str, how: How) -> Option<Reading<'t>> {
        trigger
            .get(key)
            .filter(|text| !text.trim().is_empty())
            .map(|text| Reading {
                key: Some(key),
                text,
                how,
            })
    }
    let query = |key, dialect: Dialect| at(trigger, key, How::Query(dialect));
    let elsewhere = |text| Reading {
        key: None,
        text,
        how: How::Elsewhere,
    };
    let mut out = Vec::new();
    match trigger.kind.as_str() {
        "prometheus" => {
            out.extend(query("query", Dialect::PromQl));
            // Parameters of the request: one may be a query of its own.
            let parameter = trigger.get("queryParameters").and_then(|parameters| {
                parameters
                    .split(',')
                    .find_map(|pair| pair.trim().strip_prefix("query="))
            });
            out.extend(parameter.map(|text| Reading {
                key: Some("queryParameters"),
                text,
                how: How::Query(Dialect::PromQl),
            }));
        }
        "predictkube" => out.extend(query("query", Dialect::PromQl)),
        "datadog" => {
            out.extend(query("query", Dialect::Datadog));
            out.extend(query("datadogMetricName", Dialect::Name));
        }
        "aws-cloudwatch" => {
            out.extend(query("metricName", Dialect::Name));
            out.extend(query("expression", Dialect::CloudWatch));
        }
        "azure-monitor" | "huawei-cloudeye" | "solarwinds" => {
            out.extend(query("metricName", Dialect::Name));
        }
        "azure-app-insights" => out.extend(query("metricId", Dialect::Name)),
        "gcp-stackdriver" => out.extend(query("filter", Dialect::Stackdriver)),
        "new-relic" => out.extend(query("nrql", Dialect::Nrql)),
        "dynatrace" => {
            out.extend(query("metricSelector", Dialect::Words));
            out.extend(query("query", Dialect::Words));
        }
        "graphite" => out.extend(query("query", Dialect::Words)),
        "influxdb" => {
            out.extend(query("query", Dialect::Influx));
            out.extend(query("metricKey", Dialect::Name));
        }
        "splunk-observability" => out.extend(query("query", Dialect::SignalFlow)),
        "sumologic" => {
            let keys = trigger.metadata.keys().map(String::as_str);
            for key in keys.filter(|key| *key == "query" || key.starts_with("query.")) {
                out.extend(query(key, Dialect::SumoLogic));
            }
        }
        "azure-log-analytics"
        | "azure-data-explorer"
        | "gcp-spanner"
        | "mysql"
        | "postgresql"
        | "mssql"
        | "mongodb"
        | "arangodb"
        | "cassandra"
        | "clickhouse"
        | "couchdb"
        | "solr"
        | "loki" => out.extend(query("query", Dialect::Text)),
        "elasticsearch" | "opensearch" => {
            out.extend(query("query", Dialect::Text));
            out.extend(query("parameters", Dialect::Text));
            out.extend(query("valueLocation", Dialect::Text));
            if trigger.get("query").is_none() {
                out.push(elsewhere(match trigger.get("searchTemplateName") {
                    Some(_) => "the query is a search template in Elasticsearch",
                    None => "the query is not in the trigger but in its TriggerAuthentication",
                }));
            }
        }
        "splunk" => {
            out.extend(query("savedSearchName", Dialect::Text));
            out.push(elsewhere("the query is a saved search in Splunk"));
        }
        "openstack-metric" => out.push(elsewhere("the metric is named by an id in OpenStack")),
        "elastic-forecast" => out.extend(query("jobID", Dialect::Text)),
        "kubernetes-resource" => {
            for key in ["resourceName", "key", "valueLocation"] {
                out.extend(query(key, Dialect::Text));
            }
        }
        "metrics-api" => {
            let selects = trigger
                .get("format")
                .is_some_and(|format| format == "prometheus")
                || trigger
                    .get("valueLocation")
                    .is_some_and(|text| text.contains('{'));
            let dialect = if selects {
                Dialect::PromQl
            } else {
                Dialect::Name
            };
            out.extend(query("valueLocation", dialect));
        }
        kind if is_host(kind) => {
            out.push(Reading {
                key: None,
                text: kind,
                how: How::Host,
            });
        }
        kind if counts_work(kind) => {}
        // Whatever a scaler that KEDA does not know reads, it is told so by metadata.
        _ => foreign(trigger, &mut out),
    }
    let from_env = |key: &str| key.strip_suffix("FromEnv").is_some_and(says_what);
    if out.is_empty() && trigger.metadata.keys().any(|key| from_env(key)) {
        out.push(elsewhere("what it reads is in the target's environment"));
    }
    out
}

/// Whether a metadata key of one of KEDA's own scalers says what is read.
fn says_what(key: &str) -> bool {
    matches!(
        key,
        "query"
            | "expression"
            | "filter"
            | "metricId"
            | "metricName"
            | "metricSelector"
            | "nrql"
            | "valueLocation"
    )
}

/// Triggers whose metadata name no metric: it is the work itself (messages, jobs, workflow runs, pods, the
/// clock), or the CPU and memory of the host.
pub(crate) const WITHOUT_METRIC: &[&str] = &[
    "cpu",
    "memory",
    "activemq",
    "apache-kafka",
    "artemis-queue",
    "aws-dynamodb",
    "aws-dynamodb-streams",
    "aws-kinesis-stream",
    "aws-sqs-queue",
    "azure-blob",
    "azure-eventhub",
    "azure-pipelines",
    "azure-queue",
    "azure-servicebus",
    "beanstalkd",
    "cron",
    "etcd",
    "forgejo-runner",
    "gcp-cloudtasks",
    "gcp-pubsub",
    "gcp-storage",
    "github-runner",
    "ibmmq",
    "kafka",
    "kubernetes-workload",
    "liiklus",
    "nats-jetstream",
    "nsq",
    "openstack-swift",
    "pulsar",
    "rabbitmq",
    "selenium-grid",
    "solace-direct-messaging",
    "solace-event-queue",
    "stan",
    "temporal",
];

/// How the types of the triggers that count the messages of Redis begin.
pub(crate) const REDIS: &str = "redis";

/// Whether a trigger's metric is the work itself.
fn counts_work(kind: &str) -> bool {
    (WITHOUT_METRIC.contains(&kind) && !is_host(kind)) || kind.starts_with(REDIS)
}

/// Metadata of a scaler outside KEDA: all of them are passed through to it.
fn foreign<'t>(trigger: &'t Trigger, out: &mut Vec<Reading<'t>>) {
    const NOT_A_SIGNAL: &[&str] = &[
        "scalerAddress",
        "caCert",
        "tlsCertFile",
        "tlsClientCert",
        "tlsClientKey",
        "tlsKeyFile",
        "unsafeSsl",
        "enableTLS",
    ];
    // Keys whose value says what is measured; others only mention things.
    const ABOUT: &[&str] = &[
        "metric",
        "metrics",
        "query",
        "promql",
        "expression",
        "signal",
        "profile",
        "measure",
        "series",
    ];
    for (key, text) in &trigger.metadata {
        if NOT_A_SIGNAL.contains(&key.as_str()) {
            continue;
        }
        let plain = key.strip_suffix("FromEnv").unwrap_or(key);
        let reading = |text, how| Reading {
            key: Some(key.as_str()),
            text,
            how,
        };
        out.push(reading(plain, How::Key));
        if text.contains("://") || text.trim().is_empty() || key.len() > plain.len() {
            continue;
        }
        let about = words(plain)
            .iter()
            .any(|word| ABOUT.contains(&word.as_str()));
        let is_name = !text.contains(|c: char| c.is_whitespace() || "(){}[],".contains(c));
        let dialect = match (about, is_name) {
            (true, true) => Dialect::Name,
            (true, false) => Dialect::PromQl,
            (false, _) => Dialect::Text,
        };
        out.push(reading(text, How::Query(dialect)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[allow(clippy::needless_pass_by_value)] // json!() is an expression
    fn all(spec: Value) -> Vec<Trigger> {
        let value = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": spec});
        triggers(&Subject::from_manifest(Arc::new(value)).unwrap())
    }

    #[allow(clippy::needless_pass_by_value)] // json!() is an expression
    fn read(kind: &str, metadata: Value) -> Vec<(Option<String>, String, How)> {
        all(json!({"triggers": [{"type": kind, "metadata": metadata}]}))
            .iter()
            .flat_map(readings)
            .map(|reading| {
                let key = reading.key.map(str::to_owned);
                (key, reading.text.to_owned(), reading.how)
            })
            .collect()
    }

    fn one(key: &str, text: &str, dialect: Dialect) -> (Option<String>, String, How) {
        (Some(key.to_owned()), text.to_owned(), How::Query(dialect))
    }

    #[test]
    fn each_type_keeps_its_metric_under_its_own_key() {
        for (kind, key, dialect) in [
            ("prometheus", "query", Dialect::PromQl),
            ("datadog", "query", Dialect::Datadog),
            ("aws-cloudwatch", "metricName", Dialect::Name),
            ("aws-cloudwatch", "expression", Dialect::CloudWatch),
            ("azure-monitor", "metricName", Dialect::Name),
            ("azure-app-insights", "metricId", Dialect::Name),
            ("azure-log-analytics", "query", Dialect::Text),
            ("gcp-stackdriver", "filter", Dialect::Stackdriver),
            ("new-relic", "nrql", Dialect::Nrql),
            ("dynatrace", "metricSelector", Dialect::Words),
            ("influxdb", "query", Dialect::Influx),
            ("splunk-observability", "query", Dialect::SignalFlow),
            ("sumologic", "query.A", Dialect::SumoLogic),
            ("metrics-api", "valueLocation", Dialect::Name),
            ("predictkube", "query", Dialect::PromQl),
            ("datadog", "datadogMetricName", Dialect::Name),
            ("dynatrace", "query", Dialect::Words),
            ("graphite", "query", Dialect::Words),
            ("solarwinds", "metricName", Dialect::Name),
            ("huawei-cloudeye", "metricName", Dialect::Name),
            ("influxdb", "metricKey", Dialect::Name),
            ("azure-data-explorer", "query", Dialect::Text),
            ("gcp-spanner", "query", Dialect::Text),
            ("mysql", "query", Dialect::Text),
            ("mssql", "query", Dialect::Text),
            ("mongodb", "query", Dialect::Text),
            ("arangodb", "query", Dialect::Text),
            ("cassandra", "query", Dialect::Text),
            ("clickhouse", "query", Dialect::Text),
            ("couchdb", "query", Dialect::Text),
            ("solr", "query", Dialect::Text),
            ("loki", "query", Dialect::Text),
            ("elasticsearch", "query", Dialect::Text),
            ("opensearch", "query", Dialect::Text),
            ("elastic-forecast", "jobID", Dialect::Text),
            ("kubernetes-resource", "key", Dialect::Text),
            ("postgresql", "query", Dialect::Text),
        ] {
            assert_eq!(
                read(kind, json!({key: "x"})),
                [one(key, "x", dialect)],
                "{kind}"
            );
        }
    }

    #[test]
    fn a_decorative_name_is_not_read() {
        let metadata = json!({"metricName": "gpu_utilization", "query": "up"});
        assert_eq!(
            read("prometheus", metadata),
            [one("query", "up", Dialect::PromQl)]
        );
    }

    #[test]
    fn what_counts_work_says_nothing_of_devices() {
        for kind in ["kafka", "redis-cluster-streams", "aws-sqs-queue", "cron"] {
            assert_eq!(
                read(kind, json!({"topic": "gpu_utilization"})),
                [],
                "{kind}"
            );
        }
    }

    #[test]
    fn a_query_kept_elsewhere_is_said_so() {
        let how = |kind: &str, metadata: Value| read(kind, metadata).last().unwrap().2;
        assert_eq!(how("elasticsearch", json!({"index": "i"})), How::Elsewhere);
        assert_eq!(
            how("elasticsearch", json!({"searchTemplateName": "t"})),
            How::Elsewhere
        );
        assert_eq!(
            how("openstack-metric", json!({"metricID": "u"})),
            How::Elsewhere
        );
        assert_ne!(how("elasticsearch", json!({"query": "{}"})), How::Elsewhere);
        let from_env = json!({"queryFromEnv": "QUERY", "passwordFromEnv": "PASSWORD"});
        assert_eq!(how("mysql", from_env), How::Elsewhere);
        let written = json!({"query": "select 1", "queryFromEnv": "QUERY"});
        assert_ne!(how("mysql", written), How::Elsewhere);
        assert_eq!(read("mysql", json!({"passwordFromEnv": "PASSWORD"})), []);
    }

    #[test]
    fn external_scalers_are_read_key_by_key() {
        let metadata = json!({
            "scalerAddress": "gpu-utilization.keda:6000",
            "targetGpuUtilization": 80,
            "metricQuery": "sum(x{a=b})",
            "endpoint": "http://gpu:9400/metrics",
            "passwordFromEnv": "GPU_UTIL",
        });
        let readings = read("external", metadata);
        let texts: Vec<&str> = readings.iter().map(|(_, text, _)| text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "endpoint",
                "metricQuery",
                "sum(x{a=b})",
                "password",
                "targetGpuUtilization",
                "80"
            ]
        );
        assert_eq!(
            read("of-a-fork", json!({"metric": "m"})).len(),
            2,
            "unknown types as well"
        );
    }

    #[test]
    fn a_formula_leaves_out_what_it_does_not_name() {
        let inert = |formula: &str, name: Value| {
            all(json!({
                "advanced": {"scalingModifiers": {"formula": formula}},
                "triggers": [{"type": "prometheus", "name": name, "metadata": {}}],
            }))[0]
                .inert
        };
        assert!(!inert("max([queue, gpu/10])", json!("gpu")));
        assert!(!inert("gpu > 80 ? queue * 2 : queue", json!("gpu")));
        assert!(inert("queue + gpu_like", json!("gpu")));
        assert!(inert("queue + len('gpu')", json!("gpu")));
        assert!(
            !inert("queue + (1", json!("gpu")),
            "what cannot be read uses everything"
        );
        assert!(
            !inert("queue", json!(null)),
            "a trigger without a name is taken as used"
        );
        assert!(!inert("", json!("gpu")));
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        assert_eq!(all(json!({"triggers": "none"})), []);
        assert_eq!(all(json!({"triggers": [5, {"type": 5}, {}]})), []);
        let odd = all(json!({"triggers": [{"type": "x", "metadata": []}]}));
        assert!(odd[0].metadata.is_empty());
    }
}
