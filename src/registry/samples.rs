//! Five bundles worth reading, embedded in the binary.
//!
//! ```text
//! acme/code-review        1.1.0, 1.2.0             review prompts
//! acme/incident-response  1.0.0                    skills with references and templates
//! acme/research-desk      0.3.0                    agents and tools
//! nord/release-notes      1.0.0, 1.1.0 (yanked)    prompts and a shell script
//! nord/translation        1.0.0                    names beyond ASCII
//! ```
//!
//! They are what a demonstration shows, and between them have what a file system must get right:
//! nested directories, a name that is not ASCII, an empty file, one without a trailing newline, equal
//! files at several paths and versions, and a version that was withdrawn. Their sources lie beside this
//! file, each with its `musher.yaml`, as any publisher would write them.

use super::Storage;
use crate::publish::{Publication, PublishError};
use crate::reference::VersionRef;

/// Who publishes the samples.
const ACTOR: &str = "samples";

/// One version: its definition and its files.
struct Sample {
    definition: &'static str,
    files: &'static [(&'static str, &'static [u8])],
    /// Why it was withdrawn, if it was.
    yanked: Option<&'static str>,
}

macro_rules! sample {
    ($dir:literal $(yanked $reason:literal)?: $($file:literal)*) => {
        Sample {
            definition: include_str!(concat!("samples/", $dir, "/musher.yaml")),
            files: &[$(
                ($file, include_bytes!(concat!("samples/", $dir, "/", $file))),
            )*],
            yanked: [$(Some($reason),)? None][0],
        }
    };
}

const SAMPLES: [Sample; 7] = [
    sample!("acme/code-review/1.1.0":
        "README.md"
        "config/severity.yaml"
        "prompts/review.md"
        "prompts/security.md"),
    sample!("acme/code-review/1.2.0":
        "README.md"
        "config/ignore.txt"
        "config/severity.yaml"
        "prompts/languages/python.md"
        "prompts/languages/rust.md"
        "prompts/languages/typescript.md"
        "prompts/review.md"
        "prompts/security.md"),
    sample!("acme/incident-response/1.0.0":
        "README.md"
        "agents/commander.yaml"
        "prompts/status-update.md"
        "skills/postmortem/SKILL.md"
        "skills/postmortem/templates/postmortem.md"
        "skills/postmortem/templates/timeline.csv"
        "skills/triage/SKILL.md"
        "skills/triage/references/first-fifteen-minutes.md"
        "skills/triage/references/signals.md"),
    sample!("acme/research-desk/0.3.0":
        "README.md"
        "agents/editor.yaml"
        "agents/fact-checker.yaml"
        "agents/researcher.yaml"
        "config/desk.yaml"
        "prompts/question.md"
        "prompts/synthesis.md"
        "tools/fetch.json"
        "tools/search.json"),
    sample!("nord/release-notes/1.0.0":
        "README.md"
        "prompts/collect.md"
        "prompts/write.md"
        "templates/notes.md"
        "tools/changes.sh"),
    sample!("nord/release-notes/1.1.0" yanked "leaves out breaking changes; use 1.0.0":
        "README.md"
        "prompts/write.md"
        "tools/changes.sh"),
    sample!("nord/translation/1.0.0":
        "README.md"
        "config/glossary.csv"
        "config/tone"
        "prompts/traduire.md"
        "prompts/übersetzen.md"
        "prompts/翻訳.md"),
];

/// Publishes the samples, in order, and withdraws the one that is withdrawn. What is published
/// already stays as it is.
///
/// # Errors
///
/// Those of [`Storage::publish`], except that a version exists.
pub fn publish_all(storage: &Storage) -> Result<Vec<VersionRef>, PublishError> {
    let mut references = Vec::with_capacity(SAMPLES.len());
    for sample in &SAMPLES {
        let publication = sample.publication()?;
        match storage.publish(&publication, ACTOR) {
            Ok(reference) => {
                if let Some(reason) = sample.yanked {
                    storage.yank(&reference, reason, ACTOR)?;
                }
            }
            Err(PublishError::VersionExists(_)) => {}
            Err(error) => return Err(error),
        }
        references.push(publication.reference);
    }
    Ok(references)
}

impl Sample {
    fn publication(&self) -> Result<Publication, PublishError> {
        Publication::from_parts(self.definition, |path| {
            let mut files = self.files.iter();
            files
                .find(|(name, _)| *name == path)
                .map(|&(_, bytes)| bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_samples_are_published_once_and_one_is_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path()).unwrap().without_sync();
        let references = publish_all(&storage).unwrap();
        assert_eq!(references.len(), 7);
        let yanked = || -> Vec<String> {
            let listing = storage.list().unwrap();
            assert!(listing.damaged.is_empty());
            assert_eq!(listing.versions.len(), 7);
            assert!(
                listing
                    .versions
                    .iter()
                    .all(|listed| listed.release.is_public())
            );
            let versions = listing.versions.iter();
            versions
                .filter(|listed| listed.state.is_yanked())
                .map(|listed| listed.release.reference.to_string())
                .collect()
        };
        assert_eq!(yanked(), ["nord/release-notes@1.1.0"]);
        // Again: nothing happens, also to what was changed meanwhile.
        let withdrawn: VersionRef = yanked()[0].parse().unwrap();
        storage.unyank(&withdrawn, "me").unwrap();
        assert_eq!(publish_all(&storage).unwrap(), references);
        assert!(yanked().is_empty());
    }

    #[test]
    fn every_file_beside_a_definition_is_in_its_bundle() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry/samples");
        for sample in &SAMPLES {
            let publication = sample.publication().unwrap();
            let reference = &publication.reference;
            let dir = root
                .join(reference.bundle.to_string())
                .join(reference.version.as_str());
            let on_disk: BTreeSet<String> = walkdir::WalkDir::new(&dir)
                .into_iter()
                .map(Result::unwrap)
                .filter(|entry| entry.file_type().is_file())
                .map(|entry| {
                    let path = entry.path().strip_prefix(&dir).unwrap();
                    path.to_str().unwrap().to_owned()
                })
                .filter(|path| path != "musher.yaml")
                .collect();
            let published: BTreeSet<String> = publication
                .assets
                .iter()
                .map(|asset| asset.path.to_string())
                .collect();
            assert_eq!(published, on_disk, "{reference}");
            assert_eq!(sample.files.len(), on_disk.len());
            // And reading the directory gives the same.
            assert_eq!(Publication::read(&dir).unwrap().assets, publication.assets);
        }
    }

    #[test]
    fn between_them_they_have_what_is_hard_for_a_file_system() {
        let publications: Vec<Publication> = SAMPLES
            .iter()
            .map(|sample| sample.publication().unwrap())
            .collect();
        let any = |test: &dyn Fn(&str, &[u8]) -> bool| {
            publications
                .iter()
                .flat_map(|publication| &publication.assets)
                .any(|asset| test(asset.path.as_str(), &asset.bytes))
        };
        assert!(any(&|path, _| !path.is_ascii()));
        assert!(any(&|path, _| path.matches('/').count() >= 3));
        assert!(any(&|_, bytes| bytes.is_empty()));
        assert!(any(&|_, bytes| !bytes.is_empty() && !bytes.ends_with(b"\n")));
        let json = |path: &str| path.ends_with(".json");
        assert!(any(
            &|path, bytes| json(path) && serde_json::from_slice::<serde_json::Value>(bytes).is_ok()
        ));
        assert!(!any(&|path, bytes| json(path)
            && serde_json::from_slice::<serde_json::Value>(bytes).is_err()));
    }
}
