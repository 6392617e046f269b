//! OCI registries and mirrors as sources: what is asked, what is believed, who is shown a login.
//! In one process, against scripted registries and a real cache.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod auth;
mod fake;
#[path = "../support/fault_server.rs"]
mod fault_server;
mod hostile;
mod mirrors;
mod reading;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use musherfs::client::Client;
use musherfs::config::{Config, Overrides, value};
use musherfs::credentials::KeyChain;
use musherfs::error::{Error, Result};
use musherfs::paths::{Directories, Os};
use musherfs::source::Deadline;
use musherfs::store::Loaded;
use tempfile::TempDir;

use fake::FakeRegistry;

/// One user's machine.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, content: &[u8]) -> PathBuf {
        let hex = musherfs::digest::Digest::of(content).hex();
        let blobs = self.path().join("cache/blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    /// One process on it, with the registry at `host` and whatever else is wanted.
    fn client(&self, host: &str, adjust: impl FnOnce(&mut Overrides)) -> Client {
        let mut overrides = Overrides {
            oci_registry_url: Some(value::oci(host).unwrap()),
            readahead: Some(0),
            metadata_timeout: Some(Duration::from_secs(30)),
            content_timeout: Some(Duration::from_secs(30)),
            ..Overrides::default()
        };
        adjust(&mut overrides);
        let home = self.path().as_os_str().to_owned();
        let env = |name: &str| (name == "MUSHER_HOME").then(|| home.clone() as OsString);
        let directories = Directories::resolve(Os::Linux, &env, None).unwrap();
        let config = Config::load(&directories, overrides).unwrap();
        Client::new(&config, &directories, KeyChain::default()).unwrap()
    }

    /// A process with the registry and nothing else.
    fn plain(&self, registry: &FakeRegistry) -> Client {
        self.client(&registry.host(), |_| {})
    }
}

async fn manifest(client: &Client, reference: &str) -> Result<Arc<Loaded>> {
    client.manifest(&reference.parse().unwrap()).await
}

fn paths(loaded: &Loaded) -> Vec<&str> {
    loaded.manifest.files().map(|file| file.path()).collect()
}

async fn read_of(client: &Client, loaded: &Arc<Loaded>, path: &str) -> Result<Vec<u8>> {
    let file = loaded.manifest.find(path);
    let index = file.ok_or_else(|| Error::not_found(path))?.index();
    let deadline = Deadline::after(client.store.policy().content_timeout);
    client.store.read(loaded, index, 0, 1 << 20, deadline).await
}

async fn read(client: &Client, reference: &str, path: &str) -> Result<Vec<u8>> {
    let loaded = manifest(client, reference).await?;
    read_of(client, &loaded, path).await
}
