//! What kthena's AutoscalingPolicy scales on (volcano-sh/kthena
//! pkg/apis/workload/v1alpha1/autoscalingpolicy_types.go, main of August 2026; before that a policy
//! only named the metrics that its pods are scraped for).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    finding::FieldPath,
    subject::{Subject, at},
};

/// The API group.
pub const GROUP: &str = "workload.serving.volcano.sh";

/// One place that says what is read.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyMetric {
    /// The metric's name, or a query.
    pub text: String,
    /// Where it stands.
    pub path: FieldPath,
    /// How it says it.
    pub how: Fetch,
    /// The key by which the policy knows the metric.
    pub key: String,
    /// The role of a disaggregated target that it is for.
    pub role: Option<String>,
    /// A source that no metric of the policy asks for: it scales nothing.
    pub unused: bool,
}

/// How a metric is fetched.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetch {
    /// By name from the pods, under this member of the policy's list.
    Listed(&'static str),
    /// By name from the pods; what else the source says.
    Pod(Map<String, Value>),
    /// By a PromQL query; what else the source says.
    Prometheus(Map<String, Value>),
}

/// A metric of a list: its key, where it stands, under which member, and whether a source tells
/// what it reads.
struct Listed {
    key: String,
    path: FieldPath,
    member: &'static str,
    sourced: bool,
}

/// The metrics of a list, with the first position of each key.
struct Listing {
    all: Vec<Listed>,
    first: BTreeMap<String, usize>,
}

impl Listing {
    fn new(all: Vec<Listed>) -> Self {
        let mut first = BTreeMap::new();
        for (position, metric) in all.iter().enumerate() {
            first.entry(metric.key.clone()).or_insert(position);
        }
        Self { all, first }
    }

    fn get(&mut self, key: &str) -> Option<&mut Listed> {
        self.all.get_mut(*self.first.get(key)?)
    }
}

/// What an AutoscalingPolicy reads, in order.
pub fn metrics(subject: &Subject) -> Vec<PolicyMetric> {
    let Some(spec) = subject.at(&["spec"]) else {
        return Vec::new();
    };
    let path = FieldPath::of(&["spec"]);
    let mut common = Listing::new(listed(spec, &path));
    let mut out = Vec::new();
    let target = |keys: &[&str]| at(spec, keys);
    if let Some(found) = target(&["homogeneousTarget", "target"]) {
        let path = path.clone().keys(&["homogeneousTarget", "target"]);
        sources(found, &path, &mut common, None, &mut out);
    }
    let params = target(&["heterogeneousTarget", "params"]).and_then(Value::as_array);
    for (index, param) in params.into_iter().flatten().enumerate() {
        if let Some(found) = param.get("target") {
            let path = path.clone().keys(&["heterogeneousTarget", "params"]);
            let path = path.index(index).key("target");
            sources(found, &path, &mut common, None, &mut out);
        }
    }
    let roles = target(&["disaggregatedTarget", "roles"]).and_then(Value::as_object);
    for (role, found) in roles.into_iter().flatten() {
        let path = path.clone().keys(&["disaggregatedTarget", "roles"]);
        let path = path.key(role.as_str());
        // A role's own list overrides the policy's.
        if found.get("metrics").is_some_and(Value::is_array) {
            let mut own = Listing::new(listed(found, &path));
            sources(found, &path, &mut own, Some(role), &mut out);
            named(own, Some(role), &mut out);
        } else {
            sources(found, &path, &mut common, Some(role), &mut out);
        }
    }
    named(common, None, &mut out);
    out
}

/// The metrics that a list names.
fn listed(holder: &Value, path: &FieldPath) -> Vec<Listed> {
    let entries = holder.get("metrics").and_then(Value::as_array);
    let path = path.clone().key("metrics");
    entries
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, entry)| {
            let (member, key) = ["name", "metricName"]
                .into_iter()
                .find_map(|member| Some((member, entry.get(member)?.as_str()?)))?;
            Some(Listed {
                key: key.to_owned(),
                path: path.clone().index(index).key(member),
                member,
                sourced: false,
            })
        })
        .collect()
}

/// What the sources of one target say of the metrics that a list names.
fn sources(
    holder: &Value,
    path: &FieldPath,
    listed: &mut Listing,
    role: Option<&str>,
    out: &mut Vec<PolicyMetric>,
) {
    let found = holder.get("metricSources").and_then(Value::as_object);
    for (key, source) in found.into_iter().flatten() {
        let path = path.clone().key("metricSources").key(key.as_str());
        let asked = listed.get(key);
        let unused = asked.is_none();
        let body = |member: &str| source.get(member).and_then(Value::as_object);
        let text = |body: &Map<String, Value>, member: &str| {
            body.get(member)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let (text, path, how) = if let Some(pod) = body("pod") {
            let path = path.key("pod");
            // A pod's metric is called by its key where nothing else is said.
            match text(pod, "name") {
                Some(name) => (name, path.key("name"), Fetch::Pod(pod.clone())),
                None => (key.clone(), path, Fetch::Pod(pod.clone())),
            }
        } else if let Some(prometheus) = body("prometheus") {
            let Some(query) = text(prometheus, "query") else {
                continue;
            };
            let path = path.keys(&["prometheus", "query"]);
            (query, path, Fetch::Prometheus(prometheus.clone()))
        } else {
            continue;
        };
        if let Some(asked) = asked {
            asked.sourced = true;
        }
        out.push(PolicyMetric {
            text,
            path,
            how,
            key: key.clone(),
            role: role.map(str::to_owned),
            unused,
        });
    }
}

/// The metrics of a list that no source explains: they are what their names say.
fn named(listed: Listing, role: Option<&str>, out: &mut Vec<PolicyMetric>) {
    let unsourced = listed.all.into_iter().filter(|metric| !metric.sourced);
    out.extend(unsourced.map(|metric| PolicyMetric {
        text: metric.key.clone(),
        path: metric.path,
        how: Fetch::Listed(metric.member),
        key: metric.key,
        role: role.map(str::to_owned),
        unused: false,
    }));
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "json!() is an expression that is read once"
)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn read(spec: Value) -> Vec<PolicyMetric> {
        let value = json!({"apiVersion": "workload.serving.volcano.sh/v1alpha1",
            "kind": "AutoscalingPolicy", "spec": spec});
        metrics(&Subject::from_manifest(Arc::new(value)).unwrap())
    }

    fn texts(spec: Value) -> Vec<(String, String)> {
        read(spec)
            .into_iter()
            .map(|metric| (metric.text, metric.path.to_string()))
            .collect()
    }

    fn pair(text: &str, path: &str) -> (String, String) {
        (text.to_owned(), format!("spec.{path}"))
    }

    #[test]
    fn a_metric_without_a_source_is_what_it_is_called() {
        assert_eq!(
            texts(json!({"metrics": [{"metricName": "a"}, {"name": "b"}]})),
            [
                pair("a", "metrics[0].metricName"),
                pair("b", "metrics[1].name")
            ]
        );
    }

    #[test]
    fn a_source_says_what_a_key_reads() {
        let target = |source: Value| {
            json!({"metrics": [{"name": "k"}],
                "homogeneousTarget": {"target": {"metricSources": {"k": source}}}})
        };
        let at = |rest: &str| format!("homogeneousTarget.target.metricSources.k.{rest}");
        assert_eq!(
            texts(target(json!({"pod": {"name": "m"}}))),
            [pair("m", &at("pod.name"))]
        );
        assert_eq!(
            texts(target(json!({"pod": {}}))),
            [pair("k", &at("pod"))],
            "the key is the name"
        );
        assert_eq!(
            texts(target(json!({"prometheus": {"query": "sum(x)"}}))),
            [pair("sum(x)", &at("prometheus.query"))]
        );
        let twice = json!({"metrics": [{"name": "k"}], "heterogeneousTarget": {"params": [
            {"target": {"metricSources": {"k": {"pod": {"name": "a"}}}}},
            {"target": {"metricSources": {"k": {"pod": {"name": "b"}}, "o": {"pod": {}}}}}]}});
        let all = read(twice);
        let unused: Vec<_> = all.iter().map(|m| (m.text.as_str(), m.unused)).collect();
        assert_eq!(unused, [("a", false), ("b", false), ("o", true)]);
    }

    #[test]
    fn a_role_has_its_own_metrics_or_the_policys() {
        let all = read(
            json!({"metrics": [{"name": "k"}], "disaggregatedTarget": {"roles": {
            "decode": {"metrics": [{"name": "own"}, {"name": "bare"}],
                "metricSources": {"own": {"pod": {"name": "m"}}, "k": {"pod": {"name": "no"}}}},
            "prefill": {"metricSources": {"k": {"pod": {"name": "yes"}}}}}}}),
        );
        let of: Vec<_> = all
            .iter()
            .map(|m| (m.text.as_str(), m.role.as_deref(), m.unused))
            .collect();
        let (decode, prefill) = (Some("decode"), Some("prefill"));
        assert_eq!(
            of,
            [
                ("no", decode, true),
                ("m", decode, false),
                ("bare", decode, false),
                ("yes", prefill, false)
            ]
        );
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        for spec in [
            json!(null),
            json!([]),
            json!({"metrics": {}}),
            json!({"metrics": [5, {"name": 5}], "homogeneousTarget": [],
                "heterogeneousTarget": {"params": [5, {"target": 5}]},
                "disaggregatedTarget": {"roles": []}}),
            json!({"homogeneousTarget": {"target": {"metricSources": {"k": 5, "l": {"pod": 5}}}}}),
        ] {
            assert_eq!(read(spec), []);
        }
    }
}
