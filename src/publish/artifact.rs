//! A version as an OCI artifact: the bytes of its config and its manifest.
//!
//! ```text
//! manifest   application/vnd.oci.image.manifest.v1+json
//! ├─ config  application/vnd.musher.bundle.v1.config   {"assets":[{asset_type,content_sha256,logical_path}]}
//! └─ layer   application/vnd.musher.bundle.v1.asset    one per file, raw; its title is the path
//! ```
//!
//! The same version is the same config and the same layers, byte for byte and sorted by path,
//! wherever it is made: by the embedded registry, by a push, by an export. The manifest adds
//! annotations. Without annotations of the publisher's, it follows from names and content alone, so
//! that its digest says what is in the version and not when it was made.
//!
//! Two paths with equal content are two layers with one digest.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde_json::{Value, json};

use super::Publication;
use crate::digest::Digest;
use crate::manifest::Manifest;
pub use crate::source::oci::model::REF_NAME;
use crate::source::oci::model::{BUNDLE_ASSET, BUNDLE_CONFIG, IMAGE_MANIFEST, TITLE, VERSION};

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File<'a> {
    /// The path within the version.
    pub path: &'a str,
    /// The asset's type.
    pub asset_type: &'a str,
    /// The digest of the content, as 64 hex digits.
    pub sha256: String,
    /// The size of the content in bytes.
    pub size: u64,
}

/// The bytes and digests of a version's OCI artifact.
#[derive(Debug, Clone)]
pub struct Artifact {
    manifest: Bytes,
    digest: Digest,
    config: Bytes,
    config_digest: Digest,
}

impl Artifact {
    /// The artifact of `version` of `bundle` (`namespace/slug`) with these files, which are sorted by
    /// their paths' bytes: whoever makes it has them in another order. `annotations` are the publisher's; name and version are added.
    pub fn new<'a>(
        bundle: &str,
        version: &str,
        files: impl Iterator<Item = File<'a>>,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let mut files: Vec<File<'_>> = files.collect();
        files.sort_by_key(|file| file.path);
        let assets: Vec<Value> = files
            .iter()
            .map(|file| {
                json!({
                    "logical_path": file.path,
                    "asset_type": file.asset_type,
                    "content_sha256": file.sha256,
                })
            })
            .collect();
        let config = json!({ "assets": assets }).to_string().into_bytes();
        let config_digest = Digest::of(&config);
        let layers: Vec<Value> = files
            .iter()
            .map(|file| {
                json!({
                    "mediaType": BUNDLE_ASSET,
                    "digest": format!("sha256:{}", file.sha256),
                    "size": file.size,
                    "annotations": { TITLE: file.path },
                })
            })
            .collect();
        let mut annotations = annotations;
        annotations.insert(REF_NAME.to_owned(), bundle.to_owned());
        annotations.insert(VERSION.to_owned(), version.to_owned());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": {
                "mediaType": BUNDLE_CONFIG,
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": layers,
            "annotations": annotations,
        })
        .to_string()
        .into_bytes();
        Self {
            digest: Digest::of(&manifest),
            manifest: manifest.into(),
            config: config.into(),
            config_digest,
        }
    }

    /// The artifact of what is about to be published.
    pub fn of_publication(
        publication: &Publication,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        // Once: hashing is what takes time here.
        let digests: Vec<Digest> = publication
            .assets
            .iter()
            .map(|asset| Digest::of(&asset.bytes))
            .collect();
        let files = publication
            .assets
            .iter()
            .zip(&digests)
            .map(|(asset, digest)| File {
                path: asset.path.as_str(),
                asset_type: &asset.asset_type,
                sha256: digest.hex(),
                size: asset.bytes.len() as u64,
            });
        let reference = &publication.reference;
        Self::new(
            &reference.bundle.to_string(),
            reference.version.as_str(),
            files,
            annotations,
        )
    }

    /// The artifact of a version that is known by its table: the files that can be served, in the
    /// table's order.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        let files = manifest.files().map(|file| File {
            path: file.path(),
            asset_type: file.asset_type(),
            sha256: file.digest().hex(),
            size: file.size(),
        });
        let id = manifest.id();
        Self::new(
            &id.bundle.to_string(),
            id.version.as_str(),
            files,
            BTreeMap::new(),
        )
    }

    /// The digest of the manifest: `ociDigest` in the API.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The manifest.
    pub fn manifest(&self) -> &Bytes {
        &self.manifest
    }

    /// The config.
    pub fn config(&self) -> &Bytes {
        &self.config
    }

    /// The digest of the config.
    pub fn config_digest(&self) -> Digest {
        self.config_digest
    }
}

/// Whether two image manifests have the same config and the same layers under the same titles,
/// whatever else they say: when they were made, by whom.
pub fn same_content(a: &[u8], b: &[u8]) -> bool {
    match (content_of(a), content_of(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn content_of(manifest: &[u8]) -> Option<(String, Vec<(String, String)>)> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let text = |value: &Value, pointer: &str| {
        let found = value.pointer(pointer).and_then(Value::as_str);
        found.map(str::to_owned)
    };
    let layers = manifest
        .get("layers")?
        .as_array()?
        .iter()
        .map(|layer| {
            let title = layer.get("annotations").and_then(|all| all.get(TITLE));
            let title = title.and_then(Value::as_str).unwrap_or_default();
            Some((text(layer, "/digest")?, title.to_owned()))
        })
        .collect::<Option<_>>()?;
    Some((text(&manifest, "/config/digest")?, layers))
}

/// The distinct blobs of a publication, in the order of its assets.
pub(super) fn distinct_blobs(publication: &Publication) -> Vec<(Digest, Bytes)> {
    let mut seen = HashSet::new();
    publication
        .assets
        .iter()
        .map(|asset| (Digest::of(&asset.bytes), asset.bytes.clone()))
        .filter(|(digest, _)| seen.insert(*digest))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Info, Layer};
    use crate::publish::Asset;

    fn publication(files: &[(&str, &str)]) -> Publication {
        let mut publication = Publication::new("acme/kit@1.0.0".parse().unwrap());
        publication.assets = files
            .iter()
            .map(|(path, text)| Asset::new(path, text.to_string()).unwrap())
            .collect();
        publication
    }

    fn annotated(at: &str) -> BTreeMap<String, String> {
        [("org.opencontainers.image.created".to_owned(), at.to_owned())].into()
    }

    #[test]
    fn the_same_content_at_another_time_is_the_same_content() {
        let kit = publication(&[("a", "1"), ("b", "1")]);
        let first = Artifact::of_publication(&kit, annotated("2026-01-01T00:00:00Z"));
        let second = Artifact::of_publication(&kit, annotated("2026-01-02T00:00:00Z"));
        assert_ne!(first.digest(), second.digest());
        assert!(same_content(first.manifest(), second.manifest()));
        for other in [
            publication(&[("a", "1"), ("b", "2")]),
            publication(&[("a", "1"), ("c", "1")]),
            publication(&[("a", "1")]),
        ] {
            let other = Artifact::of_publication(&other, annotated("2026-01-01T00:00:00Z"));
            assert!(!same_content(first.manifest(), other.manifest()));
        }
        assert!(!same_content(b"{}", b"{}"), "no content is no content");
    }

    #[test]
    fn a_table_and_a_publication_make_the_same_artifact() {
        let kit = publication(&[("prompts/a.md", "x"), ("tools/t", "y")]);
        let made = Artifact::of_publication(&kit, BTreeMap::new());
        let layers = kit.assets.iter().map(|asset| Layer {
            path: asset.path.to_string(),
            digest: Digest::of(&asset.bytes),
            size: Some(asset.bytes.len() as u64),
            asset_type: asset.asset_type.clone(),
            asset_id: String::new(),
            media_type: None,
        });
        let manifest =
            Manifest::new(kit.reference.clone(), Info::default(), layers.collect()).unwrap();
        let found = Artifact::of_manifest(&manifest);
        assert_eq!(found.digest(), made.digest());
        assert_eq!(found.config_digest(), made.config_digest());
    }

    #[test]
    fn equal_files_are_two_layers_and_one_blob() {
        let kit = publication(&[("a", "1"), ("b", "1"), ("c", "2")]);
        assert_eq!(distinct_blobs(&kit).len(), 2);
        let artifact = Artifact::of_publication(&kit, BTreeMap::new());
        let manifest: Value = serde_json::from_slice(artifact.manifest()).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
    }
}
