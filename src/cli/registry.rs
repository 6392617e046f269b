//! `musherfs registry`: a small registry of one's own, over a directory.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::failure::Failure;
use super::logging::Verbosity;
use super::output::{self, Align, Table};
use crate::error::{Error, Result};
use crate::reference::VersionRef;

/// Longest reason for a yank, in bytes: it travels in answers and attributes.
const MAX_REASON: usize = 1000;

/// Run a registry of your own, and publish to it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry publish --root ~/registry ./my-bundle
  musherfs registry serve --root ~/registry
  musherfs registry yank --root ~/registry acme/kit@1.2.0 --reason 'leaks a secret'
  musherfs registry list --root ~/registry")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

impl Args {
    /// A server says what it does, other commands only what goes wrong.
    pub(super) fn verbosity(&self, asked: Verbosity) -> Verbosity {
        match self.command {
            Command::Serve(_) => asked.louder(),
            _ => asked,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    Serve(Serve),
    Publish(Publish),
    Yank(Yank),
    Unyank(Unyank),
    List(List),
}

#[derive(clap::Args)]
struct Root {
    /// The registry's directory; it is created if it is missing
    #[arg(long = "root", value_name = "DIR", env = "MUSHERFS_REGISTRY_ROOT")]
    path: PathBuf,
}

/// Serve bundles over HTTP until SIGTERM or Ctrl-C
///
/// The first line on stdout is `listening on http://ADDRESS:PORT`, once requests are answered.
#[derive(clap::Args)]
struct Serve {
    #[command(flatten)]
    root: Root,

    /// The address to listen on; port 0 is any free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,

    /// A key that may see private bundles; can be repeated
    #[arg(
        long = "token",
        value_name = "KEY",
        env = "MUSHERFS_REGISTRY_TOKEN",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = token
    )]
    tokens: Vec<String>,

    /// Publish the sample bundles first, if they are not there yet
    #[arg(long)]
    samples: bool,
}

/// Publish a directory with a musher.yaml
///
/// Prints NAMESPACE/BUNDLE@VERSION. A version can be published only once.
#[derive(clap::Args)]
struct Publish {
    #[command(flatten)]
    root: Root,

    /// The directory that has the musher.yaml
    #[arg(value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

/// Withdraw a version: no name, tag or range means it any more
///
/// Whoever names it exactly can still read it.
#[derive(clap::Args)]
struct Yank {
    #[command(flatten)]
    root: Root,

    /// NAMESPACE/BUNDLE@VERSION
    #[arg(value_name = "REF")]
    reference: VersionRef,

    /// Why, for those who use it
    #[arg(long, value_parser = reason)]
    reason: String,

    #[command(flatten)]
    actor: Actor,
}

/// Take a yank back
#[derive(clap::Args)]
struct Unyank {
    #[command(flatten)]
    root: Root,

    /// NAMESPACE/BUNDLE@VERSION
    #[arg(value_name = "REF")]
    reference: VersionRef,

    #[command(flatten)]
    actor: Actor,
}

#[derive(clap::Args)]
struct Actor {
    /// Who does it, for the record
    #[arg(
        long = "actor",
        value_name = "NAME",
        env = "USER",
        default_value = "unknown"
    )]
    name: String,
}

/// List all versions
#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    root: Root,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A version in a registry's directory.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    slug: String,
    version: String,
    state: String,
    visibility: String,
    asset_count: usize,
    total_size: u64,
    /// RFC 3339.
    published_at: String,
}

fn token(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a key has visible ASCII characters only".into());
    }
    Ok(text.to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        Err("say why: users of the version will read it".into())
    } else if text.len() > MAX_REASON || text.chars().any(char::is_control) {
        Err(format!(
            "a reason is one line of at most {MAX_REASON} bytes"
        ))
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Serve(args) => serve(args),
        Command::Publish(args) => output::line(&publish(&args)?.to_string()),
        Command::Yank(args) => yank(&args),
        Command::Unyank(args) => unyank(&args),
        Command::List(args) => {
            let rows = rows(&args.root)?;
            if args.json {
                output::json(&rows)
            } else {
                table(&rows).print()
            }
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        ("BUNDLE", Align::Left),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
        ("VISIBILITY", Align::Left),
        ("FILES", Align::Right),
        ("SIZE", Align::Right),
        ("PUBLISHED", Align::Left),
    ]);
    for row in rows {
        table.row([
            format!("{}/{}", row.namespace, row.slug),
            row.version.clone(),
            row.state.clone(),
            row.visibility.clone(),
            row.asset_count.to_string(),
            output::size(row.total_size),
            row.published_at.clone(),
        ]);
    }
    table
}

// WIRE: open the storage, publish the samples, listen, `output::line("listening on http://…")`,
// serve until SIGTERM or SIGINT. Warn when the address is not loopback and there is no token.
fn serve(args: Serve) -> Result<(), Failure> {
    let Serve {
        root: _,
        listen: _,
        tokens: _,
        samples: _,
    } = args;
    Err(unwired())
}

// WIRE: crate::publish reads the directory, the storage publishes it; warnings to tracing.
fn publish(args: &Publish) -> Result<VersionRef, Failure> {
    let _ = (&args.root.path, &args.bundle);
    Err(unwired())
}

// WIRE
fn yank(args: &Yank) -> Result<(), Failure> {
    let _ = (&args.root, &args.reference, &args.reason, &args.actor.name);
    Err(unwired())
}

// WIRE
fn unyank(args: &Unyank) -> Result<(), Failure> {
    let _ = (&args.root, &args.reference, &args.actor.name);
    Err(unwired())
}

// WIRE: one row a version, sorted.
fn rows(root: &Root) -> Result<Vec<Row>, Failure> {
    let _ = &root.path;
    Err(unwired())
}

fn unwired() -> Failure {
    Error::Internal("registry is not wired yet".into()).into()
}
