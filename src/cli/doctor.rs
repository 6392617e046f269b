//! `musherfs doctor`: what keeps a mount from working, and what to do about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::failure::{Exit, Failure, printable};
use super::mount::DEFAULT_MOUNTPOINT;
use super::output;
use super::shared::{Context, SourceArgs, runtime};
use crate::config::{self, Origin, Overrides, value};
use crate::credentials::docker::LoginFiles;
use crate::doctor::{self, Area, Finding, Level, Probe};
use crate::error::Error;
use crate::mount::control::Status;
use crate::mount::control::client::{self, Answers};
use crate::mount::control::status::{SourceStatus, State};
use crate::mount::mountinfo::MountTable;
use crate::mount::touch;
use crate::source::api::API_KIND;

/// Look for whatever keeps mounts from working, and say what to do about it
///
/// Looks at FUSE, security policies, existing mounts, the mountpoint, the cache, the key and logins, and
/// asks the registry and its mirrors. Changes nothing, prints no key, and ends within a second also when a mount or the
/// registry hangs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs doctor
  musherfs doctor ~/bundles --all
  musherfs doctor --json | jq -r '.[] | select(.level != \"ok\") | .remedy'

Exit status, by the worst finding:
  0 all is well; 1 only warnings; otherwise by the first failure: 2 the key, 3 the way to the
  registry, 4 a setting, 5 something that took too long, 6 this machine")]
pub(super) struct Args {
    /// Where the mount is, or is to be
    #[arg(default_value = DEFAULT_MOUNTPOINT)]
    mountpoint: PathBuf,

    /// Also print what is as it should be
    #[arg(short, long)]
    all: bool,

    /// Print JSON: a list of {id, level, message, remedy}
    #[arg(long)]
    json: bool,

    /// How long the registry may take [default: 700ms]
    #[arg(long, value_name = "TIME", value_parser = value::timeout)]
    timeout: Option<Duration>,

    /// Look at a mount that lets other users see it
    #[arg(long)]
    allow_other: bool,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut overrides = Overrides {
        allow_other: super::shared::given(args.allow_other),
        ..Overrides::default()
    };
    args.source.apply(&mut overrides)?;
    let timeout = args.timeout.unwrap_or(doctor::PATIENCE);
    let dir = std::path::absolute(&args.mountpoint)
        .map_err(|error| Error::io(&args.mountpoint, error))?;
    let findings = match Context::load(overrides, args.source.api_key()) {
        Ok(mut context) => {
            let daemons = Daemons::ask(&context)?;
            daemons.adopt_registry(&dir, &mut context);
            let mut findings = examine(&context, dir, timeout)?;
            findings.extend(daemons.findings());
            findings
        }
        Err(failure) if failure.code == u8::from(Exit::Configuration) => {
            vec![Finding::bad_setting(failure.message)]
        }
        Err(failure) => return Err(failure),
    };
    if args.json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            if args.all || finding.level > Level::Ok {
                print(finding)?;
            }
        }
        let bad = findings
            .iter()
            .filter(|one| one.level > Level::Info)
            .count();
        let all = findings.len();
        output::line(&format!("{} of {all} checks are fine", all - bad))?;
    }
    match doctor::worst(&findings).map(exit) {
        None | Some(None) => Ok(()),
        Some(Some(exit)) => Err(Failure::printed(exit)),
    }
}

/// How long the daemons may take together.
const DAEMONS: Duration = Duration::from_millis(200);

/// What the running daemons say.
struct Daemons(Answers);

impl Daemons {
    fn ask(context: &Context) -> Result<Self, Failure> {
        let asking = client::all_within(&context.directories.runtime, DAEMONS);
        // A directory that cannot be used is a finding of its own.
        Ok(Self(runtime()?.block_on(asking).unwrap_or_default()))
    }

    /// The mount that is reached at this path, which those that were detached from it are not.
    fn mounted_on(&self, dir: &Path) -> Option<&Status> {
        let is_there = |one: &&Status| one.mountpoint == dir && one.state == State::Mounted;
        self.0.mounts.iter().find(is_there)
    }

    /// Who asks about a mount means the registry of that mount, unless they name another.
    fn adopt_registry(&self, dir: &Path, context: &mut Context) {
        let config = &mut context.config;
        if let Some(status) = self.mounted_on(dir)
            && config.api_url.origin == Origin::Default
            && config.oci_registry_url.is_none()
            && let Ok(registry) = status.registry.parse()
        {
            let is_api = |source: &SourceStatus| source.name.starts_with(API_KIND);
            if status.sources.is_empty() {
                config.api_url.value = registry;
                config.offline.value = true;
            } else if status.sources.iter().any(is_api) {
                config.api_url.value = registry;
            } else {
                // Never asked with the key of the API.
                config.oci_registry_url.value = Some(registry);
            }
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let silent = self.0.silent.iter();
        let mut findings: Vec<Finding> = silent
            .map(|silent| Finding::silent_daemon(silent.pid, &silent.error.to_string()))
            .collect();
        findings.extend(
            self.0
                .mounts
                .iter()
                .filter(|status| status.version != env!("CARGO_PKG_VERSION"))
                .map(|status| Finding::other_version(&status.mountpoint, &status.version)),
        );
        let detached = self.0.mounts.iter();
        for status in detached.filter(|one| one.state == State::Detached) {
            let dir = &status.mountpoint;
            let is_replaced = self.mounted_on(dir).is_some();
            findings.push(Finding::detached(dir, status.pid, is_replaced));
        }
        for status in &self.0.mounts {
            let told = status.sources.iter().filter_map(|source| {
                let notice = source.notice.as_deref()?;
                Some(Finding::notice(&status.mountpoint, &source.name, notice))
            });
            findings.extend(told);
        }
        findings
    }
}

/// Looks at this machine.
pub(super) fn examine(
    context: &Context,
    mountpoint: PathBuf,
    patience: Duration,
) -> Result<Vec<Finding>, Failure> {
    let probe = Probe {
        root: "/".into(),
        is_root: rustix::process::geteuid().is_root(),
        directories: context.directories.clone(),
        config: context.config.clone(),
        keys: context.key_chain()?,
        logins: LoginFiles::from_env(),
        mountpoint,
        table: MountTable::read().unwrap_or_default(),
        proxies: config::proxies(),
        space: doctor::space,
        ask: Arc::new(|dir, patience| touch::ask_elsewhere(touch::this_program(), dir, patience)),
        patience,
    };
    Ok(runtime()?.block_on(probe.run()))
}

fn exit(finding: &Finding) -> Option<Exit> {
    match (finding.level, finding.area) {
        (Level::Ok | Level::Info, _) => None,
        (Level::Warn, _) => Some(Exit::General),
        (Level::Fail, Area::Key) => Some(Exit::Authentication),
        (Level::Fail, Area::Network) => Some(Exit::Network),
        (Level::Fail, Area::Configuration) => Some(Exit::Configuration),
        (Level::Fail, Area::Time) => Some(Exit::Timeout),
        (Level::Fail, Area::Machine) => Some(Exit::Execution),
    }
}

fn print(finding: &Finding) -> Result<(), Failure> {
    output::line(&format!(
        "{:<5}{}: {}",
        finding.level,
        finding.id,
        printable(&finding.message)
    ))?;
    match &finding.remedy {
        Some(remedy) => output::line(&format!("     hint: {}", printable(remedy))),
        None => Ok(()),
    }
}
