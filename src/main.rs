//! The `gangplank` command.

use std::process::ExitCode;

use clap::Parser;
use gangplank::cli::Cli;

fn main() -> ExitCode {
    // An error only says that a provider is there already, and ours is the only one compiled in.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::parse().run()
}
