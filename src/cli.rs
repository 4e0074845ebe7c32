//! The command line.

use std::{
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use jiff::Timestamp;

use crate::{
    finding::FieldPath,
    policy::{Policy, PolicyError},
    report, source,
};

pub mod audit;
pub mod certs;
pub mod check;
pub mod exemptions;
pub mod policy;
pub mod replay;
pub mod rules;
pub mod serve;

/// Nothing was denied.
pub const OK: u8 = 0;
/// Something was denied.
pub const DENIED: u8 = 1;
/// The job could not be done.
pub const FAILED: u8 = 2;

/// Keeps configurations that burn GPU money or drop requests out of a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(name = "gangplank", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the admission webhook
    Serve(Box<serve::Args>),
    /// Judge manifests as the webhook would
    Check(check::Args),
    /// List exemptions: from what, for what, until when, by whom and why
    Exemptions(exemptions::Args),
    /// Judge what a cluster already runs; nothing is written without --report
    Audit(Box<audit::Args>),
    /// Judge the writes in audit logs of an API server, before enforcing
    Replay(replay::Args),
    /// List the rules, or explain one
    Rules(rules::Args),
    /// Show the certificate authority of the webhook, and whether the API server is told to trust it
    Certs(certs::Args),
    /// Check a policy file, show what it comes to, or compare two
    #[command(subcommand)]
    Policy(policy::Command),
}

/// The form of a report that has but two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Colour {
    /// Whether standard output gets colours.
    fn wanted(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// Where requests to a cluster run.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))
}

/// Prints a text. A text that cannot be written is a job that was not done.
fn print(text: &str, code: u8) -> u8 {
    print_with(|out| out.write_all(text.as_bytes()), code)
}

/// As [`print`], of what is made while it is written.
fn print_with(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>, code: u8) -> u8 {
    match report::print_with(write) {
        Ok(()) => code,
        Err(error) => {
            report::complain(&format!("cannot write the report: {error}"));
            FAILED
        }
    }
}

impl Cli {
    /// Runs the command and says how it went: 0 nothing denied, 1 something denied, 2 the job could
    /// not be done.
    pub fn run(self) -> ExitCode {
        let code = match self.command {
            Command::Serve(args) => serve::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Exemptions(args) => exemptions::run(&args),
            Command::Audit(args) => audit::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Rules(args) => rules::run(&args),
            Command::Certs(args) => certs::run(&args),
            Command::Policy(command) => policy::run(&command),
        };
        ExitCode::from(code)
    }
}

/// Reads a policy file; without one, the embedded default.
///
/// # Errors
/// A text that names file, line, column and what is wrong there.
fn load_policy(path: Option<&Path>) -> Result<Policy, String> {
    let Some(path) = path else {
        return Ok(Policy::default());
    };
    let name = path.display().to_string();
    let text = read_policy(path)?;
    PolicyText {
        name: &name,
        text: &text,
    }
    .read(Timestamp::now())
}

/// The text of a policy file.
///
/// # Errors
/// A text that names the file.
fn read_policy(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// A policy as text.
#[derive(Clone, Copy, Debug)]
pub struct PolicyText<'t> {
    /// What errors call it.
    pub name: &'t str,
    /// The text.
    pub text: &'t str,
}

impl PolicyText<'_> {
    /// Reads it as of a moment: a date in it may be too far ahead.
    ///
    /// # Errors
    /// A text that names line, column and what is wrong there.
    pub fn read(self, now: Timestamp) -> Result<Policy, String> {
        let Self { name, text } = self;
        let mut documents = source::read(text);
        if documents.len() > 1 {
            return Err(format!(
                "{name} holds {} documents; a policy is one",
                documents.len()
            ));
        }
        let document = match documents.pop() {
            None => {
                return Err(format!(
                    "{name} is empty; a policy begins with apiVersion and kind"
                ));
            }
            Some(Err(error)) => {
                let place = match (error.line, error.column) {
                    (Some(line), Some(column)) => format!(":{line}:{column}"),
                    _ => String::new(),
                };
                return Err(format!("{name}{place}: {error}"));
            }
            Some(Ok(document)) => document,
        };
        let read = Policy::from_document(&document.value)
            .and_then(|policy| policy.check_dates(now).map(|()| policy));
        read.map_err(|PolicyError { path, message }| {
            let (key, value) = document.marks.locate(&path);
            // What is wrong with a scalar is mostly its value; with anything else, its name.
            let scalar = document.value.pointer(&path.pointer());
            let scalar = scalar.is_some_and(|value| !value.is_object() && !value.is_array());
            let known = !message.starts_with("unknown field");
            let range = value.filter(|_| scalar && known).unwrap_or(key);
            let (line, column) = source::line_column(text, range.start);
            let place = if path == FieldPath::new() {
                String::new()
            } else {
                format!("{path}: ")
            };
            format!("{name}:{line}:{column}: {place}{message}")
        })
    }
}
