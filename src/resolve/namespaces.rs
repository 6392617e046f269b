//! Which namespaces there are.
//!
//! A valid namespace name is a directory unless the registry says that there is no such namespace.
//! While nobody can be asked that is an assumption ([`Presence::Assumed`]), which is not listed and
//! does not last.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::listing::{LISTING_TTL, same_or_new};
use super::probe::is_probe;
use super::{ABSENCE_TTL, Resolver, Settings};
use crate::reference::{HostId, Namespace};
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Source};
use crate::sync::lock;

/// Whether a namespace exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It does: it is configured, cached, or a source said so.
    Known,
    /// It may: nobody could be asked.
    Assumed,
    /// It does not.
    Absent,
}

type NamespaceSet = Arc<BTreeSet<Namespace>>;

/// What the resolver remembers of namespaces.
#[derive(Default)]
pub(super) struct Namespaces {
    /// Those that are listed, and until when they count.
    root: Mutex<Option<(NamespaceSet, Instant)>>,
    flight: SingleFlight<(), NamespaceSet>,
    pub(super) absent: Mutex<HashMap<Namespace, Instant>>,
}

impl Resolver {
    /// Whether the namespace exists, as far as that is known without asking anybody.
    ///
    /// `None`: [`Resolver::namespace`] would ask.
    pub fn namespace_now(&self, namespace: &Namespace) -> Option<Presence> {
        if let Some(locked) = self.locked.get() {
            let known = locked.namespaces().contains(namespace);
            return Some(if known {
                Presence::Known
            } else {
                Presence::Absent
            });
        }
        let Settings { cache, host, .. } = &self.settings;
        let now = Instant::now();
        let (confirmed, assumed) = lock(&self.listed.namespaces)
            .get(namespace)
            .map_or((false, false), |listed| {
                (listed.confirmed, listed.expires > now)
            });
        let is_known = confirmed
            || self.settings.namespaces.contains(namespace)
            || lock(&self.namespaces.root)
                .as_ref()
                .is_some_and(|(root, _)| root.contains(namespace))
            || cache.holds(host, namespace)
            || self.settings.local_packs && cache.holds(&HostId::local(), namespace);
        if is_known {
            return Some(Presence::Known);
        }
        if assumed {
            return Some(Presence::Assumed);
        }
        let absent = lock(&self.namespaces.absent).get(namespace).copied();
        let is_absent = self.is_offline()
            || is_probe(namespace.as_str())
            || absent.is_some_and(|at| at.elapsed() < ABSENCE_TTL);
        is_absent.then_some(Presence::Absent)
    }

    /// Whether the namespace exists: it does unless the registry answers that it does not.
    pub async fn namespace(
        self: &Arc<Self>,
        namespace: &Namespace,
        deadline: Deadline,
    ) -> Presence {
        if let Some(known) = self.namespace_now(namespace) {
            return known;
        }
        let tells = |source: &Arc<dyn Source>| source.tells_namespaces();
        if !self.settings.sources.iter().any(tells) {
            return Presence::Assumed;
        }
        match self.ask_for_listing(namespace, false, deadline).await {
            Ok(listing) if listing.complete => Presence::Known,
            Err(error) if error.is_absence() => Presence::Absent,
            _ => Presence::Assumed,
        }
    }

    /// The namespaces that the root lists, if that is known and fresh.
    pub fn root_now(&self) -> Option<Arc<BTreeSet<Namespace>>> {
        if let Some((names, until)) = &*lock(&self.namespaces.root)
            && *until > Instant::now()
        {
            return Some(Arc::clone(names));
        }
        if let Some(locked) = self.locked.get() {
            return Some(self.remember_root(locked.namespaces(), LISTING_TTL));
        }
        self.is_offline()
            .then(|| self.remember_root(self.cached_namespaces(), ABSENCE_TTL))
    }

    fn remember_root(&self, names: BTreeSet<Namespace>, life: Duration) -> NamespaceSet {
        let mut root = lock(&self.namespaces.root);
        let names = same_or_new(root.as_ref().map(|(before, _)| before), names);
        *root = Some((Arc::clone(&names), Instant::now() + life));
        names
    }

    /// The namespaces that the root lists: configured, cached, confirmed in this session, and what
    /// the key's identity tells. Never an error: what cannot be asked is left as it was.
    pub async fn root(self: &Arc<Self>, deadline: Deadline) -> Arc<BTreeSet<Namespace>> {
        if let Some(root) = self.root_now() {
            return root;
        }
        let start = || {
            let resolver = Arc::clone(self);
            async move { resolver.root_from_sources().await }
        };
        let flight = async { Ok(self.namespaces.flight.run((), start).await) };
        match deadline.run("namespaces", flight).await {
            Ok(Ok(names)) => names,
            Ok(Err(lost)) => {
                warn!(%lost, "the list of namespaces was lost");
                Arc::new(self.cached_namespaces())
            }
            Err(_) => Arc::new(self.cached_namespaces()),
        }
    }

    async fn root_from_sources(&self) -> NamespaceSet {
        let deadline = Deadline::after(self.settings.timeout.mul_f64(0.9));
        let mut names = self.cached_namespaces();
        let mut life = LISTING_TTL;
        let sources = &self.settings.sources;
        for (asked, source) in sources.iter().enumerate() {
            let share = deadline.share(sources.len() - asked);
            match share.run("namespaces", source.namespaces(share)).await {
                Ok(more) => names.extend(more),
                Err(error) => {
                    debug!(source = source.name(), %error, "no namespaces");
                    if error.is_outage() {
                        life = ABSENCE_TTL;
                    }
                }
            }
        }
        if let Some((before, _)) = &*lock(&self.namespaces.root)
            && life != LISTING_TTL
        {
            names.extend(before.iter().cloned());
        }
        self.remember_root(names, life)
    }

    fn cached_namespaces(&self) -> BTreeSet<Namespace> {
        let Settings { cache, host, .. } = &self.settings;
        let mut names: BTreeSet<Namespace> = self.settings.namespaces.iter().cloned().collect();
        names.extend(cache.namespaces(host));
        if self.settings.local_packs {
            names.extend(cache.namespaces(&HostId::local()));
        }
        let listed = lock(&self.listed.namespaces);
        let confirmed = listed.iter().filter(|(_, listed)| listed.confirmed);
        names.extend(confirmed.map(|(namespace, _)| namespace.clone()));
        names
    }
}
