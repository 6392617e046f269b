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

use rustix::process::Signal;
use serde_json::{Value, json};

use keeper_harness::house::{House, await_end, await_some, can_mount, kill};
use keeper_harness::readers::{Place, Reader, Span, View, finish_and_ask, start_many};
use support::mount::within;
use support::prove::Proof;
use support::registry::{Effect, Fault, Seen};

/// What a pause may be in 99 of 100 cases, when it is an optimised program that is measured.
const PAUSE: Duration = Duration::from_millis(500);

/// Nobody whom the next daemon was to answer still waits after that.
const QUIET: Duration = Duration::from_secs(3);

const READERS: u64 = 32;

/// A house in which something is being downloaded at almost every moment: the cache is smaller than
/// what is read, and the registry takes its time.
fn downloading_house() -> House {
    let house = House::new();
    let slow = Effect::Delay(Duration::from_millis(30));
    house.registry.fault(Fault::new(slow).on_content());
    // Each file by itself: all of them in one answer would be there soon.
    house.mount_with(&["--cache-max-size", "5MiB", "--readahead", "0"]);
    house
}

/// How many downloads are under way that began after the log was cleared.
fn downloads_under_way(house: &House) -> usize {
    let log = house.registry.log();
    let waiting = |seen: &&Seen| seen.kind.is_content() && seen.status.is_none();
    log.iter().filter(waiting).count()
}

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

/// Kills the daemon that serves, which is another one than `former`; its number.
fn kill_next(house: &House, former: Option<u32>) -> u32 {
    let daemon = await_some("another daemon", || {
        Some(house.daemon()).filter(|it| Some(*it) != former)
    });
    kill(daemon, Signal::KILL);
    daemon
}

/// Waits until the mount answers; statfs(2) always asks the daemon.
fn await_answer(house: &House) {
    let dir = house.dir.clone();
    within("statfs", move || rustix::fs::statfs(&dir).map(drop)).unwrap();
}

/// How many readers there are, by where they are.
fn count(readers: &[Reader]) -> Value {
    let at = |place| readers.iter().filter(|it| it.place == place).count();
    json!({
        "readers": readers.len(),
        "of them in other mount namespaces": at(Place::Namespace),
        "in containers": at(Place::Container),
    })
}

/// The pauses that readers have seen: each one's longest operation around each event. The time that
/// all but so many of a hundred are below.
fn pause(views: &[Vec<View>], percent: usize) -> Duration {
    let mut longest: Vec<Duration> = views.iter().flatten().map(|view| view.longest).collect();
    longest.sort();
    longest[(longest.len() * percent / 100).min(longest.len() - 1)]
}

fn milliseconds(time: Duration) -> Value {
    json!(time.as_secs_f64() * 1000.0)
}

#[test]
fn killing_the_daemon_again_and_again_costs_readers_a_pause_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let proof = Proof::start(
        "the mount outlives its daemon",
        "`kill -9` of the daemon at random, at times twice in a row, at times with a long quiet \
         after it, under readers here, in other mount namespaces and in containers, all holding \
         files open, and 4 `tail -f`; in a cache too small for what they read, so that downloads are \
         cut off all the time; every byte and errno checked; a pause is the longest operation of a \
         reader around a kill",
    );
    let mut random = proof.random();
    let house = downloading_house();
    let readers = start_many(&house, READERS, random.next());
    let mut numbers = count(&readers);
    let followers: Vec<Follower> = (0..4).map(|index| Follower::start(&house, index)).collect();
    let end = Instant::now() + Duration::from_secs(proof.pick(10, 600));
    let (mut pauses, mut quiets) = (Vec::new(), Vec::new());
    let (mut kills, mut former) = (0_u64, None);
    let (mut cut_off, mut cutting) = (0, 0);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.below(900)));
        let downloads = downloads_under_way(&house);
        let (span, ()) = Span::of(|| {
            // Now and then the next one, before it has got anywhere.
            for _ in 0..=u64::from(random.once_in(5)) {
                former = Some(kill_next(&house, former));
                kills += 1;
            }
            await_answer(&house);
        });
        house.registry.clear_log();
        pauses.push(span);
        cut_off += downloads;
        cutting += usize::from(downloads > 0);
        // A request that was lost could have been repeated by the daemon after the next.
        if quiets.is_empty() || random.once_in(10) {
            quiets.push(Span::of(|| std::thread::sleep(QUIET)).0);
        }
    }
    for follower in followers {
        follower.finish();
    }
    let restarts = house.kept().restarts;
    let seen = finish_and_ask(readers, &[&pauses[..], &quiets].concat());
    let (around_kills, in_quiet) = seen.views.split_at(pauses.len());
    // Who was answered asks again, and is answered again.
    let unanswered = in_quiet.iter().flatten().filter(|view| view.whole == 0);
    let unanswered = unanswered.count();
    for (name, value) in [
        ("kills", json!(kills)),
        ("restarts", json!(restarts)),
        ("downloads cut off", json!(cut_off)),
        ("operations", json!(seen.operations)),
        ("wrong", json!(seen.wrong.len())),
        ("unanswered", json!(unanswered)),
        ("quiets", json!(quiets.len())),
        ("ms p50 pause", milliseconds(pause(around_kills, 50))),
        ("ms p99 pause", milliseconds(pause(around_kills, 99))),
        ("ms the slowest operation", json!(seen.slowest)),
    ] {
        numbers[name] = value;
    }
    assert_eq!(unanswered, 0, "{numbers}");
    assert!(kills >= proof.pick(4, 400), "{numbers}");
    assert_eq!(restarts, kills, "{numbers}");
    // Not only at first, when there would be downloads anyway.
    assert!(2 * cutting > pauses.len(), "{cutting} times: {numbers}");
    assert!(seen.operations > 1000, "{numbers}");
    if proof.is_long() && Proof::is_optimised() {
        assert!(pause(around_kills, 99) <= PAUSE, "{numbers}");
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
        "`musherfs upgrade` again and again under readers here, in other mount namespaces and in \
         containers, who are answered while each goes on; every byte and errno checked; a pause is \
         the longest operation of a reader around an upgrade",
    );
    let mut random = proof.random();
    let house = House::new();
    house.mount();
    let readers = start_many(&house, READERS, random.next());
    let mut numbers = count(&readers);
    let upgrades = proof.pick(10, 100);
    let mut former = house.daemon();
    let mut spans = Vec::new();
    for _ in 0..upgrades {
        // Meets them in the middle of anything, and not of what the last one has left to do.
        std::thread::sleep(Duration::from_millis(random.below(500)));
        let (span, output) = Span::of(|| house.run(["upgrade", house.dir.to_str().unwrap()]));
        spans.push(span);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        let now = house.daemon();
        assert_ne!(now, former);
        await_end(former);
        former = now;
    }
    let seen = finish_and_ask(readers, &spans);
    let during = seen.views.iter();
    let during = during.map(|views| views.iter().map(|view| view.ended).sum::<u64>());
    let least = during.clone().min().unwrap();
    for (name, value) in [
        ("upgrades", json!(upgrades)),
        ("errors", json!(seen.wrong.len())),
        ("operations", json!(seen.operations)),
        (
            "of them answered during upgrades",
            json!(during.sum::<u64>()),
        ),
        ("during each at least", json!(least)),
        ("ms p99 pause", milliseconds(pause(&seen.views, 99))),
        ("ms the slowest operation", json!(seen.slowest)),
    ] {
        numbers[name] = value;
    }
    assert_eq!(house.kept().restarts, 0);
    // Beside other tests a reader may have no turn during one of a few.
    assert!(least > 0 || !proof.is_long(), "{numbers}");
    assert!(seen.operations > 10 * READERS * upgrades, "{numbers}");
    proof.held(numbers);
}
