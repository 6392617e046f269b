//! From a selector to a version, and from a version to its list of files.

use serde::Deserialize;

use super::content::Pull;
use super::route::{self, Route, Side};
use super::{ApiSource, Trail, VersionRow, published, read};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, Info, Layer, State};
use crate::reference::{BundleId, Selector, Version, VersionRef};
use crate::source::http::{Lane, MAX_ANSWER, Response};
use crate::source::{Deadline, Published};

/// What the hub says about a bundle.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HubDetail {
    display_name: Option<String>,
    description: Option<String>,
    latest_version: Option<String>,
    versions: Option<Vec<VersionRow>>,
}

impl HubDetail {
    /// The versions. A deprecated one is not a yanked one, and the hub does not tell those apart.
    pub(super) fn versions(self) -> Vec<Published> {
        let mut versions: Vec<Published> = self
            .versions
            .into_iter()
            .flatten()
            .filter_map(published)
            .collect();
        if let Some(Ok(latest)) = self.latest_version.map(|text| text.parse::<Version>())
            && !versions.iter().any(|known| known.version == latest)
        {
            versions.push(Published {
                version: latest,
                state: State::Published,
                oci_digest: None,
            });
        }
        versions
    }
}

/// A file as the hub lists it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HubAsset {
    id: Option<String>,
    asset_type: Option<String>,
    logical_path: String,
    content_sha256: String,
    size_bytes: Option<u64>,
    media_type: Option<String>,
}

impl HubAsset {
    fn into_layer(self) -> Option<Layer> {
        Some(Layer {
            digest: self.content_sha256.parse().ok()?,
            path: self.logical_path,
            size: self.size_bytes,
            asset_type: self.asset_type.unwrap_or_default(),
            asset_id: self.id.unwrap_or_default(),
            media_type: self.media_type.filter(|text| !text.is_empty()),
        })
    }
}

/// What is to be resolved.
#[derive(Clone, Copy)]
struct Question<'a> {
    bundle: &'a BundleId,
    selector: &'a Selector,
    what: &'a str,
    deadline: Deadline,
}

/// Reads a document and checks that it is about what was asked for.
fn checked(
    response: &Response,
    what: &str,
    bundle: &BundleId,
    selector: &Selector,
) -> Result<Document> {
    let mut document =
        Document::parse(&response.body).map_err(|error| response.malformed(what, error))?;
    for (found, wanted) in [
        (&document.namespace, bundle.namespace.as_str()),
        (&document.slug, bundle.slug.as_str()),
    ] {
        if let Some(found) = found.as_deref().filter(|found| *found != wanted) {
            return Err(response.malformed(what, format!("it is about {found:?}")));
        }
    }
    let version: Version = match (&document.version, selector) {
        (Some(text), _) => text
            .parse()
            .map_err(|error| response.malformed(what, error))?,
        (None, Selector::Version(asked)) => asked.clone(),
        (None, _) => return Err(response.malformed(what, "it names no version")),
    };
    match selector {
        Selector::Version(asked) if *asked != version => {
            return Err(response.malformed(what, format!("it is about version {version}")));
        }
        Selector::Digest(asked) => {
            let found = document.info.oci_digest.as_deref();
            if found.and_then(|text| text.parse::<Digest>().ok()) != Some(*asked) {
                let found = found.unwrap_or("none");
                return Err(response.malformed(what, format!("its digest is {found}")));
            }
        }
        _ => {}
    }
    document.version = Some(version.as_str().to_owned());
    Ok(document)
}

impl ApiSource {
    /// The document that `selector` leads to, by the first route that has one.
    pub(super) async fn find(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        what: &str,
        deadline: Deadline,
    ) -> Result<Document> {
        let has_key = self.has_key(what, deadline).await?;
        let mut trail = Trail::default();
        let question = Question {
            bundle,
            selector,
            what,
            deadline,
        };
        let [first, second] = Side::order(has_key);
        if let Some(document) = self.resolved(first, question, &mut trail).await? {
            return Ok(document);
        }
        if has_key && let Some(document) = self.resolved(second, question, &mut trail).await? {
            return Ok(document);
        }
        // Tags, ranges and digests mean nothing to the other routes.
        let asked = match selector {
            Selector::Version(version) => Some(version),
            _ => None,
        };
        if (asked.is_some() || *selector == Selector::Latest)
            && let Some(document) = self
                .put_together(bundle, asked, what, &mut trail, deadline)
                .await?
        {
            return Ok(document);
        }
        // Some registries let everybody read here.
        if !has_key && let Some(document) = self.resolved(second, question, &mut trail).await? {
            return Ok(document);
        }
        Err(trail.end(what))
    }

    async fn resolved(
        &self,
        side: Side,
        question: Question<'_>,
        trail: &mut Trail,
    ) -> Result<Option<Document>> {
        let Question {
            bundle,
            selector,
            what,
            deadline,
        } = question;
        let mut spellings = route::spellings(selector).into_iter().peekable();
        while let Some(query) = spellings.next() {
            let query = query.as_ref().map(|(name, value)| (*name, value.as_str()));
            let route = side.resolve(bundle, query);
            let response = self.ask(&route, what, MAX_ANSWER, deadline).await?;
            if response.status.is_success() {
                let (bundle, selector) = (bundle.clone(), selector.clone());
                return read(response, what, move |response, what| {
                    checked(response, what, &bundle, &selector)
                })
                .await
                .map(Some);
            }
            let misread = matches!(response.status.as_u16(), 400 | 404 | 422);
            if !misread || spellings.peek().is_none() {
                trail.pass(&response, what)?;
                break;
            }
        }
        Ok(None)
    }

    /// Puts a document together from the hub's parts, or from the content itself.
    async fn put_together(
        &self,
        bundle: &BundleId,
        asked: Option<&Version>,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<Document>> {
        let detail = self.hub_detail(bundle, what, trail, deadline).await?;
        let latest = detail
            .as_ref()
            .and_then(|detail| detail.latest_version.as_deref()?.parse().ok());
        let Some(version) = asked.cloned().or(latest) else {
            return Ok(None);
        };
        let id = VersionRef {
            bundle: bundle.clone(),
            version,
        };
        if let Some(detail) = detail
            && let Some(layers) = self.hub_assets(&id, what, trail, deadline).await?
        {
            let info = Info {
                name: detail.display_name.unwrap_or_default(),
                description: detail.description,
                ..Info::default()
            };
            return Ok(Some(document(&id, info, layers)));
        }
        self.hashed(&id, what, trail, deadline).await
    }

    pub(super) async fn hub_detail(
        &self,
        bundle: &BundleId,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<HubDetail>> {
        self.ask_json(&Route::hub_detail(bundle), what, trail, deadline)
            .await
    }

    /// The hub's list of files. A version has at least one, so an empty list is no list.
    async fn hub_assets(
        &self,
        id: &VersionRef,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<Vec<Layer>>> {
        let route = Route::hub_assets(&id.bundle, &id.version);
        let assets: Option<Vec<HubAsset>> = self.pages(&route, what, trail, deadline).await?;
        let Some(assets) = assets.filter(|assets| !assets.is_empty()) else {
            return Ok(None);
        };
        let layers: Option<Vec<Layer>> = assets.into_iter().map(HubAsset::into_layer).collect();
        match layers {
            Some(layers) => Ok(Some(layers)),
            None => Err(self.malformed(what, "a file's hash is not SHA-256")),
        }
    }

    /// A document whose hashes are computed from the content that the hub serves at the moment:
    /// trust on first use. Whoever keeps it must refuse other content for the same version later.
    async fn hashed(
        &self,
        id: &VersionRef,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<Document>> {
        let route = Route {
            lane: Lane::Names,
            ..Side::Hub.pull(id)
        };
        let pull: Option<Pull> = self.ask_json(&route, what, trail, deadline).await?;
        let Some(pull) = pull else {
            return Ok(None);
        };
        pull.check(id)
            .map_err(|reason| self.malformed(what, &reason))?;
        let mut layers = Vec::with_capacity(pull.manifest.len());
        for asset in pull.manifest {
            // A list without this file would be taken for the whole version.
            let Some(text) = asset.content_text else {
                return Err(Error::Unreachable {
                    origin: self.base.clone(),
                    reason: format!("{what} has a file without content at the moment"),
                });
            };
            layers.push(Layer {
                path: asset.logical_path,
                digest: Digest::of(text.as_bytes()),
                size: Some(text.len() as u64),
                asset_type: asset.asset_type.unwrap_or_default(),
                asset_id: String::new(),
                media_type: asset.media_type.filter(|text| !text.is_empty()),
            });
        }
        let info = Info {
            name: pull.name.unwrap_or_default(),
            description: pull.description,
            ..Info::default()
        };
        Ok(Some(document(id, info, layers)))
    }

    /// The list of files of a version whose resolve answer had none.
    pub(super) async fn layers(
        &self,
        id: &VersionRef,
        what: &str,
        deadline: Deadline,
    ) -> Result<Vec<Layer>> {
        let has_key = self.has_key(what, deadline).await?;
        let mut trail = Trail::default();
        if has_key && let Some(layers) = self.detailed(id, what, &mut trail, deadline).await? {
            return Ok(layers);
        }
        if let Some(layers) = self.hub_assets(id, what, &mut trail, deadline).await? {
            return Ok(layers);
        }
        let hashed = self.hashed(id, what, &mut trail, deadline).await?;
        if let Some(layers) = hashed.and_then(|document| document.layers) {
            return Ok(layers);
        }
        if !has_key && let Some(layers) = self.detailed(id, what, &mut trail, deadline).await? {
            return Ok(layers);
        }
        // The version exists, or nobody would ask for its files: this is not absence.
        Err(self.malformed(what, "no route has its list of files"))
    }

    async fn detailed(
        &self,
        id: &VersionRef,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<Vec<Layer>>> {
        let response = self
            .ask(&Route::version(id), what, MAX_ANSWER, deadline)
            .await?;
        if !response.status.is_success() {
            return trail.pass(&response, what).map(|()| None);
        }
        let (bundle, selector) = (id.bundle.clone(), Selector::Version(id.version.clone()));
        let document = read(response, what, move |response, what| {
            checked(response, what, &bundle, &selector)
        })
        .await?;
        Ok(document.layers)
    }

    pub(super) fn malformed(&self, what: &str, reason: &str) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            origin: self.base.clone(),
            reason: reason.to_owned(),
        }
    }
}

fn document(id: &VersionRef, info: Info, layers: Vec<Layer>) -> Document {
    Document {
        namespace: Some(id.bundle.namespace.as_str().to_owned()),
        slug: Some(id.bundle.slug.as_str().to_owned()),
        version: Some(id.version.as_str().to_owned()),
        info,
        layers: Some(layers),
    }
}
