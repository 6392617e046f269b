//! One download per digest across processes. In every order: `tests/prove_schedules`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use musherfs::digest::Digest;
use musherfs::source::Deadline;
use musherfs::store::locks::Locks;

#[tokio::test]
async fn a_lock_excludes_and_leaves_nothing_behind() {
    let state = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let locks = Locks::new(Some(state.path()), cache.path());
    let same = Locks::new(Some(state.path()), cache.path());
    let digest = Digest::of(b"x");
    let soon = || Deadline::after(Duration::from_millis(50));
    let held = locks.acquire(digest, soon()).await.unwrap();
    assert!(same.acquire(digest, soon()).await.is_none());
    assert!(same.acquire(Digest::of(b"y"), soon()).await.is_some());
    let deadline = soon();
    same.released(digest, deadline).await;
    assert!(deadline.is_over(), "it was waited for");
    drop(held);
    let deadline = Deadline::after(Duration::from_secs(600));
    same.released(digest, deadline).await;
    assert!(!deadline.is_over());
    assert!(same.acquire(digest, soon()).await.is_some());
    let mut dirs = fs::read_dir(state.path().join("locks")).unwrap();
    let dir = dirs.next().unwrap().unwrap().path();
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

#[tokio::test]
async fn a_cache_that_is_not_there_yet_has_the_same_locks_through_a_link() {
    let state = tempfile::tempdir().unwrap();
    let disk = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    let one = Locks::new(Some(state.path()), &disk.path().join("musher/cache"));
    let linked = Locks::new(Some(state.path()), &link.join("musher/cache"));
    let soon = || Deadline::after(Duration::from_millis(50));
    let _held = one.acquire(Digest::of(b"x"), soon()).await.unwrap();
    assert!(linked.acquire(Digest::of(b"x"), soon()).await.is_none());
}

#[tokio::test]
async fn without_a_usable_directory_there_is_no_lock_and_no_error() {
    let deadline = Deadline::after(Duration::from_secs(5));
    let locks = Locks::new(None, Path::new("/nowhere"));
    assert!(locks.acquire(Digest::of(b"x"), deadline).await.is_none());
    let locks = Locks::new(Some(Path::new("/proc/nowhere")), Path::new("/nowhere"));
    assert!(locks.acquire(Digest::of(b"x"), deadline).await.is_none());
}
