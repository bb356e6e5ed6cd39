//! What ends a run before it begins. What goes wrong with single files is data: see [`crate::Notes`].

use std::path::PathBuf;

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a run cannot be carried out, with the place and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A policy file cannot be used.
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    /// No guest was named.
    #[error("no guest was named: name one, or use --all")]
    NoGuest,
    /// A guest was named more than once.
    #[error("{} is named twice: name each guest once", .0.display())]
    NamedTwice(PathBuf),
    /// A guest lies in another.
    #[error("{} lies in {}: name only one of the two", inner.display(), outer.display())]
    Nested {
        /// The guest that holds the other.
        outer: PathBuf,
        /// The guest that lies in it.
        inner: PathBuf,
    },
    /// A guest holds the store.
    #[error("{} holds the store {}: a guest must not reach the store", guest.display(), store.display())]
    HoldsStore {
        /// The guest.
        guest: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// Nothing can enforce a seal.
    #[error(
        "nothing on this host can protect shared files of {}: use --noflags if every guest is trusted not \
         to write into them in place, or one of the cures named above",
        place.display()
    )]
    NoProtection {
        /// The store's place.
        place: PathBuf,
        /// What the host said of each seal.
        offers: Vec<kernel::Offer>,
    },
    /// This process is not allowed to seal.
    #[error(
        "this process may not put the {} seal on files of {}, which takes CAP_LINUX_IMMUTABLE: run it as root of the \
         host, or use --noflags if every guest is trusted not to write into shared files in place",
        seal.name(),
        place.display()
    )]
    MayNotSeal {
        /// The store's place.
        place: PathBuf,
        /// What was to be put on.
        seal: kernel::Seal,
    },
    /// Objects have a seal that the run doesn't use, and that lets nobody link them.
    #[error(
        "shared files of {} are immutable, by an earlier run with --immutable or by a patched kernel, and can't be shared \
         with more guests: use the same option (or kernel) again, or take it back with vunify --undo",
        store.display()
    )]
    OtherSeal {
        /// The store.
        store: PathBuf,
    },
    /// The host's own root was named.
    #[error("/ is the host's own root, and no guest: name guests below it")]
    HostRoot,
    /// A package that was named is not there.
    #[error("{} has no package {package}: name installed packages, or ALL", guest.display())]
    NoPackage {
        /// The reference guest.
        guest: PathBuf,
        /// The package.
        package: String,
    },
    /// The reference is the only guest that was named.
    #[error("{} alone is named: with packages it is the reference; name the guests to share with it too", .0.display())]
    OnlyReference(PathBuf),
    /// The reference has no package database.
    #[error("{} has no package database that can be read: a reference needs one", .0.display())]
    NoDatabase(PathBuf),
    /// A run that was named is not in the journal, or is not one that can be undone.
    #[error("run {run} {why}: see vstore log")]
    BadRun {
        /// The number given.
        run: i64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A path that was named is not in any guest at hand.
    #[error("{} is not a path within the guests at hand", .0.display())]
    NotInGuest(PathBuf),
    /// A path that was named is not there.
    #[error("{} does not exist", .0.display())]
    NoFile(PathBuf),
    /// The user broke the run off before anything was changed.
    #[error("interrupted before anything was changed")]
    Interrupted,
}
