//! The body of an admission request, read within the limits.

use std::net::IpAddr;

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::BodyExt;

use super::{
    BODY_LIMIT,
    envelope::{self, Refusal},
    limits::{self, BODY_DEADLINE, Bodies},
};

/// Where the uid of a body that is not read otherwise has to be, in bytes. An API server sends it first.
const UID_WITHIN: usize = 64 * 1024;

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
    let media = parts.headers.get(header::CONTENT_TYPE);
    let media = media
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return Err(Unread::too_large());
    }
    let mut counted = bodies.begin(address);
    let gathered = gather(body, &mut counted);
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
            uid: envelope::salvage_uid(body.get(..UID_WITHIN).unwrap_or(&body)),
            message: format!("the body is {media:?}; only application/json is read"),
        }));
    }
    Ok((body, counted))
}

/// Reads a body to its end. The room that is made for it counts.
async fn gather(mut body: Body, counted: &mut limits::Body) -> Result<Vec<u8>, Unread> {
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
        if reached > bytes.capacity() {
            let room = room(reached, body.size_hint().upper());
            counted.reach(room).map_err(|_| Unread::NoRoom)?;
            bytes.reserve_exact(room.saturating_sub(bytes.len()));
        }
        bytes.extend_from_slice(&data);
    }
}

/// Returns how many bytes to make room for: what has come and as much again, but no more than can be left.
/// A client can say any length, and that alone must not take room from others.
fn room(reached: usize, left: Option<u64>) -> usize {
    let left = left.and_then(|left| usize::try_from(left).ok());
    let most = left.map_or(BODY_LIMIT, |left| reached.saturating_add(left));
    reached.saturating_mul(2).min(most).min(BODY_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[tokio::test]
    async fn the_memory_that_is_held_counts() {
        let frames = [1, 8_000, 64_000, 1, 3_000_000, 2_000_000];
        let parts = frames.map(|length| Ok::<_, Infallible>(vec![b' '; length]));
        let in_parts = Body::from_stream(futures_util::stream::iter(parts));
        for (body, length) in [
            (in_parts, frames.iter().sum()),
            (Body::from("a"), 1),
            (Body::from(vec![b' '; BODY_LIMIT]), BODY_LIMIT),
        ] {
            let held = Gauge::default();
            let bodies = Bodies::new(BODY_LIMIT as u64, held.clone());
            let mut counted = bodies.begin(IpAddr::from([127, 0, 0, 1]));
            let gathered = gather(body, &mut counted).await;
            let bytes = gathered.unwrap_or_else(|_| panic!("{length} bytes"));
            assert_eq!(bytes.len(), length);
            assert_eq!(usize::try_from(held.get()), Ok(bytes.capacity()));
        }
    }

    #[test]
    fn a_length_that_is_said_takes_no_more_room_than_what_has_come() {
        for (reached, left, expected) in [
            (1, Some(BODY_LIMIT as u64 - 1), 2),
            (6_000, Some(0), 6_000),
            (6_000, Some(2_000), 8_000),
            (6_000, None, 12_000),
            (BODY_LIMIT - 1, None, BODY_LIMIT),
            (BODY_LIMIT, Some(u64::MAX), BODY_LIMIT),
        ] {
            assert_eq!(room(reached, left), expected, "{reached} {left:?}");
        }
    }
}
