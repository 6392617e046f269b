//! One user's session over a cache that every tool has written to.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::house::{House, set_age};
use crate::models::{CLI, Entry, MUSH, MUSH_BRANCH, PYTHON, Read, TOOLS, TYPESCRIPT, Tool};

/// Which tool's entry is where, and how many hours old.
const PLANTED: [(&str, &str, i64); 6] = [
    ("python", "api.musher.dev", 1),
    ("typescript", "ts.test", 3),
    ("mush-branch", "branch.test", 4),
    ("mush-4.2.0", "mush.test", 5),
    ("musher-cli", "cli.test", 30),
    ("local-pack", "_local", 100),
];

fn furnished() -> House {
    let house = House::new();
    house.registry.publish(
        "acme",
        "review",
        "1.0.0",
        &[("a.md", b"alpha\n"), ("b.md", b"beta\n")],
    );
    house
        .registry
        .publish("acme", "old", "0.9.0", &[("c.md", b"gamma\n")]);
    house.ok(&["load", "acme/review", "acme/old"]);
    house.redate("acme/review", "1.0.0", 2);
    house.redate("acme/old", "0.9.0", 50);
    for (tool, host, hours) in PLANTED {
        house.plant(tool, host, hours);
    }
    house.age_blobs();
    house
}

fn reads(house: &House, tool: Tool, host: &str) -> bool {
    let entry = Entry::new(&house.root(), host);
    match (tool.manifest)(&entry, Timestamp::now()) {
        Read::Hit(files) => {
            files.len() == 2
                && files
                    .iter()
                    .all(|file| (tool.has_blob)(&entry, &file.sha256))
        }
        _ => false,
    }
}

#[test]
fn a_session_over_every_tools_entries() {
    let house = furnished();
    assert_eq!(house.ok(&["cache", "path"]), "ROOT\n");
    let info = house.ok(&["cache", "info"]);
    assert!(
        info.starts_with("location  ROOT\nsize      ")
            && info.ends_with("\nentries   8\nblobs     15\n"),
        "{info}"
    );
    let info = house.json(&["cache", "info", "--json"]);
    let total: u64 = house
        .files()
        .iter()
        .map(|file| {
            let path = file.replace("HOST", &house.registry.host_id());
            fs::metadata(house.root().join(path)).unwrap().len()
        })
        .sum();
    assert_eq!(info["totalSize"], json!(total));
    assert_eq!(info["location"], "ROOT");
    assert_eq!((&info["entries"], &info["blobs"]), (&json!(8), &json!(15)));

    let host = "HOST".to_owned();
    assert_eq!(
        house.ok(&["cache", "list"]),
        format!(
            "BUNDLE       VERSION    ASSETS  SIZE  AGE  HOST\n\
             acme/kit     1.2.0    2 assets  12 B   1h  api.musher.dev\n\
             acme/review  1.0.0    2 assets  11 B   2h  {host}\n\
             acme/kit     1.2.0    2 assets  12 B   3h  ts.test\n\
             acme/kit     1.2.0    2 assets  12 B   4h  branch.test\n\
             acme/kit     1.2.0    2 assets  12 B   5h  mush.test\n\
             acme/kit     1.2.0    2 assets  12 B   1d  cli.test\n\
             acme/old     0.9.0     1 asset   6 B   2d  {host}\n\
             acme/kit     1.2.0    2 assets  12 B   4d  _local\n"
        )
    );
    let list = house.json(&["cache", "list", "--json", "--pattern", "acme/re*"]);
    let fetched = list[0]["fetchedAt"].as_str().unwrap();
    assert!(fetched.parse::<Timestamp>().is_ok(), "{fetched}");
    assert_eq!(
        list,
        json!([{
            "namespace": "acme", "slug": "review", "version": "1.0.0", "hostID": "HOST",
            "assetCount": 2, "totalSize": 11, "fetchedAt": fetched,
        }])
    );
    assert_eq!(
        house.ok(&["cache", "list", "--json", "--pattern", "nord/*"]),
        "[]\n"
    );
    assert_eq!(house.ok(&["cache", "list", "--pattern", "nord/*"]), "");

    // Damage: same size, other bytes.
    assert_eq!(
        house.ok(&["cache", "verify"]),
        "15 blobs (89 B) and 8 entries checked, 0 damaged\n"
    );
    let damaged = house.blob(b"alpha\n");
    fs::write(&damaged, "ALPHA\n").unwrap();
    set_age(&damaged, Duration::from_secs(7200));
    let verify = house.run(&["cache", "verify"]);
    assert_eq!(verify.status.code(), Some(1));
    let name = damaged.strip_prefix(house.root()).unwrap().display();
    let actual = musherfs::digest::Digest::of(b"ALPHA\n");
    assert_eq!(
        house.normal(&verify.stdout),
        format!(
            "{name}: its bytes are {actual}\n\
             15 blobs (89 B) and 8 entries checked, 1 damaged\n"
        )
    );
    assert_eq!(
        house.normal(&verify.stderr),
        "error: 1 damaged files below ROOT\n\
         hint: `musherfs cache heal` fetches them again; damaged content is never served\n"
    );
    let verify = house.run(&["cache", "verify", "--json"]);
    let verify: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
    assert_eq!(verify["bad"][0]["path"], name.to_string());

    house.registry.clear_log();
    assert_eq!(
        house.ok(&["cache", "heal"]),
        format!(
            "fetched  {name}\n\
             rewritten  manifests/api.musher.dev/acme/kit/1.2.0.json\n\
             rewritten  manifests/branch.test/acme/kit/1.2.0.json\n\
             rewritten  manifests/cli.test/acme/kit/1.2.0.json\n\
             rewritten  manifests/ts.test/acme/kit/1.2.0.json\n"
        )
    );
    assert_eq!(house.registry.content_requests(), 1);
    assert_eq!(fs::read(&damaged).unwrap(), b"alpha\n");
    assert_eq!(house.ok(&["cache", "heal"]), "");
    house.ok(&["cache", "verify"]);
    for host in ["api.musher.dev", "ts.test", "branch.test"] {
        for tool in TOOLS {
            // mush 4.2.0 looks for blobs elsewhere.
            let readable = reads(&house, tool, host);
            assert_eq!(readable, tool.name != MUSH.name, "{host} by {}", tool.name);
        }
    }
    set_age(&damaged, Duration::from_secs(7200));

    let before = house.files();
    let plan = house.ok(&["cache", "clean", "--dry-run"]);
    assert_eq!(house.files(), before);
    let done = house.ok(&["cache", "clean"]);
    assert_eq!(plan.replace("would remove", "removed"), done);
    assert!(
        done.starts_with("removed: 2 entries, 6 refs, 3 blobs, 0 leftover files ("),
        "{done}"
    );
    assert!(
        house
            .ok(&["cache", "clean"])
            .starts_with("removed: 0 entries, 0 refs, 0 blobs, 0 leftover files (0 B)")
    );
    for (tool, host) in [
        (PYTHON, "api.musher.dev"),
        (TYPESCRIPT, "ts.test"),
        (MUSH_BRANCH, "branch.test"),
        (MUSH, "mush.test"),
        (CLI, "_local"),
        (CLI, "api.musher.dev"),
    ] {
        assert!(reads(&house, tool, host), "{host} by {}", tool.name);
    }
    assert!(!house.blob(b"gamma\n").exists());
    assert!(house.blob(b"beta\n").exists());

    let pruned = house.json(&["cache", "prune", "--older-than", "3h", "--json"]);
    let keys: Vec<&str> = pruned
        .as_object()
        .unwrap()
        .keys()
        .map(|key| &**key)
        .collect();
    assert_eq!(
        keys,
        [
            "blobsRemoved",
            "bytesFreed",
            "bytesFreedHuman",
            "manifestsRemoved"
        ]
    );
    assert_eq!(pruned["manifestsRemoved"], 3);
    assert_eq!(pruned["blobsRemoved"], 6);
    let left: Vec<String> = house
        .files()
        .into_iter()
        .filter(|file| file.starts_with("manifests/") && !file.ends_with(".meta.json"))
        .collect();
    assert_eq!(
        left,
        [
            "manifests/HOST/acme/review/1.0.0.json",
            "manifests/_local/acme/kit/1.2.0.json",
            "manifests/api.musher.dev/acme/kit/1.2.0.json",
        ]
    );

    let refused = house.run(&["cache", "clear"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(house.blob(b"beta\n").exists());
    house.ok(&["cache", "clear", "--force", "--dry-run"]);
    assert!(house.blob(b"beta\n").exists());
    house.ok(&["cache", "clear", "--force"]);
    let left = house.files();
    assert!(
        left.iter().all(|file| file.contains("/_local/")
            || file.starts_with("blobs/")
            || file == "CACHEDIR.TAG"),
        "{left:?}"
    );
    assert!(reads(&house, CLI, "_local"));
    house.ok(&["cache", "clear", "--force", "--local-packs"]);
    assert_eq!(house.files(), ["CACHEDIR.TAG"]);
    house.ok(&["load", "acme/review"]);
    house.ok(&["cache", "verify"]);
}

#[test]
fn after_clean_every_tool_still_reads_its_own_fresh_entries() {
    let house = furnished();
    house.ok(&["cache", "clean"]);
    for (tool, host) in [
        (PYTHON, "api.musher.dev"),
        (TYPESCRIPT, "ts.test"),
        (MUSH_BRANCH, "branch.test"),
        (MUSH, "mush.test"),
        (CLI, "_local"),
    ] {
        assert!(reads(&house, tool, host), "{host} by {}", tool.name);
    }
    assert!(
        !house
            .root()
            .join("manifests/cli.test/acme/kit/1.2.0.json")
            .exists()
    );
}

#[test]
fn an_entry_that_cannot_be_read_keeps_all_content_until_it_expires() {
    let house = furnished();
    let manifest = house.root().join("manifests/ts.test/acme/kit/1.2.0.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    let clean = house.run(&["cache", "clean"]);
    assert!(clean.status.success());
    let (out, errors) = (house.normal(&clean.stdout), house.normal(&clean.stderr));
    assert!(out.contains(" 0 blobs,"), "{out}");
    assert!(
        errors.contains("manifests/ts.test/acme/kit/1.2.0.json cannot be read"),
        "{errors}"
    );
    let verify = house.run(&["cache", "verify"]);
    assert_eq!(verify.status.code(), Some(1));
    let sidecar = house
        .root()
        .join("manifests/ts.test/acme/kit/1.2.0.meta.json");
    fs::write(
        &sidecar,
        r#"{"fetchedAt": "2020-01-01T00:00:00.000Z", "ttlSeconds": 86400}"#,
    )
    .unwrap();
    let clean = house.ok(&["cache", "clean"]);
    assert!(clean.contains(" 5 blobs,"), "{clean}");
    house.ok(&["cache", "verify"]);
}

#[test]
fn heal_fetches_removes_or_leaves_what_is_damaged_and_says_which() {
    let house = furnished();
    let manifest = format!(
        "manifests/{}/acme/review/1.0.0.json",
        house.registry.host_id()
    );
    fs::write(house.root().join(&manifest), "{\"layers\": null}").unwrap();
    let pack = house.root().join("manifests/_local/acme/kit/1.2.0.json");
    let pack: serde_json::Value = serde_json::from_slice(&fs::read(pack).unwrap()).unwrap();
    let hex = |digest: &str| {
        let path = format!("blobs/sha256/{}/{digest}", &digest[..2]);
        fs::create_dir_all(house.root().join(&path).parent().unwrap()).unwrap();
        fs::write(house.root().join(&path), "BAD").unwrap();
        path
    };
    let packed = hex(pack["layers"][0]["contentSha256"].as_str().unwrap());
    let nobodys = hex(&"ab".repeat(32));

    let plan = house.ok(&["cache", "heal", "--dry-run"]);
    assert!(plan.ends_with(" 3 damaged\n"), "{plan}");
    let heal = house.run(&["cache", "heal", "--json"]);
    assert_eq!(heal.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&heal.stdout).unwrap();
    assert_eq!(report["removed"], json!([nobodys]));
    let rewritten = report["rewritten"].as_array().unwrap();
    assert!(rewritten.contains(&json!(manifest)), "{rewritten:?}");
    assert_eq!(report["failed"][0]["path"], packed);
    assert_eq!(fs::read(house.root().join(&packed)).unwrap(), b"BAD");
    house.ok(&["load", "acme/review", "--offline"]);
}

#[test]
fn young_content_and_files_being_written_stay() {
    let house = House::new();
    let root = house.root();
    let names = ["blobs/sha256/ab", "temp", "manifests/h.test/acme/kit"];
    for name in names {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let hex = format!("ab{}", "0".repeat(62));
    let blob = root.join("blobs/sha256/ab").join(&hex);
    fs::write(&blob, "x").unwrap();
    let temp = root.join("temp/6f1c2c3e-2c54-4a3e-9a2c-0a8f0f6f4a11.tmp");
    fs::write(&temp, "x").unwrap();
    let foreign = root.join("temp/notes.txt");
    fs::write(&foreign, "x").unwrap();
    house.ok(&["cache", "clean"]);
    assert!(blob.exists() && temp.exists());

    // Old, but locked by whoever writes it.
    let writer = fs::File::open(&temp).unwrap();
    writer.lock().unwrap();
    for file in [&blob, &temp, &foreign] {
        set_age(file, Duration::from_secs(2 * 3600));
    }
    house.ok(&["cache", "clean"]);
    assert!(!blob.exists() && temp.exists() && foreign.exists());
    drop(writer);
    house.ok(&["cache", "clean"]);
    assert!(!temp.exists() && foreign.exists());
}

#[test]
fn links_in_the_cache_lead_no_deletion_astray() {
    let house = furnished();
    let outside = house.path().join("outside");
    fs::create_dir_all(outside.join("ab")).unwrap();
    let hex = format!("ab{}", "0".repeat(62));
    let precious = outside.join("ab").join(&hex);
    fs::write(&precious, "x").unwrap();
    set_age(&precious, Duration::from_secs(7200));
    std::os::unix::fs::symlink(outside.join("ab"), house.root().join("blobs/sha256/zz")).unwrap();
    let manifests = house.root().join("manifests/linked.test");
    std::os::unix::fs::symlink(&outside, &manifests).unwrap();
    // Whatever is behind the link may name any blob, for a tool that follows it.
    let clean = house.run(&["cache", "clean"]);
    assert!(house.normal(&clean.stdout).contains(" 0 blobs,"));
    fs::remove_file(&manifests).unwrap();
    house.ok(&["cache", "clean"]);
    house.ok(&["cache", "clear", "--force", "--local-packs"]);
    assert!(precious.exists());
}
