//! A keeper waits, in nobody's way: neither for nothing, nor in its own mount, nor behind a door that is
//! gone.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use musherfs::mount::keeper::{self, Timing};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use crate::keeper_harness::house::{House, await_end, await_some, can_mount, kill};
use crate::{mount_from, mount_patiently, text};

/// How often the mount is asked in these tests.
const PROBE: Duration = Duration::from_millis(100);

fn often() -> Timing {
    Timing {
        probe: PROBE,
        ..Timing::default()
    }
}

/// How often a process has gone to sleep, to wait for something.
fn sleeps(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

#[test]
fn a_keeper_is_idle_while_somebody_uses_a_detached_mount() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let keeper = mount_patiently(&house, often());
    let (path, _) = house.file(1);
    let open = File::open(path).unwrap();
    let output = house.run(["umount", "--lazy", house.dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // It sleeps between its looks, which one that is busy never does...
    let (start, before) = (Instant::now(), sleeps(keeper));
    await_some("a keeper that sleeps", || {
        (sleeps(keeper) >= before + 30).then_some(())
    });
    // ...and until the next one is due, or it would have slept so often in no time. It sleeps more often
    // than it looks, should the kernel have it wait for the table of mounts.
    let took = start.elapsed();
    assert!(took > PROBE * 5, "it woke up 30 times in {took:?}");
    drop(open);
    await_end(keeper);
}

#[test]
fn whoever_mounts_on_the_directory_they_are_in_has_a_mount_that_outlives_its_daemons() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    fs::create_dir(&house.dir).unwrap();
    let registry = house.registry.url();
    let output = house
        .command(["mount", "--api-url", registry.as_str(), "."])
        .current_dir(&house.dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(house.is_mounted());
    let kept = house.kept();
    for restarts in 1..=3 {
        kill(house.daemon(), Signal::KILL);
        await_some("another daemon", || {
            let log = house.log();
            (log.matches("another daemon serves").count() == restarts).then_some(())
        });
    }
    let cwd = |pid: u32| fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd(kept.keeper), Path::new("/"));
    assert_eq!(cwd(house.daemon()), Path::new("/"));
    let (path, bytes) = house.file(2);
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn nobody_enters_the_directory_that_a_mount_was_asked_for_in() {
    if !can_mount() {
        return;
    }
    // Nobody answers there, as in a mount whose daemon is to be started.
    let silent = House::new();
    silent.mount();
    let kept = silent.kept();
    kill(kept.keeper, Signal::KILL);
    await_end(kept.keeper);
    let daemon = kept.daemon.unwrap();
    kill(daemon, Signal::STOP);
    let house = House::new();
    mount_from(&silent.dir.join("acme/kit@1.0.0"), &house, often());
    let (path, bytes) = house.file(5);
    assert_eq!(fs::read(path).unwrap(), bytes);
    kill(daemon, Signal::KILL);
}

#[test]
fn a_door_that_was_taken_away_is_put_back() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let keeper = mount_patiently(&house, often());
    // As at the end of somebody's last session.
    fs::remove_dir_all(house.runtime()).unwrap();
    await_some("another door", || {
        let found = keeper::find(&house.runtime()).unwrap_or_default();
        found
            .iter()
            .any(|(_, it)| it.keeper == keeper)
            .then_some(())
    });
    kill(keeper, Signal::TERM);
    await_end(keeper);
    let left = fs::read_dir(house.runtime().join("musherfs")).unwrap();
    assert_eq!(left.count(), 0, "sockets were left behind");
}

#[test]
fn what_cannot_be_unmounted_is_served_on() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    house.mount();
    let kept = house.kept();
    let flags = MountFlags::empty();
    rustix::mount::mount("none", &house.dir, "tmpfs", flags, None).unwrap();
    kill(kept.keeper, Signal::TERM);
    await_some("a word in the log", || {
        house.log().contains("cannot unmount").then_some(())
    });
    rustix::mount::unmount(&house.dir, UnmountFlags::empty()).unwrap();
    let (path, bytes) = house.file(3);
    assert_eq!(fs::read(path).unwrap(), bytes);
    kill(house.daemon(), Signal::KILL);
    let (path, bytes) = house.file(4);
    assert_eq!(fs::read(path).unwrap(), bytes);
    kill(kept.keeper, Signal::TERM);
    await_end(kept.keeper);
    assert!(!house.is_mounted());
    // Nor is anything left of the daemon that was killed.
    let left = fs::read_dir(house.runtime().join("musherfs")).unwrap();
    assert_eq!(left.count(), 0, "files were left behind");
}
