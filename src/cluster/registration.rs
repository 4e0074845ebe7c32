//! The webhook configurations on the API server.

use std::fmt::Debug;

use k8s_openapi::{
    ClusterResourceScope, Metadata,
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        rbac::v1::ClusterRole,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};

use super::ClusterError;
use crate::webhook::registration::{Configurations, FIELD_MANAGER};

/// Who makes the webhook configurations, before anything stands in them.
const CREATOR: &str = "gangplank-create";

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

/// The webhook configurations of a name, as they are.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// What fills.
    pub mutating: Option<MutatingWebhookConfiguration>,
    /// What denies.
    pub validating: Option<ValidatingWebhookConfiguration>,
}

impl Registered {
    /// How each entry is called, and the certificates that it trusts us by, PEM.
    pub fn bundles(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries().map(|(name, client)| {
            let bundle = client.ca_bundle.as_ref();
            (name, bundle.map_or(&[][..], |bundle| &bundle.0))
        })
    }

    /// The namespace of the Service that they name, if they do.
    pub fn service_namespace(&self) -> Option<&str> {
        self.entries()
            .find_map(|(_, client)| Some(&*client.service.as_ref()?.namespace))
    }

    fn entries(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        let mutating = self.mutating.iter().flat_map(|one| &one.webhooks);
        let mutating = mutating
            .flatten()
            .map(|entry| (&entry.name, &entry.client_config));
        let validating = self.validating.iter().flat_map(|one| &one.webhooks);
        let validating = validating
            .flatten()
            .map(|entry| (&entry.name, &entry.client_config));
        mutating
            .chain(validating)
            .map(|(name, client)| (&**name, client))
    }
}

/// Reads the webhook configurations.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn registered(client: &Client, name: &str) -> Result<Registered, ClusterError> {
    let refused = |kind: &str, error| ClusterError::Request {
        what: format!("read the {kind} {name:?}"),
        error: Box::new(error),
    };
    Ok(Registered {
        mutating: Api::all(client.clone())
            .get_opt(name)
            .await
            .map_err(|error| refused("MutatingWebhookConfiguration", error))?,
        validating: Api::all(client.clone())
            .get_opt(name)
            .await
            .map_err(|error| refused("ValidatingWebhookConfiguration", error))?,
    })
}

/// Writes the webhook configurations by server-side apply, so that a second replica, or the same one
/// again, changes nothing. What somebody else wrote since they were `seen` is not overwritten: that is
/// a conflict.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn register(
    client: &Client,
    wanted: Configurations,
    seen: &Registered,
) -> Result<(), ClusterError> {
    // What fills comes first: an object that is silent should not be denied before it can be filled.
    apply(client, wanted.mutating, seen.mutating.as_ref()).await?;
    apply(client, wanted.validating, seen.validating.as_ref()).await
}

async fn apply<K>(client: &Client, mut wanted: K, seen: Option<&K>) -> Result<(), ClusterError>
where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Metadata<Ty = ObjectMeta>
        + Clone
        + Debug
        + Default
        + DeserializeOwned
        + Serialize,
{
    let name = wanted.name_any();
    let refused = |error| ClusterError::Request {
        what: format!("write the {} {name:?}", K::kind(&())),
        error: Box::new(error),
    };
    let api = Api::<K>::all(client.clone());
    let version = if let Some(seen) = seen {
        seen.resource_version()
    } else {
        // Without entries and by a manager of its own, so that whoever is second changes nothing, and
        // has something to conflict with.
        let empty = serde_json::json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name},
        });
        let params = PatchParams::apply(CREATOR);
        let patch = Patch::Apply(&empty);
        let created = api.patch(&name, &params, &patch).await.map_err(refused)?;
        let filled = serde_json::to_value(&created).is_ok_and(|created| {
            created
                .get("webhooks")
                .is_some_and(|entries| !entries.is_null())
        });
        if filled {
            let what = format!("{} {name:?}", K::kind(&()));
            return Err(ClusterError::Overtaken(what));
        }
        created.resource_version()
    };
    Metadata::metadata_mut(&mut wanted).resource_version = version;
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&wanted))
        .await
        .map(|_| ())
        .map_err(refused)
}

/// Removes the webhook configurations; the one that blocks writes first. True where there was one.
///
/// # Errors
/// Where the API server is not reached or refuses.
pub async fn unregister(client: &Client, name: &str) -> Result<bool, ClusterError> {
    let params = DeleteParams::default();
    let gone = |kind: &str, result: Result<(), kube::Error>| match result {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(ClusterError::Request {
            what: format!("delete the {kind} {name:?}"),
            error: Box::new(error),
        }),
    };
    let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone())
        .delete(name, &params)
        .await
        .map(|_| ());
    let validating = gone("ValidatingWebhookConfiguration", validating)?;
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone())
        .delete(name, &params)
        .await
        .map(|_| ());
    Ok(gone("MutatingWebhookConfiguration", mutating)? || validating)
}
