//! `gangplank policy`

use std::{fmt::Write, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    audit::{self, ByPolicy, Judge, Judged, Plan},
    cli::{DENIED, FAILED, OK, Output, audit::Bar, check::Reader},
    cluster::ClusterArgs,
    facts::Facts,
    finding::{Level, Verdict},
    policy::Policy,
    report::{self, ObjectName},
    review::{Review, Skip, review},
    rules::page,
    subject::Subject,
    text::harmless,
};

/// The commands of `gangplank policy`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say whether policy files are right
    Check {
        /// The policy files
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Write out all that a policy says, defaults included
    Show {
        /// The policy file; the built-in policy without it
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only what holds in this namespace, overrides taken in
        #[arg(long, short, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// A label of that namespace, for overrides that select by label
        #[arg(
            long = "namespace-label",
            value_name = "KEY=VALUE",
            value_parser = label,
            requires = "namespace"
        )]
        labels: Vec<(String, String)>,
        /// The form
        #[arg(long, short, value_enum, default_value_t = Form::Yaml)]
        output: Form,
    },
    /// Say which verdicts change from one policy to another; exits with 1 where something is newly
    /// denied
    Diff {
        /// The policy file in force
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The policy file to come
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// Files and folders of manifests, - for standard input; without any, the cluster
        #[arg(value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
        paths: Vec<PathBuf>,
        /// The form of the report
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// Which cluster, where there is no path.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Print the JSON Schema of policy files
    Schema,
}

/// How a policy is written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// As in a policy file
    Yaml,
    /// For programs
    Json,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not <key>=<value>")),
    }
}

/// Runs one of the commands.
pub fn run(command: &Command) -> u8 {
    let done = match command {
        Command::Check { files } => return check(files),
        Command::Show {
            file,
            namespace,
            labels,
            output,
        } => super::load_policy(file.as_deref())
            .map(|policy| show(&policy, namespace.as_deref(), labels, *output)),
        Command::Diff {
            old,
            new,
            paths,
            output,
            cluster,
        } => {
            let policies = super::load_policy(Some(old))
                .and_then(|old| Ok((old, super::load_policy(Some(new))?)));
            let diff = policies.and_then(|(old, new)| {
                if paths.is_empty() {
                    let of_cluster = Diff::of_cluster(cluster, old, new);
                    super::runtime()?.block_on(of_cluster)
                } else {
                    Ok(Diff::of_files(&old, &new, paths))
                }
            });
            diff.map(|diff| {
                let text = match output {
                    Output::Text => diff.text(),
                    Output::Json => diff.json(),
                };
                super::print(&text, diff.exit_code())
            })
        }
        Command::Schema => {
            let mut text = serde_json::to_string_pretty(&page::schema()).unwrap_or_default();
            text.push('\n');
            Ok(super::print(&text, OK))
        }
    };
    done.unwrap_or_else(|error| {
        report::complain(&error);
        FAILED
    })
}

fn check(files: &[PathBuf]) -> u8 {
    let mut text = String::new();
    let mut code = OK;
    for file in files {
        match super::load_policy(Some(file)) {
            Ok(policy) => {
                let (mode, hash) = (policy.mode.as_str(), policy.hash());
                let _ = writeln!(text, "{}: ok, mode {mode}, {hash}", file.display());
                for line in policy.reminders(Timestamp::now()) {
                    report::complain(&format!("{}: {line}", file.display()));
                }
            }
            Err(error) => {
                report::complain(&error);
                code = FAILED;
            }
        }
    }
    super::print(&text, code)
}

fn show(policy: &Policy, namespace: Option<&str>, labels: &[(String, String)], form: Form) -> u8 {
    let facts = match namespace {
        Some(name) => {
            let labels: serde_json::Map<String, Value> = labels
                .iter()
                .map(|(key, value)| (key.clone(), json!(value)))
                .collect();
            let namespace = Arc::new(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }));
            Facts::from_documents([&namespace])
        }
        None => Facts::unknown(),
    };
    let now = Timestamp::now();
    let document = policy.written_out(namespace.map(|name| (name, &facts, now)));
    let text = match form {
        Form::Yaml => yaml(&document).map_err(|error| error.to_string()),
        Form::Json => serde_json::to_string_pretty(&document)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string()),
    };
    match text {
        Ok(text) => super::print(&text, OK),
        Err(error) => {
            report::complain(&format!("cannot write the policy: {error}"));
            FAILED
        }
    }
}

/// A policy as people write it: what it is first, catalogues last.
///
/// # Errors
/// Where YAML cannot hold the document.
pub fn yaml(document: &Value) -> Result<String, serde_saphyr::ser::Error> {
    const ORDER: [&str; 12] = [
        "apiVersion",
        "kind",
        "mode",
        "existingViolations",
        "rules",
        "overrides",
        "restore",
        "production",
        "gangScheduler",
        "warmPools",
        "exemptions",
        "registration",
    ];
    let members = document.as_object().into_iter().flatten();
    let mut members: Vec<(&String, &Value)> = members.collect();
    members.sort_by_key(|(key, _)| {
        let place = ORDER.iter().position(|known| known == key);
        place.unwrap_or(ORDER.len())
    });
    members
        .into_iter()
        .map(|(key, value)| serde_saphyr::to_string(&json!({key: value})))
        .collect()
}

/// What a rule says of an object: the rule, the level, the field.
type Said = (&'static str, Level, String);

/// An object of which two policies say different things.
struct Change {
    /// The file and the line in it; none for what lives in a cluster.
    place: Option<(String, Option<usize>)>,
    object: ObjectName,
    verdicts: (Verdict, Verdict),
    /// What only the old policy says, and what only the new one does.
    gone: Vec<Said>,
    come: Vec<Said>,
}

/// What changes from one policy to another.
struct Diff {
    changes: Vec<Change>,
    objects: usize,
    /// Where no object could be read.
    errors: Vec<String>,
}

impl Change {
    /// What two policies say of an object, where it is not the same.
    fn of(subject: &Subject, before: &Review, after: &Review) -> Option<Self> {
        let (was, is) = (said(before), said(after));
        if after.skipped == Some(Skip::Kind) || (was == is && before.verdict() == after.verdict()) {
            return None;
        }
        let only = |of: &[Said], not: &[Said]| {
            let only = of.iter().filter(|one| !not.contains(one));
            only.cloned().collect()
        };
        Some(Self {
            place: None,
            object: ObjectName::from(subject),
            verdicts: (before.verdict(), after.verdict()),
            gone: only(&was, &is),
            come: only(&is, &was),
        })
    }
}

/// Judges by two policies.
struct ByBoth {
    old: ByPolicy,
    new: ByPolicy,
}

impl Judge for ByBoth {
    type Told = Change;

    fn judge(&self, subject: &Subject) -> Judged<Change> {
        let (Some(before), Some(after)) = (self.old.review(subject), self.new.review(subject))
        else {
            return Judged::Passed;
        };
        Change::of(subject, &before, &after).map_or(Judged::Clean, Judged::Told)
    }
}

impl Diff {
    fn of_files(old: &Policy, new: &Policy, paths: &[PathBuf]) -> Self {
        let mut reader = Reader::default();
        for path in paths {
            reader.path(path);
        }
        let (old_facts, new_facts) = (reader.facts(old), reader.facts(new));
        let now = Timestamp::now();
        let mut diff = Self {
            changes: Vec::new(),
            objects: 0,
            errors: Vec::new(),
        };
        for found in reader.found {
            let (origin, subject) = (found.origin, found.subject);
            let subject = match subject {
                Ok(subject) => subject,
                Err(problem) => {
                    let line = problem
                        .line
                        .map_or(String::new(), |line| format!(":{line}"));
                    diff.errors
                        .push(format!("{}{line}: {}", origin.file, problem.message));
                    continue;
                }
            };
            diff.objects += 1;
            let before = review(old, &old_facts, &subject, now);
            let after = review(new, &new_facts, &subject, now);
            let change = Change::of(&subject, &before, &after);
            diff.changes.extend(change.map(|change| Change {
                place: Some((origin.file.to_string(), origin.line)),
                ..change
            }));
        }
        diff
    }

    async fn of_cluster(cluster: &ClusterArgs, old: Policy, new: Policy) -> Result<Self, String> {
        let client = cluster.client().await.map_err(|error| error.to_string())?;
        let plan = Plan::default();
        let bar = Bar::new();
        let now = Timestamp::now();
        let mut errors = Vec::new();
        let by = async |policy: Policy, errors: &mut Vec<String>| ByPolicy {
            facts: Arc::new(audit::facts(&client, &policy, &plan.scope, errors).await),
            policy: Arc::new(policy),
            now,
            rules: Vec::new(),
            clean: false,
            identity: false,
        };
        let old = by(old, &mut Vec::new()).await;
        let new = by(new, &mut errors).await;
        let seen = audit::run(&client, &plan, &Arc::new(ByBoth { old, new }), &bar).await;
        bar.done();
        errors.extend(seen.unseen);
        Ok(Self {
            objects: seen.told.len() + seen.clean,
            changes: seen.told,
            errors,
        })
    }

    fn count(&self, is: impl Fn(Verdict, Verdict) -> bool) -> usize {
        self.changes
            .iter()
            .filter(|change| is(change.verdicts.0, change.verdicts.1))
            .count()
    }

    fn newly_denied(&self) -> usize {
        self.count(|was, is| was != Verdict::Deny && is == Verdict::Deny)
    }

    fn no_longer_denied(&self) -> usize {
        self.count(|was, is| was == Verdict::Deny && is != Verdict::Deny)
    }

    fn exit_code(&self) -> u8 {
        if !self.errors.is_empty() {
            FAILED
        } else if self.newly_denied() > 0 {
            DENIED
        } else {
            OK
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for error in &self.errors {
            let _ = writeln!(text, "error: {error}");
        }
        for change in &self.changes {
            let (was, is) = change.verdicts;
            let verdict = if was == is {
                was.as_str().to_owned()
            } else {
                format!("{} -> {}", was.as_str(), is.as_str())
            };
            let place = match &change.place {
                Some((file, Some(line))) => format!(" ({file}:{line})"),
                Some((file, None)) => format!(" ({file})"),
                None => String::new(),
            };
            let object = format!("{}{place}", change.object);
            let _ = writeln!(text, "{verdict}: {}", harmless(&object));
            for (sign, list) in [('-', &change.gone), ('+', &change.come)] {
                for (rule, level, path) in list {
                    let level = if *level == Level::Info {
                        "fill"
                    } else {
                        level.as_str()
                    };
                    let _ = writeln!(text, "  {sign} {level:5} {rule}: {}", harmless(path));
                }
            }
        }
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "{} of {} object{} change{}: {} newly denied, {} no longer denied",
            self.changes.len(),
            self.objects,
            plural(self.objects),
            if self.changes.len() == 1 { "s" } else { "" },
            self.newly_denied(),
            self.no_longer_denied()
        );
        text
    }

    fn json(&self) -> String {
        let list = |said: &[Said]| -> Vec<Value> {
            said.iter()
                .map(|(rule, level, path)| {
                    json!({"rule": rule, "level": level.as_str(), "path": path})
                })
                .collect()
        };
        let results: Vec<Value> = self
            .changes
            .iter()
            .map(|change| {
                json!({
                    "file": change.place.as_ref().map(|(file, _)| file),
                    "line": change.place.as_ref().and_then(|(_, line)| *line),
                    "object": {
                        "apiVersion": change.object.api_version, "kind": change.object.kind,
                        "namespace": change.object.namespace, "name": change.object.name,
                    },
                    "old": change.verdicts.0.as_str(),
                    "new": change.verdicts.1.as_str(),
                    "gone": list(&change.gone),
                    "come": list(&change.come),
                })
            })
            .collect();
        let document = json!({
            "apiVersion": "gangplank.dev/v1",
            "results": results,
            "errors": self.errors,
            "summary": {
                "objects": self.objects,
                "changed": self.changes.len(),
                "newlyDenied": self.newly_denied(),
                "noLongerDenied": self.no_longer_denied(),
                "errors": self.errors.len(),
            },
        });
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// What a review says, in a settled order.
fn said(review: &Review) -> Vec<Said> {
    let mut said: Vec<Said> = review
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.level, finding.path.to_string()))
        .collect();
    said.sort();
    said.dedup();
    said
}
