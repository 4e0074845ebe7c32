//! Exceptions from rules, and what is wrong with them.

use super::Context;
use crate::{
    catalog::controllers::controller_of,
    exempt::{self, Annotation, Terms},
    rules::{self, Rule},
    subject::Door,
};

pub mod exemption_expired;
pub mod exemption_malformed;
pub mod exemption_unused;

/// Whether a controller made the object: it would write the annotations of what it made it from again
/// for ever. What is wrong with them is denied there.
pub(crate) fn is_made<P>(cx: &Context<'_, P>) -> bool {
    controller_of(&cx.subject.value).is_some()
}

/// Whether this write brings an annotation or changes it. What lives in a cluster was let in before.
pub(crate) fn is_new<P>(cx: &Context<'_, P>, annotation: &Annotation<'_>) -> bool {
    if cx.subject.door == Door::Audit {
        return false;
    }
    let old = cx.subject.old.as_deref();
    old.and_then(|old| exempt::annotation(old, annotation.rule)) != Some(*annotation)
}

/// The annotations that exempt from some rule, as they should, over or not.
fn sound<'a, P>(
    cx: &Context<'a, P>,
) -> impl Iterator<Item = (Annotation<'a>, &'static Rule, Terms)> {
    exempt::annotations(&cx.subject.value).filter_map(|annotation| {
        let rule = rules::rule(annotation.rule).filter(|rule| exempt::is_exemptable(rule))?;
        Some((annotation, rule, annotation.terms().ok()?))
    })
}
