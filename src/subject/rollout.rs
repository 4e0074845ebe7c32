//! Rolling updates: how many pods, or groups of them, one takes away and adds at once.

use serde_json::Value;

use super::at;
use crate::finding::FieldPath;

/// A rolling update, its bounds resolved for the number of replicas as the Deployment controller
/// does (k8s.io/kubectl, deployment `ResolveFenceposts`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rolling {
    /// Replicas that may be missing at once.
    pub unavailable: u64,
    /// Replicas that may be there beyond those that are wanted.
    pub surge: u64,
    /// Where `maxUnavailable` stands, else the member that holds the strategy.
    pub path: FieldPath,
}

impl Rolling {
    /// A Deployment's; `None` for `Recreate`.
    pub fn of_deployment(object: &Value, replicas: u64) -> Option<Self> {
        let strategy = FieldPath::of(&["spec", "strategy"]);
        if at(object, &["spec", "strategy", "type"]) == Some(&Value::from("Recreate")) {
            return None;
        }
        let silent = (Value::from("25%"), Value::from("25%"));
        let bounds = strategy.clone().key("rollingUpdate");
        let rolling = Self::of(object, &bounds, &silent, replicas);
        Some(if rolling.path == bounds {
            Self {
                path: strategy,
                ..rolling
            }
        } else {
            rolling
        })
    }

    /// What the member at `bounds` says of `maxUnavailable` and `maxSurge`; `silent` is what their
    /// absence means.
    pub fn of(object: &Value, bounds: &FieldPath, silent: &(Value, Value), replicas: u64) -> Self {
        let bound = |key: &str, silent: &Value, up: bool| {
            let path = bounds.clone().key(key);
            let value = path.lookup(object).filter(|value| !value.is_null());
            int_or_percent(value.unwrap_or(silent), replicas, up).unwrap_or(0)
        };
        let surge = bound("maxSurge", &silent.1, true);
        let mut unavailable = bound("maxUnavailable", &silent.0, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let written = bounds.clone().key("maxUnavailable");
        let path = if written.lookup(object).is_some() {
            written
        } else {
            bounds.clone()
        };
        Self {
            unavailable,
            surge,
            path,
        }
    }
}

/// An `IntOrString` as a number of replicas (k8s.io/apimachinery `intstr`).
fn int_or_percent(value: &Value, of: u64, up: bool) -> Option<u64> {
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    let text = value.as_str()?;
    let Some(percent) = text.strip_suffix('%') else {
        return text.parse().ok();
    };
    let scaled = percent.parse::<u64>().ok()?.checked_mul(of)?;
    Some(if up {
        scaled.div_ceil(100)
    } else {
        scaled / 100
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bounds_are_resolved_as_the_controller_does() {
        let bounds = |rolling: Value, replicas: u64| {
            let object = json!({"spec": {"strategy": {"rollingUpdate": rolling}}});
            Rolling::of_deployment(&object, replicas)
                .map(|rolling| (rolling.unavailable, rolling.surge))
        };
        assert_eq!(bounds(json!({}), 8), Some((2, 2)));
        assert_eq!(bounds(json!({}), 2), Some((0, 1)));
        assert_eq!(
            bounds(json!({"maxUnavailable": 0, "maxSurge": 0}), 8),
            Some((1, 0))
        );
        assert_eq!(
            bounds(json!({"maxUnavailable": "0%", "maxSurge": "100%"}), 8),
            Some((0, 8))
        );
        assert_eq!(
            bounds(
                json!({"maxUnavailable": u64::MAX, "maxSurge": "99999999999999999999%"}),
                8
            ),
            Some((u64::MAX, 0))
        );
        assert!(
            Rolling::of_deployment(&json!({"spec": {"strategy": {"type": "Recreate"}}}), 8)
                .is_none()
        );
    }

    #[test]
    fn the_path_is_where_it_is_written() {
        let path = |object: &Value| Rolling::of_deployment(object, 4).unwrap().path.to_string();
        assert_eq!(path(&json!({})), "spec.strategy");
        assert_eq!(
            path(&json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}})),
            "spec.strategy.rollingUpdate.maxUnavailable"
        );
    }
}
