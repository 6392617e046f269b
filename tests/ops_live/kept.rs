//! A daemon that goes on with the mount of one that has died tells as much as that one did.

use std::fs;

use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::metrics::get;
use crate::{World, text, wait_until};

#[test]
fn the_next_daemon_has_status_reasons_numbers_and_events_again() {
    let Some(world) = World::new() else { return };
    let publish = |version: &str, bytes: &[u8]| {
        let files = [("a.md", bytes)];
        world.registry.publish("acme", "kit", version, &files);
    };
    publish("1.0.0", b"one\n");
    let socket = world.path("metrics.sock");
    let address = format!("unix:{}", socket.display());
    world.mount(&["--marker", "--metrics", &address]);
    assert_eq!(fs::read(world.at("acme/kit/a.md")).unwrap(), b"one\n");
    let former = world.daemon();
    kill_process(former, Signal::KILL).unwrap();

    // Whoever asks meanwhile waits; the mount is the same.
    assert_eq!(fs::read(world.at("acme/kit/a.md")).unwrap(), b"one\n");
    wait_until("another daemon tells its status", || {
        let output = world.run(&["status", "--json"]);
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let all = all.as_array().cloned().unwrap_or_default();
        matches!(&all[..], [one] if one["pid"] != json!(former.as_raw_nonzero().get()))
    });
    let status = world.status();
    assert_eq!(status["counters"]["fuse_overdue"], 0, "{status}");
    assert_eq!(world.why("acme/kit/a.md")["version"], "1.0.0");

    // The address of the numbers is the former one's, and its socket's file was left behind.
    wait_until("the numbers are served", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    assert!(get(&world, "/readyz").starts_with("HTTP/1.0 200"));
    let numbers = get(&world, "/metrics");
    assert!(numbers.contains("musherfs_requests_total"), "{numbers}");

    // It looks at all mounts of this machine.
    let dir = world.mountpoint();
    let doctor = world.run(&["doctor", dir.to_str().unwrap()]);
    let gone = format!("the daemon of {} is gone", dir.display());
    assert!(!text(&doctor.stdout).contains(&gone), "{doctor:?}");

    // The marker was put beneath the mount by the keeper.
    assert!(!dir.join("NOT-MOUNTED").exists());
    let output = world.run(&["umount", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(dir.join("NOT-MOUNTED").exists());
    wait_until("the numbers are gone", || !socket.exists());
}
