//! `musherfs cache verify` and `heal`.

use serde::Serialize;

use super::Place;
use crate::cache::Cache;
use crate::cache::verify::Verified;
use crate::care::heal;
use crate::cli::failure::{Exit, Failure, printable};
use crate::cli::output;
use crate::cli::progress::Bar;
use crate::cli::shared::{SourceArgs, runtime};

/// Fetch damaged files again, and let every Musher tool read what any of them wrote
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs cache heal --dry-run
  musherfs cache heal")]
pub(super) struct HealArgs {
    /// Only say what is damaged
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Serialize)]
struct BadFile {
    path: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    blobs: u64,
    bytes: u64,
    bytes_human: String,
    entries: u64,
    bad: Vec<BadFile>,
}

impl From<&Verified> for Found {
    fn from(verified: &Verified) -> Self {
        Self {
            blobs: verified.blobs,
            bytes: verified.bytes,
            bytes_human: output::size(verified.bytes),
            entries: verified.entries,
            bad: verified
                .bad
                .iter()
                .map(|bad| BadFile {
                    path: bad.path(),
                    reason: bad.reason(),
                })
                .collect(),
        }
    }
}

impl Found {
    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            return output::json(self);
        }
        for bad in &self.bad {
            output::line(&format!("{}: {}", printable(&bad.path), bad.reason))?;
        }
        output::line(&format!(
            "{} ({}) and {} checked, {} damaged",
            output::count(self.blobs, "blob", "blobs"),
            self.bytes_human,
            output::count(self.entries, "entry", "entries"),
            self.bad.len()
        ))
    }
}

fn hash_everything(cache: &Cache) -> Verified {
    let mut total = 0;
    cache.for_each_blob(|blob| total += blob.size);
    let bar = Bar::bytes("verifying");
    bar.expect(total);
    let verified = cache.verify(&|bytes| bar.advance(bytes));
    bar.clear();
    verified
}

pub(super) fn verify(cache: &Cache, json: bool) -> Result<(), Failure> {
    let found = Found::from(&hash_everything(cache));
    found.print(json)?;
    match found.bad.len() {
        0 => Ok(()),
        count => Err(Failure::text(
            Exit::General,
            format!("{count} damaged files below {}", cache.root().display()),
        )
        .with_hint(Some(
            "`musherfs cache heal` fetches them again; damaged content is never served",
        ))),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Healed {
    refetched: Vec<String>,
    removed: Vec<String>,
    rewritten: Vec<String>,
    failed: Vec<BadFile>,
}

pub(super) fn heal(args: &HealArgs) -> Result<(), Failure> {
    let place = Place::find()?;
    let verified = hash_everything(&place.cache);
    if args.dry_run {
        return Found::from(&verified).print(args.json);
    }
    let context = args.source.context()?;
    let client = context.client()?;
    let bar = Bar::files("healing");
    let healed = runtime()?.block_on(heal::heal(&client, &verified.bad, &bar));
    bar.clear();
    let failed = healed.failed.iter().map(|(path, error)| BadFile {
        path: path.clone(),
        reason: error.to_string(),
    });
    let report = Healed {
        failed: failed.collect(),
        refetched: healed.refetched,
        removed: healed.removed,
        rewritten: healed.rewritten,
    };
    if args.json {
        output::json(&report)?;
    } else {
        for (what, paths) in [
            ("fetched", &report.refetched),
            ("removed", &report.removed),
            ("rewritten", &report.rewritten),
        ] {
            for path in paths {
                output::line(&format!("{what}  {}", printable(path)))?;
            }
        }
        for bad in &report.failed {
            output::line(&format!("failed  {}: {}", printable(&bad.path), bad.reason))?;
        }
    }
    match healed.failed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) => {
            let mut failure = Failure::from(error);
            failure.message = format!(
                "{} files stay damaged; the first: {}",
                report.failed.len(),
                failure.message
            );
            Err(failure)
        }
    }
}
