//! Which files somebody is about to read, so that the kernel can have them before it asks.
//!
//! A READ costs a round trip, most of which is spent waking two processes up, and who searches or
//! copies a tree reads small files one after the other, each with a READ of its own. So a reader who
//! has read [`SIGN`] files in the table's order gets the next ones unasked. They are read and verified
//! like the one that was asked for, while its reader waits: that takes a tenth of what their READs
//! would. A window is twice the last one, so that what nobody wants is about as much as was read; and
//! it ends after [`MOST_TIME`], so that nobody waits long for what somebody else may want.
//!
//! ```text
//!  READ  READ  READ │ window │ READ │ window       │ READ │ window                    │ READ
//! ```
//!
//! The kernel takes only what it knows, so this is for readers who have listed their directories. Who
//! looks every file up by its name is seen by that: its READs are no sign.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::inode;
use crate::manifest::Entry;
use crate::metrics::{Counter, Metrics};
use crate::store::{Loaded, Store};
use crate::sync::lock;

/// After how many files in order the next ones are expected.
const SIGN: u32 = 3;

/// How far apart, in the table, two files may be that are read one after the other: directories lie
/// between them, and files that the reader does not want.
const REACH: u32 = 8;

/// How many entries of the table the first window has, and the largest.
const FIRST: u32 = 8;
const MOST: u32 = 128;

/// How long filling a window may take. One file may take longer, as its own READ may.
const MOST_TIME: Duration = Duration::from_millis(1);

/// Files over this size are left to the kernel, which reads ahead within a file.
pub const LARGE: u32 = 128 << 10;

/// How many readers are followed at a time; the one that has not been seen for the longest time makes
/// room.
const MOST_RUNS: usize = 16;

/// Takes content for the kernel's page cache.
pub trait PageCache: Send + Sync {
    /// Takes all of a file's content, at most [`LARGE`] bytes. Whether it has room for more; never
    /// waits. Whatever the kernel does not get has to be asked for.
    fn store(&self, ino: u64, content: &[u8]) -> bool;

    /// Has the kernel get what was taken.
    fn flush(&self);
}

/// A reader that goes through a version's table.
#[derive(Debug)]
struct Run {
    root: u64,
    /// The file that it asked for last.
    at: u32,
    /// How many files it has asked for.
    files: u32,
    /// Where its window ends: the first entry that was not in one.
    end: u32,
    /// How many entries its next window has.
    window: u32,
}

impl Run {
    fn continues_with(&self, root: u64, index: u32) -> bool {
        let reach = self.end.max(self.at).saturating_add(REACH);
        self.root == root && (self.at..=reach).contains(&index)
    }
}

/// The readers that are followed, the one seen last at the end.
#[derive(Debug, Default)]
struct Runs(Vec<Run>);

impl Runs {
    /// Notes that the file at `index` was asked for; the window to be filled, if there is one.
    fn asked(&mut self, root: u64, index: u32) -> Option<Range<u32>> {
        let mut runs = self.0.iter();
        let Some(known) = runs.rposition(|run| run.continues_with(root, index)) else {
            if self.0.len() == MOST_RUNS {
                self.0.remove(0);
            }
            self.0.push(Run {
                root,
                at: index,
                files: 1,
                end: index + 1,
                window: FIRST,
            });
            return None;
        };
        self.0[known..].rotate_left(1);
        let run = self.0.last_mut()?;
        if run.at == index {
            return None;
        }
        run.at = index;
        run.files = run.files.saturating_add(1);
        if run.files < SIGN || index < run.end {
            return None;
        }
        let start = index + 1;
        run.end = start + run.window;
        run.window = (run.window * 2).min(MOST);
        Some(start..run.end)
    }

    /// Notes that the window after the file at `index` ends at `end`, perhaps earlier than it should.
    fn ended(&mut self, root: u64, index: u32, end: u32) {
        let mut runs = self.0.iter_mut();
        if let Some(run) = runs.find(|run| run.root == root && run.at == index) {
            run.end = end;
        }
    }
}

/// Follows the readers of all versions.
#[derive(Default)]
pub(super) struct Follower {
    runs: Mutex<Runs>,
    /// The file that was looked up last.
    looked_up: AtomicU64,
    kernel: OnceLock<Box<dyn PageCache>>,
}

impl Follower {
    /// Where windows go; there are none before.
    pub(super) fn set_kernel(&self, kernel: Box<dyn PageCache>) {
        let _ = self.kernel.set(kernel);
    }

    /// The kernel learns of a file by its name.
    pub(super) fn looked_up(&self, ino: u64) {
        self.looked_up.store(ino, Ordering::Relaxed);
    }

    /// The kernel has asked for the beginning of a file, which was at hand. Gives it those that its
    /// reader will ask for next, as far as they are at hand, too.
    pub(super) fn asked(
        &self,
        store: &Arc<Store>,
        metrics: &Metrics,
        loaded: &Arc<Loaded>,
        root: u64,
        index: u32,
    ) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        if self.looked_up.load(Ordering::Relaxed) == inode::entry(root, index) {
            return;
        }
        let Some(window) = lock(&self.runs).asked(root, index) else {
            return;
        };
        let begin = Instant::now();
        let (mut content, mut stored, mut has_room) = (Vec::new(), 0, true);
        for next in window {
            let file = loaded.manifest.entry(next).filter(Entry::is_file);
            let size = file.and_then(|file| u32::try_from(file.size()).ok());
            if let Some(size) = size.filter(|size| (1..=LARGE).contains(size))
                && let Some(Ok(())) = store.read_now(loaded, next, 0, size, &mut content)
            {
                has_room = kernel.store(inode::entry(root, next), &content);
                stored += 1;
            }
            if !has_room || begin.elapsed() > MOST_TIME {
                lock(&self.runs).ended(root, index, next + 1);
                break;
            }
        }
        kernel.flush();
        metrics.add(Counter::PageAhead, stored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u64 = 7 << 17;
    const OTHER: u64 = 8 << 17;

    fn windows(runs: &mut Runs, files: impl IntoIterator<Item = u32>) -> Vec<(u32, Range<u32>)> {
        let asked = |file| Some((file, runs.asked(ROOT, file)?));
        files.into_iter().filter_map(asked).collect()
    }

    #[test]
    fn who_reads_on_gets_windows_that_double_up_to_the_largest() {
        let mut runs = Runs::default();
        assert_eq!(windows(&mut runs, [10, 11]), []);
        assert_eq!(windows(&mut runs, [12]), [(12, 13..21)]);
        // What it has is not asked for; if it is, it was not there in time.
        assert_eq!(windows(&mut runs, [13, 17, 20]), []);
        assert_eq!(windows(&mut runs, [21]), [(21, 22..38)]);
        let mut at = 38;
        for expected in [32, 64, 128, 128] {
            assert_eq!(windows(&mut runs, [at]), [(at, at + 1..at + 1 + expected)]);
            at += expected + 1;
        }
    }

    #[test]
    fn directories_and_files_that_are_left_out_do_not_end_it() {
        let mut runs = Runs::default();
        assert_eq!(windows(&mut runs, [10, 18, 26]), [(26, 27..35)]);
        assert_eq!(windows(&mut runs, [43]), [(43, 44..60)]);
        // Too far.
        assert_eq!(windows(&mut runs, [60 + REACH + 1]), []);
    }

    #[test]
    fn who_reads_here_and_there_or_the_same_again_gets_none() {
        let mut runs = Runs::default();
        assert_eq!(windows(&mut runs, (0..100).map(|n| n * 37 % 100 * 10)), []);
        assert_eq!(windows(&mut runs, (1..100).rev()), []);
        assert_eq!(windows(&mut Runs::default(), [5; 100]), []);
    }

    #[test]
    fn readers_of_one_version_and_of_others_do_not_disturb_each_other() {
        let mut runs = Runs::default();
        let together = [10, 1000, 11, 1001, 12, 1002];
        let windows = windows(&mut runs, together);
        assert_eq!(windows, [(12, 13..21), (1002, 1003..1011)]);
        for file in [21, 22] {
            assert_eq!(runs.asked(OTHER, file), None);
        }
        assert_eq!(runs.asked(OTHER, 23), Some(24..32));
        assert_eq!(runs.asked(ROOT, 21), Some(22..38));
    }

    #[test]
    fn whoever_has_not_been_seen_for_the_longest_time_makes_room() {
        let mut runs = Runs::default();
        assert_eq!(windows(&mut runs, [10, 11]), []);
        let others = (1..).take(MOST_RUNS - 1).map(|n| n * 1000);
        assert_eq!(windows(&mut runs, others.clone()), []);
        assert_eq!(windows(&mut runs, [12]), [(12, 13..21)]);
        assert_eq!(windows(&mut runs, others.chain([50_000])), []);
        assert_eq!(runs.0.len(), MOST_RUNS);
        assert_eq!(windows(&mut runs, [21]), []);
    }

    #[test]
    fn a_window_that_ended_early_goes_on_from_there() {
        let mut runs = Runs::default();
        assert_eq!(windows(&mut runs, [10, 11, 12]), [(12, 13..21)]);
        runs.ended(ROOT, 12, 15);
        assert_eq!(windows(&mut runs, [14]), []);
        assert_eq!(windows(&mut runs, [15]), [(15, 16..32)]);
        // Its reader has asked for another file meanwhile.
        assert_eq!(windows(&mut runs, [17]), []);
        runs.ended(ROOT, 15, 18);
        assert_eq!(windows(&mut runs, [18]), []);
    }
}
