//! What happens to single files in a run: counted always, listed as far as a reader can use it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use kernel::Errno;

/// How many single problems of one kind are kept for the report, and bytes of their paths; the rest are counted.
const KEPT: Share = Share { count: 1000, bytes: 2 << 20 };

/// So many of each guest are kept whatever the others have: none hides another's.
const KEPT_OF_EACH: Share = Share { count: 10, bytes: 4 << 10 };

/// Why a file was left as it was, though policy lets us share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Open or mapped for writing.
    Busy,
    /// Changed since it was read, or so lately that it may have changed again unseen.
    Changed,
    /// The name is gone, or a directory above it.
    Vanished,
    /// Some of its names are outside the guests at hand.
    LinkedOutside,
    /// Shared already and the guest has replaced it since.
    NotOurs,
    /// Huge and nearly all holes: nothing to save, long to read.
    Sparse,
    /// Marked by `chattr(1)` or fs-verity: inode flags or a project, which a link would spread.
    Marked,
    /// Carries the tag that the eBPF provider takes for a seal, and is no object: where that is enforced,
    /// not even its own guest can change it.
    Stray,
    /// A path of more than 64 KiB or 512 directories, more names than a directory can have here, or a symbolic link or
    /// mount where a directory was.
    OutOfReach,
    /// The file system has a reason of its own not to share this file's extents.
    CannotShare,
    /// More names or attributes than an object can have.
    TooMany,
    /// The kernel refused.
    Failed(Errno),
}

impl Skip {
    /// What the kernel's answer to a call on a guest's file means for that file.
    pub fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN | Errno::TXTBSY => Self::Busy,
            // Gone, or the file or a directory above it became something else meanwhile.
            Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::ISDIR | Errno::INVAL | Errno::NXIO => {
                Self::Vanished
            }
            Errno::LOOP | Errno::XDEV | Errno::BUSY | Errno::NAMETOOLONG | Errno::OVERFLOW => {
                Self::OutOfReach
            }
            Errno::MLINK | Errno::TOOBIG => Self::TooMany,
            other => Self::Failed(other),
        }
    }

    /// Whether the run counts as partly done because of it. What a live guest does to its own files is no
    /// failure of ours.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// The stable short name in JSON and summaries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Changed => "changed",
            Self::Vanished => "vanished",
            Self::LinkedOutside => "linked-outside",
            Self::NotOurs => "replaced",
            Self::Sparse => "sparse",
            Self::Marked => "marked",
            Self::Stray => "stray",
            Self::OutOfReach => "out-of-reach",
            Self::CannotShare => "cannot-share",
            Self::TooMany => "too-many",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("open for writing: left for another run"),
            Self::Changed => f.write_str("changed during the run: left for another run"),
            Self::Vanished => f.write_str("vanished while the guest was looked at"),
            Self::LinkedOutside => {
                f.write_str("has hard links that must stay private or are outside the guests at hand")
            }
            Self::NotOurs => f.write_str("replaced by the guest since it was shared"),
            Self::Sparse => f.write_str("nearly all holes: nothing to save"),
            Self::Marked => {
                f.write_str("has inode flags (chattr, fs-verity) or a project that a link would spread")
            }
            Self::Stray => f.write_str("is tagged like a sealed file (chattr +A +S), but is none"),
            Self::OutOfReach => {
                f.write_str("the path is too long, or the directory, or a link or mount is in the way")
            }
            Self::CannotShare => f.write_str(
                "its extents cannot be shared (a swap file, or copy-on-write or checksums are off)",
            ),
            Self::TooMany => f.write_str("has more names or attributes than a shared file can have"),
            Self::Failed(errno) => f.write_str(&kernel::explain(*errno)),
        }
    }
}

/// A file that was left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The guest, as the store knows it.
    pub guest: PathBuf,
    /// The path within the guest.
    pub path: PathBuf,
    /// Why.
    pub why: Skip,
}

/// Collects from many threads.
#[derive(Debug, Default)]
pub struct Notes {
    skipped: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    kinds: BTreeMap<&'static str, Kind>,
    first: Vec<Skipped>,
}

#[derive(Debug, Default)]
struct Kind {
    count: u64,
    /// Of this kind in [`Noted::first`].
    kept: Share,
    /// The same of each guest.
    of_guest: HashMap<PathBuf, Share>,
}

/// Notes, and bytes of their paths.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    count: u64,
    bytes: usize,
}

impl Share {
    fn is_below(self, limit: Self) -> bool {
        self.count < limit.count && self.bytes < limit.bytes
    }

    fn add(&mut self, path: &Path) {
        self.count += 1;
        self.bytes += path.as_os_str().len();
    }
}

impl Notes {
    /// Notes a file that was left as it was.
    pub fn skip(&self, guest: &Path, path: PathBuf, why: Skip) {
        let mut noted = self.skipped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let kind = noted.kinds.entry(why.name()).or_default();
        kind.count += 1;
        if !kind.of_guest.contains_key(guest) {
            kind.of_guest.insert(guest.to_path_buf(), Share::default());
        }
        let Some(of_guest) = kind.of_guest.get_mut(guest) else { return };
        if kind.kept.is_below(KEPT) || of_guest.is_below(KEPT_OF_EACH) {
            kind.kept.add(&path);
            of_guest.add(&path);
            noted.first.push(Skipped { guest: guest.to_path_buf(), path, why });
        }
    }

    /// How many files were left alone for a reason so far.
    pub fn count(&self, why: Skip) -> u64 {
        let noted = self.skipped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        noted.kinds.get(why.name()).map_or(0, |kind| kind.count)
    }

    /// Counts by short name, and the first of each kind.
    pub fn into_parts(self) -> (BTreeMap<&'static str, u64>, Vec<Skipped>) {
        let noted = self.skipped.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        (noted.kinds.into_iter().map(|(name, kind)| (name, kind.count)).collect(), noted.first)
    }
}

/// Hears how far a run is. Called from many threads, often: must be cheap.
pub trait Observer: Sync {
    /// A phase begins. `total` is in the units of [`Observer::advance`], 0 if not known.
    fn phase(&self, name: &'static str, total: u64);
    /// Some of it is done.
    fn advance(&self, count: u64);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn phase(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// What every stage of a run needs to know of its surroundings.
pub struct Surroundings<'a> {
    /// The door.
    pub fs: &'a dyn kernel::Fs,
    /// Hears how far we are.
    pub observer: &'a dyn Observer,
    /// Set when the user wants to stop: the batch in work is brought to an end, nothing new is begun.
    pub stop: &'a AtomicBool,
}

impl Surroundings<'_> {
    /// Whether the user wants to stop.
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// A counter that many threads raise.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_problems_of_one_kind_hide_no_other() {
        let notes = Notes::default();
        let long = PathBuf::from("d/".repeat(40_000));
        for _ in 0..2 * KEPT.count {
            notes.skip(Path::new("loud"), long.clone(), Skip::OutOfReach);
        }
        notes.skip(Path::new("quiet"), "etc/file".into(), Skip::Failed(Errno::IO));
        notes.skip(Path::new("quiet"), "etc/other".into(), Skip::OutOfReach);
        let (counts, listed) = notes.into_parts();
        assert_eq!((counts["out-of-reach"], counts["failed"]), (2 * KEPT.count + 1, 1));
        let (loud, quiet): (Vec<_>, Vec<_>) = listed.iter().partition(|one| one.guest == Path::new("loud"));
        assert_eq!((loud.len(), quiet.len()), (KEPT.bytes.div_ceil(80_000), 2));
    }
}
