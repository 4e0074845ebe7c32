//! What a replica does next about the authority that all replicas share: pure, from what it sees.
//!
//! The authority lies in a Secret: who signs now, who signs next while it is being replaced, and the
//! bundle that clients are to trust. There is no leader. Every replica looks from time to time, does one
//! step, and looks again; each write of the Secret is conditional on what was seen, and so is each write
//! of the webhook configurations. Nothing else is remembered, so a crash at any step is mended by the
//! next look of any replica.
//!
//! The one rule behind all steps: *a leaf is served only when its authority has been seen in every entry
//! of the webhook configurations* (or where there are none yet), and an authority leaves the bundle only
//! when no leaf of it can hold any more. Time that has to pass between two steps is measured by the
//! replica's own monotonic clock, from its own first look: a wall clock that jumps shortens nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::bundle::Anchor;

/// What the Secret says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Who signs leaves.
    pub signer: Anchor,
    /// Who will, once it is trusted everywhere.
    pub next: Option<Anchor>,
    /// Who is to be trusted: these two, and who signed before.
    pub bundle: BTreeSet<Anchor>,
}

/// What was seen of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// There is none, or an empty one.
    Absent,
    /// It is not ours, not readable, or what it holds is broken. It is left as it is.
    Unusable,
    /// It holds this.
    Holds(Stored),
}

/// What was seen of the webhook configurations: the authorities that each of our entries trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// One set for each entry.
    pub entries: Vec<BTreeSet<Anchor>>,
}

impl Published {
    /// Whether every entry trusts an authority, and there is one.
    pub fn trusts(&self, anchor: &Anchor) -> bool {
        !self.entries.is_empty() && self.entries.iter().all(|entry| entry.contains(anchor))
    }

    /// All that any entry trusts.
    fn all(&self) -> BTreeSet<Anchor> {
        self.entries.iter().flatten().cloned().collect()
    }
}

/// The leaf that a replica serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Who signed it.
    pub issuer: Anchor,
    /// When it begins to hold.
    pub not_before: SystemTime,
    /// When it is to be replaced.
    pub renew_at: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Since when things have been so, by looks that saw them without a break.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    now: Duration,
    trusted: BTreeMap<Anchor, Duration>,
    signing: Option<(Anchor, Duration)>,
}

impl Memory {
    /// A look, at this time of a clock that never jumps. After a pause longer than `gap` everything
    /// counts from now: much may have come and gone in between.
    pub fn saw(&mut self, store: &Store, published: &Published, now: Duration, gap: Duration) {
        if now.saturating_sub(self.now) > gap {
            *self = Self::default();
        }
        self.now = now;
        self.trusted.retain(|anchor, _| published.trusts(anchor));
        for anchor in published.all() {
            if published.trusts(&anchor) {
                self.trusted.entry(anchor).or_insert(now);
            }
        }
        match store {
            Store::Holds(stored) => {
                if self.signing.as_ref().map(|(signer, _)| signer) != Some(&stored.signer) {
                    self.signing = Some((stored.signer.clone(), now));
                }
            }
            Store::Absent | Store::Unusable => self.signing = None,
        }
    }

    /// For how long every entry has trusted it.
    fn trusted_for(&self, anchor: &Anchor) -> Option<Duration> {
        self.trusted
            .get(anchor)
            .map(|since| self.now.saturating_sub(*since))
    }

    /// For how long the signer has been the signer and trusted everywhere.
    fn settled_for(&self, signer: &Anchor) -> Option<Duration> {
        let (seen, since) = self.signing.as_ref()?;
        let signing = (seen == signer).then(|| self.now.saturating_sub(*since))?;
        Some(self.trusted_for(signer)?.min(signing))
    }
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// From when every entry trusts an authority until it signs: an API server hears of a change of the
    /// configurations a moment after it was written.
    pub grace: Duration,
    /// The longest life of a leaf, of any replica.
    pub leaf: Duration,
}

/// All that a replica knows when it decides.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The Secret.
    pub store: &'a Store,
    /// What the Secret held when it was last usable; this replica has the keys still.
    pub held: Option<&'a Stored>,
    /// What this replica serves.
    pub leaf: Option<&'a Leaf>,
    /// The webhook configurations.
    pub published: &'a Published,
    /// Since when.
    pub memory: &'a Memory,
    /// How long to wait.
    pub waits: Waits,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority and create the Secret with it. These others stay in the bundle: they are
    /// trusted now, and somebody may be serving under them.
    Create(BTreeSet<Anchor>),
    /// Create the Secret again from what is held, with this bundle.
    Restore(BTreeSet<Anchor>),
    /// Put the authority of the own leaf back into the bundle.
    Keep(Anchor),
    /// Sign a leaf of one's own with the signer.
    Sign,
    /// Make the next authority and put it into the bundle.
    Prepare,
    /// Let the next one sign.
    Promote,
    /// Take authorities out of the bundle.
    Drop(BTreeSet<Anchor>),
    /// Nothing, until the next look.
    Rest,
}

impl Step {
    /// The word used in metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Restore(_) => "restore",
            Self::Keep(_) => "keep",
            Self::Sign => "sign",
            Self::Prepare => "prepare",
            Self::Promote => "promote",
            Self::Drop(_) => "drop",
            Self::Rest => "rest",
        }
    }
}

/// What to do next, by the API server's clock `now`: it is the one that verifies us.
pub fn next_step(state: &State<'_>, now: SystemTime) -> Step {
    let stored = match (state.store, state.held) {
        (Store::Holds(stored), _) => stored,
        (Store::Absent, Some(held)) => {
            let mut bundle = state.published.all();
            bundle.extend(held.bundle.iter().cloned());
            return Step::Restore(bundle);
        }
        (Store::Absent, None) => return Step::Create(state.published.all()),
        // It may be mended, or replaced by another; until then the leaf is kept alive, if that helps.
        (Store::Unusable, Some(held)) if wants_leaf(state, held, now) => return Step::Sign,
        (Store::Unusable, _) => return Step::Rest,
    };
    // Whoever was cut off for so long that the leaf has ended has nothing left to keep.
    if let Some(leaf) = state.leaf
        && now < leaf.not_after
        && !stored.bundle.contains(&leaf.issuer)
    {
        return Step::Keep(leaf.issuer.clone());
    }
    if wants_leaf(state, stored, now) {
        return Step::Sign;
    }
    let long = |anchor: &Anchor, wait| {
        let trusted = state.memory.trusted_for(anchor);
        trusted.is_some_and(|trusted| trusted >= wait)
    };
    if let Some(next) = &stored.next {
        // Nobody can serve under an authority that has ended, so nobody is left who might register us.
        let stuck = state.published.entries.is_empty() && stored.signer.not_after <= now;
        if long(next, state.waits.grace) || stuck {
            return Step::Promote;
        }
    } else if stored.signer.renew_at() <= now {
        return Step::Prepare;
    }
    let over = superfluous(state, stored, now);
    if over.is_empty() {
        Step::Rest
    } else {
        Step::Drop(over)
    }
}

/// Whether a replica should sign a leaf of its own with the signer.
fn wants_leaf(state: &State<'_>, stored: &Stored, now: SystemTime) -> bool {
    let signer = &stored.signer;
    if now < signer.not_before || signer.not_after <= now {
        return false;
    }
    match state.leaf {
        Some(leaf) if leaf.issuer == *signer => leaf.renew_at <= now || now < leaf.not_before,
        // Another signs since. Who serves a good leaf has time to wait.
        Some(leaf) if now < leaf.not_after => {
            let trusted = state.memory.trusted_for(signer);
            trusted.is_some_and(|trusted| trusted >= state.waits.grace)
        }
        _ => state.published.entries.is_empty() || state.published.trusts(signer),
    }
}

/// Whether an authority has ended by every clock: one may be wrong by as much as a leaf lives.
fn is_over(anchor: &Anchor, waits: Waits, now: SystemTime) -> bool {
    anchor.not_after + waits.leaf <= now
}

/// Who may leave the bundle: no leaf of theirs can hold any more. Not who signed the leaf at hand, and
/// of those that have not ended only who signed before the signer: a Secret that was brought back from
/// an old copy names an old one, and others may be serving under a newer.
fn superfluous(state: &State<'_>, stored: &Stored, now: SystemTime) -> BTreeSet<Anchor> {
    let settled = state.memory.settled_for(&stored.signer);
    // Whoever looked before the signer was promoted signed a leaf that ends by then.
    let settled = settled.is_some_and(|settled| settled >= state.waits.leaf + state.waits.grace);
    let others = stored.bundle.iter().filter(|anchor| {
        **anchor != stored.signer
            && stored.next.as_ref() != Some(*anchor)
            && state.leaf.is_none_or(|leaf| leaf.issuer != **anchor)
    });
    others
        .filter(|anchor| (settled && **anchor < stored.signer) || is_over(anchor, state.waits, now))
        .cloned()
        .collect()
}

/// What the webhook configurations have to trust: the Secret's bundle, and whoever signed the own leaf.
pub fn to_publish(stored: &Stored, leaf: Option<&Leaf>) -> BTreeSet<Anchor> {
    let mut bundle = stored.bundle.clone();
    bundle.extend(leaf.map(|leaf| leaf.issuer.clone()));
    bundle
}

/// What will happen next, for people.
pub fn outlook(stored: &Stored, published: &Published, now: SystemTime) -> String {
    let at = |time| super::moment(time);
    if let Some(next) = &stored.next {
        let shown = super::bundle::short(&next.fingerprint()).to_owned();
        return if published.trusts(next) {
            format!("rotating: {shown} is trusted by every entry and signs after the grace")
        } else {
            format!("rotating: {shown} signs next, once every entry trusts it")
        };
    }
    let due = stored.signer.renew_at();
    if due <= now {
        return "the next authority is due now; a running replica makes it".to_owned();
    }
    let old = stored.bundle.len().saturating_sub(1);
    let old = match old {
        0 => String::new(),
        1 => "; one that signed before leaves the bundle when none of its leaves holds any more"
            .to_owned(),
        old => format!(
            "; {old} that signed before leave the bundle when none of their leaves holds any more"
        ),
    };
    format!("the next authority is made at {}{old}", at(due))
}

#[cfg(test)]
mod tests;
