//! The command line as people and scripts meet it: streams, exit codes, hints.

#![allow(clippy::unwrap_used, clippy::panic)]

mod messages;
mod publishing;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A home of its own, so that neither settings nor keys of this machine matter.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musherfs"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn config(&self, yaml: &str) {
        let dir = self.path().join(".config/musher");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.yaml"), yaml).unwrap();
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Asserts a failure as everything here fails: nothing on stdout, `error:` first.
#[track_caller]
fn assert_fails(output: &Output, code: i32, message: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "");
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains(message), "{text}");
}

#[test]
fn help_is_data_and_names_commands_variables_and_exit_codes() {
    let home = Home::new();
    let output = home.run(&["--help"]);
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    for part in [
        "mount",
        "umount",
        "ls",
        "resolve",
        "cache",
        "registry",
        "completions",
        "man",
        "MUSHER_API_KEY",
        "Exit status:",
        "Examples:",
    ] {
        assert!(stdout(&output).contains(part), "{part}");
    }
    let output = home.run(&["--version"]);
    let version = format!("musherfs {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&output), version);
}

#[test]
fn wrong_usage_exits_with_64() {
    let home = Home::new();
    for arguments in [
        &["frobnicate"][..],
        &["mount", "--frobnicate"],
        &["mount", "--readahead", "lots"],
        &["mount", "--metadata-timeout", "0"],
        &["mount", "--threads", "9"],
        &["mount", "--cache-max-size", "2", "mnt"],
        &["mount", "-o", "cache_max_size=2", "mnt"],
        &["mount", "--namespace", ".git"],
        &["mount", "-o", "frobnicate"],
        &["mount", "-o", "remount"],
        &["umount", "--lazy", "--force"],
        &["ls", "not-a-reference"],
        &["ls", "../../etc"],
        &["resolve"],
        &["registry", "yank", "--root", "r", "acme/kit@1.0.0"],
        &[
            "registry", "yank", "--root", "r", "acme/kit", "--reason", "x",
        ],
        &[
            "registry",
            "yank",
            "--root",
            "r",
            "acme/kit@1.0.0",
            "--reason",
            " ",
        ],
        &["registry", "serve", "--root", "r", "--listen", "localhost"],
        &["registry", "serve", "--root", "r", "--token", "two words"],
        &["registry", "list"],
        &["completions", "tcl"],
    ] {
        let output = home.run(arguments);
        assert_fails(&output, 64, "");
    }
}

#[test]
fn a_bad_setting_exits_with_4_and_names_its_place() {
    let home = Home::new();
    home.config("mount:\n  readahaed: 1M\n");
    assert_fails(&home.run(&["resolve", "acme/kit"]), 4, "mount.readahaed");

    home.config("api:\n  url: gopher://x\n");
    assert_fails(
        &home.run(&["resolve", "acme/kit"]),
        4,
        "config.yaml: api.url",
    );

    home.config("");
    let output = home
        .command(&["resolve", "acme/kit"])
        .env("MUSHERFS_READAHEAD", "lots")
        .output()
        .unwrap();
    assert_fails(&output, 4, "MUSHERFS_READAHEAD");

    let output = home
        .command(&["resolve", "acme/kit"])
        .env("RUST_LOG", "musherfs=loud")
        .output()
        .unwrap();
    assert_fails(&output, 4, "RUST_LOG");

    let output = home
        .command(&["cache", "path"])
        .env_remove("HOME")
        .env("MUSHER_HOME", "relative")
        .output()
        .unwrap();
    // The user database may know a home.
    let text = format!("{}{}", stdout(&output), stderr(&output));
    assert!(text.contains("MUSHER_HOME"), "{text}");
}

#[test]
fn an_api_key_is_never_repeated() {
    let home = Home::new();
    for arguments in [
        &["resolve", "acme/kit", "--api-key", "sec ret"][..],
        &["resolve", "acme/kit", "--api-key", "mush_secret", "-vvvv"],
        &["resolve", "acme/kit", "--api-url", "https://u:secret@x"],
        &["resolve", "acme/kit", "--api-key", "secret", "--frobnicate"],
    ] {
        let output = home.run(arguments);
        assert!(!output.status.success());
        let text = format!("{}{}", stdout(&output), stderr(&output));
        assert!(!text.contains("ret"), "{text}");
    }
    let output = home
        .command(&["resolve", "acme/kit", "-vvvv"])
        .env("MUSHER_API_KEY", "line\nbreak")
        .output()
        .unwrap();
    assert_fails(&output, 4, "MUSHER_API_KEY");
    assert!(!stderr(&output).contains("break"));
    for arguments in [["mount", "--help"], ["ls", "--help"]] {
        let output = home
            .command(&arguments)
            .env("MUSHER_API_KEY", "mush_secret")
            .output()
            .unwrap();
        assert!(stdout(&output).contains("MUSHER_API_KEY"));
        assert!(!stdout(&output).contains("mush_secret"));
    }
}

#[test]
fn the_cache_is_where_the_other_tools_have_it() {
    let home = Home::new();
    let output = home
        .command(&["cache", "path"])
        .env("MUSHER_CACHE_HOME", "/somewhere")
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "/somewhere\n");
    if cfg!(target_os = "linux") {
        let output = home.run(&["cache", "path"]);
        let expected = home.path().join(".cache/musher");
        assert_eq!(stdout(&output).trim_end(), expected.to_str().unwrap());
        assert!(!expected.exists(), "asking created it");
    }
}

#[test]
fn a_relative_directory_is_ignored_with_a_warning() {
    let home = Home::new();
    let output = home
        .command(&["cache", "path"])
        .env("MUSHER_CACHE_HOME", "cache")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(stdout(&output).starts_with(home.path().to_str().unwrap()));
    assert!(stderr(&output).contains("MUSHER_CACHE_HOME is ignored"));
    let output = home
        .command(&["-q", "cache", "path"])
        .env("MUSHER_CACHE_HOME", "cache")
        .output()
        .unwrap();
    assert_eq!(stderr(&output), "");
}

#[test]
fn completions_are_scripts_that_their_shells_accept() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = home.run(&["completions", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("registry"), "{shell}");
    }
    let script = home.path().join("musherfs.bash");
    fs::write(&script, home.run(&["completions", "bash"]).stdout).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&script).status();
    assert!(checked.unwrap().success());
}

/// The words of every command below the one of these words, as help lists them.
fn commands_below(home: &Home, words: &[&str]) -> Vec<String> {
    let output = home.run(&[words, &["--help"]].concat());
    let help = stdout(&output);
    // Behind the options there are examples, which look alike.
    let (listed, _) = help.split_once("\nOptions:").unwrap();
    let lines = listed.lines().filter_map(|line| line.strip_prefix("  "));
    let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .flat_map(|name| {
            let words = [words, &[name]].concat();
            let below = commands_below(home, &words);
            std::iter::once(words.join(" ")).chain(below)
        })
        .collect()
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let home = Home::new();
    let output = home.run(&["man"]);
    assert!(stdout(&output).contains(".TH"), "{}", stdout(&output));

    let output = home.run(&["man", "--dir", "share/man1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    let commands = commands_below(&home, &[]);
    assert!(commands.contains(&"registry serve".to_owned()));
    let mut expected: BTreeSet<String> = commands
        .iter()
        .map(|words| format!("musherfs-{}.1", words.replace(' ', "-")))
        .collect();
    expected.insert("musherfs.1".to_owned());
    let written: BTreeSet<String> = fs::read_dir(home.path().join("share/man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(written, expected);

    fs::write(home.path().join("file"), "").unwrap();
    assert_fails(&home.run(&["man", "--dir", "file"]), 1, "file");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let home = Home::new();
    for arguments in [
        &["completions", "zsh"][..],
        &["man"],
        &["--help"],
        &["cache", "path"],
    ] {
        let mut child = home
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(text, "", "{arguments:?}");
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
}
