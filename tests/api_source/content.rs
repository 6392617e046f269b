//! Files' bytes.

use musherfs::source::breaker::{BreakerState, Guarded};
use musherfs::source::http::MAX_IN_FLIGHT;

use super::*;

/// Collects a blob.
#[derive(Default)]
struct Collect(Vec<u8>);

impl Sink for Collect {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

const PLAIN: &str = "/v1/namespaces/acme/bundles/tools/assets/a/b.md?version=1.2.0";
const ENCODED: &str = "/v1/namespaces/acme/bundles/tools/assets/a%2Fb.md?version=1.2.0";
const HUB_PLAIN: &str = "/v1/hub/bundles/acme/tools/assets/a/b.md?version=1.2.0";
const HUB_ENCODED: &str = "/v1/hub/bundles/acme/tools/assets/a%2Fb.md?version=1.2.0";
const BY_ID: &str = "/v1/runner/assets/id-a%2Fb.md";

fn manifest(content: &str) -> Manifest {
    sized(content, content.len())
}

fn sized(content: &str, size: usize) -> Manifest {
    let mut layer = layer("a/b.md", content);
    layer["sizeBytes"] = json!(size);
    let json = json!({"layers": [layer]}).to_string();
    let document = Document::parse(json.as_bytes()).unwrap();
    document.into_manifest(version()).unwrap()
}

async fn fetch(source: &ApiSource, manifest: &Manifest) -> Result<Vec<u8>> {
    let mut sink = Collect(b"left over".to_vec());
    let file = manifest.find("a/b.md").unwrap();
    let result = source.blob(manifest, file, &mut sink, soon()).await;
    if result.is_err() {
        assert_eq!(sink.0, b"left over", "nothing unverified reaches the sink");
    }
    result.map(|()| sink.0)
}

fn text(text: impl Into<Value>) -> Reply {
    Reply::json(&json!({"id": "1", "logicalPath": "a/b.md", "contentText": text.into()}))
}

fn pull_routes() -> [String; 2] {
    [NS, HUB].map(|side| format!("{side}/versions/1.2.0:pull"))
}

#[tokio::test]
async fn with_a_key_every_route_is_tried_in_order() {
    let server = FaultServer::script([refusal(404)]);
    let error = fetch(&keyed(&server), &manifest("x")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let [own, public] = pull_routes();
    assert_eq!(
        server.targets(),
        [PLAIN, ENCODED, HUB_PLAIN, HUB_ENCODED, BY_ID, &own, &public]
    );
}

#[tokio::test]
async fn without_a_key_the_hub_comes_first() {
    let server = FaultServer::script([refusal(403)]);
    let error = fetch(&keyless(&server), &manifest("x")).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let [own, public] = pull_routes();
    assert_eq!(server.targets(), [HUB_PLAIN, PLAIN, &public, &own]);
}

#[tokio::test]
async fn each_route_can_bring_the_content() {
    let [own, public] = pull_routes();
    for route in [PLAIN, ENCODED, HUB_PLAIN, HUB_ENCODED, BY_ID] {
        let server = FaultServer::routes([(route, text("hello"))]);
        let bytes = fetch(&keyed(&server), &manifest("hello")).await.unwrap();
        assert_eq!(bytes, b"hello", "{route}");
    }
    for route in [&own, &public] {
        let reply = Reply::json(&pulled(&json!("hello")));
        let server = FaultServer::routes([(route.as_str(), reply)]);
        let bytes = fetch(&keyed(&server), &manifest("hello")).await.unwrap();
        assert_eq!(bytes, b"hello", "{route}");
    }
}

#[tokio::test]
async fn a_lost_newline_is_put_back_if_the_hash_says_so() {
    for (stored, sent) in [
        ("hello\n", "hello"),
        ("hello\r\n", "hello"),
        ("hello\n\n", "hello\n"),
        ("\n", ""),
        ("", ""),
    ] {
        for reply in [text(sent), Reply::bytes("text/plain", sent)] {
            let server = FaultServer::script([reply]);
            let bytes = fetch(&keyed(&server), &manifest(stored)).await.unwrap();
            assert_eq!(bytes, stored.as_bytes());
            assert_eq!(server.requests().len(), 1);
        }
    }
}

#[tokio::test]
async fn null_text_is_no_empty_file_but_a_reason_to_ask_elsewhere() {
    let server = FaultServer::routes([(PLAIN, text(Value::Null)), (BY_ID, text("hello"))]);
    let bytes = fetch(&keyed(&server), &manifest("hello")).await.unwrap();
    assert_eq!(bytes, b"hello");
    assert!(!server.targets().contains(&ENCODED.to_owned()));

    let server = FaultServer::routes([(PLAIN, text(Value::Null))]);
    let error = fetch(&keyed(&server), &manifest("")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn wrong_bytes_from_every_route_are_an_error_that_names_the_source() {
    let server = FaultServer::script([text("tampered")]);
    let error = fetch(&keyed(&server), &manifest("original"))
        .await
        .unwrap_err();
    match error {
        Error::WrongBytes {
            origin, expected, ..
        } => {
            assert_eq!(origin, server.url());
            assert_eq!(expected, Digest::of(b"original"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_bytes_from_one_route_do_not_hide_the_right_ones() {
    let server = FaultServer::routes([
        (PLAIN, text("tampered")),
        (HUB_PLAIN, Reply::endless(vec![b'x'; 1 << 10])),
        (BY_ID, text("original")),
    ]);
    let bytes = fetch(&keyed(&server), &manifest("original")).await.unwrap();
    assert_eq!(bytes, b"original");
}

#[tokio::test]
async fn a_size_that_lies_is_as_wrong_as_a_hash_that_does() {
    for size in [4, 6, 100] {
        let server = FaultServer::routes([(PLAIN, text("hello"))]);
        let error = fetch(&keyed(&server), &sized("hello", size))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::WrongBytes { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_looks_like_an_answer_is_told_apart_by_its_hash() {
    let file = json!({"contentText": "not the content"}).to_string();
    for reply in [
        Reply::bytes("application/json", file.clone()),
        text(file.as_str()),
    ] {
        let server = FaultServer::script([reply]);
        let bytes = fetch(&keyed(&server), &manifest(&file)).await.unwrap();
        assert_eq!(bytes, file.as_bytes());
    }
}

#[tokio::test]
async fn a_lone_surrogate_is_malformed() {
    let body = r#"{"contentText": "\ud83d"}"#;
    let server = FaultServer::routes([(PLAIN, Reply::bytes("application/json", body))]);
    let error = fetch(&keyed(&server), &manifest("x")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn text_beyond_ascii_survives() {
    let content = "ü 𝄞 \u{feff}\u{0} \"\\\r\n";
    let server = FaultServer::script([text(content)]);
    let bytes = fetch(&keyed(&server), &manifest(content)).await.unwrap();
    assert_eq!(bytes, content.as_bytes());
}

#[tokio::test]
async fn files_up_to_16_mib_fit_and_larger_ones_are_not_asked_for() {
    let content = "x".repeat(16 << 20);
    let server = FaultServer::script([text(content.as_str())]);
    let bytes = fetch(&keyed(&server), &manifest(&content)).await.unwrap();
    assert_eq!(bytes.len(), 16 << 20);

    let server = FaultServer::script([text("x")]);
    let error = fetch(&keyed(&server), &sized("x", (16 << 20) + 1)).await;
    assert!(matches!(error, Err(Error::Malformed { .. })), "{error:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn content_that_is_unavailable_on_one_route_is_fetched_by_another() {
    let server = FaultServer::routes([(PLAIN, refusal(503)), (HUB_PLAIN, text("hello"))]);
    let bytes = fetch(&keyed(&server), &manifest("hello")).await.unwrap();
    assert_eq!(bytes, b"hello");

    let server = FaultServer::script([refusal(503)]);
    let error = fetch(&keyed(&server), &manifest("hello"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_hangs_ends_everything_at_the_deadline() {
    let server = FaultServer::script([Reply::hang()]);
    let manifest = manifest("hello");
    let file = manifest.find("a/b.md").unwrap();
    let deadline = Deadline::after(Duration::from_millis(300));
    let source = keyed(&server);
    let mut sink = Collect::default();
    let result = source.blob(&manifest, file, &mut sink, deadline).await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn pull_skips_what_is_away_and_repairs_what_is_known() {
    let layers = json!([
        layer("a.md", "a\n"),
        layer("b.md", "b"),
        layer("c.md", "c\n")
    ]);
    let json = json!({"layers": layers}).to_string();
    let manifest = Document::parse(json.as_bytes()).unwrap();
    let manifest = manifest.into_manifest(version()).unwrap();
    let reply = json!({"version": "1.2.0", "manifest": [
        {"logicalPath": "a.md", "contentText": "a"},
        {"logicalPath": "b.md", "contentText": null},
        {"logicalPath": "c.md", "contentText": "other"},
        {"logicalPath": "d.md", "contentText": "unknown"},
    ]});
    let [own, public] = pull_routes();
    for status in [401, 403, 404] {
        let server = FaultServer::routes([(&own, refusal(status)), (&public, Reply::json(&reply))]);
        let pulled = keyed(&server)
            .pull(&manifest, soon())
            .await
            .unwrap()
            .unwrap();
        let pulled: Vec<_> = pulled
            .iter()
            .map(|(path, text)| (path.as_str(), &text[..]))
            .collect();
        assert_eq!(
            pulled,
            [
                ("a.md", &b"a\n"[..]),
                ("c.md", b"other"),
                ("d.md", b"unknown")
            ]
        );
        assert_eq!(server.targets(), [own.clone(), public.clone()]);
    }
    let server = FaultServer::script([refusal(404)]);
    assert!(
        keyed(&server)
            .pull(&manifest, soon())
            .await
            .unwrap()
            .is_none()
    );
    let wrong = json!({"version": "9.9.9", "manifest": []});
    let server = FaultServer::script([Reply::json(&wrong)]);
    let error = keyed(&server).pull(&manifest, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn content_that_is_stuck_keeps_no_name_waiting() {
    let server = FaultServer::start(|request| {
        if request.target.contains(":resolve") {
            Reply::json(&answer("1.2.0"))
        } else {
            Reply::hang()
        }
    });
    let source = Arc::new(Guarded::new(Arc::new(keyless(&server))));
    let resolve = async || {
        let deadline = Deadline::after(Duration::from_secs(2));
        let bundle = bundle();
        let resolved = source.resolve(&bundle, &Selector::Latest, deadline);
        assert_eq!(resolved.await.unwrap().version.unwrap(), "1.2.0");
    };
    let read = || {
        let source = Arc::clone(&source);
        async move {
            let manifest = manifest("x");
            let file = manifest.find("a/b.md").unwrap();
            let deadline = Deadline::after(Duration::from_secs(5));
            let mut sink = Collect::default();
            source.blob(&manifest, file, &mut sink, deadline).await
        }
    };
    let reads: Vec<_> = (0..2 * MAX_IN_FLIGHT)
        .map(|_| tokio::spawn(read()))
        .collect();
    server.wait_for(MAX_IN_FLIGHT).await;
    for _ in 0..10 {
        resolve().await;
    }
    assert_eq!(source.state(), BreakerState::Closed);
    for read in reads {
        read.await.unwrap().unwrap_err();
    }
    // Content is left alone now, and names are not.
    assert_ne!(source.state(), BreakerState::Closed);
    resolve().await;
    let error = read().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    resolve().await;
}
