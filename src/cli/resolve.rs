//! `musherfs resolve`: which version a name means at the moment.

use serde::Serialize;

use super::failure::Failure;
use super::output;
use super::shared::{SourceArgs, runtime};
use crate::manifest::State;
use crate::reference::BundleRef;

/// Print which version a name, tag or range means
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs resolve acme/code-review
  musherfs resolve 'acme/code-review@^1.2' --json")]
pub(super) struct Args {
    /// NAMESPACE/BUNDLE, or with @VERSION, @TAG, @RANGE or @sha256:DIGEST
    #[arg(value_name = "REF")]
    reference: BundleRef,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    source: SourceArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resolved<'a> {
    #[serde(rename = "ref")]
    reference: String,
    namespace: &'a str,
    slug: &'a str,
    version: &'a str,
    state: &'static str,
    oci_ref: Option<&'a str>,
    oci_digest: Option<&'a str>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let context = args.source.context()?;
    context.log_warnings();
    let client = context.client()?;
    let loaded = runtime()?.block_on(client.manifest(&args.reference))?;
    let (id, info) = (loaded.manifest.id(), loaded.manifest.info());
    if args.json {
        return output::json(&Resolved {
            reference: args.reference.to_string(),
            namespace: id.bundle.namespace.as_str(),
            slug: id.bundle.slug.as_str(),
            version: id.version.as_str(),
            state: info.state.as_str(),
            oci_ref: info.oci_ref.as_deref(),
            oci_digest: info.oci_digest.as_deref(),
        });
    }
    if info.state == State::Yanked {
        tracing::warn!("{id} is yanked");
    }
    output::line(&id.to_string())
}
