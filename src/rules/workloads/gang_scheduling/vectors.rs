//! The cases that every gang policy has to decide, and what this one decides: one test each, judged as
//! files are and filled as they would be on their way in.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::GANG_SCHEDULING;
use crate::{
    facts::{Facts, Listed, Watched},
    finding::{Finding, Level, Verdict},
    policy::Policy,
    review::{Review, Skip, review},
    rules::workloads::{
        gang_scaling_floor::GANG_SCALING_FLOOR, parallelism_fits_pod::PARALLELISM_FITS_POD,
    },
    subject::{Door, Subject},
};

const MINIMUM: &str = "kai.scheduler/batch-min-member";
const SCHEDULER: &str = "/spec/template/spec/schedulerName";

/// A policy that declares a gang scheduler.
fn policy(name: &str, version: Option<&str>) -> Policy {
    let mut scheduler = json!({"name": name});
    if let Some(version) = version {
        scheduler["version"] = json!(version);
    }
    Policy::from_document(&json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "gangScheduler": scheduler,
    }))
    .unwrap()
}

/// What becomes of the first of the objects, which are one world.
struct Outcome {
    review: Review,
    /// The object with its fills.
    after: Value,
}

impl Outcome {
    fn of(policy: &Policy, world: &[&Value]) -> Self {
        let documents: Vec<Arc<Value>> = world
            .iter()
            .map(|value| Arc::new((*value).clone()))
            .collect();
        Self::under(policy, &Facts::from_documents(&documents), &documents[0])
    }

    fn under(policy: &Policy, facts: &Facts, object: &Arc<Value>) -> Self {
        let subject = Subject::from_manifest(Arc::clone(object)).unwrap();
        assert_eq!(subject.door, Door::Check);
        let review = review(policy, facts, &subject, Timestamp::UNIX_EPOCH);
        let mut after = Value::clone(object);
        json_patch::patch(&mut after, &review.patch).unwrap();
        Self { review, after }
    }

    /// The findings of a rule, fills aside.
    fn found(&self, rule: &str) -> Vec<&Finding> {
        let of_rule = |finding: &&Finding| finding.rule == rule && !finding.filled;
        self.review.findings.iter().filter(of_rule).collect()
    }

    /// The level of what gang-scheduling finds; none where it is content.
    fn level(&self) -> Option<Level> {
        let found = self.found(GANG_SCHEDULING.id);
        found.iter().map(|finding| finding.level).max()
    }

    fn denial(&self) -> &Finding {
        let found = self.found(GANG_SCHEDULING.id);
        let denial = found
            .into_iter()
            .find(|finding| finding.level == Level::Deny);
        denial.unwrap_or_else(|| panic!("{:?}", self.review.findings))
    }

    fn assert_clean_as_written(&self) {
        assert_eq!(self.level(), None, "{:?}", self.review.findings);
        assert!(self.review.patch.0.is_empty(), "{:?}", self.review.patch);
    }

    /// Filled with that minimum, and not found fault with.
    fn assert_filled(&self, minimum: &str) {
        assert_eq!(self.level(), None, "{:?}", self.review.findings);
        assert_eq!(self.after.pointer(SCHEDULER), Some(&json!("kai-scheduler")));
        assert_eq!(self.after["metadata"]["annotations"][MINIMUM], minimum);
    }
}

fn judged(object: &Value) -> Outcome {
    Outcome::of(&Policy::default(), &[object])
}

/// A vLLM Deployment with a queue.
fn deployment(replicas: u64, args: &[&str], gpus: u64) -> Value {
    let mut all = vec!["--model=org/model"];
    all.extend(args);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "llm", "namespace": "inference",
            "labels": {"kai.scheduler/queue": "llm"}, "annotations": {},
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "llm"}},
            "template": {
                "metadata": {"labels": {"app": "llm"}, "annotations": {}},
                "spec": {"terminationGracePeriodSeconds": 300, "containers": [{
                    "name": "server", "image": "vllm/vllm-openai:v0.11.0", "args": all,
                    "resources": {"limits": {"nvidia.com/gpu": gpus}},
                }]},
            },
        },
    })
}

/// Sixteen ranks over two nodes.
const TWO_NODES: [&str; 3] = ["-tp=16", "--nnodes=2", "--node-rank=0"];

fn gang(replicas: u64) -> Value {
    deployment(replicas, &TWO_NODES, 8)
}

fn without_queue(mut object: Value) -> Value {
    object["metadata"]["labels"] = json!({});
    object
}

fn with_minimum(mut object: Value, minimum: &str) -> Value {
    object["metadata"]["annotations"][MINIMUM] = json!(minimum);
    object
}

fn scheduled_by(mut object: Value, scheduler: &str) -> Value {
    *object.pointer_mut("/spec/template/spec").unwrap() = {
        let mut spec = object.pointer("/spec/template/spec").unwrap().clone();
        spec["schedulerName"] = json!(scheduler);
        spec
    };
    object
}

/// A LeaderWorkerSet of groups of two, whose templates name these schedulers.
fn leader_worker_set(leader: Option<&str>, worker: Option<&str>) -> Value {
    let template = |scheduler: Option<&str>| {
        let mut pod = gang(1)["spec"]["template"].clone();
        if let Some(scheduler) = scheduler {
            pod["spec"]["schedulerName"] = json!(scheduler);
        }
        pod
    };
    json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
        "metadata": {
            "name": "llm", "namespace": "inference", "labels": {"kai.scheduler/queue": "llm"},
        },
        "spec": {"leaderWorkerTemplate": {
            "size": 2, "leaderTemplate": template(leader), "workerTemplate": template(worker),
        }},
    })
}

/// 1: four replicas of eight ranks in one pod each. One pod is placed whole by any scheduler, but
/// belongs into a queue: denied without one, filled with one, and never coupled.
#[test]
fn v01_one_pod_holds_all_ranks() {
    let object = deployment(4, &["-tp=8"], 8);
    judged(&object).assert_filled("1");
    let denied = judged(&without_queue(object));
    assert!(denied.denial().instead.contains("kai.scheduler/queue"));
}

/// 2: the same with a minimum of the replicas makes them wait for one another.
#[test]
fn v02_a_minimum_couples_replicas_that_serve_by_themselves() {
    let object = with_minimum(deployment(4, &["-tp=8"], 8), "4");
    let outcome = judged(&scheduled_by(object, "kai-scheduler"));
    assert_eq!(outcome.level(), Some(Level::Warn));
}

/// 3: two pods, one gang, a queue: everything that is missing is filled.
#[test]
fn v03_a_gang_with_a_queue_is_filled() {
    let outcome = judged(&gang(2));
    outcome.assert_filled("2");
    assert_eq!(
        outcome.after["spec"]["strategy"],
        json!({"type": "Recreate"})
    );
}

/// 4: no queue is ever invented.
#[test]
fn v04_a_gang_without_a_queue_is_denied() {
    let outcome = judged(&without_queue(gang(2)));
    assert!(outcome.denial().message.contains("No queue is known"));
    assert!(outcome.review.patch.0.is_empty());
}

/// 5: two groups in one Deployment cannot be told apart; a LeaderWorkerSet can hold them.
#[test]
fn v05_two_groups_in_one_deployment_are_denied() {
    let outcome = judged(&gang(4));
    let set: Value = serde_saphyr::from_str(&outcome.denial().instead).unwrap();
    assert_eq!(set["kind"], "LeaderWorkerSet");
    assert_eq!(set["spec"]["replicas"], 2);
    assert_eq!(set["spec"]["leaderWorkerTemplate"]["size"], 2);
}

/// 6: before 0.18 KAI makes no gang of a Deployment, whatever its annotations.
#[test]
fn v06_an_older_kai_makes_no_gang_of_a_deployment() {
    let object = with_minimum(scheduled_by(gang(2), "kai-scheduler"), "2");
    let old = Outcome::of(&policy("kai", Some("0.17")), &[&object]);
    assert!(old.denial().instead.contains("kind: LeaderWorkerSet"));
}

/// 7: a group that the pods name without `skip-podgrouper` is overwritten.
#[test]
fn v07_a_group_name_alone_is_overwritten() {
    let mut object = scheduled_by(gang(2), "kai-scheduler");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object["spec"]["template"]["metadata"]["annotations"]["pod-group-name"] = json!("ranks");
    assert!(judged(&object).denial().message.contains("overwrites"));
}

/// 8: the three parts of a group that somebody else makes. One that is not there, or not to be seen,
/// is warned about: what is applied together arrives in any order.
#[test]
fn v08_a_group_made_by_somebody_else() {
    let mut object = scheduled_by(gang(2), "kai-scheduler");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object["metadata"]["annotations"]["kai.scheduler/skip-podgrouper"] = json!("true");
    object["spec"]["template"]["metadata"]["annotations"]["pod-group-name"] = json!("ranks");
    let group = |minimum: u64| {
        json!({
            "apiVersion": "scheduling.run.ai/v2alpha2", "kind": "PodGroup",
            "metadata": {"name": "ranks", "namespace": "inference"},
            "spec": {"minMember": minimum, "queue": "llm"},
        })
    };
    let seen = |minimum| Outcome::of(&Policy::default(), &[&object, &group(minimum)]);
    seen(2).assert_clean_as_written();
    assert!(seen(1).denial().message.contains("minMember"));
    assert_eq!(judged(&object).level(), Some(Level::Warn), "unseen");
    let nothing = Listed::default();
    let facts =
        Facts::unknown().with_cluster(|cluster| cluster.replace(Watched::PodGroup, &nothing));
    let absent = Outcome::under(&Policy::default(), &facts, &Arc::new(object));
    assert_eq!(absent.level(), Some(Level::Warn), "absent");
}

/// 9: only the gang's own number is its minimum.
#[test]
fn v09_a_minimum_beside_the_size_is_denied() {
    for minimum in ["1", "3"] {
        let outcome = judged(&with_minimum(gang(2), minimum));
        assert!(outcome.denial().instead.contains("\"2\""), "{minimum}");
    }
}

/// 10: pods that wait for one another to be Ready are never a gang.
#[test]
fn v10_an_ordered_stateful_set_is_denied() {
    let mut object = gang(2);
    object["kind"] = json!("StatefulSet");
    object["spec"]["serviceName"] = json!("llm");
    judged(&object).denial();
    // Where the scheduler makes gangs of StatefulSets, the order alone is the fault.
    let mut ordered = scheduled_by(object, "volcano");
    ordered["metadata"]["annotations"]["scheduling.volcano.sh/group-min-member"] = json!("2");
    let volcano = policy("volcano", None);
    let outcome = Outcome::of(&volcano, &[&ordered]);
    assert_eq!(
        outcome.denial().path.to_string(),
        "spec.podManagementPolicy"
    );
    ordered["spec"]["podManagementPolicy"] = json!("Parallel");
    Outcome::of(&volcano, &[&ordered]).assert_clean_as_written();
}

/// 11: both templates of a LeaderWorkerSet name the scheduler, or are filled.
#[test]
fn v11_a_leader_worker_set_needs_the_scheduler_in_both_templates() {
    let kai = Some("kai-scheduler");
    judged(&leader_worker_set(kai, kai)).assert_clean_as_written();
    let filled = judged(&leader_worker_set(None, kai));
    assert_eq!(filled.level(), None);
    let leader = "/spec/leaderWorkerTemplate/leaderTemplate/spec/schedulerName";
    assert_eq!(filled.after.pointer(leader), Some(&json!("kai-scheduler")));
    let elsewhere = judged(&leader_worker_set(Some("default-scheduler"), kai));
    assert_eq!(elsewhere.level(), Some(Level::Deny));
}

/// 12: under `LeaderReady` the leader is placed alone.
#[test]
fn v12_leader_ready_is_warned_about() {
    let mut object = leader_worker_set(Some("kai-scheduler"), Some("kai-scheduler"));
    object["spec"]["startupPolicy"] = json!("LeaderReady");
    assert_eq!(judged(&object).level(), Some(Level::Warn));
}

/// 13: KAI counts Ray's `minReplicas` into the gang. With an autoscaler it is a warning: that writes
/// these numbers.
#[test]
fn v13_rays_minimum_below_its_workers() {
    let pod = |command: &str| {
        json!({"spec": {"schedulerName": "kai-scheduler", "containers": [{
            "name": "ray", "image": "vllm/vllm-openai:v0.11.0", "command": ["sh", "-c", command],
            "resources": {"limits": {"nvidia.com/gpu": 8}},
        }]}})
    };
    let cluster = |least: u64, autoscales: bool| {
        json!({
            "apiVersion": "ray.io/v1", "kind": "RayCluster",
            "metadata": {
                "name": "llm", "namespace": "inference", "labels": {"kai.scheduler/queue": "llm"},
            },
            "spec": {
                "enableInTreeAutoscaling": autoscales,
                "headGroupSpec": {
                    "template": pod("ray start --head && vllm serve m -tp 8 -pp 9"),
                },
                "workerGroupSpecs": [{
                    "groupName": "gpu", "replicas": 8, "minReplicas": least, "maxReplicas": 8,
                    "template": pod("ray start --block"),
                }],
            },
        })
    };
    assert_eq!(judged(&cluster(1, false)).level(), Some(Level::Deny));
    assert_eq!(judged(&cluster(1, true)).level(), Some(Level::Warn));
    judged(&cluster(8, false)).assert_clean_as_written();
}

/// 14: the forms in which a size is written; one that vLLM's parser does not know means nothing.
#[test]
fn v14_forms_of_a_size() {
    let filled = |mut object: Value, script: Option<&str>| {
        let container = object
            .pointer_mut("/spec/template/spec/containers/0")
            .unwrap();
        if let Some(script) = script {
            container["command"] = json!(["bash", "-lc", script]);
            container["args"] = json!([]);
        }
        container["env"] = json!([{"name": "TP", "value": "8"}]);
        let outcome = judged(&object);
        assert_eq!(outcome.level(), None);
        outcome.after["metadata"]["annotations"]
            .get(MINIMUM)
            .is_some()
    };
    for args in [
        &["-tp=8"][..],
        &["--tensor_parallel_size", "8"],
        &["-tp", "$(TP)"],
    ] {
        assert!(filled(deployment(2, args, 8), None), "{args:?}");
    }
    let script = "exec vllm serve org/model \\\n  -tp 8";
    assert!(filled(deployment(2, &[], 8), Some(script)));
    assert!(!filled(deployment(2, &["-tp8"], 8), None));
}

/// 15: seven GPUs for eight ranks is no question of scheduling.
#[test]
fn v15_eight_ranks_on_seven_gpus_cannot_start() {
    let outcome = judged(&deployment(1, &["--tensor-parallel-size=8"], 7));
    let found = outcome.found(PARALLELISM_FITS_POD.id);
    assert_eq!(found.first().map(|one| one.level), Some(Level::Deny));
    assert_eq!(outcome.level(), None);
}

/// 16: decode context parallelism uses the tensor parallel ranks, prefill context parallelism
/// multiplies them. One pod: filled with a queue, denied without.
#[test]
fn v16_context_parallelism() {
    let decode = deployment(2, &["-tp=4", "-dcp=2"], 4);
    judged(&decode).assert_filled("1");
    judged(&without_queue(decode)).denial();
    let prefill = |gpus| deployment(2, &["-tp=4", "-pcp=2"], gpus);
    judged(&prefill(8)).assert_filled("1");
    let short = judged(&prefill(4));
    assert_eq!(short.found(PARALLELISM_FITS_POD.id).len(), 1);
}

/// 17: shards in one pod, by TGI's variable: filled with a queue, denied without.
#[test]
fn v17_shards_of_text_generation_inference() {
    let mut object = deployment(1, &[], 8);
    let container = object
        .pointer_mut("/spec/template/spec/containers/0")
        .unwrap();
    container["image"] = json!("ghcr.io/huggingface/text-generation-inference:3.3.4");
    container["args"] = json!(["--model-id=org/model"]);
    container["env"] = json!([{"name": "NUM_SHARD", "value": "8"}]);
    judged(&object).assert_filled("1");
    judged(&without_queue(object)).denial();
}

/// 18: Volcano takes a minimum that is no number for 1.
#[test]
fn v18_volcano_takes_words_for_one() {
    let mut object = scheduled_by(gang(2), "volcano");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object["metadata"]["annotations"]["scheduling.volcano.sh/group-min-member"] = json!("two");
    let outcome = Outcome::of(&policy("volcano", None), &[&object]);
    assert!(outcome.denial().message.contains("takes it for 1"));
}

/// 19: to Volcano every revision is a gang of its own: a quarter of one never starts.
#[test]
fn v19_volcano_needs_room_for_a_second_gang() {
    let eight = || deployment(8, &["-tp=8", "-pp=8", "--nnodes=8"], 8);
    let volcano = policy("volcano", None);
    let silent = Outcome::of(&volcano, &[&eight()]);
    assert_eq!(silent.level(), None, "{:?}", silent.review.findings);
    assert_eq!(
        silent.after["spec"]["strategy"],
        json!({"type": "Recreate"})
    );
    for (unavailable, surge, level) in [
        ("25%", "25%", Some(Level::Deny)),
        ("0%", "25%", Some(Level::Deny)),
        ("0%", "100%", None),
    ] {
        let mut object = eight();
        object["spec"]["strategy"] = json!({
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge},
        });
        let outcome = Outcome::of(&volcano, &[&object]);
        assert_eq!(outcome.level(), level, "{unavailable} {surge}");
    }
}

/// 20: Kueue admits a Deployment's pods one by one.
#[test]
fn v20_kueue_alone_makes_no_gang_of_a_deployment() {
    let mut object = without_queue(gang(2));
    object["metadata"]["labels"] = json!({"kueue.x-k8s.io/queue-name": "llm"});
    judged(&object).denial();
}

/// 21: YuniKorn's gangs bind in Hard style only.
#[test]
fn v21_yunikorns_soft_gangs_are_none() {
    let yunikorn = policy("yunikorn", None);
    let styled = |parameters: Option<&str>| {
        let mut object = scheduled_by(without_queue(gang(2)), "yunikorn");
        object["spec"]["strategy"] = json!({"type": "Recreate"});
        let annotations = &mut object["spec"]["template"]["metadata"]["annotations"];
        annotations["yunikorn.apache.org/task-group-name"] = json!("ranks");
        annotations["yunikorn.apache.org/task-groups"] =
            json!(r#"[{"name": "ranks", "minMember": 2, "minResource": {}}]"#);
        if let Some(parameters) = parameters {
            annotations["yunikorn.apache.org/schedulingPolicyParameters"] = json!(parameters);
        }
        Outcome::of(&yunikorn, &[&object])
    };
    let hard = "placeholderTimeoutInSeconds=300 gangSchedulingStyle=Hard";
    assert_eq!(styled(Some(hard)).level(), None);
    for soft in [None, Some("gangSchedulingStyle=Soft")] {
        assert_eq!(styled(soft).level(), Some(Level::Deny), "{soft:?}");
    }
}

/// The task groups of one application are one gang, whoever owns their pods; each needs its own pods.
#[test]
fn yunikorns_groups_of_several_owners_are_one_gang() {
    let yunikorn = policy("yunikorn", None);
    let level = |replicas: u64, own: u64, others: u64, id: Option<&str>| {
        let mut object = scheduled_by(without_queue(gang(2)), "yunikorn");
        object["spec"]["replicas"] = json!(replicas);
        object["spec"]["strategy"] = json!({"type": "Recreate"});
        let metadata = &mut object["spec"]["template"]["metadata"];
        if let Some(id) = id {
            metadata["labels"]["yunikorn.apache.org/app-id"] = json!(id);
        }
        let group = |name: &str, minimum: u64| json!({"name": name, "minMember": minimum, "minResource": {"nvidia.com/gpu": 8}});
        let groups = json!([group("head", own), group("workers", others)]);
        metadata["annotations"] = json!({
            "yunikorn.apache.org/task-group-name": "head",
            "yunikorn.apache.org/task-groups": groups.to_string(),
            "yunikorn.apache.org/schedulingPolicyParameters": "gangSchedulingStyle=Hard",
        });
        Outcome::of(&yunikorn, &[&object]).level()
    };
    assert_eq!(level(1, 1, 1, Some("llm")), None);
    assert_eq!(level(1, 1, 4, Some("llm")), None, "a router beside them");
    assert_eq!(level(0, 1, 1, Some("llm")), None, "asleep");
    assert_eq!(level(1, 2, 1, Some("llm")), Some(Level::Deny), "unfilled");
    assert_eq!(level(1, 1, 1, None), Some(Level::Warn));
    let alone = Some("llm-uniqueautogen");
    assert_eq!(level(1, 1, 1, alone), Some(Level::Deny), "each pod alone");
}

/// 22: what a LeaderWorkerSet makes is judged at the LeaderWorkerSet.
#[test]
fn v22_a_stateful_set_of_a_leader_worker_set_is_skipped() {
    for (owner, kind, name) in [
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "llm"),
        ("v1", "Pod", "llm-0"),
    ] {
        let mut object = gang(1);
        object["kind"] = json!("StatefulSet");
        object["metadata"]["name"] = json!(name);
        object["metadata"]["labels"] = json!({"leaderworkerset.sigs.k8s.io/name": "llm"});
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": owner, "kind": kind, "name": name, "uid": "u", "controller": true,
        }]);
        assert_eq!(judged(&object).review.skipped, Some(Skip::Child), "{kind}");
    }
}

/// 23: an autoscaler may not go below the gang; that is another rule's business.
#[test]
fn v23_an_autoscaler_below_the_gang() {
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "llm", "namespace": "inference"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"},
            "minReplicas": 1, "maxReplicas": 2,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": "vllm:num_requests_waiting"},
                "target": {"type": "AverageValue", "averageValue": "5"},
            }}],
        },
    });
    let outcome = Outcome::of(&Policy::default(), &[&scaler, &gang(2)]);
    let found = outcome.found(GANG_SCALING_FLOOR.id);
    assert_eq!(found.first().map(|one| one.level), Some(Level::Warn));
}

/// 24: what an operator writes is reported, never refused and never filled.
#[test]
fn v24_the_child_of_an_operator_is_only_reported() {
    let mut object = without_queue(gang(1));
    object["metadata"]["name"] = json!("llm-predictor-worker");
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": "llm",
        "uid": "u", "controller": true,
    }]);
    let outcome = judged(&object);
    assert_ne!(outcome.review.verdict(), Verdict::Deny);
    assert!(outcome.review.patch.0.is_empty());
}

/// Eight pods, one gang: a strategy that nobody wrote is filled with `Recreate`, a written quarter is
/// denied, and so is the 7 of 8 that this product exists for.
#[test]
fn a_gang_of_eight_recreates_or_is_denied() {
    let eight = || deployment(8, &["-tp=8", "-pp=8", "--nnodes=8"], 8);
    let silent = judged(&eight());
    silent.assert_filled("8");
    assert_eq!(
        silent.after["spec"]["strategy"],
        json!({"type": "Recreate"})
    );
    let mut quarter = eight();
    quarter["spec"]["strategy"] = json!({
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    });
    let outcome = judged(&quarter);
    assert!(
        outcome.review.patch.0.is_empty(),
        "what somebody wrote stays"
    );
    assert_eq!(outcome.level(), Some(Level::Deny));
    judged(&with_minimum(eight(), "7")).denial();
}

/// What a rollout does to a gang, by scheduler: where each revision is a gang of its own, a small surge
/// hangs; where old and new pods share one, the new ones are none. Only KAI evicts what falls short.
#[test]
fn a_rollout_hangs_where_revisions_are_gangs_and_dissolves_where_they_share_one() {
    let kubernetes = json!({"schedulingGroup": {"podGroupName": "ranks"}});
    let group = |api: &str, spec: Value| {
        json!({
            "apiVersion": api, "kind": "PodGroup",
            "metadata": {"name": "ranks", "namespace": "inference"}, "spec": spec,
        })
    };
    let two = json!({"schedulingPolicy": {"gang": {"minCount": 2}}});
    let native = group("scheduling.k8s.io/v1beta1", two);
    let plugin = group("scheduling.x-k8s.io/v1alpha1", json!({"minMember": 2}));
    for (name, unavailable, surge, level, says) in [
        ("kai", 0, 1, Some(Level::Warn), "not as a gang"),
        ("kai", 1, 1, Some(Level::Deny), "evicts the rest"),
        ("volcano", 0, 1, Some(Level::Deny), "it never starts"),
        ("volcano", 0, 2, None, ""),
        (
            "volcano",
            1,
            1,
            Some(Level::Deny),
            "the new one never reaches it",
        ),
        ("kubernetes", 0, 1, Some(Level::Warn), "not as a gang"),
        ("kubernetes", 0, 2, Some(Level::Warn), "not as a gang"),
        (
            "kubernetes",
            1,
            1,
            Some(Level::Deny),
            "holds its GPUs and serves nothing",
        ),
        ("coscheduling", 0, 2, Some(Level::Warn), "not as a gang"),
        (
            "coscheduling",
            1,
            1,
            Some(Level::Deny),
            "holds its GPUs and serves nothing",
        ),
    ] {
        let mut object = gang(2);
        object["spec"]["strategy"] = json!({
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge},
        });
        let pod = &mut object["spec"]["template"];
        pod["spec"]["schedulerName"] = json!(match name {
            "kai" => "kai-scheduler",
            "volcano" => "volcano",
            "coscheduling" => "scheduler-plugins-scheduler",
            _ => "default-scheduler",
        });
        pod["spec"]["schedulingGroup"] = kubernetes["schedulingGroup"].clone();
        pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = json!("ranks");
        for key in [MINIMUM, "scheduling.volcano.sh/group-min-member"] {
            object["metadata"]["annotations"][key] = json!("2");
        }
        let outcome = Outcome::of(&policy(name, None), &[&object, &native, &plugin]);
        let outcome = match name {
            "kai" => Outcome::of(&policy(name, Some("0.18")), &[&object]),
            _ => outcome,
        };
        assert_eq!(outcome.level(), level, "{name} {unavailable} {surge}");
        let found = outcome.found(GANG_SCHEDULING.id);
        assert!(
            found.iter().all(|one| one.message.contains(says)),
            "{name}: {found:?}"
        );
    }
}

/// Where replicas are silent an autoscaler of the same world says how many pods there are; where none
/// is seen nobody does, and nothing is denied for their number.
#[test]
fn an_autoscaler_tells_the_replicas_that_nobody_wrote() {
    let mut silent = gang(2);
    silent["spec"].as_object_mut().unwrap().remove("replicas");
    let hpa = |least: u64| {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"});
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "llm", "namespace": "inference"},
            "spec": {"scaleTargetRef": target, "minReplicas": least, "maxReplicas": 8},
        })
    };
    let world =
        |object: &Value, least: u64| Outcome::of(&Policy::default(), &[object, &hpa(least)]);
    world(&silent, 2).assert_filled("2");
    let several = world(&silent, 4);
    let set: Value = serde_saphyr::from_str(&several.denial().instead).unwrap();
    assert_eq!(set["spec"]["replicas"], 2);
    assert!(world(&silent, 1).denial().message.contains("has 1"));
    let unseen = judged(&silent);
    assert_eq!(unseen.level(), Some(Level::Warn));
    assert_eq!(unseen.after["metadata"]["annotations"][MINIMUM], "2");
    // What somebody wrote counts, whatever scales it.
    assert!(world(&gang(1), 2).denial().message.contains("has 1"));
}
