//! The work that a review may do for one object, counted in steps.
//!
//! Whoever may write an object decides how much there is to read in it, and the API server waits
//! meanwhile. What costs more than its bytes is therefore counted: bytes scanned, words classified,
//! patterns compiled and tried, values compared. An object that exceeds the budget is found by the
//! rule `object-too-complex`; nothing in it becomes doubtful for that.

use std::cell::{Cell, RefCell};

use crate::finding::{FieldPath, Segment};

/// The work that was done for one object.
#[derive(Debug, Default)]
pub struct Budget {
    spent: Cell<u64>,
    fields: RefCell<Vec<(FieldPath, u64)>>,
}

impl Budget {
    /// The steps that one object may cost: more than fifty times what the dearest fixture or example of the
    /// project takes (counted by a test), and a hundred times what the dearest of some 380 public manifests does.
    pub const STEPS: u64 = 10_000_000;

    /// The least that a field must have cost to be named.
    const WORTH_NAMING: u64 = Self::STEPS / 100_000;

    /// Counts steps.
    #[inline]
    pub fn spend(&self, steps: usize) {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        self.spent.set(self.spent.get().saturating_add(steps));
    }

    /// The steps so far. Work that was begun is finished, so that they may exceed the budget.
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    /// Returns whether the object has cost more than it may. What is not begun yet is left undone then.
    pub fn is_spent(&self) -> bool {
        self.spent.get() > Self::STEPS
    }

    /// Does work for one field, and takes down what it cost where that is worth naming.
    pub fn on<R>(&self, field: impl FnOnce() -> FieldPath, work: impl FnOnce() -> R) -> R {
        let before = self.spent.get();
        let done = work();
        let cost = self.spent.get() - before;
        if cost >= Self::WORTH_NAMING {
            self.fields.borrow_mut().push((field(), cost));
        }
        done
    }

    /// The innermost field below which most of the work was done, and its steps: one long query is
    /// named itself, thousands of short ones by the list that they stand in.
    pub fn dearest(&self) -> (FieldPath, u64) {
        let fields = self.fields.borrow();
        let mut below: Vec<(&[Segment], u64)> = fields
            .iter()
            .map(|(path, cost)| (path.segments(), *cost))
            .collect();
        let mut path = FieldPath::new();
        let mut steps = self.spent();
        loop {
            // The step that has more than half of the cost is left over when costs of different steps cancel out.
            let (mut most, mut lead) = (None, 0);
            for (segments, cost) in &below {
                let step = segments.first();
                if step == most {
                    lead += cost;
                } else if *cost > lead {
                    (most, lead) = (step, cost - lead);
                } else {
                    lead -= cost;
                }
            }
            let Some(step) = most else {
                return (path, steps);
            };
            below.retain(|(segments, _)| segments.first() == most);
            let cost = below.iter().map(|(_, cost)| cost).sum::<u64>();
            if cost <= steps / 2 {
                return (path, steps);
            }
            steps = cost;
            path = match step {
                Segment::Key(key) => path.key(key.clone()),
                Segment::Index(index) => path.index(*index),
            };
            for (segments, _) in &mut below {
                *segments = segments.get(1..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
#[path = "budget/objects.rs"]
mod objects;

#[cfg(test)]
mod tests {
    use super::*;

    fn query(index: usize) -> FieldPath {
        FieldPath::of(&["spec", "triggers"])
            .index(index)
            .keys(&["metadata", "query"])
    }

    #[test]
    fn the_field_that_cost_most_is_named_as_exactly_as_it_can_be() {
        let budget = Budget::default();
        assert_eq!(budget.dearest(), (FieldPath::new(), 0));
        for index in 0..100 {
            budget.on(|| query(index), || budget.spend(1_000));
        }
        let list = FieldPath::of(&["spec", "triggers"]);
        assert_eq!(budget.dearest(), (list, 100_000));
        budget.on(|| query(7), || budget.spend(200_000));
        assert_eq!(budget.dearest(), (query(7), 201_000));
        assert_eq!(budget.spent(), 300_000);
    }

    #[test]
    fn the_budget_holds_what_it_says() {
        let budget = Budget::default();
        budget.spend(usize::try_from(Budget::STEPS).unwrap());
        assert!(!budget.is_spent());
        budget.spend(1);
        assert!(budget.is_spent());
        budget.spend(usize::MAX);
        budget.spend(usize::MAX);
        assert!(budget.is_spent());
    }
}
