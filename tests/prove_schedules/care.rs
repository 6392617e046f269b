//! The quota: `src/care/quota.rs`, in every order of processes that fill one cache.

#[path = "../../src/care/quota.rs"]
#[allow(dead_code, unreachable_pub)]
mod quota;

// What it imports from its parent.
use musherfs::care::{pins, recency};

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::Gate as _;
use crate::digest::Digest;
use crate::explore;
use crate::prove::Proof;
use crate::sync::between;
use quota::Quota;
use recency::Recency;

fn key_of(_: &Path) -> String {
    "ledger".to_owned()
}

fn private_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    std::fs::create_dir_all(path.parent().unwrap())?;
    options.create(true).truncate(false).open(path)
}

const BLOB: u64 = 8192;
/// Three blobs have room, and not four.
const MAX: u64 = 3 * BLOB + 4096;

pub(crate) struct Machine(tempfile::TempDir);

impl Machine {
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let memory = memory.is_dir().then(|| tempfile::tempdir_in(memory));
        Self(memory.unwrap_or_else(tempfile::tempdir).unwrap())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    /// A process with a limit on the cache.
    fn process(&self) -> Quota {
        let (state, root) = (self.state(), self.root());
        Quota::new(&state, &root, MAX, Arc::new(Recency::new(&state, &root)))
    }

    /// What the blobs take.
    fn used(&self) -> u64 {
        let files = walkdir::WalkDir::new(self.root()).into_iter();
        let files = files.filter_map(|entry| entry.ok()?.metadata().ok());
        files.filter(|meta| meta.is_file()).map(|it| it.len()).sum()
    }

    fn ledger(&self) -> u64 {
        let bytes = std::fs::read(self.state().join("quota/ledger")).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Puts a blob into the cache as a download does: room first, then the file.
    fn download(&self, quota: &Quota, number: u64) {
        let content = vec![u8::try_from(number).unwrap(); usize::try_from(BLOB).unwrap()];
        let hex = Digest::of(&content).hex();
        let dir = self.root().join("blobs/sha256").join(&hex[..2]);
        let grown = quota.grow(BLOB, &mut || {
            std::fs::create_dir_all(&dir)?;
            between();
            std::fs::write(dir.join(&hex), &content)
        });
        grown.unwrap();
        let used = self.used();
        assert!(used <= MAX, "{used} bytes of {MAX}");
    }
}

#[test]
fn whatever_the_order_the_limit_holds_and_everybody_gets_room() {
    let proof = Proof::start(
        "the cache's limit holds at every moment, whoever fills it",
        "the quota's own code under a scheduler; processes reserve, evict and settle in one cache",
    );
    let schedules = proof.pick(2_000, 30_000);
    explore(proof, schedules, || {
        let machine = Arc::new(Machine::new());
        let processes: Vec<_> = (0..3)
            .map(|process| {
                let machine = Arc::clone(&machine);
                shuttle::thread::spawn(move || {
                    let quota = machine.process();
                    for number in 0..2 {
                        machine.download(&quota, 1 + process * 2 + number);
                    }
                    if process == 0 {
                        quota.settle();
                    }
                })
            })
            .collect();
        for process in processes {
            process.join().unwrap();
        }
        assert!(machine.used() <= MAX);
        assert!(
            machine.ledger() >= machine.used(),
            "the ledger says too little"
        );
        assert!(machine.ledger() <= MAX);
    });
}
