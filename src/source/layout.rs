//! A directory as a registry: an OCI image layout, on a stick or a shared disk.

pub mod dir;

pub use dir::{Layout, MAX_INDEX};
