//! Keeps the webhook configurations as they should be.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use tokio::sync::watch;

use super::{certificate::Trust, until_stopped, wait};
use crate::{
    admin::Health,
    cluster::{self, ClusterArgs, ClusterError},
    webhook::{Desk, registration::Registration},
};

/// The first pause after a failed registration; it doubles up to the period.
const BACKOFF: Duration = Duration::from_millis(500);

/// How long the API server may take to answer a registration.
const LIMIT: Duration = Duration::from_secs(15);

/// Removes the webhook configurations.
pub(super) async fn unregister(cluster: &ClusterArgs, name: &str) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let removed = tokio::time::timeout(LIMIT, cluster::unregister(&client, name))
        .await
        .map_err(|_| anyhow!("the API server did not answer within {LIMIT:?}"))?;
    if removed? {
        tracing::info!("removed the webhook configurations {name:?}");
    } else {
        tracing::info!("there are no webhook configurations {name:?}");
    }
    Ok(())
}

/// What the webhook configurations are made of, besides the policy.
pub(super) struct Standing {
    pub(super) registration: Registration,
    /// The ClusterRole that they belong to.
    pub(super) owner: Option<String>,
    /// What the API server has to trust.
    pub(super) trust: Trust,
}

/// Writes the webhook configurations, and again from time to time: what somebody changed by hand,
/// or removed, comes back. Failing does not make us less ready.
pub(super) async fn follow(
    client: kube::Client,
    mut standing: Standing,
    desk: Arc<Desk>,
    health: Arc<Health>,
    period: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let mut backoff = BACKOFF;
    let (mut announced, mut ready) = (false, false);
    let mut adopted = desk.adopted.subscribe();
    loop {
        adopted.mark_unchanged();
        standing.trust.mark_unchanged();
        let write = write(&client, &standing, &desk);
        let write = tokio::time::timeout(LIMIT, write);
        let result = tokio::select! {
            written = write => match written {
                Ok(result) => result,
                Err(_) => Err(format!(
                    "the API server did not answer within {} s",
                    LIMIT.as_secs()
                )),
            },
            () = until_stopped(stopped.clone()) => return,
        };
        desk.metrics.registered(result.is_ok());
        let pause = match &result {
            Ok(()) => {
                if !announced {
                    tracing::info!(
                        name = standing.registration.name,
                        "wrote the webhook configurations"
                    );
                    announced = true;
                }
                if !ready && health.has_certificate() {
                    tracing::info!("ready");
                    ready = true;
                }
                backoff = BACKOFF;
                period
            }
            Err(error) => {
                tracing::error!("{error}; trying again in {backoff:?}");
                let pause = backoff;
                backoff = (backoff * 2).min(period);
                pause
            }
        };
        health.registration(result);
        // What another policy or authority makes stale is written at once.
        tokio::select! {
            ended = wait(&mut stopped, pause) => if ended { return; },
            _ = adopted.changed() => {}
            () = standing.trust.changed() => {}
        }
    }
}

/// Writes the webhook configurations once. Whatever somebody else wrote in between is looked at again.
async fn write(client: &kube::Client, standing: &Standing, desk: &Desk) -> Result<(), String> {
    let failed = |error: ClusterError| cluster::chain(&error);
    loop {
        let owner = match &standing.owner {
            Some(name) => Some(cluster::owner(client, name).await.map_err(failed)?),
            None => None,
        };
        let seen = cluster::registered(client, &standing.registration.name)
            .await
            .map_err(failed)?;
        let registration = Registration {
            ca_bundle: standing.trust.bundle(&seen).await?,
            owner,
            ..standing.registration.clone()
        };
        let wanted = registration.configurations(&desk.policy.load());
        match cluster::register(client, wanted, &seen).await {
            Err(error) if error.is_conflict() => {}
            result => return result.map_err(failed),
        }
    }
}
