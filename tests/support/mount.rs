//! Real mounts, made by the real program, that clear up after themselves.
//!
//! ```ignore
//! let registry = TestRegistry::start();
//! registry.publish("acme", "kit", "1.0.0", &[("a.md", b"hello\n")]);
//! let mount = TestMount::of(&registry).arg("--readahead=0").start();
//! assert_eq!(mount.read("acme/kit/a.md"), Ok(b"hello\n".to_vec()));
//! ```
//!
//! Each has a [`Home`] of its own unless it is given one: cache, state and sockets, so that neither
//! settings nor mounts of this machine matter. Whatever a test does to it, when it is dropped
//! nothing is mounted and its daemon is gone. Only that daemon: it is held by a descriptor of its
//! process, not by a number that could be somebody else's by now.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Advice, Timespec, fadvise};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::registry::TestRegistry;

/// Generous: only a defect takes as long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How often to look for what nobody tells.
const GLANCE: Duration = Duration::from_millis(20);

/// Does `work` in a thread, and fails the test if it takes longer than [`DEADLINE`]: a system call
/// in a mount that does not answer cannot be interrupted.
#[track_caller]
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(_) if thread.is_finished() => panic!("{what}: it panicked"),
        Err(_) => panic!("{what}: still not done after {DEADLINE:?}"),
    }
}

/// Looks until there is something to see, for what has no event to wait for.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(GLANCE);
    }
}

/// Reads a file of a mount: its bytes, or the error number.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, i32> {
    let path = path.to_owned();
    within("reading", move || fs::read(path).map_err(|e| number(&e)))
}

/// The error number of a failed system call.
pub(crate) fn number(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}

/// What a failed `read(2)` may say for `errno`: the same on Linux up to 6.18, maybe EIO later.
#[track_caller]
pub(crate) fn assert_read_fails<T: Debug>(result: Result<T, i32>, errno: i32, why: &str) {
    let seen = result.map_err(name_of);
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().unwrap().split(['.', '-']);
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    let may_be_eio = (next(), next()) > (Some(6), Some(18));
    match seen {
        Err(seen) if seen == name_of(errno) => {}
        Err(seen) if may_be_eio && seen == "EIO" => {}
        seen => panic!("{why}: {seen:?} instead of {}", name_of(errno)),
    }
}

/// The names of the numbers that a mount answers with, for messages.
pub(crate) fn name_of(errno: i32) -> String {
    match errno {
        libc::ENOENT => "ENOENT".into(),
        libc::EACCES => "EACCES".into(),
        libc::EIO => "EIO".into(),
        libc::ETIMEDOUT => "ETIMEDOUT".into(),
        libc::EHOSTUNREACH => "EHOSTUNREACH".into(),
        libc::EROFS => "EROFS".into(),
        other => format!("error {other}"),
    }
}

/// Makes the kernel drop the pages that it keeps of a file, so that the next read asks the daemon.
pub(crate) fn forget_pages(path: &Path) {
    let file = File::open(path).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// All names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let dir = dir.to_owned();
    within("listing", move || {
        let entries = fs::read_dir(&dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    })
}

/// The output's text, both streams, for messages.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    succeed(Command::new(program).args(args).stdin(Stdio::null()))
}

/// The same for a command that is ready to run.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Where a user's Musher tools keep their things.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The shared cache's root; it need not exist.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    /// Where the cache keeps the blob of this content.
    pub(crate) fn blob(&self, content: &[u8]) -> PathBuf {
        let hex = musherfs::digest::Digest::of(content).hex();
        let blobs = self.cache().join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    /// `musherfs` with this home and nothing else of the environment.
    pub(crate) fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musherfs"));
        command.args(args).stdin(Stdio::null());
        self.environment(&mut command);
        command
    }

    /// Sets this home, and nothing else, in the environment of any program.
    pub(crate) fn environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("MUSHER_HOME", self.path());
    }

    pub(crate) fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command(args).output().unwrap()
    }

    /// What `musherfs status --json` says of all mounts of this home.
    pub(crate) fn statuses(&self) -> Vec<Value> {
        let json = succeed(&mut self.command(["status", "--json"]));
        serde_json::from_str(&json).unwrap()
    }

    /// The status that `is_it`. The command waits for a daemon no longer than a second, which on a
    /// busy machine may be too short: then it fails, and is run again.
    #[track_caller]
    fn status(&self, whose: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("a status of {whose}"), || {
            let output = self.run(["status", "--json"]);
            let statuses: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
            statuses.into_iter().find(&is_it)
        })
    }

    /// Lets every cached ref expire so many seconds from now; negative for the past.
    pub(crate) fn refs_expire_in(&self, seconds: f64) {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        self.edit("refs", ".json", |json| {
            json["expiresAt"] = (now + seconds).into()
        });
    }

    /// Makes every cached manifest look as if it had been fetched long ago.
    pub(crate) fn manifests_are_old(&self) {
        self.edit("manifests", ".meta.json", |json| {
            json["fetchedAt"] = "2020-01-01T00:00:00Z".into();
        });
    }

    fn edit(&self, folder: &str, ending: &str, change: impl Fn(&mut Value)) {
        let mut edited = 0;
        for entry in walkdir::WalkDir::new(self.cache().join(folder)) {
            let path = entry.unwrap().into_path();
            if path.to_string_lossy().ends_with(ending) {
                let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                change(&mut json);
                fs::write(&path, json.to_string()).unwrap();
                edited += 1;
            }
        }
        assert!(edited > 0, "nothing is cached below {folder}");
    }
}

/// A mount that is about to be made.
pub(crate) struct Mounting {
    /// The option that names the registry, and its value.
    registry: [String; 2],
    home: Arc<Home>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Mounting {
    /// Shares cache and state with other mounts.
    pub(crate) fn home(mut self, home: &Arc<Home>) -> Self {
        self.home = Arc::clone(home);
        self
    }

    pub(crate) fn arg(self, arg: &str) -> Self {
        self.args(&[arg])
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Mounts in the foreground, as a child of the test, and returns once the program says that it
    /// has mounted.
    #[track_caller]
    pub(crate) fn start(self) -> TestMount {
        let place = Place::new();
        let mut child = self
            .command(&place)
            .arg("--foreground")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        let process = Process::new(child.id(), Some(child));
        let mount = TestMount {
            process,
            log: Some(log),
            place,
            home: self.home,
        };
        mount.wait_for_log(" mounted ");
        mount
    }

    /// Mounts in the background: returns when the program does, the mount warmed up.
    #[track_caller]
    pub(crate) fn start_in_background(self) -> TestMount {
        let place = Place::new();
        let mut command = self.command(&place);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(output.stdout, b"", "what is printed is data");
        TestMount::found(place, &self.home)
    }

    fn command(&self, place: &Place) -> Command {
        let mut command = self.home.command(["mount"]);
        command.args(&self.registry);
        command.args(&self.args).arg(place.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A mount; gone when dropped.
pub(crate) struct TestMount {
    // In the order of their dropping: the daemon ends before the directories go.
    process: Process,
    log: Option<Log>,
    place: Place,
    home: Arc<Home>,
}

impl TestMount {
    /// A mount of this registry.
    pub(crate) fn of(registry: &TestRegistry) -> Mounting {
        Self::of_url(&registry.url())
    }

    /// A mount of the registry at this URL.
    pub(crate) fn of_url(url: &str) -> Mounting {
        Self::of_registry("--api-url", url)
    }

    /// A mount of an OCI registry.
    pub(crate) fn of_oci(registry: &str) -> Mounting {
        Self::of_registry("--oci", registry)
    }

    fn of_registry(option: &str, registry: &str) -> Mounting {
        Mounting {
            registry: [option.to_owned(), registry.to_owned()],
            home: Home::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// A mount that somebody has made in the background, with this home.
    #[track_caller]
    pub(crate) fn found(place: Place, home: &Arc<Home>) -> Self {
        let dir = place.path().to_str().unwrap();
        let status = home.status("the mount", |status| status["mountpoint"] == dir);
        let pid = u32::try_from(status["pid"].as_u64().unwrap()).unwrap();
        Self {
            process: Process::new(pid, None),
            log: None,
            place,
            home: Arc::clone(home),
        }
    }

    /// The mountpoint.
    pub(crate) fn dir(&self) -> &Path {
        self.place.path()
    }

    /// A path below the mountpoint.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir().join(path)
    }

    /// Reads a file: its bytes, or the error number.
    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, i32> {
        read(&self.path(path))
    }

    /// Whether a name is there (links are not followed), or the error number.
    #[track_caller]
    pub(crate) fn stat(&self, path: &str) -> Result<fs::Metadata, i32> {
        let path = self.path(path);
        within("stat", move || {
            fs::symlink_metadata(path).map_err(|e| number(&e))
        })
    }

    /// What a symlink points at, or the error number.
    #[track_caller]
    pub(crate) fn readlink(&self, path: &str) -> Result<String, i32> {
        let path = self.path(path);
        within("readlink", move || {
            let target = fs::read_link(path).map_err(|e| number(&e))?;
            Ok(target.into_os_string().into_string().unwrap())
        })
    }

    /// The names in a directory, sorted.
    #[track_caller]
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        names(&self.path(path))
    }

    pub(crate) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// What the daemon says of itself, over its socket.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let pid = self.pid();
        self.home
            .status("the daemon", |status| status["pid"] == pid)
    }

    /// All counters.
    #[track_caller]
    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.status()["counters"].clone()).unwrap()
    }

    /// One counter.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters()[name]
    }

    /// What was logged so far, in the foreground.
    pub(crate) fn log(&self) -> String {
        let log = self.log.as_ref().expect("a mount in the foreground");
        log.0.0.lock().unwrap().lines.clone()
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, text: &str) {
        let log = self.log.as_ref().expect("a mount in the foreground");
        let state = log.0.0.lock().unwrap();
        let wait = log.0.1.wait_timeout_while(state, DEADLINE, |state| {
            !state.lines.contains(text) && !state.is_over
        });
        let state = wait.unwrap().0;
        assert!(
            state.lines.contains(text),
            "the log never said {text:?}: {}",
            state.lines
        );
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.process.handle, signal).unwrap();
    }

    /// Waits until the daemon has ended; how it did, if it is a child of the test.
    ///
    /// A mount namespace that was made meanwhile, as other tests make them, has a copy of the mount,
    /// and it is served until that is gone, too.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let mut end = Instant::now() + DEADLINE;
        let latest = Instant::now() + 5 * DEADLINE;
        while !self.process.wait(Duration::from_secs(2)) {
            let copies = holders_of_copies(self.dir());
            if !copies.is_empty() {
                end = (Instant::now() + DEADLINE).min(latest);
            }
            assert!(
                Instant::now() < end,
                "the daemon does not end; other mount namespaces with it: {copies:?}; its log: {}",
                self.log.as_ref().map_or_else(String::new, |_| self.log())
            );
        }
        self.process
            .child
            .as_mut()
            .map(|child| child.wait().unwrap())
    }

    /// Whether the daemon is running and its mount answers.
    pub(crate) fn is_alive(&self) -> bool {
        let dir = self.dir().to_owned();
        let answers = within("statfs", move || rustix::fs::statfs(&dir).is_ok());
        answers && !self.process.wait(Duration::ZERO)
    }

    /// Unmounts as a user would, and waits for the daemon's end.
    #[track_caller]
    pub(crate) fn unmount(self) {
        self.unmount_and(|| {});
    }

    /// The same, with a look at what is left before the directory goes.
    #[track_caller]
    pub(crate) fn unmount_and(mut self, look: impl FnOnce()) {
        let mut command = self.home.command(["umount"]);
        succeed(command.arg(self.place.path()));
        if let Some(status) = self.ended() {
            assert!(status.success(), "{status}; log: {}", self.log());
        }
        assert_eq!(fs_types(self.dir()), [""; 0]);
        look();
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(log) = &self.log
            && let Ok(state) = log.0.0.lock()
        {
            eprintln!("--- log of the mount:\n{}---", state.lines);
        }
        // Readers first: without a daemon they get an error.
        self.place.clear();
        self.process.kill();
    }
}

/// The processes whose mount namespace has something mounted on `dir`.
fn holders_of_copies(dir: &Path) -> Vec<String> {
    let has_it = |process: &Path| {
        let table = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        let dir = dir.to_str().unwrap();
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(dir))
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap());
    processes
        .filter(|process| has_it(&process.path()))
        .map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("{} {}", process.file_name().display(), name.trim())
        })
        .collect()
}

/// The types of the filesystems mounted on a directory, the one below first.
pub(crate) fn fs_types(dir: &Path) -> Vec<String> {
    let table = musherfs::mount::mountinfo::MountTable::read().unwrap();
    table
        .iter()
        .filter(|mount| mount.mountpoint == dir)
        .map(|mount| mount.fs_type.clone())
        .collect()
}

/// A directory to mount on, in one that everybody may enter; cleared when dropped.
pub(crate) struct Place {
    path: PathBuf,
    _base: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // As the kernel's table names it.
        let path = fs::canonicalize(base.path()).unwrap().join("mnt");
        fs::create_dir(&path).unwrap();
        Self { path, _base: base }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches whatever is mounted here.
    pub(crate) fn clear(&self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        while rustix::mount::unmount(self.path(), flags).is_ok() {}
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A filesystem in memory of limited size, mounted on a directory until it is dropped.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one; `options` as in `size=64k`.
    pub(crate) fn on(dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", dir, "tmpfs", flags, Some(options.as_c_str())).unwrap();
        Self(dir.to_owned())
    }

    /// Nobody can write to it any more.
    pub(crate) fn make_read_only(&self) {
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&self.0, flags, c"").unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A process, held by a descriptor.
struct Process {
    pid: u32,
    handle: OwnedFd,
    child: Option<Child>,
}

impl Process {
    fn new(pid: u32, child: Option<Child>) -> Self {
        let raw = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Self {
            handle: pidfd_open(raw, PidfdFlags::empty()).unwrap(),
            pid,
            child,
        }
    }

    /// Whether it ends within `patience`.
    fn wait(&self, patience: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let mut ready = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut ready, Some(&timeout)).unwrap() > 0
    }

    fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        self.wait(DEADLINE);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

#[derive(Default)]
struct LogState {
    lines: String,
    is_over: bool,
}

/// What a program writes to its stderr, as it comes.
struct Log(Arc<(Mutex<LogState>, Condvar)>);

impl Log {
    fn follow(from: impl Read + Send + 'static) -> Self {
        let shared = Arc::<(Mutex<LogState>, Condvar)>::default();
        let log = Self(Arc::clone(&shared));
        std::thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let mut state = shared.0.lock().unwrap();
                state.lines.push_str(&String::from_utf8_lossy(&line));
                shared.1.notify_all();
                line.clear();
            }
            shared.0.lock().unwrap().is_over = true;
            shared.1.notify_all();
        });
        log
    }
}
