//! The take-over of a mount: `src/mount/keeper/succession.rs`, in every order of requests, of daemons
//! that die, and of the keeper's moves.

#[path = "../../src/mount/keeper/succession.rs"]
#[allow(dead_code, unreachable_pub)]
mod succession;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use serde_json::json;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread::{spawn, yield_now};

use crate::explore;
use crate::prove::Proof;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use succession::{Daemons, Succession};

const REQUESTS: usize = 4;

/// A connection: what the kernel keeps of its requests.
#[derive(Default)]
struct Kernel {
    requests: Mutex<Requests>,
    daemons: AtomicUsize,
}

#[derive(Default)]
struct Requests {
    asked: usize,
    pending: VecDeque<usize>,
    /// Who has taken which.
    taken: Vec<(usize, usize)>,
    answered: HashSet<usize>,
}

impl Kernel {
    fn ask(&self, request: usize) {
        let mut requests = self.requests.lock().unwrap();
        requests.pending.push_back(request);
        requests.asked += 1;
    }

    fn take(&self, daemon: usize) -> Option<usize> {
        let mut requests = self.requests.lock().unwrap();
        let request = requests.pending.pop_front()?;
        requests.taken.push((daemon, request));
        Some(request)
    }

    /// A second answer is nothing to the kernel.
    fn answer(&self, request: usize) {
        let mut requests = self.requests.lock().unwrap();
        requests.taken.retain(|(_, taken)| *taken != request);
        requests.pending.retain(|pending| *pending != request);
        requests.answered.insert(request);
    }

    /// `FUSE_NOTIFY_RESEND`.
    fn resend(&self) {
        let mut requests = self.requests.lock().unwrap();
        let taken = std::mem::take(&mut requests.taken);
        let again = taken.into_iter().map(|(_, request)| request);
        requests.pending.extend(again);
    }

    /// Whether all was answered; complains if something never will be.
    fn is_done(&self, succession: &Succession<Turn>) -> bool {
        let requests = self.requests.lock().unwrap();
        if let (Some(serving), true) = (succession.serving(), succession.is_settled()) {
            let is_lost = |(daemon, _): &(usize, usize)| *daemon != serving.number;
            assert!(!requests.taken.iter().any(is_lost), "a request is lost");
        }
        requests.asked == REQUESTS && requests.answered.len() == REQUESTS
    }
}

/// A daemon is a thread that takes requests. Its end is asked for, and seen some time later.
struct Daemon {
    number: usize,
    serves: Arc<AtomicBool>,
    is_to_end: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
}

struct HalfDead(Arc<AtomicBool>);

impl Daemon {
    fn prepare(kernel: &Arc<Kernel>) -> Self {
        let daemon = Self {
            number: kernel.daemons.fetch_add(1, SeqCst),
            serves: Arc::default(),
            is_to_end: Arc::default(),
            has_ended: Arc::default(),
        };
        let (kernel, number) = (Arc::clone(kernel), daemon.number);
        let serves = Arc::clone(&daemon.serves);
        let is_to_end = Arc::clone(&daemon.is_to_end);
        let has_ended = Arc::clone(&daemon.has_ended);
        spawn(move || {
            while !is_to_end.load(SeqCst) {
                // Right here it may be told not to take any more.
                let taken = serves.load(SeqCst).then(|| kernel.take(number)).flatten();
                match taken {
                    Some(_) if is_to_end.load(SeqCst) => break,
                    // It crashes.
                    Some(_) if thread_rng().gen_range(0..8) == 0 => break,
                    Some(request) => kernel.answer(request),
                    None => yield_now(),
                }
            }
            has_ended.store(true, SeqCst);
        });
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.is_to_end.store(true, SeqCst);
    }
}

struct Turn(Arc<Kernel>);

impl Daemons for Turn {
    type Daemon = Daemon;
    type HalfDead = HalfDead;
    type Failure = ();

    fn stand_by(&self, daemon: &mut Daemon, _: &Daemon) -> Result<(), ()> {
        // One that has ended before it was to serve.
        if thread_rng().gen_range(0..8) == 0 {
            daemon.is_to_end.store(true, SeqCst);
            return Err(());
        }
        Ok(())
    }

    fn serve(&self, daemon: &mut Daemon) -> Result<(), ()> {
        daemon.serves.store(true, SeqCst);
        if thread_rng().gen_range(0..6) == 0 {
            // It did not say in time that it does.
            return Err(());
        }
        self.0.resend();
        Ok(())
    }

    fn retire(&self, daemon: Daemon) -> Option<HalfDead> {
        self.end(daemon)
    }

    fn end(&self, daemon: Daemon) -> Option<HalfDead> {
        daemon.is_to_end.store(true, SeqCst);
        let ended = Arc::clone(&daemon.has_ended);
        (!ended.load(SeqCst)).then_some(HalfDead(ended))
    }

    fn has_ended(&self, daemon: &HalfDead) -> bool {
        daemon.0.load(SeqCst)
    }

    fn resend(&self) {
        self.0.resend();
    }
}

/// The keeper's loop: upgrades now and then, and replaces who has died.
fn keep(kernel: &Arc<Kernel>) {
    let turn = Turn(Arc::clone(kernel));
    let mut first = Daemon::prepare(kernel);
    while turn.serve(&mut first).is_err() {}
    let mut succession = Succession::<Turn>::of(first);
    let mut moves = 4;
    while !kernel.is_done(&succession) {
        let serving = succession.serving();
        let has_died = serving.is_some_and(|daemon| daemon.has_ended.load(SeqCst));
        if has_died {
            succession.dismiss(&turn);
        }
        if succession.serving().is_none() {
            let _ = succession.follow(&turn, Daemon::prepare(kernel));
        } else if moves > 0 {
            moves -= 1;
            match thread_rng().gen_range(0..3) {
                0 => succession.dismiss(&turn),
                1 => drop(succession.follow(&turn, Daemon::prepare(kernel))),
                _ => {}
            }
        }
        succession.bury(&turn);
        yield_now();
    }
    succession.dismiss(&turn);
}

#[test]
fn whatever_the_order_no_request_is_lost_when_daemons_take_over() {
    let proof = Proof::start(
        "no request is lost when a daemon takes over from another, however that one ends",
        "the keeper's own order of moves under a scheduler; daemons crash and are replaced",
    );
    let schedules = proof.pick(10_000, 200_000);
    explore(&proof, schedules, || {
        let kernel = Arc::<Kernel>::default();
        let asking = Arc::clone(&kernel);
        let readers = spawn(move || {
            for request in 0..REQUESTS {
                asking.ask(request);
                yield_now();
            }
        });
        keep(&kernel);
        readers.join().unwrap();
    });
    proof.held(json!({"schedules": schedules}));
}
