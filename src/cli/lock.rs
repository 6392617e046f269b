//! `musherfs lock`: what names stand for, written down.

use std::path::PathBuf;

use super::failure::Failure;
use super::output;
use super::shared::{SourceArgs, runtime};
use crate::care::load::{self, Options};
use crate::care::lockfile::Lockfile;
use crate::reference::BundleRef;

/// Write down what bundles stand for at the moment
///
/// `load --locked` and `mount --locked` then accept nothing else: other names do not exist, and a
/// version whose content differs is refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs lock musher.lock acme/code-review 'nord/translation@^1'
  musherfs lock musher.lock                 the same names again, as of today
  musherfs mount --locked musher.lock")]
pub(super) struct Args {
    /// The lockfile, which is replaced
    file: PathBuf,

    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST; without any, those in the
    /// lockfile
    #[arg(value_name = "REF")]
    references: Vec<BundleRef>,

    /// Print the lockfile as well
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut context = args.source.context()?;
    context.log_warnings();
    // An old lockfile does not limit a new one.
    context.config.locked.value = None;
    let references = if args.references.is_empty() {
        Lockfile::read(&args.file)?.references()
    } else {
        args.references.clone()
    };
    let client = context.client()?;
    let mut lockfile = Lockfile::new(context.config.registry().clone());
    let options = Options {
        // Offline, what is known is what is written down.
        confirm: !*context.config.offline,
        ..Options::default()
    };
    let runtime = runtime()?;
    for reference in &references {
        let planned = runtime.block_on(load::plan(&client, reference, options))?;
        lockfile.add(reference, planned.loaded());
    }
    lockfile.write(&args.file)?;
    if args.json {
        return output::json(&lockfile);
    }
    for entry in &lockfile.bundles {
        output::line(&format!("{} is {}", entry.reference, entry.version))?;
    }
    Ok(())
}
