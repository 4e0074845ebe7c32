//! Logs: structured, on standard error. Traces, where they are compiled in: [`traces`].

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, Registry, filter::LevelFilter, fmt, prelude::*, reload};

pub mod traces;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Which lines are logged; it can be changed while the process runs.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// The layer that keeps the other lines away, and what changes it.
    ///
    /// # Errors
    /// Where the text is not a filter.
    pub fn new(text: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Self), String> {
        let (layer, handle) = reload::Layer::new(filter(text)?);
        Ok((layer, Self(handle)))
    }

    /// The filter in force.
    pub fn get(&self) -> String {
        // It fails where logging itself is gone.
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// Where the text is not a filter; the one before it stays.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let (filter, from) = (filter(text)?, self.get());
        let to = filter.to_string();
        // Told by the filter that shows it, be it the old or the new one.
        tracing::info!(from, to, "changing the log level");
        self.0.reload(filter).map_err(|error| error.to_string())?;
        tracing::debug!(from, to, "changed the log level");
        Ok(())
    }
}

/// Reads a level, or a filter by module as `info,gangplank::webhook=debug`.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &str| format!("{text:?} is not a log level: {why}");
    // A word alone may also be a module, of which everything is shown, and nothing of all others: what
    // a slip in "debug" would become. And no word at all is taken for "error".
    let is_stray = |part: &&str| {
        part.is_empty() || !part.contains(['=', '[', ':']) && part.parse::<LevelFilter>().is_err()
    };
    let stray = text.split(',').find(is_stray);
    if let Some(stray) = stray {
        return Err(wrong(&format!(
            "{stray:?} is none of off, error, warn, info, debug and trace; a module takes one, as \
             gangplank=debug"
        )));
    }
    EnvFilter::try_new(text).map_err(|error| wrong(&error.to_string()))
}

/// Sets up logging for the process, once.
///
/// # Errors
/// Where the level does not parse.
pub fn init(level: &str, format: Option<LogFormat>) -> Result<LogLevel, String> {
    let (filter, level) = LogLevel::new(level).map_err(|error| format!("--log-level {error}"))?;
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
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_a_level_for_each_module() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,gangplank::webhook=debug",
            "warn,kube=trace",
        ] {
            assert!(filter(good).is_ok(), "{good}: {:?}", filter(good));
        }
        for bad in [
            "",
            "  ",
            "inof",
            "loud",
            "info,",
            "kube=loud",
            "loud=very",
            "info,gangplank",
        ] {
            let error = filter(bad).unwrap_err();
            assert!(error.contains("is not a log level"), "{bad}: {error}");
        }
    }
}
