//! A sample of the damage through a real mount, made while it runs and while it does not.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use crate::harm::{Harm, flip};
use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, forget_pages, said};
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

/// Does something to each blob; what.
fn harm_all(home: &Home, files: &[File], random: &mut Random) -> Vec<Option<Harm>> {
    let blobs: Vec<PathBuf> = files.iter().map(|(_, bytes)| home.blob(bytes)).collect();
    let mut done = Vec::new();
    for (index, (_, content)) in files.iter().enumerate() {
        let harm = Some(*random.pick(&Harm::ALL)).filter(|_| !random.once_in(3));
        // A swap needs another one that is a file still.
        let other = blobs[index + 1..]
            .iter()
            .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()));
        let is_file = fs::symlink_metadata(&blobs[index]).is_ok_and(|meta| meta.is_file());
        let length = fs::metadata(&blobs[index]).map_or(0, |meta| meta.len());
        let harm = match (harm, other) {
            _ if !is_file || length == 0 => None,
            (Some(harm), Some(other)) if harm.apply(&blobs[index], other) => Some(harm),
            _ => {
                let length = usize::try_from(length).unwrap().min(content.len());
                flip(&blobs[index], random.index(length), random);
                None
            }
        };
        done.push(harm);
    }
    done
}

#[test]
fn damage_is_not_noticed_through_a_mount_but_where_nothing_good_is_left() {
    if !require_fuse() {
        return;
    }
    let proof = Proof::start(
        "readers of a mount do not notice damage that can be healed, and are told of the rest",
        "200 blobs damaged in random ways while mounted and while not, and with the registry gone",
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
    let mut harmed = 0;
    for _ in 0..proof.pick(1, 20) {
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "at first");
        harmed += harm_all(&home, &files, &mut random).len();
        read_all(&mount, &files, "damaged while mounted");
        mount.unmount();
        // What was open may have served although its name was gone: now it is looked for.
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "mounted again");
        mount.unmount();
        for (name, content) in &files {
            assert!(fs::read(home.blob(content)).unwrap() == *content, "{name}");
        }
        harmed += harm_all(&home, &files, &mut random).len();
        let mount = mounted(&registry, &home);
        read_all(&mount, &files, "damaged while not mounted");
        mount.unmount();
        for (name, content) in &files {
            assert!(fs::read(home.blob(content)).unwrap() == *content, "{name}");
        }
    }

    let (name, content) = &files[0];
    flip(&home.blob(content), 0, &mut random);
    registry.stop();
    let mount = mounted(&registry, &home);
    assert_eq!(mount.read(&path(name)), Err(libc::EIO));
    let why = home.run(["why".as_ref(), mount.path(&path(name)).as_os_str()]);
    assert!(
        said(&why).contains("the cache (and it cannot"),
        "{}",
        said(&why)
    );
    read_all(&mount, &files[1..], "beside a damaged one");
    registry.restart();
    mount.unmount();
    proof.held(json!({
        "blobs": BLOBS,
        "damages": harmed,
        "wrong bytes": 0,
        "errors but where nothing good was left": 0,
    }));
}
