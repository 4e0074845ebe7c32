//! Whether whoever writes an object may exempt it from a rule: asked of the API server's own
//! authorizer, by a SubjectAccessReview (k8s.io/api authorization/v1), and only when that rule has
//! found something.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use serde_json::Value;
use tokio::time::Instant;

use super::chain;
use crate::{
    catalog::controllers::controller_of,
    exempt::{Grant, Rights},
    metrics::Metrics,
    policy::Policy,
    rules::kinds,
    subject::{Subject, at, group_of},
    webhook::envelope::Requester,
};

/// The API group of the right.
pub const GROUP: &str = "gangplank.dev";

/// Its resource; the name is the rule's id.
pub const RESOURCE: &str = "rules";

/// Its verb.
pub const VERB: &str = "exempt";

/// How long all questions about one request may take together. The API server waits five seconds for
/// us (`timeoutSeconds`).
const DEADLINE: Duration = Duration::from_secs(1);

/// How long a yes is remembered. A no is not: whoever was just given the right tries again.
const REMEMBERED: Duration = Duration::from_secs(10);

/// More yeses than these are not remembered.
const MEMORY: usize = 4096;

/// Who may exempt from what, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    requester: Requester,
    rule: &'static str,
    /// Empty for cluster-scoped objects.
    namespace: String,
}

/// Asks the API server.
pub struct Access {
    client: Client,
    metrics: Arc<Metrics>,
    granted: Mutex<HashMap<Question, Instant>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Access {
    /// Asks by this client.
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            metrics,
            granted: Mutex::default(),
        }
    }

    /// What there is to know of the requester's right to exempt the object from these rules. Whatever is
    /// not answered in time is not granted.
    pub async fn rights(
        &self,
        policy: &Policy,
        requester: &Requester,
        subject: &Subject,
        rules: &[&'static str],
    ) -> Rights {
        let deadline = Instant::now() + DEADLINE;
        let answers = join_all(rules.iter().map(|rule| async {
            let Requester {
                username, groups, ..
            } = requester;
            let grant = if policy.exemptions().is_review_required(username, groups) {
                Grant::ReviewRequired
            } else {
                let namespace = subject.namespace.clone().unwrap_or_default();
                let question = Question {
                    requester: requester.clone(),
                    rule,
                    namespace,
                };
                self.ask(question, deadline).await
            };
            (*rule, grant)
        }));
        let owner = async {
            tokio::time::timeout_at(deadline, self.owner(subject))
                .await
                .ok()
                .flatten()
        };
        let (answers, owner) = futures_util::future::join(answers, owner).await;
        Rights {
            askable: true,
            answers: BTreeMap::from_iter(answers),
            owner,
        }
    }

    async fn ask(&self, question: Question, deadline: Instant) -> Grant {
        if self.remembers(&question) {
            self.metrics.access_reviewed("remembered");
            return Grant::Allowed;
        }
        let review = review(&question);
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let answer = tokio::time::timeout_at(deadline, api.create(&params, &review)).await;
        let (grant, error) = match answer {
            Ok(Ok(SubjectAccessReview {
                status: Some(status),
                ..
            })) if status.allowed && status.denied != Some(true) => (Grant::Allowed, None),
            // An authorizer that failed has not said no.
            Ok(Ok(SubjectAccessReview {
                status: Some(status),
                ..
            })) => match status.evaluation_error.filter(|error| !error.is_empty()) {
                Some(error) if status.denied != Some(true) => (Grant::Unanswered, Some(error)),
                _ => (Grant::Refused, None),
            },
            Ok(Ok(_)) => (
                Grant::Unanswered,
                Some("an answer without status".to_owned()),
            ),
            Ok(Err(error)) => (Grant::Unanswered, Some(chain(&error))),
            Err(_) => (
                Grant::Unanswered,
                Some(format!("no answer within {} s", DEADLINE.as_secs())),
            ),
        };
        if let Some(error) = error {
            tracing::warn!(
                user = question.requester.username,
                rule = question.rule,
                "cannot tell whether a user may exempt: {error}"
            );
        }
        self.metrics.access_reviewed(match grant {
            Grant::Allowed => "allowed",
            Grant::Refused | Grant::ReviewRequired => "refused",
            Grant::Unanswered => "unanswered",
        });
        if grant == Grant::Allowed {
            self.remember(question);
        }
        grant
    }

    fn remembers(&self, question: &Question) -> bool {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted
            .get(question)
            .is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, question: Question) {
        let now = Instant::now();
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.len() >= MEMORY {
            granted.retain(|_, until| now < *until);
        }
        if granted.len() < MEMORY {
            granted.insert(question, now + REMEMBERED);
        }
    }

    /// The object that controls another, where it exists under that uid and is of a kind that is judged
    /// itself: an exemption on anything else was looked at by nobody.
    async fn owner(&self, subject: &Subject) -> Option<Arc<Value>> {
        let reference = controller_of(&subject.value)?;
        let text = |key: &str| reference.get(key).and_then(Value::as_str);
        let (group, name) = (group_of(text("apiVersion")?), text("name")?);
        let uid = text("uid").filter(|uid| !uid.is_empty())?;
        let kind = kinds::ALL
            .iter()
            .find(|kind| kind.group == group && Some(kind.kind) == text("kind"))?;
        let resource = kind.api_resource();
        let api: Api<DynamicObject> = match &subject.namespace {
            Some(namespace) if kind.namespaced => {
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
            _ if !kind.namespaced => Api::all_with(self.client.clone(), &resource),
            _ => return None,
        };
        let found = match api.get_opt(name).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(
                    kind = kind.kind,
                    "cannot look at the owner of an object: {}",
                    chain(&error)
                );
                return None;
            }
        };
        let value = serde_json::to_value(found).ok()?;
        let same = at(&value, &["metadata", "uid"]).and_then(Value::as_str) == Some(uid);
        same.then(|| Arc::new(value))
    }
}

fn review(question: &Question) -> SubjectAccessReview {
    let Question {
        requester,
        rule,
        namespace,
    } = question;
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(requester.username.clone()),
            uid: Some(requester.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(requester.groups.clone()),
            extra: Some(requester.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(RESOURCE.to_owned()),
                verb: Some(VERB.to_owned()),
                name: Some((*rule).to_owned()),
                namespace: Some(namespace.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}
