//! Exemptions: from which rule, until when, on whose account and why.
//!
//! An object carries `exempt.gangplank.dev/<rule-id>: "until=2027-01-31; owner=team-llm; reason=load
//! test; legacy model"`: pairs of `key=value` split at `;`, until and owner in any order, the reason
//! last and free. Every door asks the same evaluator whether one is over.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::{
    Timestamp,
    civil::Date,
    tz::{Offset, TimeZone},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::controllers::controller_of,
    finding::{FieldPath, Level},
    rules::{Group, RULES, Rule, kinds},
    subject::{Subject, at, group_of},
    text::{cut, nearest},
};

pub(crate) mod standing;

/// The prefix of the annotations that exempt.
pub const PREFIX: &str = "exempt.gangplank.dev/";

/// An exemption that ends within so many days is told of.
pub const SOON_DAYS: i64 = 14;

/// More faults than these are another format altogether.
const FAULTS_LIMIT: usize = 4;

/// No key that is meant to be one of ours is longer.
const KEY_LIMIT: usize = 40;

/// What an exemption says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The last day (UTC) on which it holds.
    pub until: Date,
    /// Who answers for it.
    pub owner: String,
    /// Why it is needed.
    pub reason: String,
}

impl Terms {
    /// Reads an annotation's value.
    ///
    /// # Errors
    /// Every reason for which it is none.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let Draft {
            until,
            owner,
            reason,
            mut faults,
        } = Draft::read(text);
        let until = until.and_then(|text| match date(text) {
            Ok(date) => Some(date),
            Err(fault) => {
                faults.push(Fault::Date(fault));
                None
            }
        });
        match (until, owner, reason) {
            (Some(until), Some(owner), Some(reason)) if faults.is_empty() => Ok(Self {
                until,
                owner: owner.to_owned(),
                reason: reason.to_owned(),
            }),
            _ => Err(Malformed(faults)),
        }
    }

    /// Whether it has ended: it is good through the last second (UTC) of its last day.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.days_left(now) < 0
    }

    /// Whether it holds, and not for much longer.
    pub fn ends_soon(&self, now: Timestamp) -> bool {
        (0..=SOON_DAYS).contains(&self.days_left(now))
    }

    /// Whole days from today to its last day; negative where it has ended.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        days_between(today(now), self.until)
    }

    /// The first moment at which it holds no longer; the last one that can be told where the calendar
    /// ends before.
    pub fn end(&self) -> Timestamp {
        self.until
            .tomorrow()
            .and_then(|day| day.to_zoned(TimeZone::UTC))
            .map_or(Timestamp::MAX, |day| day.timestamp())
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            until,
            owner,
            reason,
        } = self;
        write!(f, "until={until}; owner={owner}; reason={reason}")
    }
}

/// The day (UTC) of a moment.
pub fn today(now: Timestamp) -> Date {
    Offset::UTC.to_datetime(now).date()
}

/// Days from one to the other.
fn days_between(from: Date, to: Date) -> i64 {
    to.duration_since(from).as_hours() / 24
}

/// The last day that a new exemption may name.
pub fn latest(now: Timestamp, max_days: u32) -> Date {
    let days = jiff::Span::new().try_days(i64::from(max_days));
    days.map_or(Date::MAX, |days| today(now).saturating_add(days))
}

/// Reads a date as `2027-01-31`, and in no other form.
///
/// # Errors
/// Where it has another form, or there is no such day.
pub fn date(text: &str) -> Result<Date, DateFault> {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |part: &str, digits: usize| {
        (part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| part.parse::<i16>().ok())
            .flatten()
    };
    let [year, month, day] = parts.as_slice() else {
        return Err(DateFault::Form(cut(text, KEY_LIMIT)));
    };
    let (Some(year), Some(month), Some(day)) = (number(year, 4), number(month, 2), number(day, 2))
    else {
        return Err(DateFault::Form(cut(text, KEY_LIMIT)));
    };
    let small = |number: i16| i8::try_from(number).unwrap_or_default();
    Date::new(year, small(month), small(day)).map_err(|_| DateFault::NoSuchDay(text.to_owned()))
}

/// Why a text is no date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DateFault {
    /// It has another form.
    #[error("\"{0}\" is no date of the form 2027-01-31")]
    Form(String),
    /// The calendar does not have it.
    #[error("there is no day {0}")]
    NoSuchDay(String),
}

/// Why a text is no exemption; at least one reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Malformed(pub Vec<Fault>);

/// One thing that is wrong with an exemption's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A number, a list or the like, as only a file can hold it.
    #[error("it is no text; put it in quotes")]
    NoText,
    /// A part without `=`.
    #[error("\"{0}\" is no key=value pair")]
    NoPair(String),
    /// A key that is none of the three.
    #[error("\"{key}\" is none of until, owner and reason{}", .meant.map(|key| format!(" (did you mean {key}?)")).unwrap_or_default())]
    UnknownKey {
        /// As it stands there.
        key: String,
        /// The nearest of the three.
        meant: Option<&'static str>,
    },
    /// A key that is given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A key without a value.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The placeholder of an example.
    #[error("{0} is still the placeholder {1}")]
    Placeholder(&'static str, String),
    /// A key that is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key that is not there because the reason swallowed it.
    #[error("{0} stands behind reason, which comes last")]
    Swallowed(&'static str),
    /// A date that is none.
    #[error("{0}")]
    Date(DateFault),
}

/// What can be read of an exemption's text, right or wrong.
#[derive(Debug, Default)]
struct Draft<'t> {
    until: Option<&'t str>,
    owner: Option<&'t str>,
    reason: Option<&'t str>,
    faults: Vec<Fault>,
}

impl<'t> Draft<'t> {
    fn read(text: &'t str) -> Self {
        let mut draft = Self::default();
        let mut rest = text;
        while !rest.trim().is_empty() {
            if draft.faults.len() >= FAULTS_LIMIT {
                return draft;
            }
            let (part, after) = rest.split_once(';').unwrap_or((rest, ""));
            let Some((key, value)) = part.split_once('=') else {
                draft
                    .faults
                    .push(Fault::NoPair(cut(part.trim(), KEY_LIMIT)));
                rest = after;
                continue;
            };
            match key.trim() {
                "until" => draft.faults.extend(take("until", &mut draft.until, value)),
                "owner" => draft.faults.extend(take("owner", &mut draft.owner, value)),
                "reason" => {
                    // All that follows belongs to it.
                    let value = rest.split_once('=').map_or("", |(_, value)| value);
                    draft
                        .faults
                        .extend(take("reason", &mut draft.reason, value));
                    break;
                }
                key => {
                    let meant = nearest(key, ["until", "owner", "reason"]);
                    match meant {
                        Some("until") => _ = take("until", &mut draft.until, value),
                        Some("owner") => _ = take("owner", &mut draft.owner, value),
                        _ => {}
                    }
                    let key = cut(key, KEY_LIMIT);
                    draft.faults.push(Fault::UnknownKey { key, meant });
                }
            }
            rest = after;
        }
        let told = |key: &str, faults: &[Fault]| {
            faults.iter().any(|fault| match fault {
                Fault::Empty(about) | Fault::Placeholder(about, _) => *about == key,
                Fault::UnknownKey { meant, .. } => *meant == Some(key),
                _ => false,
            })
        };
        for (key, value) in [
            ("until", draft.until),
            ("owner", draft.owner),
            ("reason", draft.reason),
        ] {
            if value.is_some() || told(key, &draft.faults) {
                continue;
            }
            let swallowed = draft.reason.is_some_and(|reason| {
                let mut parts = reason.split(';').filter_map(|part| part.split_once('='));
                parts.any(|(found, _)| found.trim() == key)
            });
            draft.faults.push(if swallowed {
                Fault::Swallowed(key)
            } else {
                Fault::Missing(key)
            });
        }
        draft
    }
}

/// Takes a value, where it is one and the first.
fn take<'t>(key: &'static str, place: &mut Option<&'t str>, value: &'t str) -> Option<Fault> {
    let value = value.trim();
    if place.is_some() {
        return Some(Fault::Twice(key));
    }
    if value.is_empty() {
        return Some(Fault::Empty(key));
    }
    if value.starts_with('<') && value.ends_with('>') {
        return Some(Fault::Placeholder(key, cut(value, KEY_LIMIT)));
    }
    *place = Some(value);
    None
}

/// How the exemption should be written instead of this text: what can be read of it stays, but its end
/// only where it is one of the days that a new exemption may name.
pub fn mended(text: &str, now: Timestamp, max_days: u32) -> String {
    let Draft {
        mut until,
        mut owner,
        reason,
        ..
    } = Draft::read(text);
    // What stands behind the reason and should not comes to its own place.
    let mut kept = Vec::new();
    for part in reason.unwrap_or_default().split(';') {
        let taken = match part.split_once('=').map(|(key, value)| (key.trim(), value)) {
            Some(("until", value)) if until.is_none() => take("until", &mut until, value).is_none(),
            Some(("owner", value)) if owner.is_none() => take("owner", &mut owner, value).is_none(),
            _ => false,
        };
        if !taken {
            kept.push(part);
        }
    }
    let reason = kept.join(";");
    let reason = Some(reason.trim()).filter(|reason| !reason.is_empty());
    let (today, latest) = (today(now), latest(now, max_days));
    let until = until
        .and_then(|text| date(text).ok())
        .filter(|until| (today..=latest).contains(until))
        .unwrap_or(latest);
    let owner = owner.unwrap_or("<team>");
    let reason = reason.unwrap_or("<why>");
    format!("until={until}; owner={owner}; reason={reason}")
}

/// Whether an exemption from a rule is possible: those that guard exemptions hold for everybody.
pub fn is_exemptable(rule: &Rule) -> bool {
    rule.group != Group::Exemptions
}

/// The rule id nearest to one that does not exist.
pub fn nearest_rule(id: &str) -> Option<&'static str> {
    let exemptable = RULES.iter().filter(|rule| is_exemptable(rule));
    nearest(id, exemptable.map(|rule| rule.id))
}

/// An annotation that exempts, or is meant to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Annotation<'v> {
    /// What stands behind the prefix.
    pub rule: &'v str,
    /// Its value; text, as the API server sees to, but a file may hold anything.
    pub value: &'v Value,
}

impl Annotation<'_> {
    /// Where it stands in the object.
    pub fn path(&self) -> FieldPath {
        path(self.rule)
    }

    /// What it says.
    ///
    /// # Errors
    /// Every reason for which it is no exemption.
    pub fn terms(&self) -> Result<Terms, Malformed> {
        match self.value.as_str() {
            Some(text) => Terms::parse(text),
            None => Err(Malformed(vec![Fault::NoText])),
        }
    }
}

/// Where the exemption from a rule stands in an object.
pub fn path(rule: &str) -> FieldPath {
    FieldPath::of(&["metadata", "annotations"]).key(format!("{PREFIX}{rule}"))
}

/// The annotations of an object that exempt, or are meant to.
pub fn annotations(object: &Value) -> impl Iterator<Item = Annotation<'_>> {
    at(object, &["metadata", "annotations"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let rule = key.strip_prefix(PREFIX)?;
            Some(Annotation { rule, value })
        })
}

/// The annotation of an object that exempts from a rule, or is meant to.
pub fn annotation<'v>(object: &'v Value, rule: &str) -> Option<Annotation<'v>> {
    annotations(object).find(|annotation| annotation.rule == rule)
}

/// Whether a controller made an object from one that is judged itself, with a copy of its annotations.
pub fn is_copy(subject: &Subject) -> bool {
    controller_of(&subject.value).is_some_and(|owner| {
        let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default();
        let (group, kind) = (group_of(text("apiVersion")), text("kind"));
        let mut kinds = kinds::ALL.iter();
        kinds.any(|one| one.group == group && one.kind == kind)
    })
}

/// Where an exemption stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// On the object.
    Annotation,
    /// In the policy, for the whole namespace.
    Policy,
}

impl Source {
    /// The word used in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::Policy => "policy",
        }
    }
}

/// The exemption by which a finding is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exempted {
    /// What it says.
    pub terms: Terms,
    /// Where it stands.
    pub source: Source,
    /// How strong the finding is without it.
    pub level: Level,
}

/// What there is to say of exemptions to whoever is not exempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Why the exemption at hand does not count.
    Void(String),
    /// The annotation that would exempt, as a line of YAML.
    Annotation(String),
}

/// The answer to whether the one who writes may exempt from a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Yes.
    Allowed,
    /// No.
    Refused,
    /// Whatever the cluster says, the policy does not count it (`exemptions.reviewRequired`).
    ReviewRequired,
    /// The cluster did not say in time.
    Unanswered,
}

/// What is known of the requester's rights, and of who controls the object at hand.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// Somebody can be asked.
    pub askable: bool,
    /// Answers by rule id.
    pub answers: BTreeMap<&'static str, Grant>,
    /// The existing object that controls the one at hand, its uid compared.
    pub owner: Option<Arc<Value>>,
}

impl Rights {
    /// Nobody has been asked yet, and somebody can be.
    pub fn askable() -> Self {
        Self {
            askable: true,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn fault(text: &str) -> String {
        Terms::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_reason_is_last_and_free() {
        let terms =
            Terms::parse("until=2027-01-31; owner=team-llm; reason=load test; legacy model")
                .unwrap();
        assert_eq!(terms.until.to_string(), "2027-01-31");
        assert_eq!(
            (terms.owner.as_str(), terms.reason.as_str()),
            ("team-llm", "load test; legacy model")
        );
        let other =
            Terms::parse(" owner = team-llm ;until=2027-01-31;reason=load test; legacy model ");
        assert_eq!(other.unwrap(), terms);
        let equation = Terms::parse("until=2027-01-31;owner=a;reason=tp=8; pp=2;;").unwrap();
        assert_eq!(equation.reason, "tp=8; pp=2;;");
    }

    #[test]
    fn every_malformation_is_told() {
        let mut text = String::new();
        for wrong in [
            "",
            "yes",
            "until=2027-01-31",
            "until=2027-01-31; owner=team-llm",
            "until=2027-01-31; owner=team-llm; reason=",
            "until=2027-01-31; owner= ; reason=load test",
            "untill=2027-01-31; owner=team-llm; reason=load test",
            "until=2027-01-31; team=team-llm; reason=load test",
            "until=2027-01-31; until=2027-02-28; owner=team-llm; reason=load test",
            "until=2027-01-31; owner=team-llm;; reason=load test",
            "reason=load test; until=2027-01-31; owner=team-llm",
            "until=31.1.2027; owner=team-llm; reason=load test",
            "until=2027-1-31; owner=team-llm; reason=load test",
            "until=2027-02-30; owner=team-llm; reason=load test",
            "until=2027-01-31T12:00:00Z; owner=team-llm; reason=load test",
            "until=+027-01-31; owner=team-llm; reason=load test",
            "until=never; owner=team-llm; reason=load test",
            "until=2027-01-31; owner=<team>; reason=<why>",
            "Until=2027-01-31, owner=team-llm, reason=load test",
        ] {
            let mended = mended(wrong, at("2026-11-23T12:00:00Z"), 90);
            writeln!(text, "{wrong}\n  {}\n  {mended}", fault(wrong)).unwrap();
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn it_is_good_through_the_last_second_of_its_last_day() {
        let terms = Terms::parse("until=2027-01-31; owner=a; reason=b").unwrap();
        assert!(!terms.is_over(at("2027-01-31T23:59:59.999999999Z")));
        assert!(terms.is_over(at("2027-02-01T00:00:00Z")));
        assert!(
            !terms.is_over(at("2027-02-01T01:30:00+02:00")),
            "it is UTC that counts"
        );
        assert_eq!(terms.end(), at("2027-02-01T00:00:00Z"));
        assert_eq!(terms.days_left(at("2027-01-30T23:59:59Z")), 1);
        assert!(terms.ends_soon(at("2027-01-31T12:00:00Z")));
        assert!(terms.ends_soon(at("2027-01-17T00:00:00Z")));
        assert!(!terms.ends_soon(at("2027-01-16T23:59:59Z")));
        assert!(!terms.ends_soon(at("2027-02-01T00:00:00Z")));
    }

    #[test]
    fn the_calendar_has_ends() {
        let last = Terms::parse("until=9999-12-31; owner=a; reason=b").unwrap();
        assert!(!last.is_over(Timestamp::MAX));
        assert_eq!(last.end(), Timestamp::MAX);
        let first = Terms::parse("until=0000-01-01; owner=a; reason=b").unwrap();
        assert!(first.is_over(Timestamp::UNIX_EPOCH));
        assert_eq!(latest(Timestamp::MAX, u32::MAX), Date::MAX);
        assert_eq!(
            latest(at("2026-11-23T23:59:59Z"), 90),
            date("2027-02-21").unwrap()
        );
        assert_eq!(
            latest(at("2026-11-23T00:00:00Z"), 0),
            date("2026-11-23").unwrap()
        );
    }

    #[test]
    fn the_nearest_rule_is_named() {
        assert_eq!(
            nearest_rule("gpu-utilisation-signal"),
            Some("gpu-utilization-signal")
        );
        assert_eq!(nearest_rule("gang"), None);
        assert_eq!(
            nearest_rule("exemption-malformed"),
            None,
            "no exemption from these"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_an_exemption_or_is_told_why_not(text in "\\PC*|[=;a-z0-9 -]*|(until|owner|reason|;|=| |2027-01-31)*") {
            match Terms::parse(&text) {
                Ok(terms) => prop_assert_eq!(Terms::parse(&terms.to_string()), Ok(terms)),
                Err(Malformed(faults)) => prop_assert!(!faults.is_empty()),
            }
            let _ = mended(&text, Timestamp::UNIX_EPOCH, u32::MAX);
        }

        #[test]
        fn what_is_written_is_read_again(
            days in 0i32..2_900_000,
            owner in "[^;=<\\s][^;<>]{0,20}",
            reason in "[^<\\s][^<>]{0,40}",
        ) {
            let until = date("0001-01-01").unwrap().saturating_add(jiff::Span::new().days(days));
            let (owner, reason) = (owner.trim().to_owned(), reason.trim().to_owned());
            let terms = Terms { until, owner, reason };
            prop_assert_eq!(Terms::parse(&terms.to_string()), Ok(terms.clone()));
            let swapped = format!("owner={};until={};reason={}", terms.owner, terms.until, terms.reason);
            prop_assert_eq!(Terms::parse(&swapped), Ok(terms));
        }

        #[test]
        fn mending_gives_an_exemption_once_its_gaps_are_filled(text in "(until=|owner=|reason=|;|=| |2027-01-31|team)*") {
            let mended = mended(&text, at("2026-11-23T12:00:00Z"), 90);
            let filled = mended.replace("<team>", "team").replace("<why>", "why");
            prop_assert!(Terms::parse(&filled).is_ok(), "{}", filled);
        }

        #[test]
        fn an_end_is_the_moment_from_which_it_is_over(second in 0i64..253_000_000_000, days in 0i32..2_900_000) {
            let now = Timestamp::from_second(second).unwrap();
            let until = date("0001-01-01").unwrap().saturating_add(jiff::Span::new().days(days));
            let terms = Terms { until, owner: "a".to_owned(), reason: "b".to_owned() };
            prop_assert_eq!(terms.is_over(now), now >= terms.end());
        }
    }
}
