//! Mounts that clear up after themselves, and processes that use them.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use musherfs::mount::mountinfo::MountTable;
use musherfs::mount::{
    Holder, MountOptions, MountPoint, Mounted, Serving, background, mount_and_serve,
};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::roles::{ENTRY, this_test};
use crate::support::fuse::{require_fuse, require_root};
use crate::tiny::{Requests, Tiny};

/// Generous: only a defect takes as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Whether kernel mounts can be made by this process itself.
pub(crate) fn can_mount() -> bool {
    require_fuse() && require_root()
}

/// A mount that is served by this process, whose directory is cleared however a test ends.
pub(crate) struct Live {
    pub(crate) dir: Place,
    pub(crate) mounted: Mounted,
    pub(crate) serving: Serving,
    pub(crate) requests: Arc<Requests>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self::on(Place::new())
    }

    pub(crate) fn on(dir: Place) -> Self {
        let point = MountPoint::prepare(&dir.0).unwrap();
        let tiny = Tiny::default();
        let requests = tiny.requests.clone();
        let (mounted, serving) =
            mount_and_serve(&point, &MountOptions::default(), tiny, 2).unwrap();
        Self {
            dir,
            mounted,
            serving,
            requests,
        }
    }

    pub(crate) fn ended(&self) -> std::io::Result<()> {
        runtime().block_on(async {
            tokio::time::timeout(DEADLINE, self.serving.ended())
                .await
                .expect("the session ends")
        })
    }
}

/// A directory to mount on; whatever is mounted there is detached on drop.
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap().keep())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::FORCE).is_ok() {}
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process that uses the mount until it is dropped.
pub(crate) struct User(pub(crate) Child);

impl User {
    pub(crate) fn new(dir: &Path, script: &str) -> Self {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("{script}; echo ready; read _")])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(program).args(args).output().unwrap()
}

pub(crate) fn cat(path: impl AsRef<Path>) -> Vec<u8> {
    run("cat", [path.as_ref()]).stdout
}

pub(crate) fn fs_types(dir: &Path) -> Vec<String> {
    let dir = fs::canonicalize(dir.parent().unwrap())
        .unwrap()
        .join(dir.file_name().unwrap());
    let table = MountTable::read().unwrap();
    table
        .iter()
        .filter(|mount| mount.mountpoint == dir)
        .map(|mount| mount.fs_type.clone())
        .collect()
}

pub(crate) fn mount_tmpfs(dir: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", dir, "tmpfs", flags, None).unwrap();
}

pub(crate) fn start_daemon(dir: &Path) -> background::Started {
    let started = background::start(this_test("daemon", dir), ENTRY, DEADLINE).unwrap();
    assert!(started.warmed_up);
    started
}

pub(crate) fn pid(started: &background::Started) -> Pid {
    Pid::from_raw(i32::try_from(started.pid).unwrap()).unwrap()
}

/// Sends `signal` and waits for the end; the exit status, if there is one.
pub(crate) fn end(started: &background::Started, signal: Signal) -> Option<i32> {
    kill_process(pid(started), signal).unwrap();
    exit_status(started)
}

pub(crate) fn exit_status(started: &background::Started) -> Option<i32> {
    let (_, status) = waitpid(Some(pid(started)), WaitOptions::empty())
        .unwrap()
        .unwrap();
    status.exit_status()
}

pub(crate) fn names(holders: &[Holder], id: u32) -> bool {
    holders
        .iter()
        .any(|holder| matches!(holder, Holder::Process { pid, .. } if *pid == id))
}
