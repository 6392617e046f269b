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

fn get(registry: &TestRegistry, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let answer = registry.ask("GET", path, &[])?;
    Ok((answer.status, answer.body))
}

fn text(registry: &TestRegistry) -> Value {
    let (status, body) = get(registry, ASSET).unwrap();
    assert_eq!(status, 200);
    serde_json::from_slice::<Value>(&body).unwrap()["contentText"].clone()
}

#[test]
fn faults_change_content_as_often_as_asked_and_then_stop() {
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
        assert_eq!(text(&registry), expected);
        assert_eq!(text(&registry), "hello\n");
    }
    assert_eq!(registry.content_requests(), 8);
    assert_eq!(registry.log().iter().filter(|seen| seen.faulty).count(), 4);
}

#[test]
fn faults_wait_for_their_turn() {
    let registry = registry();
    registry.fault(Fault::new(Effect::Status(503)).on_content().after(1).once());
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(&registry, ASSET).unwrap().0);
    }
    assert_eq!(statuses, [200, 503, 200]);
}

#[test]
fn faults_break_connections() {
    let registry = registry();
    for effect in [Effect::Reset, Effect::Truncate(5)] {
        registry.fault(Fault::new(effect).once());
        assert!(get(&registry, ASSET).is_err());
    }
    registry.fault(Fault::new(Effect::Trickle(Duration::from_millis(1))).once());
    assert_eq!(text(&registry), "hello\n");
    registry.fault(Fault::new(Effect::Garbage).once());
    let (_, body) = get(&registry, ASSET).unwrap();
    assert!(serde_json::from_slice::<Value>(&body).is_err());
    registry.fault(Fault::new(Effect::Redirect("http://127.0.0.1:1/".into())).once());
    assert_eq!(get(&registry, ASSET).unwrap().0, 302);
    assert_eq!(text(&registry), "hello\n");
}

#[test]
fn held_requests_arrive_and_wait() {
    let registry = std::sync::Arc::new(registry());
    let gate = registry.hold(RouteKind::Asset);
    let reader = std::thread::spawn({
        let registry = registry.clone();
        move || text(&registry)
    });
    registry.wait_for(RouteKind::Asset, 1);
    assert_eq!(registry.log()[0].status, None);
    gate.open();
    assert_eq!(reader.join().unwrap(), "hello\n");
    assert_eq!(registry.log()[0].status, Some(200));
}

#[test]
fn a_stopped_registry_comes_back_at_the_same_address() {
    let registry = registry();
    let url = registry.url();
    registry.fault(Fault::new(Effect::Hang));
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| get(&registry, ASSET));
        registry.wait_for(RouteKind::Asset, 1);
        registry.stop();
        assert!(hanging.join().unwrap().is_err());
    });
    assert!(get(&registry, ASSET).is_err());
    registry.clear_faults();
    registry.restart();
    assert_eq!(registry.url(), url);
    assert_eq!(text(&registry), "hello\n");
    // The hanging one and the last; a closed port sees nothing.
    assert_eq!(registry.requests(), 2);
}

#[test]
fn planted_manifests_are_served_as_they_are() {
    let registry = registry();
    registry.plant(
        "acme",
        "evil",
        "1.0.0",
        &[("../x", b"1"), ("a", b"2"), ("a/b", b"3")],
    );
    let (_, body) = get(&registry, "/v1/hub/bundles/acme/evil:resolve").unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["manifest"]["layers"][0]["logicalPath"], "../x");
    assert_eq!(body["manifest"]["layers"].as_array().unwrap().len(), 3);
}
