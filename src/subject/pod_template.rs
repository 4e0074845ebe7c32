//! A lenient view of a pod template: its containers and the accelerators that one pod takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use serde_json::{Map, Value};

use crate::{catalog::engines::Engines, finding::FieldPath};

use super::at;

/// A number that may not be knowable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Count {
    /// This many.
    Known(u64),
    /// Not to be told from the object.
    Unknown,
}

impl Count {
    /// The number, where it is known.
    pub const fn known(self) -> Option<u64> {
        match self {
            Self::Known(number) => Some(number),
            Self::Unknown => None,
        }
    }

    /// The product; unknown where a factor is, or where it would not fit.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a.checked_mul(b).map_or(Self::Unknown, Self::Known),
            _ => Self::Unknown,
        }
    }
}

/// The accelerators of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerators {
    /// The resource that was asked for, as `nvidia.com/gpu`; for a share of a GPU the annotation
    /// that asks for it; `resourceClaims` for claims.
    pub resource: String,
    /// Whole GPUs that ranks of an engine can count on: known only for NVIDIA's and AMD's whole
    /// GPUs asked for as one extended resource.
    pub gpus: Count,
    /// Units of the resource, whole GPUs or not: MIG slices, TPU chips, Neuron devices.
    pub units: Count,
    /// Where the greatest request stands.
    pub path: FieldPath,
}

/// A part of an object, and where it stands.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// What stands there.
    pub value: &'a Value,
    /// Where.
    pub path: FieldPath,
}

impl<'a> Place<'a> {
    /// What stands at a path of an object; `None` where that is no object itself.
    pub fn of(object: &'a Value, path: FieldPath) -> Option<Self> {
        let value = path.lookup(object).filter(|value| value.is_object())?;
        Some(Self { value, path })
    }

    /// The same below one of its members.
    pub fn member(&self, key: &str) -> Option<Self> {
        let value = self.value.get(key).filter(|value| value.is_object())?;
        let path = self.path.clone().key(key);
        Some(Self { value, path })
    }
}

/// A pod template, a pod, or what a controller of inference services makes a pod of.
#[derive(Clone, Debug)]
pub struct PodTemplate<'a> {
    path: FieldPath,
    spec: Place<'a>,
    /// What has the pod's `labels` and `annotations`.
    metadata: Place<'a>,
    /// A container that stands beside the pod spec.
    main: Option<Place<'a>>,
    /// Accelerators that are asked for beside the pod spec, for its main container.
    asked: Option<Accelerators>,
    /// Accelerators that a controller asks for where the containers ask for none.
    given: Option<Accelerators>,
    /// Those of the whole pod, once they were counted: every container is compared with them. A
    /// template is looked at by one catalogue.
    counted: OnceLock<Option<Accelerators>>,
}

/// The list of a container that stands beside the pod spec.
const BESIDE: &str = "beside";

/// One container of a pod template.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// The raw container.
    pub value: &'a Value,
    /// `containers` or `initContainers`; another name for one that stands beside the pod spec.
    pub list: &'static str,
    /// Its position in that list.
    pub index: usize,
}

impl<'a> Container<'a> {
    /// Its image; empty where it names none.
    pub fn image(&self) -> &'a str {
        self.value
            .get("image")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Its name; empty where it has none.
    pub fn name(&self) -> &'a str {
        self.value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A list of texts below it (`command`, `args`); elements of another type read as empty.
    pub fn texts(&self, key: &str) -> Vec<&'a str> {
        self.value
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|text| text.as_str().unwrap_or_default())
            .collect()
    }

    /// An init container that keeps running beside the others (Kubernetes 1.29 and later).
    fn is_sidecar(&self) -> bool {
        self.list == "initContainers"
            && self.value.get("restartPolicy").and_then(Value::as_str) == Some("Always")
    }

    /// What it asks for of a resource. Requests and limits of an extended resource must be equal,
    /// and a limit alone stands for both.
    fn amount(&self, resource: &str) -> Option<Count> {
        let of =
            |kind: &str| at(self.value, &["resources", kind]).and_then(|map| map.get(resource));
        of("limits")
            .or_else(|| of("requests"))
            .filter(|value| !value.is_null())
            .map(integer)
    }

    /// The names of the resources that it asks for.
    fn resources(&self) -> impl Iterator<Item = &'a str> {
        ["limits", "requests"]
            .into_iter()
            .filter_map(|kind| at(self.value, &["resources", kind])?.as_object())
            .flat_map(Map::keys)
            .map(String::as_str)
    }
}

impl<'a> PodTemplate<'a> {
    /// The template that stands at `path` in an object.
    pub fn new(value: &'a Value, path: FieldPath) -> Self {
        let place = |key: &str| Place {
            value: value.get(key).unwrap_or(&Value::Null),
            path: path.clone().key(key),
        };
        let (spec, metadata) = (place("spec"), place("metadata"));
        Self {
            path,
            spec,
            metadata,
            main: None,
            asked: None,
            given: None,
            counted: OnceLock::new(),
        }
    }

    /// A pod spec whose labels and annotations stand elsewhere.
    pub fn of_spec(spec: Place<'a>, metadata: Place<'a>) -> Self {
        Self {
            path: spec.path.clone(),
            spec,
            metadata,
            main: None,
            asked: None,
            given: None,
            counted: OnceLock::new(),
        }
    }

    /// With a container that stands beside the pod spec.
    #[must_use]
    pub fn with_main(self, main: Option<Place<'a>>) -> Self {
        let counted = OnceLock::new();
        Self {
            main,
            counted,
            ..self
        }
    }

    /// With accelerators that are asked for beside the pod spec.
    #[must_use]
    pub fn with_asked(self, asked: Option<Accelerators>) -> Self {
        let counted = OnceLock::new();
        Self {
            asked,
            counted,
            ..self
        }
    }

    /// With accelerators that a controller asks for where the containers ask for none.
    #[must_use]
    pub fn with_given(self, given: Accelerators) -> Self {
        Self {
            given: Some(given),
            counted: OnceLock::new(),
            ..self
        }
    }

    /// Where it stands.
    pub const fn path(&self) -> &FieldPath {
        &self.path
    }

    /// Whether its accelerators are asked for beside the pod spec.
    pub const fn is_asked_beside(&self) -> bool {
        self.asked.is_some()
    }

    /// Where its pod spec stands.
    pub fn spec_path(&self) -> FieldPath {
        self.spec.path.clone()
    }

    /// Where its labels and annotations stand.
    pub fn metadata_path(&self) -> FieldPath {
        self.metadata.path.clone()
    }

    /// Its labels.
    pub fn labels(&self) -> Option<&'a Map<String, Value>> {
        self.metadata.value.get("labels")?.as_object()
    }

    /// Something in its pod spec.
    pub fn spec(&self, key: &str) -> Option<&'a Value> {
        self.spec.value.get(key).filter(|value| !value.is_null())
    }

    /// A text in its pod spec.
    pub fn spec_text(&self, key: &str) -> Option<&'a str> {
        self.spec(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// One of its labels.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        at(self.metadata.value, &["labels", key])?.as_str()
    }

    /// One of its annotations.
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        at(self.metadata.value, &["annotations", key])?.as_str()
    }

    /// The containers of a list, `containers` or `initContainers`.
    pub fn list(&self, list: &'static str) -> impl Iterator<Item = Container<'a>> + use<'a> {
        self.spec(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
            .map(move |(index, value)| Container { value, list, index })
    }

    /// Its main containers.
    pub fn containers(&self) -> impl Iterator<Item = Container<'a>> + use<'a> {
        let main = self.main.as_ref().map(|main| Container {
            value: main.value,
            list: BESIDE,
            index: 0,
        });
        main.into_iter().chain(self.list("containers"))
    }

    /// Its main containers, and the sidecars that run beside them.
    pub fn long_running(&self) -> impl Iterator<Item = Container<'a>> + use<'a> {
        let sidecars = self.list("initContainers").filter(Container::is_sidecar);
        self.containers().chain(sidecars)
    }

    /// Where a container stands.
    pub fn container_path(&self, container: &Container<'_>) -> FieldPath {
        match &self.main {
            Some(main) if container.list == BESIDE => main.path.clone(),
            _ => self.spec_path().key(container.list).index(container.index),
        }
    }

    /// The accelerators that the scheduler counts for one pod: the sum over the containers and
    /// sidecars, or what an init container needs together with the sidecars before it, whichever
    /// is more (k8s.io/component-helpers, resource.PodRequests). `None` where none is asked for.
    pub fn accelerators(&self, catalog: &Engines) -> Option<Accelerators> {
        self.counted.get_or_init(|| self.count(catalog)).clone()
    }

    fn count(&self, catalog: &Engines) -> Option<Accelerators> {
        if let Some(asked) = &self.asked {
            return Some(asked.clone());
        }
        // The containers that speak of each: the others add nothing to it.
        let mut names: BTreeMap<&str, Vec<Container<'a>>> = BTreeMap::new();
        for container in self.list("initContainers").chain(self.containers()) {
            let own: BTreeSet<&str> = container
                .resources()
                .filter(|name| catalog.accelerator(name).is_some())
                .collect();
            for name in own {
                names.entry(name).or_default().push(container);
            }
        }
        let mut asked: Vec<Accelerators> = names
            .into_iter()
            .map(|(name, all)| {
                let units = Self::units(name, &all);
                let whole = catalog.accelerator(name).is_some_and(|row| row.whole);
                Accelerators {
                    resource: name.to_owned(),
                    gpus: if whole { units } else { Count::Unknown },
                    units,
                    path: self.request_path(name, &all),
                }
            })
            .filter(|asked| asked.units != Count::Known(0))
            .collect();
        match asked.len() {
            0 => self.other_accelerators().or_else(|| self.given.clone()),
            1 => asked.pop(),
            // Several kinds at once: which of them the engine uses cannot be told.
            _ => asked.pop().map(|one| Accelerators {
                gpus: Count::Unknown,
                units: Count::Unknown,
                ..one
            }),
        }
    }

    /// The accelerators that a container sees: those that it asks for itself, which the device plugin
    /// gives to no other of the pod's; where that cannot be told, the pod's. What a container gets by
    /// a claim instead cannot be told: claims may be shared, and some are for network cards.
    pub fn accelerators_of(
        &self,
        catalog: &Engines,
        container: &Container<'_>,
    ) -> Option<Accelerators> {
        let pod = self.accelerators(catalog)?;
        if self.asked.is_some() {
            return Some(pod);
        }
        let own = container
            .amount(&pod.resource)
            .filter(|own| *own != Count::Known(0));
        if let Some(claimed) = self.other_accelerators()
            && claimed.resource != pod.resource
            && own.is_none()
        {
            return Some(claimed);
        }
        let Some(own) = own.filter(|_| pod.units != Count::Unknown) else {
            return Some(pod);
        };
        Some(Accelerators {
            gpus: if pod.gpus == Count::Unknown {
                Count::Unknown
            } else {
                own
            },
            units: own,
            path: self.request_of(&pod.resource, container),
            ..pod
        })
    }

    /// The accelerators of the container that does the same work in these pods as `like` does in
    /// others of its group: the only one with any, else the one of its name, else of its image; where
    /// none is told from the others, the pod's.
    pub fn accelerators_like(
        &self,
        catalog: &Engines,
        like: &Container<'_>,
    ) -> Option<Accelerators> {
        let all: Vec<Container<'a>> = self
            .long_running()
            .filter(|container| self.container_has_accelerator(catalog, container))
            .collect();
        let only = |same: &dyn Fn(&Container<'a>) -> bool| {
            let mut of_them = all.iter().filter(|container| same(container));
            of_them.next().filter(|_| of_them.next().is_none())
        };
        let named = |name: &str, own: &str| !name.is_empty() && name == own;
        only(&|_| true)
            .or_else(|| only(&|other| named(like.name(), other.name())))
            .or_else(|| only(&|other| named(like.image(), other.image())))
            .map_or_else(
                || self.accelerators(catalog),
                |container| self.accelerators_of(catalog, container),
            )
    }

    /// Whether a container itself asks for an accelerator, or may by a claim or share of the pod.
    pub fn container_has_accelerator(&self, catalog: &Engines, container: &Container<'_>) -> bool {
        let beside = self.asked.is_some() || self.given.is_some();
        (beside && container.list == BESIDE)
            || container.resources().any(|name| {
                catalog.accelerator(name).is_some()
                    && container.amount(name) != Some(Count::Known(0))
            })
            || self.other_accelerators().is_some()
    }

    /// Shares of a GPU under KAI, and claims: accelerators whose number cannot be told.
    fn other_accelerators(&self) -> Option<Accelerators> {
        let unknown = |resource: &str, path| Accelerators {
            resource: resource.to_owned(),
            gpus: Count::Unknown,
            units: Count::Unknown,
            path,
        };
        let share = ["gpu-fraction", "gpu-memory"]
            .into_iter()
            .find(|key| self.annotation(key).is_some());
        if let Some(key) = share {
            let path = self.metadata_path().keys(&["annotations", key]);
            return Some(unknown(key, path));
        }
        let claims = self.spec("resourceClaims").and_then(Value::as_array)?;
        (!claims.is_empty())
            .then(|| unknown("resourceClaims", self.spec_path().key("resourceClaims")))
    }

    fn units(name: &str, all: &[Container<'a>]) -> Count {
        let mut sidecars = Some(0_u64);
        let mut start = Some(0_u64);
        let mut run = Some(0_u64);
        for container in all {
            let amount = container.amount(name).unwrap_or(Count::Known(0)).known();
            let plus = |sum: Option<u64>| sum?.checked_add(amount?);
            if container.list != "initContainers" {
                run = plus(run);
            } else if container.is_sidecar() {
                sidecars = plus(sidecars);
                start = start.zip(sidecars).map(|(a, b)| a.max(b));
            } else {
                start = start.zip(plus(sidecars)).map(|(a, b)| a.max(b));
            }
        }
        let sum = run
            .zip(sidecars)
            .and_then(|(run, sidecars)| run.checked_add(sidecars));
        match (sum, start) {
            (Some(sum), Some(start)) => Count::Known(sum.max(start)),
            _ => Count::Unknown,
        }
    }

    fn request_path(&self, name: &str, all: &[Container<'a>]) -> FieldPath {
        let greatest = all
            .iter()
            .filter(|container| container.amount(name).is_some())
            .max_by_key(|container| {
                // Main containers before others of the same amount, earlier before later.
                let amount = container.amount(name).and_then(Count::known).unwrap_or(0);
                (
                    amount,
                    container.list != "initContainers",
                    std::cmp::Reverse(container.index),
                )
            });
        greatest.map_or_else(
            || self.spec_path(),
            |container| self.request_of(name, container),
        )
    }

    /// Where a container asks for a resource.
    fn request_of(&self, name: &str, container: &Container<'_>) -> FieldPath {
        let kind = if at(container.value, &["resources", "limits", name]).is_some() {
            "limits"
        } else {
            "requests"
        };
        self.container_path(container)
            .keys(&["resources", kind, name])
    }
}

/// The integer that a quantity of an extended resource is; the API server takes nothing else.
pub(super) fn integer(value: &Value) -> Count {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.strip_suffix('k') {
            Some(thousands) => thousands
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(1000)),
            None => text.parse::<u64>().ok(),
        },
        _ => None,
    };
    number.map_or(Count::Unknown, Count::Known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gpus(spec: &Value) -> Option<Accelerators> {
        let template = json!({"spec": spec});
        PodTemplate::new(&template, FieldPath::of(&["spec", "template"]))
            .accelerators(Engines::builtin())
    }

    fn container(resource: &str, amount: &Value) -> Value {
        json!({"resources": {"limits": {resource: amount}}})
    }

    #[test]
    fn containers_and_sidecars_add_up_and_init_containers_only_raise_the_peak() {
        let gpu = |amount: u64| container("nvidia.com/gpu", &json!(amount));
        let mut sidecar = gpu(1);
        sidecar["restartPolicy"] = json!("Always");
        let asked = gpus(&json!({
            "initContainers": [gpu(2), sidecar, gpu(8)], "containers": [gpu(4), gpu(2)]
        }))
        .unwrap();
        assert_eq!(asked.gpus, Count::Known(9));
        let asked =
            gpus(&json!({"initContainers": [gpu(2)], "containers": [gpu(4), gpu(2)]})).unwrap();
        assert_eq!(asked.gpus, Count::Known(6));
        assert_eq!(
            asked.path.to_string(),
            "spec.template.spec.containers[0].resources.limits[nvidia.com/gpu]"
        );
    }

    #[test]
    fn only_whole_gpus_count_for_ranks() {
        for (resource, amount, whole) in [
            ("nvidia.com/gpu", json!("8"), Count::Known(8)),
            ("amd.com/gpu", json!(4), Count::Known(4)),
            ("nvidia.com/mig-3g.40gb", json!(2), Count::Unknown),
            ("google.com/tpu", json!(8), Count::Unknown),
            ("aws.amazon.com/neuroncore", json!(8), Count::Unknown),
        ] {
            let asked = gpus(&json!({"containers": [container(resource, &amount)]})).unwrap();
            assert_eq!(asked.gpus, whole, "{resource}");
        }
    }

    #[test]
    fn requests_alone_count_and_zero_is_none() {
        let spec = json!({"containers": [{"resources": {"requests": {"nvidia.com/gpu": "2"}}}]});
        assert_eq!(gpus(&spec).unwrap().gpus, Count::Known(2));
        assert_eq!(
            gpus(&json!({"containers": [container("nvidia.com/gpu", &json!(0))]})),
            None
        );
        assert_eq!(
            gpus(&json!({"containers": [container("cpu", &json!(8))]})),
            None
        );
    }

    #[test]
    fn claims_shares_and_nonsense_are_unknown() {
        let claims = gpus(&json!({"containers": [{}], "resourceClaims": [{"name": "gpus"}]}));
        assert_eq!(claims.unwrap().gpus, Count::Unknown);
        let odd = json!({"containers": [container("nvidia.com/gpu", &json!("eight"))]});
        assert_eq!(gpus(&odd).unwrap().gpus, Count::Unknown);
        let huge = container("nvidia.com/gpu", &json!(u64::MAX));
        let asked = gpus(&json!({"containers": [huge.clone(), huge]}));
        assert_eq!(asked.unwrap().gpus, Count::Unknown);
        assert_eq!(gpus(&json!({"containers": "none"})), None);
    }
}
