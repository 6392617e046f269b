//! Directories that change: the root and the namespaces.
//!
//! The kernel keeps their listings until it is told that they have changed, and their attributes for
//! a minute. A listing that differs from the one before gets a new modification time. A directory
//! that existed stays one: what is mounted below it would be detached otherwise.
//!
//! A namespace may have thousands of bundles, and is listed in pages. Its entries are made once for
//! each [`Listing`], not for each page; only what is known of an entry (where a link points, whether a
//! manifest is there) is looked up for each line, since that changes without the listing.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::inode::{self, Known, Name, Node, ROOT};
use super::tree::{self, Attr, Directory, Entries, FOREVER, Kind, Listed, epoch};
use super::{Answer, Fs, What, later, not_a, split_name};
use crate::reference::{BundleId, Namespace, Selector, VersionRef};
use crate::resolve::{ABSENCE_TTL, LISTING_TTL, Listing};
use crate::sync::lock;

/// What the kernel was told about a mutable directory.
pub(super) struct Told {
    /// What the entries were made of; held, so that no other source gets its address.
    source: Arc<dyn Any + Send + Sync>,
    entries: Entries,
    mtime: SystemTime,
}

impl Fs {
    /// The attributes of the root or a namespace, as of its last listing.
    pub(super) fn directory_attr(&self, ino: u64) -> Attr {
        let mtime = lock(&self.directories)
            .get(&ino)
            .map_or_else(|| self.first_mtime(), |told| told.mtime);
        Attr::directory(ino, mtime)
    }

    /// The attributes of the root or a namespace. Whoever has listed it finds out that it has
    /// changed; whoever has not costs no request.
    pub(super) fn getattr_directory(self: &Arc<Self>, ino: u64) -> Answer<(Attr, Duration)> {
        let attr = move |fs: &Self| (fs.directory_attr(ino), LISTING_TTL);
        if !lock(&self.directories).contains_key(&ino) {
            return Answer::Now(Ok(attr(self)));
        }
        match self.directory(ino) {
            Answer::Now(_) => Answer::Now(Ok(attr(self))),
            Answer::Later(listing) => {
                let fs = Arc::clone(self);
                later(async move {
                    // Listed or not, it is there.
                    let _ = listing.await;
                    Ok(attr(&fs))
                })
            }
        }
    }

    /// The directory `ino`, ready to be listed.
    pub fn directory(self: &Arc<Self>, ino: u64) -> Answer<Directory> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Answer::Now(Err(error)),
        };
        match node {
            Node::Root => match self.resolver.root_now() {
                Some(names) => Answer::Now(Ok(self.list_root(names))),
                None => {
                    let (fs, deadline) = (Arc::clone(self), self.deadline());
                    later(async move {
                        let names = fs.resolver.root(deadline).await;
                        Ok(fs.list_root(names))
                    })
                }
            },
            Node::Name(name) => match &*name {
                Name::Namespace(namespace) => match self.resolver.list_now(namespace) {
                    Some(listing) => Answer::Now(Ok(self.list_namespace(ino, namespace, listing))),
                    None => {
                        let (fs, namespace, deadline) =
                            (Arc::clone(self), namespace.clone(), self.deadline());
                        later(async move {
                            let listing = fs.resolver.list(&namespace, deadline).await?;
                            Ok(fs.list_namespace(ino, &namespace, listing))
                        })
                    }
                },
                Name::Link(..) => Answer::Now(Err(not_a("directory", ino))),
            },
            Node::Probe => Answer::Now(Err(not_a("directory", ino))),
            Node::Entry(tagged, index) => {
                let root = inode::version_root(ino);
                match self.known(root, &tagged) {
                    Some(loaded) => Answer::Now(Ok(Directory::InVersion(loaded, root, index))),
                    None => {
                        let (fs, deadline) = (Arc::clone(self), self.deadline());
                        later(async move {
                            let loaded = fs.wait_for(root, &tagged, deadline).await?;
                            Ok(Directory::InVersion(loaded, root, index))
                        })
                    }
                }
            }
        }
    }

    fn list_root(self: &Arc<Self>, names: Arc<BTreeSet<Namespace>>) -> Directory {
        let entries = self.entries(ROOT, &names, |names| {
            let line = |namespace: &Namespace| Listed {
                name: namespace.as_str().into(),
                ino: self.number(Name::Namespace(namespace.clone()), Known::Found),
                kind: Kind::Directory,
            };
            names.iter().map(line).collect()
        });
        let fs = Arc::clone(self);
        let attrs = move |entry: &Listed| {
            // The number may have been forgotten since the entries were made.
            let name = Name::Namespace(entry.name.parse().ok()?);
            let ino = fs.number(name, Known::Found);
            Some((fs.directory_attr(ino), LISTING_TTL))
        };
        Directory::Mutable(ROOT, entries, Box::new(attrs))
    }

    fn list_namespace(
        self: &Arc<Self>,
        ino: u64,
        namespace: &Namespace,
        listing: Arc<Listing>,
    ) -> Directory {
        let entries = self.entries(ino, &listing, |listing| {
            self.namespace_entries(namespace, listing)
        });
        let (fs, namespace) = (Arc::clone(self), namespace.clone());
        let attrs = move |entry: &Listed| fs.line_attr(&namespace, entry);
        Directory::Mutable(ino, entries, Box::new(attrs))
    }

    fn namespace_entries(&self, namespace: &Namespace, listing: &Listing) -> Vec<Listed> {
        let mut entries = Vec::new();
        for (slug, versions) in &listing.bundles {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            };
            if !listing.unnamed.contains(slug) {
                entries.push(Listed {
                    name: slug.as_str().into(),
                    ino: self.number(Name::Link(bundle.clone(), Selector::Latest), Known::Found),
                    kind: Kind::Symlink,
                });
            }
            for version in versions {
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version: version.clone(),
                };
                let loaded = self.store.in_memory(&version);
                entries.push(Listed {
                    name: format!("{slug}@{}", version.version).into(),
                    ino: match loaded {
                        Some(loaded) => self.inodes.version(&loaded),
                        None => self.inodes.expected_version(&version),
                    },
                    kind: Kind::Directory,
                });
            }
        }
        entries
    }

    /// What is known of an entry of a namespace; only where a lookup would be free.
    fn line_attr(&self, namespace: &Namespace, entry: &Listed) -> Option<(Attr, Duration)> {
        let (slug, selector) = split_name(&entry.name)?;
        let bundle = BundleId {
            namespace: namespace.clone(),
            slug,
        };
        match selector {
            Selector::Version(version) => {
                let loaded = self.store.in_memory(&VersionRef { bundle, version })?;
                let life = self.store.name_life(&loaded).clamp(ABSENCE_TTL, FOREVER);
                Some((Attr::directory(self.inodes.version(&loaded), epoch()), life))
            }
            selector => {
                let resolution = self.resolver.peek(&bundle, &selector)?.ok()?;
                let (attr, settled) = self.point_link(&bundle, &selector, &resolution);
                let life = resolution.remaining.clamp(Duration::from_secs(1), FOREVER);
                settled.borrow().then_some((attr, life))
            }
        }
    }

    /// The entries of a directory that are made of `source`. The same source makes the same entries:
    /// they are made once. Entries that differ from the last ones give the directory a new time, and
    /// have the kernel drop the old listing.
    fn entries<T: Send + Sync + 'static>(
        &self,
        ino: u64,
        source: &Arc<T>,
        make: impl FnOnce(&T) -> Vec<Listed>,
    ) -> Entries {
        if let Some(told) = lock(&self.directories).get(&ino)
            && ptr::addr_eq(Arc::as_ptr(&told.source), Arc::as_ptr(source))
        {
            return Arc::clone(&told.entries);
        }
        let entries = tree::sorted(make(source));
        let last = |directories: &HashMap<u64, Told>| {
            let told = directories.get(&ino);
            told.map(|told| (Arc::clone(&told.entries), told.mtime))
        };
        let mut before = last(&lock(&self.directories));
        let changed = loop {
            // There may be thousands: they are not compared under the lock.
            let changed = match &before {
                Some((before, _)) => names(before) != names(&entries),
                // The kernel may hold a listing that an earlier process gave it.
                None => self.has_inherited(),
            };
            let mut directories = lock(&self.directories);
            let now = last(&directories);
            let entries_of = |last: &Option<(Entries, _)>| last.as_ref().map(|(e, _)| e.as_ptr());
            if entries_of(&now) != entries_of(&before) {
                before = now;
                continue;
            }
            let mtime = match before {
                Some((_, mtime)) if !changed => mtime,
                Some(_) => SystemTime::now(),
                None => self.first_mtime(),
            };
            let told = Told {
                source: Arc::clone(source) as _,
                entries: Arc::clone(&entries),
                mtime,
            };
            directories.insert(ino, told);
            break changed;
        };
        if changed {
            self.invalidate(ino, What::Told, None);
        }
        entries
    }
}

/// The names alone: a pack that was packed again has another number, and is listed where it was.
fn names(entries: &[Listed]) -> BTreeSet<&str> {
    entries.iter().map(|entry| &*entry.name).collect()
}
