//! From what a document lists to the table: the order, the directories that the paths imply, and what
//! is refused.
//!
//! All of it is part of the format: see the parent module.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::{CODES, Info, Kind, Layer, MAX_ENTRIES, Manifest, ManifestError, Refusal, Row};
use crate::digest::{Digest, Hasher};
use crate::reference::{InvalidPath, LogicalPath, VersionRef};

/// Paths compare component by component, so that a directory's descendants follow it.
fn by_components(a: &str, b: &str) -> Ordering {
    a.split('/')
        .map(str::as_bytes)
        .cmp(b.split('/').map(str::as_bytes))
}

/// An entry before it has its place: `len` bytes of the path of `layers[layer]`.
struct Item {
    layer: usize,
    len: usize,
    kind: Kind,
}

/// Puts the table together.
pub(super) struct Builder {
    layers: Vec<Layer>,
    items: Vec<Item>,
}

impl Builder {
    /// Decides what everything that is listed is, and its place.
    pub(super) fn new(mut layers: Vec<Layer>) -> Result<Self, ManifestError> {
        if layers.len() > MAX_ENTRIES {
            return Err(ManifestError::TooMany);
        }
        layers.sort_unstable_by(|a, b| {
            by_components(&a.path, &b.path)
                .then_with(|| (a.digest, a.size).cmp(&(b.digest, b.size)))
        });
        layers.dedup_by(|a, b| a.path == b.path && a.digest == b.digest && a.size == b.size);

        let mut kinds: Vec<Kind> = layers
            .iter()
            .map(|layer| match LogicalPath::check(&layer.path) {
                Ok(()) => Kind::File,
                Err(reason) => Kind::Refused(reason.into()),
            })
            .collect();
        for i in 1..layers.len() {
            if kinds[i] != Kind::Refused(InvalidPath::Empty.into())
                && layers[i].path == layers[i - 1].path
                && LogicalPath::check(&layers[i].path).is_ok()
            {
                kinds[i - 1] = Kind::Refused(Refusal::Conflict);
                kinds[i] = Kind::Refused(Refusal::Conflict);
            }
        }

        let mut directories: HashMap<&str, usize> = HashMap::new();
        for (i, layer) in layers.iter().enumerate() {
            if kinds[i] != Kind::File {
                continue;
            }
            // From the deepest up: a known directory has known parents.
            for (at, _) in layer.path.rmatch_indices('/') {
                if directories.contains_key(&layer.path[..at]) {
                    break;
                }
                directories.insert(&layer.path[..at], i);
                if layers.len() + directories.len() > MAX_ENTRIES {
                    return Err(ManifestError::TooMany);
                }
            }
        }

        let mut items: Vec<Item> = directories
            .iter()
            .map(|(path, &layer)| Item {
                layer,
                len: path.len(),
                kind: Kind::Directory,
            })
            .collect();
        let nothing = Digest::of(b"");
        items.extend(layers.iter().enumerate().map(|(i, layer)| Item {
            layer: i,
            len: layer.path.len(),
            kind: match kinds[i] {
                Kind::File if directories.contains_key(layer.path.as_str()) => {
                    Kind::Refused(Refusal::FileUnderFile)
                }
                Kind::File if layer.size == Some(0) && layer.digest != nothing => {
                    Kind::Refused(Refusal::NotEmpty)
                }
                kind => kind,
            },
        }));
        drop(directories);
        items.sort_unstable_by(|a, b| {
            let path = |item: &Item| &layers[item.layer].path[..item.len];
            by_components(path(a), path(b))
                .then_with(|| a.kind.code().cmp(&b.kind.code()))
                .then_with(|| a.layer.cmp(&b.layer))
        });
        Ok(Self { layers, items })
    }

    /// Writes the rows.
    pub(super) fn finish(self, id: VersionRef, info: Info) -> Result<Manifest, ManifestError> {
        let Self { layers, items } = self;
        let mut text =
            String::with_capacity(layers.iter().map(|l| l.path.len() + l.asset_id.len()).sum());
        let mut starts = Vec::with_capacity(layers.len());
        for layer in &layers {
            starts.push(text.len());
            text.push_str(&layer.path);
            text.push_str(&layer.asset_id);
        }
        let too_big = |_| ManifestError::TooMany;
        let mut words = Words::default();
        let mut rows = Vec::with_capacity(items.len() + 1);
        rows.push(Row {
            digest: [0; 32],
            size_or_end: items.len() as u64 + 1,
            start: 0,
            len: 0,
            name: 0,
            asset_type: 0,
            media_type: 0,
            id_len: 0,
            code: Kind::Directory.code(),
        });
        let mut content_size = 0_u64;
        for item in &items {
            let layer = &layers[item.layer];
            let path = &layer.path[..item.len];
            let is_dir = item.kind == Kind::Directory;
            let size = match layer.size {
                _ if is_dir => 0,
                Some(size) => size,
                None => return Err(layer.bad("no size")),
            };
            if item.kind == Kind::File {
                content_size = content_size.saturating_add(size);
            }
            let name = path.rfind('/').map_or(0, |at| at + 1);
            rows.push(Row {
                digest: if is_dir {
                    [0; 32]
                } else {
                    *layer.digest.as_bytes()
                },
                size_or_end: size,
                start: u32::try_from(starts[item.layer]).map_err(too_big)?,
                len: u32::try_from(item.len).map_err(too_big)?,
                // Only a refused path is longer, and nobody asks for its name.
                name: u16::try_from(name).unwrap_or(0),
                asset_type: if is_dir {
                    0
                } else {
                    words.index(&layer.asset_type)?
                },
                media_type: match &layer.media_type {
                    Some(media_type) if !is_dir => words.index(media_type)?,
                    _ => 0,
                },
                id_len: if is_dir {
                    0
                } else {
                    u8::try_from(layer.asset_id.len())
                        .map_err(|_| layer.bad("the asset id is too long"))?
                },
                code: item.kind.code(),
            });
        }
        set_ends(&mut rows, &text);
        let mut manifest = Manifest {
            id,
            info,
            rows: rows.into(),
            text: text.into(),
            words: words.list.into_iter().collect(),
            table: Digest::from_bytes([0; 32]),
            content_size,
        };
        manifest.table = manifest.hash_table();
        Ok(manifest)
    }
}

/// Lets every directory know where its descendants end.
fn set_ends(rows: &mut [Row], text: &str) {
    let path = |row: &Row| &text[row.start as usize..][..row.len as usize];
    let mut open: Vec<usize> = Vec::new();
    for i in 1..=rows.len() {
        while let Some(&dir) = open.last() {
            let inside = i < rows.len()
                && path(&rows[i])
                    .strip_prefix(path(&rows[dir]))
                    .is_some_and(|rest| rest.starts_with('/'));
            if inside {
                break;
            }
            rows[dir].size_or_end = i as u64;
            open.pop();
        }
        if i < rows.len() && CODES[usize::from(rows[i].code)] == Kind::Directory {
            open.push(i);
        }
    }
}

impl Manifest {
    fn hash_table(&self) -> Digest {
        let mut hasher = Hasher::new();
        for entry in self.entries() {
            hasher.update(&[entry.kind().listed_code()]);
            hasher.update(&entry.row.len.to_le_bytes());
            hasher.update(entry.path().as_bytes());
            hasher.update(&entry.row.size_or_end.to_le_bytes());
            hasher.update(&entry.row.digest);
        }
        hasher.finish()
    }
}

/// Strings stored once.
struct Words {
    list: Vec<Box<str>>,
    known: HashMap<Box<str>, u16>,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            list: vec!["".into()],
            known: HashMap::from([("".into(), 0)]),
        }
    }
}

impl Words {
    fn index(&mut self, word: &str) -> Result<u16, ManifestError> {
        if let Some(&index) = self.known.get(word) {
            return Ok(index);
        }
        let index = u16::try_from(self.list.len()).map_err(|_| ManifestError::TooMany)?;
        self.list.push(word.into());
        self.known.insert(word.into(), index);
        Ok(index)
    }
}
