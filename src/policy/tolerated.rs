//! What others may add to the namespace selectors of the webhook entries.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyError, namespaces::Pattern};
use crate::finding::FieldPath;

/// The label that holds a namespace's own name (kubernetes.io/docs/reference/labels-annotations-taints).
const NAME: &str = "kubernetes.io/metadata.name";

/// The webhook configurations of Gangplank itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrationFile {
    /// Expressions that others add to the namespace selectors, and that stay there; those of AKS and
    /// GKE are known.
    pub tolerated: Vec<ToleratedFile>,
}

/// An expression of a namespace selector that stays when somebody else adds it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToleratedFile {
    /// The key of the namespace's label.
    pub key: String,
    /// How the expression leaves namespaces out; either way where this is left out.
    #[serde(default)]
    pub operator: Option<Excluding>,
    /// Values and patterns of values that `NotIn` may list; any value where there are none.
    #[serde(default)]
    pub values: Vec<String>,
}

/// An operator of a label selector that leaves out what matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Excluding {
    /// Leaves out namespaces whose label has one of the values.
    NotIn,
    /// Leaves out namespaces that have the label.
    DoesNotExist,
}

/// An expression of a namespace selector that stays when somebody else adds it.
#[derive(Clone, Debug)]
pub struct Tolerated {
    key: String,
    operator: Option<Excluding>,
    values: Vec<Pattern>,
}

/// What clouds are known to add, from the Azure documentation and reports of those who met it.
///
/// AKS, the admissions enforcer: `control-plane` (learn.microsoft.com/azure/aks/faq, "Can admission
/// controller webhooks impact kube-system and internal AKS namespaces?"; github.com/Azure/AKS/issues/1771
/// and 4002) and `kubernetes.azure.com/managedby` (github.com/Kong/kong-operator/issues/239).
/// GKE Autopilot: the managed namespaces by name
/// (github.com/Dynatrace/dynatrace-operator/issues/2194).
const KNOWN: [(&str, Excluding, &[&str]); 4] = [
    ("control-plane", Excluding::DoesNotExist, &[]),
    ("control-plane", Excluding::NotIn, &["true"]),
    ("kubernetes.azure.com/managedby", Excluding::NotIn, &["aks"]),
    (
        NAME,
        Excluding::NotIn,
        &["kube-system", "gke-gmp-system", "gke-managed-*"],
    ),
];

impl Tolerated {
    /// What clouds are known to add, then the rows of the policy.
    pub(super) fn read(file: &RegistrationFile) -> Result<Vec<Self>, PolicyError> {
        let known = KNOWN.iter().map(|(key, operator, values)| ToleratedFile {
            key: (*key).to_owned(),
            operator: Some(*operator),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        });
        let known = known.map(|row| Self::row(&row, &FieldPath::new()));
        let rows = file.tolerated.iter().enumerate().map(|(index, row)| {
            let path = FieldPath::of(&["registration", "tolerated"]).index(index);
            Self::row(row, &path)
        });
        known.chain(rows).collect()
    }

    fn row(written: &ToleratedFile, path: &FieldPath) -> Result<Self, PolicyError> {
        let wrong = |member: &str, message: &str| PolicyError {
            path: path.clone().key(member),
            message: message.to_owned(),
        };
        if written.key.is_empty() {
            return Err(wrong("key", "is empty; it is the key of a label"));
        }
        if written.operator == Some(Excluding::DoesNotExist) && !written.values.is_empty() {
            return Err(wrong("values", "go with the operator NotIn"));
        }
        if written.key == NAME && written.values.is_empty() {
            return Err(wrong(
                "values",
                "name no namespace: every namespace has this label, so that all could be left out",
            ));
        }
        let values = written.values.iter().enumerate().map(|(index, value)| {
            Pattern::new(value).map_err(|message| PolicyError {
                path: path.clone().key("values").index(index),
                message,
            })
        });
        Ok(Self {
            key: written.key.clone(),
            operator: written.operator,
            values: values.collect::<Result<_, _>>()?,
        })
    }

    /// Whether it covers `key NotIn [value]`.
    pub fn covers_value(&self, key: &str, value: &str) -> bool {
        self.key == key
            && self.operator != Some(Excluding::DoesNotExist)
            && (self.values.is_empty() || self.values.iter().any(|one| one.matches(value)))
    }

    /// Whether it covers `key DoesNotExist`.
    pub fn covers_absence(&self, key: &str) -> bool {
        self.key == key
            && self.operator != Some(Excluding::NotIn)
            // Values say which namespaces may be left out, and this leaves out more.
            && self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::policy::Policy;

    #[test]
    fn a_row_that_could_leave_out_everything_or_says_nothing_is_refused() {
        for (row, wrong) in [
            (
                json!({"key": ""}),
                "registration.tolerated[0].key: is empty",
            ),
            (
                json!({"key": "kubernetes.io/metadata.name"}),
                "registration.tolerated[0].values: name no namespace",
            ),
            (
                json!({"key": "a", "operator": "DoesNotExist", "values": ["b"]}),
                "registration.tolerated[0].values: go with the operator NotIn",
            ),
            (
                json!({"key": "a", "operator": "In"}),
                "registration.tolerated[0].operator: unknown variant `In`",
            ),
            (
                json!({"key": "a", "values": ["["]}),
                "registration.tolerated[0].values[0]: \"[\" is no pattern",
            ),
        ] {
            let document = json!({
                "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
                "registration": {"tolerated": [row]},
            });
            let error = Policy::from_document(&document).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{error}");
        }
    }
}
