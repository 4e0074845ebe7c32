//! Helm against a test cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Answer, Cluster, assets};

/// Helm, set up for one cluster and kept away from the user's own configuration.
#[derive(Debug)]
pub(crate) struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Helm {
    /// Finds Helm, or builds it, which takes minutes the first time.
    pub(crate) fn of(cluster: &Cluster) -> Result<Self> {
        let home = cluster.dir().join("helm");
        std::fs::create_dir_all(&home).context("cannot make a home for helm")?;
        Ok(Self {
            program: assets::helm()?,
            kubeconfig: cluster.kubeconfig().to_owned(),
            home,
        })
    }

    /// Runs helm. An error means that it could not be run; what it said is in the answer.
    pub(crate) fn run(&self, args: &[&str]) -> Result<Answer> {
        let output = Command::new(&self.program)
            .args(args)
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", self.home.join("cache"))
            .env("HELM_CONFIG_HOME", self.home.join("config"))
            .env("HELM_DATA_HOME", self.home.join("data"))
            .env("HELM_NAMESPACE", "default")
            .env_remove("HELM_DRIVER")
            .env_remove("HELM_KUBECONTEXT")
            .env_remove("HELM_KUBEAPISERVER")
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Answer {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Writes a chart of one template into a folder of its own.
    pub(crate) fn chart(&self, name: &str, template: &str) -> Result<PathBuf> {
        let folder = self.home.join("charts").join(name);
        let templates = folder.join("templates");
        std::fs::create_dir_all(&templates).context("cannot make a chart")?;
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(
            &folder.join("Chart.yaml"),
            &format!("apiVersion: v2\nname: {name}\nversion: 0.1.0\n"),
        )?;
        write(&templates.join("manifest.yaml"), template)?;
        Ok(folder)
    }
}
