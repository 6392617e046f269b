//! Readers of cached files while hundreds of others wait for the network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, forget_pages, read};
use crate::support::prove::Proof;
use crate::support::registry::{RouteKind, TestRegistry};

/// Waits until whoever reads, serves or answers here has nothing to do but to wait: starting or ending
/// five hundred readers takes time of the processor, whatever these then do.
fn await_rest(mount: &TestMount) {
    /// All threads of a process but this one: for how many nanoseconds they have run.
    fn ran(process: &str) -> u64 {
        let me = rustix::thread::gettid().as_raw_nonzero().to_string();
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let others = threads.flatten().filter(|it| *it.file_name() != *me);
        // Some end meanwhile.
        let told =
            others.filter_map(|it| std::fs::read_to_string(it.path().join("schedstat")).ok());
        told.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
            .sum()
    }
    let daemon = mount.status()["pid"].to_string();
    let all = || ran(&daemon) + ran("self");
    crate::support::mount::eventually("rest", || {
        let before = all();
        std::thread::sleep(Duration::from_millis(20));
        (all().saturating_sub(before) < 1_000_000).then_some(())
    });
}

/// Has this thread, and what it starts, run on one processor.
///
/// A read past the kernel's cache takes 17 µs where reader and daemon share one, and up to 50 µs where
/// each wakes the other on another; which of these it is changes by the second, and says nothing of who
/// waits for whom. Here all of them, and the readers that are stuck, are in each other's way.
fn share_one_processor() {
    let allowed = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set(
        (0..CpuSet::MAX_CPU)
            .find(|cpu| allowed.is_set(*cpu))
            .unwrap(),
    );
    sched_setaffinity(None, &one).unwrap();
}

/// Reads a cached file so often, past the kernel's cache; how long each took.
fn measure(mount: &TestMount, times: usize) -> Vec<Duration> {
    await_rest(mount);
    let path = mount.path("acme/kit@1.0.0/cached.md");
    (0..times)
        .map(|_| {
            forget_pages(&path);
            let start = Instant::now();
            let seen = std::fs::read(&path);
            let time = start.elapsed();
            assert_eq!(seen.unwrap(), b"cached\n");
            time
        })
        .collect()
}

fn percentile(of: &[Duration], percent: usize) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort();
    sorted[sorted.len() * percent / 100].as_secs_f64() * 1e6
}

#[test]
fn readers_of_cached_files_do_not_notice_hundreds_that_are_stuck() {
    if !require_fuse() {
        return;
    }
    let mut proof = Proof::start(
        "a stuck source delays no cached read: p50 ≤ 1.2 ×, p99 ≤ 2 × with 500 readers stuck",
        "cached files past the kernel's cache, while readers of cold files hang, before and after; all \
         reads of all rounds taken together; once all that has started or ended is at rest, everybody on \
         one processor",
    );
    if !proof.is_long() {
        // Too few reads for percentiles, and other tests run beside them.
        proof.promises("no cached read waits for a stuck source, with 100 readers stuck");
    }
    share_one_processor();
    let readers = proof.pick(100, 500);
    // Many short rounds: what else the machine does then falls on both sides.
    let (rounds, times) = proof.pick((1, 200), (20, 1000));
    let registry = Arc::new(TestRegistry::start());
    let contents: Vec<(String, Vec<u8>)> = (0..readers * rounds)
        .map(|n| {
            (
                format!("cold/{n:05}.md"),
                format!("cold {n}\n").into_bytes(),
            )
        })
        .collect();
    let mut files: Vec<(&str, &[u8])> = contents
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    files.push(("cached.md", b"cached\n"));
    registry.publish("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry)
        .args(&["--readahead=0", "--content-timeout=600s"])
        .start();
    assert_eq!(
        read(&mount.path("acme/kit@1.0.0/cached.md")),
        Ok(b"cached\n".to_vec())
    );
    measure(&mount, 100);

    let (mut free, mut busy) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        free.extend(measure(&mount, times / 2));
        registry.clear_log();
        let gate = registry.hold(RouteKind::Asset);
        let stuck: Vec<_> = (0..readers)
            .map(|n| {
                let n = round * readers + n;
                let path = mount.path(&format!("acme/kit@1.0.0/cold/{n:05}.md"));
                std::thread::spawn(move || std::fs::read(path).unwrap())
            })
            .collect();
        registry.wait_until("stuck readers", |log| {
            let held = |kind| log.iter().filter(|seen| seen.kind == kind).count();
            held(RouteKind::Asset) >= 16
        });
        crate::support::mount::eventually("everybody's waiting", || {
            let status = mount.status();
            let waiting = status["inFlight"].as_array().unwrap().len();
            (waiting >= readers).then_some(())
        });
        // First one that does not wait for ever, should they.
        let cached = mount.path("acme/kit@1.0.0/cached.md");
        forget_pages(&cached);
        assert_eq!(read(&cached), Ok(b"cached\n".to_vec()));
        busy.extend(measure(&mount, times));
        assert!(stuck.iter().all(|reader| !reader.is_finished()));
        gate.open();
        registry.clear_faults();
        for (n, reader) in stuck.into_iter().enumerate() {
            let n = round * readers + n;
            assert_eq!(reader.join().unwrap(), format!("cold {n}\n").into_bytes());
        }
        free.extend(measure(&mount, times / 2));
    }
    mount.unmount();
    let mut numbers = json!({"readers stuck": readers, "reads measured": rounds * times});
    if proof.is_long() {
        let ratio = |percent| percentile(&busy, percent) / percentile(&free, percent);
        let (p50, p99) = (ratio(50), ratio(99));
        numbers["µs p50 without them"] = percentile(&free, 50).into();
        numbers["× p50"] = format!("{p50:.2}").into();
        numbers["µs p99 without them"] = percentile(&free, 99).into();
        numbers["× p99"] = format!("{p99:.2}").into();
        proof.saw(&numbers);
        assert!(p50 <= 1.2 && p99 <= 2.0, "p50 × {p50:.2}, p99 × {p99:.2}");
    }
    proof.held(numbers);
}
