//! Mounts that have lost their daemon, or whose daemon is stuck.
//!
//! A daemon cannot tell of its own end. So each leaves a record beside its socket of what it serves,
//! removes it when it ends in order, and whoever asks for a status compares the records that are left
//! with the table of mounts and the daemons that answered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::private_files;
use super::{FOLDER, SYSTEM_RUNTIME_DIR, Status};
use crate::mount::mountinfo::{MountId, MountTable};
use crate::mount::touch::Liveness;

/// How long all mounts together may take to answer: with the daemons' time, less than a second.
const PATIENCE: Duration = Duration::from_millis(250);

/// Behind the process id, in the name of a record.
const KIND: &str = "mount";

/// What a daemon serves, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    mountpoint: PathBuf,
    mount: MountId,
}

/// Where the daemon with this number leaves its record.
pub(super) fn record_path(dir: &Path, pid: u32) -> PathBuf {
    dir.join(format!("{pid}.{KIND}"))
}

/// Leaves a record of a mount.
pub(super) fn write(path: &Path, mountpoint: &Path, mount: MountId) -> io::Result<()> {
    let record = Record {
        mountpoint: mountpoint.to_owned(),
        mount,
    };
    fs::write(path, serde_json::to_vec(&record)?)
}

/// What a mount without an answering daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its daemon is gone, and nobody will replace it.
    Dead,
    /// Its daemon is stopped or stuck, or is being replaced.
    Stuck,
}

/// A mount for which no daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unserved {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Which mount that is.
    pub mount: MountId,
    /// Why nobody answers.
    pub state: State,
    /// What to do about it.
    pub remedy: String,
}

impl Unserved {
    fn new(record: Record, state: State) -> Self {
        let dir = record.mountpoint.display();
        let remedy = match state {
            State::Dead => format!("`musherfs umount {dir}`, then mount again"),
            State::Stuck => {
                format!("`musherfs umount --force {dir}` ends it, and releases whoever waits there")
            }
        };
        Self {
            remedy,
            state,
            mount: record.mount,
            mountpoint: record.mountpoint,
        }
    }
}

/// The mounts of this user that are still there though none of the `answered` daemons serves them;
/// by mountpoint. Records of mounts that are gone are removed.
///
/// `ask` finds out whether a mount answers, without waiting longer than it is told; all are asked at
/// once. One that does answer is served by a daemon that has no socket here, or came back just now.
pub fn unserved(
    runtime_dir: &Path,
    table: &MountTable,
    answered: &[Status],
    ask: &(dyn Fn(&Path, Duration) -> Liveness + Sync),
) -> Vec<Unserved> {
    let mut left = records(runtime_dir, table);
    left.retain(|record| {
        let same = |status: &Status| status.mount.device == record.mount.device;
        !answered.iter().any(same)
    });
    left.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    left.dedup();
    std::thread::scope(|scope| {
        let asked: Vec<_> = left
            .into_iter()
            .map(|record| {
                let answer = scope.spawn({
                    let dir = record.mountpoint.clone();
                    move || ask(&dir, PATIENCE)
                });
                (record, answer)
            })
            .collect();
        asked
            .into_iter()
            .filter_map(|(record, answer)| match answer.join() {
                Ok(Liveness::Alive) => None,
                Ok(Liveness::Dead) => Some(Unserved::new(record, State::Dead)),
                Ok(Liveness::Stuck) | Err(_) => Some(Unserved::new(record, State::Stuck)),
            })
            .collect()
    })
}

/// The records of mounts that are in the table.
fn records(runtime_dir: &Path, table: &MountTable) -> Vec<Record> {
    // A directory that cannot be used was told of by whoever asked the daemons.
    let mut files = private_files(&runtime_dir.join(FOLDER), KIND).unwrap_or_default();
    let system = Path::new(SYSTEM_RUNTIME_DIR);
    if runtime_dir != system {
        files.extend(private_files(&system.join(FOLDER), KIND).unwrap_or_default());
    }
    let mut records = Vec::new();
    for (path, _) in files {
        let text = fs::read(&path).unwrap_or_default();
        let record = serde_json::from_slice::<Record>(&text).ok();
        let is_there = |record: &Record| {
            table
                .find(record.mount)
                .is_some_and(|mount| mount.is_musherfs() && mount.mountpoint == record.mountpoint)
        };
        match record.filter(is_there) {
            Some(record) => records.push(record),
            // As long as there is a socket, the daemon may live, and its mount be in another table.
            None if !path.with_extension("sock").exists() => _ = fs::remove_file(&path),
            None => {}
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::ensure_private_dir;

    const TABLE: &str = "\
40 21 0:60 / /a rw - fuse.musherfs musherfs ro,user_id=0
41 21 0:61 / /b rw - fuse.musherfs musherfs ro,user_id=0
42 21 0:62 / /c rw - tmpfs tmpfs rw
";

    fn id(id: u64, minor: u32) -> MountId {
        let device = crate::mount::mountinfo::Device { major: 0, minor };
        MountId { id, device }
    }

    #[test]
    fn a_record_of_a_mount_that_does_not_answer_is_told_and_one_without_a_mount_goes() {
        let runtime = tempfile::tempdir().unwrap();
        let dir = runtime.path().join(FOLDER);
        ensure_private_dir(&dir).unwrap();
        let leave = |pid: u32, mountpoint: &str, mount| {
            let path = record_path(&dir, pid);
            write(&path, Path::new(mountpoint), mount).unwrap();
            path
        };
        let kept = [
            leave(0, "/a", id(40, 60)),
            leave(1, "/b", id(41, 61)),
            // The daemon before that one.
            leave(2, "/b", id(41, 61)),
        ];
        let gone = [
            leave(3, "/a", id(40, 59)),
            leave(4, "/c", id(42, 62)),
            leave(5, "/d", id(99, 99)),
        ];
        let elsewhere = leave(6, "/elsewhere", id(7, 7));
        fs::write(dir.join("6.sock"), "").unwrap();
        let table = MountTable::parse(TABLE.as_bytes());
        let ask = |dir: &Path, _: Duration| match dir.to_str() {
            Some("/a") => Liveness::Dead,
            _ => Liveness::Stuck,
        };
        let told: Vec<_> = unserved(runtime.path(), &table, &[], &ask)
            .into_iter()
            .map(|one| (one.mountpoint, one.state))
            .collect();
        assert_eq!(
            told,
            [("/a".into(), State::Dead), ("/b".into(), State::Stuck)]
        );
        assert!(kept.iter().all(|path| path.exists()));
        assert!(!gone.iter().any(|path| path.exists()));
        assert!(elsewhere.exists());

        let alive = |_: &Path, _: Duration| Liveness::Alive;
        assert_eq!(unserved(runtime.path(), &table, &[], &alive), []);
    }
}
