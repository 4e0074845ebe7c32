//! Fills and ratchets of gangs at the doors of the API server.

use std::sync::Arc;

use jiff::Timestamp;

use super::*;
use crate::{
    facts::Facts,
    finding::Verdict,
    policy::Policy,
    provenance::LAST_APPLIED,
    review::{Review, Skip, review},
    subject::{Door, Subject},
};

const MINIMUM: &str = "kai.scheduler/batch-min-member";

/// A gang of eight as its author wrote it.
fn written() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "llm", "namespace": "inference",
            "labels": {"kai.scheduler/queue": "llm"}, "annotations": {}
        },
        "spec": {
            "replicas": 8,
            "selector": {"matchLabels": {"app": "llm"}},
            "template": {"metadata": {"labels": {"app": "llm"}}, "spec": {"containers": [{
                "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--model=m", "-tp=8", "-pp=8", "--nnodes=8"],
                "resources": {"limits": {"nvidia.com/gpu": 8}}
            }]}}
        }
    })
}

/// With what the API server puts where the author was silent.
fn arrived(mut object: Value) -> Value {
    let spec = &mut object["spec"];
    if spec["strategy"].is_null() {
        spec["strategy"] = json!({
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}
        });
    }
    let pod = &mut spec["template"]["spec"];
    if pod["schedulerName"].is_null() {
        pod["schedulerName"] = json!("default-scheduler");
    }
    if pod["terminationGracePeriodSeconds"].is_null() {
        pod["terminationGracePeriodSeconds"] = json!(30);
    }
    object
}

fn ask(door: Door, new: &Value, old: Option<&Value>) -> Review {
    let mut subject = Subject::from_manifest(Arc::new(new.clone())).unwrap();
    subject.door = door;
    if let Some(old) = old {
        subject.operation = Operation::Update;
        subject.old = Some(Arc::new(old.clone()));
    }
    review(
        &Policy::default(),
        &Facts::unknown(),
        &subject,
        Timestamp::UNIX_EPOCH,
    )
}

fn mutated(new: &Value, old: Option<&Value>) -> Value {
    let mut value = new.clone();
    json_patch::patch(&mut value, &ask(Door::Mutate, new, old).patch).unwrap();
    value
}

fn verdict(new: &Value, old: Option<&Value>) -> Verdict {
    ask(Door::Validate, new, old).verdict()
}

fn created() -> Value {
    mutated(&arrived(written()), None)
}

fn with_minimum(number: u64) -> Value {
    let mut object = created();
    object["metadata"]["annotations"][MINIMUM] = json!(number.to_string());
    object
}

#[test]
fn a_created_gang_is_completed_and_then_judged_clean() {
    let made = created();
    assert_eq!(
        made["spec"]["template"]["spec"]["schedulerName"],
        "kai-scheduler"
    );
    assert_eq!(made["metadata"]["annotations"][MINIMUM], "8");
    assert_eq!(made["spec"]["strategy"], json!({"type": "Recreate"}));
    let findings = ask(Door::Validate, &made, None).findings;
    assert!(
        findings
            .iter()
            .all(|finding| finding.rule != GANG_SCHEDULING.id),
        "{findings:?}"
    );
    assert!(ask(Door::Mutate, &made, None).patch.0.is_empty());
    // Had the fill been lost, the unsafe default is denied.
    assert_eq!(verdict(&arrived(written()), None), Verdict::Deny);
}

#[test]
fn replacing_with_the_file_that_was_created_changes_nothing() {
    let made = created();
    let mut expected = made.clone();
    expected["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(30);
    assert_eq!(mutated(&arrived(written()), Some(&made)), expected);
}

#[test]
fn lowering_a_minimum_is_denied_and_raising_it_again_is_not() {
    assert_eq!(verdict(&with_minimum(7), Some(&created())), Verdict::Deny);
    assert_eq!(
        verdict(&with_minimum(6), Some(&with_minimum(7))),
        Verdict::Deny
    );
    assert_eq!(
        verdict(&with_minimum(7), Some(&with_minimum(6))),
        Verdict::Warn
    );
    let mut touched = with_minimum(7);
    touched["spec"]["revisionHistoryLimit"] = json!(3);
    assert_eq!(verdict(&touched, Some(&with_minimum(7))), Verdict::Warn);
    assert_ne!(verdict(&created(), Some(&with_minimum(7))), Verdict::Deny);
}

fn single(replicas: u64) -> Value {
    let mut object = written();
    object["spec"]["replicas"] = json!(replicas);
    let container = &mut object["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["--model=m", "-tp=8"]);
    arrived(object)
}

#[test]
fn what_sleeps_at_no_replicas_is_filled_judged_and_kept() {
    let mut gang = arrived(written());
    gang["spec"]["replicas"] = json!(0);
    for (asleep, minimum) in [(single(0), "1"), (gang, "8")] {
        assert_eq!(verdict(&asleep, None), Verdict::Deny);
        let made = mutated(&asleep, None);
        assert_eq!(made["metadata"]["annotations"][MINIMUM], minimum);
        assert_ne!(
            verdict(&made, None),
            Verdict::Deny,
            "KEDA wakes it as it is"
        );
        // The file that was created is put again, and again when it was scaled meanwhile.
        for replicas in [0, 3, 8, 16] {
            let mut held = made.clone();
            held["spec"]["replicas"] = json!(replicas);
            let mut file = asleep.clone();
            file["spec"]["replicas"] = json!(replicas);
            let put = mutated(&file, Some(&held));
            let pods = |object: &Value| object["spec"]["template"]["spec"].clone();
            assert_eq!(pods(&put)["schedulerName"], pods(&held)["schedulerName"]);
            assert_eq!(put["metadata"], held["metadata"]);
            assert_eq!(put["spec"]["strategy"], held["spec"]["strategy"]);
        }
    }
}

#[test]
fn a_violator_that_was_scaled_to_nothing_may_come_back() {
    assert_eq!(verdict(&single(1), Some(&single(0))), Verdict::Warn);
    let mut gang = arrived(written());
    gang["spec"]["replicas"] = json!(16);
    assert_eq!(
        verdict(&arrived(written()), Some(&gang)),
        Verdict::Warn,
        "an HPA made it 16"
    );
}

#[test]
fn one_old_fault_excuses_no_other() {
    let without_queue = |mut object: Value| {
        object["metadata"]["labels"] = json!({});
        object
    };
    let dissolved = |mut object: Value| {
        object["metadata"]["annotations"] = json!({});
        object["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
        object
    };
    let old = without_queue(created());
    assert_eq!(verdict(&old, None), Verdict::Deny);
    assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
    // The minimum alone, while the pods are elsewhere anyway.
    let mut old = created();
    old["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
    assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
    // A shape that a scaler left behind.
    let mut old = created();
    old["spec"]["replicas"] = json!(7);
    assert_eq!(verdict(&dissolved(old.clone()), Some(&old)), Verdict::Deny);
    // A queue that is there, and one that is not.
    let mut touched = without_queue(created());
    touched["spec"]["revisionHistoryLimit"] = json!(3);
    let old = without_queue(created());
    assert_eq!(verdict(&touched, Some(&old)), Verdict::Warn);
}

#[test]
fn each_fault_of_a_group_made_by_others_is_its_own() {
    let with = |owner: Value, template: Value| {
        let mut object = created();
        object["metadata"]["annotations"] = owner;
        object["spec"]["template"]["metadata"]["annotations"] = template;
        object
    };
    let skip = "kai.scheduler/skip-podgrouper";
    let whole = with(json!({skip: "true"}), json!({"pod-group-name": "llm"}));
    assert_eq!(
        verdict(&whole, None),
        Verdict::Warn,
        "the group is not seen"
    );
    let overwritten = with(json!({}), json!({"pod-group-name": "llm"}));
    let nameless = with(json!({skip: "true"}), json!({}));
    for (old, new) in [
        (&whole, &overwritten),
        (&whole, &nameless),
        (&overwritten, &nameless),
        (&nameless, &overwritten),
    ] {
        assert_eq!(verdict(new, Some(old)), Verdict::Deny, "{new}");
    }
}

#[test]
fn a_minimum_of_single_pods_that_gets_worse_is_denied() {
    let with = |minimum: &str, replicas: u64| {
        let mut object = mutated(&single(replicas), None);
        object["metadata"]["annotations"][MINIMUM] = json!(minimum);
        object
    };
    assert_eq!(verdict(&with("4", 4), None), Verdict::Warn);
    assert_eq!(verdict(&with("x", 4), Some(&with("4", 4))), Verdict::Deny);
    assert_eq!(verdict(&with("5", 4), Some(&with("4", 4))), Verdict::Deny);
    assert_eq!(verdict(&with("x", 4), Some(&with("5", 4))), Verdict::Deny);
}

#[test]
fn rays_autoscaler_is_never_locked_out() {
    let ray = |replicas: u64, scheduler: &str| {
        let pod = |args: &[&str]| {
            json!({"spec": {"schedulerName": scheduler, "containers": [{
                "name": "ray", "image": "vllm/vllm-openai:v0.11.0",
                "command": ["sh", "-c", args.join(" ")],
                "resources": {"limits": {"nvidia.com/gpu": 8}}
            }]}})
        };
        json!({
            "apiVersion": "ray.io/v1", "kind": "RayCluster",
            "metadata": {"name": "llm", "labels": {"kai.scheduler/queue": "llm"}},
            "spec": {
                "enableInTreeAutoscaling": true,
                "headGroupSpec": {"template": pod(&["ray start --head && vllm serve m -tp 8 -pp 2"])},
                "workerGroupSpecs": [{
                    "groupName": "gpu", "replicas": replicas,
                    "minReplicas": 1, "maxReplicas": 8,
                    "template": pod(&["ray start --block"])
                }]
            }
        })
    };
    let clean = |replicas| ray(replicas, "kai-scheduler");
    let bad = |replicas| ray(replicas, "default-scheduler");
    assert_ne!(verdict(&clean(2), Some(&clean(1))), Verdict::Deny);
    assert_eq!(verdict(&bad(1), None), Verdict::Deny);
    assert_eq!(verdict(&bad(3), Some(&bad(1))), Verdict::Warn);
    let mut asleep = bad(0);
    asleep["spec"]["workerGroupSpecs"][0]["minReplicas"] = json!(0);
    assert_eq!(verdict(&bad(1), Some(&asleep)), Verdict::Warn);
}

#[test]
fn nothing_that_somebody_wrote_is_filled_over() {
    for (change, keys) in [
        (
            json!("default-scheduler"),
            ["template", "spec", "schedulerName"].as_slice(),
        ),
        (
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%"}}),
            ["strategy"].as_slice(),
        ),
    ] {
        let mut object = written();
        object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(300);
        let mut at = &mut object["spec"];
        for key in keys {
            at = &mut at[*key];
        }
        *at = change;
        let document = object.to_string();
        object["metadata"]["annotations"][LAST_APPLIED] = json!(document);
        let object = arrived(object);
        assert_eq!(mutated(&object, None), object, "{keys:?}");
        assert_eq!(verdict(&object, None), Verdict::Deny, "{keys:?}");
    }
    let mut lowered = arrived(written());
    lowered["metadata"]["annotations"][MINIMUM] = json!("7");
    assert_eq!(mutated(&lowered, None), lowered);
}

#[test]
fn a_running_fleet_is_not_restarted() {
    let old = arrived(written());
    let mut new = old.clone();
    new["spec"]["revisionHistoryLimit"] = json!(3);
    assert_eq!(mutated(&new, Some(&old)), new);
    assert_eq!(
        verdict(&new, Some(&old)),
        Verdict::Warn,
        "it was there before"
    );
}

#[test]
fn children_are_judged_at_their_parent_and_never_filled() {
    let owned = |api: &str, kind: &str| {
        let mut object = arrived(written());
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": api, "kind": kind, "name": "llm", "uid": "u", "controller": true
        }]);
        object
    };
    let mut child = owned("serving.kserve.io/v1beta1", "InferenceService");
    assert_eq!(
        verdict(&child, None),
        Verdict::Deny,
        "no name that KServe gives"
    );
    child["metadata"]["name"] = json!("llm-predictor");
    assert_eq!(mutated(&child, None), child);
    assert_eq!(verdict(&child, None), Verdict::Warn);
    let mut set = owned("apps/v1", "Deployment");
    set["kind"] = json!("ReplicaSet");
    assert_eq!(ask(Door::Validate, &set, None).skipped, Some(Skip::Child));
    let claimed = owned("example.dev/v1", "Anything");
    assert_eq!(verdict(&claimed, None), Verdict::Deny);
}

#[test]
fn what_kserve_runs_in_two_deployments_is_joined_from_outside_where_kai_knows_how() {
    let service = json!({
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "llm", "labels": {"kai.scheduler/queue": "llm"}},
        "spec": {"predictor": {
            "model": {"resources": {"limits": {"nvidia.com/gpu": 8}}},
            "workerSpec": {
                "tensorParallelSize": 8, "pipelineParallelSize": 2,
                "containers": [{"resources": {"limits": {"nvidia.com/gpu": 8}}}]
            }
        }}
    });
    let instead = |version: &str| {
        let policy = json!({"apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
            "gangScheduler": {"name": "kai", "version": version}});
        let policy = Policy::from_document(&policy).unwrap();
        let subject = Subject::from_manifest(Arc::new(service.clone())).unwrap();
        let found = review(&policy, &Facts::unknown(), &subject, Timestamp::UNIX_EPOCH);
        assert_eq!(found.verdict(), Verdict::Deny);
        assert!(found.patch.0.is_empty(), "never filled");
        found.findings[0].instead.clone()
    };
    let told = instead("0.18");
    for part in [
        "pod-group-name: llm",
        "minMember: 2",
        "queue: llm",
        "name: llm",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("namespace"), "{told}");
    assert!(instead("0.14").starts_with("# an LLMInferenceService"));
}

#[test]
fn the_skeleton_is_a_complete_leader_worker_set() {
    let mut object = written();
    object["spec"]["replicas"] = json!(16);
    object["spec"]["template"]["metadata"]["annotations"] =
        json!({"prometheus.io/scrape": "true", "pod-group-name": "old"});
    let pod = &mut object["spec"]["template"]["spec"];
    pod["serviceAccountName"] = json!("llm");
    pod["dnsPolicy"] = json!("ClusterFirst");
    pod["restartPolicy"] = json!("Always");
    pod["affinity"] = json!({"nodeAffinity": {}});
    pod["initContainers"] = json!([{"name": "fetch", "image": "fetch"}]);
    pod["volumes"] = json!([{"name": "shm", "emptyDir": {"medium": "Memory"}}]);
    let container = &mut pod["containers"][0];
    container["args"] = json!([
        "--model=m",
        "-tp=8",
        "-pp=8",
        "--nnodes=8",
        "--node-rank",
        "0",
        "--master-addr=llm-0.llm",
    ]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/health", "port": 8000}});
    container["workingDir"] = json!("/srv");
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["volumeMounts"] = json!([{"name": "shm", "mountPath": "/dev/shm"}]);
    let denied = ask(Door::Validate, &arrived(object), None);
    let finding = denied
        .findings
        .iter()
        .find(|one| one.rule == GANG_SCHEDULING.id)
        .unwrap();
    let set: Value = serde_saphyr::from_str(&finding.instead).unwrap();
    assert_eq!(set["kind"], "LeaderWorkerSet");
    assert_eq!(set["spec"]["replicas"], 2);
    let group = &set["spec"]["leaderWorkerTemplate"];
    assert_eq!(group["size"], 8);
    let leader = json!({
        "metadata": {
            "labels": {"app": "llm", "role": "leader"},
            "annotations": {"prometheus.io/scrape": "true"},
        },
        "spec": {
            "schedulerName": "kai-scheduler",
            "serviceAccountName": "llm",
            "affinity": {"nodeAffinity": {}},
            "initContainers": [{"name": "fetch", "image": "fetch"}],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "containers": [{
                "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
                "args": [
                    "--model=m", "-tp=8", "-pp=8", "--nnodes=8",
                    "--node-rank", "$(LWS_WORKER_INDEX)",
                    "--master-addr=$(LWS_LEADER_ADDRESS)",
                ],
                "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
                "workingDir": "/srv",
                "resources": {"limits": {"nvidia.com/gpu": 8}},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }],
        },
    });
    assert_eq!(group["leaderTemplate"], leader);
    // Only the leader answers requests.
    let mut worker = leader;
    worker["metadata"]["labels"]["role"] = json!("worker");
    let container = worker["spec"]["containers"][0].as_object_mut().unwrap();
    container.remove("readinessProbe");
    // And only the leader starts an API server.
    container["args"]
        .as_array_mut()
        .unwrap()
        .push(json!("--headless"));
    assert_eq!(group["workerTemplate"], worker);
    // And it is what it says: accepted, unchanged, clean, as sure of its GPUs as it was.
    let again = ask(Door::Check, &set, None);
    assert!(
        again
            .findings
            .iter()
            .all(|one| !one.rule.starts_with("gang-")),
        "{again:?}"
    );
}
