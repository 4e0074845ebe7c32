//! What metric names mean: the shipped table and what a site adds to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::signal::{Class, Name};

/// The table that ships with Gangplank.
const BUILTIN: &str = include_str!("../../policies/catalog/metrics.yaml");

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Meaning {
    /// Share of time, or of units, that a device was busy.
    Utilization,
    /// Device memory in use, free or reserved.
    Memory,
    /// Device memory traffic.
    Bandwidth,
    /// Power, energy, temperature, clocks.
    PowerThermal,
    /// Faults and configuration of a device.
    Health,
    /// Size of a device's memory or its limits: does not move with load.
    Capacity,
    /// Traffic of PCIe, `NVLink` and the like.
    Interconnect,
    /// Devices or shares of them handed out by the scheduler.
    Allocation,
    /// CPU or memory of the host.
    Host,
    /// The name is used for several things, or says nothing but "device".
    Unclear,
    /// Requests that wait in an engine or a gateway.
    QueueDepth,
    /// Share of the KV cache in use, and prefix-cache figures.
    KvUse,
    /// Requests or sequences that run.
    Concurrency,
    /// Time to first token, between tokens, end to end, in the queue.
    Latency,
    /// Requests that met, or missed, their objective.
    Goodput,
    /// A replica count that another controller worked out.
    DesiredReplicas,
    /// Messages that wait in an external queue.
    WorkQueue,
}

impl Meaning {
    /// The class that the signal rules go by.
    pub fn class(self) -> Class {
        match self {
            Self::Utilization => Class::Utilization,
            Self::Memory | Self::Bandwidth => Class::Memory,
            Self::PowerThermal => Class::PowerThermal,
            Self::Health | Self::Capacity | Self::Interconnect => Class::DeviceOther,
            Self::Allocation => Class::Neutral,
            Self::Host => Class::Host,
            Self::Unclear => Class::Opaque,
            Self::QueueDepth
            | Self::KvUse
            | Self::Concurrency
            | Self::Latency
            | Self::Goodput
            | Self::DesiredReplicas
            | Self::WorkQueue => Class::Serving,
        }
    }
}

/// Names that mean the same thing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MetricRow {
    /// Names in any spelling; `{a,b}` stands for either, `*` for any text.
    pub names: Vec<String>,
    /// What the names mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<Meaning>,
    /// A known metric that the names are another name of, instead of a meaning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_of: Option<String>,
    /// Labels that the series must carry for the row to speak of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<String, String>,
    /// Who exports it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub exporter: String,
    /// Where this was read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// When it was last checked against the source.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checked: String,
}

/// An external scaler whose metadata choose a metric by words of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Scaler {
    /// The project.
    pub name: String,
    /// Words that the host of its address has in its first label.
    pub address: Vec<String>,
    /// What chooses the metric: the first that is there wins.
    pub choices: Vec<Choice>,
    /// What it reads where nothing chooses.
    pub default: Meaning,
    /// Where this was read.
    pub source: String,
    /// When it was last checked against the source.
    pub checked: String,
}

/// A metadata key of a [`Scaler`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The key.
    pub key: String,
    /// What its being there means, whatever its value.
    pub meaning: Option<Meaning>,
    /// What its values mean.
    #[serde(default)]
    pub values: BTreeMap<String, Meaning>,
}

/// What to scale a model server on, by its engine.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replacement {
    /// Whose metrics these are, as in the rows of metrics.
    pub exporter: String,
    /// The engines' titles.
    pub engines: Vec<String>,
    /// A word that the image has to have as well.
    pub image: Option<String>,
    /// Words of names that tell the engine.
    pub words: Vec<String>,
    /// Requests that wait.
    pub queue: Vec<Candidate>,
    /// Use of the KV cache.
    pub cache: Vec<Candidate>,
    /// Requests that run, for engines that do not export the use of their cache.
    pub batch: Vec<Candidate>,
    /// The flag without which the engine exports nothing.
    pub switch: Option<String>,
    /// It is measured in front of the engine.
    pub gateway: bool,
    /// Where this was read.
    pub source: String,
    /// When it was last checked against the source.
    pub checked: String,
}

/// A metric to scale on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its name.
    pub metric: String,
    /// The version of the engine that first had it; none where all have.
    pub since: Option<String>,
    /// Labels that select the series that is meant.
    #[serde(default)]
    pub select: BTreeMap<String, String>,
    /// What AIBrix calls it.
    pub aibrix: Option<String>,
}

/// A version as its numbers; what is not one is none.
pub fn version(text: &str) -> Option<Vec<u32>> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let numbers: Vec<u32> = text
        .split('.')
        .map_while(|part| {
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part.get(..digits)?.parse().ok()
        })
        .collect();
    // One number alone is as likely the start of a hash or of a date.
    (numbers.len() > 1).then_some(numbers)
}

impl Candidate {
    /// The one of several for an engine of a version; a version that is not known is a new one.
    pub fn of<'c>(all: &'c [Self], engine: Option<&[u32]>) -> Option<&'c Self> {
        let reached = |candidate: &&Self| {
            let since = candidate.since.as_deref().and_then(version);
            since
                .zip(engine)
                .is_none_or(|(since, engine)| engine >= since.as_slice())
        };
        all.iter().find(reached).or(all.last())
    }
}

/// The shape of the catalogue file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    metrics: Vec<MetricRow>,
    replacements: Vec<Replacement>,
    scalers: Vec<Scaler>,
}

/// Why a row cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RowError {
    /// A row without names.
    #[error("a metric row names no metric")]
    NoNames,
    /// Neither meaning nor alias.
    #[error("metric {0:?} needs a meaning or an aliasOf")]
    NoMeaning(String),
    /// An alias of something that is not known.
    #[error("metric {0:?} is an alias of {1:?}, which is not in the catalogue")]
    UnknownAlias(String, String),
    /// Too many names, or none, after `{a,b}` is written out.
    #[error("metric {0:?} cannot be written out: check its braces")]
    Pattern(String),
}

/// What the catalogue says of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Known<'a> {
    /// What it means.
    pub meaning: Meaning,
    /// Who exports it; empty for rows of a site.
    pub exporter: &'a str,
}

/// A row with its names taken apart, kept once for all of its names.
#[derive(Clone, Debug)]
struct Entry {
    meaning: Meaning,
    exporter: String,
    when: Vec<(String, String)>,
}

/// Names by spelling, patterns in order.
#[derive(Clone, Debug, Default)]
struct Layer {
    entries: Vec<Entry>,
    plain: HashMap<String, usize>,
    patterns: Vec<(String, usize)>,
    /// The plain names as written, to try a query's regular expressions on.
    probes: Vec<(String, Meaning)>,
}

/// The metrics that are known by name.
#[derive(Clone, Debug, Default)]
pub struct MetricCatalog {
    /// A site's rows: they overrule the shipped ones.
    site: Layer,
    builtin: Layer,
    replacements: Vec<Replacement>,
    scalers: Vec<Scaler>,
}

impl MetricCatalog {
    /// The shipped table.
    pub fn builtin() -> &'static Self {
        // The table is part of the program and a test reads it: it cannot fail here.
        static CATALOG: LazyLock<MetricCatalog> =
            LazyLock::new(|| MetricCatalog::from_yaml(BUILTIN).unwrap_or_default());
        &CATALOG
    }

    /// Reads a table in the form of `policies/catalog/metrics.yaml`.
    ///
    /// # Errors
    /// A message that names the place (YAML) or the metric (rows).
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut builtin = Layer::default();
        for row in &file.metrics {
            builtin.add(row, None).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            site: Layer::default(),
            builtin,
            replacements: file.replacements,
            scalers: file.scalers,
        })
    }

    /// The shipped table with a site's rows in front of it.
    ///
    /// # Errors
    /// The first row that cannot be used, by its position, and why.
    pub fn with_site(rows: &[MetricRow]) -> Result<Self, (usize, RowError)> {
        let mut catalog = Self::builtin().clone();
        let mut site = Layer::default();
        for (index, row) in rows.iter().enumerate() {
            let alias = match (&row.meaning, &row.alias_of) {
                (None, Some(of)) => {
                    let unknown = || {
                        (
                            index,
                            RowError::UnknownAlias(row.names.join(", "), of.clone()),
                        )
                    };
                    Some(
                        catalog
                            .find(&Name::new(of), &[])
                            .ok_or_else(unknown)?
                            .meaning,
                    )
                }
                _ => None,
            };
            site.add(row, alias).map_err(|error| (index, error))?;
        }
        catalog.site = site;
        Ok(catalog)
    }

    /// What the catalogue says of a name, given the labels that select its series.
    pub fn find(&self, name: &Name, labels: &[(String, String)]) -> Option<Known<'_>> {
        self.site
            .find(name, labels)
            .or_else(|| self.builtin.find(name, labels))
    }

    /// What to scale on instead: the first row for where nothing tells the engine, the last for
    /// engines that no row names.
    pub fn replacements(&self) -> &[Replacement] {
        &self.replacements
    }

    /// The scaler that an external trigger's address belongs to.
    pub fn scaler(&self, address: &str) -> Option<&Scaler> {
        let host = address.split_once("://").map_or(address, |(_, rest)| rest);
        let label = host.split(['.', ':', '/']).next().unwrap_or_default();
        let words = Name::new(label);
        self.scalers.iter().find(|scaler| {
            !scaler.address.is_empty()
                && scaler
                    .address
                    .iter()
                    .all(|word| words.words().contains(word))
        })
    }

    /// The names and patterns of names that are known, in lower case, with their meanings.
    pub fn names(&self) -> impl Iterator<Item = (&str, Meaning)> {
        [&self.site, &self.builtin].into_iter().flat_map(|layer| {
            let plain = layer
                .probes
                .iter()
                .map(|(name, meaning)| (&**name, *meaning));
            let patterns = layer.patterns.iter().filter_map(|(pattern, index)| {
                Some((&**pattern, layer.entries.get(*index)?.meaning))
            });
            plain.chain(patterns)
        })
    }

    /// Plain names with their meanings, to try regular expressions on.
    pub fn probes(&self) -> impl Iterator<Item = (&str, Meaning)> {
        self.site
            .probes
            .iter()
            .chain(&self.builtin.probes)
            .map(|(name, meaning)| (name.as_str(), *meaning))
    }
}

impl Layer {
    fn add(&mut self, row: &MetricRow, alias: Option<Meaning>) -> Result<(), RowError> {
        let names = row.names.join(", ");
        if row.names.is_empty() {
            return Err(RowError::NoNames);
        }
        let meaning = row.meaning.or(alias).ok_or(RowError::NoMeaning(names))?;
        let index = self.entries.len();
        self.entries.push(Entry {
            meaning,
            exporter: row.exporter.clone(),
            when: row
                .when
                .iter()
                .map(|(key, value)| (Name::new(key).spelling(), value.clone()))
                .collect(),
        });
        for written in &row.names {
            let all = expand(written).ok_or_else(|| RowError::Pattern(written.clone()))?;
            for name in all {
                if name.contains('*') {
                    self.patterns.push((pattern(&name), index));
                } else {
                    self.plain.entry(Name::new(&name).key()).or_insert(index);
                    // Exporters write upper case, adapters lower it.
                    let lower = name.to_lowercase();
                    if lower != name {
                        self.probes.push((lower, meaning));
                    }
                    self.probes.push((name, meaning));
                }
            }
        }
        Ok(())
    }

    fn find(&self, name: &Name, labels: &[(String, String)]) -> Option<Known<'_>> {
        if self.entries.is_empty() {
            return None;
        }
        for candidate in name.candidates() {
            let index = self.plain.get(&candidate.concat()).copied().or_else(|| {
                let spelling = candidate.join("_");
                self.patterns
                    .iter()
                    .find(|(pattern, _)| glob(pattern.as_bytes(), spelling.as_bytes()))
                    .map(|(_, index)| *index)
            });
            let Some(entry) = index.and_then(|index| self.entries.get(index)) else {
                continue;
            };
            return Some(Known {
                meaning: entry.under(labels),
                exporter: entry.exporter.as_str(),
            });
        }
        None
    }
}

impl Entry {
    /// The meaning, given the labels that are known to select the series.
    fn under(&self, labels: &[(String, String)]) -> Meaning {
        for (key, wanted) in &self.when {
            let given = labels
                .iter()
                .find(|(name, _)| Name::new(name).spelling() == *key);
            match given {
                Some((_, value)) if value.eq_ignore_ascii_case(wanted) => {}
                Some(_) => return Meaning::Host,
                None => return Meaning::Unclear,
            }
        }
        self.meaning
    }
}

/// Lower case, separators unified, `*` kept.
fn pattern(written: &str) -> String {
    let mut out = String::new();
    for piece in written.to_lowercase().split('*') {
        if !out.is_empty() || !piece.is_empty() {
            out.push_str(&separators(piece));
        }
        out.push('*');
    }
    out.pop();
    if written.starts_with('*') && !out.starts_with('*') {
        out.insert(0, '*');
    }
    out
}

/// Every run of separators as one `_`.
fn separators(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

/// Writes `{a,b}` out. None for unbalanced braces and for more than 1,000 names.
fn expand(written: &str) -> Option<Vec<String>> {
    let mut done = Vec::new();
    let mut open = vec![written.to_owned()];
    while let Some(text) = open.pop() {
        let Some((before, rest)) = text.split_once('{') else {
            if text.contains('}') || text.trim().is_empty() {
                return None;
            }
            done.push(text);
            continue;
        };
        let (choices, after) = rest.split_once('}')?;
        // From the back, so that names come out in the order in which they are written.
        open.extend(
            choices
                .split(',')
                .rev()
                .map(|choice| format!("{before}{choice}{after}")),
        );
        if done.len() + open.len() > 1_000 {
            return None;
        }
    }
    Some(done)
}

/// Whether `text` matches a pattern in which `*` stands for any text.
fn glob(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // The place to go back to when what followed the last star did not fit.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                again = Some((rest, text));
                pattern = rest;
            }
            (Some((want, rest)), Some((have, more))) if want == have => {
                pattern = rest;
                text = more;
            }
            (None, None) => return true,
            _ => {
                let Some((rest, from)) = again else {
                    return false;
                };
                let Some((_, more)) = from.split_first() else {
                    return false;
                };
                again = Some((rest, more));
                pattern = rest;
                text = more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        facts::Facts, finding::Verdict, policy::Policy, review::review, signal::classify,
        subject::Subject,
    };

    fn rows() -> Vec<MetricRow> {
        serde_saphyr::from_str::<File>(BUILTIN).unwrap().metrics
    }

    #[test]
    fn the_shipped_table_reads() {
        let catalog = MetricCatalog::from_yaml(BUILTIN).unwrap();
        assert!(catalog.builtin.entries.len() > 100);
    }

    #[test]
    fn every_row_says_where_it_was_read_and_when() {
        for row in rows() {
            assert!(
                !row.source.is_empty() && !row.exporter.is_empty(),
                "{:?}",
                row.names
            );
            assert_eq!(row.checked.len(), "2026-11".len(), "{:?}", row.names);
        }
    }

    #[test]
    fn every_replacement_is_a_good_signal_of_an_engine_that_is_known() {
        let catalog = MetricCatalog::builtin();
        let titles: Vec<&str> = crate::catalog::engines::Engines::builtin()
            .engines
            .iter()
            .map(|engine| engine.title.as_str())
            .collect();
        for row in catalog.replacements() {
            assert!(!row.source.is_empty() && !row.queue.is_empty(), "{row:?}");
            assert_eq!(row.checked.len(), "2026-11".len(), "{row:?}");
            for engine in &row.engines {
                assert!(titles.contains(&engine.as_str()), "{engine}");
            }
            for candidate in row.queue.iter().chain(&row.cache).chain(&row.batch) {
                for name in [&candidate.metric].into_iter().chain(&candidate.aibrix) {
                    let signal = classify(catalog, name, &[]);
                    assert_eq!(signal.class, Class::Serving, "{name}");
                }
                if let Some(since) = &candidate.since {
                    assert!(version(since).is_some(), "{since}");
                }
            }
        }
        let first = catalog.replacements().first().unwrap();
        assert_eq!(first.exporter, "vLLM");
        assert!(catalog.replacements().last().unwrap().gateway);
    }

    #[test]
    fn versions_are_told_from_other_words_of_a_tag() {
        for (text, numbers) in [
            ("v0.9.2", Some(vec![0, 9, 2])),
            ("0.8.5.post1", Some(vec![0, 8, 5])),
            ("26.02", Some(vec![26, 2])),
            ("0.11.0rc3", Some(vec![0, 11, 0])),
            ("latest", None),
            ("0b51c3", None),
            ("20250601", None),
            ("", None),
        ] {
            assert_eq!(version(text), numbers, "{text}");
        }
    }

    /// The ways in which the same metric is written by adapters, clouds and rules.
    fn spellings(name: &str) -> Vec<String> {
        let snake = name.replace([':', '.', '/', '|'], "_");
        let mut all = vec![
            name.to_owned(),
            name.to_lowercase(),
            name.replace('/', "|"),
            snake.clone(),
            snake.replace('_', "-"),
            format!("prometheus.googleapis.com|{name}|gauge"),
            format!("prometheus.googleapis.com/{name}/unknown"),
            format!("prometheus_googleapis_com:{snake}"),
            format!("{snake}_avg"),
        ];
        // Collectors put their mark on names of their own, not on those of a cloud.
        if !name.contains('/') {
            all.extend([format!("ray_{snake}"), format!("vertex_{snake}")]);
        }
        all
    }

    #[test]
    fn every_name_keeps_its_class_in_every_spelling() {
        let catalog = MetricCatalog::builtin();
        for row in rows() {
            let meaning = row.meaning.unwrap();
            let labels: Vec<_> = row.when.clone().into_iter().collect();
            for name in row.names.iter().flat_map(|name| expand(name).unwrap()) {
                let name = name.replace('*', "7");
                for spelling in spellings(&name) {
                    let known = catalog.find(&Name::new(&spelling), &labels);
                    let found = known.map(|known| known.meaning.class());
                    assert_eq!(found, Some(meaning.class()), "{name} as {spelling}");
                }
            }
        }
    }

    /// What an autoscaler on a metric gets, as the metric of an HPA and in the query of a trigger.
    fn verdicts(policy: &Policy, name: &str, labels: &[(String, String)]) -> Vec<Verdict> {
        let selector: serde_json::Map<String, Value> = labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let hpa = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "x"}, "spec": {"minReplicas": 1, "metrics": [{
                "type": "External", "external": {"metric": {
                    "name": name, "selector": {"matchLabels": selector}}}}]}});
        let matchers = labels.iter().fold(String::new(), |matchers, (key, value)| {
            matchers + "," + &key.replace('.', "_") + "=\"" + value + "\""
        });
        let query = format!("sum({{\"__name__\"=\"{name}\"{matchers}}})");
        let trigger = json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
            "metadata": {"name": "x"}, "spec": {"minReplicaCount": 1, "triggers": [{
                "type": "prometheus", "metadata": {"query": query, "threshold": "5"}}]}});
        [hpa, trigger]
            .into_iter()
            .map(|object| {
                let subject = Subject::from_manifest(Arc::new(object)).unwrap();
                let now = jiff::Timestamp::UNIX_EPOCH;
                review(policy, &Facts::unknown(), &subject, now).verdict()
            })
            .collect()
    }

    #[test]
    fn every_deny_row_denies_and_every_allow_row_allows_in_every_spelling() {
        let policy = Policy::default();
        let mut wrong = Vec::new();
        let (mut denied, mut allowed) = (0, 0);
        for row in rows() {
            let meaning = row.meaning.unwrap();
            let expected = match meaning.class() {
                class if class.is_device_load() => Verdict::Deny,
                Class::DeviceOther | Class::Opaque => Verdict::Warn,
                _ => Verdict::Allow,
            };
            let labels: Vec<_> = row.when.clone().into_iter().collect();
            for name in row.names.iter().flat_map(|name| expand(name).unwrap()) {
                let name = name.replace('*', "7");
                let all = spellings(&name);
                assert!(all.len() >= 3);
                for spelling in all {
                    let found = verdicts(&policy, &spelling, &labels);
                    denied += usize::from(expected == Verdict::Deny);
                    allowed += usize::from(expected == Verdict::Allow);
                    if found.iter().any(|found| *found != expected) {
                        wrong.push(format!("{spelling}: {found:?}, not {expected:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
        assert!(denied > 1_000 && allowed > 500, "{denied} {allowed}");
    }

    #[test]
    fn a_name_that_stands_under_two_meanings_is_a_mistake() {
        let mut seen = HashMap::new();
        for row in rows() {
            for name in row.names.iter().flat_map(|name| expand(name).unwrap()) {
                let key = Name::new(&name).key();
                let meaning = row.meaning.unwrap();
                let before = *seen.entry(key).or_insert(meaning);
                assert_eq!(before.class(), meaning.class(), "{name}");
            }
        }
    }

    #[test]
    fn a_row_with_a_label_needs_the_label() {
        let catalog = MetricCatalog::builtin();
        let name = Name::new("nv_trt_llm_runtime_memory_metrics");
        let of = |value: &str| vec![("memory_type".to_owned(), value.to_owned())];
        let meaning = |labels: &[_]| catalog.find(&name, labels).unwrap().meaning;
        assert_eq!(meaning(&of("gpu")), Meaning::Memory);
        assert_eq!(meaning(&of("pinned")), Meaning::Host);
        assert_eq!(meaning(&[]), Meaning::Unclear);
    }

    #[test]
    fn a_site_gives_its_own_names_a_meaning() {
        let row = |names: &[&str]| MetricRow {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            ..MetricRow::default()
        };
        let memory = MetricRow {
            meaning: Some(Meaning::Memory),
            ..row(&["memory_used_percentage"])
        };
        let alias = MetricRow {
            alias_of: Some("dcgm_fi_dev_gpu_util".into()),
            ..row(&["site:load:*"])
        };
        let queue = MetricRow {
            meaning: Some(Meaning::QueueDepth),
            ..row(&["gpu_util_score"])
        };
        let catalog = MetricCatalog::with_site(&[memory, alias, queue]).unwrap();
        let class = |name: &str| classify(&catalog, name, &[]).class;
        assert_eq!(
            class("external.googleapis.com|memory_used_percentage|gauge"),
            Class::Memory
        );
        assert_eq!(class("site:load:5m"), Class::Utilization);
        assert_eq!(
            class("gpu_util_score"),
            Class::Serving,
            "a site overrules the words"
        );
        assert_eq!(
            class("DCGM_FI_DEV_FB_USED"),
            Class::Memory,
            "the shipped rows still stand"
        );
    }

    #[test]
    fn rows_that_say_nothing_are_refused() {
        let refuse = |row: MetricRow| MetricCatalog::with_site(&[row]).unwrap_err().1;
        assert_eq!(refuse(MetricRow::default()), RowError::NoNames);
        let named = || MetricRow {
            names: vec!["x".into()],
            ..MetricRow::default()
        };
        assert_eq!(refuse(named()), RowError::NoMeaning("x".into()));
        let alias = MetricRow {
            alias_of: Some("y".into()),
            ..named()
        };
        assert_eq!(
            refuse(alias),
            RowError::UnknownAlias("x".into(), "y".into())
        );
        let brace = MetricRow {
            names: vec!["x{a".into()],
            meaning: Some(Meaning::Memory),
            ..MetricRow::default()
        };
        assert_eq!(refuse(brace), RowError::Pattern("x{a".into()));
    }

    #[test]
    fn globs() {
        let is = |pattern: &str, text: &str| glob(pattern.as_bytes(), text.as_bytes());
        assert!(is("a*c", "abc") && is("a*c", "ac") && is("*", "") && is("a*b*c", "axxbxbxc"));
        assert!(!is("a*c", "abd") && !is("a", "ab") && !is("*b", "ba"));
    }

    #[test]
    fn braces_are_written_out_in_order() {
        assert_eq!(
            expand("a{b,c}d{e,}").unwrap(),
            ["abde", "abd", "acde", "acd"]
        );
        assert_eq!(expand("a}").as_deref(), None);
    }
}
