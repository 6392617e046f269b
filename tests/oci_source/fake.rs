//! A scripted OCI registry: a few maps behind a server, which does as it is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use musherfs::digest::Digest;
use serde_json::{Value, json};

use crate::fault_server::{FaultServer, Reply, Request};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.musher.bundle.v1.config";
pub const ASSET: &str = "application/vnd.musher.bundle.v1.asset";
pub const TITLE: &str = "org.opencontainers.image.title";

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub enum Guard {
    #[default]
    Open,
    /// This Authorization header.
    Basic(String),
    /// Any of the tokens that are valid, from the server at this address.
    Bearer(String, Arc<Mutex<HashSet<String>>>),
}

#[derive(Default)]
struct State {
    /// By digest, of all repositories.
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    /// Tag to digest, by repository.
    tags: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    scripted: Mutex<Vec<(String, Reply)>>,
    guard: Mutex<Guard>,
    catalog: Mutex<bool>,
}

pub struct FakeRegistry {
    server: FaultServer,
    state: Arc<State>,
}

impl FakeRegistry {
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        *state.catalog.lock().unwrap() = true;
        let handler = Arc::clone(&state);
        Self {
            server: FaultServer::start(move |request| handler.answer(request)),
            state,
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.server.address().to_string()
    }

    pub fn blob(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        let mut blobs = self.state.blobs.lock().unwrap();
        blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    pub fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        self.raw_manifest(repository, tag, manifest.to_string().into_bytes())
    }

    pub fn raw_manifest(&self, repository: &str, tag: &str, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        let mut manifests = self.state.manifests.lock().unwrap();
        manifests.insert(digest.clone(), bytes);
        drop(manifests);
        self.tag(repository, tag, &digest);
        digest
    }

    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        let mut tags = self.state.tags.lock().unwrap();
        let tags = tags.entry(repository.to_owned()).or_default();
        tags.insert(tag.to_owned(), digest.to_owned());
    }

    /// A bundle as Musher publishes it: config and raw layers.
    pub fn publish(&self, repository: &str, tag: &str, files: &[(&str, &[u8])]) -> String {
        let manifest = self.bundle(files);
        self.manifest(repository, tag, &manifest)
    }

    /// The manifest of a bundle, whose blobs are there.
    pub fn bundle(&self, files: &[(&str, &[u8])]) -> Value {
        let assets: Vec<_> = files
            .iter()
            .map(|(path, bytes)| {
                json!({"logical_path": path, "asset_type": "prompt",
                    "content_sha256": Digest::of(bytes).hex()})
            })
            .collect();
        let config = json!({ "assets": assets }).to_string();
        let layers: Vec<_> = files
            .iter()
            .map(|(path, bytes)| self.layer(path, bytes, ASSET))
            .collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": self.blob(config.as_bytes()),
                "size": config.len()},
            "layers": layers})
    }

    /// An artifact as `oras push` makes it.
    pub fn artifact(&self, layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.unknown.config.v1+json",
                "digest": self.blob(b"{}"), "size": 2}})
    }

    /// A layer whose blob is there.
    pub fn layer(&self, title: &str, bytes: &[u8], media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.blob(bytes), "size": bytes.len(),
            "annotations": {TITLE: title}})
    }

    /// Answers targets that contain `part` with `reply`, from now on.
    pub fn script(&self, part: &str, reply: Reply) {
        let mut scripted = self.state.scripted.lock().unwrap();
        scripted.push((part.to_owned(), reply));
    }

    pub fn unscript(&self) {
        self.state.scripted.lock().unwrap().clear();
    }

    pub fn guard(&self, guard: Guard) {
        *self.state.guard.lock().unwrap() = guard;
    }

    pub fn close_catalog(&self) {
        *self.state.catalog.lock().unwrap() = false;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }

    /// How many requests had this in their target.
    pub fn count(&self, part: &str) -> usize {
        let requests = self.requests();
        requests.iter().filter(|r| r.target.contains(part)).count()
    }
}

impl State {
    fn answer(&self, request: &Request) -> Reply {
        let scripted = self.scripted.lock().unwrap();
        let found = scripted
            .iter()
            .find(|(part, _)| request.target.contains(part.as_str()));
        if let Some((_, reply)) = found {
            return reply.clone();
        }
        drop(scripted);
        let guard = self.guard.lock().unwrap().clone();
        let shown = request.header("authorization").unwrap_or_default();
        let challenge = match guard {
            Guard::Open => None,
            Guard::Basic(expected) => {
                (shown != expected).then(|| "Basic realm=\"fake\"".to_owned())
            }
            Guard::Bearer(realm, valid) => {
                let token = shown.strip_prefix("Bearer ").unwrap_or_default();
                let in_vain = !valid.lock().unwrap().contains(token);
                in_vain.then(|| format!("Bearer realm=\"{realm}\",service=\"fake\""))
            }
        };
        if let Some(challenge) = challenge {
            let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]});
            return Reply::json(&body)
                .with_status(401)
                .header("www-authenticate", &challenge);
        }
        let path = request.target.split('?').next().unwrap_or_default();
        let path = path.strip_prefix("/v2/").unwrap_or_default();
        self.route(path).unwrap_or_else(|| {
            Reply::json(&json!({"errors": [{"code": "UNKNOWN"}]})).with_status(404)
        })
    }

    fn route(&self, path: &str) -> Option<Reply> {
        if path == "_catalog" {
            let names: Vec<_> = self.tags.lock().unwrap().keys().cloned().collect();
            let open = *self.catalog.lock().unwrap();
            return open.then(|| Reply::json(&json!({ "repositories": names })));
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            let tags = self.tags.lock().unwrap();
            let tags: Vec<_> = tags.get(repository)?.keys().collect();
            return Some(Reply::json(&json!({"name": repository, "tags": tags})));
        }
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            let tags = self.tags.lock().unwrap();
            let known = tags.get(repository)?;
            let digest = known.get(reference).map_or(reference, String::as_str);
            let bytes = self.manifests.lock().unwrap().get(digest)?.clone();
            let reply = Reply::bytes(MANIFEST, bytes);
            return Some(reply.header("docker-content-digest", digest));
        }
        let (_, digest) = path.split_once("/blobs/")?;
        let bytes = self.blobs.lock().unwrap().get(digest)?.clone();
        Some(Reply::bytes("application/octet-stream", bytes))
    }
}

/// Hands out tokens.
pub struct TokenServer {
    server: FaultServer,
    /// What the registry takes.
    pub valid: Arc<Mutex<HashSet<String>>>,
    /// The Authorization header that is asked for; `None` is for everybody.
    pub wants: Arc<Mutex<Option<String>>>,
}

impl TokenServer {
    pub fn start(expires_in: u64) -> Self {
        let valid = Arc::new(Mutex::new(HashSet::new()));
        let wants: Arc<Mutex<Option<String>>> = Arc::default();
        let (tokens, wanted) = (Arc::clone(&valid), Arc::clone(&wants));
        let server = FaultServer::start(move |request| {
            let wanted = wanted.lock().unwrap().clone();
            if wanted.is_some() && wanted.as_deref() != request.header("authorization") {
                return Reply::json(&json!({"details": "wrong password"})).with_status(401);
            }
            let mut tokens = tokens.lock().unwrap();
            let token = format!("token-{}-{expires_in}", tokens.len() + 1);
            tokens.insert(token.clone());
            Reply::json(&json!({"token": token, "expires_in": expires_in}))
        });
        Self {
            server,
            valid,
            wants,
        }
    }

    pub fn guard(&self) -> Guard {
        let realm = format!("{}/token", self.server.url());
        Guard::Bearer(realm, Arc::clone(&self.valid))
    }

    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }

    /// Makes all tokens so far worthless.
    pub fn revoke(&self) {
        let mut valid = self.valid.lock().unwrap();
        // So that the next ones have other names.
        let old: Vec<_> = valid.drain().collect();
        valid.extend(old.into_iter().map(|token| format!("revoked {token}")));
    }
}
