//! A bound on what is judged at a time, and what a body becomes in memory.

use std::{num::NonZero, slice, sync::Arc, thread::available_parallelism};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Bytes of memory that large bodies which are judged at a time may become ([`read_size`]). A body that is
/// beyond it by itself is refused; an ordinary manifest of 1.5 MiB, the most that etcd stores, becomes 30 MiB.
/// Where an object is changed there is a copy of it, so that as much again may be taken, for which the chart's
/// limit of memory leaves room.
const JUDGED_BYTES: usize = 192 * 1024 * 1024;

/// A body below this is small, and so is one that becomes less than [`SMALL_SIZE`]: nearly every body is one.
const SMALL_BODY: usize = 16 * 1024;

/// As many of these as requests may be in flight are 64 MiB.
const SMALL_SIZE: usize = 128 * 1024;

/// What memory is counted in, in bytes.
const UNIT: usize = 1024;

/// Judges large bodies on threads of their own, a few at a time and within a bound on memory. Small ones
/// are judged by the threads that serve, and wait for none of them.
#[derive(Clone, Debug)]
pub struct Pool {
    threads: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

impl Default for Pool {
    /// Creates a pool of a thread for every two processors, and of one at least: the other half is left for
    /// small bodies, whatever the large ones take.
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, NonZero::get) / 2)
    }
}

impl Pool {
    /// Creates a pool of so many threads, and of one at least.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads.max(1))),
            memory: Arc::new(Semaphore::new(JUDGED_BYTES / UNIT)),
        }
    }

    /// Waits for a thread for a large body, until it is dropped. The first to come is the first to go on. `None`
    /// where that is not before the deadline.
    pub async fn thread(&self, deadline: Instant) -> Option<Thread> {
        let thread = Arc::clone(&self.threads).acquire_owned();
        // Nobody closes it.
        let permit = timeout_at(deadline, thread).await.ok()?.ok()?;
        Some(Thread { _permit: permit })
    }

    /// Waits on its thread until there is memory for a large body. `None` where that is not before the deadline.
    pub async fn turn(&self, thread: Thread, size: LargeSize, deadline: Instant) -> Option<Turn> {
        let memory = Arc::clone(&self.memory).acquire_many_owned(size.0);
        Some(Turn {
            _memory: timeout_at(deadline, memory).await.ok()?.ok()?,
            _thread: thread,
        })
    }
}

/// A thread of a [`Pool`].
#[derive(Debug)]
pub struct Thread {
    _permit: OwnedSemaphorePermit,
}

/// The time in which a large body is judged.
#[derive(Debug)]
pub struct Turn {
    _memory: OwnedSemaphorePermit,
    _thread: Thread,
}

/// Returns whether a body is large. Of a long one, nothing is read for it.
pub fn is_large(body: &[u8]) -> bool {
    body.len() >= SMALL_SIZE || body.len() >= SMALL_BODY && read_size(body) >= SMALL_SIZE
}

/// What a large body becomes in memory, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeSize(u32);

impl LargeSize {
    /// Returns the size of a body. The whole of it is read for that, which takes some ten milliseconds for the
    /// largest.
    ///
    /// # Errors
    /// Where it would take more than all others together may.
    pub fn of(body: &[u8]) -> Result<Self, TooMuch> {
        let size = read_size(body);
        if size > JUDGED_BYTES {
            return Err(TooMuch(size));
        }
        Ok(Self(u32::try_from(size / UNIT).unwrap_or(u32::MAX)))
    }
}

/// A body that is not judged at all, because of what it would become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the body would take {} MiB of memory once it is read, and {} MiB are the limit",
    .0 / MIB,
    JUDGED_BYTES / MIB
)]
pub struct TooMuch(usize);

const MIB: usize = 1024 * 1024;

/// What the values in a JSON text take once they are read, in bytes and rounded up: a few bytes can become
/// many. A map is a leaf of a B-tree, however little is in it, and its members have a key and half a leaf
/// at worst; a list begins with four places, and while it grows there are three for an element; a string with
/// an escape in it grows like that in a buffer before it is copied (serde_json 1.0, 64 bits).
pub fn read_size(text: &[u8]) -> usize {
    const MAP: usize = 704;
    const LIST: usize = 128;
    const MEMBER: usize = 144;
    const ELEMENT: usize = 96;
    const BUFFERED: usize = 3;
    let mut size = text.len();
    // The longest string that has an escape in it.
    let mut buffered = 0;
    let mut before = b' ';
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => {
                let (length, escaped) = skip_string(&mut rest);
                if escaped {
                    buffered = buffered.max(length);
                }
            }
            _ if byte.is_ascii_whitespace() => continue,
            // What is empty has no memory of its own.
            b'}' if before == b'{' => size = size.saturating_sub(MAP),
            b']' if before == b'[' => size = size.saturating_sub(LIST),
            b'{' => size = size.saturating_add(MAP),
            b'[' => size = size.saturating_add(LIST),
            b':' => size = size.saturating_add(MEMBER),
            b',' => size = size.saturating_add(ELEMENT),
            _ => {}
        }
        before = byte;
    }
    size.saturating_add(BUFFERED.saturating_mul(buffered))
}

/// Goes past a string whose first quote is behind. Says how long it is, and whether an escape is in it.
fn skip_string(rest: &mut slice::Iter<'_, u8>) -> (usize, bool) {
    let all = rest.len();
    let mut escaped = false;
    while let Some(b'\\') = rest.find(|byte| matches!(byte, b'"' | b'\\')) {
        escaped = true;
        // Whatever is escaped does not end the string.
        rest.next();
    }
    (all - rest.len(), escaped)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::webhook::BODY_LIMIT;

    /// Waits for a turn, but not if it takes waiting.
    async fn at_once(pool: &Pool, body: &[u8]) -> Option<Turn> {
        let size = LargeSize::of(body).unwrap();
        let thread = pool.thread(Instant::now()).await?;
        pool.turn(thread, size, Instant::now()).await
    }

    #[tokio::test]
    async fn large_bodies_are_judged_within_the_bounds_of_threads_and_of_memory() {
        // Of two as large as this there is room for one.
        let large = b"{\"a\":1},".repeat(130_000);
        let pool = Pool::new(2);
        let one = at_once(&pool, &large).await.unwrap();
        assert!(at_once(&pool, &large).await.is_none());
        // What waits in vain gives back its thread.
        let other = at_once(&pool, &large[..SMALL_BODY]).await.unwrap();
        assert!(at_once(&pool, &large[..SMALL_BODY]).await.is_none());
        drop(one);
        assert!(at_once(&pool, &large).await.is_some());
        drop(other);
        let soon = Instant::now() + Duration::from_secs(60);
        let size = LargeSize::of(&large).unwrap();
        let thread = pool.thread(soon).await.unwrap();
        assert!(pool.turn(thread, size, soon).await.is_some());
    }

    #[test]
    fn what_is_small_is_so_by_its_length_or_by_what_it_becomes() {
        let large = b"{\"a\":1},".repeat(130_000);
        let blank = b" ".repeat(SMALL_SIZE - 1);
        for small in [&large[..SMALL_BODY - 1], &blank] {
            assert!(!is_large(small));
        }
        assert!(is_large(&large[..SMALL_BODY]));
        assert!(is_large(&b" ".repeat(SMALL_SIZE)));
        let all = b"{\"a\":1},".repeat(BODY_LIMIT / 8);
        assert_eq!(
            LargeSize::of(&all).unwrap_err().to_string(),
            "the body would take 952 MiB of memory once it is read, and 192 MiB are the limit"
        );
    }

    #[test]
    fn what_a_string_holds_is_no_map() {
        for inner in ["{:,}", "[{]}", "::"] {
            let body = format!("[\"{inner}\"]");
            assert_eq!(read_size(body.as_bytes()), body.len() + 128, "{body}");
        }
        // Buffered from its first quote on.
        for inner in [r#"\"{:,"#, r#"\\\"{"#, r"[{\n"] {
            let body = format!("[\"{inner}\"]");
            let buffered = 3 * (inner.len() + 1);
            let size = body.len() + 128 + buffered;
            assert_eq!(read_size(body.as_bytes()), size, "{body}");
        }
        assert_eq!(read_size(b"{ }"), 3);
        assert_eq!(read_size(b"[[ ]]"), 128 + 5);
        assert!(read_size(br#"["\\",{"a":1}]"#) > 700);
    }
}
