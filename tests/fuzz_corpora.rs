//! What strangers wrote before: every input of the fuzzer's corpora again, and inputs made of them.
//!
//! The fuzzer itself needs a compiler with other flags (`scripts/prove --long fuzz`); what it is to
//! find stays in `fuzz/corpus`, and never comes back unnoticed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "support/prove.rs"]
#[allow(dead_code)]
mod prove;
#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use prove::{Proof, Random};

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

/// `input` with a few things changed as a careless or hostile writer would.
fn distort(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.index(3) {
        let at = random.index(bytes.len() + 1);
        let to = (at + random.index(16)).min(bytes.len());
        match random.index(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let byte = b"\0\"\\{}[],:/.@-9\xff\n%~"[random.index(18)];
                bytes.insert(at, byte);
            }
            4 => {
                let from = random.index(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.index(8);
                }
            }
        }
    }
    bytes
}

#[test]
fn inputs_made_of_interesting_ones_are_read_without_a_panic() {
    let proof = Proof::start(
        "nothing that strangers write makes a reader panic",
        "inputs that were interesting to a fuzzer, and distortions of them",
    );
    let mut random = proof.random();
    // Not as many as there is time for: a seed stands for the same inputs on every machine.
    let tries = proof.pick(3_000, 50_000);
    let mut numbers = serde_json::Map::new();
    for (target, function) in targets::TARGETS {
        let inputs = corpus(target);
        for _ in 0..tries {
            let (_, input) = &inputs[random.index(inputs.len())];
            let (_, other) = &inputs[random.index(inputs.len())];
            let input = distort(&mut random, input, other);
            run(target, function, &format!("seed {}", proof.seed), &input);
        }
        numbers.insert(target.to_owned(), tries.into());
    }
    proof.held(numbers.into());
}
