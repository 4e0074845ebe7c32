//! The watches behind [`crate::facts`]: what `serve` knows of the cluster beyond the object at hand.
//!
//! Each kind is listed and watched by itself. An event becomes a digest at once, and a new snapshot
//! takes the place of the old one; requests hold a snapshot and never wait. Whatever fails makes
//! facts unknown after a while, and nothing else.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::ApiResource,
    core::DynamicResourceScope,
    runtime::watcher::{self, Event, watcher},
};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};

use super::chain;
use crate::{
    catalog::engines::Engines,
    facts::{Fact, Listed, Watched},
    metrics::Metrics,
    provenance::LAST_APPLIED,
    webhook::Desk,
};

/// How long a watch may fail before what it knew is taken for unknown.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// The server ends a watch after this long, and it is taken up again where it was. One that is silent
/// for longer is broken, and kube's watcher says so.
const WATCH_SECONDS: u32 = 45;

/// A list of which nothing comes for this long is broken.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// The pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often it is looked whether a kind that was not served is served now.
const UNSERVED_PAUSE: Duration = Duration::from_secs(5);

/// How often metrics are brought up to date, and what has failed for too long is forgotten.
const UPKEEP_PERIOD: Duration = Duration::from_secs(1);

/// Objects asked for at a time.
const PAGE: u32 = 100;

/// How one watch fares.
#[derive(Clone, Debug)]
enum State {
    /// Not listed yet.
    Starting,
    /// Current.
    Synced,
    /// The cluster does not serve the kind.
    Unserved,
    /// Not current.
    Failing {
        since: Instant,
        error: String,
        /// What was known is taken for unknown.
        stale: bool,
    },
}

/// How the watches fare; empty where nothing is watched.
#[derive(Debug, Default)]
pub struct Watches {
    states: Mutex<BTreeMap<Watched, State>>,
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Watched, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, kind: Watched, state: State) {
        self.lock().insert(kind, state);
    }

    /// A watch has failed; it fails since it first did.
    fn failed(&self, kind: Watched, error: String) {
        let mut states = self.lock();
        let (since, stale) = match states.get(&kind) {
            Some(State::Failing { since, stale, .. }) => (*since, *stale),
            // What was never listed is unknown already.
            Some(State::Synced) => (Instant::now(), false),
            _ => (Instant::now(), true),
        };
        states.insert(
            kind,
            State::Failing {
                since,
                error,
                stale,
            },
        );
    }

    /// Whether every kind is either known, or known not to be served.
    fn are_settled(&self) -> bool {
        self.lock()
            .values()
            .all(|state| matches!(state, State::Synced | State::Unserved))
    }

    /// The kinds whose watch has failed for too long by now, each of them once.
    fn expired(&self, now: Instant) -> Vec<Watched> {
        let mut expired = Vec::new();
        for (kind, state) in self.lock().iter_mut() {
            if let State::Failing { since, stale, .. } = state
                && !*stale
                && now.duration_since(*since) >= STALE_AFTER
            {
                *stale = true;
                expired.push(*kind);
            }
        }
        expired
    }

    /// The kinds of which nothing is known.
    fn unknown(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter(|(_, state)| {
                matches!(state, State::Starting | State::Failing { stale: true, .. })
            })
            .map(|(kind, _)| name(*kind))
            .collect()
    }

    /// A line for each watch.
    pub fn describe(&self, text: &mut String) {
        let states = self.lock();
        if states.is_empty() {
            let _ = writeln!(text, "cluster facts: not watched");
        }
        for (kind, state) in states.iter() {
            let name = name(*kind);
            let _ = match state {
                State::Starting => writeln!(text, "watch {name}: starting"),
                State::Synced => writeln!(text, "watch {name}: ok"),
                State::Unserved => writeln!(text, "watch {name}: not served by this cluster"),
                State::Failing {
                    since,
                    error,
                    stale,
                } => {
                    let what = if *stale { "unknown" } else { "not current" };
                    let seconds = since.elapsed().as_secs();
                    writeln!(
                        text,
                        "watch {name}: {what}, failing for {seconds} s: {error}"
                    )
                }
            };
        }
    }
}

/// A kind as `<plural>.<group>`.
fn name(kind: Watched) -> String {
    let (group, _, plural) = kind.resource();
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

/// Waits until everything is known that can be, or until the time is up.
pub async fn settled(watches: &Watches, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !watches.are_settled() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unknown = watches.unknown();
    if !unknown.is_empty() {
        tracing::warn!(
            kinds = unknown.join(","),
            "not all of the cluster is known; rules that would need it keep silent or warn"
        );
    }
}

/// Watches every kind until the server stops. The states of all are there when it returns.
pub fn start(
    client: &Client,
    desk: &Arc<Desk>,
    watches: &Arc<Watches>,
    stopped: &watch::Receiver<bool>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    for kind in Watched::ALL {
        watches.set(kind, State::Starting);
        let follower = Follower {
            kind,
            client: client.clone(),
            desk: Arc::clone(desk),
            watches: Arc::clone(watches),
        };
        tasks.push(tokio::spawn(until(stopped.clone(), follower.run())));
    }
    let upkeep = upkeep(Arc::clone(desk), Arc::clone(watches));
    tasks.push(tokio::spawn(until(stopped.clone(), upkeep)));
    tasks
}

async fn until(mut stopped: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

/// Forgets what is too old and counts.
async fn upkeep(desk: Arc<Desk>, watches: Arc<Watches>) {
    loop {
        for kind in watches.expired(Instant::now()) {
            desk.facts
                .rcu(|facts| facts.with_cluster(|cluster| cluster.forget(kind)));
            tracing::warn!(
                kind = name(kind),
                "what was known of these objects is too old"
            );
        }
        count(&desk.metrics, &desk, &watches);
        tokio::time::sleep(UPKEEP_PERIOD).await;
    }
}

fn count(metrics: &Metrics, desk: &Desk, watches: &Watches) {
    let facts = desk.facts.load();
    for (kind, state) in watches.lock().iter() {
        let (synced, failing) = match state {
            State::Synced => (true, Duration::ZERO),
            State::Failing { since, .. } => (false, since.elapsed()),
            State::Starting | State::Unserved => (false, Duration::ZERO),
        };
        let objects = facts.cluster().count(*kind);
        metrics.watched(&name(*kind), synced, failing, objects);
    }
}

/// Follows the objects of one kind.
struct Follower {
    kind: Watched,
    client: Client,
    desk: Arc<Desk>,
    watches: Arc<Watches>,
}

impl Follower {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let mut adopted = self.desk.adopted.subscribe();
            let read_by = self.desk.policy.load().catalog().site_engines();
            let error = tokio::select! {
                error = self.follow() => error,
                // Digests tell what engines say: another policy's engines read the objects anew.
                () = self.others_than(read_by, &mut adopted) => continue,
            };
            // It worked for a while: the next failure is a new one.
            if started.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let wait = if error.is_unserved() {
                self.unserved();
                pause = FIRST_PAUSE;
                UNSERVED_PAUSE
            } else {
                let error = error.to_string();
                tracing::warn!(kind = name(self.kind), "the watch failed: {error}");
                self.watches.failed(self.kind, error);
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            };
            tokio::time::sleep(jittered(wait)).await;
        }
    }

    /// Waits until a policy with other engines is in force.
    async fn others_than(&self, engines: Option<Arc<Engines>>, adopted: &mut watch::Receiver<()>) {
        loop {
            if adopted.changed().await.is_err() {
                // Nobody is left who could adopt one.
                std::future::pending::<()>().await;
            }
            if self.desk.policy.load().catalog().site_engines() != engines {
                return;
            }
        }
    }

    /// Lists and watches until something fails. The watcher would try again by itself, but it does
    /// not say when it has succeeded: a list does.
    async fn follow(&self) -> Failure {
        let (group, version, plural) = self.kind.resource();
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            },
            kind: self.kind.kind().to_owned(),
            plural: plural.to_owned(),
        };
        let api: Api<Object> = Api::all_with(self.client.clone(), &resource);
        let config = watcher::Config {
            timeout: Some(WATCH_SECONDS),
            page_size: Some(PAGE),
            ..watcher::Config::default()
        };
        let events = watcher(api, config);
        pin_mut!(events);
        // Some while it is listed.
        let mut listed = Some(Listed::default());
        loop {
            let event = if listed.is_some() {
                match tokio::time::timeout(LIST_LIMIT, events.next()).await {
                    Ok(event) => event,
                    Err(_) => return Failure::Silent,
                }
            } else {
                events.next().await
            };
            match event {
                None => return Failure::Silent,
                Some(Err(error)) => return Failure::Watch(error),
                Some(Ok(event)) => self.take(event, &mut listed),
            }
        }
    }

    fn take(&self, event: Event<Object>, listed: &mut Option<Listed>) {
        let kind = self.kind;
        match event {
            Event::Init => *listed = Some(Listed::default()),
            Event::InitApply(object) => {
                if let Some((namespace, name, fact)) = self.fact(object) {
                    listed.get_or_insert_default().add(&namespace, &name, fact);
                }
            }
            Event::InitDone => {
                let all = listed.take().unwrap_or_default();
                self.desk
                    .facts
                    .rcu(|facts| facts.with_cluster(|cluster| cluster.replace(kind, &all)));
                self.watches.set(kind, State::Synced);
                let objects = self.desk.facts.load().cluster().count(kind);
                tracing::debug!(kind = name(kind), objects, "listed");
            }
            Event::Apply(object) => {
                let Some((namespace, name, fact)) = self.fact(object) else {
                    return;
                };
                // Controllers write status all day.
                let known = self.desk.facts.load();
                if known.cluster().holds(kind, &namespace, &name, &fact) {
                    return;
                }
                self.desk.facts.rcu(|facts| {
                    facts.with_cluster(|cluster| {
                        cluster.put(kind, &namespace, &name, fact.clone());
                    })
                });
            }
            Event::Delete(object) => {
                let (namespace, name) = place(&object.metadata);
                self.desk.facts.rcu(|facts| {
                    facts.with_cluster(|cluster| cluster.remove(kind, &namespace, &name))
                });
            }
        }
    }

    /// Place and digest of an object.
    fn fact(&self, object: Object) -> Option<(String, String, Fact)> {
        let (namespace, name) = place(&object.metadata);
        let policy = self.desk.policy.load();
        let fact = self
            .kind
            .fact(&object.into_value(), policy.catalog().engines())?;
        Some((namespace, name, fact))
    }

    fn unserved(&self) {
        let kind = self.kind;
        if self.desk.facts.load().cluster().serves(kind) != Some(false) {
            self.desk
                .facts
                .rcu(|facts| facts.with_cluster(|cluster| cluster.unserved(kind)));
            tracing::info!(kind = name(kind), "not served by this cluster");
        }
        self.watches.set(kind, State::Unserved);
    }
}

/// Why a watch ended.
enum Failure {
    /// As the watcher says.
    Watch(watcher::Error),
    /// Nothing came.
    Silent,
}

impl Failure {
    /// Whether the API server does not know the kind.
    fn is_unserved(&self) -> bool {
        matches!(
            self,
            Self::Watch(
                watcher::Error::InitialListFailed(kube::Error::Api(status))
                | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            ) if status.code == 404
        )
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Watch(error) => f.write_str(&chain(error)),
            Self::Silent => f.write_str("the API server does not answer"),
        }
    }
}

/// A pause, more or less: replicas that lost the same server should not come back as one.
pub(super) fn jittered(pause: Duration) -> Duration {
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    pause.mul_f64(0.75 + f64::from(nanos % 1_000) / 2_000.0)
}

fn place(metadata: &ObjectMeta) -> (String, String) {
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// An object without what nobody reads: managed fields, status, and the copy of itself that kubectl
/// keeps in an annotation.
#[derive(Clone, Debug, Deserialize)]
struct Object {
    #[serde(deserialize_with = "without_ballast")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

fn without_ballast<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let read = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        resource_version: read.resource_version,
        labels: read.labels,
        annotations: read.annotations.map(|mut annotations| {
            annotations.remove(LAST_APPLIED);
            annotations
        }),
        ..ObjectMeta::default()
    })
}

impl Object {
    /// Metadata and spec, as they stood.
    fn into_value(self) -> Value {
        let metadata = self.metadata;
        let mut kept = Map::new();
        for (key, text) in [("name", metadata.name), ("namespace", metadata.namespace)] {
            if let Some(text) = text {
                kept.insert(key.to_owned(), Value::String(text));
            }
        }
        for (key, map) in [
            ("labels", metadata.labels),
            ("annotations", metadata.annotations),
        ] {
            if let Some(map) = map {
                kept.insert(key.to_owned(), json!(map));
            }
        }
        json!({"metadata": kept, "spec": self.spec})
    }
}

impl Resource for Object {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_for_long_is_forgotten_once_and_what_never_was_known_at_once() {
        let watches = Watches::default();
        watches.set(Watched::Queue, State::Synced);
        watches.set(Watched::Deployment, State::Starting);
        for kind in [Watched::Queue, Watched::Deployment] {
            watches.failed(kind, "refused".to_owned());
        }
        let now = Instant::now();
        assert_eq!(watches.unknown(), ["deployments.apps"]);
        assert_eq!(watches.expired(now), []);
        let later = now + STALE_AFTER;
        assert_eq!(watches.expired(later), [Watched::Queue]);
        assert_eq!(watches.expired(later), [], "said once");
        // It goes on failing: since when is not forgotten.
        watches.failed(Watched::Queue, "refused".to_owned());
        assert_eq!(watches.unknown().len(), 2);
        watches.set(Watched::Queue, State::Synced);
        assert_eq!(watches.unknown(), ["deployments.apps"]);
    }

    #[test]
    fn an_object_keeps_what_is_read_and_nothing_else() {
        let object: Object = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "chat", "namespace": "a", "uid": "u", "resourceVersion": "7",
                "labels": {"l": "1"}, "annotations": {"x": "2", LAST_APPLIED: "{}"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {"replicas": 2}, "status": {"replicas": 2},
        }))
        .unwrap();
        assert_eq!(object.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(
            object.into_value(),
            json!({
                "metadata": {"name": "chat", "namespace": "a", "labels": {"l": "1"},
                    "annotations": {"x": "2"}},
                "spec": {"replicas": 2},
            })
        );
    }
}
