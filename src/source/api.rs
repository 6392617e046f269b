//! The Musher registry's HTTP API, as a consumer.
//!
//! One question has several routes: the namespace routes want a key, the hub's know public bundles
//! only, and no deployment serves them all. So each question is an order of routes:
//!
//! | question | with a key | without |
//! |---|---|---|
//! | resolve | ns `:resolve` → hub `:resolve` → hub detail + assets → hub `:pull` | the same, ns `:resolve` last |
//! | list of files | resolve → ns version → hub assets → hub `:pull` | the same, ns version last |
//! | a file | ns asset → hub asset → by asset id → `:pull` | hub asset → ns asset → `:pull` |
//! | everything | ns `:pull` → hub `:pull` | hub `:pull` → ns `:pull` |
//! | versions, bundles | ns list → hub | the same |
//!
//! A route that says 401, 403, 404, 405 or 410 hands on to the next; anything else is the answer.
//! It is *absent* if any route said so, *denied* only if every route did. For a file's content
//! alone, a failing or lying route hands on as well, because its bytes prove themselves, and one
//! refusal makes it *denied*: a file that a manifest lists is not absent. A namespace
//! is absent only if the registry lists any: a small one may know bundles by name and nothing else.
//!
//! Answers are checked as far as they can be: names and versions must be those asked for, a digest
//! must be the answer's own, content must match its hash and size before it reaches the sink.

mod check;
mod content;
mod document;
mod keys;
mod paging;
mod route;

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::http::{HttpClient, MAX_ANSWER, Request, Response};
use super::{Deadline, Published, Sink, Source};
use crate::credentials::KeyChain;
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Manifest, State};
use crate::reference::{BundleId, BundleRef, Namespace, Selector, Slug, VersionRef};
pub use check::{Checked, KeyVerdict};
use keys::Keys;
use route::Route;

/// What the name of an [`ApiSource`] begins with, before its URL.
pub const API_KIND: &str = "registry ";

/// Largest file that the API carries, in bytes. Larger ones exist, but only by other ways.
pub const MAX_ASSET: u64 = 16 << 20;

/// JSON answers larger than this are read outside the threads that serve sockets.
const LARGE: usize = 256 << 10;

const JSON: &str = "application/json, application/problem+json";

/// Which registry, and as whom.
#[derive(Debug)]
pub struct ApiSettings {
    /// The registry's URL. A path is kept in front of every route.
    pub base: Url,
    /// Where to look for the key.
    pub keys: KeyChain,
    /// How to send requests.
    pub http: HttpClient,
}

/// A Musher registry.
pub struct ApiSource {
    /// Without a trailing slash.
    base: String,
    name: String,
    http: HttpClient,
    keys: Keys,
    /// Whether it is known to have lists of bundles.
    lists: AtomicBool,
}

impl std::fmt::Debug for ApiSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ApiSource").field(&self.base).finish()
    }
}

/// What the routes asked so far said, if none of them had an answer.
#[derive(Default)]
struct Trail {
    absent: Option<Error>,
    unknown: Option<Error>,
    denied: Option<Error>,
}

impl Trail {
    /// Notes a refusal after which the next route is worth asking.
    ///
    /// # Errors
    ///
    /// The refusal's error, if it is final.
    fn pass(&mut self, refusal: &Response, what: &str) -> Result<()> {
        let error = refusal.error(what);
        match refusal.status.as_u16() {
            404 | 410 => self.absent = Some(error),
            401 | 403 => self.denied = Some(error),
            405 => self.unknown = Some(error),
            _ => return Err(error),
        }
        Ok(())
    }

    /// The error when no route is left.
    fn end(self, what: &str) -> Error {
        self.absent
            .or(self.unknown)
            .or(self.denied)
            .unwrap_or_else(|| Error::not_found(what))
    }
}

impl ApiSource {
    /// Checks the settings; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a URL that must not be asked (see [`HttpClient::check`]) or that
    /// carries credentials.
    pub fn new(settings: ApiSettings) -> Result<Self> {
        let ApiSettings {
            mut base,
            keys,
            http,
        } = settings;
        http.check(&base)?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Error::Config(
                "the registry's URL must not contain credentials; \
                 set MUSHER_API_KEY or --api-key-file instead"
                    .into(),
            ));
        }
        base.set_query(None);
        base.set_fragment(None);
        let base = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            name: format!("{API_KIND}{base}"),
            http: http.for_source(),
            keys: Keys::new(&base, keys),
            base,
            lists: AtomicBool::new(false),
        })
    }

    /// Asks one route. A 401 makes it look for a newer key, once.
    async fn ask(
        &self,
        route: &Route,
        what: &str,
        limit: u64,
        deadline: Deadline,
    ) -> Result<Response> {
        let url = format!("{}{}", self.base, route.target)
            .parse::<Url>()
            .map_err(|error| Error::Internal(format!("a route is no URL: {error}")))?;
        let mut key = if route.with_key {
            deadline.run(what, self.keys.current()).await?
        } else {
            None
        };
        let mut renewed = false;
        loop {
            let request = Request {
                lane: route.lane,
                url: url.clone(),
                what,
                accept: route.accept,
                authorization: key.as_deref().map(keys::Key::authorization),
                limit,
            };
            let response = self.http.get(&request, deadline).await?;
            if response.status.as_u16() == 401
                && !renewed
                && let Some(used) = &key
                && let Some(newer) = deadline.run(what, self.keys.newer_than(used)).await?
            {
                renewed = true;
                key = Some(newer);
                continue;
            }
            // Another origin, where a redirect led, was not sent the key.
            if let Some(key) = &key
                && response.origin == url.origin().ascii_serialization()
            {
                self.keys.judged(key, route.namespace.as_ref(), &response);
            }
            return Ok(response);
        }
    }

    /// Asks a JSON route; `None` if the next one should be asked.
    async fn ask_json<T: DeserializeOwned + Send + 'static>(
        &self,
        route: &Route,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<T>> {
        let response = self.ask(route, what, MAX_ANSWER, deadline).await?;
        if !response.status.is_success() {
            return trail.pass(&response, what).map(|()| None);
        }
        read(response, what, |response, what| response.json(what))
            .await
            .map(Some)
    }

    /// Whether it has lists of bundles at all. One that has none answers 404 for every namespace,
    /// which then says nothing about the namespace.
    async fn has_listings(&self, what: &str, deadline: Deadline) -> Result<bool> {
        if !self.lists.load(Ordering::Relaxed) {
            let route = Route::hub_search();
            let response = self.ask(&route, what, MAX_ANSWER, deadline).await?;
            let lists = !matches!(response.status.as_u16(), 404 | 405 | 410);
            self.lists.store(lists, Ordering::Relaxed);
        }
        Ok(self.lists.load(Ordering::Relaxed))
    }

    async fn has_key(&self, what: &str, deadline: Deadline) -> Result<bool> {
        let key = deadline.run(what, self.keys.current()).await?;
        Ok(key.is_some())
    }
}

/// Reads an answer, a large one on a thread that may be kept busy.
async fn read<T: Send + 'static>(
    response: Response,
    what: &str,
    read: impl FnOnce(&Response, &str) -> Result<T> + Send + 'static,
) -> Result<T> {
    if response.body.len() < LARGE {
        return read(&response, what);
    }
    let what = what.to_owned();
    tokio::task::spawn_blocking(move || read(&response, &what))
        .await
        .map_err(|error| Error::Internal(format!("reading an answer failed: {error}")))?
}

/// A row of the list of a bundle's versions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionRow {
    version: String,
    state: Option<String>,
    oci_digest: Option<String>,
}

/// A row of any list of bundles.
#[derive(Deserialize)]
struct BundleRow {
    slug: String,
    publisher: Option<Handle>,
}

#[derive(Deserialize)]
struct Handle {
    handle: Option<String>,
}

#[derive(Deserialize)]
struct Identity {
    namespaces: Option<Vec<Handle>>,
}

#[derive(Deserialize)]
struct Publishers {
    data: Option<Vec<Handle>>,
}

fn published(row: VersionRow) -> Option<Published> {
    Some(Published {
        version: row.version.parse().ok()?,
        state: match row.state.as_deref() {
            Some("yanked") => State::Yanked,
            _ => State::Published,
        },
        oci_digest: row.oci_digest.filter(|digest| !digest.is_empty()),
    })
}

#[async_trait]
impl Source for ApiSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn notice(&self) -> Option<String> {
        let origin = self.keys.refused()?;
        Some(format!(
            "it refuses the key of this mount ({origin}), which shows public bundles only"
        ))
    }

    fn refusal(&self, namespace: &Namespace) -> Option<String> {
        self.keys.refusal(namespace)
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document> {
        let what = BundleRef {
            bundle: bundle.clone(),
            selector: selector.clone(),
        };
        self.find(bundle, selector, &what.to_string(), deadline)
            .await
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        let what = version.to_string();
        let selector = Selector::Version(version.version.clone());
        let mut document = self
            .find(&version.bundle, &selector, &what, deadline)
            .await?;
        if document.layers.is_none() {
            document.layers = Some(self.layers(version, &what, deadline).await?);
        }
        Ok(document)
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let bytes = self.content(manifest, file, deadline).await?;
        sink.restart();
        sink.write(&bytes)
    }

    async fn pull(
        &self,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        self.pull_all(manifest, deadline).await
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        let what = format!("the versions of {bundle}");
        let mut trail = Trail::default();
        let rows: Option<Vec<VersionRow>> = self
            .pages(&Route::versions(bundle), &what, &mut trail, deadline)
            .await?;
        if let Some(rows) = rows {
            return Ok(rows.into_iter().filter_map(published).collect());
        }
        match self.hub_detail(bundle, &what, &mut trail, deadline).await? {
            Some(detail) => Ok(detail.versions()),
            None => Err(trail.end(&what)),
        }
    }

    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>> {
        let what = format!("the bundles of {namespace}");
        let mut trail = Trail::default();
        for route in [Route::bundles(namespace), Route::hub_bundles(namespace)] {
            let rows: Option<Vec<BundleRow>> =
                self.pages(&route, &what, &mut trail, deadline).await?;
            if let Some(rows) = rows {
                let mut slugs: Vec<Slug> = rows
                    .into_iter()
                    .filter_map(|row| row.slug.parse().ok())
                    .collect();
                slugs.sort_unstable();
                slugs.dedup();
                return Ok(slugs);
            }
        }
        let error = trail.end(&what);
        if error.is_absence() && !self.has_listings(&what, deadline).await? {
            return Err(Error::Rejected {
                what,
                origin: self.base.clone(),
                reason: "it has no lists of bundles".to_owned(),
            });
        }
        Err(error)
    }

    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>> {
        let what = "the namespaces of this key";
        // What is not there or not allowed is an empty list.
        let mut trail = Trail::default();
        let mut handles: Vec<Handle> = Vec::new();
        if self.has_key(what, deadline).await? {
            let identity: Option<Identity> = self
                .ask_json(&Route::identity(), what, &mut trail, deadline)
                .await?;
            handles.extend(
                identity
                    .and_then(|identity| identity.namespaces)
                    .into_iter()
                    .flatten(),
            );
            let publishers: Option<Publishers> = self
                .ask_json(&Route::my_publishers(), what, &mut trail, deadline)
                .await?;
            handles.extend(
                publishers
                    .and_then(|publishers| publishers.data)
                    .into_iter()
                    .flatten(),
            );
        }
        let seen: Option<paging::Page<BundleRow>> = self
            .ask_json(&Route::hub_search(), what, &mut trail, deadline)
            .await?;
        let seen = seen.map(|page| page.data).unwrap_or_default();
        handles.extend(seen.into_iter().filter_map(|row| row.publisher));
        let mut namespaces: Vec<Namespace> = handles
            .into_iter()
            .filter_map(|handle| handle.handle?.parse().ok())
            .collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        Ok(namespaces)
    }
}
