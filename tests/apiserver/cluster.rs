//! etcd and kube-apiserver of one throwaway cluster.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::leash::{self, Leashed};
use super::pki::Pki;
use super::{Assets, Kubectl, SOON, eventually, tail};

/// Between the choice of a free port and its use somebody else may take it.
const ATTEMPTS: u32 = 5;

const AUDIT_LOG: &str = "audit.log";

/// A control plane without controllers, until some are started: what is written stays as admission left it. There are no
/// nodes, so pods stay pending, and nothing acts on a Deployment.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Fields drop in this order: the servers end before their folder goes.
    controllers: Option<Leashed>,
    apiserver: Leashed,
    /// Its executable and arguments.
    apiserver_line: Vec<OsString>,
    etcd: Leashed,
    apiserver_address: SocketAddr,
    etcd_address: SocketAddr,
    kubectl: Kubectl,
    dir: TempDir,
}

impl Cluster {
    /// Starts both servers and waits until the API server is ready.
    pub(crate) fn start(assets: &Assets) -> Result<Self> {
        Self::start_with(assets, &[])
    }

    /// As [`Cluster::start`], with these flags for the API server beyond the usual ones.
    pub(crate) fn start_with(assets: &Assets, flags: &[&str]) -> Result<Self> {
        Self::attempt(assets, flags, None)
    }

    /// As [`Cluster::start`], with an audit log ([`Cluster::audit_log`]) under this audit policy.
    pub(crate) fn start_audited(assets: &Assets, audit_policy: &str) -> Result<Self> {
        Self::attempt(assets, &[], Some(audit_policy))
    }

    fn attempt(assets: &Assets, flags: &[&str], audit_policy: Option<&str>) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::try_start(assets, flags, audit_policy) {
                Err(error)
                    if attempt < ATTEMPTS
                        && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result.context("cannot start a Kubernetes API server"),
            }
        }
    }

    fn try_start(assets: &Assets, flags: &[&str], audit_policy: Option<&str>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let [etcd_address, etcd_peer, apiserver_address] = free_addresses()?;

        let etcd_log = dir.path().join("etcd.log");
        let mut command = logged(&assets.etcd, dir.path(), &etcd_log)?;
        command
            .arg("--data-dir")
            .arg(dir.path().join("etcd"))
            .arg(format!("--listen-client-urls=http://{etcd_address}"))
            .arg(format!("--advertise-client-urls=http://{etcd_address}"))
            .arg(format!("--listen-peer-urls=http://{etcd_peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{etcd_peer}"))
            .arg(format!("--initial-cluster=default=http://{etcd_peer}"))
            .arg("--log-level=warn")
            // Nothing here has to survive a power cut.
            .arg("--unsafe-no-fsync");
        let mut etcd = Leashed::spawn(command)?;
        // From here on the folder is on etcd's leash, and keys may go into it.
        let pki = Pki::create(dir.path())?;
        listening(&mut etcd, etcd_address).with_context(|| tail(&etcd_log, 15))?;

        let apiserver_log = dir.path().join("kube-apiserver.log");
        let mut command = logged(&assets.kube_apiserver, dir.path(), &apiserver_log)?;
        command
            .arg(format!("--etcd-servers=http://{etcd_address}"))
            .arg(format!("--bind-address={}", apiserver_address.ip()))
            .arg(format!("--secure-port={}", apiserver_address.port()))
            .arg(format!("--advertise-address={}", apiserver_address.ip()))
            .arg(path_flag("--tls-cert-file", &pki.server_cert))
            .arg(path_flag("--tls-private-key-file", &pki.server_key))
            .arg(path_flag("--client-ca-file", &pki.ca))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(path_flag(
                "--service-account-signing-key-file",
                &pki.service_account_key,
            ))
            .arg(path_flag(
                "--service-account-key-file",
                &pki.service_account_public,
            ))
            // There is no kube-proxy: a Service's address is loopback, where [`super::service`] can
            // listen on it.
            .arg("--service-cluster-ip-range=127.64.0.0/24")
            .arg("--authorization-mode=RBAC")
            // No controller makes the service accounts that pods would have to name.
            .arg("--disable-admission-plugins=ServiceAccount")
            // A loopback address cannot be an endpoint of the `kubernetes` service.
            .arg("--endpoint-reconciler-type=none")
            .arg("--allow-privileged")
            .arg("--profiling=false")
            .args(flags);
        if let Some(audit_policy) = audit_policy {
            let file = dir.path().join("audit-policy.yaml");
            std::fs::write(&file, audit_policy).context("cannot write the audit policy")?;
            command
                .arg(path_flag("--audit-policy-file", &file))
                .arg(path_flag("--audit-log-path", &dir.path().join(AUDIT_LOG)));
        }
        // After the shell's own: see [`leash::command`].
        let apiserver_line = command.get_args().skip(4).map(OsString::from).collect();
        let mut apiserver = Leashed::spawn(command)?;

        let kubeconfig = write_kubeconfig(dir.path(), apiserver_address, &pki)?;
        let home = dir.path().join("home");
        std::fs::create_dir(&home).context("cannot make a home for kubectl")?;
        let kubectl = Kubectl::new(&assets.kubectl, &kubeconfig, &home);
        listening(&mut apiserver, apiserver_address)
            .and_then(|()| ready(&mut apiserver, &kubectl))
            .with_context(|| tail(&apiserver_log, 30))?;

        Ok(Self {
            controllers: None,
            apiserver,
            apiserver_line,
            etcd,
            apiserver_address,
            etcd_address,
            kubectl,
            dir,
        })
    }

    /// Starts kube-controller-manager with these of its controllers, as `garbage-collector-controller`, and no
    /// others. Each writes as the service account of its name, as in a real cluster.
    pub(crate) fn start_controllers(&mut self, controllers: &[&str]) -> Result<()> {
        let log = self.dir().join("kube-controller-manager.log");
        let program = super::assets::kube_controller_manager()?;
        let mut command = logged(&program, self.dir(), &log)?;
        command
            .arg(path_flag("--kubeconfig", self.kubeconfig()))
            .arg(format!("--controllers={}", controllers.join(",")))
            .arg("--use-service-account-credentials")
            .arg("--leader-elect=false")
            // It serves its own metrics and health to nobody here.
            .arg("--secure-port=0")
            // Nodes and volumes are not there to be managed.
            .arg("--allocate-node-cidrs=false");
        self.controllers = Some(Leashed::spawn(command)?);
        Ok(())
    }

    /// Ends the API server as a failing node would, starts it again and waits until it is ready.
    pub(crate) fn restart_apiserver(&mut self) -> Result<()> {
        self.apiserver.kill()?;
        let (program, args) = (self.apiserver_line.split_first()).context("a command line")?;
        let log = self.dir().join("kube-apiserver-again.log");
        let mut command = logged(Path::new(program), self.dir(), &log)?;
        command.args(args);
        self.apiserver = Leashed::spawn(command)?;
        ready(&mut self.apiserver, &self.kubectl).with_context(|| tail(&log, 30))
    }

    /// Lets etcd stand still, or go on.
    pub(crate) fn signal_etcd(&mut self, signal: leash::Signal) -> Result<()> {
        self.etcd.signal(signal)
    }

    /// A kubeconfig for a service account, with its own token, by way of another address that leads to
    /// the API server.
    pub(crate) fn kubeconfig_of(
        &self,
        namespace: &str,
        account: &str,
        way: SocketAddr,
    ) -> Result<PathBuf> {
        let kubectl = self.kubectl.in_namespace(namespace);
        let token = kubectl
            .run(&["create", "token", account], None)?
            .success()?;
        let text = std::fs::read_to_string(self.kubeconfig()).context("the kubeconfig")?;
        let mut config: Value = serde_json::from_str(&text)?;
        let user = config.pointer_mut("/users/0/user").context("a user")?;
        *user = json!({"token": token.trim()});
        let server = config
            .pointer_mut("/clusters/0/cluster/server")
            .context("a server")?;
        *server = json!(format!("https://{way}"));
        let path = self.dir().join(format!("kubeconfig-{namespace}-{account}"));
        std::fs::write(&path, config.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// kubectl as the cluster's administrator.
    pub(crate) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        self.kubectl.kubeconfig()
    }

    /// A folder that goes with the cluster, for files that tests need.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the API server writes what it is asked, if it was started to.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.dir.path().join(AUDIT_LOG)
    }

    /// Where the API server listens.
    pub(crate) fn apiserver_address(&self) -> SocketAddr {
        self.apiserver_address
    }

    /// Where etcd listens.
    pub(crate) fn etcd_address(&self) -> SocketAddr {
        self.etcd_address
    }

    /// Has etcd forget all but the present, as the API server does every five minutes.
    pub(crate) fn compact(&self) -> Result<()> {
        // Any answer tells the revision; the empty key (here: a zero byte) is nobody's.
        let answer = self.ask_etcd("range", &json!({"key": "AA=="}))?;
        let revision = answer.pointer("/header/revision").context("a revision")?;
        self.ask_etcd(
            "compaction",
            &json!({"revision": revision, "physical": true}),
        )?;
        Ok(())
    }

    /// A call of etcd's own API, as JSON (etcd.io, gRPC gateway).
    fn ask_etcd(&self, call: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.etcd_address).context("cannot reach etcd")?;
        write!(
            stream,
            "POST /v3/kv/{call} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        if !head.contains(" 200 ") {
            bail!("etcd refuses the {call}: {answer}");
        }
        serde_json::from_str(body).with_context(|| format!("no JSON: {answer}"))
    }

    /// Makes a namespace that no other test uses and gives a kubectl that works in it.
    pub(crate) fn namespace(&self, prefix: &str) -> Result<Kubectl> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.kubectl
            .run(&["create", "namespace", &name], None)?
            .success()?;
        Ok(self.kubectl.in_namespace(&name))
    }

    /// Installs the project's CRDs and waits until their kinds can be written.
    pub(crate) fn install_crds(&self) -> Result<()> {
        self.install_crds_of("crds")
    }

    /// As [`Cluster::install_crds`], those of another folder beside `crds`.
    pub(crate) fn install_crds_of(&self, folder: &str) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/apiserver")
            .join(folder);
        let file = path_flag("--filename", &folder);
        let args = ["apply", "--server-side", "--validate=strict", &file];
        self.kubectl
            .run(&args, None)?
            .success()
            .context("cannot install the CRDs")?;
        let args = [
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            &file,
        ];
        self.kubectl
            .run(&args, None)?
            .success()
            .context("the CRDs do not come up")?;
        Ok(())
    }
}

/// Free ports on loopback. All are held until the last is chosen, so that they differ.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..N).map(|_| bind()).collect::<Result<Vec<_>, _>>();
    let addresses: Vec<SocketAddr> = listeners
        .and_then(|listeners| listeners.iter().map(TcpListener::local_addr).collect())
        .context("cannot find a free port on loopback")?;
    addresses
        .try_into()
        .ok()
        .context("cannot find enough free ports on loopback")
}

fn path_flag(flag: &str, path: &Path) -> String {
    format!("{flag}={}", path.display())
}

/// A command on a leash that writes both its outputs to `log`.
fn logged(program: &Path, dir: &Path, log: &Path) -> Result<Command> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = leash::command(program, Some(dir));
    command
        .stdout(file.try_clone().context("cannot share a log file")?)
        .stderr(file);
    Ok(command)
}

fn listening(server: &mut Leashed, address: SocketAddr) -> Result<()> {
    eventually(format_args!("{address} answers"), SOON, || {
        if let Some(status) = server.ended() {
            return Some(Err(status));
        }
        TcpStream::connect_timeout(&address, Duration::from_secs(1))
            .ok()
            .map(|_| Ok(()))
    })?
    .or_else(|status| bail!("the server ended: {status}"))
}

fn ready(apiserver: &mut Leashed, kubectl: &Kubectl) -> Result<()> {
    let mut last = String::new();
    let result = eventually("the API server is ready", SOON, || {
        if let Some(status) = apiserver.ended() {
            return Some(Err(status));
        }
        // Ready comes before the namespace that most manifests go to.
        let mut accepted = |args: &[&str]| match kubectl.run(args, None) {
            Ok(answer) => {
                last.clone_from(&answer.stderr);
                answer.accepted()
            }
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        };
        (accepted(&["get", "--raw=/readyz"]) && accepted(&["get", "namespace", "default"]))
            .then_some(Ok(()))
    });
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) => bail!("the server ended: {status}"),
        Err(error) => Err(error.context(last)),
    }
}

/// JSON is YAML, and quotes any path rightly.
fn write_kubeconfig(dir: &Path, server: SocketAddr, pki: &Pki) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "gangplank",
        "contexts": [{"name": "gangplank", "context": {"cluster": "gangplank", "user": "admin"}}],
        "clusters": [{"name": "gangplank", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": pki.ca,
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate": pki.admin_cert,
            "client-key": pki.admin_key,
        }}],
    });
    let path = dir.join("kubeconfig");
    std::fs::write(&path, format!("{config:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
