//! Publishing to a directory: what is said of it, and of what is wrong.

use std::fs;

use crate::{Home, assert_fails, stderr, stdout};

const DEFINITION: &str = "\
namespace: acme
slug: kit
version: 1.0.0
name: Kit
assets:
  - { id: readme, src: README.md }
";

fn bundle(home: &Home, definition: &str) {
    let dir = home.path().join("bundle");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("README.md"), "# Kit\n").unwrap();
    fs::write(dir.join("musher.yaml"), definition).unwrap();
}

const PUBLISH: [&str; 5] = ["registry", "publish", "--root", "registry", "bundle"];

#[test]
fn the_same_content_may_be_published_again_and_other_content_may_not() {
    let home = Home::new();
    bundle(&home, DEFINITION);
    let first = home.run(&PUBLISH);
    assert_eq!(stdout(&first), "acme/kit@1.0.0\n", "{first:?}");
    assert!(stderr(&first).contains("is private"), "{first:?}");
    assert!(stderr(&first).contains("`visibility: public`"), "{first:?}");

    let again = home
        .command(&PUBLISH)
        .env("USER", "another")
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(stdout(&again), "acme/kit@1.0.0\n");
    assert_eq!(
        stderr(&again),
        "acme/kit@1.0.0 is already published, with the same content\n"
    );
    let json = home.run(&[&PUBLISH[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["existed"], true);

    fs::write(home.path().join("bundle/README.md"), "# Another kit\n").unwrap();
    let other = home.run(&PUBLISH);
    assert_fails(&other, 1, "was published before");
    // Nothing was published, so nobody needs to know who could see it.
    assert!(!stderr(&other).contains("private"), "{other:?}");
    bundle(&home, &DEFINITION.replace("name: Kit", "name: Another"));
    assert_fails(&home.run(&PUBLISH), 1, "was published before");
}

#[test]
fn every_problem_of_a_definition_is_an_error_with_its_place() {
    let home = Home::new();
    bundle(
        &home,
        "namespace: Acme\nslug: kit\nname: Kit\nassets:\n  - { id: a, src: none.md }\n  - { id: a, src: README.md }\n",
    );
    let output = home.run(&PUBLISH);
    assert_fails(&output, 1, "");
    let text = stderr(&output);
    let places: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("error: bundle/musher.yaml"))
        .collect();
    let parts = [
        ": version is missing",
        ":1: namespace \"Acme\" is not lower-case",
        ":5: cannot read ",
        ":6: asset id \"a\" is listed twice",
    ];
    assert_eq!(places.len(), parts.len(), "{text}");
    for (line, part) in places.iter().zip(parts) {
        assert!(line.starts_with(part), "{line}: {part}");
    }
    assert!(text.lines().last().unwrap().starts_with("hint: "), "{text}");
    assert!(!home.path().join("registry/bundles").exists());
}

#[test]
fn a_missing_file_is_told_once_however_many_places_name_it() {
    let home = Home::new();
    bundle(
        &home,
        "namespace: acme\nslug: kit\nversion: 1.0.0\nname: Kit\nreadme: none.md\nassets:\n  - { id: a, src: none.md }\n",
    );
    let output = home.run(&PUBLISH);
    assert_fails(&output, 1, ":5: cannot read ");
    assert_eq!(
        stderr(&output).matches("cannot read").count(),
        1,
        "{output:?}"
    );
}

#[test]
fn a_yank_says_what_it_did() {
    let home = Home::new();
    bundle(&home, DEFINITION);
    home.run(&PUBLISH);
    let at = ["--root", "registry", "acme/kit@1.0.0"];
    let yank = [&["registry", "yank", "--reason", "a leak"][..], &at].concat();
    let unyank = [&["registry", "unyank"][..], &at].concat();
    for (command, said) in [
        (&yank, "yanked acme/kit@1.0.0\n"),
        (
            &yank,
            "acme/kit@1.0.0 was yanked before; its first reason stays\n",
        ),
        (&unyank, "unyanked acme/kit@1.0.0\n"),
        (&unyank, "acme/kit@1.0.0 is not yanked\n"),
    ] {
        let output = home.run(command);
        assert!(output.status.success(), "{output:?}");
        assert_eq!((stdout(&output), stderr(&output)), (said, ""));
    }
    for (command, state) in [(&yank, "yanked"), (&unyank, "published")] {
        let output = home.run(&[&command[..], &["--json"]].concat());
        let row: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            row,
            serde_json::json!({"ref": "acme/kit@1.0.0", "state": state, "changed": true, "tag": null})
        );
    }
    let missing = home.run(&["registry", "unyank", "--root", "nowhere", "acme/kit@1.0.0"]);
    assert_fails(&missing, 1, "there is no registry");
}
