//! Symlinks: moving names, and how the kernel learns that they have moved.
//!
//! The kernel keeps a symlink's body for ever. So when its target changes: the new target goes into
//! memory, the kernel is asked to drop the body, and only when it has (or does not answer) is the
//! lookup answered that found the change. Everybody else who looks the name up meanwhile waits too.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tracing::debug;

use super::inode::{Known, Name, Node};
use super::tree::{Attr, FOREVER, Kind};
use super::{Answer, Found, Fs, Moved, What, found_error, later, not_a};
use crate::error::{Error, Result};
use crate::reference::{BundleId, Selector, Version, VersionRef};
use crate::resolve::Resolution;
use crate::sync::lock;

/// How long an answer waits for the kernel to drop what it had cached.
const INVALIDATION: Duration = Duration::from_secs(2);

/// What the kernel was told about a symlink.
pub(super) struct Link {
    target: Version,
    /// Of two answers that name a target, the later one counts.
    order: u64,
    mtime: SystemTime,
    /// Becomes `true` when the kernel has dropped the previous body.
    settled: watch::Receiver<bool>,
}

impl Fs {
    pub(super) fn lookup_link(
        self: &Arc<Self>,
        bundle: BundleId,
        selector: Selector,
    ) -> Answer<Found> {
        match self.resolver.resolve_now(&bundle, &selector) {
            Some(Ok(resolution)) => self.answer_link(bundle, selector, &resolution),
            Some(Err(error)) => Answer::Now(found_error(error)),
            None => {
                let (fs, deadline) = (Arc::clone(self), self.deadline());
                later(async move {
                    let resolution = match fs.resolver.resolve(&bundle, &selector, deadline).await {
                        Ok(resolution) => resolution,
                        Err(error) => return found_error(error),
                    };
                    fs.learn(&bundle, &resolution).await;
                    match fs.answer_link(bundle, selector, &resolution) {
                        Answer::Now(answer) => answer,
                        Answer::Later(answer) => answer.await,
                    }
                })
            }
        }
    }

    /// A resolve answer usually carries the manifest: whoever follows the link needs it next.
    async fn learn(&self, bundle: &BundleId, resolution: &Resolution) {
        if let Some(answer) = &resolution.document {
            let version = VersionRef {
                bundle: bundle.clone(),
                version: resolution.version.clone(),
            };
            let (document, origin) = &**answer;
            self.store.learn(&version, document.clone(), origin).await;
        }
    }

    fn answer_link(
        self: &Arc<Self>,
        bundle: BundleId,
        selector: Selector,
        resolution: &Resolution,
    ) -> Answer<Found> {
        let life = resolution.remaining.clamp(Duration::from_secs(1), FOREVER);
        let (attr, mut settled) = self.point_link(&bundle, &selector, resolution);
        let found = Found::Node(attr, life, life);
        if *settled.borrow() {
            return Answer::Now(Ok(found));
        }
        later(async move {
            // If the kernel does not answer, the name is still right: only a body may be old.
            let _ = tokio::time::timeout(INVALIDATION, settled.wait_for(|done| *done)).await;
            Ok(found)
        })
    }

    /// Lets a symlink point where `resolution` says, unless a later answer has come first, and has
    /// the kernel drop the old body if there was one.
    pub(super) fn point_link(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        resolution: &Resolution,
    ) -> (Attr, watch::Receiver<bool>) {
        let name = Name::Link(bundle.clone(), selector.clone());
        let ino = self.number(name, Known::Found);
        self.found_in(&bundle.namespace);
        let version = &resolution.version;
        let mut announced = None;
        let (moved, (attr, settled)) = {
            let mut links = lock(&self.links);
            let mut moved = None;
            let link = links.entry(ino).or_insert_with(|| {
                announced = Some(None);
                // The kernel may hold a body that an earlier process gave it.
                let (done, settled) = watch::channel(!self.has_inherited());
                moved = (!*settled.borrow()).then_some(done);
                Link {
                    target: version.clone(),
                    order: resolution.order,
                    mtime: self.first_mtime(),
                    settled,
                }
            });
            let is_later = resolution.order >= link.order;
            link.order = link.order.max(resolution.order);
            if is_later && link.target != *version {
                let (done, settled) = watch::channel(false);
                announced = Some(Some(link.target.clone()));
                *link = Link {
                    target: version.clone(),
                    order: resolution.order,
                    mtime: SystemTime::now(),
                    settled,
                };
                moved = Some(done);
            }
            let attr = Attr {
                ino,
                kind: Kind::Symlink,
                size: target_name(bundle, &link.target).len() as u64,
                mtime: link.mtime,
            };
            (moved, (attr, link.settled.clone()))
        };
        if let Some(from) = announced {
            // An error means that nobody listens.
            let _ = self.moves.send(Moved {
                bundle: bundle.clone(),
                selector: selector.clone(),
                from,
                to: version.clone(),
            });
        }
        if let Some(moved) = moved {
            debug!(%bundle, %selector, %version, "the symlink moves");
            let (done, dropped) = oneshot::channel();
            self.invalidate(ino, What::Told, Some(done));
            tokio::spawn(async move {
                // An error means that there is no kernel to wait for.
                let _ = dropped.await;
                let _ = moved.send(true);
            });
        }
        (attr, settled)
    }

    /// A ref has another target than before, as a source has just said.
    pub(super) fn ref_moved(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        resolution: &Resolution,
    ) {
        let name = Name::Link(bundle.clone(), selector.clone());
        let ino = self.inodes.expected_name(&name);
        // A link that the kernel has never seen has nothing to drop.
        if lock(&self.links).contains_key(&ino) {
            self.point_link(bundle, selector, resolution);
        }
    }

    /// What a symlink points at: a name in the same directory.
    pub fn readlink(self: &Arc<Self>, ino: u64) -> Answer<String> {
        let (bundle, selector) = match self.node(ino) {
            Ok(Node::Name(name)) => match &*name {
                Name::Link(bundle, selector) => (bundle.clone(), selector.clone()),
                Name::Namespace(_) => return Answer::Now(Err(not_a("symlink", ino))),
            },
            Ok(_) => return Answer::Now(Err(not_a("symlink", ino))),
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(target) = self.link_target(ino) {
            return Answer::Now(Ok(target_name(&bundle, &target)));
        }
        // A number from an earlier process.
        let (fs, deadline) = (Arc::clone(self), self.deadline());
        later(async move {
            let resolution = fs.resolver.resolve(&bundle, &selector, deadline).await?;
            fs.point_link(&bundle, &selector, &resolution);
            // A later answer may have moved it meanwhile.
            let target = fs.link_target(ino).unwrap_or(resolution.version);
            Ok(target_name(&bundle, &target))
        })
    }

    /// The version that a symlink points at, if the kernel has been told.
    pub fn link_target(&self, ino: u64) -> Option<Version> {
        lock(&self.links).get(&ino).map(|link| link.target.clone())
    }
}

pub(super) fn link_attr(found: Found) -> Result<(Attr, Duration)> {
    match found {
        Found::Node(attr, _, life) => Ok((attr, life)),
        Found::Absent(_) => Err(Error::not_found("the symlink")),
    }
}

/// The name of a version's directory within its namespace.
fn target_name(bundle: &BundleId, version: &Version) -> String {
    format!("{}@{version}", bundle.slug)
}
