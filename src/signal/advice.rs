//! What to scale on instead, for the autoscaler at hand.

use serde_json::Value;

use super::{
    Name,
    sources::{Shape, Source},
};
use crate::{
    catalog::metrics::{Meaning, MetricCatalog},
    subject::{ROLE_LABEL, Subject, hpa::SourceType, scaled_object::Trigger},
};

/// The engine whose metrics are named where nothing tells another one.
const DEFAULT_ENGINE: &str = "vLLM";

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
}

impl<'a> Advice<'a> {
    pub(super) fn new(
        catalog: &'a MetricCatalog,
        subject: &'a Subject,
        sources: &'a [Source],
    ) -> Self {
        let signals = || sources.iter().flat_map(|source| &source.signals);
        let target = subject
            .at(&["spec", "scaleTargetRef", "name"])
            .and_then(Value::as_str)
            .unwrap_or_default();
        // An engine's own metric beside the wrong one tells most, then the name of the target.
        let engine = signals()
            .filter(|signal| signal.class == super::Class::Serving)
            .map(|signal| signal.exporter.as_str())
            .find(|exporter| ENGINES.iter().any(|(_, engine)| engine == exporter))
            .or_else(|| {
                let words: Vec<String> = [target, subject.name.as_str()]
                    .iter()
                    .flat_map(|name| Name::new(name).words().to_vec())
                    .collect();
                let named = |word: &str| words.iter().any(|given| given == word);
                ENGINES
                    .iter()
                    .find(|(word, _)| named(word))
                    .map(|(_, engine)| *engine)
            })
            .unwrap_or(DEFAULT_ENGINE);
        let metric = |meaning| {
            catalog
                .recommend(engine, meaning)
                .or_else(|| catalog.recommend(engine, Meaning::Concurrency))
                .or_else(|| catalog.recommend(DEFAULT_ENGINE, meaning))
                .unwrap_or_default()
        };
        Self {
            subject,
            role: match subject.label(ROLE_LABEL) {
                Some("prefill") => Role::Prefill,
                Some("decode") => Role::Decode,
                _ => Role::Both,
            },
            queue: metric(Meaning::QueueDepth),
            cache: metric(Meaning::KvUse),
            read: signals().map(|signal| signal.identity.as_str()).collect(),
        }
    }

    /// Which signals are right, in a sentence.
    pub(super) fn remedy(&self) -> String {
        let (queue, cache) = (self.queue, self.cache);
        match self.role {
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
        let wanted = match self.role {
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
            Shape::Metric(kind) => hpa_block(*kind, &source.value, metric, share),
            Shape::Trigger(trigger) => self.trigger_block(trigger, metric, share),
        }
    }

    fn trigger_block(&self, trigger: &Trigger, metric: &str, share: bool) -> String {
        const KEPT: &[&str] = &[
            "namespace",
            "authModes",
            "customHeaders",
            "unsafeSsl",
            "awsRegion",
        ];
        let prometheus = trigger.kind == "prometheus";
        let mut out = String::from("- type: prometheus\n");
        if let Some(name) = &trigger.name {
            out.push_str(&format!("  name: {}\n", scalar(name)));
        }
        out.push_str("  metadata:\n");
        let server = trigger
            .get("serverAddress")
            .filter(|_| prometheus)
            .unwrap_or(PROMETHEUS);
        out.push_str(&format!("    serverAddress: {}\n", scalar(server)));
        for key in KEPT.iter().filter(|_| prometheus) {
            if let Some(value) = trigger.get(key) {
                out.push_str(&format!("    {key}: {}\n", scalar(value)));
            }
        }
        let selector = match &self.subject.namespace {
            Some(namespace) => format!("{metric}{{namespace=\"{namespace}\"}}"),
            None => metric.to_owned(),
        };
        let (query, threshold) = if share {
            (format!("avg({selector})"), "0.8")
        } else {
            (format!("sum({selector})"), "5")
        };
        out.push_str(&format!(
            "    query: {}\n    threshold: \"{threshold}\"\n",
            scalar(&query)
        ));
        let reference = trigger.authentication.as_ref().filter(|_| prometheus);
        for (position, (key, value)) in reference
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .enumerate()
        {
            if position == 0 {
                out.push_str("  authenticationRef:\n");
            }
            out.push_str(&format!(
                "    {key}: {}\n",
                scalar(value.as_str().unwrap_or_default())
            ));
        }
        out
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
