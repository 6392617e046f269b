//! Pins: what stays loaded, whoever cleans the cache.
//!
//! ```text
//! <state>/pins.json     [{"registry":"api.musher.dev","ref":"acme/kit@^1.2","versions":["1.2.0"],…}]
//! ```
//!
//! The file is replaced whole, under a lock. A pinned version is never evicted nor cleaned away by
//! this program; and because the SDKs' clean-ups remove what nobody confirmed for 24 hours, every
//! running mount has the registry confirm it after [`REFRESH`], and loads again what is missing. A
//! pinned name that moves is loaded anew before the old version is let go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::load::{self, Options, Progress};
use super::{lock_file, parsed, parsed_all, replace};
use crate::cache::Cache;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::reference::{BundleRef, HostId, Version, VersionRef};

/// When a pin is confirmed again: half of what the other tools' clean-ups give it, so that a day
/// without a network costs nothing.
pub const REFRESH: Duration = Duration::from_secs(12 * 60 * 60);

/// Something that stays loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Whose it is.
    #[serde(deserialize_with = "parsed")]
    pub registry: HostId,
    /// What was asked for.
    #[serde(rename = "ref", serialize_with = "shown", deserialize_with = "parsed")]
    pub reference: BundleRef,
    /// What is kept of it, the version that it stands for last; more than one only while it moves.
    #[serde(deserialize_with = "parsed_all")]
    pub versions: Vec<Version>,
    /// Since when.
    pub pinned_at: Timestamp,
    /// When all of it was last confirmed and loaded.
    pub refreshed_at: Option<Timestamp>,
}

fn shown<S: serde::Serializer>(value: &BundleRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Pin {
    /// The versions that are kept.
    pub fn kept(&self) -> impl Iterator<Item = VersionRef> {
        self.versions.iter().map(|version| VersionRef {
            bundle: self.reference.bundle.clone(),
            version: version.clone(),
        })
    }

    /// Whether it must be confirmed, or something of it is missing from the cache.
    pub fn is_due(&self, cache: &Cache, now: Timestamp) -> bool {
        let confirmed = self.refreshed_at.is_some_and(|at| {
            let age = Duration::try_from(now.duration_since(at));
            age.is_ok_and(|age| age < REFRESH)
        });
        !confirmed || self.versions.len() != 1 || !self.kept().all(|id| self.is_whole(cache, &id))
    }

    fn is_whole(&self, cache: &Cache, version: &VersionRef) -> bool {
        cache
            .read_manifest(&self.registry, version)
            .is_some_and(|cached| {
                cached.manifest.files().all(|file| {
                    file.size() == 0 || cache.blob_size(file.digest()) == Some(file.size())
                })
            })
    }
}

/// The pins of this user.
#[derive(Debug, Clone)]
pub struct Pins {
    path: PathBuf,
}

impl Pins {
    /// The pins below the state directory.
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join("pins.json"),
        }
    }

    /// All pins, oldest first.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read: nobody knows then what is pinned.
    pub fn list(&self) -> Result<Vec<Pin>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&self.path, error)),
        };
        serde_json::from_slice(&text).map_err(|error| Error::io(&self.path, error.into()))
    }

    fn update<T>(&self, change: impl FnOnce(&mut Vec<Pin>) -> T) -> Result<T> {
        let _lock = lock_file(&self.path.with_extension("lock"))
            .map_err(|error| Error::io(&self.path, error))?;
        let before = self.list()?;
        let mut pins = before.clone();
        let answer = change(&mut pins);
        if pins != before {
            let mut text = serde_json::to_vec_pretty(&pins)
                .map_err(|error| Error::Internal(error.to_string()))?;
            text.push(b'\n');
            replace(&self.path, &text)?;
        }
        Ok(answer)
    }

    /// Adds a version to what is kept for a reference, pinning it if it is not.
    fn keep(&self, registry: &HostId, reference: &BundleRef, version: &Version) -> Result<()> {
        self.update(|pins| {
            let known = pins
                .iter_mut()
                .find(|pin| pin.registry == *registry && pin.reference == *reference);
            match known {
                Some(pin) => {
                    pin.versions.retain(|known| known != version);
                    pin.versions.push(version.clone());
                }
                None => pins.push(Pin {
                    registry: registry.clone(),
                    reference: reference.clone(),
                    versions: vec![version.clone()],
                    pinned_at: Timestamp::now(),
                    refreshed_at: None,
                }),
            }
        })
    }

    /// Notes that all of a version is loaded, and lets the others of the reference go.
    fn loaded(&self, registry: &HostId, reference: &BundleRef, version: &Version) -> Result<()> {
        self.update(|pins| {
            for pin in pins {
                if pin.registry == *registry && pin.reference == *reference {
                    pin.versions = vec![version.clone()];
                    pin.refreshed_at = Some(Timestamp::now());
                }
            }
        })
    }

    /// Removes a pin; whether it was there. Its content stays until something cleans it away.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub fn remove(&self, registry: &HostId, reference: &BundleRef) -> Result<bool> {
        self.update(|pins| {
            let before = pins.len();
            pins.retain(|pin| pin.registry != *registry || pin.reference != *reference);
            pins.len() < before
        })
    }

    /// Loads a reference and pins it, or confirms a pin: the registry is asked what it stands for.
    ///
    /// The version is pinned before its content is loaded, so that making room for one file does
    /// not push another out; when that fails, what was pinned before stays pinned, and nothing else.
    ///
    /// # Errors
    ///
    /// Those of [`load::load`], and of writing the pins.
    pub async fn pin(
        &self,
        client: &Client,
        reference: &BundleRef,
        progress: &dyn Progress,
    ) -> Result<load::Report> {
        let registry = client.store.host().clone();
        let known = self
            .list()?
            .into_iter()
            .find(|pin| pin.registry == registry && pin.reference == *reference);
        let options = Options {
            confirm: true,
            ..Options::default()
        };
        let (planned, confirmed) = match load::plan(client, reference, options).await {
            Ok(planned) => (planned, true),
            // Nobody answers: what is cached can be pinned, and confirmed later.
            Err(error) if error.is_outage() && known.is_none() => {
                let planned = load::plan(client, reference, Options::default()).await;
                (planned.map_err(|_| error)?, false)
            }
            Err(error) => return Err(error),
        };
        let version = planned.version().version.clone();
        self.keep(&registry, reference, &version)?;
        let report = planned.run(client, progress).await;
        match report.failure() {
            None => {
                if confirmed {
                    self.loaded(&registry, reference, &version)?;
                }
                Ok(report)
            }
            Some(failure) => {
                if known.is_none() {
                    self.remove(&registry, reference)?;
                }
                Err(failure)
            }
        }
    }

    /// Confirms every pin of the client's registry that is due, or all of them; how many that were,
    /// and which failed.
    ///
    /// Only one process does so at a time: others find nothing to do.
    ///
    /// # Errors
    ///
    /// When the pins cannot be read.
    pub async fn refresh(
        &self,
        client: &Client,
        all: bool,
        progress: &dyn Progress,
    ) -> Result<(usize, Vec<(BundleRef, Error)>)> {
        let path = self.path.with_extension("refresh");
        let lock = super::private_file(&path, fs::OpenOptions::new().read(true).write(true))
            .map_err(|error| Error::io(&path, error))?;
        if !all && lock.try_lock().is_err() {
            return Ok((0, Vec::new()));
        }
        let (mut done, mut failed) = (0, Vec::new());
        for pin in self.list()? {
            let due = all || pin.is_due(client.store.cache(), Timestamp::now());
            if pin.registry == *client.store.host() && due {
                match self.pin(client, &pin.reference, progress).await {
                    Ok(_) => done += 1,
                    Err(error) => failed.push((pin.reference, error)),
                }
            }
        }
        Ok((done, failed))
    }
}
