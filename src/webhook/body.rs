//! The body of an admission request, read within the limits.

use std::net::IpAddr;

use axum::{
    body::Body,
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::BodyExt;

use super::{
    BODY_LIMIT,
    envelope::{self, Refusal},
    limits::{self, BODY_DEADLINE, Bodies},
};

/// Room that is made for a body on its word once it begins to come, in bytes; nearly every one fits.
const FIRST_BYTES: usize = 64 * 1024;

/// Why a body was not read to its end.
pub(super) enum Unread {
    /// There is something wrong with it.
    Refused(Refusal),
    /// It had to make room for others.
    NoRoom,
}

impl Unread {
    fn refused(code: StatusCode, message: String) -> Self {
        Self::Refused(Refusal {
            code,
            uid: String::new(),
            message,
        })
    }

    fn too_large() -> Self {
        Self::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {BODY_LIMIT} bytes"),
        )
    }
}

/// Reads a JSON body within the limits.
pub(super) async fn read(
    request: Request,
    bodies: &Bodies,
    address: IpAddr,
) -> Result<(Vec<u8>, limits::Body), Unread> {
    let (parts, body) = request.into_parts();
    let header = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let media = header(header::CONTENT_TYPE).unwrap_or_default();
    let length = header(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_LIMIT) {
        return Err(Unread::too_large());
    }
    let mut counted = bodies.begin(address);
    let gathered = gather(body, length.unwrap_or_default(), &mut counted);
    let Ok(body) = tokio::time::timeout(BODY_DEADLINE, gathered).await else {
        let seconds = BODY_DEADLINE.as_secs();
        return Err(Unread::refused(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {seconds} s"),
        ));
    };
    let body = body?;
    let essence = media.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Unread::Refused(Refusal {
            code: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            uid: envelope::salvage_uid(&body),
            message: format!("the body is {media:?}; only application/json is read"),
        }));
    }
    Ok((body, counted))
}

/// Takes in a body of the length that it says it has, or of none. It counts as it comes: a length is easily
/// said, and would keep others from being heard.
async fn gather(
    mut body: Body,
    length: usize,
    counted: &mut limits::Body,
) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::select! {
            biased;
            () = counted.given_up() => return Err(Unread::NoRoom),
            frame = body.frame() => frame,
        };
        let Some(frame) = frame else {
            return Ok(bytes);
        };
        let frame = frame.map_err(|error| {
            Unread::refused(
                StatusCode::BAD_REQUEST,
                format!("the body broke off: {error}"),
            )
        })?;
        // Trailers say nothing to us.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let reached = bytes.len().saturating_add(data.len());
        if reached > BODY_LIMIT {
            return Err(Unread::too_large());
        }
        counted.reach(reached).map_err(|_| Unread::NoRoom)?;
        if bytes.is_empty() {
            bytes.reserve_exact(length.clamp(data.len(), FIRST_BYTES.max(data.len())));
        }
        bytes.extend_from_slice(&data);
    }
}
