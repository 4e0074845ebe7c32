//! `gangplank exemptions`

use std::{collections::BTreeSet, path::PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    audit,
    cli::{FAILED, Output, check::Reader},
    cluster::{
        ClusterArgs,
        list::{Scope, objects},
    },
    exempt,
    facts::Facts,
    policy::Policy,
    report::{
        self, ObjectName,
        exemptions::{Entry, Ledger},
    },
    review::{Skip, review},
    rules::kinds,
    subject::{Door, Subject, at},
};

/// The arguments of `gangplank exemptions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 every exemption holds, 1 one has ended or cannot be read, 2 \
                        something could not be looked at."
)]
pub struct Args {
    /// Files and folders of manifests, - for standard input; without any, the cluster
    #[arg(value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
    paths: Vec<PathBuf>,
    /// The policy file; the built-in default policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The form of the list
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Lists exemptions.
pub fn run(args: &Args) -> u8 {
    let now = Timestamp::now();
    let policy = match super::load_policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let gathered = if args.paths.is_empty() {
        super::runtime()
            .and_then(|runtime| runtime.block_on(of_cluster(&args.cluster, &policy, now)))
    } else {
        Ok(of_files(&args.paths, &policy, now))
    };
    let mut ledger = match gathered {
        Ok(ledger) => ledger,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    ledger.sort();
    let text = match args.output {
        Output::Text => ledger.text(),
        Output::Json => ledger.json(now),
    };
    super::print(&text, ledger.exit_code())
}

/// The exemptions of an object, and the rules that it is exempt from by the policy.
fn of_object(
    policy: &Policy,
    facts: &Facts,
    subject: &Subject,
    now: Timestamp,
) -> (Vec<Entry>, Vec<&'static str>) {
    let review = review(policy, facts, subject, now);
    if review.skipped == Some(Skip::Child) || exempt::is_copy(subject) {
        return (Vec::new(), Vec::new());
    }
    let found: BTreeSet<&'static str> = review
        .findings
        .iter()
        .filter(|finding| !finding.filled)
        .map(|finding| finding.rule)
        .collect();
    let is_new = subject.door == Door::Check;
    let max_days = policy.exemptions().max_days;
    let entries = exempt::annotations(&subject.value).map(|annotation| Entry {
        object: Some(ObjectName::from(subject)),
        unused: match review.skipped {
            None | Some(Skip::Kind) => Some(!found.contains(annotation.rule)),
            // It is going away, and nobody has looked.
            Some(_) => None,
        },
        ..Entry::of_annotation(&annotation, is_new, now, max_days)
    });
    let entries = entries.collect();
    (entries, found.into_iter().collect())
}

/// What stands in the policy; `used` tells whether a rule has found anything in a namespace.
fn of_policy(
    policy: &Policy,
    now: Timestamp,
    used: Option<&BTreeSet<(String, &'static str)>>,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for exempted in policy.exemptions().namespaces() {
        for rule in &exempted.rules {
            let unused = used.map(|used| {
                let needs_it = |(namespace, found): &(String, &str)| {
                    found == rule && exempted.covers(namespace)
                };
                !used.iter().any(needs_it)
            });
            entries.push(Entry {
                unused,
                ..Entry::of_namespaces(exempted, rule, now)
            });
        }
    }
    entries
}

fn of_files(paths: &[PathBuf], policy: &Policy, now: Timestamp) -> Ledger {
    let mut reader = Reader::default();
    for path in paths {
        reader.path(path);
    }
    let facts = reader.facts(policy);
    // A folder is seldom all there is in a namespace.
    let mut ledger = Ledger {
        entries: of_policy(policy, now, None),
        ..Ledger::default()
    };
    for found in reader.found {
        let origin = found.origin;
        match found.subject {
            Ok(subject) => {
                let (entries, _) = of_object(policy, &facts, &subject, now);
                ledger.entries.extend(entries.into_iter().map(|entry| {
                    let (key, _) = origin.locate(&exempt::path(&entry.rule));
                    let (line, _) = origin.line_column(key.start);
                    Entry {
                        place: Some((origin.file.to_string(), Some(line))),
                        ..entry
                    }
                }));
            }
            Err(problem) => {
                let line = problem
                    .line
                    .map_or(String::new(), |line| format!(":{line}"));
                let error = format!("{}{line}: {}", origin.file, problem.message);
                ledger.errors.push(error);
            }
        }
    }
    ledger
}

async fn of_cluster(
    cluster: &ClusterArgs,
    policy: &Policy,
    now: Timestamp,
) -> Result<Ledger, String> {
    let client = cluster.client().await.map_err(|error| error.to_string())?;
    let mut ledger = Ledger::default();
    let facts = audit::facts(&client, policy, &Scope::default(), &mut ledger.errors).await;
    let mut used = BTreeSet::new();
    for kind in kinds::ALL {
        let resource = kind.api_resource();
        let keep = |value: Value| {
            let namespace = at(&value, &["metadata", "namespace"]).and_then(Value::as_str);
            let is_exempt = exempt::annotations(&value).next().is_some()
                || namespace.is_some_and(|namespace| {
                    let exempted = policy.exemptions().namespaces();
                    exempted.iter().any(|one| one.covers(namespace))
                });
            is_exempt.then_some(value)
        };
        let all = match objects(&client, &resource, None, keep).await {
            Ok(all) => all.unwrap_or_default(),
            Err(error) => {
                ledger.errors.push(error.to_string());
                continue;
            }
        };
        for value in all {
            let Some(subject) = audit::subject(value, &resource.api_version, kind.kind) else {
                continue;
            };
            let (entries, found) = of_object(policy, &facts, &subject, now);
            ledger.entries.extend(entries);
            if let Some(namespace) = &subject.namespace {
                used.extend(found.into_iter().map(|rule| (namespace.clone(), rule)));
            }
        }
    }
    ledger.entries.extend(of_policy(policy, now, Some(&used)));
    Ok(ledger)
}
