//! `gangplank audit`

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    sync::Arc,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use crate::{
    audit::{self, ByPolicy, Plan, Progress},
    cli::{Colour, FAILED},
    cluster::{ClusterArgs, list::Scope, reports},
    policy::Policy,
    report::{self, Entry, Outcome, Problem, Report},
    rules::{self, Kind, kinds},
    text::nearest,
};

/// The arguments of `gangplank audit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing is written to the cluster without --report. Exit codes: 0 nothing would be denied, 1 \
                  something would, 2 something could not be looked at."
)]
pub struct Args {
    /// Only this namespace
    #[arg(
        long,
        short,
        value_name = "NAMESPACE",
        conflicts_with = "all_namespaces"
    )]
    namespace: Option<String>,
    /// All namespaces, and what is in none: the default
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only objects with these labels, as kubectl writes a selector
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only this kind, as Deployment, deployments or nodepools.karpenter.sh; may be repeated
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only what this rule finds; may be repeated
    #[arg(long, value_name = "RULE")]
    rule: Vec<String>,
    /// Write what is found to report objects beside the objects (openreports.io, else wgpolicyk8s.io),
    /// and remove those of objects without findings
    #[arg(long, conflicts_with = "rule")]
    report: bool,
    /// The policy file; the built-in default policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The form of the report
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// When to use colours
    #[arg(long, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    color: Colour,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people, by namespace and owner
    Text,
    /// For programs
    Json,
    /// For code scanning services: SARIF 2.1.0
    Sarif,
    /// For CI servers: JUnit XML
    Junit,
    /// One page, for a browser
    Html,
}

impl Args {
    fn plan(&self) -> Result<Plan, String> {
        let kinds = if self.kind.is_empty() {
            kinds::ALL.to_vec()
        } else {
            let named: Result<_, _> = self.kind.iter().map(|name| kind(name)).collect();
            named?
        };
        if let (Some(_), false) = (&self.namespace, kinds.iter().any(|kind| kind.namespaced)) {
            return Err("--namespace looks at no object: the kinds are in no namespace".to_owned());
        }
        Ok(Plan {
            kinds,
            scope: Scope {
                namespace: self.namespace.clone(),
                selector: self.selector.clone(),
            },
            rules: self
                .rule
                .iter()
                .map(|id| rules::find(id))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A kind by its name or its plural, with or without its group.
fn kind(text: &str) -> Result<&'static Kind, String> {
    let wanted = text.to_lowercase();
    let (name, group) = wanted
        .split_once('.')
        .map_or((wanted.as_str(), None), |(name, group)| (name, Some(group)));
    let is = |kind: &Kind| {
        (kind.kind.eq_ignore_ascii_case(name) || kind.resource == name)
            && group.is_none_or(|group| group == kind.group)
    };
    if let Some(kind) = kinds::ALL.iter().copied().find(|kind| is(kind)) {
        return Ok(kind);
    }
    let known = || kinds::ALL.iter().map(|kind| kind.kind);
    Err(match nearest(text, known()) {
        Some(meant) => format!("no rule speaks of \"{text}\"; did you mean {meant}?"),
        None => format!(
            "no rule speaks of \"{text}\"; the kinds are {}",
            known().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// Audits a cluster and prints what was found.
pub fn run(args: &Args) -> u8 {
    let prepared = args
        .plan()
        .and_then(|plan| Ok((plan, super::load_policy(args.policy.as_deref())?)));
    let (plan, policy) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let report = super::runtime().and_then(|runtime| runtime.block_on(look(args, &plan, policy)));
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let write = |out: &mut dyn io::Write| {
        let text = match args.output {
            Output::Text => report::audit::render(&report, args.color.wanted()),
            Output::Json => return report::json::write(&report, out),
            Output::Sarif => return report::sarif::write(&report, out),
            Output::Junit => return report::junit::write(&report, out),
            Output::Html => report::html::render(&report),
        };
        out.write_all(text.as_bytes())
    };
    super::print_with(write, report.exit_code())
}

async fn look(args: &Args, plan: &Plan, policy: Policy) -> Result<Report, String> {
    let now = Timestamp::now();
    let client = args
        .cluster
        .client()
        .await
        .map_err(|error| error.to_string())?;
    let bar = Bar::new();
    let mut unseen = Vec::new();
    let facts = audit::facts(&client, &policy, &plan.scope, &mut unseen).await;
    let judge = Arc::new(ByPolicy {
        policy: Arc::new(policy),
        facts: Arc::new(facts),
        now,
        rules: plan.rules.clone(),
        // Some forms list every object; and of an object that is clean now a report may be there.
        clean: args.report || matches!(args.output, Output::Json | Output::Junit),
        identity: args.report,
    });
    let seen = audit::run(&client, plan, &judge, &bar).await;
    bar.done();
    unseen.extend(seen.unseen);
    if args.report {
        // Only who has seen everything may say that an object is gone.
        let all = unseen.is_empty()
            && args.kind.is_empty()
            && plan.scope.namespace.is_none()
            && plan.scope.selector.is_none();
        let written = reports::write(&client, &seen.told, &plan.scope, all, now)
            .await
            .map_err(|error| error.to_string())?;
        report::complain(&format!(
            "reports: {} written, {} unchanged, {} removed",
            written.written, written.unchanged, written.removed
        ));
        unseen.extend(written.failed);
    }
    let mut report = Report::default();
    report.add_clean(seen.clean);
    for audited in seen.told {
        report.add(Entry {
            origin: None,
            object: Some(audited.object),
            owner: audited.owner,
            outcome: Outcome::Reviewed(audited.review),
        });
    }
    for message in unseen {
        report.add(Entry {
            origin: None,
            object: None,
            owner: None,
            outcome: Outcome::Failed(Problem {
                message,
                line: None,
                column: None,
            }),
        });
    }
    Ok(report)
}

/// A bar on a terminal, and nothing elsewhere.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // The template is ours; the default looks well enough without it.
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} objects, {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn done(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn reviewed(&self, kind: &Kind, count: usize, left: Option<u64>) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.inc(count);
        let known = self.0.position() + left.unwrap_or(0);
        if known > self.0.length().unwrap_or(0) {
            self.0.set_length(known);
        }
        self.0.set_message(kind.resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_every_name_people_write() {
        for name in [
            "NodePool",
            "nodepool",
            "nodepools",
            "nodepools.karpenter.sh",
        ] {
            assert_eq!(kind(name).unwrap().kind, "NodePool", "{name}");
        }
        assert!(kind("nodepools.example.com").is_err());
        let wrong = kind("NodePol").unwrap_err();
        assert!(wrong.ends_with("did you mean NodePool?"), "{wrong}");
        assert!(
            kind("Pod")
                .unwrap_err()
                .contains("the kinds are NodePool, ")
        );
    }
}
