//! Whether a registry is at work on something large, or hangs.
//!
//! An archive is fetched whole before the first question about it is answered, in a task that goes
//! on when whoever asked has given up. So a question that is not answered in time says nothing about
//! a registry whose bytes keep coming, nor about one that waits for us to unpack them.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::source::Sink;
use crate::sync::lock;

/// How long a registry may send nothing and still count as at work.
const SILENCE: Duration = Duration::from_secs(2);

/// When the archives of one registry were last heard of.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When bytes came, or were unpacked.
    heard: Option<Instant>,
    /// How many are being unpacked.
    unpacking: usize,
}

impl Arrivals {
    /// Every assignment leaves a consistent state, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Whether it is us who are slow, or only the way.
    pub(super) fn go_on(&self) -> bool {
        let state = self.lock();
        let is_recent = |heard: Instant| heard.elapsed() < SILENCE;
        state.unpacking > 0 || state.heard.is_some_and(is_recent)
    }

    /// Collects an archive.
    pub(super) fn collect(&self) -> Arriving<'_> {
        Arriving {
            arrivals: self,
            bytes: Vec::new(),
        }
    }

    /// Nothing is expected of the registry as long as the answer is held.
    pub(super) fn unpack(&self) -> Unpacking<'_> {
        self.lock().unpacking += 1;
        Unpacking(self)
    }
}

/// An archive as it comes.
pub(super) struct Arriving<'a> {
    arrivals: &'a Arrivals,
    bytes: Vec<u8>,
}

impl Arriving<'_> {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Sink for Arriving<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.arrivals.lock().heard = Some(Instant::now());
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) {
        self.bytes.clear();
    }
}

/// An archive that is being unpacked.
pub(super) struct Unpacking<'a>(&'a Arrivals);

impl Drop for Unpacking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.unpacking -= 1;
        // From now on it is the registry's turn again.
        state.heard = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_at_work_while_bytes_come_and_while_they_are_unpacked() {
        let arrivals = Arrivals::default();
        let mut arriving = arrivals.collect();
        assert!(!arrivals.go_on(), "nothing ever came");
        arriving.write(b"x").unwrap();
        assert!(arrivals.go_on());
        tokio::time::advance(SILENCE).await;
        assert!(!arrivals.go_on(), "it hangs");
        let unpacking = arrivals.unpack();
        tokio::time::advance(SILENCE).await;
        assert!(arrivals.go_on());
        drop(unpacking);
        assert!(arrivals.go_on(), "the next archive has its time, too");
        tokio::time::advance(SILENCE).await;
        assert!(!arrivals.go_on());
    }
}
