//! `musherfs pin`, `unpin` and `pins`.

use jiff::Timestamp;
use serde::Serialize;

use super::cache::age;
use super::failure::{Exit, Failure};
use super::load::describe;
use super::output::{self, Align, Table};
use super::progress::Bar;
use super::shared::{SourceArgs, runtime};
use crate::care::pins::{Pin, Pins};
use crate::client;
use crate::paths::Directories;
use crate::reference::BundleRef;

/// Load bundles and keep them loaded
///
/// What is pinned is neither evicted nor cleaned away, and any running mount has the registry confirm
/// it twice a day, before the other tools' clean-ups take it. A pinned name that moves, such as
/// acme/kit or acme/kit@^1, is loaded anew when it has moved.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs pin acme/code-review
  musherfs pins refresh
  musherfs unpin acme/code-review")]
pub(super) struct PinArgs {
    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST
    #[arg(value_name = "REF", required = true)]
    references: Vec<BundleRef>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// Let pinned bundles go
///
/// They stay cached until something cleans them away.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs unpin acme/code-review
  musherfs pins                            what is pinned, as it was pinned")]
pub(super) struct UnpinArgs {
    /// As it was pinned
    #[arg(value_name = "REF", required = true)]
    references: Vec<BundleRef>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// List what is pinned
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  musherfs pins
  musherfs pins refresh                    ask the registry now, and load what is missing"
)]
pub(super) struct PinsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    command: Option<PinsCommand>,
}

#[derive(clap::Subcommand)]
enum PinsCommand {
    /// Ask the registry what is pinned, and load what is missing of it
    Refresh {
        #[command(flatten)]
        source: SourceArgs,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(rename = "ref")]
    reference: String,
    version: Option<&'a str>,
    #[serde(rename = "hostID")]
    host_id: &'a str,
    pinned_at: Timestamp,
    refreshed_at: Option<Timestamp>,
}

/// What `unpin --json` prints of a reference.
#[derive(Serialize)]
struct Unpinned {
    #[serde(rename = "ref")]
    reference: String,
    /// Whether it was pinned.
    unpinned: bool,
}

impl<'a> From<&'a Pin> for Row<'a> {
    fn from(pin: &'a Pin) -> Self {
        Self {
            reference: pin.reference.to_string(),
            version: pin.versions.last().map(|version| version.as_str()),
            host_id: pin.registry.as_str(),
            pinned_at: pin.pinned_at,
            refreshed_at: pin.refreshed_at,
        }
    }
}

pub(super) fn pin(args: &PinArgs) -> Result<(), Failure> {
    let context = args.source.context()?;
    context.log_warnings();
    let client = context.client()?;
    let pins = Pins::new(&context.directories.own_state());
    let runtime = runtime()?;
    for reference in &args.references {
        let bar = Bar::bytes("loading");
        let answer = runtime.block_on(pins.pin(&client, reference, &bar));
        bar.clear();
        let loaded = answer?;
        if !args.json {
            output::line(&format!("pinned {}", describe(&loaded)))?;
        }
    }
    if !args.json {
        return Ok(());
    }
    let (all, host) = (pins.list()?, client.store.host());
    let is_meant = |pin: &&Pin| pin.registry == *host && args.references.contains(&pin.reference);
    let rows: Vec<Row<'_>> = all.iter().filter(is_meant).map(Row::from).collect();
    output::json(&rows)
}

pub(super) fn unpin(args: &UnpinArgs) -> Result<(), Failure> {
    let context = args.source.context()?;
    let host = client::host_of(&context.config)?;
    let pins = Pins::new(&context.directories.own_state());
    let (mut missing, mut rows) = (Vec::new(), Vec::new());
    for reference in &args.references {
        let unpinned = pins.remove(&host, reference)?;
        if !unpinned {
            missing.push(reference.to_string());
        } else if !args.json {
            output::line(&format!("unpinned {reference}"))?;
        }
        rows.push(Unpinned {
            reference: reference.to_string(),
            unpinned,
        });
    }
    if args.json {
        output::json(&rows)?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(
        Failure::text(Exit::General, format!("not pinned: {}", missing.join(", ")))
            .with_hint(Some("`musherfs pins` lists what is pinned")),
    )
}

pub(super) fn pins(args: &PinsArgs) -> Result<(), Failure> {
    if let Some(PinsCommand::Refresh { source }) = &args.command {
        return refresh(source);
    }
    let pins = Pins::new(&Directories::from_env()?.own_state()).list()?;
    let rows: Vec<Row<'_>> = pins.iter().map(Row::from).collect();
    if args.json {
        return output::json(&rows);
    }
    let mut table = Table::new([
        ("REF", Align::Left),
        ("VERSION", Align::Left),
        ("CONFIRMED", Align::Right),
        ("HOST", Align::Left),
    ]);
    let now = Timestamp::now();
    for row in rows {
        table.row([
            row.reference,
            row.version.unwrap_or_default().to_owned(),
            row.refreshed_at
                .map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(now, at))),
            row.host_id.to_owned(),
        ]);
    }
    if pins.is_empty() {
        output::note("nothing is pinned");
    }
    table.print()
}

fn refresh(source: &SourceArgs) -> Result<(), Failure> {
    let context = source.context()?;
    context.log_warnings();
    let client = context.client()?;
    let pins = Pins::new(&context.directories.own_state());
    let bar = Bar::bytes("loading");
    let answer = runtime()?.block_on(pins.refresh(&client, true, &bar));
    bar.clear();
    let (done, failed) = answer?;
    let pins = output::count(done as u64, "pin", "pins");
    output::line(&format!("{pins} confirmed"))?;
    match failed.into_iter().next() {
        None => Ok(()),
        Some((reference, error)) => {
            let mut failure = Failure::from(error);
            failure.message = format!("{reference}: {}", failure.message);
            Err(failure)
        }
    }
}
