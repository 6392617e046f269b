//! The log of a background process. A process has one log, so there is one test here.

#![allow(clippy::unwrap_used)]

#[path = "support/fuse.rs"]
#[allow(dead_code)]
mod fuse;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use musherfs::cli::logging::{Destination, Target, Verbosity, init};
use musherfs::paths::{Directories, Os};

/// Where the journal listens, and any other log daemon.
const LOG_DAEMONS: [&str; 2] = ["/run/systemd/journal/socket", "/dev/log"];

/// Set where they are hidden.
const HIDDEN: &str = "MUSHERFS_TEST_LOG_DAEMONS_HIDDEN";

/// Runs this program in a mount namespace in which no log daemon listens.
fn run_without_log_daemons() {
    assert!(std::env::var_os(HIDDEN).is_none(), "one listens still");
    if !fuse::require_root() {
        return;
    }
    let hide = r#"
        for socket; do
            [ ! -e "$socket" ] || mount --bind /dev/null "$socket"
        done
        exec "$PROGRAM" --nocapture
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-ec", hide, "sh"])
        .args(LOG_DAEMONS)
        .env("PROGRAM", std::env::current_exe().unwrap())
        .env(HIDDEN, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("1 passed"), "{told}");
}

#[test]
fn the_level_of_a_running_background_log_can_be_changed() {
    // With one there would be no file.
    let listens = |at| UnixDatagram::unbound().unwrap().connect(at).is_ok();
    if LOG_DAEMONS.into_iter().any(listens) {
        return run_without_log_daemons();
    }
    let home = tempfile::tempdir().unwrap();
    let env = |name: &str| (name == "MUSHER_HOME").then(|| OsString::from(home.path()));
    let directories = Directories::resolve(Os::Linux, &env, None).unwrap();

    let log = init(Target::Background, Verbosity::default(), &directories).unwrap();
    let path = home.path().join("state/musherfs/musherfs.log");
    assert_eq!(log.destination(), &Destination::File(path.clone()));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let say = |word: &str| {
        tracing::info!(target: "musherfs", word, "informing");
        tracing::debug!(target: "musherfs", word, "debugging");
        tracing::info!(target: "some_other_crate", word, "chatting");
    };
    say("one");
    log.set_verbosity(Verbosity::new(1, false).louder())
        .unwrap();
    say("two");
    log.set_verbosity(Verbosity::new(0, true)).unwrap();
    say("three");

    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("INFO") && lines[0].contains("informing word=\"one\""));
    assert!(lines[1].contains("informing word=\"two\""));
    assert!(lines[2].contains("debugging word=\"two\""));
    assert!(!text.contains('\x1b'), "colours in a file: {text:?}");
    assert!(init(Target::Background, Verbosity::default(), &directories).is_err());
}
