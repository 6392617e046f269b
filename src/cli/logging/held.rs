//! Lines that wait for the end of a command, which may make them superfluous.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Who warns of sources that are down.
const SOURCES: &str = "musherfs::source::breaker";

/// What is held back: lines as they would have been printed.
static HELD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Standard error, but for what is held back.
pub(super) struct Stderr;

/// Where one line goes.
pub(super) enum Line {
    Stderr(io::Stderr),
    Held,
}

impl MakeWriter<'_> for Stderr {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line::Stderr(io::stderr())
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        match *meta.level() == Level::WARN && meta.target() == SOURCES {
            true => Line::Held,
            false => self.make_writer(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr(stderr) => stderr.write(bytes),
            Self::Held => {
                let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
                held.push(String::from_utf8_lossy(bytes).into_owned());
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr(stderr) => stderr.flush(),
            Self::Held => Ok(()),
        }
    }
}

/// Prints what was held back, without what `message` is about to say.
pub fn release(message: &str) {
    let held = std::mem::take(&mut *HELD.lock().unwrap_or_else(PoisonError::into_inner));
    let lines = held.iter().filter(|line| !is_said(line, message));
    let text: String = lines.map(String::as_str).collect();
    // Nothing is left to tell that stderr is gone.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether a message has the error of a line in it, or is part of it.
fn is_said(line: &str, message: &str) -> bool {
    let line = console::strip_ansi_codes(line);
    let error = line.split_once("error=").map(|(_, error)| error.trim());
    error.is_some_and(|error| {
        !message.is_empty() && (message.contains(error) || error.contains(message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_superfluous_if_the_error_says_the_same() {
        let line = "\u{1b}[33m WARN\u{1b}[0m the source is down \
                    \u{1b}[3merror\u{1b}[0m\u{1b}[2m=\u{1b}[0mx is unreachable: refused\n";
        assert!(is_said(line, "x is unreachable: refused"));
        assert!(is_said(
            line,
            "1 of 2 files is missing; a: x is unreachable: refused"
        ));
        assert!(is_said(line, "refused"));
        assert!(!is_said(line, "acme/kit not found"));
        assert!(!is_said(line, ""));
    }
}
