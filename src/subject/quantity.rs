//! Kubernetes resource quantities: `2`, `500m`, `1.5Gi`, `1e3`.

use std::fmt;

use serde_json::Value;

/// The smallest amount that a quantity can tell apart is a billionth.
const NANO_DIGITS: i64 = 9;

/// Longer texts are no quantities that anybody wrote; the bound keeps hostile ones cheap.
const LONGEST: usize = 256;

/// More decimal digits than any quantity in range has, in billionths.
const MOST_DIGITS: i64 = 40;

/// An amount, exact to the billionth, as `resource.Quantity` holds it: finer amounts are rounded
/// away from zero, and magnitudes are capped at 2^63-1 (k8s.io/apimachinery
/// `pkg/api/resource/quantity.go`, 1.36).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nanos: i128,
}

impl Quantity {
    const MAX_NANOS: i128 = i64::MAX as i128 * 1_000_000_000;

    /// Reads the text of a quantity; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, text.get(1..)?),
            b'+' => (false, text.get(1..)?),
            _ => (false, text),
        };
        let number = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (tens, kibis) = scale(suffix)?;
        let mut digits: Vec<u8> = whole
            .bytes()
            .chain(fraction.bytes())
            .map(|digit| digit - b'0')
            .skip_while(|digit| *digit == 0)
            .collect();
        if digits.is_empty() {
            return Some(Self::default());
        }
        for _ in 0..kibis {
            multiply(&mut digits, 1024);
        }
        // The digits stand for billionths once the decimal point is moved by this much.
        let fraction = i64::try_from(fraction.len()).ok()?;
        let shift = tens.saturating_add(NANO_DIGITS).saturating_sub(fraction);
        let magnitude = magnitude(&digits, shift).min(Self::MAX_NANOS);
        Some(Self {
            nanos: if negative { -magnitude } else { magnitude },
        })
    }

    /// Reads a quantity as it stands in an object: a text or a number.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// Whether there is nothing of it, or less.
    pub const fn is_zero_or_less(self) -> bool {
        self.nanos <= 0
    }

    /// The amount rounded up to a whole number, as `Quantity.Value()` gives it.
    pub fn ceil(self) -> i64 {
        let whole = self.nanos.div_euclid(1_000_000_000);
        let up = i128::from(self.nanos.rem_euclid(1_000_000_000) != 0);
        i64::try_from(whole + up).unwrap_or(i64::MAX)
    }

    /// A whole number of it.
    pub fn whole(number: i64) -> Self {
        Self {
            nanos: i128::from(number) * 1_000_000_000,
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let (whole, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let fraction = format!("{fraction:09}");
        write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

/// A suffix as a power of ten and a power of 1024.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 1),
        "Mi" => (0, 2),
        "Gi" => (0, 3),
        "Ti" => (0, 4),
        "Pi" => (0, 5),
        "Ei" => (0, 6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let (negative, digits) = match exponent.strip_prefix('-') {
                Some(digits) => (true, digits),
                None => (false, exponent.strip_prefix('+').unwrap_or(exponent)),
            };
            if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            let exponent = digits.parse::<i64>().unwrap_or(i64::MAX / 2);
            (if negative { -exponent } else { exponent }, 0)
        }
    })
}

/// Multiplies a decimal number, most significant digit first.
fn multiply(digits: &mut Vec<u8>, by: u32) {
    let mut carry = 0;
    for digit in digits.iter_mut().rev() {
        let product = u32::from(*digit) * by + carry;
        *digit = u8::try_from(product % 10).unwrap_or_default();
        carry = product / 10;
    }
    while carry > 0 {
        digits.insert(0, u8::try_from(carry % 10).unwrap_or_default());
        carry /= 10;
    }
}

/// The number with its decimal point moved to the right, rounded up.
fn magnitude(digits: &[u8], shift: i64) -> i128 {
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let kept = length.saturating_add(shift);
    if kept > MOST_DIGITS {
        return Quantity::MAX_NANOS;
    }
    if kept < 0 {
        return 1;
    }
    let kept = usize::try_from(kept).unwrap_or_default();
    let (whole, rest) = digits.split_at(kept.min(digits.len()));
    let value = whole.iter().fold(0_i128, |value, digit| {
        value.saturating_mul(10).saturating_add(i128::from(*digit))
    });
    let zeros = u32::try_from(kept.saturating_sub(digits.len())).unwrap_or(u32::MAX);
    let value = 10_i128
        .checked_pow(zeros)
        .and_then(|scale| value.checked_mul(scale))
        .unwrap_or(Quantity::MAX_NANOS);
    value.saturating_add(i128::from(rest.iter().any(|digit| *digit != 0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn nanos(text: &str) -> i128 {
        Quantity::parse(text)
            .unwrap_or_else(|| panic!("{text} is a quantity"))
            .nanos
    }

    #[test]
    fn suffixes_and_exponents_are_exact() {
        assert_eq!(nanos("0"), 0);
        assert_eq!(nanos("500m"), 500_000_000);
        assert_eq!(nanos("1.5Gi"), 1_610_612_736 * 1_000_000_000);
        assert_eq!(nanos("1k"), nanos("1000"));
        assert_eq!(nanos("1E"), nanos("1e18"));
        assert_eq!(nanos("1e3"), nanos("1000"));
        assert_eq!(nanos("12E-1"), nanos("1.2"));
        assert_eq!(nanos("-.5"), -500_000_000);
        assert_eq!(nanos("+2."), 2_000_000_000);
        assert_eq!(nanos("9223372036854775807"), Quantity::MAX_NANOS);
    }

    #[test]
    fn what_is_finer_is_rounded_away_from_zero_and_what_is_larger_capped() {
        assert_eq!(nanos("0.0000000001"), 1);
        assert_eq!(nanos("-0.1n"), -1);
        assert_eq!(nanos("1e-1000000000000000000000"), 1);
        assert_eq!(nanos("1e1000000000000000000000"), Quantity::MAX_NANOS);
        assert_eq!(nanos("-8Ei"), -Quantity::MAX_NANOS);
        assert_eq!(nanos(&"9".repeat(200)), Quantity::MAX_NANOS);
        assert_eq!(nanos(&format!("0.{}", "0".repeat(200))), 0);
    }

    #[test]
    fn other_texts_are_no_quantities() {
        for text in [
            "", "-", ".", "1.2.3", "1 Gi", "1KB", "Gi", "1e", "1e+", "1ee3", "0x10", "½", "1\u{0}",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text:?}");
        }
        assert_eq!(Quantity::parse(&"1".repeat(257)), None);
        assert_eq!(Quantity::of(&json!(["1"])), None);
        assert_eq!(Quantity::of(&json!(16)), Some(Quantity::whole(16)));
        assert_eq!(Quantity::of(&json!(0.5)).unwrap().ceil(), 1);
    }

    #[test]
    fn zero_is_zero_in_any_spelling() {
        for text in ["0", "00", "0.0", "-0", "0Gi", "0e9", "0m"] {
            assert!(Quantity::parse(text).unwrap().is_zero_or_less(), "{text}");
        }
        assert!(!Quantity::parse("1n").unwrap().is_zero_or_less());
    }

    proptest! {
        #[test]
        fn whole_numbers_read_back(number in any::<i64>()) {
            // The one number beyond the cap.
            prop_assume!(number != i64::MIN);
            prop_assert_eq!(Quantity::parse(&number.to_string()), Some(Quantity::whole(number)));
            prop_assert_eq!(Quantity::whole(number).to_string(), number.to_string());
        }

        #[test]
        fn display_reads_back(mantissa in -1_000_000_000_i64..1_000_000_000, exponent in -12_i32..9) {
            let quantity = Quantity::parse(&format!("{mantissa}e{exponent}")).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()), Some(quantity));
        }

        #[test]
        fn a_kibi_is_1024(number in 0_i64..1_000_000_000, fraction in 0_u32..1000) {
            let text = format!("{number}.{fraction:03}");
            let kibi = Quantity::parse(&format!("{text}Ki")).unwrap();
            prop_assert_eq!(kibi.nanos, Quantity::parse(&text).unwrap().nanos * 1024);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn no_quantity_like_text_panics(text in "[-+]?[0-9.]{0,60}([kKMGTPEnum]i?|[eE][-+]?[0-9]{0,30})?") {
            let _ = Quantity::parse(&text);
        }
    }
}
