//! What several test programs share.

pub mod fault_server;
pub mod registry;
