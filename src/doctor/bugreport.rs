//! An archive that can be attached to a report: what the program knows, and no secret.
//!
//! Every text goes through a [`Redactor`] on its way in, whoever wrote it: the key that is in use is
//! taken out wherever it stands, and so is whatever looks like a credential.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::error::{Error, Result};

/// How much of the end of a log is taken.
const LOG_TAIL: u64 = 256 << 10;

/// How long the journal may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What stands where a secret was.
const BLACK: &str = "[redacted]";

/// Takes secrets out of text.
#[derive(Clone, Default)]
pub struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    /// Takes out these secrets, besides what looks like one. Words too short to be told from
    /// ordinary text are not secrets.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let secrets = secrets.into_iter().filter(|secret| secret.len() >= 6);
        Self {
            secrets: secrets.collect(),
        }
    }

    /// The text without secrets.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret, BLACK);
        }
        for mark in ["Bearer ", "Basic ", "bearer ", "basic "] {
            text = black_after(&text, mark, |c| c.is_whitespace() || c == '"' || c == ',');
        }
        for mark in [
            "api_key=",
            "API_KEY=",
            "api-key=",
            "token=",
            "password=",
            "secret=",
        ] {
            text = black_after(&text, mark, |c| {
                c.is_whitespace() || matches!(c, '"' | '\'' | '&' | ',')
            });
        }
        black_user_info(&text)
    }
}

/// Blackens what follows each `mark` until `ends`.
fn black_after(text: &str, mark: &str, ends: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(mark) {
        let (before, after) = rest.split_at(at + mark.len());
        out.push_str(before);
        let end = after.find(&ends).unwrap_or(after.len());
        if end > 0 {
            out.push_str(BLACK);
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// Blackens `user:password` in `scheme://user:password@host`.
fn black_user_info(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#'))
            .unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(user_info) => {
                out.push_str(BLACK);
                rest = &after[user_info..];
            }
            None => rest = after,
        }
    }
    out.push_str(rest);
    out
}

/// Writes the archive: each pair is a file name and its text.
///
/// # Errors
///
/// When the file is there already or cannot be written. Only its owner may read it.
pub fn write(path: &Path, redactor: &Redactor, files: &[(&str, String)]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |error| Error::io(path, error);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    archive(file, redactor, files)
        .and_then(|file| file.sync_all())
        .map_err(failed)
}

fn archive(file: File, redactor: &Redactor, files: &[(&str, String)]) -> io::Result<File> {
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in files {
        let text = redactor.redact(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        let seconds = jiff::Timestamp::now().as_second();
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        let name = format!("musherfs-bugreport/{name}");
        tar.append_data(&mut header, name, text.as_bytes())?;
    }
    let mut file = tar.into_inner()?.finish()?;
    file.flush()?;
    Ok(file)
}

/// The end of the log, from wherever this machine keeps it.
pub fn log_tail(own_state: &Path) -> String {
    let file = own_state.join("musherfs.log");
    if let Ok(text) = tail(&file) {
        return text;
    }
    journal().unwrap_or_else(|| "no log was found: neither a file nor a journal\n".to_owned())
}

fn tail(path: &PathBuf) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn journal() -> Option<String> {
    let mut child = Command::new("journalctl")
        .args([
            "-t",
            "musherfs",
            "-n",
            "1000",
            "--no-pager",
            "-o",
            "short-iso",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let out = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = out.take(4 * LOG_TAIL).read_to_end(&mut text);
        let _ = sender.send(text);
    });
    let text = receiver.recv_timeout(PATIENCE).ok();
    let _ = child.kill();
    let _ = child.wait();
    Some(String::from_utf8_lossy(&text?).into_owned())
}

/// What kind of system this is.
pub fn system() -> String {
    let name = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!(
        "{} {} {}\n\n{release}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_wherever_they_stand() {
        let redactor = Redactor::new(["sk-musher-0123456789".to_owned(), "abc".to_owned()]);
        for (text, expected) in [
            ("key sk-musher-0123456789.", "key [redacted]."),
            ("abc is no secret", "abc is no secret"),
            (
                "Authorization: Bearer x.y-z\n",
                "Authorization: Bearer [redacted]\n",
            ),
            (
                "{\"authorization\":\"Basic dXNlcg==\"}",
                "{\"authorization\":\"Basic [redacted]\"}",
            ),
            (
                "https://user:pass@host/p and http://h/a@b",
                "https://[redacted]@host/p and http://h/a@b",
            ),
            ("MUSHER_API_KEY=hunter2 x", "MUSHER_API_KEY=[redacted] x"),
            ("?token=a&x=1", "?token=[redacted]&x=1"),
            ("überall 🙂 Bearer", "überall 🙂 Bearer"),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
    }
}
