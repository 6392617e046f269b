//! Who is asked for what, and in which order.
//!
//! | settings | names and lists of files | content |
//! |---|---|---|
//! | an API | API | its mirrors, the OCI registry that its answer names, API |
//! | an OCI registry | OCI | its mirrors, OCI |
//! | both | API, completed from OCI by digest | mirrors of OCI, OCI, mirrors of the API, API |
//!
//! Mirrors that resolve stand before their registry in the first column too. Each source has a
//! breaker of its own.

use std::sync::Arc;

use tracing::debug;
use url::Url;

use crate::config::value::Mirror as MirrorSetting;
use crate::config::{Config, Origin};
use crate::credentials::KeyChain;
use crate::credentials::docker::{GivenLogin, LoginChain, LoginFiles};
use crate::error::{Error, Result};
use crate::source::Source;
use crate::source::api::{ApiSettings, ApiSource};
use crate::source::breaker::Guarded;
use crate::source::http::HttpClient;
use crate::source::mirror::Mirror;
use crate::source::oci::reference::{Endpoint, InvalidEndpoint};
use crate::source::oci::{
    Artifacts, Beside, ContentOnly, Named, NamedSettings, OciSettings, OciSource, is_api_registry,
};

/// Everybody who may be asked, with their breakers; nobody offline.
#[derive(Clone, Default)]
pub struct Breakers {
    configured: Vec<Arc<Guarded>>,
    /// Those that an API has named are known only when it has.
    named: Option<Arc<Named>>,
}

impl Breakers {
    /// Whether nobody is asked.
    pub fn is_empty(&self) -> bool {
        self.configured.is_empty()
    }

    /// All of them once, in the order that they are asked for content.
    pub fn all(&self) -> Vec<Arc<Guarded>> {
        let mut all = self.configured.clone();
        if let Some(named) = &self.named {
            // The API that names them comes last.
            let before = all.len().saturating_sub(1);
            all.splice(before..before, named.guarded());
        }
        all
    }
}

/// Everybody who may be asked; nobody offline.
#[derive(Default)]
pub(super) struct Sources {
    /// All of them once.
    pub(super) breakers: Breakers,
    /// Who is asked for names.
    pub(super) names: Vec<Arc<dyn Source>>,
    /// Who is asked for lists of files and for content.
    pub(super) content: Vec<Arc<dyn Source>>,
}

impl Sources {
    /// One source for everything.
    pub(super) fn only(source: Arc<dyn Source>) -> Self {
        let guarded = Arc::new(Guarded::new(source));
        Self {
            names: vec![Arc::clone(&guarded) as Arc<dyn Source>],
            content: vec![Arc::clone(&guarded) as Arc<dyn Source>],
            breakers: Breakers {
                configured: vec![guarded],
                named: None,
            },
        }
    }
}

/// Puts the sources together. `keys` is where to look for the key of the registry.
pub(super) fn assemble(config: &Config, keys: KeyChain, http: &HttpClient) -> Result<Sources> {
    let files = LoginFiles::from_env();
    let oci = match &*config.oci_registry_url {
        Some(url) => Some(
            Endpoint::from_url(url)
                .map_err(|error| Error::Config(format!("the OCI registry: {error}")))?,
        ),
        None => None,
    };
    check_mirrors(config, oci.as_ref())?;
    let mut sources = Sources::default();
    let mut artifacts = None;
    if let Some(endpoint) = &oci {
        add_mirrors(&mut sources, config, |mirror| {
            if !is_mirror_of_oci(mirror, endpoint) {
                return Ok(None);
            }
            let at = Endpoint::from_url(&mirror.url)
                .map_err(|error| Error::Config(format!("the mirror: {error}")))?;
            let settings = OciSettings {
                logins: LoginChain::new(None, None, files.clone(), &at.host(), at.prefix()),
                endpoint: at,
                http: http.clone(),
            };
            let source: Arc<dyn Source> = Arc::new(OciSource::mirror(settings, endpoint)?);
            // With an API, names are the API's business.
            Ok(Some((source, mirror.resolve && !config.has_api())))
        })?;
        let settings = OciSettings {
            logins: logins(config, keys.clone(), files.clone(), endpoint)?,
            endpoint: endpoint.clone(),
            http: http.clone(),
        };
        let source = Arc::new(OciSource::new(settings)?);
        let guarded = Arc::new(Guarded::new(Arc::clone(&source) as Arc<dyn Source>));
        sources.breakers.configured.push(Arc::clone(&guarded));
        if config.has_api() {
            let content = ContentOnly::new(Arc::clone(&guarded) as _);
            sources.content.push(Arc::new(content));
            artifacts = Some(Artifacts::In {
                oci: source,
                guard: guarded,
            });
        } else {
            sources.names.push(Arc::clone(&guarded) as Arc<dyn Source>);
            sources.content.push(guarded);
        }
    }
    if config.has_api() {
        add_mirrors(&mut sources, config, |mirror| {
            if !is_mirror_of_api(mirror, config) {
                return Ok(None);
            }
            let source: Arc<dyn Source> = Arc::new(ApiSource::new(ApiSettings {
                base: mirror.url.clone(),
                // The key is the origin's.
                keys: KeyChain::default(),
                http: http.impatient(),
            })?);
            Ok(Some((source, mirror.resolve)))
        })?;
        let artifacts = artifacts.unwrap_or_else(|| {
            let named = Arc::new(Named::new(NamedSettings {
                api: config.api_url.value.clone(),
                keys: keys.clone(),
                files,
                http: http.clone(),
            }));
            let content = ContentOnly::new(Arc::clone(&named) as _);
            sources.breakers.named = Some(Arc::clone(&named));
            sources.content.push(Arc::new(content));
            Artifacts::Named(named)
        });
        let api = Arc::new(ApiSource::new(ApiSettings {
            base: config.api_url.value.clone(),
            keys,
            http: http.clone(),
        })?);
        let api = Arc::new(Guarded::new(api));
        sources.breakers.configured.push(Arc::clone(&api));
        let api: Arc<dyn Source> = Arc::new(Beside::new(api, artifacts));
        sources.names.push(Arc::clone(&api));
        sources.content.push(api);
    }
    Ok(sources)
}

/// Somebody who would be asked, and as whom.
pub enum Party {
    /// A Musher API.
    Api {
        /// Where it is.
        url: Url,
        /// Its key.
        keys: KeyChain,
    },
    /// An OCI registry.
    Oci {
        /// Where it is.
        endpoint: Endpoint,
        /// Its login.
        logins: LoginChain,
    },
}

/// Whom `assemble` would make sources for, the API itself aside, and whether they are mirrors: for
/// those who want to know how they are.
///
/// # Errors
///
/// [`Error::Config`] for settings that cannot be used.
pub fn parties(config: &Config, keys: &KeyChain, files: &LoginFiles) -> Result<Vec<(Party, bool)>> {
    let wrong = |error: InvalidEndpoint| Error::Config(error.to_string());
    let oci = config.oci_registry_url.as_ref();
    let oci = oci.map(Endpoint::from_url).transpose().map_err(wrong)?;
    let mut parties = Vec::new();
    if let Some(endpoint) = &oci {
        let logins = logins(config, keys.clone(), files.clone(), endpoint)?;
        let endpoint = endpoint.clone();
        parties.push((Party::Oci { endpoint, logins }, false));
    }
    for mirror in config.mirrors.iter() {
        if oci
            .as_ref()
            .is_some_and(|oci| is_mirror_of_oci(mirror, oci))
        {
            let endpoint = Endpoint::from_url(&mirror.url).map_err(wrong)?;
            let (host, prefix) = (endpoint.host(), endpoint.prefix());
            let logins = LoginChain::new(None, None, files.clone(), &host, prefix);
            parties.push((Party::Oci { endpoint, logins }, true));
        } else if config.has_api() && is_mirror_of_api(mirror, config) {
            // The key is the origin's.
            let (url, keys) = (mirror.url.clone(), KeyChain::default());
            parties.push((Party::Api { url, keys }, true));
        }
    }
    Ok(parties)
}

/// Who the OCI registry is told we are. The Musher key is for Musher's registry; for another one
/// only if it was meant for this call, since an environment's key is there for all programs.
///
/// # Errors
///
/// [`Error::Config`] for half a login.
pub fn logins(
    config: &Config,
    keys: KeyChain,
    files: LoginFiles,
    endpoint: &Endpoint,
) -> Result<LoginChain> {
    let host = endpoint.host();
    let given = GivenLogin::find(
        config.oci_user.as_deref(),
        config.oci_password_file.value.clone(),
    )?;
    let key = if is_api_registry(&config.api_url, &host) {
        Some(keys)
    } else if config.has_api() {
        None
    } else {
        Some(keys.without_environment())
    };
    Ok(LoginChain::new(given, key, files, &host, endpoint.prefix()))
}

/// Adds those mirrors that `make` has a source for; and whether they resolve.
fn add_mirrors(
    sources: &mut Sources,
    config: &Config,
    make: impl Fn(&MirrorSetting) -> Result<Option<(Arc<dyn Source>, bool)>>,
) -> Result<()> {
    for setting in config.mirrors.iter() {
        let Some((source, resolves)) = make(setting)? else {
            continue;
        };
        let guarded = Arc::new(Guarded::strict(source));
        sources.breakers.configured.push(Arc::clone(&guarded));
        let mirror: Arc<dyn Source> = Arc::new(Mirror::new(guarded, resolves));
        if resolves {
            sources.names.push(Arc::clone(&mirror));
        }
        sources.content.push(mirror);
    }
    Ok(())
}

/// A mirror that does not say of what is one of the OCI registry, if there is one.
fn is_mirror_of_oci(mirror: &MirrorSetting, endpoint: &Endpoint) -> bool {
    match mirror.of.as_deref() {
        None | Some("oci") => true,
        Some(host) => host == endpoint.host(),
    }
}

fn is_mirror_of_api(mirror: &MirrorSetting, config: &Config) -> bool {
    match mirror.of.as_deref() {
        None => config.oci_registry_url.is_none(),
        Some("api") => true,
        Some(host) => Endpoint::from_url(&config.api_url).is_ok_and(|api| api.host() == host),
    }
}

/// A mirror on the command line that nobody would ask is a mistake; in a file it may be there for
/// other mounts.
fn check_mirrors(config: &Config, oci: Option<&Endpoint>) -> Result<()> {
    for mirror in config.mirrors.iter() {
        let used = oci.is_some_and(|oci| is_mirror_of_oci(mirror, oci))
            || config.has_api() && is_mirror_of_api(mirror, config);
        if used {
            continue;
        }
        let of = mirror.of.as_deref().unwrap_or("the registry");
        if matches!(config.mirrors.origin, Origin::Flag(_)) {
            return Err(Error::Config(format!(
                "{} is a mirror of {of}, which is not asked",
                mirror.url
            )));
        }
        debug!(mirror = %mirror.url, of, "this mirror is for another registry");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::http::HttpSettings;

    #[test]
    fn the_registries_that_an_api_names_are_among_the_sources_from_then_on() {
        let http = HttpClient::new(&HttpSettings::default()).unwrap();
        let named = Arc::new(Named::new(NamedSettings {
            api: "https://api.example".parse().unwrap(),
            keys: KeyChain::default(),
            files: LoginFiles::default(),
            http: http.clone(),
        }));
        let api = |url: &str| {
            let settings = ApiSettings {
                base: url.parse().unwrap(),
                keys: KeyChain::default(),
                http: http.clone(),
            };
            Arc::new(Guarded::new(Arc::new(ApiSource::new(settings).unwrap())))
        };
        let breakers = Breakers {
            configured: vec![api("https://mirror.example"), api("https://api.example")],
            named: Some(Arc::clone(&named)),
        };
        let names = || -> Vec<String> {
            let all = breakers.all();
            all.iter().map(|one| one.name().to_owned()).collect()
        };
        let before = names();
        assert_eq!(before.len(), 2);
        named.know("b.example").unwrap();
        named.know("a.example").unwrap();
        let after = names();
        assert_eq!((&after[0], &after[3]), (&before[0], &before[1]));
        assert!(
            after[1].contains("a.example") && after[2].contains("b.example"),
            "{after:?}"
        );
    }
}
