//! What conditions ask of pod templates.

use std::collections::BTreeMap;

use crate::{
    catalog::engines::Engines,
    cel::{Test, Value},
    rules::{
        Kind,
        kinds::{PodTemplates, Pods, Shape},
    },
    subject::MODEL_SERVER_LABEL,
};

use super::conditions::{MOST, metadata, read_by_rules};

/// The most resources of a container that are looked through: there are two maps of them for each
/// container.
const RESOURCES: usize = 8;

/// The most templates in a list that are looked through.
const TEMPLATES: usize = 16;

/// The most characters of an image that is compared without its tag.
const IMAGE: usize = 512;

/// What a pod's labels and annotations have in which it calls itself a model server, or asks for a share of
/// a GPU (KAI Scheduler, pkg/common/constants/constants.go).
const DECLARED: [&str; 3] = [MODEL_SERVER_LABEL, "gpu-fraction", "gpu-memory"];

/// An image without its tag and digest: neither has a slash, and a name has neither colon nor `@`.
const IMAGE_NAME: &str = "^(.*/)?[^:@]*";

/// The lists of containers in a pod spec.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Whether a resource is an extended one: those have a domain
/// (kubernetes.io/docs/concepts/configuration/manage-resources-containers).
pub(super) fn names_device(resource: &Value) -> Test {
    resource.has_part("/")
}

/// Whether a resource is one of the catalogue's accelerators.
pub(super) fn names_accelerator(resource: &Value, engines: &Engines) -> Test {
    let (prefixes, names): (Vec<_>, Vec<_>) =
        (engines.accelerators.iter()).partition(|row| !row.prefix.is_empty());
    let known = resource.is_among(names.iter().map(|row| row.resource.as_str()));
    let prefixes = prefixes.iter().map(|row| row.prefix.as_str());
    let begins = prefixes.map(|prefix| resource.starts_with(prefix));
    Test::any([known].into_iter().chain(begins))
}

/// The values at the paths of all templates of one shape, in lists; and whether one of the object's lists is
/// too long to be among them.
fn all_of_shape(object: &Value, pods: &Pods, shape: Shape) -> (Vec<Value>, Test) {
    let of_shape = pods.templates.iter().filter(|one| one.shape == shape);
    let (listed, single): (Vec<&PodTemplates>, Vec<&PodTemplates>) =
        of_shape.partition(|one| !one.list.is_empty());
    let mut lists: Vec<Value> = (listed.iter())
        .map(|one| object.elements(one.list, TEMPLATES, "g", |element| element.get(one.path)))
        .collect();
    let (mut beside, mut alone) = (BTreeMap::<&[&str], Vec<&str>>::new(), Vec::new());
    for one in single {
        match one.path.split_last() {
            Some((last, above)) => beside.entry(above).or_default().push(last),
            None => alone.push(object.clone()),
        }
    }
    for (above, members) in beside {
        if let [only] = members.as_slice() {
            alone.push(object.get(&[above, &[*only]].concat()));
        } else {
            lists.push(object.get(above).values("h", members));
        }
    }
    if !alone.is_empty() {
        lists.push(Value::list(alone));
    }
    let too_long = listed
        .iter()
        .map(|one| object.has(one.list, |list| list.is_longer_than(TEMPLATES)));
    (lists, Test::any(too_long))
}

/// The most containers of each list of a pod that are looked through: the fewer the more pods there may be.
fn most_containers(pods: &Pods) -> usize {
    if pods.templates.iter().any(|one| !one.list.is_empty()) {
        MOST / 8
    } else if pods.templates.len() > 1 {
        MOST / 2
    } else {
        MOST
    }
}

/// Whether an object or one of its pod templates calls itself a model server, or a template asks for an
/// accelerator.
pub(super) fn ask_for_accelerators(pods: &Pods, accelerator: impl Fn(&Value) -> Test) -> Test {
    let object = Value::object();
    let resources = |holder: &Value| ask(holder, &accelerator);
    let most = most_containers(pods);
    let spec = |spec: &Value| Test::of(spec, "s", |spec| pod_spec(spec, most, &accelerator));
    let mut tests = vec![object.has(&["metadata"], is_declared)];
    for shape in Shape::ALL {
        let (lists, too_long) = all_of_shape(&object, pods, shape);
        if lists.is_empty() {
            continue;
        }
        tests.push(too_long);
        tests.push(Value::any_in(lists, "t", |one| match shape {
            Shape::Template => Test::any([
                one.has(&["metadata"], is_declared),
                one.has(&["spec"], spec),
            ]),
            Shape::Spec => spec(one),
            Shape::Container => resources(one),
            Shape::Metadata => is_declared(one),
            Shape::Any => one.is_not_null(),
        }));
    }
    Test::any(tests)
}

/// Whether labels or annotations call something a model server, or ask for a share of a GPU.
fn is_declared(metadata: &Value) -> Test {
    Test::any_text(["labels", "annotations"], "f", |field| {
        metadata.has_key(field, |found| {
            Test::any_text(DECLARED, "k", |key| {
                found.has_key(key, |_| Test::Constant(true))
            })
        })
    })
}

/// Whether something in a pod spec asks for an accelerator. Resources of the pod as a whole count like a
/// container's (KEP-2837).
fn pod_spec(spec: &Value, most: usize, accelerator: &impl Fn(&Value) -> Test) -> Test {
    let claims = spec.has(&["resourceClaims"], Value::is_not_null);
    let too_long = CONTAINERS.map(|list| spec.has(&[list], |list| list.is_longer_than(most)));
    let own = Value::list([spec.clone()]);
    let containers = CONTAINERS.map(|list| spec.elements(&[list], most, "e", Value::clone));
    let all = [own].into_iter().chain(containers).collect();
    let asked = Value::any_in(all, "c", |holder| ask(holder, accelerator));
    Test::any([claims].into_iter().chain(too_long).chain([asked]))
}

/// Whether the resources of a container, or of a pod as a whole, name an accelerator or a claim.
fn ask(holder: &Value, accelerator: &impl Fn(&Value) -> Test) -> Test {
    holder.has(&["resources"], |resources| {
        let named = Test::any_text(["limits", "requests"], "a", |amounts| {
            resources.has_key(amounts, |amounts| {
                amounts.any_key(RESOURCES, "r", accelerator)
            })
        });
        Test::any([resources.has(&["claims"], Value::is_not_null), named])
    })
}

/// Whether an UPDATE changes how the pods run: anything but the tag or digest of an image, and what says
/// nothing of ranks, sizes and schedulers.
pub(super) fn run_differently(kind: &Kind, pods: &Pods) -> Test {
    Test::of(&read_by_rules(kind), "d", |keys| {
        let most = most_containers(pods);
        Test::differs(|object| {
            let mut parts = vec![metadata(&object.get(&["metadata"]), keys)];
            parts.extend(pods.beside.iter().map(|path| object.get(path)));
            // A list that is too long is compared as a whole.
            let listed = pods.templates.iter().filter(|one| !one.beside.is_empty());
            parts.extend(listed.map(|one| {
                object.get(one.list).named_as("w", |list| {
                    list.each(TEMPLATES, "g", |element| {
                        Value::list(one.beside.iter().map(|path| element.get(path)))
                    })
                })
            }));
            for shape in Shape::ALL {
                let (lists, _) = all_of_shape(object, pods, shape);
                if !lists.is_empty() {
                    let run = |found: &Value| run(found, shape, most, keys);
                    parts.push(Value::list(lists).map("x", |list| list.map("t", run)));
                }
            }
            Value::list(parts)
        })
    })
}

/// How what stands at the path of a template runs.
fn run(found: &Value, shape: Shape, most: usize, keys: &Value) -> Value {
    match shape {
        Shape::Template => Value::list([
            metadata(&found.get(&["metadata"]), keys),
            run_of_spec(&found.get(&["spec"]), most),
        ]),
        Shape::Spec => run_of_spec(found, most),
        Shape::Metadata => metadata(found, keys),
        Shape::Container => run_of_container(found),
        Shape::Any => found.clone(),
    }
}

/// How the pods of a pod spec run.
fn run_of_spec(spec: &Value, most: usize) -> Value {
    spec.named_as("s", |spec| {
        let members = ["schedulerName", "resources", "resourceClaims"];
        let members = Value::texts(members).map("k", |key| spec.key(key));
        let containers = Value::texts(CONTAINERS).map("l", |list| {
            spec.key(list)
                .named_as("i", |list| list.each(most, "c", run_of_container))
        });
        Value::list([members, containers])
    })
}

/// How a container runs: all that a rule may read of it but the tag and digest of its image.
fn run_of_container(container: &Value) -> Value {
    let members = ["command", "args", "env", "envFrom", "resources"];
    let members = Value::texts(members).map("k", |key| container.key(key));
    let image = container
        .get(&["image"])
        .named_as("i", |image| image.first_match(IMAGE, IMAGE_NAME));
    Value::list([members, image])
}
