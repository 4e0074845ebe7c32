//! The admission endpoints: `/mutate`, `/validate` and `/validate/advise`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
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
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use self::{
    envelope::{Envelope, Refusal},
    limits::{Budget, Gate, Share, Turns},
};
use crate::{
    cluster::access::Access,
    exempt::Rights,
    facts::Facts,
    finding::Verdict,
    metrics::{Metrics, Seen},
    policy::Policy,
    review::{Review, review},
    subject::{Door, Subject},
    telemetry::traces::{Span, Traces},
};

pub mod answer;
pub mod drift;
pub mod envelope;
pub mod limits;
pub mod registration;

/// An UPDATE carries two objects, and etcd takes 1.5 MiB for each; the rest is headroom.
pub const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// Room that is made for a body on its word, in bytes; nearly every one fits.
const FIRST_BYTES: usize = 64 * 1024;

/// A body that dribbles in slower than this is not from an API server.
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// Below the webhook configurations' timeout of 5 s the API server stops listening.
pub const TIMEOUT_SECONDS: i32 = 5;

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
    /// Bounds the requests under way.
    pub in_flight: Gate,
    /// Bounds the bytes of their bodies.
    pub body_bytes: Budget,
    /// Bounds what is judged of that at a time.
    pub turns: Turns,
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
            body_bytes: metrics.body_bytes(BODY_LIMIT as u64),
            turns: Turns::default(),
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

    /// A desk that answers this many requests at a time and sheds what comes beyond.
    #[must_use]
    pub fn with_in_flight(mut self, limit: u32) -> Self {
        self.in_flight = self.metrics.in_flight(limit);
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

    /// A desk that holds this many bytes of bodies at a time and sheds what comes beyond.
    #[must_use]
    pub fn with_body_bytes(mut self, limit: u64) -> Self {
        self.body_bytes = self.metrics.body_bytes(limit);
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
    desk: &Desk,
    endpoint: &'static str,
    path: &'static str,
    door: Door,
    request: Request,
) -> Response {
    let version = request.version();
    let mut span = desk.traces.begin(path, request.headers());
    let mut response = handle(desk, endpoint, door, request, &mut span).await;
    if version < Version::HTTP_2 && desk.leaving.load(Ordering::Relaxed) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    span.answered(response.status());
    response
}

async fn handle(
    desk: &Desk,
    endpoint: &'static str,
    door: Door,
    request: Request,
    span: &mut Span,
) -> Response {
    let _pass = match desk.in_flight.enter() {
        Ok(pass) => pass,
        Err(nth) => return shed(nth, &too_many(desk.in_flight.limit()), span),
    };
    let mut share = desk.body_bytes.share();
    let body = match read(request, &mut share).await {
        Ok(body) => body,
        Err(Unread::Shed(nth)) => return shed(nth, &too_large(desk.body_bytes.limit()), span),
        Err(Unread::Refused(refusal)) => {
            return refused(desk, endpoint, &refusal, Duration::ZERO, span);
        }
    };
    let started = Instant::now();
    let _turn = match desk.turns.wait(&body).await {
        Ok(turn) => turn,
        Err(too_much) => {
            let refusal = Refusal {
                code: StatusCode::PAYLOAD_TOO_LARGE,
                uid: envelope::salvage_uid(&body),
                message: too_much.to_string(),
            };
            return refused(desk, endpoint, &refusal, started.elapsed(), span);
        }
    };
    let opened = envelope::open(&body, door);
    let answered = match &opened {
        Ok(envelope) => ask(desk, endpoint, envelope).await,
        Err(refusal) => Err(refusal.clone()),
    };
    let elapsed = started.elapsed();
    match (opened, answered) {
        (Ok(envelope), Ok((review, answer))) => {
            desk.metrics.took(endpoint, elapsed);
            span.reviewed(&envelope, &review);
            tell(endpoint, &envelope, &review, elapsed);
            respond(StatusCode::OK, &answer)
        }
        (_, Err(refusal)) | (Err(refusal), _) => refused(desk, endpoint, &refusal, elapsed, span),
    }
}

/// Answers an admission request.
async fn ask(
    desk: &Desk,
    endpoint: &'static str,
    envelope: &Envelope,
) -> Result<(Review, Value), Refusal> {
    let Envelope {
        subject, requester, ..
    } = envelope;
    // One policy and one time for both looks.
    let (policy, facts) = (desk.policy.load_full(), desk.facts.load_full());
    let now = (desk.clock)();
    let (mut review, mut answer) = judge(desk, &policy, &facts, envelope, now)?;
    if let Some(access) = &desk.access
        && !review.asks.is_empty()
    {
        let rights = access
            .rights(&policy, requester, subject, &review.asks)
            .await;
        let facts = facts.with_rights(rights);
        (review, answer) = judge(desk, &policy, &facts, envelope, now)?;
    }
    desk.metrics.reviewed(&Seen {
        endpoint,
        subject,
        review: &review,
    });
    Ok((review, answer))
}

/// One line for a review: at info where something was denied, at debug else. Of the object it holds the
/// name and nothing that is in it, which may be a secret.
fn tell(endpoint: &'static str, envelope: &Envelope, review: &Review, elapsed: Duration) {
    let Envelope { uid, subject, .. } = envelope;
    // The level of a line has to be a constant.
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                uid,
                endpoint,
                operation = subject.operation.as_str(),
                api_version = subject.api_version,
                kind = subject.kind,
                namespace = subject.namespace,
                name = subject.name,
                verdict = review.outcome(),
                rules = review.rules(|_| true),
                exempted = review.rules(|finding| finding.exempted.is_some()),
                patched = review.patch.0.len(),
                duration_us = microseconds(elapsed),
                "reviewed"
            )
        };
    }
    if review.skipped.is_none() && review.verdict() == Verdict::Deny {
        line!(info);
    } else {
        line!(debug);
    }
}

fn microseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// Reviews an object. A panic in a rule is an error of that request alone.
fn judge(
    desk: &Desk,
    policy: &Policy,
    facts: &Facts,
    Envelope { uid, subject, .. }: &Envelope,
    now: Timestamp,
) -> Result<(Review, Value), Refusal> {
    let reviewed = catch_unwind(AssertUnwindSafe(|| {
        let review = (desk.reviewer)(policy, facts, subject, now);
        let answer = answer::answer(policy, uid, subject, &review);
        (review, answer)
    }));
    reviewed.map_err(|_| {
        desk.metrics.panicked();
        tracing::error!(
            uid,
            kind = subject.kind,
            namespace = subject.namespace,
            name = subject.name,
            "a rule panicked; please report it with the object"
        );
        Refusal {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            uid: uid.clone(),
            message: "gangplank failed on this object; its log says more".to_owned(),
        }
    })
}

/// Why a body was not read to its end.
enum Unread {
    /// There is something wrong with it.
    Refused(Refusal),
    /// Too many bytes are held, for this many requests by now.
    Shed(u64),
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
async fn read(request: Request, share: &mut Share) -> Result<Vec<u8>, Unread> {
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
    let gathered = gather(body, length.unwrap_or_default(), share);
    let body = match tokio::time::timeout(BODY_DEADLINE, gathered).await {
        Ok(body) => body?,
        Err(_) => {
            return Err(Unread::refused(
                StatusCode::REQUEST_TIMEOUT,
                format!(
                    "the body did not arrive within {} s",
                    BODY_DEADLINE.as_secs()
                ),
            ));
        }
    };
    let essence = media.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Unread::Refused(Refusal {
            code: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            uid: envelope::salvage_uid(&body),
            message: format!("the body is {media:?}; only application/json is read"),
        }));
    }
    Ok(body)
}

/// Takes in a body of the length that it says it has, or of none. It counts as it comes: a length is easily
/// said, and would keep others from being heard.
async fn gather(mut body: Body, length: usize, share: &mut Share) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::with_capacity(length.min(FIRST_BYTES));
    while let Some(frame) = body.frame().await {
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
        share.reach(reached).map_err(Unread::Shed)?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn refused(
    desk: &Desk,
    endpoint: &'static str,
    refusal: &Refusal,
    elapsed: Duration,
    span: &mut Span,
) -> Response {
    span.refused(&refusal.uid, &refusal.message);
    desk.metrics.refused(endpoint, refusal.code.as_u16());
    tracing::warn!(
        endpoint,
        code = refusal.code.as_u16(),
        uid = refusal.uid,
        duration_us = microseconds(elapsed),
        "{refusal}"
    );
    respond(refusal.code, &answer::refuse(refusal))
}

fn too_many(limit: i64) -> String {
    format!("more than {limit} admission requests are under way; ask again")
}

fn too_large(limit: i64) -> String {
    format!(
        "the bodies of the admission requests under way have more than {limit} bytes; ask again"
    )
}

/// Turns a request away without looking at it.
///
/// The API server's client takes a 503 with Retry-After for an invitation: it asks again after that
/// many seconds, until the timeout of the webhook configuration is over (client-go,
/// rest/with_retry.go, checkWait). Only then has the call failed and failurePolicy decides.
fn shed(nth: u64, why: &str, span: &mut Span) -> Response {
    span.refused("", why);
    if limits::is_worth_a_line(nth) {
        tracing::warn!(shed = nth, "shed a request: {why}");
    }
    let refusal = Refusal {
        code: StatusCode::SERVICE_UNAVAILABLE,
        uid: String::new(),
        message: why.to_owned(),
    };
    let mut response = respond(refusal.code, &answer::refuse(&refusal));
    let seconds = HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

fn respond(code: StatusCode, answer: &Value) -> Response {
    let body = serde_json::to_vec(answer).unwrap_or_default();
    let mut response = (code, Body::from(body)).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
