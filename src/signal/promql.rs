//! Which series a PromQL query reads, and whether their values matter.
//!
//! The query is written by whoever may write an autoscaler, so the parser sees it only after a
//! pass that bounds what parsing can cost: promql-parser 0.11.1 takes time quadratic in the number
//! of operators, compiles every regular expression, overflows the stack on deep nesting, and panics
//! on a range or an offset of more seconds than a `Duration` holds.

use std::fmt::Write as _;

use promql_parser::label::{MatchOp, Matcher, Matchers};
use promql_parser::parser::token::{T_COUNT, T_COUNT_VALUES, T_GROUP, T_LAND, T_LUNLESS};
use promql_parser::parser::{self, Expr, VectorSelector};

use super::work::{MOST_WORDS, Placeholders};
use super::{Class, Doubt, Reader, Signal};
use crate::budget::Budget;

/// Operators, commas and brackets that a query may have and still be parsed.
const MOST_SYMBOLS: usize = 192;
/// Brackets within brackets that a query may have and still be parsed.
const DEEPEST: usize = 48;
/// Length of a pattern over metric names that is still compiled, in bytes.
const LONGEST_PATTERN: usize = 128;
/// Steps that compiling a pattern over metric names takes.
const COMPILE: usize = 40_000;
/// Steps that trying a pattern on a name takes.
const TRY: usize = 64;
/// Patterns over metric names that one query may have and still be parsed.
const MOST_PATTERNS: usize = 2;

/// The name under which PromQL knows a series' name.
const NAME: &str = "__name__";

/// Stands in for a range or an offset: which series are read does not depend on how long it is.
const DURATION: &str = "5m";
/// Stands in for a subquery's range and step.
const SUBQUERY: &str = "5m:1m";

/// Stands in for a template's placeholder, so that the rest can be parsed.
const PLACEHOLDER: &str = "gangplank_placeholder";

/// A label that marks a selector whose pattern was taken out: it is judged by the pattern's text.
const TAKEN_OUT: &str = "gangplank_taken_out";

/// A label in the place of a pattern over another one: a selector may not be empty.
const PATTERN: &str = "gangplank_pattern";

/// One series of a query.
#[derive(Clone, Debug)]
pub(super) struct Series {
    which: Which,
    labels: Vec<(String, String)>,
    doubt: Option<Doubt>,
}

#[derive(Clone, Debug)]
enum Which {
    /// By name.
    Named(String),
    /// By patterns over the name, which all have to hold.
    Matching(Vec<Matcher>),
    /// By a pattern that is too costly to try: its text.
    Text(String),
    /// By other labels alone; the text is what the reader is shown.
    Any(String),
}

/// What becomes of a series' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// They enter the result.
    Value,
    /// Only how many there are does.
    Number,
}

/// Every series that a query reads, or the start of one that was cut off.
pub(super) fn series(query: &str, cut: bool, budget: &Budget) -> Vec<Series> {
    let prepared = prepare(query, cut, budget);
    let mut out: Vec<Series> = prepared
        .costly
        .iter()
        .map(|text| Series {
            which: Which::Text(text.clone()),
            labels: Vec::new(),
            doubt: None,
        })
        .collect();
    let parsed = prepared.query.and_then(|query| parser::parse(&query).ok());
    match parsed {
        Some(expr) => walk(&expr, Use::Value, &mut out),
        None => out.extend(scan(query, budget)),
    }
    out
}

impl Series {
    pub(super) fn classify(&self, reader: &Reader<'_>) -> Signal {
        let signal = match &self.which {
            Which::Named(name) if name.contains(PLACEHOLDER) => {
                reader.name(&name.replace(PLACEHOLDER, "${}"), &self.labels)
            }
            Which::Named(name) => reader.name(name, &self.labels),
            Which::Matching(matchers) => matching(reader, matchers, &self.labels),
            Which::Text(text) => pattern_text(reader, text, &self.labels),
            Which::Any(text) => Signal::opaque(text),
        };
        signal.doubted(self.doubt)
    }
}

/// A device metric and a serving metric that patterns over the name select, where there are such.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Selected<'a> {
    device: Option<&'a str>,
    serving: Option<&'a str>,
}

impl<'a> Selected<'a> {
    /// Tries the patterns on every name that is known.
    fn by(reader: &Reader<'a>, matchers: &[Matcher]) -> Self {
        let mut selected = Self::default();
        for (name, meaning) in reader.catalog.probes() {
            let class = meaning.class();
            let slot = match class {
                Class::Serving => &mut selected.serving,
                _ if class.is_device_load() => &mut selected.device,
                _ => continue,
            };
            if slot.is_none() {
                let mut tried = 0;
                let all = matchers.iter().all(|matcher| {
                    tried += 1;
                    matcher.is_match(name)
                });
                reader.budget.spend(TRY * tried);
                if all {
                    *slot = Some(name);
                }
            }
        }
        selected
    }
}

/// What patterns over the name select; equal ones are tried once for the whole object.
fn matching(reader: &Reader<'_>, matchers: &[Matcher], labels: &[(String, String)]) -> Signal {
    let pattern = selector_text(matchers);
    reader.budget.spend(pattern.len());
    let known = reader.patterns.borrow().get(&pattern).copied();
    let Selected { device, serving } = known.unwrap_or_else(|| {
        let selected = Selected::by(reader, matchers);
        let mut patterns = reader.patterns.borrow_mut();
        patterns.insert(pattern.clone(), selected);
        selected
    });
    let text = matchers
        .iter()
        .filter(|matcher| matches!(matcher.op, MatchOp::Re(_)))
        .map(|matcher| matcher.value.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    match (device, serving) {
        (Some(_), Some(_)) => Signal::opaque(&pattern),
        (Some(name), None) | (None, Some(name)) => {
            let known = reader.name(name, labels);
            Signal {
                name: text.clone(),
                identity: text,
                ..known
            }
        }
        (None, None) => pattern_text(reader, &text, labels),
    }
}

/// What a pattern's own words say.
fn pattern_text(reader: &Reader<'_>, text: &str, labels: &[(String, String)]) -> Signal {
    reader.budget.spend(text.len());
    let words: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' || c == ':' {
                c
            } else {
                ' '
            }
        })
        .collect();
    let by_word = words
        .split_whitespace()
        .take(MOST_WORDS)
        .map(|word| reader.name(word, labels));
    // The words together: `.*gpu.*util.*`.
    let whole = reader.name(words.trim(), labels);
    let told = by_word
        .chain([whole.clone()])
        .find(|signal| signal.class.is_device_load())
        .or_else(|| {
            let harmless = matches!(whole.class, Class::Neutral | Class::Serving);
            (harmless && !whole.identity.is_empty()).then_some(whole)
        });
    told.map_or_else(
        || Signal::opaque(text),
        |signal| Signal {
            name: text.to_owned(),
            identity: text.to_owned(),
            ..signal
        },
    )
}

fn selector_text(matchers: &[Matcher]) -> String {
    let all: Vec<String> = matchers.iter().map(ToString::to_string).collect();
    format!("{{{}}}", all.join(","))
}

/// Collects the series of an expression. The parser's own visitor leaves out the parameter of an
/// aggregation.
fn walk(expr: &Expr, used: Use, out: &mut Vec<Series>) {
    match expr {
        Expr::Aggregate(aggregate) => {
            let op = aggregate.op.id();
            let within = if [T_COUNT, T_COUNT_VALUES, T_GROUP].contains(&op) {
                Use::Number
            } else {
                used
            };
            if let Some(param) = &aggregate.param {
                walk(param, Use::Value, out);
            }
            walk(&aggregate.expr, within, out);
        }
        Expr::Unary(unary) => walk(&unary.expr, used, out),
        Expr::Paren(paren) => walk(&paren.expr, used, out),
        Expr::Subquery(subquery) => walk(&subquery.expr, used, out),
        Expr::Binary(binary) => {
            // A comparison that drops series lets the values decide, even inside a count.
            let drops = binary.op.is_comparison_operator() && !binary.return_bool();
            let left = if drops { Use::Value } else { used };
            let right = if [T_LAND, T_LUNLESS].contains(&binary.op.id()) {
                Use::Number
            } else {
                left
            };
            walk(&binary.lhs, left, out);
            walk(&binary.rhs, right, out);
        }
        Expr::Call(call) => {
            const NUMBER: &[&str] = &[
                "absent",
                "absent_over_time",
                "count_over_time",
                "present_over_time",
                "timestamp",
            ];
            let within = if NUMBER.contains(&call.func.name) {
                Use::Number
            } else {
                used
            };
            for argument in &call.args.args {
                walk(argument, within, out);
            }
        }
        Expr::VectorSelector(selector) => select(selector, used, out),
        Expr::MatrixSelector(matrix) => select(&matrix.vs, used, out),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

/// The series of one selector.
fn select(selector: &VectorSelector, used: Use, out: &mut Vec<Series>) {
    let doubt = (used == Use::Number).then_some(Doubt::Counted);
    let Matchers {
        matchers,
        or_matchers,
    } = &selector.matchers;
    // With `or`, everything stands in the alternatives and `matchers` is empty.
    let groups: Vec<&[Matcher]> = if or_matchers.is_empty() {
        vec![matchers]
    } else {
        or_matchers.iter().map(Vec::as_slice).collect()
    };
    for group in groups {
        let labels: Vec<(String, String)> = group
            .iter()
            .filter(|matcher| matcher.name != NAME && matches!(matcher.op, MatchOp::Equal))
            .map(|matcher| (matcher.name.clone(), matcher.value.clone()))
            .collect();
        let names: Vec<Matcher> = group
            .iter()
            .filter(|matcher| matcher.name == NAME)
            .cloned()
            .collect();
        let exact = selector.name.clone().or_else(|| {
            let equal = names
                .iter()
                .find(|matcher| matches!(matcher.op, MatchOp::Equal))?;
            Some(equal.value.clone())
        });
        let which = if let Some(name) = exact {
            Which::Named(name)
        } else if group.iter().any(|matcher| matcher.name == TAKEN_OUT) {
            continue;
        } else if names
            .iter()
            .any(|matcher| matches!(matcher.op, MatchOp::Re(_)))
        {
            Which::Matching(names)
        } else {
            Which::Any(selector_text(group))
        };
        out.push(Series {
            which,
            labels,
            doubt,
        });
    }
}

/// A query made ready for the parser.
struct Prepared {
    /// None where it is not to be parsed.
    query: Option<String>,
    /// Patterns over names that were taken out of it.
    costly: Vec<String>,
}

/// Bounds the query's cost, and puts something parsable in the place of template placeholders, of
/// regular expressions that do not matter and of durations.
fn prepare(query: &str, cut: bool, budget: &Budget) -> Prepared {
    let unfit = || Prepared {
        query: None,
        costly: Vec::new(),
    };
    if cut {
        return unfit();
    }
    budget.spend(query.len());
    let mut placeholders = Placeholders::new(budget);
    let mut out = String::with_capacity(query.len());
    let mut costly = Vec::new();
    let (mut symbols, mut depth, mut deepest, mut patterns) = (0usize, 0usize, 0usize, 0usize);
    let mut braces = 0usize;
    // The label that a matcher is about, and whether `=~` or `!~` was read since.
    let mut label = String::new();
    let mut word = String::new();
    let mut regex = false;
    // Whether the length of an offset comes next.
    let mut shifted = false;
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = placeholders.skip(rest) {
            shifted = false;
            // In a selector's name position this becomes a name, anywhere else a name as well.
            // Several in a row are one.
            if out.ends_with(PLACEHOLDER) {
            } else if braces == 0 {
                out.push_str(PLACEHOLDER);
            } else {
                out.push_str("\"x\"");
            }
            rest = after;
            continue;
        }
        let in_word = c.is_alphanumeric() || matches!(c, '_' | ':');
        if !in_word && !word.is_empty() {
            symbols += usize::from(is_operator(&word));
            shifted = word.eq_ignore_ascii_case("offset");
            label = std::mem::take(&mut word);
        }
        if shifted && !c.is_whitespace() && !matches!(c, '+' | '-' | '#') {
            shifted = false;
            let (length, after) = number(rest);
            if !length.is_empty() {
                out.push_str(DURATION);
                rest = after;
                continue;
            }
        }
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        match c {
            '#' => {
                rest = after_comment(after);
                out.push('\n');
                continue;
            }
            '"' | '\'' | '`' => {
                let Some((text, after)) = string(after, c) else {
                    return unfit();
                };
                let is_name = label == NAME || label.contains('\\');
                if regex && braces > 0 {
                    let mut costly_name = false;
                    if is_name {
                        patterns += 1;
                        costly_name = is_costly(text) || patterns > MOST_PATTERNS;
                        if !costly_name {
                            budget.spend(COMPILE);
                        }
                    }
                    // A pattern over another label does not matter, and one over names may cost too
                    // much: the parser would compile it.
                    if costly_name || !is_name {
                        let negative = out.trim_end().ends_with("!~");
                        out.truncate(out.trim_end_matches(['=', '!', '~', ' ']).len());
                        out.push_str("!=\"x\"");
                        if !negative {
                            let instead = if is_name { TAKEN_OUT } else { PATTERN };
                            let _ = write!(out, ",{instead}=\"x\"");
                            costly.extend(is_name.then(|| text.to_owned()));
                        }
                        rest = after;
                        regex = false;
                        continue;
                    }
                }
                push_string(&mut out, text, c);
                text.clone_into(&mut label);
                regex = false;
                rest = after;
                continue;
            }
            '[' => {
                let Some((range, after)) = after.split_once(']') else {
                    return unfit();
                };
                out.push('[');
                out.push_str(if range.contains(':') {
                    SUBQUERY
                } else {
                    DURATION
                });
                out.push(']');
                rest = after;
                symbols += 1;
                continue;
            }
            '(' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
                braces += usize::from(c == '{');
                symbols += 1;
            }
            ')' | '}' => {
                depth = depth.saturating_sub(1);
                braces = braces.saturating_sub(usize::from(c == '}'));
            }
            ',' | '+' | '-' | '*' | '/' | '%' | '^' | '<' | '>' | '=' | '!' | '@' => symbols += 1,
            _ => {}
        }
        if in_word {
            word.push(c);
        } else if c == '~' {
            regex = true;
        } else if c == ',' {
            regex = false;
        }
        out.push(c);
        rest = after;
    }
    let fits = symbols <= MOST_SYMBOLS && deepest <= DEEPEST;
    if fits {
        // The parser takes time by its text and by the square of its operators.
        budget.spend(8 * out.len() + 2 * symbols * symbols);
        Prepared {
            query: Some(out),
            costly,
        }
    } else {
        unfit()
    }
}

/// Whether a word is one that the parser takes for an operator: in any case, as Prometheus does.
fn is_operator(word: &str) -> bool {
    ["and", "or", "unless", "atan2", "offset", "bool"]
        .iter()
        .any(|operator| word.eq_ignore_ascii_case(operator))
}

/// The number or duration that a text begins with, or nothing, and the rest. An exponent's sign
/// ends it.
fn number(text: &str) -> (&str, &str) {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let name = text.split(|c| !is_letter(c)).next().unwrap_or("");
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || name.eq_ignore_ascii_case("inf")
        || name.eq_ignore_ascii_case("nan");
    let rest = if is_number {
        text.trim_start_matches(|c| is_letter(c) || c == '.')
    } else {
        text
    };
    text.split_at_checked(text.len() - rest.len())
        .unwrap_or(("", text))
}

/// What follows a comment: the rest after the end of its line, which a lone carriage return is too
/// (Prometheus 3, promql/parser/lex.go, `lexLineComment`).
fn after_comment(text: &str) -> &str {
    text.split_once(['\n', '\r']).map_or("", |(_, rest)| rest)
}

/// The text of a string after its opening quote, and the rest after its closing one.
fn string(text: &str, quote: char) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (position, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote != '`' {
            escaped = true;
        } else if c == quote {
            return Some((text.get(..position)?, text.get(position + c.len_utf8()..)?));
        }
    }
    None
}

/// Writes a string as the parser reads it. It takes a backslash between backticks for an escape,
/// which it is not (Prometheus 3, promql/parser/lex.go, `lexRawString`), and would end the string
/// elsewhere.
fn push_string(out: &mut String, text: &str, quote: char) {
    if quote != '`' || !text.contains('\\') {
        out.push(quote);
        out.push_str(text);
        out.push(quote);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            _ => out.push(c),
        }
    }
    out.push('"');
}

/// Whether compiling a pattern may cost more than the query is worth: repetition counts and
/// Unicode classes multiply.
fn is_costly(pattern: &str) -> bool {
    let counted = pattern
        .as_bytes()
        .windows(2)
        .any(|two| matches!(two, [b'{', b'0'..=b'9']));
    let classes = pattern
        .as_bytes()
        .windows(2)
        .filter(|two| {
            matches!(
                two,
                [b'\\', b'w' | b'W' | b'd' | b'D' | b's' | b'S' | b'p' | b'P'] | [b'[', b'^']
            )
        })
        .count();
    pattern.len() > LONGEST_PATTERN || counted || classes > 2
}

/// Reads a query that cannot be parsed, word by word. Nothing is denied for not parsing, but a
/// name that stands in the query is read.
fn scan(query: &str, budget: &Budget) -> Vec<Series> {
    let mut out = Vec::new();
    let mut add = |which: Which| {
        out.push(Series {
            which,
            labels: Vec::new(),
            doubt: Some(Doubt::Unparsed),
        });
    };
    budget.spend(2 * query.len());
    let mut placeholders = Placeholders::new(budget);
    let mut rest = query;
    let mut word = String::new();
    let mut words = 0_usize;
    // Names of labels stand in brackets behind these.
    let mut before = String::new();
    loop {
        let next = rest.chars().next();
        if let Some(c) = next
            && (c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.'))
        {
            word.push(c);
            rest = rest.get(1..).unwrap_or("");
            continue;
        }
        if let Some(after) = placeholders.skip(rest) {
            if !word.ends_with(PLACEHOLDER) {
                word.push_str(PLACEHOLDER);
            }
            rest = after;
            continue;
        }
        if !word.is_empty() {
            words += 1;
            before = std::mem::take(&mut word);
            let starts = before
                .chars()
                .next()
                .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            if starts {
                add(Which::Named(before.clone()));
            }
        }
        if words > MOST_WORDS {
            add(Which::Any("a query of more words than are read".to_owned()));
            break;
        }
        let Some(c) = next else { break };
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        rest = match c {
            '#' => after_comment(after),
            '"' | '\'' | '`' => string(after, c).map_or("", |(_, rest)| rest),
            '[' => after.split_once(']').map_or("", |(_, rest)| rest),
            '{' => {
                let (body, after) = braces(after);
                for name in names_in(body, MOST_WORDS.saturating_sub(words)) {
                    words += 1;
                    add(Which::Named(name));
                }
                after
            }
            '(' if matches!(
                before.as_str(),
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right"
            ) =>
            {
                after.split_once(')').map_or("", |(_, rest)| rest)
            }
            _ => after,
        };
        if !c.is_whitespace() {
            before.clear();
        }
    }
    out
}

/// The text up to the closing brace, strings respected, and the rest.
fn braces(text: &str) -> (&str, &str) {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        rest = match c {
            '}' => {
                let body = text.get(..text.len() - rest.len()).unwrap_or("");
                return (body, after);
            }
            '"' | '\'' | '`' => string(after, c).map_or("", |(_, rest)| rest),
            _ => after,
        };
    }
    (text, "")
}

/// The metric names that stand in a selector's braces: values of `__name__`, and a quoted name of
/// its own.
fn names_in(body: &str, most: usize) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = body;
    // What stands before the string at hand: nothing, a label, or a label and an operator.
    let mut matcher = String::new();
    // One more than may be read says that there are more.
    while out.len() <= most
        && let Some(c) = rest.chars().next()
    {
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        match c {
            '"' | '\'' | '`' => {
                let Some((text, after)) = string(after, c) else {
                    break;
                };
                let compared = after.trim_start().starts_with(['=', '!']);
                if compared {
                    text.clone_into(&mut matcher);
                } else if matcher.trim().is_empty()
                    || matcher.trim_start().trim_matches('"').starts_with(NAME)
                        && !matcher.contains('!')
                {
                    out.push(unescaped(text));
                }
                rest = after;
                continue;
            }
            ',' => matcher.clear(),
            _ => matcher.push(c),
        }
        rest = after;
    }
    out
}

/// Decodes the escapes with which a name can be written so that its letters do not show.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let (digits, radix, first) = match chars.next() {
            Some('u') => (4, 16, None),
            Some('U') => (8, 16, None),
            Some('x') => (2, 16, None),
            Some(digit @ '0'..='7') => (2, 8, Some(digit)),
            Some(other) => {
                out.push(other);
                continue;
            }
            None => break,
        };
        let code: String = first
            .into_iter()
            .chain(chars.by_ref().take(digits))
            .collect();
        out.extend(
            u32::from_str_radix(&code, radix)
                .ok()
                .and_then(char::from_u32),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::metrics::MetricCatalog, signal::classify_promql};

    fn read(query: &str) -> Vec<(String, Class, Option<Doubt>)> {
        classify_promql(MetricCatalog::builtin(), query)
            .into_iter()
            .map(|signal| (signal.name, signal.class, signal.doubt))
            .collect()
    }

    /// The one thing that a query says about a device, or that it says nothing.
    fn device(query: &str) -> Option<(Class, Option<Doubt>)> {
        let all: Vec<_> = read(query)
            .into_iter()
            .filter(|(_, class, _)| !matches!(class, Class::Neutral | Class::Serving))
            .collect();
        assert!(all.len() < 2, "{query}: {all:?}");
        all.first().map(|(_, class, doubt)| (*class, *doubt))
    }

    const REFUSED: Option<(Class, Option<Doubt>)> = Some((Class::Utilization, None));
    const COUNTED: Option<(Class, Option<Doubt>)> =
        Some((Class::Utilization, Some(Doubt::Counted)));
    const OPAQUE: Option<(Class, Option<Doubt>)> = Some((Class::Opaque, None));
    const UNPARSED: Option<(Class, Option<Doubt>)> =
        Some((Class::Utilization, Some(Doubt::Unparsed)));

    #[test]
    fn a_series_is_found_wherever_its_value_matters() {
        for query in [
            "DCGM_FI_DEV_GPU_UTIL",
            "avg(DCGM_FI_DEV_GPU_UTIL{deployment=\"a\"})",
            "avg(avg_over_time(nvidia_gpu_duty_cycle{pod=~\"a.*\"}[5m])) by (pod)",
            "quantile(scalar(DCGM_FI_DEV_GPU_UTIL), vllm:num_requests_waiting)",
            "topk(scalar(DCGM_FI_DEV_GPU_UTIL), vllm:num_requests_waiting)",
            "sum(vllm:num_requests_waiting) + 0*sum(DCGM_FI_DEV_GPU_UTIL)",
            "vllm:num_requests_waiting and on() (DCGM_FI_DEV_GPU_UTIL > 80)",
            "count(DCGM_FI_DEV_GPU_UTIL > 80)",
            "DCGM_FI_DEV_GPU_UTIL > bool 80",
            "-DCGM_FI_DEV_GPU_UTIL offset 5m",
            "max_over_time(DCGM_FI_DEV_GPU_UTIL[1h:5m])",
            "avg({__name__=\"DCGM_FI_DEV_GPU_UTIL\"})",
            "avg({\"DCGM_FI_DEV_GPU_UTIL\"})",
            "avg({\"__name__\"=\"DCGM_FI_DEV_GPU_UTIL\"})",
            "avg({__name__=\"\\u0044CGM_FI_DEV_GPU_UTIL\"})",
            "avg({__name__=~\"DCGM_.*_UTIL\",job=\"x\"})",
            "avg({__name__=~\"my_gpu_util.*\"})",
            "avg({__name__=~\"(DCGM_FI_DEV_GPU_UTIL){1}\"})",
            "avg({job=\"a\",__name__=\"DCGM_FI_DEV_GPU_UTIL\" or __name__=\"up\"})",
            "max(max_over_time(DCGM_FI_DEV_GPU_UTIL[$__rate_interval:1m]))",
            "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[$__rate_interval]))",
            "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL{ns=\"{{ .ns }}\"}[{{ .range }}]))",
            "# DCGM\navg(DCGM_FI_DEV_GPU_UTIL)",
            "vllm:num_requests_waiting # not all\r+ avg(DCGM_FI_DEV_GPU_UTIL)",
            "avg(DCGM_FI_DEV_GPU_UTIL OFFSET 1.5)",
            "avg(DCGM_FI_DEV_GPU_UTIL offset - 1w2d)",
            "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[5i]))",
            "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[5m]offset 1h))",
            "offset + DCGM_FI_DEV_GPU_UTIL",
            r"avg({__name__=~`DCGM\wFI_DEV_GPU_UTIL`})",
            r"up{a=`\`} + DCGM_FI_DEV_GPU_UTIL{b=`} offset 1e99 #`}",
            r#"up{a=`"\`} + DCGM_FI_DEV_GPU_UTIL"#,
            "up AND DCGM_FI_DEV_GPU_UTIL OR DCGM_FI_DEV_GPU_UTIL",
        ] {
            assert_eq!(device(query), REFUSED, "{query}");
        }
    }

    #[test]
    fn counting_a_series_is_not_reading_it() {
        for query in [
            "sum(vllm:num_requests_waiting) / count(DCGM_FI_DEV_GPU_UTIL)",
            "count(max by (gpu) (DCGM_FI_DEV_GPU_UTIL))",
            "group(DCGM_FI_DEV_GPU_UTIL)",
            "absent(DCGM_FI_DEV_GPU_UTIL)",
            "count_over_time(DCGM_FI_DEV_GPU_UTIL[5m])",
            "vllm:num_requests_waiting and on(pod) DCGM_FI_DEV_GPU_UTIL",
            "vllm:num_requests_waiting unless DCGM_FI_DEV_GPU_UTIL",
            "count(DCGM_FI_DEV_GPU_UTIL > bool 80)",
        ] {
            assert_eq!(device(query), COUNTED, "{query}");
        }
        assert_eq!(
            device("count(DCGM_FI_DEV_GPU_UTIL) * avg(DCGM_FI_DEV_GPU_UTIL)"),
            REFUSED,
            "one use that matters is enough"
        );
    }

    #[test]
    fn labels_strings_and_comments_are_no_series() {
        for query in [
            "sum(vllm:num_requests_waiting{gpu=\"DCGM_FI_DEV_GPU_UTIL\"})",
            "label_replace(vllm:num_requests_waiting,\"gpu\",\"$1\",\"DCGM_FI_DEV_GPU_UTIL\",\"(.*)\")",
            "sum by (gpu_util) (vllm:num_requests_waiting) # DCGM_FI_DEV_GPU_UTIL",
            "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket[2m])))",
            "sum(rate(vllm:request_success_total[$__rate_interval]))",
            "max(vllm:gpu_cache_usage_perc{namespace=\"a\"})",
            "{__name__=~\"vllm:(num_requests_waiting|num_requests_running)\"}",
            "{__name__=~\"vllm:gpu_cache_usage.*\"}",
            "sum(vllm:gpu_cache_usage_perc{deployment=vllm-llama3})",
            "median by (gpu) (vllm:num_requests_waiting)",
        ] {
            assert_eq!(device(query), None, "{query}");
        }
    }

    #[test]
    fn what_selects_anything_cannot_be_told() {
        for query in [
            "sum({job=\"dcgm-exporter\"})",
            "sum({__name__=~\".+\"})",
            "sum({__name__=~\".*gpu.*\"})",
            "sum({__name__!=\"up\",job=\"x\"})",
            "sum({__name__!~\"DCGM_FI_DEV_GPU_UTIL{1}\",job=\"a\"})",
            "sum(${METRIC})",
            "sum({{ .Values.metric }}{pod=\"a\"})",
            "sum($metric)",
            "sum(DCGM_FI_DEV_$field)",
            "sum(gpu)",
        ] {
            assert_eq!(device(query), OPAQUE, "{query}");
        }
    }

    #[test]
    fn what_does_not_parse_is_read_word_by_word() {
        for query in [
            "avg(DCGM_FI_DEV_GPU_UTIL{pod=~\"vllm.*\"}[30s])",
            "median(DCGM_FI_DEV_GPU_UTIL)",
            "WITH (x = 1) avg(DCGM_FI_DEV_GPU_UTIL)",
            "avg(DCGM_FI_DEV_GPU_UTIL{svc=llama})",
            "median({__name__=\"\\x44CGM_FI_DEV_GPU_UTIL\"})",
            "median({\"DCGM_FI_DEV_GPU_UTIL\",a=\"b\"})",
        ] {
            assert_eq!(device(query), UNPARSED, "{query}");
        }
        for query in [
            "median(up) by (gpu)",
            "union(a, b) keep_metric_names",
            ")",
            "",
            "a b c",
        ] {
            assert_eq!(device(query), None, "{query}");
        }
    }

    #[test]
    fn a_label_decides_where_the_catalogue_says_so() {
        let of =
            |selector: &str| device(&format!("sum(nv_trt_llm_runtime_memory_metrics{selector})"));
        assert_eq!(of("{memory_type=\"gpu\"}"), Some((Class::Memory, None)));
        assert_eq!(of("{memory_type=\"cpu\"}"), Some((Class::Host, None)));
        assert_eq!(of(""), OPAQUE);
    }

    #[test]
    fn a_duration_of_any_length_is_read_past() {
        let lengths = [
            "99999999999999999999",
            "1e20",
            "1e999",
            "1E+999",
            "0x7fffffffffffffff",
            ".9e99",
            "inf",
            "NaN",
            "inf.5",
            "9999999999y",
            "",
        ];
        for length in lengths {
            for query in [
                format!("DCGM_FI_DEV_GPU_UTIL offset {length}"),
                format!("DCGM_FI_DEV_GPU_UTIL offset -{length}"),
                format!("DCGM_FI_DEV_GPU_UTIL Offset\t+ {length}"),
                format!("DCGM_FI_DEV_GPU_UTIL offset#\n{length}"),
                format!("DCGM_FI_DEV_GPU_UTIL offset #\r {length}"),
                format!("max_over_time(DCGM_FI_DEV_GPU_UTIL[5m]offset {length})"),
                format!("max_over_time(DCGM_FI_DEV_GPU_UTIL[{length}])"),
                format!("max_over_time(DCGM_FI_DEV_GPU_UTIL[{length}:{length}])"),
                format!("max_over_time(DCGM_FI_DEV_GPU_UTIL[1h:{length}])"),
                format!("DCGM_FI_DEV_GPU_UTIL @ {length}"),
                format!("DCGM_FI_DEV_GPU_UTIL{{a=`\\`}}+up{{b=`}} offset {length} #`}}"),
            ] {
                let told = device(&query);
                assert!(told == REFUSED || told == UNPARSED, "{query}: {told:?}");
            }
        }
    }

    #[test]
    fn hostile_queries_are_cut_short() {
        let hostile = [
            "a+".repeat(4_000) + "DCGM_FI_DEV_GPU_UTIL",
            "a AND ".repeat(4_000) + "DCGM_FI_DEV_GPU_UTIL",
            "a atan2 ".repeat(4_000) + "DCGM_FI_DEV_GPU_UTIL",
            "(".repeat(40_000),
            "-".repeat(8_000) + "a",
            format!("{}a{}", "(".repeat(4_000), ")".repeat(4_000)),
            "{__name__=~\"".to_owned() + &"(\\\\w{99}){99}".repeat(100) + "\"}",
            "{a=~\"".to_owned() + &"(.{99}){99}".repeat(100) + "\"}",
            "{__name__=~\"(a|b)*\"} or ".repeat(200) + "a",
            "x".repeat(2_000_000),
            "gpu ".repeat(500_000),
            "{{".repeat(4_000),
            "\"".repeat(4_001),
        ];
        // Each of these takes minutes, or the stack, where it is handed to the parser as it is.
        for query in &hostile {
            let _ = read(query);
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        use proptest::prelude::*;
        let piece = prop_oneof![
            Just("DCGM_FI_DEV_GPU_UTIL"),
            Just("{"),
            Just("}"),
            Just("\""),
            Just("'"),
            Just("`"),
            Just("=~"),
            Just("!~"),
            Just("="),
            Just("__name__"),
            Just("("),
            Just(")"),
            Just("["),
            Just("]"),
            Just("5m"),
            Just(":"),
            Just("by "),
            Just("and "),
            Just("count"),
            Just("avg"),
            Just("offset "),
            Just("OFFSET-"),
            Just("1e99"),
            Just("inf"),
            Just("\r"),
            Just("${"),
            Just("$"),
            Just("{{"),
            Just("}}"),
            Just("\\"),
            Just("é"),
            Just("#"),
            Just("\n"),
            Just(","),
            Just("+"),
            Just(" or "),
            Just("@"),
            Just("a"),
            Just(".*"),
        ];
        proptest!(|(pieces in proptest::collection::vec(piece, 0..24), any in ".{0,40}")| {
            let _ = read(&pieces.concat());
            let _ = read(&any);
            for dialect in [super::super::Dialect::Datadog, super::super::Dialect::Nrql,
                super::super::Dialect::CloudWatch, super::super::Dialect::Stackdriver,
                super::super::Dialect::Influx, super::super::Dialect::Text] {
                let _ = super::super::classify_query(MetricCatalog::builtin(), dialect, &pieces.concat());
            }
        });
    }
}
