//! What is published: a directory with a `musher.yaml`, read and checked as a whole.
//!
//! A [`Publication`] is one version of one bundle with all its bytes in memory. It comes from a
//! directory ([`Publication::read`]) or is put together by hand; [`Publication::check`] holds the
//! rules that every registry may rely on, however it was made:
//!
//! * at least one asset, each path once, no file below another file;
//! * text only: assets travel as JSON strings, so other bytes could not arrive unchanged;
//! * at most 16 MiB an asset, with a warning above the hosted service's 512 KiB;
//! * a version whose files can be told apart from their neighbours on disk.
//!
//! Every refusal is a [`PublishError`] with a hint. Nothing is written before all checks passed.

pub mod artifact;
mod definition;
pub mod export;
pub mod layout;
pub mod oci;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::error::Error;
use crate::manifest::{MAX_ENTRIES, type_of_path};
use crate::reference::{BundleId, InvalidPath, LogicalPath, Version, VersionRef};

/// Largest asset, in bytes: what a reader accepts over the API.
pub const MAX_ASSET: usize = 16 << 20;
/// Largest asset that the hosted service takes, in bytes. Above it, publishing warns.
pub const HOSTED_MAX_ASSET: usize = 512 << 10;
/// Longest path that the hosted service takes, in characters. Above it, publishing warns.
pub const HOSTED_MAX_PATH: usize = 500;

/// Why something cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Neither `musher.yaml` nor `musher.yml`.
    #[error("no musher.yaml in {}", dir.display())]
    NoDefinition {
        /// The directory.
        dir: PathBuf,
    },
    /// A `musher.yaml` that breaks its schema, or names files that cannot be published.
    #[error("{}", self.lines().join("; "))]
    Definition {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it, in the order of its lines; not empty.
        problems: Vec<Problem>,
    },
    /// A file that the definition names cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that the definition names lies outside of the bundle's directory.
    #[error("{path:?} leaves the bundle's directory")]
    Outside {
        /// The path as the definition spells it.
        path: String,
    },
    /// Not a logical path.
    #[error("bad path {path:?}: {source}")]
    BadPath {
        /// The path.
        path: String,
        /// The rule it breaks.
        source: InvalidPath,
    },
    /// A bundle without assets.
    #[error("no asset: a bundle has at least one")]
    NoAsset,
    /// More files and directories than a mount can number.
    #[error("too many assets: at most {MAX_ENTRIES} files and directories")]
    TooManyAssets,
    /// A path twice.
    #[error("duplicate path {path:?}")]
    DuplicatePath {
        /// The path.
        path: LogicalPath,
    },
    /// A path that is a file and a directory.
    #[error("{file:?} is a file, so {below:?} cannot lie below it")]
    FileUnderFile {
        /// The file.
        file: String,
        /// The file that would make it a directory.
        below: LogicalPath,
    },
    /// An asset over [`MAX_ASSET`].
    #[error("{path:?} has {size} bytes, the limit is {MAX_ASSET}")]
    TooLarge {
        /// The path.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
    /// An asset that is not UTF-8.
    #[error("{path:?} is not text: byte {at} is not UTF-8")]
    NotText {
        /// The path.
        path: String,
        /// Where the first bad byte is.
        at: usize,
    },
    /// A version that a registry's file names cannot hold.
    #[error("version {0} is reserved: a version may not end in \".state\"")]
    ReservedVersion(Version),
    /// The version was published before; versions are frozen.
    #[error("version exists: {0} was published before")]
    VersionExists(VersionRef),
    /// The registry's directory.
    #[error(transparent)]
    Storage(#[from] Error),
}

/// One thing that is wrong with a `musher.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, where it can be told.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// What can be done about it, where that is not plain.
    pub hint: Option<&'static str>,
}

impl PublishError {
    /// The message, a line for each problem: `bundle/musher.yaml:3: slug is missing`.
    pub fn lines(&self) -> Vec<String> {
        let Self::Definition { path, problems } = self else {
            return vec![self.to_string()];
        };
        let path = path.display();
        let line = |problem: &Problem| match problem.line {
            Some(line) => format!("{path}:{line}: {}", problem.reason),
            None => format!("{path}: {}", problem.reason),
        };
        problems.iter().map(line).collect()
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDefinition { .. } => {
                "name the directory that holds the bundle's musher.yaml or musher.yml"
            }
            Self::Definition { problems, .. } => {
                let hint = problems.first().and_then(|problem| problem.hint);
                let same = problems.iter().all(|problem| problem.hint == hint);
                hint.filter(|_| same).unwrap_or(
                    "a definition has namespace, slug, version, name and assets, each with id and src",
                )
            }
            Self::Unreadable { .. } => {
                "paths in musher.yaml are relative to its directory; check the spelling"
            }
            Self::Outside { .. } => "copy the file into the bundle's directory",
            Self::BadPath { .. } => {
                "paths are relative, with / between components and without . and .."
            }
            Self::NoAsset => "list at least one file under assets",
            Self::TooManyAssets => "split the bundle",
            Self::DuplicatePath { .. } => "list each file once",
            Self::FileUnderFile { .. } => "rename one of the two",
            Self::TooLarge { .. } => "leave large data out of bundles, or split the file",
            Self::NotText { .. } => {
                "bundles carry text; convert the file to UTF-8 or encode it, as base64 say"
            }
            Self::ReservedVersion(_) => "choose another pre-release name",
            Self::VersionExists(_) => "published versions never change: raise the version",
            Self::Storage(error) => error.hint().unwrap_or("check the registry's directory"),
        }
    }
}

/// Who may read a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Who has a key.
    #[default]
    Private,
    /// Everybody.
    Public,
}

impl Visibility {
    /// As the protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Public => "public",
        }
    }
}

/// One file of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Its path within the version.
    pub path: LogicalPath,
    /// `agent_spec`, `skill`, `toolset`, `prompt`, `config` or `other`; readers of some tools fail
    /// on anything else.
    pub asset_type: String,
    /// Its media type, if the publisher tells.
    pub media_type: Option<String>,
    /// Its content.
    pub bytes: Bytes,
}

impl Asset {
    /// Refuses what cannot be an asset's content.
    fn check_bytes(path: &str, bytes: &[u8]) -> Result<(), PublishError> {
        if bytes.len() > MAX_ASSET {
            return Err(PublishError::TooLarge {
                path: path.to_owned(),
                size: bytes.len() as u64,
            });
        }
        std::str::from_utf8(bytes).map_err(|error| PublishError::NotText {
            path: path.to_owned(),
            at: error.valid_up_to(),
        })?;
        Ok(())
    }

    /// An asset whose type follows from its first directory.
    ///
    /// # Errors
    ///
    /// [`PublishError::BadPath`].
    pub fn new(path: &str, bytes: impl Into<Bytes>) -> Result<Self, PublishError> {
        let path: LogicalPath = path.parse().map_err(|source| PublishError::BadPath {
            path: path.chars().take(200).collect(),
            source,
        })?;
        Ok(Self {
            asset_type: type_of_path(path.as_str()).to_owned(),
            path,
            media_type: None,
            bytes: bytes.into(),
        })
    }
}

/// One version of a bundle, ready to be published.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Which version.
    pub reference: VersionRef,
    /// The bundle's display name.
    pub name: String,
    /// What the bundle is for.
    pub description: Option<String>,
    /// Who may read it.
    pub visibility: Visibility,
    /// The readme's text, in Markdown.
    pub readme: Option<String>,
    /// An SPDX license identifier.
    pub license: Option<String>,
    /// Words to find it by.
    pub keywords: Vec<String>,
    /// Where its sources are.
    pub repository: Option<String>,
    /// Where it is presented.
    pub homepage: Option<String>,
    /// The publisher's own metadata.
    pub annotations: BTreeMap<String, String>,
    /// Its files.
    pub assets: Vec<Asset>,
}

impl Publication {
    /// A private publication that is named like its bundle and has no asset yet.
    pub fn new(reference: VersionRef) -> Self {
        Self {
            name: reference.bundle.slug.to_string(),
            reference,
            description: None,
            visibility: Visibility::default(),
            readme: None,
            license: None,
            keywords: Vec::new(),
            repository: None,
            homepage: None,
            annotations: BTreeMap::new(),
            assets: Vec::new(),
        }
    }

    /// The bundle that gets a new version.
    pub fn bundle(&self) -> &BundleId {
        &self.reference.bundle
    }

    /// The sum of all assets' sizes, in bytes.
    pub fn size(&self) -> u64 {
        self.assets
            .iter()
            .map(|asset| asset.bytes.len() as u64)
            .sum()
    }

    /// Checks the rules of the module header.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), PublishError> {
        if self.assets.is_empty() {
            return Err(PublishError::NoAsset);
        }
        if self.reference.version.as_str().ends_with(".state") {
            return Err(PublishError::ReservedVersion(
                self.reference.version.clone(),
            ));
        }
        let mut files = HashSet::with_capacity(self.assets.len());
        for asset in &self.assets {
            let path = asset.path.as_str();
            Asset::check_bytes(path, &asset.bytes)?;
            if !files.insert(path) {
                return Err(PublishError::DuplicatePath {
                    path: asset.path.clone(),
                });
            }
        }
        let mut directories = HashSet::new();
        for asset in &self.assets {
            let mut path = asset.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                if files.contains(parent) {
                    return Err(PublishError::FileUnderFile {
                        file: parent.to_owned(),
                        below: asset.path.clone(),
                    });
                }
                if !directories.insert(parent) {
                    break;
                }
                path = parent;
            }
        }
        if files.len() + directories.len() > MAX_ENTRIES {
            return Err(PublishError::TooManyAssets);
        }
        Ok(())
    }

    /// What is allowed here but would not be everywhere, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for asset in &self.assets {
            if asset.bytes.len() > HOSTED_MAX_ASSET {
                warnings.push(format!(
                    "{:?} has {} bytes; the hosted service takes at most {HOSTED_MAX_ASSET}",
                    asset.path,
                    asset.bytes.len()
                ));
            }
            if asset.path.as_str().chars().count() > HOSTED_MAX_PATH {
                warnings.push(format!(
                    "{:?} is longer than the {HOSTED_MAX_PATH} characters the hosted service takes",
                    asset.path
                ));
            }
        }
        if !self.reference.version.fits_cache() {
            warnings.push(format!(
                "version {} ends in \".meta\": readers cannot cache it",
                self.reference.version
            ));
        }
        warnings
    }
}

/// The asset type that every reader knows for what publishers write.
pub(crate) fn known_type(kind: &str) -> &'static str {
    match kind {
        "agent" | "agent_spec" | "agent_definition" => "agent_spec",
        "tool" | "toolset" | "tool_config" => "toolset",
        "skill" => "skill",
        "prompt" => "prompt",
        "config" => "config",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(files: &[(&str, &[u8])]) -> Publication {
        let mut publication = Publication::new("acme/kit@1.0.0".parse().unwrap());
        publication.assets = files
            .iter()
            .map(|(path, bytes)| Asset::new(path, bytes.to_vec()).unwrap())
            .collect();
        publication
    }

    #[test]
    fn a_bundle_needs_an_asset() {
        assert!(matches!(
            publication(&[]).check(),
            Err(PublishError::NoAsset)
        ));
        assert!(publication(&[("a", b"")]).check().is_ok());
    }

    #[test]
    fn a_path_is_listed_once_and_is_not_also_a_directory() {
        assert!(matches!(
            publication(&[("a", b"1"), ("a", b"1")]).check(),
            Err(PublishError::DuplicatePath { .. })
        ));
        for (file, below) in [("a", "a/b/c"), ("x/a", "x/a/b")] {
            for files in [[file, below], [below, file]] {
                let files = files.map(|path| (path, &b""[..]));
                assert!(
                    matches!(
                        publication(&files).check(),
                        Err(PublishError::FileUnderFile { .. })
                    ),
                    "{files:?}"
                );
            }
        }
        assert!(
            publication(&[("a", b""), ("a.b", b""), ("b/a", b"")])
                .check()
                .is_ok()
        );
    }

    #[test]
    fn only_text_of_a_bounded_size_is_published() {
        assert!(matches!(
            publication(&[("a", b"ok\xff")]).check(),
            Err(PublishError::NotText { at: 2, .. })
        ));
        let large = vec![b'x'; MAX_ASSET + 1];
        assert!(matches!(
            publication(&[("a", &large)]).check(),
            Err(PublishError::TooLarge { .. })
        ));
        let allowed = publication(&[("a", &large[..MAX_ASSET])]);
        assert!(allowed.check().is_ok());
        assert_eq!(allowed.warnings().len(), 1);
    }

    #[test]
    fn bad_paths_never_become_assets() {
        for path in ["", "/a", "a/../b", "a//b", "a\\b", "a\0", "./a"] {
            assert!(
                matches!(Asset::new(path, ""), Err(PublishError::BadPath { .. })),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_version_that_looks_like_a_state_file_is_refused() {
        let mut publication = publication(&[("a", b"")]);
        publication.reference = "acme/kit@1.0.0-a.state".parse().unwrap();
        assert!(matches!(
            publication.check(),
            Err(PublishError::ReservedVersion(_))
        ));
        publication.reference = "acme/kit@1.0.0-a.meta".parse().unwrap();
        assert!(publication.check().is_ok());
        assert_eq!(publication.warnings().len(), 1);
    }

    #[test]
    fn the_first_directory_tells_the_type() {
        for (path, expected) in [
            ("skills/x/SKILL.md", "skill"),
            ("agents/a.yaml", "agent_spec"),
            ("prompts/a.md", "prompt"),
            ("tools/a.json", "toolset"),
            ("config/a", "config"),
            ("configs/a", "config"),
            ("docs/a", "other"),
            ("skills", "other"),
        ] {
            assert_eq!(Asset::new(path, "").unwrap().asset_type, expected, "{path}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for error in [
            PublishError::NoAsset,
            PublishError::VersionExists("a/b@1.0.0".parse().unwrap()),
            PublishError::NoDefinition { dir: "x".into() },
        ] {
            assert!(!error.hint().is_empty());
            assert!(!error.to_string().ends_with('.'));
        }
    }
}
