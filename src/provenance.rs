//! Who wrote a value: somebody, or a default.
//!
//! The API server applies the defaults of CRDs and built-in types *before* admission, and again
//! after every patch, so that a field nobody wrote arrives filled in
//! (k8s.io/apiextensions-apiserver `customresource_handler.go`, k8s.io/apiserver
//! `endpoints/handlers/create.go` and `admission/plugin/webhook/mutating/dispatcher.go`, 1.36).
//! What tells the two apart differs by client: server-side apply keeps in `managedFields` exactly
//! what its user wrote, client-side apply keeps the user's document in an annotation, and everything
//! else keeps nothing. On UPDATE only the evidence of this very request counts.
//!
//! Paths are those of the object under review. `managedFields` and last-applied speak the writer's
//! API version, which may be another one, so that only the presence of a field is read from them,
//! never its value; the fields that any rule fills have kept their place across versions.

use serde_json::{Map, Value};

use crate::subject::{Door, Operation, Subject, at, metadata_text};

/// Where client-side `kubectl apply` keeps the document it applied.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The field managers of commands whose changes are somebody's deliberate writing of single fields
/// (k8s.io/kubectl `cmd/edit` and `cmd/patch`). Neither sends a whole manifest.
const DELIBERATE: [&str; 2] = ["kubectl-edit", "kubectl-patch"];

/// Who wrote a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// Somebody wrote it, as far as can be told: it is never changed.
    Explicit,
    /// It is known that nobody wrote it.
    Defaulted,
    /// A whole block of defaults stands there, which nobody would have written out.
    Presumed,
    /// It has its default value, and nothing tells whether somebody wrote it.
    Unknown,
    /// It is what the old object held: not this write's doing.
    Unchanged,
}

impl Provenance {
    /// Whether a rule may put another value in its place.
    #[must_use]
    pub const fn fillable(self) -> bool {
        matches!(self, Self::Defaulted | Self::Presumed)
    }
}

/// Fields whose defaults arrive together where nobody wrote any of them.
#[derive(Clone, Copy, Debug)]
pub struct DefaultBlock<'b> {
    /// Path and default of each; `null` where the default is to be absent.
    pub fields: &'b [(&'b [&'b str], Value)],
}

impl DefaultBlock<'_> {
    /// Whether every field of the block has its default in that object.
    pub fn is_whole_in(&self, object: &Value) -> bool {
        self.fields
            .iter()
            .all(|(path, default)| has_default(written(object, path), default))
    }
}

/// Who wrote what stands at `path`, a field whose default is `default` (`null` where it has none).
/// With a `block`, defaults may also be told by all of them standing there together.
///
/// A step of the path that meets a list is taken as an index.
pub fn of_field(
    subject: &Subject,
    path: &[&str],
    default: &Value,
    block: Option<&DefaultBlock<'_>>,
) -> Provenance {
    let now = written(&subject.value, path);
    match (subject.door, subject.operation, &subject.old) {
        // The file itself tells.
        (Door::Check, ..) => {
            if now.is_some() {
                Provenance::Explicit
            } else {
                Provenance::Defaulted
            }
        }
        // What lives in a cluster is nobody's present writing.
        (Door::Audit, ..) => Provenance::Unchanged,
        (_, Operation::Update, Some(old)) => on_update(&subject.value, old, path, default, block),
        (_, Operation::Update, None) => Provenance::Unknown,
        _ => on_create(&subject.value, path, default, block),
    }
}

/// Whether this UPDATE resets to its default (`None`: removes) what a fill had put there, so that
/// the filling rule has to put it back: `kubectl replace` of the file that was once created must
/// change nothing. `fill` is the value that the rule would fill in.
///
/// It is not restored where there is evidence of writing: the old object's own manifest named the
/// field, so that the value was never ours, or this request names it. For a field that is filled
/// on CREATE without evidence too (a presumed block, a key that was absent); see
/// [`carry_over_proven`] for the others.
pub fn carry_over(subject: &Subject, path: &[&str], fill: &Value, default: Option<&Value>) -> bool {
    restores(subject, path, fill, default) && !old_named(subject, path).unwrap_or(false)
}

/// Like [`carry_over`], for a lone value that is filled on CREATE only with evidence that nobody
/// wrote it, such as `terminationGracePeriodSeconds`: an old object without such evidence held
/// somebody's own value.
pub fn carry_over_proven(
    subject: &Subject,
    path: &[&str],
    fill: &Value,
    default: Option<&Value>,
) -> bool {
    restores(subject, path, fill, default) && !old_named(subject, path).unwrap_or(true)
}

/// Whether the manifest behind an object names the field: what server-side appliers own, else the
/// document of client-side apply. `None` where nothing tells.
pub fn was_named(object: &Value, path: &[&str]) -> Option<bool> {
    Evidence::of(object).names(object, path)
}

fn old_named(subject: &Subject, path: &[&str]) -> Option<bool> {
    was_named(subject.old.as_deref()?, path)
}

fn restores(subject: &Subject, path: &[&str], fill: &Value, default: Option<&Value>) -> bool {
    let Some(old) = subject.old.as_deref() else {
        return false;
    };
    if subject.operation != Operation::Update || matches!(subject.door, Door::Check | Door::Audit) {
        return false;
    }
    let default = default.unwrap_or(&Value::Null);
    let now = written(&subject.value, path);
    if written(old, path) != Some(fill) || !has_default(now, default) || now == Some(fill) {
        return false;
    }
    let alone = [(path, default.clone())];
    of_field(
        subject,
        path,
        default,
        Some(&DefaultBlock { fields: &alone }),
    )
    .fillable()
}

fn on_create(
    object: &Value,
    path: &[&str],
    default: &Value,
    block: Option<&DefaultBlock<'_>>,
) -> Provenance {
    let now = written(object, path);
    if now.is_none() {
        return Provenance::Defaulted;
    }
    if !has_default(now, default) {
        return Provenance::Explicit;
    }
    match was_named(object, path) {
        Some(true) => Provenance::Explicit,
        Some(false) => Provenance::Defaulted,
        None if block.is_some_and(|block| block.is_whole_in(object)) => Provenance::Presumed,
        None => Provenance::Unknown,
    }
}

fn on_update(
    new: &Value,
    old: &Value,
    path: &[&str],
    default: &Value,
    block: Option<&DefaultBlock<'_>>,
) -> Provenance {
    let (now, before) = (written(new, path), written(old, path));
    if now == before || (has_default(now, default) && has_default(before, default)) {
        return Provenance::Unchanged;
    }
    if !has_default(now, default) {
        return Provenance::Explicit;
    }
    // It has gone back to the default. A server-side apply?
    if let Some(owned) = applied_just_now(new, old, path) {
        return match owned {
            Owned::Yes => Provenance::Explicit,
            Owned::No => Provenance::Defaulted,
            Owned::CannotTell => Provenance::Unknown,
        };
    }
    // A client-side apply writes a new last-applied document.
    let (document, earlier) = (last_applied(new), last_applied(old));
    if let Some(document) = &document
        && earlier.as_ref() != Some(document)
    {
        return if written(document, path).is_some() {
            Provenance::Explicit
        } else {
            Provenance::Defaulted
        };
    }
    let deliberate = entries(new).any(|entry| {
        DELIBERATE.contains(&entry.text("manager"))
            && entry.acted_since(old)
            && owns(entry.fields(), new, path) == Owned::Yes
    });
    if deliberate {
        return Provenance::Explicit;
    }
    // What is left is a PUT or a patch of some client that leaves no trace.
    if block.is_some_and(|block| block.is_whole_in(new)) {
        return Provenance::Presumed;
    }
    // A bare file was put over an object whose own manifest did not name the field: neither the
    // annotations nor the identity of the object come with it.
    let bare = (document.is_none() && earlier.is_some())
        || (written(old, &["metadata", "uid"]).is_some()
            && written(new, &["metadata", "uid"]).is_none());
    // The rest of the block must be what that manifest said, or it is another file.
    let same_file = |(path, default): &(&[&str], Value)| match was_named(old, path) {
        Some(true) => written(new, path) == written(old, path),
        _ => has_default(written(new, path), default),
    };
    if bare
        && was_named(old, path) == Some(false)
        && block.is_none_or(|block| block.fields.iter().all(same_file))
    {
        return Provenance::Presumed;
    }
    Provenance::Explicit
}

/// What an object keeps of how it was written.
enum Evidence<'v> {
    /// The fields of server-side appliers.
    Applied(Vec<&'v Value>),
    /// The document of client-side apply.
    LastApplied(Value),
    /// Nothing.
    None,
}

impl<'v> Evidence<'v> {
    fn of(object: &'v Value) -> Self {
        let applied: Vec<&Value> = entries(object)
            .filter(|entry| entry.applies())
            .map(Entry::fields)
            .collect();
        if applied.is_empty() {
            last_applied(object).map_or(Self::None, Self::LastApplied)
        } else {
            Self::Applied(applied)
        }
    }

    /// Whether what was written names the field; `None` where that cannot be told.
    fn names(&self, object: &Value, path: &[&str]) -> Option<bool> {
        match self {
            Self::Applied(all) => {
                let mut answer = Some(false);
                for fields in all {
                    match owns(fields, object, path) {
                        Owned::Yes => return Some(true),
                        Owned::No => {}
                        Owned::CannotTell => answer = None,
                    }
                }
                answer
            }
            Self::LastApplied(document) => Some(written(document, path).is_some()),
            Self::None => None,
        }
    }
}

/// One entry of `managedFields`, for the object itself and not a subresource.
#[derive(Clone, Copy)]
struct Entry<'v>(&'v Map<String, Value>);

static NOTHING: Value = Value::Null;

impl<'v> Entry<'v> {
    fn text(self, key: &str) -> &'v str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn applies(self) -> bool {
        self.text("operation") == "Apply"
    }

    fn fields(self) -> &'v Value {
        self.0.get("fieldsV1").unwrap_or(&NOTHING)
    }

    /// The same manager's entry in another list of entries.
    fn counterpart(self, object: &Value) -> Option<Entry<'_>> {
        entries(object).find(|other| {
            ["manager", "operation", "apiVersion"]
                .iter()
                .all(|key| other.text(key) == self.text(key))
        })
    }

    /// Whether the manager wrote the object since: its entry is new, later, or holds more.
    fn acted_since(self, old: &Value) -> bool {
        self.counterpart(old).is_none_or(|before| {
            before.text("time") != self.text("time") || gained(self.fields(), before.fields())
        })
    }
}

fn entries(object: &Value) -> impl Iterator<Item = Entry<'_>> {
    at(object, &["metadata", "managedFields"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.as_object().map(Entry))
        .filter(|entry| entry.text("subresource").is_empty())
}

/// Where this request is a server-side apply: whether its applier wrote the field. The API server
/// puts the entry's new time and fields into the object before it calls webhooks.
fn applied_just_now(new: &Value, old: &Value, path: &[&str]) -> Option<Owned> {
    // Times are in seconds. An applier that drops fields within the second of its last write only
    // loses them, which it also does when another client's update takes them; that client's own
    // entry then shows it.
    let updated = entries(new).any(|entry| !entry.applies() && entry.acted_since(old));
    let lost = |entry: Entry<'_>| {
        entry
            .counterpart(old)
            .is_some_and(|before| before.fields() != entry.fields())
    };
    entries(new)
        .filter(|entry| entry.applies() && (entry.acted_since(old) || (!updated && lost(*entry))))
        .map(|entry| owns(entry.fields(), new, path))
        .max()
}

/// Whether a `fieldsV1` set holds something that the other does not.
fn gained(fields: &Value, before: &Value) -> bool {
    let (Some(fields), Some(before)) = (fields.as_object(), before.as_object()) else {
        return false;
    };
    fields
        .iter()
        .any(|(key, below)| before.get(key).is_none_or(|before| gained(below, before)))
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owned {
    No,
    CannotTell,
    Yes,
}

/// Whether a `fieldsV1` set holds the field. Lists are held as a whole, by key or by value
/// (sigs.k8s.io/structured-merge-diff v6 `fieldpath/serialize-pe.go`).
fn owns(fields: &Value, object: &Value, path: &[&str]) -> Owned {
    let (mut fields, mut object) = (fields, Some(object));
    for step in path {
        let Some(members) = fields.as_object() else {
            return Owned::No;
        };
        if let Some(Value::Array(list)) = object {
            if members.is_empty() {
                // The whole list is one value of its owner, who may or may not have named the
                // field in it.
                return Owned::CannotTell;
            }
            let item = step.parse::<usize>().ok().and_then(|index| list.get(index));
            let below = item.and_then(|item| {
                members
                    .iter()
                    .find(|(key, _)| names_item(key, step, item))
                    .map(|(_, below)| below)
            });
            let Some(below) = below else { return Owned::No };
            (fields, object) = (below, item);
        } else {
            let Some(below) = members.get(&format!("f:{step}")) else {
                return Owned::No;
            };
            (fields, object) = (
                below,
                object.and_then(|object| object.as_object()?.get(*step)),
            );
        }
    }
    Owned::Yes
}

/// Whether a list step of `fieldsV1` (`k:{"name":"x"}`, `v:"x"`, `i:0`) means that item.
fn names_item(key: &str, index: &str, item: &Value) -> bool {
    if let Some(at) = key.strip_prefix("i:") {
        return at == index;
    }
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    if let Some(keys) = key.strip_prefix("k:").and_then(parse) {
        return keys.as_object().is_some_and(|keys| {
            keys.iter()
                .all(|(name, value)| item.get(name).is_some_and(|held| held == value))
        });
    }
    key.strip_prefix("v:")
        .and_then(parse)
        .is_some_and(|value| &value == item)
}

/// The document that client-side apply kept, where it speaks of this very object.
pub fn last_applied(object: &Value) -> Option<Value> {
    let text = metadata_text(object, "annotations", LAST_APPLIED)?;
    let document: Value = serde_json::from_str(text).ok()?;
    // A manifest that was copied from another object brings that one's annotation along.
    let same = |keys: &[&str]| {
        let (here, there) = (at(object, keys), at(&document, keys));
        here.is_none() || there.is_none() || here == there
    };
    (document.is_object() && same(&["kind"]) && same(&["metadata", "name"])).then_some(document)
}

/// What stands at a path. A `null` is as good as nothing: the API server drops it before it
/// applies defaults.
fn written<'v>(object: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter()
        .try_fold(object, |at, step| match at {
            Value::Object(members) => members.get(*step),
            Value::Array(list) => list.get(step.parse::<usize>().ok()?),
            _ => None,
        })
        .filter(|value| !value.is_null())
}

fn has_default(value: Option<&Value>, default: &Value) -> bool {
    value.is_none_or(|value| value == default)
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

    const POLICY: &[&str] = &["spec", "disruption", "consolidationPolicy"];
    const AFTER: &[&str] = &["spec", "disruption", "consolidateAfter"];
    const GRACE: &[&str] = &["spec", "template", "spec", "terminationGracePeriodSeconds"];

    fn block() -> [(&'static [&'static str], Value); 3] {
        [
            (POLICY, json!("WhenEmptyOrUnderutilized")),
            (AFTER, json!("0s")),
            (
                &["spec", "disruption", "budgets"],
                json!([{"nodes": "10%"}]),
            ),
        ]
    }

    fn defaults() -> Value {
        json!({"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "0s",
               "budgets": [{"nodes": "10%"}]})
    }

    fn filled() -> Value {
        json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h",
               "budgets": [{"nodes": "10%"}]})
    }

    fn pool(disruption: Value) -> Value {
        json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool",
               "metadata": {"name": "p"}, "spec": {"disruption": disruption}})
    }

    fn with_last_applied(mut object: Value, document: &Value) -> Value {
        object["metadata"]["annotations"][LAST_APPLIED] = json!(document.to_string());
        object
    }

    fn entry(manager: &str, operation: &str, time: &str, paths: &[&[&str]]) -> Value {
        let mut fields = json!({});
        for path in paths {
            let mut at = &mut fields;
            for step in *path {
                at = &mut at[format!("f:{step}")];
            }
            *at = json!({});
        }
        json!({"manager": manager, "operation": operation, "apiVersion": "karpenter.sh/v1beta1",
               "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    fn managed(mut object: Value, entries: &[Value]) -> Value {
        object["metadata"]["managedFields"] = json!(entries);
        object
    }

    fn subject(value: Value, old: Option<Value>) -> Subject {
        let mut subject = Subject::from_manifest(Arc::new(value)).unwrap();
        subject.door = Door::Mutate;
        subject.operation = if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        };
        subject.old = old.map(Arc::new);
        subject
    }

    fn policy_of(value: Value, old: Option<Value>) -> Provenance {
        let fields = block();
        of_field(
            &subject(value, old),
            POLICY,
            &json!("WhenEmptyOrUnderutilized"),
            Some(&DefaultBlock { fields: &fields }),
        )
    }

    #[test]
    fn a_file_tells_by_itself_and_null_is_silence() {
        let check = |object| {
            let subject = Subject::from_manifest(Arc::new(object)).unwrap();
            of_field(&subject, POLICY, &json!("WhenEmptyOrUnderutilized"), None)
        };
        assert_eq!(check(pool(defaults())), Provenance::Explicit);
        assert_eq!(check(pool(json!({}))), Provenance::Defaulted);
        assert_eq!(
            check(pool(json!({"consolidationPolicy": null}))),
            Provenance::Defaulted
        );
        assert_eq!(check(pool(json!("text"))), Provenance::Defaulted);
    }

    #[test]
    fn on_create_a_server_side_applier_owns_what_it_wrote() {
        let silent = managed(pool(defaults()), &[entry("flux", "Apply", "t", &[AFTER])]);
        assert_eq!(policy_of(silent, None), Provenance::Defaulted);
        let said = managed(
            pool(defaults()),
            &[entry("flux", "Apply", "t", &[POLICY, AFTER])],
        );
        assert_eq!(policy_of(said, None), Provenance::Explicit);
        // Entries of other operations list defaults too; those of subresources speak of something
        // else.
        let created = managed(pool(defaults()), &[entry("helm", "Update", "t", &[POLICY])]);
        assert_eq!(policy_of(created, None), Provenance::Presumed);
        let mut status = entry("x", "Apply", "t", &[]);
        status["subresource"] = json!("status");
        assert_eq!(
            policy_of(managed(pool(defaults()), &[status]), None),
            Provenance::Presumed
        );
    }

    #[test]
    fn on_create_the_last_applied_document_tells() {
        let silent = with_last_applied(pool(defaults()), &pool(json!({"consolidateAfter": "0s"})));
        assert_eq!(policy_of(silent, None), Provenance::Defaulted);
        let said = with_last_applied(pool(defaults()), &pool(defaults()));
        assert_eq!(policy_of(said, None), Provenance::Explicit);
        let mut broken = pool(defaults());
        broken["metadata"]["annotations"][LAST_APPLIED] = json!("{");
        assert_eq!(policy_of(broken, None), Provenance::Presumed);
        let mut other = pool(json!({}));
        other["metadata"]["name"] = json!("another");
        let copied = with_last_applied(
            pool(json!({"consolidationPolicy": "WhenEmptyOrUnderutilized"})),
            &other,
        );
        assert_eq!(policy_of(copied, None), Provenance::Presumed);
    }

    #[test]
    fn on_create_without_evidence_a_whole_block_is_presumed_and_a_lone_value_unknown() {
        assert_eq!(policy_of(pool(defaults()), None), Provenance::Presumed);
        let mut partly = defaults();
        partly["consolidateAfter"] = json!("30s");
        assert_eq!(policy_of(pool(partly), None), Provenance::Unknown);
        assert_eq!(policy_of(pool(filled()), None), Provenance::Explicit);
        assert_eq!(policy_of(pool(json!({})), None), Provenance::Defaulted);
        let grace = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "spec": {"template": {"spec": {"terminationGracePeriodSeconds": 30}}}});
        assert_eq!(
            of_field(&subject(grace, None), GRACE, &json!(30), None),
            Provenance::Unknown
        );
    }

    #[test]
    fn on_update_what_did_not_change_is_not_this_writes_doing() {
        assert_eq!(
            policy_of(pool(defaults()), Some(pool(defaults()))),
            Provenance::Unchanged
        );
        assert_eq!(
            policy_of(pool(json!({})), Some(pool(defaults()))),
            Provenance::Unchanged
        );
        let balanced = json!({"consolidationPolicy": "Balanced"});
        assert_eq!(
            policy_of(pool(balanced), Some(pool(defaults()))),
            Provenance::Explicit
        );
    }

    #[test]
    fn a_patch_that_sets_the_default_after_a_fill_is_explicit() {
        let mut patched = filled();
        patched["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
        assert_eq!(
            policy_of(pool(patched.clone()), Some(pool(filled()))),
            Provenance::Explicit
        );
        // Also on an object that client-side or server-side apply made without naming it.
        let silent = pool(json!({}));
        assert_eq!(
            policy_of(
                with_last_applied(pool(patched.clone()), &silent),
                Some(with_last_applied(pool(filled()), &silent))
            ),
            Provenance::Explicit
        );
        let flux = entry("flux", "Apply", "t1", &[]);
        let patch = entry("kubectl-patch", "Update", "t2", &[POLICY]);
        assert_eq!(
            policy_of(
                managed(pool(patched), &[flux.clone(), patch.clone()]),
                Some(managed(pool(filled()), std::slice::from_ref(&flux)))
            ),
            Provenance::Explicit
        );
        // A patch that sets the whole block is known by its manager.
        assert_eq!(
            policy_of(
                managed(pool(defaults()), &[flux.clone(), patch]),
                Some(managed(pool(filled()), &[flux]))
            ),
            Provenance::Explicit
        );
    }

    #[test]
    fn a_patch_that_takes_the_field_from_an_applier_is_no_apply() {
        let mut patched = filled();
        patched["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
        let old = managed(
            pool(filled()),
            &[entry("argocd", "Apply", "t1", &[POLICY, AFTER])],
        );
        let new = managed(
            pool(patched),
            &[
                entry("argocd", "Apply", "t1", &[AFTER]),
                entry("some-client", "Update", "t2", &[POLICY]),
            ],
        );
        assert_eq!(policy_of(new, Some(old)), Provenance::Explicit);
    }

    #[test]
    fn an_update_within_the_second_of_another_is_no_apply() {
        let mut put = filled();
        put["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
        put["consolidateAfter"] = json!("5m");
        let old = managed(
            pool(filled()),
            &[
                entry("kubectl", "Apply", "t1", &[AFTER]),
                // It held the policy before a fill put it back.
                entry("kubectl-replace", "Update", "t1", &[POLICY]),
            ],
        );
        let new = managed(
            pool(put),
            &[
                entry("kubectl", "Apply", "t1", &[]),
                entry("kubectl-replace", "Update", "t1", &[POLICY, AFTER]),
            ],
        );
        assert_eq!(policy_of(new, Some(old)), Provenance::Explicit);
    }

    #[test]
    fn a_server_side_apply_that_drops_the_field_leaves_it_defaulted() {
        let mut dropped = filled();
        dropped["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
        let old = managed(
            pool(filled()),
            &[entry("flux", "Apply", "t1", &[POLICY, AFTER])],
        );
        for time in ["t1", "t2"] {
            let new = managed(
                pool(dropped.clone()),
                &[entry("flux", "Apply", time, &[AFTER])],
            );
            assert_eq!(
                policy_of(new, Some(old.clone())),
                Provenance::Defaulted,
                "{time}"
            );
        }
        let written = managed(
            pool(dropped),
            &[entry("flux", "Apply", "t2", &[POLICY, AFTER])],
        );
        assert_eq!(policy_of(written, Some(old)), Provenance::Explicit);
    }

    #[test]
    fn a_client_side_apply_tells_by_its_new_document() {
        let mut back = filled();
        back["consolidationPolicy"] = json!("WhenEmptyOrUnderutilized");
        let old = with_last_applied(pool(filled()), &pool(filled()));
        let silent =
            with_last_applied(pool(back.clone()), &pool(json!({"consolidateAfter": "1h"})));
        assert_eq!(policy_of(silent, Some(old.clone())), Provenance::Defaulted);
        let said = with_last_applied(pool(back.clone()), &pool(back));
        assert_eq!(policy_of(said, Some(old)), Provenance::Explicit);
    }

    #[test]
    fn a_put_that_brings_the_whole_block_back_is_presumed() {
        assert_eq!(
            policy_of(pool(defaults()), Some(pool(filled()))),
            Provenance::Presumed
        );
        let old = with_last_applied(pool(filled()), &pool(json!({})));
        assert_eq!(policy_of(pool(defaults()), Some(old)), Provenance::Presumed);
    }

    fn deployment(grace: i64) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
               "spec": {"template": {"spec": {"terminationGracePeriodSeconds": grace}}}})
    }

    #[test]
    fn a_bare_file_put_over_an_applied_object_resets_a_lone_value_silently() {
        let of = |new, old| of_field(&subject(new, Some(old)), GRACE, &json!(30), None);
        let silent = json!({"kind": "Deployment", "metadata": {"name": "d"}, "spec": {}});
        let applied = with_last_applied(deployment(180), &silent);
        assert_eq!(of(deployment(30), applied.clone()), Provenance::Presumed);
        // An edit keeps the annotation.
        assert_eq!(
            of(with_last_applied(deployment(30), &silent), applied),
            Provenance::Explicit
        );
        // The user's own 180 is taken back by the user.
        let own = with_last_applied(deployment(180), &deployment(180));
        assert_eq!(of(deployment(30), own), Provenance::Explicit);
        assert_eq!(of(deployment(30), deployment(180)), Provenance::Explicit);
    }

    #[test]
    fn a_bare_file_put_again_is_silent_where_the_applied_one_was() {
        let file = pool(json!({"consolidateAfter": "30s"}));
        let live = |policy: &str, after: &str| {
            pool(
                json!({"consolidationPolicy": policy, "consolidateAfter": after,
                        "budgets": [{"nodes": "10%"}]}),
            )
        };
        let old = with_last_applied(live("WhenEmpty", "30s"), &file);
        let put = |after| policy_of(live("WhenEmptyOrUnderutilized", after), Some(old.clone()));
        assert_eq!(put("30s"), Provenance::Presumed);
        assert_eq!(put("5m"), Provenance::Explicit, "it is another file");
    }

    #[test]
    fn carry_over_restores_a_fill_and_nothing_else() {
        let carried = |new: Value, old: Value| {
            carry_over_proven(
                &subject(new, Some(old)),
                GRACE,
                &json!(180),
                Some(&json!(30)),
            )
        };
        let silent = json!({"kind": "Deployment", "metadata": {"name": "d"}, "spec": {}});
        let applied = with_last_applied(deployment(180), &silent);
        assert!(carried(deployment(30), applied.clone()));
        assert!(carried(
            with_last_applied(deployment(30), &json!({"spec": {"replicas": 2}})),
            applied.clone()
        ));
        assert!(!carried(
            with_last_applied(deployment(30), &deployment(30)),
            applied.clone()
        ));
        assert!(
            !carried(deployment(60), applied.clone()),
            "another value is somebody's"
        );
        assert!(!carried(deployment(180), applied), "nothing was reset");
        assert!(
            !carried(deployment(30), deployment(180)),
            "the old value was never filled"
        );
        let own = with_last_applied(deployment(180), &deployment(180));
        assert!(
            !carried(deployment(30), own),
            "the old value was the user's"
        );
    }

    #[test]
    fn carry_over_restores_removed_keys_and_presumed_blocks_without_evidence() {
        let path = &["metadata", "annotations", "kai.scheduler/batch-min-member"];
        let mut old = deployment(30);
        old["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "8"});
        let of = |new: Value| carry_over(&subject(new, Some(old.clone())), path, &json!("8"), None);
        assert!(of(deployment(30)));
        assert!(!of(old.clone()));
        let mut lowered = old.clone();
        lowered["metadata"]["annotations"]["kai.scheduler/batch-min-member"] = json!("7");
        assert!(!of(lowered));

        let scheduler = &["spec", "template", "spec", "schedulerName"];
        let with = |name: &str| {
            let mut object = deployment(30);
            object["spec"]["template"]["spec"]["schedulerName"] = json!(name);
            object
        };
        let put = subject(with("default-scheduler"), Some(with("kai-scheduler")));
        assert!(carry_over(
            &put,
            scheduler,
            &json!("kai-scheduler"),
            Some(&json!("default-scheduler"))
        ));
        let edited = managed(
            with("default-scheduler"),
            &[entry("kubectl-edit", "Update", "t", &[scheduler])],
        );
        let edited = subject(edited, Some(with("kai-scheduler")));
        assert!(!carry_over(
            &edited,
            scheduler,
            &json!("kai-scheduler"),
            Some(&json!("default-scheduler"))
        ));
    }

    #[test]
    fn nothing_is_restored_on_create_or_in_files() {
        let mut made = subject(deployment(30), None);
        assert!(!carry_over(&made, GRACE, &json!(180), Some(&json!(30))));
        made.door = Door::Check;
        assert!(!carry_over(&made, GRACE, &json!(180), Some(&json!(30))));
    }

    #[test]
    fn items_of_lists_are_owned_by_key_by_value_or_as_a_whole() {
        let object = json!({"kind": "X", "spec": {"groups": [{"name": "a", "grace": 30}]}});
        let path = &["spec", "groups", "0", "grace"];
        let of = |groups: Value| {
            let entry = json!({"manager": "m", "operation": "Apply",
                               "fieldsV1": {"f:spec": {"f:groups": groups}}});
            let mut object = managed(object.clone(), &[entry]);
            object["apiVersion"] = json!("v1");
            of_field(&subject(object, None), path, &json!(30), None)
        };
        assert_eq!(
            of(json!({"k:{\"name\":\"a\"}": {"f:grace": {}}})),
            Provenance::Explicit
        );
        assert_eq!(
            of(json!({"k:{\"name\":\"a\"}": {"f:name": {}}})),
            Provenance::Defaulted
        );
        assert_eq!(
            of(json!({"k:{\"name\":\"b\"}": {"f:grace": {}}})),
            Provenance::Defaulted
        );
        assert_eq!(of(json!({"i:0": {"f:grace": {}}})), Provenance::Explicit);
        assert_eq!(
            of(json!({})),
            Provenance::Unknown,
            "an atomic list hides what was named in it"
        );
        assert_eq!(of(json!("text")), Provenance::Defaulted);
    }
}
