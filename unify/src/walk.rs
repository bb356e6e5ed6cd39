//! Walking a guest: which names are objects, and which files might become one.
//!
//! Parallel over directories. A directory that looks as the index has it is not read: its entries cannot
//! have changed without its change time. Only its private files are looked at, for their content or
//! metadata can. An entry whose inode is an object needs no look at all: the store holds that inode, so
//! its number cannot stand for another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, Kind, Stat, Time};
use store::IdentityPolicy;
use store::census::{self, Census, DirRow, FileRow, NONE};
use store::identity::class;

use crate::descend::{MAX_DIR_NAMES, STRETCH, Trail};
use crate::guest::Guest;
use crate::judge::{DirJudge, Judge, Verdict};
use crate::notes::{Notes, Skip, Surroundings};
use crate::objects::Objects;

/// A stamp younger than this when it is read may be the same after another change: the coarse clock ticks
/// every 10 ms at most (`CONFIG_HZ` of 100).
pub(crate) const TICK_NANOS: i64 = 20_000_000;

/// How long after a change another may leave the same stamp, at most: for a tick, or for a second where the file
/// system keeps whole ones (ext4 with inodes of 128 bytes).
pub(crate) fn lasts(stamp: i64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    if stamp % SECOND == 0 { SECOND + TICK_NANOS } else { TICK_NANOS }
}

/// Whether all that changes from `now` on will have another stamp.
pub(crate) fn is_over(stamp: i64, now: Time) -> bool {
    stamp < now.to_nanos() - lasts(stamp)
}

/// Bytes of names of one guest, at most. A guest with a hundred million files has less; hard links can make
/// more of nothing.
const MAX_GUEST_NAMES: usize = 2 << 30;

/// What a walk needs to know.
pub(crate) struct Walk<'a> {
    pub(crate) around: &'a Surroundings<'a>,
    pub(crate) guest: &'a Guest,
    pub(crate) judge: &'a Judge,
    pub(crate) objects: &'a Objects,
    pub(crate) dev: u64,
    pub(crate) identity: IdentityPolicy,
    /// When the first guest was looked at.
    pub(crate) began: Time,
    /// What an earlier run found, if it still applies.
    pub(crate) before: Option<&'a Census>,
    pub(crate) notes: &'a Notes,
}

thread_local! {
    static BUFFER: std::cell::RefCell<EntryBuffer> = std::cell::RefCell::default();
}

/// One directory that is still to be looked at.
struct Task {
    trail: Trail,
    row: u32,
    before: Option<u32>,
}

/// The subdirectories of one that was looked at, which are still to be.
struct Below {
    trail: Trail,
    /// Row of the first.
    first: u32,
    names: Vec<u8>,
    dirs: Vec<(u32, Option<u32>)>,
}

impl Below {
    fn task(&self, at: usize) -> Task {
        let (name, before) = self.dirs[at];
        let trail = self.trail.to(census::name_at(&self.names, name));
        Task { trail, row: self.first + at as u32, before }
    }
}

/// What one directory turned out to hold, before it is added to the census. Names are offsets into its
/// own `names`, which are kept as [`Census::names`] are.
#[derive(Default)]
struct Found {
    /// As [`DirRow::stamp`].
    stamp: u64,
    names: Vec<u8>,
    files: Vec<FileRow>,
    /// Name, row in the census before.
    dirs: Vec<(u32, Option<u32>)>,
    unified: u32,
    fixed: u32,
    /// Something in it could not be looked at: the next run tries again.
    is_partial: bool,
}

impl Found {
    fn add_name(&mut self, name: &[u8]) -> u32 {
        census::add_name(&mut self.names, name)
    }

    fn add_dir(&mut self, name: &[u8], before: Option<u32>) {
        let name = self.add_name(name);
        self.dirs.push((name, before));
    }
}

impl<'a> Walk<'a> {
    /// Walks the whole guest.
    pub(crate) fn run(&self) -> Census {
        let mut census = Census { fingerprint: self.judge.fingerprint(), ..Census::default() };
        if let Some(before) = self.before {
            // Room for what will most likely be the same: vectors that grow would be twice as large for a moment.
            census.dirs.reserve_exact(before.dirs.len());
            census.files.reserve_exact(before.files.len());
            census.names.reserve_exact(before.names.len());
            census.ids.clone_from(&before.ids);
        }
        let name = census.add_name(b"");
        census.dirs.push(new_dir(name, 0));
        let census = Mutex::new(census);
        rayon::scope(|scope| {
            let root = Task { trail: Trail::default(), row: 0, before: self.before.map(|_| 0) };
            self.visit(scope, &census, root);
        });
        census.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn visit<'s>(&'s self, scope: &rayon::Scope<'s>, census: &'s Mutex<Census>, task: Task) {
        if self.around.stopping() {
            return;
        }
        let path = task.trail.path();
        if !task.trail.is_within_reach() {
            return self.skip(&path, b"", Skip::OutOfReach);
        }
        let found = match self.look(&task, &path) {
            Ok(found) => found,
            Err(why) => return self.skip(&path, b"", why),
        };
        self.around.observer.advance(1);
        let Some(first) = add(&mut census.lock().unwrap_or_else(PoisonError::into_inner), task.row, &found)
        else {
            return self.skip(&path, b"", Skip::OutOfReach);
        };
        let below = Arc::new(Below { trail: task.trail, first, names: found.names, dirs: found.dirs });
        for from in (0..below.dirs.len()).step_by(STRETCH) {
            let below = Arc::clone(&below);
            scope.spawn(move |scope| {
                let to = below.dirs.len().min(from + STRETCH);
                (from..to).for_each(|at| self.visit(scope, census, below.task(at)));
            });
        }
    }

    fn skip(&self, dir: &[u8], name: &[u8], why: Skip) {
        self.notes.skip(&self.guest.key, to_path(&join(dir, name)), why);
    }

    fn look(&self, task: &Task, path: &[u8]) -> Result<Found, Skip> {
        let dir = self.guest.root.open_dir(path).map_err(Skip::from_errno)?;
        let stat = dir.stat_self().map_err(Skip::from_errno)?;
        if stat.dev != self.dev {
            // Another btrfs subvolume: its inode numbers mean nothing here.
            return Err(Skip::OutOfReach);
        }
        let mut found = match (self.before, task.before) {
            (Some(census), Some(row)) if is_unchanged(&census.dirs[row as usize], &stat) => {
                self.recall(&dir, path, census, row)
            }
            _ => self.read(&dir, path, task.before)?,
        };
        if !found.is_partial && is_over(stat.ctime.to_nanos(), self.began) {
            found.stamp = stamp(&stat);
        }
        Ok(found)
    }

    /// An unchanged directory: its names are known, its private files are looked at.
    fn recall(&self, dir: &Dir, path: &[u8], census: &Census, row: u32) -> Found {
        let known = &census.dirs[row as usize];
        let mut found = Found { unified: known.unified, fixed: known.fixed, ..Found::default() };
        for sub in census.subdirs(row) {
            let dir = &census.dirs[sub as usize];
            found.add_dir(census.name(dir.name), Some(sub));
        }
        let mut judge = None;
        for file in census.files_in(row) {
            let name = census.name(file.name);
            if self.objects.contains(file.ino) {
                found.unified += 1; // its inode was admitted where it stood
                continue;
            }
            match dir.stat(name) {
                Ok(stat) if is_same_file(file, &stat) => {
                    let name = found.add_name(name);
                    found.files.push(FileRow { name, ..*file });
                }
                Ok(stat) => self.judge(&mut judge, path, name, &stat, &mut found),
                Err(errno) => {
                    found.is_partial = true;
                    self.skip(path, name, Skip::from_errno(errno));
                }
            }
        }
        found
    }

    fn read(&self, dir: &Dir, path: &[u8], before: Option<u32>) -> Result<Found, Skip> {
        let mut found = Found::default();
        let known = self.known_subdirs(before);
        let mut judge = None;
        BUFFER
            .with_borrow_mut(|buffer| {
                dir.for_each(buffer, |entry| -> Result<(), Errno> {
                    if found.names.len() > MAX_DIR_NAMES {
                        return Err(Errno::OVERFLOW);
                    }
                    match entry.kind {
                        Kind::File if self.objects.contains(entry.ino) => found.unified += 1,
                        Kind::Directory => {
                            found.add_dir(entry.name, known.get(entry.name).copied());
                        }
                        Kind::File | Kind::Unknown => match dir.stat(entry.name) {
                            Ok(stat) if stat.kind == Kind::Directory => {
                                found.add_dir(entry.name, None);
                            }
                            Ok(stat) => self.judge(&mut judge, path, entry.name, &stat, &mut found),
                            Err(errno) => {
                                found.is_partial = true;
                                self.skip(path, entry.name, Skip::from_errno(errno));
                            }
                        },
                        _ => found.fixed += 1,
                    }
                    Ok(())
                })
            })
            .map_err(Skip::from_errno)?;
        Ok(found)
    }

    fn known_subdirs(&self, before: Option<u32>) -> HashMap<&'a [u8], u32> {
        let (Some(census), Some(row)) = (self.before, before) else { return HashMap::new() };
        census.subdirs(row).map(|sub| (census.name(census.dirs[sub as usize].name), sub)).collect()
    }

    /// Decides about one file and files it away. The directory's judge is made when the first needs it.
    fn judge<'s>(
        &'s self,
        judge: &mut Option<DirJudge<'s>>,
        path: &[u8],
        name: &[u8],
        stat: &Stat,
        found: &mut Found,
    ) {
        if stat.kind != Kind::File {
            found.fixed += 1;
            return;
        }
        let judge = judge.get_or_insert_with(|| self.judge.in_dir(path));
        let state = match judge.verdict(name, stat) {
            Verdict::Fixed => {
                found.fixed += 1;
                return;
            }
            Verdict::Candidate => 0,
            Verdict::ForNow(reason) => 1 + reason as u8,
        };
        let name = found.add_name(name);
        found.files.push(FileRow {
            ino: stat.ino,
            ctime: stat.ctime.to_nanos(),
            size: stat.size,
            class: class(self.identity, stat),
            name,
            dir: NONE,
            id: NONE,
            nlink: u16::try_from(stat.nlink).unwrap_or(u16::MAX),
            state,
        });
    }
}

/// Adds what was found to the census; returns the row of the first subdirectory. `None`: a census has no
/// room for so many names.
fn add(census: &mut Census, row: u32, found: &Found) -> Option<u32> {
    if census.names.len() + found.names.len() > MAX_GUEST_NAMES {
        return None;
    }
    let names = census.names.len() as u32;
    census.names.extend_from_slice(&found.names);
    let first_dir = census.dirs.len() as u32;
    census.dirs.extend(found.dirs.iter().map(|&(name, _)| new_dir(names + name, row)));
    let first_file = census.files.len() as u32;
    let files = found.files.iter().map(|file| FileRow { name: names + file.name, dir: row, ..*file });
    census.files.extend(files);
    let dir = &mut census.dirs[row as usize];
    dir.stamp = found.stamp;
    dir.first_dir = first_dir;
    dir.first_file = first_file;
    dir.unified = found.unified;
    dir.fixed = found.fixed;
    Some(first_dir)
}

fn new_dir(name: u32, parent: u32) -> DirRow {
    DirRow { stamp: DirRow::UNSETTLED, name, parent, first_dir: NONE, first_file: 0, unified: 0, fixed: 0 }
}

/// Inode and change time in one word. For one inode, different times have different stamps; a guest that makes two
/// inodes with one stamp hides its own files, from being shared.
fn stamp(stat: &Stat) -> u64 {
    let ctime = (stat.ctime.to_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (ctime ^ stat.ino.rotate_left(32)).max(1)
}

fn is_unchanged(row: &DirRow, stat: &Stat) -> bool {
    row.stamp != DirRow::UNSETTLED && row.stamp == stamp(stat)
}

/// Same inode with the same stamp: content, metadata and link count are as they were.
fn is_same_file(row: &FileRow, stat: &Stat) -> bool {
    row.ino == stat.ino && row.ctime == stat.ctime.to_nanos() && row.size == stat.size
}

/// Makes a census fit to be kept: files that changed so lately that they may have changed again unseen are marked,
/// so that the next run looks again, and identities that nothing refers to are dropped.
pub(crate) fn settle(census: &mut Census, began: Time) {
    let old = std::mem::take(&mut census.ids);
    for file in &mut census.files {
        if !is_over(file.ctime, began) {
            file.ctime = FileRow::UNSETTLED;
        } else if file.id != NONE {
            census.ids.push(old[file.id as usize]);
            file.id = census.ids.len() as u32 - 1;
            continue;
        }
        file.id = NONE;
    }
}

/// Forgets the files of directories that the run may have changed: the next run reads these anew, and most
/// of their files are objects by then.
pub(crate) fn forget(census: &mut Census, changed: &HashSet<u32>) {
    if changed.is_empty() {
        return;
    }
    let mut old = std::mem::take(census);
    *census = Census { fingerprint: old.fingerprint, ids: std::mem::take(&mut old.ids), ..Census::default() };
    for (row, dir) in (0..).zip(&old.dirs) {
        let (name, first_file) = (census.add_name(old.name(dir.name)), census.files.len() as u32);
        let mut dir = DirRow { name, first_file, ..*dir };
        if changed.contains(&row) {
            dir.stamp = DirRow::UNSETTLED;
        } else {
            for file in old.files_in(row) {
                let name = census.add_name(old.name(file.name));
                census.files.push(FileRow { name, ..*file });
            }
        }
        census.dirs.push(dir);
    }
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

pub(crate) fn to_path(bytes: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::path::PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_changed_directories_are_forgotten() {
        let mut census = Census { fingerprint: 7, ..Census::default() };
        let root = census.add_name(b"");
        census.dirs.push(new_dir(root, 0));
        for (row, name) in [(1, b"bin"), (2, b"lib")] {
            let name = census.add_name(name);
            let first_file = census.files.len() as u32;
            census.dirs.push(DirRow { stamp: 5, first_file, ..new_dir(name, 0) });
            for file in [b"one".as_slice(), b"two"] {
                let name = census.add_name(file);
                let row = FileRow {
                    ino: 9,
                    ctime: 5,
                    size: 1,
                    class: 0,
                    name,
                    dir: row,
                    id: NONE,
                    nlink: 1,
                    state: 0,
                };
                census.files.push(row);
            }
        }
        census.dirs[0] = DirRow { first_dir: 1, stamp: 5, ..census.dirs[0] };
        let before = census.clone();
        forget(&mut census, &HashSet::new());
        assert_eq!(census, before);

        forget(&mut census, &HashSet::from([1]));
        assert_eq!(census.dirs.iter().map(|dir| dir.stamp).collect::<Vec<_>>(), [5, DirRow::UNSETTLED, 5]);
        assert_eq!(census.files_in(1), []);
        let left: Vec<&[u8]> = census.files_in(2).iter().map(|file| census.name(file.name)).collect();
        assert_eq!(left, [b"one", b"two"]);
        assert_eq!((census.dir_path(1), census.dir_path(2)), (b"bin".to_vec(), b"lib".to_vec()));
        assert_eq!(census.subdirs(0), before.subdirs(0));
    }
}
