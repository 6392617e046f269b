//! What a version contains: every dialect in, one compact, sorted table out.
//!
//! Registries and caches write a version's list of files in five shapes: camelCase or snake_case,
//! under `manifest.layers`, `layers`, `manifest.assets` or `assets`, with or without a prefix on the
//! hash. [`Document`] reads them all; [`Manifest`] is the one shape everything else works with.
//!
//! # The table
//!
//! ```text
//! index  path                kind
//! 0                          directory      the version's root
//! 1      README.md           file
//! 2      prompts             directory      implied by the files below it
//! 3      prompts/a.md        file
//! 4      prompts/../x        refused        hidden, but it keeps its number
//! ```
//!
//! An entry's index is part of its inode number, on every host and for ever. So the order is part
//! of the format: paths compare component by component as bytes, a refused entry comes before a
//! directory of the same path, and everything that the document lists is in the table, servable or
//! not. A directory's descendants directly follow it; it stores where they end, which makes lookups
//! binary searches and listings skips, with no pointers. 56 bytes an entry plus its path and id; a
//! directory borrows its path from its first descendant.

mod build;
mod document;

pub use document::{Document, Layer};

use std::collections::HashSet;
use std::ops::Range;

use crate::digest::Digest;
use crate::reference::{InvalidPath, VersionRef};
use build::Builder;

/// Most entries below a version's root: an index has 17 bits, and 0 is the root.
pub const MAX_ENTRIES: usize = (1 << 17) - 1;

/// Why a manifest cannot be used at all. One bad *path* is no reason: see [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of a known shape.
    #[error("not a manifest: {0}")]
    Json(String),
    /// No list of files: not the same as an empty list.
    #[error("the manifest has no list of files")]
    NoLayers,
    /// More paths, directories included, than an inode number can tell apart.
    #[error("more than {MAX_ENTRIES} files and directories")]
    TooMany,
    /// A file without a usable hash or size.
    #[error("{path:?}: {reason}")]
    Layer {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The document is about something else than what was asked for.
    #[error("the manifest is about {found}, not {expected}")]
    OtherVersion {
        /// What was asked for.
        expected: String,
        /// What it names.
        found: String,
    },
}

/// Whether a version may be chosen by a moving name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It may.
    #[default]
    Published,
    /// Withdrawn: served only when named exactly.
    Yanked,
}

impl State {
    /// As the protocol and the cache spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Yanked => "yanked",
        }
    }
}

/// What is known of a version besides its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Info {
    /// The registry's id of the bundle; empty if unknown.
    pub bundle_id: String,
    /// The registry's id of the version; empty if unknown.
    pub version_id: String,
    /// The bundle's display name; empty if unknown.
    pub name: String,
    /// The bundle's description.
    pub description: Option<String>,
    /// `console` or `registry`; empty if unknown.
    pub source_type: String,
    /// Where the version is as an OCI artifact.
    pub oci_ref: Option<String>,
    /// The digest of that artifact's manifest, as the registry spells it.
    pub oci_digest: Option<String>,
    /// Published or yanked.
    pub state: State,
}

impl Info {
    /// How many bytes of text there are.
    fn text_len(&self) -> usize {
        let Self {
            bundle_id,
            version_id,
            name,
            description,
            source_type,
            oci_ref,
            oci_digest,
            state: _,
        } = self;
        let given = [bundle_id, version_id, name, source_type];
        let optional = [description, oci_ref, oci_digest];
        let optional = optional.into_iter().flatten();
        given.into_iter().chain(optional).map(String::len).sum()
    }
}

/// The type of asset that a path's first directory tells.
pub fn type_of_path(path: &str) -> &'static str {
    match path.split_once('/').map(|(first, _)| first) {
        Some("skills") => "skill",
        Some("agents") => "agent_spec",
        Some("prompts") => "prompt",
        Some("tools") => "toolset",
        Some("config" | "configs") => "config",
        _ => "other",
    }
}

/// Why an entry of the table is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The path itself.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// Another file lies below this path, which must be a directory then.
    #[error("other files lie below this path")]
    FileUnderFile,
    /// The manifest lists the path twice with different content.
    #[error("the manifest lists this path more than once, with different content")]
    Conflict,
    /// The manifest says that there is no content, and its digest says that there is. Nobody would
    /// ever read such a file, and so nobody find out.
    #[error("the manifest says that it is empty, and its hash is of something else")]
    NotEmpty,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, implied by the files below it.
    Directory,
    /// A file.
    File,
    /// Listed by the manifest, but hidden.
    Refused(Refusal),
}

/// One entry of the table; 56 bytes.
#[derive(Clone, Copy)]
struct Row {
    digest: [u8; 32],
    /// A file's size; a directory's end (the index after its last descendant).
    size_or_end: u64,
    /// Where the path starts in `text`.
    start: u32,
    len: u32,
    /// Where the last component starts within the path.
    name: u16,
    asset_type: u16,
    media_type: u16,
    /// The asset id follows a file's path in `text`.
    id_len: u8,
    code: u8,
}

const CODES: [Kind; 10] = [
    Kind::Refused(Refusal::Path(InvalidPath::Empty)),
    Kind::Refused(Refusal::Path(InvalidPath::Absolute)),
    Kind::Refused(Refusal::Path(InvalidPath::Component)),
    Kind::Refused(Refusal::Path(InvalidPath::Character)),
    Kind::Refused(Refusal::Path(InvalidPath::TooLong)),
    Kind::Refused(Refusal::FileUnderFile),
    Kind::Refused(Refusal::Conflict),
    Kind::Directory,
    Kind::File,
    // Not a part of the format: see `Kind::listed_code`.
    Kind::Refused(Refusal::NotEmpty),
];

impl Kind {
    /// A small number; also the order among equal paths.
    fn code(self) -> u8 {
        let position = CODES
            .iter()
            .position(|&kind| kind == self)
            .unwrap_or_default();
        u8::try_from(position).unwrap_or_default()
    }

    /// The number that is part of the table's digest: of what the document lists. Whether a file of
    /// no bytes can be served was not always asked, and a table's digest is remembered for ever.
    fn listed_code(self) -> u8 {
        match self {
            Self::Refused(Refusal::NotEmpty) => Self::File.code(),
            kind => kind.code(),
        }
    }
}

/// A version's files and directories. Immutable; shared by reference count.
pub struct Manifest {
    id: VersionRef,
    info: Info,
    rows: Box<[Row]>,
    text: Box<str>,
    /// Asset and media types, each stored once. 0 is the empty string: none.
    words: Box<[Box<str>]>,
    table: Digest,
    content_size: u64,
}

/// A borrowed view of one entry.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    manifest: &'a Manifest,
    row: &'a Row,
    index: u32,
}

impl<'a> Entry<'a> {
    /// The entry's place in the table: the low 17 bits of its inode number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The path within the version; empty for the root.
    pub fn path(&self) -> &'a str {
        self.manifest.path(self.row)
    }

    /// The last component of the path.
    pub fn name(&self) -> &'a str {
        &self.path()[usize::from(self.row.name)..]
    }

    /// What the entry is.
    pub fn kind(&self) -> Kind {
        CODES[usize::from(self.row.code)]
    }

    /// Whether the entry is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == Kind::Directory
    }

    /// Whether the entry is a file that can be served.
    pub fn is_file(&self) -> bool {
        self.kind() == Kind::File
    }

    /// The file's size in bytes; 0 for a directory.
    pub fn size(&self) -> u64 {
        if self.is_dir() {
            0
        } else {
            self.row.size_or_end
        }
    }

    /// The digest of the file's content; all zero for a directory.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.row.digest)
    }

    /// The asset's type as the registry spells it.
    pub fn asset_type(&self) -> &'a str {
        &self.manifest.words[usize::from(self.row.asset_type)]
    }

    /// The asset's media type, if it has one.
    pub fn media_type(&self) -> Option<&'a str> {
        match usize::from(self.row.media_type) {
            0 => None,
            word => Some(&self.manifest.words[word]),
        }
    }

    /// The registry's id of the asset; empty if unknown.
    pub fn asset_id(&self) -> &'a str {
        let start = self.row.start as usize + self.row.len as usize;
        &self.manifest.text[start..start + usize::from(self.row.id_len)]
    }
}

impl Manifest {
    /// Builds the table.
    ///
    /// # Errors
    ///
    /// [`ManifestError::TooMany`], or [`ManifestError::Layer`] for a layer without a size.
    pub fn new(id: VersionRef, info: Info, layers: Vec<Layer>) -> Result<Self, ManifestError> {
        Builder::new(layers)?.finish(id, info)
    }

    /// Which version this is.
    pub fn id(&self) -> &VersionRef {
        &self.id
    }

    /// What is known besides the files.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The digest of the whole table: two manifests with the same one serve the same tree under
    /// the same inode numbers.
    pub fn table_digest(&self) -> Digest {
        self.table
    }

    /// How many entries the table has, the root included.
    pub fn len(&self) -> u32 {
        // At most MAX_ENTRIES + 1.
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The sum of all files' sizes.
    pub fn content_size(&self) -> u64 {
        self.content_size
    }

    /// About how many bytes of memory the table takes.
    pub fn memory(&self) -> usize {
        let words: usize = self.words.iter().map(|word| word.len()).sum();
        size_of::<Self>()
            + size_of_val(&*self.rows)
            + self.text.len()
            + size_of_val(&*self.words)
            + words
            + self.info.text_len()
    }

    /// The entry at `index`.
    pub fn entry(&self, index: u32) -> Option<Entry<'_>> {
        self.rows.get(index as usize).map(|row| Entry {
            manifest: self,
            row,
            index,
        })
    }

    /// All entries, the root first.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).filter_map(|index| self.entry(index))
    }

    /// All files that can be served.
    pub fn files(&self) -> impl Iterator<Item = Entry<'_>> {
        self.entries().filter(Entry::is_file)
    }

    /// The hidden entries and why they are hidden.
    pub fn refused(&self) -> impl Iterator<Item = (Entry<'_>, Refusal)> {
        self.entries().filter_map(|entry| match entry.kind() {
            Kind::Refused(reason) => Some((entry, reason)),
            _ => None,
        })
    }

    /// The visible entry called `name` in the directory at `dir`.
    pub fn lookup(&self, dir: u32, name: &str) -> Option<Entry<'_>> {
        let (prefix, range) = self.below(dir)?;
        let component = |row: &Row| {
            let rest = &self.path(row)[prefix..];
            rest.split_once('/').map_or(rest, |(first, _)| first)
        };
        let rows = &self.rows[range.clone()];
        let first = rows.partition_point(|row| component(row).as_bytes() < name.as_bytes());
        // The node itself sorts before what lies below it, refused namesakes first of all.
        rows[first..]
            .iter()
            .zip(range.start + first..)
            .take_while(|(row, _)| &self.path(row)[prefix..] == name)
            .find_map(|(_, index)| self.visible(index))
    }

    /// The visible entry at `path`; the root for the empty path.
    pub fn find(&self, path: &str) -> Option<Entry<'_>> {
        if path.is_empty() {
            return self.entry(0);
        }
        path.split('/')
            .try_fold(self.entry(0)?, |dir, name| self.lookup(dir.index, name))
    }

    /// The visible children of the directory at `dir`, in order, from index `from` on.
    ///
    /// `from` may be any index: one inside a child's subtree continues with the next child.
    pub fn children(&self, dir: u32, from: u32) -> impl Iterator<Item = Entry<'_>> {
        let (prefix, range) = self.below(dir).unwrap_or((0, 0..0));
        // A long listing is read in many pieces: skip to the child that `from` lies in.
        let mut next = range.start;
        if range.contains(&(from as usize)) {
            let component = |row: &Row| {
                let rest = self.path(row).get(prefix..).unwrap_or_default();
                rest.split('/').next().unwrap_or_default().as_bytes()
            };
            let child = component(&self.rows[from as usize]);
            next += self.rows[range.clone()].partition_point(|row| component(row) < child);
        }
        std::iter::from_fn(move || {
            while next < range.end {
                let index = next;
                let row = &self.rows[index];
                next = match CODES[usize::from(row.code)] {
                    Kind::Directory => usize::try_from(row.size_or_end).unwrap_or(range.end),
                    _ => index + 1,
                };
                if index >= from as usize
                    && let Some(entry) = self.visible(index)
                {
                    return Some(entry);
                }
            }
            None
        })
    }

    /// The index of the directory that holds the entry; the root is its own parent.
    pub fn parent(&self, index: u32) -> u32 {
        self.entry(index)
            .and_then(|entry| entry.path().rsplit_once('/'))
            .and_then(|(parent, _)| self.find(parent))
            .map_or(0, |parent| parent.index)
    }

    fn path(&self, row: &Row) -> &str {
        &self.text[row.start as usize..][..row.len as usize]
    }

    fn visible(&self, index: usize) -> Option<Entry<'_>> {
        let entry = self.entry(u32::try_from(index).ok()?)?;
        (!matches!(entry.kind(), Kind::Refused(_))).then_some(entry)
    }

    /// The length of the prefix that everything below `dir` shares, and the range of its
    /// descendants.
    fn below(&self, dir: u32) -> Option<(usize, Range<usize>)> {
        let entry = self.entry(dir).filter(Entry::is_dir)?;
        let prefix = match entry.row.len as usize {
            0 => 0,
            len => len + 1,
        };
        let end = usize::try_from(entry.row.size_or_end).ok()?;
        Some((prefix, dir as usize + 1..end))
    }
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest")
            .field("id", &self.id)
            .field("entries", &self.rows.len())
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// The digests of all files, each once.
pub fn distinct_digests(manifest: &Manifest) -> HashSet<Digest> {
    manifest.files().map(|file| file.digest()).collect()
}

#[cfg(test)]
mod tests;
