//! An audit for people: what would be denied, by namespace and owner, and what it costs to leave it.

use std::{collections::BTreeMap, fmt::Write};

use super::{Entry, Outcome, Report, Style, human};
use crate::{
    finding::{Finding, Level},
    rules::{self, page},
    subject::Subject,
    text::{harmless, shown, wrap},
};

/// Who an object belongs to, by what deploys it: Helm, Argo CD, Flux, else the application's own
/// labels (kubernetes.io, recommended labels; argoproj/argo-cd, docs/user-guide/resource_tracking.md;
/// fluxcd/kustomize-controller).
pub fn owner(subject: &Subject) -> Option<String> {
    let annotation = |key| subject.annotation(key);
    let label = |key| subject.label(key);
    // <application>:<group>/<kind>:<namespace>/<name>
    let argo = annotation("argocd.argoproj.io/tracking-id")
        .and_then(|id| id.split(':').next())
        .or_else(|| label("argocd.argoproj.io/instance"));
    let known = [
        ("Helm release", annotation("meta.helm.sh/release-name")),
        ("Argo CD application", argo),
        ("Kustomization", label("kustomize.toolkit.fluxcd.io/name")),
        ("HelmRelease", label("helm.toolkit.fluxcd.io/name")),
        ("part of", label("app.kubernetes.io/part-of")),
        ("instance", label("app.kubernetes.io/instance")),
    ];
    known
        .into_iter()
        .find_map(|(what, name)| Some(format!("{what} {}", name?)))
}

/// The whole report; with colours for a terminal.
pub fn render(report: &Report, colours: bool) -> String {
    let style = Style(colours);
    let mut text = String::new();
    for entry in &report.entries {
        if let Outcome::Failed(problem) = &entry.outcome {
            let _ = writeln!(
                text,
                "{} {}",
                style.red("not seen:"),
                harmless(&problem.message)
            );
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut namespaces: BTreeMap<Option<&str>, BTreeMap<&str, Vec<&Entry>>> = BTreeMap::new();
    for entry in report.entries.iter().filter(|entry| is_told(entry)) {
        let namespace = entry
            .object
            .as_ref()
            .and_then(|object| object.namespace.as_deref());
        let owner = entry.owner.as_deref().unwrap_or_default();
        let owners = namespaces.entry(namespace).or_default();
        owners.entry(owner).or_default().push(entry);
    }
    for (namespace, owners) in &namespaces {
        let title = namespace.map_or("in no namespace".to_owned(), |name| {
            format!("namespace {name}")
        });
        let _ = writeln!(text, "{}", style.bold(&harmless(&title)));
        for (owner, entries) in owners {
            if !owner.is_empty() {
                let _ = writeln!(text, "  {}", harmless(owner));
            }
            for entry in entries {
                object(&mut text, entry, style);
            }
        }
        text.push('\n');
    }
    costs(&mut text, report, style);
    text.push_str(&human::summary(report));
    text
}

/// Whether there is anything to tell of an object.
fn is_told(entry: &Entry) -> bool {
    findings(entry).any(|finding| finding.level != Level::Audit || finding.exempted.is_some())
}

fn findings(entry: &Entry) -> impl Iterator<Item = &Finding> {
    let review = match &entry.outcome {
        Outcome::Reviewed(review) => Some(review),
        Outcome::Failed(_) => None,
    };
    review.into_iter().flat_map(|review| &review.findings)
}

fn object(text: &mut String, entry: &Entry, style: Style) {
    let Some(object) = &entry.object else { return };
    let name = object.name.as_deref().unwrap_or_default();
    let _ = writeln!(text, "    {} {}", object.kind, harmless(name));
    for finding in findings(entry) {
        let what = match (finding.level, &finding.exempted) {
            (_, Some(exempted)) => {
                let terms = &exempted.terms;
                let line = format!("exempt until {} ({})", terms.until, terms.owner);
                style.dim(&harmless(&line))
            }
            (Level::Deny, None) => style.red("would be denied"),
            (Level::Warn, None) if finding.dry => style.red("would be denied"),
            (Level::Warn, None) => style.yellow("warning"),
            (Level::Info, None) => style.dim("would be filled"),
            (Level::Audit, None) => continue,
        };
        let value = finding.value.as_ref().map(shown);
        let value = value.map_or(String::new(), |value| format!(" is {value}"));
        let value = if finding.filled {
            value.replacen(" is ", " with ", 1)
        } else {
            value
        };
        let place = harmless(&format!("{}{value}", finding.path));
        let _ = writeln!(text, "      {what}: {}: {place}", finding.rule);
    }
}

/// What each rule's findings cost while they stay, in words, the strongest rules first.
fn costs(text: &mut String, report: &Report, style: Style) {
    let mut counts: BTreeMap<(std::cmp::Reverse<Level>, &str), usize> = BTreeMap::new();
    for finding in report.entries.iter().flat_map(findings) {
        if finding.exempted.is_none() && finding.level >= Level::Warn {
            let key = (std::cmp::Reverse(finding.level), finding.rule);
            *counts.entry(key).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return;
    }
    let _ = writeln!(text, "{}", style.bold("What it costs to leave it"));
    for ((level, id), count) in &counts {
        let Some(rule) = rules::rule(id) else {
            continue;
        };
        let times = if *count == 1 { "once" } else { "times" };
        let count = if *count == 1 {
            times.to_owned()
        } else {
            format!("{count} {times}")
        };
        let _ = writeln!(text, "  {id} ({}, {count})", level.0.as_str());
        let why = page::section(&rule.documentation(), "Why it hurts");
        for line in wrap(&why).lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text.push_str("\n`gangplank rules RULE` says what to write instead.\n");
}
