//! Identical files of many guests become one protected inode.
//!
//! - [`packages`]: which package owns a file of a guest, and which files are its configuration.
//! - [`policy`]: what the administrator wants shared.
//! - [`classify`](mod@classify): of one file, candidate or private, and why.
//! - [`Session`] puts a run together: walk, read, plan, apply; [`Session::undo`] is another plan for the
//!   same executor.
//! - [`Session::reflink`]: what hard links cannot share shares its extents, where the file system can.
//! - [`recover()`] settles what a crash left.

mod apply;
pub mod classify;
mod descend;
mod error;
mod explain;
mod guest;
mod hash;
mod judge;
pub mod maintain;
mod notes;
mod objects;
pub mod packages;
mod plan;
pub mod policy;
mod problem;
pub mod protection;
mod recover;
mod reflink;
mod seals;
mod session;
mod start;
mod undo;
mod walk;

pub use apply::Done;
pub use error::{Error, Result};
pub use explain::{Explanation, State};
pub use guest::Guest;
pub use judge::{Judge, Selection};
pub use notes::{Notes, Observer, Silent, Skip, Skipped, Surroundings};
pub use objects::Objects;
pub use plan::{Plan, Size};
pub use recover::{Outcome as Recovered, recover};
pub use reflink::{Reflinks, Shareable};
pub use session::{Report, Session};
pub use start::{UNCONFINED, start};
pub use undo::{Scope, guests_of_run};
