//! `musherfs mount` and `umount` as commands: what they say, when they return, and what they leave.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;

use crate::support::fuse::{require_fuse, require_root};
use crate::support::mount::{
    Home, Place, TestMount, Tmpfs, fs_types, names, run, said, succeed, within,
};
use crate::support::registry::{RouteKind, TestRegistry};

pub(crate) fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"a\n"), ("b.md", b"b\n")],
    );
    registry
}

/// Asserts that a command failed as all of them do: nothing on stdout, an error with what it was.
#[track_caller]
fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    assert!(output.stdout.is_empty(), "{}", said(output));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("error: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A process that sits in a directory until it is dropped.
struct Sitting(Child);

impl Sitting {
    fn in_dir(dir: &std::path::Path) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read _"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The session of a process: the sixth field of its `stat`. 0 is a session whose leader lives in
/// an outer PID namespace, as in a container that was entered from outside.
fn session_of(pid: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    after_name.split(' ').nth(3).unwrap().parse().unwrap()
}

#[test]
fn mounting_in_the_background_returns_when_the_mount_answers() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let place = Place::new();
    let home = Home::new();
    let mut command = home.command(["-v", "mount", "--api-url", &registry.url()]);
    let output = command.arg(place.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs_types(place.path()), ["fuse.musherfs"]);
    let mount = TestMount::found(place, &home);
    let told = String::from_utf8_lossy(&output.stderr);
    let dir = mount.dir().to_str().unwrap().to_owned();
    let stat = fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    let keeper = stat.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    assert!(
        told.contains(&dir) && told.contains(&format!("kept by process {}", keeper.unwrap())),
        "{told}"
    );
    // The daemon holds none of its starter's streams: otherwise output() would not have returned.
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    // It has a session of its own, so that the terminal's end is not its end.
    assert_ne!(session_of(mount.pid()), session_of(std::process::id()));
    let cwd = fs::read_link(format!("/proc/{}/cwd", mount.pid())).unwrap();
    assert_eq!(cwd.to_str(), Some("/"), "it keeps no other filesystem busy");

    let table = succeed(&mut home.command(["status"]));
    assert!(
        table.contains(&dir) && table.contains(&registry.url()),
        "{table}"
    );
    mount.unmount();
    assert_eq!(succeed(&mut home.command(["status", "--json"])), "[]\n");
}

#[test]
fn a_missing_mountpoint_is_created_and_a_marker_may_lie_in_it() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let place = Place::new();
    fs::remove_dir(place.path()).unwrap();
    let home = Home::new();
    let mut command = home.command(["mount", "--api-url", &registry.url()]);
    command.arg(place.path());
    succeed(&mut command);
    let mount = TestMount::found(place, &home);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    mount.unmount();

    let place = Place::new();
    fs::write(place.path().join("NOT-MOUNTED"), "").unwrap();
    let mut command = home.command(["mount", "--api-url", &registry.url()]);
    succeed(command.arg(place.path()));
    let mount = TestMount::found(place, &home);
    assert!(!mount.names("").contains(&"NOT-MOUNTED".to_owned()));
    let marker = mount.path("NOT-MOUNTED");
    mount.unmount_and(|| assert!(marker.exists()));
}

#[test]
fn what_cannot_be_mounted_is_said_with_the_right_exit_code() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let url = registry.url();
    let home = Home::new();
    let base = tempfile::tempdir().unwrap();
    let full = base.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious.txt"), "").unwrap();
    let file = base.path().join("file");
    fs::write(&file, "").unwrap();
    let empty = base.path().join("empty");
    let (full, file, empty) = (
        full.to_str().unwrap(),
        file.to_str().unwrap(),
        empty.to_str().unwrap(),
    );
    for foreground in [&[][..], &["--foreground"]] {
        let try_it = |args: &[&str]| home.run(["mount"].iter().chain(foreground).chain(args));
        let output = try_it(&["--api-url", &url, full]);
        assert_fails(&output, 4, &["precious.txt", "hint: "]);
        let output = try_it(&["--api-url", &url, file]);
        assert_fails(&output, 4, &["directory"]);
        let output = try_it(&["--api-url", &url, "/proc"]);
        assert_fails(&output, 4, &["proc"]);
        let output = try_it(&["--api-url", "http://registry.example", empty]);
        assert_fails(&output, 4, &["registry.example", "--insecure-http"]);
        let output = try_it(&["--api-url", "no url", empty]);
        assert_fails(&output, 4, &["--api-url"]);
        let output = try_it(&["-o", "no_such_option", empty]);
        assert_fails(&output, 64, &["no_such_option", "hint: "]);
        let output = try_it(&["-o", "remount", empty]);
        assert_fails(&output, 64, &["remount"]);
        let output = try_it(&["--no-such-flag", empty]);
        assert_fails(&output, 64, &["--no-such-flag"]);
        let output = try_it(&["--ca-file", "/no/such/file.pem", empty]);
        assert_ne!(output.status.code(), Some(0));
        assert_eq!(
            fs::read_dir(base.path()).unwrap().count(),
            2,
            "nothing was made"
        );
    }
    let mut command = home.command(["mount", empty]);
    let output = command.env("MUSHER_API_URL", "no url").output().unwrap();
    assert_fails(&output, 4, &["MUSHER_API_URL"]);
    assert_eq!(registry.lines(), [""; 0]);
}

#[test]
fn mounting_twice_is_refused_and_the_first_mount_stays() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = TestMount::of(&registry).start();
    let url = registry.url();
    let dir = mount.dir().to_str().unwrap();
    let output = mount.home().run(["mount", "--api-url", &url, dir]);
    assert_fails(&output, 4, &[dir, "hint: ", "umount"]);
    assert_eq!(fs_types(mount.dir()), ["fuse.musherfs"]);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    mount.unmount();
}

#[test]
fn unmounting_twice_or_what_is_not_ours_is_refused() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    let home = mount.home().clone();
    let umount = |dir: &std::path::Path| home.command(["umount"]).arg(dir).output().unwrap();
    assert!(umount(mount.dir()).status.success());
    assert!(mount.ended().unwrap().success());
    assert_fails(&umount(mount.dir()), 1, &["not a mountpoint of musherfs"]);
    assert_fails(&umount("/proc".as_ref()), 1, &["proc"]);
    assert!(fs::metadata("/proc/self").is_ok());
    assert_fails(
        &umount("/no/such/directory".as_ref()),
        1,
        &["/no/such/directory"],
    );
}

#[test]
fn sigterm_and_sigint_unmount_cleanly() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut mount = TestMount::of(&registry).start();
        assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
        mount.signal(signal);
        let status = mount.ended().unwrap();
        assert!(status.success(), "{signal:?}: {status}");
        assert_eq!(fs_types(mount.dir()), [""; 0]);
        let sockets = mount.home().path().join("runtime/musherfs");
        let left = names(&sockets).into_iter();
        let left: Vec<_> = left.filter(|name| name.ends_with(".sock")).collect();
        assert_eq!(left, [""; 0], "the socket is gone");
    }
    // In the background a terminal that hangs up means nothing.
    let mut mount = TestMount::of(&registry).start_in_background();
    mount.signal(Signal::HUP);
    assert_eq!(mount.read("acme/kit/b.md"), Ok(b"b\n".to_vec()));
    assert!(mount.is_alive());
    mount.signal(Signal::TERM);
    mount.ended();
    assert_eq!(fs_types(mount.dir()), [""; 0]);
}

#[test]
fn a_signal_while_a_reader_waits_ends_the_daemon_and_releases_the_reader() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    let _gate = registry.hold(RouteKind::Asset);
    let path = mount.path("acme/kit@1.0.0/a.md");
    let reader = std::thread::spawn(move || crate::support::mount::read(&path));
    registry.wait_until("a request", |log| {
        log.iter().any(|seen| seen.kind == RouteKind::Asset)
    });
    mount.signal(Signal::TERM);
    // Who uses the mount gets a moment; the second signal says that it is over.
    mount.wait_for_log("still in use");
    assert_eq!(fs_types(mount.dir()), [""; 0]);
    mount.signal(Signal::TERM);
    assert!(mount.ended().unwrap().success());
    let seen = within("the reader", move || reader.join().unwrap());
    assert!(seen.is_err(), "{seen:?}");
}

#[test]
fn an_outside_umount_ends_the_daemon() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    run("umount", [mount.dir()]);
    assert!(mount.ended().unwrap().success());
    assert!(mount.log().contains("unmounted from outside"));
}

#[test]
fn a_daemon_never_unmounts_what_somebody_else_put_in_its_place() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    let other = Tmpfs::on(mount.dir(), "size=64k");
    mount.signal(Signal::TERM);
    let _ = mount.ended();
    assert!(fs_types(mount.dir()).contains(&"tmpfs".to_owned()));
    drop(other);
}

#[test]
fn a_busy_mount_says_who_uses_it_and_can_be_detached() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    let user = Sitting::in_dir(&mount.path("acme/kit@1.0.0"));
    let dir = mount.dir().to_owned();
    let umount = |flags: &[&str]| {
        let mut command = mount.home().command(["umount"]);
        command.args(flags).arg(&dir).output().unwrap()
    };
    let pid = user.0.id().to_string();
    assert_fails(&umount(&[]), 6, &["in use", &pid, "hint: ", "--lazy"]);
    assert_eq!(fs_types(&dir), ["fuse.musherfs"]);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));

    assert!(umount(&["--lazy"]).status.success());
    assert_eq!(fs_types(&dir), [""; 0]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    // Who was in it can go on, also with what was never read.
    let inside = format!("/proc/{pid}/cwd/b.md");
    assert_eq!(run("cat", [inside]), "b\n");
    drop(user);
    assert!(mount.ended().unwrap().success());
}

#[test]
fn a_daemon_that_was_killed_leaves_a_mount_that_can_be_cleared() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    let home = mount.home().clone();
    mount.signal(Signal::KILL);
    assert!(!mount.ended().unwrap().success());
    // Who asks while the kernel is just closing the connection is told that it was closed.
    let gone = [libc::ENOTCONN, libc::ECONNABORTED];
    assert!(gone.contains(&mount.stat("acme/nothing").unwrap_err()));
    let url = registry.url();
    let dir = mount.dir().to_str().unwrap();
    let status = home.run(["status"]);
    assert_eq!(status.status.code(), Some(5), "{}", said(&status));
    for part in [" dead ", "is dead", "musherfs umount"] {
        assert!(said(&status).contains(part), "{}", said(&status));
    }
    let output = home.run(["mount", "--api-url", &url, dir]);
    assert_fails(&output, 4, &["musherfs umount"]);
    succeed(home.command(["umount"]).arg(mount.dir()));
    assert_eq!(fs_types(mount.dir()), [""; 0]);
    succeed(&mut home.command(["mount", "--api-url", &url, dir]));
    succeed(&mut home.command(["umount", dir]));
}

#[test]
fn the_demonstration_needs_nothing_and_leaves_nothing() {
    if !require_fuse() {
        return;
    }
    let home = Home::new();
    let place = Place::new();
    let temporary = home.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = home.command(["mount", "--demo"]);
    succeed(command.arg(place.path()).env("TMPDIR", &temporary));
    let mut mount = TestMount::found(place, &home);
    let prompt = mount.read("acme/code-review/prompts/review.md").unwrap();
    assert!(prompt.starts_with(b"# Review a change"));
    assert!(mount.names("acme").len() > 5);
    assert!(
        mount
            .names("nord")
            .contains(&"translation@1.0.0".to_owned())
    );
    assert_eq!(mount.names(""), ["acme", "nord"]);
    assert!(!home.cache().exists(), "the user's cache is left alone");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 1);
    mount.signal(Signal::TERM);
    mount.ended();
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}
