//! `musherfs cache clean`, `prune` and `clear`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Place;
use crate::cache::clean::{Needed, Removed, Selection};
use crate::care;
use crate::care::pins::Pins;
use crate::cli::failure::{Exit, Failure, printable};
use crate::cli::output::{self, count};
use crate::reference::Namespace;

/// Remove what has expired, and content that nothing names
///
/// Entries that no registry confirmed for 24 hours, refs past their life, and files that no entry of
/// any tool names and that are older than an hour.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs cache clean --dry-run
  musherfs cache clean

What is pinned, what running mounts serve, and bundles packed on this machine stay.")]
pub(super) struct CleanArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove chosen bundles, and content that nothing names then
///
/// Without --older-than and --namespace, only content that nothing names.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs cache prune --older-than 30d
  musherfs cache prune --namespace acme --dry-run

What is pinned, what running mounts serve, and bundles packed on this machine stay.")]
pub(super) struct PruneArgs {
    /// Entries of at least this age, such as 24h, 7d or 2w, and those of unknown age
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,

    /// Only of this namespace
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,

    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Remove everything
///
/// Also the content of what is pinned, and what running mounts serve. Mounts fetch it again; pins stay
/// pinned, and are loaded again by a running mount within hours or by `musherfs pins refresh`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs cache clear --dry-run
  musherfs cache clear --force
  musherfs pins refresh                    load again what is pinned")]
pub(super) struct ClearArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,

    /// Also bundles packed on this machine, which no registry has
    #[arg(long)]
    local_packs: bool,

    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The names are those of `musher cache prune --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pruned {
    manifests_removed: u64,
    blobs_removed: u64,
    bytes_freed: u64,
    bytes_freed_human: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cleaned {
    #[serde(flatten)]
    pruned: Pruned,
    refs_removed: u64,
    leftovers_removed: u64,
    manifests_needed: u64,
    unreadable: Vec<String>,
}

/// How old something is at least: `24h`, `7d`, `2w`; also `30m` and `90s`.
fn age(text: &str) -> Result<Duration, String> {
    let problem = || format!("`{text}` is not an age such as 24h, 7d or 2w");
    let text_of = text.trim();
    let unit = text_of.chars().last().ok_or_else(problem)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(problem()),
    };
    let number = &text_of[..text_of.len() - 1];
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(problem());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        .map(Duration::from_secs)
        .ok_or_else(problem)
}

pub(super) fn clean(args: &CleanArgs) -> Result<(), Failure> {
    let removed = remove(&Selection::Expired, args.dry_run)?;
    report(&removed, args.dry_run, args.json.then_some(Names::All))
}

pub(super) fn prune(args: &PruneArgs) -> Result<(), Failure> {
    let selection = match (args.older_than, &args.namespace) {
        (None, None) => Selection::Unreferenced,
        (older_than, namespace) => Selection::Matching {
            older_than,
            namespace: namespace.clone(),
        },
    };
    let removed = remove(&selection, args.dry_run)?;
    report(&removed, args.dry_run, args.json.then_some(Names::Prune))
}

pub(super) fn clear(args: &ClearArgs) -> Result<(), Failure> {
    if !args.force && !args.dry_run && !confirm()? {
        return Err(Failure::text(Exit::General, "nothing was removed"));
    }
    let selection = Selection::Everything {
        local_packs: args.local_packs,
    };
    let removed = remove(&selection, args.dry_run)?;
    report(&removed, args.dry_run, args.json.then_some(Names::All))?;
    let pins = pinned(&Place::find()?)?;
    if pins > 0 && removed.manifests > 0 {
        let pins = count(pins as u64, "pin", "pins");
        output::note(&match args.dry_run {
            true => format!("the content of {pins} would go too"),
            false => {
                format!("the content of {pins} is gone too; `musherfs pins refresh` loads it again")
            }
        });
    }
    Ok(())
}

/// How many references are pinned.
fn pinned(place: &Place) -> Result<usize, Failure> {
    Ok(Pins::new(&place.directories.own_state()).list()?.len())
}

fn confirm() -> Result<bool, Failure> {
    let place = Place::find()?;
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("nobody is here to be asked")
            .with_hint(Some("`musherfs cache clear --force` removes everything")));
    }
    let usage = place.cache.usage();
    let pins = match pinned(&place)? {
        0 => String::new(),
        pins => format!(
            ", the content of {} among them",
            count(pins as u64, "pin", "pins")
        ),
    };
    let question = format!(
        "Remove everything below {}: {}, {}{pins}? [y/N] ",
        place.cache.root().display(),
        count(usage.entries, "entry", "entries"),
        output::size(usage.total_bytes)
    );
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes())?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

fn remove(selection: &Selection, dry_run: bool) -> Result<Removed, Failure> {
    let place = Place::find()?;
    let needed = match selection {
        Selection::Everything { .. } => Needed::default(),
        _ => care::needed(&place.directories.own_state(), &place.cache)?,
    };
    Ok(place
        .cache
        .clean(selection, &needed, Timestamp::now(), dry_run)?)
}

/// Which names JSON has: those that musher-cli prints, or all.
#[derive(Clone, Copy)]
enum Names {
    Prune,
    All,
}

fn report(removed: &Removed, dry_run: bool, json: Option<Names>) -> Result<(), Failure> {
    let pruned = Pruned {
        manifests_removed: removed.manifests,
        blobs_removed: removed.blobs,
        bytes_freed: removed.bytes,
        bytes_freed_human: output::size(removed.bytes),
    };
    match json {
        Some(Names::Prune) => output::json(&pruned)?,
        Some(Names::All) => output::json(&Cleaned {
            pruned,
            refs_removed: removed.refs,
            leftovers_removed: removed.leftovers,
            manifests_needed: removed.needed,
            unreadable: removed.unreadable.clone(),
        })?,
        None => {
            let mut text = format!(
                "{}: {}, {}, {}, {} ({})",
                if dry_run { "would remove" } else { "removed" },
                count(removed.manifests, "entry", "entries"),
                count(removed.refs, "ref", "refs"),
                count(removed.blobs, "blob", "blobs"),
                count(removed.leftovers, "leftover file", "leftover files"),
                pruned.bytes_freed_human,
            );
            if removed.needed > 0 {
                let (verb, entries) = match removed.needed {
                    1 => ("is", "entry"),
                    _ => ("are", "entries"),
                };
                text.push_str(&format!(
                    "\nkept: {} {entries} that {verb} pinned or served by a running mount",
                    removed.needed
                ));
            }
            output::line(&text)?;
        }
    }
    for path in &removed.unreadable {
        tracing::warn!(
            "content stays, since {} cannot be read and may name any of it; `musherfs cache heal` or removing that file helps",
            printable(path)
        );
    }
    match removed.failed.first() {
        None => Ok(()),
        Some((path, reason)) => Err(Failure::text(
            Exit::General,
            format!(
                "{} could not be removed; the first: {}: {reason}",
                count(removed.failed.len() as u64, "file", "files"),
                printable(path)
            ),
        )
        .with_hint(Some("check who owns the cache's directories"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_as_people_write_them() {
        for (text, hours) in [("24h", 24), ("7d", 168), ("2w", 336), (" 0h ", 0)] {
            assert_eq!(age(text), Ok(Duration::from_secs(hours * 3600)), "{text}");
        }
        for bad in [
            "",
            "h",
            "7",
            "-1d",
            "1.5d",
            "1y",
            "1 d",
            "99999999999999999999w",
            "18446744073709551615w",
            "7\u{fc}",
        ] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
