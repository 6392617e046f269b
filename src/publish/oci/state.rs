//! Withdrawing a version in a registry that has no notion of it.
//!
//! A change of state is an artifact of its own, with the version's manifest as its subject, under a
//! tag that says it all: `_yanked.1.1.2.0`, `_published.2.1.2.0` ([`StateTag`]). Readers learn the
//! state of every version from the list of tags, which they fetch anyway; the artifact says why,
//! when and by whom, and a registry with the referrers API lists it under the version. Nothing is
//! ever moved or deleted, so the tags are the record, and registries that refuse deletions work.
//!
//! Yanking what is yanked changes nothing; its first reason stays.

use bytes::Bytes;
use jiff::Timestamp;

use super::PushError;
use super::remote::{Found, Remote};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::State;
use crate::reference::VersionRef;
use crate::source::oci::model::{
    BUNDLE_STATE, CREATED, Descriptor, EMPTY, IMAGE_MANIFEST, ImageManifest, STATE, STATE_ACTOR,
    STATE_REASON,
};
use crate::source::oci::reference::{MAX_TAG, Repository, StateTag, tag_of};

/// The content of config and layer of what has none.
const NOTHING: &[u8] = b"{}";

/// A version's state in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The version.
    pub reference: VersionRef,
    /// Its state now.
    pub state: State,
    /// Whether this call has changed it.
    pub changed: bool,
    /// The tag that records the state; `None` if it never changed.
    pub tag: Option<String>,
}

/// Sets the state of a version. `reason` is for those who use it, `actor` for the record.
///
/// # Errors
///
/// [`PushError::NoVersion`] if the registry does not have it, and what the registry says.
pub async fn set_state(
    remote: &Remote,
    reference: &VersionRef,
    state: State,
    reason: Option<&str>,
    actor: &str,
) -> Result<Recorded, PushError> {
    let failed = |error| PushError::new(remote.name(), error);
    let repository = remote.repository(&reference.bundle)?;
    let tag = tag_of(&reference.version);
    let Some(version) = remote.manifest(&repository, &tag).await.map_err(failed)? else {
        return Err(PushError::NoVersion {
            registry: remote.name().to_owned(),
            what: reference.clone(),
        });
    };
    let tags = remote.tags(&repository).await.map_err(failed)?;
    let newest = newest(&tags, reference);
    let (before, sequence) = match &newest {
        Some(tag) => (tag.state, tag.sequence),
        None => (State::Published, 0),
    };
    if before == state {
        return Ok(Recorded {
            reference: reference.clone(),
            state,
            changed: false,
            tag: newest.map(|tag| tag.to_string()),
        });
    }
    let tag = StateTag {
        state,
        sequence: sequence.saturating_add(1),
        version: reference.version.clone(),
    }
    .to_string();
    if tag.len() > MAX_TAG {
        return Err(failed(Error::Config(format!(
            "the version is too long for the tag that would record its state, {tag}"
        ))));
    }
    let now = Some(Timestamp::now());
    let record = record(&version, state, reason, actor, now).map_err(failed)?;
    write(remote, &repository, &tag, &record)
        .await
        .map_err(failed)?;
    Ok(Recorded {
        reference: reference.clone(),
        state,
        changed: true,
        tag: Some(tag),
    })
}

/// Whether a tag is one of those that record states.
pub(super) fn is_reserved(tag: &str) -> bool {
    tag.parse::<StateTag>().is_ok()
}

/// The tag that decides the state of a version, if it ever changed.
fn newest(tags: &[String], reference: &VersionRef) -> Option<StateTag> {
    tags.iter()
        .filter_map(|tag| tag.parse::<StateTag>().ok())
        .filter(|tag| tag.version == reference.version)
        // Of two changes at the same time, the careful one counts.
        .max_by_key(|tag| (tag.sequence, tag.state == State::Yanked))
}

async fn write(
    remote: &Remote,
    repository: &Repository,
    tag: &str,
    record: &Bytes,
) -> Result<(), Error> {
    let nothing = Bytes::from_static(NOTHING);
    remote
        .ensure_blob(repository, Digest::of(NOTHING), &nothing, None)
        .await?;
    remote.put_manifest(repository, tag, record, true).await
}

/// The manifest of a record about `version`, made `at` a time.
/// # Errors
///
/// None that a caller could do something about.
pub fn record(
    version: &Found,
    state: State,
    reason: Option<&str>,
    actor: &str,
    at: Option<Timestamp>,
) -> Result<Bytes, Error> {
    let empty = Descriptor {
        media_type: EMPTY.to_owned(),
        digest: Digest::of(NOTHING).to_string(),
        size: NOTHING.len() as u64,
        annotations: None,
    };
    let at = at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let annotations = [
        (STATE, Some(state.as_str().to_owned())),
        (STATE_REASON, reason.map(str::to_owned)),
        (STATE_ACTOR, Some(actor.to_owned())),
        (CREATED, at),
    ];
    let annotations = annotations
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: IMAGE_MANIFEST.to_owned(),
        artifact_type: Some(BUNDLE_STATE.to_owned()),
        config: empty.clone(),
        layers: vec![empty],
        subject: Some(Descriptor {
            media_type: version.media_type.clone(),
            digest: version.digest.to_string(),
            size: version.bytes.len() as u64,
            annotations: None,
        }),
        annotations: Some(annotations.collect()),
    };
    let json = serde_json::to_vec(&manifest).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_counts_and_of_two_equal_ones_the_yank() {
        let reference: VersionRef = "acme/kit@1.2.0".parse().unwrap();
        let newest = |tags: &[&str]| {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            newest(&tags, &reference).map(|tag| tag.to_string())
        };
        assert_eq!(newest(&["1.2.0", "latest", "_yanked.1.1.3.0"]), None);
        assert_eq!(
            newest(&["_yanked.2.1.2.0", "_published.10.1.2.0", "1.2.0"]),
            Some("_published.10.1.2.0".into())
        );
        assert_eq!(
            newest(&["_yanked.3.1.2.0", "_published.3.1.2.0"]),
            Some("_yanked.3.1.2.0".into())
        );
    }

    #[test]
    fn a_record_names_the_version_it_is_about() {
        let version = Found {
            digest: Digest::of(b"manifest"),
            bytes: Bytes::from_static(b"manifest"),
            media_type: IMAGE_MANIFEST.to_owned(),
        };
        let json = record(
            &version,
            State::Yanked,
            Some("leaks"),
            "ada",
            Some(Timestamp::UNIX_EPOCH),
        )
        .unwrap();
        let manifest = ImageManifest::parse(&json).unwrap();
        assert_eq!(manifest.artifact_type.as_deref(), Some(BUNDLE_STATE));
        let subject = manifest.subject.clone().unwrap();
        assert_eq!(subject.sha256(), Some(version.digest));
        assert_eq!(subject.size, 8);
        assert_eq!(manifest.annotation(STATE), Some("yanked"));
        assert_eq!(manifest.annotation(STATE_REASON), Some("leaks"));
        assert_eq!(manifest.annotation(STATE_ACTOR), Some("ada"));
        assert!(manifest.annotation(CREATED).unwrap().ends_with('Z'));
    }
}
