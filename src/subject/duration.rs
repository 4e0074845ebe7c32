//! Durations as Go writes them (`1h30m`, `500ms`), and Karpenter's `Never`.

use std::{fmt, time::Duration};

use serde_json::Value;

/// The units of `time.ParseDuration` (Go 1.25) in nanoseconds, longer spellings first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as `time.ParseDuration` does. `None` where it is none, where it is longer than
/// Go can hold (about 292 years), or where it is negative, which none that we read may be.
pub fn parse_go(text: &str) -> Option<Duration> {
    // Minus nothing is nothing.
    if let Some(unsigned) = text.strip_prefix('-') {
        return parse_unsigned(unsigned).filter(Duration::is_zero);
    }
    parse_unsigned(text.strip_prefix('+').unwrap_or(text))
}

fn parse_unsigned(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_ends = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let whole = if whole.is_empty() {
            0
        } else {
            whole.parse::<u64>().ok()?
        };
        nanos = nanos.checked_add(whole.checked_mul(*unit)?)?;
        let mut place = *unit;
        for digit in fraction.bytes().take(19) {
            // Truncated at the nanosecond, as Go does up to the rounding of its floating point.
            place /= 10;
            nanos = nanos.checked_add(u64::from(digit - b'0') * place)?;
        }
        rest = after;
    }
    i64::try_from(nanos)
        .ok()
        .map(|_| Duration::from_nanos(nanos))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

/// A duration that may be for ever: Karpenter's `NillableDuration`
/// (karpenter.sh `pkg/apis/v1/duration.go`, v1.14.1, and the same in v1beta1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lapse {
    /// It ends.
    After(Duration),
    /// It does not.
    Never,
}

impl Lapse {
    /// Reads it as it stands in an object; `None` where it is neither `Never` nor a duration.
    pub fn of(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "Never" => Some(Self::Never),
            text => parse_go(text).map(Self::After),
        }
    }

    /// Whether it ends before that.
    pub fn is_under(self, least: Duration) -> bool {
        matches!(self, Self::After(duration) if duration < least)
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("Never"),
            Self::After(duration) => f.write_str(&short(*duration)),
        }
    }
}

/// A duration in whole hours, minutes and seconds, as Karpenter's CRD takes it: `1h`, `1h30m`, `0s`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut out = String::new();
    for (amount, unit) in [
        (seconds / 3600, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ] {
        if amount > 0 {
            out.push_str(&amount.to_string());
            out.push(unit);
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn seconds(text: &str) -> Option<f64> {
        parse_go(text).map(|duration| duration.as_secs_f64())
    }

    #[test]
    fn the_same_span_in_any_spelling_is_the_same() {
        for text in [
            "1h",
            "60m",
            "3600s",
            "1h0m0s",
            "59m60s",
            "0.5h30m",
            "3600000ms",
            "+1h",
        ] {
            assert_eq!(seconds(text), Some(3600.0), "{text}");
        }
        assert_eq!(seconds("0"), Some(0.0));
        assert_eq!(seconds("-0s"), Some(0.0));
        assert_eq!(seconds(".5s"), Some(0.5));
        assert_eq!(parse_go("1µs"), Some(Duration::from_micros(1)));
    }

    #[test]
    fn what_go_refuses_is_no_duration() {
        for text in [
            "", "+", "-", "5", "1d", "1 h", "h", "1.h.", ".", "-1h", "-+1h", "-+0s", "--0s",
            "Never", "1hh", "9999999h",
        ] {
            assert_eq!(parse_go(text), None, "{text:?}");
        }
        assert_eq!(parse_go(&"9".repeat(400)), None);
        assert_eq!(parse_go(&format!("{}s", "9".repeat(400))), None);
    }

    #[test]
    fn never_is_longer_than_anything() {
        let hour = Duration::from_secs(3600);
        assert!(!Lapse::of(&json!("Never")).unwrap().is_under(hour));
        assert!(!Lapse::of(&json!("60m")).unwrap().is_under(hour));
        assert!(Lapse::of(&json!("59m59s")).unwrap().is_under(hour));
        assert!(Lapse::Never > Lapse::After(Duration::MAX));
        assert_eq!(Lapse::of(&json!("never")), None);
        assert_eq!(Lapse::of(&json!(30)), None);
    }

    proptest! {
        #[test]
        fn what_is_written_short_reads_back(seconds in 0_u64..9_000_000_000) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse_go(&short(duration)), Some(duration));
        }

        #[test]
        fn no_text_panics(text in "[-+.0-9hmsunµ ]{0,40}") {
            let _ = parse_go(&text);
        }
    }
}
