//! The `gangplank` command.

use std::process::ExitCode;

use clap::Parser;
use gangplank::cli::Cli;

/// The one of musl has a single lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An error only says that a provider is there already, and ours is the only one compiled in.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::parse().run()
}
