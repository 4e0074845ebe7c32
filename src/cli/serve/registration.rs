//! Keeps the webhook configurations as they should be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use jiff::Timestamp;
use tokio::{sync::watch, task::JoinSet};

use super::{certificate::Trust, until_stopped, wait};
use crate::{
    admin::Health,
    cluster::{
        self, ClusterArgs, ClusterError,
        registration::{self, Cause, Side, State, Upkeep, Versions},
    },
    webhook::{Desk, registration::Registration},
};

/// The first pause after a failed registration; it doubles up to the period.
const BACKOFF: Duration = Duration::from_millis(500);

/// How long the API server may take to answer a registration.
const LIMIT: Duration = Duration::from_secs(15);

/// The pause before the configurations are looked at because they changed: however often they do, the
/// looks are no more.
const CALM: Duration = Duration::from_millis(100);

/// How often the configurations are written where somebody else wrote them in between.
const ATTEMPTS: u32 = 5;

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

/// Writes the webhook configurations, and again whenever somebody changed or removed them, and from time
/// to time. Failing does not make us less ready.
pub(super) async fn follow(
    client: kube::Client,
    mut standing: Standing,
    desk: Arc<Desk>,
    health: Arc<Health>,
    period: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let instance = registration::instance(&standing.registration.reach);
    let mut upkeep = Upkeep::new(&client, Arc::clone(&desk.metrics), Some(instance));
    // They end with this set.
    let mut watches = JoinSet::new();
    let (versions, mut changes) = watch::channel(Versions::new());
    for side in Side::ALL {
        let name = standing.registration.name.clone();
        let (health, metrics) = (Arc::clone(&health), Arc::clone(&desk.metrics));
        let fares = move |side: Side, result: Result<(), String>| {
            metrics.registration_watched(side.as_str(), result.is_ok());
            health.registration_watch(side.as_str(), result);
        };
        let versions = versions.clone();
        watches.spawn(registration::follow(
            client.clone(),
            side,
            name,
            versions,
            fares,
        ));
    }

    let mut backoff = BACKOFF;
    let (mut announced, mut ready) = (false, false);
    let mut complaint = None;
    let mut adopted = desk.adopted.subscribe();
    let mut cause = Cause::Own;
    loop {
        adopted.mark_unchanged();
        standing.trust.mark_unchanged();
        let write = write(&client, &mut upkeep, &standing, &desk, cause);
        let write = tokio::time::timeout(LIMIT, write);
        let result = tokio::select! {
            written = write => match written {
                Ok(result) => result,
                Err(_) => Err(Failure::Other(format!(
                    "the API server did not answer within {} s",
                    LIMIT.as_secs()
                ))),
            },
            () = until_stopped(stopped.clone()) => return,
        };
        let as_wanted = result.as_ref().is_ok_and(|state| state.left.is_empty());
        desk.metrics.registered(as_wanted);
        health.registration(match &result {
            Ok(_) if as_wanted => Ok(()),
            Ok(_) => Err("not as they should be".to_owned()),
            Err(failure) => Err(failure.text().to_owned()),
        });
        health.registration_drift(upkeep.describe());
        // What is written matters more than who hears of it.
        tokio::select! {
            () = upkeep.publish() => {}
            () = until_stopped(stopped.clone()) => return,
        }
        let pause = match &result {
            Ok(state) => {
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
                complaint = None;
                let again = state
                    .again()
                    .map(|again| again.duration_since(Timestamp::now()));
                let again = again.map(|left| Duration::try_from(left).unwrap_or_default() + CALM);
                again.map_or(period, |again| again.min(period))
            }
            Err(failure) => {
                // That somebody else has them may stay so for long.
                if !matches!(failure, Failure::Another(_))
                    || complaint.as_deref() != Some(failure.text())
                {
                    tracing::error!("{}; trying again in {backoff:?}", failure.text());
                }
                complaint = Some(failure.text().to_owned());
                let pause = backoff;
                backoff = (backoff * 2).min(period);
                pause
            }
        };
        let due = Instant::now() + pause;
        // What another policy or authority makes stale is written at once.
        cause = loop {
            let left = due.saturating_duration_since(Instant::now());
            tokio::select! {
                ended = wait(&mut stopped, left) => {
                    if ended {
                        return;
                    }
                    break Cause::Own;
                }
                _ = adopted.changed() => break Cause::Own,
                () = standing.trust.changed() => break Cause::Own,
                // We hold a sender.
                _ = changes.changed() => {
                    if upkeep.knows(&changes.borrow_and_update()) {
                        continue;
                    }
                    if wait(&mut stopped, CALM).await {
                        return;
                    }
                    // What could not be written is still to be.
                    break if result.is_ok() { Cause::Changed } else { Cause::Own };
                }
            }
        };
    }
}

/// Why the configurations were not written.
enum Failure {
    /// They are another install's.
    Another(String),
    /// Somebody else wrote them in between.
    Overtaken(String),
    /// Anything else.
    Other(String),
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Self::Another(text) | Self::Overtaken(text) | Self::Other(text) => text,
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        let text = cluster::chain(&error);
        match error {
            ClusterError::Another { .. } => Self::Another(text),
            _ if error.is_conflict() => Self::Overtaken(text),
            _ => Self::Other(text),
        }
    }
}

/// Writes the webhook configurations. Whatever somebody else wrote in between is looked at again.
async fn write(
    client: &kube::Client,
    upkeep: &mut Upkeep,
    standing: &Standing,
    desk: &Desk,
    cause: Cause,
) -> Result<State, Failure> {
    let mut pauses = pauses();
    loop {
        let result = write_once(client, upkeep, standing, desk, cause).await;
        match (result, pauses.next()) {
            (Err(Failure::Overtaken(_)), Some(pause)) => tokio::time::sleep(pause).await,
            (result, _) => return result,
        }
    }
}

/// The pauses after conflicts. They double, and then the conflict is a failure.
fn pauses() -> impl Iterator<Item = Duration> {
    (1..ATTEMPTS).map(|attempt| CALM * 2_u32.pow(attempt - 1))
}

async fn write_once(
    client: &kube::Client,
    upkeep: &mut Upkeep,
    standing: &Standing,
    desk: &Desk,
    cause: Cause,
) -> Result<State, Failure> {
    let owner = match &standing.owner {
        Some(name) => Some(cluster::owner(client, name).await?),
        None => None,
    };
    let seen = cluster::registered(client, &standing.registration.name).await?;
    let bundle = standing.trust.bundle(&seen).await;
    let registration = Registration {
        ca_bundle: bundle.map_err(Failure::Other)?,
        owner,
        ..standing.registration.clone()
    };
    let policy = desk.policy.load_full();
    let wanted = registration.configurations(&policy);
    let tolerated = policy.tolerated();
    Ok(upkeep.write(&wanted, &seen, tolerated, cause).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_tried_again_a_few_times_with_pauses() {
        let pauses: Vec<u128> = pauses().map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800]);
        let conflict = ClusterError::Overtaken("configuration".to_owned());
        assert!(matches!(Failure::from(conflict), Failure::Overtaken(_)));
        // Most of the time that the API server has is left for its answers.
        assert!(pauses.iter().sum::<u128>() < LIMIT.as_millis() / 5);
    }
}
