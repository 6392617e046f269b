//! Damage to what says what there is: manifests, sidecars and refs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use musherfs::digest::Digest;
use musherfs::error::Error;
use musherfs::fuse::errno;
use serde_json::json;

use crate::harm::{Harm, Left, flip, slip};
use crate::machine::{Machine, Process, VERSIONS, stands_for};
use crate::support::prove::{Proof, Random};

const SELECTORS: [&str; 2] = ["latest", "stable"];

/// A file of the cache that is no blob, and what it is about.
enum About {
    Version(&'static str),
    Ref(&'static str),
}

struct Truth {
    machine: Machine,
    /// Of each version, the paths and what is there.
    files: BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>,
    entries: Vec<(PathBuf, About)>,
}

impl Truth {
    async fn new(random: &mut Random) -> Self {
        let machine = Machine::new(random);
        let process = machine.process();
        let mut files: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (version, path, content) in machine.files() {
            assert_eq!(process.read(version, &path).await.unwrap(), content);
            files.entry(version).or_default().insert(path, content);
        }
        for selector in SELECTORS {
            let target = process.target(selector).await.unwrap();
            assert_eq!(target, stands_for(selector));
        }
        let mut entries = Vec::new();
        for folder in ["manifests", "refs"] {
            for entry in walkdir::WalkDir::new(machine.root().join(folder)).sort_by_file_name() {
                let entry = entry.unwrap();
                if !entry.file_type().is_file() {
                    continue;
                }
                let name = entry.file_name().to_str().unwrap();
                let stem = name.strip_suffix(".json").unwrap();
                let stem = stem.strip_suffix(".meta").unwrap_or(stem);
                let version = VERSIONS.iter().find(|version| **version == stem);
                let about = match version {
                    Some(version) => About::Version(version),
                    None => About::Ref(SELECTORS.iter().find(|it| **it == stem).unwrap()),
                };
                entries.push((entry.into_path(), about));
            }
        }
        assert_eq!(entries.len(), 2 * VERSIONS.len() + SELECTORS.len());
        Self {
            machine,
            files,
            entries,
        }
    }

    /// What a process makes of it: an error, or everything right. What is wrong otherwise; for a ref,
    /// the other version that it leads to.
    async fn look(
        &self,
        process: &Process,
        about: &About,
        random: &mut Random,
    ) -> Result<Result<(), Error>, String> {
        let version = match about {
            About::Version(version) => *version,
            About::Ref(selector) => match process.target(selector).await {
                Err(error) => return Ok(Err(error)),
                Ok(target) if target == stands_for(selector) => return Ok(Ok(())),
                // Whoever follows it finds out whether it is there.
                Ok(target) => {
                    let found = process.manifest(&target).await;
                    return found.map_or_else(|error| Ok(Err(error)), |_| Err(target));
                }
            },
        };
        let loaded = match process.manifest(version).await {
            Ok(loaded) => loaded,
            Err(error) => return Ok(Err(error)),
        };
        let truth = &self.files[version];
        let mut seen = 0;
        for file in loaded.manifest.files() {
            let expected = truth
                .get(file.path())
                .ok_or_else(|| format!("{} is not in it", file.path()))?;
            if Digest::of(expected) != file.digest() || expected.len() as u64 != file.size() {
                return Err(format!("{} is something else", file.path()));
            }
            seen += 1;
        }
        if seen != truth.len() {
            return Err(format!("{seen} files instead of {}", truth.len()));
        }
        let (path, content) = truth.iter().nth(random.index(truth.len())).unwrap();
        match process.read(version, path).await {
            Ok(read) if read == *content => Ok(Ok(())),
            Ok(_) => Err(format!("{path}: wrong bytes")),
            Err(error) => Ok(Err(error)),
        }
    }
}

/// What came of the damage.
#[derive(Default)]
struct Tally {
    tried: u64,
    errors: u64,
    /// Refs that named another version after it, which nobody can tell from one that has moved.
    moved: u64,
}

impl Tally {
    /// Looks at a damaged entry without a source, with one, and without one again.
    async fn check(&mut self, truth: &Truth, about: &About, what: &str, random: &mut Random) {
        self.tried += 1;
        let alone = truth.machine.process_without_source();
        match truth.look(&alone, about, random).await {
            Ok(Ok(())) => {}
            // What is damaged is not believed, so it is the source that is missing.
            Ok(Err(error)) => {
                let said = error.to_string();
                assert_eq!(errno(&error).code(), libc::EHOSTUNREACH, "{what}: {said}");
                assert!(Left::Nothing.is_said_by(&said), "{what}: {said}");
                self.errors += 1;
            }
            Err(wrong) => {
                let is_ref = matches!(about, About::Ref(_));
                assert!(is_ref, "{what}, without a source: {wrong}");
                self.moved += 1;
                return;
            }
        }
        let good = truth.machine.process();
        match truth.look(&good, about, random).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{what}: {error}"),
            Err(wrong) => panic!("{what}: {wrong}"),
        }
        let alone = truth.machine.process_without_source();
        match truth.look(&alone, about, random).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{what}, not healed: {error}"),
            Err(wrong) => panic!("{what}, not healed: {wrong}"),
        }
    }
}

fn put(path: &Path, content: &[u8]) {
    if path.is_dir() {
        fs::remove_dir(path).unwrap();
    }
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn a_manifest_sidecar_or_ref_that_is_damaged_anywhere_misleads_nobody() {
    let proof = Proof::start(
        "no damaged manifest, sidecar or ref leads to wrong bytes; damage heals, and is EHOSTUNREACH \
         with its cause while it cannot",
        "4 manifests of 50 files, their sidecars and 2 refs: bytes changed in place (long form: \
         each), truncated, extended, swapped, replaced by links and directories; every listed file \
         compared, without a source, with one, and without one again",
    );
    let mut random = proof.random();
    let truth = Truth::new(&mut random).await;
    let mut tally = Tally::default();
    let harms = Harm::all();
    for (path, about) in &truth.entries {
        let original = fs::read(path).unwrap();
        let is_ref = matches!(about, About::Ref(_));
        let positions: Vec<usize> = if proof.is_long() || is_ref {
            (0..original.len()).collect()
        } else {
            (0..6).map(|_| random.index(original.len())).collect()
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        for position in positions {
            // What stays text is more dangerous.
            for change in [flip, slip] {
                change(path, position, &mut random);
                let seen = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
                let around: String = seen.chars().skip(position.max(30) - 30).take(60).collect();
                let what = format!("{name}, byte {position}, now …{around}…");
                tally.check(&truth, about, &what, &mut random).await;
                put(path, &original);
            }
        }
        for harm in &harms {
            // One of the same kind.
            let other = truth.entries.iter().map(|(other, _)| other).find(|other| {
                let kind = |path: &Path| path.to_str().unwrap().contains(".meta.");
                *other != path && other.parent() == path.parent() && kind(other) == kind(path)
            });
            let other = other.unwrap();
            let others = fs::read(other).unwrap();
            harm.apply(path, other);
            let what = format!("{name}, {harm:?}");
            tally.check(&truth, about, &what, &mut random).await;
            put(path, &original);
            put(other, &others);
        }
    }
    proof.held(json!({
        "files": truth.entries.len(),
        "damages": tally.tried,
        "kinds of damage skipped": Harm::skipped(),
        "wrong bytes": 0,
        "not healed": 0,
        "that were EHOSTUNREACH while the source was down": tally.errors,
        "refs that another version's name was written into": tally.moved,
    }));
}
