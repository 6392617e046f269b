//! Which blobs somebody's entry names.
//!
//! Every `*.json` below `manifests` that is no sidecar counts, at any depth and under any name: other
//! tools do not check names, and a file that one of them is about to rename names blobs as well. All
//! lists of an entry count together, since each tool uses another one of them.

use std::collections::{BTreeSet, HashMap, HashSet};

use rustix::fs::FileType;
use serde::Deserialize;

use super::super::dir::Dir;
use super::super::{MANIFESTS, MAX_MANIFEST, read_json};
use crate::digest::Digest;

/// How deep a tree is walked; no tool goes deeper than an unpacked bundle's files.
pub(super) const DEEPEST: usize = 128;

/// Where an entry is: its directory below the root, and its file's name without the ending.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub(in super::super) dir: String,
    pub(in super::super) stem: String,
}

impl Place {
    /// The directory of the host, and `namespace/bundle` as the directories spell it.
    pub(super) fn host_and_bundle(&self) -> (&str, &str) {
        let below = self.dir.split_once('/').map_or("", |(_, below)| below);
        below.split_once('/').unwrap_or((below, ""))
    }

    pub(in super::super) fn host(&self) -> &str {
        self.host_and_bundle().0
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.host_and_bundle().1.split('/').next()
    }

    pub(super) fn is_local(&self) -> bool {
        self.host() == "_local"
    }

    pub(in super::super) fn file(&self) -> String {
        format!("{}.json", self.stem)
    }

    pub(in super::super) fn sidecar(&self) -> String {
        format!("{}.meta.json", self.stem)
    }

    /// The path of the entry below the root.
    pub(in super::super) fn path(&self) -> String {
        format!("{}/{}.json", self.dir, self.stem)
    }
}

/// What tells that a file was written again.
type Fingerprint = (u64, i64, i64, i64, i64);

/// The blobs that are named, as far as entries have been read.
#[derive(Default)]
pub(super) struct Marks {
    /// Entries that are about to be removed: what they name does not count.
    without: HashSet<Place>,
    read: HashMap<Place, Fingerprint>,
    digests: HashSet<Digest>,
    unreadable: BTreeSet<String>,
}

impl Marks {
    pub(super) fn without(places: HashSet<Place>) -> Self {
        Self {
            without: places,
            ..Self::default()
        }
    }

    pub(super) fn names(&self, digest: Digest) -> bool {
        self.digests.contains(&digest)
    }

    /// The entries that may name anything, sorted.
    pub(super) fn unreadable(&self) -> Vec<String> {
        self.unreadable.iter().cloned().collect()
    }

    /// Reads the entries that are new or were written since the last time.
    pub(super) fn update(&mut self, root: &Dir) {
        self.unreadable.clear();
        let mut walk = Walk::default();
        walk.below(root, MANIFESTS, 0);
        self.unreadable.extend(walk.obstacles);
        for (dir_path, name) in walk.files {
            let Some(stem) = name
                .strip_suffix(".json")
                .filter(|_| !name.ends_with(".meta.json"))
            else {
                continue;
            };
            let place = Place {
                stem: stem.to_owned(),
                dir: dir_path,
            };
            if self.without.contains(&place) {
                continue;
            }
            self.read_entry(root, place, &name);
        }
    }

    fn read_entry(&mut self, root: &Dir, place: Place, name: &str) {
        let Ok(dir) = root.open(&place.dir) else {
            return;
        };
        // Gone by now: it names nothing.
        let Ok(stat) = dir.stat(name) else { return };
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        let fingerprint = (
            stat.st_ino as u64,
            i64::from(stat.st_size),
            i64::from(stat.st_mtime),
            stat.st_mtime_nsec as i64,
            stat.st_ctime_nsec as i64,
        );
        if self.read.get(&place) == Some(&fingerprint) {
            return;
        }
        match read_json(&dir, name, MAX_MANIFEST).and_then(|json| references(&json)) {
            Some(named) => {
                self.digests.extend(named);
                self.read.insert(place, fingerprint);
            }
            // A temporary file is not finished: what it names is new, or named elsewhere.
            None if is_temporary(name) => {}
            None if dir.stat(name).is_err() => {}
            None => {
                self.unreadable.insert(place.path());
            }
        }
    }
}

/// All digests that an entry names, in all of its lists; `None` if it cannot be read as an entry of
/// any dialect, or has no list.
pub(in super::super) fn references(json: &[u8]) -> Option<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Entry {
        manifest: Option<Lists>,
        #[serde(flatten)]
        own: Lists,
    }
    #[derive(Deserialize)]
    struct Lists {
        layers: Option<Vec<Named>>,
        assets: Option<Vec<Named>>,
    }
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "contentSha256")]
        camel: Option<String>,
        content_sha256: Option<String>,
    }
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    // Some tools decode with replacement, so their hashes would count.
    let entry: Entry = serde_json::from_str(&String::from_utf8_lossy(json)).ok()?;
    let nested = entry.manifest.map(|lists| [lists.layers, lists.assets]);
    let mut lists = nested
        .into_iter()
        .flatten()
        .chain([entry.own.layers, entry.own.assets])
        .flatten()
        .peekable();
    lists.peek()?;
    lists
        .flatten()
        .map(|named| named.camel.or(named.content_sha256)?.parse().ok())
        .collect()
}

/// The entries of all hosts; files that a tool is still writing are none.
pub(in super::super) fn places(root: &Dir) -> Vec<Place> {
    let mut places: Vec<Place> = files_below(root, MANIFESTS)
        .into_iter()
        .filter(|(_, name)| !name.ends_with(".meta.json") && !is_temporary(name))
        .filter_map(|(dir, name)| {
            let stem = name.strip_suffix(".json")?.to_owned();
            Some(Place { dir, stem })
        })
        .collect();
    places.sort();
    places
}

/// Sidecars without an entry.
pub(super) fn orphans(root: &Dir) -> Vec<(String, String)> {
    let files: HashSet<(String, String)> = files_below(root, MANIFESTS).into_iter().collect();
    let is_orphan = |(dir, name): &&(String, String)| {
        name.strip_suffix(".meta.json")
            .is_some_and(|stem| !files.contains(&(dir.clone(), format!("{stem}.json"))))
    };
    files.iter().filter(is_orphan).cloned().collect()
}

/// The Python SDK's temporary files, which it keeps beside their targets.
pub(super) fn temporaries(root: &Dir) -> Vec<(String, String)> {
    [MANIFESTS, super::super::REFS, super::super::blob::BLOBS]
        .into_iter()
        .flat_map(|kind| files_below(root, kind))
        .filter(|(_, name)| is_temporary(name))
        .collect()
}

/// Whether Python's `mkstemp` gave the name: `tmp` and eight characters.
fn is_temporary(name: &str) -> bool {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    stem.strip_prefix("tmp").is_some_and(|random| {
        random.len() == 8
            && random
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

/// All regular files below `path`: their directories below the root, and their names.
pub(super) fn files_below(root: &Dir, path: &str) -> Vec<(String, String)> {
    let mut walk = Walk::default();
    walk.below(root, path, 0);
    walk.files
}

#[derive(Default)]
struct Walk {
    files: Vec<(String, String)>,
    /// What may hide entries: directories that cannot be read, links.
    obstacles: Vec<String>,
}

impl Walk {
    fn below(&mut self, root: &Dir, path: &str, depth: usize) {
        let names = match root.open(path).and_then(|dir| Ok((dir.names()?, dir))) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => {
                self.obstacles.push(path.to_owned());
                return;
            }
        };
        let (names, dir) = names;
        for name in names {
            match name.kind(&dir) {
                Ok(FileType::RegularFile) => self.files.push((path.to_owned(), name.text)),
                Ok(FileType::Directory) if depth < DEEPEST => {
                    self.below(root, &format!("{path}/{}", name.text), depth + 1);
                }
                Ok(_) => self.obstacles.push(format!("{path}/{}", name.text)),
                // Gone.
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_of_every_dialect_names_blobs() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let hex = |text: &str| digest(text).hex();
        let json = format!(
            r#"{{"manifest": {{"layers": [{{"contentSha256": "{}"}}], "assets": [{{"content_sha256": "sha256:{}"}}]}},
                "layers": [{{"contentSha256": "{}", "size": 6.5}}], "assets": null, "other": [1]}}"#,
            hex("a"),
            hex("b").to_uppercase(),
            hex("c")
        );
        assert_eq!(
            references(json.as_bytes()),
            Some(vec![digest("a"), digest("b"), digest("c")])
        );
        assert_eq!(references(br#"{"layers": []}"#), Some(vec![]));
    }

    #[test]
    fn what_others_write_meanwhile_counts_the_next_time() {
        let temp = tempfile::tempdir().unwrap();
        let bundle = temp.path().join("manifests/h.test/acme/deep/er");
        std::fs::create_dir_all(&bundle).unwrap();
        let root = Dir::open_root(temp.path()).unwrap();
        let entry = |text: &str| {
            let hex = Digest::of(text.as_bytes()).hex();
            format!(r#"{{"layers": [{{"contentSha256": "{hex}"}}]}}"#)
        };
        let mut marks = Marks::default();
        marks.update(&root);
        assert!(!marks.names(Digest::of(b"a")));
        std::fs::write(bundle.join("1.0.0.json"), entry("a")).unwrap();
        // Python is about to rename this one.
        std::fs::write(bundle.join("tmpab12cd_9.json"), entry("b")).unwrap();
        std::fs::write(bundle.join("tmpab12cd_0.json"), "{").unwrap();
        marks.update(&root);
        assert!(marks.names(Digest::of(b"a")) && marks.names(Digest::of(b"b")));
        assert_eq!(marks.unreadable(), Vec::<String>::new());
        std::fs::write(bundle.join("1.0.0.json"), "{").unwrap();
        marks.update(&root);
        assert_eq!(
            marks.unreadable(),
            ["manifests/h.test/acme/deep/er/1.0.0.json"]
        );
        std::fs::remove_file(bundle.join("1.0.0.json")).unwrap();
        marks.update(&root);
        assert_eq!(marks.unreadable(), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_understood_is_not_taken_for_empty() {
        for json in [
            "",
            "null",
            "[]",
            "{}",
            "{\"layers\": null}",
            "{\"layers\": [{}]}",
            "{\"layers\": [{\"contentSha256\": \"?\"}]}",
            "{\"layers\": [",
            "{\"manifest\": null, \"layers\": null}",
        ] {
            assert_eq!(references(json.as_bytes()), None, "{json}");
        }
    }
}
