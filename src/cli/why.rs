//! `musherfs why`: what a path is and where its bytes came from, or why there is nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::failure::{Exit, Failure, printable};
use super::output::{self, size};
use super::shared::{Context, SourceArgs, runtime};
use super::status::time;
use crate::config::Overrides;
use crate::error::Error;
use crate::fs::{self, Fs};
use crate::mount::control::{Why, client};
use crate::mount::locate::{Found, Place, locate};
use crate::mount::mountinfo::MountTable;
use crate::mount::{MARKER, is_marked};
use crate::reference::BundleRef;

/// Explain a path: what it is, where its bytes came from, or why there is nothing
///
/// A path in a mount is explained by its daemon; NAMESPACE/BUNDLE[@VERSION][/PATH] from the cache,
/// without a mount. Contacts no registry and never touches the mount, so it answers at once also
/// while the network hangs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs why /mnt/musher/acme/code-review/prompts/review.md
  musherfs why ~/bundles/acme --json
  musherfs why acme/code-review@1.2.0/README.md

Exit status:
  0 if there is something that can be read; 1 if there is nothing, nothing is known, or the last
  attempt to read it failed")]
pub(super) struct Args {
    /// A path in a mount, or NAMESPACE/BUNDLE[@VERSION][/PATH]
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let table = MountTable::read().map_err(|error| Error::io("/proc/self/mountinfo", error))?;
    let found = locate(&args.path, &table).map_err(|error| Error::io(&args.path, error))?;
    let is_inside = matches!(found, Found::Inside(_));
    let why = match (found, as_reference(&args.path)) {
        (Found::Inside(place), _) => in_mount(args, &place)?,
        (Found::Outside(path), None) => return Err(outside(&path)),
        (Found::Outside(_), Some(path)) => from_cache(args, &path)?,
    };
    if args.json {
        output::json(&why)?;
    } else {
        output::write_all(describe(&why, is_inside).as_bytes())?;
    }
    if why.is_there() && why.failure.is_none() {
        Ok(())
    } else {
        Err(Failure::printed(Exit::General))
    }
}

/// The path as a reference with a path behind it, if it can be one.
fn as_reference(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let mut parts = text.splitn(3, '/');
    let bundle = format!("{}/{}", parts.next()?, parts.next()?);
    bundle.parse::<BundleRef>().ok()?;
    Some(text.to_owned())
}

fn in_mount(args: &Args, place: &Place) -> Result<Why, Failure> {
    let context = Context::load(Overrides::default(), None)?;
    let answer = runtime()?.block_on(async {
        let sockets = client::sockets(&context.directories.runtime)
            .map_err(|error| Error::io(&context.directories.runtime, error))?;
        let asked = sockets.iter().map(|socket| async move {
            let status = socket.status().await.ok()?;
            // A bind mount has another number, but shows the same filesystem.
            let serves = status.mount.device == place.mount.id.device;
            Some(serves.then_some(socket))
        });
        let answers = futures_util::future::join_all(asked).await;
        match answers.into_iter().flatten().flatten().next() {
            Some(socket) => socket
                .why(&place.path)
                .await
                .map(Some)
                .map_err(|error| Error::io(&place.mount.mountpoint, error)),
            None => Ok(None),
        }
    })?;
    match answer {
        Some(why) => Ok(why),
        None => {
            tracing::warn!(
                "the daemon of {} does not answer; this is what the cache knows",
                place.mount.mountpoint.display()
            );
            from_cache(args, &place.path)
        }
    }
}

/// What the cache knows, without a daemon and without a network.
fn from_cache(args: &Args, path: &str) -> Result<Why, Failure> {
    let mut context = args.source.context()?;
    context.config.offline.value = true;
    let client = context.client()?;
    // Only for the layers below, which may start tasks.
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let fs = Fs::new(fs::Settings {
        resolver: client.resolver,
        store: client.store,
        journal: client.journal,
        user_xattr: false,
        metrics: client.metrics,
    });
    Ok(Why::of(&fs, path))
}

fn outside(path: &Path) -> Failure {
    let unmounted = path.ancestors().find(|above| is_marked(above));
    if let Some(above) = unmounted {
        return Failure::text(
            Exit::General,
            format!("nothing is mounted on {}", above.display()),
        )
        .with_hint(Some(format!(
            "mount it with `musherfs mount {0}`; the file {MARKER} marks a directory that waits for that",
            above.display()
        )));
    }
    Failure::text(
        Exit::General,
        format!("{} is not in a mount of musherfs", path.display()),
    )
    .with_hint(Some(
        "`musherfs status` lists the mounts; NAMESPACE/BUNDLE@VERSION/PATH asks the cache",
    ))
}

fn describe(why: &Why, is_inside: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10}{}", printable(&value));
    };
    line("path", why.path.clone());
    line("is", what(why));
    if let (Some(selector), Some(version)) = (&why.selector, &why.version) {
        let fresh = match why.fresh_for_seconds {
            None => "and stays it".to_owned(),
            Some(0) => "to be asked again when it is next opened".to_owned(),
            Some(seconds) => format!("asked again in {}", time(seconds)),
        };
        line("leads to", format!("{selector} is {version}, {fresh}"));
    }
    if let Some(state) = &why.state {
        let source = why.manifest_source.as_deref().unwrap_or("cache");
        line("version", format!("{state}, list of files from {source}"));
    }
    if let (Some(sha256), Some(bytes)) = (&why.sha256, why.size) {
        line("content", format!("{}, sha256:{sha256}", size(bytes)));
    }
    match (why.cached, &why.source, why.verified) {
        (Some(true), source, verified) => {
            let source = source.as_deref().unwrap_or("cache");
            let verified = match verified {
                Some(at) => format!("verified at {at:.0}"),
                None => "to be verified when it is first read".to_owned(),
            };
            line("bytes", format!("cached, from {source}, {verified}"));
        }
        (Some(false), ..) => line("bytes", "not cached: fetched when it is read".to_owned()),
        (None, ..) => {}
    }
    if let Some(reason) = &why.reason {
        line("because", reason.clone());
    }
    if let Some(remedy) = &why.remedy {
        line("hint", remedy.clone());
    }
    if let Some(failure) = &why.failure {
        let times = match failure.times {
            1 => String::new(),
            times => format!(", {times} times"),
        };
        line(
            "failed",
            format!(
                "{} at {:.0}{times} with {}: {}",
                failure.operation, failure.at, failure.errno, failure.message
            ),
        );
        line("hint", failure.remedy.clone());
    }
    if is_inside {
        let writing = &why.writing;
        line(
            "writes",
            format!("fail with {}: {}", writing.errno, writing.remedy),
        );
    }
    text
}

fn what(why: &Why) -> String {
    let bundle = || {
        let (namespace, bundle) = (&why.namespace, &why.bundle);
        match (namespace, bundle, &why.version) {
            (Some(namespace), Some(bundle), Some(version)) => {
                format!("{namespace}/{bundle}@{version}")
            }
            (Some(namespace), Some(bundle), None) => format!("{namespace}/{bundle}"),
            (Some(namespace), ..) => namespace.clone(),
            _ => "the mount".to_owned(),
        }
    };
    match why.kind.as_str() {
        "root" => "the root of the mount".to_owned(),
        "namespace" => "a namespace, which holds bundles".to_owned(),
        "link" => format!("a name that moves, at the moment {}", bundle()),
        "version" => format!("the version {}, which never changes", bundle()),
        "probe" => "the file that is touched after mounting".to_owned(),
        "directory" => format!("a directory in {}", bundle()),
        "file" => match &why.asset_type {
            Some(kind) => format!("a file ({kind}) in {}", bundle()),
            None => format!("a file in {}", bundle()),
        },
        "refused" => format!("hidden or refused, in {}", bundle()),
        "absent" => "nothing".to_owned(),
        _ => "unknown".to_owned(),
    }
}
