//! What a path is and where its bytes came from, or why there is nothing, for people and programs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::status::{path_of, timestamp};
use crate::error::Error;
use crate::fs::failures::Failure;
use crate::fs::{ExplainedKind, Explanation, Fs};
use crate::fuse::errno;

/// What is left to do about what no hint covers.
const LAST_REMEDY: &str = "this should not happen; please report it with `musherfs bugreport`";

/// Why nobody can write there, whatever the path is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writing {
    /// The error number that whoever tries sees.
    pub errno: String,
    /// Why.
    pub reason: String,
    /// What to do instead.
    pub remedy: String,
}

impl Default for Writing {
    fn default() -> Self {
        Self {
            errno: "EROFS".to_owned(),
            reason: "mounts are read-only, since what is published never changes".to_owned(),
            remedy: "publish a new version, or change a copy (`cp -rL`)".to_owned(),
        }
    }
}

/// An explained path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// The path within the mount.
    pub path: String,
    /// `root`, `namespace`, `link`, `version`, `directory`, `file`, `probe`, `refused`, `absent` or
    /// `unknown`.
    pub kind: String,
    /// The namespace.
    pub namespace: Option<String>,
    /// The bundle, without its namespace.
    pub bundle: Option<String>,
    /// The moving name that the path goes through: `latest`, a tag, a range.
    pub selector: Option<String>,
    /// The version that the path leads to.
    pub version: Option<String>,
    /// The rest of the path, within the version.
    pub entry: Option<String>,
    /// How much longer the moving name is answered without asking.
    pub fresh_for_seconds: Option<u64>,
    /// `published` or `yanked`.
    pub state: Option<String>,
    /// Who told the list of files.
    pub manifest_source: Option<String>,
    /// The content's digest.
    pub sha256: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// What kind of asset it is.
    pub asset_type: Option<String>,
    /// Whether the content is on this machine.
    pub cached: Option<bool>,
    /// Where the content came from.
    pub source: Option<String>,
    /// When the content was last compared with its digest in this session.
    pub verified: Option<Timestamp>,
    /// Why there is nothing, or nothing is known.
    pub reason: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// The last failure.
    pub failure: Option<FailureReport>,
    /// What becomes of attempts to write.
    #[serde(default)]
    pub writing: Writing,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureReport {
    /// What was asked for, as the kernel calls it.
    pub operation: String,
    /// The path within the mount, as far as it is known.
    pub path: Option<String>,
    /// When, the last time.
    pub at: Timestamp,
    /// How often in a row.
    pub times: u64,
    /// The error number that the reader saw, such as `EHOSTUNREACH`.
    pub errno: String,
    /// Why.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl FailureReport {
    pub(super) fn new(fs: &Fs, failure: &Failure) -> Self {
        Self {
            operation: failure.operation.to_owned(),
            path: path_of(fs, failure.ino, failure.name.as_deref()),
            at: timestamp(failure.at),
            times: failure.times,
            errno: errno_name(&failure.error).to_owned(),
            message: failure.error.to_string(),
            remedy: remedy(&failure.error).to_owned(),
        }
    }
}

/// What to do about an error; never nothing.
pub fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Config(_) => "correct that setting; `musherfs doctor` checks all of them",
        error => error.hint().unwrap_or(LAST_REMEDY),
    }
}

/// The name of the error number that readers see.
pub fn errno_name(error: &Error) -> &'static str {
    match errno(error).code() {
        libc::ENOENT => "ENOENT",
        libc::EACCES => "EACCES",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        _ => "EIO",
    }
}

impl Why {
    /// Explains `path`, which is relative to the root of the mount. May read the cache's disk.
    pub fn of(fs: &Fs, path: &str) -> Self {
        let Explanation {
            kind,
            namespace,
            bundle,
            selector,
            version,
            entry,
            fresh_for,
            state,
            manifest_source,
            sha256,
            size,
            asset_type,
            cached,
            source,
            verified,
            reason,
            remedy,
            failure,
        } = fs.explain(path);
        Self {
            path: format!("/{}", path.trim_matches('/')),
            kind: name(kind).to_owned(),
            namespace: namespace.map(|namespace| namespace.to_string()),
            bundle: bundle.map(|bundle| bundle.slug.to_string()),
            selector: selector.map(|selector| selector.text().into_owned()),
            version: version.map(|version| version.to_string()),
            entry,
            fresh_for_seconds: fresh_for
                .filter(|left| *left < Duration::MAX)
                .map(|left| left.as_secs()),
            state: state.map(|state| state.as_str().to_owned()),
            manifest_source: manifest_source.map(|source| source.to_string()),
            sha256,
            size,
            asset_type,
            cached,
            source: source.map(|source| source.to_string()),
            verified: verified.map(timestamp),
            reason,
            remedy,
            failure: failure.map(|failure| FailureReport::new(fs, &failure)),
            writing: Writing::default(),
        }
    }

    /// Whether there is something at the path, as far as is known.
    pub fn is_there(&self) -> bool {
        !matches!(self.kind.as_str(), "absent" | "unknown" | "refused")
    }
}

fn name(kind: ExplainedKind) -> &'static str {
    match kind {
        ExplainedKind::Root => "root",
        ExplainedKind::Namespace => "namespace",
        ExplainedKind::Link => "link",
        ExplainedKind::Version => "version",
        ExplainedKind::Directory => "directory",
        ExplainedKind::File => "file",
        ExplainedKind::Probe => "probe",
        ExplainedKind::Refused => "refused",
        ExplainedKind::Absent => "absent",
        ExplainedKind::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::reference::InvalidReference;

    #[test]
    fn every_error_has_a_number_and_a_remedy() {
        let what = || "acme/kit@1.0.0/a.md".to_owned();
        let origin = || "registry https://registry.test".to_owned();
        let reason = || "it said so".to_owned();
        let invalid: InvalidReference = "..".parse::<crate::reference::Slug>().unwrap_err();
        let table = [
            (Error::not_found(what()), "ENOENT"),
            (Error::Reference(invalid), "ENOENT"),
            (
                Error::Denied {
                    what: what(),
                    reason: reason(),
                },
                "EACCES",
            ),
            (Error::Yanked { what: what() }, "EACCES"),
            (
                Error::WrongBytes {
                    what: what(),
                    expected: Digest::of(b""),
                    origin: origin(),
                },
                "EIO",
            ),
            (
                Error::Contradiction {
                    what: what(),
                    detail: reason(),
                },
                "EIO",
            ),
            (
                Error::Malformed {
                    what: what(),
                    origin: origin(),
                    reason: reason(),
                },
                "EIO",
            ),
            (Error::timeout(what()), "ETIMEDOUT"),
            (
                Error::Unreachable {
                    origin: origin(),
                    reason: reason(),
                },
                "EHOSTUNREACH",
            ),
            (Error::Offline { what: what() }, "EHOSTUNREACH"),
            (Error::Config("mount.readahead: x".into()), "EIO"),
            (Error::Internal("lost".into()), "EIO"),
        ];
        for (error, number) in table {
            assert_eq!(errno_name(&error), number, "{error}");
            assert!(remedy(&error).len() > 20, "{error}");
        }
    }
}
