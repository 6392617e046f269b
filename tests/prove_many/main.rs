//! Proof that many processes can share a cache, and many users a machine: mounts, loads and cleans at
//! the same time, killed at random. Nothing is downloaded twice, no limit is exceeded, no reader
//! sees an error.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;
mod users;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use musherfs::mount::keeper;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use support::cache::taken_at_once;
use support::fuse::require_fuse;
use support::mount::{DEADLINE, Home, TestMount, forget_pages, is_root, said, within};
use support::prove::{Proof, Random};
use support::registry::{RouteKind, TestRegistry};

/// More than is fetched in one answer, so that each file is a request.
const FILES: usize = 64;
const SIZE: usize = 80_000;

/// Text that compresses badly enough to be itself.
fn content(index: usize) -> Vec<u8> {
    let mut random = Random::new(index as u64);
    (0..SIZE)
        .map(|_| b'!' + u8::try_from(random.below(90)).unwrap())
        .collect()
}

fn name(index: usize) -> String {
    format!("dir-{}/file-{index:03}.txt", index % 5)
}

fn files() -> Vec<(String, Vec<u8>)> {
    (0..FILES)
        .map(|index| (name(index), content(index)))
        .collect()
}

fn publish(registry: &TestRegistry, files: &[(String, Vec<u8>)]) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    // Small enough to come in one answer.
    registry.publish(
        "acme",
        "small",
        "1.0.0",
        &[("a.md", b"a\n"), ("b.md", b"b\n")],
    );
}

/// How often there was such an answer with content, by the key of who asked and by what was asked
/// for. A key is a user's.
fn downloads(registry: &TestRegistry, kind: RouteKind) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for seen in registry.log() {
        if seen.kind != kind || seen.status != Some(200) {
            continue;
        }
        let key = seen.headers.get("authorization");
        let key = key.map_or("", |key| key.to_str().unwrap()).to_owned();
        *counts.entry((key, seen.path)).or_default() += 1;
    }
    counts
}

/// A command that uses the registry with this home's user's key.
fn command(home: &Home, registry: &TestRegistry, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command
        .env("MUSHER_API_URL", registry.url())
        .env("MUSHER_API_KEY", "the-user-of-one-cache")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn mount(home: &Arc<Home>, registry: &TestRegistry, args: &[&str]) -> TestMount {
    TestMount::of(registry)
        .home(home)
        .env("MUSHER_API_KEY", "the-user-of-one-cache")
        .arg("--readahead=0")
        .args(args)
        .start_in_background()
}

/// Reads one file past the kernel's pages, and compares.
fn read(dir: &Path, file: &(String, Vec<u8>)) -> Result<(), String> {
    let path = dir.join("acme/kit@1.0.0").join(&file.0);
    let wrong = |what: String| Err(format!("{}: {what}", path.display()));
    match std::fs::read(&path) {
        Ok(bytes) if bytes == file.1 => {}
        Ok(_) => return wrong("wrong bytes".to_owned()),
        Err(error) => return wrong(error.to_string()),
    }
    forget_pages(&path);
    Ok(())
}

#[test]
fn whoever_and_however_many_want_a_file_it_is_downloaded_once_a_cache() {
    if !require_fuse() || !is_root() {
        return;
    }
    let proof = Proof::start(
        "exactly one download a file and cache",
        "16 processes of one user (6 mounts with readers, 10 loads) on one cache, beside 4 other \
         users with a mount and 3 loads and a cache each: one answer with content for each file, and \
         one for a small bundle that comes whole; counted at the registry",
    );
    let mut random = proof.random();
    let (mut rounds, mut counted) = (0, 0);
    for _ in 0..proof.pick(1, 40) {
        let registry = TestRegistry::start();
        let files = files();
        publish(&registry, &files);
        let home = Home::new();
        let mounts: Vec<TestMount> = (0..6).map(|_| mount(&home, &registry, &[])).collect();
        let others = users::start(&registry, &files);
        std::thread::scope(|scope| {
            for _ in 0..10 {
                let (home, registry) = (&home, &registry);
                scope.spawn(move || {
                    for bundle in ["acme/small", "acme/kit"] {
                        let load = command(home, registry, &["load", bundle]).output();
                        let load = load.unwrap();
                        assert!(load.status.success(), "{}", said(&load));
                    }
                });
            }
            for mount in &mounts {
                let mut files = files.clone();
                random.shuffle(&mut files);
                scope.spawn(move || {
                    for file in &files {
                        read(mount.dir(), file).unwrap();
                    }
                });
            }
        });
        let users = others.finish();
        for mount in mounts {
            mount.unmount();
        }
        let files = downloads(&registry, RouteKind::Asset);
        let pulls = downloads(&registry, RouteKind::Pull);
        assert_eq!(files.len(), FILES * (users + 1));
        assert_eq!(pulls.len(), users + 1);
        let all = files.iter().chain(&pulls);
        let twice: Vec<_> = all.filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "{twice:#?}");
        rounds += 1;
        counted += files.len();
    }
    proof.held(json!({
        "rounds": rounds,
        "files times caches": counted,
        "downloads": counted,
    }));
}

/// What is seen while it goes on.
#[derive(Default)]
struct Watch {
    over: AtomicBool,
    /// Bytes in the cache at most, and how often they were added up.
    most: AtomicU64,
    samples: AtomicU64,
}

/// Threads that read random files until it is over. One that is never answered cannot be ended, but
/// by unmounting, which the mounts' guards do.
struct Readers {
    many: usize,
    seen: Receiver<Result<u64, String>>,
}

impl Readers {
    fn start(
        many: usize,
        mounts: &[TestMount],
        files: &[(String, Vec<u8>)],
        watch: &Arc<Watch>,
        random: &mut Random,
    ) -> Self {
        let (done, seen) = channel();
        for number in 0..many {
            let (mut random, done, watch) = (random.fork(), done.clone(), Arc::clone(watch));
            let dir = mounts[number % mounts.len()].dir().to_owned();
            let files = files.to_owned();
            std::thread::spawn(move || {
                let mut reads = 0;
                let mut result = Ok(());
                while result.is_ok() && !watch.over.load(Ordering::Relaxed) {
                    result = read(&dir, random.pick(&files));
                    reads += 1;
                }
                let _ = done.send(result.map(|()| reads));
            });
        }
        Self { many, seen }
    }

    /// How much they have read, without an error.
    fn finish(self) -> u64 {
        let answers = (0..self.many).map(|_| {
            let seen = self.seen.recv_timeout(DEADLINE);
            seen.expect("every reader is answered").unwrap()
        });
        answers.sum()
    }
}

/// Processes that are started again whenever they end, and killed at random.
#[derive(Default)]
struct Churn {
    children: Vec<(usize, Child)>,
    ended: u64,
    killed: u64,
}

const WORK: [&[&str]; 5] = [
    &["load", "acme/kit"],
    &["load", "--force", "acme/kit"],
    &["cache", "clean"],
    &["cache", "prune", "--older-than", "0h"],
    &["cache", "verify"],
];

impl Churn {
    /// Starts what is missing of `many`, and kills one now and then.
    fn turn(&mut self, many: usize, random: &mut Random, start: impl Fn(&[&str]) -> Child) {
        while self.children.len() < many {
            let work = random.index(WORK.len());
            self.children.push((work, start(WORK[work])));
        }
        if random.once_in(4) {
            let victim = random.index(self.children.len());
            // It may have ended already.
            self.killed += u64::from(self.children[victim].1.kill().is_ok());
        }
        let before = self.children.len();
        self.children.retain_mut(|(work, child)| {
            let Some(status) = child.try_wait().unwrap() else {
                return true;
            };
            // Killed, done, or for a load: no room for all of it.
            let code = status.code();
            assert!(
                code.is_none() || code == Some(0) || *work < 2 && code == Some(1),
                "{:?}: {status}",
                WORK[*work]
            );
            false
        });
        self.ended += (before - self.children.len()) as u64;
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn processes_that_are_killed_at_random_disturb_no_reader_and_no_limit() {
    if !require_fuse() || !is_root() {
        return;
    }
    let proof = Proof::start(
        "a limited cache never exceeds its limit, and no reader sees an error",
        "4 kept mounts with 8 readers and 12 loads, cleans, prunes and verifications at a time, all \
         killed at random, in a cache of 3 MiB for 5 MB; its size added up all the time",
    );
    let mut random = proof.random();
    let registry = TestRegistry::start();
    let files = files();
    publish(&registry, &files);
    let home = Home::new();
    let limit: u64 = 3 << 20;
    let arguments = ["--cache-max-size", "3MiB"];
    let mounts: Vec<TestMount> = (0..4)
        .map(|_| mount(&home, &registry, &arguments))
        .collect();
    let runtime = home.path().join("runtime");
    let watch = Arc::new(Watch::default());
    let readers = Readers::start(8, &mounts, &files, &watch, &mut random);
    let sampler = std::thread::spawn({
        let (watch, root) = (Arc::clone(&watch), home.cache());
        move || {
            while !watch.over.load(Ordering::Relaxed) {
                watch
                    .most
                    .fetch_max(taken_at_once(&root), Ordering::Relaxed);
                watch.samples.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let end = Instant::now() + Duration::from_secs(proof.pick(5, 300));
    let mut daemons = 0_u64;
    let mut churn = Churn::default();
    while Instant::now() < end {
        churn.turn(12, &mut random, |work| {
            let mut command = command(&home, &registry, work);
            command.env("MUSHERFS_CACHE_MAX_SIZE", "3MiB");
            command.stderr(Stdio::null()).spawn().unwrap()
        });
        if random.once_in(20) {
            let kept = keeper::find(&runtime).unwrap();
            if let Some(daemon) = random.pick(&kept).1.daemon {
                let daemon = Pid::from_raw(i32::try_from(daemon).unwrap()).unwrap();
                daemons += u64::from(kill_process(daemon, Signal::KILL).is_ok());
            }
        }
        std::thread::sleep(Duration::from_millis(random.below(20)));
    }
    watch.over.store(true, Ordering::Relaxed);
    let churned = (churn.ended, churn.killed);
    drop(churn);
    sampler.join().unwrap();
    let reads = readers.finish();
    let most = watch.most.load(Ordering::Relaxed);
    assert!(most <= limit, "{most} bytes were taken, of {limit}");
    assert!(most > limit / 2, "only {most} bytes of {limit} were used");
    assert!(reads > 50, "{reads}");
    let verify = within("verifying", {
        let mut verify = command(&home, &registry, &["cache", "verify"]);
        move || verify.output().unwrap()
    });
    assert!(verify.status.success(), "{}", said(&verify));
    for mount in mounts {
        mount.unmount();
    }
    proof.held(json!({
        "reads": reads,
        "reader errors": 0,
        "commands": churned.0,
        "of them killed": churned.1,
        "daemons killed": daemons,
        "samples": watch.samples.load(Ordering::Relaxed),
        "bytes at most": most,
        "bytes allowed": limit,
    }));
}
