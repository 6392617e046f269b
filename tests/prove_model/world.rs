//! The registry as it is, and as it was: a mount may give answers that were true a moment ago.

use std::collections::{BTreeMap, BTreeSet};

use musherfs::digest::Digest;
use musherfs::reference::VersionRef;

use crate::support::registry::TestRegistry;

/// Namespaces and bundles; all have a version from the start.
pub(crate) const BUNDLES: [(&str, &str); 3] = [("acme", "kit"), ("acme", "lab"), ("nord", "rev")];
pub(crate) const TAGS: [&str; 2] = ["stable", "beta"];

/// What is asked for in a version: files that some versions have, directories, and nothing.
pub(crate) const PATHS: [&str; 11] = [
    "README.md",
    "prompts/a.md",
    "prompts/b.md",
    "deep/er/c.txt",
    "d.json",
    "LICENSE",
    "empty",
    "large.txt",
    "prompts",
    "deep/er",
    "nothing.md",
];
/// How many of them are files.
const FILES: usize = 8;

/// When the registry changed: the number of the change.
pub(crate) type Time = u64;

/// A moving name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Link {
    Latest,
    Tag(usize),
    Range,
    NoRange,
}

pub(crate) const LINKS: [Link; 5] = [
    Link::Latest,
    Link::Tag(0),
    Link::Tag(1),
    Link::Range,
    Link::NoRange,
];

/// What a path is in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Vec<u8>),
    /// The names in it.
    Directory(BTreeSet<String>),
}

pub(crate) struct Version {
    reference: VersionRef,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// When it was published, yanked and unyanked; since each, whether it is yanked.
    states: Vec<(Time, bool)>,
}

impl Version {
    pub(crate) fn is_yanked(&self) -> bool {
        self.states.last().unwrap().1
    }

    /// Whether it was ever yanked.
    pub(crate) fn was_yanked(&self) -> bool {
        self.states.iter().any(|(_, yanked)| *yanked)
    }

    /// Whether it was listed at all times, and at some time, from `since` until now.
    pub(crate) fn was_listed(&self, since: Time) -> (bool, bool) {
        let published = self.states[0].0;
        let at_start = self.states.iter().rfind(|(at, _)| *at <= since);
        let later = self.states.iter().filter(|(at, _)| *at > since);
        let mut all = published <= since;
        let mut any = false;
        for (_, yanked) in at_start.into_iter().chain(later) {
            all &= !yanked;
            any |= !yanked;
        }
        (all, any)
    }

    /// What is at `path`; the version's root if it is empty.
    pub(crate) fn entry(&self, path: &str) -> Option<Entry> {
        if let Some(bytes) = self.files.get(path) {
            return Some(Entry::File(bytes.clone()));
        }
        let prefix = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let names: BTreeSet<String> = self
            .files
            .keys()
            .filter_map(|file| file.strip_prefix(&prefix))
            .map(|rest| rest.split('/').next().unwrap().to_owned())
            .collect();
        (!names.is_empty()).then_some(Entry::Directory(names))
    }

    /// The contents of all files.
    pub(crate) fn contents(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.files.values()
    }
}

#[derive(Default)]
pub(crate) struct Bundle {
    pub(crate) versions: Vec<Version>,
    tags: BTreeMap<usize, usize>,
    /// What the moving names stood for, since when.
    links: BTreeMap<Link, Vec<(Time, Option<usize>)>>,
}

impl Bundle {
    /// What a moving name stands for now.
    pub(crate) fn target(&self, link: Link) -> Option<usize> {
        let stands = |index: &usize| !self.versions[*index].is_yanked();
        match link {
            Link::Latest | Link::Range => (0..self.versions.len()).rev().find(stands),
            Link::Tag(tag) => self.tags.get(&tag).copied().filter(stands),
            Link::NoRange => None,
        }
    }

    /// What a moving name stood for from `since` until now.
    pub(crate) fn targets(&self, link: Link, since: Time) -> BTreeSet<Option<usize>> {
        let history = &self.links[&link];
        let start = history.iter().rposition(|(at, _)| *at <= since);
        let relevant = &history[start.unwrap_or(0)..];
        relevant.iter().map(|(_, target)| *target).collect()
    }

    /// The first time from `since` on at which a moving name stood for `target`.
    pub(crate) fn first(&self, link: Link, since: Time, target: usize) -> Time {
        let history = &self.links[&link];
        let start = history.iter().rposition(|(at, _)| *at <= since);
        let relevant = &history[start.unwrap_or(0)..];
        let found = relevant.iter().find(|(_, other)| *other == Some(target));
        found.map_or(since, |(at, _)| (*at).max(since))
    }
}

/// What is in the registry; it does what is said here at once.
pub(crate) struct World {
    pub(crate) bundles: Vec<Bundle>,
    pub(crate) now: Time,
}

/// The text of a file, in which every version of every bundle differs; but for the licence.
fn content(bundle: usize, version: usize, path: &str) -> Vec<u8> {
    let (namespace, slug) = BUNDLES[bundle];
    let line = format!("{namespace}/{slug}@1.{version}.0/{path}\n");
    match path {
        "LICENSE" => b"may be read by everybody\n".to_vec(),
        "empty" => Vec::new(),
        "large.txt" => line.repeat(12_000).into_bytes(),
        _ => line.repeat(1 + version % 3).into_bytes(),
    }
}

impl World {
    pub(crate) fn new(registry: &TestRegistry) -> Self {
        let mut world = Self {
            bundles: BUNDLES.iter().map(|_| Bundle::default()).collect(),
            now: 0,
        };
        for bundle in 0..BUNDLES.len() {
            world.publish(registry, bundle, 0xff);
        }
        world
    }

    /// The name of a version's directory.
    pub(crate) fn directory(bundle: usize, version: usize) -> String {
        format!("{}@1.{version}.0", BUNDLES[bundle].1)
    }

    pub(crate) fn version_of(directory: &str) -> Option<usize> {
        let (_, version) = directory.split_once("@1.")?;
        version.strip_suffix(".0")?.parse().ok()
    }

    pub(crate) fn publish(&mut self, registry: &TestRegistry, bundle: usize, files: u8) {
        let version = self.bundles[bundle].versions.len();
        let chosen = (0..FILES).filter(|bit| *bit == 0 || files & (1 << bit) != 0);
        let files: BTreeMap<&'static str, Vec<u8>> = chosen
            .map(|index| (PATHS[index], content(bundle, version, PATHS[index])))
            .collect();
        let listed: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(path, bytes)| (*path, bytes.as_slice()))
            .collect();
        let (namespace, slug) = BUNDLES[bundle];
        let number = format!("1.{version}.0");
        let reference = registry.publish(namespace, slug, &number, &listed);
        self.now += 1;
        self.bundles[bundle].versions.push(Version {
            reference,
            files,
            states: vec![(self.now, false)],
        });
        self.note(bundle);
    }

    /// The first version is never yanked, so that a bundle always has a newest one.
    pub(crate) fn set_yanked(
        &mut self,
        registry: &TestRegistry,
        bundle: usize,
        version: usize,
        yanked: bool,
    ) {
        let Some(known) = self.bundles[bundle].versions.get_mut(version) else {
            return;
        };
        if version == 0 || known.is_yanked() == yanked {
            return;
        }
        if yanked {
            registry.yank(&known.reference, "the model says so");
        } else {
            registry.unyank(&known.reference);
        }
        self.now += 1;
        known.states.push((self.now, yanked));
        self.note(bundle);
    }

    pub(crate) fn tag(
        &mut self,
        registry: &TestRegistry,
        bundle: usize,
        tag: usize,
        version: usize,
    ) {
        let bundle_of = &mut self.bundles[bundle];
        let Some(known) = bundle_of.versions.get(version) else {
            return;
        };
        registry.tag(&known.reference, TAGS[tag]);
        bundle_of.tags.insert(tag, version);
        self.now += 1;
        self.note(bundle);
    }

    /// Writes down where the moving names point now.
    fn note(&mut self, bundle: usize) {
        let bundle = &mut self.bundles[bundle];
        for link in LINKS {
            let target = bundle.target(link);
            let history = bundle.links.entry(link).or_default();
            if history.last().is_none_or(|(_, last)| *last != target) {
                history.push((self.now, target));
            }
        }
    }

    /// All versions that there are: bundle and number.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (usize, usize)> {
        let bundles = self.bundles.iter().enumerate();
        bundles
            .flat_map(|(bundle, it)| (0..it.versions.len()).map(move |version| (bundle, version)))
    }

    /// All contents that there are, for damaging what is cached of them.
    pub(crate) fn contents(&self) -> BTreeSet<Vec<u8>> {
        let versions = self.bundles.iter().flat_map(|bundle| &bundle.versions);
        versions
            .flat_map(Version::contents)
            .filter(|bytes| !bytes.is_empty())
            .cloned()
            .collect()
    }
}

/// A content's name in the cache.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}
