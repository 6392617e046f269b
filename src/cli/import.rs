//! `musherfs import`: an image layout into the cache.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::export::print;
use super::failure::{Exit, Failure};
use super::publish::Bar;
use super::shared::{SourceArgs, runtime};
use crate::client::{self, Client};
use crate::error::Error;
use crate::publish::export::{import, import_aliases};
use crate::source::layout::LayoutSource;
use crate::source::{Deadline, Source};

/// Fill the cache from an OCI image layout, as `musherfs export` or skopeo wrote it
///
/// All content is verified. The versions are filed as those of the registry in use, so that its
/// mounts find them, offline too. A version that is cached with other content is not replaced.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs import /media/stick/bundles
  musherfs import ./layout --oci registry.example.com/team --json")]
pub(super) struct Args {
    /// The directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let context = args.source.context()?;
    context.log_warnings();
    let layout = Arc::new(LayoutSource::open(&args.directory)?);
    let host = client::host_of(&context.config)?;
    let source = Arc::clone(&layout) as Arc<dyn Source>;
    let client = Client::of_source(&context.config, &context.directories, host, source);
    let store = &client.store;
    let bar = Bar::new();
    let (moved, failed) = runtime()?.block_on(async {
        let deadline = Deadline::after(store.policy().metadata_timeout);
        let (mut moved, mut failed) = (Vec::new(), Vec::new());
        for version in layout.all(deadline).await? {
            // One bad version keeps no other from being imported.
            match import(store, &version, &|bytes| bar.add(bytes)).await {
                Ok(done) => moved.push(done),
                Err(error) => {
                    tracing::error!("{version} is not imported: {error}");
                    failed.push(error);
                }
            }
        }
        let imported: HashSet<_> = moved.iter().map(|moved| moved.reference.clone()).collect();
        import_aliases(store, &layout, &imported).await?;
        Ok::<_, Error>((moved, failed))
    })?;
    bar.clear();
    let total = moved.len() + failed.len();
    if total == 0 {
        return Err(
            Failure::text(Exit::General, "there is no version in the layout").with_hint(Some(
                "its index names manifests as NAMESPACE/BUNDLE:VERSION",
            )),
        );
    }
    print(&moved, args.json)?;
    let count = failed.len();
    let Some(first) = failed.into_iter().next() else {
        return Ok(());
    };
    let text = format!("{count} of {total} versions are not imported; the first: {first}");
    let hint = first.hint();
    Err(Failure::text(Failure::from(first).code, text).with_hint(hint))
}
