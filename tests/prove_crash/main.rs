//! Proof that the mount outlives its daemon: killed at random and replaced by upgrades, under
//! readers in this and other mount namespaces, in containers, with files held open and followed.
//! They see a pause, and nothing else: every answer is right, and every question is answered.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../keeper_harness/mod.rs"]
mod keeper_harness;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::json;

use keeper_harness::house::{DEADLINE, House, await_end, await_some, can_mount, pid};
use keeper_harness::readers::{finish_all, start_many};
use support::prove::Proof;

/// What a pause may be in 99 of 100 cases, when it is an optimised program that is measured.
const PAUSE: Duration = Duration::from_millis(500);

const READERS: u64 = 32;

/// A `tail -f` of a file; it must have shown all of it and be waiting for more in the end.
struct Follower {
    child: Child,
    shown: PathBuf,
    complaints: PathBuf,
    expected: Vec<u8>,
}

impl Follower {
    fn start(house: &House, index: usize) -> Self {
        let (path, expected) = house.file(index);
        let [shown, complaints] =
            ["out", "err"].map(|end| house.home.path().join(format!("tail-{index}.{end}")));
        let child = Command::new("tail")
            .args(["-c", "+1", "-s", "0.05", "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(File::create(&shown).unwrap())
            .stderr(File::create(&complaints).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            shown,
            complaints,
            expected,
        }
    }

    fn finish(mut self) {
        // It may have been started just now.
        await_some("what tail has read", || {
            let shown = fs::metadata(&self.shown).unwrap().len();
            (shown >= self.expected.len() as u64).then_some(())
        });
        assert_eq!(self.child.try_wait().unwrap(), None, "tail has ended");
        assert_eq!(fs::read_to_string(&self.complaints).unwrap(), "");
        assert!(fs::read(&self.shown).unwrap() == self.expected);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long it takes until the mount answers; statfs(2) always asks the daemon.
fn answered(house: &House) -> Duration {
    let start = Instant::now();
    let dir = house.dir.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    // A system call in a mount that does not answer cannot be interrupted.
    std::thread::spawn(move || sender.send(rustix::fs::statfs(&dir).map(drop)));
    let answer = receiver.recv_timeout(DEADLINE);
    answer.expect("an answer in the end").unwrap();
    start.elapsed()
}

/// The time that all but so many of a hundred are below.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[test]
fn killing_the_daemon_again_and_again_costs_readers_a_pause_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let proof = Proof::start(
        "the mount outlives its daemon",
        "`kill -9` of the daemon at random under 32 readers (4 in other mount namespaces, 4 in \
         containers, all holding files open) and 4 `tail -f`; every byte and errno checked",
    );
    let mut random = proof.random();
    let house = House::new();
    house.mount();
    // Not warmed up: downloads are interrupted too.
    let readers = start_many(&house, READERS, random.next());
    let followers: Vec<Follower> = (0..4).map(|index| Follower::start(&house, index)).collect();
    let end = Instant::now() + Duration::from_secs(proof.pick(5, 600));
    let mut pauses = Vec::new();
    let mut kills = 0_u64;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.below(900)));
        // Now and then the next one, before it has got anywhere.
        for _ in 0..=u64::from(random.once_in(5)) {
            // It may have been dead already.
            kills += u64::from(kill_process(pid(house.daemon()), Signal::KILL).is_ok());
        }
        pauses.push(answered(&house));
    }
    for follower in followers {
        follower.finish();
    }
    let seen = finish_all(readers);
    let restarts = house.kept().restarts;
    pauses.sort();
    let [median, late, longest] = [50, 99, 100].map(|percent| percentile(&pauses, percent));
    let mut numbers = json!({
        "kills": kills,
        "operations": seen.operations,
        "wrong": seen.wrong.len(),
        "unanswered": 0,
    });
    for (name, pause) in [("p50", median), ("p99", late), ("max", longest)] {
        numbers[format!("ms {name} pause")] = json!(pause.as_secs_f64() * 1000.0);
    }
    assert!(kills >= proof.pick(4, 400), "{kills}");
    // Some were dead already.
    assert!(restarts > 0 && restarts <= kills, "{restarts} of {kills}");
    assert!(seen.operations > 1000, "{numbers}");
    if proof.is_long() && Proof::is_optimised() {
        assert!(late <= PAUSE, "{numbers}");
    }
    proof.held(numbers);
}

#[test]
fn upgrades_in_a_row_under_load_lose_nothing() {
    if !can_mount() {
        return;
    }
    let proof = Proof::start(
        "upgrades lose nothing",
        "`musherfs upgrade` again and again under 16 readers (2 in other mount namespaces, 2 in \
         containers), every byte and errno checked",
    );
    let house = House::new();
    house.mount();
    let readers = start_many(&house, 16, proof.seed);
    let upgrades = proof.pick(10, 100);
    let mut former = house.daemon();
    for _ in 0..upgrades {
        let output = house.run(["upgrade", house.dir.to_str().unwrap()]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        let now = house.daemon();
        assert_ne!(now, former);
        await_end(former);
        former = now;
    }
    let seen = finish_all(readers);
    assert_eq!(house.kept().restarts, 0);
    proof.held(json!({
        "upgrades": upgrades,
        "operations": seen.operations,
        "errors": seen.wrong.len(),
        "ms the slowest": seen.slowest,
    }));
}
