//! Names that move, told to whoever wants to know.
//!
//! Changes inside a mount fire no inotify events: those follow system calls on this machine, and a
//! registry makes none. So each move is told twice elsewhere: as a line of JSON on the control
//! socket, and by writing to a real file,
//!
//! ```text
//! $RUNTIME/musherfs/events/<namespace>/<bundle>      "latest 1.3.0\n"
//! ```
//!
//! which inotify does see. The file is there from the first time that somebody asks for a moving
//! name of the bundle, and stays the same file, so that a watch on it lasts.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, warn};

use super::FOLDER;
use crate::fs::{Fs, Moved};
use crate::paths::ensure_private_dir;

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// A name points at another version than before.
    Moved {
        /// When it was noticed.
        at: Timestamp,
        /// `namespace/bundle`.
        bundle: String,
        /// `latest`, a tag or a range.
        selector: String,
        /// The version it pointed at.
        from: String,
        /// The version it points at now.
        to: String,
    },
    /// The reader was too slow, and this many events are lost.
    Lost {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// `None` for a name that was only asked for the first time.
    fn of(moved: &Moved) -> Option<Self> {
        Some(Self::Moved {
            at: Timestamp::now(),
            bundle: moved.bundle.to_string(),
            selector: moved.selector.text().into_owned(),
            from: moved.from.as_ref()?.to_string(),
            to: moved.to.to_string(),
        })
    }
}

/// The moves from now on as lines of JSON.
pub(super) fn stream(fs: &Arc<Fs>) -> Response {
    let lines = futures_util::stream::unfold(fs.moves(), |mut moves| async move {
        let event = next(&mut moves).await?;
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, io::Error>(line), moves))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

async fn next(moves: &mut Receiver<Moved>) -> Option<Event> {
    loop {
        match moves.recv().await {
            Ok(moved) => {
                if let Some(event) = Event::of(&moved) {
                    return Some(event);
                }
            }
            Err(RecvError::Lagged(count)) => return Some(Event::Lost { count }),
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Where the files for inotify are, given the runtime directory.
pub fn folder(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(FOLDER).join("events")
}

/// Writes moves to the files below `runtime_dir` until the tree is gone.
pub async fn announce(mut moves: Receiver<Moved>, runtime_dir: PathBuf) {
    let mut complained = false;
    loop {
        let moved = match moves.recv().await {
            Ok(moved) => moved,
            Err(RecvError::Lagged(count)) => {
                debug!(count, "moves were not announced");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let dir = folder(&runtime_dir);
        let written = tokio::task::spawn_blocking(move || write(&dir, &moved)).await;
        if let Ok(Err(error)) = written
            && !std::mem::replace(&mut complained, true)
        {
            warn!(%error, "moves cannot be announced in files");
        }
    }
}

fn write(dir: &Path, moved: &Moved) -> crate::error::Result<()> {
    let dir = dir.join(moved.bundle.namespace.as_str());
    ensure_private_dir(&dir)?;
    let path = dir.join(moved.bundle.slug.as_str());
    let failed = |error: io::Error| crate::error::Error::io(&path, error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(fd);
    let is_new = file.metadata().map_err(failed)?.len() == 0;
    if moved.from.is_some() || is_new {
        let text = format!("{} {}\n", moved.selector.text(), moved.to);
        file.set_len(0).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(from: Option<&str>, to: &str) -> Moved {
        Moved {
            bundle: "acme/kit".parse().unwrap(),
            selector: crate::reference::Selector::Latest,
            from: from.map(|version| version.parse().unwrap()),
            to: to.parse().unwrap(),
        }
    }

    #[test]
    fn a_move_writes_to_the_same_file_and_a_first_sight_only_makes_it() {
        use std::os::unix::fs::MetadataExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let dir = folder(scratch.path());
        let path = dir.join("acme/kit");
        write(&dir, &moved(None, "1.0.0")).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "latest 1.0.0\n");
        write(&dir, &moved(Some("1.0.0"), "1.1.0")).unwrap();
        write(&dir, &moved(None, "9.9.9")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "latest 1.1.0\n");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn an_event_is_a_line_of_json_that_names_both_versions() {
        let event = Event::of(&moved(Some("1.0.0"), "1.1.0")).unwrap();
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'));
        for part in [
            r#""event":"moved""#,
            r#""bundle":"acme/kit""#,
            r#""from":"1.0.0""#,
            r#""to":"1.1.0""#,
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(Event::of(&moved(None, "1.0.0")), None);
    }
}
