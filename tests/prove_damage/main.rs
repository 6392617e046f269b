//! Proof that no damage to the cache is ever served: two hundred blobs, their manifests, sidecars and
//! refs, damaged byte by byte and as whole files.
//!
//! With a good source every file is right when it is read, and right on disk afterwards. Without one
//! the reader gets an error that says why, or the right bytes; never others.
//!
//! The bulk is done without a kernel ([`machine`]), a sample through a real mount ([`mounted`]).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod entries;
mod harm;
mod machine;
mod mounted;
#[path = "../support/mod.rs"]
mod support;

use std::fs;

use musherfs::fuse::errno;
use serde_json::json;

use harm::{Harm, flip};
use machine::Machine;
use support::prove::Proof;

/// Of larger files only so many positions are tried.
const SMALL: usize = 4096;

#[tokio::test]
async fn a_blob_that_is_damaged_anywhere_is_never_served_and_heals() {
    let proof = Proof::start(
        "no wrong byte of a blob is delivered, and damage heals",
        "200 blobs: bytes changed in place (long form: each of every file under 4 KiB), truncated, \
         extended, swapped, replaced by a link, a directory, another owner's file; read, compared, \
         and compared on disk",
    );
    let mut random = proof.random();
    let machine = Machine::new(&mut random);
    let process = machine.process();
    let mut files = machine.files();
    assert_eq!(files.len(), 200);
    for (version, path, content) in &files {
        assert_eq!(process.read(version, path).await.unwrap(), *content);
    }
    let (mut positions, mut whole) = (0_u64, 0_u64);
    random.shuffle(&mut files);
    for (version, path, content) in &files {
        let blob = machine.blob(content);
        let tried = if proof.is_long() && content.len() < SMALL {
            (0..content.len()).collect()
        } else {
            let few = proof.pick(3, 200);
            let mut chosen = vec![0, content.len() - 1];
            chosen.extend((0..few).map(|_| random.index(content.len())));
            chosen
        };
        for position in tried {
            flip(&blob, position, &mut random);
            let read = process.read(version, path).await;
            let read = read.unwrap_or_else(|error| panic!("{path}, byte {position}: {error}"));
            assert!(read == *content, "{path}, byte {position}: wrong bytes");
            let healed = fs::read(&blob).unwrap();
            assert!(healed == *content, "{path}, byte {position}: not healed");
            positions += 1;
        }
    }
    let few = proof.pick(40, files.len());
    for harm in Harm::ALL {
        // Nobody here has a file open: whoever has goes on reading what it was.
        let fresh = machine.process();
        for (index, (version, path, content)) in files[..few].iter().enumerate() {
            let other = &files[(index + 1) % few].2;
            if !harm.apply(&machine.blob(content), &machine.blob(other)) {
                continue;
            }
            for (process, who) in [(&process, "open"), (&fresh, "fresh")] {
                let read = process.read(version, path).await;
                let read = read.unwrap_or_else(|error| panic!("{path}, {harm:?}, {who}: {error}"));
                assert!(read == *content, "{path}, {harm:?}, {who}: wrong bytes");
            }
            let later = machine.process_without_source().read(version, path).await;
            let later = later.unwrap_or_else(|error| panic!("{path}, {harm:?}, later: {error}"));
            assert!(later == *content, "{path}, {harm:?}: not healed");
            whole += 1;
        }
    }
    proof.held(json!({
        "blobs": files.len(),
        "positions": positions,
        "whole files": whole,
        "wrong bytes": 0,
        "not healed": 0,
    }));
}

#[tokio::test]
async fn a_damaged_blob_that_cannot_be_fetched_is_an_error_that_says_so() {
    let proof = Proof::start(
        "damage that cannot be healed is EIO with its cause, never wrong bytes",
        "200 blobs (short form: 50), each damaged in each way while the source is down",
    );
    let mut random = proof.random();
    let machine = Machine::new(&mut random);
    let mut files = machine.files();
    random.shuffle(&mut files);
    files.truncate(proof.pick(50, files.len()));
    let process = machine.process();
    for (version, path, content) in &files {
        assert_eq!(process.read(version, path).await.unwrap(), *content);
    }
    let (mut failed, mut served) = (0_u64, 0_u64);
    let kinds = [None].into_iter().chain(Harm::ALL.map(Some));
    for harm in kinds {
        // Nobody has a file open, or remembers a failure.
        let process = machine.process_without_source();
        for (index, (version, path, content)) in files.iter().enumerate() {
            let (blob, other) = (
                machine.blob(content),
                machine.blob(&files[(index + 1) % files.len()].2),
            );
            let before = fs::read(&blob).unwrap();
            assert!(before == *content);
            let done = match harm {
                None => {
                    flip(&blob, random.index(content.len()), &mut random);
                    true
                }
                Some(harm) => harm.apply(&blob, &other),
            };
            if !done {
                continue;
            }
            match process.read(version, path).await {
                Ok(read) => {
                    assert!(read == *content, "{path}, {harm:?}: wrong bytes");
                    assert!(harm.is_some_and(Harm::keeps_content), "{path}, {harm:?}");
                    served += 1;
                }
                Err(error) => {
                    let (number, said) = (errno(&error).code(), error.to_string());
                    // What is no file is not cached, so it is the source that is missing.
                    if harm.is_some_and(Harm::leaves_no_file) {
                        assert_eq!(number, libc::EHOSTUNREACH, "{path}, {harm:?}: {said}");
                    } else {
                        assert_eq!(number, libc::EIO, "{path}, {harm:?}: {said}");
                        assert!(said.contains("the cache (and it cannot"), "{said}");
                    }
                    failed += 1;
                }
            }
            machine.restore(content);
            machine.restore(&files[(index + 1) % files.len()].2);
        }
    }
    proof.held(json!({
        "blobs": files.len(),
        "reads failed": failed,
        "served right": served,
        "wrong bytes": 0,
    }));
}
