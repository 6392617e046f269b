//! From a URL to an answer: parsing, admission and problems.
//!
//! Routes are matched by hand: `{slug}:resolve` and `{version}:pull` end a segment with a verb, and
//! an asset's path may arrive as many segments or as one with `%2F`; neither fits a router's
//! patterns. A request is parsed once into a [`Route`], then answered on a thread that may block,
//! for everything it needs is on disk.
//!
//! Every error is a problem document (`application/problem+json`) whose `type` ends with one of the
//! service's known slugs; below `/v2/` it is the Distribution API's own shape.

mod hub;
mod namespaces;
mod request;

pub(super) use request::{Caller, Request};

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Registry;
use super::oci::{self, OciRoute};
use super::storage::StoredAsset;
use crate::error::Error;
use crate::reference::{BundleId, Namespace};

/// What a request is about; for logs and for tests that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RouteKind {
    /// A namespace's or publisher's bundles.
    Bundles,
    /// One bundle.
    Bundle,
    /// Which version a name means.
    Resolve,
    /// A bundle's versions.
    Versions,
    /// One version.
    Version,
    /// All content of a version.
    Pull,
    /// The list of a version's files, without content.
    Assets,
    /// The content of one file.
    Asset,
    /// A search over all bundles.
    Search,
    /// Who the caller is.
    Identity,
    /// The OCI side, apart from the next two.
    Oci,
    /// An OCI manifest.
    OciManifest,
    /// An OCI blob.
    OciBlob,
    /// Nothing that exists.
    Unknown,
}

impl RouteKind {
    /// The kind of a request for `path` (percent-encoded, without a query).
    pub fn of(path: &str) -> Self {
        match Route::parse(path) {
            None => Self::Unknown,
            Some(route) => route.kind(),
        }
    }

    /// Whether the answer carries files' content.
    pub fn is_content(self) -> bool {
        matches!(self, Self::Pull | Self::Asset | Self::OciBlob)
    }
}

/// Which half of the API: namespace routes ask for a key, hub routes do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Namespaces,
    Hub,
}

/// A parsed URL.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Bundles(Scope, Namespace),
    Bundle(Scope, BundleId),
    Resolve(Scope, BundleId),
    Versions(BundleId),
    Version(BundleId, String),
    Pull(Scope, BundleId, String),
    Assets(BundleId),
    Asset(Scope, BundleId, String),
    Search,
    Identity,
    RunnerAsset(String),
    Oci(OciRoute),
}

impl Route {
    fn parse(path: &str) -> Option<Self> {
        let segments: Vec<String> = path
            .strip_prefix('/')?
            .split('/')
            .map(|segment| Some(percent_decode_str(segment).decode_utf8().ok()?.into_owned()))
            .collect::<Option<_>>()?;
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let id = |namespace: &str, slug: &str| {
            Some(BundleId {
                namespace: namespace.parse().ok()?,
                slug: slug.parse().ok()?,
            })
        };
        Some(match parts[..] {
            ["v2", ..] => Self::Oci(OciRoute::parse(&segments[1..])?),
            ["v1", "publisher", "me"] => Self::Identity,
            ["v1", "runner", "assets", id] => Self::RunnerAsset(id.to_owned()),
            ["v1", "hub", "bundles"] => Self::Search,
            ["v1", "hub", "publishers", handle, "bundles"] => {
                Self::Bundles(Scope::Hub, handle.parse().ok()?)
            }
            ["v1", "namespaces", ns, "bundles"] => {
                Self::Bundles(Scope::Namespaces, ns.parse().ok()?)
            }
            ["v1", "namespaces", ns, "bundles", slug, ref rest @ ..] => {
                Self::below(Scope::Namespaces, &|slug| id(ns, slug), slug, rest)?
            }
            ["v1", "hub", "bundles", ns, slug, ref rest @ ..] => {
                Self::below(Scope::Hub, &|slug| id(ns, slug), slug, rest)?
            }
            _ => return None,
        })
    }

    fn below(
        scope: Scope,
        id: &dyn Fn(&str) -> Option<BundleId>,
        slug: &str,
        rest: &[&str],
    ) -> Option<Self> {
        Some(match (scope, rest) {
            (_, []) => match slug.strip_suffix(":resolve") {
                Some(slug) => Self::Resolve(scope, id(slug)?),
                None => Self::Bundle(scope, id(slug)?),
            },
            (Scope::Namespaces, ["versions"]) => Self::Versions(id(slug)?),
            (_, ["versions", version]) => match (scope, version.strip_suffix(":pull")) {
                (_, Some(version)) => Self::Pull(scope, id(slug)?, version.to_owned()),
                (Scope::Namespaces, None) => Self::Version(id(slug)?, (*version).to_owned()),
                (Scope::Hub, None) => return None,
            },
            (Scope::Hub, ["assets"]) => Self::Assets(id(slug)?),
            (_, ["assets", path @ ..]) if !path.is_empty() => {
                Self::Asset(scope, id(slug)?, path.join("/"))
            }
            _ => return None,
        })
    }

    fn kind(&self) -> RouteKind {
        match self {
            Self::Bundles(..) => RouteKind::Bundles,
            Self::Bundle(..) => RouteKind::Bundle,
            Self::Resolve(..) => RouteKind::Resolve,
            Self::Versions(_) => RouteKind::Versions,
            Self::Version(..) => RouteKind::Version,
            Self::Pull(..) => RouteKind::Pull,
            Self::Assets(_) => RouteKind::Assets,
            Self::Asset(..) | Self::RunnerAsset(_) => RouteKind::Asset,
            Self::Search => RouteKind::Search,
            Self::Identity => RouteKind::Identity,
            Self::Oci(OciRoute::Manifest(..)) => RouteKind::OciManifest,
            Self::Oci(OciRoute::Blob(..)) => RouteKind::OciBlob,
            Self::Oci(_) => RouteKind::Oci,
        }
    }

    /// Whether the route wants a key even for public bundles.
    fn wants_key(&self) -> bool {
        match self {
            Self::Bundles(scope, _)
            | Self::Bundle(scope, _)
            | Self::Resolve(scope, _)
            | Self::Pull(scope, ..)
            | Self::Asset(scope, ..) => *scope == Scope::Namespaces,
            Self::Versions(_) | Self::Version(..) | Self::Identity | Self::RunnerAsset(_) => true,
            Self::Assets(_) | Self::Search | Self::Oci(_) => false,
        }
    }
}

/// A request that fails, as the API reports it.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    slug: &'static str,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            slug,
            detail: detail.into(),
        }
    }

    fn not_found(what: impl std::fmt::Display) -> Self {
        let detail = format!("{what} not found");
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation-error", detail)
    }

    fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    fn response(&self, path: &str) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = json!({
            "type": format!("https://docs.musher.dev/errors/{}", self.slug),
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "instance": path,
        });
        let body = body.to_string().into_bytes();
        let mut response = respond(self.status, "application/problem+json", body);
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What went wrong on disk: damage may be repaired, so the caller may try again.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        tracing::error!(%error, "cannot answer");
        match error {
            Error::WrongBytes { .. } | Error::NotFound { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service-unavailable",
                "the content is not available",
            ),
            _ => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal-error",
                "the registry's directory cannot be read",
            ),
        }
    }
}

/// The registry's HTTP service.
pub fn router(registry: Registry) -> axum::Router {
    axum::Router::new()
        .fallback(handle)
        .with_state(Arc::new(registry))
}

async fn handle(
    State(registry): State<Arc<Registry>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let request = Request::new(&uri, &headers, &registry.tokens);
    let route = Route::parse(&request.path);
    let kind = route.as_ref().map_or(RouteKind::Unknown, Route::kind);
    let mut response = if oci::allows(&method) {
        let answered =
            tokio::task::spawn_blocking(move || answer(&registry, &request, route)).await;
        answered.unwrap_or_else(|error| {
            tracing::error!(%error, "a request failed");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        })
    } else {
        refuse_method(&request, route.as_ref())
    };
    let id = headers.get("x-request-id").cloned();
    let id = id.or_else(|| Uuid::new_v4().to_string().parse().ok());
    if let Some(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    tracing::debug!(%method, path = uri.path(), ?kind, status = response.status().as_u16(), "answered");
    response
}

fn refuse_method(request: &Request, route: Option<&Route>) -> Response {
    let mut response = match route {
        Some(Route::Oci(_)) => oci::unsupported(),
        _ => Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "bad-request",
            "this registry is read-only over HTTP",
        )
        .response(&request.path),
    };
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn answer(registry: &Registry, request: &Request, route: Option<Route>) -> Response {
    let Some(route) = route else {
        return Problem::not_found(&request.path).response(&request.path);
    };
    if let Route::Oci(route) = route {
        return oci::answer(registry, request, route)
            .unwrap_or_else(|error| Problem::from(error).response(&request.path));
    }
    let result = admit(registry, request, &route).and_then(|()| dispatch(registry, request, route));
    match result {
        Ok(body) => respond(
            StatusCode::OK,
            "application/json",
            body.to_string().into_bytes(),
        ),
        Err(problem) => problem.response(&request.path),
    }
}

fn admit(registry: &Registry, request: &Request, route: &Route) -> Result<(), Problem> {
    let unauthorized = |slug, detail| Err(Problem::new(StatusCode::UNAUTHORIZED, slug, detail));
    if registry.tokens.is_empty() || !route.wants_key() {
        return Ok(());
    }
    match request.caller {
        Caller::Known => Ok(()),
        Caller::Anonymous => unauthorized("unauthorized", "this route needs an API key"),
        Caller::Rejected => unauthorized("credentials-invalid", "the API key is not valid"),
    }
}

fn dispatch(registry: &Registry, request: &Request, route: Route) -> Result<Value, Problem> {
    match route {
        Route::Bundles(Scope::Namespaces, namespace) => {
            namespaces::bundles(registry, request, &namespace)
        }
        Route::Bundle(Scope::Namespaces, bundle) => namespaces::bundle(registry, request, &bundle),
        Route::Resolve(_, bundle) => namespaces::resolve(registry, request, &bundle),
        Route::Versions(bundle) => namespaces::versions(registry, request, &bundle),
        Route::Version(bundle, version) => {
            namespaces::version(registry, request, &bundle, &version)
        }
        Route::Pull(_, bundle, version) => namespaces::pull(registry, request, &bundle, &version),
        Route::Asset(_, bundle, path) => namespaces::asset(registry, request, &bundle, &path),
        Route::RunnerAsset(id) => namespaces::asset_by_id(registry, request, &id),
        Route::Identity => namespaces::identity(registry, request),
        Route::Bundles(Scope::Hub, handle) => hub::publisher(registry, request, &handle),
        Route::Bundle(Scope::Hub, bundle) => hub::bundle(registry, request, &bundle),
        Route::Assets(bundle) => hub::assets(registry, request, &bundle),
        Route::Search => hub::search(registry, request),
        Route::Oci(_) => Err(Problem::not_found("route")),
    }
}

/// A response with a body and its media type.
pub(super) fn respond(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Escapes a query value.
pub(super) fn encode(text: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, KEPT).to_string()
}

/// Ends in `Z`, which some clients insist on, with milliseconds.
fn date(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// A version's files as `Layer`s.
fn layers(assets: &[StoredAsset]) -> Vec<Value> {
    assets
        .iter()
        .map(|asset| {
            json!({
                "assetId": asset.asset_id,
                "logicalPath": asset.logical_path,
                "assetType": asset.asset_type,
                "contentSha256": asset.content_sha256,
                "sizeBytes": asset.size_bytes,
                "mediaType": asset.media_type,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
