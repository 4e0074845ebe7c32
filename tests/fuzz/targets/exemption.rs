//! The value of an annotation that exempts: by itself, and on an object that is at fault.

use gangplank::{
    exempt::{self, Fault, Terms},
    finding::Verdict,
    review::review,
    subject::Door,
};
use serde_json::json;

const RULE: &str = "gpu-utilization-signal";
const MAX_DAYS: u32 = 90;

pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parsed = Terms::parse(text);
    let (today, latest) = (
        exempt::today(super::now()),
        exempt::latest(super::now(), MAX_DAYS),
    );
    let mended = exempt::mended(text, super::now(), MAX_DAYS);
    match &parsed {
        Ok(terms) => {
            assert!(!terms.owner.is_empty() && !terms.reason.is_empty());
            assert_eq!(Terms::parse(&terms.to_string()).as_ref(), Ok(terms));
            assert_eq!(terms.is_over(super::now()), terms.until < today);
            assert_eq!(terms.is_over(super::now()), terms.end() <= super::now());
            if (today..=latest).contains(&terms.until) {
                assert_eq!(Terms::parse(&mended).as_ref(), Ok(terms), "{mended:?}");
            }
        }
        Err(faults) => {
            assert!(!faults.0.is_empty());
            assert!(faults.to_string().chars().count() < 1024, "{faults}");
        }
    }
    // What is advised can be taken as it is, once its gaps are filled.
    match Terms::parse(&mended) {
        Ok(terms) => assert!((today..=latest).contains(&terms.until), "{mended:?}"),
        Err(faults) => {
            let is_gap = |fault: &Fault| matches!(fault, Fault::Placeholder(..));
            assert!(faults.0.iter().all(is_gap), "{mended:?}: {faults}");
        }
    }
    assert_eq!(
        exempt::mended(&mended, super::now(), MAX_DAYS),
        mended,
        "it is mended for good"
    );

    let mut object = super::hpa("DCGM_FI_DEV_GPU_UTIL");
    object["metadata"]["annotations"] = json!({format!("{}{RULE}", exempt::PREFIX): text});
    for door in [Door::Mutate, Door::Validate, Door::Audit, Door::Check] {
        let subject = super::created(object.clone(), door).expect("a manifest");
        for facts in super::worlds() {
            super::examine(facts, &subject);
        }
    }
    // Only what can be read, is not over and does not reach too far exempts.
    let subject = super::created(object, Door::Check).expect("a manifest");
    let review = review(super::policy(), &super::worlds()[0], &subject, super::now());
    let counts = parsed.is_ok_and(|terms| (today..=latest).contains(&terms.until));
    assert_eq!(review.verdict() != Verdict::Deny, counts, "{review:?}");
}
