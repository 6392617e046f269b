//! The key in use: looked up once, and again when the registry no longer takes it.
//!
//! Looking may read files and ask a keyring, so it happens on a thread of its own and once for all
//! who wait for it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::credentials::{ApiKey, KeyChain, KeyOrigin};
use crate::error::{Error, Result};
use crate::reference::Namespace;
use crate::single_flight::SingleFlight;
use crate::source::http::{Authorization, Response};
use crate::sync::lock;

/// How long "there is no key" is believed: somebody may log in while the mount is up.
const ABSENT_FOR: Duration = Duration::from_secs(60);

/// Of how many namespaces a refusal is remembered, those that were asked for last.
const MOST_NAMESPACES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// A key, ready to be sent.
pub(super) struct Key {
    key: ApiKey,
    origin: KeyOrigin,
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

/// What the registry last said against the key.
struct Refusals {
    /// That it is none of its own.
    key: Option<Refusal>,
    /// That it may not read these namespaces.
    namespaces: LruCache<Namespace, Refusal>,
}

struct Refusal {
    origin: KeyOrigin,
    reason: String,
}

/// The key of one registry.
pub(super) struct Keys {
    registry: String,
    chain: KeyChain,
    refusals: Mutex<Refusals>,
    known: Arc<Mutex<Known>>,
    looks: SingleFlight<(), Result<Option<Arc<Key>>>>,
}

impl Keys {
    pub(super) fn new(registry: &str, chain: KeyChain) -> Self {
        Self {
            registry: registry.to_owned(),
            chain,
            refusals: Mutex::new(Refusals {
                key: None,
                namespaces: LruCache::new(MOST_NAMESPACES),
            }),
            known: Arc::default(),
            looks: SingleFlight::default(),
        }
    }

    /// The key, if there is one.
    pub(super) async fn current(&self) -> Result<Option<Arc<Key>>> {
        {
            let known = lock(&self.known);
            let is_fresh = known.looked.is_some_and(|at| at.elapsed() < ABSENT_FOR);
            if known.key.is_some() || is_fresh {
                return Ok(known.key.clone());
            }
        }
        self.look().await
    }

    /// Where the key is from that the registry refused when it was last sent.
    pub(super) fn refused(&self) -> Option<KeyOrigin> {
        let refusals = self.refusals();
        Some(refusals.key.as_ref()?.origin.clone())
    }

    /// What the registry last said against reading a namespace with the key, and where that is from.
    pub(super) fn refusal(&self, namespace: &Namespace) -> Option<String> {
        let refusals = self.refusals();
        let registry = &self.registry;
        if let Some(Refusal { origin, reason }) = &refusals.key {
            return Some(format!("{registry} refuses the key ({origin}): {reason}"));
        }
        let Refusal { origin, reason } = refusals.namespaces.peek(namespace)?;
        Some(format!(
            "{registry} refuses {namespace} to the key ({origin}): {reason}"
        ))
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        lock(&self.refusals)
    }

    /// Notes what an answer to the key, about `namespace` perhaps, says of the key itself; each change
    /// of whether the registry takes it at all is logged once.
    pub(super) fn judged(&self, key: &Key, namespace: Option<&Namespace>, answer: &Response) {
        let refusal = || Refusal {
            origin: key.origin.clone(),
            reason: answer.reason().to_owned(),
        };
        let mut refusals = self.refusals();
        let was_refused = refusals.key.is_some();
        match answer.status.as_u16() {
            401 => refusals.key = Some(refusal()),
            403 => {
                if let Some(namespace) = namespace {
                    refusals.namespaces.put(namespace.clone(), refusal());
                }
            }
            _ if answer.status.is_success() => {
                refusals.key = None;
                if let Some(namespace) = namespace {
                    refusals.namespaces.pop(namespace);
                }
            }
            404 | 410 => {
                if let Some(namespace) = namespace {
                    refusals.namespaces.pop(namespace);
                }
            }
            // Nothing about keys.
            _ => {}
        }
        let is_refused = refusals.key.is_some();
        drop(refusals);
        let registry = &self.registry;
        match (was_refused, is_refused) {
            (false, true) => warn!(
                registry,
                "the registry refuses the API key: only public bundles can be fetched; \
                 `musherfs doctor` says where the key is from"
            ),
            (true, false) => info!(registry, "the registry takes the API key again"),
            _ => {}
        }
    }

    /// Another key than `refused`, if there is one by now. A key that cannot be looked up is
    /// reported, but the one in use stays.
    pub(super) async fn newer_than(&self, refused: &Key) -> Result<Option<Arc<Key>>> {
        let is_newer = |key: &Arc<Key>| key.key != refused.key;
        let known = {
            let known = lock(&self.known);
            known.key.clone()
        };
        if let Some(key) = known.filter(is_newer) {
            return Ok(Some(key));
        }
        match self.look().await {
            Ok(key) => {
                let key = key.filter(is_newer);
                if key.is_some() {
                    // What was refused to the former one says nothing about this one.
                    self.refusals().namespaces.clear();
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
                let key = tokio::task::spawn_blocking(move || chain.find())
                    .await
                    .map_err(|_| Error::Internal("looking for the API key failed".into()))??
                    .map(|(key, origin)| {
                        let authorization = Authorization::bearer(key.expose())?;
                        Ok::<_, Error>(Arc::new(Key {
                            key,
                            origin,
                            authorization,
                        }))
                    })
                    .transpose()?;
                let mut known = lock(&known);
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
