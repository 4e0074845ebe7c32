//! How often the changes of a manager are undone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::Side;

/// How often changes by one manager are undone within [`WINDOW`]. What it changes then is left and
/// reported.
pub(super) const BRAKE: usize = 3;

/// See [`BRAKE`].
pub(super) const WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// How many changes that were undone a configuration lists.
const LISTED: usize = 32;

/// Whose changes to a configuration were undone lately, and when.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undone(BTreeSet<(Timestamp, String)>);

impl Undone {
    /// Until when the changes of a manager are left, where they were undone too often.
    pub(super) fn left_until(&self, manager: &str) -> Option<Timestamp> {
        let of_manager = self.0.iter().rev().filter(|(_, other)| other == manager);
        let (first, _) = of_manager.take(BRAKE).nth(BRAKE - 1)?;
        Some(*first + WINDOW)
    }

    /// Adds that the change of a manager is undone.
    pub(super) fn add(&mut self, manager: &str, now: Timestamp) {
        self.0.insert((now, manager.to_owned()));
    }

    /// The text for the annotation of the configuration.
    pub(super) fn text(&self) -> String {
        let latest: Vec<_> = self.0.iter().rev().take(LISTED).collect();
        serde_json::json!(latest).to_string()
    }
}

/// What this process undid. Whoever replaces a configuration also replaces what it lists.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<Side, BTreeSet<(Timestamp, String)>>);

impl Memory {
    /// What this process undid lately, and what the annotation of the configuration lists.
    pub(super) fn undone(&mut self, side: Side, listed: Option<&str>, now: Timestamp) -> Undone {
        let own = self.0.entry(side).or_default();
        own.retain(|(at, _)| now.duration_since(*at).abs() < WINDOW);
        let listed: Vec<(Timestamp, String)> = listed
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        // Nothing was undone in the future, whoever wrote that.
        let is_recent = |at: Timestamp| at <= now && now.duration_since(at) < WINDOW;
        let listed = listed.into_iter().filter(|(at, _)| is_recent(*at));
        Undone(listed.chain(own.iter().cloned()).collect())
    }

    /// Notes that the change of a manager was undone.
    pub(super) fn note(&mut self, side: Side, manager: &str, now: Timestamp) {
        let own = self.0.entry(side).or_default();
        own.insert((now, manager.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_left_after_three_times_whatever_the_annotation_says() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        let mut memory = Memory::default();
        for seconds in [0, 10, 20] {
            let undone = memory.undone(Side::Validating, None, at(seconds));
            assert_eq!(undone.left_until("x"), None);
            memory.note(Side::Validating, "x", at(seconds));
        }
        let many: Vec<_> = (0..1000).map(|_| (at(29), "y")).collect();
        for listed in [
            None,
            Some("[]"),
            Some("{"),
            Some(&*serde_json::json!(many).to_string()),
        ] {
            let undone = memory.undone(Side::Validating, listed, at(30));
            assert_eq!(undone.left_until("x"), Some(at(600)), "{listed:?}");
            assert_eq!(undone.left_until("z"), None);
        }
        // The other configuration, and later.
        let undone = memory.undone(Side::Mutating, None, at(30));
        assert_eq!(undone.left_until("x"), None);
        let undone = memory.undone(Side::Validating, None, at(600));
        assert_eq!(undone.left_until("x"), None);
    }

    #[test]
    fn what_other_replicas_undid_counts_unless_it_is_in_the_future() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let listed = |seconds: [i64; 3]| {
            let times = seconds.map(|seconds| (now + SignedDuration::from_secs(seconds), "x"));
            serde_json::json!(times).to_string()
        };
        for (seconds, left) in [
            ([-3, -2, -1], true),
            ([-3, -2, 1], false),
            ([300, 301, 302], false),
            ([-601, -2, -1], false),
        ] {
            let mut memory = Memory::default();
            let undone = memory.undone(Side::Mutating, Some(&listed(seconds)), now);
            assert_eq!(undone.left_until("x").is_some(), left, "{seconds:?}");
        }
        // A time of this process that the annotation lists too counts once.
        let mut memory = Memory::default();
        let mut undone = Undone::default();
        undone.add("x", now);
        memory.note(Side::Mutating, "x", now);
        let again = memory.undone(Side::Mutating, Some(&undone.text()), now);
        assert_eq!(again, undone);
    }
}
