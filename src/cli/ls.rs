//! `musherfs ls`: the files of a version, without mounting or downloading them.

use serde::Serialize;

use super::failure::{Failure, printable};
use super::output::{self, Align, Table};
use super::shared::{SourceArgs, runtime};
use crate::manifest::{Manifest, State};
use crate::reference::BundleRef;

/// List the files of a bundle
///
/// Downloads the list of files, never their content.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs ls acme/code-review
  musherfs ls 'acme/code-review@^1.2' --json")]
pub(super) struct Args {
    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST
    #[arg(value_name = "REF")]
    reference: BundleRef,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// What `--json` prints; the first names are those of `musher bundle load`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing<'a> {
    namespace: &'a str,
    slug: &'a str,
    version: &'a str,
    name: &'a str,
    description: Option<&'a str>,
    state: &'static str,
    asset_count: usize,
    total_size: u64,
    assets: Vec<Asset<'a>>,
    refused: Vec<Refused<'a>>,
}

#[derive(Serialize)]
struct Asset<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    asset_type: &'a str,
    size: u64,
    sha256: String,
}

#[derive(Serialize)]
struct Refused<'a> {
    path: &'a str,
    reason: String,
}

impl<'a> Listing<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let id = manifest.id();
        let info = manifest.info();
        let assets: Vec<_> = manifest
            .files()
            .map(|file| Asset {
                path: file.path(),
                asset_type: file.asset_type(),
                size: file.size(),
                sha256: file.digest().to_string(),
            })
            .collect();
        Self {
            namespace: id.bundle.namespace.as_str(),
            slug: id.bundle.slug.as_str(),
            version: id.version.as_str(),
            name: &info.name,
            description: info.description.as_deref(),
            state: info.state.as_str(),
            asset_count: assets.len(),
            total_size: manifest.content_size(),
            assets,
            refused: manifest
                .refused()
                .map(|(entry, refusal)| Refused {
                    path: entry.path(),
                    reason: refusal.to_string(),
                })
                .collect(),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            ("PATH", Align::Left),
            ("TYPE", Align::Left),
            ("SIZE", Align::Right),
        ]);
        for asset in &self.assets {
            table.row([
                asset.path.to_owned(),
                asset.asset_type.to_owned(),
                output::size(asset.size),
            ]);
        }
        table
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let context = args.source.context()?;
    context.log_warnings();
    let client = context.client()?;
    let loaded = runtime()?.block_on(client.manifest(&args.reference))?;
    let manifest = &loaded.manifest;
    let listing = Listing::of(manifest);
    if args.json {
        return output::json(&listing);
    }
    if manifest.info().state == State::Yanked {
        tracing::warn!("{} is yanked", manifest.id());
    }
    for refused in &listing.refused {
        let path = printable(refused.path);
        tracing::warn!("{path} is hidden: {}", refused.reason);
    }
    listing.table().print()
}
