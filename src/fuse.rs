//! The kernel's edge: decode, call, reply. All behaviour is in [`Fs`].
//!
//! A FUSE thread never waits: what [`Fs`] cannot answer at once moves, together with its reply, into
//! a task. A round trip costs 12–60 µs and a page-cache hit under 1 µs, and contents never change,
//! so the kernel is told to keep everything:
//!
//! - OPEN, OPENDIR, FLUSH, ACCESS, LSEEK and FSYNC are answered ENOSYS, which the kernel takes for
//!   "do not ask again, it always works". Where it does not know that, opening keeps the pages.
//! - IOCTL is answered ENOTTY first thing: CPython before 3.14 sends TCGETS with every `open()`.
//! - Every method of the trait is here, because the defaults log a warning a call, and some answer
//!   ENOSYS where a read-only filesystem says EROFS.
//!
//! [`errno`] is the one table from errors to error numbers. They reach `read(2)`, `cat` and `cp`
//! unchanged on Linux up to 6.18.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::{Instrument as _, debug, debug_span, warn};

use crate::error::Error;
use crate::fs::in_flight::Waiting;
use crate::fs::tree::{Attr, Directory, FOREVER, Kind, epoch};
use crate::fs::{Answer, Found, Fs};
use crate::metrics::Counter;
use crate::metrics::requests::{Operation, Outcome};

/// Largest READ and WRITE, which also bounds the pages of a request: 256 pages.
const MAX_TRANSFER: u32 = 1 << 20;

/// Read-ahead requests that the kernel may have under way. Above the threshold it would wait for
/// each read, and a stuck download must not make it do that.
const BACKGROUND: u16 = 1024;

/// How far beyond its deadline a request is answered at the latest.
const GRACE: Duration = Duration::from_millis(500);

/// The only handle there is: no state belongs to an open file.
const NO_HANDLE: FileHandle = FileHandle(0);

/// What the kernel and `df` count in.
const BLOCK: u32 = 4096;

/// The error number that a reader sees.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound { .. } | Error::Reference(_) => Errno::ENOENT,
        Error::Denied { .. } | Error::Yanked { .. } => Errno::EACCES,
        Error::WrongBytes { .. }
        | Error::Contradiction { .. }
        | Error::Malformed { .. }
        | Error::Rejected { .. }
        | Error::Manifest { .. }
        | Error::Io { .. }
        | Error::Config(_)
        | Error::Internal(_) => Errno::EIO,
        Error::Timeout { .. } => Errno::ETIMEDOUT,
        Error::Unreachable { .. } | Error::Offline { .. } => Errno::EHOSTUNREACH,
    }
}

/// What the kernel and the daemon that mounted agreed on, for a daemon that goes on serving the same
/// connection: the kernel does not say it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// The protocol's minor version that the kernel speaks.
    pub minor: u32,
    /// The capabilities that the kernel has.
    pub offered: u64,
    /// Those of them that are in use.
    pub agreed: u64,
}

impl Handshake {
    /// Whether the kernel can repeat requests whose daemon has died (Linux 6.9 and later).
    pub fn can_resend(&self) -> bool {
        const HAS_RESEND: u64 = 1 << 39;
        self.offered & HAS_RESEND != 0
    }
}

/// What the counters call an error number.
fn outcome(errno: Errno) -> Outcome {
    match errno.code() {
        libc::ENOENT => Outcome::Absent,
        libc::EACCES => Outcome::Denied,
        libc::ETIMEDOUT => Outcome::TimedOut,
        libc::EHOSTUNREACH => Outcome::Unreachable,
        _ => Outcome::Damaged,
    }
}

/// A request that may have to wait.
struct Asked<'a> {
    operation: Operation,
    ino: u64,
    name: Option<&'a str>,
    pid: u32,
    since: Instant,
}

impl<'a> Asked<'a> {
    fn new(operation: Operation, request: &Request, ino: INodeNo) -> Self {
        Self {
            operation,
            ino: ino.0,
            name: None,
            pid: request.pid(),
            since: Instant::now(),
        }
    }

    fn named(self, name: &'a str) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            operation: self.operation.label(),
            ino: self.ino,
            name: self.name.map(Into::into),
            pid: self.pid,
            since: self.since,
        }
    }
}

/// Serves one [`Fs`] to one kernel connection.
pub struct Fuse {
    fs: Arc<Fs>,
    runtime: Handle,
    owner: (u32, u32),
    /// Whether the kernel understands ENOSYS to OPEN and to OPENDIR.
    no_open: bool,
    no_opendir: bool,
    handshake: Arc<OnceLock<Handshake>>,
}

thread_local! {
    /// What the FUSE thread reads into; one a thread, as large as the largest READ so far.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Fuse {
    /// Serves `fs`; its nodes belong to `owner` (user and group id). Tasks run on `runtime`.
    pub fn new(fs: Arc<Fs>, runtime: Handle, owner: (u32, u32)) -> Self {
        Self {
            fs,
            runtime,
            owner,
            no_open: false,
            no_opendir: false,
            handshake: Arc::default(),
        }
    }

    /// What will be known as soon as the session has begun.
    pub fn handshake(&self) -> Arc<OnceLock<Handshake>> {
        Arc::clone(&self.handshake)
    }

    fn count(&self, counter: Counter) {
        self.fs.metrics().count(counter);
    }

    fn attr(&self, attr: &Attr) -> FileAttr {
        let (kind, perm) = match attr.kind {
            Kind::Directory => (FileType::Directory, 0o555),
            Kind::File => (FileType::RegularFile, 0o444),
            Kind::Symlink => (FileType::Symlink, 0o777),
        };
        FileAttr {
            ino: INodeNo(attr.ino),
            size: attr.size,
            blocks: match attr.kind {
                Kind::File => attr.size.div_ceil(512),
                Kind::Directory | Kind::Symlink => 0,
            },
            atime: attr.mtime,
            mtime: attr.mtime,
            ctime: attr.mtime,
            crtime: attr.mtime,
            kind,
            perm,
            // For a directory: not counted, as on other filesystems that do not.
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }

    /// Answers at once, or in a task.
    fn answer<T: Send + 'static>(
        &self,
        asked: Asked<'_>,
        answer: impl FnOnce() -> Answer<T>,
        reply: impl FnOnce(&Self, Result<T, Errno>) + Send + 'static,
    ) {
        // The layers below spawn tasks of their own.
        let _runtime = self.runtime.enter();
        match answer() {
            Answer::Now(answer) => reply(self, self.settle(&asked, answer)),
            Answer::Later(answer) => {
                let edge = self.clone();
                let waiting = asked.waiting();
                let asked_at = asked.since;
                let guard = self.fs.in_flight().enter(waiting.clone());
                let (kind, operation) = (asked.operation, asked.operation.label());
                let span = debug_span!("request", operation, ino = waiting.ino);
                let most = self.most(kind);
                let task = async move {
                    let answer = tokio::time::timeout(most, answer).await;
                    let asked = Asked {
                        operation: kind,
                        ino: waiting.ino,
                        name: waiting.name.as_deref(),
                        pid: waiting.pid,
                        since: asked_at,
                    };
                    let answer = answer.unwrap_or_else(|_| Err(edge.overdue(&asked, most)));
                    let answer = edge.settle(&asked, answer);
                    reply(&edge, answer);
                    drop(guard);
                };
                self.runtime.spawn(task.instrument(span));
            }
        }
    }

    /// How long a request may take whatever happens: its deadline, which everything below keeps by
    /// itself, and a moment.
    fn most(&self, operation: Operation) -> Duration {
        let deadline = match operation {
            Operation::Read => self.fs.content_timeout(),
            _ => self.fs.metadata_timeout(),
        };
        deadline + GRACE
    }

    /// Somebody below has lost a request: it is answered all the same, and that it came to this is
    /// counted.
    fn overdue(&self, asked: &Asked<'_>, most: Duration) -> Error {
        self.count(Counter::Overdue);
        let operation = asked.operation.label();
        warn!(
            operation,
            ino = asked.ino,
            ?most,
            "a request outlived its deadline"
        );
        Error::timeout(format_args!("{operation} of inode {:#x}", asked.ino))
    }

    /// Counts an answer.
    fn settle<T>(&self, asked: &Asked<'_>, answer: Result<T, Error>) -> Result<T, Errno> {
        match answer {
            Ok(answer) => {
                let requests = self.fs.metrics().requests();
                requests.observe(asked.operation, Outcome::Ok, asked.since.elapsed());
                let operation = asked.operation.label();
                self.fs.failures().clear(operation, asked.ino, asked.name);
                Ok(answer)
            }
            Err(error) => Err(self.failed(asked, &error)),
        }
    }

    /// Counts, keeps and logs a failure. What the user is to see of a failing source is logged by
    /// whoever notices that it changed its state, once.
    fn failed(&self, asked: &Asked<'_>, error: &Error) -> Errno {
        let operation = asked.operation.label();
        debug!(operation, ino = asked.ino, %error, "request failed");
        let errno = errno(error);
        let requests = self.fs.metrics().requests();
        requests.observe(asked.operation, outcome(errno), asked.since.elapsed());
        let failures = self.fs.failures();
        failures.record(operation, asked.ino, asked.name, error);
        if errno.code() != libc::ENOENT {
            self.count(Counter::Failed);
        }
        errno
    }

    fn refuse_write(&self, reply: ReplyEmpty) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }

    fn refuse_entry(&self, reply: ReplyEntry) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }

    fn answer_xattr(
        &self,
        operation: &'static str,
        ino: INodeNo,
        size: u32,
        bytes: Option<&[u8]>,
        reply: ReplyXattr,
    ) {
        let Some(bytes) = bytes else {
            return reply.error(Errno::ENODATA);
        };
        match u32::try_from(bytes.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(bytes),
            _ => {
                debug!(operation, ino = ino.0, size, "the buffer is too small");
                reply.error(Errno::ERANGE);
            }
        }
    }
}

impl Clone for Fuse {
    fn clone(&self) -> Self {
        Self {
            fs: Arc::clone(&self.fs),
            runtime: self.runtime.clone(),
            handshake: Arc::clone(&self.handshake),
            ..*self
        }
    }
}

fn reply_entry(edge: &Fuse, found: Result<Found, Errno>, reply: ReplyEntry) {
    match found {
        Ok(Found::Node(attr, entry_ttl, attr_ttl)) => {
            edge.fs.entered(attr.ino);
            reply.entry_with_ttls(&attr_ttl, &entry_ttl, &edge.attr(&attr), Generation(0));
        }
        Ok(Found::Absent(ttl)) => {
            // Number 0 tells the kernel to remember the absence.
            let nothing = Attr::directory(0, epoch());
            reply.entry_with_ttls(&Duration::ZERO, &ttl, &edge.attr(&nothing), Generation(0));
        }
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not READDIRPLUS_AUTO: it asks for attributes only at a directory's beginning unless some
        // were looked up meanwhile, and `find` and `ls` read all names before they look at any. Of a
        // hundred thousand files that made seventy thousand LOOKUPs.
        let wanted = InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_PARALLEL_DIROPS;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                warn!(
                    ?flag,
                    "this kernel lacks a capability; some requests will be slower"
                );
            }
        }
        self.no_open = config
            .capabilities()
            .contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = config
            .capabilities()
            .contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let offered = config.capabilities();
        let _ = self.handshake.set(Handshake {
            minor: config.kernel_abi().1,
            offered: offered.bits(),
            agreed: (offered & wanted).bits(),
        });
        // Each setter says what it would take instead when the kernel offers less.
        let _ = config.set_max_write(MAX_TRANSFER);
        if let Err(most) = config.set_max_readahead(MAX_TRANSFER) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Counter::Lookup);
        let Some(name) = name.to_str() else {
            // Every name here is UTF-8.
            return reply_entry(self, Ok(Found::Absent(FOREVER)), reply);
        };
        self.answer(
            Asked::new(Operation::Lookup, request, parent).named(name),
            || self.fs.lookup(parent.0, name),
            |edge, found| reply_entry(edge, found, reply),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.count(Counter::Forget);
        self.fs.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Counter::GetAttr);
        self.answer(
            Asked::new(Operation::GetAttr, request, ino),
            || self.fs.getattr(ino.0),
            |edge, answer| match answer {
                Ok((attr, ttl)) => reply.attr(&ttl, &edge.attr(&attr)),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Counter::ReadLink);
        self.answer(
            Asked::new(Operation::ReadLink, request, ino),
            || self.fs.readlink(ino.0),
            |_, answer| match answer {
                Ok(target) => reply.data(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Counter::Open);
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if self.no_open {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Counter::Read);
        let asked = Asked::new(Operation::Read, request, ino);
        BUFFER.with_borrow_mut(|buffer| {
            let _runtime = self.runtime.enter();
            let answer = match self.fs.read(ino.0, offset, size, buffer) {
                Answer::Now(Ok(None)) => {
                    self.fs
                        .metrics()
                        .add(Counter::ReadBytes, buffer.len() as u64);
                    let _ = self.settle(&asked, Ok(()));
                    return reply.data(buffer);
                }
                answer => answer,
            };
            self.answer(
                asked,
                || answer,
                |edge, answer| match answer {
                    Ok(bytes) => {
                        let bytes = bytes.unwrap_or_default();
                        edge.fs
                            .metrics()
                            .add(Counter::ReadBytes, bytes.len() as u64);
                        reply.data(&bytes);
                    }
                    Err(errno) => reply.error(errno),
                },
            );
        });
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.count(Counter::OpenDir);
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(
                NO_HANDLE,
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            );
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Counter::ReadDir);
        self.answer(
            Asked::new(Operation::ReadDir, request, ino),
            || self.fs.directory(ino.0),
            move |_, answer: Result<Directory, Errno>| match answer {
                Ok(directory) => {
                    directory.list(offset, |line| {
                        let kind = match line.kind {
                            Kind::Directory => FileType::Directory,
                            Kind::File => FileType::RegularFile,
                            Kind::Symlink => FileType::Symlink,
                        };
                        reply.add(INodeNo(line.ino), line.cookie, kind, line.name)
                    });
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(Counter::ReadDir);
        self.answer(
            Asked::new(Operation::ReadDir, request, ino),
            || self.fs.directory(ino.0),
            move |edge, answer: Result<Directory, Errno>| match answer {
                Ok(directory) => {
                    directory.list(offset, |line| {
                        // Where nothing is known, attributes that hold for no time at all: whoever
                        // needs them looks the name up. (Number 0 would say the same to the kernel,
                        // but glibc skips such entries.)
                        let (attr, ttl) = line.attr.unwrap_or_else(|| {
                            let attr = Attr {
                                ino: line.ino,
                                kind: line.kind,
                                size: 0,
                                mtime: epoch(),
                            };
                            (attr, Duration::ZERO)
                        });
                        let attr = edge.attr(&attr);
                        let full = reply.add(
                            INodeNo(line.ino),
                            line.cookie,
                            line.name,
                            &ttl,
                            &attr,
                            Generation(0),
                        );
                        // The kernel does not count these two.
                        if !full && !matches!(line.name, "." | "..") {
                            edge.fs.entered(line.ino);
                        }
                        full
                    });
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.count(Counter::StatFs);
        let usage = self.fs.usage();
        let blocks = usage.bytes.div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, usage.files, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.count(Counter::XAttr);
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let Some(name) = name.to_str().filter(|name| name.starts_with("user.")) else {
            // coreutils remember this per device and stop asking.
            return reply.error(Errno::EOPNOTSUPP);
        };
        let _runtime = self.runtime.enter();
        let asked = Asked::new(Operation::XAttr, request, ino);
        match self.fs.get_xattr(ino.0, name) {
            Ok(value) => {
                let bytes = value.as_ref().map(String::as_bytes);
                self.answer_xattr("getxattr", ino, size, bytes, reply);
            }
            Err(error) => reply.error(self.failed(&asked, &error)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Counter::XAttr);
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let _runtime = self.runtime.enter();
        let asked = Asked::new(Operation::XAttr, request, ino);
        match self.fs.list_xattr(ino.0) {
            Ok(names) => {
                let bytes: Vec<u8> = names
                    .iter()
                    .flat_map(|name| name.bytes().chain([0]))
                    .collect();
                self.answer_xattr("listxattr", ino, size, Some(&bytes), reply);
            }
            Err(error) => reply.error(self.failed(&asked, &error)),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Counter::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    // ----- answered ENOSYS: the kernel does without from then on --------------------------------

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Counter::Other);
        reply.error(Errno::ENOSYS);
    }

    // ----- nothing to release --------------------------------------------------------------------

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Counter::Other);
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.count(Counter::Other);
        reply.ok();
    }

    // ----- writes ----------------------------------------------------------------------------------

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse_entry(reply);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse_entry(reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.refuse_entry(reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.refuse_entry(reply);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write(reply);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write(reply);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.refuse_write(reply);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.refuse_write(reply);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse_write(reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        self.refuse_write(reply);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        self.count(Counter::Write);
        reply.error(Errno::EROFS);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::cache::Cache;
    use crate::fs;
    use crate::metrics::Metrics;
    use crate::reference::HostId;
    use crate::resolve::{self, Resolver};
    use crate::store::journal::Journal;
    use crate::store::{self, Policy, Store};

    fn edge(cache: &Path, timeout: Duration) -> Fuse {
        let host: HostId = "api.musher.dev".parse().unwrap();
        let cache = Arc::new(Cache::new(cache.to_owned()));
        let (metrics, journal) = (Arc::new(Metrics::default()), Arc::new(Journal::in_memory()));
        let resolver = Resolver::new(resolve::Settings {
            host: host.clone(),
            cache: Arc::clone(&cache),
            sources: Vec::new(),
            namespaces: Vec::new(),
            local_packs: false,
            respect_removal: false,
            timeout,
            metrics: Arc::clone(&metrics),
        });
        let store = Store::new(store::Settings {
            host,
            cache,
            sources: Vec::new(),
            journal: Arc::clone(&journal),
            state_dir: None,
            policy: Policy {
                metadata_timeout: timeout,
                content_timeout: timeout,
                ..Policy::default()
            },
            metrics: Arc::clone(&metrics),
        });
        let fs = Fs::new(fs::Settings {
            resolver,
            store,
            journal,
            user_xattr: false,
            metrics,
        });
        Fuse::new(fs, Handle::current(), (0, 0))
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_was_lost_below_is_answered_and_counted_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let edge = edge(dir.path(), Duration::from_secs(10));
        for operation in [Operation::Lookup, Operation::Read] {
            let (sender, answered) = oneshot::channel();
            let started = tokio::time::Instant::now();
            edge.answer(
                Asked {
                    operation,
                    ino: 1,
                    name: None,
                    pid: 0,
                    since: Instant::now(),
                },
                || Answer::<()>::Later(Box::pin(std::future::pending())),
                move |_, answer| assert!(sender.send(answer).is_ok()),
            );
            let answer = answered.await.unwrap();
            assert_eq!(answer.unwrap_err().code(), libc::ETIMEDOUT);
            assert_eq!(started.elapsed(), Duration::from_secs(10) + GRACE);
        }
        assert_eq!(edge.fs.metrics().get(Counter::Overdue), 2);
    }
}
