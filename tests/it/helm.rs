//! A chart with a GPU NodePool that says nothing of disruption, through Helm itself: by server-side
//! apply, its default since Helm 4, and by three-way merge, as Helm 3 does it.
//!
//! Helm is built on first use, beside kube-apiserver and etcd and while the other tests run.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{enforce::guarded, harness::Helm};

const TEMPLATE: &str = "\
apiVersion: karpenter.sh/v1
kind: NodePool
metadata:
  name: {{ .Release.Name }}
spec:
  {{- with .Values.disruption }}
  disruption: {{ toJson . }}
  {{- end }}
  limits:
    nvidia.com/gpu: {{ .Values.gpus }}
  template:
    spec:
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
      requirements:
      - {key: karpenter.k8s.aws/instance-family, operator: In, values: [p5]}
";

/// The releases of one chart.
struct Releases {
    helm: Helm,
    chart: String,
}

impl Releases {
    fn of(chart: &str) -> Result<Self> {
        let helm = Helm::of(&guarded()?.cluster)?;
        let chart = helm.chart(chart, TEMPLATE)?;
        let chart = chart.to_str().context("a path of letters")?.to_owned();
        Ok(Self { helm, chart })
    }

    /// `helm install` or `helm upgrade`; what it said.
    fn run(&self, verb: &str, release: &str, values: &Value, more: &[&str]) -> Result<String> {
        let disruption = format!("disruption={}", values["disruption"]);
        let gpus = format!("gpus={}", values["gpus"]);
        let mut args = vec![verb, release, &self.chart, "--set-json", &gpus];
        if !values["disruption"].is_null() {
            args.extend(["--set-json", &disruption]);
        }
        args.extend(more);
        let answer = self.helm.run(&args)?;
        ensure!(answer.accepted(), "{}", answer.stderr);
        Ok(answer.stdout + &answer.stderr)
    }
}

fn held(release: &str) -> Result<Value> {
    guarded()?
        .cluster
        .kubectl()
        .get(&format!("nodepool/{release}"))
}

fn safe() -> Value {
    json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1h", "budgets": [{"nodes": "10%"}]})
}

/// Installs, upgrades without a change, with another limit, and with policies that somebody wrote.
fn goes_through_its_life(release: &str, server_side: &str) -> Result<()> {
    let releases = Releases::of(release)?;
    let silent = json!({"gpus": 8});
    releases.run("install", release, &silent, &[server_side])?;
    let first = held(release)?;
    assert_eq!(first["spec"]["disruption"], safe());
    let taints = json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]);
    assert_eq!(first["spec"]["template"]["spec"]["taints"], taints);

    releases.run("upgrade", release, &silent, &[server_side])?;
    let again = held(release)?;
    assert_eq!(again["spec"], first["spec"]);
    assert_eq!(
        again["metadata"]["generation"], first["metadata"]["generation"],
        "an upgrade without a change changed it"
    );

    releases.run("upgrade", release, &json!({"gpus": 16}), &[server_side])?;
    let grown = held(release)?;
    assert_eq!(grown["spec"]["limits"]["nvidia.com/gpu"], 16);
    assert_eq!(grown["spec"]["disruption"], safe());
    assert_eq!(grown["spec"]["template"], first["spec"]["template"]);

    let evicting = |after: &str| {
        json!({"gpus": 16, "disruption": {
            "consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": after,
        }})
    };
    let denied = |after: &str| -> Result<()> {
        let answer = releases.run("upgrade", release, &evicting(after), &[server_side]);
        let denied = answer
            .expect_err("an evicting policy was let in")
            .to_string();
        assert!(
            denied.contains("gpu-pool-consolidation: spec.disruption.consolidationPolicy is"),
            "{denied}"
        );
        Ok(())
    };
    denied("5m")?;
    assert_eq!(held(release)?["spec"], grown["spec"]);
    // The defaults, written out. Only server-side apply tells who wrote what; a merge that goes back
    // to every default looks like a file put again that is silent, and is answered like one: safely,
    // and not without a word.
    if server_side == "--server-side=true" {
        denied("0s")?;
    } else {
        let said = releases.run("upgrade", release, &evicting("0s"), &[server_side])?;
        assert!(
            said.contains("gpu-pool-consolidation: filled spec.disruption.consolidationPolicy"),
            "{said}"
        );
    }
    assert_eq!(held(release)?["spec"], grown["spec"]);

    let careful = json!({"consolidationPolicy": "WhenEmpty", "consolidateAfter": "3h"});
    let values = json!({"gpus": 16, "disruption": careful});
    releases.run("upgrade", release, &values, &[server_side])?;
    assert_eq!(
        held(release)?["spec"]["disruption"]["consolidateAfter"],
        "3h"
    );
    releases.helm.run(&["uninstall", release])?.success()?;
    Ok(())
}

#[test]
fn a_chart_goes_through_its_life_by_server_side_apply() -> Result<()> {
    goes_through_its_life("helm-server-side", "--server-side=true")
}

#[test]
fn a_chart_goes_through_its_life_by_three_way_merge() -> Result<()> {
    goes_through_its_life("helm-three-way", "--server-side=false")
}

#[test]
fn a_chart_that_evicts_is_not_installed() -> Result<()> {
    let releases = Releases::of("helm-evicts")?;
    assert!(Path::new(&releases.chart).is_dir());
    for server_side in ["--server-side=true", "--server-side=false"] {
        let disruption =
            json!({"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "5m"});
        let values = json!({"gpus": 8, "disruption": disruption});
        let denied = releases
            .run("install", "helm-evicts", &values, &[server_side])
            .expect_err("an evicting policy was let in")
            .to_string();
        assert!(
            denied.contains("gpu-pool-consolidation"),
            "{server_side}: {denied}"
        );
        releases.helm.run(&["uninstall", "helm-evicts"])?;
    }
    Ok(())
}
