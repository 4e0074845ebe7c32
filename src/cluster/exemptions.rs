//! What metrics tell of exemptions: how many there are, and when the next one ends.

use std::{sync::Arc, time::Duration};

use kube::{Client, api::PartialObjectMeta, core::DynamicObject};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::list::{Scope, metadata};
use crate::{
    exempt::{Annotation, PREFIX, annotations, is_copy},
    report::exemptions::Entry,
    rules::{Kind, kinds},
    subject::Subject,
    webhook::Desk,
};

/// How often the cluster's objects are looked through for exemptions: these end by the day.
const LIST_PERIOD: Duration = Duration::from_secs(3600);

/// How soon a list that failed is asked for again.
const LIST_RETRY: Duration = Duration::from_secs(300);

/// How often what is known is held against the clock.
const CLOCK_PERIOD: Duration = Duration::from_secs(60);

/// An annotation somewhere in the cluster: what stands behind the prefix, and its text.
type Known = (String, Value);

/// Counts exemptions until the server stops: those of the policy, and with a client those on the
/// cluster's objects.
pub async fn follow(client: Option<Client>, desk: Arc<Desk>, mut stopped: watch::Receiver<bool>) {
    let mut adopted = desk.adopted.subscribe();
    let mut known = Vec::new();
    let mut due = Instant::now();
    loop {
        if let Some(client) = client.as_ref().filter(|_| due <= Instant::now()) {
            let listed = tokio::select! {
                listed = list(client) => listed,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let pause = match listed {
                Ok(all) => {
                    known = all;
                    LIST_PERIOD
                }
                // What was known before is still counted.
                Err(error) => {
                    tracing::warn!("cannot count the exemptions of the cluster: {error}");
                    LIST_RETRY
                }
            };
            due = Instant::now() + pause;
        }
        count(&desk, &known);
        tokio::select! {
            () = tokio::time::sleep(CLOCK_PERIOD) => {}
            Ok(()) = adopted.changed() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

fn count(desk: &Desk, known: &[Known]) {
    let (policy, now) = (desk.policy.load(), (desk.clock)());
    let exemptions = policy.exemptions();
    let of_policy = exemptions.namespaces().iter().flat_map(|exempted| {
        let rules = exempted.rules.iter();
        rules.map(move |rule| Entry::of_namespaces(exempted, rule, now))
    });
    let of_objects = known.iter().map(|(rule, value)| {
        let annotation = Annotation { rule, value };
        Entry::of_annotation(&annotation, false, now, exemptions.max_days)
    });
    desk.metrics.exemptions(of_policy.chain(of_objects));
}

async fn list(client: &Client) -> Result<Vec<Known>, super::ClusterError> {
    let mut all = Vec::new();
    for kind in kinds::ALL {
        let resource = kind.api_resource();
        let keep = |object| of_object(kind, &object);
        let found = metadata(client, &resource, &Scope::default(), keep).await?;
        all.extend(found.into_iter().flatten().flatten());
    }
    Ok(all)
}

/// The exemptions of an object, but not of one that a controller made from what carries them itself.
fn of_object(kind: &Kind, object: &PartialObjectMeta<DynamicObject>) -> Option<Vec<Known>> {
    let mut keys = object.metadata.annotations.as_ref()?.keys();
    keys.find(|key| key.starts_with(PREFIX))?;
    let resource = kind.api_resource();
    let value = json!({
        "apiVersion": resource.api_version, "kind": kind.kind, "metadata": object.metadata,
    });
    let subject = Subject::from_manifest(Arc::new(value))?;
    if is_copy(&subject) {
        return None;
    }
    let found = annotations(&subject.value)
        .map(|annotation| (annotation.rule.to_owned(), annotation.value.clone()));
    Some(found.collect())
}
