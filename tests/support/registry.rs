//! A real registry on a loopback port, with faults on demand.
//!
//! ```ignore
//! mod support;
//! use support::registry::{Effect, Fault, RouteKind, TestRegistry};
//!
//! let registry = TestRegistry::start();
//! registry.publish("acme", "kit", "1.0.0", &[("prompts/a.md", b"hello\n")]);
//! registry.fault(Fault::new(Effect::Status(503)).on(RouteKind::Asset).times(2));
//! // … point a client at registry.url() …
//! assert_eq!(registry.count(RouteKind::Resolve), 1);
//! assert_eq!(registry.content_requests(), 1);
//! ```
//!
//! It runs on a thread and a runtime of its own, so it serves sync and async tests alike, and stops
//! when the guard is dropped. [`TestRegistry::stop`] and [`TestRegistry::restart`] take it off the
//! network and back, on the same port with the same bundles; stopped, connections are refused.
//!
//! Each request is logged when it arrives, faults included. To hold requests until the test says so,
//! use [`Effect::Hold`]; to wait until they have arrived, [`TestRegistry::wait_until`].

#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::panic
)]

mod fault;

pub use fault::{Effect, Fault, Gate};

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, header};
use musherfs::digest::Digest;
use musherfs::publish::{Asset, Publication, Visibility};
use musherfs::reference::{BundleId, VersionRef};
use musherfs::registry::{Registry, Storage, router, samples};
use serde_json::Value;

use fault::{Connection, Port, apply};

pub use musherfs::registry::RouteKind;

/// How long [`TestRegistry::wait_until`] waits before it fails the test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One request, as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path as sent, percent-encoded.
    pub path: String,
    /// The query as sent, without `?`; empty if there was none.
    pub query: String,
    /// What it is about.
    pub kind: RouteKind,
    /// All headers.
    pub headers: HeaderMap,
    /// Whether a fault was applied.
    pub faulty: bool,
    /// The answer's status; `None` while there is none, and for ever after a hang or a reset.
    pub status: Option<u16>,
}

impl Seen {
    /// Whether the request carried credentials.
    pub fn is_authorized(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }
}

/// An answer to [`TestRegistry::ask`].
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers; names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// `None` if it is cut off.
    fn parse(raw: &[u8], without_body: bool) -> Option<Self> {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&raw[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let body = raw[end + 4..].to_vec();
        // This server always knows its bodies' lengths.
        let length: usize = headers.get("content-length")?.parse().ok()?;
        (without_body || body.len() == length).then_some(Self {
            status,
            headers,
            body,
        })
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Shared {
    log: Mutex<Vec<Seen>>,
    changed: Condvar,
    faults: Mutex<Vec<Fault>>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.log
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The effect of the first fault that applies, used up by one.
    fn strike(&self, seen: &Seen) -> Option<Effect> {
        let mut faults = self.faults.lock().unwrap();
        faults.iter_mut().find_map(|fault| fault.strike(seen))
    }
}

struct Server {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// A running registry; stops when dropped.
pub struct TestRegistry {
    dir: tempfile::TempDir,
    storage: Arc<Storage>,
    registry: Registry,
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

impl TestRegistry {
    /// An empty registry without tokens: public bundles are served on all routes.
    pub fn start() -> Self {
        Self::start_with(|registry| registry)
    }

    /// An empty registry that knows one key; namespace routes answer 401 without it.
    pub fn start_with_token(secret: &str) -> Self {
        Self::start_with(|registry| registry.with_token(secret))
    }

    /// An empty registry, set up by `configure`.
    pub fn start_with(configure: impl FnOnce(Registry) -> Registry) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let storage = Storage::open(dir.path()).expect("a registry directory");
        let storage = Arc::new(storage.without_sync());
        let listener = StdListener::bind("127.0.0.1:0").expect("a loopback port");
        let this = Self {
            address: listener.local_addr().expect("a bound address"),
            registry: configure(Registry::new(Arc::clone(&storage))),
            dir,
            storage,
            shared: Arc::default(),
            server: Mutex::new(None),
        };
        this.serve(listener);
        this
    }

    /// `http://127.0.0.1:PORT`, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The partition of the shared cache that this registry's bundles belong to.
    pub fn host_id(&self) -> String {
        format!("{}_{}", self.address.ip(), self.address.port())
    }

    /// The registry's directory, for damaging it.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The registry's storage, for what has no shorthand here.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Publishes a public version with these files.
    pub fn publish(
        &self,
        namespace: &str,
        slug: &str,
        version: &str,
        files: &[(&str, &[u8])],
    ) -> VersionRef {
        self.publish_as(Visibility::Public, namespace, slug, version, files)
    }

    /// Publishes a version that only holders of a token see.
    pub fn publish_private(
        &self,
        namespace: &str,
        slug: &str,
        version: &str,
        files: &[(&str, &[u8])],
    ) -> VersionRef {
        self.publish_as(Visibility::Private, namespace, slug, version, files)
    }

    fn publish_as(
        &self,
        visibility: Visibility,
        namespace: &str,
        slug: &str,
        version: &str,
        files: &[(&str, &[u8])],
    ) -> VersionRef {
        let reference = format!("{namespace}/{slug}@{version}");
        let mut publication = Publication::new(reference.parse().expect("a valid reference"));
        publication.visibility = visibility;
        publication.assets = files
            .iter()
            .map(|(path, bytes)| Asset::new(path, bytes.to_vec()).expect("a valid path"))
            .collect();
        self.storage
            .publish(&publication, "tester")
            .expect("a publication that keeps the rules")
    }

    /// Publishes the embedded samples.
    pub fn publish_samples(&self) -> Vec<VersionRef> {
        samples::publish_all(&self.storage).expect("samples that keep the rules")
    }

    /// Publishes every file below `dir` as a public version.
    pub fn publish_tree(
        &self,
        namespace: &str,
        slug: &str,
        version: &str,
        dir: &Path,
    ) -> VersionRef {
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
            let entry = entry.expect("a readable tree");
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(dir).unwrap();
                let bytes = std::fs::read(entry.path()).expect("a readable file");
                files.push((path.to_str().expect("a UTF-8 name").to_owned(), bytes));
            }
        }
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
            .collect();
        self.publish(namespace, slug, version, &files)
    }

    /// Puts a version in place whose list of files breaks the rules: `files` are (path, content)
    /// as they shall be listed, hostile paths and duplicates included.
    pub fn plant(
        &self,
        namespace: &str,
        slug: &str,
        version: &str,
        files: &[(&str, &[u8])],
    ) -> VersionRef {
        self.plant_with(namespace, slug, version, files, |_| {})
    }

    /// The same, after `change` had its way with the stored manifest.
    pub fn plant_with(
        &self,
        namespace: &str,
        slug: &str,
        version: &str,
        files: &[(&str, &[u8])],
        change: impl FnOnce(&mut Value),
    ) -> VersionRef {
        let assets: Vec<Value> = files
            .iter()
            .map(|(path, bytes)| {
                let digest = Digest::of(bytes).hex();
                let blob = self.root().join("blobs/sha256").join(&digest[..2]);
                std::fs::create_dir_all(&blob).unwrap();
                std::fs::write(blob.join(&digest), bytes).unwrap();
                serde_json::json!({
                    "asset_id": "",
                    "logical_path": path,
                    "asset_type": "other",
                    "content_sha256": digest,
                    "size_bytes": bytes.len(),
                })
            })
            .collect();
        let mut manifest = serde_json::json!({
            "namespace": namespace,
            "bundle_slug": slug,
            "version": version,
            "visibility": "public",
            "assets": assets,
        });
        change(&mut manifest);
        let dir = self.root().join("bundles").join(namespace).join(slug);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{version}.json")), manifest.to_string()).unwrap();
        format!("{namespace}/{slug}@{version}").parse().unwrap()
    }

    /// Withdraws a version.
    pub fn yank(&self, reference: &VersionRef, reason: &str) {
        self.storage
            .yank(reference, reason, "tester")
            .expect("a version to yank");
    }

    /// Puts it back.
    pub fn unyank(&self, reference: &VersionRef) {
        self.storage
            .unyank(reference, "tester")
            .expect("a version to unyank");
    }

    /// Points a tag at a version.
    pub fn tag(&self, reference: &VersionRef, tag: &str) {
        self.storage
            .tag(&reference.bundle, tag, Some(&reference.version))
            .expect("a version to tag");
    }

    /// Deletes a bundle from the directory, which a real registry never does.
    pub fn destroy(&self, bundle: &BundleId) {
        let dir = self.root().join("bundles").join(bundle.namespace.as_str());
        std::fs::remove_dir_all(dir.join(bundle.slug.as_str())).expect("a bundle to destroy");
    }

    /// Every request so far, in order of arrival.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.log().clone()
    }

    /// `GET /path?query` of every request so far.
    pub fn lines(&self) -> Vec<String> {
        self.shared
            .log()
            .iter()
            .map(|seen| {
                let mark = if seen.query.is_empty() { "" } else { "?" };
                format!("{} {}{mark}{}", seen.method, seen.path, seen.query)
            })
            .collect()
    }

    /// How many requests there were.
    pub fn requests(&self) -> usize {
        self.shared.log().len()
    }

    /// How many requests of this kind there were.
    pub fn count(&self, kind: RouteKind) -> usize {
        self.shared
            .log()
            .iter()
            .filter(|seen| seen.kind == kind)
            .count()
    }

    /// How many requests asked for files' content.
    pub fn content_requests(&self) -> usize {
        self.shared
            .log()
            .iter()
            .filter(|seen| seen.kind.is_content())
            .count()
    }

    /// How many requests asked which version a name means.
    pub fn resolve_requests(&self) -> usize {
        self.count(RouteKind::Resolve)
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.shared.log().clear();
    }

    /// Waits until the log is as `done` says. Fails the test after [`PATIENCE`].
    pub fn wait_until(&self, what: &str, done: impl Fn(&[Seen]) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut log = self.shared.log();
        while !done(&log) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; log: {log:#?}");
            log = self.shared.changed.wait_timeout(log, left).unwrap().0;
        }
    }

    /// Waits until `n` requests of this kind have arrived.
    pub fn wait_for(&self, kind: RouteKind, n: usize) {
        self.wait_until(&format!("{n} × {kind:?}"), |log| {
            log.iter().filter(|seen| seen.kind == kind).count() >= n
        });
    }

    /// Adds a fault. Of several that match a request, the first added applies.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push(fault);
    }

    /// Holds requests of this kind until the returned gate is opened.
    pub fn hold(&self, kind: RouteKind) -> Gate {
        let gate = Gate::new();
        self.fault(Fault::new(Effect::Hold(gate.clone())).on(kind));
        gate
    }

    /// From now on everything works.
    pub fn clear_faults(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Asks the registry directly, over a connection of its own. Logged and disturbed like any
    /// other request.
    ///
    /// # Errors
    ///
    /// A connection that fails, and an answer that is cut off.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        let mut stream = std::net::TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "connection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        Answer::parse(&raw, method == "HEAD")
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// The answer to a GET without a key.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).expect("an answer")
    }

    /// Closes the port and all connections. Faults, bundles and the log stay.
    pub fn stop(&self) {
        let server = self.server.lock().unwrap().take();
        if let Some(server) = server {
            // The thread may have ended by a panic, which the join tells.
            let _ = server.stop.send(());
            if server.thread.join().is_err() && !std::thread::panicking() {
                panic!("the registry's thread panicked");
            }
        }
    }

    /// Opens the same port again. Nothing happens if it is open.
    pub fn restart(&self) {
        if self.server.lock().unwrap().is_some() {
            return;
        }
        let listener = StdListener::bind(self.address).expect("the same port again");
        self.serve(listener);
    }

    fn serve(&self, listener: StdListener) {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let service = router(self.registry.clone()).layer(axum::middleware::from_fn_with_state(
            Arc::clone(&self.shared),
            disturb,
        ));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = axum::serve(
                    Port(listener),
                    service.into_make_service_with_connect_info::<Connection>(),
                );
                tokio::select! {
                    result = server.into_future() => result.expect("serving"),
                    // Also when the guard is gone.
                    _ = stopped => {}
                }
            });
            // Dropping the runtime closes all connections before the thread ends.
        });
        *self.server.lock().unwrap() = Some(Server { stop, thread });
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Logs a request and applies the fault that is meant for it, if any.
async fn disturb(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let mut seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        kind: RouteKind::of(request.uri().path()),
        headers: request.headers().clone(),
        faulty: false,
        status: None,
    };
    let effect = shared.strike(&seen);
    seen.faulty = effect.is_some();
    let index = {
        let mut log = shared.log();
        log.push(seen);
        log.len() - 1
    };
    shared.changed.notify_all();

    let response = match effect {
        None => next.run(request).await,
        Some(effect) => apply(effect, &connection, request, next).await,
    };
    // The log may have been cleared meanwhile.
    if let Some(seen) = shared.log().get_mut(index) {
        seen.status = Some(response.status().as_u16());
    }
    shared.changed.notify_all();
    response
}
