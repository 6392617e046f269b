//! Content: fetched once, verified always, served whatever happens to the cache.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use musherfs::digest::Digest;
use musherfs::error::Error;
use musherfs::manifest::{Layer, Manifest};
use musherfs::metrics::Counter;
use musherfs::source::Deadline;
use musherfs::store::locks::Locks;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::fake::{Fake, Fault, unreachable};
use crate::{Machine, Options, cache_version, eventually, no_readahead, read, soon};

const KIT: &str = "acme/kit@1.0.0";

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    fake.publish(
        KIT,
        &[("a.md", "alpha\n"), ("b.md", "beta\n"), ("empty", "")],
    );
    fake
}

#[tokio::test]
async fn sixty_four_readers_share_one_request() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let loaded = process.load(KIT).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("blob", Fault::Wait(Arc::clone(&gate)));
    let readers: Vec<_> = (0..64)
        .map(|_| {
            let (store, loaded) = (Arc::clone(&process.store), Arc::clone(&loaded));
            tokio::spawn(async move { read(&store, &loaded, "a.md").await })
        })
        .collect();
    eventually(|| process.count(Counter::Joined) == 63).await;
    gate.add_permits(64);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), "alpha\n");
    }
    assert_eq!(fake.count("blob"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_one_request() {
    let (machine, fake) = (Machine::new(), registry());
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("blob", Fault::Wait(Arc::clone(&gate)));
    let mut readers = Vec::new();
    for process in [machine.process(&[&fake]), machine.process(&[&fake])] {
        let loaded = process.load(KIT).await.unwrap();
        readers.push(tokio::spawn(async move {
            read(&process.store, &loaded, "a.md").await
        }));
    }
    fake.called("blob", 1).await;
    gate.add_permits(2);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), "alpha\n");
    }
    assert_eq!(fake.count("blob"), 1);
}

#[tokio::test]
async fn a_reader_that_gives_up_does_not_cancel_the_others() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let loaded = process.load(KIT).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    fake.break_calls("blob", Fault::Wait(Arc::clone(&gate)));
    let reader = || {
        let (store, loaded) = (Arc::clone(&process.store), Arc::clone(&loaded));
        tokio::spawn(async move { read(&store, &loaded, "a.md").await })
    };
    let first = reader();
    fake.called("blob", 1).await;
    let second = reader();
    eventually(|| process.count(Counter::Joined) == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap(), "alpha\n");
    assert_eq!(fake.count("blob"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_own_time_is_not_over_tries_again() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let loaded = process.load(KIT).await.unwrap();
    fake.break_calls("blob", Fault::Hang);
    let first = {
        let (store, loaded) = (Arc::clone(&process.store), Arc::clone(&loaded));
        tokio::spawn(async move { read(&store, &loaded, "a.md").await })
    };
    fake.called("blob", 1).await;
    tokio::time::advance(Duration::from_secs(50)).await;
    let second = {
        let (store, loaded) = (Arc::clone(&process.store), Arc::clone(&loaded));
        tokio::spawn(async move { read(&store, &loaded, "a.md").await })
    };
    eventually(|| process.count(Counter::Joined) == 1).await;
    fake.heal();
    assert!(matches!(first.await.unwrap(), Err(Error::Timeout { .. })));
    assert_eq!(second.await.unwrap().unwrap(), "alpha\n");
}

#[tokio::test]
async fn a_cached_blob_is_hashed_on_first_use_and_when_its_fingerprint_changes() {
    let machine = Machine::new();
    let files = [("a.md", "alpha\n")];
    cache_version(&machine.cache(), KIT, Default::default(), &files, 0);
    let process = machine.process(&[]);
    let hashed = || process.count(Counter::Verified);
    for _ in 0..3 {
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
    assert_eq!(hashed(), 1);
    let blob = File::options()
        .write(true)
        .open(machine.blob_path("alpha\n"))
        .unwrap();
    blob.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    for _ in 0..3 {
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
    assert_eq!(hashed(), 2);
}

#[tokio::test]
async fn an_open_blob_goes_on_serving_when_another_tool_deletes_it() {
    let machine = Machine::new();
    let files = [("a.md", "alpha\n")];
    cache_version(&machine.cache(), KIT, Default::default(), &files, 0);
    let process = machine.process(&[]);
    process.read(KIT, "a.md").await.unwrap();
    fs::remove_file(machine.blob_path("alpha\n")).unwrap();
    for _ in 0..2 {
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
    // Nobody else has it open.
    assert!(machine.process(&[]).read(KIT, "a.md").await.is_err());
}

#[tokio::test]
async fn a_large_blob_survives_its_deletion_too() {
    let machine = Machine::new();
    let text = "0123456789abcdef".repeat(1 << 17);
    let files = [("large.txt", text.as_str())];
    cache_version(&machine.cache(), KIT, Default::default(), &files, 0);
    let process = machine.process(&[]);
    let loaded = process.load(KIT).await.unwrap();
    let index = loaded.manifest.find("large.txt").unwrap().index();
    let mut buffer = Vec::new();
    let now = |buffer: &mut Vec<u8>| process.store.read_now(&loaded, index, 5, 10, buffer);
    assert!(now(&mut buffer).is_none(), "2 MiB are not hashed at once");
    for deleted in [false, true] {
        let piece = process.store.read(&loaded, index, 5, 10, soon()).await;
        assert_eq!(piece.unwrap(), b"56789abcde");
        now(&mut buffer).unwrap().unwrap();
        assert_eq!(buffer, b"56789abcde");
        if !deleted {
            fs::remove_file(machine.blob_path(&text)).unwrap();
        }
    }
    let end = text.len() as u64 - 3;
    let last = process.store.read(&loaded, index, end, 100, soon()).await;
    assert_eq!(last.unwrap(), b"def");
}

#[tokio::test]
async fn a_blob_that_was_damaged_in_place_is_replaced() {
    let (machine, fake) = (Machine::new(), registry());
    let files = [("a.md", "alpha\n"), ("b.md", "beta\n"), ("empty", "")];
    cache_version(&machine.cache(), KIT, Default::default(), &files, 0);
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    let path = machine.blob_path("alpha\n");
    // Once while it is open, once before it is used.
    let blob = File::options().write(true).open(&path).unwrap();
    blob.write_all_at(b"ALPHA", 0).unwrap();
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(fs::read(&path).unwrap(), b"alpha\n");
    assert_eq!(
        (fake.count("blob"), process.count(Counter::VerifyFailed)),
        (1, 1)
    );
    fs::write(machine.blob_path("beta\n"), "bet").unwrap();
    assert_eq!(process.read(KIT, "b.md").await.unwrap(), "beta\n");
    assert_eq!(fs::read(machine.blob_path("beta\n")).unwrap(), b"beta\n");
}

#[tokio::test]
async fn a_damaged_blob_that_nobody_has_is_wrong_bytes() {
    let (machine, fake) = (Machine::new(), registry());
    let files = [("a.md", "alpha\n")];
    cache_version(&machine.cache(), KIT, Default::default(), &files, 0);
    fs::write(machine.blob_path("alpha\n"), "ALPHA\n").unwrap();
    fake.break_calls("", Fault::Fail(unreachable()));
    for sources in [&[][..], &[&fake]] {
        let process = machine.process(sources);
        let error = process.read(KIT, "a.md").await.unwrap_err();
        assert!(matches!(error, Error::WrongBytes { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_blob_that_is_deleted_before_its_first_use_is_fetched_again() {
    let (machine, fake) = (Machine::new(), registry());
    machine.process(&[&fake]).read(KIT, "a.md").await.unwrap();
    fs::remove_dir_all(machine.dir.path().join("cache/blobs")).unwrap();
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(fake.count("blob a.md"), 2);
}

#[tokio::test]
async fn wrong_bytes_of_one_source_are_asked_of_the_next() {
    let (machine, liar, fake) = (Machine::new(), registry(), registry());
    liar.break_calls("blob", Fault::Bytes(b"ALPHA\n"));
    let process = machine.process(&[&liar, &fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!((liar.count("blob"), fake.count("blob")), (1, 1));
    assert_eq!(process.count(Counter::VerifyFailed), 1);
}

#[tokio::test]
async fn wrong_bytes_of_all_sources_are_an_error_and_leave_nothing() {
    let (machine, liar) = (Machine::new(), registry());
    // As long as the right ones, shorter, longer, none.
    for bytes in [&b"ALPHA\n"[..], b"alpha", b"alpha\n\n", b""] {
        liar.break_calls("blob", Fault::Bytes(bytes));
        let process = machine.process(&[&liar]);
        let error = process.read(KIT, "a.md").await.unwrap_err();
        let kinds = matches!(error, Error::WrongBytes { .. } | Error::Malformed { .. });
        assert!(kinds, "{error}");
        assert!(!machine.blob_path("alpha\n").exists());
        let mut blobs = 0;
        process.cache.for_each_blob(|_| blobs += 1);
        assert_eq!(blobs, 0);
    }
}

#[tokio::test]
async fn a_manifest_that_lies_about_a_size_serves_nothing_of_the_file() {
    let (machine, fake) = (Machine::new(), registry());
    for (size, id) in [(3, "acme/short@1.0.0"), (9, "acme/long@1.0.0")] {
        let layer = Layer {
            path: "a.md".to_owned(),
            digest: Digest::of(b"alpha\n"),
            size: Some(size),
            asset_type: String::new(),
            asset_id: String::new(),
            media_type: None,
        };
        let id = crate::version(id);
        let lie = Manifest::new(id.clone(), Default::default(), vec![layer]).unwrap();
        let now = jiff::Timestamp::now();
        machine
            .cache()
            .write_manifest(&crate::host(), &lie, now)
            .unwrap();
        fake.publish(&id.to_string(), &[("a.md", "alpha\n")]);
        let process = machine.process(&[&fake]);
        assert!(process.read(&id.to_string(), "a.md").await.is_err());
        // Nor when the blob is at hand, because another version has it.
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
        assert!(process.read(&id.to_string(), "a.md").await.is_err());
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_answered_from_memory_for_two_seconds() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.load(KIT).await.unwrap();
    fake.break_calls("blob", Fault::Fail(unreachable()));
    for _ in 0..3 {
        let error = process.read(KIT, "a.md").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
    assert_eq!(fake.count("blob"), 1);
    fake.heal();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(fake.count("blob"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_source_leaves_time_for_the_next() {
    let (machine, stuck, fake) = (Machine::new(), registry(), registry());
    stuck.break_calls("", Fault::Hang);
    let process = machine.process(&[&stuck, &fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
}

#[tokio::test(start_paused = true)]
async fn every_read_ends_within_its_deadline() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.load(KIT).await.unwrap();
    fake.break_calls("blob", Fault::Hang);
    let start = Instant::now();
    let error = process.read(KIT, "a.md").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() <= Duration::from_secs(61));
    // The kernel asks again at once.
    assert!(process.read(KIT, "a.md").await.is_err());
    assert!(start.elapsed() <= Duration::from_secs(61));
    // Other files are not delayed.
    fake.break_calls("blob a.md", Fault::Hang);
    let deadline = Deadline::after(Duration::from_secs(1));
    let loaded = process.load(KIT).await.unwrap();
    let index = loaded.manifest.find("b.md").unwrap().index();
    let other = process.store.read(&loaded, index, 0, 100, deadline).await;
    assert_eq!(other.unwrap(), b"beta\n");
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_no_error() {
    let (machine, fake) = (Machine::new(), registry());
    let file = machine.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let options = Options {
        policy: no_readahead(),
        cache_root: Some(file.join("cache")),
        ..Options::default()
    };
    let process = machine.process_with(&[&fake], options);
    for _ in 0..2 {
        assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
        assert_eq!(process.target("acme/kit").await.unwrap(), "1.0.0");
    }
    assert_eq!(fake.count("blob"), 1);
}

#[tokio::test]
async fn an_empty_file_is_not_asked_for() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "empty").await.unwrap(), "");
    assert_eq!(fake.count("blob"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_process_that_holds_the_lock_is_not_waited_for_to_the_end() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    let state = machine.dir.path().join("state");
    let stopped = Locks::new(Some(&state), process.cache.root());
    let held = stopped.acquire(Digest::of(b"alpha\n"), soon()).await;
    assert!(held.is_some());
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
}

#[tokio::test]
async fn another_tools_unpacked_copy_is_taken_if_its_bytes_are_right() {
    let (machine, fake) = (Machine::new(), registry());
    let assets = machine
        .dir
        .path()
        .join("cache/bundles/acme/kit/1.0.0/assets");
    fs::create_dir_all(&assets).unwrap();
    fs::write(assets.join("a.md"), "alpha\n").unwrap();
    fs::write(assets.join("b.md"), "BETA\n").unwrap();
    let process = machine.process(&[&fake]);
    assert_eq!(process.read(KIT, "a.md").await.unwrap(), "alpha\n");
    assert_eq!(process.read(KIT, "b.md").await.unwrap(), "beta\n");
    assert_eq!((fake.count("blob a.md"), fake.count("blob b.md")), (0, 1));
    assert!(machine.blob_path("alpha\n").exists());
}
