//! Names in an OCI registry, and what they are called here.
//!
//! ```text
//! https://harbor.example.com/team/acme/kit:1.2.0_b.1
//! └─────── Endpoint ───────┘ prefix └──┬─┘ └───┬───┘
//!                                   bundle    tag: version 1.2.0+b.1
//! ```
//!
//! A tag that is a SemVer version is that version; OCI has no `+` in tags and SemVer no `_`, so one
//! stands for the other. Tags that say whether a version is withdrawn ([`StateTag`]) are neither
//! versions nor aliases. Everything else is an alias. Repositories are lower case: a bundle whose
//! name is not cannot be in any registry.

use std::fmt;
use std::str::FromStr;

use url::Url;

use crate::config::value::{self, is_here};
use crate::digest::Digest;
use crate::manifest::State;
use crate::reference::{BundleId, HostId, MAX_VERSION, Version};

/// Longest tag, in bytes, as the specification has it.
pub const MAX_TAG: usize = 128;

/// A registry, and where in it bundles are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and port; path `/`.
    origin: Url,
    /// What stands before a bundle's name in a repository's: empty, or components with `/` between.
    prefix: String,
}

/// A text or URL that names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an OCI registry such as ghcr.io, localhost:5000 or https://harbor.example.com/team: {0}"
)]
pub struct InvalidEndpoint(String);

impl Endpoint {
    /// The registry at `url`; the path is the prefix.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] for anything but http and https, for credentials or a query in the URL,
    /// and for a path that cannot be part of a repository's name.
    pub fn from_url(url: &Url) -> Result<Self, InvalidEndpoint> {
        let refuse = |why: &str| Err(InvalidEndpoint(why.to_owned()));
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return refuse("only http and https work");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("credentials do not belong into it; use `docker login`");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("it has a query or fragment");
        }
        let prefix = url.path().trim_matches('/').to_owned();
        if !prefix.is_empty() && !prefix.split('/').all(is_component) {
            return refuse("its path cannot be part of a repository's name");
        }
        let mut origin = url.clone();
        origin.set_path("/");
        Ok(Self { origin, prefix })
    }

    /// The same registry by another address: `self`'s bundles as they are named at `mirror`.
    pub fn at(&self, mirror: &Endpoint) -> Self {
        let parts = [mirror.prefix.as_str(), self.prefix.as_str()];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Self {
            origin: mirror.origin.clone(),
            prefix: parts.join("/"),
        }
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &Url {
        &self.origin
    }

    /// What stands before bundles' names, without slashes at its ends; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `host[:port]`, as credentials are filed under it; the default port is left out.
    pub fn host(&self) -> String {
        let host = self.origin.host_str().unwrap_or_default();
        match self.origin.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Whether the registry may be on this machine: see [`is_here`].
    pub fn is_here(&self) -> bool {
        is_here(&self.origin)
    }

    /// The registry's partition of the cache. Below a prefix it is one of its own, since two teams
    /// in one registry may call different things the same: `ghcr.io..team-a`. Two dots stand in
    /// neither hosts nor repositories.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`] for a host that cannot be the name of a directory.
    pub fn host_id(&self) -> Result<HostId, InvalidEndpoint> {
        let invalid = |error: crate::reference::InvalidHost| InvalidEndpoint(error.to_string());
        let host = HostId::from_url(&self.origin).map_err(invalid)?;
        if self.prefix.is_empty() {
            return Ok(host);
        }
        let parts = self.prefix.replace('/', "..");
        format!("{host}..{parts}").parse().map_err(invalid)
    }

    /// The bundle's repository, if it can have one.
    pub fn repository(&self, bundle: &BundleId) -> Option<Repository> {
        let (namespace, slug) = (bundle.namespace.as_str(), bundle.slug.as_str());
        if !is_component(namespace) || !is_component(slug) {
            return None;
        }
        let below = format!("{namespace}/{slug}");
        Some(Repository(match self.prefix.as_str() {
            "" => below,
            prefix => format!("{prefix}/{below}"),
        }))
    }

    /// The bundle that `repository` (a full name, as catalogs list it) is, if it is one.
    pub fn bundle(&self, repository: &str) -> Option<BundleId> {
        let below = match self.prefix.as_str() {
            "" => repository,
            prefix => repository.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        below.parse().ok()
    }

    /// The URL of `path` below `/v2/`, which must be well-formed.
    pub fn url(&self, path: &str) -> Url {
        let mut url = self.origin.clone();
        match path.split_once('?') {
            Some((path, query)) => {
                url.set_path(&format!("/v2/{path}"));
                url.set_query(Some(query));
            }
            None => url.set_path(&format!("/v2/{path}")),
        }
        url
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// `[http[s]://]HOST[:PORT][/PREFIX]`. Without a scheme it is https, on loopback http.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::from_url(&value::registry(text).map_err(InvalidEndpoint)?)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.prefix)
    }
}

/// A component of a repository's name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let mut rest = text;
    loop {
        let word = rest
            .bytes()
            .take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            .count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let dashes = rest.bytes().take_while(|b| *b == b'-').count();
        let separator = match rest.as_bytes() {
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            _ => dashes,
        };
        if separator == 0 {
            return false;
        }
        rest = &rest[separator..];
    }
}

/// A repository's whole name; safe in a URL's path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repository(String);

impl Repository {
    /// Reads a whole name.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= 255 && text.split('/').all(is_component);
        fits.then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a registry can have a tag of that name.
pub fn is_tag(text: &str) -> bool {
    (1..=MAX_TAG).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The version as a tag.
pub fn tag_of(version: &Version) -> String {
    version.as_str().replace('+', "_")
}

/// The version that a tag is, if it is one.
pub fn version_of(tag: &str) -> Option<Version> {
    if tag.len() > MAX_VERSION {
        return None;
    }
    tag.replacen('_', "+", 1).parse().ok()
}

/// A tag that says whether a version is withdrawn: `_yanked.1.1.2.0`, `_published.2.1.2.0`.
///
/// One is added with every change, with the next number, so that the list of tags, which readers
/// fetch anyway, tells the state of every version, and no tag is ever moved or deleted (which many
/// registries refuse). The highest number counts; of two with the same one, *yanked*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTag {
    /// The state from here on.
    pub state: State,
    /// How many changes there have been, this one included.
    pub sequence: u32,
    /// Which version.
    pub version: Version,
}

impl FromStr for StateTag {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (state, rest) = text
            .strip_prefix('_')
            .ok_or(())?
            .split_once('.')
            .ok_or(())?;
        let (sequence, tag) = rest.split_once('.').ok_or(())?;
        let digits = sequence.bytes().all(|b| b.is_ascii_digit()) && !sequence.starts_with('0');
        Ok(Self {
            state: match state {
                "yanked" => State::Yanked,
                "published" => State::Published,
                _ => return Err(()),
            },
            sequence: sequence.parse().ok().filter(|_| digits).ok_or(())?,
            version: version_of(tag).ok_or(())?,
        })
    }
}

impl fmt::Display for StateTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = tag_of(&self.version);
        write!(f, "_{}.{}.{tag}", self.state.as_str(), self.sequence)
    }
}

/// Where an API says that a version is: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// `host[:port]`.
    pub registry: String,
    /// The repository.
    pub repository: Repository,
    /// The digest, if it is named.
    pub digest: Option<Digest>,
}

impl ImageRef {
    /// Reads `text`, which may start with a scheme; https is meant whatever it says.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text
            .strip_prefix("oci://")
            .or_else(|| text.strip_prefix("https://"))
            .unwrap_or(text);
        let (registry, rest) = text.split_once('/')?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
            None => (rest, None),
        };
        let repository = match rest.rsplit_once(':') {
            Some((repository, tag)) if is_tag(tag) => repository,
            Some(_) => return None,
            None => rest,
        };
        let is_host = !registry.is_empty()
            && registry
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        is_host.then_some(())?;
        Some(Self {
            registry: registry.to_owned(),
            repository: Repository::parse(repository)?,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn a_registry_is_named_as_people_name_it() {
        for (text, url, host) in [
            ("ghcr.io", "https://ghcr.io/", "ghcr.io"),
            ("ghcr.io/team", "https://ghcr.io/team", "ghcr.io"),
            ("localhost:5000", "http://localhost:5000/", "localhost:5000"),
            (
                "127.0.0.1:5000/a/b/",
                "http://127.0.0.1:5000/a/b",
                "127.0.0.1:5000",
            ),
            ("[::1]:5000", "http://[::1]:5000/", "[::1]:5000"),
            (
                "https://localhost:5000",
                "https://localhost:5000/",
                "localhost:5000",
            ),
            (
                "http://r.example:5000",
                "http://r.example:5000/",
                "r.example:5000",
            ),
            (
                "https://r.example:443/x",
                "https://r.example/x",
                "r.example",
            ),
        ] {
            let endpoint = endpoint(text);
            assert_eq!(endpoint.to_string(), url, "{text}");
            assert_eq!(endpoint.host(), host, "{text}");
        }
        for bad in [
            "",
            "ftp://x",
            "https://",
            "user:secret@ghcr.io",
            "https://x/?a=b",
            "x/A",
            "x/a//b",
            "https://x#f",
        ] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn teams_in_one_registry_have_partitions_of_their_own() {
        let id = |text: &str| endpoint(text).host_id().unwrap().as_str().to_owned();
        assert_eq!(id("ghcr.io"), "ghcr.io");
        assert_eq!(id("localhost:5000"), "localhost_5000");
        assert_eq!(id("ghcr.io/team/a"), "ghcr.io..team..a");
        assert_ne!(id("ghcr.io/5000"), id("ghcr.io:5000"));
    }

    #[test]
    fn bundles_are_repositories_below_the_prefix() {
        let bundle: BundleId = "acme/code-review".parse().unwrap();
        let harbor = endpoint("harbor.example/team");
        let repository = harbor.repository(&bundle).unwrap();
        assert_eq!(repository.as_str(), "team/acme/code-review");
        assert_eq!(harbor.bundle(repository.as_str()), Some(bundle.clone()));
        for other in [
            "acme/code-review",
            "team/acme",
            "team/a/b/c",
            "teamacme/x",
            "",
        ] {
            assert_eq!(harbor.bundle(other), None, "{other}");
        }
        let mirrored = harbor.at(&endpoint("cache.example/proxy"));
        let repository = mirrored.repository(&bundle).unwrap();
        assert_eq!(repository.as_str(), "proxy/team/acme/code-review");
        for name in [
            "Acme/kit",
            "acme/a.-b",
            "acme/a_",
            "acme/a___b",
            "acme/a..b",
        ] {
            assert_eq!(harbor.repository(&name.parse().unwrap()), None, "{name}");
        }
        for name in ["acme/a__b", "acme/a--b", "acme/a.b_c-d", "0/1"] {
            assert!(
                harbor.repository(&name.parse().unwrap()).is_some(),
                "{name}"
            );
        }
    }

    #[test]
    fn versions_survive_the_way_into_a_tag_and_back() {
        for text in ["1.2.0", "1.0.0-rc.1", "1.0.0+b.1", "1.0.0-a.1+b-2"] {
            let version: Version = text.parse().unwrap();
            let tag = tag_of(&version);
            assert!(is_tag(&tag), "{tag}");
            assert_eq!(version_of(&tag), Some(version));
        }
        for alias in [
            "stable",
            "latest",
            "v1.2.0",
            "1.2",
            "1.0.0_a_b",
            "_yanked.1.1.2.0",
        ] {
            assert_eq!(version_of(alias), None, "{alias}");
        }
    }

    #[test]
    fn state_tags_say_what_they_mean_and_nothing_else_is_one() {
        let tag: StateTag = "_yanked.12.1.0.0-a_b".parse().unwrap();
        assert_eq!(tag.sequence, 12);
        assert_eq!(tag.version.as_str(), "1.0.0-a+b");
        assert_eq!(tag.to_string(), "_yanked.12.1.0.0-a_b");
        assert!(is_tag(&tag.to_string()));
        for other in [
            "yanked.1.1.0.0",
            "_yanked.1.0.0",
            "_yanked.01.1.0.0",
            "_yanked.0.1.0.0",
            "_yanked.+1.1.0.0",
            "_gone.1.1.0.0",
            "_yanked",
            "_yanked.99999999999.1.0.0",
        ] {
            assert_eq!(other.parse::<StateTag>(), Err(()), "{other}");
        }
    }

    #[test]
    fn references_of_the_api_are_read() {
        let digest = Digest::of(b"x");
        let text = format!("bundles.musher.dev/acme/kit:1.0.0@{digest}");
        let found = ImageRef::parse(&text).unwrap();
        assert_eq!(found.registry, "bundles.musher.dev");
        assert_eq!(found.repository.as_str(), "acme/kit");
        assert_eq!(found.digest, Some(digest));
        assert_eq!(ImageRef::parse("h:5000/a/b").unwrap().registry, "h:5000");
        for bad in [
            "", "host", "host/", "ho st/a", "h/a:b/c", "h/A/b", "u@h/a/b", "h/../b",
        ] {
            assert_eq!(ImageRef::parse(bad), None, "{bad}");
        }
    }
}
