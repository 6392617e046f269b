//! Looking at a cache while others change it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The bytes of all files below `root` at one instant: when the walk ends. A file that was renamed
/// or removed while it went on would be counted beside its successor, so what is no longer where it
/// was seen does not count.
pub(crate) fn taken_at_once(root: &Path) -> u64 {
    let identity = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.ino(), meta.len()));
    let seen: Vec<_> = walkdir::WalkDir::new(root)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| Some((identity(entry.path()).ok()?, entry.into_path())))
        .collect();
    seen.iter()
        .filter(|((ino, _), path)| identity(path).is_ok_and(|(now, _)| now == *ino))
        .map(|((_, bytes), _)| bytes)
        .sum()
}
