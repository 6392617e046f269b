//! The API's paths. Everything variable is percent-encoded, segment by segment.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::JSON;
use crate::reference::{BundleId, Namespace, Selector, Version, VersionRef};
use crate::source::http::Lane;

/// All but the unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// A query may have colons; digests are easier to read in logs with them.
const QUERY: &AsciiSet = &SEGMENT.remove(b':');

/// One GET of the API.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// Path and query, to be put behind the base URL.
    pub(super) target: String,
    /// Whether the key is sent along. The hub's public routes do not need to know who asks.
    pub(super) with_key: bool,
    pub(super) accept: &'static str,
    /// The namespace that it is about.
    pub(super) namespace: Option<Namespace>,
    pub(super) lane: Lane,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `/v1/namespaces/…`: everything the key may read.
    Namespace,
    /// `/v1/hub/…`: what is public.
    Hub,
}

/// How a file's path is written into a route; servers differ in what they accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slashes {
    /// As they are.
    Plain,
    /// As `%2F`.
    Encoded,
}

fn segment(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, SEGMENT)
}

impl Side {
    /// The sides in the order to ask them.
    pub(super) fn order(has_key: bool) -> [Self; 2] {
        if has_key {
            [Self::Namespace, Self::Hub]
        } else {
            [Self::Hub, Self::Namespace]
        }
    }

    fn bundle(self, bundle: &BundleId) -> String {
        let (namespace, slug) = (
            segment(bundle.namespace.as_str()),
            segment(bundle.slug.as_str()),
        );
        match self {
            Self::Namespace => format!("/v1/namespaces/{namespace}/bundles/{slug}"),
            Self::Hub => format!("/v1/hub/bundles/{namespace}/{slug}"),
        }
    }

    fn route(self, target: String) -> Route {
        Route {
            target,
            with_key: self == Self::Namespace,
            accept: JSON,
            namespace: None,
            lane: Lane::Names,
        }
    }

    fn route_in(self, namespace: &Namespace, target: String) -> Route {
        Route {
            namespace: Some(namespace.clone()),
            ..self.route(target)
        }
    }

    /// `:resolve`, with the query as the server should understand it.
    pub(super) fn resolve(self, bundle: &BundleId, query: Option<(&str, &str)>) -> Route {
        let target = format!("{}:resolve", self.bundle(bundle));
        let mut route = self.route_in(&bundle.namespace, target);
        if let Some((name, value)) = query {
            route.add(name, value);
        }
        route
    }

    /// All content of a version.
    pub(super) fn pull(self, version: &VersionRef) -> Route {
        let target = format!(
            "{}/versions/{}:pull",
            self.bundle(&version.bundle),
            segment(version.version.as_str())
        );
        Route {
            lane: Lane::Content,
            ..self.route_in(&version.bundle.namespace, target)
        }
    }

    /// The content of one file.
    pub(super) fn asset(self, version: &VersionRef, path: &str, slashes: Slashes) -> Route {
        let path = match slashes {
            Slashes::Encoded => segment(path).to_string(),
            Slashes::Plain => path
                .split('/')
                .map(|part| segment(part).to_string())
                .collect::<Vec<_>>()
                .join("/"),
        };
        let target = format!("{}/assets/{path}", self.bundle(&version.bundle));
        let mut route = self.route_in(&version.bundle.namespace, target);
        route.add("version", version.version.as_str());
        // A server may send the bytes themselves.
        route.accept = "application/json, application/problem+json, */*;q=0.5";
        route.lane = Lane::Content;
        route
    }
}

impl Route {
    fn public(target: &str) -> Self {
        Side::Hub.route(target.to_owned())
    }

    fn personal(target: &str) -> Self {
        Side::Namespace.route(target.to_owned())
    }

    /// Adds a query parameter.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        let separator = if self.target.contains('?') { '&' } else { '?' };
        let value = utf8_percent_encode(value, QUERY);
        // Writing to a String cannot fail.
        let _ = write!(self.target, "{separator}{name}={value}");
    }

    /// One version with its list of files.
    pub(super) fn version(version: &VersionRef) -> Self {
        let namespace = &version.bundle.namespace;
        let bundle = Side::Namespace.bundle(&version.bundle);
        let version = segment(version.version.as_str());
        Side::Namespace.route_in(namespace, format!("{bundle}/versions/{version}"))
    }

    /// The list of versions; paged.
    pub(super) fn versions(bundle: &BundleId) -> Self {
        let target = format!("{}/versions", Side::Namespace.bundle(bundle));
        Side::Namespace.route_in(&bundle.namespace, target)
    }

    /// The bundles of a namespace; paged.
    pub(super) fn bundles(namespace: &Namespace) -> Self {
        let target = format!("/v1/namespaces/{}/bundles", segment(namespace.as_str()));
        Side::Namespace.route_in(namespace, target)
    }

    /// The public bundles of a namespace; paged.
    pub(super) fn hub_bundles(namespace: &Namespace) -> Self {
        let namespace = segment(namespace.as_str());
        Self::public(&format!("/v1/hub/publishers/{namespace}/bundles"))
    }

    /// A public bundle with its newest version.
    pub(super) fn hub_detail(bundle: &BundleId) -> Self {
        Self::public(&Side::Hub.bundle(bundle))
    }

    /// The list of files of a public version; paged, if at all.
    pub(super) fn hub_assets(bundle: &BundleId, version: &Version) -> Self {
        let mut route = Self::public(&format!("{}/assets", Side::Hub.bundle(bundle)));
        route.add("version", version.as_str());
        route
    }

    /// The first page of all public bundles.
    pub(super) fn hub_search() -> Self {
        Self::public("/v1/hub/bundles")
    }

    /// Content by the registry's own id.
    pub(super) fn asset_by_id(id: &str) -> Self {
        let mut route = Self::personal(&format!("/v1/runner/assets/{}", segment(id)));
        route.accept = "application/json, application/problem+json, */*;q=0.5";
        route.lane = Lane::Content;
        route
    }

    /// Whom the key belongs to.
    pub(super) fn identity() -> Self {
        Self::personal("/v1/publisher/me")
    }

    /// The publishers that the key's owner acts for.
    pub(super) fn my_publishers() -> Self {
        Self::personal("/v1/hub/me/publishers")
    }
}

/// The query for a selector, in each spelling that servers know, the usual one first. `None` asks
/// for the newest version.
pub(super) fn spellings(selector: &Selector) -> Vec<Option<(&'static str, String)>> {
    match selector {
        Selector::Latest => vec![None],
        Selector::Version(_) | Selector::Tag(_) | Selector::Range { .. } => {
            vec![Some(("version", selector.text().into_owned()))]
        }
        Selector::Digest(digest) => vec![
            Some(("digest", digest.to_string())),
            Some(("digest", digest.hex())),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_variable_is_encoded_for_its_place() {
        let version: VersionRef = "acme/tools@1.0.0+b.1".parse().unwrap();
        assert_eq!(
            Side::Hub.pull(&version).target,
            "/v1/hub/bundles/acme/tools/versions/1.0.0%2Bb.1:pull"
        );
        let path = "a b/ü%2F?#.md";
        assert_eq!(
            Side::Namespace.asset(&version, path, Slashes::Plain).target,
            "/v1/namespaces/acme/bundles/tools/assets/a%20b/%C3%BC%252F%3F%23.md\
             ?version=1.0.0%2Bb.1"
        );
        let encoded = Side::Namespace.asset(&version, path, Slashes::Encoded);
        assert!(
            encoded.target.contains("/assets/a%20b%2F%C3%BC"),
            "{encoded:?}"
        );
        let range = spellings(&"^1.2".parse().unwrap()).remove(0).unwrap();
        let route = Side::Hub.resolve(&version.bundle, Some((range.0, &range.1)));
        assert_eq!(
            route.target,
            "/v1/hub/bundles/acme/tools:resolve?version=%5E1.2"
        );
    }

    #[test]
    fn only_routes_that_want_a_key_get_it() {
        let version: VersionRef = "acme/tools@1.0.0".parse().unwrap();
        assert!(Side::Namespace.pull(&version).with_key);
        assert!(Route::my_publishers().with_key);
        assert!(!Side::Hub.pull(&version).with_key);
        assert!(!Route::hub_search().with_key);
    }
}
