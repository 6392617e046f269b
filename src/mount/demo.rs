//! A registry inside the process, for trying things out without one.
//!
//! Its bundles, and the cache and journal of the mount that shows them, are in a temporary directory
//! that goes when the demonstration ends: nothing of it reaches the user's own cache.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use url::Url;

use crate::config::{Config, Origin, Setting};
use crate::error::{Error, Result};
use crate::paths::Directories;
use crate::registry::{self, Registry, Storage, samples};

/// A running registry with the sample bundles; stopped and removed on drop.
pub struct Demo {
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
            .prefix("musherfs-demo-")
            .tempdir()
            .map_err(|error| Error::io("the temporary directory", error))?;
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
        Ok(Self { dir, url, server })
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
