//! KServe's InferenceService and LLMInferenceService.
//!
//! Much of their pods stands elsewhere: in the ServingRuntime that an InferenceService names, in the
//! configurations that an LLMInferenceService is merged with. What they leave out is therefore
//! unknown, not absent.

use serde_json::Value;

use super::{Kind, PodSet, Stated, Workload, number};
use crate::{
    engine::Degree,
    finding::FieldPath,
    subject::{
        at, metadata_text,
        pod_template::{Accelerators, Count, Place, PodTemplate},
    },
};

/// Members of a predictor that stand for its container, each merged with a ServingRuntime's
/// (kserve/kserve pkg/apis/serving/v1beta1/predictor.go, 2026-08). KServe turns all of them into
/// `model`.
const MODELS: [&str; 4] = ["model", "huggingface", "triton", "pytorch"];

/// The annotation that says what an InferenceService becomes. KServe's defaulting writes it where
/// the cluster's mode is not Knative (pkg/apis/serving/v1beta1/inference_service_defaults.go).
const DEPLOYMENT_MODE: &str = "serving.kserve.io/deploymentMode";

/// The environment variable by which more flags reach the engine that KServe's own configurations
/// start (config/llmisvcconfig).
const MORE_ARGUMENTS: &str = "VLLM_ADDITIONAL_ARGS";

/// The predictor, and what stands before it; with a `workerSpec` its head and its workers, which are two Deployments
/// (pkg/controller/v1beta1/inferenceservice/reconcilers/deployment/deployment_reconciler.go).
pub(super) fn inference_service(value: &Value) -> Vec<Workload<'_>> {
    let Some(predictor) = Place::of(value, FieldPath::of(&["spec", "predictor"])) else {
        return Vec::new();
    };
    let model = MODELS.iter().find_map(|key| predictor.member(key));
    let is_merged = model.is_some();
    let worker = predictor.member("workerSpec");
    let mut workload = Workload::new(Kind::InferenceService, value);
    workload.certain = !is_merged && is_standard(value);
    let template = PodTemplate::of_spec(predictor.clone(), predictor.clone()).with_main(model);
    let beside = ["transformer", "explainer"]
        .into_iter()
        .filter_map(|component| {
            let place = Place::of(value, FieldPath::of(&["spec", component]))?;
            let mut workload = Workload::new(Kind::InferenceService, value);
            workload.component = component;
            workload.certain = is_standard(value);
            let template = PodTemplate::of_spec(place.clone(), place);
            workload.pods = vec![set(template, 1, "pod", false)];
            Some(workload)
        });
    let Some(worker) = worker else {
        workload.pods = vec![set(template, 1, "pod", is_merged)];
        return std::iter::once(workload).chain(beside).collect();
    };
    let degree = |key: &str| {
        Some(Degree {
            count: Count::Known(number(worker.value, &[key])?),
            path: Some(worker.path.clone().key(key)),
        })
    };
    let (tensor, pipeline) = (degree("tensorParallelSize"), degree("pipelineParallelSize"));
    // A size that is left out is the runtime's.
    if let (Some(tensor), Some(pipeline)) = (tensor, pipeline) {
        workload.stated = Some(Stated {
            tensor,
            pipeline: Some(pipeline),
            data: None,
        });
    }
    // Without GPUs of their own the pods have those that the runtime or the sizes give them.
    let workers = PodTemplate::of_spec(worker.clone(), predictor);
    workload.pods = vec![
        set(template.with_given(given(&worker)), 1, "head", true),
        set(workers.with_given(given(&worker)), 1, "worker", true),
    ];
    std::iter::once(workload).chain(beside).collect()
}

/// GPUs that KServe gives a pod whose object asks for none.
fn given(worker: &Place<'_>) -> Accelerators {
    Accelerators {
        resource: "nvidia.com/gpu".to_owned(),
        gpus: Count::Unknown,
        units: Count::Unknown,
        path: worker.path.clone(),
    }
}

/// Whether an InferenceService is known to become Deployments.
fn is_standard(value: &Value) -> bool {
    matches!(
        metadata_text(value, "annotations", DEPLOYMENT_MODE),
        Some("Standard" | "RawDeployment")
    )
}

/// The main part, which decodes where there is another for prefill, and that other one: with a
/// `worker` a LeaderWorkerSet, else a Deployment (pkg/controller/v1alpha2/llmisvc).
pub(super) fn llm_inference_service(value: &Value) -> Vec<Workload<'_>> {
    let bases = at(value, &["spec", "baseRefs"])
        .and_then(Value::as_array)
        .is_some_and(|bases| !bases.is_empty());
    [("", &["spec"][..]), ("prefill", &["spec", "prefill"])]
        .into_iter()
        .filter_map(|(component, keys)| {
            let place = Place::of(value, FieldPath::of(keys))?;
            let mut workload = part(value, &place)?;
            workload.component = component;
            workload.certain = !bases && !takes_more(&workload);
            Some(workload)
        })
        .collect()
}

fn part<'a>(value: &'a Value, place: &Place<'a>) -> Option<Workload<'a>> {
    let mut workload = Workload::new(Kind::LlmInferenceService, value);
    let size = |key: &str| number(place.value, &["parallelism", key]).filter(|size| *size > 0);
    let template = |key: &str| Some(PodTemplate::of_spec(place.member(key)?, place.clone()));
    let leader = template("template");
    let worker = template("worker");
    // ParallelismSpec.GetSize, pkg/apis/serving/v1alpha2/llm_inference_service_types_func.go.
    let pods = match (size("data"), size("dataLocal")) {
        (None, None) => size("pipeline").unwrap_or(1),
        (data, local) => (data.unwrap_or(1) / local.unwrap_or(1)).max(1),
    };
    workload.groups = number(place.value, &["replicas"]).unwrap_or(1);
    let path = place.path.clone().key("parallelism");
    let said = |key: &str| {
        Some(Degree {
            count: Count::Known(size(key)?),
            path: Some(path.clone().key(key)),
        })
    };
    workload.stated = said("tensor").map(|tensor| Stated {
        tensor,
        pipeline: said("pipeline").filter(|_| worker.is_some()),
        data: said("data").filter(|_| worker.is_some()),
    });
    match worker {
        None => {
            workload.groups = 1;
            workload.pods = vec![set(leader?, 1, "pod", true)];
        }
        Some(worker) => {
            workload.grouped = true;
            let rest = if leader.is_some() {
                pods.saturating_sub(1)
            } else {
                pods
            };
            let leader = leader.map(|leader| set(leader, 1, "leader", true));
            workload.pods = leader
                .into_iter()
                .chain([set(worker, rest, "worker", true)])
                .collect();
        }
    }
    Some(workload)
}

/// Whether flags reach the engine past the command line.
fn takes_more(workload: &Workload<'_>) -> bool {
    workload
        .pods
        .iter()
        .flat_map(|set| set.template.containers())
        .filter_map(|container| container.value.get("env")?.as_array())
        .flatten()
        .any(|variable| variable.get("name").and_then(Value::as_str) == Some(MORE_ARGUMENTS))
}

fn set<'a>(template: PodTemplate<'a>, count: u64, role: &'static str, merged: bool) -> PodSet<'a> {
    PodSet {
        template,
        count,
        // Scalers move whole groups.
        resizes: role == "pod",
        role,
        merged,
    }
}
