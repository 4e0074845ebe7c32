//! Dynamo's DynamoGraphDeployment (ai-dynamo/dynamo deploy/operator/api/{v1alpha1,v1beta1},
//! 2026-08).

use serde_json::Value;

use super::{Kind, PodSet, Workload, number};
use crate::{
    finding::FieldPath,
    subject::{
        at,
        pod_template::{Accelerators, Count, Place, PodTemplate, integer},
    },
};

/// Its services (v1alpha1) or components (v1beta1), each of as many pods as nodes are asked for; the
/// operator joins these into one engine.
pub(super) fn graph(value: &Value) -> Vec<Workload<'_>> {
    let services = FieldPath::of(&["spec", "services"]);
    let named = at(value, &["spec", "services"]).and_then(Value::as_object);
    let named = named.into_iter().flatten().filter_map(|(name, _)| {
        let service = Place::of(value, services.clone().key(name.as_str()))?;
        Some(component(value, name, &service, in_service(&service)?))
    });
    let components = FieldPath::of(&["spec", "components"]);
    let listed = at(value, &["spec", "components"]).and_then(Value::as_array);
    let listed = listed
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, _)| {
            let place = Place::of(value, components.clone().index(index))?;
            let template = place.member("podTemplate")?;
            let name = place.value.get("name").and_then(Value::as_str);
            let template = PodTemplate::new(template.value, template.path);
            Some(component(value, name.unwrap_or_default(), &place, template))
        });
    named.chain(listed).collect()
}

fn component<'a>(
    value: &'a Value,
    name: &'a str,
    place: &Place<'a>,
    template: PodTemplate<'a>,
) -> Workload<'a> {
    let nodes = match place.value.get("multinode") {
        None | Some(Value::Null) => 1,
        // The CRD's default.
        Some(several) => number(several, &["nodeCount"]).unwrap_or(2).max(1),
    };
    let mut workload = Workload::new(Kind::DynamoGraph, value);
    workload.component = name;
    workload.groups = number(place.value, &["replicas"]).unwrap_or(1);
    workload.grouped = nodes > 1;
    // The operator turns GPUs that processes share into claims.
    let sharing = |place: Option<&Value>, key: &str| {
        let part = place
            .and_then(|place| place.get(key))
            .filter(|part| part.is_object());
        part.is_some_and(|part| part.get("enabled") != Some(&Value::Bool(false)))
    };
    let shares = ["gpuMemoryService", "failover"].into_iter().any(|key| {
        sharing(Some(place.value), key) || sharing(place.value.get("experimental"), key)
    });
    workload.certain = !shares;
    workload.pods = vec![PodSet {
        template,
        count: nodes,
        resizes: false,
        role: "node",
        merged: true,
    }];
    workload
}

/// A service's pods: `extraPodSpec`, with the container beside it, and the GPUs beside both.
fn in_service<'a>(service: &Place<'a>) -> Option<PodTemplate<'a>> {
    let spec = service.member("extraPodSpec")?;
    let main = spec.member("mainContainer");
    Some(
        PodTemplate::of_spec(spec, service.clone())
            .with_main(main)
            .with_asked(asked(service)),
    )
}

/// `resources.{limits,requests}.gpu`, of the type `gpuType`.
fn asked(service: &Place<'_>) -> Option<Accelerators> {
    ["limits", "requests"].into_iter().find_map(|kind| {
        let item = at(service.value, &["resources", kind])?;
        let units = item
            .get("gpu")
            .filter(|gpu| !matches!(gpu.as_str(), Some("" | "0")))
            .map(integer)?;
        let resource = item
            .get("gpuType")
            .and_then(Value::as_str)
            .filter(|kind| !kind.is_empty())
            .unwrap_or("nvidia.com/gpu");
        let whole = matches!(resource, "nvidia.com/gpu" | "amd.com/gpu");
        Some(Accelerators {
            resource: resource.to_owned(),
            gpus: if whole { units } else { Count::Unknown },
            units,
            path: service.path.clone().keys(&["resources", kind, "gpu"]),
        })
    })
}
