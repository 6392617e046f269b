//! Reads a version's description in every dialect.
//!
//! Lenient where tools differ (case of the names, place of the list, spelling of hashes and
//! numbers), strict where a guess would be dangerous: an absent list is no empty bundle, and one
//! layer without a hash spoils the document.

use serde::Deserialize;

use super::{Info, Manifest, ManifestError, State};
use crate::digest::Digest;
use crate::reference::VersionRef;

/// One file as a document lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The path as written; [`Manifest::new`] decides whether it can be served.
    pub path: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The size of the content in bytes, where the document tells.
    pub size: Option<u64>,
    /// The asset's type, unchanged.
    pub asset_type: String,
    /// The registry's id of the asset; empty if unknown.
    pub asset_id: String,
    /// The asset's media type.
    pub media_type: Option<String>,
}

impl Layer {
    pub(super) fn bad(&self, reason: &'static str) -> ManifestError {
        ManifestError::Layer {
            path: self.path.chars().take(200).collect(),
            reason,
        }
    }
}

/// A version's description as some tool or registry wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// The namespace that the document names, if it does.
    pub namespace: Option<String>,
    /// The bundle that the document names, if it does.
    pub slug: Option<String>,
    /// The version that the document names, if it does.
    pub version: Option<String>,
    /// Everything but the files.
    pub info: Info,
    /// The files; `None` if the document has no list, which is not an empty list.
    pub layers: Option<Vec<Layer>>,
}

impl Document {
    /// Reads a document from JSON; a byte order mark is skipped.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Json`] if it is not a JSON object of a known shape,
    /// [`ManifestError::Layer`] if a file has no usable hash or a nonsensical size.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        let raw: RawDocument =
            serde_json::from_slice(json).map_err(|error| ManifestError::Json(error.to_string()))?;
        raw.try_into()
    }

    /// Turns the document into the manifest of `expected`.
    ///
    /// # Errors
    ///
    /// [`ManifestError::OtherVersion`] if it names another version, [`ManifestError::NoLayers`] if
    /// it has no list, and those of [`Manifest::new`].
    pub fn into_manifest(self, expected: VersionRef) -> Result<Manifest, ManifestError> {
        let bundle = &expected.bundle;
        for (found, wanted) in [
            (&self.namespace, bundle.namespace.as_str()),
            (&self.slug, bundle.slug.as_str()),
            (&self.version, expected.version.as_str()),
        ] {
            if let Some(found) = found.as_deref().filter(|found| *found != wanted) {
                return Err(ManifestError::OtherVersion {
                    expected: expected.to_string(),
                    found: found.chars().take(200).collect(),
                });
            }
        }
        let layers = self.layers.ok_or(ManifestError::NoLayers)?;
        Manifest::new(expected, self.info, layers)
    }

    /// Whether the size of a file is not told.
    pub fn lacks_sizes(&self) -> bool {
        let mut layers = self.layers.iter().flatten();
        layers.any(|layer| layer.size.is_none())
    }

    /// Gives each layer without a size the one that `size_of` knows.
    pub fn fill_sizes(&mut self, size_of: impl Fn(Digest) -> Option<u64>) {
        for layer in self.layers.iter_mut().flatten() {
            layer.size = layer.size.or_else(|| size_of(layer.digest));
        }
    }
}

/// All spellings of all dialects side by side: serde aliases would refuse documents that carry two
/// spellings of one field, as the shared cache's entries do.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    bundle_id: Option<String>,
    #[serde(rename = "bundle_id")]
    bundle_id_snake: Option<String>,
    version_id: Option<String>,
    #[serde(rename = "version_id")]
    version_id_snake: Option<String>,
    namespace: Option<String>,
    slug: Option<String>,
    bundle_slug: Option<String>,
    #[serde(rename = "bundle_slug")]
    bundle_slug_snake: Option<String>,
    version: Option<String>,
    name: Option<String>,
    description: Option<String>,
    source_type: Option<String>,
    #[serde(rename = "source_type")]
    source_type_snake: Option<String>,
    oci_ref: Option<String>,
    #[serde(rename = "oci_ref")]
    oci_ref_snake: Option<String>,
    oci_digest: Option<String>,
    #[serde(rename = "oci_digest")]
    oci_digest_snake: Option<String>,
    state: Option<String>,
    manifest: Option<RawManifest>,
    layers: Option<Vec<RawLayer>>,
    assets: Option<Vec<RawLayer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    namespace: Option<String>,
    slug: Option<String>,
    bundle_slug: Option<String>,
    #[serde(rename = "bundle_slug")]
    bundle_slug_snake: Option<String>,
    version: Option<String>,
    layers: Option<Vec<RawLayer>>,
    assets: Option<Vec<RawLayer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayer {
    asset_id: Option<String>,
    #[serde(rename = "asset_id")]
    asset_id_snake: Option<String>,
    id: Option<String>,
    logical_path: Option<String>,
    #[serde(rename = "logical_path")]
    logical_path_snake: Option<String>,
    asset_type: Option<String>,
    #[serde(rename = "asset_type")]
    asset_type_snake: Option<String>,
    content_sha256: Option<String>,
    #[serde(rename = "content_sha256")]
    content_sha256_snake: Option<String>,
    size_bytes: Option<serde_json::Number>,
    #[serde(rename = "size_bytes")]
    size_bytes_snake: Option<serde_json::Number>,
    size: Option<serde_json::Number>,
    content_size_bytes: Option<serde_json::Number>,
    media_type: Option<String>,
    #[serde(rename = "media_type")]
    media_type_snake: Option<String>,
}

impl TryFrom<RawDocument> for Document {
    type Error = ManifestError;

    fn try_from(raw: RawDocument) -> Result<Self, ManifestError> {
        let (nested, inner) = match raw.manifest {
            Some(inner) => (
                Some((inner.layers, inner.assets)),
                (
                    inner.namespace,
                    inner.slug.or(inner.bundle_slug).or(inner.bundle_slug_snake),
                    inner.version,
                ),
            ),
            None => (None, (None, None, None)),
        };
        let (nested_layers, nested_assets) = nested.unwrap_or_default();
        let layers = nested_layers
            .or(raw.layers)
            .or(nested_assets)
            .or(raw.assets);
        Ok(Self {
            namespace: raw.namespace.or(inner.0),
            slug: raw
                .slug
                .or(raw.bundle_slug)
                .or(raw.bundle_slug_snake)
                .or(inner.1),
            version: raw.version.or(inner.2),
            info: Info {
                bundle_id: raw.bundle_id.or(raw.bundle_id_snake).unwrap_or_default(),
                version_id: raw.version_id.or(raw.version_id_snake).unwrap_or_default(),
                name: raw.name.unwrap_or_default(),
                description: raw.description,
                source_type: raw
                    .source_type
                    .or(raw.source_type_snake)
                    .unwrap_or_default(),
                oci_ref: raw
                    .oci_ref
                    .or(raw.oci_ref_snake)
                    .filter(|text| !text.is_empty()),
                oci_digest: raw
                    .oci_digest
                    .or(raw.oci_digest_snake)
                    .filter(|text| !text.is_empty()),
                state: match raw.state.as_deref() {
                    Some("yanked") => State::Yanked,
                    _ => State::Published,
                },
            },
            layers: layers
                .map(|layers| layers.into_iter().map(Layer::try_from).collect())
                .transpose()?,
        })
    }
}

impl TryFrom<RawLayer> for Layer {
    type Error = ManifestError;

    fn try_from(raw: RawLayer) -> Result<Self, ManifestError> {
        let path = raw.logical_path.or(raw.logical_path_snake);
        let bad = |reason| ManifestError::Layer {
            path: path.clone().unwrap_or_default().chars().take(200).collect(),
            reason,
        };
        let digest = raw
            .content_sha256
            .or(raw.content_sha256_snake)
            .ok_or_else(|| bad("no content hash"))?
            .parse()
            .map_err(|_| bad("the content hash is not SHA-256"))?;
        let size = raw
            .size_bytes
            .or(raw.size_bytes_snake)
            .or(raw.size)
            .or(raw.content_size_bytes)
            .map(|number| {
                whole(&number).ok_or_else(|| bad("the size is not a whole number of bytes"))
            })
            .transpose()?;
        Ok(Self {
            digest,
            size,
            asset_type: raw.asset_type.or(raw.asset_type_snake).unwrap_or_default(),
            asset_id: raw
                .asset_id
                .or(raw.asset_id_snake)
                .or(raw.id)
                .unwrap_or_default(),
            media_type: raw
                .media_type
                .or(raw.media_type_snake)
                .filter(|text| !text.is_empty()),
            path: match path {
                Some(path) => path,
                None => return Err(bad("no logical path")),
            },
        })
    }
}

/// A size: a whole, non-negative number that a file offset can hold, also written as `5.0`.
fn whole(number: &serde_json::Number) -> Option<u64> {
    let value = number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        // Exact: below 2^53 every whole float is the integer it looks like.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        ((0.0..9e15).contains(&float) && float.fract() == 0.0).then_some(float as u64)
    })?;
    (value <= i64::MAX as u64).then_some(value)
}
