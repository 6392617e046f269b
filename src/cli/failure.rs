//! How a command fails: one table from kinds of errors to exit codes, and the way all of them are
//! shown.
//!
//! ```text
//! error: acme/kit@9.9.9 not found
//! hint: check the spelling; a private bundle without a key looks absent too
//! ```

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::error::Error;
use crate::mount::MountError;
use crate::publish::PublishError;
use crate::publish::oci::PushError;

/// What the program exits with when it fails, as the other Musher tools do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Whatever has no number of its own.
    General = 1,
    /// The registry refuses the key, or wants one.
    Authentication = 2,
    /// The registry cannot be reached, or what answers is none.
    Network = 3,
    /// A setting cannot be used.
    Configuration = 4,
    /// Something took too long.
    Timeout = 5,
    /// Something that should have been started or done on this machine did not work.
    Execution = 6,
    /// The command line makes no sense.
    Usage = 64,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

/// Why a command ends with another code than 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What failed and why; empty if that was said already, or nobody is there to read it.
    pub message: String,
    /// More messages, if several things are wrong.
    pub more: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with a message, and its causes if they say more.
    pub fn new(code: impl Into<u8>, error: &(dyn StdError + 'static)) -> Self {
        Self::text(code, with_causes(error))
    }

    /// A failure with a message that is ready to print.
    pub fn text(code: impl Into<u8>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            more: Vec::new(),
            hint: None,
        }
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::text(Exit::Usage, message)
    }

    /// The same with something that the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hint = hint.map(Into::into);
        self
    }

    /// A failure that was told to the user already.
    pub(super) fn printed(exit: Exit) -> Self {
        Self::text(exit, "")
    }

    /// Tells the user, and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let mut text = String::new();
            for message in std::iter::once(&self.message).chain(&self.more) {
                let _ = writeln!(text, "error: {}", printable(message));
            }
            if let Some(hint) = &self.hint {
                let _ = writeln!(text, "hint: {}", printable(hint));
            }
            // Nothing is left to tell that stderr is gone.
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
        ExitCode::from(self.code)
    }
}

/// The table of exit codes.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Denied { .. } => Exit::Authentication,
            Error::Unreachable { .. } | Error::Offline { .. } | Error::Malformed { .. } => {
                Exit::Network
            }
            Error::Config(_) => Exit::Configuration,
            Error::Timeout { .. } => Exit::Timeout,
            Error::Internal(_) => Exit::Execution,
            Error::NotFound { .. }
            | Error::Yanked { .. }
            | Error::WrongBytes { .. }
            | Error::Contradiction { .. }
            | Error::Rejected { .. }
            | Error::Io { .. }
            | Error::Reference(_)
            | Error::Manifest { .. } => Exit::General,
        };
        Self::new(exit, &error).with_hint(error.hint())
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::text(error.exit_code(), with_causes(&error)).with_hint(error.hint())
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let mut failure = Self::new(Exit::General, &error).with_hint(Some(error.hint()));
        let mut lines = error.lines().into_iter();
        if let Some(first) = lines.next()
            && lines.len() > 0
        {
            failure.message = first;
            failure.more = lines.collect();
        }
        failure
    }
}

/// The registry's own error decides the code, and says what to do where it knows better.
impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        let cause = error.cause().cloned().map(Self::from);
        let code = cause.map_or(Exit::General.into(), |cause| cause.code);
        Self::text(code, with_causes(&error)).with_hint(Some(error.hint()))
    }
}

/// What printing can run into: a reader that went away is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::text(0, "")
        } else {
            Self::text(Exit::General, format!("cannot print: {error}"))
        }
    }
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Many messages end with their cause already.
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Makes text from elsewhere safe for a terminal: control characters are shown, not obeyed.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_have_the_exit_codes_of_the_other_tools() {
        let what = || "acme/kit".to_owned();
        let unreachable = Error::Unreachable {
            origin: "https://registry.test".into(),
            reason: "connection refused".into(),
        };
        let denied = Error::Denied {
            what: what(),
            reason: "key expired".into(),
        };
        for (error, code) in [
            (Error::not_found("acme/kit"), 1),
            (denied, 2),
            (unreachable, 3),
            (Error::Offline { what: what() }, 3),
            (Error::Config("x".into()), 4),
            (Error::timeout(what()), 5),
            (Error::Internal("x".into()), 6),
        ] {
            assert_eq!(Failure::from(error.clone()).code, code, "{error}");
        }
    }

    #[test]
    fn a_message_has_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Error);
        let io = Error::io("/x", io::Error::other("disk on fire"));
        let failure = Failure::new(Exit::General, &Outer(io));
        assert_eq!(failure.message, "outer: cannot access /x: disk on fire");
    }

    #[test]
    fn control_characters_from_elsewhere_are_shown_not_obeyed() {
        assert_eq!(printable("a\x1b[31mü\r\n"), "a\\u{1b}[31mü\\r\\n");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.code, failure.message.as_str()), (0, ""));
        assert_eq!(Failure::from(io::Error::other("x")).code, 1);
    }
}
