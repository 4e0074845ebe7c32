//! Notices at once when somebody changes the webhook configurations.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, pin_mut};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use tokio::sync::watch;

use super::Side;
use crate::cluster::chain;

/// The version of each configuration that the API server told of last; none where it is not there.
pub type Versions = BTreeMap<Side, Option<String>>;

/// The server ends a watch after this long, and it is taken up again where it was. One that is silent
/// for longer is broken, and kube's watcher says so.
const WATCH_SECONDS: u32 = 45;

/// A list of which nothing comes for this long is broken.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// The pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Follows one configuration for ever, and tells its versions and how the watch fares.
pub async fn follow(
    client: Client,
    side: Side,
    name: String,
    versions: watch::Sender<Versions>,
    fares: impl Fn(Side, Result<(), String>),
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = watch(&client, side, &name, &versions, || {
            pause = FIRST_PAUSE;
            fares(side, Ok(()));
        })
        .await;
        tracing::warn!(
            configuration = side.as_str(),
            "the watch of the webhook configuration failed: {error}"
        );
        fares(side, Err(error));
        tokio::time::sleep(super::super::watch::jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lists and watches until something fails.
async fn watch(
    client: &Client,
    side: Side,
    name: &str,
    versions: &watch::Sender<Versions>,
    mut well: impl FnMut(),
) -> String {
    // By name, so that a role can be limited to it
    // (kubernetes.io/docs/reference/access-authn-authz/rbac, "Referring to resources").
    let config = watcher::Config {
        timeout: Some(WATCH_SECONDS),
        ..watcher::Config::default()
    }
    .fields(&format!("metadata.name={name}"));
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::all_with(client.clone(), &side.resource());
    let events = watcher(api, config);
    pin_mut!(events);
    let tell = |version: Option<String>| {
        versions.send_modify(|versions| {
            versions.insert(side, version);
        });
    };
    // Some while it is listed: the version, once it was seen.
    let mut listed = Some(None);
    loop {
        let next = events.next();
        let event = if listed.is_some() {
            tokio::time::timeout(LIST_LIMIT, next).await.ok().flatten()
        } else {
            next.await
        };
        match event {
            None => return "the API server does not answer".to_owned(),
            Some(Err(error)) => return chain(&error),
            Some(Ok(Event::Init)) => listed = Some(None),
            Some(Ok(Event::InitApply(object))) => listed = Some(object.resource_version()),
            Some(Ok(Event::InitDone)) => {
                tell(listed.take().flatten());
                well();
            }
            Some(Ok(Event::Apply(object))) => tell(object.resource_version()),
            Some(Ok(Event::Delete(_))) => tell(None),
        }
    }
}
