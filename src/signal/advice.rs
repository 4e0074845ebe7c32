//! What to scale on instead, for the autoscaler at hand.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Map, Value};

use super::{
    Name,
    sources::{Shape, Source},
};
use crate::{
    catalog::metrics::{Candidate, MetricCatalog, Replacement, version},
    facts::{Digest, Facts, Roles},
    subject::{
        ROLE_LABEL, Subject,
        autoscaling_policy::{Fetch, PolicyMetric},
        hpa::SourceType,
        pod_autoscaler::PodMetric,
        scale_target::ScaleTarget,
        scaled_object::Trigger,
    },
};

/// Where Prometheus stands where the object does not say.
const PROMETHEUS: &str = "http://prometheus.monitoring.svc:9090";

/// The phase of inference that the scaled workload serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Prefill,
    Decode,
    Both,
}

impl Role {
    /// As the autoscaler's own label says, else as its target does.
    pub(crate) fn of(subject: &Subject, target: Option<&Digest>) -> Self {
        let roles = match subject.label(ROLE_LABEL) {
            Some(label) => Roles::of_value(label),
            None => target.map(|digest| digest.roles).unwrap_or_default(),
        };
        Self::from(roles)
    }
}

impl From<Roles> for Role {
    fn from(roles: Roles) -> Self {
        match (roles.prefill, roles.decode) {
            (true, false) => Self::Prefill,
            (false, true) => Self::Decode,
            _ => Self::Both,
        }
    }
}

/// What a recommended metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Requests that wait.
    Queue,
    /// The share of the KV cache in use.
    Cache,
    /// Requests that run.
    Batch,
}

impl Measure {
    const fn words(self) -> &'static str {
        match self {
            Self::Queue => "queue depth",
            Self::Cache => "KV-cache use",
            Self::Batch => "the requests that run",
        }
    }

    /// The value to aim at.
    const fn target(self) -> &'static str {
        match self {
            Self::Queue => "5",
            Self::Cache => "0.8",
            Self::Batch => "16",
        }
    }

    /// The same as a quantity without a point.
    const fn quantity(self) -> &'static str {
        match self {
            Self::Cache => "800m",
            _ => self.target(),
        }
    }

    /// Over the pods: a queue and what runs are summed up, a share is not.
    const fn aggregate(self) -> &'static str {
        match self {
            Self::Cache => "avg",
            Self::Queue | Self::Batch => "sum",
        }
    }

    /// What a policy of kthena may call it.
    const fn key(self) -> &'static str {
        match self {
            Self::Queue => "waiting",
            Self::Cache => "kv_cache_usage",
            Self::Batch => "running",
        }
    }
}

/// A metric to scale on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Good<'a> {
    measure: Measure,
    of: &'a Candidate,
}

impl<'a> Good<'a> {
    const fn name(&self) -> &'a str {
        self.of.metric.as_str()
    }
}

/// What can be recommended for one autoscaler.
#[derive(Debug)]
pub(crate) struct Advice<'a> {
    subject: &'a Subject,
    role: Role,
    /// The engine that is scaled, where something tells it.
    told: Option<&'a str>,
    /// The engine that the target is known to run, with its version.
    runs: Option<String>,
    row: Option<&'a Replacement>,
    prefill: Option<Good<'a>>,
    decode: Option<Good<'a>>,
    /// What the autoscaler reads already, by identity.
    read: BTreeSet<&'a str>,
    /// Whether the adapter of this cluster spells engines' metrics without their colon.
    underscores: bool,
}

impl<'a> Advice<'a> {
    pub(crate) fn new(
        catalog: &'a MetricCatalog,
        facts: &'a Facts,
        subject: &'a Subject,
        sources: &'a [Source],
    ) -> Self {
        let rows = catalog.replacements();
        let signals = || sources.iter().flat_map(|source| &source.signals);
        let target = ScaleTarget::of(subject).and_then(|target| {
            facts
                .target(&target, subject.namespace.as_deref())
                .present()
        });
        let image = target.and_then(|digest| digest.image.as_deref());
        let title = target.and_then(|digest| digest.served.as_ref()?.engine.as_deref());
        // What the target runs tells most, then an engine's own metric, then what things are called.
        let row = match title {
            Some(title) => of_engine(rows, title, image).or(rows.last()),
            None => signals()
                .find_map(|signal| {
                    let of = |row: &&Replacement| !row.gateway && row.exporter == signal.exporter;
                    rows.iter().filter(|row| !row.words.is_empty()).find(of)
                })
                .or_else(|| named(rows, image.as_slice()))
                .or_else(|| {
                    let named_target = subject.at(&["spec", "scaleTargetRef", "name"]);
                    let target = named_target.and_then(Value::as_str).unwrap_or_default();
                    named(rows, &[target, &subject.name])
                }),
        };
        let told = title.or(row.map(|row| row.exporter.as_str()));
        let row = row.or(rows.first());
        let version = image.and_then(version_of);
        let pick = |measure, all: &'a [Candidate]| {
            Candidate::of(all, version.as_deref()).map(|of| Good { measure, of })
        };
        let prefill = row.and_then(|row| pick(Measure::Queue, &row.queue));
        let decode = row
            .and_then(|row| {
                pick(Measure::Cache, &row.cache).or_else(|| pick(Measure::Batch, &row.batch))
            })
            .or(prefill);
        let without_colon = |source: &Source| {
            let own = |exporter: &str| row.is_some_and(|row| row.exporter == exporter);
            matches!(source.shape, Shape::Metric(_))
                && source
                    .signals
                    .iter()
                    .any(|signal| own(&signal.exporter) && !signal.name.contains(':'))
        };
        let runs = title.map(|title| match &version {
            Some(version) => {
                let numbers: Vec<String> = version.iter().map(u32::to_string).collect();
                format!("{title} {}", numbers.join("."))
            }
            None => title.to_owned(),
        });
        Self {
            subject,
            role: Role::of(subject, target),
            told,
            runs,
            row,
            prefill,
            decode,
            read: signals().map(|signal| signal.identity.as_str()).collect(),
            underscores: sources.iter().any(without_colon),
        }
    }

    /// The engine that metrics or names speak of; none where nothing does.
    pub(crate) const fn engine(&self) -> Option<&'a str> {
        self.told
    }

    /// What a source is for: kthena gives each role of its target metrics of its own.
    fn role_of(&self, source: &Source) -> Role {
        let own = match &source.shape {
            Shape::PolicyMetric(metric) => metric.role.as_deref(),
            _ => None,
        };
        own.map(Roles::of_value)
            .filter(|roles| !roles.is_silent())
            .map_or(self.role, Role::from)
    }

    /// Which signals are right, in a sentence.
    pub(crate) fn remedy(&self) -> String {
        self.remedy_for(self.role)
    }

    /// Which signals are right in the place of a source, in a sentence.
    pub(crate) fn remedy_at(&self, source: &Source) -> String {
        self.remedy_for(self.role_of(source))
    }

    fn remedy_for(&self, role: Role) -> String {
        let scale = match &self.runs {
            Some(runs) => format!("With {runs} scale"),
            None => "Scale".to_owned(),
        };
        let (Some(prefill), Some(decode)) = (self.prefill, self.decode) else {
            return format!("{scale} on queue depth");
        };
        let (queue, other) = (prefill.name(), decode.name());
        if self.row.is_some_and(|row| row.gateway) {
            return format!("{scale} on the requests that its gateway has in flight: {queue}");
        }
        match role {
            _ if queue == other => format!("{scale} on its queue: {queue}"),
            Role::Prefill => format!("{scale} prefill on its queue: {queue}"),
            Role::Decode => format!("{scale} decode on {}: {other}", decode.measure.words()),
            Role::Both => format!(
                "{scale} on {} ({queue}) where prefill is the bound, on {} ({other}) where decode \
                 is, on goodput or TTFT where both are",
                prefill.measure.words(),
                decode.measure.words()
            ),
        }
    }

    /// The signals that are right for the role.
    fn wanted(&self, role: Role) -> Vec<Good<'a>> {
        let (prefill, decode) = match role {
            Role::Prefill => (self.prefill, None),
            Role::Decode => (None, self.decode),
            Role::Both => (self.prefill, self.decode),
        };
        let mut all: Vec<Good<'a>> = prefill.into_iter().chain(decode).collect();
        all.dedup();
        all
    }

    /// Whether a signal is one that would be recommended here.
    pub(crate) fn recommends(&self, identity: &str) -> bool {
        self.wanted(self.role)
            .iter()
            .any(|good| Name::new(good.name()).spelling() == identity)
    }

    /// What to write in the place of a source.
    pub(crate) fn instead(&self, source: &Source) -> String {
        let wanted = self.wanted(self.role_of(source));
        let read = |good: &&Good<'_>| {
            let names = [Some(&good.of.metric), good.of.aibrix.as_ref()];
            names.into_iter().flatten().any(|name| {
                let identity = Name::new(name).spelling();
                self.read.contains(identity.as_str())
            })
        };
        let Some(good) = wanted.iter().find(|good| !read(good)) else {
            let names: Vec<&str> = wanted.iter().map(Good::name).collect();
            return format!(
                "# leave it out: {} is there already\n",
                names.join(" with ")
            );
        };
        let block = match &source.shape {
            Shape::Metric(kind) => self.hpa_block(*kind, &source.value, good),
            Shape::Trigger(trigger) => self.trigger_block(trigger, good),
            Shape::PodMetric(old) => pod_block(old, good),
            Shape::PolicyMetric(old) => self.policy_block(old, good),
        };
        let switch = self.row.and_then(|row| {
            let switch = row.switch.as_deref()?;
            Some(format!("# {} exports it with {switch}\n", row.exporter))
        });
        switch.unwrap_or_default() + &block
    }

    /// A query for a metric of the autoscaler's own namespace.
    fn promql(&self, good: &Good<'_>) -> String {
        let elsewhere = self.row.is_some_and(|row| row.gateway);
        let namespace = self.subject.namespace.as_deref().filter(|_| !elsewhere);
        let labels: Vec<String> = good
            .of
            .select
            .iter()
            .map(|(label, value)| (label.as_str(), value.as_str()))
            .chain(namespace.map(|namespace| ("namespace", namespace)))
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let selector = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        format!("{}({}{selector})", good.measure.aggregate(), good.name())
    }

    /// A metric of autoscaling/v2, spelled for the adapter that served the old one.
    fn hpa_block(&self, kind: SourceType, old: &str, good: &Good<'_>) -> String {
        let metric = good.name();
        let name = if old.contains('|') {
            format!("prometheus.googleapis.com|{metric}|gauge")
        } else if self.underscores {
            metric.replace(':', "_")
        } else {
            metric.to_owned()
        };
        // A gateway's metric is not one of the scaled pods.
        let elsewhere = self.row.is_some_and(|row| row.gateway);
        let (kind, member) = match kind {
            SourceType::External => ("External", "external"),
            _ if elsewhere => ("External", "external"),
            SourceType::Pods | SourceType::Object | SourceType::Resource => ("Pods", "pods"),
        };
        let mut block = format!(
            "- type: {kind}\n  {member}:\n    metric:\n      name: {}\n",
            scalar(&name)
        );
        if !good.of.select.is_empty() {
            block.push_str("      selector:\n        matchLabels:\n");
            for (label, value) in &good.of.select {
                let _ = writeln!(block, "          {label}: {}", scalar(value));
            }
        }
        let target = good.measure.quantity();
        let _ = write!(
            block,
            "    target:\n      type: AverageValue\n      averageValue: \"{target}\"\n"
        );
        block
    }

    /// A metric of kthena, and the source that tells what it reads.
    fn policy_block(&self, old: &PolicyMetric, good: &Good<'_>) -> String {
        let (metric, target) = (good.name(), good.measure.target());
        // Other members of the source tell where it is read.
        let kept = |members: &Map<String, Value>, but: &str| -> String {
            let mut text = String::new();
            for (key, value) in members.iter().filter(|(key, _)| *key != but) {
                let value = match value {
                    Value::String(text) => scalar(text),
                    Value::Number(number) => number.to_string(),
                    _ => continue,
                };
                let _ = writeln!(text, "      {key}: {value}");
            }
            text
        };
        let source = match &old.how {
            Fetch::Listed(member) => {
                let metric = scalar(metric);
                return format!("- {member}: {metric}\n  targetValue: \"{target}\"\n");
            }
            Fetch::Pod(members) => format!(
                "    pod:\n{}      name: {}\n",
                kept(members, "name"),
                scalar(metric)
            ),
            Fetch::Prometheus(members) => format!(
                "    prometheus:\n{}      query: {}\n",
                kept(members, "query"),
                scalar(&self.promql(good))
            ),
        };
        let key = good.measure.key();
        format!(
            "metrics:\n- name: {key}\n  targetValue: \"{target}\"\nmetricSources:\n  \
             {key}:\n{source}"
        )
    }

    fn trigger_block(&self, trigger: &Trigger, good: &Good<'_>) -> String {
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
        lines.push(format!("    query: {}", scalar(&self.promql(good))));
        lines.push(format!("    threshold: \"{}\"", good.measure.target()));
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

/// The row of an engine, by its title and what its image says beside.
fn of_engine<'a>(
    rows: &'a [Replacement],
    title: &str,
    image: Option<&str>,
) -> Option<&'a Replacement> {
    let image = Name::new(image.unwrap_or_default());
    rows.iter().find(|row| {
        let said = |word: &String| image.words().contains(word);
        row.engines.iter().any(|engine| engine == title) && row.image.as_ref().is_none_or(said)
    })
}

/// The row that one of these names or images speaks of.
fn named<'a>(rows: &'a [Replacement], names: &[&str]) -> Option<&'a Replacement> {
    let names: Vec<Name> = names.iter().map(|text| Name::new(text)).collect();
    rows.iter().find(|row| {
        row.words
            .iter()
            .any(|word| names.iter().any(|name| name.words().contains(word)))
    })
}

/// The version that an image's tag tells.
fn version_of(image: &str) -> Option<Vec<u32>> {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    let last = named.rsplit_once('/').map_or(named, |(_, last)| last);
    let (_, tag) = last.split_once(':')?;
    tag.split(['-', '_']).find_map(version)
}

/// A metric source of AIBrix. What it reads from the engine itself it knows under names of its own;
/// what it has none for comes through the custom metrics API.
fn pod_block(old: &PodMetric, good: &Good<'_>) -> String {
    let target = good.measure.target();
    let Some(name) = &good.of.aibrix else {
        let metric = scalar(good.name());
        return format!(
            "- metricSourceType: custom\n  targetMetric: {metric}\n  targetValue: \"{target}\"\n"
        );
    };
    let kept = |key: &str, otherwise: &str| {
        let written = old.entry.get(key).and_then(Value::as_str);
        scalar(written.filter(|_| old.is_scraped()).unwrap_or(otherwise))
    };
    format!(
        "- metricSourceType: pod\n  protocolType: {}\n  port: {}\n  path: {}\n  targetMetric: \
         {name}\n  targetValue: \"{target}\"\n",
        kept("protocolType", "http"),
        kept("port", "8000"),
        kept("path", "/metrics"),
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
    use crate::{budget::Budget, signal::sources::sources};

    /// The block for the first source of an object, and the remedy, in a world of documents.
    fn advise(subject: &Value, world: &[Value]) -> (String, String) {
        let catalog = MetricCatalog::builtin();
        let world: Vec<Arc<Value>> = world.iter().cloned().map(Arc::new).collect();
        let facts = Facts::from_documents(&world);
        let subject = Subject::from_manifest(Arc::new(subject.clone())).unwrap();
        let sources = sources(catalog, &subject, &Budget::default());
        let advice = Advice::new(catalog, &facts, &subject, &sources);
        (advice.instead(&sources[0]), advice.remedy())
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

    /// A workload that serves a model on a GPU.
    fn server(image: &str, command: &[&str]) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "chat", "namespace": "a"},
            "spec": {"template": {"spec": {"containers": [{"image": image, "command": command,
                "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}})
    }

    #[test]
    fn the_engine_that_the_target_runs_gives_the_names_of_its_version() {
        let waiting = "vllm:num_requests_waiting";
        let (new, old) = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc");
        for (image, command, queue, cache) in [
            ("vllm/vllm-openai:v0.11.0", &[][..], waiting, new),
            ("vllm/vllm-openai:v0.9.2", &[], waiting, new),
            ("vllm/vllm-openai:v0.9.1", &[], waiting, old),
            ("vllm/vllm-openai:v0.8.5.post1", &[], waiting, old),
            ("vllm/vllm-openai:latest", &[], waiting, new),
            ("vllm/vllm-openai@sha256:0b51c3", &[], waiting, new),
            ("registry.example:5000/vllm-openai", &[], waiting, new),
            ("nvcr.io/nvidia/vllm:26.02-py3", &[], waiting, new),
            // The image says nothing, the command line does.
            ("team/base:1.2.0", &["vllm", "serve", "m"], waiting, new),
            (
                "team/base:1",
                &["python3", "-m", "sglang.launch_server"],
                "sglang:num_queue_reqs",
                "sglang:token_usage",
            ),
            (
                "lmsysorg/sglang:v0.5.0-cu126",
                &[],
                "sglang:num_queue_reqs",
                "sglang:token_usage",
            ),
            (
                "ghcr.io/huggingface/text-generation-inference:3.0",
                &[],
                "tgi_queue_size",
                "tgi_batch_current_size",
            ),
            (
                "nvcr.io/nvidia/tensorrt-llm/release:1.0.0",
                &["trtllm-serve", "m"],
                "trtllm_num_requests_waiting",
                "trtllm_kv_cache_utilization",
            ),
            (
                "nvcr.io/nvidia/tritonserver:25.08-py3",
                &["tritonserver", "--model-repository=/m"],
                "nv_inference_pending_request_count",
                "nv_inference_pending_request_count",
            ),
            (
                "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3",
                &["tritonserver", "--model-repository=/m"],
                "nv_trt_llm_request_metrics",
                "nv_trt_llm_kv_cache_block_metrics",
            ),
            (
                "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8",
                &[],
                "num_requests_waiting",
                "gpu_cache_usage_perc",
            ),
            (
                "openmmlab/lmdeploy:v0.9.2-cu12",
                &[],
                "lmdeploy:num_requests_waiting",
                "lmdeploy:gpu_cache_usage_perc",
            ),
            (
                "ghcr.io/ggml-org/llama.cpp:server-cuda-b5400",
                &[],
                "llamacpp:requests_deferred",
                "llamacpp:requests_processing",
            ),
            (
                "ollama/ollama:0.12.0",
                &[],
                "envoy_cluster_upstream_rq_active",
                "envoy_cluster_upstream_rq_active",
            ),
        ] {
            let world = [server(image, command)];
            let of = |role: &str| {
                metric(&advise(&hpa(&["gpu_util"], &json!({ROLE_LABEL: role})), &world).0)
            };
            assert_eq!(
                (of("prefill").as_str(), of("decode").as_str()),
                (queue, cache),
                "{image} {command:?}"
            );
        }
    }

    #[test]
    fn what_the_target_runs_outweighs_what_things_are_called() {
        let mut vllm = hpa(&["nv_gpu_utilization"], &json!({}));
        vllm["metadata"]["name"] = json!("triton-hpa");
        let world = [server("vllm/vllm-openai:v0.8.5", &[])];
        let (block, remedy) = advise(&vllm, &world);
        assert_eq!(metric(&block), "vllm:num_requests_waiting");
        assert!(
            remedy.starts_with("With vLLM 0.8.5 scale on queue depth"),
            "{remedy}"
        );
        // An image that stands for another engine in a workload without an accelerator.
        let mut router = world[0].clone();
        router["spec"]["template"]["spec"]["containers"][0]
            .as_object_mut()
            .unwrap()
            .remove("resources");
        let (block, remedy) = advise(&vllm, &[router]);
        assert_eq!(metric(&block), "nv_inference_pending_request_count");
        assert!(remedy.starts_with("Scale on its queue"), "{remedy}");
    }

    #[test]
    fn names_tell_the_engine_where_the_target_is_unknown() {
        for (name, queue) in [
            ("chat-sglang", "sglang:num_queue_reqs"),
            ("tgi", "tgi_queue_size"),
            ("chat", "vllm:num_requests_waiting"),
        ] {
            let mut named = hpa(&["gpu_util"], &json!({ROLE_LABEL: "prefill"}));
            named["spec"]["scaleTargetRef"]["name"] = json!(name);
            assert_eq!(metric(&advise(&named, &[]).0), queue, "{name}");
        }
    }

    #[test]
    fn a_block_says_what_else_it_takes() {
        let of = |image: &str, role: &str| {
            let world = [server(image, &[])];
            advise(&hpa(&["gpu_util"], &json!({ROLE_LABEL: role})), &world)
        };
        let (block, _) = of("lmsysorg/sglang:v0.5.0", "decode");
        assert!(
            block.starts_with("# SGLang exports it with --enable-metrics\n"),
            "{block}"
        );
        let (block, remedy) = of("ghcr.io/ggml-org/llama.cpp:server-cuda", "decode");
        assert!(
            remedy.contains("the requests that run") && !remedy.contains("KV"),
            "{remedy}"
        );
        assert!(
            block.contains("--metrics") && block.contains("averageValue: \"16\""),
            "{block}"
        );
        let (block, _) = of(
            "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3",
            "decode",
        );
        let read: Value = serde_saphyr::from_str(&block).unwrap();
        assert_eq!(
            read[0]["pods"]["metric"]["selector"]["matchLabels"],
            json!({"kv_cache_block_type": "fraction"})
        );
        let (block, remedy) = of("ollama/ollama:0.12.0", "decode");
        assert!(
            remedy.contains("gateway") && block.contains("type: External"),
            "{remedy}{block}"
        );
    }

    #[test]
    fn other_autoscalers_get_blocks_of_their_own() {
        let aibrix = |source: Value, image: &str| {
            let subject = json!({"apiVersion": "autoscaling.aibrix.ai/v1alpha1",
                "kind": "PodAutoscaler", "metadata": {"name": "chat", "namespace": "a"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "chat"},
                    "metricsSources": [source]}});
            let block = advise(&subject, &[server(image, &[])]).0;
            serde_saphyr::from_str::<Value>(&block).unwrap()[0].clone()
        };
        let pod = json!({"metricSourceType": "pod", "port": "8080", "targetMetric": "gpu_util"});
        assert_eq!(
            aibrix(pod.clone(), "vllm/vllm-openai:v0.11.0"),
            json!({"metricSourceType": "pod", "protocolType": "http", "port": "8080",
                "path": "/metrics", "targetMetric": "num_requests_waiting", "targetValue": "5"})
        );
        assert_eq!(
            aibrix(pod, "openmmlab/lmdeploy:v0.9.2"),
            json!({"metricSourceType": "custom", "targetMetric": "lmdeploy:num_requests_waiting",
                "targetValue": "5"}),
            "AIBrix has no name for it"
        );
        let kthena = |source: Value| {
            let subject = json!({"apiVersion": "workload.serving.volcano.sh/v1alpha1",
                "kind": "AutoscalingPolicy", "metadata": {"name": "chat", "namespace": "a"},
                "spec": {"disaggregatedTarget": {"roles": {"decode": {
                    "metrics": [{"name": "k"}], "metricSources": {"k": source}}}}}});
            serde_saphyr::from_str::<Value>(&advise(&subject, &[]).0).unwrap()
        };
        let target = json!([{"name": "kv_cache_usage", "targetValue": "0.8"}]);
        assert_eq!(
            kthena(json!({"prometheus": {"serverURL": "http://p:9090", "query": "gpu_util"}})),
            json!({"metrics": target, "metricSources": {"kv_cache_usage": {"prometheus": {
                "serverURL": "http://p:9090",
                "query": "avg(vllm:kv_cache_usage_perc{namespace=\"a\"})"}}}})
        );
        assert_eq!(
            kthena(json!({"pod": {"name": "gpu_util", "port": 8000}})),
            json!({"metrics": target, "metricSources": {"kv_cache_usage": {"pod": {
                "port": 8000, "name": "vllm:kv_cache_usage_perc"}}}})
        );
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
