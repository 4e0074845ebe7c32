//! Which machines a NodePool may buy, and whether they hold accelerators: only, perhaps, or not.
//!
//! Judged by Karpenter's own requirement algebra over the table of instance types. Names of pools
//! and node classes are never evidence.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    rc::Rc,
};

use super::{
    node_pool::{NodePool, REQUIREMENTS, Row},
    requirement::{Allowed, Operator, Requirements},
};
use crate::{
    budget::Budget,
    catalog::instances::{Device, InstanceCatalog, Level, Machine, Meaning, PRESENT, Provider},
    finding::FieldPath,
};

/// Steps that a row of requirements takes, beside its values: every rule about pools reads it.
const ROW: usize = 600;
/// Steps that a value takes, beside its bytes and the look at the table.
const VALUE: usize = 300;
/// Steps that it takes to compare a machine with one requirement.
const MACHINE: usize = 60;

/// How many values of one requirement are shown.
const SHOWN: usize = 5;

/// Whether a pool's machines hold accelerators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// All of them.
    GpuOnly,
    /// Some may.
    GpuCapable,
    /// None.
    NonGpu,
}

/// What is known of the machines that a pool may buy.
#[derive(Clone, Debug)]
pub struct Judgement<'c> {
    /// Whether they hold accelerators.
    pub state: State,
    /// What that follows from, for people.
    pub evidence: String,
    /// Whether something it follows from is only very probable: a taint that declares GPUs, or
    /// values of which only some are known.
    pub presumed: bool,
    /// The sorts of machines with accelerators that remain.
    pub machines: Vec<Machine<'c>>,
    /// Whose accelerators those are, by the table's ids.
    pub vendors: BTreeSet<String>,
    /// Whether the cloud's node classes can taint GPU nodes by themselves.
    pub taints_itself: bool,
}

impl Judgement<'_> {
    /// The one resource name under which pods ask for the accelerators; none where there may be
    /// several.
    pub fn resource<'c>(&self, catalog: &'c InstanceCatalog) -> Option<&'c str> {
        let mut vendors = self.vendors.iter();
        match (vendors.next(), vendors.next()) {
            (Some(vendor), None) => catalog
                .vendor(vendor)
                .map(|vendor| vendor.resource.as_str()),
            _ => None,
        }
    }

    /// The resource names under which pods may ask for the accelerators.
    pub fn resources<'c>(&self, catalog: &'c InstanceCatalog) -> Vec<&'c str> {
        self.vendors
            .iter()
            .filter_map(|vendor| {
                catalog
                    .vendor(vendor)
                    .map(|vendor| vendor.resource.as_str())
            })
            .collect()
    }
}

/// Judges a pool; none where that takes more than the budget holds.
pub fn judge<'c>(
    pool: &NodePool<'_>,
    catalog: &'c InstanceCatalog,
    budget: &Budget,
) -> Option<Judgement<'c>> {
    let cloud = pool
        .node_class_group()
        .and_then(|group| catalog.provider(group));
    // Where the node class does not tell the cloud, it may be any that has accelerators.
    let clouds: Vec<&Provider> = match cloud {
        Some(cloud) => vec![cloud],
        None => catalog
            .providers()
            .iter()
            .filter(|one| !one.without_devices)
            .collect(),
    };
    let names = Names {
        clouds: &clouds,
        budget,
        found: RefCell::default(),
    };
    let asked = Asked::of(pool, catalog, &names)?;
    let mut machines = asked.source(&names);
    budget.spend(MACHINE * machines.len() * (1 + asked.limits.len()));
    if budget.is_spent() {
        return None;
    }
    machines.retain(|machine| asked.allows(machine, catalog));
    let none_of: BTreeSet<&String> = pool
        .limits()
        .filter(|(_, limit)| limit.is_zero_or_less())
        .filter_map(|(name, _)| catalog.resource(name))
        .filter(|resource| resource.whole)
        .map(|resource| &resource.vendor)
        .collect();
    machines.retain(|machine| {
        machine.holds_a_share() || !machine.vendor().is_some_and(|held| none_of.contains(held))
    });
    let plain = machines
        .iter()
        .any(|machine| machine.device() == Device::Cpu);
    machines.retain(|machine| machine.device() != Device::Cpu);
    let mut vendors: BTreeSet<String> = machines
        .iter()
        .filter_map(|machine| machine.vendor().cloned())
        .collect();
    let mut evidence = asked.evidence;
    let mut presumed = asked.partly_known;
    let never_offered = cloud
        .filter(|_| plain && !machines.is_empty())
        .and_then(|cloud| cloud.offered_with_taint(pool.node_class_group()?))
        .filter(|keys| {
            !pool.taints().any(|taint| {
                taint.effect == "NoSchedule" && keys.iter().any(|key| key == taint.key)
            })
        });
    if let Some(keys) = never_offered {
        // A pool of GPU types only buys nothing that way, but says what it is for.
        machines.clear();
        evidence.push(format!(
            "no taint {}, without which it gets no GPU node",
            keys.join(" or ")
        ));
    }
    let state = if machines.is_empty() {
        State::NonGpu
    } else if !plain {
        State::GpuOnly
    } else if let Some((vendor, declaration)) = declared(pool, catalog, &vendors) {
        evidence.push(declaration);
        presumed = true;
        vendors = BTreeSet::from([vendor]);
        machines.retain(|machine| machine.vendor().is_some_and(|held| vendors.contains(held)));
        State::GpuOnly
    } else {
        State::GpuCapable
    };
    if state == State::GpuOnly && vendors.len() > 1 {
        // What the pool counts or declares tells which of the vendors is meant.
        let meant: BTreeSet<String> = pool
            .limits()
            .filter(|(_, limit)| !limit.is_zero_or_less())
            .map(|(name, _)| name)
            .chain(pool.taints().map(|taint| taint.key))
            .filter_map(|name| catalog.resource(name))
            .map(|resource| resource.vendor.clone())
            .filter(|vendor| vendors.contains(vendor))
            .collect();
        if meant.len() == 1 {
            vendors = meant;
        }
    }
    if cloud.is_some_and(|cloud| cloud.without_devices) {
        evidence.push("a cloud without accelerators".to_owned());
    }
    Some(Judgement {
        state,
        evidence: if evidence.is_empty() {
            "no requirement decides".to_owned()
        } else {
            evidence.join("; ")
        },
        presumed,
        machines,
        vendors,
        taints_itself: cloud.is_some_and(|cloud| cloud.taints_itself),
    })
}

/// The machines that one name stands for.
type Machines<'c> = Rc<Vec<Machine<'c>>>;

/// The machines that names stand for, each looked up once.
struct Names<'n, 'c> {
    clouds: &'n [&'c Provider],
    budget: &'n Budget,
    found: RefCell<BTreeMap<(u8, String), Machines<'c>>>,
}

impl<'c> Names<'_, 'c> {
    fn named(&self, level: Level, name: &str) -> Machines<'c> {
        // Whatever is made of it then is not used.
        if self.budget.is_spent() {
            return Rc::default();
        }
        let key = (level as u8, name.to_owned());
        let mut found = self.found.borrow_mut();
        let machines = found.entry(key).or_insert_with(|| {
            let mut machines = Vec::new();
            for cloud in self.clouds {
                self.budget.spend(cloud.steps(name.len()));
                machines.extend(cloud.machines_named(level, name));
            }
            Rc::new(machines)
        });
        Rc::clone(machines)
    }
}

/// Whether the pool says itself that its nodes are for accelerators: the vendor and the words.
fn declared(
    pool: &NodePool<'_>,
    catalog: &InstanceCatalog,
    possible: &BTreeSet<String>,
) -> Option<(String, String)> {
    let by_taint = pool
        .taints()
        .filter(super::node_pool::Taint::is_hard)
        .find_map(|taint| {
            let resource = catalog
                .resource(taint.key)
                .filter(|resource| resource.whole)?;
            Some((resource.vendor.clone(), format!("taint {}", taint.key)))
        });
    let says_true = |row: &Row<'_>| row.key == PRESENT && row.allowed.has("true");
    let by_label = || {
        let label = pool
            .template_labels()
            .any(|(key, value)| key == PRESENT && value == "true")
            || pool
                .requirements()
                .any(|row| row.operator == Operator::In && says_true(&row));
        label.then(|| ("nvidia".to_owned(), format!("label {PRESENT}")))
    };
    by_taint
        .or_else(by_label)
        .filter(|(vendor, _)| possible.contains(vendor))
}

/// What is allowed of one label.
struct Limit {
    means: Meaning,
    allowed: Allowed,
    /// Whose devices the listed values name; none where nothing is listed, or something that may be
    /// anybody's.
    vendors: Option<BTreeSet<String>>,
    has_positive: bool,
}

impl Limit {
    fn new(means: Meaning, allowed: &Allowed, catalog: &InstanceCatalog) -> Self {
        let named = matches!(means, Meaning::GpuName | Meaning::GpuManufacturer);
        let mut vendors = None;
        for value in allowed.listed().filter(|_| named).into_iter().flatten() {
            let all = catalog.vendors_named(means, value);
            if all.is_empty() {
                vendors = None;
                break;
            }
            vendors.get_or_insert_with(BTreeSet::new).extend(all);
        }
        Self {
            means,
            has_positive: allowed.has_positive(),
            allowed: allowed.clone(),
            vendors,
        }
    }
}

/// What the pool asks of its machines.
struct Asked {
    limits: Vec<Limit>,
    /// Vendors and kinds of the machines that the values of a series label name.
    series: Vec<BTreeSet<(Device, Option<String>)>>,
    evidence: Vec<String>,
    partly_known: bool,
}

impl Asked {
    /// None where that takes more than the budget holds.
    fn of(pool: &NodePool<'_>, catalog: &InstanceCatalog, names: &Names<'_, '_>) -> Option<Self> {
        let (clouds, budget) = (names.clouds, names.budget);
        let mut asked = Self {
            limits: Vec::new(),
            series: Vec::new(),
            evidence: Vec::new(),
            partly_known: false,
        };
        let mut combined = Requirements::default();
        let meaning = |key: &str| {
            let carried = clouds.iter().any(|cloud| catalog.is_label_of(key, cloud));
            catalog.meaning(key).filter(|_| carried)
        };
        let requirements = FieldPath::of(REQUIREMENTS);
        for row in pool.requirements() {
            let index = row.index;
            let field = || requirements.clone().index(index).key("values");
            budget.on(field, || {
                let bytes: usize = row.values.iter().map(String::len).sum();
                budget.spend(ROW + VALUE * row.values.len() + bytes);
                if budget.is_spent() {
                    return;
                }
                let key = catalog.normalized(row.key);
                if let Some(means) = meaning(key) {
                    asked.note(means, &row, names);
                    let allowed = if catalog.has_capitals(key) {
                        let lower: Vec<String> = row
                            .values
                            .iter()
                            .map(|value| value.to_lowercase())
                            .collect();
                        Allowed::new(row.operator, &lower).unwrap_or(row.allowed)
                    } else {
                        row.allowed
                    };
                    combined.add(key, allowed, budget);
                }
            });
            if budget.is_spent() {
                return None;
            }
        }
        for (label, value) in pool.template_labels() {
            let key = catalog.normalized(label);
            let values = [value.to_owned()];
            if let Some(means) = meaning(key)
                && let Some(allowed) = Allowed::new(Operator::In, &values)
            {
                let row = Row {
                    index: 0,
                    key: label,
                    operator: Operator::In,
                    values: values.to_vec(),
                    allowed: allowed.clone(),
                };
                asked.note(means, &row, names);
                combined.add(key, allowed, budget);
            }
        }
        for (name, limit) in pool.limits() {
            if limit.is_zero_or_less() && catalog.resource(name).is_some() {
                asked.evidence.push(format!("limits {name} {limit}"));
            }
        }
        for (key, allowed) in combined.iter() {
            let Some(means) = catalog.meaning(key) else {
                continue;
            };
            let Some(level) = level_of(means) else {
                asked.limits.push(Limit::new(means, allowed, catalog));
                continue;
            };
            let Some(values) = allowed.listed().filter(|values| !values.is_empty()) else {
                asked.limits.push(Limit::new(means, allowed, catalog));
                continue;
            };
            let known: Vec<&String> = values
                .iter()
                .filter(|value| !names.named(level, value).is_empty())
                .collect();
            if budget.is_spent() {
                return None;
            }
            // Values that no cloud is known to have buy nothing; where none is known, that says
            // nothing of the pool.
            asked.partly_known |= known.len() < values.len();
            if known.is_empty() {
                continue;
            }
            if means == Meaning::Series {
                let kinds = known
                    .iter()
                    .flat_map(|value| names.named(level, value).to_vec())
                    .map(|one| (one.device(), one.vendor().cloned()))
                    .collect();
                asked.series.push(kinds);
            } else {
                asked.limits.push(Limit::new(means, allowed, catalog));
            }
        }
        Some(asked)
    }

    /// Takes down what a requirement contributes, for people.
    fn note(&mut self, means: Meaning, row: &Row<'_>, names: &Names<'_, '_>) {
        if means == Meaning::Generation {
            return;
        }
        let name = row.key.rsplit('/').next().unwrap_or(row.key);
        let mut text = format!("{name} {}", row.operator.as_str());
        for (position, value) in row.values.iter().take(SHOWN).enumerate() {
            let _ = write!(text, "{} {value}", if position == 0 { "" } else { "," });
        }
        if row.values.len() > SHOWN {
            let _ = write!(text, " and {} more", row.values.len() - SHOWN);
        }
        if let Some(level) = level_of(means)
            && row.operator == Operator::In
        {
            let kinds: BTreeSet<Device> = row
                .values
                .iter()
                .flat_map(|value| {
                    let machines = names.named(level, value);
                    let kinds: BTreeSet<Device> = machines.iter().map(Machine::device).collect();
                    kinds
                })
                .collect();
            let kinds: Vec<&str> = kinds
                .into_iter()
                .map(|kind| match kind {
                    Device::Gpu => "GPU",
                    Device::Accelerator => "accelerator",
                    Device::Cpu => "CPU",
                })
                .collect();
            let kinds = if kinds.is_empty() {
                "unknown".to_owned()
            } else {
                kinds.join(" and ")
            };
            let _ = write!(text, " ({kinds})");
        }
        self.evidence.push(text);
    }

    /// The machines to choose from: those that the most particular list names, else all there are.
    fn source<'c>(&self, names: &Names<'_, 'c>) -> Vec<Machine<'c>> {
        for wanted in [Meaning::Type, Meaning::Family, Meaning::Category] {
            let list = self
                .limits
                .iter()
                .filter(|limit| limit.means == wanted)
                .find_map(|limit| limit.allowed.listed());
            if let (Some(values), Some(level)) = (list, level_of(wanted)) {
                return values
                    .iter()
                    .flat_map(|value| names.named(level, value).to_vec())
                    .collect();
            }
        }
        names
            .clouds
            .iter()
            .flat_map(|cloud| cloud.all_machines())
            .collect()
    }

    fn allows(&self, machine: &Machine<'_>, catalog: &InstanceCatalog) -> bool {
        let kind = (machine.device(), machine.vendor().cloned());
        self.series.iter().all(|kinds| kinds.contains(&kind))
            && self
                .limits
                .iter()
                .all(|limit| passes(limit, machine, catalog))
    }
}

fn level_of(means: Meaning) -> Option<Level> {
    match means {
        Meaning::Type => Some(Level::Type),
        Meaning::Family | Meaning::Series => Some(Level::Family),
        Meaning::Category => Some(Level::Category),
        _ => None,
    }
}

/// Whether a machine passes what is allowed of one label.
fn passes(limit: &Limit, machine: &Machine<'_>, catalog: &InstanceCatalog) -> bool {
    let Limit { means, allowed, .. } = limit;
    let means = *means;
    // A label that every machine has; what is not known of it may be anything.
    let part = |part: &Option<String>| {
        part.as_deref()
            .map_or_else(|| allowed.has_some(), |value| allowed.has(value))
    };
    let gpu = machine.device() == Device::Gpu;
    match means {
        Meaning::Type => part(&machine.type_name),
        Meaning::Family => part(&machine.family),
        Meaning::Category => part(&machine.category),
        Meaning::Generation => part(&machine.generation),
        Meaning::Series => true,
        Meaning::Gpu if gpu => allowed.has_some(),
        Meaning::GpuName | Meaning::GpuManufacturer if gpu => match allowed.listed() {
            Some(values) => {
                !values.is_empty()
                    && limit.vendors.as_ref().is_none_or(|vendors| {
                        machine
                            .vendor()
                            .is_some_and(|vendor| vendors.contains(vendor))
                    })
            }
            None => machine
                .vendor()
                .and_then(|vendor| catalog.vendor(vendor))
                .is_none_or(|vendor| {
                    means == Meaning::GpuName || vendor.has_manufacturer(|name| allowed.has(name))
                }),
        },
        Meaning::GpuCountOrZero => {
            if gpu {
                limit.has_positive
            } else {
                allowed.has("0")
            }
        }
        Meaning::Accelerator if machine.device() == Device::Accelerator => allowed.has_some(),
        Meaning::Gpu | Meaning::GpuName | Meaning::GpuManufacturer | Meaning::Accelerator => {
            allowed.has_absence()
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "documents read best where they are used"
)]
mod tests;
