//! JUnit XML, as CI servers read it: a suite for each file or namespace, a case for each object
//! (testmoapp/junitxml; Jenkins' junit-10.xsd).

use std::{collections::BTreeMap, io};

use quick_xml::{
    Writer,
    events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event},
};

use super::{Entry, Outcome, Report};
use crate::finding::{Finding, Level, Verdict};

/// Writes the whole report.
///
/// # Errors
/// Where it cannot be written.
pub fn write(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let mut suites: Vec<(String, Vec<&Entry>)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &report.entries {
        let name = suite(entry);
        let place = *places.entry(name.clone()).or_insert(suites.len());
        match suites.get_mut(place) {
            Some((_, entries)) => entries.push(entry),
            None => suites.push((name, vec![entry])),
        }
    }
    let mut writer = Writer::new_with_indent(out, b' ', 2);
    document(&mut writer, &suites)?;
    writer.into_inner().write_all(b"\n")
}

type Xml<'o> = Writer<&'o mut dyn io::Write>;

fn suite(entry: &Entry) -> String {
    match (&entry.origin, &entry.object) {
        (Some(origin), _) => origin.file.to_string(),
        (None, Some(object)) => object
            .namespace
            .clone()
            .unwrap_or_else(|| "cluster".to_owned()),
        (None, None) => "cluster".to_owned(),
    }
}

fn document(writer: &mut Xml<'_>, suites: &[(String, Vec<&Entry>)]) -> io::Result<()> {
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let all = || {
        suites
            .iter()
            .flat_map(|(_, entries)| entries.iter().copied())
    };
    let root = counted(BytesStart::new("testsuites"), "gangplank", all());
    writer.write_event(Event::Start(root))?;
    for (name, entries) in suites {
        let suite = counted(BytesStart::new("testsuite"), name, entries.iter().copied());
        writer.write_event(Event::Start(suite))?;
        for entry in entries {
            case(writer, name, entry)?;
        }
        writer.write_event(Event::End(BytesEnd::new("testsuite")))?;
    }
    writer.write_event(Event::End(BytesEnd::new("testsuites")))
}

fn counted<'e>(
    mut element: BytesStart<'static>,
    name: &str,
    entries: impl Iterator<Item = &'e Entry>,
) -> BytesStart<'static> {
    let (mut tests, mut failures, mut errors) = (0_usize, 0_usize, 0_usize);
    for entry in entries {
        tests += 1;
        match &entry.outcome {
            Outcome::Failed(_) => errors += 1,
            Outcome::Reviewed(review) if review.verdict() == Verdict::Deny => failures += 1,
            Outcome::Reviewed(_) => {}
        }
    }
    let name = plain(name);
    element.push_attribute(("name", name.as_str()));
    for (key, count) in [("tests", tests), ("failures", failures), ("errors", errors)] {
        element.push_attribute((key, count.to_string().as_str()));
    }
    element
}

fn case(writer: &mut Xml<'_>, suite: &str, entry: &Entry) -> io::Result<()> {
    let mut element = BytesStart::new("testcase");
    element.push_attribute(("classname", plain(suite).as_str()));
    let name = entry.object.as_ref().map_or_else(
        || "a document that cannot be read".to_owned(),
        ToString::to_string,
    );
    element.push_attribute(("name", plain(&name).as_str()));
    if let Some(origin) = entry.origin.as_ref() {
        element.push_attribute(("file", plain(&origin.file).as_str()));
        if let Some(line) = origin.line {
            element.push_attribute(("line", line.to_string().as_str()));
        }
    }
    writer.write_event(Event::Start(element))?;
    match &entry.outcome {
        Outcome::Failed(problem) => {
            let place = match (problem.line, problem.column) {
                (Some(line), Some(column)) => format!("line {line}, column {column}"),
                _ => String::new(),
            };
            told(writer, "error", "unreadable", &problem.message, &place)?;
        }
        Outcome::Reviewed(review) => {
            let of = |level: Level| {
                review
                    .findings
                    .iter()
                    .filter(move |finding| finding.level == level)
            };
            for finding in of(Level::Deny) {
                let body = body(entry, finding);
                let message = format!("{}: {}", finding.path, finding.message);
                told(writer, "failure", finding.rule, &message, &body)?;
            }
            let others: Vec<String> = [Level::Warn, Level::Info]
                .into_iter()
                .flat_map(of)
                .map(|finding| {
                    let body = body(entry, finding);
                    format!(
                        "{}: {}: {}\n{body}",
                        finding.rule, finding.path, finding.message
                    )
                })
                .collect();
            if !others.is_empty() {
                writer.write_event(Event::Start(BytesStart::new("system-out")))?;
                writer.write_event(Event::Text(BytesText::new(&plain(&others.join("\n")))))?;
                writer.write_event(Event::End(BytesEnd::new("system-out")))?;
            }
        }
    }
    writer.write_event(Event::End(BytesEnd::new("testcase")))
}

fn told(
    writer: &mut Xml<'_>,
    element: &str,
    kind: &str,
    message: &str,
    body: &str,
) -> io::Result<()> {
    let mut start = BytesStart::new(element);
    start.push_attribute(("type", kind));
    start.push_attribute(("message", plain(message).as_str()));
    writer.write_event(Event::Start(start))?;
    writer.write_event(Event::Text(BytesText::new(&plain(body))))?;
    writer.write_event(Event::End(BytesEnd::new(element)))
}

/// Where a finding stands, and what to write instead.
fn body(entry: &Entry, finding: &Finding) -> String {
    let mut body = String::new();
    if let Some(origin) = entry
        .origin
        .as_ref()
        .filter(|origin| !origin.text.is_empty())
    {
        let (key, _) = origin.locate(&finding.path);
        let (line, _) = origin.line_column(key.start);
        body = format!("{}:{line}\n", origin.file);
    }
    if !finding.instead.is_empty() {
        body.push_str("write instead:\n");
        body.push_str(finding.instead.trim_end());
        body.push('\n');
    }
    body
}

/// Without the characters that XML 1.0 has no place for, escaped or not.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\n' | '\r' => c,
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => '\u{fffd}',
            c => c,
        })
        .collect()
}
