//! The directory that is mounted on: found fit before anything is mounted.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{MountError, Result};
use super::mountinfo::{Located, MountTable};
use super::touch;

/// The only file that a mountpoint may contain.
///
/// It lies beneath the mount, so whoever sees it sees that nothing is mounted.
pub const MARKER: &str = "NOT-MOUNTED";

/// How long a mount that is in the way may take to prove that it is alive.
const PROBE: Duration = Duration::from_secs(2);

/// A directory that can be mounted on.
///
/// What had to be created for it is removed on drop, unless [`MountPoint::keep`] is called once
/// something is mounted, or somebody has put something into it.
#[derive(Debug, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
    /// The directories that were made, the outermost first.
    created: Vec<PathBuf>,
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for dir in self.created.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl MountPoint {
    /// Checks that `dir` is a directory, empty but for [`MARKER`], with nothing mounted on it;
    /// creates it, with its parents, when it is missing.
    ///
    /// Does not enter a filesystem that is mounted there already, so a stuck one delays nothing
    /// for longer than two seconds.
    ///
    /// # Errors
    ///
    /// [`MountError::NotADirectory`], [`MountError::NotEmpty`], [`MountError::CannotCreate`],
    /// [`MountError::AlreadyMounted`], or [`MountError::DeadMount`] when the daemon of the mount
    /// that is there is gone.
    pub fn prepare(dir: &Path) -> Result<Self> {
        let mut point = Self {
            path: dir.to_owned(),
            created: Vec::new(),
        };
        let located = match Located::find(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                point.create().map_err(|source| MountError::CannotCreate {
                    path: dir.to_owned(),
                    source,
                })?;
                Located::find(dir)
            }
            found => found,
        };
        let located = located.map_err(|source| match source.kind() {
            io::ErrorKind::NotADirectory => MountError::NotADirectory {
                path: dir.to_owned(),
            },
            _ => MountError::io(dir, source),
        })?;
        let table = MountTable::read().map_err(|e| MountError::io("/proc/self/mountinfo", e))?;
        let path = located.path.clone();
        point.path.clone_from(&path);
        if let Some(mount) = located.mounted_here(&table) {
            let fs_type = mount.fs_type.clone();
            let is_fuse = fs_type == "fuse" || fs_type.starts_with("fuse.");
            drop(located);
            return Err(if is_fuse && touch::is_dead(&path, PROBE) {
                MountError::DeadMount { path, fs_type }
            } else {
                MountError::AlreadyMounted { path, fs_type }
            });
        }
        drop(located);
        is_empty(&path)?;
        Ok(point)
    }

    /// Creates the directory and those above it that are missing.
    fn create(&mut self) -> io::Result<()> {
        let missing = |dir: &&Path| fs::symlink_metadata(dir).is_err();
        let mut wanted: Vec<PathBuf> = self
            .path
            .ancestors()
            .take_while(missing)
            .map(Path::to_owned)
            .collect();
        // One by one, so that what another process makes meanwhile does not count as ours.
        while let Some(dir) = wanted.pop() {
            if dir.as_os_str().is_empty() || dir.ends_with("..") {
                continue;
            }
            match fs::DirBuilder::new().mode(0o755).create(&dir) {
                Ok(()) => self.created.push(dir),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Something is mounted: the directory stays.
    pub fn keep(mut self) {
        self.created.clear();
    }

    /// Puts [`MARKER`] into the directory, which says what to do; it stays after unmounting.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written to.
    pub fn mark(&self) -> Result<()> {
        let path = self.path.join(MARKER);
        let text = format!(
            "Nothing is mounted here yet: {}.\n\
             If you see this in a container, it was started before the mount was made, or it does not\n\
             see mounts made later: bind the directory above this one, with propagation \"rslave\".\n",
            self.path.display()
        );
        fs::write(&path, text).map_err(|error| MountError::io(&path, error))
    }

    /// The directory, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether `dir` is a mountpoint that nothing is mounted on: it shows [`MARKER`].
pub fn is_marked(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(MARKER)).is_ok()
}

fn is_empty(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotADirectory => MountError::NotADirectory {
            path: path.to_owned(),
        },
        _ => MountError::io(path, source),
    })?;
    for entry in entries {
        let example = entry.map_err(|e| MountError::io(path, e))?.file_name();
        if example != MARKER {
            return Err(MountError::NotEmpty {
                path: path.to_owned(),
                example,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mountpoint_is_created_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let point = MountPoint::prepare(&dir.path().join("a/b/../b")).unwrap();
        assert_eq!(
            point.path(),
            fs::canonicalize(dir.path()).unwrap().join("a/b")
        );
        assert!(point.path().is_dir());
    }

    #[test]
    fn what_was_created_goes_again_unless_something_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let (above, below) = (dir.path().join("a"), dir.path().join("a/b"));
        drop(MountPoint::prepare(&below).unwrap());
        assert!(!above.exists());

        let point = MountPoint::prepare(&below).unwrap();
        fs::write(above.join("a stranger"), "").unwrap();
        drop(point);
        assert!(above.exists() && !below.exists());

        MountPoint::prepare(&below).unwrap().keep();
        assert!(below.exists());
        // It was there before.
        drop(MountPoint::prepare(&below).unwrap());
        assert!(below.exists());
    }

    #[test]
    fn a_marker_may_lie_beneath_the_mount_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MARKER), "").unwrap();
        MountPoint::prepare(dir.path()).unwrap();

        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let error = MountPoint::prepare(dir.path()).unwrap_err();
        assert!(
            matches!(&error, MountError::NotEmpty { example, .. } if example == "notes.txt"),
            "{error:?}"
        );
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn a_file_is_no_mountpoint() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = MountPoint::prepare(&path).unwrap_err();
            assert!(
                matches!(
                    error,
                    MountError::NotADirectory { .. } | MountError::CannotCreate { .. }
                ),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_mountpoint_of_something_else_is_refused() {
        let error = MountPoint::prepare(Path::new("/proc")).unwrap_err();
        assert!(
            matches!(&error, MountError::AlreadyMounted { fs_type, .. } if fs_type == "proc"),
            "{error:?}"
        );
    }
}
