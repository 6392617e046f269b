//! A version as an OCI artifact: the read side of the Distribution API over the same directory.
//!
//! Nothing of it is stored: manifest and config follow from the publish manifest, byte for byte the
//! same each time and in every registry that holds the same version (`publish::artifact`), so its
//! digest is an address.
//!
//! A blob is served only under a bundle that has it: knowing a digest opens no private bundle. Tags
//! are the versions, with `_` for `+` (which OCI does not allow), and the bundle's tags and `latest`.

use std::collections::BTreeMap;

use axum::response::Response;
use http::{Method, StatusCode, header};
use serde_json::json;

use super::Registry;
use super::routes::{Caller, Request, empty, respond};
use super::storage::{Listed, Stored};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::publish::artifact::{Artifact, File};
use crate::reference::{BundleId, Selector, Version};
use crate::source::oci::model::{BUNDLE_CONFIG, IMAGE_MANIFEST};
pub(super) use crate::source::oci::reference::tag_of;

/// The artifact of a version in the registry's directory.
pub(super) fn image_of(stored: &Stored) -> Artifact {
    let files = stored.assets.iter().map(|asset| File {
        path: &asset.logical_path,
        asset_type: &asset.asset_type,
        sha256: asset.content_sha256.clone(),
        size: asset.size_bytes,
    });
    let bundle = format!("{}/{}", stored.namespace, stored.bundle_slug);
    Artifact::new(&bundle, &stored.version, files, BTreeMap::new())
}

/// What is asked for below `/v2/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OciRoute {
    Ping,
    Catalog,
    Tags(BundleId),
    Manifest(BundleId, String),
    Blob(BundleId, String),
}

impl OciRoute {
    /// `rest` are the path's segments after `v2`.
    pub(super) fn parse(rest: &[String]) -> Option<Self> {
        let bundle = |namespace: &str, slug: &str| {
            Some(BundleId {
                namespace: namespace.parse().ok()?,
                slug: slug.parse().ok()?,
            })
        };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest[..] {
            [] | [""] => Some(Self::Ping),
            ["_catalog"] => Some(Self::Catalog),
            [ns, slug, "tags", "list"] => Some(Self::Tags(bundle(ns, slug)?)),
            [ns, slug, "manifests", name] => {
                Some(Self::Manifest(bundle(ns, slug)?, name.to_owned()))
            }
            [ns, slug, "blobs", digest] => Some(Self::Blob(bundle(ns, slug)?, digest.to_owned())),
            _ => None,
        }
    }
}

/// Answers a request below `/v2/`.
pub(super) fn answer(registry: &Registry, request: &Request, route: OciRoute) -> Result<Response> {
    // Clients learn from the ping whether they need credentials at all.
    let refused = request.caller == Caller::Rejected
        || matches!(route, OciRoute::Ping) && request.caller == Caller::Anonymous;
    if refused && !registry.tokens.is_empty() {
        return Ok(unauthorized());
    }
    let found = match &route {
        OciRoute::Ping => Some(respond(StatusCode::OK, "application/json", b"{}".to_vec())),
        OciRoute::Catalog => Some(catalog(registry, request)?),
        OciRoute::Tags(bundle) => tags(registry, request, bundle)?,
        OciRoute::Manifest(bundle, name) => manifest(registry, request, bundle, name)?,
        OciRoute::Blob(bundle, digest) => blob(registry, request, bundle, digest)?,
    };
    let mut response = found.unwrap_or_else(|| match (&route, request.caller) {
        // Absent and hidden look alike; with credentials the answer may change.
        (_, Caller::Anonymous) if !registry.tokens.is_empty() => unauthorized(),
        (OciRoute::Blob(..), _) => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown"),
        (OciRoute::Manifest(..), _) => error(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            "manifest unknown",
        ),
        _ => error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository unknown"),
    });
    response.headers_mut().insert(
        "docker-distribution-api-version",
        header::HeaderValue::from_static("registry/2.0"),
    );
    Ok(response)
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = json!({ "errors": [{ "code": code, "message": message }] });
    respond(status, "application/json", body.to_string().into_bytes())
}

/// The Distribution API's error, for requests that are refused before they get here.
pub(super) fn unsupported() -> Response {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        "this registry is read-only",
    )
}

fn unauthorized() -> Response {
    let mut response = error(
        StatusCode::UNAUTHORIZED,
        "UNAUTHORIZED",
        "authentication required",
    );
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        header::HeaderValue::from_static("Basic realm=\"musher registry\""),
    );
    response
}

fn visible_versions(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
) -> Result<Vec<Listed>> {
    let mut versions = registry.storage.versions(bundle)?.versions;
    versions.retain(|listed| request.may_see(&listed.release));
    Ok(versions)
}

/// One page of names after `last`, at most `n`, and a link to the next.
fn page(request: &Request, mut names: Vec<String>, path: &str) -> (Vec<String>, Option<String>) {
    names.sort_unstable();
    names.dedup();
    if let Some(last) = request.query("last") {
        names.retain(|name| name.as_str() > last);
    }
    let n = request
        .query("n")
        .and_then(|n| n.parse::<usize>().ok())
        .unwrap_or(1000)
        .min(1000);
    let mut link = None;
    if names.len() > n {
        names.truncate(n);
        if let Some(last) = names.last() {
            let last = super::routes::encode(last);
            link = Some(format!("<{path}?n={n}&last={last}>; rel=\"next\""));
        }
    }
    (names, link)
}

fn listing(body: &serde_json::Value, link: Option<String>) -> Response {
    let mut response = respond(
        StatusCode::OK,
        "application/json",
        body.to_string().into_bytes(),
    );
    if let Some(link) = link.and_then(|link| link.parse().ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

fn catalog(registry: &Registry, request: &Request) -> Result<Response> {
    let names = registry
        .storage
        .list()?
        .versions
        .iter()
        .filter(|listed| request.may_see(&listed.release))
        .map(|listed| listed.release.reference.bundle.to_string())
        .collect();
    let (names, link) = page(request, names, "/v2/_catalog");
    Ok(listing(&json!({ "repositories": names }), link))
}

fn tags(registry: &Registry, request: &Request, bundle: &BundleId) -> Result<Option<Response>> {
    let versions = visible_versions(registry, request, bundle)?;
    if versions.is_empty() {
        return Ok(None);
    }
    let offered = |version: &Version| {
        versions
            .iter()
            .any(|listed| listed.release.reference.version == *version && !listed.state.is_yanked())
    };
    let mut names: Vec<String> = versions
        .iter()
        .map(|listed| &listed.release.reference.version)
        .filter(|version| offered(version))
        .map(tag_of)
        .collect();
    if !names.is_empty() {
        names.push("latest".to_owned());
    }
    let tags = registry.storage.tags(bundle);
    names.extend(
        tags.into_iter()
            .filter(|(_, version)| offered(version))
            .map(|(tag, _)| tag),
    );
    let (names, link) = page(request, names, &format!("/v2/{bundle}/tags/list"));
    let body = json!({ "name": bundle.to_string(), "tags": names });
    Ok(Some(listing(&body, link)))
}

fn manifest(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    name: &str,
) -> Result<Option<Response>> {
    let visible = |release: &super::storage::Release| request.may_see(release);
    let choose = |selector: &Selector| registry.storage.choose(bundle, selector, visible);
    let found = match name.parse::<Selector>() {
        // A range is not a tag. `1.2.0-a_b` is: `1.2.0-a+b` cannot be spelt otherwise.
        Ok(Selector::Range { .. }) | Err(_) => None,
        Ok(selector) => choose(&selector)?,
    };
    let found = match found {
        None if name.contains('_') => {
            let versions = visible_versions(registry, request, bundle)?;
            versions
                .into_iter()
                .find(|listed| tag_of(&listed.release.reference.version) == name)
        }
        found => found,
    };
    Ok(found.map(|listed| {
        let image = listed.release.image();
        let mut response = respond(StatusCode::OK, IMAGE_MANIFEST, image.manifest().to_vec());
        digest_headers(&mut response, image.digest());
        response
    }))
}

fn blob(
    registry: &Registry,
    request: &Request,
    bundle: &BundleId,
    digest: &str,
) -> Result<Option<Response>> {
    let Ok(digest) = digest.parse::<Digest>() else {
        return Ok(Some(error(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "not a SHA-256 digest",
        )));
    };
    for listed in visible_versions(registry, request, bundle)? {
        let release = &listed.release;
        let (kind, bytes) = if release.has_blob(digest) {
            match registry.storage.blob(digest) {
                Ok(bytes) => ("application/octet-stream", bytes),
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        } else if release.image().config_digest() == digest {
            (BUNDLE_CONFIG, release.image().config().clone())
        } else {
            continue;
        };
        let mut response = match request.range(bytes.len()) {
            None => respond(StatusCode::OK, kind, bytes),
            Some(Some(range)) => {
                let about = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
                let mut part = respond(StatusCode::PARTIAL_CONTENT, kind, bytes.slice(range));
                if let Ok(about) = about.parse() {
                    part.headers_mut().insert(header::CONTENT_RANGE, about);
                }
                part
            }
            Some(None) => {
                let mut none = empty(StatusCode::RANGE_NOT_SATISFIABLE);
                if let Ok(about) = format!("bytes */{}", bytes.len()).parse() {
                    none.headers_mut().insert(header::CONTENT_RANGE, about);
                }
                none
            }
        };
        response.headers_mut().insert(
            header::ACCEPT_RANGES,
            header::HeaderValue::from_static("bytes"),
        );
        digest_headers(&mut response, digest);
        return Ok(Some(response));
    }
    Ok(None)
}

fn digest_headers(response: &mut Response, digest: Digest) {
    if let Ok(value) = digest.to_string().parse::<header::HeaderValue>() {
        response
            .headers_mut()
            .insert("docker-content-digest", value);
    }
    if let Ok(value) = format!("\"{digest}\"").parse() {
        response.headers_mut().insert(header::ETAG, value);
    }
}

/// Whether a method is one that this side answers.
pub(super) fn allows(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}
