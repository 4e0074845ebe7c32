//! kubectl against a test cluster.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// kubectl, set up for one cluster and kept away from the user's own configuration.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: Option<String>,
    user: Option<String>,
}

/// What one call of kubectl said.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Results.
    pub(crate) stdout: String,
    /// Denials and warnings.
    pub(crate) stderr: String,
}

impl Answer {
    /// Whether the API server took it.
    pub(crate) fn accepted(&self) -> bool {
        self.status.success()
    }

    /// The admission warnings, without kubectl's `Warning: `.
    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter_map(|line| line.strip_prefix("Warning: "))
            .collect()
    }

    /// Standard output of a call that must have worked.
    pub(crate) fn success(self) -> Result<String> {
        if !self.accepted() {
            bail!(
                "kubectl failed ({}): {}",
                self.status,
                self.stderr.trim_end()
            );
        }
        Ok(self.stdout)
    }
}

impl Kubectl {
    /// `home` becomes `HOME`: no plugin, preference or cache of the user's has a say.
    pub(crate) fn new(program: &Path, kubeconfig: &Path, home: &Path) -> Self {
        Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            home: home.to_owned(),
            namespace: None,
            user: None,
        }
    }

    /// The same kubectl as another user, without any group but `system:authenticated`.
    #[must_use]
    pub(crate) fn as_user(&self, user: &str) -> Self {
        Self {
            user: Some(user.to_owned()),
            ..self.clone()
        }
    }

    /// The namespace that it works in.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// The same kubectl, with this namespace where a manifest names none.
    #[must_use]
    pub(crate) fn in_namespace(&self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..self.clone()
        }
    }

    /// The executable.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The kubeconfig it uses.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl. An error means that it could not be run; what the API server said, be it yes
    /// or no, is in the answer.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S], stdin: Option<&str>) -> Result<Answer> {
        let mut command = Command::new(&self.program);
        command
            // Paths of manifests are those of the repository.
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("HOME", &self.home)
            .env("KUBECONFIG", &self.kubeconfig)
            // Discovery on loopback costs nothing, and a kubectl that outlives us by a moment must
            // not make the removed folder anew.
            .env("KUBECACHEDIR", "/dev/null")
            .env_remove("KUBERC")
            .arg("--request-timeout=30s");
        if let Some(namespace) = &self.namespace {
            command.arg("--namespace").arg(namespace);
        }
        if let Some(user) = &self.user {
            command.arg("--as").arg(user);
        }
        command
            .args(args)
            .stdin(if stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;

        let pipe = child.stdin.take();
        let output = thread::scope(|scope| {
            // Beside the reading: neither side may wait for the other with its pipe full.
            let writer = scope.spawn(move || match (pipe, stdin) {
                (Some(mut pipe), Some(text)) => pipe.write_all(text.as_bytes()),
                _ => Ok(()),
            });
            let output = child.wait_with_output();
            match writer.join() {
                // It refused its arguments and left without reading; the answer says so.
                Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => output,
                Ok(Err(error)) => Err(error),
                _ => output,
            }
        })
        .context("cannot talk to kubectl")?;

        Ok(Answer {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `kubectl apply`: client-side, writes the last-applied annotation.
    pub(crate) fn apply(&self, manifest: &str) -> Result<Answer> {
        self.run(&["apply", "--filename=-"], Some(manifest))
    }

    /// `kubectl apply --server-side`.
    pub(crate) fn apply_server_side(&self, manifest: &str) -> Result<Answer> {
        self.run(&["apply", "--server-side", "--filename=-"], Some(manifest))
    }

    /// `kubectl create`: leaves no trace of what was written and what was defaulted.
    pub(crate) fn create(&self, manifest: &str) -> Result<Answer> {
        self.run(&["create", "--filename=-"], Some(manifest))
    }

    /// `kubectl replace`: a PUT.
    pub(crate) fn replace(&self, manifest: &str) -> Result<Answer> {
        self.run(&["replace", "--filename=-"], Some(manifest))
    }

    /// `kubectl patch --type=merge` of `kind/name`.
    pub(crate) fn patch(&self, object: &str, patch: &Value) -> Result<Answer> {
        let patch = format!("--patch={patch}");
        self.run(&["patch", object, "--type=merge", &patch], None)
    }

    /// `kubectl annotate --overwrite` of `kind/name` with `key=value`, or `key-` to remove it.
    pub(crate) fn annotate(&self, object: &str, annotation: &str) -> Result<Answer> {
        self.run(&["annotate", "--overwrite", object, annotation], None)
    }

    /// `kubectl label --overwrite` of `kind/name` with `key=value`, or `key-` to remove it.
    pub(crate) fn label(&self, object: &str, label: &str) -> Result<Answer> {
        self.run(&["label", "--overwrite", object, label], None)
    }

    /// The object `kind/name` as the API server holds it, managed fields included.
    pub(crate) fn get(&self, object: &str) -> Result<Value> {
        let json = self
            .run(
                &["get", object, "--output=json", "--show-managed-fields"],
                None,
            )?
            .success()
            .with_context(|| format!("cannot get {object}"))?;
        serde_json::from_str(&json).with_context(|| format!("kubectl printed no JSON for {object}"))
    }

    /// `kubectl delete` of `kind/name`, without waiting for finalizers.
    pub(crate) fn delete(&self, object: &str) -> Result<Answer> {
        self.run(
            &["delete", object, "--ignore-not-found", "--wait=false"],
            None,
        )
    }
}
