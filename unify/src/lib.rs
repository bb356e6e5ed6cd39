//! Identical files of many guests become one protected inode.
//!
//! - [`packages`]: which package owns a file of a guest, and which files are its configuration.
//! - [`policy`]: what the administrator wants shared.
//! - [`classify`](mod@classify): of one file, candidate or private, and why.

pub mod classify;
pub mod packages;
pub mod policy;
