//! The key: found again when it changes, and never shown.

use super::*;

/// Knows one key, and 401 for everybody else.
fn locked(key: &'static str) -> FaultServer {
    FaultServer::start(move |request| match request.key() {
        Some(given) if given == key => Reply::json(&answer("1.2.0")),
        Some(given) => refusal(401).header("x-echo", given),
        None => refusal(404),
    })
}

#[tokio::test]
async fn a_rotated_key_is_found_and_remembered() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |key: &str| std::fs::write(file.path(), key).unwrap();
    let server = locked("mush_new");
    let source = source(&server, KeyChain::for_file(file.path().to_owned()));
    write("mush_old\n");
    let error = resolve(&source, "latest").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let before = server.requests().len();

    write("mush_new\n");
    resolve(&source, "latest").await.unwrap();
    resolve(&source, "latest").await.unwrap();
    let keys: Vec<_> = server.requests()[before..]
        .iter()
        .map(|r| r.key().unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["mush_old", "mush_new", "mush_new"]);
}

#[tokio::test]
async fn many_who_are_refused_look_for_a_newer_key_together() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "mush_old").unwrap();
    let server = locked("mush_new");
    let source = Arc::new(source(&server, KeyChain::for_file(file.path().to_owned())));
    let _ = resolve(&source, "latest").await;
    std::fs::write(file.path(), "mush_new").unwrap();
    let asked: Vec<_> = (0..32)
        .map(|_| {
            let source = Arc::clone(&source);
            tokio::spawn(async move { resolve(&source, "latest").await })
        })
        .collect();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
}
