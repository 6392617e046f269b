//! `musher.yaml`: what a publisher writes next to the files.
//!
//! Two shapes are in use, told apart by their first keys.
//!
//! ```yaml
//! # v1alpha1                          # the shape of the public examples
//! namespace: acme                     name: acme/code-review
//! slug: code-review                   version: 1.2.0
//! version: 1.2.0                      assets:
//! name: Code review                     - logical_path: prompts/review.md
//! assets:                                 asset_type: prompt
//!   - id: review
//!     src: prompts/review.md
//! ```
//!
//! The first has a published schema and is held to it: no unknown keys, lower-case names, unique
//! ids, and description, readme and license for a public bundle. The second has none: unknown keys
//! pass. In both an asset's path is where its file lies, and a file may not be reached through a
//! link that leaves the directory.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Asset, MAX_ASSET, Publication, PublishError, Visibility, inferred_type, known_type};
use crate::reference::{BundleId, LogicalPath, Version, VersionRef};

/// The names a definition may have, in the order they are looked for.
const NAMES: [&str; 2] = ["musher.yaml", "musher.yml"];

/// The v1alpha1 schema.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Schema {
    /// Not in the schema, but in its documentation: `bundle`.
    kind: Option<String>,
    namespace: String,
    slug: String,
    version: String,
    name: String,
    description: Option<String>,
    visibility: Option<String>,
    #[serde(default)]
    keywords: Vec<String>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    homepage: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    assets: Vec<SchemaAsset>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SchemaAsset {
    id: String,
    src: String,
    kind: Option<String>,
    media_type: Option<String>,
}

/// The shape of the public examples.
#[derive(Deserialize)]
struct Example {
    name: String,
    version: String,
    description: Option<String>,
    visibility: Option<String>,
    #[serde(default)]
    keywords: Vec<String>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    homepage: Option<String>,
    assets: Vec<ExampleAsset>,
}

#[derive(Deserialize)]
struct ExampleAsset {
    logical_path: String,
    asset_type: Option<String>,
    media_type: Option<String>,
}

/// Just enough to tell the shapes apart.
#[derive(Deserialize)]
struct Probe {
    namespace: Option<serde::de::IgnoredAny>,
    slug: Option<serde::de::IgnoredAny>,
    name: Option<String>,
}

/// Either shape, validated as far as it can be without looking at the files.
struct Definition {
    reference: VersionRef,
    name: String,
    description: Option<String>,
    visibility: Visibility,
    keywords: Vec<String>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    homepage: Option<String>,
    annotations: BTreeMap<String, String>,
    /// Path, type and media type.
    assets: Vec<(String, &'static str, Option<String>)>,
}

impl Publication {
    /// Reads the bundle in `dir`: its `musher.yaml` or `musher.yml` and every file that it lists.
    ///
    /// # Errors
    ///
    /// [`PublishError`]: a definition that breaks its schema, a file that is missing, unreadable,
    /// too large or outside of `dir`, or a rule of [`Publication::check`].
    pub fn read(dir: &Path) -> Result<Self, PublishError> {
        let path = NAMES
            .iter()
            .map(|name| dir.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| PublishError::NoDefinition {
                dir: dir.to_owned(),
            })?;
        let unreadable = |source| PublishError::Unreadable {
            path: path.clone(),
            source,
        };
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let definition = parse(&text).map_err(|reason| PublishError::Definition {
            path: path.clone(),
            reason,
        })?;
        let root = dir.canonicalize().map_err(unreadable)?;
        definition.load(&Root { root })
    }

    /// Reads a bundle whose files are not in a directory: `definition` is the text of its
    /// `musher.yaml`, and `file` finds a file by its path.
    ///
    /// # Errors
    ///
    /// As [`Publication::read`].
    pub fn from_parts(
        definition: &str,
        file: impl Fn(&str) -> Option<&'static [u8]>,
    ) -> Result<Self, PublishError> {
        let definition = parse(definition).map_err(|reason| PublishError::Definition {
            path: NAMES[0].into(),
            reason,
        })?;
        definition.load(&file)
    }
}

/// Where a definition's files come from.
trait Files {
    fn read(&self, path: &str) -> Result<Vec<u8>, PublishError>;
}

struct Root {
    root: PathBuf,
}

impl Files for Root {
    fn read(&self, relative: &str) -> Result<Vec<u8>, PublishError> {
        let path = self.root.join(relative);
        let unreadable = |source| PublishError::Unreadable {
            path: path.clone(),
            source,
        };
        let real = path.canonicalize().map_err(unreadable)?;
        if !real.starts_with(&self.root) {
            return Err(PublishError::Outside {
                path: relative.to_owned(),
            });
        }
        let metadata = real.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a file",
            )));
        }
        // Before reading: a mistyped path may name something huge.
        if metadata.len() > MAX_ASSET as u64 {
            return Err(PublishError::TooLarge {
                path: relative.to_owned(),
                size: metadata.len(),
            });
        }
        std::fs::read(&real).map_err(unreadable)
    }
}

impl<F: Fn(&str) -> Option<&'static [u8]>> Files for F {
    fn read(&self, path: &str) -> Result<Vec<u8>, PublishError> {
        self(path)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| PublishError::Unreadable {
                path: path.into(),
                source: io::ErrorKind::NotFound.into(),
            })
    }
}

impl Definition {
    fn load(self, files: &dyn Files) -> Result<Publication, PublishError> {
        let read = |text: &str| -> Result<(LogicalPath, Vec<u8>), PublishError> {
            let path: LogicalPath = text.parse().map_err(|source| PublishError::BadPath {
                path: text.chars().take(200).collect(),
                source,
            })?;
            let bytes = files.read(path.as_str())?;
            Ok((path, bytes))
        };
        let readme = match &self.readme {
            None => None,
            Some(path) => {
                let (path, bytes) = read(path)?;
                let text = String::from_utf8(bytes).map_err(|error| PublishError::NotText {
                    path: path.to_string(),
                    at: error.utf8_error().valid_up_to(),
                })?;
                Some(text)
            }
        };
        if let Some(path) = &self.license_file {
            read(path)?;
        }
        let assets = self
            .assets
            .into_iter()
            .map(|(path, asset_type, media_type)| {
                let (path, bytes) = read(&path)?;
                Ok(Asset {
                    path,
                    asset_type: asset_type.to_owned(),
                    media_type,
                    bytes: bytes.into(),
                })
            })
            .collect::<Result<_, PublishError>>()?;
        let publication = Publication {
            reference: self.reference,
            name: self.name,
            description: self.description,
            visibility: self.visibility,
            readme,
            license: self.license,
            keywords: self.keywords,
            repository: self.repository,
            homepage: self.homepage,
            annotations: self.annotations,
            assets,
        };
        publication.check()?;
        Ok(publication)
    }

    /// The rules that both shapes share.
    fn validate(self) -> Result<Self, String> {
        let length = |what, text: &str, most: usize| match text.chars().count() {
            0 => Err(format!("{what} is empty")),
            count if count > most => Err(format!("{what} has more than {most} characters")),
            _ => Ok(()),
        };
        length("name", &self.name, 255)?;
        if let Some(description) = &self.description
            && description.chars().count() > 1000
        {
            return Err("description has more than 1000 characters".into());
        }
        if self.keywords.len() > 20 {
            return Err("more than 20 keywords".into());
        }
        let mut seen = HashSet::new();
        for keyword in &self.keywords {
            length("a keyword", keyword, 64)?;
            if !seen.insert(keyword) {
                return Err(format!("keyword {keyword:?} is listed twice"));
            }
        }
        for (_, _, media_type) in &self.assets {
            if let Some(media_type) = media_type
                && !is_media_type(media_type)
            {
                return Err(format!("{media_type:?} is not a media type"));
            }
        }
        if self.visibility == Visibility::Public {
            let missing: Vec<&str> = [
                ("description", self.description.is_some()),
                ("readme", self.readme.is_some()),
                (
                    "license or licenseFile",
                    self.license.is_some() || self.license_file.is_some(),
                ),
            ]
            .iter()
            .filter_map(|&(what, present)| (!present).then_some(what))
            .collect();
            if !missing.is_empty() {
                return Err(format!("a public bundle needs {}", missing.join(", ")));
            }
        }
        Ok(self)
    }
}

fn parse(text: &str) -> Result<Definition, String> {
    let yaml = |error: serde_saphyr::Error| first_line(&error.to_string());
    let probe: Probe = serde_saphyr::from_str(text).map_err(yaml)?;
    let is_example = probe.namespace.is_none()
        && probe.slug.is_none()
        && probe.name.is_some_and(|name| name.contains('/'));
    if is_example {
        serde_saphyr::from_str::<Example>(text)
            .map_err(yaml)?
            .define()?
            .validate()
    } else {
        serde_saphyr::from_str::<Schema>(text)
            .map_err(yaml)?
            .define()?
            .validate()
    }
}

impl Schema {
    fn define(self) -> Result<Definition, String> {
        if let Some(kind) = self.kind.filter(|kind| kind != "bundle") {
            return Err(format!("kind is {kind:?}, not \"bundle\""));
        }
        for (what, text) in [("namespace", &self.namespace), ("slug", &self.slug)] {
            if !is_schema_name(text, 100) {
                return Err(format!(
                    "{what} {text:?} is not lower-case letters, digits and inner hyphens"
                ));
            }
        }
        let mut ids = HashSet::new();
        let mut assets = Vec::with_capacity(self.assets.len());
        for asset in self.assets {
            if !is_schema_name(&asset.id, 64) {
                return Err(format!(
                    "asset id {:?} is not lower-case letters, digits and inner hyphens (at most 64)",
                    asset.id
                ));
            }
            let asset_type = match asset.kind.as_deref() {
                None => inferred_type(&asset.src),
                Some(kind @ ("skill" | "agent" | "prompt" | "tool" | "config")) => known_type(kind),
                Some(kind) => {
                    return Err(format!(
                        "asset kind {kind:?} is not skill, agent, prompt, tool or config"
                    ));
                }
            };
            assets.push((asset.src, asset_type, asset.media_type));
            if let Some(id) = ids.replace(asset.id) {
                return Err(format!("asset id {id:?} is listed twice"));
            }
        }
        Ok(Definition {
            reference: reference(&format!("{}/{}", self.namespace, self.slug), &self.version)?,
            name: self.name,
            description: self.description,
            visibility: visibility(self.visibility.as_deref())?,
            keywords: self.keywords,
            readme: self.readme,
            license: self.license,
            license_file: self.license_file,
            repository: self.repository,
            homepage: self.homepage,
            annotations: self.annotations,
            assets,
        })
    }
}

impl Example {
    fn define(self) -> Result<Definition, String> {
        let reference = reference(&self.name, &self.version)?;
        Ok(Definition {
            name: reference.bundle.slug.to_string(),
            reference,
            // Written as folded blocks, which end with a line break.
            description: self.description.map(|text| text.trim().to_owned()),
            visibility: visibility(self.visibility.as_deref())?,
            keywords: self.keywords,
            readme: self.readme,
            license: self.license,
            license_file: self.license_file,
            repository: self.repository,
            homepage: self.homepage,
            annotations: BTreeMap::new(),
            assets: self
                .assets
                .into_iter()
                .map(|asset| {
                    let asset_type = match asset.asset_type.as_deref() {
                        Some(kind) => known_type(kind),
                        None => inferred_type(&asset.logical_path),
                    };
                    (asset.logical_path, asset_type, asset.media_type)
                })
                .collect(),
        })
    }
}

fn reference(bundle: &str, version: &str) -> Result<VersionRef, String> {
    let bundle: BundleId = bundle.parse().map_err(|error| format!("{error}"))?;
    let version: Version = version.parse().map_err(|error| format!("{error}"))?;
    Ok(VersionRef { bundle, version })
}

fn visibility(text: Option<&str>) -> Result<Visibility, String> {
    match text {
        None | Some("private") => Ok(Visibility::Private),
        Some("public") => Ok(Visibility::Public),
        Some(other) => Err(format!("visibility {other:?} is not private or public")),
    }
}

/// `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`
fn is_schema_name(text: &str, most: usize) -> bool {
    !text.is_empty()
        && text.len() <= most
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// `^[a-z]+/[a-z0-9.+-]+$`
fn is_media_type(text: &str) -> bool {
    text.split_once('/').is_some_and(|(kind, rest)| {
        !kind.is_empty()
            && kind.bytes().all(|b| b.is_ascii_lowercase())
            && !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".+-".contains(&b))
    })
}

/// The parser's messages continue with a drawing of the place.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
