//! Healing: damaged blobs fetched again, damaged and foreign entries written anew.
//!
//! | what is wrong | what is done |
//! |---|---|
//! | a blob that an entry of this registry names | fetched again |
//! | a blob that only local packs name | left alone: no registry has it |
//! | a blob that others name, or nobody | removed: absent, every tool fetches it; bad, some serve it |
//! | an entry of this registry that cannot be read | fetched again |
//! | an entry in another tool's shape | written in the shape that all tools read, no fresher |

use std::collections::HashSet;

use tracing::debug;

use super::load::Progress;
use crate::cache::HostId;
use crate::cache::verify::Bad;
use crate::client::Client;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Entry;
use crate::reference::VersionRef;
use crate::source::Deadline;

/// What was done.
#[derive(Debug, Default)]
pub struct Healed {
    /// Blobs that were fetched again; paths below the root.
    pub refetched: Vec<String>,
    /// Bad blobs that were removed.
    pub removed: Vec<String>,
    /// Entries that were fetched or written anew.
    pub rewritten: Vec<String>,
    /// What stays as it is, and why.
    pub failed: Vec<(String, Error)>,
}

/// Heals what [`Cache::verify`](crate::cache::Cache::verify) found, and foreign entries.
pub async fn heal(client: &Client, bad: &[Bad], progress: &dyn Progress) -> Healed {
    let mut healed = Healed::default();
    progress.expect(bad.len() as u64, 0);
    for item in bad {
        match item {
            Bad::Entry { path, place } => entry(client, path, place.as_ref(), &mut healed).await,
            Bad::Blob { blob, .. } => {
                // mush 4.2.0's copy cannot be replaced, only removed.
                self::blob(client, &item.path(), blob.digest, blob.is_flat, &mut healed).await;
            }
        }
        progress.done(0);
    }
    foreign(client, &mut healed).await;
    healed
}

async fn entry(
    client: &Client,
    path: &str,
    place: Option<&(HostId, VersionRef)>,
    healed: &mut Healed,
) {
    let (store, deadline) = (&client.store, deadline(client));
    let answer = match place {
        Some((host, version)) if is_ours(client, host) => store.fetch(version, deadline).await,
        _ => Err(Error::Offline {
            what: format!("{path}, which is another registry's,"),
        }),
    };
    match answer {
        Ok(_) => healed.rewritten.push(path.to_owned()),
        Err(error) => healed.failed.push((path.to_owned(), error)),
    }
}

async fn blob(client: &Client, path: &str, digest: Digest, is_flat: bool, healed: &mut Healed) {
    let store = &client.store;
    let cache = store.cache();
    let mut failure = None;
    if !is_flat {
        for (version, index) in named_in(client, digest) {
            let fetched = async {
                let loaded = store.held(&version, deadline(client)).await?;
                store.refetch_file(&loaded, index, deadline(client)).await
            };
            match fetched.await {
                Ok(()) => {
                    healed.refetched.push(path.to_owned());
                    return;
                }
                Err(error) => {
                    debug!(%version, %error, "not fetched again");
                    failure = Some(error);
                }
            }
        }
    }
    if failure.is_none() && cache.named_by(&HostId::local()).contains(&digest) {
        failure = Some(Error::WrongBytes {
            what: "a file of a local pack".to_owned(),
            expected: digest,
            origin: "the cache".to_owned(),
        });
    }
    let answer = match failure {
        Some(error) => Err(error),
        None => cache.remove_blob(digest, is_flat).map(drop),
    };
    match answer {
        Ok(()) => healed.removed.push(path.to_owned()),
        Err(error) => healed.failed.push((path.to_owned(), error)),
    }
}

/// Where the client's registry has the blob, as far as entries tell: one file a version.
fn named_in(client: &Client, digest: Digest) -> Vec<(VersionRef, u32)> {
    let cache = client.store.cache();
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    for place in cache.entries() {
        if !is_ours(client, &place.host) || !seen.insert(place.version.clone()) {
            continue;
        }
        if let Some(cached) = cache.read_manifest(client.store.host(), &place.version) {
            let mut files = cached.manifest.files();
            let index = files.find(|file| file.digest() == digest);
            places.extend(index.map(|file: Entry<'_>| (place.version.clone(), file.index())));
        }
    }
    places
}

async fn foreign(client: &Client, healed: &mut Healed) {
    let cache = client.store.cache();
    for on_disk in cache.on_disk() {
        let (host, version) = (&on_disk.host, &on_disk.version);
        let Some(cached) = &on_disk.cached else {
            continue;
        };
        if cached.is_superset || host.is_local() {
            continue;
        }
        let path = format!(
            "manifests/{host}/{}/{}.json",
            version.bundle, version.version
        );
        let answer = match cached.fetched_at {
            Some(_) => cache.rewrite_foreign(host, version),
            // Nobody knows how old it is; the registry does.
            None if is_ours(client, host) => {
                let fetched = client.store.fetch(version, deadline(client)).await;
                fetched.map(|_| true)
            }
            None => Ok(false),
        };
        match answer {
            Ok(true) => healed.rewritten.push(path),
            Ok(false) => {}
            // It serves as it is.
            Err(error) if error.is_outage() || error.is_absence() => {
                debug!(path, %error, "left in its shape");
            }
            Err(error) => healed.failed.push((path, error)),
        }
    }
}

fn is_ours(client: &Client, host: &HostId) -> bool {
    let own = client.store.host();
    host == own || own.legacy_spellings().contains(host)
}

fn deadline(client: &Client) -> Deadline {
    let policy = client.store.policy();
    Deadline::after(policy.metadata_timeout.max(policy.content_timeout))
}
