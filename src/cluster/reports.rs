//! What an audit found, as report objects beside what it is about: `Report` and `ClusterReport` of
//! openreports.io/v1alpha1, else `PolicyReport` and `ClusterPolicyReport` of
//! wgpolicyk8s.io/v1alpha2, whose members are the same (openreports/reports-api,
//! apis/openreports.io/v1alpha1; kubernetes-sigs/wg-policy-prototypes, policy-report/crd/v1alpha2).
//!
//! One report for each object that something was found in, owned by it, so that it goes when the
//! object goes. Each is written by itself and only where its content has changed: whatever is cut off
//! in between leaves whole reports, old or new.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    ClusterError,
    list::{Page, Scope, Sink, metadata, name, resource, values},
};
use crate::{
    audit::Audited,
    finding::{Finding, Level},
    report::{ObjectName, fingerprint},
    rules::{self, page},
    subject::at,
    text::{cut, hash, shown},
    webhook::registration::FIELD_MANAGER,
};

/// By this label reports are known to be ours.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// What a report says, in 16 digits: the same where nothing has changed.
const CONTENT: &str = "gangplank.dev/content";

/// Reports that are written at the same time.
const AT_ONCE: usize = 8;

/// Characters of a message that a report keeps; etcd keeps whole reports.
const LONGEST: usize = 1_024;

/// What became of the reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Created or changed.
    pub written: usize,
    /// Already as they should be.
    pub unchanged: usize,
    /// Of objects in which nothing is found any more.
    pub removed: usize,
    /// What could not be done, and why.
    pub failed: Vec<String>,
}

/// The two resources that the cluster serves: in namespaces, and in none.
#[derive(Clone, Debug)]
struct Served {
    namespaced: ApiResource,
    cluster: ApiResource,
}

/// A report as it is to be.
struct Wanted {
    namespace: Option<String>,
    name: String,
    content: String,
    object: Value,
}

/// A report that is there.
type Place = (Option<String>, String);

/// Brings the reports up to date with an audit. `all` tells that it looked at everything there is: then
/// reports of objects that it did not meet go, too.
///
/// # Errors
/// Where the cluster serves neither API, or does not let its reports be listed.
pub async fn write(
    client: &Client,
    audited: &[Audited],
    scope: &Scope,
    all: bool,
    now: Timestamp,
) -> Result<Written, ClusterError> {
    let (served, mut there) = existing(client, scope).await?;
    let mut unchanged = 0;
    // Made one after the other, as they are written: together they would be larger than all that was
    // found.
    let tasks = audited.iter().filter_map(|one| {
        let uid = one.uid.as_deref()?;
        let place = (one.object.namespace.clone(), report_name(uid));
        let old = there.remove(&place);
        match (Wanted::of(one, uid, &served, now), old) {
            (Some(wanted), Some(Some(content))) if wanted.content == content => {
                unchanged += 1;
                None
            }
            (Some(wanted), _) => Some(Task::Write(wanted)),
            (None, Some(_)) => Some(Task::Remove(place)),
            (None, None) => None,
        }
    });
    let mut result = Written::default();
    let mut done = stream::iter(tasks)
        .map(|task| task.run(client, &served).boxed())
        .buffer_unordered(AT_ONCE);
    while let Some(done) = done.next().await {
        result.add(done);
    }
    drop(done);
    result.unchanged = unchanged;
    // What is left belongs to objects that were not met.
    let gone = if all { there } else { BTreeMap::new() };
    let mut done = stream::iter(gone.into_keys())
        .map(|place| Task::Remove(place).run(client, &served).boxed())
        .buffer_unordered(AT_ONCE);
    while let Some(done) = done.next().await {
        result.add(done);
    }
    Ok(result)
}

/// What is to be done about a report.
enum Task {
    Write(Wanted),
    Remove(Place),
}

/// What was done about a report.
enum Done {
    Written,
    Removed,
}

impl Task {
    async fn run(self, client: &Client, served: &Served) -> Result<Done, String> {
        match self {
            Self::Write(report) => apply(client, served, report).await.map(|()| Done::Written),
            Self::Remove(place) => remove(client, served, place).await.map(|()| Done::Removed),
        }
    }
}

impl Written {
    fn add(&mut self, done: Result<Done, String>) {
        match done {
            Ok(Done::Written) => self.written += 1,
            Ok(Done::Removed) => self.removed += 1,
            Err(error) => self.failed.push(error),
        }
    }
}

/// The fingerprints of everything that our reports tell of.
///
/// # Errors
/// Where the cluster serves no reports, or does not let them be listed.
pub async fn fingerprints(client: &Client) -> Result<BTreeSet<String>, ClusterError> {
    let (served, _) = existing(client, &Scope::default()).await?;
    let ours = Scope {
        namespace: None,
        selector: Some(format!("{MANAGED_BY}={FIELD_MANAGER}")),
    };
    let mut all = Prints::default();
    for resource in [&served.namespaced, &served.cluster] {
        values(client, resource, &ours, &mut all).await?;
    }
    Ok(all.0)
}

/// Gathers fingerprints.
#[derive(Default)]
struct Prints(BTreeSet<String>);

impl Sink<Page> for Prints {
    async fn take(&mut self, page: Page, _: Option<u64>) {
        // What cannot be read is told once more.
        let _ = page.each(|report| {
            let results = report.get("results").and_then(Value::as_array);
            let prints = results.into_iter().flatten().filter_map(|result| {
                at(result, &["properties", "fingerprint"])?
                    .as_str()
                    .map(str::to_owned)
            });
            self.0.extend(prints);
        });
    }

    fn begin_again(&mut self) {}
}

/// What the cluster serves, and which of our reports are there with which content.
async fn existing(
    client: &Client,
    scope: &Scope,
) -> Result<(Served, BTreeMap<Place, Option<String>>), ClusterError> {
    let ours = Scope {
        namespace: scope.namespace.clone(),
        selector: Some(format!("{MANAGED_BY}={FIELD_MANAGER}")),
    };
    for (group, version, kinds) in [
        (
            "openreports.io",
            "v1alpha1",
            [("Report", "reports"), ("ClusterReport", "clusterreports")],
        ),
        (
            "wgpolicyk8s.io",
            "v1alpha2",
            [
                ("PolicyReport", "policyreports"),
                ("ClusterPolicyReport", "clusterpolicyreports"),
            ],
        ),
    ] {
        let [namespaced, cluster] =
            kinds.map(|(kind, plural)| resource(group, version, kind, plural));
        let keep = |report: kube::api::PartialObjectMeta<DynamicObject>| {
            let meta = report.metadata;
            let content = meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(CONTENT))
                .cloned();
            Some(((meta.namespace, meta.name?), content))
        };
        let Some(mut there) = metadata(client, &namespaced, &ours, keep).await? else {
            continue;
        };
        // Who looks at one namespace has no say in what is in none.
        if scope.namespace.is_none() {
            let all = Scope {
                namespace: None,
                ..ours.clone()
            };
            there.extend(
                metadata(client, &cluster, &all, keep)
                    .await?
                    .unwrap_or_default(),
            );
        }
        let served = Served {
            namespaced,
            cluster,
        };
        return Ok((served, there.into_iter().collect()));
    }
    Err(ClusterError::Unserved(
        "reports: install the CRDs of openreports.io or wgpolicyk8s.io".to_owned(),
    ))
}

fn report_name(uid: &str) -> String {
    format!("{FIELD_MANAGER}-{uid}")
}

impl Served {
    fn of(&self, namespace: Option<&str>) -> &ApiResource {
        if namespace.is_some() {
            &self.namespaced
        } else {
            &self.cluster
        }
    }

    fn api(&self, client: &Client, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.namespaced),
            None => Api::all_with(client.clone(), &self.cluster),
        }
    }
}

impl Wanted {
    /// The report of an object; none where nothing is to be told of it.
    fn of(audited: &Audited, uid: &str, served: &Served, now: Timestamp) -> Option<Self> {
        let object = &audited.object;
        let findings: Vec<&Finding> = audited
            .review
            .findings
            .iter()
            .filter(|finding| !finding.filled)
            .collect();
        if findings.is_empty() {
            return None;
        }
        let results: Vec<Value> = findings
            .iter()
            .map(|finding| result(object, finding))
            .collect();
        let content = hash(&json!(results).to_string());
        let counted = |wanted: &str| {
            let of = results
                .iter()
                .filter(|result| result.get("result").and_then(Value::as_str) == Some(wanted));
            of.count()
        };
        let summary: BTreeMap<&str, usize> = ["pass", "fail", "warn", "error", "skip"]
            .into_iter()
            .map(|word| (word, counted(word)))
            .collect();
        let timestamp = json!({"seconds": now.as_second(), "nanos": 0});
        let results: Vec<Value> = results
            .into_iter()
            .map(|mut result| {
                if let Some(members) = result.as_object_mut() {
                    members.insert("timestamp".to_owned(), timestamp.clone());
                }
                result
            })
            .collect();
        let namespace = object.namespace.clone();
        let resource = served.of(namespace.as_deref());
        let name = report_name(uid);
        let report = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": name,
                "labels": {MANAGED_BY: FIELD_MANAGER, CONTENT: content},
                "ownerReferences": [{
                    "apiVersion": object.api_version, "kind": object.kind,
                    "name": object.name, "uid": uid,
                }],
            },
            "scope": {
                "apiVersion": object.api_version, "kind": object.kind,
                "name": object.name, "namespace": namespace, "uid": uid,
            },
            "results": results,
            "summary": summary,
        });
        Some(Self {
            namespace,
            name,
            content,
            object: without_null(report),
        })
    }
}

fn without_null(mut object: Value) -> Value {
    if let Some(scope) = object.get_mut("scope").and_then(Value::as_object_mut) {
        scope.retain(|_, value| !value.is_null());
    }
    object
}

fn result(object: &ObjectName, finding: &Finding) -> Value {
    let would_deny = finding.level == Level::Deny || (finding.dry && finding.level == Level::Warn);
    let (result, severity) = match (finding.level, &finding.exempted) {
        (_, Some(_)) => ("skip", "info"),
        _ if would_deny => ("fail", "high"),
        (Level::Deny | Level::Warn, None) => ("warn", "medium"),
        (Level::Audit | Level::Info, None) => ("warn", "low"),
    };
    let mut properties = BTreeMap::from([
        ("path", finding.path.to_string()),
        ("fingerprint", fingerprint(Some(object), finding)),
    ]);
    if let Some(value) = &finding.value {
        properties.insert("value", shown(value));
    }
    if let Some(exempted) = &finding.exempted {
        let terms = &exempted.terms;
        properties.insert("exemptUntil", terms.until.to_string());
        properties.insert("exemptOwner", terms.owner.clone());
        properties.insert("exemptReason", cut(&terms.reason, LONGEST));
    }
    let rule = rules::rule(finding.rule);
    if let Some(rule) = rule {
        properties.insert("help", rule.help());
    }
    json!({
        "source": FIELD_MANAGER,
        "policy": FIELD_MANAGER,
        "rule": finding.rule,
        "category": rule.map(|rule| page::folder(rule.group)),
        "result": result,
        "severity": severity,
        "scored": true,
        "message": cut(&format!("{}: {}", finding.path, finding.message), LONGEST),
        "properties": properties,
    })
}

async fn apply(client: &Client, served: &Served, report: Wanted) -> Result<(), String> {
    let api = served.api(client, report.namespace.as_deref());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&report.object);
    match api.patch(&report.name, &params, &patch).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "cannot write {} {}: {}",
            name(served.of(report.namespace.as_deref())),
            report.name,
            super::chain(&error)
        )),
    }
}

async fn remove(
    client: &Client,
    served: &Served,
    (namespace, report): Place,
) -> Result<(), String> {
    let api = served.api(client, namespace.as_deref());
    match api.delete(&report, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        // The object went, and its report with it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(format!(
            "cannot remove {} {report}: {}",
            name(served.of(namespace.as_deref())),
            super::chain(&error)
        )),
    }
}
