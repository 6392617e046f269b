//! Lockfiles: which version a name stood for when it was written down, and what was in it.
//!
//! ```json
//! {
//!   "lockfileVersion": 1,
//!   "registry": "https://api.musher.dev/",
//!   "bundles": [
//!     { "ref": "acme/kit@^1.2", "version": "1.2.0", "table": "sha256:…", "ociDigest": null }
//!   ]
//! }
//! ```
//!
//! `table` is the digest of the version's whole list of files: paths, sizes and contents. Sorted, so
//! that two people who lock the same things write the same file. Names from a lockfile resolve
//! without a registry, as long as the content is cached.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{parsed, replace_with_mode};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{BundleRef, HostId, Version};
use crate::resolve::Locked;
use crate::store::Loaded;

/// The only format there is.
const FORMAT: u32 = 1;

/// Longest lockfile that is read.
const MAX_SIZE: u64 = 16 << 20;

/// A lockfile's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lockfile {
    lockfile_version: u32,
    /// The registry that it is about.
    pub registry: Url,
    /// What was locked, sorted by reference.
    pub bundles: Vec<Entry>,
}

/// One reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What was asked for, as `namespace/bundle[@selector]`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it stood for.
    #[serde(deserialize_with = "parsed")]
    pub version: Version,
    /// The digest of that version's table.
    pub table: Digest,
    /// The digest of its OCI manifest, if the registry tells.
    pub oci_digest: Option<String>,
}

impl Lockfile {
    /// An empty lockfile for a registry.
    pub fn new(registry: Url) -> Self {
        Self {
            lockfile_version: FORMAT,
            registry,
            bundles: Vec::new(),
        }
    }

    /// Adds what a reference stands for, in place of what it stood for.
    pub fn add(&mut self, reference: &BundleRef, loaded: &Loaded) {
        let reference = reference.to_string();
        self.bundles.retain(|entry| entry.reference != reference);
        self.bundles.push(Entry {
            reference,
            version: loaded.manifest.id().version.clone(),
            table: loaded.manifest.table_digest(),
            oci_digest: loaded.manifest.info().oci_digest.clone(),
        });
        self.bundles.sort_by(|a, b| a.reference.cmp(&b.reference));
    }

    /// Reads a lockfile.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be read, [`Error::Config`] if it is none, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let size = fs::metadata(path).map_err(io)?.len();
        let wrong = |problem: String| Error::Config(format!("{}: {problem}", path.display()));
        if size > MAX_SIZE {
            return Err(wrong("too large for a lockfile".to_owned()));
        }
        let text = fs::read(path).map_err(io)?;
        let lockfile: Self = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("not a lockfile: {error}")))?;
        if lockfile.lockfile_version != FORMAT {
            return Err(wrong(format!(
                "lockfile version {} is not known to this program",
                lockfile.lockfile_version
            )));
        }
        lockfile.parse().map_err(wrong)?;
        Ok(lockfile)
    }

    /// Writes the lockfile, replacing what is there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::Internal(error.to_string()))?;
        text.push(b'\n');
        let path = std::path::absolute(path).map_err(|error| Error::io(path, error))?;
        replace_with_mode(&path, &text, 0o666)
    }

    /// The references, in order.
    pub fn references(&self) -> Vec<BundleRef> {
        let all = self.bundles.iter();
        all.filter_map(|entry| entry.reference.parse().ok())
            .collect()
    }

    /// What the lockfile allows, for a client of the registry at `url`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it is about another registry.
    pub fn locked(&self, url: &Url) -> Result<Locked> {
        let other = || {
            Error::Config(format!(
                "the lockfile is about {}, not {url}",
                self.registry
            ))
        };
        let host = |url| HostId::from_url(url).map_err(|_| other());
        // What is no URL of a host, such as a directory's, is compared as it stands.
        if self.registry != *url && host(&self.registry)? != host(url)? {
            return Err(other());
        }
        self.parse().map_err(Error::Config)
    }

    fn parse(&self) -> Result<Locked, String> {
        let mut locked = Locked::default();
        for entry in &self.bundles {
            let reference: BundleRef = entry
                .reference
                .parse()
                .map_err(|error| format!("{:?}: {error}", entry.reference))?;
            locked
                .add(&reference, entry.version.clone(), entry.table)
                .map_err(|other| {
                    format!(
                        "{reference} is there twice, as {} and {other}",
                        entry.version
                    )
                })?;
        }
        Ok(locked)
    }
}
