//! What is on disk: walks over blobs, entries and temporary files.
//!
//! A walk sees what is there at the moment; other tools write and delete meanwhile, so what cannot
//! be read is left out rather than an error. Links are never followed, and never counted.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::blob::BLOBS;
use super::dir::Dir;
use super::temp::TEMP;
use super::{Cache, MANIFESTS};
use crate::digest::Digest;
use crate::reference::{BundleId, HostId, Namespace, VersionRef};

/// How much the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many blobs there are.
    pub blobs: u64,
    /// The bytes of their content.
    pub blob_bytes: u64,
    /// How many manifests there are, of all registries.
    pub entries: u64,
    /// The bytes of all files below the root, blobs included.
    pub total_bytes: u64,
}

/// A blob as it lies on disk: named by a digest that nobody has verified here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobFile {
    /// What its name says.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
    /// Whether it lies directly in `blobs/sha256`, as mush 4.2.0 writes them.
    pub is_flat: bool,
}

/// The place of a manifest; whether it can be read is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPlace {
    /// Whose it is, as its directory is spelt.
    pub host: HostId,
    /// What it is the manifest of.
    pub version: VersionRef,
}

impl Cache {
    /// Adds up what is on disk: one stat a file, so not for a hot path.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            entries: self.entries().len() as u64,
            ..Usage::default()
        };
        self.for_each_blob(|blob| {
            usage.blobs += 1;
            usage.blob_bytes += blob.size;
        });
        if let Ok(root) = Dir::open_root(self.root()) {
            usage.total_bytes = total(&root, 0);
        }
        usage
    }

    /// The bytes of disk that everything below the root takes, files on their way in included: what
    /// is allocated, or the length where that is more. Links are not followed.
    ///
    /// Temporary files are counted first: one that is renamed into place meanwhile counts twice, and
    /// never not at all.
    pub fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let temporary = self.root().join(TEMP);
        let on_the_way_in = walkdir::WalkDir::new(&temporary).into_iter();
        let others = walkdir::WalkDir::new(self.root())
            .into_iter()
            .filter_entry(|entry| entry.path() != temporary);
        on_the_way_in
            .chain(others)
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .map(|meta| {
                let blocks = meta.blocks() * 512;
                match meta.is_file() {
                    true => meta.len().max(blocks),
                    false => blocks,
                }
            })
            .sum()
    }

    /// Shows every blob to `visit`, in no particular order.
    pub fn for_each_blob(&self, mut visit: impl FnMut(BlobFile)) {
        let Ok(blobs) = Dir::open_root(self.root()).and_then(|root| root.open(BLOBS)) else {
            return;
        };
        visit_blobs(&blobs, None, &mut visit);
        for prefix in blobs.directories().into_iter().flatten() {
            if prefix.len() == 2
                && let Ok(dir) = blobs.open(&prefix)
            {
                visit_blobs(&dir, Some(&prefix), &mut visit);
            }
        }
    }

    /// The places of all manifests, of all registries and of locally packed bundles.
    pub fn entries(&self) -> Vec<EntryPlace> {
        let mut entries = Vec::new();
        for host in self.hosts() {
            let Ok(dir) = self.open_dir(&format!("{MANIFESTS}/{host}")) else {
                continue;
            };
            for bundle in bundles_in(&dir) {
                let versions = dir
                    .open(&bundle.to_string())
                    .and_then(|dir| super::list_versions(&dir));
                entries.extend(versions.unwrap_or_default().into_iter().map(|version| {
                    EntryPlace {
                        host: host.clone(),
                        version: VersionRef {
                            bundle: bundle.clone(),
                            version,
                        },
                    }
                }));
            }
        }
        entries
    }
}

fn bundles_in(host: &Dir) -> Vec<BundleId> {
    let mut bundles = Vec::new();
    for name in host.directories().into_iter().flatten() {
        let (Ok(dir), Ok(namespace)) = (host.open(&name), name.parse::<Namespace>()) else {
            continue;
        };
        for slug in dir.directories().into_iter().flatten() {
            if let Ok(slug) = slug.parse() {
                bundles.push(BundleId {
                    namespace: namespace.clone(),
                    slug,
                });
            }
        }
    }
    bundles
}

fn visit_blobs(dir: &Dir, prefix: Option<&str>, visit: &mut impl FnMut(BlobFile)) {
    for name in dir.files().into_iter().flatten() {
        let Ok(digest) = name.parse::<Digest>() else {
            continue;
        };
        // Only the one spelling that is looked up, in the one place where it is.
        if digest.hex() != name || prefix.is_some_and(|prefix| !name.starts_with(prefix)) {
            continue;
        }
        if let Ok(stat) = dir.stat(&name) {
            visit(BlobFile {
                digest,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                modified: UNIX_EPOCH
                    + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0)),
                is_flat: prefix.is_none(),
            });
        }
    }
}

/// The bytes of all files in `dir` and below. Nothing the tools write is deeper than a bundle
/// view's files; the bound only keeps a hostile tree from exhausting the stack.
fn total(dir: &Dir, depth: usize) -> u64 {
    const DEEPEST: usize = 128;
    let files = |dir: &Dir| -> io::Result<u64> {
        Ok(dir
            .files()?
            .filter_map(|name| u64::try_from(dir.stat(&name).ok()?.st_size).ok())
            .sum())
    };
    let mut sum = files(dir).unwrap_or(0);
    if depth < DEEPEST {
        for name in dir.directories().into_iter().flatten() {
            if let Ok(below) = dir.open(&name) {
                sum += total(&below, depth + 1);
            }
        }
    }
    sum
}
