//! The hub's own routes: searching, and looking at bundles without a key.
//!
//! What this registry does not have (stars, downloads, deprecation) is answered as none of it, in
//! the types that clients expect.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::namespaces::View;
use super::{Problem, Request, date};
use crate::reference::{BundleId, Namespace};
use crate::registry::Registry;

fn summary(view: &View) -> Value {
    let stored = &view.newest().release.stored;
    let types: BTreeSet<&str> = stored
        .assets
        .iter()
        .map(|asset| asset.asset_type.as_str())
        .collect();
    json!({
        "id": stored.bundle_id,
        "publisher": {
            "handle": stored.namespace,
            "displayName": stored.namespace,
            "trustTier": "community",
            "avatarUrl": null,
        },
        "slug": stored.bundle_slug,
        "displayName": stored.name,
        "summary": stored.description,
        "assetTypes": types,
        "tags": stored.keywords,
        "capabilities": [],
        "license": stored.license,
        "latestVersion": view.latest.as_ref().map(|listed| &listed.release.stored.version),
        "starsCount": 0,
        "downloadsTotal": 0,
        "downloads30d": 0,
        "createdAt": date(view.created()),
        "updatedAt": date(view.updated()),
    })
}

/// Everything that the caller may see and that is not withdrawn as a whole.
fn offered(
    registry: &Registry,
    request: &Request,
    namespaces: &[Namespace],
) -> Result<Vec<(BundleId, View)>, Problem> {
    let mut found = Vec::new();
    for namespace in namespaces {
        for slug in registry.storage.bundles(namespace)? {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug,
            };
            if let Some(view) = View::of(registry, request, &bundle)?
                && view.latest.is_some()
            {
                found.push((bundle, view));
            }
        }
    }
    Ok(found)
}

fn page(request: &Request, found: &[(BundleId, View)]) -> Result<Value, Problem> {
    let keys: Vec<&BundleId> = found.iter().map(|(bundle, _)| bundle).collect();
    let mut rows = found.iter();
    request.page(&keys, |key| {
        let row = rows.find(|(bundle, _)| bundle == *key);
        Ok(row.map(|(_, view)| summary(view)))
    })
}

pub(super) fn search(registry: &Registry, request: &Request) -> Result<Value, Problem> {
    let mut found = offered(registry, request, &registry.storage.namespaces()?)?;
    if let Some(query) = request.query("q") {
        let words: Vec<String> = query.split_whitespace().map(str::to_lowercase).collect();
        found.retain(|(bundle, view)| {
            let stored = &view.newest().release.stored;
            let text = [
                bundle.to_string(),
                stored.name.clone(),
                stored.description.clone().unwrap_or_default(),
                stored.keywords.join(" "),
            ]
            .join(" ")
            .to_lowercase();
            words.iter().all(|word| text.contains(word.as_str()))
        });
    }
    if let Some(kind) = request
        .query("type")
        .or_else(|| request.query("asset_type"))
    {
        found.retain(|(_, view)| {
            let assets = &view.newest().release.stored.assets;
            assets.iter().any(|asset| asset.asset_type == kind)
        });
    }
    if request.query("sort") == Some("recent") {
        found.sort_by_key(|(_, view)| Reverse(view.updated()));
    }
    page(request, &found)
}

pub(super) fn publisher(
    registry: &Registry,
    request: &Request,
    handle: &Namespace,
) -> Result<Value, Problem> {
    let found = offered(registry, request, std::slice::from_ref(handle))?;
    if found.is_empty() {
        return Err(Problem::not_found(format!("publisher {handle}")));
    }
    page(request, &found)
}

pub(super) fn bundle(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Value, Problem> {
    let view = View::of(registry, request, bundle)?.ok_or_else(|| Problem::not_found(bundle))?;
    let stored = &view.newest().release.stored;
    let versions: Vec<Value> = view
        .versions
        .iter()
        .filter(|listed| !listed.state.is_yanked())
        .map(|listed| {
            json!({
                "version": listed.release.stored.version,
                "publishedAt": date(listed.release.stored.created_at),
                "isDeprecated": false,
                "deprecatedMessage": null,
            })
        })
        .collect();
    let mut body = summary(&view);
    body["description"] = json!(stored.description);
    body["repositoryUrl"] = json!(stored.repository);
    body["homepageUrl"] = json!(stored.homepage);
    body["readmeContent"] = json!(stored.readme_content);
    body["readmeFormat"] = json!(stored.readme_format);
    body["isDeprecated"] = json!(false);
    body["loadCommand"] = json!(format!("musherfs load {bundle}"));
    body["installCommand"] = json!(format!("musherfs load {bundle}"));
    body["versions"] = json!(versions);
    Ok(body)
}

pub(super) fn assets(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Value, Problem> {
    let selector = request.selector()?;
    let listed = registry
        .storage
        .choose(bundle, &selector, |release| request.may_see(release))?
        .ok_or_else(|| Problem::not_found(format!("{bundle}@{selector}")))?;
    let data: Vec<Value> = listed
        .release
        .stored
        .assets
        .iter()
        .map(|asset| {
            json!({
                "id": asset.asset_id,
                "assetType": asset.asset_type,
                "logicalPath": asset.logical_path,
                "contentSha256": asset.content_sha256,
                "sizeBytes": asset.size_bytes,
            })
        })
        .collect();
    Ok(json!({ "data": data }))
}
