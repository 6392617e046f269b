//! Proof that many processes can share a cache, and many users a machine: mounts, loads and cleans at
//! the same time, killed at random. Nothing is downloaded twice, no limit is exceeded, no reader
//! sees an error.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod deaths;
#[path = "../support/mod.rs"]
mod support;
mod users;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::json;

use deaths::{Deaths, Load, Wanted, end};
use support::cache::taken_at_once;
use support::fuse::{require_fuse, require_root};
use support::mount::{DEADLINE, Home, TestMount, eventually, forget_pages, said, within};
use support::prove::{Proof, Random};
use support::registry::{Effect, Fault, TestRegistry};
use users::{Others, User};

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

/// Paths, and what they contain.
type Files = Vec<(String, Vec<u8>)>;

fn files() -> Files {
    (0..FILES)
        .map(|index| (name(index), content(index)))
        .collect()
}

/// Small enough to come in one answer.
const SMALL: [(&str, &[u8]); 2] = [("a.md", b"a\n"), ("b.md", b"b\n")];

fn publish(registry: &TestRegistry, files: &Files) {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    registry.publish("acme", "small", "1.0.0", &SMALL);
}

fn mount(home: &Arc<Home>, registry: &TestRegistry, key: &str, args: &[&str]) -> TestMount {
    TestMount::of(registry)
        .home(home)
        .env("MUSHER_API_KEY", key)
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
    if !require_fuse() || !require_root() {
        return;
    }
    let proof = Proof::start(
        "exactly one download a file and cache",
        "16 processes of one user (6 kept mounts with readers, 10 loads) on one cache, beside other \
         users with a mount and 3 loads and a cache each, loads and daemons of all of them killed at \
         random while anything is missing; answers with content are counted at the registry: one \
         for each file, and another one only if whoever got the last was killed while the file was \
         not yet in the cache",
    );
    let mut random = proof.random();
    let (mut rounds, mut caches) = (0, 0);
    let (mut downloaded, mut excused, mut twice) = (0, 0, Vec::new());
    let (mut killed_loads, mut killed_daemons, mut killed_of_others) = (0, 0, 0);
    for _ in 0..proof.pick(1, 40) {
        let registry = TestRegistry::start();
        let files = Arc::new(files());
        publish(&registry, &files);
        // Long enough to be killed in.
        let slow = Effect::Delay(Duration::from_millis(20));
        registry.fault(Fault::new(slow).on_content());
        let home = Home::new();
        let me = User::me(&home);
        let mounts: Vec<TestMount> = (0..6)
            .map(|n| mount(&home, &registry, &me.key(&format!("mount-{n}")), &[]))
            .collect();
        let others = Others::start(&registry, &files, proof.is_long());
        let mut users = others.users.clone();
        users.push(me.clone());
        let orders = mounts.iter().map(|mount| {
            let mut order: Vec<usize> = (0..FILES).collect();
            random.shuffle(&mut order);
            (mount.dir().to_owned(), order.into_iter())
        });
        let readers = Readers::start(&files, orders);
        let wanted = files
            .iter()
            .map(|(path, bytes)| ("kit", path.as_str(), &bytes[..]));
        let wanted = wanted.chain(SMALL.map(|(path, bytes)| ("small", path, bytes)));
        let wanted = wanted.map(|(bundle, path, bytes)| Wanted::new(bundle, path, bytes));
        let mut deaths = Deaths::new(&registry, wanted.collect());
        let mut loads: Vec<Load> = Vec::new();
        for user in &users {
            let many = if user.id == me.id { 10 } else { 3 };
            loads.extend((0..many).map(|_| deaths.load(user)));
        }
        while users.iter().any(|user| !deaths.missing(user).is_empty()) {
            std::thread::sleep(Duration::from_millis(random.below(30)));
            if random.once_in(2) && !loads.is_empty() {
                let load = loads.swap_remove(random.index(loads.len()));
                loads.extend(deaths.kill_load(load));
            } else {
                let user = random.pick(&users).clone();
                deaths.kill_daemon(&user, random.index(mounts.len()));
            }
        }
        loads.into_iter().for_each(Load::finish);
        assert_eq!(readers.finish(), (FILES * mounts.len()) as u64);
        eventually("a daemon for each that was killed", || {
            let kept = users.iter().flat_map(User::kept);
            let restarts: u64 = kept.map(|kept| kept.restarts).sum();
            (restarts == deaths.killed_daemons.len() as u64).then_some(())
        });
        killed_of_others += others
            .users
            .iter()
            .map(|user| deaths.of(user))
            .sum::<usize>();
        others.finish();
        for mount in mounts {
            mount.unmount();
        }
        let seen = deaths.downloads();
        assert_eq!(seen.files, (FILES + SMALL.len()) * users.len());
        rounds += 1;
        caches += users.len();
        downloaded += seen.files + seen.excused;
        excused += seen.excused;
        twice.extend(seen.twice);
        killed_loads += deaths.killed_loads;
        killed_daemons += deaths.killed_daemons.len();
    }
    let numbers = json!({
        "rounds": rounds,
        "caches": caches,
        "files times caches": (FILES + SMALL.len()) * caches,
        "downloads": downloaded,
        "of them again, the first having gone to the killed": excused,
        "again for another reason": twice.len(),
        "loads killed": killed_loads,
        "daemons killed": killed_daemons,
        "of both those of other users": killed_of_others,
    });
    assert!(twice.is_empty(), "{numbers}: {twice:#?}");
    assert!(killed_loads > 0 && killed_daemons > 0, "{numbers}");
    assert!(killed_of_others > 0 || caches == rounds, "{numbers}");
    proof.held(numbers);
}

/// What is seen while it goes on.
#[derive(Default)]
struct Watch {
    over: AtomicBool,
    /// What the cache takes of the disk at most, and how often that was added up.
    most: AtomicU64,
    samples: AtomicU64,
}

/// Threads that read. One that is never answered cannot be ended, but by unmounting, which the mounts'
/// guards do.
struct Readers {
    many: usize,
    seen: Receiver<Result<u64, String>>,
}

impl Readers {
    /// Starts one for each: where it reads, and which of the files.
    fn start<I: Iterator<Item = usize> + Send + 'static>(
        files: &Arc<Files>,
        readers: impl IntoIterator<Item = (PathBuf, I)>,
    ) -> Self {
        let (done, seen) = channel();
        let started = readers.into_iter().map(|(dir, mut order)| {
            let (files, done) = (Arc::clone(files), done.clone());
            std::thread::spawn(move || {
                let result = order.try_fold(0, |reads, file| {
                    read(&dir, &files[file]).map(|()| reads + 1)
                });
                let _ = done.send(result);
            });
        });
        Self {
            many: started.count(),
            seen,
        }
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
    started: usize,
    children: Vec<(usize, Child)>,
    /// How often each kind of work was done.
    done: [u64; WORK.len()],
    /// Loads that told why they are not complete.
    without_room: u64,
    killed: u64,
}

const WORK: [&[&str]; 6] = [
    &["load", "acme/kit"],
    &["load", "--force", "acme/kit"],
    &["load", "acme/small"],
    &["cache", "clean"],
    &["cache", "prune", "--older-than", "0h"],
    &["cache", "verify"],
];

/// The first of them that can always be done: what the others load is more than the limit.
const FITS: usize = 2;

impl Churn {
    /// Starts what is missing of `many`, and kills one now and then.
    fn turn(&mut self, many: usize, random: &mut Random, start: impl Fn(&[&str]) -> Child) {
        while self.children.len() < many {
            let work = self.started % WORK.len();
            self.started += 1;
            self.children.push((work, start(WORK[work])));
        }
        if random.once_in(4) {
            let (work, mut child) = self.children.swap_remove(random.index(self.children.len()));
            child.kill().unwrap();
            self.ended(work, child, true);
        }
        for (work, mut child) in std::mem::take(&mut self.children) {
            match child.try_wait().unwrap() {
                Some(_) => self.ended(work, child, false),
                None => self.children.push((work, child)),
            }
        }
    }

    /// Counts how it ended. A signal was sent to it if `killed`, perhaps when it had ended already.
    fn ended(&mut self, work: usize, child: Child, killed: bool) {
        let output = child.wait_with_output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) => self.done[work] += 1,
            (Some(1), _) if WORK[work][0] == "load" && complaints.contains("no room") => {
                self.without_room += 1;
            }
            (None, Some(libc::SIGKILL)) if killed => self.killed += 1,
            _ => panic!("{:?}: {}", WORK[work], said(&output)),
        }
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
    if !require_fuse() || !require_root() {
        return;
    }
    let proof = Proof::start(
        "a limited cache never exceeds its limit, and no reader sees an error",
        "4 kept mounts with 8 readers and 12 loads, cleans, prunes and verifications at a time, all \
         killed at random, in a cache of 3 MiB for 5 MB; what it takes of the disk, directories and \
         unfinished blocks included, added up all the time",
    );
    let mut random = proof.random();
    let registry = TestRegistry::start();
    let files = Arc::new(files());
    publish(&registry, &files);
    let home = Home::new();
    let me = User::me(&home);
    let limit: u64 = 3 << 20;
    let arguments = ["--cache-max-size", "3MiB"];
    let mounts: Vec<TestMount> = (0..4)
        .map(|_| mount(&home, &registry, &me.key("mount"), &arguments))
        .collect();
    let watch = Arc::new(Watch::default());
    let readers = Readers::start(
        &files,
        (0..8).map(|number| {
            let (mut random, watch) = (random.fork(), Arc::clone(&watch));
            let next = move || {
                let is_over = watch.over.load(Ordering::Relaxed);
                (!is_over).then(|| random.index(FILES))
            };
            let dir = mounts[number % mounts.len()].dir().to_owned();
            (dir, std::iter::from_fn(next))
        }),
    );
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
    let finish = Instant::now() + Duration::from_secs(proof.pick(5, 300));
    let mut daemons = BTreeSet::new();
    let mut churn = Churn::default();
    while Instant::now() < finish {
        churn.turn(12, &mut random, |work| {
            let mut command = me.command(&registry, &me.key("command"), work);
            command.env("MUSHERFS_CACHE_MAX_SIZE", "3MiB");
            command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        if (daemons.is_empty() || random.once_in(20))
            && let Some(daemon) = random.pick(&me.kept()).daemon
            // Its keeper may not know yet that it was killed.
            && daemons.insert(daemon)
        {
            end(daemon);
        }
        std::thread::sleep(Duration::from_millis(random.below(20)));
    }
    watch.over.store(true, Ordering::Relaxed);
    sampler.join().unwrap();
    let reads = readers.finish();
    eventually("a daemon for each that was killed", || {
        let restarts: u64 = me.kept().iter().map(|kept| kept.restarts).sum();
        (restarts == daemons.len() as u64).then_some(())
    });
    let most = watch.most.load(Ordering::Relaxed);
    let numbers = json!({
        "reads": reads,
        "reader errors": 0,
        "commands done": churn.done.iter().sum::<u64>(),
        "loads that did not fit": churn.without_room,
        "commands killed": churn.killed,
        "daemons killed": daemons.len(),
        "samples": watch.samples.load(Ordering::Relaxed),
        "bytes of disk at most": most,
        "bytes allowed": limit,
    });
    assert!(most <= limit, "{numbers}");
    assert!(most > limit / 2, "{numbers}");
    assert!(reads > 50, "{numbers}");
    let is_done = |work: &[u64]| work.iter().all(|times| *times > 0);
    assert!(is_done(&churn.done[FITS..]), "{:?}: {numbers}", churn.done);
    assert!(churn.killed > 0 && !daemons.is_empty(), "{numbers}");
    drop(churn);
    let verify = within("verifying", {
        let mut verify = me.command(&registry, &me.key("command"), &["cache", "verify"]);
        move || verify.output().unwrap()
    });
    assert!(verify.status.success(), "{}", said(&verify));
    for mount in mounts {
        mount.unmount();
    }
    proof.held(numbers);
}
