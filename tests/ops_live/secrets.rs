//! Nothing that the program tells has the key in it.

use std::process::Command;

use crate::support::registry::{Effect, Fault, TestRegistry};
use crate::{World, files, output, text};

const KEY: &str = "sk-musher-do-not-tell-anybody-0123456789";

#[test]
fn logs_numbers_status_explanations_and_reports_have_no_key() {
    let Some(mut world) = World::with_registry(TestRegistry::start_with_token(KEY)) else {
        return;
    };
    world.key = Some(KEY);
    let version = world.registry.publish_private(
        "acme",
        "secret",
        "1.0.0",
        &[("a.md", b"private\n"), ("b.md", b"b\n")],
    );
    let socket = format!("unix:{}", world.path("metrics.sock").display());
    world.mount(&["-vvv", "--metrics", &socket, "--readahead", "0"]);
    assert_eq!(
        std::fs::read(world.at("acme/secret/a.md")).unwrap(),
        b"private\n"
    );
    // A registry that repeats what it was sent.
    let echo = format!("{{\"title\":\"no\",\"detail\":\"the key {KEY} is bad\"}}").into_bytes();
    let echo = Effect::Body(403, "application/problem+json", echo);
    world.registry.fault(Fault::new(echo).on_content());
    world.complaint("acme/secret/b.md");

    let dir = world.mountpoint();
    let dir = dir.to_str().unwrap();
    let report = world.path("report.tar.gz");
    let mut said = String::new();
    for arguments in [
        &["-vvv", "status", "--json"][..],
        &["status", "--long"],
        &["-vvv", "why", "--json", &format!("{dir}/acme/secret/b.md")],
        &["why", &format!("{dir}/acme/secret/a.md")],
        &["-vvv", "doctor", "--all", dir],
        &["doctor", "--json", dir],
        &["-vvv", "bugreport", "-o", report.to_str().unwrap(), dir],
        &["-vvv", "resolve", &version.to_string()],
        &["-vvv", "events", "--folder"],
    ] {
        let output = world.run(arguments);
        said.push_str(&text(&output.stdout));
        said.push_str(&text(&output.stderr));
    }
    let mut unpack = Command::new("tar");
    unpack.args(["-xzOf"]).arg(&report);
    let unpacked = text(&output(unpack).stdout);
    for part in [
        "musherfs 0.",
        "fuse-device",
        "mountpoint",
        "API key: from MUSHER_API_KEY",
    ] {
        assert!(unpacked.contains(part), "{part}: {unpacked}");
    }
    said.push_str(&unpacked);
    said.push_str(&crate::metrics::get(&world, "/metrics"));
    for (path, content) in files(&world.path("musher")) {
        assert!(!content.contains(KEY), "{}", path.display());
    }
    assert!(!said.contains(KEY), "{said}");
    assert!(said.contains("acme/secret"), "{said}");
}
