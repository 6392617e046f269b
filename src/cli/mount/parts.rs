//! What the processes of a mount do, each its part: one starts, one keeps, one serves, and
//! one only sees whether it could.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::sync::Arc;

use super::{Plan, Role};
use crate::care::keeper::Keeper;
use crate::cli::failure::Failure;
use crate::cli::logging::{self, Log, Target, Verbosity};
use crate::cli::shared::{Context, runtime};
use crate::config::service::ServiceManager;
use crate::config::{self, Origin};
use crate::error::Error;
use crate::mount::background::{self, Starter, Supervisor};
use crate::mount::demo::Demo;
use crate::mount::fdstore::Store;
use crate::mount::{self, Ending, MountOptions, daemon, keeper, touch, upgrade};
use crate::paths::Directories;

/// What is added to the arguments, as one more, to make another process the daemon, or the keeper
/// that starts it again and again. Behind those of mount(8) without the dashes.
pub(super) const DAEMON_MARK: [&str; 2] = ["--__daemon", "__daemon"];
pub(super) const KEEPER_MARK: [&str; 2] = ["--__keeper", "__keeper"];

/// How to start this program again: its arguments, and which of the marks makes it another process.
#[derive(Debug, Clone)]
pub(super) struct Again {
    pub(super) arguments: Vec<OsString>,
    /// Which of two spellings a mark has.
    pub(super) style: usize,
}

impl Again {
    fn with(&self, marks: [&str; 2]) -> Vec<OsString> {
        let mark = OsString::from(marks[self.style]);
        self.arguments.iter().cloned().chain([mark]).collect()
    }
}

/// Plays the plan's part.
pub(super) fn run_with(plan: Plan, again: &Again) -> Result<(), Failure> {
    match plan.role {
        Role::Check => {
            plan.check()?;
            let log = plan.start_log()?;
            runtime()?.block_on(prepare(plan, log)).map(drop)
        }
        Role::Starter => {
            plan.check()?;
            start(&plan, again)
        }
        Role::Foreground => {
            if !config::has_arenas() {
                // The same process, so that whoever started it still knows it. Where that cannot be
                // done it goes on, and takes more memory.
                let _ = touch::this_program().args(&again.arguments).exec();
            }
            // What has been kept goes on with whatever there is, as after a daemon that died.
            if ServiceManager::from_env().is_none_or(|manager| manager.kept.is_empty()) {
                plan.check()?;
            }
            let supervisor = service_manager(&plan)?;
            serve(plan, supervisor)
        }
        Role::Daemon => {
            // First of all: it must not be done beside other threads.
            let supervisor = Supervisor::take_over().map_err(|error| {
                Failure::usage(format!("only for the background process: {error}"))
            })?;
            serve(plan, Some(supervisor)).map_err(told)
        }
    }
}

/// The service manager, if it keeps mounts. First of all, as for other supervisors.
fn service_manager(plan: &Plan) -> Result<Option<Supervisor>, Failure> {
    let manager = ServiceManager::from_env();
    let manager = manager.filter(|manager| {
        !plan.demo && (plan.fd_store || manager.keeps || !manager.kept.is_empty())
    });
    let Some(manager) = manager else {
        if plan.fd_store {
            return Err(Failure::usage(
                "--fd-store is for a service of Type=notify: nobody asks to be notified",
            ));
        }
        return Ok(None);
    };
    let store = Store::take_over(manager)
        .map_err(|error| Error::io("the service manager's descriptors", error))?;
    Ok(Some(Supervisor::ServiceManager(store)))
}

/// Plays the keeper.
pub(super) fn keep() -> Result<(), Failure> {
    let only = |error| Failure::usage(format!("only for the background process: {error}"));
    let signals = keeper::Signals::block().map_err(only)?;
    let starter = Starter::take_over().map_err(only)?;
    let plan = starter.plan().map_err(only)?;
    let log = Directories::from_env().and_then(|directories| {
        logging::init(Target::Background, Verbosity::default(), &directories)
    });
    if let Err(error) = log {
        return Err(told(tell(Some(Supervisor::Starter(starter)), error.into())));
    }
    keeper::run(plan, starter, signals).map_err(|error| told(error.into()))
}

/// A failure that somebody else has been told of, and tells.
fn told(failure: Failure) -> Failure {
    Failure::text(failure.code, "")
}

fn start(plan: &Plan, again: &Again) -> Result<(), Failure> {
    plan.start_log()?;
    let program = touch::this_program();
    // What the demonstration shows is in the daemon, and gone when that is: nobody could go on.
    let started = if plan.demo {
        background::start(program, again.with(DAEMON_MARK), background::PATIENCE)?
    } else {
        let keeper = keeper_plan(plan, again)?;
        let arguments = again.with(KEEPER_MARK);
        background::start_keeper(program, arguments, &keeper, background::PATIENCE)?
    };
    if !started.warmed_up {
        tracing::warn!("the mount could not be warmed up; it works, with more requests");
    }
    tracing::info!(
        "mounted on {}, {} by process {}",
        started.dir.display(),
        if plan.demo { "served" } else { "kept" },
        started.pid
    );
    Ok(())
}

fn keeper_plan(plan: &Plan, again: &Again) -> Result<keeper::Plan, Failure> {
    let link = |path: &str| std::fs::read_link(path).map_err(|error| Error::io(path, error));
    Ok(keeper::Plan {
        dir: plan.mountpoint.clone().into(),
        options: MountOptions {
            allow_other: plan.context.config.allow_other.value,
            ..plan.options.clone()
        },
        program: upgrade::installed_program()
            .map_err(|error| Error::io("/proc/self/exe", error))?,
        invocation: keeper::Invocation {
            arguments: again.with(DAEMON_MARK),
            directory: link("/proc/self/cwd")?,
        },
        marker: plan.context.config.marker.value,
        runtime_dir: Some(plan.context.directories.runtime.clone()),
        timing: keeper::Timing::default(),
    })
}

/// Mounts, serves, and tells the supervisor, if there is one, of whatever keeps it from that.
fn serve(plan: Plan, supervisor: Option<Supervisor>) -> Result<(), Failure> {
    let prepared = plan.start_log().and_then(|log| Ok((log, runtime()?)));
    let (log, runtime) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return Err(tell(supervisor, failure)),
    };
    let ending = runtime.block_on(async {
        match prepare(plan, log).await {
            Ok((daemon, _demo)) => daemon::run(daemon, supervisor).await.map_err(Failure::from),
            Err(failure) => Err(tell(supervisor, failure)),
        }
    });
    if matches!(ending, Ok(Ending::Retired) | Err(_)) {
        // Somebody else answers what is under way here: ending the tasks would answer it with an
        // error first. The process ends now anyway.
        std::mem::forget(runtime);
    }
    ending.map(drop)
}

/// Everything that can fail before the mount is tried; the demo's registry lives as long as the
/// returned guard.
async fn prepare(mut plan: Plan, log: Log) -> Result<(daemon::Plan, Option<Demo>), Failure> {
    let demo = if plan.demo {
        let demo = Demo::start().await?;
        demo.adjust(&mut plan.context.config, &mut plan.context.directories);
        Some(demo)
    } else {
        None
    };
    let client = plan.context.unlimited_client()?;
    let state = plan.context.directories.own_state();
    let keeper = Keeper::new(&client, &state, plan.context.config.cache_limit());
    let Context {
        config,
        directories,
        ..
    } = plan.context;
    plan.options.allow_other = config.allow_other.value;
    let daemon = daemon::Plan {
        dir: plan.mountpoint,
        options: plan.options,
        marker: config.marker.value,
        client,
        keeper,
        registry: config.registry().to_string(),
        user_xattr: config.user_xattr.value,
        threads: config.threads.value,
        runtime_dir: Some(directories.runtime),
        set_log: Some(Arc::new(move |level| {
            let verbosity = level.parse()?;
            log.set_verbosity(verbosity)
                .map_err(|error| error.to_string())
        })),
        needs_metrics: matches!(config.metrics.origin, Origin::Flag(_)),
        metrics: config.metrics.value,
    };
    Ok((daemon, demo))
}

fn tell(supervisor: Option<Supervisor>, failure: Failure) -> Failure {
    if let Some(supervisor) = supervisor {
        supervisor.failed(mount::Failure {
            message: failure.message.clone(),
            hint: failure.hint.clone(),
            exit_code: failure.code,
        });
    }
    failure
}
