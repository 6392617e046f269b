//! Everything between the settings and a bundle's bytes, put together.
//!
//! ```text
//! Config ──► cache, journal, sources (each behind its breaker) ──► resolver, store
//! ```
//!
//! One [`Client`] serves one registry, for a mount as well as for a command that ends soon. Making
//! one contacts nobody.

mod sources;

pub use sources::{Breakers, Party, logins, parties};

use std::path::PathBuf;
use std::sync::Arc;

use sources::Sources;

use crate::cache::Cache;
use crate::config::{Config, value};
use crate::credentials::KeyChain;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::paths::Directories;
use crate::reference::{BundleRef, HostId, Selector, VersionRef};
use crate::resolve::{self, Locked, Resolver};
use crate::source::http::{HttpClient, HttpSettings};
use crate::source::layout::LayoutSource;
use crate::source::oci::reference::Endpoint;
use crate::source::{Deadline, Source};
use crate::store::journal::Journal;
use crate::store::{self, Loaded, Policy, Store};

/// One registry, its cache and what is known of it. Clones share all of it.
#[derive(Clone)]
pub struct Client {
    /// Names to versions.
    pub resolver: Arc<Resolver>,
    /// Versions to content.
    pub store: Arc<Store>,
    /// What is remembered across restarts.
    pub journal: Arc<Journal>,
    /// The sources and the state of their breakers; none offline.
    pub sources: Breakers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The registry's partition of the cache: that of whoever says which versions there are.
///
/// # Errors
///
/// [`Error::Config`] for a URL that cannot be a registry's.
pub fn host_of(config: &Config) -> Result<HostId> {
    let wrong = |problem: String| Error::Config(problem);
    if let Some(path) = layout_of(config) {
        return Ok(LayoutSource::open(&path)?.host_id());
    }
    if config.has_api() {
        HostId::from_url(&config.api_url.value).map_err(|error| wrong(error.to_string()))
    } else {
        let registry = Endpoint::from_url(config.registry());
        let host = registry.and_then(|registry| registry.host_id());
        host.map_err(|error| wrong(error.to_string()))
    }
}

/// The directory that stands in for a registry, if one does. It is read offline, too.
pub fn layout_of(config: &Config) -> Option<PathBuf> {
    let oci = config.oci_registry_url.value.as_ref()?;
    if config.has_api() {
        return None;
    }
    value::layout(oci)
}

impl Client {
    /// Puts a client together. `keys` is where the registry's key is looked for.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for settings that cannot be used: a CA file without certificates, http to
    /// another machine, a URL with credentials in it, a mirror of what is not asked.
    pub fn new(config: &Config, directories: &Directories, keys: KeyChain) -> Result<Self> {
        Self::locked(config, directories, keys, None)
    }

    /// The same, where only what was locked exists.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn locked(
        config: &Config,
        directories: &Directories,
        keys: KeyChain,
        locked: Option<Arc<Locked>>,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let (host, sources) = if let Some(path) = layout_of(config) {
            let layout = LayoutSource::open(&path)?;
            (layout.host_id(), Sources::only(Arc::new(layout)))
        } else if config.offline.value {
            (host_of(config)?, Sources::default())
        } else {
            let http = HttpClient::new(&HttpSettings {
                ca_file: config.ca_file.value.clone(),
                insecure_http: config.insecure_http.value,
                metrics: Arc::clone(&metrics),
            })?;
            (host_of(config)?, sources::assemble(config, keys, &http)?)
        };
        Ok(Self::assemble(
            config,
            directories,
            host,
            sources,
            metrics,
            locked,
        ))
    }

    /// A client of one source, whose versions are filed as those of `host`.
    pub fn of_source(
        config: &Config,
        directories: &Directories,
        host: HostId,
        source: Arc<dyn Source>,
    ) -> Self {
        let sources = Sources::only(source);
        let metrics = Arc::new(Metrics::default());
        Self::assemble(config, directories, host, sources, metrics, None)
    }

    fn assemble(
        config: &Config,
        directories: &Directories,
        host: HostId,
        sources: Sources,
        metrics: Arc<Metrics>,
        locked: Option<Arc<Locked>>,
    ) -> Self {
        let Sources {
            breakers,
            names,
            content,
        } = sources;
        let cache = Arc::new(Cache::new(directories.cache.clone()));
        let state = directories.own_state();
        let journal = Arc::new(Journal::open(
            &state
                .join("journal")
                .join(format!("{}.jsonl", host.as_str())),
        ));
        let resolver = Resolver::new(resolve::Settings {
            host: host.clone(),
            cache: Arc::clone(&cache),
            sources: names,
            namespaces: config.namespaces.value.clone(),
            local_packs: config.local_packs.value,
            respect_removal: config.respect_removal.value,
            timeout: config.metadata_timeout.value,
            metrics: Arc::clone(&metrics),
        });
        if let Some(locked) = &locked {
            resolver.lock_to(Arc::clone(locked));
        }
        let store = Store::new(store::Settings {
            host,
            cache,
            sources: content,
            journal: Arc::clone(&journal),
            state_dir: Some(state),
            policy: Policy {
                deny_yanked: config.deny_yanked.value,
                respect_removal: config.respect_removal.value,
                local_packs: config.local_packs.value,
                readahead: config.readahead.value,
                manifest_memory: store::MANIFEST_MEMORY,
                metadata_timeout: config.metadata_timeout.value,
                content_timeout: config.content_timeout.value,
                locked,
            },
            metrics: Arc::clone(&metrics),
        });
        Self {
            resolver,
            store,
            journal,
            sources: breakers,
            metrics,
        }
    }

    /// Resolves a reference and returns the manifest of the version that it means.
    ///
    /// # Errors
    ///
    /// Those of [`Resolver::resolve`] and [`Store::manifest`]; [`Error::Offline`] for what the cache
    /// lacks when nobody may be asked.
    pub async fn manifest(&self, reference: &BundleRef) -> Result<Arc<Loaded>> {
        let deadline = Deadline::after(self.store.policy().metadata_timeout);
        let bundle = reference.bundle.clone();
        let version = match &reference.selector {
            Selector::Version(version) => version.clone(),
            selector => {
                let resolution = self.resolver.resolve(&bundle, selector, deadline).await;
                let resolution = resolution.map_err(|error| match error {
                    // A lockfile knows what there is; a cache does not.
                    Error::NotFound { what }
                        if self.resolver.is_offline()
                            && self.resolver.locked_now(&bundle, selector).is_none() =>
                    {
                        Error::Offline { what }
                    }
                    error => error,
                })?;
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version: resolution.version.clone(),
                };
                if let Some(answer) = &resolution.document {
                    let (document, origin) = &**answer;
                    self.store.learn(&version, document.clone(), origin).await;
                }
                resolution.version
            }
        };
        self.store
            .manifest(&VersionRef { bundle, version }, deadline)
            .await
    }
}
