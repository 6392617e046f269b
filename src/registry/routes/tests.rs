//! Parsing, which needs no server.

use super::request::presented;
use super::*;
use crate::registry::Token;

#[test]
fn kinds_are_told_from_paths() {
    for (path, kind) in [
        ("/v1/namespaces/a/bundles", RouteKind::Bundles),
        ("/v1/hub/publishers/a/bundles", RouteKind::Bundles),
        ("/v1/namespaces/a/bundles/b", RouteKind::Bundle),
        ("/v1/namespaces/a/bundles/b:resolve", RouteKind::Resolve),
        ("/v1/hub/bundles/a/b:resolve", RouteKind::Resolve),
        ("/v1/namespaces/a/bundles/b/versions", RouteKind::Versions),
        (
            "/v1/namespaces/a/bundles/b/versions/1.0.0",
            RouteKind::Version,
        ),
        (
            "/v1/namespaces/a/bundles/b/versions/1.0.0:pull",
            RouteKind::Pull,
        ),
        ("/v1/hub/bundles/a/b/assets", RouteKind::Assets),
        ("/v1/hub/bundles/a/b/assets/x/y", RouteKind::Asset),
        ("/v1/runner/assets/x", RouteKind::Asset),
        ("/v1/hub/bundles", RouteKind::Search),
        ("/v1/publisher/me", RouteKind::Identity),
        ("/v2/", RouteKind::Oci),
        ("/v2", RouteKind::Oci),
        ("/v2/a/b/manifests/1.0.0", RouteKind::OciManifest),
        ("/v2/a/b/blobs/sha256:0", RouteKind::OciBlob),
        ("/v1/namespaces/a/bundles/..", RouteKind::Unknown),
        ("/v1/hub/bundles/a/b/versions", RouteKind::Unknown),
        ("/elsewhere", RouteKind::Unknown),
    ] {
        assert_eq!(RouteKind::of(path), kind, "{path}");
    }
}

#[test]
fn a_path_may_come_as_one_segment_or_as_many() {
    let asset = |path: &str| match Route::parse(path) {
        Some(Route::Asset(_, _, path)) => path,
        other => panic!("{other:?}"),
    };
    let base = "/v1/hub/bundles/a/b/assets";
    assert_eq!(asset(&format!("{base}/x/y%20z")), "x/y z");
    assert_eq!(asset(&format!("{base}/x%2Fy%20z")), "x/y z");
    // Decoded once: a name may contain what looks like an escape.
    assert_eq!(asset(&format!("{base}/x%252Fy")), "x%2Fy");
}

#[test]
fn credentials_are_found_in_every_scheme() {
    assert_eq!(presented("Bearer k").as_deref(), Some("k"));
    assert_eq!(presented("bearer  k ").as_deref(), Some("k"));
    assert_eq!(presented("Basic dTpwOnE=").as_deref(), Some("p:q"));
    assert_eq!(presented("Basic dTpwOnE").as_deref(), Some("p:q"));
    for other in ["", "k", "Digest x", "Basic dQ==", "Basic Z!=="] {
        assert_eq!(presented(other), None, "{other}");
    }
}

#[test]
fn tokens_are_not_printed() {
    let printed = format!("{:?}", Token::new("mush_secret"));
    assert!(!printed.contains("mush_secret"));
}
