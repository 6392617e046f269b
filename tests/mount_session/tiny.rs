//! A tiny filesystem to mount: `hello.txt`, the unlisted probe file, and `stuck`, which is never
//! answered.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry,
    ReplyOpen, ReplyXattr, Request,
};
use musherfs::mount::touch;

use crate::harness::DEADLINE;

const TTL: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(crate) struct Tiny {
    pub(crate) requests: Arc<Requests>,
    never_answered: Mutex<Vec<ReplyEntry>>,
}

pub(crate) const HELLO: &[u8] = b"hello\n";

/// How many requests of which kind came.
#[derive(Default)]
pub(crate) struct Requests(Mutex<HashMap<&'static str, u32>>, Condvar);

impl Requests {
    fn count(&self, request: &'static str) {
        *self.0.lock().unwrap().entry(request).or_default() += 1;
        self.1.notify_all();
    }

    pub(crate) fn of(&self, request: &str) -> u32 {
        *self.0.lock().unwrap().get(request).unwrap_or(&0)
    }

    /// Waits for the first one.
    pub(crate) fn wait_for(&self, request: &str) {
        let none_came = |counts: &mut HashMap<_, _>| !counts.contains_key(request);
        let counts = self.0.lock().unwrap();
        let (_counts, waited) = self
            .1
            .wait_timeout_while(counts, DEADLINE, none_came)
            .unwrap();
        assert!(!waited.timed_out(), "no {request} came");
    }
}

fn attr(ino: u64) -> FileAttr {
    let is_root = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size: if is_root { 0 } else { HELLO.len() as u64 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if is_root { 0o555 } else { 0o444 },
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Filesystem for Tiny {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_PARALLEL_DIROPS;
        config
            .add_capabilities(wanted)
            .map_err(|_| std::io::Error::other("an old kernel"))
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("hello.txt") => reply.entry(&TTL, &attr(2), Generation(0)),
            Some(touch::PROBE_FILE) => reply.entry(&TTL, &attr(3), Generation(0)),
            Some("stuck") => {
                self.never_answered.lock().unwrap().push(reply);
                self.requests.count("stuck");
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count("open");
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count("opendir");
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.requests.count("getxattr");
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        reply.data(HELLO.get(offset..).unwrap_or_default());
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(INodeNo(2), 1, FileType::RegularFile, "hello.txt");
        }
        reply.ok();
    }
}
