//! Which install the webhook configurations belong to.

use std::{
    io,
    time::{Duration, Instant},
};

use k8s_openapi::api::admissionregistration::v1::WebhookClientConfig;
use tokio::net::TcpStream;

use crate::webhook::registration::Reach;

/// How the instance of a process with a URL begins.
const URL: &str = "url ";

/// How the instance of a process behind a Service begins.
const SERVICE: &str = "service ";

/// How long the URL of another instance may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How often in succession, and for how long, connections to the URL of another instance have to be
/// refused before its configurations are taken over. A process that starts again refuses some.
const REFUSALS: u32 = 3;
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Which install a process belongs to, by how it is reached: that is the same for all of its replicas,
/// and for those of its next version.
pub fn instance(reach: &Reach) -> String {
    match reach {
        Reach::Url(url) => format!("{URL}{url}"),
        Reach::Service {
            namespace, name, ..
        } => format!("{SERVICE}{namespace}/{name}"),
    }
}

/// Whether an entry asks an instance.
fn asks(client: &WebhookClientConfig, instance: &str) -> bool {
    if let Some(service) = &client.service {
        let name = format!("{}/{}", service.namespace, service.name);
        return instance.strip_prefix(SERVICE) == Some(&name);
    }
    let base = instance.strip_prefix(URL);
    let base = base.map(|base| base.trim_end_matches('/'));
    let path = base.and_then(|base| client.url.as_deref()?.strip_prefix(base));
    path.is_some_and(|path| path.is_empty() || path.starts_with('/'))
}

/// Whether entries belong to another instance: an annotation alone does not say so. They do where some
/// entry asks the other instance, and none asks ours.
pub(super) fn are_of<'c>(
    theirs: &str,
    ours: &str,
    mut clients: impl Iterator<Item = &'c WebhookClientConfig> + Clone,
) -> bool {
    clients.clone().any(|client| asks(client, theirs)) && !clients.any(|client| asks(client, ours))
}

/// Connections to another instance that were refused, one after the other.
#[derive(Debug, Default)]
pub(super) struct Refusals(Option<(String, Instant, u32)>);

impl Refusals {
    /// Whether nobody listens any more at the URL of another instance. Where that cannot be known, as
    /// of a Service, it is taken to be there.
    pub(super) async fn is_gone(&mut self, theirs: &str, ours: &str) -> bool {
        let refuses = ours.starts_with(URL) && refuses(theirs).await;
        self.note(theirs, refuses, Instant::now())
    }

    fn note(&mut self, theirs: &str, refuses: bool, now: Instant) -> bool {
        let before = self
            .0
            .take()
            .filter(|(other, ..)| refuses && other == theirs);
        if !refuses {
            return false;
        }
        let (since, times) = before.map_or((now, 1), |(_, since, times)| (since, times + 1));
        self.0 = Some((theirs.to_owned(), since, times));
        times >= REFUSALS && now.duration_since(since) >= REFUSED_FOR
    }
}

/// Whether connections to the URL of an instance are refused.
async fn refuses(instance: &str) -> bool {
    let url = instance.strip_prefix(URL);
    let Some(uri) = url.and_then(|url| url.parse::<axum::http::Uri>().ok()) else {
        return false;
    };
    let Some(host) = uri.host() else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((host, uri.port_u16().unwrap_or(443)));
    let answer = tokio::time::timeout(PROBE_LIMIT, connect).await;
    matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::ServiceReference;

    use super::*;

    fn url(url: &str) -> WebhookClientConfig {
        WebhookClientConfig {
            url: Some(url.to_owned()),
            ..WebhookClientConfig::default()
        }
    }

    fn service(namespace: &str, name: &str) -> WebhookClientConfig {
        WebhookClientConfig {
            service: Some(ServiceReference {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port: Some(8443),
                ..ServiceReference::default()
            }),
            ..WebhookClientConfig::default()
        }
    }

    #[test]
    fn entries_belong_to_whom_they_ask() {
        let ours = "url https://10.0.0.1:8443/";
        let us = url("https://10.0.0.1:8443/validate");
        for (theirs, clients, belong) in [
            ("service a/b", vec![service("a", "b")], true),
            ("service a/b", vec![], false),
            ("service a/b", vec![us.clone()], false),
            ("service a/b", vec![service("a", "b"), us.clone()], false),
            (
                "service a/b",
                vec![service("a", "b"), url("https://x")],
                true,
            ),
            ("service a/b", vec![service("a", "bc")], false),
            ("url https://b", vec![url("https://b/validate")], true),
            ("url https://b", vec![url("https://b")], true),
            ("url https://b", vec![url("https://bc/validate")], false),
            ("url ", vec![url("https://b")], false),
            ("nonsense", vec![url("https://b"), service("a", "b")], false),
            // The same URL, written in another way.
            ("url https://10.0.0.1:8443", vec![us], false),
        ] {
            assert_eq!(
                are_of(theirs, ours, clients.iter()),
                belong,
                "{theirs} {clients:?}"
            );
        }
    }

    #[test]
    fn an_instance_is_gone_only_when_it_refuses_for_long() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        for (seconds, theirs, refuses, gone) in [
            (0, "a", true, false),
            (1, "a", true, false),
            (2, "a", true, false),
            (9, "a", false, false),
            (10, "a", true, false),
            (25, "a", true, false),
            (26, "b", true, false),
            (27, "b", true, false),
            (35, "b", true, false),
            (36, "b", true, true),
            (37, "b", true, true),
        ] {
            let is_gone = refusals.note(theirs, refuses, at(seconds));
            assert_eq!(is_gone, gone, "{seconds} {theirs}");
        }
    }
}
