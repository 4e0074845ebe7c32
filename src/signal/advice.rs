//! What to scale on instead, for the autoscaler at hand.

use serde_json::{Map, Value};

use super::{
    Name,
    sources::{Shape, Source},
};
use crate::{
    catalog::metrics::{Meaning, MetricCatalog},
    facts::Facts,
    subject::{
        ROLE_LABEL, Subject, at,
        autoscaling_policy::{Fetch, PolicyMetric},
        group_of,
        hpa::SourceType,
        metadata_text,
        pod_autoscaler::PodMetric,
        scaled_object::Trigger,
    },
};

/// The engine whose metrics are named where nothing tells another one.
const DEFAULT_ENGINE: &str = "vLLM";

/// vLLM's KV-cache gauge, and what it was called before 0.9.
const VLLM_CACHE: &str = "vllm:kv_cache_usage_perc";
const VLLM_CACHE_BEFORE: &str = "vllm:gpu_cache_usage_perc";

/// Where Prometheus stands where the object does not say.
const PROMETHEUS: &str = "http://prometheus.monitoring.svc:9090";

/// Words of names that tell an engine, as the catalogue calls it.
const ENGINES: &[(&str, &str)] = &[
    ("vllm", "vLLM"),
    ("sglang", "SGLang"),
    ("tgi", "Text Generation Inference"),
    ("trtllm", "TensorRT-LLM"),
    ("triton", "Triton Inference Server"),
    ("lmdeploy", "LMDeploy"),
    ("llamacpp", "llama.cpp"),
    ("nim", "NVIDIA NIM"),
    ("jetstream", "JetStream"),
    ("dynamo", "NVIDIA Dynamo"),
];

/// The phase of inference that the scaled workload serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Prefill,
    Decode,
    Both,
}

/// What can be recommended for one autoscaler.
#[derive(Debug)]
pub(super) struct Advice<'a> {
    subject: &'a Subject,
    role: Role,
    queue: &'a str,
    cache: &'a str,
    /// What the autoscaler reads already, by identity.
    read: Vec<&'a str>,
    /// Whether the adapter of this cluster spells engines' metrics without their colon.
    underscores: bool,
}

impl<'a> Advice<'a> {
    pub(super) fn new(
        catalog: &'a MetricCatalog,
        facts: &Facts,
        subject: &'a Subject,
        sources: &'a [Source],
    ) -> Self {
        let signals = || sources.iter().flat_map(|source| &source.signals);
        let target = target(facts, subject);
        let images: Vec<&str> = target.map(images).unwrap_or_default();
        // An engine's own metric tells most, then what the target runs, then what things are called.
        let engine = signals()
            .map(|signal| signal.exporter.as_str())
            .find(|exporter| ENGINES.iter().any(|(_, engine)| engine == exporter))
            .or_else(|| engine_in(&images))
            .or_else(|| {
                let named = subject.at(&["spec", "scaleTargetRef", "name"]);
                engine_in(&[
                    named.and_then(Value::as_str).unwrap_or_default(),
                    &subject.name,
                ])
            })
            .unwrap_or(DEFAULT_ENGINE);
        let metric = |meaning| {
            catalog
                .recommend(engine, meaning)
                .or_else(|| catalog.recommend(engine, Meaning::Concurrency))
                .or_else(|| catalog.recommend(engine, Meaning::QueueDepth))
                .or_else(|| catalog.recommend(DEFAULT_ENGINE, meaning))
                .unwrap_or_default()
        };
        let cache = match metric(Meaning::KvUse) {
            VLLM_CACHE if images.iter().any(|image| is_vllm_before_0_9(image)) => VLLM_CACHE_BEFORE,
            cache => cache,
        };
        let of_target = |key: &str| {
            let target = target?;
            metadata_text(target, "labels", key)
                .or_else(|| at(target, &["spec", "template", "metadata", "labels", key])?.as_str())
        };
        let role = subject.label(ROLE_LABEL).or_else(|| of_target(ROLE_LABEL));
        let without_colon = |source: &Source| {
            matches!(source.shape, Shape::Metric(_))
                && source
                    .signals
                    .iter()
                    .any(|signal| signal.exporter == engine && !signal.name.contains(':'))
        };
        Self {
            subject,
            role: match role {
                Some("prefill") => Role::Prefill,
                Some("decode") => Role::Decode,
                _ => Role::Both,
            },
            queue: metric(Meaning::QueueDepth),
            cache,
            read: signals().map(|signal| signal.identity.as_str()).collect(),
            underscores: sources.iter().any(without_colon),
        }
    }

    /// What a source is for: kthena gives each role of its target metrics of its own.
    fn role_of(&self, source: &Source) -> Role {
        let own = match &source.shape {
            Shape::PolicyMetric(metric) => metric.role.as_deref(),
            _ => None,
        };
        match own {
            Some("prefill") => Role::Prefill,
            Some("decode") => Role::Decode,
            _ => self.role,
        }
    }

    /// Which signals are right, in a sentence.
    pub(super) fn remedy(&self, source: &Source) -> String {
        let (queue, cache) = (self.queue, self.cache);
        match self.role_of(source) {
            _ if queue == cache => format!("Scale on its queue: {queue}"),
            Role::Prefill => format!("Scale prefill on its queue: {queue}"),
            Role::Decode => format!("Scale decode on KV-cache use: {cache}"),
            Role::Both => format!(
                "Scale on queue depth ({queue}) where prefill is the bound, on KV-cache use \
                 ({cache}) where decode is, on goodput or TTFT where both are"
            ),
        }
    }

    /// What to write in the place of a source.
    pub(super) fn instead(&self, source: &Source) -> String {
        let wanted = match self.role_of(source) {
            Role::Prefill => vec![self.queue],
            Role::Decode => vec![self.cache],
            Role::Both => vec![self.queue, self.cache],
        };
        let read = |metric: &str| {
            let identity = Name::new(metric).spelling();
            self.read.contains(&identity.as_str())
        };
        let Some(metric) = wanted.iter().find(|metric| !read(metric)) else {
            return format!(
                "# leave it out: {} is there already\n",
                wanted.join(" with ")
            );
        };
        let share = *metric == self.cache && *metric != self.queue;
        match &source.shape {
            Shape::Metric(kind) if self.underscores => {
                hpa_block(*kind, &source.value, &metric.replace(':', "_"), share)
            }
            Shape::Metric(kind) => hpa_block(*kind, &source.value, metric, share),
            Shape::Trigger(trigger) => self.trigger_block(trigger, metric, share),
            Shape::PodMetric(old) => pod_block(old, metric, share),
            Shape::PolicyMetric(old) => self.policy_block(old, metric, share),
        }
    }

    /// A query for a metric of the autoscaler's own namespace.
    fn promql(&self, metric: &str, share: bool) -> String {
        let aggregate = if share { "avg" } else { "sum" };
        match &self.subject.namespace {
            Some(namespace) => format!("{aggregate}({metric}{{namespace=\"{namespace}\"}})"),
            None => format!("{aggregate}({metric})"),
        }
    }

    /// A metric of kthena, and the source that tells what it reads.
    fn policy_block(&self, old: &PolicyMetric, metric: &str, share: bool) -> String {
        let threshold = threshold(share);
        // Other members of the source tell where it is read.
        let kept = |members: &Map<String, Value>, but: &str| -> String {
            members
                .iter()
                .filter(|(key, _)| *key != but)
                .filter_map(|(key, value)| match value {
                    Value::String(text) => Some((key, scalar(text))),
                    Value::Number(number) => Some((key, number.to_string())),
                    _ => None,
                })
                .fold(String::new(), |text, (key, value)| {
                    text + &format!("      {key}: {value}\n")
                })
        };
        let key = if share { "kv_cache_usage" } else { "waiting" };
        let source = match &old.how {
            Fetch::Listed(member) => {
                return format!(
                    "- {member}: {}\n  targetValue: \"{threshold}\"\n",
                    scalar(metric)
                );
            }
            Fetch::Pod(members) => format!(
                "    pod:\n{}      name: {}\n",
                kept(members, "name"),
                scalar(metric)
            ),
            Fetch::Prometheus(members) => format!(
                "    prometheus:\n{}      query: {}\n",
                kept(members, "query"),
                scalar(&self.promql(metric, share))
            ),
        };
        format!(
            "metrics:\n- name: {key}\n  targetValue: \"{threshold}\"\nmetricSources:\n  {key}:\n{source}"
        )
    }

    fn trigger_block(&self, trigger: &Trigger, metric: &str, share: bool) -> String {
        // What it takes to reach the same Prometheus.
        const KEPT: &[&str] = &[
            "serverAddress",
            "namespace",
            "authModes",
            "customHeaders",
            "unsafeSsl",
            "awsRegion",
        ];
        let prometheus = trigger.kind == "prometheus";
        let mut lines = vec!["- type: prometheus".to_owned()];
        if let Some(name) = &trigger.name {
            lines.push(format!("  name: {}", scalar(name)));
        }
        lines.push("  metadata:".to_owned());
        let kept = KEPT
            .iter()
            .filter(|_| prometheus)
            .filter_map(|key| Some((key, trigger.get(key)?)));
        lines.extend(kept.map(|(key, value)| format!("    {key}: {}", scalar(value))));
        if !prometheus || trigger.get("serverAddress").is_none() {
            lines.push(format!("    serverAddress: {PROMETHEUS}"));
        }
        lines.push(format!(
            "    query: {}",
            scalar(&self.promql(metric, share))
        ));
        let threshold = threshold(share);
        lines.push(format!("    threshold: \"{threshold}\""));
        let reference = trigger.authentication.as_ref().filter(|_| prometheus);
        if let Some(members) = reference
            .and_then(Value::as_object)
            .filter(|it| !it.is_empty())
        {
            lines.push("  authenticationRef:".to_owned());
            lines.extend(
                members
                    .iter()
                    .filter_map(|(key, value)| Some((key, value.as_str()?)))
                    .map(|(key, value)| format!("    {key}: {}", scalar(value))),
            );
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

/// The workload that an autoscaler scales, where it is known.
fn target<'f>(facts: &'f Facts, subject: &Subject) -> Option<&'f Value> {
    let text = |key: &str| {
        subject
            .at(&["spec", "scaleTargetRef", key])
            .and_then(Value::as_str)
    };
    // KEDA takes a Deployment where nothing else is said.
    let group = group_of(text("apiVersion").unwrap_or("apps/v1"));
    let kind = text("kind").unwrap_or("Deployment");
    facts
        .object(group, kind, subject.namespace.as_deref(), text("name")?)
        .present()
}

/// The images of a workload's containers.
fn images(workload: &Value) -> Vec<&str> {
    at(workload, &["spec", "template", "spec", "containers"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| container.get("image")?.as_str())
        .collect()
}

/// The engine that one of these names or images speaks of.
fn engine_in(names: &[&str]) -> Option<&'static str> {
    let texts: Vec<Name> = names.iter().map(|text| Name::new(text)).collect();
    let spoken = |word: &str| {
        texts
            .iter()
            .any(|text| text.words().iter().any(|it| it == word))
    };
    let (_, engine) = ENGINES.iter().find(|(word, _)| spoken(word))?;
    Some(engine)
}

/// Whether an image is of a vLLM that called its KV-cache gauge by its old name.
fn is_vllm_before_0_9(image: &str) -> bool {
    let minor = image
        .rsplit_once(':')
        .and_then(|(_, tag)| tag.trim_start_matches('v').strip_prefix("0."))
        .and_then(|rest| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse::<u32>()
                .ok()
        });
    image.contains("vllm") && minor.is_some_and(|minor| minor < 9)
}

/// The target of a metric: a share of the KV cache, or requests that wait.
const fn threshold(share: bool) -> &'static str {
    if share { "0.8" } else { "5" }
}

/// A metric source of AIBrix. What it reads from the engine itself it knows under names of its own
/// (vllm-project/aibrix pkg/metrics/metrics.go); what it has none for comes through the custom
/// metrics API.
fn pod_block(old: &PodMetric, metric: &str, share: bool) -> String {
    let text = |key: &str| old.entry.get(key).and_then(Value::as_str);
    let own = match metric {
        "vllm:num_requests_waiting" | "sglang:num_queue_reqs" => Some("num_requests_waiting"),
        VLLM_CACHE => Some("kv_cache_usage_perc"),
        VLLM_CACHE_BEFORE | "sglang:token_usage" => Some("gpu_cache_usage_perc"),
        _ => None,
    };
    let threshold = threshold(share);
    match own {
        Some(name) => {
            let scraped = old.is_scraped();
            let kept = |key: &str, otherwise: &str| {
                let written = text(key).filter(|_| scraped);
                scalar(written.unwrap_or(otherwise))
            };
            format!(
                "- metricSourceType: pod\n  protocolType: {}\n  port: {}\n  path: {}\n  \
                 targetMetric: {name}\n  targetValue: \"{threshold}\"\n",
                kept("protocolType", "http"),
                kept("port", "8000"),
                kept("path", "/metrics"),
            )
        }
        None => format!(
            "- metricSourceType: custom\n  targetMetric: {}\n  targetValue: \"{threshold}\"\n",
            scalar(metric)
        ),
    }
}

/// A metric of autoscaling/v2, spelled for the adapter that served the old one.
fn hpa_block(kind: SourceType, old: &str, metric: &str, share: bool) -> String {
    let adapter = old.contains('|');
    let name = if adapter {
        format!("prometheus.googleapis.com|{metric}|gauge")
    } else {
        metric.to_owned()
    };
    let (kind, member) = match kind {
        SourceType::External => ("External", "external"),
        SourceType::Pods | SourceType::Object | SourceType::Resource => ("Pods", "pods"),
    };
    let target = if share { "800m" } else { "5" };
    format!(
        "- type: {kind}\n  {member}:\n    metric:\n      name: {}\n    target:\n      \
         type: AverageValue\n      averageValue: \"{target}\"\n",
        scalar(&name)
    )
}

/// A YAML scalar: plain where that is safe, quoted where it is not.
fn scalar(text: &str) -> String {
    let plain = !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./:|()".contains(c))
        && !text.ends_with(':')
        && !matches!(
            text,
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain {
        text.to_owned()
    } else if text.contains(|c: char| c.is_control()) {
        Value::from(text).to_string()
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::signal::sources::sources;

    /// The block for the first source of an object, and the remedy, in a world of documents.
    fn advise(subject: &Value, world: &[Value]) -> (String, String) {
        let catalog = MetricCatalog::builtin();
        let world: Vec<Arc<Value>> = world.iter().cloned().map(Arc::new).collect();
        let facts = Facts::from_documents(&world);
        let subject = Subject::from_manifest(Arc::new(subject.clone())).unwrap();
        let sources = sources(catalog, &subject);
        let advice = Advice::new(catalog, &facts, &subject, &sources);
        (advice.instead(&sources[0]), advice.remedy(&sources[0]))
    }

    fn hpa(metrics: &[&str], labels: &Value) -> Value {
        let metrics: Vec<Value> = metrics
            .iter()
            .map(|name| json!({"type": "Pods", "pods": {"metric": {"name": name}}}))
            .collect();
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "chat", "namespace": "a", "labels": labels},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
                "metrics": metrics},
        })
    }

    fn deployment(image: &str, labels: &Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "chat", "namespace": "a"},
            "spec": {"template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"image": image}]}}}})
    }

    /// The metric that a block names.
    fn metric(block: &str) -> String {
        let block: Value = serde_saphyr::from_str(block).unwrap();
        let at = |pointer: &str| block.pointer(pointer).and_then(Value::as_str);
        at("/0/pods/metric/name")
            .or(at("/0/external/metric/name"))
            .unwrap()
            .to_owned()
    }

    #[test]
    fn the_role_picks_the_signal() {
        let of = |role: &str| advise(&hpa(&["gpu_util"], &json!({ROLE_LABEL: role})), &[]);
        assert_eq!(metric(&of("prefill").0), "vllm:num_requests_waiting");
        assert_eq!(metric(&of("decode").0), "vllm:kv_cache_usage_perc");
        assert!(of("decode").1.contains("KV-cache") && !of("decode").1.contains("queue"));
        let both = advise(&hpa(&["gpu_util"], &json!({})), &[]);
        assert!(both.1.contains("goodput or TTFT"), "{}", both.1);
        let target = deployment("x", &json!({ROLE_LABEL: "decode"}));
        assert_eq!(
            metric(&advise(&hpa(&["gpu_util"], &json!({})), &[target]).0),
            "vllm:kv_cache_usage_perc",
            "the target's own label counts as well"
        );
    }

    #[test]
    fn the_engine_of_the_target_gives_the_names() {
        for (image, queue, cache) in [
            (
                "vllm/vllm-openai:v0.11.0",
                "vllm:num_requests_waiting",
                "vllm:kv_cache_usage_perc",
            ),
            (
                "vllm/vllm-openai:v0.8.5",
                "vllm:num_requests_waiting",
                "vllm:gpu_cache_usage_perc",
            ),
            (
                "lmsysorg/sglang:v0.5.0",
                "sglang:num_queue_reqs",
                "sglang:token_usage",
            ),
            (
                "ghcr.io/example/tgi:3",
                "tgi_queue_size",
                "tgi_batch_current_size",
            ),
            (
                "openmmlab/lmdeploy:v0.9",
                "lmdeploy:num_requests_waiting",
                "lmdeploy:gpu_cache_usage_perc",
            ),
        ] {
            let world = [deployment(image, &json!({}))];
            let of = |role: &str| {
                metric(&advise(&hpa(&["gpu_util"], &json!({ROLE_LABEL: role})), &world).0)
            };
            assert_eq!(
                (of("prefill").as_str(), of("decode").as_str()),
                (queue, cache),
                "{image}"
            );
        }
    }

    #[test]
    fn an_engine_without_a_gauge_of_its_cache_gets_its_queue() {
        let (block, remedy) = advise(
            &hpa(&["nv_gpu_utilization"], &json!({ROLE_LABEL: "decode"})),
            &[],
        );
        assert_eq!(metric(&block), "nv_inference_pending_request_count");
        assert!(
            !remedy.contains("vllm") && !remedy.contains("KV"),
            "{remedy}"
        );
    }

    #[test]
    fn what_is_read_already_is_not_advised_again() {
        let labels = json!({});
        let beside = |others: &[&str]| {
            let all: Vec<&str> = [&["gpu_util"], others].concat();
            advise(&hpa(&all, &labels), &[]).0
        };
        assert_eq!(
            metric(&beside(&["sglang:num_queue_reqs"])),
            "sglang:token_usage"
        );
        assert_eq!(
            metric(&beside(&["vllm_num_requests_waiting"])),
            "vllm_kv_cache_usage_perc",
            "as the adapter spells it"
        );
        let both = beside(&["vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]);
        assert!(both.starts_with("# leave it out"), "{both}");
    }

    #[test]
    fn an_hpa_block_keeps_the_adapter() {
        let piped = "prometheus.googleapis.com|DCGM_FI_DEV_GPU_UTIL|gauge";
        let (block, _) = advise(&hpa(&[piped], &json!({})), &[]);
        assert_eq!(
            metric(&block),
            "prometheus.googleapis.com|vllm:num_requests_waiting|gauge"
        );
    }

    #[test]
    fn a_trigger_block_keeps_what_reaches_prometheus() {
        let subject = json!({
            "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
            "metadata": {"name": "chat", "namespace": "team's"},
            "spec": {"triggers": [{
                "type": "prometheus", "name": "no", "authenticationRef": {"name": "token"},
                "metadata": {"serverAddress": "https://prom.example:9090/a?b=c", "authModes": "bearer",
                    "query": "avg(DCGM_FI_DEV_GPU_UTIL)", "threshold": "70"},
            }]},
        });
        let (block, _) = advise(&subject, &[]);
        let block: Value = serde_saphyr::from_str(&block).unwrap();
        assert_eq!(
            block,
            json!([{
                "type": "prometheus", "name": "no", "authenticationRef": {"name": "token"},
                "metadata": {"serverAddress": "https://prom.example:9090/a?b=c", "authModes": "bearer",
                    "query": "sum(vllm:num_requests_waiting{namespace=\"team's\"})", "threshold": "5"},
            }])
        );
    }
}
