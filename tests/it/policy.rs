//! `gangplank policy` and `gangplank rules` as a process.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::check::{folder, gangplank};

/// Exit code, standard output and standard error of a run.
fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = gangplank(folder).args(args).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

const DEFAULT: &str = "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n";

#[test]
fn a_policy_that_is_wrong_is_told_where_and_what_may_have_been_meant() {
    let wrong: [(&str, &str, &str); 12] = [
        (
            "key.yaml",
            "existingViolation: deny\n",
            "key.yaml:3:1: existingViolation: unknown field",
        ),
        ("mode.yaml", "mode: dry-run\n", "did you mean `dryRun`?"),
        (
            "rule.yaml",
            "rules:\n  gpu-utilisation-signal: {level: warn}\n",
            "rule.yaml:4:3: rules.gpu-utilisation-signal: there is no rule \"gpu-utilisation-signal\"; \
             did you mean gpu-utilization-signal?",
        ),
        (
            "level.yaml",
            "rules:\n  gang-scheduling: {level: block}\n",
            "level.yaml:4:28: rules.gang-scheduling.level: a level is deny, warn, audit or off",
        ),
        (
            "param.yaml",
            "rules:\n  termination-grace:\n    params: {minimum-seconds: 5}\n",
            "did you mean `minimumSeconds`?",
        ),
        (
            "bounds.yaml",
            "rules:\n  termination-grace:\n    params: {minimumSeconds: 0}\n",
            "is 0; the least is 1",
        ),
        ("type.yaml", "warmPools: a/Deployment/b\n", "type.yaml:3:"),
        (
            "pattern.yaml",
            "overrides: [{namespaces: ['a{']}]\n",
            "overrides[0].namespaces[0]",
        ),
        (
            "none.yaml",
            "overrides: [{rules: {}}]\n",
            "names no namespace",
        ),
        (
            "twice.yaml",
            "mode: enforce\nmode: dryRun\n",
            "twice.yaml:4:1",
        ),
        ("broken.yaml", "rules: {\n", "broken.yaml:"),
        ("two.yaml", "---\na: 1\n", "holds 2 documents"),
    ];
    let files: Vec<(&str, String)> = wrong
        .iter()
        .map(|(name, members, _)| (*name, format!("{DEFAULT}{members}")))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, text)| (*name, text.as_bytes()))
        .chain([("right.yaml", DEFAULT.as_bytes())])
        .collect();
    let folder = folder(&files);
    let mut all = String::new();
    for (name, _, complaint) in wrong {
        let (code, out, err) = run(folder.path(), &["policy", "check", name]);
        assert_eq!((code, out.as_str()), (2, ""), "{name}: {err}");
        assert!(err.contains(complaint), "{name}: {err}");
        // The same at every other door.
        let (code, _, other) = run(folder.path(), &["check", "--policy", name, "-"]);
        assert_eq!((code, &other), (2, &err), "{name}");
        all.push_str(&err);
    }
    insta::assert_snapshot!("policy-errors", all);
    let (code, out, err) = run(
        folder.path(),
        &["policy", "check", "right.yaml", "mode.yaml", "missing.yaml"],
    );
    assert_eq!(code, 2);
    assert!(out.starts_with("right.yaml: ok, mode enforce, "), "{out}");
    assert!(err.contains("mode.yaml:3:7: mode: ") && err.contains("cannot read missing.yaml"));
    assert_eq!(run(folder.path(), &["policy", "check", "right.yaml"]).0, 0);
}

#[test]
fn what_is_shown_is_a_policy_file_of_the_same_meaning() {
    let policy = format!(
        "{DEFAULT}rules: {{termination-grace: {{level: deny, params: {{minimumSeconds: 240}}}}}}\n\
         overrides: [{{namespaceSelector: {{matchLabels: {{tier: test}}}}, \
         rules: {{gang-scheduling: {{level: warn}}}}}}]\n"
    );
    let folder = folder(&[("policy.yaml", policy.as_bytes())]);
    let show = |args: &[&str]| {
        let all = [&["policy", "show", "policy.yaml"], args].concat();
        let (code, out, err) = run(folder.path(), &all);
        assert_eq!((code, err.as_str()), (0, ""));
        out
    };
    let whole = show(&[]);
    insta::assert_snapshot!("policy-shown", whole);
    std::fs::write(folder.path().join("whole.yaml"), &whole).unwrap();
    assert_eq!(run(folder.path(), &["policy", "check", "whole.yaml"]).0, 0);
    assert_eq!(
        run(folder.path(), &["policy", "show", "whole.yaml"]).1,
        whole
    );

    let level = |args: &[&str]| {
        let shown: Value = serde_json::from_str(&show(args)).unwrap();
        shown["rules"]["gang-scheduling"]["level"].clone()
    };
    assert_eq!(level(&["-o", "json"]), "deny");
    assert_eq!(level(&["-o", "json", "-n", "a"]), "deny");
    let labelled = ["-o", "json", "-n", "a", "--namespace-label", "tier=test"];
    assert_eq!(level(&labelled), "warn");
    let (code, _, err) = run(
        folder.path(),
        &["policy", "show", "--namespace-label", "a=b"],
    );
    assert!(code == 2 && err.contains("--namespace"), "{err}");
}

/// A policy that has this namespace restored until a day so many days ahead.
fn restoring(namespace: &str, days: i64) -> String {
    let until = (Timestamp::now() + SignedDuration::from_hours(24 * days)).strftime("%Y-%m-%d");
    format!(
        "{DEFAULT}restore:\n- namespaces: [{namespace}]\n  until: \"{until}\"\n  owner: sre\n  \
         reason: rebuilt from the backup\n"
    )
}

#[test]
fn a_restore_is_refused_where_it_would_last_and_told_of_where_it_holds() {
    let folder = folder(&[
        ("far.yaml", restoring("team-*", 9).as_bytes()),
        ("near.yaml", restoring("team-*", 5).as_bytes()),
        ("over.yaml", restoring("team-*", -2).as_bytes()),
        ("default.yaml", DEFAULT.as_bytes()),
        ("live/objects.yaml", OBJECTS.as_bytes()),
    ]);
    let gangplank = |args: &[&str]| run(folder.path(), args);
    let (code, out, err) = gangplank(&["policy", "check", "far.yaml"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    let says = "far.yaml:5:10: restore[0].until: ";
    assert!(
        err.contains(says) && err.contains("is more than 7 days ahead"),
        "{err}"
    );
    // The same wherever a policy is read, `serve` among them: it does not start with it.
    for args in [
        &["check", "--policy", "far.yaml", "live"][..],
        &["serve", "--policy", "far.yaml"],
    ] {
        let (code, _, err) = gangplank(args);
        assert!(code == 2 && err.contains(says), "{args:?}: {code} {err}");
    }

    let (code, out, err) = gangplank(&["policy", "check", "near.yaml", "over.yaml"]);
    assert!(code == 0 && out.contains("near.yaml: ok"), "{out}{err}");
    let holds = "near.yaml: the policy's restore[0] (team-*; owner sre) holds through ";
    assert!(err.contains(holds), "{err}");
    assert!(
        err.contains("over.yaml: the policy's restore[0] (team-*; owner sre) ended with "),
        "{err}"
    );

    let shown = |file, namespace| -> Value {
        let args = ["policy", "show", file, "-o", "json", "-n", namespace];
        let shown: Value = serde_json::from_str(&gangplank(&args).1).unwrap();
        json!([shown["mode"], shown["restore"][0]["namespaces"]])
    };
    assert_eq!(shown("near.yaml", "team-a"), json!(["dryRun", ["team-a"]]));
    assert_eq!(shown("near.yaml", "other"), json!(["enforce", null]));
    assert_eq!(shown("over.yaml", "team-a"), json!(["enforce", null]));

    // Its end is what denies again, and a NodePool is denied all the while.
    let diff = |old, new| gangplank(&["policy", "diff", old, new, "live"]);
    let (code, out, _) = diff("near.yaml", "default.yaml");
    assert!(
        code == 1 && out.contains("warn -> deny: HorizontalPodAutoscaler"),
        "{out}"
    );
    assert!(!out.contains("NodePool"), "{out}");
    let (code, out, _) = diff("over.yaml", "default.yaml");
    assert!(
        code == 0 && out.starts_with("0 of 3 objects change"),
        "{out}"
    );
}

/// A NodePool that evicts, a pool that says nothing, and an HPA on GPU utilization.
const OBJECTS: &str = "apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: evicting}
spec:
  disruption: {consolidationPolicy: WhenEmptyOrUnderutilized, consolidateAfter: 1h}
  limits: {nvidia.com/gpu: 64}
  template:
    spec:
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
      expireAfter: Never
      requirements:
      - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, p4d]}
      taints: [{key: nvidia.com/gpu, effect: NoSchedule}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: chat, namespace: team-a}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  maxReplicas: 4
  metrics:
  - type: Pods
    pods:
      metric: {name: DCGM_FI_DEV_GPU_UTIL}
      target: {type: AverageValue, averageValue: \"70\"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
";

#[test]
fn a_diff_tells_which_verdicts_change() {
    let lax = format!(
        "{DEFAULT}rules:\n  gpu-pool-consolidation: {{level: off}}\n\
         overrides:\n- namespaces: [team-*]\n  rules: {{gpu-utilization-signal: {{level: warn}}}}\n"
    );
    let folder = folder(&[
        ("strict.yaml", DEFAULT.as_bytes()),
        ("lax.yaml", lax.as_bytes()),
        ("live/objects.yaml", OBJECTS.as_bytes()),
        ("broken/no.yaml", b"kind: ["),
    ]);
    let diff = |args: &[&str]| run(folder.path(), &[&["policy", "diff"], args].concat());
    let (code, out, err) = diff(&["lax.yaml", "strict.yaml", "live"]);
    assert_eq!((code, err.as_str()), (1, ""), "something is newly denied");
    insta::assert_snapshot!("policy-diff-stricter", out);
    let (code, out, _) = diff(&["strict.yaml", "lax.yaml", "live"]);
    assert_eq!(code, 0, "nothing is");
    insta::assert_snapshot!("policy-diff-laxer", out);
    let (code, out, _) = diff(&["strict.yaml", "strict.yaml", "live"]);
    assert_eq!(
        (code, out.as_str()),
        (
            0,
            "0 of 3 objects change: 0 newly denied, 0 no longer denied\n"
        )
    );
    let (code, out, _) = diff(&["lax.yaml", "strict.yaml", "live", "-o", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1);
    assert_eq!(
        report["summary"],
        json!({"objects": 3, "changed": 2, "newlyDenied": 2, "noLongerDenied": 0, "errors": 0})
    );
    let change = &report["results"][1];
    assert_eq!(change["object"]["name"], "chat");
    assert_eq!(
        (&change["old"], &change["new"]),
        (&json!("warn"), &json!("deny"))
    );
    assert_eq!(
        change["come"],
        json!([{"rule": "gpu-utilization-signal", "level": "deny",
            "path": "spec.metrics[0].pods.metric.name"}])
    );
    let (code, out, _) = diff(&["strict.yaml", "lax.yaml", "broken", "live"]);
    assert!(
        code == 2 && out.starts_with("error: broken/no.yaml:1: "),
        "{out}"
    );
    let (code, _, err) = diff(&["strict.yaml", "gone.yaml", "live"]);
    assert!(code == 2 && err.contains("cannot read gone.yaml"), "{err}");
}

#[test]
fn the_schema_is_the_one_that_is_kept_with_the_policies() {
    let folder = folder(&[]);
    let (code, out, _) = run(folder.path(), &["policy", "schema"]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/policy.schema.json");
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(code, 0);
    assert!(
        serde_json::from_str::<Value>(&out).unwrap() == kept,
        "run the docs test with UPDATE=1"
    );
}

#[test]
fn rules_are_listed_and_explained() {
    let policy = format!("{DEFAULT}rules: {{termination-grace: {{level: off}}}}\n");
    let folder = folder(&[("policy.yaml", policy.as_bytes())]);
    let rules = |args: &[&str]| run(folder.path(), &[&["rules"], args].concat());
    let (code, out, err) = rules(&[]);
    assert_eq!((code, err.as_str()), (0, ""));
    insta::assert_snapshot!("rules-listed", out);
    let (code, out, _) = rules(&["termination-grace", "--policy", "policy.yaml"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("rules-explained", out);
    let (code, out, err) = rules(&["termination-grave"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("did you mean termination-grace?"), "{err}");
    let (code, out, _) = rules(&["-o", "json", "termination-grace", "--policy", "policy.yaml"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    let rule = &report["rules"][0];
    assert_eq!(
        (
            &rule["level"],
            &rule["defaultLevel"],
            &rule["params"]["minimumSeconds"]
        ),
        (&json!("off"), &json!("warn"), &json!(180))
    );
    let (_, coloured, _) = rules(&["--color", "always"]);
    assert!(coloured.contains("\u{1b}[1m"));
}
