//! `gangplank rules`

use std::{fmt::Write, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Colour, FAILED, OK, Output},
    policy::Policy,
    report::{self, Style},
    rules::{self, Group, RULES, Rule, page},
    text::wrap,
};

/// The arguments of `gangplank rules`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The rules to explain; without one all are listed
    #[arg(value_name = "RULE")]
    rules: Vec<String>,
    /// Show the levels and parameters of this policy file; those of the built-in policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The form
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// When to use colours
    #[arg(long, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    color: Colour,
}

/// Lists or explains rules.
pub fn run(args: &Args) -> u8 {
    let mut chosen = Vec::new();
    for id in &args.rules {
        match rules::find(id) {
            Ok(rule) => chosen.push(rule),
            Err(error) => {
                report::complain(&error);
                return FAILED;
            }
        }
    }
    let policy = match super::load_policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let style = Style(args.color.wanted());
    let text = match (args.output, chosen.as_slice()) {
        (Output::Json, []) => json(RULES.iter().copied(), &policy),
        (Output::Json, chosen) => json(chosen.iter().copied(), &policy),
        (Output::Text, []) => list(&policy, style),
        (Output::Text, chosen) => chosen
            .iter()
            .map(|rule| explain(rule, &policy, style))
            .collect::<Vec<_>>()
            .join("\n\n"),
    };
    super::print(&text, OK)
}

const fn title(group: Group) -> &'static str {
    match group {
        Group::Signals => "What autoscalers scale on",
        Group::NodePools => "Karpenter NodePools",
        Group::Workloads => "Model servers",
        Group::Objects => "Any object",
        Group::Exemptions => "Exemptions",
    }
}

fn list(policy: &Policy, style: Style) -> String {
    let width = RULES.iter().map(|rule| rule.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut group = None;
    for rule in RULES {
        if group != Some(rule.group) {
            let gap = if group.is_some() { "\n" } else { "" };
            let _ = writeln!(text, "{gap}{}", style.bold(title(rule.group)));
            group = Some(rule.group);
        }
        let level = policy.level(rule).as_str();
        let fills = if rule.fill.is_some() { " (fills)" } else { "" };
        let _ = writeln!(
            text,
            "  {:width$}  {level:5}  {}{fills}",
            rule.id, rule.summary
        );
    }
    text.push_str("\n`gangplank rules RULE` explains one.\n");
    text
}

/// Everything that is declared of a rule, in the words of its declaration.
fn explain(rule: &Rule, policy: &Policy, style: Style) -> String {
    let mut text = format!("{}\n{}.\n\n", style.bold(rule.id), rule.summary);
    let mut fact = |name: &str, value: &str| {
        let lines = wrap(value).replace('\n', "\n               ");
        let _ = writeln!(text, "{name:13}  {lines}");
    };
    let kinds: Vec<String> = rule
        .kinds
        .iter()
        .map(|kind| {
            let versions = kind.versions.join(", ");
            format!("{} ({}/{versions})", kind.kind, kind.group)
        })
        .collect();
    fact("speaks of", &kinds.join(", "));
    let level = policy.level(rule).as_str();
    if level == rule.level.as_str() {
        fact("level", level);
    } else {
        fact(
            "level",
            &format!("{level} by the policy; {} by default", rule.level),
        );
    }
    if let Some(fills) = rule.fills {
        fact("fills", fills);
    }
    if !rule.labels.is_empty() {
        fact("reads labels", &rule.labels.join(", "));
    }
    if !rule.annotations.is_empty() {
        fact("annotations", &rule.annotations.join(", "));
    }
    let params = policy.params(rule);
    let schema = (rule.params.schema)();
    let described = schema.get("properties").and_then(Value::as_object);
    for (name, member) in described.into_iter().flatten() {
        let about = member.get("description").and_then(Value::as_str);
        let value = params.get(name).unwrap_or(&Value::Null);
        let about = about.unwrap_or_default().replace('\n', " ");
        fact("parameter", &format!("{name} = {value}: {about}"));
    }
    fact("more", &rule.help());
    text.push('\n');
    text.push_str(plain(&rule.documentation(), style).trim_end());
    text.push('\n');
    text
}

/// Markdown as people read it in a terminal: headings bold, code set off, paragraphs wrapped.
fn plain(markdown: &str, style: Style) -> String {
    let mut text = String::new();
    let mut paragraph = String::new();
    let mut fenced = false;
    let flush = |paragraph: &mut String, text: &mut String| {
        if !paragraph.is_empty() {
            let item = paragraph.strip_prefix("- ");
            let body = wrap(item.unwrap_or(paragraph)).replace('\n', "\n  ");
            let lead = if item.is_some() { "- " } else { "" };
            let body = if item.is_some() {
                body
            } else {
                body.replace("\n  ", "\n")
            };
            let _ = writeln!(text, "{lead}{body}");
            paragraph.clear();
        }
    };
    for line in markdown.lines() {
        if line.starts_with("```") {
            flush(&mut paragraph, &mut text);
            fenced = !fenced;
        } else if fenced {
            let _ = writeln!(text, "    {line}");
        } else if let Some(heading) = line.strip_prefix("# ") {
            flush(&mut paragraph, &mut text);
            let _ = writeln!(text, "{}", style.bold(heading));
        } else if line.trim().is_empty() {
            flush(&mut paragraph, &mut text);
            text.push('\n');
        } else {
            if line.starts_with("- ") {
                flush(&mut paragraph, &mut text);
            }
            if !paragraph.is_empty() {
                paragraph.push(' ');
            }
            paragraph.push_str(line.trim_end());
        }
    }
    flush(&mut paragraph, &mut text);
    text
}

fn json<'r>(rules: impl Iterator<Item = &'r Rule>, policy: &Policy) -> String {
    let rules: Vec<Value> = rules
        .map(|rule| {
            let kinds: Vec<Value> = rule
                .kinds
                .iter()
                .map(|kind| json!({"group": kind.group, "kind": kind.kind, "versions": kind.versions}))
                .collect();
            json!({
                "id": rule.id,
                "summary": rule.summary,
                "group": page::folder(rule.group),
                "kinds": kinds,
                "level": policy.level(rule).as_str(),
                "defaultLevel": rule.level.as_str(),
                "fills": rule.fills,
                "labels": rule.labels,
                "annotations": rule.annotations,
                "params": policy.params(rule),
                "documentation": rule.documentation(),
                "help": rule.help(),
            })
        })
        .collect();
    let document = json!({"apiVersion": "gangplank.dev/v1", "rules": rules});
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_reads_like_a_text() {
        let markdown = "# Why\nOne `word`\nand more.\n\n- a\n  b\n- c\n```yaml\nkind: X\n```\n";
        assert_eq!(
            plain(markdown, Style(false)),
            "Why\nOne `word` and more.\n\n- a b\n- c\n    kind: X\n"
        );
        assert!(plain(markdown, Style(true)).starts_with("\u{1b}[1mWhy\u{1b}[0m\n"));
    }

    #[test]
    fn every_rule_is_listed_and_explained() {
        let policy = Policy::default();
        let listed = list(&policy, Style(false));
        for rule in RULES {
            assert!(listed.contains(&format!("  {} ", rule.id)), "{}", rule.id);
            let text = explain(rule, &policy, Style(false));
            for part in [
                "What it finds",
                "Why it hurts",
                "Example",
                "Instead",
                "Sources",
            ] {
                assert!(text.contains(&format!("\n{part}\n")), "{}: {part}", rule.id);
            }
            assert!(!text.contains("```"), "{}", rule.id);
        }
    }
}
