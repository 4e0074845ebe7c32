//! Log lines about what anybody can cause: one a second at most, which says how many there were.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

/// The least time between two lines of one kind.
const PERIOD: Duration = Duration::from_secs(1);

/// Bounds the log lines about one kind of event, so that a flood of events is no flood of the log.
///
/// The first event is told at once. What comes within [`PERIOD`] after a line is counted, and told by the
/// next line: when the period is over, or by the next event after it.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Kind>);

#[derive(Debug)]
struct Kind {
    /// What has happened, as "refused requests".
    what: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last line was written.
    last: Option<Instant>,
    /// The events since then that no line tells of, by label.
    untold: BTreeMap<&'static str, u64>,
    /// Whether somebody waits for the end of the period.
    scheduled: bool,
}

impl State {
    /// Returns the untold events as "400: 12, 408: 3", and forgets them.
    fn take(&mut self) -> String {
        let mut text = String::new();
        for (label, count) in mem::take(&mut self.untold) {
            let between = if text.is_empty() { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{between}{label}: {count}");
        }
        text
    }
}

impl Lines {
    /// Creates the lines about `what`, as "refused requests".
    pub fn new(what: &'static str) -> Self {
        Self(Arc::new(Kind {
            what,
            state: Mutex::default(),
        }))
    }

    /// Counts an event under a label of a fixed set. Where a line may be written, `write` writes it; it is
    /// given the events since the last line that no line tells of, by label, which may be none.
    pub fn event(&self, label: &'static str, write: impl FnOnce(&str)) {
        let mut state = self.0.lock();
        let now = Instant::now();
        let due = state
            .last
            .is_none_or(|last| now.duration_since(last) >= PERIOD);
        if due {
            state.last = Some(now);
            let before = state.take();
            drop(state);
            write(&before);
            return;
        }
        *state.untold.entry(label).or_default() += 1;
        if state.scheduled {
            return;
        }
        // Without a runtime the next event tells of this one.
        if let Ok(runtime) = Handle::try_current() {
            state.scheduled = true;
            let kind = Arc::clone(&self.0);
            runtime.spawn(async move {
                while let Some(left) = kind.tell() {
                    tokio::time::sleep(left).await;
                }
            });
        }
    }
}

impl Kind {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one line about what no line has told of, unless the period is not over: then it returns the
    /// time that is left.
    fn tell(&self) -> Option<Duration> {
        let mut state = self.lock();
        let now = Instant::now();
        // An event after the end of the period may have told of them.
        if !state.untold.is_empty() {
            let passed = state.last.map_or(PERIOD, |last| now.duration_since(last));
            if passed < PERIOD {
                return Some(PERIOD.saturating_sub(passed));
            }
            state.last = Some(now);
        }
        state.scheduled = false;
        let before = state.take();
        drop(state);
        if !before.is_empty() {
            tracing::warn!(since_last_line = before, "more {}", self.what);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_line_tells_what_has_happened_since_the_last_one() {
        let lines = Lines::new("refused requests");
        let told = RefCell::new(Vec::new());
        let event = |label| lines.event(label, |before| told.borrow_mut().push(before.to_owned()));
        event("400");
        for _ in 0..3 {
            event("408");
        }
        event("400");
        // As if a second had passed, or had not on a machine where this took longer.
        lines.0.lock().last = None;
        event("413");
        let told = told.into_inner();
        let last = told.last().unwrap();
        if told.len() == 2 {
            assert_eq!(last, "400: 1, 408: 3");
        }
        assert_eq!(told[0], "");
        assert!(lines.0.lock().untold.is_empty());
    }

    #[test]
    fn a_flood_is_told_once_a_second() {
        let lines = Lines::new("refused requests");
        let (began, mut told) = (Instant::now(), 0_u64);
        for _ in 0..200_000 {
            lines.event("400", |_| told += 1);
        }
        assert!(told >= 1);
        assert!(told <= began.elapsed().as_secs() + 1, "{told} lines");
    }

    #[tokio::test]
    async fn what_is_not_told_when_it_happens_is_told_when_the_second_is_over() {
        let lines = Lines::new("refused requests");
        for _ in 0..4 {
            lines.event("400", |_| {});
        }
        let told = async {
            while !lines.0.lock().untold.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .unwrap();
        assert!(!lines.0.lock().scheduled);
    }
}
