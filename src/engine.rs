//! What a container's command line says about a model server: which engine it is and how many
//! ranks it starts.
//!
//! Command lines are read the way they are run: `command` and `args` joined, `$(VAR)` expanded as
//! the kubelet does, shell scripts as a shell would, flags as the engine's own parser. What cannot
//! be told without running it is unknown, never guessed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    budget::Budget,
    catalog::engines::{DataRanks, Engine, Engines, Setting, Silent},
    facts::Facts,
    finding::{Confidence, FieldPath},
    subject::{
        at,
        pod_template::{Container, Count, PodTemplate},
        workload::Stated,
    },
};

mod files;
mod flags;
mod shell;

use files::Files;
use flags::Reading;
use shell::{Command, POSITIONAL, UNKNOWN, Variable};

/// Greatest degree that is taken for one; anything above is somebody's mistake.
const MAX_DEGREE: u64 = 100_000;
/// How deep scripts in scripts are followed.
const MAX_DEPTH: usize = 4;
/// Most scripts of mounted files that one container's command line is followed into.
const MAX_SCRIPTS: usize = 16;
/// Steps that a variable of the environment takes, beside its bytes.
const VARIABLE: usize = 100;
/// Steps that a command takes, beside its words.
const COMMAND: usize = 400;
/// Steps that a word takes, beside its bytes: it is compared with every program that is known, and
/// with every flag of one.
const WORD: usize = 300;
/// Steps that it takes to look a word up among the flags by which an engine is told.
const SIGNATURE: usize = 1_000;
/// Steps that the ranks of a run take, beside its words.
const RUN: usize = 3_000;
/// Most words of one container that are read.
const MAX_WORDS: usize = 20_000;

/// The ConfigMaps of one namespace, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct ConfigMaps<'a> {
    /// What is known.
    pub facts: &'a Facts,
    /// The namespace; none for a file that leaves it open.
    pub namespace: Option<&'a str>,
}

impl<'a> ConfigMaps<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.facts
            .object("", "ConfigMap", self.namespace, name)
            .present()
    }
}

/// How far a pod's engine spreads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degree {
    /// How much.
    pub count: Count,
    /// Where it is said; `None` where silence says it.
    pub path: Option<FieldPath>,
}

impl Degree {
    const ONE: Self = Self {
        count: Count::Known(1),
        path: None,
    };

    fn unsaid(count: Count) -> Self {
        Self { count, path: None }
    }
}

/// A sign that one instance of the model is meant to span several pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The sign, as it is written: `--nnodes 2`.
    pub text: String,
    /// Where it stands.
    pub path: FieldPath,
}

/// The ranks that an engine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parallelism {
    /// Tensor parallel size.
    pub tensor: Degree,
    /// Pipeline parallel size.
    pub pipeline: Degree,
    /// Context parallel size where it multiplies the ranks.
    pub context: Degree,
    /// Data parallel size inside the engine.
    pub data: Degree,
    /// Pods of one instance, where it is said.
    pub nodes: Option<Degree>,
    /// Ranks of one instance in all.
    pub world: Count,
    /// Signs of several pods.
    pub multi_node: Option<Evidence>,
}

impl Parallelism {
    const UNKNOWN: Self = Self {
        tensor: Degree {
            count: Count::Unknown,
            path: None,
        },
        pipeline: Degree::ONE,
        context: Degree::ONE,
        data: Degree::ONE,
        nodes: None,
        world: Count::Unknown,
        multi_node: None,
    };

    /// The degrees above one, in words: `TP 8 × PP 2`.
    pub fn describe(&self) -> String {
        let named = [
            ("TP", &self.tensor),
            ("PP", &self.pipeline),
            ("CP", &self.context),
            ("DP", &self.data),
        ];
        let parts: Vec<String> = named
            .iter()
            .filter_map(|(name, degree)| match degree.count {
                Count::Known(1) => None,
                Count::Known(number) => Some(format!("{name} {number}")),
                Count::Unknown => Some(format!("{name} unknown")),
            })
            .collect();
        if parts.is_empty() {
            "one rank".to_owned()
        } else {
            parts.join(" × ")
        }
    }

    /// Whether it is known to start more than one rank.
    pub fn has_several_ranks(&self) -> bool {
        self.world.known().is_some_and(|ranks| ranks > 1)
    }

    /// Whether one instance is meant to span several pods.
    pub fn is_multi_node(&self) -> bool {
        let nodes = self.nodes.as_ref().map(|nodes| nodes.count);
        self.multi_node.is_some() || nodes.is_some_and(|nodes| nodes != Count::Known(1))
    }

    /// Where the greatest degree is said.
    pub fn path(&self) -> Option<&FieldPath> {
        [&self.tensor, &self.pipeline, &self.context, &self.data]
            .into_iter()
            .filter(|degree| degree.count != Count::Known(1))
            .find_map(|degree| degree.path.as_ref())
            .or_else(|| self.nodes.as_ref().and_then(|nodes| nodes.path.as_ref()))
            .or_else(|| self.multi_node.as_ref().map(|evidence| &evidence.path))
    }
}

/// A container that serves a model.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// The engine; `None` where only the owner's label says that this is a server.
    pub engine: Option<&'a Engine>,
    /// The container.
    pub container: Container<'a>,
    /// Where the container stands.
    pub path: FieldPath,
    /// Certain where the command line names the server, presumed where the image does.
    pub confidence: Confidence,
    /// Its ranks.
    pub parallelism: Parallelism,
    /// Servers that the container starts; more than one share its GPUs.
    pub processes: usize,
    /// Seconds that the engine takes to finish requests after SIGTERM, where it is said.
    pub shutdown: Option<Count>,
}

impl Server<'_> {
    /// What to call it.
    pub fn title(&self) -> &str {
        self.engine
            .map_or("the model server", |engine| engine.title.as_str())
    }

    /// Whether it may be another node of the same instance.
    pub fn is_twin_of(&self, other: &Self) -> bool {
        let engine = |server: &Self| server.engine.map(|engine| engine.name.clone());
        self.parallelism.is_multi_node()
            && other.parallelism.is_multi_node()
            && self.parallelism.world == other.parallelism.world
            && engine(self) == engine(other)
    }
}

/// What surrounds a pod and decides what its command line means.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The catalogue.
    pub engines: &'a Engines,
    /// The ConfigMaps of the object's namespace.
    pub config_maps: ConfigMaps<'a>,
    /// Variables that a controller sets in every container, as `LWS_GROUP_SIZE`.
    pub injected: Vec<(&'static str, Count)>,
    /// The owner is declared to be a model server.
    pub declared: bool,
    /// What reading the pods' command lines costs.
    pub budget: &'a Budget,
}

/// Containers with accelerators that one pod is read for. No node has so many GPUs to give them, and what
/// each of them is compared with is all of the pod.
const MOST_SERVERS: usize = 64;

/// The containers of a pod that serve a model on accelerators, in their order, and what each says of
/// its ranks. Each has the accelerators that it asks for itself.
pub fn servers<'a>(template: &PodTemplate<'a>, around: &Surroundings<'a>) -> Vec<Server<'a>> {
    if template.accelerators(around.engines).is_none() {
        return Vec::new();
    }
    template
        .long_running()
        .filter(|container| template.container_has_accelerator(around.engines, container))
        .take(MOST_SERVERS)
        .take_while(|_| !around.budget.is_spent())
        .filter_map(|container| {
            let gpus = template
                .accelerators_of(around.engines, &container)
                .map_or(Count::Unknown, |own| own.units);
            around.budget.on(
                || template.container_path(&container),
                || read(template, container, gpus, around),
            )
        })
        // What was read in part says nothing.
        .take_while(|_| !around.budget.is_spent())
        .collect()
}

/// Takes the ranks of a Ray Serve application from its configuration (`spec.serveConfigV2`, YAML in
/// a string), where that says them: `llm_configs[].engine_kwargs`.
pub fn ray_serve(object: &Value, server: &mut Server<'_>) {
    const LIMIT: usize = 256 * 1024;
    let Some(text) = at(object, &["spec", "serveConfigV2"]).and_then(Value::as_str) else {
        return;
    };
    if text.len() > LIMIT {
        return;
    }
    let Ok(config) = serde_saphyr::from_str::<Value>(text) else {
        return;
    };
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut greatest: Option<(u64, u64)> = None;
    for application in list(&config, "applications") {
        let Some(args) = application.get("args") else {
            continue;
        };
        for model in list(args, "llm_configs") {
            let size = |key: &str| match at(&model, &["engine_kwargs", key]) {
                None => Some(1),
                Some(value) => value
                    .as_u64()
                    .filter(|size| (1..=MAX_DEGREE).contains(size)),
            };
            let (Some(tensor), Some(pipeline)) =
                (size("tensor_parallel_size"), size("pipeline_parallel_size"))
            else {
                return;
            };
            let more =
                greatest.is_none_or(|(t, p)| tensor.saturating_mul(pipeline) > t.saturating_mul(p));
            if more {
                greatest = Some((tensor, pipeline));
            }
        }
    }
    let Some((tensor, pipeline)) = greatest else {
        return;
    };
    let path = FieldPath::of(&["spec", "serveConfigV2"]);
    let said = |count| Degree {
        count: Count::Known(count),
        path: Some(path.clone()),
    };
    server.parallelism = Parallelism {
        tensor: said(tensor),
        pipeline: said(pipeline),
        world: Count::Known(tensor).times(Count::Known(pipeline)),
        ..Parallelism::UNKNOWN
    };
}

/// Takes the ranks from what the object states in fields of its own, which its controller turns into
/// flags where it writes the command line itself. What the object writes on a command line is later
/// there, and wins.
pub fn stated(stated: &Stated, server: &mut Server<'_>) {
    let said = server.parallelism.tensor.path.is_some();
    if said || !server.container.texts("command").is_empty() {
        return;
    }
    let one = |degree: &Option<Degree>| degree.clone().unwrap_or(Degree::ONE);
    let (pipeline, data) = (one(&stated.pipeline), one(&stated.data));
    let world = stated.tensor.count.times(pipeline.count).times(data.count);
    server.parallelism = Parallelism {
        tensor: stated.tensor.clone(),
        pipeline,
        data,
        world,
        nodes: server.parallelism.nodes.clone(),
        multi_node: server.parallelism.multi_node.clone(),
        ..Parallelism::UNKNOWN
    };
}

/// Where a word of a command line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Command(usize),
    Args(usize),
    Env(usize),
    EnvFrom(usize),
}

impl Origin {
    fn path(self, container: &FieldPath) -> FieldPath {
        let container = container.clone();
        match self {
            Self::Command(index) => container.key("command").index(index),
            Self::Args(index) => container.key("args").index(index),
            Self::Env(index) => container.key("env").index(index).key("value"),
            Self::EnvFrom(index) => container.key("envFrom").index(index),
        }
    }
}

/// A word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: String,
    origin: Origin,
}

/// The environment of a container, as far as it can be read.
struct Environment<'b> {
    budget: &'b Budget,
    variables: BTreeMap<String, (Variable, Origin)>,
    /// Some of it comes from where we cannot look.
    open: bool,
}

impl<'b> Environment<'b> {
    fn read(container: &Container<'_>, around: &Surroundings<'b>) -> Self {
        let mut this = Self {
            budget: around.budget,
            variables: BTreeMap::new(),
            open: false,
        };
        for (name, count) in &around.injected {
            let value = match count {
                Count::Known(number) => Variable::Known(number.to_string()),
                Count::Unknown => Variable::Unknown,
            };
            this.variables
                .insert((*name).to_owned(), (value, Origin::Env(0)));
        }
        let list = |key: &str| {
            container
                .value
                .get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .enumerate()
        };
        for (index, source) in list("envFrom") {
            let data = at(source, &["configMapRef", "name"])
                .and_then(Value::as_str)
                .and_then(|name| around.config_maps.get(name))
                .and_then(|map| map.get("data")?.as_object());
            let Some(data) = data else {
                this.open = true;
                continue;
            };
            let prefix = source
                .get("prefix")
                .and_then(Value::as_str)
                .unwrap_or_default();
            for (key, value) in data {
                this.budget.spend(VARIABLE);
                let value = value
                    .as_str()
                    .map_or(Variable::Unknown, |text| Variable::Known(text.to_owned()));
                let name = format!("{prefix}{key}");
                this.variables.insert(name, (value, Origin::EnvFrom(index)));
            }
        }
        for (index, variable) in list("env") {
            this.budget.spend(VARIABLE);
            let Some(name) = variable.get("name").and_then(Value::as_str) else {
                continue;
            };
            let value = match variable.get("value") {
                Some(Value::String(text)) => {
                    let text = this.expand(text, true);
                    if text.contains(UNKNOWN) {
                        Variable::Unknown
                    } else {
                        Variable::Known(text)
                    }
                }
                None | Some(Value::Null) => from_config_map(variable, around),
                Some(_) => Variable::Unknown,
            };
            this.variables
                .insert(name.to_owned(), (value, Origin::Env(index)));
        }
        this
    }

    fn get(&self, name: &str) -> Variable {
        match self.variables.get(name) {
            Some((value, _)) => value.clone(),
            None if self.open => Variable::Unknown,
            None => Variable::Unset,
        }
    }

    /// Expands `$(NAME)` as the kubelet does; `$$` stands for `$`. A reference to nothing stays as
    /// it is written, which a shell takes for a command and everything else for text.
    fn expand(&self, text: &str, close: bool) -> String {
        if self.budget.is_spent() {
            return UNKNOWN.to_string();
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        // Where one reference is not closed, no later one is: the text is not searched for each.
        let mut closed = true;
        while let Some(dollar) = rest.find('$') {
            let (before, from) = rest.split_at(dollar);
            out.push_str(before);
            if let Some(after) = from.strip_prefix("$$") {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) = from
                .strip_prefix("$(")
                .filter(|_| closed)
                .and_then(|inner| inner.split_once(')'))
            {
                match self.variables.get(name).map(|(value, _)| value) {
                    Some(Variable::Known(value)) => out.push_str(value),
                    Some(_) => out.push(UNKNOWN),
                    None if close => out.push(UNKNOWN),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = after;
            } else {
                closed &= !from.starts_with("$(");
                out.push('$');
                rest = from.get(1..).unwrap_or_default();
            }
            if out.len() > 256 * 1024 {
                self.budget.spend(4 * out.len());
                return UNKNOWN.to_string();
            }
        }
        out.push_str(rest);
        // It is copied, and looked through for blanks, names and flags.
        self.budget.spend(4 * (text.len() + out.len()));
        out
    }
}

fn from_config_map(variable: &Value, around: &Surroundings<'_>) -> Variable {
    let reference = at(variable, &["valueFrom", "configMapKeyRef"]);
    let text = |key: &str| reference.and_then(|reference| reference.get(key)?.as_str());
    let value = text("name")
        .and_then(|name| around.config_maps.get(name))
        .zip(text("key"))
        .and_then(|(map, key)| at(map, &["data", key])?.as_str());
    value.map_or(Variable::Unknown, |value| Variable::Known(value.to_owned()))
}

/// One run of an engine.
struct Invocation<'a> {
    engine: Option<&'a Engine>,
    words: Vec<Word>,
    assignments: Vec<(String, String)>,
    confidence: Confidence,
    /// The launcher in front of it, as torchrun.
    launcher: Option<(&'a Engine, Vec<Word>)>,
    ranks: Option<Reading>,
}

fn read<'a>(
    template: &PodTemplate<'a>,
    container: Container<'a>,
    gpus: Count,
    around: &Surroundings<'a>,
) -> Option<Server<'a>> {
    let environment = Environment::read(&container, around);
    let command = container.texts("command");
    let args = container.texts("args");
    let words: Vec<Word> = command
        .iter()
        .enumerate()
        .map(|(index, text)| (*text, Origin::Command(index)))
        .chain(
            args.iter()
                .enumerate()
                .map(|(index, text)| (*text, Origin::Args(index))),
        )
        .take(MAX_WORDS)
        .map(|(text, origin)| Word {
            text: environment.expand(text, false),
            origin,
        })
        .collect();
    let path = template.container_path(&container);
    let files = Files {
        template,
        container: &container,
        config_maps: around.config_maps,
        budget: around.budget,
    };
    let mut found = Found {
        environment: &environment,
        around,
        files,
        file: None,
        scripts: 0,
        runs: Vec::new(),
        busy: false,
        repeated: false,
        launched: false,
        sign: None,
    };
    found.follow(&words, &[], 0);
    let sign = found.sign.take();
    let file = found.file.take();
    let idle = !words.is_empty() && !found.busy;
    let (repeated, launched) = (found.repeated, found.launched);
    let mut runs = found.runs;
    let mut shown = runs.first().and_then(|run| run.engine);
    if runs.is_empty() {
        if idle && !around.declared {
            return None;
        }
        let by_image = around.engines.by_image(container.image());
        // A simulator takes the flags of what it stands for.
        around.budget.spend(SIGNATURE * words.len());
        let other = launched || around.engines.is_no_server(container.image());
        let signature = around.engines.engines.iter().find(|engine| {
            if other && !around.declared {
                return false;
            }
            let has = |word: &Word| {
                engine
                    .signature
                    .iter()
                    .any(|flag| flags::names(engine.dialect, &word.text, flag))
            };
            words.iter().any(has)
        });
        shown = by_image.or(signature).filter(|engine| engine.is_server());
        if !around.declared && (shown.is_none() || not_a_server(around.engines, &words)) {
            return None;
        }
        // Without a `command` the image's entry point gets the arguments; what becomes of them
        // behind another program nobody knows, unless they can only mean one thing.
        let heard = match file {
            Some((_, File::Mounted)) => false,
            Some((_, File::OfTheImage)) => signature.is_some(),
            None => signature.is_some() || (command.is_empty() && shown.is_some()),
        };
        runs.push(Invocation {
            engine: shown.or(signature).filter(|_| heard),
            words,
            assignments: Vec::new(),
            confidence: Confidence::Presumed,
            launcher: None,
            ranks: None,
        });
    }
    let all: Vec<(Parallelism, Option<Count>)> = runs
        .iter()
        .take_while(|_| !around.budget.is_spent())
        .map(|run| ranks(run, &environment, &files, &path, gpus))
        .collect();
    let (mut parallelism, shutdown) = all.first()?.clone();
    if let Some((origin, File::Mounted)) = file
        && parallelism == Parallelism::UNKNOWN
    {
        parallelism.tensor.path = Some(origin.path(&path));
    }
    if all
        .iter()
        .any(|(other, _)| other.world != parallelism.world)
    {
        // Which of them runs, or how they share the pod, cannot be told.
        parallelism = Parallelism::UNKNOWN;
    }
    if parallelism.multi_node.is_none()
        && parallelism.nodes.is_none()
        && let Some((text, origin)) = sign
    {
        parallelism.multi_node = Some(Evidence {
            text,
            path: origin.path(&path),
        });
    }
    Some(Server {
        engine: shown,
        confidence: runs.first()?.confidence,
        processes: runs.len() + usize::from(repeated),
        container,
        path,
        parallelism,
        shutdown,
    })
}

/// Where a script stands that was run and started no engine that could be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    /// In a volume: somebody wrote it for this pod, and may start anything with any flags.
    Mounted,
    /// In the image, where it most often hands its arguments on.
    OfTheImage,
}

/// Follows a container's command line to the engines that it runs.
struct Found<'e, 'a> {
    environment: &'e Environment<'a>,
    around: &'e Surroundings<'a>,
    files: Files<'a, 'e>,
    /// The script that hides what runs.
    file: Option<(Origin, File)>,
    /// How many files were read as scripts.
    scripts: usize,
    runs: Vec<Invocation<'a>>,
    /// Something runs that does more than hold the pod open.
    busy: bool,
    /// A launcher runs a program that is no server that we know, and trains as often as it serves.
    launched: bool,
    /// An engine runs in a loop, perhaps several times at once.
    repeated: bool,
    /// Something runs beside the engine that joins pods into one instance.
    sign: Option<(String, Origin)>,
}

impl Found<'_, '_> {
    fn follow(&mut self, words: &[Word], assignments: &[(String, String)], depth: usize) {
        let budget = self.around.budget;
        let bytes: usize = words.iter().map(|word| word.text.len()).sum();
        budget.spend(COMMAND + WORD * words.len() + bytes);
        budget.spend(WORD * assignments.len());
        if budget.is_spent() {
            return;
        }
        let (words, given) = unwrap(words);
        let assignments = &[assignments, &given].concat();
        let Some(first) = words.first() else { return };
        let program = basename(&first.text);
        if matches!(program, "sh" | "bash" | "dash" | "ash" | "zsh")
            && let Some((script, positional)) = script(words)
        {
            return self.script(script, positional, depth);
        }
        if let Some((file, positional)) = script_file(program, words)
            && self.script_in_file(program, file, positional, depth)
        {
            return;
        }
        if program == "eval" {
            let joined = words
                .iter()
                .skip(1)
                .map(|word| word.text.as_str())
                .collect::<Vec<_>>();
            let script = Word {
                text: joined.join(" "),
                origin: first.origin,
            };
            return self.script(&script, &[], depth);
        }
        if not_a_server(self.around.engines, words) {
            return;
        }
        if program == "ray" && words.get(1).is_some_and(|word| word.text == "start") {
            self.sign = Some(("ray start".to_owned(), first.origin));
        } else if let Some(word) = words
            .iter()
            .find(|word| word.text.contains("multi-node-serving"))
        {
            self.sign = Some((basename(&word.text).to_owned(), word.origin));
        }
        let idle = &self.around.engines.idle;
        if !idle.iter().any(|idle| idle == program) && !is_shell_builtin(program) {
            self.busy = true;
        }
        if harmless(program) {
            return;
        }
        self.invocation(words, assignments);
    }

    fn invocation(&mut self, words: &[Word], assignments: &[(String, String)]) {
        let mut launcher = None;
        let mut mpi = None;
        for start in 0..words.len() {
            let Some(rest @ [first, ..]) = words.get(start..) else {
                return;
            };
            let name = basename(&first.text);
            for engine in &self.around.engines.engines {
                let Some(length) = engine
                    .programs
                    .iter()
                    .find_map(|program| matches_program(program, name, rest))
                else {
                    continue;
                };
                self.around.budget.spend(WORD * rest.len());
                if self.around.budget.is_spent() {
                    return;
                }
                let after = rest.get(length..).unwrap_or_default().to_vec();
                if !engine.is_server() {
                    launcher = Some((engine, after));
                    break;
                }
                self.runs.push(Invocation {
                    engine: Some(engine),
                    words: after,
                    assignments: assignments.to_vec(),
                    confidence: Confidence::Certain,
                    launcher,
                    ranks: mpi,
                });
                return;
            }
            if matches!(
                rest.first().map(|word| basename(&word.text)),
                Some("mpirun" | "mpiexec" | "srun")
            ) {
                self.around.budget.spend(8 * rest.len());
                if self.around.budget.is_spent() {
                    return;
                }
                mpi = flags::processes(rest);
            }
        }
        self.launched |= launcher.is_some() || mpi.is_some();
        if let (Some((engine, words)), true) = (launcher, self.around.declared) {
            self.runs.push(Invocation {
                engine: Some(engine),
                words,
                assignments: assignments.to_vec(),
                confidence: Confidence::Certain,
                launcher: None,
                ranks: None,
            });
        }
    }

    fn script(&mut self, script: &Word, positional: &[Word], depth: usize) {
        self.commands(&script.text, script.origin, positional, depth, false);
    }

    /// Follows a script that stands in a file; `false` where that cannot be read.
    fn script_in_file(
        &mut self,
        program: &str,
        file: &Word,
        positional: &[Word],
        depth: usize,
    ) -> bool {
        let mounted = self.files.is_mounted(&file.text);
        // A script may run itself.
        let text = self
            .files
            .text(&file.text)
            .filter(|text| is_shell(text) && self.scripts < MAX_SCRIPTS);
        let before = self.runs.len();
        if let Some(text) = text {
            self.scripts += 1;
            self.commands(text, file.origin, positional, depth, depth > 0);
        }
        // The first argument of an image's entry point is a file as well, and most often the model.
        let runs = program != basename(&file.text)
            || is_script(program)
            || depth > 0
            || matches!(file.origin, Origin::Command(_));
        if self.runs.len() == before && (runs || text.is_some()) {
            let place = if mounted {
                File::Mounted
            } else {
                File::OfTheImage
            };
            self.file.get_or_insert((file.origin, place));
        }
        text.is_some()
    }

    /// Follows the commands of a script. What an outer one has set for it is not known.
    fn commands(
        &mut self,
        text: &str,
        origin: Origin,
        positional: &[Word],
        depth: usize,
        inner: bool,
    ) {
        let lookup = |name: &str| {
            if inner {
                Variable::Unknown
            } else {
                self.environment.get(name)
            }
        };
        let budget = self.around.budget;
        let commands = shell::commands(text, &lookup, budget).filter(|_| depth < MAX_DEPTH);
        let Some(commands) = commands else {
            self.busy = true;
            return;
        };
        for Command {
            words,
            assignments,
            repeated,
            defined,
            ..
        } in commands
        {
            let before = self.runs.len();
            let mut all = Vec::with_capacity(words.len());
            for text in words {
                if text.chars().eq([POSITIONAL]) && !defined {
                    all.extend(positional.iter().cloned());
                } else {
                    let text = text.replace(POSITIONAL, &UNKNOWN.to_string());
                    all.push(Word { text, origin });
                }
                if all.len() > MAX_WORDS {
                    break;
                }
            }
            self.follow(&all, &assignments, depth + 1);
            self.repeated |= repeated && self.runs.len() > before;
        }
    }
}

/// The script of `sh -c`, and what becomes its `$@`.
fn script(words: &[Word]) -> Option<(&Word, &[Word])> {
    let mut at = 1;
    let mut is_script = false;
    while let Some(word) = words.get(at) {
        let Some(options) = word.text.strip_prefix(['-', '+']) else {
            break;
        };
        at += 1;
        if options == "-" {
            break;
        }
        if !options.starts_with('-') && options.contains('c') {
            is_script = true;
        }
        if options.ends_with('o') && !options.starts_with('-') {
            at += 1;
        }
    }
    if !is_script {
        return None;
    }
    // After the script comes `$0`, then the parameters.
    Some((words.get(at)?, words.get(at + 2..).unwrap_or_default()))
}

/// The file that a command runs as a script, and what becomes its `$@`: `bash -e /etc/run.sh`,
/// `. /etc/env`, `/etc/run.sh`.
fn script_file<'w>(program: &str, words: &'w [Word]) -> Option<(&'w Word, &'w [Word])> {
    let mut at = 0;
    match program {
        "sh" | "bash" | "dash" | "ash" | "zsh" => {
            at = 1;
            while let Some(options) = words
                .get(at)
                .and_then(|word| word.text.strip_prefix(['-', '+']))
            {
                at += 1;
                if options == "-" {
                    break;
                }
                if options.starts_with('-') {
                    continue;
                }
                if options.contains(['c', 's']) {
                    return None;
                }
                at += usize::from(options.ends_with('o'));
            }
        }
        "source" | "." => at = 1,
        _ => {
            let first = &words.first()?.text;
            if first.starts_with('-') || !first.contains('/') && !is_script(first) {
                return None;
            }
        }
    }
    Some((words.get(at)?, words.get(at + 1..).unwrap_or_default()))
}

/// Whether a file is a shell's script by its name.
pub(crate) fn is_script(file: &str) -> bool {
    std::path::Path::new(file)
        .extension()
        .is_some_and(|extension| extension == "sh")
}

/// Whether a script is one of a shell's: it says so, or says nothing.
fn is_shell(text: &str) -> bool {
    let Some(interpreter) = text.strip_prefix("#!") else {
        return true;
    };
    let line = interpreter.lines().next().unwrap_or_default();
    line.split(['/', ' ', '\t'])
        .any(|word| matches!(word, "sh" | "bash" | "dash" | "ash" | "zsh"))
}

/// Without what only prepares a command: `exec`, `env A=b`, `tini --`, `nohup`, `timeout 30`.
/// And what it sets for it.
fn unwrap(mut words: &[Word]) -> (&[Word], Vec<(String, String)>) {
    let mut given = Vec::new();
    while let Some((first, rest)) = words.split_first() {
        match basename(&first.text) {
            "exec" | "nohup" | "command" | "sudo" | "setsid" | "tini" | "dumb-init" | "stdbuf"
            | "catatonit" | "env" => {
                words = rest;
                while let Some((word, others)) = words.split_first() {
                    let set = word.text.split_once('=').filter(|(name, _)| {
                        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                    });
                    if let Some((name, value)) = set {
                        given.push((name.to_owned(), value.to_owned()));
                    } else if !word.text.starts_with('-') {
                        break;
                    }
                    words = others;
                }
            }
            _ => break,
        }
    }
    (words, given)
}

fn basename(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or_default()
}

fn is_python(program: &str) -> bool {
    program
        .strip_prefix("python")
        .is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// How many words of a command line a program of the catalogue takes, if it is this one. `name` is the base
/// name of the first word: nearly every question ends there, so it is found once for all programs.
fn matches_program(program: &str, name: &str, words: &[Word]) -> Option<usize> {
    let after_name = |of: &str| {
        program
            .strip_prefix(of)
            .filter(|further| further.is_empty() || further.starts_with(' '))
            // One word that is quoted is no two.
            .filter(|_| !of.contains(' '))
    };
    let of_python = after_name("python").filter(|_| is_python(name));
    let further = of_python.or_else(|| after_name(name))?;
    let mut at = 1;
    if of_python.is_some() {
        // Python's own switches, as -u.
        while words.get(at).is_some_and(|word| {
            word.text.starts_with('-') && word.text != "-m" && word.text.len() == 2
        }) {
            at += 1;
        }
    }
    for wanted in further.split(' ').skip(1) {
        let word = &words.get(at)?.text;
        let same = match wanted.strip_suffix('*') {
            Some(prefix) => word.starts_with(prefix),
            None if wanted.contains('.') && !wanted.starts_with('-') => {
                word == wanted || basename(word) == wanted
            }
            None => word == wanted,
        };
        if !same {
            return None;
        }
        at += 1;
    }
    Some(at)
}

fn not_a_server(engines: &Engines, words: &[Word]) -> bool {
    let Some(first) = words.first() else {
        return false;
    };
    let name = basename(&first.text);
    engines
        .not_programs
        .iter()
        .any(|program| matches_program(program, name, words).is_some())
}

/// Programs that print, wait or prepare, whatever words follow.
fn harmless(program: &str) -> bool {
    matches!(
        program,
        "echo"
            | "printf"
            | "grep"
            | "cat"
            | "ls"
            | "mkdir"
            | "cp"
            | "mv"
            | "rm"
            | "ln"
            | "chmod"
            | "pkill"
            | "kill"
            | "pgrep"
            | "test"
            | "["
            | "[["
            | "apt-get"
            | "apt"
            | "sed"
            | "awk"
            | "sleep"
            | "which"
            | "git"
    )
}

fn is_shell_builtin(program: &str) -> bool {
    matches!(
        program,
        "set"
            | ":"
            | "cd"
            | "echo"
            | "exit"
            | "ulimit"
            | "umask"
            | "trap"
            | "wait"
            | "shift"
            | "source"
            | "."
            | "printf"
            | "unset"
            | "break"
            | "continue"
            | "return"
            | "test"
            | "["
            | "[["
            | "mkdir"
            | "ls"
            | "date"
    )
}

/// Reads an engine's ranks off its words and environment.
fn ranks(
    run: &Invocation<'_>,
    environment: &Environment<'_>,
    files: &Files<'_, '_>,
    container: &FieldPath,
    gpus: Count,
) -> (Parallelism, Option<Count>) {
    let Some(engine) = run.engine else {
        return (Parallelism::UNKNOWN, None);
    };
    let budget = environment.budget;
    let bytes: usize = run.words.iter().map(|word| word.text.len()).sum();
    budget.spend(RUN + WORD * run.words.len() + bytes);
    budget.spend(WORD * run.assignments.len());
    let (read, unread) = line(engine, &run.words, files);
    let extra: Vec<Word> = engine
        .extra_args
        .iter()
        .filter_map(|name| match environment.variables.get(name) {
            Some((Variable::Known(text), origin)) => {
                budget.spend(16 * text.len());
                Some(shlex::split(text)?.into_iter().map(|text| Word {
                    text,
                    origin: *origin,
                }))
            }
            _ => None,
        })
        .flatten()
        .collect();
    let (passed, unread_passed) = line(engine, &extra, files);
    let unread = unread.or(unread_passed);
    let hidden = engine
        .extra_args
        .iter()
        .any(|name| environment.get(name) == Variable::Unknown);
    let path = |origin: Origin| Some(origin.path(container));
    let setting = |setting: Setting| -> Option<Degree> {
        if let Some(reading) = read.get(setting).or_else(|| passed.get(setting)) {
            return Some(Degree {
                count: reading.count,
                path: path(reading.origin),
            });
        }
        for name in engine.env.get(&setting).into_iter().flatten() {
            if let Some((_, text)) = run.assignments.iter().find(|(set, _)| set == name) {
                return Some(Degree::unsaid(degree(text)));
            }
            match environment.variables.get(name) {
                Some((Variable::Known(text), origin)) => {
                    let count = if text == "max" { gpus } else { degree(text) };
                    return Some(Degree {
                        count,
                        path: path(*origin),
                    });
                }
                Some((_, origin)) => {
                    return Some(Degree {
                        count: Count::Unknown,
                        path: path(*origin),
                    });
                }
                None if environment.open => return Some(Degree::unsaid(Count::Unknown)),
                None => {}
            }
        }
        None
    };
    let (profile_tensor, profile_pipeline) = profile(engine, environment, container);
    let file = unread.is_some();
    let silent = if hidden || file || read.open {
        Silent::Unknown
    } else {
        engine.silent
    };
    let unsaid = |silent| Degree {
        count: match silent {
            Silent::One => Count::Known(1),
            Silent::All => gpus,
            Silent::Unknown => Count::Unknown,
        },
        // The file that says it, where that cannot be seen.
        path: unread.and_then(path),
    };
    let explicit = setting(Setting::Tensor).or(profile_tensor);
    let tensor = match explicit {
        Some(tensor) => tensor,
        None => silent_tensor(engine, &read, environment, silent, gpus, container)
            .unwrap_or_else(|| unsaid(silent)),
    };
    let other = |found: Option<Degree>| {
        found.unwrap_or_else(|| {
            if file || hidden {
                Degree::unsaid(Count::Unknown)
            } else {
                Degree::ONE
            }
        })
    };
    let pipeline = other(setting(Setting::Pipeline).or(profile_pipeline));
    let context = other(setting(Setting::Context));
    let nodes = setting(Setting::Nodes)
        .or_else(|| launcher_setting(run, Setting::Nodes, environment, container));
    let expert = read.has(Setting::Expert) || passed.has(Setting::Expert);
    let said_data = setting(Setting::Data);
    let local = setting(Setting::DataLocal);
    let mut parts = Signs::default();
    let data = match said_data {
        None => Degree::ONE,
        Some(data) if data.count == Count::Known(1) => data,
        Some(_) if read.has(Setting::WithinTensor) => Degree::ONE,
        Some(data) if engine.data_ranks == DataRanks::Unknown => Degree {
            count: Count::Unknown,
            ..data
        },
        Some(_) if read.has(Setting::ExternalData) && !expert => local.unwrap_or(Degree::ONE),
        Some(data) => {
            if let (Some(local), Count::Known(all)) = (&local, data.count)
                && local.count.known().is_some_and(|local| local < all)
            {
                parts.local.clone_from(&local.path);
            }
            data
        }
    };
    let mut world = tensor
        .count
        .times(pipeline.count)
        .times(context.count)
        .times(data.count);
    if let Some(said) = setting(Setting::World) {
        world = said.count;
    } else if let Some(mpi) = &run.ranks
        && explicit_world_is_unsaid(engine, &read)
    {
        world = mpi.count;
    }
    if let Some(per_node) = setting(Setting::PerNode) {
        let nodes = nodes.as_ref().map_or(Count::Known(1), |nodes| nodes.count);
        world = per_node.count.times(nodes);
    }
    if engine.config_wins && file {
        world = Count::Unknown;
    }
    let multi_node = evidence(run, &read, nodes.as_ref(), parts, container);
    let tensor = if engine.config_wins && file {
        Degree {
            count: Count::Unknown,
            path: tensor.path.or_else(|| unread.and_then(path)),
        }
    } else {
        tensor
    };
    let shutdown = read.get(Setting::Shutdown).map(|reading| reading.count);
    (
        Parallelism {
            tensor,
            pipeline,
            context,
            data,
            nodes,
            world,
            multi_node,
        },
        shutdown,
    )
}

/// Reads a command line together with the files that it names, and tells where one is named that
/// cannot be seen.
fn line(engine: &Engine, words: &[Word], files: &Files<'_, '_>) -> (flags::Line, Option<Origin>) {
    let read = flags::Line::read(engine, words);
    if read.files.is_empty() {
        return (read, None);
    }
    let mut unread = None;
    let mut said = Vec::new();
    for (path, origin) in &read.files {
        let found = path
            .as_deref()
            .and_then(|path| files.words(engine, path, *origin));
        match found {
            Some(words) => said.extend(words),
            None => unread = Some(*origin),
        }
    }
    // The later word wins.
    let all: Vec<Word> = if engine.config_wins {
        words.iter().cloned().chain(said).collect()
    } else {
        said.into_iter().chain(words.iter().cloned()).collect()
    };
    (flags::Line::read(engine, &all), unread)
}

fn explicit_world_is_unsaid(engine: &Engine, read: &flags::Line) -> bool {
    engine.silent == Silent::Unknown && read.get(Setting::Tensor).is_none()
}

#[derive(Default)]
struct Signs {
    local: Option<FieldPath>,
}

/// The clearest sign of several pods.
fn evidence(
    run: &Invocation<'_>,
    read: &flags::Line,
    nodes: Option<&Degree>,
    parts: Signs,
    container: &FieldPath,
) -> Option<Evidence> {
    match nodes.map(|nodes| (nodes.count, &nodes.path)) {
        // One node, said so: the other flags then only repeat the defaults.
        Some((Count::Known(1), _)) => return None,
        Some((count, Some(path))) => {
            let text = count.known().map_or_else(
                || "a number of nodes".to_owned(),
                |count| format!("{count} nodes"),
            );
            return Some(Evidence {
                text,
                path: path.clone(),
            });
        }
        _ => {}
    }
    if let Some(path) = parts.local {
        return Some(Evidence {
            text: "fewer local than all data parallel ranks".into(),
            path,
        });
    }
    let sign = read.evidence.as_ref().or(read.ray.as_ref());
    if let Some((text, origin)) = sign {
        return Some(Evidence {
            text: text.clone(),
            path: origin.path(container),
        });
    }
    let launcher = run
        .launcher
        .as_ref()
        .map(|(engine, words)| flags::Line::read(engine, words));
    if let Some((text, origin)) = launcher.and_then(|line| line.evidence) {
        return Some(Evidence {
            text,
            path: origin.path(container),
        });
    }
    None
}

fn launcher_setting(
    run: &Invocation<'_>,
    setting: Setting,
    environment: &Environment<'_>,
    container: &FieldPath,
) -> Option<Degree> {
    let (engine, words) = run.launcher.as_ref()?;
    if let Some(reading) = flags::Line::read(engine, words).get(setting) {
        return Some(Degree {
            count: reading.count,
            path: Some(reading.origin.path(container)),
        });
    }
    engine
        .env
        .get(&setting)
        .into_iter()
        .flatten()
        .find_map(|name| {
            let (value, origin) = environment.variables.get(name)?;
            let count = match value {
                Variable::Known(text) => degree(text),
                Variable::Unknown | Variable::Unset => Count::Unknown,
            };
            Some(Degree {
                count,
                path: Some(origin.path(container)),
            })
        })
}

/// The size where the tensor parallel flag is silent and other settings decide.
fn silent_tensor(
    engine: &Engine,
    read: &flags::Line,
    environment: &Environment<'_>,
    silent: Silent,
    gpus: Count,
    container: &FieldPath,
) -> Option<Degree> {
    if silent != Silent::All {
        return None;
    }
    // The sharding switch of Text Generation Inference.
    let sharded = read
        .word(Setting::Sharded)
        .map(|(text, origin)| (text.to_owned(), origin))
        .or_else(|| {
            engine
                .env
                .get(&Setting::Sharded)
                .into_iter()
                .flatten()
                .find_map(|name| match environment.variables.get(name) {
                    Some((Variable::Known(text), origin)) => Some((text.clone(), *origin)),
                    _ => None,
                })
        });
    if let Some((text, origin)) = sharded {
        let count = match text.as_str() {
            "false" => Count::Known(1),
            "true" => gpus,
            _ => Count::Unknown,
        };
        return Some(Degree {
            count,
            path: Some(origin.path(container)),
        });
    }
    // A list of devices may hide some of the pod's.
    let limited = engine.visible_devices.iter().any(|name| {
        !matches!(environment.get(name), Variable::Unset) && !all_devices(environment, name)
    });
    limited.then(|| Degree::unsaid(Count::Unknown))
}

fn all_devices(environment: &Environment<'_>, name: &str) -> bool {
    environment.get(name) == Variable::Known("all".to_owned())
}

/// `tpN` and `ppN` in the name of a profile, as in `vllm-fp16-tp2-pp1`.
fn profile(
    engine: &Engine,
    environment: &Environment<'_>,
    container: &FieldPath,
) -> (Option<Degree>, Option<Degree>) {
    let Some(name) = &engine.profile else {
        return (None, None);
    };
    let Some((Variable::Known(text), origin)) = environment.variables.get(name) else {
        return (None, None);
    };
    environment.budget.spend(8 * text.len());
    let part = |prefix: &str| {
        text.split(['-', '_', '.']).find_map(|token| {
            let number = token.strip_prefix(prefix)?;
            (!number.is_empty()).then_some(())?;
            let count = degree(number);
            count.known()?;
            Some(Degree {
                count,
                path: Some(origin.path(container)),
            })
        })
    };
    (part("tp"), part("pp"))
}

/// The number that a flag's value is.
fn degree(text: &str) -> Count {
    match text.trim().parse::<u64>() {
        Ok(number) if (1..=MAX_DEGREE).contains(&number) => Count::Known(number),
        _ => Count::Unknown,
    }
}

#[cfg(test)]
mod tests;
