//! Native speed after the first read: what the kernel has, it does not ask for again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, run};
use crate::support::registry::TestRegistry;

/// The kernel's requests since `before`, FORGETs left out: they come when memory is short.
fn asked(mount: &TestMount, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let after = mount.counters().into_iter();
    let more = after.map(|(name, count)| (name.clone(), count - before[&name]));
    more.filter(|(name, more)| name.starts_with("fuse_") && name != "fuse_forget" && *more > 0)
        .collect()
}

fn use_everything(dir: &Path) {
    let (mut files, mut directories) = (0, 0);
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.unwrap();
        entry.metadata().unwrap();
        if entry.file_type().is_file() {
            fs::read(entry.path()).unwrap();
            files += 1;
        } else {
            directories += 1;
        }
    }
    assert_eq!((files, directories), (200, 13));
}

#[test]
fn a_warm_version_sends_no_request_to_the_daemon() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let files: Vec<(String, String)> = (0..200)
        .map(|n| (format!("d{}/e/f{n}.md", n % 6), format!("file {n}\n")))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_bytes()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry).start();

    // What is above a version may ask once a minute, so the version is held.
    let version = File::open(mount.path("acme/kit@1.0.0")).unwrap();
    let held = PathBuf::from(format!("/proc/self/fd/{}", version.as_raw_fd()));
    use_everything(&held.join("."));
    let before = mount.counters();
    for _ in 0..3 {
        use_everything(&held.join("."));
        assert!(!held.join("missing").exists());
    }
    // The name that is absent is asked for once.
    let asked = asked(&mount, &before);
    assert_eq!(asked, BTreeMap::from([("fuse_lookup".to_owned(), 1)]));

    // From other processes, by the whole path and through the link.
    use_everything(&mount.path("acme/kit/."));
    let before = mount.counters();
    for path in ["acme/kit@1.0.0", "acme/kit/."] {
        let dir = mount.path(path);
        run(
            "find",
            [dir.as_os_str(), "-newermt".as_ref(), "1970-01-01".as_ref()],
        );
        run("grep", ["-rc".as_ref(), "file".as_ref(), dir.as_os_str()]);
        use_everything(&dir);
    }
    let mut asked = self::asked(&mount, &before);
    // find(1) asks what kind of filesystem it is on, which is never cached; the attributes of root
    // and namespace live for a minute.
    asked.remove("fuse_statfs");
    let attributes = asked.remove("fuse_getattr").unwrap_or(0);
    assert!(attributes <= 2, "{attributes}");
    assert_eq!(asked, BTreeMap::new());
}

#[test]
fn python_opening_files_costs_an_ioctl_each_and_nothing_else() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"a\n"), ("b.md", b"b\n")],
    );
    let mount = TestMount::of(&registry).start();
    let script = "import sys, os; print([open(os.path.join(sys.argv[1], n)).read() for n in ('a.md', 'b.md')] * 2)";
    let read = || {
        let dir = mount.path("acme/kit@1.0.0");
        run("python3", ["-c".as_ref(), script.as_ref(), dir.as_os_str()])
    };
    let first = read();
    assert_eq!(first, "['a\\n', 'b\\n', 'a\\n', 'b\\n']\n");
    let before = mount.counters();
    assert_eq!(read(), first);
    let mut asked = asked(&mount, &before);
    // None from 3.14 on.
    assert!(asked.remove("fuse_ioctl").unwrap_or(0) <= 2);
    assert!(asked.remove("fuse_getattr").unwrap_or(0) <= 2);
    assert_eq!(asked, BTreeMap::new());
}
