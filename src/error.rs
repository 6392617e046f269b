//! What can go wrong, as kinds.
//!
//! A variant exists because some caller acts differently on it: another errno (the table in
//! `fuse`), exit code (the table in `cli`), fallback or hint. Errors are shared
//! by all who waited for one computation and kept for `why`, so they clone cheaply.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::reference::InvalidReference;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be resolved, fetched, read or stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The authority says that it does not exist. Never used for a failure to ask.
    #[error("{what} not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// 401 or 403 on every route.
    #[error("access to {what} denied: {reason}")]
    Denied {
        /// What was asked for.
        what: String,
        /// What the source said.
        reason: String,
    },
    /// A yanked version under `--deny-yanked`.
    #[error("{what} is yanked, and this mount denies yanked versions")]
    Yanked {
        /// The version.
        what: String,
    },
    /// Content whose bytes are not what its digest says.
    #[error("{what} should be {expected}, but {origin} has other bytes")]
    WrongBytes {
        /// The file or blob.
        what: String,
        /// The digest that the manifest names.
        expected: Digest,
        /// The source that served them.
        origin: String,
    },
    /// A known version was answered with other content than before: the first stays.
    #[error("integrity alarm: {what} differs from its first answer: {detail}")]
    Contradiction {
        /// The version.
        what: String,
        /// What differs.
        detail: String,
    },
    /// An answer that cannot be understood: not JSON, too large, content that is not there.
    #[error("{origin} gave a malformed answer for {what}: {reason}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// Who answered.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The source refuses the question itself (400, 422): a selector it does not know, say.
    #[error("{origin} rejects the request for {what}: {reason}")]
    Rejected {
        /// What was asked for.
        what: String,
        /// Who answered.
        origin: String,
        /// What it said.
        reason: String,
    },
    /// The deadline passed.
    #[error("{what} did not arrive in time")]
    Timeout {
        /// What was waited for.
        what: String,
        /// Whether most of the time went by behind other requests of ours, which says nothing about
        /// the source.
        queued: bool,
    },
    /// The source cannot be reached (refused, DNS, TLS, reset), or keeps answering 5xx or 429.
    #[error("{origin} is unreachable: {reason}")]
    Unreachable {
        /// The source.
        origin: String,
        /// What happened.
        reason: String,
    },
    /// Not cached, and there is nobody to ask: `--offline`, or no source configured.
    #[error("{what} is not in the cache, and there is nobody to ask")]
    Offline {
        /// What was asked for.
        what: String,
    },
    /// The local disk.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// Text that is not a valid name.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A manifest that cannot be used.
    #[error("{what}: {source}")]
    Manifest {
        /// The version.
        what: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A setting that cannot be used.
    #[error("{0}")]
    Config(String),
    /// A defect of this program that was caught: a lost task, a broken invariant.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// Wraps an I/O error with the path it happened at.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source: Arc::new(source),
        }
    }

    /// `what` does not exist.
    pub fn not_found(what: impl ToString) -> Self {
        Self::NotFound {
            what: what.to_string(),
        }
    }

    /// `what` was waited for, and whoever has it was asked.
    pub fn timeout(what: impl ToString) -> Self {
        Self::Timeout {
            what: what.to_string(),
            queued: false,
        }
    }

    /// Whether a source said with authority that the thing is absent.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Reference(_))
    }

    /// Whether asking the same source again later could help: it was not reached, or not in time.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Offline { .. }
        )
    }

    /// What the user can do about it, for `hint:` lines and `why`.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotFound { .. } => {
                "check the spelling; a private bundle without a key looks absent too"
            }
            Self::Denied { .. } => {
                "set MUSHER_API_KEY or --api-key-file to a key that may read this namespace, or `docker login` to an OCI registry"
            }
            Self::Yanked { .. } => "name another version, or mount without --deny-yanked",
            Self::WrongBytes { .. } => {
                "the bytes were discarded; ask the registry's operator, or configure another source"
            }
            Self::Contradiction { .. } => {
                "a published version must never change; the first content stays, ask its publisher"
            }
            Self::Malformed { .. } | Self::Rejected { .. } => {
                "check that the URL is a Musher registry and not a login page or a proxy"
            }
            Self::Timeout { .. } => {
                "the source is slow or stuck; try again, or give it longer with MUSHERFS_METADATA_TIMEOUT or \
                 MUSHERFS_CONTENT_TIMEOUT, which are options of `musherfs mount` too"
            }
            Self::Unreachable { .. } => {
                "check the network, the proxy settings and the registry's URL"
            }
            Self::Offline { .. } => {
                "leave --offline out (MUSHERFS_OFFLINE, mount.offline), or load the bundle while online"
            }
            Self::Io { source, .. } => disk_hint(source.kind()),
            Self::Reference(_) => {
                "names are namespace/bundle[@version], such as acme/code-review@1.2.0"
            }
            Self::Manifest { .. } => {
                "ask the publisher to publish the bundle again under a new version"
            }
            Self::Config(_) | Self::Internal(_) => return None,
        })
    }
}

/// What can be done about an answer of the local disk.
fn disk_hint(kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind as Kind;
    match kind {
        Kind::NotFound => "there is no such path: check the spelling",
        Kind::PermissionDenied => "check who owns that path, and who may read and write it",
        Kind::ReadOnlyFilesystem => "that filesystem is read-only: name another place",
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => {
            "there is no room: free some, or name another place"
        }
        Kind::AlreadyExists => "it exists already: remove it, or name another place",
        Kind::AddrInUse => "somebody listens there already: name another port, or end whoever does",
        Kind::AddrNotAvailable => "this machine does not have that address: name one of its own",
        Kind::NotADirectory | Kind::IsADirectory => {
            "a file stands where a directory should be, or the other way round"
        }
        _ => "check that path and the disk that it is on",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_about_a_path_says_what_is_wrong_with_it() {
        let hint = |kind: io::ErrorKind| Error::io("/x", kind.into()).hint().unwrap();
        for (kind, part) in [
            (io::ErrorKind::NotFound, "spelling"),
            (io::ErrorKind::PermissionDenied, "who owns"),
            (io::ErrorKind::StorageFull, "no room"),
            (io::ErrorKind::ReadOnlyFilesystem, "read-only"),
            (io::ErrorKind::NotADirectory, "directory"),
            (io::ErrorKind::AlreadyExists, "exists already"),
            (io::ErrorKind::AddrInUse, "another port"),
            (io::ErrorKind::Other, "disk"),
        ] {
            assert!(hint(kind).contains(part), "{kind}");
        }
    }

    #[test]
    fn the_hint_about_time_names_what_every_command_understands() {
        let what = String::new();
        let hint = Error::timeout(what).hint().unwrap();
        assert!(hint.contains("MUSHERFS_METADATA_TIMEOUT"), "{hint}");
        assert!(!hint.contains("--"), "{hint}");
    }
}
