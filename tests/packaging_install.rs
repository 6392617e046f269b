//! What is installed works, is checked by the tools that know it best, and goes away completely.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use support::fuse::{cannot_run, need_not_run, require_fuse, require_root};

const PROGRAM: &str = env!("CARGO_BIN_EXE_musherfs");

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a tool; `None` if it is not installed, and what it is for cannot run.
fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(name)
        .args(arguments)
        // A user's systemd-analyze does not start without.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
    {
        Ok(output) => Some(output),
        Err(error) => {
            cannot_run(&format!("{name}: {error}"));
            None
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// An installation in a temporary directory.
struct Installed {
    dir: tempfile::TempDir,
    with_destdir: bool,
}

impl Installed {
    /// Under a DESTDIR, as packages do.
    fn staged() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            with_destdir: true,
        }
    }

    /// With a prefix of its own, so that paths in units lead to files.
    fn in_place() -> Self {
        Self {
            with_destdir: false,
            ..Self::staged()
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn script(&self, name: &str, arguments: &[&str]) {
        let mut command = Command::new(repository().join("scripts").join(name));
        command.args(arguments).stdin(Stdio::null());
        if self.with_destdir {
            command
                .env("DESTDIR", self.dir.path())
                .env("PREFIX", "/usr");
        } else {
            command
                .env("PREFIX", self.path("usr"))
                .env("SBINDIR", self.path("usr/sbin"))
                .env("SYSCONFDIR", self.path("etc"));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Everything that is there: paths, and what is in them.
    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        walkdir::WalkDir::new(self.dir.path())
            .into_iter()
            .map(|entry| {
                let entry = entry.unwrap();
                let content = match entry.file_type() {
                    kind if kind.is_file() => fs::read(entry.path()).unwrap(),
                    kind if kind.is_symlink() => {
                        let target = fs::read_link(entry.path()).unwrap();
                        target.into_os_string().into_encoded_bytes()
                    }
                    _ => Vec::new(),
                };
                (entry.path().to_owned(), content)
            })
            .collect()
    }
}

#[test]
fn uninstalling_leaves_exactly_what_was_there_before() {
    let installed = Installed::staged();
    // A machine with AppArmor's profile and a local file that the administrator has written to.
    fs::create_dir_all(installed.path("etc/apparmor.d/local")).unwrap();
    fs::write(installed.path("etc/apparmor.d/fusermount3"), "profile\n").unwrap();
    fs::write(
        installed.path("etc/apparmor.d/local/fusermount3"),
        "# mine\n",
    )
    .unwrap();
    fs::create_dir_all(installed.path("usr/bin")).unwrap();
    fs::write(installed.path("usr/bin/other"), "other\n").unwrap();
    let before = installed.tree();

    installed.script("install", &[PROGRAM]);
    let local = fs::read_to_string(installed.path("etc/apparmor.d/local/fusermount3")).unwrap();
    assert!(local.starts_with("# mine\n# begin musherfs\n"), "{local}");
    for path in [
        "usr/bin/musherfs",
        "usr/sbin/mount.musherfs",
        "usr/sbin/mount.fuse.musherfs",
        "usr/share/man/man1/musherfs.1",
        "usr/share/man/man1/musherfs-doctor.1",
        "usr/share/man/man5/musherfs.conf.5",
        "usr/share/bash-completion/completions/musherfs",
        "usr/share/zsh/site-functions/_musherfs",
        "usr/share/fish/vendor_completions.d/musherfs.fish",
        "usr/lib/systemd/system/musherfs.service",
        "usr/lib/systemd/user/musherfs.service",
        "usr/lib/systemd/system/plocate-updatedb.service.d/50-musherfs.conf",
        "usr/share/doc/musherfs/examples/compose.yaml",
    ] {
        assert!(fs::symlink_metadata(installed.path(path)).is_ok(), "{path}");
    }
    let helper = fs::read_link(installed.path("usr/sbin/mount.musherfs")).unwrap();
    assert_eq!(helper, Path::new("/usr/bin/musherfs"));
    let mode = fs::metadata(installed.path("usr/bin/musherfs"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o755);

    // Over itself, as an upgrade does.
    let once = installed.tree();
    installed.script("install", &[PROGRAM]);
    assert_eq!(installed.tree(), once);

    installed.script("uninstall", &[]);
    let after = installed.tree();
    let left: Vec<_> = after
        .keys()
        .filter(|path| !before.contains_key(*path))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(after, before);
}

#[test]
fn uninstalling_spares_what_somebody_has_put_beside_it() {
    let installed = Installed::staged();
    installed.script("install", &[PROGRAM]);
    let beside = installed.path("usr/lib/systemd/system/other.service");
    fs::write(&beside, "[Unit]\n").unwrap();
    installed.script("uninstall", &[]);
    assert!(beside.exists());
    assert!(!installed.path("usr/share/musherfs").exists());
    assert!(!installed.path("usr/bin").exists());
}

#[test]
fn the_units_are_what_systemd_expects() {
    let installed = Installed::in_place();
    installed.script("install", &[PROGRAM]);
    for unit in [
        "usr/lib/systemd/system/musherfs.service",
        "usr/share/doc/musherfs/examples/mnt-musher.mount",
    ] {
        let unit = installed.path(unit);
        let unit = unit.to_str().unwrap();
        let Some(output) = tool("systemd-analyze", &["verify", "--man=no", unit]) else {
            return;
        };
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output), "", "{unit}");
    }
    let user = installed.path("usr/lib/systemd/user/musherfs.service");
    let user = user.to_str().unwrap();
    if let Some(output) = tool("systemd-analyze", &["verify", "--user", "--man=no", user]) {
        let text = said(&output);
        assert!(output.status.success() && text.is_empty(), "{text}");
    }
    let unit = installed.path("usr/lib/systemd/system/musherfs.service");
    let arguments = [
        "security",
        "--offline=true",
        "--no-pager",
        unit.to_str().unwrap(),
    ];
    if let Some(output) = tool("systemd-analyze", &arguments) {
        let text = said(&output);
        let score = text
            .lines()
            .rfind(|line| line.contains("Overall exposure level"));
        let score = score.unwrap_or_else(|| panic!("{text}"));
        println!("{score}");
        let number = score.split(": ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(number.parse::<f64>().unwrap() < 5.0, "{score}");
    }
}

#[test]
fn no_option_of_the_service_hides_the_mount_in_a_namespace() {
    let unit = fs::read_to_string(repository().join("scripts/systemd/musherfs.service")).unwrap();
    for option in [
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "BindPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "DynamicUser",
        "PrivateUsers",
        "MountFlags",
        "PrivateNetwork",
    ] {
        let set = unit
            .lines()
            .any(|line| line.starts_with(&format!("{option}=")));
        assert!(!set, "{option}= makes a mount namespace");
    }
}

#[test]
fn systemd_keeps_the_mount_between_the_daemons_of_a_service() {
    for unit in ["musherfs.service", "user/musherfs.service"] {
        let path = repository().join("scripts/systemd").join(unit);
        let unit = fs::read_to_string(path).unwrap();
        let values = |option: &str| -> Vec<String> {
            let lines = unit.lines();
            let values = lines.filter_map(|line| line.strip_prefix(option)?.strip_prefix('='));
            values.map(str::to_owned).collect()
        };
        assert!(values("ExecStart")[0].contains(" --foreground --fd-store "));
        assert_eq!(values("Type"), ["notify"]);
        assert_eq!(values("NotifyAccess"), ["all"]);
        let most = values("FileDescriptorStoreMax");
        assert!(most[0].parse::<u32>().unwrap() >= 2);
        // Ten deaths a minute must not end the mount.
        assert_eq!(values("StartLimitIntervalSec"), ["0"]);
        assert_eq!(values("RestartSec"), ["100ms"]);
        // Who waits in the mount ends only when the next daemon answers.
        assert_eq!(values("KillMode"), ["process"]);
        // It runs between two daemons, too: a mount that is kept must survive it.
        let after = values("ExecStopPost");
        assert!(after[0].contains(" umount --dead "), "{after:?}");
        // Of the calls that are refused as a means of debugging, a daemon needs one to take its own
        // descriptors.
        let filters = values("SystemCallFilter");
        if let Some(refused) = filters.iter().position(|filter| filter.contains("@debug")) {
            let again = filters.iter().position(|filter| filter == "pidfd_getfd");
            assert!(again > Some(refused), "{filters:?}");
        }
    }
}

#[test]
fn a_service_manager_is_told_when_the_mount_serves_and_as_long_as_it_does() {
    use rustix::process::{Pid, Signal, kill_process};
    if !require_fuse() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let dir = home.path().join("mnt");
    let mut daemon = Command::new(PROGRAM)
        .args(["mount", "--foreground", "--offline", "--marker"])
        .arg(&dir)
        .env("MUSHER_HOME", home.path().join("musher"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&daemon);
    let next = || {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let first = next();
    assert!(
        first.contains("READY=1") && first.contains("STATUS=serving"),
        "{first}"
    );
    assert!(dir.join(".musherfs").exists());
    assert!(next().contains("WATCHDOG=1"));
    assert!(next().contains("WATCHDOG=1"));

    // A daemon that does not answer is not fed, though processes run that could do it.
    kill_process(pid, Signal::STOP).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut bytes = [0; 64];
    let mut late = 0;
    while socket.recv(&mut bytes).is_ok() {
        late += 1;
        assert!(
            late < 10,
            "the watchdog is fed for a daemon that is stopped"
        );
    }
    kill_process(pid, Signal::CONT).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    assert!(next().contains("WATCHDOG=1"));

    kill_process(pid, Signal::TERM).unwrap();
    while !next().contains("STOPPING=1") {}
    assert!(daemon.wait().unwrap().success());
    assert!(dir.join("NOT-MOUNTED").exists());
}

#[test]
fn the_helper_mounts_what_fstab_says() {
    if !require_fuse() || !require_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let helper = home.path().join("mount.musherfs");
    symlink(PROGRAM, &helper).unwrap();
    let dir = home.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .env("MUSHER_HOME", home.path().join("musher"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    let dir_text = dir.to_str().unwrap();
    run(
        &helper,
        &["musherfs", dir_text, "-o", "rw,offline,namespace=acme"],
    );
    assert!(dir.join("acme").is_dir());
    run(Path::new(PROGRAM), &["umount", dir_text]);
}

#[test]
fn manual_pages_are_rendered_without_complaints() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args(["man", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let page = Command::new(PROGRAM)
        .args(["man", "musherfs.conf"])
        .output()
        .unwrap();
    fs::write(dir.path().join("musherfs.conf.5"), &page.stdout).unwrap();
    let mut pages = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let Some(output) = tool("man", &["--warnings", "-l", path.to_str().unwrap()]) else {
            return;
        };
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && complaints.is_empty(),
            "{path:?}: {complaints}"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("SEE ALSO"), "{path:?}");
        pages += 1;
    }
    assert!(pages > 15, "{pages}");
}

#[test]
fn completions_are_accepted_by_shells_and_linters() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(PROGRAM)
            .args(["completions", shell])
            .output()
            .unwrap();
        let script = dir.path().join(shell);
        fs::write(&script, &output.stdout).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("__complete refs"), "{shell}");
        if let Some(output) = tool(shell, &["-n", script.to_str().unwrap()]) {
            assert!(output.status.success(), "{}", said(&output));
        }
        if shell == "zsh" {
            assert!(text.starts_with("#compdef musherfs"), "{text}");
            assert!(text.contains(":_musherfs_refs'"), "no argument uses it");
        }
    }
    // What we have added; the rest is the generator's.
    let own = repository().join("src/cli/completions/refs.bash");
    let own = fs::read_to_string(own)
        .unwrap()
        .replace("@COMMANDS@", "ls|why");
    let own_path = dir.path().join("own.bash");
    fs::write(&own_path, own).unwrap();
    if let Some(output) = tool("shellcheck", &["-s", "bash", own_path.to_str().unwrap()]) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn bash_completes_the_names_of_cached_bundles() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(PROGRAM, bin.join("musherfs")).unwrap();
    let script = dir.path().join("completion");
    let output = Command::new(PROGRAM)
        .args(["completions", "bash"])
        .output()
        .unwrap();
    fs::write(&script, output.stdout).unwrap();
    let cache = repository().join("tests/fixtures/cache/tools/python");
    let complete = |line: &str| {
        let program = format!(
            "source {}\nCOMP_LINE='{line}' COMP_POINT=${{#COMP_LINE}}\nCOMP_WORDS=($COMP_LINE) \
             COMP_CWORD=2\n_musherfs_with_refs musherfs x ls\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = Command::new("bash")
            .args(["--norc", "-c", &program])
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", dir.path())
            .env("MUSHER_CACHE_HOME", &cache)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("musherfs ls ac"), "acme/");
    assert_eq!(complete("musherfs ls acme/"), "acme/kit");
    // Bash breaks words at the @, so only what follows is inserted.
    assert_eq!(complete("musherfs ls acme/kit@1"), "1.2.0");
}

#[test]
fn a_debian_package_installs_and_removes_cleanly() {
    let has = |name: &str| {
        let found = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        found.is_ok_and(|status| status.success())
    };
    if !has("cargo-deb") || !has("dpkg") {
        return need_not_run("cargo-deb or dpkg is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(repository().join("scripts/package"))
        .arg(PROGRAM)
        .arg(dir.path())
        // Compressed less: how small it is does not matter here.
        .arg("--fast")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let package = String::from_utf8(output.stdout).unwrap();
    let package = package.lines().last().unwrap().trim();
    assert!(package.ends_with(".deb"), "{package}");

    // A machine with nothing but dpkg's own books.
    let root = dir.path().join("root");
    for path in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/lib/dpkg/triggers",
    ] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let files = || {
        let all = walkdir::WalkDir::new(&root).into_iter().flatten();
        let all = all.map(|entry| entry.into_path());
        all.filter(|path| !path.starts_with(root.join("var")))
            .collect::<Vec<_>>()
    };
    let before = files();
    let dpkg = |arguments: &[&str]| {
        let mut root_option = std::ffi::OsString::from("--root=");
        root_option.push(&root);
        let output = Command::new("dpkg")
            .arg(root_option)
            .args(["--force-not-root", "--force-depends", "--force-bad-path"])
            // There is no shell in that root; the package's scripts leave this machine alone.
            .arg("--force-script-chrootless")
            .arg("--log=/dev/null")
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    dpkg(&["-i", package]);
    for path in [
        "usr/bin/musherfs",
        "usr/share/man/man5/musherfs.conf.5.gz",
        "usr/lib/systemd/system/musherfs.service",
        "usr/share/bash-completion/completions/musherfs",
    ] {
        assert!(root.join(path).is_file(), "{path}");
    }
    let helper = fs::read_link(root.join("usr/sbin/mount.fuse.musherfs")).unwrap();
    assert_eq!(helper, Path::new("../bin/musherfs"));
    let version = Command::new(root.join("usr/bin/musherfs"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(version.status.success());
    dpkg(&["-P", "musherfs"]);
    assert_eq!(files(), before);
}

/// Runs a package's script as dpkg does, on a machine with systemd and a keeper of root's; what it
/// has started. `status` is how that ends; `daemon` is the service's.
fn package_script(
    words: &[&str],
    root: &str,
    status: u8,
    daemon: Option<u32>,
) -> Option<Vec<String>> {
    if !require_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    fs::write(&started, "").unwrap();
    for name in ["systemctl", "musherfs"] {
        let program = dir.path().join(name);
        let log = started.display();
        let answer = daemon.map_or_else(String::new, |daemon| {
            format!("[ \"$1\" != show ] || echo {daemon}\n")
        });
        let text = format!("#!/bin/sh\necho \"{name} $*\" >> {log}\n{answer}exit {status}\n");
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let keepers = dir.path().join("keepers");
    fs::create_dir(&keepers).unwrap();
    let _keeper = UnixListener::bind(keepers.join("7.keeper")).unwrap();
    // Nothing of this machine is seen, let alone touched.
    let machine = r#"
        mount -t tmpfs none /run
        [ ! -d /tmp/musher ] || mount -t tmpfs none /tmp/musher
        mkdir -p /run/systemd/system /run/user/0/musher/musherfs
        mount --bind "$KEEPERS" /run/user/0/musher/musherfs
        exec "$@"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-ec", machine])
        .arg("sh")
        .arg(repository().join("scripts/debian").join(words[0]))
        .args(&words[1..])
        .env("DPKG_ROOT", root)
        .env("KEEPERS", &keepers)
        .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let started = fs::read_to_string(started).unwrap();
    Some(started.lines().map(str::to_owned).collect())
}

#[test]
fn a_newer_package_hands_the_mounts_over_and_a_removed_one_ends_the_service() {
    let reload = "systemctl daemon-reload";
    let ask = "systemctl show --property=MainPID --value musherfs.service";
    let hand_over = [
        reload,
        ask,
        "systemctl try-restart musherfs.service",
        "musherfs upgrade",
    ];
    let stop = "systemctl --no-reload disable --now musherfs.service";
    let cases: [(&[&str], &[&str]); 7] = [
        (&["postinst", "configure", "0.1.0"], &hand_over),
        (&["postinst", "configure", ""], &[reload]),
        (&["postinst", "abort-upgrade", "0.1.0"], &[]),
        (&["prerm", "upgrade", "0.2.0"], &[]),
        (&["prerm", "remove"], &[stop]),
        (&["postrm", "remove"], &[reload]),
        (&["postrm", "purge"], &[]),
    ];
    for (words, expected) in cases {
        // What happens to mounts does not decide on the installation.
        for status in [0, 1] {
            let Some(started) = package_script(words, "", status, None) else {
                return;
            };
            assert_eq!(started, expected, "{words:?}");
        }
        let elsewhere = package_script(words, "/elsewhere", 0, None).unwrap();
        assert!(elsewhere.is_empty(), "{words:?}: {elsewhere:?}");
    }
    // A service that runs is asked with its own arguments whether the new version could go on.
    let mut daemon = Command::new("sleep")
        .args(["1000", "2000"])
        .spawn()
        .unwrap();
    let check = "musherfs mount --check 2000";
    let [.., restart, upgrade] = hand_over;
    for (status, expected) in [
        (0, &[reload, ask, check, restart, upgrade][..]),
        (1, &[reload, ask, check, upgrade][..]),
    ] {
        let words = ["postinst", "configure", "0.1.0"];
        let started = package_script(&words, "", status, Some(daemon.id())).unwrap();
        assert_eq!(started, expected);
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for script in ["postinst", "prerm", "postrm"] {
        let path = repository().join("scripts/debian").join(script);
        if let Some(output) = tool("shellcheck", &[path.to_str().unwrap()]) {
            assert!(output.status.success(), "{}", said(&output));
        }
    }
}

#[test]
fn help_is_no_program_to_install() {
    for (script, part) in [("install", "[PROGRAM]"), ("uninstall", "PREFIX")] {
        let output = Command::new(repository().join("scripts").join(script))
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(part) && !text.contains("set -"), "{text}");
        assert!(output.stderr.is_empty());
        let unknown = Command::new(repository().join("scripts").join(script))
            .arg("--bogus")
            .output()
            .unwrap();
        assert_eq!(unknown.status.code(), Some(1));
        let text = String::from_utf8(unknown.stderr).unwrap();
        assert!(text.contains("--help"), "{text}");
    }
    for (path, part) in [("/nope", "does not exist"), ("/etc", "is not a program")] {
        let install = Command::new(repository().join("scripts/install"))
            .arg(path)
            .output()
            .unwrap();
        assert_eq!(install.status.code(), Some(1));
        let text = String::from_utf8(install.stderr).unwrap();
        assert!(text.contains(&format!("{path} {part}")), "{text}");
    }
}

#[test]
fn a_demonstration_that_is_ended_early_leaves_nothing_behind() {
    if !require_fuse() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut demo = Command::new(repository().join("scripts/demo"))
            .env("MUSHERFS", PROGRAM)
            .env("TMPDIR", &root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("What it shows")));
        let pid = Pid::from_child(&demo);
        rustix::process::kill_process(pid, signal).unwrap();
        // Whatever it says on its way.
        lines.for_each(drop);
        assert!(!demo.wait().unwrap().success());
        let left: Vec<_> = fs::read_dir(&root).unwrap().collect();
        assert!(left.is_empty(), "{signal:?}: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(root.to_str().unwrap()), "{mounts}");
    }
}
