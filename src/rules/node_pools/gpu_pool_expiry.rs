//! GPU nodes that expire.

use super::gpu_pool;
use crate::{
    declare_rule,
    finding::{FieldPath, Finding},
    rules::{Context, Findings, NoParams, kinds},
    subject::{duration::Lapse, node_pool::Version},
};

/// The node classes of EKS Auto Mode, which caps the age of nodes by itself.
const EKS_AUTO: &str = "eks.amazonaws.com";

declare_rule! {
    /// # What it finds
    /// A NodePool that buys GPU nodes only and whose nodes expire: `expireAfter` is not `Never`.
    /// Silence means 720h (336h in EKS Auto Mode).
    ///
    /// # Why it hurts
    /// Expiry is forceful: the node is drained when its time has come, whatever the budgets say and
    /// before a replacement is there. Each GPU node takes its model servers down with it at an hour
    /// that nobody chose, and nodes bought together go together.
    ///
    /// # Example
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///       expireAfter: 168h
    /// ```
    ///
    /// # Instead
    /// ```yaml
    /// apiVersion: karpenter.sh/v1
    /// kind: NodePool
    /// metadata: {name: inference}
    /// spec:
    ///   template:
    ///     spec:
    ///       nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: inference}
    ///       requirements:
    ///       - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
    ///       expireAfter: Never
    /// ```
    /// Renew nodes by drift, which budgets hold back and which waits for a replacement. In EKS Auto
    /// Mode `Never` is not honoured: nodes live 21 days at most, so give every replica a
    /// PodDisruptionBudget and time to drain.
    ///
    /// # Sources
    /// - karpenter.sh v1.14, Concepts, Disruption, automated forceful methods;
    ///   `pkg/controllers/nodeclaim/expiration/controller.go`, v1.14.1.
    /// - aws/karpenter-provider-aws issues 7890 and 7797; kubernetes-sigs/karpenter issue 1789.
    /// - AWS re:Post, EKS Auto Mode and maintenance windows.
    pub static GPU_POOL_EXPIRY = Rule {
        id: "gpu-pool-expiry",
        summary: "GPU nodes that are drained when they reach an age",
        group: NodePools,
        kinds: &[&kinds::NODE_POOL],
        labels: &[],
        annotations: &[],
        level: Warn,
        fills: None,
        params: NoParams,
        check: check,
    }
}

fn check(cx: &Context<'_, NoParams>, out: &mut Findings) {
    let Some(judged) = gpu_pool(cx) else { return };
    let pool = &judged.pool;
    let auto_mode = pool.node_class_group() == Some(EKS_AUTO);
    let written = pool.expire_after();
    let age = match written.map(Lapse::of) {
        // EKS Auto Mode takes `Never` for its own cap. What cannot be read the API server refuses.
        Some(Some(Lapse::Never) | None) => return,
        Some(Some(age)) => age.to_string(),
        None if auto_mode => "336h, the default".to_owned(),
        None => "720h, the default".to_owned(),
    };
    let past = if pool.termination_grace().is_some() {
        "past every budget and, after terminationGracePeriod, every PodDisruptionBudget"
    } else {
        "past every budget"
    };
    let misplaced = match pool.version {
        Version::V1 if pool.holds(&["spec", "disruption", "expireAfter"]) => {
            "; v1 does not know disruption.expireAfter"
        }
        _ => "",
    };
    let finding = Finding::new(
        FieldPath::of(pool.expire_path()),
        format!(
            "GPU nodes are drained at the age of {age}, {past} and before a replacement is there\
             {misplaced} (GPU pool: {})",
            judged.machines.evidence
        ),
    )
    .instead(instead(pool.version, auto_mode))
    .confidence(judged.confidence())
    .fingerprint("GPU nodes expire");
    out.report(match written {
        Some(written) => finding.value(written.clone()),
        None => finding,
    });
}

fn instead(version: Version, auto_mode: bool) -> String {
    if auto_mode {
        return "spec:\n  template:\n    spec:\n      expireAfter: 504h\n\
                # the most that EKS Auto Mode allows; Never is not honoured there"
            .to_owned();
    }
    match version {
        Version::V1 => "spec:\n  template:\n    spec:\n      expireAfter: Never",
        Version::V1Beta1 => "spec:\n  disruption:\n    expireAfter: Never",
    }
    .to_owned()
}
