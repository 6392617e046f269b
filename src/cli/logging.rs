//! Where the log goes, and how much of it.
//!
//! ```text
//! a command       stderr, warnings
//! in foreground   stderr, with the time, information
//! in background   journald; else syslog; else <state>/musherfs/musherfs.log
//! ```
//!
//! What a command would say of a source that is down is held back until the command ends
//! ([`release`]): if it fails for just that reason, its error says it.
//!
//! `-v` adds a level, `-q` leaves only errors; `RUST_LOG` wins over both. The level can be changed
//! while the program runs ([`Log::set_verbosity`]). Other crates are heard from `warn` on.

mod held;
mod rotate;
mod syslog;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config;
use crate::error::{Error, Result};
use crate::paths::{Directories, ensure_private_dir};

pub use held::release;

/// How much is logged. The default: warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verbosity(LevelFilter);

impl Default for Verbosity {
    fn default() -> Self {
        Self(LevelFilter::WARN)
    }
}

impl Verbosity {
    /// What `-v` (so many times) or `-q` ask for.
    pub fn new(verbose: u8, quiet: bool) -> Self {
        if quiet {
            return Self(LevelFilter::ERROR);
        }
        (0..verbose).fold(Self::default(), |so_far, _| so_far.louder())
    }

    /// One level more; `-q` stays quiet.
    #[must_use]
    pub fn louder(self) -> Self {
        Self(match self.0 {
            LevelFilter::WARN => LevelFilter::INFO,
            LevelFilter::INFO => LevelFilter::DEBUG,
            LevelFilter::DEBUG => LevelFilter::TRACE,
            other => other,
        })
    }

    /// As a word, which [`str::parse`] reads.
    pub fn words() -> [&'static str; 5] {
        ["error", "warn", "info", "debug", "trace"]
    }

    fn filter(self) -> EnvFilter {
        let others = match self.0 {
            LevelFilter::ERROR => "error",
            LevelFilter::TRACE => "info",
            _ => "warn",
        };
        EnvFilter::new(format!("{others},musherfs={}", self.0))
    }
}

impl FromStr for Verbosity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !Self::words().contains(&text) {
            return Err(format!(
                "`{text}` is no level; there are {}",
                Self::words().join(", ")
            ));
        }
        text.parse()
            .map(Self)
            .map_err(|error| format!("`{text}`: {error}"))
    }
}

/// Who reads the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Somebody who waits for a command.
    Command,
    /// Somebody, or a supervisor, who watches stderr.
    Foreground,
    /// Nobody now: it must be found later.
    Background,
}

/// The filter's place in the stack of layers.
type Filter = reload::Layer<EnvFilter, Registry>;
type Output = Box<dyn Layer<Layered<Filter, Registry>> + Send + Sync>;

/// The running log.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    destination: Destination,
}

/// Where the log went in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The terminal, or whatever stderr is.
    Stderr,
    /// systemd's journal: `journalctl -t musherfs`.
    Journald,
    /// The system's log daemon.
    Syslog,
    /// This file.
    File(PathBuf),
}

impl Log {
    /// Logs more or less from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the log is gone, which happens only when the process ends.
    pub fn set_verbosity(&self, verbosity: Verbosity) -> Result<()> {
        self.filter
            .reload(verbosity.filter())
            .map_err(|error| Error::Internal(error.to_string()))
    }

    /// Where the log is.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }
}

/// Starts the log of a command that ends soon.
///
/// # Errors
///
/// As [`init`].
pub fn init_command(verbosity: Verbosity) -> Result<()> {
    let output = stderr_layer(Target::Command);
    start(output, Destination::Stderr, verbosity).map(drop)
}

/// Starts the log of this process. Daemons say one level more than commands do.
///
/// A background log that cannot be written goes to stderr instead, with a warning: a mount without
/// a log is better than none.
///
/// # Errors
///
/// [`Error::Config`] if `RUST_LOG` makes no sense; [`Error::Internal`] if there is a log already.
pub fn init(target: Target, verbosity: Verbosity, directories: &Directories) -> Result<Log> {
    let verbosity = match target {
        Target::Command => verbosity,
        Target::Foreground | Target::Background => verbosity.louder(),
    };
    let (output, destination, problem) = match target {
        Target::Command | Target::Foreground => (stderr_layer(target), Destination::Stderr, None),
        Target::Background => match background(&directories.own_state()) {
            Ok((output, destination)) => (output, destination, None),
            Err(error) => (
                stderr_layer(Target::Foreground),
                Destination::Stderr,
                Some(error),
            ),
        },
    };
    let log = start(output, destination, verbosity)?;
    if let Some(error) = problem {
        tracing::warn!("there is no log file: {error}");
    }
    Ok(log)
}

fn start(output: Output, destination: Destination, verbosity: Verbosity) -> Result<Log> {
    let (layer, filter) = reload::Layer::new(chosen_filter(verbosity)?);
    tracing_subscriber::registry()
        .with(layer)
        .with(output)
        .try_init()
        .map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Log {
        filter,
        destination,
    })
}

fn chosen_filter(verbosity: Verbosity) -> Result<EnvFilter> {
    match config::rust_log() {
        Some(text) => EnvFilter::builder()
            .parse(text)
            .map_err(|error| Error::Config(format!("RUST_LOG: {error}"))),
        None => Ok(verbosity.filter()),
    }
}

fn stderr_layer(target: Target) -> Output {
    let layer = fmt::layer().with_target(false);
    // The default obeys NO_COLOR.
    let layer = if io::stderr().is_terminal() {
        layer
    } else {
        layer.with_ansi(false)
    };
    if target == Target::Command {
        Box::new(layer.without_time().with_writer(held::Stderr))
    } else {
        Box::new(layer.with_writer(io::stderr))
    }
}

fn background(own_state: &Path) -> Result<(Output, Destination)> {
    if let Ok(layer) = tracing_journald::layer() {
        let layer = layer.with_syslog_identifier("musherfs".into());
        return Ok((Box::new(layer), Destination::Journald));
    }
    if let Ok(writer) = syslog::Syslog::connect() {
        let layer = plain().without_time().with_level(false).with_writer(writer);
        return Ok((Box::new(layer), Destination::Syslog));
    }
    ensure_private_dir(own_state)?;
    let path = own_state.join("musherfs.log");
    let file = rotate::RotatingFile::open(&path, rotate::LIMIT)
        .map_err(|error| Error::io(&path, error))?;
    let layer = plain().with_writer(std::sync::Mutex::new(file));
    Ok((Box::new(layer), Destination::File(path)))
}

/// Lines without colours.
fn plain<S>() -> fmt::Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fmt::layer().with_ansi(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_v_is_a_level_and_q_leaves_only_errors() {
        let level = |verbose, quiet| Verbosity::new(verbose, quiet).0;
        assert_eq!(level(0, false), LevelFilter::WARN);
        assert_eq!(level(1, false), LevelFilter::INFO);
        assert_eq!(level(2, false), LevelFilter::DEBUG);
        assert_eq!(level(9, false), LevelFilter::TRACE);
        assert_eq!(level(0, true), LevelFilter::ERROR);
        assert_eq!(Verbosity::new(0, true).louder().0, LevelFilter::ERROR);
    }
}
