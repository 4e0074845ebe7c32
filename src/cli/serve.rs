//! `gangplank serve`

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use axum_server::{
    Handle,
    accept::{DefaultAcceptor, NoDelayAcceptor},
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use jiff::Timestamp;
use kube::core::Duration as GoDuration;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    admin::{self, Admin, Health},
    audit::continuous,
    cli::{FAILED, OK, PolicyText},
    cluster::{self, ClusterArgs, access::Access, lease::Contest},
    metrics::Metrics,
    policy::Policy,
    telemetry::{self, LogFormat, LogLevel, traces::Traces},
    tls,
    webhook::{
        self, Desk,
        limits::{self, Connections, Counts, Limited},
        registration::{DEFAULT_NAME, FailurePolicy, Reach, Registration},
    },
};

mod bounds;
mod certificate;
mod registration;
mod reload;

use bounds::Limits;
use certificate::Certificate;
use reload::PolicyFile;

/// How long requests in flight may take to finish after a signal.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long readiness waits for the watches of the cluster; what they have not told by then is
/// unknown until they do.
const CACHES_LIMIT: Duration = Duration::from_secs(30);

/// The arguments of `gangplank serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to serve admission (HTTPS); port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Where to serve /livez, /readyz, /metrics and /loglevel (plain HTTP); port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    admin_listen: SocketAddr,
    /// The policy file; the built-in default policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Keep serving this long after SIGTERM while endpoints drain, as 5s; with --service 5s, else 0s
    #[arg(long, value_name = "DURATION")]
    shutdown_delay: Option<GoDuration>,

    #[command(flatten)]
    tls: certificate::TlsArgs,

    /// Create and update the webhook configurations, and keep them as they should be
    #[arg(long, help_heading = "Registration")]
    register: bool,
    /// Remove the webhook configurations and exit
    #[arg(long, conflicts_with = "register", help_heading = "Registration")]
    unregister: bool,
    /// The URL that the API server reaches us at, as https://10.0.0.1:8443; without --url and
    /// --service the address of --listen
    #[arg(
        long,
        value_name = "URL",
        value_parser = url,
        conflicts_with = "service",
        help_heading = "Registration"
    )]
    url: Option<Url>,
    /// The Service that the API server reaches us through, as <namespace>/<name>[:<port>]
    #[arg(long, value_name = "SERVICE", value_parser = service, help_heading = "Registration")]
    service: Option<Reach>,
    /// The name of both webhook configurations
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, help_heading = "Registration")]
    registration_name: String,
    /// What becomes of a write that may be denied while we do not answer
    #[arg(long, value_enum, default_value_t, help_heading = "Registration")]
    failure_policy: FailurePolicy,

    /// An annotation of both webhook configurations, as cert-manager.io/inject-ca-from=<namespace>/<name>
    #[arg(
        long,
        value_name = "KEY=VALUE",
        value_parser = certificate::annotation,
        help_heading = "Registration"
    )]
    registration_annotation: Vec<(String, String)>,

    /// The ClusterRole that the webhook configurations belong to: Kubernetes removes them with it, even
    /// when nothing of Gangplank is left to do so
    #[arg(
        long,
        value_name = "NAME",
        requires = "register",
        help_heading = "Registration"
    )]
    registration_owner: Option<String>,

    /// How often the webhook configurations are written again, in case somebody changed them
    #[arg(long, value_name = "DURATION", default_value = "1m", hide = true)]
    registration_period: GoDuration,

    /// Watch what autoscalers scale, queues, pod groups and namespaces, so that rules know more than
    /// the object at hand; with --register true, else false
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Cluster"
    )]
    watch: Option<bool>,
    /// Audit the cluster all the time, by one of the replicas: report objects (openreports.io, else
    /// wgpolicyk8s.io), Events and metrics
    #[arg(long, help_heading = "Audit")]
    audit: bool,
    /// How often everything is looked at; what changes is looked at soon
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1h",
        requires = "audit",
        help_heading = "Audit"
    )]
    audit_period: GoDuration,
    /// The namespace of the Lease by which one replica is chosen; with --service its namespace, else
    /// default
    #[arg(
        long,
        value_name = "NAMESPACE",
        requires = "audit",
        help_heading = "Audit"
    )]
    audit_namespace: Option<String>,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(flatten)]
    limits: Limits,

    /// How log lines look; without it text on a terminal, else json
    #[arg(long, value_enum, help_heading = "Logs")]
    log_format: Option<LogFormat>,
    /// The least important log lines shown: error, warn, info, debug, trace, or a filter by module
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Logs"
    )]
    log_level: String,
}

fn service(text: &str) -> Result<Reach, String> {
    let wrong = || format!("{text:?} is not <namespace>/<name>[:<port>]");
    let (namespace, rest) = text.split_once('/').ok_or_else(wrong)?;
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (
            name,
            port.parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(wrong)?,
        ),
        None => (rest, 443),
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok(Reach::Service {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    })
}

/// An https URL, and the host that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    whole: String,
    host: String,
}

fn url(text: &str) -> Result<Url, String> {
    let wrong =
        || format!("{text:?} is not an https URL; the API server calls webhooks by https only");
    let uri: axum::http::Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri
        .authority()
        .filter(|authority| !authority.as_str().contains('@'));
    let (Some("https"), Some(authority)) = (uri.scheme_str(), authority) else {
        return Err(wrong());
    };
    if uri.query().is_some() || authority.host().is_empty() {
        return Err(wrong());
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    Ok(Url {
        whole: text.to_owned(),
        host: host.to_owned(),
    })
}

/// Runs the server until a signal ends it.
pub fn run(args: &Args) -> u8 {
    let log_level = match telemetry::init(&args.log_level, args.log_format) {
        Ok(log_level) => log_level,
        Err(error) => {
            crate::report::complain(&error);
            return FAILED;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(async {
                if args.unregister {
                    return registration::unregister(&args.cluster, &args.registration_name).await;
                }
                tokio::select! {
                    biased;
                    aborted = second_signal() => aborted,
                    done = serve(args, log_level) => done,
                }
            });
            // What ended well has been waited for; nothing else is.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(anyhow!(error).context("cannot start")),
    };
    match result {
        Ok(()) => OK,
        Err(error) => {
            tracing::error!("{error:#}");
            FAILED
        }
    }
}

async fn serve(args: &Args, log_level: LogLevel) -> anyhow::Result<()> {
    // First of all: a signal that comes while we start is not lost.
    let mut signals = Signals::new()?;
    let (policy, file) = policy(args.policy.as_deref())?;
    for line in policy.reminders(Timestamp::now()) {
        tracing::warn!("{line}");
    }
    let traces = Traces::from_env().map_err(|error| anyhow!(error))?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::default());
    if file.is_some() {
        health.policy(Ok(policy.hash().to_owned()));
    }
    let listener = bind(args.listen, "--listen")?;
    let admin_listener = bind(args.admin_listen, "--admin-listen")?;
    let (webhook, admin) = (listener.local_addr()?, admin_listener.local_addr()?);

    // Before anything is served: a client that cannot be made is a mistake in the arguments.
    let watches = args.watch.unwrap_or(args.register);
    let client = if args.register || watches || args.audit {
        Some(args.cluster.client().await?)
    } else {
        None
    };
    let certificate = Certificate::load(
        &args.tls,
        certificate::Setting {
            listening: webhook,
            url_host: args.url.as_ref().map(|url| url.host.clone()),
            service: args.service.as_ref(),
            registration: args.registration_name.clone(),
            owner: args.registration_owner.clone(),
            client: client.clone().filter(|_| args.register),
            annotations: &args.registration_annotation,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
        },
    )?;
    let config = tls::server_config(Arc::clone(&certificate.resolver), certificate.clients())?;
    let trust = certificate.trust();
    let registration = Registration {
        name: args.registration_name.clone(),
        reach: reach(args, webhook),
        ca_bundle: None,
        annotations: args.registration_annotation.iter().cloned().collect(),
        failure_policy: args.failure_policy,
        owner: None,
    };

    let mut desk = Desk::new(policy, Arc::clone(&metrics))
        .with_in_flight(args.limits.max_in_flight)
        .with_body_bytes(args.limits.max_body_bytes_in_flight)
        .with_traces(traces.clone());
    if let Some(client) = &client {
        desk = desk.with_access(Access::new(client.clone(), Arc::clone(&metrics)));
    }
    let desk = Arc::new(desk);
    let (stop, stopped) = watch::channel(false);
    let handle = Handle::new();
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(config))
        .handshake_timeout(limits::HANDSHAKE_DEADLINE)
        .acceptor(NoDelayAcceptor::new());
    if let Err(shortage) = limits::make_room(args.limits.max_connections) {
        tracing::warn!("{shortage}");
    }
    let connections = metrics.connections(args.limits.max_connections);
    let server = axum_server::from_tcp(listener)?
        .acceptor(Limited::new(connections, acceptor))
        .handle(handle.clone());
    let server = limits::bound(server);
    let router = webhook::router(Arc::clone(&desk));
    let leaving = Arc::clone(&desk);
    let mut admission = tokio::spawn(server.serve(router.into_make_service()));
    let admin_handle = Handle::new();
    let admin_router = admin::router(Admin {
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        log_level,
    });
    let connections = Connections::new(limits::ADMIN_CONNECTIONS, Counts::default());
    let admin_server = axum_server::from_tcp(admin_listener)?
        .acceptor(Limited::new(connections, DefaultAcceptor::new()))
        .handle(admin_handle.clone());
    let admin_service = admin_router.into_make_service_with_connect_info::<SocketAddr>();
    let mut admin_task = tokio::spawn(limits::bound(admin_server).serve(admin_service));
    tracing::info!(webhook = %webhook, admin = %admin, "listening");
    let published = trust.clone();
    let mut renewal = tokio::spawn(certificate.follow(stopped.clone()));
    let mut reload = match file {
        Some(file) => {
            tokio::spawn(file.follow(Arc::clone(&desk), Arc::clone(&health), stopped.clone()))
        }
        None => tokio::spawn(until_stopped(stopped.clone())),
    };
    let mut caches = match client.as_ref().filter(|_| watches) {
        Some(client) => cluster::watch::start(client, &desk, &health.watches, &stopped),
        None => Vec::new(),
    };
    if let Some(client) = client.as_ref().filter(|_| args.audit) {
        let settings = audit_settings(args, webhook);
        let (client, desk, stopped) = (client.clone(), Arc::clone(&desk), stopped.clone());
        // On a thread of its own: no worker that answers the API server waits for a page of it.
        let runtime = tokio::runtime::Handle::current();
        caches.push(tokio::task::spawn_blocking(move || {
            runtime.block_on(continuous::follow(client, desk, settings, stopped));
        }));
    }
    let lists = client.clone().filter(|_| watches);
    let counting = cluster::exemptions::follow(lists, Arc::clone(&desk), stopped.clone());
    caches.push(tokio::spawn(counting));
    let early = tokio::select! {
        signal = signals.next() => Some(signal),
        () = async {
            cluster::watch::settled(&health.watches, CACHES_LIMIT).await;
            published.begun().await;
        } => None,
    };
    health.serving();
    let mut upkeep = if let Some(client) = client.filter(|_| args.register && early.is_none()) {
        let health = Arc::clone(&health);
        let period = Duration::from(args.registration_period);
        tokio::spawn(registration::follow(
            client,
            registration::Standing {
                registration,
                owner: args.registration_owner.clone(),
                trust,
            },
            desk,
            health,
            period,
            stopped,
        ))
    } else {
        if early.is_none() {
            tracing::info!("ready");
        }
        tokio::spawn(until_stopped(stopped))
    };

    // None of these ends before it is told to: whichever does has failed, and staying up without it
    // would only look alive.
    let signal = if let Some(signal) = early {
        signal
    } else {
        tokio::select! {
            signal = signals.next() => signal,
            ended = &mut admission => bail!("the admission port failed: {ended:?}"),
            ended = &mut admin_task => bail!("the admin port failed: {ended:?}"),
            ended = &mut renewal => bail!("the certificate's renewal failed: {ended:?}"),
            ended = &mut reload => bail!("the policy's reload failed: {ended:?}"),
            ended = &mut upkeep => bail!("the registration failed: {ended:?}"),
        }
    };
    health.stopping();
    leaving.send_away();
    let default = if args.service.is_some() {
        Duration::from_secs(5)
    } else {
        Duration::ZERO
    };
    let delay = args.shutdown_delay.map_or(default, Into::into);
    tracing::info!(signal, "stopping");
    // No endpoints are left to drain for whoever presses Ctrl-C.
    if signal == "SIGTERM" {
        tokio::time::sleep(delay).await;
    }
    let _ = stop.send(true);
    handle.graceful_shutdown(Some(DRAIN_LIMIT));
    tracing::info!("stopped accepting; finishing what is in flight");
    admission.await?.context("the admission port failed")?;
    traces.flush().await;
    upkeep.await.context("the registration failed")?;
    renewal.await.context("the certificate's renewal failed")?;
    reload.await.context("the policy's reload failed")?;
    for cache in caches {
        cache.await.context("a watch failed")?;
    }
    admin_handle.graceful_shutdown(Some(Duration::from_secs(1)));
    admin_task.await?.context("the admin port failed")?;
    tracing::info!("stopped");
    Ok(())
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Whoever signals twice does not want to wait for what is in flight.
async fn second_signal() -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    signals.next().await;
    let signal = signals.next().await;
    bail!("{signal}, the second signal: ended without finishing what was in flight")
}

/// The policy to begin with, and its file where there is one.
fn policy(path: Option<&Path>) -> anyhow::Result<(Policy, Option<PolicyFile>)> {
    let Some(path) = path else {
        return Ok((Policy::default(), None));
    };
    let text = super::read_policy(path).map_err(|error| anyhow!(error))?;
    let name = path.display().to_string();
    let policy = PolicyText {
        name: &name,
        text: &text,
    }
    .read(Timestamp::now())
    .map_err(|error| anyhow!(error))?;
    Ok((policy, Some(PolicyFile::new(path, text))))
}

fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address} ({flag})"))
}

/// How the continuous audit goes.
fn audit_settings(args: &Args, webhook: SocketAddr) -> continuous::Settings {
    let of_service = match &args.service {
        Some(Reach::Service { namespace, .. }) => Some(namespace.clone()),
        _ => None,
    };
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "gangplank".to_owned());
    continuous::Settings {
        contest: Contest {
            namespace: (args.audit_namespace.clone())
                .or(of_service)
                .unwrap_or_else(|| "default".to_owned()),
            name: format!("{}-audit", args.registration_name),
            // A pod's name differs from all others; elsewhere the process and its port do.
            identity: format!("{host}_{}_{}", std::process::id(), webhook.port()),
        },
        period: args.audit_period.into(),
    }
}

/// How the API server reaches us: as told, else at the address that we listen on.
fn reach(args: &Args, listening: SocketAddr) -> Reach {
    match (&args.service, &args.url) {
        (Some(service), _) => service.clone(),
        (None, Some(url)) => Reach::Url(url.whole.clone()),
        (None, None) => {
            let mut address = listening;
            if address.ip().is_unspecified() {
                address.set_ip(match address.ip() {
                    IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                });
            }
            Reach::Url(format!("https://{address}"))
        }
    }
}

/// Waits until the server stops.
async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // An error says that nobody is left to stop us.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Waits that long, or until the server stops: then true.
async fn wait(stopped: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    tokio::time::timeout(pause, stopped.wait_for(|stopped| *stopped))
        .await
        .is_ok()
}
