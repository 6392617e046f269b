//! A limited cache never exceeds its limit, and never fails a reader.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::house::{House, files_below, is_long};
use crate::support::cache::taken_at_once;
use crate::support::fuse::{require_fuse, require_root};
use crate::support::registry::PATIENCE;

const MIB: u64 = 1 << 20;

/// A small disk at a directory, gone on drop.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path, size: u64) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self(dir.to_owned())
    }
}

fn used(disk: &Path) -> u64 {
    let stat = rustix::fs::statvfs(disk).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A mount in a process of its own, ended on drop.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) dir: PathBuf,
}

impl Daemon {
    pub(crate) fn new(house: &House, name: &str, options: &[&str]) -> Self {
        let dir = house.path().join(name);
        let mut arguments = vec!["mount", "--foreground", "-v"];
        arguments.extend(options);
        arguments.push(dir.to_str().unwrap());
        let mut child = house
            .command(&arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "{said}");
            said.push_str(&line);
            if line.contains("mounted") {
                break;
            }
        }
        // Read on, or the daemon would wait for us.
        std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = log.read_to_string(&mut rest);
        });
        Self { child, dir }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        while rustix::mount::unmount(&self.dir, flags).is_ok() {}
    }
}

fn can_mount() -> bool {
    require_fuse() && require_root()
}

/// Text that is every file's own.
fn content(n: u64, size: u64) -> Vec<u8> {
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let block: Vec<u8> = (0..size.min(64 * 1024))
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            b'!' + u8::try_from(seed % 90).unwrap()
        })
        .collect();
    let size = usize::try_from(size).unwrap();
    let mut bytes = block.repeat(size.div_ceil(block.len()));
    bytes.truncate(size);
    bytes
}

fn publish(house: &House, slug: &str, first: u64, count: u64, size: u64) {
    let files: Vec<(String, Vec<u8>)> = (first..first + count)
        .map(|n| (format!("{n:04}.txt"), content(n, size)))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
        .collect();
    house.registry.publish("acme", slug, "1.0.0", &files);
}

/// 64 MiB through 8 MiB on a disk of 12, by two mounts at once; or 2 GiB through 256 MiB on a disk
/// of 384 (`MUSHERFS_PROVE=long`).
#[test]
fn much_is_read_through_a_small_cache() {
    if !can_mount() {
        return;
    }
    let unit = if is_long() { 32 * MIB } else { MIB };
    let (limit, disk_size, file_size) = (8 * unit, 12 * unit, unit / 8);
    let house = House::new();
    let _disk = Disk::new(&house.root(), disk_size);
    publish(&house, "pinned", 10_000, 8, file_size);
    for part in 0..4 {
        publish(&house, &format!("big{part}"), part * 128, 128, file_size);
    }
    house.ok(&["pin", "acme/pinned"]);
    house.registry.clear_log();

    let limit_text = limit.to_string();
    let options = ["--cache-max-size", &limit_text];
    let mounts = [
        Daemon::new(&house, "one", &options),
        Daemon::new(&house, "two", &options),
    ];
    let sampler = Sampler::start(house.root());
    let start = Instant::now();
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (mount, parts) in mounts.iter().zip([[0, 1], [2, 3]]) {
            let failed = &failed;
            scope.spawn(move || {
                for part in parts {
                    let dir = mount.dir.join(format!("acme/big{part}@1.0.0"));
                    for n in part * 128..(part + 1) * 128 {
                        match fs::read(dir.join(format!("{n:04}.txt"))) {
                            Ok(bytes) => assert!(bytes == content(n, file_size), "{n}"),
                            Err(error) => {
                                println!("{n}: {error}");
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    let took = start.elapsed();
    let sampled = sampler.stop();

    // Nothing pinned was fetched again, neither then nor now.
    for n in 10_000..10_008 {
        let path = mounts[0].dir.join(format!("acme/pinned@1.0.0/{n:04}.txt"));
        assert!(fs::read(path).unwrap() == content(n, file_size));
    }
    let asked = |slug: &str| {
        let lines = house.registry.lines();
        lines
            .iter()
            .filter(|line| line.contains(slug) && line.contains("assets"))
            .count()
    };
    let (failed, refetched) = (failed.into_inner(), asked("pinned"));
    println!(
        "{} MiB read in {took:.0?} through a cache of {} MiB on a disk of {}: at most {} bytes taken \
         ({:.1} % of the limit) in {} samples, {failed} failed reads, {refetched} pinned files fetched again",
        512 * file_size / MIB,
        limit / MIB,
        disk_size / MIB,
        sampled.most,
        100.0 * sampled.most as f64 / limit as f64,
        sampled.samples,
    );
    assert_eq!(failed, 0);
    assert!(sampled.most <= limit, "{sampled:?}, of {limit}");
    assert!(sampled.most > limit / 2, "{sampled:?}, of {limit}");
    // A twentieth stays free, blobs that are open without a name included.
    assert!(
        sampled.most_of_disk <= disk_size / 20 * 19 + 64 * 1024,
        "{sampled:?}"
    );
    assert_eq!(refetched, 0);
    assert!(asked("big0") >= 1);
    assert!(house.ok(&["cache", "verify"]).ends_with("0 damaged\n"));

    // A command keeps the limit of the running mounts, and says so when it cannot.
    let load = house.run(&["load", "acme/big0"]);
    assert_eq!(load.status.code(), Some(1));
    assert!(
        house.normal(&load.stderr).contains("no room"),
        "{:?}",
        load.stderr
    );
}

/// What was taken while somebody looked, as often as could be.
#[derive(Debug, Default)]
struct Sampled {
    samples: u64,
    /// Bytes of files in the cache, temporary ones included.
    most: u64,
    /// Bytes of the disk.
    most_of_disk: u64,
}

struct Sampler {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Sampled>,
}

impl Sampler {
    fn start(root: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut sampled = Sampled::default();
                while !over.load(Ordering::Relaxed) {
                    sampled.samples += 1;
                    sampled.most = sampled.most.max(taken_at_once(&root));
                    sampled.most_of_disk = sampled.most_of_disk.max(used(&root));
                    std::thread::yield_now();
                }
                sampled
            }
        });
        Self { over, thread }
    }

    fn stop(self) -> Sampled {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn what_was_read_last_is_evicted_last() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    publish(&house, "kit", 0, 16, MIB / 4);
    let mount = Daemon::new(
        &house,
        "mount",
        &["--cache-max-size", "2MiB", "--readahead", "0"],
    );
    let dir = mount.dir.join("acme/kit@1.0.0");
    let read = |n: u64| {
        // What the kernel answers from its cache is not seen by the daemon.
        let mut file = fs::File::open(dir.join(format!("{n:04}.txt"))).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(n, MIB / 4), "{n}");
    };
    for n in 1..16 {
        read(0);
        read(n);
    }
    assert!(house.blob(&content(15, MIB / 4)).exists());
    assert!(house.blob(&content(0, MIB / 4)).exists());
    assert!(!house.blob(&content(1, MIB / 4)).exists());
}

#[test]
fn whoever_keeps_the_ledger_locked_holds_up_no_reader() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    publish(&house, "kit", 0, 21, 100);
    let options = ["--cache-max-size", "2MiB", "--readahead", "0"];
    let mount = Daemon::new(&house, "mount", &options);
    let file = |n: u64| mount.dir.join(format!("acme/kit@1.0.0/{n:04}.txt"));
    assert_eq!(fs::read(file(0)).unwrap(), content(0, 100));
    assert!(house.blob(&content(0, 100)).exists());
    // As a process would that was stopped in the middle of it.
    let ledgers = files_below(&house.state()).into_iter();
    let kept: Vec<_> = ledgers
        .filter(|path| path.parent().unwrap().ends_with("quota"))
        .map(|path| fs::File::open(path).unwrap())
        .inspect(|ledger| ledger.lock().unwrap())
        .collect();
    assert_eq!(kept.len(), 1);
    // All of them, although each would be waited for.
    let (sender, answers) = std::sync::mpsc::channel();
    for n in 1..20 {
        let (file, sender) = (file(n), sender.clone());
        std::thread::spawn(move || sender.send((n, fs::read(file))));
    }
    for _ in 1..20 {
        let (n, answer) = answers.recv_timeout(PATIENCE).expect("a reader waits");
        assert_eq!(answer.unwrap(), content(n, 100));
    }
    assert!(
        !house.blob(&content(19, 100)).exists(),
        "it was not reserved"
    );
    drop(kept);
    assert_eq!(fs::read(file(20)).unwrap(), content(20, 100));
    assert!(house.blob(&content(20, 100)).exists());
}

#[test]
fn clean_spares_what_a_running_mount_serves_and_not_what_a_killed_one_did() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    publish(&house, "kit", 0, 3, 100);
    let mount = Daemon::new(&house, "mount", &[]);
    let file = mount.dir.join("acme/kit@1.0.0/0001.txt");
    assert_eq!(fs::read(&file).unwrap(), content(1, 100));
    house.redate("acme/kit", "1.0.0", 30);
    house.age_blobs();
    let clean = house.ok(&["cache", "clean"]);
    assert!(clean.contains("kept: 1 entry"), "{clean}");
    assert!(house.blob(&content(1, 100)).exists());
    mount.kill();
    let clean = house.ok(&["cache", "clean"]);
    assert!(clean.starts_with("removed: 1 entry"), "{clean}");
    assert!(!house.blob(&content(1, 100)).exists());
}

#[test]
fn a_mount_keeps_pins_loaded_when_others_clean_them_away() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    publish(&house, "kit", 0, 3, 100);
    house.ok(&["pin", "acme/kit"]);
    fs::remove_dir_all(house.root()).unwrap();
    let _mount = Daemon::new(&house, "mount", &[]);
    let end = Instant::now() + PATIENCE;
    while !(0..3).all(|n| house.blob(&content(n, 100)).exists()) {
        assert!(Instant::now() < end, "the pin was not loaded again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_locked_mount_shows_what_was_locked_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let house = House::new();
    publish(&house, "kit", 0, 2, 100);
    publish(&house, "other", 5, 1, 100);
    house.ok(&["lock", "musher.lock", "acme/kit@^1"]);
    house
        .registry
        .publish("acme", "kit", "1.1.0", &[("new.md", b"new\n")]);
    let mount = Daemon::new(&house, "mount", &["--locked", "musher.lock"]);
    let names = |dir: &Path| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&mount.dir), ["acme"]);
    assert_eq!(names(&mount.dir.join("acme")), ["kit@1.0.0"]);
    let acme = mount.dir.join("acme");
    assert_eq!(
        fs::read(acme.join("kit@^1/0001.txt")).unwrap(),
        content(1, 100)
    );
    for hidden in ["acme/kit", "acme/kit@1.1.0", "acme/other", "nord"] {
        let error = fs::metadata(mount.dir.join(hidden)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{hidden}");
    }
    // The cache knows more than the lockfile names, and the reason is the lockfile all the same.
    house.ok(&["load", "acme/kit", "acme/other"]);
    for hidden in [
        "acme/kit",
        "acme/kit@1.1.0",
        "acme/kit@^1.1",
        "acme/other",
        "nord",
    ] {
        let why = house.run(&["why", mount.dir.join(hidden).to_str().unwrap()]);
        let said = String::from_utf8(why.stdout).unwrap();
        assert_eq!(why.status.code(), Some(1), "{hidden}: {said}");
        assert!(
            said.contains("the lockfile does not name"),
            "{hidden}: {said}"
        );
    }
    let range = house.ok(&["why", mount.dir.join("acme/kit@^1").to_str().unwrap()]);
    assert!(range.contains("^1 is 1.0.0, and stays it"), "{range}");
}
