//! Does what a step says, and compares what the mount answers with what the model allows.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use musherfs::mount::keeper;
use musherfs::source::breaker::LONGEST_PAUSE;
use rustix::fs::{Advice, XattrFlags};
use rustix::process::{Signal, kill_process};

use crate::keeper_harness::house::{House, await_end, pid};
use crate::model::{About, Meaning, Model, link_of};
use crate::steps::{Attribute, Damage, Fault, Kept, Name, Place, Question, Step, Write};
use crate::support::registry::{self as faults, Effect, TestRegistry};
use crate::world::{BUNDLES, Entry, LINKS, Link, PATHS, TAGS, World, digest};

/// What a system call said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Node {
        kind: Kind,
        size: u64,
        inode: u64,
        time: SystemTime,
    },
    Bytes(Vec<u8>),
    Names(BTreeSet<String>),
    Text(String),
    Done,
    Error(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) answers: u64,
    pub(crate) faulty: u64,
    pub(crate) faults: u64,
    pub(crate) recoveries: u64,
    pub(crate) damages: u64,
    pub(crate) mounts: u64,
    pub(crate) kills: u64,
    pub(crate) slowest_ms: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.answers += other.answers;
        self.faulty += other.faulty;
        self.faults += other.faults;
        self.recoveries += other.recoveries;
        self.damages += other.damages;
        self.mounts += other.mounts;
        self.kills += other.kills;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

type Work = Box<dyn FnOnce() -> io::Result<Seen> + Send>;

/// Makes system calls in a thread, because one in a mount that does not answer cannot be
/// interrupted.
struct Caller {
    work: Sender<Work>,
    seen: Receiver<Seen>,
}

impl Caller {
    fn new() -> Self {
        let (work, todo) = channel::<Work>();
        let (done, seen) = channel();
        std::thread::spawn(move || {
            for work in todo {
                let answer = work().unwrap_or_else(|error| {
                    Seen::Error(error.raw_os_error().expect("an error of a system call"))
                });
                if done.send(answer).is_err() {
                    return;
                }
            }
        });
        Self { work, seen }
    }

    /// `None` if there is no answer within `limit`; it is of no use from then on.
    fn call(
        &self,
        limit: Duration,
        work: impl FnOnce() -> io::Result<Seen> + Send + 'static,
    ) -> Option<Seen> {
        self.work.send(Box::new(work)).unwrap();
        self.seen.recv_timeout(limit).ok()
    }
}

pub(crate) struct Rig {
    world: World,
    model: Model,
    house: House,
    caller: Caller,
    /// The numbers of everything immutable, by path.
    inodes: HashMap<PathBuf, u64>,
    /// What the mount may take for one request.
    deadline: Duration,
    /// What any answer may take. It may be for a few requests: a name is asked for, or its list of files,
    /// and then content. The first of each that takes all of its time fails, or lets the others be
    /// told at once that nobody answers; but that there is no content is not known from that there are
    /// no names.
    limit: Duration,
    tally: Tally,
}

impl Rig {
    /// One whose mount may take so long for a request, and whose machine so much longer.
    pub(crate) fn new(deadline: Duration, slack: Duration) -> Self {
        let house = House::of(TestRegistry::start());
        let world = World::new(&house.registry);
        let rig = Self {
            world,
            model: Model::default(),
            house,
            caller: Caller::new(),
            inodes: HashMap::new(),
            deadline,
            limit: 2 * deadline + slack,
            tally: Tally::default(),
        };
        rig.mount();
        rig
    }

    pub(crate) fn end(self) -> Tally {
        self.unmount();
        self.tally
    }

    fn mount(&self) {
        let timeout = format!("{}s", self.deadline.as_secs());
        self.house.mount_with(&[
            "--namespace=acme,nord",
            "-ouser_xattr",
            "--metadata-timeout",
            &timeout,
            "--content-timeout",
            &timeout,
        ]);
    }

    fn unmount(&self) {
        let kept = self.house.kept();
        let output = self.house.run(["umount", self.house.dir.to_str().unwrap()]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        await_end(kept.keeper);
        assert!(keeper::find(&self.house.runtime()).unwrap().is_empty());
    }

    fn cache(&self) -> PathBuf {
        self.house.home.path().join("m/cache")
    }

    /// Lets all answers for names on disk be old.
    fn expire(&self) {
        for entry in walkdir::WalkDir::new(self.cache().join("refs")) {
            let Ok(entry) = entry else { continue };
            if !entry.file_type().is_file() {
                continue;
            }
            let bytes = fs::read(entry.path()).unwrap();
            // What is damaged says nothing that could be old.
            let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
                continue;
            };
            json["expiresAt"] = 1.0.into();
            fs::write(entry.path(), json.to_string()).unwrap();
        }
    }

    /// Does it; what an answer has that the model does not allow.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), String> {
        self.tally.steps += 1;
        match *step {
            Step::Publish { bundle, files } => {
                if self.world.bundles[bundle].versions.len() < crate::steps::MOST_VERSIONS {
                    self.world.publish(&self.house.registry, bundle, files);
                }
            }
            Step::Yank { bundle, version } => {
                self.world
                    .set_yanked(&self.house.registry, bundle, version, true);
            }
            Step::Unyank { bundle, version } => {
                self.world
                    .set_yanked(&self.house.registry, bundle, version, false);
            }
            Step::Tag {
                bundle,
                tag,
                version,
            } => self.world.tag(&self.house.registry, bundle, tag, version),
            Step::Ask(question, place) => return self.ask(question, place),
            Step::Damage { what, which, how } => self.damage(what, which, how),
            Step::Break(fault) => self.disturb(fault),
            Step::Mend { remount } => {
                if self.model.fault.take().is_some() {
                    // Whoever still waits for an answer asks again.
                    self.house.registry.stop();
                    self.house.registry.clear_faults();
                    self.house.registry.restart();
                    if remount {
                        self.remount(true);
                    } else {
                        self.await_recovery()?;
                    }
                }
            }
            Step::Remount { expired } => self.remount(expired),
            Step::Kill => {
                // It may be dead already.
                let daemon = pid(self.house.daemon());
                self.tally.kills += u64::from(kill_process(daemon, Signal::KILL).is_ok());
            }
            Step::Wipe => {
                self.unmount();
                let _ = fs::remove_dir_all(self.cache());
                self.mount();
                self.tally.mounts += 1;
                self.model.wiped(&self.world);
            }
        }
        Ok(())
    }

    fn remount(&mut self, expired: bool) {
        self.unmount();
        if expired {
            self.expire();
        }
        self.mount();
        self.tally.mounts += 1;
        self.model.remounted(&self.world, expired);
    }

    fn disturb(&mut self, fault: Fault) {
        let registry = &self.house.registry;
        registry.clear_faults();
        registry.restart();
        let all = |effect| registry.fault(faults::Fault::new(effect));
        let content = |effect| registry.fault(faults::Fault::new(effect).on_content());
        match fault {
            Fault::Down => registry.stop(),
            Fault::Missing => all(Effect::Status(404)),
            Fault::Refused => all(Effect::Status(401)),
            Fault::Garbage => all(Effect::Garbage),
            Fault::WrongBytes => content(Effect::WrongBytes),
            Fault::Delay => all(Effect::Delay(Duration::from_millis(50))),
            Fault::Stall => all(Effect::Hang),
            Fault::Trickle => content(Effect::Trickle(Duration::from_secs(1))),
            Fault::Truncate => all(Effect::Truncate(5)),
        }
        self.tally.faults += 1;
        self.model.begin(fault);
    }

    /// Asks for what there never was, under ever new names, until the registry says so: the mount may
    /// leave it alone for a while after a fault, but not for ever.
    fn await_recovery(&mut self) -> Result<(), String> {
        let longest = LONGEST_PAUSE + self.limit;
        let start = Instant::now();
        for number in 0.. {
            let name = format!("never-{}-{number}@1.0.0", self.tally.recoveries);
            let seen = self.put(Question::Stat, &self.house.dir.join("acme").join(name));
            if seen == Some(Seen::Error(libc::ENOENT)) && self.is_source_up() {
                break;
            }
            if start.elapsed() > longest {
                return Err(format!("not asked again within {longest:?}: {seen:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.tally.recoveries += 1;
        self.model.recovered();
        Ok(())
    }

    /// What the daemon says of the requests that failed lately.
    pub(crate) fn failures(&self) -> serde_json::Value {
        self.status()["failures"].clone()
    }

    fn status(&self) -> serde_json::Value {
        let output = self.house.run(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        // There is none while one daemon takes over from another.
        status[0].clone()
    }

    /// Whether the daemon says that it asks its source. Content has a circuit of its own, which only a
    /// question for content closes: that the next one will be asked is enough.
    fn is_source_up(&self) -> bool {
        let status = self.status();
        let source = &status["sources"][0];
        source["state"] == "up" || source["retryInSeconds"] == 0.0
    }

    fn damage(&mut self, what: Kept, which: usize, how: Damage) {
        let mut cached = self.cached(what);
        if cached.is_empty() {
            return;
        }
        let (path, about) = cached.swap_remove(which % cached.len());
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap()
        };
        let length = fs::metadata(&path).unwrap().len();
        match how {
            Damage::Flip => {
                let at = (which / 7) as u64 % length.max(1);
                let file = open();
                let mut byte = [0];
                // It may be empty, after an earlier damage.
                if file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_at(&[byte[0] ^ 0x20], at).unwrap();
                }
            }
            Damage::Truncate => open().set_len(length / 2).unwrap(),
            Damage::Extend => open().set_len(length + 7).unwrap(),
            Damage::Remove => fs::remove_file(&path).unwrap(),
            Damage::Replace => {
                let other = path.with_extension("other");
                let bytes = fs::read(&path).unwrap().to_ascii_uppercase();
                fs::write(&other, bytes).unwrap();
                fs::rename(&other, &path).unwrap();
            }
        }
        self.tally.damages += 1;
        self.model.damaged(about);
    }

    /// The files of one kind that there are in the cache, and what they are about.
    fn cached(&self, what: Kept) -> Vec<(PathBuf, About)> {
        let host = self.house.registry.host_id();
        let of = |bundle: usize| {
            let (namespace, slug) = BUNDLES[bundle];
            Path::new(&host).join(namespace).join(slug)
        };
        let manifests = |ending: &str| {
            let versions = self.world.versions();
            let named = versions.map(|(bundle, version)| {
                let path = of(bundle).join(format!("1.{version}.0{ending}"));
                let path = self.cache().join("manifests").join(path);
                (path, About::Version(bundle, version))
            });
            named.collect()
        };
        let mut files: Vec<(PathBuf, About)> = match what {
            Kept::Blob => {
                let contents = self.world.contents().into_iter();
                let named =
                    contents.map(|bytes| (self.blob(&bytes), About::Content(digest(&bytes))));
                named.collect()
            }
            Kept::Manifest => manifests(".json"),
            Kept::Sidecar => manifests(".meta.json"),
            Kept::Ref => {
                let links = (0..BUNDLES.len()).flat_map(|bundle| LINKS.map(|link| (bundle, link)));
                let named = links.map(|(bundle, link)| {
                    let name = match link {
                        Link::Latest => "latest",
                        Link::Tag(tag) => TAGS[tag],
                        Link::Range => "^1",
                        Link::NoRange => "^9",
                    };
                    let path = of(bundle).join(format!("{name}.json"));
                    (
                        self.cache().join("refs").join(path),
                        About::Link(bundle, link),
                    )
                });
                named.collect()
            }
        };
        files.retain(|(path, _)| path.exists());
        files
    }

    fn blob(&self, content: &[u8]) -> PathBuf {
        let hex = digest(content).hex();
        self.cache().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// The path of a place, and whether its name is a moving one.
    fn path(&self, place: Place) -> PathBuf {
        let (namespace, slug) = BUNDLES[place.bundle];
        let name = match place.name {
            Name::Bare => slug.to_owned(),
            Name::Latest => format!("{slug}@latest"),
            Name::Version(version) => World::directory(place.bundle, version),
            Name::Tag(tag) => format!("{slug}@{}", TAGS[tag]),
            Name::Range => format!("{slug}@^1"),
            Name::NoRange => format!("{slug}@^9"),
            Name::Nothing => "nothing-here".to_owned(),
        };
        let path = self.house.dir.join(namespace).join(name);
        match place.path {
            Some(index) => path.join(PATHS[index]),
            None => path,
        }
    }

    fn ask(&mut self, question: Question, place: Place) -> Result<(), String> {
        let path = self.path(place);
        let meaning = self.model.meaning(&self.world, place.bundle, place.name);
        let mut seen = self.timed(question, &path)?;
        while let (Question::Read { .. }, Seen::Error(errno)) = (question, &seen)
            && self.model.is_remembered(*errno)
        {
            std::thread::sleep(Duration::from_millis(100));
            seen = self.timed(question, &path)?;
        }
        self.tally.answers += 1;
        self.tally.faulty += u64::from(self.model.is_disturbed());
        self.compare(question, place, &path, &meaning, &seen)?;
        self.learn(question, place, &meaning, &seen);
        Ok(())
    }

    /// Asks the kernel, which has to answer in time.
    fn timed(&mut self, question: Question, path: &Path) -> Result<Seen, String> {
        let start = Instant::now();
        let seen = self.put(question, path);
        let took = u64::try_from(start.elapsed().as_millis()).unwrap();
        self.tally.slowest_ms = self.tally.slowest_ms.max(took);
        seen.ok_or_else(|| format!("no answer within {:?}", self.limit))
    }

    /// Asks the kernel.
    fn put(&self, question: Question, path: &Path) -> Option<Seen> {
        let path = path.to_owned();
        let namespace = path
            .ancestors()
            .find(|above| above.parent() == Some(&self.house.dir));
        let namespace = namespace.unwrap().to_owned();
        self.caller.call(self.limit, move || match question {
            Question::Stat => {
                let meta = fs::symlink_metadata(&path)?;
                let kind = match meta.permissions().mode() {
                    0o100_444 => Kind::File,
                    0o040_555 => Kind::Directory,
                    0o120_777 => Kind::Link,
                    // No answer that there could be.
                    other => return Ok(Seen::Text(format!("mode {other:o}"))),
                };
                Ok(Seen::Node {
                    kind,
                    size: meta.size(),
                    inode: meta.ino(),
                    time: meta.modified()?,
                })
            }
            Question::Read { forget } => {
                let mut file = File::open(&path)?;
                if forget {
                    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
                }
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(Seen::Bytes(bytes))
            }
            Question::List => names(&path),
            Question::ListNamespace => names(&namespace),
            Question::Readlink => {
                let target = fs::read_link(&path)?;
                Ok(Seen::Text(target.to_str().unwrap().to_owned()))
            }
            Question::Xattr(attribute) => {
                let name = match attribute {
                    Attribute::Digest => "user.musher.sha256",
                    Attribute::Version => "user.musher.version",
                    Attribute::State => "user.musher.state",
                    Attribute::Unknown => "user.musher.nothing",
                    Attribute::Foreign => "security.nothing",
                };
                let mut buffer = [0; 200];
                let length = rustix::fs::getxattr(&path, name, &mut buffer)?;
                Ok(Seen::Text(
                    std::str::from_utf8(&buffer[..length]).unwrap().to_owned(),
                ))
            }
            Question::Write(write) => write_to(write, &path).map(|()| Seen::Done),
        })
    }

    /// What `place` may be in `version`: what is there, if anything is.
    fn entry(&self, place: Place, version: usize) -> Option<Entry> {
        let path = place.path.map_or("", |index| PATHS[index]);
        self.world.bundles[place.bundle].versions[version].entry(path)
    }

    fn compare(
        &mut self,
        question: Question,
        place: Place,
        path: &Path,
        meaning: &Meaning,
        seen: &Seen,
    ) -> Result<(), String> {
        if question == Question::ListNamespace {
            return self.compare_namespace(place, seen);
        }
        let mut allowed = Vec::new();
        if meaning.absent {
            allowed.push(Seen::Error(libc::ENOENT));
        }
        allowed.extend(meaning.errors.iter().map(|errno| Seen::Error(*errno)));
        if matches!(question, Question::Write(_)) {
            // Many are refused before anybody looks at what is there.
            allowed.push(Seen::Error(libc::EROFS));
            if place.path.is_none() {
                // A new name in a namespace may be a bundle's.
                let errors = self.model.lookup_errors().iter();
                allowed.extend(errors.map(|errno| Seen::Error(*errno)));
            }
        }
        let follows = place.path.is_some()
            || matches!(
                question,
                Question::Read { .. } | Question::List | Question::Xattr(_)
            )
            || matches!(question, Question::Write(_));
        let is_link = link_of(place.name).is_some() && place.path.is_none();
        for &version in &meaning.versions {
            if follows {
                let errors = self.model.manifest_errors(place.bundle, version);
                allowed.extend(errors.into_iter().map(Seen::Error));
                if self.model.was_absent(place.bundle, Name::Version(version)) {
                    allowed.push(Seen::Error(libc::ENOENT));
                }
            }
            let entry = self.entry(place, version);
            let target = World::directory(place.bundle, version);
            self.answers(
                question,
                entry,
                is_link,
                &target,
                version,
                place,
                &mut allowed,
            );
        }
        if let (
            Seen::Node {
                kind, inode, time, ..
            },
            false,
        ) = (seen, is_link)
            && *kind != Kind::Link
        {
            // What is immutable keeps its number and its time, whatever the name that led to it.
            let real = match (place.name, meaning.versions.len()) {
                (Name::Version(_), _) => Some(path.to_owned()),
                _ => None,
            };
            if *time != musherfs::fs::tree::epoch() {
                return Err(format!("its time is {time:?}"));
            }
            if let Some(real) = real {
                let known = *self.inodes.entry(real).or_insert(*inode);
                if known != *inode {
                    return Err(format!("its number was {known}, and now is {inode}"));
                }
            }
        }
        let matches = |allowed: &Seen| match (allowed, seen) {
            (
                Seen::Node { kind, size, .. },
                Seen::Node {
                    kind: seen_kind,
                    size: seen_size,
                    ..
                },
            ) => kind == seen_kind && size == seen_size,
            (allowed, seen) => allowed == seen,
        };
        if allowed.iter().any(matches) {
            return Ok(());
        }
        Err(format!(
            "{}: {} is none of {}",
            path.display(),
            brief(seen),
            allowed.iter().map(brief).collect::<Vec<_>>().join(", ")
        ))
    }

    /// What may be answered if the name means `version`, in which `entry` is.
    #[allow(clippy::too_many_arguments)]
    fn answers(
        &self,
        question: Question,
        entry: Option<Entry>,
        is_link: bool,
        target: &str,
        version: usize,
        place: Place,
        allowed: &mut Vec<Seen>,
    ) {
        let node = |kind, size: usize| Seen::Node {
            kind,
            size: size as u64,
            inode: 0,
            time: SystemTime::UNIX_EPOCH,
        };
        if is_link {
            match question {
                Question::Stat => return allowed.push(node(Kind::Link, target.len())),
                Question::Readlink => return allowed.push(Seen::Text(target.to_owned())),
                _ => {}
            }
        }
        let Some(entry) = entry else {
            allowed.push(Seen::Error(libc::ENOENT));
            return;
        };
        match question {
            Question::Stat => allowed.push(match &entry {
                Entry::File(bytes) => node(Kind::File, bytes.len()),
                Entry::Directory(_) => node(Kind::Directory, 0),
            }),
            Question::Read { .. } => match entry {
                Entry::File(bytes) => {
                    let errors = self.model.content_errors(&bytes);
                    allowed.extend(errors.into_iter().map(Seen::Error));
                    allowed.push(Seen::Bytes(bytes));
                }
                Entry::Directory(_) => allowed.push(Seen::Error(libc::EISDIR)),
            },
            Question::List => allowed.push(match entry {
                Entry::File(_) => Seen::Error(libc::ENOTDIR),
                Entry::Directory(names) => Seen::Names(names),
            }),
            Question::Readlink => allowed.push(Seen::Error(libc::EINVAL)),
            Question::Xattr(attribute) => match (attribute, &entry) {
                (Attribute::Digest, Entry::File(bytes)) => {
                    allowed.push(Seen::Text(digest(bytes).hex()));
                }
                (Attribute::Version, _) => allowed.push(Seen::Text(format!("1.{version}.0"))),
                (Attribute::State, _) => {
                    // As old as the list of files, which is asked for once a day.
                    allowed.push(Seen::Text("published".to_owned()));
                    let known = &self.world.bundles[place.bundle].versions[version];
                    if known.was_yanked() {
                        allowed.push(Seen::Text("yanked".to_owned()));
                    }
                }
                (Attribute::Foreign, _) => allowed.push(Seen::Error(libc::EOPNOTSUPP)),
                (Attribute::Digest, Entry::Directory(_)) | (Attribute::Unknown, _) => {
                    allowed.push(Seen::Error(libc::ENODATA));
                }
            },
            // Which comes before everything else.
            Question::Write(Write::Open | Write::Truncate)
                if matches!(entry, Entry::Directory(_)) =>
            {
                allowed.push(Seen::Error(libc::EISDIR));
            }
            Question::Write(_) => {}
            Question::ListNamespace => {}
        }
    }

    fn compare_namespace(&self, place: Place, seen: &Seen) -> Result<(), String> {
        let (must, may) = self.model.listing(&self.world, BUNDLES[place.bundle].0);
        let Seen::Names(names) = seen else {
            return Err(format!("listing the namespace: {}", brief(seen)));
        };
        if names.is_superset(&must) && names.is_subset(&may) {
            return Ok(());
        }
        Err(format!(
            "the namespace lists {names:?}; all of {must:?} must be there, and nothing but {may:?}"
        ))
    }

    /// What is cached after this answer, and which older ones are out of the question.
    fn learn(&mut self, question: Question, place: Place, meaning: &Meaning, seen: &Seen) {
        let Place { bundle, name, .. } = place;
        match seen {
            Seen::Error(libc::ENOENT) => {
                self.model.saw_absence(&self.world, bundle, name);
                // Which may have been that of what the name leads to.
                for version in &meaning.versions {
                    let name = Name::Version(*version);
                    self.model.saw_absence(&self.world, bundle, name);
                }
            }
            Seen::Text(target) if question == Question::Readlink => {
                let version = World::version_of(target).unwrap();
                if let Some(link) = link_of(name) {
                    self.model.saw_target(&self.world, bundle, link, version);
                }
            }
            Seen::Node { kind, .. } if *kind == Kind::Link => {}
            Seen::Error(_) | Seen::Done => {}
            _ if question == Question::ListNamespace => {}
            seen => {
                let mut versions = meaning.versions.iter();
                let (Some(&version), None) = (versions.next(), versions.next()) else {
                    return;
                };
                self.model.saw_version(bundle, version);
                if let Some(link) = link_of(name) {
                    self.model.saw_target(&self.world, bundle, link, version);
                }
                if let Seen::Bytes(bytes) = seen
                    && matches!(question, Question::Read { forget: true })
                {
                    self.model.saw_content(bytes);
                }
            }
        }
    }
}

fn names(path: &Path) -> io::Result<Seen> {
    let entries = fs::read_dir(path)?;
    let names: io::Result<BTreeSet<String>> = entries
        .map(|entry| Ok(entry?.file_name().into_string().unwrap()))
        .collect();
    Ok(Seen::Names(names?))
}

fn write_to(write: Write, path: &Path) -> io::Result<()> {
    let beside = |name: &str| path.parent().unwrap().join(name);
    match write {
        Write::Open => OpenOptions::new().append(true).open(path).map(drop),
        Write::Create => File::create_new(beside("new-file")).map(drop),
        Write::Remove => fs::remove_file(path),
        Write::MakeDirectory => fs::create_dir(beside("new-directory")),
        Write::Rename => fs::rename(path, beside("new-name")),
        Write::Mode => fs::set_permissions(path, fs::Permissions::from_mode(0o600)),
        Write::Truncate => OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .map(drop),
        Write::Symlink => std::os::unix::fs::symlink("x", beside("new-link")),
        Write::SetXattr => {
            let flags = XattrFlags::empty();
            Ok(rustix::fs::setxattr(path, "user.a", b"b", flags)?)
        }
    }
}

/// What a seen thing is, without all of its bytes.
fn brief(seen: &Seen) -> String {
    match seen {
        Seen::Bytes(bytes) => {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            format!("{} bytes {start:?}", bytes.len())
        }
        Seen::Node { kind, size, .. } => format!("{kind:?} of {size} bytes"),
        Seen::Error(errno) => io::Error::from_raw_os_error(*errno).to_string(),
        other => format!("{other:?}"),
    }
}
