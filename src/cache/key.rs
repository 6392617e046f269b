//! The name of a cache, for what programs keep about it elsewhere: locks, the ledger, readings.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// The name, in file names, of the cache at `root`, whether that exists or not yet: the same root
/// under two paths (through a link) has one name, and keeps it when the root is created.
pub fn key_of(root: &Path) -> String {
    let hash = Digest::of(resolved(root).as_os_str().as_encoded_bytes()).hex();
    hash[..32].to_owned()
}

/// The path without links, as far as it exists: what is created below will be no link.
fn resolved(path: &Path) -> PathBuf {
    let mut missing: Vec<OsString> = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(mut real) = fs::canonicalize(existing) {
            real.extend(missing.iter().rev());
            return real;
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name.to_owned());
                existing = parent;
            }
            // Nothing of it can be looked at.
            _ => return path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_cache_has_one_name_through_links_and_keeps_it_when_it_is_created() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("disk")).unwrap();
        symlink("disk", dir.path().join("link")).unwrap();
        let root = dir.path().join("disk/a/cache");
        let linked = dir.path().join("link/a/cache");
        let before = key_of(&root);
        assert_eq!(key_of(&linked), before);
        assert_ne!(key_of(&dir.path().join("link/b/cache")), before);
        fs::create_dir_all(&linked).unwrap();
        assert_eq!((key_of(&root), key_of(&linked)), (before.clone(), before));
    }
}
