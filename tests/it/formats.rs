//! The reports of `gangplank check` for other programs, against their published schemas, and the
//! baseline.

use std::{path::Path, process::Command};

use quick_xml::{Reader, events::Event};
use serde_json::{Value, json};

use crate::check::{folder, gangplank};

/// A NodePool that evicts and one that says nothing, an HPA with a name that ends every format, and a
/// document that is broken.
const POOLS: &str = "apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: evicting}
spec:
  disruption: {consolidationPolicy: WhenEmptyOrUnderutilized, consolidateAfter: 1h}
  template:
    spec:
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
      requirements:
      - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, p4d]}
---
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {name: silent}
spec:
  limits: {nvidia.com/gpu: 8}
  template:
    spec:
      expireAfter: Never
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
      requirements:
      - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5, p4d]}
";

const HPA: &str = "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: \"a<b>&\\\"c\\u0007::error::\\n]]>\"
  namespace: team-a
  annotations:
    exempt.gangplank.dev/gpu-memory-signal: \"until=2999-01-31; owner=team-llm; reason=a <test> & more\"
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  maxReplicas: 4
  metrics:
  - type: Pods
    pods:
      metric: {name: DCGM_FI_DEV_GPU_UTIL}
      target: {type: AverageValue, averageValue: \"70\"}
  - type: Pods
    pods:
      metric: {name: DCGM_FI_DEV_FB_USED}
      target: {type: AverageValue, averageValue: \"70\"}
";

pub(crate) fn manifests() -> tempfile::TempDir {
    let unbounded = HPA.replace("2999-01-31", "2027-01-31");
    folder(&[
        ("live/pools.yaml", POOLS.as_bytes()),
        ("live/h p%a.yaml", unbounded.as_bytes()),
        (
            "live/broken.yaml",
            b"kind: HorizontalPodAutoscaler\nspec: [",
        ),
    ])
}

fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = gangplank(folder).arg("check").args(args).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The schema as OASIS publishes it, from the package of a library that is made from it.
fn sarif_schema() -> Value {
    // Other platforms' packages need not be here.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", host.unwrap()])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "serde-sarif")
        .unwrap();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let schema = manifest.parent().unwrap().join("src/schema.json");
    let text = std::fs::read_to_string(schema).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    // One pattern of the published schema is no regular expression (a bracket too many), of members
    // that we do not write.
    for holder in ["run", "toolComponent"] {
        let language = schema.pointer_mut(&format!("/definitions/{holder}/properties/language"));
        language.unwrap().as_object_mut().unwrap().remove("pattern");
    }
    schema
}

#[test]
fn sarif_is_valid_and_says_where_what_and_who_exempted_it() {
    let folder = manifests();
    let (code, out, err) = run(folder.path(), &["live", "-o", "sarif"]);
    assert_eq!((code, err.as_str()), (2, ""));
    let report: Value = serde_json::from_str(&out).unwrap();
    let validator = jsonschema::validator_for(&sarif_schema()).unwrap();
    let faults: Vec<String> = validator
        .iter_errors(&report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let mut wrong = report.clone();
    wrong["runs"][0]["results"][0]["level"] = json!("deny");
    assert!(!validator.is_valid(&wrong), "the schema is in force");

    let run = &report["runs"][0];
    assert_eq!(run["invocations"][0]["executionSuccessful"], false);
    let told = &run["invocations"][0]["toolExecutionNotifications"][0];
    let place = &told["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "live/broken.yaml");
    let results = run["results"].as_array().unwrap();
    let of = |rule: &str| -> Vec<&Value> {
        let found = results.iter().filter(|result| result["ruleId"] == rule);
        found.collect()
    };
    let denied = of("gpu-utilization-signal")[0];
    assert_eq!(denied["level"], "error");
    let place = &denied["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "live/h%20p%25a.yaml");
    assert_eq!(place["region"]["startLine"], 14);
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let index = usize::try_from(denied["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(rules[index]["id"], "gpu-utilization-signal");
    let exempt = of("gpu-memory-signal")[0];
    let why = exempt["suppressions"][0]["justification"].as_str().unwrap();
    assert_eq!(why, "a <test> & more (owner team-llm, until 2027-01-31)");
    let filled = of("gpu-pool-consolidation");
    let kinds: Vec<&Value> = filled.iter().map(|result| &result["kind"]).collect();
    assert_eq!(kinds, ["fail", "informational"]);
}

/// The elements of an XML text and their attributes, in order; whatever is not well-formed fails.
fn elements(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut reader = Reader::from_str(text);
    let mut found = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => return found,
            Event::Start(element) | Event::Empty(element) => {
                let name = element.name().as_ref().to_owned();
                let attributes = element.attributes().map(|attribute| {
                    let attribute = attribute.unwrap();
                    let key = attribute.key.as_ref().to_owned();
                    let value = attribute.value.clone().into_owned();
                    (
                        key,
                        quick_xml::escape::unescape(&value).unwrap().into_owned(),
                    )
                });
                found.push((name, attributes.collect()));
            }
            _ => {}
        }
    }
}

#[test]
fn junit_is_well_formed_and_counts() {
    let folder = manifests();
    let (code, out, _) = run(folder.path(), &["live", "-o", "junit"]);
    assert_eq!(code, 2);
    let elements = elements(&out);
    let attribute = |of: &[(String, String)], key: &str| {
        of.iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
    };
    let named = |wanted: &str| -> Vec<&Vec<(String, String)>> {
        let found = elements.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, attributes)| attributes).collect()
    };
    let root = named("testsuites")[0];
    let counts: Vec<_> = ["tests", "failures", "errors"]
        .iter()
        .map(|key| attribute(root, key).unwrap())
        .collect();
    assert_eq!(counts, ["4", "2", "1"]);
    assert_eq!(named("testsuite").len(), 3);
    assert_eq!(named("testcase").len(), 4);
    let rules: Vec<_> = named("failure")
        .iter()
        .map(|failure| attribute(failure, "type").unwrap())
        .collect();
    assert_eq!(rules, ["gpu-utilization-signal", "gpu-pool-consolidation"]);
    let name = attribute(named("testcase")[1], "name").unwrap();
    assert!(name.contains("a<b>&\"c"), "{name:?}");
}

#[test]
fn annotations_of_github_are_a_line_each() {
    let folder = manifests();
    let (code, out, _) = run(folder.path(), &["live", "-o", "github"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!("format-github", out);
}

#[test]
fn a_baseline_leaves_out_what_was_there_and_nothing_else() {
    let folder = manifests();
    let path = folder.path();
    std::fs::remove_file(path.join("live/broken.yaml")).unwrap();
    let (_, before, _) = run(path, &["live", "-o", "json"]);
    std::fs::write(path.join("known.json"), &before).unwrap();
    let with = |args: &[&str]| {
        let all = [&["live", "--baseline", "known.json", "-o", "json"], args].concat();
        let (code, out, err) = run(path, &all);
        (
            code,
            serde_json::from_str::<Value>(&out).unwrap_or(json!(err)),
        )
    };
    let (code, report) = with(&[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["summary"]["denied"], 0);
    assert!(report["summary"]["known"].as_u64().unwrap() > 4);

    // Lines move, lists are sorted anew, and one more of the same kind is found.
    let hpa = std::fs::read_to_string(path.join("live/h p%a.yaml")).unwrap();
    let moved = format!("# a comment\n\n{hpa}");
    std::fs::write(path.join("live/h p%a.yaml"), &moved).unwrap();
    assert_eq!(with(&[]).0, 0, "a line further down");
    let more = moved.replace(
        "metrics:\n",
        "metrics:\n  - type: Pods\n    pods:\n      metric: {name: DCGM_FI_PROF_GR_ENGINE_ACTIVE}\n      \
         target: {type: AverageValue, averageValue: \"70\"}\n",
    );
    std::fs::write(path.join("live/h p%a.yaml"), more).unwrap();
    let (code, report) = with(&[]);
    assert_eq!((code, &report["summary"]["denied"]), (1, &json!(1)));
    let found = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|result| result["findings"].as_array().unwrap())
        .find(|finding| finding["level"] == "deny")
        .unwrap();
    assert_eq!(found["path"], "spec.metrics[0].pods.metric.name");

    for (text, complaint) in [
        ("{", "is no JSON report"),
        (
            "{\"apiVersion\": \"v1\"}",
            "its apiVersion is not gangplank.dev/v1",
        ),
        (
            "{\"apiVersion\": \"gangplank.dev/v1\"}",
            "it has no results",
        ),
    ] {
        std::fs::write(path.join("known.json"), text).unwrap();
        let (code, said) = with(&[]);
        assert_eq!(code, 2);
        assert!(said.as_str().unwrap().contains(complaint), "{said}");
    }
}
