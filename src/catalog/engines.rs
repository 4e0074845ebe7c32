//! Model servers and accelerators: how a container that serves is told, and how it says how many
//! ranks it starts. The rows stand in `policies/catalog/engines.yaml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// What a flag or an environment variable of an engine sets.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Setting {
    /// Tensor parallel size.
    Tensor,
    /// Pipeline parallel size.
    Pipeline,
    /// Context parallel size where it multiplies the ranks.
    Context,
    /// Data parallel size.
    Data,
    /// Data parallel ranks of this pod.
    DataLocal,
    /// Number of nodes (pods) of one instance.
    Nodes,
    /// Ranks in all.
    World,
    /// Ranks a node.
    PerNode,
    /// Seconds that the engine takes to finish requests after SIGTERM.
    Shutdown,
    /// A switch: the data parallel ranks are one collective (expert parallelism).
    Expert,
    /// A switch: each data parallel rank is an instance of its own behind an outer balancer.
    ExternalData,
    /// A switch: data parallelism divides the tensor parallel ranks and adds none.
    WithinTensor,
    /// A switch: ranks are placed by Ray.
    Ray,
    /// A switch or boolean: shard over every visible GPU, or over none.
    Sharded,
}

/// How an engine reads its flags.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Dialect {
    /// Exact spellings only.
    #[default]
    Exact,
    /// Python's argparse: unambiguous prefixes of long flags count.
    Argparse,
    /// vLLM's parser: argparse that also takes `_` for `-` in long flags.
    Vllm,
}

/// How many ranks an engine starts when nothing is said.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Silent {
    /// One.
    #[default]
    One,
    /// One for every GPU it sees.
    All,
    /// It decides for itself, or a file says.
    Unknown,
}

/// What data parallelism does to the number of ranks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum DataRanks {
    /// Each data parallel rank is a whole set of tensor × pipeline ranks.
    #[default]
    Multiplies,
    /// It depends on the model.
    Unknown,
}

/// One model server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Engine {
    /// Short name.
    pub name: String,
    /// Name as people write it.
    pub title: String,
    /// Takes what it does not say itself from the built-in engine of this name.
    pub like: Option<String>,
    /// Whether the program is a server by itself; false for launchers.
    pub server: Option<bool>,
    /// Runs of name tokens of the image's last path component, or globs over its path.
    pub images: Vec<String>,
    /// First words of the command line.
    pub programs: Vec<String>,
    /// How flags are read.
    pub dialect: Dialect,
    /// Flags that no other program has: they tell the engine in an image that nobody knows.
    pub signature: Vec<String>,
    /// Spellings of flags that carry a number.
    pub flags: BTreeMap<Setting, Vec<String>>,
    /// Spellings of flags whose presence matters.
    pub switches: BTreeMap<Setting, Vec<String>>,
    /// Flags that only an engine of several nodes is given.
    pub evidence: Vec<String>,
    /// Other flags that share prefixes with these.
    pub others: Vec<String>,
    /// Environment variables that the engine itself reads; flags win.
    pub env: BTreeMap<Setting, Vec<String>>,
    /// Environment variables that carry further flags.
    pub extra_args: Vec<String>,
    /// Environment variables that limit the GPUs it sees.
    pub visible_devices: Vec<String>,
    /// Environment variable that names a profile with `tpN` and `ppN` in it.
    pub profile: Option<String>,
    /// Flags that name a file with the same settings.
    pub config_flags: Vec<String>,
    /// That file overrides the command line.
    pub config_wins: bool,
    /// Ranks where nothing is said.
    pub silent: Silent,
    /// What data parallelism does.
    pub data_ranks: DataRanks,
    /// Where this was read: project, file or document, version.
    pub source: String,
    /// When, as YYYY-MM.
    pub checked: String,
}

/// A resource that stands for an accelerator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Accelerator {
    /// The resource's name.
    pub resource: String,
    /// What its name begins with, where it has variants.
    pub prefix: String,
    /// Who makes it.
    pub vendor: String,
    /// One unit is one whole GPU, and one rank of an engine takes one.
    pub whole: bool,
    /// The device classes by which resource claims ask for it.
    pub device_classes: Vec<String>,
}

impl Accelerator {
    /// Whether this row speaks of `resource`.
    pub fn matches(&self, resource: &str) -> bool {
        if self.prefix.is_empty() {
            self.resource == resource
        } else {
            resource.starts_with(&self.prefix)
        }
    }
}

/// The catalogue of engines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Engines {
    /// The servers, earlier rows first.
    pub engines: Vec<Engine>,
    /// Name tokens of images that are no server.
    pub not_images: Vec<String>,
    /// Command lines that are no server.
    pub not_programs: Vec<String>,
    /// Programs that only hold a GPU.
    pub idle: Vec<String>,
    /// Resources that stand for accelerators.
    pub accelerators: Vec<Accelerator>,
}

static BUILTIN: LazyLock<Engines> = LazyLock::new(|| {
    serde_saphyr::from_str(include_str!("../../policies/catalog/engines.yaml")).unwrap_or_default()
});

impl Engines {
    /// The rows that are built in.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// The built-in rows behind a site's own, which win. A row that is `like` a built-in one takes
    /// from it what it leaves empty.
    #[must_use]
    pub fn with(site: &[Engine]) -> Self {
        let mut all = Self::builtin().clone();
        let mut own: Vec<Engine> = site
            .iter()
            .map(|row| {
                let base = row.like.as_deref().and_then(|name| all.find(name));
                base.map_or_else(|| row.clone(), |base| row.clone().or(base))
            })
            .collect();
        own.append(&mut all.engines);
        all.engines = own;
        all
    }

    /// The row of this name.
    pub fn find(&self, name: &str) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.name == name)
    }

    /// The accelerator that a resource name stands for.
    pub fn accelerator(&self, resource: &str) -> Option<&Accelerator> {
        self.accelerators.iter().find(|row| row.matches(resource))
    }

    /// Whether an image is known to be no server: a client, a router, a simulator and the like.
    pub fn is_no_server(&self, image: &str) -> bool {
        let image = Image::parse(image);
        let mut tokens = image.tokens().chain(image.tag_tokens());
        tokens.any(|token| {
            self.not_images
                .iter()
                .any(|not| not.eq_ignore_ascii_case(token))
        })
    }

    /// The engine whose image this is; none for images that are no servers.
    pub fn by_image(&self, image: &str) -> Option<&Engine> {
        if self.is_no_server(image) {
            return None;
        }
        let image = Image::parse(image);
        self.engines
            .iter()
            .find(|engine| engine.images.iter().any(|pattern| image.matches(pattern)))
    }
}

impl Engine {
    /// Whether a site's row says enough to be of use.
    ///
    /// # Errors
    /// The member that is wrong, and why.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.name.is_empty() {
            return Err(("name", "names no engine".to_owned()));
        }
        if let Some(like) = &self.like
            && Engines::builtin().find(like).is_none()
        {
            let known: Vec<&str> = Engines::builtin()
                .engines
                .iter()
                .map(|row| row.name.as_str())
                .collect();
            let message = format!(
                "there is no engine \"{like}\"; the built-in ones are {}",
                known.join(", ")
            );
            return Err(("like", message));
        }
        if self.images.is_empty() && self.programs.is_empty() && self.signature.is_empty() {
            return Err((
                "images",
                "tells no way to recognise it: give images or programs".to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether running it is serving.
    pub fn is_server(&self) -> bool {
        self.server.unwrap_or(true)
    }

    fn or(mut self, base: &Self) -> Self {
        fn keep<T: Clone + Default + PartialEq>(own: &mut T, base: &T) {
            if *own == T::default() {
                own.clone_from(base);
            }
        }
        keep(&mut self.title, &base.title);
        keep(&mut self.dialect, &base.dialect);
        keep(&mut self.flags, &base.flags);
        keep(&mut self.switches, &base.switches);
        keep(&mut self.evidence, &base.evidence);
        keep(&mut self.others, &base.others);
        keep(&mut self.env, &base.env);
        keep(&mut self.extra_args, &base.extra_args);
        keep(&mut self.visible_devices, &base.visible_devices);
        keep(&mut self.profile, &base.profile);
        keep(&mut self.config_flags, &base.config_flags);
        keep(&mut self.config_wins, &base.config_wins);
        keep(&mut self.silent, &base.silent);
        keep(&mut self.data_ranks, &base.data_ranks);
        self
    }
}

/// An image reference, taken apart.
struct Image<'a> {
    /// The path below the registry host, without tag and digest.
    path: &'a str,
    tag: &'a str,
}

impl<'a> Image<'a> {
    fn parse(image: &'a str) -> Self {
        let image = image.split('@').next().unwrap_or_default();
        let slash = image.rfind('/').map_or(0, |at| at + 1);
        let (name_end, tag) = match image.get(slash..).and_then(|last| last.find(':')) {
            Some(colon) => (
                slash + colon,
                image.get(slash + colon + 1..).unwrap_or_default(),
            ),
            None => (image.len(), ""),
        };
        let path = image.get(..name_end).unwrap_or_default();
        let path = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => rest,
            _ => path,
        };
        Self { path, tag }
    }

    fn name(&self) -> &'a str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn tokens(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        self.name().split(['-', '_', '.'])
    }

    fn tag_tokens(&self) -> impl Iterator<Item = &'a str> {
        self.tag.split(['-', '_', '.'])
    }

    fn matches(&self, pattern: &str) -> bool {
        if pattern.contains('/') {
            return glob(pattern, self.path);
        }
        let mut tokens = self.tokens();
        loop {
            let mut run = tokens.clone();
            let mut wanted = pattern.split(['-', '_', '.']);
            if wanted.all(|wanted| {
                run.next()
                    .is_some_and(|own| own.eq_ignore_ascii_case(wanted))
            }) {
                return true;
            }
            if tokens.next().is_none() {
                return false;
            }
        }
    }
}

/// `*` stands for one whole path component.
fn glob(pattern: &str, path: &str) -> bool {
    let mut components = path.split('/');
    for wanted in pattern.split('/') {
        match components.next() {
            Some(component) if wanted == "*" || wanted.eq_ignore_ascii_case(component) => {}
            _ => return false,
        }
    }
    components.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(image: &str) -> Option<&'static str> {
        Engines::builtin()
            .by_image(image)
            .map(|engine| engine.name.as_str())
    }

    #[test]
    fn the_built_in_rows_are_read_and_carry_their_source() {
        let rows: Engines =
            serde_saphyr::from_str(include_str!("../../policies/catalog/engines.yaml")).unwrap();
        assert!(rows.engines.len() > 12);
        for row in &rows.engines {
            assert!(
                !row.source.is_empty() && !row.checked.is_empty(),
                "{}",
                row.name
            );
        }
        assert_eq!(Engines::builtin(), &rows);
    }

    #[test]
    fn servers_are_told_by_their_image() {
        for (image, name) in [
            ("vllm/vllm-openai:v0.11.0", "vllm"),
            ("docker.io/vllm/vllm-openai@sha256:0b51", "vllm"),
            ("registry.example:5000/mirror/vllm-openai", "vllm"),
            ("nvcr.io/nvidia/vllm:26.02-py3", "vllm"),
            ("lmsysorg/sglang:v0.5.4", "sglang"),
            ("nvcr.io/nvidia/tensorrt-llm/release:1.1.0", "tensorrt-llm"),
            ("ghcr.io/huggingface/text-generation-inference:3.3.4", "tgi"),
            (
                "example.dev/gcr.io/huggingface-text-generation-inference-cu124.2-3",
                "tgi",
            ),
            ("nvcr.io/nim/meta/llama-3.1-70b-instruct:1.12.0", "nim"),
            ("nvcr.io/nvidia/tritonserver:24.06-py3", "triton"),
            ("ghcr.io/ggml-org/llama.cpp:server-cuda", "llama-cpp"),
        ] {
            assert_eq!(engine(image), Some(name), "{image}");
        }
    }

    #[test]
    fn what_stands_beside_a_server_is_none() {
        for image in [
            "nvcr.io/nvidia/tritonserver:24.06-py3-sdk",
            "quay.io/example/vllme:0.2.3",
            "vllm/vllm-router:v1",
            "example/vllm-emulator:1",
            "public.ecr.aws/eks-distro/kubernetes/pause:3.2",
            "nginx",
            "",
        ] {
            assert_eq!(engine(image), None, "{image}");
        }
    }

    #[test]
    fn a_site_adds_engines_that_take_after_built_in_ones() {
        let site = Engine {
            name: "house".into(),
            like: Some("vllm".into()),
            images: vec!["llm-base".into()],
            ..Engine::default()
        };
        let all = Engines::with(&[site]);
        let row = all.by_image("registry.example/team/llm-base:7").unwrap();
        assert_eq!(row.name, "house");
        assert_eq!(row.dialect, Dialect::Vllm);
        assert!(row.flags.contains_key(&Setting::Tensor));
    }
}
