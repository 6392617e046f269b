//! Which mount of ours a path lies in, without a request to that mount.
//!
//! Below a mount the path is only text. Above, symlinks are followed as always, one component at a
//! time, so that `~/bundles -> /mnt/musher` leads into the mount; but nothing is looked up in a
//! filesystem that might hang: another FUSE mount, or one over the network.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::mountinfo::{Mount, MountTable};

/// As many symlinks as the kernel follows.
const MOST_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone)]
pub struct Place {
    /// The mount.
    pub mount: Mount,
    /// The path within the mounted filesystem, which a bind mount shows a part of.
    pub path: String,
}

/// Where a path leads, as far as that can be told.
#[derive(Debug, Clone)]
pub enum Found {
    /// Into a mount of ours.
    Inside(Place),
    /// Elsewhere: this path, without symlinks as far as they could be followed.
    Outside(PathBuf),
}

/// Follows `path`, relative to the working directory, until it is in a mount of ours.
///
/// # Errors
///
/// When the working directory cannot be told, or symlinks go in a circle.
pub fn locate(path: &Path, table: &MountTable) -> io::Result<Found> {
    let mut links = 0;
    // Reversed: the next component is the last.
    let mut rest = components(&std::path::absolute(path)?);
    let mut so_far = PathBuf::from("/");
    while let Some(name) = rest.pop() {
        if name == *".." {
            so_far.pop();
            continue;
        }
        so_far.push(&name);
        let top = topmost(&so_far, table);
        if let Some(mount) = top.filter(|mount| mount.is_musherfs()) {
            return Ok(Found::Inside(inside(mount, &rest)));
        }
        if table.covering(&so_far).is_some_and(may_hang) {
            continue;
        }
        if let Ok(target) = fs::read_link(&so_far) {
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::other(format!(
                    "too many symbolic links in {}",
                    path.display()
                )));
            }
            so_far.pop();
            if target.is_absolute() {
                so_far = PathBuf::from("/");
            }
            rest.extend(components(&target));
        }
    }
    Ok(Found::Outside(so_far))
}

fn components(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// The mount whose mountpoint is exactly `path`; the last one in the table covers the others.
fn topmost<'t>(path: &Path, table: &'t MountTable) -> Option<&'t Mount> {
    table.iter().rfind(|mount| mount.mountpoint == path)
}

fn may_hang(mount: &Mount) -> bool {
    let kind = mount.fs_type.as_str();
    kind.starts_with("fuse") || kind.starts_with("nfs") || kind == "cifs" || kind == "autofs"
}

/// The place that the components of `rest` (reversed) lead to; `..` never leaves it.
fn inside(mount: &Mount, rest: &[std::ffi::OsString]) -> Place {
    let root = mount.root.as_os_str().as_bytes();
    let root = OsStr::from_bytes(root).to_string_lossy();
    let mut path: Vec<String> = root
        .split('/')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
    for name in rest.iter().rev() {
        if name == ".." {
            path.pop();
        } else {
            path.push(name.to_string_lossy().into_owned());
        }
    }
    Place {
        mount: mount.clone(),
        path: path.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(dir: &Path) -> MountTable {
        let text = format!(
            "21 1 253:0 / / rw - ext4 /dev/vda rw\n\
             40 21 0:55 / {0}/m ro - fuse.musherfs musherfs ro,user_id=0\n\
             41 21 0:55 /acme {0}/bound ro - fuse.musherfs musherfs ro,user_id=0\n\
             42 21 0:56 / {0}/other rw - fuse.sshfs x rw\n\
             43 21 0:57 / {0}/covered ro - fuse.musherfs musherfs ro\n\
             44 43 0:58 / {0}/covered rw - tmpfs x rw\n",
            dir.display()
        );
        MountTable::parse(text.as_bytes())
    }

    fn path_in(found: Found) -> String {
        match found {
            Found::Inside(place) => place.path,
            Found::Outside(path) => panic!("outside: {}", path.display()),
        }
    }

    #[test]
    fn a_path_is_told_from_the_table_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(scratch.path()).unwrap();
        let table = table(&dir);
        let at = |path: &str| locate(&dir.join(path), &table).unwrap();
        // None of these exists on disk.
        assert_eq!(path_in(at("m")), "");
        assert_eq!(path_in(at("m/acme/kit@1.0.0/a.md")), "acme/kit@1.0.0/a.md");
        assert_eq!(path_in(at("m/acme/../nord")), "nord");
        assert_eq!(path_in(at("bound/kit/a.md")), "acme/kit/a.md");
        assert!(matches!(at("other/m/x"), Found::Outside(_)));
        assert!(matches!(at("covered/acme"), Found::Outside(_)));
        assert!(matches!(at("mm"), Found::Outside(_)));
    }

    #[test]
    fn symlinks_above_a_mount_are_followed_and_circles_end() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(scratch.path()).unwrap();
        let table = table(&dir);
        std::os::unix::fs::symlink(dir.join("m"), dir.join("absolute")).unwrap();
        std::os::unix::fs::symlink("./absolute/acme", dir.join("relative")).unwrap();
        std::os::unix::fs::symlink("circle", dir.join("circle")).unwrap();
        let at = |path: &str| locate(&dir.join(path), &table);
        assert_eq!(path_in(at("relative/kit").unwrap()), "acme/kit");
        assert!(at("circle/kit").is_err());
    }
}
