//! The serving certificate: where it comes from, and what keeps it current.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use kube::core::Duration as GoDuration;
use tokio::sync::watch;

use super::wait;
use crate::{
    admin::Health,
    cluster::{
        Registered,
        authority::{Keeper, Place, Settings},
    },
    metrics::Metrics,
    tls::{
        Resolver,
        authority::{Authority, Lives},
        client::Clients,
        files::Files,
        moment,
    },
    webhook::registration::Reach,
};

/// Annotations by which cert-manager's cainjector is told to write caBundle
/// (cert-manager pkg/apis/certmanager/v1/types.go).
const CAINJECTOR: &str = "cert-manager.io/inject-";

/// The arguments about certificates.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
#[group(skip)]
pub(super) struct TlsArgs {
    /// The serving certificate (PEM, leaf first); without it one is made and kept in memory, signed by
    /// the authority in --ca-secret
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that signed it (PEM), published as caBundle by --register; without it the
    /// certificates of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Leave caBundle alone: somebody else writes it, as cert-manager's cainjector does
    #[arg(long, requires = "tls_cert", conflicts_with = "tls_ca")]
    ca_injected: bool,
    /// A further name or address for the certificate made in memory
    #[arg(long, value_name = "NAME", conflicts_with = "tls_cert")]
    tls_san: Vec<String>,
    /// The Secret of the authority that all replicas share, as <namespace>/<name>; with --service
    /// <its namespace>/<registration name>-ca, else the authority is this process's own
    #[arg(
        long,
        value_name = "SECRET",
        value_parser = Place::parse,
        requires = "register",
        conflicts_with = "tls_cert"
    )]
    ca_secret: Option<Place>,
    /// Let in only clients with a certificate of this authority (PEM), as an API server can be given
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// And of those only the ones with this common or alternative name
    #[arg(long, value_name = "NAME", requires = "client_ca")]
    client_name: Vec<String>,

    /// How long an authority holds; the next one follows after two thirds
    #[arg(long, value_name = "DURATION", default_value = "8760h", hide = true)]
    ca_life: GoDuration,
    /// How long a leaf holds; the next one follows after two thirds
    #[arg(long, value_name = "DURATION", default_value = "168h", hide = true)]
    leaf_life: GoDuration,
    /// How often Secret and webhook configurations are looked at
    #[arg(long, value_name = "DURATION", default_value = "30s", hide = true)]
    ca_period: GoDuration,
    /// How long everybody has to trust an authority before it signs
    #[arg(long, value_name = "DURATION", default_value = "1m", hide = true)]
    ca_grace: GoDuration,
    /// How often certificate files are looked at: a projected volume swaps a link above them, which a
    /// watch on the files themselves misses
    #[arg(long, value_name = "DURATION", default_value = "10s", hide = true)]
    tls_period: GoDuration,
}

/// An annotation, as KEY=VALUE.
pub(super) fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not <key>=<value>")),
    }
}

/// What the certificate depends on besides its own arguments.
pub(super) struct Setting<'a> {
    pub(super) listening: SocketAddr,
    pub(super) url_host: Option<String>,
    pub(super) service: Option<&'a Reach>,
    /// The name of the webhook configurations.
    pub(super) registration: String,
    /// The ClusterRole that they, and the authority's Secret, belong to.
    pub(super) owner: Option<String>,
    /// Where the webhook configurations are ours to write.
    pub(super) client: Option<kube::Client>,
    pub(super) annotations: &'a [(String, String)],
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
}

/// The serving certificate and what keeps it current.
pub(super) struct Certificate {
    pub(super) resolver: Arc<Resolver>,
    clients: Option<Arc<Clients>>,
    trust: Trust,
    source: Source,
    period: Duration,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// Where the next certificate comes from.
enum Source {
    /// Signed in memory, for these names.
    Own(Box<Authority>, Vec<String>),
    /// Signed in memory, by the authority that all replicas share.
    Shared(Arc<Keeper>),
    /// Files, written by somebody else.
    Files(Files, watch::Sender<Arc<Vec<u8>>>),
}

/// What the webhook configurations have to trust.
#[derive(Clone)]
pub(super) enum Trust {
    /// These certificates, PEM.
    These(watch::Receiver<Arc<Vec<u8>>>),
    /// What the Secret says.
    Shared(Arc<Keeper>, watch::Receiver<u64>),
    /// Somebody else writes it.
    Injected,
}

impl Trust {
    /// Waits until there is something to publish, or nothing to wait for.
    pub(super) async fn begun(mut self) {
        if let Self::Shared(_, changes) = &mut self {
            // An error says that nobody is left to tell.
            let _ = changes.wait_for(|version| *version > 0).await;
        }
    }

    /// What is to be published, now that this was seen of the configurations.
    pub(super) async fn bundle(&self, seen: &Registered) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::These(bundle) => Ok(Some(bundle.borrow().to_vec())),
            Self::Shared(keeper, _) => keeper.bundle(seen).await.map(Some),
            Self::Injected => Ok(None),
        }
    }

    /// What was told so far is being acted on.
    pub(super) fn mark_unchanged(&mut self) {
        match self {
            Self::These(changes) => changes.mark_unchanged(),
            Self::Shared(_, changes) => changes.mark_unchanged(),
            Self::Injected => {}
        }
    }

    /// Waits until there is something else to publish.
    pub(super) async fn changed(&mut self) {
        let told = match self {
            Self::These(changes) => changes.changed().await,
            Self::Shared(_, changes) => changes.changed().await,
            Self::Injected => return std::future::pending().await,
        };
        if told.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Certificate {
    /// Begins. With a shared authority there is no certificate until [`Certificate::follow`] has found
    /// one.
    pub(super) fn load(args: &TlsArgs, setting: Setting<'_>) -> anyhow::Result<Self> {
        let now = SystemTime::now();
        let lives = Lives {
            authority: args.ca_life.into(),
            leaf: args.leaf_life.into(),
        };
        let injector = setting
            .annotations
            .iter()
            .any(|(key, _)| key.starts_with(CAINJECTOR));
        if injector && !args.ca_injected {
            bail!(
                "--registration-annotation {CAINJECTOR}... asks cert-manager to write caBundle: add \
                 --ca-injected, or it and Gangplank write over each other"
            );
        }
        let clients = args
            .client_ca
            .as_ref()
            .map(|path| Clients::load(path.clone(), args.client_name.clone()).map(Arc::new));
        let clients = clients.transpose().context("--client-ca")?;
        if clients.is_some() {
            setting.health.clients(Ok(()));
        }
        let names = names(args, &setting);
        let of_service = match setting.service {
            Some(Reach::Service { namespace, .. }) => Some(Place {
                namespace: namespace.clone(),
                name: format!("{}-ca", setting.registration),
            }),
            _ => None,
        };
        let place = args.ca_secret.clone().or(of_service);
        let (identity, source, trust) =
            if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
                let authority = args.tls_ca.as_ref().unwrap_or(certificate);
                let (files, loaded) = Files::load(certificate, key, authority, now)?;
                let (sender, bundle) = watch::channel(Arc::new(loaded.bundle));
                let trust = if args.ca_injected {
                    Trust::Injected
                } else {
                    Trust::These(bundle)
                };
                (Some(loaded.identity), Source::Files(files, sender), trust)
            } else if let (Some(place), Some(client)) = (place, setting.client.clone()) {
                let settings = Settings {
                    place,
                    registration: setting.registration.clone(),
                    owner: setting.owner.clone(),
                    names,
                    lives,
                    period: args.ca_period.into(),
                    grace: args.ca_grace.into(),
                };
                let resolver = Arc::new(Resolver::new(None));
                let (metrics, health) = (Arc::clone(&setting.metrics), Arc::clone(&setting.health));
                let keeper = Keeper::new(client, settings, Arc::clone(&resolver), metrics, health);
                let keeper = Arc::new(keeper);
                return Ok(Self {
                    resolver,
                    clients,
                    trust: Trust::Shared(Arc::clone(&keeper), keeper.changes()),
                    source: Source::Shared(keeper),
                    period: args.tls_period.into(),
                    metrics: setting.metrics,
                    health: setting.health,
                });
            } else {
                // It dies with the process, and may live as long.
                let authority = Authority::new(
                    now,
                    Lives {
                        authority: 10 * lives.authority,
                        ..lives
                    },
                )?;
                let identity = authority.sign(&names, now).with_context(|| {
                    format!("cannot make a certificate for {}", names.join(", "))
                })?;
                setting.metrics.authority(authority.anchor().not_after);
                let end = moment(authority.anchor().not_after);
                setting
                    .health
                    .authority(Ok(format!("ok, in memory, until {end}")));
                let bundle = Arc::new(authority.certificate_pem().into_bytes());
                let (_, bundle) = watch::channel(bundle);
                let source = Source::Own(Box::new(authority), names);
                (Some(identity), source, Trust::These(bundle))
            };
        if let Some(identity) = &identity {
            setting.metrics.certificate(identity.not_after);
            setting.health.certificate(identity.not_after, now);
        }
        Ok(Self {
            resolver: Arc::new(Resolver::new(identity)),
            clients,
            trust,
            source,
            period: args.tls_period.into(),
            metrics: setting.metrics,
            health: setting.health,
        })
    }

    /// The clients that are let in, where not all are.
    pub(super) fn clients(&self) -> Option<Arc<Clients>> {
        self.clients.clone()
    }

    /// What the webhook configurations have to trust.
    pub(super) fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Keeps the certificate current: one made in memory is replaced when two thirds of its life are
    /// over, one from files when their content is another. What cannot be served is not taken; the one
    /// before it stays.
    pub(super) async fn follow(self, stopped: watch::Receiver<bool>) {
        let Self {
            resolver,
            clients,
            trust: _,
            source,
            period,
            metrics,
            health,
        } = self;
        let clients = follow_clients(clients, period, &metrics, &health, stopped.clone());
        let source = async {
            match source {
                Source::Shared(keeper) => keeper.follow(stopped.clone()).await,
                Source::Own(authority, names) => {
                    let mut stopped = stopped.clone();
                    while !wait(&mut stopped, period).await {
                        let now = SystemTime::now();
                        let served = resolver.current();
                        let due = served.is_none_or(|served| {
                            served.renew_at() <= now || now < served.not_before
                        });
                        if due {
                            serve(
                                &resolver,
                                authority.sign(&names, now),
                                &metrics,
                                now,
                                &health,
                            );
                        }
                    }
                }
                Source::Files(files, bundle) => {
                    follow_files(
                        files,
                        bundle,
                        &resolver,
                        period,
                        &metrics,
                        &health,
                        stopped.clone(),
                    )
                    .await;
                }
            }
        };
        tokio::join!(clients, source);
    }
}

/// Serves a certificate that was just made.
fn serve(
    resolver: &Resolver,
    made: Result<crate::tls::Identity, crate::tls::TlsError>,
    metrics: &Metrics,
    now: SystemTime,
    health: &Health,
) {
    match made {
        Ok(identity) => {
            metrics.certificate(identity.not_after);
            health.certificate(identity.not_after, now);
            resolver.replace(identity);
            tracing::info!("another serving certificate is in use");
        }
        Err(error) => tracing::error!("keeping the serving certificate: {error}"),
    }
}

/// Looks at the certificate's files again and again.
async fn follow_files(
    mut files: Files,
    bundle: watch::Sender<Arc<Vec<u8>>>,
    resolver: &Resolver,
    period: Duration,
    metrics: &Metrics,
    health: &Health,
    mut stopped: watch::Receiver<bool>,
) {
    let mut complaint = None;
    while !wait(&mut stopped, period).await {
        let now = SystemTime::now();
        let look = files.look(now);
        metrics.certificate_looked("files", look.is_ok());
        match look {
            Ok(loaded) => {
                complaint = None;
                if let Some(loaded) = loaded {
                    if **bundle.borrow() != loaded.bundle {
                        bundle.send_replace(Arc::new(loaded.bundle));
                    }
                    let served = resolver.current();
                    if served.is_none_or(|served| !loaded.identity.is_same_as(&served)) {
                        serve(resolver, Ok(loaded.identity), metrics, now, health);
                    }
                }
                health.authority(Ok("files, as they are served".to_owned()));
            }
            // Once, and not at every look.
            Err(error) => {
                let text = error.to_string();
                health.authority(Err(text.clone()));
                if complaint.as_ref() != Some(&text) {
                    tracing::error!("keeping the serving certificate: {text}");
                    complaint = Some(text);
                }
            }
        }
        if let Some(served) = resolver.current() {
            health.certificate(served.not_after, now);
        }
    }
}

/// Looks at the file of the clients' authority again and again.
async fn follow_clients(
    clients: Option<Arc<Clients>>,
    period: Duration,
    metrics: &Metrics,
    health: &Health,
    mut stopped: watch::Receiver<bool>,
) {
    let Some(clients) = clients else { return };
    let mut complaint = None;
    while !wait(&mut stopped, period).await {
        let look = clients.reload();
        metrics.certificate_looked("client-ca", look.is_ok());
        health.clients(look.as_ref().map(|_| ()).map_err(ToString::to_string));
        match look {
            Ok(changed) => {
                complaint = None;
                if changed {
                    tracing::info!("another authority of clients is in force");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if complaint.as_ref() != Some(&text) {
                    tracing::error!("keeping the authority of clients: {text}");
                    complaint = Some(text);
                }
            }
        }
    }
}

/// The names and addresses that the API server may call us by.
fn names(args: &TlsArgs, setting: &Setting<'_>) -> Vec<String> {
    let mut names = BTreeSet::from([
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ]);
    if !setting.listening.ip().is_unspecified() {
        names.insert(setting.listening.ip().to_string());
    }
    names.extend(setting.url_host.clone());
    if let Some(Reach::Service {
        namespace, name, ..
    }) = setting.service
    {
        for suffix in ["", ".cluster.local"] {
            names.insert(format!("{name}.{namespace}.svc{suffix}"));
        }
    }
    names.extend(args.tls_san.iter().cloned());
    names.into_iter().collect()
}
