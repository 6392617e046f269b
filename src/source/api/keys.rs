//! The key in use: looked up once, and again when the registry no longer takes it.
//!
//! Looking may read files and ask a keyring, so it happens on a thread of its own and once for all
//! who wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::credentials::{ApiKey, KeyChain};
use crate::error::{Error, Result};
use crate::single_flight::SingleFlight;
use crate::source::http::Authorization;

/// How long "there is no key" is believed: somebody may log in while the mount is up.
const ABSENT_FOR: Duration = Duration::from_secs(60);

/// A key, ready to be sent.
pub(super) struct Key {
    key: ApiKey,
    authorization: Authorization,
}

impl Key {
    pub(super) fn authorization(&self) -> &Authorization {
        &self.authorization
    }
}

/// What the last look brought.
#[derive(Default)]
struct Known {
    key: Option<Arc<Key>>,
    looked: Option<Instant>,
}

/// The key of one registry.
pub(super) struct Keys {
    registry: String,
    chain: KeyChain,
    /// Whether the registry refused the key when it last said something about it.
    is_refused: AtomicBool,
    known: Arc<Mutex<Known>>,
    looks: SingleFlight<(), Result<Option<Arc<Key>>>>,
}

impl Keys {
    pub(super) fn new(registry: &str, chain: KeyChain) -> Self {
        Self {
            registry: registry.to_owned(),
            chain,
            is_refused: AtomicBool::new(false),
            known: Arc::default(),
            looks: SingleFlight::default(),
        }
    }

    /// The key, if there is one.
    pub(super) async fn current(&self) -> Result<Option<Arc<Key>>> {
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_fresh = known.looked.is_some_and(|at| at.elapsed() < ABSENT_FOR);
            if known.key.is_some() || is_fresh {
                return Ok(known.key.clone());
            }
        }
        self.look().await
    }

    /// Whether the registry refused the key when it was last sent.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Notes whether the registry takes the key; each change of that is logged once.
    pub(super) fn judged(&self, refused: bool) {
        if self.is_refused.swap(refused, Ordering::Relaxed) == refused {
            return;
        }
        let registry = &self.registry;
        if refused {
            warn!(
                registry,
                "the registry refuses the API key: only public bundles can be fetched; \
                 `musherfs doctor` says where the key is from"
            );
        } else {
            info!(registry, "the registry takes the API key again");
        }
    }

    /// Another key than `refused`, if there is one by now. A key that cannot be looked up is
    /// reported, but the one in use stays.
    pub(super) async fn newer_than(&self, refused: &Key) -> Result<Option<Arc<Key>>> {
        let is_newer = |key: &Arc<Key>| key.key != refused.key;
        let known = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.key.clone()
        };
        if let Some(key) = known.filter(is_newer) {
            return Ok(Some(key));
        }
        match self.look().await {
            Ok(key) => {
                let key = key.filter(is_newer);
                if key.is_some() {
                    info!("the registry refused the API key, but there is a newer one");
                }
                Ok(key)
            }
            Err(error) => {
                warn!(%error, "the registry refused the API key, and there is no other");
                Ok(None)
            }
        }
    }

    async fn look(&self) -> Result<Option<Arc<Key>>> {
        let (chain, known) = (self.chain.clone(), Arc::clone(&self.known));
        self.looks
            .run((), || async move {
                let key = tokio::task::spawn_blocking(move || chain.lookup())
                    .await
                    .map_err(|_| Error::Internal("looking for the API key failed".into()))??
                    .map(|key| {
                        let authorization = Authorization::bearer(key.expose())?;
                        Ok::<_, Error>(Arc::new(Key { key, authorization }))
                    })
                    .transpose()?;
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                *known = Known {
                    key: key.clone(),
                    looked: Some(Instant::now()),
                };
                Ok(key)
            })
            .await
            .unwrap_or_else(|lost| Err(Error::Internal(lost.to_string())))
    }
}
