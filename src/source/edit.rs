//! Patches of objects, written into the text that the objects were read from.
//!
//! Only what a patch changes is touched: comments, order, indentation, quotes, anchors and line ends
//! stay. What has been written is read again before it is handed out, so that a text either says what
//! the patched objects say or is not changed at all.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};
use json_patch::Patch;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::finding::FieldPath;

#[cfg(test)]
mod tests;

/// A patch of one object of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The position of its document in the text, as in [`Document::index`](super::Document::index).
    pub document: usize,
    /// Its position in the `items` of the document, where that is a List.
    pub item: Option<usize>,
    /// What to change in the object; nothing is ever removed.
    pub patch: Patch,
}

/// The text with the changes made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The text.
    pub text: String,
    /// The changes that could not be made, in their order. Of such a change no part is made.
    pub left: Vec<Left>,
}

/// Why an object was left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The position of the change among those that were asked for.
    pub change: usize,
    /// The field of the object that cannot be written.
    pub path: FieldPath,
    /// What is in the way; it goes on from the name of the field.
    pub why: String,
}

/// Why a text was not changed although nothing seemed in the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its text cannot be changed safely: {0}")]
pub struct EditError(&'static str);

/// Writes patches into the text. A text without changes comes back as it is.
///
/// # Errors
/// Where the text would afterwards not say what the patched objects say, or would have lost a comment.
pub fn apply(text: &str, changes: &[Change]) -> Result<Edited, EditError> {
    let documents = super::read(text);
    let mut wanted: Vec<Option<Value>> = vec![None; documents.len()];
    let mut splices = Vec::new();
    let mut left = Vec::new();
    for document in documents.iter().flatten() {
        let mine = || {
            changes
                .iter()
                .enumerate()
                .filter(|(_, change)| change.document == document.index)
        };
        if mine().next().is_none() {
            continue;
        }
        let layout = Layout::read(text, &document.range)
            .ok_or(EditError("where its values stand cannot be told"))?;
        let style = Style::of(text, &document.range, &layout.root);
        let mut after = Value::clone(&document.value);
        for (position, change) in mine() {
            let mut editor = Editor {
                text,
                part: &document.range,
                layout: &layout,
                style: &style,
                splices: Vec::new(),
            };
            match editor.object(&document.value, &mut after, change) {
                Ok(()) => splices.append(&mut editor.splices),
                Err(Obstacle { path, why }) => left.push(Left {
                    change: position,
                    path,
                    why,
                }),
            }
        }
        if after != *document.value
            && let Some(place) = wanted.get_mut(document.index)
        {
            *place = Some(after);
        }
    }
    left.sort_by_key(|left| left.change);
    let edited = splice(text, splices).ok_or(EditError("its changes overlap"))?;
    verify(text, &edited, &wanted)?;
    Ok(Edited { text: edited, left })
}

/// Whether the new text says what is wanted, and is otherwise the old one.
fn verify(before: &str, after: &str, wanted: &[Option<Value>]) -> Result<(), EditError> {
    let (old, new) = (super::read(before), super::read(after));
    if old.len() != new.len() {
        return Err(EditError("its documents would no longer be told apart"));
    }
    for ((old, new), wanted) in old.iter().zip(&new).zip(wanted) {
        match (old, new, wanted) {
            (Ok(old), Ok(new), None) => {
                if before.get(old.range.clone()) != after.get(new.range.clone()) {
                    return Err(EditError("another document would change"));
                }
            }
            (Ok(old), Ok(new), Some(wanted)) => {
                if *new.value != *wanted {
                    return Err(EditError("it would say something else than it should"));
                }
                let comments =
                    |text, range| Layout::read(text, range).map(|layout| layout.comments);
                if comments(before, &old.range) != comments(after, &new.range) {
                    return Err(EditError("a comment would be lost"));
                }
            }
            // What cannot be read is looked at no further: no change is about it.
            (Err(_), Err(_), None) => {}
            _ => return Err(EditError("a document could no longer be read")),
        }
    }
    Ok(())
}

/// A piece of the text and what to put in its place.
#[derive(Clone, Debug)]
struct Splice {
    at: Range<usize>,
    with: String,
}

/// Makes all replacements; those at the same place follow each other in their order.
fn splice(text: &str, mut splices: Vec<Splice>) -> Option<String> {
    splices.sort_by_key(|splice| splice.at.start);
    let mut out = String::with_capacity(text.len() + 64 * splices.len());
    let mut end = 0;
    for splice in splices {
        out.push_str(text.get(end..splice.at.start)?);
        out.push_str(&splice.with);
        end = splice.at.end;
    }
    out.push_str(text.get(end..)?);
    Some(out)
}

/// A node of a document as it is written.
#[derive(Debug)]
struct Node {
    /// Its text; of what is written in block style, the place where it begins.
    span: Range<usize>,
    /// The column of its members or dashes, from 0, where it is written in block style.
    column: usize,
    /// The number of its anchor; 0 without one.
    anchor: usize,
    /// Whether it has a tag.
    tagged: bool,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Scalar {
        style: ScalarStyle,
        text: String,
    },
    Alias,
    Mapping {
        flow: bool,
        members: Vec<(Node, Node)>,
    },
    Sequence {
        flow: bool,
        elements: Vec<Node>,
    },
}

impl Node {
    /// Whether nothing is written at all, as after `key:`.
    fn is_silent(&self) -> bool {
        self.span.is_empty() && matches!(self.shape, Shape::Scalar { .. })
    }

    fn is_flow(&self) -> bool {
        matches!(
            self.shape,
            Shape::Mapping { flow: true, .. } | Shape::Sequence { flow: true, .. }
        )
    }

    fn is_empty_flow(&self) -> bool {
        match &self.shape {
            Shape::Mapping { flow, members } => *flow && members.is_empty(),
            Shape::Sequence { flow, elements } => *flow && elements.is_empty(),
            _ => false,
        }
    }

    fn member(&self, name: &str) -> Option<&(Self, Self)> {
        let Shape::Mapping { members, .. } = &self.shape else {
            return None;
        };
        members
            .iter()
            .find(|(key, _)| matches!(&key.shape, Shape::Scalar { text, .. } if text == name))
    }

    fn element(&self, index: usize) -> Option<&Self> {
        match &self.shape {
            Shape::Sequence { elements, .. } => elements.get(index),
            _ => None,
        }
    }

    /// The end of the last thing written in it.
    fn end(&self, text: &str) -> usize {
        match &self.shape {
            Shape::Mapping {
                flow: false,
                members,
            } => match members.last() {
                Some((key, value)) => entry_end(key, value, text),
                None => self.span.end,
            },
            Shape::Sequence {
                flow: false,
                elements,
            } => match elements.last() {
                Some(element) => element.end(text),
                None => self.span.end,
            },
            Shape::Scalar {
                style: ScalarStyle::Literal | ScalarStyle::Folded,
                text: said,
            } => {
                // The parser counts the empty lines below it in, and the indentation of what
                // follows. They are content only where they are kept (`|+`).
                let written = text.get(self.span.clone()).unwrap_or_default();
                let kept = if said.ends_with("\n\n") || said.trim_end_matches('\n').is_empty() {
                    written.trim_end_matches([' ', '\t'])
                } else {
                    written.trim_end()
                };
                self.span.start + kept.len()
            }
            _ => self.span.end,
        }
    }
}

fn entry_end(key: &Node, value: &Node, text: &str) -> usize {
    if value.is_silent() {
        key.span.end.max(value.span.end)
    } else {
        value.end(text)
    }
}

/// A document as it is written.
#[derive(Debug)]
struct Layout {
    root: Node,
    /// The anchors that an alias names.
    aliased: BTreeSet<usize>,
    /// What its comments say, in their order.
    comments: Vec<String>,
}

impl Layout {
    fn read(text: &str, part: &Range<usize>) -> Option<Self> {
        let source = text.get(part.clone())?;
        let options = granit_parser::options! {
            max_buffered_comment_events: source.len().max(96),
        };
        let mut builder = Builder {
            events: Parser::new_from_str_with_options(source, options),
            text,
            base: part.start,
            aliased: BTreeSet::new(),
            comments: Vec::new(),
        };
        let mut root = None;
        while let Some((event, span)) = builder.next() {
            if root.is_none()
                && let Step::Node(node) = builder.node(event, span)?
            {
                root = Some(node);
            }
        }
        Some(Self {
            root: root?,
            aliased: builder.aliased,
            comments: builder.comments,
        })
    }
}

struct Builder<'t, I> {
    events: I,
    text: &'t str,
    base: usize,
    aliased: BTreeSet<usize>,
    comments: Vec<String>,
}

impl<'t, E, I: Iterator<Item = Result<(Event<'t>, Span), E>>> Builder<'t, I> {
    /// The next event that is no comment; none at the end, and where the text is broken.
    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        loop {
            match self.events.next()?.ok()? {
                (Event::Comment(text, _), _) => self.comments.push(text.into_owned()),
                other => return Some(other),
            }
        }
    }

    fn range(&self, span: Span) -> Option<Range<usize>> {
        let range = span.byte_range()?;
        Some(self.base + range.start..self.base + range.end)
    }

    /// The node that an event begins; none where the text is broken.
    fn node(&mut self, event: Event<'t>, span: Span) -> Option<Step> {
        let mut span_of = self.range(span)?;
        let column = column(self.text, span_of.start);
        let (anchor, tagged, shape) = match event {
            Event::Alias(anchor) => {
                self.aliased.insert(anchor);
                (0, false, Shape::Alias)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                (anchor, tag.is_some(), Shape::Scalar { style, text })
            }
            Event::SequenceStart(style, anchor, tag) => {
                let flow = style == StructureStyle::Flow;
                let mut elements = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if let Step::Node(element) = self.node(event, span)? {
                        elements.push(element);
                        continue;
                    }
                    if flow {
                        span_of.end = self.range(span)?.end;
                    }
                    break;
                }
                (anchor, tag.is_some(), Shape::Sequence { flow, elements })
            }
            Event::MappingStart(style, anchor, tag) => {
                let flow = style == StructureStyle::Flow;
                let mut members = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if let Step::Node(key) = self.node(event, span)? {
                        let (event, span) = self.next()?;
                        let Step::Node(mut value) = self.node(event, span)? else {
                            return None;
                        };
                        // A list that stands no further in than its key begins, to the parser, behind
                        // its first dash.
                        let dash = self.text.get(value.span.start..);
                        if let Shape::Sequence { flow: false, .. } = value.shape
                            && !(dash.is_some_and(|text| text.starts_with('-'))
                                && margin(self.text, value.span.start).is_some())
                        {
                            value.column = column;
                        }
                        members.push((key, value));
                        continue;
                    }
                    if flow {
                        span_of.end = self.range(span)?.end;
                    }
                    break;
                }
                (anchor, tag.is_some(), Shape::Mapping { flow, members })
            }
            _ => return Some(Step::Other),
        };
        Some(Step::Node(Node {
            span: span_of,
            column,
            anchor,
            tagged,
            shape,
        }))
    }
}

/// What an event begins.
enum Step {
    Node(Node),
    /// Nothing, as the end of a collection.
    Other,
}

/// Why a change cannot be made.
#[derive(Debug)]
struct Obstacle {
    path: FieldPath,
    why: String,
}

/// Where a node stands.
#[derive(Clone, Copy)]
enum Place<'l> {
    /// It is the document.
    Root,
    /// It is the value of a member, written in block style.
    Member {
        /// The key.
        key: &'l Node,
        /// The mapping's column.
        column: usize,
    },
    /// It is an element of a list, or stands in a collection written in flow style.
    Other,
}

/// Makes the changes of one object.
struct Editor<'l> {
    text: &'l str,
    part: &'l Range<usize>,
    layout: &'l Layout,
    style: &'l Style,
    splices: Vec<Splice>,
}

/// How the document is written.
#[derive(Debug)]
struct Style {
    /// What ends its lines.
    newline: &'static str,
    /// How much further in a mapping stands than the one around it.
    step: usize,
    /// How much further in a list stands than the mapping around it.
    list_step: usize,
    /// Whether it is JSON.
    json: bool,
    /// One level of indentation, where it is JSON on many lines.
    indent: Option<String>,
    /// Whether it is JSON without spaces.
    tight: bool,
}

impl Style {
    fn of(text: &str, part: &Range<usize>, root: &Node) -> Self {
        let source = text.get(part.clone()).unwrap_or_default();
        let first_line = |text: &str| text.split_inclusive('\n').next().map(str::to_owned);
        let windows = first_line(source.trim_start_matches(['\r', '\n']))
            .filter(|line| line.ends_with('\n'))
            .or_else(|| first_line(text))
            .is_some_and(|line| line.ends_with("\r\n"));
        let mut steps = (None, None);
        measure(root, &mut steps);
        let json = serde_json::from_str::<serde::de::IgnoredAny>(source.trim()).is_ok();
        let first = match &root.shape {
            Shape::Mapping { members, .. } => members.first().map(|(key, _)| key.span.clone()),
            Shape::Sequence { elements, .. } => elements.first().map(|node| node.span.clone()),
            _ => None,
        };
        let margin = first.clone().and_then(|first| margin(text, first.start));
        let above = indentation(text, root.span.start);
        let indent = margin
            .filter(|_| json)
            .map(|margin| margin.strip_prefix(above).unwrap_or(margin).to_owned())
            .filter(|_| first.is_some_and(|first| line_start(text, first.start) > root.span.start));
        let after_colon = source.split_once("\":").map(|(_, rest)| rest);
        Self {
            newline: if windows { "\r\n" } else { "\n" },
            step: steps.0.unwrap_or(2),
            list_step: steps.1.unwrap_or(2),
            json,
            indent,
            tight: json && after_colon.is_some_and(|rest| !rest.starts_with(char::is_whitespace)),
        }
    }
}

/// The first steps inwards that a document makes: from a mapping to a mapping, and to a list.
fn measure(node: &Node, steps: &mut (Option<usize>, Option<usize>)) {
    if let (Some(_), Some(_)) = steps {
        return;
    }
    match &node.shape {
        Shape::Mapping {
            flow: false,
            members,
        } => {
            let outer = node.column;
            for (_, value) in members {
                let inner = value.column;
                match &value.shape {
                    Shape::Mapping { flow: false, .. } if inner > outer => {
                        steps.0.get_or_insert(inner - outer);
                    }
                    Shape::Sequence { flow: false, .. } if inner >= outer => {
                        steps.1.get_or_insert(inner - outer);
                    }
                    _ => {}
                }
                measure(value, steps);
            }
        }
        Shape::Sequence {
            flow: false,
            elements,
        } => {
            for element in elements {
                measure(element, steps);
            }
        }
        _ => {}
    }
}

fn line_start(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or_default();
    before.rfind('\n').map_or(0, |newline| newline + 1)
}

/// The column of a byte in characters, from 0.
fn column(text: &str, offset: usize) -> usize {
    let line = text.get(line_start(text, offset)..offset);
    line.unwrap_or_default().chars().count()
}

/// The white space at the start of the line of a byte.
fn indentation(text: &str, offset: usize) -> &str {
    let line = text.get(line_start(text, offset)..).unwrap_or_default();
    let end = line.find(|c| c != ' ' && c != '\t').unwrap_or(line.len());
    line.get(..end).unwrap_or_default()
}

/// The same, where nothing else stands before the byte.
fn margin(text: &str, offset: usize) -> Option<&str> {
    let indentation = indentation(text, offset);
    (line_start(text, offset) + indentation.len() == offset).then_some(indentation)
}

impl<'l> Editor<'l> {
    /// Makes a change, and tells `after` of it.
    fn object(
        &mut self,
        document: &Value,
        after: &mut Value,
        change: &Change,
    ) -> Result<(), Obstacle> {
        let gone = |why: &str| Obstacle {
            path: FieldPath::new(),
            why: why.to_owned(),
        };
        let layout = self.layout;
        let (node, before, place) = match change.item {
            None => (&layout.root, document, after),
            Some(item) => {
                let root = FieldPath::new();
                self.open(&layout.root, &root)?;
                let (_, items) = layout
                    .root
                    .member("items")
                    .ok_or_else(|| gone("comes from a merge key"))?;
                self.open(items, &root)?;
                let node = items.element(item).ok_or_else(|| gone("is not there"))?;
                let before = document.get("items").and_then(|items| items.get(item));
                let place = after.get_mut("items").and_then(|items| items.get_mut(item));
                match (before, place) {
                    (Some(before), Some(place)) => (node, before, place),
                    _ => return Err(gone("is not there")),
                }
            }
        };
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &change.patch)
            .map_err(|_| gone("is not what the patch was made for"))?;
        self.node(node, before, &patched, Place::Root, &FieldPath::new())?;
        *place = patched;
        Ok(())
    }

    /// Whether what stands in a node may be changed.
    fn open(&self, node: &Node, path: &FieldPath) -> Result<(), Obstacle> {
        let why = if matches!(node.shape, Shape::Alias) {
            let alias = self.text.get(node.span.clone()).unwrap_or_default();
            format!("is the alias {alias}: change what it stands for")
        } else if self.layout.aliased.contains(&node.anchor) {
            "has an anchor that is used elsewhere, which would change too".to_owned()
        } else {
            return Ok(());
        };
        let path = path.clone();
        Err(Obstacle { path, why })
    }

    fn node(
        &mut self,
        node: &'l Node,
        before: &Value,
        after: &Value,
        place: Place<'l>,
        path: &FieldPath,
    ) -> Result<(), Obstacle> {
        if before == after {
            return Ok(());
        }
        self.open(node, path)?;
        let obstacle = |why: &str| Obstacle {
            path: path.clone(),
            why: why.to_owned(),
        };
        match (before, after, &node.shape) {
            (Value::Object(old), Value::Object(new), Shape::Mapping { flow, .. }) => {
                if old.keys().any(|key| !new.contains_key(key)) {
                    return Err(obstacle("would lose a member"));
                }
                let column = node.column;
                for (name, old) in old {
                    let Some(value_after) = new.get(name).filter(|new| *new != old) else {
                        continue;
                    };
                    let below = path.clone().key(name);
                    let Some((key, value)) = node.member(name) else {
                        let why = "comes from a merge key (<<): change it there".to_owned();
                        return Err(Obstacle { path: below, why });
                    };
                    let place = if *flow {
                        Place::Other
                    } else {
                        Place::Member { key, column }
                    };
                    self.node(value, old, value_after, place, &below)?;
                }
                let added: Map<String, Value> = new
                    .iter()
                    .filter(|(name, _)| !old.contains_key(*name))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                if added.is_empty() {
                    return Ok(());
                }
                let why = self.add(node, &Value::Object(added), place);
                why.map_err(obstacle)
            }
            (Value::Array(old), Value::Array(new), Shape::Sequence { .. }) => {
                if new.len() < old.len() {
                    return Err(obstacle("would lose an element"));
                }
                for (index, (old, new)) in old.iter().zip(new).enumerate() {
                    let below = path.clone().index(index);
                    let Some(element) = node.element(index) else {
                        return Err(obstacle("is written in a way that is not understood"));
                    };
                    self.node(element, old, new, Place::Other, &below)?;
                }
                let added: Vec<Value> = new.iter().skip(old.len()).cloned().collect();
                if added.is_empty() {
                    return Ok(());
                }
                let why = self.add(node, &Value::Array(added), place);
                why.map_err(obstacle)
            }
            (_, _, Shape::Scalar { .. }) => {
                let why = self.replace(node, after, place);
                why.map_err(obstacle)
            }
            _ => Err(obstacle("is of another type")),
        }
    }

    /// Puts a value in the place of a scalar.
    fn replace(
        &mut self,
        node: &'l Node,
        value: &Value,
        place: Place<'l>,
    ) -> Result<(), &'static str> {
        if node.anchor > 0 || node.tagged {
            return Err("has an anchor or a tag");
        }
        if let Shape::Scalar {
            style: ScalarStyle::Literal | ScalarStyle::Folded,
            ..
        } = node.shape
        {
            return Err("is a text of several lines");
        }
        let is_nested = match value {
            Value::Object(members) => !members.is_empty(),
            Value::Array(elements) => !elements.is_empty(),
            _ => false,
        };
        if is_nested && let Some(()) = self.nest(node, value, place) {
            return Ok(());
        }
        if !node.is_silent() {
            let with = match self.style.indent.as_deref() {
                Some(indent) => {
                    let margin = indentation(self.text, node.span.start);
                    pretty(value, indent, margin, self.style.newline)
                }
                None => self.inline(value, self.style.json),
            };
            self.splices.push(Splice {
                at: node.span.clone(),
                with,
            });
            return Ok(());
        }
        let Place::Member { key, .. } = place else {
            return Err("has no value that could be replaced");
        };
        let colon = self.colon(key).ok_or("is written in an unusual way")?;
        let with = format!(" {}", self.inline(value, false));
        self.splices.push(Splice {
            at: colon..colon,
            with,
        });
        Ok(())
    }

    /// The place behind the colon of a key, on its line.
    fn colon(&self, key: &Node) -> Option<usize> {
        let rest = self.text.get(key.span.end..self.part.end)?;
        let gap = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        rest.get(gap..)?
            .starts_with(':')
            .then_some(key.span.end + gap + 1)
    }

    /// Writes the value of a member in block style below its key, in the place of nothing, of null or
    /// of an empty collection; none where that is not possible.
    fn nest(&mut self, node: &'l Node, value: &Value, place: Place<'l>) -> Option<()> {
        let Place::Member { key, column } = place else {
            return None;
        };
        let colon = self.colon(key)?;
        let token = if node.is_silent() {
            colon..colon
        } else {
            // The space before it goes with it.
            let gap = self.text.get(colon..node.span.start)?;
            if !gap.trim_matches([' ', '\t']).is_empty() {
                return None;
            }
            colon..node.span.end
        };
        if node.is_empty_flow() {
            let inside = self.text.get(node.span.start + 1..node.span.end - 1)?;
            if !inside.trim().is_empty() {
                return None;
            }
        }
        let rest = self
            .text
            .get(token.end..self.part.end)?
            .lines()
            .next()
            .unwrap_or_default();
        let rest = rest.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with('#') {
            return None;
        }
        let step = if value.is_array() {
            self.style.list_step
        } else {
            self.style.step
        };
        let lines = self.block(value, column + step);
        let at = token.end;
        if !token.is_empty() {
            self.splices.push(Splice {
                at: token,
                with: String::new(),
            });
        }
        self.insert_lines(at, &lines);
        Some(())
    }

    /// Adds members to a mapping or elements to a list.
    fn add(&mut self, node: &'l Node, added: &Value, place: Place<'l>) -> Result<(), &'static str> {
        if node.is_empty_flow()
            && node.anchor == 0
            && !node.tagged
            && let Some(()) = self.nest(node, added, place)
        {
            return Ok(());
        }
        if node.is_flow() {
            return self.add_inline(node, added);
        }
        let lines = self.block(added, node.column);
        self.insert_lines(node.end(self.text), &lines);
        Ok(())
    }

    /// Puts lines below the line of a place.
    fn insert_lines(&mut self, after: usize, lines: &[String]) {
        let before = self.text.get(..after).unwrap_or_default();
        let rest = self.text.get(after..self.part.end).unwrap_or_default();
        let newline = self.style.newline;
        let (at, with) = if before.ends_with('\n') {
            (after, format!("{}{newline}", lines.join(newline)))
        } else if let Some(end) = rest.find('\n') {
            (after + end + 1, format!("{}{newline}", lines.join(newline)))
        } else {
            // The last line of the text has no end, nor will it have one.
            (self.part.end, format!("{newline}{}", lines.join(newline)))
        };
        self.splices.push(Splice { at: at..at, with });
    }

    /// Adds to a collection in flow style.
    fn add_inline(&mut self, node: &Node, added: &Value) -> Result<(), &'static str> {
        let text = self.text;
        let (last, quoted) = match &node.shape {
            Shape::Mapping { members, .. } => {
                let quoted = members.last().is_some_and(|(key, _)| is_quoted(key));
                let last = members
                    .last()
                    .map(|(key, value)| (key, value, entry_end(key, value, text)));
                (last, quoted)
            }
            Shape::Sequence { elements, .. } => {
                let quoted = elements.last().is_some_and(is_quoted);
                (
                    elements.last().map(|node| (node, node, node.end(text))),
                    quoted,
                )
            }
            _ => return Err("is of another type"),
        };
        let json = self.style.json || quoted;
        let close = node.span.end - 1;
        let Some((first, value, end)) = last else {
            let inside = text.get(node.span.start + 1..close).unwrap_or_default();
            let at = if inside.trim().is_empty() {
                node.span.start + 1..close
            } else {
                // A comment stands there, which ends with its line.
                close..close
            };
            let with = match self.style.indent.as_deref() {
                Some(indent) => {
                    let outer = indentation(text, node.span.start);
                    let newline = self.style.newline;
                    let entries = self.entries(added, json, &format!("{outer}{indent}"));
                    let entries = entries.join(&format!(",{newline}{outer}{indent}"));
                    format!("{newline}{outer}{indent}{entries}{newline}{outer}")
                }
                None => self.entries(added, json, "").join(self.separator()),
            };
            self.splices.push(Splice { at, with });
            return Ok(());
        };
        let tail = text.get(end..close).unwrap_or_default();
        if value.is_silent() && tail.trim_start().starts_with(':') {
            return Err("ends with a member without a value");
        }
        let gap = tail.len() - tail.trim_start().len();
        let comma = tail.trim_start().starts_with(',').then_some(end + gap + 1);
        let own_line = margin(text, first.span.start).filter(|_| tail.contains('\n'));
        let Some(margin) = own_line else {
            let separator = self.separator();
            let entries = self.entries(added, json, "").join(separator);
            let (at, with) = match comma {
                Some(comma) => (comma, format!(" {entries},")),
                None => (end, format!("{separator}{entries}")),
            };
            self.splices.push(Splice { at: at..at, with });
            return Ok(());
        };
        if comma.is_none() {
            self.splices.push(Splice {
                at: end..end,
                with: ",".to_owned(),
            });
        }
        let mut lines: Vec<String> = self
            .entries(added, json, margin)
            .into_iter()
            .map(|entry| format!("{margin}{entry},"))
            .collect();
        if comma.is_none()
            && let Some(line) = lines.last_mut()
        {
            line.pop();
        }
        self.insert_lines(comma.unwrap_or(end), &lines);
        Ok(())
    }

    fn separator(&self) -> &'static str {
        if self.style.tight { "," } else { ", " }
    }

    /// The members or elements of a collection, each in flow style, below a margin.
    fn entries(&self, collection: &Value, json: bool, margin: &str) -> Vec<String> {
        self.entries_of(
            collection,
            json,
            &|value| match self.style.indent.as_deref() {
                Some(indent) => pretty(value, indent, margin, self.style.newline),
                None => self.inline(value, json),
            },
        )
    }

    fn entries_of(
        &self,
        collection: &Value,
        json: bool,
        write: &dyn Fn(&Value) -> String,
    ) -> Vec<String> {
        let colon = if self.style.tight { ":" } else { ": " };
        match collection {
            Value::Object(members) => members
                .iter()
                .map(|(key, value)| format!("{}{colon}{}", word(key, json), write(value)))
                .collect(),
            Value::Array(elements) => elements.iter().map(write).collect(),
            other => vec![write(other)],
        }
    }

    /// A value in flow style, on one line.
    fn inline(&self, value: &Value, json: bool) -> String {
        match value {
            Value::String(text) => word(text, json),
            Value::Object(_) => {
                let entries = self.entries_of(value, json, &|value| self.inline(value, json));
                format!("{{{}}}", entries.join(self.separator()))
            }
            Value::Array(_) => {
                let entries = self.entries_of(value, json, &|value| self.inline(value, json));
                format!("[{}]", entries.join(self.separator()))
            }
            other => other.to_string(),
        }
    }

    /// A collection in block style, line by line.
    fn block(&self, value: &Value, column: usize) -> Vec<String> {
        let margin = " ".repeat(column);
        let is_nested = |value: &Value| match value {
            Value::Object(members) => !members.is_empty(),
            Value::Array(elements) => !elements.is_empty(),
            _ => false,
        };
        let mut lines = Vec::new();
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    let key = word(key, false);
                    if is_nested(value) {
                        let step = if value.is_array() {
                            self.style.list_step
                        } else {
                            self.style.step
                        };
                        lines.push(format!("{margin}{key}:"));
                        lines.extend(self.block(value, column + step));
                    } else {
                        lines.push(format!("{margin}{key}: {}", self.inline(value, false)));
                    }
                }
            }
            Value::Array(elements) => {
                for element in elements {
                    if is_nested(element) {
                        let mut below = self.block(element, column + 2);
                        if let Some(first) = below.first_mut() {
                            *first = format!("{margin}- {}", first.trim_start_matches(' '));
                        }
                        lines.extend(below);
                    } else {
                        lines.push(format!("{margin}- {}", self.inline(element, false)));
                    }
                }
            }
            other => lines.push(format!("{margin}{}", self.inline(other, false))),
        }
        lines
    }
}

fn is_quoted(node: &Node) -> bool {
    matches!(
        node.shape,
        Shape::Scalar {
            style: ScalarStyle::DoubleQuoted,
            ..
        }
    )
}

/// JSON on several lines; all but the first begin with the margin.
fn pretty(value: &Value, indent: &str, margin: &str, newline: &str) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    if value.serialize(&mut serializer).is_err() {
        return value.to_string();
    }
    String::from_utf8_lossy(&bytes).replace('\n', &format!("{newline}{margin}"))
}

/// A key or text in YAML, with quotes where any reader of YAML 1.1 or 1.2 might take it for something
/// else without.
fn word(text: &str, json: bool) -> String {
    if !json && is_plain(text) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            // Neither YAML nor terminals want these as they are.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn is_plain(text: &str) -> bool {
    // YAML 1.1: https://yaml.org/type/bool.html, https://yaml.org/type/null.html
    const TAKEN: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if is_duration(text) {
        return true;
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/=".contains(c);
    // A colon is fine between other characters, as in `nvidia.com/gpu=present:NoSchedule`, but not to
    // every reader in flow style.
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(allowed)
        && !TAKEN.iter().any(|taken| text.eq_ignore_ascii_case(taken))
}

/// Whether a text is a duration as `1h30m`, which nobody quotes and nobody takes for a number.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        if unit.len() == rest.len() {
            return false;
        }
        let Some(after) = ["h", "ms", "m", "s"]
            .iter()
            .find_map(|known| unit.strip_prefix(known))
        else {
            return false;
        };
        rest = after;
    }
    !text.is_empty()
}
