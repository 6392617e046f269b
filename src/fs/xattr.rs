//! Extended attributes: what a file is and where it comes from, for `getfattr` and scripts.
//!
//! `user.musher.<name>`; off unless the mount asks for them, because the kernel does not cache
//! them: `ls -l` then costs a request a file.

use super::Fs;
use super::inode::{Name, Node};
use crate::manifest::Entry;

/// The prefix of every attribute here.
pub(super) const PREFIX: &str = "user.musher.";

/// A node's attributes, without the prefix, in the order they are listed.
pub(super) fn all(fs: &Fs, ino: u64, node: &Node) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    match node {
        Node::Root | Node::Probe => {}
        Node::Name(name) => match &**name {
            Name::Namespace(namespace) => all.push(("namespace", namespace.to_string())),
            Name::Link(bundle, _) => {
                all.push(("namespace", bundle.namespace.to_string()));
                all.push(("bundle", bundle.slug.to_string()));
                if let Some(target) = fs.link_target(ino) {
                    all.push(("version", target.to_string()));
                }
            }
        },
        Node::Entry(tagged, index) => {
            let version = &tagged.version;
            all.push(("namespace", version.bundle.namespace.to_string()));
            all.push(("bundle", version.bundle.slug.to_string()));
            all.push(("version", version.version.to_string()));
            // Whatever the policy says about looking it up: whoever asks has it already.
            if let Some(loaded) = fs.store.held_now(version) {
                all.push(("state", loaded.manifest.info().state.as_str().to_owned()));
                match loaded.manifest.entry(*index).filter(Entry::is_file) {
                    Some(file) => file_attributes(fs, file, &mut all),
                    None => all.push(("source", loaded.origin.to_string())),
                }
            }
        }
    }
    if let Some(failure) = fs.failures.about(ino) {
        all.push(("error", failure.error.to_string()));
    }
    all
}

fn file_attributes(fs: &Fs, file: Entry<'_>, all: &mut Vec<(&'static str, String)>) {
    all.push(("sha256", file.digest().hex()));
    all.push(("size", file.size().to_string()));
    for (name, value) in [
        ("asset_type", file.asset_type()),
        ("asset_id", file.asset_id()),
    ] {
        if !value.is_empty() {
            all.push((name, value.to_owned()));
        }
    }
    if let Some(media_type) = file.media_type() {
        all.push(("media_type", media_type.to_owned()));
    }
    let cached = fs.store.is_cached(file.digest());
    all.push(("cached", if cached { "yes" } else { "no" }.to_owned()));
    if cached {
        all.push(("source", fs.store.blob_origin(file.digest()).to_string()));
    }
}
