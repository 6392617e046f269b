//! Which system calls a program makes, and killing it at one of them.
//!
//! strace counts the calls of each thread by itself. Where several threads get to the same number, the
//! first to do so is hit: the main thread, if it is a call that every program makes when it starts. So
//! who wants a certain thread has it count higher than the others; and of a program as it is, a point
//! is tried as often as there are threads that get to it, and chance has them take turns.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use crate::support::fuse::cannot_run;

/// The n-th call of a kind that a thread makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Point {
    call: String,
    number: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {}", self.call, self.number)
    }
}

impl Point {
    /// Whether it is about files. A kill at a call about memory, threads or sockets is the same to the
    /// cache as one at the next that is.
    fn concerns_files(&self) -> bool {
        const CALLS: &str = "close copy_file_range dup fallocate fchmod fcntl flock fstat fstatfs \
            fsync ftruncate getdents64 linkat lseek mkdir mkdirat newfstatat open openat openat2 \
            pread64 preadv2 pwrite64 read readlink readlinkat rename renameat renameat2 rmdir stat \
            statfs statx symlinkat unlink unlinkat utimensat write writev";
        CALLS.split_whitespace().any(|call| call == self.call)
    }
}

/// Whether programs can be traced here; if not, the test cannot run.
pub(crate) fn is_installed() -> bool {
    let traced = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    let works = traced.is_ok_and(|status| status.success());
    if !works {
        cannot_run("strace is not installed, or may not trace");
    }
    works
}

/// `command` under strace with these options.
fn strace(options: &[&str], command: &Command) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq"]).args(options).arg("--");
    traced.arg(command.get_program()).args(command.get_args());
    if command.get_envs().next().is_some() {
        // Nothing that is not said, as in what it stands for.
        traced.env_clear();
        let given = command.get_envs();
        traced.envs(given.filter_map(|(name, value)| Some((name, value?))));
        traced.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    }
    traced
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    traced
}

/// Every call that `command` makes, which must succeed, once for each thread that makes it; those of
/// one thread between two calls that name `window`, where it is given, and which no other gets to.
pub(crate) fn points(command: &Command, window: Option<(&str, &str)>) -> Vec<Point> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let file = log.path().to_str().unwrap();
    let status = strace(&["-o", file, "-s", "200"], command)
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}: {status}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let mut counts: HashMap<(&str, &str), u32> = HashMap::new();
    let mut inside = None;
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let Some((name, arguments)) = call.split_once('(') else {
            continue;
        };
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            continue;
        }
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        match window {
            Some((begin, _)) if inside.is_none() => {
                if arguments.contains(begin) {
                    inside = Some(thread);
                }
                continue;
            }
            Some((_, end)) => {
                if arguments.contains(end) {
                    break;
                }
                if inside != Some(thread) {
                    continue;
                }
            }
            None => {}
        }
        found.push(Point {
            call: name.to_owned(),
            number: *count,
        });
    }
    found.retain(Point::concerns_files);
    for ((thread, name), count) in &counts {
        let is_first = |point: &Point| point.call == **name && point.number <= *count;
        if inside.is_some_and(|inside| inside != *thread)
            && let Some(point) = found.iter().find(|point| is_first(point))
        {
            panic!("{point}: {count} such calls of another thread, which is killed instead");
        }
    }
    found
}

/// What each of the runs has. What only some have, about sockets, may never be got to again.
pub(crate) fn in_each(runs: [Vec<Point>; 3]) -> Vec<Point> {
    let [mut all, others @ ..] = runs;
    for mut other in others {
        all.retain(|point| {
            let found = other.iter().position(|one| one == point);
            found.map(|found| other.swap_remove(found)).is_some()
        });
    }
    all
}

/// Has what `start` starts killed when a thread of it gets to `point`, before the call is made. What
/// `start` said beside the command of that time.
///
/// Started anew, and all of it, while nobody gets there: not all threads do the same each time.
pub(crate) fn killed_at<T>(point: &Point, mut start: impl FnMut() -> (Command, T)) -> T {
    const ATTEMPTS: usize = 40;
    for _ in 0..ATTEMPTS {
        let (command, beside) = start();
        if is_killed_at(&command, point) {
            return beside;
        }
    }
    panic!("{point}: nobody got there, {ATTEMPTS} times");
}

fn is_killed_at(command: &Command, point: &Point) -> bool {
    let trace = format!("trace={}", point.call);
    let inject = format!("inject={}:signal=KILL:when={}", point.call, point.number);
    // Not with --seccomp-bpf: it does not count what it lets through.
    let options = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
    let status = strace(&options, command).status().unwrap();
    // strace ends as what it has traced.
    status.signal() == Some(9) || status.code() == Some(137)
}
