//! Numbers for monitoring.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::{World, output, text, wait_until};

/// The answer to a GET on a Unix socket: status line, headers and body.
pub(crate) fn get(world: &World, target: &str) -> String {
    let mut stream = UnixStream::connect(world.path("metrics.sock")).unwrap();
    write!(stream, "GET {target} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn requests_times_reads_sources_and_readiness_are_told() {
    let Some(world) = World::new() else { return };
    world
        .registry
        .publish("acme", "kit", "1.0.0", &[("a.md", b"hello\n")]);
    let address = format!("unix:{}", world.path("metrics.sock").display());
    world.mount(&["--metrics", &address]);
    assert_eq!(
        std::fs::read(world.at("acme/kit/a.md")).unwrap(),
        b"hello\n"
    );
    assert!(!world.at("acme/kit/b.md").exists());

    assert!(get(&world, "/healthz").starts_with("HTTP/1.0 200"));
    assert!(get(&world, "/readyz").starts_with("HTTP/1.0 200"));
    let text = get(&world, "/metrics");
    assert!(text.contains("application/openmetrics-text"), "{text}");
    assert!(value(&text, "musherfs_requests_total{op=\"read\",result=\"ok\"}") >= 1.0);
    assert!(value(&text, "musherfs_reads_total{cache=\"cold\"}") >= 1.0);
    assert!(value(&text, "musherfs_source_bytes_total") >= 6.0);
    let bucket = "musherfs_request_duration_seconds_bucket{le=\"+Inf\",op=\"lookup\"}";
    let count = "musherfs_request_duration_seconds_count{op=\"lookup\"}";
    assert!(value(&text, count) >= 1.0);
    assert!((value(&text, bucket) - value(&text, count)).abs() < 0.5);
    let up = format!(
        "musherfs_source_state{{source=\"registry {}\",state=\"up\"}}",
        world.registry.url()
    );
    assert!((value(&text, &up) - 1.0).abs() < 0.5);
    assert!(text.trim_end().ends_with("# EOF"), "{text}");

    // No path and no name of a bundle is told to whoever watches the numbers.
    assert!(!text.contains("acme") && !text.contains("a.md"), "{text}");
}

#[test]
fn an_address_that_cannot_be_had_fails_the_mount() {
    let Some(world) = World::new() else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = world.mountpoint();
    let output = world.run(&["mount", "--metrics", &address, dir.to_str().unwrap()]);
    assert!(!output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains(&address), "{output:?}");
    let output = world.run(&["mount", "--metrics", "0.0.0.0:9469", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

#[test]
fn a_second_mount_with_the_same_setting_has_the_address_when_the_first_is_gone() {
    let Some(world) = World::new() else { return };
    let socket = world.path("metrics.sock");
    let address = format!("unix:{}", socket.display());
    world.mount(&["--metrics", &address]);
    let other = world.path("other");
    let other = other.to_str().unwrap();
    // Who asks for it is told that it cannot be had.
    let refused = world.run(&["mount", "--offline", "--metrics", &address, other]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = text(&refused.stderr);
    assert_eq!(message.matches(&*address).count(), 1, "{message}");

    let mut second = world.command(&["mount", "--offline", other]);
    second.env("MUSHERFS_METRICS", &address);
    let mounted = output(second);
    assert!(mounted.status.success(), "{mounted:?}");
    assert!(get(&world, "/healthz").starts_with("HTTP/1.0 200"));
    let first = world.mountpoint();
    let ended = world.run(&["umount", first.to_str().unwrap()]);
    assert!(ended.status.success(), "{ended:?}");
    wait_until("the numbers of the second", || {
        UnixStream::connect(&socket).is_ok()
    });
    let ended = world.run(&["umount", other]);
    assert!(ended.status.success(), "{ended:?}");
}
