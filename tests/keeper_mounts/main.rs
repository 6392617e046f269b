//! The mount outlives its daemon: killed at random, replaced by another program, stuck, alone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod bounded;
mod handover;
mod idle;
#[path = "../keeper_harness/mod.rs"]
mod keeper_harness;
mod manager;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use musherfs::mount::keeper::{self, Invocation, Plan, Timing};
use musherfs::mount::{MountOptions, background};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use keeper_harness::house::{
    DEADLINE, House, PROGRAM, await_end, await_some, can_mount, inode, kill, private_memory,
    publish,
};
use keeper_harness::readers::{finish_all, start_many};
use manager::Manager;
use support::fuse::{need_not_run, require_program};
use support::mount::within;
use support::registry::RouteKind;

/// Reads everything that readers will, so that they meet a warm cache.
fn warm(house: &House) {
    for version in ["1.0.0", "1.1.0"] {
        for entry in walkdir::WalkDir::new(house.dir.join(format!("acme/kit@{version}"))) {
            let entry = entry.unwrap();
            if entry.file_type().is_file() {
                fs::read(entry.path()).unwrap();
            }
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("MUSHERFS_TEST_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_micros())
    });
    eprintln!("MUSHERFS_TEST_SEED={seed}");
    seed
}

#[test]
fn a_program_that_does_not_get_ready_leaves_the_former_one_serving() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    warm(&house);
    let former = house.daemon();
    // One that ends, one that never says a word, and none at all.
    for program in ["/bin/false", "/usr/bin/yes", "/nowhere/musherfs"] {
        let output = house.run(["upgrade", "--program", program]);
        assert_eq!(
            output.status.code().map(|code| code != 0),
            Some(true),
            "{program}"
        );
        let message = text(&output.stderr);
        assert!(message.contains("is not upgraded"), "{program}: {message}");
        assert_eq!(house.daemon(), former, "{program}");
        let (path, bytes) = house.file(1);
        assert_eq!(fs::read(path).unwrap(), bytes);
    }
    assert!(house.is_mounted());
}

#[test]
fn a_hangup_upgrades_and_a_terminated_keeper_unmounts() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    let former = kept.daemon.unwrap();
    kill(kept.keeper, Signal::HUP);
    await_end(former);
    assert_ne!(house.daemon(), former);

    let daemon = house.daemon();
    kill(kept.keeper, Signal::TERM);
    await_end(kept.keeper);
    await_end(daemon);
    assert!(!house.is_mounted());
    let left = fs::read_dir(house.runtime().join("musherfs")).unwrap();
    assert_eq!(left.count(), 0, "sockets were left behind");
}

#[test]
fn a_terminated_daemon_has_its_keeper_unmount() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    kill(kept.daemon.unwrap(), Signal::TERM);
    await_end(kept.keeper);
    assert!(!house.is_mounted());
}

#[test]
fn an_outside_umount_ends_keeper_and_daemon() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    let output = house.run(["umount", house.dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    await_end(kept.keeper);
    await_end(kept.daemon.unwrap());
}

#[test]
fn an_aborted_connection_ends_all_and_leaves_no_dead_mount() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    let table = musherfs::mount::mountinfo::MountTable::read().unwrap();
    let row = table
        .iter()
        .find(|mount| mount.mountpoint == house.dir)
        .unwrap();
    // It may not be mounted where it belongs.
    let control = tempfile::tempdir().unwrap();
    rustix::mount::mount("none", control.path(), "fusectl", MountFlags::empty(), None).unwrap();
    let abort = format!("{}/abort", row.id.device.minor);
    fs::write(control.path().join(abort), "1").unwrap();
    rustix::mount::unmount(control.path(), UnmountFlags::DETACH).unwrap();
    await_end(kept.keeper);
    assert!(!house.is_mounted());
}

#[test]
fn a_daemon_without_its_keeper_goes_on_and_unmounts_in_the_end() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    kill(kept.keeper, Signal::KILL);
    await_end(kept.keeper);
    let (path, bytes) = house.file(2);
    assert_eq!(fs::read(path).unwrap(), bytes);
    await_some("a word in the log", || {
        house.log().contains("the keeper is gone").then_some(())
    });
    kill(kept.daemon.unwrap(), Signal::TERM);
    await_end(kept.daemon.unwrap());
    assert!(!house.is_mounted());
}

#[test]
fn when_both_are_killed_readers_are_released_and_umount_clears() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let gate = house.registry.hold(RouteKind::Asset);
    let (path, _) = house.file(3);
    let mut waiting = std::process::Command::new("cat")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    house.registry.wait_for(RouteKind::Asset, 1);
    let kept = house.kept();
    kill(kept.keeper, Signal::KILL);
    kill(kept.daemon.unwrap(), Signal::KILL);
    assert!(!waiting.wait().unwrap().success());
    gate.open();
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");

    let output = house.run(["umount", house.dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!house.is_mounted());
    // Nothing in the way of the next one.
    house.mount();
}

#[test]
fn clearing_up_takes_dead_mounts_away_and_no_others() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let clear = || {
        let output = house.run(["umount", "--dead", house.dir.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    house.mount();
    clear();
    assert!(house.is_mounted());
    let kept = house.kept();
    kill(kept.keeper, Signal::KILL);
    kill(kept.daemon.unwrap(), Signal::KILL);
    await_end(kept.daemon.unwrap());
    await_some("the dead mount's end", || {
        clear();
        (!house.is_mounted()).then_some(())
    });
    clear();
}

#[test]
fn a_reader_waiting_for_a_download_is_answered_by_the_next_daemon() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let gate = house.registry.hold(RouteKind::Asset);
    let (path, bytes) = house.file(4);
    let waiting = std::process::Command::new("cat")
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    house.registry.wait_for(RouteKind::Asset, 1);
    kill(house.daemon(), Signal::KILL);
    gate.open();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, bytes);
}

#[test]
fn a_name_that_moved_while_nobody_served_is_seen_to_have_moved() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let link = house.dir.join("acme/kit");
    let number = inode(&link);
    let root = inode(&house.dir.join("acme/kit@1.0.0"));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("kit@1.1.0"));
    let names = || {
        let all = fs::read_dir(house.dir.join("acme")).unwrap();
        let mut all: Vec<_> = all.map(|entry| entry.unwrap().file_name()).collect();
        all.sort();
        all
    };
    assert_eq!(names(), ["kit", "kit@1.0.0", "kit@1.1.0"]);

    publish(&house.registry, "1.2.0");
    // What the next daemon knows is not what the kernel was told.
    fs::remove_dir_all(house.home.path().join("m/cache/refs")).unwrap();
    let former = house.daemon();
    kill(former, Signal::KILL);
    await_some("the link has moved", || {
        (fs::read_link(&link).unwrap() == Path::new("kit@1.2.0")).then_some(())
    });
    await_some("the listing has grown", || {
        names().contains(&"kit@1.2.0".into()).then_some(())
    });
    assert_ne!(house.daemon(), former);
    assert_eq!(inode(&link), number);
    assert_eq!(inode(&house.dir.join("acme/kit@1.0.0")), root);
}

/// Mounts with a keeper of this patience; its process id.
fn mount_patiently(house: &House, timing: Timing) -> u32 {
    mount_from(Path::new("/"), house, timing)
}

/// The same for somebody who is in `directory`.
fn mount_from(directory: &Path, house: &House, timing: Timing) -> u32 {
    let arguments = house.mount_arguments();
    let plan = Plan {
        dir: house.dir.clone().into(),
        options: MountOptions::default(),
        program: PROGRAM.into(),
        invocation: Invocation {
            arguments: arguments
                .iter()
                .map(String::as_str)
                .chain(["--__daemon"])
                .map(Into::into)
                .collect(),
            directory: directory.to_owned(),
        },
        marker: false,
        runtime_dir: Some(house.runtime()),
        timing,
    };
    background::start_keeper(house.command([""; 0]), ["--__keeper"], &plan, DEADLINE)
        .unwrap()
        .pid
}

#[test]
fn a_daemon_that_does_not_answer_is_replaced() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let started = mount_patiently(
        &house,
        Timing {
            probe: Duration::from_millis(100),
            stuck: Duration::from_secs(2),
            ..Timing::default()
        },
    );
    let kept = house.kept();
    assert_eq!(kept.keeper, started);
    let stuck = kept.daemon.unwrap();
    kill(stuck, Signal::STOP);
    let (path, bytes) = house.file(5);
    assert_eq!(fs::read(path).unwrap(), bytes);
    await_end(stuck);
    assert_eq!(house.kept().restarts, 1);
}

#[test]
fn a_plain_users_mount_outlives_its_daemon_too() {
    if !can_mount() || !require_program("fusermount3") {
        return;
    }
    let house = House::new();
    let base = tempfile::tempdir().unwrap();
    let (file, bytes) = (keeper_harness::house::file_name(1), house.file(1).1);
    fs::write(base.path().join("expected"), bytes).unwrap();
    // In a mount namespace of its own, so that the machine's /dev/fuse keeps its mode, and
    // everything mounted here goes with the processes.
    let outer = r#"
        set -e
        mkdir "$1/dev" "$1/home"
        mount -t tmpfs -o mode=0755 none "$1/dev"
        mknod "$1/dev/fuse" c 10 229
        chmod 0666 "$1/dev/fuse"
        mount --bind "$1/dev/fuse" /dev/fuse
        cp "$2" "$1/musherfs"
        chmod 0755 "$1" "$1/musherfs" "$1/expected"
        chown 65534:65534 "$1/home"
        exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c "$INNER" sh "$1" "$3" "$4"
    "#;
    let inner = r#"
        set -e
        export HOME="$1/home" MUSHER_HOME="$1/home/m"
        "$1/musherfs" mount --api-url "$2" "$HOME/mnt"
        daemon() { pgrep -n -f "$HOME/mnt --__daemon"; }
        for round in 1 2 3; do
            former=$(daemon)
            kill -9 "$former"
            cmp "$1/expected" "$HOME/mnt/acme/kit@1.0.0/$3"
            stat -f "$HOME/mnt" > /dev/null
            test "$(daemon)" != "$former"
        done
        "$1/musherfs" upgrade "$HOME/mnt"
        cmp "$1/expected" "$HOME/mnt/acme/kit@1.0.0/$3"
        keeper=$(pgrep -n -f "$HOME/mnt --__keeper")
        kill -TERM "$keeper"
        while kill -0 "$keeper" 2> /dev/null; do sleep 0.01; done
        ! grep -q "$HOME/mnt" /proc/self/mountinfo
    "#;
    let output = std::process::Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            outer,
            "sh",
        ])
        .arg(base.path())
        .args([PROGRAM, &house.registry.url(), &file])
        .env("INNER", inner)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn a_keeper_is_small() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let used = private_memory(house.kept().keeper);
    eprintln!("{used} KiB");
    assert!(used < 3 * 1024, "{used} KiB");
}

#[test]
fn a_mount_in_the_foreground_has_no_keeper() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut daemon = house
        .command(house.mount_arguments())
        .arg("--foreground")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (path, bytes) = house.file(6);
    await_some("the mount", || house.is_mounted().then_some(()));
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(keeper::find(&house.runtime()).unwrap().is_empty());
    let output = house.run(["upgrade"]);
    assert!(text(&output.stderr).contains("nothing of yours is kept"));
    kill(daemon.id(), Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(!house.is_mounted());
}

#[test]
fn wrong_settings_are_told_before_anything_is_mounted() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let missing = house.home.path().join("missing.pem");
    let output = house
        .command(house.mount_arguments())
        .args(["--ca-file".as_ref(), missing.as_os_str()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert_eq!(message.matches("error:").count(), 1, "{message}");
    assert!(!house.is_mounted());
}

#[test]
fn a_service_goes_on_with_what_its_manager_has_kept() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut manager = Manager::new(&house);
    manager.set_jobs("No jobs running.");
    manager.start();
    manager.await_kept(2);
    manager.await_told("READY=1", 1);
    assert!(keeper::find(&house.runtime()).unwrap().is_empty());
    let (path, bytes) = house.file(7);
    assert_eq!(fs::read(&path).unwrap(), bytes);

    let readers = start_many(&house, 8, seed());
    for _ in 0..5 {
        assert!(!manager.end(Signal::KILL).success());
        manager.start();
        // The next one is not killed before it serves.
        assert_eq!(fs::read(&path).unwrap(), bytes);
        rustix::fs::statfs(&house.dir).unwrap();
    }
    if manager.group.is_some() {
        manager.set_jobs("12 musherfs-test.service restart running");
        for _ in 0..3 {
            assert!(manager.end(Signal::TERM).success());
            assert!(house.is_mounted());
            assert_eq!(manager.kept(), 2);
            manager.start();
            rustix::fs::statfs(&house.dir).unwrap();
        }
        // Nobody was told of an end that was none.
        assert_eq!(manager.told("STOPPING=1"), 0);
    } else {
        need_not_run("restarting a service: no control group can be made");
    }
    let seen = finish_all(readers);
    eprintln!(
        "{} operations, the slowest {} ms",
        seen.operations, seen.slowest
    );

    // A daemon that goes on is ready, too.
    let before = manager.told("READY=1");
    manager.end(Signal::KILL);
    manager.start();
    manager.await_told("READY=1", before + 1);
    let stopped = manager.told("STOPPING=1");

    manager.set_jobs("13 musherfs-test.service stop running");
    assert!(manager.end(Signal::TERM).success());
    assert!(!house.is_mounted());
    manager.await_kept(0);
    manager.await_told("STOPPING=1", stopped + 1);
}

#[test]
fn half_of_what_was_kept_is_given_up_and_mounted_anew() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut manager = Manager::new(&house);
    manager.start();
    manager.await_kept(2);
    for lost in ["musherfs-state", "musherfs-device"] {
        manager.end(Signal::KILL);
        manager.lose(lost);
        manager.start();
        await_some("a mount that answers", || {
            let (path, bytes) = house.file(8);
            fs::read(path).ok().map(|read| assert_eq!(read, bytes))
        });
        manager.await_kept(2);
    }
    // Whoever is killed in between must not leave a mount alive that nobody can serve.
    assert_eq!(
        manager.stored(),
        ["musherfs-state", "musherfs-device"].repeat(3)
    );
}

#[test]
fn clearing_up_between_two_daemons_does_not_wait_for_the_next() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut manager = Manager::new(&house);
    manager.start();
    manager.await_kept(2);
    manager.end(Signal::KILL);
    // As the unit does before it starts the next one, which nobody else does here.
    let mut clearing = house.command(["umount", "--dead", house.dir.to_str().unwrap()]);
    let output = within("umount --dead", move || clearing.output().unwrap());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(house.is_mounted());
    manager.start();
    let (path, bytes) = house.file(9);
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn a_busy_service_manager_is_waited_for() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut manager = Manager::new(&house);
    if manager.group.is_none() {
        need_not_run("restarting a service: no control group can be made");
        return;
    }
    manager.start();
    manager.await_kept(2);
    // Many jobs, and more than a pipe holds.
    let others: String = (0..3000)
        .map(|job| format!("{job} another-{job}.service start waiting\n"))
        .collect();
    let ours = "9999 musherfs-test.service restart running";
    manager.set_slow_jobs(3, &format!("{ours}\n{others}"));
    assert!(manager.end(Signal::TERM).success());
    assert!(house.is_mounted());
    assert_eq!(manager.kept(), 2);
    manager.start();
    let (path, bytes) = house.file(10);
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn a_kept_mount_that_was_unmounted_meanwhile_is_mounted_anew() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let mut manager = Manager::new(&house);
    manager.start();
    manager.await_kept(2);
    manager.end(Signal::KILL);
    // Lazily: the process that teaches the kernel may be waiting in it.
    rustix::mount::unmount(&house.dir, UnmountFlags::DETACH).unwrap();
    manager.start();
    await_some("the mount", || house.is_mounted().then_some(()));
    let (path, bytes) = house.file(8);
    assert_eq!(fs::read(path).unwrap(), bytes);
    manager.await_kept(2);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
