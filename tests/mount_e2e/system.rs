//! Mounting as the system does it: mount(8), fstab, plain users, other users.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use crate::command::registry;
use crate::support::fuse::{cannot_run, require_fuse, require_program, require_root};
use crate::support::mount::{Home, Place, TestMount, fs_types, said, succeed};
use crate::support::registry::TestRegistry;

const NOBODY: &str = "65534";

/// A directory with `musherfs` and `mount.musherfs` in it, as an installation has them.
fn install() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["musherfs", "mount.musherfs"] {
        symlink(env!("CARGO_BIN_EXE_musherfs"), dir.path().join(name)).unwrap();
    }
    dir
}

/// A program of the installation, with this home.
fn command(program: &str, installed: &Path, home: &Home) -> Command {
    let mut command = Command::new(installed.join(program));
    home.environment(&mut command);
    command.stdin(Stdio::null());
    command
}

/// Asserts that what is mounted in the background works, and unmounts it.
fn works(place: Place, home: &Arc<Home>, registry: &TestRegistry) {
    assert_eq!(fs_types(place.path()), ["fuse.musherfs"]);
    let mount = TestMount::found(place, home);
    assert_eq!(mount.status()["registry"], format!("{}/", registry.url()));
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    mount.unmount();
}

/// Runs a script that mounts on `$DIR` with mount(8), in a mount namespace where the program is
/// installed in a place of the system; then reads, and unmounts.
fn mount8(mount: &str, environment: &[(&str, &str)]) -> Output {
    let installed = install();
    let (home, place) = (Home::new(), Place::new());
    let script = format!(
        r#"
        set -eu
        mount --bind "$INSTALLED" /usr/local/sbin
        trap 'umount -l "$DIR" 2>/dev/null || :' EXIT
        {mount}
        grep " $DIR " /proc/self/mountinfo
        /usr/local/sbin/musherfs status --json
        cat "$DIR/acme/kit/a.md"
        umount "$DIR"
        "#
    );
    let mut command = Command::new("unshare");
    home.environment(&mut command);
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .env("INSTALLED", installed.path())
        .env("DIR", place.path())
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn has_mount_fuse() -> bool {
    let has = Path::new("/sbin/mount.fuse").exists() && Path::new("/usr/local/sbin").is_dir();
    if !has {
        cannot_run("mount.fuse is not installed");
    }
    has
}

#[test]
fn mount8_mounts_by_type() {
    if !require_fuse() || !require_root() || !has_mount_fuse() {
        return;
    }
    let registry = registry();
    let url = registry.url();
    let script = r#"mount -t fuse.musherfs "$SOURCE" "$DIR" -o "$OPTIONS""#;
    for (source, options) in [
        ("musherfs", format!("api_url={url},nofail,_netdev")),
        (url.as_str(), "ro,noatime,x-systemd.automount".to_owned()),
        (url.as_str(), "defaults,readahead=0".to_owned()),
    ] {
        let environment = [("SOURCE", source), ("OPTIONS", &options)];
        let output = mount8(script, &environment);
        assert!(output.status.success(), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(" ro,nosuid,nodev"), "{told}");
        assert!(
            told.contains(&format!(" - fuse.musherfs {source} ")),
            "{told}"
        );
        assert!(
            told.contains(&format!("\"registry\": \"{url}/\"")),
            "{told}"
        );
        assert!(told.ends_with("]\na\n"), "{told}");
    }
    // What it does not know it does not ignore.
    let output = mount8(script, &[("SOURCE", &url), ("OPTIONS", "user_xatr")]);
    assert!(!output.status.success());
    assert!(said(&output).contains("user_xatr"), "{}", said(&output));
}

#[test]
fn fstab_lines_mount() {
    if !require_fuse() || !require_root() || !has_mount_fuse() {
        return;
    }
    let registry = registry();
    let script = r#"
        echo "musherfs $DIR fuse.musherfs $OPTIONS 0 0" > "$HOME/fstab"
        mount -T "$HOME/fstab" "$DIR"
    "#;
    let options = format!(
        "api_url={},allow_other,nofail,_netdev,noauto,readahead=0,user_xattr,\
         x-systemd.automount,comment=bundles",
        registry.url()
    );
    let output = mount8(script, &[("OPTIONS", &options)]);
    assert!(output.status.success(), "{}", said(&output));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("allow_other"), "{told}");
    assert!(told.ends_with("]\na\n"), "{told}");
}

#[test]
fn the_helpers_calling_convention_is_understood() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    let installed = install();
    let url = registry.url();
    for (program, source) in [
        ("musherfs", "musherfs"),
        ("musherfs", url.as_str()),
        ("mount.musherfs", "none"),
        ("mount.musherfs", url.as_str()),
    ] {
        let (home, place) = (Home::new(), Place::new());
        let mut mount = command(program, installed.path(), &home);
        mount.args([
            source,
            place.path().to_str().unwrap(),
            "-v",
            "-o",
            "rw,dev,suid",
        ]);
        mount.env("MUSHER_API_URL", &url);
        succeed(&mut mount);
        works(place, &home, &registry);
    }
    // Its exit codes: 1 for a wrong call, 32 for a mount that failed; -f mounts nothing.
    let (home, place) = (Home::new(), Place::new());
    let dir = place.path().to_str().unwrap();
    fs::write(place.path().join("precious"), "").unwrap();
    for (arguments, code) in [
        (&[&url, dir, "-o", "bogus"][..], 1),
        (&[&url, dir, "-o", "remount,ro"], 1),
        (&[&url, dir, "-o", "rw"], 32),
        (&[&url, dir, "-f", "-o", "rw"], 0),
        (&[&url, dir, "-f", "-o", "bogus"], 1),
    ] {
        let mut mount = command("mount.musherfs", installed.path(), &home);
        let output = mount.args(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            said(&output)
        );
        assert_eq!(fs_types(place.path()), [""; 0]);
    }
}

#[test]
fn other_users_see_the_mount_only_if_they_may() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    let as_nobody = |mount: &TestMount| {
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        Command::new("setpriv")
            .args(ids)
            .args(["--clear-groups", "cat"])
            .arg(mount.path("acme/kit/a.md"))
            .output()
            .unwrap()
    };
    let mount = TestMount::of(&registry).start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    let output = as_nobody(&mount);
    assert!(
        said(&output).contains("Permission denied"),
        "{}",
        said(&output)
    );
    mount.unmount();

    let mount = TestMount::of(&registry).arg("--allow-other").start();
    let output = as_nobody(&mount);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(output.stdout, b"a\n");
    mount.unmount();
}

#[test]
fn a_plain_user_mounts_reads_and_unmounts() {
    if !require_fuse() || !require_root() || !require_program("fusermount3") {
        return;
    }
    let registry = registry();
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program: PathBuf = base.path().join("musherfs");
    fs::copy(env!("CARGO_BIN_EXE_musherfs"), &program).unwrap();
    // As the user: foreground and background, in a home of their own.
    let session = r#"
        set -eu
        cd "$HOME"
        ./../musherfs mount --api-url "$URL" mnt
        cat mnt/acme/kit/a.md
        test "$(stat -c %u:%a mnt/acme/kit@1.0.0/a.md)" = "$(id -u):444"
        if touch mnt/new 2>/dev/null; then exit 3; fi
        ./../musherfs status --json | grep -c '"mountpoint"'
        ./../musherfs umount mnt
        # The daemon ends a moment later.
        patience=600
        while ./../musherfs status --json | grep -q '"mountpoint"'; do
            patience=$((patience - 1))
            test $patience -gt 0 || exit 4
            sleep 0.1
        done
        if grep " $HOME/mnt " /proc/self/mountinfo; then exit 5; fi
        if ./../musherfs mount --allow-other --api-url "$URL" mnt; then exit 6; else test $? = 4; fi
        echo done
    "#;
    // As root, in a mount namespace of its own, so that the machine's /dev/fuse keeps its mode and
    // all that is mounted goes with the process.
    let setup = r#"
        set -e
        mount -t tmpfs -o mode=0755 none /mnt
        mknod /mnt/fuse c 10 229
        chmod 0666 /mnt/fuse
        mount --bind /mnt/fuse /dev/fuse
        if [ -e /etc/fuse.conf ]; then : > /mnt/fuse.conf; mount --bind /mnt/fuse.conf /etc/fuse.conf; fi
        mkdir "$1/home"
        chown "$3:$3" "$1/home"
        export HOME="$1/home" MUSHER_HOME="$1/home/musher"
        exec setpriv --reuid="$3" --regid="$3" --clear-groups sh -c "$2"
    "#;
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            setup,
            "sh",
        ])
        .arg(base.path())
        .args([session, NOBODY])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("URL", registry.url())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, "a\n1\ndone\n", "{}", said(&output));
}

#[test]
fn a_daemon_is_told_to_keep_little_of_the_memory_that_it_took() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = TestMount::of(&registry).start();
    let environment = fs::read(format!("/proc/{}/environ", mount.pid())).unwrap();
    let set: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
    assert!(set.contains(&b"MALLOC_ARENA_MAX=2".as_slice()), "{set:?}");
    mount.unmount();
}
