//! Read-only by construction: every change is refused, and the numbers are true.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, XattrFlags,
    chmodat, chownat, linkat, mkdirat, mknodat, openat, removexattr, renameat, setxattr, symlinkat,
    unlinkat, utimensat,
};
use rustix::process::{getegid, geteuid};

use crate::support::fuse::{require_fuse, require_root};
use crate::support::mount::{TestMount, eventually, name_of, run};
use crate::support::registry::TestRegistry;

/// Every way to change something: what it is, and the error number that came of it.
fn attempts(dir: &Path) -> Vec<(&'static str, i32)> {
    let file = &dir.join("a.md");
    let folder = &dir.join("sub");
    let new = &dir.join("new");
    let mode = Mode::from_raw_mode(0o644);
    let none = AtFlags::empty();
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    let create = OFlags::CREATE | OFlags::WRONLY;
    let mut all = vec![
        ("create", openat(CWD, new, create, mode).map(drop)),
        ("truncate on opening", {
            openat(CWD, file, OFlags::WRONLY | OFlags::TRUNC, mode).map(drop)
        }),
        ("mkdir", mkdirat(CWD, new, mode)),
        (
            "mknod",
            mknodat(CWD, new, FileType::RegularFile, mode, 0 as Dev),
        ),
        ("fifo", mknodat(CWD, new, FileType::Fifo, mode, 0 as Dev)),
        ("unlink", unlinkat(CWD, file, none)),
        ("rmdir", unlinkat(CWD, folder, AtFlags::REMOVEDIR)),
        ("rename", renameat(CWD, file, CWD, new)),
        ("rename of a directory", renameat(CWD, folder, CWD, new)),
        ("link", linkat(CWD, file, CWD, new, none)),
        ("symlink", symlinkat("a.md", CWD, new)),
        ("chmod", chmodat(CWD, file, mode, none)),
        ("chmod of a directory", chmodat(CWD, dir, mode, none)),
        ("chown", chownat(CWD, file, Some(geteuid()), None, none)),
        ("utimens", utimensat(CWD, file, &times, none)),
        (
            "setxattr",
            setxattr(file, "user.x", b"y", XattrFlags::empty()),
        ),
        ("removexattr", removexattr(file, "user.musher.state")),
    ];
    let truncated = std::process::Command::new("python3")
        .args(["-c", "import os, sys\ntry: os.truncate(sys.argv[1], 0)\nexcept OSError as e: sys.exit(e.errno)"])
        .arg(file)
        .status()
        .unwrap();
    let truncated = match truncated.code() {
        Some(0) => Ok(()),
        code => Err(rustix::io::Errno::from_raw_os_error(code.unwrap())),
    };
    all.push(("truncate", truncated));
    all.into_iter()
        .map(|(what, result)| (what, result.err().map_or(0, |errno| errno.raw_os_error())))
        .collect()
}

#[test]
fn every_change_is_refused_as_on_a_read_only_filesystem() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let files: [(&str, &[u8]); 2] = [("a.md", b"content\n"), ("sub/b.md", b"b\n")];
    registry.publish("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry).args(&["-o", "user_xattr"]).start();
    let version = mount.path("acme/kit@1.0.0");
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"content\n".to_vec()));

    for (what, errno) in attempts(&version) {
        assert_eq!(name_of(errno), "EROFS", "{what}");
    }
    for options in [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::WRONLY | OFlags::APPEND,
        OFlags::RDWR | OFlags::CREATE,
    ] {
        let opened = openat(CWD, version.join("a.md"), options, Mode::empty());
        assert_eq!(opened.unwrap_err(), rustix::io::Errno::ROFS, "{options:?}");
    }
    for dir in ["", "acme"] {
        let error = fs::create_dir(mount.path(dir).join("new")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let error = fs::remove_file(mount.path("acme/kit")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
    // The kernel itself refuses: nothing of this came to the daemon.
    assert_eq!(mount.counter("fuse_write"), 0);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"content\n".to_vec()));
    mount.unmount();
}

#[test]
fn changes_are_refused_even_when_root_has_made_the_mount_writable() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = TestRegistry::start();
    let files: [(&str, &[u8]); 2] = [("a.md", b"content\n"), ("sub/b.md", b"b\n")];
    registry.publish("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry).args(&["-o", "user_xattr"]).start();
    let version = mount.path("acme/kit@1.0.0");
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"content\n".to_vec()));
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount_remount(mount.dir(), flags, c"").unwrap();

    for (what, errno) in attempts(&version) {
        assert_eq!(name_of(errno), "EROFS", "{what}");
    }
    // Opening asks nobody by now, so the writing itself fails.
    let mut options = File::options();
    let file = options
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(version.join("a.md"));
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(mount.counter("fuse_write") > 10);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"content\n".to_vec()));
}

#[test]
fn modes_owners_times_and_sizes_are_what_tools_expect() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let big = vec![b'x'; 10_000];
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("big.md", &big), ("sub/empty", b"")],
    );
    let mount = TestMount::of(&registry).start();
    let mode = |path: &str| mount.stat(path).unwrap().permissions().mode() & 0o7777;
    for dir in ["", "acme", "acme/kit@1.0.0", "acme/kit@1.0.0/sub"] {
        assert_eq!(mode(dir), 0o555, "{dir}");
    }
    for path in [
        "",
        "acme",
        "acme/kit",
        "acme/kit@1.0.0",
        "acme/kit@1.0.0/big.md",
    ] {
        let meta = mount.stat(path).unwrap();
        assert_eq!(meta.uid(), geteuid().as_raw(), "{path}");
        assert_eq!(meta.gid(), getegid().as_raw(), "{path}");
        assert_eq!(meta.mtime(), 315_619_200, "{path}");
        assert_eq!((meta.atime(), meta.ctime()), (meta.mtime(), meta.mtime()));
    }
    let big = mount.stat("acme/kit@1.0.0/big.md").unwrap();
    assert_eq!(mode("acme/kit@1.0.0/big.md"), 0o444);
    assert_eq!((big.len(), big.blocks(), big.nlink()), (10_000, 20, 1));
    assert_eq!(big.blksize(), 4096);
    let empty = mount.stat("acme/kit@1.0.0/sub/empty").unwrap();
    assert_eq!((empty.len(), empty.blocks()), (0, 0));
    let link = mount.stat("acme/kit").unwrap();
    assert_eq!((link.len(), mode("acme/kit")), (9, 0o777));

    // du(1) counts blocks, also of what is not cached.
    let du = run(
        "du",
        ["-s".as_ref(), mount.path("acme/kit@1.0.0").as_os_str()],
    );
    assert_eq!(du.split('\t').next(), Some("10"));
    assert_eq!(registry.content_requests(), 0);

    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let row = table
        .lines()
        .find(|line| line.contains(mount.dir().to_str().unwrap()));
    let row = row.unwrap();
    assert!(row.contains(" ro,nosuid,nodev,"), "{row}");
    assert!(row.contains(" - fuse.musherfs "), "{row}");
}

#[test]
fn df_tells_how_much_is_cached_and_that_nothing_is_free() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let big = vec![b'x'; 100_000];
    registry.publish("acme", "kit", "1.0.0", &[("big.md", &big)]);
    let mount = TestMount::of(&registry).start();
    mount.read("acme/kit/big.md").unwrap();
    let home = mount.home().clone();
    mount.unmount();
    let mount = TestMount::of(&registry).home(&home).start();
    let usage = eventually("the cache to be measured", || {
        let usage = rustix::fs::statvfs(mount.dir()).unwrap();
        (usage.f_blocks > 0).then_some(usage)
    });
    assert_eq!(usage.f_blocks, 100_000_u64.div_ceil(usage.f_frsize));
    assert_eq!((usage.f_bfree, usage.f_bavail, usage.f_ffree), (0, 0, 0));
    assert_eq!((usage.f_files, usage.f_namemax), (1, 255));
    let df = run(
        "df",
        [
            "--output=source,fstype,pcent".as_ref(),
            mount.dir().as_os_str(),
        ],
    );
    assert!(df.contains("musherfs"), "{df}");
    assert!(df.contains("fuse.musherfs") && df.contains("100%"), "{df}");
}

#[test]
fn attributes_tell_what_a_file_is() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("prompts/a.md", b"hello\n")]);
    let mount = TestMount::of(&registry).args(&["-o", "user_xattr"]).start();
    let get = |path: &str| {
        let path = mount.path(path);
        let dump = run(
            "getfattr",
            ["-d", "-h", "-m", "-", "--absolute-names"]
                .map(Into::into)
                .into_iter()
                .chain([path.into_os_string()]),
        );
        let lines = dump
            .lines()
            .filter_map(|line| line.strip_prefix("user.musher."));
        let pairs = lines.filter_map(|line| line.split_once('='));
        pairs
            .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let file = "acme/kit@1.0.0/prompts/a.md";
    let before = get(file);
    assert_eq!(before["cached"], "no");
    assert_eq!(registry.content_requests(), 0);
    assert_eq!(mount.read(file), Ok(b"hello\n".to_vec()));
    let after = get(file);
    for (name, value) in [
        (
            "sha256",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ),
        ("size", "6"),
        ("namespace", "acme"),
        ("bundle", "kit"),
        ("version", "1.0.0"),
        ("state", "published"),
        ("cached", "yes"),
    ] {
        assert_eq!(after[name], value, "{name}: {after:?}");
    }
    assert!(after["source"].contains(&registry.host()), "{after:?}");
    assert_eq!(get("acme")["namespace"], "acme");

    // Names of others are not served, in the way that makes coreutils stop asking.
    let mut value = [0_u8; 64];
    let path = mount.path(file);
    for (name, errno) in [
        ("security.selinux", rustix::io::Errno::OPNOTSUPP),
        ("system.posix_acl_access", rustix::io::Errno::OPNOTSUPP),
        ("user.musher.nothing", rustix::io::Errno::NODATA),
        ("user.other", rustix::io::Errno::NODATA),
    ] {
        let got = rustix::fs::getxattr(&path, name, &mut value[..]);
        assert_eq!(got, Err(errno), "{name}");
    }
    let mut short = [0_u8; 8];
    let got = rustix::fs::getxattr(&path, "user.musher.sha256", &mut short[..]);
    assert_eq!(got, Err(rustix::io::Errno::RANGE));
    mount.unmount();

    // Without the option there are none, and after the first question nobody is asked.
    let mount = TestMount::of(&registry).start();
    let before = mount.counter("fuse_xattr");
    let got = rustix::fs::getxattr(mount.path(file), "user.musher.sha256", &mut value[..]);
    assert_eq!(got, Err(rustix::io::Errno::OPNOTSUPP));
    assert_eq!(mount.counter("fuse_xattr"), before);
}
