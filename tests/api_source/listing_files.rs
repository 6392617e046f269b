//! From a version to its list of files.

use super::*;

fn without_layers() -> Reply {
    let mut answer = answer("1.2.0");
    answer["manifest"] = Value::Null;
    Reply::json(&answer)
}

#[tokio::test]
async fn a_resolve_answer_with_files_is_all_that_is_asked_for() {
    let server = FaultServer::script([Reply::json(&answer("1.2.0"))]);
    let document = keyed(&server).manifest(&version(), soon()).await.unwrap();
    assert_eq!(paths(&document), ["a/b.md"]);
    assert_eq!(server.targets(), [format!("{NS}:resolve?version=1.2.0")]);
}

#[tokio::test]
async fn a_missing_list_is_in_the_version_nested_or_flat() {
    let files = json!([layer("a/b.md", "hello\n")]);
    for detail in [
        json!({"id": "x", "version": "1.2.0", "manifest": {"namespace": "acme",
            "bundleSlug": "tools", "version": "1.2.0", "assets": files}}),
        json!({"namespace": "acme", "bundleSlug": "tools", "version": "1.2.0",
            "assets": files}),
    ] {
        let server = FaultServer::script([without_layers(), Reply::json(&detail)]);
        let document = keyed(&server).manifest(&version(), soon()).await.unwrap();
        assert_eq!(paths(&document), ["a/b.md"]);
        assert_eq!(
            document.info.version_id, "v",
            "the rest is of the first answer"
        );
        assert_eq!(server.targets()[1], format!("{NS}/versions/1.2.0"));
    }
}

#[tokio::test]
async fn then_the_hub_has_it_and_at_last_the_content() {
    let server = FaultServer::routes([
        (format!("{NS}:resolve?version=1.2.0"), without_layers()),
        (
            format!("{HUB}/versions/1.2.0:pull"),
            Reply::json(&pulled(&json!("hello\n"))),
        ),
    ]);
    let document = keyed(&server).manifest(&version(), soon()).await.unwrap();
    assert_eq!(paths(&document), ["a/b.md"]);
    assert_eq!(
        server.targets(),
        [
            format!("{NS}:resolve?version=1.2.0"),
            format!("{NS}/versions/1.2.0"),
            format!("{HUB}/assets?version=1.2.0&limit=100"),
            format!("{HUB}/versions/1.2.0:pull"),
        ]
    );
}

#[tokio::test]
async fn a_version_without_any_list_is_neither_empty_nor_absent() {
    let server = FaultServer::routes([(format!("{NS}:resolve?version=1.2.0"), without_layers())]);
    let error = keyed(&server)
        .manifest(&version(), soon())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}
