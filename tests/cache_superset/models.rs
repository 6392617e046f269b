//! How the other tools read an entry, down to their crashes. Independent of the code under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

/// What reading came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read<T> {
    Hit(T),
    /// Absent, expired or not understood: the tool asks the registry.
    Miss,
    Crash,
}

/// A file as a tool sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) sha256: String,
    pub(crate) size: Option<u64>,
}

/// One version's place in a cache.
pub(crate) struct Entry {
    root: PathBuf,
    host: String,
    version: String,
}

impl Entry {
    pub(crate) fn new(root: &Path, host: &str) -> Self {
        Self {
            root: root.to_owned(),
            host: host.to_owned(),
            version: "1.2.0".to_owned(),
        }
    }

    pub(crate) fn of_version(self, version: &str) -> Self {
        Self {
            version: version.to_owned(),
            ..self
        }
    }

    fn read(&self, kind: &str, name: &str) -> Option<Vec<u8>> {
        let dir = self.root.join(kind).join(&self.host).join("acme/kit");
        fs::read(dir.join(name)).ok()
    }

    fn manifest(&self) -> Option<Vec<u8>> {
        self.read("manifests", &format!("{}.json", self.version))
    }

    fn sidecar(&self) -> Option<Value> {
        let json = self.read("manifests", &format!("{}.meta.json", self.version))?;
        serde_json::from_slice(&json).ok()
    }

    fn latest(&self) -> Option<Value> {
        serde_json::from_slice(&self.read("refs", "latest.json")?).ok()
    }

    fn prefixed_blob(&self, hex: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join("blobs/sha256").join(&hex[..2]).join(hex)).ok()
    }
}

/// A tool's way of reading.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) manifest: fn(&Entry, Timestamp) -> Read<Vec<File>>,
    pub(crate) latest: fn(&Entry, Timestamp) -> Read<String>,
    pub(crate) has_blob: fn(&Entry, &str) -> bool,
}

pub(crate) const PYTHON: Tool = Tool {
    name: "python",
    manifest: python_manifest,
    latest: python_latest,
    has_blob: |entry, hex| {
        entry
            .prefixed_blob(hex)
            .is_some_and(|bytes| musherfs::digest::Digest::of(&bytes).hex() == hex)
    },
};
pub(crate) const TYPESCRIPT: Tool = Tool {
    name: "typescript",
    manifest: typescript_manifest,
    latest: typescript_latest,
    has_blob: |entry, hex| entry.prefixed_blob(hex).is_some(),
};
pub(crate) const CLI: Tool = Tool {
    name: "musher-cli",
    manifest: cli_manifest,
    latest: go_latest,
    has_blob: |entry, hex| entry.prefixed_blob(hex).is_some(),
};
pub(crate) const MUSH: Tool = Tool {
    name: "mush-4.2.0",
    manifest: |entry, _| match entry.manifest() {
        Some(json) => go_manifest(&json, &["manifest", "layers"], "sizeBytes"),
        None => Read::Miss,
    },
    latest: |entry, _| match entry.read("refs", "latest") {
        Some(text) => Read::Hit(String::from_utf8(text).unwrap().trim().to_owned()),
        None => Read::Miss,
    },
    has_blob: |entry, hex| entry.root.join("blobs/sha256").join(hex).is_file(),
};
pub(crate) const MUSH_BRANCH: Tool = Tool {
    name: "mush branch",
    manifest: branch_manifest,
    latest: go_latest,
    has_blob: |entry, hex| entry.prefixed_blob(hex).is_some(),
};
pub(crate) const TOOLS: [Tool; 5] = [PYTHON, TYPESCRIPT, CLI, MUSH, MUSH_BRANCH];

fn seconds_since(date: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(date).as_secs_f64()
}

/// `datetime.fromisoformat` of 3.11 and later; a date without a zone breaks the subtraction.
fn python_date(value: Option<&Value>) -> Option<Timestamp> {
    value?.as_str()?.parse().ok()
}

/// `None` is a crash.
pub(crate) fn python_is_fresh(sidecar: &Value, now: Timestamp) -> Option<bool> {
    let sidecar = sidecar.as_object()?;
    let fetched = python_date(sidecar.get("fetchedAt"))?;
    let ttl = match sidecar.get("ttlSeconds") {
        None => 86_400.0,
        Some(Value::Number(number)) => number.as_f64()?,
        Some(_) => return None,
    };
    Some(seconds_since(fetched, now) < ttl)
}

fn python_manifest(entry: &Entry, now: Timestamp) -> Read<Vec<File>> {
    let Some(sidecar) = entry.sidecar() else {
        return Read::Miss;
    };
    match python_is_fresh(&sidecar, now) {
        None => return Read::Crash,
        Some(false) => return Read::Miss,
        Some(true) => {}
    }
    let Some(json) = entry.manifest() else {
        return Read::Miss;
    };
    match serde_json::from_slice::<Value>(&json) {
        Ok(Value::Null) => Read::Miss,
        Ok(body) => python_model(&body).map_or(Read::Crash, Read::Hit),
        Err(_) => Read::Crash,
    }
}

/// The pydantic model of a Resolve answer; `None` is a ValidationError.
fn python_model(body: &Value) -> Option<Vec<File>> {
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    let optional = |key: &str| matches!(body.get(key), None | Some(Value::Null | Value::String(_)));
    for key in [
        "bundleId",
        "versionId",
        "namespace",
        "slug",
        "ref",
        "version",
    ] {
        text(body, key)?;
    }
    if !["registry", "console"].contains(&&*text(body, "sourceType")?)
        || !["published", "yanked"].contains(&&*text(body, "state")?)
        || !["name", "description", "ociRef", "ociDigest"]
            .iter()
            .all(|key| optional(key))
    {
        return None;
    }
    let layers = match body.get("manifest") {
        None | Some(Value::Null) => return Some(vec![]),
        Some(manifest) => manifest.get("layers")?.as_array()?,
    };
    layers
        .iter()
        .map(|layer| {
            text(layer, "assetId")?;
            text(layer, "assetType")?;
            Some(File {
                path: text(layer, "logicalPath")?,
                sha256: text(layer, "contentSha256")?,
                size: Some(layer.get("sizeBytes")?.as_u64()?),
            })
        })
        .collect()
}

fn python_latest(entry: &Entry, now: Timestamp) -> Read<String> {
    let Some(body) = entry.latest() else {
        return Read::Miss;
    };
    let Some(body) = body.as_object() else {
        return Read::Crash;
    };
    let expires = match body.get("expiresAt") {
        None => 0.0,
        Some(Value::Number(number)) => number.as_f64().unwrap(),
        Some(_) => return Read::Crash,
    };
    let is_fresh = now.as_microsecond() as f64 / 1e6 <= expires;
    match body.get("version").and_then(Value::as_str) {
        Some(version) if is_fresh => Read::Hit(version.to_owned()),
        _ => Read::Miss,
    }
}

pub(crate) fn typescript_is_fresh(body: &Value, default: f64, now: Timestamp) -> bool {
    let ttl = match body.get("ttlSeconds") {
        None | Some(Value::Null) => default,
        Some(value) => value.as_f64().unwrap_or(f64::NAN),
    };
    python_date(body.get("fetchedAt")).is_some_and(|at| seconds_since(at, now) < ttl)
}

fn typescript_manifest(entry: &Entry, now: Timestamp) -> Read<Vec<File>> {
    let (Some(sidecar), Some(json)) = (entry.sidecar(), entry.manifest()) else {
        return Read::Miss;
    };
    if !typescript_is_fresh(&sidecar, 86_400.0, now) {
        return Read::Miss;
    }
    let Ok(body) = serde_json::from_slice::<Value>(&json) else {
        return Read::Miss;
    };
    let layers = body["manifest"]["layers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let file = |layer: &Value| File {
        path: layer["logicalPath"].as_str().unwrap().to_owned(),
        sha256: layer["contentSha256"].as_str().unwrap().to_owned(),
        size: layer["sizeBytes"].as_u64(),
    };
    Read::Hit(layers.iter().map(file).collect())
}

fn typescript_latest(entry: &Entry, now: Timestamp) -> Read<String> {
    let Some(body) = entry.latest() else {
        return Read::Miss;
    };
    match body["version"].as_str() {
        Some(version) if typescript_is_fresh(&body, 300.0, now) => Read::Hit(version.to_owned()),
        _ => Read::Miss,
    }
}

/// Decodes into Go structs: `Err` is a decode error, an absent or null list has no elements.
fn go_manifest(json: &[u8], list: &[&str], size: &str) -> Read<Vec<File>> {
    let Ok(body) = serde_json::from_slice::<Value>(json) else {
        return Read::Miss;
    };
    let mut value = &body;
    for key in list {
        value = match value {
            Value::Null => &Value::Null,
            Value::Object(object) => object.get(*key).unwrap_or(&Value::Null),
            _ => return Read::Miss,
        };
    }
    let layers = match value {
        Value::Null => return Read::Hit(vec![]),
        Value::Array(layers) => layers,
        _ => return Read::Miss,
    };
    let file = |layer: &Value| {
        let text = |key: &str| match layer.get(key) {
            None | Some(Value::Null) => Some(String::new()),
            Some(value) => value.as_str().map(str::to_owned),
        };
        // An integer literal, or a decode error: 6.0 is none.
        let size = match layer.get(size) {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_u64()?),
        };
        text("mediaType")?;
        text("assetType")?;
        Some(File {
            path: text("logicalPath")?,
            sha256: text("contentSha256")?,
            size,
        })
    };
    layers
        .iter()
        .map(file)
        .collect::<Option<_>>()
        .map_or(Read::Miss, Read::Hit)
}

/// The date and the life of a Go tool's sidecar; `None` is a decode error.
pub(crate) fn go_sidecar(sidecar: &Value) -> Option<(Timestamp, i64)> {
    let fetched = sidecar.get("fetchedAt")?.as_str()?.parse().ok()?;
    let ttl = match sidecar.get("ttl") {
        None | Some(Value::Null) => 0,
        Some(ttl) => ttl.as_i64()?,
    };
    Some((fetched, ttl))
}

fn cli_manifest(entry: &Entry, now: Timestamp) -> Read<Vec<File>> {
    let (Some(sidecar), Some(json)) = (entry.sidecar(), entry.manifest()) else {
        return Read::Miss;
    };
    match go_sidecar(&sidecar) {
        Some((at, ttl)) if ttl <= 0 || seconds_since(at, now) < ttl as f64 => {
            go_manifest(&json, &["layers"], "size")
        }
        _ => Read::Miss,
    }
}

fn branch_manifest(entry: &Entry, now: Timestamp) -> Read<Vec<File>> {
    let (Some(sidecar), Some(json)) = (entry.sidecar(), entry.manifest()) else {
        return Read::Miss;
    };
    match go_sidecar(&sidecar) {
        Some((at, ttl)) if ttl > 0 && seconds_since(at, now) < ttl as f64 => {
            go_manifest(&json, &["manifest", "layers"], "sizeBytes")
        }
        _ => Read::Miss,
    }
}

/// `None` is a decode error.
pub(crate) fn go_ref_expiry(body: &Value) -> Option<Timestamp> {
    body.get("expiresAt")?.as_str()?.parse().ok()
}

fn go_latest(entry: &Entry, now: Timestamp) -> Read<String> {
    let Some(body) = entry.latest() else {
        return Read::Miss;
    };
    match (go_ref_expiry(&body), body["version"].as_str()) {
        (Some(expiry), Some(version)) if now < expiry => Read::Hit(version.to_owned()),
        _ => Read::Miss,
    }
}

/// The hashes that a manifest keeps from garbage collection, by the lists that a tool looks at.
pub(crate) fn hashes(manifest: &Value, nested: bool, top: bool) -> BTreeSet<String> {
    let lists = [
        nested.then(|| &manifest["manifest"]["layers"]),
        top.then(|| &manifest["layers"]),
    ];
    lists
        .into_iter()
        .flatten()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|layer| layer["contentSha256"].as_str().map(str::to_owned))
        .collect()
}
