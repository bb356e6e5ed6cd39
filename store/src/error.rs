//! Everything that can go wrong with a store as a whole.

use std::path::{Path, PathBuf};

use kernel::Errno;

use crate::lock::Holder;

/// What every call on a store returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store cannot be used, with the place and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the kernel failed.
    #[error("cannot {doing} {}: {}", path.display(), kernel::explain(*errno))]
    Kernel {
        /// What was tried, as an infinitive.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// There is no store where one was expected.
    #[error("no store serves {}: run vunify on a guest there first, or name one with --store", .0.display())]
    NoStore(PathBuf),
    /// Somebody else works on the store.
    #[error("the store {} is in use by {holder}: try again later, or use --wait", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// `format.toml` cannot be understood.
    #[error("{} is damaged: {why}: restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store was made by a later version.
    #[error("the store {} has a newer format ({what}): use the version of this tool that made it", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// What is not known here.
        what: String,
    },
    /// The store belongs to somebody else or others may enter it.
    #[error("{} is not a private directory of the caller (mode 0700): refusing to trust it", .0.display())]
    NotPrivate(PathBuf),
    /// The journal holds a history that no run can have written.
    #[error("the journal {} holds an impossible history ({why}): move journal.db away to go on; only undo by run is lost", path.display())]
    IllegalHistory {
        /// The journal.
        path: PathBuf,
        /// The first contradiction.
        why: String,
    },
    /// `SQLite` failed.
    #[error("the database {}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// `SQLite`'s answer.
        source: rusqlite::Error,
    },
    /// The caller asked for a guest the store's file system does not hold.
    #[error(
        "{} is not on the file system (or subvolume) of the store {}, and hard links end there: unify the \
         guests of each file system in a run of their own",
        guest.display(), store.display()
    )]
    Elsewhere {
        /// The guest.
        guest: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// The guest is on the store's file system, but the store does not reach it.
    #[error(
        "{} is not below {}, the directory of the store: name a store in a directory above all guests \
         with --store",
        guest.display(), base.display()
    )]
    NotBelow {
        /// The guest.
        guest: PathBuf,
        /// The store's directory.
        base: PathBuf,
    },
    /// The wait for the lock was broken off.
    #[error("interrupted while waiting for the store")]
    Interrupted,
}

impl Error {
    /// For `map_err`: a call to the kernel failed at `path`.
    pub fn at(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> Self {
        let path = path.as_ref().to_path_buf();
        move |errno| Self::Kernel { doing, path, errno }
    }
}
