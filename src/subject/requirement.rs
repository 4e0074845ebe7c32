//! Karpenter's algebra of node requirements.
//!
//! Requirements on one key, and template labels, are intersected into one set of allowed values
//! (`Requirements.Add`, `Requirement.Intersection`). Whether a machine *without* the label passes is
//! then told from the shape of that one set, not from each requirement (`Requirements.Intersects`,
//! which asks for `Requirement.Operator`): `Exists` and `NotIn [x]` together behave as `NotIn`, which
//! such a machine passes, and so do `In [a]` and `In [b]`, of which nothing is left. Instance types
//! carry every well-known label of their cloud, with the operator `DoesNotExist` where it has no
//! value; a label that they do not carry at all is not compared.
//!
//! All of it as in karpenter.sh `pkg/scheduling/requirement.go` and `requirements.go`, and
//! `compatible` in `pkg/controllers/provisioning/scheduling/nodeclaim.go`, v1.14.1. The bounds are
//! kept inclusive as there; `Gt` of the greatest integer matches nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::budget::Budget;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values; no label passes.
    NotIn,
    /// Any value.
    Exists,
    /// No label.
    DoesNotExist,
    /// A greater integer.
    Gt,
    /// A smaller integer.
    Lt,
    /// A greater integer or the same (Karpenter v1.9.0).
    Gte,
    /// A smaller integer or the same (Karpenter v1.9.0).
    Lte,
}

impl Operator {
    /// As a NodePool spells it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            "Gte" => Self::Gte,
            "Lte" => Self::Lte,
            _ => return None,
        })
    }

    /// As a NodePool spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
            Self::Gt => "Gt",
            Self::Lt => "Lt",
            Self::Gte => "Gte",
            Self::Lte => "Lte",
        }
    }
}

/// The values that a label may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Whether `values` are those left out, of all there are.
    all_but: bool,
    values: BTreeSet<String>,
    /// Only integers from this one on.
    from: Option<i64>,
    /// Only integers up to this one.
    to: Option<i64>,
}

impl Allowed {
    /// What one requirement allows. `None` for a comparison with something that is no integer,
    /// which the CRD refuses.
    pub fn new(operator: Operator, values: &[String]) -> Option<Self> {
        let set = |all_but, values: &[String]| Self {
            all_but,
            values: values.iter().cloned().collect(),
            from: None,
            to: None,
        };
        let number = || values.first()?.parse::<i64>().ok();
        let from = |from| Self {
            from: Some(from),
            ..set(true, &[])
        };
        let to = |to| Self {
            to: Some(to),
            ..set(true, &[])
        };
        Some(match operator {
            Operator::In => set(false, values),
            Operator::NotIn => set(true, values),
            Operator::Exists => set(true, &[]),
            Operator::DoesNotExist => set(false, &[]),
            Operator::Gt => number()?
                .checked_add(1)
                .map_or_else(|| set(false, &[]), from),
            Operator::Gte => from(number()?),
            // The CRD refuses negative numbers.
            Operator::Lt => to(number()?.saturating_sub(1)),
            Operator::Lte => to(number()?),
        })
    }

    /// Steps that it takes to find what both allow.
    pub fn steps(&self, other: &Self) -> usize {
        let bounded = [self.from, self.to, other.from, other.to]
            .iter()
            .any(Option::is_some);
        let mine = if bounded { self.values.len() } else { 0 };
        64 + 32 * (mine + other.values.len())
    }

    /// What both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let from = self.from.max(other.from);
        let to = match (self.to, other.to) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            return Self {
                all_but: false,
                values: BTreeSet::new(),
                from: None,
                to: None,
            };
        }
        let all_but = self.all_but && other.all_but;
        let (mine, others) = (self.values, other.values);
        // Each takes time in the shorter list, or in that of the second, which is read once.
        let mut values = match (self.all_but, other.all_but) {
            (true, true) => {
                let (mut more, less) = if mine.len() < others.len() {
                    (others, mine)
                } else {
                    (mine, others)
                };
                more.extend(less);
                more
            }
            (true, false) => others.into_iter().filter(|v| !mine.contains(v)).collect(),
            (false, true) => {
                let mut mine = mine;
                for value in &others {
                    mine.remove(value);
                }
                mine
            }
            (false, false) => {
                let (more, less) = if mine.len() < others.len() {
                    (others, mine)
                } else {
                    (mine, others)
                };
                less.into_iter().filter(|v| more.contains(v)).collect()
            }
        };
        if from.is_some() || to.is_some() {
            values.retain(|value| within(value, from, to));
        }
        let (from, to) = if all_but { (from, to) } else { (None, None) };
        Self {
            all_but,
            values,
            from,
            to,
        }
    }

    /// Whether a label with that value passes.
    pub fn has(&self, value: &str) -> bool {
        self.values.contains(value) != self.all_but && within(value, self.from, self.to)
    }

    /// Whether a machine without the label passes.
    pub fn has_absence(&self) -> bool {
        if self.all_but {
            !self.values.is_empty()
        } else {
            self.values.is_empty()
        }
    }

    /// Whether some label passes, as far as the shape tells.
    pub fn has_some(&self) -> bool {
        self.all_but || !self.values.is_empty()
    }

    /// The values, where only listed ones pass.
    pub fn listed(&self) -> Option<&BTreeSet<String>> {
        (!self.all_but).then_some(&self.values)
    }

    /// Whether some integer of at least 1 passes.
    pub fn has_positive(&self) -> bool {
        match self.listed() {
            Some(values) => values
                .iter()
                .any(|value| value.parse::<i64>().is_ok_and(|number| number > 0)),
            None => self.to.is_none_or(|to| to > 0),
        }
    }
}

fn within(value: &str, from: Option<i64>, to: Option<i64>) -> bool {
    if from.is_none() && to.is_none() {
        return true;
    }
    value.parse::<i64>().is_ok_and(|number| {
        from.is_none_or(|from| number >= from) && to.is_none_or(|to| number <= to)
    })
}

/// What is allowed of every label that is spoken of.
#[derive(Clone, Debug, Default)]
pub struct Requirements(BTreeMap<String, Allowed>);

impl Requirements {
    /// Adds what one more requirement allows.
    pub fn add(&mut self, key: &str, allowed: Allowed, budget: &Budget) {
        let allowed = match self.0.remove(key) {
            Some(before) => {
                budget.spend(before.steps(&allowed));
                before.and(allowed)
            }
            None => allowed,
        };
        self.0.insert(key.to_owned(), allowed);
    }

    /// What is allowed of a label; none where nothing is said of it.
    pub fn get(&self, key: &str) -> Option<&Allowed> {
        self.0.get(key)
    }

    /// Every label that is spoken of.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Allowed)> {
        self.0.iter().map(|(key, allowed)| (key.as_str(), allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(parts: &[(Operator, &[&str])]) -> Allowed {
        parts
            .iter()
            .map(|(operator, values)| {
                let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
                Allowed::new(*operator, &values).unwrap()
            })
            .reduce(Allowed::and)
            .unwrap()
    }

    #[test]
    fn one_requirement_says_what_the_label_may_be_and_whether_it_may_be_absent() {
        let listed = allowed(&[(Operator::In, &["a", "b"])]);
        assert!(listed.has("a") && !listed.has("c") && !listed.has_absence());
        let but = allowed(&[(Operator::NotIn, &["a"])]);
        assert!(!but.has("a") && but.has("c") && but.has_absence());
        let exists = allowed(&[(Operator::Exists, &[])]);
        assert!(exists.has("a") && !exists.has_absence());
        let none = allowed(&[(Operator::DoesNotExist, &[])]);
        assert!(!none.has("a") && none.has_absence());
        let below = allowed(&[(Operator::Lt, &["9"])]);
        assert!(below.has("8") && !below.has("9") && !below.has("x") && !below.has_absence());
        let from = allowed(&[(Operator::Gte, &["2"]), (Operator::Lte, &["4"])]);
        assert!(!from.has("1") && from.has("2") && from.has("4") && !from.has("5"));
    }

    #[test]
    fn requirements_on_one_key_intersect() {
        let both = allowed(&[(Operator::In, &["1", "2", "x"]), (Operator::Gt, &["1"])]);
        assert_eq!(both.listed().unwrap().iter().collect::<Vec<_>>(), ["2"]);
        let minus = allowed(&[(Operator::In, &["g", "m"]), (Operator::NotIn, &["m"])]);
        assert!(minus.has("g") && !minus.has("m"));
    }

    #[test]
    fn absence_follows_the_shape_of_what_is_left_as_karpenter_has_it() {
        assert!(allowed(&[(Operator::Exists, &[]), (Operator::NotIn, &["8"])]).has_absence());
        assert!(allowed(&[(Operator::In, &["a"]), (Operator::In, &["b"])]).has_absence());
        assert!(allowed(&[(Operator::Gt, &["4"]), (Operator::Lt, &["4"])]).has_absence());
        // No integer lies between: the bounds are inclusive there since v1.9.0.
        assert!(allowed(&[(Operator::Gt, &["4"]), (Operator::Lt, &["5"])]).has_absence());
        assert!(!allowed(&[(Operator::Gt, &["4"]), (Operator::Lt, &["6"])]).has_absence());
        // What lies outside the bounds does not count as left out.
        assert!(!allowed(&[(Operator::Gt, &["4"]), (Operator::NotIn, &["2"])]).has_absence());
    }

    #[test]
    fn a_comparison_with_no_number_says_nothing() {
        assert_eq!(Allowed::new(Operator::Gt, &["many".to_owned()]), None);
        assert_eq!(Allowed::new(Operator::Lt, &[]), None);
    }

    #[test]
    fn the_greatest_integer_is_a_bound_like_any_other() {
        let greatest = i64::MAX.to_string();
        assert!(allowed(&[(Operator::Lte, &[&greatest])]).has(&greatest));
        assert!(allowed(&[(Operator::Gte, &[&greatest])]).has(&greatest));
        let none = allowed(&[(Operator::Gt, &[&greatest])]);
        assert!(!none.has_some() && none.has_absence());
    }
}
