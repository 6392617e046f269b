//! What moves, and in which order the kernel learns of it.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use musherfs::cache::REF_TTL;
use musherfs::fs::inode::ROOT;
use musherfs::fs::tree::{Attr, Kind, epoch};
use musherfs::fs::{Answer, Found, Fs, Invalidate, What};
use musherfs::resolve::LISTING_TTL;
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance};

use crate::fake::Fake;
use crate::{Machine, Process, answer, eventually, soon, split};

fn registry() -> Arc<Fake> {
    let fake = Fake::new("registry");
    fake.publish("acme/kit@1.0.0", &[("a.md", "one\n")]);
    fake
}

/// Starts a lookup that has to wait for somebody.
fn look_up(process: &Process, parent: u64, name: &'static str) -> JoinHandle<Attr> {
    let fs: Arc<Fs> = Arc::clone(&process.fs);
    tokio::spawn(async move {
        match answer(fs.lookup(parent, name)).await.unwrap() {
            Found::Node(attr, ..) => attr,
            Found::Absent(_) => panic!("{name} is absent"),
        }
    })
}

async fn target(process: &Process, ino: u64) -> String {
    answer(process.fs.readlink(ino)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_kernel_drops_the_old_target_before_the_new_one_is_answered() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    let before = process.find("acme/kit").await.unwrap().unwrap();
    assert_eq!((before.kind, before.mtime), (Kind::Symlink, epoch()));
    assert_eq!(target(&process, before.ino).await, "kit@1.0.0");
    assert!(process.kernel.try_recv().is_err(), "nothing has moved yet");
    fake.publish("acme/kit@10.0.0", &[]);
    advance(REF_TTL).await;
    let namespace = process.ino("acme").await;
    let lookup = look_up(&process, namespace, "kit");
    let Invalidate { ino, what, done } = process.kernel.recv().await.unwrap();
    assert_eq!((ino, what), (before.ino, What::Told));
    // The new target is in memory already: what the kernel reads anew from now on is right.
    assert_eq!(target(&process, ino).await, "kit@10.0.0");
    // Neither the one who found it out is answered, nor anybody who asks now.
    let another = look_up(&process, namespace, "kit");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!lookup.is_finished() && !another.is_finished());
    done.unwrap().send(()).unwrap();
    for lookup in [lookup, another] {
        let after = lookup.await.unwrap();
        assert_eq!(after.ino, before.ino);
        assert_eq!(after.size, "kit@10.0.0".len() as u64);
        assert!(after.mtime > before.mtime);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_does_not_answer_delays_a_move_by_two_seconds() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    process.ino("acme/kit").await;
    fake.publish("acme/kit@2.0.0", &[]);
    advance(REF_TTL).await;
    let start = Instant::now();
    let ino = process.ino("acme/kit").await;
    assert!(start.elapsed() <= Duration::from_secs(3));
    assert_eq!(target(&process, ino).await, "kit@2.0.0");
    assert!(process.kernel.try_recv().unwrap().done.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_move_that_a_refresh_ahead_finds_is_told_at_once() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    let ino = process.ino("acme/kit").await;
    fake.publish("acme/kit@2.0.0", &[]);
    advance(REF_TTL - Duration::from_secs(30)).await;
    process.resolver.refresh_ahead().await;
    assert_eq!(process.kernel.recv().await.unwrap().ino, ino);
    assert_eq!(target(&process, ino).await, "kit@2.0.0");
    // A name that the kernel has never seen has nothing to drop.
    process.resolve("acme/kit@^1").await.unwrap();
    fake.publish("acme/kit@1.1.0", &[]);
    advance(REF_TTL - Duration::from_secs(30)).await;
    process.resolver.refresh_ahead().await;
    assert_eq!(process.target("acme/kit@^1").await.unwrap(), "1.1.0");
    assert!(process.kernel.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_timer_refreshes_names_in_use_and_counts_the_cache() {
    let (machine, fake) = (Machine::new(), registry());
    let process = machine.process(&[&fake]);
    process.read("acme/kit@1.0.0", "a.md").await.unwrap();
    process.ino("acme/kit").await;
    let timer = tokio::spawn(Arc::clone(&process.fs).tick());
    eventually(|| process.fs.usage().files == 1).await;
    assert_eq!(process.fs.usage().bytes, 4);
    tokio::time::sleep(REF_TTL).await;
    assert_eq!(fake.count("resolve"), 2);
    // It ends with the mount.
    drop(process);
    timer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_name_is_a_link_to_a_version() {
    let (machine, fake) = (Machine::new(), registry());
    fake.point("acme/kit", "stable", "1.0.0");
    let process = machine.process(&[&fake]);
    let digest = crate::fake::oci_digest("acme/kit@1.0.0");
    let names = [
        "kit",
        "kit@latest",
        "kit@stable",
        "kit@^1.0",
        "kit@1",
        &format!("kit@{digest}"),
    ];
    for name in names {
        let found = process.find(&format!("acme/{name}")).await.unwrap();
        let attr = found.unwrap_or_else(|| panic!("{name} is absent"));
        assert_eq!(attr.kind, Kind::Symlink, "{name}");
        assert_eq!(target(&process, attr.ino).await, "kit@1.0.0");
    }
    let version = process.find("acme/kit@1.0.0").await.unwrap().unwrap();
    assert_eq!((version.kind, version.mtime), (Kind::Directory, epoch()));
    // Whoever follows a link needs the manifest next, and the answer brought it along.
    assert_eq!(fake.count("manifest"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_lists_something_else_has_another_time_and_the_kernel_is_told() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    let ino = process.ino("acme").await;
    let mtime = |attr: (Attr, Duration)| attr.0.mtime;
    answer(process.fs.directory(ino)).await.unwrap();
    assert_eq!(
        mtime(answer(process.fs.getattr(ino)).await.unwrap()),
        epoch()
    );
    advance(LISTING_TTL).await;
    assert_eq!(
        mtime(answer(process.fs.getattr(ino)).await.unwrap()),
        epoch()
    );
    assert!(process.kernel.try_recv().is_err(), "nothing has changed");
    fake.publish("acme/kit@2.0.0", &[]);
    advance(LISTING_TTL).await;
    // Found out by whoever asks for the attributes first.
    let changed = mtime(answer(process.fs.getattr(ino)).await.unwrap());
    assert!(changed > epoch() && changed <= SystemTime::now());
    let told = process.kernel.try_recv().unwrap();
    assert_eq!((told.ino, told.what), (ino, What::Told));
    assert!(told.done.is_none());
    // The root, too.
    let root = |process: &Process| process.fs.directory(ROOT);
    answer(root(&process)).await.unwrap();
    fake.tell_namespaces(&["more"]);
    advance(LISTING_TTL).await;
    answer(root(&process)).await.unwrap();
    assert_eq!(process.kernel.try_recv().unwrap().ino, ROOT);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_later_one_has_overtaken_moves_nothing_back() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    let ino = process.ino("acme/kit").await;
    let namespace = process.ino("acme").await;
    // A lookup whose answer is on its way: the registry has said 2.0.0, and nobody has acted on it.
    fake.publish("acme/kit@2.0.0", &[]);
    advance(REF_TTL).await;
    let Answer::Later(mut slow) = process.fs.lookup(namespace, "kit") else {
        panic!("nobody was asked");
    };
    let first = std::future::poll_fn(|cx| Poll::Ready(slow.as_mut().poll(cx))).await;
    assert!(first.is_pending());
    let (bundle, selector) = split("acme/kit");
    let last = || process.resolver.last_known(&bundle, &selector).unwrap().0;
    eventually(|| last().as_str() == "2.0.0").await;
    // Meanwhile a refresh finds the next version.
    fake.publish("acme/kit@3.0.0", &[]);
    // Whoever asks while the first question is not quite over gets its answer.
    let ask = || process.resolver.ask(&bundle, &selector, soon());
    while ask().await.unwrap().version.as_str() != "3.0.0" {}
    assert_eq!(target(&process, ino).await, "kit@3.0.0");
    while let Ok(Invalidate { done, .. }) = process.kernel.try_recv() {
        done.unwrap().send(()).unwrap();
    }
    let Found::Node(attr, ..) = slow.await.unwrap() else {
        panic!("the link is absent");
    };
    assert_eq!((attr.ino, attr.size), (ino, "kit@3.0.0".len() as u64));
    assert_eq!(target(&process, ino).await, "kit@3.0.0");
    assert!(process.kernel.try_recv().is_err(), "nothing moves again");
}

#[tokio::test(start_paused = true)]
async fn what_a_former_process_may_have_told_is_dropped_also_of_names_that_nobody_remembers() {
    let (machine, fake) = (Machine::new(), registry());
    let mut process = machine.process(&[&fake]);
    // The journal was full, say: it tells nothing.
    process.fs.inherit();
    assert_eq!(process.kernel.try_recv().unwrap().ino, ROOT);
    let namespace = process.ino("acme").await;
    let lookup = look_up(&process, namespace, "kit");
    let told = tokio::time::timeout(Duration::from_secs(1), process.kernel.recv()).await;
    let Invalidate { ino, what, done } = told.unwrap().unwrap();
    assert_eq!(what, What::Told);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!lookup.is_finished());
    done.unwrap().send(()).unwrap();
    assert_eq!(lookup.await.unwrap().ino, ino);
    answer(process.fs.directory(namespace)).await.unwrap();
    assert_eq!(process.kernel.try_recv().unwrap().ino, namespace);
    // Once each.
    assert_eq!(process.ino("acme/kit").await, ino);
    answer(process.fs.directory(namespace)).await.unwrap();
    assert!(process.kernel.try_recv().is_err());
}
