//! Lines for the system's log daemon at `/dev/log` (RFC 3164, without the time, which the daemon
//! adds).
//!
//! The socket never blocks: when the daemon is too slow or gone, lines are lost, not requests.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process;
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

const SOCKET: &str = "/dev/log";
/// The facility `daemon`, shifted as it stands in a priority.
const DAEMON: u8 = 3 << 3;

/// A connection to the log daemon.
#[derive(Debug, Clone)]
pub(super) struct Syslog(Arc<UnixDatagram>);

impl Syslog {
    pub(super) fn connect() -> io::Result<Self> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self(Arc::new(socket)))
    }

    fn line(&self, level: Level) -> Line {
        Line {
            syslog: self.clone(),
            priority: DAEMON
                | match level {
                    Level::ERROR => 3,
                    Level::WARN => 4,
                    Level::INFO => 6,
                    Level::DEBUG | Level::TRACE => 7,
                },
        }
    }
}

impl MakeWriter<'_> for Syslog {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        self.line(Level::INFO)
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> Line {
        self.line(*metadata.level())
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line {
    syslog: Syslog,
    priority: u8,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut datagram = format!("<{}>musherfs[{}]: ", self.priority, process::id()).into_bytes();
        datagram.extend_from_slice(bytes.trim_ascii_end());
        let socket = &self.syslog.0;
        if let Err(error) = socket.send(&datagram)
            && error.kind() != io::ErrorKind::WouldBlock
            // The daemon was restarted: its socket is another one.
            && socket.connect(SOCKET).is_ok()
        {
            let _ = socket.send(&datagram);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_datagram_with_its_priority() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect_to(&path).unwrap();
        syslog.line(Level::WARN).write_all(b"trouble\n").unwrap();
        let mut buffer = [0; 256];
        let length = daemon.recv(&mut buffer).unwrap();
        let expected = format!("<28>musherfs[{}]: trouble", process::id());
        assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);
    }

    #[test]
    fn a_log_daemon_that_does_not_read_delays_nobody() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let _daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect_to(&path).unwrap();
        for _ in 0..10_000 {
            syslog.line(Level::INFO).write_all(b"line\n").unwrap();
        }
    }
}
