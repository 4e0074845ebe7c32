//! A builder of CEL expressions that evaluate to a value for every object, whatever its shape.
//!
//! An error in a match condition refuses the write under `failurePolicy: Fail`, so every step into an
//! object asks for the type of what it finds there first. `has(x.y)` alone is no guard: it is an error on a
//! list, and true for a null member (seen on kube-apiserver 1.36.3). What has another type than a test
//! asks for is not there, as for the rules. What has more members than a test looks through, and a text
//! that is longer than [`LONG`], passes the test, because the API server bounds what a condition may cost:
//! 1,000,000 for each, and 2,500,000 for the conditions of an entry (k8s.io/apiserver 0.36,
//! pkg/apis/cel/config.go). A regular expression costs the length of the text times its own
//! (google/cel-go, interpreter/runtimecost.go).
//!
//! Expressions stay short by naming a value once: `[value].exists(name, test)`.

use std::fmt::Write as _;

/// The most characters of a text in which a regular expression is looked for.
const LONG: usize = 128;

/// A CEL expression of type bool that never fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// The same for every object.
    Constant(bool),
    /// Needs to be evaluated.
    Text(String),
}

/// A CEL expression of any type that never fails; null where there is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value(String);

impl Test {
    /// Whether the write is a CREATE.
    pub(crate) fn is_create() -> Self {
        Self::Text("request.operation == 'CREATE'".to_owned())
    }

    /// Holds where one of the tests does.
    pub(crate) fn any(tests: impl IntoIterator<Item = Self>) -> Self {
        Self::join(tests, true)
    }

    /// Holds where all tests do.
    pub(crate) fn all(tests: impl IntoIterator<Item = Self>) -> Self {
        Self::join(tests, false)
    }

    /// Joins tests by `||` or `&&`; `decisive` is the constant that decides the whole.
    fn join(tests: impl IntoIterator<Item = Self>, decisive: bool) -> Self {
        let mut parts: Vec<String> = Vec::new();
        for test in tests {
            match test {
                Self::Constant(value) if value == decisive => return Self::Constant(decisive),
                Self::Constant(_) => {}
                Self::Text(part) if parts.contains(&part) => {}
                Self::Text(part) => parts.push(part),
            }
        }
        let operator = if decisive { " || " } else { " && " };
        match parts.as_slice() {
            [] => Self::Constant(!decisive),
            [only] => Self::Text(only.clone()),
            _ => Self::Text(format!("({})", parts.join(operator))),
        }
    }

    /// Holds where this one does not.
    #[must_use]
    pub(crate) fn not(self) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(!value),
            Self::Text(text) => Self::Text(format!("!({text})")),
        }
    }

    /// Holds where one of some texts, called `variable`, passes a test.
    pub(crate) fn any_text<'t>(
        texts: impl IntoIterator<Item = &'t str>,
        variable: &str,
        test: impl FnOnce(&Value) -> Self,
    ) -> Self {
        Self::exists(&Value::texts(texts), variable, test)
    }

    /// Holds where one of some values, called `variable`, passes a test.
    pub(crate) fn any_value(
        values: impl IntoIterator<Item = Value>,
        variable: &str,
        test: impl FnOnce(&Value) -> Self,
    ) -> Self {
        Self::exists(&Value::list(values), variable, test)
    }

    /// Holds where all of some texts, called `variable`, pass a test.
    pub(crate) fn all_texts<'t>(
        texts: impl IntoIterator<Item = &'t str>,
        variable: &str,
        test: impl FnOnce(&Value) -> Self,
    ) -> Self {
        let test = test(&Value::named(variable)).into_text();
        Self::Text(format!("{}.all({variable}, {test})", Value::texts(texts).0))
    }

    /// A test of a value under a name.
    pub(crate) fn of(value: &Value, variable: &str, test: impl FnOnce(&Value) -> Self) -> Self {
        Self::exists(&Value(format!("[{}]", value.0)), variable, test)
    }

    /// Holds where an element, called `variable`, of a list literal passes a test.
    fn exists(list: &Value, variable: &str, test: impl FnOnce(&Value) -> Self) -> Self {
        match test(&Value::named(variable)) {
            Self::Constant(value) => Self::Constant(value && list.0 != "[]"),
            Self::Text(_) if list.0 == "[]" => Self::Constant(false),
            Self::Text(test) => Self::Text(format!("{}.exists({variable}, {test})", list.0)),
        }
    }

    /// Whether something is not the same in the stored object as in the new one. For an UPDATE.
    pub(crate) fn differs(of: impl FnOnce(&Value) -> Value) -> Self {
        let value = of(&Value::named("both")).0;
        Self::Text(format!(
            "[[object, oldObject].map(both, {value})].exists(p, p[0] != p[1])"
        ))
    }

    /// Whether a test of one of both objects, the first variable, beside the other, the second, holds.
    pub(crate) fn either_way(test: impl FnOnce(&Value, &Value) -> Self) -> Self {
        let (here, there) = (Value::named("p[0]"), Value::named("p[1]"));
        match test(&here, &there) {
            Self::Constant(value) => Self::Constant(value),
            Self::Text(test) => Self::Text(format!(
                "[[object, oldObject], [oldObject, object]].exists(p, {test})"
            )),
        }
    }

    /// The expression.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Constant(value) => value.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl Value {
    /// The object as the API server would store it.
    pub(crate) fn object() -> Self {
        Self::named("object")
    }

    /// The value of a variable.
    fn named(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// A list of values. The API server wants elements of one type; `dyn` is one.
    pub(crate) fn list(values: impl IntoIterator<Item = Self>) -> Self {
        let values: Vec<String> = values
            .into_iter()
            .map(|value| format!("dyn({})", value.0))
            .collect();
        Self(format!("[{}]", values.join(", ")))
    }

    /// A list of texts.
    pub(crate) fn texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        Self(format!("[{}]", literals(texts).join(", ")))
    }

    /// A list of what a function makes of the elements, each called `variable`, of this one, which is a
    /// list.
    pub(crate) fn map(&self, variable: &str, made: impl FnOnce(&Self) -> Self) -> Self {
        let made = made(&Self::named(variable)).0;
        Self(format!("{}.map({variable}, {made})", self.0))
    }

    /// Asks step by step whether there is something at a path of identifiers; and the path as a whole. Both
    /// objects are maps.
    fn reach(&self, path: &[&str]) -> (Vec<String>, String) {
        let mut guard = Vec::new();
        let mut whole = self.0.clone();
        for key in path {
            // Objects are maps.
            if !matches!(whole.as_str(), "object" | "both" | "p[0]" | "p[1]") {
                guard.push(format!("type({whole}) == map"));
            }
            let _ = write!(whole, ".{key}");
            guard.push(format!("has({whole})"));
        }
        (guard, whole)
    }

    /// The value at a path of identifiers; null where there is none.
    pub(crate) fn get(&self, path: &[&str]) -> Self {
        match self.reach(path) {
            (guard, whole) if guard.is_empty() => Self(whole),
            (guard, whole) => Self(format!("({} ? {whole} : null)", guard.join(" && "))),
        }
    }

    /// Whether there is something, null included, at a path of identifiers, and it passes a test.
    pub(crate) fn has(&self, path: &[&str], test: impl FnOnce(&Self) -> Test) -> Test {
        let (guard, whole) = self.reach(path);
        let guard = guard.into_iter().map(Test::Text);
        let test = test(&Self(whole));
        Test::all(guard.chain([test]))
    }

    /// A list of the values of some keys; null for each that is not there. `name` is the map's.
    pub(crate) fn values<'k>(&self, name: &str, keys: impl IntoIterator<Item = &'k str>) -> Self {
        let list = self.named_as(name, |map| Self::texts(keys).map("k", |key| map.key(key)));
        Self(format!("{}[0]", list.0))
    }

    /// A member that is known to be there.
    pub(crate) fn member(&self, key: &str) -> Self {
        Self(format!("{}.{key}", self.0))
    }

    /// The value of the key that `key` evaluates to; null where there is none.
    pub(crate) fn key(&self, key: &Self) -> Self {
        let (map, key) = (&self.0, &key.0);
        Self(format!(
            "(type({map}) == map && {key} in {map} ? {map}[{key}] : null)"
        ))
    }

    /// Whether it has the key that `key` evaluates to, with a value that passes a test.
    pub(crate) fn has_key(&self, key: &Self, test: impl FnOnce(&Self) -> Test) -> Test {
        let (map, key) = (&self.0, &key.0);
        let there = format!("type({map}) == map && {key} in {map}");
        let test = test(&Self(format!("{map}[{key}]")));
        Test::all([Test::Text(there), test])
    }

    /// The value of a text as a literal.
    pub(crate) fn text(text: &str) -> Self {
        Self(literal(text))
    }

    /// Whether it is a list of which an element, called `variable`, passes a test, or one with more than
    /// `most` elements.
    pub(crate) fn any_element(
        &self,
        most: usize,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Test {
        self.any_member("list", most, variable, test)
    }

    /// Whether it is a list of at most `most` elements, of which one, called `variable`, passes a test.
    pub(crate) fn any_of_few(
        &self,
        most: usize,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Test {
        let list = &self.0;
        let test = test(&Self::named(variable)).into_text();
        Test::Text(format!(
            "type({list}) == list && size({list}) <= {most} && {list}.exists({variable}, {test})"
        ))
    }

    /// Holds where it is a list of at most `most` elements, each called `variable`, and the lists that these have
    /// at a path have more than `all` elements together.
    pub(crate) fn holds_more_than(
        &self,
        all: usize,
        most: usize,
        variable: &str,
        path: &[&str],
    ) -> Test {
        let (guard, inner) = Self::named(variable).reach(path);
        let (list, guard) = (&self.0, guard.join(" && "));
        Test::Text(format!(
            "type({list}) == list && size({list}) <= {most} && {list}.map({variable}, \
             {guard} && type({inner}) == list ? size({inner}) : 0).sum() > {all}"
        ))
    }

    /// Whether it is a list of more than `most` elements.
    pub(crate) fn is_longer_than(&self, most: usize) -> Test {
        let list = &self.0;
        Test::Text(format!("type({list}) == list && size({list}) > {most}"))
    }

    /// Whether it is a map of which a key, called `variable`, passes a test, or one with more than `most`
    /// keys.
    pub(crate) fn any_key(
        &self,
        most: usize,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Test {
        self.any_member("map", most, variable, test)
    }

    fn any_member(
        &self,
        kind: &str,
        most: usize,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Test {
        let path = &self.0;
        let found = match test(&Self::named(variable)) {
            Test::Constant(false) => Test::Constant(false),
            Test::Constant(true) => Test::Text(format!("size({path}) > 0")),
            Test::Text(inner) => Test::Text(format!("{path}.exists({variable}, {inner})")),
        };
        let many = Test::Text(format!("size({path}) > {most}"));
        Test::all([
            Test::Text(format!("type({path}) == {kind}")),
            Test::any([many, found]),
        ])
    }

    /// What a function makes of each element, called `variable`, of a list; itself where it is none, or has
    /// more than `most` elements.
    pub(crate) fn each(
        &self,
        most: usize,
        variable: &str,
        made: impl FnOnce(&Self) -> Self,
    ) -> Self {
        let (list, made) = (&self.0, made(&Self::named(variable)).0);
        Self(format!(
            "(type({list}) == list && size({list}) <= {most} ? dyn({list}.map({variable}, {made})) : \
             dyn({list}))"
        ))
    }

    /// The elements, called `variable`, of a list that pass a test; itself where it is no list, or has more
    /// than `most` elements.
    pub(crate) fn those(
        &self,
        most: usize,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Self {
        let (list, test) = (&self.0, test(&Self::named(variable)).into_text());
        Self(format!(
            "(type({list}) == list && size({list}) <= {most} ? dyn({list}.filter({variable}, {test})) : \
             dyn({list}))"
        ))
    }

    /// What a function makes of each element, called `variable`, of the list at a path; an empty list where
    /// there is none, or one of more than `most` elements.
    pub(crate) fn elements(
        &self,
        path: &[&str],
        most: usize,
        variable: &str,
        made: impl FnOnce(&Self) -> Self,
    ) -> Self {
        let (guard, list) = self.reach(path);
        let (guard, made) = (guard.join(" && "), made(&Self::named(variable)).0);
        Self(format!(
            "({guard} && type({list}) == list && size({list}) <= {most} ? \
             dyn({list}.map({variable}, {made})) : dyn([]))"
        ))
    }

    /// Whether an element of some lists, called `variable`, passes a test.
    pub(crate) fn any_in(
        lists: Vec<Self>,
        variable: &str,
        test: impl FnOnce(&Self) -> Test,
    ) -> Test {
        let any = |list: &Self| match test(&Self::named(variable)) {
            Test::Constant(value) => Test::Constant(value),
            Test::Text(test) => Test::Text(format!("{}.exists({variable}, {test})", list.0)),
        };
        Test::any_value(lists, "x", any)
    }

    /// The first match of an RE2 expression where it is a text of at most `most` characters; itself
    /// elsewhere.
    pub(crate) fn first_match(&self, most: usize, pattern: &str) -> Self {
        let (text, pattern) = (&self.0, literal(pattern));
        Self(format!(
            "(type({text}) == string && size({text}) <= {most} ? dyn({text}.find({pattern})) : \
             dyn({text}))"
        ))
    }

    /// What a function makes of it under a name.
    pub(crate) fn named_as(&self, variable: &str, made: impl FnOnce(&Self) -> Self) -> Self {
        let (value, made) = (&self.0, made(&Self::named(variable)).0);
        Self(format!("[dyn({value})].map({variable}, {made})"))
    }

    /// Whether it is not null.
    pub(crate) fn is_not_null(&self) -> Test {
        Test::Text(format!("{} != null", self.0))
    }

    /// Whether it is true.
    pub(crate) fn is_true(&self) -> Test {
        Test::Text(format!("{} == true", self.0))
    }

    /// Whether both are the same.
    pub(crate) fn is(&self, other: &Self) -> Test {
        Test::Text(format!("{} == {}", self.0, other.0))
    }

    /// Whether it is one of some texts.
    pub(crate) fn is_among<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Test {
        match literals(texts).as_slice() {
            [] => Test::Constant(false),
            [only] => Test::Text(format!("{} == {only}", self.0)),
            texts => Test::Text(format!("{} in [{}]", self.0, texts.join(", "))),
        }
    }

    /// Two texts with a space in between; both are known to be texts.
    pub(crate) fn joined(&self, other: &Self) -> Self {
        Self(format!("{} + ' ' + {}", self.0, other.0))
    }

    /// Holds where it is a text of at most `most` characters.
    pub(crate) fn is_text_within(&self, most: usize) -> Test {
        self.if_text(format!("size({}) <= {most}", self.0))
    }

    /// Holds where it is a text that begins with another: it is in the order of texts not before that one, and
    /// before the next that does not. `startsWith` would cost the length of the text.
    pub(crate) fn starts_with(&self, prefix: &str) -> Test {
        let (text, from) = (&self.0, literal(prefix));
        let mut next: Vec<char> = prefix.chars().collect();
        let Some(last) = next.last_mut() else {
            return self.if_text("true".to_owned());
        };
        *last = char::from_u32(u32::from(*last) + 1).unwrap_or(char::MAX);
        let until = literal(&next.into_iter().collect::<String>());
        self.if_text(format!("{text} >= {from} && {text} < {until}"))
    }

    /// Whether it is a text that contains another.
    pub(crate) fn has_part(&self, part: &str) -> Test {
        self.if_text(format!("{}.contains({})", self.0, literal(part)))
    }

    /// Holds where it is a text that has a match of an RE2 expression, or a long one.
    pub(crate) fn matches(&self, pattern: &str) -> Test {
        let long = Test::Text(format!("size({}) > {LONG}", self.0));
        let found = Test::any([long, self.has_match(pattern)]);
        self.if_text(found.into_text())
    }

    /// Holds where it has a match of an RE2 expression; it is known to be a text, and bounded.
    pub(crate) fn has_match(&self, pattern: &str) -> Test {
        Test::Text(format!("{}.matches({})", self.0, literal(pattern)))
    }

    /// Whether it is another text with one of some suffixes behind it.
    pub(crate) fn is_with_suffix(&self, other: &Self, suffixes: &[&str]) -> Test {
        let (own, other) = (&self.0, &other.0);
        Test::Text(match suffixes {
            [""] => format!("{own} == {other}"),
            _ => format!(
                "[{}].exists(x, {own} == {other} + x)",
                literals(suffixes.iter().copied()).join(", ")
            ),
        })
    }

    fn if_text(&self, test: String) -> Test {
        let is_text = Test::Text(format!("type({}) == string", self.0));
        Test::all([is_text, Test::Text(test)])
    }
}

/// An RE2 expression that a name with dots in it matches, and no other does.
pub(crate) fn name_pattern(name: &str) -> String {
    name.replace('.', "[.]")
}

/// CEL string literals.
fn literals<'t>(texts: impl IntoIterator<Item = &'t str>) -> Vec<String> {
    texts.into_iter().map(literal).collect()
}

/// A CEL string literal.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            _ => out.push(letter),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_so_that_they_end_where_they_should() {
        assert_eq!(literal(r"it's \d"), r"'it\'s \\d'");
        assert_eq!(literal("a\nb\r"), r"'a\nb\r'");
    }

    #[test]
    fn a_prefix_is_told_by_order() {
        let key = Value::named("k").starts_with("example.com/mig-");
        assert_eq!(
            key.into_text(),
            "(type(k) == string && k >= 'example.com/mig-' && k < 'example.com/mig.')"
        );
    }

    #[test]
    fn what_is_known_before_is_left_out() {
        let part = || Test::Text("a".to_owned());
        assert_eq!(Test::any([Test::Constant(false), part()]), part());
        assert_eq!(Test::all([Test::Constant(true), part(), part()]), part());
        assert_eq!(
            Test::any([part(), Test::Constant(true)]),
            Test::Constant(true)
        );
        assert_eq!(Test::any([]), Test::Constant(false));
        assert_eq!(Test::all([]), Test::Constant(true));
        // A test that begins with a bracket need not end with it.
        let both = Test::Text("(a) == (b)".to_owned());
        assert_eq!(both.not().into_text(), "!((a) == (b))");
    }

    #[test]
    fn every_step_asks_for_the_type_of_what_it_finds() {
        let name = Value::object().get(&["spec", "name"]);
        assert_eq!(
            name.0,
            "(has(object.spec) && type(object.spec) == map && has(object.spec.name) ? \
             object.spec.name : null)"
        );
        let found = Value::object().has(&["spec"], |spec| {
            spec.any_element(3, "c", |one| one.has_part("x"))
        });
        assert_eq!(
            found.into_text(),
            "(has(object.spec) && (type(object.spec) == list && (size(object.spec) > 3 || \
             object.spec.exists(c, (type(c) == string && c.contains('x'))))))"
        );
    }
}
