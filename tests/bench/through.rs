//! The same writes through a real API server: past no webhook, one that does nothing, Gangplank, and a
//! ValidatingAdmissionPolicy that says much the same; where Gangplank answers with a patch, also past one
//! that does nothing but answer with that patch. Each in a namespace of its own, in turn, write by write:
//! whatever else the machine does falls on all.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::http::{Method, Request, StatusCode};
use gangplank::{
    policy::Policy,
    webhook::registration::{FailurePolicy, Reach, Registration},
};
use http_body_util::BodyExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    client::{Target, quantile},
    harness::{SOON, client},
    objects,
    rows::{Table, spread},
};

const LABEL: &str = "bench.example.com/door";

const DOORS: [&str; 5] = ["none", "nothing", "gangplank", "cel", "patching"];
const NONE: usize = 0;
const NOTHING: usize = 1;
const GANGPLANK: usize = 2;
const CEL: usize = 3;
const PATCHING: usize = 4;

/// Of each object and number of writes at a time.
const ROUNDS: usize = 10;

/// Writes of each door in a round.
const WRITES: usize = 300;

/// The most latency, of that with the webhook that does nothing.
const MOST: f64 = 1.15;

/// The object that Gangplank patches.
pub(crate) const PATCHED: &str = "gang-deployment-silent";

/// The objects, and where they are written to. The first is judged, the second asked about twice, and
/// the third patched, too.
const OBJECTS: [(&str, &str); 3] = [
    (
        "hpa",
        "autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    ),
    ("deployment-10k", "apps/v1/namespaces/{}/deployments"),
    (PATCHED, "apps/v1/namespaces/{}/deployments"),
];

/// Writes at a time.
const AT_ONCE: [usize; 2] = [1, 8];

pub(crate) async fn measure(
    table: &mut Table,
    kubeconfig: &std::path::Path,
    authority: &std::path::Path,
    [nothing, patching, gangplank]: [Target; 3],
) -> Result<()> {
    let client = client(kubeconfig).await?;
    let authority = std::fs::read(authority)?;
    for door in DOORS {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": door, "labels": {LABEL: door}}});
        send(
            &client,
            Method::POST,
            "/api/v1/namespaces",
            Some(&namespace),
        )
        .await?;
    }
    for (door, target) in [
        (NOTHING, nothing),
        (GANGPLANK, gangplank),
        (PATCHING, patching),
    ] {
        register(&client, DOORS[door], target, &authority).await?;
    }
    admit_by_cel(&client).await?;
    in_force(&client).await?;
    patches_alike(&client).await?;
    for (name, path) in OBJECTS {
        let object = unwritten(name);
        for at_once in AT_ONCE {
            // The last one is only for what is patched.
            let doors = if name == PATCHED {
                PATCHING + 1
            } else {
                PATCHING
            };
            let rounds = rounds(&client, &object, path, at_once, doors).await?;
            tell(table, name, at_once, &rounds, doors);
        }
    }
    Ok(())
}

/// An object as a client writes it, without what is the API server's to write.
fn unwritten(name: &str) -> Value {
    let mut object = objects::object(name);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
    }
    object
}

/// What an API server answers.
async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, String)> {
    let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", "application/json")
        .body(kube::client::Body::from(body))?;
    let answer = client.send(request).await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// The entries that Gangplank registers, for one namespace, whoever answers them.
async fn register(client: &Client, door: &str, target: Target, authority: &[u8]) -> Result<()> {
    let registration = Registration {
        name: format!("bench-{door}"),
        reach: Reach::Url(format!("https://{}", target.address)),
        ca_bundle: Some(authority.to_vec()),
        annotations: [].into(),
        failure_policy: FailurePolicy::Fail,
        owner: None,
    };
    let mut all = registration.configurations(&Policy::default());
    let selector = LabelSelector {
        match_labels: Some([(LABEL.to_owned(), door.to_owned())].into()),
        ..LabelSelector::default()
    };
    for entry in all.mutating.webhooks.iter_mut().flatten() {
        entry.namespace_selector = Some(selector.clone());
    }
    for entry in all.validating.webhooks.iter_mut().flatten() {
        entry.namespace_selector = Some(selector.clone());
    }
    for (plural, value) in [
        (
            "mutatingwebhookconfigurations",
            serde_json::to_value(all.mutating)?,
        ),
        (
            "validatingwebhookconfigurations",
            serde_json::to_value(all.validating)?,
        ),
    ] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
        let (status, text) = send(client, Method::POST, &path, Some(&value)).await?;
        ensure!(status == StatusCode::CREATED, "{text}");
    }
    Ok(())
}

/// What can be said of these objects in CEL.
async fn admit_by_cel(client: &Client) -> Result<()> {
    let metrics = "!has(object.spec.metrics) || object.spec.metrics.all(m, \
        !(has(m.pods) && m.pods.metric.name in variables.wrong) && \
        !(has(m.external) && m.external.metric.name in variables.wrong) && \
        !(has(m.object) && m.object.metric.name in variables.wrong))";
    let wrong = "['DCGM_FI_DEV_GPU_UTIL', 'DCGM_FI_DEV_MEM_COPY_UTIL', 'DCGM_FI_DEV_FB_USED', \
        'DCGM_FI_PROF_GR_ENGINE_ACTIVE', 'nvidia_smi_utilization_gpu_ratio', 'nvidia_gpu_duty_cycle']";
    let ranks = "object.spec.template.spec.containers.filter(c, has(c.args)).all(c, c.args.all(a, \
        !a.startsWith('--tensor-parallel-size=') || \
        (has(c.resources) && has(c.resources.limits) && 'nvidia.com/gpu' in c.resources.limits && \
        int(a.split('=')[1]) <= quantity(c.resources.limits['nvidia.com/gpu']).asInteger())))";
    let placed = "!object.spec.template.spec.containers.exists(c, has(c.args) && c.args.exists(a, \
        a.startsWith('--tensor-parallel-size=') && a != '--tensor-parallel-size=1')) || \
        (has(object.metadata.labels) && 'kai.scheduler/queue' in object.metadata.labels)";
    let policies = [
        (
            "signals",
            ("autoscaling", "v2", "horizontalpodautoscalers"),
            json!([{"name": "wrong", "expression": wrong}]),
            json!([{"expression": metrics, "message": "scales on a duty cycle"}]),
        ),
        (
            "gangs",
            ("apps", "v1", "deployments"),
            json!([]),
            json!([
                {"expression": ranks, "message": "more ranks than GPUs"},
                {"expression": placed, "message": "in no queue"},
            ]),
        ),
    ];
    for (name, (group, version, resource), variables, validations) in policies {
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {LABEL: "cel"}},
                    "resourceRules": [{"apiGroups": [group], "apiVersions": [version],
                        "operations": ["CREATE", "UPDATE"], "resources": [resource]}],
                },
                "variables": variables,
                "validations": validations,
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let kinds = [
            ("validatingadmissionpolicies", policy),
            ("validatingadmissionpolicybindings", binding),
        ];
        for (plural, value) in kinds {
            let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
            let (status, text) = send(client, Method::POST, &path, Some(&value)).await?;
            ensure!(status == StatusCode::CREATED, "{text}");
        }
    }
    Ok(())
}

/// Waits until what is wrong is denied where it is to be, and nowhere else.
async fn in_force(client: &Client) -> Result<()> {
    let wrong = [
        ("hpa-denied", OBJECTS[0].1),
        ("gang-deployment-denied", OBJECTS[1].1),
    ];
    let started = Instant::now();
    loop {
        let mut denied = Vec::new();
        for door in DOORS {
            for (name, path) in wrong {
                let mut object = objects::object(name);
                object["metadata"] = json!({"name": "wrong"});
                let path = format!("/apis/{}?dryRun=All", path.replace("{}", door));
                let (status, _) = send(client, Method::POST, &path, Some(&object)).await?;
                denied.push(status != StatusCode::CREATED);
            }
        }
        if denied
            == [
                false, false, false, false, true, true, true, true, false, false,
            ]
        {
            return Ok(());
        }
        ensure!(started.elapsed() < SOON, "{denied:?} of {DOORS:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until what Gangplank makes of an object is what the webhook beside it makes of it, and not the
/// object as it was.
async fn patches_alike(client: &Client) -> Result<()> {
    let object = unwritten(PATCHED);
    let started = Instant::now();
    loop {
        let mut made = Vec::new();
        for door in [GANGPLANK, PATCHING, NOTHING] {
            let path = OBJECTS[2].1.replace("{}", DOORS[door]);
            let path = format!("/apis/{path}?dryRun=All");
            let (status, text) = send(client, Method::POST, &path, Some(&object)).await?;
            let stored: Value = serde_json::from_str(&text)?;
            let metadata = &stored["metadata"];
            let part = json!([stored["spec"], metadata["annotations"], metadata["labels"]]);
            made.push((status, part));
        }
        if made[0] == made[1] && made[0] != made[2] && made[0].0 == StatusCode::CREATED {
            return Ok(());
        }
        ensure!(started.elapsed() < SOON, "{made:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// For each round and door the latencies of its writes, in order.
async fn rounds(
    client: &Client,
    object: &Value,
    path: &str,
    at_once: usize,
    doors: usize,
) -> Result<Vec<[Vec<u64>; DOORS.len()]>> {
    // Each door comes after each other one.
    let strides: Vec<usize> = (1..doors)
        .filter(|stride| doors % 2 == 1 || stride % 2 == 1)
        .collect();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let mut tasks = JoinSet::new();
        for task in 0..at_once {
            let (client, object, path) = (client.clone(), object.clone(), path.to_owned());
            let strides = strides.clone();
            tasks.spawn(async move {
                let mut latencies: [Vec<u64>; DOORS.len()] = Default::default();
                for number in 0..WRITES / at_once {
                    let stride = strides[number % strides.len()];
                    for turn in 0..doors {
                        let door = (number + turn * stride) % doors;
                        let name = format!("o-{round}-{task}-{number}");
                        latencies[door]
                            .push(write(&client, &object, &path, DOORS[door], &name).await?);
                    }
                }
                anyhow::Ok(latencies)
            });
        }
        let mut whole: [Vec<u64>; DOORS.len()] = Default::default();
        while let Some(latencies) = tasks.join_next().await {
            for (all, one) in whole.iter_mut().zip(latencies??) {
                all.extend(one);
            }
        }
        for latencies in &mut whole {
            latencies.sort_unstable();
        }
        all.push(whole);
    }
    Ok(all)
}

/// How long a creation took, in nanoseconds. What was made is gone afterwards.
async fn write(client: &Client, object: &Value, path: &str, door: &str, name: &str) -> Result<u64> {
    let mut object = object.clone();
    object["metadata"]["name"] = json!(name);
    let path = format!("/apis/{}", path.replace("{}", door));
    let started = Instant::now();
    let (status, text) = send(client, Method::POST, &path, Some(&object)).await?;
    let elapsed = started.elapsed();
    ensure!(status == StatusCode::CREATED, "{door}: {text}");
    let path = format!("{path}/{name}");
    let (status, text) = send(client, Method::DELETE, &path, None).await?;
    ensure!(status == StatusCode::OK, "{door}: {text}");
    Ok(u64::try_from(elapsed.as_nanos())?)
}

fn tell(
    table: &mut Table,
    name: &str,
    at_once: usize,
    rounds: &[[Vec<u64>; DOORS.len()]],
    doors: usize,
) {
    // Of all rounds: one in a hundred of one round are few.
    let pooled: Vec<Vec<u64>> = (0..doors)
        .map(|door| {
            let mut all: Vec<u64> = rounds
                .iter()
                .flat_map(|round| &round[door])
                .copied()
                .collect();
            all.sort_unstable();
            all
        })
        .collect();
    let of = |door: usize, part: f64| quantile(&pooled[door], part) / 1e3;
    let writes = if at_once == 1 { "write" } else { "writes" };
    for (quantile_name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let mut row = |door: usize, label: &str, other: usize, budget: Option<f64>| {
            let ratio = of(door, part) / of(other, part);
            let ratios: Vec<f64> = rounds
                .iter()
                .map(|round| quantile(&round[door], part) / quantile(&round[other], part))
                .collect();
            let seen = format!(
                "{ratio:.2} ({}); {:.2} ms of {:.2} ms",
                spread(&ratios),
                of(door, part),
                of(other, part)
            );
            let what = format!(
                "API server, {name}, {at_once} {writes} at a time: {quantile_name}, {label}"
            );
            match budget {
                Some(most) => table.at_most(&what, ratio, most, &seen),
                None => table.told(&what, &seen),
            }
        };
        row(GANGPLANK, "Gangplank", NOTHING, Some(MOST));
        if doors > PATCHING {
            let label = "Gangplank, of the webhook that only answers with the same patch";
            row(GANGPLANK, label, PATCHING, Some(MOST));
        }
        row(CEL, "a ValidatingAdmissionPolicy", NOTHING, None);
        row(NONE, "no webhook", NOTHING, None);
    }
}
