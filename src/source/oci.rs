//! OCI registries.

pub mod auth;
pub mod model;
pub mod reference;
