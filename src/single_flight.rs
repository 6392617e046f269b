//! One computation per key, however many callers want its result.
//!
//! The first caller for a key starts the computation in a task of its own; everyone who asks while
//! it runs waits for the same result. So a caller that gives up (its deadline ended, its future was
//! dropped) cancels nobody else, and a panic in the computation is an answer ([`Lost`]), not a hang.
//! Nothing is remembered: once a result is out, the next call computes anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock, spawn, watch};

/// The computation ended without a result: it panicked, or the runtime is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shared computation was lost")]
pub struct Lost;

/// Collapses equal, concurrent computations into one.
pub struct SingleFlight<K, V> {
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    joined: AtomicU64,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            flights: Arc::default(),
            joined: AtomicU64::new(0),
        }
    }
}

/// Removes a finished flight, also when the computation unwinds.
struct Landing<K: Eq + Hash, V> {
    key: K,
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.key);
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Returns the result of `compute`, which runs at most once at a time for `key`.
    ///
    /// Must be called within a tokio runtime. Dropping the returned future does not stop a
    /// computation that has started.
    ///
    /// # Errors
    ///
    /// [`Lost`] if the computation panicked.
    pub async fn run<F>(&self, key: K, compute: impl FnOnce() -> F) -> Result<V, Lost>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut result, start) = match lock(&self.flights).entry(key.clone()) {
            Entry::Occupied(flight) => (flight.get().clone(), None),
            Entry::Vacant(place) => {
                let (send, receive) = watch::channel(None);
                (place.insert(receive).clone(), Some(send))
            }
        };
        if let Some(send) = start {
            let landing = Landing {
                key,
                flights: Arc::clone(&self.flights),
            };
            let work = compute();
            spawn(async move {
                // The flight leaves the map before its result is out, so that a caller who has
                // seen the result starts a new one.
                let value = {
                    let _landing = landing;
                    work.await
                };
                let _ = send.send(Some(value));
            });
        } else {
            self.joined.fetch_add(1, Ordering::Relaxed);
        }
        let value = result.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        value.clone().ok_or(Lost)
    }

    /// Whether a computation for `key` is running.
    pub fn is_running(&self, key: &K) -> bool {
        lock(&self.flights).contains_key(key)
    }

    /// How many callers so far waited for somebody else's computation.
    pub fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }
}
