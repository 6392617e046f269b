//! `musherfs mount`: what is asked for, by people, by mount(8), or by another process of a mount.

mod parts;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::failure::Failure;
use super::logging::{self, Log, Target, Verbosity};
use super::output;
use super::shared::{Context, SourceArgs, given};
use crate::config::{self, Overrides, value};
use crate::error::Error;
use crate::mount::helper::{self, HelperCall, Setting};
use crate::mount::{MountOptions, invalidate, keeper, service, touch};
use crate::paths;
use crate::reference::Namespace;
use parts::{Again, DAEMON_MARK, KEEPER_MARK, keep, run_with};

/// Where bundles are mounted when nobody says where.
pub(super) const DEFAULT_MOUNTPOINT: &str = "/mnt/musher";

const HELP: &str = "\
Examples:
  musherfs mount
  musherfs mount --namespace acme ~/bundles
  musherfs mount --oci ghcr.io --namespace my-org
  musherfs mount --oci registry.example.com/team --mirror https://cache.example.com:5000
  musherfs mount --api-url http://127.0.0.1:8787 --foreground /tmp/m
  musherfs mount -o user_xattr,allow_other,readahead=0     as in fstab

In /etc/fstab:
  musherfs  /mnt/musher  fuse.musherfs  allow_other,nofail,api_key_file=/etc/musher/key  0  0

What has a variable, but keys and passwords, can also stand in config.yaml: `api.url`,
`network.ca_cert_file`, `oci.registry_url`, and all others below `mount:`, such as
`mount.readahead` for MUSHERFS_READAHEAD; `man musherfs.conf` lists them.";

/// Mount all bundles as files
///
/// Returns once the mount answers, and goes on in the background. Mounting needs no network.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(super) struct Args {
    /// An empty directory; it is created if it is missing
    #[arg(default_value = DEFAULT_MOUNTPOINT)]
    mountpoint: PathBuf,

    /// Stay in the foreground, and log to stderr
    #[arg(short, long)]
    foreground: bool,

    /// Have the service manager keep the mount when this process ends, and go on with what it has
    /// kept; without asking where systemd (254 or later) says that it can. Needs a unit with
    /// Type=notify, FileDescriptorStoreMax= and KillMode=process
    #[arg(long, requires = "foreground")]
    fd_store: bool,

    /// Mount nothing; only say whether it could be served: whether settings and credentials can be
    /// used, and cache and state be opened
    #[arg(long, conflicts_with = "daemon")]
    check: bool,

    /// Show sample bundles from a registry inside this program
    #[arg(long, conflicts_with_all = ["api_url", "oci", "mirrors", "offline"])]
    demo: bool,

    /// Mount options as in fstab: NAME[=VALUE], with `_` for `-`, for what has a variable below
    /// (keys and passwords only as files)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,

    /// List this namespace even if nothing of it is cached; can be repeated
    /// [env: MUSHERFS_NAMESPACES]
    #[arg(long = "namespace", value_name = "NAMESPACE", value_delimiter = ',', value_parser = value::namespace)]
    namespaces: Vec<Namespace>,

    /// Let other users see the mount, private bundles included [env: MUSHERFS_ALLOW_OTHER]
    #[arg(long)]
    allow_other: bool,

    /// Refuse yanked versions even if they are named exactly [env: MUSHERFS_DENY_YANKED]
    #[arg(long)]
    deny_yanked: bool,

    /// Hide cached versions that the registry has removed [env: MUSHERFS_RESPECT_REMOVAL]
    #[arg(long)]
    respect_removal: bool,

    /// Let bundles packed on this machine win over the registry's [env: MUSHERFS_LOCAL_PACKS]
    #[arg(long)]
    local_packs: bool,

    /// Tell what is known of a file in user.musher.* attributes, which makes `ls -l` slower
    /// [env: MUSHERFS_USER_XATTR]
    #[arg(long)]
    user_xattr: bool,

    /// How far to fetch ahead of readers; 0 fetches only what is read
    /// [env: MUSHERFS_READAHEAD] [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = value::size)]
    readahead: Option<u64>,

    /// How long a name or a list of files may take [env: MUSHERFS_METADATA_TIMEOUT] [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = value::timeout)]
    metadata_timeout: Option<Duration>,

    /// How long a file's content may take [env: MUSHERFS_CONTENT_TIMEOUT] [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = value::timeout)]
    content_timeout: Option<Duration>,

    /// Keep the cache below this size, such as 2GiB: what was least recently read goes first, and
    /// what is pinned stays; at least 1MiB, 0 is without a limit [env: MUSHERFS_CACHE_MAX_SIZE] [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = value::cache_size)]
    cache_max_size: Option<u64>,

    /// Show only what this lockfile names, as `musherfs lock` writes it [env: MUSHERFS_LOCKED]
    #[arg(long, value_name = "FILE")]
    locked: Option<PathBuf>,

    /// How many threads answer the kernel, 2 to 4 [env: MUSHERFS_THREADS] [default: as many as CPUs]
    #[arg(long, value_name = "N", value_parser = value::threads)]
    threads: Option<usize>,

    /// Leave a file NOT-MOUNTED in the directory beneath the mount, for whoever looks too early
    /// [env: MUSHERFS_MARKER]
    #[arg(long)]
    marker: bool,

    /// Serve numbers for monitoring (/metrics in Prometheus text, /healthz, /readyz) on a loopback
    /// address with a port, or on unix:PATH [env: MUSHERFS_METRICS]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<value::MetricsAddress>,

    #[command(flatten)]
    source: SourceArgs,

    /// This is the process that serves, and whoever started it waits for its report
    #[arg(long = "__daemon", hide = true, conflicts_with = "foreground")]
    daemon: bool,
}

/// Which part of a mount this process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Prepares, and leaves it at that.
    Check,
    /// Mounts, and serves until it is told to end.
    Foreground,
    /// Starts the keeper, or for a demonstration the daemon, and waits until the mount answers.
    Starter,
    /// Serves, and reports to whoever started it.
    Daemon,
}

/// A mount as it was asked for: all settings known, nothing done yet.
pub(super) struct Plan {
    /// Absolute.
    pub(super) mountpoint: PathBuf,
    pub(super) options: MountOptions,
    pub(super) role: Role,
    pub(super) demo: bool,
    pub(super) fd_store: bool,
    pub(super) verbosity: Verbosity,
    pub(super) context: Context,
}

impl Plan {
    pub(super) fn new(args: Args, verbosity: Verbosity) -> Result<Self, Failure> {
        let mut overrides = Overrides::default();
        let (options, settings) = helper::parse_options(&args.options).map_err(option_failure)?;
        apply(&settings, &mut overrides)?;
        args.source.apply(&mut overrides)?;
        overrides.namespaces.extend(args.namespaces);
        overrides.allow_other = given(args.allow_other || options.allow_other);
        overrides.deny_yanked = given(args.deny_yanked).or(overrides.deny_yanked);
        overrides.respect_removal = given(args.respect_removal).or(overrides.respect_removal);
        overrides.local_packs = given(args.local_packs).or(overrides.local_packs);
        overrides.user_xattr = given(args.user_xattr).or(overrides.user_xattr);
        overrides.readahead = args.readahead.or(overrides.readahead);
        overrides.metadata_timeout = args.metadata_timeout.or(overrides.metadata_timeout);
        overrides.content_timeout = args.content_timeout.or(overrides.content_timeout);
        overrides.threads = args.threads.or(overrides.threads);
        overrides.cache_max_size = args.cache_max_size.or(overrides.cache_max_size);
        overrides.locked = args.locked.or(overrides.locked);
        overrides.marker = given(args.marker).or(overrides.marker);
        overrides.metrics = args.metrics.or(overrides.metrics);

        Ok(Self {
            mountpoint: absolute(&args.mountpoint)?,
            options,
            role: match (args.check, args.foreground, args.daemon) {
                (true, ..) => Role::Check,
                (false, true, _) => Role::Foreground,
                (false, false, true) => Role::Daemon,
                (false, false, false) => Role::Starter,
            },
            demo: args.demo,
            fd_store: args.fd_store,
            verbosity,
            context: Context::load(overrides, args.source.api_key())?,
        })
    }

    /// The plan for `mount -t fuse.musherfs SOURCE DIR -o …`.
    fn for_mount8(call: HelperCall, role: Role) -> Result<Self, Failure> {
        let mut overrides = Overrides::default();
        if let Some(text) = &call.api_url {
            let url = value::url(text)
                .map_err(|problem| Failure::usage(format!("cannot mount from it: {problem}")))?;
            overrides.api_url = Some(url);
        }
        apply(&call.settings, &mut overrides)?;
        overrides.allow_other = given(call.options.allow_other);
        Ok(Self {
            mountpoint: absolute(&call.dir)?,
            options: call.options,
            role,
            demo: false,
            fd_store: false,
            verbosity: Verbosity::new(call.verbose.into(), false),
            context: Context::load(overrides, None)?,
        })
    }

    /// Refuses a mount that could only fail its readers, while somebody is there to be told.
    fn check(&self) -> Result<(), Failure> {
        if self.demo {
            return Ok(());
        }
        self.context.check()
    }

    /// Starts the log that fits the role.
    fn start_log(&self) -> Result<Log, Failure> {
        let target = match self.role {
            Role::Foreground => Target::Foreground,
            Role::Starter | Role::Check => Target::Command,
            Role::Daemon => Target::Background,
        };
        let log = logging::init(target, self.verbosity, &self.context.directories)?;
        // The daemon would only repeat what its starter has said.
        if self.role != Role::Daemon {
            self.context.log_warnings();
        }
        for (name, text, origin) in self.context.config.explain() {
            tracing::debug!("{name} = {text} ({origin})");
        }
        Ok(log)
    }
}

/// An option that does nothing would be worse than none, so an unknown one is an error.
fn apply(settings: &[Setting], overrides: &mut Overrides) -> Result<(), Failure> {
    for (name, text) in settings {
        match overrides.set(name, text.as_deref()) {
            Ok(true) => {}
            Ok(false) => return Err(option_failure(format!("unknown mount option {name}"))),
            Err(problem) => return Err(Failure::usage(format!("mount option {name}: {problem}"))),
        }
    }
    Ok(())
}

fn option_failure(problem: String) -> Failure {
    Failure::usage(problem).with_hint(Some("`musherfs mount --help` lists the options"))
}

/// The background process has another working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    paths::absolute(path).map_err(|error| Error::io(path, error).into())
}

/// What mount(8) expects of a helper: 1 for a wrong call, 32 for a mount that failed.
const MOUNT8: (u8, u8) = (1, 32);

/// Does what is asked for in another way than by a subcommand for people: by mount(8), which has
/// its own conventions, or by this program itself. `None` if the arguments are for people.
pub(super) fn called_by_machine(arguments: &[OsString]) -> Option<Result<(), Failure>> {
    // First of all, and without reading the other arguments: a keeper stays small.
    let last = arguments.last()?.to_str();
    if last.is_some_and(|last| KEEPER_MARK.contains(&last)) {
        return Some(keep());
    }
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some(touch::SUBCOMMAND) => return Some(touch_mount(arguments.get(2))),
        Some(touch::PROBE_SUBCOMMAND) => {
            let dir = arguments.get(2).map_or(Path::new("/"), Path::new);
            return Some(Err(Failure::text(touch::probe(dir), "")));
        }
        Some(keeper::probe::SUBCOMMAND) => return Some(probe_mount(arguments.get(2))),
        Some(invalidate::SUBCOMMAND) => {
            let wrong = |error| Failure::usage(format!("only for the daemon: {error}"));
            return Some(invalidate::help().map_err(wrong));
        }
        Some(service::SUBCOMMAND) => {
            return Some(watch_mount(arguments.get(2), arguments.get(3)));
        }
        _ => {}
    }
    let (arguments, role) = match arguments.split_last() {
        Some((last, others)) if last == DAEMON_MARK[1] => (others, Role::Daemon),
        _ => (arguments, Role::Starter),
    };
    if helper::asks_for_help(arguments) {
        return Some(output::line(helper::USAGE));
    }
    let call = helper::parse_mount_helper(arguments)?;
    let wrong = |failure: Failure| Failure {
        code: MOUNT8.0,
        ..failure
    };
    let failed = |failure: Failure| match failure.code {
        0 => failure,
        _ => Failure {
            code: MOUNT8.1,
            ..failure
        },
    };
    Some(match call {
        Err(problem) => Err(Failure::text(MOUNT8.0, problem)),
        Ok(call) if call.fake => Plan::for_mount8(call, role).map(drop).map_err(wrong),
        Ok(call) => Plan::for_mount8(call, role)
            .map_err(wrong)
            .and_then(|plan| {
                let again = Again {
                    arguments: arguments[1..].to_vec(),
                    style: 1,
                };
                run_with(plan, &again).map_err(failed)
            }),
    })
}

/// Touches somebody's mount for its daemon, which must not do that itself.
fn touch_mount(dir: Option<&OsString>) -> Result<(), Failure> {
    let dir = dir.ok_or_else(|| Failure::usage("which mount?"))?;
    touch::warm_up(Path::new(dir)).map_err(|error| Error::io(dir, error).into())
}

/// Asks somebody's mount whether it answers, for its keeper, which must not do that itself.
fn probe_mount(dir: Option<&OsString>) -> Result<(), Failure> {
    let dir = dir.ok_or_else(|| Failure::usage("which mount?"))?;
    keeper::probe::ask(dir).map_err(|error| Error::io(dir, error).into())
}

/// Feeds a service manager's watchdog while somebody's mount answers.
fn watch_mount(dir: Option<&OsString>, interval: Option<&OsString>) -> Result<(), Failure> {
    let interval = interval.and_then(|text| text.to_str()?.parse().ok());
    let (Some(dir), Some(interval)) = (dir, interval) else {
        return Err(Failure::usage("which mount, and how often?"));
    };
    service::watch(Path::new(dir), Duration::from_millis(interval))
        .map_err(|error| Error::io(dir, error).into())
}

pub(super) fn run(plan: Plan) -> Result<(), Failure> {
    let again = Again {
        arguments: config::command_line()
            .into_iter()
            .skip(1)
            .filter(|argument| argument != DAEMON_MARK[0])
            .collect(),
        style: 0,
    };
    run_with(plan, &again)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn plan(arguments: &[&str]) -> Result<Plan, Failure> {
        let line = Line::try_parse_from(std::iter::once(&"mount").chain(arguments));
        Plan::new(
            line.map_err(|e| Failure::usage(e.to_string()))?.args,
            Verbosity::default(),
        )
    }

    #[test]
    fn options_and_mount_options_say_the_same() {
        let long = plan(&[
            "--namespace=acme",
            "--deny-yanked",
            "--readahead=0",
            "--api-url=http://localhost:1/",
            "--insecure-http",
            "m",
        ]);
        let short = plan(&[
            "-o",
            "namespace=acme,deny_yanked,readahead=0",
            "-oapi_url=http://localhost:1,insecure-http",
            "m",
        ]);
        let (long, short) = (long.unwrap(), short.unwrap());
        assert_eq!(long.context.config, short.context.config);
        assert!(long.mountpoint.is_absolute());
        assert_eq!(*long.context.config.readahead, 0);
        assert!(*long.context.config.deny_yanked);
    }

    #[test]
    fn an_unknown_or_wrong_mount_option_is_wrong_usage() {
        for options in [
            "bogus",
            "readahead",
            "offline=perhaps",
            "remount",
            "namespace=.git",
        ] {
            let failure = plan(&["-o", options]).err().unwrap();
            assert_eq!(failure.code, 64, "{options}");
            assert!(failure.message.contains(options.split('=').next().unwrap()));
        }
    }

    #[test]
    fn mount8_gives_a_registry_and_settings() {
        let arguments = [
            "mount.musherfs",
            "https://registry.test",
            "/mnt/m",
            "-o",
            "rw,dev,namespace=acme,user_xattr",
        ];
        let call = helper::parse_mount_helper(&arguments.map(OsString::from));
        let plan = Plan::for_mount8(call.unwrap().unwrap(), Role::Starter).unwrap();
        assert_eq!(plan.role, Role::Starter);
        assert_eq!(
            plan.context.config.api_url.as_str(),
            "https://registry.test/"
        );
        assert!(*plan.context.config.user_xattr);
    }
}
