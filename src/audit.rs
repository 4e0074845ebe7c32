//! What a cluster already runs, judged as the webhook would: its objects are read page by page and
//! reviewed as they come, and nothing is written.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    cluster::{
        ClusterError,
        list::{self, Page, Scope, Sink, gathered, resource, values},
    },
    facts::{Facts, Listed, Watched},
    finding::{Finding, Level},
    policy::Policy,
    report::{self, ObjectName},
    review::{Review, Skip, review},
    rules::{Kind, Rule, kinds},
    subject::{Door, Operation, Subject, at},
};

pub mod continuous;

/// Kinds that are listed at the same time: enough to keep the reviews busy, and few enough for an API
/// server that has others to serve. Of each, one page is reviewed while the next is fetched.
const AT_ONCE: usize = 2;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kinds.
    pub kinds: Vec<&'static Kind>,
    /// Which of their objects.
    pub scope: Scope,
    /// Only what these rules find; everything where there are none.
    pub rules: Vec<&'static Rule>,
}

impl Default for Plan {
    /// Everything that some rule speaks of.
    fn default() -> Self {
        Self {
            kinds: kinds::ALL.to_vec(),
            scope: Scope::default(),
            rules: Vec::new(),
        }
    }
}

/// What is said of an object, and what names it. The object itself is not kept.
#[derive(Clone, Debug)]
pub struct Audited {
    /// What names it.
    pub object: ObjectName,
    /// What tells it from all others, of other times and of the same name, too; where it is asked for.
    pub uid: Option<String>,
    /// Which of its versions was looked at, where it is asked for and something is said.
    pub resource_version: Option<String>,
    /// Who it belongs to, where it says so and something is said.
    pub owner: Option<String>,
    /// What is said.
    pub review: Review,
}

/// What comes of looking at an object.
#[derive(Debug)]
pub enum Judged<T> {
    /// No rule speaks of it.
    Passed,
    /// There is nothing to tell of it.
    Clean,
    /// There is.
    Told(T),
}

/// What an audit saw.
#[derive(Debug)]
pub struct Seen<T> {
    /// What is to be told, kind by kind in the order of the lists.
    pub told: Vec<T>,
    /// Objects of which there is nothing to tell.
    pub clean: usize,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self {
            told: Vec::new(),
            clean: 0,
            unseen: Vec::new(),
        }
    }
}

impl<T> Seen<T> {
    fn take(&mut self, judged: Judged<T>) {
        match judged {
            Judged::Passed => {}
            Judged::Clean => self.clean += 1,
            Judged::Told(told) => self.told.push(told),
        }
    }

    fn append(&mut self, mut more: Self) {
        self.told.append(&mut more.told);
        self.clean += more.clean;
        self.unseen.append(&mut more.unseen);
    }
}

/// How far an audit is.
pub trait Progress: Send + Sync {
    /// That many objects have been reviewed, and that many are known to be left of the same kind.
    fn reviewed(&self, kind: &Kind, count: usize, left: Option<u64>);

    /// How long to wait between two pages.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }
}

impl Progress for () {
    fn reviewed(&self, _: &Kind, _: usize, _: Option<u64>) {}
}

/// How an object is judged: by one policy, or by two for comparison.
pub trait Judge: Send + Sync + 'static {
    /// What is said of an object.
    type Told: Send + 'static;
    /// What is said of this object.
    fn judge(&self, subject: &Subject) -> Judged<Self::Told>;
}

/// What rules know besides the object at hand, as the webhook knows it by its watches.
pub async fn facts(
    client: &Client,
    policy: &Policy,
    scope: &Scope,
    unseen: &mut Vec<String>,
) -> Facts {
    let mut facts = Facts::unknown();
    let engines = policy.catalog().engines();
    for watched in Watched::ALL {
        let (group, version, plural) = watched.resource();
        let resource = resource(group, version, watched.kind(), plural);
        let add = |listed: &mut Listed, value: Value| {
            let text = |key: &str| {
                let found = at(&value, &["metadata", key]);
                found.and_then(Value::as_str).unwrap_or_default()
            };
            if let Some(fact) = watched.fact(&value, engines) {
                listed.add(text("namespace"), text("name"), fact);
            }
        };
        let namespace = scope
            .namespace
            .as_deref()
            .filter(|_| watched.is_namespaced());
        match gathered(client, &resource, namespace, add).await {
            Ok(Some(all)) => facts = facts.with_cluster(|cluster| cluster.replace(watched, &all)),
            Ok(None) => facts = facts.with_cluster(|cluster| cluster.unserved(watched)),
            Err(error) => unseen.push(format!("{error}; what depends on it is taken for unknown")),
        }
    }
    facts
}

/// Judges by the rules of one policy.
#[derive(Clone, Debug)]
pub struct ByPolicy {
    /// The policy.
    pub policy: Arc<Policy>,
    /// What else is known.
    pub facts: Arc<Facts>,
    /// The time of the audit.
    pub now: Timestamp,
    /// Only what these rules find; everything where there are none.
    pub rules: Vec<&'static Rule>,
    /// Objects are told of in which nothing is found, too.
    pub clean: bool,
    /// Objects are told of with what tells them from others of the same name.
    pub identity: bool,
}

impl Judge for ByPolicy {
    type Told = Audited;

    fn judge(&self, subject: &Subject) -> Judged<Audited> {
        let Some(review) = self.review(subject) else {
            return Judged::Passed;
        };
        let is_clean = review.findings.is_empty();
        if is_clean && !self.clean {
            return Judged::Clean;
        }
        let text = |key: &str| {
            let text = at(&subject.value, &["metadata", key]).and_then(Value::as_str);
            text.filter(|_| self.identity).map(str::to_owned)
        };
        Judged::Told(Audited {
            object: ObjectName::from(subject),
            uid: text("uid"),
            resource_version: text("resourceVersion").filter(|_| !is_clean),
            owner: report::audit::owner(subject).filter(|_| !is_clean),
            review,
        })
    }
}

impl ByPolicy {
    /// What is said of an object; none where no rule speaks of it.
    pub fn review(&self, subject: &Subject) -> Option<Review> {
        let mut review = review(&self.policy, &self.facts, subject, self.now);
        if review.skipped == Some(Skip::Kind) {
            return None;
        }
        if review.skipped.is_none() {
            review.findings.extend(self.would_be_filled(subject));
        }
        if !self.rules.is_empty() {
            let wanted = |id: &str| self.rules.iter().any(|rule| rule.id == id);
            review.findings.retain(|finding| wanted(finding.rule));
        }
        review.findings.shrink_to_fit();
        Some(review)
    }

    /// What would be filled if the object were created now, by what its authors are known to have
    /// written. What they are told of already is not told twice.
    fn would_be_filled(&self, subject: &Subject) -> Vec<Finding> {
        if !kinds::is_filled(subject.group(), &subject.kind) {
            return Vec::new();
        }
        let created = Subject {
            door: Door::Mutate,
            operation: Operation::Create,
            old: None,
            ..subject.clone()
        };
        let filled = review(&self.policy, &self.facts, &created, self.now).findings;
        filled
            .into_iter()
            .filter(|finding| finding.filled && finding.level == Level::Info)
            .map(|finding| Finding {
                dry: true,
                ..finding
            })
            .collect()
    }
}

/// Looks at everything that is planned.
pub async fn run<J: Judge>(
    client: &Client,
    plan: &Plan,
    judge: &Arc<J>,
    progress: &dyn Progress,
) -> Seen<J::Told> {
    let of_kinds = stream::iter(plan.kinds.iter().copied().enumerate())
        .map(|(position, kind)| {
            async move {
                let mut seen = Seen::default();
                of_kind(client, kind, plan, judge, progress, &mut seen).await;
                (position, seen)
            }
            .boxed()
        })
        .buffer_unordered(AT_ONCE);
    let mut all: Vec<(usize, Seen<J::Told>)> = of_kinds.collect().await;
    all.sort_by_key(|(position, _)| *position);
    let mut seen = Seen::default();
    for (_, of_kind) in all {
        seen.append(of_kind);
    }
    seen
}

async fn of_kind<J: Judge>(
    client: &Client,
    kind: &'static Kind,
    plan: &Plan,
    judge: &Arc<J>,
    progress: &dyn Progress,
    seen: &mut Seen<J::Told>,
) {
    // What is not namespaced is in no namespace.
    if plan.scope.namespace.is_some() && !kind.namespaced {
        return;
    }
    let refused = match in_scope(client, kind, &plan.scope, judge, progress, seen).await {
        Ok(()) => return,
        Err(error) if error.is_forbidden() && plan.scope.namespace.is_none() => error,
        Err(error) => {
            seen.unseen.push(error.to_string());
            return;
        }
    };
    // Whoever may not see all of a kind may still see that of some namespaces.
    let namespaces = if kind.namespaced {
        list::namespaces(client).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    let mut hidden = 0_usize;
    let mut last = None;
    for namespace in &namespaces {
        let scope = Scope {
            namespace: Some(namespace.clone()),
            ..plan.scope.clone()
        };
        if let Err(error) = in_scope(client, kind, &scope, judge, progress, seen).await {
            hidden += 1;
            last = Some(error);
        }
    }
    match last {
        None if !namespaces.is_empty() => {}
        Some(error) if hidden < namespaces.len() => seen.unseen.push(format!(
            "{error} ({hidden} of {} namespaces)",
            namespaces.len()
        )),
        _ => seen.unseen.push(refused.to_string()),
    }
}

/// Reads and reviews in whichever of its versions the cluster serves the kind.
async fn in_scope<J: Judge>(
    client: &Client,
    kind: &'static Kind,
    scope: &Scope,
    judge: &Arc<J>,
    progress: &dyn Progress,
    seen: &mut Seen<J::Told>,
) -> Result<(), ClusterError> {
    for resource in kind.api_resources() {
        let mut reader = Reader {
            kind,
            api_version: resource.api_version.clone(),
            judge: Arc::clone(judge),
            progress,
            pending: None,
            done: Seen::default(),
        };
        let served = values(client, &resource, scope, &mut reader).await;
        reader.settle().await;
        if served.is_ok() {
            seen.append(reader.done);
        }
        if served? {
            break;
        }
    }
    Ok(())
}

/// Reviews a page while the next is fetched.
struct Reader<'p, J: Judge> {
    kind: &'static Kind,
    api_version: String,
    judge: Arc<J>,
    progress: &'p dyn Progress,
    pending: Option<JoinHandle<Seen<J::Told>>>,
    done: Seen<J::Told>,
}

impl<J: Judge> Reader<'_, J> {
    async fn settle(&mut self) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        match pending.await {
            Ok(page) => self.done.append(page),
            Err(error) => self.done.unseen.push(format!(
                "a page of {}.{} could not be judged: {error}",
                self.kind.resource, self.kind.group
            )),
        }
    }
}

impl<J: Judge> Sink<Page> for Reader<'_, J> {
    async fn take(&mut self, page: Page, remaining: Option<u64>) {
        self.settle().await;
        self.progress.reviewed(self.kind, page.count(), remaining);
        tokio::time::sleep(self.progress.pause()).await;
        let (judge, api_version, kind) =
            (Arc::clone(&self.judge), self.api_version.clone(), self.kind);
        self.pending = Some(tokio::task::spawn_blocking(move || {
            judged(&page, &*judge, &api_version, kind)
        }));
    }

    fn begin_again(&mut self) {
        self.pending = None;
        self.done = Seen::default();
    }
}

/// What is said of the objects of a page.
fn judged<J: Judge>(page: &Page, judge: &J, api_version: &str, kind: &Kind) -> Seen<J::Told> {
    let mut seen = Seen::default();
    let read = page.each(|item| {
        let Some(subject) = subject(item, api_version, kind.kind) else {
            return;
        };
        // A review that panics is a fault of ours; the other objects still count.
        match catch_unwind(AssertUnwindSafe(|| judge.judge(&subject))) {
            Ok(judged) => seen.take(judged),
            Err(_) => seen.unseen.push(format!(
                "{} could not be judged: a fault of Gangplank itself",
                ObjectName::from(&subject)
            )),
        }
    });
    if let Err(error) = read {
        let (plural, group) = (kind.resource, kind.group);
        seen.unseen.push(format!(
            "not all of a page of {plural}.{group} could be read: {error}"
        ));
    }
    seen
}

/// The items of a list do not say what they are.
pub(crate) fn subject(mut item: Value, api_version: &str, kind: &str) -> Option<Subject> {
    let members = item.as_object_mut()?;
    members.insert("apiVersion".to_owned(), api_version.into());
    members.insert("kind".to_owned(), kind.into());
    let subject = Subject::from_manifest(Arc::new(item))?;
    Some(Subject {
        door: Door::Audit,
        ..subject
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Shaky;

    impl Judge for Shaky {
        type Told = String;

        fn judge(&self, subject: &Subject) -> Judged<String> {
            assert_ne!(subject.name, "bad", "a fault of ours");
            Judged::Told(subject.name.clone())
        }
    }

    #[test]
    fn what_cannot_be_judged_is_named_and_the_rest_is_judged() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let named = |name: &str| json!({"metadata": {"name": name, "namespace": "a"}}).to_string();
        let items = [named("one"), named("bad"), named("two"), deep].join(",");
        let page = Page::read(format!("{{\"items\": [{items}]}}")).unwrap().1;
        assert_eq!(page.count(), 4);
        let seen = judged(&page, &Shaky, "apps/v1", &kinds::DEPLOYMENT);
        assert_eq!(seen.told, ["one", "two"]);
        let [fault, unread] = &seen.unseen[..] else {
            panic!("{:?}", seen.unseen);
        };
        assert!(fault.starts_with("Deployment a/bad could not be judged"));
        assert!(unread.starts_with("not all of a page of deployments.apps could be read"));
    }
}
