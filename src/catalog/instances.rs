//! What instance types hold, which node labels speak of it, and how accelerators are called as
//! resources: `policies/catalog/instances.yaml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    finding::FieldPath,
    policy::{PolicyError, from_value},
};

mod names;

pub use names::PRESENT;

/// The embedded table.
pub const BUILTIN: &str = include_str!("../../policies/catalog/instances.yaml");

/// What a machine holds besides processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// Graphics processors, and what its cloud lists among them.
    Gpu,
    /// Another accelerator of models: Neuron, TPU, Cloud AI.
    Accelerator,
    /// Nothing that serves models.
    Cpu,
}

/// What a node label says of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Meaning {
    /// The instance type.
    Type,
    /// The family that the type belongs to.
    Family,
    /// A finer name than the family, which a type's name does not spell out.
    Series,
    /// The category that the family belongs to.
    Category,
    /// The family's generation, a number.
    Generation,
    /// Something about GPUs; absent without them.
    Gpu,
    /// The GPU's model; absent without GPUs.
    GpuName,
    /// The GPU's maker; absent without GPUs.
    GpuManufacturer,
    /// The number of GPUs, also where it is 0.
    GpuCountOrZero,
    /// Something about another accelerator; absent without one.
    Accelerator,
}

/// How a provider's type names are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    /// `g5.xlarge`: family `g5`, category `g`, generation 5.
    Aws,
    /// `Standard_NC24ads_A100_v4`: family `N`.
    Azure,
    /// `a2-highgpu-1g`: family `a2`, category `a`.
    Gcp,
    /// `ecs.gn7i-c8g1.2xlarge`: family `ecs.gn7i-c8g1`, category `gn`, generation 7.
    Alibaba,
    /// Nothing to be read from them.
    Plain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    resources: Vec<ResourceRow>,
    vendors: Vec<VendorRow>,
    labels: Vec<LabelRow>,
    providers: Vec<ProviderRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceRow {
    name: String,
    vendor: String,
    whole: bool,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "checked")]
    _checked: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VendorRow {
    id: String,
    resource: String,
    manufacturers: Vec<String>,
    models: Vec<String>,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "checked")]
    _checked: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelRow {
    key: String,
    means: Meaning,
    alias: Option<String>,
    provider: Option<String>,
    #[serde(default)]
    capitals: bool,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "checked")]
    _checked: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ProviderRow {
    id: String,
    groups: Vec<String>,
    scheme: Scheme,
    #[serde(default)]
    taints_itself: bool,
    #[serde(default)]
    offered_with_taint: BTreeMap<String, Vec<String>>,
    devices: Option<NoDevices>,
    #[serde(default)]
    categories: Vec<Row>,
    rows: Vec<Row>,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "checked")]
    _checked: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum NoDevices {
    None,
}

/// Names of types, families or categories, and what their machines hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Names and patterns.
    pub names: Vec<String>,
    /// What the machines hold.
    pub device: Device,
    /// Whose devices; an id of the table's vendors.
    #[serde(default)]
    pub vendor: Option<String>,
    /// Whether the GPUs can be partitioned (MIG); none where that is not known.
    #[serde(default)]
    pub mig: Option<bool>,
    /// Devices by size, `*` for every other size; 0 where what they hold is no whole device.
    #[serde(default)]
    pub gpus: BTreeMap<String, u32>,
    /// Where it is written.
    pub source: String,
    /// When that was last looked at.
    pub checked: String,
}

/// A row that a policy adds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteRow {
    provider: String,
    names: Vec<String>,
    device: Device,
    vendor: Option<String>,
    mig: Option<bool>,
    #[serde(default)]
    gpus: BTreeMap<String, u32>,
}

/// A resource name of accelerators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name, or a pattern of names.
    pub name: String,
    /// The id of its vendor.
    pub vendor: String,
    /// Whether one unit is one device and not a share of one.
    pub whole: bool,
}

/// A maker of devices.
#[derive(Clone, Debug)]
pub struct Vendor {
    /// Its id in the table.
    pub id: String,
    /// The resource name under which pods ask for its devices.
    pub resource: String,
    manufacturers: Vec<String>,
    models: Vec<String>,
}

impl Vendor {
    /// Whether one of the names that its GPUs' maker goes by passes.
    pub fn has_manufacturer(&self, passes: impl Fn(&str) -> bool) -> bool {
        self.manufacturers.iter().any(|name| passes(name))
    }
}

/// A cloud, as far as Karpenter buys machines from it.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its id in the table.
    pub id: String,
    /// Whether its node classes can taint GPU nodes without the NodePool saying so.
    pub taints_itself: bool,
    /// Whether it has no accelerators at all.
    pub without_devices: bool,
    groups: Vec<String>,
    scheme: Scheme,
    offered_with_taint: BTreeMap<String, Vec<String>>,
    categories: Vec<Row>,
    rows: Vec<Row>,
}

/// What is known of machines before they are bought: a type, a family, a category, or any of a
/// provider's. A name that is not known is none.
#[derive(Clone, Debug)]
pub struct Machine<'c> {
    /// The instance type.
    pub type_name: Option<String>,
    /// Its family.
    pub family: Option<String>,
    /// Its category.
    pub category: Option<String>,
    /// Its generation.
    pub generation: Option<String>,
    /// What it holds; none for a machine without devices.
    pub row: Option<&'c Row>,
}

impl Machine<'_> {
    /// What it holds.
    pub fn device(&self) -> Device {
        self.row.map_or(Device::Cpu, |row| row.device)
    }

    /// Whose devices it holds.
    pub fn vendor(&self) -> Option<&String> {
        self.row?.vendor.as_ref()
    }

    /// How many devices it holds, where the table says so.
    pub fn gpus(&self) -> Option<u32> {
        let (_, size) = self.type_name.as_deref()?.split_once('.')?;
        let gpus = &self.row?.gpus;
        gpus.get(size).or_else(|| gpus.get("*")).copied()
    }

    /// Whether it counts no unit of its vendor's resource, for it holds a share of a device only.
    pub fn holds_a_share(&self) -> bool {
        self.row
            .is_some_and(|row| !row.gpus.is_empty() && row.gpus.values().all(|gpus| *gpus == 0))
    }
}

/// At which level a name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// An instance type.
    Type,
    /// A family, or a series within one.
    Family,
    /// A category.
    Category,
}

#[derive(Clone, Debug)]
struct Label {
    means: Meaning,
    alias: Option<String>,
    provider: Option<String>,
    capitals: bool,
}

/// The table, with what a policy adds.
#[derive(Clone, Debug, Default)]
pub struct InstanceCatalog {
    resources: Vec<Resource>,
    vendors: Vec<Vendor>,
    labels: BTreeMap<String, Label>,
    providers: Vec<Provider>,
}

impl InstanceCatalog {
    /// The embedded table.
    pub fn builtin() -> Arc<Self> {
        static TABLE: LazyLock<Arc<InstanceCatalog>> = LazyLock::new(|| {
            // A test reads the embedded table, so that it cannot be broken here.
            Arc::new(
                serde_saphyr::from_str(BUILTIN)
                    .map(InstanceCatalog::from_file)
                    .unwrap_or_default(),
            )
        });
        Arc::clone(&TABLE)
    }

    fn from_file(file: File) -> Self {
        Self {
            resources: file
                .resources
                .into_iter()
                .map(|row| Resource {
                    name: row.name,
                    vendor: row.vendor,
                    whole: row.whole,
                })
                .collect(),
            vendors: file
                .vendors
                .into_iter()
                .map(|row| Vendor {
                    id: row.id,
                    resource: row.resource,
                    manufacturers: row.manufacturers,
                    models: row.models,
                })
                .collect(),
            labels: file
                .labels
                .into_iter()
                .map(|row| {
                    (
                        row.key,
                        Label {
                            means: row.means,
                            alias: row.alias,
                            provider: row.provider,
                            capitals: row.capitals,
                        },
                    )
                })
                .collect(),
            providers: file
                .providers
                .into_iter()
                .map(|row| Provider {
                    id: row.id,
                    groups: row.groups,
                    scheme: row.scheme,
                    taints_itself: row.taints_itself,
                    without_devices: row.devices.is_some(),
                    offered_with_taint: row.offered_with_taint,
                    categories: row.categories,
                    rows: row.rows,
                })
                .collect(),
        }
    }

    /// The embedded table behind the rows of a policy's `catalog.instances`.
    ///
    /// # Errors
    /// Names the row and member that is wrong.
    pub fn with_site_rows(rows: &[Value]) -> Result<Arc<Self>, PolicyError> {
        if rows.is_empty() {
            return Ok(Self::builtin());
        }
        let mut table = Self::clone(&Self::builtin());
        for (index, value) in rows.iter().enumerate().rev() {
            let at = FieldPath::of(&["catalog", "instances"]).index(index);
            let row: SiteRow = from_value(value).map_err(|error| PolicyError {
                path: at.clone().join(&error.path),
                message: error.message,
            })?;
            if let Some(vendor) = &row.vendor
                && !table.vendors.iter().any(|known| &known.id == vendor)
            {
                let known: Vec<&str> = table
                    .vendors
                    .iter()
                    .map(|vendor| vendor.id.as_str())
                    .collect();
                return Err(PolicyError {
                    path: at.key("vendor"),
                    message: format!(
                        "there is no vendor \"{vendor}\"; known are {}",
                        known.join(", ")
                    ),
                });
            }
            let known: Vec<&str> = table.providers.iter().map(|one| one.id.as_str()).collect();
            let known = known.join(", ");
            let Some(provider) = table
                .providers
                .iter_mut()
                .find(|one| one.id == row.provider)
            else {
                return Err(PolicyError {
                    path: at.key("provider"),
                    message: format!(
                        "there is no provider \"{}\"; known are {known}",
                        row.provider
                    ),
                });
            };
            provider.rows.insert(
                0,
                Row {
                    names: row.names,
                    device: row.device,
                    vendor: row.vendor,
                    mig: row.mig,
                    gpus: row.gpus,
                    source: "policy".to_owned(),
                    checked: String::new(),
                },
            );
        }
        Ok(Arc::new(table))
    }

    /// The accelerator resource of that name; none for `cpu`, `memory` and whatever is not in the
    /// table.
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|resource| fits(&resource.name, name))
    }

    /// The vendor with that id.
    pub fn vendor(&self, id: &str) -> Option<&Vendor> {
        self.vendors.iter().find(|vendor| vendor.id == id)
    }

    /// The vendors that a value of a GPU-manufacturer or GPU-name label may mean; none where the
    /// table knows no such value.
    pub fn vendors_named(&self, means: Meaning, value: &str) -> BTreeSet<String> {
        let names = |vendor: &Vendor| match means {
            Meaning::GpuManufacturer => vendor.manufacturers.iter().any(|name| name == value),
            // Every other pattern is more particular than the one that fits anything.
            _ => vendor
                .models
                .iter()
                .any(|model| model != "*" && fits(model, value)),
        };
        let found: BTreeSet<String> = self
            .vendors
            .iter()
            .filter(|vendor| names(vendor))
            .map(|vendor| vendor.id.clone())
            .collect();
        if found.is_empty() && means == Meaning::GpuName {
            let others = |vendor: &&Vendor| vendor.models.iter().any(|model| model == "*");
            return self
                .vendors
                .iter()
                .filter(others)
                .map(|vendor| vendor.id.clone())
                .collect();
        }
        found
    }

    /// What a node label says; none for a label that says nothing of the machine, whatever its
    /// last word.
    pub fn meaning(&self, key: &str) -> Option<Meaning> {
        self.labels.get(key).map(|label| label.means)
    }

    /// Whether machines of that provider carry the label: not where it is another's. A requirement
    /// on a label that an instance type does not carry is not compared with it.
    pub fn is_label_of(&self, key: &str, provider: &Provider) -> bool {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let owner = self
            .labels
            .get(key)
            .and_then(|label| label.provider.as_ref())
            .or_else(|| self.provider(domain).map(|owner| &owner.id));
        owner.is_none_or(|owner| *owner == provider.id)
    }

    /// Whether the label's values have capitals where the table has none.
    pub fn has_capitals(&self, key: &str) -> bool {
        self.labels.get(key).is_some_and(|label| label.capitals)
    }

    /// The key that Karpenter takes a node label for.
    pub fn normalized<'k>(&'k self, key: &'k str) -> &'k str {
        self.labels
            .get(key)
            .and_then(|label| label.alias.as_deref())
            .unwrap_or(key)
    }

    /// The provider whose node classes are in that API group.
    pub fn provider(&self, group: &str) -> Option<&Provider> {
        self.providers
            .iter()
            .find(|provider| provider.groups.iter().any(|known| known == group))
    }

    /// Every provider.
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }
}

impl Provider {
    /// The keys of which a NoSchedule taint must stand in a NodePool with a node class of that
    /// group, or no machine with devices is offered to it. None where that is not so.
    pub fn offered_with_taint(&self, group: &str) -> Option<&[String]> {
        self.offered_with_taint.get(group).map(Vec::as_slice)
    }

    /// Steps that it takes to look up a name of so many bytes.
    pub fn steps(&self, bytes: usize) -> usize {
        let rows = self.rows.iter().chain(&self.categories);
        let names: usize = rows.map(|row| row.names.len()).sum();
        names * (4 + bytes / 4)
    }

    /// The machines that a name may stand for; empty where the name is not known.
    pub fn machines_named(&self, level: Level, name: &str) -> Vec<Machine<'_>> {
        let parts = match level {
            Level::Type => self.parts_of_type(name),
            Level::Family => self.parts_of_family(name),
            Level::Category => Parts {
                category: Some(name.to_owned()),
                ..Parts::default()
            },
        };
        let named = |row| Machine {
            type_name: (level == Level::Type).then(|| name.to_owned()),
            family: parts.family.clone(),
            category: parts.category.clone(),
            generation: parts.generation.clone(),
            row: Some(row),
        };
        if level == Level::Category {
            // The families known by name may differ from the rest of their category.
            let mut machines: Vec<Machine<'_>> = self
                .known_families()
                .filter(|machine| machine.category.as_deref() == Some(name))
                .collect();
            let rest = self
                .categories
                .iter()
                .filter(|row| row.names.iter().any(|known| known == name));
            machines.extend(rest.map(named));
            return machines;
        }
        let family = parts.family.as_deref().filter(|_| level == Level::Type);
        for name in std::iter::once(name).chain(family) {
            let exact: Vec<&Row> = self
                .rows
                .iter()
                .filter(|row| row.names.iter().any(|known| known == name))
                .collect();
            if !exact.is_empty() {
                return exact.into_iter().map(named).collect();
            }
            if let Some(row) = self
                .rows
                .iter()
                .find(|row| row.names.iter().any(|pattern| fits(pattern, name)))
            {
                return vec![named(row)];
            }
        }
        let category = parts.category.as_deref();
        self.categories
            .iter()
            .filter(|row| {
                row.names
                    .iter()
                    .any(|known| Some(known.as_str()) == category)
            })
            .map(named)
            .collect()
    }

    /// Some machine of every sort the provider has: each family that the table names, each category
    /// for the families it does not name, and one of which nothing is known, without devices.
    pub fn all_machines(&self) -> Vec<Machine<'_>> {
        let mut machines = vec![Machine {
            type_name: None,
            family: None,
            category: None,
            generation: None,
            row: None,
        }];
        if self.without_devices {
            return machines;
        }
        machines.extend(self.known_families());
        for row in &self.categories {
            machines.extend(row.names.iter().map(|name| Machine {
                type_name: None,
                family: None,
                category: Some(name.clone()),
                generation: None,
                row: Some(row),
            }));
        }
        // Where a type's name does not yield a family, rows know types by pattern only.
        if self.scheme == Scheme::Plain {
            machines.extend(self.rows.iter().map(|row| Machine {
                type_name: None,
                family: None,
                category: None,
                generation: None,
                row: Some(row),
            }));
        }
        machines
    }

    fn known_families(&self) -> impl Iterator<Item = Machine<'_>> {
        self.rows.iter().flat_map(move |row| {
            row.names
                .iter()
                .filter(|name| !is_pattern(name))
                .map(move |name| {
                    let parts = self.parts_of_family(name);
                    Machine {
                        type_name: None,
                        family: parts.family,
                        category: parts.category,
                        generation: parts.generation,
                        row: Some(row),
                    }
                })
        })
    }

    fn parts_of_type(&self, name: &str) -> Parts {
        match self.scheme {
            Scheme::Aws => name
                .split_once('.')
                .map_or_else(Parts::default, |(family, _)| self.parts_of_family(family)),
            Scheme::Gcp => name
                .split_once('-')
                .map_or_else(Parts::default, |(family, _)| self.parts_of_family(family)),
            Scheme::Azure => Parts {
                family: name
                    .split_once('_')
                    .and_then(|(_, size)| size.chars().next())
                    .filter(char::is_ascii_uppercase)
                    .map(String::from),
                ..Parts::default()
            },
            // The family's label has the first two of three parts.
            Scheme::Alibaba => name
                .rsplit_once('.')
                .map_or_else(Parts::default, |(family, _)| self.parts_of_family(family)),
            Scheme::Plain => Parts::default(),
        }
    }

    fn parts_of_family(&self, name: &str) -> Parts {
        let mut parts = Parts {
            family: Some(name.to_owned()),
            ..Parts::default()
        };
        let name = match self.scheme {
            Scheme::Aws | Scheme::Gcp => name,
            Scheme::Alibaba => name.strip_prefix("ecs.").unwrap_or_default(),
            Scheme::Azure | Scheme::Plain => return parts,
        };
        // As Karpenter takes them apart (aws/karpenter-provider-aws and
        // cloudpilot-ai/karpenter-provider-alibabacloud pkg/providers/instancetype/types.go,
        // instanceTypeScheme): letters, for some the terabytes of memory, then the generation.
        let letters = name
            .find(|c: char| !c.is_ascii_lowercase())
            .unwrap_or(name.len());
        let (letters, rest) = name.split_at(letters);
        let rest = rest
            .strip_prefix('-')
            .and_then(|rest| {
                rest.trim_start_matches(|c: char| c.is_ascii_digit())
                    .strip_prefix("tb")
            })
            .unwrap_or(rest);
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (generation, _) = rest.split_at(digits);
        if !letters.is_empty() && !generation.is_empty() {
            parts.category = Some(letters.to_owned());
            parts.generation = Some(generation.to_owned());
        }
        parts
    }
}

#[derive(Default)]
struct Parts {
    family: Option<String>,
    category: Option<String>,
    generation: Option<String>,
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '#'])
}

/// Whether a name fits a pattern: `*` any text, `?` one character, `#` one digit. Takes time in the
/// product of both lengths at most.
fn fits(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // Where to go on from when what follows the last star does not fit.
    let mut retry: Option<(&str, &str)> = None;
    while let (Some(c), after) = split_first(name) {
        match split_first(pattern) {
            (Some('*'), rest) => {
                retry = Some((rest, after));
                pattern = rest;
            }
            (Some(want), rest)
                if want == '?' || (want == '#' && c.is_ascii_digit()) || want == c =>
            {
                (pattern, name) = (rest, after);
            }
            _ => {
                let Some((after_star, from)) = retry else {
                    return false;
                };
                (pattern, name) = (after_star, from);
                retry = Some((after_star, split_first(from).1));
            }
        }
    }
    pattern.chars().all(|rest| rest == '*')
}

/// The first character of a text, and what follows it.
fn split_first(text: &str) -> (Option<char>, &str) {
    let mut chars = text.chars();
    (chars.next(), chars.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(provider: &str, level: Level, name: &str) -> Vec<(Device, Option<String>)> {
        let catalog = InstanceCatalog::builtin();
        let provider = catalog
            .providers()
            .iter()
            .find(|one| one.id == provider)
            .unwrap();
        let found = provider.machines_named(level, name);
        found
            .iter()
            .map(|one| (one.device(), one.vendor().map(ToString::to_string)))
            .collect()
    }

    fn gpu(vendor: &str) -> Vec<(Device, Option<String>)> {
        vec![(Device::Gpu, Some(vendor.to_owned()))]
    }

    #[test]
    fn the_embedded_table_reads_and_every_row_says_where_it_comes_from() {
        let file: File = serde_saphyr::from_str(BUILTIN).unwrap();
        let vendors: BTreeSet<&str> = file
            .vendors
            .iter()
            .map(|vendor| vendor.id.as_str())
            .collect();
        for resource in &file.resources {
            assert!(
                vendors.contains(resource.vendor.as_str()),
                "{}",
                resource.name
            );
        }
        let rows = file
            .providers
            .iter()
            .flat_map(|one| one.rows.iter().chain(&one.categories));
        for row in rows {
            assert_eq!(row.vendor.is_some(), row.device != Device::Cpu, "{row:?}");
            assert!(
                row.vendor.as_deref().is_none_or(|id| vendors.contains(id)),
                "{row:?}"
            );
        }
        assert!(rows_in(&serde_saphyr::from_str(BUILTIN).unwrap()) > 100);
        let catalog = InstanceCatalog::builtin();
        for vendor in &catalog.vendors {
            assert_eq!(
                catalog.resource(&vendor.resource).unwrap().vendor,
                vendor.id
            );
        }
    }

    /// The number of rows below a value, each of which says where it comes from and when it was
    /// checked.
    fn rows_in(value: &Value) -> usize {
        match value {
            Value::Array(list) => list
                .iter()
                .map(|row| {
                    let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
                    let is_row = row.is_object();
                    assert!(!is_row || !text("source").is_empty(), "{row}");
                    assert!(!is_row || text("checked").starts_with("2026-"), "{row}");
                    usize::from(is_row) + rows_in(row)
                })
                .sum(),
            Value::Object(members) => members.values().map(rows_in).sum(),
            _ => 0,
        }
    }

    #[test]
    fn types_families_and_categories_of_aws_are_told_apart() {
        assert_eq!(kinds("aws", Level::Type, "g5.xlarge"), gpu("nvidia"));
        assert_eq!(kinds("aws", Level::Type, "g4ad.xlarge"), gpu("amd"));
        assert_eq!(kinds("aws", Level::Type, "p6-b200.48xlarge"), gpu("nvidia"));
        assert_eq!(
            kinds("aws", Level::Family, "p4"),
            gpu("nvidia"),
            "its category tells"
        );
        assert_eq!(kinds("aws", Level::Family, "g9x"), gpu("nvidia"));
        assert_eq!(
            kinds("aws", Level::Family, "inf3"),
            [(Device::Accelerator, Some("neuron".into()))]
        );
        for cpu in [
            "m5", "c6i", "f2", "vt1", "u-6tb1", "mac2-m2", "hpc7a", "x2gd",
        ] {
            assert_eq!(
                kinds("aws", Level::Family, cpu),
                [(Device::Cpu, None)],
                "{cpu}"
            );
        }
        for unknown in ["g", "p", "", "5g", "G5", "q9", "accelerated"] {
            assert!(kinds("aws", Level::Family, unknown).is_empty(), "{unknown}");
        }
        let p = kinds("aws", Level::Category, "p");
        assert!(!p.is_empty() && p.iter().all(|kind| kind == &gpu("nvidia")[0]));
        assert!(kinds("aws", Level::Category, "g").contains(&gpu("amd")[0]));
        assert!(kinds("aws", Level::Category, "accelerated").is_empty());
    }

    #[test]
    fn types_of_the_other_clouds_are_told_apart() {
        assert_eq!(
            kinds("azure", Level::Type, "Standard_ND96isr_H100_v5"),
            gpu("nvidia")
        );
        assert_eq!(
            kinds("azure", Level::Type, "Standard_ND96isr_MI300X_v5"),
            gpu("amd")
        );
        assert_eq!(
            kinds("azure", Level::Type, "Standard_D4s_v5"),
            [(Device::Cpu, None)]
        );
        assert_eq!(
            kinds("azure", Level::Type, "Standard_NP10s"),
            [(Device::Cpu, None)]
        );
        assert_eq!(kinds("azure", Level::Family, "N").len(), 2, "NVIDIA or AMD");
        assert_eq!(kinds("gcp", Level::Type, "a3-megagpu-8g"), gpu("nvidia"));
        assert_eq!(kinds("gcp", Level::Family, "n2d"), [(Device::Cpu, None)]);
        assert_eq!(
            kinds("gcp", Level::Type, "g1-small"),
            [(Device::Cpu, None)],
            "a shared core"
        );
        assert_eq!(
            kinds("azure", Level::Type, "Standard_NV4as_v4"),
            [(Device::Cpu, None)],
            "its share of a GPU is not counted"
        );
        for family in ["ecs.sccgn7ex", "ecs.vgn6i-m4-vws", "ecs.gn9-c8g1"] {
            assert_eq!(
                kinds("alibaba", Level::Family, family),
                gpu("nvidia"),
                "{family}"
            );
        }
        assert_eq!(
            kinds("alibaba", Level::Type, "ecs.e-c1m1.large"),
            [(Device::Cpu, None)]
        );
        assert!(kinds("alibaba", Level::Type, "ecs.zz1.large").is_empty());
        assert_eq!(
            kinds("alibaba", Level::Type, "ecs.gn7i-c8g1.2xlarge"),
            gpu("nvidia")
        );
        assert_eq!(
            kinds("alibaba", Level::Type, "ecs.g7.large"),
            [(Device::Cpu, None)]
        );
        assert_eq!(kinds("oci", Level::Type, "BM.GPU.H100.8"), gpu("nvidia"));
        assert_eq!(kinds("oci", Level::Type, "BM.GPU4.8"), gpu("nvidia"));
        assert_eq!(kinds("oci", Level::Type, "BM.GPU.MI300X.8"), gpu("amd"));
        assert_eq!(
            kinds("oci", Level::Type, "VM.Standard.E5.Flex"),
            [(Device::Cpu, None)]
        );
        assert_eq!(kinds("ibm", Level::Type, "gx3-24x120x1l40s"), gpu("nvidia"));
        assert_eq!(
            kinds("ibm", Level::Type, "gx3d-160x1792x8gaudi3"),
            gpu("habana")
        );
        assert_eq!(
            kinds("ibm", Level::Type, "gx3d-160x1792x8h100"),
            gpu("nvidia")
        );
        assert_eq!(kinds("ibm", Level::Type, "bx2-4x16"), [(Device::Cpu, None)]);
        assert!(kinds("kwok", Level::Type, "g5.xlarge").is_empty());
    }

    #[test]
    fn labels_are_known_by_their_full_key() {
        let catalog = InstanceCatalog::builtin();
        assert_eq!(
            catalog.meaning("karpenter.k8s.aws/instance-category"),
            Some(Meaning::Category)
        );
        assert_eq!(
            catalog.meaning("node.kubernetes.io/instance-category"),
            None
        );
        assert_eq!(
            catalog.normalized("beta.kubernetes.io/instance-type"),
            "node.kubernetes.io/instance-type"
        );
        assert_eq!(catalog.provider("karpenter-ibm.sh").unwrap().id, "ibm");
        for (key, label) in &catalog.labels {
            let known = |id: &String| catalog.providers.iter().any(|one| one.id == *id);
            assert!(label.provider.as_ref().is_none_or(known), "{key}");
            let carried = |one: &&Provider| catalog.is_label_of(key, one);
            let carriers = catalog.providers.iter().filter(carried).count();
            let everywhere = key.contains("kubernetes.io/");
            assert_eq!(
                carriers,
                if everywhere {
                    catalog.providers.len()
                } else {
                    1
                },
                "{key}"
            );
        }
        assert!(catalog.provider("compute.coreweave.com").is_none());
    }

    #[test]
    fn resources_are_known_by_name_and_pattern() {
        let catalog = InstanceCatalog::builtin();
        let of = |name: &str| {
            catalog
                .resource(name)
                .map(|found| (found.vendor.clone(), found.whole))
        };
        assert_eq!(of("nvidia.com/gpu"), Some(("nvidia".into(), true)));
        assert_eq!(of("nvidia.com/mig-1g.10gb"), Some(("nvidia".into(), false)));
        assert_eq!(of("gpu.intel.com/xe"), Some(("intel".into(), true)));
        assert_eq!(
            of("gpu.intel.com/i915_monitoring"),
            Some(("intel".into(), false))
        );
        assert_eq!(of("cpu"), None);
        assert_eq!(of("nvidia.com/gpu.product"), None);
    }

    #[test]
    fn a_policy_adds_rows_that_come_first() {
        let rows = [
            json!({"provider": "aws", "names": ["m99", "m99.*"], "device": "gpu", "vendor": "nvidia"}),
        ];
        let table = InstanceCatalog::with_site_rows(&rows).unwrap();
        let aws = table.provider("karpenter.k8s.aws").unwrap();
        assert_eq!(
            aws.machines_named(Level::Type, "m99.large")[0].device(),
            Device::Gpu
        );
        assert_eq!(
            aws.machines_named(Level::Family, "m5")[0].device(),
            Device::Cpu
        );
        let refused = |row: Value| {
            InstanceCatalog::with_site_rows(&[row])
                .unwrap_err()
                .to_string()
        };
        assert!(
            refused(json!({"provider": "aws", "names": ["x"], "device": "fpga"}))
                .starts_with("catalog.instances[0].device")
        );
        assert!(
            refused(json!({"provider": "moon", "names": ["x"], "device": "cpu"}))
                .contains("no provider \"moon\"")
        );
        assert!(
            refused(json!({"provider": "aws", "names": ["x"], "device": "gpu", "vendor": "x"}))
                .contains("no vendor")
        );
    }

    #[test]
    fn patterns_fit_texts_digits_and_characters() {
        assert!(fits("a*c", "abbc") && fits("a*c", "ac") && !fits("a*c", "ab"));
        assert!(fits("p#*", "p5en") && !fits("p#*", "pa5") && !fits("p#*", "p"));
        assert!(fits("*.GPU.MI#*", "BM.GPU.MI300X.8") && fits("?", "x") && !fits("?", ""));
        assert!(fits("*", "") && fits("", "") && !fits("", "x"));
        assert!(!fits(&"a*".repeat(50), &"a".repeat(49)), "and comes back");
    }
}
