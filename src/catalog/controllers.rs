//! Controllers that write workloads, and whether an object is the child of one. The rows stand in
//! `policies/catalog/controllers.yaml`.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::subject::{Subject, at, group_of};

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Controller {
    /// The kind of the objects it works from.
    pub parent: ParentKind,
    /// Our rules say of the parent what they would say of the child, and the controller writes the
    /// child over from it: so it is left alone.
    pub judged: bool,
    /// Why the child is looked at though rules speak of the parent's kind.
    #[serde(default)]
    pub because: Option<String>,
    /// The kinds that it makes.
    pub children: Vec<String>,
    /// A label of the child that must carry the parent's name.
    #[serde(default)]
    pub label: Option<String>,
    /// A child may belong to a Pod of the parent instead.
    #[serde(default)]
    pub pod_owner: bool,
    /// A child is called what its owner is called.
    #[serde(default)]
    pub same_name: bool,
    /// A child is called what its owner is called, with one of these behind it; empty where its name
    /// says nothing.
    #[serde(default)]
    pub suffixes: Vec<String>,
    /// Where this was read: project, file or document.
    pub source: String,
    /// When, as YYYY-MM.
    pub checked: String,
}

/// An API group and kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParentKind {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
}

/// The catalogue of controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controllers {
    /// The rows.
    pub controllers: Vec<Controller>,
}

/// Whose child an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent<'a> {
    /// Nobody's that we know of: it is judged in its own right.
    None,
    /// Of an object of this kind, which our rules judge: the child is left alone.
    Judged(&'a str),
    /// Of an object of this kind, which no rule judges: the child's denials become warnings, and
    /// nothing is filled.
    Unjudged(&'a str),
}

static BUILTIN: LazyLock<Controllers> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("../../policies/catalog/controllers.yaml"))
        .unwrap_or_default()
});

impl Controller {
    /// Whether a child of that name may be its owner's.
    fn names(&self, child: &str, owner: &str) -> bool {
        let behind = child.strip_prefix(owner);
        self.suffixes.is_empty()
            || behind.is_some_and(|behind| self.suffixes.iter().any(|suffix| suffix == behind))
    }
}

impl Controllers {
    /// The rows that are built in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }
}

/// Whose child an object is, by its controller reference and the shape that the controller gives
/// its children. An owner that is claimed but does not fit the shape counts for nothing: a user
/// can write any reference.
pub fn parent_of<'a>(subject: &Subject, catalog: &'a Controllers) -> Parent<'a> {
    let Some(owner) = controller_of(&subject.value) else {
        return Parent::None;
    };
    let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, kind, name) = (group_of(text("apiVersion")), text("kind"), text("name"));
    // A reference without a uid is no reference: the API server refuses it.
    if text("uid").is_empty() {
        return Parent::None;
    }
    let row = catalog.controllers.iter().find(|row| {
        if !row.children.contains(&subject.kind)
            || (row.same_name && subject.name != name)
            || !row.names(&subject.name, name)
        {
            return false;
        }
        let label = row
            .label
            .as_deref()
            .map(|key| subject.label(key).unwrap_or_default());
        if row.parent.group == group && row.parent.kind == kind {
            return label.is_none_or(|label| label == name);
        }
        row.pod_owner
            && group.is_empty()
            && kind == "Pod"
            && label.is_some_and(|label| numbered(name, label))
    });
    match row {
        Some(row) if row.judged => Parent::Judged(&row.parent.kind),
        Some(row) => Parent::Unjudged(&row.parent.kind),
        None => Parent::None,
    }
}

/// The owner that controls an object.
pub fn controller_of(value: &Value) -> Option<&Value> {
    at(value, &["metadata", "ownerReferences"])?
        .as_array()?
        .iter()
        .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
}

/// Whether a name is `<base>-<number>`.
fn numbered(name: &str, base: &str) -> bool {
    !base.is_empty()
        && name
            .strip_prefix(base)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "documents read best where they are used"
)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn parent(kind: &str, labels: Value, owner: Value) -> Parent<'static> {
        let value = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": owner["name"], "labels": labels, "ownerReferences": [owner]}
        });
        parent_of(
            &Subject::from_manifest(Arc::new(value)).unwrap(),
            Controllers::builtin(),
        )
    }

    fn owner(api: &str, kind: &str, name: &str) -> Value {
        json!({"apiVersion": api, "kind": kind, "name": name, "uid": "u", "controller": true})
    }

    #[test]
    fn a_parent_is_judged_just_where_a_rule_speaks_of_its_kind() {
        for row in &Controllers::builtin().controllers {
            let ParentKind { group, kind } = &row.parent;
            let covered = crate::rules::RULES
                .iter()
                .any(|rule| rule.covers(group, kind));
            let excepted = row.because.is_some();
            assert_eq!(row.judged, covered && !excepted, "{kind}");
            assert!(covered || !excepted, "{kind} needs no exception");
        }
    }

    /// What a controller calls its children, and a name that somebody gave one by hand.
    #[test]
    fn a_reference_under_a_name_that_no_controller_gives_counts_for_nothing() {
        let kserve = |kind: &str| owner("serving.kserve.io/v1", kind, "chat");
        for (child, parent, named) in [
            ("Deployment", "InferenceService", "chat-predictor"),
            ("Deployment", "InferenceService", "chat-predictor-worker"),
            ("ScaledObject", "InferenceService", "chat-predictor"),
            (
                "HorizontalPodAutoscaler",
                "InferenceService",
                "chat-predictor",
            ),
            ("LeaderWorkerSet", "LLMInferenceService", "chat-kserve-mn"),
            ("Deployment", "LLMInferenceService", "chat-kserve-prefill"),
            ("ScaledObject", "LLMInferenceService", "chat-kserve-keda"),
        ] {
            let of = |name: &str| {
                let value = json!({"apiVersion": "x/v1", "kind": child,
                    "metadata": {"name": name, "ownerReferences": [kserve(parent)]}});
                parent_of(
                    &Subject::from_manifest(Arc::new(value)).unwrap(),
                    Controllers::builtin(),
                )
            };
            assert_eq!(of(named), Parent::Unjudged(parent), "{child} {named}");
            for forged in [
                "chat",
                "mine",
                "chat-mine",
                "x-chat-predictor",
                "-predictor",
            ] {
                assert_eq!(of(forged), Parent::None, "{child} {forged}");
            }
        }
    }

    #[test]
    fn a_ray_cluster_is_left_alone_only_where_its_service_would_delete_a_false_one() {
        let key = "ray.io/originated-from-cr-name";
        let of = |kind: &str, labels: Value| {
            parent("RayCluster", labels, owner("ray.io/v1", kind, "llm"))
        };
        assert_eq!(
            of("RayService", json!({key: "llm"})),
            Parent::Judged("RayService")
        );
        assert_eq!(
            of("RayJob", json!({key: "llm"})),
            Parent::Unjudged("RayJob")
        );
        for labels in [json!({}), json!({key: "other"})] {
            assert_eq!(of("RayService", labels.clone()), Parent::None);
            assert_eq!(of("RayJob", labels), Parent::None);
        }
    }

    #[test]
    fn children_of_grove_and_dynamo_carry_their_parents_label() {
        for (child, api, kind, key) in [
            (
                "HorizontalPodAutoscaler",
                "grove.io/v1alpha1",
                "PodCliqueSet",
                "app.kubernetes.io/part-of",
            ),
            (
                "PodCliqueSet",
                "nvidia.com/v1beta1",
                "DynamoGraphDeployment",
                "nvidia.com/dynamo-graph-deployment-name",
            ),
        ] {
            let with = |labels: Value| parent(child, labels, owner(api, kind, "llm"));
            assert_eq!(with(json!({key: "llm"})), Parent::Unjudged(kind));
            assert_eq!(with(json!({key: "other"})), Parent::None);
            assert_eq!(with(json!({})), Parent::None);
        }
    }

    #[test]
    fn an_autoscaler_that_names_another_one_as_its_owner_is_still_looked_at() {
        let of = |name: &str| {
            let value = json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": name, "ownerReferences":
                    [owner("autoscaling.aibrix.ai/v1alpha1", "PodAutoscaler", "chat")]}
            });
            parent_of(
                &Subject::from_manifest(Arc::new(value)).unwrap(),
                Controllers::builtin(),
            )
        };
        assert_eq!(of("chat-hpa"), Parent::Unjudged("PodAutoscaler"));
        for forged in ["chat", "other-hpa", "x-chat-hpa", "-hpa"] {
            assert_eq!(of(forged), Parent::None, "{forged}");
        }
    }

    const LWS: &str = "leaderworkerset.sigs.k8s.io/name";

    #[test]
    fn the_built_in_rows_are_read_and_carry_their_source() {
        let rows: Controllers =
            serde_saphyr::from_str(include_str!("../../policies/catalog/controllers.yaml"))
                .unwrap();
        assert!(rows.controllers.iter().all(|row| !row.source.is_empty()));
        assert_eq!(Controllers::builtin(), &rows);
    }

    #[test]
    fn statefulsets_of_a_leader_worker_set_are_judged_at_their_parent() {
        let lws = owner("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "a");
        let judged = Parent::Judged("LeaderWorkerSet");
        assert_eq!(
            parent("StatefulSet", json!({LWS: "a"}), lws.clone()),
            judged
        );
        // The workers of a group belong to its leader Pod.
        let leader = owner("v1", "Pod", "a-0");
        assert_eq!(
            parent("StatefulSet", json!({LWS: "a"}), leader.clone()),
            judged
        );
        assert_eq!(
            parent("StatefulSet", json!({LWS: "b"}), leader.clone()),
            Parent::None
        );
        assert_eq!(parent("StatefulSet", json!({}), leader), Parent::None);
        assert_eq!(parent("StatefulSet", json!({}), lws.clone()), Parent::None);
        assert_eq!(
            parent("Deployment", json!({LWS: "a"}), lws.clone()),
            Parent::None
        );
        let value = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "mine", "labels": {LWS: "a"}, "ownerReferences": [lws]}
        });
        let forged = Subject::from_manifest(Arc::new(value)).unwrap();
        assert_eq!(parent_of(&forged, Controllers::builtin()), Parent::None);
    }

    #[test]
    fn children_of_kinds_without_rules_are_told_apart() {
        let graph = owner("nvidia.com/v1beta1", "DynamoGraphDeployment", "a");
        assert_eq!(
            parent("Deployment", json!({}), graph.clone()),
            Parent::Unjudged("DynamoGraphDeployment")
        );
        let mut not_controlling = graph;
        not_controlling["controller"] = json!(false);
        assert_eq!(
            parent("Deployment", json!({}), not_controlling),
            Parent::None
        );
        let stranger = owner("example.dev/v1", "Anything", "a");
        assert_eq!(parent("Deployment", json!({}), stranger), Parent::None);
        let mut no_uid = owner("nvidia.com/v1beta1", "DynamoGraphDeployment", "a");
        no_uid["uid"] = json!("");
        assert_eq!(parent("Deployment", json!({}), no_uid), Parent::None);
    }
}
