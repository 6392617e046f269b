//! What is logged, and that the key never is. A program of its own, since the log is a process's.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use musherfs::credentials::{ApiKey, KeyChain};
use musherfs::source::api::{ApiSettings, ApiSource};
use musherfs::source::breaker::{BreakerState, Guarded};
use musherfs::source::http::{HttpClient, HttpSettings, Timing};
use musherfs::source::{Deadline, Source};
use support::fault_server::{FaultServer, Reply};

const KEY: &str = "mush_0123456789";

/// Everything that this program logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The log, which begins with the first call.
    fn start() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        let start = || {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .init();
            log
        };
        LOG.get_or_init(start).clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn source(server: &FaultServer) -> ApiSource {
    let timing = Timing {
        backoff: Duration::from_millis(1),
        ..Timing::default()
    };
    ApiSource::new(ApiSettings {
        base: server.url().parse().unwrap(),
        keys: KeyChain::fixed(ApiKey::new(KEY).unwrap()),
        http: HttpClient::with_timing(&HttpSettings::default(), timing).unwrap(),
    })
    .unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[tokio::test]
async fn the_key_is_in_no_log_line_no_error_and_no_debug_output() {
    let log = Log::start();
    // A server that tells everybody what it was told.
    let server = FaultServer::start(|request| match request.key() {
        Some(key) => Reply::problem(401, key, &format!("no such key: {key}"))
            .header("x-request-id", key)
            .header("location", key),
        None => Reply::redirect("/loop"),
    });
    let source = source(&server);
    let bundle = "acme/tools".parse().unwrap();
    let selector = "1.2.0".parse().unwrap();
    let mut shown = format!("{source:?}");
    for error in [
        source.resolve(&bundle, &selector, soon()).await.err(),
        source.versions(&bundle, soon()).await.err(),
        source.namespaces(soon()).await.err(),
    ] {
        let error = error.unwrap();
        shown += &format!("{error} {error:?}");
    }
    assert!(server.requests().iter().any(|r| r.key() == Some(KEY)));

    let log = log.text();
    assert!(!log.contains(KEY), "{log}");
    assert!(!shown.contains(KEY), "{shown}");
    let line = log.lines().find(|line| line.contains("tools:resolve"));
    let line = line.unwrap_or_else(|| panic!("requests are logged: {log}"));
    for part in ["method=\"GET\"", "status=401", "attempt=1", "request_id="] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[tokio::test]
async fn a_key_that_is_refused_is_one_line_however_many_ask_and_one_when_it_is_taken() {
    let log = Log::start();
    let mut replies = Vec::new();
    for _ in 0..5 {
        // Refused with the key, answered without it.
        replies.push(Reply::problem(401, "unauthorized", "no such key"));
        replies.push(Reply::json(&serde_json::json!({"data": []})));
    }
    replies.push(Reply::json(&serde_json::json!({"data": []})));
    let server = FaultServer::script(replies);
    let source = source(&server);
    let bundle = "acme/tools".parse().unwrap();
    for _ in 0..8 {
        let _ = source.versions(&bundle, soon()).await;
    }
    let log = log.text();
    let lines = log.lines().filter(|line| line.contains("the API key"));
    let lines: Vec<_> = lines.filter(|line| line.contains(&server.url())).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("refuses"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("INFO") && lines[1].contains("takes"),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_source_that_goes_and_comes_back_is_two_lines_however_many_ask() {
    let log = Log::start();
    let busy = Reply::problem(503, "service-unavailable", "down for maintenance");
    let back = Reply::json(&serde_json::json!({"data": []}));
    let server = FaultServer::script([vec![busy; 4], vec![back]].concat());
    let source = Guarded::new(Arc::new(source(&server)));
    let bundle = "acme/tools".parse().unwrap();
    for _ in 0..20 {
        let error = source.versions(&bundle, soon()).await.unwrap_err();
        assert!(error.to_string().contains("maintenance"), "{error}");
    }
    assert_eq!(server.requests().len(), 4, "only the first call asked");
    let BreakerState::Open { retry_in } = source.state() else {
        panic!("{:?}", source.state());
    };
    tokio::time::sleep(retry_in).await;
    for _ in 0..20 {
        source.versions(&bundle, soon()).await.unwrap();
    }
    let log = log.text();
    let lines = log.lines().filter(|line| line.contains("the source is"));
    let lines: Vec<_> = lines.filter(|line| line.contains(&server.url())).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("maintenance"));
    assert!(lines[1].contains("INFO") && lines[1].contains("back"));
}
