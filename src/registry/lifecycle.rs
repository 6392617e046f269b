//! A version's life after publishing, and which version a name means.
//!
//! `published ⇄ yanked`, nothing else: content never changes and is never removed. A version
//! without a state file is published. Every change is kept, with its reason, time and actor:
//!
//! ```json
//! {"state": "yanked", "reason": "leaks a token", "time": "…Z", "actor": "ann",
//!  "history": [{"state": "published", …}, {"state": "yanked", …}]}
//! ```
//!
//! A yanked version is never chosen by `latest`, a tag or a range. Named exactly, by version or
//! digest, it still resolves: a lock file must keep working.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::storage::{Damage, Listed, Release, Storage, is_absence};
use crate::error::{Error, Result};
use crate::manifest::State;
use crate::reference::{BundleId, Selector, Version, VersionRef};

/// One change of a version's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `published` or `yanked`.
    pub state: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// When.
    pub time: Timestamp,
    /// By whom.
    #[serde(default)]
    pub actor: Option<String>,
}

/// A version's state and how it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The last change.
    #[serde(flatten)]
    pub current: Change,
    /// Every change, the publishing first.
    #[serde(default)]
    pub history: Vec<Change>,
}

impl StateRecord {
    /// The state of a version that was published and not touched since.
    fn initial(release: &Release) -> Self {
        let current = Change {
            state: State::Published.as_str().to_owned(),
            reason: None,
            time: release.stored.created_at,
            actor: release.stored.published_by.clone(),
        };
        Self {
            history: vec![current.clone()],
            current,
        }
    }

    /// Whether the version is withdrawn.
    pub fn is_yanked(&self) -> bool {
        self.current.state == State::Yanked.as_str()
    }

    /// The change that withdrew the version, if it is withdrawn.
    pub fn yank(&self) -> Option<&Change> {
        self.is_yanked().then_some(&self.current)
    }
}

impl Storage {
    /// Withdraws a version. Returns whether that changed anything: yanking twice keeps the first
    /// reason.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such version, [`Error::Io`].
    pub fn yank(&self, reference: &VersionRef, reason: &str, actor: &str) -> Result<bool> {
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        self.change(reference, State::Yanked, reason, actor)
    }

    /// Puts a withdrawn version back. Returns whether that changed anything.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such version, [`Error::Io`].
    pub fn unyank(&self, reference: &VersionRef, actor: &str) -> Result<bool> {
        self.change(reference, State::Published, None, actor)
    }

    fn change(
        &self,
        reference: &VersionRef,
        state: State,
        reason: Option<&str>,
        actor: &str,
    ) -> Result<bool> {
        // Read under the lock: of two changes, the second must see the first.
        let _alone = self.lock_alone()?;
        let listed = self
            .version(reference)
            .ok_or_else(|| Error::not_found(reference))?;
        if listed.state.current.state == state.as_str() {
            return Ok(false);
        }
        let current = Change {
            state: state.as_str().to_owned(),
            reason: reason.map(str::to_owned),
            time: Timestamp::now(),
            actor: Some(actor.to_owned()),
        };
        let mut history = listed.state.history;
        history.push(current.clone());
        let record = StateRecord { current, history };
        self.write_json(&self.state_path(reference), &record)?;
        Ok(true)
    }

    /// Points `tag` at a version, or removes it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such version, [`Error::Config`] for a name that is not a
    /// tag's, [`Error::Io`].
    pub fn tag(&self, bundle: &BundleId, tag: &str, version: Option<&Version>) -> Result<()> {
        if !matches!(tag.parse(), Ok(Selector::Tag(_))) {
            return Err(Error::Config(format!(
                "{tag:?} cannot be a tag: it is no name, or already means something else"
            )));
        }
        let _alone = self.lock_alone()?;
        let mut tags = self.tags(bundle);
        match version {
            Some(version) => {
                let reference = VersionRef {
                    bundle: bundle.clone(),
                    version: version.clone(),
                };
                self.version(&reference)
                    .ok_or_else(|| Error::not_found(&reference))?;
                tags.insert(tag.to_owned(), version.clone());
            }
            None => {
                tags.remove(tag);
            }
        }
        self.write_json(&self.bundle_dir(bundle).join("tags.json"), &tags)
    }

    /// The version of `bundle` that `selector` means, among those that `visible` lets through.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]. That there is none is no error.
    pub fn choose(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        visible: impl Fn(&Release) -> bool,
    ) -> Result<Option<Listed>> {
        let exactly = |version: &Version| {
            let reference = VersionRef {
                bundle: bundle.clone(),
                version: version.clone(),
            };
            self.version(&reference)
                .filter(|listed| visible(&listed.release))
        };
        let req = match selector {
            Selector::Version(version) => return Ok(exactly(version)),
            Selector::Tag(tag) => {
                let version = self.tags(bundle).remove(&**tag);
                return Ok(version
                    .and_then(|version| exactly(&version))
                    .filter(|listed| !listed.state.is_yanked()));
            }
            Selector::Digest(digest) => {
                let versions = self.versions(bundle)?.versions;
                return Ok(versions.into_iter().find(|listed| {
                    visible(&listed.release) && listed.release.image().digest() == *digest
                }));
            }
            Selector::Range { req, .. } => Some(req),
            Selector::Latest => None,
        };
        let mut candidates = self.versions(bundle)?.versions;
        candidates.retain(|listed| visible(&listed.release) && !listed.state.is_yanked());
        // Newest first. A range says itself whether it takes pre-releases.
        let chosen = match req {
            Some(req) => candidates
                .iter()
                .position(|listed| req.matches(listed.release.reference.version.semver())),
            None => candidates
                .iter()
                .position(|listed| !listed.release.reference.version.is_prerelease())
                .or(Some(0)),
        };
        Ok(chosen
            .filter(|&index| index < candidates.len())
            .map(|index| candidates.swap_remove(index)))
    }

    pub(super) fn read_state(&self, release: &Release) -> Result<StateRecord, Damage> {
        let path = self.state_path(&release.reference);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if is_absence(&error) => return Ok(StateRecord::initial(release)),
            Err(error) => {
                return Err(Damage {
                    path,
                    reason: error.to_string(),
                });
            }
        };
        // A yank must not be lost: what cannot be read is not taken for published.
        match serde_json::from_slice::<StateRecord>(&json) {
            Ok(record) if matches!(&*record.current.state, "published" | "yanked") => Ok(record),
            Ok(record) => Err(Damage {
                path,
                reason: format!("unknown state {:?}", record.current.state),
            }),
            Err(error) => Err(Damage {
                path,
                reason: error.to_string(),
            }),
        }
    }

    fn write_json(&self, path: &std::path::Path, value: &impl Serialize) -> Result<()> {
        let mut json =
            serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))?;
        json.push(b'\n');
        self.replace(path, &json)
    }
}

#[cfg(test)]
mod tests;
