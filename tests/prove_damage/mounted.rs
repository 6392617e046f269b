//! A sample of the damage through a real mount, made while it runs and while it does not.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use crate::harm::{Harm, Left, flip};
use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, assert_read_fails, forget_pages, name_of, said};
use crate::support::prove::{Proof, Random};
use crate::support::registry::TestRegistry;

const BLOBS: usize = 200;

type File = (String, Vec<u8>);

fn content(index: usize) -> Vec<u8> {
    format!("the content of file {index}\n")
        .repeat(1 + index % 40)
        .into_bytes()
}

fn mounted(registry: &TestRegistry, home: &Arc<Home>) -> TestMount {
    TestMount::of(registry)
        .home(home)
        .args(&["--readahead=0", "-ouser_xattr"])
        .start()
}

fn path(name: &str) -> String {
    format!("acme/kit@1.0.0/{name}")
}

/// Reads all files past the kernel's pages.
fn read_all(mount: &TestMount, files: &[File], when: &str) {
    for (name, content) in files {
        forget_pages(&mount.path(&path(name)));
        let read = mount.read(&path(name));
        assert!(read.as_ref() == Ok(content), "{when}, {name}: {read:?}");
    }
}

/// Does something to each blob; how many are not what they should be then.
fn harm_all(home: &Home, files: &[File], random: &mut Random) -> usize {
    let harms = Harm::all();
    let blobs: Vec<PathBuf> = files.iter().map(|(_, bytes)| home.blob(bytes)).collect();
    for (index, blob) in blobs.iter().enumerate() {
        // With the last one nothing is left to swap.
        match blobs.get(index + 1) {
            Some(other) if !random.once_in(3) => random.pick(&harms).apply(blob, other),
            _ => {
                let length = usize::try_from(fs::metadata(blob).unwrap().len()).unwrap();
                flip(blob, random.index(length), random);
            }
        }
    }
    let is_bad = |(_, content): &&File| Left::of(&home.blob(content), content) != Left::Right;
    files.iter().filter(is_bad).count()
}

fn assert_healed(home: &Home, files: &[File]) {
    for (name, content) in files {
        assert!(fs::read(home.blob(content)).unwrap() == *content, "{name}");
    }
}

/// What `musherfs why` says of a path.
fn why(mount: &TestMount, path: &str) -> String {
    let path = mount.path(path);
    said(&mount.home().run(["why".as_ref(), path.as_os_str()]))
}

/// The last failure of a path, as its attribute says.
fn error_of(mount: &TestMount, path: &str) -> String {
    let mut value = [0; 4096];
    let path = mount.path(path);
    let length = rustix::fs::getxattr(path, "user.musher.error", &mut value[..]).unwrap();
    String::from_utf8(value[..length].to_vec()).unwrap()
}

#[test]
fn damage_is_not_noticed_through_a_mount_but_where_nothing_good_is_left() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "readers of a mount do not notice damage that can be healed, and are told of the rest",
        "200 blobs damaged in random ways while mounted, while not, and with the registry gone; then \
         error number, `user.musher.error` and, of every tenth, `musherfs why` compared",
    );
    let mut random = proof.random();
    let registry = TestRegistry::start();
    let files: Vec<File> = (0..BLOBS)
        .map(|index| (format!("dir-{}/file-{index}.md", index % 9), content(index)))
        .collect();
    let listed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &listed);
    let home = Home::new();
    let mut damaged = 0;
    for _ in 0..proof.pick(1, 20) {
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "at first");
        damaged += harm_all(&home, &files, &mut random);
        read_all(&mount, &files, "damaged while mounted");
        mount.unmount();
        // What was open may have served although its name was gone: now it is looked for.
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "mounted again");
        mount.unmount();
        assert_healed(&home, &files);
        damaged += harm_all(&home, &files, &mut random);
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "damaged while not mounted");
        mount.unmount();
        assert_healed(&home, &files);
    }

    let lost = harm_all(&home, &files, &mut random);
    registry.stop();
    let mount = mounted(&registry, &home);
    for (index, (name, content)) in files.iter().enumerate() {
        let name = path(name);
        let left = Left::of(&home.blob(content), content);
        let read = mount.read(&name);
        let Some(errno) = left.errno() else {
            assert!(read.as_ref() == Ok(content), "{name}: {read:?}");
            continue;
        };
        assert_read_fails(read, errno, &name);
        let cause = error_of(&mount, &name);
        assert!(left.is_said_by(&cause), "{name}, {left:?}: {cause}");
        if index % 10 == 0 {
            let why = why(&mount, &name);
            assert!(
                why.contains(&name_of(errno)) && why.contains(&cause),
                "{why}"
            );
        }
    }
    mount.unmount();
    registry.restart();
    let mount = mounted(&registry, &home);
    read_all(&mount, &files, "when the registry is back");
    mount.unmount();
    assert_healed(&home, &files);
    proof.held(json!({
        "blobs": BLOBS,
        "damages healed": damaged,
        "damages with the registry gone, each an error with its cause": lost,
        "kinds of damage skipped": Harm::skipped(),
        "wrong bytes": 0,
    }));
}

/// 1 if a name cannot be looked up any more, which must be for want of the registry and say so. If it
/// can, it must be right.
fn is_lost(mount: &TestMount, name: &str, harm: Harm, is_right: impl FnOnce() -> bool) -> usize {
    match mount.stat(name) {
        Ok(_) => {
            assert!(harm != Harm::Gone && is_right(), "{name}, {harm:?}");
            0
        }
        Err(errno) => {
            assert_eq!(name_of(errno), "EHOSTUNREACH", "{name}, {harm:?}");
            let why = why(mount, name);
            let says = ["EHOSTUNREACH", " is unreachable: "];
            assert!(says.iter().all(|part| why.contains(part)), "{why}");
            1
        }
    }
}

/// The manifests or refs in the cache whose names begin so.
fn entries(home: &Home, folder: &str, prefix: &str) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(home.cache().join(folder)).sort_by_file_name();
    let all = all.into_iter().map(|entry| entry.unwrap().into_path());
    let is_meant = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(prefix) && name.ends_with(".json") && !name.ends_with(".meta.json")
    };
    all.filter(is_meant).collect()
}

#[test]
fn names_whose_manifest_or_ref_is_lost_with_the_registry_gone_say_why() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "names whose manifest or ref is damaged while the registry is gone are EHOSTUNREACH, and \
         `musherfs why` names the cause",
        "a manifest and a ref damaged in each way, then looked up through a mount",
    );
    let registry = TestRegistry::start();
    let home = Home::new();
    let harms = Harm::all();
    // Each has a version, its tag, and one more to change places with.
    let content = |index: usize| format!("the content of {index}\n").into_bytes();
    for index in 0..2 * harms.len() {
        let version = format!("1.0.{index}");
        let published = registry.publish("acme", "kit", &version, &[("a.md", &content(index))]);
        registry.tag(&published, &format!("tag-{index:02}"));
    }
    let version = |index: usize| format!("acme/kit@1.0.{index}");
    let tag = |index: usize| format!("acme/kit@tag-{index:02}");
    let mount = mounted(&registry, &home);
    for index in 0..2 * harms.len() {
        let read = mount.read(&format!("{}/a.md", tag(index)));
        assert_eq!(read, Ok(content(index)));
    }
    mount.unmount();
    let manifest = |index: usize| entries(&home, "manifests", &format!("1.0.{index}.")).remove(0);
    let reference = |index: usize| entries(&home, "refs", &format!("tag-{index:02}")).remove(0);
    for (index, harm) in harms.iter().enumerate() {
        harm.apply(&manifest(index), &manifest(harms.len() + index));
    }
    registry.stop();

    let mut lost = 0;
    let mount = mounted(&registry, &home);
    for (index, harm) in harms.iter().enumerate() {
        let file = format!("{}/a.md", version(index));
        let is_right = || mount.read(&file) == Ok(content(index));
        lost += is_lost(&mount, &version(index), *harm, is_right);
    }
    mount.unmount();
    for (index, harm) in harms.iter().enumerate() {
        harm.apply(&reference(index), &reference(harms.len() + index));
    }
    let mount = mounted(&registry, &home);
    for (index, harm) in harms.iter().enumerate() {
        let swapped = [index, harms.len() + index].map(|index| format!("kit@1.0.{index}"));
        let is_right = || match mount.readlink(&tag(index)) {
            Ok(target) if *harm == Harm::Swap => swapped.contains(&target),
            Ok(target) => target == swapped[0],
            Err(_) => false,
        };
        lost += is_lost(&mount, &tag(index), *harm, is_right);
    }
    mount.unmount();
    assert!(lost >= harms.len(), "only {lost} of them mattered");
    proof.held(json!({
        "damages": 2 * harms.len(),
        "that were EHOSTUNREACH": lost,
        "kinds of damage skipped": Harm::skipped(),
        "led astray": 0,
    }));
}
