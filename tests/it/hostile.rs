//! Whoever wants to knock the webhook over: what each attempt costs is bounded, and honest requests are
//! answered meanwhile. `cargo test --test it -- hostile:: --nocapture` prints what each took.
//!
//! Time is bounded by what reads ten times as much in not much more than ten times the time, on the
//! processor's own clock; memory by the process's own account of its peak (`VmHWM`).

#![allow(
    clippy::print_stdout,
    reason = "figures, for whoever asks with --nocapture"
)]

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gangplank::{
    facts::Facts,
    policy::Policy,
    review::review as judge,
    subject::{Door, Operation, Subject},
    webhook::{BODY_LIMIT, answer, limits::CONNECTIONS},
};
use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::version;
use serde_json::{Value, json};

use crate::{
    enforce::{deployment, hpa, node_pool, scaled_object},
    harness::{Gangplank, SOON, eventually},
    limits::{
        DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS, connect, count,
        evicted, head, request_head, serve_with,
    },
    serve::{certificate, client, post, review},
};

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

const MIB: u64 = 1 << 20;

/// What a binary that is not optimised has in memory when it has nothing to do, and then some.
const BASE: u64 = 96 * MIB;

/// The most memory that the process has ever had, in bytes.
fn peak(gangplank: &Gangplank) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", gangplank.id()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Prints what an attempt took, and holds it to its bound.
fn bounded(what: &str, gangplank: &Gangplank, started: Instant, bound: u64) -> Result<()> {
    let peak = peak(gangplank)?;
    let (seconds, mib) = (started.elapsed().as_secs_f64(), peak / MIB);
    println!(
        "{what}: {seconds:.2} s, peak {mib} MiB of {} MiB",
        bound / MIB
    );
    ensure!(peak < bound, "{what} took {mib} MiB");
    Ok(())
}

/// Somebody honest over one connection, until told to stop. How many answers there were, and the
/// longest wait for one.
struct Honest {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    asking: thread::JoinHandle<Result<Duration>>,
}

impl Honest {
    fn begin(folder: &Path, gangplank: &Gangplank) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut stream = connect(folder, gangplank, "http/1.1")?;
        let asking = {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            move || {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let body = review("honest");
                    let started = Instant::now();
                    write!(stream, "{}{body}", head(body.len()))?;
                    let (head, _) = crate::limits::answer(&mut stream)?;
                    // Shed, an API server asks again, and again.
                    if head.starts_with("HTTP/1.1 503") {
                        ensure!(head.contains("retry-after"), "{head}");
                        continue;
                    }
                    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
                    longest = longest.max(started.elapsed());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(longest)
            }
        };
        Ok(Self {
            stop,
            answered,
            asking: thread::spawn(asking),
        })
    }

    /// Waits for some more answers, and ends.
    fn end(self) -> Result<()> {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("the honest are answered", SOON, || {
            let gone = self.asking.is_finished();
            (gone || self.answered.load(Ordering::Relaxed) >= before + 3).then_some(())
        })?;
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.asking.join().expect("no panic")?;
        let answered = self.answered.load(Ordering::Relaxed);
        println!("  honest meanwhile: {answered} answered, the slowest in {longest:.1?}");
        Ok(())
    }
}

/// A review of an object that is as it is written here.
fn about(kind: &str, object: &str) -> String {
    let (group, kind) = kind.split_once('/').expect("group/kind");
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"h",
        "operation":"CREATE","kind":{{"group":"{group}","version":"v1","kind":"{kind}"}},
        "object":{object}}}}}"#
    )
}

/// `piece` again and again within `before` and `after`, up to the limit of a body.
fn filled(before: &str, piece: &str, after: &str) -> Vec<u8> {
    let room = BODY_LIMIT - before.len() - after.len();
    let mut text = before.to_owned();
    for _ in 0..room / piece.len() {
        text.push_str(piece);
    }
    text.push_str(after);
    text.into_bytes()
}

/// What cannot be said in honest JSON, what can be said at great length, and numbers that are bombs.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let object = about("apps/Deployment", "@");
    let (before, after) = object.split_once('@').expect("a place");
    let containers = r#"{"spec":{"template":{"spec":{"containers":["#;
    let large = |before_all: &str, piece: &str, end: &str| {
        filled(
            &format!("{before}{before_all}"),
            piece,
            &format!("{end}{after}"),
        )
    };
    let ends = "{}]}}}}";
    let replicas = |number: &str| {
        let text = format!(
            r#"{{"spec":{{"replicas":{number},"template":{{"spec":{{"containers":[
            {{"image":"vllm/vllm-openai","args":["-tp","8"],"resources":{{"limits":
            {{"nvidia.com/gpu":{number}}}}}}}]}}}}}}}}"#
        );
        about("apps/Deployment", &text).into_bytes()
    };
    let mut invalid = large(r#"{"metadata":{"name":""#, "x", r#""}}"#);
    invalid[BODY_LIMIT / 2] = 0xff;
    vec![
        ("open brackets", vec![b'['; BODY_LIMIT]),
        ("open braces", br#"{"a":"#.repeat(BODY_LIMIT / 5)),
        ("nested to the limit", {
            let deep = format!("{}{}", r#"{"spec":"#.repeat(120), "}".repeat(120));
            about(
                "apps/Deployment",
                &deep.replace("\"spec\":}", "\"spec\":1}"),
            )
            .into_bytes()
        }),
        ("empty containers", large(containers, "{},", ends)),
        ("zeros for containers", large(containers, "0,", ends)),
        (
            "named containers",
            large(containers, r#"{"name":"a"},"#, ends),
        ),
        ("as many of them as are read", {
            let some = r#"{"name":"a"},"#.repeat(190_000);
            about("apps/Deployment", &format!("{containers}{some}{ends}")).into_bytes()
        }),
        ("nameless members", large(containers, r#"{"":0},"#, ends)),
        ("keys that are twice", large("{", r#""a":1,"#, r#""a":1}"#)),
        (
            "uids that are many",
            filled(r#"{"request":{"#, r#""uid":"x","#, r#""uid":"y"}}"#),
        ),
        (
            "one long string",
            large(r#"{"metadata":{"name":""#, "x", r#""}}"#),
        ),
        (
            "escapes",
            large(r#"{"metadata":{"name":""#, r"\u0000", r#""}}"#),
        ),
        ("a broken letter", invalid),
        ("half of it", large(containers, "{},", "")),
        ("spaces", vec![b' '; BODY_LIMIT]),
        ("digits", filled(r#"{"request":{"uid":"u"},"x":"#, "9", "}")),
        ("decimal bomb", replicas("1e999999999")),
        ("decimal dust", replicas("1e-999999999")),
        ("quantity bomb", replicas(r#""1e1000000000""#)),
        (
            "long quantity",
            replicas(&format!("\"{}\"", "9".repeat(1 << 20))),
        ),
        (
            "long fraction",
            replicas(&format!("\"0.{}\"", "3".repeat(1 << 20))),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_bombs_have_an_answer() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let https = client(folder.path(), &version::TLS13, false);
    let started = Instant::now();
    for (what, body) in bodies() {
        let began = Instant::now();
        let answer = tokio::time::timeout(SOON, post(&https, &gangplank, body)).await;
        let (code, answer) = answer.with_context(|| what.to_owned())??;
        println!(
            "  {what}: {code} in {:.2?}, peak {} MiB",
            began.elapsed(),
            peak(&gangplank)? / MIB
        );
        let expected: &[u16] = match what {
            "as many of them as are read" | "one long string" => &[200],
            "named containers" | "nameless members" | "half of it" => &[413],
            _ => &[200, 400, 413],
        };
        ensure!(expected.contains(&code), "{what}: {code} {answer}");
        ensure!(answer["response"]["uid"].is_string(), "{what}: {answer}");
        // Whatever was asked, the answer is one that can be read.
        ensure!(answer.to_string().len() < 64 * 1024, "{what}");
    }
    honest.end()?;
    ensure!(gangplank.ended().is_none());
    // A list of `{"name":"a"}` would be 55 times its text, and is not read.
    bounded("bombs", &gangplank, started, BASE + 192 * MIB)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_of_the_largest_bodies_at_once() -> Result<()> {
    const BODIES: usize = 64;
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let started = Instant::now();
    let object = about("apps/Deployment", r#"{"metadata":{"name":"@"}}"#);
    let (before, after) = object.split_once('@').context("a place")?;
    let body = filled(before, "x", after);
    let asked = (0..BODIES).map(|_| {
        let (folder, gangplank, body) = (folder.path(), &gangplank, body.clone());
        async move {
            let https = client(folder, &version::TLS13, false);
            post(&https, gangplank, body).await
        }
    });
    let answers = futures_util::future::join_all(asked).await;
    // Answered, or turned away while too much is under way; one that breaks off is turned away too.
    let of = |wanted: u16| {
        let codes = answers.iter().filter_map(|answer| answer.as_ref().ok());
        codes.filter(|(code, _)| *code == wanted).count()
    };
    let (answered, shed) = (of(200), of(503));
    println!("  {BODIES} bodies of {BODY_LIMIT} bytes: {answered} answered, {shed} shed");
    ensure!(answered > 0);
    ensure!(
        answers
            .iter()
            .flatten()
            .all(|(code, _)| [200, 408, 503].contains(code)),
        "{answers:?}"
    );
    honest.end()?;
    ensure!(gangplank.ended().is_none());
    // What all of them may hold by default, twice while one that grows is copied, and of those that are judged
    // once more parsed and in the answer.
    let bound = BASE + (2 + 2) * 32 * MIB;
    bounded("64 of the largest bodies", &gangplank, started, bound)
}

/// As many open files as may be had; how many that is.
fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it may not be raised, fewer have to do.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_and_slow_connections() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let wanted = usize::try_from(raise_open_files().min(5_500))?.saturating_sub(500);
    ensure!(
        wanted > 2 * CONNECTIONS as usize,
        "this test needs open files: ulimit -n"
    );
    let started = Instant::now();
    let mut held = Vec::new();
    let mut refused = 0;
    for index in 0..wanted {
        // A port on loopback that is not accepted from in time resets.
        let Ok(mut stream) = TcpStream::connect(gangplank.webhook()) else {
            refused += 1;
            continue;
        };
        // Nothing, a greeting that breaks off, one that dribbles, and a greeting of nonsense.
        let said: &[u8] = match index % 4 {
            0 => b"",
            1 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            2 => b"\x16",
            _ => b"GET / HTTP/1.1\r\n",
        };
        let _ = stream.write_all(said);
        held.push(stream);
    }
    eventually("the oldest make room", SOON, || {
        (evicted(&gangplank, "address").ok()? > 0).then_some(())
    })?;
    // The bound of their address, which is half of all.
    eventually("no more are left than there may be", SOON, || {
        let room = u64::from(CONNECTIONS) / 2 + 1;
        (count(&gangplank, "gangplank_connections").ok()? <= room).then_some(())
    })?;
    println!(
        "  {} connections, {refused} not taken, {} made room",
        held.len(),
        evicted(&gangplank, "address")?
    );
    ensure!(count(&gangplank, "gangplank_refused_connections_total")? == 0);
    honest.end()?;
    // There is room for somebody new at once.
    let another = client(folder.path(), &version::TLS13, true);
    let began = Instant::now();
    ensure!(post(&another, &gangplank, review("after")).await?.0 == 200);
    println!("  somebody new got in after {:.1?}", began.elapsed());
    drop(held);
    ensure!(gangplank.ended().is_none());
    // 64 KiB for each that is let in: buffers of TLS and HTTP, and the task.
    let bound = BASE + u64::from(CONNECTIONS) * 64 * 1024;
    bounded("5,000 connections", &gangplank, started, bound)
}

#[test]
fn whole_heads_that_dribble_over_real_tls() -> Result<()> {
    const SLOW: usize = 200;
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let started = Instant::now();
    let mut slow = Vec::new();
    for index in 0..SLOW {
        let protocol = if index % 2 == 0 { "http/1.1" } else { "h2" };
        let mut stream = connect(folder.path(), &gangplank, protocol)?;
        let said: &[u8] = match index % 4 {
            0 => b"POST /validate HTTP/1.1\r\nhost: localhost\r\nx: ",
            2 => b"POST /validate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8000000\r\n\r\n{",
            1 => b"PRI * HTTP/2.0\r\n",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        };
        stream.write_all(said)?;
        stream.flush()?;
        slow.push(stream);
    }
    honest.end()?;
    // All but those of HTTP/2 that keep the protocol are let go of within their deadlines.
    eventually("slow connections are let go of", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? <= SLOW as u64 / 4 + 1).then_some(())
    })?;
    drop(slow);
    ensure!(gangplank.ended().is_none());
    bounded(
        "slow over TLS",
        &gangplank,
        started,
        BASE + SLOW as u64 * 128 * 1024,
    )
}

#[test]
fn garbage_instead_of_tls() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let started = Instant::now();
    // A settled sequence of bytes that looks like none (xorshift).
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for index in 0..2_000_u64 {
        let length = next() % 20_000;
        let mut garbage: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[0]).collect();
        // Records of every type and of lengths that are lies; alerts, data before a handshake.
        let heads: [&[u8]; 5] = [
            b"",
            b"\x16\x03\x01\xff\xff\x01\x00\xff\xff",
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\x17\x03\x03\x40\x00",
        ];
        garbage.splice(0..0, heads[usize::try_from(index % 5)?].iter().copied());
        let mut stream = TcpStream::connect(gangplank.webhook())?;
        // It need not listen to the end.
        let _ = stream.write_all(&garbage);
    }
    honest.end()?;
    eventually("nothing is left of it", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? <= 1).then_some(())
    })?;
    ensure!(gangplank.ended().is_none());
    bounded("2,000 times garbage", &gangplank, started, BASE + 32 * MIB)
}

/// Frames that cost the sender little and a careless server much. Each kind has connections of its own;
/// they send until they are told to go or have sent as much as is enough.
#[test]
fn floods_of_http_2_frames() -> Result<()> {
    const CONTINUATION: u8 = 9;
    const WINDOW_UPDATE: u8 = 8;
    const FLOOD: u32 = 20_000;
    type Flood = fn(&mut Frames, u32) -> std::io::Result<()>;
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let honest = Honest::begin(folder.path(), &gangplank)?;
    let started = Instant::now();
    let floods: [(&str, Flood); 8] = [
        ("rapid reset", |frames, index| {
            let stream = 2 * index + 1;
            frames.write(HEADERS, END_HEADERS, stream, &request_head())?;
            frames.write(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
        }),
        // CVE-2024-27316: a head without an end.
        ("continuation", |frames, index| {
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            frames.write(kind, 0, 1, &[0x10, 1, b'x', 1, b'y'].repeat(100))
        }),
        ("pings", |frames, _| frames.write(PING, 0, 0, &[0; 8])),
        ("settings", |frames, _| {
            frames.write(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])
        }),
        // Nothing can be answered: what was made waits.
        ("closed windows", |frames, index| {
            if index == 0 {
                return frames.write(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
            }
            let stream = 2 * index + 1;
            frames.write(HEADERS, END_HEADERS, stream, &request_head())?;
            frames.write(DATA, END_STREAM, stream, review("x").as_bytes())
        }),
        ("empty data", |frames, index| {
            if index == 0 {
                return frames.write(HEADERS, END_HEADERS, 1, &request_head());
            }
            frames.write(DATA, 0, 1, &[])
        }),
        ("windows", |frames, _| {
            frames.write(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())
        }),
        // One entry of the table, named ten thousand times: a bomb where nobody counts.
        ("header bomb", |frames, index| {
            let mut head = request_head();
            head.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
            head.extend(vec![b'y'; 4_000]);
            head.extend(vec![0xbe; 10_000]);
            frames.write(HEADERS, END_HEADERS, 2 * index + 1, &head)
        }),
    ];
    thread::scope(|scope| {
        for (what, flood) in floods {
            for _ in 0..4 {
                let (folder, gangplank) = (folder.path(), &gangplank);
                scope.spawn(move || {
                    let (mut frames, _) = Frames::open(folder, gangplank).expect(what);
                    // Nothing it says is read: its own buffers must not grow for that.
                    let timeout = Some(Duration::from_secs(5));
                    frames.0.sock.set_write_timeout(timeout).expect(what);
                    let sent = (0..FLOOD).take_while(|index| flood(&mut frames, *index).is_ok());
                    let sent = sent.count();
                    println!("  {what}: {sent} sent");
                });
            }
        }
    });
    honest.end()?;
    eventually("nothing is left of it", SOON, || {
        let left = |name: &str| count(&gangplank, name).ok();
        (left("gangplank_connections")? <= 1 && left("gangplank_in_flight_requests")? == 0)
            .then_some(())
    })?;
    ensure!(gangplank.ended().is_none());
    // 32 connections; each may have 32 requests under way and a window of answers.
    bounded("floods of frames", &gangplank, started, BASE + 64 * MIB)
}

/// Time that this thread has had on a processor, where the system tells; else the time of day.
fn busy() -> Duration {
    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
}

/// An object with so many of something.
type Many = fn(usize) -> Value;

fn list(count: usize, element: impl Fn(usize) -> Value) -> Value {
    Value::Array((0..count).map(element).collect())
}

fn map(count: usize, member: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..count).map(member).collect())
}

fn server(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = deployment("many", 8, 1, &["--tensor-parallel-size=8"]);
    change(&mut object);
    object
}

/// A model server's pod spec and first container.
fn pod(object: &mut Value) -> &mut Value {
    &mut object["spec"]["template"]["spec"]
}

fn crowds() -> Vec<(&'static str, Many)> {
    vec![
        ("containers", |n| {
            server(|object| {
                pod(object)["containers"] = list(n, |index| {
                    json!({
                "name": format!("c{index}"), "image": "vllm/vllm-openai",
                "args": ["--tensor-parallel-size=8"], "resources": {"limits": {"nvidia.com/gpu": 7}}})
                });
            })
        }),
        ("init containers", |n| {
            server(|object| {
                pod(object)["initContainers"] = list(
                    n,
                    |index| json!({"name": format!("c{index}"), "image": "a"}),
                );
            })
        }),
        ("words", |n| {
            server(|object| {
                pod(object)["containers"][0]["args"] =
                    list(n, |index| json!(format!("--x{index}={index}")));
            })
        }),
        ("a long script", |n| {
            server(|object| {
                let script = "vllm serve m -tp 8 & ".repeat(n);
                pod(object)["containers"][0]["command"] = json!(["sh", "-c", script]);
            })
        }),
        ("variables that name each other", |n| {
            server(|object| {
                let container = &mut pod(object)["containers"][0];
                container["env"] = list(n, |index| {
                    json!({
                "name": format!("A{index}"), "value": format!("$(A{})", index.saturating_sub(1))})
                });
                container["args"] = json!([format!("--tensor-parallel-size=$(A{})", n - 1)]);
            })
        }),
        ("volumes", |n| {
            server(|object| {
                pod(object)["volumes"] = list(
                    n,
                    |index| json!({"name": format!("v{index}"), "emptyDir": {}}),
                );
                pod(object)["containers"][0]["volumeMounts"] = list(
                    n,
                    |index| json!({"name": format!("v{index}"), "mountPath": format!("/m{index}")}),
                );
            })
        }),
        ("tolerations", |n| {
            server(|object| {
                pod(object)["tolerations"] = list(
                    n,
                    |index| json!({"key": format!("k{index}"), "operator": "Exists"}),
                );
            })
        }),
        ("resources", |n| {
            server(|object| {
                pod(object)["containers"][0]["resources"]["limits"] =
                    map(n, |index| (format!("example.com/r{index}"), json!("1")));
            })
        }),
        ("labels and annotations", |n| {
            server(|object| {
                object["metadata"]["labels"] = map(n, |index| (format!("l{index}"), json!("x")));
                object["metadata"]["annotations"] = map(n, |index| {
                    (
                        format!("exempt.gangplank.dev/r{index}"),
                        json!("until=soon"),
                    )
                });
            })
        }),
        ("owners", |n| {
            server(|object| {
                object["metadata"]["ownerReferences"] = list(n, |index| {
                    json!({
                "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
                "name": format!("o{index}"), "uid": "u", "controller": true})
                });
            })
        }),
        ("managers", |n| {
            server(|object| {
                object["metadata"]["managedFields"] = list(n, |index| {
                    json!({
                "manager": format!("m{index}"), "operation": "Apply", "apiVersion": "apps/v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:template": {"f:spec": {}}}}})
                });
            })
        }),
        ("metrics", |n| {
            let mut object = hpa("many", "DCGM_FI_DEV_GPU_UTIL");
            let metric = object["spec"]["metrics"][0].clone();
            object["spec"]["metrics"] = list(n, |index| {
                let mut metric = metric.clone();
                metric["pods"]["metric"]["name"] = json!(format!("DCGM_FI_DEV_GPU_UTIL_{index}"));
                metric
            });
            object
        }),
        ("triggers", |n| {
            let mut object = scaled_object("many", "avg(DCGM_FI_DEV_GPU_UTIL)");
            let trigger = object["spec"]["triggers"][0].clone();
            object["spec"]["triggers"] = list(n, |index| {
                let mut trigger = trigger.clone();
                trigger["name"] = json!(format!("t{index}"));
                trigger["metadata"]["query"] = json!(format!("avg(DCGM_FI_DEV_GPU_UTIL_{index})"));
                trigger
            });
            object
        }),
        ("triggers in a formula", |n| {
            let mut object = scaled_object("many", "avg(DCGM_FI_DEV_GPU_UTIL)");
            let trigger = object["spec"]["triggers"][0].clone();
            object["spec"]["triggers"] = list(n, |index| {
                let mut trigger = trigger.clone();
                trigger["name"] = json!(format!("t{index}"));
                trigger
            });
            let names: Vec<String> = (0..n).map(|index| format!("t{index}")).collect();
            object["spec"]["advanced"] =
                json!({"scalingModifiers": {"formula": names.join(" + ")}});
            object
        }),
        ("requirements", |n| {
            let mut object = node_pool("many", None);
            object["spec"]["template"]["spec"]["requirements"] = list(n, |index| {
                json!({
                "key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": [format!("p5.{index}xlarge"), "m5.large"]})
            });
            object
        }),
        ("instance types", |n| {
            let mut object = node_pool("many", None);
            object["spec"]["template"]["spec"]["requirements"] = json!([{
                "key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": list(n, |index| json!(format!("p5.{index}xlarge")))}]);
            object
        }),
        ("taints", |n| {
            let mut object = node_pool("many", None);
            object["spec"]["template"]["spec"]["taints"] = list(
                n,
                |index| json!({"key": format!("t{index}"), "effect": "NoSchedule"}),
            );
            object
        }),
        ("budgets", |n| {
            let disruption = json!({"consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": "0s", "budgets": list(n, |index| json!({
                    "nodes": "0", "reasons": ["Underutilized"], "schedule": format!("{} 0 * * *", index % 60),
                    "duration": "10m"}))});
            node_pool("many", Some(disruption))
        }),
        ("worker groups", |n| {
            json!({
                "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "many"},
                "spec": {"workerGroupSpecs": list(n, |index| json!({
                    "groupName": format!("g{index}"), "replicas": 1, "numOfHosts": 2,
                    "template": {"spec": {"containers": [{"name": "a", "image": "rayproject/ray-llm",
                        "resources": {"limits": {"nvidia.com/gpu": 8}}}]}}}))},
            })
        }),
        ("cliques", |n| {
            json!({
                "apiVersion": "grove.io/v1alpha1", "kind": "PodCliqueSet", "metadata": {"name": "many"},
                "spec": {"template": {"cliques": list(n, |index| json!({
                    "name": format!("c{index}"), "spec": {"replicas": 8, "minAvailable": 7, "podSpec": {"containers": [
                        {"name": "a", "image": "vllm/vllm-openai", "args": ["-tp=8", "--nnodes=8"],
                        "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}))}},
            })
        }),
        ("services", |n| {
            json!({
                "apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment", "metadata": {"name": "many"},
                "spec": {"services": map(n, |index| (format!("s{index}"), json!({
                    "componentType": "worker", "replicas": 1, "multinode": {"nodeCount": 2},
                    "resources": {"limits": {"gpu": "8"}},
                    "extraPodSpec": {"mainContainer": {"image": "x/vllm-runtime",
                        "args": ["--tensor-parallel-size", "16"]}}})))},
            })
        }),
    ]
}

/// Judges an object as a CREATE and as an UPDATE of itself with a fault more; gives the answers' size.
fn judged(object: &Value) -> usize {
    let policy = Policy::default();
    let facts = Facts::unknown();
    let mut size = 0;
    for door in [Door::Mutate, Door::Validate] {
        let created = Subject::from_manifest(Arc::new(object.clone())).expect("a manifest");
        let created = Subject { door, ..created };
        let mut changed = object.clone();
        changed["spec"]["replicas"] = json!(3);
        let updated = Subject {
            operation: Operation::Update,
            old: Some(Arc::clone(&created.value)),
            ..created.with_value(changed)
        };
        for subject in [created, updated] {
            let review = judge(&policy, &facts, &subject, Timestamp::UNIX_EPOCH);
            let answer = answer::answer(&policy, "uid", &subject, &review);
            size = size.max(answer.to_string().len());
        }
    }
    size
}

/// What four times as many cost is not much more than four times as much: a rule that compares each
/// with every other would cost sixteen times.
#[test]
#[ignore = "takes minutes: .ci/full runs it"]
fn ten_thousand_of_anything_cost_no_more_than_each_alone() {
    const FEW: usize = 500;
    let mut slow = String::new();
    for (what, make) in crowds() {
        let cost = |count: usize, times: usize| {
            let object = make(count);
            let once = |_| {
                let before = busy();
                let size = judged(&object);
                // A denial that nobody can read is of no use; a patch names what it fills.
                assert!(size < 4 << 20, "{what}: {size} bytes");
                busy().saturating_sub(before)
            };
            (0..times).map(once).min().unwrap_or_default()
        };
        let (few, more) = (cost(FEW, 3), cost(4 * FEW, 3));
        let ratio = more.as_secs_f64() / few.as_secs_f64().max(1e-6);
        // The clock ticks too seldom for what takes next to nothing.
        if ratio > 9.0 && more > Duration::from_millis(100) {
            println!("{what}: {} in {more:.1?}, {ratio:.1} times {FEW}", 4 * FEW);
            let _ = writeln!(slow, "{what}: {ratio:.1} times");
            continue;
        }
        println!("{what}: {ratio:.1}; 10,000 in {:.1?}", cost(10_000, 1));
    }
    assert!(slow.is_empty(), "{slow}");
}

/// YAML that says much in few letters, or nothing at great length.
fn documents() -> Vec<(&'static str, String)> {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        let _ = writeln!(
            bomb,
            "a{level}: &a{level} [{}]",
            below.trim_end_matches(", ")
        );
    }
    let head = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n";
    let mut merges = "m0: &m0 {a: 1}\n".to_owned();
    for level in 1..40 {
        let below = level - 1;
        let _ = writeln!(
            merges,
            "m{level}: &m{level} {{<<: [*m{below}, *m{below}], k{level}: *m{below}}}"
        );
    }
    vec![
        ("aliases", format!("{bomb}{head}  x: *a11\n")),
        ("merges", format!("{merges}{head}  x: *m39\n")),
        ("an alias of itself", format!("{head}  x: &x [*x]\n")),
        (
            "one alias many times",
            format!(
                "{head}  x: &x {}\n  y: [{}]\n",
                "z".repeat(10_000),
                "*x, ".repeat(10_000)
            ),
        ),
        (
            "open brackets",
            format!("{head}  x: {}", "[".repeat(1 << 20)),
        ),
        (
            "dashes",
            format!("{head}  x:\n  {}x\n", "- ".repeat(100_000)),
        ),
        (
            "indentation",
            (0..3_000).fold(head.to_owned(), |mut text, depth| {
                let _ = writeln!(text, "{}a:", " ".repeat(2 + depth));
                text
            }),
        ),
        ("documents", "---\n{}\n".repeat(200_000)),
        (
            "anchors",
            format!(
                "{head}{}",
                (0..100_000).fold(String::new(), |mut text, index| {
                    let _ = writeln!(text, "  k{index}: &k{index} x");
                    text
                })
            ),
        ),
        ("quotes", format!("{head}  x: \"{}", "\\\"".repeat(1 << 20))),
        (
            "a number",
            format!("{head}  replicas: {}\n", "9".repeat(1 << 20)),
        ),
        (
            "decimal bomb",
            format!("{head}  replicas: 1e999999999\n  x: 1e-999999999\n"),
        ),
        (
            "a key that is twice",
            format!("{head}{}", "  a: 1\n".repeat(100_000)),
        ),
    ]
}

/// `check` and `policy check` in an address space of a gigabyte: what needs more ends with a signal.
#[test]
fn yaml_bombs_are_errors_of_their_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (what, text) in documents() {
        let file = folder.path().join("bomb.yaml");
        fs::write(&file, &text)?;
        for command in ["check", "check --fix", "policy check", "check --policy"] {
            let started = Instant::now();
            // The world of check is a thread or two; a gigabyte is what it may map, not what it uses.
            let script = format!("ulimit -v 1048576; exec \"$1\" {command} \"$2\" $3");
            let also = if command.ends_with("--policy") {
                file.as_os_str()
            } else {
                "".as_ref()
            };
            let mut child = Command::new("sh")
                .args(["-c", &script, "sh", BINARY])
                .arg(&file)
                .arg(also)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut said = String::new();
            let pipe = child.stderr.as_mut().context("a pipe")?;
            pipe.read_to_string(&mut said)?;
            let mut code = None;
            eventually(format_args!("{command} on {what} ends"), SOON, || {
                code = child.try_wait().ok().flatten();
                code.map(|_| ())
            })?;
            println!("{what}: {command}: {code:?} in {:.2?}", started.elapsed());
            let code = code.and_then(|status| status.code());
            ensure!(
                matches!(code, Some(0..=2)),
                "{command} on {what}: {code:?}\n{said}"
            );
        }
    }
    Ok(())
}
