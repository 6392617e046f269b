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

mod handshake;
mod request;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::error::Error;
use crate::fs::tree::{Attr, Directory, FOREVER, Kind, epoch};
use crate::fs::{Answer, Found, Fs};
use crate::metrics::Counter;
use crate::metrics::requests::Operation;
pub use handshake::Handshake;
use request::{Asked, unharmed};

/// Largest READ and WRITE, which also bounds the pages of a request: 256 pages.
const MAX_TRANSFER: u32 = 1 << 20;

/// Read-ahead requests that the kernel may have under way. Above the threshold it would wait for
/// each read, and a stuck download must not make it do that.
const BACKGROUND: u16 = 1024;

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
            let read = || self.fs.read(ino.0, offset, size, buffer);
            let answer = match unharmed(read) {
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
        self.answer(
            Asked::new(Operation::XAttr, request, ino),
            || self.fs.get_xattr(ino.0, name),
            move |edge, answer| match answer {
                Ok(value) => {
                    let bytes = value.as_ref().map(String::as_bytes);
                    edge.answer_xattr("getxattr", ino, size, bytes, reply);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Counter::XAttr);
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        self.answer(
            Asked::new(Operation::XAttr, request, ino),
            || self.fs.list_xattr(ino.0),
            move |edge, answer| match answer {
                Ok(names) => {
                    let names = names.iter();
                    let bytes: Vec<u8> = names.flat_map(|name| name.bytes().chain([0])).collect();
                    edge.answer_xattr("listxattr", ino, size, Some(&bytes), reply);
                }
                Err(errno) => reply.error(errno),
            },
        );
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
