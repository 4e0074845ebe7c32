//! The JSON of `gangplank check` and `gangplank audit`, version `gangplank.dev/v1`.

use std::io;

use serde::{Serialize, Serializer, ser::SerializeSeq};
use serde_json::{Value, json};

use super::{Entry, Outcome, Report, fingerprint};
use crate::finding::Finding;

/// Writes the whole report, one line-broken document.
///
/// # Errors
/// Where it cannot be written.
pub fn write(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let document = Document {
        api_version: "gangplank.dev/v1",
        results: Results(&report.entries),
        summary: json!(report.summary),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    out.write_all(b"\n")
}

#[derive(Serialize)]
struct Document<'r> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    results: Results<'r>,
    summary: Value,
}

/// Each is made when it is written.
struct Results<'r>(&'r [Entry]);

impl Serialize for Results<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut results = serializer.serialize_seq(Some(self.0.len()))?;
        for entry in self.0 {
            results.serialize_element(&result(entry))?;
        }
        results.end()
    }
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
