//! The cache's commands over a real registry and caches that every Musher tool has written to.

#![allow(clippy::unwrap_used, clippy::panic)]

mod house;
mod kill;
mod load;
#[path = "../cache_superset/models.rs"]
#[allow(dead_code)]
mod models;
mod quota;
mod session;
#[path = "../support/mod.rs"]
mod support;
