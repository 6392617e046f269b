//! A running mount explains itself: over its socket, its numbers, its log; whatever hangs.

#![allow(clippy::unwrap_used, clippy::panic)]

mod events;
mod hanging;
mod kept;
mod metrics;
mod secrets;
#[path = "../support/mod.rs"]
mod support;
mod why;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;
use support::fuse::require_fuse;
use support::registry::TestRegistry;
use tempfile::TempDir;

/// Generous: only a defect takes as long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A home, a registry and a mount of their own; all gone on drop, however a test ends.
struct World {
    home: TempDir,
    registry: TestRegistry,
    key: Option<&'static str>,
}

impl World {
    fn new() -> Option<Self> {
        Self::with_registry(TestRegistry::start())
    }

    fn with_registry(registry: TestRegistry) -> Option<Self> {
        require_fuse().then(|| Self {
            home: tempfile::tempdir().unwrap(),
            registry,
            key: None,
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.mountpoint().join(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musherfs"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.home.path())
            .env("MUSHER_HOME", self.path("musher"))
            .env("MUSHER_API_URL", self.registry.url())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        if let Some(key) = self.key {
            command.env("MUSHER_API_KEY", key);
        }
        command
    }

    /// Runs a command that must end by itself, whatever hangs.
    fn run(&self, arguments: &[&str]) -> Output {
        output(self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    fn why(&self, path: &str) -> Value {
        self.json(&["why", "--json", self.at(path).to_str().unwrap()])
    }

    #[track_caller]
    fn mount(&self, options: &[&str]) {
        let dir = self.mountpoint();
        let mut arguments = vec!["mount"];
        arguments.extend(options);
        arguments.push(dir.to_str().unwrap());
        let output = self.run(&arguments);
        assert!(output.status.success(), "{output:?}");
    }

    /// The only mount's status.
    fn status(&self) -> Value {
        let all = self.json(&["status", "--json"]);
        let all = all.as_array().unwrap();
        let dir = self.mountpoint();
        let mine = all
            .iter()
            .find(|one| one["mountpoint"] == dir.to_str().unwrap());
        mine.unwrap_or_else(|| panic!("{all:?}")).clone()
    }

    /// The process that serves the only mount.
    fn daemon(&self) -> Pid {
        let pid = self.status()["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Reads a file in another process, which may wait for ever.
    fn reader(&self, path: &str) -> Reader {
        let child = Command::new("cat")
            .arg(self.at(path))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Reader(child)
    }

    /// Reads a file that cannot be read, and returns what `cat` says.
    fn complaint(&self, path: &str) -> String {
        let output = output({
            let mut command = Command::new("cat");
            command.arg(self.at(path)).env("LC_ALL", "C");
            command
        });
        assert!(!output.status.success(), "{path} could be read");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.run(&["umount", "--force", self.mountpoint().to_str().unwrap()]);
    }
}

/// A process that reads.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The output of a command that must end within the deadline.
fn output(mut command: Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        out.read_to_end(&mut stdout).unwrap();
        err.read_to_end(&mut stderr).unwrap();
        (stdout, stderr)
    });
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (stdout, stderr) = reading.join().unwrap();
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Who started a process: of a daemon, its keeper.
fn parent(pid: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let parent = Pid::from_raw(line.unwrap().trim().parse().unwrap()).unwrap();
    let name = fs::read_to_string(format!("/proc/{}/comm", parent.as_raw_nonzero())).unwrap();
    assert_eq!(name.trim(), "musherfs");
    parent
}

/// Waits until `done` says so.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below a directory, their paths and text.
fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            (
                entry.path().to_owned(),
                text(&fs::read(entry.path()).unwrap()),
            )
        })
        .collect()
}
