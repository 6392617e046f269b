//! A network that comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::proxy::{Fault, Proxy};
use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, eventually, forget_pages, read};
use crate::support::prove::Proof;
use crate::support::registry::TestRegistry;

/// The ways in which it goes.
const OUTAGES: [Fault; 5] = [
    Fault::Unavailable,
    Fault::Reset,
    Fault::Delay,
    Fault::Stall,
    Fault::Truncate,
];

#[test]
fn a_network_that_comes_and_goes_spoils_no_cached_read_and_fills_no_log() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "while the network flaps no cached read fails, and the log has a line a change at most",
        "a proxy goes and comes back every second, readers of cached and of new files meanwhile",
    );
    let mut random = proof.random();
    let duration = proof.pick(Duration::from_secs(8), Duration::from_secs(30 * 60));
    let registry = Arc::new(TestRegistry::start());
    let cached: Vec<(String, Vec<u8>)> = (0..16)
        .map(|n| (format!("{n}.md"), format!("cached {n}\n").into_bytes()))
        .collect();
    let files: Vec<(&str, &[u8])> = cached
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    for n in 0..200 {
        registry.publish("cold", &format!("kit{n}"), "1.0.0", &[("a.md", b"cold\n")]);
    }
    let proxy = Proxy::of(&registry);
    let mount = TestMount::of_url(&proxy.url())
        .args(&[
            "--readahead=0",
            "--metadata-timeout=1s",
            "--content-timeout=1s",
        ])
        .start();
    for (path, bytes) in &cached {
        assert_eq!(
            read(&mount.path(&format!("acme/kit/{path}"))).as_ref(),
            Ok(bytes)
        );
    }
    let quiet = mount.log().lines().count();

    let over = AtomicBool::new(false);
    let (reads, asked, answered) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut changes = 0_usize;
    std::thread::scope(|scope| {
        // However this ends, the readers do.
        let end_readers = OnDrop(&over);
        for reader in 0..4 {
            let (mount, cached, over, reads) = (&mount, &cached, &over, &reads);
            let mut random = random.fork();
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let (name, bytes) = random.pick(cached);
                    // By its moving name, and by the one that is for ever.
                    let bundle = if reader % 2 == 0 { "kit" } else { "kit@1.0.0" };
                    let path = mount.path(&format!("acme/{bundle}/{name}"));
                    forget_pages(&path);
                    let seen = std::fs::read(&path);
                    assert_eq!(&seen.unwrap(), bytes, "a cached file");
                    reads.fetch_add(1, Ordering::Relaxed);
                    // Others want the machine, too.
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        {
            let (mount, over, asked, answered) = (&mount, &over, &asked, &answered);
            let mut random = random.fork();
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let name = format!("cold/kit{}@1.0.0/a.md", random.below(200));
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Ok(seen) = mount.read(&name) {
                        assert_eq!(seen, b"cold\n");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let end = Instant::now() + duration;
        while Instant::now() < end {
            // What is measured is how long it lasts. Every other outage is found by probes, too.
            let gone = match changes % 4 {
                0 => Duration::from_millis(4000 + random.below(1000)),
                _ => Duration::from_millis(300 + random.below(1500)),
            };
            let back = Duration::from_millis(200 + random.below(800));
            for (fault, time) in [(Some(*random.pick(&OUTAGES)), gone), (None, back)] {
                proxy.set(fault);
                changes += 1;
                std::thread::sleep(time);
            }
        }
        drop(end_readers);
    });
    eventually("the network", || mount.read("cold/kit0@1.0.0/a.md").ok());
    let log = mount.log();
    let lines = log.lines().count() - quiet;
    assert!(
        lines <= changes,
        "{lines} lines for {changes} changes: {log}"
    );
    assert!(reads.load(Ordering::Relaxed) > 100);
    let asked_of_it = proxy.requests();
    mount.unmount();
    proof.held(json!({
        "changes of the network": changes,
        "lines in the log": lines,
        "cached reads": reads.into_inner(),
        "uncached reads": asked.into_inner(),
        "of them answered": answered.into_inner(),
        "requests": asked_of_it,
    }));
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
