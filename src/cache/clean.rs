//! Taking out of the cache what nobody needs any more, beside programs that know nothing of it.
//!
//! | | entries | refs | blobs |
//! |---|---|---|---|
//! | [`Selection::Expired`] | past their life | past their life | named by no entry, an hour old |
//! | [`Selection::Matching`] | old enough, in the namespace | of the removed entries | the same |
//! | [`Selection::Unreferenced`] | none | none | the same |
//! | [`Selection::Everything`] | all | all | all |
//!
//! * **Locally packed bundles stay**, with their blobs: no registry has them. Only `Everything` can
//!   be told otherwise.
//! * **What is [`Needed`] stays**, with its refs and blobs, but for `Everything`.
//! * **A blob stays while any list of any dialect on any host names it** ([`marks`]). An entry that
//!   cannot be read may name any blob, so while there is one, no blob is removed; it goes itself when
//!   it has expired.
//! * **Killed at any point**, what is left is a smaller cache: entries go before the blobs they name,
//!   an entry before its sidecar, and a sidecar, a temporary file or an empty directory that was left
//!   behind goes the next time.
//! * **Others may write meanwhile.** Blobs are new for an hour, and before each handful of them is
//!   removed every entry that appeared since is read. Files are removed by directory descriptor, so
//!   no link leads elsewhere.

pub mod marks;

use std::collections::HashSet;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::blob::{BLOBS, place_of};
use super::dir::Dir;
use super::entry::{Age, CachedRef, age};
use super::scan::BlobFile;
use super::temp::{TEMP, abandoned};
use super::{Cache, MANIFEST_TTL, MAX_SMALL, REF_TTL, REFS, read_json, spellings};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{BundleId, HostId, Namespace, VersionRef};
use marks::{Marks, Place};

/// How long a blob, a temporary file or an empty directory belongs to whoever made it.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// How many blobs are removed before what others have written since is looked at again.
const AT_A_TIME: usize = 64;

/// Which entries to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those past their life.
    Expired,
    /// Those whose answer is at least so old, or of unknown age, in this namespace.
    Matching {
        /// At least so old; any age if `None`.
        older_than: Option<Duration>,
        /// In this namespace; any if `None`.
        namespace: Option<Namespace>,
    },
    /// None; only blobs that nothing names.
    Unreferenced,
    /// All, whoever needs them and however young the blobs are.
    Everything {
        /// Bundles packed on this machine as well.
        local_packs: bool,
    },
}

/// Versions that stay, whatever their age: pinned ones, and those that a mount serves.
#[derive(Debug, Clone, Default)]
pub struct Needed {
    versions: HashSet<(String, String)>,
    bundles: HashSet<(String, String)>,
}

impl Needed {
    /// Adds a version of `host`, and what moving names of its bundle are known to stand for.
    pub fn add(&mut self, host: &HostId, version: &VersionRef) {
        for spelling in spellings(host) {
            let host = spelling.as_str().to_owned();
            self.bundles
                .insert((host.clone(), version.bundle.to_string()));
            self.versions.insert((host, version.to_string()));
        }
    }

    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    fn has_version(&self, place: &Place) -> bool {
        let (host, bundle) = place.host_and_bundle();
        self.versions
            .contains(&(host.to_owned(), format!("{bundle}@{}", place.stem)))
    }

    fn has_bundle(&self, place: &Place) -> bool {
        let (host, bundle) = place.host_and_bundle();
        self.bundles.contains(&(host.to_owned(), bundle.to_owned()))
    }
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Manifests, each with its sidecar.
    pub manifests: u64,
    /// Refs.
    pub refs: u64,
    /// Blobs.
    pub blobs: u64,
    /// Temporary files and sidecars without an entry.
    pub leftovers: u64,
    /// The bytes of all of them.
    pub bytes: u64,
    /// Entries that were chosen, and stayed because they are needed.
    pub needed: u64,
    /// Entries that cannot be read, and keep all blobs from being removed; paths below the root.
    pub unreadable: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<(String, String)>,
}

/// One run over one cache.
struct Sweep<'a> {
    cache: &'a Cache,
    root: Dir,
    selection: &'a Selection,
    needed: &'a Needed,
    now: Timestamp,
    dry_run: bool,
    removed: Removed,
    /// Entries that are gone, or would be.
    gone: HashSet<Place>,
}

impl Cache {
    /// Removes what `selection` says and what nothing needs then; with `dry_run`, only counts it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the root is there and cannot be read. What cannot be removed is in
    /// [`Removed::failed`].
    pub fn clean(
        &self,
        selection: &Selection,
        needed: &Needed,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Removed> {
        let root = match Dir::open_root(self.root()) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::default()),
            Err(error) => return Err(Error::io(self.root(), error)),
        };
        let mut sweep = Sweep {
            cache: self,
            root,
            selection,
            needed,
            now,
            dry_run,
            removed: Removed::default(),
            gone: HashSet::new(),
        };
        sweep.entries();
        sweep.refs();
        sweep.blobs();
        sweep.leftovers();
        Ok(sweep.removed)
    }

    /// Removes one blob; how many bytes that were. 0 if it is gone already.
    ///
    /// Whoever has it open keeps it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it is there and cannot be removed.
    pub fn remove_blob(&self, digest: Digest, is_flat: bool) -> Result<u64> {
        let (prefixed, name) = place_of(digest);
        let path = if is_flat { BLOBS } else { &prefixed };
        let Ok(dir) = self.open_dir(path) else {
            return Ok(0);
        };
        let Ok(stat) = dir.stat(&name) else {
            return Ok(0);
        };
        dir.remove_file(&name)
            .map_err(|error| Error::io(self.root().join(path).join(&name), error))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Removes the temporary files of killed processes of this user; how many bytes those were.
    pub fn remove_abandoned(&self, age: Duration) -> u64 {
        let Ok(temp) = self.open_dir(TEMP) else {
            return 0;
        };
        let abandoned = abandoned(&temp, age).unwrap_or_default();
        let removed = abandoned
            .into_iter()
            .filter(|(name, _)| temp.remove_file(name).is_ok());
        removed.map(|(_, size)| size).sum()
    }
}

impl Sweep<'_> {
    fn spares_local(&self) -> bool {
        *self.selection != Selection::Everything { local_packs: true }
    }

    /// Removes the chosen entries, and sidecars that belong to none.
    fn entries(&mut self) {
        if *self.selection == Selection::Unreferenced {
            return;
        }
        for place in marks::places(&self.root) {
            if place.is_local() && self.spares_local() || !self.is_chosen(&place) {
                continue;
            }
            let overridden = matches!(self.selection, Selection::Everything { .. });
            if !overridden && self.needed.has_version(&place) {
                self.removed.needed += 1;
                continue;
            }
            let Ok(dir) = self.root.open(&place.dir) else {
                continue;
            };
            // The entry first: a sidecar alone means nothing to any tool.
            if self.remove(&dir, &place.dir, &place.file()) {
                self.removed.manifests += 1;
                self.remove(&dir, &place.dir, &place.sidecar());
                self.gone.insert(place);
            }
        }
    }

    fn is_chosen(&self, place: &Place) -> bool {
        match self.selection {
            Selection::Everything { .. } => true,
            Selection::Unreferenced => false,
            Selection::Expired => match self.age_of(place) {
                (Some(age), ttl) => ttl.is_some_and(|ttl| age >= ttl),
                (None, _) => true,
            },
            Selection::Matching {
                older_than,
                namespace,
            } => {
                namespace
                    .as_ref()
                    .is_none_or(|wanted| place.namespace() == Some(wanted.as_str()))
                    && older_than
                        .is_none_or(|least| self.age_of(place).0.is_none_or(|age| age >= least))
            }
        }
    }

    /// How old an entry is, and how long it lives; the age is `None` for a date in the future.
    ///
    /// Without a date in a sidecar (mush 4.2.0 writes none) the file's own counts.
    fn age_of(&self, place: &Place) -> (Option<Duration>, Option<Duration>) {
        let dir = self.root.open(&place.dir).ok();
        let sidecar = dir
            .as_ref()
            .and_then(|dir| read_json(dir, &place.sidecar(), MAX_SMALL))
            .map(|json| Age::parse(&json, place.is_local()));
        match sidecar {
            Some(Age {
                fetched_at: Some(at),
                ttl,
                ..
            }) => (age(at, self.now), ttl),
            _ => {
                let written = dir.and_then(|dir| dir.stat(&place.file()).ok());
                let written = written.map_or(Duration::ZERO, |stat| self.since(stat.st_mtime));
                (Some(written), Some(MANIFEST_TTL))
            }
        }
    }

    fn since(&self, seconds: i64) -> Duration {
        let now = Duration::from_secs(u64::try_from(self.now.as_second()).unwrap_or(0));
        now.saturating_sub(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// Removes refs: expired ones, or those of removed entries.
    fn refs(&mut self) {
        if *self.selection == Selection::Unreferenced {
            return;
        }
        let key = |place: &Place| {
            let (host, bundle) = place.host_and_bundle();
            (host.to_owned(), format!("{bundle}@{}", place.stem))
        };
        let gone: HashSet<(String, String)> = self.gone.iter().map(key).collect();
        let mut standing: HashSet<(String, String)> =
            marks::places(&self.root).iter().map(key).collect();
        standing.retain(|version| !gone.contains(version));
        for (dir_path, name) in marks::files_below(&self.root, REFS) {
            let (stem, is_text) = match name.strip_suffix(".json") {
                Some(stem) => (stem, false),
                None => (name.as_str(), true),
            };
            let place = Place {
                dir: dir_path.clone(),
                stem: stem.to_owned(),
            };
            if place.is_local() && self.spares_local() {
                continue;
            }
            let Ok(dir) = self.root.open(&dir_path) else {
                continue;
            };
            let target = self.target_of(&dir, &place, &name, is_text);
            let (host, bundle) = place.host_and_bundle();
            let version = target
                .as_ref()
                .map(|target| (host.to_owned(), format!("{bundle}@{}", target.version)));
            let among =
                |versions: &HashSet<_>| version.as_ref().is_some_and(|v| versions.contains(v));
            let remove = match self.selection {
                Selection::Everything { .. } => true,
                Selection::Unreferenced => false,
                Selection::Matching { .. } => among(&gone),
                Selection::Expired if self.needed.has_bundle(&place) => false,
                Selection::Expired => match &target {
                    // mush's undated refs last as long as what they stand for.
                    Some(_) if is_text => !among(&standing),
                    Some(target) => !target.is_fresh(self.now),
                    None => dir
                        .stat(&name)
                        .is_ok_and(|stat| self.since(stat.st_mtime) > REF_TTL.max(GRACE)),
                },
            };
            if remove && self.remove(&dir, &dir_path, &name) {
                self.removed.refs += 1;
            }
        }
    }

    fn target_of(&self, dir: &Dir, place: &Place, name: &str, is_text: bool) -> Option<CachedRef> {
        let content = read_json(dir, name, MAX_SMALL)?;
        if is_text {
            let text = String::from_utf8(content).ok()?;
            return Some(CachedRef::undated(text.trim().parse().ok()?));
        }
        CachedRef::parse(&content, place.is_local())
    }

    /// Removes the blobs that no entry names.
    fn blobs(&mut self) {
        let mut marks = Marks::without(self.gone.clone());
        marks.update(&self.root);
        if !marks.unreadable().is_empty() {
            self.removed.unreadable = marks.unreadable();
            return;
        }
        let everything = matches!(self.selection, Selection::Everything { .. });
        let youngest = if everything { Duration::ZERO } else { GRACE };
        let now =
            UNIX_EPOCH + Duration::from_secs(u64::try_from(self.now.as_second()).unwrap_or(0));
        let mut candidates: Vec<BlobFile> = Vec::new();
        self.cache.for_each_blob(|blob| {
            let age = now.duration_since(blob.modified).unwrap_or_default();
            if age >= youngest && !marks.names(blob.digest) {
                candidates.push(blob);
            }
        });
        for few in candidates.chunks(AT_A_TIME) {
            if !self.dry_run {
                marks.update(&self.root);
                if !marks.unreadable().is_empty() {
                    self.removed.unreadable = marks.unreadable();
                    return;
                }
            }
            for blob in few.iter().filter(|blob| !marks.names(blob.digest)) {
                self.blob(blob, now, youngest);
            }
        }
    }

    fn blob(&mut self, blob: &BlobFile, now: SystemTime, youngest: Duration) {
        let (prefixed, name) = place_of(blob.digest);
        let path = if blob.is_flat { BLOBS } else { &prefixed };
        let Ok(dir) = self.root.open(path) else {
            return;
        };
        // It may be another file by now, that somebody has just written.
        let is_old = dir.stat(&name).is_ok_and(|stat| {
            let modified = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
            let age = now.duration_since(UNIX_EPOCH + modified);
            age.unwrap_or_default() >= youngest
        });
        if is_old && self.remove(&dir, path, &name) {
            self.removed.blobs += 1;
        }
    }

    /// Removes what killed programs left behind, and directories that have been empty for a while.
    fn leftovers(&mut self) {
        let everything = matches!(self.selection, Selection::Everything { .. });
        if let Ok(temp) = self.root.open(TEMP) {
            for (name, _) in abandoned(&temp, GRACE).unwrap_or_default() {
                self.leftover(&temp, TEMP, &name);
            }
        }
        for (dir_path, name) in marks::orphans(&self.root) {
            let Ok(dir) = self.root.open(&dir_path) else {
                continue;
            };
            let place = Place {
                dir: dir_path.clone(),
                stem: String::new(),
            };
            if !(place.is_local() && self.spares_local()) {
                self.leftover(&dir, &dir_path, &name);
            }
        }
        for (dir_path, name) in marks::temporaries(&self.root) {
            let Ok(dir) = self.root.open(&dir_path) else {
                continue;
            };
            let is_old = dir
                .stat(&name)
                .is_ok_and(|stat| self.since(stat.st_mtime) > MANIFEST_TTL);
            if is_old || everything {
                self.leftover(&dir, &dir_path, &name);
            }
        }
        if everything {
            self.views();
        }
        if !self.dry_run {
            let oldest = if everything {
                i64::MAX
            } else {
                self.now.as_second() - i64::try_from(GRACE.as_secs()).unwrap_or(0)
            };
            for kind in [super::MANIFESTS, REFS, BLOBS] {
                if let Ok(dir) = self.root.open(kind) {
                    remove_empty_below(&dir, oldest, 0);
                }
            }
        }
    }

    fn leftover(&mut self, dir: &Dir, path: &str, name: &str) {
        if self.remove(dir, path, name) {
            self.removed.leftovers += 1;
        }
    }

    /// Removes mush 4.2.0's unpacked copies.
    fn views(&mut self) {
        let mut files = marks::files_below(&self.root, "bundles");
        // The list of a view first: without it mush takes the view for absent.
        files.sort_by_key(|(_, name)| name != "manifest.json");
        for (dir_path, name) in files {
            if let Ok(dir) = self.root.open(&dir_path) {
                self.leftover(&dir, &dir_path, &name);
            }
        }
        if !self.dry_run
            && let Ok(dir) = self.root.open("bundles")
        {
            remove_empty_below(&dir, i64::MAX, 0);
        }
    }

    /// Removes a file, or counts it; whether it was there.
    fn remove(&mut self, dir: &Dir, path: &str, name: &str) -> bool {
        let Ok(stat) = dir.stat(name) else {
            return false;
        };
        if !self.dry_run
            && let Err(error) = dir.remove_file(name)
        {
            self.removed
                .failed
                .push((format!("{path}/{name}"), error.to_string()));
            return false;
        }
        self.removed.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        true
    }
}

/// Removes the empty directories below `dir` that nobody has changed since `oldest`. One that is
/// being filled right now stays, because it is not empty, or new.
fn remove_empty_below(dir: &Dir, oldest: i64, depth: usize) {
    if depth >= marks::DEEPEST {
        return;
    }
    for name in dir.directories().into_iter().flatten() {
        let Ok(below) = dir.open(&name) else { continue };
        let changed = below.own_stat().map_or(i64::MAX, |stat| stat.st_mtime);
        remove_empty_below(&below, oldest, depth + 1);
        if changed <= oldest {
            // Fails if it is not empty, which is most of the time.
            let _ = dir.remove_empty(&name);
        }
    }
}

/// The bundle of a place, if its directories are names.
pub(super) fn bundle_of(place: &Place) -> Option<(HostId, BundleId)> {
    let (host, bundle) = place.host_and_bundle();
    Some((host.parse().ok()?, bundle.parse().ok()?))
}
