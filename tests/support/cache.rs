//! Looking at a cache while others change it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The bytes of disk that everything below `root` takes at one instant, which is when the walk ends:
/// what is allocated, or a file's length where that is more, as a limit counts them.
///
/// Never more than was taken then: what was seen on the way counts only if it is still there
/// afterwards, and as much as it took all the time. Files on their way in are looked at first, so that
/// one that is put into its place meanwhile is seen in either.
pub(crate) fn taken_at_once(root: &Path) -> u64 {
    let walks = [root.join("temp"), root.to_owned()].map(walkdir::WalkDir::new);
    let mut seen: HashMap<Identity, (PathBuf, u64)> = HashMap::new();
    for entry in walks.into_iter().flatten().filter_map(Result::ok) {
        if let Some((identity, bytes)) = look(entry.path()) {
            seen.insert(identity, (entry.into_path(), bytes));
        }
    }
    let still_there = seen.iter().filter_map(|(identity, (path, before))| {
        let (now, bytes) = look(path)?;
        (now == *identity).then_some(bytes.min(*before))
    });
    still_there.sum()
}

/// A number alone is given to the next file once its own is gone.
type Identity = (u64, Option<SystemTime>);

/// What is at this path, and what it takes.
fn look(path: &Path) -> Option<(Identity, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    let blocks = meta.blocks() * 512;
    let bytes = match meta.is_file() {
        true => meta.len().max(blocks),
        false => blocks,
    };
    Some(((meta.ino(), meta.created().ok()), bytes))
}
