//! Large objects are judged on threads of their own: whatever they take, small ones are answered.

use std::{
    sync::{Arc, Condvar, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    body::Body,
    http::{Request, header},
};
use gangplank::{
    cluster::access::Access,
    facts::Facts,
    metrics::Metrics,
    policy::Policy,
    review::Review,
    subject::Subject,
    webhook::{self, Desk, limits::Pool},
};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use crate::{enforce::hpa, harness::SOON};

/// Objects that are held, by the first word of their name: how many have begun, and whether they may end.
static HELD: LazyLock<(Mutex<Vec<Word>>, Condvar)> = LazyLock::new(Default::default);

#[derive(Debug)]
struct Word {
    text: String,
    begun: usize,
    released: bool,
}

/// Calls `with` on what is known of a word.
fn with_word<T>(word: &str, with: impl FnOnce(&mut Word) -> T) -> T {
    let mut words = HELD.0.lock().unwrap_or_else(PoisonError::into_inner);
    let index = words
        .iter()
        .position(|one| one.text == word)
        .unwrap_or_else(|| {
            words.push(Word {
                text: word.to_owned(),
                begun: 0,
                released: false,
            });
            words.len() - 1
        });
    let result = with(&mut words[index]);
    HELD.1.notify_all();
    result
}

fn release(word: &str) {
    with_word(word, |word| word.released = true);
}

fn begun(word: &str) -> usize {
    with_word(word, |word| word.begun)
}

/// Judges as ever, but what is named `held-...` only when it is released, and what is named `explosive-...`
/// never.
pub(crate) fn reviewer(
    policy: &Policy,
    facts: &Facts,
    subject: &Subject,
    now: Timestamp,
) -> Review {
    assert!(!subject.name.starts_with("explosive"), "as asked");
    if let Some(word) = subject.name.strip_prefix("held-") {
        with_word(word, |word| word.begun += 1);
        let words = HELD.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held =
            |words: &mut Vec<Word>| (words.iter()).any(|one| one.text == word && !one.released);
        let _released = (HELD.1.wait_timeout_while(words, SOON, is_held))
            .unwrap_or_else(PoisonError::into_inner);
    }
    gangplank::review::review(policy, facts, subject, now)
}

/// A desk that judges two large objects at a time.
fn desk() -> Desk {
    Desk {
        reviewer,
        pool: Pool::new(2),
        ..Desk::new(Policy::default(), Arc::new(Metrics::new())).with_body_bytes(64 << 20)
    }
}

fn review_of(object: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": object["metadata"]["name"], "operation": "CREATE", "namespace": "inference",
            "kind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
            "userInfo": {"username": "ann"},
            "object": object,
        },
    })
    .to_string()
}

fn small(name: &str) -> String {
    review_of(&hpa(name, "DCGM_FI_DEV_GPU_UTIL"))
}

/// The same object with so much beside that it is large.
fn large(name: &str) -> String {
    let mut object = hpa(name, "DCGM_FI_DEV_GPU_UTIL");
    object["metadata"]["annotations"] = json!({"note": "x".repeat(256 * 1024)});
    review_of(&object)
}

async fn ask(desk: &Arc<Desk>, path: &str, body: String) -> (u16, Value) {
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .unwrap();
    let router = webhook::router(Arc::clone(desk));
    let response = router.oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap())
}

/// Asks beside everything else.
fn asking(desk: &Arc<Desk>, path: &'static str, body: String) -> JoinHandle<(u16, Value)> {
    let desk = Arc::clone(desk);
    tokio::spawn(async move { ask(&desk, path, body).await })
}

async fn comes(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    (tokio::time::timeout(SOON, waiting).await).with_context(|| format!("it never comes: {what}"))
}

fn metric(desk: &Desk, line: &str) -> u64 {
    let text = desk.metrics.encode();
    let value = text
        .lines()
        .find_map(|one| one.strip_prefix(line)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {line} in {text}"))
        .parse()
        .unwrap()
}

const DENIED: &str = "gpu-utilization-signal";

fn is_denied((code, answer): &(u16, Value), uid: &str) {
    assert_eq!(
        (*code, answer["response"]["uid"].as_str()),
        (200, Some(uid))
    );
    let message = answer["response"]["status"]["message"].as_str();
    assert!(message.unwrap().contains(DENIED), "{answer}");
}

/// The runtime has one thread here: what a large object takes is not taken from it.
#[tokio::test]
async fn a_small_object_does_not_wait_for_large_ones() -> Result<()> {
    let desk = Arc::new(desk());
    let held: Vec<_> = (0..6)
        .map(|_| asking(&desk, "/validate?timeout=30s", large("held-small")))
        .collect();
    comes("the threads are taken", || begun("small") == 2).await?;
    comes("all have come", || {
        metric(&desk, "gangplank_large_in_flight_requests") == 6
    })
    .await?;
    for number in 0..20 {
        let name = format!("small-{number}");
        is_denied(&ask(&desk, "/validate", small(&name)).await, &name);
    }
    assert!(held.iter().all(|one| !one.is_finished()));
    assert_eq!(begun("small"), 2);
    release("small");
    for one in held {
        is_denied(&one.await?, "held-small");
    }
    assert_eq!(begun("small"), 6);
    assert_eq!(metric(&desk, "gangplank_large_in_flight_requests"), 0);
    assert_eq!(metric(&desk, "gangplank_body_bytes"), 0);
    Ok(())
}

#[tokio::test]
async fn a_large_object_whose_time_is_over_is_not_judged() -> Result<()> {
    let desk = Arc::new(desk());
    let held: Vec<_> = (0..2)
        .map(|_| asking(&desk, "/validate?timeout=30s", large("held-time")))
        .collect();
    comes("the threads are taken", || begun("time") == 2).await?;
    let (code, answer) = ask(&desk, "/validate?timeout=50ms", large("held-time")).await;
    assert_eq!((code, &answer["response"]["allowed"]), (503, &json!(false)));
    assert_eq!(
        metric(&desk, "gangplank_shed_requests_total{reason=\"time\"}"),
        1
    );
    release("time");
    for one in held {
        is_denied(&one.await?, "held-time");
    }
    assert_eq!(begun("time"), 2);
    is_denied(
        &ask(&desk, "/validate", large("held-time")).await,
        "held-time",
    );
    Ok(())
}

#[tokio::test]
async fn large_objects_take_no_more_than_half_of_the_requests_in_flight() -> Result<()> {
    let desk = Arc::new(desk().with_in_flight(8));
    let held: Vec<_> = (0..4)
        .map(|_| asking(&desk, "/validate?timeout=30s", large("held-half")))
        .collect();
    comes("all have come", || {
        metric(&desk, "gangplank_large_in_flight_requests") == 4
    })
    .await?;
    let (code, _) = ask(&desk, "/validate", large("fifth")).await;
    assert_eq!(code, 503);
    assert_eq!(
        metric(&desk, "gangplank_shed_requests_total{reason=\"large\"}"),
        1
    );
    is_denied(&ask(&desk, "/validate", small("beside")).await, "beside");
    release("half");
    for one in held {
        is_denied(&one.await?, "held-half");
    }
    Ok(())
}

#[tokio::test]
async fn small_requests_beyond_the_limit_are_shed_at_once() -> Result<()> {
    let desk = Arc::new(desk().with_in_flight(1));
    let held = asking(&desk, "/validate?timeout=30s", large("held-one"));
    comes("it is judged", || begun("one") == 1).await?;
    let (code, answer) = ask(&desk, "/validate", small("beyond")).await;
    assert_eq!((code, &answer["response"]["allowed"]), (503, &json!(false)));
    assert_eq!(
        metric(&desk, "gangplank_shed_requests_total{reason=\"requests\"}"),
        1
    );
    // Not for want of sense: what counts requests that make none stays alone.
    assert!(!desk.metrics.encode().contains("code=\"503\""));
    release("one");
    is_denied(&held.await?, "held-one");
    is_denied(&ask(&desk, "/validate", small("after")).await, "after");
    assert_eq!(metric(&desk, "gangplank_in_flight_requests"), 0);
    Ok(())
}

#[tokio::test]
async fn bytes_of_complete_bodies_beyond_the_limit_are_shed_and_small_ones_are_not() -> Result<()> {
    let desk = Arc::new(desk().with_body_bytes(8 << 20));
    let mut object = hpa("held-bytes", "DCGM_FI_DEV_GPU_UTIL");
    object["metadata"]["annotations"] = json!({"note": "x".repeat((8 << 20) - 4096)});
    let held = asking(&desk, "/validate?timeout=30s", review_of(&object));
    comes("it is judged", || begun("bytes") == 1).await?;
    let (code, _) = ask(&desk, "/validate", large("beyond")).await;
    assert_eq!(code, 503);
    assert_eq!(
        metric(&desk, "gangplank_shed_requests_total{reason=\"bytes\"}"),
        1
    );
    is_denied(&ask(&desk, "/validate", small("beside")).await, "beside");
    release("bytes");
    is_denied(&held.await?, "held-bytes");
    is_denied(&ask(&desk, "/validate", large("after")).await, "after");
    assert_eq!(metric(&desk, "gangplank_body_bytes"), 0);
    Ok(())
}

#[tokio::test]
async fn a_panic_on_a_large_object_is_an_error_of_its_request_alone() -> Result<()> {
    let desk = Arc::new(desk());
    for _ in 0..4 {
        let (code, answer) = ask(&desk, "/validate", large("explosive-large")).await;
        assert_eq!(
            (code, answer["response"]["uid"].as_str()),
            (500, Some("explosive-large"))
        );
    }
    is_denied(&ask(&desk, "/validate", large("sound")).await, "sound");
    assert_eq!(metric(&desk, "gangplank_panics_total"), 4);
    assert_eq!(metric(&desk, "gangplank_large_in_flight_requests"), 0);
    Ok(())
}

/// The authorizer is one that takes connections and says nothing: it is waited for, for a second.
#[tokio::test]
async fn no_turn_is_held_while_the_authorizer_is_asked() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("http://{}", silent.local_addr()?).parse()?;
    let client = kube::Client::try_from(kube::Config::new(uri))?;
    let metrics = Arc::new(Metrics::new());
    let access = Access::new(client, Arc::clone(&metrics));
    let desk = Desk {
        reviewer,
        pool: Pool::new(1),
        clock: crate::fixtures::now,
        ..Desk::new(Policy::default(), metrics).with_access(access)
    };
    let desk = Arc::new(desk);
    let mut exempt = hpa("asks", "DCGM_FI_DEV_GPU_UTIL");
    exempt["metadata"]["annotations"] = json!({
        "note": "x".repeat(256 * 1024),
        "exempt.gangplank.dev/gpu-utilization-signal": "until=2027-01-31; owner=team-llm; reason=load test",
    });
    let asks = asking(&desk, "/validate?timeout=30s", review_of(&exempt));
    // The question is on its way, and will be for as long as we like: the only thread is free.
    let (_question, _) = tokio::time::timeout(SOON, silent.accept()).await??;
    let held = asking(&desk, "/validate?timeout=30s", large("held-sar"));
    comes("the thread is free", || begun("sar") == 1).await?;
    // And the verdict waits for its turn like any other.
    release("sar");
    is_denied(&held.await?, "held-sar");
    let (code, answer) = asks.await?;
    assert_eq!(
        (code, answer["response"]["uid"].as_str()),
        (200, Some("asks"))
    );
    let message = answer["response"]["status"]["message"].as_str();
    assert!(
        message
            .context("a message")?
            .contains("did not say in time"),
        "{answer}"
    );
    Ok(())
}
