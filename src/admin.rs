//! The admin port: liveness, readiness, metrics. Plain HTTP, for kubelet and Prometheus.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::{cluster::watch::Watches, metrics::Metrics};

/// What the server knows of its own state.
#[derive(Debug, Default)]
pub struct Health {
    serving: AtomicBool,
    stopping: AtomicBool,
    /// In seconds of the epoch.
    certificate_end: AtomicU64,
    registration: Mutex<Option<Result<(), String>>>,
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

    /// The certificate served from now on ends then.
    pub fn certificate(&self, end: SystemTime) {
        self.certificate_end.store(seconds(end), Ordering::Release);
    }

    /// Whether traffic is welcome: not before we serve, not after a signal, and not with a
    /// certificate that no client takes any more.
    pub fn is_ready(&self) -> bool {
        self.serving.load(Ordering::Acquire)
            && !self.stopping.load(Ordering::Acquire)
            && self.has_certificate()
    }

    fn has_certificate(&self) -> bool {
        seconds(SystemTime::now()) < self.certificate_end.load(Ordering::Acquire)
    }

    /// The webhook configurations were written, or why not. Never a reason not to be ready.
    pub fn registration(&self, result: Result<(), String>) {
        *self
            .registration
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(result);
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
        let certificate = if self.has_certificate() {
            "ok"
        } else {
            "expired"
        };
        let _ = writeln!(text, "certificate: {certificate}");
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
        self.watches.describe(&mut text);
        text
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What the admin port shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The server's state.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The admin endpoints.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
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
