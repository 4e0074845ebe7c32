//! Strangers who can reach the port of the webhook and want nobody else to be answered, while the API server
//! asks: no guarded write fails. `cargo test --test it -- strangers:: --nocapture` prints how long writes took.
//!
//! Each attack comes from another address than the API server's, and from its own. The attackers are bounded
//! in number and stop when the writes are done.

#![allow(
    clippy::print_stdout,
    reason = "figures, for whoever asks with --nocapture"
)]

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gangplank::webhook::limits::CONNECTIONS;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{Api, api::PostParams};
use rustls::ClientConfig;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::{
    enforce::hpa,
    harness::{Assets, Cluster, Gangplank, SOON, client, eventually, service::Service},
    limits::{
        END_HEADERS, Frames, GOAWAY, HEADERS, RST_STREAM, Tls, answer, client_config, connect_over,
        count, evicted, head, request_head,
    },
    serve::{get, review},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// Writes while an attack goes on, and how many of them at a time.
const WRITES: usize = 200;
const AT_A_TIME: usize = 4;

/// Where the API server's connections come from, and another address.
const ITS_OWN: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// How the API server reaches the webhook: HTTP/2 to a URL of localhost, HTTP/1.1 to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Url,
    Service,
}

/// One cluster for all: the machine is too small for two attacks at a time.
struct World {
    cluster: Cluster,
    folder: tempfile::TempDir,
    service: Service,
}

const NAMESPACE: &str = "strangers";
const NAME: &str = "gangplank";

fn world() -> Result<MutexGuard<'static, World>> {
    // A static is never dropped; the leash ends the servers when the process ends.
    static WORLD: OnceLock<Result<Mutex<World>, String>> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        World::start()
            .map(Mutex::new)
            .map_err(|error| format!("{error:#}"))
    });
    match world {
        Ok(world) => Ok(world.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => Err(anyhow::anyhow!("{error}")),
    }
}

impl World {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(&Assets::find()?)?;
        let kubectl = cluster.kubectl();
        kubectl
            .run(&["create", "namespace", NAMESPACE], None)?
            .success()?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {"ports": [{"port": 8443}]},
        });
        kubectl.create(&service.to_string())?.success()?;
        let made = kubectl
            .in_namespace(NAMESPACE)
            .get(&format!("service/{NAME}"))?;
        let ip: IpAddr = made["spec"]["clusterIP"]
            .as_str()
            .context("an address")?
            .parse()?;
        let names = ["localhost", "127.0.0.1", "gangplank.strangers.svc"].map(str::to_owned);
        let key = rcgen::KeyPair::generate()?;
        let signed = rcgen::CertificateParams::new(names.to_vec())?.self_signed(&key)?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("tls.crt"), signed.pem())?;
        fs::write(folder.path().join("tls.key"), key.serialize_pem())?;
        Ok(Self {
            cluster,
            folder,
            service: Service::listen(SocketAddr::new(ip, 8443))?,
        })
    }

    /// Starts and registers Gangplank, and waits until the API server asks it.
    fn guard(&self, way: Way) -> Result<Gangplank> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let mut args = vec![
            format!("--tls-cert={}", file("tls.crt")),
            format!("--tls-key={}", file("tls.key")),
        ];
        if way == Way::Service {
            args.push(format!("--service={NAMESPACE}/{NAME}:8443"));
        }
        // What another test registered in the same cluster belongs to another install.
        let kubectl = self.cluster.kubectl();
        let both = "validatingwebhookconfiguration,mutatingwebhookconfiguration";
        kubectl
            .run(&["delete", both, "gangplank", "--ignore-not-found"], None)?
            .success()?;
        let gangplank = Gangplank::register(Path::new(BINARY), &self.cluster, &args)?;
        self.service.lead_to(vec![gangplank.webhook()]);
        let runtime = Runtime::new()?;
        let api = self.api(&runtime)?;
        let mut said = String::new();
        eventually("the API server asks", SOON, || {
            let written = runtime.block_on(write(&api));
            written.map_err(|error| said = format!("{error:#}")).ok()
        })
        .with_context(|| said.clone())?;
        Ok(gangplank)
    }

    fn api(&self, runtime: &Runtime) -> Result<Api<HorizontalPodAutoscaler>> {
        let client = runtime.block_on(client(self.cluster.kubeconfig()))?;
        // Not the namespace of Gangplank itself, which is left alone.
        Ok(Api::namespaced(client, "default"))
    }

    /// Writes again and again what has to be denied. Each has to be denied by a verdict: a call of the webhook
    /// that fails, by its timeout too, is another error.
    fn write(&self, what: &str, writes: usize) -> Result<()> {
        let runtime = Runtime::new()?;
        let api = self.api(&runtime)?;
        let mut took = runtime.block_on(async {
            let tasks = (0..AT_A_TIME).map(|_| {
                let api = api.clone();
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    for _ in 0..writes / AT_A_TIME {
                        took.push(write(&api).await?);
                    }
                    anyhow::Ok(took)
                })
            });
            let mut all = Vec::new();
            for task in futures_util::future::join_all(tasks).await {
                all.extend(task??);
            }
            anyhow::Ok(all)
        })?;
        took.sort();
        let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
        println!(
            "{what}: {} writes, p50 {:.1?}, p99 {:.1?}, the slowest {:.1?}",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
        ensure!(took.len() == writes);
        Ok(())
    }
}

/// Writes once what has to be denied, and says how long that took.
async fn write(api: &Api<HorizontalPodAutoscaler>) -> Result<Duration> {
    let object = serde_json::from_value(hpa("guarded", "DCGM_FI_DEV_GPU_UTIL"))?;
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let began = Instant::now();
    let said = match api.create(&params, &object).await {
        Ok(_) => "created".to_owned(),
        Err(error) => error.to_string(),
    };
    let verdict = "denied the request: gpu-utilization-signal: ";
    ensure!(said.contains(verdict), "no verdict: {said}");
    Ok(began.elapsed())
}

/// What an attacker needs to know.
struct Target {
    webhook: SocketAddr,
    from: Ipv4Addr,
    config: Arc<ClientConfig>,
    stop: AtomicBool,
    /// What has been tried so far: streams or connections.
    tried: AtomicUsize,
    /// Attempts that came to nothing.
    failed: AtomicUsize,
}

impl Target {
    fn new(world: &World, gangplank: &Gangplank, from: Ipv4Addr, protocol: &str) -> Result<Self> {
        Ok(Self {
            webhook: gangplank.webhook(),
            from,
            config: client_config(world.folder.path(), protocol)?,
            stop: AtomicBool::new(false),
            tried: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        })
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tried(&self) -> usize {
        self.tried.load(Ordering::Relaxed)
    }

    /// Waits until so many more were tried.
    fn wait(&self, more: usize) -> Result<()> {
        let before = self.tried();
        eventually(format_args!("{more} more are tried"), 2 * SOON, || {
            (self.tried() >= before + more).then_some(())
        })
    }

    /// Connects from the attacker's address.
    fn connect(&self, runtime: &Runtime) -> Result<TcpStream> {
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind((self.from, 0).into())?;
            let stream = socket.connect(self.webhook).await?.into_std()?;
            stream.set_nonblocking(false)?;
            std::io::Result::Ok(stream)
        })?;
        Ok(stream)
    }

    /// As [`Target::connect`], and makes it one of TLS.
    fn dial(&self, runtime: &Runtime) -> Result<Tls> {
        let stream = self.connect(runtime)?;
        let tls = connect_over(stream, Arc::clone(&self.config))?;
        tls.sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        tls.sock.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(tls)
    }

    /// Ends the attack when it is dropped, however the test ends: its threads are waited for.
    fn stop_after(&self) -> impl Drop + use<'_> {
        struct Stop<'t>(&'t AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Stop(&self.stop)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Connections of HTTP/2, and streams that each of them has open or tries to: more than are let in, and for
/// every other connection as many as are.
const H2_CONNECTIONS: usize = 6;
const H2_STREAMS: [usize; 2] = [240, 32];

/// Opens streams whose bodies do not come, and another one for each that is answered or reset.
fn unfinished_streams(target: &Target, streams: usize) {
    let runtime = runtime();
    let mut begin = request_head();
    // content-length (HPACK's static table, 28), of a body that never comes.
    begin.extend([0x0f, 0x0d, 6]);
    begin.extend(b"100000");
    while !target.is_over() {
        let attempt = || -> Result<()> {
            let mut frames = Frames::over(target.dial(&runtime)?)?.0;
            let mut next = 1;
            let mut wanted = streams;
            while !target.is_over() {
                for _ in 0..wanted {
                    frames.write(HEADERS, END_HEADERS, next, &begin)?;
                    next += 2;
                }
                frames.0.flush()?;
                target.tried.fetch_add(wanted, Ordering::Relaxed);
                wanted = loop {
                    let frame = frames.next()?.context("it has ended")?;
                    match frame.kind {
                        HEADERS | RST_STREAM => break 1,
                        GOAWAY => return Ok(()),
                        _ => {}
                    }
                };
            }
            Ok(())
        };
        if attempt().is_err() {
            target.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// More connections than there may be, and threads that keep them.
const DIALED: usize = CONNECTIONS as usize + 76;
const DIALERS: usize = 4;

/// Holds connections over each of which it has made one cheap request, and dials again for each that is closed.
fn one_request_each(target: &Target) {
    let runtime = runtime();
    let body = review("cheap");
    let request = format!("{}{body}", head(body.len()));
    let dial = || -> Result<TcpStream> {
        let mut tls = target.dial(&runtime)?;
        tls.write_all(request.as_bytes())?;
        answer(&mut tls)?;
        tls.sock.set_nonblocking(true)?;
        target.tried.fetch_add(1, Ordering::Relaxed);
        Ok(tls.sock)
    };
    let mut held = Vec::new();
    while !target.is_over() {
        // Nothing more is said: what comes is the end.
        held.retain(|stream: &TcpStream| {
            let read = stream.peek(&mut [0]);
            matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        let missing = (DIALED / DIALERS).saturating_sub(held.len());
        if missing == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..missing {
            if target.is_over() {
                return;
            }
            match dial() {
                Ok(stream) => held.push(stream),
                Err(_) => {
                    target.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn streams_beside_writes(from: Ipv4Addr, way: Way) -> Result<()> {
    let world = world()?;
    let gangplank = world.guard(way)?;
    let target = Target::new(&world, &gangplank, from, "h2")?;
    thread::scope(|scope| {
        let _stop = target.stop_after();
        for index in 0..H2_CONNECTIONS {
            let target = &target;
            scope.spawn(move || unfinished_streams(target, H2_STREAMS[index % 2]));
        }
        target.wait(1_000)?;
        let before = target.tried();
        world.write(&format!("unfinished streams from {from}, {way:?}"), WRITES)?;
        // They were at it all the time.
        let meanwhile = target.tried() - before;
        println!(
            "  {} streams tried, {meanwhile} of them meanwhile",
            target.tried()
        );
        ensure!(meanwhile > 0);
        // Not one of them took the place of a request, and their bodies were waited for.
        let shed = "gangplank_shed_requests_total{reason=\"requests\"}";
        ensure!(count(&gangplank, shed)? == 0);
        eventually("bodies that do not come have a deadline", SOON, || {
            let metrics = get(&gangplank, "/metrics").ok()?.1;
            metrics.contains("code=\"408\"").then_some(())
        })
    })
}

fn connections_beside_writes(
    from: Ipv4Addr,
    way: Way,
    then: impl FnOnce(&mut World, &Gangplank) -> Result<()>,
) -> Result<()> {
    let mut world = world()?;
    let gangplank = world.guard(way)?;
    let target = Target::new(&world, &gangplank, from, "http/1.1")?;
    thread::scope(|scope| {
        let _stop = target.stop_after();
        for _ in 0..DIALERS {
            scope.spawn(|| one_request_each(&target));
        }
        eventually("all places are taken", 2 * SOON, || {
            (evicted(&gangplank, "idle").ok()? > 0).then_some(())
        })?;
        let what = format!("a thousand connections from {from}, {way:?}");
        let writes = |world: &World, what: &str| -> Result<()> {
            let (before, gone) = (target.tried(), evicted(&gangplank, "idle")?);
            world.write(what, WRITES)?;
            // They were at it all the time.
            let meanwhile = target.tried() - before;
            let gone = evicted(&gangplank, "idle")? - gone;
            println!(
                "  {} connections tried, {meanwhile} of them meanwhile, {gone} closed, {} failed",
                target.tried(),
                target.failed.load(Ordering::Relaxed)
            );
            ensure!(meanwhile > 0 && gone > 0);
            Ok(())
        };
        writes(&world, &what)?;
        then(&mut world, &gangplank)?;
        writes(&world, &format!("{what}, over new connections"))?;
        ensure!(count(&gangplank, "gangplank_refused_connections_total")? == 0);
        Ok(())
    })
}

#[test]
fn unfinished_streams_of_another_address_fail_no_write() -> Result<()> {
    streams_beside_writes(ANOTHER, Way::Url)
}

#[test]
fn unfinished_streams_of_the_api_servers_own_address_fail_no_write() -> Result<()> {
    streams_beside_writes(ITS_OWN, Way::Service)
}

/// The API server starts again in the middle of it: it has no connection left.
#[test]
fn a_thousand_connections_of_another_address_fail_no_write() -> Result<()> {
    connections_beside_writes(ANOTHER, Way::Url, |world, _| {
        world.cluster.restart_apiserver()?;
        let runtime = Runtime::new()?;
        let api = world.api(&runtime)?;
        // It takes up the configurations after it is ready; until then nobody is asked.
        eventually("the API server asks", SOON, || {
            match runtime.block_on(write(&api)) {
                Ok(_) => Some(Ok(())),
                Err(error) if error.to_string().contains("created") => None,
                Err(error) => Some(Err(error)),
            }
        })?
    })
}

/// The API server's own connection is closed too: it is the one that was used the longest ago.
#[test]
fn a_thousand_connections_of_the_api_servers_own_address_fail_no_write() -> Result<()> {
    for way in [Way::Url, Way::Service] {
        connections_beside_writes(ITS_OWN, way, |_, gangplank| {
            let before = evicted(gangplank, "idle")?;
            eventually("every connection has made room", 2 * SOON, || {
                let now = evicted(gangplank, "idle").ok()?;
                (now >= before + u64::from(CONNECTIONS)).then_some(())
            })
        })?;
    }
    Ok(())
}

/// Connects without a word, as fast as it goes, and lets go of the oldest of its own after a while.
fn silent_connections(target: &Target) {
    let runtime = runtime();
    let mut held = std::collections::VecDeque::new();
    while !target.is_over() {
        match target.connect(&runtime) {
            Ok(stream) => {
                target.tried.fetch_add(1, Ordering::Relaxed);
                held.push_back(stream);
            }
            Err(_) => {
                target.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        if held.len() > CONNECTIONS as usize {
            held.pop_front();
        }
    }
}

/// Sends bodies that are nearly as large as may be, and never their last byte.
fn unfinished_bytes(target: &Target) {
    let runtime = runtime();
    let part = vec![b' '; 64 * 1024];
    while !target.is_over() {
        let attempt = || -> Result<()> {
            let mut tls = target.dial(&runtime)?;
            tls.write_all(head(8 << 20).as_bytes())?;
            for _ in 0..127 {
                tls.write_all(&part)?;
                target.tried.fetch_add(1, Ordering::Relaxed);
                if target.is_over() {
                    break;
                }
            }
            answer(&mut tls)?;
            Ok(())
        };
        if attempt().is_err() {
            target.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends whole requests about objects that are large and dense, one after another.
fn dear_objects(target: &Target) {
    let runtime = runtime();
    let mut object = hpa("dear", "DCGM_FI_DEV_GPU_UTIL");
    let metric = object["spec"]["metrics"][0].clone();
    object["spec"]["metrics"] = json!(vec![metric; 8_000]);
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "dear", "operation": "CREATE", "namespace": "default",
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "object": object,
        },
    })
    .to_string();
    let request = format!("{}{body}", head(body.len()));
    while !target.is_over() {
        let attempt = || -> Result<()> {
            let mut tls = target.dial(&runtime)?;
            while !target.is_over() {
                tls.write_all(request.as_bytes())?;
                target.tried.fetch_add(1, Ordering::Relaxed);
                answer(&mut tls)?;
            }
            Ok(())
        };
        if attempt().is_err() {
            target.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn beside_writes(what: &str, way: Way, first: usize, attack: fn(&Target)) -> Result<()> {
    let world = world()?;
    let gangplank = world.guard(way)?;
    let target = Target::new(&world, &gangplank, ITS_OWN, "http/1.1")?;
    thread::scope(|scope| {
        let _stop = target.stop_after();
        for _ in 0..DIALERS {
            scope.spawn(|| attack(&target));
        }
        target.wait(first)?;
        let before = target.tried();
        // A connection that the kernel had no place for is tried again after a second, in which some
        // machines make all of the writes.
        let large = || count(&gangplank, "gangplank_large_in_flight_requests");
        for _ in 0..20 {
            world.write(&format!("{what} from {ITS_OWN}, {way:?}"), WRITES)?;
            if target.tried() > before || large()? > 0 {
                break;
            }
        }
        let (tried, failed) = (target.tried(), target.failed.load(Ordering::Relaxed));
        println!(
            "  {tried} tried, {} of them meanwhile, {failed} broke off",
            tried - before
        );
        // What takes longer than all the writes is under way all the time.
        ensure!(tried > before || large()? > 0);
        let metrics = get(&gangplank, "/metrics")?.1;
        for line in metrics.lines() {
            if ["gangplank_shed", "gangplank_evicted", "gangplank_refused"]
                .iter()
                .any(|name| line.starts_with(name))
            {
                println!("  {line}");
            }
        }
        Ok(())
    })
}

#[test]
fn silent_connections_of_the_api_servers_own_address_fail_no_write() -> Result<()> {
    beside_writes(
        "silent connections",
        Way::Service,
        2_000,
        silent_connections,
    )
}

#[test]
fn unfinished_bytes_of_the_api_servers_own_address_fail_no_write() -> Result<()> {
    beside_writes("unfinished bytes", Way::Service, 1_000, unfinished_bytes)
}

#[test]
fn dear_objects_of_the_api_servers_own_address_fail_no_write() -> Result<()> {
    beside_writes("dear objects", Way::Url, 4, dear_objects)
}
