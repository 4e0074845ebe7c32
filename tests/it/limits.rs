//! What clients may take of `gangplank serve`, and how it lets go of them: by real TLS connections,
//! written to byte by byte, for no client library misbehaves like this.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gangplank::{
    cluster,
    metrics::Metrics,
    policy::Policy,
    webhook::{self, BODY_LIMIT, Desk},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types, version};
use serde_json::Value;

use crate::{
    harness::{Assets, Cluster, Gangplank, SOON, eventually, leash::Signal},
    overheard::Serving,
    serve::{certificate, client, get, post, review},
};

/// Requests shed because too many were under way, and because a body had to make room.
const SHED: &str = "gangplank_shed_requests_total{reason=\"requests\"}";
const SHED_BYTES: &str = "gangplank_shed_requests_total{reason=\"bytes\"}";

/// Connections closed to make room for new ones.
pub(crate) fn evicted(gangplank: &Gangplank, reason: &str) -> Result<u64> {
    let name = format!("gangplank_evicted_connections_total{{reason=\"{reason}\"}}");
    count(gangplank, &name)
}

const BINARY: &str = env!("CARGO_BIN_EXE_gangplank");

pub(crate) fn serve_with(folder: &Path, args: &[&str]) -> Result<Gangplank> {
    let mut all = vec![
        format!("--tls-cert={}", folder.join("tls.crt").display()),
        format!("--tls-key={}", folder.join("tls.key").display()),
    ];
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    Gangplank::start(Path::new(BINARY), &all)
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn connect(folder: &Path, gangplank: &Gangplank, protocol: &str) -> Result<Tls> {
    let stream = TcpStream::connect(gangplank.webhook())?;
    connect_over(stream, client_config(folder, protocol)?)
}

/// What a client of this protocol trusts.
pub(crate) fn client_config(folder: &Path, protocol: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in gangplank::tls::files::certificates(&folder.join("tls.crt"))? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(Arc::new(config))
}

pub(crate) fn connect_over(stream: TcpStream, config: Arc<ClientConfig>) -> Result<Tls> {
    let name = pki_types::ServerName::try_from("localhost")?;
    stream.set_read_timeout(Some(SOON))?;
    let connection = ClientConnection::new(config, name)?;
    Ok(StreamOwned::new(connection, stream))
}

/// The head of an HTTP/1 request whose body has this length.
pub(crate) fn head(length: usize) -> String {
    format!(
        "POST /validate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
}

/// A request of HTTP/1 whose body is half sent.
fn half_sent(folder: &Path, gangplank: &Gangplank, uid: &str) -> Result<Tls> {
    let mut stream = connect(folder, gangplank, "http/1.1")?;
    let body = review(uid);
    stream.write_all(head(body.len()).as_bytes())?;
    stream.write_all(&body.as_bytes()[..body.len() / 2])?;
    stream.flush()?;
    Ok(stream)
}

/// Whether the other side has gone, as seen by one who reads.
pub(crate) fn has_gone(read: &std::io::Result<usize>) -> bool {
    match read {
        Ok(count) => *count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// An answer of HTTP/1: its head and its body.
pub(crate) fn answer(stream: &mut Tls) -> Result<(String, Value)> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part)?;
        ensure!(
            count > 0,
            "it broke off: {}",
            String::from_utf8_lossy(&text)
        );
        text.extend(&part[..count]);
        let whole = String::from_utf8(text.clone())?;
        if let Some((head, body)) = whole.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return Ok((head.to_owned(), body));
        }
    }
}

/// What a counter or gauge without labels stands at.
pub(crate) fn count(gangplank: &Gangplank, name: &str) -> Result<u64> {
    let metrics = get(gangplank, "/metrics")?.1;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("no {name} in\n{metrics}"))?;
    Ok(line.parse()?)
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &[])?;
    // Nothing after the handshake, and half a head.
    let silent = connect(folder.path(), &gangplank, "http/1.1")?;
    let mut slow = connect(folder.path(), &gangplank, "http/1.1")?;
    slow.write_all(b"POST /validate HTTP/1.1\r\nhost:")?;
    slow.flush()?;
    let mut kept = connect(folder.path(), &gangplank, "http/1.1")?;
    let body = review("kept");
    write!(kept, "{}{body}", head(body.len()))?;
    assert!(answer(&mut kept)?.0.starts_with("HTTP/1.1 200"));
    let good = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&good, &gangplank, review("good")).await?.0, 200);
    for mut stream in [silent, slow] {
        let mut text = Vec::new();
        // What is said in parting does not matter, nor does how; that it ends does.
        let ended = stream.read_to_end(&mut text);
        assert!(
            ended.is_ok() || has_gone(&ended),
            "it is still open: {ended:?}"
        );
    }
    // An API server keeps a connection that it does not use, and counts on it.
    write!(kept, "{}{body}", head(body.len()))?;
    assert!(answer(&mut kept)?.0.starts_with("HTTP/1.1 200"));
    assert_eq!(post(&good, &gangplank, review("after")).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn a_body_that_dribbles_in_is_answered_by_408() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &[])?;
    let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
    stream.write_all(head(100_000).as_bytes())?;
    // Nobody waits for longer than that between two bytes.
    stream
        .sock
        .set_read_timeout(Some(Duration::from_millis(50)))?;
    let (started, mut first) = (Instant::now(), [0; 12]);
    loop {
        ensure!(started.elapsed() < SOON, "it is never answered");
        stream.write_all(b" ")?;
        stream.flush()?;
        match stream.read(&mut first) {
            Ok(count) => {
                ensure!(count == first.len(), "it breaks off");
                break;
            }
            Err(error) => ensure!(!has_gone(&Err(error)), "it breaks off"),
        }
    }
    assert_eq!(&first, b"HTTP/1.1 408");
    let good = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&good, &gangplank, review("good")).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn beyond_the_limit_the_least_useful_connection_makes_room() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-connections=8"])?;
    let good = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&good, &gangplank, review("before")).await?.0, 200);
    let body = review("idle");
    let mut idle = connect(folder.path(), &gangplank, "http/1.1")?;
    write!(idle, "{}{body}", head(body.len()))?;
    assert!(answer(&mut idle)?.0.starts_with("HTTP/1.1 200"));
    assert_eq!(post(&good, &gangplank, review("again")).await?.0, 200);
    // No word of TLS: an address has four of them, and the oldest goes.
    let mut silent = std::collections::VecDeque::new();
    for number in 1..=24_u64 {
        let stream = TcpStream::connect(gangplank.webhook())?;
        stream.set_read_timeout(Some(SOON))?;
        silent.push_back(stream);
        // On a slow machine its handshake may be over time first.
        if number > 4 {
            let mut oldest = silent.pop_front().context("one")?;
            assert!(has_gone(&oldest.read(&mut [0])));
        }
    }
    assert!(evicted(&gangplank, "address")? > 0);
    assert_eq!(post(&good, &gangplank, review("during")).await?.0, 200);
    write!(idle, "{}{body}", head(body.len()))?;
    assert!(answer(&mut idle)?.0.starts_with("HTTP/1.1 200"));
    assert_eq!(count(&gangplank, "gangplank_refused_connections_total")?, 0);
    drop(silent);
    eventually("there is room again", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? == 2).then_some(())
    })?;
    Ok(())
}

#[test]
fn an_idle_connection_that_makes_room_is_closed_cleanly() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-connections=4"])?;
    let body = review("one");
    let mut open = Vec::new();
    for number in 0..12_u64 {
        let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
        write!(stream, "{}{body}", head(body.len()))?;
        let (head, _) = answer(&mut stream)?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        open.push(stream);
        assert_eq!(evicted(&gangplank, "idle")?, number.saturating_sub(3));
    }
    // The end of TLS (close_notify), not only that of TCP: rustls tells them apart.
    for stream in &mut open[..8] {
        assert_eq!(stream.read(&mut [0])?, 0);
    }
    for stream in &mut open[8..] {
        write!(stream, "{}{body}", head(body.len()))?;
        assert!(answer(stream)?.0.starts_with("HTTP/1.1 200"));
    }
    assert!(count(&gangplank, "gangplank_connections")? <= 4);
    Ok(())
}

#[test]
fn a_client_that_does_not_read_makes_room_all_the_same() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-connections=4"])?;
    let body = review("x");
    // Requests without end and nobody who takes the answers, until nothing goes through any more.
    let mut deaf = connect(folder.path(), &gangplank, "http/1.1")?;
    deaf.sock
        .set_write_timeout(Some(Duration::from_millis(500)))?;
    let request = format!("{}{body}", head(body.len())).repeat(64);
    while deaf.write_all(request.as_bytes()).is_ok() {}
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
        write!(stream, "{}{body}", head(body.len()))?;
        assert!(answer(&mut stream)?.0.starts_with("HTTP/1.1 200"));
        open.push(stream);
    }
    eventually("it has gone", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? == 4).then_some(())
    })?;
    assert_eq!(evicted(&gangplank, "idle")?, 1);
    Ok(())
}

/// These lines of the log are no more than one a second.
fn at_most_one_a_second(gangplank: &Gangplank, since: Instant, messages: [&str; 2]) {
    let log = gangplank.log();
    let told = |line: &&str| messages.iter().any(|message| line.contains(message));
    let lines = log.lines().filter(told).count();
    let most = usize::try_from(since.elapsed().as_secs()).unwrap() + 1;
    assert!((1..=most).contains(&lines), "{lines} lines of {messages:?}");
}

#[test]
fn floods_are_told_in_a_line_a_second_that_counts() -> Result<()> {
    const FLOOD: u64 = 400;
    let folder = certificate();
    let began = Instant::now();
    let gangplank = serve_with(folder.path(), &["--max-connections=16"])?;
    let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
    for number in 0..FLOOD {
        let bad = if number % 2 == 0 {
            format!("{}{{", head(1))
        } else {
            head(1).replace("application/json", "text/plain") + "{"
        };
        write!(stream, "{bad}")?;
        let code = if number % 2 == 0 { "400" } else { "415" };
        let (head, _) = answer(&mut stream)?;
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{head}");
    }
    let refused = "gangplank_refused_requests_total{endpoint=\"validate\",code=";
    for code in ["\"400\"}", "\"415\"}"] {
        assert_eq!(count(&gangplank, &format!("{refused}{code}"))?, FLOOD / 2);
    }
    let silent: Vec<TcpStream> = (0..FLOOD)
        .map(|_| TcpStream::connect(gangplank.webhook()))
        .collect::<Result<_, _>>()?;
    eventually("they are closed", SOON, || {
        (evicted(&gangplank, "address").ok()? >= FLOOD - 16).then_some(())
    })?;
    drop(silent);
    // Every one of them is told, by a line or in a line's count.
    let told = |message: &str| -> u64 {
        let lines = gangplank.log();
        let lines = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| {
                line["fields"]["message"].as_str() == Some(message) || {
                    let code = line["fields"]["code"].as_u64();
                    message == "more refused requests" && code.is_some()
                }
            });
        lines
            .map(|line| {
                let itself = u64::from(line["fields"]["code"].is_u64());
                let counts = line["fields"]["since_last_line"]
                    .as_str()
                    .unwrap_or_default();
                let others = counts.split(", ").filter_map(|one| one.split_once(": "));
                itself
                    + others
                        .map(|(_, count)| count.parse::<u64>().unwrap())
                        .sum::<u64>()
            })
            .sum()
    };
    eventually("all are told", SOON, || {
        (told("more refused requests") == FLOOD).then_some(())
    })?;
    for messages in [
        ["\"code\":", "more refused requests"],
        ["closed the least useful", "more closed connections"],
    ] {
        at_most_one_a_second(&gangplank, began, messages);
    }
    Ok(())
}

#[test]
fn the_admin_port_has_a_limit_of_its_own_and_lets_newcomers_in() -> Result<()> {
    let gangplank = Gangplank::start::<&str>(Path::new(BINARY), &[])?;
    let mut kept = TcpStream::connect(gangplank.admin())?;
    kept.set_read_timeout(Some(SOON))?;
    let mut ask = || -> Result<()> {
        kept.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        while !answer.ends_with("ok\n") {
            let mut part = [0; 1024];
            let count = kept.read(&mut part)?;
            ensure!(count > 0, "it broke off: {answer}");
            answer.push_str(std::str::from_utf8(&part[..count])?);
        }
        Ok(())
    };
    ask()?;
    let mut held: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(gangplank.admin()))
        .collect::<Result<_, _>>()?;
    // Nobody keeps the kubelet from its answer.
    assert_eq!(get(&gangplank, "/livez")?.0, 200);
    held[0].set_read_timeout(Some(SOON))?;
    assert!(has_gone(&held[0].read(&mut [0])));
    // Whoever has had an answer is of more use than those who say nothing.
    ask()?;
    Ok(())
}

#[test]
fn unfinished_requests_take_no_place_of_those_in_flight() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-in-flight=1"])?;
    let _halves: Vec<_> = (0..8)
        .map(|number| half_sent(folder.path(), &gangplank, &number.to_string()))
        .collect::<Result<_>>()?;
    let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
    for _ in 0..20 {
        let body = review("whole");
        write!(stream, "{}{body}", head(body.len()))?;
        assert!(answer(&mut stream)?.0.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(count(&gangplank, SHED)?, 0);
    assert_eq!(count(&gangplank, "gangplank_in_flight_requests")?, 0);
    Ok(())
}

#[test]
fn the_body_that_is_unfinished_longest_makes_room_and_the_largest_fits_alone() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-body-bytes-in-flight=8Mi"])?;
    let taken = "gangplank_body_bytes";
    let chunked = "POST /validate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                   transfer-encoding: chunked\r\n\r\n";
    let largest = review("largest");
    let largest = format!("{largest}{}", " ".repeat(BODY_LIMIT - largest.len()));
    let asked = |text: &[&str]| -> Result<(String, Value)> {
        let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
        for part in text {
            stream.write_all(part.as_bytes())?;
        }
        stream.flush()?;
        answer(&mut stream)
    };
    let small = review("small");
    let in_chunks = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());

    // All but the last byte, which leaves room for none of a small one. It has a second, and where the
    // machine took longer for that it is late instead.
    let made_room = eventually("an unfinished body makes room", SOON, || {
        let attempt = || -> Result<bool> {
            let mut alone = connect(folder.path(), &gangplank, "http/1.1")?;
            let sent = (alone.write_all(head(largest.len()).as_bytes()))
                .and_then(|()| alone.write_all(&largest.as_bytes()[..largest.len() - 1]))
                .and_then(|()| alone.flush());
            if sent.is_err() {
                return Ok(false);
            }
            let (head, _) = asked(&[head(small.len()).as_str(), &small])?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            let (head, body) = answer(&mut alone)?;
            ensure!(body["response"]["allowed"] == false, "{body}");
            if head.starts_with("HTTP/1.1 408") {
                return Ok(false);
            }
            ensure!(head.starts_with("HTTP/1.1 503"), "{head}");
            ensure!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
            Ok(true)
        };
        match attempt() {
            Ok(false) => None,
            other => Some(other),
        }
    })?;
    assert!(made_room?);
    assert_eq!(count(&gangplank, SHED_BYTES)?, 1);
    assert_eq!(count(&gangplank, SHED)?, 0);

    // A body that breaks off gives back what it took, and the largest one may grow to its size.
    drop(half_sent(folder.path(), &gangplank, "half")?);
    eventually("nothing is left of it", SOON, || {
        (count(&gangplank, taken).ok()? == 0).then_some(())
    })?;
    let (head, _) = asked(&[chunked, &in_chunks(&largest)])?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (head, _) = asked(&[chunked, &in_chunks(&format!("{largest} "))])?;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    eventually("nothing is left", SOON, || {
        (count(&gangplank, taken).ok()? == 0).then_some(())
    })?;
    Ok(())
}

/// The only place of a request in flight is held, by the library's own server.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_asks_again_for_what_was_shed() -> Result<()> {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&Assets::find()?)).await??;
    let client = crate::harness::client(cluster.kubeconfig()).await?;
    let metrics = Arc::new(Metrics::new());
    let desk = Desk::new(Policy::default(), Arc::clone(&metrics)).with_in_flight(1);
    let desk = Arc::new(desk);
    let serving = Serving::start(webhook::router(Arc::clone(&desk)))?;
    let wanted = serving.registration().configurations(&desk.policy.load());
    cluster::register(&client, wanted, &cluster::Registered::default()).await?;

    let asked = tokio::task::spawn_blocking(move || -> Result<()> {
        let kubectl = cluster.namespace("shed")?;
        let hpa = crate::enforce::hpa("chat", "DCGM_FI_DEV_GPU_UTIL").to_string();
        // Denied, and not for a failed call: the verdict has to come from us, however late.
        let denied = || -> Result<()> {
            let answer = kubectl.create(&hpa)?;
            let verdict = "denied the request: gpu-utilization-signal: ";
            ensure!(answer.stderr.contains(verdict), "{}", answer.stderr);
            Ok(())
        };
        // The API server has taken up the configurations.
        eventually("it is asked", SOON, || denied().ok())?;
        let shed = || -> u64 {
            let text = metrics.encode();
            let value = text.lines().find_map(|line| line.strip_prefix(SHED));
            value.unwrap().trim().parse().unwrap()
        };
        ensure!(shed() == 0);
        thread::scope(|scope| {
            let held = desk.in_flight.enter().context("the place")?;
            let asked = scope.spawn(denied);
            eventually("it is shed", SOON, || (shed() > 0).then_some(()))?;
            drop(held);
            asked.join().expect("no panic")
        })
    });
    asked.await??;
    drop(serving);
    Ok(())
}

/// HTTP/2 by the frame (RFC 9113).
pub(crate) struct Frames(pub(crate) Tls);

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frames {
    /// A connection, and the settings that the server begins with.
    pub(crate) fn open(folder: &Path, gangplank: &Gangplank) -> Result<(Self, Vec<(u16, u32)>)> {
        Self::over(connect(folder, gangplank, "h2")?)
    }

    /// As [`Frames::open`], over this connection.
    pub(crate) fn over(stream: Tls) -> Result<(Self, Vec<(u16, u32)>)> {
        let mut frames = Self(stream);
        frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        frames.send(SETTINGS, 0, 0, &[])?;
        let first = frames.next()?.context("settings")?;
        ensure!(first.kind == SETTINGS, "{first:?}");
        let settings = first.payload.chunks_exact(6).map(|setting| {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = [setting[2], setting[3], setting[4], setting[5]];
            (name, u32::from_be_bytes(value))
        });
        Ok((frames, settings.collect()))
    }

    pub(crate) fn write(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.0.write_all(&length[1..])?;
        self.0.write_all(&[kind, flags])?;
        self.0.write_all(&stream.to_be_bytes())?;
        self.0.write_all(payload)
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        self.write(kind, flags, stream, payload)?;
        Ok(self.0.flush()?)
    }

    /// The next frame; none where the connection has ended. Settings and pings are acknowledged.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if has_gone(&Err(std::io::Error::from(error.kind()))) => return Ok(None),
            Err(error) => bail!("the connection is open and silent: {error}"),
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        if matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
            let echo = if kind == PING { &payload[..] } else { &[] };
            self.send(kind, ACK, 0, echo)?;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Some(Frame {
            kind,
            stream,
            payload,
        }))
    }

    /// Reads on until a frame of that kind comes.
    pub(crate) fn until(&mut self, kind: u8) -> Result<Frame> {
        loop {
            let frame = self.next()?.context("the connection has ended")?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }
}

/// The head of a request, by HPACK's static table (RFC 7541, appendix A).
pub(crate) fn request_head() -> Vec<u8> {
    // :method POST, :scheme https, then literals: :path, :authority and content-type.
    let mut head = vec![0x83, 0x87];
    for (name, value) in [
        (&[0x04][..], "/validate"),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/json"),
    ] {
        head.extend(name);
        head.push(u8::try_from(value.len()).unwrap());
        head.extend(value.as_bytes());
    }
    head
}

#[tokio::test]
async fn rapid_resets_end_the_connection_that_sends_them_and_no_other() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let good = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&good, &gangplank, review("before")).await?.0, 200);
    let (mut frames, settings) = Frames::open(folder.path(), &gangplank)?;
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert!(settings.contains(&(3, 32)), "{settings:?}");
    assert!(settings.contains(&(6, 16 * 1024)), "{settings:?}");
    let cancel = 8_u32.to_be_bytes();
    for stream in (1..200_000).step_by(2) {
        let sent = frames
            .write(HEADERS, END_HEADERS, stream, &request_head())
            .and_then(|()| frames.write(RST_STREAM, 0, stream, &cancel));
        // It need not read on after it has had enough.
        if sent.is_err() {
            break;
        }
    }
    let _ = frames.0.flush();
    let ended = loop {
        match frames.next() {
            Ok(Some(frame)) if frame.kind == GOAWAY => break Some(frame.payload[7]),
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => return Err(error),
        }
    };
    // ENHANCE_YOUR_CALM, unless the reset of the connection overtakes it.
    assert!(matches!(ended, None | Some(11)), "{ended:?}");
    assert_eq!(post(&good, &gangplank, review("after")).await?.0, 200);
    eventually("nothing is left of it", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? == 1
            && count(&gangplank, "gangplank_in_flight_requests").ok()? == 0)
            .then_some(())
    })?;
    assert!(gangplank.ended().is_none());
    Ok(())
}

/// A connection of HTTP/2 with an answer on its way that its client does not take yet.
pub(crate) fn answer_held(folder: &Path, gangplank: &Gangplank, uid: &str) -> Result<Frames> {
    let mut frames = Frames::open(folder, gangplank)?.0;
    // SETTINGS_INITIAL_WINDOW_SIZE 0.
    frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])?;
    frames.send(HEADERS, END_HEADERS, 1, &request_head())?;
    frames.send(DATA, END_STREAM, 1, review(uid).as_bytes())?;
    let answer = frames.until(HEADERS)?;
    // Of the static table: ":status: 200".
    ensure!(
        (answer.stream, answer.payload[0]) == (1, 0x88),
        "{answer:?}"
    );
    Ok(frames)
}

/// Takes the answer that was held.
pub(crate) fn answer_taken(frames: &mut Frames) -> Result<Value> {
    frames.send(WINDOW_UPDATE, 0, 1, &65_535_u32.to_be_bytes())?;
    Ok(serde_json::from_slice(&frames.until(DATA)?.payload)?)
}

#[test]
fn open_connections_are_told_to_go_away_and_what_is_in_flight_is_finished() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let mut idle = Frames::open(folder.path(), &gangplank)?.0;
    let mut busy = answer_held(folder.path(), &gangplank, "in flight")?;
    idle.send(HEADERS, END_HEADERS, 1, &request_head())?;
    idle.send(DATA, END_STREAM, 1, review("idle").as_bytes())?;
    idle.until(DATA)?;

    gangplank.signal(Signal::Terminate)?;
    // The first one only says that there will be another (RFC 9113, 6.8): what is under way counts.
    assert_eq!(busy.until(GOAWAY)?.payload[4..8], [0; 4]);
    idle.until(GOAWAY)?;
    while let Some(frame) = idle.next()? {
        assert!(matches!(frame.kind, GOAWAY | PING), "{frame:?}");
    }
    assert_eq!(answer_taken(&mut busy)?["response"]["uid"], "in flight");
    assert_eq!(gangplank.wait(SOON)?.code(), Some(0), "{}", gangplank.log());
    Ok(())
}

#[test]
fn an_http_1_connection_is_let_go_with_an_answer_and_not_with_a_request_on_its_way() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &["--shutdown-delay=1h"])?;
    let body = review("a");
    let ask = |stream: &mut Tls| -> Result<String> {
        write!(stream, "{}{body}", head(body.len()))?;
        Ok(answer(stream)?.0)
    };
    let mut kept = connect(folder.path(), &gangplank, "http/1.1")?;
    for _ in 0..2 {
        let head = ask(&mut kept)?;
        assert!(!head.contains("connection:"), "{head}");
    }
    gangplank.signal(Signal::Terminate)?;
    eventually("it is stopping", SOON, || {
        (get(&gangplank, "/readyz").ok()?.0 == 503).then_some(())
    })?;
    // Who was connected before, and who still comes while the endpoints drain.
    let mut late = connect(folder.path(), &gangplank, "http/1.1")?;
    for stream in [&mut kept, &mut late] {
        let head = ask(stream)?;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("\r\nconnection: close"), "{head}");
        assert!(has_gone(&stream.read(&mut [0])), "it stays open");
    }
    gangplank.signal(Signal::Terminate)?;
    gangplank.wait(SOON)?;
    Ok(())
}

#[test]
fn a_second_signal_does_not_wait_for_what_is_in_flight() -> Result<()> {
    let folder = certificate();
    for args in [&[][..], &["--shutdown-delay=1h"]] {
        let mut gangplank = serve_with(folder.path(), args)?;
        let _held = answer_held(folder.path(), &gangplank, "held")?;
        gangplank.signal(Signal::Terminate)?;
        gangplank.wait_for("stopping")?;
        gangplank.signal(Signal::Terminate)?;
        // 0 would be the end of a drain.
        assert_eq!(gangplank.wait(SOON)?.code(), Some(2), "{}", gangplank.log());
        assert!(gangplank.log().contains("the second signal"));
    }
    Ok(())
}
