//! What a registry's tags, manifests and layers look like from here.

use std::io::Write as _;
use std::time::Duration;

use musherfs::manifest::State;
use musherfs::source::{Deadline, Source};
use serde_json::json;

use super::fault_server::Reply;
use super::*;

#[tokio::test]
async fn a_bundle_costs_one_list_one_manifest_one_config_and_a_blob_for_each_file_read() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let files: [(&str, &[u8]); 3] = [("prompts/a.md", b"hello"), ("b", b""), ("c", b"hello")];
    registry.publish("acme/kit", "1.2.0", &files);
    registry.publish("acme/kit", "1.10.0-rc.1", &files[..1]);
    let client = machine.plain(&registry);
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    assert_eq!(loaded.manifest.id().to_string(), "acme/kit@1.2.0");
    assert_eq!(paths(&loaded), ["b", "c", "prompts/a.md"]);
    assert_eq!(registry.count("/tags/list"), 1);
    assert_eq!(registry.count("/manifests/"), 1);
    assert_eq!(registry.count("/blobs/"), 1, "the config");
    assert_eq!(read_of(&client, &loaded, "c").await.unwrap(), b"hello");
    // The same content under another path.
    let same = read_of(&client, &loaded, "prompts/a.md").await.unwrap();
    assert_eq!(same, b"hello");
    assert_eq!(registry.count("/blobs/"), 2);
    assert_eq!(registry.requests().len(), 4);

    // Another process on the same machine needs nobody.
    let again = machine.plain(&registry);
    assert_eq!(read(&again, "acme/kit", "c").await.unwrap(), b"hello");
    assert_eq!(registry.requests().len(), 4);
}

#[tokio::test]
async fn tags_ranges_digests_and_build_metadata_lead_to_versions() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("acme/kit", "1.2.0", &[("a", b"old")]);
    let digest = registry.publish("acme/kit", "1.3.0_build.1", &[("a", b"new")]);
    registry.tag("acme/kit", "stable", &digest);
    registry.publish("acme/kit", "nightly", &[("a", b"of no version")]);
    let client = machine.plain(&registry);
    let pinned = format!("acme/kit@{digest}");
    for (reference, content) in [
        ("acme/kit@1.3.0+build.1", "new"),
        ("acme/kit@1.2.0", "old"),
        ("acme/kit@^1.2", "new"),
        ("acme/kit@~1.2.0", "old"),
        ("acme/kit@stable", "new"),
        ("acme/kit@latest", "new"),
        (&pinned, "new"),
    ] {
        let read = read(&client, reference, "a").await.unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), content, "{reference}");
    }
    for absent in [
        "acme/kit@9.9.9",
        "acme/kit@nightly",
        "acme/kit@none",
        "acme/no",
    ] {
        let error = manifest(&client, absent).await.unwrap_err();
        assert!(error.is_absence(), "{absent}: {error}");
    }
    let asked = registry.requests().len();
    let error = manifest(&client, "Acme/Kit").await.unwrap_err();
    assert!(error.is_absence(), "{error}");
    assert_eq!(
        registry.requests().len(),
        asked,
        "no repository is upper case"
    );
}

#[tokio::test]
async fn a_yanked_version_is_not_chosen_and_stays_readable() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("acme/kit", "1.0.0", &[("a", b"1")]);
    let digest = registry.publish("acme/kit", "1.1.0", &[("a", b"2")]);
    registry.tag("acme/kit", "_yanked.1.1.1.0", &digest);
    let client = machine.plain(&registry);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"1");
    assert_eq!(read(&client, "acme/kit@^1", "a").await.unwrap(), b"1");
    let exact = manifest(&client, "acme/kit@1.1.0").await.unwrap();
    assert_eq!(exact.manifest.info().state, State::Yanked);
    let error = manifest(&client, "acme/kit@_yanked.1.1.1.0").await;
    assert!(error.unwrap_err().is_absence());

    registry.tag("acme/kit", "_published.2.1.1.0", &digest);
    let other = Machine::new();
    let client = other.plain(&registry);
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"2");
}

#[tokio::test]
async fn what_oras_pushes_is_read_file_by_file_and_archive_by_archive() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("skills/a/SKILL.md", "packed"), ("skills/b", "too")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar.into_inner().unwrap()).unwrap();
    let mut directory = registry.layer(
        "skills",
        &gzip.finish().unwrap(),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    );
    directory["annotations"]["io.deis.oras.content.unpack"] = json!("true");
    let file = registry.layer(
        "prompts/p.md",
        b"plain",
        "application/vnd.oci.image.layer.v1.tar",
    );
    let artifact = registry.artifact(&[directory, file]);
    registry.manifest("acme/kit", "1.0.0", &artifact);

    let client = machine.plain(&registry);
    let loaded = manifest(&client, "acme/kit").await.unwrap();
    assert_eq!(
        paths(&loaded),
        ["prompts/p.md", "skills/a/SKILL.md", "skills/b"]
    );
    let types: Vec<_> = loaded.manifest.files().map(|f| f.asset_type()).collect();
    assert_eq!(types, ["prompt", "skill", "skill"]);
    assert_eq!(registry.count("/blobs/"), 1, "the archive, for its list");
    let packed = read_of(&client, &loaded, "skills/a/SKILL.md")
        .await
        .unwrap();
    assert_eq!(packed, b"packed");
    let plain = read_of(&client, &loaded, "prompts/p.md").await.unwrap();
    assert_eq!(plain, b"plain");
    assert_eq!(registry.count("/blobs/"), 2);

    // A process that knows the list from the cache finds the archive again.
    let again = machine.plain(&registry);
    assert_eq!(read(&again, "acme/kit", "skills/b").await.unwrap(), b"too");
}

#[tokio::test]
async fn a_versions_tag_that_moves_raises_the_alarm_and_the_first_content_stays() {
    for same_files in [false, true] {
        let (registry, machine) = (FakeRegistry::start(), Machine::new());
        let mut artifact = registry.bundle(&[("a", b"first")]);
        let first = registry.manifest("acme/kit", "1.0.0", &artifact);
        registry.tag("acme/kit", "stable", &first);
        let client = machine.plain(&registry);
        assert_eq!(
            read(&client, "acme/kit@1.0.0", "a").await.unwrap(),
            b"first"
        );
        if same_files {
            artifact["annotations"] = json!({"moved": "yes"});
            registry.manifest("acme/kit", "1.0.0", &artifact);
        } else {
            registry.publish("acme/kit", "1.0.0", &[("a", b"other")]);
        }
        let version = "acme/kit@1.0.0".parse().unwrap();
        let deadline = Deadline::after(Duration::from_secs(30));
        let error = client.store.fetch(&version, deadline).await.unwrap_err();
        assert!(matches!(error, Error::Contradiction { .. }), "{error}");
        assert_eq!(
            read(&client, "acme/kit@1.0.0", "a").await.unwrap(),
            b"first"
        );

        // An alias may move.
        let second = registry.publish("acme/kit", "2.0.0", &[("a", b"second")]);
        registry.tag("acme/kit", "stable", &second);
        let later = Machine::new();
        let client = later.plain(&registry);
        assert_eq!(
            read(&client, "acme/kit@stable", "a").await.unwrap(),
            b"second"
        );
    }
}

#[tokio::test]
async fn namespaces_are_listed_where_the_registry_tells_and_found_where_it_does_not() {
    let registry = FakeRegistry::start();
    for repository in [
        "acme/kit",
        "acme/tools",
        "other/thing",
        "too/deep/name",
        "flat",
    ] {
        registry.publish(repository, "1.0.0", &[("a", b"x")]);
    }
    let deadline = || Deadline::after(Duration::from_secs(30));
    let acme = "acme".parse().unwrap();
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let root: Vec<_> = client
        .resolver
        .root(deadline())
        .await
        .iter()
        .cloned()
        .collect();
    assert_eq!(format!("{root:?}"), "[acme, other]");
    let listing = client.resolver.list(&acme, deadline()).await.unwrap();
    assert!(listing.complete);
    assert_eq!(
        format!("{:?}", listing.bundles),
        "{kit: [1.0.0], tools: [1.0.0]}"
    );

    registry.close_catalog();
    let machine = Machine::new();
    let client = machine.plain(&registry);
    assert!(client.resolver.root(deadline()).await.is_empty());
    let listing = client.resolver.list(&acme, deadline()).await.unwrap();
    assert!(!listing.complete && listing.bundles.is_empty());
    assert_eq!(read(&client, "acme/kit", "a").await.unwrap(), b"x");
    let asked = registry.requests().len();
    let elsewhere = "elsewhere".parse().unwrap();
    let presence = client.resolver.namespace(&elsewhere, deadline());
    assert_ne!(presence.await, musherfs::resolve::Presence::Absent);
    assert_eq!(registry.requests().len(), asked, "nobody could tell");
}

#[tokio::test]
async fn bundles_below_a_prefix_have_a_partition_of_their_own() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    registry.publish("team-a/acme/kit", "1.0.0", &[("a", b"of a")]);
    registry.publish("team-b/acme/kit", "1.0.0", &[("a", b"of b")]);
    for team in ["a", "b"] {
        let client = machine.client(&format!("{}/team-{team}", registry.host()), |_| {});
        let content = read(&client, "acme/kit@1.0.0", "a").await.unwrap();
        assert_eq!(content, format!("of {team}").as_bytes());
    }
}

#[tokio::test]
async fn lists_of_many_pages_are_read_to_their_end() {
    let registry = FakeRegistry::start();
    registry.publish("acme/kit", "1.0.0", &[("a", b"x")]);
    registry.publish("acme/kit", "1.1.0", &[("a", b"x")]);
    let page = |tag: &str| Reply::json(&json!({"name": "acme/kit", "tags": [tag]}));
    registry.script("last=1.0.0", page("1.1.0"));
    let next = "</v2/acme/kit/tags/list?n=1&last=1.0.0>; rel=\"next\"";
    registry.script("tags/list", page("1.0.0").header("link", next));
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let newest = manifest(&client, "acme/kit").await.unwrap();
    assert_eq!(newest.manifest.id().version.as_str(), "1.1.0");
    let source = &client.sources.all()[0];
    let deadline = Deadline::after(Duration::from_secs(30));
    let rows = source
        .versions(&"acme/kit".parse().unwrap(), deadline)
        .await;
    assert_eq!(rows.unwrap().len(), 2);
}

#[tokio::test]
async fn a_version_with_build_metadata_has_its_state_under_both_of_its_spellings() {
    let (registry, machine) = (FakeRegistry::start(), Machine::new());
    let digest = registry.publish("acme/kit", "1.0.0_b", &[("a", b"1")]);
    let client = machine.plain(&registry);
    for spelling in ["acme/kit@1.0.0+b", "acme/kit@1.0.0_b"] {
        let loaded = manifest(&client, spelling).await.unwrap();
        assert_eq!(loaded.manifest.id().version.as_str(), "1.0.0+b");
        assert_eq!(loaded.manifest.info().state, State::Published);
    }

    registry.tag("acme/kit", "_yanked.1.1.0.0_b", &digest);
    let machine = Machine::new();
    let client = machine.plain(&registry);
    let exact = manifest(&client, "acme/kit@1.0.0+b").await.unwrap();
    assert_eq!(exact.manifest.info().state, State::Yanked);
    for moving in ["acme/kit@1.0.0_b", "acme/kit", "acme/kit@^1"] {
        let error = manifest(&client, moving).await.unwrap_err();
        assert!(error.is_absence(), "{moving}: {error}");
    }
}

#[tokio::test]
async fn while_nobody_can_tell_what_is_yanked_nothing_is_taken_for_published() {
    let registry = FakeRegistry::start();
    let digest = registry.publish("acme/kit", "1.0.0", &[("a", b"1")]);
    registry.tag("acme/kit", "_yanked.1.1.0.0", &digest);
    let pinned = format!("acme/kit@{digest}");
    for trouble in [
        Reply::status(503),
        Reply::reset(),
        Reply::bytes("application/json", "{"),
    ] {
        registry.unscript();
        registry.script("/tags/list", trouble);
        for reference in ["acme/kit@1.0.0", &pinned] {
            let machine = Machine::new();
            let error = manifest(&machine.plain(&registry), reference).await;
            let error = error.unwrap_err();
            let is_failure = error.is_outage() || matches!(error, Error::Malformed { .. });
            assert!(is_failure, "{error}");
        }
    }
    // A registry that keeps the list to itself serves what is named exactly.
    registry.unscript();
    registry.script("/tags/list", Reply::status(403));
    let machine = Machine::new();
    let loaded = manifest(&machine.plain(&registry), "acme/kit@1.0.0").await;
    assert_eq!(paths(&loaded.unwrap()), ["a"]);
}

#[tokio::test]
async fn archives_in_a_layout_are_read_like_those_in_a_registry() {
    let machine = Machine::new();
    let layout = machine.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = musherfs::digest::Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let names = ["agents", "config", "prompts", "skills", "tools", "zebras"];
    let layers: Vec<_> = names
        .iter()
        .map(|name| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{name}/a.md"), name.as_bytes())
                .unwrap();
            let mut layer = blob(&tar.into_inner().unwrap());
            layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
            layer["annotations"] = json!({"org.opencontainers.image.title": name,
                "io.deis.oras.content.unpack": "true"});
            layer
        })
        .collect();
    let mut config = blob(b"{}");
    config["mediaType"] = json!("application/vnd.unknown.config.v1+json");
    let image = json!({"schemaVersion": 2, "mediaType": fake::MANIFEST, "config": config,
        "layers": layers});
    let mut entry = blob(image.to_string().as_bytes());
    entry["mediaType"] = json!(fake::MANIFEST);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "acme/kit:1.0.0"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();

    let host = format!("oci-layout:{}", layout.display());
    // The second session has the list of files from the cache, but not what they are in.
    for _ in 0..2 {
        let client = machine.client(&host, |_| {});
        for name in names {
            let content = read(&client, "acme/kit", &format!("{name}/a.md")).await;
            assert_eq!(content.unwrap(), name.as_bytes());
            std::fs::remove_file(machine.blob(name.as_bytes())).unwrap();
        }
    }
}
