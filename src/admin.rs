//! The admin port: liveness, readiness, metrics, log level. Plain HTTP, for kubelet and Prometheus, and
//! nobody says who they are: what changes something is for those on this machine alone.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    body::HttpBody as _,
    extract::{ConnectInfo, DefaultBodyLimit, RawQuery, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    cluster::watch::Watches, metrics::Metrics, telemetry::LogLevel, tls,
    webhook::limits::Connection,
};

/// What the server knows of its own state.
#[derive(Debug, Default)]
pub struct Health {
    serving: AtomicBool,
    stopping: AtomicBool,
    certificate: Mutex<Option<Served>>,
    authority: Mutex<Option<Result<String, String>>>,
    clients: Mutex<Option<Result<(), String>>>,
    registration: Mutex<Option<Result<(), String>>>,
    registration_watches: Mutex<BTreeMap<&'static str, Result<(), String>>>,
    registration_drift: Mutex<Vec<String>>,
    policy: Mutex<Option<Result<String, String>>>,
    /// How the watches of the cluster fare. Never a reason not to be ready.
    pub watches: Arc<Watches>,
}

impl Health {
    /// Certificate and policy are loaded and the admission port answers.
    pub fn serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// A signal has come: no new traffic, please.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The certificate that is served ends then; it is `now` by the clock that counts.
    pub fn certificate(&self, end: SystemTime, now: SystemTime) {
        let left = end.duration_since(now).unwrap_or_default();
        *lock(&self.certificate) = Some(Served {
            end,
            // Our own wall clock may jump; that is no reason to turn traffic away.
            usable: Instant::now().checked_add(left),
        });
    }

    /// How what signs the certificate, or its files, fare. Never a reason not to be ready while the
    /// certificate at hand is good.
    pub fn authority(&self, look: Result<String, String>) {
        *lock(&self.authority) = Some(look);
    }

    /// How the file of the clients' authority fares. Never a reason not to be ready.
    pub fn clients(&self, look: Result<(), String>) {
        *lock(&self.clients) = Some(look);
    }

    /// Whether traffic is welcome: not before we serve, not after a signal, and not with a
    /// certificate that no client takes any more.
    pub fn is_ready(&self) -> bool {
        self.serving.load(Ordering::Acquire)
            && !self.stopping.load(Ordering::Acquire)
            && self.has_certificate()
    }

    /// Whether the certificate that is served, if any, holds.
    pub fn has_certificate(&self) -> bool {
        let served = *lock(&self.certificate);
        served.is_some_and(|served| served.usable.is_none_or(|until| Instant::now() < until))
    }

    /// The webhook configurations were written, or why not. Never a reason not to be ready.
    pub fn registration(&self, result: Result<(), String>) {
        *self
            .registration
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(result);
    }

    /// The state of the watch of a webhook configuration. It never makes the process unready.
    pub fn registration_watch(&self, configuration: &'static str, fares: Result<(), String>) {
        lock(&self.registration_watches).insert(configuration, fares);
    }

    /// Lines about what others changed in the webhook configurations.
    pub fn registration_drift(&self, lines: Vec<String>) {
        *lock(&self.registration_drift) = lines;
    }

    /// The policy file holds what is in force, by its hash, or why it does not. Never a reason not to
    /// be ready.
    pub fn policy(&self, read: Result<String, String>) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        let state = match (
            self.serving.load(Ordering::Acquire),
            self.stopping.load(Ordering::Acquire),
        ) {
            (_, true) => "stopping",
            (true, false) => "ok",
            (false, false) => "starting",
        };
        let _ = writeln!(text, "admission: {state}");
        let served = *lock(&self.certificate);
        let _ = match served {
            None => writeln!(text, "certificate: none yet"),
            Some(served) => {
                let state = if self.has_certificate() {
                    "ok, until"
                } else {
                    "expired at"
                };
                writeln!(text, "certificate: {state} {}", tls::moment(served.end))
            }
        };
        let _ = match lock(&self.authority).as_ref() {
            None => Ok(()),
            Some(Ok(state)) => writeln!(text, "certificate authority: {state}"),
            Some(Err(error)) => writeln!(text, "certificate authority: failing: {error}"),
        };
        let _ = match lock(&self.clients).as_ref() {
            None => Ok(()),
            Some(Ok(())) => writeln!(text, "client certificates: asked for"),
            Some(Err(error)) => {
                writeln!(text, "client certificates: asked for; the file: {error}")
            }
        };
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = match policy.as_ref() {
            None => writeln!(text, "policy: built in"),
            Some(Ok(hash)) => writeln!(text, "policy: ok, {hash}"),
            Some(Err(error)) => writeln!(text, "policy: not the file's: {error}"),
        };
        drop(policy);
        let registration = self
            .registration
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = match registration.as_ref() {
            None => writeln!(
                text,
                "webhook configurations: not ours to write, or not written yet"
            ),
            Some(Ok(())) => writeln!(text, "webhook configurations: ok"),
            Some(Err(error)) => writeln!(text, "webhook configurations: failing: {error}"),
        };
        drop(registration);
        for (configuration, fares) in lock(&self.registration_watches).iter() {
            let _ = match fares {
                Ok(()) => writeln!(
                    text,
                    "watch of the {configuration} webhook configuration: ok"
                ),
                Err(error) => writeln!(
                    text,
                    "watch of the {configuration} webhook configuration: failing: {error}"
                ),
            };
        }
        for line in lock(&self.registration_drift).iter() {
            let _ = writeln!(text, "webhook configurations: {line}");
        }
        self.watches.describe(&mut text);
        text
    }
}

/// The certificate that is served.
#[derive(Clone, Copy, Debug)]
struct Served {
    end: SystemTime,
    /// None: so long that it cannot be told.
    usable: Option<Instant>,
}

/// What a panic elsewhere left is still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the admin port shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The server's state.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is logged.
    pub log_level: LogLevel,
}

/// No filter is longer, in bytes.
const LOG_LEVEL_LIMIT: usize = 1024;

/// The admin endpoints. They ask who is at the other end: the service has to be made with
/// `into_make_service_with_connect_info::<SocketAddr>`.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/loglevel", get(log_level).put(set_log_level))
        .layer(DefaultBodyLimit::max(LOG_LEVEL_LIMIT))
        .layer(middleware::from_fn(in_flight))
        .with_state(admin)
}

/// Keeps the connection of a complete request open until its answer. A body may never come to its end, so that
/// a request that has one does not count.
async fn in_flight(request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Connection>();
    let connection = connection.filter(|_| request.body().is_end_stream());
    let mut in_flight = connection.map(Connection::begin);
    let response = next.run(request).await;
    if let Some(in_flight) = &mut in_flight {
        in_flight.answered();
    }
    response
}

async fn ready(State(admin): State<Admin>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let ready = admin.health.is_ready();
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|pair| pair == "verbose" || pair.starts_with("verbose="))
    });
    let text = match (verbose, ready) {
        (true, _) => admin.health.describe(),
        (false, true) => "ok\n".to_owned(),
        (false, false) => "not ready\n".to_owned(),
    };
    (code, text)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media)], admin.metrics.encode())
}

async fn log_level(State(admin): State<Admin>) -> String {
    admin.log_level.get() + "\n"
}

/// Takes another filter, from this machine alone. `kubectl port-forward` comes from there too, and
/// asks the API server for the right to.
async fn set_log_level(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    text: String,
) -> (StatusCode, String) {
    // A socket for both families shows IPv4 as ::ffff:127.0.0.1.
    if !peer.ip().to_canonical().is_loopback() {
        let message = "only over loopback, as by kubectl port-forward\n";
        return (StatusCode::FORBIDDEN, message.to_owned());
    }
    match admin.log_level.set(text.trim()) {
        Ok(()) => (StatusCode::OK, admin.log_level.get() + "\n"),
        Err(error) => (StatusCode::BAD_REQUEST, error + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn only_this_machine_sets_the_log_level() {
        let (_layer, log_level) = LogLevel::new("info").unwrap();
        let admin = Admin {
            health: Arc::default(),
            metrics: Arc::default(),
            log_level: log_level.clone(),
        };
        for (peer, code, level) in [
            ("10.1.2.3:4", StatusCode::FORBIDDEN, "info"),
            ("[fd00::7]:4", StatusCode::FORBIDDEN, "info"),
            ("[::ffff:10.1.2.3]:4", StatusCode::FORBIDDEN, "info"),
            ("127.0.0.1:4", StatusCode::OK, "debug"),
            ("[::1]:4", StatusCode::OK, "debug"),
            ("[::ffff:127.0.0.1]:4", StatusCode::OK, "debug"),
        ] {
            log_level.set("info").unwrap();
            let peer: SocketAddr = peer.parse().unwrap();
            let request = Request::put("/loglevel")
                .extension(ConnectInfo(peer))
                .body(Body::from("debug\n"))
                .unwrap();
            let answer = router(admin.clone()).oneshot(request).await.unwrap();
            assert_eq!(
                (answer.status(), &*log_level.get()),
                (code, level),
                "{peer}"
            );
        }
    }
}
