//! SARIF 2.1.0, as code scanning services read it (OASIS, sarif-schema-2.1.0.json).

use std::io;

use serde::{Serialize, Serializer, ser::SerializeSeq};
use serde_json::{Map, Value, json};

use super::{Entry, Origin, Outcome, Problem, Report, fingerprint};
use crate::{
    exempt::Exempted,
    finding::{FieldPath, Finding, Level},
    rules::{RULES, page},
};

/// Where the schema is published.
const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// Writes the whole report as one run.
///
/// # Errors
/// Where it cannot be written.
pub fn write(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let notifications: Vec<Value> = report
        .entries
        .iter()
        .filter_map(|entry| match &entry.outcome {
            Outcome::Failed(problem) => Some(notification(entry, problem)),
            Outcome::Reviewed(_) => None,
        })
        .collect();
    let document = Document {
        schema: SCHEMA,
        runs: [Run {
            column_kind: "unicodeCodePoints",
            invocations: json!([{
                "executionSuccessful": notifications.is_empty(),
                "exitCode": report.exit_code(),
                "toolExecutionNotifications": notifications,
            }]),
            results: Results(&report.entries),
            tool: json!({"driver": {
                "name": "gangplank",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules(),
            }}),
        }],
        version: "2.1.0",
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    out.write_all(b"\n")
}

#[derive(Serialize)]
struct Document<'r> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    runs: [Run<'r>; 1],
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'r> {
    column_kind: &'static str,
    invocations: Value,
    results: Results<'r>,
    tool: Value,
}

/// Each is made when it is written.
struct Results<'r>(&'r [Entry]);

impl Serialize for Results<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut results = serializer.serialize_seq(None)?;
        for entry in self.0 {
            if let Outcome::Reviewed(review) = &entry.outcome {
                for finding in &review.findings {
                    results.serialize_element(&result(entry, finding))?;
                }
            }
        }
        results.end()
    }
}

fn rules() -> Vec<Value> {
    RULES
        .iter()
        .map(|rule| {
            let documentation = rule.documentation();
            json!({
                "id": rule.id,
                "name": rule.id,
                "shortDescription": {"text": format!("{}.", rule.summary)},
                "fullDescription": {"text": page::section(&documentation, "What it finds")},
                "help": {
                    "text": page::section(&documentation, "Why it hurts"),
                    "markdown": documentation,
                },
                "helpUri": rule.help(),
                "defaultConfiguration": {"level": level(rule.level)},
                "properties": {"tags": ["kubernetes", "gpu", page::folder(rule.group)]},
            })
        })
        .collect()
}

const fn level(level: Level) -> &'static str {
    match level {
        Level::Deny => "error",
        Level::Warn => "warning",
        Level::Audit | Level::Info => "note",
    }
}

fn result(entry: &Entry, finding: &Finding) -> Value {
    let mut text = finding.message.clone();
    let mut markdown = text.clone();
    if !finding.instead.is_empty() {
        let instead = finding.instead.trim_end();
        text = format!("{text}\nWrite instead:\n{instead}");
        markdown = format!("{markdown}\n\nWrite instead:\n\n```yaml\n{instead}\n```");
    }
    let mut result = Map::new();
    let mut set = |key: &str, value: Value| {
        result.insert(key.to_owned(), value);
    };
    set("ruleId", json!(finding.rule));
    if let Some(index) = RULES.iter().position(|rule| rule.id == finding.rule) {
        set("ruleIndex", json!(index));
    }
    set("level", json!(level(finding.level)));
    set(
        "kind",
        json!(if finding.filled {
            "informational"
        } else {
            "fail"
        }),
    );
    if finding.filled {
        // The schema wants `none` beside every kind but `fail`.
        set("level", json!("none"));
    }
    set("message", json!({"text": text, "markdown": markdown}));
    set("locations", json!([location(entry, finding)]));
    set(
        "partialFingerprints",
        json!({"gangplank/v1": fingerprint(entry.object.as_ref(), finding)}),
    );
    if let Some(exempted) = &finding.exempted {
        set("suppressions", json!([suppression(exempted)]));
    }
    Value::Object(result)
}

/// What was exempted is reported and suppressed, with who answers for it.
fn suppression(exempted: &Exempted) -> Value {
    let terms = &exempted.terms;
    json!({
        "kind": "external",
        "status": "accepted",
        "justification": format!(
            "{} (owner {}, until {})", terms.reason, terms.owner, terms.until
        ),
    })
}

fn location(entry: &Entry, finding: &Finding) -> Value {
    let mut logical = Vec::new();
    if let Some(object) = &entry.object {
        let parts = [
            Some(object.kind.as_str()),
            object.namespace.as_deref(),
            object.name.as_deref(),
        ];
        let name: Vec<&str> = parts.into_iter().flatten().collect();
        logical.push(json!({"fullyQualifiedName": name.join("/"), "kind": "resource"}));
    }
    logical.push(json!({"fullyQualifiedName": finding.path.to_string(), "kind": "member"}));
    let mut location = json!({"logicalLocations": logical});
    if let Some(physical) = entry
        .origin
        .as_ref()
        .and_then(|origin| physical(origin, &finding.path))
        && let Some(members) = location.as_object_mut()
    {
        members.insert("physicalLocation".to_owned(), physical);
    }
    location
}

fn physical(origin: &Origin, path: &FieldPath) -> Option<Value> {
    let artifact = artifact(&origin.file)?;
    if origin.text.is_empty() {
        return Some(json!({"artifactLocation": artifact}));
    }
    let (key, value) = origin.locate(path);
    let end = value.map_or(key.end, |value| value.end.max(key.end));
    let (start_line, start_column) = origin.line_column(key.start);
    let (end_line, end_column) = origin.line_column(end);
    let mut region = json!({"startLine": start_line, "startColumn": start_column});
    if (end_line, end_column) > (start_line, start_column)
        && let Some(members) = region.as_object_mut()
    {
        members.insert("endLine".to_owned(), json!(end_line));
        members.insert("endColumn".to_owned(), json!(end_column));
    }
    Some(json!({"artifactLocation": artifact, "region": region}))
}

/// A file as a URI: relative to the folder that the run began in where it was given so. Standard
/// input is no file.
fn artifact(file: &str) -> Option<Value> {
    if file == "-" {
        return None;
    }
    if file.starts_with('/') {
        return Some(json!({"uri": format!("file://{}", escaped(file))}));
    }
    let relative = file.trim_start_matches("./");
    Some(json!({"uri": escaped(relative), "uriBaseId": "%SRCROOT%"}))
}

/// Percent-encodes what has no place in the path of a URI (RFC 3986, 3.3).
fn escaped(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

fn notification(entry: &Entry, problem: &Problem) -> Value {
    let mut notification = json!({
        "level": "error",
        "message": {"text": problem.message},
    });
    let artifact = entry
        .origin
        .as_ref()
        .and_then(|origin| artifact(&origin.file));
    if let (Some(artifact), Some(members)) = (artifact, notification.as_object_mut()) {
        let mut physical = json!({"artifactLocation": artifact});
        if let (Some(line), Some(place)) = (problem.line, physical.as_object_mut()) {
            let mut region = json!({"startLine": line});
            if let (Some(column), Some(region)) = (problem.column, region.as_object_mut()) {
                region.insert("startColumn".to_owned(), json!(column));
            }
            place.insert("region".to_owned(), region);
        }
        members.insert(
            "locations".to_owned(),
            json!([{"physicalLocation": physical}]),
        );
    }
    notification
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_uris() {
        let uri = |file: &str| artifact(file).map(|artifact| artifact["uri"].clone());
        assert_eq!(uri("./a b/ü.yaml"), Some(json!("a%20b/%C3%BC.yaml")));
        assert_eq!(uri("/etc/x.yaml"), Some(json!("file:///etc/x.yaml")));
        assert_eq!(uri("-"), None);
    }
}
