//! The key: found again when it changes, and never shown.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

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

#[tokio::test]
async fn a_refusal_is_told_with_the_origin_of_the_key_until_the_registry_takes_it() {
    for (status, told, elsewhere) in [
        (401, "refuses the key (", true),
        (403, "refuses acme to the key (", false),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KEY).unwrap();
        let takes = Arc::new(AtomicBool::new(false));
        let server = FaultServer::start({
            let takes = Arc::clone(&takes);
            move |request| match request.key() {
                Some(_) if takes.load(SeqCst) => Reply::json(&answer("1.2.0")),
                Some(_) => refusal(status),
                None => refusal(404),
            }
        });
        let source = source(&server, KeyChain::for_file(file.path().to_owned()));
        let [acme, other]: [Namespace; 2] = ["acme", "other"].map(|name| name.parse().unwrap());
        assert_eq!(source.refusal(&acme), None);
        // What the hub says of public bundles does not take it back.
        for _ in 0..2 {
            let error = resolve(&source, "latest").await.unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
        }
        let refusal = source.refusal(&acme).unwrap();
        assert!(refusal.contains(told), "{refusal}");
        assert!(refusal.contains(file.path().to_str().unwrap()), "{refusal}");
        assert!(refusal.contains(&status.to_string()), "{refusal}");
        assert!(!refusal.contains(KEY), "{refusal}");
        assert_eq!(source.refusal(&other).is_some(), elsewhere);
        assert_eq!(source.notice().is_some(), elsewhere);

        takes.store(true, SeqCst);
        resolve(&source, "latest").await.unwrap();
        assert_eq!(source.refusal(&acme), None);
        assert_eq!(source.notice(), None);
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_a_key_has_refused_none() {
    let server = FaultServer::script([refusal(401)]);
    let source = keyless(&server);
    let _ = resolve(&source, "latest").await;
    assert_eq!(source.refusal(&bundle().namespace), None);
}
