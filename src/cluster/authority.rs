//! The certificate authority that all replicas share, in a Secret.
//!
//! `tls.crt` and `tls.key` are who signs now, `next.crt` and `next.key` who signs next while it is being
//! replaced, and `ca.crt` is the bundle that clients are to trust. What to do about it is decided by
//! [`crate::tls::rotation`]; here it is looked at and done. Every replica does, by conditional writes
//! only. The leaf that a replica serves never leaves its memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::{Request, header};
use jiff::fmt::rfc2822;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams, client::Body};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use super::{ClusterError, Registered, chain, registered};
use crate::{
    admin::Health,
    metrics::Metrics,
    tls::{
        Identity, Resolver, TlsError,
        authority::{Authority, Lives},
        bundle::{self, Anchor},
        moment,
        rotation::{self, Leaf, Memory, Published, State, Step, Store, Stored, Waits},
    },
};

/// Who made the Secret; one without this is not ours to write.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "gangplank");

/// The type of the Secret. It asks for `tls.crt` and `tls.key` (k8s.io/api core/v1).
const SECRET_TYPE: &str = "kubernetes.io/tls";

const SIGNER: (&str, &str) = ("tls.crt", "tls.key");
const NEXT: (&str, &str) = ("next.crt", "next.key");
const BUNDLE: &str = "ca.crt";

/// How many steps one look may lead to: after each, everything is looked at again.
const STEPS: usize = 8;

/// How long the API server may take for one look and its step.
const LIMIT: Duration = Duration::from_secs(15);

/// How soon a replica looks again that serves nothing yet, or that nobody calls yet.
const IMPATIENCE: Duration = Duration::from_millis(500);

/// For how long it does so while nobody calls it.
const BEGINNING: Duration = Duration::from_secs(60);

/// A Secret by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Place {
    /// Reads `<namespace>/<name>`.
    ///
    /// # Errors
    /// Where it is not that.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(format!("{text:?} is not <namespace>/<name>")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why a Secret cannot be used, and is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Somebody else's.
    #[error(
        "the Secret {0} is not Gangplank's: it lacks the label {key}={value}. Name another by \
         --ca-secret",
        key = MANAGED_BY.0, value = MANAGED_BY.1
    )]
    Foreign(Place),
    /// Broken.
    #[error(
        "the Secret {place} is broken: {entry}: {error}. Nothing is overwritten; put back what was \
         there, or delete it (`kubectl delete secret --namespace {} {}`): a running replica then \
         writes what it holds, else a new authority is made", place.namespace, place.name
    )]
    Broken {
        /// Which.
        place: Place,
        /// The entry.
        entry: &'static str,
        /// What is wrong with it.
        error: Box<TlsError>,
    },
}

/// What the Secret holds, keys included.
#[derive(Clone, Debug)]
pub struct Vault {
    signer: Arc<Authority>,
    next: Option<Arc<Authority>>,
    bundle: BTreeSet<Anchor>,
}

impl Vault {
    /// Reads a Secret; none where it is empty.
    ///
    /// # Errors
    /// Where it is not ours, or what it holds is broken.
    pub fn read(secret: &Secret, place: &Place, lives: Lives) -> Result<Option<Self>, Unusable> {
        let value = |key: &str| {
            let data = secret.data.as_ref()?;
            data.get(key)
                .map(|value| &*value.0)
                .filter(|value| !value.is_empty())
        };
        let filled =
            |data: &BTreeMap<String, ByteString>| data.values().any(|value| !value.0.is_empty());
        if !secret.data.as_ref().is_some_and(filled) {
            // Whoever made it lets us fill it: nothing can be lost.
            return Ok(None);
        }
        let labels = secret.metadata.labels.as_ref();
        if labels
            .and_then(|labels| labels.get(MANAGED_BY.0))
            .map(String::as_str)
            != Some(MANAGED_BY.1)
        {
            return Err(Unusable::Foreign(place.clone()));
        }
        let broken = |entry, error: TlsError| Unusable::Broken {
            place: place.clone(),
            entry,
            error: Box::new(error),
        };
        let authority = |(certificate, key): (&'static str, &'static str)| {
            let read = Authority::from_pem(
                value(certificate).unwrap_or_default(),
                value(key).unwrap_or_default(),
                lives,
            );
            read.map(Arc::new)
                .map_err(|error| broken(certificate, error))
        };
        let signer = authority(SIGNER)?;
        let next = (value(NEXT.0).is_some() || value(NEXT.1).is_some())
            .then(|| authority(NEXT))
            .transpose()?;
        let read = bundle::read(value(BUNDLE).unwrap_or_default());
        let mut bundle: BTreeSet<Anchor> = read
            .map_err(|error| broken(BUNDLE, error))?
            .into_iter()
            .collect();
        bundle.insert(signer.anchor().clone());
        bundle.extend(next.iter().map(|next| next.anchor().clone()));
        Ok(Some(Self {
            signer,
            next,
            bundle,
        }))
    }

    /// The certificates alone.
    pub fn stored(&self) -> Stored {
        Stored {
            signer: self.signer.anchor().clone(),
            next: self.next.as_ref().map(|next| next.anchor().clone()),
            bundle: self.bundle.clone(),
        }
    }

    /// Writes it into a Secret. What else stands there stays.
    fn write(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        let mut put = |key: &str, value: Vec<u8>| {
            data.insert(key.to_owned(), ByteString(value));
        };
        put(SIGNER.0, self.signer.certificate_pem().into_bytes());
        put(SIGNER.1, self.signer.key_pem().into_bytes());
        put(BUNDLE, bundle::write(&self.bundle));
        if let Some(next) = &self.next {
            put(NEXT.0, next.certificate_pem().into_bytes());
            put(NEXT.1, next.key_pem().into_bytes());
        } else {
            data.remove(NEXT.0);
            data.remove(NEXT.1);
        }
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
        labels.insert("app.kubernetes.io/name".to_owned(), "gangplank".to_owned());
    }
}

/// What the entries of the webhook configurations trust. What is not readable is trusted by nobody.
pub fn published(registered: &Registered) -> Published {
    let read = |pem| bundle::read(pem).unwrap_or_default().into_iter().collect();
    Published {
        entries: registered.bundles().map(|(_, pem)| read(pem)).collect(),
    }
}

/// What time it is for the API server, which verifies us; none where it does not say.
///
/// # Errors
/// Where it is not reached.
pub async fn server_time(client: &Client) -> Result<Option<SystemTime>, ClusterError> {
    let what = || "tell its version".to_owned();
    let refused = |error| ClusterError::Request {
        what: what(),
        error: Box::new(error),
    };
    let request = Request::get("/version")
        .body(Body::empty())
        .map_err(|error| ClusterError::Config(error.to_string()))?;
    let answer = client.send(request).await.map_err(refused)?;
    // Whatever it answers, it says when.
    let date = answer.headers().get(header::DATE);
    Ok(date
        .and_then(|date| rfc2822::parse(date.to_str().ok()?).ok())
        .map(|date| date.timestamp().into()))
}

/// A clock that follows the API server's, and does not jump when our own does.
#[derive(Clone, Copy, Debug)]
struct Clock {
    then: SystemTime,
    since: Instant,
}

impl Clock {
    fn at(then: SystemTime) -> Self {
        Self {
            then,
            since: Instant::now(),
        }
    }

    fn now(&self) -> SystemTime {
        self.then + self.since.elapsed()
    }
}

/// What a keeper needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Secret.
    pub place: Place,
    /// The name of the webhook configurations.
    pub registration: String,
    /// The ClusterRole that a Secret made by us belongs to.
    pub owner: Option<String>,
    /// For whom leaves are signed.
    pub names: Vec<String>,
    /// How long certificates hold.
    pub lives: Lives,
    /// How often everything is looked at.
    pub period: Duration,
    /// From when all trust an authority until it signs.
    pub grace: Duration,
}

/// Keeps the shared authority, and this replica's leaf.
pub struct Keeper {
    client: Client,
    secrets: Api<Secret>,
    settings: Settings,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    inner: Mutex<Inner>,
    /// Counts up when the webhook configurations are to be written; 0 until there is anything to
    /// publish.
    publish: watch::Sender<u64>,
}

struct Inner {
    clock: Clock,
    began: Instant,
    memory: Memory,
    held: Option<Vault>,
    complaint: Option<String>,
}

/// What came of a look.
struct Looked {
    /// There is more to do at once.
    again: bool,
    /// Why the Secret is left as it is.
    unusable: Option<Unusable>,
    /// There are webhook configurations.
    registered: bool,
    /// How it stands, for people.
    state: String,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper that has not looked yet.
    pub fn new(
        client: Client,
        settings: Settings,
        resolver: Arc<Resolver>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &settings.place.namespace),
            client,
            settings,
            resolver,
            metrics,
            health,
            inner: Mutex::new(Inner {
                clock: Clock::at(SystemTime::now()),
                began: Instant::now(),
                memory: Memory::default(),
                held: None,
                complaint: None,
            }),
            publish: watch::Sender::new(0),
        }
    }

    /// Tells when the webhook configurations are to be written.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.publish.subscribe()
    }

    /// What the webhook configurations have to trust, PEM. The Secret is read for it: asked after the
    /// configurations were seen, it is never older than what they hold.
    ///
    /// # Errors
    /// Where the Secret cannot be used and nothing is held.
    pub async fn bundle(&self, seen: &Registered) -> Result<Vec<u8>, String> {
        let place = &self.settings.place;
        let read = match self.secrets.get_opt(&place.name).await {
            Ok(Some(secret)) => {
                Vault::read(&secret, place, self.settings.lives).map_err(|error| error.to_string())
            }
            Ok(None) => Ok(None),
            Err(error) => Err(chain(&error)),
        };
        let leaf = self.leaf();
        let inner = self.inner.lock().await;
        let bundle = match (read, &inner.held) {
            (Ok(Some(vault)), _) => rotation::to_publish(&vault.stored(), leaf.as_ref()),
            // What is held may be old: nobody who is trusted now is left out.
            (_, Some(held)) => {
                let mut bundle = rotation::to_publish(&held.stored(), leaf.as_ref());
                bundle.extend(published(seen).entries.into_iter().flatten());
                bundle
            }
            (Err(error), None) => return Err(error),
            (Ok(None), None) => return Err(format!("there is no Secret {place} yet")),
        };
        Ok(bundle::write(&bundle))
    }

    /// Looks and acts until the server stops.
    pub async fn follow(&self, mut stopped: watch::Receiver<bool>) {
        loop {
            let turn = tokio::select! {
                turn = self.turn() => turn,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            // Until there are webhook configurations nothing but the Secret holds who signed our leaf. Were it
            // deleted now, the first one to register might not know of us.
            let unknown = turn.as_ref().is_ok_and(|looked| !looked.registered);
            let began = self.report(turn).await;
            let beginning = unknown && began.elapsed() < BEGINNING;
            let pause = if self.resolver.current().is_some() && !beginning {
                self.settings.period
            } else {
                IMPATIENCE.min(self.settings.period)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// Tells how a turn went: once, and not at every look. Since when there have been turns.
    async fn report(&self, turn: Result<Looked, String>) -> Instant {
        let mut inner = self.inner.lock().await;
        let result = match turn {
            Ok(Looked {
                unusable: Some(unusable),
                ..
            }) => Err(unusable.to_string()),
            Ok(looked) => Ok(looked.state),
            Err(error) => {
                self.renew_alone(&inner);
                Err(error)
            }
        };
        let serving = self.resolver.current();
        if let Some(identity) = &serving {
            self.health
                .certificate(identity.not_after, inner.clock.now());
        }
        self.metrics.certificate_looked("secret", result.is_ok());
        match &result {
            Ok(_) => {
                if inner.complaint.take().is_some() {
                    tracing::info!("the certificate authority is well again");
                }
            }
            Err(error) => {
                if inner.complaint.as_ref() != Some(error) {
                    if serving.is_some() {
                        tracing::error!("keeping the serving certificate: {error}");
                    } else {
                        tracing::error!("there is no certificate to serve yet: {error}");
                    }
                    inner.complaint = Some(error.clone());
                }
            }
        }
        self.health.authority(result);
        inner.began
    }

    /// Looks and acts until there is nothing to do at once.
    async fn turn(&self) -> Result<Looked, String> {
        let mut last = None;
        for _ in 0..STEPS {
            let looked = tokio::time::timeout(LIMIT, self.step())
                .await
                .map_err(|_| format!("the API server did not answer within {} s", LIMIT.as_secs()))?
                .map_err(|error| chain(&error))?;
            let again = looked.again;
            last = Some(looked);
            if !again {
                break;
            }
        }
        last.ok_or_else(|| "nothing was looked at".to_owned())
    }

    /// One look, and the step that it asks for.
    async fn step(&self) -> Result<Looked, ClusterError> {
        let Settings {
            place,
            lives,
            names,
            ..
        } = &self.settings;
        let clock = Clock::at(
            server_time(&self.client)
                .await?
                .unwrap_or_else(SystemTime::now),
        );
        // The configurations first: what they trust was in the Secret before.
        let seen = registered(&self.client, &self.settings.registration).await?;
        let secret =
            self.secrets
                .get_opt(&place.name)
                .await
                .map_err(|error| ClusterError::Request {
                    what: format!("read the Secret {place}"),
                    error: Box::new(error),
                })?;
        let read = secret
            .as_ref()
            .map_or(Ok(None), |secret| Vault::read(secret, place, *lives));
        let published = published(&seen);
        let leaf = self.leaf();

        let mut inner = self.inner.lock().await;
        inner.clock = clock;
        let store = match &read {
            Ok(Some(vault)) => Store::Holds(vault.stored()),
            Ok(None) => Store::Absent,
            Err(_) => Store::Unusable,
        };
        let elapsed = inner.began.elapsed();
        // A look now and then is missed on a busy machine.
        let gap = self.settings.grace.max(3 * self.settings.period);
        inner.memory.saw(&store, &published, elapsed, gap);
        if let Ok(Some(vault)) = &read {
            inner.held = Some(vault.clone());
        }
        let held = inner.held.clone();
        let held_stored = held.as_ref().map(Vault::stored);
        let now = clock.now();
        let step = rotation::next_step(
            &State {
                store: &store,
                held: held_stored.as_ref(),
                leaf: leaf.as_ref(),
                published: &published,
                memory: &inner.memory,
                waits: Waits {
                    grace: self.settings.grace,
                    leaf: lives.leaf,
                },
            },
            now,
        );
        // Requests that ask for the bundle need not wait for a write.
        drop(inner);
        let made = |error: TlsError| ClusterError::Config(error.to_string());
        let new = || Authority::new(now, *lives).map(Arc::new).map_err(made);
        let next = match (&step, held) {
            (Step::Sign, Some(vault)) => {
                let identity = vault.signer.sign(names, now).map_err(made)?;
                self.serve(identity, now);
                None
            }
            (Step::Create(others), _) => {
                let signer = new()?;
                let mut bundle = others.clone();
                bundle.insert(signer.anchor().clone());
                Some(Vault {
                    signer,
                    next: None,
                    bundle,
                })
            }
            (Step::Restore(bundle), Some(vault)) => Some(Vault {
                bundle: bundle.clone(),
                ..vault
            }),
            (Step::Keep(anchor), Some(mut vault)) => {
                vault.bundle.insert(anchor.clone());
                Some(vault)
            }
            (Step::Prepare, Some(mut vault)) => {
                let next = new()?;
                vault.bundle.insert(next.anchor().clone());
                vault.next = Some(next);
                Some(vault)
            }
            (Step::Promote, Some(mut vault)) => {
                if let Some(next) = vault.next.take() {
                    vault.signer = next;
                }
                Some(vault)
            }
            (Step::Drop(anchors), Some(mut vault)) => {
                vault.bundle.retain(|anchor| !anchors.contains(anchor));
                Some(vault)
            }
            // All but resting follows from something that is held.
            (Step::Rest, _) | (_, None) => None,
        };
        let mut again = step == Step::Sign;
        if let Some(vault) = next {
            again = true;
            if self.write(&vault, secret).await? {
                self.metrics.authority_step(step.as_str());
                tracing::info!(
                    secret = %place,
                    step = step.as_str(),
                    signer = vault.signer.anchor().describe(),
                    trusted = vault.bundle.len(),
                    "wrote the certificate authority"
                );
            }
        } else if step == Step::Sign {
            self.metrics.authority_step(step.as_str());
        }
        let state = if let Store::Holds(stored) = &store {
            self.metrics.authority(stored.signer.not_after);
            let wanted = bundle::write(&rotation::to_publish(stored, self.leaf().as_ref()));
            let serving = self.resolver.current().is_some();
            let stale = published
                .entries
                .iter()
                .any(|entry| bundle::write(entry) != wanted);
            // Who serves nothing yet registers nothing; but what is registered has to be kept up, for
            // nobody could ever serve otherwise.
            if !again && (stale || (serving && *self.publish.borrow() == 0)) {
                self.publish.send_modify(|version| *version += 1);
            }
            format!(
                "ok, {} until {}; {}",
                bundle::short(&stored.signer.fingerprint()),
                moment(stored.signer.not_after),
                rotation::outlook(stored, &published, now)
            )
        } else {
            "there is none yet".to_owned()
        };
        Ok(Looked {
            again,
            unusable: read.err(),
            registered: !published.entries.is_empty(),
            state,
        })
    }

    /// Writes the Secret where it is still as it was seen. False where somebody was faster.
    async fn write(&self, vault: &Vault, seen: Option<Secret>) -> Result<bool, ClusterError> {
        let params = PostParams::default();
        let result = if let Some(mut secret) = seen {
            vault.write(&mut secret);
            // With the resource version that was seen: another is a conflict.
            let name = &self.settings.place.name;
            self.secrets.replace(name, &params, &secret).await
        } else {
            let mut secret = Secret {
                metadata: ObjectMeta {
                    name: Some(self.settings.place.name.clone()),
                    ..ObjectMeta::default()
                },
                type_: Some(SECRET_TYPE.to_owned()),
                ..Secret::default()
            };
            if let Some(name) = &self.settings.owner {
                let owner = super::owner(&self.client, name).await?;
                secret.metadata.owner_references = Some(vec![owner]);
            }
            vault.write(&mut secret);
            self.secrets.create(&params, &secret).await
        };
        match result {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(ClusterError::Request {
                what: format!("write the Secret {}", self.settings.place),
                error: Box::new(error),
            }),
        }
    }

    /// The leaf that is served.
    fn leaf(&self) -> Option<Leaf> {
        let identity = self.resolver.current()?;
        Some(Leaf {
            issuer: identity.issuer.clone()?,
            not_before: identity.not_before,
            renew_at: identity.renew_at(),
            not_after: identity.not_after,
        })
    }

    fn serve(&self, identity: Identity, now: SystemTime) {
        self.metrics.certificate(identity.not_after);
        self.health.certificate(identity.not_after, now);
        tracing::info!(
            until = moment(identity.not_after),
            "another serving certificate is in use"
        );
        self.resolver.replace(identity);
    }

    /// A leaf that is about to end while the API server cannot be asked: it may reach us still, though
    /// we do not reach it, and a leaf of an authority that may have been replaced is better than none.
    fn renew_alone(&self, inner: &Inner) {
        let (Some(held), Some(leaf)) = (&inner.held, self.leaf()) else {
            return;
        };
        let now = inner.clock.now();
        let life = leaf.not_after.duration_since(leaf.not_before);
        if now + life.unwrap_or_default() / 12 < leaf.not_after {
            return;
        }
        match held.signer.sign(&self.settings.names, now) {
            Ok(identity) => self.serve(identity, now),
            Err(error) => tracing::error!("cannot sign a certificate: {error}"),
        }
    }
}
