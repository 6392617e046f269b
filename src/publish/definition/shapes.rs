//! The two shapes of a definition, each read as its own type and turned into the one that both mean.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::lines::Place;
use super::{Definition, Draft, Listed};
use crate::manifest::type_of_path;
use crate::publish::{Problem, known_type};
use crate::reference::{BundleId, InvalidReference, Version, VersionRef};

/// The v1alpha1 schema. Nothing is required here, so that all that is missing can be told at once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    /// Not in the schema, but in its documentation: `bundle`.
    kind: Option<String>,
    namespace: Option<String>,
    slug: Option<String>,
    version: Option<String>,
    name: Option<String>,
    description: Option<String>,
    visibility: Option<String>,
    keywords: Option<Vec<String>>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    homepage: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    assets: Option<Vec<SchemaAsset>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaAsset {
    id: Option<String>,
    src: Option<String>,
    kind: Option<String>,
    media_type: Option<String>,
}

/// All that the schema knows, at the top and of an asset.
const SCHEMA_KEYS: [&str; 15] = [
    "kind",
    "namespace",
    "slug",
    "version",
    "name",
    "description",
    "visibility",
    "keywords",
    "readme",
    "license",
    "licenseFile",
    "repository",
    "homepage",
    "annotations",
    "assets",
];
const ASSET_KEYS: [&str; 4] = ["id", "src", "kind", "mediaType"];

/// The shape of the public examples.
#[derive(Deserialize)]
struct Example {
    name: Option<String>,
    version: Option<String>,
    description: Option<String>,
    visibility: Option<String>,
    keywords: Option<Vec<String>>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    homepage: Option<String>,
    assets: Option<Vec<ExampleAsset>>,
}

#[derive(Deserialize)]
struct ExampleAsset {
    logical_path: Option<String>,
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

/// Reads a definition of whichever shape; what is wrong with it is noted in `draft`.
///
/// # Errors
///
/// When it is not of the types that its shape has.
pub(super) fn define(text: &str, draft: &mut Draft) -> Result<Definition, serde_saphyr::Error> {
    let is_example = serde_saphyr::from_str::<Probe>(text).is_ok_and(|probe| {
        probe.namespace.is_none()
            && probe.slug.is_none()
            && probe.name.is_some_and(|name| name.contains('/'))
    });
    if is_example {
        serde_saphyr::from_str::<Example>(text).map(|example| example.define(draft))
    } else {
        draft.unknown_keys();
        serde_saphyr::from_str::<Schema>(text).map(|schema| schema.define(draft))
    }
}

impl Schema {
    fn define(self, draft: &mut Draft) -> Definition {
        if let Some(kind) = self.kind.filter(|kind| kind != "bundle") {
            draft.wrong(
                Place::Key("kind"),
                format!("kind is {kind:?}, not \"bundle\""),
            );
        }
        let namespace = draft.schema_name(Place::Key("namespace"), self.namespace, 100);
        let slug = draft.schema_name(Place::Key("slug"), self.slug, 100);
        let bundle = namespace
            .zip(slug)
            .and_then(|(namespace, slug)| format!("{namespace}/{slug}").parse().ok());
        let version = draft.version(self.version);
        let mut ids = HashSet::new();
        let mut assets = Vec::new();
        if self.assets.is_none() {
            draft.wrong(Place::Key("assets"), "assets is missing");
        }
        for (index, asset) in self.assets.into_iter().flatten().enumerate() {
            let id = draft.schema_name(Place::Asset(index, "id"), asset.id, 64);
            let place = Place::Asset(index, "src");
            let path = draft.required(place, asset.src);
            let asset_type = match asset.kind.as_deref() {
                None => type_of_path(path.as_deref().unwrap_or_default()),
                Some(kind @ ("skill" | "agent" | "prompt" | "tool" | "config")) => known_type(kind),
                Some(kind) => {
                    let reason =
                        format!("asset kind {kind:?} is not skill, agent, prompt, tool or config");
                    draft.wrong(Place::Asset(index, "kind"), reason);
                    known_type(kind)
                }
            };
            if let Some(id) = id
                && let Some(id) = ids.replace(id)
            {
                let reason = format!("asset id {id:?} is listed twice");
                draft.wrong(Place::Asset(index, "id"), reason);
            }
            assets.extend(path.map(|path| Listed {
                path,
                asset_type,
                media_type: asset.media_type,
                place,
            }));
        }
        Definition {
            reference: reference(bundle, version),
            name: draft
                .required(Place::Key("name"), self.name)
                .unwrap_or_default(),
            description: self.description,
            visibility: draft.visibility(self.visibility.as_deref()),
            keywords: self.keywords.unwrap_or_default(),
            readme: self.readme,
            license: self.license,
            license_file: self.license_file.map(|path| (path, "licenseFile")),
            repository: self.repository,
            homepage: self.homepage,
            annotations: self.annotations.unwrap_or_default(),
            assets,
        }
    }
}

impl Example {
    fn define(self, draft: &mut Draft) -> Definition {
        let name = self.name.unwrap_or_default();
        let bundle = draft.bundle(Place::Key("name"), &name);
        let version = draft.version(self.version);
        if self.assets.is_none() {
            draft.wrong(Place::Key("assets"), "assets is missing");
        }
        let mut assets = Vec::new();
        for (index, asset) in self.assets.into_iter().flatten().enumerate() {
            let place = Place::Asset(index, "logical_path");
            assets.extend(
                draft
                    .required(place, asset.logical_path)
                    .map(|path| Listed {
                        asset_type: match asset.asset_type.as_deref() {
                            Some(kind) => known_type(kind),
                            None => type_of_path(&path),
                        },
                        path,
                        media_type: asset.media_type,
                        place,
                    }),
            );
        }
        Definition {
            name: bundle
                .as_ref()
                .map_or(name, |bundle| bundle.slug.to_string()),
            reference: reference(bundle, version),
            // Written as folded blocks, which end with a line break.
            description: self.description.map(|text| text.trim().to_owned()),
            visibility: draft.visibility(self.visibility.as_deref()),
            keywords: self.keywords.unwrap_or_default(),
            readme: self.readme,
            license: self.license,
            license_file: self.license_file.map(|path| (path, "license_file")),
            repository: self.repository,
            homepage: self.homepage,
            annotations: BTreeMap::new(),
            assets,
        }
    }
}

impl Draft {
    /// Keys that the schema does not have.
    fn unknown_keys(&mut self) {
        let unknown = self.lines.other_than(&SCHEMA_KEYS, &ASSET_KEYS);
        for (line, key) in unknown {
            self.problems.push(Problem {
                line: Some(line),
                reason: format!("unknown key `{key}`"),
                hint: None,
            });
        }
    }

    fn bundle(&mut self, place: Place, text: &str) -> Option<BundleId> {
        text.parse()
            .map_err(|error: InvalidReference| self.wrong(place, error.to_string()))
            .ok()
    }

    /// A lower-case name, as the schema wants it.
    fn schema_name(&mut self, place: Place, text: Option<String>, most: usize) -> Option<String> {
        let text = self.required(place, text)?;
        if !is_schema_name(&text, most) {
            let name = place.name();
            self.wrong(
                place,
                format!(
                    "{name} {text:?} is not lower-case letters, digits and inner hyphens (at most {most})"
                ),
            );
            return None;
        }
        Some(text)
    }
}

fn reference(bundle: Option<BundleId>, version: Option<Version>) -> Option<VersionRef> {
    let (bundle, version) = bundle.zip(version)?;
    Some(VersionRef { bundle, version })
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
