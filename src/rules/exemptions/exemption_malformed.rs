//! Exemptions that cannot be read.

use jiff::Timestamp;

use super::{is_made, is_new};
use crate::{
    declare_rule,
    exempt::{self, Annotation, PREFIX},
    finding::{Finding, Level},
    rules::{self, Context, Findings, NoParams, kinds},
};

declare_rule! {
    /// # What it finds
    /// An annotation `exempt.gangplank.dev/<rule-id>` that exempts from nothing: its rule does not
    /// exist or is not one to be exempted from, it lacks an end, an owner or a reason, its date is none
    /// or further ahead than the policy allows (`exemptions.maxDays`). New or changed it is denied; one
    /// that stands there already, or that a controller has copied from the object's owner, warns.
    ///
    /// # Why it hurts
    /// Whoever wrote it believes that the object is exempt until it is refused at the worst moment, and
    /// nobody can tell who asked for it, or for how long.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata:
    ///   name: llm
    ///   annotations:
    ///     exempt.gangplank.dev/gpu-utilization-signal: "load test"
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: llm}
    ///   maxReplicas: 4
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: DCGM_FI_DEV_GPU_UTIL}
    ///       target: {type: AverageValue, averageValue: "70"}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata:
    ///   name: llm
    ///   annotations:
    ///     exempt.gangplank.dev/gpu-utilization-signal: "until=2027-01-31; owner=team-llm; reason=load test; legacy model"
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: llm}
    ///   maxReplicas: 4
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: DCGM_FI_DEV_GPU_UTIL}
    ///       target: {type: AverageValue, averageValue: "70"}
    /// ```
    /// Pairs of `key=value` are split at `;`; until and owner come in any order, the reason comes last
    /// and is free. `until` is a UTC date, good through its last second.
    ///
    /// # Sources
    /// - Gangplank's own form.
    pub static EXEMPTION_MALFORMED = Rule {
        id: "exemption-malformed",
        summary: "An exemption that exempts from nothing, for it cannot be read",
        group: Exemptions,
        kinds: kinds::ALL,
        labels: &[],
        annotations: &[],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check,
    }
}

/// Annotations that are looked at. There are fewer rules, so that among as many others some are malformed.
const MOST: usize = 128;

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let max_days = cx.policy.exemptions().max_days;
    for annotation in exempt::annotations(&cx.subject.value).take(MOST) {
        let is_new = is_new(cx, &annotation);
        let Some(fault) = fault(&annotation, is_new, cx.now, max_days) else {
            continue;
        };
        let finding = Finding::new(annotation.path(), fault.message)
            .value(annotation.value.clone())
            .instead(fault.instead)
            .fingerprint(format!("{}: {}", annotation.rule, annotation.value));
        if is_new && !is_made(cx) {
            out.report(finding);
        } else {
            out.report_at(Level::Warn, finding);
        }
    }
}

/// Why an annotation exempts from nothing.
pub(crate) struct Fault {
    pub(crate) message: String,
    /// The YAML to write instead; empty where there is none to name.
    instead: String,
}

/// What is wrong with an annotation, whatever it stands on.
pub(crate) fn fault(
    annotation: &Annotation<'_>,
    is_new: bool,
    now: Timestamp,
    max_days: u32,
) -> Option<Fault> {
    let text = annotation.value.as_str().unwrap_or_default();
    let yaml = |rule: &str| {
        // A JSON string is a YAML string.
        let value = serde_json::Value::from(exempt::mended(text, now, max_days));
        format!("metadata:\n  annotations:\n    {PREFIX}{rule}: {value}")
    };
    let Some(rule) = rules::rule(annotation.rule) else {
        let (meant, instead) = match exempt::nearest_rule(annotation.rule) {
            Some(id) => (format!("; did you mean {id}?"), yaml(id)),
            None => ("; `gangplank rules` lists them".to_owned(), String::new()),
        };
        let message = format!("exempts from nothing: there is no such rule{meant}");
        return Some(Fault { message, instead });
    };
    if !exempt::is_exemptable(rule) {
        let message = format!("exempts from nothing: nobody is exempt from {}", rule.id);
        return Some(Fault {
            message,
            instead: String::new(),
        });
    }
    let message = match annotation.terms() {
        Err(faults) => format!("exempts from nothing: {faults}"),
        Ok(terms) if is_new && terms.until > exempt::latest(now, max_days) => format!(
            "exempts from nothing: {} is more than {max_days} days ahead (exemptions.maxDays of the policy)",
            terms.until
        ),
        Ok(_) => return None,
    };
    Some(Fault {
        message,
        instead: yaml(rule.id),
    })
}
