//! Musher bundles as read-only files: resolved, fetched, verified and cached on first use.
//!
//! ```text
//!  kernel ──request──► fuse ──► fs ─────► resolve ──► cache (refs)   ┐ cold
//!    ▲                  │       │  tree, inode  │                    ├──► source
//!    └──────reply───────┘       └─► store ──────┴──► cache (blobs) ──┘
//! ```
//!
//! A file imports only from rows above its own, and from what stands before a "then" in its own;
//! a module and its folder count as one. `tests/layers.rs` reads this table and keeps it.
//!
//! | row | modules |
//! |---|---|
//! | 1 | [`sync`], then [`digest`], [`single_flight`], [`metrics`] |
//! | 2 | [`mod@reference`] |
//! | 3 | [`manifest`] |
//! | 4 | [`error`] |
//! | 5 | [`paths`], then [`config`], then [`credentials`] |
//! | 6 | [`cache`] |
//! | 7 | [`source`] |
//! | 8 | [`resolve`], then [`store`] |
//! | 9 | [`client`], then [`publish`], then [`registry`], [`care`] |
//! | 10 | [`fs`] |
//! | 11 | [`fuse`] |
//! | 12 | [`mount`], then [`doctor`] |
//! | 13 | [`cli`] |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod cache;
pub mod care;
pub mod cli;
pub mod client;
pub mod config;
pub mod credentials;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod manifest;
pub mod metrics;
pub mod mount;
pub mod paths;
pub mod publish;
pub mod reference;
pub mod registry;
pub mod resolve;
pub mod single_flight;
pub mod source;
pub mod store;
pub mod sync;
