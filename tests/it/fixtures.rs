//! The fixtures: `tests/fixtures/<rule>/{deny,warn,audit,allow,fill}-*.yaml`. A trailing comment
//! `# ~ <rule>` marks every line that the rule has to point at, and no other may be.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use gangplank::{
    facts::Facts,
    finding::{Finding, Level, Verdict},
    policy::Policy,
    report::{Entry, ObjectName, Origin, Outcome, Report, human},
    review::{Review, review},
    rules::RULES,
    source::{self, Document},
    subject::{Door, Subject},
};
use jiff::Timestamp;

/// One object of a fixture, judged.
struct Judged {
    document: Arc<Document>,
    subject: Subject,
    facts: Facts,
    review: Review,
}

/// When every fixture is judged.
pub(crate) fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

pub(crate) fn folder(rule: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(rule)
}

/// The fixtures of a rule: name and text, in order.
pub(crate) fn fixtures(rule: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = fs::read_dir(folder(rule))
        .unwrap_or_else(|error| panic!("{rule} has no fixtures: {error}"))
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .filter(|(name, _)| !name.starts_with("policy"))
        .collect();
    found.sort();
    found
}

/// The policy for a fixture: `policy-<rest of its name>` beside it, else `policy.yaml`, else the default.
pub(crate) fn policy(rule: &str, name: &str) -> Policy {
    let own = format!("policy-{name}");
    let path = [own.as_str(), "policy.yaml"].map(|name| folder(rule).join(name));
    match path.iter().find(|path| path.is_file()) {
        None => Policy::default(),
        Some(path) => {
            let text = fs::read_to_string(path).unwrap();
            let document = source::read(&text).remove(0).unwrap();
            Policy::from_document(&document.value)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        }
    }
}

fn judge(policy: &Policy, name: &str, text: &str) -> Vec<Judged> {
    let documents: Vec<Arc<Document>> = source::read(text)
        .into_iter()
        .map(|document| Arc::new(document.unwrap_or_else(|error| panic!("{name}: {error}"))))
        .collect();
    let facts = Facts::from_documents(documents.iter().map(|document| &document.value));
    documents
        .into_iter()
        .map(|document| {
            let subject = Subject::from_manifest(Arc::clone(&document.value)).unwrap();
            let review = review(policy, &facts, &subject, now());
            Judged {
                document,
                subject,
                facts: facts.clone(),
                review,
            }
        })
        .collect()
}

fn line(text: &str, judged: &Judged, finding: &Finding) -> usize {
    source::line_column(text, judged.document.marks.locate(&finding.path).0.start).0
}

#[test]
fn every_rule_reports_the_marked_lines_and_no_others() {
    let mut wrong = Vec::new();
    for rule in RULES {
        for (name, text) in fixtures(rule.id) {
            let at = format!("{}/{name}", rule.id);
            let judged = judge(&policy(rule.id, &name), &at, &text);
            let mut found: Vec<usize> = Vec::new();
            for one in &judged {
                let of_rule = one
                    .review
                    .findings
                    .iter()
                    .filter(|finding| finding.rule == rule.id);
                found.extend(of_rule.map(|finding| line(&text, one, finding)));
            }
            found.sort_unstable();
            found.dedup();
            let marked: Vec<usize> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| {
                    line.split_once("# ~ ").is_some_and(|(_, rules)| {
                        rules.split(',').any(|marked| marked.trim() == rule.id)
                    })
                })
                .map(|(index, _)| index + 1)
                .collect();
            if found != marked {
                wrong.push(format!("{at}: marked {marked:?}, found {found:?}"));
            }
            let of_rule = || {
                judged
                    .iter()
                    .flat_map(|one| &one.review.findings)
                    .filter(|finding| finding.rule == rule.id)
            };
            let verdict = judged.iter().map(|one| one.review.verdict()).max().unwrap();
            let strongest = of_rule().map(|finding| finding.level).max();
            let right = match name.split('-').next().unwrap() {
                "deny" => strongest == Some(Level::Deny),
                "warn" => strongest == Some(Level::Warn),
                "audit" => strongest == Some(Level::Audit),
                "allow" => strongest.is_none() && verdict != Verdict::Deny,
                "fill" => of_rule().any(|finding| finding.filled) && verdict != Verdict::Deny,
                other => panic!("{at}: {other} is neither deny, warn, audit, allow nor fill"),
            };
            if !right {
                wrong.push(format!("{at}: {verdict:?}, the rule at most {strongest:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_fixtures_that_fire_and_fixtures_that_do_not() {
    for rule in RULES {
        let kinds: BTreeSet<String> = fixtures(rule.id)
            .into_iter()
            .map(|(name, _)| name.split('-').next().unwrap().to_owned())
            .collect();
        assert!(
            ["deny", "warn", "audit"]
                .iter()
                .any(|kind| kinds.contains(*kind)),
            "{} never fires",
            rule.id
        );
        assert!(kinds.contains("allow"), "{} is never silent", rule.id);
        assert_eq!(
            kinds.contains("fill"),
            rule.fill.is_some(),
            "{} fills",
            rule.id
        );
    }
}

/// Filling settles at once, and leaves nothing to be found that was not there before.
#[test]
fn a_filled_object_is_not_filled_again_and_is_found_no_worse() {
    let mut filled = 0;
    for rule in RULES {
        for (name, text) in fixtures(rule.id) {
            let policy = policy(rule.id, &name);
            let judged = judge(&policy, &name, &text);
            for one in &judged {
                let mut value = (*one.subject.value).clone();
                json_patch::patch(&mut value, &one.review.patch).unwrap();
                let ask = |value: serde_json::Value, door: Door| {
                    let subject = Subject {
                        door,
                        ..one.subject.with_value(value)
                    };
                    review(&policy, &one.facts, &subject, now())
                };
                let again = ask(value.clone(), Door::Check);
                assert!(
                    again.patch.0.is_empty(),
                    "{}/{name}: {:?}",
                    rule.id,
                    again.patch
                );
                let found = |review: Review| -> BTreeSet<(&str, String)> {
                    let kept = review
                        .findings
                        .into_iter()
                        .filter(|finding| !finding.filled);
                    kept.map(|finding| (finding.rule, finding.fingerprint))
                        .collect()
                };
                // The door judges what is there, whoever put it there.
                let before = found(ask((*one.subject.value).clone(), Door::Validate));
                let after = found(ask(value, Door::Validate));
                let new: Vec<_> = after.difference(&before).collect();
                assert!(new.is_empty(), "{}/{name}: filling brings {new:?}", rule.id);
                filled += usize::from(!one.review.patch.0.is_empty());
            }
        }
    }
    assert!(filled > 10, "only {filled} fixtures are filled");
}

/// What people read of every fixture that has something to say.
#[test]
fn the_text_of_every_finding() {
    for rule in RULES {
        let mut report = Report::default();
        for (name, text) in fixtures(rule.id) {
            let text: Arc<str> = text.into();
            for one in judge(&policy(rule.id, &name), &name, &text) {
                let review = Review {
                    findings: one
                        .review
                        .findings
                        .iter()
                        .filter(|finding| finding.rule == rule.id)
                        .cloned()
                        .collect(),
                    ..one.review.clone()
                };
                report.add(Entry {
                    owner: None,
                    origin: Some(Box::new(Origin {
                        file: name.as_str().into(),
                        text: Arc::clone(&text),
                        document: Some(one.document.index),
                        item: None,
                        line: None,
                        marks: Arc::new(one.document.marks.clone()),
                    })),
                    object: Some(ObjectName::from(&one.subject)),
                    outcome: Outcome::Reviewed(review),
                });
            }
        }
        insta::assert_snapshot!(format!("text-{}", rule.id), human::render(&report, false));
    }
}
