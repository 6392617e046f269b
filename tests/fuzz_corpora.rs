//! What strangers wrote before: every input of the fuzzer's corpora again, and inputs made of them.
//!
//! The fuzzer itself needs a compiler with other flags (`scripts/prove --long fuzz`); what it is to
//! find stays in `fuzz/corpus`, and never comes back unnoticed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The inputs of a target, each with its file's name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut inputs: Vec<_> = std::fs::read_dir(dir.join(target))
        .unwrap_or_else(|error| panic!("no corpus of {target}: {error}"))
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

fn run(target: &str, function: fn(&[u8]), name: &str, input: &[u8]) {
    let result = catch_unwind(AssertUnwindSafe(|| function(input)));
    if let Err(cause) = result {
        eprintln!("{target}, {name}: {:?}", String::from_utf8_lossy(input));
        std::panic::resume_unwind(cause);
    }
}

#[test]
fn every_input_that_was_interesting_is_read_without_a_panic() {
    for (target, function) in targets::TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 3, "the corpus of {target} is empty");
        for (name, input) in inputs {
            run(target, function, &name, &input);
        }
    }
}

/// A sequence that is as good as random, and the same for the same seed.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// `input` with a few things changed as a careless or hostile writer would.
fn distort(sequence: &mut Sequence, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=sequence.below(3) {
        let at = sequence.below(bytes.len() + 1);
        let to = (at + sequence.below(16)).min(bytes.len());
        match sequence.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let byte = b"\0\"\\{}[],:/.@-9\xff\n%~"[sequence.below(18)];
                bytes.insert(at, byte);
            }
            4 => {
                let from = sequence.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << sequence.below(8);
                }
            }
        }
    }
    bytes
}

#[test]
fn inputs_made_of_interesting_ones_are_read_without_a_panic() {
    let seed = std::env::var("MUSHERFS_SEED").map_or(1, |seed| seed.parse().unwrap());
    for (target, function) in targets::TARGETS {
        let mut sequence = Sequence(seed);
        let inputs = corpus(target);
        let end = Instant::now() + Duration::from_millis(500);
        let mut tried = 0;
        while Instant::now() < end {
            let (_, input) = &inputs[sequence.below(inputs.len())];
            let (_, other) = &inputs[sequence.below(inputs.len())];
            let input = distort(&mut sequence, input, other);
            run(target, function, &format!("seed {seed}"), &input);
            tried += 1;
        }
        eprintln!("{target}: {tried} inputs, seed {seed}");
    }
}
