//! What several processes remember together.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use musherfs::digest::Digest;
use musherfs::store::journal::Journal;

const FACTS: usize = 400;

fn table(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

#[test]
fn of_processes_that_append_at_once_the_first_to_name_a_table_wins_for_all() {
    const PROCESSES: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let start = Arc::new(Barrier::new(PROCESSES));
    let processes: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let (path, start) = (path.clone(), Arc::clone(&start));
            thread::spawn(move || {
                let journal = Journal::open(&path);
                let mine = table(&format!("{process}"));
                let answer = |n| {
                    start.wait();
                    let known = journal.remember_table(&format!("v{n}"), mine);
                    known.map_or_else(|first| first, |()| mine)
                };
                (0..FACTS).map(answer).collect::<Vec<Digest>>()
            })
        })
        .collect();
    let mut answers: Vec<Vec<Digest>> = processes
        .into_iter()
        .map(|process| process.join().unwrap())
        .collect();
    let agreed = answers.pop().unwrap();
    for other in answers {
        assert_eq!(other, agreed);
    }
    // Whoever comes later reads the same, and no line was torn.
    let journal = Journal::open(&path);
    assert_eq!(journal.versions().len(), FACTS);
    for (n, &first) in agreed.iter().enumerate() {
        let answer = journal.remember_table(&format!("v{n}"), table("late"));
        assert_eq!(answer, Err(first));
    }
}

#[test]
fn nothing_is_lost_while_another_process_compacts_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let journal = Journal::open(&path);
    let over = Arc::new(AtomicBool::new(false));
    let adding = {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            let mut facts = 0;
            while !over.load(Ordering::Relaxed) {
                let version = format!("v{facts}");
                assert_eq!(journal.remember_table(&version, table(&version)), Ok(()));
                facts += 1;
                // Not as fast as it goes: there must be more repeats than facts.
                thread::sleep(Duration::from_micros(500));
            }
            facts
        })
    };
    // Enough repeats that whoever opens the journal writes it anew.
    let repeats = "{\"name\":{\"name\":\"acme\"}}\n".repeat(20_000);
    for _ in 0..5 {
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(repeats.as_bytes()).unwrap();
        drop(Journal::open(&path));
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < repeats.len() as u64, "it was not written anew");
    }
    over.store(true, Ordering::Relaxed);
    let facts = adding.join().unwrap();
    let after = Journal::open(&path);
    assert_eq!(after.versions().len(), facts);
    assert_eq!(after.names(), ["acme"]);
}

#[test]
fn a_version_that_was_removed_stays_so_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let journal = Journal::open(&path);
    assert!(journal.remember_removal("v", true));
    assert!(!journal.remember_removal("v", true), "that is no news");
    assert!(Journal::open(&path).is_removed("v"));
    assert!(journal.remember_removal("v", false));
    assert!(!Journal::open(&path).is_removed("v"));
}

#[test]
fn what_another_process_adds_after_the_opening_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let successor = Journal::open(&path);
    let of_others = successor.of_others();
    let predecessor = Journal::open(&path);
    predecessor.remember_name("acme/kit@latest");
    predecessor.remember_table("v", table("v")).unwrap();
    assert_eq!(successor.names(), ["acme/kit@latest"]);
    assert_eq!(successor.versions(), ["v"]);
    assert_eq!(successor.of_others(), of_others + 2);
    // What it adds itself is nothing new to it.
    successor.remember_name("acme");
    assert_eq!(successor.of_others(), of_others + 2);
    assert_eq!(predecessor.of_others(), 1);
}

/// Does something on another thread that must not have to wait for anybody.
fn unhindered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_process_that_is_stopped_while_it_has_the_journal_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let journal = Arc::new(Journal::open(&path));
    assert!(journal.remember_removal("gone", true));
    let stopped = File::open(&path).unwrap();
    stopped.lock().unwrap();
    let asked = Arc::clone(&journal);
    unhindered(move || {
        assert!(asked.remember_name("acme"));
        assert_eq!(asked.remember_table("v", table("mine")), Ok(()));
        assert_eq!(
            asked.remember_table("v", table("other")),
            Err(table("mine"))
        );
        assert_eq!(asked.remember_table("w", table("w")), Ok(()));
        asked.remember_salt("v", 3);
        assert!(asked.remember_removal("gone", false));
        assert_eq!(
            (asked.names(), asked.salt("v")),
            (vec!["acme".to_owned()], 3)
        );
    });
    // It was about to write this.
    let line = format!(
        "{{\"table\":{{\"version\":\"v\",\"table\":\"{}\"}}}}\n",
        table("first")
    );
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
    drop(stopped);
    assert_eq!(
        journal.remember_table("v", table("mine")),
        Err(table("first"))
    );
    // The rest is written, although nothing else is remembered.
    drop(journal);
    let after = Journal::open(&path);
    assert_eq!(
        (after.names(), after.salt("v")),
        (vec!["acme".to_owned()], 3)
    );
    assert_eq!(after.remember_table("w", table("late")), Err(table("w")));
    assert!(!after.is_removed("gone"));
}

#[test]
fn a_journal_that_somebody_uses_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let repeats = "{\"name\":{\"name\":\"acme\"}}\n".repeat(2_000);
    std::fs::write(&path, &repeats).unwrap();
    let appending = File::open(&path).unwrap();
    appending.lock_shared().unwrap();
    assert_eq!(
        unhindered({
            let path = path.clone();
            move || Journal::open(&path).names()
        }),
        ["acme"]
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), repeats);
    drop(appending);
    drop(Journal::open(&path));
    assert!(std::fs::metadata(&path).unwrap().len() < repeats.len() as u64);
}

#[test]
fn a_removal_that_was_taken_back_stays_so_when_the_journal_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let (one, other) = (Journal::open(&path), Journal::open(&path));
    assert!(one.remember_removal("v", true));
    assert!(one.remember_removal("still", true));
    assert_eq!(other.of_others(), 2);
    assert!(other.is_removed("v"));
    assert!(one.remember_removal("v", false));
    let repeats = "{\"name\":{\"name\":\"acme\"}}\n".repeat(2_000);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(repeats.as_bytes()).unwrap();
    drop(Journal::open(&path));
    // It reads the new file from its beginning.
    assert_eq!(other.names(), ["acme"]);
    assert!(!other.is_removed("v") && other.is_removed("still"));
}
