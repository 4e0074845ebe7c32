//! Which exemptions there are: from what, for what, until when, by whom and why.

use std::fmt::Write;

use jiff::{Timestamp, civil::Date};
use serde_json::{Value, json};

use super::ObjectName;
use crate::{
    exempt::{Annotation, SOON_DAYS, Source, Terms},
    policy::NamespacesExempted,
    rules::exemptions::exemption_malformed::fault,
    text::{cut, harmless},
};

/// How an exemption stands, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It cannot be read, and exempts from nothing.
    Malformed,
    /// It has ended.
    Expired,
    /// It ends within [`SOON_DAYS`] days.
    Expiring,
    /// It holds.
    Valid,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Malformed, Self::Expired, Self::Expiring, Self::Valid];

    /// The word used in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Expiring => "expiring",
            Self::Valid => "valid",
        }
    }

    fn of(terms: &Terms, now: Timestamp) -> Self {
        if terms.is_over(now) {
            Self::Expired
        } else if terms.ends_soon(now) {
            Self::Expiring
        } else {
            Self::Valid
        }
    }
}

/// One exemption from one rule.
#[derive(Clone, Debug)]
pub struct Entry {
    /// How it stands.
    pub state: State,
    /// The rule's id, or what was meant to be one.
    pub rule: String,
    /// What it says; why it cannot be read where it cannot.
    pub terms: Result<Terms, String>,
    /// Where it stands.
    pub source: Source,
    /// The object that is exempt; none for whole namespaces.
    pub object: Option<ObjectName>,
    /// File and line, where it comes from a file.
    pub place: Option<(String, Option<usize>)>,
    /// The namespaces that are exempt, names and patterns; none for an object.
    pub namespaces: Vec<String>,
    /// The rule finds nothing that would need it; none where that cannot be told.
    pub unused: Option<bool>,
}

impl Entry {
    /// Of an annotation. In files, every annotation is a new one.
    pub fn of_annotation(
        annotation: &Annotation<'_>,
        is_new: bool,
        now: Timestamp,
        max_days: u32,
    ) -> Self {
        let terms = match fault(annotation, is_new, now, max_days) {
            Some(fault) => Err(fault.message),
            None => annotation.terms().map_err(|faults| faults.to_string()),
        };
        Self {
            state: terms
                .as_ref()
                .map_or(State::Malformed, |terms| State::of(terms, now)),
            rule: annotation.rule.to_owned(),
            terms,
            source: Source::Annotation,
            object: None,
            place: None,
            namespaces: Vec::new(),
            unused: None,
        }
    }

    /// Of whole namespaces, from one of the rules.
    pub fn of_namespaces(exempted: &NamespacesExempted, rule: &str, now: Timestamp) -> Self {
        Self {
            state: State::of(&exempted.terms, now),
            rule: rule.to_owned(),
            terms: Ok(exempted.terms.clone()),
            source: Source::Policy,
            object: None,
            place: None,
            namespaces: exempted.namespaces.clone(),
            unused: None,
        }
    }

    fn until(&self) -> Option<Date> {
        self.terms.as_ref().ok().map(|terms| terms.until)
    }

    fn subject(&self) -> String {
        match &self.object {
            Some(object) => object.to_string(),
            None => format!("namespaces {}", self.namespaces.join(", ")),
        }
    }
}

/// All exemptions of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The exemptions.
    pub entries: Vec<Entry>,
    /// What could not be read.
    pub errors: Vec<String>,
}

impl Ledger {
    /// In the order in which somebody has to see to them.
    pub fn sort(&mut self) {
        self.entries
            .sort_by_cached_key(|entry| (entry.state, entry.until(), entry.subject()));
    }

    /// 2 where something could not be read, else 1 where an exemption has ended or cannot be read.
    pub fn exit_code(&self) -> u8 {
        let void = |entry: &Entry| matches!(entry.state, State::Malformed | State::Expired);
        if !self.errors.is_empty() {
            crate::cli::FAILED
        } else if self.entries.iter().any(void) {
            crate::cli::DENIED
        } else {
            crate::cli::OK
        }
    }

    fn count(&self, state: State) -> usize {
        let is = |entry: &&Entry| entry.state == state;
        self.entries.iter().filter(is).count()
    }

    fn unused(&self) -> usize {
        let unused = |entry: &&Entry| entry.unused == Some(true);
        self.entries.iter().filter(unused).count()
    }

    /// For people: a table, and what it adds up to.
    pub fn text(&self) -> String {
        const WIDEST: usize = 60;
        let mut rows =
            vec![["STATE", "UNTIL", "RULE", "EXEMPT", "OWNER", "WHY"].map(str::to_owned)];
        for entry in &self.entries {
            let mut state = entry.state.as_str().to_owned();
            if entry.unused == Some(true) {
                state.push_str(", unused");
            }
            let subject = entry.subject();
            let (until, owner, why) = match &entry.terms {
                Ok(terms) => (
                    terms.until.to_string(),
                    terms.owner.clone(),
                    terms.reason.clone(),
                ),
                Err(problem) => ("-".to_owned(), "-".to_owned(), problem.clone()),
            };
            let line = |text: &str| {
                let text = harmless(text);
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            let cell = |text: &str| cut(&line(text), WIDEST);
            rows.push([
                state,
                until,
                cell(&entry.rule),
                cell(&subject),
                cell(&owner),
                line(&why),
            ]);
        }
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.entries.is_empty() {
            for row in &rows {
                let mut line = String::new();
                for (width, cell) in widths.iter().zip(row) {
                    let _ = write!(line, "{cell:width$}  ");
                }
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        for error in &self.errors {
            let _ = writeln!(text, "error: {}", harmless(error));
        }
        let count = self.entries.len();
        let plural = if count == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "{count} exemption{plural}: {} valid, {} ending within {SOON_DAYS} days, {} expired, {} malformed; {} unused",
            self.count(State::Valid),
            self.count(State::Expiring),
            self.count(State::Expired),
            self.count(State::Malformed),
            self.unused(),
        );
        text
    }

    /// For programs.
    pub fn json(&self, now: Timestamp) -> String {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                let terms = entry.terms.as_ref().ok();
                json!({
                    "rule": entry.rule,
                    "state": entry.state.as_str(),
                    "unused": entry.unused,
                    "until": terms.map(|terms| terms.until.to_string()),
                    "daysLeft": terms.map(|terms| terms.days_left(now)),
                    "owner": terms.map(|terms| &terms.owner),
                    "reason": terms.map(|terms| &terms.reason),
                    "source": entry.source,
                    "object": entry.object.as_ref().map(|object| json!({
                        "apiVersion": object.api_version, "kind": object.kind,
                        "namespace": object.namespace, "name": object.name,
                    })),
                    "namespaces": entry.namespaces,
                    "file": entry.place.as_ref().map(|(file, _)| file),
                    "line": entry.place.as_ref().and_then(|(_, line)| *line),
                    "error": entry.terms.as_ref().err(),
                })
            })
            .collect();
        let document = json!({
            "apiVersion": "gangplank.dev/v1",
            "exemptions": entries,
            "errors": self.errors,
            "summary": {
                "exemptions": self.entries.len(),
                "valid": self.count(State::Valid),
                "expiring": self.count(State::Expiring),
                "expired": self.count(State::Expired),
                "malformed": self.count(State::Malformed),
                "unused": self.unused(),
                "errors": self.errors.len(),
            },
        });
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }
}
