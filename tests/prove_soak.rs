//! Half an hour of everything at once: what a daemon takes of the machine stays the same.
//!
//! Refs move every second, bundles are published, files are read for the first time and again, the
//! cache has a limit that makes it evict, errors happen, the socket is asked. Samples of the daemon's
//! memory, descriptors, threads and tasks are taken all the while; the first third is warm-up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use support::fuse::require_fuse;
use support::mount::{TestMount, eventually, forget_pages};
use support::prove::{Proof, Random};
use support::registry::{Effect, Fault, TestRegistry};

/// What a process takes at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: f64,
    kib: f64,
    descriptors: usize,
    threads: usize,
    tasks: u64,
}

/// As the kernel counts; only the tasks are known to nobody but the daemon.
fn sample(mount: &TestMount, since: Instant) -> Sample {
    let proc = PathBuf::from(format!("/proc/{}", mount.pid()));
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let number = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let kib = u32::try_from(number("VmRSS:")).unwrap();
    Sample {
        at: since.elapsed().as_secs_f64(),
        kib: kib.into(),
        descriptors: std::fs::read_dir(proc.join("fd")).unwrap().count(),
        threads: number("Threads:"),
        tasks: mount.status()["process"]["tasks"].as_u64().unwrap(),
    }
}

/// By how much `of` grows from the first sample to the last, on the line that fits best.
fn growth(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let n = samples.iter().map(|_| 1.0).sum::<f64>();
    let mean_at = samples.iter().map(|it| it.at).sum::<f64>() / n;
    let mean = samples.iter().map(&of).sum::<f64>() / n;
    let mut covariance = 0.0;
    let mut variance = 0.0;
    for it in samples {
        covariance += (it.at - mean_at) * (of(it) - mean);
        variance += (it.at - mean_at).powi(2);
    }
    let (first, last) = (samples.first().unwrap(), samples.last().unwrap());
    covariance / variance * (last.at - first.at)
}

const BUNDLES: usize = 24;
const VERSIONS: usize = 4;
const FILES: usize = 8;
/// Moving names of each bundle: as many as move while a name's life lasts.
const TAGS: usize = 16;

fn content(bundle: usize, version: usize, file: usize) -> Vec<u8> {
    let mut bytes = format!("{bundle} {version} {file}\n").into_bytes();
    // Of every size that is treated in its own way.
    bytes.resize(bytes.len() + [0, 100, 5_000, 200_000][file % 4], b'.');
    bytes
}

/// How long after an outage the registry may still be left alone: the breaker's first wait, twice.
const RECOVERY: Duration = Duration::from_secs(3);

struct Load {
    since: Instant,
    operations: AtomicU64,
    /// Operations that failed in or just after an outage.
    failures: AtomicU64,
    /// Operations that failed at another time, which none should.
    unexplained: AtomicU64,
    /// Milliseconds from the start to the end of the last outage; of the future while there is one.
    outage: AtomicU64,
    over: AtomicBool,
}

impl Load {
    fn now(&self) -> u64 {
        self.since.elapsed().as_millis().try_into().unwrap()
    }

    fn operate(&self, mount: &TestMount, random: &mut Random) {
        let (began, before) = (self.now(), self.outage.load(Ordering::SeqCst));
        if !step(mount, random) {
            let recovered = before.saturating_add(RECOVERY.as_millis().try_into().unwrap());
            let is_quiet = began > recovered && self.outage.load(Ordering::SeqCst) == before;
            let of = [&self.failures, &self.unexplained];
            of[usize::from(is_quiet)].fetch_add(1, Ordering::Relaxed);
        }
        self.operations.fetch_add(1, Ordering::Relaxed);
    }
}

/// One reader's next step; whether it went well.
fn step(mount: &TestMount, random: &mut Random) -> bool {
    let bundle = random.index(BUNDLES);
    let version = random.index(VERSIONS);
    let file = random.index(FILES);
    match random.below(9) {
        0 => mount
            .readlink(&format!("soak/b{bundle}@t{}", random.index(TAGS)))
            .is_ok(),
        1 => mount.readlink(&format!("soak/b{bundle}@^1")).is_ok(),
        2 => std::fs::read_dir(mount.path(&format!("soak/b{bundle}@1.0.{version}")))
            .is_ok_and(|entries| entries.count() == 1),
        3 => std::fs::read_dir(mount.path("soak")).is_ok_and(|entries| entries.count() > BUNDLES),
        // Absent: names that nobody will ask for again.
        4 => mount
            .stat(&format!("soak/nothing{}", random.next()))
            .is_err(),
        5 => mount
            .stat(&format!("soak/b{bundle}@1.0.{version}/d/{}", random.next()))
            .is_err(),
        _ => {
            let path = mount.path(&format!("soak/b{bundle}@1.0.{version}/d/{file}.md"));
            forget_pages_if_there(&path);
            let seen = std::fs::read(&path);
            if let Ok(seen) = &seen {
                assert!(
                    *seen == content(bundle, version, file),
                    "wrong bytes: {path:?}"
                );
            }
            seen.is_ok()
        }
    }
}

fn forget_pages_if_there(path: &std::path::Path) {
    if path.symlink_metadata().is_ok() {
        forget_pages(path);
    }
}

#[test]
fn what_a_daemon_takes_stays_the_same() {
    if !require_fuse() {
        return;
    }
    let mut proof = Proof::start(
        "memory, descriptors, threads and tasks of a daemon stay flat",
        "mixed load with refs moving every second, outages, eviction; growth after warm-up",
    );
    let duration = proof.pick(Duration::from_secs(6), Duration::from_secs(30 * 60));
    let mut random = proof.random();
    let registry = Arc::new(TestRegistry::start());
    let mut published = Vec::new();
    for bundle in 0..BUNDLES {
        for version in 0..VERSIONS {
            let files: Vec<(String, Vec<u8>)> = (0..FILES)
                .map(|file| (format!("d/{file}.md"), content(bundle, version, file)))
                .collect();
            let files: Vec<(&str, &[u8])> = files
                .iter()
                .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
                .collect();
            let (slug, version) = (format!("b{bundle}"), format!("1.0.{version}"));
            published.push(registry.publish("soak", &slug, &version, &files));
        }
    }
    for version in &published {
        for tag in 0..TAGS {
            registry.tag(version, &format!("t{tag}"));
        }
    }
    // About a third of the content has room.
    let mount = TestMount::of(&registry)
        .args(&[
            "--metadata-timeout=5s",
            "--content-timeout=5s",
            "--cache-max-size=14MiB",
        ])
        .start();

    let start = Instant::now();
    let load = Load {
        since: start,
        operations: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        unexplained: AtomicU64::new(0),
        outage: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let mut samples = Vec::new();
    let (mut moves, mut outages) = (0_u64, 0_u64);
    std::thread::scope(|scope| {
        let end_readers = OnDrop(&load.over);
        for _ in 0..4 {
            let (mount, load) = (&mount, &load);
            let mut random = random.fork();
            scope.spawn(move || {
                while !load.over.load(Ordering::SeqCst) {
                    load.operate(mount, &mut random);
                    // Steady, and not all that the machine can do.
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        while start.elapsed() < duration {
            let version = random.pick(&published);
            registry.tag(version, &format!("t{}", random.index(TAGS)));
            moves += 1;
            registry.clear_log();
            let is_outage = random.once_in(20);
            if is_outage {
                load.outage.store(u64::MAX, Ordering::SeqCst);
                registry.fault(Fault::new(Effect::Status(503)));
                outages += 1;
            }
            samples.push(sample(&mount, start));
            std::thread::sleep(Duration::from_secs(1));
            if is_outage {
                registry.clear_faults();
                load.outage.store(load.now(), Ordering::SeqCst);
            }
        }
        drop(end_readers);
    });
    eventually("the registry", || mount.read("soak/b0@1.0.0/d/0.md").ok());
    eventually("nobody's waiting", || {
        let waiting = mount.status()["inFlight"].as_array().unwrap().len();
        (waiting == 0).then_some(())
    });

    let operations = load.operations.load(Ordering::Relaxed);
    let unexplained = load.unexplained.load(Ordering::Relaxed);
    let warm = &samples[samples.len() / 3..];
    let (first, last) = (warm[0], warm[warm.len() - 1]);
    let kib = growth(warm, |it| it.kib);
    let descriptors = growth(warm, |it| it.descriptors as f64);
    let threads = growth(warm, |it| it.threads as f64);
    let tasks = growth(warm, |it| it.tasks as f64);
    let numbers = json!({
        "s": start.elapsed().as_secs(),
        "operations": operations,
        "failed in outages": load.failures.load(Ordering::Relaxed),
        "failed otherwise": unexplained,
        "outages": outages,
        "refs moved": moves,
        "MiB at first": (first.kib / 1024.0).round(),
        "MiB at last": (last.kib / 1024.0).round(),
        "KiB growth": kib.round(),
        "descriptors at last": last.descriptors,
        "descriptors growth": descriptors.round(),
        "threads at last": last.threads,
        "threads growth": threads.round(),
        "tasks at last": last.tasks,
        "tasks growth": tasks.round(),
    });
    proof.saw(&numbers);
    assert_eq!(unexplained, 0, "of {operations} operations");
    if proof.is_long() {
        assert!(operations >= 100_000, "only {operations} operations");
        // The allocator's own noise; a leak of 16 bytes an operation would be many MiB.
        assert!(
            kib <= (first.kib / 20.0).max(4096.0),
            "{kib:.0} KiB more: {samples:?}"
        );
        assert!(
            descriptors <= 8.0,
            "{descriptors:.0} descriptors more: {samples:?}"
        );
        assert!(threads <= 4.0, "{threads:.0} threads more: {samples:?}");
        assert!(tasks <= 4.0, "{tasks:.0} tasks more: {samples:?}");
    } else {
        // Still warming up: only what is far off can be seen.
        assert!(kib < 64.0 * 1024.0, "{kib:.0} KiB more: {samples:?}");
        assert!(descriptors < 256.0, "{descriptors:.0} descriptors more");
        assert!(threads < 32.0, "{threads:.0} threads more");
        assert!(tasks < 256.0, "{tasks:.0} tasks more");
    }
    mount.unmount();
    proof.held(numbers);
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
