//! Model servers whose ranks cannot be told: said, never denied.

use super::Case;
use crate::{
    catalog::engines::Setting,
    finding::{Confidence, Finding},
    policy::SinglePod,
    rules::Findings,
    subject::pod_template::Count,
};

impl Case<'_, '_> {
    /// Somebody wrote how many ranks there are, but in a place that is not to be seen: a Secret, a
    /// ConfigMap or an image. An engine that decides for itself is no such case.
    pub(super) fn unknown(&self, out: &mut Findings) {
        let server = &self.serving.server;
        let Some(engine) = server.engine else { return };
        let parallelism = &server.parallelism;
        let several = parallelism.multi_node.is_some()
            || self.cx.policy.gang_scheduler.single_pod != SinglePod::Allow
                && matches!(self.serving.accelerators.units, Count::Known(units) if units > 1);
        if !several || self.is_placed() {
            return;
        }
        let unread = [
            &parallelism.tensor,
            &parallelism.pipeline,
            &parallelism.context,
            &parallelism.data,
        ]
        .into_iter()
        .filter(|degree| degree.count == Count::Unknown)
        .find_map(|degree| degree.path.as_ref());
        let Some(path) = unread else { return };
        let value = path.lookup(&self.cx.subject.value).cloned();
        let flag = engine
            .flags
            .get(&Setting::Tensor)
            .and_then(|all| all.first());
        // Where a script hides them, what it is given need not reach the engine.
        let script = value
            .as_ref()
            .and_then(|value| value.as_str())
            .filter(|text| text.contains('/') && !text.starts_with('-') && !text.contains(' '));
        let instead = match (script, flag) {
            (Some(script), _) => {
                format!("# the ConfigMap that holds {script}, checked together with this\n")
            }
            (None, Some(flag)) => format!(
                "args:\n- {flag}=<ranks>   # or in a ConfigMap that is checked together with this\n"
            ),
            (None, None) => String::new(),
        };
        let finding = Finding::new(
            path.clone(),
            format!(
                "How many ranks {} starts cannot be seen from here. If there are several, its pods \
                 belong on {}, and if they span pods they have to start as a gang.",
                server.title(),
                self.scheduler.title
            ),
        )
        .instead(instead)
        .confidence(Confidence::Unknown)
        .fingerprint("ranks-unseen");
        out.report(Finding { value, ..finding });
    }
}
