//! What a policy would have said of the writes in an API server's audit log: the evidence that a team
//! needs before it enforces.
//!
//! Every write that succeeded is judged by itself, as the webhook would have judged it had it been
//! there for this one: filled, then judged, against what was there before as far as the log tells. What
//! it cannot tell is counted apart and never as a denial. Time is the log's, and nothing is read here
//! but the events that are handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use self::{
    event::{Head, ObjectRef, User},
    world::{Before, Key, World},
};
use crate::{
    exempt::{self, Grant, Rights},
    facts::Facts,
    finding::{Finding, Level},
    policy::Policy,
    review::{Review, Skip, review},
    rules::{Kind, RULES, Rule, kinds},
    subject::{Door, Operation, Subject, at, group_of, scale_target::ScaleTarget},
    text::{cut, shown},
};

mod event;
mod world;

pub use event::Event;

/// Bytes of objects that are kept to know what was there before a change: some ten thousand objects.
const WORLD_LIMIT: usize = 64 * 1024 * 1024;

/// Objects that are told of by name; more are only counted.
const OBJECTS_LIMIT: usize = 10_000;

/// Findings of the example of one object.
const FINDINGS_LIMIT: usize = 20;

/// A name longer than this is no user's; what asks is anybody's.
const USER_LIMIT: usize = 256;

/// Where the webhook is never asked (see the registration's `namespaceSelector`).
const LEFT_OUT: &str = "kube-system";

/// How many writes something befell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// They would have been denied.
    pub denied: u64,
    /// They would have been denied unless the object had the fault before, of which the log is silent.
    pub perhaps: u64,
    /// Something would have been filled in.
    pub filled: u64,
    /// They would have been let in with a warning.
    pub warned: u64,
    /// An exemption, taken as granted, would have let them in.
    pub exempted: u64,
}

impl Tally {
    fn add(&mut self, effects: &BTreeSet<Effect>) {
        for effect in effects {
            match effect {
                Effect::Denied => self.denied += 1,
                Effect::Perhaps => self.perhaps += 1,
                Effect::Filled => self.filled += 1,
                Effect::Warned => self.warned += 1,
                Effect::Exempted => self.exempted += 1,
            }
        }
    }
}

/// What would have come of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// See [`Tally::denied`].
    Denied,
    /// See [`Tally::perhaps`].
    Perhaps,
    /// See [`Tally::filled`].
    Filled,
    /// See [`Tally::warned`].
    Warned,
    /// See [`Tally::exempted`].
    Exempted,
}

impl Effect {
    /// Under `mode: dryRun` a finding says what it would be if the policy were enforced.
    fn of(finding: &Finding, certain: bool) -> Option<Self> {
        if let Some(exempted) = &finding.exempted {
            return (exempted.level >= Level::Warn).then_some(Self::Exempted);
        }
        match finding.level {
            _ if finding.filled => Some(Self::Filled),
            Level::Deny if certain => Some(Self::Denied),
            Level::Warn if finding.dry && certain => Some(Self::Denied),
            Level::Deny => Some(Self::Perhaps),
            Level::Warn if finding.dry => Some(Self::Perhaps),
            Level::Warn => Some(Self::Warned),
            Level::Audit | Level::Info => None,
        }
    }
}

/// Why a write could not be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unjudged {
    /// It was logged without its objects.
    Metadata,
    /// It was a patch, logged without the object that came of it.
    Patch,
    /// The API server cut its objects out of the log.
    Truncated,
    /// What was logged is not the object.
    Other,
}

/// What became of the writes of kinds that some rule speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// All of them.
    pub seen: u64,
    /// Rules were asked about them.
    pub judged: u64,
    /// Among those: changes of objects of which the log does not tell what they were before.
    pub without_before: u64,
    /// They changed nothing that a rule reads, or an object that was going away.
    pub unchanged: u64,
    /// A controller made them from an object that is judged itself.
    pub children: u64,
    /// They were refused, for whatever reason.
    pub failed: u64,
    /// They were only tried.
    pub dry_run: u64,
    /// The webhook is not asked in their namespace.
    pub left_out: u64,
    /// They could not be judged: by why and by resource.
    pub unjudged: BTreeMap<(Unjudged, &'static str, &'static str), u64>,
}

/// An object that would have been denied or filled.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// How often what befell it.
    pub tally: Tally,
    /// The rules that would have denied it.
    pub denied_by: BTreeSet<&'static str>,
    /// One of its writes: the first of the strongest effect.
    pub example: Example,
}

/// One write, and what would have come of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// When the request came.
    pub time: Timestamp,
    /// For whom.
    pub user: String,
    /// Who asked in that user's name.
    #[serde(rename = "impersonatedBy")]
    pub impersonated_by: Option<String>,
    /// `create`, `update` or `patch`.
    pub verb: String,
    /// What would have come of it, the strongest first.
    pub findings: Vec<Told>,
}

/// One finding of an example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// What would have come of it.
    pub effect: Effect,
    /// The rule.
    pub rule: &'static str,
    /// The field.
    pub path: String,
    /// What stands there, or would be filled in; JSON, cut where it is long.
    pub value: Option<String>,
    /// Why.
    pub message: String,
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Name {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The namespace, where it is in one.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// What a replay has found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The first and the last event.
    pub period: Option<(Timestamp, Timestamp)>,
    /// Requests that were answered.
    pub requests: u64,
    /// What became of the writes.
    pub writes: Writes,
    /// All writes.
    pub total: Tally,
    /// By rule.
    pub rules: BTreeMap<&'static str, Tally>,
    /// By namespace; none for what is in none.
    pub namespaces: BTreeMap<Option<String>, Tally>,
    /// By user.
    pub users: BTreeMap<String, Tally>,
    /// The objects that would have been denied or filled.
    pub objects: BTreeMap<Name, Object>,
    /// There were more of those.
    pub more_objects: bool,
    /// Objects of which the last state was given up, to stay within memory.
    pub forgotten: u64,
}

impl Findings {
    /// Whether there were writes to judge, and not one could be.
    pub fn is_blind(&self) -> bool {
        let Writes {
            judged,
            unchanged,
            children,
            unjudged,
            ..
        } = &self.writes;
        !unjudged.is_empty() && judged + unchanged + children == 0
    }
}

/// What to tell of; everything where nothing is named.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Writes of these users.
    pub users: Vec<String>,
    /// Writes in these namespaces.
    pub namespaces: Vec<String>,
    /// What these rules find.
    pub rules: Vec<&'static Rule>,
}

impl Only {
    fn takes(&self, head: &Head, reference: &ObjectRef) -> bool {
        let takes = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        takes(&self.users, &head.user().username) && takes(&self.namespaces, &reference.namespace)
    }

    fn wants(&self, finding: &Finding) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|rule| rule.id == finding.rule)
    }
}

/// A replay under way.
#[derive(Debug)]
pub struct Replay {
    policy: Policy,
    only: Only,
    world: World,
    found: Findings,
}

impl Replay {
    /// A replay under this policy.
    pub fn new(policy: Policy) -> Self {
        Self::within(policy, WORLD_LIMIT)
    }

    /// The same replay, that tells of less.
    #[must_use]
    pub fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }

    fn within(policy: Policy, bytes: usize) -> Self {
        Self {
            policy,
            only: Only::default(),
            world: World::new(bytes),
            found: Findings::default(),
        }
    }

    /// What has been found.
    pub fn finish(mut self) -> Findings {
        self.found.forgotten = self.world.forgotten;
        self.found
    }

    /// Takes the next event. Events are best handed in as they were logged: out of that order less is
    /// known of what was there before.
    pub fn event(&mut self, event: &Event) {
        let head = &event.head;
        // A request is logged once for each of its stages; this is the one that tells how it ended.
        if head.stage != "ResponseComplete" {
            return;
        }
        let (first, last) = self.found.period.unwrap_or((event.time, event.time));
        self.found.period = Some((first.min(event.time), last.max(event.time)));
        self.found.requests += 1;
        let Some((reference, kind)) = head
            .object_ref
            .as_ref()
            .and_then(|reference| Some((reference, reference.kind()?)))
        else {
            return;
        };
        let key = Key::new(kind, &reference.namespace, &reference.name);
        let is_write = matches!(head.verb.as_str(), "create" | "update" | "patch");
        if is_write && reference.subresource.is_empty() {
            self.write(event, reference, kind);
            return;
        }
        let succeeded = head.code().is_none_or(|code| code < 300);
        if !succeeded || head.is_dry_run() {
            return;
        }
        match (head.verb.as_str(), reference.subresource.as_str()) {
            ("delete", "") => self.world.forget(&key),
            ("update" | "patch", "scale") => {
                let scale = event.bodies().response_object;
                let scale = scale.filter(|scale| scale.get("kind") == Some(&"Scale".into()));
                self.world.scaled(&key, scale.as_ref());
            }
            // Whoever is shown the object shows it to us.
            ("get", "") | ("update" | "patch", "status") => {
                let object = event.bodies().response_object;
                if let Some(object) = object.filter(|object| is_of(object, kind)) {
                    self.world.remember(key, &object);
                }
            }
            _ => {}
        }
    }

    /// Takes a write of an object itself.
    fn write(&mut self, event: &Event, reference: &ObjectRef, kind: &'static Kind) {
        let head = &event.head;
        if reference.namespace == LEFT_OUT {
            self.found.writes.left_out += 1;
            return;
        }
        if !self.only.takes(head, reference) {
            self.pass(event, reference, kind);
            return;
        }
        self.found.writes.seen += 1;
        if head.code().is_some_and(|code| code >= 300) {
            self.found.writes.failed += 1;
            return;
        }
        if head.is_dry_run() {
            self.found.writes.dry_run += 1;
            return;
        }
        let value = match object(event, reference, kind) {
            Ok(value) => value,
            Err(why) => {
                let of = (why, kind.group, kind.resource);
                *self.found.writes.unjudged.entry(of).or_default() += 1;
                let key = Key::new(kind, &reference.namespace, &reference.name);
                self.world.forget(&key);
                return;
            }
        };
        let text = |key: &str| {
            let text = at(&value, &["metadata", key]).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let key = Key::new(kind, &text("namespace"), &text("name"));
        // A server-side apply, and a PUT of some kinds, may create.
        let is_new = head.verb == "create" || head.code() == Some(201);
        let before = if is_new {
            Before::Nothing
        } else {
            self.world.before(&key, &value)
        };
        let subject = Subject {
            api_version: text_of(&value, "apiVersion"),
            kind: kind.kind.to_owned(),
            namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: key.name.clone(),
            old: match &before {
                Before::Object(old) => Some(Arc::clone(old)),
                Before::Nothing | Before::Unknown => None,
            },
            door: Door::Validate,
            operation: if is_new {
                Operation::Create
            } else {
                Operation::Update
            },
            subresource: String::new(),
            user: head.user().username.clone(),
            value: Arc::new(value),
        };
        let write = Write {
            head,
            time: event.time,
            kind,
            certain: !matches!(before, Before::Unknown),
            subject,
        };
        self.judge(&write);
        if !key.name.is_empty() {
            self.world.remember(key, &write.subject.value);
        }
    }

    /// Sees what a write leaves behind, of which there is nothing to tell.
    fn pass(&mut self, event: &Event, reference: &ObjectRef, kind: &'static Kind) {
        let head = &event.head;
        if head.code().is_some_and(|code| code >= 300) || head.is_dry_run() {
            return;
        }
        let key = Key::new(kind, &reference.namespace, &reference.name);
        match object(event, reference, kind) {
            Ok(value) if !key.name.is_empty() => self.world.remember(key, &value),
            Ok(_) => {}
            Err(_) => self.world.forget(&key),
        }
    }

    fn judge(&mut self, write: &Write<'_>) {
        let Write {
            head,
            subject,
            certain,
            ..
        } = write;
        let facts = self.facts(subject, head.user());
        let (filled, review) = judge(&self.policy, &facts, write);
        let found = &mut self.found;
        match review.skipped {
            None => found.writes.judged += 1,
            Some(Skip::Child) => found.writes.children += 1,
            Some(_) => found.writes.unchanged += 1,
        }
        if review.skipped.is_none() && !certain {
            found.writes.without_before += 1;
        }
        let mut told: Vec<(Effect, &Finding)> = filled
            .iter()
            .chain(&review.findings)
            .filter(|finding| self.only.wants(finding))
            .filter_map(|finding| Some((Effect::of(finding, *certain)?, finding)))
            .collect();
        // Into what is denied nothing is filled, and nobody is warned.
        if told.iter().any(|(effect, _)| *effect == Effect::Denied) {
            told.retain(|(effect, _)| *effect == Effect::Denied);
        }
        if told.is_empty() {
            return;
        }
        let mut by_rule: BTreeMap<&'static str, BTreeSet<Effect>> = BTreeMap::new();
        let mut all = BTreeSet::new();
        for (effect, finding) in &told {
            by_rule.entry(finding.rule).or_default().insert(*effect);
            all.insert(*effect);
        }
        found.total.add(&all);
        for (rule, effects) in &by_rule {
            found.rules.entry(rule).or_default().add(effects);
        }
        let namespace = subject.namespace.clone();
        found.namespaces.entry(namespace).or_default().add(&all);
        let user = cut(&subject.user, USER_LIMIT);
        found.users.entry(user).or_default().add(&all);
        keep(found, write, told, &all);
    }

    /// What else is known: the workload that an autoscaler scales, as it was last seen, and that
    /// whoever exempts may do so. The rest is unknown.
    fn facts(&self, subject: &Subject, user: &User) -> Facts {
        let target = ScaleTarget::of(subject).and_then(|target| {
            let kind = kinds::ALL
                .iter()
                .find(|kind| kind.kind == target.kind && kind.group == target.group)?;
            let namespace = subject.namespace.as_deref().unwrap_or_default();
            let key = Key::new(kind, namespace, target.name);
            self.world.get(&key).map(Arc::new)
        });
        let mut facts = Facts::from_documents(&target);
        if let Some(engines) = self.policy.catalog().site_engines() {
            facts = facts.with_engines(engines);
        }
        if exempt::annotations(&subject.value).next().is_none() {
            return facts;
        }
        let mut rights = Rights::default();
        for rule in RULES {
            let exemptions = self.policy.exemptions();
            let grant = if exemptions.is_review_required(&user.username, &user.groups) {
                Grant::ReviewRequired
            } else {
                Grant::Allowed
            };
            rights.answers.insert(rule.id, grant);
        }
        facts.with_rights(rights)
    }
}

/// A write that can be judged.
struct Write<'e> {
    head: &'e Head,
    time: Timestamp,
    kind: &'static Kind,
    /// What was there before is known.
    certain: bool,
    subject: Subject,
}

/// What would be filled, and what is said of the object once it is.
fn judge(policy: &Policy, facts: &Facts, write: &Write<'_>) -> (Vec<Finding>, Review) {
    let Write { subject, time, .. } = write;
    let mut filled = Vec::new();
    let mut judged = None;
    // What a change makes silent cannot be told without what was there before.
    if write.certain {
        let asked = Subject {
            door: Door::Mutate,
            ..subject.clone()
        };
        let Review {
            findings, patch, ..
        } = review(policy, facts, &asked, *time);
        let mut value = Value::clone(&subject.value);
        // The patch was made on this very value.
        if !patch.0.is_empty() && json_patch::patch(&mut value, &patch).is_ok() {
            judged = Some(subject.with_value(value));
            filled = findings;
        }
    }
    let review = review(policy, facts, judged.as_ref().unwrap_or(subject), *time);
    (filled, review)
}

/// Keeps what befell an object.
fn keep(
    found: &mut Findings,
    write: &Write<'_>,
    mut told: Vec<(Effect, &Finding)>,
    all: &BTreeSet<Effect>,
) {
    let Write {
        head,
        time,
        kind,
        subject,
        ..
    } = write;
    told.retain(|(effect, _)| *effect <= Effect::Filled);
    told.sort_by_key(|(effect, _)| *effect);
    let Some(strongest) = told.first().map(|(effect, _)| *effect) else {
        return;
    };
    let name = Name {
        group: kind.group,
        kind: kind.kind,
        namespace: subject.namespace.clone(),
        name: named(subject),
    };
    if found.objects.len() >= OBJECTS_LIMIT && !found.objects.contains_key(&name) {
        found.more_objects = true;
        return;
    }
    let example = || Example {
        time: *time,
        user: cut(&subject.user, USER_LIMIT),
        impersonated_by: head
            .impersonated_user
            .is_some()
            .then(|| cut(&head.user.username, USER_LIMIT)),
        verb: head.verb.clone(),
        findings: told
            .iter()
            .take(FINDINGS_LIMIT)
            .map(|(effect, finding)| Told {
                effect: *effect,
                rule: finding.rule,
                path: finding.path.to_string(),
                value: finding.value.as_ref().map(shown),
                message: finding.message.clone(),
            })
            .collect(),
    };
    let object = found.objects.entry(name).or_insert_with(|| Object {
        tally: Tally::default(),
        denied_by: BTreeSet::new(),
        example: example(),
    });
    object.tally.add(all);
    let denials = told.iter().filter(|(effect, _)| *effect == Effect::Denied);
    let denials = denials.map(|(_, finding)| finding.rule);
    object.denied_by.extend(denials);
    let shown = object.example.findings.first().map(|told| told.effect);
    if shown.is_some_and(|shown| strongest < shown) {
        object.example = example();
    }
}

/// The name, or what the API server is to make one of.
fn named(subject: &Subject) -> String {
    let prefix = subject.at(&["metadata", "generateName"]);
    match prefix.and_then(Value::as_str) {
        Some(prefix) if subject.name.is_empty() => format!("{prefix}*"),
        _ => subject.name.clone(),
    }
}

/// The object that a write left behind.
fn object(event: &Event, reference: &ObjectRef, kind: &Kind) -> Result<Value, Unjudged> {
    let head = &event.head;
    if head.level == "Metadata" {
        return Err(Unjudged::Metadata);
    }
    let bodies = event.bodies();
    if bodies.were_truncated() {
        return Err(Unjudged::Truncated);
    }
    // What is stored, with the defaults and what other webhooks changed. Clients may ask for a Table
    // or the metadata alone, and are then answered with that.
    let stored = bodies.response_object.filter(|it| is_of(it, kind));
    let sent = || bodies.request_object.filter(|it| is_of(it, kind));
    let mut value = match (stored, head.verb.as_str()) {
        (Some(stored), _) => stored,
        // The body of a patch is the patch.
        (None, "patch") => return Err(Unjudged::Patch),
        (None, _) => sent().ok_or(Unjudged::Other)?,
    };
    // The URL says what the body leaves open.
    let members = value.as_object_mut().ok_or(Unjudged::Other)?;
    members
        .entry("apiVersion")
        .or_insert_with(|| reference.api_version().into());
    members.entry("kind").or_insert_with(|| kind.kind.into());
    let metadata = members
        .entry("metadata")
        .or_insert_with(|| serde_json::json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        for (key, text) in [
            ("namespace", &reference.namespace),
            ("name", &reference.name),
        ] {
            if !text.is_empty() {
                metadata.insert(key.to_owned(), text.as_str().into());
            }
        }
    }
    Ok(value)
}

/// Whether a value is an object of the kind. The API server need not say of what kind what it logs is.
fn is_of(value: &Value, kind: &Kind) -> bool {
    let says = |key: &str| value.get(key).and_then(Value::as_str);
    value.is_object()
        && says("kind").is_none_or(|said| said == kind.kind)
        && says("apiVersion").is_none_or(|said| group_of(said) == kind.group)
}

fn text_of(value: &Value, key: &str) -> String {
    let text = value.get(key).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
