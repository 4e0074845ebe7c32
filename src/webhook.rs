//! The admission endpoints: `/mutate`, `/validate` and `/validate/advise`.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Version, header},
    response::{IntoResponse, Response},
    routing::post,
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use self::{
    body::Unread,
    envelope::Refusal,
    limits::{Bodies, Connection, Gate, Held, Lines, Pass, Pool},
    look::{Asked, Looked, Work},
};
use crate::{
    cluster::access::Access,
    exempt::Rights,
    facts::Facts,
    metrics::Metrics,
    policy::Policy,
    review::{Review, review},
    subject::{Door, Subject, duration::parse_go},
    telemetry::traces::{Span, Traces},
};

pub mod answer;
mod body;
pub mod drift;
pub mod envelope;
pub mod limits;
mod look;
pub mod registration;

/// An UPDATE carries two objects, and etcd takes 1.5 MiB for each; the rest is headroom.
pub const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// Below the webhook configurations' timeout of 5 s the API server stops listening.
pub const TIMEOUT_SECONDS: i32 = 5;

/// The most that a webhook configuration may say (k8s.io/api admissionregistration/v1, `timeoutSeconds`).
const MOST_SECONDS: Duration = Duration::from_secs(30);

/// The pure question; tests put others in its place.
pub type Reviewer = fn(&Policy, &Facts, &Subject, Timestamp) -> Review;

/// What the endpoints share.
#[derive(Debug)]
pub struct Desk {
    /// The policy in force; [`Desk::adopt`] puts another in its place.
    pub policy: ArcSwap<Policy>,
    /// Tells whoever made something from the policy that there is another.
    pub adopted: watch::Sender<()>,
    /// What else is known.
    pub facts: ArcSwap<Facts>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Bounds the requests under way, from the last byte of the body to the answer.
    pub in_flight: Gate,
    /// Bounds those of them that are large.
    pub large_in_flight: Gate,
    /// Bounds the bytes of bodies.
    pub bodies: Bodies,
    /// Judges large bodies.
    pub pool: Pool,
    /// The log lines about refused requests.
    pub refusals: Lines,
    /// The log lines about requests without a verdict.
    pub sheds: Lines,
    /// Whether clients are to go elsewhere: [`Desk::send_away`].
    pub leaving: AtomicBool,
    /// Where spans of requests go.
    pub traces: Traces,
    /// The question that is asked.
    pub reviewer: Reviewer,
    /// Who tells whether a requester may exempt; without it nobody may.
    pub access: Option<Access>,
    /// The time, by which exemptions end. Tests put another in its place; there is no flag for it.
    pub clock: fn() -> Timestamp,
}

impl Desk {
    /// A desk that asks [`review`].
    pub fn new(policy: Policy, metrics: Arc<Metrics>) -> Self {
        metrics.policy(&policy);
        Self {
            policy: ArcSwap::from_pointee(policy),
            adopted: watch::Sender::new(()),
            facts: ArcSwap::from_pointee(Facts::unknown()),
            in_flight: metrics.in_flight(limits::IN_FLIGHT),
            large_in_flight: metrics.large_in_flight(limits::IN_FLIGHT / 2),
            bodies: metrics.body_bytes(BODY_LIMIT as u64),
            pool: Pool::default(),
            refusals: Lines::new("refused requests"),
            sheds: Lines::new("shed requests"),
            leaving: AtomicBool::new(false),
            metrics,
            traces: Traces::default(),
            reviewer: review,
            access: None,
            clock: Timestamp::now,
        }
    }

    /// A desk that can ask whether a requester may exempt.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self.facts.rcu(|facts| facts.with_rights(Rights::askable()));
        self
    }

    /// A desk that answers this many requests at a time, half of them large, and sheds what comes beyond.
    #[must_use]
    pub fn with_in_flight(mut self, limit: u32) -> Self {
        self.in_flight = self.metrics.in_flight(limit);
        self.large_in_flight = self.metrics.large_in_flight((limit / 2).max(1));
        self
    }

    /// From now on the answer to a request is the last one of its connection, so that the next request
    /// opens another, to a replica that stays. By the time when the rest is closed nobody should be
    /// about to send anything over it: that would be lost.
    ///
    /// HTTP/2 has GOAWAY for this, which loses nothing, so it is HTTP/1 that is told.
    pub fn send_away(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// A desk that holds this many bytes of unfinished bodies at a time, and of complete ones that are large,
    /// and sheds what comes beyond.
    #[must_use]
    pub fn with_body_bytes(mut self, limit: u64) -> Self {
        self.bodies = self.metrics.body_bytes(limit);
        self
    }

    /// A desk that tells these traces of its requests.
    #[must_use]
    pub fn with_traces(mut self, traces: Traces) -> Self {
        self.traces = traces;
        self
    }

    /// Puts another policy in force. A request is judged by one policy from beginning to end.
    pub fn adopt(&self, policy: Policy) {
        self.metrics.policy(&policy);
        self.policy.store(Arc::new(policy));
        self.adopted.send_replace(());
    }
}

/// The admission endpoints.
pub fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/mutate", post(mutate))
        .route("/validate", post(validate))
        .route("/validate/advise", post(advise))
        .with_state(desk)
}

async fn mutate(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    serve(&desk, "mutate", "/mutate", Door::Mutate, request).await
}

async fn validate(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    serve(&desk, "validate", "/validate", Door::Validate, request).await
}

async fn advise(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    serve(&desk, "advise", "/validate/advise", Door::Validate, request).await
}

async fn serve(
    desk: &Arc<Desk>,
    endpoint: &'static str,
    path: &'static str,
    door: Door,
    request: Request,
) -> Response {
    let version = request.version();
    let span = desk.traces.begin(path, request.headers());
    let (mut response, span) = handle(desk, endpoint, door, request, span).await;
    if version < Version::HTTP_2 && desk.leaving.load(Ordering::Relaxed) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    if let Some(span) = span {
        span.answered(response.status());
    }
    response
}

async fn handle(
    desk: &Arc<Desk>,
    endpoint: &'static str,
    door: Door,
    request: Request,
    span: Span,
) -> (Response, Option<Span>) {
    let deadline = tokio::time::Instant::now() + time_to_wait(request.uri().query());
    let connection = request.extensions().get::<Connection>().cloned();
    let address = (connection.as_ref()).map_or(Ipv4Addr::UNSPECIFIED.into(), Connection::address);
    let unread = body::read(request, &desk.bodies, address).await;
    let complete = Instant::now();
    // As soon as nothing more has to come: its connection is not closed to make room any more.
    let mut in_flight = connection.filter(|_| unread.is_ok()).map(|it| it.begin());
    let admitted = match unread {
        Ok((body, counted)) => admit(desk, body, counted),
        Err(Unread::NoRoom) => Err(Unjudged::Shed(Shed::Bytes)),
        Err(Unread::Refused(refusal)) => Err(Unjudged::Refused(refusal)),
    };
    let (mut span, answered) = match admitted {
        Ok(admitted) => {
            let work = Work {
                desk: Arc::clone(desk),
                endpoint,
                door,
                body: admitted.body,
                _held: admitted.held,
                complete,
                policy: desk.policy.load_full(),
                facts: desk.facts.load_full(),
                now: (desk.clock)(),
                may_ask: desk.access.is_some(),
                span,
            };
            judge(work, admitted.is_large, deadline).await
        }
        Err(unjudged) => (Some(span), Err(unjudged)),
    };
    // Whoever is to ask again is of use too, and has to learn of it.
    if let (Some(in_flight), Ok(_) | Err(Unjudged::Shed(_))) = (&mut in_flight, &answered) {
        in_flight.answered();
    }
    let response = match answered {
        Ok(answer) => respond(StatusCode::OK, answer),
        Err(unjudged) => unjudged.answer(desk, endpoint, complete, span.as_mut()),
    };
    (response, span)
}

/// Returns how long a large body may wait for its turn: four fifths of the time that the API server gives in
/// the URL (`?timeout=5s`; k8s.io/client-go, rest/request.go), else in the webhook configurations. They may
/// give 30 s at most. The rest is for the verdict, which nobody hears when the time is over.
fn time_to_wait(query: Option<&str>) -> Duration {
    let default = Duration::from_secs(u64::from(TIMEOUT_SECONDS.unsigned_abs()));
    let given = query
        .and_then(|query| {
            query
                .split('&')
                .find_map(|one| one.strip_prefix("timeout="))
        })
        .and_then(parse_go)
        .filter(|given| !given.is_zero())
        .map_or(default, |given| given.min(MOST_SECONDS));
    given * 4 / 5
}

/// A complete body that may be judged, and what it takes until it is answered.
struct Admitted {
    body: Vec<u8>,
    held: Held,
    is_large: bool,
    _passes: (Pass, Option<Pass>),
}

/// Lets in a body that is complete.
fn admit(desk: &Desk, body: Vec<u8>, counted: limits::Body) -> Result<Admitted, Unjudged> {
    let pass = desk.in_flight.enter().ok_or(Shed::Requests)?;
    let is_large = limits::is_large(&body);
    let large = if is_large {
        Some(desk.large_in_flight.enter().ok_or(Shed::Large)?)
    } else {
        None
    };
    let held = counted.complete(is_large).map_err(|_| Shed::Bytes)?;
    Ok(Admitted {
        body,
        held,
        is_large,
        _passes: (pass, large),
    })
}

/// Judges a request: a small one here, a large one when its turn comes. Nothing of a large one but its body
/// is held while somebody else is asked about it. The span is gone where a large one panicked.
async fn judge(
    mut work: Work,
    is_large: bool,
    deadline: tokio::time::Instant,
) -> (Option<Span>, Result<Vec<u8>, Unjudged>) {
    let desk = Arc::clone(&work.desk);
    loop {
        let looked = if is_large {
            match look_in_turn(&desk, work, deadline).await {
                Ok((looked_at, looked)) => {
                    work = looked_at;
                    looked
                }
                Err((span, unjudged)) => return (span, Err(unjudged)),
            }
        } else {
            work.look()
        };
        let asked = match looked {
            Looked::Answer(answer) => return (Some(work.span), Ok(answer)),
            Looked::Refused(refusal) => return (Some(work.span), Err(refusal.into())),
            Looked::Asks(asked) => asked,
        };
        if let Some(access) = &desk.access {
            let Asked {
                requester,
                subject,
                rules,
            } = &*asked;
            let rights = access.rights(&work.policy, requester, subject, rules).await;
            work.facts = Arc::new(work.facts.with_rights(rights));
        }
        work.may_ask = false;
    }
}

/// Looks at a large request when its turn comes: even to measure it takes too long for a thread that serves.
async fn look_in_turn(
    desk: &Desk,
    work: Work,
    deadline: tokio::time::Instant,
) -> Result<(Work, Looked), (Option<Span>, Unjudged)> {
    let too_late = |work: Work| (Some(work.span), Shed::Time.into());
    let Some(thread) = desk.pool.thread(deadline).await else {
        return Err(too_late(work));
    };
    let (work, thread, size) = beside(desk, work, thread, Work::measure).await?;
    let size = match size {
        Ok(size) => size,
        Err(refusal) => return Err((Some(work.span), refusal.into())),
    };
    let Some(turn) = desk.pool.turn(thread, size, deadline).await else {
        return Err(too_late(work));
    };
    let (work, _, looked) = beside(desk, work, turn, Work::look).await?;
    Ok((work, looked))
}

/// Does something with a request on a thread that does not serve. It goes on though nobody waits for the answer
/// any more, and so `held` is held.
async fn beside<Kept: Send + 'static, Done: Send + 'static>(
    desk: &Desk,
    mut work: Work,
    held: Kept,
    what: fn(&mut Work) -> Done,
) -> Result<(Work, Kept, Done), (Option<Span>, Unjudged)> {
    let doing = tokio::task::spawn_blocking(move || {
        let done = what(&mut work);
        (work, held, done)
    });
    doing.await.map_err(|_| {
        desk.metrics.panicked();
        (None, look::failed(String::new()).into())
    })
}

fn microseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// Why a request has no verdict.
enum Unjudged {
    /// There is something wrong with it, or with us.
    Refused(Refusal),
    /// There is too much to do.
    Shed(Shed),
}

impl From<Refusal> for Unjudged {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Shed> for Unjudged {
    fn from(shed: Shed) -> Self {
        Self::Shed(shed)
    }
}

/// What there is too much of.
#[derive(Clone, Copy)]
enum Shed {
    Requests,
    Large,
    Bytes,
    Time,
}

impl Unjudged {
    fn answer(
        &self,
        desk: &Desk,
        endpoint: &'static str,
        complete: Instant,
        span: Option<&mut Span>,
    ) -> Response {
        match self {
            Self::Refused(refusal) => {
                if let Some(span) = span {
                    span.refused(&refusal.uid, &refusal.message);
                }
                refused(desk, endpoint, refusal, complete.elapsed())
            }
            Self::Shed(shed) => {
                let (reason, why) = shed.explain(desk);
                if let Some(span) = span {
                    span.refused("", &why);
                }
                shed_request(desk, reason, &why)
            }
        }
    }
}

impl Shed {
    /// Returns its label, and what the client is told.
    fn explain(self, desk: &Desk) -> (&'static str, String) {
        match self {
            Self::Requests => (
                "requests",
                format!(
                    "more than {} admission requests are under way; ask again",
                    desk.in_flight.limit()
                ),
            ),
            Self::Large => (
                "large",
                format!(
                    "more than {} large admission requests are under way; ask again",
                    desk.large_in_flight.limit()
                ),
            ),
            Self::Bytes => (
                "bytes",
                format!(
                    "the bodies of the admission requests under way have more than {} bytes; ask again",
                    desk.bodies.limit()
                ),
            ),
            Self::Time => (
                "time",
                "large objects before this one took all of its time; ask again".to_owned(),
            ),
        }
    }
}

fn refused(desk: &Desk, endpoint: &'static str, refusal: &Refusal, elapsed: Duration) -> Response {
    desk.metrics.refused(endpoint, refusal.code.as_u16());
    // One of those that are told apart in the log; what else there is counts in the metrics.
    let label = match refusal.code.as_u16() {
        400 => "400",
        408 => "408",
        413 => "413",
        415 => "415",
        500 => "500",
        _ => "other",
    };
    desk.refusals.event(label, |before| {
        tracing::warn!(
            endpoint,
            code = refusal.code.as_u16(),
            uid = refusal.uid,
            duration_us = microseconds(elapsed),
            since_last_line = before,
            "{refusal}"
        );
    });
    respond(refusal.code, bytes_of(&answer::refuse(refusal)))
}

/// Turns a request away without a verdict.
///
/// The API server's client takes a 503 with Retry-After for an invitation: it asks again after that
/// many seconds, until the timeout of the webhook configuration is over (client-go,
/// rest/with_retry.go, checkWait). Only then has the call failed and failurePolicy decides.
fn shed_request(desk: &Desk, reason: &'static str, why: &str) -> Response {
    desk.metrics.shed(reason);
    desk.sheds.event(reason, |before| {
        tracing::warn!(reason, since_last_line = before, "shed a request: {why}");
    });
    let refusal = Refusal {
        code: StatusCode::SERVICE_UNAVAILABLE,
        uid: String::new(),
        message: why.to_owned(),
    };
    let mut response = respond(refusal.code, bytes_of(&answer::refuse(&refusal)));
    let seconds = HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

fn bytes_of(answer: &Value) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_default()
}

fn respond(code: StatusCode, answer: Vec<u8>) -> Response {
    let mut response = (code, Body::from(answer)).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_leaves_time_for_the_verdict() {
        for (query, milliseconds) in [
            (None, 4_000),
            (Some("timeout=2s"), 1_600),
            (Some("a=b&timeout=1m0s"), 24_000),
            (Some("timeout=1.5s"), 1_200),
            (Some("timeout=0s"), 4_000),
            (Some("timeout=-1s"), 4_000),
            (Some("timeout=soon"), 4_000),
            (Some("timeouts=2s"), 4_000),
        ] {
            assert_eq!(
                time_to_wait(query),
                Duration::from_millis(milliseconds),
                "{query:?}"
            );
        }
    }
}
