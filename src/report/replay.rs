//! What a replay of audit logs found: for people what would have been denied and filled, by rule,
//! namespace and user, and the same for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    replay::{Effect, Example, Findings, Name, Object, Tally, Unjudged},
    text::{harmless, wrap},
};

/// Objects that people are shown.
const OBJECTS_SHOWN: usize = 10;

/// Users and namespaces that people are shown.
const ROWS_SHOWN: usize = 20;

/// A line of a log that is no event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The log.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub message: String,
}

/// What there is to tell.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was found.
    pub found: Findings,
    /// The first lines that are no events.
    pub broken: Vec<Broken>,
    /// How many more there are.
    pub more_broken: u64,
}

/// For people.
pub fn render(told: &Told) -> String {
    let found = &told.found;
    let mut text = String::new();
    if let Some((from, to)) = found.period {
        let _ = writeln!(
            text,
            "{from:.0} to {to:.0}: {}, {} of what the rules speak of\n",
            count(found.requests, "request"),
            count(found.writes.seen, "write")
        );
    }
    headline(&mut text, found);
    let rules = found.rules.iter().map(|(rule, tally)| {
        let title = (*rule).to_owned();
        (title, *tally)
    });
    table(&mut text, "by rule", rules.collect(), usize::MAX);
    let namespaces = found.namespaces.iter().map(|(namespace, tally)| {
        let title = namespace.as_deref().unwrap_or("(in no namespace)");
        (harmless(title), *tally)
    });
    table(&mut text, "by namespace", namespaces.collect(), ROWS_SHOWN);
    let users = found
        .users
        .iter()
        .map(|(user, tally)| (harmless(user), *tally));
    table(&mut text, "by user", users.collect(), ROWS_SHOWN);
    objects(&mut text, found);
    not_judged(&mut text, told);
    text
}

/// `1 write`, `2 writes`.
fn count(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

fn headline(text: &mut String, found: &Findings) {
    let total = &found.total;
    let objects = found.objects.values();
    let objects = objects.filter(|object| object.tally.denied > 0).count() as u64;
    let users = found.users.values();
    let users = users.filter(|tally| tally.denied > 0).count() as u64;
    if found.is_blind() {
        text.push_str("Nothing could be judged.\n");
    } else if total.denied == 0 {
        text.push_str("Nothing would have been denied for certain.\n");
    } else {
        let more = if found.more_objects { "at least " } else { "" };
        let _ = writeln!(
            text,
            "{} to {more}{} by {} would have been denied.",
            count(total.denied, "write"),
            count(objects, "object"),
            count(users, "user")
        );
    }
    if total.perhaps > 0 {
        let sentence = format!(
            "{} would perhaps have been denied: the log does not tell what was there before. Had the object the fault already, the change would have been let in with a warning.",
            count(total.perhaps, "write")
        );
        let _ = writeln!(text, "{}", wrap(&sentence));
    }
    for (number, what) in [
        (total.filled, "would have been filled"),
        (total.warned, "would have been warned about"),
        (total.exempted, "would have been let in by an exemption"),
    ] {
        if number > 0 {
            let _ = writeln!(text, "{} {what}.", count(number, "write"));
        }
    }
    text.push('\n');
}

type Column = (&'static str, fn(&Tally) -> u64);

const COLUMNS: [Column; 5] = [
    ("denied", |tally| tally.denied),
    ("perhaps", |tally| tally.perhaps),
    ("filled", |tally| tally.filled),
    ("warned", |tally| tally.warned),
    ("exempted", |tally| tally.exempted),
];

/// Writes by something, those with the most denials first.
fn table(text: &mut String, title: &str, mut rows: Vec<(String, Tally)>, most: usize) {
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|(_, tally)| std::cmp::Reverse(weight(tally)));
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|(_, of)| rows.iter().any(|(_, tally)| of(tally) > 0))
        .collect();
    let left = rows.len().saturating_sub(most);
    rows.truncate(most);
    let width = rows.iter().map(|(name, _)| name.chars().count() + 2);
    let width = width.max().unwrap_or(0).max(title.len());
    let _ = write!(text, "{title:width$}");
    for (name, _) in &columns {
        let _ = write!(text, "  {name:>8}");
    }
    text.push('\n');
    for (name, tally) in &rows {
        let _ = write!(text, "  {name:0$}", width - 2);
        for (_, of) in &columns {
            let _ = write!(text, "  {:>8}", of(tally));
        }
        text.push('\n');
    }
    if left > 0 {
        let _ = writeln!(text, "  and {left} more; --output json has them all");
    }
    text.push('\n');
}

/// Orders by what hurts most.
fn weight(tally: &Tally) -> (u64, u64, u64, u64) {
    (tally.denied, tally.perhaps, tally.filled, tally.warned)
}

fn sorted(found: &Findings) -> Vec<(&Name, &Object)> {
    let mut objects: Vec<_> = found.objects.iter().collect();
    objects.sort_by_key(|(_, object)| std::cmp::Reverse(weight(&object.tally)));
    objects
}

fn objects(text: &mut String, found: &Findings) {
    let objects = sorted(found);
    if objects.is_empty() {
        return;
    }
    text.push_str("the objects most concerned, with one write of each\n");
    for (name, object) in objects.iter().take(OBJECTS_SHOWN) {
        let namespace = name.namespace.as_ref();
        let namespace = namespace.map_or(String::new(), |namespace| format!("{namespace}/"));
        let named = harmless(&format!("{} {namespace}{}", name.kind, name.name));
        let counts: Vec<String> = COLUMNS
            .iter()
            .take(3)
            .filter(|(_, of)| of(&object.tally) > 0)
            .map(|(what, of)| match *what {
                "perhaps" => format!("{} perhaps denied", of(&object.tally)),
                what => format!("{} {what}", of(&object.tally)),
            })
            .collect();
        let _ = writeln!(text, "  {named}: {}", counts.join(", "));
        example(text, &object.example);
    }
    let left = objects.len().saturating_sub(OBJECTS_SHOWN);
    if left > 0 || found.more_objects {
        let more = if found.more_objects { "at least " } else { "" };
        let _ = writeln!(text, "  and {more}{left} more; --output json has them");
    }
    text.push_str("\n`gangplank rules RULE` says what hurts and what to write instead.\n\n");
}

fn example(text: &mut String, example: &Example) {
    let by = example.impersonated_by.as_ref();
    let by = by.map_or(String::new(), |by| format!(" (asked for by {by})"));
    let _ = writeln!(
        text,
        "    {:.0} {} by {}",
        example.time,
        example.verb,
        harmless(&format!("{}{by}", example.user))
    );
    for finding in &example.findings {
        let (what, is) = match finding.effect {
            Effect::Denied => ("denied", "is"),
            Effect::Perhaps => ("perhaps denied", "is"),
            Effect::Filled => ("filled", "with"),
            Effect::Warned => ("warned", "is"),
            Effect::Exempted => ("exempt", "is"),
        };
        let value = finding.value.as_ref();
        let value = value.map_or(String::new(), |value| format!(" {is} {value}"));
        let place = harmless(&format!("{}{value}", finding.path));
        let _ = writeln!(text, "      {what}: {}: {place}", finding.rule);
    }
}

/// What was not judged, and why.
fn not_judged(text: &mut String, told: &Told) {
    let writes = &told.found.writes;
    let mut lines: Vec<String> = Vec::new();
    for ((why, group, resource), number) in &writes.unjudged {
        let why = match why {
            Unjudged::Metadata => "logged at level Metadata, without the object",
            Unjudged::Patch => "patches, logged without the object that came of them",
            Unjudged::Truncated => "cut short by the API server (--audit-log-truncate-enabled)",
            Unjudged::Other => "logged as a Table or without the object",
        };
        let resource = if group.is_empty() {
            (*resource).to_owned()
        } else {
            format!("{resource}.{group}")
        };
        lines.push(format!("{} of {resource}: {why}", count(*number, "write")));
    }
    let quiet = [
        (writes.failed, "refused for other reasons"),
        (writes.dry_run, "only tried (dry run)"),
        (writes.unchanged, "without a change that a rule reads"),
        (
            writes.children,
            "by controllers, of what is judged in another object",
        ),
        (writes.left_out, "in kube-system, where nobody is asked"),
    ];
    for (number, why) in quiet {
        if number > 0 {
            lines.push(format!("{} {why}", count(number, "write")));
        }
    }
    if !lines.is_empty() {
        text.push_str("not judged\n");
        for line in &lines {
            let _ = writeln!(text, "  {line}");
        }
        text.push('\n');
    }
    let cured = writes.unjudged.keys();
    let cured: BTreeSet<(&str, &str)> = cured
        .filter(|(why, ..)| matches!(why, Unjudged::Metadata | Unjudged::Patch))
        .map(|(_, group, resource)| (*group, *resource))
        .collect();
    if !cured.is_empty() {
        text.push_str(
            "The audit policy must log these with the objects, by a rule before all others:\n\n",
        );
        snippet(text, &cured);
    }
    if told.found.forgotten > 0 {
        let sentence = format!(
            "The log tells of more objects than are kept in memory: the last state of {} was given up, so that more changes than need be are judged without what was there before.",
            count(told.found.forgotten, "object")
        );
        let _ = writeln!(text, "{}\n", wrap(&sentence));
    }
    for Broken {
        file,
        line,
        message,
    } in &told.broken
    {
        let _ = writeln!(
            text,
            "passed over: {}",
            harmless(&format!("{file}:{line}: {message}"))
        );
    }
    if told.more_broken > 0 {
        let _ = writeln!(
            text,
            "passed over: {}",
            count(told.more_broken, "more line")
        );
    }
    while text.ends_with("\n\n") {
        text.pop();
    }
}

/// The rule of an audit policy (audit.k8s.io/v1 Policy) that logs what a replay needs.
fn snippet(text: &mut String, resources: &BTreeSet<(&str, &str)>) {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (group, resource) in resources {
        let named = groups.entry(group).or_default();
        named.push((*resource).to_owned());
        if SCALED.contains(resource) {
            named.push(format!("{resource}/scale"));
        }
    }
    text.push_str("    - level: RequestResponse\n");
    text.push_str("      omitStages: [RequestReceived]\n");
    text.push_str("      omitManagedFields: false\n");
    text.push_str("      verbs: [create, update, patch, delete]\n");
    text.push_str("      resources:\n");
    for (group, resources) in groups {
        let _ = writeln!(
            text,
            "      - {{group: \"{group}\", resources: [{}]}}",
            resources.join(", ")
        );
    }
    text.push('\n');
}

/// What is scaled by a subresource.
const SCALED: [&str; 5] = [
    "deployments",
    "statefulsets",
    "replicasets",
    "leaderworkersets",
    "rollouts",
];

/// For programs.
pub fn json(told: &Told) -> String {
    let found = &told.found;
    let tallied = |key: &str, name: Value, tally: &Tally| {
        let mut row = json!(tally);
        if let Some(members) = row.as_object_mut() {
            members.insert(key.to_owned(), name);
        }
        row
    };
    let rules: Vec<Value> = found
        .rules
        .iter()
        .map(|(rule, tally)| tallied("rule", json!(rule), tally))
        .collect();
    let namespaces: Vec<Value> = found
        .namespaces
        .iter()
        .map(|(namespace, tally)| tallied("namespace", json!(namespace), tally))
        .collect();
    let users: Vec<Value> = found
        .users
        .iter()
        .map(|(user, tally)| tallied("user", json!(user), tally))
        .collect();
    let objects: Vec<Value> = sorted(found)
        .into_iter()
        .map(|(name, object)| {
            let mut row = tallied("object", json!(name), &object.tally);
            if let Some(members) = row.as_object_mut() {
                members.insert("deniedBy".to_owned(), json!(object.denied_by));
                members.insert("example".to_owned(), json!(object.example));
            }
            row
        })
        .collect();
    let unjudged: Vec<Value> = found
        .writes
        .unjudged
        .iter()
        .map(|((why, group, resource), count)| {
            json!({"why": why, "group": group, "resource": resource, "writes": count})
        })
        .collect();
    let writes = &found.writes;
    let document = json!({
        "apiVersion": "gangplank.dev/v1",
        "period": found.period.map(|(from, to)| json!({"from": from, "to": to})),
        "requests": found.requests,
        "writes": {
            "seen": writes.seen,
            "judged": writes.judged,
            "withoutBefore": writes.without_before,
            "unchanged": writes.unchanged,
            "children": writes.children,
            "failed": writes.failed,
            "dryRun": writes.dry_run,
            "leftOut": writes.left_out,
            "unjudged": unjudged,
        },
        "total": found.total,
        "rules": rules,
        "namespaces": namespaces,
        "users": users,
        "objects": objects,
        "moreObjects": found.more_objects,
        "forgotten": found.forgotten,
        "brokenLines": {"first": told.broken, "more": told.more_broken},
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
