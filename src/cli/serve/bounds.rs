//! How much `gangplank serve` takes on.

use crate::webhook::limits::{CONNECTIONS, IN_FLIGHT};

/// The limits of `gangplank serve`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Open connections to --listen; what comes beyond is closed at once
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) max_connections: u32,
    /// Admission requests under way; what comes beyond is answered by 503, and the API server asks
    /// again after a second, until its timeout (5 s) is over and the failure policy decides
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = IN_FLIGHT,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) max_in_flight: u32,
}
