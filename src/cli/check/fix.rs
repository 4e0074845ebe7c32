//! `gangplank check --fix` and `--diff`

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use similar::TextDiff;

use super::{BYTE_ORDER_MARK, Judged, World};
use crate::{
    report::{self, Entry, Origin, Outcome, Problem},
    review::Review,
    source::{
        Marks,
        edit::{self, Change, Left},
    },
};

/// How often what was filled is judged again, for a fill that another fill makes possible.
const ROUNDS: usize = 4;

/// What came of it.
pub(super) struct Fixed {
    /// The verdict on the texts as they are fixed; without `--fix`, as they are.
    pub(super) judged: Judged,
    /// What belongs on standard output: the differences, or what became of standard input.
    pub(super) printed: Option<String>,
    /// The files that could not be fixed.
    pub(super) failures: Vec<Entry>,
}

/// Puts what would be filled into the texts: with `write` into the files, with `diff` into a text that
/// shows the difference.
pub(super) fn run(world: &World<'_>, judged: Judged, write: bool, diff: bool) -> Fixed {
    let mut texts = Texts::default();
    let mut again = None;
    for _ in 0..ROUNDS {
        if !texts.fill(again.as_ref().unwrap_or(&judged)) {
            break;
        }
        again = Some(world.judge(texts.after()));
    }
    for line in &texts.left {
        report::complain(line);
    }
    let mut failures = texts.failures;
    let mut held = BTreeMap::new();
    let mut differences = String::new();
    // A file may have several names; whether it was written is kept by the one it really has.
    let mut written: BTreeMap<PathBuf, bool> = BTreeMap::new();
    let mut did_all = true;
    for (file, text) in &texts.files {
        if text.before == text.after {
            continue;
        }
        let name = Path::new(file.as_ref());
        let target = fs::canonicalize(name).unwrap_or_else(|_| name.to_owned());
        if let Some(done) = written.get(&target) {
            if *done {
                held.insert(Arc::clone(file), Arc::clone(&text.after));
            }
            continue;
        }
        if diff {
            differences.push_str(&difference(file, text));
        }
        written.insert(target.clone(), write);
        if !write {
            continue;
        }
        if file.as_ref() != "-"
            && let Err(error) = replace(&target, text)
        {
            did_all = false;
            written.insert(target, false);
            failures.push(failure(file, &format!("cannot be fixed: {error}")));
            continue;
        }
        for line in &text.filled {
            report::complain(line);
        }
        held.insert(Arc::clone(file), Arc::clone(&text.after));
    }
    if write {
        // Of what could not be written, the verdict is on what is still there.
        let judged = match again {
            Some(again) if did_all => again,
            _ if held.is_empty() => judged,
            _ => {
                if let Some(text) = &judged.stdin {
                    held.entry("-".into()).or_insert_with(|| Arc::clone(text));
                }
                world.judge(held)
            }
        };
        let printed = judged.stdin.as_deref().map(str::to_owned);
        return Fixed {
            printed: if diff { Some(differences) } else { printed },
            judged,
            failures,
        };
    }
    Fixed {
        judged,
        printed: Some(differences),
        failures,
    }
}

/// The texts of a run.
#[derive(Default)]
struct Texts {
    files: BTreeMap<Arc<str>, Text>,
    /// Files that are not to be changed.
    failures: Vec<Entry>,
    /// What is left as it is, in words.
    left: Vec<String>,
    /// Documents and items that are left, so that nobody is told twice.
    told: BTreeSet<(Arc<str>, usize, Option<usize>)>,
}

/// A text, before and after.
struct Text {
    before: Arc<str>,
    after: Arc<str>,
    /// What was put in, in words.
    filled: Vec<String>,
    /// Whether it could not be changed.
    failed: bool,
}

impl Texts {
    /// What stands for the files now.
    fn after(&self) -> BTreeMap<Arc<str>, Arc<str>> {
        self.files
            .iter()
            .map(|(file, text)| (Arc::clone(file), Arc::clone(&text.after)))
            .collect()
    }

    /// Puts in what the verdicts would fill; says whether any text changed.
    fn fill(&mut self, judged: &Judged) -> bool {
        if let Some(text) = &judged.stdin {
            self.file("-", text);
        }
        let mut files: BTreeMap<&Arc<str>, Vec<(&Entry, &Origin, &Review)>> = BTreeMap::new();
        for entry in &judged.entries {
            if let (Some(origin), Outcome::Reviewed(review)) = (&entry.origin, &entry.outcome)
                && !review.patch.0.is_empty()
            {
                files
                    .entry(&origin.file)
                    .or_default()
                    .push((entry, origin, review));
            }
        }
        let mut changed = false;
        for (file, mut fills) in files {
            // A file that is named twice is judged twice and changed once.
            let mut seen = BTreeSet::new();
            fills.retain(|(_, origin, _)| seen.insert((origin.document, origin.item)));
            if let Some((_, origin, _)) = fills.first() {
                self.file(file, &origin.text);
            }
            changed |= self.fill_one(file, &fills);
        }
        changed
    }

    fn file(&mut self, file: &str, text: &Arc<str>) {
        self.files.entry(file.into()).or_insert_with(|| Text {
            before: Arc::clone(text),
            after: Arc::clone(text),
            filled: Vec::new(),
            failed: false,
        });
    }

    fn fill_one(&mut self, file: &Arc<str>, fills: &[(&Entry, &Origin, &Review)]) -> bool {
        let Some(text) = self.files.get_mut(file).filter(|text| !text.failed) else {
            return false;
        };
        let changes: Vec<Change> = fills
            .iter()
            .map(|(_, origin, review)| Change {
                document: origin.document.unwrap_or_default(),
                item: origin.item,
                patch: review.patch.clone(),
            })
            .collect();
        let edited = match edit::apply(&text.after, &changes) {
            Ok(edited) => edited,
            Err(error) => {
                text.failed = true;
                text.after = Arc::clone(&text.before);
                let problem = format!("cannot be fixed, and is left as it is: {error}");
                self.failures.push(failure(file, &problem));
                return false;
            }
        };
        for (position, (entry, origin, review)) in fills.iter().enumerate() {
            let place = place(origin);
            let object = entry.object.as_ref().map(ToString::to_string);
            let object = object.unwrap_or_default();
            let left = edited.left.iter().find(|left| left.change == position);
            if let Some(Left { path, why, .. }) = left {
                let document = origin.document.unwrap_or_default();
                if self.told.insert((Arc::clone(file), document, origin.item)) {
                    let path = path.to_string();
                    let path = if path.is_empty() { "it" } else { &path };
                    self.left
                        .push(format!("{place}: {object} is left as it is: {path} {why}"));
                }
                continue;
            }
            let paths: Vec<String> = review
                .findings
                .iter()
                .filter(|finding| finding.filled && !finding.dry)
                .map(|finding| finding.path.to_string())
                .collect();
            text.filled
                .push(format!("{place}: filled {} of {object}", paths.join(", ")));
        }
        let is_new = *text.after != *edited.text;
        text.after = edited.text.into();
        is_new
    }
}

fn place(origin: &Origin) -> String {
    match origin.line {
        Some(line) => format!("{}:{line}", origin.file),
        None => origin.file.to_string(),
    }
}

fn failure(file: &Arc<str>, message: &str) -> Entry {
    Entry {
        origin: Some(Box::new(Origin {
            file: Arc::clone(file),
            text: "".into(),
            document: None,
            item: None,
            line: None,
            marks: Arc::new(Marks::default()),
        })),
        object: None,
        owner: None,
        outcome: Outcome::Failed(Problem {
            message: format!("{file}: {message}"),
            line: None,
            column: None,
        }),
    }
}

/// The difference as `git apply` and `patch -p1` take it.
fn difference(file: &str, text: &Text) -> String {
    let path = file.strip_prefix("./").unwrap_or(file);
    let path = path.trim_start_matches('/');
    TextDiff::from_lines(text.before.as_ref(), text.after.as_ref())
        .unified_diff()
        .context_radius(3)
        .header(&format!("a/{path}"), &format!("b/{path}"))
        .to_string()
}

/// Puts a text in the place of a file's, whole or not at all: a new file takes the old one's name.
///
/// The target is no symbolic link: those stay, and what they lead to is replaced. The mode stays, and
/// on Unix the owner, where that is permitted.
fn replace(target: &Path, text: &Text) -> io::Result<()> {
    let refuse = |why: &str| Err(io::Error::other(why.to_owned()));
    let metadata = fs::metadata(target)?;
    if !metadata.is_file() {
        return refuse("it is no regular file");
    }
    // The name could be taken from a read-only file, but whoever set that mode did not mean it so.
    if metadata.permissions().readonly() {
        return refuse("it is read-only");
    }
    let held = fs::read_to_string(target)?;
    let (mark, held) = match held.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => (BYTE_ORDER_MARK.to_string(), rest),
        None => (String::new(), held.as_str()),
    };
    if *held != *text.before {
        return refuse("it has changed since it was read");
    }
    let folder = target.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".gangplank-")
        .tempfile_in(folder)?;
    file.write_all(mark.as_bytes())?;
    file.write_all(text.after.as_bytes())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let made = file.as_file().metadata()?;
        if (made.uid(), made.gid()) != (metadata.uid(), metadata.gid()) {
            let _ = fchown(file.as_file(), Some(metadata.uid()), Some(metadata.gid()));
        }
    }
    file.as_file().set_permissions(metadata.permissions())?;
    file.as_file().sync_all()?;
    file.persist(target)?;
    Ok(())
}
