//! What a mount may answer.
//!
//! It may be behind the registry, within limits: a moving name that was answered once keeps its
//! target for five minutes and over restarts; a listing counts for a minute; what was absent is
//! absent for some seconds more. So for each of them is known since when an answer may stem from,
//! and the answers allowed are those that were true at some time since then, and no others. Whoever
//! has seen an answer will not be given an older one.
//!
//! What was read once is cached: from then on no fault of the registry may be seen in it. For the
//! rest, a fault has its error numbers, also for a while after it has ended (sources that fail are
//! left alone for a moment) unless the mount is made again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use musherfs::digest::Digest;

use crate::steps::{Fault, Name};
use crate::world::{BUNDLES, Link, Time, World, digest};

/// For so long something may be absent after it was: the resolver's memory, and then the kernel's.
const ABSENT: Duration = Duration::from_secs(11);

/// What is known of a moving name.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The answer may stem from then, at the earliest; `None`: the registry will be asked.
    since: Option<Time>,
    /// What may be fallen back to when it cannot be asked.
    stale_since: Time,
    /// It was answered, and is cached.
    answered: bool,
}

/// What a name may mean.
#[derive(Debug, Default, Clone)]
pub(crate) struct Meaning {
    /// The versions that it may lead to.
    pub(crate) versions: BTreeSet<usize>,
    /// Whether it may not be there.
    pub(crate) absent: bool,
    /// Errors that finding out may end with.
    pub(crate) errors: BTreeSet<i32>,
}

/// What a mount and its cache know.
#[derive(Default)]
pub(crate) struct Model {
    links: HashMap<(usize, Link), Known>,
    /// When a name was not there.
    absences: HashMap<(usize, Name), Instant>,
    /// Versions whose lists of files are cached.
    manifests: HashSet<(usize, usize)>,
    /// Versions whose lists of files may be cached.
    touched: BTreeSet<(usize, usize)>,
    /// Content that is cached.
    blobs: HashSet<Digest>,
    /// Content whose file was damaged since the daemon may have opened it: from that one it can be
    /// read although the cache does not have it any more.
    damaged: HashSet<Digest>,
    /// Content whose file was ever damaged.
    wrong: HashSet<Digest>,
    /// When the mount was made.
    session: Time,
    pub(crate) fault: Option<Fault>,
    /// What looking up and reading may fail with since the mount was made.
    lookup_errors: BTreeSet<i32>,
    read_errors: BTreeSet<i32>,
}

/// The errors of looking up and reading under a fault.
fn errors(fault: Fault) -> (&'static [i32], &'static [i32]) {
    const DOWN: &[i32] = &[libc::EHOSTUNREACH, libc::ETIMEDOUT];
    match fault {
        Fault::Down => (DOWN, DOWN),
        Fault::Missing => (&[libc::ENOENT], &[libc::EIO]),
        Fault::Refused => (&[libc::EACCES], &[libc::EACCES]),
        Fault::Garbage => (&[libc::EIO], &[libc::EIO]),
        Fault::WrongBytes => (&[], &[libc::EIO]),
    }
}

pub(crate) fn link_of(name: Name) -> Option<Link> {
    match name {
        Name::Bare | Name::Latest => Some(Link::Latest),
        Name::Tag(tag) => Some(Link::Tag(tag)),
        Name::Range => Some(Link::Range),
        Name::NoRange => Some(Link::NoRange),
        Name::Version(_) | Name::Nothing => None,
    }
}

/// One name a thing: the bare name is `@latest`.
fn key(bundle: usize, name: Name) -> (usize, Name) {
    match name {
        Name::Latest => (bundle, Name::Bare),
        name => (bundle, name),
    }
}

impl Model {
    /// From now on the registry does this.
    pub(crate) fn begin(&mut self, fault: Fault) {
        self.fault = Some(fault);
        let (lookup, read) = errors(fault);
        self.lookup_errors.extend(lookup);
        self.read_errors.extend(read);
    }

    /// The mount was made again.
    pub(crate) fn remounted(&mut self, world: &World, expired: bool) {
        self.session = world.now;
        self.absences.clear();
        self.damaged.clear();
        self.lookup_errors.clear();
        self.read_errors.clear();
        if let Some(fault) = self.fault {
            self.begin(fault);
        }
        for known in self.links.values_mut() {
            if expired {
                known.since = None;
            }
        }
    }

    /// The mount was made again, and nothing is cached any more.
    pub(crate) fn wiped(&mut self, world: &World) {
        self.links.clear();
        self.manifests.clear();
        self.touched.clear();
        self.blobs.clear();
        self.remounted(world, true);
    }

    /// A cached blob is not what it was.
    pub(crate) fn damaged(&mut self, digest: Digest) {
        self.blobs.remove(&digest);
        self.damaged.insert(digest);
        self.wrong.insert(digest);
    }

    /// What looking up may fail with since the mount was made.
    pub(crate) fn lookup_errors(&self) -> &BTreeSet<i32> {
        &self.lookup_errors
    }

    /// Whether there was a fault since the mount was made.
    pub(crate) fn is_disturbed(&self) -> bool {
        !self.lookup_errors.is_empty() || !self.read_errors.is_empty()
    }

    /// Whether the name is a link, and what it may lead to. Asking makes it known.
    pub(crate) fn meaning(&mut self, world: &World, bundle: usize, name: Name) -> Meaning {
        let mut meaning = Meaning::default();
        match (link_of(name), name) {
            (Some(link), _) => self.link(world, bundle, link, &mut meaning),
            (None, Name::Version(version)) if version < world.bundles[bundle].versions.len() => {
                meaning.versions.insert(version);
                meaning.errors = self.manifest_errors(bundle, version);
            }
            _ => {
                meaning.absent = true;
                meaning.errors.clone_from(&self.lookup_errors);
            }
        }
        meaning.absent |= self.was_absent(bundle, name);
        let versions = meaning.versions.iter();
        self.touched
            .extend(versions.map(|version| (bundle, *version)));
        meaning
    }

    /// Whether the name may be absent still, because it was not long ago. A version, too, that a
    /// moving name leads to: somebody may have looked for it before it was published.
    pub(crate) fn was_absent(&self, bundle: usize, name: Name) -> bool {
        let absence = self.absences.get(&key(bundle, name));
        absence.is_some_and(|at| at.elapsed() < ABSENT)
    }

    fn link(&mut self, world: &World, bundle: usize, link: Link, meaning: &mut Meaning) {
        let known = self.links.entry((bundle, link)).or_insert(Known {
            since: None,
            stale_since: world.now,
            answered: false,
        });
        let since = *known.since.get_or_insert(world.now);
        let known = *known;
        let mut targets = world.bundles[bundle].targets(link, since);
        if targets.contains(&None) || self.is_disturbed() {
            // What cannot be had anew stays as it was.
            let stale = world.bundles[bundle].targets(link, known.stale_since);
            targets.extend(stale.into_iter().filter(Option::is_some));
        }
        // An answer that is yanked meanwhile is none, whatever else is known.
        let mut answers = targets.iter().flatten();
        let is_lost = answers.any(|version| world.bundles[bundle].versions[*version].was_yanked());
        if !known.answered {
            meaning.errors.clone_from(&self.lookup_errors);
        }
        if (!known.answered || is_lost)
            && self.is_disturbed()
            && matches!(link, Link::Latest | Link::Range)
        {
            // The best that is cached.
            let cached = self.touched.iter().filter(|(of, _)| *of == bundle);
            targets.extend(cached.map(|(_, version)| Some(*version)));
        }
        meaning.absent |= targets.contains(&None);
        meaning.versions.extend(targets.into_iter().flatten());
    }

    /// Whether looking below a version may fail.
    pub(crate) fn manifest_errors(&self, bundle: usize, version: usize) -> BTreeSet<i32> {
        if self.manifests.contains(&(bundle, version)) {
            BTreeSet::new()
        } else {
            self.lookup_errors.clone()
        }
    }

    /// What reading this content may fail with.
    pub(crate) fn content_errors(&self, content: &[u8]) -> BTreeSet<i32> {
        let digest = digest(content);
        if content.is_empty() || self.blobs.contains(&digest) {
            return BTreeSet::new();
        }
        let mut errors = self.read_errors.clone();
        if self.is_disturbed() && self.wrong.contains(&digest) {
            // There is one, and it is wrong.
            errors.insert(libc::EIO);
        }
        errors
    }

    /// A moving name was seen to lead to this version.
    pub(crate) fn saw_target(&mut self, world: &World, bundle: usize, link: Link, version: usize) {
        // Otherwise it may have been the best that is cached.
        if self.is_disturbed() {
            return;
        }
        let Some(known) = self.links.get_mut(&(bundle, link)) else {
            return;
        };
        known.answered = true;
        let since = known.since.unwrap_or(world.now);
        let first = world.bundles[bundle].first(link, since, version);
        known.since = Some(first);
        known.stale_since = first;
    }

    /// A name was seen not to be there, which is true at the moment or was it not long ago.
    pub(crate) fn saw_absence(&mut self, world: &World, bundle: usize, name: Name) {
        let truly = match (link_of(name), name) {
            (Some(link), _) => world.bundles[bundle].target(link).is_none(),
            (None, Name::Version(version)) => version >= world.bundles[bundle].versions.len(),
            _ => true,
        };
        if truly || self.is_disturbed() {
            self.absences.insert(key(bundle, name), Instant::now());
        }
    }

    /// A version was looked into.
    pub(crate) fn saw_version(&mut self, bundle: usize, version: usize) {
        self.manifests.insert((bundle, version));
    }

    /// A file was read.
    pub(crate) fn saw_content(&mut self, content: &[u8]) {
        if !self.damaged.contains(&digest(content)) {
            self.blobs.insert(digest(content));
        }
    }

    /// The names that a namespace must list, and those that it may list.
    pub(crate) fn listing(
        &self,
        world: &World,
        namespace: &str,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut must, mut may) = (BTreeSet::new(), BTreeSet::new());
        for (index, (of, slug)) in BUNDLES.iter().enumerate() {
            if *of != namespace {
                continue;
            }
            may.insert((*slug).to_owned());
            if !self.is_disturbed() {
                must.insert((*slug).to_owned());
            }
            for (number, version) in world.bundles[index].versions.iter().enumerate() {
                let (all, any) = version.was_listed(self.session);
                let name = World::directory(index, number);
                // The state of what is cached is as old as the cache's entry.
                if any || self.touched.contains(&(index, number)) {
                    may.insert(name.clone());
                }
                if all && !self.is_disturbed() {
                    must.insert(name);
                }
            }
        }
        (must, may)
    }
}
