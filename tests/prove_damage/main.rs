//! Proof that no damage to the cache is ever served: two hundred blobs, their manifests, sidecars and
//! refs, damaged byte by byte and as whole files.
//!
//! With a good source every file is right when it is read, and right on disk afterwards. Without one
//! the reader gets an error that says why, or the right bytes; never others. Wrong bytes in the cache
//! are `EIO`. What is no file any more is as good as never fetched: then it is the source that fails,
//! with `EHOSTUNREACH`.
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

use harm::{Harm, Left, flip};
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
    for harm in Harm::all() {
        // Nobody here has a file open: whoever has goes on reading what it was.
        let fresh = machine.process();
        for (index, (version, path, content)) in files[..few].iter().enumerate() {
            let other = &files[(index + 1) % few].2;
            harm.apply(&machine.blob(content), &machine.blob(other));
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
        "kinds of damage skipped": Harm::skipped(),
        "wrong bytes": 0,
        "not healed": 0,
    }));
}

#[tokio::test]
async fn a_damaged_blob_that_cannot_be_fetched_is_an_error_that_says_so() {
    let proof = Proof::start(
        "damage that cannot be healed is an error with its cause, never wrong bytes: EIO for a damaged \
         file, EHOSTUNREACH for none, as for one that was never cached",
        "200 blobs (short form: 50), each damaged in each way while the source is down; the error \
         number and the cause of each compared",
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
    let (mut damaged, mut missing, mut served) = (0_u64, 0_u64, 0_u64);
    let kinds = [None].into_iter().chain(Harm::all().into_iter().map(Some));
    for harm in kinds {
        // Nobody has a file open, or remembers a failure.
        let process = machine.process_without_source();
        for (index, (version, path, content)) in files.iter().enumerate() {
            let others = &files[(index + 1) % files.len()].2;
            let (blob, other) = (machine.blob(content), machine.blob(others));
            assert_eq!(Left::of(&blob, content), Left::Right);
            match harm {
                None => flip(&blob, random.index(content.len()), &mut random),
                Some(harm) => harm.apply(&blob, &other),
            }
            let left = Left::of(&blob, content);
            let keeps_content = harm == Some(Harm::Owner);
            assert_eq!(left == Left::Right, keeps_content, "{path}, {harm:?}");
            match left {
                Left::Right => served += 1,
                Left::Wrong => damaged += 1,
                Left::Nothing => missing += 1,
            }
            let read = process.read(version, path).await;
            let seen = read.as_ref().err().map(|error| errno(error).code());
            assert_eq!(seen, left.errno(), "{path}, {harm:?}: {read:?}");
            match read {
                Ok(read) => assert!(read == *content, "{path}, {harm:?}: wrong bytes"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(left.is_said_by(&said), "{path}, {harm:?}: {said}");
                }
            }
            machine.restore(content);
            machine.restore(others);
        }
    }
    proof.held(json!({
        "blobs": files.len(),
        "damaged files that were EIO": damaged,
        "missing files that were EHOSTUNREACH": missing,
        "served right": served,
        "kinds of damage skipped": Harm::skipped(),
        "wrong bytes": 0,
    }));
}
