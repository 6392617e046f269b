//! Names and versions that were written down: nothing else exists, and nothing moves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Listing, Resolution, describe};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{BundleId, BundleRef, Namespace, Selector, Slug, Version, VersionRef};

/// What a lockfile allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locked {
    refs: HashMap<(BundleId, Selector), Version>,
    tables: BTreeMap<VersionRef, Digest>,
}

impl Locked {
    /// Adds a name, the version that it stands for, and the digest of that version's table. The
    /// version can be named exactly, too.
    ///
    /// # Errors
    ///
    /// The version or digest that is there already and contradicts.
    pub fn add(
        &mut self,
        reference: &BundleRef,
        version: Version,
        table: Digest,
    ) -> Result<(), String> {
        let bundle = reference.bundle.clone();
        let id = VersionRef {
            bundle: bundle.clone(),
            version: version.clone(),
        };
        match self.tables.get(&id) {
            Some(known) if *known != table => return Err(known.to_string()),
            _ => _ = self.tables.insert(id, table),
        }
        let key = (bundle, reference.selector.clone());
        match self.refs.insert(key, version.clone()) {
            Some(known) if known != version => Err(known.to_string()),
            _ => Ok(()),
        }
    }

    /// Whether the version is one of those that were locked.
    pub fn allows(&self, version: &VersionRef) -> bool {
        self.tables.contains_key(version)
    }

    /// The digest that the version's table must have.
    pub fn table(&self, version: &VersionRef) -> Option<Digest> {
        self.tables.get(version).copied()
    }

    /// What a name stands for; [`Error::NotFound`] for what was not locked.
    pub(super) fn resolve(&self, bundle: &BundleId, selector: &Selector) -> Result<Resolution> {
        let exact = match selector {
            Selector::Version(version) => Some(VersionRef {
                bundle: bundle.clone(),
                version: version.clone(),
            }),
            _ => None,
        };
        let found = match exact {
            Some(exact) => self.allows(&exact).then_some(exact.version),
            None => {
                let key = (bundle.clone(), selector.clone());
                self.refs.get(&key).cloned()
            }
        };
        match found {
            Some(version) => Ok(Resolution {
                version,
                remaining: Duration::MAX,
                document: None,
                // Nothing here moves: no answer is newer than another.
                order: 0,
            }),
            None => Err(Error::not_found(format_args!(
                "{} (it is not in the lockfile)",
                describe(bundle, selector)
            ))),
        }
    }

    pub(super) fn namespaces(&self) -> BTreeSet<Namespace> {
        let all = self.tables.keys();
        all.map(|id| id.bundle.namespace.clone()).collect()
    }

    pub(super) fn listing(&self, namespace: &Namespace) -> Listing {
        let mut listing = Listing {
            complete: true,
            ..Listing::default()
        };
        for id in self.tables.keys() {
            if id.bundle.namespace == *namespace {
                let versions = listing.bundles.entry(id.bundle.slug.clone());
                versions.or_default().push(id.version.clone());
            }
        }
        for versions in listing.bundles.values_mut() {
            versions.sort();
        }
        // A lockfile may have the versions without the bare name.
        let bundles = listing.bundles.keys().cloned();
        let is_unnamed = |slug: &Slug| {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            };
            !self.refs.contains_key(&(bundle, Selector::Latest))
        };
        listing.unnamed = bundles.filter(is_unnamed).collect();
        listing
    }
}
