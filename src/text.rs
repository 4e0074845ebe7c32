//! How values and sentences are put into lines that people read.

use serde_json::Value;

/// Fits a terminal of a hundred columns beside what stands before a line.
const WIDTH: usize = 92;

/// A value in one line, cut where it would flood a terminal.
pub fn shown(value: &Value) -> String {
    const LIMIT: usize = 160;
    cut(&value.to_string(), LIMIT)
}

/// The text with what would move a terminal's cursor or colour it written out: names in manifests
/// are anybody's.
pub fn harmless(text: &str) -> String {
    let spoken = |c: char| !c.is_control() || c == '\n';
    if text.chars().all(spoken) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let escaped = (!spoken(c)).then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// The text, or its beginning and an ellipsis, in at most `limit` characters.
pub fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars()
        .take(limit.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// A number with its thousands set apart.
pub fn thousands(number: &impl ToString) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// FNV-1a in hexadecimal digits: it tells texts apart and protects nothing.
pub fn hash(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Breaks a sentence into lines at its spaces.
pub fn wrap(text: &str) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if length > 0 && length + 1 + width > WIDTH {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += width;
    }
    lines
}

/// The known word that somebody may have meant by one that is not known.
pub fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    // No word of ours is as long, and comparing costs the product of the lengths.
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let wanted = plain(word);
    known
        .into_iter()
        .map(|known| (strsim::osa_distance(&wanted, &plain(known)), known))
        .filter(|(distance, known)| *distance <= 1.max(known.len() / 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_words_are_never_broken() {
        let word = "x".repeat(WIDTH + 5);
        assert_eq!(wrap(&format!("a  b\n{word} c")), format!("a b\n{word}\nc"));
        assert_eq!(wrap(""), "");
    }

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(harmless("a\u{1b}[2Jb\nc\rä"), "a\\u{1b}[2Jb\nc\\rä");
    }

    #[test]
    fn a_cut_counts_characters_and_says_that_it_cut() {
        assert_eq!(
            (cut("äöü", 3).as_str(), cut("äöüß", 3).as_str()),
            ("äöü", "äö…")
        );
    }
}
