//! YAML and JSON text to values, with the place of every value in the text.
//!
//! A stream is cut into documents where kubectl cuts it (a line that begins with `---`), so that a
//! document that does not parse leaves the others readable.

use std::{collections::BTreeMap, fmt, iter, ops::Range, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::finding::{FieldPath, Segment};

pub mod edit;

/// A document of a stream.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its position in the stream, from 0; documents without content do not count.
    pub index: usize,
    /// What it says.
    pub value: Arc<Value>,
    /// Where it says it.
    pub marks: Marks,
    /// Its part of the text, in bytes, without the markers around it.
    pub range: Range<usize>,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// The position of the document in the stream, from 0.
    pub index: usize,
    /// What is wrong.
    pub message: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
}

/// Where the values of a document stand, as byte ranges in the whole text.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    root: Mark,
    lines: Lines,
}

/// Where the lines of a text begin. A dump of a cluster is one text for thousands of objects: it is
/// looked through once and not for each of them.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<[usize]>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(iter::once(0).chain(ends.map(|(end, _)| end + 1)).collect())
    }

    /// The line that a byte is in, from 1, and where that begins.
    fn line(&self, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|last| self.0.get(last));
        (line.max(1), start.copied().unwrap_or_default())
    }
}

#[derive(Clone, Debug, Default)]
struct Mark {
    key: Option<Range<usize>>,
    value: Range<usize>,
    members: BTreeMap<String, Self>,
    elements: Vec<Self>,
}

impl Marks {
    /// The place of a path: its key where it has one, else its value; for a path that is not there,
    /// its nearest ancestor. The second range is the value's, where the path itself is there.
    pub fn locate(&self, path: &FieldPath) -> (Range<usize>, Option<Range<usize>>) {
        let mut at = &self.root;
        for segment in path.segments() {
            let next = match segment {
                Segment::Key(key) => at.members.get(key.as_str()),
                Segment::Index(index) => at.elements.get(*index),
            };
            match next {
                Some(below) => at = below,
                None => return (at.place(), None),
            }
        }
        (at.place(), Some(at.value.clone()))
    }

    /// The line and column, from 1, of a byte of the text that was read; the column counts characters.
    pub fn line_column(&self, text: &str, offset: usize) -> (usize, usize) {
        if self.lines.0.is_empty() {
            return line_column(text, offset);
        }
        let offset = offset.min(text.len());
        let (line, start) = self.lines.line(offset);
        let before = text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// The whole lines that a range of the text that was read touches, and the number of the first,
    /// from 1.
    pub fn lines(&self, text: &str, range: &Range<usize>) -> (Range<usize>, usize) {
        if self.lines.0.is_empty() {
            return (0..text.len(), 1);
        }
        let (first, start) = self.lines.line(range.start.min(text.len()));
        let (last, _) = self.lines.line(range.end.min(text.len()));
        let end = self.lines.0.get(last).copied().unwrap_or(text.len());
        (start..end, first)
    }
}

impl Mark {
    fn place(&self) -> Range<usize> {
        self.key.clone().unwrap_or_else(|| self.value.clone())
    }
}

/// Reads every document of a text. Documents that do not parse stand between the others as errors.
pub fn read(text: &str) -> Vec<Result<Document, SourceError>> {
    let mut documents = Vec::new();
    let lines = Lines::of(text);
    let mut index = 0;
    for part in split(text) {
        let Some(source) = text.get(part.clone()) else {
            continue;
        };
        // A directive, as `%YAML 1.1`, speaks of the document after the next marker.
        let idle = |line: &str| {
            line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%')
        };
        if source.lines().all(idle) {
            continue;
        }
        match parse(source) {
            Ok(Spanned {
                value: Node::Null, ..
            }) => continue,
            Ok(node) => {
                let mut root = Mark::default();
                let value = Arc::new(convert(node, part.start, &mut root));
                documents.push(Ok(Document {
                    index,
                    value,
                    marks: Marks {
                        root,
                        lines: lines.clone(),
                    },
                    range: part,
                }));
            }
            Err(error) => {
                let lines_above = lines.line(part.start).0 - 1;
                let location = error.location().filter(|location| location.line() > 0);
                documents.push(Err(SourceError {
                    index,
                    message: plain(&error),
                    line: location.map(|location| lines_above + number(location.line())),
                    column: location.map(|location| number(location.column())),
                }));
            }
        }
        index += 1;
    }
    documents
}

/// The line and column, from 1, of a byte of the text; the column counts characters.
pub fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or_default();
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

/// Byte ranges of the documents: between lines that begin with `---`.
fn split(text: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let marker = line.strip_prefix("---").is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(|next: char| next.is_whitespace())
        });
        if marker {
            parts.push(start..offset);
            // What follows the marker on its line belongs to the document.
            start = offset + 3;
        }
        offset += line.len();
    }
    parts.push(start..text.len());
    parts
        .into_iter()
        .flat_map(|part| objects(text, part))
        .collect()
}

/// The parts of a part: JSON objects that follow each other without a marker, as `jq` prints them,
/// are a document each, to kubectl too.
fn objects(text: &str, part: Range<usize>) -> Vec<Range<usize>> {
    let source = text.get(part.clone()).unwrap_or_default();
    if !source.trim_start().starts_with('{') {
        return vec![part];
    }
    let mut stream =
        serde_json::Deserializer::from_str(source).into_iter::<serde::de::IgnoredAny>();
    let mut parts = Vec::new();
    let mut start = 0;
    while let Some(Ok(_)) = stream.next() {
        let end = stream.byte_offset();
        parts.push(part.start + start..part.start + end);
        start = end;
    }
    let rest = source.get(start..).unwrap_or_default();
    if parts.len() < 2 || !rest.trim().is_empty() {
        // One object, or what is YAML's to read.
        return vec![part];
    }
    parts
}

/// How deep lists and maps may be nested: no manifest comes near it, and the reader is recursive.
const DEEPEST: usize = 64;

fn parse(source: &str) -> Result<Spanned<Node>, serde_saphyr::Error> {
    let size = source.len();
    let options = serde_saphyr::options! {
        // Kubernetes reads YAML 1.1, where 0755 is octal: a file mode means the same to both.
        legacy_octal_numbers: true,
        // What is written out is limited by its own length: a dump of a cluster is large and
        // honest. What a few bytes can blow up, nesting and aliases, keeps its limits.
        budget: serde_saphyr::budget! {
            max_depth: DEEPEST,
            max_nodes: size.max(250_000),
            max_events: size.saturating_mul(4).max(1_000_000),
            max_total_scalar_bytes: size.max(64 * 1024 * 1024),
            max_buffered_comment_events: size.max(32),
        },
    };
    serde_saphyr::from_str_with_options(source, options)
}

/// The message alone: place and snippet are shown our own way.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    // What a programmer could set is nothing that whoever wrote the file could.
    let text = text.split(", set ").next().unwrap_or(text);
    if let Some(text) = beyond(text) {
        return text;
    }
    match text.find(" at line ") {
        Some(end) => text.get(..end).unwrap_or(text).to_owned(),
        None => text.to_owned(),
    }
}

/// What of a text is more than is read, where that is what the reader says: `Depth { depth: 65 }`.
fn beyond(text: &str) -> Option<String> {
    let breach = text.strip_prefix("budget breached: ");
    // The scanner has a limit of its own, which is higher.
    if text.starts_with("recursion limit exceeded")
        || breach.is_some_and(|breach| breach.starts_with("Depth "))
    {
        return Some(format!("nested deeper than {DEEPEST} levels"));
    }
    let breach = breach?;
    let seen = breach.split(['{', '}']).nth(1).unwrap_or(breach).trim();
    Some(format!(
        "more than any manifest needs, and not read any further: {seen}"
    ))
}

fn number(from: u64) -> usize {
    usize::try_from(from).unwrap_or(usize::MAX)
}

fn range(location: Location, base: usize) -> Range<usize> {
    let span = location.span();
    let start = base + number(span.byte_offset().unwrap_or_default());
    start..start + number(span.byte_len().unwrap_or_default())
}

/// A YAML value with the places of its parts.
#[derive(Debug)]
enum Node {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Spanned<Self>>),
    Mapping(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn convert(node: Spanned<Node>, base: usize, mark: &mut Mark) -> Value {
    mark.value = range(node.referenced, base);
    match node.value {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::Bool(value),
        Node::Number(value) => Value::Number(value),
        Node::String(value) => Value::String(value),
        Node::Sequence(list) => Value::Array(
            list.into_iter()
                .map(|element| {
                    let mut below = Mark::default();
                    let value = convert(element, base, &mut below);
                    mark.elements.push(below);
                    value
                })
                .collect(),
        ),
        Node::Mapping(members) => {
            let mut object = Map::new();
            for (key, value) in members {
                let mut below = Mark {
                    key: Some(range(key.referenced, base)),
                    ..Mark::default()
                };
                let value = convert(value, base, &mut below);
                mark.members.insert(key.value.clone(), below);
                object.insert(key.value, value);
            }
            Value::Object(object)
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        Ok(Number::from_i128(value).map_or_else(|| Node::String(value.to_string()), Node::Number))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        Ok(Number::from_u128(value).map_or_else(|| Node::String(value.to_string()), Node::Number))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        // JSON has no infinity; Kubernetes would refuse it too.
        Ok(Number::from_f64(value).map_or_else(|| Node::String(value.to_string()), Node::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Node, E> {
        Ok(Node::String(value))
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Node, E> {
        Ok(Node::String(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = sequence.next_element::<Spanned<Node>>()? {
            list.push(element);
        }
        Ok(Node::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            members.push((key, map.next_value::<Spanned<Node>>()?));
        }
        Ok(Node::Mapping(members))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Document {
        read(text).remove(0).unwrap()
    }

    #[test]
    fn marks_point_at_keys_values_and_ancestors() {
        let text = "spec:\n  list:\n    - name: ä\n      query: \"up\"\n";
        let document = one(text);
        assert_eq!(
            *document.value,
            json!({"spec": {"list": [{"name": "ä", "query": "up"}]}})
        );
        let path = FieldPath::of(&["spec", "list"]).index(0).key("query");
        let (key, value) = document.marks.locate(&path);
        assert_eq!(&text[key.clone()], "query");
        assert_eq!(&text[value.unwrap()], "\"up\"");
        assert_eq!(line_column(text, key.start), (4, 7));
        let (ancestor, value) = document
            .marks
            .locate(&FieldPath::of(&["spec", "list", "none"]));
        assert_eq!((&text[ancestor], value), ("list", None));
    }

    #[test]
    fn documents_are_cut_where_kubectl_cuts_them() {
        let text = "# nothing\n---\na: 1\n--- # next\nb: |\n  --- inside\n---\n\n---\n- c\n";
        let values: Vec<_> = read(text)
            .into_iter()
            .map(|document| document.unwrap())
            .collect();
        assert_eq!(*values[0].value, json!({"a": 1}));
        assert_eq!(*values[1].value, json!({"b": "--- inside\n"}));
        assert_eq!(
            (values[2].index, values[2].value.as_ref()),
            (2, &json!(["c"]))
        );
        assert_eq!(values.len(), 3);
    }

    #[test]
    fn a_broken_document_says_where_and_leaves_the_rest() {
        let text = "a: 1\n---\nb:\n  c: 1\n d: 2\n---\ne: 1\n";
        let documents = read(text);
        assert!(documents[0].is_ok() && documents[2].is_ok());
        let error = documents[1].as_ref().unwrap_err();
        assert_eq!((error.index, error.line), (1, Some(5)), "{error:?}");
        assert!(!error.message.is_empty() && !error.message.contains('\n'));
    }

    #[test]
    fn scalars_mean_what_they_mean_to_kubernetes() {
        let text = "mode: 0755\non: yes\ntext: \"1\"\nnone: ~\n1: x\nbig: 123456789012345678901234567890\n";
        let value = one(text).value;
        assert_eq!(value["mode"], 493);
        assert_eq!(value["text"], "1");
        assert_eq!(value["none"], Value::Null);
        assert_eq!(value["1"], "x");
    }

    #[test]
    fn anchors_and_merges_are_expanded_and_duplicate_keys_refused() {
        let text = "base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n";
        assert_eq!(one(text).value["use"], json!({"x": 1, "y": 2}));
        assert!(read("a: 1\na: 2\n")[0].is_err());
    }

    #[test]
    fn a_large_dump_is_read_and_a_bomb_is_not() {
        let mut dump = String::from("items:\n");
        for index in 0..60_000 {
            writeln!(dump, "- {{a: {index}, b: [x, y]}}").unwrap();
        }
        assert!(read(&dump)[0].is_ok(), "{:?}", read(&dump)[0]);
        let comments = format!("a:\n{}  b: 1\n", "  # why\n".repeat(200));
        assert_eq!(one(&comments).value["a"]["b"], 1);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            writeln!(
                bomb,
                "a{level}: &a{level} [{}]",
                below.trim_end_matches(", ")
            )
            .unwrap();
        }
        let error = read(&bomb).swap_remove(0).unwrap_err();
        let told = "more than any manifest needs, and not read any further: ";
        assert!(error.message.starts_with(told), "{error:?}");
        assert!(!error.message.contains(['{', '}']), "{error:?}");
    }

    #[test]
    fn directives_belong_to_the_document_after_them() {
        let documents = read("%YAML 1.1\n---\na: 1\n");
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0].as_ref().unwrap().value["a"], 1);
    }

    #[test]
    fn the_lines_of_a_text_are_those_that_are_counted() {
        for text in [
            "a: 1",
            "a: 1\n",
            "a: ä\n---\nb:\n  - c\n  - d: |\n      é\n      f\n--- {g: 1}\n\n# h\n",
            "{\"a\": 1}\n{\"b\":\n 2}\n",
        ] {
            for document in read(text) {
                let marks = document.unwrap().marks;
                for (offset, _) in text.char_indices().chain([(text.len(), ' ')]) {
                    let place = line_column(text, offset);
                    assert_eq!(marks.line_column(text, offset), place, "{text:?} {offset}");
                    let (lines, first) = marks.lines(text, &(offset..offset));
                    let line = text
                        .split_inclusive('\n')
                        .nth(place.0 - 1)
                        .unwrap_or_default();
                    assert_eq!((&text[lines], first), (line, place.0), "{text:?} {offset}");
                }
            }
        }
    }

    #[test]
    fn json_objects_in_a_row_are_documents() {
        let documents = read("{\"a\": 1}\n{\"a\": 2}\n");
        let values: Vec<_> = documents
            .iter()
            .map(|d| d.as_ref().unwrap().value["a"].clone())
            .collect();
        assert_eq!(values, [1, 2]);
        let text = "{\"a\": 1}\n{\"b\": 2}\n";
        let second = read(text)[1].as_ref().unwrap().clone();
        assert_eq!(
            line_column(text, second.marks.locate(&FieldPath::of(&["b"])).0.start),
            (2, 2)
        );
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(
            *one("{\"a\": [1, {\"b\": null}]}").value,
            json!({"a": [1, {"b": null}]})
        );
    }

    #[test]
    fn hostile_nesting_is_an_error_and_not_a_crash() {
        let nested = || {
            for depth in [DEEPEST + 1, 100_000] {
                let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
                let error = read(&deep).swap_remove(0).unwrap_err();
                assert_eq!(error.message, "nested deeper than 64 levels");
            }
        };
        // That of a main thread; without optimization a level takes 30 KiB and more.
        let thread = std::thread::Builder::new().stack_size(8 * 1024 * 1024);
        thread.spawn(nested).unwrap().join().unwrap();
    }
}
