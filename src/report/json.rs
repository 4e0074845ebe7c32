//! The JSON of `gangplank check` and `gangplank audit`, version `gangplank.dev/v1`.

use serde_json::{Value, json};

use super::{Entry, Outcome, Report, fingerprint};
use crate::finding::Finding;

/// The whole report, one line-broken document.
pub fn render(report: &Report) -> String {
    let results: Vec<Value> = report.entries.iter().map(result).collect();
    let document = json!({
        "apiVersion": "gangplank.dev/v1",
        "results": results,
        "summary": report.summary,
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn result(entry: &Entry) -> Value {
    let origin = entry.origin.as_ref();
    let object = entry.object.as_ref().map(|object| {
        json!({
            "apiVersion": object.api_version,
            "kind": object.kind,
            "namespace": object.namespace,
            "name": object.name,
        })
    });
    let (verdict, findings, patch, error) = match &entry.outcome {
        Outcome::Reviewed(review) => (
            review.verdict().as_str(),
            review
                .findings
                .iter()
                .map(|one| finding(entry, one))
                .collect(),
            json!(review.patch),
            Value::Null,
        ),
        Outcome::Failed(problem) => (
            "error",
            Vec::new(),
            json!([]),
            json!({"message": problem.message, "line": problem.line, "column": problem.column}),
        ),
    };
    json!({
        "file": origin.map(|origin| origin.file.as_ref()),
        "document": origin.and_then(|origin| origin.document),
        "item": origin.and_then(|origin| origin.item),
        "line": origin.and_then(|origin| origin.line),
        "object": object,
        "verdict": verdict,
        "findings": findings,
        "patch": patch,
        "error": error,
    })
}

fn finding(entry: &Entry, finding: &Finding) -> Value {
    json!({
        "rule": finding.rule,
        "level": finding.level,
        "path": finding.path.to_string(),
        "value": finding.value,
        "message": finding.message,
        "instead": finding.instead,
        "confidence": finding.confidence,
        "filled": finding.filled && !finding.dry,
        "ratcheted": finding.ratcheted,
        "fingerprint": fingerprint(entry.object.as_ref(), finding),
        "exempted": finding.exempted.as_ref().map(|exempted| json!({
            "until": exempted.terms.until.to_string(),
            "owner": exempted.terms.owner,
            "reason": exempted.terms.reason,
            "source": exempted.source,
        })),
    })
}
