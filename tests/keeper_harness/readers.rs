//! Processes that read a mount, check every byte and every answer, and remember when each operation
//! began and ended. When all is over they are told what happened when, and say what they saw of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

use super::house::{FILES, House, content, file_name};
use crate::support::fuse::cannot_run;
use crate::support::mount::within;

pub(crate) const ROLE: &str = "MUSHERFS_TEST_READER";
const ENTRY: [&str; 5] = [
    "--ignored",
    "--exact",
    "keeper_harness::readers::process_entry",
    "--nocapture",
    "--test-threads=1",
];

const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

/// From when to when something took place. By the wall clock: it is the one that processes share.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Span {
    from: Duration,
    to: Duration,
}

impl Span {
    /// How long `work` took place, and what came of it.
    pub(crate) fn of<T>(work: impl FnOnce() -> T) -> (Self, T) {
        let now = || UNIX_EPOCH.elapsed().unwrap();
        let from = now();
        let done = work();
        (Self { from, to: now() }, done)
    }

    fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

/// What a reader has seen of something that happened to the mount.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct View {
    /// The longest of the operations that were under way at any moment of it.
    pub(crate) longest: Duration,
    /// How many of them ended in it, and of these, how many had begun in it.
    pub(crate) ended: u64,
    pub(crate) whole: u64,
}

impl View {
    /// `operations` follow one another.
    fn new(operations: &[Span], of: &Span) -> Self {
        let first = operations.partition_point(|it| it.to < of.from);
        let meanwhile = || operations[first..].iter().take_while(|it| it.from <= of.to);
        let ended = || meanwhile().filter(|it| of.from <= it.to && it.to <= of.to);
        Self {
            longest: meanwhile().map(Span::length).max().unwrap_or_default(),
            ended: ended().count() as u64,
            whole: ended().filter(|it| of.from <= it.from).count() as u64,
        }
    }
}

/// What readers have seen.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) operations: u64,
    /// What should not have been.
    pub(crate) wrong: BTreeSet<String>,
    /// The longest operation, in milliseconds.
    pub(crate) slowest: u64,
    /// For each span they were asked about, what each of them saw.
    pub(crate) views: Vec<Vec<View>>,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Here,
    Namespace,
    Container,
}

/// A process that reads until its standard input is closed.
pub(crate) struct Reader {
    child: Child,
    pub(crate) place: Place,
}

impl Reader {
    /// Reads below `root`, a directory in which the namespace `acme` is.
    pub(crate) fn start(root: &Path, seed: u64) -> Self {
        let program = std::env::current_exe().unwrap();
        Self::spawn(Command::new(program).args(ENTRY), root, seed, Place::Here)
    }

    /// Reads a bind mount of `root`, in a mount namespace that no unmounting reaches.
    pub(crate) fn start_in_namespace(root: &Path, seed: u64, scratch: &Path) -> Self {
        fs::create_dir_all(scratch).unwrap();
        let script = r#"mount --bind "$1" "$2" && root="$2" && shift 2 &&
            MUSHERFS_TEST_READER="$root" exec "$@""#;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .args([root, scratch])
            .arg(std::env::current_exe().unwrap())
            .args(ENTRY);
        Self::spawn(&mut command, root, seed, Place::Namespace)
    }

    /// Reads a bind mount of `root` inside a container that has nothing else of this machine but
    /// its programs' libraries.
    pub(crate) fn start_in_container(root: &Path, seed: u64) -> Self {
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-all", "--die-with-parent", "--proc", "/proc"])
            .args(["--dev", "/dev", "--tmpfs", "/tmp"]);
        for libraries in ["/usr", "/lib", "/lib64"] {
            command.args(["--ro-bind-try", libraries, libraries]);
        }
        command
            .arg("--ro-bind")
            .arg(std::env::current_exe().unwrap())
            .arg("/reader")
            .arg("--bind")
            .args([root, Path::new("/bundles")])
            .args(["--setenv", ROLE, "/bundles", "/reader"])
            .args(ENTRY);
        Self::spawn(&mut command, root, seed, Place::Container)
    }

    fn spawn(command: &mut Command, root: &Path, seed: u64, place: Place) -> Self {
        let mut child = command
            .env(ROLE, root)
            .env("MUSHERFS_TEST_SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Reads already when this returns.
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("reading") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the reader ended");
        }
        Self { child, place }
    }

    /// Ends it; what it has seen, of all and of `spans`.
    fn finish(mut self, spans: &[Span]) -> Seen {
        let mut asking = self.child.stdin.take().unwrap();
        serde_json::to_writer(&mut asking, spans).unwrap();
        drop(asking);
        let mut answer = self.child.stdout.take().unwrap();
        let text = within("the last operation of a reader", move || {
            std::io::read_to_string(&mut answer).unwrap()
        });
        self.child.wait().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("seen "))
            .unwrap_or_else(|| panic!("no report: {text}"));
        serde_json::from_str(line).unwrap()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// As many readers as asked for, some of them elsewhere.
pub(crate) fn start_many(house: &House, many: u64, seed: u64) -> Vec<Reader> {
    let has_containers = has_containers();
    (0..many)
        .map(|number| {
            let seed = seed.wrapping_mul(1000).wrapping_add(number);
            match number % 8 {
                0 => {
                    let scratch = house.home.path().join(format!("bound-{number}"));
                    Reader::start_in_namespace(&house.dir, seed, &scratch)
                }
                4 if has_containers => Reader::start_in_container(&house.dir, seed),
                _ => Reader::start(&house.dir, seed),
            }
        })
        .collect()
}

/// Whether containers can be made; if not, readers in them cannot run.
fn has_containers() -> bool {
    let made = Command::new("bwrap")
        .args(["--unshare-all", "--ro-bind", "/", "/", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !made {
        cannot_run("readers in containers: bwrap cannot make one");
    }
    made
}

/// Ends all and fails if any has seen what it should not.
pub(crate) fn finish_all(readers: Vec<Reader>) -> Seen {
    finish_and_ask(readers, &[])
}

/// The same; and what each has seen of `spans`.
pub(crate) fn finish_and_ask(readers: Vec<Reader>, spans: &[Span]) -> Seen {
    let mut all = Seen {
        views: vec![Vec::new(); spans.len()],
        ..Seen::default()
    };
    for seen in readers.into_iter().map(|reader| reader.finish(spans)) {
        assert!(seen.operations > 0);
        all.operations += seen.operations;
        all.wrong.extend(seen.wrong);
        all.slowest = all.slowest.max(seen.slowest);
        for (all, seen) in all.views.iter_mut().zip(seen.views) {
            all.extend(seen);
        }
    }
    assert!(all.wrong.is_empty(), "{:#?}", all.wrong);
    all
}

#[test]
#[ignore = "what the processes run that other tests start"]
fn process_entry() {
    let Some(root) = std::env::var_os(ROLE) else {
        return;
    };
    let seed: u64 = std::env::var("MUSHERFS_TEST_SEED")
        .unwrap()
        .parse()
        .unwrap();
    let (over, spans) = channel();
    std::thread::spawn(move || over.send(std::io::read_to_string(std::io::stdin())));
    let mut reader = Reading {
        root: PathBuf::from(root),
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        held: Vec::new(),
        operations: Vec::new(),
        wrong: BTreeSet::new(),
    };
    reader.hold();
    println!("reading");
    let spans = loop {
        match spans.try_recv() {
            Ok(spans) => break spans.unwrap(),
            Err(TryRecvError::Empty) => reader.step(),
            Err(TryRecvError::Disconnected) => panic!("nobody asks"),
        }
    };
    let seen = reader.seen(&serde_json::from_str::<Vec<Span>>(&spans).unwrap());
    println!("seen {}", serde_json::to_string(&seen).unwrap());
    let _ = std::io::stdout().flush();
    // The test harness has nothing to add.
    std::process::exit(0);
}

struct Reading {
    root: PathBuf,
    random: u64,
    /// Files that stay open all the time, and what they contain.
    held: Vec<(File, Vec<u8>)>,
    operations: Vec<Span>,
    wrong: BTreeSet<String>,
}

impl Reading {
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn some_file(&mut self, name: Option<&str>) -> (PathBuf, Vec<u8>) {
        let version = VERSIONS[usize::try_from(self.below(2)).unwrap()];
        let index = usize::try_from(self.below(FILES as u64)).unwrap();
        let file = file_name(index);
        // The bare name is the newest.
        let (directory, version) = match name {
            Some(name) => (name.to_owned(), VERSIONS[1]),
            None => (format!("kit@{version}"), version),
        };
        let path = self.root.join("acme").join(directory).join(&file);
        (path, content(&format!("{version}/{file}")))
    }

    fn hold(&mut self) {
        for _ in 0..8 {
            let (path, bytes) = self.some_file(None);
            match File::open(&path) {
                Ok(file) => self.held.push((file, bytes)),
                Err(error) => self.wrong(format!("open {}: {error}", path.display())),
            }
        }
    }

    fn wrong(&mut self, what: String) {
        if self.wrong.len() < 20 {
            self.wrong.insert(what);
        }
    }

    fn step(&mut self) {
        let (operation, result) = Span::of(|| match self.below(8) {
            0 | 1 => self.read_whole(None),
            2 => self.read_whole(Some("kit")),
            3 => self.read_whole(Some("kit@^1")),
            4 => self.read_held(),
            5 => self.look_for_nothing(),
            6 => self.list(),
            _ => rustix::fs::statfs(&self.root)
                .map(drop)
                .map_err(|error| format!("statfs: {error}")),
        });
        self.operations.push(operation);
        if let Err(what) = result {
            self.wrong(what);
        }
    }

    fn seen(self, spans: &[Span]) -> Seen {
        let views = spans.iter().map(|span| View::new(&self.operations, span));
        let slowest = self.operations.iter().map(Span::length).max();
        let slowest = slowest.unwrap_or_default().as_millis();
        Seen {
            views: views.map(|view| vec![view]).collect(),
            operations: self.operations.len() as u64,
            slowest: u64::try_from(slowest).unwrap(),
            wrong: self.wrong,
        }
    }

    fn read_whole(&mut self, name: Option<&str>) -> Result<(), String> {
        let (path, expected) = self.some_file(name);
        let failed = |error| format!("{}: {error}", path.display());
        let mut file = File::open(&path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        forget_pages(&file);
        if bytes != expected {
            return Err(format!("{}: wrong bytes", path.display()));
        }
        Ok(())
    }

    fn read_held(&mut self) -> Result<(), String> {
        let which = usize::try_from(self.below(self.held.len() as u64)).unwrap();
        let offset = self.below(100_000);
        let (file, expected) = &self.held[which];
        let start = usize::try_from(offset).unwrap().min(expected.len());
        let expected = &expected[start..(start + 9000).min(expected.len())];
        let mut bytes = vec![0; expected.len()];
        let read = file.read_exact_at(&mut bytes, start as u64);
        read.map_err(|error| format!("a file held open: {error}"))?;
        forget_pages(file);
        if bytes != expected {
            return Err("a file held open: wrong bytes".to_owned());
        }
        Ok(())
    }

    fn look_for_nothing(&mut self) -> Result<(), String> {
        let number = self.below(1 << 40);
        let path = self.root.join("acme").join(format!("no-{number}"));
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(format!("what is not there: {error}")),
            Ok(_) => Err("what is not there is there".to_owned()),
        }
    }

    fn list(&mut self) -> Result<(), String> {
        let number = self.below(7);
        let path = self.root.join(format!("acme/kit@1.0.0/dir-{number}"));
        let listed: Result<BTreeSet<String>, _> = fs::read_dir(&path)
            .map_err(|error| format!("list: {error}"))?
            .map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap()))
            .collect();
        let listed = listed.map_err(|error| format!("list: {error}"))?;
        let expected: BTreeSet<String> = (0..FILES)
            .filter(|index| *index as u64 % 7 == number)
            .map(|index| format!("file-{index}.txt"))
            .collect();
        if listed == expected {
            Ok(())
        } else {
            Err("list: wrong names".to_owned())
        }
    }
}

/// The next read is a request again.
fn forget_pages(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}
