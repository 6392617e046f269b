//! What several test programs share; each uses a part of it.
#![allow(dead_code, clippy::print_stderr)]

pub(crate) mod cache;
pub(crate) mod fault_server;
pub(crate) mod fuse;
pub(crate) mod mount;
pub(crate) mod prove;
pub(crate) mod registry;
