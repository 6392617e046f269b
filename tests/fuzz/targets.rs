//! What is done to the bytes of strangers: one function for each thing that reads them.
//!
//! The fuzzer calls them with what it makes up, and an ordinary test with what was found to be
//! interesting (`corpus/`). Besides "no panic" each checks what the reader promises: what is understood
//! can be written and understood again, and nothing that is refused elsewhere comes through.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use musherfs::cache::{Cache, HostId};
use musherfs::digest::Digest;
use musherfs::fs::{self, Fs};
use musherfs::manifest::{Document, Info, Kind, Layer, Manifest};
use musherfs::metrics::Metrics;
use musherfs::mount::MountId;
use musherfs::mount::control::{self, Control, Event, Status, Why};
use musherfs::publish::Publication;
use musherfs::reference::{
    BundleId, BundleRef, LogicalPath, Namespace, Selector, Slug, Version, VersionRef,
};
use musherfs::resolve::{self, Resolver};
use musherfs::source::http::problem;
use musherfs::source::oci::archive::Archive;
use musherfs::source::oci::challenge::parse_challenges;
use musherfs::source::oci::model::{BundleConfig, ImageManifest};
use musherfs::source::oci::reference::{Endpoint, Repository, StateTag, tag_of, version_of};
use musherfs::store::journal::Journal;
use musherfs::store::{self, Policy, Store};

/// What is done to an input, and the name of its corpus and of the fuzzer's program.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("references", references),
    ("paths", paths),
    ("manifests", manifests),
    ("entries", entries),
    ("refs", refs),
    ("oci", oci),
    ("definition", definition),
    ("problems", problems),
    ("challenges", challenges),
    ("socket", socket),
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Two inputs in one: what stands before and after a line of four dashes.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let line = b"\n----\n";
    match data.windows(line.len()).position(|window| window == line) {
        Some(at) => (&data[..at], &data[at + line.len()..]),
        None => (data, b""),
    }
}

fn id() -> VersionRef {
    "acme/kit@1.2.0".parse().unwrap()
}

fn host() -> HostId {
    "registry.example".parse().unwrap()
}

/// Whether `name` is one component of a path, and no way out of a directory.
fn is_component(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}

/// References, selectors, endpoints and tags.
pub fn references(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(reference) = text.parse::<BundleRef>() {
        assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
        let BundleId { namespace, slug } = &reference.bundle;
        assert!(is_component(namespace.as_str()) && is_component(slug.as_str()));
    }
    if let Ok(version) = text.parse::<VersionRef>() {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string().parse(), Ok(selector.clone()));
        assert!(is_component(&selector.text()), "{selector}");
    }
    if let Ok(version) = text.parse::<Version>() {
        assert_eq!(version.as_str(), text);
        assert_eq!(version_of(&tag_of(&version)), Some(version));
    }
    let _ = text.parse::<Namespace>();
    let _ = text.parse::<Slug>();
    if let Ok(host) = text.parse::<HostId>() {
        assert!(is_component(&host.to_string()));
        assert_eq!(host.to_string().parse(), Ok(host));
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        let repository = endpoint.repository(&id().bundle);
        let again = repository.and_then(|it| endpoint.bundle(it.as_str()));
        assert!(again.is_none_or(|bundle| bundle == id().bundle));
        let _ = endpoint.host_id();
    }
    let _ = Repository::parse(text);
    if let Ok(tag) = text.parse::<StateTag>() {
        assert_eq!(tag.to_string().parse(), Ok(tag));
    }
}

/// Paths within a bundle.
pub fn paths(data: &[u8]) {
    let Some(text) = text(data) else { return };
    match text.parse::<LogicalPath>() {
        Ok(path) => {
            assert_eq!(path.as_str(), text);
            assert!(text.split('/').all(is_component), "{text:?}");
            assert!(text.len() <= 4096 && !Path::new(text).is_absolute());
        }
        Err(error) => assert_eq!(LogicalPath::check(text), Err(error)),
    }
    // A line a path: whatever they are to each other, the table is one.
    let layers = text.lines().take(64).map(|path| Layer {
        path: path.to_owned(),
        digest: Digest::of(path.as_bytes()),
        size: Some(path.len() as u64),
        asset_type: "other".to_owned(),
        asset_id: String::new(),
        media_type: None,
    });
    if let Ok(manifest) = Manifest::new(id(), Info::default(), layers.collect()) {
        check_table(&manifest);
    }
}

/// Every node is found by its path, is in the directory it says, and no name leads outside.
fn check_table(manifest: &Manifest) {
    let mut seen = HashSet::new();
    for entry in manifest.entries() {
        let index = entry.index();
        assert!(seen.insert(index));
        assert_eq!(
            manifest.entry(index).map(|it| it.path()),
            Some(entry.path())
        );
        if index == 0 || matches!(entry.kind(), Kind::Refused(_)) {
            continue;
        }
        assert!(
            entry.path().split('/').all(is_component),
            "{}",
            entry.path()
        );
        let found = manifest.find(entry.path()).map(|it| it.index());
        assert_eq!(found, Some(index), "{}", entry.path());
        let parent = manifest.parent(index);
        assert!(manifest.entry(parent).is_some_and(|it| it.is_dir()));
        let found = manifest.lookup(parent, entry.name()).map(|it| it.index());
        assert_eq!(found, Some(index), "{}", entry.path());
        assert!(manifest.children(parent, 0).any(|it| it.index() == index));
    }
    assert_eq!(seen.len(), manifest.len() as usize);
}

/// A version's description, in any dialect.
pub fn manifests(data: &[u8]) {
    let Ok(mut document) = Document::parse(data) else {
        return;
    };
    document.fill_sizes(|_| Some(1));
    let Ok(manifest) = document.into_manifest(id()) else {
        return;
    };
    check_table(&manifest);
    // Written into the cache and read from there it is the same: inode numbers depend on it.
    let place = Place::new();
    let cache = place.cache();
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    cache.write_manifest(&host(), &manifest, at).unwrap();
    let read = cache.read_manifest(&host(), manifest.id()).unwrap();
    assert_eq!(read.manifest.table_digest(), manifest.table_digest());
    assert_eq!(read.fetched_at, Some(at));
}

/// A directory in memory, where there is one.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        Self(dir.unwrap())
    }

    fn cache(&self) -> Cache {
        Cache::new(self.0.path().join("cache"))
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join("cache").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A manifest in the cache with the sidecar beside it.
pub fn entries(data: &[u8]) {
    let (json, sidecar) = halves(data);
    let place = Place::new();
    place.put("manifests/registry.example/acme/kit/1.2.0.json", json);
    place.put(
        "manifests/registry.example/acme/kit/1.2.0.meta.json",
        sidecar,
    );
    let cache = place.cache();
    let entry = cache.read_manifest(&host(), &id());
    let _ = cache.state(&host(), &id());
    let _ = cache.versions_with_state(&host(), &id().bundle);
    let _ = cache.named_by(&host());
    let Some(entry) = entry else { return };
    check_table(&entry.manifest);
    let _ = entry.is_fresh(Timestamp::now());
}

/// A ref in the cache.
pub fn refs(data: &[u8]) {
    let place = Place::new();
    let (json, bare) = halves(data);
    place.put("refs/registry.example/acme/kit/latest.json", json);
    place.put("refs/registry.example/acme/kit/latest", bare);
    let cache = place.cache();
    if let Some(found) = cache.read_ref(&host(), &id().bundle, "latest") {
        let _ = found.is_fresh(Timestamp::now());
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        cache
            .write_ref(&host(), &id().bundle, "latest", &found.version, at)
            .unwrap();
        let again = cache.read_ref(&host(), &id().bundle, "latest");
        if found.version.fits_cache() {
            assert_eq!(again.map(|it| it.version), Some(found.version));
        }
    }
}

/// What an OCI registry sends: manifests, configs, archives.
pub fn oci(data: &[u8]) {
    if let Ok(manifest) = ImageManifest::parse(data) {
        let written = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(ImageManifest::parse(&written).as_ref(), Ok(&manifest));
        for layer in &manifest.layers {
            let _ = layer.sha256();
        }
    }
    let _ = BundleConfig::parse(data);
    if let Ok(archive) = Archive::read(data.to_vec()) {
        for file in archive.files() {
            let content = archive.content(file.digest).unwrap();
            assert_eq!(Digest::of(content), file.digest);
            assert_eq!(content.len() as u64, file.size());
        }
    }
}

/// A publisher's `musher.yaml`.
pub fn definition(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let file = |path: &str| (!path.contains("absent")).then_some(&b"content\n"[..]);
    if let Ok(publication) = Publication::from_parts(text, file) {
        publication.check().unwrap();
        let _ = publication.warnings();
        assert!(publication.size() >= 8);
    }
}

/// What a refusal says.
pub fn problems(data: &[u8]) {
    let (body, header) = halves(data);
    let mut headers = HeaderMap::new();
    for media_type in ["application/problem+json", "text/html", "text/plain"] {
        headers.insert("content-type", HeaderValue::from_static(media_type));
        if let Ok(id) = HeaderValue::from_bytes(header) {
            headers.insert("x-request-id", id);
        }
        for status in [StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY] {
            let line = problem::summary(status, &headers, body);
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.chars().count() < 700, "{line:?}");
        }
    }
}

/// A `WWW-Authenticate` header.
pub fn challenges(data: &[u8]) {
    let Some(text) = text(data) else { return };
    for challenge in parse_challenges(text) {
        assert!(!challenge.scheme.is_empty());
        assert_eq!(challenge.scheme, challenge.scheme.to_ascii_lowercase());
        let _ = challenge.get("realm");
    }
}

/// The control socket, from both of its ends: as a request, and as an answer.
pub fn socket(data: &[u8]) {
    let _ = serde_json::from_slice::<Status>(data);
    let _ = serde_json::from_slice::<Why>(data);
    if let Ok(event) = serde_json::from_slice::<Event>(data) {
        let written = serde_json::to_vec(&event).unwrap();
        assert_eq!(serde_json::from_slice::<Event>(&written).unwrap(), event);
    }
    static SERVER: LazyLock<PathBuf> = LazyLock::new(serve);
    let ask = |request: &[u8]| {
        let mut stream = UnixStream::connect(&*SERVER).expect("the socket listens");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        // It may hang up in the middle of nonsense.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = [0; 12];
        let read = stream
            .read(&mut answer)
            .map(|n| &answer[..n] == b"HTTP/1.1 500");
        if let Err(error) = &read {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no answer");
        }
        assert!(!read.unwrap_or(false), "a handler panicked");
    };
    ask(data);
    // The path, for which a fuzzer would otherwise have to learn HTTP first.
    let mut request = b"GET /v1/why?path=".to_vec();
    for byte in data.iter().take(600) {
        write!(request, "%{byte:02x}").unwrap();
    }
    request.extend(b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    ask(&request);
}

/// Serves the socket of a mount that knows one version and has no registry, for as long as this
/// process lives; where it is.
fn serve() -> PathBuf {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let place = Place::new();
            let base = place.0.path().to_owned();
            let layer = Layer {
                path: "docs/a.md".to_owned(),
                digest: Digest::of(b"a\n"),
                size: Some(2),
                asset_type: "prompt".to_owned(),
                asset_id: String::new(),
                media_type: None,
            };
            let manifest = Manifest::new(id(), Info::default(), vec![layer]).unwrap();
            let cache = place.cache();
            let now = Timestamp::now();
            cache.write_manifest(&host(), &manifest, now).unwrap();
            let version = &id().version;
            cache
                .write_ref(&host(), &id().bundle, "latest", version, now)
                .unwrap();
            let control = Control::new(
                Path::new("/mnt/musher"),
                serde_json::from_str::<MountId>(r#"{"id":1,"device":{"major":0,"minor":1}}"#)
                    .unwrap(),
                "https://registry.example".to_owned(),
                musherfs::client::Breakers::default(),
                offline(&base),
                None,
            );
            let listening = control::listen(&base, control).unwrap();
            let beside = std::fs::read_dir(base.join("musherfs")).unwrap();
            let mut beside = beside.map(|it| it.unwrap().path());
            let is_socket = |path: &PathBuf| path.extension().is_some_and(|it| it == "sock");
            let socket = beside.find(is_socket).unwrap();
            tell.send(socket).unwrap();
            listening.serve().await;
        });
    });
    told.recv().unwrap()
}

/// A filesystem of what is cached below `base`.
fn offline(base: &Path) -> Arc<Fs> {
    let cache = Arc::new(Cache::new(base.join("cache")));
    let metrics = Arc::new(Metrics::default());
    let journal = Arc::new(Journal::open(&base.join("journal.jsonl")));
    let policy = Policy::default();
    let resolver = Resolver::new(resolve::Settings {
        host: host(),
        cache: Arc::clone(&cache),
        sources: Vec::new(),
        namespaces: Vec::new(),
        local_packs: policy.local_packs,
        respect_removal: policy.respect_removal,
        timeout: policy.metadata_timeout,
        metrics: Arc::clone(&metrics),
    });
    let store = Store::new(store::Settings {
        host: host(),
        cache,
        sources: Vec::new(),
        journal: Arc::clone(&journal),
        state_dir: None,
        policy,
        metrics: Arc::clone(&metrics),
    });
    Fs::new(fs::Settings {
        resolver,
        store,
        journal,
        user_xattr: true,
        metrics,
    })
}
