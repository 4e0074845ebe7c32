//! `gangplank serve` as a process: TLS, HTTP, signals, bad arguments.

use std::{fs, io::Write as _, net::TcpStream, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use serde_json::{Value, json};

use gangplank::webhook::BODY_LIMIT;

use crate::{
    harness::{Gangplank, SOON, eventually, leash::Signal},
    limits::{answer_held, answer_taken},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// A certificate for localhost, its key, and the folder that holds both as files.
pub(crate) fn certificate() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    folder
}

fn write_certificate(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let signed = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    fs::write(folder.join("tls.crt"), signed.pem()).unwrap();
    fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
}

pub(crate) fn serve_with(folder: &Path) -> Result<Gangplank> {
    let cert = format!("--tls-cert={}", folder.join("tls.crt").display());
    let key = format!("--tls-key={}", folder.join("tls.key").display());
    Gangplank::start(Path::new(BINARY), &[cert, key])
}

pub(crate) type Https =
    Client<hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>, Body>;

pub(crate) fn client(folder: &Path, tls: &'static SupportedProtocolVersion, http2: bool) -> Https {
    let mut roots = RootCertStore::empty();
    for certificate in gangplank::tls::files::certificates(&folder.join("tls.crt")).unwrap() {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[tls])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only();
    let connector = if http2 {
        builder.enable_http2().build()
    } else {
        builder.enable_http1().build()
    };
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build(connector)
}

pub(crate) async fn post(
    client: &Https,
    gangplank: &Gangplank,
    body: impl Into<Body>,
) -> Result<(u16, Value)> {
    let request = Request::post(format!("https://{}/validate", gangplank.webhook()))
        .header("content-type", "application/json")
        .body(body.into())?;
    let response = client.request(request).await?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((code, serde_json::from_slice(&body)?))
}

pub(crate) fn review(uid: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": uid, "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "ConfigMap"},
            "object": {"metadata": {"name": "settings"}},
        },
    })
    .to_string()
}

#[tokio::test]
async fn speaks_tls_1_2_and_1_3_and_http_1_and_2() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path())?;
    for tls in [&version::TLS12, &version::TLS13] {
        for http2 in [false, true] {
            let client = client(folder.path(), tls, http2);
            let (code, answer) = post(&client, &gangplank, review("u")).await?;
            assert_eq!(
                (code, &answer["response"]),
                (200, &json!({"uid": "u", "allowed": true}))
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn garbage_disturbs_nobody_else() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path())?;
    // Not TLS at all, and TLS that breaks off.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01",
        b"",
        &[0xff; 4096],
    ] {
        TcpStream::connect(gangplank.webhook())?.write_all(garbage)?;
    }
    let client = client(folder.path(), &version::TLS13, true);
    let bad = [
        b"{".to_vec(),
        b"\xff".to_vec(),
        vec![b'['; 100_000],
        vec![b' '; 9 << 20],
        Vec::new(),
    ];
    // Until a client of HTTP/2 knows how many requests it may have at a time, some are refused: Go's asks
    // again for those, and this one does not.
    assert_eq!(post(&client, &gangplank, review("first")).await?.0, 200);
    let asked = (0..100).map(|index| {
        let (client, gangplank, bad) = (&client, &gangplank, &bad);
        async move {
            let uid = index.to_string();
            let (good, ill) = tokio::join!(
                post(client, gangplank, review(&uid)),
                // A refusal may come before the whole of a large body is sent: then the stream ends.
                post(client, gangplank, bad[index % bad.len()].clone()),
            );
            let (code, answer) = good?;
            assert_eq!(
                (code, answer["response"]["uid"].as_str()),
                (200, Some(uid.as_str()))
            );
            match ill {
                Ok((code, answer)) => {
                    assert!(code == 400 || code == 413, "{code}: {answer}");
                    assert_eq!(answer["response"]["allowed"], false);
                }
                Err(error) => assert!(bad[index % bad.len()].len() > BODY_LIMIT, "{error}"),
            }
            anyhow::Ok(())
        }
    });
    for answered in futures_util::future::join_all(asked).await {
        answered?;
    }
    assert!(gangplank.ended().is_none());
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_open_connections_go_on() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path())?;
    let before = client(folder.path(), &version::TLS13, true);
    post(&before, &gangplank, review("before")).await?;
    // Half of a pair is not taken.
    let key = fs::read(folder.path().join("tls.key"))?;
    fs::write(folder.path().join("tls.key"), "half")?;
    let complains = || {
        gangplank
            .log()
            .contains("keeping the serving certificate")
            .then_some(())
    };
    eventually("the half pair is refused", SOON, complains)?;
    fs::write(folder.path().join("tls.key"), key)?;
    post(&before, &gangplank, review("between")).await?;

    write_certificate(folder.path());
    let taken = || {
        gangplank
            .log()
            .contains("another serving certificate")
            .then_some(())
    };
    eventually("the new pair is taken", SOON, taken)?;
    let after = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&after, &gangplank, review("after")).await?.0, 200);
    assert_eq!(
        post(&before, &gangplank, review("still open")).await?.0,
        200
    );
    Ok(())
}

#[test]
fn an_api_server_that_never_answers_does_not_keep_it_from_stopping() -> Result<()> {
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "silent",
        "contexts": [{"name": "silent", "context": {"cluster": "silent", "user": "nobody"}}],
        "clusters": [{"name": "silent", "cluster": {"server": format!("http://{}", silent.local_addr()?)}}],
        "users": [{"name": "nobody", "user": {}}],
    });
    fs::write(&kubeconfig, config.to_string())?;
    let mut command = Command::new(BINARY);
    command
        .args([
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--register",
        ])
        .args(["--log-format=json", "--kubeconfig"])
        .arg(&kubeconfig)
        .stderr(std::process::Stdio::piped());
    let mut process = command.spawn()?;
    let (_held, _) = silent.accept()?;
    let status = Command::new("kill")
        .args(["-TERM", &process.id().to_string()])
        .status()?;
    assert!(status.success());
    let ended = eventually("it stops", SOON, || process.try_wait().ok().flatten());
    if ended.is_err() {
        process.kill()?;
    }
    assert_eq!(ended?.code(), Some(0));
    Ok(())
}

pub(crate) fn get(gangplank: &Gangplank, path: &str) -> Result<(u16, String)> {
    ask(gangplank, &format!("GET {path} HTTP/1.1"), "")
}

/// Asks the admin port.
fn ask(gangplank: &Gangplank, head: &str, body: &str) -> Result<(u16, String)> {
    use std::io::Read as _;
    let mut stream = TcpStream::connect(gangplank.admin())?;
    write!(
        stream,
        "{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let code = text.split(' ').nth(1).context("a status line")?.parse()?;
    Ok((
        code,
        text.split_once("\r\n\r\n").context("a body")?.1.to_owned(),
    ))
}

#[test]
fn the_admin_port_tells_health_and_counts() -> Result<()> {
    let gangplank = Gangplank::start::<&str>(Path::new(BINARY), &[])?;
    assert_eq!(get(&gangplank, "/livez")?, (200, "ok\n".to_owned()));
    assert_eq!(get(&gangplank, "/readyz")?, (200, "ok\n".to_owned()));
    assert!(
        get(&gangplank, "/readyz?verbose")?
            .1
            .contains("admission: ok")
    );
    let metrics = get(&gangplank, "/metrics")?.1;
    assert!(
        metrics.contains("gangplank_certificate_not_after_timestamp_seconds 1"),
        "{metrics}"
    );
    assert!(metrics.contains("gangplank_policy_info{hash="), "{metrics}");
    assert_eq!(get(&gangplank, "/nothing")?.0, 404);
    Ok(())
}

fn put(gangplank: &Gangplank, path: &str, body: &str) -> Result<(u16, String)> {
    ask(
        gangplank,
        &format!("PUT {path} HTTP/1.1\r\ncontent-length: {}", body.len()),
        body,
    )
}

/// The lines about reviews, by uid.
fn reviews(gangplank: &Gangplank) -> Vec<(String, Value)> {
    let lines = gangplank.log();
    let lines = lines.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let uid = line["fields"]["uid"].as_str()?.to_owned();
        Some((uid, line))
    });
    lines.collect()
}

#[tokio::test]
async fn the_log_level_changes_at_run_time() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path())?;
    let client = client(folder.path(), &version::TLS13, true);
    assert_eq!(get(&gangplank, "/loglevel")?, (200, "info\n".to_owned()));
    post(&client, &gangplank, review("unseen")).await?;
    assert_eq!(
        put(&gangplank, "/loglevel", "info,gangplank::webhook=debug\n")?.0,
        200
    );
    let level = get(&gangplank, "/loglevel")?.1;
    assert!(level.contains("gangplank::webhook=debug"), "{level}");
    post(&client, &gangplank, review("seen")).await?;
    for bad in ["", "inof", "gangplank=loud"] {
        let (code, why) = put(&gangplank, "/loglevel", bad)?;
        assert_eq!(code, 400, "{bad}: {why}");
        assert!(why.contains("is not a log level"), "{bad}: {why}");
        assert_eq!(get(&gangplank, "/loglevel")?.1, level);
    }
    let long = "a=info,".repeat(160);
    assert_eq!(put(&gangplank, "/loglevel", &long)?.0, 413);
    assert_eq!(
        put(&gangplank, "/loglevel", "info")?,
        (200, "info\n".to_owned())
    );
    post(&client, &gangplank, review("unseen again")).await?;
    post(&client, &gangplank, "{\"request\": {\"uid\": \"last\"}}").await?;
    let uids = eventually("the last line comes", SOON, || {
        let uids: Vec<String> = reviews(&gangplank).into_iter().map(|line| line.0).collect();
        uids.contains(&"last".to_owned()).then_some(uids)
    })?;
    assert_eq!(uids, ["seen", "last"]);
    Ok(())
}

#[tokio::test]
async fn a_denial_is_one_line_that_tells_nothing_of_what_is_in_the_object() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path())?;
    let client = client(folder.path(), &version::TLS13, true);
    let denied = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "denied", "operation": "CREATE", "namespace": "inference",
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "userInfo": {"username": "ann", "extra": {"token": ["s3cret"]}},
            "object": {
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "chat", "annotations": {"note": "s3cret"}},
                "spec": {
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
                    "minReplicas": 1, "maxReplicas": 4,
                    "metrics": [{"type": "Pods", "pods": {"metric": {"name": "DCGM_FI_DEV_GPU_UTIL"},
                        "target": {"type": "AverageValue", "averageValue": "70"}}}],
                },
            },
        },
    });
    let (code, answer) = post(&client, &gangplank, denied.to_string()).await?;
    assert_eq!((code, &answer["response"]["allowed"]), (200, &json!(false)));
    post(&client, &gangplank, review("allowed")).await?;
    let errored = r#"{"request": {"uid": "errored", "object": {"data": "s3cret"}}}"#;
    post(&client, &gangplank, errored).await?;
    let lines = eventually("both lines come", SOON, || {
        let lines = reviews(&gangplank);
        (lines.last()?.0 == "errored").then_some(lines)
    })?;
    let uids: Vec<&str> = lines.iter().map(|line| &*line.0).collect();
    assert_eq!(uids, ["denied", "errored"]);
    let (mut denied, errored) = (lines[0].1.clone(), &lines[1].1);
    assert_eq!(
        (&denied["level"], &errored["level"]),
        (&json!("INFO"), &json!("WARN"))
    );
    let fields = denied["fields"].as_object_mut().context("fields")?;
    let duration = fields.remove("duration_us").context("a duration")?;
    assert!(duration.as_u64().context("a number")? > 0);
    assert_eq!(
        denied["fields"],
        json!({
            "message": "reviewed", "uid": "denied", "endpoint": "validate", "operation": "CREATE",
            "api_version": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "namespace": "inference", "name": "chat", "verdict": "deny",
            "rules": "gpu-utilization-signal", "exempted": "", "patched": 0,
        })
    );
    assert_eq!(errored["fields"]["code"], 400);
    assert!(errored["fields"]["duration_us"].is_u64(), "{errored}");
    assert!(!gangplank.log().contains("s3cret"), "{}", gangplank.log());
    Ok(())
}

#[tokio::test]
async fn after_sigterm_it_is_not_ready_serves_on_and_exits_0() -> Result<()> {
    let folder = certificate();
    let cert = format!("--tls-cert={}", folder.path().join("tls.crt").display());
    let key = format!("--tls-key={}", folder.path().join("tls.key").display());
    let args = [cert, key, "--shutdown-delay=3s".to_owned()];
    let mut gangplank = Gangplank::start(Path::new(BINARY), &args)?;
    let client = client(folder.path(), &version::TLS13, true);
    post(&client, &gangplank, review("before")).await?;
    gangplank.signal(Signal::Terminate)?;
    gangplank.wait_for("stopping")?;
    assert_eq!(get(&gangplank, "/readyz")?.0, 503);
    assert_eq!(get(&gangplank, "/livez")?.0, 200);
    assert_eq!(post(&client, &gangplank, review("during")).await?.0, 200);
    // What is on its way when the port closes arrives all the same.
    let mut held = answer_held(folder.path(), &gangplank, "held")?;
    gangplank.wait_for("stopped accepting; finishing what is in flight")?;
    assert_eq!(answer_taken(&mut held)?["response"]["uid"], "held");
    assert_eq!(gangplank.wait(SOON)?.code(), Some(0), "{}", gangplank.log());
    let silent = || {
        TcpStream::connect(gangplank.webhook())
            .is_err()
            .then_some(())
    };
    eventually("the port is closed", SOON, silent)
}

#[test]
fn a_start_that_cannot_work_exits_2_and_says_why() -> Result<()> {
    let folder = certificate();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let other = rcgen::KeyPair::generate()?.serialize_pem();
    fs::write(at("other.key"), other)?;
    fs::write(
        at("policy.yaml"),
        "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\nmode: dryrun\n",
    )?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = format!("--listen={}", taken.local_addr()?);
    let cert = format!("--tls-cert={}", at("tls.crt"));
    let (wrong, gone) = (
        format!("--tls-key={}", at("other.key")),
        format!("--tls-key={}", at("no.key")),
    );
    let policy = format!("--policy={}", at("policy.yaml"));
    for (args, says) in [
        (vec![&*taken], "cannot listen on 127.0.0.1:"),
        (vec!["--listen=localhost"], "invalid socket address"),
        (vec![&*cert], "--tls-key"),
        (vec![&*cert, &*wrong], "do not make a pair"),
        (vec![&*cert, &*gone], "no.key"),
        (
            vec![&*policy],
            "policy.yaml:3:7: mode: unknown variant `dryrun`",
        ),
        (vec!["--url=http://127.0.0.1"], "is not an https URL"),
        (
            vec!["--register", "--kubeconfig=/nonexistent"],
            "/nonexistent",
        ),
        (
            vec!["--service=gangplank"],
            "is not <namespace>/<name>[:<port>]",
        ),
        (vec!["--log-level=loud=very"], "--log-level"),
    ] {
        let output = Command::new(BINARY)
            .args(["serve", "--admin-listen=127.0.0.1:0"])
            .args(if args.iter().any(|arg| arg.starts_with("--listen")) {
                None
            } else {
                Some("--listen=127.0.0.1:0")
            })
            .args(&args)
            .env_clear()
            .output()?;
        let error = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
        assert!(!error.contains("panic"), "{args:?}: {error}");
    }
    Ok(())
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_traces_says_so_where_they_are_asked_for() -> Result<()> {
    let asked = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")];
    let gangplank = Gangplank::start_in::<&str>(Path::new(BINARY), &[], &asked)?;
    assert_eq!(gangplank.log().matches("this build has none").count(), 1);
    let none = [asked[0], ("OTEL_TRACES_EXPORTER", "none")];
    let gangplank = Gangplank::start_in::<&str>(Path::new(BINARY), &[], &none)?;
    assert!(!gangplank.log().contains("this build has none"));
    Ok(())
}
