//! Publishing to an OCI registry: what `oras push` would do, and the rules of publishing on top.
//!
//! ```text
//! HOST[/PREFIX]/namespace/bundle:1.2.0             the version; `+` is written `_`
//!                               :latest            moved on request
//!                               :_yanked.1.1.2.0   its state, once that has changed (see `state`)
//! ```
//!
//! - **A version only once.** A version that the registry has is refused, unless it has the same
//!   config and the same layers: then publishing it again is done already. Annotations do not
//!   count, for they say when and by whom. OCI knows no "only if absent", so this holds against
//!   mistakes, not against a race to the same version: the version is looked up before and after
//!   it is written, and who finds another's content says so.
//! - **Content first.** The manifest is written when all blobs are there, tags when the version is.
//!   Whatever fails before leaves blobs that the registry's own garbage collection removes.
//! - **The same bytes from the same commit.** `created` is the time of the commit where there is
//!   one, so that a pipeline that runs twice pushes one digest.
//! - **Nothing sent twice.** Each distinct blob is looked up first, mounted from another repository
//!   if that was named, and uploaded otherwise.
//!
//! Failures are those of the publishing API: 503 where the registry refuses the credentials or
//! cannot be reached, 500 for everything else, each with what to do about it.

mod commit;
mod remote;
mod state;
mod upload;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;

use super::artifact::{Artifact, distinct_blobs, same_content};
use super::{Publication, PublishError};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::{BundleId, Selector, VersionRef};
use crate::source::oci::model::{CREATED, DESCRIPTION, REVISION, TITLE};
use crate::source::oci::reference::{MAX_TAG, Repository, tag_of, version_of};

pub use commit::Commit;
pub use remote::{Found, Remote};
pub use state::{Recorded, record, set_state};
pub use upload::Sent;

/// How many blobs are on their way at the same time.
const AT_ONCE: usize = 16;
/// How often a manifest is offered whose blobs the registry does not find, although it has them.
const MANIFEST_ATTEMPTS: u32 = 4;
/// How long to wait before the second time; the third comes after twice as long, and so on.
const SETTLING: Duration = Duration::from_millis(250);

const LICENSES: &str = "org.opencontainers.image.licenses";
const SOURCE: &str = "org.opencontainers.image.source";
const URL: &str = "org.opencontainers.image.url";

/// Why a push, a yank or an unyank failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// What is to be published breaks a rule.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The registry refuses the credentials, or wants some.
    #[error("{registry} refuses access (503 registry authentication): {error}")]
    Authentication {
        /// The registry.
        registry: String,
        /// What it said.
        error: Error,
    },
    /// The registry cannot be reached, or did not answer in time.
    #[error("writing to {registry} failed (503 registry unreachable): {error}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What happened.
        error: Error,
    },
    /// Everything else.
    #[error("writing to {registry} failed (500): {error}")]
    Failed {
        /// The registry.
        registry: String,
        /// What happened.
        error: Error,
    },
    /// A bundle whose name no repository can have.
    #[error("{0} cannot be in an OCI registry: repositories are lower case")]
    Name(BundleId),
    /// There is no such version to yank or tag.
    #[error("{registry} has no {what}")]
    NoVersion {
        /// The registry.
        registry: String,
        /// The version.
        what: VersionRef,
    },
}

impl PushError {
    fn new(registry: &str, error: Error) -> Self {
        let registry = registry.to_owned();
        match error {
            Error::Denied { .. } => Self::Authentication { registry, error },
            Error::Unreachable { .. } | Error::Timeout { .. } | Error::Offline { .. } => {
                Self::Unreachable { registry, error }
            }
            error => Self::Failed { registry, error },
        }
    }

    /// The status with which the publishing API answers the same failure.
    pub fn status(&self) -> u16 {
        match self {
            Self::Publish(PublishError::VersionExists(_)) => 409,
            Self::Publish(_) | Self::Name(_) => 422,
            Self::Authentication { .. } | Self::Unreachable { .. } => 503,
            Self::Failed { .. } => 500,
            Self::NoVersion { .. } => 404,
        }
    }

    /// The registry's error, if it was the registry's.
    pub fn cause(&self) -> Option<&Error> {
        match self {
            Self::Publish(PublishError::Storage(error))
            | Self::Authentication { error, .. }
            | Self::Unreachable { error, .. }
            | Self::Failed { error, .. } => Some(error),
            Self::Publish(_) | Self::Name(_) | Self::NoVersion { .. } => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Publish(error) => error.hint(),
            Self::Authentication { .. } => {
                "log in with `docker login` or `podman login`, with an account that may push there"
            }
            Self::Unreachable { .. } => {
                "check the registry's address, the network and --ca-file; http needs --insecure-http \
                 unless it is this machine; the same command continues where this ended"
            }
            Self::Failed { .. } => {
                "check that the address is an OCI registry and the name is one it allows (lower case); \
                 the same command continues where this ended"
            }
            Self::Name(_) => {
                "letters are lower case, words are joined by one of . _ __ or by hyphens"
            }
            Self::NoVersion { .. } => "check the spelling, and the registry's address and prefix",
        }
    }
}

/// A tag that a publisher may move: neither a version nor one of those that have a meaning here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

/// Text that is not such a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be moved: a tag is a name such as latest or stable, and no version")]
pub struct InvalidTag(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let is_tag = match text.parse::<Selector>() {
            Ok(Selector::Latest) => true,
            // `1.2.0_x` is how the version `1.2.0+x` is written.
            Ok(Selector::Tag(_)) => version_of(text).is_none(),
            _ => false,
        };
        if is_tag && text.len() <= MAX_TAG && !state::is_reserved(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidTag(text.chars().take(MAX_TAG).collect()))
        }
    }
}

/// How to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Tags to point at the version afterwards.
    pub tags: Vec<Tag>,
    /// Another bundle of the same registry that has many of the same files.
    pub mount_from: Option<BundleId>,
    /// The commit that the files are from.
    pub commit: Option<Commit>,
}

/// What a push has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// This is how much there is.
    Planned {
        /// Distinct blobs.
        blobs: u64,
        /// Their size.
        bytes: u64,
    },
    /// A blob is where it should be.
    Blob {
        /// Its size.
        bytes: u64,
        /// How it got there.
        sent: Sent,
    },
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The version.
    pub reference: VersionRef,
    /// Where it is: `HOST[/PREFIX]/namespace/bundle:tag`.
    pub oci_ref: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Whether the registry had it before, with the same content.
    pub existed: bool,
    /// The tags that point at it now.
    pub tags: Vec<Tag>,
    /// How many blobs the registry had already.
    pub found: u64,
    /// How many it took from another repository.
    pub mounted: u64,
    /// How many were uploaded.
    pub uploaded: u64,
    /// Their size in bytes.
    pub uploaded_bytes: u64,
}

/// Publishes a version, and moves tags to it.
///
/// # Errors
///
/// [`PushError`]; nothing that anybody could see has changed unless the version itself was written.
pub async fn push(
    remote: &Remote,
    publication: &Publication,
    options: &PushOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Pushed, PushError> {
    publication.check()?;
    let failed = |error| PushError::new(remote.name(), error);
    let reference = &publication.reference;
    let repository = remote.repository(&reference.bundle)?;
    let tag = tag_of(&reference.version);
    let artifact = Artifact::of_publication(publication, annotations(publication, options));
    let mut pushed = Pushed {
        reference: reference.clone(),
        oci_ref: format!("{}:{tag}", remote.reference(&reference.bundle)),
        digest: artifact.digest(),
        existed: false,
        tags: options.tags.clone(),
        found: 0,
        mounted: 0,
        uploaded: 0,
        uploaded_bytes: 0,
    };

    let mut bytes = artifact.manifest().clone();
    if let Some(there) = remote.manifest(&repository, &tag).await.map_err(failed)? {
        if !same_content(&there.bytes, &bytes) {
            return Err(PublishError::VersionExists(reference.clone()).into());
        }
        pushed.existed = true;
        pushed.digest = there.digest;
        bytes = there.bytes;
    } else {
        let mount_from = options.mount_from.as_ref();
        let from = mount_from
            .map(|bundle| remote.repository(bundle))
            .transpose()?;
        let blobs = Blobs {
            remote,
            repository: &repository,
            mount_from: from.as_ref(),
            progress,
        };
        let mut attempt = 1;
        let written = loop {
            let counted = blobs.send(publication, &artifact).await.map_err(failed)?;
            if attempt == 1 {
                (pushed.found, pushed.mounted) = (counted.found, counted.mounted);
            }
            pushed.uploaded += counted.uploaded;
            pushed.uploaded_bytes += counted.uploaded_bytes;
            match write_version(remote, &repository, &tag, &artifact, reference).await {
                // Another publisher's upload of a blob is visible before it is complete in some
                // registries: looked at again, the blob is there, or is sent.
                Err(PushError::Failed {
                    error: Error::Rejected { .. } | Error::NotFound { .. },
                    ..
                }) if attempt < MANIFEST_ATTEMPTS => {
                    tokio::time::sleep(SETTLING * attempt).await;
                    attempt += 1;
                }
                outcome => break outcome?,
            }
        };
        pushed.existed = written.existed;
        pushed.digest = written.digest;
        bytes = written.bytes;
    }
    for tag in &options.tags {
        remote
            .put_manifest(&repository, tag.as_str(), &bytes, false)
            .await
            .map_err(failed)?;
    }
    Ok(pushed)
}

/// The manifest that a version's tag points at.
struct Written {
    bytes: Bytes,
    digest: Digest,
    existed: bool,
}

/// Points the version's tag at the artifact, if nobody else was faster.
async fn write_version(
    remote: &Remote,
    repository: &Repository,
    tag: &str,
    artifact: &Artifact,
    reference: &VersionRef,
) -> Result<Written, PushError> {
    let failed = |error| PushError::new(remote.name(), error);
    let exists = || PublishError::VersionExists(reference.clone()).into();
    let ours = artifact.manifest();
    // Uploading took a while.
    if let Some(there) = remote.manifest(repository, tag).await.map_err(failed)? {
        if !same_content(&there.bytes, ours) {
            return Err(exists());
        }
        return Ok(Written {
            bytes: there.bytes,
            digest: there.digest,
            existed: true,
        });
    }
    remote
        .put_manifest(repository, tag, ours, true)
        .await
        .map_err(failed)?;
    match remote.manifest(repository, tag).await.map_err(failed)? {
        Some(there) if there.digest == artifact.digest() => Ok(Written {
            bytes: there.bytes,
            digest: there.digest,
            existed: false,
        }),
        Some(there) if same_content(&there.bytes, ours) => Ok(Written {
            bytes: there.bytes,
            digest: there.digest,
            existed: true,
        }),
        Some(_) => Err(exists()),
        None => Err(failed(Error::Malformed {
            what: reference.to_string(),
            origin: remote.name().to_owned(),
            reason: "it took the manifest and does not have it".into(),
        })),
    }
}

/// How blobs got to where they should be.
#[derive(Default)]
struct Counted {
    found: u64,
    mounted: u64,
    uploaded: u64,
    uploaded_bytes: u64,
}

/// Where blobs go.
struct Blobs<'a> {
    remote: &'a Remote,
    repository: &'a Repository,
    mount_from: Option<&'a Repository>,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Blobs<'_> {
    /// Sends all that is not there.
    async fn send(&self, publication: &Publication, artifact: &Artifact) -> Result<Counted, Error> {
        let mut counted = Counted::default();
        let mut blobs = distinct_blobs(publication);
        blobs.push((artifact.config_digest(), artifact.config().clone()));
        (self.progress)(Progress::Planned {
            blobs: blobs.len() as u64,
            bytes: blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
        });
        let mut sending = stream::iter(blobs)
            .map(|(digest, bytes)| async move {
                let sent = self
                    .remote
                    .ensure_blob(self.repository, digest, &bytes, self.mount_from)
                    .await?;
                Ok::<_, Error>((sent, bytes.len() as u64))
            })
            .buffer_unordered(AT_ONCE);
        while let Some((sent, bytes)) = sending.try_next().await? {
            match sent {
                Sent::Found => counted.found += 1,
                Sent::Mounted => counted.mounted += 1,
                Sent::Uploaded => {
                    counted.uploaded += 1;
                    counted.uploaded_bytes += bytes;
                }
            }
            (self.progress)(Progress::Blob { bytes, sent });
        }
        Ok(counted)
    }
}

/// What the manifest says besides the content. The publisher's own annotations come first: they
/// replace none of those that have a meaning.
fn annotations(publication: &Publication, options: &PushOptions) -> BTreeMap<String, String> {
    let mut all = publication.annotations.clone();
    let created = match &options.commit {
        Some(commit) => commit.time,
        None => Timestamp::now(),
    };
    let created = created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    all.insert(CREATED.to_owned(), created);
    all.insert(TITLE.to_owned(), publication.name.clone());
    for (name, value) in [
        (DESCRIPTION, &publication.description),
        (LICENSES, &publication.license),
        (SOURCE, &publication.repository),
        (URL, &publication.homepage),
    ] {
        if let Some(value) = value {
            all.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(commit) = &options.commit {
        all.insert(REVISION.to_owned(), commit.id.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_version_can_be_moved() {
        for good in ["latest", "stable", "v1", "next_major", "2026"] {
            let parsed = good.parse::<Tag>();
            // A bare number is a range, and names nothing that could be moved.
            assert_eq!(parsed.is_ok(), good != "2026", "{good}");
        }
        let long = "x".repeat(129);
        for bad in [
            "",
            "1.2.0",
            "1.2.0_b1",
            "1.2.0-a_b",
            "^1",
            "a b",
            "a/b",
            "_yanked.1.1.2.0",
            "é",
            &long,
        ] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn failures_have_the_statuses_of_the_publishing_api() {
        let what = || "acme/kit".to_owned();
        for (error, status) in [
            (
                Error::Denied {
                    what: what(),
                    reason: "401".into(),
                },
                503,
            ),
            (
                Error::Unreachable {
                    origin: what(),
                    reason: "refused".into(),
                },
                503,
            ),
            (Error::timeout(what()), 503),
            (
                Error::Rejected {
                    what: what(),
                    origin: what(),
                    reason: "400".into(),
                },
                500,
            ),
        ] {
            let failure = PushError::new("registry.test", error);
            assert_eq!(failure.status(), status, "{failure}");
            assert!(
                failure.to_string().contains(&status.to_string()),
                "{failure}"
            );
            assert!(!failure.hint().is_empty());
        }
    }
}
