//! The registry's OCI side, as an OCI client pulls from it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use musherfs::digest::Digest;
use serde_json::Value;
use support::registry::{Answer, TestRegistry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn registry() -> TestRegistry {
    let registry = TestRegistry::start_with(|mut registry| {
        registry.oci_host = Some("bundles.example.org".into());
        registry
    });
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[
            ("prompts/a.md", b"hello\n"),
            ("prompts/copy.md", b"hello\n"),
            ("empty", b""),
        ],
    );
    registry
}

fn code(answer: &Answer) -> String {
    answer.json()["errors"][0]["code"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_version_can_be_pulled_and_every_byte_hashes_to_its_name() {
    let registry = registry();
    assert_eq!(registry.get("/v2/").status, 200);
    let by_tag = registry.get("/v2/acme/kit/manifests/1.0.0");
    assert_eq!(by_tag.header("content-type"), MANIFEST);
    let digest = Digest::of(&by_tag.body).to_string();
    assert_eq!(by_tag.header("docker-content-digest"), digest);
    let by_digest = registry.get(&format!("/v2/acme/kit/manifests/{digest}"));
    assert_eq!(by_digest.body, by_tag.body);

    let manifest = by_tag.json();
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], MANIFEST);
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let answer = registry.get(&format!("/v2/acme/kit/blobs/{digest}"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(Digest::of(&answer.body).to_string(), digest);
        assert_eq!(descriptor["size"], answer.body.len());
        answer.body
    };
    let config = &manifest["config"];
    assert_eq!(
        config["mediaType"],
        "application/vnd.musher.bundle.v1.config"
    );
    let config: Value = serde_json::from_slice(&blob(config)).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    // Two paths with one content are two layers.
    let mut files = Vec::new();
    for (layer, asset) in layers.iter().zip(config["assets"].as_array().unwrap()) {
        assert_eq!(layer["mediaType"], "application/vnd.musher.bundle.v1.asset");
        let path = &layer["annotations"]["org.opencontainers.image.title"];
        assert_eq!(*path, asset["logical_path"]);
        let hex = asset["content_sha256"].as_str().unwrap();
        assert_eq!(layer["digest"], format!("sha256:{hex}"));
        files.push((path.as_str().unwrap().to_owned(), blob(layer)));
    }
    // Sorted by path, however they were published.
    assert_eq!(
        files,
        [
            ("empty".to_owned(), b"".to_vec()),
            ("prompts/a.md".to_owned(), b"hello\n".to_vec()),
            ("prompts/copy.md".to_owned(), b"hello\n".to_vec()),
        ]
    );

    let resolve = registry.get("/v1/hub/bundles/acme/kit:resolve").json();
    assert_eq!(resolve["ociDigest"], digest);
    assert_eq!(resolve["ociRef"], "bundles.example.org/acme/kit:1.0.0");
}

#[test]
fn the_digest_is_the_same_wherever_a_version_is_published() {
    let digest = || {
        let registry = registry();
        let answer = registry.get("/v2/acme/kit/manifests/1.0.0");
        answer.header("docker-content-digest").to_owned()
    };
    assert_eq!(digest(), digest());
}

#[test]
fn heads_tell_what_gets_would_send() {
    let registry = registry();
    let hello = Digest::of(b"hello\n");
    for path in [
        "/v2/acme/kit/manifests/latest".to_owned(),
        format!("/v2/acme/kit/blobs/{hello}"),
    ] {
        let (head, get) = (
            registry.ask("HEAD", &path, &[]).unwrap(),
            registry.get(&path),
        );
        assert_eq!(head.status, 200);
        assert!(head.body.is_empty());
        for name in ["content-length", "content-type", "docker-content-digest"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

#[test]
fn tags_are_versions_and_what_points_at_them() {
    let registry = registry();
    let build = registry.publish("acme", "kit", "1.1.0-rc.1+b.2", &[("a", b"x")]);
    let yanked = registry.publish("acme", "kit", "1.2.0", &[("a", b"x")]);
    registry.yank(&yanked, "bad");
    registry.tag(&build, "next");
    let list = |query: &str| registry.get(&format!("/v2/acme/kit/tags/list{query}"));
    let body = list("").json();
    assert_eq!(body["name"], "acme/kit");
    assert_eq!(
        body["tags"],
        serde_json::json!(["1.0.0", "1.1.0-rc.1_b.2", "latest", "next"])
    );
    for (tag, version) in [
        ("1.1.0-rc.1_b.2", "1.1.0-rc.1+b.2"),
        ("next", "1.1.0-rc.1+b.2"),
        ("latest", "1.0.0"),
        // Not listed, but a lock file that names it keeps working.
        ("1.2.0", "1.2.0"),
    ] {
        let manifest = registry
            .get(&format!("/v2/acme/kit/manifests/{tag}"))
            .json();
        assert_eq!(
            manifest["annotations"]["org.opencontainers.image.version"],
            version
        );
    }

    let first = list("?n=3");
    assert_eq!(first.json()["tags"].as_array().unwrap().len(), 3);
    assert_eq!(
        first.header("link"),
        "</v2/acme/kit/tags/list?n=3&last=latest>; rel=\"next\""
    );
    let second = list("?n=3&last=latest");
    assert_eq!(second.json()["tags"], serde_json::json!(["next"]));
    assert_eq!(second.header("link"), "");
    let catalog = registry.get("/v2/_catalog").json();
    assert_eq!(catalog["repositories"], serde_json::json!(["acme/kit"]));
}

#[test]
fn parts_of_a_blob_can_be_asked_for() {
    let registry = registry();
    let path = format!("/v2/acme/kit/blobs/{}", Digest::of(b"hello\n"));
    let part = |range: &str| registry.ask("GET", &path, &[("range", range)]).unwrap();
    for (range, expected, about) in [
        ("bytes=1-3", "ell", "bytes 1-3/6"),
        ("bytes=4-", "o\n", "bytes 4-5/6"),
        ("bytes=-2", "o\n", "bytes 4-5/6"),
        ("bytes=0-100", "hello\n", "bytes 0-5/6"),
    ] {
        let answer = part(range);
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.body, expected.as_bytes());
        assert_eq!(answer.header("content-range"), about);
    }
    for range in ["bytes=6-", "bytes=-0"] {
        assert_eq!(part(range).status, 416, "{range}");
        assert_eq!(part(range).header("content-range"), "bytes */6");
    }
    for range in ["bytes=3-1", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"] {
        assert_eq!(part(range).status, 200, "{range}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let registry = registry();
    let other = registry.publish("acme", "other", "1.0.0", &[("a", b"of another bundle")]);
    assert_eq!(other.to_string(), "acme/other@1.0.0");
    let foreign = Digest::of(b"of another bundle");
    for (path, status, expected) in [
        ("/v2/acme/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (
            "/v2/acme/kit/manifests/9.9.9".to_owned(),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            "/v2/acme/kit/manifests/%5E1".to_owned(),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            "/v2/acme/kit/manifests/1".to_owned(),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("/v2/acme/kit/manifests/{foreign}"),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (format!("/v2/acme/kit/blobs/{foreign}"), 404, "BLOB_UNKNOWN"),
        (
            "/v2/acme/kit/blobs/sha256:12".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
    ] {
        let answer = registry.get(&path);
        assert_eq!(
            (answer.status, code(&answer).as_str()),
            (status, expected),
            "{path}"
        );
    }
}

#[test]
fn private_bundles_open_with_either_kind_of_credentials() {
    let registry = TestRegistry::start_with_token("mush_secret");
    registry.publish("acme", "open", "1.0.0", &[("a", b"shown")]);
    registry.publish_private("acme", "secret", "1.0.0", &[("a", b"hidden")]);
    let hidden = Digest::of(b"hidden");
    let private = [
        "/v2/acme/secret/manifests/1.0.0".to_owned(),
        "/v2/acme/secret/tags/list".to_owned(),
        format!("/v2/acme/secret/blobs/{hidden}"),
    ];
    // Clients learn from the ping that credentials exist.
    let ping = registry.get("/v2/");
    assert_eq!((ping.status, code(&ping).as_str()), (401, "UNAUTHORIZED"));
    assert!(ping.header("www-authenticate").starts_with("Basic realm="));
    for path in &private {
        assert_eq!(registry.get(path).status, 401, "{path}");
    }
    // Neither is it told whether something exists, nor does a digest open another bundle.
    assert_eq!(registry.get("/v2/acme/none/tags/list").status, 401);
    assert_eq!(
        registry
            .get(&format!("/v2/acme/open/blobs/{hidden}"))
            .status,
        401
    );
    assert_eq!(registry.get("/v2/acme/open/manifests/1.0.0").status, 200);
    assert_eq!(
        registry.get("/v2/_catalog").json()["repositories"],
        serde_json::json!(["acme/open"])
    );

    for authorization in [
        "Bearer mush_secret",
        // _token:mush_secret and musher:mush_secret
        "Basic X3Rva2VuOm11c2hfc2VjcmV0",
        "Basic bXVzaGVyOm11c2hfc2VjcmV0",
    ] {
        let headers = [("authorization", authorization)];
        assert_eq!(registry.ask("GET", "/v2/", &headers).unwrap().status, 200);
        for path in &private {
            let answer = registry.ask("GET", path, &headers).unwrap();
            assert_eq!(answer.status, 200, "{path} {authorization}");
        }
    }
    // What container tools send when nobody logged in: a colon.
    let nobody = [("authorization", "Basic Og==")];
    let open = "/v2/acme/open/manifests/1.0.0";
    assert_eq!(registry.ask("GET", open, &nobody).unwrap().status, 200);
    assert_eq!(
        registry.ask("GET", &private[0], &nobody).unwrap().status,
        401
    );

    for authorization in [
        "Bearer wrong",
        "Basic X3Rva2VuOndyb25n",
        "Basic ???",
        "Digest x",
    ] {
        let headers = [("authorization", authorization)];
        for path in ["/v2/", "/v2/acme/open/manifests/1.0.0"] {
            let answer = registry.ask("GET", path, &headers).unwrap();
            assert_eq!(answer.status, 401, "{path} {authorization}");
        }
    }
}
