//! The one question, asked at every door: what does the policy say of this object?

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use json_patch::Patch;
use serde_json::Value;

use crate::{
    catalog::controllers::{Controllers, Parent, controller_of, parent_of},
    edit::{Edit, Outcome, Patcher},
    exempt::{
        self, Exempted, Hint,
        standing::{Case, Standing, is_claimed},
    },
    facts::Facts,
    finding::{Confidence, Finding, Level, Verdict},
    policy::{ExistingViolations, Mode, Policy, RuleLevel},
    rules::{Context, Edits, Findings, Group, Memo, RULES, Rule, kinds, metadata_read},
    subject::{Door, Operation, Subject, at},
};

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Review {
    /// What was found and filled: strongest first, then in the order of the rules and fields.
    pub findings: Vec<Finding>,
    /// The fills, as a patch on the raw object.
    pub patch: Patch,
    /// Why the object was not looked at.
    pub skipped: Option<Skip>,
    /// The rules from which the requester would have to have the right to exempt, and of which nobody
    /// has asked: with the answers among the facts, the review may be another.
    pub asks: Vec<&'static str>,
    /// The steps of work that reading the object took, of the [`Budget`] that one may take.
    ///
    /// [`Budget`]: crate::budget::Budget
    pub steps: u64,
}

impl Review {
    /// What the findings add up to.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.findings)
    }

    /// Whether it would be denied if the policy were enforced.
    pub fn would_deny(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.dry && finding.level == Level::Warn)
    }

    /// What became of the object, in a word for metrics and logs: that of the verdict, `skip` where it
    /// was not looked at, and `would-deny`.
    pub fn outcome(&self) -> &'static str {
        if self.skipped.is_some() {
            "skip"
        } else if self.would_deny() {
            "would-deny"
        } else {
            self.verdict().as_str()
        }
    }

    /// The rules of the findings that are wanted, for logs and traces.
    pub fn rules(&self, wanted: impl Fn(&Finding) -> bool) -> String {
        let findings = self.findings.iter().filter(|finding| wanted(finding));
        let mut rules: Vec<&str> = findings.map(|finding| finding.rule).collect();
        rules.dedup();
        rules.join(",")
    }

    fn skipped(why: Skip) -> Self {
        Self {
            skipped: Some(why),
            ..Self::default()
        }
    }
}

/// Why an object is allowed without being looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It is going away, or is only connected to.
    Operation,
    /// A subresource is written, not the object.
    Subresource,
    /// No rule speaks of its kind.
    Kind,
    /// A controller made it from an object that is judged itself.
    Child,
    /// Nothing that a rule reads has changed.
    Unchanged,
}

/// Reviews an object. Pure: the same arguments give the same answer.
pub fn review(policy: &Policy, facts: &Facts, subject: &Subject, now: Timestamp) -> Review {
    if let Some(why) = skip(subject) {
        return Review::skipped(why);
    }
    let parent = parent_of(subject, Controllers::builtin());
    if let Parent::Judged(_) = parent {
        return Review::skipped(Skip::Child);
    }
    let is_child = matches!(parent, Parent::Unjudged(_));
    let rules = || {
        RULES
            .iter()
            .copied()
            .filter(|rule| rule.covers(subject.group(), &subject.kind))
    };
    let mut findings = Vec::new();
    let mut asks = Vec::new();
    let mut patch = Patch::default();
    let mut judged = None;
    let dry = policy.mode_in(subject.namespace.as_deref(), facts, now) == Mode::DryRun;
    // Under `dryRun` nothing was filled before the object came to be judged, so that it is judged as if
    // it had been: what would be filled is no violation.
    let fills = match subject.door {
        Door::Mutate => !dry,
        Door::Validate => dry,
        Door::Check | Door::Audit => true,
    };
    // What is read for the fills is read already where nothing is filled.
    let unfilled = Memo::default();
    if fills && !is_child && kinds::is_filled(subject.group(), &subject.kind) {
        // Most objects are left as they are, and need no copy to be changed.
        let mut patcher = None;
        for rule in rules().filter(|rule| !is_claimed(policy, subject, rule, now)) {
            let filled = fill(rule, policy, facts, subject, now, &unfilled, &mut patcher);
            findings.extend(filled);
        }
        // What has not been read whole is not filled in part.
        if unfilled.budget.is_spent() {
            patcher = None;
            findings.clear();
        }
        let (value, operations) = match patcher.map(Patcher::finish) {
            Some((value, operations)) => (Some(value), operations),
            None => (None, Patch::default()),
        };
        // In `check` silence is filled before the verdict, as it will be in the cluster; what
        // lives in a cluster is judged as it stands.
        if !operations.0.is_empty() && matches!(subject.door, Door::Check | Door::Validate) {
            judged = value.map(|value| subject.with_value(value));
        }
        if !dry {
            patch = operations;
        }
    }
    let mut steps = unfilled.budget.spent();
    if subject.door != Door::Mutate {
        let filled = Memo::default();
        let (judged, memo) = match &judged {
            Some(judged) => (judged, &filled),
            None => (subject, &unfilled),
        };
        // What an old object was let in for as the child of a controller is no existing violation.
        let old = subject
            .as_it_stood()
            .filter(|old| is_child || parent_of(old, Controllers::builtin()) == Parent::None);
        let old_memo = Memo::default();
        // The object whose exemptions a copy of them may stand on; read once for all rules.
        let owner = facts.rights().owner.as_ref().and_then(|owner| {
            let owner = Subject::from_manifest(Arc::clone(owner))?;
            Some(Subject {
                door: Door::Audit,
                ..owner
            })
        });
        let owner_memo = Memo::default();
        let mut fired = BTreeSet::new();
        for rule in rules() {
            if rule.group == Group::Exemptions {
                memo.keep_fired(std::mem::take(&mut fired));
            }
            let mut found = check(rule, policy, facts, judged, now, memo);
            if let Some(level) = strongest(&found) {
                fired.insert(rule.id);
                let case = Case {
                    policy,
                    facts,
                    subject: judged,
                    rule,
                    level,
                    now,
                };
                let before = OnceCell::new();
                let before = || {
                    before.get_or_init(|| {
                        old.as_ref().map_or_else(Vec::new, |old| {
                            check(rule, policy, facts, old, now, &old_memo)
                        })
                    })
                };
                let elsewhere = || {
                    let owner = owner.as_ref()?;
                    strongest(&check(rule, policy, facts, owner, now, &owner_memo))
                };
                let standing = case.standing(old.as_ref(), || strongest(before()), elsewhere);
                if let Standing::Void { ask: true, .. } = standing {
                    asks.push(rule.id);
                }
                settle(&case, standing, old.as_ref(), before, &mut found);
            }
            if is_child {
                // Refusing what a controller writes would only make it try again for ever.
                for finding in &mut found {
                    finding.level = finding.level.min(Level::Warn);
                    if let Some(exempted) = &mut finding.exempted {
                        exempted.level = exempted.level.min(Level::Warn);
                    }
                }
            }
            findings.extend(found);
        }
        steps = memo.budget.spent();
    }
    if dry {
        for finding in &mut findings {
            finding.dry = finding.filled || finding.level == Level::Deny;
            finding.level = finding.level.min(Level::Warn);
            if let Some(exempted) = &mut finding.exempted {
                exempted.level = exempted.level.min(Level::Warn);
            }
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Review {
        findings,
        patch,
        skipped: None,
        asks,
        steps,
    }
}

/// The strongest level of some findings.
fn strongest(findings: &[Finding]) -> Option<Level> {
    findings.iter().map(|finding| finding.level).max()
}

/// Lets in what is exempt, and forgives what the old object had; says of the rest how things stand.
fn settle<'f>(
    case: &Case<'_>,
    standing: Standing,
    old: Option<&Subject>,
    before: impl Fn() -> &'f Vec<Finding>,
    found: &mut [Finding],
) {
    let is_denied = |found: &[Finding]| strongest(found) == Some(Level::Deny);
    let (mut why, refused) = match standing {
        Standing::Good(terms, source) => {
            for finding in found {
                let level = std::mem::replace(&mut finding.level, Level::Audit);
                finding.exempted = Some(Exempted {
                    terms: terms.clone(),
                    source,
                    level,
                });
            }
            return;
        }
        Standing::Void { why, refused, .. } => (Some(why), refused),
        Standing::None => (None, false),
    };
    if let Some(old) = old
        && case.policy.existing_violations == ExistingViolations::Warn
        && is_denied(found)
    {
        // A change that brings an exemption which is not granted is not let in for the sake of what
        // was there: the exemption would be there from then on, and nobody would ask again.
        if refused {
            why = why.map(|why| {
                format!("{why}; without it the change is let in where the fault was there before")
            });
        } else if !case.was_carried(old) {
            ratchet(found, before());
        } else if why.is_none() {
            why = Some(format!(
                "it was exempt before this change ({}), and is judged like anything new without",
                exempt::path(case.rule.id)
            ));
        }
    }
    let hint = why
        .map(Hint::Void)
        .or_else(|| (is_denied(found) && case.facts.rights().askable).then(|| case.advertised()));
    for finding in found {
        finding.hint.clone_from(&hint);
    }
}

fn skip(subject: &Subject) -> Option<Skip> {
    if !RULES
        .iter()
        .any(|rule| rule.covers(subject.group(), &subject.kind))
    {
        return Some(Skip::Kind);
    }
    if matches!(subject.operation, Operation::Delete | Operation::Connect)
        || subject.is_going_away()
    {
        return Some(Skip::Operation);
    }
    if !subject.subresource.is_empty() {
        return Some(Skip::Subresource);
    }
    let old = subject.old.as_ref()?;
    // The control plane lets go of objects that it keeps as they are: `kubectl delete
    // --cascade=orphan`, a ReplicaSet whose labels changed.
    let released = controller_of(&subject.value) != controller_of(old);
    let unchanged = !changed(subject, old) && (!released || subject.is_from_control_plane());
    unchanged.then_some(Skip::Unchanged)
}

/// Whether an update touched anything that a rule reads: the object's own content, or a label or
/// annotation that is declared to be read. Controllers write status, hashes and revisions to these
/// objects all day.
fn changed(subject: &Subject, old: &Arc<Value>) -> bool {
    const NOT_CONTENT: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];
    fn content(value: &Value) -> Option<Vec<(&String, &Value)>> {
        value.as_object().map(|members| {
            members
                .iter()
                .filter(|(key, _)| !NOT_CONTENT.contains(&key.as_str()))
                .collect()
        })
    }
    if content(&subject.value) != content(old) {
        return true;
    }
    let read = metadata_read(subject.group(), &subject.kind);
    let differs = |map: &str, key: &str| {
        at(&subject.value, &["metadata", map, key]) != at(old, &["metadata", map, key])
    };
    if read.labels.iter().any(|key| differs("labels", key))
        || read
            .annotations
            .iter()
            .any(|key| differs("annotations", key))
    {
        return true;
    }
    !exempt::annotations(&subject.value).eq(exempt::annotations(old))
}

/// Makes a rule's fills, all of them or none.
fn fill<'a>(
    rule: &'static Rule,
    policy: &'a Policy,
    facts: &'a Facts,
    subject: &'a Subject,
    now: Timestamp,
    memo: &'a Memo<'a>,
    patcher: &mut Option<Patcher>,
) -> Vec<Finding> {
    let (Some(fill), Some(effective)) = (rule.fill, policy.effective(rule, subject, facts)) else {
        return Vec::new();
    };
    if effective.level < RuleLevel::Warn {
        return Vec::new();
    }
    let mut edits = Edits::new();
    fill(
        &Context {
            subject,
            facts,
            policy,
            params: effective.params.as_ref(),
            now,
            memo,
        },
        &mut edits,
    );
    if edits.is_empty() {
        return Vec::new();
    }
    let copy = || Patcher::new(Value::clone(&subject.value));
    let patcher = patcher.get_or_insert_with(copy);
    let before = patcher.clone();
    let mut filled = Vec::new();
    for one in edits.into_vec() {
        match patcher.apply(&one.edit) {
            Outcome::Made => {
                let (Edit::Set { path, value } | Edit::Append { path, value }) = one.edit;
                filled.push(Finding {
                    rule: rule.id,
                    level: Level::Info,
                    filled: true,
                    ..Finding::new(path, one.message).value(value)
                });
            }
            Outcome::Same => {}
            Outcome::Impossible => {
                *patcher = before;
                return Vec::new();
            }
        }
    }
    filled
}

/// Judges an object by one rule, with the policy's level applied.
fn check<'a>(
    rule: &'static Rule,
    policy: &'a Policy,
    facts: &'a Facts,
    subject: &'a Subject,
    now: Timestamp,
    memo: &'a Memo<'a>,
) -> Vec<Finding> {
    let Some(effective) = policy.effective(rule, subject, facts) else {
        return Vec::new();
    };
    let Some(level) = effective.level.level() else {
        return Vec::new();
    };
    let mut findings = Findings::new(rule);
    (rule.check)(
        &Context {
            subject,
            facts,
            policy,
            params: effective.params.as_ref(),
            now,
            memo,
        },
        &mut findings,
    );
    let mut found = findings.into_vec();
    for finding in &mut found {
        finding.level = if finding.level >= rule.level {
            level
        } else {
            finding.level.min(level)
        };
        if finding.confidence == Confidence::Unknown {
            finding.level = finding.level.min(Level::Warn);
        }
    }
    found
}

/// What the old object would have been denied for already, and no less, is not this write's doing. A
/// warning forgives nothing: what was only doubtful before may be wrong now.
fn ratchet(found: &mut [Finding], before: &[Finding]) {
    let mut severest: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for old in before.iter().filter(|old| old.level == Level::Deny) {
        let severity = severest.entry((old.rule, &old.fingerprint)).or_default();
        *severity = old.severity.max(*severity);
    }
    for finding in found
        .iter_mut()
        .filter(|finding| finding.level == Level::Deny)
    {
        let had = severest
            .get(&(finding.rule, finding.fingerprint.as_str()))
            .is_some_and(|severity| *severity >= finding.severity);
        if had {
            finding.level = Level::Warn;
            finding.ratcheted = true;
        }
    }
}
