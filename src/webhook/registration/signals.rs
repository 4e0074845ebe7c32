//! What conditions ask of autoscalers.

use crate::{
    cel::{Test, Value},
    policy::Policy,
    rules::{
        Kind,
        kinds::{POD_AUTOSCALER, SCALED_OBJECT},
        signals::opaque_signal::OPAQUE_SIGNAL,
    },
    signal::vocabulary,
    subject::{hpa::KEDA_SELECTOR, scaled_object},
};

use super::conditions::{MOST, Owner, owned};

/// The most metrics of an HPA or its like that are looked through: each may have several names.
const MOST_METRICS: usize = 32;

/// What is printable in ASCII: what looks like a letter of a known word, and is another, is none of it.
const PRINTABLE: &str = "^[ -~]*$";

/// The members of an HPA's metric that hold a metric with a name.
const METRICS: [&str; 3] = ["pods", "object", "external"];

/// The members of an HPA's metric that hold the name of a resource.
const RESOURCES: [&str; 2] = ["resource", "containerResource"];

/// Whether an autoscaler names a metric that a rule may deny by its name: one that names a device, and,
/// where a policy denies what cannot be told, any metric that is not the CPU or memory of the host.
pub(super) fn name_device(kind: &Kind, policy: &Policy) -> Test {
    let any_name = policy.may_deny(&OPAQUE_SIGNAL, kind);
    let words = vocabulary::pattern(policy.catalog().metrics());
    let speaks = |name: &Value| {
        if any_name {
            name.is_among(["cpu", "memory"]).not()
        } else {
            Test::any([name.matches(PRINTABLE).not(), name.matches(&words)])
        }
    };
    if kind == &POD_AUTOSCALER {
        return Value::object().has(&["spec", "metricsSources"], |metrics| {
            metrics.any_element(MOST_METRICS, "m", |metric| {
                metric.has(&["targetMetric"], speaks)
            })
        });
    }
    Value::object().has(&["spec", "metrics"], |metrics| {
        metrics.any_element(MOST_METRICS, "m", |metric| {
            let metrics = METRICS.map(|member| metric.get(&[member, "metric", "name"]));
            let resources = RESOURCES.map(|member| metric.get(&[member, "name"]));
            Test::any_value(metrics.into_iter().chain(resources), "n", |name| {
                Test::all([name.is_not_null(), speaks(name)])
            })
        })
    })
}

/// Whether a ScaledObject or ScaledJob has a trigger whose metadata say what it reads: a query, a URL, or a
/// metric's name. The others count work, or are the CPU and memory of the host.
pub(super) fn read_metrics() -> Test {
    Value::object().has(&["spec", "triggers"], |triggers| {
        triggers.any_element(MOST, "t", |trigger| {
            trigger.has(&["type"], |kind| {
                let without = kind.is_among(scaled_object::WITHOUT_METRIC.iter().copied());
                Test::any([without, kind.starts_with(scaled_object::REDIS)]).not()
            })
        })
    })
}

/// Whether an HPA has the shape that KEDA gives it: besides cpu and memory, which no rule denies
/// there, every metric is one that only the ScaledObject it belongs to can answer
/// ([`crate::subject::hpa`] looks closer).
pub(super) fn made_by_keda() -> Test {
    owned(|owner| {
        let other = Value::object().has(&["spec", "metrics"], |metrics| {
            metrics.any_element(MOST_METRICS, "m", |metric| {
                Test::any([is_host(metric), is_answered(metric, owner)]).not()
            })
        });
        Test::all([
            owner.is_of([(SCALED_OBJECT.group, SCALED_OBJECT.kind)]),
            other.not(),
        ])
    })
}

/// Whether a metric is the CPU or memory of the host.
fn is_host(metric: &Value) -> Test {
    let names = RESOURCES.map(|member| metric.get(&[member, "name"]));
    Test::any_value(names, "n", |name| name.is_among(["cpu", "memory"]))
}

/// Whether a metric is one that KEDA answers from the ScaledObject that owns the HPA.
fn is_answered(metric: &Value, owner: &Owner) -> Test {
    let labels = &["external", "metric", "selector", "matchLabels"];
    metric.has(labels, |labels| {
        labels.has_key(&Value::text(KEDA_SELECTOR), |value| value.is(&owner.name))
    })
}
