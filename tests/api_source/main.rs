//! The registry's API: which routes are asked in which order, and what is believed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod content;
mod keys;
mod listing_files;
mod lists;
mod resolving;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use musherfs::credentials::{ApiKey, KeyChain};
use musherfs::digest::Digest;
use musherfs::error::{Error, Result};
use musherfs::manifest::{Document, Manifest, State};
use musherfs::reference::{BundleId, Namespace, Selector, VersionRef};
use musherfs::source::api::{ApiSettings, ApiSource};
use musherfs::source::http::{HttpClient, HttpSettings, Timing};
use musherfs::source::{Deadline, Sink, Source};
use serde_json::{Value, json};
use support::fault_server::{FaultServer, Reply};

const NS: &str = "/v1/namespaces/acme/bundles/tools";
const HUB: &str = "/v1/hub/bundles/acme/tools";
const KEY: &str = "mush_0123456789";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn http() -> HttpClient {
    let timing = Timing {
        backoff: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(5),
        ..Timing::default()
    };
    HttpClient::with_timing(&HttpSettings::default(), timing).unwrap()
}

fn source(server: &FaultServer, keys: KeyChain) -> ApiSource {
    ApiSource::new(ApiSettings {
        base: server.url().parse().unwrap(),
        keys,
        http: http(),
    })
    .unwrap()
}

fn keyed(server: &FaultServer) -> ApiSource {
    source(server, KeyChain::fixed(ApiKey::new(KEY).unwrap()))
}

fn keyless(server: &FaultServer) -> ApiSource {
    source(server, KeyChain::default())
}

fn bundle() -> BundleId {
    "acme/tools".parse().unwrap()
}

fn version() -> VersionRef {
    "acme/tools@1.2.0".parse().unwrap()
}

async fn resolve(source: &ApiSource, selector: &str) -> Result<Document> {
    let selector: Selector = selector.parse().unwrap();
    source.resolve(&bundle(), &selector, soon()).await
}

fn refusal(status: u16) -> Reply {
    Reply::problem(status, "refused", "no")
}

fn layer(path: &str, content: &str) -> Value {
    json!({"assetId": format!("id-{path}"), "logicalPath": path, "assetType": "prompt",
        "contentSha256": Digest::of(content.as_bytes()).hex(), "sizeBytes": content.len()})
}

fn answer(version: &str) -> Value {
    json!({"bundleId": "b", "versionId": "v", "namespace": "acme", "slug": "tools",
        "ref": "acme/tools", "version": version, "sourceType": "registry", "state": "published",
        "manifest": {"layers": [layer("a/b.md", "hello\n")]}})
}

fn pulled(text: &Value) -> Value {
    json!({"namespace": "acme", "slug": "tools", "version": "1.2.0", "name": "Tools",
        "manifest": [{"logicalPath": "a/b.md", "assetType": "prompt", "contentText": text}]})
}

fn detail(latest: &str) -> Value {
    json!({"slug": "tools", "displayName": "Tools", "description": "of the trade",
        "latestVersion": latest,
        "versions": [{"version": "1.2.0", "isDeprecated": true}, {"version": "oops"}]})
}

fn hub_assets() -> Value {
    json!({"data": [{"id": "7", "assetType": "prompt", "logicalPath": "a/b.md",
        "contentSha256": Digest::of(b"hello\n").hex(), "sizeBytes": 6}]})
}

fn paths(document: &Document) -> Vec<&str> {
    let layers = document.layers.as_deref().unwrap();
    layers.iter().map(|layer| layer.path.as_str()).collect()
}
