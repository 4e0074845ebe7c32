//! The webhook configurations on the API server.
//!
//! What is there is compared with what is wanted and replaced where it differs, on the condition that
//! nobody wrote in between. Annotations say whose configurations they are (the instance), what the
//! replica that wrote last wanted (so that replicas with different policies do not write over each other
//! all the time), and which managers were undone lately.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
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
use tokio::net::TcpStream;

use super::ClusterError;
use crate::{
    metrics::Metrics,
    policy::Tolerated,
    text::hash,
    webhook::{
        drift::{self, Difference},
        registration::{Configurations, FIELD_MANAGER, Reach},
    },
};

mod changes;
mod telling;

pub use changes::{Versions, follow};
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

/// How often changes by one manager are undone within [`BRAKE_WINDOW`]; what it changes then is left and
/// reported.
const BRAKE: usize = 3;

/// See [`BRAKE`].
const BRAKE_WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// Whoever changed a field where the managed fields do not say.
const UNKNOWN: &str = "unknown";

/// A whole configuration, where it is not about its entries.
pub const CONFIGURATION: &str = "configuration";

/// How long the URL of another instance may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How the instance of a process with a URL begins.
const URL: &str = "url ";

/// How many changes that were undone are remembered.
const REMEMBERED: usize = 32;

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

/// Which install a process belongs to, by how it is reached: that is the same for all of its replicas,
/// and for those of its next version.
pub fn instance(reach: &Reach) -> String {
    match reach {
        Reach::Url(url) => format!("{URL}{url}"),
        Reach::Service {
            namespace, name, ..
        } => format!("service {namespace}/{name}"),
    }
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
}

/// A configuration to write.
struct Wanted {
    side: Side,
    metadata: ObjectMeta,
    webhooks: Vec<Value>,
    content: String,
}

impl Wanted {
    /// Whether somebody changed what we say of the whole.
    fn lacks(&self, there: &ObjectMeta) -> bool {
        let holds = |there: &Option<BTreeMap<String, String>>,
                     wanted: &Option<BTreeMap<String, String>>| {
            let mut wanted = wanted.iter().flatten();
            wanted
                .all(|(key, value)| there.as_ref().and_then(|there| there.get(key)) == Some(value))
        };
        let owners = there.owner_references.as_deref().unwrap_or_default();
        let mut wanted = self.metadata.owner_references.iter().flatten();
        !(holds(&there.labels, &self.metadata.labels)
            && holds(&there.annotations, &self.metadata.annotations)
            && wanted.all(|owner| owners.contains(owner)))
    }

    /// The object to write in the place of another.
    fn over(&self, seen: &DynamicObject, webhooks: Vec<Value>) -> DynamicObject {
        let mut object = seen.clone();
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
        for wanted in self.wanted(wanted)? {
            match seen.objects.get(&wanted.side) {
                Some(object) => {
                    let written = self.keep(&wanted, object, tolerated, cause, &mut state);
                    written.await?;
                }
                None => self.make(&wanted, cause, &mut state).await?,
            }
        }
        self.teller.tell(&state, seen);
        Ok(state)
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
            (theirs != ours).then(|| (*side, object, theirs.to_owned()))
        });
        let Some((side, object, theirs)) = other else {
            self.teller.no_other();
            return Ok(());
        };
        if is_gone(&theirs, &ours).await {
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
        let note = error.to_string();
        self.teller.another(&theirs, side, object, &note);
        Err(error)
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
        let by_us = annotation(object, CONTENT) == Some(&wanted.content);
        if cause == Cause::Changed && !by_us && is_of_replica(object, self.instance.as_deref()) {
            // A replica with another policy, or of another version, sees to it. At the next look it
            // may be our turn; writing over each other at once would have no end.
            self.versions.insert(side, object.resource_version());
            return Ok(());
        }
        let now = Timestamp::now();
        let seen = entries(object);
        let comparison = drift::compare(seen, &wanted.webhooks, tolerated);
        let mut undone = remembered(object, now);
        let (mut kept, mut drift) = (BTreeSet::new(), BTreeSet::new());
        for difference in comparison.differences {
            let manager = match writer(object, &difference) {
                Some(manager) => manager.to_owned(),
                None if by_us => UNKNOWN.to_owned(),
                // Most likely it is we who want something else now.
                None => continue,
            };
            let times: Vec<Timestamp> = undone
                .iter()
                .filter(|(_, other)| *other == manager)
                .map(|(at, _)| *at)
                .collect();
            let one = Drift {
                side,
                difference,
                manager,
            };
            if by_us && times.len() >= BRAKE {
                let again = times.iter().min().map(|first| *first + BRAKE_WINDOW);
                state.again = state.again.into_iter().chain(again).min();
                kept.insert(one.difference.clone());
                state.left.insert(one);
            } else {
                drift.insert(one);
            }
        }
        state
            .foreign
            .extend(comparison.foreign.into_iter().map(|entry| (side, entry)));
        let allowed = comparison.tolerated.into_iter();
        state
            .tolerated
            .extend(allowed.map(|(entry, text)| (side, entry, text)));
        if by_us && drift.is_empty() && !wanted.lacks(&object.metadata) {
            self.versions.insert(side, object.resource_version());
            return Ok(());
        }
        let webhooks = drift::merge(seen, &wanted.webhooks, tolerated, &kept);
        let mut over = wanted.over(object, webhooks);
        if !drift.is_empty() {
            let managers: BTreeSet<&String> = drift.iter().map(|one| &one.manager).collect();
            undone.extend(managers.into_iter().map(|manager| (now, manager.clone())));
            let text = json!(undone).to_string();
            over.annotations_mut().insert(UNDONE.to_owned(), text);
        }
        let written = self.replace(side, &over).await?;
        for one in drift {
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
        made.retain(|at| now.duration_since(*at) < BRAKE_WINDOW);
        if cause == Cause::Changed && made.len() >= BRAKE {
            // Not at once any more, but at the next look.
            self.versions.insert(side, None);
            state.left.insert(one);
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

/// Who else wrote what is different, by the managed fields.
fn writer<'o>(object: &'o DynamicObject, difference: &Difference) -> Option<&'o str> {
    let managed = object.managed_fields().iter().filter_map(|entry| {
        let fields = &entry.fields_v1.as_ref()?.0;
        Some((entry.manager.as_deref()?, entry.time.as_ref(), fields))
    });
    drift::writer(managed, difference, &[FIELD_MANAGER, CREATOR])
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

/// Whose changes were undone lately, and when.
fn remembered(object: &DynamicObject, now: Timestamp) -> Vec<(Timestamp, String)> {
    let text = annotation(object, UNDONE).unwrap_or("[]");
    let mut all: Vec<(Timestamp, String)> = serde_json::from_str(text).unwrap_or_default();
    // The clocks of two machines differ a little; a time far ahead is nobody's.
    all.retain(|(at, _)| now.duration_since(*at).abs() < BRAKE_WINDOW);
    let surplus = all.len().saturating_sub(REMEMBERED);
    all.drain(..surplus);
    all
}

/// Whether nobody listens any more at the URL of another instance. Where that cannot be known, as of a
/// Service, it is taken to be there.
async fn is_gone(theirs: &str, ours: &str) -> bool {
    let (Some(url), true) = (theirs.strip_prefix(URL), ours.starts_with(URL)) else {
        return false;
    };
    let Ok(uri) = url.parse::<axum::http::Uri>() else {
        return false;
    };
    let Some(host) = uri.host() else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((host, uri.port_u16().unwrap_or(443)));
    let answer = tokio::time::timeout(PROBE_LIMIT, connect).await;
    matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
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
