//! How much `gangplank serve` takes on.

use crate::{
    subject::quantity::Quantity,
    webhook::{
        BODY_LIMIT,
        limits::{BODY_BYTES, CONNECTIONS, IN_FLIGHT},
    },
};

/// The limits of `gangplank serve`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
#[allow(clippy::struct_field_names, reason = "fields are named as their flags")]
pub(crate) struct Limits {
    /// Open connections to --listen; for what comes beyond, the least useful one is closed: without a
    /// complete request, else unused for the longest time, and none with a request in flight
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) max_connections: u32,
    /// Complete admission requests under way, half of them large; what comes beyond is answered by 503,
    /// and the API server asks again after a second, until its timeout (5 s) is over and the failure
    /// policy decides
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = IN_FLIGHT,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) max_in_flight: u32,
    /// Bytes of unfinished bodies, as 32Mi, and again of large ones that are complete; the body that is
    /// unfinished for the longest time, or the newest of the complete ones, is answered like that too
    #[arg(
        long,
        value_name = "BYTES",
        default_value = BODY_BYTES,
        value_parser = bytes
    )]
    pub(crate) max_body_bytes_in_flight: u64,
}

/// Reads a quantity of bytes that the largest body fits into.
fn bytes(text: &str) -> Result<u64, String> {
    let least = BODY_LIMIT as u64;
    let quantity = Quantity::parse(text)
        .ok_or_else(|| format!("{text:?} is not a quantity of bytes, as 8Mi"))?;
    let bytes = u64::try_from(quantity.ceil()).unwrap_or_default();
    if bytes < least {
        return Err(format!("one body alone may have {least} bytes (8Mi)"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_a_quantity_of_at_least_one_body() {
        assert_eq!(bytes("8Mi"), Ok(8 << 20));
        assert_eq!(bytes("16777216"), Ok(16 << 20));
        assert_eq!(bytes("1G"), Ok(1_000_000_000));
        for wrong in ["", "8MiB", "8 Mi", "-1", "0", "8M", "many"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
