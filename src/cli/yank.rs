//! `musherfs yank` and `musherfs unyank`: withdraw a version in an OCI registry, and take it back.

use serde::Serialize;

use super::failure::Failure;
use super::oci::OciArgs;
use super::output;
use super::shared::runtime;
use crate::manifest::State;
use crate::publish::oci::{Recorded, set_state};
use crate::reference::VersionRef;

/// Longest reason for a yank, in bytes: it travels in answers and attributes.
const MAX_REASON: usize = 1000;

/// Withdraw a version in an OCI registry: no name, tag or range means it any more
///
/// Whoever names it exactly can still read it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs yank acme/kit@1.2.0 --oci registry.example.com/team --reason 'leaks a secret'")]
pub(super) struct YankArgs {
    #[command(flatten)]
    version: VersionArg,

    /// Why, for those who use it
    #[arg(long, value_parser = reason)]
    reason: String,

    #[command(flatten)]
    actor: ActorArg,

    #[command(flatten)]
    oci: OciArgs,
}

/// Take a yank in an OCI registry back
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs unyank acme/kit@1.2.0 --oci registry.example.com/team")]
pub(super) struct UnyankArgs {
    #[command(flatten)]
    version: VersionArg,

    #[command(flatten)]
    actor: ActorArg,

    #[command(flatten)]
    oci: OciArgs,
}

#[derive(clap::Args)]
struct VersionArg {
    /// NAMESPACE/BUNDLE@VERSION
    #[arg(value_name = "REF")]
    reference: VersionRef,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who changes something.
#[derive(clap::Args)]
pub(super) struct ActorArg {
    /// Who does it, for the record
    #[arg(
        long = "actor",
        value_name = "NAME",
        env = "USER",
        default_value = "unknown"
    )]
    pub(super) name: String,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(rename = "ref")]
    reference: String,
    state: &'a str,
    changed: bool,
    tag: Option<&'a str>,
}

/// A reason as it can travel: one line.
pub(super) fn reason(text: &str) -> Result<String, String> {
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

pub(super) fn yank(args: &YankArgs) -> Result<(), Failure> {
    let recorded = change(
        &args.oci,
        &args.version.reference,
        State::Yanked,
        Some(&args.reason),
        &args.actor,
    )?;
    recorded.print(args.version.json)
}

pub(super) fn unyank(args: &UnyankArgs) -> Result<(), Failure> {
    let recorded = change(
        &args.oci,
        &args.version.reference,
        State::Published,
        None,
        &args.actor,
    )?;
    recorded.print(args.version.json)
}

/// What came of a change in an OCI registry.
pub(super) struct Changed(Recorded);

impl Changed {
    /// Says so.
    pub(super) fn print(&self, json: bool) -> Result<(), Failure> {
        let Recorded {
            reference,
            state,
            changed,
            tag,
            ..
        } = &self.0;
        print(reference, *state, *changed, tag.as_deref(), json)
    }
}

/// Says what became of a version's state; `tag` is what records it, in an OCI registry.
pub(super) fn print(
    reference: &VersionRef,
    state: State,
    changed: bool,
    tag: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    if json {
        return output::json(&Row {
            reference: reference.to_string(),
            state: state.as_str(),
            changed,
            tag,
        });
    }
    let text = match (state, changed) {
        (State::Yanked, true) => format!("yanked {reference}"),
        (State::Yanked, false) => {
            format!("{reference} was yanked before; its first reason stays")
        }
        (State::Published, true) => format!("unyanked {reference}"),
        (State::Published, false) => format!("{reference} is not yanked"),
    };
    output::line(&text)
}

/// Sets a version's state in the OCI registry that the settings name.
pub(super) fn change(
    oci: &OciArgs,
    reference: &VersionRef,
    state: State,
    reason: Option<&str>,
    actor: &ActorArg,
) -> Result<Changed, Failure> {
    let remote = oci.remote()?;
    let change = set_state(&remote, reference, state, reason, &actor.name);
    Ok(Changed(runtime()?.block_on(change)?))
}
