//! `musherfs cache`: the cache that all Musher tools of a user share.

mod check;
mod clean;

use clap::Subcommand;
use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;
use serde::Serialize;

use super::failure::Failure;
use super::output::{self, Align, Table};
use crate::cache::Cache;
use crate::cache::verify::OnDisk;
use crate::paths::Directories;

/// Look into the cache that all Musher tools share, and clean it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs cache info
  musherfs cache list --pattern 'acme/*'
  musherfs cache clean --dry-run
  musherfs cache prune --older-than 30d --namespace acme
  musherfs cache verify || musherfs cache heal

Bundles packed on this machine, what is pinned and what running mounts serve stay, except in `clear`.")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print where the cache is and what it holds
    #[command(after_help = "\
Examples:
  musherfs cache info
  musherfs cache info --json | jq .totalSize")]
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print where the cache is, whether it exists or not
    #[command(after_help = "\
Examples:
  musherfs cache path
  du -sh \"$(musherfs cache path)\"")]
    Path,
    /// List what is cached of all registries, newest first
    #[command(after_help = "\
Examples:
  musherfs cache list
  musherfs cache list --pattern 'acme/*'
  musherfs cache list --json | jq -r '.[] | .namespace + \"/\" + .slug + \"@\" + .version'")]
    List {
        /// Only bundles like this: acme/*, *-review, acme/kit@1.*
        #[arg(long, value_name = "GLOB")]
        pattern: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hash every file, and name those that are damaged
    #[command(after_help = "\
Examples:
  musherfs cache verify
  musherfs cache verify || musherfs cache heal

Exit status:
  0 if every file is what its name says; 1 if one is damaged")]
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch damaged files again, and let every Musher tool read what any of them wrote
    Heal(check::HealArgs),
    /// Remove what has expired, and content that nothing names
    Clean(clean::CleanArgs),
    /// Remove chosen bundles, and content that nothing names then
    Prune(clean::PruneArgs),
    /// Remove everything
    Clear(clean::ClearArgs),
}

/// The names are those of `musher cache info --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    location: String,
    total_size: u64,
    total_size_human: String,
    entries: u64,
    blobs: u64,
}

/// The names are those of `musher cache list --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    slug: String,
    version: String,
    #[serde(rename = "hostID")]
    host_id: String,
    asset_count: usize,
    total_size: u64,
    fetched_at: Option<Timestamp>,
    #[serde(skip)]
    written_at: Option<Timestamp>,
    #[serde(skip)]
    is_damaged: bool,
}

/// A cache and where its keepers remember things.
struct Place {
    cache: Cache,
    directories: Directories,
}

impl Place {
    fn find() -> Result<Self, Failure> {
        let directories = Directories::from_env()?;
        for warning in &directories.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            cache: Cache::new(directories.cache.clone()),
            directories,
        })
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Path => output::line(&Place::find()?.cache.root().display().to_string()),
        Command::Info { json } => info(&Place::find()?.cache, *json),
        Command::List { pattern, json } => {
            let pattern = pattern.as_deref().map(glob).transpose()?;
            list(&Place::find()?.cache, pattern.as_ref(), *json)
        }
        Command::Verify { json } => check::verify(&Place::find()?.cache, *json),
        Command::Heal(args) => check::heal(args),
        Command::Clean(args) => clean::clean(args),
        Command::Prune(args) => clean::prune(args),
        Command::Clear(args) => clean::clear(args),
    }
}

fn info(cache: &Cache, json: bool) -> Result<(), Failure> {
    let usage = cache.usage();
    let info = Info {
        location: cache.root().display().to_string(),
        total_size: usage.total_bytes,
        total_size_human: output::size(usage.total_bytes),
        entries: usage.entries,
        blobs: usage.blobs,
    };
    if json {
        return output::json(&info);
    }
    output::line(&format!(
        "location  {}\nsize      {}\nentries   {}\nblobs     {}",
        info.location, info.total_size_human, info.entries, info.blobs
    ))
}

/// What a pattern is compared with.
struct Pattern {
    matcher: GlobMatcher,
    has_slash: bool,
}

fn glob(text: &str) -> Result<Pattern, Failure> {
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    Ok(Pattern {
        matcher: glob
            .map_err(|error| Failure::usage(format!("--pattern: {error}")))?
            .compile_matcher(),
        has_slash: text.contains('/'),
    })
}

impl Pattern {
    fn matches(&self, row: &Row) -> bool {
        let (namespace, slug, version) = (&row.namespace, &row.slug, &row.version);
        let is_match = |text: &str| self.matcher.is_match(text);
        if !self.has_slash {
            return is_match(slug) || is_match(&format!("{slug}@{version}"));
        }
        is_match(&format!("{namespace}/{slug}"))
            || is_match(&format!("{namespace}/{slug}@{version}"))
            || is_match(&format!("{namespace}/{slug}:{version}"))
    }
}

impl From<OnDisk> for Row {
    fn from(entry: OnDisk) -> Self {
        let manifest = entry.cached.as_ref().map(|cached| &cached.manifest);
        Self {
            namespace: entry.version.bundle.namespace.to_string(),
            slug: entry.version.bundle.slug.to_string(),
            version: entry.version.version.to_string(),
            host_id: entry.host.to_string(),
            asset_count: manifest.map_or(0, |manifest| manifest.files().count()),
            total_size: manifest.map_or(0, |manifest| manifest.content_size()),
            fetched_at: entry.cached.as_ref().and_then(|cached| cached.fetched_at),
            written_at: entry.written_at,
            is_damaged: manifest.is_none(),
        }
    }
}

fn list(cache: &Cache, pattern: Option<&Pattern>, json: bool) -> Result<(), Failure> {
    let mut rows: Vec<Row> = cache.on_disk().into_iter().map(Row::from).collect();
    rows.retain(|row| pattern.is_none_or(|pattern| pattern.matches(row)));
    // Newest first; of one age in the order of their names.
    rows.sort_by(|a, b| {
        let name =
            |row: &Row| [&row.namespace, &row.slug, &row.version, &row.host_id].map(String::clone);
        b.written_at
            .cmp(&a.written_at)
            .then_with(|| name(a).cmp(&name(b)))
    });
    if json {
        return output::json(&rows);
    }
    let now = Timestamp::now();
    let mut table = Table::new([
        ("BUNDLE", Align::Left),
        ("VERSION", Align::Left),
        ("ASSETS", Align::Right),
        ("SIZE", Align::Right),
        ("AGE", Align::Right),
        ("HOST", Align::Left),
    ]);
    for row in rows {
        let (assets, size) = match row.is_damaged {
            true => ("damaged".to_owned(), String::new()),
            false => (
                match row.asset_count {
                    1 => "1 asset".to_owned(),
                    count => format!("{count} assets"),
                },
                output::size(row.total_size),
            ),
        };
        table.row([
            format!("{}/{}", row.namespace, row.slug),
            row.version,
            assets,
            size,
            row.written_at.map_or_else(String::new, |at| age(now, at)),
            row.host_id,
        ]);
    }
    table.print()
}

/// How long ago, in the largest unit.
pub(super) fn age(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_matched_with_what_users_type() {
        let row = Row {
            namespace: "acme".into(),
            slug: "code-review".into(),
            version: "1.2.0".into(),
            host_id: "api.musher.dev".into(),
            asset_count: 0,
            total_size: 0,
            fetched_at: None,
            written_at: None,
            is_damaged: false,
        };
        for (text, expected) in [
            ("acme/*", true),
            ("*/code-review", true),
            ("*-review", true),
            ("acme/code-review@1.*", true),
            ("acme/code-review:1.2.0", true),
            ("*", true),
            ("acme", false),
            ("a*", false),
            ("nord/*", false),
        ] {
            assert_eq!(glob(text).ok().unwrap().matches(&row), expected, "{text}");
        }
        assert_eq!(glob("[").err().unwrap().code, 64);
    }
}
