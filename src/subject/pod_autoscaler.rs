//! The metric sources of AIBrix's PodAutoscaler (vllm-project/aibrix
//! api/autoscaling/v1alpha1/podautoscaler_types.go, v0.5). Under the strategies KPA and APA AIBrix
//! scales by itself; under HPA it makes a HorizontalPodAutoscaler of the same metric.

use serde_json::Value;

use crate::{finding::FieldPath, subject::Subject};

/// The API group.
pub const GROUP: &str = "autoscaling.aibrix.ai";

/// One metric source.
#[derive(Clone, Debug, PartialEq)]
pub struct PodMetric {
    /// The metric's or the resource's name; endpoint and path beside it are only addresses.
    pub name: String,
    /// Where the name stands.
    pub path: FieldPath,
    /// How it is fetched: `pod`, `resource`, `custom`, `external`, `domain`.
    pub source: String,
    /// The whole entry, as written.
    pub entry: Value,
}

impl PodMetric {
    /// Whether it is a resource of the pods: cpu or memory.
    pub fn is_resource(&self) -> bool {
        self.source == "resource"
    }

    /// Whether AIBrix reads it from the engine itself, under its own name for it (pkg/metrics).
    pub fn is_scraped(&self) -> bool {
        self.source == "pod"
    }
}

/// The metric sources of a PodAutoscaler, in order.
pub fn metrics(subject: &Subject) -> Vec<PodMetric> {
    let path = FieldPath::of(&["spec", "metricsSources"]);
    let listed = subject
        .at(&["spec", "metricsSources"])
        .and_then(Value::as_array);
    listed
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, entry)| {
            let text = |key: &str| entry.get(key).and_then(Value::as_str);
            Some(PodMetric {
                name: text("targetMetric")?.to_owned(),
                path: path.clone().index(index).key("targetMetric"),
                source: text("metricSourceType").unwrap_or_default().to_owned(),
                entry: entry.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn read(sources: &Value) -> Vec<(String, String, String)> {
        let value = json!({"apiVersion": "autoscaling.aibrix.ai/v1alpha1", "kind": "PodAutoscaler",
            "spec": {"metricsSources": sources}});
        metrics(&Subject::from_manifest(Arc::new(value)).unwrap())
            .into_iter()
            .map(|metric| (metric.source, metric.name, metric.path.to_string()))
            .collect()
    }

    #[test]
    fn only_the_metric_is_a_signal() {
        assert_eq!(
            read(
                &json!([{"metricSourceType": "external", "targetMetric": "m",
                "endpoint": "gpu-optimizer:8080", "path": "/gpu/util"}])
            ),
            [(
                "external".to_owned(),
                "m".to_owned(),
                "spec.metricsSources[0].targetMetric".to_owned()
            )]
        );
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        assert_eq!(read(&json!("none")), []);
        assert_eq!(read(&json!([5, {"targetMetric": 5}, {}])), []);
        assert_eq!(
            read(&json!([{"targetMetric": "m", "metricSourceType": []}])).len(),
            1
        );
    }
}
