//! Which processes keep a mount busy.
//!
//! Everything is read from `/proc`: links, descriptor numbers and device numbers. Nothing here
//! touches the mount, and the whole scan has a deadline, since a process that is stuck may hold
//! the lock that its memory map is read under.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::mountinfo::{Device, Mount, MountTable, fdinfo, is_below};
use super::touch::bounded;

use crate::sync::lock;

/// How long the scan may take before what was found so far is told.
const PATIENCE: Duration = Duration::from_secs(3);

/// Something that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// The name that the kernel knows it by.
        name: String,
        /// What it does there: `working directory`, `root directory`, `program`, `open file`,
        /// `mapped file`.
        uses: &'static str,
    },
    /// Another filesystem, mounted on a directory of the mount.
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// What kind.
        fs_type: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name, uses } => write!(f, "{name} (pid {pid}, {uses})"),
            Self::Mount {
                mountpoint,
                fs_type,
            } => write!(f, "{fs_type} mounted on {}", mountpoint.display()),
        }
    }
}

type Found = Arc<Mutex<BTreeMap<u32, &'static str>>>;

/// Who keeps `mount` busy, by process id; incomplete where this user may not look.
pub(super) fn of(mount: &Mount) -> Vec<Holder> {
    let found = Found::default();
    let (scanned, target) = (found.clone(), mount.clone());
    // What a scan that got stuck has found is worth as much as what it has not.
    let _ = bounded(PATIENCE, move || scan(&target, &scanned));

    let mut holders: Vec<_> = MountTable::read()
        .unwrap_or_default()
        .children(mount.id.id)
        .map(|child| Holder::Mount {
            mountpoint: child.mountpoint.clone(),
            fs_type: child.fs_type.clone(),
        })
        .collect();
    let found = lock(&found);
    holders.extend(found.iter().map(|(&pid, &uses)| Holder::Process {
        pid,
        name: name(pid),
        uses,
    }));
    holders
}

fn scan(mount: &Mount, found: &Found) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // In another mount namespace the same paths and numbers mean other mounts.
        .filter(|pid| shares_our_mounts(*pid))
        .collect();
    let note = |pid, uses| {
        lock(found).entry(pid).or_insert(uses);
    };
    for &pid in &pids {
        if let Some(uses) = link_into(pid, mount).or_else(|| descriptor_into(pid, mount)) {
            note(pid, uses);
        }
    }
    // Last, because it may block.
    for &pid in &pids {
        if maps_from(pid, mount.id.device) {
            note(pid, "mapped file");
        }
    }
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn shares_our_mounts(pid: u32) -> bool {
    let namespace = |path: PathBuf| fs::read_link(path.join("ns/mnt"));
    match (namespace(process(pid)), namespace("/proc/self".into())) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

fn link_into(pid: u32, mount: &Mount) -> Option<&'static str> {
    let links = [
        ("cwd", "working directory"),
        ("root", "root directory"),
        ("exe", "program"),
    ];
    links.into_iter().find_map(|(link, uses)| {
        let target = fs::read_link(process(pid).join(link)).ok()?;
        leads_into(&target, mount).then_some(uses)
    })
}

fn leads_into(target: &Path, mount: &Mount) -> bool {
    is_below(target.as_os_str(), &mount.mountpoint)
}

fn descriptor_into(pid: u32, mount: &Mount) -> Option<&'static str> {
    let process = process(pid);
    for entry in fs::read_dir(process.join("fd")).ok()?.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else {
            continue;
        };
        // The number is exact where the path of the link may be hidden by another mount.
        if fdinfo(&process, fd, "mnt_id:") == Some(mount.id.id) {
            return Some("open file");
        }
    }
    None
}

fn maps_from(pid: u32, device: Device) -> bool {
    let Ok(maps) = fs::File::open(process(pid).join("maps")) else {
        return false;
    };
    // Each line: range, permissions, offset, major:minor in hex, inode, path.
    let device = format!("{:02x}:{:02x}", device.major, device.minor);
    BufReader::new(maps)
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| {
            line.split(|byte| *byte == b' ')
                .filter(|field| !field.is_empty())
                .nth(3)
                .is_some_and(|field| field == device.as_bytes())
        })
}

/// From `comm`: the command line is in the process's memory, which a stuck process may lock.
fn name(pid: u32) -> String {
    fs::read_to_string(process(pid).join("comm"))
        .map(|name| {
            let printable = |c: char| if c.is_control() { '?' } else { c };
            name.trim_end().chars().map(printable).collect()
        })
        .unwrap_or_else(|_| "?".to_owned())
}
