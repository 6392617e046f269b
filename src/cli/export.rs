//! `musherfs export`: versions into a directory that travels.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::Failure;
use super::oci::OciArgs;
use super::output::{self, Align, Table};
use super::publish::Bar;
use super::shared::{SourceArgs, runtime};
use crate::client::layout_of;
use crate::error::Error;
use crate::publish::export::{Moved, Origin, export};
use crate::publish::layout::LayoutWriter;
use crate::reference::{BundleRef, Selector};
use crate::source::layout::LayoutSource;

/// Write versions into an OCI image layout, for a stick, an archive or skopeo
///
/// Content comes from the cache or the registry, and all of it is verified. What the directory has
/// already stays. Mount it elsewhere with --oci oci-layout:DIR, or fill a cache with `musherfs
/// import DIR`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs export acme/code-review acme/kit@1.2.0 /media/stick/bundles
  musherfs export --offline 'acme/kit@^1' ./layout
  skopeo copy oci:./layout:acme/kit:1.2.0 docker://registry.example.com/acme/kit:1.2.0")]
pub(super) struct Args {
    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST
    #[arg(value_name = "REF", required = true)]
    references: Vec<BundleRef>,

    /// The directory; it is created if it is missing
    #[arg(value_name = "DIR", required = true)]
    directory: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// A row of what `--json` prints, also of `import`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    #[serde(rename = "ref")]
    reference: String,
    namespace: String,
    slug: String,
    version: String,
    digest: Option<String>,
    rebuilt: bool,
    files: u64,
    size: u64,
}

impl From<&Moved> for Row {
    fn from(moved: &Moved) -> Self {
        let reference = &moved.reference;
        Self {
            reference: reference.to_string(),
            namespace: reference.bundle.namespace.to_string(),
            slug: reference.bundle.slug.to_string(),
            version: reference.version.to_string(),
            digest: moved.digest.map(|digest| digest.to_string()),
            rebuilt: moved.rebuilt,
            files: moved.files,
            size: moved.bytes,
        }
    }
}

/// Prints what was moved, as a table or as JSON.
pub(super) fn print(moved: &[Moved], json: bool) -> Result<(), Failure> {
    if json {
        let rows: Vec<Row> = moved.iter().map(Row::from).collect();
        return output::json(&rows);
    }
    let mut table = Table::new([
        ("VERSION", Align::Left),
        ("FILES", Align::Right),
        ("SIZE", Align::Right),
        ("DIGEST", Align::Left),
    ]);
    for moved in moved {
        table.row([
            moved.reference.to_string(),
            moved.files.to_string(),
            output::size(moved.bytes),
            moved.digest.map(|d| d.to_string()).unwrap_or_default(),
        ]);
    }
    table.print()
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let context = args.source.context()?;
    context.log_warnings();
    let client = context.client()?;
    let config = &context.config;
    let layout = layout_of(config).map(|path| LayoutSource::open(&path));
    let layout = layout.transpose()?;
    let remote = match &*config.oci_registry_url {
        Some(_) if layout.is_none() && !config.offline.value => Some(OciArgs::of(&context)?),
        _ => None,
    };
    let origin = match (&layout, &remote) {
        (Some(layout), _) => Origin::Layout(layout),
        (None, Some(remote)) => Origin::Remote(remote),
        (None, None) => Origin::Nobody,
    };
    let bar = Bar::new();
    let mut writer = LayoutWriter::open(&args.directory)?;
    let moved = runtime()?.block_on(async {
        let mut moved = Vec::new();
        for reference in &args.references {
            let loaded = client.manifest(reference).await?;
            bar.plan(loaded.manifest.content_size());
            let alias = match &reference.selector {
                Selector::Tag(tag) => Some(&**tag),
                _ => None,
            };
            let aliases = alias.as_slice();
            let progress = |bytes| bar.add(bytes);
            let store = &client.store;
            let done = export(store, &loaded, aliases, &origin, &mut writer, &progress).await?;
            moved.push(done);
        }
        Ok::<_, Error>(moved)
    });
    bar.clear();
    let moved = moved?;
    writer.commit()?;
    for moved in moved.iter().filter(|moved| moved.rebuilt) {
        tracing::warn!(
            "{} has a manifest of its own here: the registry's could not be had, or holds archives",
            moved.reference
        );
    }
    print(&moved, args.json)
}
