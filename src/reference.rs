//! Names as types: what has one of these is safe to put into a path, a URL or a log line.
//!
//! ```text
//! acme/code-review@^1.2          BundleRef   = Namespace / Slug @ Selector
//! acme/code-review@1.2.0         VersionRef  = Namespace / Slug @ Version
//! prompts/review.md              LogicalPath   a file inside a version
//! ```
//!
//! The grammars are the union of what the Musher tools accept, less what could leave a directory
//! (`..`, separators, NUL) or hide in it (a leading dot). Whatever fails here does not exist as far
//! as the mount is concerned: it is refused before any request is made.

/// `Display`, and `Debug` that reads like it.
macro_rules! text_like {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub mod host;
pub mod path;

pub use host::{HostId, InvalidHost};
pub use path::{InvalidPath, LogicalPath, MAX_COMPONENT, MAX_PATH};

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::digest::Digest;

/// Longest namespace or slug, in bytes.
pub const MAX_NAME: usize = 100;
/// Longest version or alias, in bytes. The cache's `<version>.meta.json` then fits a file name.
pub const MAX_VERSION: usize = 128;

/// Why a text is not the name it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// Not `[A-Za-z0-9][A-Za-z0-9._-]*` of at most 100 bytes.
    #[error("not a valid {what}: {text:?}")]
    Name {
        /// `namespace` or `slug`.
        what: &'static str,
        /// The refused text, shortened.
        text: String,
    },
    /// Not SemVer 2.0 of at most 128 bytes.
    #[error("not a valid version: {0:?}")]
    Version(String),
    /// Neither a version, a tag, a range nor a digest.
    #[error("not a valid version, tag, range or digest: {0:?}")]
    Selector(String),
    /// Not `namespace/slug` with an optional selector.
    #[error("not a bundle reference (namespace/bundle[@version]): {0:?}")]
    Shape(String),
}

fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 100 bytes.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $type(Box<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidReference;

            fn from_str(text: &str) -> Result<Self, InvalidReference> {
                if is_name(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidReference::Name { what: $what, text: shortened(text) })
                }
            }
        }

        text_like!($type);
    };
}

name!(
    /// Who publishes: the first component under the mount's root.
    Namespace,
    "namespace"
);
name!(
    /// A bundle's name within its namespace.
    Slug,
    "bundle name"
);

/// A published version: full SemVer 2.0, kept as it was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version {
    text: Box<str>,
    parsed: semver::Version,
}

impl Version {
    /// The version as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The version as numbers, for ranges.
    pub fn semver(&self) -> &semver::Version {
        &self.parsed
    }

    /// Whether the version has a pre-release part: never chosen unless asked for.
    pub fn is_prerelease(&self) -> bool {
        !self.parsed.pre.is_empty()
    }

    /// Whether the shared cache has a place for it.
    ///
    /// `1.2.0-a.meta` has none: its manifest would be named `1.2.0-a.meta.json`, which every tool
    /// takes for the sidecar of `1.2.0-a`.
    pub fn fits_cache(&self) -> bool {
        !self.text.ends_with(".meta")
    }
}

impl FromStr for Version {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = || InvalidReference::Version(shortened(text));
        if text.len() > MAX_VERSION {
            return Err(invalid());
        }
        let parsed = semver::Version::parse(text).map_err(|_| invalid())?;
        Ok(Self {
            text: text.into(),
            parsed,
        })
    }
}

/// SemVer precedence; build metadata, which has none, decides last so that the order is total.
impl Ord for Version {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.parsed
            .cmp(&other.parsed)
            .then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

text_like!(Version);

/// How a user names a version of a bundle.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The bare name, or `latest`: the newest published version.
    Latest,
    /// Exactly this version.
    Version(Version),
    /// A tag: an opaque name that the registry points at a version, and may move.
    Tag(Box<str>),
    /// A SemVer range such as `^1.2`, `1` or `1.x`.
    Range {
        /// The range as it was written.
        text: Box<str>,
        /// The range as a predicate.
        req: semver::VersionReq,
    },
    /// The version whose manifest has this digest.
    Digest(Digest),
}

impl Selector {
    /// Whether the answer can change: everything but an exact version and a digest.
    pub fn is_mutable(&self) -> bool {
        !matches!(self, Self::Version(_) | Self::Digest(_))
    }

    /// How the selector is spelt after the `@`; `latest` for the bare name.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Latest => "latest".into(),
            Self::Version(version) => version.as_str().into(),
            Self::Tag(text) | Self::Range { text, .. } => (&**text).into(),
            Self::Digest(digest) => digest.to_string().into(),
        }
    }
}

impl FromStr for Selector {
    type Err = InvalidReference;

    /// What is a SemVer version is a version, what a range can be is a range, `sha256:` is a
    /// digest, and the rest is a tag if a tag can be spelt like that.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = || InvalidReference::Selector(shortened(text));
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if text.starts_with("sha256:") {
            return text.parse().map(Self::Digest).map_err(|_| invalid());
        }
        if text.is_empty() || text.len() > MAX_VERSION {
            return Err(invalid());
        }
        if let Ok(version) = text.parse() {
            return Ok(Self::Version(version));
        }
        let starts_range = |c: char| c.is_ascii_digit() || "^~<>=*".contains(c);
        if text.starts_with(starts_range)
            && text
                .bytes()
                .all(|b| b == b' ' || b.is_ascii_graphic() && b != b'/' && b != b'\\')
            && let Ok(req) = semver::VersionReq::parse(text)
        {
            return Ok(Self::Range {
                text: text.into(),
                req,
            });
        }
        // The OCI tag grammar.
        let is_tag = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if is_tag {
            Ok(Self::Tag(text.into()))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// A bundle: `namespace/slug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    /// Who publishes it.
    pub namespace: Namespace,
    /// Its name.
    pub slug: Slug,
}

impl FromStr for BundleId {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let (namespace, slug) = text
            .split_once('/')
            .ok_or_else(|| InvalidReference::Shape(shortened(text)))?;
        Ok(Self {
            namespace: namespace.parse()?,
            slug: slug.parse()?,
        })
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.slug)
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One version of a bundle: immutable content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionRef {
    /// The bundle.
    pub bundle: BundleId,
    /// The version.
    pub version: Version,
}

impl FromStr for VersionRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let reference: BundleRef = text.parse()?;
        match reference.selector {
            Selector::Version(version) => Ok(Self {
                bundle: reference.bundle,
                version,
            }),
            other => Err(InvalidReference::Version(other.text().into_owned())),
        }
    }
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.bundle, self.version)
    }
}

impl fmt::Debug for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bundle and which of its versions: what users type.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BundleRef {
    /// The bundle.
    pub bundle: BundleId,
    /// Which version.
    pub selector: Selector,
}

impl FromStr for BundleRef {
    type Err = InvalidReference;

    /// Accepts `ns/slug`, `ns/slug@SELECTOR` and, as the other Musher tools spell it,
    /// `ns/slug:SELECTOR`.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let (bundle, selector) = match text.find(['@', ':']) {
            Some(at) => (&text[..at], text[at + 1..].parse()?),
            None => (text, Selector::Latest),
        };
        Ok(Self {
            bundle: bundle.parse()?,
            selector,
        })
    }
}

impl fmt::Display for BundleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Latest => self.bundle.fmt(f),
            selector => write!(f, "{}@{selector}", self.bundle),
        }
    }
}

impl fmt::Debug for BundleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_or_hide_in_a_directory_are_refused() {
        for good in ["a", "acme", "A.b_c-9", "0", &"x".repeat(100)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
            assert!(good.parse::<Slug>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".git",
            "-x",
            "_x",
            "a/b",
            "a\\b",
            "a\0b",
            "a@1",
            "a:1",
            "a b",
            "é",
            "%2e%2e",
            &"x".repeat(101),
        ] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
    }

    #[test]
    fn selectors_are_told_apart() {
        let kind = |text: &str| match text.parse::<Selector>() {
            Ok(Selector::Latest) => "latest",
            Ok(Selector::Version(_)) => "version",
            Ok(Selector::Tag(_)) => "tag",
            Ok(Selector::Range { .. }) => "range",
            Ok(Selector::Digest(_)) => "digest",
            Err(_) => "refused",
        };
        let digest = Digest::of(b"").to_string();
        for (text, expected) in [
            ("latest", "latest"),
            ("1.2.0", "version"),
            ("1.2.0-beta.1+build.5", "version"),
            ("^1.2", "range"),
            ("~1.2.3", "range"),
            ("1", "range"),
            ("1.x", "range"),
            (">=1, <3", "range"),
            ("*", "range"),
            ("stable", "tag"),
            ("v1.2.0", "tag"),
            ("1-beta", "tag"),
            (digest.as_str(), "digest"),
            ("sha256:12", "refused"),
            ("", "refused"),
            ("..", "refused"),
            (".hidden", "refused"),
            ("a/b", "refused"),
            ("^1/../2", "refused"),
            (&"9".repeat(129), "refused"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn references_of_every_tool_parse() {
        let reference = |text: &str| text.parse::<BundleRef>().unwrap();
        assert_eq!(reference("acme/kit").selector, Selector::Latest);
        assert_eq!(reference("acme/kit:1.2.0"), reference("acme/kit@1.2.0"));
        assert_eq!(reference("acme/kit@^1").to_string(), "acme/kit@^1");
        let digest = Digest::of(b"x");
        assert_eq!(
            reference(&format!("acme/kit@{digest}")).selector,
            Selector::Digest(digest)
        );
        for bad in [
            "kit",
            "a/b/c",
            "acme/",
            "/kit",
            "acme/kit@",
            "acme/kit:",
            "../x",
            "a/..",
        ] {
            assert!(bad.parse::<BundleRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_order_by_semver_precedence() {
        let mut versions: Vec<Version> = ["1.10.0", "1.9.0", "1.10.0-rc.1", "1.10.0+b"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        versions.sort();
        let texts: Vec<_> = versions.iter().map(Version::as_str).collect();
        assert_eq!(texts, ["1.9.0", "1.10.0-rc.1", "1.10.0", "1.10.0+b"]);
    }

    #[test]
    fn a_version_that_would_be_taken_for_a_sidecar_is_not_cached() {
        assert!(!"1.2.0-a.meta".parse::<Version>().unwrap().fits_cache());
        assert!("1.2.0-meta".parse::<Version>().unwrap().fits_cache());
    }
}
