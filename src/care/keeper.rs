//! What a mount does for its cache while it runs.
//!
//! It tells others what it serves, notes what is read, keeps the limit, and keeps what is pinned
//! loaded: the only thing for which a mount contacts a registry before anybody reads. A command that only writes to the cache keeps the limit, too: its own, or that of a
//! running mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::lease::{self, Lease};
use super::pins::Pins;
use super::quota::Quota;
use super::recency::Recency;
use crate::client::Client;
use crate::digest::Digest;
use crate::reference::{HostId, VersionRef};
use crate::store::Observer;

/// How often readings are written down, and blobs closed that lost their name.
const OFTEN: Duration = Duration::from_secs(2);

/// How often stock is taken of a limited cache.
const STOCK: Duration = Duration::from_secs(30);

/// How often pins are looked at; each look is a few stats.
const PINS: Duration = Duration::from_secs(5 * 60);

/// Has the client keep the cache below `limit`, or below that of a running mount.
///
/// Returns the limit's keeper, if there is a limit. To be called before the client is used.
pub fn limit_growth(client: &Client, state: &Path, limit: Option<u64>) -> Option<Arc<Quota>> {
    let root = client.store.cache().root();
    let recency = Arc::new(Recency::new(state, root));
    limit_with(client, state, limit, recency, Quota::patient)
}

fn limit_with(
    client: &Client,
    state: &Path,
    limit: Option<u64>,
    recency: Arc<Recency>,
    patience: impl FnOnce(Quota) -> Quota,
) -> Option<Arc<Quota>> {
    let cache = client.store.cache();
    let others = || {
        let running = lease::running(state, cache.root());
        running.iter().filter_map(|lease| lease.max_size).min()
    };
    let max = limit.or_else(others)?;
    let quota = Arc::new(patience(Quota::new(state, cache.root(), max, recency)));
    let store = Arc::downgrade(&client.store);
    quota.on_evict(Box::new(move |digests| {
        if let Some(store) = store.upgrade() {
            store.close_blobs(digests);
        }
    }));
    cache.set_gate(Arc::clone(&quota) as Arc<dyn crate::cache::Gate>);
    Some(quota)
}

/// Looks after the cache of a mount.
pub struct Keeper {
    client: Client,
    pins: Pins,
    quota: Option<Arc<Quota>>,
    recency: Arc<Recency>,
    state: PathBuf,
}

/// What the store tells of.
struct Noted {
    lease: Option<Lease>,
    recency: Arc<Recency>,
}

impl Observer for Noted {
    fn version_used(&self, host: &HostId, version: &VersionRef) {
        if let Some(lease) = &self.lease {
            lease.add(host, version);
        }
    }

    fn blob_read(&self, digest: Digest) {
        self.recency.note(digest);
    }
}

impl Keeper {
    /// Starts to look after the cache of a client that has not been used yet.
    pub fn new(client: &Client, state: &Path, limit: Option<u64>) -> Self {
        let root = client.store.cache().root();
        let recency = Arc::new(Recency::new(state, root));
        let lease = Lease::take(state, root, limit)
            .inspect_err(|error| {
                warn!(%error, "no lease: `musherfs cache clean` may remove what this mount needs");
            })
            .ok();
        let quota = limit_with(client, state, limit, Arc::clone(&recency), |quota| quota);
        client.store.observe(Arc::new(Noted {
            lease,
            recency: Arc::clone(&recency),
        }));
        Self {
            client: client.clone(),
            pins: Pins::new(state),
            quota,
            recency,
            state: state.to_owned(),
        }
    }

    /// Works until the future is dropped.
    pub async fn run(self) {
        let keeper = Arc::new(self);
        let mut ticks = tokio::time::interval(OFTEN);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let pins = tokio::spawn(Arc::clone(&keeper).keep_pins());
        let _guard = AbortOnDrop(pins);
        let mut since_stock = STOCK;
        loop {
            ticks.tick().await;
            let takes_stock = since_stock >= STOCK;
            since_stock = if takes_stock {
                OFTEN
            } else {
                since_stock + OFTEN
            };
            let keeper = Arc::clone(&keeper);
            let work = tokio::task::spawn_blocking(move || keeper.work(takes_stock));
            let _ = work.await;
        }
    }

    fn work(&self, takes_stock: bool) {
        if let Err(error) = self.recency.flush() {
            debug!(state = %self.state.display(), %error, "readings are not written down");
        }
        if let Some(quota) = &self.quota {
            if takes_stock {
                quota.settle();
            }
            // Another process evicts, too, and what it removed takes its room while it is open.
            self.client.store.close_nameless();
        }
    }

    async fn keep_pins(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PINS);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.has_due_pins() {
                continue;
            }
            match self.pins.refresh(&self.client, false, &()).await {
                Ok((done, failed)) => {
                    if done > 0 {
                        info!(pins = done, "pins confirmed");
                    }
                    for (reference, error) in failed {
                        debug!(%reference, %error, "a pin could not be confirmed");
                    }
                }
                Err(error) => warn!(%error, "the pins cannot be kept"),
            }
        }
    }

    fn has_due_pins(&self) -> bool {
        let (cache, now) = (self.client.store.cache(), Timestamp::now());
        !self.client.sources.is_empty()
            && self.pins.list().is_ok_and(|pins| {
                pins.iter()
                    .any(|pin| pin.registry == *self.client.store.host() && pin.is_due(cache, now))
            })
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
