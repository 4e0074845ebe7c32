//! What a review says: findings at field paths, and the verdict they add up to.

use std::fmt;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exempt::{Exempted, Hint};

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// A member of an object.
    Key(CompactString),
    /// An element of a list, from 0.
    Index(usize),
}

/// Where in an object something stands, as Kubernetes writes it:
/// `spec.triggers[0].metadata.query`, `metadata.annotations[kai.scheduler/queue]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(Vec<Segment>);

impl FieldPath {
    /// The object itself.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The path of nested members, outermost first.
    pub fn of(keys: &[&str]) -> Self {
        Self(
            keys.iter()
                .map(|key| Segment::Key(CompactString::new(key)))
                .collect(),
        )
    }

    /// This path and a member below it.
    #[must_use]
    pub fn key(mut self, key: impl Into<CompactString>) -> Self {
        self.0.push(Segment::Key(key.into()));
        self
    }

    /// This path and a list element below it.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Segment::Index(index));
        self
    }

    /// This path and nested members below it, outermost first.
    #[must_use]
    pub fn keys(mut self, keys: &[&str]) -> Self {
        self.0
            .extend(keys.iter().map(|key| Segment::Key(CompactString::new(key))));
        self
    }

    /// This path and another below it.
    #[must_use]
    pub fn join(mut self, below: &Self) -> Self {
        self.0.extend_from_slice(&below.0);
        self
    }

    /// The steps, outermost first.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// The steps as text, outermost first; an index as its number.
    pub fn steps(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|segment| match segment {
                Segment::Key(key) => key.to_string(),
                Segment::Index(index) => index.to_string(),
            })
            .collect()
    }

    /// The path of the object or list that holds this one; none for the object itself.
    pub fn parent(&self) -> Option<Self> {
        let (_, above) = self.0.split_last()?;
        Some(Self(above.to_vec()))
    }

    /// The same place as a JSON pointer (RFC 6901).
    pub fn pointer(&self) -> String {
        let mut out = String::new();
        for segment in &self.0 {
            out.push('/');
            match segment {
                Segment::Key(key) => out.push_str(&key.replace('~', "~0").replace('/', "~1")),
                Segment::Index(index) => out.push_str(&index.to_string()),
            }
        }
        out
    }

    /// What stands there; `None` where nothing does or where a step meets another type.
    pub fn lookup<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(value, |at, segment| match segment {
            Segment::Key(key) => at.as_object()?.get(key.as_str()),
            Segment::Index(index) => at.as_array()?.get(*index),
        })
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => {
                    let plain = !key.is_empty()
                        && key
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                    match (plain, position) {
                        (true, 0) => write!(f, "{key}")?,
                        (true, _) => write!(f, ".{key}")?,
                        (false, _) => write!(f, "[{key}]")?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// How strong a finding is, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something was filled in; nothing is wrong.
    Info,
    /// Shown in reports and metrics only.
    Audit,
    /// Shown to whoever writes the object.
    Warn,
    /// The object is refused.
    Deny,
}

impl Level {
    /// The word used in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Audit => "audit",
            Self::Warn => "warn",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How sure a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Something it rests on is not known: it never denies.
    Unknown,
    /// It rests on what is very probably so, as a whole block of defaults being nobody's writing.
    Presumed,
    /// It follows from what the object says.
    Certain,
}

impl Confidence {
    /// The word used in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Presumed => "presumed",
            Self::Certain => "certain",
        }
    }
}

/// One thing that a rule found, or filled.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, as in the JSON report"
)]
pub struct Finding {
    /// The id of the rule that speaks.
    pub rule: &'static str,
    /// How strong it is after the policy and the ratchet had their say.
    pub level: Level,
    /// The field it is about.
    pub path: FieldPath,
    /// What stands there, where something does.
    pub value: Option<Value>,
    /// What is found and why it hurts: one or two plain sentences.
    pub message: String,
    /// The YAML to write instead; empty where there is none to name.
    pub instead: String,
    /// What to write instead mends every finding of the object that says the same.
    pub mends_all: bool,
    /// How sure it is.
    pub confidence: Confidence,
    /// Identity across versions of the object, made from what matters and never from a position
    /// in a list: an UPDATE that finds the same as before is not refused for it.
    pub fingerprint: String,
    /// Compares findings of one fingerprint: higher is worse.
    pub severity: u32,
    /// The field was silent and has been filled.
    pub filled: bool,
    /// The old object had it already, so a denial became a warning.
    pub ratcheted: bool,
    /// Under `mode: dryRun`: it would have been denied, or filled.
    pub dry: bool,
    /// The exemption by which it is let in.
    pub exempted: Option<Exempted>,
    /// Why it is not exempt, or how it could be.
    pub hint: Option<Hint>,
}

impl Finding {
    /// A finding of `rule`'s full level; [`crate::review::review`] applies the policy.
    pub fn new(path: FieldPath, message: impl Into<String>) -> Self {
        Self {
            rule: "",
            level: Level::Deny,
            path,
            value: None,
            message: message.into(),
            instead: String::new(),
            mends_all: false,
            confidence: Confidence::Certain,
            fingerprint: String::new(),
            severity: 0,
            filled: false,
            ratcheted: false,
            dry: false,
            exempted: None,
            hint: None,
        }
    }

    /// With what stands at the path.
    #[must_use]
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// With the YAML to write instead.
    #[must_use]
    pub fn instead(mut self, yaml: impl Into<String>) -> Self {
        self.instead = yaml.into();
        self
    }

    /// With less than certainty.
    #[must_use]
    pub fn confidence(mut self, confidence: Confidence) -> Self {
        self.confidence = confidence;
        self
    }

    /// With what tells it from other findings of the rule on any version of the object.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = fingerprint.into();
        self
    }

    /// With YAML to write instead that mends other findings of the same object, too.
    #[must_use]
    pub fn mends_all(mut self) -> Self {
        self.mends_all = true;
        self
    }

    /// Whether what is to be written instead is the same for the next finding and mends both, so
    /// that it need not be said twice.
    pub fn is_mended_with(&self, next: &Self) -> bool {
        self.mends_all
            && (self.rule, self.level, &self.instead) == (next.rule, next.level, &next.instead)
    }

    /// With how bad it is among findings of the same fingerprint.
    #[must_use]
    pub fn severity(mut self, severity: u32) -> Self {
        self.severity = severity;
        self
    }
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to say beyond what was filled or is only audited.
    Allow,
    /// Let in, with at least one warning.
    Warn,
    /// Refused.
    Deny,
}

impl Verdict {
    /// The word used in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Warn => "warn",
            Self::Deny => "deny",
        }
    }

    /// The verdict that these findings add up to.
    pub fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.level).max() {
            Some(Level::Deny) => Self::Deny,
            Some(Level::Warn) => Self::Warn,
            _ => Self::Allow,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_read_as_kubernetes_writes_them() {
        let path = FieldPath::of(&["spec", "triggers"])
            .index(0)
            .keys(&["metadata", "query"]);
        assert_eq!(path.to_string(), "spec.triggers[0].metadata.query");
        assert_eq!(path.pointer(), "/spec/triggers/0/metadata/query");
        let awkward = FieldPath::of(&["metadata", "annotations", "kai.scheduler/queue"]);
        assert_eq!(
            awkward.to_string(),
            "metadata.annotations[kai.scheduler/queue]"
        );
        assert_eq!(
            awkward.pointer(),
            "/metadata/annotations/kai.scheduler~1queue"
        );
    }

    #[test]
    fn lookup_stops_at_another_type() {
        let value = json!({"spec": {"triggers": "none"}});
        assert_eq!(
            FieldPath::of(&["spec", "triggers"]).index(0).lookup(&value),
            None
        );
        assert_eq!(
            FieldPath::of(&["spec", "triggers"]).lookup(&value),
            Some(&json!("none"))
        );
    }

    #[test]
    fn the_strongest_finding_decides() {
        let at = |level| Finding {
            level,
            ..Finding::new(FieldPath::new(), "")
        };
        assert_eq!(Verdict::of(&[]), Verdict::Allow);
        assert_eq!(
            Verdict::of(&[at(Level::Info), at(Level::Audit)]),
            Verdict::Allow
        );
        assert_eq!(
            Verdict::of(&[at(Level::Info), at(Level::Warn)]),
            Verdict::Warn
        );
        assert_eq!(
            Verdict::of(&[at(Level::Deny), at(Level::Warn)]),
            Verdict::Deny
        );
    }
}
