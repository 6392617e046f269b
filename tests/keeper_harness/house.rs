//! A registry, a home of its own, and the program that mounts the one in the other.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use musherfs::mount::keeper::{self, Kept};
use musherfs::mount::mountinfo::MountTable;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::fuse::{need_not_run, require_fuse, require_root};
use crate::support::registry::TestRegistry;

/// Generous: only a defect takes as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_musherfs");

/// Whether kernel mounts can be made, and daemons replaced.
pub(crate) fn can_mount() -> bool {
    if !require_fuse() || !require_root() {
        return false;
    }
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 9) {
        need_not_run("the kernel cannot resend requests: Linux 6.9 can");
        return false;
    }
    true
}

/// What a file contains: its path says it all.
pub(crate) fn content(path: &str) -> Vec<u8> {
    let mut state = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let size = match state % 4 {
        0 => state % 100,
        1 => state % 5_000,
        2 => state % 40_000,
        _ => state % 300_000,
    };
    let size = usize::try_from(size).unwrap();
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(format!("{state:016x}").into_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(crate) fn file_name(index: usize) -> String {
    format!("dir-{}/file-{index}.txt", index % 7)
}

/// How many files a version has.
pub(crate) const FILES: usize = 60;

pub(crate) fn publish(registry: &TestRegistry, version: &str) {
    let files: Vec<(String, Vec<u8>)> = (0..FILES)
        .map(|index| {
            let name = file_name(index);
            let bytes = content(&format!("{version}/{name}"));
            (name, bytes)
        })
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", version, &files);
}

pub(crate) struct House {
    pub(crate) registry: TestRegistry,
    pub(crate) home: tempfile::TempDir,
    pub(crate) dir: PathBuf,
}

impl House {
    pub(crate) fn new() -> Self {
        let registry = TestRegistry::start();
        publish(&registry, "1.0.0");
        publish(&registry, "1.1.0");
        Self::of(registry)
    }

    /// One of this registry.
    pub(crate) fn of(registry: TestRegistry) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap().join("mnt");
        Self {
            registry,
            home,
            dir,
        }
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.home.path().join("m/runtime")
    }

    pub(crate) fn command(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.home.path())
            .env("MUSHER_HOME", self.home.path().join("m"))
            .env("RUST_LOG", "musherfs=info")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn mount_arguments(&self) -> [String; 4] {
        [
            "mount".to_owned(),
            "--api-url".to_owned(),
            self.registry.url(),
            self.dir.to_str().unwrap().to_owned(),
        ]
    }

    pub(crate) fn mount(&self) {
        self.mount_with(&[]);
    }

    pub(crate) fn mount_with(&self, options: &[&str]) {
        let mut command = self.command(self.mount_arguments());
        let output = command.args(options).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The keeper of the mount; once it has a daemon.
    pub(crate) fn kept(&self) -> Kept {
        await_some("a kept mount", || {
            let mut found = keeper::find(&self.runtime()).unwrap();
            found
                .pop()
                .map(|(_, kept)| kept)
                .filter(|it| it.daemon.is_some())
        })
    }

    pub(crate) fn daemon(&self) -> u32 {
        self.kept().daemon.unwrap()
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let table = MountTable::read().unwrap();
        table.iter().any(|mount| mount.mountpoint == self.dir)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("m/state/musherfs/musherfs.log"))
            .unwrap_or_default()
    }

    /// A file of version 1.0.0 and what it should contain.
    pub(crate) fn file(&self, index: usize) -> (PathBuf, Vec<u8>) {
        let name = file_name(index);
        let path = self.dir.join("acme/kit@1.0.0").join(&name);
        (path, content(&format!("1.0.0/{name}")))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let pids: Vec<u32> = keeper::find(&self.runtime())
            .unwrap_or_default()
            .into_iter()
            .flat_map(|(_, kept)| [Some(kept.keeper), kept.daemon])
            .flatten()
            .collect();
        for &id in &pids {
            let _ = kill_process(pid(id), Signal::KILL);
        }
        while rustix::mount::unmount(&self.dir, UnmountFlags::DETACH | UnmountFlags::FORCE).is_ok()
        {
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

pub(crate) fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

pub(crate) fn kill(id: u32, signal: Signal) {
    kill_process(pid(id), signal).unwrap();
}

/// Waits for a process that is not ours to wait for.
pub(crate) fn await_end(id: u32) {
    await_some("the process's end", || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let is_zombie = stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"));
        (is_zombie || test_kill_process(pid(id)).is_err()).then_some(())
    });
}

pub(crate) fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Private memory of a process, in KiB.
pub(crate) fn private_memory(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("Anonymous:"))
        .map(|rest| {
            rest.trim()
                .trim_end_matches(" kB")
                .trim()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

/// The number of the file, through another process: a thread here that waits could not be ended.
pub(crate) fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}
