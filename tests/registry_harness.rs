//! The tests' own registry disturbs requests as it says.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::registry::{Effect, Fault, RouteKind, TestRegistry};

const ASSET: &str = "/v1/hub/bundles/acme/kit/assets/prompts/a.md?version=1.0.0";

fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("prompts/a.md", b"hello\n")]);
    registry
}

async fn get(registry: &TestRegistry, path: &str) -> Result<(u16, Vec<u8>), reqwest::Error> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls())
        .build()?;
    let response = client
        .get(format!("{}{path}", registry.url()))
        .send()
        .await?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await?.to_vec()))
}

/// No certificates: everything is on loopback without TLS.
fn tls() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

async fn text(registry: &TestRegistry) -> Value {
    let (status, body) = get(registry, ASSET).await.unwrap();
    assert_eq!(status, 200);
    serde_json::from_slice::<Value>(&body).unwrap()["contentText"].clone()
}

#[tokio::test]
async fn faults_change_content_as_often_as_asked_and_then_stop() {
    let registry = registry();
    for (effect, expected) in [
        (Effect::WrongBytes, Value::from("#ello\n")),
        (Effect::DropNewline, Value::from("hello")),
        (Effect::NullText, Value::Null),
        (
            Effect::edit(|json| json["contentText"] = "edited".into()),
            Value::from("edited"),
        ),
    ] {
        registry.fault(Fault::new(effect).on(RouteKind::Asset).once());
        assert_eq!(text(&registry).await, expected);
        assert_eq!(text(&registry).await, "hello\n");
    }
    assert_eq!(registry.content_requests(), 8);
    assert_eq!(registry.log().iter().filter(|seen| seen.faulty).count(), 4);
}

#[tokio::test]
async fn faults_wait_for_their_turn() {
    let registry = registry();
    registry.fault(Fault::new(Effect::Status(503)).on_content().after(1).once());
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(&registry, ASSET).await.unwrap().0);
    }
    assert_eq!(statuses, [200, 503, 200]);
}

#[tokio::test]
async fn faults_break_connections() {
    let registry = registry();
    for effect in [Effect::Reset, Effect::Truncate(5)] {
        registry.fault(Fault::new(effect).once());
        assert!(get(&registry, ASSET).await.is_err());
    }
    registry.fault(Fault::new(Effect::Trickle(Duration::from_millis(1))).once());
    assert_eq!(text(&registry).await, "hello\n");
    registry.fault(Fault::new(Effect::Garbage).once());
    let (_, body) = get(&registry, ASSET).await.unwrap();
    assert!(serde_json::from_slice::<Value>(&body).is_err());
    registry.fault(Fault::new(Effect::Redirect("http://127.0.0.1:1/".into())).once());
    assert_eq!(get(&registry, ASSET).await.unwrap().0, 302);
    assert_eq!(text(&registry).await, "hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn held_requests_arrive_and_wait() {
    let registry = std::sync::Arc::new(registry());
    let gate = registry.hold(RouteKind::Asset);
    let reader = tokio::spawn({
        let registry = registry.clone();
        async move { text(&registry).await }
    });
    tokio::task::block_in_place(|| registry.wait_for(RouteKind::Asset, 1));
    assert_eq!(registry.log()[0].status, None);
    gate.open();
    assert_eq!(reader.await.unwrap(), "hello\n");
    assert_eq!(registry.log()[0].status, Some(200));
}

#[tokio::test]
async fn a_stopped_registry_comes_back_at_the_same_address() {
    let mut registry = registry();
    let url = registry.url();
    registry.fault(Fault::new(Effect::Hang));
    registry.stop();
    assert!(get(&registry, ASSET).await.unwrap_err().is_connect());
    registry.clear_faults();
    registry.restart();
    assert_eq!(registry.url(), url);
    assert_eq!(text(&registry).await, "hello\n");
    assert_eq!(registry.requests(), 1);
}

#[tokio::test]
async fn planted_manifests_are_served_as_they_are() {
    let registry = registry();
    registry.plant(
        "acme",
        "evil",
        "1.0.0",
        &[("../x", b"1"), ("a", b"2"), ("a/b", b"3")],
    );
    let (_, body) = get(&registry, "/v1/hub/bundles/acme/evil:resolve")
        .await
        .unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["manifest"]["layers"][0]["logicalPath"], "../x");
    assert_eq!(body["manifest"]["layers"].as_array().unwrap().len(), 3);
}
