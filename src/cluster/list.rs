//! The objects of a cluster, page by page.

use std::fmt;

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListMeta, ListParams, PartialObjectMeta},
};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use super::ClusterError;
use crate::rules::Kind;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// How often a list is begun anew, or tried again for the same page, when the API server has forgotten
/// where it was (410, after five minutes: kubernetes/kubernetes, etcd's compaction).
const ATTEMPTS: usize = 2;

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

/// Takes the pages of a list.
pub trait Sink<P>: Send {
    /// A page, and how many objects the server says are still to come.
    fn take(&mut self, page: P, remaining: Option<u64>) -> impl Future<Output = ()> + Send;
    /// The list begins anew: what was taken comes again.
    fn begin_again(&mut self);
}

/// A page as the API server sent it. Its objects are read one after the other, when they are needed:
/// as text they take a fifth of the memory.
#[derive(Debug)]
pub struct Page {
    text: String,
    count: usize,
}

/// What a page says beside its objects.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<IgnoredAny>>,
}

impl Page {
    /// Reads what the page says beside its objects.
    pub(crate) fn read(text: String) -> serde_json::Result<(ListMeta, Self)> {
        let Head { metadata, items } = serde_json::from_str(&text)?;
        let count = items.map_or(0, |items| items.len());
        Ok((metadata, Self { text, count }))
    }

    /// How many objects it holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Hands over its objects, each as it stands.
    ///
    /// # Errors
    /// Where an object is nested too deeply to be read; those before it have been handed over.
    pub fn each(&self, take: impl FnMut(Value)) -> serde_json::Result<()> {
        let mut text = serde_json::Deserializer::from_str(&self.text);
        text.deserialize_map(Members(take))
    }
}

/// Reads a list for its objects.
struct Members<F>(F);

impl<'de, F: FnMut(Value)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            if key == "items" {
                members.next_value_seed(Items(&mut self.0))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads the objects of a list.
struct Items<'f, F>(&'f mut F);

impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Value)> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    /// Go writes an empty list as null.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

/// Every object of a kind as it stands. False where the cluster does not serve the kind.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn values(
    client: &Client,
    resource: &ApiResource,
    scope: &Scope,
    sink: &mut impl Sink<Page>,
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
            let text = client.request_text(request).await?;
            Page::read(text).map_err(kube::Error::SerdeError)
        }
    };
    pages(resource, fetch, sink).await
}

/// Every object of a kind, or those of a namespace; what `keep` makes of it stays. None where the
/// cluster does not serve the kind.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn objects<T: Send>(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
    keep: impl Fn(Value) -> Option<T> + Send,
) -> Result<Option<Vec<T>>, ClusterError> {
    let add = move |all: &mut Vec<T>, value| all.extend(keep(value));
    gathered(client, resource, namespace, add).await
}

/// As [`objects`], gathered by `add`.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn gathered<T: Default + Send>(
    client: &Client,
    resource: &ApiResource,
    namespace: Option<&str>,
    add: impl Fn(&mut T, Value) + Send,
) -> Result<Option<T>, ClusterError> {
    let scope = Scope {
        namespace: namespace.map(str::to_owned),
        selector: None,
    };
    let mut gathered = Gathered::by(add);
    let served = values(client, resource, &scope, &mut gathered).await?;
    if let Some(error) = gathered.unread {
        return Err(refused(resource, kube::Error::SerdeError(error)));
    }
    Ok(served.then_some(gathered.all))
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
        async move {
            let list = api.list_metadata(&params).await?;
            Ok((list.metadata, list.items))
        }
    };
    let add = move |all: &mut Vec<T>, object| all.extend(keep(object));
    let mut gathered = Gathered::by(add);
    let served = pages(resource, fetch, &mut gathered).await?;
    Ok(served.then_some(gathered.all))
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

/// Keeps what a function makes of the objects.
struct Gathered<T, F> {
    add: F,
    all: T,
    /// Why not all objects could be read.
    unread: Option<serde_json::Error>,
}

impl<T: Default, F> Gathered<T, F> {
    fn by(add: F) -> Self {
        Self {
            add,
            all: T::default(),
            unread: None,
        }
    }
}

impl<K: Send, T: Default + Send, F: Fn(&mut T, K) + Send> Sink<Vec<K>> for Gathered<T, F> {
    async fn take(&mut self, items: Vec<K>, _: Option<u64>) {
        for item in items {
            (self.add)(&mut self.all, item);
        }
    }

    fn begin_again(&mut self) {
        self.all = T::default();
    }
}

impl<T: Default + Send, F: Fn(&mut T, Value) + Send> Sink<Page> for Gathered<T, F> {
    async fn take(&mut self, page: Page, _: Option<u64>) {
        let Self { add, all, unread } = self;
        if let Err(error) = page.each(|item| add(all, item)) {
            unread.get_or_insert(error);
        }
    }

    fn begin_again(&mut self) {
        self.all = T::default();
        self.unread = None;
    }
}

fn refused(resource: &ApiResource, error: kube::Error) -> ClusterError {
    ClusterError::Request {
        what: format!("list {}", name(resource)),
        error: Box::new(error),
    }
}

async fn pages<P, F>(
    resource: &ApiResource,
    fetch: impl Fn(ListParams) -> F,
    sink: &mut impl Sink<P>,
) -> Result<bool, ClusterError>
where
    F: Future<Output = kube::Result<(ListMeta, P)>>,
{
    let (mut begun_anew, mut tried_again) = (0, 0);
    let mut next = None;
    loop {
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: next.take(),
            ..ListParams::default()
        };
        let (metadata, page) = match fetch(params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(kube::Error::Api(status))
                if status.code == 410 && begun_anew < ATTEMPTS && tried_again < ATTEMPTS =>
            {
                // The server says how to go on behind what was sent, as things stand now
                // (k8s.io/apimachinery, ListMeta.continue).
                next = status.metadata.and_then(|metadata| metadata.continue_);
                if next.is_some() {
                    tried_again += 1;
                } else {
                    begun_anew += 1;
                    sink.begin_again();
                }
                continue;
            }
            Err(error) => return Err(refused(resource, error)),
        };
        tried_again = 0;
        let remaining = metadata.remaining_item_count;
        let remaining = remaining.and_then(|count| u64::try_from(count).ok());
        sink.take(page, remaining).await;
        next = metadata.continue_.filter(|token| !token.is_empty());
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kube::core::Status;
    use serde_json::json;

    use super::*;

    /// What the API server answers, request by request: a page with these names and a token, or that it
    /// has forgotten and perhaps how to go on.
    type Answer = Result<(&'static [&'static str], Option<&'static str>), Option<&'static str>>;

    /// The names that were met, and the tokens that were sent.
    async fn listed(
        answers: &[Answer],
    ) -> (Result<bool, ClusterError>, Vec<String>, Vec<Option<String>>) {
        let sent = Mutex::new(Vec::new());
        let fetch = |params: ListParams| {
            let mut sent = sent.lock().unwrap();
            let answer = answers[sent.len()];
            sent.push(params.continue_token);
            std::future::ready(match answer {
                Ok((names, token)) => {
                    let items: Vec<Value> = names.iter().map(|name| json!(name)).collect();
                    let page = json!({"metadata": {"continue": token}, "items": items});
                    Ok(Page::read(page.to_string()).unwrap())
                }
                Err(token) => {
                    let status = json!({"kind": "Status", "code": 410, "reason": "Expired",
                        "metadata": {"continue": token}});
                    let status: Status = serde_json::from_value(status).unwrap();
                    Err(kube::Error::Api(Box::new(status)))
                }
            })
        };
        let add = |all: &mut Vec<String>, name: Value| all.push(name.as_str().unwrap().to_owned());
        let mut met = Gathered::by(add);
        let resource = resource("apps", "v1", "Deployment", "deployments");
        let served = pages(&resource, fetch, &mut met).await;
        (served, met.all, sent.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_list_that_is_forgotten_goes_on_or_begins_anew() {
        let (served, met, sent) = listed(&[
            Ok((&["a", "b"], Some("1"))),
            Err(Some("2")),
            Ok((&["c"], None)),
        ])
        .await;
        assert!(served.unwrap());
        assert_eq!(met, ["a", "b", "c"]);
        assert_eq!(sent, [None, Some("1".to_owned()), Some("2".to_owned())]);
        let (served, met, sent) = listed(&[
            Ok((&["a", "b"], Some("1"))),
            Err(None),
            Ok((&["a"], Some("2"))),
            Ok((&["c"], None)),
        ])
        .await;
        assert!(served.unwrap());
        assert_eq!(met, ["a", "c"], "what was seen before may be gone");
        assert_eq!(
            sent,
            [None, Some("1".to_owned()), None, Some("2".to_owned())]
        );
    }

    #[tokio::test]
    async fn a_long_list_may_be_forgotten_often_but_not_for_ever() {
        let again = [Err(Some("1")), Ok((&["b"][..], Some("1")))];
        let mut answers: Vec<Answer> = vec![Ok((&["a"], Some("1")))];
        answers.extend(again.repeat(9));
        answers.push(Ok((&["c"], None)));
        let (served, met, _) = listed(&answers).await;
        assert!(served.unwrap());
        assert_eq!(met.len(), 11);
        let answers = [Ok((&["a"][..], Some("1"))), Err(None)].repeat(9);
        let (served, _, sent) = listed(&answers).await;
        assert!(served.unwrap_err().to_string().contains("deployments.apps"));
        assert_eq!(sent.len(), 6);
        let answers: Vec<Answer> = vec![Err(Some("1")); 9];
        let (served, _, sent) = listed(&answers).await;
        assert!(served.is_err());
        assert_eq!(sent.len(), 3);
    }

    #[test]
    fn a_page_is_read_as_the_api_server_writes_it() {
        let names = |text: &str| {
            let (_, page) = Page::read(text.to_owned()).unwrap();
            let mut names = Vec::new();
            page.each(|item| names.push(item)).unwrap();
            assert_eq!(names.len(), page.count());
            names
        };
        assert!(names(r#"{"kind":"List","metadata":{},"items":null}"#).is_empty());
        assert!(names(r#"{"items":[]}"#).is_empty());
        let two = r#"{"items":[{"a":1},{"b":2}],"metadata":{"remainingItemCount":7}}"#;
        assert_eq!(names(two), [json!({"a": 1}), json!({"b": 2})]);
        let (metadata, _) = Page::read(two.to_owned()).unwrap();
        assert_eq!(metadata.remaining_item_count, Some(7));
        assert!(Page::read("{\"items\": [".to_owned()).is_err());
    }
}
