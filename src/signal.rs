//! What an autoscaler's metric names and queries read: the judgement that the signal rules share.

use std::{cell::RefCell, collections::BTreeMap, fmt};

mod advice;
mod dialect;
mod name;
mod promql;
mod sources;
pub(crate) mod vocabulary;
mod work;

pub(crate) use advice::{Advice, Role};
pub use dialect::Dialect;
pub use name::Name;
pub(crate) use name::words;
pub(crate) use sources::report;
pub use sources::{Shape, Source, sources};

use crate::{
    budget::Budget,
    catalog::metrics::{Meaning, MetricCatalog},
};
use work::{LONGEST_NAME, LONGEST_QUERY};

/// What a signal is, as far as the rules tell signals apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// How busy an accelerator is.
    Utilization,
    /// Memory of an accelerator, or its bandwidth.
    Memory,
    /// Power, temperature and clocks of an accelerator: they follow its utilization.
    PowerThermal,
    /// Something else of a device: faults, sizes, links.
    DeviceOther,
    /// What is read cannot be told.
    Opaque,
    /// CPU or memory of the host.
    Host,
    /// What a model server or a queue says of demand.
    Serving,
    /// None of these.
    Neutral,
}

impl Class {
    /// Whether a signal of this class is wrong whatever it is used for.
    pub const fn is_device_load(self) -> bool {
        matches!(self, Self::Utilization | Self::Memory | Self::PowerThermal)
    }
}

/// What keeps a device signal from being denied outright, or from being told with certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The query only counts the series; their values do not matter.
    Counted,
    /// The scaling formula does not use the trigger.
    Inert,
    /// The name is a column, a tag or a word of a search: it only looks like the metric.
    Loose,
    /// The query could not be parsed; the name stands in it all the same.
    Unparsed,
}

impl Doubt {
    /// Whether it is enough to warn instead of denying.
    pub const fn spares(self) -> bool {
        !matches!(self, Self::Unparsed)
    }
}

/// One series that a metric source reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// What it is.
    pub class: Class,
    /// What it measures, where that is known.
    pub meaning: Option<Meaning>,
    /// The name, as it is written.
    pub name: String,
    /// The same for every spelling of the name.
    pub identity: String,
    /// Whose metric the catalogue says it is; empty where the words of the name decided.
    pub exporter: String,
    /// What keeps it from being denied.
    pub doubt: Option<Doubt>,
}

impl Signal {
    fn new(name: &str, identity: String, meaning: Option<Meaning>, exporter: &str) -> Self {
        Self {
            class: meaning.map_or(Class::Neutral, Meaning::class),
            meaning,
            name: name.to_owned(),
            identity,
            exporter: exporter.to_owned(),
            doubt: None,
        }
    }

    /// Something of which it cannot be told what it reads.
    pub fn opaque(written: &str) -> Self {
        // Cut first: to trim is to read.
        let written = head(head(written, LONGEST_QUERY).trim(), LONGEST_NAME);
        let identity = written.split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            class: Class::Opaque,
            ..Self::new(written, identity, None, "")
        }
    }

    /// Whether it is to be denied.
    pub fn is_refused(&self) -> bool {
        self.class.is_device_load() && !self.doubt.is_some_and(Doubt::spares)
    }

    fn doubted(mut self, doubt: Option<Doubt>) -> Self {
        self.doubt = doubt;
        self
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a metric name means. `labels` are those that are known to select its series.
pub fn classify(catalog: &MetricCatalog, written: &str, labels: &[(String, String)]) -> Signal {
    Reader::new(catalog, &Budget::default()).name(written, labels)
}

/// What a PromQL query reads, each series once.
pub fn classify_promql(catalog: &MetricCatalog, query: &str) -> Vec<Signal> {
    classify_query(catalog, Dialect::PromQl, query)
}

/// What a query in any language reads, each series once.
pub fn classify_query(catalog: &MetricCatalog, dialect: Dialect, query: &str) -> Vec<Signal> {
    Reader::new(catalog, &Budget::default()).query(dialect, query)
}

/// Reads the names and queries of one object.
#[derive(Debug)]
struct Reader<'a> {
    catalog: &'a MetricCatalog,
    budget: &'a Budget,
    /// What patterns over metric names have been found to select, by their text.
    patterns: RefCell<BTreeMap<String, promql::Selected<'a>>>,
}

impl<'a> Reader<'a> {
    const fn new(catalog: &'a MetricCatalog, budget: &'a Budget) -> Self {
        Self {
            catalog,
            budget,
            patterns: RefCell::new(BTreeMap::new()),
        }
    }

    /// What a metric name means. `labels` are those that are known to select its series.
    fn name(&self, written: &str, labels: &[(String, String)]) -> Signal {
        let cut = head(written, LONGEST_QUERY);
        let whole = cut.trim();
        let written = head(whole, LONGEST_NAME);
        // Its letters are read for words, for the catalogue, and for what the words mean.
        self.budget.spend(64 + 8 * written.len());
        let name = Name::read(written, self.budget);
        let (meaning, exporter) = match self.catalog.find(&name, labels) {
            Some(known) => (Some(known.meaning), known.exporter),
            None => (vocabulary::meaning(name.words()), ""),
        };
        // What one half of a name says already, the half that is missing cannot unsay.
        let half = written.len() < whole.len() || name.has_placeholder() && exporter.is_empty();
        if half && !meaning.is_some_and(|meaning| meaning.class().is_device_load()) {
            return Signal::opaque(written);
        }
        Signal::new(written, name.spelling(), meaning, exporter)
    }

    /// What a query in any language reads, each series once.
    fn query(&self, dialect: Dialect, query: &str) -> Vec<Signal> {
        let read = head(query, LONGEST_QUERY);
        let cut = read.len() < query.len();
        let mut signals: Vec<Signal> = match dialect {
            Dialect::PromQl => promql::series(read, cut, self.budget)
                .iter()
                .map(|series| series.classify(self))
                .collect(),
            other => dialect::classify(self, other, read),
        };
        if cut && dialect != Dialect::Name {
            signals.push(Signal::opaque(query));
        }
        merge(signals)
    }

    /// The signal of a text that is a name of the catalogue and nothing else.
    fn exact(&self, text: &str) -> Option<Signal> {
        let text = text.trim();
        let is_name =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '/' | '-');
        if text.len() > LONGEST_NAME || !text.chars().all(is_name) {
            return None;
        }
        // Nearly none is, and what its words mean is read only then.
        self.budget.spend(64 + 8 * text.len());
        let found = self.catalog.find(&Name::read(text, self.budget), &[])?;
        (!found.exporter.is_empty()).then(|| self.name(text, &[]))
    }
}

/// The start of a text: as many bytes as given, or a few less.
fn head(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

/// One signal for each name and class: the one with the least doubt.
fn merge(signals: Vec<Signal>) -> Vec<Signal> {
    let mut out: Vec<Signal> = Vec::with_capacity(signals.len().min(16));
    for signal in signals {
        let same = out
            .iter_mut()
            .find(|known| known.identity == signal.identity && known.class == signal.class);
        match same {
            Some(known) => {
                if known.doubt.is_some_and(Doubt::spares) {
                    known.doubt = signal.doubt;
                }
            }
            None => out.push(signal),
        }
    }
    out
}
