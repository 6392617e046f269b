//! Names that move are told to whoever listens, and the log's level can be changed meanwhile.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdout, Stdio};
use std::time::SystemTime;

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::{Reader, World, text, wait_until};

/// `musherfs events`, once it listens.
struct Listener {
    home: PathBuf,
    process: Reader,
    said: BufReader<ChildStderr>,
    lines: BufReader<ChildStdout>,
}

impl Listener {
    fn start(world: &World) -> Self {
        let mut process = world
            .command(&["-v", "events"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut listener = Self {
            home: world.path(""),
            said: BufReader::new(process.stderr.take().unwrap()),
            lines: BufReader::new(process.stdout.take().unwrap()),
            process: Reader(process),
        };
        listener.waits_in("mnt");
        listener
    }

    fn waits_in(&mut self, dir: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        let place = format!(
            "waiting for names to move in {}",
            self.home.join(dir).display()
        );
        assert!(line.contains(&place), "{line}");
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

/// Has `acme/kit` be 1.0.0 for some seconds, as far as the cache knows.
fn expire_soon(world: &World) {
    let refs = world.path("musher/cache/refs");
    let dir = refs.join(world.registry.host_id()).join("acme/kit");
    fs::create_dir_all(&dir).unwrap();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let expires = now.as_secs_f64() + 5.0;
    let entry = format!("{{\"version\":\"1.0.0\",\"ttlSeconds\":300,\"expiresAt\":{expires}}}");
    fs::write(dir.join("latest.json"), entry).unwrap();
}

#[test]
fn a_move_is_a_line_for_programs_and_a_write_for_inotify() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"1\n")]);
    // What another tool loaded and resolved some minutes ago, and what is to be asked again in a
    // moment.
    assert!(world.run(&["load", "acme/kit@1.0.0"]).status.success());
    expire_soon(&world);

    world.mount(&[]);
    let target = || fs::read_link(world.at("acme/kit")).unwrap();
    assert_eq!(target().to_str(), Some("kit@1.0.0"));
    let folder = text(&world.run(&["events", "--folder"]).stdout);
    let file = std::path::Path::new(folder.trim()).join("acme/kit");
    wait_until("the file is there to be watched", || {
        fs::read_to_string(&file).is_ok_and(|text| text == "latest 1.0.0\n")
    });

    let mut listener = Listener::start(&world);

    world
        .registry
        .publish("acme", "kit", "1.1.0", &[("a.md", b"2\n")]);
    wait_until("the name moves", || target().to_str() == Some("kit@1.1.0"));
    let event = listener.event();
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
}

#[test]
fn a_listener_hears_the_next_daemon_and_later_mounts_and_ends_with_the_last() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"1\n")]);
    assert!(world.run(&["load", "acme/kit@1.0.0"]).status.success());
    let nobody = world.run(&["events"]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    assert!(text(&nobody.stderr).contains("no running mount"));

    world.mount(&[]);
    let mut listener = Listener::start(&world);
    kill_process(world.daemon(), Signal::KILL).unwrap();
    listener.waits_in("mnt");

    expire_soon(&world);
    let target = || fs::read_link(world.at("acme/kit")).unwrap();
    assert_eq!(target().to_str(), Some("kit@1.0.0"));
    world
        .registry
        .publish("acme", "kit", "1.1.0", &[("a.md", b"2\n")]);
    wait_until("the name moves", || target().to_str() == Some("kit@1.1.0"));
    assert_eq!(listener.event()["to"], "1.1.0");

    let later = world.path("later");
    let later = later.to_str().unwrap();
    assert!(world.run(&["mount", later]).status.success());
    listener.waits_in("later");
    let mounts = [
        world.mountpoint().to_str().unwrap().to_owned(),
        later.to_owned(),
    ];
    for dir in &mounts {
        assert!(world.run(&["umount", dir]).status.success());
    }
    assert!(listener.process.0.wait().unwrap().success());
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
