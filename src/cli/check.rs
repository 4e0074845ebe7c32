//! `gangplank check`

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use globset::GlobBuilder;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    cli::{Colour, FAILED},
    facts::Facts,
    finding::FieldPath,
    policy::Policy,
    report::{self, Entry, ObjectName, Origin, Outcome, PassedBy, Problem, Report},
    review::{Review, review},
    source::{self, Document, Marks},
    subject::Subject,
};

mod fix;

/// What a folder walk passes by, in the syntax of .gitignore.
const IGNORE_FILE: &str = ".gangplankignore";

/// What some editors put before a text; it is no content.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The arguments of `gangplank check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and folders of manifests, and patterns as 'apps/**/*.yaml'; - reads standard input
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// The policy file; the built-in default policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The form of the report
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Write what would be filled into the files; comments, order and indentation stay as they are
    #[arg(long)]
    fix: bool,
    /// Print what --fix writes as a unified diff; without --fix nothing is written
    #[arg(long)]
    diff: bool,
    /// Leave out what this earlier JSON report holds (`gangplank check -o json > FILE` makes one)
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// When to use colours
    #[arg(long, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    color: Colour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
    /// For code scanning services: SARIF 2.1.0
    Sarif,
    /// For CI servers: JUnit XML
    Junit,
    /// One page, for a browser
    Html,
    /// For GitHub Actions: annotations of the lines
    Github,
}

/// Judges manifests and prints what was found.
pub fn run(args: &Args) -> u8 {
    let policy = match super::load_policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let now = Timestamp::now();
    for line in policy.reminders(now) {
        report::complain(&line);
    }
    let baseline = match args.baseline.as_deref().map(baseline).transpose() {
        Ok(baseline) => baseline.unwrap_or_default(),
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let world = World {
        paths: &args.paths,
        policy: &policy,
        now,
    };
    let judged = world.judge(BTreeMap::new());
    // What is printed to standard output, where that is not the report.
    let mut printed = None;
    let mut failures = Vec::new();
    let judged = if args.fix || args.diff {
        if args.fix && args.diff && args.paths.iter().any(|path| path == Path::new("-")) {
            report::complain(
                "--fix prints what it makes of standard input, and --diff prints too: use one of them",
            );
            return FAILED;
        }
        let fixed = fix::run(&world, judged, args.fix, args.diff);
        printed = fixed.printed;
        failures = fixed.failures;
        fixed.judged
    } else {
        judged
    };
    let mut report = Report {
        passed_by: judged.passed_by,
        baseline,
        ..Report::default()
    };
    for entry in judged.entries.into_iter().chain(failures) {
        report.add(entry);
    }
    let colours = args.color.wanted() && printed.is_none();
    let write = |out: &mut dyn io::Write| {
        let text = match args.output {
            Output::Json => return report::json::write(&report, out),
            Output::Sarif => return report::sarif::write(&report, out),
            Output::Junit => return report::junit::write(&report, out),
            Output::Html => report::html::render(&report),
            Output::Github => report::github::render(&report),
            Output::Text => report::human::render(&report, colours),
        };
        out.write_all(text.as_bytes())
    };
    match printed {
        None => super::print_with(write, report.exit_code()),
        Some(printed) => {
            report::print_aside(write);
            super::print(&printed, report.exit_code())
        }
    }
}

/// What a run is about.
struct World<'a> {
    paths: &'a [PathBuf],
    policy: &'a Policy,
    now: Timestamp,
}

/// What a run came to.
struct Judged {
    entries: Vec<Entry>,
    passed_by: PassedBy,
    /// What was read from standard input.
    stdin: Option<Arc<str>>,
}

impl World<'_> {
    /// Judges everything. Texts stand for the files of that name, which are not read.
    fn judge(&self, texts: BTreeMap<Arc<str>, Arc<str>>) -> Judged {
        let mut reader = Reader {
            texts,
            ..Reader::default()
        };
        for path in self.paths {
            reader.path(path);
        }
        let facts = reader.facts(self.policy);
        let entry = |Found { origin, subject }| {
            let (object, outcome) = match subject {
                Ok(subject) => {
                    let review: Review = review(self.policy, &facts, &subject, self.now);
                    (Some(ObjectName::from(&subject)), Outcome::Reviewed(review))
                }
                Err(problem) => (None, Outcome::Failed(problem)),
            };
            Entry {
                origin: Some(Box::new(origin)),
                object,
                owner: None,
                outcome,
            }
        };
        Judged {
            entries: reader.found.into_iter().map(entry).collect(),
            passed_by: reader.passed_by,
            stdin: reader.texts.remove("-"),
        }
    }
}

/// The findings of an earlier JSON report, by fingerprint and how often.
fn baseline(path: &Path) -> Result<BTreeMap<String, usize>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let report: Value = serde_json::from_str(&text)
        .map_err(|error| format!("{shown} is no JSON report: {error}"))?;
    let wrong = |what: &str| format!("{shown} is no report of gangplank check -o json: {what}");
    if report.get("apiVersion").and_then(Value::as_str) != Some("gangplank.dev/v1") {
        return Err(wrong("its apiVersion is not gangplank.dev/v1"));
    }
    let results = report
        .get("results")
        .and_then(Value::as_array)
        .ok_or_else(|| wrong("it has no results"))?;
    let mut known = BTreeMap::new();
    for finding in results
        .iter()
        .filter_map(|result| result.get("findings")?.as_array())
        .flatten()
    {
        let fingerprint = finding
            .get("fingerprint")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("a finding has no fingerprint"))?;
        *known.entry(fingerprint.to_owned()).or_insert(0) += 1;
    }
    Ok(known)
}

/// An object, or a place that holds none.
pub(super) struct Found {
    /// Where it stands.
    pub(super) origin: Origin,
    /// The object, or why there is none.
    pub(super) subject: Result<Subject, Problem>,
}

/// Collects the objects of files and folders.
#[derive(Default)]
pub(super) struct Reader {
    /// What was found, in the order of files and documents.
    pub(super) found: Vec<Found>,
    /// Documents of the file in hand that are no objects.
    others: Vec<Origin>,
    passed_by: PassedBy,
    /// What to take for the files of these names instead of reading them. Standard input is kept here,
    /// which cannot be read twice.
    texts: BTreeMap<Arc<str>, Arc<str>>,
}

impl Reader {
    /// Everything known of the other documents of the run.
    pub(super) fn facts(&self, policy: &Policy) -> Facts {
        let facts = Facts::from_documents(
            self.found
                .iter()
                .filter_map(|found| found.subject.as_ref().ok().map(|subject| &subject.value)),
        );
        match policy.catalog().site_engines() {
            Some(engines) => facts.with_engines(engines),
            None => facts,
        }
    }

    /// Reads a file, a folder, or standard input.
    pub(super) fn path(&mut self, path: &Path) {
        if path == Path::new("-") {
            if let Some(text) = self.texts.get("-") {
                let text = Arc::clone(text);
                self.text("-", &text, true);
                return;
            }
            let mut bytes = Vec::new();
            match io::stdin().lock().read_to_end(&mut bytes) {
                Ok(_) => self.bytes("-", bytes, true),
                Err(error) => self.fail("-", format!("cannot read standard input: {error}")),
            }
            return;
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                self.folder(path, |_| true);
            }
            Ok(_) => self.file(path, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_pattern(path) => {
                self.pattern(path);
            }
            Err(error) => self.fail(&path.display().to_string(), format!("cannot read: {error}")),
        }
    }

    /// Every manifest that a pattern names. A folder that it names stands for what is in it, as it does
    /// where a shell expands the pattern.
    fn pattern(&mut self, pattern: &Path) {
        let shown = pattern.display().to_string();
        let glob = GlobBuilder::new(shown.trim_start_matches("./").trim_end_matches('/'))
            .literal_separator(true)
            .build();
        let glob = match glob {
            Ok(glob) => glob.compile_matcher(),
            Err(error) => return self.fail(&shown, format!("is no pattern: {error}")),
        };
        let mut base: PathBuf = pattern
            .components()
            .take_while(|part| !is_pattern(Path::new(part)))
            .collect();
        if base.as_os_str().is_empty() {
            base.push(".");
        }
        let matches = |path: &Path| {
            let path = path.strip_prefix("./").unwrap_or(path);
            path.ancestors().any(|path| glob.is_match(path))
        };
        if self.folder(&base, matches) == 0 {
            self.fail(&shown, "no manifest has such a name".to_owned());
        }
    }

    /// Every manifest below a folder that is wanted, in the order of names, hidden and ignored ones
    /// aside. Says how many there are.
    fn folder(&mut self, folder: &Path, wanted: impl Fn(&Path) -> bool) -> usize {
        let mut count = 0;
        let walk = ignore::WalkBuilder::new(folder)
            .standard_filters(false)
            .hidden(true)
            .add_custom_ignore_filename(IGNORE_FILE)
            // The file of a repository also holds where only one of its folders is named.
            .parents(true)
            .follow_links(true)
            .sort_by_file_name(std::ffi::OsStr::cmp)
            .build();
        for entry in walk {
            let entry = match entry {
                Ok(entry) => entry,
                // A link to nowhere, or round in a circle, is no manifest.
                Err(error) if is_link_trouble(&error) => continue,
                Err(error) => {
                    self.fail(&folder.display().to_string(), error.to_string());
                    continue;
                }
            };
            let path = entry.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            let manifest = matches!(extension, Some("yaml" | "yml" | "json"));
            if !manifest || entry.file_type().is_some_and(|kind| kind.is_dir()) || !wanted(path) {
                continue;
            }
            count += 1;
            if is_template(path) {
                self.passed_by.templates += 1;
            } else {
                self.file(path, false);
            }
        }
        count
    }

    fn file(&mut self, path: &Path, named: bool) {
        let shown = path.display().to_string();
        if let Some(text) = self.texts.get(shown.as_str()) {
            let text = Arc::clone(text);
            return self.text(&shown, &text, named);
        }
        match fs::read(path) {
            Ok(bytes) => self.bytes(&shown, bytes, named),
            Err(error) => self.fail(&shown, format!("cannot read: {error}")),
        }
    }

    fn bytes(&mut self, file: &str, bytes: Vec<u8>, named: bool) {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let bytes = error.into_bytes();
                let before =
                    String::from_utf8_lossy(bytes.get(..valid).unwrap_or_default()).into_owned();
                let (line, column) = source::line_column(&before, before.len());
                let message = "is not UTF-8 text".to_owned();
                self.fail_at(
                    file,
                    &Problem {
                        message,
                        line: Some(line),
                        column: Some(column),
                    },
                );
                return;
            }
        };
        // A byte order mark is no content.
        let text: Arc<str> = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).into();
        if file == "-" {
            self.texts.insert(file.into(), Arc::clone(&text));
        }
        self.text(file, &text, named);
    }

    fn text(&mut self, file: &str, text: &Arc<str>, named: bool) {
        let file: Arc<str> = file.into();
        let mut objects = 0;
        let mut broken = 0;
        self.others.clear();
        for document in source::read(text) {
            match document {
                Ok(document) => objects += usize::from(self.document(&file, text, document)),
                Err(error) => {
                    broken += 1;
                    let origin = Origin {
                        file: Arc::clone(&file),
                        text: Arc::clone(text),
                        document: Some(error.index),
                        item: None,
                        line: error.line,
                        marks: Arc::default(),
                    };
                    let problem = Problem {
                        message: error.message,
                        line: error.line,
                        column: error.column,
                    };
                    self.found.push(Found {
                        origin,
                        subject: Err(problem),
                    });
                }
            }
        }
        let others = std::mem::take(&mut self.others);
        if objects == 0 && broken == 0 && others.is_empty() {
            if named {
                self.fail(&file, "is empty".to_owned());
            }
        } else if objects == 0 && broken == 0 && named {
            let message = "holds no Kubernetes object: no document has apiVersion and kind";
            self.fail(&file, message.to_owned());
        } else if !named {
            self.passed_by.other_yaml += others.len();
        } else {
            // Beside manifests, a document without a kind is one with a mistake in it: kubectl
            // refuses it.
            for origin in others {
                let line = origin.line;
                let message = "no object: apiVersion or kind is missing".to_owned();
                let problem = Problem {
                    message,
                    line,
                    column: line.map(|_| 1),
                };
                self.found.push(Found {
                    origin,
                    subject: Err(problem),
                });
            }
        }
    }

    /// Takes the objects of a document; false where it holds none.
    fn document(&mut self, file: &Arc<str>, text: &Arc<str>, document: Document) -> bool {
        let Document {
            index,
            value,
            marks,
            ..
        } = document;
        let origin = Origin {
            file: Arc::clone(file),
            text: Arc::clone(text),
            document: Some(index),
            item: None,
            line: None,
            marks: Arc::new(marks),
        };
        if let Some(list) = List::of(&value) {
            for (item, value) in list.items.iter().enumerate() {
                let mut origin = Origin {
                    item: Some(item),
                    ..origin.clone()
                };
                origin.line = Some(first_line(&origin));
                let subject = list.subject(value).ok_or_else(|| Problem {
                    message: format!(
                        "items[{item}] of the {} is no object with apiVersion and kind",
                        list.kind
                    ),
                    line: origin.line,
                    column: None,
                });
                self.found.push(Found { origin, subject });
            }
            return true;
        }
        let line = Some(first_line(&origin));
        let Some(subject) = Subject::from_manifest(value) else {
            self.others.push(Origin { line, ..origin });
            return false;
        };
        self.found.push(Found {
            origin: Origin { line, ..origin },
            subject: Ok(subject),
        });
        true
    }

    fn fail(&mut self, file: &str, message: String) {
        self.fail_at(
            file,
            &Problem {
                message,
                line: None,
                column: None,
            },
        );
    }

    /// A file of which nothing can be shown.
    fn fail_at(&mut self, file: &str, problem: &Problem) {
        let origin = Origin {
            file: file.into(),
            text: "".into(),
            document: None,
            item: None,
            line: problem.line,
            marks: Arc::new(Marks::default()),
        };
        let problem = Problem {
            message: format!("{file}: {}", problem.message),
            ..problem.clone()
        };
        self.found.push(Found {
            origin,
            subject: Err(problem),
        });
    }
}

/// Whether a path is a pattern of paths.
fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '[', '{'])
}

/// Whether a walk met a link that leads nowhere or back to where it came from.
fn is_link_trouble(error: &ignore::Error) -> bool {
    match error {
        ignore::Error::Loop { .. } => true,
        ignore::Error::WithPath { path, err } => {
            is_link_trouble(err) || (path.is_symlink() && !path.exists())
        }
        ignore::Error::WithDepth { err, .. } => is_link_trouble(err),
        _ => false,
    }
}

/// The line on which an object begins.
fn first_line(origin: &Origin) -> usize {
    let (key, value) = origin.locate(&FieldPath::new());
    origin.line_column(value.unwrap_or(key).start).0
}

/// A List, as `kubectl get -o yaml` writes it, or a list of one kind, as the API server answers.
struct List<'v> {
    api_version: &'v str,
    kind: &'v str,
    items: &'v [Value],
}

impl<'v> List<'v> {
    fn of(value: &'v Value) -> Option<Self> {
        let kind = value.get("kind")?.as_str()?;
        let api_version = value.get("apiVersion")?.as_str()?;
        let items = value.get("items")?.as_array()?;
        kind.ends_with("List").then_some(Self {
            api_version,
            kind,
            items,
        })
    }

    /// An item; those of a list of one kind need not say which. A List in a List is no object.
    fn subject(&self, item: &Value) -> Option<Subject> {
        if List::of(item).is_some() {
            return None;
        }
        let mut item = item.clone();
        let members = item.as_object_mut()?;
        let kind = self
            .kind
            .strip_suffix("List")
            .filter(|kind| !kind.is_empty());
        if let Some(kind) = kind
            && !members.contains_key("kind")
        {
            members.insert("kind".to_owned(), kind.into());
            members.insert("apiVersion".to_owned(), self.api_version.into());
        }
        Subject::from_manifest(Arc::new(item))
    }
}

/// Whether a file is a template of a Helm chart: below the `templates` folder of one.
fn is_template(path: &Path) -> bool {
    path.ancestors().skip(1).any(|folder| {
        folder.file_name().is_some_and(|name| name == "templates")
            && folder
                .parent()
                .is_some_and(|chart| chart.join("Chart.yaml").is_file())
    })
}
