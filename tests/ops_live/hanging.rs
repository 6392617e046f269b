//! While the registry hangs and a hundred readers wait, nobody who looks after the mount does.

use std::process::Command;
use std::time::Instant;

use crate::metrics::get;
use crate::support::registry::{Effect, Fault};
use crate::{World, output, text, wait_until};

const READERS: usize = 100;

/// Longer than any test: whoever waited for the network would not come back.
const FOR_EVER: [&str; 4] = ["--metadata-timeout", "1h", "--content-timeout", "1h"];

#[test]
fn status_why_doctor_df_and_umount_end_while_a_hundred_readers_wait() {
    let Some(world) = World::new() else { return };
    let files: Vec<(String, Vec<u8>)> = (0..READERS)
        .map(|i| (format!("f{i}.md"), format!("file {i}\n").into_bytes()))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    world.registry.publish("acme", "kit", "1.0.0", &files);
    world.mount(&[FOR_EVER.as_slice(), &["--readahead", "0"]].concat());
    assert!(world.at("acme/kit@1.0.0/f0.md").exists());
    world.registry.fault(Fault::new(Effect::Hang));

    let readers: Vec<_> = (0..READERS)
        .map(|i| world.reader(&format!("acme/kit@1.0.0/f{i}.md")))
        .collect();
    let waiting = |world: &World| world.status()["inFlight"].as_array().unwrap().len();
    wait_until("a hundred readers wait", || waiting(&world) >= READERS);

    let dir = world.mountpoint();
    let dir = dir.to_str().unwrap();
    let file = format!("{dir}/acme/kit@1.0.0/f7.md");
    let nothing = format!("{dir}/acme/unheard-of");
    for (arguments, codes, part) in [
        (&["status", "--long"][..], &[0][..], "waiting"),
        (&["why", &file], &[0], "not cached"),
        (&["why", &nothing], &[1], "lacks it"),
        // What else is mounted on this machine may be dead, and has a say in the code then.
        (&["doctor", dir], &[5, 6], "did not answer within"),
        // Busy, and says so at once.
        (&["umount", dir], &[6], "in use"),
    ] {
        let start = Instant::now();
        let output = world.run(arguments);
        println!("{arguments:?}: {:?}", start.elapsed());
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(part), "{arguments:?}: {said}");
        let code = output.status.code().unwrap();
        assert!(codes.contains(&code), "{arguments:?}: {code}: {said}");
    }
    let start = Instant::now();
    let mut df = Command::new("df");
    df.arg(dir);
    assert!(output(df).status.success());
    println!("df: {:?}", start.elapsed());
    // None of that has released anybody.
    assert!(waiting(&world) >= READERS);
    let first = world.status()["inFlight"][0].clone();
    assert_eq!(first["operation"], "read", "{first}");
    assert!(first["ageSeconds"].as_f64().unwrap() > 0.0);
    assert!(
        first["path"]
            .as_str()
            .unwrap()
            .starts_with("/acme/kit@1.0.0/f")
    );

    let start = Instant::now();
    assert!(world.run(&["umount", "--force", dir]).status.success());
    println!("umount --force: {:?}", start.elapsed());
    for mut reader in readers {
        wait_until("the readers are released", || {
            reader.0.try_wait().unwrap().is_some()
        });
    }
}

#[test]
fn a_daemon_that_is_stopped_is_told_from_one_that_serves() {
    use rustix::process::{Signal, kill_process};
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    world.mount(&[]);
    let pid = world.daemon();
    let dir = world.mountpoint();
    kill_process(pid, Signal::STOP).unwrap();
    // The signal reaches its threads one after the other.
    wait_until("all threads are stopped", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
    });
    let status = world.run(&["status"]);
    let doctor = world.run(&["doctor", dir.to_str().unwrap()]);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(status.status.code(), Some(5), "{status:?}");
    assert!(
        text(&status.stderr).contains("does not answer"),
        "{status:?}"
    );
    assert!(text(&status.stdout).contains(" stuck "), "{status:?}");
    assert!(text(&doctor.stdout).contains("stuck-mount"), "{doctor:?}");
    assert!(text(&doctor.stdout).contains("daemon"), "{doctor:?}");
    // Nothing was harmed by asking.
    assert_eq!(std::fs::read(world.at("acme/kit/a.md")).unwrap(), b"a\n");
}

#[test]
fn a_dead_mount_is_named_explained_from_the_cache_and_cleared() {
    use rustix::process::{Signal, kill_process};
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    world.mount(&[]);
    assert_eq!(std::fs::read(world.at("acme/kit/a.md")).unwrap(), b"a\n");
    // Without its keeper nobody replaces the daemon.
    let daemon = world.daemon();
    for process in [crate::parent(daemon), daemon] {
        kill_process(process, Signal::KILL).unwrap();
    }
    let dir = world.mountpoint();
    let dir = dir.to_str().unwrap();
    wait_until("the mount is dead", || {
        // No cache answers this.
        rustix::fs::statfs(dir).err() == Some(rustix::io::Errno::NOTCONN)
    });
    let status = world.run(&["status"]);
    assert_eq!(status.status.code(), Some(5), "{status:?}");
    let row = text(&status.stdout);
    let row = row.lines().find(|line| line.contains(dir)).unwrap();
    assert!(row.contains(" dead "), "{row}");
    let said = text(&status.stderr);
    assert!(
        said.contains(&format!("hint: `musherfs umount {dir}`")),
        "{said}"
    );
    assert!(text(&world.run(&["status", "-l"]).stdout).contains("dead"));
    let json = world.status();
    assert_eq!(json["state"], "dead", "{json}");
    assert!(
        json["remedy"].as_str().unwrap().contains("umount"),
        "{json}"
    );

    let doctor = world.run(&["doctor", dir]);
    assert!(text(&doctor.stdout).contains("stale-mount"), "{doctor:?}");
    let why = world.run(&["why", &format!("{dir}/acme/kit/a.md")]);
    let said = text(&why.stdout) + &text(&why.stderr);
    assert!(
        said.contains("does not answer") && said.contains("cached"),
        "{said}"
    );
    assert!(world.run(&["umount", dir]).status.success());
    let status = world.run(&["status"]);
    assert!(status.status.success(), "{status:?}");
    assert_eq!(text(&status.stderr), "nothing is mounted\n");
    let left = crate::files(&world.path("musher/runtime/musherfs"));
    assert!(
        left.iter()
            .all(|(path, _)| path.extension() != Some("mount".as_ref())),
        "{left:?}"
    );
    let gone = world.run(&["why", &format!("{dir}/acme")]);
    assert!(text(&gone.stderr).contains("not in a mount"), "{gone:?}");
}

#[test]
fn a_mount_that_was_unmounted_in_use_is_detached_until_its_last_user_is_done() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    let dir = world.mountpoint();
    let dir = dir.to_str().unwrap();
    let numbers = format!("unix:{}", world.path("metrics.sock").display());
    world.mount(&["--metrics", &numbers]);
    let states = |world: &World| -> Vec<String> {
        let all = world.json(&["status", "--json"]);
        let all = all.as_array().unwrap().iter();
        all.map(|one| one["state"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states(&world), ["mounted"]);

    let user = std::fs::File::open(world.at("acme")).unwrap();
    assert!(world.run(&["umount", "--lazy", dir]).status.success());
    assert_eq!(states(&world), ["detached"]);
    let status = text(&world.run(&["status"]).stdout);
    assert!(status.contains(" detached "), "{status}");
    assert!(!status.contains(" up "), "{status}");
    let status = text(&world.run(&["status", "--long"]).stdout);
    assert!(status.contains("out of reach for others"), "{status}");
    let doctor = text(&world.run(&["doctor", dir]).stdout);
    assert!(doctor.contains("warn detached-mount: "), "{doctor}");
    assert!(get(&world, "/readyz").starts_with("HTTP/1.0 503"));

    // Nothing is wrong with it once another one is there, and doctor does not take one for the other.
    world.mount(&[]);
    let mut both = states(&world);
    both.sort();
    assert_eq!(both, ["detached", "mounted"]);
    let doctor = text(&world.run(&["doctor", dir]).stdout);
    assert!(doctor.contains("info detached-mount: "), "{doctor}");

    drop(user);
    wait_until("only the other is left", || states(&world) == ["mounted"]);
}
