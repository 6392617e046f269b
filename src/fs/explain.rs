//! What a path in the tree is, or why there is no such path; without waiting for anybody.
//!
//! Everything is told from memory and the cache, so the answer is there also while the network
//! hangs. Asking changes nothing: no name is resolved, nothing is fetched, no number is given out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::failures::Failure;
use super::inode::{self, Name, Node};
use super::{Fs, PROBE_TEXT, split_name};
use crate::error::Error;
use crate::manifest::{Entry, State};
use crate::reference::{BundleId, Namespace, Selector, Version, VersionRef};
use crate::resolve::Presence;
use crate::store::Loaded;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The root of the mount.
    Root,
    /// A directory of bundles.
    Namespace,
    /// A name that moves: a bare name, a tag, a range, a digest.
    Link,
    /// The directory of a version.
    Version,
    /// A directory in a version.
    Directory,
    /// A file in a version.
    File,
    /// The file that is touched after mounting.
    Probe,
    /// Part of the version, but hidden because it cannot be a file.
    Refused,
    /// Certainly nothing.
    Absent,
    /// Nothing is known of it yet, or it could not be asked for.
    Unknown,
}

/// What is known of a path.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What it is.
    pub kind: Kind,
    /// The namespace that the path names.
    pub namespace: Option<Namespace>,
    /// The bundle that the path names.
    pub bundle: Option<BundleId>,
    /// The moving name in the path.
    pub selector: Option<Selector>,
    /// The version that the path leads to.
    pub version: Option<Version>,
    /// The rest of the path, within the version.
    pub entry: Option<String>,
    /// How much longer the moving name counts as fresh.
    pub fresh_for: Option<Duration>,
    /// Whether the version is published or yanked.
    pub state: Option<State>,
    /// Who told the version's list of files: a source, or `cache`.
    pub manifest_source: Option<Arc<str>>,
    /// The content's digest, in hexadecimal.
    pub sha256: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// What kind of asset the publisher says it is.
    pub asset_type: Option<String>,
    /// Whether the content is on this machine.
    pub cached: Option<bool>,
    /// Where the content came from: a source of this session, or `cache`.
    pub source: Option<Arc<str>>,
    /// When its bytes were last compared with the digest in this session.
    pub verified: Option<SystemTime>,
    /// Why there is nothing, or nothing is known.
    pub reason: Option<String>,
    /// What can be done about that.
    pub remedy: Option<String>,
    /// The last failure to read it or to look it up.
    pub failure: Option<Failure>,
}

impl Explanation {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            namespace: None,
            bundle: None,
            selector: None,
            version: None,
            entry: None,
            fresh_for: None,
            state: None,
            manifest_source: None,
            sha256: None,
            size: None,
            asset_type: None,
            cached: None,
            source: None,
            verified: None,
            reason: None,
            remedy: None,
            failure: None,
        }
    }

    fn because(mut self, reason: impl ToString, remedy: impl ToString) -> Self {
        self.reason = Some(reason.to_string());
        self.remedy = Some(remedy.to_string());
        self
    }

    /// A path that is not known, or not there for a reason that an earlier failure tells.
    fn or_failed(mut self, failure: Option<Failure>) -> Self {
        if failure.is_some() {
            self.kind = Kind::Unknown;
            self.reason = None;
            self.remedy = None;
            self.failure = failure;
        }
        self
    }
}

const GRAMMAR: &str = "a path is NAMESPACE/BUNDLE[@VERSION]/PATH, such as acme/code-review@1.2.0/README.md, \
     with names of letters, digits, hyphens";

/// How to get what is not cached; right in a mount that asks nobody as well as without a mount.
fn loading(what: &str) -> String {
    format!(
        "`musherfs load {what}` fetches it while the registry can be reached; \
         a mount without --offline fetches what is read"
    )
}

impl Fs {
    /// Tells what is known of `path`, which is relative to the root of the mount.
    ///
    /// May read the cache's disk; waits for nobody else.
    pub fn explain(&self, path: &str) -> Explanation {
        let mut parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
        let Some(first) = parts.next() else {
            let mut root = Explanation::new(Kind::Root);
            root.failure = self.failures.about(inode::ROOT);
            return root;
        };
        let second = parts.next();
        let rest: Vec<&str> = parts.collect();
        if first == ".musherfs" && second.is_none() {
            let mut probe = Explanation::new(Kind::Probe);
            probe.size = Some(PROBE_TEXT.len() as u64);
            return probe;
        }
        if first.starts_with('.') {
            return Explanation::new(Kind::Absent).because(
                "names that start with a dot are no namespaces, and nobody is asked for them",
                GRAMMAR,
            );
        }
        let namespace = match first.parse::<Namespace>() {
            Ok(namespace) => namespace,
            Err(invalid) => return Explanation::new(Kind::Absent).because(invalid, GRAMMAR),
        };
        let Some(second) = second else {
            return self.explain_namespace(namespace);
        };
        let mut explanation = self.explain_bundle(&namespace, second, &rest.join("/"));
        explanation.namespace = Some(namespace);
        explanation
    }

    fn explain_namespace(&self, namespace: Namespace) -> Explanation {
        let ino = self
            .inodes
            .expected_name(&Name::Namespace(namespace.clone()));
        let failure = self
            .failures
            .about_name(inode::ROOT, namespace.as_str())
            .or_else(|| self.failures.about(ino));
        let mut explanation = match self.resolver.namespace_now(&namespace) {
            Some(Presence::Known | Presence::Assumed) => {
                let mut known = Explanation::new(Kind::Namespace);
                known.failure = failure;
                self.or_refused(&namespace, known)
            }
            Some(Presence::Absent) if self.resolver.is_locked() => unlocked(&namespace),
            Some(Presence::Absent) if self.resolver.is_offline() => Explanation::new(Kind::Absent)
                .because(
                    "nothing of this namespace is cached, and nobody is asked",
                    loading(&format!("{namespace}/BUNDLE")),
                ),
            Some(Presence::Absent) => {
                let absent = Explanation::new(Kind::Absent).because(
                    "the registry has no such namespace, or it is a name that programs probe for",
                    "check the spelling; --namespace lists it even if the registry does not",
                );
                self.or_refused(&namespace, absent)
            }
            None => {
                let unknown = Explanation::new(Kind::Unknown)
                    .because(
                        "nobody has asked for it lately",
                        "it is asked for when it is first opened",
                    )
                    .or_failed(failure);
                self.or_refused(&namespace, unknown)
            }
        };
        explanation.namespace = Some(namespace);
        explanation
    }

    fn explain_bundle(&self, namespace: &Namespace, name: &str, rest: &str) -> Explanation {
        let Some((slug, selector)) = split_name(name) else {
            let reason = if name.starts_with('.') {
                "names that start with a dot are no bundles, and nobody is asked for them".into()
            } else {
                format!("`{name}` is not the name of a bundle, a version, a tag or a range")
            };
            return Explanation::new(Kind::Absent).because(reason, GRAMMAR);
        };
        let bundle = BundleId {
            namespace: namespace.clone(),
            slug,
        };
        let parent = self
            .inodes
            .expected_name(&Name::Namespace(namespace.clone()));
        let mut explanation = match selector {
            selector if matches!(self.resolver.locked_now(&bundle, &selector), Some(Err(_))) => {
                let mut explanation = unlocked(format!("{namespace}/{name}"));
                if let Selector::Version(version) = selector {
                    explanation.version = Some(version);
                } else {
                    explanation.selector = Some(selector);
                }
                explanation
            }
            Selector::Version(version) => {
                let failure = self.failures.about_name(parent, name);
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version,
                };
                self.explain_version(&version, rest, failure)
            }
            selector => {
                let mut explanation = self.explain_link(&bundle, &selector, parent, name, rest);
                explanation.selector = Some(selector);
                explanation
            }
        };
        explanation.bundle = Some(bundle);
        explanation
    }

    fn explain_link(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        parent: u64,
        name: &str,
        rest: &str,
    ) -> Explanation {
        let ino = self
            .inodes
            .expected_name(&Name::Link(bundle.clone(), selector.clone()));
        let failure = self
            .failures
            .about_name(parent, name)
            .or_else(|| self.failures.about(ino));
        let known = self
            .resolver
            .last_known(bundle, selector)
            .or_else(|| Some((self.link_target(ino)?, Duration::ZERO)));
        let Some((version, fresh_for)) = known else {
            let absent = self.explain_absent_link(bundle, selector, failure);
            return self.or_refused(&bundle.namespace, absent);
        };
        let mut explanation = if rest.is_empty() {
            Explanation::new(Kind::Link)
        } else {
            let target = format!("{}@{version}", bundle.slug);
            let version = VersionRef {
                bundle: bundle.clone(),
                version: version.clone(),
            };
            let failure = self.failures.about_name(parent, &target);
            self.explain_version(&version, rest, failure)
        };
        if explanation.failure.is_none() {
            explanation.failure = failure;
        }
        explanation.version = Some(version);
        explanation.fresh_for = Some(fresh_for);
        explanation
    }

    fn explain_absent_link(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        failure: Option<Failure>,
    ) -> Explanation {
        const REMEDY: &str = "check the spelling; a private bundle without a key looks absent too";
        if self.resolver.is_offline() {
            return Explanation::new(Kind::Absent).because(
                "no version of it is cached, and nobody is asked",
                loading(&bundle.to_string()),
            );
        }
        let listed = self.resolver.last_listing(&bundle.namespace);
        if listed.is_some_and(|list| list.complete && !list.bundles.contains_key(&bundle.slug)) {
            let reason = format!("the registry's list of {} lacks it", bundle.namespace);
            return Explanation::new(Kind::Absent)
                .because(reason, REMEDY)
                .or_failed(failure);
        }
        if self.resolver.is_absent(bundle, selector) {
            let reason = format!("the registry says that there is no {}", described(selector));
            return Explanation::new(Kind::Absent).because(reason, REMEDY);
        }
        Explanation::new(Kind::Unknown)
            .because(
                "nobody has asked for it lately, or the registry said a while ago that it is not there",
                "it is asked for when it is next opened; a private bundle without a key looks absent",
            )
            .or_failed(failure)
    }

    fn explain_version(
        &self,
        version: &VersionRef,
        rest: &str,
        failure: Option<Failure>,
    ) -> Explanation {
        let mut explanation = match self.store.held_on_disk(version) {
            Some(loaded) => self.explain_entry(&loaded, rest, failure),
            None => self.explain_absent_version(version, failure),
        };
        explanation.version = Some(version.version.clone());
        if !rest.is_empty() {
            explanation.entry = Some(rest.to_owned());
        }
        explanation
    }

    fn explain_absent_version(
        &self,
        version: &VersionRef,
        failure: Option<Failure>,
    ) -> Explanation {
        if self.resolver.is_offline() {
            return Explanation::new(Kind::Absent).because(
                "its list of files is not cached, and nobody is asked",
                loading(&version.to_string()),
            );
        }
        let bundle = &version.bundle;
        let listed = self.resolver.last_listing(&bundle.namespace);
        let versions = listed
            .as_ref()
            .and_then(|list| list.bundles.get(&bundle.slug));
        if let Some(versions) = versions
            && !versions.is_empty()
            && !versions.contains(&version.version)
        {
            let newest = versions.iter().max();
            let newest =
                newest.map_or_else(String::new, |newest| format!("; the newest is {newest}"));
            return Explanation::new(Kind::Absent)
                .because(
                    format!("the registry does not list this version{newest}"),
                    "name a listed version; `ls` in the namespace shows them",
                )
                .or_failed(failure);
        }
        let unknown = Explanation::new(Kind::Unknown)
            .because(
                "its list of files is not here: nobody has opened it lately, or the registry does not have it",
                "it is asked for when it is next opened; a private bundle without a key looks absent",
            )
            .or_failed(failure);
        self.or_refused(&bundle.namespace, unknown)
    }

    /// Says that the registry did not take the key, where that is why there is nothing, or may be: it
    /// goes on answering for what is public, so that whatever else it has looks absent.
    fn or_refused(&self, namespace: &Namespace, explanation: Explanation) -> Explanation {
        let may_be_why = match &explanation.failure {
            Some(failure) => matches!(failure.error, Error::Denied { .. }),
            None => matches!(explanation.kind, Kind::Absent | Kind::Unknown),
        };
        match self.resolver.refusal(namespace) {
            Some(refusal) if may_be_why => explanation.because(
                format!("{refusal}; without a key only public bundles are shown"),
                format!(
                    "mount again with a key that may read {namespace}; if it is public, check the spelling"
                ),
            ),
            _ => explanation,
        }
    }

    fn explain_entry(
        &self,
        loaded: &Arc<Loaded>,
        rest: &str,
        failure: Option<Failure>,
    ) -> Explanation {
        let root = self.inodes.expected_version_of(loaded);
        let manifest = &loaded.manifest;
        let mut explanation = match manifest.find(rest) {
            Some(entry) if entry.is_dir() => {
                let kind = match rest {
                    "" => Kind::Version,
                    _ => Kind::Directory,
                };
                let mut explanation = Explanation::new(kind);
                explanation.failure = self.failures.about(inode::entry(root, entry.index()));
                explanation
            }
            Some(entry) => {
                let file = self.explain_file(entry, inode::entry(root, entry.index()));
                self.or_refused(&manifest.id().bundle.namespace, file)
            }
            None => explain_missing(loaded, rest),
        };
        if let Err(error) = self.store.allows(loaded) {
            explanation.kind = Kind::Refused;
            explanation.reason = Some(error.to_string());
            explanation.remedy = error.hint().map(str::to_owned);
        } else if explanation.failure.is_none() {
            explanation.failure = failure;
        }
        explanation.state = Some(manifest.info().state);
        explanation.manifest_source = Some(Arc::clone(&loaded.origin));
        explanation
    }

    fn explain_file(&self, file: Entry<'_>, ino: u64) -> Explanation {
        let mut explanation = Explanation::new(Kind::File);
        let digest = file.digest();
        let cached = self.store.is_cached(digest);
        explanation.sha256 = Some(digest.hex());
        explanation.size = Some(file.size());
        explanation.asset_type = Some(file.asset_type().to_owned()).filter(|text| !text.is_empty());
        explanation.cached = Some(cached);
        explanation.source = cached.then(|| self.store.blob_origin(digest));
        explanation.verified = self.store.verified_at(digest);
        explanation.failure = self.failures.about(ino);
        explanation
    }

    /// The path of a node within the mount, as far as it is known without reading the disk.
    pub fn path_of(&self, ino: u64) -> Option<String> {
        Some(match self.inodes.node(ino)? {
            Node::Root => "/".to_owned(),
            Node::Probe => "/.musherfs".to_owned(),
            Node::Name(name) => match &*name {
                Name::Namespace(namespace) => format!("/{namespace}"),
                Name::Link(bundle, Selector::Latest) => format!("/{bundle}"),
                Name::Link(bundle, selector) => format!("/{bundle}@{}", selector.text()),
            },
            Node::Entry(tagged, index) => {
                let loaded = self.store.in_memory(&tagged.version);
                let path = loaded
                    .as_ref()
                    .and_then(|loaded| Some(loaded.manifest.entry(index)?.path().to_owned()))
                    .filter(|path| !path.is_empty());
                match path {
                    Some(path) => format!("/{}/{path}", tagged.version),
                    None => format!("/{}", tagged.version),
                }
            }
        })
    }
}

/// What the lockfile leaves out, whether or not the registry or the cache has it.
fn unlocked(what: impl std::fmt::Display) -> Explanation {
    Explanation::new(Kind::Absent).because(
        format!("the lockfile does not name {what}, and nothing else is shown (--locked)"),
        "add it with `musherfs lock` and mount again, or mount without --locked",
    )
}

fn described(selector: &Selector) -> String {
    match selector {
        Selector::Latest => "published version of it".to_owned(),
        selector => format!("`{}` of it", selector.text()),
    }
}

/// Why a version lacks `path`: hidden, misspelt, or simply not there.
fn explain_missing(loaded: &Loaded, path: &str) -> Explanation {
    let manifest = &loaded.manifest;
    for (entry, refusal) in manifest.refused() {
        if entry.path() == path {
            return Explanation::new(Kind::Refused).because(
                format!("the version has this path, but it cannot be a file: {refusal}"),
                "ask the publisher to publish it under another path in a new version",
            );
        }
    }
    let id = manifest.id();
    let reason = format!("{id} has no such file, and never will: a version does not change");
    let name = path.rsplit('/').next().unwrap_or(path);
    let alike = manifest
        .files()
        .find(|file| file.path().eq_ignore_ascii_case(path))
        .or_else(|| {
            manifest
                .files()
                .find(|file| file.name().eq_ignore_ascii_case(name))
        });
    let remedy = match alike {
        Some(file) => format!("did you mean {}?", file.path()),
        None => format!("`musherfs ls {id}` lists its files"),
    };
    Explanation::new(Kind::Absent).because(reason, remedy)
}
