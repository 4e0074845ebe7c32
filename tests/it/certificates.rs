//! The certificate authority that replicas share, on a real API server; certificate files; clients
//! that have to show a certificate.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gangplank::tls::bundle;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use serde_json::{Value, json};

use crate::{
    enforce::hpa,
    harness::{Assets, Cluster, Gangplank, Helm, Kubectl, SOON, eventually, service::Service},
    serve::get,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

/// Takes whatever certificate a server shows: what is to be said of it is said afterwards.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A certificate and its key, PEM.
pub(crate) type Pair = (String, String);

pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connects, with this certificate or none, by one version of TLS.
pub(crate) fn connect(
    to: SocketAddr,
    own: Option<&Pair>,
    tls: &'static rustls::SupportedProtocolVersion,
) -> Result<Stream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[tls])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything));
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
            builder.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
        }
    };
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

/// The chain that a server shows.
pub(crate) fn shown(by: SocketAddr) -> Result<Vec<CertificateDer<'static>>> {
    let stream = connect(by, None, &rustls::version::TLS13)?;
    let chain = stream.conn.peer_certificates().context("a certificate")?;
    Ok(chain.iter().map(|one| one.clone().into_owned()).collect())
}

/// What a client with this certificate, or none, is answered.
fn ask(
    to: SocketAddr,
    own: Option<&Pair>,
    tls: &'static rustls::SupportedProtocolVersion,
) -> Result<String> {
    let mut stream = connect(to, own, tls)?;
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "ConfigMap"},
            "object": {"metadata": {"name": "settings"}},
        },
    })
    .to_string();
    write!(
        stream,
        "POST /validate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{review}",
        review.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The Service of the tests: an address whose connections go to one replica after the other.
struct Forwarder {
    address: SocketAddr,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Forwarder {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let replicas = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let to = Arc::clone(&replicas);
        thread::spawn(move || {
            for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
                let all = to.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(replica) = all.get(number % all.len().max(1)) else {
                    continue;
                };
                if let Ok(server) = TcpStream::connect(replica) {
                    pump(&client, &server);
                    pump(&server, &client);
                }
            }
        });
        Ok(Self { address, replicas })
    }
}

/// Carries bytes from one connection to the other until it ends.
fn pump(from: &TcpStream, to: &TcpStream) {
    if let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) {
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }
}

/// Two replicas behind one address, started at once.
struct Twins {
    cluster: Cluster,
    system: Kubectl,
    replicas: Vec<Gangplank>,
    _service: Forwarder,
}

impl Twins {
    fn start(more: &[&str]) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cluster = Cluster::start(&Assets::find()?)?;
        let system = cluster.namespace("system")?;
        let service = Forwarder::start()?;
        let mut args = vec![
            format!("--url=https://{}", service.address),
            format!("--ca-secret={}/gangplank-ca", system.namespace()),
            "--ca-period=500ms".to_owned(),
        ];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let start = || Gangplank::register(Path::new(BINARY), &cluster, &args);
        let replicas = thread::scope(|scope| {
            let both = [scope.spawn(start), scope.spawn(start)];
            both.map(|one| one.join().map_err(|_| anyhow!("a start panicked"))?)
                .into_iter()
                .collect::<Result<Vec<_>>>()
        })?;
        *service
            .replicas
            .lock()
            .unwrap_or_else(PoisonError::into_inner) =
            replicas.iter().map(Gangplank::webhook).collect();
        let twins = Self {
            cluster,
            system,
            replicas,
            _service: service,
        };
        eventually("the API server asks them", SOON, || {
            twins.write_is_judged().ok()
        })?;
        Ok(twins)
    }

    /// A good object is taken and a bad one denied, by a webhook that answers.
    fn write_is_judged(&self) -> Result<()> {
        let write = |metric: &str| {
            let object = hpa("judged", metric).to_string();
            let dry = ["create", "--dry-run=server", "--filename=-"];
            self.cluster.kubectl().run(&dry, Some(&object))
        };
        let good = write("vllm:num_requests_waiting")?;
        ensure!(good.accepted(), "refused: {}", good.stderr);
        let bad = write("DCGM_FI_DEV_GPU_UTIL")?;
        ensure!(
            !bad.accepted() && bad.stderr.contains("gpu-utilization-signal"),
            "not denied by us: {}",
            bad.stderr
        );
        Ok(())
    }

    fn secret(&self) -> Result<Value> {
        self.system.get("secret/gangplank-ca")
    }

    /// What a key of the Secret holds.
    fn held(&self, key: &str) -> Result<Vec<u8>> {
        let secret = self.secret()?;
        let value = secret["data"][key].as_str().context("a value")?;
        Ok(STANDARD.decode(value)?)
    }

    /// The caBundle of each entry of both configurations.
    fn published(&self) -> Result<Vec<Vec<u8>>> {
        let kinds = ["mutating", "validating"];
        let mut all = Vec::new();
        for kind in kinds {
            let kubectl = self.cluster.kubectl();
            let found = kubectl.get(&format!("{kind}webhookconfiguration/gangplank"))?;
            for entry in found["webhooks"].as_array().context("webhooks")? {
                let text = entry["clientConfig"]["caBundle"].as_str();
                all.push(STANDARD.decode(text.context("caBundle")?)?);
            }
        }
        ensure!(all.len() > 3, "{} entries", all.len());
        Ok(all)
    }

    /// Every entry trusts what every replica shows. Shown first, then read: whoever served it had seen
    /// its authority published, and nobody takes an authority away while its leaves hold.
    fn all_verify(&self) -> Result<()> {
        let chains = self.replicas.iter().map(|one| shown(one.webhook()));
        let chains = chains.collect::<Result<Vec<_>>>()?;
        for pem in self.published()? {
            let anchors = bundle::read(&pem)?;
            for chain in &chains {
                bundle::verify(&anchors, chain, "127.0.0.1", SystemTime::now())
                    .map_err(|error| anyhow!("{error}"))?;
            }
        }
        Ok(())
    }

    /// How often a step was made by any of them.
    fn steps(&self, step: &str) -> Result<u64> {
        let name = format!("gangplank_ca_steps_total{{step=\"{step}\"}}");
        let mut sum = 0;
        for replica in &self.replicas {
            sum += metric(replica, &name)?.map_or(Ok(0), |value| value.parse::<u64>())?;
        }
        Ok(sum)
    }
}

/// The value of a metric.
pub(crate) fn metric(gangplank: &Gangplank, name: &str) -> Result<Option<String>> {
    let text = get(gangplank, "/metrics")?.1;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .map(str::to_owned))
}

#[test]
fn replicas_that_start_at_once_share_one_authority_and_bring_it_back_when_it_is_deleted()
-> Result<()> {
    let twins = Twins::start(&[])?;
    assert_eq!(twins.steps("create")?, 1);
    assert_eq!(twins.secret()?["type"], "kubernetes.io/tls");
    let authority = twins.held("ca.crt")?;
    assert_eq!(bundle::read(&authority)?.len(), 1);
    assert_eq!(twins.held("tls.crt")?, authority);
    assert!(twins.published()?.iter().all(|bundle| *bundle == authority));
    twins.all_verify()?;
    let leaves: Vec<_> = twins
        .replicas
        .iter()
        .map(|one| shown(one.webhook()))
        .collect();
    assert_ne!(
        leaves[0].as_ref().unwrap(),
        leaves[1].as_ref().unwrap(),
        "each has a leaf of its own"
    );
    for replica in &twins.replicas {
        let lines = get(replica, "/readyz?verbose")?.1;
        assert!(lines.contains("\ncertificate: ok, until 2"), "{lines}");
        assert!(lines.contains("\ncertificate authority: ok, "), "{lines}");
        let end = metric(replica, "gangplank_ca_not_after_timestamp_seconds")?.context("an end")?;
        let end = Duration::from_secs_f64(end.parse()?);
        let left = end
            .checked_sub(SystemTime::UNIX_EPOCH.elapsed()?)
            .context("not yet")?;
        assert_eq!((left.as_secs() + 43_200) / 86_400, 365);
    }

    let key = twins.held("tls.key")?;
    twins.system.delete("secret/gangplank-ca")?.success()?;
    eventually("the Secret is back", SOON, || {
        (twins.held("tls.key").ok()? == key).then_some(())
    })?;
    assert_eq!(twins.held("ca.crt")?, authority);
    assert_eq!(twins.steps("restore")?, 1, "by one of the two");
    assert!(twins.published()?.iter().all(|bundle| *bundle == authority));
    twins.write_is_judged()
}

#[test]
fn garbage_in_the_secret_is_told_and_changes_nothing() -> Result<()> {
    let twins = Twins::start(&[])?;
    let (authority, key) = (twins.held("ca.crt")?, twins.held("tls.key")?);
    let garbage = json!({"data": {"tls.crt": STANDARD.encode("garbage")}});
    twins
        .system
        .patch("secret/gangplank-ca", &garbage)?
        .success()?;
    for replica in &twins.replicas {
        eventually("it is told", SOON, || {
            let lines = get(replica, "/readyz?verbose").ok()?.1;
            lines
                .contains("gangplank-ca is broken: tls.crt")
                .then_some(())
        })?;
        let stale = metric(replica, "gangplank_certificate_stale{source=\"secret\"}")?;
        assert_eq!(stale.as_deref(), Some("1"));
        assert_eq!(get(replica, "/readyz")?.0, 200);
    }
    twins.all_verify()?;
    twins.write_is_judged()?;
    assert_eq!(twins.held("tls.crt")?, b"garbage", "nothing is overwritten");
    assert!(twins.published()?.iter().all(|bundle| *bundle == authority));

    // What the message says: delete it, and who runs writes what it holds.
    twins.system.delete("secret/gangplank-ca")?.success()?;
    eventually("the Secret is back", SOON, || {
        (twins.held("tls.key").ok()? == key).then_some(())
    })?;
    for replica in &twins.replicas {
        eventually("all is well again", SOON, || {
            let stale = metric(replica, "gangplank_certificate_stale{source=\"secret\"}");
            (stale.ok()?? == "0").then_some(())
        })?;
    }
    twins.write_is_judged()
}

/// An authority, and what it signs.
struct Maker {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Maker {
    fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    fn sign(&self, common: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Result<Pair> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((
            params.signed_by(&key, &self.issuer)?.pem(),
            key.serialize_pem(),
        ))
    }

    fn server(&self) -> Result<Pair> {
        let names = ["localhost", "127.0.0.1"];
        self.sign("gangplank", &names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self, common: &str) -> Result<Pair> {
        self.sign(common, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// What the kubelet does with the files of a projected volume: a folder beside, and one link swapped.
fn project(folder: &Path, version: &str, authority: &str, pair: &Pair) -> Result<()> {
    let beside = folder.join(version);
    fs::create_dir(&beside)?;
    fs::write(beside.join("ca.crt"), authority)?;
    fs::write(beside.join("tls.crt"), &pair.0)?;
    fs::write(beside.join("tls.key"), &pair.1)?;
    std::os::unix::fs::symlink(version, folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        if !folder.join(file).exists() {
            std::os::unix::fs::symlink(format!("..data/{file}"), folder.join(file))?;
        }
    }
    Ok(())
}

#[test]
fn a_projected_volume_is_followed_and_a_certificate_of_another_authority_is_not_taken() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let at = |flag: &str, file: &str| format!("--{flag}={}", folder.path().join(file).display());
    let (one, two) = (Maker::new("one")?, Maker::new("two")?);
    let first = one.server()?;
    project(folder.path(), "..v1", &one.pem, &first)?;
    let args = [
        at("tls-cert", "tls.crt"),
        at("tls-key", "tls.key"),
        at("tls-ca", "ca.crt"),
        "--tls-period=200ms".to_owned(),
    ];
    let gangplank = Gangplank::start(Path::new(BINARY), &args)?;
    let serves = |pair: &Pair| -> Result<bool> {
        let der = CertificateDer::from_pem_slice(pair.0.as_bytes())?;
        Ok(shown(gangplank.webhook())?.first() == Some(&der))
    };
    assert!(serves(&first)?);

    // It holds, and key and certificate are a pair; but nobody who trusts ca.crt takes it.
    project(folder.path(), "..v2", &one.pem, &two.server()?)?;
    eventually("it is told", SOON, || {
        let lines = get(&gangplank, "/readyz?verbose").ok()?.1;
        lines.contains("does not chain to what").then_some(())
    })?;
    let stale = "gangplank_certificate_stale{source=\"files\"}";
    assert_eq!(metric(&gangplank, stale)?.as_deref(), Some("1"));
    assert!(serves(&first)?);
    assert_eq!(get(&gangplank, "/readyz")?.0, 200);

    let second = two.server()?;
    project(folder.path(), "..v3", &two.pem, &second)?;
    eventually("the swapped link is followed", SOON, || {
        serves(&second).ok()?.then_some(())
    })?;
    eventually("all is well", SOON, || {
        (metric(&gangplank, stale).ok()?? == "0").then_some(())
    })
}

#[test]
fn only_clients_with_a_certificate_are_let_in_where_one_is_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("clients.crt");
    let (ours, other) = (Maker::new("front-proxy")?, Maker::new("other")?);
    fs::write(&file, &ours.pem)?;
    let args = [
        format!("--client-ca={}", file.display()),
        "--client-name=kube-apiserver".to_owned(),
        "--tls-period=200ms".to_owned(),
    ];
    let gangplank = Gangplank::start(Path::new(BINARY), &args)?;
    let asks = |own: Option<&Pair>, tls| ask(gangplank.webhook(), own, tls);
    let named = ours.client("kube-apiserver")?;
    let stranger = other.client("kube-apiserver")?;
    for tls in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let answer = asks(Some(&named), tls)?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(asks(None, tls).is_err(), "without a certificate");
        assert!(
            asks(Some(&ours.client("somebody")?), tls).is_err(),
            "another name"
        );
        assert!(asks(Some(&stranger), tls).is_err(), "another authority");
        assert!(
            asks(Some(&ours.server()?), tls).is_err(),
            "a server's certificate"
        );
    }
    let lines = get(&gangplank, "/readyz?verbose")?.1;
    assert!(lines.contains("client certificates: asked for"), "{lines}");

    // A file that is half written changes nothing; another authority is in force soon.
    fs::write(&file, "half")?;
    eventually("it is told", SOON, || {
        let stale = metric(
            &gangplank,
            "gangplank_certificate_stale{source=\"client-ca\"}",
        );
        (stale.ok()?? == "1").then_some(())
    })?;
    asks(Some(&named), &rustls::version::TLS13)?;
    fs::write(&file, &other.pem)?;
    eventually("the other authority is in force", SOON, || {
        asks(Some(&stranger), &rustls::version::TLS13)
            .ok()
            .map(|_| ())
    })?;
    assert!(asks(Some(&named), &rustls::version::TLS13).is_err());
    Ok(())
}

/// A YAML block of certs/README.md that holds a text.
fn block(holding: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/README.md");
    let page = fs::read_to_string(path)?;
    let mut blocks = page.split("```yaml\n").skip(1);
    let block = blocks.find(|block| block.contains(holding));
    let block = block.and_then(|block| block.split("```").next());
    Ok(block.context("a block")?.to_owned())
}

#[test]
fn a_real_api_server_shows_its_certificate_as_the_readme_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |file: &str| folder.path().join(file).display().to_string();
    let service = Service::listen("127.0.0.1:0".parse()?)?;
    let clients = Maker::new("front-proxy")?;
    let pair = clients.client("kube-apiserver")?;
    fs::write(at("clients.crt"), &clients.pem)?;
    fs::write(at("client.crt"), &pair.0)?;
    fs::write(at("client.key"), &pair.1)?;
    let kubeconfig = block("kind: Config\n")?
        .replace(
            "gangplank.gangplank-system.svc",
            &format!("\"{}\"", service.address()),
        )
        .replace("/etc/kubernetes/pki/webhook-client.crt", &at("client.crt"))
        .replace("/etc/kubernetes/pki/webhook-client.key", &at("client.key"));
    fs::write(at("webhooks.kubeconfig"), kubeconfig)?;
    let admission = block("kind: AdmissionConfiguration\n")?.replace(
        "/etc/kubernetes/webhooks.kubeconfig",
        &at("webhooks.kubeconfig"),
    );
    fs::write(at("admission.yaml"), admission)?;
    let flag = format!("--admission-control-config-file={}", at("admission.yaml"));
    let cluster = Cluster::start_with(&Assets::find()?, &[&flag])?;
    let args = [
        format!("--url=https://{}", service.address()),
        format!("--client-ca={}", at("clients.crt")),
        "--client-name=kube-apiserver".to_owned(),
        "--watch=false".to_owned(),
    ];
    let gangplank = Gangplank::register(Path::new(BINARY), &cluster, &args)?;
    service.lead_to(vec![gangplank.webhook()]);
    eventually("the API server is answered", SOON, || {
        let dry = ["create", "--dry-run=server", "--filename=-"];
        let bad = hpa("judged", "DCGM_FI_DEV_GPU_UTIL").to_string();
        let answer = cluster.kubectl().run(&dry, Some(&bad)).ok()?;
        answer
            .stderr
            .contains("denied the request: gpu-utilization-signal: ")
            .then_some(())
    })?;
    assert!(ask(gangplank.webhook(), None, &rustls::version::TLS13).is_err());
    Ok(())
}

#[test]
fn what_the_script_makes_is_served_and_lets_its_client_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let made = folder.path().join("dev");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/dev.sh");
    let output = std::process::Command::new("sh")
        .arg(script)
        .arg(&made)
        .arg("DNS:gangplank.example")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "is OpenSSL installed? {said}");
    let at = |flag: &str, file: &str| format!("--{flag}={}", made.join(file).display());
    let args = [
        at("tls-cert", "tls.crt"),
        at("tls-key", "tls.key"),
        at("tls-ca", "ca.crt"),
        at("client-ca", "ca.crt"),
        "--client-name=kube-apiserver".to_owned(),
    ];
    let gangplank = Gangplank::start(Path::new(BINARY), &args)?;
    let read = |file: &str| fs::read_to_string(made.join(file));
    let client = (read("client.crt")?, read("client.key")?);
    let answer = ask(gangplank.webhook(), Some(&client), &rustls::version::TLS13)?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(ask(gangplank.webhook(), None, &rustls::version::TLS13).is_err());
    let anchors = bundle::read(read("ca.crt")?.as_bytes())?;
    let stream = connect(gangplank.webhook(), Some(&client), &rustls::version::TLS13)?;
    let chain: Vec<_> = (stream.conn.peer_certificates().context("a chain")?.iter())
        .map(|one| one.clone().into_owned())
        .collect();
    for name in ["localhost", "127.0.0.1", "gangplank.example"] {
        bundle::verify(&anchors, &chain, name, SystemTime::now())
            .map_err(|error| anyhow!("{name}: {error}"))?;
    }
    Ok(())
}

/// A Secret as it would be ours, of this data.
fn secret(data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "gangplank-ca",
            "labels": {"app.kubernetes.io/managed-by": "gangplank"}},
        "data": data})
    .to_string()
}

#[test]
fn a_fresh_start_on_garbage_waits_until_it_is_deleted() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    let system = cluster.namespace("system")?;
    let garbage = STANDARD.encode("garbage");
    let data = json!({"tls.crt": garbage, "tls.key": garbage});
    system.create(&secret(&data))?.success()?;
    let args = [
        "--register".to_owned(),
        "--watch=false".to_owned(),
        format!("--kubeconfig={}", cluster.kubeconfig().display()),
        format!("--ca-secret={}/gangplank-ca", system.namespace()),
    ];
    let mut gangplank = Gangplank::launch(Path::new(BINARY), &args, &[])?;
    let broken = || {
        let (code, lines) = get(&gangplank, "/readyz?verbose").ok()?;
        let told = lines.contains("gangplank-ca is broken: tls.crt");
        (code != 200 && told).then_some(())
    };
    eventually("it is told", SOON, broken)?;
    assert!(
        gangplank
            .log()
            .contains("there is no certificate to serve yet")
    );
    let configurations = "validatingwebhookconfigurations";
    let listed = system.run(&["get", configurations, "--output=name"], None)?;
    assert_eq!(listed.success()?.trim(), "", "nothing is registered");
    let held = system.get("secret/gangplank-ca")?;
    assert_eq!(held["data"], data, "nothing is overwritten");
    system.delete("secret/gangplank-ca")?.success()?;
    gangplank.wait_for("ready")?;
    assert_eq!(get(&gangplank, "/readyz")?.0, 200);
    let held = system.get("secret/gangplank-ca")?;
    assert_ne!(held["data"]["tls.crt"], data["tls.crt"]);
    Ok(())
}

/// Whoever registers first has to know of all who serve: until then the Secret alone names them.
#[test]
fn a_secret_that_is_deleted_before_anything_is_registered_is_back_at_once() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    let system = cluster.namespace("system")?;
    let config = fs::read_to_string(system.kubeconfig())?;
    let mut config: Value = serde_json::from_str(&config)?;
    config["users"][0]["user"]["as"] = json!("gangplank");
    let kubeconfig = cluster.dir().join("kubeconfig-of-gangplank");
    fs::write(&kubeconfig, config.to_string())?;
    // It may read the configurations and not write them.
    for object in [
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "gangplank"}, "rules": [
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "get", "update"]},
            {"apiGroups": ["admissionregistration.k8s.io"], "verbs": ["get"], "resources":
                ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]},
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "gangplank"},
            "subjects": [{"kind": "User", "name": "gangplank", "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "gangplank"}}),
    ] {
        system.create(&object.to_string())?.success()?;
    }
    let args = [
        "--register".to_owned(),
        "--watch=false".to_owned(),
        // The next look but for this is far away.
        "--ca-period=1h".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--ca-secret={}/gangplank-ca", system.namespace()),
    ];
    let gangplank = Gangplank::launch(Path::new(BINARY), &args, &[])?;
    let key = || {
        let secret = system.get("secret/gangplank-ca").ok()?;
        Some(secret["data"]["tls.key"].clone())
    };
    let first = eventually("there is a Secret", SOON, key)?;
    eventually("it is served by", SOON, || shown(gangplank.webhook()).ok())?;
    system.delete("secret/gangplank-ca")?.success()?;
    let second = eventually("the Secret is back", SOON, key)?;
    assert_eq!(first, second);
    Ok(())
}

#[test]
fn the_manifests_for_cert_manager_are_ones_that_it_takes() -> Result<()> {
    let cluster = Cluster::start(&Assets::find()?)?;
    cluster.install_crds_of("crds-cert-manager")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/cert-manager");
    let kubectl = cluster.kubectl();
    kubectl
        .run(&["create", "namespace", "gangplank-system"], None)?
        .success()?;
    let take = |text: &str| {
        let strict = ["create", "--validate=strict", "--filename=-"];
        kubectl.run(&strict, Some(text))
    };
    take(&fs::read_to_string(folder.join("certificate.yaml"))?)?.success()?;
    // The schema would refuse another word.
    let wrong =
        fs::read_to_string(folder.join("certificate.yaml"))?.replace("renewBefore", "renewsBefore");
    assert!(!take(&wrong)?.accepted());

    // The container: flags that there are, a volume of the Secret that the certificate fills, and names that
    // the certificate holds.
    let container: Value =
        serde_saphyr::from_str(&fs::read_to_string(folder.join("container.yaml"))?)?;
    let args: Vec<String> = serde_json::from_value(container["containers"][0]["args"].clone())?;
    let cli = ["gangplank".to_owned()].into_iter().chain(args.clone());
    <gangplank::cli::Cli as clap::Parser>::try_parse_from(cli)?;
    let namespaced = kubectl.in_namespace("gangplank-system");
    let certificate = namespaced.get("certificate/gangplank")?;
    let mount = &container["volumes"][0];
    assert_eq!(
        mount["secret"]["secretName"],
        certificate["spec"]["secretName"]
    );
    assert_eq!(
        mount["name"],
        container["containers"][0]["volumeMounts"][0]["name"]
    );
    let injected =
        "--registration-annotation=cert-manager.io/inject-ca-from=gangplank-system/gangplank";
    assert!(args.iter().any(|arg| arg == injected), "{args:?}");
    let names = certificate["spec"]["dnsNames"]
        .as_array()
        .context("names")?;
    assert!(names.contains(&json!("gangplank.gangplank-system.svc")));

    // And those of the chart.
    let helm = Helm::of(&cluster)?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/gangplank");
    let chart = chart.to_str().context("a path")?;
    for more in [
        "replicas=2",
        "tls.certManager.issuerRef.name=site,tls.certManager.issuerRef.kind=ClusterIssuer",
    ] {
        let answer = helm.run(&[
            "template",
            "chart",
            chart,
            "--namespace",
            "gangplank-system",
            "--show-only",
            "templates/certificate.yaml",
            "--set",
            "tls.mode=certManager",
            "--set",
            more,
        ])?;
        let text = answer.success()?;
        assert!(text.contains("kind: Certificate"), "{text}");
        let dry = [
            "create",
            "--dry-run=server",
            "--validate=strict",
            "--filename=-",
        ];
        kubectl.run(&dry, Some(&text))?.success()?;
    }
    Ok(())
}

#[test]
fn few_permissions_suffice_and_another_keeps_ca_bundle_where_it_is_injected() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::start(&Assets::find()?)?;
    let system = cluster.namespace("system")?;
    let config = fs::read_to_string(system.kubeconfig())?;
    let mut config: Value = serde_json::from_str(&config)?;
    config["users"][0]["user"]["as"] = json!("gangplank");
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, config.to_string())?;
    // As in certs/README.md. By server-side apply, create too is asked for by name.
    let may = |kind: &str, rules: Value| {
        let subjects =
            json!([{"kind": "User", "name": "gangplank", "apiGroup": "rbac.authorization.k8s.io"}]);
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "gangplank"}, "rules": rules});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"),
            "metadata": {"name": "gangplank"}, "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "gangplank"}});
        for object in [role, binding] {
            system.create(&object.to_string())?.success()?;
        }
        anyhow::Ok(())
    };
    may(
        "Role",
        json!([
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["gangplank-ca"],
                "verbs": ["get", "update"]},
        ]),
    )?;
    may(
        "ClusterRole",
        json!([
            {"apiGroups": ["admissionregistration.k8s.io"],
                "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
                "resourceNames": ["gangplank"],
                "verbs": ["get", "list", "watch", "create", "patch", "update"]},
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
                "resourceNames": ["gangplank"], "verbs": ["get"]},
        ]),
    )?;
    let common = [
        "--register".to_owned(),
        "--watch=false".to_owned(),
        "--registration-owner=gangplank".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
    ];
    let secret = format!("--ca-secret={}/gangplank-ca", system.namespace());
    let certs = |args: &[&str]| {
        std::process::Command::new(BINARY)
            .arg("certs")
            .args(args)
            .arg("--kubeconfig")
            .arg(system.kubeconfig())
            .output()
    };
    let code = |args: &[&str]| anyhow::Ok(certs(args)?.status.code());
    assert_eq!(code(&[])?, Some(1), "nothing is registered");
    let gangplank = Gangplank::start(
        Path::new(BINARY),
        &[&common[..], std::slice::from_ref(&secret)].concat(),
    )?;
    eventually("it is registered", SOON, || {
        let lines = get(&gangplank, "/readyz?verbose").ok()?.1;
        lines.contains("webhook configurations: ok").then_some(())
    })?;
    for object in [
        "secret/gangplank-ca",
        "validatingwebhookconfiguration/gangplank",
    ] {
        let owner = &system.get(object)?["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["name"]),
            (&json!("ClusterRole"), &json!("gangplank"))
        );
    }
    let output = certs(&[&secret, "--output=json"])?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        (output.status.code(), &told["problems"]),
        (Some(0), &json!([])),
        "{told}"
    );
    for entry in told["entries"].as_array().context("entries")? {
        assert_eq!(entry["agrees"], true, "{told}");
    }
    assert_eq!(code(&["--ca-secret=default/nothing"])?, Some(1));
    let nobody = fs::read_to_string(system.kubeconfig())?;
    let mut nobody: Value = serde_json::from_str(&nobody)?;
    nobody["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    let away = folder.path().join("away");
    fs::write(&away, nobody.to_string())?;
    let output = std::process::Command::new(BINARY)
        .args(["certs", "--kubeconfig"])
        .arg(&away)
        .output()?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    drop(gangplank);

    // From now on somebody else writes caBundle.
    let maker = Maker::new("injected")?;
    let pair = maker.server()?;
    fs::write(folder.path().join("tls.crt"), &pair.0)?;
    fs::write(folder.path().join("tls.key"), &pair.1)?;
    let args = [
        format!("--tls-cert={}", folder.path().join("tls.crt").display()),
        format!("--tls-key={}", folder.path().join("tls.key").display()),
        "--registration-annotation=cert-manager.io/inject-ca-from=system/gangplank".to_owned(),
        "--registration-period=200ms".to_owned(),
    ];
    let refused = Gangplank::start(Path::new(BINARY), &[&common[..], &args[..]].concat());
    let refused = format!("{:#}", refused.err().context("two would write caBundle")?);
    assert!(refused.contains("add --ca-injected"), "{refused}");
    let injected = ["--ca-injected".to_owned()];
    let gangplank = Gangplank::start(
        Path::new(BINARY),
        &[&common[..], &args[..], &injected[..]].concat(),
    )?;
    let object = "mutatingwebhookconfiguration/gangplank";
    let bundle = STANDARD.encode(&maker.pem);
    let patch =
        json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]);
    let patch = format!("--patch={patch}");
    system
        .run(&["patch", object, "--type=json", &patch], None)?
        .success()?;
    // It is written again meanwhile, as what was deleted beside it comes back.
    system
        .delete("validatingwebhookconfiguration/gangplank")?
        .success()?;
    eventually("it is registered again", SOON, || {
        system.get("validatingwebhookconfiguration/gangplank").ok()
    })?;
    let found = system.get(object)?;
    assert_eq!(
        found["webhooks"][0]["clientConfig"]["caBundle"],
        json!(bundle)
    );
    assert_eq!(
        found["metadata"]["annotations"]["cert-manager.io/inject-ca-from"],
        "system/gangplank"
    );
    drop(gangplank);
    Ok(())
}
