//! Objects, journal and index of one file system.
//!
//! A store is a directory beside the guests it serves, on the same file system. It holds the *objects*:
//! inodes that any number of guest names link to. See `FORMAT.md` for what is on disk.
//!
//! - [`identity`] says when two files are the same (law 1).
//! - [`Store`] finds, makes, opens and locks a store and knows where everything in it lies.
//! - [`journal`] keeps durable intents, so that every crash can be settled and every run undone.
//! - [`census`] is what a run knows of one guest.
//! - [`index`] is a cache that makes the nightly run cheap; losing it costs time only.
//! - [`gc`] takes away objects that no guest links to any more.

pub mod census;
mod error;
mod format;
pub mod gc;
pub mod identity;
pub mod index;
pub mod journal;
mod layout;
mod lock;
mod wire;

pub use error::{Error, Result};
pub use format::{Format, IdentityPolicy};
pub use identity::{ContentDigest, ObjectId, ObjectName};
pub use layout::{Located, Place, STORE_NAME, Store, is_store};
pub use lock::{Access, Holder};
