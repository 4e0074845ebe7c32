//! What a run over many objects found, and the forms it is printed in. The only module that prints.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use crate::{
    finding::{FieldPath, Finding, Level, Segment, Verdict},
    review::Review,
    source::Marks,
    subject::Subject,
};

pub mod audit;
pub mod exemptions;
pub mod github;
pub mod html;
pub mod human;
pub mod json;
pub mod junit;
pub mod replay;
pub mod sarif;

/// A run over many objects.
#[derive(Debug, Default)]
pub struct Report {
    /// What was judged or could not be read, in the order of files and documents.
    pub entries: Vec<Entry>,
    /// Counts over all of it.
    pub summary: Summary,
    /// What a folder walk passed by.
    pub passed_by: PassedBy,
    /// Findings that were there before, by their fingerprint and how often: they are counted, and left
    /// out. An object with one more of the same is told of that one.
    pub baseline: BTreeMap<String, usize>,
}

/// One object, or one place where there was none to be read.
#[derive(Debug)]
pub struct Entry {
    /// Where it comes from; none for what lives in a cluster, of which there is much.
    pub origin: Option<Box<Origin>>,
    /// Which object; none where none could be read.
    pub object: Option<ObjectName>,
    /// Who an object of a cluster belongs to, where it says so.
    pub owner: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an entry.
#[derive(Debug)]
pub enum Outcome {
    /// It was judged.
    Reviewed(Review),
    /// It could not be read.
    Failed(Problem),
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
}

/// Where in a file an object stands.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file's name as it was given; `-` for standard input.
    pub file: Arc<str>,
    /// The file's text; empty where it could not be read.
    pub text: Arc<str>,
    /// The position of the document in the file, from 0.
    pub document: Option<usize>,
    /// The position of the object in a List, from 0.
    pub item: Option<usize>,
    /// The line on which the object begins, from 1.
    pub line: Option<usize>,
    /// The places of the document's values.
    pub marks: Arc<Marks>,
}

impl Origin {
    /// Where a path of the object stands in the text: see [`Marks::locate`].
    pub fn locate(&self, path: &FieldPath) -> (Range<usize>, Option<Range<usize>>) {
        let Some(item) = self.item else {
            return self.marks.locate(path);
        };
        let whole = FieldPath::of(&["items"]).index(item).join(path);
        self.marks.locate(&whole)
    }

    /// The line and column, from 1, of a byte of the text.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        self.marks.line_column(&self.text, offset)
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// Its name, where it has one.
    pub name: Option<String>,
}

impl From<&Subject> for ObjectName {
    fn from(subject: &Subject) -> Self {
        Self {
            api_version: subject.api_version.clone(),
            kind: subject.kind.clone(),
            namespace: subject.namespace.clone(),
            name: Some(subject.name.clone()).filter(|name| !name.is_empty()),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)?;
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(f, " {namespace}/{name}"),
            (None, Some(name)) => write!(f, " {name}"),
            (Some(namespace), None) => write!(f, " in {namespace}"),
            (None, None) => Ok(()),
        }
    }
}

/// Counts over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Objects seen, kinds without a rule included.
    pub objects: usize,
    /// Objects refused.
    pub denied: usize,
    /// Objects let in with a warning.
    pub warned: usize,
    /// Objects let in without.
    pub allowed: usize,
    /// Objects in which something was filled.
    pub filled: usize,
    /// Objects let in by an exemption.
    pub exempted: usize,
    /// Places where no object could be read.
    pub errors: usize,
    /// Findings that a baseline holds already: left out of everything else.
    pub known: usize,
}

/// What a folder walk passed by because it is no manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassedBy {
    /// YAML without `apiVersion` and `kind`.
    pub other_yaml: usize,
    /// Templates of a chart.
    pub templates: usize,
}

impl Report {
    /// Adds what came of one object. Objects of kinds without a rule are counted, not listed.
    pub fn add(&mut self, mut entry: Entry) {
        self.leave_out_known(&mut entry);
        match &entry.outcome {
            Outcome::Failed(_) => self.summary.errors += 1,
            Outcome::Reviewed(review) => {
                self.summary.objects += 1;
                match review.verdict() {
                    Verdict::Deny => self.summary.denied += 1,
                    Verdict::Warn => self.summary.warned += 1,
                    Verdict::Allow => self.summary.allowed += 1,
                }
                if review
                    .findings
                    .iter()
                    .any(|finding: &Finding| finding.filled && !finding.dry)
                {
                    self.summary.filled += 1;
                }
                let is_exempt = |finding: &Finding| {
                    finding
                        .exempted
                        .as_ref()
                        .is_some_and(|exempted| exempted.level == Level::Deny)
                };
                if review.verdict() != Verdict::Deny && review.findings.iter().any(is_exempt) {
                    self.summary.exempted += 1;
                }
                if review.skipped == Some(crate::review::Skip::Kind) {
                    return;
                }
            }
        }
        self.entries.push(entry);
    }

    /// Counts objects in which nothing was found, and which are not listed.
    pub fn add_clean(&mut self, count: usize) {
        self.summary.objects += count;
        self.summary.allowed += count;
    }

    fn leave_out_known(&mut self, entry: &mut Entry) {
        if self.baseline.is_empty() {
            return;
        }
        let marks = match &entry.outcome {
            Outcome::Failed(_) => return,
            Outcome::Reviewed(review) => review.findings.iter(),
        };
        let known: Vec<bool> = marks
            .map(|finding| {
                let left = (!finding.filled)
                    .then(|| {
                        self.baseline
                            .get_mut(&fingerprint(entry.object.as_ref(), finding))
                    })
                    .flatten()
                    .filter(|left| **left > 0);
                left.map(|left| *left -= 1).is_some()
            })
            .collect();
        self.summary.known += known.iter().filter(|known| **known).count();
        if let Outcome::Reviewed(review) = &mut entry.outcome {
            let mut known = known.into_iter();
            review.findings.retain(|_| !known.next().unwrap_or(false));
        }
    }

    /// The exit code: 2 where something could not be read, else 1 where something was denied.
    pub fn exit_code(&self) -> u8 {
        match (self.summary.errors, self.summary.denied) {
            (0, 0) => crate::cli::OK,
            (0, _) => crate::cli::DENIED,
            _ => crate::cli::FAILED,
        }
    }
}

/// Tells a finding from all others over many runs: by the rule, the object and what matters, never by
/// a line or a position in a list. 64 bits of FNV-1a in hexadecimal digits.
pub fn fingerprint(object: Option<&ObjectName>, finding: &Finding) -> String {
    let mut parts = vec![finding.rule.to_owned()];
    if let Some(object) = object {
        let group = object
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        parts.extend([
            group.to_owned(),
            object.kind.clone(),
            object.namespace.clone().unwrap_or_default(),
            object.name.clone().unwrap_or_default(),
        ]);
    }
    if finding.fingerprint.is_empty() {
        let keys = finding
            .path
            .segments()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Key(key) => Some(key.to_string()),
                Segment::Index(_) => None,
            });
        parts.extend(keys);
    } else {
        parts.push(finding.fingerprint.clone());
    }
    crate::text::hash(&parts.join("\u{1f}"))
}

/// Colours and weight on a terminal, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style(pub(crate) bool);

impl Style {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// Writes to standard output. A reader that went away, as `head` does, is no fault.
///
/// # Errors
/// Where it cannot be written, as on a full disk.
pub fn print(text: &str) -> io::Result<()> {
    print_with(|out| out.write_all(text.as_bytes()))
}

/// As [`print`], of what is made while it is written: a report of a whole cluster is larger than all
/// that was found.
///
/// # Errors
/// Where it cannot be written, as on a full disk.
pub fn print_with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // What is left would be tried again when it is dropped.
            let _ = out.into_parts();
            Ok(())
        }
        result => result,
    }
}

/// Writes to standard error, where standard output is taken by something else.
pub fn print_aside(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let mut out = io::BufWriter::new(io::stderr().lock());
    let _ = write(&mut out).and_then(|()| out.flush());
}

/// Writes one line to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "gangplank: {text}");
}
