//! The audit that goes on while the server serves: by the one replica that holds a Lease, all of the
//! cluster from time to time, and what changes soon after it has changed.
//!
//! What it finds stands in report objects, in metrics, and once for each new finding in an Event of the
//! object. Live traffic comes first: pages are read with pauses between, and no object is looked at while
//! a request is under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource,
    api::{DynamicObject, PartialObjectMeta},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        watcher::{self, watcher},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Audited, ByPolicy, Judge, Judged, Plan, Progress, run};
use crate::{
    cluster::{
        ClusterError, chain,
        lease::{Contest, contend},
        list::Scope,
        reports,
    },
    finding::{Finding, Level},
    metrics::Metrics,
    report::fingerprint,
    rules::{Kind, kinds},
    subject::{Subject, group_of},
    text::cut,
    webhook::{Desk, limits::Gate},
};

/// Changes are gathered for this long: a rollout writes one object many times.
const GATHER: Duration = Duration::from_secs(2);

/// A kind that the cluster does not serve, or a watch that failed, is tried again after this long.
const AGAIN: Duration = Duration::from_secs(60);

/// The API server ends a watch after this long, and it goes on where it was.
const WATCH_SECONDS: u32 = 290;

/// Changes that wait to be looked at. Beyond them a watch waits, and the next whole look sees the rest.
const WAITING: usize = 4_096;

/// Characters of an Event's note (k8s.io/api events/v1: 1 kB).
const NOTE: usize = 1_000;

/// How the audit goes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who does it, where there are several.
    pub contest: Contest,
    /// How often everything is looked at.
    pub period: Duration,
}

/// How long one object waits for requests under way: a request whose body dribbles in must not end the
/// audit. 20,000 objects take three minutes more at worst.
const PATIENCE: Duration = Duration::from_millis(10);

/// How often it is looked whether they are done. A review takes some 50 µs.
const GLANCE: Duration = Duration::from_micros(200);

/// An object that has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Changed {
    /// The position of its kind among all.
    kind: usize,
    namespace: Option<String>,
    name: String,
}

/// What is known of an object: the rules and levels that metrics count, and the fingerprints of what was
/// told already.
#[derive(Clone, Debug, Default)]
struct Known {
    counted: Vec<(&'static str, Level)>,
    told: BTreeSet<String>,
}

/// Contends for the Lease and audits while it is held, until the server stops.
pub async fn follow(
    client: Client,
    desk: Arc<Desk>,
    settings: Settings,
    mut stopped: watch::Receiver<bool>,
) {
    let (announce, mut leading) = watch::channel(false);
    let contest = tokio::spawn(contend(
        client.clone(),
        settings.contest.clone(),
        announce,
        stopped.clone(),
    ));
    loop {
        tokio::select! {
            won = leading.wait_for(|leads| *leads) => if won.is_err() { break },
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        desk.metrics.audit_leading(true);
        let mut patrol = Patrol::new(&client, &desk);
        tokio::select! {
            () = patrol.walk(settings.period) => {}
            _ = leading.wait_for(|leads| !*leads) => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        desk.metrics.audit_leading(false);
        desk.metrics.audited(std::iter::empty());
    }
    // The lease is let go there.
    let _ = contest.await;
}

/// The audit while this replica leads.
struct Patrol {
    client: Client,
    desk: Arc<Desk>,
    recorder: Recorder,
    known: BTreeMap<(&'static str, Option<String>, String), Known>,
    /// Reports are said once to be missing.
    complained: bool,
}

impl Patrol {
    fn new(client: &Client, desk: &Arc<Desk>) -> Self {
        let reporter = Reporter {
            controller: "gangplank.dev/audit".to_owned(),
            instance: None,
        };
        Self {
            client: client.clone(),
            desk: Arc::clone(desk),
            recorder: Recorder::new(client.clone(), reporter),
            known: BTreeMap::new(),
            complained: false,
        }
    }

    async fn walk(&mut self, period: Duration) {
        let (send, mut changes) = mpsc::channel(WAITING);
        // They end with this set: when another leads, or the server stops.
        let mut watches = JoinSet::new();
        for (position, kind) in kinds::ALL.iter().copied().enumerate() {
            watches.spawn(watch_kind(
                self.client.clone(),
                kind,
                position,
                send.clone(),
            ));
        }
        let told = reports::fingerprints(&self.client)
            .await
            .unwrap_or_default();
        let mut adopted = self.desk.adopted.subscribe();
        let mut due = Instant::now();
        let mut told = Some(told);
        loop {
            if due <= Instant::now() {
                adopted.mark_unchanged();
                self.whole(told.take()).await;
                due = Instant::now() + period;
            }
            tokio::select! {
                change = changes.recv() => {
                    let Some(first) = change else { return };
                    let mut gathered = BTreeSet::from([first]);
                    tokio::time::sleep(GATHER).await;
                    while let Ok(change) = changes.try_recv() {
                        gathered.insert(change);
                    }
                    self.changed(gathered).await;
                }
                // Another policy says other things.
                Ok(()) = adopted.changed() => due = Instant::now(),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    fn judge(&self) -> Arc<Behind<ByPolicy>> {
        Arc::new(Behind {
            traffic: self.desk.in_flight.clone(),
            patience: PATIENCE,
            judge: ByPolicy {
                policy: self.desk.policy.load_full(),
                facts: self.desk.facts.load_full(),
                now: (self.desk.clock)(),
                rules: Vec::new(),
                // Of what is clean now, too, something may have been told before.
                clean: true,
                identity: true,
            },
        })
    }

    /// Looks at everything. `told` is what was told before this replica led, if anybody knows.
    async fn whole(&mut self, told: Option<BTreeSet<String>>) {
        let started = Instant::now();
        let seen = run(&self.client, &Plan::default(), &self.judge(), &Pace).await;
        let all = seen.unseen.is_empty();
        for unseen in &seen.unseen {
            tracing::warn!("the audit could not see everything: {unseen}");
        }
        if all {
            let met: BTreeSet<_> = seen.told.iter().map(key).collect();
            self.known.retain(|key, _| met.contains(key));
        }
        self.write(&seen.told, all).await;
        self.tell(&seen.told, told.as_ref()).await;
        self.desk.metrics.audit_took(started.elapsed(), all);
        tracing::info!(
            objects = seen.told.len() + seen.clean,
            seconds = started.elapsed().as_secs_f64(),
            "audited the cluster"
        );
    }

    /// Looks at what has changed.
    async fn changed(&mut self, changes: BTreeSet<Changed>) {
        let judge = self.judge();
        let mut audited = Vec::new();
        for change in changes {
            let Some(kind) = kinds::ALL.get(change.kind).copied() else {
                continue;
            };
            match fetch(&self.client, kind, &change).await {
                Ok(Some(subject)) => {
                    if let Judged::Told(told) = judge.judge(&subject) {
                        audited.push(told);
                    }
                }
                Ok(None) => {
                    self.known
                        .remove(&(kind.kind, change.namespace, change.name));
                }
                Err(error) => tracing::debug!("cannot look at a changed object: {error}"),
            }
        }
        self.write(&audited, false).await;
        self.tell(&audited, None).await;
    }

    /// Brings the reports up to date.
    async fn write(&mut self, audited: &[Audited], all: bool) {
        let now = (self.desk.clock)();
        match reports::write(&self.client, audited, &Scope::default(), all, now).await {
            Ok(written) => {
                self.complained = false;
                for error in written.failed {
                    tracing::warn!("{error}");
                }
            }
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::warn!("no reports: {error}");
            }
            Err(_) => {}
        }
    }

    /// Counts what was found, and tells what is new.
    async fn tell(&mut self, audited: &[Audited], before: Option<&BTreeSet<String>>) {
        for one in audited {
            let findings = || one.review.findings.iter().filter(|finding| !finding.filled);
            let known = self.known.entry(key(one)).or_default();
            known.counted = findings()
                .map(|finding| (finding.rule, finding.level))
                .collect();
            let now: BTreeMap<String, &Finding> = findings()
                .filter(|finding| finding.level >= Level::Warn)
                .map(|finding| (fingerprint(Some(&one.object), finding), finding))
                .collect();
            let new: Vec<&Finding> = now
                .iter()
                .filter(|(print, _)| {
                    !known.told.contains(*print)
                        && !before.is_some_and(|before| before.contains(*print))
                })
                .map(|(_, finding)| *finding)
                .collect();
            known.told = now.keys().cloned().collect();
            for finding in new {
                self.publish(one, finding).await;
            }
        }
        self.known.retain(|_, known| !known.counted.is_empty());
        let counts = self.known.iter().flat_map(|((_, namespace, _), known)| {
            known
                .counted
                .iter()
                .map(move |(rule, level)| (*rule, *level, namespace.as_deref()))
        });
        self.desk.metrics.audited(counts);
    }

    async fn publish(&self, audited: &Audited, finding: &Finding) {
        let object = &audited.object;
        let reference = ObjectReference {
            api_version: Some(object.api_version.clone()),
            kind: Some(object.kind.clone()),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: audited.uid.clone(),
            resource_version: audited.resource_version.clone(),
            field_path: None,
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason(finding.rule),
            note: Some(cut(
                &format!("{}: {}: {}", finding.rule, finding.path, finding.message),
                NOTE,
            )),
            action: "Audit".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!("cannot publish an event: {}", chain(&error));
        }
    }
}

/// A rule's id as Events spell reasons: gpu-pool-taint is GpuPoolTaint.
fn reason(rule: &str) -> String {
    rule.split('-')
        .flat_map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|first| first.to_ascii_uppercase());
            first.into_iter().chain(letters)
        })
        .collect()
}

fn key(audited: &Audited) -> (&'static str, Option<String>, String) {
    let object = &audited.object;
    let group = group_of(&object.api_version);
    let kind = kinds::ALL
        .iter()
        .find(|kind| kind.kind == object.kind && kind.group == group);
    (
        kind.map_or("", |kind| kind.kind),
        object.namespace.clone(),
        object.name.clone().unwrap_or_default(),
    )
}

/// Judges while no request is under way, so that an audit does not contend with one for a processor.
struct Behind<J> {
    traffic: Gate,
    patience: Duration,
    judge: J,
}

impl<J: Judge> Judge for Behind<J> {
    type Told = J::Told;

    /// Blocks the thread: pages are judged on threads that may be blocked, and so are changes.
    fn judge(&self, subject: &Subject) -> Judged<J::Told> {
        let started = Instant::now();
        while self.traffic.inside() > 0 && started.elapsed() < self.patience {
            std::thread::sleep(GLANCE);
        }
        self.judge.judge(subject)
    }
}

/// Leaves the API server to others between two pages.
struct Pace;

impl Progress for Pace {
    fn reviewed(&self, _: &Kind, _: usize, _: Option<u64>) {}

    fn pause(&self) -> Duration {
        Duration::from_millis(100)
    }
}

async fn fetch(
    client: &Client,
    kind: &'static Kind,
    change: &Changed,
) -> Result<Option<Subject>, ClusterError> {
    for resource in kind.api_resources() {
        let api: Api<DynamicObject> = match &change.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let found = api
            .get_opt(&change.name)
            .await
            .map_err(|error| ClusterError::Request {
                what: format!("get {} {:?}", kind.resource, change.name),
                error: Box::new(error),
            })?;
        if let Some(found) = found {
            let value = serde_json::to_value(found).ok();
            let subject =
                value.and_then(|value| super::subject(value, &resource.api_version, kind.kind));
            return Ok(subject);
        }
    }
    Ok(None)
}

/// Tells which objects of a kind change, in whichever of its versions the cluster serves it.
async fn watch_kind(
    client: Client,
    kind: &'static Kind,
    position: usize,
    changes: mpsc::Sender<Changed>,
) {
    loop {
        for resource in kind.api_resources() {
            let api: Api<PartialObjectMeta<DynamicObject>> =
                Api::all_with(client.clone(), &resource);
            let config = watcher::Config {
                timeout: Some(WATCH_SECONDS),
                ..watcher::Config::default()
            };
            let events = watcher(api, config);
            pin_mut!(events);
            while let Some(Ok(event)) = events.next().await {
                // What was there at the beginning is seen by the look at everything.
                let (watcher::Event::Apply(object) | watcher::Event::Delete(object)) = event else {
                    continue;
                };
                let meta = object.meta();
                let change = Changed {
                    kind: position,
                    namespace: meta.namespace.clone(),
                    name: meta.name.clone().unwrap_or_default(),
                };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Metrics {
    /// How many findings there are, by rule, level and namespace.
    fn audited<'f>(&self, findings: impl Iterator<Item = (&'static str, Level, Option<&'f str>)>) {
        let mut counts: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
        for (rule, level, namespace) in findings {
            let key = (rule, level.as_str(), namespace.unwrap_or_default());
            *counts.entry(key).or_default() += 1;
        }
        self.audit_findings(counts.into_iter());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Judge for Arc<Counting> {
        type Told = ();

        fn judge(&self, _: &Subject) -> Judged<()> {
            self.0.fetch_add(1, Ordering::AcqRel);
            Judged::Clean
        }
    }

    #[test]
    fn nothing_is_looked_at_while_a_request_is_under_way() {
        let traffic = Gate::uncounted(8);
        let judged = Arc::<Counting>::default();
        let behind = |patience| Behind {
            traffic: traffic.clone(),
            patience,
            judge: Arc::clone(&judged),
        };
        let object =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}});
        let subject = Subject::from_manifest(Arc::new(object)).unwrap();
        let request = traffic.enter().unwrap();
        // Nor does it wait for ever: traffic that never ends would end the audit.
        behind(Duration::ZERO).judge(&subject);
        assert_eq!(judged.0.load(Ordering::Acquire), 1);

        let patient = behind(Duration::from_secs(3600));
        std::thread::scope(|scope| {
            let audit = scope.spawn(|| patient.judge(&subject));
            // However the threads are scheduled: it cannot come before the request has ended.
            for _ in 0..1_000 {
                std::thread::yield_now();
                assert_eq!(judged.0.load(Ordering::Acquire), 1);
            }
            drop(request);
            audit.join().unwrap();
        });
        assert_eq!(judged.0.load(Ordering::Acquire), 2);
    }

    #[test]
    fn rules_are_spelled_as_reasons_are() {
        assert_eq!(reason("gpu-utilization-signal"), "GpuUtilizationSignal");
    }
}
