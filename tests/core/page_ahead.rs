//! Content that the kernel gets before it asks: of files at hand, for who reads one after the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use musherfs::fs::ahead::{LARGE, PageCache};
use musherfs::fs::inode;
use musherfs::manifest::Info;
use musherfs::metrics::Counter;
use musherfs::store::Policy;

use crate::fake::Fake;
use crate::{Machine, Process, answer, cache_version, no_readahead};

const KIT: &str = "acme/kit@1.0.0";
const FILES: u32 = 60;

/// What the kernel was given and not yet told to take, and what it has.
#[derive(Default)]
struct Given {
    waiting: Mutex<Vec<(u64, Vec<u8>)>>,
    there: Mutex<Vec<(u64, Vec<u8>)>>,
    is_full: AtomicBool,
    flushes: AtomicUsize,
}

struct Kernel(Arc<Given>);

impl PageCache for Kernel {
    fn store(&self, ino: u64, content: &[u8]) -> bool {
        self.0.waiting.lock().unwrap().push((ino, content.to_vec()));
        !self.0.is_full.load(Ordering::Relaxed)
    }

    fn flush(&self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap());
        self.0.there.lock().unwrap().extend(waiting);
        self.0.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

fn text(file: u32) -> String {
    format!("file {file:03}\n").repeat(file as usize + 1)
}

fn cached() -> Machine {
    let machine = Machine::new();
    let texts: Vec<_> = (1..=FILES)
        .map(|n| (format!("{n:03}.md"), text(n)))
        .collect();
    let files: Vec<_> = texts
        .iter()
        .map(|(path, text)| (&**path, &**text))
        .collect();
    cache_version(&machine.cache(), KIT, Info::default(), &files, 1);
    machine
}

fn with_kernel(process: &Process) -> Arc<Given> {
    let given = Arc::new(Given::default());
    process
        .fs
        .set_page_cache(Box::new(Kernel(Arc::clone(&given))));
    given
}

/// Reads files as the kernel does for who has listed their directory.
async fn read(process: &Process, files: impl IntoIterator<Item = u32>) {
    let root = process.ino(KIT).await;
    for file in files {
        let mut buffer = Vec::new();
        let read = process
            .fs
            .read(inode::entry(root, file), 0, 1 << 20, &mut buffer);
        let bytes = answer(read).await.unwrap().unwrap_or(buffer);
        assert_eq!(bytes, text(file).as_bytes());
    }
}

/// The files that were given, after checking that they are what they should be.
async fn given(process: &Process, given: &Given) -> Vec<u32> {
    let root = process.ino(KIT).await;
    let there = std::mem::take(&mut *given.there.lock().unwrap());
    let file = |(ino, content): (u64, Vec<u8>)| {
        let file = (1..=FILES)
            .find(|&file| inode::entry(root, file) == ino)
            .unwrap();
        assert_eq!(content, text(file).as_bytes());
        file
    };
    there.into_iter().map(file).collect()
}

#[tokio::test]
async fn who_reads_one_file_after_the_other_finds_the_next_ones_there() {
    let machine = cached();
    let process = machine.process(&[]);
    let kernel = with_kernel(&process);
    read(&process, [4, 5]).await;
    assert!(given(&process, &kernel).await.is_empty());
    // As many as can be read at once, the next one first.
    let mut at = 6;
    let mut all = 0;
    while at <= FILES {
        read(&process, [at]).await;
        let files = given(&process, &kernel).await;
        let end = at + 1 + u32::try_from(files.len()).unwrap();
        assert_eq!(files, (at + 1..end).collect::<Vec<_>>());
        assert!(at == FILES || end > at + 1, "nothing after {at}");
        all += files.len() as u64;
        at = end;
    }
    assert_eq!(process.count(Counter::PageAhead), all);
    assert_eq!(process.count(Counter::ReadWarm) + all, u64::from(FILES) - 3);
}

#[tokio::test]
async fn nothing_is_given_that_is_damaged_missing_empty_or_large() {
    let machine = Machine::new();
    let large = "x".repeat(LARGE as usize + 1);
    let files = [
        ("1", "one"),
        ("2", "two"),
        ("3", "three"),
        ("4", "four"),
        ("5", ""),
        ("6", &*large),
        ("7", "seven"),
        ("8", "eight"),
    ];
    cache_version(&machine.cache(), KIT, Info::default(), &files, 1);
    std::fs::write(machine.blob_path("four"), "four?").unwrap();
    std::fs::write(machine.blob_path("eight"), "EIGHT").unwrap();
    std::fs::remove_file(machine.blob_path("seven")).unwrap();
    let registry = Fake::new("registry");
    let process = machine.process(&[&registry]);
    let kernel = with_kernel(&process);
    let root = process.ino(KIT).await;
    for file in 1..=3 {
        let mut buffer = Vec::new();
        let read = process
            .fs
            .read(inode::entry(root, file), 0, 100, &mut buffer);
        answer(read).await.unwrap();
    }
    assert_eq!(kernel.flushes.load(Ordering::Relaxed), 1);
    assert_eq!(*kernel.there.lock().unwrap(), []);
    assert_eq!(registry.count("blob"), 0, "nothing is fetched for this");
}

#[tokio::test]
async fn a_kernel_that_takes_no_more_is_asked_again_at_the_next_file() {
    let machine = cached();
    let process = machine.process(&[]);
    let kernel = with_kernel(&process);
    kernel.is_full.store(true, Ordering::Relaxed);
    read(&process, [1, 2, 3]).await;
    assert_eq!(given(&process, &kernel).await, [4]);
    kernel.is_full.store(false, Ordering::Relaxed);
    read(&process, [5]).await;
    assert_eq!(given(&process, &kernel).await[0], 6);
}

#[tokio::test]
async fn who_looks_every_file_up_by_its_name_gets_none_because_the_kernel_knows_no_other() {
    let machine = cached();
    let process = machine.process(&[]);
    let kernel = with_kernel(&process);
    for file in 1..=20 {
        process.ino(&format!("{KIT}/{file:03}.md")).await;
        read(&process, [file]).await;
    }
    assert!(given(&process, &kernel).await.is_empty());
}

#[tokio::test]
async fn nothing_is_given_where_nothing_is_to_be_read_ahead() {
    let machine = cached();
    let process = machine.process_under(&[], no_readahead());
    let kernel = with_kernel(&process);
    read(&process, 1..=20).await;
    assert!(given(&process, &kernel).await.is_empty());
    let process = machine.process_under(&[], Policy::default());
    let kernel = with_kernel(&process);
    read(&process, 1..=20).await;
    assert!(!given(&process, &kernel).await.is_empty());
}
