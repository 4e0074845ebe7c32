//! The reader of policy files: an error has a place, and a policy that is written out reads the same.

use gangplank::{
    cli::{self, PolicyText},
    policy::Policy,
    review::review,
    rules::RULES,
    subject::Door,
    webhook::registration::{Configurations, FailurePolicy, Reach, Registration},
};

fn read(text: &str) -> Result<Policy, String> {
    PolicyText {
        name: "policy.yaml",
        text,
    }
    .read(super::now())
}

pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let policy = match read(text) {
        Ok(policy) => policy,
        Err(error) => return placed(text, &error),
    };
    let whole = policy.written_out(None);
    let written = cli::policy::yaml(&whole).expect("a policy can be written");
    let again = read(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again.written_out(None), whole, "{written}");
    for rule in RULES {
        assert_eq!(again.level(rule), policy.level(rule));
        assert_eq!(again.params(rule), policy.params(rule));
    }
    assert_eq!(again.mode, policy.mode);
    assert_eq!(again.existing_violations, policy.existing_violations);
    assert_eq!(again.gang_scheduler, policy.gang_scheduler);
    assert_eq!(registered(&again), registered(&policy));
    let subject = super::created(super::hpa("DCGM_FI_DEV_GPU_UTIL"), Door::Check);
    let subject = subject.expect("a manifest");
    let ask = |policy| {
        let review = review(policy, &super::worlds()[0], &subject, super::now());
        (format!("{:?}", review.findings), review.patch)
    };
    assert_eq!(ask(&again), ask(&policy));
}

/// An error says where: the line and column, in the text.
fn placed(text: &str, error: &str) {
    if error.contains("is empty; ") || error.contains(" documents; ") {
        return;
    }
    let place = error.strip_prefix("policy.yaml:").expect("its name");
    let mut parts = place.splitn(3, ':');
    let mut number = || -> Option<usize> { parts.next()?.parse().ok() };
    let (line, column) = (number(), number());
    let (Some(line), Some(column)) = (line, column) else {
        panic!("no place: {error}");
    };
    assert!((1..=super::lines(text) + 1).contains(&line), "{error}");
    assert!(column >= 1, "{error}");
    let message = parts.next().unwrap_or_default().trim();
    assert!(!message.is_empty(), "{error}");
}

fn registered(policy: &Policy) -> Configurations {
    let registration = Registration {
        name: "gangplank".to_owned(),
        reach: Reach::Url("https://localhost".to_owned()),
        ca_bundle: None,
        annotations: std::collections::BTreeMap::new(),
        failure_policy: FailurePolicy::Fail,
        owner: None,
    };
    registration.configurations(policy)
}
