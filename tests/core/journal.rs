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
