//! `gangplank check` as it is called: files, folders, standard input, exit codes.

use std::{fs, path::Path};

use assert_cmd::Command;
use serde_json::Value;

const DENIED: &str = "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: llm
  namespace: inference
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: llm}
  maxReplicas: 4
  metrics:
    - type: Pods
      pods:
        metric:
          name: DCGM_FI_DEV_GPU_UTIL
        target: {type: AverageValue, averageValue: \"70\"}
";

const FINE: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
";

pub(crate) fn gangplank(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gangplank"));
    command.current_dir(folder).env_clear();
    command
}

pub(crate) fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// Exit code, JSON report and standard error of a run.
fn json(folder: &Path, args: &[&str]) -> (i32, Value, String) {
    let output = gangplank(folder)
        .args(["check", "--output", "json"])
        .args(args)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (
        output.status.code().unwrap(),
        report,
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_denied_file_exits_1_and_points_at_the_line() {
    let folder = folder(&[("hpa.yaml", DENIED.as_bytes())]);
    let output = gangplank(folder.path())
        .args(["check", "hpa.yaml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    insta::assert_snapshot!("check-denied", String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_json_holds_what_it_promises() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}",
        DENIED.trim_end().replace('\n', "\n  ")
    );
    let stream = format!("---\n{FINE}---\n{list}\n");
    let folder = folder(&[("all.yaml", stream.as_bytes())]);
    let (code, report, _) = json(folder.path(), &["all.yaml"]);
    assert_eq!(code, 1);
    assert_eq!(report["apiVersion"], "gangplank.dev/v1");
    assert_eq!(report["summary"]["objects"], 2);
    assert_eq!(report["summary"]["denied"], 1);
    assert_eq!(
        report["summary"]["allowed"], 1,
        "counted though no rule speaks of its kind"
    );
    let results = report["results"].as_array().unwrap();
    assert_eq!(
        results.len(),
        1,
        "objects of kinds without a rule are not listed"
    );
    let result = &results[0];
    assert_eq!(
        (&result["file"], &result["document"], &result["item"]),
        (&"all.yaml".into(), &1.into(), &0.into())
    );
    assert_eq!(result["line"], 9);
    assert_eq!(result["object"]["kind"], "HorizontalPodAutoscaler");
    assert_eq!(result["object"]["namespace"], "inference");
    assert_eq!(result["verdict"], "deny");
    let finding = &result["findings"][0];
    assert_eq!(finding["rule"], "gpu-utilization-signal");
    assert_eq!(finding["level"], "deny");
    assert_eq!(finding["path"], "spec.metrics[0].pods.metric.name");
    assert_eq!(finding["value"], "DCGM_FI_DEV_GPU_UTIL");
    assert_eq!(finding["confidence"], "certain");
    assert!(!finding["instead"].as_str().unwrap().is_empty());
    assert_eq!(
        (
            &finding["filled"],
            &finding["ratcheted"],
            &finding["exempted"]
        ),
        (&false.into(), &false.into(), &Value::Null)
    );
    assert_eq!(
        (&result["patch"], &result["error"]),
        (&serde_json::json!([]), &Value::Null)
    );
}

#[test]
fn standard_input_is_a_file_named_dash() {
    let folder = folder(&[]);
    let output = gangplank(folder.path())
        .args(["check", "-o", "json", "-"])
        .write_stdin(DENIED)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &report["results"][0]["file"]),
        (Some(1), &"-".into())
    );
}

#[test]
fn a_folder_is_walked_in_order_and_what_is_no_manifest_is_counted() {
    let folder = folder(&[
        ("b/hpa.yml", DENIED.as_bytes()),
        (
            "a/config.json",
            br#"{"apiVersion": "v1", "kind": "ConfigMap"}"#,
        ),
        ("values.yaml", b"replicas: 3\n"),
        (".github/workflow.yaml", b"on: push\n"),
        ("chart/Chart.yaml", b"name: chart\n"),
        (
            "chart/templates/deploy.yaml",
            b"replicas: {{ .Values.replicas }}\n",
        ),
        ("notes.txt", b"not yaml: ["),
    ]);
    let (code, report, _) = json(folder.path(), &["."]);
    assert_eq!(code, 1);
    assert_eq!(report["summary"]["objects"], 2);
    assert_eq!(report["summary"]["errors"], 0);
    let output = gangplank(folder.path())
        .args(["check", "."])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, summary) = text.split_once("objects:").unwrap();
    assert_eq!(
        summary,
        " 1 denied, 0 warned, 1 allowed\n\
         passed by: 2 documents without apiVersion and kind\n\
         passed by: 1 template of charts; render them: helm template <chart> | gangplank check -\n"
    );
}

#[test]
fn what_cannot_be_read_says_where_and_why_and_the_rest_is_judged() {
    let folder = folder(&[
        (
            "broken.yaml",
            format!("{FINE}---\na:\n  b: 1\n c: 2\n---\n{DENIED}").as_bytes(),
        ),
        ("latin.yaml", b"apiVersion: v1\nkind: \xe9t\xe9\n"),
        ("values.yaml", b"replicas: 3\n"),
        ("empty.yaml", b"# nothing\n---\n"),
    ]);
    let args = [
        "broken.yaml",
        "latin.yaml",
        "values.yaml",
        "empty.yaml",
        "missing.yaml",
    ];
    let (code, report, _) = json(folder.path(), &args);
    assert_eq!(code, 2, "an error outranks a denial");
    assert_eq!(report["summary"]["errors"], 5);
    assert_eq!(report["summary"]["denied"], 1);
    let errors: Vec<(&str, &Value, &Value)> = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|result| result["verdict"] == "error")
        .map(|result| {
            (
                result["file"].as_str().unwrap(),
                &result["document"],
                &result["error"],
            )
        })
        .collect();
    assert_eq!(
        (errors[0].0, errors[0].1, &errors[0].2["line"]),
        ("broken.yaml", &1.into(), &7.into())
    );
    assert_eq!(
        (errors[1].0, &errors[1].2["line"], &errors[1].2["column"]),
        ("latin.yaml", &2.into(), &7.into())
    );
    for (error, says) in
        errors[1..]
            .iter()
            .zip(["UTF-8", "no Kubernetes object", "is empty", "cannot read"])
    {
        let message = error.2["message"].as_str().unwrap();
        assert!(
            message.contains(says) && message.starts_with(error.0),
            "{message}"
        );
    }
    let output = gangplank(folder.path())
        .arg("check")
        .args(args)
        .output()
        .unwrap();
    insta::assert_snapshot!("check-errors", String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_kind_that_is_misspelled_is_not_passed_over() {
    let folder = folder(&[(
        "all.yaml",
        format!("{FINE}---\n{}", DENIED.replace("kind: Hor", "knd: Hor")).as_bytes(),
    )]);
    let (code, report, _) = json(folder.path(), &["all.yaml"]);
    assert_eq!(
        (
            code,
            &report["summary"]["objects"],
            &report["summary"]["errors"]
        ),
        (2, &1.into(), &1.into())
    );
    assert_eq!(report["results"][0]["error"]["line"], 5);
    assert_eq!(
        json(folder.path(), &["."]).0,
        0,
        "a walk meets all sorts of YAML"
    );
}

#[test]
fn lists_of_one_kind_are_read_and_lists_in_lists_are_not_passed_over() {
    let item = DENIED
        .split_once("metadata")
        .unwrap()
        .1
        .trim_end()
        .replace('\n', "\n  ");
    let typed = format!(
        "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscalerList\nitems:\n- metadata{item}\n"
    );
    let nested = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: []}\n";
    let none = "apiVersion: v1\nkind: List\nitems: []\n";
    let folder = folder(&[
        ("typed.yaml", typed.as_bytes()),
        ("nested.yaml", nested.as_bytes()),
        ("none.yaml", none.as_bytes()),
    ]);
    let (code, report, _) = json(folder.path(), &["typed.yaml"]);
    assert_eq!(
        (code, &report["results"][0]["object"]["kind"]),
        (1, &"HorizontalPodAutoscaler".into())
    );
    let (code, report, _) = json(folder.path(), &["nested.yaml"]);
    assert_eq!(
        (code, &report["results"][0]["error"]["line"]),
        (2, &4.into())
    );
    assert_eq!(
        json(folder.path(), &["none.yaml"]).0,
        0,
        "nothing to judge is nothing wrong"
    );
}

#[cfg(unix)]
#[test]
fn links_to_nowhere_and_in_circles_do_not_disturb_a_walk() {
    let folder = folder(&[("a/fine.yaml", FINE.as_bytes())]);
    std::os::unix::fs::symlink("nowhere", folder.path().join("a/gone")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/round")).unwrap();
    let (code, report, _) = json(folder.path(), &["."]);
    assert_eq!(
        (code, &report["summary"]["errors"]),
        (0, &0.into()),
        "{report}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_written_is_a_failure() {
    let folder = folder(&[("fine.yaml", FINE.as_bytes())]);
    let full = fs::File::create("/dev/full").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gangplank"))
        .args(["check", "fine.yaml"])
        .current_dir(folder.path())
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("cannot write the report")
    );
}

#[test]
fn a_policy_is_read_strictly_and_obeyed() {
    let policy = |rules: &str| format!("apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n{rules}");
    let off = policy("rules:\n  gpu-utilization-signal: {level: off}\n");
    let team = policy(
        "overrides:\n- namespaces: [\"infer*\"]\n  rules: {gpu-utilization-signal: {level: warn}}\n",
    );
    let typo = policy("rules:\n  gpu-utilization-signal:\n    levle: warn\n");
    let unknown = policy("rules:\n  gpu-utilisation-signal: {level: warn}\n");
    let folder = folder(&[
        ("hpa.yaml", DENIED.as_bytes()),
        ("off.yaml", off.as_bytes()),
        ("team.yaml", team.as_bytes()),
        ("typo.yaml", typo.as_bytes()),
        ("unknown.yaml", unknown.as_bytes()),
        ("broken.yaml", b"mode: [\n"),
    ]);
    let with = |policy: &str| json(folder.path(), &["--policy", policy, "hpa.yaml"]);
    assert_eq!(
        (
            with("off.yaml").0,
            &with("off.yaml").1["summary"]["allowed"]
        ),
        (0, &1.into())
    );
    assert_eq!(
        (
            with("team.yaml").0,
            &with("team.yaml").1["summary"]["warned"]
        ),
        (0, &1.into())
    );
    for (file, says) in [
        (
            "typo.yaml",
            "typo.yaml:5:5: rules.gpu-utilization-signal.levle: unknown field `levle`",
        ),
        (
            "unknown.yaml",
            "unknown.yaml:4:3: rules.gpu-utilisation-signal: there is no rule",
        ),
        ("broken.yaml", "broken.yaml:"),
        ("none.yaml", "cannot read none.yaml"),
    ] {
        let (code, report, error) = with(file);
        assert_eq!((code, report), (2, Value::Null));
        assert!(error.starts_with(&format!("gangplank: {says}")), "{error}");
    }
}

#[test]
fn a_wrong_flag_exits_2_and_helps() {
    let folder = folder(&[]);
    for args in [
        &["check"][..],
        &["check", "--outptu", "json", "x"],
        &["chekc"],
    ] {
        let output = gangplank(folder.path()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            String::from_utf8(output.stderr).unwrap().contains("Usage"),
            "{args:?}"
        );
    }
}
