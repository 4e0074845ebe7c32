//! What is asked of the API server.

use std::path::PathBuf;

use k8s_openapi::{api::rbac::v1::ClusterRole, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
};

pub mod access;
pub mod authority;
pub mod exemptions;
pub mod lease;
pub mod list;
pub mod registration;
pub mod reports;
pub mod watch;

pub use registration::{Registered, register, registered, unregister};

/// Why the API server was not reached, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No usable configuration.
    #[error("no access to a cluster: {0}")]
    Config(String),
    /// What the configurations are to belong to is not there.
    #[error(
        "there is no ClusterRole {0:?} for the webhook configurations to belong to, or it is being \
         deleted; without it nothing would remove them when Gangplank is uninstalled"
    )]
    Owner(String),
    /// The cluster has no such API.
    #[error("the cluster serves no {0}")]
    Unserved(String),
    /// Somebody else wrote it meanwhile.
    #[error("somebody else wrote the {0} in between")]
    Overtaken(String),
    /// The webhook configurations belong to another install.
    #[error(
        "the webhook configurations {name:?} belong to another install, {theirs:?}, and this is \
         {ours:?}: give one of the two another --registration-name; or, to take them over (as after \
         a change of --url or --service), stop the other and run `gangplank serve --unregister \
         --registration-name={name}`"
    )]
    Another {
        /// What they are called.
        name: String,
        /// The instance that asks.
        ours: String,
        /// The instance that has them.
        theirs: String,
    },
    /// A request failed.
    #[error("the API server refused to {what}: {error}")]
    Request {
        /// What was asked.
        what: String,
        /// Why not.
        error: Box<kube::Error>,
    },
}

impl ClusterError {
    /// Whether somebody else wrote in between: look again.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Overtaken(_) => true,
            Self::Request { error, .. } => {
                matches!(&**error, kube::Error::Api(status) if status.code == 409)
            }
            _ => false,
        }
    }

    /// Whether the API server knows who asks, and does not let them.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Request { error, .. }
            if matches!(&**error, kube::Error::Api(status) if status.code == 403))
    }
}

/// Which cluster, and as whom.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig file; without it $KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig file
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterArgs {
    /// A client for that cluster.
    ///
    /// # Errors
    /// Where no configuration is found or it is unusable.
    pub async fn client(&self) -> Result<Client, ClusterError> {
        let wrong = |error: &dyn std::error::Error| ClusterError::Config(chain(error));
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..Default::default()
        };
        let config = if let Some(path) = &self.kubeconfig {
            let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| wrong(&error))?
        } else if self.context.is_some() {
            Config::from_kubeconfig(&options)
                .await
                .map_err(|error| wrong(&error))?
        } else {
            Config::infer().await.map_err(|error| wrong(&error))?
        };
        Client::try_from(config).map_err(|error| wrong(&error))
    }
}

/// An error with its causes: kube's own message often is only the outermost.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// The ClusterRole of that name as the owner of what is written: the garbage collector removes it when
/// the ClusterRole goes, though no pod of ours may be left to do it.
///
/// # Errors
/// Where it is not there any more, or the API server is not reached or refuses.
pub async fn owner(client: &Client, name: &str) -> Result<OwnerReference, ClusterError> {
    let found = Api::<ClusterRole>::all(client.clone())
        .get_metadata_opt(name)
        .await
        .map_err(|error| ClusterError::Request {
            what: format!("get the ClusterRole {name:?}"),
            error: Box::new(error),
        })?;
    let meta = found
        .map(|role| role.metadata)
        .filter(|meta| meta.deletion_timestamp.is_none());
    let Some(uid) = meta.and_then(|meta| meta.uid) else {
        return Err(ClusterError::Owner(name.to_owned()));
    };
    Ok(OwnerReference {
        api_version: ClusterRole::api_version(&()).into_owned(),
        kind: ClusterRole::kind(&()).into_owned(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    })
}
