//! Which registry something came from: the name of its partition in the shared cache.
//!
//! ```text
//! https://api.musher.dev/v1     api.musher.dev       scheme, path, user and default port dropped
//! http://127.0.0.1:8080         127.0.0.1_8080
//! http://[::1]:8080             ::1_8080             also read: [__1]_8080, __1_8080
//! https://Bücher.example        xn--bcher-kva.example
//! ```
//!
//! All Musher tools derive the name from the registry's URL, and agree but for a few spellings.
//! [`HostId::from_url`] gives the one that is written; [`HostId::legacy_spellings`] the others under
//! which some tool may have left an entry.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use url::{Host, Url};

/// The partition for bundles that were packed on this machine and come from no registry.
const LOCAL: &str = "_local";

/// A registry's partition of the cache; safe as the name of a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct HostId(Box<str>);

/// A URL or a text that names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the address of a registry: {0:?}")]
pub struct InvalidHost(String);

fn invalid(text: &str) -> InvalidHost {
    InvalidHost(text.chars().take(160).collect())
}

impl HostId {
    /// The partition of the registry at `url`.
    ///
    /// # Errors
    ///
    /// [`InvalidHost`] for a URL that is neither http nor https, or whose host could not be the
    /// name of a directory, or would be that of [`HostId::local`].
    pub fn from_url(url: &Url) -> Result<Self, InvalidHost> {
        // Without user and path: they may hold secrets, and the error is shown.
        let refused = || invalid(url.host_str().unwrap_or_else(|| url.scheme()));
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused());
        }
        let host = match url.host().ok_or_else(refused)? {
            Host::Domain(domain) => domain.to_lowercase(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        // `port` is `None` for the scheme's default, also where it was written out.
        let text = match url.port() {
            Some(port) => format!("{host}_{port}"),
            None => host,
        };
        let id: Self = text.parse().map_err(|_| refused())?;
        if id.is_local() {
            Err(refused())
        } else {
            Ok(id)
        }
    }

    /// The partition of locally packed bundles: read when asked for, never written.
    pub fn local() -> Self {
        Self(LOCAL.into())
    }

    /// Whether this is the partition of locally packed bundles.
    pub fn is_local(&self) -> bool {
        &*self.0 == LOCAL
    }

    /// The name of the directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The other names under which some tool may have written the same registry's entries, for
    /// reading only.
    ///
    /// The Python SDK keeps a default port that the URL spells out; the TypeScript SDK and mush
    /// write IPv6 addresses in ways of their own.
    pub fn legacy_spellings(&self) -> Vec<Self> {
        if self.is_local() {
            return Vec::new();
        }
        let mut spellings = Vec::new();
        let (host, port) = match self.0.rsplit_once('_') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, Some(port)),
            _ => (&*self.0, None),
        };
        if port.is_none() {
            spellings.extend([format!("{host}_443"), format!("{host}_80")]);
        }
        if host.contains(':') {
            let flat = host.replace(':', "_");
            let suffix = port.map(|port| format!("_{port}")).unwrap_or_default();
            spellings.extend([format!("[{flat}]{suffix}"), format!("{flat}{suffix}")]);
        }
        spellings
            .into_iter()
            .filter_map(|text| text.parse().ok())
            .collect()
    }
}

impl FromStr for HostId {
    type Err = InvalidHost;

    /// Reads the name of a partition as it is found in the cache, in any tool's spelling.
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let safe = (1..=255).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._:-[]".contains(&b));
        if safe {
            Ok(Self(text.into()))
        } else {
            Err(invalid(text))
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(url: &str) -> Result<HostId, InvalidHost> {
        HostId::from_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn urls_of_one_registry_share_a_partition() {
        for (url, expected) in [
            ("https://api.musher.dev", "api.musher.dev"),
            ("https://api.musher.dev/", "api.musher.dev"),
            ("https://api.musher.dev/base/path/", "api.musher.dev"),
            ("https://api.musher.dev?q=1#f", "api.musher.dev"),
            ("https://API.Musher.DEV", "api.musher.dev"),
            ("https://user:secret@api.musher.dev", "api.musher.dev"),
            ("https://api.musher.dev:443", "api.musher.dev"),
            ("http://api.musher.dev:80", "api.musher.dev"),
            ("http://api.musher.dev", "api.musher.dev"),
            ("https://api.musher.dev:8443", "api.musher.dev_8443"),
            ("http://api.musher.dev:443", "api.musher.dev_443"),
            ("http://localhost:17201", "localhost_17201"),
            ("http://localhost", "localhost"),
            ("http://127.0.0.1:8080", "127.0.0.1_8080"),
            ("http://[::1]:8080", "::1_8080"),
            ("https://[::1]", "::1"),
            ("http://[2001:DB8::0:1]:8080", "2001:db8::1_8080"),
            ("https://bücher.example", "xn--bcher-kva.example"),
            ("https://BÜCHER.example:8080", "xn--bcher-kva.example_8080"),
        ] {
            assert_eq!(id(url).unwrap().as_str(), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_registry_has_no_partition() {
        for url in [
            "ftp://api.musher.dev",
            "file:///etc/passwd",
            "unix:/run/x",
            "https://_local",
            "https://../",
            "https://.hidden/",
        ] {
            assert!(id(url).is_err(), "{url}");
        }
        for text in [
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "a\0b",
            "a b",
            &"x".repeat(256),
        ] {
            assert!(text.parse::<HostId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_refusal_of_a_url_keeps_its_secrets() {
        let error = id("ftp://user:secret@host/secret").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn spellings_of_other_tools_are_known() {
        let spellings = |text: &str| -> Vec<String> {
            let id: HostId = text.parse().unwrap();
            id.legacy_spellings()
                .iter()
                .map(|id| id.to_string())
                .collect()
        };
        assert_eq!(
            spellings("api.musher.dev"),
            ["api.musher.dev_443", "api.musher.dev_80"]
        );
        assert!(spellings("127.0.0.1_8080").is_empty());
        assert_eq!(spellings("::1_8080"), ["[__1]_8080", "__1_8080"]);
        assert_eq!(spellings("::1"), ["::1_443", "::1_80", "[__1]", "__1"]);
        assert!(HostId::local().legacy_spellings().is_empty());
    }
}
