//! What running mounts need: told without asking them.
//!
//! ```text
//! <state>/leases/<cache>/<pid>-<random>.lease     locked (flock) as long as the mount runs
//!   {"maxSize":268435456}
//!   {"host":"api.musher.dev","version":"acme/kit@1.2.0"}
//! ```
//!
//! A mount writes down each version when it first serves it. The kernel drops the lock of a process
//! that ends in whatever way, so a file that can be locked is nobody's, and is removed by whoever
//! finds it. A mount that hangs keeps what it needs; nobody waits for it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{key_of, make_parent};
use crate::reference::{HostId, VersionRef};
use crate::sync::lock;

const SUFFIX: &str = ".lease";

/// Longest file that is believed: hundreds of thousands of versions.
const MAX_SIZE: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_size: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    host: String,
    version: String,
}

/// The lease of a mount that is running here; given up on drop.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    told: Mutex<(File, HashSet<(HostId, VersionRef)>)>,
}

impl Lease {
    /// Takes a lease on the cache at `root`, whose mount keeps it below `max_size`.
    ///
    /// # Errors
    ///
    /// When it cannot be written; others may clean away then what the mount needs.
    pub fn take(state: &Path, root: &Path, max_size: Option<u64>) -> io::Result<Self> {
        let name = format!("{}-{}{SUFFIX}", std::process::id(), uuid::Uuid::new_v4());
        let path = folder(state, root).join(name);
        make_parent(&path)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        // Locked before it gets its name: nobody sees it without an owner.
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        temporary.as_file().lock()?;
        let mut header = serde_json::to_vec(&Header { max_size })?;
        header.push(b'\n');
        temporary.write_all(&header)?;
        let file = temporary.persist(&path).map_err(|error| error.error)?;
        Ok(Self {
            path,
            told: Mutex::new((file, HashSet::new())),
        })
    }

    /// Writes down that the mount serves a version.
    pub fn add(&self, host: &HostId, version: &VersionRef) {
        let mut told = lock(&self.told);
        let (file, versions) = &mut *told;
        if !versions.insert((host.clone(), version.clone())) {
            return;
        }
        let line = Line {
            host: host.as_str().to_owned(),
            version: version.to_string(),
        };
        let written = serde_json::to_vec(&line)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
        if let Err(error) = written {
            tracing::debug!(path = %self.path.display(), %error, "the lease cannot be written");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What a running mount has written down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// The limit that it keeps the cache below.
    pub max_size: Option<u64>,
    /// The versions that it serves.
    pub versions: Vec<(HostId, VersionRef)>,
}

/// The leases on the cache at `root`; those of processes that are gone are removed.
pub fn running(state: &Path, root: &Path) -> Vec<Running> {
    let Ok(entries) = fs::read_dir(folder(state, root)) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if !path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()))
        {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock_shared().is_ok() {
            let _ = fs::remove_file(&path);
        } else {
            all.push(read(&file));
        }
    }
    all
}

fn read(file: &File) -> Running {
    use std::io::Read as _;
    let mut text = Vec::new();
    let _ = file.take(MAX_SIZE).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let mut running = Running::default();
    for (index, line) in text.lines().enumerate() {
        if index == 0 {
            running.max_size = serde_json::from_str(line)
                .ok()
                .and_then(|header: Header| header.max_size);
        } else if let Ok(line) = serde_json::from_str::<Line>(line)
            && let (Ok(host), Ok(version)) = (line.host.parse(), line.version.parse())
        {
            running.versions.push((host, version));
        }
    }
    running
}

fn folder(state: &Path, root: &Path) -> PathBuf {
    state.join("leases").join(key_of(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_tells_what_a_mount_needs_until_it_ends() {
        let state = tempfile::tempdir().unwrap();
        let root = Path::new("/somewhere/cache");
        let version: VersionRef = "acme/kit@1.2.0".parse().unwrap();
        let host: HostId = "api.musher.dev".parse().unwrap();
        let lease = Lease::take(state.path(), root, Some(7)).unwrap();
        lease.add(&host, &version);
        lease.add(&host, &version);
        let expected = Running {
            max_size: Some(7),
            versions: vec![(host, version)],
        };
        assert_eq!(running(state.path(), root), [expected]);
        assert_eq!(running(state.path(), Path::new("/elsewhere")), []);
        drop(lease);
        assert_eq!(running(state.path(), root), []);
    }

    #[test]
    fn the_lease_of_a_killed_mount_counts_no_more_and_goes() {
        let state = tempfile::tempdir().unwrap();
        let root = Path::new("/somewhere/cache");
        let dir = folder(state.path(), root);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("1-x.lease"), "{}\n").unwrap();
        assert_eq!(running(state.path(), root), []);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }
}
