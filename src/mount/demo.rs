//! A registry inside the process, for trying things out without one.
//!
//! Its bundles, and the cache and journal of the mount that shows them, are in a temporary directory
//! that goes when the demonstration ends: nothing of it reaches the user's own cache. What a
//! demonstration leaves behind that was killed, the next one removes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::Url;

use crate::config::{Config, Origin, Setting};
use crate::error::{Error, Result};
use crate::paths::Directories;
use crate::registry::{self, Registry, Storage, samples};

/// What the names of the directories begin with.
const PREFIX: &str = "musherfs-demo-";

/// In such a directory, and locked as long as its demonstration lives.
const LOCK: &str = "lock";

/// A younger directory may not be locked yet.
const SETTLED: Duration = Duration::from_secs(60);

/// A running registry with the sample bundles; stopped and removed on drop.
pub struct Demo {
    /// Before the directory: it ends with the process at the latest.
    _lock: File,
    dir: TempDir,
    url: Url,
    server: JoinHandle<()>,
}

impl Demo {
    /// Publishes the samples and serves them on a free port of the loopback interface.
    ///
    /// # Errors
    ///
    /// When the temporary directory or the port cannot be had.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .map_err(|error| Error::io("the temporary directory", error))?;
        if let Some(temp) = dir.path().parent() {
            remove_abandoned(temp);
        }
        let path = dir.path().join(LOCK);
        let lock = File::create(&path)
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|error| Error::io(&path, error))?;
        let storage = Storage::open(dir.path().join("registry"))?.without_sync();
        samples::publish_all(&storage).map_err(|error| Error::Internal(error.to_string()))?;
        let failed = |error| Error::io("tcp:127.0.0.1", error);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let url = Url::parse(&format!("http://{address}"))
            .map_err(|error| Error::Internal(error.to_string()))?;
        let serving = registry::serve(
            listener,
            Registry::new(Arc::new(storage)),
            std::future::pending(),
        );
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the demonstration's registry failed");
            }
        });
        Ok(Self {
            _lock: lock,
            dir,
            url,
            server,
        })
    }

    /// Makes a mount show this registry, with a cache of its own.
    pub fn adjust(&self, config: &mut Config, directories: &mut Directories) {
        config.api_url = Setting {
            value: self.url.clone(),
            origin: Origin::Default,
        };
        config.oci_registry_url.value = None;
        config.mirrors.value.clear();
        directories.cache = self.dir.path().join("cache");
        directories.state = self.dir.path().join("state");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Removes the directories of this user's demonstrations that were killed. Best effort.
fn remove_abandoned(temp: &Path) {
    let user = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(temp) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|meta| {
                let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
                meta.is_dir() && meta.uid() == user && age.is_some_and(|age| age > SETTLED)
            });
        let lock = || File::open(entry.path().join(LOCK));
        if is_ours && lock().is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_what_a_killed_demonstration_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let make = |name: &str, lock: bool, minutes: u64| {
            let dir = temp.path().join(name);
            fs::create_dir(&dir).unwrap();
            let lock = lock.then(|| File::create(dir.join(LOCK)).unwrap());
            let then = SystemTime::now() - Duration::from_secs(60 * minutes);
            File::open(&dir).unwrap().set_modified(then).unwrap();
            (dir, lock)
        };
        let (killed, _) = make("musherfs-demo-killed", true, 5);
        let (alive, lock) = make("musherfs-demo-alive", true, 5);
        lock.as_ref().unwrap().lock().unwrap();
        let (young, _) = make("musherfs-demo-young", true, 0);
        let (foreign, _) = make("musherfs-demo-foreign", false, 5);
        let (other, _) = make("other", true, 5);
        remove_abandoned(temp.path());
        assert!(!killed.exists());
        assert!(
            [alive, young, foreign, other]
                .iter()
                .all(|dir| dir.exists())
        );
    }
}
