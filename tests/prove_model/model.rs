//! What a mount may answer.
//!
//! It may be behind the registry, within limits: a moving name that was answered once keeps its
//! target for five minutes and over restarts; a listing counts for a minute; what was absent is
//! absent for some seconds more. So for each of them is known since when an answer may stem from,
//! and the answers allowed are those that were true at some time since then, and no others. Whoever
//! has seen an answer will not be given an older one.
//!
//! What was read once is cached: from then on no fault of the registry may be seen in it. For the
//! rest, a fault has its error numbers, until it has ended and somebody was answered (sources that
//! fail are left alone for a moment), or the mount is made again. From then on there are no errors;
//! only a download that failed is not tried again for two seconds, and an old answer that was given
//! for want of a new one is good for some more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use musherfs::digest::Digest;
use musherfs::store::content::FAILURE_MEMORY;

use crate::steps::{Fault, Name};
use crate::world::{BUNDLES, Link, Time, World, digest};

/// For so long something may be absent after it was: the resolver's memory, and then the kernel's.
const ABSENT: Duration = Duration::from_secs(11);

/// For so long an old answer may be given after a new one was asked for in vain: the same, after what
/// the question may have taken.
const OLD: Duration = Duration::from_secs(17);

/// For so long a download may not be tried again, on a machine that is busy.
const UNTRIED: Duration = FAILURE_MEMORY.saturating_add(Duration::from_secs(2));

/// What is known of a moving name.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The answer may stem from then, at the earliest; `None`: the registry will be asked.
    since: Option<Time>,
    /// What may be fallen back to when it cannot be asked.
    stale_since: Time,
    /// It was answered, and is cached.
    answered: bool,
    /// Its file was damaged since the daemon may have read it: that one can answer although the cache
    /// does not have it any more.
    damaged: bool,
    /// When it was last asked for while nobody may have answered.
    doubted: Option<Instant>,
}

impl Known {
    /// Whether an answer may be another than the registry's.
    fn is_in_doubt(&self) -> bool {
        self.doubted.is_some_and(|at| at.elapsed() < OLD)
    }
}

/// What a damaged file was about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About {
    Content(Digest),
    /// The list of a version's files.
    Version(usize, usize),
    Link(usize, Link),
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
    /// Versions whose lists of files were damaged, as with content.
    damaged_manifests: HashSet<(usize, usize)>,
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
    /// What looking up and reading may fail with: since the first fault that the source has not
    /// recovered from.
    lookup_errors: BTreeSet<i32>,
    read_errors: BTreeSet<i32>,
    /// When it last recovered, and what reading could fail with until then.
    recovered: Option<(Instant, BTreeSet<i32>)>,
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
        Fault::Delay => (&[], &[]),
        // Whoever waits runs out of time, and the others are told that nobody answers.
        Fault::Stall | Fault::Trickle | Fault::Truncate => (DOWN, DOWN),
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

    /// The fault is over, and the source has answered.
    pub(crate) fn recovered(&mut self) {
        self.lookup_errors.clear();
        let errors = std::mem::take(&mut self.read_errors);
        self.recovered = Some((Instant::now(), errors));
    }

    /// Whether reading can fail with this only because it did before the source recovered.
    pub(crate) fn is_remembered(&self, errno: i32) -> bool {
        let before = self.recovered.as_ref();
        !self.read_errors.contains(&errno)
            && before.is_some_and(|(at, errors)| at.elapsed() < UNTRIED && errors.contains(&errno))
    }

    /// The mount was made again.
    pub(crate) fn remounted(&mut self, world: &World, expired: bool) {
        self.session = world.now;
        self.absences.clear();
        self.damaged.clear();
        self.damaged_manifests.clear();
        self.lookup_errors.clear();
        self.read_errors.clear();
        self.recovered = None;
        if let Some(fault) = self.fault {
            self.begin(fault);
        }
        for known in self.links.values_mut() {
            known.damaged = false;
            known.doubted = None;
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

    /// A file of the cache is not what it was.
    pub(crate) fn damaged(&mut self, about: About) {
        match about {
            About::Content(digest) => {
                self.blobs.remove(&digest);
                self.damaged.insert(digest);
                self.wrong.insert(digest);
            }
            About::Version(bundle, version) => {
                self.manifests.remove(&(bundle, version));
                self.damaged_manifests.insert((bundle, version));
            }
            About::Link(bundle, link) => {
                if let Some(known) = self.links.get_mut(&(bundle, link)) {
                    known.answered = false;
                    known.damaged = true;
                    // It may lie about its age.
                    known.since = Some(known.stale_since);
                }
            }
        }
    }

    /// What looking up may fail with.
    pub(crate) fn lookup_errors(&self) -> &BTreeSet<i32> {
        &self.lookup_errors
    }

    /// Whether there is a fault that can be noticed, or was a moment ago.
    pub(crate) fn is_disturbed(&self) -> bool {
        let was = self
            .recovered
            .as_ref()
            .is_some_and(|(at, _)| at.elapsed() < OLD);
        was || !self.lookup_errors.is_empty() || !self.read_errors.is_empty()
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
            damaged: false,
            doubted: None,
        });
        if !self.lookup_errors.is_empty() {
            known.doubted = Some(Instant::now());
        }
        let since = *known.since.get_or_insert(world.now);
        let known = *known;
        let mut targets = world.bundles[bundle].targets(link, since);
        if targets.contains(&None) || known.is_in_doubt() {
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
            && known.is_in_doubt()
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
            let mut errors = self.lookup_errors.clone();
            // To whoever holds the version's directory it is there, whatever the registry says.
            if errors.contains(&libc::ENOENT) {
                errors.insert(libc::EIO);
            }
            errors
        }
    }

    /// What reading this content may fail with.
    pub(crate) fn content_errors(&self, content: &[u8]) -> BTreeSet<i32> {
        let digest = digest(content);
        if content.is_empty() || self.blobs.contains(&digest) {
            return BTreeSet::new();
        }
        let mut errors = self.read_errors.clone();
        if !errors.is_empty() && self.wrong.contains(&digest) {
            // There is one, and it is wrong.
            errors.insert(libc::EIO);
        }
        errors
    }

    /// A moving name was seen to lead to this version.
    pub(crate) fn saw_target(&mut self, world: &World, bundle: usize, link: Link, version: usize) {
        let Some(known) = self.links.get_mut(&(bundle, link)) else {
            return;
        };
        // It may have been the best that is cached.
        if known.is_in_doubt() {
            return;
        }
        known.answered = !known.damaged;
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
        if !self.damaged_manifests.contains(&(bundle, version)) {
            self.manifests.insert((bundle, version));
        }
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
