//! `gangplank replay`

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
};

use jiff::Timestamp;

use crate::{
    cli::{DENIED, FAILED, OK, Output},
    replay::{Event, Only, Replay},
    report::{
        self,
        replay::{Broken, Told},
    },
    rules,
};

/// A line holds two objects at most, of 1.5 MiB in etcd, and JSON may double that.
const LINE_LIMIT: u64 = 16 * 1024 * 1024;

/// Broken lines that are shown; the rest is counted.
const BROKEN_LIMIT: usize = 5;

/// The arguments of `gangplank replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is read: JSON lines of audit.k8s.io/v1 Event or EventList, as --audit-log-path of kube-apiserver \
writes them. Rotated logs and those of several API servers are named together, in any order: they are \
replayed by their times. Compressed ones come through standard input: zcat audit-*.gz | gangplank \
replay - audit.log

What is judged: creates, updates and patches of what some rule speaks of, if they succeeded, were no \
dry runs and were outside kube-system. Level RequestResponse tells all. At level Request patches \
(`kubectl apply` to what is there, and every server-side apply) cannot be judged, nor can defaults and \
what other webhooks changed be told from what was written; at level Metadata nothing can be judged.

Each write is judged by itself, as if the webhook had been there for it alone. What an object was before \
a change is what the log showed last of it. Where it showed nothing, a fault may have been there before, \
and the write would have been let in with a warning: it is counted as perhaps denied. Exemptions are \
taken as granted; labels of namespaces, queues and other objects that no write shows are unknown. \
A policy with mode: dryRun is replayed as if it were enforced.

Exit codes: 0 nothing would have been denied for certain, 1 something would, 2 a log could not be read \
or holds no audit event, or none of the writes could be judged. Lines that are no events are told of and \
passed over: the end of a log may be half written.")]
pub struct Args {
    /// Audit logs; `-` for standard input
    #[arg(required = true, value_name = "AUDIT_LOG")]
    logs: Vec<PathBuf>,
    /// Only writes of this user; may be repeated
    #[arg(long, value_name = "USER")]
    user: Vec<String>,
    /// Only writes in this namespace; may be repeated
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only what this rule finds; may be repeated
    #[arg(long, value_name = "RULE")]
    rule: Vec<String>,
    /// The policy file; the built-in default policy without it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The form of the report
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Args {
    fn only(&self) -> Result<Only, String> {
        let rules = self.rule.iter().map(|id| rules::find(id));
        Ok(Only {
            users: self.user.clone(),
            namespaces: self.namespace.clone(),
            rules: rules.collect::<Result<_, _>>()?,
        })
    }
}

/// Replays logs and prints what was found.
pub fn run(args: &Args) -> u8 {
    let prepared = args
        .only()
        .and_then(|only| Ok((only, super::load_policy(args.policy.as_deref())?)));
    let (only, policy) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            report::complain(&error);
            return FAILED;
        }
    };
    let mut failed = false;
    let mut logs = Vec::new();
    for path in &args.logs {
        match Log::open(path) {
            Ok(log) => logs.push(log),
            Err(error) => {
                report::complain(&format!("cannot read {}: {error}", path.display()));
                failed = true;
            }
        }
    }
    let mut replay = Replay::new(policy).only(only);
    merge(&mut logs, |event| replay.event(event));
    let mut told = Told {
        found: replay.finish(),
        broken: Vec::new(),
        more_broken: 0,
    };
    for log in logs {
        // A log that has just been rotated is empty.
        let error = log.failed.or_else(|| {
            (log.events == 0 && log.line > 0).then(|| "holds no audit event".to_owned())
        });
        if let Some(error) = error {
            report::complain(&format!("{}: {error}", log.name));
            failed = true;
        }
        for broken in log.broken {
            if told.broken.len() < BROKEN_LIMIT {
                told.broken.push(broken);
            } else {
                told.more_broken += 1;
            }
        }
        told.more_broken += log.more_broken;
    }
    let found = &told.found;
    if found.requests == 0 && !failed {
        report::complain("the logs hold no request that was answered");
        failed = true;
    }
    if found.is_blind() {
        report::complain("none of the writes could be judged; the report says why");
        failed = true;
    }
    let code = match found.total.denied {
        _ if failed => FAILED,
        0 => OK,
        _ => DENIED,
    };
    let text = match args.output {
        Output::Text => report::replay::render(&told),
        Output::Json => report::replay::json(&told),
    };
    super::print(&text, code)
}

/// Hands over the events of all logs in the order in which they were made. Each log is in that order,
/// nearly.
fn merge(logs: &mut [Log], mut take: impl FnMut(&Event)) {
    let mut next: BinaryHeap<Reverse<(Timestamp, usize)>> = BinaryHeap::new();
    let mut heads: Vec<Option<Event>> = Vec::new();
    for (index, log) in logs.iter_mut().enumerate() {
        let event = log.next();
        if let Some(event) = &event {
            next.push(Reverse((event.logged(), index)));
        }
        heads.push(event);
    }
    while let Some(Reverse((_, index))) = next.pop() {
        let (Some(head), Some(log)) = (heads.get_mut(index), logs.get_mut(index)) else {
            continue;
        };
        if let Some(event) = head.take() {
            take(&event);
        }
        *head = log.next();
        if let Some(event) = head {
            next.push(Reverse((event.logged(), index)));
        }
    }
}

/// A log that is read line by line.
struct Log {
    name: String,
    reader: Box<dyn BufRead>,
    line: u64,
    events: u64,
    pending: VecDeque<Event>,
    broken: Vec<Broken>,
    more_broken: u64,
    failed: Option<String>,
}

impl Log {
    fn open(path: &std::path::Path) -> io::Result<Self> {
        let reader: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(path)?;
            if file.metadata()?.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Box::new(BufReader::new(file))
        };
        Ok(Self::new(path.display().to_string(), reader))
    }

    fn new(name: String, reader: Box<dyn BufRead>) -> Self {
        Self {
            name,
            reader,
            line: 0,
            events: 0,
            pending: VecDeque::new(),
            broken: Vec::new(),
            more_broken: 0,
            failed: None,
        }
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                self.events += 1;
                return Some(event);
            }
            let mut line = Vec::new();
            let read = (&mut self.reader)
                .take(LINE_LIMIT)
                .read_until(b'\n', &mut line);
            match read {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(error) => {
                    self.failed = Some(format!("cannot read on: {error}"));
                    return None;
                }
            }
            if self.line == 1 && line.starts_with(&[0x1f, 0x8b]) {
                let message = "is compressed; use zcat FILE | gangplank replay -";
                self.failed = Some(message.to_owned());
                return None;
            }
            let whole = line.last() == Some(&b'\n');
            if !whole && line.len() as u64 == LINE_LIMIT {
                self.complain(format!("is longer than {LINE_LIMIT} bytes"));
                if let Err(error) = self.skip_line() {
                    self.failed = Some(format!("cannot read on: {error}"));
                    return None;
                }
                continue;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Event::read(&line) {
                Ok(events) => self.pending.extend(events),
                Err(message) => self.complain(message),
            }
        }
    }

    /// Passes over the rest of a line.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffer.len(), |end| end + 1);
            self.reader.consume(length);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    fn complain(&mut self, message: String) {
        if self.broken.len() < BROKEN_LIMIT {
            self.broken.push(Broken {
                file: self.name.clone(),
                line: self.line,
                message,
            });
        } else {
            self.more_broken += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(lines: &[String]) -> Log {
        let text = lines.join("\n").into_bytes();
        Log::new("log".to_owned(), Box::new(io::Cursor::new(text)))
    }

    fn event(second: u32) -> String {
        json!({"apiVersion": "audit.k8s.io/v1", "kind": "Event", "stage": "ResponseComplete",
            "stageTimestamp": format!("2026-11-20T10:00:{second:02}.000000Z")})
        .to_string()
    }

    #[test]
    fn logs_are_read_together_by_their_times() {
        let mut logs = [
            log(&[event(1), event(4)]),
            log(&[event(0), event(2), event(3)]),
        ];
        let mut seen = Vec::new();
        merge(&mut logs, |event| seen.push(event.logged().to_string()));
        let sorted: Vec<String> = (0..5).map(|s| format!("2026-11-20T10:00:0{s}Z")).collect();
        assert_eq!(seen, sorted);
    }

    #[test]
    fn lines_that_are_no_events_are_told_by_number_and_passed_over() {
        let endless = "x".repeat(usize::try_from(LINE_LIMIT).unwrap() + 10);
        let list = json!({"apiVersion": "audit.k8s.io/v1", "kind": "EventList",
            "items": [{"stageTimestamp": "2026-11-20T10:00:00Z"}]});
        let mut log = log(&[
            event(1),
            "{".to_owned(),
            endless,
            String::new(),
            json!({"apiVersion": "v1", "kind": "Pod"}).to_string(),
            list.to_string(),
            event(2)[..40].to_owned(),
        ]);
        assert!(log.next().is_some() && log.next().is_some() && log.next().is_none());
        let told: Vec<u64> = log.broken.iter().map(|broken| broken.line).collect();
        assert_eq!((told, log.events), (vec![2, 3, 5, 7], 2));
        assert!(log.failed.is_none());
    }

    #[test]
    fn a_compressed_log_says_how_to_read_it() {
        let mut log = Log::new("a.gz".to_owned(), Box::new(&[0x1f, 0x8b, 8, 0][..]));
        assert!(log.next().is_none());
        assert!(log.failed.unwrap().contains("zcat"));
    }
}
