//! Every metric source of an autoscaler, judged once for all signal rules.

use std::{collections::BTreeSet, sync::Arc};

use super::{Class, Dialect, Doubt, Name, Reader, Signal, advice, vocabulary, words};
use crate::{
    budget::Budget,
    catalog::metrics::{Meaning, MetricCatalog, Scaler},
    finding::{FieldPath, Finding, Level},
    rules::{Context, Findings},
    subject::{
        Subject,
        autoscaling_policy::{self, Fetch, PolicyMetric},
        hpa::{self, MetricSource, SourceType},
        pod_autoscaler::{self, PodMetric},
        scaled_object::{self, How, Reading, Trigger},
    },
};

/// Characters of a value that a finding repeats.
const LONGEST_VALUE: usize = 1_024;

/// One place in an autoscaler that says what to scale on.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The field.
    pub path: FieldPath,
    /// What it says.
    pub value: String,
    /// What it reads.
    pub signals: Vec<Signal>,
    /// Why it cannot be told, where the text alone does not show it.
    pub note: Option<String>,
    /// What it is part of.
    pub shape: Shape,
}

/// What a source is part of: decides what can stand there instead.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A metric of a HorizontalPodAutoscaler.
    Metric(SourceType),
    /// A trigger of KEDA.
    Trigger(Arc<Trigger>),
    /// A metric source of AIBrix.
    PodMetric(Box<PodMetric>),
    /// A metric of kthena.
    PolicyMetric(Box<PolicyMetric>),
}

impl Source {
    /// The kind of source, as its manifest calls it.
    pub fn scope(&self) -> &str {
        match &self.shape {
            Shape::Metric(source) => source.as_str(),
            Shape::Trigger(trigger) => &trigger.kind,
            Shape::PodMetric(metric) => &metric.source,
            Shape::PolicyMetric(metric) => match metric.how {
                Fetch::Listed(_) | Fetch::Pod(_) => "pod",
                Fetch::Prometheus(_) => "prometheus",
            },
        }
    }
}

/// Steps that a source costs beside its text: it is copied, and findings may repeat it.
const SOURCE: usize = 500;
/// Steps that each signal costs beside its text: the rules compare them, and may report each.
const SIGNAL: usize = 6_000;

/// Names that are still found once the budget is spent.
const MOST_EXACT: usize = 1_000;

/// Judges everything that an autoscaler scales on. Empty for other kinds.
///
/// Once the budget is spent, a text is only looked up: what is the name of a device metric and
/// nothing else is found wherever it stands, each of them once.
pub fn sources(catalog: &MetricCatalog, subject: &Subject, budget: &Budget) -> Vec<Source> {
    let reader = Reader::new(catalog, budget);
    let mut judged = Judged {
        reader: &reader,
        list: Vec::new(),
        exact: BTreeSet::new(),
    };
    match subject.kind.as_str() {
        "HorizontalPodAutoscaler" => {
            for metric in hpa::metrics(subject) {
                if !metric.made_by_keda {
                    judged.metric(metric);
                }
            }
        }
        "ScaledObject" | "ScaledJob" => {
            for trigger in scaled_object::triggers(subject) {
                judged.trigger(&Arc::new(trigger));
            }
        }
        "PodAutoscaler" if subject.group() == pod_autoscaler::GROUP => {
            for metric in pod_autoscaler::metrics(subject) {
                judged.pod_metric(metric);
            }
        }
        "AutoscalingPolicy" if subject.group() == autoscaling_policy::GROUP => {
            for metric in autoscaling_policy::metrics(subject) {
                judged.policy_metric(metric);
            }
        }
        _ => {}
    }
    judged.list
}

/// The sources of one object so far.
struct Judged<'r> {
    reader: &'r Reader<'r>,
    list: Vec<Source>,
    /// What was found by exact name since the budget was spent: its kind of source, whether that is
    /// in use, and the name.
    exact: BTreeSet<(String, bool, String)>,
}

impl<'r> Judged<'r> {
    /// Judges what one place says. Once the budget is spent, it does so only where the text is the
    /// name of a device metric and nothing else.
    fn add(
        &mut self,
        (scope, inert): (&str, bool),
        path: impl Fn() -> FieldPath,
        text: &str,
        judge: impl FnOnce(&'r Reader<'r>) -> Option<Source>,
    ) {
        let reader = self.reader;
        if reader.budget.is_spent() {
            let known = (reader.budget)
                .on(&path, || reader.exact(text))
                .filter(|signal| signal.class.is_device_load());
            let Some(signal) = known else { return };
            let key = (scope.to_owned(), inert, signal.identity);
            if self.exact.len() >= MOST_EXACT || !self.exact.insert(key) {
                return;
            }
        }
        let source = reader.budget.on(path, || {
            let source = judge(reader);
            let signals = source.as_ref().map_or(0, |source| source.signals.len());
            reader.budget.spend(SOURCE + text.len() + SIGNAL * signals);
            source
        });
        self.list.extend(source);
    }

    fn metric(&mut self, metric: MetricSource) {
        let (name, path) = (metric.name.clone(), metric.path.clone());
        let scope = metric.source.as_str();
        self.add(
            (scope, false),
            || path.clone(),
            &name,
            |reader| Some(of_metric(reader, metric)),
        );
    }

    fn pod_metric(&mut self, metric: PodMetric) {
        let (name, path) = (metric.name.clone(), metric.path.clone());
        let scope = metric.source.clone();
        self.add(
            (&scope, false),
            || path.clone(),
            &name,
            |reader| Some(of_pod_metric(reader, metric)),
        );
    }

    fn policy_metric(&mut self, metric: PolicyMetric) {
        let (text, path) = (metric.text.clone(), metric.path.clone());
        self.add(
            ("", metric.unused),
            || path.clone(),
            &text,
            |reader| Some(of_policy_metric(reader, metric)),
        );
    }

    fn trigger(&mut self, trigger: &Arc<Trigger>) {
        let source =
            |key: Option<&str>, value: &str, signals: Vec<Signal>, note: Option<String>| Source {
                path: key.map_or_else(|| trigger.path.clone(), |key| trigger.path.clone().key(key)),
                value: value.to_owned(),
                signals: signals
                    .into_iter()
                    .map(|signal| spared(signal, trigger.inert))
                    .collect(),
                note,
                shape: Shape::Trigger(Arc::clone(trigger)),
            };
        let of = (trigger.kind.as_str(), trigger.inert);
        let scaler = trigger
            .get("scalerAddress")
            .and_then(|address| self.reader.catalog.scaler(address));
        if trigger.is_external()
            && let Some(scaler) = scaler
        {
            // By its own keys and values, which are all looked up and never read.
            let (key, value, signal, note) = chosen(scaler, trigger);
            let path =
                key.map_or_else(|| trigger.path.clone(), |key| trigger.path.clone().key(key));
            let source = source(key, &value, vec![signal], note);
            self.chosen(of, &path, source);
            return;
        }
        for Reading { key, text, how } in scaled_object::readings(trigger) {
            let path =
                || key.map_or_else(|| trigger.path.clone(), |key| trigger.path.clone().key(key));
            self.add(of, path, text, |reader| match how {
                How::Query(dialect) => {
                    let signals = reader.query(dialect, text);
                    let place = trigger.place().filter(|(_, place)| {
                        signals.iter().all(|signal| signal.class == Class::Neutral)
                            && is_device_load(place, text)
                    });
                    let (signals, note) = match place {
                        Some((what, place)) => (
                            vec![Signal::opaque(text)],
                            Some(format!("its {what} is {place}")),
                        ),
                        None => (signals, None),
                    };
                    Some(source(key, text, signals, note))
                }
                How::Key => {
                    let signal = reader.name(text, &[]);
                    let value = key.and_then(|key| trigger.get(key)).unwrap_or(text);
                    let wrong = signal.class.is_device_load();
                    wrong.then(|| source(key, value, vec![signal], None))
                }
                How::Elsewhere => Some(source(
                    key,
                    &trigger.kind,
                    vec![Signal::opaque(text)],
                    Some(text.to_owned()),
                )),
                How::Host => {
                    let host = Signal::new(text, text.to_owned(), Some(Meaning::Host), "");
                    Some(source(key, text, vec![host], None))
                }
            });
        }
    }

    /// Adds what a known external scaler reads.
    fn chosen(&mut self, (scope, inert): (&str, bool), path: &FieldPath, source: Source) {
        let budget = self.reader.budget;
        if budget.is_spent() {
            let told = source.signals.first();
            let Some(signal) = told.filter(|signal| signal.class.is_device_load()) else {
                return;
            };
            let key = (scope.to_owned(), inert, signal.identity.clone());
            if self.exact.len() >= MOST_EXACT || !self.exact.insert(key) {
                return;
            }
        }
        budget.on(
            || path.clone(),
            || budget.spend(SOURCE + source.value.len() + SIGNAL),
        );
        self.list.push(source);
    }
}

fn of_metric(reader: &Reader<'_>, metric: MetricSource) -> Source {
    let signal = match metric.source {
        SourceType::Resource => resource(reader, &metric.name),
        _ => reader.name(&metric.name, &metric.labels),
    };
    let exporter = metric.described.as_deref().filter(|name| is_exporter(name));
    let (signal, note) = match exporter {
        Some(exporter) if signal.class == Class::Neutral => (
            Signal::opaque(&metric.name),
            Some(format!(
                "it is measured on {exporter}, which exports device metrics"
            )),
        ),
        _ => (signal, None),
    };
    Source {
        path: metric.path,
        value: metric.name,
        signals: vec![signal],
        note,
        shape: Shape::Metric(metric.source),
    }
}

/// A resource metric: only CPU and memory are ever measured, and an accelerator asked for here is
/// meant as its utilization.
fn resource(reader: &Reader<'_>, name: &str) -> Signal {
    const VENDORS: &[&str] = &["nvidia.com/", "amd.com/", "gpu.intel.com/", "habana.ai/"];
    if matches!(name, "cpu" | "memory") {
        return Signal::new(name, name.to_owned(), Some(Meaning::Host), "");
    }
    let known = reader.name(name, &[]);
    let words = Name::new(name);
    let device = words.words().iter().any(|word| vocabulary::is_device(word))
        || VENDORS.iter().any(|vendor| name.starts_with(vendor));
    if device && !known.class.is_device_load() {
        return Signal::new(name, words.spelling(), Some(Meaning::Utilization), "");
    }
    known
}

fn is_exporter(name: &str) -> bool {
    let name = Name::new(name);
    let has = |wanted: &dyn Fn(&str) -> bool| name.words().iter().any(|word| wanted(word));
    has(&|word| word == "exporter") && has(&vocabulary::is_device)
}

/// Whether a metric's name or query speaks of a device's load, together with where it is kept.
fn is_device_load(place: &str, text: &str) -> bool {
    const LONGEST: usize = 1024;
    if place.len() + text.len() > LONGEST {
        return false;
    }
    let words: Vec<String> = [place, text].into_iter().flat_map(words).collect();
    vocabulary::meaning(&words).is_some_and(|meaning| meaning.class().is_device_load())
}

fn of_pod_metric(reader: &Reader<'_>, metric: PodMetric) -> Source {
    let signal = if metric.is_resource() {
        resource(reader, &metric.name)
    } else {
        reader.name(&metric.name, &[])
    };
    Source {
        path: metric.path.clone(),
        value: metric.name.clone(),
        signals: vec![signal],
        note: None,
        shape: Shape::PodMetric(Box::new(metric)),
    }
}

fn of_policy_metric(reader: &Reader<'_>, metric: PolicyMetric) -> Source {
    let signals = match metric.how {
        Fetch::Listed(_) | Fetch::Pod(_) => vec![reader.name(&metric.text, &[])],
        Fetch::Prometheus(_) => reader.query(Dialect::PromQl, &metric.text),
    };
    let inert = metric.unused;
    Source {
        path: metric.path.clone(),
        value: metric.text.clone(),
        signals: signals
            .into_iter()
            .map(|signal| spared(signal, inert))
            .collect(),
        note: None,
        shape: Shape::PolicyMetric(Box::new(metric)),
    }
}

/// What nothing uses does not scale anything.
fn spared(signal: Signal, inert: bool) -> Signal {
    let doubt = signal.doubt.filter(|doubt| doubt.spares() || !inert);
    Signal {
        doubt: doubt.or(inert.then_some(Doubt::Inert)),
        ..signal
    }
}

/// What a known external scaler reads, by its own precedence.
fn chosen<'t>(
    scaler: &'t Scaler,
    trigger: &Trigger,
) -> (Option<&'t str>, String, Signal, Option<String>) {
    for choice in &scaler.choices {
        let Some(value) = trigger.get(&choice.key) else {
            continue;
        };
        let meaning = choice
            .meaning
            .or_else(|| choice.values.get(value.trim()).copied());
        let name = format!("{}: {value}", choice.key);
        let (signal, note) = match meaning {
            Some(meaning) => {
                let identity = match choice.meaning {
                    Some(_) => choice.key.clone(),
                    None => format!("{}={}", choice.key, value.trim()),
                };
                (
                    Signal::new(&name, identity, Some(meaning), &scaler.name),
                    None,
                )
            }
            None => (
                Signal::opaque(&name),
                Some(format!(
                    "{} knows no {} of that name",
                    scaler.name, choice.key
                )),
            ),
        };
        return (Some(choice.key.as_str()), value.to_owned(), signal, note);
    }
    let name = format!("the default of {}", scaler.name);
    let signal = Signal::new(
        &name,
        "default".to_owned(),
        Some(scaler.default),
        &scaler.name,
    );
    (None, trigger.kind.clone(), signal, None)
}

/// Reports the signals of the wanted classes: those that are to be refused at the rule's full
/// level, those in doubt as warnings. `why` says in one sentence what is wrong with a signal.
pub(crate) fn report<P>(
    cx: &Context<'_, P>,
    out: &mut Findings,
    wanted: impl Fn(Class) -> bool,
    why: impl Fn(&Signal) -> &'static str,
) {
    let catalog = cx.policy.catalog().metrics();
    let sources = cx.sources();
    let advice = advice::Advice::new(catalog, cx.facts, cx.subject, sources);
    for source in sources {
        for signal in source.signals.iter().filter(|signal| wanted(signal.class)) {
            // Counting series that cannot be told is counting all the same.
            if signal.class == Class::Opaque && signal.doubt.is_some_and(Doubt::spares) {
                continue;
            }
            let message = message(source, signal, why(signal), &advice);
            let finding = Finding::new(source.path.clone(), message)
                .value(shortened(&source.value, LONGEST_VALUE))
                .instead(match signal.doubt {
                    Some(Doubt::Counted | Doubt::Inert) => String::new(),
                    _ => advice.instead(source),
                })
                .fingerprint(format!("{}:{}", source.scope(), signal.identity))
                .severity(if signal.is_refused() { 2 } else { 1 });
            if signal.is_refused() {
                out.report(finding);
            } else {
                out.report_at(Level::Warn, finding);
            }
        }
    }
}

fn message(source: &Source, signal: &Signal, why: &str, advice: &advice::Advice<'_>) -> String {
    let name = shortened(&signal.name, 120);
    let whose = match signal.exporter.as_str() {
        "" => String::new(),
        exporter if signal.name.contains(exporter) => String::new(),
        exporter => format!(" ({exporter})"),
    };
    if signal.class == Class::Opaque {
        return match &source.note {
            Some(note) => format!("what this scales on cannot be told: {note}"),
            None => format!("what this scales on cannot be told from {name}: {why}"),
        };
    }
    let remedy = advice.remedy_at(source);
    match signal.doubt {
        None => format!("scales on {name}{whose}: {why}. {remedy}"),
        Some(Doubt::Unparsed) => {
            format!("scales on {name}{whose}, in a query that is no valid PromQL: {why}. {remedy}")
        }
        Some(Doubt::Counted) => format!(
            "only counts the series of {name}{whose}, so that scaling depends on an exporter being \
             scraped; count pods or devices by a metric made for it"
        ),
        Some(Doubt::Inert) => {
            let (user, what) = match source.shape {
                Shape::PolicyMetric(_) => ("no metric of the policy uses", "source"),
                _ => ("the scaling formula does not use", "trigger"),
            };
            format!(
                "reads {name}{whose}, which {user}: {why}, so remove the {what} before something \
                 picks it up"
            )
        }
        Some(Doubt::Loose) => format!(
            "may scale on a device: {name} looks like a device metric among words that mean other \
             things; if it is one, {why}. {remedy}"
        ),
    }
}

fn shortened(text: &str, most: usize) -> String {
    let text = text.trim();
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        facts::Facts,
        finding::Verdict,
        policy::Policy,
        review::{Skip, review},
        subject::{Door, Operation},
    };

    fn subject(value: &Value) -> Subject {
        Subject::from_manifest(Arc::new(value.clone())).unwrap()
    }

    fn hpa(metrics: &[&str]) -> Value {
        let metrics: Vec<Value> = metrics
            .iter()
            .map(|name| json!({"type": "Pods", "pods": {"metric": {"name": name}}}))
            .collect();
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "chat", "namespace": "a"}, "spec": {"metrics": metrics}})
    }

    fn prometheus(queries: &[&str]) -> Value {
        let triggers: Vec<Value> = queries
            .iter()
            .map(|query| json!({"type": "prometheus", "metadata": {"query": query}}))
            .collect();
        json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
            "metadata": {"name": "chat", "namespace": "a"}, "spec": {"triggers": triggers}})
    }

    fn external(metadata: &Value) -> Vec<(Class, String)> {
        let value = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
            "spec": {"triggers": [{"type": "external", "metadata": metadata}]}});
        sources(
            MetricCatalog::builtin(),
            &subject(&value),
            &Budget::default(),
        )
        .iter()
        .flat_map(|source| {
            source
                .signals
                .iter()
                .map(|signal| (signal.class, source.path.to_string()))
        })
        .filter(|(class, _)| *class != Class::Neutral)
        .collect()
    }

    fn update(old: &Value, new: &Value) -> Verdict {
        let update = Subject {
            old: Some(Arc::new(old.clone())),
            door: Door::Validate,
            operation: Operation::Update,
            ..subject(new)
        };
        review(
            &Policy::default(),
            &Facts::unknown(),
            &update,
            Timestamp::UNIX_EPOCH,
        )
        .verdict()
    }

    #[test]
    fn where_a_metric_is_kept_may_say_what_it_is() {
        let class = |kind: &str, metadata: Value| {
            let value = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
                "spec": {"triggers": [{"type": kind, "metadata": metadata}]}});
            sources(
                MetricCatalog::builtin(),
                &subject(&value),
                &Budget::default(),
            )
            .iter()
            .flat_map(|source| source.signals.iter().map(|signal| signal.class))
            .max_by_key(|class| *class != Class::Neutral)
            .unwrap_or(Class::Neutral)
        };
        let cloudwatch = |namespace: &str, metric: &str| {
            class(
                "aws-cloudwatch",
                json!({"namespace": namespace, "metricName": metric}),
            )
        };
        assert_eq!(cloudwatch("Site/GPU", "Utilization"), Class::Opaque);
        assert_eq!(cloudwatch("Site/Nodes", "Utilization"), Class::Neutral);
        assert_eq!(cloudwatch("team-gpu", "PendingJobs"), Class::Neutral);
        assert_ne!(cloudwatch("team-gpu", "QueueDepth"), Class::Opaque);
        let elastic = |index: &str, query: &str| {
            class(
                "elasticsearch",
                json!({"index": index, "query": query, "valueLocation": "hits.total.value"}),
            )
        };
        let average = r#"{"aggs": {"a": {"avg": {"field": "utilization"}}}}"#;
        assert_eq!(elastic("dcgm", average), Class::Opaque);
        assert_eq!(elastic("pods", average), Class::Neutral);
        assert_eq!(
            elastic("gpu-jobs", r#"{"query": {"term": {"state": "waiting"}}}"#),
            Class::Neutral
        );
        assert_eq!(
            class(
                "azure-monitor",
                json!({"metricNamespace": "gpu.insights", "metricName": "memory used"})
            ),
            Class::Opaque
        );
    }

    #[test]
    fn an_update_is_denied_for_what_it_adds_and_not_for_what_was_there() {
        let (gpu, fb, queue) = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "vllm:queue");
        assert_eq!(
            update(&hpa(&[gpu, queue]), &hpa(&[queue, gpu])),
            Verdict::Warn,
            "moved"
        );
        assert_eq!(
            update(&hpa(&[gpu, fb]), &hpa(&[gpu])),
            Verdict::Warn,
            "one less"
        );
        assert_eq!(
            update(&hpa(&[gpu]), &hpa(&["dcgm_fi_dev_gpu_util"])),
            Verdict::Warn,
            "respelled"
        );
        assert_eq!(
            update(&hpa(&[gpu]), &hpa(&[gpu, fb])),
            Verdict::Deny,
            "one more"
        );
        assert_eq!(
            update(&hpa(&[gpu]), &hpa(&[queue])),
            Verdict::Allow,
            "mended"
        );
    }

    #[test]
    fn an_update_within_a_query_goes_by_the_series() {
        let old = "sum(a) / count(DCGM_FI_DEV_GPU_UTIL)";
        let used = "sum(a) / avg(DCGM_FI_DEV_GPU_UTIL)";
        assert_eq!(
            update(&prometheus(&[old]), &prometheus(&[used])),
            Verdict::Deny,
            "now used"
        );
        assert_eq!(
            update(&prometheus(&[used]), &prometheus(&[old])),
            Verdict::Warn
        );
        let other = "max(DCGM_FI_DEV_GPU_UTIL{pod=\"x\"})";
        assert_eq!(
            update(&prometheus(&[used]), &prometheus(&[other])),
            Verdict::Warn
        );
        let more = "avg(DCGM_FI_DEV_GPU_UTIL) + avg(DCGM_FI_DEV_POWER_USAGE)";
        assert_eq!(
            update(&prometheus(&[used]), &prometheus(&[more])),
            Verdict::Deny
        );
    }

    #[test]
    fn a_controller_that_writes_only_metadata_is_not_asked() {
        let old = hpa(&["DCGM_FI_DEV_GPU_UTIL"]);
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["finalizer.keda.sh"]);
        let update = Subject {
            old: Some(Arc::new(old)),
            operation: Operation::Update,
            ..subject(&new)
        };
        let answer = review(
            &Policy::default(),
            &Facts::unknown(),
            &update,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(answer.skipped, Some(Skip::Unchanged));
    }

    #[test]
    fn a_known_scaler_is_read_by_its_own_precedence() {
        let at = |key: &str| format!("spec.triggers[0].metadata{key}");
        let address = "keda-gpu-scaler.keda.svc:6000";
        let of = |metadata: Value| {
            let mut all = json!({"scalerAddress": address});
            all.as_object_mut()
                .unwrap()
                .extend(metadata.as_object().unwrap().clone());
            external(&all)
        };
        assert_eq!(of(json!({})), [(Class::Utilization, at(""))]);
        assert_eq!(
            of(json!({"profile": "ollama"})),
            [(Class::Memory, at(".profile"))]
        );
        assert_eq!(
            of(json!({"profile": "ollama", "metricType": "vllm_queue_depth"})),
            [(Class::Serving, at(".metricType"))]
        );
        assert_eq!(
            of(json!({"metricType": "vllm_queue_depth", "targetGpuUtilization": "1"})),
            [(Class::Utilization, at(".targetGpuUtilization"))]
        );
        assert_eq!(
            of(json!({"targetMemoryUtilization": "1", "targetGpuUtilization": "1"})),
            [(Class::Memory, at(".targetMemoryUtilization"))]
        );
        assert_eq!(
            of(json!({"profile": "new"})),
            [(Class::Opaque, at(".profile"))]
        );
    }

    #[test]
    fn an_unknown_scaler_is_read_by_words() {
        let at = |key: &str| format!("spec.triggers[0].metadata.{key}");
        assert_eq!(
            external(&json!({"scalerAddress": "x:1", "gpuUtilizationTarget": "80"})),
            [(Class::Utilization, at("gpuUtilizationTarget"))]
        );
        assert_eq!(
            external(&json!({"scalerAddress": "x:1", "metric": "gpu_memory_used"})),
            [(Class::Memory, at("metric"))]
        );
        assert_eq!(
            external(&json!({"scalerAddress": "gpu-util:1", "gpuType": "h100"})),
            []
        );
        assert_eq!(external(&json!({"url": "http://gpu-util:1/metrics"})), []);
    }

    #[test]
    fn host_resources_are_told_apart_for_other_rules() {
        let value = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "spec": {"metrics": [
            {"type": "Resource", "resource": {"name": "memory"}},
            {"type": "Resource", "resource": {"name": "nvidia.com/mig-1g.5gb"}},
            {"type": "Resource", "resource": {"name": "nvidia.com/gpumem"}},
            {"type": "Resource", "resource": {"name": "ephemeral-storage"}},
        ]}});
        let classes: Vec<Class> = sources(
            MetricCatalog::builtin(),
            &subject(&value),
            &Budget::default(),
        )
        .iter()
        .flat_map(|source| source.signals.iter().map(|signal| signal.class))
        .collect();
        assert_eq!(
            classes,
            [
                Class::Host,
                Class::Utilization,
                Class::Memory,
                Class::Neutral
            ]
        );
    }

    #[test]
    fn a_long_value_is_not_repeated_whole() {
        let query = format!("avg(DCGM_FI_DEV_GPU_UTIL{{a=\"{}\"}})", "é".repeat(4_000));
        let subject = subject(&prometheus(&[&query]));
        let answer = review(
            &Policy::default(),
            &Facts::unknown(),
            &subject,
            Timestamp::UNIX_EPOCH,
        );
        let value = answer.findings[0].value.as_ref().unwrap().as_str().unwrap();
        assert_eq!(value.chars().count(), LONGEST_VALUE + 1);
    }
}
