//! The contract every command keeps.
//!
//! A binary's `main` is one line over [`run_main`]; a command is a [`Program`]: its arguments, its examples
//! and where its [`CommonArgs`] are. What it does is a function from arguments and an [`Out`] to an
//! [`Exit`] or a [`Problem`].
//!
//! - [`Exit`] is the one table of exit codes.
//! - [`Out`] is the only thing that prints: human lines, JSON Lines, problems on standard error.
//! - [`PathText`] shows a name of any bytes, without loss in JSON and without danger on a terminal.
//! - [`Bars`] shows progress, [`Interrupt`] tells that the user wants to stop; libraries see neither, but
//!   an atomic flag and an observer of their own that the binary connects with these.
//! - [`Guests`] finds guests by name or path.
//! - Each command writes its own man pages and shell completions: `COMMAND --write-docs DIRECTORY`.

mod args;
mod exit;
mod guest;
mod human;
mod interrupt;
mod manual;
mod out;
mod problem;
mod progress;
mod run;
mod table;
mod text;

pub use args::{CommonArgs, DryRun, ProgressMode, Wait, expecting};
pub use exit::Exit;
pub use guest::{GuestError, Guests, looks_like_root};
pub use human::{Count, HumanBytes, HumanDuration, Many};
pub use interrupt::Interrupt;
pub use manual::{Example, Program};
pub use out::{Out, Streams};
pub use problem::Problem;
pub use progress::{Bars, Unit};
pub use run::{run_main, run_with};
pub use table::{Align, Table};
pub use text::PathText;
