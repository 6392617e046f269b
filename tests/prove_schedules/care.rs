//! The quota: `src/care/quota.rs`, in every order of processes that fill one cache.

#[path = "../../src/care/quota.rs"]
#[allow(dead_code, unreachable_pub)]
mod quota;

// What it imports from its parent.
use musherfs::care::{pins, recency};

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::json;

use crate::cache::Gate as _;
use crate::digest::Digest;
use crate::explore;
use crate::prove::Proof;
use crate::sync::{advance, between, given_up};
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

/// All that is ever downloaded: content, and name in hexadecimal digits.
static BLOBS: LazyLock<[(Vec<u8>, String); 9]> = LazyLock::new(|| {
    std::array::from_fn(|number| {
        let content = vec![u8::try_from(number).unwrap(); usize::try_from(BLOB).unwrap()];
        let hex = Digest::of(&content).hex();
        (content, hex)
    })
});

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

    fn blob(&self, hex: &str) -> PathBuf {
        let blobs = self.root().join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    /// What the blobs take.
    fn used(&self) -> u64 {
        let sizes = BLOBS
            .iter()
            .filter_map(|(_, hex)| self.blob(hex).metadata().ok());
        sizes.map(|it| it.len()).sum()
    }

    fn ledger(&self) -> u64 {
        let bytes = std::fs::read(self.state().join("quota/ledger")).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Puts a blob into the cache as a download does: room first, then the file. Or does not keep it,
    /// where others have the ledger for too long.
    fn download(&self, quota: &Quota, number: usize) -> bool {
        let (content, hex) = &BLOBS[number];
        let blob = self.blob(hex);
        let mut is_kept = false;
        let grown = quota.grow(BLOB, &mut || {
            is_kept = true;
            std::fs::create_dir_all(blob.parent().unwrap())?;
            between();
            std::fs::write(&blob, content)
        });
        let used = self.used();
        assert!(used <= MAX, "{used} bytes of {MAX}");
        match grown {
            Ok(()) => assert!(is_kept),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
                assert!(!is_kept, "it was kept without room");
            }
        }
        is_kept
    }
}

#[test]
fn whatever_the_order_the_limit_holds_and_everybody_gets_room() {
    let proof = Proof::start(
        "the cache's limit holds at every moment, whoever fills it, and nobody waits for long",
        "the quota's own code under a scheduler; processes reserve, evict and settle in one cache, \
         and some wait no longer",
    );
    let schedules = proof.pick(10_000, 50_000);
    explore(&proof, schedules, || {
        let machine = Arc::new(Machine::new());
        let processes = [0, 1, 2].map(|process| {
            let machine = Arc::clone(&machine);
            shuttle::thread::spawn(move || {
                let quota = Arc::new(machine.process());
                let settling = (process == 0).then(|| {
                    let quota = Arc::clone(&quota);
                    shuttle::thread::spawn(move || quota.settle())
                });
                for number in 0..2 {
                    machine.download(&quota, process * 2 + number);
                }
                if let Some(settling) = settling {
                    settling.join().unwrap();
                }
                quota
            })
        });
        // Who has given up waits for nobody until then.
        advance(Duration::from_secs(3600));
        let quotas = processes.map(|process| process.join().unwrap());
        // Also whoever gave up gets room when nobody else has the ledger.
        for (quota, number) in quotas.iter().zip(6..) {
            assert!(machine.download(quota, number), "there is room");
        }
        assert!(machine.used() <= MAX);
        assert!(
            machine.ledger() >= machine.used(),
            "the ledger says too little"
        );
        assert!(machine.ledger() <= MAX);
    });
    assert!(given_up() > 0, "everybody always got the ledger");
    proof.held(json!({"schedules": schedules, "ledgers not had in time": given_up()}));
}
