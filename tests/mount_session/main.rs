//! Kernel mounts: obtained, held, served, and removed without harming anybody else's.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;
mod roles;
#[path = "../support/mod.rs"]
mod support;
mod tiny;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fuser::{Filesystem, KernelConfig, Request};
use musherfs::mount::{
    How, MountError, MountOptions, MountPoint, background, mount_and_serve, touch, unmount_command,
};
use rustix::mount::UnmountFlags;
use rustix::process::{Signal, kill_process};

use harness::{
    DEADLINE, Live, Place, User, can_mount, cat, end, exit_status, fs_types, mount_tmpfs, pid, run,
    start_daemon,
};
use roles::{DIR, ENTRY, NOBODY, ROLE, ROOTS, this_test};
use support::fuse::{cannot_run, require_program};
use tiny::HELLO;

#[test]
fn root_mounts_read_only_and_unmounts() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let dir = &live.dir.0;
    assert_eq!(cat(dir.join("hello.txt")), HELLO);
    assert!(live.mounted.is_current());

    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let row = table
        .lines()
        .find(|line| line.contains(&*dir.to_string_lossy()))
        .unwrap();
    assert!(row.contains(" ro,nosuid,nodev,"), "{row}");
    assert!(row.contains(" - fuse.musherfs musherfs ro,"), "{row}");
    assert!(row.contains("default_permissions"), "{row}");
    assert!(!row.contains("allow_other"), "{row}");

    let written = run("sh", ["-c", &format!("echo x > {}/new", dir.display())]);
    assert!(!written.status.success());
    let message = String::from_utf8_lossy(&written.stderr);
    assert!(message.contains("Read-only"), "{message}");

    live.mounted.unmount(How::Plain).unwrap();
    assert!(!live.mounted.is_current());
    live.ended().unwrap();
    assert!(fs_types(dir).is_empty());
    live.mounted.unmount(How::Plain).unwrap();
}

#[test]
fn an_outside_umount_ends_the_session() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    assert!(run("umount", [&live.dir.0]).status.success());
    live.ended().unwrap();
    assert!(!live.mounted.is_current());
}

#[test]
fn a_strangers_mount_on_the_same_path_stays() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    rustix::mount::unmount(&live.dir.0, UnmountFlags::empty()).unwrap();
    mount_tmpfs(&live.dir.0);
    for how in [How::Plain, How::Lazy, How::Force] {
        live.mounted.unmount(how).unwrap();
    }
    assert_eq!(fs_types(&live.dir.0), ["tmpfs"]);
}

#[test]
fn a_later_mount_of_ours_with_the_same_numbers_stays() {
    if !can_mount() {
        return;
    }
    let first = Live::new();
    rustix::mount::unmount(&first.dir.0, UnmountFlags::empty()).unwrap();
    first.ended().unwrap();
    // Usually gets the numbers that have just become free.
    let second = Live::on(Place(first.dir.0.clone()));
    for how in [How::Plain, How::Lazy, How::Force] {
        first.mounted.unmount(how).unwrap();
    }
    assert!(second.mounted.is_current());
    assert_eq!(cat(second.dir.0.join("hello.txt")), HELLO);
}

#[test]
fn a_covered_mount_is_left_to_who_covered_it() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    mount_tmpfs(&live.dir.0);
    for how in [How::Plain, How::Lazy] {
        let error = live.mounted.unmount(how).unwrap_err();
        assert!(
            matches!(&error, MountError::Covered { fs_type, .. } if fs_type == "tmpfs"),
            "{error:?}"
        );
    }
    assert_eq!(fs_types(&live.dir.0), ["fuse.musherfs", "tmpfs"]);
}

#[test]
fn a_mount_that_was_moved_is_unmounted_where_it_is() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let base = Place::new();
    // Shared mounts cannot be moved out of.
    mount_tmpfs(&base.0);
    rustix::mount::mount_change(&base.0, rustix::mount::MountPropagationFlags::PRIVATE).unwrap();
    let (from, to) = (base.0.join("from"), base.0.join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let moved = Live::on(Place(from.clone()));
    rustix::mount::mount_move(&from, &to).unwrap();

    assert!(moved.mounted.is_current());
    moved.mounted.unmount(How::Plain).unwrap();
    assert!(fs_types(&to).is_empty());
    moved.ended().unwrap();
    assert!(live.mounted.is_current());
}

#[test]
fn a_busy_mount_names_who_uses_it() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let dir = &live.dir.0;
    let inside = User::new(dir, ":");
    let reader = User::new(
        Path::new("/"),
        &format!("exec 9<{}/hello.txt", dir.display()),
    );

    for error in [
        live.mounted.unmount(How::Plain).unwrap_err(),
        unmount_command(dir, How::Plain).unwrap_err(),
    ] {
        let MountError::Busy { holders, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(holders.len(), 2, "{holders:?}");
        let text = error.to_string();
        for (user, uses) in [(&inside, "working directory"), (&reader, "open file")] {
            let part = format!("(pid {}, {uses})", user.0.id());
            assert!(text.contains(&part), "{text}");
        }
        assert!(error.hint().unwrap().contains("--lazy"));
        assert_eq!(error.exit_code(), 6);
    }
    assert!(live.mounted.is_current());

    unmount_command(dir, How::Lazy).unwrap();
    assert!(fs_types(dir).is_empty());
    drop((inside, reader));
    live.ended().unwrap();
}

#[test]
fn a_mapped_file_and_a_mount_below_keep_it_busy() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let dir = &live.dir.0;
    let hello = dir.join("hello.txt");
    // The descriptor is closed once the file is mapped.
    let script = format!(
        "import ctypes, os, sys\n\
         libc = ctypes.CDLL(None)\n\
         libc.mmap.restype = ctypes.c_void_p\n\
         libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3*[ctypes.c_int] + [ctypes.c_long]\n\
         fd = os.open('{}', os.O_RDONLY)\n\
         assert libc.mmap(None, 6, 1, 2, fd, 0) != ctypes.c_void_p(-1).value\n\
         os.close(fd)\n\
         print('ready', flush=True)\n\
         sys.stdin.read()",
        hello.display()
    );
    let mapper = Command::new("python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    if let Ok(mut child) = mapper {
        child
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut [0; 6])
            .unwrap();
        let user = User(child);
        let text = live.mounted.unmount(How::Plain).unwrap_err().to_string();
        let part = format!("(pid {}, mapped file)", user.0.id());
        assert!(text.contains(&part), "{text}");
    } else {
        cannot_run("the mapped file: python3 is not installed");
    }

    // A file can be mounted on, too.
    let flags = rustix::mount::MountFlags::BIND;
    let other = tempfile::NamedTempFile::new().unwrap();
    rustix::mount::mount(other.path(), &hello, "", flags, None).unwrap();
    let error = live.mounted.unmount(How::Plain).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("mounted on {}", hello.display())),
        "{text}"
    );
    rustix::mount::unmount(&hello, UnmountFlags::empty()).unwrap();
    live.mounted.unmount(How::Plain).unwrap();
}

#[test]
fn only_mounts_of_ours_are_unmounted_by_path() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let error = unmount_command(&place.0, How::Plain).unwrap_err();
    assert!(
        matches!(error, MountError::NotOurs { found: None, .. }),
        "{error:?}"
    );
    mount_tmpfs(&place.0);
    for how in [How::Plain, How::Lazy, How::Force] {
        let error = unmount_command(&place.0, how).unwrap_err();
        assert!(
            matches!(&error, MountError::NotOurs { found: Some(f), .. } if f == "tmpfs"),
            "{error:?}"
        );
    }
    assert_eq!(fs_types(&place.0), ["tmpfs"]);

    let live = Live::new();
    let link = place.0.join("link");
    std::os::unix::fs::symlink(&live.dir.0, &link).unwrap();
    unmount_command(&link, How::Plain).unwrap();
    live.ended().unwrap();
}

#[test]
fn a_mounted_directory_is_not_mounted_again() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let error = MountPoint::prepare(&live.dir.0).unwrap_err();
    assert!(
        matches!(error, MountError::AlreadyMounted { .. }),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("musherfs umount"));
}

#[test]
fn the_background_starts_serves_and_stops_on_sigterm() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let started = start_daemon(&place.0);
    assert_eq!(cat(place.0.join("hello.txt")), HELLO);
    let cwd = fs::read_link(format!("/proc/{}/cwd", started.pid)).unwrap();
    assert_eq!(cwd, Path::new("/"));
    for fd in 0..=2 {
        let target = fs::read_link(format!("/proc/{}/fd/{fd}", started.pid)).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "descriptor {fd}");
    }

    kill_process(pid(&started), Signal::HUP).unwrap();
    assert_eq!(cat(place.0.join("hello.txt")), HELLO);
    assert_eq!(end(&started, Signal::TERM), Some(0));
    assert!(fs_types(&place.0).is_empty());
}

#[test]
fn the_background_ends_when_it_is_unmounted_from_outside() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let started = start_daemon(&place.0);
    unmount_command(&place.0, How::Plain).unwrap();
    assert_eq!(exit_status(&started), Some(20));
}

#[test]
fn sigint_detaches_a_mount_in_use_and_ends_with_its_last_user() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let started = start_daemon(&place.0);
    let user = User::new(&place.0, ":");
    kill_process(pid(&started), Signal::INT).unwrap();
    // It leaves the tree first, and goes on for the user: then the user ends.
    let until = std::time::Instant::now() + DEADLINE;
    while !fs_types(&place.0).is_empty() {
        assert!(std::time::Instant::now() < until, "still mounted");
        std::thread::yield_now();
    }
    drop(user);
    assert_eq!(exit_status(&started), Some(31));
}

#[test]
fn a_failure_in_the_background_is_told_by_the_starter() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("precious"), "").unwrap();
    let error = background::start(this_test("daemon", dir.path()), ENTRY, DEADLINE).unwrap_err();
    assert!(error.to_string().contains("precious"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(error.exit_code(), 4);
}

#[test]
fn a_background_mount_that_does_not_answer_is_taken_away_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let program = this_test("mute daemon", &place.0);
    let error = background::start(program, ENTRY, Duration::from_secs(2)).unwrap_err();
    assert!(matches!(error, MountError::TimedOut { .. }), "{error:?}");
    assert!(fs_types(&place.0).is_empty());
}

#[test]
fn a_filesystem_that_fails_to_start_leaves_nothing_mounted() {
    struct Failing;
    impl Filesystem for Failing {
        fn init(&mut self, _req: &Request, _config: &mut KernelConfig) -> std::io::Result<()> {
            Err(std::io::Error::other("not today"))
        }
    }
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let point = MountPoint::prepare(&place.0).unwrap();
    let error = mount_and_serve(&point, &MountOptions::default(), Failing, 2).unwrap_err();
    assert!(error.to_string().contains("not today"), "{error}");
    assert!(fs_types(&place.0).is_empty());
}

#[test]
fn a_dead_mount_is_told_and_cleared_even_in_use() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let started = start_daemon(&place.0);
    let _user = User::new(&place.0, ":");
    assert_eq!(end(&started, Signal::KILL), None);

    let error = MountPoint::prepare(&place.0).unwrap_err();
    assert!(matches!(error, MountError::DeadMount { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("musherfs umount"));

    unmount_command(&place.0, How::Plain).unwrap();
    MountPoint::prepare(&place.0).unwrap();
}

#[test]
fn force_releases_who_waits_for_an_answer() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let mut waiting = Command::new("cat")
        .arg(live.dir.0.join("stuck"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    live.requests.wait_for("stuck");
    // Others are answered meanwhile.
    assert_eq!(cat(live.dir.0.join(touch::PROBE_FILE)), HELLO);
    unmount_command(&live.dir.0, How::Force).unwrap();
    assert!(!waiting.wait().unwrap().success());
    assert!(fs_types(&live.dir.0).is_empty());
    live.ended().unwrap();
}

#[test]
fn warming_up_teaches_the_kernel_what_need_not_be_asked() {
    if !can_mount() {
        return;
    }
    let live = Live::new();
    let mut program = this_test("touch", &live.dir.0);
    program.args(ENTRY);
    touch::warm_up_elsewhere(program, &live.dir.0, DEADLINE).unwrap();
    let learnt = ["open", "opendir", "getxattr"];
    for request in learnt {
        assert_eq!(live.requests.of(request), 1, "{request}");
    }
    assert_eq!(cat(live.dir.0.join("hello.txt")), HELLO);
    let listed = run("ls", [&live.dir.0]).stdout;
    assert_eq!(listed, b"hello.txt\n");
    for request in learnt {
        assert_eq!(live.requests.of(request), 1, "{request}");
    }

    touch::raise_readahead(live.mounted.id()).unwrap();
    let device = live.mounted.id().device;
    let raised = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(raised.trim(), "1024");
}

#[test]
fn a_plain_user_mounts_through_fusermount3() {
    if !can_mount() || !require_program("fusermount3") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let roots = Live::new();
    // In a mount namespace of its own, so that the machine's /dev/fuse keeps its mode, and
    // everything mounted here goes with the process.
    let script = r#"
        set -e
        mount -t tmpfs -o mode=0755 none "$1"
        mknod "$1/fuse" c 10 229
        chmod 0666 "$1/fuse"
        mount --bind "$1/fuse" /dev/fuse
        mkdir -p "$1/home" "$1/roots"
        chown "$3:$3" "$1/home"
        cp "$2" "$1/program"
        exec setpriv --reuid="$3" --regid="$3" --clear-groups "$1/program" \
            --ignored --exact roles::process_entry --nocapture --test-threads=1
    "#;
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(base.path())
        .arg(std::env::current_exe().unwrap())
        .arg(NOBODY.to_string())
        .env(ROLE, "plain user")
        .env(DIR, base.path())
        .env(ROOTS, &roots.dir.0)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    // The role ends the program itself: a summary would mean that it did not run.
    assert!(!stdout.contains("test result"), "{stdout}");
}
