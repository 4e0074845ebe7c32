//! object-too-complex

use serde_json::Value;

use crate::{
    budget::Budget,
    declare_rule,
    finding::Finding,
    rules::{
        Context, Findings, NoParams,
        kinds::{self, AUTOSCALERS},
    },
    text::thousands,
};

declare_rule! {
    /// # What it finds
    /// An object that takes more work to judge than any object may. Work is counted in steps: bytes
    /// read, words classified, patterns compiled and tried, values compared. The budget is more than
    /// fifty times what the dearest of honest objects takes, and what an object takes depends on
    /// nothing but the object. The finding names the field that took most of it.
    ///
    /// Names of device metrics are found before and after the budget is spent, wherever they stand.
    /// What else was not looked at when it was spent is not judged: if the policy lets such objects
    /// in, it lets that in too.
    ///
    /// # Why it hurts
    /// The API server waits while an object is judged, and so does everybody else who writes. Nobody
    /// can review such an object either, and its controller has the same work with it each time that
    /// it looks.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   selector: {matchLabels: {app: chat}}
    ///   template:
    ///     metadata: {labels: {app: chat}}
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///       - name: vllm
    ///         image: vllm/vllm-openai:v0.11.0
    ///         env:
    ///         - {name: A, value: "--allowed-origins=https://chat.example.com "}
    ///         - {name: B, value: "$(A)$(A)$(A)$(A)$(A)$(A)$(A)$(A)$(A)$(A)"}
    ///         - {name: C, value: "$(B)$(B)$(B)$(B)$(B)$(B)$(B)$(B)$(B)$(B)"}
    ///         - {name: D, value: "$(C)$(C)$(C)$(C)$(C)$(C)$(C)$(C)$(C)$(C)"}
    ///         - {name: E, value: "$(D)$(D)$(D)$(D)"}
    ///         args: ["$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)",
    ///           "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)",
    ///           "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)", "$(E)"]
    ///         resources: {limits: {nvidia.com/gpu: 1}}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: {name: chat, namespace: inference}
    /// spec:
    ///   selector: {matchLabels: {app: chat}}
    ///   template:
    ///     metadata: {labels: {app: chat}}
    ///     spec:
    ///       terminationGracePeriodSeconds: 300
    ///       containers:
    ///       - name: vllm
    ///         image: vllm/vllm-openai:v0.11.0
    ///         args: ["--allowed-origins=https://chat.example.com"]
    ///         resources: {limits: {nvidia.com/gpu: 1}}
    /// ```
    ///
    /// # Sources
    /// - Gangplank's own bound.
    pub static OBJECT_TOO_COMPLEX = Rule {
        id: "object-too-complex",
        summary: "An object takes more work to judge than any may",
        group: Objects,
        kinds: kinds::ALL,
        labels: &[],
        annotations: &[],
        level: Deny,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    cx.measure();
    let budget = &cx.memo.budget;
    if !budget.is_spent() {
        return;
    }
    let (field, steps) = budget.dearest();
    let size = match field.lookup(&cx.subject.value) {
        Some(Value::Array(all)) => format!(", which has {} entries", thousands(&all.len())),
        Some(Value::Object(all)) => format!(", which has {} members", thousands(&all.len())),
        Some(Value::String(text)) => format!(", which has {} bytes", thousands(&text.len())),
        _ => String::new(),
    };
    let place = if field.segments().is_empty() {
        "the whole of it".to_owned()
    } else {
        field.to_string()
    };
    let message = format!(
        "takes more than the {} steps of work that an object may take to be judged, {} of them for \
         {place}{size}; what was left when they were spent has not been judged",
        thousands(&Budget::STEPS),
        thousands(&steps),
    );
    out.report(
        Finding::new(field, message)
            .instead(instead(cx))
            .fingerprint("too complex"),
    );
}

/// What to write less of, by kind.
fn instead(cx: &Context<'_, NoParams>) -> &'static str {
    let kind = cx.subject.kind.as_str();
    if kind == "NodePool" {
        "# fewer values: families or categories instead of each type, and what else differs in a \
         NodePool of its own\n"
    } else if AUTOSCALERS.iter().any(|one| one.kind == kind) {
        "# fewer and shorter: the few metrics that this workload needs, and an autoscaler of its own \
         for each other workload\n"
    } else {
        "# fewer and shorter: long scripts in the image or a ConfigMap, no variables that multiply \
         others, and an object of its own for what runs apart\n"
    }
}
