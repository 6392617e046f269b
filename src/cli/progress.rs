//! Progress bars: on a terminal, on stderr, and gone when the work is done.

use indicatif::{ProgressBar, ProgressStyle};

use crate::care::load::Progress;

/// One bar. Off a terminal it does nothing.
pub(super) struct Bar {
    bytes: ProgressBar,
    files: std::sync::atomic::AtomicU64,
    done: std::sync::atomic::AtomicU64,
    by_bytes: bool,
}

impl Bar {
    fn new(what: &'static str, template: &str, by_bytes: bool) -> Self {
        // indicatif draws to stderr, and only if that is a terminal.
        let bar = ProgressBar::new(0).with_prefix(what);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bytes: bar,
            files: Default::default(),
            done: Default::default(),
            by_bytes,
        }
    }

    /// Counts bytes.
    pub(super) fn bytes(what: &'static str) -> Self {
        let template =
            "{prefix} [{bar:25}] {bytes}/{total_bytes} {msg} {bytes_per_sec}, {eta} left";
        Self::new(what, template, true)
    }

    /// Counts files.
    pub(super) fn files(what: &'static str) -> Self {
        Self::new(what, "{prefix} [{bar:25}] {pos}/{len}", false)
    }

    pub(super) fn expect(&self, more: u64) {
        self.bytes.inc_length(more);
    }

    pub(super) fn advance(&self, by: u64) {
        self.bytes.inc(by);
    }

    pub(super) fn clear(&self) {
        self.bytes.finish_and_clear();
    }
}

impl Progress for Bar {
    fn expect(&self, files: u64, bytes: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        self.files.fetch_add(files, Relaxed);
        self.bytes
            .inc_length(if self.by_bytes { bytes } else { files });
    }

    fn done(&self, bytes: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        let done = self.done.fetch_add(1, Relaxed) + 1;
        if self.by_bytes {
            let files = self.files.load(Relaxed);
            self.bytes.set_message(format!("{done}/{files} files"));
        }
        self.bytes.inc(if self.by_bytes { bytes } else { 1 });
    }
}
