//! What others changed in the entries of the webhook configurations.
//!
//! Entries are compared as JSON, field by field, so that a field that this version does not know is
//! seen too. What the API server fills in by itself is no difference.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::policy::Tolerated;

/// How the names of our own entries end. An entry with another name belongs to whoever added it, and
/// has no say in what is sent to ours.
const OURS: &str = ".gangplank.dev";

/// An entry that is missing, or that is not one of ours any more.
pub const ENTRY: &str = "entry";

/// The order of the entries.
pub const ORDER: &str = "order";

/// A field that is not known here.
pub const OTHER: &str = "other";

/// The fields of an entry, besides its name (k8s.io/api admissionregistration/v1).
const FIELDS: [&str; 11] = [
    "admissionReviewVersions",
    "clientConfig",
    "failurePolicy",
    "matchConditions",
    "matchPolicy",
    "namespaceSelector",
    "objectSelector",
    "reinvocationPolicy",
    "rules",
    "sideEffects",
    "timeoutSeconds",
];

/// Something in our entries that is not as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The name of the entry; empty where it is about all of them.
    pub entry: String,
    /// The field, or [`ENTRY`], [`ORDER`] or [`OTHER`].
    pub field: &'static str,
}

/// How entries compare with what is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What is not as it is wanted.
    pub differences: BTreeSet<Difference>,
    /// Entry and expression of what others added and may add.
    pub tolerated: BTreeSet<(String, String)>,
    /// The names of the entries that are not ours.
    pub foreign: BTreeSet<String>,
}

/// Compares the entries of a configuration with what is wanted.
pub fn compare(seen: &[Value], wanted: &[Value], tolerated: &[Tolerated]) -> Comparison {
    let mut comparison = Comparison::default();
    let of = |entry: &str, field| Difference {
        entry: entry.to_owned(),
        field,
    };
    for entry in wanted {
        let name = name(entry);
        let Some(there) = find(seen, name) else {
            comparison.differences.insert(of(name, ENTRY));
            continue;
        };
        let (there, here) = (complete(there), complete(&with_ca_bundle(entry, there)));
        let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
        for key in keys {
            if there.get(key) == here.get(key) {
                continue;
            }
            if key == "namespaceSelector"
                && let Some(added) = added(there.get(key), here.get(key), tolerated)
            {
                let added = added.into_iter().map(|text| (name.to_owned(), text));
                comparison.tolerated.extend(added);
                continue;
            }
            let known = FIELDS.iter().find(|field| *field == key);
            let field = known.copied().unwrap_or(OTHER);
            comparison.differences.insert(of(name, field));
        }
    }
    for entry in seen {
        let name = name(entry);
        if find(wanted, name).is_some() {
            continue;
        }
        if name.ends_with(OURS) {
            comparison.differences.insert(of(name, ENTRY));
        } else {
            comparison.foreign.insert(name.to_owned());
        }
    }
    let both = |these: &[Value], those: &[Value]| -> Vec<String> {
        let names = these.iter().map(name);
        let names = names.filter(|name| find(those, name).is_some());
        names.map(str::to_owned).collect()
    };
    if both(seen, wanted) != both(wanted, seen) {
        comparison.differences.insert(of("", ORDER));
    }
    comparison
}

/// The entries to write: ours as they are wanted, but for what is to be `kept` as it is, and with what
/// others may add; then the entries of others.
pub fn merge(
    seen: &[Value],
    wanted: &[Value],
    tolerated: &[Tolerated],
    kept: &BTreeSet<Difference>,
) -> Vec<Value> {
    let is_kept = |entry: &str, field: &'static str| {
        kept.contains(&Difference {
            entry: entry.to_owned(),
            field,
        })
    };
    let mut merged = Vec::new();
    for entry in wanted {
        let name = name(entry);
        let Some(there) = find(seen, name) else {
            if !is_kept(name, ENTRY) {
                merged.push(entry.clone());
            }
            continue;
        };
        let mut entry = with_ca_bundle(entry, there);
        if let Some(fields) = entry.as_object_mut() {
            if let Some(selector) = there.get("namespaceSelector") {
                let selector = selected(selector, fields.get("namespaceSelector"), tolerated);
                fields.insert("namespaceSelector".to_owned(), selector);
            }
            for (key, value) in there.as_object().into_iter().flatten() {
                let known = FIELDS.iter().find(|field| *field == key);
                if key != "name" && is_kept(name, known.copied().unwrap_or(OTHER)) {
                    fields.insert(key.clone(), value.clone());
                }
            }
            for field in FIELDS {
                if is_kept(name, field) && there.get(field).is_none() {
                    fields.remove(field);
                }
            }
        }
        merged.push(entry);
    }
    let others = seen.iter().filter(|entry| {
        let name = name(entry);
        find(wanted, name).is_none() && (!name.ends_with(OURS) || is_kept(name, ENTRY))
    });
    merged.extend(others.cloned());
    merged
}

fn name(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or("")
}

fn find<'e>(entries: &'e [Value], named: &str) -> Option<&'e Value> {
    entries.iter().find(|entry| name(entry) == named)
}

/// An entry as it is wanted, with the certificates that are there where somebody else writes them.
fn with_ca_bundle(wanted: &Value, there: &Value) -> Value {
    let mut entry = wanted.clone();
    if let (Some(client), Some(bundle)) = (
        entry.get_mut("clientConfig").and_then(Value::as_object_mut),
        there.pointer("/clientConfig/caBundle"),
    ) {
        client.entry("caBundle").or_insert_with(|| bundle.clone());
    }
    entry
}

/// An entry with what the API server fills in
/// (kubernetes pkg/apis/admissionregistration/v1/defaults.go), and without what says nothing.
fn complete(entry: &Value) -> Map<String, Value> {
    let mut fields = entry.as_object().cloned().unwrap_or_default();
    fields.remove("name");
    for (field, default) in [
        ("failurePolicy", json!("Fail")),
        ("matchConditions", json!([])),
        ("matchPolicy", json!("Equivalent")),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({})),
        ("reinvocationPolicy", json!("Never")),
        ("rules", json!([])),
        ("timeoutSeconds", json!(10)),
    ] {
        fields.entry(field).or_insert(default);
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        if let Some(selector) = fields.get_mut(selector).and_then(Value::as_object_mut) {
            selector.retain(|_, value| *value != json!({}) && *value != json!([]));
        }
    }
    for rule in fields
        .get_mut("rules")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        rule.entry("scope").or_insert(json!("*"));
    }
    if let Some(service) = fields
        .get_mut("clientConfig")
        .and_then(|client| client.get_mut("service"))
        .and_then(Value::as_object_mut)
    {
        service.entry("port").or_insert(json!(443));
    }
    fields
}

/// An expression of a label selector.
#[derive(Debug, PartialEq, Eq)]
struct Expression<'e> {
    key: &'e str,
    operator: &'e str,
    values: BTreeSet<&'e str>,
}

impl std::fmt::Display for Expression<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.key, self.operator)?;
        if !self.values.is_empty() {
            let values: Vec<&str> = self.values.iter().copied().collect();
            write!(f, " [{}]", values.join(", "))?;
        }
        Ok(())
    }
}

fn expression(value: &Value) -> Expression<'_> {
    let text = |member: &str| value.get(member).and_then(Value::as_str).unwrap_or("");
    let values = value.get("values").and_then(Value::as_array);
    Expression {
        key: text("key"),
        operator: text("operator"),
        values: values
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
    }
}

fn expressions(selector: Option<&Value>) -> &[Value] {
    selector
        .and_then(|selector| selector.get("matchExpressions")?.as_array())
        .map_or(&[], Vec::as_slice)
}

/// Whether an expression leaves out nothing but what ours leave out, and what others may.
fn may_be_added(
    expression: &Expression<'_>,
    wanted: &[Expression<'_>],
    tolerated: &[Tolerated],
) -> bool {
    let key = expression.key;
    let is_wanted = |value: &str| {
        let mut ours = wanted
            .iter()
            .filter(|ours| ours.key == key && ours.operator == "NotIn");
        ours.any(|ours| ours.values.contains(value))
    };
    match expression.operator {
        "DoesNotExist" => tolerated.iter().any(|row| row.covers_absence(key)),
        "NotIn" => expression.values.iter().all(|value| {
            is_wanted(value) || tolerated.iter().any(|row| row.covers_value(key, value))
        }),
        _ => false,
    }
}

/// What was added to a selector, where all of it may be and all that is wanted is there.
fn added(
    seen: Option<&Value>,
    wanted: Option<&Value>,
    tolerated: &[Tolerated],
) -> Option<Vec<String>> {
    let labels =
        |selector: Option<&Value>| selector.and_then(|one| one.get("matchLabels").cloned());
    if labels(seen) != labels(wanted) {
        return None;
    }
    let seen: Vec<_> = expressions(seen).iter().map(expression).collect();
    let wanted: Vec<_> = expressions(wanted).iter().map(expression).collect();
    let holds = |ours: &Expression<'_>| {
        seen.iter().any(|there| {
            there == ours
                || there.key == ours.key
                    && there.operator == "NotIn"
                    && ours.operator == "NotIn"
                    && there.values.is_superset(&ours.values)
        })
    };
    if !wanted.iter().all(holds) {
        return None;
    }
    let others: Vec<_> = seen
        .iter()
        .filter(|there| !wanted.contains(there))
        .collect();
    let may = |there: &&Expression<'_>| may_be_added(there, &wanted, tolerated);
    others
        .iter()
        .all(may)
        .then(|| others.iter().map(ToString::to_string).collect())
}

/// The selector to write: the one that is there where it will do, else ours with what others may add.
fn selected(seen: &Value, wanted: Option<&Value>, tolerated: &[Tolerated]) -> Value {
    if added(Some(seen), wanted, tolerated).is_some() {
        return seen.clone();
    }
    let ours: Vec<_> = expressions(wanted).iter().map(expression).collect();
    let mut all = expressions(wanted).to_vec();
    for value in expressions(Some(seen)) {
        let there = expression(value);
        if !ours.contains(&there) && may_be_added(&there, &ours, tolerated) {
            all.push(value.clone());
        }
    }
    let mut selector = wanted.cloned().unwrap_or_else(|| json!({}));
    if let Some(members) = selector.as_object_mut()
        && !all.is_empty()
    {
        members.insert("matchExpressions".to_owned(), Value::Array(all));
    }
    selector
}

/// Whether fields of a manager (`FieldsV1`) hold what is different.
pub fn holds(fields: &Value, difference: &Difference) -> bool {
    let key = format!("k:{}", json!({"name": difference.entry}));
    let field = format!("f:{}", difference.field);
    let entry = fields.get("f:webhooks").and_then(|all| all.get(&key));
    match difference.field {
        ENTRY => entry.is_some(),
        ORDER => false,
        OTHER => entry.and_then(Value::as_object).is_some_and(|entry| {
            entry.keys().any(|key| {
                key.strip_prefix("f:")
                    .is_some_and(|key| key != "name" && !FIELDS.contains(&key))
            })
        }),
        _ => entry.is_some_and(|entry| entry.get(&field).is_some()),
    }
}

/// Who besides `ours` wrote something last, by the managed fields: each manager, when it wrote, and its
/// fields (`FieldsV1`). None where none of them holds it.
pub fn writer<'m, T: Ord>(
    managed: impl Iterator<Item = (&'m str, T, &'m Value)>,
    holds: impl Fn(&Value) -> bool,
    ours: &[&str],
) -> Option<&'m str> {
    managed
        .filter(|(manager, _, fields)| !ours.contains(manager) && holds(fields))
        .max_by(|(_, one, _), (_, other, _)| one.cmp(other))
        .map(|(manager, _, _)| manager)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn entry(name: &str) -> Value {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://a/validate", "caBundle": "QQ=="},
            "failurePolicy": "Fail",
            "matchConditions": [{"name": "one", "expression": "true"}],
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn",
                    "values": ["kube-system", "gangplank"]},
            ]},
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["deployments"], "scope": "Namespaced"}],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        })
    }

    fn wanted() -> Vec<Value> {
        vec![entry("a.gangplank.dev"), entry("b.gangplank.dev")]
    }

    /// Field by field what a change makes different in the first entry.
    fn fields(change: impl FnOnce(&mut Vec<Value>)) -> Vec<(String, &'static str)> {
        let wanted = wanted();
        let mut seen = wanted.clone();
        change(&mut seen);
        let policy = Policy::default();
        let comparison = compare(&seen, &wanted, policy.tolerated());
        let merged = merge(&seen, &wanted, policy.tolerated(), &BTreeSet::new());
        let again = compare(&merged, &wanted, policy.tolerated());
        assert_eq!(again.differences, BTreeSet::new(), "{merged:#?}");
        assert_eq!(again.tolerated, comparison.tolerated, "{merged:#?}");
        assert_eq!(again.foreign, comparison.foreign, "{merged:#?}");
        let kept = merge(&seen, &wanted, policy.tolerated(), &comparison.differences);
        let kept = compare(&kept, &wanted, policy.tolerated()).differences;
        let left: BTreeSet<_> = comparison.differences.iter().cloned().collect();
        assert_eq!(
            kept.into_iter().collect::<Vec<_>>(),
            left.into_iter()
                .filter(|one| one.field != ORDER)
                .collect::<Vec<_>>()
        );
        let differences = comparison.differences.into_iter();
        differences.map(|one| (one.entry, one.field)).collect()
    }

    fn first(field: &'static str) -> Vec<(String, &'static str)> {
        vec![("a.gangplank.dev".to_owned(), field)]
    }

    #[test]
    fn every_change_within_our_entries_is_a_difference() {
        for (pointer, value, field) in [
            (
                "/matchConditions/-",
                json!({"name": "z", "expression": "false"}),
                "matchConditions",
            ),
            (
                "/objectSelector",
                json!({"matchLabels": {"a": "b"}}),
                "objectSelector",
            ),
            ("/rules", json!([]), "rules"),
            ("/rules/0/scope", json!("Cluster"), "rules"),
            ("/rules/0/operations", json!(["DELETE"]), "rules"),
            ("/matchPolicy", json!("Exact"), "matchPolicy"),
            ("/failurePolicy", json!("Ignore"), "failurePolicy"),
            ("/timeoutSeconds", json!(1), "timeoutSeconds"),
            ("/clientConfig/url", json!("https://b"), "clientConfig"),
            ("/clientConfig/caBundle", json!("Qg=="), "clientConfig"),
            ("/sideEffects", json!("NoneOnDryRun"), "sideEffects"),
            ("/somethingNew", json!(true), OTHER),
            (
                "/namespaceSelector/matchLabels",
                json!({"a": "b"}),
                "namespaceSelector",
            ),
            (
                "/namespaceSelector/matchExpressions",
                json!([]),
                "namespaceSelector",
            ),
        ] {
            let changed = fields(|seen| {
                let patch = json!([{"op": "add", "path": format!("/0{pointer}"), "value": value}]);
                let mut list = Value::Array(std::mem::take(seen));
                json_patch::patch(
                    &mut list,
                    &serde_json::from_value::<json_patch::Patch>(patch).unwrap(),
                )
                .unwrap();
                *seen = list.as_array().unwrap().clone();
            });
            assert_eq!(changed, first(field), "{pointer}");
        }
        assert_eq!(fields(|seen| drop(seen.remove(0))), first(ENTRY));
        assert_eq!(fields(|seen| seen.swap(0, 1)), [(String::new(), ORDER)]);
        assert_eq!(
            fields(|seen| seen.push(entry("old.gangplank.dev"))),
            [("old.gangplank.dev".to_owned(), ENTRY)]
        );
        assert_eq!(fields(|seen| seen.insert(0, entry("x.example.com"))), []);
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        assert_eq!(
            fields(|seen| {
                seen[0]["objectSelector"] = json!({});
                seen[1]["reinvocationPolicy"] = json!("Never");
            }),
            []
        );
        // Certificates that somebody else writes.
        let mut wanted = wanted();
        wanted[0]["clientConfig"] = json!({"url": "https://a/validate"});
        let seen = self::wanted();
        assert_eq!(compare(&seen, &wanted, &[]).differences, BTreeSet::new());
        assert_eq!(
            merge(&seen, &wanted, &[], &BTreeSet::new())[0]["clientConfig"]["caBundle"],
            "QQ=="
        );
    }

    #[test]
    fn expressions_that_clouds_add_stay_and_others_do_not() {
        let policy = crate::policy::Policy::from_document(&json!({
            "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
            "registration": {"tolerated": [
                {"key": "site/managed", "values": ["sys-*"]}, {"key": "any"},
            ]},
        }))
        .unwrap();
        let name = "kubernetes.io/metadata.name";
        for (expression, stays) in [
            (
                json!({"key": "control-plane", "operator": "DoesNotExist"}),
                true,
            ),
            (
                json!({"key": "control-plane", "operator": "NotIn", "values": ["true"]}),
                true,
            ),
            (
                json!({"key": "control-plane", "operator": "NotIn", "values": ["x"]}),
                false,
            ),
            (json!({"key": "control-plane", "operator": "Exists"}), false),
            (
                json!({"key": "kubernetes.azure.com/managedby", "operator": "NotIn", "values": ["aks"]}),
                true,
            ),
            (
                json!({"key": name, "operator": "NotIn",
                    "values": ["kube-system", "gke-gmp-system", "gke-managed-cim"]}),
                true,
            ),
            (
                json!({"key": name, "operator": "NotIn", "values": ["kube-system", "team-a"]}),
                false,
            ),
            (json!({"key": name, "operator": "DoesNotExist"}), false),
            (
                json!({"key": name, "operator": "In", "values": ["kube-system"]}),
                false,
            ),
            (
                json!({"key": "site/managed", "operator": "NotIn", "values": ["sys-a"]}),
                true,
            ),
            (
                json!({"key": "site/managed", "operator": "NotIn", "values": ["team-a"]}),
                false,
            ),
            (
                json!({"key": "site/managed", "operator": "DoesNotExist"}),
                false,
            ),
            (json!({"key": "any", "operator": "DoesNotExist"}), true),
            (
                json!({"key": "any", "operator": "NotIn", "values": ["a"]}),
                true,
            ),
        ] {
            let wanted = wanted();
            let mut seen = wanted.clone();
            seen[0]["namespaceSelector"]["matchExpressions"]
                .as_array_mut()
                .unwrap()
                .push(expression.clone());
            let comparison = compare(&seen, &wanted, policy.tolerated());
            assert_eq!(comparison.differences.is_empty(), stays, "{expression}");
            assert_eq!(
                comparison.tolerated.len(),
                usize::from(stays),
                "{expression}"
            );
            let merged = merge(&seen, &wanted, policy.tolerated(), &BTreeSet::new());
            let mut expected = if stays { seen.clone() } else { wanted.clone() };
            assert_eq!(merged, expected, "{expression}");
            // With something else to put right, it stays all the same.
            seen[0]["failurePolicy"] = json!("Ignore");
            let merged = merge(&seen, &wanted, policy.tolerated(), &BTreeSet::new());
            expected[0]["failurePolicy"] = json!("Fail");
            assert_eq!(merged, expected, "{expression}");
        }
    }

    #[test]
    fn the_last_writer_of_a_field_is_found() {
        let fields =
            |field: &str| json!({"f:webhooks": {r#"k:{"name":"a.gangplank.dev"}"#: {field: {}}}});
        let (old, new, ours, elsewhere) = (
            fields("f:rules"),
            fields("f:rules"),
            fields("f:rules"),
            fields("f:failurePolicy"),
        );
        let managed = [
            ("new", 2, &new),
            ("old", 1, &old),
            ("gangplank", 4, &ours),
            ("x", 3, &elsewhere),
        ];
        let rules = Difference {
            entry: "a.gangplank.dev".to_owned(),
            field: "rules",
        };
        let last = |difference: &Difference| {
            writer(
                managed.into_iter(),
                |fields| holds(fields, difference),
                &["gangplank"],
            )
        };
        assert_eq!(last(&rules), Some("new"));
        let order = Difference {
            entry: String::new(),
            field: ORDER,
        };
        assert_eq!(last(&order), None);
    }
}
