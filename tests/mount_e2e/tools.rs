//! Real programs on a real tree: the sources of this project's own dependencies.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, run, said, succeed};
use crate::support::registry::TestRegistry;

/// How many files a real tree has, at least.
const ENOUGH: usize = 2_000;

/// What the registry takes of one file.
const LARGEST: u64 = 512 << 10;

/// Copies the text files of the packages that this project depends on into `into`, until there are
/// enough; how many there are.
fn gather(into: &Path) -> usize {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Packages for other systems need not have been downloaded.
    let here = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = succeed(
        Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", &here])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut roots: Vec<PathBuf> = packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            manifest.parent().unwrap().to_owned()
        })
        .collect();
    roots.sort();
    let mut count = 0;
    for root in roots {
        if count >= ENOUGH {
            break;
        }
        let name = root.file_name().unwrap();
        for entry in walkdir::WalkDir::new(&root) {
            let entry = entry.unwrap();
            let path = entry.path();
            let is_fit = entry.file_type().is_file()
                && entry.metadata().unwrap().len() <= LARGEST
                && path.to_str().is_some_and(|path| !path.contains('\\'));
            if !is_fit {
                continue;
            }
            let bytes = fs::read(path).unwrap();
            if std::str::from_utf8(&bytes).is_err() {
                continue;
            }
            let copy = into.join(name).join(path.strip_prefix(&root).unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::write(copy, bytes).unwrap();
            count += 1;
        }
    }
    count
}

#[track_caller]
fn no_difference(one: &Path, other: &Path) {
    let difference = run(
        "diff",
        [OsStr::new("-r"), one.as_os_str(), other.as_os_str()],
    );
    assert_eq!(difference, "");
}

#[test]
fn a_real_tree_is_the_same_in_the_mount_also_when_the_registry_is_gone() {
    if !require_fuse() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let original = scratch.path().join("original");
    let count = gather(&original);
    assert!(
        count >= ENOUGH,
        "only {count} text files among the dependencies"
    );
    let registry = TestRegistry::start();
    registry.publish_tree("real", "sources", "1.0.0", &original);

    let mount = TestMount::of(&registry).start();
    no_difference(&original, &mount.path("real/sources/."));
    let requests = registry.content_requests();
    assert!(requests <= count, "{requests} requests for {count} files");
    let home = mount.home().clone();
    mount.unmount();

    registry.stop();
    let mount = TestMount::of(&registry).home(&home).start();
    let tree = mount.path("real/sources@1.0.0");
    no_difference(&original, &tree);
    copies_are_whole(&original, &tree, scratch.path());
    searches_find_the_same(&original, &tree);
    python_sees_the_same(&original, &tree);
    assert_eq!(mount.counter("fuse_failed"), 0);
    assert_eq!(mount.counter("source_bytes"), 0);
    mount.unmount();
}

fn copies_are_whole(original: &Path, tree: &Path, scratch: &Path) {
    let shell = |script: &str, into: &str| {
        let into = scratch.join(into);
        fs::create_dir(&into).unwrap();
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh"]).arg(tree).arg(&into);
        succeed(&mut command);
        no_difference(original, &into);
        run(
            "chmod",
            [OsStr::new("-R"), "u+w".as_ref(), into.as_os_str()],
        );
        fs::remove_dir_all(&into).unwrap();
    };
    shell(r#"tar -C "$1" -cf - . | tar -C "$2" -xf -"#, "tar");
    shell(
        r#"rsync -a "$1/" "$2/" && test -z "$(rsync -ai "$1/" "$2/")""#,
        "rsync",
    );
    shell(r#"cp -a "$1/." "$2""#, "cp");
    let mut git = Command::new("git");
    git.args(["diff", "--no-index", "--stat"])
        .args([original, tree]);
    let output = git.output().unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{}",
        said(&output)
    );
}

fn searches_find_the_same(original: &Path, tree: &Path) {
    let search = |dir: &Path| {
        let mut command = Command::new("rg");
        command
            .args([
                "--sort=path",
                "--hidden",
                "--no-ignore",
                "--count",
                "fn main",
            ])
            .current_dir(dir);
        succeed(&mut command)
    };
    let found = search(original);
    assert!(found.lines().count() > 5, "{found}");
    assert_eq!(search(tree), found);
}

fn python_sees_the_same(original: &Path, tree: &Path) {
    let script = r"
import hashlib, mmap, pathlib, sys
root = pathlib.Path(sys.argv[1])
total = hashlib.sha256()
for path in sorted(root.rglob('*')):
    if path.is_dir():
        continue
    size = path.stat().st_size
    with path.open('rb') as file:
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                data = view[:]
                assert view[size // 2:] == data[size // 2:]
        else:
            data = file.read()
    assert len(data) == size and path.read_bytes() == data, path
    assert path.open(encoding='utf-8', newline='').read() == data.decode(), path
    total.update(str(path.relative_to(root)).encode() + b'\0' + data)
print(total.hexdigest())
";
    let hash = |dir: &Path| run("python3", ["-c".as_ref(), script.as_ref(), dir.as_os_str()]);
    assert_eq!(hash(tree), hash(original));
}

#[test]
fn a_script_runs_from_the_mount_by_its_interpreter() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let script = b"#!/bin/sh\n. \"$(dirname \"$0\")/lib/greet.sh\"\ngreet \"$1\"\n";
    let library = b"greet() { echo \"hello, $1\"; }\n";
    let module =
        b"from pathlib import Path\nprint(Path(__file__).with_name('data.txt').read_text())\n";
    registry.publish(
        "acme",
        "tools",
        "1.0.0",
        &[
            ("run.sh", script),
            ("lib/greet.sh", library),
            ("tool/__main__.py", module),
            ("tool/data.txt", b"from the mount"),
        ],
    );
    let mount = TestMount::of(&registry).start();
    let dir = mount.path("acme/tools");
    let said = run("sh", [dir.join("run.sh").as_os_str(), "you".as_ref()]);
    assert_eq!(said, "hello, you\n");
    let said = run("python3", [dir.join("tool")]);
    assert_eq!(said, "from the mount\n");
    // Files are data: nothing is executable.
    let error = Command::new(dir.join("run.sh")).spawn().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let mut inside = Command::new("sh");
    inside.args(["-c", "cd .. && pwd -P && cat tools/lib/greet.sh"]);
    let printed = succeed(inside.current_dir(dir.join(".")));
    assert!(printed.contains("/acme\ngreet()"), "{printed}");
    mount.unmount();
}

#[test]
fn large_files_are_read_in_order_at_random_and_mapped() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let large: Vec<u8> = (0..60_000_u32)
        .flat_map(|n| format!("{n:07}\n").into_bytes())
        .collect();
    registry.publish("acme", "large", "1.0.0", &[("large.txt", &large)]);
    let mount = TestMount::of(&registry).start();
    let path = mount.path("acme/large@1.0.0/large.txt");
    let script = r"
import mmap, os, random, sys
expected = ''.join('%07d\n' % n for n in range(60000)).encode()
fd = os.open(sys.argv[1], os.O_RDONLY)
random.seed(7)
for _ in range(500):
    at, size = random.randrange(len(expected) + 10), random.choice([1, 7, 4096, 70000])
    assert os.pread(fd, size, at) == expected[at:at + size], (at, size)
view = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
assert view[:] == expected and view.find(b'0059999') == 8 * 59999
assert os.lseek(fd, 0, os.SEEK_END) == len(expected)
assert os.pread(fd, 10, len(expected)) == b''
copy = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
at = 0
while at < len(expected):
    at += os.sendfile(copy, fd, at, len(expected))
assert os.pread(copy, len(expected), 0) == expected
print('good')
";
    let copy = mount.home().path().join("copy");
    let said = run(
        "python3",
        [
            "-c".as_ref(),
            script.as_ref(),
            path.as_os_str(),
            copy.as_os_str(),
        ],
    );
    assert_eq!(said, "good\n");
    assert_eq!(registry.content_requests(), 1);
    mount.unmount();
}
