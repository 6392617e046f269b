//! The namespace routes, and those of the hub that answer the same.

use serde_json::{Value, json};

use super::{Problem, Request, date, layers};
use crate::digest::Digest;
use crate::reference::{BundleId, Namespace, Selector};
use crate::registry::storage::{Listed, StoredAsset};
use crate::registry::{Registry, oci};

/// A bundle as the caller may see it.
pub(super) struct View {
    /// The versions that the caller may see, newest first; at least one.
    pub(super) versions: Vec<Listed>,
    /// The one that `latest` means; `None` if all are yanked.
    pub(super) latest: Option<Listed>,
}

impl View {
    /// `None` if the bundle does not exist for the caller.
    pub(super) fn of(
        registry: &Registry,
        request: &Request,
        bundle: &BundleId,
    ) -> Result<Option<Self>, Problem> {
        let mut versions = registry.storage.versions(bundle)?.versions;
        versions.retain(|listed| request.may_see(&listed.release));
        if versions.is_empty() {
            return Ok(None);
        }
        let offered = |listed: &&Listed| !listed.state.is_yanked();
        let latest = versions
            .iter()
            .filter(offered)
            .find(|listed| !listed.release.reference.version.is_prerelease())
            .or_else(|| versions.iter().find(offered))
            .cloned();
        Ok(Some(Self { versions, latest }))
    }

    /// The version that speaks for the bundle: its name, description and readme.
    pub(super) fn newest(&self) -> &Listed {
        // `of` makes no view without a version.
        self.latest.as_ref().unwrap_or(&self.versions[0])
    }

    /// When the first of the versions was published.
    pub(super) fn created(&self) -> jiff::Timestamp {
        let times = self.versions.iter();
        times
            .map(|listed| listed.release.stored.created_at)
            .min()
            .unwrap_or_default()
    }

    /// When something about the bundle last changed.
    pub(super) fn updated(&self) -> jiff::Timestamp {
        let times = self.versions.iter();
        times
            .map(|listed| listed.state.current.time)
            .max()
            .unwrap_or_default()
    }

    fn summary(&self) -> Value {
        let stored = &self.newest().release.stored;
        json!({
            "id": stored.bundle_id,
            "namespace": stored.namespace,
            "slug": stored.bundle_slug,
            "ref": format!("{}/{}", stored.namespace, stored.bundle_slug),
            "name": stored.name,
            "description": stored.description,
            "visibility": stored.visibility,
            "sourceType": "registry",
            "readmeFormat": stored.readme_format,
            "createdAt": date(self.created()),
            "updatedAt": date(self.updated()),
        })
    }
}

fn view(registry: &Registry, request: &Request, bundle: &BundleId) -> Result<View, Problem> {
    View::of(registry, request, bundle)?.ok_or_else(|| Problem::not_found(bundle))
}

fn choose(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    selector: &Selector,
) -> Result<Listed, Problem> {
    registry
        .storage
        .choose(bundle, selector, |release| request.may_see(release))?
        .ok_or_else(|| Problem::not_found(format!("{bundle}@{selector}")))
}

/// The version that a path segment names: exactly, or as `version=` would.
fn named(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    version: &str,
) -> Result<Listed, Problem> {
    let selector = version
        .parse()
        .map_err(|_| Problem::not_found(format!("{bundle}@{version}")))?;
    choose(registry, request, bundle, &selector)
}

pub(super) fn bundles(
    registry: &Registry,
    request: &Request,
    namespace: &Namespace,
) -> Result<Value, Problem> {
    let mut found = false;
    let slugs = registry.storage.bundles(namespace)?;
    let page = request.page(&slugs, |slug| {
        let bundle = BundleId {
            namespace: namespace.clone(),
            slug: slug.clone(),
        };
        let view = View::of(registry, request, &bundle)?;
        found |= view.is_some();
        Ok(view.map(|view| view.summary()))
    })?;
    // Empty pages exist only behind a cursor: a namespace is there because of its bundles.
    if found || request.query("cursor").is_some() {
        Ok(page)
    } else {
        Err(Problem::not_found(format!("namespace {namespace}")))
    }
}

pub(super) fn bundle(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Value, Problem> {
    let view = view(registry, request, bundle)?;
    let release = &view.newest().release;
    let mut body = view.summary();
    body["readmeContent"] = json!(release.stored.readme_content);
    body["latestVersion"] = json!(
        view.latest
            .as_ref()
            .map(|listed| &listed.release.stored.version)
    );
    body["versionCount"] = json!(view.versions.len());
    body["assetCount"] = json!(release.stored.assets.len());
    Ok(body)
}

/// `host/ns/slug:tag` if this registry knows how it is reached.
fn oci_ref(registry: &Registry, listed: &Listed) -> Option<String> {
    let reference = &listed.release.reference;
    let tag = oci::tag_of(&reference.version);
    registry
        .oci_host
        .as_ref()
        .map(|host| format!("{host}/{}:{tag}", reference.bundle))
}

pub(super) fn resolve(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Value, Problem> {
    let selector = request.selector()?;
    let listed = choose(registry, request, bundle, &selector)?;
    // Both may be given; then both must hold.
    if let (Selector::Digest(_), Some(version)) = (&selector, request.query("version")) {
        let other = named(registry, request, bundle, version)?;
        if other.release.reference != listed.release.reference {
            return Err(Problem::not_found(format!(
                "{bundle}@{version} with that digest"
            )));
        }
    }
    let stored = &listed.release.stored;
    Ok(json!({
        "bundleId": stored.bundle_id,
        "versionId": stored.version_id,
        "namespace": stored.namespace,
        "slug": stored.bundle_slug,
        "ref": bundle.to_string(),
        "version": stored.version,
        "name": stored.name,
        "description": stored.description,
        "sourceType": "registry",
        "ociRef": oci_ref(registry, &listed),
        "ociDigest": listed.release.image().digest(),
        "state": listed.state.current.state,
        "manifest": { "layers": layers(&stored.assets) },
        "isSigned": false,
        "signerType": null,
        "signedAt": null,
    }))
}

fn version_summary(registry: &Registry, listed: &Listed) -> Value {
    let stored = &listed.release.stored;
    let yank = listed.state.yank();
    json!({
        "id": stored.version_id,
        "bundleId": stored.bundle_id,
        "version": stored.version,
        "state": listed.state.current.state,
        "ociRef": oci_ref(registry, listed),
        "ociDigest": listed.release.image().digest(),
        "publishedBy": stored.published_by,
        "yankedBy": yank.and_then(|yank| yank.actor.as_deref()),
        "yankedAt": yank.map(|yank| date(yank.time)),
        "yankReason": yank.and_then(|yank| yank.reason.as_deref()),
        "createdAt": date(stored.created_at),
    })
}

pub(super) fn versions(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Value, Problem> {
    let view = view(registry, request, bundle)?;
    let keys: Vec<_> = view
        .versions
        .iter()
        .map(|listed| &listed.release.reference.version)
        .collect();
    let mut rows = view.versions.iter();
    request.page(&keys, |version| {
        // Both lists are in the same order, so this only ever moves forward.
        let row = rows.find(|listed| listed.release.reference.version == **version);
        Ok(row.map(|listed| version_summary(registry, listed)))
    })
}

pub(super) fn version(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    version: &str,
) -> Result<Value, Problem> {
    let listed = named(registry, request, bundle, version)?;
    let stored = &listed.release.stored;
    let mut body = version_summary(registry, &listed);
    body["manifest"] = json!({
        "namespace": stored.namespace,
        "bundleSlug": stored.bundle_slug,
        "version": stored.version,
        "assets": layers(&stored.assets),
    });
    Ok(body)
}

/// The text of a file.
fn text(registry: &Registry, asset: &StoredAsset) -> Result<String, Problem> {
    let unavailable = |reason: String| {
        Problem::new(
            http::StatusCode::SERVICE_UNAVAILABLE,
            "service-unavailable",
            format!("{:?}: {reason}", asset.logical_path),
        )
    };
    let digest: Digest = asset
        .content_sha256
        .parse()
        .map_err(|_| unavailable("its digest is damaged".into()))?;
    let bytes = registry.storage.blob(digest)?;
    String::from_utf8(bytes.into()).map_err(|_| unavailable("not text".into()))
}

pub(super) fn pull(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    version: &str,
) -> Result<Value, Problem> {
    let listed = named(registry, request, bundle, version)?;
    let stored = &listed.release.stored;
    let files = stored
        .assets
        .iter()
        .map(|asset| {
            Ok(json!({
                "logicalPath": asset.logical_path,
                "assetType": asset.asset_type,
                "contentText": text(registry, asset)?,
                "mediaType": asset.media_type,
            }))
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    Ok(json!({
        "namespace": stored.namespace,
        "slug": stored.bundle_slug,
        "version": stored.version,
        "name": stored.name,
        "description": stored.description,
        "manifest": files,
    }))
}

fn asset_detail(
    registry: &Registry,
    listed: &Listed,
    asset: &StoredAsset,
) -> Result<Value, Problem> {
    let stored = &listed.release.stored;
    Ok(json!({
        "id": asset.asset_id,
        "bundleId": stored.bundle_id,
        "assetType": asset.asset_type,
        "logicalPath": asset.logical_path,
        "contentSha256": asset.content_sha256,
        "contentSizeBytes": asset.size_bytes,
        "mediaType": asset.media_type,
        "createdAt": date(stored.created_at),
        "updatedAt": null,
        "contentText": text(registry, asset)?,
    }))
}

pub(super) fn asset(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    path: &str,
) -> Result<Value, Problem> {
    let listed = choose(registry, request, bundle, &request.selector()?)?;
    let asset = listed
        .release
        .stored
        .assets
        .iter()
        .find(|asset| asset.logical_path == path)
        .ok_or_else(|| Problem::not_found(format!("{} in {}", path, listed.release.reference)))?;
    asset_detail(registry, &listed, asset)
}

/// Looks through everything: the route exists for one old client, and ids are not indexed.
pub(super) fn asset_by_id(
    registry: &Registry,
    request: &Request,
    id: &str,
) -> Result<Value, Problem> {
    for listed in registry.storage.list()?.versions {
        let mut assets = listed.release.stored.assets.iter();
        if request.may_see(&listed.release)
            && let Some(asset) = assets.find(|asset| !id.is_empty() && asset.asset_id == id)
        {
            return asset_detail(registry, &listed, asset);
        }
    }
    Err(Problem::not_found(format!("asset {id}")))
}

pub(super) fn identity(registry: &Registry, request: &Request) -> Result<Value, Problem> {
    let mut namespaces = Vec::new();
    for namespace in registry.storage.namespaces()? {
        let mut visible = false;
        for slug in registry.storage.bundles(&namespace)? {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug,
            };
            visible = visible || View::of(registry, request, &bundle)?.is_some();
        }
        if visible {
            namespaces.push(json!({ "handle": namespace, "displayName": namespace }));
        }
    }
    let kind = if registry.tokens.is_empty() {
        "anonymous"
    } else {
        "api_key"
    };
    Ok(json!({
        "credentialType": kind,
        "credentialId": "",
        "credentialName": kind,
        "user": { "email": "", "fullName": "" },
        "organization": { "id": "", "name": "" },
        "namespaces": namespaces,
    }))
}
