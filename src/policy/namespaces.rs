//! Which namespaces and workloads a policy speaks of: names, patterns and labels.

use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobMatcher};

use super::{PolicyError, file::LabelSelector};
use crate::{facts::Facts, finding::FieldPath};

/// A set of namespaces.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) patterns: Vec<Pattern>,
    pub(super) labels: BTreeMap<String, String>,
}

/// A workload that keeps spare capacity warm.
#[derive(Clone, Debug)]
pub(super) struct WarmPool {
    pub(super) namespace: Pattern,
    pub(super) kind: String,
    pub(super) name: String,
}

impl WarmPool {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [namespace, kind, name] = parts.as_slice() else {
            return Err(format!("\"{text}\" is not <namespace>/<kind>/<name>"));
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("\"{text}\" is not <namespace>/<kind>/<name>"));
        }
        Ok(Self {
            namespace: Pattern::new(namespace)?,
            kind: (*kind).to_owned(),
            name: (*name).to_owned(),
        })
    }
}

/// A name, or a pattern with `*` and `?`.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) text: String,
    matcher: Option<GlobMatcher>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let matcher = if text.contains(['*', '?', '[', '{']) {
            let glob = GlobBuilder::new(text)
                .literal_separator(false)
                .build()
                .map_err(|error| format!("\"{text}\" is no pattern: {}", error.kind()))?;
            Some(glob.compile_matcher())
        } else {
            None
        };
        Ok(Self {
            text: text.to_owned(),
            matcher,
        })
    }

    /// Reads the names and patterns of the member `namespaces`, at least one.
    pub(super) fn list(path: &FieldPath, names: &[String]) -> Result<Vec<Self>, PolicyError> {
        if names.is_empty() {
            return Err(PolicyError {
                path: path.clone().key("namespaces"),
                message: "names no namespace".to_owned(),
            });
        }
        Ok(Namespaces::read(path, names, &LabelSelector::default())?.patterns)
    }

    /// Whether a name is one of some, or fits one of them.
    pub(super) fn any_matches(patterns: &[Self], name: &str) -> bool {
        patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether it is a name, and not a pattern.
    pub(super) const fn is_exact(&self) -> bool {
        self.matcher.is_none()
    }

    /// Whether a name is the one, or fits the pattern.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.matcher
            .as_ref()
            .map_or(self.text == name, |matcher| matcher.is_match(name))
    }
}

impl Namespaces {
    pub(super) fn read(
        path: &FieldPath,
        names: &[String],
        selector: &LabelSelector,
    ) -> Result<Self, PolicyError> {
        let patterns = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                Pattern::new(name).map_err(|message| PolicyError {
                    path: path.clone().key("namespaces").index(index),
                    message,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patterns,
            labels: selector.match_labels.clone(),
        })
    }

    /// A namespace whose labels are not known matches no selector.
    pub(super) fn contain(&self, namespace: &str, facts: &Facts) -> bool {
        if Pattern::any_matches(&self.patterns, namespace) {
            return true;
        }
        if self.labels.is_empty() {
            return false;
        }
        self.labels
            .iter()
            .all(|(key, value)| facts.namespace_label(namespace, key) == Some(value))
    }
}
