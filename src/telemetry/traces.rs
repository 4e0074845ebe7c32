//! A span for each admission request, for an OpenTelemetry collector: where the feature `otlp` is
//! compiled in and the environment names a collector. Without either nothing here costs anything.
//!
//! A span says what a line of the log says: who was asked about, by name, and what was answered. Nothing
//! that is in the object, which may be a secret.

use std::env;

use axum::http::{HeaderMap, StatusCode};

use crate::{review::Review, webhook::envelope::Envelope};

#[cfg(feature = "otlp")]
mod otlp;

/// The variables that name a collector (OpenTelemetry specification, protocol/exporter.md).
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Where spans go.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    exporter: Option<otlp::Exporter>,
}

impl Traces {
    /// What the environment asks for: nothing unless it names a collector.
    ///
    /// # Errors
    /// Where it asks for what there is not.
    pub fn from_env() -> Result<Self, String> {
        if !asked_for() {
            return Ok(Self::default());
        }
        #[cfg(feature = "otlp")]
        return otlp::Exporter::from_env().map(|exporter| Self {
            exporter: Some(exporter),
        });
        #[cfg(not(feature = "otlp"))]
        {
            tracing::warn!(
                "the environment names a collector of traces, and this build has none: it lacks the \
                 feature otlp"
            );
            Ok(Self::default())
        }
    }

    /// Begins the span of a request, below that of whoever sent it (`traceparent`, W3C Trace Context).
    pub fn begin(&self, path: &'static str, headers: &HeaderMap) -> Span {
        #[cfg(feature = "otlp")]
        let span = Span {
            recording: (self.exporter.as_ref()).and_then(|exporter| exporter.begin(path, headers)),
        };
        #[cfg(not(feature = "otlp"))]
        let span = {
            let _ = (path, headers);
            Span {}
        };
        span
    }

    /// Sends what is left, for a moment at most.
    pub async fn flush(&self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &self.exporter {
            exporter.flush().await;
        }
        #[cfg(not(feature = "otlp"))]
        std::future::ready(()).await;
    }
}

/// Whether the environment names a collector and does not say that there should be no traces.
fn asked_for() -> bool {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let none = set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    !disabled && !none && ENDPOINTS.iter().any(|name| set(name).is_some())
}

/// The span of one request. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    #[cfg(feature = "otlp")]
    recording: Option<otlp::Recording>,
}

impl Span {
    /// What was asked, and what came of it.
    pub fn reviewed(&mut self, envelope: &Envelope, review: &Review) {
        #[cfg(feature = "otlp")]
        if let Some(recording) = &mut self.recording {
            recording.reviewed(envelope, review);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = (envelope, review);
    }

    /// The request was refused or shed.
    pub fn refused(&mut self, uid: &str, why: &str) {
        #[cfg(feature = "otlp")]
        if let Some(recording) = &mut self.recording {
            recording.refused(uid, why);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = (uid, why);
    }

    /// The answer is ready.
    pub fn answered(self, code: StatusCode) {
        #[cfg(feature = "otlp")]
        if let Some(recording) = self.recording {
            recording.answered(code);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = code;
    }
}
