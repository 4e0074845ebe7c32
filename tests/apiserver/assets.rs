//! Where the executables come from.
//!
//! `KUBEBUILDER_ASSETS`, when set, names a folder with kube-apiserver and etcd, as for every other
//! Kubernetes project. Otherwise they are built once from the Go modules beside this file, whose
//! versions and checksums are pinned, and kept in the user's cache folder.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::leash::{self, Leashed};
use super::progress;

const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The first kubectl that we take from the machine.
const KUBECTL_MINIMUM: (u32, u32) = (1, 31);

/// The Go release that the modules ask for.
const GO_MINIMUM: (u32, u32) = (1, 26);

const REPORT_EVERY: Duration = Duration::from_secs(15);

/// A Go module beside this file and what is built from it.
#[derive(Debug)]
struct Module {
    /// Its folder.
    name: &'static str,
    /// The requirement whose version its executables bear.
    path: &'static str,
    /// The variable that the linker sets to that version, `-X` to the linker.
    version: Option<&'static str>,
}

const KUBERNETES: Module = Module {
    name: "kubernetes",
    path: "k8s.io/kubernetes",
    version: Some("k8s.io/component-base/version.gitVersion"),
};
const ETCD: Module = Module {
    name: "etcd",
    path: "go.etcd.io/etcd/server/v3",
    version: None,
};
const HELM: Module = Module {
    name: "helm",
    path: "helm.sh/helm/v4",
    version: Some("helm.sh/helm/v4/internal/version.version"),
};

/// An executable and the package it is built from.
type Tool = (&'static str, &'static str);

const KUBE_APISERVER: Tool = ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver");
const KUBECTL: Tool = ("kubectl", "k8s.io/kubernetes/cmd/kubectl");

/// The executables that a cluster needs.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    /// The API server.
    pub(crate) kube_apiserver: PathBuf,
    /// Its store.
    pub(crate) etcd: PathBuf,
    /// The client.
    pub(crate) kubectl: PathBuf,
}

impl Assets {
    /// Finds the executables; builds what is missing, which takes minutes the first time.
    pub(crate) fn find() -> Result<Self> {
        if let Some(folder) = env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
            return Self::in_folder(Path::new(&folder));
        }
        let etcd = build(&ETCD, &[("etcd", "go.etcd.io/etcd/server/v3")])?;
        let kubernetes = build(&KUBERNETES, &[KUBE_APISERVER, KUBECTL])?;
        Ok(Self {
            kube_apiserver: kubernetes.join("kube-apiserver"),
            etcd: etcd.join("etcd"),
            kubectl: kubernetes.join("kubectl"),
        })
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let required = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "{VARIABLE} is set, but {} is not there: put kube-apiserver and etcd into that \
                 folder, or unset the variable to have them built with Go",
                path.display()
            );
            Ok(path)
        };
        let kubectl = folder.join("kubectl");
        Ok(Self {
            kube_apiserver: required("kube-apiserver")?,
            etcd: required("etcd")?,
            kubectl: if kubectl.is_file() {
                kubectl
            } else if let Some(found) = recent_kubectl() {
                found
            } else {
                build(&KUBERNETES, &[KUBECTL])?.join("kubectl")
            },
        })
    }
}

/// Helm: the one in the folder that [`VARIABLE`] names, or built on demand, for few tests need it.
pub(crate) fn helm() -> Result<PathBuf> {
    let given = env::var_os(VARIABLE)
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(&folder).join("helm"));
    if let Some(helm) = given.filter(|path| path.is_file()) {
        return Ok(helm);
    }
    Ok(build(&HELM, &[("helm", "helm.sh/helm/v4/cmd/helm")])?.join("helm"))
}

/// kube-controller-manager: the one in the folder that [`VARIABLE`] names, or built on demand, for few
/// tests need it.
pub(crate) fn kube_controller_manager() -> Result<PathBuf> {
    const NAME: &str = "kube-controller-manager";
    let given = env::var_os(VARIABLE)
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(&folder).join(NAME));
    if let Some(program) = given.filter(|path| path.is_file()) {
        return Ok(program);
    }
    let package = "k8s.io/kubernetes/cmd/kube-controller-manager";
    Ok(build(&KUBERNETES, &[(NAME, package)])?.join(NAME))
}

/// The machine's own kubectl, if it is not too old to speak to the API server built here.
fn recent_kubectl() -> Option<PathBuf> {
    let program = on_path("kubectl")?;
    let output = Command::new(&program)
        .args(["version", "--client", "--output=json"])
        .output()
        .ok()?;
    let version: Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = version.pointer("/clientVersion/gitVersion")?.as_str()?;
    (release(text.strip_prefix('v')?)? >= KUBECTL_MINIMUM).then_some(program)
}

/// Whether the user's shell would find this program.
pub(crate) fn is_on_path(name: &str) -> bool {
    on_path(name).is_some()
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}

/// The first two numbers of `1.36.3`, `1.26rc1` or `1.31+`.
fn release(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.split_once('.')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some((major.parse().ok()?, rest.get(..end)?.parse().ok()?))
}

/// The folder that holds these tools of `module`, built if they are not all there.
fn build(module: &Module, tools: &[Tool]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/apiserver")
        .join(module.name);
    let root = cache_folder()?.join("gangplank/apiserver");
    let folder = root.join(format!("{}-{}", module.name, fingerprint(&source)?));
    let missing = || {
        tools
            .iter()
            .copied()
            .filter(|(name, _)| !folder.join(name).is_file())
    };
    if missing().next().is_none() {
        return Ok(folder);
    }

    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Held until the end: tests and the example may start at the same time, and the build is long.
    let _lock = lock(&root.join(format!("{}.lock", module.name)), module)?;
    let missing: Vec<Tool> = missing().collect();
    if !missing.is_empty() {
        compile(module, &missing, &source, &folder)?;
    }
    Ok(folder)
}

/// `$XDG_CACHE_HOME`, else `~/.cache`.
fn cache_folder() -> Result<PathBuf> {
    // A relative path there is to be ignored, says the specification.
    let xdg = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    xdg.or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("cannot tell where to keep what is built: set HOME or XDG_CACHE_HOME")
}

/// FNV-1a over the module's pins and the platform. It names a cache entry and guards nothing: Go
/// itself checks the sums.
fn fingerprint(source: &Path) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for name in ["go.mod", "go.sum"] {
        let path = source.join(name);
        add(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    add(env::consts::OS.as_bytes());
    add(env::consts::ARCH.as_bytes());
    Ok(format!("{hash:016x}"))
}

/// Waits until no other process builds this module. The lock goes with the file handle.
fn lock(path: &Path, module: &Module) -> Result<File> {
    let cannot = || format!("cannot lock {}", path.display());
    let file = File::create(path).with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(format_args!(
                "waiting for another process that builds {} ...",
                module.name
            ));
            file.lock().with_context(cannot)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
    }
    Ok(file)
}

fn compile(module: &Module, tools: &[Tool], source: &Path, folder: &Path) -> Result<()> {
    check_go(source)?;
    let version = pinned_version(module, source)?;
    // Beside its destination, so that the last step is a rename, and under the lock, so that what
    // an earlier build left behind is nobody's.
    let staging = folder.with_extension("partial");
    if staging.exists() {
        fs::remove_dir_all(&staging)
            .with_context(|| format!("cannot remove {}", staging.display()))?;
    }
    let work = staging.join("work");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;

    let names: Vec<&str> = tools.iter().map(|(name, _)| *name).collect();
    let names = names.join(" and ");
    progress(format_args!(
        "building {names} {version} with Go, once: minutes the first time. Kept in {}",
        folder.display()
    ));
    let linker = match module.version {
        Some(variable) => format!("-s -w -X {variable}={version}"),
        None => "-s -w".to_owned(),
    };
    let started = Instant::now();
    for (name, package) in tools {
        let mut command = leash::command(Path::new("go"), Some(&staging));
        command
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOTMPDIR", &work)
            .env("GOWORK", "off")
            .env_remove("GOOS")
            .env_remove("GOARCH")
            // -v prints a line for each package, from which progress is told.
            .args([
                "build",
                "-v",
                "-trimpath",
                "-buildvcs=false",
                "-mod=readonly",
            ])
            .args(["-ldflags", &linker, "-o"])
            .arg(staging.join(name))
            .arg(package);
        follow(command, name, started)?;
    }
    for (name, _) in tools {
        fs::rename(staging.join(name), folder.join(name))
            .with_context(|| format!("cannot move {name} to {}", folder.display()))?;
    }
    progress(format_args!(
        "built {names} in {} s",
        started.elapsed().as_secs()
    ));
    fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))
}

/// Runs one `go build` and says from time to time how far it is.
fn follow(mut command: Command, name: &str, started: Instant) -> Result<()> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut go = Leashed::spawn(command)?;
    let output = Arc::new(Mutex::new(Vec::<String>::new()));
    let reader = go.take_stderr().map(|pipe| {
        let output = Arc::clone(&output);
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                output
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        })
    });
    let status = loop {
        if let Ok(status) = go.wait(REPORT_EVERY) {
            break status;
        }
        let output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let downloads = output
            .iter()
            .filter(|line| line.starts_with("go: downloading"))
            .count();
        progress(format_args!(
            "  {} s: {name}, {} packages compiled, {downloads} modules downloaded",
            started.elapsed().as_secs(),
            output.len() - downloads,
        ));
    };
    if let Some(reader) = reader {
        // It ends with the pipe; a panic in it would cost us only the text of an error.
        let _ = reader.join();
    }
    if !status.success() {
        let output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let last = output
            .get(output.len().saturating_sub(20)..)
            .unwrap_or_default();
        bail!("go could not build {name} ({status}):\n{}", last.join("\n"));
    }
    Ok(())
}

/// A Go that can build the modules: recent enough, or able to get one that is.
fn check_go(source: &Path) -> Result<()> {
    let (major, minor) = GO_MINIMUM;
    let advice = format!(
        "the API server for the tests is built with Go {major}.{minor} or later: install that, or \
         set {VARIABLE} to a folder that holds kube-apiserver, etcd and kubectl"
    );
    // In the module's folder `go` may switch to the toolchain that the module asks for.
    let output = Command::new("go")
        .args(["env", "GOVERSION"])
        .current_dir(source)
        .output();
    let output = output.with_context(|| format!("cannot run `go`; {advice}"))?;
    let version = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{}; {advice}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let recent = version.trim().strip_prefix("go").and_then(release);
    if recent.is_none_or(|release| release < GO_MINIMUM) {
        bail!("`go` is {}; {advice}", version.trim());
    }
    Ok(())
}

/// The version in the module's `require` line.
fn pinned_version(module: &Module, source: &Path) -> Result<String> {
    let path = source.join("go.mod");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(|line| line.trim_start().strip_prefix("require ").unwrap_or(line))
        .filter_map(|line| {
            line.trim_start()
                .strip_prefix(module.path)?
                .split_whitespace()
                .next()
        })
        .find(|word| word.starts_with('v'))
        .map(str::to_owned)
        .with_context(|| format!("{} does not require {}", path.display(), module.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_releases_as_go_and_kubernetes_write_them() {
        assert_eq!(release("1.36.3"), Some((1, 36)));
        assert_eq!(release("1.26rc1"), Some((1, 26)));
        assert_eq!(release("1.31+"), Some((1, 31)));
        assert_eq!(release("devel"), None);
        assert_eq!(release("1."), None);
    }

    #[test]
    fn every_module_pins_what_is_built_from_it() -> Result<()> {
        for module in [&KUBERNETES, &ETCD, &HELM] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apiserver");
            let version = pinned_version(module, &source.join(module.name))?;
            assert!(release(&version[1..]).is_some(), "{version}");
        }
        Ok(())
    }
}
