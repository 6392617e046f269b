//! What the other tools' maintenance deletes. Independent of the code under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::models::{go_ref_expiry, go_sidecar, hashes, python_is_fresh, typescript_is_fresh};

/// Cleans a root as a tool configured for that host would, at that time.
type Cleaner = fn(&Path, &str, Timestamp);

pub(crate) const ALL: [(&str, Cleaner); 6] = [
    ("python clean", python_clean),
    ("python gc", |root, _, _| collect(root, python_hashes)),
    ("typescript clean", typescript_clean),
    ("musher-cli prune's gc", |root, _, _| {
        collect(root, |manifest| hashes(manifest, false, true));
    }),
    ("musher-cli clean-expired", cli_clean_expired),
    ("mush branch clean", branch_clean),
];

fn files(dir: PathBuf) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.into_path())
        .collect()
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn is_sidecar(path: &Path) -> bool {
    path.to_str().unwrap().ends_with(".meta.json")
}

fn manifest_of(sidecar: &Path) -> PathBuf {
    PathBuf::from(sidecar.to_str().unwrap().replace(".meta.json", ".json"))
}

fn remove_entry(sidecar: &Path) {
    let _ = fs::remove_file(manifest_of(sidecar));
    let _ = fs::remove_file(sidecar);
}

/// Removes every blob that no manifest of any host names.
fn collect(root: &Path, names: impl Fn(&Value) -> BTreeSet<String>) {
    let named: BTreeSet<String> = files(root.join("manifests"))
        .iter()
        .filter(|path| !is_sidecar(path))
        .filter_map(|path| json(path))
        .flat_map(|manifest| names(&manifest))
        .collect();
    for blob in files(root.join("blobs")) {
        if !named.contains(blob.file_name().unwrap().to_str().unwrap()) {
            fs::remove_file(blob).unwrap();
        }
    }
}

fn python_hashes(manifest: &Value) -> BTreeSet<String> {
    let has_nested = !manifest["manifest"].is_null();
    hashes(manifest, has_nested, !has_nested)
}

fn python_clean(root: &Path, host: &str, now: Timestamp) {
    for sidecar in files(root.join("manifests").join(host)) {
        if is_sidecar(&sidecar)
            && let Some(body) = json(&sidecar)
            && !python_is_fresh(&body, now).expect("python clean crashes")
        {
            remove_entry(&sidecar);
        }
    }
    for path in files(root.join("refs").join(host)) {
        let Some(body) = json(&path) else { continue };
        let expires = body.get("expiresAt").map_or(0.0, |at| {
            at.as_f64().expect("python clean crashes on a string")
        });
        if (now.as_microsecond() as f64) / 1e6 > expires {
            fs::remove_file(path).unwrap();
        }
    }
    collect(root, python_hashes);
}

fn typescript_clean(root: &Path, host: &str, now: Timestamp) {
    // It walks the entries of all hosts, but asks for their freshness under its own.
    let own = |path: &Path, kind: &str| {
        let below = path.strip_prefix(root.join(kind)).unwrap();
        let rest: PathBuf = below.components().skip(1).collect();
        root.join(kind).join(host).join(rest)
    };
    for manifest in files(root.join("manifests")) {
        if is_sidecar(&manifest) {
            continue;
        }
        let sidecar = |manifest: &Path| manifest.with_extension("meta.json");
        let is_fresh = json(&sidecar(&own(&manifest, "manifests")))
            .is_some_and(|body| typescript_is_fresh(&body, 86_400.0, now));
        if !is_fresh {
            remove_entry(&sidecar(&manifest));
        }
    }
    for path in files(root.join("refs")) {
        let is_fresh =
            json(&own(&path, "refs")).is_some_and(|body| typescript_is_fresh(&body, 300.0, now));
        if !is_fresh {
            fs::remove_file(path).unwrap();
        }
    }
    collect(root, |manifest| hashes(manifest, true, false));
}

/// Removes the entries whose sidecar `is_expired` says so.
fn go_clean(root: &Path, now: Timestamp, is_expired: impl Fn(Option<(Timestamp, i64)>) -> bool) {
    for sidecar in files(root.join("manifests")) {
        if is_sidecar(&sidecar) && is_expired(json(&sidecar).as_ref().and_then(go_sidecar)) {
            remove_entry(&sidecar);
        }
    }
    for path in files(root.join("refs")) {
        // What cannot be decoded is skipped.
        if let Some(expiry) = json(&path).as_ref().and_then(go_ref_expiry)
            && expiry.as_second() > 0
            && expiry <= now
        {
            fs::remove_file(path).unwrap();
        }
    }
}

fn cli_clean_expired(root: &Path, _host: &str, now: Timestamp) {
    go_clean(root, now, |sidecar| {
        sidecar.is_some_and(|(at, ttl)| ttl > 0 && now.duration_since(at).as_secs() >= ttl)
    });
    collect(root, |manifest| hashes(manifest, false, true));
}

fn branch_clean(root: &Path, _host: &str, now: Timestamp) {
    go_clean(root, now, |sidecar| {
        sidecar.is_none_or(|(at, ttl)| ttl <= 0 || now.duration_since(at).as_secs() >= ttl)
    });
    collect(root, |manifest| hashes(manifest, true, false));
}
