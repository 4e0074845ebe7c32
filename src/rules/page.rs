//! The rules as a page of Markdown (`policies/RULES.md`), and as part of the policy's JSON Schema.

use std::fmt::Write;

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::{Group, RULES, Rule};
use crate::policy::PolicyFile;

/// The page: a table of all rules, then a section each.
pub fn markdown() -> String {
    let mut text = String::from(
        "# The rules\n\n\
         <!-- Generated from the declarations under src/rules; UPDATE=1 cargo test docs rewrites it. -->\n\n\
         A rule's level is the default; a policy may set another: `deny`, `warn`, `audit` or `off`.\n\n",
    );
    text.push_str(&table(|rule| format!("[{0}](#{0})", rule.id)));
    for rule in RULES {
        let _ = write!(text, "\n## {}\n\n{}.\n\n", rule.id, rule.summary);
        let kinds: Vec<String> = rule
            .kinds
            .iter()
            .map(|kind| format!("{} ({})", kind.kind, kind.group))
            .collect();
        let _ = writeln!(text, "- Speaks of: {}", kinds.join(", "));
        let _ = writeln!(text, "- Default level: {}", rule.level);
        if let Some(fills) = rule.fills {
            let _ = writeln!(text, "- Fills: {fills}");
        }
        if !rule.labels.is_empty() || !rule.annotations.is_empty() {
            let read: Vec<String> = rule
                .labels
                .iter()
                .map(|key| format!("label `{key}`"))
                .chain(
                    rule.annotations
                        .iter()
                        .map(|key| format!("annotation `{key}`")),
                )
                .collect();
            let _ = writeln!(text, "- Reads: {}", read.join(", "));
        }
        params(rule, &mut text);
        let _ = write!(text, "\n{}", headings_below(&rule.documentation()));
    }
    text
}

/// A table of all rules; `name` renders the first column.
pub fn table(name: impl Fn(&Rule) -> String) -> String {
    let mut text = String::from("| rule | what it finds | default | fills |\n|---|---|---|---|\n");
    for rule in RULES {
        let fills = rule.fills.unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {fills} |",
            name(rule),
            rule.summary,
            rule.level
        );
    }
    text
}

/// The text below a heading of a rule's documentation, in one line.
pub fn section(documentation: &str, heading: &str) -> String {
    let lines = documentation
        .lines()
        .skip_while(|line| line.strip_prefix("# ") != Some(heading))
        .skip(1)
        .take_while(|line| !line.starts_with("# ") && !line.starts_with("```"));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ")
}

/// The rule's own headings, one level further down.
fn headings_below(documentation: &str) -> String {
    let mut fenced = false;
    documentation
        .lines()
        .map(|line| {
            fenced ^= line.starts_with("```");
            if line.starts_with("# ") && !fenced {
                format!("##{line}\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect()
}

fn params(rule: &Rule, text: &mut String) {
    let schema = (rule.params.schema)();
    let Some(members) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    text.push_str("\n| parameter | default | |\n|---|---|---|\n");
    for (name, member) in members {
        let default = member
            .get("default")
            .map(Value::to_string)
            .unwrap_or_default();
        let about = member
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "| `{name}` | `{default}` | {} |",
            about.replace('\n', " ")
        );
    }
}

/// The JSON Schema of the policy file, with every rule's own parameters.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<PolicyFile>()
        .to_value();
    let mut rules = serde_json::Map::new();
    for rule in RULES {
        let mut params = (rule.params.schema)();
        let definitions = params.as_object_mut().and_then(|members| {
            members.remove("$schema");
            members.remove("$defs")
        });
        if let (Some(Value::Object(definitions)), Some(all)) = (
            definitions,
            schema.pointer_mut("/$defs").and_then(Value::as_object_mut),
        ) {
            all.extend(definitions);
        }
        rules.insert(
            rule.id.to_owned(),
            json!({
                "description": rule.summary,
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "level": {"enum": ["deny", "warn", "audit", "off"], "default": rule.level},
                    "params": params,
                },
            }),
        );
    }
    let by_rule = json!({
        "description": "Levels and parameters by rule id.",
        "type": "object",
        "additionalProperties": false,
        "properties": rules,
    });
    for pointer in ["/properties/rules", "/$defs/OverrideFile/properties/rules"] {
        if let Some(place) = schema.pointer_mut(pointer) {
            *place = by_rule.clone();
        }
    }
    if let Some(members) = schema.as_object_mut() {
        members.insert("title".to_owned(), json!("Gangplank policy"));
    }
    schema
}

/// The folder below `src/rules` that a group's rules stand in.
pub fn folder(group: Group) -> &'static str {
    match group {
        Group::Signals => "signals",
        Group::NodePools => "node_pools",
        Group::Workloads => "workloads",
        Group::Objects => "objects",
        Group::Exemptions => "exemptions",
    }
}
