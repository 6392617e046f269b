//! A registry that does what a test tells it, and counts what it is asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use musherfs::digest::Digest;
use musherfs::error::{Error, Result};
use musherfs::manifest::{Document, Entry, Info, Layer, Manifest, State};
use musherfs::reference::{BundleId, Namespace, Selector, Slug, Version, VersionRef};
use musherfs::source::{Deadline, Published, Sink, Source};
use tokio::sync::Semaphore;

/// What goes wrong with a call.
#[derive(Clone)]
pub enum Fault {
    /// It fails.
    Fail(Error),
    /// It never ends.
    Hang,
    /// It waits until the test hands out a permit.
    Wait(Arc<Semaphore>),
    /// A file's content is this.
    Bytes(&'static [u8]),
}

type Rule = Box<dyn Fn(&str) -> Option<Fault> + Send + Sync>;

/// Paths and their content.
type Files = Vec<(String, Vec<u8>)>;

#[derive(Default)]
struct Content {
    versions: BTreeMap<VersionRef, (Files, State)>,
    refs: HashMap<(BundleId, String), Version>,
    namespaces: Vec<Namespace>,
    knows_ranges: bool,
    pulls: bool,
}

/// The registry.
pub struct Fake {
    name: String,
    content: Mutex<Content>,
    rule: Mutex<Option<Rule>>,
    calls: Mutex<Vec<String>>,
}

pub fn unreachable() -> Error {
    Error::Unreachable {
        origin: "fake".to_owned(),
        reason: "connection refused".to_owned(),
    }
}

impl Fake {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            content: Mutex::default(),
            rule: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    pub fn publish(&self, version: &str, files: &[(&str, &str)]) {
        let files = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
        let published = (files.collect(), State::Published);
        let mut content = self.content.lock().unwrap();
        content.versions.insert(version.parse().unwrap(), published);
    }

    pub fn set_state(&self, version: &str, state: State) {
        let mut content = self.content.lock().unwrap();
        let version: VersionRef = version.parse().unwrap();
        content.versions.get_mut(&version).unwrap().1 = state;
    }

    pub fn remove(&self, version: &str) {
        let mut content = self.content.lock().unwrap();
        content.versions.remove(&version.parse().unwrap());
    }

    /// Points a tag, or `latest`, at a version, whatever its state.
    pub fn point(&self, bundle: &str, alias: &str, version: &str) {
        let mut content = self.content.lock().unwrap();
        let key = (bundle.parse().unwrap(), alias.to_owned());
        content.refs.insert(key, version.parse().unwrap());
    }

    pub fn know_ranges(&self) {
        self.content.lock().unwrap().knows_ranges = true;
    }

    pub fn serve_pulls(&self) {
        self.content.lock().unwrap().pulls = true;
    }

    pub fn tell_namespaces(&self, names: &[&str]) {
        let names = names.iter().map(|name| name.parse().unwrap());
        self.content.lock().unwrap().namespaces = names.collect();
    }

    /// From now on, `rule` says what goes wrong with a call; see [`Fake::calls`] for its argument.
    pub fn set_rule(&self, rule: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Some(Box::new(rule));
    }

    /// From now on, calls that start with `prefix` go wrong.
    pub fn break_calls(&self, prefix: &'static str, fault: Fault) {
        self.set_rule(move |call| call.starts_with(prefix).then(|| fault.clone()));
    }

    pub fn heal(&self) {
        *self.rule.lock().unwrap() = None;
    }

    /// Every call so far: `resolve acme/kit@latest`, `manifest acme/kit@1.0.0`, `blob a.md`,
    /// `pull acme/kit@1.0.0`, `versions acme/kit`, `bundles acme`, `namespaces`.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn count(&self, prefix: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.starts_with(prefix)).count()
    }

    /// Waits until there were `count` such calls.
    pub async fn called(&self, prefix: &str, count: usize) {
        crate::eventually(|| self.count(prefix) >= count).await;
    }

    async fn call(&self, call: String) -> Result<Option<&'static [u8]>> {
        let fault = {
            self.calls.lock().unwrap().push(call.clone());
            let rule = self.rule.lock().unwrap();
            rule.as_ref().and_then(|rule| rule(&call))
        };
        match fault {
            None => Ok(None),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Wait(gate)) => {
                gate.acquire().await.unwrap().forget();
                Ok(None)
            }
            Some(Fault::Bytes(bytes)) => Ok(Some(bytes)),
        }
    }

    fn document(&self, version: &VersionRef) -> Result<Document> {
        let content = self.content.lock().unwrap();
        let (files, state) = content
            .versions
            .get(version)
            .ok_or_else(|| Error::not_found(version))?;
        let layers = files.iter().map(|(path, bytes)| Layer {
            path: path.clone(),
            digest: Digest::of(bytes),
            size: Some(bytes.len() as u64),
            asset_type: "prompt".to_owned(),
            asset_id: String::new(),
            media_type: None,
        });
        Ok(Document {
            namespace: Some(version.bundle.namespace.to_string()),
            slug: Some(version.bundle.slug.to_string()),
            version: Some(version.version.to_string()),
            info: Info {
                oci_digest: Some(oci_digest(&version.to_string()).to_string()),
                state: *state,
                ..Info::default()
            },
            layers: Some(layers.collect()),
        })
    }

    fn choose(&self, bundle: &BundleId, selector: &Selector) -> Option<VersionRef> {
        let content = self.content.lock().unwrap();
        let of_bundle = || content.versions.keys().filter(|id| id.bundle == *bundle);
        let published = || {
            of_bundle().filter(|id| {
                content.versions[*id].1 == State::Published && !id.version.is_prerelease()
            })
        };
        let key = (bundle.clone(), selector.text().into_owned());
        if let Some(version) = content.refs.get(&key) {
            return Some(VersionRef {
                bundle: bundle.clone(),
                version: version.clone(),
            });
        }
        match selector {
            Selector::Version(version) => of_bundle().find(|id| id.version == *version).cloned(),
            Selector::Latest => published().max().cloned(),
            Selector::Range { req, .. } => published()
                .filter(|id| req.matches(id.version.semver()))
                .max()
                .cloned(),
            Selector::Tag(_) => None,
            Selector::Digest(digest) => of_bundle()
                .find(|id| oci_digest(&id.to_string()) == *digest)
                .cloned(),
        }
    }
}

/// The digest under which the fake publishes a version.
pub fn oci_digest(version: &str) -> Digest {
    Digest::of(format!("oci manifest of {version}").as_bytes())
}

#[async_trait]
impl Source for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        _: Deadline,
    ) -> Result<Document> {
        let what = format!("{bundle}@{selector}");
        self.call(format!("resolve {what}")).await?;
        let knows = self.content.lock().unwrap().knows_ranges;
        if matches!(selector, Selector::Range { .. }) && !knows {
            let content = self.content.lock().unwrap();
            let key = (bundle.clone(), selector.text().into_owned());
            if !content.refs.contains_key(&key) {
                return Err(Error::Rejected {
                    what,
                    origin: self.name.clone(),
                    reason: "not a version".to_owned(),
                });
            }
        }
        let version = self.choose(bundle, selector);
        self.document(&version.ok_or_else(|| Error::not_found(what))?)
    }

    async fn manifest(&self, version: &VersionRef, _: Deadline) -> Result<Document> {
        self.call(format!("manifest {version}")).await?;
        self.document(version)
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        _: Deadline,
    ) -> Result<()> {
        if let Some(bytes) = self.call(format!("blob {}", file.path())).await? {
            return sink.write(bytes);
        }
        let bytes = {
            let content = self.content.lock().unwrap();
            let (files, _) = content
                .versions
                .get(manifest.id())
                .ok_or_else(|| Error::not_found(manifest.id()))?;
            let (_, bytes) = files
                .iter()
                .find(|(path, _)| path == file.path())
                .ok_or_else(|| Error::not_found(file.path()))?;
            bytes.clone()
        };
        sink.restart();
        bytes.chunks(1000).try_for_each(|piece| sink.write(piece))
    }

    async fn pull(&self, manifest: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        if !self.content.lock().unwrap().pulls {
            return Ok(None);
        }
        let wrong = self.call(format!("pull {}", manifest.id())).await?;
        let content = self.content.lock().unwrap();
        let files = content.versions[manifest.id()]
            .0
            .iter()
            .map(|(path, bytes)| {
                let bytes = wrong.unwrap_or(bytes);
                (path.clone(), Bytes::copy_from_slice(bytes))
            });
        Ok(Some(files.collect()))
    }

    async fn versions(&self, bundle: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        self.call(format!("versions {bundle}")).await?;
        let content = self.content.lock().unwrap();
        let rows: Vec<Published> = content
            .versions
            .iter()
            .filter(|(id, _)| id.bundle == *bundle)
            .map(|(id, (_, state))| Published {
                version: id.version.clone(),
                state: *state,
                oci_digest: None,
            })
            .collect();
        if rows.is_empty() {
            return Err(Error::not_found(bundle));
        }
        Ok(rows)
    }

    async fn bundles(&self, namespace: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        self.call(format!("bundles {namespace}")).await?;
        let content = self.content.lock().unwrap();
        let mut slugs: Vec<Slug> = content
            .versions
            .keys()
            .filter(|id| id.bundle.namespace == *namespace)
            .map(|id| id.bundle.slug.clone())
            .collect();
        slugs.dedup();
        if slugs.is_empty() {
            return Err(Error::not_found(namespace));
        }
        Ok(slugs)
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        self.call("namespaces".to_owned()).await?;
        Ok(self.content.lock().unwrap().namespaces.clone())
    }
}
