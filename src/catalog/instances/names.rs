//! The names that tell accelerators, for conditions that the API server evaluates.

use std::collections::BTreeSet;

use super::{Device, InstanceCatalog, Meaning, Provider, Scheme};

/// The label by which the NVIDIA GPU operator, and people, declare a GPU node (NVIDIA/gpu-operator, node
/// labels).
pub const PRESENT: &str = "nvidia.com/gpu.present";

impl InstanceCatalog {
    /// An RE2 expression that the resource names of accelerators match, and no others.
    pub fn pattern_of_resources(&self) -> String {
        let names = self.resources.iter().map(|resource| escape(&resource.name));
        format!("^({})$", names.collect::<Vec<_>>().join("|"))
    }

    /// An RE2 expression that the labels match which machines without accelerators do not have, or have for
    /// saying so.
    pub fn pattern_of_device_keys(&self) -> String {
        let of_devices = |means: Meaning| {
            matches!(
                means,
                Meaning::Gpu
                    | Meaning::GpuName
                    | Meaning::GpuManufacturer
                    | Meaning::GpuCountOrZero
                    | Meaning::Accelerator
            )
        };
        // The domains and the words behind them apart: there are few of each.
        let keys = (self.labels.iter())
            .filter(|(_, label)| of_devices(label.means))
            .filter_map(|(key, _)| key.split_once('/'))
            .chain(PRESENT.split_once('/'));
        let (domains, words): (BTreeSet<String>, BTreeSet<String>) = keys
            .map(|(domain, word)| (escape(domain), escape(word)))
            .unzip();
        let joined = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join("|");
        format!("^({})/({})$", joined(domains), joined(words))
    }

    /// An RE2 expression that every type, family and category of machines with accelerators matches, and
    /// few others do.
    pub fn pattern_of_devices(&self) -> String {
        let mut names = BTreeSet::new();
        for provider in &self.providers {
            let categorized = self.labels.iter().any(|(key, label)| {
                label.means == Meaning::Category && self.is_label_of(key, provider)
            });
            names.extend(provider.patterns_of_devices(categorized));
        }
        let names: Vec<String> = names.into_iter().collect();
        format!("^({})$", names.join("|"))
    }
}

impl Provider {
    /// RE2 expressions for the names of its machines with accelerators. `categorized`: a label has their
    /// category.
    fn patterns_of_devices(&self, categorized: bool) -> Vec<String> {
        let with_devices = |device: Device| device != Device::Cpu;
        let categories: Vec<&str> = (self.categories.iter())
            .filter(|row| with_devices(row.device))
            .flat_map(|row| row.names.iter().map(String::as_str))
            .collect();
        let mut patterns = Vec::new();
        if !categories.is_empty() {
            let prefix = if self.scheme == Scheme::Alibaba {
                "(ecs[.])?"
            } else {
                ""
            };
            let rest = if categorized { "([0-9].*)?" } else { "[0-9].*" };
            let escaped: Vec<String> = categories.iter().map(|name| escape(name)).collect();
            patterns.push(format!("{prefix}({}){rest}", escaped.join("|")));
        }
        let of_category = |name: &str| {
            categories.iter().any(|category| {
                name.strip_prefix(category)
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
        };
        for row in self.rows.iter().filter(|row| with_devices(row.device)) {
            for name in row.names.iter().filter(|name| !of_category(name)) {
                patterns.push(if name.contains(['*', '?', '#']) {
                    escape(name)
                } else {
                    // A family stands in front of its types' sizes.
                    format!("{}([.-].*)?", escape(name))
                });
            }
        }
        // What a wider one matches needs no other.
        let wide: Vec<String> = (patterns.iter())
            .filter_map(|pattern| pattern.strip_suffix(".*").map(str::to_owned))
            .collect();
        patterns.retain(|pattern| {
            let own = pattern.strip_suffix(".*").unwrap_or_default();
            !wide
                .iter()
                .any(|wide| wide != own && pattern.starts_with(wide.as_str()))
        });
        patterns
    }
}

/// A name of the table, in which `*` stands for any text, `?` for one character and `#` for one digit, as
/// an RE2 expression.
fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '#' => out.push_str("[0-9]"),
            letter if letter.is_alphanumeric() || letter == '_' || letter == '-' => {
                out.push(letter);
            }
            letter => {
                out.push('[');
                out.push(letter);
                out.push(']');
            }
        }
    }
    out
}
