//! shared-role-scaler

use super::{Target, is_kedas};
use crate::{
    catalog::metrics::Meaning,
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{
        Context, Findings, NoParams,
        kinds::{HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT},
    },
    signal::{Advice, Doubt, Role, Signal, Source, words},
    subject::{ROLE_LABEL, hpa::METRICS_ANNOTATION},
};

declare_rule! {
    /// # What it finds
    /// One autoscaler over prefill and decode: a target whose pods are told to serve both phases of
    /// inference apart from each other. And a role that is scaled on the other role's signal: decode
    /// on a queue of prompts or on time to first token, prefill on KV-cache use or the time between
    /// tokens, either of them on a query that names the other. A signal of the role's own beside it
    /// is enough, unless the other role is named.
    ///
    /// The role is what the label `gangplank.dev/role` says, on the autoscaler or on the target, else
    /// what the conventions of llm-d, Dynamo, AIBrix, KServe and LWS say, or the flags that the engine
    /// is started with.
    ///
    /// # Why it hurts
    /// Prefill is bound by compute and decode by memory: long prompts need more of the one, long
    /// answers more of the other. Scaled together, or one by the other's load, the fleet buys GPUs for
    /// the phase that has enough while requests wait for the one that has not.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat-decode, namespace: inference, labels: {gangplank.dev/role: decode}}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat-decode}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:num_requests_waiting"}
    ///       target: {type: AverageValue, averageValue: "5"}
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: autoscaling/v2
    /// kind: HorizontalPodAutoscaler
    /// metadata: {name: chat-decode, namespace: inference, labels: {gangplank.dev/role: decode}}
    /// spec:
    ///   scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat-decode}
    ///   maxReplicas: 8
    ///   metrics:
    ///   - type: Pods
    ///     pods:
    ///       metric: {name: "vllm:kv_cache_usage_perc"}
    ///       target: {type: AverageValue, averageValue: 800m}
    /// ```
    ///
    /// # Sources
    /// - llm-d/llm-d guides and kserve/kserve pkg/controller/v1alpha2/llmisvc (`llm-d.ai/role`)
    /// - ai-dynamo/dynamo deploy/operator/internal/consts; vllm-project/aibrix
    ///   pkg/plugins/gateway/algorithms; kubernetes-sigs/lws api/disaggregatedset
    pub static SHARED_ROLE_SCALER = Rule {
        id: "shared-role-scaler",
        summary: "Prefill and decode share an autoscaler, or one is scaled on the other's signal",
        group: Signals,
        kinds: &[&HORIZONTAL_POD_AUTOSCALER, &SCALED_OBJECT],
        labels: &[ROLE_LABEL],
        annotations: &[METRICS_ANNOTATION],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    if is_kedas(cx) {
        return;
    }
    let Some(target) = Target::of(cx) else { return };
    let digest = target.digest.present();
    if digest.is_some_and(|digest| digest.roles.prefill && digest.roles.decode) {
        let message = format!(
            "{} holds prefill and decode, and one autoscaler adds and removes both: prompts need the \
             one, answers the other, and whichever is short makes the other pay for idle GPUs",
            target.named
        );
        out.report(
            Finding::new(FieldPath::of(&["spec", "scaleTargetRef", "name"]), message)
                .value(target.named.name)
                .instead(
                    "# a workload for each role, and an autoscaler for each workload:\n\
                     # prefill on its queue depth, decode on its KV-cache use\n"
                        .to_owned(),
                )
                .fingerprint("shared".to_owned()),
        );
        return;
    }
    let role = Role::of(cx.subject, digest);
    let Some((own, other)) = names(role) else {
        return;
    };
    let catalog = cx.policy.catalog().metrics();
    let sources = cx.sources();
    let advice = Advice::new(catalog, cx.facts, cx.subject, sources);
    let read: Vec<(&Source, &Signal, Tells)> = sources
        .iter()
        .flat_map(|source| {
            source
                .signals
                .iter()
                .filter(|signal| !signal.doubt.is_some_and(Doubt::spares))
                .map(move |signal| (source, signal, tells(source, signal)))
        })
        .collect();
    let is_own = |signal: &Signal, tells: &Tells| {
        tells.role == Some(role) || !tells.named && advice.recommends(&signal.identity)
    };
    let has_own = read.iter().any(|(_, signal, tells)| is_own(signal, tells));
    for (source, signal, tells) in read {
        let others = tells.role.is_some_and(|told| told != role);
        if !others || is_own(signal, &tells) || has_own && !tells.named {
            continue;
        }
        let why = match role {
            Role::Decode => "decode runs out of KV cache, whatever waits for prefill",
            _ => "prefill runs out of compute, whatever decode holds in its KV cache",
        };
        let message = format!(
            "scales {own} on {}, which tells how busy {other} is: {why}. {}",
            signal.name,
            advice.remedy()
        );
        out.report(
            Finding::new(source.path.clone(), message)
                .value(source.value.as_str())
                .instead(advice.instead(source))
                .fingerprint(format!("{}:{}", source.scope(), signal.identity)),
        );
    }
}

const fn names(role: Role) -> Option<(&'static str, &'static str)> {
    match role {
        Role::Prefill => Some(("prefill", "decode")),
        Role::Decode => Some(("decode", "prefill")),
        Role::Both => None,
    }
}

/// Whose load a signal tells.
#[derive(Clone, Copy)]
struct Tells {
    role: Option<Role>,
    /// The role is named, and not only meant.
    named: bool,
}

fn tells(source: &Source, signal: &Signal) -> Tells {
    // What the metric is called tells more than what selects its series.
    let named = named(&signal.name).or_else(|| named(&source.value));
    let meant = || match signal.meaning? {
        Meaning::QueueDepth => Some(Role::Prefill),
        Meaning::KvUse => Some(Role::Decode),
        Meaning::Latency => {
            let words = words(&signal.name);
            let has = |wanted: &[&str]| {
                words
                    .windows(wanted.len())
                    .any(|run| run.iter().zip(wanted).all(|(a, b)| a == b))
            };
            if has(&["first", "token"]) || has(&["ttft"]) {
                Some(Role::Prefill)
            } else if has(&["inter", "token"])
                || has(&["per", "output", "token"])
                || has(&["itl"])
                || has(&["tpot"])
            {
                Some(Role::Decode)
            } else {
                None
            }
        }
        _ => None,
    };
    Tells {
        role: named.or_else(meant),
        named: named.is_some(),
    }
}

/// The one role that a text names.
fn named(text: &str) -> Option<Role> {
    let words = words(text);
    let has = |role: &str| words.iter().any(|word| word == role);
    match (has("prefill"), has("decode")) {
        (true, false) => Some(Role::Prefill),
        (false, true) => Some(Role::Decode),
        _ => None,
    }
}
