//! The documents of an OCI registry: image manifests and the configs of bundles.
//!
//! ```text
//! manifest   application/vnd.oci.image.manifest.v1+json
//! ├─ config  application/vnd.musher.bundle.v1.config   {"assets":[{logical_path,asset_type,content_sha256}]}
//! └─ layer   application/vnd.musher.bundle.v1.asset    one per file, raw; its title is the path
//! ```
//!
//! What is read here was hashed before: it is what was asked for, but whoever wrote it is not
//! trusted. Sizes and numbers of things are limited; paths are judged by [`crate::manifest`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::MAX_ENTRIES;

/// Largest manifest, and largest config, in bytes.
pub const MAX_MANIFEST: u64 = 64 << 20;
/// Most layers of a manifest.
pub const MAX_LAYERS: usize = MAX_ENTRIES;
/// Largest file, in bytes.
pub const MAX_BLOB: u64 = 1 << 30;

/// An OCI image manifest.
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker's image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// An OCI image index.
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What is asked for. Indexes are understood as far as that they cannot be used.
pub const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.index.v1+json;q=0.5, \
     application/vnd.docker.distribution.manifest.list.v2+json;q=0.5";

/// A bundle's config.
pub const BUNDLE_CONFIG: &str = "application/vnd.musher.bundle.v1.config";
/// A bundle's file.
pub const BUNDLE_ASSET: &str = "application/vnd.musher.bundle.v1.asset";
/// An artifact that records a change of a version's state.
pub const BUNDLE_STATE: &str = "application/vnd.musher.bundle.v1.state";
/// The config of what needs none: `{}`.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The path of a layer's file.
pub const TITLE: &str = "org.opencontainers.image.title";
/// What a manifest's bundle is for.
pub const DESCRIPTION: &str = "org.opencontainers.image.description";
/// The version that a manifest says it is.
pub const VERSION: &str = "org.opencontainers.image.version";
/// A name: of a manifest, its bundle (`namespace/bundle`); of an entry in a layout's index, its
/// repository and tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// When it was made.
pub const CREATED: &str = "org.opencontainers.image.created";
/// The source's revision.
pub const REVISION: &str = "org.opencontainers.image.revision";
/// `true` on a layer that ORAS made of a directory: a tar archive.
pub const UNPACK: &str = "io.deis.oras.content.unpack";
/// `yanked` or `published`, on a [`BUNDLE_STATE`].
pub const STATE: &str = "dev.musher.state";
/// Why, on a [`BUNDLE_STATE`].
pub const STATE_REASON: &str = "dev.musher.reason";
/// By whom, on a [`BUNDLE_STATE`].
pub const STATE_ACTOR: &str = "dev.musher.actor";

/// Annotations, sorted so that the same ones are the same bytes.
pub type Annotations = BTreeMap<String, String>;

/// Names a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`; other algorithms are possible, but not usable here.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// What else is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

impl Descriptor {
    /// The digest, if it is SHA-256.
    pub fn sha256(&self) -> Option<Digest> {
        self.digest.strip_prefix("sha256:")?.parse().ok()
    }

    /// An annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(name)?.as_str())
    }
}

/// An image manifest: OCI's, or Docker's with the same members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What kind of artifact it is, where the config does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The files, or archives.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// What else is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

/// What tells the kinds of manifests apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl ImageManifest {
    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// Says why it is none that can be used.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let kind: Kind =
            serde_json::from_slice(json).map_err(|error| format!("not a manifest: {error}"))?;
        if kind.manifests.is_some() {
            return Err("it is an image index, which picks nothing for a bundle; \
                 name the digest of one of its manifests"
                .into());
        }
        if kind.schema_version != Some(2) || kind.fs_layers.is_some() {
            return Err("not a manifest of schema version 2".into());
        }
        if let Some(media_type) = kind.media_type.as_deref()
            && !matches!(media_type, IMAGE_MANIFEST | DOCKER_MANIFEST | "")
        {
            let media_type: String = media_type.chars().take(100).collect();
            return Err(format!("a {media_type:?} is not an image manifest"));
        }
        let manifest: Self =
            serde_json::from_slice(json).map_err(|error| format!("not a manifest: {error}"))?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(format!("it has more than {MAX_LAYERS} layers"));
        }
        Ok(manifest)
    }

    /// An annotation of the manifest itself.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(name)?.as_str())
    }
}

/// A bundle's config.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BundleConfig {
    /// The files.
    pub assets: Vec<ConfigAsset>,
}

/// A file in a [`BundleConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfigAsset {
    /// The type of asset.
    #[serde(default, alias = "assetType")]
    pub asset_type: String,
    /// The SHA-256 of the content, hexadecimal.
    #[serde(alias = "contentSha256")]
    pub content_sha256: Digest,
    /// The path.
    #[serde(alias = "logicalPath")]
    pub logical_path: String,
}

impl BundleConfig {
    /// Reads a config.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|error| format!("not a bundle's config: {error}"))?;
        if config.assets.len() > MAX_LAYERS {
            return Err(format!("its config has more than {MAX_LAYERS} files"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_image_manifests_are_read_and_no_other() {
        let digest = Digest::of(b"x");
        let manifest = |media_type: &str| {
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{media_type}","unknown":1,
                "config":{{"mediaType":"a","digest":"{digest}","size":1}},
                "layers":[{{"digest":"sha512:00","size":2,"annotations":{{"{TITLE}":"p"}}}}]}}"#
            )
        };
        for media_type in [IMAGE_MANIFEST, DOCKER_MANIFEST, ""] {
            let parsed = ImageManifest::parse(manifest(media_type).as_bytes()).unwrap();
            assert_eq!(parsed.config.sha256(), Some(digest));
            assert_eq!(parsed.layers[0].sha256(), None);
            assert_eq!(parsed.layers[0].annotation(TITLE), Some("p"));
        }
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"schemaVersion":2,"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"x","size":-1},"layers":[]}"#,
            &manifest("application/json"),
        ] {
            assert!(ImageManifest::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        let problem = ImageManifest::parse(index.as_bytes()).unwrap_err();
        assert!(problem.contains("index"), "{problem}");
    }

    #[test]
    fn configs_are_read_in_either_case() {
        let hex = Digest::of(b"x").hex();
        for json in [
            format!(
                r#"{{"assets":[{{"logical_path":"a","asset_type":"p","content_sha256":"{hex}"}}]}}"#
            ),
            format!(
                r#"{{"assets":[{{"logicalPath":"a","assetType":"p","contentSha256":"{hex}"}}]}}"#
            ),
        ] {
            let config = BundleConfig::parse(json.as_bytes()).unwrap();
            assert_eq!(config.assets[0].logical_path, "a");
            assert_eq!(config.assets[0].content_sha256, Digest::of(b"x"));
        }
        assert!(BundleConfig::parse(br#"{"assets":[{"logical_path":"a"}]}"#).is_err());
        assert!(BundleConfig::parse(b"{}").is_err());
    }
}
