//! Every wait has an end, and nobody waits for somebody else's.

use std::fs::{self, File};
use std::io::Read as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::keeper_harness::house::{House, can_mount};
use crate::support::registry::RouteKind;

const STUCK: usize = 500;
/// Of content, and of names, as the mount is told below.
const DEADLINE: Duration = Duration::from_secs(8);
const NAMES_DEADLINE: Duration = Duration::from_secs(3);
/// How much later the last of so many may be told, on a machine that is busy.
const DELAY: Duration = Duration::from_secs(10);

#[test]
fn five_hundred_stuck_readers_end_by_their_deadline_and_delay_nobody() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    let files: Vec<(String, String)> = (0..STUCK)
        .map(|index| (format!("file-{index}.txt"), format!("content {index}")))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_bytes()))
        .collect();
    house.registry.publish("acme", "stuck", "1.0.0", &files);
    house.mount_with(&["--content-timeout", "8s", "--metadata-timeout", "3s"]);
    for index in 0..20 {
        let (path, bytes) = house.file(index);
        assert_eq!(fs::read(path).unwrap(), bytes);
    }
    assert_eq!(
        fs::read_dir(house.dir.join("acme/stuck@1.0.0"))
            .unwrap()
            .count(),
        STUCK
    );
    let _content = house.registry.hold(RouteKind::Asset);
    let _pulls = house.registry.hold(RouteKind::Pull);

    let ended = Arc::new(AtomicUsize::new(0));
    let all = Arc::new(Barrier::new(STUCK + 1));
    let stuck: Vec<_> = (0..STUCK)
        .map(|index| {
            let path = house.dir.join(format!("acme/stuck@1.0.0/file-{index}.txt"));
            let (ended, all) = (Arc::clone(&ended), Arc::clone(&all));
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || {
                    all.wait();
                    let start = Instant::now();
                    let error = fs::read(path).unwrap_err();
                    ended.fetch_add(1, Ordering::SeqCst);
                    (error, start.elapsed())
                })
                .unwrap()
        })
        .collect();
    all.wait();
    house.registry.wait_for(RouteKind::Asset, 1);

    // What is cached is read, again and again from the daemon, while all of them wait.
    let mut slowest = Duration::ZERO;
    for round in 0..200 {
        let (path, bytes) = house.file(round % 20);
        let start = Instant::now();
        let mut file = File::open(path).unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        slowest = slowest.max(start.elapsed());
        assert_eq!(read, bytes);
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
    rustix::fs::statfs(&house.dir).unwrap();
    assert_eq!(
        ended.load(Ordering::SeqCst),
        0,
        "nobody was stuck; the slowest {slowest:?}"
    );

    let mut latest = Duration::ZERO;
    for reader in stuck {
        let (error, took) = reader.join().unwrap();
        // Those at the end of the queue are told that the source has been given up on.
        let told = [libc::ETIMEDOUT, libc::EHOSTUNREACH];
        let errno = error.raw_os_error().unwrap();
        assert!(told.contains(&errno), "{error}");
        latest = latest.max(took);
    }
    eprintln!("cached reads took {slowest:?} at most, stuck ones ended after {latest:?}");
    // One that had waited for the registry would have done so for a deadline, be it a name's.
    assert!(slowest < NAMES_DEADLINE, "{slowest:?}");
    // The kernel asks a failed READ twice; the second answer comes from memory.
    assert!(latest < DEADLINE + DELAY, "{latest:?}");
}
