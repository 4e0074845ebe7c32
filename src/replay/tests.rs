use serde_json::json;

use super::*;

const POLICY: &str = "apiVersion: gangplank.dev/v1alpha1\nkind: Policy\n";

fn policy(more: &str) -> Policy {
    let document = crate::source::read(&format!("{POLICY}{more}"))
        .pop()
        .unwrap()
        .unwrap();
    Policy::from_document(&document.value).unwrap()
}

const BAD: &str = "DCGM_FI_DEV_GPU_UTIL";
const GOOD: &str = "vllm:num_requests_waiting";

fn hpa(metric: &str, version: u64) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": "llm", "uid": "u-1",
            "resourceVersion": version.to_string()},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": metric},
                "target": {"type": "AverageValue", "averageValue": "70"},
            }}],
        },
    })
}

/// A write as the API server logs it at level RequestResponse.
fn wrote(verb: &str, object: &Value) -> Value {
    let api = object["apiVersion"].as_str().unwrap();
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let kind = object["kind"].as_str().unwrap();
    let created = verb == "create";
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse",
        "stage": "ResponseComplete", "verb": verb, "requestURI": "/apis?fieldManager=kubectl",
        "user": {"username": "alice", "groups": ["system:authenticated"]},
        "objectRef": {
            "resource": format!("{}s", kind.to_lowercase()), "apiGroup": group,
            "apiVersion": version,
            "namespace": object["metadata"]["namespace"].as_str().unwrap_or_default(),
            "name": object["metadata"]["name"],
        },
        "responseStatus": {"code": if created { 201 } else { 200 }},
        "requestObject": if verb == "patch" { json!({"spec": {}}) } else { object.clone() },
        "responseObject": object,
        "requestReceivedTimestamp": "2026-11-20T10:00:00.000000Z",
        "stageTimestamp": "2026-11-20T10:00:00.100000Z",
    })
}

fn replayed(events: &[Value]) -> Findings {
    replayed_by(policy(""), events)
}

fn replayed_by(policy: Policy, events: &[Value]) -> Findings {
    let mut replay = Replay::new(policy);
    for event in events {
        for event in Event::read(event.to_string().as_bytes()).unwrap() {
            replay.event(&event);
        }
    }
    replay.finish()
}

/// Writes denied for certain and perhaps.
fn denied(found: &Findings) -> (u64, u64) {
    (found.total.denied, found.total.perhaps)
}

fn with(mut event: Value, change: impl FnOnce(&mut Value)) -> Value {
    change(&mut event);
    event
}

#[test]
fn a_create_is_judged_and_told_by_rule_namespace_user_and_object() {
    let found = replayed(&[wrote("create", &hpa(BAD, 1))]);
    assert_eq!(denied(&found), (1, 0));
    let one = |tally: Option<&Tally>| tally.map(|tally| tally.denied);
    assert_eq!(one(found.rules.get("gpu-utilization-signal")), Some(1));
    assert_eq!(one(found.namespaces.get(&Some("llm".to_owned()))), Some(1));
    assert_eq!(one(found.users.get("alice")), Some(1));
    let (name, object) = found.objects.first_key_value().unwrap();
    assert_eq!(
        (name.kind, name.name.as_str()),
        ("HorizontalPodAutoscaler", "chat")
    );
    let example = &object.example;
    assert_eq!(example.time.to_string(), "2026-11-20T10:00:00Z");
    assert_eq!(example.verb, "create");
    let finding = example.findings.first().unwrap();
    assert_eq!(finding.path, "spec.metrics[0].pods.metric.name");
    assert_eq!(finding.value.as_deref(), Some("\"DCGM_FI_DEV_GPU_UTIL\""));
}

#[test]
fn a_change_is_denied_for_what_it_brings_and_not_for_what_was_there() {
    let create = wrote("create", &hpa(GOOD, 1));
    let worse = wrote("update", &hpa(BAD, 2));
    assert_eq!(denied(&replayed(&[create, worse])), (1, 0));
    let touched = with(hpa(BAD, 3), |hpa| hpa["spec"]["maxReplicas"] = json!(5));
    let found = replayed(&[
        wrote("create", &hpa(BAD, 2)),
        wrote("patch", &touched),
        wrote("patch", &touched),
    ]);
    assert_eq!(denied(&found), (1, 0), "only the first");
    assert_eq!((found.total.warned, found.writes.unchanged), (1, 1));
}

#[test]
fn without_what_was_there_before_nothing_is_denied_for_certain() {
    let update = wrote("update", &hpa(BAD, 2));
    let found = replayed(std::slice::from_ref(&update));
    assert_eq!((denied(&found), found.writes.without_before), ((0, 1), 1));
    // Another object of that name, another version of the API, a state from later on.
    for change in [
        |hpa: &mut Value| hpa["metadata"]["uid"] = json!("u-0"),
        |hpa: &mut Value| hpa["apiVersion"] = json!("autoscaling/v2beta2"),
        |hpa: &mut Value| hpa["metadata"]["resourceVersion"] = json!("9"),
    ] {
        let other = wrote("create", &with(hpa(GOOD, 1), change));
        assert_eq!(denied(&replayed(&[other, update.clone()])), (0, 1));
    }
    // Two changes, of which one is not in the log.
    let at = |generation: u64, metric: &str| {
        with(hpa(metric, generation), |hpa| {
            hpa["metadata"]["generation"] = json!(generation);
        })
    };
    let good = wrote("create", &at(1, GOOD));
    let next = replayed(&[good.clone(), wrote("update", &at(2, BAD))]);
    let later = replayed(&[good, wrote("update", &at(3, BAD))]);
    assert_eq!((denied(&next), denied(&later)), ((1, 0), (0, 1)));
}

#[test]
fn whatever_shows_the_object_tells_what_was_there_before() {
    let update = wrote("update", &hpa(BAD, 2));
    let get = wrote("get", &hpa(GOOD, 1));
    assert_eq!(denied(&replayed(&[get, update.clone()])), (1, 0));
    let status = with(wrote("update", &hpa(GOOD, 1)), |event| {
        event["objectRef"]["subresource"] = json!("status");
    });
    assert_eq!(denied(&replayed(&[status, update.clone()])), (1, 0));
    // What is deleted, or written unseen, tells nothing any more.
    let create = wrote("create", &hpa(GOOD, 1));
    let delete = wrote("delete", &hpa(GOOD, 1));
    let unseen = with(wrote("update", &hpa(GOOD, 1)), |event| {
        event["level"] = json!("Metadata");
    });
    for gone in [delete, unseen] {
        let found = replayed(&[create.clone(), gone, update.clone()]);
        assert_eq!(denied(&found), (0, 1));
    }
}

#[test]
fn scaling_is_not_judged_and_remembered() {
    let deployment = |replicas: u64, generation: u64| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "chat", "namespace": "llm", "uid": "u-2",
                "generation": generation, "resourceVersion": generation.to_string()},
            "spec": {"replicas": replicas, "template": {"spec": {"containers": []}}},
        })
    };
    let scale = with(wrote("patch", &deployment(0, 0)), |event| {
        event["objectRef"]["subresource"] = json!("scale");
        event["responseObject"] = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"resourceVersion": "2"}, "spec": {"replicas": 3}});
    });
    let create = wrote("create", &deployment(1, 1));
    let same = wrote("update", &deployment(3, 2));
    let found = replayed(&[create.clone(), scale.clone(), same.clone()]);
    assert_eq!((found.writes.seen, found.writes.unchanged), (2, 1));
    let unknown = with(scale, |event| event["responseObject"] = Value::Null);
    let found = replayed(&[create, unknown, same]);
    assert_eq!(found.writes.without_before, 1);
}

#[test]
fn what_did_not_happen_does_not_count() {
    let create = wrote("create", &hpa(BAD, 1));
    let failed = with(create.clone(), |event| {
        event["responseStatus"]["code"] = json!(409);
    });
    let tried = with(create.clone(), |event| {
        event["requestURI"] = json!("/apis/x?fieldManager=k&dryRun=All&fieldValidation=Strict");
    });
    let system = with(create.clone(), |event| {
        event["objectRef"]["namespace"] = json!("kube-system");
    });
    let received = with(create, |event| {
        event["stage"] = json!("RequestReceived");
    });
    let found = replayed(&[failed, tried, system, received]);
    assert_eq!(denied(&found), (0, 0));
    let writes = &found.writes;
    assert_eq!((writes.failed, writes.dry_run, writes.left_out), (1, 1, 1));
    assert_eq!((found.requests, writes.judged), (3, 0));
}

#[test]
fn only_what_is_asked_about_is_told_and_all_else_is_still_seen() {
    let of =
        |user: &str, event: Value| with(event, |event| event["user"]["username"] = json!(user));
    let mut worse = hpa(BAD, 2);
    worse["spec"]["minReplicas"] = json!(2);
    let mut elsewhere = hpa(BAD, 1);
    elsewhere["metadata"]["namespace"] = json!("web");
    let events = [
        of("alice", wrote("create", &hpa(BAD, 1))),
        of("bob", wrote("update", &worse)),
        of("bob", wrote("create", &elsewhere)),
    ];
    let told = |only: Only| {
        let mut replay = Replay::new(policy("")).only(only);
        for event in &events {
            for event in Event::read(event.to_string().as_bytes()).unwrap() {
                replay.event(&event);
            }
        }
        replay.finish()
    };
    assert_eq!(denied(&told(Only::default())), (2, 0));
    let bob = told(Only {
        users: vec!["bob".to_owned()],
        ..Only::default()
    });
    assert_eq!(bob.writes.seen, 2);
    assert_eq!(
        denied(&bob),
        (1, 0),
        "the fault was alice's, and is known of"
    );
    assert_eq!(bob.total.warned, 1);
    let web = told(Only {
        namespaces: vec!["web".to_owned()],
        ..Only::default()
    });
    assert_eq!((web.writes.seen, denied(&web)), (1, (1, 0)));
    let other = told(Only {
        rules: vec![crate::rules::find("gpu-memory-signal").unwrap()],
        ..Only::default()
    });
    assert_eq!((other.writes.judged, denied(&other)), (3, (0, 0)));
}

#[test]
fn what_was_not_logged_is_not_judged() {
    let create = wrote("create", &hpa(BAD, 1));
    let without = |event: &Value, members: &[&str]| {
        with(event.clone(), |event| {
            for member in members {
                event.as_object_mut().unwrap().remove(*member);
            }
        })
    };
    let metadata = with(
        without(&create, &["requestObject", "responseObject"]),
        |event| event["level"] = json!("Metadata"),
    );
    let patch = without(&wrote("patch", &hpa(BAD, 1)), &["responseObject"]);
    let patch = with(patch, |event| event["level"] = json!("Request"));
    let truncated = with(
        without(&create, &["requestObject", "responseObject"]),
        |event| event["annotations"] = json!({"audit.k8s.io/truncated": "true"}),
    );
    let table = with(without(&create, &["requestObject"]), |event| {
        event["responseObject"] = json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"});
    });
    let found = replayed(&[metadata, patch, truncated, table]);
    let why: Vec<Unjudged> = found.writes.unjudged.keys().map(|key| key.0).collect();
    assert_eq!(
        why,
        [
            Unjudged::Metadata,
            Unjudged::Patch,
            Unjudged::Truncated,
            Unjudged::Other
        ]
    );
    assert!(found.is_blind());
    assert_eq!(denied(&found), (0, 0));
    // The body of a create is the object, but for what the URL says.
    let mut request = without(&create, &["responseObject"]);
    request["level"] = json!("Request");
    request["requestObject"]["metadata"] = json!({"generateName": "chat"});
    let found = replayed(&[request]);
    assert_eq!(denied(&found), (1, 0));
    let name = found.objects.first_key_value().unwrap().0;
    assert_eq!(
        (name.namespace.as_deref(), name.name.as_str()),
        (Some("llm"), "chat")
    );
}

#[test]
fn a_server_side_apply_may_create() {
    let apply = with(wrote("patch", &hpa(BAD, 1)), |event| {
        event["responseStatus"]["code"] = json!(201);
    });
    assert_eq!(denied(&replayed(&[apply])), (1, 0));
}

#[test]
fn a_request_is_that_of_the_user_for_whom_it_is_made() {
    let create = with(wrote("create", &hpa(BAD, 1)), |event| {
        event["impersonatedUser"] = json!({"username": "bob"});
    });
    let found = replayed(&[create]);
    assert!(found.users.contains_key("bob") && !found.users.contains_key("alice"));
    let example = &found.objects.first_key_value().unwrap().1.example;
    assert_eq!(example.impersonated_by.as_deref(), Some("alice"));
}

#[test]
fn exemptions_are_taken_as_granted_while_they_last() {
    let exempt = |until: &str| {
        with(hpa(BAD, 1), |hpa| {
            hpa["metadata"]["annotations"] = json!({
                "exempt.gangplank.dev/gpu-utilization-signal":
                    format!("until={until}; owner=team-llm; reason=load test")
            });
        })
    };
    let found = replayed(&[wrote("create", &exempt("2026-12-01"))]);
    assert_eq!((denied(&found), found.total.exempted), ((0, 0), 1));
    // By the time of the log, not by today's.
    let found = replayed(&[wrote("create", &exempt("2026-11-19"))]);
    assert_eq!((denied(&found), found.total.exempted), ((1, 0), 0));
    let guarded = policy("exemptions: {reviewRequired: [alice]}\n");
    let found = replayed_by(guarded, &[wrote("create", &exempt("2026-12-01"))]);
    assert_eq!(denied(&found), (1, 0));
}

fn silent_pool() -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
        "metadata": {"name": "h100", "uid": "u-3", "resourceVersion": "1"},
        "spec": {
            // As the CRD's defaults leave it.
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": "0s", "budgets": [{"nodes": "10%"}]},
            "template": {"spec": {
                "expireAfter": "720h",
                "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "g"},
                "requirements": [{"key": "karpenter.k8s.aws/instance-family", "operator": "In",
                    "values": ["p5"]}],
            }},
        },
    })
}

#[test]
fn what_would_be_filled_is_not_denied_in_either_mode() {
    for mode in ["enforce", "dryRun"] {
        let policy = policy(&format!("mode: {mode}\n"));
        let found = replayed_by(policy, &[wrote("create", &silent_pool())]);
        assert_eq!((denied(&found), found.total.filled), ((0, 0), 1), "{mode}");
        let example = &found.objects.first_key_value().unwrap().1.example;
        let policy_path = "spec.disruption.consolidationPolicy";
        let filled = example
            .findings
            .iter()
            .find(|told| told.path == policy_path);
        let filled = filled.unwrap();
        assert_eq!(
            (filled.effect, filled.value.as_deref()),
            (Effect::Filled, Some("\"WhenEmpty\"")),
            "{mode}"
        );
        assert_eq!(found.namespaces.keys().next().unwrap(), &None);
    }
}

#[test]
fn a_policy_that_only_warns_is_told_as_if_it_were_enforced() {
    let found = replayed_by(policy("mode: dryRun\n"), &[wrote("create", &hpa(BAD, 1))]);
    assert_eq!(denied(&found), (1, 0));
}

#[test]
fn what_an_autoscaler_scales_is_known_where_the_log_has_shown_it() {
    let cpu = with(hpa(BAD, 5), |hpa| {
        hpa["spec"]["metrics"] = json!([{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    });
    let server = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "llm", "uid": "u-2", "resourceVersion": "4"},
        "spec": {"template": {"spec": {"containers": [{
            "name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
            "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}},
    });
    let rule = "host-resource-signal";
    let alone = replayed(&[wrote("create", &cpu)]);
    assert!(!alone.rules.contains_key(rule));
    let known = replayed(&[wrote("get", &server), wrote("create", &cpu)]);
    assert_eq!(known.rules.get(rule).map(|tally| tally.denied), Some(1));
}

#[test]
fn memory_is_bounded_and_what_is_given_up_is_counted() {
    let mut replay = Replay::within(policy(""), 2000);
    for number in 0..20 {
        let named = with(hpa(GOOD, 1), |hpa| {
            hpa["metadata"]["name"] = json!(format!("chat-{number}"));
        });
        let events = Event::read(wrote("create", &named).to_string().as_bytes()).unwrap();
        for event in &events {
            replay.event(event);
        }
        assert!(replay.world.bytes() <= 2000);
    }
    // The latest ones are kept.
    for (number, expected) in [(19, (1, 0)), (0, (0, 1))] {
        let worse = with(hpa(BAD, 2), |hpa| {
            hpa["metadata"]["name"] = json!(format!("chat-{number}"));
        });
        let before = denied(&replay.found);
        for event in &Event::read(wrote("update", &worse).to_string().as_bytes()).unwrap() {
            replay.event(event);
        }
        let after = denied(&replay.found);
        assert_eq!((after.0 - before.0, after.1 - before.1), expected);
    }
    assert!(replay.finish().forgotten >= 15);
}

#[test]
fn lists_of_events_are_read_and_other_versions_are_not() {
    let mut item = wrote("create", &hpa(BAD, 1));
    for key in ["apiVersion", "kind"] {
        item.as_object_mut().unwrap().remove(key);
    }
    let list = json!({"apiVersion": "audit.k8s.io/v1", "kind": "EventList", "items": [item]});
    assert_eq!(denied(&replayed(&[list])), (1, 0));
    let old = json!({"apiVersion": "audit.k8s.io/v1beta1", "kind": "Event"});
    let error = Event::read(old.to_string().as_bytes()).unwrap_err();
    assert!(error.contains("audit.k8s.io/v1beta1"), "{error}");
}
