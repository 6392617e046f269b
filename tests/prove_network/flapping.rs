//! A network that comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::proxy::{Fault, Proxy};
use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, eventually, forget_pages, read};
use crate::support::prove::{Proof, Random};
use crate::support::registry::TestRegistry;

/// The ways in which it goes.
const OUTAGES: [Fault; 5] = [
    Fault::Unavailable,
    Fault::Reset,
    Fault::Delay,
    Fault::Stall,
    Fault::Truncate,
];

/// Somebody who always wants what nobody has had before: the next bundle as soon as there was this one.
#[derive(Default)]
struct Newcomer {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Newcomer {
    /// Asks until it is `over`.
    fn ask(&self, registry: &TestRegistry, mount: &TestMount, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let number = self.answered.load(Ordering::SeqCst);
            let name = format!("kit{number}");
            let content = format!("new {number}\n").into_bytes();
            registry.publish("cold", &name, "1.0.0", &[("a.md", &content)]);
            while !over.load(Ordering::SeqCst) {
                // Others want the machine, too.
                std::thread::sleep(Duration::from_millis(10));
                if let Ok(seen) = mount.read(&format!("cold/{name}@1.0.0/a.md")) {
                    assert_eq!(seen, content);
                    self.answered.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Reads of what is cached, until it is `over`; how many there were.
fn read_cached(
    mount: &TestMount,
    cached: &[(String, Vec<u8>)],
    bundle: &str,
    random: &mut Random,
    over: &AtomicBool,
) -> u64 {
    let mut reads = 0;
    while !over.load(Ordering::SeqCst) {
        let (name, bytes) = random.pick(cached);
        let path = mount.path(&format!("acme/{bundle}/{name}"));
        forget_pages(&path);
        let seen = std::fs::read(&path);
        assert_eq!(&seen.unwrap(), bytes, "a cached file");
        reads += 1;
        // Others want the machine, too.
        std::thread::sleep(Duration::from_millis(1));
    }
    reads
}

#[test]
fn a_network_that_comes_and_goes_spoils_no_cached_read_and_fills_no_log() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "while the network flaps no cached read fails, and each change has a line in the log at most",
        "a proxy goes and comes back, each time as soon as a reader of ever new files has noticed and \
         a moment later; readers of cached files meanwhile; the log counted from change to change",
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

    let over = AtomicBool::new(false);
    let newcomer = Newcomer::default();
    let (mut outages, mut lines) = (0_usize, 0_usize);
    let reads: u64 = std::thread::scope(|scope| {
        // However this ends, the readers do.
        let end_readers = OnDrop(&over);
        // By its moving name, and by the one that is for ever.
        let readers = ["kit", "kit@1.0.0", "kit", "kit@1.0.0"].map(|bundle| {
            let (mount, cached, over) = (&mount, &cached, &over);
            let mut random = random.fork();
            scope.spawn(move || read_cached(mount, cached, bundle, &mut random, over))
        });
        scope.spawn(|| newcomer.ask(&registry, &mount, &over));
        eventually("somebody new", || {
            (newcomer.answered.load(Ordering::SeqCst) > 0).then_some(())
        });
        let end = Instant::now() + duration;
        while Instant::now() < end {
            // Every fourth is found by probes, too.
            let gone = match outages % 4 {
                3 => Duration::from_millis(3000 + random.below(1000)),
                _ => Duration::from_millis(random.below(1500)),
            };
            let back = Duration::from_millis(200 + random.below(800));
            let outage = *random.pick(&OUTAGES);
            for (fault, noticed, time) in [
                (Some(outage), &newcomer.failed, gone),
                (None, &newcomer.answered, back),
            ] {
                let requests = proxy.requests();
                let logged = mount.log().lines().count();
                let seen = noticed.load(Ordering::SeqCst);
                proxy.set(fault);
                eventually("somebody who notices", || {
                    (noticed.load(Ordering::SeqCst) > seen).then_some(())
                });
                std::thread::sleep(time);
                assert!(proxy.requests() > requests, "nobody came to {fault:?}");
                let log = mount.log();
                let new: Vec<&str> = log.lines().skip(logged).collect();
                assert!(new.len() <= 1, "for one change to {fault:?}: {new:#?}");
                lines += new.len();
            }
            outages += 1;
        }
        drop(end_readers);
        readers.map(|reader| reader.join().unwrap()).iter().sum()
    });
    assert!(reads > 100);
    let requests = proxy.requests();
    mount.unmount();
    proof.held(json!({
        "outages, each met by a request": outages,
        "lines in the log": lines,
        "cached reads": reads,
        "new files read": newcomer.answered.into_inner(),
        "failures to read a new one": newcomer.failed.into_inner(),
        "requests": requests,
    }));
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
