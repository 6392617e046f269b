//! Which commit a bundle's directory is from, if git knows.

use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its hash.
    pub id: String,
    /// When it was made.
    pub time: Timestamp,
}

impl Commit {
    /// The commit that is checked out in `dir`, if the definition in it is part of that commit's
    /// working tree; `None` without git, too.
    ///
    /// Changes since then are not looked for: the commit says where the files come from, their
    /// digests say what they are.
    pub fn of(dir: &Path) -> Option<Self> {
        // A directory that merely lies somewhere below a repository is not from it.
        let tracked = git(dir, &["ls-files", "--", "musher.yaml", "musher.yml"])?;
        if tracked.trim().is_empty() {
            return None;
        }
        let shown = git(dir, &["show", "-s", "--format=%H %ct", "HEAD"])?;
        let (id, seconds) = shown.trim().split_once(' ')?;
        let is_hash = matches!(id.len(), 40 | 64) && id.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then_some(())?;
        Some(Self {
            id: id.to_owned(),
            time: Timestamp::from_second(seconds.parse().ok()?).ok()?,
        })
    }
}

/// What git prints, if it succeeds.
fn git(dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then_some(())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path, arguments: &[&str]) {
        let status = Command::new("git")
            .arg("-C")
            .arg(dir)
            .args(["-c", "user.name=t", "-c", "user.email=t@t"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
    }

    #[test]
    fn a_bundle_is_from_the_commit_that_has_its_definition() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("kit");
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join("musher.yaml"), "name: x\n").unwrap();
        assert_eq!(Commit::of(&bundle), None, "no repository");
        run(dir.path(), &["init", "-q"]);
        run(dir.path(), &["commit", "-q", "--allow-empty", "-m", "x"]);
        assert_eq!(Commit::of(&bundle), None, "not tracked");
        run(dir.path(), &["add", "."]);
        run(dir.path(), &["commit", "-q", "-m", "kit"]);
        let commit = Commit::of(&bundle).unwrap();
        assert_eq!(commit.id.len(), 40);
        assert_eq!(commit.time.to_string(), "2026-01-02T03:04:05Z");
    }
}
