//! A wall clock that leaps, for one process: what `clock_gettime` says is moved by a library that is
//! loaded before the C library. Go asks the kernel itself, so it is not for the API server.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int file = -1;

__attribute__((constructor)) static void begin(void) {
    file = open(getenv("GANGPLANK_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    char text[32] = {0};
    if (result == 0 && clock == CLOCK_REALTIME && pread(file, text, sizeof text - 1, 0) > 0)
        time->tv_sec += atoll(text);
    return result;
}
"#;

/// A clock, and by how much it is wrong.
#[derive(Debug)]
pub(crate) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right. `folder` is made for its files.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        fs::write(&source, SOURCE)?;
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .context("cc is missing: install a C compiler")?;
        let said = String::from_utf8_lossy(&compiled.stderr);
        ensure!(compiled.status.success(), "cc: {said}");
        let clock = Self {
            library,
            file: folder.join("seconds"),
        };
        clock.leap(0)?;
        Ok(clock)
    }

    /// What a process needs in its environment to go by this clock.
    pub(crate) fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap_or_default()),
            (
                "GANGPLANK_TEST_CLOCK",
                self.file.to_str().unwrap_or_default(),
            ),
        ]
    }

    /// From now on it is wrong by that many seconds.
    pub(crate) fn leap(&self, seconds: i64) -> Result<()> {
        // Of one width and written over in place, so that whoever reads sees a number.
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.file)?;
        file.write_all_at(format!("{seconds:+020}").as_bytes(), 0)?;
        Ok(())
    }
}
