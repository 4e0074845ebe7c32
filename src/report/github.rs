//! Workflow commands of GitHub Actions: findings become annotations of a pull request's lines
//! (docs.github.com, workflow commands for GitHub Actions).

use std::fmt::Write;

use super::{Entry, Outcome, Report, human};
use crate::{
    finding::{Finding, Level},
    text::harmless,
};

/// A line for each finding, and the counts.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for entry in &report.entries {
        match &entry.outcome {
            Outcome::Failed(problem) => {
                let mut place = file(entry);
                for (name, value) in [("line", problem.line), ("col", problem.column)] {
                    if let Some(value) = value {
                        place.push((name, value.to_string()));
                    }
                }
                place.push(("title", "cannot be read".to_owned()));
                command(&mut text, "error", &place, &problem.message);
            }
            Outcome::Reviewed(review) => {
                for finding in &review.findings {
                    annotation(&mut text, entry, finding);
                }
            }
        }
    }
    text.push_str(&human::summary(report));
    text
}

fn annotation(text: &mut String, entry: &Entry, finding: &Finding) {
    let level = match finding.level {
        Level::Deny => "error",
        Level::Warn => "warning",
        // Reports and metrics only; what is filled in the cluster is nothing to mend here.
        Level::Audit | Level::Info => return,
    };
    let mut place = file(entry);
    if let Some(origin) = entry
        .origin
        .as_ref()
        .filter(|origin| !origin.text.is_empty())
    {
        let (key, value) = origin.locate(&finding.path);
        let end = value.map_or(key.end, |value| value.end.max(key.end));
        let (line, column) = origin.line_column(key.start);
        let (end_line, _) = origin.line_column(end);
        place.push(("line", line.to_string()));
        place.push(("endLine", end_line.to_string()));
        place.push(("col", column.to_string()));
    }
    place.push(("title", finding.rule.to_owned()));
    let object = entry.object.as_ref().map(ToString::to_string);
    let mut message = format!(
        "{}: {}: {}",
        object.unwrap_or_default(),
        finding.path,
        finding.message
    );
    if !finding.instead.is_empty() {
        let _ = write!(message, "\nwrite instead:\n{}", finding.instead.trim_end());
    }
    command(text, level, &place, &message);
}

fn file(entry: &Entry) -> Vec<(&'static str, String)> {
    let named = entry.origin.as_ref().filter(|origin| &*origin.file != "-");
    named
        .map(|origin| ("file", origin.file.trim_start_matches("./").to_owned()))
        .into_iter()
        .collect()
}

/// One command. What would end it, or begin another, is written as the runner reads it back
/// (actions/toolkit, packages/core/src/command.ts).
fn command(text: &mut String, name: &str, properties: &[(&str, String)], message: &str) {
    let escaped = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
    let properties: Vec<String> = properties
        .iter()
        .map(|(key, value)| format!("{key}={}", property(&harmless(value))))
        .collect();
    let properties = properties.join(",");
    let gap = if properties.is_empty() { "" } else { " " };
    let _ = writeln!(
        text,
        "::{name}{gap}{properties}::{}",
        escaped(&harmless(message))
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_ends_a_command() {
        let mut text = String::new();
        command(
            &mut text,
            "error",
            &[("file", "a,b:c%.yaml".to_owned())],
            "one\ntwo::stop-commands::x",
        );
        assert_eq!(
            text,
            "::error file=a%2Cb%3Ac%25.yaml::one%0Atwo::stop-commands::x\n"
        );
    }
}
