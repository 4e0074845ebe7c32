//! termination-grace: see the declaration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    provenance::{carry_over_proven, of_field},
    rules::{Context, Edits, Findings, kinds},
    subject::{
        Operation, at,
        pod_template::{Container, Count, PodTemplate},
        workload::Serving,
    },
};

declare_rule! {
    /// # What it finds
    ///
    /// Model servers on accelerators whose pods get less time to finish than their requests take:
    /// `terminationGracePeriodSeconds` below `minimumSeconds`, or below what the preStop hook and the
    /// engine's own shutdown take together. Silence means 30 s, and is filled where it is known that
    /// nobody wrote it.
    ///
    /// # Why it hurts
    ///
    /// A generation runs for minutes. When a rollout, a drain or a scale-down ends the pod sooner,
    /// every request in flight is cut off in the middle of its answer.
    ///
    /// # Example
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 30
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Instead
    ///
    /// ```yaml
    /// apiVersion: apps/v1
    /// kind: Deployment
    /// metadata: { name: llama, namespace: inference }
    /// spec:
    ///   selector: { matchLabels: { app: llama } }
    ///   template:
    ///     metadata: { labels: { app: llama } }
    ///     spec:
    ///       terminationGracePeriodSeconds: 180
    ///       containers:
    ///         - name: vllm
    ///           image: vllm/vllm-openai:v0.11.0
    ///           args: [--model=meta-llama/Llama-3.1-8B-Instruct]
    ///           resources: { limits: { nvidia.com/gpu: 1 } }
    /// ```
    ///
    /// # Sources
    ///
    /// - Kubernetes, pod lifecycle: the grace period covers the preStop hook too.
    /// - vLLM `--shutdown-timeout` (pull requests 34730 and 43208; 0 cuts requests off at SIGTERM);
    ///   KServe pull requests 5485 and 5496; the production stack's charts.
    pub static TERMINATION_GRACE = Rule {
        id: "termination-grace",
        summary: "A model server gets less time to finish than its requests take",
        group: Workloads,
        kinds: kinds::LONG_RUNNING,
        labels: &["gangplank.dev/model-server"],
        annotations: &[],
        level: Warn,
        fills: Some("terminationGracePeriodSeconds 180 on CREATE, where it is known that nobody wrote it"),
        params: Params,
        check: check,
        fill: fill
    }
}

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The least grace period that is not warned about, and what silence is filled with, in seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub minimum_seconds: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            minimum_seconds: 180,
        }
    }
}

/// What the API server puts where the grace period is silent, in seconds.
const DEFAULT_GRACE: u64 = 30;

fn check(cx: &Context<'_, Params>, out: &mut Findings) {
    cx.each_serving(out, |serving, out| judge(cx, serving, out));
}

fn judge(cx: &Context<'_, Params>, serving: &Serving<'_>, out: &mut Findings) {
    for set in serving.workload.live_sets() {
        if set
            .template
            .accelerators(cx.policy.catalog().engines())
            .is_none()
        {
            continue;
        }
        let needed = Needed::of(&set.template, serving, *cx.params);
        let path = grace_path(&set.template);
        let written = path
            .lookup(&cx.subject.value)
            .filter(|value| !value.is_null());
        if written.is_none() && set.merged {
            continue;
        }
        let Some(grace) = written.map_or(Some(DEFAULT_GRACE), Value::as_u64) else {
            continue;
        };
        if grace >= needed.seconds {
            continue;
        }
        let found = if written.is_some() {
            format!("{grace} s")
        } else {
            format!("{grace} s, which silence means,")
        };
        let finding = Finding::new(
            path,
            format!(
                "{found} {}: a rollout or drain cuts off every request that is still being answered.",
                needed.shortfall()
            ),
        )
        .instead(format!("terminationGracePeriodSeconds: {}", needed.seconds))
        .fingerprint(set.role)
        .severity(u32::try_from(needed.seconds.saturating_sub(grace)).unwrap_or(u32::MAX));
        out.report(Finding {
            value: written.cloned(),
            ..finding
        });
    }
}

fn fill(cx: &Context<'_, Params>, edits: &mut Edits) {
    // Kinds of several workloads are never filled.
    let [serving] = cx.servings() else {
        return;
    };
    for set in serving.workload.live_sets() {
        if set
            .template
            .accelerators(cx.policy.catalog().engines())
            .is_none()
        {
            continue;
        }
        let needed = Needed::of(&set.template, serving, *cx.params);
        let path = grace_path(&set.template);
        let steps = path.steps();
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        let default = json!(DEFAULT_GRACE);
        let value = json!(needed.seconds);
        let silent = if cx.subject.operation == Operation::Update {
            carry_over_proven(cx.subject, &steps, &value, Some(&default))
        } else {
            of_field(cx.subject, &steps, &default, None).fillable()
        };
        if silent && needed.seconds > DEFAULT_GRACE {
            let message = format!(
                "{} needs longer than the default of {DEFAULT_GRACE} s to finish its requests",
                serving.server.title()
            );
            edits.set(path, value, message);
        }
    }
}

fn grace_path(template: &PodTemplate<'_>) -> FieldPath {
    template.spec_path().key("terminationGracePeriodSeconds")
}

/// The time that a pod's shutdown takes.
struct Needed {
    seconds: u64,
    hook: u64,
    shutdown: u64,
    minimum: u64,
}

impl Needed {
    fn of(template: &PodTemplate<'_>, serving: &Serving<'_>, params: Params) -> Self {
        // Hooks of one pod's containers run side by side.
        let hook = template
            .containers()
            .filter_map(|c| pre_stop(&c))
            .max()
            .unwrap_or(0);
        let shutdown = serving.server.shutdown.and_then(Count::known).unwrap_or(0);
        let together = hook.saturating_add(shutdown).min(MAX_SECONDS);
        Self {
            seconds: params.minimum_seconds.max(together),
            hook,
            shutdown,
            minimum: params.minimum_seconds,
        }
    }

    fn shortfall(&self) -> String {
        if self.seconds == self.minimum {
            return format!(
                "is less than the {} s that generations in flight may take",
                self.minimum
            );
        }
        format!(
            "is less than the {} s that the preStop hook ({} s) and the engine's shutdown ({} s) take",
            self.seconds, self.hook, self.shutdown
        )
    }
}

/// Longest time that is believed, a day.
const MAX_SECONDS: u64 = 86_400;

/// Seconds that a container's preStop hook sleeps, where that can be read.
fn pre_stop(container: &Container<'_>) -> Option<u64> {
    let hook = at(container.value, &["lifecycle", "preStop"])?;
    if let Some(seconds) = at(hook, &["sleep", "seconds"]) {
        return seconds.as_u64();
    }
    let command = at(hook, &["exec", "command"])?.as_array()?;
    let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
    let sleep = |words: &[&str]| -> Option<u64> {
        words
            .windows(2)
            .filter_map(|pair| match pair {
                [program, time] if program.rsplit('/').next() == Some("sleep") => seconds(time),
                _ => None,
            })
            .reduce(u64::saturating_add)
    };
    sleep(&words).or_else(|| {
        let script = words.last().filter(|_| words.contains(&"-c"))?;
        let words: Vec<&str> = script
            .split(|c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')'))
            .filter(|word| !word.is_empty())
            .collect();
        sleep(&words)
    })
}

/// A time as sleep(1) takes it.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = match text.char_indices().find(|(_, c)| !c.is_ascii_digit()) {
        Some((at, _)) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_read_in_every_form() {
        let sleeps = |hook: Value| {
            let container = json!({"lifecycle": {"preStop": hook}});
            pre_stop(&Container {
                value: &container,
                list: "containers",
                index: 0,
            })
        };
        assert_eq!(sleeps(json!({"sleep": {"seconds": 15}})), Some(15));
        assert_eq!(
            sleeps(json!({"exec": {"command": ["sleep", "15"]}})),
            Some(15)
        );
        assert_eq!(
            sleeps(json!({"exec": {"command": ["/bin/sh", "-c", "sleep 540"]}})),
            Some(540)
        );
        assert_eq!(
            sleeps(json!({"exec": {"command": ["sh", "-c", "kill 1; sleep 2m && sleep 5"]}})),
            Some(125)
        );
        assert_eq!(sleeps(json!({"httpGet": {"path": "/drain"}})), None);
        assert_eq!(sleeps(json!({"exec": {"command": "sleep"}})), None);
    }

    #[test]
    fn a_lone_default_is_filled_only_where_somebody_is_known_to_be_silent() {
        use std::sync::Arc;

        use jiff::Timestamp;

        use crate::{
            facts::Facts,
            policy::Policy,
            provenance::LAST_APPLIED,
            review::review,
            subject::{Door, Subject},
        };

        let arrived = |document: Option<Value>| {
            let mut object = json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "llm", "namespace": "inference", "annotations": {}},
                "spec": {"template": {"spec": {
                    "terminationGracePeriodSeconds": 30,
                    "containers": [{
                        "name": "vllm", "image": "vllm/vllm-openai", "args": ["--model=m"],
                        "resources": {"limits": {"nvidia.com/gpu": 1}}
                    }]
                }}}
            });
            if let Some(document) = document {
                object["metadata"]["annotations"][LAST_APPLIED] = json!(document.to_string());
            }
            object
        };
        let filled = |object: Value, old: Option<Value>| {
            let mut subject = Subject::from_manifest(Arc::new(object)).unwrap();
            subject.door = Door::Mutate;
            if let Some(old) = old {
                subject.operation = Operation::Update;
                subject.old = Some(Arc::new(old));
            }
            let policy = Policy::default();
            let review = review(&policy, &Facts::unknown(), &subject, Timestamp::UNIX_EPOCH);
            review
                .findings
                .iter()
                .any(|finding| finding.rule == TERMINATION_GRACE.id)
        };
        let silent = json!({
            "kind": "Deployment", "metadata": {"name": "llm"}, "spec": {"template": {"spec": {}}}
        });
        let mut said = silent.clone();
        said["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(30);
        assert!(!filled(arrived(None), None), "a plain create tells nothing");
        assert!(filled(arrived(Some(silent.clone())), None));
        assert!(!filled(arrived(Some(said)), None));
        // An update restores what was filled and fills nothing anew.
        let mut held = arrived(Some(silent.clone()));
        held["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(180);
        assert!(filled(arrived(None), Some(held.clone())));
        let asleep = |mut object: Value| {
            object["spec"]["replicas"] = json!(0);
            object
        };
        assert!(filled(asleep(arrived(Some(silent.clone()))), None));
        assert!(filled(asleep(arrived(None)), Some(asleep(held.clone()))));
        let mut changed = arrived(Some(silent.clone()));
        changed["spec"]["replicas"] = json!(2);
        assert!(!filled(changed, Some(arrived(Some(silent)))));
    }
}
