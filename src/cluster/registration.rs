//! The webhook configurations on the API server.
//!
//! What is there is compared with what is wanted and replaced where it differs, on the condition that
//! nobody wrote in between. Annotations say whose configurations they are (the instance), what the
//! replica that wrote last wanted (so that replicas with different policies do not write over each other
//! all the time), and which managers were undone lately.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::ClusterError;
use crate::{
    metrics::Metrics,
    policy::Tolerated,
    text::hash,
    webhook::{
        drift::{self, Difference},
        registration::{Configurations, FIELD_MANAGER},
    },
};

mod brake;
mod changes;
mod install;
mod telling;

use brake::{BRAKE, Memory, WINDOW};
pub use changes::{Versions, follow};
pub use install::instance;
use install::{Refusals, are_of};
use telling::Teller;
pub use telling::{Drift, State};

/// Who makes the webhook configurations, before anything stands in them.
const CREATOR: &str = "gangplank-create";

/// Which install the configurations belong to.
const INSTANCE: &str = "gangplank.dev/instance";

/// A hash of what the replica that wrote last wanted.
const CONTENT: &str = "gangplank.dev/content";

/// When and whose changes were undone.
const UNDONE: &str = "gangplank.dev/undone";

/// Whoever changed a field where the managed fields do not say.
const UNKNOWN: &str = "unknown";

/// A whole configuration, where it is not about its entries.
pub const CONFIGURATION: &str = "configuration";

/// The labels, annotations and owners of a configuration that we want.
pub const METADATA: &str = "metadata";

/// How long what another replica wrote is left before it is our turn.
const TURN: SignedDuration = SignedDuration::from_secs(10);

/// One of the two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// What fills.
    Mutating,
    /// What denies.
    Validating,
}

impl Side {
    /// What fills comes first: an object that is silent should not be denied before it can be filled.
    pub const ALL: [Self; 2] = [Self::Mutating, Self::Validating];

    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mutating => "mutating",
            Self::Validating => "validating",
        }
    }

    fn resource(self) -> ApiResource {
        match self {
            Self::Mutating => ApiResource::erase::<MutatingWebhookConfiguration>(&()),
            Self::Validating => ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
        }
    }

    fn api(self, client: &Client) -> Api<DynamicObject> {
        Api::all_with(client.clone(), &self.resource())
    }
}

/// The webhook configurations of a name, as they are.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    objects: BTreeMap<Side, DynamicObject>,
    /// How each entry is called, and whom it asks.
    clients: Vec<(String, WebhookClientConfig)>,
}

impl Registered {
    fn add(&mut self, side: Side, object: DynamicObject) {
        for entry in entries(&object) {
            let name = entry.get("name").and_then(Value::as_str).unwrap_or("");
            let client = entry.get("clientConfig").cloned().unwrap_or_default();
            let client = serde_json::from_value(client).unwrap_or_default();
            self.clients.push((name.to_owned(), client));
        }
        self.objects.insert(side, object);
    }

    /// How each entry is called, and the certificates that it trusts us by, PEM.
    pub fn bundles(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.clients.iter().map(|(name, client)| {
            let bundle = client.ca_bundle.as_ref();
            (&**name, bundle.map_or(&[][..], |bundle| &bundle.0))
        })
    }

    /// The namespace of the Service that they name, if they do.
    pub fn service_namespace(&self) -> Option<&str> {
        self.clients
            .iter()
            .find_map(|(_, client)| Some(&*client.service.as_ref()?.namespace))
    }
}

fn entries(object: &DynamicObject) -> &[Value] {
    let entries = object.data.get("webhooks").and_then(Value::as_array);
    entries.map_or(&[], Vec::as_slice)
}

fn annotation<'o>(object: &'o DynamicObject, key: &str) -> Option<&'o str> {
    object.annotations().get(key).map(String::as_str)
}

/// Reads the webhook configurations.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn registered(client: &Client, name: &str) -> Result<Registered, ClusterError> {
    let mut registered = Registered::default();
    for side in Side::ALL {
        let found = side.api(client).get_opt(name).await;
        if let Some(object) = found.map_err(|error| refused("read", side, name, error))? {
            registered.add(side, object);
        }
    }
    Ok(registered)
}

fn refused(verb: &str, side: Side, name: &str, error: kube::Error) -> ClusterError {
    ClusterError::Request {
        what: format!("{verb} the {} {name:?}", side.resource().kind),
        error: Box::new(error),
    }
}

/// Writes the webhook configurations once, whoever's they are. What somebody else wrote since they were
/// `seen` is not overwritten: that is a conflict.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn register(
    client: &Client,
    wanted: Configurations,
    seen: &Registered,
) -> Result<(), ClusterError> {
    let mut upkeep = Upkeep::new(client, Arc::default(), None);
    upkeep.write(&wanted, seen, &[], Cause::Own).await?;
    Ok(())
}

/// Why the configurations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We want something else, or it is time to look.
    Own,
    /// They have changed.
    Changed,
}

/// Keeps the webhook configurations.
pub struct Upkeep {
    client: Client,
    teller: Teller,
    /// None: whoever's they are.
    instance: Option<String>,
    /// The versions that were looked at.
    versions: Versions,
    /// When a configuration that had gone was made again.
    made: BTreeMap<Side, Vec<Timestamp>>,
    /// What of ours was there last: a hash.
    held: BTreeMap<Side, String>,
    /// Until when what another replica wrote is left.
    turns: BTreeMap<Side, Timestamp>,
    /// Whose changes were undone.
    memory: Memory,
    /// How another install answers.
    refusals: Refusals,
}

/// What of a configuration is not as it is wanted.
struct Look {
    /// What others changed.
    drift: BTreeSet<Drift>,
    /// Whether there is anything else: we want something else than before.
    stale: bool,
}

/// A configuration to write.
struct Wanted {
    side: Side,
    metadata: ObjectMeta,
    webhooks: Vec<Value>,
    content: String,
}

impl Wanted {
    /// Which labels, annotations and owners are not as they are wanted: the path of each in the managed
    /// fields.
    fn lacking(&self, there: &ObjectMeta) -> Vec<[String; 2]> {
        type Texts = Option<BTreeMap<String, String>>;
        let texts = |member: &'static str, there: &Texts, wanted: &Texts| -> Vec<[String; 2]> {
            let there = there.clone().unwrap_or_default();
            let wanted = wanted.iter().flatten();
            let lacking = wanted.filter(|(key, value)| there.get(*key) != Some(value));
            let paths = lacking.map(|(key, _)| [member.to_owned(), format!("f:{key}")]);
            paths.collect()
        };
        let mut paths = texts("f:labels", &there.labels, &self.metadata.labels);
        let (here, wanted) = (&there.annotations, &self.metadata.annotations);
        paths.extend(texts("f:annotations", here, wanted));
        let owners = there.owner_references.as_deref().unwrap_or_default();
        let wanted = self.metadata.owner_references.iter().flatten();
        let wanted = wanted.filter(|owner| !owners.contains(owner));
        paths.extend(wanted.map(|owner| {
            let key = format!("k:{}", json!({"uid": owner.uid}));
            ["f:ownerReferences".to_owned(), key]
        }));
        paths
    }

    /// The object to write in the place of another.
    fn over(&self, seen: &DynamicObject, webhooks: Vec<Value>) -> DynamicObject {
        let mut object = Self::with_webhooks(seen, webhooks);
        let meta = &mut object.metadata;
        let labels = self.metadata.labels.clone().unwrap_or_default();
        meta.labels.get_or_insert_default().extend(labels);
        let annotations = self.metadata.annotations.clone().unwrap_or_default();
        meta.annotations.get_or_insert_default().extend(annotations);
        for owner in self.metadata.owner_references.iter().flatten() {
            let owners = meta.owner_references.get_or_insert_default();
            owners.retain(|other| (&other.kind, &other.name) != (&owner.kind, &owner.name));
            owners.push(owner.clone());
        }
        object
    }

    /// The object to write in the place of another, with its metadata.
    fn with_webhooks(seen: &DynamicObject, webhooks: Vec<Value>) -> DynamicObject {
        let mut object = seen.clone();
        if !object.data.is_object() {
            object.data = json!({});
        }
        if let Some(members) = object.data.as_object_mut() {
            members.insert("webhooks".to_owned(), Value::Array(webhooks));
        }
        object
    }
}

impl Upkeep {
    /// Keeps the configurations of an install ([`instance`]).
    pub fn new(client: &Client, metrics: Arc<Metrics>, instance: Option<String>) -> Self {
        Self {
            client: client.clone(),
            teller: Teller::new(client, metrics),
            instance,
            versions: Versions::new(),
            made: BTreeMap::new(),
            held: BTreeMap::new(),
            turns: BTreeMap::new(),
            memory: Memory::default(),
            refusals: Refusals::default(),
        }
    }

    /// Whether all of these versions were looked at.
    pub fn knows(&self, versions: &Versions) -> bool {
        versions
            .iter()
            .all(|(side, version)| self.versions.get(side) == Some(version))
    }

    /// Lines about what others changed, for people.
    pub fn describe(&self) -> Vec<String> {
        self.teller.describe()
    }

    /// Publishes the Events of the last look. It takes 2 s at most.
    pub async fn publish(&mut self) {
        self.teller.publish().await;
    }

    /// Writes what is not as it is wanted, but for what a manager changes again and again.
    ///
    /// # Errors
    /// Where the API server is not reached or refuses, where somebody wrote in between, or where they
    /// belong to another install.
    pub async fn write(
        &mut self,
        wanted: &Configurations,
        seen: &Registered,
        tolerated: &[Tolerated],
        cause: Cause,
    ) -> Result<State, ClusterError> {
        self.claim(wanted, seen).await?;
        let mut state = State::default();
        // One that cannot be written keeps nobody from the other.
        let mut failure = None;
        for wanted in self.wanted(wanted)? {
            let written = match seen.objects.get(&wanted.side) {
                Some(object) => {
                    let written = self.keep(&wanted, object, tolerated, cause, &mut state);
                    written.await
                }
                None => self.make(&wanted, cause, &mut state).await,
            };
            match written {
                // Whoever wrote it may be another install, to which the other one belongs too.
                Err(error) if error.is_conflict() => return Err(error),
                Err(error) => failure = failure.or(Some(error)),
                Ok(()) => {}
            }
        }
        self.teller.tell(&state, seen);
        failure.map_or(Ok(state), Err)
    }

    fn wanted(&self, wanted: &Configurations) -> Result<[Wanted; 2], ClusterError> {
        let json = |value: Result<Value, serde_json::Error>| {
            value.map_err(|error| ClusterError::Config(error.to_string()))
        };
        let mutating = json(serde_json::to_value(&wanted.mutating))?;
        let validating = json(serde_json::to_value(&wanted.validating))?;
        let content = hash(&format!("{mutating}{validating}"));
        let of = |side, metadata: &ObjectMeta, object: &Value| {
            let mut metadata = metadata.clone();
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(CONTENT.to_owned(), content.clone());
            if let Some(instance) = &self.instance {
                annotations.insert(INSTANCE.to_owned(), instance.clone());
            }
            let webhooks = object.get("webhooks").and_then(Value::as_array);
            Wanted {
                side,
                metadata,
                webhooks: webhooks.cloned().unwrap_or_default(),
                content: content.clone(),
            }
        };
        Ok([
            of(Side::Mutating, &wanted.mutating.metadata, &mutating),
            of(Side::Validating, &wanted.validating.metadata, &validating),
        ])
    }

    /// Makes sure that the configurations are not another install's, as long as there is one.
    async fn claim(
        &mut self,
        wanted: &Configurations,
        seen: &Registered,
    ) -> Result<(), ClusterError> {
        let Some(ours) = self.instance.clone() else {
            return Ok(());
        };
        let other = seen.objects.iter().find_map(|(side, object)| {
            let theirs = annotation(object, INSTANCE)?;
            let clients = seen.clients.iter().map(|(_, client)| client);
            (theirs != ours && are_of(theirs, &ours, clients))
                .then(|| (*side, object, theirs.to_owned()))
        });
        let Some((side, object, theirs)) = other else {
            self.teller.no_other();
            return Ok(());
        };
        if self.refusals.is_gone(&theirs, &ours).await {
            tracing::warn!(
                theirs,
                ours,
                "nobody listens any more where the webhook configurations send: taking them over"
            );
            self.teller.no_other();
            return Ok(());
        }
        let error = ClusterError::Another {
            name: wanted.validating.name_any(),
            ours,
            theirs: theirs.clone(),
        };
        for (side, object) in &seen.objects {
            self.versions.insert(*side, object.resource_version());
        }
        self.held.clear();
        let note = error.to_string();
        self.teller.another(&theirs, side, object, &note);
        Err(error)
    }

    /// Finds what of a configuration is not as it is wanted, and who changed it.
    fn look(
        &self,
        wanted: &Wanted,
        object: &DynamicObject,
        tolerated: &[Tolerated],
        state: &mut State,
    ) -> Look {
        let side = wanted.side;
        let by_us = annotation(object, CONTENT) == Some(&wanted.content);
        let by_replica = !by_us && is_of_replica(object, self.instance.as_deref());
        let was_ours = by_us || self.held.get(&side) == Some(&wanted.content);
        let comparison = drift::compare(entries(object), &wanted.webhooks, tolerated);
        let foreign = comparison.foreign.into_iter();
        state.foreign.extend(foreign.map(|entry| (side, entry)));
        let allowed = comparison.tolerated.into_iter();
        let allowed = allowed.map(|(entry, text)| (side, entry, text));
        state.tolerated.extend(allowed);
        let mut lacking = wanted.lacking(&object.metadata);
        if by_replica {
            // That it wanted something else is no difference by itself.
            let content = format!("f:{CONTENT}");
            lacking.retain(|[_, key]| *key != content);
        }
        let mut differences = comparison.differences;
        if !lacking.is_empty() {
            differences.insert(Difference {
                entry: String::new(),
                field: METADATA,
            });
        }
        let mut look = Look {
            drift: BTreeSet::new(),
            stale: false,
        };
        for difference in differences {
            let manager = match writer(object, &difference, &lacking) {
                Some(manager) => manager,
                // Most likely it is we who want something else now.
                None if !was_ours => {
                    look.stale = true;
                    continue;
                }
                None if by_replica => FIELD_MANAGER,
                None => UNKNOWN,
            };
            look.drift.insert(Drift {
                side,
                manager: manager.to_owned(),
                difference,
            });
        }
        look
    }

    /// Puts right what is there.
    async fn keep(
        &mut self,
        wanted: &Wanted,
        object: &DynamicObject,
        tolerated: &[Tolerated],
        cause: Cause,
        state: &mut State,
    ) -> Result<(), ClusterError> {
        let side = wanted.side;
        let now = Timestamp::now();
        let Look { drift, stale } = self.look(wanted, object, tolerated, state);
        self.versions.insert(side, object.resource_version());
        if drift.is_empty() && !stale {
            self.held.insert(side, wanted.content.clone());
            self.turns.remove(&side);
            return Ok(());
        }
        let listed = annotation(object, UNDONE);
        let mut undone = self.memory.undone(side, listed, now);
        let of_replica = |one: &Drift| one.manager == FIELD_MANAGER;
        if cause == Cause::Changed && drift.iter().any(of_replica) {
            // A replica with another policy, or of another version, sees to it. Writing over each other
            // at once would have no end.
            let turn = *self.turns.entry(side).or_insert(now + TURN);
            let until = undone.left_until(FIELD_MANAGER).max(Some(turn));
            if until > Some(now) {
                let theirs = drift.into_iter().filter(of_replica);
                state.left.extend(theirs.map(|one| (one, until)));
                return Ok(());
            }
        }
        let (mut kept, mut undo) = (BTreeSet::new(), BTreeSet::new());
        for one in drift {
            let until = undone.left_until(&one.manager);
            // Of replicas the last has to win, so that they are not left: it is our turn.
            if until.is_some() && !of_replica(&one) {
                kept.insert(one.difference.clone());
                state.left.insert(one, until);
            } else {
                undo.insert(one);
            }
        }
        if undo.is_empty() && !stale {
            return Ok(());
        }
        let webhooks = drift::merge(entries(object), &wanted.webhooks, tolerated, &kept);
        let mut over = if kept.iter().any(|one| one.field == METADATA) {
            Wanted::with_webhooks(object, webhooks)
        } else {
            wanted.over(object, webhooks)
        };
        if !undo.is_empty() {
            for one in &undo {
                undone.add(&one.manager, now);
            }
            over.annotations_mut()
                .insert(UNDONE.to_owned(), undone.text());
        }
        let written = self.replace(side, &over).await?;
        self.held.insert(side, wanted.content.clone());
        self.turns.remove(&side);
        for one in undo {
            self.memory.note(side, &one.manager, now);
            self.teller.put_right(now, one, &written);
        }
        Ok(())
    }

    /// Makes what is not there.
    async fn make(
        &mut self,
        wanted: &Wanted,
        cause: Cause,
        state: &mut State,
    ) -> Result<(), ClusterError> {
        let side = wanted.side;
        let now = Timestamp::now();
        // It was there when we looked last.
        let gone = matches!(self.versions.get(&side), Some(Some(_)));
        let one = Drift {
            side,
            difference: Difference {
                entry: String::new(),
                field: CONFIGURATION,
            },
            manager: UNKNOWN.to_owned(),
        };
        let made = self.made.entry(side).or_default();
        made.retain(|at| now.duration_since(*at) < WINDOW);
        if cause == Cause::Changed && made.len() >= BRAKE {
            // Not at once any more, but at the next look.
            self.versions.insert(side, None);
            state.left.insert(one, None);
            return Ok(());
        }
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let resource = side.resource();
        // Without entries and by a manager of its own, so that whoever is second changes nothing, and
        // has something to conflict with. With a label: the API server keeps managed fields, and so who
        // changed what, only of an object of which something was applied
        // (k8s.io/apimachinery pkg/util/managedfields/internal/skipnonapplied.go).
        let empty = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "labels": wanted.metadata.labels},
        });
        let params = PatchParams::apply(CREATOR);
        let api = side.api(&self.client);
        let created = api.patch(&name, &params, &Patch::Apply(&empty)).await;
        let created = created.map_err(|error| refused("write", side, &name, error))?;
        if !entries(&created).is_empty() || annotation(&created, CONTENT).is_some() {
            return Err(ClusterError::Overtaken(format!(
                "{} {name:?}",
                resource.kind
            )));
        }
        let over = wanted.over(&created, wanted.webhooks.clone());
        let written = self.replace(side, &over).await?;
        self.held.insert(side, wanted.content.clone());
        if gone {
            self.made.entry(side).or_default().push(now);
            self.teller.put_right(now, one, &written);
        }
        Ok(())
    }

    /// Writes an object, unless somebody wrote it since it was read.
    async fn replace(
        &mut self,
        side: Side,
        object: &DynamicObject,
    ) -> Result<DynamicObject, ClusterError> {
        let name = object.name_any();
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = side.api(&self.client);
        let written = match api.replace(&name, &params, object).await {
            Ok(written) => written,
            // It was deleted in between.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let kind = side.resource().kind;
                return Err(ClusterError::Overtaken(format!("{kind} {name:?}")));
            }
            Err(error) => return Err(refused("write", side, &name, error)),
        };
        self.versions.insert(side, written.resource_version());
        Ok(written)
    }
}

/// Who else wrote what is different, by the managed fields. Of the metadata it is what is `lacking`.
fn writer<'o>(
    object: &'o DynamicObject,
    difference: &Difference,
    lacking: &[[String; 2]],
) -> Option<&'o str> {
    let managed = object.managed_fields().iter().filter_map(|entry| {
        let fields = &entry.fields_v1.as_ref()?.0;
        Some((entry.manager.as_deref()?, entry.time.as_ref(), fields))
    });
    let holds = |fields: &Value| {
        if difference.field != METADATA {
            return drift::holds(fields, difference);
        }
        let metadata = fields.get("f:metadata");
        lacking.iter().any(|[member, key]| {
            let member = metadata.and_then(|metadata| metadata.get(member));
            member.is_some_and(|member| member.get(key).is_some())
        })
    };
    drift::writer(managed, holds, &[FIELD_MANAGER, CREATOR])
}

/// Whether a replica of our own install wrote last, wanting something else.
fn is_of_replica(object: &DynamicObject, instance: Option<&str>) -> bool {
    let key = format!("f:{CONTENT}");
    let owned = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.fields_v1.as_ref().is_some_and(|fields| {
                let annotations = fields.0.pointer("/f:metadata/f:annotations");
                annotations.is_some_and(|annotations| annotations.get(&key).is_some())
            })
    };
    annotation(object, CONTENT).is_some()
        && annotation(object, INSTANCE) == instance
        && object.managed_fields().iter().any(owned)
}

/// Removes the webhook configurations; the one that blocks writes first. True where there was one.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn unregister(client: &Client, name: &str) -> Result<bool, ClusterError> {
    let mut removed = false;
    for side in [Side::Validating, Side::Mutating] {
        match side
            .api(client)
            .delete(name, &DeleteParams::default())
            .await
        {
            Ok(_) => removed = true,
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(refused("delete", side, name, error)),
        }
    }
    Ok(removed)
}
