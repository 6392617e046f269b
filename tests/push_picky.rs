//! Publishing to registries that are stricter, odder or more broken than docker-registry.

#![allow(clippy::unwrap_used)]

mod push_harness;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use musherfs::digest::Digest;
use push_harness::*;

/// A registry in memory, with rules of its own.
#[derive(Default)]
struct Rules {
    /// Largest body of one request.
    largest: Option<usize>,
    /// Where uploads go, if not here.
    storage: Option<String>,
    /// Whether a manifest is refused the first time, for a blob that is not there yet.
    settles: bool,
    /// What every request is answered.
    always: Option<u16>,
    /// A manifest that appears as soon as somebody writes one.
    faster: Option<Vec<u8>>,
    /// Whether nobody is let in without credentials.
    asks: bool,
    /// Whether uploads may be ended that were begun elsewhere.
    storage_of_another: bool,
    /// How many uploads to break with 500.
    breaks: usize,
}

#[derive(Default)]
struct Held {
    rules: Rules,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    sessions: HashMap<String, Vec<u8>>,
    /// Method, path with query, size of the body, whether there were credentials.
    seen: Vec<(Method, String, usize, bool)>,
}

/// Runs on a thread and a runtime of its own until it is dropped.
struct Picky {
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Picky {
    fn new(rules: Rules) -> Self {
        let held = Arc::new(Mutex::new(Held {
            rules,
            ..Held::default()
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&held))
            .layer(axum::extract::DefaultBodyLimit::disable());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = axum::serve(listener, app);
                tokio::select! {
                    _ = server => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            held,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn host(&self) -> String {
        self.address.to_string()
    }

    fn count(&self, method: &Method, part: &str) -> usize {
        let held = self.held.lock().unwrap();
        let seen = held.seen.iter();
        seen.filter(|(asked, path, ..)| asked == method && path.contains(part))
            .count()
    }
}

impl Drop for Picky {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn refusal(status: u16, code: &str) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"said so"}}]}}"#);
    let json = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::from_u16(status).unwrap(), json, body).into_response()
}

async fn answer(
    State(held): State<Arc<Mutex<Held>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut held = held.lock().unwrap();
    let held = &mut *held;
    let authorized = headers.contains_key(header::AUTHORIZATION);
    held.seen
        .push((method.clone(), uri.to_string(), body.len(), authorized));
    let rules = &mut held.rules;
    if let Some(status) = rules.always {
        return refusal(status, "NO");
    }
    if rules.asks && !authorized {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"picky\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    if rules.largest.is_some_and(|largest| body.len() > largest) {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let path = uri.path().to_owned();
    let accepted = |session: &str| {
        let base = rules.storage.clone().unwrap_or_default();
        let location = format!("{base}/upload/{session}?state=1");
        (StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response()
    };
    if let Some(session) = path.strip_prefix("/upload/") {
        if rules.storage_of_another {
            held.sessions.entry(session.to_owned()).or_default();
        }
        let Some(sent) = held.sessions.get_mut(session) else {
            return refusal(404, "BLOB_UPLOAD_UNKNOWN");
        };
        sent.extend_from_slice(&body);
        if method == Method::PATCH {
            return accepted(session);
        }
        if rules.breaks > 0 {
            rules.breaks -= 1;
            held.sessions.remove(session);
            return refusal(500, "UNKNOWN");
        }
        let blob = held.sessions.remove(session).unwrap();
        let digest = Digest::of(&blob).to_string();
        let promised = uri.query().unwrap().rsplit("digest=").next().unwrap();
        if promised.replace("%3A", ":") != digest {
            return refusal(400, "DIGEST_INVALID");
        }
        held.blobs.insert(digest, blob);
        return StatusCode::CREATED.into_response();
    }
    if path.ends_with("/blobs/uploads/") {
        let session = format!("s{}", held.seen.len());
        held.sessions.insert(session.clone(), Vec::new());
        return accepted(&session);
    }
    if let Some((_, digest)) = path.rsplit_once("/blobs/") {
        return match held.blobs.contains_key(digest) {
            true => StatusCode::OK.into_response(),
            false => refusal(404, "BLOB_UNKNOWN"),
        };
    }
    if let Some((_, tag)) = path.rsplit_once("/manifests/") {
        if method == Method::PUT {
            if std::mem::take(&mut rules.settles) {
                return refusal(404, "MANIFEST_BLOB_UNKNOWN");
            }
            let bytes = rules.faster.take().unwrap_or_else(|| body.to_vec());
            held.manifests.insert(tag.to_owned(), bytes);
            return StatusCode::CREATED.into_response();
        }
        return match held.manifests.get(tag) {
            Some(bytes) => bytes.clone().into_response(),
            None => refusal(404, "MANIFEST_UNKNOWN"),
        };
    }
    refusal(404, "NAME_UNKNOWN")
}

const LARGE: usize = 1_300_000;

fn large_bundle(home: &Home) -> String {
    let text = "x".repeat(LARGE);
    let dir = home.bundle(
        "acme/kit@1.0.0",
        &[("prompts/large.md", &text), ("small", "s")],
    );
    dir.to_str().unwrap().to_owned()
}

#[test]
fn a_blob_that_is_refused_whole_is_sent_in_pieces() {
    let picky = Picky::new(Rules {
        largest: Some(600 << 10),
        ..Rules::default()
    });
    let home = Home::new();
    let dir = large_bundle(&home);
    let published = home.json(&["publish", &dir, "--oci", &picky.host(), "--json"]);
    assert_eq!(published["blobsUploaded"], 3);
    assert_eq!(picky.count(&Method::PATCH, "/upload/"), 3, "512 KiB each");
    let held = picky.held.lock().unwrap();
    let digest = Digest::of("x".repeat(LARGE).as_bytes()).to_string();
    assert_eq!(held.blobs[&digest].len(), LARGE);
}

#[test]
fn uploads_may_be_led_to_another_host_which_gets_no_credentials() {
    let storage = Picky::new(Rules {
        storage_of_another: true,
        ..Rules::default()
    });
    let picky = Picky::new(Rules {
        asks: true,
        storage: Some(format!("http://{}", storage.host())),
        ..Rules::default()
    });
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("small", "s")]);
    let mut command = home.command(&["publish", dir.to_str().unwrap(), "--oci", &picky.host()]);
    let output = command
        .env("MUSHERFS_OCI_USER", USER)
        .env("MUSHERFS_OCI_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    succeeded(&output);
    let stored = storage.held.lock().unwrap();
    assert_eq!(stored.blobs.len(), 2);
    for (method, path, _, authorized) in &stored.seen {
        assert!(!authorized, "{method} {path}");
    }
    let asked = picky.held.lock().unwrap();
    assert!(asked.seen.iter().any(|(.., authorized)| *authorized));
}

#[test]
fn an_upload_that_breaks_is_begun_anew() {
    let picky = Picky::new(Rules {
        breaks: 2,
        ..Rules::default()
    });
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("small", "s")]);
    home.ok(&["publish", dir.to_str().unwrap(), "--oci", &picky.host()]);
    assert_eq!(picky.held.lock().unwrap().blobs.len(), 2);
}

#[test]
fn a_registry_that_needs_a_moment_to_find_its_blobs_gets_it() {
    let picky = Picky::new(Rules {
        settles: true,
        ..Rules::default()
    });
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("small", "s")]);
    home.ok(&["publish", dir.to_str().unwrap(), "--oci", &picky.host()]);
    assert_eq!(picky.count(&Method::PUT, "/manifests/1.0.0"), 2);
}

#[test]
fn a_publisher_who_was_overtaken_says_so() {
    let picky = Picky::new(Rules {
        faster: Some(br#"{"config":{"digest":"sha256:00"},"layers":[]}"#.to_vec()),
        ..Rules::default()
    });
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("small", "s")]);
    let output = home.run(&[
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        &picky.host(),
        "--tag",
        "latest",
    ]);
    assert_fails(&output, 1, "was published before");
    assert_eq!(picky.count(&Method::PUT, "/manifests/latest"), 0);
}

#[test]
fn failures_have_the_documented_statuses_and_exit_codes() {
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("small", "s")]);
    let publish = |host: &str| home.run(&["publish", dir.to_str().unwrap(), "--oci", host]);
    for (status, code, class) in [
        (401, 2, "503 registry authentication"),
        (403, 2, "503 registry authentication"),
        (503, 3, "503 registry unreachable"),
        (400, 1, "(500)"),
        (418, 1, "(500)"),
    ] {
        let picky = Picky::new(Rules {
            always: Some(status),
            ..Rules::default()
        });
        let output = publish(&picky.host());
        assert_fails(&output, code, class);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("said so"), "{said}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    assert_fails(&publish(&gone), 3, "503 registry unreachable");

    // Connections are taken and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let config = home.path().join(".config/musher");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(
        config.join("config.yaml"),
        "mount:\n  content_timeout: 1s\n",
    )
    .unwrap();
    assert_fails(&publish(&host), 5, "503 registry unreachable");

    let upper = home.bundle("Acme/kit@1.0.0", &[("small", "s")]);
    let output = home.run(&["publish", upper.to_str().unwrap(), "--oci", &gone]);
    assert_fails(&output, 1, "lower case");
    assert_fails(
        &home.run(&["publish", dir.to_str().unwrap()]),
        64,
        "no registry",
    );
    let plain = home.run(&[
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        "http://registry.test",
    ]);
    assert_fails_without_hint(&plain, 4, "plain HTTP");
}

#[track_caller]
fn assert_fails_without_hint(output: &std::process::Output, code: i32, message: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(message), "{said}");
}
