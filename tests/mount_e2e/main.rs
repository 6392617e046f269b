//! The program from outside: real kernel mounts, made by the real binary, of a real registry on the
//! loopback interface, read by real programs.
//!
//! What the mount promises has a test of the same name here, as far as it takes a kernel to see it;
//! [`faults`], [`manifests`] and [`damage`] are about everything that goes wrong, [`command`] about
//! mounting and unmounting as such.

#![allow(clippy::unwrap_used, clippy::panic)]

mod command;
mod damage;
mod faults;
mod lazy;
mod manifests;
mod names;
mod offline;
mod publishing;
mod readonly;
mod secrets;
mod stranger;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod tools;
mod warm;
