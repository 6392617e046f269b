//! Directories that change: the root and the namespaces.
//!
//! The kernel keeps their listings until it is told that they have changed, and their attributes for
//! a minute. A listing that differs from the one before gets a new modification time. A directory
//! that existed stays one: what is mounted below it would be detached otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::inode::{self, Name, Node, ROOT};
use super::tree::{Attr, Directory, FOREVER, Kind, Listed, epoch};
use super::{Answer, Fs, later, lock, not_a};
use crate::error::Result;
use crate::reference::{BundleId, Namespace, Selector, VersionRef};
use crate::resolve::{ABSENCE_TTL, LISTING_TTL, Listing};

/// What the kernel was told about a mutable directory.
pub(super) struct Told {
    names: Vec<Box<str>>,
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
                Some(names) => Answer::Now(Ok(self.root_entries(&names))),
                None => {
                    let (fs, deadline) = (Arc::clone(self), self.deadline());
                    later(async move {
                        let names = fs.resolver.root(deadline).await;
                        Ok(fs.root_entries(&names))
                    })
                }
            },
            Node::Name(name) => match &*name {
                Name::Namespace(namespace) => match self.resolver.list_now(namespace) {
                    Some(listing) => {
                        Answer::Now(Ok(self.namespace_entries(ino, namespace, &listing)))
                    }
                    None => {
                        let (fs, namespace, deadline) =
                            (Arc::clone(self), namespace.clone(), self.deadline());
                        later(async move {
                            let listing = fs.resolver.list(&namespace, deadline).await?;
                            Ok(fs.namespace_entries(ino, &namespace, &listing))
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

    fn root_entries(&self, names: &BTreeSet<Namespace>) -> Directory {
        let entries: Vec<Listed> = names
            .iter()
            .map(|namespace| {
                let ino = self.inodes.name(Name::Namespace(namespace.clone()));
                Listed {
                    name: namespace.as_str().into(),
                    ino,
                    kind: Kind::Directory,
                    attr: Some((self.directory_attr(ino), LISTING_TTL)),
                }
            })
            .collect();
        self.tell_directory(ROOT, &entries);
        Directory::mutable(ROOT, ROOT, entries)
    }

    fn namespace_entries(&self, ino: u64, namespace: &Namespace, listing: &Listing) -> Directory {
        let mut entries = Vec::new();
        for (slug, versions) in &listing.bundles {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            };
            // A lockfile may have the versions without the bare name.
            let bare = self.resolver.peek(&bundle, &Selector::Latest);
            if !matches!(bare, Some(Err(_))) {
                entries.push(self.link_line(&bundle));
            }
            for version in versions {
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version: version.clone(),
                };
                entries.push(self.version_line(&version));
            }
        }
        self.tell_directory(ino, &entries);
        Directory::mutable(ino, ROOT, entries)
    }

    /// The bare name's line; with attributes only where a lookup would be free.
    fn link_line(&self, bundle: &BundleId) -> Listed {
        let known = self.resolver.peek(bundle, &Selector::Latest);
        let attr = known.and_then(Result::ok).and_then(|resolution| {
            let (attr, settled) = self.point_link(bundle, &Selector::Latest, &resolution);
            let life = resolution.remaining.clamp(Duration::from_secs(1), FOREVER);
            settled.borrow().then_some((attr, life))
        });
        let ino = attr.map_or_else(
            || {
                self.inodes
                    .name(Name::Link(bundle.clone(), Selector::Latest))
            },
            |(attr, _)| attr.ino,
        );
        Listed {
            name: bundle.slug.as_str().into(),
            ino,
            kind: Kind::Symlink,
            attr,
        }
    }

    fn version_line(&self, version: &VersionRef) -> Listed {
        let loaded = self.store.in_memory(version);
        let attr = loaded.map(|loaded| {
            let life = loaded.remaining().clamp(ABSENCE_TTL, FOREVER);
            (Attr::directory(self.inodes.version(&loaded), epoch()), life)
        });
        let ino = match attr {
            Some((attr, _)) => attr.ino,
            None => self.inodes.expected_version(version),
        };
        Listed {
            name: format!("{}@{}", version.bundle.slug, version.version).into(),
            ino,
            kind: Kind::Directory,
            attr,
        }
    }

    /// Gives a listing that differs from the last one a new time and has the kernel drop the old.
    fn tell_directory(&self, ino: u64, entries: &[Listed]) {
        let names: Vec<Box<str>> = entries.iter().map(|entry| entry.name.clone()).collect();
        let changed = {
            let mut directories = lock(&self.directories);
            match directories.get_mut(&ino) {
                Some(told) if told.names == names => false,
                Some(told) => {
                    *told = Told {
                        names,
                        mtime: SystemTime::now(),
                    };
                    true
                }
                None => {
                    let told = Told {
                        names,
                        mtime: self.first_mtime(),
                    };
                    directories.insert(ino, told);
                    false
                }
            }
        };
        if changed {
            self.invalidate(ino, None);
        }
    }
}
