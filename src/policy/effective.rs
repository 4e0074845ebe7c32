//! What a policy comes to: every level and parameter, defaults included, as a document.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Policy, RuleLevel};
use crate::{
    facts::Facts,
    rules::{RULES, Rule},
};

impl Policy {
    /// The level of a rule where no override holds.
    pub fn level(&self, rule: &Rule) -> RuleLevel {
        self.settings
            .get(rule.id)
            .map_or(RuleLevel::Off, |setting| setting.level)
    }

    /// The parameters of a rule where no override holds, whole.
    pub fn params(&self, rule: &Rule) -> Value {
        let setting = self.settings.get(rule.id);
        setting.map_or(Value::Null, |setting| (rule.params.write)(&setting.params))
    }

    /// The whole policy as a policy file that says everything. For a namespace it is what holds there at
    /// this moment: its overrides and restores are taken in, and so is whether it serves production
    /// traffic.
    pub fn written_out(&self, namespace: Option<(&str, &Facts, Timestamp)>) -> Value {
        let mut document = serde_json::to_value(&self.file).unwrap_or_default();
        let rules: Map<String, Value> = RULES
            .iter()
            .map(|rule| {
                let (level, params) = match namespace {
                    Some((name, facts, _)) => {
                        let effective = self.effective_in(rule, Some(name), facts);
                        effective.map_or((RuleLevel::Off, Value::Null), |effective| {
                            (effective.level, (rule.params.write)(effective.params))
                        })
                    }
                    None => (self.level(rule), self.params(rule)),
                };
                let mut setting = Map::from_iter([("level".to_owned(), json!(level))]);
                if params.as_object().is_some_and(|params| !params.is_empty()) {
                    setting.insert("params".to_owned(), params);
                }
                (rule.id.to_owned(), Value::Object(setting))
            })
            .collect();
        if let Some(members) = document.as_object_mut() {
            members.insert("rules".to_owned(), Value::Object(rules));
            if let Some((name, facts, now)) = namespace {
                members.insert("overrides".to_owned(), json!([]));
                let mode = self.mode_in(Some(name), facts, now);
                members.insert("mode".to_owned(), json!(mode));
                // Those that say why, narrowed to this namespace.
                let restores: Vec<Value> = self
                    .restores_in(name, now)
                    .map(|restore| restore.narrowed(name))
                    .collect();
                members.insert("restore".to_owned(), json!(restores));
                let production = if self.is_production(name, facts) {
                    json!({"namespaces": [name], "namespaceSelector": {"matchLabels": {}}})
                } else {
                    json!({"namespaces": [], "namespaceSelector": {"matchLabels": {}}})
                };
                members.insert("production".to_owned(), production);
                let queues: Map<String, Value> = self
                    .queue_for(name)
                    .map(|queue| (name.to_owned(), json!(queue)))
                    .into_iter()
                    .collect();
                if let Some(scheduler) = members
                    .get_mut("gangScheduler")
                    .and_then(Value::as_object_mut)
                {
                    scheduler.insert("queues".to_owned(), Value::Object(queues));
                }
            }
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::API_VERSION;

    fn policy(members: &Value) -> Policy {
        let mut document = json!({"apiVersion": API_VERSION, "kind": "Policy"});
        for (key, value) in members.as_object().unwrap() {
            document[key] = value.clone();
        }
        Policy::from_document(&document).unwrap()
    }

    #[test]
    fn what_is_written_out_is_a_policy_of_the_same_meaning() {
        let said = json!({
            "mode": "dryRun",
            "rules": {"termination-grace": {"level": "deny", "params": {"minimumSeconds": 240}}},
            "overrides": [{"namespaces": ["a"], "rules": {"gang-scheduling": {"level": "off"}}}],
            "gangScheduler": {"name": "volcano", "version": "1.14", "queues": {"*": "q"}},
            "warmPools": ["a/Deployment/spare"],
        });
        for members in [json!({}), said] {
            let first = policy(&members);
            let whole = first.written_out(None);
            let second = Policy::from_document(&whole).unwrap();
            assert_eq!(second.written_out(None), whole);
            for rule in RULES {
                assert_eq!(second.level(rule), first.level(rule), "{}", rule.id);
                assert_eq!(second.params(rule), first.params(rule), "{}", rule.id);
                assert!(whole["rules"][rule.id]["level"].is_string(), "{}", rule.id);
            }
        }
    }

    #[test]
    fn for_a_namespace_it_is_what_holds_there() {
        let policy = policy(&json!({
            "overrides": [
                {"namespaces": ["team-*"], "rules": {"gang-scheduling": {"level": "warn"}}},
                {"namespaceSelector": {"matchLabels": {"tier": "test"}},
                    "rules": {"gang-scheduling": {"level": "off"}}},
            ],
            "production": {"namespaces": ["team-a"]},
            "gangScheduler": {"queues": {"team-*": "teams"}},
        }));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "team-b", "labels": {"tier": "test"}}});
        let facts = Facts::from_documents([&std::sync::Arc::new(namespace)]);
        let of = |name: &str| policy.written_out(Some((name, &facts, Timestamp::UNIX_EPOCH)));
        let level = |name: &str| of(name)["rules"]["gang-scheduling"]["level"].clone();
        assert_eq!(level("team-a"), "warn");
        assert_eq!(level("team-b"), "off");
        assert_eq!(level("other"), "deny");
        assert_eq!(of("team-a")["overrides"], json!([]));
        assert_eq!(of("team-a")["production"]["namespaces"], json!(["team-a"]));
        assert_eq!(of("team-b")["production"]["namespaces"], json!([]));
        assert_eq!(
            of("team-a")["gangScheduler"]["queues"],
            json!({"team-a": "teams"})
        );
        assert_eq!(of("other")["gangScheduler"]["queues"], json!({}));
    }

    #[test]
    fn for_a_namespace_that_is_restored_it_says_so_and_why() {
        let entry = |namespaces: Value, until: &str| json!({"namespaces": namespaces, "until": until, "owner": "sre", "reason": "a backup"});
        let policy = policy(&json!({"restore": [
            entry(json!(["team-*"]), "2027-01-31"),
            entry(json!(["team-a", "other"]), "2027-01-20"),
        ]}));
        let now = "2027-01-28T00:00:00Z".parse().unwrap();
        let of = |name: &str| policy.written_out(Some((name, &Facts::unknown(), now)));
        let team = of("team-a");
        assert_eq!(team["mode"], "dryRun");
        assert_eq!(
            team["restore"],
            json!([entry(json!(["team-a"]), "2027-01-31")])
        );
        let other = of("other");
        assert_eq!(
            (&other["mode"], &other["restore"]),
            (&json!("enforce"), &json!([]))
        );
        assert!(Policy::from_document(&team).is_ok());
    }
}
