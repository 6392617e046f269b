//! Kept mounts and processes that read them, for the tests of the keeper and the proof that it
//! keeps what it promises; each uses a part.

#![allow(dead_code)]

pub(crate) mod house;
pub(crate) mod readers;
