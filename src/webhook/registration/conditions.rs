//! The conditions under which the API server sends an object.
//!
//! Three tests for each kind. `changed`: the write changes something that a rule reads, the twin of the
//! skip in [`crate::review`]. `relevant`: some rule may speak of the object. `deniable`: some rule at deny
//! may deny it for what stands in the object itself, so that the write may have to wait for us. They err
//! on the side of sending: what `deniable` leaves out is still judged, and denied, while we answer.

use std::collections::BTreeMap;

use crate::{
    catalog::controllers::{Controller, Controllers, ParentKind},
    cel::{Test, Value, name_pattern},
    exempt::PREFIX,
    policy::Policy,
    rules::{
        Group, Kind, RULES, Rule,
        kinds::{self, Relevance},
        metadata_read,
    },
};

use super::{node_pools, pods, signals};

/// The most members of a list or map that a condition looks through. What that takes counts against a
/// budget of the API server, beyond which the condition has failed, and grows with the square of a map
/// (100,000 limits of one container took kube-apiserver 1.36.3 over 30 s).
pub(super) const MOST: usize = 64;

/// The most owners of an object among which a controller is looked for. Kubernetes takes one controller
/// (k8s.io/apimachinery, pkg/api/validation/objectmeta.go).
const OWNERS: usize = 16;

/// The most characters of an owner's version, kind and name: the longest name that Kubernetes takes.
const OWNER_TEXT: usize = 253;

/// The rules that decide which entries a kind needs. Those about exemptions and about an object as a whole
/// speak of every kind, and matter no more than the rules that they are about.
pub(super) fn rules_of(kind: &Kind) -> impl Iterator<Item = &'static Rule> + use<'_> {
    RULES.iter().copied().filter(move |rule| {
        rule.kinds.contains(&kind) && !matches!(rule.group, Group::Objects | Group::Exemptions)
    })
}

/// Whether the write is a CREATE, or an UPDATE of anything that a rule reads.
pub(super) fn changed(kind: &Kind) -> Test {
    let compared = Test::of(&read_by_rules(kind), "d", |keys| {
        Test::differs(|object| {
            Value::list([
                object.get(&["spec"]),
                metadata(&object.get(&["metadata"]), keys),
                controllers(&object.get(&["metadata", "ownerReferences"])),
            ])
        })
    });
    let exempted = Test::either_way(|here, there| {
        here.has(&["metadata", "annotations"], |annotations| {
            annotations.any_key(MOST, "k", |key| {
                let other = there.get(&["metadata", "annotations"]).key(key);
                Test::all([
                    key.starts_with(PREFIX),
                    annotations.key(key).is(&other).not(),
                ])
            })
        })
    });
    Test::any([Test::is_create(), compared, exempted])
}

/// The keys of the labels and annotations that some rule reads.
pub(super) fn read_by_rules(kind: &Kind) -> Value {
    let read = metadata_read(kind.group, kind.kind);
    Value::texts(read.labels.union(&read.annotations).copied())
}

/// The values of some keys among the labels and the annotations of a pod or an object.
pub(super) fn metadata(metadata: &Value, keys: &Value) -> Value {
    metadata.named_as("m", |metadata| {
        Value::texts(["labels", "annotations"]).map("f", |field| {
            metadata
                .key(field)
                .named_as("v", |found| keys.map("k", |key| found.key(key)))
        })
    })
}

/// The references that name a controller; all of them where there are too many to look through.
fn controllers(owners: &Value) -> Value {
    owners.named_as("r", |owners| {
        owners.those(MOST, "o", |owner| {
            owner.has(&["controller"], Value::is_true)
        })
    })
}

/// Whether some rule may speak of an object of a kind.
pub(super) fn relevant(kind: &Kind) -> Test {
    let spoken_of = match kind.relevance {
        Relevance::Accelerator(of) => Test::any([
            pods::ask_for_accelerators(of, pods::names_device),
            // One that is malformed is denied wherever it stands.
            Value::object().has(&["metadata", "annotations"], |annotations| {
                annotations.any_key(MOST, "k", |key| key.starts_with(PREFIX))
            }),
        ]),
        _ => Test::Constant(true),
    };
    Test::all([child_of_judged(kind).not(), spoken_of])
}

/// Whether some rule at deny may deny an object of a kind for what stands in it: tests that all have to
/// hold, by name. What only the object's target, or another object, decides is not asked for: no write
/// waits for that.
pub(super) fn deniable(kind: &'static Kind, policy: &Policy) -> Vec<(&'static str, Test)> {
    if !rules_of(kind).any(|rule| policy.may_deny(rule, kind)) {
        return vec![("is-never-denied", Test::Constant(false))];
    }
    let (name, found) = match kind.relevance {
        Relevance::Always => ("may-be-denied", Test::Constant(true)),
        Relevance::Metrics => ("names-a-device", signals::name_device(kind, policy)),
        Relevance::Triggers => ("reads-a-metric", signals::read_metrics()),
        Relevance::Machines => (
            "names-accelerators",
            node_pools::names_accelerators(&policy.catalog().instances),
        ),
        Relevance::Accelerator(of) => {
            let engines = policy.catalog().engines();
            let asks = |name: &Value| pods::names_accelerator(name, engines);
            (
                "asks-for-accelerators",
                pods::ask_for_accelerators(of, asks),
            )
        }
    };
    let changed = match kind.relevance {
        Relevance::Machines => node_pools::may_evict(kind, policy),
        Relevance::Accelerator(of) => {
            Test::any([Test::is_create(), pods::run_differently(kind, of)])
        }
        _ => Test::Constant(true),
    };
    // A controller would write its child again for ever; what it is made from is where to say no.
    // Whoever forges such a reference is still denied while we answer.
    let mut children = vec![controlled_by(rows_making(kind))];
    if kind == &kinds::HORIZONTAL_POD_AUTOSCALER {
        children.push(signals::made_by_keda());
    }
    let own = Test::all([Test::any(children).not(), changed]);
    vec![(name, found), ("may-be-denied", own)]
}

/// The controllers that make objects of a kind.
fn rows_making(kind: &Kind) -> impl Iterator<Item = &'static Controller> {
    Controllers::builtin()
        .controllers
        .iter()
        .filter(move |row| row.children.iter().any(|child| child == kind.kind))
}

/// Whether an object's controller made it from an object that our rules judge, by the reference
/// alone: the children that are left alone without a closer look.
fn child_of_judged(kind: &Kind) -> Test {
    controlled_by(rows_making(kind).filter(|row| {
        row.judged
            && row.label.is_none()
            && row.suffixes.is_empty()
            && !row.same_name
            && !row.pod_owner
    }))
}

/// Whether an object's controller is of a kind that one of these rows names, and the object called
/// as that controller calls it.
fn controlled_by(rows: impl Iterator<Item = &'static Controller>) -> Test {
    // Rows that ask for the same name and label are one test.
    let mut kinds: BTreeMap<(Vec<&str>, Option<&str>), Vec<&ParentKind>> = BTreeMap::new();
    let mut pods = false;
    for row in rows {
        let suffixes = if row.same_name {
            vec![""]
        } else {
            row.suffixes.iter().map(String::as_str).collect()
        };
        let shape = (suffixes, row.label.as_deref());
        kinds.entry(shape).or_default().push(&row.parent);
        pods |= row.pod_owner;
    }
    if kinds.is_empty() {
        return Test::Constant(false);
    }
    owned(|owner| {
        let children = kinds.iter().map(|((suffixes, label), parents)| {
            let parents = parents.iter().map(|parent| (&*parent.group, &*parent.kind));
            Test::all([
                owner.is_of(parents),
                owner.gives_name(suffixes),
                label.map_or(Test::Constant(true), |label| owner.gives_label(label)),
            ])
        });
        let pod = pods.then(|| owner.is_of([("", "Pod")]));
        Test::any(children.chain(pod))
    })
}

/// A controller among the owners of an object.
pub(super) struct Owner {
    /// Its version and its kind, with a space in between.
    kind: Value,
    /// Its name, a text.
    pub(super) name: Value,
}

impl Owner {
    /// Whether it is of one of some kinds, by group and kind.
    pub(super) fn is_of<'k>(&self, kinds: impl IntoIterator<Item = (&'k str, &'k str)>) -> Test {
        let kinds = kinds.into_iter().map(|(group, kind)| match group {
            "" => format!("[^/ ]+ {kind}"),
            group => format!("{}/[^/ ]+ {kind}", name_pattern(group)),
        });
        let pattern = format!("^({})$", kinds.collect::<Vec<_>>().join("|"));
        self.kind.has_match(&pattern)
    }

    /// Whether the object has its name, with one of some suffixes; with none of them, whatever its name.
    fn gives_name(&self, suffixes: &[&str]) -> Test {
        if suffixes.is_empty() {
            return Test::Constant(true);
        }
        Value::object().has(&["metadata", "name"], |name| {
            name.is_with_suffix(&self.name, suffixes)
        })
    }

    /// Whether a label of the object has its name.
    fn gives_label(&self, label: &str) -> Test {
        Value::object().has(&["metadata", "labels"], |labels| {
            labels.has_key(&Value::text(label), |value| value.is(&self.name))
        })
    }
}

/// Whether an object has a controller that passes a test. Among too many owners nobody looks for it, nor
/// where it is called by what no object can be.
pub(super) fn owned(test: impl FnOnce(&Owner) -> Test) -> Test {
    Value::object().has(&["metadata", "ownerReferences"], |owners| {
        owners.any_of_few(OWNERS, "o", |owner| {
            owner.has(&["controller"], |controller| {
                let member = |key| owner.member(key);
                let texts = Test::all_texts(["apiVersion", "kind", "name"], "k", |key| {
                    owner.has_key(key, |text| text.is_text_within(OWNER_TEXT))
                });
                let (version, name) = (member("apiVersion"), member("name"));
                let found = Test::of(&version.joined(&member("kind")), "q", |kind| {
                    test(&Owner {
                        kind: kind.clone(),
                        name,
                    })
                });
                Test::all([controller.is_true(), texts, found])
            })
        })
    })
}
