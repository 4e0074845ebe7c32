//! What reading one query costs, and its bounds: queries are written by whoever may write an
//! autoscaler, and are judged while the API server waits. What many of them cost together is bounded
//! by the object's [`Budget`].

use crate::budget::Budget;

/// Bytes of a query that are read.
pub(super) const LONGEST_QUERY: usize = 8 * 1024;

/// Bytes of a metric name that are read.
pub(super) const LONGEST_NAME: usize = 512;

/// Words of one query that are looked at, those in its quoted texts included; what has more cannot
/// be told.
pub(super) const MOST_WORDS: usize = 128;

/// Ends of placeholders that are looked for in vain before brackets count as brackets.
const MOST_OPEN: u32 = 32;

/// The bytes within which a placeholder ends: far enough for any expression of a template.
const LONGEST_PLACEHOLDER: usize = 128;

/// Finds the placeholders of one text.
#[derive(Debug)]
pub(super) struct Placeholders<'b> {
    budget: &'b Budget,
    open: u32,
}

impl<'b> Placeholders<'b> {
    pub(super) const fn new(budget: &'b Budget) -> Self {
        Self { budget, open: 0 }
    }

    /// The rest after a template's placeholder at the start of `text`.
    pub(super) fn skip<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        for (open, close) in [("${", "}"), ("$(", ")"), ("{{", "}}"), ("[[", "]]")] {
            if let Some(body) = text.strip_prefix(open) {
                if self.open >= MOST_OPEN {
                    return None;
                }
                let near = super::head(body, LONGEST_PLACEHOLDER);
                let end = near.find(close);
                self.budget.spend(end.unwrap_or(near.len()));
                let Some(end) = end else {
                    self.open += 1;
                    return None;
                };
                return body.get(end + close.len()..);
            }
        }
        let body = text.strip_prefix('$')?;
        let rest = body.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        (rest.len() < body.len()).then_some(rest)
    }
}

#[cfg(test)]
mod tests;
