//! What the benchmarks share: file systems in memory, measured commands, statistics, the machine's own
//! description, and trees of any size.
//!
//! Every figure is the time of a whole command on its own copy of the same file system image, with what
//! it wrote made durable (`syncfs(2)`) inside the measured time, for all tools alike.
#![allow(clippy::disallowed_methods)] // trees and images of the benchmarks' own; no guest in use is touched

pub mod calls;
mod image;
mod machine;
mod measure;
mod stats;
mod tools;
pub mod trees;

pub use image::{Format, Image, Mounted};
pub use machine::{date, describe};
pub use measure::{Usage, measure, shell, wrapper};
pub use stats::{Spread, fit, table};
pub use tools::{Tool, load};

/// What can go wrong around a benchmark.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the benchmark's own could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// The list of tools can't be read.
    #[error("tools: {0}")]
    Tools(#[from] toml::de::Error),
    /// A measurement came back unreadable.
    #[error("measurement: {0}")]
    Measurement(#[from] serde_json::Error),
}

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Gives an I/O error the words it lacks.
pub trait Context<T> {
    /// `what` was being done.
    fn context(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { what: what.into(), source: source.into() })
    }
}
