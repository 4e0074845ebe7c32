//! The admin port: liveness, readiness, metrics. Plain HTTP, for kubelet and Prometheus.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::{cluster::watch::Watches, metrics::Metrics, tls};

/// What the server knows of its own state.
#[derive(Debug, Default)]
pub struct Health {
    serving: AtomicBool,
    stopping: AtomicBool,
    certificate: Mutex<Option<Served>>,
    authority: Mutex<Option<Result<String, String>>>,
    clients: Mutex<Option<Result<(), String>>>,
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
