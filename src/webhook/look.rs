//! A look at an admission request whose body is complete.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Desk, answer,
    envelope::{self, Envelope, Refusal, Requester},
    limits::{Held, LargeSize},
    microseconds,
};
use crate::{
    catalog::controllers::controller_of,
    facts::Facts,
    finding::Verdict,
    metrics::Seen,
    policy::Policy,
    review::Review,
    subject::{Door, Subject},
    telemetry::traces::Span,
};

/// A request, and what it is looked at by: one policy and one time, however often.
pub(super) struct Work {
    pub(super) desk: Arc<Desk>,
    pub(super) endpoint: &'static str,
    pub(super) door: Door,
    pub(super) body: Vec<u8>,
    /// Its bytes count as long as they are there.
    pub(super) _held: Held,
    /// When the body was complete.
    pub(super) complete: Instant,
    pub(super) policy: Arc<Policy>,
    pub(super) facts: Arc<Facts>,
    pub(super) now: Timestamp,
    /// Whether what the rules ask may still be asked.
    pub(super) may_ask: bool,
    pub(super) span: Span,
}

/// What came of a look.
pub(super) enum Looked {
    /// The answer, as it is sent.
    Answer(Vec<u8>),
    /// There is no verdict.
    Refused(Refusal),
    /// Somebody else has to be asked first.
    Asks(Box<Asked>),
}

/// Whether a requester may exempt an object from rules. It has no more of the object than that takes, so that
/// the rest need not be held while somebody else is asked.
pub(super) struct Asked {
    pub(super) requester: Requester,
    /// Its value is no more than the reference to its controller.
    pub(super) subject: Subject,
    pub(super) rules: Vec<&'static str>,
}

impl Work {
    /// Measures the request.
    pub(super) fn measure(&mut self) -> Result<LargeSize, Refusal> {
        LargeSize::of(&self.body).map_err(|too_much| Refusal {
            code: StatusCode::PAYLOAD_TOO_LARGE,
            uid: envelope::salvage_uid(&self.body),
            message: too_much.to_string(),
        })
    }

    /// Looks at the request. What is read of it is dropped again before the answer is returned.
    pub(super) fn look(&mut self) -> Looked {
        let envelope = match envelope::open(&self.body, self.door) {
            Ok(envelope) => envelope,
            Err(refusal) => return Looked::Refused(refusal),
        };
        let (review, answer) = match self.judge(&envelope) {
            Ok(judged) => judged,
            Err(refusal) => return Looked::Refused(refusal),
        };
        if self.may_ask && !review.asks.is_empty() {
            return Looked::Asks(Box::new(Asked {
                subject: without_value(&envelope.subject),
                requester: envelope.requester,
                rules: review.asks,
            }));
        }
        let Desk { metrics, .. } = &*self.desk;
        let elapsed = self.complete.elapsed();
        metrics.reviewed(&Seen {
            endpoint: self.endpoint,
            subject: &envelope.subject,
            review: &review,
        });
        metrics.took(self.endpoint, elapsed);
        self.span.reviewed(&envelope, &review);
        tell(self.endpoint, &envelope, &review, elapsed);
        Looked::Answer(serde_json::to_vec(&answer).unwrap_or_default())
    }

    /// Reviews an object. A panic in a rule is an error of that request alone.
    fn judge(&self, Envelope { uid, subject, .. }: &Envelope) -> Result<(Review, Value), Refusal> {
        let Self {
            desk,
            policy,
            facts,
            now,
            ..
        } = self;
        let reviewed = catch_unwind(AssertUnwindSafe(|| {
            let review = (desk.reviewer)(policy, facts, subject, *now);
            let answer = answer::answer(policy, uid, subject, &review);
            (review, answer)
        }));
        reviewed.map_err(|_| {
            desk.metrics.panicked();
            tracing::error!(
                uid,
                kind = subject.kind,
                namespace = subject.namespace,
                name = subject.name,
                "a rule panicked; please report it with the object"
            );
            failed(uid.clone())
        })
    }
}

/// The refusal of a request that something here failed on.
pub(super) fn failed(uid: String) -> Refusal {
    Refusal {
        code: StatusCode::INTERNAL_SERVER_ERROR,
        uid,
        message: "gangplank failed on this object; its log says more".to_owned(),
    }
}

/// Returns the subject with the reference to its controller, and without the rest of its value.
fn without_value(subject: &Subject) -> Subject {
    let references: Vec<&Value> = controller_of(&subject.value).into_iter().collect();
    let value = json!({"metadata": {"ownerReferences": references}});
    Subject {
        old: None,
        ..subject.with_value(value)
    }
}

/// One line for a review: at info where something was denied, at debug else. Of the object it holds the
/// name and nothing that is in it, which may be a secret.
fn tell(endpoint: &'static str, envelope: &Envelope, review: &Review, elapsed: Duration) {
    let Envelope { uid, subject, .. } = envelope;
    // The level of a line has to be a constant.
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                uid,
                endpoint,
                operation = subject.operation.as_str(),
                api_version = subject.api_version,
                kind = subject.kind,
                namespace = subject.namespace,
                name = subject.name,
                verdict = review.outcome(),
                rules = review.rules(|_| true),
                exempted = review.rules(|finding| finding.exempted.is_some()),
                patched = review.patch.0.len(),
                duration_us = microseconds(elapsed),
                "reviewed"
            )
        };
    }
    if review.skipped.is_none() && review.verdict() == Verdict::Deny {
        line!(info);
    } else {
        line!(debug);
    }
}
