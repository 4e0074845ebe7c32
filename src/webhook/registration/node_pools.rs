//! What conditions ask of Karpenter's NodePools.

use crate::{
    catalog::instances::InstanceCatalog,
    cel::{Test, Value},
    policy::Policy,
    rules::{Kind, node_pools::gpu_pool_consolidation::GPU_POOL_CONSOLIDATION},
    subject::node_pool,
};

use super::conditions::{MOST, rules_of};

/// The most values of all requirements that are looked through.
const VALUES: usize = 256;

/// Whether a rule at deny may deny a NodePool of machines with accelerators: the write is not an UPDATE that
/// leaves `template` and `disruption` as they are. Where the rules at deny read the consolidation policy
/// alone, only a pool whose policy may evict can be denied.
pub(super) fn may_evict(kind: &Kind, policy: &Policy) -> Test {
    let object = Value::object();
    let changed = Test::differs(|object| {
        Value::list([["spec", "template"], ["spec", "disruption"]].map(|path| object.get(&path)))
    });
    let mut denying = rules_of(kind).filter(|rule| policy.may_deny(rule, kind));
    let evicts = if denying.all(|rule| rule.id == GPU_POOL_CONSOLIDATION.id) {
        Test::any([
            object.has(node_pool::POLICY, |policy| {
                policy.is_among([node_pool::WHEN_EMPTY])
            }),
            object.has(node_pool::AFTER, |after| after.is_among([node_pool::NEVER])),
            object.has(&["spec", "replicas"], Value::is_not_null),
        ])
        .not()
    } else {
        Test::Constant(true)
    };
    Test::all([Test::any([Test::is_create(), changed]), evicts])
}

/// Whether requirements, labels or taints of the nodes name an accelerator, or a family or type of machines
/// that has some.
pub(super) fn names_accelerators(catalog: &InstanceCatalog) -> Test {
    let machines = catalog.pattern_of_devices();
    let keys = catalog.pattern_of_device_keys();
    let object = Value::object();
    let required = object.has(node_pool::REQUIREMENTS, |requirements| {
        let many = requirements.holds_more_than(VALUES, MOST, "r", &["values"]);
        let named = requirements.any_element(MOST, "r", |requirement| {
            let excludes = requirement.has(&["operator"], |word| {
                word.is_among(["NotIn", "DoesNotExist"])
            });
            let named = requirement.has(&["key"], |key| key.matches(&keys));
            let values = requirement.has(&["values"], |values| {
                values.any_element(VALUES, "v", |value| value.matches(&machines))
            });
            Test::all([excludes.not(), Test::any([named, values])])
        });
        Test::any([many, named])
    });
    let tainted = object.has(node_pool::TAINTS, |taints| {
        taints.any_element(MOST, "t", |taint| {
            taint.has(&["key"], |key| key.matches(&catalog.pattern_of_resources()))
        })
    });
    let labelled = object.has(&["spec", "template", "metadata", "labels"], |labels| {
        labels.any_key(MOST, "k", |key| {
            Test::any([
                key.matches(&keys),
                labels.has_key(key, |value| value.matches(&machines)),
            ])
        })
    });
    Test::any([required, tainted, labelled])
}
