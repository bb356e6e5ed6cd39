//! What a run leaves behind when it is cut off: by a power failure, by a signal, by errors.
//!
//! Every call through the door is a place to be cut off at; each place is tried. Whatever happens, each
//! guest name refers to the right bytes at once, and after recovery nothing can be told from what was.

#![allow(clippy::unwrap_used)] // helpers of tests: their panic is the test's

#[path = "../common/mod.rs"]
mod common;

mod ceiling;
mod errors;
mod kill;
mod power;
mod scene;
