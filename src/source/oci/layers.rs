//! From an image manifest to a version's files.
//!
//! | artifact | paths and types from | content |
//! |---|---|---|
//! | a Musher bundle | its config | the layer with that digest, raw |
//! | `oras push` of files | the layers' titles; the type is the first directory's | raw |
//! | `oras push` of a directory | the archive | all files of a layer in one tar, see [`super::archive`] |
//! | a container image | – | refused: it is no bundle |
//!
//! A config and the layers beside it must be about the same files: each file has its layer, each
//! layer is some file's content, or an archive that has the content of files without a layer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::archive::{Archive, MAX_PACKED};
use super::model::{
    BUNDLE_CONFIG, BUNDLE_STATE, BundleConfig, Descriptor, ImageManifest, MAX_BLOB, MAX_LAYERS,
    TITLE, UNPACK,
};
use crate::digest::Digest;
use crate::manifest::{Layer, type_of_path};

/// The configs of container images.
const CONTAINER_CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Most archives of a version, which are all fetched to list its files: there is one for each
/// directory that somebody named.
const MAX_ARCHIVES: usize = 256;

/// What the Python package `oras` calls a directory.
const DIRECTORY: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What has to be fetched before the files are known.
#[derive(Debug, Default)]
pub(in crate::source) struct Needed {
    /// Archives, whose files count as the artifact's.
    pub(in crate::source) archives: Vec<(Digest, u64)>,
}

/// Whether the artifact has a Musher config.
pub(in crate::source) fn is_bundle(manifest: &ImageManifest) -> bool {
    manifest.config.media_type == BUNDLE_CONFIG
        || manifest.artifact_type.as_deref() == Some(BUNDLE_CONFIG)
}

/// What the layers are, or why they cannot be used. `config` is the bundle's, if it has one.
pub(in crate::source) fn needed(
    manifest: &ImageManifest,
    config: Option<&BundleConfig>,
) -> Result<Needed, String> {
    if manifest.artifact_type.as_deref() == Some(BUNDLE_STATE)
        || manifest.config.media_type == BUNDLE_STATE
    {
        return Err("it records a change of a version's state, and is no version".into());
    }
    let listed: Option<HashSet<Digest>> = config.map(|config| {
        let digests = config.assets.iter().map(|asset| asset.content_sha256);
        digests.collect()
    });
    let mut needed = Needed::default();
    let mut known = HashSet::new();
    for layer in &manifest.layers {
        let digest = usable(layer)?;
        let archived = match &listed {
            Some(listed) => !listed.contains(&digest),
            None => is_archive(layer),
        };
        if !archived {
            continue;
        }
        if listed.is_none() && CONTAINER_CONFIGS.contains(&&*manifest.config.media_type) {
            let title = layer.annotation(TITLE);
            if title.is_none() {
                return Err("it is a container image, not a bundle".into());
            }
        }
        if layer.size > MAX_PACKED {
            return Err(format!(
                "its archive {digest} has more than {MAX_PACKED} bytes"
            ));
        }
        if known.insert(digest) {
            needed.archives.push((digest, layer.size));
        }
    }
    if needed.archives.len() > MAX_ARCHIVES {
        return Err(format!("it has more than {MAX_ARCHIVES} archives"));
    }
    let packed: u64 = needed.archives.iter().map(|(_, size)| size).sum();
    if packed > MAX_PACKED {
        return Err(format!("its archives have more than {MAX_PACKED} bytes"));
    }
    Ok(needed)
}

/// The version's files.
pub(in crate::source) fn files(
    manifest: &ImageManifest,
    config: Option<BundleConfig>,
    archives: &HashMap<Digest, Arc<Archive>>,
) -> Result<Vec<Layer>, String> {
    match config {
        Some(config) => listed_files(manifest, config, archives),
        None => titled_files(manifest, archives),
    }
}

fn listed_files(
    manifest: &ImageManifest,
    config: BundleConfig,
    archives: &HashMap<Digest, Arc<Archive>>,
) -> Result<Vec<Layer>, String> {
    let mut contents: HashMap<Digest, (u64, &str)> = HashMap::new();
    for layer in &manifest.layers {
        let digest = usable(layer)?;
        if archives.contains_key(&digest) {
            continue;
        }
        let (size, _) = contents
            .entry(digest)
            .or_insert((layer.size, &layer.media_type));
        if *size != layer.size {
            return Err(format!("{digest} has two sizes"));
        }
    }
    let mut used = HashSet::new();
    for archive in archives.values() {
        for file in archive.files() {
            contents.entry(file.digest).or_insert((file.size(), ""));
        }
    }
    let mut files = Vec::with_capacity(config.assets.len());
    for asset in config.assets {
        let Some((size, _)) = contents.get(&asset.content_sha256) else {
            let path: String = asset.logical_path.chars().take(200).collect();
            return Err(format!(
                "no layer has the content that its config names for {path:?}"
            ));
        };
        used.insert(asset.content_sha256);
        files.push(Layer {
            path: asset.logical_path,
            digest: asset.content_sha256,
            size: Some(*size),
            asset_type: asset.asset_type,
            asset_id: String::new(),
            media_type: None,
        });
    }
    for (digest, archive) in archives {
        if !archive
            .files()
            .iter()
            .any(|file| used.contains(&file.digest))
        {
            return Err(format!("its config does not list the layer {digest}"));
        }
    }
    Ok(files)
}

fn titled_files(
    manifest: &ImageManifest,
    archives: &HashMap<Digest, Arc<Archive>>,
) -> Result<Vec<Layer>, String> {
    let mut files: Vec<Layer> = Vec::new();
    let mut add = |path: &str, digest, size, media_type: Option<String>| {
        if files.len() >= MAX_LAYERS {
            return Err(format!("it has more than {MAX_LAYERS} files"));
        }
        files.push(Layer {
            path: path.to_owned(),
            digest,
            size: Some(size),
            asset_type: type_of_path(path).to_owned(),
            asset_id: String::new(),
            media_type,
        });
        Ok(())
    };
    for layer in &manifest.layers {
        let digest = usable(layer)?;
        if is_archive(layer) {
            let archive = archives
                .get(&digest)
                .ok_or_else(|| format!("its archive {digest} is missing"))?;
            for file in archive.files() {
                add(&file.path, file.digest, file.size(), None)?;
            }
        } else if let Some(title) = layer.annotation(TITLE) {
            // ORAS calls files whose type nobody gave a tar.
            let given = !layer.media_type.is_empty()
                && !layer.media_type.contains("image.layer")
                && layer.media_type != super::model::EMPTY;
            let media_type = given.then(|| layer.media_type.clone());
            add(title, digest, layer.size, media_type)?;
        } else if layer.media_type != super::model::EMPTY {
            return Err(format!("its layer {digest} has no title, so no path"));
        }
    }
    Ok(files)
}

/// A layer's digest, if content of that digest and size can be fetched.
fn usable(layer: &Descriptor) -> Result<Digest, String> {
    let digest = layer.sha256().ok_or_else(|| {
        let digest: String = layer.digest.chars().take(100).collect();
        format!("its layer {digest:?} is not named by SHA-256")
    })?;
    if layer.size > MAX_BLOB {
        return Err(format!("its layer {digest} has more than {MAX_BLOB} bytes"));
    }
    Ok(digest)
}

/// Whether a layer without a config to tell is an archive and not a file.
///
/// The `oras` command says so in an annotation; the Python package only calls directories a tar with
/// gzip, where files are a plain tar to it whatever they are.
fn is_archive(layer: &Descriptor) -> bool {
    let Some(title) = layer.annotation(TITLE) else {
        return [".tar", ".tar+gzip", ".tar.gzip", "x-tar", "/gzip"]
            .iter()
            .any(|ending| layer.media_type.ends_with(ending));
    };
    match layer.annotation(UNPACK) {
        Some(unpack) => unpack == "true",
        None => {
            let names_archive = [".gz", ".tgz"].iter().any(|e| title.ends_with(e));
            layer.media_type == DIRECTORY && !names_archive
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn layer(content: &[u8], title: Option<&str>, media_type: &str) -> Value {
        let mut layer = json!({"mediaType": media_type, "digest": Digest::of(content),
            "size": content.len()});
        if let Some(title) = title {
            layer["annotations"] = json!({ TITLE: title });
        }
        layer
    }

    fn manifest(config: &str, layers: &[Value]) -> ImageManifest {
        let json = json!({"schemaVersion": 2, "layers": layers,
            "config": {"mediaType": config, "digest": Digest::of(b"{}"), "size": 2}});
        ImageManifest::parse(json.to_string().as_bytes()).unwrap()
    }

    fn config(files: &[(&str, &[u8])]) -> Option<BundleConfig> {
        let assets: Vec<_> = files
            .iter()
            .map(|(path, content)| {
                json!({"logical_path": path, "asset_type": "prompt",
                    "content_sha256": Digest::of(content).hex()})
            })
            .collect();
        let json = json!({ "assets": assets }).to_string();
        Some(BundleConfig::parse(json.as_bytes()).unwrap())
    }

    fn paths(layers: &[Layer]) -> Vec<(&str, u64)> {
        let row = |layer: &Layer| layer.size.unwrap();
        layers.iter().map(|l| (l.path.as_str(), row(l))).collect()
    }

    #[test]
    fn two_paths_with_equal_content_stay_two_files() {
        let one = manifest(BUNDLE_CONFIG, &[layer(b"same", None, "x")]);
        let both = config(&[("a", b"same"), ("b", b"same")]);
        let found = files(&one, both, &HashMap::new()).unwrap();
        assert_eq!(paths(&found), [("a", 4), ("b", 4)]);
        let two = [
            layer(b"same", Some("a"), "x"),
            layer(b"same", Some("b"), "x"),
        ];
        let found = files(&manifest("c", &two), None, &HashMap::new()).unwrap();
        assert_eq!(paths(&found), [("a", 4), ("b", 4)]);
    }

    #[test]
    fn a_config_that_disagrees_with_the_layers_is_refused() {
        let one = manifest(BUNDLE_CONFIG, &[layer(b"x", None, "x")]);
        let missing = config(&[("a", b"x"), ("b", b"y")]);
        assert!(files(&one, missing, &HashMap::new()).is_err());
        let mut sizes = layer(b"x", None, "x");
        sizes["size"] = json!(7);
        let two = manifest(BUNDLE_CONFIG, &[layer(b"x", None, "x"), sizes]);
        assert!(files(&two, config(&[("a", b"x")]), &HashMap::new()).is_err());
        // An unlisted layer can only be an archive.
        let extra = [layer(b"x", None, "x"), layer(b"other", None, "x")];
        let extra = manifest(BUNDLE_CONFIG, &extra);
        let listed = config(&[("a", b"x")]);
        let needs = needed(&extra, listed.as_ref()).unwrap();
        assert_eq!(needs.archives.len(), 1);
    }

    #[test]
    fn titles_are_paths_and_their_first_directory_is_the_type() {
        let oras = "application/vnd.oci.image.layer.v1.tar";
        let layers = [
            layer(b"1", Some("prompts/a.md"), oras),
            layer(b"2", Some("../../etc/passwd"), "text/plain"),
        ];
        let manifest = manifest("application/vnd.unknown.config.v1+json", &layers);
        assert!(needed(&manifest, None).unwrap().archives.is_empty());
        let found = files(&manifest, None, &HashMap::new()).unwrap();
        assert_eq!(found[0].asset_type, "prompt");
        assert_eq!(found[0].media_type, None);
        // Hidden by the table, not here: its siblings stay.
        assert_eq!(found[1].path, "../../etc/passwd");
        assert_eq!(found[1].media_type.as_deref(), Some("text/plain"));
    }

    #[test]
    fn directories_of_oras_are_archives_and_files_are_not() {
        let archive = |title, media_type, unpack: Option<&str>| {
            let mut layer = layer(b"x", Some(title), media_type);
            if let Some(unpack) = unpack {
                layer["annotations"][UNPACK] = json!(unpack);
            }
            let needs = needed(&manifest("c", &[layer]), None).unwrap();
            !needs.archives.is_empty()
        };
        assert!(archive("skills", DIRECTORY, Some("true")));
        assert!(archive("skills", DIRECTORY, None));
        assert!(archive("skills", "text/plain", Some("true")));
        assert!(!archive("skills", DIRECTORY, Some("false")));
        assert!(!archive("skills.tar.gz", DIRECTORY, None));
        assert!(!archive(
            "a.md",
            "application/vnd.oci.image.layer.v1.tar",
            None
        ));
        assert!(!archive("a.md", "text/markdown", None));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let container = manifest(CONTAINER_CONFIGS[0], &[layer(b"x", None, tar)]);
        assert!(needed(&container, None).unwrap_err().contains("container"));
        let mut huge = layer(b"x", Some("a"), "x");
        huge["size"] = json!(MAX_BLOB + 1);
        assert!(needed(&manifest("c", &[huge]), None).is_err());
        let mut bomb = layer(b"x", None, tar);
        bomb["size"] = json!(MAX_PACKED + 1);
        assert!(needed(&manifest("c", &[bomb]), None).is_err());
        let mut other = layer(b"x", Some("a"), "x");
        other["digest"] = json!("sha512:00");
        assert!(needed(&manifest("c", &[other]), None).is_err());
        assert!(needed(&manifest(BUNDLE_STATE, &[]), None).is_err());
        let untitled = manifest("c", &[layer(b"x", None, "text/plain")]);
        assert!(files(&untitled, None, &HashMap::new()).is_err());
    }
}
