//! Reading objects again: is each still what its name says?

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use kernel::{EntryBuffer, Errno, File, Kind, Seal};
use rayon::prelude::*;
use store::journal::{Journal, RunId};
use store::{ObjectName, Store};

use super::find::{Found, Wanted};
use super::quarantine::{KeptKind, kept, put_aside, restore};
use super::{Name, repair};
use crate::guest::Guest;
use crate::hash::identify;
use crate::notes::{Notes, Skip, Skipped, Surroundings};
use crate::seals::reseal;
use crate::{Error, Result};

/// Objects without their seal that are named in the report; the rest are counted.
const KEPT: usize = 1000;

/// What is to be checked, and what is to be done about what is found.
#[derive(Clone, Copy, Debug)]
pub struct Scrub {
    /// Share of the objects that is read, chosen at random, in percent; 100 reads all.
    pub sample: f64,
    /// The seal that objects should have.
    pub seal: Option<Seal>,
    /// Whether anything is changed: corrupt objects go into quarantine. Needs a store open for writing.
    pub quarantine: bool,
    /// Whether guests get their names of corrupt inodes replaced, and missing seals are put on again.
    pub repair: bool,
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its bytes or metadata are not those its name stands for.
    Altered,
    /// It cannot be read.
    Unreadable(Errno),
    /// It is no regular file.
    NotAFile,
    /// It was found corrupt before and lies in quarantine, and guests still have it.
    KnownBefore,
}

impl Fault {
    /// The stable word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Unreadable(_) => "unreadable",
            Self::NotAFile => "not-a-file",
            Self::KnownBefore => "known-before",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Altered => f.write_str("content or metadata is not what the name stands for"),
            Self::Unreadable(errno) => f.write_str(&kernel::explain(*errno)),
            Self::NotAFile => f.write_str("not a regular file"),
            Self::KnownBefore => f.write_str("in quarantine, and guests still have it"),
        }
    }
}

/// A corrupt object and the guests that hold it.
#[derive(Clone, Debug)]
pub struct Corrupt {
    /// What it was meant to be.
    pub object: ObjectName,
    /// What is wrong.
    pub fault: Fault,
    /// Its inode number.
    pub ino: u64,
    /// Its name in quarantine, once it is there: a guest may keep it where it is, by a lease.
    pub aside: Option<Vec<u8>>,
    /// Its names in the guests at hand, before any repair.
    pub names: Vec<Name>,
    /// Names that it has in no guest at hand, if its link count is right.
    pub elsewhere: u64,
    /// Whether a good copy took its place in the store.
    pub replaced: bool,
    /// Names that guests still have of the corrupt inode, here and elsewhere, at the end.
    pub left: u64,
    /// Identity classes that it may have had.
    pub(super) classes: BTreeSet<u64>,
}

/// What a scrub found and did.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Objects in the store.
    pub objects: u64,
    /// Objects that were read.
    pub checked: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Corrupt objects.
    pub corrupt: Vec<Corrupt>,
    /// Objects in quarantine that turned out sound and are in use again.
    pub restored: Vec<ObjectName>,
    /// Objects that lack the seal, or lacked it until now, counted.
    pub unsealed: u64,
    /// The first of them.
    pub unsealed_objects: Vec<ObjectName>,
    /// Seals put on again.
    pub resealed: u64,
    /// Objects that could not be checked, and why: nothing is said about them.
    pub unchecked: Vec<(ObjectName, Skip)>,
    /// Files with names that the store did not make.
    pub strangers: Vec<PathBuf>,
    /// Guests' files and directories that could not be looked at or repaired.
    pub skipped: Vec<Skipped>,
    /// How many there were of each kind.
    pub skipped_counts: BTreeMap<&'static str, u64>,
    /// The run that repaired, in the journal.
    pub run: Option<RunId>,
}

/// What one look at an object gave.
#[derive(Clone, Copy)]
enum Look {
    Sound { bytes: u64, sealed: bool, resealed: bool },
    Bad(Fault, u64),
    Unchecked(Skip),
}

/// Checks objects, and does what `what` asks for about those that are corrupt. `command` is for the journal.
pub fn scrub(
    around: &Surroundings<'_>,
    store: &Store,
    journal: Option<&mut Journal>,
    guests: &[Guest],
    what: Scrub,
    command: &str,
) -> Result<Scrubbed> {
    kernel::ignore_lease_breaks();
    let mut report = Scrubbed::default();
    check_objects(around, store, what, &mut report)?;
    if what.quarantine {
        for corrupt in &mut report.corrupt {
            corrupt.aside = put_aside(around, store, corrupt.object)?;
        }
    }
    look_into_quarantine(around, store, what, &mut report)?;
    if report.corrupt.is_empty() {
        return Ok(report);
    }
    let notes = Notes::default();
    if what.repair {
        repair::find_classes(store, &mut report.corrupt);
    }
    let found = search(around, store, guests, &notes, &report.corrupt);
    if around.stopping() {
        return Err(Error::Interrupted);
    }
    for corrupt in &mut report.corrupt {
        corrupt.names = found.names.get(&corrupt.ino).cloned().unwrap_or_default();
    }
    count_links(store, &mut report.corrupt);
    for corrupt in &mut report.corrupt {
        corrupt.elsewhere = corrupt.left.saturating_sub(corrupt.names.len() as u64);
    }
    if let Some(journal) = journal.filter(|_| what.repair) {
        let seal = what.seal.unwrap_or(Seal::None);
        let task = repair::Task { around, store, guests, notes: &notes, found: &found, seal, command };
        report.run = task.run(journal, &mut report.corrupt)?;
        count_links(store, &mut report.corrupt);
    }
    (report.skipped_counts, report.skipped) = notes.into_parts();
    Ok(report)
}

/// Reads the objects shard by shard, so that memory does not grow with the store.
fn check_objects(around: &Surroundings<'_>, store: &Store, what: Scrub, report: &mut Scrubbed) -> Result<()> {
    let chance = RandomState::new();
    // Of 2^53 equal parts, as many as a sample takes.
    let parts = ((what.sample / 100.0).clamp(0.0, 1.0) * (1_u64 << 53) as f64) as u64;
    let chosen = |name: ObjectName| chance.hash_one(name) >> 11 < parts;
    around.observer.phase("checking", bytes_to_check(store, &chosen)?);
    let mut buffer = EntryBuffer::default();
    for shard in 0..=255_u8 {
        let mut names = Vec::new();
        let each = |name, ino, _: &kernel::Dir| {
            report.objects += 1;
            if chosen(name) {
                names.push((ino, name));
            }
        };
        let mut strangers = Vec::new();
        store.for_each_in_shard(shard, &mut buffer, each, |path| strangers.push(path))?;
        report.strangers.append(&mut strangers);
        names.sort_unstable(); // as they lie on the disk, roughly
        let looks: Vec<(ObjectName, Look)> =
            names.into_par_iter().map(|(_, name)| (name, look(around, store, what, name))).collect();
        if around.stopping() {
            return Err(Error::Interrupted);
        }
        looks.into_iter().for_each(|(name, look)| report.add(name, look));
    }
    Ok(())
}

fn bytes_to_check(store: &Store, chosen: &(impl Fn(ObjectName) -> bool + Sync)) -> Result<u64> {
    let size = |shard| -> Result<u64> {
        let mut sum = 0;
        let each = |name: ObjectName, _, dir: &kernel::Dir| {
            if chosen(name) {
                sum += dir.stat(name.file_name().as_bytes()).map_or(0, |stat| stat.size);
            }
        };
        store.for_each_in_shard(shard, &mut EntryBuffer::default(), each, drop)?;
        Ok(sum)
    };
    (0..=255_u8).into_par_iter().map(size).sum()
}

impl Scrubbed {
    fn add(&mut self, object: ObjectName, look: Look) {
        match look {
            Look::Unchecked(Skip::Vanished) => self.objects -= 1,
            Look::Unchecked(why) => self.unchecked.push((object, why)),
            Look::Sound { bytes, sealed, resealed } => {
                self.checked += 1;
                self.bytes += bytes;
                self.resealed += u64::from(resealed);
                if !sealed {
                    self.unsealed += 1;
                    if self.unsealed_objects.len() < KEPT {
                        self.unsealed_objects.push(object);
                    }
                }
            }
            Look::Bad(fault, ino) => {
                self.checked += 1;
                self.corrupt.push(Corrupt::new(object, fault, ino, None));
            }
        }
    }

    /// Whether something was found that should not be.
    pub fn has_findings(&self) -> bool {
        !self.corrupt.is_empty() || self.unsealed > 0 || !self.restored.is_empty()
    }
}

impl Corrupt {
    fn new(object: ObjectName, fault: Fault, ino: u64, aside: Option<Vec<u8>>) -> Self {
        let (names, classes) = (Vec::new(), BTreeSet::new());
        Self { object, fault, ino, aside, names, elsewhere: 0, replaced: false, left: 0, classes }
    }
}

fn look(around: &Surroundings<'_>, store: &Store, what: Scrub, name: ObjectName) -> Look {
    let path = name.path();
    let stat = match store.objects().stat(path.as_bytes()) {
        Ok(stat) => stat,
        Err(errno) => return failed(errno, 0),
    };
    if stat.kind != Kind::File {
        return Look::Bad(Fault::NotAFile, stat.ino);
    }
    match store.objects().open_file(path.as_bytes()) {
        Ok(file) => look_at(around, store, what, name, &file),
        Err(errno) => failed(errno, stat.ino),
    }
}

fn look_at(around: &Surroundings<'_>, store: &Store, what: Scrub, name: ObjectName, file: &File) -> Look {
    let stat = match file.stat() {
        Ok(stat) => stat,
        Err(errno) => return failed(errno, 0),
    };
    // Where the file system has no such tags there is none to miss.
    let sealed = what.seal.is_none_or(|seal| seal.is_on(file).unwrap_or(true));
    match identify(around, file, &stat, store.format().identity) {
        Ok(id) if id == name.id => {
            let seal = what.seal.filter(|_| !sealed && what.repair);
            let resealed = seal.is_some_and(|seal| reseal(around, store, name, seal).is_ok());
            Look::Sound { bytes: stat.size, sealed, resealed }
        }
        Ok(_) => Look::Bad(Fault::Altered, stat.ino),
        Err(Skip::Failed(errno)) => failed(errno, stat.ino),
        // Shorter than its size says, or we were told to stop, which the caller notices.
        Err(Skip::Changed) if !around.stopping() => Look::Bad(Fault::Altered, stat.ino),
        Err(why) => Look::Unchecked(why),
    }
}

/// Only what the disk says of the object is a fault of it; no memory, no permission and the like are not.
fn failed(errno: Errno, ino: u64) -> Look {
    match errno {
        Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::ILSEQ if ino != 0 => {
            Look::Bad(Fault::Unreadable(errno), ino)
        }
        _ => Look::Unchecked(Skip::from_errno(errno)),
    }
}

/// What earlier runs found corrupt may still be held by guests, or may be readable again.
fn look_into_quarantine(
    around: &Surroundings<'_>,
    store: &Store,
    what: Scrub,
    report: &mut Scrubbed,
) -> Result<()> {
    let now: BTreeSet<u64> = report.corrupt.iter().map(|corrupt| corrupt.ino).collect();
    for kept in kept(store)? {
        let KeptKind::Corrupt(object) = kept.kind else { continue };
        if kept.stat.kind != Kind::File || kept.held() == 0 || now.contains(&kept.stat.ino) {
            continue;
        }
        let file = store.quarantine().open_file(&kept.name);
        let sound = file.is_ok_and(|file| {
            let again = Scrub { repair: false, ..what };
            matches!(look_at(around, store, again, object, &file), Look::Sound { .. })
        });
        if sound && what.repair && restore(around.fs, store, &kept.name, object)? {
            report.restored.push(object);
            continue;
        }
        report.corrupt.push(Corrupt::new(object, Fault::KnownBefore, kept.stat.ino, Some(kept.name)));
    }
    Ok(())
}

fn search(
    around: &Surroundings<'_>,
    store: &Store,
    guests: &[Guest],
    notes: &Notes,
    corrupt: &[Corrupt],
) -> Found {
    let inodes = corrupt.iter().map(|corrupt| corrupt.ino).collect();
    let classes = corrupt.iter().flat_map(|one| one.classes.iter().copied()).collect();
    let identity = store.format().identity;
    Wanted { around, place: store.place(), guests, identity, notes, inodes, classes }.run()
}

/// Names that guests have of each corrupt inode, by its link count.
fn count_links(store: &Store, corrupt: &mut [Corrupt]) {
    for one in corrupt {
        let path = one.object.path();
        let stat = match &one.aside {
            Some(aside) => store.quarantine().stat(aside),
            None => store.objects().stat(path.as_bytes()),
        };
        one.left = stat.map_or(0, |stat| u64::from(stat.nlink.saturating_sub(1)));
    }
}
