//! Where in the guests inodes have names, and which private files may be good copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, Kind};
use store::identity::class;
use store::{IdentityPolicy, Place};

use crate::guest::Guest;
use crate::notes::{Notes, Skip, Surroundings};
use crate::walk::{join, to_path};

/// Private files of one class that are remembered: the first that proves good is used, the others are spare.
const SPARE: usize = 64;

/// Longest path within a guest that is followed, in bytes.
const MAX_PATH: usize = 64 * 1024;

/// A name in a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Number of the guest in the list given.
    pub guest: u32,
    /// The directory within the guest, empty for its root.
    pub dir: Vec<u8>,
    /// The name in it.
    pub name: Vec<u8>,
}

impl Name {
    /// The path within the guest.
    pub fn path(&self) -> std::path::PathBuf {
        to_path(&join(&self.dir, &self.name))
    }
}

/// What is looked for.
pub(super) struct Search<'a> {
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

impl Search<'_> {
    /// Reads every directory of every guest. What cannot be read is noted.
    pub(super) fn run(&self) -> Found {
        self.around.observer.phase("walking", 0);
        let found = Mutex::new(Found::default());
        rayon::scope(|scope| {
            for guest in 0..self.guests.len() as u32 {
                let found = &found;
                scope.spawn(move |scope| self.visit(scope, found, guest, &[]));
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.names.values_mut().for_each(|names| names.sort_unstable());
        found
    }

    fn visit<'s>(&'s self, scope: &rayon::Scope<'s>, found: &'s Mutex<Found>, guest: u32, path: &[u8]) {
        if self.around.stopping() {
            return;
        }
        let root = &self.guests[guest as usize];
        let visited = root.root.open_dir(path).and_then(|dir| {
            // Another subvolume: its inode numbers mean nothing here.
            if dir.stat_self()?.dev != self.place.dev() {
                return Ok(());
            }
            self.read(scope, found, guest, path, &dir)
        });
        if let Err(errno) = visited {
            self.notes.skip(&root.key, to_path(path), Skip::from_errno(errno));
        }
        self.around.observer.advance(1);
    }

    fn read<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        found: &'s Mutex<Found>,
        guest: u32,
        path: &[u8],
        dir: &Dir,
    ) -> kernel::Result<()> {
        let here = |name: &[u8]| Name { guest, dir: path.to_vec(), name: name.to_vec() };
        dir.for_each(&mut EntryBuffer::default(), |entry| -> Result<(), Errno> {
            match entry.kind {
                Kind::Directory => {
                    let path = join(path, entry.name);
                    if path.len() <= MAX_PATH {
                        scope.spawn(move |scope| self.visit(scope, found, guest, &path));
                    } else {
                        self.notes.skip(&self.guests[guest as usize].key, to_path(&path), Skip::OutOfReach);
                    }
                }
                Kind::File if self.inodes.contains(&entry.ino) => {
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.names.entry(entry.ino).or_default().push(here(entry.name));
                }
                Kind::File if !self.classes.is_empty() => self.compare(found, dir, here(entry.name)),
                _ => {}
            }
            Ok(())
        })
    }

    fn compare(&self, found: &Mutex<Found>, dir: &Dir, name: Name) {
        let Ok(stat) = dir.stat(&name.name) else { return };
        let class = class(self.identity, &stat);
        if stat.kind == Kind::File && self.classes.contains(&class) {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            let alike = found.alike.entry(class).or_default();
            if alike.len() < SPARE {
                alike.push(name);
            }
        }
    }
}
