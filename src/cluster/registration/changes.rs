//! Notices at once when somebody changes the webhook configurations.

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
};
use tokio::{sync::watch, time::timeout};

use super::Side;
use crate::cluster::chain;

/// The version of each configuration that the API server told of last; none where it is not there.
pub type Versions = BTreeMap<Side, Option<String>>;

/// How long a watch may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The server ends a watch after this many seconds, and it is taken up again where it was.
    watch_seconds: u32,
    /// A watch that is silent for this long, its end included, is broken.
    silence: Duration,
    /// A list or a watch that does not begin within this time is broken.
    start: Duration,
    /// A watch that ends sooner is not what the server was asked for.
    shortest: Duration,
}

const LIMITS: Limits = Limits {
    watch_seconds: 45,
    silence: Duration::from_secs(50),
    start: Duration::from_secs(30),
    shortest: Duration::from_secs(1),
};

/// The pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What went well for this long has recovered, and the pauses begin anew.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// Follows one configuration for ever, and tells its versions and how the watch fares.
pub async fn follow(
    client: Client,
    side: Side,
    name: String,
    versions: watch::Sender<Versions>,
    fares: impl Fn(Side, Result<(), String>),
) {
    let api = side.api(&client);
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let tell = |version: Option<String>| {
            versions.send_modify(|versions| {
                versions.insert(side, version);
            });
        };
        let error = watch(&api, &name, LIMITS, tell, || fares(side, Ok(()))).await;
        tracing::warn!(
            configuration = side.as_str(),
            "the watch of the webhook configuration failed: {error}"
        );
        fares(side, Err(error));
        pause = pause_after(pause, began.elapsed());
        tokio::time::sleep(super::super::watch::jittered(pause)).await;
    }
}

/// The pause after a watch that failed after this long. It doubles, also where lists work and watches fail.
fn pause_after(last: Duration, lived: Duration) -> Duration {
    if lived >= RECOVERED_AFTER {
        FIRST_PAUSE
    } else {
        (last * 2).min(LONGEST_PAUSE)
    }
}

/// Lists and watches until something fails. Tells the version of the configuration, and when it is
/// watched.
async fn watch(
    api: &Api<DynamicObject>,
    name: &str,
    limits: Limits,
    tell: impl Fn(Option<String>),
    watched: impl Fn(),
) -> String {
    // By name, so that a role can be limited to it
    // (kubernetes.io/docs/reference/access-authn-authz/rbac, "Referring to resources").
    let selected = format!("metadata.name={name}");
    let params = ListParams::default().fields(&selected);
    let list = match timeout(limits.start, api.list_metadata(&params)).await {
        Ok(Ok(list)) => list,
        Ok(Err(error)) => return chain(&error),
        Err(_) => return "the API server does not answer".to_owned(),
    };
    let mut at = list.metadata.resource_version.unwrap_or_default();
    let object = list.items.first();
    tell(object.and_then(ResourceExt::resource_version));
    let params = WatchParams::default()
        .fields(&selected)
        .timeout(limits.watch_seconds);
    loop {
        let began = Instant::now();
        let events = match timeout(limits.start, api.watch_metadata(&params, &at)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return chain(&error),
            Err(_) => return "the API server does not answer".to_owned(),
        };
        watched();
        let mut events = pin!(events);
        loop {
            match timeout(limits.silence, events.next()).await {
                Err(_) => return "the API server sends nothing, and does not end it".to_owned(),
                Ok(None) if began.elapsed() < limits.shortest => {
                    return "the API server ended it at once".to_owned();
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => return chain(&error),
                Ok(Some(Ok(WatchEvent::Error(status)))) => return status.message,
                Ok(Some(Ok(WatchEvent::Bookmark(mark)))) => at = mark.metadata.resource_version,
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    at = object.resource_version().unwrap_or_default();
                    tell(object.resource_version());
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    at = object.resource_version().unwrap_or_default();
                    tell(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU32, Ordering},
    };

    use axum::body::Body;
    use futures_util::stream;
    use serde_json::{Value, json};

    use super::*;

    /// What a server sends to a watch, and whether it ends it.
    type Sent = (Vec<Value>, bool);

    /// An API server that lists one configuration. It sends this to each watch, one after the other; the
    /// later ones do not begin.
    fn server(watches: Vec<Sent>) -> Api<DynamicObject> {
        let next = std::sync::Arc::new(std::sync::Mutex::new(watches.into_iter()));
        let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
            let next = next.clone();
            async move {
                let query = request.uri().query().unwrap_or_default();
                if !query.contains("watch=true") {
                    let list = json!({
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                        "metadata": {"resourceVersion": "7"}, "items": [object("5")],
                    });
                    let body = Body::from(list.to_string());
                    return Ok::<_, Infallible>(axum::http::Response::new(body));
                }
                let sent = next.lock().unwrap().next();
                let Some((events, ends)) = sent else {
                    return std::future::pending().await;
                };
                let lines = events.into_iter().map(|event| format!("{event}\n"));
                let lines = stream::iter(lines.map(Ok::<_, Infallible>));
                let body = if ends {
                    Body::from_stream(lines)
                } else {
                    Body::from_stream(lines.chain(stream::pending()))
                };
                Ok(axum::http::Response::new(body))
            }
        });
        Side::Validating.api(&Client::new(service, "default"))
    }

    fn object(version: &str) -> Value {
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "gangplank", "resourceVersion": version},
        })
    }

    /// Why a watch failed, the versions that it told, and how often it was taken up.
    async fn watched(watches: Vec<Sent>, limits: Limits) -> (String, Vec<Option<String>>, u32) {
        let told = std::sync::Mutex::new(Vec::new());
        let times = AtomicU32::new(0);
        let api = server(watches);
        let tell = |version| told.lock().unwrap().push(version);
        let count = || {
            times.fetch_add(1, Ordering::Relaxed);
        };
        let watch = watch(&api, "gangplank", limits, tell, count);
        let error = timeout(Duration::from_secs(60), watch).await.unwrap();
        (error, told.into_inner().unwrap(), times.into_inner())
    }

    const SHORT: Limits = Limits {
        watch_seconds: 1,
        silence: Duration::from_millis(200),
        start: Duration::from_millis(200),
        shortest: Duration::ZERO,
    };

    #[tokio::test]
    async fn a_silent_watch_is_noticed() {
        let modified = json!({"type": "MODIFIED", "object": object("8")});
        let deleted = json!({"type": "DELETED", "object": object("9")});
        let some = |version: &str| Some(version.to_owned());
        // It does not end.
        let told = watched(vec![(vec![modified.clone()], false)], SHORT).await;
        assert!(told.0.contains("sends nothing"), "{told:?}");
        assert_eq!((told.1, told.2), (vec![some("5"), some("8")], 1));
        // It ends and is taken up again; the next does not begin.
        let told = watched(vec![(vec![modified], true), (vec![deleted], true)], SHORT).await;
        assert!(told.0.contains("does not answer"), "{told:?}");
        assert_eq!((told.1, told.2), (vec![some("5"), some("8"), None], 2));
    }

    #[tokio::test]
    async fn a_watch_that_ends_at_once_has_failed() {
        let (error, _, times) = watched(vec![(vec![], true), (vec![], true)], LIMITS).await;
        assert_eq!((&*error, times), ("the API server ended it at once", 1));
        let expired = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old",
            "reason": "Expired", "code": 410,
        }});
        let (error, ..) = watched(vec![(vec![expired], true)], LIMITS).await;
        assert_eq!(error, "too old");
    }

    #[test]
    fn pauses_grow_until_a_watch_lives() {
        let mut pause = FIRST_PAUSE;
        for _ in 0..10 {
            pause = pause_after(pause, Duration::from_secs(1));
        }
        assert_eq!(pause, LONGEST_PAUSE);
        assert_eq!(pause_after(pause, RECOVERED_AFTER), FIRST_PAUSE);
        // The server ends a watch before the client takes it for broken, and after it has recovered.
        let ends = Duration::from_secs(u64::from(LIMITS.watch_seconds));
        assert!(RECOVERED_AFTER < ends && ends < LIMITS.silence);
    }
}
