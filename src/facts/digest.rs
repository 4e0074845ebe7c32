//! What is kept of a workload that an autoscaler may scale: a few words, made by one function from
//! the raw object, whether it comes from a file or from a watch.

use serde_json::Value;

use crate::{
    budget::Budget,
    catalog::{
        engines::Engines,
        schedulers::{Scheduler, Schedulers},
    },
    facts::Facts,
    subject::{
        ROLE_LABEL, WARM_POOL_ANNOTATION, at, metadata_text,
        pod_template::{Container, Count},
        workload::{Kind, PodSet, Serving, Spread, Workload},
    },
};

/// A workload in a few words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// The model that it serves on accelerators; none for clients of GPUs, routers, tokenizers and
    /// everything else.
    pub served: Option<Box<Served>>,
    /// The image of the model server, or of what looks like one.
    pub image: Option<Box<str>>,
    /// The phases of inference that its pods are told to serve.
    pub roles: Roles,
    /// What holds its pods together.
    pub gang: Option<Box<Gang>>,
    /// The workload that it says keeps capacity warm for it.
    pub warm_pool: Option<Box<str>>,
}

/// A model on accelerators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The engine, as people write it; none where only a label says that this is a model server.
    pub engine: Option<Box<str>>,
    /// The accelerators' resource name.
    pub resource: Box<str>,
    /// How many of them each server's pod takes.
    pub units: Count,
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.engine.as_deref().unwrap_or("a model"))?;
        match self.units {
            Count::Known(units) => write!(f, " on {units} {} a pod", self.resource),
            Count::Unknown => write!(f, " on {}", self.resource),
        }
    }
}

/// The phases of inference that a workload's pods serve, where somebody says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Some of them only read prompts.
    pub prefill: bool,
    /// Some of them only make tokens.
    pub decode: bool,
}

impl Roles {
    /// By the value of a label. What serves both phases has neither role.
    pub fn of_value(value: &str) -> Self {
        Self {
            prefill: matches!(value, "prefill" | "prefiller" | "prefill-worker"),
            decode: matches!(value, "decode" | "decoder" | "decode-worker"),
        }
    }

    /// Whether nobody says anything.
    pub const fn is_silent(self) -> bool {
        !self.prefill && !self.decode
    }

    const fn or(self, other: Self) -> Self {
        Self {
            prefill: self.prefill || other.prefill,
            decode: self.decode || other.decode,
        }
    }
}

/// What holds the pods of a flat workload together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gang {
    /// The pods of one instance of the model.
    pub members: Option<u64>,
    /// The minimum that an annotation of the owner gives, and the scheduler that reads it.
    pub minimum: Option<(u64, &'static str)>,
    /// The group object that holds the minimum: its API group and name.
    pub group: Option<(&'static str, Box<str>)>,
}

/// Labels that tell the role of a pod, of its owner or of a scaler. Ours decides alone.
///
/// llm-d/llm-d guides and kserve/kserve pkg/controller/v1alpha2/llmisvc (`llm-d.ai/role`);
/// ai-dynamo/dynamo deploy/operator/internal/consts; vllm-project/aibrix
/// pkg/plugins/gateway/algorithms/pd_disaggregation.go (`role-name`); kubernetes-sigs/lws
/// api/disaggregatedset (checked 2026-11).
const ROLE_LABELS: &[&str] = &[
    "llm-d.ai/role",
    "nvidia.com/dynamo-sub-component-type",
    "nvidia.com/dynamo-component-type",
    "role-name",
    "disaggregatedset.x-k8s.io/role",
];

/// KServe's label for the parts of an LLMInferenceService, and how the values of its prefill pods
/// begin (kserve/kserve pkg/controller/v1alpha2/llmisvc).
const KSERVE_COMPONENT: &str = "app.kubernetes.io/component";
const KSERVE_PREFILL: [&str; 3] = [
    "llminferenceservice-workload-prefill",
    "llminferenceservice-workload-leader-prefill",
    "llminferenceservice-workload-worker-prefill",
];

impl Digest {
    /// The digest of an object; `None` for kinds that run no pods and keep no roles.
    pub fn of(
        group: &str,
        kind: &str,
        value: &Value,
        facts: &Facts,
        engines: &Engines,
    ) -> Option<Self> {
        let warm_pool = metadata_text(value, "annotations", WARM_POOL_ANNOTATION).map(Into::into);
        let workloads = Workload::all(group, kind, value);
        let Some(workload) = workloads.first() else {
            return Some(Self {
                roles: listed_roles(group, kind, value)?,
                warm_pool,
                ..Self::default()
            });
        };
        let roles = workloads
            .iter()
            .map(roles)
            .fold(Roles::default(), Roles::or);
        let first = workloads
            .iter()
            .flat_map(|workload| &workload.pods)
            .flat_map(|set| set.template.containers())
            .map(|container| container.image())
            .find(|image| engines.by_image(image).is_some());
        let namespace = at(value, &["metadata", "namespace"]).and_then(Value::as_str);
        let budget = Budget::default();
        let serving = workloads.iter().find_map(|workload| {
            Serving::of_workload(workload.clone(), namespace, facts, engines, &budget)
        });
        let gang = gang(workload, serving.as_ref());
        let image = serving
            .as_ref()
            .map(|serving| serving.server.container.image())
            .or(first);
        Some(Self {
            served: serving.as_ref().map(|serving| Box::new(served(serving))),
            image: image.filter(|image| !image.is_empty()).map(Into::into),
            roles,
            gang,
            warm_pool,
        })
    }
}

fn served(serving: &Serving<'_>) -> Served {
    Served {
        engine: serving
            .server
            .engine
            .map(|engine| engine.title.as_str().into()),
        resource: serving.accelerators.resource.as_str().into(),
        units: serving.accelerators.units,
    }
}

/// What labels say of a role; `None` where they say nothing.
pub fn labelled_roles<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Option<Roles> {
    if let Some(ours) = label(ROLE_LABEL) {
        return Some(Roles::of_value(ours));
    }
    let kserve = label(KSERVE_COMPONENT)
        .filter(|component| {
            KSERVE_PREFILL
                .iter()
                .any(|part| component.starts_with(part))
        })
        .map(|_| Roles {
            prefill: true,
            decode: false,
        });
    ROLE_LABELS
        .iter()
        .filter_map(|key| label(key))
        .map(Roles::of_value)
        .find(|roles| !roles.is_silent())
        .or(kserve)
}

fn roles(workload: &Workload<'_>) -> Roles {
    if let Some(roles) = labelled_roles(|key| workload.label(key)) {
        return roles;
    }
    workload
        .pods
        .iter()
        .map(|set| {
            labelled_roles(|key| set.template.label(key)).unwrap_or_else(|| {
                set.template
                    .containers()
                    .map(|container| started_role(&container))
                    .fold(Roles::default(), Roles::or)
            })
        })
        .fold(Roles::default(), Roles::or)
}

/// The role that an engine is started in: `--disaggregation-mode` of SGLang and Dynamo, Dynamo's
/// older flags, and the connector of vLLM (sgl-project/sglang python/sglang/srt/server_args.py,
/// ai-dynamo/dynamo components/src/dynamo/vllm, vllm-project/vllm vllm/config/kv_transfer.py).
fn started_role(container: &Container<'_>) -> Roles {
    let words = || {
        ["command", "args"]
            .into_iter()
            .flat_map(|key| container.texts(key))
            .flat_map(|text| text.split([' ', '\n', '\t', '=']))
            .map(|word| word.trim_matches(['"', '\'', '\\']))
            .filter(|word| !word.is_empty())
    };
    let mode = words()
        .zip(words().skip(1))
        .find(|(flag, _)| *flag == "--disaggregation-mode")
        .map(|(_, mode)| Roles::of_value(mode))
        .unwrap_or_default();
    let text = |wanted: &str| {
        ["command", "args"]
            .into_iter()
            .flat_map(|key| container.texts(key))
            .any(|text| text.contains(wanted))
    };
    mode.or(Roles {
        prefill: words().any(|word| word == "--is-prefill-worker") || text("\"kv_producer\""),
        decode: words().any(|word| word == "--is-decode-worker") || text("\"kv_consumer\""),
    })
}

/// Kinds whose replicas are whole sets of roles (vllm-project/aibrix api/orchestration/v1alpha1;
/// volcano-sh/kthena pkg/apis/workload/v1alpha1).
fn listed_roles(group: &str, kind: &str, value: &Value) -> Option<Roles> {
    let path: &[&str] = match (group, kind) {
        ("orchestration.aibrix.ai", "StormService") => &["spec", "template", "spec", "roles"],
        ("workload.serving.volcano.sh", "ModelServing") => &["spec", "template", "roles"],
        _ => return None,
    };
    let listed = at(value, path).and_then(Value::as_array);
    Some(
        listed
            .into_iter()
            .flatten()
            .filter_map(|role| role.get("name")?.as_str())
            .map(Roles::of_value)
            .fold(Roles::default(), Roles::or),
    )
}

/// What holds the pods together. Kinds that make groups by themselves are scaled by whole groups,
/// and need no floor.
fn gang(workload: &Workload<'_>, serving: Option<&Serving<'_>>) -> Option<Box<Gang>> {
    if !workload.kind.is_flat() {
        return None;
    }
    let set = workload.pods.first()?;
    let members = serving.and_then(|serving| match serving.spread {
        Spread::Group(members) => Some(members),
        _ => None,
    });
    let gang = Gang {
        members,
        minimum: minimum(workload, set),
        group: group(workload, set),
    };
    (gang != Gang::default()).then(|| Box::new(gang))
}

/// Whether a template may go to a scheduler: it names it, none, or one that we do not know and that
/// may be it under another name.
fn goes_to(set: &PodSet<'_>, scheduler: &Scheduler) -> bool {
    set.template.spec_text("schedulerName").is_none_or(|named| {
        named == scheduler.scheduler_name
            || !Schedulers::builtin()
                .schedulers
                .iter()
                .any(|other| other.scheduler_name == named)
    })
}

/// The minimum in an annotation of the owner.
fn minimum(workload: &Workload<'_>, set: &PodSet<'_>) -> Option<(u64, &'static str)> {
    let kind = match workload.kind {
        Kind::Deployment => "Deployment",
        Kind::StatefulSet => "StatefulSet",
        Kind::ReplicaSet => "ReplicaSet",
        Kind::Rollout => "Rollout",
        Kind::Job => "Job",
        _ => return None,
    };
    Schedulers::builtin()
        .schedulers
        .iter()
        .filter(|row| goes_to(set, row))
        .find_map(|row| {
            let key = &row.minimum.iter().find(|row| row.kind == kind)?.annotation;
            let minimum = workload.annotation(key)?.parse::<u64>().ok()?;
            (minimum > 1).then_some((minimum, row.name.as_str()))
        })
}

/// The group object that the pods name.
fn group(workload: &Workload<'_>, set: &PodSet<'_>) -> Option<(&'static str, Box<str>)> {
    let template = &set.template;
    Schedulers::builtin()
        .schedulers
        .iter()
        .filter(|row| goes_to(set, row))
        .find_map(|row| {
            if let Some(external) = &row.external
                && (workload.annotation(&external.skip) == Some("true")
                    || template.annotation(&external.skip) == Some("true"))
            {
                let name = template.annotation(&external.group)?;
                return Some((super::KAI_GROUP, name.into()));
            }
            let reference = row.group.as_ref()?;
            let name = template.label(reference.label.as_ref()?)?;
            Some((reference.api_group.as_str(), name.into()))
        })
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "documents read best where they are used"
)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(value: Value) -> Digest {
        let kind = value["kind"].as_str().unwrap();
        let group = crate::subject::group_of(value["apiVersion"].as_str().unwrap());
        Digest::of(group, kind, &value, &Facts::unknown(), Engines::builtin()).unwrap()
    }

    fn deployment(metadata: Value, container: Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": 2, "template": {"spec": {"containers": [container]}}}
        })
    }

    fn vllm(args: &[&str], gpus: u64) -> Value {
        json!({"image": "vllm/vllm-openai:v0.11.0", "args": args,
            "resources": {"limits": {"nvidia.com/gpu": gpus}}})
    }

    #[test]
    fn a_model_server_is_told_from_what_stands_beside_it() {
        let found = digest(deployment(json!({}), vllm(&[], 2)));
        assert_eq!(
            found.served.unwrap().to_string(),
            "vLLM on 2 nvidia.com/gpu a pod"
        );
        assert_eq!(found.image.as_deref(), Some("vllm/vllm-openai:v0.11.0"));
        for (what, container) in [
            ("a router", json!({"image": "vllm/vllm-router:v1"})),
            ("a tokenizer", json!({"image": "vllm/vllm-openai:v0.11.0"})),
            (
                "a client of GPUs",
                json!({"image": "team/batch:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}),
            ),
        ] {
            assert_eq!(
                digest(deployment(json!({}), container)).served,
                None,
                "{what}"
            );
        }
        let no_server = json!({"labels": {"gangplank.dev/model-server": "false"}});
        assert_eq!(digest(deployment(no_server, vllm(&[], 2))).served, None);
        let own = json!({"image": "team/own:1", "resources": {"limits": {"amd.com/gpu": 1}}});
        let declared = json!({"labels": {"gangplank.dev/model-server": "true"}});
        let served = digest(deployment(declared, own)).served.unwrap();
        assert_eq!(served.to_string(), "a model on 1 amd.com/gpu a pod");
    }

    #[test]
    fn roles_are_told_by_the_conventions_of_each_project() {
        let (prefill, decode) = (
            Roles {
                prefill: true,
                decode: false,
            },
            Roles {
                prefill: false,
                decode: true,
            },
        );
        let labelled = |key: &str, value: &str| {
            digest(deployment(json!({"labels": {key: value}}), vllm(&[], 1))).roles
        };
        for (key, value, roles) in [
            (ROLE_LABEL, "prefill", prefill),
            ("llm-d.ai/role", "decode", decode),
            ("llm-d.ai/role", "both", Roles::default()),
            ("llm-d.ai/role", "prefill-decode", Roles::default()),
            ("nvidia.com/dynamo-sub-component-type", "decode", decode),
            ("nvidia.com/dynamo-component-type", "prefill", prefill),
            (
                "nvidia.com/dynamo-component-type",
                "frontend",
                Roles::default(),
            ),
            ("role-name", "prefill", prefill),
            ("disaggregatedset.x-k8s.io/role", "decode", decode),
            (
                KSERVE_COMPONENT,
                "llminferenceservice-workload-prefill",
                prefill,
            ),
            (
                KSERVE_COMPONENT,
                "llminferenceservice-workload",
                Roles::default(),
            ),
        ] {
            assert_eq!(labelled(key, value), roles, "{key}={value}");
        }
        for (args, roles) in [
            (&["--disaggregation-mode", "prefill"][..], prefill),
            (&["--disaggregation-mode=decode"], decode),
            (&["--is-prefill-worker"], prefill),
            (
                &["--kv-transfer-config", r#"{"kv_role":"kv_consumer"}"#],
                decode,
            ),
            (
                &["--kv-transfer-config", r#"{"kv_role":"kv_both"}"#],
                Roles::default(),
            ),
        ] {
            assert_eq!(digest(deployment(json!({}), vllm(args, 1))).roles, roles);
        }
        let against = json!({"labels": {ROLE_LABEL: "decode", "llm-d.ai/role": "prefill"}});
        let own = digest(deployment(against, vllm(&["--is-prefill-worker"], 1)));
        assert_eq!(own.roles, decode, "ours decides alone");
    }

    #[test]
    fn one_workload_may_hold_both_roles() {
        let both = Roles {
            prefill: true,
            decode: true,
        };
        let storm = json!({
            "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "StormService",
            "spec": {"template": {"spec": {"roles": [{"name": "prefill"}, {"name": "decode"}]}}}
        });
        assert_eq!(digest(storm).roles, both);
        let lws = json!({
            "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
            "spec": {"leaderWorkerTemplate": {"size": 2,
                "leaderTemplate": {"metadata": {"labels": {"llm-d.ai/role": "prefill"}},
                    "spec": {"containers": [vllm(&[], 1)]}},
                "workerTemplate": {"metadata": {"labels": {"llm-d.ai/role": "decode"}},
                    "spec": {"containers": [vllm(&[], 1)]}}}}
        });
        assert_eq!(digest(lws).roles, both);
    }

    #[test]
    fn a_gang_is_known_by_its_instance_its_minimum_or_its_group() {
        let annotated = |annotations: Value, container: Value| {
            digest(deployment(json!({"annotations": annotations}), container)).gang
        };
        let several = vllm(&["-tp", "16", "--nnodes", "2"], 8);
        let gang = annotated(json!({"kai.scheduler/batch-min-member": "2"}), several).unwrap();
        assert_eq!((gang.members, gang.minimum), (Some(2), Some((2, "kai"))));
        assert_eq!(annotated(json!({}), vllm(&[], 8)), None);
        assert_eq!(
            annotated(json!({"kai.scheduler/batch-min-member": "1"}), vllm(&[], 8)),
            None,
            "one is no gang"
        );
        let mut elsewhere = deployment(
            json!({"annotations": {"kai.scheduler/batch-min-member": "4"}}),
            vllm(&[], 8),
        );
        assert_eq!(
            digest(elsewhere.clone()).gang.unwrap().minimum,
            Some((4, "kai"))
        );
        elsewhere["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
        assert_eq!(digest(elsewhere).gang, None, "KAI does not see its pods");
        let mut external = deployment(
            json!({"annotations": {"kai.scheduler/skip-podgrouper": "true"}}),
            vllm(&[], 8),
        );
        external["spec"]["template"]["metadata"] = json!({"annotations": {"pod-group-name": "g"}});
        let gang = digest(external).gang.unwrap();
        assert_eq!(gang.group, Some(("scheduling.run.ai", "g".into())));
    }
}
