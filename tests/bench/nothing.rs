//! Webhooks that decide nothing, of the same stack as Gangplank: what any webhook costs.
//!
//! The benchmark runs itself for them, with [`ARGUMENT`], the files of a certificate and what it is to do.

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::Target,
    harness::leash::{self, Leashed},
};

pub(crate) const ARGUMENT: &str = "--do-nothing";

/// What one does beside allowing whatever comes.
#[derive(Clone)]
pub(crate) enum Does {
    /// It reads the uid.
    Nothing,
    /// It reads all of the request into a [`Value`], as whoever looks at objects of any kind has to.
    Read,
    /// It reads the uid and answers on `/mutate` with this patch, in base64.
    Patch(String),
}

impl Does {
    fn argument(&self) -> &str {
        match self {
            Self::Nothing => "nothing",
            Self::Read => "read",
            Self::Patch(patch) => patch,
        }
    }

    fn parse(argument: &str) -> Self {
        match argument {
            "nothing" => Self::Nothing,
            "read" => Self::Read,
            patch => Self::Patch(patch.to_owned()),
        }
    }
}

/// A running one; killed on drop.
pub(crate) struct Nothing {
    process: Leashed,
    address: SocketAddr,
}

impl Nothing {
    pub(crate) fn start(certificate: &Path, key: &Path, does: &Does) -> Result<Self> {
        let mut command = leash::command(&env::current_exe()?, None);
        command
            .arg(ARGUMENT)
            .args([certificate, key])
            .arg(does.argument())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Leashed::spawn(command)?;
        let said = process.take_stderr().context("standard error is piped")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| line.clone())?;
        Ok(Self { process, address })
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            address: self.address,
            process: self.process.id(),
        }
    }
}

/// Serves until it is killed.
pub(crate) fn serve(certificate: &str, key: &str, does: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let router = match Does::parse(does) {
        Does::Nothing => Router::new().fallback(glance),
        Does::Read => Router::new().fallback(read),
        Does::Patch(patch) => {
            let patched = move |body: Bytes| async move {
                let response = json!({"patchType": "JSONPatch", "patch": patch});
                allow(uid(&body), response)
            };
            Router::new()
                .route("/mutate", post(patched))
                .fallback(glance)
        }
    };
    runtime.block_on(async {
        let config = RustlsConfig::from_pem_file(certificate, key).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        eprintln!("{}", listener.local_addr()?);
        axum_server::from_tcp(listener)?
            .acceptor(RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new()))
            .serve(router.into_make_service())
            .await?;
        Ok(())
    })
}

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
}

fn uid(body: &[u8]) -> Option<String> {
    let review: Review = serde_json::from_slice(body).ok()?;
    Some(review.request.uid)
}

async fn glance(body: Bytes) -> Response {
    allow(uid(&body), json!({}))
}

async fn read(body: Bytes) -> Response {
    let review: Option<Value> = serde_json::from_slice(&body).ok();
    let uid = review.and_then(|review| Some(review["request"]["uid"].as_str()?.to_owned()));
    allow(uid, json!({}))
}

/// The answer to the request of this uid, and what else it is to hold.
fn allow(uid: Option<String>, mut response: Value) -> Response {
    let Some(uid) = uid else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    response["uid"] = uid.into();
    response["allowed"] = true.into();
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
    });
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, answer.to_string()).into_response()
}
