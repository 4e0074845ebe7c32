//! The objects of a cluster, page by page.

use std::fmt::Debug;

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, ObjectList, PartialObjectMeta},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ClusterError;
use crate::rules::Kind;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// How often a list goes on, or is begun anew, when the API server has forgotten where it was (410,
/// after five minutes: kubernetes/kubernetes, etcd's compaction).
const ATTEMPTS: usize = 3;

/// How a kind is asked for.
pub fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

impl Kind {
    /// How its objects are asked for, in the first of its versions.
    pub fn api_resource(&self) -> ApiResource {
        let version = self.versions.first().copied().unwrap_or_default();
        resource(self.group, version, self.kind, self.resource)
    }

    /// How its objects are asked for, in each of its versions.
    pub fn api_resources(&self) -> impl Iterator<Item = ApiResource> {
        let versions = self.versions.iter();
        versions.map(|version| resource(self.group, version, self.kind, self.resource))
    }
}

/// Which of the objects of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Those of a namespace; without it, of all.
    pub namespace: Option<String>,
    /// Those with these labels, as kubectl writes a selector.
    pub selector: Option<String>,
}

/// Takes the objects of a list.
pub trait Sink<K>: Send {
    /// A page of them, and how many the server says are still to come.
    fn take(&mut self, items: Vec<K>, remaining: Option<u64>) -> impl Future<Output = ()> + Send;
    /// The list begins anew: what was taken comes again.
    fn begin_again(&mut self);
}

/// Every object of a kind as it stands. False where the cluster does not serve the kind.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn values(
    client: &Client,
    resource: &ApiResource,
    scope: &Scope,
    sink: &mut impl Sink<Value>,
) -> Result<bool, ClusterError> {
    let path = match &scope.namespace {
        Some(namespace) => {
            Api::<DynamicObject>::namespaced_with(client.clone(), namespace, resource)
                .resource_url()
                .to_owned()
        }
        None => Api::<DynamicObject>::all_with(client.clone(), resource)
            .resource_url()
            .to_owned(),
    };
    let request = kube::core::Request::new(path);
    let fetch = |params: ListParams| {
        let params = ListParams {
            label_selector: scope.selector.clone(),
            ..params
        };
        let request = request.list(&params);
        let client = client.clone();
        async move {
            let request = request.map_err(kube::Error::BuildRequest)?;
            client.request::<ObjectList<Value>>(request).await
        }
    };
    pages(resource, fetch, sink).await
}

/// Every object of a kind, or those of a namespace; what `keep` makes of it stays. None where the cluster does not serve the
/// kind.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn objects<T: Send>(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
    keep: impl Fn(Value) -> Option<T> + Send,
) -> Result<Option<Vec<T>>, ClusterError> {
    let scope = Scope {
        namespace: namespace.map(str::to_owned),
        selector: None,
    };
    let mut kept = Kept::new(keep);
    let served = values(client, resource, &scope, &mut kept).await?;
    Ok(served.then_some(kept.kept))
}

/// As [`objects`], of the metadata alone, and of those in scope.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn metadata<T: Send>(
    client: &Client,
    resource: &ApiResource,
    scope: &Scope,
    keep: impl Fn(PartialObjectMeta<DynamicObject>) -> Option<T> + Send,
) -> Result<Option<Vec<T>>, ClusterError> {
    let api: Api<DynamicObject> = match &scope.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    let fetch = |params: ListParams| {
        let api = api.clone();
        let params = ListParams {
            label_selector: scope.selector.clone(),
            ..params
        };
        async move { api.list_metadata(&params).await }
    };
    let mut kept = Kept::new(keep);
    let served = pages(resource, fetch, &mut kept).await?;
    Ok(served.then_some(kept.kept))
}

/// The names of the cluster's namespaces.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn namespaces(client: &Client) -> Result<Vec<String>, ClusterError> {
    let namespaces = resource("", "v1", "Namespace", "namespaces");
    let every = Scope::default();
    let named = metadata(client, &namespaces, &every, |namespace| {
        namespace.metadata.name
    })
    .await?;
    Ok(named.unwrap_or_default())
}

/// Keeps what a function makes of each object.
struct Kept<T, F> {
    keep: F,
    kept: Vec<T>,
}

impl<T, F> Kept<T, F> {
    const fn new(keep: F) -> Self {
        Self {
            keep,
            kept: Vec::new(),
        }
    }
}

impl<K: Send, T: Send, F: Fn(K) -> Option<T> + Send> Sink<K> for Kept<T, F> {
    async fn take(&mut self, items: Vec<K>, _: Option<u64>) {
        self.kept.extend(items.into_iter().filter_map(&self.keep));
    }

    fn begin_again(&mut self) {
        self.kept.clear();
    }
}

async fn pages<K, F>(
    resource: &ApiResource,
    fetch: impl Fn(ListParams) -> F,
    sink: &mut impl Sink<K>,
) -> Result<bool, ClusterError>
where
    K: Clone + Debug + DeserializeOwned + Send,
    F: Future<Output = kube::Result<ObjectList<K>>>,
{
    let refused = |error| ClusterError::Request {
        what: format!("list {}", name(resource)),
        error: Box::new(error),
    };
    let mut attempt = 1;
    let mut next = None;
    loop {
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: next.take(),
            ..ListParams::default()
        };
        let page = match fetch(params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 410 && attempt < ATTEMPTS => {
                attempt += 1;
                // The server says how to go on behind what was sent, as things stand now
                // (k8s.io/apimachinery, ListMeta.continue).
                next = status.metadata.and_then(|metadata| metadata.continue_);
                if next.is_none() {
                    sink.begin_again();
                }
                continue;
            }
            Err(error) => return Err(refused(error)),
        };
        let remaining = page.metadata.remaining_item_count;
        let remaining = remaining.and_then(|count| u64::try_from(count).ok());
        sink.take(page.items, remaining).await;
        next = page.metadata.continue_.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(true);
        }
    }
}

/// A kind as `<plural>.<group>`.
pub fn name(resource: &ApiResource) -> String {
    if resource.group.is_empty() {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}
