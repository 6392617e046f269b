//! A user with a home, a registry, and a cache in which other tools have been.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use musherfs::digest::Digest;
use tempfile::TempDir;

use crate::support::registry::TestRegistry;

const FIXTURES: &str = "tests/fixtures/cache/tools";
const CONTENTS: [&str; 2] = ["hello\n", "world\n"];

pub(crate) struct House {
    dir: TempDir,
    pub(crate) registry: TestRegistry,
}

impl House {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            registry: TestRegistry::start(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path().join("cache")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musherfs"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("MUSHER_HOME", self.path())
            .env("MUSHER_API_URL", self.registry.url())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must work; its stdout, with what differs from run to run replaced.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = self.normal(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}\n{errors}");
        text
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    pub(crate) fn normal(&self, bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec())
            .unwrap()
            .replace(&self.registry.host_id(), "HOST")
            .replace(self.root().to_str().unwrap(), "ROOT")
    }

    pub(crate) fn blob(&self, content: &[u8]) -> PathBuf {
        let hex = Digest::of(content).hex();
        self.root().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// All regular files in the cache, by path below the root.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = walkdir::WalkDir::new(self.root())
            .into_iter()
            .flatten()
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                let path = entry.path().strip_prefix(self.root()).unwrap();
                self.normal(path.to_str().unwrap().as_bytes())
            })
            .collect();
        files.sort();
        files
    }

    /// Lets every blob be two hours old.
    pub(crate) fn age_blobs(&self) {
        for file in files_below(&self.root().join("blobs")) {
            set_age(&file, Duration::from_secs(2 * 3600));
        }
    }

    /// Puts a tool's entry of acme/kit 1.2.0 into the cache as another host's, with two files of
    /// its own and of this age; their contents.
    pub(crate) fn plant(&self, tool: &str, host: &str, hours: i64) -> [String; 2] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(FIXTURES)
            .join(tool);
        // Six bytes each, as the entries say.
        let own = ["1", "2"].map(|n| format!("{:.4}{n}\n", format!("{host}____")));
        let swap = |text: &str| {
            let mut text = text.replace("api.musher.dev", host).replace("_local", host);
            for (old, new) in CONTENTS.iter().zip(&own) {
                text = text.replace(
                    &Digest::of(old.as_bytes()).hex(),
                    &Digest::of(new.as_bytes()).hex(),
                );
            }
            text
        };
        for file in files_below(&from) {
            let path = file.strip_prefix(&from).unwrap().to_str().unwrap();
            let mut target = self.root().join(swap(path));
            let text = fs::read_to_string(&file).unwrap();
            let text = match CONTENTS.iter().position(|old| *old == text) {
                Some(index) => {
                    // The prefix directory belongs to the hash.
                    if path.starts_with("blobs/sha256/") && path.matches('/').count() == 3 {
                        target = self.blob(own[index].as_bytes());
                    }
                    own[index].clone()
                }
                None if path.ends_with(".meta.json") || path.starts_with("refs/") => {
                    redate(&text, hours)
                }
                None => swap(&text),
            };
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(&target, text).unwrap();
            let hours = u64::try_from(hours).unwrap();
            set_age(&target, Duration::from_secs(hours * 3600));
        }
        own
    }

    /// Changes when the registry is said to have confirmed a version.
    pub(crate) fn redate(&self, bundle: &str, version: &str, hours: i64) {
        let dir = self.root().join("manifests").join(self.registry.host_id());
        let sidecar = dir.join(bundle).join(format!("{version}.meta.json"));
        let text = fs::read_to_string(&sidecar).unwrap();
        fs::write(&sidecar, redate(&text, hours)).unwrap();
    }
}

/// Whether the long form of a test is asked for, which proves at full size what the short one shows:
/// `MUSHERFS_PROVE=long`.
pub(crate) fn is_long() -> bool {
    std::env::var_os("MUSHERFS_PROVE").is_some_and(|value| value == "long")
}

pub(crate) fn set_age(path: &Path, age: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

/// Replaces each date of a sidecar or a ref, in the spelling of the tool that wrote it.
fn redate(text: &str, hours: i64) -> String {
    let Ok(serde_json::Value::Object(mut entry)) = serde_json::from_str(text) else {
        return text.to_owned();
    };
    let then = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
    for (key, life) in [("fetchedAt", 0), ("cachedAt", 0), ("expiresAt", 300)] {
        let Some(value) = entry.get_mut(key) else {
            continue;
        };
        let at = then + jiff::SignedDuration::from_secs(life);
        *value = match value.as_str() {
            None => (at.as_microsecond() as f64 / 1e6).into(),
            Some("0001-01-01T00:00:00Z") => continue,
            Some(old) if old.ends_with("+00:00") => {
                format!("{at:.6}").replace('Z', "+00:00").into()
            }
            Some(old) if old.ends_with("+01:00") => {
                let zoned = at.to_zoned(TimeZone::fixed(Offset::constant(1)));
                format!("{:.9}+01:00", zoned.datetime()).into()
            }
            Some(_) => format!("{at:.3}").into(),
        };
    }
    serde_json::to_string(&entry).unwrap()
}
