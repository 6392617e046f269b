//! What several test programs share.

pub(crate) mod fault_server;
pub(crate) mod fuse;
pub(crate) mod registry;
