//! Versions, bundles, namespaces.

use super::*;

fn row(version: &str, state: &str) -> Value {
    json!({"id": "1", "bundleId": "2", "version": version, "state": state,
        "ociDigest": null, "createdAt": "2026-01-01T00:00:00+00:00"})
}

async fn versions(source: &ApiSource) -> Result<Vec<(String, State)>> {
    let versions = source.versions(&bundle(), soon()).await?;
    Ok(versions
        .into_iter()
        .map(|v| (v.version.to_string(), v.state))
        .collect())
}

#[tokio::test]
async fn pages_are_followed_with_the_cursor_as_it_came() {
    let cursor = "a+b/c=&d é";
    let encoded = "a%2Bb%2Fc%3D%26d%20%C3%A9";
    let server = FaultServer::routes([
        (
            format!("{NS}/versions?limit=100"),
            Reply::json(
                &json!({"data": [row("1.0.0", "published"), row("junk", "published")],
                "meta": {"nextCursor": cursor, "hasMore": true}}),
            ),
        ),
        (
            format!("{NS}/versions?limit=100&cursor={encoded}"),
            Reply::json(
                &json!({"data": [row("2.0.0", "yanked")], "nextCursor": "last",
                "hasMore": true}),
            ),
        ),
        (
            format!("{NS}/versions?limit=100&cursor=last"),
            Reply::json(&json!({"data": [row("3.0.0", "new state")],
                "meta": {"nextCursor": "more", "hasMore": false}})),
        ),
    ]);
    let found = versions(&keyed(&server)).await.unwrap();
    let found: Vec<_> = found.iter().map(|(v, s)| (v.as_str(), *s)).collect();
    assert_eq!(
        found,
        [
            ("1.0.0", State::Published),
            ("2.0.0", State::Yanked),
            ("3.0.0", State::Published)
        ]
    );
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_list_ends_with_the_last_cursor_however_that_is_written() {
    for meta in [
        json!({"nextCursor": null, "hasMore": true}),
        json!({"nextCursor": "", "hasMore": true}),
        json!({"nextCursor": "x", "hasMore": false}),
        json!({}),
        Value::Null,
    ] {
        let page = json!({"data": [row("1.0.0", "published")], "meta": meta});
        let server = FaultServer::script([Reply::json(&page)]);
        assert_eq!(versions(&keyed(&server)).await.unwrap().len(), 1);
        assert_eq!(server.requests().len(), 1, "{meta}");
    }
}

#[tokio::test]
async fn a_repeated_cursor_is_malformed_and_does_not_loop() {
    let page = |cursor| Reply::json(&json!({"data": [], "meta": {"nextCursor": cursor}}));
    let server = FaultServer::script([page("a"), page("b"), page("a")]);
    let error = versions(&keyed(&server)).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn half_a_list_is_no_list() {
    let first = json!({"data": [row("1.0.0", "published")], "meta": {"nextCursor": "a"}});
    for status in [403, 404, 500] {
        let server = FaultServer::script([Reply::json(&first), refusal(status)]);
        versions(&keyed(&server)).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_server_that_dislikes_the_page_size_chooses_its_own() {
    let page = json!({"data": [row("1.0.0", "published")]});
    let server = FaultServer::script([refusal(422), Reply::json(&page)]);
    assert_eq!(versions(&keyed(&server)).await.unwrap().len(), 1);
    assert_eq!(
        server.targets(),
        [format!("{NS}/versions?limit=100"), format!("{NS}/versions")]
    );
}

#[tokio::test]
async fn the_hub_knows_versions_too_and_deprecated_is_not_yanked() {
    let server = FaultServer::routes([(HUB, Reply::json(&detail("1.3.0")))]);
    let found = versions(&keyed(&server)).await.unwrap();
    assert_eq!(
        found,
        [
            ("1.2.0".to_owned(), State::Published),
            ("1.3.0".to_owned(), State::Published)
        ]
    );
    assert_eq!(
        server.targets(),
        [format!("{NS}/versions?limit=100"), HUB.to_owned()]
    );
}

#[tokio::test]
async fn bundles_are_listed_by_namespace_then_by_publisher() {
    let namespace = "acme".parse().unwrap();
    let page = json!({"data": [{"slug": "b", "visibility": "workspace"}, {"slug": "a"},
        {"slug": "../x"}, {"slug": "b"}], "meta": {"nextCursor": null, "hasMore": false}});
    let own = "/v1/namespaces/acme/bundles?limit=100";
    let public = "/v1/hub/publishers/acme/bundles?limit=100";
    for (routes, asked) in [
        (vec![(own, Reply::json(&page))], vec![own]),
        (
            vec![(own, refusal(403)), (public, Reply::json(&page))],
            vec![own, public],
        ),
    ] {
        let server = FaultServer::routes(routes);
        let slugs = keyed(&server).bundles(&namespace, soon()).await.unwrap();
        let slugs: Vec<_> = slugs.iter().map(ToString::to_string).collect();
        assert_eq!(slugs, ["a", "b"]);
        assert_eq!(server.targets(), asked);
    }
}

#[tokio::test]
async fn a_namespace_is_absent_only_where_there_are_lists_at_all() {
    let namespace = "acme".parse().unwrap();
    let server = FaultServer::routes([("/v1/hub/bundles", Reply::json(&json!({"data": []})))]);
    let source = keyed(&server);
    for _ in 0..2 {
        let error = source.bundles(&namespace, soon()).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
    let asked = server.targets();
    let searches = asked.iter().filter(|target| *target == "/v1/hub/bundles");
    assert_eq!(searches.count(), 1, "{asked:?}");

    let server = FaultServer::script([refusal(404)]);
    let error = keyed(&server)
        .bundles(&namespace, soon())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
}

#[tokio::test]
async fn namespaces_come_from_wherever_one_is_named() {
    let server = FaultServer::routes([
        (
            "/v1/publisher/me",
            Reply::json(&json!({"credentialType": "key", "namespaces":
                [{"handle": "acme", "displayName": "Acme"}, {"handle": ".hidden"}]})),
        ),
        (
            "/v1/hub/me/publishers",
            Reply::json(&json!({"data": [{"handle": "beta"}]})),
        ),
        (
            "/v1/hub/bundles",
            Reply::json(
                &json!({"data": [{"slug": "x", "publisher": {"handle": "acme"}},
                {"slug": "y", "publisher": {"handle": "core"}}],
                "meta": {"nextCursor": "more", "hasMore": true}}),
            ),
        ),
    ]);
    let found = keyed(&server).namespaces(soon()).await.unwrap();
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["acme", "beta", "core"]);

    let nothing = FaultServer::script([refusal(401), refusal(404)]);
    assert_eq!(keyed(&nothing).namespaces(soon()).await.unwrap(), []);
    let nobody = FaultServer::script([refusal(404)]);
    assert_eq!(keyless(&nobody).namespaces(soon()).await.unwrap(), []);
    assert_eq!(
        nobody.targets(),
        ["/v1/hub/bundles"],
        "without a key there is no \"me\""
    );
}
