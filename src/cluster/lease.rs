//! One of several replicas does what only one should: the holder of a Lease
//! (coordination.k8s.io/v1), by the rules of client-go's leader election
//! (k8s.io/client-go tools/leaderelection).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};

use super::chain;

/// A holder that has not renewed for this long has lost the Lease, by everybody's own clock.
const DURATION: Duration = Duration::from_secs(15);

/// How often a holder renews, and the others look.
const RENEWAL: Duration = Duration::from_secs(3);

/// A holder that could not renew for this long stops by itself, before another takes over.
const DEADLINE: Duration = Duration::from_secs(10);

/// A Lease to contend for.
#[derive(Clone, Debug)]
pub struct Contest {
    /// Where the Lease is.
    pub namespace: String,
    /// What it is called.
    pub name: String,
    /// Who contends; no two at the same time may be called alike.
    pub identity: String,
}

/// What was seen of the Lease last, and since when it has not changed.
#[derive(Debug)]
struct Observed {
    version: Option<String>,
    since: Instant,
}

/// Contends until the server stops, and tells whether this replica holds the Lease. It is let go at the
/// end, so that another need not wait.
pub async fn contend(
    client: Client,
    contest: Contest,
    leading: watch::Sender<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    let api: Api<Lease> = Api::namespaced(client, &contest.namespace);
    let mut observed = Observed {
        version: None,
        since: Instant::now(),
    };
    let mut renewed = Instant::now();
    let mut complaint = None;
    loop {
        let attempt = tokio::time::timeout(RENEWAL, attempt(&api, &contest, &mut observed));
        let result = tokio::select! {
            result = attempt => result.unwrap_or_else(|_| Err("no answer in time".to_owned())),
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        match result {
            Ok(holds) => {
                complaint = None;
                if holds {
                    renewed = Instant::now();
                }
                announce(&leading, holds);
            }
            Err(error) => {
                if complaint.as_ref() != Some(&error) {
                    tracing::warn!(
                        lease = contest.name,
                        "cannot contend for the lease: {error}"
                    );
                    complaint = Some(error);
                }
                if renewed.elapsed() > DEADLINE {
                    announce(&leading, false);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEWAL) => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    if *leading.borrow() {
        announce(&leading, false);
        // It would run out by itself; a failure costs the others only the wait.
        let _ = tokio::time::timeout(RENEWAL, release(&api, &contest)).await;
    }
}

fn announce(leading: &watch::Sender<bool>, holds: bool) {
    let changed = leading.send_if_modified(|leading| std::mem::replace(leading, holds) != holds);
    if changed {
        let what = if holds { "leading" } else { "not leading" };
        tracing::info!("{what} the continuous audit");
    }
}

/// Whether the Lease is ours after this attempt.
async fn attempt(
    api: &Api<Lease>,
    contest: &Contest,
    observed: &mut Observed,
) -> Result<bool, String> {
    let failed = |error: kube::Error| chain(&error);
    let now = MicroTime(Timestamp::now());
    let Some(mut lease) = api.get_opt(&contest.name).await.map_err(failed)? else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(contest.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(ours(contest, now, 0)),
        };
        return match api.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(failed(error)),
        };
    };
    if lease.metadata.resource_version != observed.version {
        *observed = Observed {
            version: lease.metadata.resource_version.clone(),
            since: Instant::now(),
        };
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.clone().unwrap_or_default();
    let is_ours = holder == contest.identity;
    // By how long we have seen it unchanged: the clocks of two machines differ.
    if !is_ours && !holder.is_empty() && observed.since.elapsed() < DURATION {
        return Ok(false);
    }
    let transitions = spec.lease_transitions.unwrap_or(0);
    lease.spec = Some(if is_ours {
        LeaseSpec {
            renew_time: Some(now),
            ..spec
        }
    } else {
        ours(contest, now, transitions.saturating_add(1))
    });
    match api
        .replace(&contest.name, &PostParams::default(), &lease)
        .await
    {
        Ok(lease) => {
            observed.version = lease.metadata.resource_version;
            observed.since = Instant::now();
            Ok(true)
        }
        // Somebody was faster.
        Err(error) if is_conflict(&error) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

async fn release(api: &Api<Lease>, contest: &Contest) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(&contest.name).await? else {
        return Ok(());
    };
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(&contest.identity)
    {
        spec.holder_identity = Some(String::new());
        api.replace(&contest.name, &PostParams::default(), &lease)
            .await?;
    }
    Ok(())
}

fn ours(contest: &Contest, now: MicroTime, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(contest.identity.clone()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
