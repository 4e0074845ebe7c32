//! What is generated is current, and what the documentation shows is so.

use std::{collections::BTreeSet, env, fs, path::Path, sync::Arc};

use gangplank::{
    facts::Facts,
    finding::Level,
    policy::Policy,
    review::review,
    rules::{RULES, Rule, page},
    source,
    subject::Subject,
};
use serde_json::{Value, json};

use crate::fixtures::now;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a generated file with what is committed; with `UPDATE=1` writes it.
fn current(path: &str, wanted: &str) {
    let file = root().join(path);
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, wanted).unwrap();
    }
    let held = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        held == wanted,
        "{path} is not current: run UPDATE=1 cargo test docs, and commit it"
    );
}

#[test]
fn the_page_of_rules_is_current() {
    current("policies/RULES.md", &page::markdown());
}

#[test]
fn the_schema_of_the_policy_is_current() {
    let text = serde_json::to_string_pretty(&page::schema()).unwrap();
    current("policies/policy.schema.json", &format!("{text}\n"));
}

/// The chart's own part is written by hand; what `policy` may hold is the policy's schema.
#[test]
fn the_schema_of_the_charts_values_is_current() {
    let path = "charts/gangplank/values.schema.json";
    let text = fs::read_to_string(root().join(path)).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    let mut policy = page::schema();
    let parts = policy.as_object_mut().unwrap();
    parts.remove("$schema");
    let mut definitions = parts.remove("$defs").unwrap();
    definitions["Policy"] = policy;
    schema["$defs"] = definitions;
    let text = serde_json::to_string_pretty(&schema).unwrap();
    current(path, &format!("{text}\n"));
}

#[test]
fn the_rule_table_of_the_readme_is_current() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (begin, end) = ("<!-- rules -->\n", "<!-- /rules -->\n");
    let (before, rest) = readme
        .split_once(begin)
        .expect("README.md marks its rule table");
    let (_, after) = rest
        .split_once(end)
        .expect("README.md marks the end of its rule table");
    let table = page::table(|rule| format!("[{0}](policies/RULES.md#{0})", rule.id));
    current("README.md", &format!("{before}{begin}{table}{end}{after}"));
}

#[test]
fn every_rule_file_is_registered_under_its_own_name() {
    let mut files = BTreeSet::new();
    for folder in [
        "signals",
        "node_pools",
        "workloads",
        "objects",
        "exemptions",
    ] {
        let Ok(entries) = fs::read_dir(root().join("src/rules").join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            // A rule's own modules.
            if path.is_dir() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            if text.contains("declare_rule!") {
                let name = path.file_stem().unwrap().to_str().unwrap();
                files.insert((folder.to_owned(), name.replace('_', "-")));
            }
        }
    }
    let registered: BTreeSet<(String, String)> = RULES
        .iter()
        .map(|rule| (page::folder(rule.group).to_owned(), rule.id.to_owned()))
        .collect();
    assert_eq!(files, registered);
    assert_eq!(registered.len(), RULES.len(), "ids are unique");
}

/// The YAML block below a heading of a rule's documentation.
fn block(rule: &Rule, heading: &str) -> String {
    let documentation = rule.documentation();
    let (_, below) = documentation
        .split_once(&format!("# {heading}\n"))
        .unwrap_or_else(|| panic!("{} has no heading {heading}", rule.id));
    let below = below.split("\n# ").next().unwrap();
    let (_, yaml) = below
        .split_once("```yaml\n")
        .unwrap_or_else(|| panic!("{}: no YAML under {heading}", rule.id));
    yaml.split("```").next().unwrap().to_owned()
}

fn levels(rule: &Rule, yaml: &str) -> Vec<Level> {
    let documents: Vec<_> = source::read(yaml)
        .into_iter()
        .map(|document| {
            document
                .unwrap_or_else(|error| panic!("{}: {error}", rule.id))
                .value
        })
        .collect();
    let facts = Facts::from_documents(&documents);
    // Some rules deny in production only.
    let production = json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "production": {"namespaces": ["*"]},
    });
    let policy = Policy::from_document(&production).unwrap();
    documents
        .iter()
        .flat_map(|value| {
            let subject = Subject::from_manifest(Arc::clone(value))
                .unwrap_or_else(|| panic!("{}: the block is no whole object", rule.id));
            review(&policy, &facts, &subject, now()).findings
        })
        .filter(|finding| finding.rule == rule.id)
        .map(|finding| finding.level)
        .collect()
}

#[test]
fn the_example_of_every_rule_fires_and_what_to_write_instead_does_not() {
    for rule in RULES {
        for heading in ["What it finds", "Why it hurts", "Sources"] {
            let marked = format!("# {heading}\n");
            assert!(
                rule.documentation().contains(&marked),
                "{} lacks {heading}",
                rule.id
            );
        }
        let example = levels(rule, &block(rule, "Example"));
        assert_eq!(example.iter().max(), Some(&rule.level), "{}", rule.id);
        let instead = levels(rule, &block(rule, "Instead"));
        assert!(instead.is_empty(), "{}: {instead:?}", rule.id);
    }
}
