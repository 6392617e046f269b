//! `musherfs load`: bundles in the cache before anybody reads them.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::Failure;
use super::output;
use super::progress::Bar;
use super::shared::{Context, SourceArgs, runtime};
use crate::care::load::{self, Options, Report};
use crate::care::lockfile::Lockfile;
use crate::config::Overrides;
use crate::reference::BundleRef;

/// Load bundles into the cache
///
/// All content, verified. What is there already is not fetched again, so an interrupted load goes on
/// where it was. Loaded bundles can be read offline.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs load acme/code-review nord/translation@1.0.0
  musherfs load --force acme/code-review
  musherfs load --locked musher.lock")]
pub(super) struct Args {
    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST
    #[arg(value_name = "REF", required_unless_present = "locked")]
    references: Vec<BundleRef>,

    /// Ask the registry and fetch everything again, however fresh what is cached may be
    #[arg(short, long)]
    force: bool,

    /// Load nothing but what this lockfile names; without REF, all of it
    #[arg(long, value_name = "FILE")]
    locked: Option<PathBuf>,

    /// Print JSON: an object for one REF, else an array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// The names are those of `musher bundle load --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Loaded<'a> {
    namespace: &'a str,
    slug: &'a str,
    version: &'a str,
    name: &'a str,
    description: Option<&'a str>,
    asset_count: usize,
    assets: Vec<Asset<'a>>,
    cache_root: String,
    cached: bool,
    harness: Option<()>,
    command: Option<()>,
}

#[derive(Serialize)]
struct Asset<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    asset_type: &'a str,
    size: u64,
}

impl<'a> Loaded<'a> {
    fn new(report: &'a Report, context: &Context) -> Self {
        let manifest = &report.loaded.manifest;
        let (id, info) = (manifest.id(), manifest.info());
        let slug = id.bundle.slug.as_str();
        let assets: Vec<_> = manifest
            .files()
            .map(|file| Asset {
                path: file.path(),
                asset_type: file.asset_type(),
                size: file.size(),
            })
            .collect();
        Self {
            namespace: id.bundle.namespace.as_str(),
            slug,
            version: id.version.as_str(),
            name: if info.name.is_empty() {
                slug
            } else {
                &info.name
            },
            description: info.description.as_deref(),
            asset_count: assets.len(),
            assets,
            cache_root: context.directories.cache.display().to_string(),
            cached: report.cached,
            harness: None,
            command: None,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut overrides = Overrides {
        locked: args.locked.clone(),
        ..Overrides::default()
    };
    args.source.apply(&mut overrides)?;
    let context = Context::load(overrides, args.source.api_key())?;
    context.log_warnings();
    let client = context.client()?;
    let references = match (&*context.config.locked, args.references.is_empty()) {
        (Some(path), true) => Lockfile::read(path)?.references(),
        _ => args.references.clone(),
    };
    let options = Options {
        force: args.force,
        ..Options::default()
    };
    let bar = Bar::bytes("loading");
    let mut reports = Vec::new();
    let mut failure: Option<Failure> = None;
    let runtime = runtime()?;
    for reference in &references {
        match runtime.block_on(load::load(&client, reference, options, &bar)) {
            Ok(report) => {
                if let Some((path, error)) = report.failures.first() {
                    let mut first = Failure::from(error.clone());
                    first.message = format!(
                        "{} of {} of {} cannot be loaded; {path}: {}",
                        report.failures.len(),
                        output::count(
                            report.loaded.manifest.files().count() as u64,
                            "file",
                            "files"
                        ),
                        report.loaded.manifest.id(),
                        first.message
                    );
                    failure.get_or_insert(first);
                } else {
                    reports.push(report);
                }
            }
            Err(error) => _ = failure.get_or_insert(error.into()),
        }
    }
    bar.clear();
    print(args, &context, &reports, references.len())?;
    failure.map_or(Ok(()), Err)
}

fn print(args: &Args, context: &Context, reports: &[Report], asked: usize) -> Result<(), Failure> {
    for report in reports {
        if load::is_yanked(&report.loaded) {
            tracing::warn!("{} is yanked", report.loaded.manifest.id());
        }
    }
    if args.json {
        let loaded: Vec<Loaded<'_>> = reports
            .iter()
            .map(|report| Loaded::new(report, context))
            .collect();
        return match (asked, loaded.as_slice()) {
            (1, [one]) => output::json(one),
            // The failure says it.
            (1, []) => Ok(()),
            (_, all) => output::json(&all),
        };
    }
    for report in reports {
        output::line(&describe(report))?;
    }
    Ok(())
}

/// `acme/kit@1.2.0: 3 files (1.2 KB), 2 fetched`.
pub(super) fn describe(report: &Report) -> String {
    let manifest = &report.loaded.manifest;
    let fetched = match report.fetched_files {
        0 => "all cached".to_owned(),
        count => format!("{count} fetched"),
    };
    format!(
        "{}: {} ({}), {fetched}",
        manifest.id(),
        output::count(manifest.files().count() as u64, "file", "files"),
        output::size(manifest.content_size())
    )
}
