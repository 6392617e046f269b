//! Who was killed in the middle of what, and what that excuses.
//!
//! The registry sees answers, not what became of them: one that was sent in full may be on its way to
//! a process that is killed before it has published the file. Then somebody else has to ask again.
//! Nothing else is a reason. So when two answers have the same file for the same cache, the process
//! that got the first was killed before the second was asked for, and when it was killed the file was
//! not in the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use musherfs::digest::Digest;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::mount::{said, within};
use crate::support::registry::{RouteKind, Seen, TestRegistry};
use crate::users::User;

/// Kills a process, and waits for its end.
pub(crate) fn end(id: u32) {
    let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    if let Ok(process) = pidfd_open(id, PidfdFlags::empty()) {
        pidfd_send_signal(&process, Signal::KILL).unwrap();
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    }
}

/// A file that is downloaded.
pub(crate) struct Wanted {
    /// How the path ends at which the registry has it.
    ending: String,
    bundle: &'static str,
    /// Where a cache has it.
    blob: PathBuf,
}

impl Wanted {
    pub(crate) fn new(bundle: &'static str, path: &str, content: &[u8]) -> Self {
        let hex = Digest::of(content).hex();
        Self {
            ending: path.rsplit('/').next().unwrap().to_owned(),
            bundle,
            blob: PathBuf::from("blobs/sha256").join(&hex[..2]).join(&hex),
        }
    }

    /// Whether the answer to this has it.
    fn is_in(&self, seen: &Seen) -> bool {
        match seen.kind {
            RouteKind::Pull => seen.path.contains(self.bundle),
            RouteKind::Asset => seen.path.ends_with(&self.ending),
            _ => false,
        }
    }
}

/// A load; its key is its own.
pub(crate) struct Load {
    user: User,
    key: String,
    child: Child,
}

/// A process was killed. The registry's log is the clock.
struct Death {
    key: String,
    /// Requests from here on may have been made after it was killed.
    from: usize,
    /// Those from here on were not made by it.
    to: usize,
    /// What its cache did not have when it was killed.
    missing: BTreeSet<usize>,
}

/// All who were killed.
pub(crate) struct Deaths<'a> {
    registry: &'a TestRegistry,
    files: Vec<Wanted>,
    deaths: Vec<Death>,
    loads: usize,
    pub(crate) killed_loads: usize,
    /// They are not killed again while their keeper does not know it yet.
    pub(crate) killed_daemons: BTreeSet<u32>,
}

/// What was downloaded.
#[derive(Debug, Default)]
pub(crate) struct Downloads {
    /// How many files have come, of all caches.
    pub(crate) files: usize,
    /// Those that came again, because whoever had got them was killed.
    pub(crate) excused: usize,
    /// Those that came again without that reason.
    pub(crate) twice: Vec<String>,
}

impl<'a> Deaths<'a> {
    pub(crate) fn new(registry: &'a TestRegistry, files: Vec<Wanted>) -> Self {
        Self {
            registry,
            files,
            deaths: Vec::new(),
            loads: 0,
            killed_loads: 0,
            killed_daemons: BTreeSet::new(),
        }
    }

    /// The files that a user's cache does not have.
    pub(crate) fn missing(&self, user: &User) -> BTreeSet<usize> {
        let cache = user.cache();
        let is_missing = |index: &usize| !cache.join(&self.files[*index].blob).exists();
        (0..self.files.len()).filter(is_missing).collect()
    }

    /// How many of a user's processes were killed.
    pub(crate) fn of(&self, user: &User) -> usize {
        let theirs = user.key("");
        let deaths = self.deaths.iter();
        deaths.filter(|it| it.key.starts_with(&theirs)).count()
    }

    /// Has a user load everything.
    pub(crate) fn load(&mut self, user: &User) -> Load {
        self.loads += 1;
        let key = user.key(&format!("load-{}", self.loads));
        let args = ["load", "acme/small", "acme/kit"];
        let mut command = user.command(self.registry, &key, &args);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Load {
            user: user.clone(),
            key,
            child: child.unwrap(),
        }
    }

    /// Kills a load, and starts another one in its place; unless it has ended before.
    pub(crate) fn kill_load(&mut self, mut load: Load) -> Option<Load> {
        let death = self.before(&load.user, load.key.clone());
        load.child.kill().unwrap();
        let output = load.child.wait_with_output().unwrap();
        if output.status.signal() != Some(libc::SIGKILL) {
            assert!(output.status.success(), "{}", said(&output));
            return None;
        }
        self.killed_loads += 1;
        self.after(death);
        Some(self.load(&load.user))
    }

    /// Kills the daemon of one of a user's mounts, if there is one that lives.
    pub(crate) fn kill_daemon(&mut self, user: &User, which: usize) {
        let kept = user.kept();
        let daemons = kept.iter().filter_map(|kept| kept.daemon);
        let daemons: Vec<u32> = daemons
            .filter(|daemon| !self.killed_daemons.contains(daemon))
            .collect();
        if daemons.is_empty() {
            return;
        }
        let daemon = daemons[which % daemons.len()];
        let environment = std::fs::read_to_string(format!("/proc/{daemon}/environ")).unwrap();
        let mut variables = environment.split('\0');
        let key = variables.find_map(|it| it.strip_prefix("MUSHER_API_KEY="));
        let death = self.before(user, key.unwrap().to_owned());
        end(daemon);
        self.killed_daemons.insert(daemon);
        self.after(death);
    }

    fn before(&self, user: &User, key: String) -> Death {
        Death {
            key,
            missing: self.missing(user),
            from: self.registry.requests(),
            to: usize::MAX,
        }
    }

    fn after(&mut self, death: Death) {
        let to = self.registry.requests();
        self.deaths.push(Death { to, ..death });
    }

    /// What the registry has answered with.
    pub(crate) fn downloads(&self) -> Downloads {
        let mut downloads = Downloads::default();
        let mut last: BTreeMap<(String, usize), (usize, String)> = BTreeMap::new();
        for (index, seen) in self.registry.log().into_iter().enumerate() {
            if !seen.kind.is_content() || seen.status != Some(200) {
                continue;
            }
            let key = seen.headers["authorization"].to_str().unwrap();
            let key = key.trim_start_matches("Bearer ");
            let (user, _) = key.split_once('.').unwrap();
            for file in (0..self.files.len()).filter(|file| self.files[*file].is_in(&seen)) {
                let now = (index, key.to_owned());
                let Some((before, whose)) = last.insert((user.to_owned(), file), now) else {
                    downloads.files += 1;
                    continue;
                };
                let is_excused = self.deaths.iter().any(|death| {
                    death.key == whose
                        && before < death.to
                        && death.from <= index
                        && death.missing.contains(&file)
                });
                match is_excused {
                    true => downloads.excused += 1,
                    false => downloads.twice.push(format!(
                        "{}: for {whose} (request {before}), then for {key} ({index})",
                        seen.path
                    )),
                }
            }
        }
        downloads
    }
}

impl Load {
    /// Waits until everything is loaded.
    pub(crate) fn finish(self) {
        let child = self.child;
        let output = within("a load", move || child.wait_with_output().unwrap());
        assert!(output.status.success(), "{}", said(&output));
    }
}
