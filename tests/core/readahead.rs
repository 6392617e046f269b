//! Read-ahead: nothing for one file, the neighbours from the second on, never more than the window.

use std::sync::Arc;

use musherfs::error::Error;
use musherfs::metrics::Counter;
use musherfs::store::Policy;
use tokio::sync::Semaphore;

use crate::fake::{Fake, Fault};
use crate::{Machine, Process, no_readahead, quiet};

const KIT: &str = "acme/kit@1.0.0";

/// A version with so many files of 100 bytes, `00.md` and so on.
fn registry(files: usize) -> Arc<Fake> {
    let fake = Fake::new("registry");
    let files: Vec<(String, String)> = (0..files)
        .map(|n| (format!("{n:03}.md"), format!("{n:0100}")))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    fake.publish(KIT, &files);
    fake
}

fn window(readahead: u64) -> Policy {
    Policy {
        readahead,
        ..Policy::default()
    }
}

async fn read(process: &Process, files: &[usize]) {
    for n in files {
        let text = process.read(KIT, &format!("{n:03}.md")).await.unwrap();
        assert_eq!(text, format!("{n:0100}"));
        quiet().await;
    }
}

fn fetched(fake: &Fake) -> Vec<String> {
    let calls = fake.calls();
    let blobs = calls.iter().filter_map(|call| call.strip_prefix("blob "));
    blobs
        .map(|path| path.trim_end_matches(".md").to_owned())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn one_cold_file_fetches_one_file() {
    let (machine, fake) = (Machine::new(), registry(10));
    let process = machine.process(&[&fake]);
    read(&process, &[4, 4, 4]).await;
    assert_eq!(fetched(&fake), ["004"]);
}

#[tokio::test(start_paused = true)]
async fn the_second_cold_file_fetches_the_rest_each_once() {
    let (machine, fake) = (Machine::new(), registry(50));
    let process = machine.process(&[&fake]);
    read(&process, &[4, 5]).await;
    assert_eq!(fake.count("blob"), 50);
    assert_eq!(process.count(Counter::ReadAhead), 48);
    read(&process, &(0..50).collect::<Vec<_>>()).await;
    assert_eq!(fake.count("blob"), 50);
}

#[tokio::test(start_paused = true)]
async fn the_nearest_are_fetched_first_and_no_more_than_the_window() {
    let (machine, fake) = (Machine::new(), registry(50));
    let process = machine.process_under(&[&fake], window(450));
    read(&process, &[20, 30]).await;
    let mut all = fetched(&fake);
    all.sort();
    assert_eq!(all, ["020", "028", "029", "030", "031", "032"]);
    // Nobody reads on: nothing is fetched.
    read(&process, &[20, 30, 20]).await;
    assert_eq!(fake.count("blob"), 6);
    // Reading on moves the window, by as much as was read.
    read(&process, &[31]).await;
    assert_eq!(fetched(&fake).split_off(6), ["033"]);
    read(&process, &[32, 33]).await;
    assert_eq!(fake.count("blob"), 9);
    read(&process, &[33, 32]).await;
    assert_eq!(fake.count("blob"), 9);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_behind_gives_way_to_the_neighbours_of_what_is_waited_for() {
    let (machine, fake) = (Machine::new(), registry(100));
    let process = machine.process_under(&[&fake], window(450));
    read(&process, &[20, 30]).await;
    assert_eq!(fake.count("blob"), 2 + 4);
    // The reader is elsewhere now: one file for each that is waited for.
    let since = |count: usize| {
        let mut since = fetched(&fake).split_off(count);
        since.sort();
        since
    };
    read(&process, &[60]).await;
    assert_eq!(since(6), ["060", "061"]);
    read(&process, &[70, 80]).await;
    assert_eq!(since(8), ["070", "071", "080", "081"]);
    // It goes on from there as before, and waits for nothing.
    for n in 81..85 {
        let before = fake.count("blob");
        read(&process, &[n]).await;
        assert_eq!(since(before), [format!("{:03}", n + 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_sixty_four_requests_are_under_way() {
    let (machine, fake) = (Machine::new(), registry(200));
    let process = machine.process(&[&fake]);
    read(&process, &[100]).await;
    let gate = Arc::new(Semaphore::new(0));
    let (waiting, own) = (Arc::clone(&gate), "blob 101.md");
    fake.set_rule(move |call| {
        (call.starts_with("blob") && call != own).then(|| Fault::Wait(Arc::clone(&waiting)))
    });
    read(&process, &[101]).await;
    assert_eq!(fake.count("blob"), 2 + 64);
    gate.add_permits(1000);
    quiet().await;
    fake.heal();
    read(&process, &[102]).await;
    assert!(fake.count("blob") > 2 + 64);
}

#[tokio::test(start_paused = true)]
async fn while_a_reader_waits_whatever_arrives_makes_room_for_the_next() {
    let (machine, fake) = (Machine::new(), registry(200));
    let process = machine.process(&[&fake]);
    read(&process, &[100]).await;
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    fake.set_rule(move |call| (call == "blob 101.md").then(|| Fault::Wait(Arc::clone(&waiting))));
    let watching = async {
        quiet().await;
        assert_eq!(fake.count("blob"), 200);
        gate.add_permits(1);
    };
    tokio::join!(read(&process, &[101]), watching);
}

#[tokio::test(start_paused = true)]
async fn without_a_window_every_file_is_its_own() {
    let (machine, fake) = (Machine::new(), registry(10));
    fake.serve_pulls();
    let process = machine.process_under(&[&fake], no_readahead());
    read(&process, &[1, 2, 3, 4]).await;
    assert_eq!(fetched(&fake), ["001", "002", "003", "004"]);
    assert_eq!(fake.count("pull"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_larger_than_the_window_stops_nobody() {
    let (machine, fake) = (Machine::new(), Fake::new("registry"));
    let large = "x".repeat(10_000);
    let names = ["a", "b", "c", "d"];
    let files: Vec<(&str, &str)> = names
        .iter()
        .map(|&name| (name, if name == "c" { large.as_str() } else { name }))
        .collect();
    fake.publish(KIT, &files);
    let process = machine.process_under(&[&fake], window(1000));
    process.read(KIT, "a").await.unwrap();
    process.read(KIT, "b").await.unwrap();
    quiet().await;
    let mut fetched = fetched(&fake);
    fetched.sort();
    assert_eq!(fetched, ["a", "b", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_small_rest_is_pulled_in_one_request() {
    let (machine, fake) = (Machine::new(), registry(50));
    fake.serve_pulls();
    let process = machine.process(&[&fake]);
    read(&process, &[4, 5]).await;
    read(&process, &(0..50).collect::<Vec<_>>()).await;
    assert_eq!(fetched(&fake), ["004"]);
    assert_eq!(fake.count("pull"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_is_larger_than_the_window_is_not_pulled() {
    let (machine, fake) = (Machine::new(), registry(50));
    fake.serve_pulls();
    let process = machine.process_under(&[&fake], window(450));
    read(&process, &[4, 5]).await;
    assert_eq!(fake.count("pull"), 0);
    assert_eq!(fake.count("blob"), 6);
}

#[tokio::test(start_paused = true)]
async fn where_the_pull_fails_or_lies_the_files_are_fetched_one_by_one() {
    let refused = Fault::Fail(Error::not_found("pull"));
    for fault in [refused, Fault::Bytes(b"wrong"), Fault::Hang] {
        let (machine, fake) = (Machine::new(), registry(20));
        fake.serve_pulls();
        fake.break_calls("pull", fault);
        let process = machine.process(&[&fake]);
        read(&process, &[4, 5]).await;
        read(&process, &(0..20).collect::<Vec<_>>()).await;
        assert_eq!((fake.count("pull"), fake.count("blob")), (1, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_already_is_not_fetched_ahead() {
    let (machine, fake) = (Machine::new(), registry(10));
    read(&machine.process(&[&fake]), &[0, 1]).await;
    assert_eq!(fake.count("blob"), 10);
    let process = machine.process(&[&fake]);
    read(&process, &(0..10).collect::<Vec<_>>()).await;
    assert_eq!(fake.count("blob"), 10);
}
