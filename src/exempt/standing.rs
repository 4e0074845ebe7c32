//! Whether an exemption covers what a rule has found in an object.

use jiff::Timestamp;

use super::{Grant, Hint, PREFIX, Source, Terms, annotation, is_exemptable, latest, path};
use crate::{
    facts::Facts,
    finding::Level,
    policy::Policy,
    rules::Rule,
    subject::{Door, Subject},
};

/// A rule that has found something in an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) facts: &'a Facts,
    pub(crate) subject: &'a Subject,
    pub(crate) rule: &'static Rule,
    /// The strongest of what it has found.
    pub(crate) level: Level,
    pub(crate) now: Timestamp,
}

/// How things stand with the exemption from a rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// Nobody claims one.
    None,
    /// There is one.
    Good(Terms, Source),
    /// Somebody claims one that does not count.
    Void {
        /// Why not.
        why: String,
        /// It would count if the requester had the right, and this write brings it.
        refused: bool,
        /// Nobody has asked yet whether the requester has it.
        ask: bool,
    },
}

impl Standing {
    fn void(why: String) -> Self {
        Self::Void {
            why,
            refused: false,
            ask: false,
        }
    }
}

impl Case<'_> {
    /// How things stand. `before` tells the strongest of what the rule finds in the object that is
    /// replaced, and `elsewhere` in the owner.
    ///
    /// An exemption that is not this write's doing counts where what it stood on needed it as much as
    /// the object at hand: then somebody was asked when it came. One that lay ready on an object
    /// without fault was let in unseen.
    pub(crate) fn standing(
        &self,
        old: Option<&Subject>,
        before: impl Fn() -> Option<Level>,
        elsewhere: impl Fn() -> Option<Level>,
    ) -> Standing {
        let Self {
            policy,
            facts,
            subject,
            rule,
            level,
            now,
        } = *self;
        if !is_exemptable(rule) {
            return Standing::None;
        }
        let of_namespace = policy
            .exemptions()
            .of_namespace(subject.namespace.as_deref(), rule.id);
        if let Some(exempted) = of_namespace
            && !exempted.terms.is_over(now)
        {
            return Standing::Good(exempted.terms.clone(), Source::Policy);
        }
        let Some(claimed) = annotation(&subject.value, rule.id) else {
            return of_namespace.map_or(Standing::None, |exempted| {
                let Terms { until, owner, .. } = &exempted.terms;
                Standing::void(format!(
                    "the policy's {} ended with {until} (owner {owner})",
                    exempted.path()
                ))
            });
        };
        let place = path(rule.id);
        let terms = match claimed.terms() {
            Ok(terms) => terms,
            Err(faults) => return Standing::void(format!("{place} cannot be read: {faults}")),
        };
        if terms.is_over(now) {
            let Terms { until, owner, .. } = &terms;
            let why = format!(
                "{place} ended with {until} (owner {owner}); mend the fault, or have its end moved by somebody who may exempt"
            );
            return Standing::void(why);
        }
        if subject.door == Door::Audit {
            return Standing::Good(terms, Source::Annotation);
        }
        let stood = old.and_then(|old| annotation(&old.value, rule.id)) == Some(claimed);
        if stood && before() >= Some(level) {
            return Standing::Good(terms, Source::Annotation);
        }
        // One that nobody was asked for is a new one, however long it has stood there.
        if terms.until > latest(now, policy.exemptions().max_days) {
            let max_days = policy.exemptions().max_days;
            let why = format!("{place} ends more than {max_days} days ahead");
            return Standing::void(why);
        }
        if subject.door == Door::Check {
            return Standing::Good(terms, Source::Annotation);
        }
        let rights = facts.rights();
        if let Some(owner) = &rights.owner
            && annotation(owner, rule.id) == Some(claimed)
            && elsewhere() >= Some(level)
        {
            return Standing::Good(terms, Source::Annotation);
        }
        let (user, id) = (&subject.user, rule.id);
        let place_of = subject
            .namespace
            .as_ref()
            .map_or_else(String::new, |namespace| {
                format!(" in namespace {namespace}")
            });
        let answer = rights.answers.get(rule.id);
        let why = match answer {
            Some(Grant::Allowed) => return Standing::Good(terms, Source::Annotation),
            Some(Grant::Refused) => format!(
                "{place} does not count: user \"{user}\" may not exempt from {id}{place_of} (verb exempt, resource rules.gangplank.dev)"
            ),
            Some(Grant::ReviewRequired) => format!(
                "{place} does not count: the policy does not let user \"{user}\" exempt (exemptions.reviewRequired); somebody who may has to write the object with it first"
            ),
            Some(Grant::Unanswered) => format!(
                "{place} does not count: the API server did not say in time whether user \"{user}\" may exempt; try again"
            ),
            None => format!(
                "{place} does not count: nobody could be asked whether user \"{user}\" may exempt"
            ),
        };
        Standing::Void {
            why,
            refused: true,
            ask: answer.is_none() && rights.askable,
        }
    }

    /// Whether the old object carried what was found under an exemption, be it over or unreadable: that
    /// is no existing violation.
    pub(crate) fn was_carried(&self, old: &Subject) -> bool {
        let of_namespace = self
            .policy
            .exemptions()
            .of_namespace(self.subject.namespace.as_deref(), self.rule.id);
        of_namespace.is_some() || annotation(&old.value, self.rule.id).is_some()
    }

    /// How an exemption from the rule would be written.
    pub(crate) fn advertised(&self) -> Hint {
        let until = latest(self.now, self.policy.exemptions().max_days);
        Hint::Annotation(format!(
            "{PREFIX}{}: \"until={until}; owner=<team>; reason=<why>\"",
            self.rule.id
        ))
    }
}

/// Whether somebody says that a rule shall not hold for an object: then it fills nothing in either. It
/// is not asked whether they may, for whoever may not is refused when the object is judged.
pub(crate) fn is_claimed(
    policy: &Policy,
    subject: &Subject,
    rule: &'static Rule,
    now: Timestamp,
) -> bool {
    if !is_exemptable(rule) {
        return false;
    }
    let of_namespace = policy
        .exemptions()
        .of_namespace(subject.namespace.as_deref(), rule.id);
    of_namespace.is_some_and(|exempted| !exempted.terms.is_over(now))
        || annotation(&subject.value, rule.id)
            .and_then(|claimed| claimed.terms().ok())
            .is_some_and(|terms| !terms.is_over(now))
}
