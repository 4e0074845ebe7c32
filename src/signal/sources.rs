//! Every metric source of an autoscaler, judged once for all signal rules.

use super::{Class, Doubt, Name, Signal, advice, classify, classify_query, vocabulary};
use crate::{
    catalog::metrics::{Meaning, MetricCatalog, Scaler},
    finding::{FieldPath, Finding, Level},
    rules::{Context, Findings},
    subject::{
        Subject,
        hpa::{self, MetricSource, SourceType},
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
    Trigger(Box<Trigger>),
}

impl Source {
    /// The kind of source, as its manifest calls it.
    pub fn scope(&self) -> &str {
        match &self.shape {
            Shape::Metric(source) => source.as_str(),
            Shape::Trigger(trigger) => &trigger.kind,
        }
    }
}

/// Judges everything that an autoscaler scales on. Empty for other kinds.
pub fn sources(catalog: &MetricCatalog, subject: &Subject) -> Vec<Source> {
    match subject.kind.as_str() {
        "HorizontalPodAutoscaler" => hpa::metrics(subject)
            .into_iter()
            .filter(|metric| !metric.made_by_keda)
            .map(|metric| of_metric(catalog, metric))
            .collect(),
        "ScaledObject" | "ScaledJob" => scaled_object::triggers(subject)
            .into_iter()
            .flat_map(|trigger| of_trigger(catalog, &trigger))
            .collect(),
        _ => Vec::new(),
    }
}

fn of_metric(catalog: &MetricCatalog, metric: MetricSource) -> Source {
    let signal = match metric.source {
        SourceType::Resource => resource(catalog, &metric.name),
        _ => classify(catalog, &metric.name, &metric.labels),
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
fn resource(catalog: &MetricCatalog, name: &str) -> Signal {
    const VENDORS: &[&str] = &["nvidia.com/", "amd.com/", "gpu.intel.com/", "habana.ai/"];
    if matches!(name, "cpu" | "memory") {
        return Signal::new(name, name.to_owned(), Some(Meaning::Host), "");
    }
    let known = classify(catalog, name, &[]);
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

fn of_trigger(catalog: &MetricCatalog, trigger: &Trigger) -> Vec<Source> {
    let source =
        |key: Option<&str>, value: &str, signals: Vec<Signal>, note: Option<String>| Source {
            path: key.map_or_else(|| trigger.path.clone(), |key| trigger.path.clone().key(key)),
            value: value.to_owned(),
            signals: signals
                .into_iter()
                .map(|signal| spared(signal, trigger))
                .collect(),
            note,
            shape: Shape::Trigger(Box::new(trigger.clone())),
        };
    let scaler = trigger
        .get("scalerAddress")
        .and_then(|address| catalog.scaler(address));
    if trigger.is_external()
        && let Some(scaler) = scaler
    {
        let (key, value, signal, note) = chosen(scaler, trigger);
        return vec![source(key, &value, vec![signal], note)];
    }
    let mut out = Vec::new();
    for Reading { key, text, how } in scaled_object::readings(trigger) {
        let key = key.as_deref();
        match how {
            How::Query(dialect) => {
                let signals = classify_query(catalog, dialect, &text);
                out.push(source(key, &text, signals, None));
            }
            How::Key => {
                let signal = classify(catalog, &text, &[]);
                if signal.class.is_device_load() {
                    let value = key.and_then(|key| trigger.get(key)).unwrap_or(&text);
                    out.push(source(key, value, vec![signal], None));
                }
            }
            How::Elsewhere => {
                out.push(source(
                    key,
                    &trigger.kind,
                    vec![Signal::opaque(&text)],
                    Some(text),
                ));
            }
            How::Host => {
                let host = Signal::new(&text, text.clone(), Some(Meaning::Host), "");
                out.push(source(key, &text, vec![host], None));
            }
        }
    }
    out
}

/// A trigger that the scaling formula leaves out does not scale anything.
fn spared(signal: Signal, trigger: &Trigger) -> Signal {
    let doubt = signal
        .doubt
        .filter(|doubt| doubt.spares() || !trigger.inert);
    Signal {
        doubt: doubt.or(trigger.inert.then_some(Doubt::Inert)),
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
    let sources = sources(catalog, cx.subject);
    for source in &sources {
        for signal in source.signals.iter().filter(|signal| wanted(signal.class)) {
            // Counting series that cannot be told is counting all the same.
            if signal.class == Class::Opaque && signal.doubt.is_some_and(Doubt::spares) {
                continue;
            }
            let advice = advice::Advice::new(catalog, cx.subject, &sources);
            let message = message(source, signal, why(signal), &advice);
            let finding = Finding::new(source.path.clone(), message)
                .value(shortened(&source.value, LONGEST_VALUE))
                .instead(advice.instead(source))
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
    let remedy = advice.remedy();
    match signal.doubt {
        None => format!("scales on {name}{whose}: {why}. {remedy}"),
        Some(Doubt::Unparsed) => {
            format!("scales on {name}{whose}, in a query that is no valid PromQL: {why}. {remedy}")
        }
        Some(Doubt::Counted) => format!(
            "only counts the series of {name}{whose}, so that scaling depends on an exporter being \
             scraped; count pods or devices by a metric made for it"
        ),
        Some(Doubt::Inert) => format!(
            "reads {name}{whose}, which the scaling formula does not use: {why}, so remove the \
             trigger before a formula picks it up"
        ),
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
