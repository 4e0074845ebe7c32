//! The admission contract, sentence by sentence, against a real API server: what it asks, what it gets
//! for an answer, and what it makes of that.
//!
//! The endpoints are the library's own behind a listener that keeps a copy of every question and
//! answer. The contract is Kubernetes' "Dynamic Admission Control" and `AdmissionReview` in k8s.io/api
//! admission/v1.

use std::{collections::BTreeSet, sync::OnceLock};

use anyhow::{Context as _, Result, anyhow, ensure};
use gangplank::policy::Policy;
use serde_json::{Value, json};

use crate::{
    enforce::{
        CLIENTS, at, denied_by, deployment, evicting, gang, hpa, node_pool, queue, reference,
        scaled_object,
    },
    harness::{Answer, Cluster, SOON, client, eventually},
    overheard::{Exchange, Overheard},
};

const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
const GOOD: &str = "vllm:num_requests_waiting";

/// What the API server passes on of one warning and of all, in characters (k8s.io/apiserver,
/// pkg/endpoints/filters/warning.go).
const WARNING: usize = 256;
const WARNINGS: usize = 4096;

fn overheard() -> Result<&'static Overheard> {
    static OVERHEARD: OnceLock<Result<Overheard, String>> = OnceLock::new();
    OVERHEARD
        .get_or_init(|| {
            let crds = |cluster: &Cluster| {
                cluster.install_crds()?;
                queue(cluster, "llm")
            };
            Overheard::start(true, Policy::default(), crds).map_err(|error| format!("{error:#}"))
        })
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// A member of two objects is the same in both.
fn same(left: &Value, right: &Value, member: &str) {
    assert_eq!(left[member], right[member], "{member}");
}

#[test]
fn the_answer_carries_the_uid_of_the_question() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("uid")?;
    kubectl
        .create(&hpa("uid-good", GOOD).to_string())?
        .success()?;
    denied_by(
        &kubectl.create(&hpa("uid-bad", BAD).to_string())?,
        "gpu-utilization-signal",
    );
    kubectl.create(&gang("uid-gang").to_string())?.success()?;
    let mut all = Vec::new();
    for reference in [
        "horizontalpodautoscaler/uid-good",
        "horizontalpodautoscaler/uid-bad",
        "deployment/uid-gang",
    ] {
        let about = overheard.about(reference);
        ensure!(!about.is_empty(), "{reference} was not asked about");
        all.extend(about);
    }
    let mut uids = BTreeSet::new();
    for Exchange {
        question, answer, ..
    } in &all
    {
        for member in ["apiVersion", "kind"] {
            same(question, answer, member);
        }
        same(&question["request"], &answer["response"], "uid");
        let members: Vec<&String> = answer.as_object().context("an object")?.keys().collect();
        assert_eq!(
            members,
            ["apiVersion", "kind", "response"],
            "no more comes back"
        );
        uids.insert(question["request"]["uid"].to_string());
    }
    // Each question has its own.
    assert_eq!(uids.len(), all.len());
    Ok(())
}

#[test]
fn a_patch_is_json_patch_and_declared_so() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("patch")?;
    kubectl.create(&gang("patched").to_string())?.success()?;
    let exchanges = overheard.at("/mutate", "deployment/patched");
    let [exchange] = exchanges.as_slice() else {
        return Err(anyhow!("{exchanges:?}"));
    };
    assert_eq!(exchange.response()["patchType"], "JSONPatch");
    let patch = exchange.patch()?;
    for operation in patch.as_array().context("a list")? {
        // Nothing that is there is taken away.
        assert!(["add", "replace", "test"].contains(&operation["op"].as_str().context("op")?));
    }
    // What is held is what the patch makes of the question.
    let mut made = exchange.request()["object"].clone();
    let patch: json_patch::Patch = serde_json::from_value(patch)?;
    json_patch::patch(&mut made, &patch)?;
    let held = kubectl.get("deployment/patched")?;
    same(&held, &made, "spec");
    same(&held["metadata"], &made["metadata"], "annotations");
    // Without a patch there is no word of one.
    kubectl.replace(&held.to_string())?.success()?;
    kubectl
        .patch(
            "deployment/patched",
            &json!({"spec": {"minReadySeconds": 3}}),
        )?
        .success()?;
    let later = overheard.at("/mutate", "deployment/patched");
    ensure!(later.len() > 1, "{later:?}");
    for exchange in &later[1..] {
        assert_eq!(exchange.response().get("patch"), None);
        assert_eq!(exchange.response().get("patchType"), None);
    }
    // The endpoints that judge never patch.
    for exchange in overheard.at("/validate", "deployment/patched") {
        assert_eq!(exchange.response().get("patch"), None);
    }
    Ok(())
}

#[test]
fn a_denial_is_a_status_with_code_reason_and_causes() -> Result<()> {
    let overheard = overheard()?;
    let error = overheard.runtime.block_on(async {
        let client = client(overheard.cluster.kubeconfig()).await?;
        let kind = kube::core::GroupVersionKind::gvk("karpenter.sh", "v1", "NodePool");
        let pools = kube::Api::<kube::core::DynamicObject>::all_with(
            client,
            &kube::core::ApiResource::from_gvk(&kind),
        );
        let bad = serde_json::from_value(node_pool("causes", Some(evicting())))?;
        let refused = pools.create(&kube::api::PostParams::default(), &bad).await;
        anyhow::Ok(refused.err())
    })?;
    let Some(kube::Error::Api(status)) = error else {
        return Err(anyhow!("{error:?}"));
    };
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    let details = status.details.context("details")?;
    let cause = details.causes.first().context("a cause")?;
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        (
            "gpu-pool-consolidation",
            "spec.disruption.consolidationPolicy"
        )
    );
    Ok(())
}

#[test]
fn dry_run_has_no_side_effects_and_the_same_answer() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("dry")?;
    let dry = ["create", "--dry-run=server", "--filename=-"];
    for (object, allowed) in [
        (gang("dry-filled"), true),
        (hpa("dry-denied", BAD), false),
        (node_pool("dry-pool", None), true),
    ] {
        let (object, text) = (reference(&object), object.to_string());
        assert_eq!(
            kubectl.run(&dry, Some(&text))?.accepted(),
            allowed,
            "{object}"
        );
        let first = overheard.about(&object);
        ensure!(kubectl.get(&object).is_err(), "{object} is there");
        assert_eq!(kubectl.create(&text)?.accepted(), allowed, "{object}");
        let second = overheard.about(&object).split_off(first.len());
        assert_eq!(first.len(), second.len(), "{object}");
        ensure!(!first.is_empty());
        for (dry, wet) in first.iter().zip(&second) {
            assert_eq!(dry.path, wet.path);
            assert_eq!(dry.request()["dryRun"], true);
            assert_eq!(wet.request()["dryRun"], false);
            let without_uid = |exchange: &Exchange| {
                let mut response = exchange.response().clone();
                response["uid"].take();
                response
            };
            assert_eq!(without_uid(dry), without_uid(wet), "{object}");
        }
    }
    // The API server lets a dry run through to those alone that say so.
    for kind in ["mutating", "validating"] {
        let held = kubectl.get(&format!("{kind}webhookconfiguration/gangplank"))?;
        for entry in held["webhooks"].as_array().context("entries")? {
            assert_eq!(entry["sideEffects"], "None");
        }
    }
    Ok(())
}

#[test]
fn reinvocation_changes_nothing_more() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("again")?;
    // Configurations are asked in the order of their names: this one comes after ours.
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-other"},
        "webhooks": [{
            "name": "other.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": overheard.client_config("/other"),
            "objectSelector": {"matchExpressions": [{"key": "other", "operator": "Exists"}]},
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["deployments"], "scope": "Namespaced"}],
        }],
    });
    kubectl.create(&configuration.to_string())?.success()?;
    let mut number = 0;
    let (object, exchanges) = eventually("the other webhook is asked as well", SOON, || {
        number += 1;
        let mut object = gang(&format!("again-{number}"));
        object["metadata"]["labels"]["other"] = json!("asked");
        kubectl.create(&object.to_string()).ok()?.success().ok()?;
        let about = overheard.about(&reference(&object));
        about
            .iter()
            .any(|exchange| exchange.path == "/other")
            .then_some((object, about))
    })?;
    kubectl
        .delete("mutatingwebhookconfiguration/zz-other")?
        .success()?;
    let paths: Vec<&str> = exchanges.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths[..3], ["/mutate", "/other", "/mutate"], "{paths:?}");
    let (first, again) = (&exchanges[0], &exchanges[2]);
    // What is asked again is what was filled, with what the other made of it.
    let mut made = first.request()["object"].clone();
    let patch: json_patch::Patch = serde_json::from_value(first.patch()?)?;
    json_patch::patch(&mut made, &patch)?;
    made["metadata"]["labels"]["other"] = json!("done");
    for member in ["spec", "metadata"] {
        same(&made, &again.request()["object"], member);
    }
    assert_eq!(again.response()["allowed"], true);
    assert_eq!(again.response().get("patch"), None, "{again:?}");
    let held = kubectl.get(&reference(&object))?;
    same(&held, &made, "spec");
    Ok(())
}

#[test]
fn match_policy_equivalent_sees_old_versions() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("old-version")?;
    let metrics = json!([{"type": "Pods", "pods": {
        "metricName": BAD, "targetAverageValue": "70",
    }}]);
    let old = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "v1", "annotations": {"autoscaling.alpha.kubernetes.io/metrics": metrics.to_string()}},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}, "maxReplicas": 4},
    });
    denied_by(&kubectl.create(&old.to_string())?, "gpu-utilization-signal");
    let exchanges = overheard.at("/validate", "horizontalpodautoscaler/v1");
    let [exchange] = exchanges.as_slice() else {
        return Err(anyhow!("{exchanges:?}"));
    };
    let request = exchange.request();
    assert_eq!(request["requestKind"]["version"], "v1", "what was written");
    assert_eq!(
        request["kind"]["version"], "v2",
        "what we are registered for"
    );
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
    assert_eq!(
        request["object"]["spec"]["metrics"][0]["pods"]["metric"]["name"],
        BAD
    );
    Ok(())
}

#[test]
fn a_timeout_is_the_failure_policy_of_the_entry() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("unanswered")?;
    // The last part of the name is the endpoint that never answers.
    let mut advised = hpa("unanswered.validate", "any");
    advised["metadata"]["name"] = json!("unanswered.advise");
    advised["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
    }}]);
    let silent = node_pool("unanswered.mutate", None);
    let (enforced, advised, filled) = std::thread::scope(|scope| {
        let create = |object: Value| {
            let kubectl = &kubectl;
            scope.spawn(move || kubectl.create(&object.to_string()))
        };
        let all = (
            create(hpa("unanswered.validate", BAD)),
            create(advised),
            create(silent),
        );
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Answer>>| {
            handle.join().expect("no panic")
        };
        anyhow::Ok((join(all.0)?, join(all.1)?, join(all.2)?))
    })?;
    // Fail: nobody said that it is right.
    assert!(!enforced.accepted());
    let says = "failed calling webhook \"enforce-horizontalpodautoscalers.gangplank.dev\"";
    assert!(enforced.stderr.contains(says), "{}", enforced.stderr);
    assert!(
        enforced.stderr.contains("timeout=5s"),
        "{}",
        enforced.stderr
    );
    // Ignore: what cannot be denied must not block.
    assert!(advised.accepted(), "{}", advised.stderr);
    // Ignore: and an unsafe default that was not filled is judged as it stands.
    denied_by(&filled, "gpu-pool-consolidation");
    Ok(())
}

#[test]
fn warnings_reach_the_client_and_are_short_enough() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("warned")?;
    let mut object = scaled_object("warned", "{__name__=~\".+\"}");
    let trigger = object["spec"]["triggers"][0].clone();
    object["spec"]["triggers"] = (0..60)
        .map(|index| {
            let mut trigger = trigger.clone();
            let query = format!(
                "{{__name__=~\".+\", service=\"{}{index}\"}}",
                "é".repeat(100)
            );
            trigger["metadata"]["query"] = json!(query);
            trigger
        })
        .collect();
    let answer = kubectl.create(&object.to_string())?;
    let exchanges = overheard.about("scaledobject/warned");
    let said: BTreeSet<&str> = exchanges
        .iter()
        .filter_map(|exchange| exchange.response()["warnings"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    ensure!(said.len() > 10, "{said:?}");
    let seen: BTreeSet<&str> = answer.warnings().into_iter().collect();
    assert_eq!(seen, said, "what we say is what the client reads, whole");
    let length = |text: &&str| text.chars().count();
    assert!(said.iter().map(length).all(|length| length <= WARNING));
    assert!(said.iter().map(length).sum::<usize>() <= WARNINGS);
    assert!(said.iter().any(|text| text.contains(" more; ")), "{said:?}");
    Ok(())
}

#[test]
fn audit_annotations_stand_in_the_audit_log_under_the_name_of_the_entry() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("audited")?;
    denied_by(
        &kubectl.create(&hpa("audited", BAD).to_string())?,
        "gpu-utilization-signal",
    );
    let log = overheard.cluster.audit_log();
    let event = eventually("the event is in the audit log", SOON, || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["objectRef"]["namespace"] == kubectl.namespace())
    })?;
    let annotations = &event["annotations"];
    assert_eq!(
        annotations["enforce-horizontalpodautoscalers.gangplank.dev/verdict"], "deny",
        "{event}"
    );
    assert_eq!(
        annotations["enforce-horizontalpodautoscalers.gangplank.dev/rules"],
        "gpu-utilization-signal"
    );
    Ok(())
}

#[test]
fn subresources_scale_and_status_are_never_asked_about() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("subresources")?;
    let mut server = deployment("scaled", 8, 1, &["--tensor-parallel-size=8"]);
    server["metadata"]["labels"] = json!({"kai.scheduler/queue": "llm"});
    kubectl.create(&server.to_string())?.success()?;
    kubectl
        .create(&hpa("scaled", GOOD).to_string())?
        .success()?;
    let count = || overheard.heard.lock().unwrap().len();
    let of_here = |from: usize| -> Vec<Exchange> {
        let heard = overheard.heard.lock().unwrap();
        let here = |one: &&Exchange| one.request()["namespace"] == kubectl.namespace();
        heard[from..].iter().filter(here).cloned().collect()
    };
    let before = count();
    kubectl
        .run(&["scale", "deployment/scaled", "--replicas=0"], None)?
        .success()?;
    for object in ["deployment/scaled", "hpa/scaled"] {
        let status = format!("--patch={}", json!({"status": {"observedGeneration": 7}}));
        let args = [
            "patch",
            object,
            "--type=merge",
            "--subresource=status",
            &status,
        ];
        kubectl.run(&args, None)?.success()?;
    }
    assert_eq!(kubectl.get("deployment/scaled")?["spec"]["replicas"], 0);
    assert_eq!(
        kubectl.get("hpa/scaled")?["status"]["observedGeneration"],
        7
    );
    let asked = of_here(before);
    assert!(asked.is_empty(), "{asked:?}");
    Ok(())
}

#[test]
fn a_delete_is_never_asked() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("deleted")?;
    // With a finalizer it takes two steps; neither is ours, nor is what a controller writes between.
    let mut object = hpa("deleted", GOOD);
    object["metadata"]["finalizers"] = json!(["example.com/held"]);
    kubectl.create(&object.to_string())?.success()?;
    kubectl
        .create(&hpa("deleted-too", GOOD).to_string())?
        .success()?;
    let asked = || {
        overheard.about("horizontalpodautoscaler/deleted").len()
            + overheard.about("horizontalpodautoscaler/deleted-too").len()
    };
    let before = asked();
    kubectl.delete("hpa/deleted")?.success()?;
    assert!(kubectl.get("hpa/deleted")?["metadata"]["deletionTimestamp"].is_string());
    kubectl
        .patch("hpa/deleted", &json!({"metadata": {"finalizers": null}}))?
        .success()?;
    kubectl
        .run(&["delete", "hpa", "--all", "--wait=false"], None)?
        .success()?;
    assert!(kubectl.get("hpa/deleted").is_err());
    assert!(kubectl.get("hpa/deleted-too").is_err());
    assert_eq!(asked(), before);
    Ok(())
}

/// Whoever registers us for everything gets an answer to everything.
#[test]
fn every_operation_create_update_delete_connect_has_an_answer() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("everything")?;
    let namespace = kubectl.namespace().to_owned();
    kubectl
        .label(&format!("namespace/{namespace}"), "conformance=everything")?
        .success()?;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "everything"},
        "webhooks": [{
            "name": "everything.example.com", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "clientConfig": overheard.client_config("/validate"),
            "namespaceSelector": {"matchLabels": {"conformance": "everything"}},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"],
                "resources": ["*/*"], "scope": "Namespaced"}],
        }],
    });
    kubectl.create(&configuration.to_string())?.success()?;
    let heard = || -> Vec<Exchange> {
        let heard = overheard.heard.lock().unwrap();
        let here =
            |one: &&Exchange| one.request()["namespace"] == *namespace && one.path == "/validate";
        heard.iter().filter(here).cloned().collect()
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "any"}});
    eventually("everything is asked", SOON, || {
        kubectl.apply(&map.to_string()).ok()?;
        let patch = json!({"data": {"tries": heard().len().to_string()}});
        kubectl.patch("configmap/any", &patch).ok()?;
        (!heard().is_empty()).then_some(())
    })?;

    let raw = |verb: &str, path: &str, body: Option<&Value>| {
        let path = format!("--raw=/api/v1/namespaces/{namespace}/{path}");
        let mut args = vec![verb, path.as_str()];
        let body = body.map(Value::to_string);
        if body.is_some() {
            args.push("--filename=-");
        }
        kubectl.run(&args, body.as_deref())
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"},
        "spec": {"containers": [{"name": "a", "image": "vllm/vllm-openai",
            "args": ["--tensor-parallel-size=8"], "resources": {"limits": {"nvidia.com/gpu": 8}}}]},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "any"},
        "spec": {"ports": [{"port": 80}]},
    });
    kubectl.create(&pod.to_string())?.success()?;
    kubectl.create(&service.to_string())?.success()?;
    kubectl
        .run(&["create", "serviceaccount", "any"], None)?
        .success()?;
    kubectl.run(&["create", "token", "any"], None)?.success()?;
    kubectl.create(&hpa("every", GOOD).to_string())?.success()?;
    kubectl
        .patch("hpa/every", &json!({"spec": {"maxReplicas": 5}}))?
        .success()?;
    kubectl
        .create(&deployment("every", 1, 1, &[]).to_string())?
        .success()?;
    kubectl
        .run(&["scale", "deployment/every", "--replicas=2"], None)?
        .success()?;
    let status = format!("--patch={}", json!({"status": {"observedGeneration": 7}}));
    let args = [
        "patch",
        "deployment/every",
        "--type=merge",
        "--subresource=status",
        &status,
    ];
    kubectl.run(&args, None)?.success()?;
    // Nobody listens behind it: what counts is that admission let it pass.
    let connected = raw("get", "services/any/proxy", None)?;
    assert!(
        !connected.stderr.contains("webhook"),
        "{}",
        connected.stderr
    );
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "pod"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"}});
    raw("create", "pods/pod/binding", Some(&binding))?.success()?;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "pod"}});
    raw("create", "pods/pod/eviction", Some(&eviction))?.success()?;
    kubectl
        .run(
            &[
                "delete",
                "hpa,deployment,configmap",
                "--all",
                "--wait=false",
            ],
            None,
        )?
        .success()?;
    kubectl
        .delete("validatingwebhookconfiguration/everything")?
        .success()?;

    let asked = heard();
    let mut seen = BTreeSet::new();
    for exchange in &asked {
        same(exchange.request(), exchange.response(), "uid");
        assert_eq!(exchange.response()["allowed"], true, "{exchange:?}");
        let request = exchange.request();
        let text = |member: &str| request[member].as_str().unwrap_or_default().to_owned();
        seen.insert(format!(
            "{} {}/{}",
            text("operation"),
            request["resource"]["resource"].as_str().unwrap_or_default(),
            text("subResource")
        ));
    }
    for wanted in [
        "CREATE pods/",
        "CREATE pods/binding",
        "CREATE pods/eviction",
        "CREATE serviceaccounts/token",
        "CREATE horizontalpodautoscalers/",
        "UPDATE horizontalpodautoscalers/",
        "UPDATE deployments/scale",
        "UPDATE deployments/status",
        "CONNECT services/proxy",
        "DELETE horizontalpodautoscalers/",
        "DELETE deployments/",
        "DELETE configmaps/",
    ] {
        assert!(seen.contains(wanted), "{wanted} is not among {seen:?}");
    }
    Ok(())
}

#[test]
fn generate_name_is_as_good_as_a_name() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("generated")?;
    let nameless = |mut object: Value| {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("name");
        metadata.insert("generateName".to_owned(), json!("generated-"));
        object.to_string()
    };
    denied_by(
        &kubectl.create(&nameless(hpa("", BAD)))?,
        "gpu-utilization-signal",
    );
    denied_by(
        &kubectl.create(&nameless(node_pool("", Some(evicting()))))?,
        "gpu-pool-consolidation",
    );
    kubectl.create(&nameless(hpa("", GOOD)))?.success()?;
    let args = ["create", "--filename=-", "--output=json"];
    let filled = kubectl
        .run(&args, Some(&nameless(gang("gang"))))?
        .success()?;
    let filled: Value = serde_json::from_str(&filled)?;
    assert!(
        filled["metadata"]["name"]
            .as_str()
            .context("a name")?
            .starts_with("generated-")
    );
    assert_eq!(
        at(&filled, "/spec/template/spec/schedulerName"),
        "kai-scheduler"
    );
    Ok(())
}

/// A way to write, by its name.
type Way<'a> = (&'static str, &'a dyn Fn(&str) -> Result<Answer>);

/// Every way to write gets the whole object to us, before and after, and the same verdict.
#[test]
fn server_side_apply_patch_and_strategic_merge_are_judged_by_what_they_make() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("patches")?;
    let object = "deployment/patches";
    let reference = "deployment/patches";
    let create = gang("patches").to_string();
    kubectl.apply_server_side(&create)?.success()?;
    let created = overheard.at("/validate", reference);
    let last = created.last().context("it was asked about")?;
    // A PATCH that creates is asked about as what it does.
    assert_eq!(last.request()["operation"], "CREATE");
    assert_eq!(last.request()["options"]["kind"], "CreateOptions");
    assert_eq!(last.request()["oldObject"], Value::Null);
    let minimum = "kai.scheduler/batch-min-member";
    let to = |count: &str| json!({"metadata": {"annotations": {minimum: count}}});
    let pointer = "/metadata/annotations/kai.scheduler~1batch-min-member";
    let by_json = |count: &str| json!([{"op": "replace", "path": pointer, "value": count}]);
    let patch = |kind: &str, patch: Value| {
        let (kind, patch) = (format!("--type={kind}"), format!("--patch={patch}"));
        kubectl.run(&["patch", object, &kind, &patch], None)
    };
    let apply = |count: &str| {
        let mut object = gang("patches");
        object["metadata"]["annotations"] = json!({minimum: count});
        let args = [
            "apply",
            "--server-side",
            "--field-manager=another",
            "--force-conflicts",
            "--filename=-",
        ];
        kubectl.run(&args, Some(&object.to_string()))
    };
    let put = |count: &str| -> Result<Answer> {
        let mut held = kubectl.get(object)?;
        held["metadata"]["annotations"][minimum] = json!(count);
        kubectl.replace(&held.to_string())
    };
    let ways: [Way<'_>; 5] = [
        ("strategic merge patch", &|count| {
            patch("strategic", to(count))
        }),
        ("merge patch", &|count| patch("merge", to(count))),
        ("JSON patch", &|count| patch("json", by_json(count))),
        ("server-side apply", &apply),
        ("PUT", &put),
    ];
    for (way, write) in ways {
        let before = overheard.at("/validate", reference).len();
        denied_by(&write("7")?, "gang-scheduling");
        let exchanges = overheard.at("/validate", reference);
        let [exchange] = &exchanges[before..] else {
            return Err(anyhow!("{way}: {exchanges:?}"));
        };
        let request = exchange.request();
        assert_eq!(request["operation"], "UPDATE", "{way}");
        assert_eq!(request["options"]["kind"], "UpdateOptions", "{way}");
        assert_eq!(at(&request["object"], pointer), "7", "{way}");
        assert_eq!(at(&request["oldObject"], pointer), "8", "{way}");
        assert!(
            request["object"]["spec"]["template"]["spec"]["containers"].is_array(),
            "{way}"
        );
        write("8")?.success().context(way)?;
        assert_eq!(at(&kubectl.get(object)?, pointer), "8", "{way}");
    }
    Ok(())
}

/// Every way to create an object that people use leads to the same verdict.
#[test]
fn every_client_is_denied_alike() -> Result<()> {
    let overheard = overheard()?;
    let kubectl = overheard.cluster.namespace("clients")?;
    let mut answers = BTreeSet::new();
    for (index, (client, create)) in CLIENTS.into_iter().enumerate() {
        let name = format!("client-{index}");
        denied_by(
            &create(&kubectl, &hpa(&name, BAD).to_string())?,
            "gpu-utilization-signal",
        );
        let exchanges = overheard.at("/validate", &format!("horizontalpodautoscaler/{name}"));
        let [exchange] = exchanges.as_slice() else {
            return Err(anyhow!("{client}: {exchanges:?}"));
        };
        answers.insert(exchange.response()["status"]["message"].to_string());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    Ok(())
}
