//! A network that fails in every way there is, between a real mount and a real registry.
//!
//! [`matrix`] has every fault meet every operation, [`stuck`] measures readers of cached files while
//! others wait, and [`flapping`] is a network that comes and goes. Where it is (`mount_e2e::faults`)
//! only the registry misbehaves; here it is what lies between: [`proxy`], TLS and [`dns`] included.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod dns;
mod flapping;
mod matrix;
mod proxy;
mod stuck;
#[path = "../support/mod.rs"]
mod support;
