//! What is told of the webhook configurations: Events, metrics, log lines and lines for `/readyz`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    api::DynamicObject,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{Registered, Side, brake::BRAKE};
use crate::{
    cluster::chain,
    metrics::Metrics,
    webhook::{
        drift::{self, Difference},
        registration::FIELD_MANAGER,
    },
};

/// How many of the latest changes that were undone are shown.
const SHOWN: usize = 5;

/// Characters of an Event's note (k8s.io/api events/v1: 1 kB).
const NOTE: usize = 1000;

/// How long the API server may take for the Events of a look.
const EVENTS_LIMIT: Duration = Duration::from_secs(2);

/// How many Events a look may have; the rest is in the log.
const EVENTS: usize = 32;

/// Something that others changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// Of which configuration.
    pub side: Side,
    /// The entry and its field, or [`super::CONFIGURATION`] for all of it.
    pub difference: Difference,
    /// Who wrote it, as the managed fields say.
    pub manager: String,
}

impl Drift {
    /// Why it is left.
    fn why(&self, until: Option<Timestamp>) -> String {
        let until = until.map(|until| format!("{until:.0}"));
        match (&*self.manager, until) {
            (FIELD_MANAGER, Some(until)) => format!(
                "another replica wrote it, or somebody in its name; it is compared again at {until} \
                 at the latest"
            ),
            (_, Some(until)) => {
                format!("undone {BRAKE} times in 10 minutes, and not before {until} again")
            }
            (_, None) => format!("undone {BRAKE} times in 10 minutes"),
        }
    }
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { entry, field } = &self.difference;
        write!(f, "{} ", self.side.as_str())?;
        if !entry.is_empty() {
            write!(f, "{} ", entry.escape_debug())?;
        }
        write!(f, "{field}, by {:?}", self.manager)
    }
}

/// How the configurations are after a look.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What others changed and is left so, and until when at most where that is known.
    pub left: BTreeMap<Drift, Option<Timestamp>>,
    /// Configuration, entry and expression of what others added and may add.
    pub tolerated: BTreeSet<(Side, String, String)>,
    /// Configuration and name of entries that are not ours.
    pub foreign: BTreeSet<(Side, String)>,
}

impl State {
    /// When some of what is left may be put right.
    pub fn again(&self) -> Option<Timestamp> {
        self.left.values().flatten().min().copied()
    }
}

/// Tells how the configurations are.
pub(super) struct Teller {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// The Events that are not published yet.
    events: Vec<(Event, ObjectReference)>,
    /// What was put right last.
    undone: VecDeque<(Timestamp, Drift)>,
    /// How the configurations were when that was told.
    told: State,
    /// The other install that was told of.
    other: Option<String>,
}

impl Teller {
    pub(super) fn new(client: &Client, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter {
            controller: "gangplank.dev/registration".to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            metrics,
            events: Vec::new(),
            undone: VecDeque::new(),
            told: State::default(),
            other: None,
        }
    }

    /// Lines about what others changed, for people.
    pub(super) fn describe(&self) -> Vec<String> {
        let left = self.told.left.iter();
        let left = left.map(|(drift, until)| {
            let why = drift.why(*until);
            format!("left as others changed it: {drift}; {why}")
        });
        let undone = self.undone.iter().rev();
        let undone = undone.map(|(at, drift)| format!("put right at {at:.0}: {drift}"));
        let tolerated = self.told.tolerated.iter().map(|(side, entry, expression)| {
            let expression = expression.escape_debug();
            format!(
                "tolerated: {} {entry} namespaceSelector {expression}",
                side.as_str()
            )
        });
        let foreign = self.told.foreign.iter().map(|(side, entry)| {
            let entry = entry.escape_debug();
            format!("not ours and left alone: {} {entry}", side.as_str())
        });
        left.chain(undone).chain(tolerated).chain(foreign).collect()
    }

    /// Tells that the configurations belong to another install. An Event says so once.
    pub(super) fn another(&mut self, theirs: &str, side: Side, object: &DynamicObject, note: &str) {
        self.metrics.registration_of_another(true);
        // What is there is not ours to tell of.
        self.told = State::default();
        self.metrics.registration_drift(std::iter::empty());
        if self.other.as_deref() != Some(theirs) {
            self.other = Some(theirs.to_owned());
            self.event("AnotherInstall", side, object, note);
        }
    }

    /// Tells that the configurations do not belong to another install.
    pub(super) fn no_other(&mut self) {
        self.metrics.registration_of_another(false);
        self.other = None;
    }

    /// Tells of something that others changed, and that is right again.
    pub(super) fn put_right(&mut self, at: Timestamp, drift: Drift, object: &DynamicObject) {
        let (side, field) = (drift.side, drift.difference.field);
        self.metrics.registration_undone(side.as_str(), field);
        tracing::warn!("put right what others changed in the webhook configurations: {drift}");
        let note = format!("put right: {drift}");
        self.event("DriftPutRight", side, object, &note);
        self.undone.push_back((at, drift));
        if self.undone.len() > SHOWN {
            self.undone.pop_front();
        }
    }

    /// Tells of what stays different, once.
    pub(super) fn tell(&mut self, state: &State, seen: &Registered) {
        let left = state.left.iter();
        let left = left.map(|(one, _)| (one.side.as_str(), one.difference.field, "left"));
        let tolerated = state.tolerated.iter();
        let tolerated =
            tolerated.map(|(side, ..)| (side.as_str(), "namespaceSelector", "tolerated"));
        let foreign = state.foreign.iter();
        let foreign = foreign.map(|(side, _)| (side.as_str(), drift::ENTRY, "foreign"));
        self.metrics
            .registration_drift(left.chain(tolerated).chain(foreign));
        let told = std::mem::replace(&mut self.told, state.clone());
        for (one, until) in &state.left {
            if told.left.contains_key(one) {
                continue;
            }
            let note = format!("left for now: {one}; {}", one.why(*until));
            tracing::error!("what others changed in the webhook configurations is {note}");
            if let Some(object) = seen.objects.get(&one.side) {
                self.event("DriftLeft", one.side, object, &note);
            }
        }
        for (side, entry, expression) in state.tolerated.difference(&told.tolerated) {
            let side = side.as_str();
            tracing::info!(side, entry, expression, "tolerated in a namespaceSelector");
        }
        for (side, entry) in state.foreign.difference(&told.foreign) {
            tracing::warn!(side = side.as_str(), entry, "an entry that is not ours");
            if let Some(object) = seen.objects.get(side) {
                let note = format!("{entry:?} is not an entry of Gangplank's; it is left alone");
                self.event("ForeignEntry", *side, object, &note);
            }
        }
    }

    fn event(&mut self, reason: &str, side: Side, object: &DynamicObject, note: &str) {
        let resource = side.resource();
        let reference = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: object.metadata.name.clone(),
            uid: object.metadata.uid.clone(),
            resource_version: object.metadata.resource_version.clone(),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.chars().take(NOTE).collect()),
            action: "Register".to_owned(),
            secondary: None,
        };
        if self.events.len() < EVENTS {
            self.events.push((event, reference));
        }
    }

    /// Publishes the Events of what was told.
    pub(super) async fn publish(&mut self) {
        let events = std::mem::take(&mut self.events);
        let all = events.iter().map(async |(event, reference)| {
            if let Err(error) = self.recorder.publish(event, reference).await {
                tracing::debug!("cannot publish an event: {}", chain(&error));
            }
        });
        if tokio::time::timeout(EVENTS_LIMIT, join_all(all))
            .await
            .is_err()
        {
            tracing::debug!("cannot publish all events: no answer in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn events_that_nobody_takes_are_given_up() {
        let silent = tower::service_fn(|_: axum::http::Request<kube::client::Body>| {
            std::future::pending::<Result<axum::http::Response<axum::body::Body>, kube::Error>>()
        });
        let client = Client::new(silent, "default");
        let mut teller = Teller::new(&client, Arc::default());
        let object = DynamicObject::new("gangplank", &Side::Validating.resource());
        for _ in 0..2 * EVENTS {
            teller.event("DriftPutRight", Side::Validating, &object, "put right");
        }
        let began = Instant::now();
        teller.publish().await;
        assert!(began.elapsed() < 3 * EVENTS_LIMIT);
        assert!(teller.events.is_empty());
    }
}
