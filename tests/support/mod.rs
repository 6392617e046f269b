//! What several test programs share.

pub mod fault_server;
pub mod fuse;
pub mod registry;
