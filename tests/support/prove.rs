//! What every part of the proof (`scripts/prove`) has in common: its form, its seed, its result.
//!
//! ```ignore
//! let proof = Proof::start("what is promised", "how it is proved");
//! let mut random = proof.random();
//! let steps = if proof.is_long() { 100_000 } else { 500 };
//! // ... asserts ...
//! proof.held(json!({"steps": steps}));
//! ```
//!
//! A test that ends before [`Proof::held`] leaves the verdict "broken" with what [`Proof::saw`] was
//! told, and says how to repeat it.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

/// A proof that is under way.
pub(crate) struct Proof {
    /// The test that is running.
    name: String,
    promise: &'static str,
    how: &'static str,
    /// What all random choices derive from.
    pub(crate) seed: u64,
    long: bool,
    /// What there is to say if it breaks.
    seen: Value,
    done: bool,
}

impl Proof {
    /// Says what is about to be proved, and by what; both are what the README's table prints.
    pub(crate) fn start(promise: &'static str, how: &'static str) -> Self {
        let given = std::env::var("MUSHERFS_SEED").ok();
        let seed = given.map(|text| text.parse().expect("MUSHERFS_SEED is a number"));
        let proof = Self {
            name: std::thread::current().name().unwrap_or("main").to_owned(),
            promise,
            how,
            seed: seed.unwrap_or_else(new_seed),
            long: std::env::var_os("MUSHERFS_PROVE").is_some_and(|form| form == "long"),
            seen: json!({}),
            done: false,
        };
        eprintln!("{}: seed {}", proof.name, proof.seed);
        proof
    }

    /// Says what this form proves instead, where it proves less.
    pub(crate) fn promises(&mut self, promise: &'static str) {
        self.promise = promise;
    }

    /// Whether this is the long form, of minutes to hours; the short one takes seconds.
    pub(crate) fn is_long(&self) -> bool {
        self.long
    }

    /// `long` in the long form, else `short`.
    pub(crate) fn pick<T>(&self, short: T, long: T) -> T {
        if self.long { long } else { short }
    }

    /// Random numbers, the same for the same seed.
    pub(crate) fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// Whether what is measured is optimised, so that times mean something.
    pub(crate) fn is_optimised() -> bool {
        profile() != "dev"
    }

    /// What was measured, before it is known whether that is good enough: as for [`Proof::held`].
    pub(crate) fn saw(&mut self, numbers: &Value) {
        self.seen = numbers.clone();
    }

    /// It held. `numbers` is an object; names read after their numbers: `{"steps": 100}`.
    pub(crate) fn held(mut self, numbers: Value) {
        self.done = true;
        self.write("held", &numbers);
    }

    fn write(&self, verdict: &str, numbers: &Value) {
        eprintln!("{}: {verdict}: {numbers}", self.name);
        let Some(dir) = std::env::var_os("MUSHERFS_PROVE_RESULTS").map(PathBuf::from) else {
            return;
        };
        let result = json!({
            "promise": self.promise,
            "how": self.how,
            "numbers": numbers,
            "verdict": verdict,
            "seed": self.seed,
            "form": if self.long { "long" } else { "short" },
            "profile": profile(),
            "date": jiff::Timestamp::now().to_string(),
            "kernel": rustix::system::uname().release().to_string_lossy(),
        });
        let name = self.name.replace("::", ".");
        let written = std::fs::write(dir.join(format!("{name}.json")), format!("{result}\n"));
        if let Err(error) = written {
            eprintln!("the result could not be written: {error}");
        }
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.write("broken", &self.seen);
        let long = if self.long { "long" } else { "short" };
        let _ = writeln!(
            std::io::stderr(),
            "again: MUSHERFS_PROVE={long} MUSHERFS_SEED={} cargo test --test {} {}",
            self.seed,
            program(),
            self.name,
        );
    }
}

/// Random numbers that a seed determines (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An index into something of this length, which is not 0.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    /// One of them, of which there is at least one.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// Puts them into a random order.
    pub(crate) fn shuffle<T>(&mut self, of: &mut [T]) {
        for last in (1..of.len()).rev() {
            of.swap(last, self.index(last + 1));
        }
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Another source of numbers, for somebody else.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::from(now.unwrap().subsec_nanos())
}

/// How this program was built, by where cargo has put it.
fn profile() -> String {
    let program = std::env::current_exe().unwrap();
    let dir = program.ancestors().nth(2).and_then(|dir| dir.file_name());
    match dir.map(|name| name.to_string_lossy()) {
        Some(name) if name == "debug" => "dev".to_owned(),
        Some(name) => name.into_owned(),
        None => "unknown".to_owned(),
    }
}

/// The name of this program of tests, without cargo's hash.
fn program() -> String {
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let end = name.rfind('-').unwrap_or(name.len());
    name[..end].to_owned()
}
