//! Publishing to Debian's docker-registry, and what other tools find there.

#![allow(clippy::unwrap_used)]

mod push_harness;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use musherfs::digest::Digest;
use push_harness::*;
use serde_json::json;

const FILES: &[(&str, &str)] = &[
    ("prompts/review.md", "Review this.\n"),
    ("prompts/same.md", "Review this.\n"),
    ("skills/über/SKILL.md", "# ü\n"),
    ("empty", ""),
];

#[test]
fn what_is_published_is_pulled_by_oras_and_copied_by_skopeo_with_the_same_bytes() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.2.0", FILES);
    let host = registry.host.as_str();
    let dir_arg = dir.to_str().unwrap();
    let published = home.json(&[
        "publish", dir_arg, "--oci", host, "--tag", "latest", "--json",
    ]);
    assert_eq!(published["ref"], "acme/kit@1.2.0");
    assert_eq!(published["ociRef"], format!("{host}/acme/kit:1.2.0"));
    assert_eq!(published["existed"], false);
    assert_eq!(published["files"], 4);
    // Three distinct contents and the config.
    assert_eq!(published["blobsUploaded"], 4);
    let digest = published["digest"].as_str().unwrap();

    for tag in ["1.2.0", "latest"] {
        let manifest = registry.get(&format!("acme/kit/manifests/{tag}"));
        assert_eq!(Digest::of(&manifest).to_string(), digest, "{tag}");
    }
    let manifest = registry.json("acme/kit/manifests/1.2.0");
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["org.opencontainers.image.title"], "kit");
    assert_eq!(annotations["org.opencontainers.image.version"], "1.2.0");
    assert_eq!(
        annotations["org.opencontainers.image.description"],
        "a test"
    );
    let created = annotations["org.opencontainers.image.created"]
        .as_str()
        .unwrap();
    assert!(created.ends_with('Z'), "{created}");
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.musher.bundle.v1.config"
    );

    let pulled = home.path().join("pulled");
    oras_pull(host, "acme/kit:1.2.0", &pulled);
    fs::remove_file(dir.join("musher.yaml")).unwrap();
    assert_eq!(tree(&pulled), tree(&dir));

    let layout = home.path().join("layout");
    let from = format!("docker://{host}/acme/kit:1.2.0");
    let to = format!("oci:{}:acme/kit:1.2.0", layout.display());
    skopeo(&["copy", "--src-tls-verify=false", &from, &to]);
    let blobs = layout.join("blobs/sha256");
    assert!(blobs.join(digest.strip_prefix("sha256:").unwrap()).exists());
    for (path, text) in FILES {
        let copied = fs::read(blobs.join(Digest::of(text.as_bytes()).hex())).unwrap();
        assert_eq!(copied, text.as_bytes(), "{path}");
    }
}

#[test]
fn publishing_again_succeeds_with_the_same_content_and_is_refused_with_other_content() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0+build.7", FILES);
    let arguments = [
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--json",
    ];
    let first = home.json(&arguments);
    assert!(
        first["ociRef"]
            .as_str()
            .unwrap()
            .ends_with(":1.0.0_build.7")
    );
    let uploads = registry.count("POST", "/blobs/uploads/");
    let output = home.run(&[&arguments[..], &["--tag", "stable"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("already published"), "{said}");
    let second: serde_json::Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!(second["existed"], true);
    assert_eq!(second["digest"], first["digest"]);
    assert_eq!(registry.count("POST", "/blobs/uploads/"), uploads);
    let stable = registry.get("acme/kit/manifests/stable");
    assert_eq!(
        Digest::of(&stable).to_string(),
        first["digest"].as_str().unwrap()
    );

    fs::write(dir.join("empty"), "no longer").unwrap();
    let refused = home.run(&arguments);
    assert_fails(&refused, 1, "was published before");
    let there = registry.get("acme/kit/manifests/1.0.0_build.7");
    assert_eq!(
        Digest::of(&there).to_string(),
        first["digest"].as_str().unwrap()
    );
}

#[test]
fn a_new_version_uploads_only_what_is_new_and_a_sibling_lends_the_rest() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let first = home.bundle("acme/kit@1.0.0", FILES);
    home.ok(&["publish", first.to_str().unwrap(), "--oci", &registry.host]);
    let mut files = FILES.to_vec();
    files.push(("new", "new\n"));
    let second = home.bundle("acme/kit@1.1.0", &files);
    let published = home.json(&[
        "publish",
        second.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--json",
    ]);
    assert_eq!(published["blobsFound"], 3);
    assert_eq!(published["blobsUploaded"], 2, "the new file and the config");

    let sibling = home.bundle("acme/fork@1.0.0", FILES);
    let published = home.json(&[
        "publish",
        sibling.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--mount-from",
        "acme/kit",
        "--json",
    ]);
    // The config is the same too: it names paths, not the bundle.
    assert_eq!(published["blobsMounted"], 4);
    assert_eq!(published["blobsUploaded"], 0);
}

#[test]
fn two_thousand_files_arrive() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let files: Vec<(String, String)> = (0..2000)
        .map(|n| {
            (
                format!("prompts/{}/{n}.md", n % 50),
                format!("file {n}\n").repeat(400),
            )
        })
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(p, t)| (p.as_str(), t.as_str()))
        .collect();
    let dir = home.bundle("acme/large@1.0.0", &files);
    let published = home.json(&[
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--json",
    ]);
    assert_eq!(published["blobsUploaded"], 2001);
    let manifest = registry.json("acme/large/manifests/1.0.0");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2000);
    let one = Digest::of(files[1234].1.as_bytes());
    assert_eq!(
        registry.get(&format!("acme/large/blobs/{one}")),
        files[1234].1.as_bytes()
    );
}

#[test]
fn two_publishers_of_the_same_content_both_succeed_and_agree() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", FILES);
    let dir = dir.to_str().unwrap();
    let start = || {
        home.command(&["publish", dir, "--oci", &registry.host, "--json"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [start(), start(), start(), start()];
    for child in both {
        let published = succeeded(&child.wait_with_output().unwrap());
        assert!(published.contains("acme/kit@1.0.0"));
    }
    let again = home.json(&["publish", dir, "--oci", &registry.host, "--json"]);
    assert_eq!(again["existed"], true);
}

#[test]
fn a_registry_with_a_password_takes_the_login_of_docker_flags_or_environment_and_no_other() {
    let registry = DockerRegistry::start(Access::Password, None);
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", FILES);
    let arguments = ["publish", dir.to_str().unwrap(), "--oci", &registry.host];
    let nobody = home.run(&arguments);
    assert_fails(&nobody, 2, "503");

    let wrong = home
        .command(&arguments)
        .env("MUSHERFS_OCI_USER", USER)
        .env("MUSHERFS_OCI_PASSWORD", "wrong-battery")
        .output()
        .unwrap();
    assert_fails(&wrong, 2, "503");
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(!said.contains("wrong-battery"), "{said}");

    home.docker_login(&registry.host);
    home.ok(&arguments);

    let other = Home::new();
    let dir = other.bundle("acme/kit@1.0.1", FILES);
    let output = other
        .command(&["publish", dir.to_str().unwrap(), "--oci", &registry.host])
        .env("MUSHERFS_OCI_USER", USER)
        .env("MUSHERFS_OCI_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    succeeded(&output);
}

#[test]
fn a_private_ca_is_trusted_when_it_is_named() {
    let tls = Tls::new();
    let registry = DockerRegistry::start(Access::Open, Some(&tls));
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", FILES);
    let to = format!("https://{}", registry.host);
    let arguments = ["publish", dir.to_str().unwrap(), "--oci", &to];
    assert_fails(&home.run(&arguments), 3, "503");
    let ca = tls.ca();
    home.ok(&[&arguments[..], &["--ca-file", ca.to_str().unwrap()]].concat());
}

#[test]
fn a_yank_is_a_record_of_its_own_about_the_version() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.2.0", FILES);
    let published = home.json(&[
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--json",
    ]);
    let reference = "acme/kit@1.2.0";
    let yank = |reason: &str| {
        home.json(&[
            "yank",
            reference,
            "--oci",
            &registry.host,
            "--reason",
            reason,
            "--actor",
            "ada",
            "--json",
        ])
    };
    let first = yank("leaks a secret");
    assert_eq!(first["changed"], true);
    assert_eq!(first["tag"], "_yanked.1.1.2.0");
    assert_eq!(yank("another")["changed"], false);
    let record = registry.json("acme/kit/manifests/_yanked.1.1.2.0");
    assert_eq!(
        record["artifactType"],
        "application/vnd.musher.bundle.v1.state"
    );
    assert_eq!(record["subject"]["digest"], published["digest"]);
    assert_eq!(record["annotations"]["dev.musher.state"], "yanked");
    assert_eq!(record["annotations"]["dev.musher.reason"], "leaks a secret");
    assert_eq!(record["annotations"]["dev.musher.actor"], "ada");

    let back = home.json(&["unyank", reference, "--oci", &registry.host, "--json"]);
    assert_eq!(back["tag"], "_published.2.1.2.0");
    home.ok(&[
        "registry",
        "yank",
        reference,
        "--oci",
        &registry.host,
        "--reason",
        "again",
    ]);
    let tags = registry.json("acme/kit/tags/list");
    let tags = tags["tags"].as_array().unwrap();
    assert!(tags.iter().any(|tag| tag == "_yanked.3.1.2.0"), "{tags:?}");
    assert_eq!(tags.len(), 4, "nothing is moved or deleted: {tags:?}");

    let unknown = home.run(&[
        "yank",
        "acme/kit@9.9.9",
        "--oci",
        &registry.host,
        "--reason",
        "x",
    ]);
    assert_fails(&unknown, 1, "has no acme/kit@9.9.9");
}

#[test]
fn registry_publish_goes_to_an_oci_registry_too() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", FILES);
    let printed = home.ok(&[
        "registry",
        "publish",
        "--oci",
        &format!("{}/team", registry.host),
        dir.to_str().unwrap(),
    ]);
    assert!(printed.starts_with(&format!("{}/team/acme/kit:1.0.0@sha256:", registry.host)));
    registry.json("team/acme/kit/manifests/1.0.0");
}

#[test]
fn a_yank_is_honoured_by_whoever_resolves() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let host = registry.host.as_str();
    for version in ["1.0.0", "1.2.0"] {
        let dir = home.bundle(&format!("acme/kit@{version}"), FILES);
        home.ok(&["publish", dir.to_str().unwrap(), "--oci", host]);
    }
    // In a home of its own each time: nothing is remembered.
    let resolve =
        |reference: &str| Home::new().json(&["resolve", reference, "--oci", host, "--json"]);
    assert_eq!(resolve("acme/kit")["version"], "1.2.0");
    home.ok(&[
        "yank",
        "acme/kit@1.2.0",
        "--oci",
        host,
        "--reason",
        "leaks a secret",
    ]);
    assert_eq!(resolve("acme/kit")["version"], "1.0.0");
    assert_eq!(resolve("acme/kit@^1")["version"], "1.0.0");
    let exact = resolve("acme/kit@1.2.0");
    assert_eq!(exact["version"], "1.2.0");
    assert_eq!(exact["state"], "yanked");
    home.ok(&["unyank", "acme/kit@1.2.0", "--oci", host]);
    assert_eq!(resolve("acme/kit")["version"], "1.2.0");
}

#[test]
fn an_export_from_the_registry_has_its_manifest_with_all_annotations() {
    let registry = DockerRegistry::start(Access::Password, None);
    let host = registry.host.as_str();
    let home = Home::new();
    home.docker_login(host);
    let dir = home.bundle("acme/kit@1.0.0+b", FILES);
    let dir = dir.to_str().unwrap();
    let published = home.json(&["publish", dir, "--oci", host, "--tag", "stable", "--json"]);
    let layout = home.path().join("layout");
    let layout = layout.to_str().unwrap();
    let rows = home.json(&["export", "acme/kit@stable", layout, "--oci", host, "--json"]);
    assert_eq!(rows[0]["ref"], "acme/kit@1.0.0+b");
    assert_eq!(rows[0]["digest"], published["digest"]);
    assert_eq!(rows[0]["rebuilt"], false);
    let elsewhere = Home::new();
    let on_layout = ["--oci", &format!("oci-layout:{layout}"), "--json"];
    let found = elsewhere.json(&[&["resolve", "acme/kit@stable"][..], &on_layout].concat());
    assert_eq!(found["version"], "1.0.0+b");
    assert_eq!(found["ociDigest"], published["digest"]);
    // Into the cache of a machine that cannot reach the registry, aliases included.
    elsewhere.ok(&["import", layout, "--oci", host]);
    let offline = ["--oci", host, "--offline", "--json"];
    for reference in ["acme/kit", "acme/kit@stable", "acme/kit@1.0.0+b"] {
        let found = elsewhere.json(&[&["resolve", reference][..], &offline].concat());
        assert_eq!(found["version"], "1.0.0+b", "{reference}");
    }
}

#[test]
fn a_credential_helper_is_asked_for_the_login_wherever_docker_names_it() {
    let registry = DockerRegistry::start(Access::Password, None);
    let home = Home::new();
    let bin = home.path().join("bin");
    fs::create_dir_all(home.path().join(".docker")).unwrap();
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = |answer: &str| {
        let script = format!("#!/bin/sh\necho \"$1 $(cat)\" >>\"$HOME/asked\"\n{answer}\n");
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let config = |json: serde_json::Value| {
        fs::write(home.path().join(".docker/config.json"), json.to_string()).unwrap();
    };
    let publish = |version: &str| {
        let dir = home.bundle(&format!("acme/kit@{version}"), FILES);
        home.command(&["publish", dir.to_str().unwrap(), "--oci", &registry.host])
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .output()
            .unwrap()
    };

    script(&format!(
        r#"echo '{{"ServerURL":"","Username":"{USER}","Secret":"{PASSWORD}"}}'"#
    ));
    for (version, settings) in [
        ("1.0.0", json!({"credsStore": "test"})),
        ("1.0.1", json!({"credHelpers": {&registry.host: "test"}})),
        // As `docker login` leaves it with a store: the entry is there and says nothing.
        (
            "1.0.2",
            json!({"auths": {&registry.host: {}}, "credsStore": "test"}),
        ),
    ] {
        config(settings.clone());
        let _ = fs::remove_file(home.path().join("asked"));
        succeeded(&publish(version));
        let asked = fs::read_to_string(home.path().join("asked")).unwrap();
        let lines: Vec<_> = asked.lines().collect();
        assert_eq!(lines, [format!("get {}", registry.host)], "{settings}");
    }

    script("echo 'credentials not found in native keychain'; exit 1");
    assert_fails(&publish("1.1.0"), 2, "503");
    script(&format!(
        "echo 'locked, but the password is {PASSWORD}' >&2; exit 1"
    ));
    let failed = publish("1.1.0");
    assert_fails(&failed, 2, "503");
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("docker-credential-test failed"), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
}
