//! Restores: namespaces in which nothing is denied or filled while a backup is restored into them.
//!
//! A restore brings objects back as they were, children of controllers without their owners and before
//! their parents, and whoever restores cannot rewrite them. For a few days their namespaces are in
//! `dryRun`, and the date sees to it that this ends.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{PolicyError, exemptions::terms, file::RestoreFile, namespaces::Pattern};
use crate::{
    exempt::{Terms, latest},
    finding::FieldPath,
};

/// How many days ahead of today the end of a restore may be.
pub const RESTORE_DAYS: u32 = 7;

/// Namespaces that are being restored.
#[derive(Clone, Debug)]
pub(super) struct Restore {
    /// The position in `restore`.
    pub(super) index: usize,
    /// Until when, on whose account and why.
    pub(super) terms: Terms,
    patterns: Vec<Pattern>,
}

impl Restore {
    /// Reads one entry. Whether its date is near is another question: [`Self::check`].
    pub(super) fn read(index: usize, written: &RestoreFile) -> Result<Self, PolicyError> {
        let path = FieldPath::of(&["restore"]).index(index);
        let RestoreFile {
            namespaces,
            until,
            owner,
            reason,
        } = written;
        Ok(Self {
            index,
            patterns: Pattern::list(&path, namespaces)?,
            terms: terms(&path, "restore", [until, owner, reason])?,
        })
    }

    /// Whether a namespace is one of them.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        Pattern::any_matches(&self.patterns, namespace)
    }

    /// Whether it holds: it has not ended, and its end is near enough.
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        !self.terms.is_over(now) && !self.is_far(now)
    }

    /// Whether its end is further ahead than a restore may last.
    fn is_far(&self, now: Timestamp) -> bool {
        self.terms.until > latest(now, RESTORE_DAYS)
    }

    /// Checks the date against the clock.
    ///
    /// # Errors
    /// Where the end is further ahead than a restore may last.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), PolicyError> {
        if !self.is_far(now) {
            return Ok(());
        }
        Err(PolicyError {
            path: self.path().key("until"),
            message: format!(
                "{} is more than {RESTORE_DAYS} days ahead, and a restore is over by then; the latest is {}",
                self.terms.until,
                latest(now, RESTORE_DAYS)
            ),
        })
    }

    /// What it does at a moment, in a line.
    pub(super) fn told(&self, now: Timestamp) -> String {
        let Terms { until, owner, .. } = &self.terms;
        let patterns: Vec<&str> = self.patterns.iter().map(|one| one.text.as_str()).collect();
        let (path, names) = (self.path(), patterns.join(", "));
        let what = format!("the policy's {path} ({names}; owner {owner})");
        if self.terms.is_over(now) {
            format!("{what} ended with {until} and changes nothing")
        } else if self.is_far(now) {
            format!("{what} changes nothing yet: {until} is more than {RESTORE_DAYS} days ahead")
        } else {
            format!("{what} holds through {until}: nothing is denied or filled in these namespaces")
        }
    }

    /// As an entry of a policy file that names this namespace alone.
    pub(super) fn narrowed(&self, namespace: &str) -> Value {
        let Terms {
            until,
            owner,
            reason,
        } = &self.terms;
        json!({
            "namespaces": [namespace], "until": until.to_string(), "owner": owner, "reason": reason,
        })
    }

    fn path(&self) -> FieldPath {
        FieldPath::of(&["restore"]).index(self.index)
    }
}
