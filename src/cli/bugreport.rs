//! `musherfs bugreport`: an archive for whoever is to find out what is wrong.

use std::fmt::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::failure::Failure;
use super::mount::DEFAULT_MOUNTPOINT;
use super::output;
use super::shared::{Context, SourceArgs, runtime};
use crate::client::{self, Party};
use crate::credentials::docker::{Login, LoginFiles};
use crate::doctor::bugreport::{self, Redactor};
use crate::doctor::{self, Finding};
use crate::error::Error;
use crate::mount::control;

/// Write an archive for a report: versions, settings, findings, numbers, the log
///
/// Keys, passwords and tokens are taken out; paths, names of bundles and host names stay. Look into
/// it before you send it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs bugreport
  musherfs bugreport -o report.tar.gz && tar -xzOf report.tar.gz | less")]
pub(super) struct Args {
    /// Where to write it; must not exist
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Where the mount is
    #[arg(default_value = DEFAULT_MOUNTPOINT)]
    mountpoint: PathBuf,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Settings that cannot be used are a reason for a report, not against one.
    let (context, problem) = match args.source.context() {
        Ok(context) => (context, None),
        Err(failure) => (Context::without_settings()?, Some(failure)),
    };
    let path = args.output.clone().unwrap_or_else(|| {
        let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        format!("musherfs-bugreport-{now}.tar.gz").into()
    });
    let dir = std::path::absolute(&args.mountpoint)
        .map_err(|error| Error::io(&args.mountpoint, error))?;
    let redactor = Redactor::new(secrets(&context));
    let mut findings: Vec<Finding> = problem
        .iter()
        .map(|failure| Finding::bad_setting(failure.message.clone()))
        .collect();
    match super::doctor::examine(&context, dir, doctor::PATIENCE) {
        Ok(found) => findings.extend(found),
        Err(failure) => findings.push(Finding::bad_setting(failure.message)),
    }
    let files = [
        ("version.txt", version()),
        ("doctor.json", json(&findings)),
        ("status.json", status(&context)?),
        ("config.txt", settings(&context, problem.as_ref())),
        ("mountinfo.txt", mounts()),
        ("system.txt", bugreport::system()),
        (
            "log.txt",
            bugreport::log_tail(&context.directories.own_state()),
        ),
    ];
    bugreport::write(&path, &redactor, &files)?;
    if let Some(failure) = &problem {
        tracing::warn!(
            "the settings cannot be used, which is in the report: {}",
            failure.message
        );
    }
    output::line(&path.display().to_string())
}

/// The credentials that are given for any source. What cannot be read cannot be told either.
fn secrets(context: &Context) -> Vec<String> {
    let chain = context.key_chain().unwrap_or_default();
    let key = chain.lookup().ok().flatten();
    let mut secrets: Vec<String> = key.iter().map(|key| key.expose().to_owned()).collect();
    let parties = client::parties(&context.config, &chain, &LoginFiles::from_env());
    for (party, _) in parties.unwrap_or_default() {
        let Party::Oci { logins, .. } = party else {
            continue;
        };
        match logins.lookup() {
            Ok(Some(Login::Password { user, password })) => {
                // As a header has it.
                secrets.push(STANDARD.encode(format!("{user}:{password}")));
                secrets.push(password);
            }
            Ok(Some(Login::IdentityToken(token))) => secrets.push(token),
            Ok(None) | Err(_) => {}
        }
    }
    secrets
}

fn version() -> String {
    format!("musherfs {}\n", env!("CARGO_PKG_VERSION"))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
}

fn status(context: &Context) -> Result<String, Failure> {
    let answers = runtime()?.block_on(control::client::all(&context.directories.runtime));
    Ok(match answers {
        Ok(answers) => {
            let mut text = json(&answers.mounts);
            for silent in answers.silent {
                let _ = write!(text, "\nprocess {}: {}", silent.pid, silent.error);
            }
            text
        }
        Err(error) => error.to_string(),
    })
}

fn settings(context: &Context, problem: Option<&Failure>) -> String {
    let mut text = String::new();
    if let Some(failure) = problem {
        let _ = writeln!(text, "cannot be used: {}", failure.message);
    }
    for (name, value, origin) in context.config.explain() {
        let _ = writeln!(text, "{name} = {value} ({origin})");
    }
    for (name, value) in crate::config::proxies() {
        let _ = writeln!(text, "{name} = {value}");
    }
    let directories = &context.directories;
    for (name, path) in [
        ("cache", &directories.cache),
        ("config", &directories.config),
        ("data", &directories.data),
        ("state", &directories.state),
        ("runtime", &directories.runtime),
    ] {
        let _ = writeln!(text, "{name} directory: {}", path.display());
    }
    match context.key_chain().map(|keys| keys.origin()) {
        Ok(Ok(Some(origin))) => {
            let _ = writeln!(text, "API key: from {origin}");
        }
        Ok(Ok(None)) => text.push_str("API key: none\n"),
        Ok(Err(error)) => {
            let _ = writeln!(text, "API key: {error}");
        }
        Err(failure) => {
            let _ = writeln!(text, "API key: {}", failure.message);
        }
    }
    text
}

/// The rows about FUSE; what else is mounted is nobody's business.
fn mounts() -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let rows = table.lines().filter(|row| row.contains(" - fuse"));
    rows.fold(String::new(), |text, row| text + row + "\n")
}
