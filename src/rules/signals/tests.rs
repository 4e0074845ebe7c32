//! What the rules about targets find in clusters and on updates; the rest stands in the fixtures.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    catalog::engines::Engines,
    facts::{Cluster, Facts, Listed, Watched},
    finding::{Finding, Level},
    policy::Policy,
    review::review,
    subject::{Door, Operation, Subject},
};

fn server() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "a"},
        "spec": {"template": {"spec": {"containers": [{
            "image": "vllm/vllm-openai:v0.11.0", "resources": {"limits": {"nvidia.com/gpu": 1}}
        }]}}}
    })
}

/// A cluster in which these kinds are known and hold these objects.
fn cluster(known: &[Watched], objects: &[(Watched, Value)]) -> Facts {
    let fill = |cluster: &mut Cluster| {
        for kind in known {
            let mut listed = Listed::default();
            for (_, object) in objects.iter().filter(|(its, _)| its == kind) {
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
                let fact = kind.fact(object, Engines::builtin()).unwrap();
                listed.add(text("namespace"), text("name"), fact);
            }
            cluster.replace(*kind, &listed);
        }
    };
    Facts::unknown().with_cluster(fill)
}

fn hpa(metrics: &Value) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": "a"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "maxReplicas": 8, "metrics": metrics
        }
    })
}

fn cpu() -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu"}})
}

fn queue() -> Value {
    json!({"type": "Pods", "pods": {"metric": {"name": "vllm:num_requests_waiting"}}})
}

fn asked(policy: &Policy, facts: &Facts, new: &Value, old: Option<&Value>) -> Vec<Finding> {
    let subject = Subject {
        door: Door::Validate,
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        old: old.map(|old| Arc::new(old.clone())),
        ..Subject::from_manifest(Arc::new(new.clone())).unwrap()
    };
    review(policy, facts, &subject, Timestamp::UNIX_EPOCH).findings
}

/// How strongly a rule speaks at the door.
fn level(rule: &str, facts: &Facts, new: &Value, old: Option<&Value>) -> Option<Level> {
    asked(&Policy::default(), facts, new, old)
        .iter()
        .filter(|finding| finding.rule == rule)
        .map(|finding| finding.level)
        .max()
}

const HOST: &str = "host-resource-signal";

#[test]
fn the_host_is_denied_only_where_the_target_is_known() {
    let on_cpu = hpa(&json!([cpu()]));
    let of = |facts: &Facts| level(HOST, facts, &on_cpu, None);
    let deployments = [Watched::Deployment];
    assert_eq!(
        of(&cluster(&deployments, &[(Watched::Deployment, server())])),
        Some(Level::Deny)
    );
    assert_eq!(of(&Facts::unknown()), None, "nobody looked");
    assert_eq!(of(&cluster(&deployments, &[])), None, "not there yet");
    let stale = cluster(&deployments, &[(Watched::Deployment, server())])
        .with_cluster(|cluster| cluster.forget(Watched::Deployment));
    assert_eq!(of(&stale), None, "too old to deny on");
    let mut other = server();
    other["metadata"]["namespace"] = json!("b");
    assert_eq!(
        of(&cluster(&deployments, &[(Watched::Deployment, other)])),
        None,
        "another namespace"
    );
}

#[test]
fn an_update_is_denied_where_it_takes_the_last_other_signal_away() {
    let facts = cluster(&[Watched::Deployment], &[(Watched::Deployment, server())]);
    let both = hpa(&json!([cpu(), queue()]));
    let only = hpa(&json!([cpu()]));
    let of = |new: &Value, old: &Value| level(HOST, &facts, new, Some(old));
    assert_eq!(of(&only, &both), Some(Level::Deny));
    assert_eq!(of(&both, &only), Some(Level::Warn));
    let mut wider = only.clone();
    wider["spec"]["maxReplicas"] = json!(9);
    assert_eq!(of(&wider, &only), Some(Level::Warn), "as before");
    assert_eq!(of(&hpa(&json!([queue()])), &only), None);
}

#[test]
fn kedas_own_hpa_is_warned_about_and_a_forged_one_is_not_spared() {
    let mut owned = hpa(&json!([cpu()]));
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "chat", "uid": "u",
        "controller": true
    }]);
    let scaled = json!({"metadata": {"name": "chat", "namespace": "a"}});
    let deployment = (Watched::Deployment, server());
    let of = |facts: &Facts| level(HOST, facts, &owned, None);
    let both = [Watched::Deployment, Watched::ScaledObject];
    assert_eq!(
        of(&cluster(
            &both,
            &[deployment.clone(), (Watched::ScaledObject, scaled)]
        )),
        Some(Level::Warn)
    );
    assert_eq!(
        of(&cluster(&both[..1], std::slice::from_ref(&deployment))),
        Some(Level::Warn),
        "whether there is a ScaledObject is not known"
    );
    assert_eq!(of(&cluster(&both, &[deployment])), Some(Level::Deny));
}

#[test]
fn production_is_told_by_the_labels_of_the_namespace() {
    let document = json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "production": {"namespaceSelector": {"matchLabels": {"tier": "production"}}}
    });
    let policy = Policy::from_document(&document).unwrap();
    let mut zero = hpa(&json!([queue()]));
    zero["spec"]["minReplicas"] = json!(0);
    let of = |facts: &Facts| {
        asked(&policy, facts, &zero, None)
            .iter()
            .find(|finding| finding.rule == "scale-to-zero")
            .map(|finding| finding.level)
    };
    let namespace = |tier: &str| {
        let labels = json!({"metadata": {"name": "a", "labels": {"tier": tier}}});
        let known = [Watched::Deployment, Watched::Namespace];
        let objects = [
            (Watched::Deployment, server()),
            (Watched::Namespace, labels),
        ];
        cluster(&known, &objects)
    };
    assert_eq!(of(&namespace("production")), Some(Level::Deny));
    assert_eq!(of(&namespace("test")), Some(Level::Warn));
    let unlabelled = cluster(&[Watched::Deployment], &[(Watched::Deployment, server())]);
    assert_eq!(of(&unlabelled), Some(Level::Warn), "not known");
}

#[test]
fn a_warm_pool_that_is_known_not_to_be_there_is_none() {
    let document = json!({
        "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
        "production": {"namespaces": ["a"]}
    });
    let policy = Policy::from_document(&document).unwrap();
    let mut zero = hpa(&json!([queue()]));
    zero["spec"]["minReplicas"] = json!(0);
    zero["metadata"]["annotations"] = json!({"gangplank.dev/warm-pool": "Deployment/warm"});
    let of = |objects: &[(Watched, Value)]| {
        let facts = cluster(&[Watched::Deployment], objects);
        asked(&policy, &facts, &zero, None)
            .iter()
            .find(|finding| finding.rule == "scale-to-zero")
            .map(|finding| (finding.level, finding.message.contains("is not there")))
    };
    let warm = json!({"metadata": {"name": "warm", "namespace": "a"}});
    let server = (Watched::Deployment, server());
    assert_eq!(
        of(std::slice::from_ref(&server)),
        Some((Level::Warn, true)),
        "it may be on its way"
    );
    assert_eq!(of(&[server, (Watched::Deployment, warm)]), None);
}

#[test]
fn warm_pools_of_the_policy_are_read_strictly() {
    for wrong in ["warm", "a/warm", "a/Deployment/", "a/b/c/d"] {
        let document = json!({
            "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "warmPools": [wrong]
        });
        let error = Policy::from_document(&document).unwrap_err();
        assert_eq!(error.path.to_string(), "warmPools[0]", "{wrong}");
    }
}

#[test]
fn a_gangs_floor_is_its_pod_groups_where_that_is_known() {
    let mut gang = server();
    gang["metadata"]["annotations"] = json!({"kai.scheduler/skip-podgrouper": "true"});
    gang["spec"]["template"]["metadata"] = json!({"annotations": {"pod-group-name": "ranks"}});
    let group = json!({"metadata": {"name": "ranks", "namespace": "a"}, "spec": {"minMember": 4}});
    let mut three = hpa(&json!([queue()]));
    three["spec"]["minReplicas"] = json!(3);
    let known = [Watched::Deployment, Watched::PodGroup];
    let objects = [(Watched::Deployment, gang), (Watched::PodGroup, group)];
    let of = |known: &[Watched]| {
        level(
            "gang-scaling-floor",
            &cluster(known, &objects),
            &three,
            None,
        )
    };
    assert_eq!(of(&known), Some(Level::Warn));
    assert_eq!(of(&known[..1]), None, "nobody knows the group");
}

#[test]
fn an_older_kai_reads_no_minimum_of_a_deployment() {
    let mut gang = server();
    gang["metadata"]["annotations"] = json!({"kai.scheduler/batch-min-member": "4"});
    let facts = cluster(&[Watched::Deployment], &[(Watched::Deployment, gang)]);
    let under = |version: &str| {
        let document = json!({
            "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy",
            "gangScheduler": {"version": version}
        });
        let policy = Policy::from_document(&document).unwrap();
        asked(&policy, &facts, &hpa(&json!([queue()])), None)
            .iter()
            .any(|finding| finding.rule == "gang-scaling-floor")
    };
    assert!(under("0.18") && !under("0.17"));
}

#[test]
fn a_single_pod_may_stay_elsewhere_where_kai_is_known_not_to_run() {
    let mut pod = server();
    let container = &mut pod["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["-tp", "8"]);
    container["resources"]["limits"]["nvidia.com/gpu"] = json!(8);
    let of = |facts: &Facts| level("gang-scheduling", facts, &pod, None);
    assert_eq!(of(&Facts::unknown()), Some(Level::Deny));
    assert_eq!(of(&cluster(&[Watched::Queue], &[])), Some(Level::Deny));
    let without = Facts::unknown().with_cluster(|cluster| cluster.unserved(Watched::Queue));
    assert_eq!(of(&without), Some(Level::Warn));
}

#[test]
fn a_queue_that_is_not_there_yet_is_warned_of() {
    let mut pod = server();
    pod["metadata"]["labels"] = json!({"kai.scheduler/queue": "research"});
    pod["spec"]["template"]["spec"]["schedulerName"] = json!("kai-scheduler");
    let container = &mut pod["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!(["-tp", "8"]);
    container["resources"]["limits"]["nvidia.com/gpu"] = json!(8);
    let of = |facts: &Facts| level("gang-scheduling", facts, &pod, None);
    assert_eq!(of(&Facts::unknown()), None);
    assert_eq!(of(&cluster(&[Watched::Queue], &[])), Some(Level::Warn));
    let queue = json!({"metadata": {"name": "research"}});
    let known = cluster(&[Watched::Queue], &[(Watched::Queue, queue)]);
    assert_eq!(of(&known), None);
}
