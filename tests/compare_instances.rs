//! Compares the tables that clouds publish with `policies/catalog/instances.yaml`.
//!
//! Reads the files that it is given and nothing else. Prints a line for every type that the table
//! judges otherwise, and ends with 1 if there is one. How to get the files stands in the header of
//! `policies/catalog/instances.yaml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use gangplank::catalog::instances::{Device, InstanceCatalog, Level, Machine, Provider};
use serde::Deserialize;
use serde_json::Value;

/// Compares the tables that clouds publish with policies/catalog/instances.yaml.
#[derive(Debug, Parser)]
#[command(name = "compare-instances")]
struct Args {
    /// aws=instance-types.md, azure=supported-gpus.yaml or gcp=initial-prices.json
    #[arg(required = true, value_parser = table)]
    tables: Vec<(Cloud, PathBuf)>,
}

#[derive(Debug, Clone, Copy)]
enum Cloud {
    Aws,
    Azure,
    Gcp,
}

impl Cloud {
    fn id(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
        }
    }
}

fn table(text: &str) -> Result<(Cloud, PathBuf), String> {
    let (cloud, path) = text.split_once('=').ok_or("write cloud=file")?;
    let cloud = match cloud {
        "aws" => Cloud::Aws,
        "azure" => Cloud::Azure,
        "gcp" => Cloud::Gcp,
        other => return Err(format!("no published table is known of {other:?}")),
    };
    Ok((cloud, path.into()))
}

/// What is said of one type; `None` where that is not said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    device: Option<Device>,
    vendor: Option<String>,
    devices: Option<u32>,
    family: Option<String>,
    category: Option<String>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |part: &Option<String>| part.as_deref().unwrap_or("-").to_owned();
        let devices = self
            .devices
            .map_or_else(|| "-".to_owned(), |n| n.to_string());
        match self.device {
            Some(device) => write!(f, "{device:?}")?,
            None => write!(f, "not known")?,
        }
        write!(f, ", vendor {}, devices {devices}", text(&self.vendor))?;
        write!(
            f,
            ", family {}, category {}",
            text(&self.family),
            text(&self.category)
        )
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut out = io::stdout().lock();
    let mut differences = 0;
    for (cloud, path) in args.tables {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let published = match cloud {
            Cloud::Aws => aws(&text),
            Cloud::Azure => azure(&text)?,
            Cloud::Gcp => gcp(&text)?,
        };
        ensure!(
            !published.is_empty(),
            "{} holds no instance types: has its format changed?",
            path.display()
        );
        let found = compare(cloud, &published)?;
        for line in &found {
            writeln!(out, "{line}")?;
        }
        writeln!(
            out,
            "{}: {} types, {} differ",
            cloud.id(),
            published.len(),
            found.len()
        )?;
        differences += found.len();
    }
    Ok(if differences == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A line for each type that is judged otherwise than published.
fn compare(cloud: Cloud, published: &BTreeMap<String, Held>) -> Result<Vec<String>> {
    let catalog = InstanceCatalog::builtin();
    let provider = catalog
        .providers()
        .iter()
        .find(|one| one.id == cloud.id())
        .context("the table has no such provider")?;
    Ok(published
        .iter()
        .filter_map(|(name, published)| {
            let ours = held(provider, name, published);
            (ours != *published).then(|| {
                format!(
                    "{} {name}\n  published  {published}\n  ours       {ours}",
                    cloud.id()
                )
            })
        })
        .collect())
}

/// What our table says of a type, as far as the published one does.
fn held(provider: &Provider, name: &str, published: &Held) -> Held {
    let machines = provider.machines_named(Level::Type, name);
    let [machine] = machines.as_slice() else {
        return Held::default();
    };
    // The devices of CPU types and those of types that have no number in our table are not said.
    let devices = machine.gpus().or(match machine.device() {
        Device::Cpu => Some(0),
        _ => None,
    });
    let part = |wanted: &Option<String>, part: fn(&Machine<'_>) -> Option<String>| {
        wanted.as_ref().and_then(|_| part(machine))
    };
    Held {
        device: Some(machine.device()),
        vendor: machine.vendor().cloned(),
        devices: published.devices.and(devices),
        family: part(&published.family, |machine| machine.family.clone()),
        category: part(&published.category, |machine| machine.category.clone()),
    }
}

/// Labels and resources of each type, a heading `### type` before the tables of each.
fn aws(text: &str) -> BTreeMap<String, Held> {
    let mut types = BTreeMap::new();
    for block in text.split("\n### ").skip(1) {
        let name = block.lines().next().unwrap_or_default().trim();
        let cells: BTreeMap<&str, &str> = block
            .lines()
            .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
            .filter_map(|row| row.split_once('|'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let label = |name: &str| {
            cells
                .get(format!("karpenter.k8s.aws/{name}").as_str())
                .copied()
        };
        let (device, kind) = if label("instance-gpu-name").is_some() {
            (Device::Gpu, "gpu")
        } else if label("instance-accelerator-name").is_some() {
            (Device::Accelerator, "accelerator")
        } else {
            (Device::Cpu, "none")
        };
        let vendor = label(&format!("instance-{kind}-manufacturer")).map(|maker| match maker {
            "aws" => "neuron".to_owned(),
            maker => maker.to_owned(),
        });
        let devices = match label(&format!("instance-{kind}-count")) {
            Some(count) => count.parse().ok(),
            None => Some(0),
        };
        types.insert(
            name.trim_matches('`').to_owned(),
            Held {
                device: Some(device),
                vendor,
                devices,
                family: label("instance-family").map(str::to_owned),
                category: label("instance-category").map(str::to_owned),
            },
        );
    }
    types
}

/// The sizes with GPUs, in lower case, which a name must be spelt out of.
fn azure(text: &str) -> Result<BTreeMap<String, Held>> {
    #[derive(Deserialize)]
    struct Size {
        gpu: String,
    }
    let sizes: BTreeMap<String, Size> =
        serde_saphyr::from_str(text).context("not a map of sizes")?;
    Ok(sizes
        .into_iter()
        .map(|(name, size)| {
            let held = Held {
                device: Some(Device::Gpu),
                vendor: Some(size.gpu),
                ..Held::default()
            };
            (spelt(&name), held)
        })
        .collect())
}

/// `standard_nc24ads_a100_v4` as `Standard_NC24ads_A100_v4`.
fn spelt(name: &str) -> String {
    let spelt = name.split('_').enumerate().map(|(position, part)| {
        let digit = part
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(part.len());
        let (letters, rest) = part.split_at(digit);
        match (position, part) {
            (0, "standard") => "Standard".to_owned(),
            (1, _) => letters.to_uppercase() + rest,
            (_, "promo" | "flex" | "noib" | "xl" | "ndr") => part.to_owned(),
            _ if letters == "v" && rest.len() == 1 => part.to_owned(),
            _ => part.to_uppercase(),
        }
    });
    spelt.collect::<Vec<_>>().join("_")
}

/// The types of every region. Prices do not tell what a type holds: that its series is one of those
/// with GPUs does (Compute Engine documentation, accelerator-optimized machine family).
fn gcp(text: &str) -> Result<BTreeMap<String, Held>> {
    const WITH_GPUS: [&str; 6] = ["a2", "a3", "a4", "a4x", "g2", "g4"];
    let prices: Value = serde_json::from_str(text).context("not JSON")?;
    let regions = prices.get("prices").and_then(Value::as_object);
    let names: BTreeSet<&String> = regions
        .into_iter()
        .flat_map(serde_json::Map::values)
        .flat_map(|region| {
            region
                .as_object()
                .into_iter()
                .flat_map(serde_json::Map::values)
        })
        .flat_map(|prices| {
            prices
                .as_object()
                .into_iter()
                .flat_map(serde_json::Map::keys)
        })
        .collect();
    Ok(names
        .into_iter()
        .map(|name| {
            let series = name.split('-').next().unwrap_or_default();
            let gpu = WITH_GPUS.contains(&series);
            let held = Held {
                device: Some(if gpu { Device::Gpu } else { Device::Cpu }),
                vendor: gpu.then(|| "nvidia".to_owned()),
                family: Some(series.to_owned()),
                ..Held::default()
            };
            (name.clone(), held)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWS: &str = "\
## g5 Family
### `g5.12xlarge`
#### Labels
 | Label | Value |
 |--|--|
 |karpenter.k8s.aws/instance-category|g|
 |karpenter.k8s.aws/instance-family|g5|
 |karpenter.k8s.aws/instance-gpu-count|4|
 |karpenter.k8s.aws/instance-gpu-manufacturer|nvidia|
 |karpenter.k8s.aws/instance-gpu-name|a10g|
#### Resources
 | Resource | Quantity |
 |--|--|
 |nvidia.com/gpu|4|
## m5 Family
### `m5.large`
#### Labels
 |karpenter.k8s.aws/instance-category|m|
 |karpenter.k8s.aws/instance-family|m5|
## trn1 Family
### `trn1.2xlarge`
 |karpenter.k8s.aws/instance-category|trn|
 |karpenter.k8s.aws/instance-family|trn1|
 |karpenter.k8s.aws/instance-accelerator-count|1|
 |karpenter.k8s.aws/instance-accelerator-manufacturer|aws|
 |karpenter.k8s.aws/instance-accelerator-name|trainium|
";

    fn lines(cloud: Cloud, published: &BTreeMap<String, Held>) -> Vec<String> {
        compare(cloud, published).unwrap()
    }

    #[test]
    fn a_table_that_agrees_says_nothing() {
        let published = aws(AWS);
        assert_eq!(published.len(), 3);
        assert_eq!(lines(Cloud::Aws, &published), [""; 0]);
    }

    #[test]
    fn every_part_that_differs_is_shown() {
        for (from, to) in [
            ("gpu-count|4", "gpu-count|8"),
            ("manufacturer|nvidia", "manufacturer|amd"),
            ("accelerator-name|trainium", "gpu-name|trainium"),
            ("family|m5", "family|m5x"),
            ("category|trn", "category|t"),
            ("`m5.large`", "`zz9.large`"),
        ] {
            let changed = AWS.replace(from, to);
            assert_ne!(changed, AWS);
            let lines = lines(Cloud::Aws, &aws(&changed));
            assert_eq!(lines.len(), 1, "{to}: {lines:?}");
        }
    }

    #[test]
    fn sizes_of_azure_are_spelt_as_the_label_has_them() {
        for (lower, name) in [
            ("standard_nc24ads_a100_v4", "Standard_NC24ads_A100_v4"),
            ("standard_nd96isr_mi300x_v5", "Standard_ND96isr_MI300X_v5"),
            ("standard_nv12_promo", "Standard_NV12_promo"),
            ("standard_nd96asr_v4", "Standard_ND96asr_v4"),
        ] {
            assert_eq!(spelt(lower), name);
        }
        let table = "standard_nc4as_t4_v3: {gpu: nvidia, os: [ubuntu]}\n";
        assert_eq!(lines(Cloud::Azure, &azure(table).unwrap()), [""; 0]);
        let other = table.replace("nvidia", "amd");
        assert_eq!(lines(Cloud::Azure, &azure(&other).unwrap()).len(), 1);
    }

    #[test]
    fn types_of_gcp_are_those_of_every_region() {
        let table = r#"{"prices": {"here": {"on_demand": {"a3-highgpu-8g": 1, "n4-standard-2": 1}},
                                   "there": {"spot": {"q9-standard-1": 1}}}}"#;
        let published = gcp(table).unwrap();
        assert_eq!(published.len(), 3);
        let lines = lines(Cloud::Gcp, &published);
        assert!(
            lines.len() == 1 && lines[0].contains("q9-standard-1"),
            "{lines:?}"
        );
        assert!(gcp("[]").unwrap().is_empty() && gcp("no").is_err());
    }
}
