//! The registry's HTTP API, as the Musher tools ask for it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;

use musherfs::publish::{Asset, Publication, Visibility};
use serde_json::Value;
use support::registry::{Answer, TestRegistry};

const NS: &str = "/v1/namespaces/acme/bundles";
const HUB: &str = "/v1/hub/bundles";
const KEY: &str = "mush_secret";
const BEARER: (&str, &str) = ("authorization", "Bearer mush_secret");

/// `acme/kit` in two versions, the second with a name that needs escaping.
fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    publish_kit(&registry);
    registry
}

fn publish_kit(registry: &TestRegistry) {
    registry.publish("acme", "kit", "1.0.0", &[("prompts/a.md", b"hello\n")]);
    registry.publish(
        "acme",
        "kit",
        "1.1.0",
        &[
            ("prompts/a.md", b"hello\n"),
            ("skills/ü b/50%.md", "grüße".as_bytes()),
            ("empty", b""),
        ],
    );
}

fn fields(json: &Value) -> BTreeSet<&str> {
    json.as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn assert_fields(json: &Value, expected: &str) {
    let expected: BTreeSet<&str> = expected.split_whitespace().collect();
    assert_eq!(fields(json), expected, "{json:#}");
}

fn problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let json = answer.json();
    assert_fields(&json, "type title status detail instance");
    let kind = format!("https://docs.musher.dev/errors/{slug}");
    assert_eq!(json["type"], kind.as_str());
    assert_eq!(json["status"], status);
    assert!(!json["detail"].as_str().unwrap().is_empty());
}

const BUNDLE: &str = "id namespace slug ref name description visibility sourceType readmeFormat \
                      createdAt updatedAt";
const LAYER: &str = "assetId logicalPath assetType contentSha256 sizeBytes mediaType";
const VERSION: &str = "id bundleId version state ociRef ociDigest publishedBy yankedBy yankedAt \
                       yankReason createdAt";
const HUB_SUMMARY: &str = "id publisher slug displayName summary assetTypes tags capabilities \
                           license latestVersion starsCount downloadsTotal downloads30d createdAt \
                           updatedAt";

#[test]
fn every_route_answers_in_the_documented_shape() {
    let registry = registry();
    let get = |path: &str| {
        let answer = registry.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(!answer.header("x-request-id").is_empty());
        answer.json()
    };

    let page = get(NS);
    assert_fields(&page, "data meta");
    assert_fields(&page["meta"], "nextCursor hasMore");
    assert_fields(&page["data"][0], BUNDLE);
    assert_eq!(page["data"][0]["ref"], "acme/kit");

    let detail = get(&format!("{NS}/kit"));
    assert_fields(
        &detail,
        &format!("{BUNDLE} readmeContent latestVersion versionCount assetCount"),
    );
    assert_eq!(detail["latestVersion"], "1.1.0");
    assert_eq!(detail["versionCount"], 2);
    assert_eq!(detail["assetCount"], 3);

    for path in [
        format!("{NS}/kit:resolve"),
        format!("{HUB}/acme/kit:resolve"),
    ] {
        let resolve = get(&path);
        assert_fields(
            &resolve,
            "bundleId versionId namespace slug ref version name description sourceType ociRef \
             ociDigest state manifest isSigned signerType signedAt",
        );
        assert_eq!(resolve["version"], "1.1.0");
        assert_eq!(resolve["state"], "published");
        assert_eq!(resolve["ociRef"], Value::Null);
        let layers = resolve["manifest"]["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 3);
        assert_fields(&layers[1], LAYER);
        assert_eq!(layers[1]["logicalPath"], "skills/ü b/50%.md");
        assert_eq!(layers[1]["assetType"], "skill");
        assert_eq!(layers[2]["sizeBytes"], 0);
    }

    let versions = get(&format!("{NS}/kit/versions"));
    assert_fields(&versions["data"][0], VERSION);
    assert_eq!(versions["data"][0]["version"], "1.1.0");
    assert_eq!(versions["data"][1]["version"], "1.0.0");

    let version = get(&format!("{NS}/kit/versions/1.0.0"));
    assert_fields(&version, &format!("{VERSION} manifest"));
    assert_fields(&version["manifest"], "namespace bundleSlug version assets");
    assert_fields(&version["manifest"]["assets"][0], LAYER);

    for path in [
        format!("{NS}/kit/versions/1.1.0:pull"),
        format!("{HUB}/acme/kit/versions/1.1.0:pull"),
    ] {
        let pull = get(&path);
        assert_fields(&pull, "namespace slug version name description manifest");
        let file = &pull["manifest"][1];
        assert_fields(file, "logicalPath assetType contentText mediaType");
        assert_eq!(file["contentText"], "grüße");
        assert_eq!(pull["manifest"][2]["contentText"], "");
    }

    let asset = get(&format!("{NS}/kit/assets/prompts/a.md?version=1.0.0"));
    assert_fields(
        &asset,
        "id bundleId assetType logicalPath contentSha256 contentSizeBytes mediaType createdAt \
         updatedAt contentText",
    );
    let by_id = get(&format!(
        "/v1/runner/assets/{}",
        asset["id"].as_str().unwrap()
    ));
    assert_eq!(by_id, asset);

    let search = get(HUB);
    assert_fields(&search["data"][0], HUB_SUMMARY);
    assert_fields(
        &search["data"][0]["publisher"],
        "handle displayName trustTier avatarUrl",
    );
    assert_eq!(get("/v1/hub/publishers/acme/bundles"), search);

    let hub = get(&format!("{HUB}/acme/kit"));
    assert_fields(
        &hub,
        &format!(
            "{HUB_SUMMARY} description repositoryUrl homepageUrl readmeContent readmeFormat \
             isDeprecated loadCommand installCommand versions"
        ),
    );
    assert_fields(
        &hub["versions"][0],
        "version publishedAt isDeprecated deprecatedMessage",
    );

    let assets = get(&format!("{HUB}/acme/kit/assets?version=1.0.0"));
    assert_fields(
        &assets["data"][0],
        "id assetType logicalPath contentSha256 sizeBytes",
    );
    assert_eq!(assets["data"].as_array().unwrap().len(), 1);

    let me = get("/v1/publisher/me");
    assert_fields(
        &me,
        "credentialType credentialId credentialName user organization namespaces",
    );
    assert_eq!(me["namespaces"][0]["handle"], "acme");
}

#[test]
fn dates_end_in_z_and_ids_are_uuids() {
    let registry = registry();
    let version = registry.get(&format!("{NS}/kit/versions/1.0.0")).json();
    let date = version["createdAt"].as_str().unwrap();
    assert_eq!(date.len(), "2025-01-01T00:00:00.000Z".len(), "{date}");
    assert!(date.ends_with('Z') && date.parse::<jiff::Timestamp>().is_ok());
    for id in [
        &version["id"],
        &version["bundleId"],
        &version["manifest"]["assets"][0]["assetId"],
    ] {
        let id = id.as_str().unwrap();
        assert_eq!(
            uuid::Uuid::parse_str(id).unwrap().get_version_num(),
            5,
            "{id}"
        );
    }
}

#[test]
fn an_asset_is_found_by_either_spelling_of_its_path() {
    let registry = registry();
    for path in [
        "skills/%C3%BC%20b/50%25.md",
        "skills%2F%C3%BC%20b%2F50%25.md",
        "skills%2f%c3%bc%20b%2f50%25.md",
    ] {
        for base in [format!("{NS}/kit"), format!("{HUB}/acme/kit")] {
            let answer = registry.get(&format!("{base}/assets/{path}?version=1.1.0"));
            assert_eq!(answer.json()["contentText"], "grüße", "{path}");
        }
    }
    // Without a version: the latest.
    assert_eq!(
        registry.get(&format!("{NS}/kit/assets/empty")).json()["contentText"],
        ""
    );
    problem(
        &registry.get(&format!("{NS}/kit/assets/empty?version=1.0.0")),
        404,
        "not-found",
    );
    for path in ["skills", "../a", "prompts/./a.md", "prompts//a.md", "%ff"] {
        let answer = registry.get(&format!("{NS}/kit/assets/{path}"));
        assert_eq!(answer.status, 404, "{path}");
    }
}

#[test]
fn names_resolve_as_selectors_do() {
    let registry = registry();
    registry.publish("acme", "kit", "2.0.0-rc.1+b.7", &[("a", b"x")]);
    let stable = "acme/kit@1.0.0".parse().unwrap();
    registry.tag(&stable, "stable");
    let resolve = |query: &str| registry.get(&format!("{NS}/kit:resolve?{query}"));
    let digest = resolve("version=1.0.0").json()["ociDigest"].clone();
    let prefixed = digest.as_str().unwrap().to_owned();
    let bare = prefixed.strip_prefix("sha256:").unwrap();
    for (query, expected) in [
        ("", "1.1.0"),
        ("version=", "1.1.0"),
        ("version=latest", "1.1.0"),
        ("version=1.0.0", "1.0.0"),
        ("version=%5E1.0", "1.1.0"),
        ("version=1.0.x", "1.0.0"),
        ("version=%3E%3D0.1%2C+%3C1.1", "1.0.0"),
        ("version=stable", "1.0.0"),
        ("version=2.0.0-rc.1%2Bb.7", "2.0.0-rc.1+b.7"),
        (&format!("digest={prefixed}"), "1.0.0"),
        (&format!("digest={bare}"), "1.0.0"),
        (&format!("digest={}", bare.to_uppercase()), "1.0.0"),
        (&format!("digest={bare}&version=1.0.0"), "1.0.0"),
    ] {
        assert_eq!(resolve(query).json()["version"], expected, "{query}");
    }
    let contradiction = format!("digest={bare}&version=1.1.0");
    for query in [
        "version=3.0.0",
        "version=%5E3",
        "version=nightly",
        &contradiction,
    ] {
        problem(&resolve(query), 404, "not-found");
    }
    for query in ["version=a%2Fb", "version=..", "digest=1234"] {
        problem(&resolve(query), 422, "validation-error");
    }
    // The same encoded colon, as clients that escape whole segments send it.
    assert_eq!(registry.get(&format!("{NS}/kit%3Aresolve")).status, 200);
}

#[test]
fn what_does_not_exist_is_a_problem() {
    let registry = registry();
    for path in [
        "/",
        "/v1",
        "/v1/namespaces/acme",
        "/v1/namespaces/none/bundles",
        "/v1/namespaces/../bundles",
        "/v1/namespaces/%2e%2e/bundles",
        "/v1/namespaces/acme/bundles/none",
        "/v1/namespaces/acme/bundles/none:resolve",
        "/v1/namespaces/acme/bundles/none/versions",
        "/v1/namespaces/acme/bundles/kit/versions/9.9.9",
        "/v1/namespaces/acme/bundles/kit/versions/9.9.9:pull",
        "/v1/namespaces/acme/bundles/kit/versions/%00:pull",
        "/v1/namespaces/acme/bundles/kit/assets",
        "/v1/namespaces/acme/bundles/kit:yank",
        "/v1/hub/bundles/acme/none",
        "/v1/hub/publishers/none/bundles",
        "/v1/runner/assets/none",
        "/v1/runner/assets/",
    ] {
        problem(&registry.get(path), 404, "not-found");
    }
}

#[test]
fn nothing_can_be_written_over_http() {
    let registry = registry();
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let answer = registry
            .ask(method, &format!("{NS}/kit:push"), &[])
            .unwrap();
        problem(&answer, 405, "bad-request");
        assert_eq!(answer.header("allow"), "GET, HEAD");
        let answer = registry
            .ask(method, "/v2/acme/kit/manifests/1.0.0", &[])
            .unwrap();
        assert_eq!(answer.status, 405);
        assert_eq!(answer.json()["errors"][0]["code"], "UNSUPPORTED");
    }
    let head = registry.ask("HEAD", &format!("{NS}/kit"), &[]).unwrap();
    let get = registry.get(&format!("{NS}/kit"));
    assert_eq!(head.status, 200);
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), get.body.len().to_string());
}

#[test]
fn a_request_id_comes_back() {
    let registry = registry();
    let answer = registry
        .ask("GET", NS, &[("x-request-id", "my-own-id")])
        .unwrap();
    assert_eq!(answer.header("x-request-id"), "my-own-id");
}

/// All items of a list, page by page.
fn walk(registry: &TestRegistry, path: &str, limit: usize, field: &str) -> (Vec<String>, usize) {
    let (mut items, mut pages) = (Vec::new(), 0);
    let mut url = format!("{path}?limit={limit}");
    loop {
        let page = registry.get(&url).json();
        pages += 1;
        let data = page["data"].as_array().unwrap();
        items.extend(
            data.iter()
                .map(|item| item[field].as_str().unwrap().to_owned()),
        );
        assert!(data.len() <= limit);
        let Some(cursor) = page["meta"]["nextCursor"].as_str() else {
            assert_eq!(page["meta"]["hasMore"], false);
            return (items, pages);
        };
        assert_eq!(page["meta"]["hasMore"], true);
        assert_eq!(data.len(), limit);
        url = format!("{path}?limit={limit}&cursor={cursor}");
    }
}

#[test]
fn lists_come_in_pages_without_gaps_or_repeats() {
    let registry = TestRegistry::start();
    for n in 0..45 {
        registry.publish("acme", "kit", &format!("1.{n}.0"), &[("a", b"x")]);
        registry.publish("acme", &format!("b-{n:02}"), "1.0.0", &[("a", b"x")]);
    }
    let versions: Vec<String> = (0..45).rev().map(|n| format!("1.{n}.0")).collect();
    let path = format!("{NS}/kit/versions");
    for (limit, pages) in [(1, 45), (7, 7), (44, 2), (45, 1), (100, 1)] {
        assert_eq!(
            walk(&registry, &path, limit, "version"),
            (versions.clone(), pages)
        );
    }
    let mut slugs: Vec<String> = (0..45).map(|n| format!("b-{n:02}")).collect();
    slugs.push("kit".into());
    assert_eq!(walk(&registry, NS, 10, "slug").0, slugs);
    assert_eq!(walk(&registry, HUB, 10, "slug").0, slugs);
    assert_eq!(
        walk(&registry, "/v1/hub/publishers/acme/bundles", 10, "slug").0,
        slugs
    );
    let recent = registry.get(&format!("{HUB}?sort=recent&limit=1")).json();
    assert_eq!(recent["data"][0]["slug"], "b-44");

    let default = registry.get(&path).json();
    assert_eq!(default["data"].as_array().unwrap().len(), 20);
    let most = registry.get(&format!("{path}?limit=100000")).json();
    assert_eq!(most["data"].as_array().unwrap().len(), 45);
    for limit in ["0", "-1", "many"] {
        problem(
            &registry.get(&format!("{path}?limit={limit}")),
            422,
            "validation-error",
        );
    }
    problem(
        &registry.get(&format!("{path}?cursor=zz")),
        400,
        "bad-request",
    );
}

#[test]
fn the_hub_is_searched_by_words_and_types() {
    let registry = registry();
    let mut publication = Publication::new("zeta/tools@1.0.0".parse().unwrap());
    publication.visibility = Visibility::Public;
    publication.name = "Handy Tools".into();
    publication.description = Some("For reviewing code".into());
    publication.keywords = vec!["quality".into()];
    publication.assets = vec![Asset::new("tools/lint.json", "{}").unwrap()];
    registry.storage().publish(&publication, "ann").unwrap();
    let found = |query: &str| -> Vec<String> {
        let page = registry.get(&format!("{HUB}?{query}")).json();
        let data = page["data"].as_array().unwrap();
        data.iter()
            .map(|bundle| bundle["slug"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(found(""), ["kit", "tools"]);
    for query in [
        "q=handy",
        "q=REVIEWING+code",
        "q=quality",
        "q=zeta",
        "type=toolset",
    ] {
        assert_eq!(found(query), ["tools"], "{query}");
    }
    assert_eq!(found("asset_type=skill"), ["kit"]);
    assert!(found("q=nothing+like+it").is_empty());
}

#[test]
fn a_yanked_version_is_not_chosen_but_stays() {
    let registry = registry();
    let newest = "acme/kit@1.1.0".parse().unwrap();
    registry.yank(&newest, "leaks a token");
    let resolve = |query: &str| registry.get(&format!("{NS}/kit:resolve?{query}")).json();
    assert_eq!(resolve("")["version"], "1.0.0");
    assert_eq!(resolve("version=%5E1")["version"], "1.0.0");
    assert_eq!(resolve("version=1.1.0")["state"], "yanked");
    assert_eq!(
        registry.get(&format!("{NS}/kit")).json()["latestVersion"],
        "1.0.0"
    );
    let pulled = registry.get(&format!("{HUB}/acme/kit/versions/1.1.0:pull"));
    assert_eq!(pulled.status, 200);

    let detail = registry.get(&format!("{NS}/kit/versions/1.1.0")).json();
    assert_eq!(detail["state"], "yanked");
    assert_eq!(detail["yankReason"], "leaks a token");
    assert_eq!(detail["yankedBy"], "tester");
    assert!(detail["yankedAt"].as_str().unwrap().ends_with('Z'));
    let rows = registry.get(&format!("{NS}/kit/versions")).json();
    assert_eq!(rows["data"][0]["state"], "yanked");
    let hub = registry.get(&format!("{HUB}/acme/kit")).json();
    assert_eq!(hub["versions"].as_array().unwrap().len(), 1);

    // With nothing left to choose, there is no latest, and the search does not show it.
    let oldest = "acme/kit@1.0.0".parse().unwrap();
    registry.yank(&oldest, "");
    problem(
        &registry.get(&format!("{NS}/kit:resolve")),
        404,
        "not-found",
    );
    assert_eq!(
        registry.get(&format!("{NS}/kit")).json()["latestVersion"],
        Value::Null
    );
    assert_eq!(registry.get(HUB).json()["data"], Value::Array(vec![]));

    registry.unyank(&newest);
    assert_eq!(resolve("")["version"], "1.1.0");
    let detail = registry.get(&format!("{NS}/kit/versions/1.1.0")).json();
    assert_eq!(detail["yankReason"], Value::Null);
}

/// Every path that could tell something about `acme/secret`.
fn secret_paths() -> Vec<String> {
    [
        "",
        ":resolve",
        ":resolve?version=1.0.0",
        "/versions/1.0.0:pull",
        "/assets?version=1.0.0",
        "/assets/a?version=1.0.0",
    ]
    .iter()
    .map(|rest| format!("{HUB}/acme/secret{rest}"))
    .collect()
}

#[test]
fn a_private_bundle_does_not_exist_for_strangers() {
    let registry = TestRegistry::start_with_token(KEY);
    publish_kit(&registry);
    registry.publish_private("acme", "secret", "1.0.0", &[("a", b"hidden")]);
    let strangers: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Bearer ")],
        &[("authorization", "nonsense")],
    ];
    for headers in strangers {
        for path in secret_paths() {
            let answer = registry.ask("GET", &path, headers).unwrap();
            problem(&answer, 404, "not-found");
        }
        let hub = registry.ask("GET", HUB, headers).unwrap();
        assert_eq!(hub.json()["data"].as_array().unwrap().len(), 1);
        // Public bundles need no key here, and a bad one does no harm.
        let path = format!("{HUB}/acme/kit:resolve");
        assert_eq!(registry.ask("GET", &path, headers).unwrap().status, 200);
    }
    for path in secret_paths() {
        let answer = registry.ask("GET", &path, &[BEARER]).unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
    let hub = registry.ask("GET", HUB, &[BEARER]).unwrap();
    assert_eq!(hub.json()["data"].as_array().unwrap().len(), 2);
}

#[test]
fn namespace_routes_ask_for_a_key_where_there_are_keys() {
    let registry = TestRegistry::start_with_token(KEY);
    publish_kit(&registry);
    registry.publish_private("acme", "secret", "1.0.0", &[("a", b"hidden")]);
    for path in [
        NS.to_owned(),
        format!("{NS}/kit"),
        format!("{NS}/kit:resolve"),
        format!("{NS}/kit/versions"),
        format!("{NS}/kit/versions/1.0.0"),
        format!("{NS}/kit/versions/1.0.0:pull"),
        format!("{NS}/kit/assets/prompts/a.md"),
        format!("{NS}/secret:resolve"),
        format!("{NS}/none:resolve"),
        "/v1/publisher/me".to_owned(),
        "/v1/runner/assets/x".to_owned(),
    ] {
        let answer = registry.get(&path);
        problem(&answer, 401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        let wrong = [("authorization", "Bearer wrong")];
        let answer = registry.ask("GET", &path, &wrong).unwrap();
        problem(&answer, 401, "credentials-invalid");
    }
    let path = format!("{NS}/secret:resolve");
    assert_eq!(registry.ask("GET", &path, &[BEARER]).unwrap().status, 200);
    let answer = registry.ask("GET", &format!("{NS}/none:resolve"), &[BEARER]);
    problem(&answer.unwrap(), 404, "not-found");
}

#[test]
fn without_keys_a_presented_one_is_ignored() {
    let registry = registry();
    registry.publish_private("acme", "secret", "1.0.0", &[("a", b"hidden")]);
    let answer = registry
        .ask("GET", &format!("{NS}/kit"), &[BEARER])
        .unwrap();
    assert_eq!(answer.status, 200);
    let answer = registry
        .ask("GET", &format!("{NS}/secret"), &[BEARER])
        .unwrap();
    problem(&answer, 404, "not-found");
}

#[test]
fn a_version_published_in_private_stays_private() {
    let registry = TestRegistry::start();
    registry.publish_private("acme", "kit", "1.0.0", &[("a", b"hidden")]);
    registry.publish("acme", "kit", "1.1.0", &[("a", b"shown")]);
    let versions = registry.get(&format!("{NS}/kit/versions")).json();
    assert_eq!(versions["data"].as_array().unwrap().len(), 1);
    problem(
        &registry.get(&format!("{NS}/kit:resolve?version=1.0.0")),
        404,
        "not-found",
    );
}

#[test]
fn damaged_content_is_unavailable_not_wrong() {
    let registry = registry();
    let asset = registry
        .get(&format!("{NS}/kit/assets/prompts/a.md"))
        .json();
    let hex = asset["contentSha256"].as_str().unwrap();
    let blob = registry
        .root()
        .join(format!("blobs/sha256/{}/{hex}", &hex[..2]));
    for damage in [Some("hullo\n"), None] {
        match damage {
            Some(text) => std::fs::write(&blob, text).unwrap(),
            None => std::fs::remove_file(&blob).unwrap(),
        }
        for path in ["assets/prompts/a.md", "versions/1.1.0:pull"] {
            let answer = registry.get(&format!("{NS}/kit/{path}"));
            problem(&answer, 503, "service-unavailable");
        }
        assert_eq!(registry.get(&format!("{NS}/kit/assets/empty")).status, 200);
    }
}

#[test]
fn many_clients_are_served_while_versions_appear() {
    let registry = registry();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let registry = &registry;
            scope.spawn(move || {
                registry.publish("acme", "kit", &format!("1.{}.0", n + 2), &[("a", b"x")]);
                for _ in 0..10 {
                    let resolve = registry.get(&format!("{NS}/kit:resolve")).json();
                    let layers = resolve["manifest"]["layers"].as_array().unwrap();
                    assert_eq!(layers.len(), 1, "a version is there as a whole");
                }
            });
        }
    });
    let latest = registry.get(&format!("{NS}/kit")).json();
    assert_eq!(latest["latestVersion"], "1.9.0");
    assert_eq!(latest["versionCount"], 10);
}
