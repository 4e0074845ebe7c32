//! Spans by http/protobuf.
//!
//! The SDK gathers them in a queue that takes no more when it is full, and sends them from a thread of its
//! own: no request waits for a collector. Its own log lines are compiled out; that a collector does not
//! take spans, and that it does again, is one line each.

use std::{
    collections::BTreeMap,
    env, fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    body::Bytes,
    http::{HeaderMap, Request, Response, StatusCode},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{
    Key, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;

use crate::{finding::Finding, review::Review, tls::files, webhook::envelope::Envelope};

/// Who makes the spans (the instrumentation scope).
const SCOPE: &str = "gangplank";

/// How long what is left may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// How long a collector may take, in milliseconds, unless the environment says otherwise
/// (OpenTelemetry specification, protocol/exporter.md).
const TIMEOUT: u64 = 10_000;

/// What is read of a collector's answer, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What spans are made by and sent through.
#[derive(Clone, Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Exporter {
    /// As the environment says (`OTEL_*`). Needs the runtime that serves.
    pub(super) fn from_env() -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Carrier::new()?)
            .build()
            .map_err(|error| format!("cannot send traces: {error}"))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        let tracer = provider.tracer(SCOPE);
        tracing::info!("sending traces");
        Ok(Self { provider, tracer })
    }

    pub(super) fn begin(&self, path: &'static str, headers: &HeaderMap) -> Option<Recording> {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        let span = (self.tracer.span_builder(format!("POST {path}")))
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &parent);
        span.is_recording().then_some(Recording(span))
    }

    pub(super) async fn flush(&self) {
        let provider = self.provider.clone();
        let done = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT));
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("some traces are lost: {error}"),
            Err(error) => tracing::warn!("some traces are lost: {error}"),
        }
    }
}

/// Who we are; the environment's word comes first.
fn resource() -> Resource {
    let own = Resource::builder_empty()
        .with_service_name(SCOPE)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let given = Resource::builder().build();
    let told = |(key, value): &(&Key, &opentelemetry::Value)| {
        // What the SDK calls whoever has no name.
        key.as_str() != "service.name" || !value.as_str().starts_with("unknown_service")
    };
    // Of two by one key the later one counts.
    let both: BTreeMap<Key, opentelemetry::Value> = (own.iter())
        .chain(given.iter().filter(told))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let attributes = both
        .into_iter()
        .map(|(key, value)| KeyValue::new(key, value));
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}

/// A span that somebody wants.
#[derive(Debug)]
pub(super) struct Recording(Span);

impl Recording {
    fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    pub(super) fn reviewed(&mut self, Envelope { uid, subject, .. }: &Envelope, review: &Review) {
        self.set("gangplank.uid", uid.clone());
        self.set("gangplank.operation", subject.operation.as_str());
        self.set("gangplank.api_version", subject.api_version.clone());
        self.set("gangplank.kind", subject.kind.clone());
        if let Some(namespace) = &subject.namespace {
            self.set("gangplank.namespace", namespace.clone());
        }
        self.set("gangplank.name", subject.name.clone());
        self.set("gangplank.verdict", review.outcome());
        self.set("gangplank.rules", review.rules(|_| true));
        let exempted = |finding: &Finding| finding.exempted.is_some();
        self.set("gangplank.exempted", review.rules(exempted));
        let patched = i64::try_from(review.patch.0.len()).unwrap_or(i64::MAX);
        self.set("gangplank.patched", patched);
    }

    pub(super) fn refused(&mut self, uid: &str, why: &str) {
        if !uid.is_empty() {
            self.set("gangplank.uid", uid.to_owned());
        }
        self.0.set_status(Status::error(why.to_owned()));
    }

    pub(super) fn answered(mut self, code: StatusCode) {
        self.set("http.response.status_code", i64::from(code.as_u16()));
    }
}

/// Sends to the collector. The SDK asks from a thread without a runtime, so what is asked is done on ours.
struct Carrier {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
    failing: AtomicBool,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier").finish_non_exhaustive()
    }
}

impl Carrier {
    fn new() -> Result<Self, String> {
        let variable = |name: &str| {
            let (own, all) = (
                format!("OTEL_EXPORTER_OTLP_TRACES_{name}"),
                format!("OTEL_EXPORTER_OTLP_{name}"),
            );
            let set = |name: String| env::var(name).ok().filter(|value| !value.is_empty());
            set(own).or_else(|| set(all))
        };
        let builder = HttpsConnectorBuilder::new();
        let builder = match variable("CERTIFICATE") {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                let read = files::certificates(file.as_ref()).map_err(|error| error.to_string())?;
                for certificate in read {
                    roots
                        .add(certificate)
                        .map_err(|error| format!("{file}: {error}"))?;
                }
                let config = ClientConfig::builder()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                builder.with_tls_config(config)
            }
            None => match HttpsConnectorBuilder::new().with_native_roots() {
                Ok(builder) => builder,
                // An image without any: a collector within the cluster is seldom asked by TLS.
                Err(_) => builder.with_tls_config(
                    ClientConfig::builder()
                        .with_root_certificates(RootCertStore::empty())
                        .with_no_client_auth(),
                ),
            },
        };
        let timeout = variable("TIMEOUT").and_then(|value| value.parse().ok());
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .build(builder.https_or_http().enable_http1().build()),
            runtime: Handle::current(),
            timeout: Duration::from_millis(timeout.unwrap_or(TIMEOUT)),
            failing: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl HttpClient for Carrier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, timeout) = (self.client.clone(), self.timeout);
        let sent = self.runtime.spawn(async move {
            let asked = async {
                let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            };
            tokio::time::timeout(timeout, asked).await?
        });
        let answer = match sent.await {
            Ok(answer) => answer,
            Err(error) => Err(error.into()),
        };
        let why = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let failed = self.failing.swap(why.is_some(), Ordering::Relaxed);
        match why {
            Some(why) if !failed => {
                tracing::warn!("traces are lost while the collector does not take them: {why}");
            }
            None if failed => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        answer
    }
}
