//! Killed at any moment, commands leave a cache that needs no repair.
//!
//! 250 times, or a thousand (`MUSHERFS_PROVE=long`).

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::house::{House, files_below, is_long, set_age};

/// Generous for all of it: only a command that cannot be killed at work takes as long.
const DEADLINE: Duration = Duration::from_secs(600);

#[test]
fn no_kill_leaves_a_bad_blob_or_something_that_clean_cannot_take_away() {
    let house = House::new();
    let versions = ["1.0.0", "1.1.0", "1.2.0"];
    for (index, version) in versions.iter().enumerate() {
        let files: Vec<(String, Vec<u8>)> = (0..60)
            .map(|n| {
                let text = format!("{index} {n}\n").repeat(1000 * (n % 7) + 1);
                (format!("{n}.md"), text.into_bytes())
            })
            .collect();
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
            .collect();
        house.registry.publish("acme", "kit", version, &files);
    }
    let work: [&[&str]; 5] = [
        &["load", "--force", "acme/kit@1.0.0", "acme/kit@1.1.0"],
        &["load", "acme/kit@1.2.0", "acme/kit"],
        &["cache", "prune", "--older-than", "0h"],
        &["cache", "clean"],
        &["pin", "acme/kit@1.1.0"],
    ];
    let enough = if is_long() { 1000 } else { 250 };
    let start = Instant::now();
    let (mut runs, mut kills, mut seed) = (0, 0, 0x2545_f491_4f6c_dd1d_u64);
    while kills < enough {
        assert!(start.elapsed() < DEADLINE, "only {kills} kills of {runs}");
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut command = house.command(work[usize::try_from(seed % 5).unwrap()]);
        // A third of the time with a limit that does not hold everything.
        if seed.is_multiple_of(3) {
            command.env("MUSHERFS_CACHE_MAX_SIZE", "1MiB");
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(seed % 60_000));
        child.kill().unwrap();
        // Some have ended before.
        kills += u32::from(child.wait().unwrap().code().is_none());
        runs += 1;
        // What clean may take must be an hour old.
        if runs % 10 == 0 {
            house.age_blobs();
        }
        if runs % 25 == 0 {
            assert!(house.ok(&["cache", "verify"]).ends_with(" 0 damaged\n"));
        }
    }
    let took = start.elapsed();

    assert!(house.ok(&["cache", "verify"]).ends_with(" 0 damaged\n"));
    for version in versions {
        let _ = house.run(&["unpin", &format!("acme/kit@{version}")]);
    }
    house.age_blobs();
    for file in files_below(&house.root().join("temp")) {
        set_age(&file, Duration::from_secs(7200));
    }
    house.ok(&["cache", "prune", "--older-than", "0h"]);
    house.ok(&["cache", "clean"]);
    let left: Vec<String> = house
        .files()
        .into_iter()
        .filter(|file| !file.starts_with("refs/"))
        .collect();
    assert_eq!(left, ["CACHEDIR.TAG"]);
    for folder in ["locks", "leases"] {
        let left = files_below(&house.state().join("musherfs").join(folder));
        assert!(
            left.iter()
                .all(|file| { fs::File::open(file).is_ok_and(|file| file.try_lock().is_ok()) }),
            "{left:?}"
        );
    }
    println!(
        "{kills} commands of {runs} were killed at work in {took:.0?}: 0 damaged blobs, {} files left by clean",
        left.len() - 1
    );
    assert!(
        house
            .ok(&["load", "acme/kit"])
            .starts_with("acme/kit@1.2.0")
    );
}
