//! Child processes that cannot outlive us.
//!
//! `Drop` does not run when a process is killed, and a server left behind holds ports, memory and
//! files. So each child starts through a few lines of `sh`: a watcher in the background reads from
//! a pipe whose other end only we hold, then the shell becomes the child by `exec`. However we end,
//! the kernel closes our end; the watcher sees it, kills the child and removes the folder it worked
//! in. The process id that we know is the child's own, so that signals and exit statuses are exact.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::eventually;

/// `$1` is the folder to remove ("" for none), the rest is the child's command line. In the
/// watcher `$$` is still the id of the shell, which the child takes over.
///
/// - A line on the pipe means that the child has ended and was waited for: its id may belong to
///   somebody else by now, so nothing may be killed.
/// - The group gets SIGTERM too, for what the child may have started itself (compilers).
/// - A dead child stays visible as a zombie where nobody waits for orphans, hence the bounded wait.
/// - Several watchers may share a folder: each removes it after its own child is gone, so the last
///   one leaves nothing.
const WATCH: &str = r#"
dir=$1; shift
exec 3<&0
(
    trap '' HUP INT QUIT TERM
    read -r _ && exit
    kill -TERM -$$
    kill -KILL $$
    tries=0
    while kill -0 $$ && [ $tries -lt 40 ]; do sleep 0.05; tries=$((tries + 1)); done
    [ -z "$dir" ] || rm -rf -- "$dir"
) <&3 >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"#;

/// The signals that the tests send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// An orderly end, as the kubelet asks for it.
    Terminate,
    /// Stand still, as on a machine that stalls.
    Stop,
    /// Go on.
    Continue,
}

/// A command line that will run on a leash; add arguments, environment and redirections to it,
/// then [`Leashed::spawn`].
///
/// `dir` is removed should we end without waiting for the child.
pub(crate) fn command(program: &Path, dir: Option<&Path>) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", WATCH, "sh"])
        .arg(dir.unwrap_or(Path::new("")))
        .arg(program)
        // A group of its own: Ctrl-C in a terminal reaches us alone, and we end the rest in order.
        .process_group(0);
    command
}

/// A running child process; killed and waited for on drop.
#[derive(Debug)]
pub(crate) struct Leashed {
    child: Child,
    leash: Option<ChildStdin>,
}

impl Leashed {
    /// Starts what [`command`] prepared.
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let program = command.get_args().nth(4).unwrap_or_default().to_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let leash = child.stdin.take();
        Ok(Self { child, leash })
    }

    /// The child's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The reading end of standard error, if the command line piped it; once only.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// The exit status, if the child has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until the child ends by itself.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        eventually(format_args!("process {} ends", self.id()), deadline, || {
            self.ended()
        })
    }

    /// Sends a signal. The shell's own `kill` does it: there is no safe one in std.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!("process {} has ended already: {status}", self.id());
        }
        let name = match signal {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
        };
        let status = Command::new("sh")
            .args([
                "-c",
                r#"kill -s "$1" "$2""#,
                "sh",
                name,
                &self.id().to_string(),
            ])
            .status()
            .context("cannot run sh")?;
        if !status.success() {
            bail!("cannot send SIG{name} to process {}: {status}", self.id());
        }
        Ok(())
    }

    /// Ends the child at once and waits for it.
    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().context("cannot kill a child process")?;
        self.child.wait().context("cannot wait for a child process")
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.kill();
        if let Some(mut leash) = self.leash.take() {
            // Tells the watcher to leave; it may be gone too.
            let _ = leash.write_all(b"\n");
        }
    }
}
