//! Events of the API server's audit log (`audit.k8s.io/v1`, k8s.io/apiserver
//! pkg/apis/audit/v1/types.go).

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::rules::{Kind, kinds};

/// What an event says of a request, without the objects in it: most events of a log are of no
/// interest, and their objects are passed over unread.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Head {
    kind: String,
    api_version: String,
    items: Vec<Value>,
    pub(super) level: String,
    pub(super) stage: String,
    pub(super) verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    pub(super) user: User,
    pub(super) impersonated_user: Option<User>,
    pub(super) object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    request_received_timestamp: String,
    stage_timestamp: String,
}

/// Who asks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    pub(super) username: String,
    pub(super) groups: Vec<String>,
}

/// What is asked about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ObjectRef {
    resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    api_group: String,
    api_version: String,
    pub(super) subresource: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: Option<u16>,
}

/// The objects of an event.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Bodies {
    pub(super) request_object: Option<Value>,
    pub(super) response_object: Option<Value>,
    annotations: std::collections::BTreeMap<String, String>,
}

impl Bodies {
    /// Whether the API server cut the objects out because the event was too large
    /// (`--audit-log-truncate-enabled`, pkg/audit/plugins: buffered/truncate/truncate.go).
    pub(super) fn were_truncated(&self) -> bool {
        self.annotations.contains_key("audit.k8s.io/truncated")
    }
}

impl ObjectRef {
    /// The kind that is asked about, where some rule speaks of it.
    pub(super) fn kind(&self) -> Option<&'static Kind> {
        let is = |kind: &&Kind| kind.resource == self.resource && kind.group == self.api_group;
        kinds::ALL.iter().copied().find(is)
    }

    /// The `apiVersion` in which it is written.
    pub(super) fn api_version(&self) -> String {
        if self.api_group.is_empty() {
            self.api_version.clone()
        } else {
            format!("{}/{}", self.api_group, self.api_version)
        }
    }
}

impl Head {
    /// The HTTP status of the answer.
    pub(super) fn code(&self) -> Option<u16> {
        self.response_status.as_ref()?.code
    }

    /// Whether the request was only tried (`dryRun=All`).
    pub(super) fn is_dry_run(&self) -> bool {
        let query = self
            .request_uri
            .split_once('?')
            .map_or("", |(_, query)| query);
        query
            .split('&')
            .any(|pair| matches!(pair.split_once('='), Some(("dryRun", how)) if !how.is_empty()))
    }

    /// For whom the request was made: the webhook is told of the user that is impersonated.
    pub(super) fn user(&self) -> &User {
        self.impersonated_user.as_ref().unwrap_or(&self.user)
    }
}

/// One event of a log.
#[derive(Debug)]
pub struct Event {
    pub(super) head: Head,
    /// When the request came.
    pub(super) time: Timestamp,
    /// When the event was made: the order of a log.
    pub(super) logged: Timestamp,
    /// The event as it was read; nothing where its objects are of no interest.
    text: Vec<u8>,
}

impl Event {
    /// The events of one line: an Event, or an EventList as audit webhooks are sent it.
    ///
    /// # Errors
    /// Why the line is no event.
    pub fn read(line: &[u8]) -> Result<Vec<Self>, String> {
        let mut head: Head =
            serde_json::from_slice(line).map_err(|error| format!("is no audit event: {error}"))?;
        if head.api_version != "audit.k8s.io/v1" {
            return Err(match head.api_version.as_str() {
                "" => "is no audit event: it has no apiVersion".to_owned(),
                other => format!("is of {other:?}; only \"audit.k8s.io/v1\" is read"),
            });
        }
        match head.kind.as_str() {
            "Event" => Ok(vec![Self::new(head, line)?]),
            "EventList" => std::mem::take(&mut head.items)
                .into_iter()
                .map(|mut item| {
                    // The items of a list need not say what they are.
                    if let Some(members) = item.as_object_mut() {
                        members.insert("apiVersion".to_owned(), head.api_version.clone().into());
                        members.insert("kind".to_owned(), "Event".into());
                    }
                    let text = serde_json::to_vec(&item).unwrap_or_default();
                    let head = Head::deserialize(item)
                        .map_err(|error| format!("holds what is no audit event: {error}"))?;
                    Self::new(head, &text)
                })
                .collect(),
            other => Err(format!("is {other:?} and no audit event")),
        }
    }

    fn new(head: Head, text: &[u8]) -> Result<Self, String> {
        let time = |text: &str| text.parse::<Timestamp>().ok();
        let (received, logged) = (
            time(&head.request_received_timestamp),
            time(&head.stage_timestamp),
        );
        let Some(logged) = logged.or(received) else {
            return Err("is an event without a time".to_owned());
        };
        let wanted = head.stage == "ResponseComplete"
            && head
                .object_ref
                .as_ref()
                .is_some_and(|it| it.kind().is_some());
        Ok(Self {
            time: received.unwrap_or(logged),
            logged,
            text: if wanted { text.to_vec() } else { Vec::new() },
            head,
        })
    }

    /// When it was made. Events of several logs are replayed in this order.
    pub const fn logged(&self) -> Timestamp {
        self.logged
    }

    /// The objects in it.
    pub(super) fn bodies(&self) -> Bodies {
        // It was read once already; what else is wrong with it leaves the objects out.
        serde_json::from_slice(&self.text).unwrap_or_default()
    }
}
