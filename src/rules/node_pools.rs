//! Karpenter NodePools.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    budget::Budget,
    catalog::instances::InstanceCatalog,
    finding::Confidence,
    provenance,
    rules::Context,
    subject::{
        Operation, Subject,
        duration::{Lapse, parse_go, short},
        gpu::{Judgement, State, judge},
        node_pool::{AFTER, NodePool, POLICY},
    },
};

pub mod gpu_capable_pool;
pub mod gpu_pool_consolidate_after;
pub mod gpu_pool_consolidation;
pub mod gpu_pool_expiry;
pub mod gpu_pool_limits;
pub mod gpu_pool_single_node;
pub mod gpu_pool_spot_only;
pub mod gpu_pool_taint;
pub mod mig_mixed_pool;

/// The policy under which only nodes without running pods go.
const SAFE: &str = crate::subject::node_pool::WHEN_EMPTY;

/// A NodePool and what is known of its machines.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    pool: NodePool<'a>,
    machines: Judgement<'a>,
}

impl<'a> Judged<'a> {
    /// The subject as a NodePool; none for other kinds, and for one that costs more than it may.
    pub(super) fn of(
        subject: &'a Subject,
        catalog: &'a InstanceCatalog,
        budget: &Budget,
    ) -> Option<Self> {
        let pool = NodePool::of(subject)?;
        let machines = judge(&pool, catalog, budget)?;
        Some(Self { pool, machines })
    }

    /// How sure findings are that rest on the pool's being a GPU pool.
    fn confidence(&self) -> Confidence {
        if self.machines.presumed {
            Confidence::Presumed
        } else {
            Confidence::Certain
        }
    }

    /// Whether Karpenter's consolidation has a say in the pool at all. It has none in static pools,
    /// and `Never` switches it off under every policy (karpenter.sh
    /// `pkg/controllers/disruption/consolidation.go` and `emptiness.go`, v1.14.1).
    fn is_consolidated(&self) -> bool {
        self.pool.replicas().is_none() && self.pool.consolidate_after() != Some(Lapse::Never)
    }

    /// The consolidation policy, written or defaulted.
    fn policy(&self) -> &str {
        self.pool.policy().unwrap_or(self.pool.default_policy())
    }
}

/// The subject as a NodePool in that state.
fn in_state<'a, P>(cx: &Context<'a, P>, state: State) -> Option<&'a Judged<'a>> {
    cx.pool().filter(|judged| judged.machines.state == state)
}

/// The subject as a NodePool whose machines all hold accelerators.
fn gpu_pool<'a, P>(cx: &Context<'a, P>) -> Option<&'a Judged<'a>> {
    in_state(cx, State::GpuOnly)
}

/// Whether a pool is being made, in a file or at the door, so that its template may still be filled
/// without touching a node.
fn is_new<P>(cx: &Context<'_, P>) -> bool {
    cx.subject.operation == Operation::Create && cx.subject.door != crate::subject::Door::Audit
}

/// What becomes of running pods under a consolidation policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// They stay.
    Stay,
    /// They are evicted where that saves money.
    Evicted,
    /// They are evicted where it saves enough (Karpenter v1.14.0).
    EvictedWhenBalanced,
    /// It is not a policy that we know.
    Unknown,
}

/// What the pool's policy does to running pods, by what takes effect and not by what is written.
fn effect(judged: &Judged<'_>) -> Effect {
    if !judged.is_consolidated() || judged.pool.always_forbids("Underutilized") {
        return Effect::Stay;
    }
    match judged.policy() {
        SAFE => Effect::Stay,
        "WhenEmptyOrUnderutilized" | "WhenUnderutilized" => Effect::Evicted,
        "Balanced" => Effect::EvictedWhenBalanced,
        _ => Effect::Unknown,
    }
}

/// Whether [`gpu_pool_consolidation`] fills the policy: it evicts, and nobody wrote it.
fn policy_is_filled<P>(cx: &Context<'_, P>, judged: &Judged<'_>) -> bool {
    effect(judged) == Effect::Evicted
        && judged.pool.with_default_block(|block| {
            let default = judged.pool.default_policy().into();
            provenance::of_field(cx.subject, POLICY, &default, Some(block)).fillable()
        })
}

/// Whether nobody wrote how long a node must be quiet.
fn after_is_silent<P>(cx: &Context<'_, P>, judged: &Judged<'_>) -> bool {
    judged.pool.with_default_block(|block| {
        let default = judged.pool.default_after();
        provenance::of_field(cx.subject, AFTER, &default, Some(block)).fillable()
    })
}

/// A duration in the policy file, in hours, minutes and seconds, as Karpenter takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Span(Duration);

impl Span {
    /// So many hours.
    const fn hours(hours: u64) -> Self {
        Self(Duration::from_secs(hours * 3600))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_go(&text)
            .filter(|span| span.subsec_nanos() == 0)
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no duration; write it as \"1h\" or \"30m\""))
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        short(span.0)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&short(self.0))
    }
}

#[cfg(test)]
#[allow(
    clippy::needless_pass_by_value,
    reason = "documents read best where they are used"
)]
mod tests;
