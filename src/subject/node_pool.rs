//! A lenient view of Karpenter's NodePool, in v1 (`pkg/apis/v1/nodepool.go`, v1.14.1) and v1beta1
//! (v0.37.0).

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{
    Subject, at,
    duration::Lapse,
    group_of,
    quantity::Quantity,
    requirement::{Allowed, Operator},
};
use crate::provenance::DefaultBlock;

/// The API group of NodePools; other projects have a kind of that name too.
pub const GROUP: &str = "karpenter.sh";

/// Where the consolidation policy stands.
pub const POLICY: &[&str] = &["spec", "disruption", "consolidationPolicy"];
/// The consolidation policy that evicts no running pod.
pub const WHEN_EMPTY: &str = "WhenEmpty";
/// The wait before consolidation that never ends.
pub const NEVER: &str = "Never";
/// Where the wait before consolidation stands.
pub const AFTER: &[&str] = &["spec", "disruption", "consolidateAfter"];
/// Where the budgets stand.
pub const BUDGETS: &[&str] = &["spec", "disruption", "budgets"];
/// Where the taints of nodes stand.
pub const TAINTS: &[&str] = &["spec", "template", "spec", "taints"];
/// Where the requirements of nodes stand.
pub const REQUIREMENTS: &[&str] = &["spec", "template", "spec", "requirements"];
/// Where the limits of the pool stand.
pub const LIMITS: &[&str] = &["spec", "limits"];

/// The version that an object is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `v1`, and whatever is not `v1beta1`.
    V1,
    /// `v1beta1`: other names of the policy, coupled fields, `expireAfter` under `disruption`.
    V1Beta1,
}

/// A NodePool.
#[derive(Clone, Copy, Debug)]
pub struct NodePool<'a> {
    object: &'a Value,
    /// The version it is written in.
    pub version: Version,
}

/// One row of `requirements`.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Its position in the list.
    pub index: usize,
    /// The label.
    pub key: &'a str,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
    /// What the row allows.
    pub allowed: Allowed,
}

/// A taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taint<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its effect.
    pub effect: &'a str,
}

impl Taint<'_> {
    /// Whether it keeps pods off that do not tolerate it.
    pub fn is_hard(&self) -> bool {
        matches!(self.effect, "NoSchedule" | "NoExecute")
    }
}

/// A disruption budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget<'a> {
    /// How many nodes may go at a time, as it is written.
    pub nodes: Cow<'a, str>,
    /// For which reasons; empty for all.
    pub reasons: Vec<&'a str>,
    /// Whether it holds at some times only.
    pub scheduled: bool,
}

impl Budget<'_> {
    /// Whether it forbids disruption for that reason at all times.
    pub fn always_forbids(&self, reason: &str) -> bool {
        let nodes = self.nodes.strip_suffix('%').unwrap_or(&self.nodes);
        let zero = !nodes.is_empty() && nodes.bytes().all(|digit| digit == b'0');
        zero && !self.scheduled && (self.reasons.is_empty() || self.reasons.contains(&reason))
    }
}

impl<'a> NodePool<'a> {
    /// The view of a subject; none for other kinds.
    pub fn of(subject: &'a Subject) -> Option<Self> {
        if subject.kind != "NodePool" || subject.group() != GROUP {
            return None;
        }
        let version = if subject.version() == "v1beta1" {
            Version::V1Beta1
        } else {
            Version::V1
        };
        Some(Self {
            object: &subject.value,
            version,
        })
    }

    /// The raw object.
    pub const fn object(&self) -> &'a Value {
        self.object
    }

    fn at(&self, keys: &[&str]) -> Option<&'a Value> {
        at(self.object, keys).filter(|value| !value.is_null())
    }

    fn text(&self, keys: &[&str]) -> Option<&'a str> {
        self.at(keys)?.as_str()
    }

    fn list(&self, keys: &[&str]) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.at(keys)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    }

    /// The readable rows of `requirements`; labels that say nothing of the machine included.
    pub fn requirements(&self) -> impl Iterator<Item = Row<'a>> + use<'a> {
        self.list(REQUIREMENTS)
            .enumerate()
            .filter_map(|(index, row)| {
                let key = row.get("key")?.as_str()?;
                let operator = Operator::parse(row.get("operator")?.as_str()?)?;
                let values: Vec<String> = row
                    .get("values")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(scalar)
                    .collect();
                let allowed = Allowed::new(operator, &values)?;
                Some(Row {
                    index,
                    key,
                    operator,
                    values,
                    allowed,
                })
            })
    }

    /// The labels that its nodes get.
    pub fn template_labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.at(&["spec", "template", "metadata", "labels"])
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// The taints that its nodes keep.
    pub fn taints(&self) -> impl Iterator<Item = Taint<'a>> + use<'a> {
        self.list(TAINTS).filter_map(taint)
    }

    /// The taints that its nodes lose once they are ready.
    pub fn startup_taints(&self) -> impl Iterator<Item = Taint<'a>> + use<'a> {
        self.list(&["spec", "template", "spec", "startupTaints"])
            .filter_map(taint)
    }

    /// The API group of its node class, which names the cloud.
    pub fn node_class_group(&self) -> Option<&'a str> {
        const REF: [&str; 4] = ["spec", "template", "spec", "nodeClassRef"];
        let reference = self.at(&REF)?;
        let text = |key: &str| reference.get(key)?.as_str();
        text("group")
            .or_else(|| text("apiVersion").map(group_of))
            .filter(|group| !group.is_empty())
    }

    /// The pool's limits, as far as they are quantities.
    pub fn limits(&self) -> impl Iterator<Item = (&'a str, Quantity)> + use<'a> {
        self.at(LIMITS)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), Quantity::of(value)?)))
    }

    /// The number of nodes of a static pool, which Karpenter never consolidates (v1.8.0).
    pub fn replicas(&self) -> Option<&'a Value> {
        self.at(&["spec", "replicas"])
    }

    /// The consolidation policy that is written.
    pub fn policy(&self) -> Option<&'a str> {
        self.text(POLICY)
    }

    /// The consolidation policy where none is written.
    pub const fn default_policy(&self) -> &'static str {
        match self.version {
            Version::V1 => "WhenEmptyOrUnderutilized",
            Version::V1Beta1 => "WhenUnderutilized",
        }
    }

    /// What the API server puts in where no wait is written; `null` where it leaves it out.
    pub fn default_after(&self) -> Value {
        match self.version {
            Version::V1 => json!("0s"),
            Version::V1Beta1 => Value::Null,
        }
    }

    /// How long a node must be quiet before it is consolidated, as it is written.
    pub fn after(&self) -> Option<&'a Value> {
        self.at(AFTER)
    }

    /// How long a node must be quiet before it is consolidated; none where nothing readable is
    /// written.
    pub fn consolidate_after(&self) -> Option<Lapse> {
        Lapse::of(self.after()?)
    }

    /// The disruption budgets.
    pub fn budgets(&self) -> impl Iterator<Item = Budget<'a>> + use<'a> {
        self.list(BUDGETS).filter_map(|budget| {
            let written = |key: &str| budget.get(key).is_some_and(|value| !value.is_null());
            let nodes = match budget.get("nodes") {
                Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
                Some(Value::Number(number)) => Cow::Owned(number.to_string()),
                _ if budget.is_object() => Cow::Borrowed("10%"),
                _ => return None,
            };
            let reasons = budget.get("reasons").and_then(Value::as_array);
            Some(Budget {
                nodes,
                reasons: reasons
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect(),
                scheduled: written("schedule") || written("duration"),
            })
        })
    }

    /// Whether a budget forbids disruption for that reason at all times.
    pub fn always_forbids(&self, reason: &str) -> bool {
        self.budgets().any(|budget| budget.always_forbids(reason))
    }

    /// Where the greatest age of a node stands.
    pub const fn expire_path(&self) -> &'static [&'static str] {
        match self.version {
            Version::V1 => &["spec", "template", "spec", "expireAfter"],
            Version::V1Beta1 => &["spec", "disruption", "expireAfter"],
        }
    }

    /// The greatest age of a node, as it is written.
    pub fn expire_after(&self) -> Option<&'a Value> {
        self.at(self.expire_path())
    }

    /// How long a node waits for its pods when it must go; none where it waits for ever.
    pub fn termination_grace(&self) -> Option<&'a Value> {
        self.at(&["spec", "template", "spec", "terminationGracePeriod"])
    }

    /// Where that path of the object holds something.
    pub fn holds(&self, keys: &[&str]) -> bool {
        self.at(keys).is_some()
    }

    /// The fields that arrive together where nobody wrote about disruption (CRD defaults of
    /// Karpenter v1.0.2 to v1.14.1, and of v0.32 to v1.0.9 for v1beta1).
    pub fn with_default_block<R>(&self, then: impl FnOnce(&DefaultBlock<'_>) -> R) -> R {
        let budgets = json!([{"nodes": "10%"}]);
        match self.version {
            Version::V1 => then(&DefaultBlock {
                fields: &[
                    (POLICY, json!(self.default_policy())),
                    (AFTER, self.default_after()),
                    (BUDGETS, budgets),
                ],
            }),
            Version::V1Beta1 => then(&DefaultBlock {
                fields: &[
                    (POLICY, json!(self.default_policy())),
                    (AFTER, self.default_after()),
                    (&["spec", "disruption", "expireAfter"], json!("720h")),
                    (BUDGETS, budgets),
                ],
            }),
        }
    }
}

fn taint(value: &Value) -> Option<Taint<'_>> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    Some(Taint {
        key: text("key")?,
        effect: text("effect").unwrap_or_default(),
    })
}

/// Values of requirements are strings; YAML makes numbers and truth values of some.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn subject(value: &Value) -> Subject {
        Subject::from_manifest(Arc::new(value.clone())).unwrap()
    }

    #[test]
    fn kinds_of_that_name_in_other_groups_are_not_ours() {
        let of = |api: &str, kind: &str| {
            NodePool::of(&subject(&json!({"apiVersion": api, "kind": kind}))).is_some()
        };
        assert!(of("karpenter.sh/v1", "NodePool") && of("karpenter.sh/v1beta1", "NodePool"));
        assert!(!of("compute.coreweave.com/v1alpha1", "NodePool"));
        assert!(!of("karpenter.sh/v1alpha5", "Provisioner"));
    }

    #[test]
    fn a_zero_budget_counts_where_it_always_holds_for_the_reason() {
        let forbids = |budget: Value| {
            let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
                              "spec": {"disruption": {"budgets": [{"nodes": "10%"}, budget]}}});
            NodePool::of(&subject(&pool))
                .unwrap()
                .always_forbids("Underutilized")
        };
        assert!(forbids(json!({"nodes": "0"})));
        assert!(forbids(
            json!({"nodes": "0%", "reasons": ["Empty", "Underutilized"]})
        ));
        assert!(forbids(json!({"nodes": 0})));
        assert!(forbids(json!({"nodes": "0", "reasons": []})));
        assert!(!forbids(json!({"nodes": "0", "reasons": ["Drifted"]})));
        assert!(!forbids(
            json!({"nodes": "0", "schedule": "0 9 * * 1-5", "duration": "8h"})
        ));
        assert!(!forbids(json!({"nodes": "1"})) && !forbids(json!({"nodes": "100%"})));
        assert!(
            !forbids(json!({"reasons": ["Underutilized"]})),
            "10% by default"
        );
        assert!(!forbids(json!("0")) && !forbids(json!({"nodes": ""})));
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "spec": {
            "replicas": null, "limits": ["x"], "disruption": "none",
            "template": {"metadata": {"labels": 5}, "spec": {
                "nodeClassRef": "x", "taints": {"key": "a"},
                "requirements": ["x", {"key": "a"}, {"key": "b", "operator": "Near"},
                                 {"key": "c", "operator": "Gt", "values": ["many"]},
                                 {"key": "d", "operator": "Gt", "values": [0]}]}}}});
        let subject = subject(&pool);
        let pool = NodePool::of(&subject).unwrap();
        assert_eq!(
            pool.requirements().map(|row| row.key).collect::<Vec<_>>(),
            ["d"]
        );
        assert!(pool.replicas().is_none() && pool.policy().is_none());
        assert_eq!(
            pool.limits().count() + pool.taints().count() + pool.budgets().count(),
            0
        );
        assert_eq!(pool.node_class_group(), None);
    }

    #[test]
    fn the_cloud_is_read_from_either_spelling_of_the_node_class() {
        let group = |reference: Value| {
            let pool = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
                              "spec": {"template": {"spec": {"nodeClassRef": reference}}}});
            NodePool::of(&subject(&pool))
                .unwrap()
                .node_class_group()
                .map(str::to_owned)
        };
        assert_eq!(
            group(json!({"group": "karpenter.azure.com"})).as_deref(),
            Some("karpenter.azure.com")
        );
        assert_eq!(
            group(json!({"apiVersion": "karpenter.k8s.aws/v1beta1"})).as_deref(),
            Some("karpenter.k8s.aws")
        );
        assert_eq!(group(json!({"name": "karpenter.k8s.aws"})), None);
    }
}
