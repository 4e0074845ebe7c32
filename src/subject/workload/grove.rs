//! Grove's PodCliqueSet (ai-dynamo/grove operator/api/core/v1alpha1, 2026-08).

use serde_json::Value;

use super::{Kind, PodSet, Workload, number};
use crate::{
    finding::FieldPath,
    subject::{
        at,
        pod_template::{Place, PodTemplate},
    },
};

/// Its scaling groups, whose cliques are scaled together, and each of its other cliques.
pub(super) fn pod_clique_set(value: &Value) -> Vec<Workload<'_>> {
    let list = |key: &str| {
        at(value, &["spec", "template", key])
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    };
    let cliques = list("cliques");
    let mut joined = Vec::new();
    let mut workloads = Vec::new();
    for group in list("podCliqueScalingGroups") {
        let names = group.get("cliqueNames").and_then(Value::as_array);
        let names: Vec<&str> = names
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut workload = Workload::new(Kind::PodCliqueSet, value);
        workload.component = name(group);
        workload.groups = number(group, &["replicas"]).unwrap_or(1);
        workload.grouped = true;
        workload.pods = cliques
            .iter()
            .enumerate()
            .filter(|(_, clique)| names.contains(&name(clique)))
            .filter_map(|(index, _)| set(value, index, "member"))
            .collect();
        joined.extend(names);
        workloads.push(workload);
    }
    let alone = cliques
        .iter()
        .enumerate()
        .filter(|(_, clique)| !joined.contains(&name(clique)))
        .filter_map(|(index, clique)| {
            let mut workload = Workload::new(Kind::PodCliqueSet, value);
            workload.component = name(clique);
            workload.pods = vec![set(value, index, "clique")?];
            workload.grouped = true;
            Some(workload)
        });
    workloads.extend(alone);
    workloads.retain(|workload| !workload.pods.is_empty());
    workloads
}

fn name(value: &Value) -> &str {
    value
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn set<'a>(value: &'a Value, index: usize, role: &'static str) -> Option<PodSet<'a>> {
    let path = FieldPath::of(&["spec", "template", "cliques"]).index(index);
    let clique = Place::of(value, path)?;
    let spec = clique.member("spec")?;
    Some(PodSet {
        template: PodTemplate::of_spec(spec.member("podSpec")?, clique),
        // Silence and 0 are 1 (internal/webhook/admission/pcs/defaulting).
        count: number(spec.value, &["replicas"]).unwrap_or(1).max(1),
        resizes: spec.value.get("autoScalingConfig").is_some(),
        role,
        merged: false,
    })
}
