//! Other users of the machine, each with a cache of their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::fuse::skip;
use crate::support::registry::TestRegistry;

const IDS: [u32; 4] = [64_001, 64_002, 64_003, 64_004];

/// What each of them does; `$1` is the directory that all can read.
const SCRIPT: &str = r#"
    set -e
    "$1/musherfs" mount --readahead 0 "$HOME/mnt"
    trap '"$1/musherfs" umount --force "$HOME/mnt" 2> /dev/null || true' EXIT
    loads=
    for load in 1 2 3; do
        "$1/musherfs" load acme/small acme/kit > /dev/null &
        loads="$loads $!"
    done
    diff -r "$1/expected" "$HOME/mnt/acme/kit@1.0.0"
    for load in $loads; do wait "$load"; done
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

pub(crate) struct Users {
    children: Vec<Child>,
    _dir: Option<TempDir>,
}

/// Lets them all begin.
pub(crate) fn start(registry: &TestRegistry, files: &[(String, Vec<u8>)]) -> Users {
    let found = Command::new("fusermount3").arg("--version").output();
    if found.is_err() {
        skip("other users' mounts: fusermount3 is not installed");
        return Users {
            children: Vec::new(),
            _dir: None,
        };
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
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
    let children = IDS.map(|id| {
        let home = dir.path().join(id.to_string());
        fs::create_dir(&home).unwrap();
        chown(&home, Some(id), Some(id)).unwrap();
        Command::new("unshare")
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
            .arg(id.to_string())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("SCRIPT", SCRIPT)
            .env("HOME", &home)
            .env("MUSHER_HOME", home.join("m"))
            .env("MUSHER_API_URL", registry.url())
            .env("MUSHER_API_KEY", format!("the-key-of-{id}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    Users {
        children: children.into(),
        _dir: Some(dir),
    }
}

impl Users {
    /// Waits until they have done everything; how many there are.
    pub(crate) fn finish(mut self) -> usize {
        let children = std::mem::take(&mut self.children);
        let many = children.len();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        many
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
