//! A HorizontalPodAutoscaler's metric sources, in every version that people still write
//! (k8s.io/api autoscaling/v1, v2 and the removed v2beta1, v2beta2).

use serde_json::{Map, Value};

use crate::{
    finding::FieldPath,
    subject::{Subject, at},
};

/// Where autoscaling/v1 keeps metrics other than CPU: a JSON list.
pub const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";

/// Where autoscaling/v1 asks for CPU.
const CPU_PERCENTAGE: [&str; 2] = ["spec", "targetCPUUtilizationPercentage"];

/// The label by which KEDA's HPAs ask KEDA's metrics server for one ScaledObject's metrics
/// (kedacore/keda controllers/keda/hpa.go).
pub const KEDA_SELECTOR: &str = "scaledobject.keda.sh/name";

/// How a metric source names its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceType {
    /// A metric of the scaled pods.
    Pods,
    /// A metric of one object.
    Object,
    /// A metric of nothing in the cluster.
    External,
    /// A resource of the pods, or of one of their containers.
    Resource,
}

impl SourceType {
    /// As in the manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "Pods",
            Self::Object => "Object",
            Self::External => "External",
            Self::Resource => "Resource",
        }
    }
}

/// One metric source.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSource {
    /// How the metric is named.
    pub source: SourceType,
    /// The metric's or the resource's name.
    pub name: String,
    /// Where the name stands.
    pub path: FieldPath,
    /// The labels that select the series, as far as they are plain equalities.
    pub labels: Vec<(String, String)>,
    /// The name of the object that is measured.
    pub described: Option<String>,
    /// KEDA wrote it, for a trigger of the ScaledObject that owns the HPA.
    pub made_by_keda: bool,
}

/// The metric sources of an HPA, in order.
pub fn metrics(subject: &Subject) -> Vec<MetricSource> {
    let mut out = Vec::new();
    let path = FieldPath::of(&["spec", "metrics"]);
    let entries = subject.at(&["spec", "metrics"]).and_then(Value::as_array);
    for (index, entry) in entries.into_iter().flatten().enumerate() {
        read(entry, &path.clone().index(index), &mut out);
    }
    if subject.version() == "v1" {
        // One string: every source in it stands at the annotation.
        let path = FieldPath::of(&["metadata", "annotations", METRICS_ANNOTATION]);
        let written = subject
            .annotation(METRICS_ANNOTATION)
            .and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok());
        let mut listed = Vec::new();
        for entry in written.iter().flatten() {
            read(entry, &path, &mut listed);
        }
        out.extend(listed.into_iter().map(|source| MetricSource {
            path: path.clone(),
            ..source
        }));
        if !subject.at(&CPU_PERCENTAGE).is_none_or(Value::is_null) {
            out.push(MetricSource {
                source: SourceType::Resource,
                name: "cpu".to_owned(),
                path: FieldPath::of(&CPU_PERCENTAGE),
                labels: Vec::new(),
                described: None,
                made_by_keda: false,
            });
        }
    }
    let owner = keda_owner(&subject.value);
    for source in &mut out {
        source.made_by_keda = owner.is_some_and(|owner| is_made_by_keda(source, owner));
    }
    out
}

/// Whether an HPA says nothing of metrics: the API server then has it scale on 80 % of the CPU
/// (k8s.io/kubernetes pkg/apis/autoscaling/v2/defaults.go).
pub fn is_silent(subject: &Subject) -> bool {
    subject
        .at(&["spec", "metrics"])
        .is_none_or(|metrics| metrics.as_array().is_none_or(Vec::is_empty))
        && metrics(subject).is_empty()
}

/// The ScaledObject that controls this HPA, by its owner references.
pub fn keda_owner(hpa: &Value) -> Option<&str> {
    let owners = at(hpa, &["metadata", "ownerReferences"])?.as_array()?;
    owners.iter().find_map(|owner| {
        let text = |key: &str| owner.get(key).and_then(Value::as_str);
        let keda = text("apiVersion")?.starts_with("keda.sh/") && text("kind")? == "ScaledObject";
        let controls = owner.get("controller").and_then(Value::as_bool) == Some(true);
        (keda && controls).then(|| text("name")).flatten()
    })
}

/// Whether a source is one that KEDA's metrics server can only answer from the owner, which is
/// judged itself: the selector ties it to that ScaledObject, so a forged owner gains nothing
/// (kedacore/keda controllers/keda/hpa.go, pkg/util/normalize_string.go).
fn is_made_by_keda(source: &MetricSource, owner: &str) -> bool {
    let generated = source.name == "composite-metric"
        || source.name.strip_prefix('s').is_some_and(|rest| {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            digits > 0 && rest.get(digits..).is_some_and(|rest| rest.starts_with('-'))
        });
    source.source == SourceType::External
        && generated
        && source
            .labels
            .iter()
            .any(|(key, value)| key == KEDA_SELECTOR && value == owner)
}

/// Reads one entry of a metrics list.
fn read(entry: &Value, path: &FieldPath, out: &mut Vec<MetricSource>) {
    for (member, source) in [
        ("pods", SourceType::Pods),
        ("object", SourceType::Object),
        ("external", SourceType::External),
        ("resource", SourceType::Resource),
        ("containerResource", SourceType::Resource),
    ] {
        let Some(body) = entry.get(member).and_then(Value::as_object) else {
            continue;
        };
        let path = path.clone().key(member);
        let nested = body.get("metric").and_then(Value::as_object);
        // metric.name since v2beta2, metricName before, name for resources.
        let named = if source == SourceType::Resource {
            text(body, "name").map(|name| (name, path.key("name")))
        } else {
            nested
                .and_then(|metric| text(metric, "name"))
                .map(|name| (name, path.clone().keys(&["metric", "name"])))
                .or_else(|| text(body, "metricName").map(|name| (name, path.key("metricName"))))
        };
        let Some((name, path)) = named else { continue };
        let selector = nested
            .and_then(|metric| metric.get("selector"))
            .or_else(|| body.get("selector"))
            .or_else(|| body.get("metricSelector"));
        // The measured object stands under `target` in v2beta1, where v2 keeps the target value.
        let described = ["describedObject", "target"]
            .iter()
            .find_map(|key| text(body.get(*key)?.as_object()?, "name"));
        out.push(MetricSource {
            source,
            name: name.to_owned(),
            path,
            labels: selector.map(equalities).unwrap_or_default(),
            described: described.map(str::to_owned),
            made_by_keda: false,
        });
    }
}

fn text<'v>(members: &'v Map<String, Value>, key: &str) -> Option<&'v str> {
    members.get(key)?.as_str()
}

/// The labels that a selector wants to be equal to something.
fn equalities(selector: &Value) -> Vec<(String, String)> {
    let labels = selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    let expressions = selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|expression| {
            let key = expression.get("key")?.as_str()?;
            let values = expression.get("values")?.as_array()?;
            match (expression.get("operator")?.as_str()?, values.as_slice()) {
                ("In", [only]) => Some((key.to_owned(), only.as_str()?.to_owned())),
                _ => None,
            }
        });
    labels.chain(expressions).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[allow(clippy::needless_pass_by_value)] // json!() is an expression
    fn hpa(version: &str, metadata: Value, spec: Value) -> Vec<MetricSource> {
        let value = json!({
            "apiVersion": format!("autoscaling/{version}"),
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata,
            "spec": spec,
        });
        metrics(&Subject::from_manifest(Arc::new(value)).unwrap())
    }

    fn named(sources: &[MetricSource]) -> Vec<(SourceType, &str, String)> {
        sources
            .iter()
            .map(|source| (source.source, source.name.as_str(), source.path.to_string()))
            .collect()
    }

    #[test]
    fn every_source_of_v2_is_read() {
        let sources = hpa(
            "v2",
            json!({}),
            json!({"metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "a"}}},
                {"type": "Object", "object": {"describedObject": {"name": "svc"}, "metric": {"name": "b"}}},
                {"type": "External", "external": {"metric": {"name": "c", "selector": {
                    "matchLabels": {"k": "v"},
                    "matchExpressions": [{"key": "x", "operator": "In", "values": ["y"]}]}}}},
                {"type": "Resource", "resource": {"name": "cpu"}},
                {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "a"}},
                "nonsense",
                {"type": "Pods", "pods": []},
            ]}),
        );
        let path = |rest: &str| format!("spec.metrics{rest}");
        assert_eq!(
            named(&sources),
            [
                (SourceType::Pods, "a", path("[0].pods.metric.name")),
                (SourceType::Object, "b", path("[1].object.metric.name")),
                (SourceType::External, "c", path("[2].external.metric.name")),
                (SourceType::Resource, "cpu", path("[3].resource.name")),
                (
                    SourceType::Resource,
                    "memory",
                    path("[4].containerResource.name")
                ),
            ]
        );
        assert_eq!(sources[1].described.as_deref(), Some("svc"));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(sources[2].labels, [pair("k", "v"), pair("x", "y")]);
    }

    #[test]
    fn v2beta1_names_its_metrics_differently() {
        let sources = hpa(
            "v2beta1",
            json!({}),
            json!({"metrics": [{"type": "Object", "object": {
                "target": {"kind": "Service", "name": "dcgm-exporter"}, "metricName": "m"}}]}),
        );
        assert_eq!(
            named(&sources),
            [(
                SourceType::Object,
                "m",
                "spec.metrics[0].object.metricName".to_owned()
            )]
        );
        assert_eq!(sources[0].described.as_deref(), Some("dcgm-exporter"));
    }

    #[test]
    fn v1_keeps_metrics_in_an_annotation() {
        let annotation = |text: &str| json!({"annotations": {METRICS_ANNOTATION: text}});
        let list = r#"[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"5"}}]"#;
        let path = format!("metadata.annotations[{METRICS_ANNOTATION}]");
        assert_eq!(
            named(&hpa("v1", annotation(list), json!({}))),
            [(SourceType::Pods, "m", path)]
        );
        assert_eq!(hpa("v1", annotation("no JSON"), json!({})), []);
        assert_eq!(
            hpa("v2", annotation(list), json!({})),
            [],
            "v2 does not read it"
        );
    }

    #[test]
    fn v1_asks_for_cpu_by_a_field_of_its_own_and_silence_asks_for_it_too() {
        let path = "spec.targetCPUUtilizationPercentage".to_owned();
        assert_eq!(
            named(&hpa(
                "v1",
                json!({}),
                json!({"targetCPUUtilizationPercentage": 70})
            )),
            [(SourceType::Resource, "cpu", path)]
        );
        let silent = |spec: Value| {
            let value = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "spec": spec});
            is_silent(&Subject::from_manifest(Arc::new(value)).unwrap())
        };
        assert!(silent(json!({})) && silent(json!({"metrics": []})) && silent(json!(null)));
        assert!(!silent(
            json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu"}}]})
        ));
        assert!(
            !silent(json!({"metrics": [{"type": "New"}]})),
            "something is said"
        );
    }

    #[test]
    fn keda_made_sources_are_told_by_owner_selector_and_name() {
        let made = |owner: Value, name: &str, selected: &str| {
            hpa(
                "v2",
                json!({"ownerReferences": [owner]}),
                json!({"metrics": [{"type": "External", "external": {"metric": {"name": name,
                    "selector": {"matchLabels": {KEDA_SELECTOR: selected}}}}}]}),
            )[0]
            .made_by_keda
        };
        let owner = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "a",
            "uid": "u", "controller": true});
        assert!(made(owner.clone(), "s0-prometheus", "a"));
        assert!(made(
            owner.clone(),
            "s12-metric-api-DCGM_FI_DEV_GPU_UTIL",
            "a"
        ));
        assert!(made(owner.clone(), "composite-metric", "a"));
        assert!(
            !made(owner.clone(), "s0-prometheus", "b"),
            "another ScaledObject's metric"
        );
        assert!(
            !made(owner.clone(), "DCGM_FI_DEV_GPU_UTIL", "a"),
            "no name that KEDA gives"
        );
        assert!(!made(owner.clone(), "s-prometheus", "a"));
        for (key, value) in [
            ("controller", json!(false)),
            ("kind", json!("Deployment")),
            ("apiVersion", json!("keda.example/v1")),
        ] {
            let mut other = owner.clone();
            other[key] = value;
            assert!(!made(other, "s0-prometheus", "a"), "{key}");
        }
    }
}
