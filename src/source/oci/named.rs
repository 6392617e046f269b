//! OCI registries that nobody configured: an API's answer named them.
//!
//! Their bytes prove themselves like all others, so whoever the API names may be asked; what must
//! not happen is that an API makes this machine ask itself, or that a login goes astray. So: https
//! only, and loopback only if the API is on loopback too; each host gets the login that is filed
//! for it, and the Musher key only if it is Musher's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tracing::debug;
use url::Url;

use super::OciSource;
use super::beside::{Content, ContentOnly};
use super::client::RegistryClient;
use super::reference::{Endpoint, ImageRef, Repository};
use crate::credentials::KeyChain;
use crate::credentials::docker::{LoginChain, LoginFiles};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Entry, Layer, Manifest};
use crate::source::breaker::Guarded;
use crate::source::http::HttpClient;
use crate::source::{Deadline, Sink, Source};
use crate::sync::lock;

/// Most hosts that one API may make us ask.
const MOST_HOSTS: usize = 16;

/// How to ask whoever is named.
#[derive(Debug, Clone)]
pub struct NamedSettings {
    /// The API whose answers name registries.
    pub api: Url,
    /// Where to look for the Musher key.
    pub keys: KeyChain,
    /// Where to look for other logins.
    pub files: LoginFiles,
    /// How to send requests.
    pub http: HttpClient,
}

/// Whether the Musher key may be shown to the OCI registry at `host` (`name[:port]`): if the API is
/// there too, or if both are Musher's.
pub fn is_api_registry(api: &Url, host: &str) -> bool {
    let Some(name) = api.host_str() else {
        return false;
    };
    let own = match api.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let is_musher = |host: &str| host == "musher.dev" || host.ends_with(".musher.dev");
    own == host || api.scheme() == "https" && is_musher(name) && is_musher(host)
}

/// The registries that an API names.
pub struct Named {
    name: String,
    settings: NamedSettings,
    hosts: Mutex<HashMap<String, Host>>,
}

#[derive(Clone)]
struct Host {
    oci: Arc<OciSource>,
    content: Arc<Guarded>,
}

impl Named {
    /// Whoever is named by the API of these settings.
    pub fn new(settings: NamedSettings) -> Self {
        Self {
            name: format!("the OCI registries that {} names", settings.api),
            settings,
            hosts: Mutex::default(),
        }
    }

    fn refuse(&self, what: impl ToString, reason: impl Into<String>) -> Error {
        Error::Rejected {
            what: what.to_string(),
            origin: self.name.clone(),
            reason: reason.into(),
        }
    }

    fn host(&self, registry: &str, what: &str) -> Result<Host> {
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.get(registry) {
            return Ok(host.clone());
        }
        if hosts.len() >= MOST_HOSTS {
            return Err(self.refuse(what, "it names too many registries"));
        }
        let endpoint: Endpoint = registry
            .parse()
            .map_err(|_| self.refuse(what, "it names no registry"))?;
        let api = Endpoint::from_url(&self.settings.api);
        if endpoint.is_here() && !api.is_ok_and(|api| api.is_here()) {
            return Err(self.refuse(what, "it names a registry on this machine"));
        }
        let name = endpoint.host();
        let key = is_api_registry(&self.settings.api, &name).then(|| self.settings.keys.clone());
        let logins = LoginChain::new(None, key, self.settings.files.clone(), &name, "");
        let http = self.settings.http.impatient();
        let client = RegistryClient::new(endpoint, http, logins)?;
        let oci = Arc::new(OciSource::with_client("OCI registry", client));
        // Whatever is asked for below this breaker is asked for by digest: a refusal of anything else
        // is not taken for a sign of life. Nor is one bundle that is broken there a reason to leave
        // all others alone.
        let content = ContentOnly::new(Arc::new(OneHost(Arc::clone(&oci))));
        let host = Host {
            oci,
            content: Arc::new(Guarded::new(Arc::new(content))),
        };
        hosts.insert(registry.to_owned(), host.clone());
        Ok(host)
    }

    /// As if an answer had just named the registry `host`.
    #[cfg(test)]
    pub(crate) fn know(&self, host: &str) -> Result<()> {
        self.host(host, host).map(drop)
    }

    /// Those that were named so far, with their breakers.
    pub fn guarded(&self) -> Vec<Arc<Guarded>> {
        let hosts = lock(&self.hosts);
        let mut guarded: Vec<_> = hosts
            .values()
            .map(|host| Arc::clone(&host.content))
            .collect();
        guarded.sort_by(|a, b| Source::name(&**a).cmp(Source::name(&**b)));
        guarded
    }

    /// The files of the artifact that an answer names, with exactly this digest.
    pub(super) async fn files_at(
        &self,
        image: &str,
        digest: Digest,
        what: &str,
        deadline: Deadline,
    ) -> Result<Vec<Layer>> {
        let image =
            ImageRef::parse(image).ok_or_else(|| self.refuse(what, "it names no artifact"))?;
        let host = self.host(&image.registry, what)?;
        let asking = host.oci.files_in(&image.repository, digest, what, deadline);
        host.content.guard(deadline.run(what, asking)).await
    }
}

fn repository(manifest: &Manifest) -> Option<ImageRef> {
    ImageRef::parse(manifest.info().oci_ref.as_deref()?)
}

#[async_trait]
impl Content for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn has(&self, manifest: &Manifest) -> bool {
        repository(manifest).is_some()
    }

    async fn content(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let what = manifest.id();
        let image =
            repository(manifest).ok_or_else(|| self.refuse(what, "it names no artifact"))?;
        let host = self.host(&image.registry, &what.to_string())?;
        debug!(version = %what, registry = image.registry, "asking the registry that is named");
        // The other half is for whoever is asked next.
        let share = deadline.share(2);
        host.content.blob(manifest, file, sink, share).await
    }
}

/// One of them, for artifacts whose answers say in which repository they are.
struct OneHost(Arc<OciSource>);

#[async_trait]
impl Content for OneHost {
    fn name(&self) -> &str {
        Source::name(&*self.0)
    }

    fn is_sending(&self) -> bool {
        self.0.is_sending()
    }

    async fn content(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let named: Option<Repository> = repository(manifest).map(|image| image.repository);
        let repository = named
            .ok_or_else(|| Error::not_found(format_args!("the artifact of {}", manifest.id())))?;
        self.0
            .content(&repository, manifest, file, sink, deadline)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_musher_key_is_for_mushers_own_registries() {
        for (api, host, own) in [
            ("https://api.musher.dev", "bundles.musher.dev", true),
            ("https://api.musher.dev", "api.musher.dev", true),
            ("https://api.musher.dev", "evil-musher.dev", false),
            ("https://api.musher.dev", "ghcr.io", false),
            ("http://api.musher.dev", "bundles.musher.dev", false),
            ("https://r.example:8443/base", "r.example:8443", true),
            ("https://r.example:8443", "r.example", false),
            ("http://127.0.0.1:1", "127.0.0.1:2", false),
        ] {
            assert_eq!(
                is_api_registry(&api.parse().unwrap(), host),
                own,
                "{api} {host}"
            );
        }
    }

    #[test]
    fn an_api_cannot_make_this_machine_ask_itself() {
        let named = |api: &str| {
            Named::new(NamedSettings {
                api: api.parse().unwrap(),
                keys: KeyChain::default(),
                files: LoginFiles::default(),
                http: HttpClient::new(&crate::source::http::HttpSettings::default()).unwrap(),
            })
        };
        let remote = named("https://api.example");
        assert!(remote.host("localhost:5000", "x").is_err());
        assert!(remote.host("127.0.0.1", "x").is_err());
        assert!(remote.host("0.0.0.0:5000", "x").is_err());
        assert!(remote.host("[::ffff:127.0.0.1]:5000", "x").is_err());
        assert!(remote.host("r.example", "x").is_ok());
        assert!(
            named("http://127.0.0.1:1")
                .host("127.0.0.1:5000", "x")
                .is_ok()
        );
        for host in 0..MOST_HOSTS - 1 {
            assert!(remote.host(&format!("h{host}.example"), "x").is_ok());
        }
        assert!(remote.host("one-more.example", "x").is_err());
    }
}
