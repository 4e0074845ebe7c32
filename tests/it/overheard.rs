//! A cluster whose API server asks a listener that keeps a copy of every question and answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use gangplank::{
    cluster,
    metrics::Metrics,
    policy::Policy,
    tls::{
        self, Resolver,
        authority::{Authority, Lives},
    },
    webhook::{
        self, Desk,
        registration::{Configurations, FailurePolicy, Reach, Registration},
    },
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinHandle};
use tower::ServiceExt as _;

use crate::{
    enforce::{hpa, node_pool, reference},
    harness::{Assets, Cluster, SOON, client, eventually},
};

const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";

/// A question of the API server and the answer it got.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) path: String,
    pub(crate) question: Value,
    pub(crate) answer: Value,
}

impl Exchange {
    pub(crate) fn request(&self) -> &Value {
        &self.question["request"]
    }

    pub(crate) fn response(&self) -> &Value {
        &self.answer["response"]
    }

    pub(crate) fn patch(&self) -> Result<Value> {
        let patch = self.response()["patch"].as_str().context("a patch")?;
        Ok(serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?)
    }
}

pub(crate) type Heard = Arc<Mutex<Vec<Exchange>>>;

/// A cluster whose API server asks a listener that keeps what it hears.
pub(crate) struct Overheard {
    pub(crate) cluster: Cluster,
    pub(crate) heard: Heard,
    serving: Serving,
    policy: Policy,
    /// Where the listener runs; a static is never dropped.
    pub(crate) runtime: Runtime,
}

/// A router served over TLS by this process, for the API server.
pub(crate) struct Serving {
    url: String,
    /// The certificate of the authority, PEM.
    authority: Vec<u8>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    /// Starts to serve. Needs a runtime.
    pub(crate) fn start(router: Router) -> Result<Self> {
        // Another test may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::new(SystemTime::now(), Lives::default())?;
        let identity = authority.sign(&["127.0.0.1".to_owned()], SystemTime::now())?;
        let config = tls::server_config(Arc::new(Resolver::new(Some(identity))), None)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("https://{}", listener.local_addr()?);
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(config));
        let server = axum_server::from_tcp(listener)?.acceptor(acceptor);
        Ok(Self {
            url,
            authority: authority.certificate_pem().into_bytes(),
            task: tokio::spawn(server.serve(router.into_make_service())),
        })
    }

    /// How the API server reaches it.
    pub(crate) fn registration(&self) -> Registration {
        Registration {
            name: "gangplank".to_owned(),
            reach: Reach::Url(self.url.clone()),
            ca_bundle: Some(self.authority.clone()),
            annotations: BTreeMap::new(),
            failure_policy: FailurePolicy::Fail,
            owner: None,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Listener {
    /// None says yes to everything.
    desk: Option<Arc<Desk>>,
    heard: Heard,
}

async fn answer(State(listener): State<Listener>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut question: Value = serde_json::from_slice(&body).unwrap();
    let name = question["request"]["name"].as_str().unwrap_or_default();
    if name.starts_with("unanswered") && path == format!("/{}", name.rsplit('.').next().unwrap()) {
        return pending().await;
    }
    let response = match listener.desk {
        Some(desk) if path != "/other" => {
            let request = Request::from_parts(parts, Body::from(body));
            webhook::router(desk).oneshot(request).await.unwrap()
        }
        Some(_) => Response::new(Body::from(other(&question).to_string())),
        None => {
            // What is asked about is large and many, and not looked at.
            for member in ["object", "oldObject"] {
                question["request"][member].take();
            }
            Response::new(Body::from(other(&question).to_string()))
        }
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = serde_json::from_slice(&body).unwrap();
    listener.heard.lock().unwrap().push(Exchange {
        path,
        question,
        answer,
    });
    Response::from_parts(parts, Body::from(body))
}

/// Somebody else's mutating webhook, as service meshes have one: it labels what has no such label.
fn other(question: &Value) -> Value {
    let request = &question["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if request["object"]["metadata"]["labels"]["other"] == "asked" {
        let patch = json!([{"op": "replace", "path": "/metadata/labels/other", "value": "done"}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(BASE64_STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

impl Overheard {
    /// The cluster, with the configurations as they are generated. Unless it judges, the listener says
    /// yes to everything.
    pub(crate) fn start(
        judges: bool,
        policy: Policy,
        crds: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<Self> {
        let audit = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "Metadata", "verbs": ["create"], "resources": [{"group": "autoscaling"}]},
                {"level": "None"},
            ],
        });
        let cluster = Cluster::start_audited(&Assets::find()?, &audit.to_string())?;
        crds(&cluster)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let desk = Arc::new(Desk::new(Policy::default(), Arc::new(Metrics::new())));
        let heard = Heard::default();
        let listener = Listener {
            desk: judges.then_some(desk),
            heard: Arc::clone(&heard),
        };
        let router = Router::new().fallback(answer).with_state(listener);
        let serving = {
            let _context = runtime.enter();
            Serving::start(router)?
        };
        let started = Self {
            cluster,
            heard,
            serving,
            policy,
            runtime,
        };
        started.runtime.block_on(async {
            let wanted = started.configurations();
            let client = client(started.cluster.kubeconfig()).await?;
            cluster::register(&client, wanted, &cluster::Registered::default()).await?;
            anyhow::Ok(())
        })?;
        let kubectl = started.cluster.namespace("probe")?;
        let is_asked = |object: Value| {
            eventually("the API server asks", SOON, || {
                let args = ["create", "--dry-run=server", "--filename=-"];
                let _ = kubectl.run(&args, Some(&object.to_string()));
                let about = started.about(&reference(&object));
                let paths: BTreeSet<&str> = about.iter().map(|one| one.path.as_str()).collect();
                paths.contains("/validate").then_some(())
            })
        };
        is_asked(hpa("probe", BAD))?;
        let mut silent = node_pool("probe", None);
        silent["metadata"]["name"] = json!("filled-probe");
        eventually("the API server asks /mutate", SOON, || {
            let args = ["create", "--dry-run=server", "--filename=-"];
            let _ = kubectl.run(&args, Some(&silent.to_string()));
            let about = started.about(&reference(&silent));
            about.iter().any(|one| one.path == "/mutate").then_some(())
        })?;
        Ok(started)
    }

    /// The policy that the configurations are made from.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn configurations(&self) -> Configurations {
        self.serving.registration().configurations(&self.policy)
    }

    /// What was said about the objects of this kind and name, wherever they are: names in these tests
    /// are nobody else's.
    pub(crate) fn about(&self, reference: &str) -> Vec<Exchange> {
        let (kind, name) = reference.split_once('/').unwrap();
        let heard = self.heard.lock().unwrap();
        let is_about = |exchange: &&Exchange| {
            let request = exchange.request();
            let object = [&request["object"], &request["oldObject"]];
            let named = object
                .iter()
                .any(|object| object["metadata"]["name"] == name);
            let kind_of = request["kind"]["kind"].as_str().unwrap_or_default();
            (named || request["name"] == name) && kind_of.to_lowercase() == kind
        };
        heard.iter().filter(is_about).cloned().collect()
    }

    /// The same from one path.
    pub(crate) fn at(&self, path: &str, reference: &str) -> Vec<Exchange> {
        let mut about = self.about(reference);
        about.retain(|exchange| exchange.path == path);
        about
    }

    /// How the API server reaches a path of the listener.
    pub(crate) fn client_config(&self, path: &str) -> Value {
        json!({
            "url": format!("{}{path}", self.serving.url),
            "caBundle": BASE64_STANDARD.encode(&self.serving.authority),
        })
    }
}
