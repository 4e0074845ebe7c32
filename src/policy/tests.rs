use std::fmt::Write as _;

use serde_json::json;

use super::*;

fn with(members: Value) -> Result<Policy, PolicyError> {
    let Value::Object(members) = members else {
        panic!("members")
    };
    let mut document = json!({"apiVersion": API_VERSION, "kind": "Policy"});
    document.as_object_mut().unwrap().extend(members);
    Policy::from_document(&document)
}

fn error(members: Value) -> (String, String) {
    let error = with(members).unwrap_err();
    (error.path.to_string(), error.message)
}

#[test]
fn the_embedded_default_is_valid_and_says_what_silence_means() {
    let document: Value = serde_saphyr::from_str(DEFAULT).unwrap();
    let written = Policy::from_document(&document).unwrap();
    let silent = with(json!({})).unwrap();
    assert_eq!(written.mode, silent.mode);
    assert_eq!(written.existing_violations, silent.existing_violations);
    assert_eq!(written.gang_scheduler, silent.gang_scheduler);
    for rule in RULES {
        assert_eq!(
            written.settings[rule.id].level, silent.settings[rule.id].level,
            "{}",
            rule.id
        );
    }
}

#[test]
fn errors_name_the_place() {
    assert_eq!(error(json!({"mod": "enforce"})).0, "mod");
    assert_eq!(error(json!({"mode": "enforcing"})).0, "mode");
    assert_eq!(
        error(json!({"rules": {"no-such-rule": {}}})).0,
        "rules.no-such-rule"
    );
    assert_eq!(
        error(json!({"gangScheduler": {"version": "new"}})).0,
        "gangScheduler.version"
    );
    assert_eq!(
        error(json!({"overrides": [{"rules": {}}]})).0,
        "overrides[0]"
    );
    assert_eq!(
        error(json!({"overrides": [{"namespaces": ["a{"]}]})).0,
        "overrides[0].namespaces[0]"
    );
    assert_eq!(error(json!({"kind": "Policies"})).0, "kind");
    assert_eq!(
        error(json!({"catalog": {"metrics": [{"names": ["x"]}]}})).0,
        "catalog.metrics[0]"
    );
}

#[test]
fn errors_name_the_word_that_may_have_been_meant() {
    let said = |members: Value, meant: &str| {
        let (_, message) = error(members);
        let says = format!("did you mean {meant}?");
        assert!(message.ends_with(&says), "{message}");
    };
    said(json!({"existingViolation": "warn"}), "`existingViolations`");
    said(json!({"mode": "dry-run"}), "`dryRun`");
    said(
        json!({"gangScheduler": {"single_pod": "auto"}}),
        "`singlePod`",
    );
    said(
        json!({"rules": {"gpu-utilisation-signal": {}}}),
        "gpu-utilization-signal",
    );
    said(
        json!({"rules": {"termination-grace": {"params": {"minimum-seconds": 5}}}}),
        "`minimumSeconds`",
    );
    let (_, far) = error(json!({"xyz": 1}));
    assert!(!far.contains("did you mean"), "{far}");
    let (_, far) = error(json!({"rules": {"xyz": {}}}));
    assert!(
        far.contains("the rules are gpu-utilization-signal, "),
        "{far}"
    );
}

#[test]
fn parameters_out_of_bounds_are_refused() {
    let with_grace = |seconds: i64| json!({"rules": {"termination-grace": {"params": {"minimumSeconds": seconds}}}});
    let path = "rules.termination-grace.params.minimumSeconds".to_owned();
    let refused = |seconds, why: &str| {
        assert_eq!(error(with_grace(seconds)), (path.clone(), why.to_owned()));
    };
    refused(0, "is 0; the least is 1");
    refused(100_000, "is 100000; the most is 86400");
    assert!(error(with_grace(-1)).1.contains("invalid value"), "no u64");
    assert!(with(with_grace(1)).is_ok());
}

#[test]
fn an_exemption_of_namespaces_is_read_strictly() {
    let good = json!({
        "namespaces": ["team-*"], "rules": ["gang-scheduling"], "until": "2027-01-31",
        "owner": "team-llm", "reason": "migration",
    });
    let with_member = |key: &str, value: Value| {
        let mut one = good.clone();
        one[key] = value;
        json!({"exemptions": {"namespaces": [good.clone(), one]}})
    };
    let policy = with(with_member("until", json!("2027-12-31"))).unwrap();
    let exempted = policy
        .exemptions()
        .of_namespace(Some("team-a"), "gang-scheduling")
        .unwrap();
    assert_eq!(
        exempted.terms.until.to_string(),
        "2027-12-31",
        "the longest"
    );
    let of = |namespace, rule| policy.exemptions().of_namespace(namespace, rule).is_some();
    assert!(!of(Some("other"), "gang-scheduling"));
    assert!(!of(Some("team-a"), "gpu-utilization-signal"));
    assert!(!of(None, "gang-scheduling"), "cluster-scoped");
    let mut text = String::new();
    for (key, value) in [
        ("until", json!("31.01.2027")),
        ("until", json!("2027-02-30")),
        ("until", json!(20_270_131)),
        ("until", json!("")),
        ("namespaces", json!([])),
        ("namespaces", json!(["a{"])),
        ("rules", json!([])),
        ("rules", json!(["gang-schedulling"])),
        ("rules", json!(["exemption-malformed"])),
        ("owner", json!(" ")),
        ("reason", json!("")),
        ("rule", json!("gang-scheduling")),
    ] {
        let (path, message) = error(with_member(key, value));
        writeln!(text, "{path}: {message}").unwrap();
    }
    let without = json!({"exemptions": {"namespaces": [{"namespaces": ["a"]}]}});
    let (path, message) = error(without);
    writeln!(text, "{path}: {message}").unwrap();
    insta::assert_snapshot!(text);
}

#[test]
fn an_exact_namespace_wins_over_patterns_and_longer_patterns_over_shorter() {
    let queues = json!({"*": "rest", "team-*": "teams", "team-a": "a"});
    let policy = with(json!({"gangScheduler": {"queues": queues}})).unwrap();
    assert_eq!(policy.queue_for("team-a"), Some("a"));
    assert_eq!(policy.queue_for("team-b"), Some("teams"));
    assert_eq!(policy.queue_for("other"), Some("rest"));
    assert_eq!(with(json!({})).unwrap().queue_for("team-a"), None);
}

#[test]
fn a_bare_off_is_off_and_not_a_boolean() {
    let rule = RULES[0];
    for level in [json!("off"), json!(false)] {
        let policy = with(json!({"rules": {rule.id: {"level": level}}})).unwrap();
        assert_eq!(policy.settings[rule.id].level, RuleLevel::Off);
    }
    for level in [json!("loud"), json!(true), json!(1)] {
        let (path, message) = error(json!({"rules": {rule.id: {"level": level}}}));
        assert_eq!(path, format!("rules.{}.level", rule.id));
        assert!(message.contains("deny, warn, audit or off"), "{message}");
    }
}

#[test]
fn the_examples_are_policies() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/examples");
    let mut seen = 0;
    for file in std::fs::read_dir(examples).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let document: Value = serde_saphyr::from_str(&text).unwrap();
        if let Err(error) = Policy::from_document(&document) {
            panic!("{}: {error}", path.display());
        }
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn a_namespace_may_be_enforced_before_the_others() {
    let policy = with(json!({"mode": "dryRun", "overrides": [
        {"namespaces": ["team-*"], "mode": "enforce"},
        {"namespaces": ["team-late"], "mode": "dryRun"},
        {"namespaces": ["team-a"], "rules": {}},
    ]}))
    .unwrap();
    let mode = |namespace| policy.mode_in(namespace, &Facts::unknown(), Timestamp::UNIX_EPOCH);
    assert_eq!(mode(Some("team-a")), Mode::Enforce);
    assert_eq!(mode(Some("team-late")), Mode::DryRun, "the last one wins");
    assert_eq!(mode(Some("other")), Mode::DryRun);
    assert_eq!(
        mode(None),
        Mode::DryRun,
        "cluster-scoped objects match none"
    );
    let gang = rules::rule("gang-scheduling").unwrap();
    let pools = rules::rule("gpu-pool-consolidation").unwrap();
    assert!(gang.kinds.iter().all(|kind| policy.may_deny(gang, kind)));
    assert!(!pools.kinds.iter().any(|kind| policy.may_deny(pools, kind)));
}

#[test]
fn the_hash_follows_the_content() {
    let hash = |members| with(members).unwrap().hash().to_owned();
    assert_eq!(hash(json!({})), hash(json!({})));
    assert_ne!(hash(json!({})), hash(json!({"mode": "dryRun"})));
}

fn restoring(until: &str) -> Value {
    json!({"mode": "enforce", "restore": [{
        "namespaces": ["team-*", "web"], "until": until, "owner": "sre", "reason": "rebuilt from backup",
    }]})
}

#[test]
fn a_restore_holds_in_its_namespaces_for_seven_days_at_most_and_ends() {
    let policy = with(restoring("2027-01-31")).unwrap();
    let mode =
        |namespace, now: &str| policy.mode_in(namespace, &Facts::unknown(), now.parse().unwrap());
    let (dry, enforced) = (Mode::DryRun, Mode::Enforce);
    let today = "2027-01-28T12:00:00Z";
    assert_eq!(mode(Some("team-a"), today), dry);
    assert_eq!(mode(Some("web"), today), dry);
    assert_eq!(mode(Some("website"), today), enforced);
    assert_eq!(
        mode(None, today),
        enforced,
        "cluster-scoped objects match none"
    );
    for (now, expected) in [
        ("2027-01-23T23:59:59Z", enforced),
        ("2027-01-24T00:00:00Z", dry),
        ("2027-01-31T23:59:59Z", dry),
        ("2027-02-01T00:00:00Z", enforced),
    ] {
        assert_eq!(mode(Some("web"), now), expected, "{now}");
        let near = now >= "2027-01-24";
        assert_eq!(
            policy.check_dates(now.parse().unwrap()).is_ok(),
            near,
            "{now}"
        );
    }
}

#[test]
fn a_restore_is_stronger_than_an_override_and_leaves_the_registration_alone() {
    let mut members = restoring("2027-01-31");
    members["mode"] = json!("dryRun");
    members["overrides"] = json!([{"namespaces": ["web"], "mode": "enforce"}]);
    let (restored, before) = (with(members.clone()).unwrap(), {
        members["restore"] = json!([]);
        with(members).unwrap()
    });
    let now = "2027-01-30T00:00:00Z".parse().unwrap();
    let mode = |policy: &Policy| policy.mode_in(Some("web"), &Facts::unknown(), now);
    assert_eq!(
        (mode(&restored), mode(&before)),
        (Mode::DryRun, Mode::Enforce)
    );
    // It ends without anybody registering anew: whatever may be denied then is sent now.
    for rule in RULES {
        for kind in rule.kinds {
            assert_eq!(restored.may_deny(rule, kind), before.may_deny(rule, kind));
            assert_eq!(restored.may_run(rule, kind), before.may_run(rule, kind));
        }
    }
}

#[test]
fn a_restore_is_read_strictly_and_said_aloud() {
    let mut text = String::new();
    for (member, value) in [
        ("until", json!("31.01.2027")),
        ("until", json!("2027-02-30")),
        ("until", json!(20_270_131)),
        ("namespaces", json!([])),
        ("namespaces", json!("web")),
        ("namespaces", json!(["a{"])),
        ("owner", json!(" ")),
        ("reason", json!("")),
        ("rules", json!(["gang-scheduling"])),
    ] {
        let mut members = restoring("2027-01-31");
        members["restore"][0][member] = value;
        let (path, message) = error(members);
        writeln!(text, "{path}: {message}").unwrap();
    }
    let (path, message) = error(json!({"restore": [{"namespaces": ["a"]}]}));
    writeln!(text, "{path}: {message}").unwrap();
    let policy = with(restoring("2027-01-31")).unwrap();
    for day in ["2027-01-01", "2027-01-28", "2027-02-01"] {
        let now = format!("{day}T00:00:00Z").parse().unwrap();
        for line in policy.reminders(now) {
            writeln!(text, "{day}: {line}").unwrap();
        }
        if let Err(PolicyError { path, message }) = policy.check_dates(now) {
            writeln!(text, "{day}: {path}: {message}").unwrap();
        }
    }
    insta::assert_snapshot!(text);
}
