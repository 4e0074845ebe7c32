//! For people: every finding points at its line, as rustc does.

use std::{fmt::Write, ops::Range};

use annotate_snippets::{
    AnnotationKind, Element, Group, Level as Shown, Origin as Place, Renderer, Snippet,
};

use super::{Entry, Origin, Outcome, Problem, Report};
use crate::{
    exempt::{Exempted, Source, Terms},
    finding::{Finding, Level},
    rules,
    text::{harmless, shown, wrap},
};

/// The whole report; with colours for a terminal.
pub fn render(report: &Report, colours: bool) -> String {
    let renderer = if colours {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut text = String::new();
    for entry in &report.entries {
        match &entry.outcome {
            Outcome::Failed(problem) => {
                let title = Shown::ERROR.primary_title(problem.message.as_str());
                let groups =
                    [title.elements(entry.origin.iter().map(|origin| broken(origin, problem)))];
                let _ = writeln!(text, "{}\n", renderer.render(&groups));
            }
            Outcome::Reviewed(review) => {
                let mut findings = review
                    .findings
                    .iter()
                    .filter(|finding| finding.level != Level::Audit || finding.exempted.is_some())
                    .peekable();
                while let Some(finding) = findings.next() {
                    // What mends several faults is shown once, below the last of them.
                    let help = !findings
                        .peek()
                        .is_some_and(|next| finding.is_mended_with(next));
                    let groups = groups(entry, finding, help);
                    let _ = writeln!(text, "{}\n", renderer.render(&groups));
                }
            }
        }
    }
    text.push_str(&summary(report));
    text
}

fn groups<'a>(entry: &'a Entry, finding: &'a Finding, help: bool) -> Vec<Group<'a>> {
    let level = match finding.level {
        Level::Deny => Shown::ERROR.with_name("denied"),
        Level::Info if finding.dry => Shown::INFO.with_name("would be filled"),
        Level::Info => Shown::INFO.with_name("filled"),
        Level::Warn if finding.dry => Shown::WARNING.with_name("would be denied"),
        Level::Warn => Shown::WARNING,
        Level::Audit if finding.exempted.is_some() => Shown::NOTE.with_name("exempt"),
        Level::Audit => Shown::NOTE,
    };
    let object = entry
        .object
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let title = level.primary_title(harmless(&object)).id(finding.rule);
    let place_of: Element<'_> = match entry
        .origin
        .as_ref()
        .filter(|origin| !origin.text.is_empty())
    {
        Some(origin) => {
            let (key, value) = origin.locate(&finding.path);
            let label = label(finding, value.is_some());
            let range = value.map_or_else(|| key.clone(), |value| join(&origin.text, &key, value));
            let (lines, first) = origin.marks.lines(&origin.text, &range);
            let inside = |at: usize| at.saturating_sub(lines.start);
            let within = inside(range.start)..inside(range.end);
            Snippet::source(origin.text.get(lines).unwrap_or_default())
                .line_start(first)
                .path(origin.file.as_ref())
                .annotation(AnnotationKind::Primary.span(within).label(label))
                .into()
        }
        None => Place::path(finding.path.to_string()).into(),
    };
    if let Some(Exempted { terms, source, .. }) = &finding.exempted {
        let Terms {
            until,
            owner,
            reason,
        } = terms;
        let place = match source {
            Source::Annotation => "",
            Source::Policy => " (in the policy)",
        };
        let text = harmless(&wrap(&format!("{until}, {owner}{place}: {reason}")));
        let note = Shown::NOTE.with_name("until").message(text);
        return vec![title.element(place_of).element(note)];
    }
    let why = match finding.level {
        Level::Info => "because",
        _ if finding.ratcheted => "why (it was so before)",
        _ => "why",
    };
    let mut group = title.element(place_of).element(
        Shown::NOTE
            .with_name(why)
            .message(harmless(&wrap(&finding.message))),
    );
    if help && !finding.instead.is_empty() {
        group = group.element(Shown::HELP.message(format!(
            "write instead:\n{}",
            harmless(finding.instead.trim_end())
        )));
    }
    if help
        && finding.level != Level::Info
        && let Some(rule) = rules::rule(finding.rule)
    {
        group = group.element(Shown::NOTE.message(format!("see {}", rule.help())));
    }
    vec![group]
}

fn label(finding: &Finding, is_there: bool) -> String {
    match (&finding.value, finding.filled, is_there) {
        (Some(value), true, _) => format!("{} becomes {}", finding.path, shown(value)),
        (Some(value), false, false) => format!("{} is {}", finding.path, shown(value)),
        (None, _, false) => format!("{} is not here", finding.path),
        (_, _, true) => finding.path.to_string(),
    }
}

/// Key and value together where they stand on one line, else the key.
fn join(text: &str, key: &Range<usize>, value: Range<usize>) -> Range<usize> {
    let whole = key.start.min(value.start)..value.end;
    match text.get(whole.clone()) {
        Some(covered) if !covered.trim_end().contains('\n') => {
            whole.start..whole.start + covered.trim_end().len()
        }
        _ => key.clone(),
    }
}

fn broken<'a>(origin: &'a Origin, problem: &Problem) -> Element<'a> {
    let (Some(line), Some(column)) = (problem.line, problem.column) else {
        return Place::path(origin.file.as_ref()).into();
    };
    let start: usize = origin
        .text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let rest = origin.text.get(start..).unwrap_or_default();
    let row = rest.lines().next().unwrap_or_default();
    let within: usize = row
        .chars()
        .take(column.saturating_sub(1))
        .map(char::len_utf8)
        .sum();
    let at = (start + within).min(origin.text.len());
    let end = at
        + row
            .get(within..)
            .and_then(|rest| rest.chars().next())
            .map_or(0, char::len_utf8);
    if origin.text.is_empty() {
        return Place::path(origin.file.as_ref())
            .line(line)
            .char_column(column)
            .into();
    }
    Snippet::source(origin.text.as_ref())
        .path(origin.file.as_ref())
        .annotation(AnnotationKind::Primary.span(at..end))
        .into()
}

/// The counts, in a line or two.
pub(super) fn summary(report: &Report) -> String {
    let counts = &report.summary;
    let plural = |count: usize, one: &str, many: &str| {
        format!("{count} {}", if count == 1 { one } else { many })
    };
    let mut text = format!(
        "{}: {} denied, {} warned, {} allowed",
        plural(counts.objects, "object", "objects"),
        counts.denied,
        counts.warned,
        counts.allowed
    );
    if counts.filled > 0 {
        let _ = write!(text, "; {} filled", counts.filled);
    }
    if counts.exempted > 0 {
        let _ = write!(text, "; {} exempted", counts.exempted);
    }
    if counts.errors > 0 {
        let _ = write!(text, "; {}", plural(counts.errors, "error", "errors"));
    }
    if counts.known > 0 {
        let _ = write!(
            text,
            "; {} of the baseline left out",
            plural(counts.known, "finding", "findings")
        );
    }
    text.push('\n');
    if report.passed_by.other_yaml > 0 {
        let _ = writeln!(
            text,
            "passed by: {} without apiVersion and kind",
            plural(report.passed_by.other_yaml, "document", "documents")
        );
    }
    if report.passed_by.templates > 0 {
        let _ = writeln!(
            text,
            "passed by: {} of charts; render them: helm template <chart> | gangplank check -",
            plural(report.passed_by.templates, "template", "templates")
        );
    }
    text
}
