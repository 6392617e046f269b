//! What the program says when there is nothing, or something is wrong: what, why, and what to do.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::{Home, assert_fails, stderr, stdout};

/// A URL on loopback where nobody answers.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[track_caller]
fn hint(output: &std::process::Output) -> String {
    let text = stderr(output);
    let line = text.lines().find_map(|line| line.strip_prefix("hint: "));
    line.unwrap_or_else(|| panic!("no hint: {text}")).to_owned()
}

#[test]
fn what_is_not_cached_is_not_called_absent_when_nobody_may_be_asked() {
    let home = Home::new();
    for arguments in [
        &["resolve", "--offline", "acme/kit"][..],
        &["load", "--offline", "acme/kit"],
        &["load", "--offline", "acme/kit@^1"],
        &["ls", "--offline", "acme/kit@1.0.0"],
        &["pin", "--offline", "acme/kit"],
    ] {
        let output = home.run(arguments);
        assert_fails(&output, 3, "not in the cache, and there is nobody to ask");
        assert!(hint(&output).contains("--offline"), "{arguments:?}");
        assert!(!stderr(&output).contains("spelling"), "{arguments:?}");
    }
    // Nobody mounted anything, so nobody can mount it otherwise.
    for arguments in [
        &["why", "acme/kit"][..],
        &["why", "acme/kit@1.0.0/a.md"],
        &["why", "--offline", "acme/kit@^1"],
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = stdout(&output);
        assert!(said.contains("nobody is asked"), "{said}");
        assert!(said.contains("`musherfs load acme/kit"), "{said}");
        assert!(!said.contains("EROFS"), "{said}");
        assert!(!said.contains("this mount"), "{said}");
    }
}

#[test]
fn a_missing_file_is_called_missing() {
    let home = Home::new();
    fs::create_dir(home.path().join("dir")).unwrap();
    for arguments in [
        &["lock", "missing.lock"][..],
        &["load", "--locked", "missing.lock"],
        &["mount", "--locked", "missing.lock", "mnt"],
        &["ls", "acme/kit", "--oci", "oci-layout:/nope"],
        &["mount", "--oci", "oci-layout:/nope", "mnt"],
        &["import", "/nope"],
    ] {
        let output = home.run(arguments);
        assert!(!output.status.success());
        assert!(
            hint(&output).contains("check the spelling"),
            "{arguments:?}: {output:?}"
        );
        assert!(!stderr(&output).contains("free space"), "{output:?}");
    }
    assert!(!home.path().join("mnt").exists(), "left behind");
}

#[test]
fn a_mount_whose_files_cannot_be_used_is_refused_as_a_setting_and_by_name() {
    let home = Home::new();
    let open = home.path().join("open.key");
    fs::write(&open, "mush_key\n").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    for (option, value) in [
        ("--api-key-file", "/nope"),
        ("--api-key-file", "open.key"),
        ("--ca-file", "/nope"),
        ("--locked", "/nope"),
        ("--locked", "open.key"),
        ("--oci", "oci-layout:/nope"),
        ("--api-url", "ftp://x"),
        ("--api-url", "http://example.com"),
    ] {
        for more in [&[][..], &["--foreground"]] {
            let arguments = [&["mount", option, value, "mnt"][..], more].concat();
            let output = home.run(&arguments);
            assert_fails(&output, 4, "");
            if value != "http://example.com" {
                assert!(stderr(&output).contains(option), "{output:?}");
            }
            assert!(!home.path().join("mnt").exists(), "left behind");
        }
    }
    let output = home
        .command(&["mount", "mnt"])
        .env("MUSHERFS_API_KEY_FILE", "open.key")
        .output()
        .unwrap();
    assert_fails(&output, 4, "MUSHERFS_API_KEY_FILE: ");
    assert!(stderr(&output).contains("chmod 600"), "{output:?}");
}

#[test]
fn a_key_file_that_a_variable_wins_over_is_told() {
    let home = Home::new();
    let output = home
        .command(&["ls", "acme/kit", "--offline", "--api-key-file", "/nope"])
        .env("MUSHER_API_KEY", "mush_key")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("--api-key-file is not read"), "{said}");
    assert!(said.contains("MUSHER_API_KEY"), "{said}");
}

#[test]
fn a_cache_limit_without_its_unit_is_refused_wherever_it_stands() {
    let home = Home::new();
    home.config("mount: { cache_max_size: 2 }\n");
    assert_fails(&home.run(&["mount", "mnt"]), 4, "2GiB");
    home.config("");
    let output = home
        .command(&["ls", "acme/kit", "--offline"])
        .env("MUSHERFS_CACHE_MAX_SIZE", "500K")
        .output()
        .unwrap();
    assert_fails(&output, 4, "MUSHERFS_CACHE_MAX_SIZE");
    assert_fails(&home.run(&["mount", "--cache-max-size", "2"]), 64, "2GiB");
}

#[test]
fn a_report_is_written_when_the_settings_cannot_be_used_and_says_so() {
    let home = Home::new();
    for (index, yaml) in [
        "mount: { readahead: lots }",
        "}{",
        "oci: { registry_url: 'oci-layout:/nope' }",
    ]
    .iter()
    .enumerate()
    {
        home.config(yaml);
        let file = format!("report{index}.tar.gz");
        let output = home.run(&["bugreport", "-o", &file]);
        assert!(output.status.success(), "{yaml}: {output:?}");
        assert_eq!(stdout(&output), format!("{file}\n"));
        let unpacked = std::process::Command::new("tar")
            .args(["-xzOf", &file])
            .current_dir(home.path())
            .output()
            .unwrap();
        let text = String::from_utf8(unpacked.stdout).unwrap();
        let named = if yaml.contains("nope") {
            "/nope"
        } else {
            "config.yaml"
        };
        assert!(text.contains(named), "{yaml}: {text}");
    }
    let output = home.run(&["bugreport", "-o", "report0.tar.gz"]);
    assert_fails(&output, 1, "report0.tar.gz");
    assert!(hint(&output).contains("exists already"), "{output:?}");
}

#[test]
fn a_report_has_no_login_of_any_registry() {
    let home = Home::new();
    let auth = home.path().join("docker");
    fs::create_dir_all(&auth).unwrap();
    fs::write(
        auth.join("config.json"),
        r#"{"auths":{"127.0.0.1:2":{"auth":"Ym9iOmZpbGVkLXNlY3JldA=="}}}"#,
    )
    .unwrap();
    let log = home.path().join("state/musherfs");
    fs::create_dir_all(&log).unwrap();
    fs::write(
        log.join("musherfs.log"),
        "a registry said given-secret, YW5uOmdpdmVuLXNlY3JldA== and filed-secret\n",
    )
    .unwrap();
    let output = home
        .command(&["bugreport", "-o", "r.tar.gz"])
        .env("MUSHER_STATE_HOME", home.path().join("state"))
        .env("MUSHERFS_OCI_USER", "ann")
        .env("MUSHERFS_OCI_PASSWORD", "given-secret")
        .env("MUSHER_OCI_REGISTRY_URL", "http://127.0.0.1:1")
        .env("MUSHERFS_MIRRORS", "oci=http://127.0.0.1:2")
        .env("DOCKER_CONFIG", &auth)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let unpacked = std::process::Command::new("tar")
        .args(["-xzOf", "r.tar.gz"])
        .current_dir(home.path())
        .output()
        .unwrap();
    let text = String::from_utf8(unpacked.stdout).unwrap();
    assert!(text.contains("a registry said"), "the log is in it: {text}");
    for secret in ["given-secret", "YW5uOmdpdmVuLXNlY3JldA==", "filed-secret"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn a_hint_is_about_what_was_done() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = home.run(&["registry", "serve", "--root", "r", "--listen", &address]);
    assert_fails(&output, 1, &address);
    assert!(hint(&output).contains("another port"), "{output:?}");

    let nobody = nobody();
    let version = "acme/kit@1.0.0";
    let output = home.run(&["yank", version, "--oci", &nobody, "--reason", "x"]);
    assert_fails(&output, 3, "unreachable");
    for word in ["push", "publish"] {
        assert!(!stderr(&output).contains(word), "{output:?}");
    }
}

#[test]
fn a_mount_that_fails_leaves_no_directory_behind() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mount = ["mount", "--foreground", "--metrics", &address, "new/mnt"];
    assert_fails(&home.run(&mount), 1, &address);
    assert!(!home.path().join("new").exists());
    // What was there before stays.
    fs::create_dir_all(home.path().join("new/mnt")).unwrap();
    assert_fails(&home.run(&mount), 1, &address);
    assert!(home.path().join("new/mnt").exists());
}

#[test]
fn a_mount_that_is_only_checked_is_not_made_and_wrong_settings_are_found() {
    let home = Home::new();
    let url = nobody();
    let check = ["mount", "--check", "--api-url", &url, "new/mnt"];
    let output = home.run(&check);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout.len(), stderr(&output)), (0, ""));
    assert!(!home.path().join("new").exists());
    // As a service says it, and what another process has is no reason against it.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let service = [
        "mount",
        "--foreground",
        "--fd-store",
        "--marker",
        "new/mnt",
        "--check",
    ];
    let settings = [("MUSHERFS_METRICS", &*address), ("MUSHERFS_THREADS", "9")];
    let with = |settings: &[(&str, &str)]| {
        let mut command = home.command(&service);
        command.envs(settings.iter().copied()).output().unwrap()
    };
    assert!(with(&settings[..1]).status.success());
    assert_fails(&with(&settings), 4, "MUSHERFS_THREADS");
}

#[test]
fn an_outage_is_told_once() {
    let home = Home::new();
    let url = nobody();
    let output = home.run(&["ls", "acme/kit", "--api-url", &url]);
    assert_fails(&output, 3, "is unreachable");
    assert_eq!(
        stderr(&output).matches("unreachable").count(),
        1,
        "{output:?}"
    );

    // Who asks for more gets all of it.
    let output = home.run(&["-v", "load", "acme/kit", "--api-url", &url]);
    assert!(stderr(&output).contains("is unreachable"), "{output:?}");
}

#[test]
fn nothing_is_said_to_be_nothing() {
    let home = Home::new();
    let status = home.run(&["status"]);
    assert!(status.status.success());
    assert_eq!(
        (stdout(&status), stderr(&status)),
        ("", "nothing is mounted\n")
    );
    let status = home.run(&["status", "--json"]);
    assert_eq!(stdout(&status), "[]\n");
    assert_eq!(stderr(&home.run(&["-q", "status"])), "");

    assert_eq!(stderr(&home.run(&["pins"])), "nothing is pinned\n");
    assert_eq!(
        stdout(&home.run(&["pins", "refresh"])),
        "0 pins confirmed\n"
    );

    let missing = home.run(&["registry", "list", "--root", "nowhere"]);
    assert_fails(&missing, 1, "there is no registry in nowhere");
    assert!(!home.path().join("nowhere").exists(), "asking made it");
    fs::create_dir(home.path().join("empty")).unwrap();
    let empty = home.run(&["registry", "list", "--root", "empty"]);
    assert!(empty.status.success());
    assert_eq!(stderr(&empty), "nothing is published in empty\n");
}

#[test]
fn commands_are_listed_in_groups() {
    let home = Home::new();
    for option in ["--help", "-h"] {
        let help = home.run(&[option]);
        let text = stdout(&help);
        for (group, command) in [
            ("\nMounting:\n", "\n  mount "),
            ("\nBundles and their cache:\n", "\n  load "),
            ("\nPublishing and registries:\n", "\n  registry "),
            ("\nDiagnosis:\n", "\n  doctor "),
            ("\nThis program:\n", "\n  man "),
            ("\nOptions:\n", "  -v, --verbose"),
        ] {
            let after = text.split_once(group).map(|(_, after)| after);
            assert!(
                after.is_some_and(|after| format!("\n{after}").contains(command)),
                "{group}{text}"
            );
        }
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}

#[test]
fn an_unknown_option_is_not_taken_for_a_path() {
    let home = Home::new();
    let output = home.run(&["mount", "--bogus"]);
    assert_fails(&output, 64, "--bogus");
    assert!(!stderr(&output).contains("as a value"), "{output:?}");
    // One that is alike is still suggested.
    let output = home.run(&["mount", "--oflfine"]);
    assert!(stderr(&output).contains("'--offline'"), "{output:?}");
}

#[test]
fn the_help_of_a_command_tells_its_arguments_under_their_own_heading() {
    let home = Home::new();
    let help = home.run(&["registry", "publish", "--help"]);
    let text = stdout(&help);
    let (before, after) = text.split_once("OCI registry:").unwrap();
    assert!(before.contains("Arguments:"), "{text}");
    assert!(
        before.contains("The directory that has the musher.yaml"),
        "{text}"
    );
    assert!(!after.contains("[DIR]"), "{text}");
    for command in [
        "info", "path", "list", "verify", "heal", "clean", "prune", "clear",
    ] {
        let help = home.run(&["cache", command, "--help"]);
        assert!(stdout(&help).contains("Examples:"), "{command}");
    }
}

#[test]
fn a_synopsis_is_the_usage_with_values() {
    let home = Home::new();
    for (page, usage) in [
        (&["man", "mount"][..], "[OPTIONS] [MOUNTPOINT]"),
        (&["man", "registry", "yank"], "<REF>"),
        (&["man"], "[OPTIONS] <COMMAND>"),
    ] {
        let output = home.run(page);
        let text = stdout(&output).replace('\\', "");
        let synopsis = text.split(".SH SYNOPSIS").nth(1).unwrap();
        let synopsis = synopsis.split(".SH").next().unwrap();
        assert!(synopsis.contains(usage), "{synopsis}");
        assert!(!synopsis.contains("[--api-url]"), "{synopsis}");
    }
}
