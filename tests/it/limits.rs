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
use gangplank::webhook::BODY_LIMIT;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types, version};
use serde_json::{Value, json};

use crate::{
    harness::{Assets, Cluster, Gangplank, SOON, eventually, leash::Signal},
    serve::{certificate, client, get, post, review},
};

/// Requests shed because too many were under way.
const SHED: &str = "gangplank_shed_requests_total{reason=\"requests\"}";

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
    let name = pki_types::ServerName::try_from("localhost")?;
    let stream = TcpStream::connect(gangplank.webhook())?;
    stream.set_read_timeout(Some(SOON))?;
    let connection = ClientConnection::new(Arc::new(config), name)?;
    Ok(StreamOwned::new(connection, stream))
}

/// The head of an HTTP/1 request whose body has this length.
pub(crate) fn head(length: usize) -> String {
    format!(
        "POST /validate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
}

/// A request of HTTP/1 whose body is half sent, and the half that is left.
fn half_sent(folder: &Path, gangplank: &Gangplank, uid: &str) -> Result<(Tls, String)> {
    let mut stream = connect(folder, gangplank, "http/1.1")?;
    let body = review(uid);
    let (sent, left) = body.split_at(body.len() / 2);
    stream.write_all(head(body.len()).as_bytes())?;
    stream.write_all(sent.as_bytes())?;
    stream.flush()?;
    Ok((stream, left.to_owned()))
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

fn reaches(gangplank: &Gangplank, name: &str, least: u64) -> Result<()> {
    eventually(format_args!("{name} reaches {least}"), SOON, || {
        (count(gangplank, name).ok()? >= least).then_some(())
    })
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
async fn connections_beyond_the_limit_are_closed_and_those_that_are_open_go_on() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-connections=4"])?;
    let good = client(folder.path(), &version::TLS13, true);
    assert_eq!(post(&good, &gangplank, review("before")).await?.0, 200);
    // No word of TLS: the handshake's own deadline is 10 s.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(gangplank.webhook())?);
        reaches(&gangplank, "gangplank_connections", 1 + held.len() as u64)?;
    }
    for _ in 0..20 {
        let mut beyond = TcpStream::connect(gangplank.webhook())?;
        beyond.set_read_timeout(Some(SOON))?;
        assert!(has_gone(&beyond.read(&mut [0])));
    }
    assert_eq!(post(&good, &gangplank, review("during")).await?.0, 200);
    assert_eq!(count(&gangplank, "gangplank_connections")?, 4);
    assert_eq!(
        count(&gangplank, "gangplank_refused_connections_total")?,
        20
    );
    // A flood is no flood of the log: the 1st, 2nd, 4th, 8th and 16th.
    let lines = gangplank.log().matches("closed a connection").count();
    assert_eq!(lines, 5, "{}", gangplank.log());
    drop(held);
    eventually("there is room again", SOON, || {
        (count(&gangplank, "gangplank_connections").ok()? == 1).then_some(())
    })?;
    let another = client(folder.path(), &version::TLS13, false);
    assert_eq!(post(&another, &gangplank, review("after")).await?.0, 200);
    Ok(())
}

#[test]
fn the_admin_port_has_a_limit_of_its_own() -> Result<()> {
    let gangplank = Gangplank::start::<&str>(Path::new(BINARY), &[])?;
    let held: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(gangplank.admin()))
        .collect::<Result<_, _>>()?;
    let mut beyond = TcpStream::connect(gangplank.admin())?;
    beyond.set_read_timeout(Some(SOON))?;
    assert!(has_gone(&beyond.read(&mut [0])));
    drop(held);
    eventually("there is room again", SOON, || {
        (get(&gangplank, "/livez").ok()?.0 == 200).then_some(())
    })
}

#[test]
fn requests_beyond_the_limit_are_shed_at_once_and_may_be_asked_again() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-in-flight=2"])?;
    let mut halves = vec![
        half_sent(folder.path(), &gangplank, "a")?,
        half_sent(folder.path(), &gangplank, "b")?,
    ];
    reaches(&gangplank, "gangplank_in_flight_requests", 2)?;
    let ask = |uid: &str| -> Result<(String, Value)> {
        let mut stream = connect(folder.path(), &gangplank, "http/1.1")?;
        let body = review(uid);
        write!(stream, "{}{body}", head(body.len()))?;
        stream.flush()?;
        answer(&mut stream)
    };
    let (head, body) = ask("beyond")?;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
    assert_eq!(body["response"]["allowed"], false);
    assert_eq!(count(&gangplank, SHED)?, 1);
    // Not for want of sense: what counts requests that make none stays alone.
    assert!(!get(&gangplank, "/metrics")?.1.contains("code=\"503\""));
    for (stream, left) in &mut halves {
        stream.write_all(left.as_bytes())?;
        stream.flush()?;
        assert!(answer(stream)?.0.starts_with("HTTP/1.1 200"));
    }
    assert!(ask("after")?.0.starts_with("HTTP/1.1 200"));
    assert_eq!(count(&gangplank, "gangplank_in_flight_requests")?, 0);
    Ok(())
}

#[test]
fn bytes_beyond_the_limit_are_shed_and_the_largest_body_fits_alone() -> Result<()> {
    let folder = certificate();
    let gangplank = serve_with(folder.path(), &["--max-body-bytes-in-flight=8Mi"])?;
    let shed = "gangplank_shed_requests_total{reason=\"bytes\"}";
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

    // A length takes nothing, and bytes do.
    let mut alone = connect(folder.path(), &gangplank, "http/1.1")?;
    alone.write_all(head(largest.len()).as_bytes())?;
    alone.flush()?;
    reaches(&gangplank, "gangplank_in_flight_requests", 1)?;
    let (answered, _) = asked(&[head(small.len()).as_str(), &small])?;
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
    let (first, last) = largest.split_at(largest.len() - 1);
    alone.write_all(first.as_bytes())?;
    alone.flush()?;
    reaches(&gangplank, taken, first.len() as u64)?;
    // Of a known length, and of one that shows.
    for (nth, beyond) in [
        &[head(small.len()).as_str(), &small][..],
        &[chunked, &in_chunks(&small)],
    ]
    .into_iter()
    .enumerate()
    {
        let (head, body) = asked(beyond)?;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
        assert_eq!(body["response"]["allowed"], false);
        assert_eq!(count(&gangplank, shed)?, nth as u64 + 1);
    }
    assert_eq!(count(&gangplank, SHED)?, 0);
    alone.write_all(last.as_bytes())?;
    alone.flush()?;
    let (head, body) = answer(&mut alone)?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body["response"]["uid"], "largest");
    assert_eq!(count(&gangplank, taken)?, 0);

    // A body that breaks off gives back what it took, and the largest one may grow to its size.
    drop(half_sent(folder.path(), &gangplank, "half")?);
    eventually("nothing is left of it", SOON, || {
        (count(&gangplank, taken).ok()? == 0).then_some(())
    })?;
    let (head, _) = asked(&[chunked, &in_chunks(&largest)])?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (head, _) = asked(&[chunked, &in_chunks(&format!("{largest} "))])?;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert_eq!(count(&gangplank, taken)?, 0);
    assert_eq!(count(&gangplank, shed)?, 2);
    Ok(())
}

#[test]
fn the_api_server_asks_again_for_what_was_shed() -> Result<()> {
    let folder = certificate();
    let cluster = Cluster::start(&Assets::find()?)?;
    let args = [
        format!("--tls-cert={}", folder.path().join("tls.crt").display()),
        format!("--tls-key={}", folder.path().join("tls.key").display()),
        "--max-in-flight=1".to_owned(),
    ];
    let gangplank = Gangplank::register(Path::new(BINARY), &cluster, &args)?;
    let kubectl = cluster.namespace("shed")?;
    let hpa = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1, "maxReplicas": 4,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "DCGM_FI_DEV_GPU_UTIL"},
                "target": {"type": "AverageValue", "averageValue": "70"}}}],
        },
    })
    .to_string();
    // Denied, and not for a failed call: the verdict has to come from us, however late.
    let denied = |shed: u64| -> Result<()> {
        let answer = kubectl.create(&hpa)?;
        ensure!(
            answer
                .stderr
                .contains("denied the request: gpu-utilization-signal: "),
            "{}",
            answer.stderr
        );
        ensure!(count(&gangplank, SHED)? >= shed);
        Ok(())
    };
    // The API server has taken up the configurations.
    eventually("it is asked", SOON, || denied(0).ok())?;
    thread::scope(|scope| {
        let (mut stream, left) = half_sent(folder.path(), &gangplank, "held")?;
        reaches(&gangplank, "gangplank_in_flight_requests", 1)?;
        let asked = scope.spawn(|| denied(1));
        reaches(&gangplank, SHED, 1)?;
        stream.write_all(left.as_bytes())?;
        stream.flush()?;
        assert!(answer(&mut stream)?.0.starts_with("HTTP/1.1 200"));
        asked.join().expect("no panic")
    })
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
const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frames {
    /// A connection, and the settings that the server begins with.
    pub(crate) fn open(folder: &Path, gangplank: &Gangplank) -> Result<(Self, Vec<(u16, u32)>)> {
        let mut frames = Self(connect(folder, gangplank, "h2")?);
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
    assert!(settings.contains(&(3, 250)), "{settings:?}");
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

#[test]
fn open_connections_are_told_to_go_away_and_what_is_in_flight_is_finished() -> Result<()> {
    let folder = certificate();
    let mut gangplank = serve_with(folder.path(), &[])?;
    let body = review("in flight");
    let (first, second) = body.as_bytes().split_at(20);
    let mut idle = Frames::open(folder.path(), &gangplank)?.0;
    let mut busy = Frames::open(folder.path(), &gangplank)?.0;
    idle.send(HEADERS, END_HEADERS, 1, &request_head())?;
    idle.send(DATA, END_STREAM, 1, body.as_bytes())?;
    idle.until(DATA)?;
    busy.send(HEADERS, END_HEADERS, 1, &request_head())?;
    busy.send(DATA, 0, 1, first)?;
    reaches(&gangplank, "gangplank_in_flight_requests", 1)?;

    gangplank.signal(Signal::Terminate)?;
    // The first one only says that there will be another (RFC 9113, 6.8): what is under way counts.
    assert_eq!(busy.until(GOAWAY)?.payload[4..8], [0; 4]);
    idle.until(GOAWAY)?;
    while let Some(frame) = idle.next()? {
        assert!(matches!(frame.kind, GOAWAY | PING), "{frame:?}");
    }
    busy.send(DATA, END_STREAM, 1, second)?;
    let answer = busy.until(HEADERS)?;
    // Of the static table: ":status: 200".
    assert_eq!((answer.stream, answer.payload[0]), (1, 0x88));
    let answer: Value = serde_json::from_slice(&busy.until(DATA)?.payload)?;
    assert_eq!(answer["response"]["uid"], "in flight");
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
        let _half = half_sent(folder.path(), &gangplank, "half")?;
        reaches(&gangplank, "gangplank_in_flight_requests", 1)?;
        gangplank.signal(Signal::Terminate)?;
        gangplank.wait_for("stopping")?;
        gangplank.signal(Signal::Terminate)?;
        // 0 would be the end of a drain.
        assert_eq!(gangplank.wait(SOON)?.code(), Some(2), "{}", gangplank.log());
        assert!(gangplank.log().contains("the second signal"));
    }
    Ok(())
}
