//! What is counted, for Prometheus. Labels are bounded: no name or uid, and a namespace only where the
//! audit counts what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    policy::Policy,
    report::exemptions::{Entry, State},
    review::{Review, Skip},
    rules,
    subject::Subject,
    webhook::limits::{Bodies, Connections, Counts, Gate, Reason},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReviewLabels {
    endpoint: &'static str,
    kind: String,
    operation: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FindingLabels {
    endpoint: &'static str,
    rule: &'static str,
    level: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusalLabels {
    endpoint: &'static str,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PolicyLabels {
    hash: String,
    mode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AuditLabels {
    rule: String,
    level: String,
    namespace: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WatchLabels {
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ExemptionLabels {
    rule: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct ExemptionStateLabels {
    rule: &'static str,
    source: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ShedLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EvictionLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CertificateLabels {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AccessLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DriftLabels {
    configuration: &'static str,
    field: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UndoneLabels {
    configuration: &'static str,
    field: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConfigurationLabels {
    configuration: &'static str,
}

/// A review that was made.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Which endpoint was asked.
    pub endpoint: &'static str,
    /// About what.
    pub subject: &'a Subject,
    /// The answer.
    pub review: &'a Review,
}

/// Every metric of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reviews: Family<ReviewLabels, Counter>,
    findings: Family<FindingLabels, Counter>,
    durations: Family<EndpointLabels, Histogram>,
    refusals: Family<RefusalLabels, Counter>,
    panics: Counter,
    in_flight: Gauge,
    body_bytes: Gauge,
    shed: Family<ShedLabels, Counter>,
    large_in_flight: Gauge,
    connections: Counts,
    policy: Family<PolicyLabels, Gauge>,
    policy_reloads: Family<ReloadLabels, Counter>,
    policy_stale: Gauge,
    audit_findings: Family<AuditLabels, Gauge>,
    audit_leading: Gauge,
    audit_seconds: Gauge<f64, AtomicU64>,
    audit_complete: Gauge,
    certificate_end: Gauge<f64, AtomicU64>,
    authority_end: Gauge<f64, AtomicU64>,
    authority_steps: Family<StepLabels, Counter>,
    certificate_failures: Family<CertificateLabels, Counter>,
    certificate_stale: Family<CertificateLabels, Gauge>,
    registered: Gauge,
    registration_drift: Family<DriftLabels, Gauge>,
    registration_undone: Family<UndoneLabels, Counter>,
    registration_of_another: Gauge,
    registration_watched: Family<ConfigurationLabels, Gauge>,
    watch_synced: Family<WatchLabels, Gauge>,
    watch_failing: Family<WatchLabels, Gauge<f64, AtomicU64>>,
    watch_objects: Family<WatchLabels, Gauge>,
    exemptions_used: Family<ExemptionLabels, Counter>,
    exemptions: Family<ExemptionStateLabels, Gauge>,
    exemptions_end: Family<ExemptionLabels, Gauge<f64, AtomicU64>>,
    access_reviews: Family<AccessLabels, Counter>,
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("gangplank");
        let reviews = Family::<ReviewLabels, Counter>::default();
        let findings = Family::<FindingLabels, Counter>::default();
        // From 10 microseconds to a third of a second: a review takes tens of microseconds.
        let durations = Family::<EndpointLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_01, 2.0, 16))
        });
        let refusals = Family::<RefusalLabels, Counter>::default();
        let panics = Counter::default();
        let policy = Family::<PolicyLabels, Gauge>::default();
        let audit_findings = Family::<AuditLabels, Gauge>::default();
        let audit_leading = Gauge::default();
        let audit_seconds = Gauge::<f64, AtomicU64>::default();
        let audit_complete = Gauge::default();
        let certificate_end = Gauge::<f64, AtomicU64>::default();
        let registered = Gauge::default();
        registry.register("admission_reviews", "Objects reviewed", reviews.clone());
        registry.register(
            "findings",
            "Findings and fills, by rule and level",
            findings.clone(),
        );
        registry.register(
            "admission_duration_seconds",
            "From the last byte of a request to its answer",
            durations.clone(),
        );
        registry.register(
            "refused_requests",
            "Requests that were no admission reviews",
            refusals.clone(),
        );
        registry.register(
            "panics",
            "Reviews that failed by a fault of Gangplank's",
            panics.clone(),
        );
        let (in_flight, body_bytes) = (Gauge::default(), Gauge::default());
        let shed = Family::<ShedLabels, Counter>::default();
        for reason in ["requests", "large", "bytes", "time"] {
            let _ = shed.get_or_create(&ShedLabels { reason });
        }
        registry.register(
            "in_flight_requests",
            "Admission requests under way, from the last byte of the body to the answer",
            in_flight.clone(),
        );
        let large_in_flight = Gauge::default();
        registry.register(
            "large_in_flight_requests",
            "Those of them whose bodies are large: they are judged a few at a time, beside all others",
            large_in_flight.clone(),
        );
        registry.register(
            "body_bytes",
            "Bytes of the bodies of admission requests, from the first byte to the answer",
            body_bytes.clone(),
        );
        registry.register(
            "shed_requests",
            "Admission requests answered by 503 without a verdict: because too much was under way \
             (requests, large requests, bytes of bodies), or because their time was over before their turn \
             came (time)",
            shed.clone(),
        );
        let evicted = Family::<EvictionLabels, Counter>::default();
        let connections = Counts {
            open: Gauge::default(),
            refused: Counter::default(),
            evicted: Reason::ALL.map(|reason| {
                let reason = reason.as_str();
                evicted.get_or_create(&EvictionLabels { reason }).clone()
            }),
        };
        registry.register(
            "connections",
            "Open connections to the admission port",
            connections.open.clone(),
        );
        registry.register(
            "evicted_connections",
            "Connections to the admission port closed to let in new ones: because their address had too \
             many without a complete request (address), or because too many were open, and this one had no \
             complete request (unused) or had its last one the longest ago (idle)",
            evicted,
        );
        registry.register(
            "refused_connections",
            "New connections to the admission port closed at once because every other one had a request in \
             flight",
            connections.refused.clone(),
        );
        registry.register("policy_info", "The policy in force", policy.clone());
        let policy_reloads = Family::<ReloadLabels, Counter>::default();
        let policy_stale = Gauge::default();
        registry.register(
            "policy_reloads",
            "Changes of the policy file that were taken, or not because something is wrong with it",
            policy_reloads.clone(),
        );
        registry.register(
            "policy_stale",
            "1 where the policy file is not what is in force, because something is wrong with it",
            policy_stale.clone(),
        );
        registry.register(
            "audit_findings",
            "What the continuous audit finds in the cluster's objects, by rule, level and namespace",
            audit_findings.clone(),
        );
        registry.register(
            "audit_leading",
            "1 where this replica is the one that audits",
            audit_leading.clone(),
        );
        registry.register(
            "audit_duration_seconds",
            "How long the last look at the whole cluster took",
            audit_seconds.clone(),
        );
        registry.register(
            "audit_complete",
            "1 where the last look at the whole cluster saw everything",
            audit_complete.clone(),
        );
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "When the serving certificate ends",
            certificate_end.clone(),
        );
        let authority_end = Gauge::<f64, AtomicU64>::default();
        let authority_steps = Family::<StepLabels, Counter>::default();
        let certificate_failures = Family::<CertificateLabels, Counter>::default();
        let certificate_stale = Family::<CertificateLabels, Gauge>::default();
        registry.register(
            "ca_not_after_timestamp_seconds",
            "When the authority that signs the serving certificates ends; 0 where it is not ours",
            authority_end.clone(),
        );
        registry.register(
            "ca_steps",
            "What this replica did about the authority: create, restore, keep, prepare, promote, drop; \
             and sign for its own certificate",
            authority_steps.clone(),
        );
        registry.register(
            "certificate_failures",
            "Looks at a source of certificates (secret, files, client-ca) that failed",
            certificate_failures.clone(),
        );
        registry.register(
            "certificate_stale",
            "1 where the last look at a source of certificates failed, and what was there before stays",
            certificate_stale.clone(),
        );
        registry.register(
            "webhooks_registered",
            "1 where the webhook configurations were last written as they should be",
            registered.clone(),
        );
        let registration_drift = Family::<DriftLabels, Gauge>::default();
        let registration_undone = Family::<UndoneLabels, Counter>::default();
        let registration_of_another = Gauge::default();
        let registration_watched = Family::<ConfigurationLabels, Gauge>::default();
        registry.register(
            "registration_drift",
            "What others changed in the webhook configurations, by state: left as it is, tolerated, or foreign, an entry that is not ours",
            registration_drift.clone(),
        );
        registry.register(
            "registration_drift_put_right",
            "What others changed in the webhook configurations and was put right",
            registration_undone.clone(),
        );
        registry.register(
            "registration_of_another_install",
            "1 where the webhook configurations belong to another install, and are not written",
            registration_of_another.clone(),
        );
        registry.register(
            "registration_watched",
            "1 where changes of a webhook configuration are seen at once",
            registration_watched.clone(),
        );
        let watch_synced = Family::<WatchLabels, Gauge>::default();
        let watch_failing = Family::<WatchLabels, Gauge<f64, AtomicU64>>::default();
        let watch_objects = Family::<WatchLabels, Gauge>::default();
        registry.register(
            "watch_synced",
            "1 where the objects of a resource are known and current",
            watch_synced.clone(),
        );
        registry.register(
            "watch_failing_seconds",
            "How long the watch of a resource has been failing; 0 where it works",
            watch_failing.clone(),
        );
        registry.register(
            "watch_objects",
            "Objects of a resource of which a digest is kept",
            watch_objects.clone(),
        );
        let exemptions_used = Family::<ExemptionLabels, Counter>::default();
        let exemptions = Family::<ExemptionStateLabels, Gauge>::default();
        let exemptions_end = Family::<ExemptionLabels, Gauge<f64, AtomicU64>>::default();
        let access_reviews = Family::<AccessLabels, Counter>::default();
        registry.register(
            "exemptions",
            "Exemptions in the policy and on the cluster's objects: valid, expiring, expired, malformed",
            exemptions.clone(),
        );
        registry.register(
            "exemptions_next_end_timestamp_seconds",
            "When the next exemption ends, of those that hold",
            exemptions_end.clone(),
        );
        registry.register(
            "exemptions_used",
            "Reviews in which an exemption covered what a rule had found",
            exemptions_used.clone(),
        );
        registry.register(
            "exemption_access_reviews",
            "Answers to whether a requester may exempt: allowed, remembered, refused, unanswered",
            access_reviews.clone(),
        );
        Self {
            registry,
            reviews,
            findings,
            durations,
            refusals,
            panics,
            in_flight,
            body_bytes,
            shed,
            large_in_flight,
            connections,
            policy,
            policy_reloads,
            policy_stale,
            audit_findings,
            audit_leading,
            audit_seconds,
            audit_complete,
            certificate_end,
            authority_end,
            authority_steps,
            certificate_failures,
            certificate_stale,
            registered,
            registration_drift,
            registration_undone,
            registration_of_another,
            registration_watched,
            watch_synced,
            watch_failing,
            watch_objects,
            exemptions_used,
            exemptions,
            exemptions_end,
            access_reviews,
        }
    }

    /// A review was made.
    pub fn reviewed(&self, seen: &Seen<'_>) {
        let Seen {
            endpoint,
            subject,
            review,
        } = *seen;
        let operation = subject.operation.as_str();
        let kind = if review.skipped == Some(Skip::Kind) {
            "other"
        } else {
            &subject.kind
        };
        let verdict = review.outcome();
        let labels = ReviewLabels {
            endpoint,
            kind: kind.to_owned(),
            operation,
            verdict,
        };
        self.reviews.get_or_create(&labels).inc();
        for finding in &review.findings {
            let level = match (finding.dry, finding.filled) {
                (true, true) => "would-fill",
                (true, false) => "would-deny",
                (false, _) => finding.level.as_str(),
            };
            let rule = finding.rule;
            self.findings
                .get_or_create(&FindingLabels {
                    endpoint,
                    rule,
                    level,
                })
                .inc();
        }
        let used: BTreeSet<(&str, &str)> = review
            .findings
            .iter()
            .filter_map(|finding| {
                let exempted = finding.exempted.as_ref()?;
                Some((finding.rule, exempted.source.as_str()))
            })
            .collect();
        for (rule, source) in used {
            self.exemptions_used
                .get_or_create(&ExemptionLabels { rule, source })
                .inc();
        }
    }

    /// These are all exemptions that are known.
    pub fn exemptions(&self, entries: impl Iterator<Item = Entry>) {
        let mut counts: BTreeMap<ExemptionStateLabels, i64> = BTreeMap::new();
        let mut ends: BTreeMap<(&'static str, &'static str), Timestamp> = BTreeMap::new();
        for entry in entries {
            // Anybody may write an annotation for any word.
            let rule = rules::rule(&entry.rule).map_or("unknown", |rule| rule.id);
            let (source, state) = (entry.source.as_str(), entry.state.as_str());
            let labels = ExemptionStateLabels {
                rule,
                source,
                state,
            };
            *counts.entry(labels).or_default() += 1;
            if let (State::Valid | State::Expiring, Ok(terms)) = (entry.state, &entry.terms) {
                let end = ends.entry((rule, source)).or_insert_with(|| terms.end());
                *end = terms.end().min(*end);
            }
        }
        self.exemptions.clear();
        for (labels, count) in counts {
            self.exemptions.get_or_create(&labels).set(count);
        }
        self.exemptions_end.clear();
        for ((rule, source), end) in ends {
            self.exemptions_end
                .get_or_create(&ExemptionLabels { rule, source })
                .set(end.as_duration().as_secs_f64());
        }
    }

    /// Whether a requester may exempt was asked.
    pub fn access_reviewed(&self, result: &'static str) {
        self.access_reviews
            .get_or_create(&AccessLabels { result })
            .inc();
    }

    /// An answer was ready.
    pub fn took(&self, endpoint: &'static str, elapsed: Duration) {
        self.durations
            .get_or_create(&EndpointLabels { endpoint })
            .observe(elapsed.as_secs_f64());
    }

    /// A request was no admission review.
    pub fn refused(&self, endpoint: &'static str, code: u16) {
        self.refusals
            .get_or_create(&RefusalLabels {
                endpoint,
                code: code.into(),
            })
            .inc();
    }

    /// Counts and bounds the admission requests under way.
    pub fn in_flight(&self, limit: u32) -> Gate {
        Gate::new(limit, self.in_flight.clone())
    }

    /// Counts and bounds those of them that are large.
    pub fn large_in_flight(&self, limit: u32) -> Gate {
        Gate::new(limit, self.large_in_flight.clone())
    }

    /// Counts and bounds the bytes of bodies.
    pub fn body_bytes(&self, limit: u64) -> Bodies {
        Bodies::new(limit, self.body_bytes.clone())
    }

    /// A request was answered without a verdict, for this reason of a fixed set.
    pub fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ShedLabels { reason }).inc();
    }

    /// Counts and bounds the connections to the admission port.
    pub fn connections(&self, limit: u32) -> Connections {
        Connections::new(limit, self.connections.clone())
    }

    /// A rule panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Another policy is in force.
    pub fn policy(&self, policy: &Policy) {
        self.policy.clear();
        self.policy
            .get_or_create(&PolicyLabels {
                hash: policy.hash().to_owned(),
                mode: policy.mode.as_str(),
            })
            .set(1);
    }

    /// The policy file was read again, or could not be and what was in force stays.
    pub fn policy_read(&self, taken: bool) {
        let result = if taken { "taken" } else { "failed" };
        self.policy_reloads
            .get_or_create(&ReloadLabels { result })
            .inc();
        self.policy_stale.set(i64::from(!taken));
    }

    /// Whether this replica is the one that audits.
    pub fn audit_leading(&self, leads: bool) {
        self.audit_leading.set(i64::from(leads));
    }

    /// A look at the whole cluster has ended.
    pub fn audit_took(&self, elapsed: Duration, complete: bool) {
        self.audit_seconds.set(elapsed.as_secs_f64());
        self.audit_complete.set(i64::from(complete));
    }

    /// What there is to find in the cluster: rule, level, namespace and how often.
    pub fn audit_findings<'l>(
        &self,
        counts: impl Iterator<Item = ((&'l str, &'l str, &'l str), i64)>,
    ) {
        self.audit_findings.clear();
        for ((rule, level, namespace), count) in counts {
            let labels = AuditLabels {
                rule: rule.to_owned(),
                level: level.to_owned(),
                namespace: namespace.to_owned(),
            };
            self.audit_findings.get_or_create(&labels).set(count);
        }
    }

    /// Another certificate is served.
    pub fn certificate(&self, end: SystemTime) {
        self.certificate_end.set(seconds(end));
    }

    /// Another authority signs.
    pub fn authority(&self, end: SystemTime) {
        self.authority_end.set(seconds(end));
    }

    /// A step was made about the authority.
    pub fn authority_step(&self, step: &'static str) {
        self.authority_steps
            .get_or_create(&StepLabels { step })
            .inc();
    }

    /// A source of certificates was looked at.
    pub fn certificate_looked(&self, source: &'static str, well: bool) {
        let labels = CertificateLabels { source };
        let failures = self.certificate_failures.get_or_create(&labels);
        if !well {
            failures.inc();
        }
        self.certificate_stale
            .get_or_create(&labels)
            .set(i64::from(!well));
    }

    /// The webhook configurations were written, or could not be.
    pub fn registered(&self, written: bool) {
        self.registered.set(i64::from(written));
    }

    /// This is all that others changed in the webhook configurations and stays so: configuration, field
    /// and state.
    pub fn registration_drift(
        &self,
        all: impl Iterator<Item = (&'static str, &'static str, &'static str)>,
    ) {
        self.registration_drift.clear();
        for (configuration, field, state) in all {
            let labels = DriftLabels {
                configuration,
                field,
                state,
            };
            self.registration_drift.get_or_create(&labels).inc();
        }
    }

    /// Something that others changed in a webhook configuration was put right.
    pub fn registration_undone(&self, configuration: &'static str, field: &'static str) {
        let labels = UndoneLabels {
            configuration,
            field,
        };
        self.registration_undone.get_or_create(&labels).inc();
    }

    /// Whether the webhook configurations belong to another install.
    pub fn registration_of_another(&self, another: bool) {
        self.registration_of_another.set(i64::from(another));
    }

    /// Whether changes of a webhook configuration are seen at once.
    pub fn registration_watched(&self, configuration: &'static str, well: bool) {
        let labels = ConfigurationLabels { configuration };
        self.registration_watched
            .get_or_create(&labels)
            .set(i64::from(well));
    }

    /// How the watch of a resource (`<plural>.<group>`) fares, and how many objects it keeps.
    pub fn watched(&self, resource: &str, synced: bool, failing: Duration, objects: usize) {
        let labels = WatchLabels {
            resource: resource.to_owned(),
        };
        self.watch_synced
            .get_or_create(&labels)
            .set(i64::from(synced));
        self.watch_failing
            .get_or_create(&labels)
            .set(failing.as_secs_f64());
        self.watch_objects
            .get_or_create(&labels)
            .set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// In the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Seconds of the epoch.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
