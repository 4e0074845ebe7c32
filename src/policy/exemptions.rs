//! What a policy says of exemptions: bounds of those on objects, and those of whole namespaces.

use jiff::Timestamp;

use super::{
    PolicyError,
    file::{ExemptionsFile, NamespaceExemption},
    namespaces::Pattern,
};
use crate::{
    exempt::{self, Terms},
    finding::FieldPath,
    rules,
};

/// What a policy says of exemptions.
#[derive(Clone, Debug, Default)]
pub struct Exemptions {
    /// How many days ahead a new exemption may end.
    pub max_days: u32,
    namespaces: Vec<NamespacesExempted>,
    review_required: Vec<String>,
}

/// Namespaces that are exempt from some rules.
#[derive(Clone, Debug)]
pub struct NamespacesExempted {
    /// The position in `exemptions.namespaces`.
    pub index: usize,
    /// The names and patterns as they are written.
    pub namespaces: Vec<String>,
    /// The rules.
    pub rules: Vec<&'static str>,
    /// Until when, on whose account and why.
    pub terms: Terms,
    patterns: Vec<Pattern>,
}

impl NamespacesExempted {
    fn read(index: usize, written: &NamespaceExemption) -> Result<Self, PolicyError> {
        let path = FieldPath::of(&["exemptions", "namespaces"]).index(index);
        let wrong = |path: FieldPath, message: String| PolicyError { path, message };
        let patterns = Pattern::list(&path, &written.namespaces)?;
        if written.rules.is_empty() {
            return Err(wrong(path.key("rules"), "names no rule".to_owned()));
        }
        let mut rules = Vec::new();
        for (position, id) in written.rules.iter().enumerate() {
            let place = || path.clone().key("rules").index(position);
            let rule = rules::find(id).map_err(|message| wrong(place(), message))?;
            if !exempt::is_exemptable(rule) {
                let message = format!("nobody is exempt from {id}");
                return Err(wrong(place(), message));
            }
            rules.push(rule.id);
        }
        let NamespaceExemption {
            until,
            owner,
            reason,
            ..
        } = written;
        Ok(Self {
            index,
            namespaces: written.namespaces.clone(),
            rules,
            terms: terms(&path, "exemption", [until, owner, reason])?,
            patterns,
        })
    }

    /// Whether a namespace is one of them.
    pub fn covers(&self, namespace: &str) -> bool {
        Pattern::any_matches(&self.patterns, namespace)
    }

    /// Where it stands in the policy file.
    pub fn path(&self) -> FieldPath {
        FieldPath::of(&["exemptions", "namespaces"]).index(self.index)
    }
}

/// Reads until when, on whose account and why; `what` says in errors whose terms they are.
pub(super) fn terms(
    path: &FieldPath,
    what: &str,
    [until, owner, reason]: [&String; 3],
) -> Result<Terms, PolicyError> {
    let wrong = |member: &str, message: String| PolicyError {
        path: path.clone().key(member),
        message,
    };
    for (member, text) in [("owner", owner), ("reason", reason)] {
        if text.trim().is_empty() {
            let message = format!("is empty; every {what} has its {member}");
            return Err(wrong(member, message));
        }
    }
    let until = exempt::date(until.trim())
        .map_err(|fault| wrong("until", format!("{fault}; write it as 2027-01-31")))?;
    Ok(Terms {
        until,
        owner: owner.trim().to_owned(),
        reason: reason.trim().to_owned(),
    })
}

impl Exemptions {
    /// Reads what the file says of exemptions.
    pub(super) fn read(file: &ExemptionsFile) -> Result<Self, PolicyError> {
        let exempted = file.namespaces.iter().enumerate();
        Ok(Self {
            max_days: file.max_days,
            namespaces: exempted
                .map(|(index, written)| NamespacesExempted::read(index, written))
                .collect::<Result<_, _>>()?,
            review_required: file.review_required.clone(),
        })
    }

    /// The exemptions of whole namespaces, in the order of the file.
    pub fn namespaces(&self) -> &[NamespacesExempted] {
        &self.namespaces
    }

    /// The exemption of a namespace from a rule that holds longest, over or not.
    pub fn of_namespace(&self, namespace: Option<&str>, rule: &str) -> Option<&NamespacesExempted> {
        let namespace = namespace?;
        self.namespaces
            .iter()
            .filter(|exempted| exempted.rules.contains(&rule) && exempted.covers(namespace))
            .max_by_key(|exempted| exempted.terms.until)
    }

    /// Whether the right of this user to exempt does not count.
    pub fn is_review_required(&self, user: &str, groups: &[String]) -> bool {
        self.review_required
            .iter()
            .any(|listed| listed == user || groups.contains(listed))
    }

    /// A line for each exemption that has ended, or ends soon.
    pub(super) fn ending(&self, now: Timestamp) -> Vec<String> {
        self.namespaces
            .iter()
            .filter_map(|exempted| {
                let Terms { until, owner, .. } = &exempted.terms;
                let (path, rules) = (exempted.path(), exempted.rules.join(", "));
                let what = format!("the policy's {path} ({rules}; owner {owner})");
                if exempted.terms.is_over(now) {
                    Some(format!("{what} ended with {until} and exempts nothing"))
                } else if exempted.terms.ends_soon(now) {
                    Some(format!("{what} ends with {until}"))
                } else {
                    None
                }
            })
            .collect()
    }
}
