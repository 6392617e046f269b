//! What a connection was begun with, for a daemon that did not begin it.

use serde::{Deserialize, Serialize};

/// What the kernel and the daemon that mounted agreed on, for a daemon that goes on serving the same
/// connection: the kernel does not say it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// The protocol's minor version that the kernel speaks.
    pub minor: u32,
    /// The capabilities that the kernel has.
    pub offered: u64,
    /// Those of them that are in use.
    pub agreed: u64,
}

impl Handshake {
    /// Whether the kernel can repeat requests whose daemon has died (Linux 6.9 and later).
    pub fn can_resend(&self) -> bool {
        const HAS_RESEND: u64 = 1 << 39;
        self.offered & HAS_RESEND != 0
    }
}
