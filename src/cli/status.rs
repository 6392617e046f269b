//! `musherfs status`: what the running mounts of this user say.

use std::fmt::Write as _;

use serde::Serialize;

use super::failure::{Exit, Failure, printable};
use super::output::{self, Align, Table, size};
use super::shared::runtime;
use crate::error::Error;
use crate::mount::control::status::State;
use crate::mount::control::unserved::{self, Unserved};
use crate::mount::control::{Status, client};
use crate::mount::mountinfo::MountTable;
use crate::mount::touch;
use crate::paths::Directories;

/// How many waiting requests and failures are printed for people.
const MOST: usize = 5;

/// Show the running mounts
///
/// Asks their daemons over a socket, never through the mount, so it answers within a second also
/// when the network hangs. A mount that has lost its daemon is shown as `dead`, one whose daemon does
/// not answer as `stuck`, and one that was unmounted while it was in use, and is served to its last
/// users, as `detached`. Of a system service, only root sees the mounts.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs status
  musherfs status -l                    also sources, waiting requests, failures
  musherfs status --json | jq '.[].reads.hitRate'

Exit status:
  0 if all mounts answered, also if there are none; 5 if one is dead, stuck or did not answer")]
pub(super) struct Args {
    /// Print JSON, with all counters
    #[arg(long)]
    json: bool,

    /// Say more of each mount
    #[arg(short, long)]
    long: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    let asking = client::all(&directories.runtime);
    let all = runtime()?
        .block_on(asking)
        .map_err(|error| Error::io(&directories.runtime, error))?;
    let mounts = MountTable::read().map_err(|error| Error::io("/proc/self/mountinfo", error))?;
    let unserved = unserved::unserved(
        &directories.runtime,
        &mounts,
        &all.mounts,
        &|dir, patience| touch::ask_elsewhere(touch::this_program(), dir, patience),
    );
    if args.json {
        let served = all.mounts.iter().map(Row::Served);
        let rows: Vec<Row<'_>> = served.chain(unserved.iter().map(Row::Unserved)).collect();
        output::json(&rows)?;
    } else if args.long {
        for status in &all.mounts {
            output::write_all(describe(status).as_bytes())?;
        }
        for one in &unserved {
            output::write_all(describe_unserved(one).as_bytes())?;
        }
    } else {
        table(&all.mounts, &unserved).print()?;
    }
    if all.mounts.is_empty() && all.silent.is_empty() && unserved.is_empty() {
        output::note("nothing is mounted");
    }
    match (all.silent.as_slice(), unserved.as_slice()) {
        ([], []) => Ok(()),
        (_, [first, ..]) => {
            let (dir, word) = (first.mountpoint.display(), word(first.state));
            let why = match (first.state, all.silent.first()) {
                (unserved::State::Dead, _) => "its daemon is gone".to_owned(),
                (unserved::State::Stuck, None) => "it does not answer".to_owned(),
                (unserved::State::Stuck, Some(silent)) => {
                    format!("process {} does not answer: {}", silent.pid, silent.error)
                }
            };
            Err(Failure::text(
                Exit::Timeout,
                format!("the mount on {dir} is {word}: {why}"),
            )
            .with_hint(Some(first.remedy.clone())))
        }
        ([first, ..], []) => Err(Failure::text(
            Exit::Timeout,
            format!("process {} does not answer: {}", first.pid, first.error),
        )
        .with_hint(Some(
            "`musherfs doctor` tells whether its mount still serves",
        ))),
    }
}

/// What `--json` prints of a mount.
#[derive(Serialize)]
#[serde(untagged)]
enum Row<'a> {
    Served(&'a Status),
    Unserved(&'a Unserved),
}

fn word(state: unserved::State) -> &'static str {
    match state {
        unserved::State::Dead => "dead",
        unserved::State::Stuck => "stuck",
    }
}

fn state(status: &Status) -> String {
    match (status.state, status.sources.as_slice()) {
        (State::Detached, _) => "detached".to_owned(),
        (State::Mounted, []) => "offline".to_owned(),
        (State::Mounted, sources) => {
            let states: Vec<&str> = sources.iter().map(|source| source.state.as_str()).collect();
            states.join(",")
        }
    }
}

fn percent(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.0}%", rate * 100.0))
}

fn table(all: &[Status], unserved: &[Unserved]) -> Table {
    let mut table = Table::new([
        ("MOUNTPOINT", Align::Left),
        ("REGISTRY", Align::Left),
        ("STATE", Align::Left),
        ("HITS", Align::Right),
        ("CACHE", Align::Right),
        ("WAITING", Align::Right),
        ("PID", Align::Right),
        ("UPTIME", Align::Right),
    ]);
    for status in all {
        table.row([
            status.mountpoint.display().to_string(),
            status.registry.clone(),
            state(status),
            percent(status.reads.hit_rate),
            size(status.cache.bytes),
            status.in_flight.len().to_string(),
            status.pid.to_string(),
            time(status.uptime_seconds),
        ]);
    }
    for one in unserved {
        let [dir, state] = [one.mountpoint.display().to_string(), word(one.state).into()];
        let rest = std::iter::repeat_n("-".to_owned(), 5);
        table.row([dir, "-".to_owned(), state].into_iter().chain(rest));
    }
    table
}

fn describe_unserved(one: &Unserved) -> String {
    format!(
        "{:<12}{}\n{:<12}{}\n{:<12}{}\n\n",
        "mountpoint",
        printable(&one.mountpoint.display().to_string()),
        "state",
        word(one.state),
        "hint",
        printable(&one.remedy)
    )
}

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{}", printable(&value));
    };
    let dir = status.mountpoint.display();
    line("mountpoint", dir.to_string());
    if status.state == State::Detached {
        line(
            "state",
            "detached: served to those who use it still, out of reach for others".to_owned(),
        );
        line("hint", format!("`musherfs mount {dir}` mounts it again"));
    }
    line(
        "daemon",
        format!(
            "process {}, musherfs {}, up {}",
            status.pid,
            status.version,
            time(status.uptime_seconds)
        ),
    );
    line("registry", status.registry.clone());
    if status.sources.is_empty() {
        line("source", "none: offline".to_owned());
    }
    for source in &status.sources {
        let mut value = format!("{}: {}", source.name, source.state);
        if let Some(seconds) = source.retry_in_seconds {
            let _ = write!(value, ", asked again in {seconds:.0} s");
        }
        if let Some(error) = &source.error {
            let _ = write!(value, " ({error})");
        }
        if let Some(notice) = &source.notice {
            let _ = write!(value, "; {notice}");
        }
        line("source", value);
    }
    line(
        "cache",
        format!(
            "{} in {} blobs, {}",
            size(status.cache.bytes),
            status.cache.blobs,
            status.cache.location.display()
        ),
    );
    let process = &status.process;
    line(
        "takes",
        format!(
            "{} of memory, {} descriptors, {} threads, {} tasks",
            size(process.resident_bytes),
            process.descriptors,
            process.threads,
            process.tasks
        ),
    );
    let reads = &status.reads;
    line(
        "reads",
        format!(
            "{} warm, {} cold ({} hits), {} read, {} fetched",
            reads.warm,
            reads.cold,
            percent(reads.hit_rate),
            size(reads.bytes),
            size(reads.fetched_bytes)
        ),
    );
    for one in status.in_flight.iter().take(MOST) {
        let path = one.path.as_deref().unwrap_or("?");
        let (operation, pid, age) = (&one.operation, one.pid, one.age_seconds);
        line(
            "waiting",
            format!("{operation} {path} for {age:.1} s (process {pid})"),
        );
    }
    if let Some(more) = status.in_flight.len().checked_sub(MOST + 1) {
        line("waiting", format!("and {} more", more + 1));
    }
    for failure in status.failures.iter().take(MOST) {
        let path = failure.path.as_deref().unwrap_or("?");
        line(
            "failure",
            format!(
                "{} {path}: {} ({}; {} times, last at {:.0})",
                failure.operation, failure.message, failure.errno, failure.times, failure.at
            ),
        );
    }
    text.push('\n');
    text
}

/// The two largest units.
pub(super) fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
