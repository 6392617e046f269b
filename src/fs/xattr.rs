//! Extended attributes: what a file is and where it comes from, for `getfattr` and scripts.
//!
//! `user.musher.<name>`; off unless the mount asks for them, because the kernel does not cache
//! them: `ls -l` then costs a request a file.

use std::sync::Arc;

use super::inode::{self, Name, Node};
use super::{Answer, Fs, later};
use crate::manifest::Entry;
use crate::store::Loaded;

/// The prefix of every attribute here.
const PREFIX: &str = "user.musher.";

/// An attribute's name without the prefix, and its value.
type Attribute = (&'static str, String);

impl Fs {
    /// The names of the node's extended attributes. Where the manifest cannot be had, those that
    /// need none.
    pub fn list_xattr(self: &Arc<Self>, ino: u64) -> Answer<Vec<String>> {
        let names = |all: Vec<Attribute>| {
            let names = all.iter().map(|(name, _)| format!("{PREFIX}{name}"));
            Ok(names.collect())
        };
        match self.described(ino) {
            Answer::Now(all) => Answer::Now(all.and_then(names)),
            Answer::Later(described) => {
                let fs = Arc::clone(self);
                later(async move {
                    let all = match described.await {
                        Ok(all) => all,
                        Err(_) => fs.described_by(ino, &fs.node(ino)?, None),
                    };
                    names(all)
                })
            }
        }
    }

    /// One extended attribute; `None` if the node has none of that name.
    pub fn get_xattr(self: &Arc<Self>, ino: u64, name: &str) -> Answer<Option<String>> {
        let Some(name) = name.strip_prefix(PREFIX) else {
            return Answer::Now(Ok(None));
        };
        // Known whatever else is not, and asked for just then.
        if name == "error" {
            let failure = self.failures.about(ino);
            return Answer::Now(Ok(failure.map(|failure| failure.error.to_string())));
        }
        let name = name.to_owned();
        let find = move |all: Vec<Attribute>| {
            let found = all.into_iter().find(|(other, _)| *other == name);
            Ok(found.map(|(_, value)| value))
        };
        match self.described(ino) {
            Answer::Now(all) => Answer::Now(all.and_then(find)),
            Answer::Later(described) => {
                let fs = Arc::clone(self);
                later(async move {
                    match described.await {
                        Ok(all) => find(all),
                        // Some need no manifest; of the others nobody knows whether they are there.
                        Err(error) => find(fs.described_by(ino, &fs.node(ino)?, None))?
                            .map_or(Err(error), |value| Ok(Some(value))),
                    }
                })
            }
        }
    }

    /// A node's attributes, in the order they are listed; later, when its manifest has to be fetched
    /// again.
    fn described(self: &Arc<Self>, ino: u64) -> Answer<Vec<Attribute>> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Answer::Now(Err(error)),
        };
        let Node::Entry(tagged, _) = &node else {
            return Answer::Now(Ok(self.described_by(ino, &node, None)));
        };
        let root = inode::version_root(ino);
        match self.known(root, tagged) {
            Some(loaded) => Answer::Now(Ok(self.described_by(ino, &node, Some(&loaded)))),
            None => {
                let (fs, tagged, deadline) =
                    (Arc::clone(self), Arc::clone(tagged), self.deadline());
                later(async move {
                    let loaded = fs.wait_for(root, &tagged, deadline).await?;
                    Ok(fs.described_by(ino, &node, Some(&loaded)))
                })
            }
        }
    }

    fn described_by(&self, ino: u64, node: &Node, loaded: Option<&Loaded>) -> Vec<Attribute> {
        let mut all = Vec::new();
        match node {
            Node::Root | Node::Probe => {}
            Node::Name(name) => match &**name {
                Name::Namespace(namespace) => all.push(("namespace", namespace.to_string())),
                Name::Link(bundle, _) => {
                    all.push(("namespace", bundle.namespace.to_string()));
                    all.push(("bundle", bundle.slug.to_string()));
                    if let Some(target) = self.link_target(ino) {
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
                if let Some(loaded) = loaded {
                    all.push(("state", loaded.manifest.info().state.as_str().to_owned()));
                    match loaded.manifest.entry(*index).filter(Entry::is_file) {
                        Some(file) => file_attributes(self, file, &mut all),
                        None => all.push(("source", loaded.origin.to_string())),
                    }
                }
            }
        }
        if let Some(failure) = self.failures.about(ino) {
            all.push(("error", failure.error.to_string()));
        }
        all
    }
}

fn file_attributes(fs: &Fs, file: Entry<'_>, all: &mut Vec<Attribute>) {
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
