//! `musherfs publish`: a directory with a `musher.yaml` into an OCI registry.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::failure::Failure;
use super::oci::OciArgs;
use super::output;
use super::shared::runtime;
use crate::publish::Publication;
use crate::publish::oci::{Commit, Progress, PushOptions, Pushed, Tag, push};
use crate::reference::{BundleId, VersionRef};

/// Publish a directory with a musher.yaml to an OCI registry
///
/// The version becomes the tag HOST[/PREFIX]/NAMESPACE/BUNDLE:VERSION, with `_` for a `+`. A version
/// can be published only once; publishing the same content again changes nothing and succeeds.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs publish ./my-bundle --oci registry.example.com/team --tag latest
  musherfs publish ./my-fork --oci registry.example.com/team --mount-from acme/code-review
  musherfs publish --oci localhost:5000 --json")]
pub(super) struct Args {
    /// The directory that has the musher.yaml
    #[arg(value_name = "DIR", default_value = ".")]
    bundle: PathBuf,

    #[command(flatten)]
    options: PushArgs,

    #[command(flatten)]
    oci: OciArgs,
}

/// What can be said about a push, here and below `registry`.
#[derive(clap::Args)]
pub(super) struct PushArgs {
    /// Also point this tag at the version, such as latest or stable; can be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,

    /// Another bundle of the registry that has many of the same files, such as the one that this is
    /// a fork of: the registry takes them from there, and only what is new is sent
    ///
    /// The login must be allowed to read it. Files of the bundle's own earlier versions are never
    /// sent again, with or without this.
    #[arg(long, value_name = "NAMESPACE/BUNDLE")]
    mount_from: Option<BundleId>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PushArgs {
    /// Refuses what only an OCI registry can do.
    pub(super) fn check_for_directory(&self) -> Result<(), Failure> {
        if self.tags.is_empty() && self.mount_from.is_none() {
            return Ok(());
        }
        Err(Failure::usage("--tag and --mount-from need --oci"))
    }

    /// Prints what was published to a directory.
    pub(super) fn print_published(
        &self,
        reference: &VersionRef,
        existed: bool,
    ) -> Result<(), Failure> {
        if !self.json {
            return output::line(&reference.to_string());
        }
        output::json(&serde_json::json!({
            "ref": reference.to_string(),
            "namespace": reference.bundle.namespace.as_str(),
            "slug": reference.bundle.slug.as_str(),
            "version": reference.version.as_str(),
            "existed": existed,
        }))
    }
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(rename = "ref")]
    reference: String,
    namespace: &'a str,
    slug: &'a str,
    version: &'a str,
    oci_ref: &'a str,
    digest: String,
    existed: bool,
    tags: Vec<&'a str>,
    files: usize,
    size: u64,
    blobs_found: u64,
    blobs_mounted: u64,
    blobs_uploaded: u64,
    bytes_uploaded: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    publish(&args.bundle, &args.options, &args.oci)
}

/// Publishes the bundle in `dir` and prints what came of it.
pub(super) fn publish(dir: &Path, args: &PushArgs, oci: &OciArgs) -> Result<(), Failure> {
    let remote = oci.remote()?;
    let publication = Publication::read(dir)?;
    for warning in publication.warnings() {
        tracing::warn!("{warning}");
    }
    let options = PushOptions {
        tags: args.tags.clone(),
        mount_from: args.mount_from.clone(),
        commit: Commit::of(dir),
    };
    let bar = Bar::new();
    let pushed = runtime()?.block_on(push(&remote, &publication, &options, &|progress| {
        bar.show(progress);
    }));
    bar.clear();
    let pushed = pushed?;
    if pushed.existed {
        output::note(&already_published(&pushed.reference));
    }
    if args.json {
        return output::json(&row(&publication, &pushed));
    }
    output::line(&format!("{}@{}", pushed.oci_ref, pushed.digest))
}

/// Said when there is nothing to do, which is no failure: a pipeline may run twice.
pub(super) fn already_published(reference: &VersionRef) -> String {
    format!("{reference} is already published, with the same content")
}

fn row<'a>(publication: &Publication, pushed: &'a Pushed) -> Row<'a> {
    let reference = &pushed.reference;
    Row {
        reference: reference.to_string(),
        namespace: reference.bundle.namespace.as_str(),
        slug: reference.bundle.slug.as_str(),
        version: reference.version.as_str(),
        oci_ref: &pushed.oci_ref,
        digest: pushed.digest.to_string(),
        existed: pushed.existed,
        tags: pushed.tags.iter().map(Tag::as_str).collect(),
        files: publication.assets.len(),
        size: publication.size(),
        blobs_found: pushed.found,
        blobs_mounted: pushed.mounted,
        blobs_uploaded: pushed.uploaded,
        bytes_uploaded: pushed.uploaded_bytes,
    }
}

/// How far it is, on a terminal; nothing elsewhere.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        // Draws on stderr, and only if that is a terminal.
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        ) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// There is more to do.
    pub(super) fn plan(&self, bytes: u64) {
        self.0.set_length(self.0.length().unwrap_or(0) + bytes);
    }

    /// A part is done.
    pub(super) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }

    fn show(&self, progress: Progress) {
        match progress {
            Progress::Planned { bytes, .. } => self.plan(bytes),
            Progress::Blob { bytes, .. } => self.add(bytes),
        }
    }
}
