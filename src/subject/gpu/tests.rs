use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::subject::Subject;

const AWS: &str = "karpenter.k8s.aws";
const AZURE: &str = "karpenter.azure.com";
const GCP: &str = "karpenter.k8s.gcp";

/// A pool of requirements (`key operator values...`), and other members of `spec` and of the node
/// template.
fn pool(group: &str, requirements: &[&str], spec: Value, node: Value) -> Subject {
    let requirements: Vec<Value> = requirements
        .iter()
        .map(|row| {
            let mut words = row.split(' ');
            let (key, operator) = (words.next().unwrap(), words.next().unwrap());
            json!({"key": key, "operator": operator, "values": words.collect::<Vec<_>>()})
        })
        .collect();
    let mut object = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "gpu"},
        "spec": {"template": {"spec": {
            "nodeClassRef": {"group": group, "kind": "X", "name": "gpu-nodes"},
            "requirements": requirements}}}
    });
    object["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    for (key, value) in node.as_object().unwrap() {
        if key == "labels" {
            object["spec"]["template"]["metadata"] = json!({"labels": value});
        } else {
            object["spec"]["template"]["spec"][key] = value.clone();
        }
    }
    Subject::from_manifest(Arc::new(object)).unwrap()
}

fn judged(subject: &Subject) -> (State, String, Vec<String>) {
    let catalog = InstanceCatalog::builtin();
    let judgement = judge(
        &NodePool::of(subject).unwrap(),
        &catalog,
        &Budget::default(),
    )
    .unwrap();
    (
        judgement.state,
        judgement.evidence.clone(),
        judgement.vendors.into_iter().collect(),
    )
}

fn state(group: &str, requirements: &[&str]) -> State {
    judged(&pool(group, requirements, json!({}), json!({}))).0
}

fn nvidia_taint() -> Value {
    json!({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]})
}

#[test]
fn v01_gpu_categories() {
    let (state, evidence, _) = judged(&pool(
        AWS,
        &["karpenter.k8s.aws/instance-category In g p"],
        json!({}),
        json!({}),
    ));
    assert_eq!(
        (state, evidence.as_str()),
        (State::GpuOnly, "instance-category In g, p (GPU)")
    );
}

#[test]
fn v02_cpu_categories() {
    let requirements = [
        "karpenter.k8s.aws/instance-category In c m r",
        "karpenter.k8s.aws/instance-generation Gt 2",
    ];
    assert_eq!(state(AWS, &requirements), State::NonGpu);
}

#[test]
fn v03_nothing_that_decides() {
    assert_eq!(state(AWS, &[]), State::GpuCapable);
    let requirements = [
        "kubernetes.io/arch In amd64",
        "kubernetes.io/os In linux",
        "karpenter.sh/capacity-type In on-demand",
    ];
    let (state, evidence, _) = judged(&pool(AWS, &requirements, json!({}), json!({})));
    assert_eq!(
        (state, evidence.as_str()),
        (State::GpuCapable, "no requirement decides")
    );
}

#[test]
fn v04_no_gpus_leaves_other_accelerators() {
    let none = "karpenter.k8s.aws/instance-gpu-count DoesNotExist";
    assert_eq!(state(AWS, &[none]), State::GpuCapable);
    let neither = [
        none,
        "karpenter.k8s.aws/instance-accelerator-count DoesNotExist",
    ];
    assert_eq!(state(AWS, &neither), State::NonGpu);
}

#[test]
fn v05_leaving_out_g_and_p_leaves_gr() {
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-category NotIn g p"]),
        State::GpuCapable
    );
    let all = "karpenter.k8s.aws/instance-category NotIn g p gr inf trn dl";
    assert_eq!(state(AWS, &[all]), State::NonGpu);
}

#[test]
fn v06_an_explicit_mix() {
    let mix = "node.kubernetes.io/instance-type In g5.xlarge m5.large";
    let (state, evidence, _) = judged(&pool(AWS, &[mix], json!({}), json!({})));
    assert_eq!(
        (state, evidence.as_str()),
        (
            State::GpuCapable,
            "instance-type In g5.xlarge, m5.large (GPU and CPU)"
        )
    );
}

#[test]
fn v07_unknown_families_with_a_declaring_taint() {
    let families = ["karpenter.k8s.aws/instance-family In p g"];
    let (state, evidence, vendors) = judged(&pool(AWS, &families, json!({}), nvidia_taint()));
    assert_eq!(
        (state, evidence.as_str(), vendors.join(",").as_str()),
        (
            State::GpuOnly,
            "instance-family In p, g (unknown); taint nvidia.com/gpu",
            "nvidia"
        )
    );
    assert_eq!(self::state(AWS, &families), State::GpuCapable);
}

#[test]
fn v08_a_family_that_does_not_exist() {
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-family In p4 p5"]),
        State::GpuOnly
    );
}

#[test]
fn v09_category_gr() {
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-category In gr"]),
        State::GpuOnly
    );
}

#[test]
fn v10_eks_auto_mode() {
    let families = ["eks.amazonaws.com/instance-family In g5 g6"];
    assert_eq!(state("eks.amazonaws.com", &families), State::GpuOnly);
}

#[test]
fn v11_azure_gpu_count_exists_on_every_size() {
    assert_eq!(
        state(AZURE, &["karpenter.azure.com/sku-gpu-count Exists"]),
        State::GpuCapable
    );
}

#[test]
fn v12_azure_gpu_sizes() {
    for requirement in [
        "karpenter.azure.com/sku-gpu-count Gt 0",
        "karpenter.azure.com/sku-gpu-count Gte 1",
        "karpenter.azure.com/sku-gpu-count NotIn 0",
        "karpenter.azure.com/sku-family In N",
        "karpenter.azure.com/sku-name In Standard_ND96isr_H100_v5",
        "node.kubernetes.io/instance-type In Standard_NC24ads_A100_v4",
    ] {
        assert_eq!(
            state(AZURE, &[requirement]),
            State::GpuOnly,
            "{requirement}"
        );
    }
    for requirement in ["In 0", "Lt 1", "Lte 0"] {
        let requirement = format!("karpenter.azure.com/sku-gpu-count {requirement}");
        assert_eq!(
            state(AZURE, &[&requirement]),
            State::NonGpu,
            "{requirement}"
        );
    }
}

#[test]
fn v13_azure_families() {
    assert_eq!(
        state(AZURE, &["karpenter.azure.com/sku-family In D"]),
        State::NonGpu
    );
    assert_eq!(
        state(AZURE, &["karpenter.azure.com/sku-family In N D"]),
        State::GpuCapable
    );
    assert_eq!(
        state(AZURE, &["karpenter.azure.com/sku-family NotIn N"]),
        State::NonGpu
    );
}

#[test]
fn v14_gcp_gpus() {
    assert_eq!(
        state(GCP, &["karpenter.k8s.gcp/instance-gpu-count Exists"]),
        State::GpuOnly
    );
    assert_eq!(
        state(GCP, &["karpenter.k8s.gcp/instance-family In a3"]),
        State::GpuOnly
    );
    assert_eq!(
        state(GCP, &["cloud.google.com/gke-accelerator In nvidia-l4"]),
        State::GpuOnly
    );
}

#[test]
fn v15_gcp_cpu_families() {
    assert_eq!(
        state(GCP, &["karpenter.k8s.gcp/instance-family In n4 n2 e2"]),
        State::NonGpu
    );
}

#[test]
fn v16_neuron() {
    let (state, _, vendors) = judged(&pool(
        AWS,
        &["karpenter.k8s.aws/instance-category In inf trn"],
        json!({}),
        json!({}),
    ));
    assert_eq!(
        (state, vendors.join(",").as_str()),
        (State::GpuOnly, "neuron")
    );
}

#[test]
fn v17_a_limit_of_zero_gpus() {
    let (state, evidence, vendors) = judged(&pool(
        AWS,
        &[],
        json!({"limits": {"nvidia.com/gpu": "0"}}),
        json!({}),
    ));
    assert_eq!(
        (state, evidence.as_str()),
        (State::GpuCapable, "limits nvidia.com/gpu 0")
    );
    assert!(vendors.contains(&"neuron".to_owned()) && vendors.contains(&"amd".to_owned()));
    let g5 = ["karpenter.k8s.aws/instance-family In g5"];
    let zero = json!({"limits": {"nvidia.com/gpu": 0}});
    assert_eq!(judged(&pool(AWS, &g5, zero, json!({}))).0, State::NonGpu);
}

#[test]
fn v18_user_labels_that_look_alike() {
    let labels = json!({"labels": {"node.kubernetes.io/instance-category": "accelerated"}});
    let g = ["karpenter.k8s.aws/instance-category In g"];
    assert_eq!(judged(&pool(AWS, &g, json!({}), labels)).0, State::GpuOnly);
}

#[test]
fn v19_to_v22_are_of_gpu_pools_whatever_their_disruption() {
    let family = ["karpenter.k8s.aws/instance-family In p5"];
    for spec in [
        json!({"replicas": 1}),
        json!({"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "Never"}}),
        json!({"disruption": {"budgets": [{"nodes": "0", "reasons": ["Underutilized"]}]}}),
        json!({"disruption": {"consolidationPolicy": "Balanced", "consolidateAfter": "1h"}}),
    ] {
        assert_eq!(
            judged(&pool(AWS, &family, spec, json!({}))).0,
            State::GpuOnly
        );
    }
}

#[test]
fn v23_less_than_needs_the_label() {
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-gpu-count Lt 9"]),
        State::GpuOnly
    );
}

#[test]
fn v24_fpgas_and_transcoders_are_no_gpus() {
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-family In f2"]),
        State::NonGpu
    );
    assert_eq!(
        state(AWS, &["karpenter.k8s.aws/instance-family In vt1"]),
        State::NonGpu
    );
}

#[test]
fn requirements_on_several_labels_of_one_machine_intersect() {
    let family = "karpenter.k8s.aws/instance-family In g5 m5";
    assert_eq!(
        state(AWS, &[family, "karpenter.k8s.aws/instance-category In m"]),
        State::NonGpu
    );
    assert_eq!(
        state(
            AWS,
            &[family, "karpenter.k8s.aws/instance-category NotIn m"]
        ),
        State::GpuOnly
    );
    assert_eq!(
        state(
            AWS,
            &[family, "karpenter.k8s.aws/instance-gpu-count Exists"]
        ),
        State::GpuOnly
    );
    let alias = "beta.kubernetes.io/instance-type In g5.xlarge";
    assert_eq!(
        state(
            AWS,
            &[
                alias,
                "node.kubernetes.io/instance-type In g5.xlarge m5.large"
            ]
        ),
        State::GpuOnly
    );
    let series = [
        "karpenter.azure.com/sku-family In N",
        "karpenter.azure.com/sku-series In NDisr_H100_v5",
    ];
    assert_eq!(state(AZURE, &series), State::GpuOnly);
}

#[test]
fn template_labels_are_requirements_and_may_declare_a_gpu() {
    let of = |labels: Value| judged(&pool(AWS, &[], json!({}), json!({"labels": labels}))).0;
    assert_eq!(
        of(json!({"karpenter.k8s.aws/instance-family": "g5"})),
        State::GpuOnly
    );
    assert_eq!(
        of(json!({"karpenter.k8s.aws/instance-family": "m5"})),
        State::NonGpu
    );
    assert_eq!(
        of(json!({"nvidia.com/gpu.present": "true"})),
        State::GpuOnly
    );
    assert_eq!(
        of(json!({"nvidia.com/gpu.present": "false"})),
        State::GpuCapable
    );
}

#[test]
fn a_declaration_does_not_make_gpus_of_cpu_types() {
    let c5 = ["karpenter.k8s.aws/instance-family In c5"];
    assert_eq!(
        judged(&pool(AWS, &c5, json!({}), nvidia_taint())).0,
        State::NonGpu
    );
    let soft = json!({"taints": [{"key": "nvidia.com/gpu", "effect": "PreferNoSchedule"}]});
    assert_eq!(
        judged(&pool(AWS, &[], json!({}), soft)).0,
        State::GpuCapable
    );
    let other = json!({"taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]});
    assert_eq!(
        judged(&pool(AWS, &[], json!({}), other)).0,
        State::GpuCapable
    );
}

#[test]
fn clouds_without_accelerators_and_unknown_clouds() {
    assert_eq!(state("karpenter.kwok.sh", &[]), State::NonGpu);
    let taint = json!({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]});
    assert_eq!(
        judged(&pool("karpenter.kwok.sh", &[], json!({}), taint)).0,
        State::NonGpu
    );
    assert_eq!(state("karpenter.example.org", &[]), State::GpuCapable);
    for (types, expected) in [
        ("g4dn.xlarge", State::GpuOnly),
        ("m5.large", State::NonGpu),
        ("Standard_NC4as_T4_v3", State::GpuOnly),
        ("ecs.gn7i-c8g1.2xlarge", State::GpuOnly),
        ("bx2-4x16", State::NonGpu),
    ] {
        let requirement = format!("node.kubernetes.io/instance-type In {types}");
        assert_eq!(state("", &[&requirement]), expected, "{types}");
    }
}

#[test]
fn the_vendor_is_named_where_it_is_one() {
    let vendors = |requirements: &[&str], spec: Value| {
        judged(&pool(AWS, requirements, spec, json!({})))
            .2
            .join(",")
    };
    assert_eq!(
        vendors(
            &["karpenter.k8s.aws/instance-gpu-manufacturer In amd"],
            json!({})
        ),
        "amd"
    );
    assert_eq!(
        vendors(
            &["karpenter.k8s.aws/instance-gpu-manufacturer In nvidia"],
            json!({})
        ),
        "nvidia"
    );
    assert_eq!(
        vendors(
            &["karpenter.k8s.aws/instance-gpu-name In t4 a10g"],
            json!({})
        ),
        "nvidia"
    );
    let category = "karpenter.k8s.aws/instance-category In g p";
    assert_eq!(
        vendors(&[category], json!({})),
        "amd,nvidia",
        "g4ad holds AMD's"
    );
    assert_eq!(
        vendors(
            &[category, "karpenter.k8s.aws/instance-generation Gt 4"],
            json!({})
        ),
        "nvidia"
    );
    assert_eq!(
        vendors(&[category], json!({"limits": {"nvidia.com/gpu": 8}})),
        "nvidia"
    );
    assert_eq!(
        vendors(&["karpenter.k8s.aws/instance-family In g4ad"], json!({})),
        "amd"
    );
}

#[test]
fn min_values_widen_nothing() {
    let judge_with = |min: Value| {
        let mut object = (*pool(
            AWS,
            &["karpenter.k8s.aws/instance-family In g5 g6"],
            json!({}),
            json!({}),
        )
        .value)
            .clone();
        object["spec"]["template"]["spec"]["requirements"][0]["minValues"] = min;
        judged(&Subject::from_manifest(Arc::new(object)).unwrap())
    };
    assert_eq!(judge_with(json!(2)), judge_with(Value::Null));
    assert_eq!(judge_with(json!(2)).0, State::GpuOnly);
    // Kept on one label, they do not bring back what another takes away.
    let mut object = (*pool(
        AWS,
        &[
            "karpenter.k8s.aws/instance-family Exists",
            "karpenter.k8s.aws/instance-category In c m",
        ],
        json!({}),
        json!({}),
    )
    .value)
        .clone();
    object["spec"]["template"]["spec"]["requirements"][0]["minValues"] = json!(10);
    let subject = Subject::from_manifest(Arc::new(object)).unwrap();
    assert_eq!(judged(&subject).0, State::NonGpu);
}

#[test]
fn a_label_of_another_cloud_says_nothing() {
    let gpus = "karpenter.k8s.aws/instance-gpu-count Exists";
    assert_eq!(state(AWS, &[gpus]), State::GpuOnly);
    assert_eq!(state(AZURE, &[gpus]), State::GpuCapable);
    assert_eq!(
        state(GCP, &["karpenter.azure.com/sku-family In D"]),
        State::GpuCapable
    );
    assert_eq!(
        state(AZURE, &["cloud.google.com/gke-accelerator Exists"]),
        State::GpuCapable
    );
    // Not even one that the cloud itself had once.
    assert_eq!(
        state(GCP, &["karpenter.k8s.gcp/instance-category In a"]),
        State::GpuCapable
    );
    // Where the cloud is not known, every label counts.
    assert_eq!(state("karpenter.example.org", &[gpus]), State::GpuOnly);
}

#[test]
fn oci_offers_gpu_shapes_to_tainted_pools_only() {
    const OCI: &str = "oci.oraclecloud.com";
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
    let any = |node: Value| judged(&pool(OCI, &[], json!({}), node));
    let (state, evidence, _) = any(json!({}));
    assert_eq!(
        (state, evidence.as_str()),
        (
            State::NonGpu,
            "no taint nvidia.com/gpu or amd.com/gpu, without which it gets no GPU node"
        )
    );
    assert_eq!(
        any(taint("nvidia.com/gpu", "NoExecute")).0,
        State::NonGpu,
        "it asks for this effect"
    );
    assert_eq!(
        any(taint("amd.com/gpu", "NoSchedule")).0,
        State::GpuOnly,
        "declared"
    );
    // What it buys without GPUs does not decide: the taint is what such a pool lacks.
    let shapes = ["oci.oraclecloud.com/gpu-shape In true"];
    assert_eq!(self::state(OCI, &shapes), State::GpuOnly);
    let standard = ["oci.oraclecloud.com/instance-shape In VM.Standard.E5.Flex"];
    let (state, evidence, _) = judged(&pool(OCI, &standard, json!({}), json!({})));
    assert_eq!(state, State::NonGpu);
    assert!(!evidence.contains("no taint"), "{evidence}");
    // The other provider for the same cloud asks for nothing.
    assert_eq!(self::state("karpenter.k8s.oracle", &[]), State::GpuCapable);
}

#[test]
fn a_limit_of_zero_gpus_leaves_shares_of_one() {
    let zero = || json!({"limits": {"nvidia.com/gpu": 0}});
    let of = |family: &str| {
        let requirement = format!("karpenter.k8s.aws/instance-family In {family}");
        judged(&pool(AWS, &[&requirement], zero(), json!({}))).0
    };
    assert_eq!(of("g6"), State::NonGpu);
    assert_eq!(of("g6f"), State::GpuOnly);
    assert_eq!(of("gr6f m5"), State::GpuCapable);
}

#[test]
fn every_cloud_by_its_own_labels() {
    for (group, requirement, expected, vendors) in [
        (
            "karpenter.k8s.alibabacloud",
            "karpenter.k8s.alibabacloud/instance-category In gn ebmgn",
            State::GpuOnly,
            "nvidia",
        ),
        (
            "karpenter.k8s.alibabacloud",
            "karpenter.k8s.alibabacloud/instance-category In g c r",
            State::NonGpu,
            "",
        ),
        (
            "karpenter.k8s.alibabacloud",
            "karpenter.k8s.alibabacloud/instance-family In ecs.gn7i-c8g1",
            State::GpuOnly,
            "nvidia",
        ),
        (
            "karpenter.k8s.alibabacloud",
            "karpenter.k8s.alibabacloud/instance-gpu-manufacturer In NVIDIA",
            State::GpuOnly,
            "nvidia",
        ),
        (
            "karpenter.k8s.alibabacloud",
            "karpenter.k8s.alibabacloud/instance-gpu-manufacturer NotIn NVIDIA",
            State::GpuCapable,
            "intel",
        ),
        (
            AZURE,
            "karpenter.azure.com/sku-gpu-name In V710",
            State::GpuOnly,
            "amd",
        ),
        (
            AZURE,
            "karpenter.azure.com/sku-gpu-manufacturer In nvidia",
            State::GpuOnly,
            "nvidia",
        ),
        (
            "karpenter.k8s.oracle",
            "karpenter.k8s.oracle/instance-gpu Exists",
            State::GpuOnly,
            "amd,nvidia",
        ),
        (
            "karpenter-ibm.sh",
            "karpenter-ibm.sh/instance-family In gx2",
            State::GpuOnly,
            "nvidia",
        ),
        (
            "karpenter-ibm.sh",
            "karpenter-ibm.sh/instance-family In gx3d",
            State::GpuOnly,
            "amd,habana,nvidia",
        ),
        (
            "karpenter-ibm.sh",
            "karpenter-ibm.sh/instance-family In bx2 nxf",
            State::NonGpu,
            "",
        ),
        (
            AWS,
            "karpenter.k8s.aws/instance-gpu-manufacturer In habana",
            State::GpuOnly,
            "habana",
        ),
        (
            AWS,
            "karpenter.k8s.aws/instance-family In dl2q",
            State::GpuOnly,
            "qualcomm",
        ),
    ] {
        let (state, evidence, found) = judged(&pool(group, &[requirement], json!({}), json!({})));
        assert_eq!(
            (state, found.join(",").as_str()),
            (expected, vendors),
            "{requirement}: {evidence}"
        );
    }
}

/// One machine of the brute-force model: its labels and what it holds.
struct Known {
    labels: BTreeMap<&'static str, &'static str>,
    device: Device,
}

const CATEGORY: &str = "karpenter.k8s.aws/instance-category";
const FAMILY: &str = "karpenter.k8s.aws/instance-family";
const GENERATION: &str = "karpenter.k8s.aws/instance-generation";
const COUNT: &str = "karpenter.k8s.aws/instance-gpu-count";
const MANUFACTURER: &str = "karpenter.k8s.aws/instance-gpu-manufacturer";
const ACCELERATORS: &str = "karpenter.k8s.aws/instance-accelerator-count";
const TYPE: &str = "node.kubernetes.io/instance-type";

fn table() -> Vec<Known> {
    let known = |row: &'static str, device| {
        let parts: Vec<&str> = row.split(' ').collect();
        let keys = [
            TYPE,
            FAMILY,
            CATEGORY,
            GENERATION,
            COUNT,
            MANUFACTURER,
            ACCELERATORS,
        ];
        let labels = keys
            .into_iter()
            .zip(parts)
            .filter(|(_, value)| *value != "-")
            .collect();
        Known { labels, device }
    };
    vec![
        known("g5.xlarge g5 g 5 1 nvidia -", Device::Gpu),
        known("g4ad.xlarge g4ad g 4 1 amd -", Device::Gpu),
        known("gr6.4xlarge gr6 gr 6 1 nvidia -", Device::Gpu),
        known("p5.48xlarge p5 p 5 8 nvidia -", Device::Gpu),
        known("p4d.24xlarge p4d p 4 8 nvidia -", Device::Gpu),
        known("inf2.xlarge inf2 inf 2 - - 1", Device::Accelerator),
        known("trn1.32xlarge trn1 trn 1 - - 16", Device::Accelerator),
        known("m5.large m5 m 5 - - -", Device::Cpu),
        known("c6i.large c6i c 6 - - -", Device::Cpu),
        known("r5.large r5 r 5 - - -", Device::Cpu),
        known("f2.6xlarge f2 f 2 - - -", Device::Cpu),
        known("t3.large t3 t 3 - - -", Device::Cpu),
    ]
}

/// What passes all rows on one label, computed value by value: the oracle of the algebra.
fn passes_all(rows: &[(Operator, Vec<String>)], label: Option<&str>) -> bool {
    let number = |values: &[String]| values[0].parse::<i64>().unwrap();
    let holds = |(operator, values): &(Operator, Vec<String>), label: &str| {
        let integer = label.parse::<i64>();
        let compare = |test: fn(i64, i64) -> bool| {
            integer
                .as_ref()
                .is_ok_and(|integer| test(*integer, number(values)))
        };
        match operator {
            Operator::In => values.iter().any(|value| value == label),
            Operator::NotIn => values.iter().all(|value| value != label),
            Operator::Exists => true,
            Operator::DoesNotExist => false,
            Operator::Gt => compare(|a, b| a > b),
            Operator::Lt => compare(|a, b| a < b),
            Operator::Gte => compare(|a, b| a >= b),
            Operator::Lte => compare(|a, b| a <= b),
        }
    };
    if let Some(label) = label {
        return rows.iter().all(|row| holds(row, label));
    }
    // Without the label: the set that is left must read as NotIn or DoesNotExist.
    let from = |row: &(Operator, Vec<String>)| match row.0 {
        Operator::Gt => Some(number(&row.1) + 1),
        Operator::Gte => Some(number(&row.1)),
        _ => None,
    };
    let to = |row: &(Operator, Vec<String>)| match row.0 {
        Operator::Lt => Some(number(&row.1) - 1),
        Operator::Lte => Some(number(&row.1)),
        _ => None,
    };
    let lowest = rows.iter().filter_map(from).max();
    let highest = rows.iter().filter_map(to).min();
    let crossed = lowest.zip(highest).is_some_and(|(low, high)| low > high);
    let listed = crossed
        || rows
            .iter()
            .any(|row| matches!(row.0, Operator::In | Operator::DoesNotExist));
    let within = |value: &str| {
        (lowest.is_none() && highest.is_none())
            || value.parse::<i64>().is_ok_and(|value| {
                lowest.is_none_or(|low| value >= low) && highest.is_none_or(|high| value <= high)
            })
    };
    if listed {
        let nothing = rows.iter().any(|row| row.0 == Operator::DoesNotExist);
        let left = rows
            .iter()
            .filter(|row| row.0 == Operator::In)
            .flat_map(|row| &row.1)
            .any(|value| within(value) && rows.iter().all(|row| holds(row, value)));
        nothing || crossed || !left
    } else {
        rows.iter()
            .filter(|row| row.0 == Operator::NotIn)
            .flat_map(|row| &row.1)
            .any(|v| within(v))
    }
}

fn rows() -> impl Strategy<Value = Vec<(&'static str, Operator, Vec<String>)>> {
    let values = |key: &'static str| -> Vec<&'static str> {
        let mut values: Vec<&str> = table()
            .iter()
            .filter_map(|known| known.labels.get(key).copied())
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let listing = prop_oneof![Just(Operator::In), Just(Operator::NotIn)];
    let listed = (
        prop::sample::select(vec![TYPE, FAMILY, CATEGORY, MANUFACTURER, COUNT]),
        listing,
    )
        .prop_flat_map(move |(key, operator)| {
            prop::sample::subsequence(values(key), 1..=values(key).len().min(5)).prop_map(
                move |values| {
                    (
                        key,
                        operator,
                        values.into_iter().map(str::to_owned).collect(),
                    )
                },
            )
        });
    let being = (
        prop::sample::select(vec![COUNT, MANUFACTURER, ACCELERATORS]),
        prop_oneof![Just(Operator::Exists), Just(Operator::DoesNotExist)],
    )
        .prop_map(|(key, operator)| (key, operator, Vec::new()));
    let comparing = (
        prop::sample::select(vec![COUNT, GENERATION, ACCELERATORS]),
        prop_oneof![
            Just(Operator::Gt),
            Just(Operator::Lt),
            Just(Operator::Gte),
            Just(Operator::Lte)
        ],
        0..9_i64,
    )
        .prop_map(|(key, operator, number)| (key, operator, vec![number.to_string()]));
    prop::collection::vec(prop_oneof![3 => listed, 1 => being, 1 => comparing], 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_algebra_agrees_with_a_model_that_tries_every_value(
        rows in rows(),
        label in prop::option::of("[gpm]|[0-9]|g5|m5|nvidia"),
    ) {
        for key in [TYPE, FAMILY, CATEGORY, GENERATION, COUNT, MANUFACTURER, ACCELERATORS] {
            let mine: Vec<(Operator, Vec<String>)> =
                rows.iter().filter(|row| row.0 == key).map(|row| (row.1, row.2.clone())).collect();
            let Some(allowed) = mine
                .iter()
                .map(|(operator, values)| Allowed::new(*operator, values).unwrap())
                .reduce(Allowed::and)
            else { continue };
            let ours = label.as_deref().map_or_else(|| allowed.has_absence(), |label| allowed.has(label));
            prop_assert_eq!(ours, passes_all(&mine, label.as_deref()), "{}: {:?} of {:?}", key, label, mine);
        }
    }

    #[test]
    fn no_machine_of_the_model_contradicts_the_judgement(rows in rows()) {
        let written: Vec<String> = rows
            .iter()
            .map(|(key, operator, values)| {
                format!("{key} {} {}", operator.as_str(), values.join(" ")).trim_end().to_owned()
            })
            .collect();
        let written: Vec<&str> = written.iter().map(String::as_str).collect();
        let mut bought = BTreeSet::new();
        for known in table() {
            let mut by_key: BTreeMap<&str, Vec<(Operator, Vec<String>)>> = BTreeMap::new();
            for (key, operator, values) in &rows {
                by_key.entry(key).or_default().push((*operator, values.clone()));
            }
            if by_key.iter().all(|(key, rows)| passes_all(rows, known.labels.get(key).copied())) {
                bought.insert(known.device);
            }
        }
        let devices = bought.iter().any(|device| *device != Device::Cpu);
        match state(AWS, &written) {
            State::GpuOnly => prop_assert!(!bought.contains(&Device::Cpu), "{:?} buys {:?}", written, bought),
            State::NonGpu => prop_assert!(!devices, "{:?} buys {:?}", written, bought),
            State::GpuCapable => {
                // Where types are listed the model knows all there is to know, but for their
                // numbers of devices.
                let listed = rows.iter().any(|row| row.0 == TYPE && row.1 == Operator::In);
                let counted = rows.iter().any(|row| {
                    [COUNT, ACCELERATORS].contains(&row.0) && !row.2.is_empty()
                });
                prop_assert!(!listed || counted || bought.len() > 1, "{:?} buys {:?}", written, bought);
            }
        }
    }

    #[test]
    fn no_object_panics(values in prop::collection::vec(".{0,12}", 0..6), operator in "[A-Za-z]{0,12}|In|NotIn|Gt|Lt") {
        let object = json!({"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "spec": {"template": {"spec": {
            "requirements": values.iter().map(|value| json!({
                "key": "node.kubernetes.io/instance-type", "operator": operator, "values": [value]
            })).collect::<Vec<_>>()}}}});
        let _ = judged(&Subject::from_manifest(Arc::new(object)).unwrap());
    }
}
