//! Loading, pinning and locking.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::house::{House, files_below};
use crate::support::registry::{Effect, Fault, RouteKind};

fn files(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| {
            (
                format!("f/{n:03}.md"),
                format!("content {n}\n").into_bytes(),
            )
        })
        .collect()
}

fn publish(house: &House, slug: &str, version: &str, files: &[(String, Vec<u8>)]) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    house.registry.publish("acme", slug, version, &files);
}

#[test]
fn loaded_bundles_are_whole_and_need_no_network_any_more() {
    let house = House::new();
    house.registry.publish(
        "acme",
        "kit",
        "1.2.0",
        &[("a.md", b"alpha\n"), ("b/c.md", b"beta\n")],
    );
    let loaded = house.json(&["load", "acme/kit", "--json"]);
    assert_eq!(
        loaded,
        json!({
            "namespace": "acme", "slug": "kit", "version": "1.2.0", "name": loaded["name"],
            "description": loaded["description"], "assetCount": 2,
            "assets": [
                {"path": "a.md", "type": loaded["assets"][0]["type"], "size": 6},
                {"path": "b/c.md", "type": loaded["assets"][1]["type"], "size": 5},
            ],
            "cacheRoot": "ROOT", "cached": false, "harness": null, "command": null,
        })
    );
    house.registry.stop();
    assert_eq!(house.json(&["load", "acme/kit", "--json"])["cached"], true);
    assert_eq!(
        house.ok(&["load", "acme/kit@1.2.0", "--offline"]),
        "acme/kit@1.2.0: 2 files (11 B), all cached\n"
    );
    let missing = house.run(&["load", "acme/none", "--json"]);
    assert_eq!(missing.status.code(), Some(3));
    assert_eq!(missing.stdout, b"");
}

#[test]
fn an_interrupted_load_goes_on_where_it_was() {
    let house = House::new();
    publish(&house, "kit", "1.0.0", &files(40));
    // No answer with everything, and a network that fails after ten files.
    house
        .registry
        .fault(Fault::new(Effect::Status(404)).on(RouteKind::Pull));
    let down = Fault::new(Effect::Status(404))
        .on(RouteKind::Asset)
        .after(10);
    house.registry.fault(down);
    let failed = house.run(&["load", "acme/kit"]);
    assert!(!failed.status.success());
    let kept = files_below(&house.root().join("blobs")).len();
    assert_eq!(kept, 10);
    house.registry.clear_faults();
    house
        .registry
        .fault(Fault::new(Effect::Status(404)).on(RouteKind::Pull));
    house.registry.clear_log();
    assert_eq!(
        house.ok(&["load", "acme/kit"]),
        "acme/kit@1.0.0: 40 files (430 B), 30 fetched\n"
    );
    assert_eq!(house.registry.count(RouteKind::Asset), 30);
}

#[test]
fn force_asks_and_fetches_again_and_replaces_what_is_damaged() {
    let house = House::new();
    publish(&house, "kit", "1.0.0", &files(3));
    house.ok(&["load", "acme/kit"]);
    publish(&house, "kit", "1.1.0", &files(4));
    // The ref is fresh.
    assert!(
        house
            .ok(&["load", "acme/kit"])
            .starts_with("acme/kit@1.0.0")
    );
    let blob = house.blob(b"content 0\n");
    fs::write(&blob, "CONTENT 0\n").unwrap();
    house.registry.clear_log();
    assert_eq!(
        house.ok(&["load", "--force", "acme/kit"]),
        "acme/kit@1.1.0: 4 files (40 B), 4 fetched\n"
    );
    assert_eq!(house.registry.content_requests(), 4);
    assert_eq!(fs::read(&blob).unwrap(), b"content 0\n");
}

#[test]
fn a_lockfile_admits_what_it_names_and_nothing_else() {
    let house = House::new();
    publish(&house, "kit", "1.0.0", &files(2));
    publish(&house, "tool", "1.0.0", &files(1));
    assert_eq!(
        house.ok(&["lock", "musher.lock", "acme/kit@^1", "acme/kit"]),
        "acme/kit is 1.0.0\nacme/kit@^1 is 1.0.0\n"
    );
    let lock: serde_json::Value =
        serde_json::from_slice(&fs::read(house.path().join("musher.lock")).unwrap()).unwrap();
    assert_eq!(lock["bundles"][0]["ref"], "acme/kit");
    assert_eq!(lock["bundles"][0]["version"], "1.0.0");
    let table = lock["bundles"][0]["table"].as_str().unwrap();
    assert!(table.starts_with("sha256:"), "{table}");

    publish(&house, "kit", "1.1.0", &files(3));
    let locked = ["--locked", "musher.lock"];
    let load = |rest: &[&str]| house.run(&[&["load"], &locked[..], rest].concat());
    assert_eq!(
        house.normal(&load(&[]).stdout),
        "acme/kit@1.0.0: 2 files (20 B), 2 fetched\nacme/kit@1.0.0: 2 files (20 B), all cached\n"
    );
    assert!(load(&["acme/kit@1.0.0"]).status.success());
    assert!(load(&["--force", "acme/kit@^1"]).status.success());
    for other in ["acme/tool", "acme/kit@1.1.0", "acme/kit@~1", "nord/kit"] {
        let refused = load(&[other]);
        assert_eq!(refused.status.code(), Some(1), "{other}");
        let errors = house.normal(&refused.stderr);
        assert!(errors.contains("not in the lockfile"), "{errors}");
    }
    // The same names as of today.
    house.ok(&["lock", "musher.lock", "--offline"]);
    house.ok(&["lock", "musher.lock"]);
    let again = fs::read_to_string(house.path().join("musher.lock")).unwrap();
    assert!(again.contains("\"1.1.0\""), "{again}");

    // Another table than the one that was written down is an alarm, cached or not.
    let zeros = format!("sha256:{}", "0".repeat(64));
    fs::write(
        house.path().join("musher.lock"),
        lock.to_string().replace(table, &zeros),
    )
    .unwrap();
    let alarm = load(&["acme/kit"]);
    let errors = house.normal(&alarm.stderr);
    assert_eq!(alarm.status.code(), Some(1));
    assert!(errors.contains("integrity alarm"), "{errors}");
    let foreign = house.run(&[
        "load",
        "--locked",
        "musher.lock",
        "--api-url",
        "https://x.test",
    ]);
    assert_eq!(foreign.status.code(), Some(4));
}

#[test]
fn pins_are_loaded_kept_and_follow_their_names() {
    let house = House::new();
    publish(&house, "kit", "1.0.0", &files(2));
    publish(
        &house,
        "other",
        "1.0.0",
        &[("x".into(), b"other\n".to_vec())],
    );
    assert_eq!(
        house.ok(&["pin", "acme/kit"]),
        "pinned acme/kit@1.0.0: 2 files (20 B), 2 fetched\n"
    );
    house.ok(&["load", "acme/other"]);
    let pinned = house.json(&["pin", "--json", "acme/other"]);
    assert_eq!(
        (&pinned[0]["ref"], &pinned[1]),
        (&"acme/other".into(), &serde_json::Value::Null)
    );
    let unpinned = house.json(&["unpin", "--json", "acme/other"]);
    assert_eq!(
        unpinned,
        serde_json::json!([{"ref": "acme/other", "unpinned": true}])
    );
    let pins = house.json(&["pins", "--json"]);
    assert_eq!(pins[0]["ref"], "acme/kit");
    assert_eq!(pins[0]["version"], "1.0.0");
    assert_eq!(pins[0]["hostID"], "HOST");

    for bundle in ["acme/kit", "acme/other"] {
        house.redate(bundle, "1.0.0", 30);
    }
    house.age_blobs();
    let clean = house.ok(&["cache", "clean"]);
    assert!(clean.contains("kept: 1 entry that is pinned"), "{clean}");
    assert!(house.blob(b"content 0\n").exists());
    assert!(!house.blob(b"other\n").exists());

    // It moves: the new version is loaded, the old one let go.
    publish(&house, "kit", "1.1.0", &files(3));
    assert_eq!(house.ok(&["pins", "refresh"]), "1 pin confirmed\n");

    // Clearing takes pinned content too, which nobody should find out offline.
    let would = house.run(&["cache", "clear", "--dry-run"]);
    assert_eq!(
        house.normal(&would.stderr),
        "the content of 1 pin would go too\n"
    );
    let cleared = house.run(&["cache", "clear", "--force"]);
    assert_eq!(
        house.normal(&cleared.stderr),
        "the content of 1 pin is gone too; `musherfs pins refresh` loads it again\n"
    );
    assert_eq!(house.ok(&["pins", "refresh"]), "1 pin confirmed\n");
    assert!(house.blob(b"content 2\n").exists());
    assert_eq!(house.json(&["pins", "--json"])[0]["version"], "1.1.0");
    house.registry.stop();
    let refresh = house.run(&["pins", "refresh"]);
    assert_eq!(refresh.status.code(), Some(3));
    assert_eq!(house.json(&["pins", "--json"])[0]["version"], "1.1.0");
    assert_eq!(house.ok(&["unpin", "acme/kit"]), "unpinned acme/kit\n");
    assert_eq!(house.run(&["unpin", "acme/kit"]).status.code(), Some(1));
    assert_eq!(house.ok(&["pins", "--json"]), "[]\n");
    let failed = house.run(&["pin", "acme/none"]);
    assert_eq!(failed.status.code(), Some(3));
    assert_eq!(house.ok(&["pins", "--json"]), "[]\n");
}

#[test]
fn nothing_is_cleaned_while_nobody_knows_what_is_pinned() {
    let house = House::new();
    publish(&house, "kit", "1.0.0", &files(2));
    house.ok(&["pin", "acme/kit"]);
    house.redate("acme/kit", "1.0.0", 30);
    let pins = house.state().join("musherfs/pins.json");
    assert!(Path::new(&pins).exists());
    fs::write(&pins, "[{").unwrap();
    let before = house.files();
    assert_eq!(house.run(&["cache", "clean"]).status.code(), Some(1));
    assert_eq!(house.files(), before);
}
