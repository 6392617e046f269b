//! From a selector to a version.

use super::*;

#[tokio::test]
async fn with_a_key_the_namespace_route_is_enough() {
    let server = FaultServer::routes([(format!("{NS}:resolve"), Reply::json(&answer("1.2.0")))]);
    let document = resolve(&keyed(&server), "latest").await.unwrap();
    assert_eq!(document.version.as_deref(), Some("1.2.0"));
    assert_eq!(paths(&document), ["a/b.md"]);
    assert_eq!(server.targets(), [format!("{NS}:resolve")]);
    assert_eq!(server.requests()[0].key(), Some(KEY));
}

#[tokio::test]
async fn with_a_key_a_refusal_leads_to_the_hub_which_does_not_get_it() {
    for status in [401, 403, 404] {
        let server = FaultServer::routes([
            (format!("{NS}:resolve?version=stable"), refusal(status)),
            (
                format!("{HUB}:resolve?version=stable"),
                Reply::json(&answer("1.2.0")),
            ),
        ]);
        resolve(&keyed(&server), "stable").await.unwrap();
        assert_eq!(
            server.targets(),
            [
                format!("{NS}:resolve?version=stable"),
                format!("{HUB}:resolve?version=stable")
            ]
        );
        assert_eq!(server.requests()[1].header("authorization"), None);
    }
}

#[tokio::test]
async fn the_hubs_parts_make_a_document() {
    let server = FaultServer::routes([
        (HUB.to_owned(), Reply::json(&detail("1.2.0"))),
        (
            format!("{HUB}/assets?version=1.2.0&limit=100"),
            Reply::json(&hub_assets()),
        ),
    ]);
    let document = resolve(&keyed(&server), "latest").await.unwrap();
    assert_eq!(document.version.as_deref(), Some("1.2.0"));
    assert_eq!(document.info.name, "Tools");
    let manifest = document.into_manifest(version()).unwrap();
    let file = manifest.find("a/b.md").unwrap();
    assert_eq!((file.size(), file.asset_id()), (6, "7"));
    assert_eq!(
        server.targets(),
        [
            format!("{NS}:resolve"),
            format!("{HUB}:resolve"),
            HUB.to_owned(),
            format!("{HUB}/assets?version=1.2.0&limit=100"),
        ]
    );
}

#[tokio::test]
async fn without_a_key_the_content_itself_is_the_last_resort_of_the_hub() {
    let server = FaultServer::routes([(
        format!("{HUB}/versions/1.2.0:pull"),
        Reply::json(&pulled(&json!("hello\n"))),
    )]);
    let document = resolve(&keyless(&server), "1.2.0").await.unwrap();
    let layer = &document.layers.as_ref().unwrap()[0];
    assert_eq!(
        (layer.digest, layer.size),
        (Digest::of(b"hello\n"), Some(6))
    );
    assert_eq!(
        server.targets(),
        [
            format!("{HUB}:resolve?version=1.2.0"),
            HUB.to_owned(),
            format!("{HUB}/versions/1.2.0:pull"),
        ]
    );
}

#[tokio::test]
async fn content_that_is_away_makes_no_list_of_files() {
    let server = FaultServer::routes([(
        format!("{HUB}/versions/1.2.0:pull"),
        Reply::json(&pulled(&Value::Null)),
    )]);
    let error = resolve(&keyless(&server), "1.2.0").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_registry_without_a_hub_is_read_without_a_key() {
    let server = FaultServer::routes([(
        format!("{NS}:resolve?version=%5E1.2"),
        Reply::json(&answer("1.2.0")),
    )]);
    resolve(&keyless(&server), "^1.2").await.unwrap();
    assert_eq!(
        server.targets(),
        [
            format!("{HUB}:resolve?version=%5E1.2"),
            format!("{NS}:resolve?version=%5E1.2"),
        ]
    );
}

#[tokio::test]
async fn it_is_denied_only_if_every_route_denies_it() {
    let server = FaultServer::script([refusal(403)]);
    let error = resolve(&keyed(&server), "1.2.0").await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "access to acme/tools@1.2.0 denied: 403 refused: no"
    );

    let server = FaultServer::script([refusal(401), refusal(403), refusal(404), refusal(403)]);
    let error = resolve(&keyed(&server), "1.2.0").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn an_outage_is_never_absence() {
    for status in [429, 500, 503] {
        let server = FaultServer::script([refusal(status)]);
        let error = resolve(&keyed(&server), "latest").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    let server = FaultServer::script([refusal(404), refusal(503)]);
    let error = resolve(&keyed(&server), "latest").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_selector_that_the_server_does_not_know_is_rejected() {
    for status in [400, 422] {
        let server = FaultServer::script([refusal(status)]);
        let error = resolve(&keyed(&server), "^1.2").await.unwrap_err();
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_digest_is_spelt_in_both_ways() {
    let digest = Digest::of(b"the oci manifest");
    let mut found = answer("1.2.0");
    found["ociDigest"] = json!(digest.hex().to_uppercase());
    for status in [400, 404, 422] {
        let server = FaultServer::script([refusal(status), Reply::json(&found)]);
        resolve(&keyed(&server), &digest.to_string()).await.unwrap();
        assert_eq!(
            server.targets(),
            [
                format!("{NS}:resolve?digest=sha256:{}", digest.hex()),
                format!("{NS}:resolve?digest={}", digest.hex()),
            ]
        );
    }
}

#[tokio::test]
async fn an_answer_about_something_else_is_malformed() {
    let wrong = |key: &str, value: Value| {
        let mut wrong = answer("1.2.0");
        wrong[key] = value;
        wrong
    };
    let digest = Digest::of(b"x").to_string();
    for (selector, reply) in [
        ("1.2.0", answer("1.2.1")),
        ("1.2.0", answer("1.2.0+build")),
        ("latest", answer("latest")),
        ("latest", answer("../../etc")),
        ("latest", wrong("version", Value::Null)),
        ("latest", wrong("namespace", json!("other"))),
        ("latest", wrong("slug", json!("other"))),
        (
            "stable",
            wrong("manifest", json!({"layers": [{"logicalPath": "a"}]})),
        ),
        (digest.as_str(), answer("1.2.0")),
        (
            digest.as_str(),
            wrong("ociDigest", json!(Digest::of(b"y").to_string())),
        ),
    ] {
        let server = FaultServer::script([Reply::json(&reply)]);
        let error = resolve(&keyed(&server), selector).await.unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{reply}: {error:?}"
        );
        assert_eq!(server.requests().len(), 1, "not asked again: {reply}");
    }
}

#[tokio::test]
async fn garbage_is_malformed_and_not_asked_for_again() {
    for body in [
        "",
        "{",
        "null",
        "[]",
        "<html>login</html>",
        "\"\\ud800\"",
        "\u{0}",
    ] {
        let server = FaultServer::script([Reply::bytes("application/json", body)]);
        let error = resolve(&keyed(&server), "latest").await.unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{body}: {error:?}"
        );
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn ids_dates_and_unknown_keys_are_not_our_business() {
    let mut odd = answer("1.2.0-beta.1+b7");
    odd["bundleId"] = json!("not a uuid");
    odd["signedAt"] = json!("2026-01-01T00:00:00.123456+02:00");
    odd["isSigned"] = json!("perhaps");
    odd["visibility"] = json!("workspace");
    odd["somethingNew"] = json!({"deep": [1, 2, {"er": null}]});
    odd["state"] = json!("yanked");
    let server = FaultServer::script([Reply::json(&odd)]);
    let document = resolve(&keyed(&server), "1.2.0-beta.1+b7").await.unwrap();
    assert_eq!(document.info.state, State::Yanked);
    assert_eq!(
        server.targets(),
        [format!("{NS}:resolve?version=1.2.0-beta.1%2Bb7")]
    );
}

#[tokio::test]
async fn a_base_path_is_kept_and_credentials_in_the_url_are_refused() {
    let server = FaultServer::routes([(
        format!("/registry{NS}:resolve"),
        Reply::json(&answer("1.2.0")),
    )]);
    let settings = |base: &str| ApiSettings {
        base: base.parse().unwrap(),
        keys: KeyChain::fixed(ApiKey::new(KEY).unwrap()),
        http: http(),
    };
    let base = format!("{}/registry/?x=1#y", server.url());
    let source = ApiSource::new(settings(&base)).unwrap();
    assert_eq!(source.name(), format!("registry {}/registry", server.url()));
    resolve(&source, "latest").await.unwrap();

    for base in [
        "http://192.0.2.1",
        "https://user:pw@example.com",
        "ftp://127.0.0.1",
    ] {
        let error = ApiSource::new(settings(base)).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
    }
}
