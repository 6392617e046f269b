//! The cache, the state and the runtime directory: there, writable, private, with room.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{Area, Finding, Probe};

/// Less room than this share of the disk is too little.
const LEAST_SHARE: u64 = 20;

/// Less room than this is too little on any disk.
const LEAST: u64 = 64 << 20;

pub(super) fn check(probe: &Probe) -> Vec<Finding> {
    let directories = &probe.directories;
    let mut findings = vec![
        writable("cache", &directories.cache),
        writable("state", &directories.own_state()),
    ];
    findings.extend(room(probe));
    findings.push(runtime(&directories.runtime));
    findings.extend(
        directories
            .warnings
            .iter()
            .map(|text| Finding::warn("directories", text, "set it to an absolute path")),
    );
    findings
}

/// The directory itself, or the nearest one above that exists.
fn nearest(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|above| above.exists());
    found.unwrap_or(Path::new("/")).to_owned()
}

fn writable(id: &'static str, path: &Path) -> Finding {
    let dir = nearest(path);
    // Gone with the descriptor.
    match tempfile::tempfile_in(&dir) {
        Ok(_) if dir == path => Finding::ok(id, format!("{} can be written", path.display())),
        Ok(_) => Finding::ok(id, format!("{} will be created", path.display())),
        Err(error) => {
            let (consequence, variable) = match id {
                "cache" => (
                    "what is read will be kept in memory only",
                    "MUSHER_CACHE_HOME",
                ),
                _ => (
                    "locks, journals and logs cannot be kept",
                    "MUSHER_STATE_HOME",
                ),
            };
            Finding::fail(
                id,
                Area::Machine,
                format!(
                    "{} cannot be written: {error}; {consequence}",
                    path.display()
                ),
                format!("correct its owner and permissions, or point {variable} elsewhere"),
            )
        }
    }
}

fn room(probe: &Probe) -> Option<Finding> {
    const ID: &str = "free-space";
    let cache = &probe.directories.cache;
    let space = (probe.space)(&nearest(cache)).ok()?;
    let percent = (space.free.saturating_mul(100)).checked_div(space.total)?;
    let message = format!(
        "{} MiB ({percent} %) free for {}",
        space.free >> 20,
        cache.display()
    );
    Some(
        if space.free < space.total / LEAST_SHARE || space.free < LEAST {
            Finding::warn(
                ID,
                message,
                "free some space, or shrink the cache with `musherfs cache clean`; a full disk fails no read, but nothing is kept",
            )
        } else {
            Finding::ok(ID, message)
        },
    )
}

fn runtime(path: &Path) -> Finding {
    const ID: &str = "runtime";
    let me = rustix::process::geteuid().as_raw();
    let dir = path.join("musherfs");
    let refuse = |path: &Path, why: &str| {
        Finding::fail(
            ID,
            Area::Machine,
            format!(
                "{} is not used: {why}; `musherfs status` will see no mount",
                path.display()
            ),
            "remove it, or set MUSHER_RUNTIME_DIR to a directory of your own",
        )
    };
    for path in [path, &dir] {
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return refuse(path, &error.to_string()),
        };
        if !found.is_dir() {
            return refuse(path, "it is not a directory");
        }
        if found.uid() != me {
            return refuse(path, "it belongs to another user");
        }
        if found.permissions().mode() & 0o022 != 0 {
            return refuse(path, "others may write to it");
        }
    }
    Finding::ok(ID, format!("{} is private", path.display()))
}
