//! The users of the machine, each with a cache of their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use musherfs::mount::keeper::{self, Kept};
use rustix::process::Uid;
use tempfile::TempDir;

use crate::deaths::end;
use crate::support::fuse::require_program;
use crate::support::mount::{Home, within};
use crate::support::registry::TestRegistry;

const IDS: [u32; 4] = [64_001, 64_002, 64_003, 64_004];

const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// What each of them does; `$1` is the directory that all can read.
const SCRIPT: &str = r#"
    set -e
    "$1/musherfs" mount --readahead 0 "$HOME/mnt"
    trap '"$1/musherfs" umount --force "$HOME/mnt" 2> /dev/null || true' EXIT
    diff -r "$1/expected" "$HOME/mnt/acme/kit@1.0.0"
    # Until everybody is done.
    cat
    "$1/musherfs" cache verify > /dev/null
    "$1/musherfs" umount "$HOME/mnt"
    trap - EXIT
"#;

/// In a mount namespace of their own, so that the machine's /dev/fuse keeps its mode, and everything
/// that is mounted there goes with the processes.
const OUTER: &str = r#"
    set -e
    mount -t tmpfs -o mode=0755 none "$1/dev"
    mknod "$1/dev/fuse" c 10 229
    chmod 0666 "$1/dev/fuse"
    mount --bind "$1/dev/fuse" /dev/fuse
    # fusermount3 asks for the user's name.
    { cat /etc/passwd; echo "user-$2:x:$2:$2::/:/bin/sh"; } > "$1/passwd-$2"
    mount --bind "$1/passwd-$2" /etc/passwd
    exec setpriv --reuid="$2" --regid="$2" --clear-groups sh -c "$SCRIPT" sh "$1"
"#;

/// A user with a cache. Each of their processes has a key of its own, by which the registry knows
/// who asks: `<user>.<process>`.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) id: u32,
    home: PathBuf,
    program: PathBuf,
}

impl User {
    /// Whoever runs the test.
    pub(crate) fn me(home: &Home) -> Self {
        Self {
            id: 0,
            home: home.path().to_owned(),
            program: env!("CARGO_BIN_EXE_musherfs").into(),
        }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.home.join("cache")
    }

    /// Their mounts.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let (id, runtime) = (self.id, self.home.join("runtime"));
        // As themselves: nobody asks in a directory that is somebody else's.
        let asking = std::thread::spawn(move || {
            let user = Some(Uid::from_raw(id));
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            keeper::find(&runtime).unwrap()
        });
        let found = asking.join().unwrap();
        found.into_iter().map(|(_, kept)| kept).collect()
    }

    /// The key that one of their processes uses.
    pub(crate) fn key(&self, process: &str) -> String {
        format!("{}.{process}", self.id)
    }

    /// A command of theirs that uses the registry with this key.
    pub(crate) fn command(&self, registry: &TestRegistry, key: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .uid(self.id)
            .gid(self.id)
            .current_dir(&self.home)
            .stdin(Stdio::null());
        self.environment(&mut command, registry, key);
        command
    }

    fn environment(&self, command: &mut Command, registry: &TestRegistry, key: &str) {
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &self.home)
            .env("MUSHER_HOME", &self.home)
            .env("MUSHER_API_URL", registry.url())
            .env("MUSHER_API_KEY", key);
    }
}

/// Other users than who runs the test, with a mount each, which they read.
pub(crate) struct Others {
    pub(crate) users: Vec<User>,
    reading: Vec<Child>,
    _dir: Option<TempDir>,
}

impl Others {
    /// Lets them all begin; nobody where `required` is false and users cannot mount.
    pub(crate) fn start(
        registry: &TestRegistry,
        files: &[(String, Vec<u8>)],
        required: bool,
    ) -> Self {
        // Only it mounts for plain users.
        if !require_program("fusermount3") {
            assert!(!required, "other users cannot mount");
            return Self {
                users: Vec::new(),
                reading: Vec::new(),
                _dir: None,
            };
        }
        let dir = tempfile::tempdir().unwrap();
        let open =
            |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        open(dir.path());
        let program = dir.path().join("musherfs");
        fs::copy(env!("CARGO_BIN_EXE_musherfs"), &program).unwrap();
        open(&program);
        fs::create_dir(dir.path().join("dev")).unwrap();
        for (path, bytes) in files {
            let path = dir.path().join("expected").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let users = IDS.map(|id| User {
            id,
            home: dir.path().join(id.to_string()),
            program: program.clone(),
        });
        let reading = users.iter().map(|user| {
            fs::create_dir(&user.home).unwrap();
            chown(&user.home, Some(user.id), Some(user.id)).unwrap();
            let mut command = Command::new("unshare");
            user.environment(&mut command, registry, &user.key("mount"));
            command
                .args([
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-c",
                    OUTER,
                    "sh",
                ])
                .arg(dir.path())
                .arg(user.id.to_string())
                .env("SCRIPT", SCRIPT)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        Self {
            reading: reading.collect(),
            users: users.into(),
            _dir: Some(dir),
        }
    }

    /// Waits until they have read everything, and have unmounted.
    pub(crate) fn finish(mut self) {
        for child in std::mem::take(&mut self.reading) {
            let output = within("another user", move || child.wait_with_output().unwrap());
            assert!(
                output.status.success(),
                "{}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.reading {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Where a test has failed: their mounts go with them.
        for kept in self.users.iter().flat_map(User::kept) {
            end(kept.keeper);
            if let Some(daemon) = kept.daemon {
                end(daemon);
            }
        }
    }
}
