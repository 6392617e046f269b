//! `why` explains every error number that a reader can meet, and every absence.

use serde_json::Value;

use crate::support::registry::{Effect, Fault, RouteKind, TestRegistry};
use crate::{World, text};

const KEY: &str = "sk-musher-of-the-owner-0123456789";

#[track_caller]
fn assert_failure(why: &Value, errno: &str, remedy: &str) {
    let failure = &why["failure"];
    assert_eq!(failure["errno"], errno, "{why}");
    assert!(
        failure["remedy"].as_str().unwrap().contains(remedy),
        "{why}"
    );
    assert!(failure["times"].as_u64().unwrap() >= 1, "{why}");
    assert!(failure["message"].as_str().unwrap().len() > 10, "{why}");
}

#[test]
fn every_error_number_has_a_cause_and_a_remedy() {
    let Some(world) = World::new() else { return };
    let files: Vec<(&str, &[u8])> = vec![
        ("denied.md", b"denied\n"),
        ("late.md", b"late\n"),
        ("wrong.md", b"wrong\n"),
        ("gone.md", b"gone\n"),
        ("fine.md", b"fine\n"),
    ];
    world.registry.publish("acme", "kit", "1.0.0", &files);
    world
        .registry
        .publish("acme", "malformed", "1.0.0", &[("a.md", b"a\n")]);
    world.mount(&["--content-timeout", "300ms", "--readahead", "0"]);
    let path = |name: &str| format!("acme/kit/{name}");
    assert_eq!(
        std::fs::read(world.at(&path("fine.md"))).unwrap(),
        b"fine\n"
    );
    let fine = world.why(&path("fine.md"));
    assert_eq!(
        (&fine["kind"], &fine["cached"]),
        (&"file".into(), &true.into())
    );
    assert_eq!(fine["failure"], Value::Null);
    assert!(fine["verified"].is_string(), "{fine}");
    assert!(
        fine["source"]
            .as_str()
            .unwrap()
            .contains(&world.registry.host())
    );

    let content = |effect| Fault::new(effect).on_content();
    world.registry.fault(content(Effect::WrongBytes));
    assert!(
        world
            .complaint(&path("wrong.md"))
            .contains("Input/output error")
    );
    assert_failure(&world.why(&path("wrong.md")), "EIO", "discarded");
    world.registry.clear_faults();

    // Not JSON, though it says so: as a login page or a proxy answers.
    world
        .registry
        .fault(Fault::new(Effect::Garbage).on(RouteKind::Resolve));
    assert!(
        world
            .complaint("acme/malformed/a.md")
            .contains("Input/output error")
    );
    assert_failure(&world.why("acme/malformed"), "EIO", "login page");
    world.registry.clear_faults();

    world.registry.fault(content(Effect::Status(403)));
    assert!(
        world
            .complaint(&path("denied.md"))
            .contains("Permission denied")
    );
    assert_failure(&world.why(&path("denied.md")), "EACCES", "MUSHER_API_KEY");
    world.registry.clear_faults();

    world.registry.fault(content(Effect::Hang));
    assert!(world.complaint(&path("late.md")).contains("timed out"));
    assert_failure(
        &world.why(&path("late.md")),
        "ETIMEDOUT",
        "MUSHERFS_CONTENT_TIMEOUT",
    );
    world.registry.clear_faults();

    world.registry.stop();
    assert!(
        world
            .complaint(&path("gone.md"))
            .contains("No route to host")
    );
    assert_failure(&world.why(&path("gone.md")), "EHOSTUNREACH", "network");

    let status = world.status();
    assert_eq!(status["sources"][0]["state"], "down", "{status}");
    assert!(status["sources"][0]["error"].is_string(), "{status}");
    let failures = status["failures"].as_array().unwrap();
    assert_eq!(failures[0]["path"], "/acme/kit@1.0.0/gone.md", "{status}");

    // Nobody can write, whatever is there or is not.
    for name in ["fine.md", "new.md"] {
        let error = std::fs::write(world.at(&path(name)), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let why = world.why(&path(name));
        assert_eq!(why["writing"]["errno"], "EROFS", "{why}");
        assert!(
            why["writing"]["remedy"]
                .as_str()
                .unwrap()
                .contains("new version"),
            "{why}"
        );
    }
    let said = world.run(&["why", world.at(&path("fine.md")).to_str().unwrap()]);
    assert!(
        text(&said.stdout).contains("writes    fail with EROFS"),
        "{said:?}"
    );

    // A success takes the failure away.
    world.registry.restart();
    crate::wait_until("the source is asked again", || {
        std::fs::read(world.at(&path("gone.md"))).is_ok()
    });
    assert_eq!(world.why(&path("gone.md"))["failure"], Value::Null);
}

#[test]
fn a_registry_that_keeps_refusing_for_now_is_told_from_one_that_is_gone() {
    for (status, part) in [(503, "503"), (429, "429")] {
        let Some(world) = World::new() else { return };
        world
            .registry
            .publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
        world.mount(&[]);
        assert!(world.at("acme/kit/a.md").exists());
        world
            .registry
            .fault(Fault::new(Effect::Status(status)).on_content());
        let said = world.complaint("acme/kit/a.md");
        assert!(said.contains("No route to host"), "{said}");
        let why = world.why("acme/kit/a.md");
        assert_failure(&why, "EHOSTUNREACH", "network");
        let message = why["failure"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_an_offline_mount_lacks_is_explained_with_a_way_to_get_it() {
    let Some(world) = World::new() else { return };
    world.mount(&["--offline"]);
    let _ = std::fs::read(world.at("acme/kit/a.md"));
    for path in ["acme", "acme/kit", "acme/kit@1.0.0/a.md"] {
        let why = world.why(path);
        assert_eq!(why["kind"], "absent", "{why}");
        assert!(
            why["reason"].as_str().unwrap().contains("nobody is asked"),
            "{why}"
        );
        assert!(
            why["remedy"].as_str().unwrap().contains("--offline"),
            "{why}"
        );
    }
}

#[test]
fn every_absence_has_a_reason() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("docs/Read.me", b"x\n")]);
    world.registry.plant(
        "acme",
        "odd",
        "1.0.0",
        &[("../up.md", b"x\n"), ("ok.md", b"y\n")],
    );
    world.mount(&[]);
    let listed = std::fs::read_dir(world.at("acme")).unwrap().count();
    assert!(listed >= 4, "{listed}");
    for path in [
        "acme/kit/nothing.md",
        "acme/kit@2.0.0/x",
        "acme/kot",
        "nowhere",
        ".git",
        "acme/odd/ok.md",
    ] {
        let _ = std::fs::read(world.at(path));
    }
    for (path, kind, part) in [
        (".git", "absent", "start with a dot"),
        ("two words", "absent", "NAMESPACE/BUNDLE"),
        ("acme/.idea", "absent", "start with a dot"),
        ("acme/kit@@", "absent", "not the name"),
        ("acme/kot", "absent", "lacks it"),
        ("acme/kit@2.0.0/x", "absent", "the newest is 1.0.0"),
        ("acme/kit/nothing.md", "absent", "never will"),
        (
            "acme/kit@1.0.0/read.me",
            "absent",
            "did you mean docs/Read.me?",
        ),
    ] {
        let why = world.why(path);
        assert_eq!(why["kind"], kind, "{why}");
        let said = format!("{} {}", why["reason"], why["remedy"]);
        assert!(said.contains(part), "{path}: {said}");
        assert!(why["remedy"].as_str().unwrap().len() > 10, "{why}");
    }
    let exit = world.run(&["why", world.at("acme/kot").to_str().unwrap()]);
    assert_eq!(exit.status.code(), Some(1));
}

#[test]
fn what_a_policy_refuses_is_named_as_refused() {
    let Some(world) = World::new() else { return };
    let version = world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    world.registry.yank(&version, "a mistake");
    world.mount(&["--deny-yanked"]);
    assert!(
        world
            .complaint("acme/kit@1.0.0/a.md")
            .contains("Permission denied")
    );
    let why = world.why("acme/kit@1.0.0/a.md");
    assert_eq!(
        (&why["kind"], &why["state"]),
        (&"refused".into(), &"yanked".into()),
        "{why}"
    );
    assert!(
        why["remedy"].as_str().unwrap().contains("--deny-yanked"),
        "{why}"
    );
}

#[test]
fn a_bundle_that_needs_a_key_says_so() {
    let Some(world) = World::with_registry(TestRegistry::start_with_token(KEY)) else {
        return;
    };
    world
        .registry
        .publish_private("acme", "secret", "1.0.0", &[("a.md", b"a\n")]);
    world
        .registry
        .fault(Fault::new(Effect::Status(401)).on(RouteKind::Resolve));
    world.mount(&[]);
    world.complaint("acme/secret/a.md");
    let why = world.why("acme/secret/a.md");
    let said = why.to_string();
    assert!(said.contains("key"), "{said}");
    assert!(!said.contains(KEY), "{said}");
}

#[test]
fn a_key_that_the_registry_refuses_is_named_as_the_cause_by_where_it_is_from() {
    const STALE: &str = "mush_of_yesterday_0123456789";
    let Some(mut world) = World::with_registry(TestRegistry::start_with_token(KEY)) else {
        return;
    };
    let files: &[(&str, &[u8])] = &[("a.md", b"a\n"), ("b.md", b"b\n")];
    world
        .registry
        .publish_private("acme", "secret", "1.0.0", files);
    world.registry.publish("acme", "kit", "1.0.0", files);
    world.key = Some(STALE);
    world.mount(&["--readahead", "0"]);
    // What is public is there, so that what is private looks as if there were no such bundle.
    assert_eq!(std::fs::read(world.at("acme/kit/a.md")).unwrap(), b"a\n");
    world.complaint("acme/secret/a.md");
    world.complaint("acme/secret@1.0.0/a.md");
    for path in ["acme/secret/a.md", "acme/secret@1.0.0/a.md"] {
        let why = world.why(path);
        let reason = why["reason"].as_str().unwrap();
        assert!(reason.contains("refuses the key (MUSHER_API_KEY)"), "{why}");
        assert!(reason.contains("401"), "{why}");
        let remedy = why["remedy"].as_str().unwrap();
        assert!(remedy.contains("mount again with a key"), "{why}");
        assert!(!why.to_string().contains(STALE), "{why}");
    }
    let said = world.run(&["why", world.at("acme/secret").to_str().unwrap()]);
    let said = text(&said.stdout);
    assert!(said.contains("because   "), "{said}");
    assert!(said.contains("refuses the key"), "{said}");
    // It is no cause of what is there, nor of what certainly never was.
    for path in ["acme/kit/b.md", "acme/kit/nothing.md", "acme/.git"] {
        let why = world.why(path);
        assert!(!why.to_string().contains("refuses"), "{why}");
    }

    // It may be of a file that is listed, but not to be read.
    world
        .registry
        .fault(Fault::new(Effect::Status(403)).on_content());
    let denied = world.complaint("acme/kit/b.md");
    assert!(denied.contains("Permission denied"), "{denied}");
    let why = world.why("acme/kit/b.md");
    assert_failure(&why, "EACCES", "MUSHER_API_KEY");
    assert!(why["reason"].as_str().unwrap().contains("refuses"), "{why}");
}

#[test]
fn a_mount_whose_key_is_refused_says_so_whatever_key_the_shell_has() {
    let Some(mut world) = World::with_registry(TestRegistry::start_with_token(KEY)) else {
        return;
    };
    world
        .registry
        .publish_private("acme", "secret", "1.0.0", &[("a.md", b"a\n")]);
    world.key = Some("mush_of_yesterday");
    world.mount(&[]);
    world.complaint("acme/secret/a.md");
    world.key = Some(KEY);
    let dir = world.mountpoint();
    let told = "refuses the key of this mount";
    let status = text(&world.run(&["status", "-l"]).stdout);
    assert!(status.contains(told), "{status}");
    let doctor = text(&world.run(&["doctor", dir.to_str().unwrap()]).stdout);
    assert!(doctor.contains(told), "{doctor}");
    assert!(!doctor.contains(KEY), "{doctor}");
}

#[test]
fn a_reference_is_explained_from_the_cache_without_a_mount() {
    let Some(world) = World::new() else { return };
    world.registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"a\n"), ("b.md", b"b\n")],
    );
    world.mount(&["--readahead", "0"]);
    assert_eq!(std::fs::read(world.at("acme/kit/a.md")).unwrap(), b"a\n");
    assert!(
        world
            .run(&["umount", world.mountpoint().to_str().unwrap()])
            .status
            .success()
    );
    world.registry.stop();

    let why = world.json(&["why", "--json", "acme/kit/a.md"]);
    assert_eq!(
        (&why["kind"], &why["cached"]),
        (&"file".into(), &true.into()),
        "{why}"
    );
    assert_eq!(why["version"], "1.0.0", "{why}");
    let why = world.json(&["why", "--json", "acme/kit@1.0.0/b.md"]);
    assert_eq!(why["cached"], false, "{why}");
    let why = world.run(&["why", "acme/unheard-of"]);
    assert_eq!(why.status.code(), Some(1));
    assert!(
        text(&why.stdout).contains("no version of it is cached"),
        "{why:?}"
    );
}
