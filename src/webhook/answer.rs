//! From a review to an `AdmissionReview` response, and the text that people read in a terminal.

use std::fmt::Write;

use axum::http::StatusCode;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::envelope::{API_VERSION, Refusal};
use crate::{
    exempt::{Exempted, Hint, Terms},
    finding::{Finding, Level, Verdict},
    policy::Policy,
    review::Review,
    rules,
    subject::{Door, Subject},
    text::{cut, harmless, shown, wrap},
};

/// The API server cuts a warning here (k8s.io/apiserver, filters/warning.go).
const WARNING_LIMIT: usize = 256;

/// The API server shows no more of all warnings together (the same file).
const WARNINGS_LIMIT: usize = 4096;

/// More denials than these are the same mistake again.
const DENIALS_LIMIT: usize = 10;

/// More causes than these no client shows.
const CAUSES_LIMIT: usize = 100;

/// More of what to write instead than a terminal shows is of no use, and a skeleton may repeat an
/// object of a megabyte.
const INSTEAD_LIMIT: usize = 8 * 1024;

/// No team's name is longer.
const OWNER_LIMIT: usize = 64;

/// The answer to a request that was reviewed.
pub fn answer(policy: &Policy, uid: &str, subject: &Subject, review: &Review) -> Value {
    let denied = subject.door != Door::Mutate && review.verdict() == Verdict::Deny;
    let mut response = json!({"uid": uid, "allowed": !denied});
    let mut set = |member: &str, value: Value| {
        if let Some(members) = response.as_object_mut() {
            members.insert(member.to_owned(), value);
        }
    };
    if denied {
        set("status", status(subject, review));
    }
    let warnings = warnings(&review.findings);
    if !warnings.is_empty() {
        set("warnings", warnings.into());
    }
    if subject.door == Door::Mutate && !review.patch.0.is_empty() {
        let patch = serde_json::to_vec(&review.patch).unwrap_or_default();
        set("patchType", json!("JSONPatch"));
        set("patch", BASE64_STANDARD.encode(patch).into());
    }
    if review.skipped.is_none() {
        set("auditAnnotations", annotations(policy, review));
    }
    envelope(response)
}

/// The answer to a request that could not be reviewed.
pub fn refuse(refusal: &Refusal) -> Value {
    envelope(json!({
        "uid": refusal.uid,
        "allowed": false,
        "status": {
            "status": "Failure",
            "code": refusal.code.as_u16(),
            "reason": reason(refusal.code),
            "message": refusal.message,
        },
    }))
}

fn envelope(response: Value) -> Value {
    let mut review = json!({"apiVersion": API_VERSION, "kind": "AdmissionReview"});
    // Moved: `json!` would copy it.
    if let Some(members) = review.as_object_mut() {
        members.insert("response".to_owned(), response);
    }
    review
}

/// Reasons as in k8s.io/apimachinery, pkg/apis/meta/v1/types.go.
fn reason(code: StatusCode) -> &'static str {
    match code {
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLarge",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UnsupportedMediaType",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "BadRequest",
    }
}

fn denials(review: &Review) -> impl Iterator<Item = &Finding> {
    review
        .findings
        .iter()
        .filter(|finding| finding.level == Level::Deny)
}

fn status(subject: &Subject, review: &Review) -> Value {
    let causes: Vec<Value> = denials(review)
        .take(CAUSES_LIMIT)
        .map(|finding| {
            json!({
                "field": finding.path.to_string(),
                "reason": finding.rule,
                "message": finding.message,
            })
        })
        .collect();
    json!({
        "status": "Failure",
        "code": StatusCode::FORBIDDEN.as_u16(),
        "reason": "Forbidden",
        "message": message(review),
        "details": {
            "group": subject.group(), "kind": subject.kind, "name": subject.name, "causes": causes,
        },
    })
}

/// What kubectl shows: for every denial the rule, the place, the value, why, and what to write.
pub fn message(review: &Review) -> String {
    let mut text = String::new();
    let count = denials(review).count();
    let mut all = denials(review).enumerate().peekable();
    while let Some((position, finding)) = all.next() {
        if position == DENIALS_LIMIT {
            let _ = write!(
                text,
                "and {} more; gangplank check shows them all",
                count - DENIALS_LIMIT
            );
            break;
        }
        let _ = write!(text, "{}: {}", finding.rule, finding.path);
        if let Some(value) = &finding.value {
            let _ = write!(text, " is {}", shown(value));
        }
        let why = wrap(&finding.message).replace('\n', "\n       ");
        let _ = write!(text, "\n  why: {why}");
        // What mends several faults is shown once, below the last of them.
        if all.peek().is_some_and(|(position, next)| {
            *position < DENIALS_LIMIT && finding.is_mended_with(next)
        }) {
            text.push('\n');
            continue;
        }
        if !finding.instead.is_empty() {
            text.push_str("\n  write instead:");
            let mut length = 0;
            for line in finding.instead.lines() {
                length += line.len();
                if length > INSTEAD_LIMIT {
                    text.push_str("\n    # ... cut here; gangplank check shows all of it");
                    break;
                }
                text.push_str(if line.is_empty() { "\n" } else { "\n    " });
                text.push_str(line);
            }
        }
        if let Some(rule) = rules::rule(finding.rule) {
            let _ = write!(text, "\n  see: {}", rule.help());
        }
        // Once for each rule, below the last of its findings.
        let is_last = all
            .peek()
            .is_none_or(|(position, next)| *position == DENIALS_LIMIT || next.rule != finding.rule);
        match finding.hint.as_ref().filter(|_| is_last) {
            Some(Hint::Void(why)) => {
                let why = wrap(why).replace('\n', "\n    ");
                let _ = write!(text, "\n  not exempt:\n    {why}");
            }
            Some(Hint::Annotation(line)) => {
                let _ = write!(text, "\n  who may exempt annotates:\n    {line}");
            }
            None => {}
        }
        if all.peek().is_some() {
            text.push_str("\n\n");
        }
    }
    harmless(&text)
}

/// Until when a rule is not enforced, and why it is though somebody has annotated the object: once for
/// each rule. What is exempt from a mere warning is not spoken of.
fn exemptions(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in findings {
        let (rule, level) = (finding.rule, finding.level);
        let line = match &finding.exempted {
            Some(Exempted { terms, level, .. }) if *level == Level::Deny => {
                let Terms { until, owner, .. } = terms;
                format!("{rule}: exempt until {until} ({owner}); denied from then on")
            }
            _ => match &finding.hint {
                Some(Hint::Void(why)) if level == Level::Warn => format!("{rule}: {why}"),
                _ => continue,
            },
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// One line for each thing that whoever writes the object should know.
fn warnings(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut length = 0;
    let mut left_out = 0_usize;
    let texts = findings.iter().filter_map(|finding| {
        Some(match (finding.level, finding.filled) {
            (Level::Info, true) => {
                let value = finding.value.as_ref().map(shown).unwrap_or_default();
                format!(
                    "{}: {} {} with {value}: {}",
                    finding.rule,
                    if finding.dry { "would fill" } else { "filled" },
                    finding.path,
                    finding.message
                )
            }
            (Level::Warn, _) if finding.dry => format!(
                "{}: would be denied: {}: {}",
                finding.rule, finding.path, finding.message
            ),
            (Level::Warn, _) if finding.ratcheted => {
                format!(
                    "{}: {} (as before this change): {}",
                    finding.rule, finding.path, finding.message
                )
            }
            (Level::Warn, _) => format!("{}: {}: {}", finding.rule, finding.path, finding.message),
            _ => return None,
        })
    });
    for text in texts.chain(exemptions(findings)) {
        // A line break would end the header that carries the warning.
        let text = harmless(&text);
        let line = cut(
            &text.split_whitespace().collect::<Vec<_>>().join(" "),
            WARNING_LIMIT - 1,
        );
        // Room for the line that says how many were left out.
        if length + line.len() > WARNINGS_LIMIT - WARNING_LIMIT {
            left_out += 1;
            continue;
        }
        length += line.len();
        lines.push(line);
    }
    if left_out > 0 {
        lines.push(format!(
            "gangplank: {left_out} more; `gangplank check` shows them all"
        ));
    }
    lines
}

fn annotations(policy: &Policy, review: &Review) -> Value {
    let mut rules: Vec<&str> = review.findings.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules.sort_unstable();
    rules.dedup();
    let mut exemptions: Vec<String> = Vec::new();
    for finding in &review.findings {
        if let Some(Exempted { terms, source, .. }) = &finding.exempted {
            let (rule, source) = (finding.rule, source.as_str());
            let owner = cut(&harmless(&terms.owner), OWNER_LIMIT);
            let line = format!("{rule} until={} owner={owner} source={source}", terms.until);
            if !exemptions.contains(&line) {
                exemptions.push(line);
            }
        }
    }
    json!({
        "verdict": if review.would_deny() { "would-deny" } else { review.verdict().as_str() },
        "rules": rules.join(","),
        "exemptions": exemptions.join("; "),
        "policy": policy.hash(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::finding::FieldPath;

    fn subject(door: Door) -> Subject {
        let value =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}});
        Subject {
            door,
            ..Subject::from_manifest(Arc::new(value)).unwrap()
        }
    }

    fn finding(level: Level, message: &str) -> Finding {
        let path = FieldPath::of(&["spec", "metrics"]).index(0);
        Finding {
            rule: "some-rule",
            level,
            ..Finding::new(path, message)
        }
        .value("DCGM_FI_DEV_GPU_UTIL")
        .instead("- type: Pods\n  pods: {}")
    }

    fn review(findings: Vec<Finding>) -> Review {
        Review {
            findings,
            ..Review::default()
        }
    }

    #[test]
    fn a_denial_says_rule_place_value_why_and_what_to_write() {
        let review = review(vec![
            finding(Level::Deny, "a duty cycle."),
            finding(Level::Warn, "soft"),
        ]);
        let answer = answer(&Policy::default(), "u", &subject(Door::Validate), &review);
        let response = &answer["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("u"), &json!(false))
        );
        assert_eq!(response["status"]["code"], 403);
        assert_eq!(response["status"]["reason"], "Forbidden");
        assert_eq!(
            response["status"]["details"]["causes"],
            json!([{"field": "spec.metrics[0]", "reason": "some-rule", "message": "a duty cycle."}])
        );
        assert_eq!(
            response["status"]["message"],
            "some-rule: spec.metrics[0] is \"DCGM_FI_DEV_GPU_UTIL\"\n  why: a duty cycle.\n  write instead:\n    - type: Pods\n      pods: {}"
        );
        assert_eq!(
            response["warnings"],
            json!(["some-rule: spec.metrics[0]: soft"])
        );
        assert_eq!(response["auditAnnotations"]["verdict"], "deny");
        assert!(answer.get("request").is_none() && response.get("patch").is_none());
    }

    #[test]
    fn a_denial_of_a_huge_object_stays_readable() {
        let huge = "line of yaml\n".repeat(100_000);
        let finding = finding(Level::Deny, "a duty cycle.").instead(huge);
        let text = message(&review(vec![finding]));
        assert!(text.len() < 2 * INSTEAD_LIMIT, "{}", text.len());
        assert!(text.ends_with("gangplank check shows all of it"));
    }

    #[test]
    fn a_thousand_denials_are_told_by_the_first_ten() {
        let review = review(vec![finding(Level::Deny, "a duty cycle."); 1000]);
        let text = message(&review);
        assert!(
            text.ends_with("and 990 more; gangplank check shows them all"),
            "{text}"
        );
        let answer = answer(&Policy::default(), "u", &subject(Door::Validate), &review);
        assert!(answer.to_string().len() < 64 * 1024);
    }

    #[test]
    fn warnings_keep_to_what_the_api_server_passes_on() {
        let long = "word ".repeat(100);
        let review = review(vec![finding(Level::Warn, &long); 40]);
        let lines = warnings(&review.findings);
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() < WARNING_LIMIT)
        );
        assert!(lines.iter().map(String::len).sum::<usize>() <= WARNINGS_LIMIT);
        assert!(
            lines.last().unwrap().starts_with("gangplank: 2"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_mutating_answer_never_denies_and_carries_a_base64_patch() {
        let patch =
            serde_json::from_value(json!([{"op": "add", "path": "/a", "value": 1}])).unwrap();
        let review = Review {
            findings: vec![finding(Level::Deny, "x")],
            patch,
            ..Review::default()
        };
        let response =
            &answer(&Policy::default(), "u", &subject(Door::Mutate), &review)["response"];
        assert_eq!(
            (&response["allowed"], &response["patchType"]),
            (&json!(true), &json!("JSONPatch"))
        );
        let decoded = BASE64_STANDARD
            .decode(response["patch"].as_str().unwrap())
            .unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&decoded).unwrap(),
            json!([{"op": "add", "path": "/a", "value": 1}])
        );
    }
}
