//! The log of a background process. A process has one log, so there is one test here.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use musherfs::cli::logging::{Destination, Target, Verbosity, init};
use musherfs::paths::{Directories, Os};

#[test]
fn the_level_of_a_running_background_log_can_be_changed() {
    if Path::new("/run/systemd/journal/socket").exists() || Path::new("/dev/log").exists() {
        eprintln!("SKIPPED: this machine has a log daemon, so there would be no file");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let env = |name: &str| (name == "MUSHER_HOME").then(|| OsString::from(home.path()));
    let directories = Directories::resolve(Os::Linux, &env, None).unwrap();

    let log = init(Target::Background, Verbosity::default(), &directories).unwrap();
    let path = home.path().join("state/musherfs/musherfs.log");
    assert_eq!(log.destination(), &Destination::File(path.clone()));

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
