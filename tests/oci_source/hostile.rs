//! Registries that mean harm, or are broken: an error in time, and nothing is believed.

use std::io::Write as _;

use musherfs::digest::Digest;
use serde_json::{Value, json};

use super::fault_server::Reply;
use super::*;

/// A registry whose only version has this manifest.
fn with(manifest: impl FnOnce(&FakeRegistry) -> Value) -> FakeRegistry {
    let registry = FakeRegistry::start();
    let manifest = manifest(&registry);
    registry.manifest("acme/kit", "1.0.0", &manifest);
    registry
}

/// The error of asking for the version's files.
async fn refused(registry: &FakeRegistry) -> Error {
    let machine = Machine::new();
    let client = machine.plain(registry);
    manifest(&client, "acme/kit@1.0.0").await.unwrap_err()
}

#[tokio::test]
async fn manifests_that_cannot_be_used_are_refused() {
    let digest = Digest::of(b"x").to_string();
    let layer = json!({"mediaType": "x", "digest": digest, "size": 1});
    for (why, registry) in [
        (
            "an image index",
            with(|_| json!({"schemaVersion": 2, "manifests": []})),
        ),
        (
            "a config without its layer",
            with(|r| {
                let mut bundle = r.bundle(&[("a", b"1"), ("b", b"2")]);
                bundle["layers"].as_array_mut().unwrap().pop();
                bundle
            }),
        ),
        (
            "a layer without its config",
            with(|r| {
                let mut bundle = r.bundle(&[("a", b"1")]);
                let extra = r.layer("b", b"not listed", fake::ASSET);
                bundle["layers"].as_array_mut().unwrap().push(extra);
                bundle
            }),
        ),
        (
            "a config that is not there",
            with(|r| {
                let mut bundle = r.bundle(&[("a", b"1")]);
                bundle["config"]["digest"] = json!(digest);
                bundle
            }),
        ),
        (
            "a layer without a path",
            with(|r| r.artifact(std::slice::from_ref(&layer))),
        ),
        (
            "two sizes of one blob",
            with(|r| {
                let mut bundle = r.bundle(&[("a", b"1"), ("b", b"1")]);
                bundle["layers"][1]["size"] = json!(2);
                bundle
            }),
        ),
        (
            "a file that is too large",
            with(|r| {
                let mut huge = r.layer("a", b"1", "x");
                huge["size"] = json!(2_u64 << 30);
                r.artifact(&[huge])
            }),
        ),
        (
            "too many layers",
            with(|r| {
                let layers = vec![json!({"digest": "", "size": 0}); 131_072];
                r.artifact(&layers)
            }),
        ),
        ("rubbish", {
            let registry = FakeRegistry::start();
            registry.raw_manifest("acme/kit", "1.0.0", b"<html>login</html>".to_vec());
            registry
        }),
    ] {
        let error = refused(&registry).await;
        assert!(matches!(error, Error::Malformed { .. }), "{why}: {error}");
    }
}

#[tokio::test]
async fn a_manifest_that_has_no_end_is_left_in_the_middle() {
    let registry = with(|r| r.bundle(&[("a", b"1")]));
    registry.script("/manifests/", Reply::endless(vec![b' '; 1 << 20]));
    let error = refused(&registry).await;
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_list_of_tags_that_has_no_end_is_left_in_the_middle() {
    let registry = with(|r| r.bundle(&[("a", b"1")]));
    let again = "</v2/acme/kit/tags/list?last=x>; rel=\"next\"";
    let page = Reply::json(&json!({"tags": ["0.1.0"]})).header("link", again);
    registry.script("/tags/list", page);
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let error = manifest(&client, "acme/kit").await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");

    registry.unscript();
    let elsewhere = "<https://elsewhere.example/v2/>; rel=\"next\"";
    let page = Reply::json(&json!({"tags": ["0.1.0"]})).header("link", elsewhere);
    registry.script("/tags/list", page);
    let error = manifest(&Machine::new().plain(&registry), "acme/kit").await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let registry = FakeRegistry::start();
    let bundle = registry.bundle(&[("a", b"1")]);
    let digest = registry.manifest("acme/kit", "1.0.0", &bundle);
    let other = Digest::of(b"other").to_string();
    let bytes = bundle.to_string();
    let lying = Reply::bytes(fake::MANIFEST, bytes).header("docker-content-digest", &other);
    registry.script("/manifests/1.0.0", lying);
    let error = refused(&registry).await;
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    registry.unscript();

    let wrong = Reply::bytes(fake::MANIFEST, registry.artifact(&[]).to_string());
    registry.script(&format!("/manifests/{digest}"), wrong);
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let error = manifest(&client, &format!("acme/kit@{digest}")).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn content_that_is_not_what_the_manifest_names_is_never_served() {
    for (why, reply) in [
        ("other bytes", Reply::bytes("x", "wrong")),
        ("too few", Reply::bytes("x", "ri")),
        ("too many", Reply::bytes("x", "right and more")),
        ("no end", Reply::endless("right")),
        ("cut off", Reply::bytes("x", "right").truncated(2)),
        ("none", Reply::status(404)),
    ] {
        let registry = with(|r| r.bundle(&[("a", b"right"), ("b", b"fine")]));
        let machine = Machine::new();
        let client = machine.plain(&registry);
        let loaded = manifest(&client, "acme/kit").await.unwrap();
        let bad = Digest::of(b"right");
        registry.script(&format!("/blobs/{bad}"), reply);
        let error = read_of(&client, &loaded, "a").await.unwrap_err();
        let expected = match why {
            "cut off" => matches!(error, Error::Unreachable { .. }),
            _ => matches!(error, Error::WrongBytes { .. } | Error::Malformed { .. }),
        };
        assert!(expected, "{why}: {error}");
        assert!(!machine.blob(b"right").exists(), "{why}");
        if why != "cut off" {
            assert_eq!(
                read_of(&client, &loaded, "b").await.unwrap(),
                b"fine",
                "{why}"
            );
        }
    }
}

#[tokio::test]
async fn a_path_that_leaves_its_bundle_is_hidden_and_its_siblings_stay() {
    let registry = with(|r| {
        let bad = [
            "../../etc/passwd",
            "/etc/passwd",
            "a/../../x",
            "nul\0",
            "a\\b",
        ];
        let mut layers: Vec<_> = bad.iter().map(|path| r.layer(path, b"bad", "x")).collect();
        layers.push(r.layer("good", b"good", "x"));
        r.artifact(&layers)
    });
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    assert_eq!(paths(&loaded), ["good"]);
    assert_eq!(loaded.manifest.refused().count(), 5);
    assert_eq!(read_of(&client, &loaded, "good").await.unwrap(), b"good");
}

#[tokio::test]
async fn an_archive_that_explodes_is_refused() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..129 {
        gzip.write_all(&zeros).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    let registry = with(|r| {
        let mut layer = r.layer(
            "skills",
            &bomb,
            "application/vnd.oci.image.layer.v1.tar+gzip",
        );
        layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
        r.artifact(&[layer])
    });
    let error = refused(&registry).await;
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_never_answers_is_waited_for_until_the_deadline() {
    let registry = with(|r| r.bundle(&[("a", b"1")]));
    let machine = Machine::new();
    let client = machine.client(&registry.host(), |overrides| {
        overrides.content_timeout = Some(Duration::from_secs(1));
    });
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    registry.script("/blobs/", Reply::hang());
    let error = read_of(&client, &loaded, "a").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn archives_that_explode_together_are_refused() {
    let zeros = |mib: usize| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..mib {
            gzip.write_all(&[0; 1 << 20]).unwrap();
        }
        gzip.finish().unwrap()
    };
    for (mib, refused_for) in [(60, None), (70, Some("together"))] {
        let registry = with(|r| {
            let directory = |title: &str, bytes: &[u8]| {
                let mut layer =
                    r.layer(title, bytes, "application/vnd.oci.image.layer.v1.tar+gzip");
                layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
                layer
            };
            let (a, b) = (zeros(mib), zeros(mib - 4));
            let file = r.layer("a.md", b"a", "text/markdown");
            r.artifact(&[directory("skills", &a), directory("prompts", &b), file])
        });
        let machine = Machine::new();
        let answer = manifest(&machine.plain(&registry), "acme/kit@1.0.0").await;
        match refused_for {
            None => assert_eq!(paths(&answer.unwrap()), ["a.md"]),
            Some(reason) => {
                let error = answer.unwrap_err();
                assert!(matches!(error, Error::Malformed { .. }), "{error}");
                assert!(error.to_string().contains(reason), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_list_of_tags_that_is_too_long_in_all_its_pages_is_left_in_the_middle() {
    let registry = with(|r| r.bundle(&[("a", b"1")]));
    let filler = "x".repeat(12 << 20);
    for page in 0..5 {
        let next = format!("</v2/acme/kit/tags/list?page={}>; rel=\"next\"", page + 1);
        let reply = Reply::json(&json!({"tags": ["1.0.0"], "more": filler}));
        registry.script(&format!("page={page}"), reply.header("link", &next));
    }
    let first = Reply::json(&json!({"tags": ["1.0.0"]}));
    let next = "</v2/acme/kit/tags/list?page=0>; rel=\"next\"";
    registry.script("/tags/list", first.header("link", next));
    let error = manifest(&Machine::new().plain(&registry), "acme/kit").await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert_eq!(registry.count("page=2"), 1);
    assert_eq!(registry.count("page=3"), 0);
}

#[tokio::test]
async fn a_hundred_thousand_layers_are_files_and_too_many_are_refused() {
    let digest = Digest::of(b"x");
    let many = |count: usize, more: &str| {
        let registry = FakeRegistry::start();
        let config = registry.blob(b"{}");
        let layers: Vec<String> = (0..count)
            .map(|n| {
                format!(
                    r#"{{"mediaType":"x","digest":"{}","size":1,
                        "annotations":{{"{}":"{n:06}"{more}}}}}"#,
                    if more.is_empty() {
                        digest
                    } else {
                        Digest::of(&n.to_le_bytes())
                    },
                    fake::TITLE
                )
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{config}","size":2}},
                "layers":[{}]}}"#,
            layers.join(",")
        );
        registry.raw_manifest("acme/kit", "1.0.0", manifest.into_bytes());
        registry
    };
    let ask = async |registry: &FakeRegistry| {
        let machine = Machine::new();
        let client = machine.client(&registry.host(), |overrides| {
            overrides.metadata_timeout = Some(Duration::from_secs(300));
        });
        manifest(&client, "acme/kit@1.0.0").await
    };
    let loaded = ask(&many(100_000, "")).await.unwrap();
    assert_eq!(loaded.manifest.files().count(), 100_000);

    let error = ask(&many(150_000, "")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");

    // Of archives there are fewer, and none of them is fetched.
    let archives = many(300, r#","io.deis.oras.content.unpack":"true""#);
    let error = ask(&archives).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert_eq!(archives.count("/blobs/"), 0);
}
