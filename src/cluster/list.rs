//! The objects of a cluster, page by page.

use std::fmt::Debug;

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, ObjectList, PartialObjectMeta},
};
use serde::de::DeserializeOwned;

use super::ClusterError;
use crate::rules::Kind;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// How often a list is begun anew when the API server has forgotten where it was (410, after five
/// minutes: kubernetes/kubernetes, etcd's compaction).
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
}

/// Every object of a kind; what `keep` makes of it stays. None where the cluster does not serve the
/// kind.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn objects<T>(
    client: &Client,
    resource: &ApiResource,
    keep: impl Fn(DynamicObject) -> Option<T>,
) -> Result<Option<Vec<T>>, ClusterError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let fetch = |params: ListParams| {
        let api = api.clone();
        async move { api.list(&params).await }
    };
    pages(resource, fetch, keep).await
}

/// As [`objects`], of the metadata alone.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn metadata<T>(
    client: &Client,
    resource: &ApiResource,
    keep: impl Fn(PartialObjectMeta<DynamicObject>) -> Option<T>,
) -> Result<Option<Vec<T>>, ClusterError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let fetch = |params: ListParams| {
        let api = api.clone();
        async move { api.list_metadata(&params).await }
    };
    pages(resource, fetch, keep).await
}

async fn pages<K, T, F>(
    resource: &ApiResource,
    fetch: impl Fn(ListParams) -> F,
    keep: impl Fn(K) -> Option<T>,
) -> Result<Option<Vec<T>>, ClusterError>
where
    K: Clone + Debug + DeserializeOwned,
    F: Future<Output = kube::Result<ObjectList<K>>>,
{
    let refused = |error| ClusterError::Request {
        what: format!("list {}.{}", resource.plural, resource.group),
        error: Box::new(error),
    };
    let mut attempt = 1;
    let (mut kept, mut next) = (Vec::new(), None);
    loop {
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: next.take(),
            ..ListParams::default()
        };
        let page = match fetch(params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(kube::Error::Api(status)) if status.code == 410 && attempt < ATTEMPTS => {
                attempt += 1;
                kept.clear();
                continue;
            }
            Err(error) => return Err(refused(error)),
        };
        kept.extend(page.items.into_iter().filter_map(&keep));
        next = page.metadata.continue_.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(Some(kept));
        }
    }
}
