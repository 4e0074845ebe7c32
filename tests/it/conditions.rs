//! The match conditions of the webhook configurations, as the API server evaluates them: they never fail,
//! and they send whatever could be denied.

#![allow(
    clippy::print_stdout,
    reason = "figures, for whoever asks with --nocapture"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::{StreamExt as _, stream};
use gangplank::{
    facts::Facts,
    finding::Verdict,
    policy::Policy,
    review::review,
    rules::{Kind, RULES, kinds},
    source,
    subject::{Door, Operation, Subject},
};
use serde_json::{Value, json};

use crate::{
    admission::places,
    enforce::{deployment, guarded, hpa, reference},
    fixtures::{fixtures, now},
    harness::{Cluster, client},
    overheard::Overheard,
};

mod crowds;

/// Conditions inside the API server decide what is sent. An error in one would refuse the write, so
/// they have to hold for objects with any optional member absent and for very large ones.
#[test]
fn match_conditions_send_what_may_matter_and_nothing_else() -> Result<()> {
    let guarded = guarded()?;
    let kubectl = guarded.cluster.namespace("conditions")?;
    let plain = |name: &str| {
        let mut object = deployment(name, 1, 1, &[]);
        object["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
        object
    };
    let container = |index: usize| json!({"name": format!("c{index}"), "image": "app"});
    let mut claims = plain("sent-claims");
    claims["spec"]["template"]["spec"]["resourceClaims"] =
        json!([{"name": "gpu", "resourceClaimTemplateName": "gpu"}]);
    let mut init = plain("sent-init");
    init["spec"]["template"]["spec"]["initContainers"] = json!([
        {"name": "warm", "image": "app", "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
    ]);
    let mut requests = plain("sent-requests");
    requests["spec"]["template"]["spec"]["containers"] = json!([
        container(0),
        {"name": "x", "image": "app", "resources": {"requests": {"amd.com/gpu": 1}, "limits": {"amd.com/gpu": 1}}},
    ]);
    let mut many = plain("sent-many");
    many["spec"]["template"]["spec"]["containers"] = (0..65).map(container).collect();
    let mut labelled = plain("sent-labelled");
    labelled["metadata"]["labels"] = json!({"gangplank.dev/model-server": "true"});
    let mut share = plain("sent-share");
    share["spec"]["template"]["metadata"]["annotations"] = json!({"gpu-fraction": "0.5"});
    let mut few = plain("quiet-few");
    few["spec"]["template"]["spec"]["containers"] = (0..64).map(container).collect();
    for object in [
        &share,
        &claims,
        &init,
        &requests,
        &many,
        &labelled,
        &few,
        &plain("quiet-plain"),
    ] {
        kubectl
            .create(&object.to_string())?
            .success()
            .with_context(|| reference(object))?;
    }
    let log = guarded.gangplank.log();
    for name in [
        "sent-share",
        "sent-claims",
        "sent-init",
        "sent-requests",
        "sent-many",
        "sent-labelled",
    ] {
        assert!(
            log.contains(&format!("\"name\":\"{name}\"")),
            "{name} was not sent"
        );
    }
    assert!(!log.contains("\"name\":\"quiet-"), "{log}");
    // Updates are looked at as well: new labels, annotations that come and go.
    let sent = || {
        guarded
            .gangplank
            .log()
            .matches("\"name\":\"quiet-plain\"")
            .count()
    };
    let exempt = format!(
        "exempt.gangplank.dev/gang-scheduling=until={}; owner=team-llm; reason=load test",
        gangplank::exempt::latest(jiff::Timestamp::now(), 30)
    );
    let steps: [(&str, &str, bool); 6] = [
        ("label", "gangplank.dev/model-server=true", true),
        ("annotate", "kai.scheduler/batch-min-member=1", true),
        ("annotate", "kai.scheduler/batch-min-member-", true),
        ("annotate", &exempt, true),
        ("annotate", "exempt.gangplank.dev/gang-scheduling-", true),
        ("annotate", "example.com/revision=1", false),
    ];
    for (verb, what, is_ours) in steps {
        let before = sent();
        kubectl
            .run(&[verb, "--overwrite", "deployment/quiet-plain", what], None)?
            .success()?;
        assert_eq!(sent() > before, is_ours, "{verb} {what}");
    }
    // What KEDA makes is advised on. Among too many owners nobody looks for KEDA, and it is judged, once.
    for (name, more, endpoint) in [("kedas", 0, "advise"), ("crowded", 64, "validate")] {
        let owner = |index: usize| {
            json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "llm",
                "uid": format!("u{index}"), "controller": index == more})
        };
        let owners: Vec<Value> = (0..=more).map(owner).collect();
        let selector = json!({"matchLabels": {"scaledobject.keda.sh/name": "llm"}});
        let hpa = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name, "ownerReferences": owners},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"},
                "maxReplicas": 2,
                "metrics": [{"type": "External", "external": {
                    "metric": {"name": "s0-gpu-queue", "selector": selector},
                    "target": {"type": "Value", "value": "1"}}}],
            },
        });
        kubectl.create(&hpa.to_string())?.success()?;
        let log = guarded.gangplank.log();
        let asked: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(&format!("\"name\":\"{name}\"")))
            .collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let endpoint = format!("\"endpoint\":\"{endpoint}\"");
        assert!(asked[0].contains(&endpoint), "{asked:?}");
    }
    // An HPA that says no more than it has to.
    let bare = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "bare"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}, "maxReplicas": 2},
    });
    kubectl.create(&bare.to_string())?.success()?;
    Ok(())
}

/// A kind that API servers know by themselves.
fn is_built_in(kind: &Kind) -> bool {
    ["apps", "autoscaling", "batch"].contains(&kind.group)
}

/// Every custom kind that we are registered for, without a schema: whatever is written arrives at the
/// conditions as it was written.
pub(crate) fn without_schemas(cluster: &Cluster) -> Result<()> {
    for kind in kinds::ALL.iter().filter(|kind| !is_built_in(kind)) {
        let Kind {
            group, resource, ..
        } = kind;
        let name = kind.kind;
        let versions: Vec<Value> = (kind.versions.iter().enumerate())
            .map(|(index, version)| {
                let schema =
                    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
                json!({"name": version, "served": true, "storage": index == 0,
                    "schema": {"openAPIV3Schema": schema}})
            })
            .collect();
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{resource}.{group}"),
                "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
            "spec": {
                "group": group, "versions": versions,
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "names": {"kind": name, "plural": resource, "singular": name.to_lowercase()},
            },
        });
        cluster.kubectl().create(&crd.to_string())?.success()?;
    }
    let args = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ];
    cluster.kubectl().run(&args, None)?.success()?;
    Ok(())
}

/// An object of each kind that says as much as it may: the seeds of the fuzz target that reads them.
fn specimens() -> Result<Vec<(&'static Kind, Value)>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/yaml");
    let mut found: BTreeMap<&str, (&'static Kind, Value)> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let is_hostile =
            (path.file_name()).is_some_and(|name| name.to_string_lossy().starts_with("hostile"));
        for document in source::read(&text)
            .into_iter()
            .flatten()
            .filter(|_| !is_hostile)
        {
            let value = Value::clone(&document.value);
            let Some(kind) = kind_of(&value) else {
                continue;
            };
            let size = |value: &Value| value.to_string().len();
            let known = found.get(kind.kind).map_or(0, |(_, known)| size(known));
            if size(&value) > known {
                found.insert(kind.kind, (kind, value));
            }
        }
    }
    for kind in kinds::ALL {
        ensure!(
            found.contains_key(kind.kind),
            "{} has no seed in {folder}",
            kind.kind
        );
    }
    Ok(found.into_values().collect())
}

fn without(value: &Value, place: &str) -> Value {
    let mut value = value.clone();
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => _ = members.remove(&key),
        Some(Value::Array(list)) => _ = list.remove(key.parse().unwrap()),
        _ => {}
    }
    value
}

/// The path of the collection that an object is written to.
fn collection(kind: &Kind, object: &Value, namespace: &str) -> Result<String> {
    let version = object["apiVersion"].as_str().context("a version")?;
    let within = if kind.namespaced {
        format!("namespaces/{namespace}/")
    } else {
        String::new()
    };
    Ok(format!("/apis/{version}/{within}{}", kind.resource))
}

/// What is written, to which kind, and what it is.
type Write = (&'static Kind, String, Value);

impl Overheard {
    /// Writes all of them without keeping any; an error where a condition had one. Those that the API
    /// server itself refuses have passed the conditions of the mutating entry at least. Says how many
    /// it took.
    fn dry_writes(&self, namespace: &str, writes: &[Write]) -> Result<BTreeSet<usize>> {
        let errors = "apiserver_admission_match_condition_evaluation_errors_total";
        let write = async |client: &kube::Client, (kind, what, value): &Write| -> Result<bool> {
            let collection = collection(kind, value, namespace)?;
            let held = value["metadata"]["resourceVersion"].is_string();
            let name = value["metadata"]["name"].as_str().context("a name")?;
            let (method, name) = if held {
                ("PUT", format!("/{name}"))
            } else {
                ("POST", String::new())
            };
            let path = format!("{collection}{name}?dryRun=All&fieldValidation=Ignore");
            let request = axum::http::Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/json")
                .body(value.to_string().into_bytes())?;
            match client.request_text(request).await {
                Ok(_) => Ok(true),
                // Bad request, conflict with its own schema, too large.
                Err(kube::Error::Api(status)) if [400, 413, 422].contains(&status.code) => {
                    Ok(false)
                }
                Err(error) => Err(anyhow!("{}: {what}: {error:?}", kind.kind)),
            }
        };
        let taken = self.runtime.block_on(async {
            let client = client(self.cluster.kubeconfig()).await?;
            let all = stream::iter(writes).map(|one| write(&client, one));
            let all: Vec<Result<bool>> = all.buffered(4).collect().await;
            let mut taken = BTreeSet::new();
            for (index, one) in all.into_iter().enumerate() {
                if one? {
                    taken.insert(index);
                }
            }
            anyhow::Ok(taken)
        })?;
        // Under Ignore an error shows here alone.
        let metrics = self
            .cluster
            .kubectl()
            .run(&["get", "--raw=/metrics"], None)?;
        for line in metrics.success()?.lines() {
            ensure!(!line.starts_with(errors), "{line}");
        }
        Ok(taken)
    }
}

/// A condition that fails refuses the write, or under Ignore lets it by unseen. So none may, for any
/// object of any kind, whichever of its members is absent: on CREATE, and on an UPDATE to and from it.
#[test]
fn match_conditions_hold_with_every_optional_member_absent_and_with_ten_thousand_containers()
-> Result<()> {
    let overheard = Overheard::start(false, Policy::default(), without_schemas)?;
    let kubectl = overheard.cluster.namespace("conditions")?;
    let namespace = kubectl.namespace().to_owned();
    let mut writes: Vec<Write> = Vec::new();
    for (kind, mut full) in specimens()? {
        full["metadata"] = json!({
            "name": "full", "labels": {"gangplank.dev/model-server": "true"},
            "annotations": {"kai.scheduler/batch-min-member": "7",
                "exempt.gangplank.dev/gang-scheduling": "until=2026-12-31; owner=a; reason=b"},
            "ownerReferences": [{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
                "name": "full", "uid": "u", "controller": true}],
        });
        let mut full = valid(kind, full);
        if kind.namespaced {
            full["metadata"]["namespace"] = json!(namespace);
        }
        let mut bare = json!({"apiVersion": full["apiVersion"], "kind": kind.kind,
            "metadata": {"name": "bare"}});
        let held = |object: &Value| -> Result<Value> {
            kubectl.create(&object.to_string())?.success()?;
            let of = format!(
                "{}.{}.{}/{}",
                kind.resource,
                kind.versions[0],
                kind.group,
                object["metadata"]["name"].as_str().context("a name")?
            );
            kubectl.get(&of)
        };
        let mut all = Vec::new();
        places(&full, "", &mut all);
        let fixed = [
            "",
            "/apiVersion",
            "/kind",
            "/metadata",
            "/metadata/name",
            "/metadata/namespace",
        ];
        all.retain(|place| !fixed.contains(&place.as_str()));
        let stored = held(&full).with_context(|| kind.kind)?;
        for place in &all {
            let less = without(&full, place);
            let mut update = less.clone();
            update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            let mut create = less;
            create["metadata"]["name"] = json!("new");
            writes.push((kind, format!("CREATE without {place}"), create));
            writes.push((kind, format!("UPDATE without {place}"), update));
        }
        // From nothing to all of it; what the API server itself knows cannot be so bare.
        if !is_built_in(kind) {
            let stored = held(&bare).with_context(|| kind.kind)?;
            let mut update = full.clone();
            update["metadata"]["name"] = json!("bare");
            update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            writes.push((kind, "UPDATE of nothing".to_owned(), update));
            bare["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            bare["metadata"]["labels"] = json!({"a": "b"});
            writes.push((kind, "UPDATE of nothing to a label".to_owned(), bare));
        }
        crowds::one_by_one(kind, &full, &stored, &all, &mut writes);
    }
    let count = writes.len();
    let taken = overheard.dry_writes(&namespace, &writes)?.len();
    println!("{taken} of {count} writes were taken");
    ensure!(
        taken > count / 2,
        "the API server itself refuses most of them: {taken} of {count}"
    );
    // Entries of all three sorts had their say.
    let heard = overheard.heard.lock().unwrap();
    for path in ["/mutate", "/validate", "/validate/advise"] {
        ensure!(heard.iter().any(|exchange| exchange.path == path), "{path}");
    }
    Ok(())
}

/// What may stand where something else belongs.
fn shapes() -> [Value; 7] {
    [
        Value::Null,
        json!("text"),
        json!(5),
        json!([]),
        json!([["list"], {"a": 1}, null]),
        json!({}),
        json!({"key": null, "nvidia.com/gpu": ["x"]}),
    ]
}

/// The object under another name, in a namespace where its kind has one.
fn named(kind: &Kind, mut object: Value, name: &str, namespace: &str) -> Value {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["name"] = json!(name);
    if kind.namespaced {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

/// The name of a kind's specimen.
fn full_name(kind: &Kind) -> String {
    format!("full-{}", kind.resource)
}

/// What an object is denied for on CREATE, or as an UPDATE of another; none where it is not.
fn denied(policy: &Policy, facts: &Facts, object: &Value, old: Option<&Value>) -> Option<String> {
    let subject = Subject::from_manifest(Arc::new(object.clone()))?;
    let subject = Subject {
        door: Door::Validate,
        operation: old.map_or(Operation::Create, |_| Operation::Update),
        old: old.map(|old| Arc::new(old.clone())),
        ..subject
    };
    let review = review(policy, facts, &subject, now());
    (review.verdict() == Verdict::Deny).then(|| review.rules(|_| true))
}

/// An object as the API server itself asks for it, where it knows the kind.
fn valid(kind: &Kind, mut object: Value) -> Value {
    if is_built_in(kind) && object["spec"]["template"].is_object() {
        object["spec"]["template"]["metadata"]["labels"] = json!({"app": "chat"});
        if kind.kind == "Job" {
            object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        } else {
            object["spec"]["selector"] = json!({"matchLabels": {"app": "chat"}});
        }
    }
    object
}

/// The kind of an object in a version that we are registered for.
fn kind_of(object: &Value) -> Option<&'static Kind> {
    let version = object["apiVersion"].as_str()?;
    kinds::ALL.iter().copied().find(|kind| {
        let ours = |known: &&str| version == format!("{}/{known}", kind.group);
        kind.kind == object["kind"] && kind.versions.iter().any(ours)
    })
}

/// The manifests of a text, each with what the others say, as far as they can be read.
fn manifests(text: &str) -> Vec<(Value, Facts)> {
    let read: Vec<_> = source::read(text).into_iter().flatten().collect();
    let facts = Facts::from_documents(read.iter().map(|document| &document.value));
    read.iter()
        .map(|document| (Value::clone(&document.value), facts.clone()))
        .collect()
}

/// Writes of what a policy denies, from the fixtures and the examples of the rules' pages, and what each is
/// denied for.
fn denied_manifests(policy: &Policy, namespace: &str) -> Vec<(Write, String)> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for rule in RULES {
        let of_rule = fixtures(rule.id).into_iter();
        texts.extend(of_rule.map(|(name, text)| (format!("{}/{name}", rule.id), text)));
    }
    let pages = include_str!("../../policies/RULES.md")
        .split("```yaml\n")
        .skip(1);
    texts.extend(pages.enumerate().filter_map(|(index, rest)| {
        let (text, _) = rest.split_once("```")?;
        Some((format!("example {index}"), text.to_owned()))
    }));
    let mut writes = Vec::new();
    for (what, text) in texts {
        for (object, facts) in manifests(&text) {
            let Some(kind) = kind_of(&object) else {
                continue;
            };
            let name = format!("w-{}", writes.len());
            // The name is a part of what some verdicts go by.
            let own = object["metadata"]["name"].as_str().unwrap_or_default();
            let is_owned = object["metadata"]["ownerReferences"].is_array();
            let name = if is_owned { own.to_owned() } else { name };
            let object = named(kind, object, &name, namespace);
            if let Some(rules) = denied(policy, &facts, &object, None) {
                writes.push(((kind, what.clone(), object), rules));
            }
        }
    }
    writes
}

/// The object without what it is denied for: what it could have been before an UPDATE made it that.
fn harmless(kind: &Kind, object: &Value) -> Value {
    let mut object = object.clone();
    if !is_built_in(kind) {
        object["spec"] = json!({});
    } else if object["spec"]["metrics"].is_array() {
        object["spec"]["metrics"] = hpa("x", "http_requests_per_second")["spec"]["metrics"].clone();
    } else if let Some(pod) = object.pointer_mut("/spec/template/spec") {
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array_mut().into_iter().flatten() {
                container["resources"] = json!({});
            }
        }
        pod["resourceClaims"] = Value::Null;
    }
    object
}

/// Updates of stored, harmless objects to what a policy denies, and what each is denied for.
fn denied_updates(
    overheard: &Overheard,
    namespace: &str,
    manifests: &[(Write, String)],
) -> Result<Vec<(Write, String)>> {
    let mut updates = Vec::new();
    overheard.runtime.block_on(async {
        let client = client(overheard.cluster.kubeconfig()).await?;
        for (index, ((kind, what, object), _)) in manifests.iter().enumerate() {
            let name = format!("u-{index}");
            let object = named(kind, object.clone(), &name, namespace);
            let request = axum::http::Request::post(collection(kind, &object, namespace)?)
                .header("content-type", "application/json")
                .body(harmless(kind, &object).to_string().into_bytes())?;
            // What the API server itself refuses cannot be updated.
            let Ok(stored) = client.request::<Value>(request).await else {
                continue;
            };
            let mut update = object;
            update["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
            let rules = denied(
                overheard.policy(),
                &Facts::unknown(),
                &update,
                Some(&stored),
            );
            if let Some(rules) = rules {
                updates.push(((*kind, format!("UPDATE to {what}"), update), rules));
            }
        }
        anyhow::Ok(())
    })?;
    Ok(updates)
}

/// Which writes somebody asked about, by kind and name, and at which entry.
fn entries(overheard: &Overheard) -> BTreeMap<(String, String), BTreeSet<String>> {
    let heard = overheard.heard.lock().unwrap();
    let mut entries: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for exchange in heard.iter().filter(|exchange| exchange.path != "/mutate") {
        let request = exchange.request();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (text(&request["kind"]["kind"]), text(&request["name"]));
        entries
            .entry(key)
            .or_default()
            .insert(exchange.path.clone());
    }
    entries
}

/// A policy under which every rule denies.
fn strict() -> Result<Policy> {
    let rules: serde_json::Map<String, Value> = (RULES.iter())
        .map(|rule| (rule.id.to_owned(), json!({"level": "deny"})))
        .collect();
    let document = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "existingViolations": "deny", "rules": rules});
    Ok(Policy::from_document(&document)?)
}

/// Whatever a policy denies is sent by some entry: fixtures, examples, and the specimens of every kind with
/// every place taken out or replaced by every shape. No condition fails for any of them.
fn everything_denied_is_sent(policy: Policy, shapes: &[Value]) -> Result<()> {
    let overheard = Overheard::start(false, policy, without_schemas)?;
    let policy = overheard.policy();
    let kubectl = overheard.cluster.namespace("complete")?;
    let namespace = kubectl.namespace().to_owned();
    let mut expected: BTreeMap<usize, String> = BTreeMap::new();
    let mut writes: Vec<Write> = Vec::new();
    let manifests = denied_manifests(policy, &namespace);
    let updates = denied_updates(&overheard, &namespace, &manifests)?;
    ensure!(
        updates.len() > manifests.len() / 3,
        "only {} updates",
        updates.len()
    );
    // Those that made the objects are not the ones that are looked for.
    overheard.heard.lock().unwrap().clear();
    for (write, rules) in manifests.into_iter().chain(updates) {
        expected.insert(writes.len(), rules);
        writes.push(write);
    }
    let of_manifests = writes.len();
    for (kind, mut full) in specimens()? {
        full["metadata"] = json!({
            "name": "full", "labels": {"gangplank.dev/model-server": "true"},
            "annotations": {"kai.scheduler/batch-min-member": "7", "example.com/note": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "full", "uid": "u"}],
        });
        let full = named(kind, full, &full_name(kind), &namespace);
        let stored = kubectl.create(&full.to_string())?.accepted().then(|| {
            let name = format!("{}.{}/{}", kind.resource, kind.group, full_name(kind));
            kubectl.get(&name)
        });
        let stored = stored.transpose()?;
        let mut all = Vec::new();
        places(&full, "", &mut all);
        all.retain(|place| {
            !["", "/apiVersion", "/kind", "/metadata", "/metadata/name"].contains(&place.as_str())
        });
        for place in &all {
            let mut others = vec![without(&full, place)];
            for shape in shapes {
                let mut other = full.clone();
                *other.pointer_mut(place).context("a place")? = shape.clone();
                others.push(other);
            }
            // Updates to two of the shapes, of which no condition may fail either.
            for shape in shapes.iter().step_by(4) {
                let Some(stored) = &stored else { continue };
                let mut update = stored.clone();
                if let Some(value) = update.pointer_mut(place) {
                    *value = shape.clone();
                    let what = format!("UPDATE of {place} to {shape}");
                    writes.push((
                        kind,
                        what,
                        named(kind, update, &full_name(kind), &namespace),
                    ));
                }
            }
            for (index, other) in others.into_iter().enumerate() {
                let name = format!("w-{}", writes.len());
                let object = named(kind, other, &name, &namespace);
                if let Some(rules) = denied(policy, &Facts::unknown(), &object, None) {
                    expected.insert(writes.len(), rules);
                }
                writes.push((kind, format!("{place}, shape {index}"), object));
            }
        }
    }
    let taken = overheard.dry_writes(&namespace, &writes)?;
    let entries = entries(&overheard);
    let mut missed = Vec::new();
    let mut sent = 0;
    for (index, rules) in &expected {
        let (kind, what, object) = &writes[*index];
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let asked = entries.contains_key(&(kind.kind.to_owned(), name.to_owned()));
        sent += usize::from(asked);
        if taken.contains(index) && !asked {
            missed.push(format!("{} {what}: denied by {rules}", kind.kind));
        }
    }
    println!(
        "{} writes, {of_manifests} of manifests; {} taken; {} denied, of which {sent} were sent",
        writes.len(),
        taken.len(),
        expected.len()
    );
    ensure!(missed.is_empty(), "not sent:\n{}", missed.join("\n"));
    ensure!(sent > 100, "only {sent}");
    Ok(())
}

#[test]
fn whatever_the_default_policy_denies_is_sent_and_no_shape_makes_a_condition_fail() -> Result<()> {
    everything_denied_is_sent(Policy::default(), &shapes())
}

#[test]
fn whatever_a_policy_of_denials_denies_is_sent() -> Result<()> {
    everything_denied_is_sent(strict()?, &[json!(null), json!("nvidia.com/gpu")])
}
