//! A webhook that does nothing, of the same stack as Gangplank: what any webhook costs. It reads the uid
//! and allows.
//!
//! The benchmark runs itself for it, with [`ARGUMENT`] and the files of a certificate.

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
};
use axum_server::{
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    client::Target,
    harness::leash::{self, Leashed},
};

pub(crate) const ARGUMENT: &str = "--do-nothing";

/// A running one; killed on drop.
pub(crate) struct Nothing {
    process: Leashed,
    address: SocketAddr,
}

impl Nothing {
    pub(crate) fn start(certificate: &Path, key: &Path) -> Result<Self> {
        let mut command = leash::command(&env::current_exe()?, None);
        command
            .arg(ARGUMENT)
            .args([certificate, key])
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
pub(crate) fn serve(certificate: &str, key: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = RustlsConfig::from_pem_file(certificate, key).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        eprintln!("{}", listener.local_addr()?);
        axum_server::from_tcp(listener)?
            .acceptor(RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new()))
            .serve(Router::new().fallback(allow).into_make_service())
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

async fn allow(body: Bytes) -> Response {
    let Ok(review) = serde_json::from_slice::<Review>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review.request.uid, "allowed": true},
    });
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, answer.to_string()).into_response()
}
