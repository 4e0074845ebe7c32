//! Logs: structured, on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Sets up logging for the process, once.
///
/// # Errors
/// Where the level does not parse.
pub fn init(level: &str, format: Option<LogFormat>) -> Result<(), String> {
    let filter = EnvFilter::try_new(level)
        .map_err(|error| format!("--log-level {level:?} is not a log level: {error}"))?;
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let lines = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match format {
        LogFormat::Json => registry
            .with(lines.json().with_current_span(false).with_span_list(false))
            .try_init(),
        LogFormat::Text => registry
            .with(lines.with_ansi(terminal).with_target(false))
            .try_init(),
    };
    done.map_err(|error| error.to_string())?;
    // A panic is caught and answered; its place belongs in the log like everything else.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(place, "panic: {text}");
    }));
    Ok(())
}
