//! Files of a pod: scripts that it runs, and settings that an engine reads. Found where the pod mounts
//! them from a ConfigMap of the same world; settings are turned into the flags that they stand for.

use serde_json::Value;

use super::{ConfigMaps, Origin, Word};
use crate::{
    budget::Budget,
    catalog::engines::Engine,
    subject::{
        at,
        pod_template::{Container, PodTemplate},
    },
};

/// Longest file that is read, in bytes.
const LONGEST: usize = 256 * 1024;
/// Steps that it takes to look at a mount or a volume.
const MOUNT: usize = 60;
/// Steps that each byte of a file of settings takes.
const SETTINGS: usize = 32;
/// Most settings of one file that are read.
const MAX_SETTINGS: usize = 1_000;

/// The files that a container finds in its volumes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a, 'm> {
    pub(super) template: &'m PodTemplate<'a>,
    pub(super) container: &'m Container<'a>,
    pub(super) config_maps: ConfigMaps<'a>,
    pub(super) budget: &'a Budget,
}

impl<'a> Files<'a, '_> {
    /// The text of a file; `None` where it is not mounted from a ConfigMap that is known.
    pub(super) fn text(&self, path: &str) -> Option<&'a str> {
        let path = self.absolute(path)?;
        let (mount, rest) = self.mount(&path)?;
        if mount.get("subPathExpr").is_some() {
            return None;
        }
        let sub = mount
            .get("subPath")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let file = match (sub, rest) {
            ("", rest) => rest.to_owned(),
            (sub, "") => sub.to_owned(),
            (sub, rest) => format!("{}/{rest}", sub.trim_end_matches('/')),
        };
        let volume = self
            .template
            .spec("volumes")
            .and_then(Value::as_array)?
            .iter()
            .find(|volume| {
                self.budget.spend(MOUNT);
                volume
                    .get("name")
                    .is_some_and(|name| Some(name) == mount.get("name"))
            })?;
        if let Some(source) = volume.get("configMap") {
            return self.key_of(source, &file);
        }
        at(volume, &["projected", "sources"])?
            .as_array()?
            .iter()
            .filter_map(|source| source.get("configMap"))
            .find_map(|source| self.key_of(source, &file))
    }

    fn absolute(&self, path: &str) -> Option<String> {
        let base = self
            .container
            .value
            .get("workingDir")
            .and_then(Value::as_str);
        match (path.starts_with('/'), base) {
            (true, _) => normal(path),
            (false, Some(base)) => normal(&format!("{base}/{path}")),
            (false, None) => None,
        }
    }

    /// The mount that holds a file, and where below it that stands: the longest mount path counts.
    fn mount<'p>(&self, path: &'p str) -> Option<(&'a Value, &'p str)> {
        list(self.container.value, "volumeMounts")
            .take_while(|_| !self.budget.is_spent())
            .filter_map(|mount| {
                self.budget.spend(MOUNT);
                let at = normal(mount.get("mountPath")?.as_str()?)?;
                let rest = path.strip_prefix(at.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some((at.len(), mount, rest))
            })
            .max_by_key(|(length, ..)| *length)
            .map(|(_, mount, rest)| (mount, rest.trim_start_matches('/')))
    }

    /// Whether a file stands in a volume, and not in the image.
    pub(super) fn is_mounted(&self, path: &str) -> bool {
        let path = self.absolute(path);
        path.is_some_and(|path| self.mount(&path).is_some())
    }

    /// What a ConfigMap's volume puts under a name.
    fn key_of(&self, source: &'a Value, file: &str) -> Option<&'a str> {
        let name = source.get("name")?.as_str()?;
        let key = match source.get("items").and_then(Value::as_array) {
            Some(items) => items
                .iter()
                .find(|item| item.get("path").and_then(Value::as_str) == Some(file))?
                .get("key")?
                .as_str()?,
            None => file,
        };
        at(self.config_maps.get(name)?, &["data", key])?.as_str()
    }

    /// The settings of a file as words of the engine's command line; `None` where they cannot be
    /// seen.
    pub(super) fn words(&self, engine: &Engine, path: &str, origin: Origin) -> Option<Vec<Word>> {
        let text = self.text(path).filter(|text| text.len() <= LONGEST)?;
        self.budget.spend(SETTINGS * text.len());
        if self.budget.is_spent() {
            return None;
        }
        let settings = match serde_saphyr::from_str::<Value>(text).ok()? {
            Value::Object(settings) => settings,
            Value::Null => return Some(Vec::new()),
            _ => return None,
        };
        let mut words = Vec::new();
        let mut push = |text: String| words.push(Word { text, origin });
        for (key, value) in settings.iter().take(MAX_SETTINGS) {
            let flag = spelling(engine, key);
            match value {
                Value::Bool(false) | Value::Null => {}
                Value::Bool(true) => push(flag),
                Value::String(text) => {
                    push(flag);
                    push(text.clone());
                }
                other => {
                    push(flag);
                    push(other.to_string());
                }
            }
        }
        Some(words)
    }
}

/// The flag that a key of a file stands for: files write `-` and `_` alike.
fn spelling(engine: &Engine, key: &str) -> String {
    let plain = |text: &str| text.trim_start_matches('-').replace('-', "_");
    let wanted = plain(key);
    engine
        .flags
        .values()
        .chain(engine.switches.values())
        .flatten()
        .chain(&engine.evidence)
        .find(|flag| flag.starts_with("--") && plain(flag) == wanted)
        .cloned()
        .unwrap_or_else(|| format!("--{key}"))
}

fn list<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// An absolute path without empty and `.` components; `None` for one that goes back.
fn normal(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => {
                out.push('/');
                out.push_str(part);
            }
        }
    }
    Some(out)
}
