//! The shipped unit under a real systemd, which is the first process of a container made for it.
//!
//! `boot.sh` makes the container out of this machine's own `/usr` and namespaces of its own,
//! `scenario.sh` is what happens in it while `readers.py` reads. Needs root, systemd and a hierarchy of
//! control groups of version 2.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::fuse::{cannot_run, need_not_run, require_fuse, require_root};
use support::mount::said;
use support::prove::Proof;

/// Whether there is a systemd to be started, and control groups to put it into.
fn has_systemd() -> bool {
    if !Path::new("/usr/lib/systemd/systemd").exists() {
        cannot_run("systemd is not installed");
        return false;
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let has_groups = mounts
        .lines()
        .any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    if !has_groups {
        need_not_run("there are no control groups of version 2");
    }
    has_groups
}

#[test]
fn restarts_crashes_and_the_watchdog_are_a_pause_and_nothing_else() {
    if !require_fuse() || !require_root() || !has_systemd() {
        return;
    }
    let proof = Proof::start(
        "under systemd: ready when it says so; restarts, kill -9 and the watchdog fail no reader",
        "the installed unit under a real systemd in a container of its own, with readers",
    );
    let (restarts, kills, stalls) = proof.pick((2, 1, 1), (100, 50, 5));
    let out = tempfile::tempdir().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let booted = Command::new("bash")
        .arg(here.join("tests/prove_systemd/boot.sh"))
        .args([Path::new(env!("CARGO_BIN_EXE_musherfs")), here, out.path()])
        .args([restarts, kills, stalls].map(|n: u32| n.to_string()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = std::fs::read_to_string(out.path().join("log")).unwrap_or_default();
    eprintln!("{log}");
    assert!(booted.status.success(), "{}", said(&booted));
    let report = std::fs::read(out.path().join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();

    assert_eq!(report["readyWhenStarted"], true, "{report}");
    for (name, wanted) in [("restarts", restarts), ("kills", kills), ("stalls", stalls)] {
        assert_eq!(report[name], wanted, "{report}");
    }
    assert_eq!(report["mounts"], 1, "it was never mounted anew: {report}");
    assert_eq!(report["goneWhenStopped"], true, "{report}");
    let readers = &report["readers"];
    assert_eq!(readers["errors"], json!([]), "{report}");
    assert!(readers["operations"].as_u64().unwrap() > 100, "{report}");
    proof.held(json!({
        "restarts": report["restarts"],
        "kill -9": report["kills"],
        "hangs ended by the watchdog": report["stalls"],
        "reads": readers["operations"],
        "errors": 0,
        "s longest pause": readers["longest"],
        "(version of systemd)": report["systemd"],
    }));
}
