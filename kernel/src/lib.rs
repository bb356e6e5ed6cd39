//! The door to the kernel.
//!
//! Everything that differs between kernels, everything `unsafe`, and every change to a file system
//! under a guest or a store passes through this crate:
//!
//! - [`Dir`] and [`File`] are handles. Inside a guest nothing is reached by a path that starts at `/`;
//!   [`Dir`] resolves names beneath itself, without symbolic links and without crossing mounts (law 5).
//! - [`Fs`] is the one door for changes. [`Real`] opens it; tests put a faulty one in its place.
//! - [`Leased`] proves that nobody has a file open for writing (law 2).
//! - [`Contexts`] separates groups of processes from each other; [`bpf`] loads what does it on stock kernels.
//! - [`Seal`] is the protection of a shared inode, [`probe`] says which seals this host can enforce.
//!
//! Calls return the kernel's own [`Errno`]; callers add what they were doing and where.

pub mod bpf;
mod confine;
mod contexts;
mod dirent;
mod extent;
pub mod features;
mod flags;
mod fs;
mod handle;
mod lease;
mod lock;
mod seal;
mod stat;
mod sys;
mod view;
mod xattr;

pub use confine::confine;
pub use contexts::{
    Bpf, Capabilities, ContextError, Contexts, Entry as ContextEntry, Ipv4Root, MAX_ADDRESSES, Patch,
    Properties, Provider, Status as ContextStatus, Which, contexts,
};
pub use dirent::{Entry, EntryBuffer};
pub use extent::{Extent, Layout, first_extent, is_rotational, layout};
pub use fs::{At, Fs, Metadata, Real, sample_file};
pub use handle::{Dir, File};
pub use lease::{Leased, ignore_lease_breaks, unless_withheld};
pub use lock::{LockMode, OfdLock};
pub use seal::{
    Offer, Protection, Seal, Verdict, are_extents_watched, change_names, free_names, lift_seals, probe,
};
pub use stat::{Kind, Stat, Time};
pub use view::View;
pub use xattr::Xattrs;

pub use rustix::io::Errno;

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// Raises the limit of open files to what the process may have, and makes room for them: a batch holds its files
/// open. To be called before threads are started.
pub fn raise_open_file_limit() {
    sys::raise_open_file_limit();
    sys::grow_open_file_table();
}

/// How many files this process may have open.
pub fn open_file_limit() -> u64 {
    sys::open_file_limit()
}

/// Stops a file system at once, as a power failure would, without flushing its log. For crash tests on
/// loop-mounted ext4 and xfs (`FS_IOC_SHUTDOWN` with `NOLOGFLUSH`).
pub fn simulate_power_failure(dir: &Dir) -> Result<()> {
    sys::shutdown_without_log_flush(dir)
}

/// In the user's words, what an error of the kernel means to somebody sharing files.
pub fn explain(errno: Errno) -> String {
    match errno {
        Errno::AGAIN => "opened for writing by another process".into(),
        Errno::NOENT => "vanished".into(),
        Errno::XDEV => "a mount or another file system is in the way".into(),
        Errno::LOOP => "a symbolic link is in the way".into(),
        Errno::MLINK => "the file system's link limit is reached".into(),
        Errno::NOSPC => "no space left on the file system".into(),
        Errno::DQUOT => "the disk quota is used up".into(),
        Errno::ROFS => "the file system is read-only".into(),
        Errno::ACCESS | Errno::PERM => "not permitted (run as root)".into(),
        Errno::IO => "input/output error: check the disk".into(),
        Errno::TXTBSY => "being executed or written".into(),
        other => std::io::Error::from(other).to_string(),
    }
}
