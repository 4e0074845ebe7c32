//! What holds for every workload, whatever is written in it: fills settle at once, bring no finding
//! that was not there, and leave nothing that gang-scheduling would refuse.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::gang_scheduling::GANG_SCHEDULING;
use crate::{
    facts::Facts,
    finding::Level,
    policy::Policy,
    review::{Review, review},
    subject::{Door, Operation, Subject},
};

const KINDS: [(&str, &str); 7] = [
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "ReplicaSet"),
    ("batch/v1", "Job"),
    ("argoproj.io/v1alpha1", "Rollout"),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    ("ray.io/v1", "RayCluster"),
];

const SCHEDULERS: [&str; 7] = [
    "kai",
    "volcano",
    "yunikorn",
    "coscheduling",
    "kubernetes",
    "auto",
    "none",
];

const SINGLE_PODS: [&str; 4] = ["auto", "require", "warn", "allow"];

const ARGS: [&[&str]; 12] = [
    &[],
    &["-tp=2"],
    &["-tp=8"],
    &["-tp=8", "-pp=2", "--nnodes=2"],
    &["-tp=16", "--nnodes=2", "--node-rank=$(LWS_WORKER_INDEX)"],
    &["-tp=8", "-pp=4", "--distributed-executor-backend=ray"],
    &["-tp=4", "-dp=4", "-dpl=2"],
    &["-tp=$(TP)"],
    &["--config=/etc/vllm.yaml"],
    &["-tp=8", "--headless"],
    &["-pp=2", "--nnodes=2"],
    &["--tensor-parallel-size=many"],
];

/// What is written about a workload, by position in lists of choices.
#[derive(Clone, Debug)]
struct Written {
    kind: usize,
    scheduler: usize,
    version: bool,
    single_pod: usize,
    mapped: bool,
    args: usize,
    gpus: u64,
    replicas: Option<u64>,
    size: u64,
    queue: bool,
    names: [usize; 2],
    minimum: usize,
    strategy: usize,
    grace: usize,
    extras: u32,
}

fn written() -> impl Strategy<Value = Written> {
    let policy = (
        0..SCHEDULERS.len(),
        any::<bool>(),
        0..4_usize,
        any::<bool>(),
    );
    let shape = (
        0..KINDS.len(),
        0..ARGS.len(),
        prop::sample::select(vec![0_u64, 1, 2, 4, 8]),
        prop::option::of(0..5_u64),
        1..5_u64,
    );
    let rest = (
        any::<bool>(),
        [0..4_usize, 0..4_usize],
        0..7_usize,
        0..7_usize,
        0..3_usize,
        any::<u32>(),
    );
    (policy, shape, rest).prop_map(
        |(
            (scheduler, version, single_pod, mapped),
            (kind, args, gpus, replicas, size),
            (queue, names, minimum, strategy, grace, extras),
        )| Written {
            kind,
            scheduler,
            version,
            single_pod,
            mapped,
            args,
            gpus,
            replicas,
            size,
            queue,
            names,
            minimum,
            strategy,
            grace,
            extras,
        },
    )
}

impl Written {
    fn has(&self, extra: u32) -> bool {
        self.extras >> extra & 1 == 1
    }

    fn policy(&self) -> Policy {
        let mut scheduler = json!({
            "name": SCHEDULERS[self.scheduler],
            "singlePod": SINGLE_PODS[self.single_pod],
        });
        if self.version {
            scheduler["version"] = json!("0.17");
        }
        if self.mapped {
            scheduler["queues"] = json!({"*": "mapped"});
        }
        Policy::from_document(&json!({
            "apiVersion": "gangplank.dev/v1alpha1", "kind": "Policy", "gangScheduler": scheduler,
        }))
        .unwrap()
    }

    fn template(&self, position: usize) -> Value {
        let mut args = vec!["--model=m"];
        args.extend(ARGS[self.args]);
        let mut container = json!({
            "name": "server", "image": "vllm/vllm-openai:v0.11.0", "args": args,
            "resources": {"limits": {"nvidia.com/gpu": self.gpus}},
        });
        if self.has(0) {
            container["env"] = json!([{
                "name": "TP", "valueFrom": {"secretKeyRef": {"name": "s", "key": "tp"}},
            }]);
        }
        let mut spec = json!({"containers": [container]});
        match self.names[position] {
            0 => {}
            1 => spec["schedulerName"] = json!("default-scheduler"),
            2 => spec["schedulerName"] = json!("kai-scheduler"),
            _ => spec["schedulerName"] = json!("volcano"),
        }
        match self.grace {
            0 => {}
            1 => spec["terminationGracePeriodSeconds"] = json!(30),
            _ => spec["terminationGracePeriodSeconds"] = json!(600),
        }
        if self.has(1) {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": "a"});
        }
        if self.has(2) {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "llm"}},
            }]);
        }
        let mut annotations = json!({});
        if self.has(3) {
            annotations["pod-group-name"] = json!("ranks");
        }
        if self.has(4) {
            annotations["karpenter.sh/do-not-disrupt"] = json!("yes");
        }
        json!({"metadata": {"labels": {"app": "llm"}, "annotations": annotations}, "spec": spec})
    }

    fn object(&self) -> Value {
        let (api, kind) = KINDS[self.kind];
        let mut annotations = json!({});
        let minimum = [
            None,
            Some("1"),
            Some("2"),
            Some("3"),
            Some("9"),
            Some("x"),
            Some("0"),
        ];
        if let Some(minimum) = minimum[self.minimum] {
            annotations["kai.scheduler/batch-min-member"] = json!(minimum);
            annotations["scheduling.volcano.sh/group-min-member"] = json!(minimum);
        }
        if self.has(5) && self.has(6) {
            annotations["kai.scheduler/skip-podgrouper"] = json!("true");
        }
        if self.has(7) {
            annotations["kai.scheduler/topology"] = json!("cluster");
            annotations["kai.scheduler/topology-required-placement"] = json!("rack");
        }
        let labels = if self.queue {
            json!({"kai.scheduler/queue": "llm"})
        } else {
            json!({})
        };
        let mut spec = json!({"selector": {"matchLabels": {"app": "llm"}}});
        let count = self.replicas;
        match kind {
            "LeaderWorkerSet" => {
                spec = json!({"leaderWorkerTemplate": {
                    "size": self.size, "workerTemplate": self.template(0),
                }});
                if self.has(8) {
                    spec["leaderWorkerTemplate"]["leaderTemplate"] = self.template(1);
                }
                if self.has(9) {
                    spec["startupPolicy"] = json!("LeaderReady");
                }
            }
            "RayCluster" => {
                let mut group = json!({"groupName": "g", "template": self.template(0)});
                if let Some(count) = count {
                    group["replicas"] = json!(count);
                }
                if self.has(8) {
                    group["minReplicas"] = json!(self.size);
                }
                spec = json!({
                    "enableInTreeAutoscaling": self.has(9),
                    "headGroupSpec": {"template": self.template(1)},
                    "workerGroupSpecs": if self.has(10) { json!([]) } else { json!([group]) },
                });
            }
            _ => spec["template"] = self.template(0),
        }
        if let (Some(count), true) = (count, kind != "RayCluster") {
            let field = if kind == "Job" {
                "parallelism"
            } else {
                "replicas"
            };
            spec[field] = json!(count);
        }
        let rolling = |unavailable: &str, surge: &str| {
            json!({
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge},
            })
        };
        let strategy = match self.strategy {
            0 => None,
            1 => Some(json!({"type": "Recreate"})),
            2 => Some(rolling("0%", "100%")),
            3 => Some(rolling("25%", "25%")),
            4 => Some(rolling("100%", "0%")),
            5 => Some(json!({"type": "RollingUpdate"})),
            _ => Some(rolling("0%", "25%")),
        };
        if let (Some(strategy), "Deployment") = (strategy, kind) {
            spec["strategy"] = strategy;
        }
        if kind == "StatefulSet" && self.has(11) {
            spec["podManagementPolicy"] = json!("Parallel");
        }
        json!({
            "apiVersion": api, "kind": kind,
            "metadata": {
                "name": "llm", "namespace": "inference", "labels": labels,
                "annotations": annotations,
            },
            "spec": spec,
        })
    }

    /// With what the API server puts where built-in kinds are silent.
    fn arrived(&self) -> Value {
        let mut object = self.object();
        if self.kind > 3 {
            return object;
        }
        let spec = &mut object["spec"];
        if KINDS[self.kind].1 == "Deployment" {
            let quarter = json!({"maxSurge": "25%", "maxUnavailable": "25%"});
            if spec["strategy"].is_null() {
                spec["strategy"] = json!({"type": "RollingUpdate"});
            }
            if spec["strategy"]["type"] == "RollingUpdate"
                && spec["strategy"]["rollingUpdate"].is_null()
            {
                spec["strategy"]["rollingUpdate"] = quarter;
            }
        }
        let count = if KINDS[self.kind].1 == "Job" {
            "parallelism"
        } else {
            "replicas"
        };
        if spec[count].is_null() {
            spec[count] = json!(1);
        }
        let pod = &mut spec["template"]["spec"];
        for (key, default) in [
            ("schedulerName", json!("default-scheduler")),
            ("terminationGracePeriodSeconds", json!(30)),
        ] {
            if pod[key].is_null() {
                pod[key] = default;
            }
        }
        object
    }
}

fn ask(policy: &Policy, door: Door, value: &Value, old: Option<&Value>) -> Review {
    let mut subject = Subject::from_manifest(Arc::new(value.clone())).unwrap();
    subject.door = door;
    if let Some(old) = old {
        subject.operation = Operation::Update;
        subject.old = Some(Arc::new(old.clone()));
    }
    review(policy, &Facts::unknown(), &subject, Timestamp::UNIX_EPOCH)
}

fn filled(policy: &Policy, door: Door, value: &Value, old: Option<&Value>) -> (Value, Review) {
    let review = ask(policy, door, value, old);
    let mut after = value.clone();
    json_patch::patch(&mut after, &review.patch).unwrap();
    (after, review)
}

/// What is found in an object as it stands, fills aside.
fn found(policy: &Policy, value: &Value) -> BTreeSet<(&'static str, String)> {
    let review = ask(policy, Door::Validate, value, None);
    let kept = review.findings.into_iter().filter(|one| !one.filled);
    kept.map(|one| (one.rule, one.fingerprint)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filled_workload_is_accepted_unchanged_and_clean(written in written()) {
        let policy = written.policy();
        for (door, before) in [(Door::Check, written.object()), (Door::Mutate, written.arrived())] {
            let (after, review) = filled(&policy, door, &before, None);
            let again = ask(&policy, door, &after, None);
            prop_assert!(again.patch.0.is_empty(), "filled twice: {:?}", again.patch);
            let (was, is) = (found(&policy, &before), found(&policy, &after));
            let new: Vec<_> = is.difference(&was).collect();
            prop_assert!(new.is_empty(), "filling brings {new:?}");
            let gang = |one: &&crate::finding::Finding| one.rule == GANG_SCHEDULING.id;
            if review.findings.iter().filter(gang).any(|one| one.filled) {
                let judged = ask(&policy, Door::Validate, &after, None);
                let refused = judged
                    .findings
                    .iter()
                    .filter(gang)
                    .find(|one| one.level == Level::Deny);
                prop_assert!(refused.is_none(), "filled and refused: {refused:?}");
            }
            // Putting the same file again gives the same object, by whatever was filled.
            if door == Door::Mutate {
                let (put, _) = filled(&policy, door, &before, Some(&after));
                for pointer in ["/metadata", "/spec/strategy", "/spec/template/spec/schedulerName"] {
                    prop_assert_eq!(put.pointer(pointer), after.pointer(pointer));
                }
            }
        }
    }

    #[test]
    fn what_was_filled_survives_any_number_of_replicas(written in written(), replicas in 0..20_u64) {
        let policy = written.policy();
        let before = written.arrived();
        let (made, review) = filled(&policy, Door::Mutate, &before, None);
        if KINDS[written.kind].1 != "Deployment" || review.patch.0.is_empty() {
            return Ok(());
        }
        // An autoscaler moved it, and the file is put again with that number.
        let scaled = |mut object: Value| {
            object["spec"]["replicas"] = json!(replicas);
            object
        };
        let (held, file) = (scaled(made), scaled(before));
        let (put, _) = filled(&policy, Door::Mutate, &file, Some(&held));
        prop_assert_eq!(&put["metadata"], &held["metadata"]);
        prop_assert_eq!(
            put.pointer("/spec/template/spec/schedulerName"),
            held.pointer("/spec/template/spec/schedulerName")
        );
    }
}
