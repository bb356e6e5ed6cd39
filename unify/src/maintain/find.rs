//! Where in the guests inodes have names, and which private files may be good copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, Kind};
use store::identity::class;
use store::{IdentityPolicy, Place};

use crate::descend::{self, Below, Here, Trail, descend};
use crate::guest::Guest;
use crate::notes::{Notes, Skip, Surroundings};
use crate::walk::{join, to_path};

/// Private files of one class that are remembered: the first that proves good is used, the others are spare.
const SPARE: usize = 64;

/// A name in a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Number of the guest in the list given.
    pub guest: u32,
    /// The way to its directory.
    pub(super) dir: Trail,
    /// The name in it.
    pub name: Vec<u8>,
}

impl Name {
    /// The path within the guest.
    pub fn path(&self) -> std::path::PathBuf {
        to_path(&join(&self.dir.path(), &self.name))
    }
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub(super) around: &'a Surroundings<'a>,
    pub(super) place: &'a Place,
    pub(super) guests: &'a [Guest],
    pub(super) identity: IdentityPolicy,
    pub(super) notes: &'a Notes,
    /// Inodes whose names are wanted.
    pub(super) inodes: BTreeSet<u64>,
    /// Identity classes of which private files are wanted.
    pub(super) classes: BTreeSet<u64>,
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Names by inode.
    pub(super) names: BTreeMap<u64, Vec<Name>>,
    /// Private files by class.
    pub(super) alike: BTreeMap<u64, Vec<Name>>,
}

impl Wanted<'_> {
    /// Reads every directory of every guest. What cannot be read is noted.
    pub(super) fn run(&self) -> Found {
        self.around.observer.phase("walking", 0);
        let look = Look { wanted: self, found: Mutex::default() };
        descend(self.around, self.guests, 0..self.guests.len() as u32, &look);
        let mut found = look.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.names.values_mut().for_each(|names| names.sort_unstable());
        found
    }
}

struct Look<'l, 'a> {
    wanted: &'l Wanted<'a>,
    found: Mutex<Found>,
}

impl Look<'_, '_> {
    fn compare(&self, dir: &Dir, name: Name) {
        let Ok(stat) = dir.stat(&name.name) else { return };
        let class = class(self.wanted.identity, &stat);
        if stat.kind == Kind::File && self.wanted.classes.contains(&class) {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let alike = found.alike.entry(class).or_default();
            if alike.len() < SPARE {
                alike.push(name);
            }
        }
    }
}

impl descend::Search for Look<'_, '_> {
    fn look(&self, here: &Here<'_>, below: &mut Below) -> kernel::Result<()> {
        self.wanted.around.observer.advance(1);
        // Another subvolume: its inode numbers mean nothing here.
        if here.dir.stat_self()?.dev != self.wanted.place.dev() {
            return Ok(());
        }
        let name = |name: &[u8]| Name { guest: here.guest, dir: here.trail.clone(), name: name.to_vec() };
        here.dir.for_each(&mut EntryBuffer::default(), |entry| -> kernel::Result<()> {
            match entry.kind {
                Kind::Directory => below.add(entry.name)?,
                Kind::File if self.wanted.inodes.contains(&entry.ino) => {
                    let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.names.entry(entry.ino).or_default().push(name(entry.name));
                }
                Kind::File if !self.wanted.classes.is_empty() => self.compare(here.dir, name(entry.name)),
                _ => {}
            }
            Ok(())
        })
    }

    fn miss(&self, guest: u32, path: &[u8], errno: Errno) {
        self.wanted.notes.skip(
            &self.wanted.guests[guest as usize].key,
            to_path(path),
            Skip::from_errno(errno),
        );
    }
}
