//! `musherfs registry`: a small registry of one's own, over a directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::logging::Verbosity;
use super::oci::OciArgs;
use super::output::{self, Align, Table};
use super::publish::PushArgs;
use super::shared::runtime;
use super::yank::{self, ActorArg, reason};
use crate::error::Error;
use crate::manifest::State;
use crate::mount::StopSignals;
use crate::publish::{Publication, PublishError, Visibility};
use crate::reference::VersionRef;
use crate::registry::{Listed, Registry, Storage, samples};

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
    /// The registry's directory
    #[arg(long = "root", value_name = "DIR", env = "MUSHERFS_REGISTRY_ROOT")]
    path: PathBuf,
}

/// A registry's directory, where an OCI registry may be meant instead.
#[derive(clap::Args)]
struct MaybeRoot {
    /// The registry's directory; it is created if it is missing
    #[arg(
        long = "root",
        value_name = "DIR",
        env = "MUSHERFS_REGISTRY_ROOT",
        required_unless_present = "oci"
    )]
    path: Option<PathBuf>,

    #[command(flatten)]
    oci: OciArgs,
}

/// Where something is to be done.
enum Place<'a> {
    Directory(&'a Path),
    Oci(&'a OciArgs),
}

impl MaybeRoot {
    /// What was typed wins over the variable.
    fn place(&self) -> Place<'_> {
        match &self.path {
            Some(path) if self.oci.oci.is_none() => Place::Directory(path),
            _ => Place::Oci(&self.oci),
        }
    }
}

/// Serve bundles over HTTP until SIGTERM or Ctrl-C
///
/// The registry's directory is created if it is missing. The first line on stdout is `listening on http://ADDRESS:PORT`, once requests are answered.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry serve --root ~/registry
  musherfs registry serve --root /tmp/registry --samples --listen 127.0.0.1:0
  MUSHERFS_REGISTRY_TOKEN=$(cat key) musherfs registry serve --root ~/registry")]
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
/// Prints NAMESPACE/BUNDLE@VERSION. A version can be published only once; publishing the same content
/// again changes nothing and succeeds. With --oci, it is published to that registry instead, as by
/// `musherfs publish`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry publish --root ~/registry ./my-bundle")]
struct Publish {
    /// The directory that has the musher.yaml
    #[arg(value_name = "DIR", default_value = ".")]
    bundle: PathBuf,

    #[command(flatten)]
    options: PushArgs,

    #[command(flatten)]
    actor: ActorArg,

    // Last: its options have a heading of their own, which what follows would get too.
    #[command(flatten)]
    root: MaybeRoot,
}

/// Withdraw a version: no name, tag or range means it any more
///
/// Whoever names it exactly can still read it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry yank --root ~/registry acme/kit@1.2.0 --reason 'leaks a secret'")]
struct Yank {
    /// NAMESPACE/BUNDLE@VERSION
    #[arg(value_name = "REF")]
    reference: VersionRef,

    /// Why, for those who use it
    #[arg(long, value_parser = reason)]
    reason: String,

    #[command(flatten)]
    actor: ActorArg,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    root: MaybeRoot,
}

/// Take a yank back
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry unyank --root ~/registry acme/kit@1.2.0")]
struct Unyank {
    /// NAMESPACE/BUNDLE@VERSION
    #[arg(value_name = "REF")]
    reference: VersionRef,

    #[command(flatten)]
    actor: ActorArg,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    root: MaybeRoot,
}

/// List all versions
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs registry list --root ~/registry --json")]
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

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Serve(args) => serve(args),
        Command::Publish(args) => publish(&args),
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

fn serve(args: Serve) -> Result<(), Failure> {
    let storage = Storage::open(&args.root.path)?;
    let swept = storage.sweep()?;
    tracing::debug!(?swept, "removed what unfinished publishes left behind");
    if args.samples {
        samples::publish_all(&storage)?;
    }
    let mut registry = Registry::new(Arc::new(storage));
    for token in &args.tokens {
        registry = registry.with_token(token);
    }
    if !args.listen.ip().is_loopback() && args.tokens.is_empty() {
        tracing::warn!(
            "everybody who reaches {} can read all public bundles",
            args.listen
        );
    }
    runtime()?.block_on(async {
        let failed = |error| Failure::from(Error::io(format!("tcp:{}", args.listen), error));
        let mut signals = StopSignals::listen(false).map_err(failed)?;
        let listener = tokio::net::TcpListener::bind(args.listen)
            .await
            .map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        output::line(&format!("listening on http://{address}"))?;
        let stop = async move {
            let signal = signals.next().await;
            tracing::info!(signal, "stopping");
        };
        crate::registry::serve(listener, registry, stop)
            .await
            .map_err(failed)
    })
}

fn publish(args: &Publish) -> Result<(), Failure> {
    let root = match args.root.place() {
        Place::Directory(root) => root,
        Place::Oci(oci) => return super::publish::publish(&args.bundle, &args.options, oci),
    };
    args.options.check_for_directory()?;
    let publication = Publication::read(&args.bundle)?;
    let storage = Storage::open(root)?;
    for warning in publication.warnings() {
        tracing::warn!("{warning}");
    }
    let (reference, existed) = match storage.publish(&publication, &args.actor.name) {
        Err(PublishError::VersionExists(reference)) if storage.holds(&publication) => {
            output::note(&super::publish::already_published(&reference));
            (reference, true)
        }
        published => (published?, false),
    };
    if !existed && publication.visibility == Visibility::Private {
        tracing::warn!(
            "{reference} is private: only holders of a token see it; `visibility: public` in its musher.yaml shows a version to everybody"
        );
    }
    args.options.print_published(&reference, existed)
}

fn yank(args: &Yank) -> Result<(), Failure> {
    let storage = match args.root.place() {
        Place::Directory(root) => existing(root)?,
        Place::Oci(oci) => {
            let why = Some(args.reason.as_str());
            return yank::change(oci, &args.reference, State::Yanked, why, &args.actor)?
                .print(args.json);
        }
    };
    let changed = storage.yank(&args.reference, &args.reason, &args.actor.name)?;
    yank::print(&args.reference, State::Yanked, changed, None, args.json)
}

fn unyank(args: &Unyank) -> Result<(), Failure> {
    let storage = match args.root.place() {
        Place::Directory(root) => existing(root)?,
        Place::Oci(oci) => {
            let state = State::Published;
            return yank::change(oci, &args.reference, state, None, &args.actor)?.print(args.json);
        }
    };
    let changed = storage.unyank(&args.reference, &args.actor.name)?;
    yank::print(&args.reference, State::Published, changed, None, args.json)
}

fn rows(root: &Root) -> Result<Vec<Row>, Failure> {
    let listing = existing(&root.path)?.list()?;
    if listing.versions.is_empty() && listing.damaged.is_empty() {
        output::note(&format!("nothing is published in {}", root.path.display()));
    }
    for damage in &listing.damaged {
        tracing::warn!("{} is damaged: {}", damage.path.display(), damage.reason);
    }
    let row = |listed: &Listed| Row {
        namespace: listed.release.reference.bundle.namespace.to_string(),
        slug: listed.release.reference.bundle.slug.to_string(),
        version: listed.release.reference.version.to_string(),
        state: listed.state.current.state.clone(),
        visibility: listed.release.stored.visibility.clone(),
        asset_count: listed.release.stored.assets.len(),
        total_size: listed.release.size(),
        published_at: listed.release.stored.created_at.to_string(),
    };
    Ok(listing.versions.iter().map(row).collect())
}

/// Opens a registry for commands that would find nothing in one that they had just made.
fn existing(root: &Path) -> Result<Storage, Failure> {
    if root.is_dir() {
        return Ok(Storage::open(root)?);
    }
    let message = format!("there is no registry in {}", root.display());
    Err(Failure::text(Exit::General, message).with_hint(Some(
        "check the spelling of --root; `musherfs registry publish` makes a registry where there is none",
    )))
}
