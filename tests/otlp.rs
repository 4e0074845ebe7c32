//! Traces of the real `gangplank serve`, as a collector receives them.

// The helpers of tests are tests too: what fails in them fails the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test may fail like the test"
)]

#[path = "apiserver/mod.rs"]
mod harness;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::ServerName};
use serde_json::{Value, json};

use harness::{Assets, Cluster, Gangplank, SOON, eventually, leash::Signal};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// A collector: every request that came, decoded.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<(Vec<u8>, ExportTraceServiceRequest)>>>,
}

impl Collector {
    fn start() -> Result<Self> {
        Self::listen("127.0.0.1:0".parse()?)
    }

    fn listen(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Vec<_>>>::default();
        let to = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let to = Arc::clone(&to);
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(body) = request(&mut stream) {
                        let decoded = ExportTraceServiceRequest::decode(&*body).unwrap();
                        to.lock().unwrap().push((body, decoded));
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        stream.get_mut().write_all(answer).unwrap();
                    }
                });
            }
        });
        Ok(Self { address, received })
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans about a request with this uid.
    fn spans(&self, uid: &str) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let resources = received
            .iter()
            .flat_map(|(_, request)| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        let spans = scopes.flat_map(|scope| &scope.spans);
        let about =
            spans.filter(|span| texts(&span.attributes).get("gangplank.uid") == Some(&uid.into()));
        about.cloned().collect()
    }

    fn span(&self, uid: &str) -> Result<Span> {
        eventually(format_args!("the span of {uid} comes"), SOON, || {
            self.spans(uid).pop()
        })
    }
}

/// The body of a request that a collector gets; none where the connection ends.
fn request(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    let mut first = true;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_lowercase();
        if first {
            assert_eq!(line, "post /v1/traces http/1.1");
            first = false;
        }
        if line.starts_with("content-type:") {
            assert_eq!(line, "content-type: application/x-protobuf");
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| {
        let text = match attribute.value.as_ref()?.value.as_ref()? {
            Any::StringValue(text) => text.clone(),
            Any::IntValue(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        Some((attribute.key.clone(), text))
    };
    attributes.iter().filter_map(text).collect()
}

fn certificate() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let signed = rcgen::CertificateParams::new(names)?.self_signed(&key)?;
    fs::write(folder.path().join("tls.crt"), signed.pem())?;
    fs::write(folder.path().join("tls.key"), key.serialize_pem())?;
    Ok(folder)
}

fn serve(folder: &Path, environment: &[(&str, &str)]) -> Result<Gangplank> {
    let args = [
        format!("--tls-cert={}", folder.join("tls.crt").display()),
        format!("--tls-key={}", folder.join("tls.key").display()),
    ];
    Gangplank::start_in(Path::new(BINARY), &args, environment)
}

fn hpa(metric: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "annotations": {"token": "hush"}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1, "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "70"}}}],
        },
    })
}

fn review(uid: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": uid, "operation": "CREATE", "namespace": "llm", "name": "chat",
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "object": hpa("DCGM_FI_DEV_GPU_UTIL"),
        },
    })
    .to_string()
}

/// Asks about what is in a body; the whole answer.
fn ask(folder: &Path, gangplank: &Gangplank, headers: &str, body: &str) -> Result<String> {
    let mut roots = RootCertStore::empty();
    for certificate in gangplank::tls::files::certificates(&folder.join("tls.crt"))? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let socket = TcpStream::connect(gangplank.webhook())?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = StreamOwned::new(connection, socket);
    write!(
        stream,
        "POST /validate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_request_is_a_span_below_that_of_who_sent_it_and_tells_nothing_of_the_object() -> Result<()> {
    let (folder, collector) = (certificate()?, Collector::start()?);
    let endpoint = collector.endpoint();
    let gangplank = serve(
        folder.path(),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=lab"),
        ],
    )?;
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let sampled = format!("traceparent: 00-{trace}-{parent}-01\r\n");
    let answer = ask(folder.path(), &gangplank, &sampled, &review("sampled"))?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let span = collector.span("sampled")?;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        (trace.into(), parent.into())
    );
    assert_eq!(
        (span.name.as_str(), span.kind()),
        ("POST /validate", SpanKind::Server)
    );
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    let told = texts(&span.attributes);
    for (key, value) in [
        ("gangplank.operation", "CREATE"),
        ("gangplank.api_version", "autoscaling/v2"),
        ("gangplank.kind", "HorizontalPodAutoscaler"),
        ("gangplank.namespace", "llm"),
        ("gangplank.name", "chat"),
        ("gangplank.verdict", "deny"),
        ("gangplank.rules", "gpu-utilization-signal"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(
            told.get(key).map(String::as_str),
            Some(value),
            "{key} in {told:?}"
        );
    }
    for (bytes, request) in collector.received.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("hush") && !text.contains("DCGM"), "{text}");
        let resource = request.resource_spans[0]
            .resource
            .as_ref()
            .context("a resource")?;
        let resource = texts(&resource.attributes);
        assert_eq!(resource["service.name"], "gangplank");
        assert_eq!(resource["k8s.cluster.name"], "lab");
    }

    // Whoever sent it does not trace it: neither do we. What cannot be read is a failure.
    let unsampled = format!("traceparent: 00-{trace}-{parent}-00\r\n");
    ask(folder.path(), &gangplank, &unsampled, &review("unsampled"))?;
    let broken = review("broken").replace("\"v2\"", "\"\"");
    let answer = ask(folder.path(), &gangplank, "", &broken)?;
    ensure!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let span = collector.span("broken")?;
    assert!(span.parent_span_id.is_empty());
    assert_eq!(texts(&span.attributes)["http.response.status_code"], "400");
    assert_eq!(span.status.context("a status")?.code, 2, "an error");
    assert!(collector.spans("unsampled").is_empty());
    Ok(())
}

#[test]
fn what_is_left_is_sent_before_the_end_and_the_environment_samples() -> Result<()> {
    let (folder, collector) = (certificate()?, Collector::start()?);
    let endpoint = format!("{}/v1/traces", collector.endpoint());
    let hour = ("OTEL_BSP_SCHEDULE_DELAY", "3600000");
    let to = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str());
    let mut gangplank = serve(folder.path(), &[to, hour, ("OTEL_SERVICE_NAME", "door")])?;
    ask(folder.path(), &gangplank, "", &review("last"))?;
    assert!(collector.spans("last").is_empty());
    gangplank.signal(Signal::Terminate)?;
    assert_eq!(gangplank.wait(SOON)?.code(), Some(0), "{}", gangplank.log());
    assert_eq!(collector.spans("last").len(), 1);
    let resource = collector.received.lock().unwrap()[0].1.resource_spans[0]
        .resource
        .clone();
    assert_eq!(
        texts(&resource.context("a resource")?.attributes)["service.name"],
        "door"
    );

    let off = ("OTEL_TRACES_SAMPLER", "always_off");
    let mut gangplank = serve(folder.path(), &[to, hour, off])?;
    ask(folder.path(), &gangplank, "", &review("off"))?;
    gangplank.signal(Signal::Terminate)?;
    assert_eq!(gangplank.wait(SOON)?.code(), Some(0), "{}", gangplank.log());
    assert!(collector.spans("off").is_empty());
    Ok(())
}

#[test]
fn a_collector_that_is_away_delays_nothing_and_is_told_once() -> Result<()> {
    let folder = certificate()?;
    // Nobody listens there any more.
    let away = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let endpoint = format!("http://{away}");
    let gangplank = serve(
        folder.path(),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
        ],
    )?;
    let lost = "traces are lost while the collector does not take them";
    for turn in 0..40 {
        let answer = ask(
            folder.path(),
            &gangplank,
            "",
            &review(&format!("lost-{turn}")),
        )?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    eventually("it is told", SOON, || {
        gangplank.log().contains(lost).then_some(())
    })?;
    let collector = Collector::listen(away)?;
    eventually("the collector is found", SOON, || {
        ask(folder.path(), &gangplank, "", &review("found")).ok()?;
        collector.spans("found").pop()
    })?;
    eventually("it is told", SOON, || {
        gangplank
            .log()
            .contains("the collector takes traces again")
            .then_some(())
    })?;
    assert_eq!(
        gangplank.log().matches(lost).count(),
        1,
        "{}",
        gangplank.log()
    );
    Ok(())
}

#[test]
fn a_collector_that_says_nothing_does_not_keep_it_from_ending() -> Result<()> {
    let folder = certificate()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", silent.local_addr()?);
    let mut gangplank = serve(
        folder.path(),
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())],
    )?;
    ask(folder.path(), &gangplank, "", &review("unheard"))?;
    gangplank.signal(Signal::Terminate)?;
    assert_eq!(gangplank.wait(SOON)?.code(), Some(0), "{}", gangplank.log());
    assert!(
        gangplank.log().contains("some traces are lost"),
        "{}",
        gangplank.log()
    );
    Ok(())
}

#[test]
fn the_span_is_below_that_of_a_real_api_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("tracing.yaml");
    // Nobody listens for the API server's own spans.
    fs::write(
        &file,
        "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n\
         endpoint: 127.0.0.1:9\nsamplingRatePerMillion: 1000000\n",
    )?;
    let flag = format!("--tracing-config-file={}", file.display());
    let cluster = Cluster::start_with(&Assets::find()?, &[&flag])?;
    let collector = Collector::start()?;
    let endpoint = collector.endpoint();
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    let _gangplank = Gangplank::start_in(
        Path::new(BINARY),
        &["--register", &kubeconfig],
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ],
    )?;
    let kubectl = cluster.namespace("traced")?;
    let object = hpa("DCGM_FI_DEV_GPU_UTIL").to_string();
    eventually("a write is denied", SOON, || {
        let answer = kubectl.create(&object).ok()?;
        answer
            .stderr
            .contains("gpu-utilization-signal")
            .then_some(())
    })?;
    let span = eventually("its span comes", SOON, || {
        let received = collector.received.lock().unwrap();
        let resources = received
            .iter()
            .flat_map(|(_, request)| &request.resource_spans);
        let mut spans = resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans);
        spans
            .find(|span| texts(&span.attributes).get("gangplank.verdict") == Some(&"deny".into()))
            .cloned()
    })?;
    assert_eq!(span.parent_span_id.len(), 8);
    assert_eq!(
        texts(&span.attributes)["gangplank.namespace"],
        kubectl.namespace()
    );
    Ok(())
}
