//! The report as one page: a file that needs no network, is read on a phone, and is complete without
//! scripts; a script of a few lines only filters.

use std::{collections::BTreeMap, fmt::Write};

use quick_xml::escape::escape;

use super::{Entry, Origin, Outcome, Report};
use crate::{
    finding::{Finding, Level, Verdict},
    rules,
    text::{harmless, shown},
};

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/filter.js");

/// The whole page.
pub fn render(report: &Report) -> String {
    let told: Vec<Told<'_>> = report.entries.iter().filter_map(Told::of).collect();
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>Gangplank report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>Gangplank report</h1>\n"
    );
    tiles(&mut page, report);
    unread(&mut page, report);
    charts(&mut page, &told);
    filters(&mut page, &told);
    page.push_str("<main>\n");
    if told.is_empty() {
        page.push_str("<p>Nothing was found.</p>\n");
    }
    for one in &told {
        one.write(&mut page);
    }
    let _ = write!(
        page,
        "</main>\n<footer>gangplank {}</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    page
}

/// Text as it may stand anywhere in the page.
fn text(raw: &str) -> String {
    escape(harmless(raw).as_str()).into_owned()
}

fn tiles(page: &mut String, report: &Report) {
    let counts = &report.summary;
    page.push_str("<ul class=\"tiles\">\n");
    for (class, count, what) in [
        ("", counts.objects, "objects"),
        ("deny", counts.denied, "denied"),
        ("warn", counts.warned, "warned"),
        ("allow", counts.allowed, "allowed"),
        ("", counts.exempted, "exempted"),
        ("deny", counts.errors, "errors"),
    ] {
        let class = if count == 0 { "" } else { class };
        let _ = writeln!(page, "<li class=\"{class}\"><b>{count}</b> {what}</li>");
    }
    page.push_str("</ul>\n");
}

/// What could not be looked at comes first: the rest is not all there is.
fn unread(page: &mut String, report: &Report) {
    let mut failed = report.entries.iter().filter_map(|entry| {
        let Outcome::Failed(problem) = &entry.outcome else {
            return None;
        };
        let file = entry.origin.as_ref().map(|origin| &*origin.file);
        let place = match (file, problem.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            (Some(file), None) => format!("{file}: "),
            (None, _) => String::new(),
        };
        Some(text(&format!("{place}{}", problem.message)))
    });
    if let Some(first) = failed.next() {
        page.push_str("<section class=\"errors\">\n<h2>Not looked at</h2>\n<ul>\n");
        for line in std::iter::once(first).chain(failed) {
            let _ = writeln!(page, "<li>{line}</li>");
        }
        page.push_str("</ul>\n</section>\n");
    }
}

/// An object of which there is something to tell.
struct Told<'r> {
    entry: &'r Entry,
    verdict: Verdict,
    findings: Vec<&'r Finding>,
}

impl<'r> Told<'r> {
    fn of(entry: &'r Entry) -> Option<Self> {
        let Outcome::Reviewed(review) = &entry.outcome else {
            return None;
        };
        let findings: Vec<&Finding> = review.findings.iter().collect();
        (!findings.is_empty()).then_some(Self {
            entry,
            verdict: review.verdict(),
            findings,
        })
    }

    fn namespace(&self) -> &str {
        let object = self.entry.object.as_ref();
        let namespace = object.and_then(|object| object.namespace.as_deref());
        namespace.unwrap_or("(none)")
    }

    fn rules(&self) -> Vec<&'static str> {
        let mut rules: Vec<&str> = self.findings.iter().map(|finding| finding.rule).collect();
        rules.dedup();
        rules
    }

    fn write(&self, page: &mut String) {
        let verdict = self.verdict.as_str();
        let object = self.entry.object.as_ref().map(ToString::to_string);
        let open = if self.verdict == Verdict::Deny {
            " open"
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "<details class=\"object\" data-namespace=\"{}\" data-verdict=\"{verdict}\" \
             data-rules=\"{}\"{open}>\n<summary><span class=\"badge {verdict}\">{verdict}</span> {}\
             {}</summary>",
            text(self.namespace()),
            self.rules().join(" "),
            text(&object.unwrap_or_default()),
            self.place()
        );
        for finding in &self.findings {
            self.finding(page, finding);
        }
        page.push_str("</details>\n");
    }

    fn place(&self) -> String {
        let owner = self.entry.owner.as_deref();
        let file = self.entry.origin.as_ref().map(|origin| match origin.line {
            Some(line) => format!("{}:{line}", origin.file),
            None => origin.file.to_string(),
        });
        match file.as_deref().or(owner) {
            Some(place) => format!(" <small>{}</small>", text(place)),
            None => String::new(),
        }
    }

    fn finding(&self, page: &mut String, finding: &Finding) {
        let (class, what) = match (finding.level, &finding.exempted) {
            (_, Some(_)) => ("audit", "exempt"),
            (Level::Deny, None) => ("deny", "denied"),
            (Level::Warn, None) if finding.dry => ("deny", "would be denied"),
            (Level::Warn, None) => ("warn", "warning"),
            (Level::Info, None) if finding.dry => ("info", "would be filled"),
            (Level::Info, None) => ("info", "filled"),
            (Level::Audit, None) => ("audit", "audit"),
        };
        let help = rules::rule(finding.rule).map(rules::Rule::help);
        let _ = writeln!(
            page,
            "<article data-rule=\"{rule}\">\n<h3><span class=\"badge {class}\">{what}</span> \
             <a href=\"{}\">{rule}</a></h3>",
            text(&help.unwrap_or_default()),
            rule = finding.rule,
        );
        let value = finding.value.as_ref().map(shown);
        let value = value.map_or(String::new(), |value| format!(": {value}"));
        let line = line(self.entry.origin.as_deref(), finding);
        let line = line.map_or(String::new(), |line| format!(" (line {line})"));
        let _ = writeln!(
            page,
            "<p class=\"path\"><code>{}{}</code>{line}</p>\n<p>{}</p>",
            text(&finding.path.to_string()),
            text(&value),
            text(&finding.message)
        );
        if let Some(exempted) = &finding.exempted {
            let terms = &exempted.terms;
            let said = format!(
                "Until {}, for {}: {}",
                terms.until, terms.owner, terms.reason
            );
            let _ = writeln!(page, "<p>{}</p>", text(&said));
        }
        if !finding.instead.is_empty() {
            let _ = writeln!(
                page,
                "<p>Write instead:</p>\n<pre>{}</pre>",
                text(finding.instead.trim_end())
            );
        }
        page.push_str("</article>\n");
    }
}

fn line(origin: Option<&Origin>, finding: &Finding) -> Option<usize> {
    let origin = origin.filter(|origin| !origin.text.is_empty())?;
    let (key, _) = origin.locate(&finding.path);
    Some(origin.line_column(key.start).0)
}

/// How many findings there are by rule and by namespace.
fn charts(page: &mut String, told: &[Told<'_>]) {
    let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_namespace: BTreeMap<&str, usize> = BTreeMap::new();
    for one in told {
        for finding in one
            .findings
            .iter()
            .filter(|finding| finding.level >= Level::Warn)
        {
            *by_rule.entry(finding.rule).or_default() += 1;
            *by_namespace.entry(one.namespace()).or_default() += 1;
        }
    }
    if by_rule.is_empty() {
        return;
    }
    page.push_str("<section class=\"charts\">\n");
    for (title, counts) in [
        ("Findings by rule", by_rule),
        ("Findings by namespace", by_namespace),
    ] {
        let most = counts.values().copied().max().unwrap_or(1).max(1);
        let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let _ = writeln!(page, "<figure>\n<figcaption>{title}</figcaption>\n<dl>");
        for (name, count) in counts {
            let share = (count * 100).div_ceil(most);
            let _ = writeln!(
                page,
                "<dt>{}</dt><dd><span style=\"width:{share}%\"></span>{count}</dd>",
                text(name)
            );
        }
        page.push_str("</dl>\n</figure>\n");
    }
    page.push_str("</section>\n");
}

/// The filters; without scripts they would do nothing, so that a script shows them.
fn filters(page: &mut String, told: &[Told<'_>]) {
    let mut namespaces: Vec<&str> = told.iter().map(Told::namespace).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    let mut rules: Vec<&str> = told.iter().flat_map(Told::rules).collect();
    rules.sort_unstable();
    rules.dedup();
    let verdicts = ["deny", "warn", "allow"];
    page.push_str("<form id=\"filters\" hidden>\n");
    for (id, what, values) in [
        ("namespace", "Namespace", namespaces),
        ("rule", "Rule", rules),
        ("verdict", "Verdict", verdicts.to_vec()),
    ] {
        let _ = writeln!(
            page,
            "<label>{what} <select id=\"{id}\"><option value=\"\">all</option>"
        );
        for value in values {
            let value = text(value);
            let _ = writeln!(page, "<option value=\"{value}\">{value}</option>");
        }
        page.push_str("</select></label>\n");
    }
    page.push_str("<output id=\"shown\"></output>\n</form>\n");
}
