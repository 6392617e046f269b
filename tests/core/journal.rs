//! What several processes remember together.

use std::io::Write as _;
use std::sync::{Arc, Barrier};
use std::thread;

use musherfs::digest::Digest;
use musherfs::store::journal::Journal;

const FACTS: usize = 400;

fn table(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

#[test]
fn of_processes_that_append_at_once_the_first_to_name_a_table_wins_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    let start = Arc::new(Barrier::new(4));
    let processes: Vec<_> = (0..4)
        .map(|process| {
            let (path, start) = (path.clone(), Arc::clone(&start));
            thread::spawn(move || {
                let journal = Journal::open(&path);
                start.wait();
                let tables: Vec<Digest> = (0..FACTS)
                    .map(|n| {
                        let mine = table(&format!("{process}"));
                        journal.remember_name(&format!("acme/kit-{process}-{n}"));
                        let known = journal.remember_table(&format!("v{n}"), mine);
                        known.map_or_else(|first| first, |()| mine)
                    })
                    .collect();
                tables
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
    for (n, &first) in agreed.iter().enumerate() {
        let answer = journal.remember_table(&format!("v{n}"), table("late"));
        assert_eq!(answer, Err(first));
    }
    assert_eq!(journal.names().len(), 4 * FACTS);
}

#[test]
fn nothing_is_lost_while_another_process_compacts_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.jsonl");
    // Enough repeats that each process that opens it writes it anew.
    let repeats = "{\"name\":{\"name\":\"acme\"}}\n".repeat(1100 + 2 * FACTS);
    std::fs::write(&path, &repeats).unwrap();
    let journal = Journal::open(&path);
    let adding = thread::spawn(move || {
        for n in 0..FACTS {
            let version = format!("v{n}");
            assert_eq!(journal.remember_table(&version, table(&version)), Ok(()));
        }
    });
    while !adding.is_finished() {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(repeats.as_bytes()).unwrap();
        drop(Journal::open(&path));
    }
    adding.join().unwrap();
    let after = Journal::open(&path);
    assert_eq!(after.versions().len(), FACTS);
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
