//! Objects with as many members as a condition looks through, with more, and with very long texts. What a
//! condition costs counts against a budget of the API server, beyond which it has failed.

use anyhow::{Result, ensure};
use gangplank::{
    policy::Policy,
    rules::{
        Kind,
        kinds::{PodTemplates, Relevance, Shape},
    },
};
use serde_json::{Map, Value, json};

use crate::overheard::Overheard;

use super::{Write, is_built_in, named, specimens, strict, valid, without_schemas};

/// Every list and every map of an object with more members than a condition looks through, and with as
/// many as it does. Containers and limits are so many that conditions would fail if they looked.
pub(super) fn one_by_one(
    kind: &'static Kind,
    full: &Value,
    stored: &Value,
    all: &[String],
    writes: &mut Vec<Write>,
) {
    const CONTAINERS: usize = 10_000;
    const LIMITS: usize = 100_000;
    const LOOKED_THROUGH: usize = 64;
    // Of what a container asks for.
    const RESOURCES: usize = 8;
    // What an UPDATE is compared by as a whole: the same words for every kind, so one stands for all. So it
    // is with limits, and the API server itself takes seconds over them.
    let whole =
        ["/labels", "/annotations", "/ownerReferences"].map(|end| format!("/metadata{end}"));
    for place in all {
        let is_whole = whole.contains(place);
        let many = if place.ends_with("ontainers") || (is_whole && kind.kind == "Deployment") {
            CONTAINERS
        } else if place.ends_with("/limits") && kind.kind == "InferenceService" {
            LIMITS
        } else {
            LOOKED_THROUGH + 1
        };
        let fillers: Vec<Value> = match full.pointer(place) {
            Some(Value::Array(list)) if list.first().is_some_and(Value::is_object) => {
                let first = &list[0];
                let small = if first.to_string().len() < 130 {
                    first.clone()
                } else {
                    let kept = ["name", "image", "type"].into_iter();
                    kept.filter_map(|key| Some((key.to_owned(), first.get(key)?.clone())))
                        .collect()
                };
                let filled = |count: usize, element: &Value| -> Value {
                    (0..count)
                        .map(|index| {
                            let mut element = element.clone();
                            if element.get("name").is_some_and(Value::is_string) {
                                element["name"] = json!(format!("c{index}"));
                            }
                            // Of owners with one uid the API server keeps one, and of several controllers
                            // it complains one by one, each time with all of them.
                            if element.get("controller").is_some() {
                                element["uid"] = json!(format!("u{index}"));
                                element["controller"] = json!(index + 1 == count);
                            }
                            element
                        })
                        .collect()
                };
                vec![filled(many, &small), filled(LOOKED_THROUGH, first)]
            }
            Some(Value::Object(members))
                if members
                    .values()
                    .all(|value| !value.is_object() && !value.is_array()) =>
            {
                let filled = |count: usize| -> Value {
                    (0..count)
                        .map(|index| (format!("k{index}"), json!("1")))
                        .collect()
                };
                let looked_through = if place.contains("/resources/") {
                    RESOURCES
                } else {
                    LOOKED_THROUGH
                };
                vec![filled(many), filled(looked_through)]
            }
            _ => continue,
        };
        for filler in fillers {
            let count = match &filler {
                Value::Array(list) => list.len(),
                other => other.as_object().map_or(0, serde_json::Map::len),
            };
            let mut create = full.clone();
            create["metadata"]["name"] = json!("new");
            *create.pointer_mut(place).expect("a place") = filler.clone();
            writes.push((kind, format!("CREATE with {count} in {place}"), create));
            if is_whole || place.ends_with("ontainers") {
                let mut update = full.clone();
                *update.pointer_mut(place).expect("a place") = filler;
                update["metadata"]["resourceVersion"] =
                    stored["metadata"]["resourceVersion"].clone();
                writes.push((kind, format!("UPDATE with {count} in {place}"), update));
            }
        }
    }
}

/// How much of everything an object has.
#[derive(Clone, Copy)]
struct Crowd {
    /// Elements of each list, but for those that follow.
    elements: usize,
    /// Elements of lists that have pod templates in them.
    templates: usize,
    /// Containers of each of a pod's lists, in such a list and outside of any.
    containers: (usize, usize),
    /// Resources of a container, in its limits and in its requests.
    resources: usize,
    /// Metrics, each of them of every sort at once.
    metrics: usize,
    /// Values of each requirement.
    values: usize,
    /// Owners, of which the last is a controller.
    owners: usize,
    /// Characters that each text has besides its own.
    text: usize,
    /// Characters that each name of a resource has besides its own.
    name: usize,
}

/// As much as conditions look through, and texts as long as those in which they look for something.
const LOOKED_THROUGH: Crowd = Crowd {
    elements: 64,
    templates: 16,
    containers: (8, 64),
    resources: 8,
    metrics: 32,
    values: 4,
    owners: 16,
    text: 100,
    name: 100,
};

/// More of everything, within the 3 MiB that the API server takes.
const MORE: Crowd = Crowd {
    elements: 65,
    templates: 48,
    containers: (20, 1_000),
    resources: 16,
    metrics: 200,
    values: 100,
    owners: 65,
    text: 0,
    name: 0,
};

/// One of everything.
const ONE: Crowd = Crowd {
    elements: 1,
    templates: 1,
    containers: (1, 1),
    resources: 1,
    metrics: 1,
    values: 1,
    owners: 1,
    text: 0,
    name: 0,
};

/// What says which other members count: it keeps its value.
const WORDS: [&str; 7] = [
    "apiVersion",
    "kind",
    "type",
    "operator",
    "name",
    "namespace",
    "namePrefix",
];

/// Characters that a name may have besides its own in a kind with a schema.
const VALID: usize = 40;

impl Crowd {
    /// The same with as many containers of a kind as a condition looks through.
    fn looked_through(mut self, kind: &Kind) -> Self {
        if let Relevance::Accelerator(pods) = kind.relevance {
            if pods.templates.iter().any(|one| !one.list.is_empty()) {
                self.containers.1 = 8;
            } else if pods.templates.len() > 1 {
                self.containers.1 = 32;
            }
        }
        if is_built_in(kind) {
            self.name = VALID;
        }
        self
    }

    /// An object of a kind with as much of everything.
    fn fill(&self, kind: &Kind, object: &Value) -> Value {
        let mut filled = object.clone();
        // Built-in kinds have a schema, in which texts have their values.
        if is_built_in(kind) {
            self.metrics_of_an_hpa(&mut filled);
        } else {
            filled["spec"] = self.value("spec", &object["spec"], false);
        }
        if let Relevance::Accelerator(pods) = kind.relevance {
            for template in pods.templates {
                self.put_pod(template, &mut filled);
            }
        }
        for map in ["labels", "annotations"] {
            filled["metadata"][map] = self.map(&json!("v"), self.elements);
        }
        filled["metadata"]["ownerReferences"] = (1..=self.owners)
            .map(|index| {
                json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
                    "name": self.text("full"), "uid": format!("u{index}"),
                    "controller": index == self.owners})
            })
            .collect();
        filled
    }

    fn text(&self, text: &str) -> String {
        format!("{text}{}", "x".repeat(self.text))
    }

    /// A map with names as long as they may be: the API server sees to that before it asks a validating
    /// webhook.
    fn map(&self, value: &Value, count: usize) -> Value {
        Self::map_of(self.text.min(VALID), value, count)
    }

    fn map_of(name: usize, value: &Value, count: usize) -> Value {
        let long = "x".repeat(name);
        let entry = |index: usize| (format!("a.b/k{index}{long}"), value.clone());
        (0..count).map(entry).collect()
    }

    /// What stands at a key, with more of it. `listed`: an element of a list holds it.
    fn value(&self, key: &str, value: &Value, listed: bool) -> Value {
        match value {
            Value::Object(members) if members.contains_key("containers") => self.pod(listed, value),
            Value::Object(_) if key == "labels" || key == "annotations" => {
                self.map(&json!("v"), self.elements)
            }
            Value::Object(_) if key == "resources" => self.resources(),
            Value::Object(members) => {
                let fill =
                    |(key, value): (&String, &Value)| (key.clone(), self.value(key, value, listed));
                members.iter().map(fill).collect()
            }
            Value::Array(list) => self.list(key, list),
            Value::String(text) if !WORDS.contains(&key) => json!(self.text(text)),
            Value::String(text) if key == "name" && !is_word(text) => json!(self.text(text)),
            other => other.clone(),
        }
    }

    fn list(&self, key: &str, list: &[Value]) -> Value {
        let has_pods = |one: &Value| one.to_string().contains("\"containers\"");
        let count = match key {
            "metrics" | "metricsSources" => self.metrics,
            "values" => self.values,
            _ if list.iter().any(has_pods) => self.templates,
            _ => self.elements,
        };
        // One that has whatever any of them has.
        let merged: Map<String, Value> = (list.iter().filter_map(Value::as_object).flatten())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let element = if merged.is_empty() {
            json!(self.text("value"))
        } else {
            self.value("", &json!(merged), true)
        };
        (0..count).map(|_| element.clone()).collect()
    }

    /// A pod spec instead of another, of which it keeps when to restart.
    fn pod(&self, listed: bool, other: &Value) -> Value {
        let count = if listed {
            self.containers.0
        } else {
            self.containers.1
        };
        let containers = |list: &str| -> Value {
            let container = |index: usize| {
                json!({"name": format!("{list}{index}"), "image": self.text("app"),
                    "resources": self.resources()})
            };
            (0..count).map(container).collect()
        };
        let mut pod = json!({"containers": containers("c"), "initContainers": containers("i")});
        // An accelerator, after everything else.
        let accelerator = json!({"huawei.com/Ascend910": "1"});
        pod["initContainers"][count - 1]["resources"] =
            json!({"limits": accelerator, "requests": accelerator});
        if let Some(policy) = other.get("restartPolicy") {
            pod["restartPolicy"] = policy.clone();
        }
        pod
    }

    fn resources(&self) -> Value {
        let names = Self::map_of(self.name, &json!("1"), self.resources);
        json!({"limits": names, "requests": names})
    }

    /// A pod wherever a kind may have one.
    fn put_pod(&self, template: &PodTemplates, object: &mut Value) {
        let put = |parent: &mut Value, listed: bool| {
            let place = format!("/{}", template.path.join("/"));
            let old = parent.pointer(&place).cloned().unwrap_or_default();
            let mut at = parent;
            for key in template.path {
                at = &mut at[*key];
            }
            match template.shape {
                Shape::Template => at["spec"] = self.pod(listed, &old["spec"]),
                Shape::Spec => {
                    let pod = self.pod(listed, &old);
                    for list in ["containers", "initContainers"] {
                        at[list] = pod[list].clone();
                    }
                }
                Shape::Container => at["resources"] = self.resources(),
                Shape::Metadata | Shape::Any => {}
            }
        };
        if template.list.is_empty() {
            return put(object, false);
        }
        let mut at = object;
        for key in template.list {
            at = &mut at[*key];
        }
        for element in at.as_array_mut().into_iter().flatten() {
            put(element, true);
        }
    }

    /// As many metrics, each with a long name.
    fn metrics_of_an_hpa(&self, object: &mut Value) {
        let Some(list) = object["spec"]["metrics"].as_array().cloned() else {
            return;
        };
        let metric = |mut metric: Value| {
            for sort in ["pods", "object", "external"] {
                if let Some(name) = metric.pointer_mut(&format!("/{sort}/metric/name")) {
                    *name = json!(self.text("a"));
                }
            }
            metric
        };
        let metrics = list.into_iter().map(metric).cycle();
        object["spec"]["metrics"] = metrics.take(self.metrics).collect();
    }

    /// The same with texts so long that an object is about as large as the API server takes.
    fn of_long_texts(self, kind: &Kind, object: &Value) -> Self {
        const MOST: usize = 2_800_000;
        let with = |text: usize| Self {
            text,
            name: if is_built_in(kind) { VALID } else { text },
            ..self
        };
        let size = |text: usize| with(text).fill(kind, object).to_string().len();
        let (least, each) = (size(0), size(1) - size(0));
        with(MOST.saturating_sub(least) / each)
    }
}

/// Whether a name is one that says what stands beside it.
fn is_word(name: &str) -> bool {
    ["cpu", "memory"].contains(&name)
}

/// No condition costs more than the API server gives it, for the most of everything that it looks through at
/// once, for more than that, and for texts as long as a request can hold.
fn no_condition_costs_too_much(policy: Policy, long_texts: bool) -> Result<()> {
    let overheard = Overheard::start(false, policy, without_schemas)?;
    let kubectl = overheard.cluster.namespace("crowds")?;
    let namespace = kubectl.namespace().to_owned();
    let (mut creates, mut updates): (Vec<Write>, Vec<Write>) = (Vec::new(), Vec::new());
    let mut largest = 0;
    for (kind, full) in specimens()? {
        let full = valid(kind, named(kind, full, "full", &namespace));
        let looked_through = LOOKED_THROUGH.looked_through(kind);
        let mut crowds = vec![
            ("what is looked through", looked_through),
            ("more than that", MORE),
        ];
        if long_texts {
            crowds.extend([
                ("long texts", looked_through.of_long_texts(kind, &full)),
                ("one long text of each", ONE.of_long_texts(kind, &full)),
            ]);
        }
        for (index, (what, crowd)) in crowds.into_iter().enumerate() {
            let object = named(
                kind,
                crowd.fill(kind, &full),
                &format!("new-{index}"),
                &namespace,
            );
            largest = largest.max(object.to_string().len());
            // As large as what etcd stores.
            let held = named(kind, object.clone(), &format!("held-{index}"), &namespace);
            let is_small = held.to_string().len() < 1_400_000;
            let answer = is_small
                .then(|| kubectl.create(&held.to_string()))
                .transpose()?;
            if answer.is_some_and(|answer| answer.accepted()) {
                let name = format!("{}.{}/held-{index}", kind.resource, kind.group);
                let mut update = kubectl.get(&name)?;
                // Nothing that makes its pods run differently.
                update["metadata"]["annotations"]["example.com/note"] = json!("x");
                if !is_built_in(kind) {
                    update["spec"]["other"] = json!("x");
                }
                updates.push((kind, format!("UPDATE with {what}"), update));
            }
            creates.push((kind, format!("CREATE with {what}"), object));
        }
    }
    ensure!(largest > 2_500_000, "only {largest} bytes");
    ensure!(
        updates.len() > creates.len() / 4,
        "{} updates",
        updates.len()
    );
    let writes: Vec<Write> = creates.into_iter().chain(updates).collect();
    let taken = overheard.dry_writes(&namespace, &writes)?;
    println!("{} of {} writes were taken", taken.len(), writes.len());
    ensure!(taken.len() > writes.len() / 2, "{} taken", taken.len());
    Ok(())
}

#[test]
fn no_condition_of_the_default_policy_costs_too_much() -> Result<()> {
    no_condition_costs_too_much(Policy::default(), true)
}

#[test]
fn no_condition_of_a_policy_of_denials_costs_too_much() -> Result<()> {
    no_condition_costs_too_much(strict()?, false)
}
