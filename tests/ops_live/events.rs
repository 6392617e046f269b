//! Names that move are told to whoever listens, and the log's level can be changed meanwhile.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::SystemTime;

use serde_json::Value;

use crate::{Reader, World, text, wait_until};

#[test]
fn a_move_is_a_line_for_programs_and_a_write_for_inotify() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"1\n")]);
    // What another tool loaded and resolved some minutes ago, and what is to be asked again in a
    // moment.
    assert!(world.run(&["load", "acme/kit@1.0.0"]).status.success());
    let refs = world.path("musher/cache/refs");
    let dir = refs.join(world.registry.host_id()).join("acme/kit");
    fs::create_dir_all(&dir).unwrap();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let expires = now.as_secs_f64() + 5.0;
    let entry = format!("{{\"version\":\"1.0.0\",\"ttlSeconds\":300,\"expiresAt\":{expires}}}");
    fs::write(dir.join("latest.json"), entry).unwrap();

    world.mount(&[]);
    let target = || fs::read_link(world.at("acme/kit")).unwrap();
    assert_eq!(target().to_str(), Some("kit@1.0.0"));
    let folder = text(&world.run(&["events", "--folder"]).stdout);
    let file = std::path::Path::new(folder.trim()).join("acme/kit");
    wait_until("the file is there to be watched", || {
        fs::read_to_string(&file).is_ok_and(|text| text == "latest 1.0.0\n")
    });

    let mut listener = world
        .command(&["-v", "events"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(listener.stderr.take().unwrap());
    let mut ready = String::new();
    said.read_line(&mut ready).unwrap();
    assert!(ready.contains("waiting"), "{ready}");
    let mut lines = BufReader::new(listener.stdout.take().unwrap());
    let listener = Reader(listener);

    world
        .registry
        .publish("acme", "kit", "1.1.0", &[("a.md", b"2\n")]);
    wait_until("the name moves", || target().to_str() == Some("kit@1.1.0"));
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["event"], "moved", "{event}");
    assert_eq!(event["bundle"], "acme/kit");
    assert_eq!(event["selector"], "latest");
    assert_eq!(
        (&event["from"], &event["to"]),
        (&"1.0.0".into(), &"1.1.0".into())
    );
    wait_until("the file is written", || {
        fs::read_to_string(&file).unwrap() == "latest 1.1.0\n"
    });
    drop(listener);
}

#[test]
fn the_log_becomes_more_talkative_without_a_restart() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"1\n")]);
    world.mount(&[]);
    assert_eq!(world.status()["logLevel"], Value::Null);
    let changed = world.run(&["-v", "log", "debug", world.mountpoint().to_str().unwrap()]);
    assert!(changed.status.success(), "{changed:?}");
    assert_eq!(world.status()["logLevel"], "debug");
    assert_eq!(world.run(&["log", "shout"]).status.code(), Some(64));
    let nobody = world.run(&["log", "info", "/no/such/mount"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    let log = world.path("musher/state/musherfs/musherfs.log");
    if log.exists() {
        let _ = fs::read(world.at("acme/kit/a.md")).unwrap();
        wait_until("debugging lines are logged", || {
            fs::read_to_string(&log).unwrap().contains("DEBUG")
        });
    }
}
