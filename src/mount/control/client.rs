//! Asking the daemons of this user. Never touches a mount, and never waits long for one daemon: the
//! sockets are asked all at once.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;

use super::{FOLDER, SYSTEM_RUNTIME_DIR, Status, Why};

/// Longest answer that is read.
const MAX_ANSWER: u64 = 4 << 20;

/// How long a daemon may take to answer before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// A daemon's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    path: PathBuf,
    /// The daemon's process id, from the name.
    pub pid: u32,
}

/// A daemon that does not say how it is doing.
#[derive(Debug)]
pub struct Silent {
    /// Its process id.
    pub pid: u32,
    /// Why there is no answer.
    pub error: io::Error,
}

/// What all daemons say.
#[derive(Debug, Default)]
pub struct Answers {
    /// Those that answered, by mountpoint.
    pub mounts: Vec<Status>,
    /// Those that did not within [`PATIENCE`].
    pub silent: Vec<Silent>,
}

/// The sockets below `runtime_dir` and, where this user may look, those of the system service.
///
/// # Errors
///
/// When the directory cannot be read, or others can put sockets into it; a missing one has none.
pub fn sockets(runtime_dir: &Path) -> io::Result<Vec<Socket>> {
    let mut sockets = sockets_in(&runtime_dir.join(FOLDER))?;
    let system = Path::new(SYSTEM_RUNTIME_DIR);
    if runtime_dir != system {
        // Not ours, or not to be entered: that is another user's business.
        sockets.extend(sockets_in(&system.join(FOLDER)).unwrap_or_default());
    }
    Ok(sockets)
}

fn sockets_in(dir: &Path) -> io::Result<Vec<Socket>> {
    let files = private_files(dir, "sock")?.into_iter();
    Ok(files.map(|(path, pid)| Socket { path, pid }).collect())
}

/// The files `PID.KIND` in a directory that must be this user's alone; none if it is missing.
pub(in crate::mount) fn private_files(dir: &Path, kind: &str) -> io::Result<Vec<(PathBuf, u32)>> {
    let owner = rustix::process::geteuid().as_raw();
    let entries = match std::fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        // A directory that others can write to could hold anybody's socket.
        Ok(meta) if !meta.is_dir() || meta.uid() != owner || meta.mode() & 0o077 != 0 => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} is not private to this user", dir.display()),
            ));
        }
        Ok(_) => std::fs::read_dir(dir)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if path.extension().is_some_and(|found| found == kind)
            && let Some(pid) = stem.and_then(|stem| stem.parse().ok())
        {
            files.push((path, pid));
        }
    }
    Ok(files)
}

/// How all of this user's running mounts are doing. Sockets of processes that are gone are removed.
///
/// # Errors
///
/// Those of [`sockets`].
pub async fn all(runtime_dir: &Path) -> io::Result<Answers> {
    all_within(runtime_dir, PATIENCE).await
}

/// The same, more or less patient.
///
/// # Errors
///
/// Those of [`sockets`].
pub async fn all_within(runtime_dir: &Path, patience: Duration) -> io::Result<Answers> {
    let asked = sockets(runtime_dir)?.into_iter().map(|socket| async move {
        let answer = within(patience, socket.get("/v1/status")).await;
        (socket, answer)
    });
    let mut answers = Answers::default();
    for (socket, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(status) => answers.mounts.push(status),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(&socket.path);
            }
            // It went away while it was asked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => answers.silent.push(Silent {
                pid: socket.pid,
                error,
            }),
        }
    }
    answers
        .mounts
        .sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(answers)
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(patience, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "not an answer of a control socket",
    )
}

impl Socket {
    /// Explains a path within that daemon's mount.
    ///
    /// # Errors
    ///
    /// When the daemon is gone or does not answer within [`PATIENCE`].
    pub async fn why(&self, path: &str) -> io::Result<Why> {
        let query = percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC);
        within(PATIENCE, self.get(&format!("/v1/why?path={query}"))).await
    }

    /// Makes that daemon log more or less.
    ///
    /// # Errors
    ///
    /// What the daemon says against it; or that it does not answer.
    pub async fn log(&self, level: &str) -> io::Result<()> {
        let level =
            percent_encoding::utf8_percent_encode(level, percent_encoding::NON_ALPHANUMERIC);
        let target = format!("/v1/log?level={level}");
        within(PATIENCE, self.ask("POST", &target)).await.map(drop)
    }

    /// The daemon's status.
    ///
    /// # Errors
    ///
    /// When the daemon is gone or does not answer within [`PATIENCE`].
    pub async fn status(&self) -> io::Result<Status> {
        within(PATIENCE, self.get("/v1/status")).await
    }

    /// The daemon's events as lines of JSON, from now on.
    ///
    /// # Errors
    ///
    /// When the daemon is gone or does not answer within [`PATIENCE`].
    pub async fn events(&self) -> io::Result<Lines<BufReader<UnixStream>>> {
        let open = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            request(&mut stream, "GET", "/v1/events").await?;
            let mut lines = BufReader::new(stream).lines();
            let status = lines.next_line().await?.ok_or_else(malformed)?;
            if !status.contains(" 200 ") {
                return Err(malformed());
            }
            while lines
                .next_line()
                .await?
                .is_some_and(|line| !line.is_empty())
            {}
            Ok(lines)
        };
        within(PATIENCE, open).await
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> io::Result<T> {
        let body = self.ask("GET", target).await?;
        serde_json::from_slice(&body).map_err(|_| malformed())
    }

    /// One request, one answer: too little to bring in an HTTP client that speaks Unix sockets.
    async fn ask(&self, method: &str, target: &str) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.path).await?;
        request(&mut stream, method, target).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or_else(malformed)?;
        let body = answer.split_off(end + 4);
        // `HTTP/1.0 200 OK`
        match answer.get(9) {
            Some(b'2') => Ok(body),
            _ => Err(io::Error::other(
                String::from_utf8_lossy(&body).into_owned(),
            )),
        }
    }
}

/// HTTP/1.0, so that the end of the answer is the end of the connection.
async fn request(stream: &mut UnixStream, method: &str, target: &str) -> io::Result<()> {
    let text =
        format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(text.as_bytes()).await
}
