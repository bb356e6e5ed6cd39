//! What guests have of the objects: some 40 bytes a name, so that a host can be undone as a whole.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kernel::{EntryBuffer, Errno, Kind};
use store::census;

use super::{Object, Scope};
use crate::descend::{Below, Here, MAX_DIR_NAMES, Search, Trail, descend};
use crate::notes::{Count, Skip};
use crate::session::Session;
use crate::walk::to_path;

/// All names of objects in the guests: by guest, directory and name.
#[derive(Default)]
pub(super) struct Held {
    places: Vec<Place>,
    rows: Vec<Row>,
    /// Rows by inode; those of one inode in their own order.
    by_inode: Vec<u32>,
}

/// A directory of a guest that has names of objects.
pub(super) struct Place {
    pub(super) guest: u32,
    trail: Trail,
    /// Kept as [`census::Census::names`] are.
    names: Vec<u8>,
    rows: Range<u32>,
}

impl Place {
    pub(super) fn path(&self) -> Vec<u8> {
        self.trail.path()
    }

    pub(super) fn path_bytes(&self) -> usize {
        self.trail.length()
    }
}

/// One name of an object.
#[derive(Clone, Copy)]
struct Row {
    ino: u64,
    place: u32,
    /// Where it begins in the names of its place.
    name: u32,
}

/// A directory that was read: its place, and its names with their inodes.
type Found = (Place, Vec<(u64, u32)>);

impl Held {
    fn new(mut found: Vec<Found>) -> Self {
        found.sort_unstable_by(|(a, _), (b, _)| (a.guest, &a.trail).cmp(&(b.guest, &b.trail)));
        // What changes while it is read may be seen twice: a directory as well as a name.
        found.dedup_by(|(again, names), (place, all)| {
            let is_same = (again.guest, &again.trail) == (place.guest, &place.trail);
            if is_same {
                let mut add = |at| census::add_name(&mut place.names, census::name_at(&again.names, at));
                all.extend(names.iter().map(|&(ino, at)| (ino, add(at))));
            }
            is_same
        });
        let mut held = Self::default();
        held.rows.reserve_exact(found.iter().map(|(_, names)| names.len()).sum());
        for (mut place, mut names) in found {
            let name = |at: u32| census::name_at(&place.names, at);
            names.sort_unstable_by_key(|&(ino, at)| (name(at), ino));
            names.dedup_by_key(|&mut (ino, at)| (name(at), ino));
            let number = held.places.len() as u32;
            let first = held.rows.len() as u32;
            held.rows.extend(names.into_iter().map(|(ino, name)| Row { ino, place: number, name }));
            place.rows = first..held.rows.len() as u32;
            held.places.push(place);
        }
        held.by_inode = (0..held.rows.len() as u32).collect();
        let rows = &held.rows;
        held.by_inode.sort_unstable_by_key(|&row| (rows[row as usize].ino, row));
        held
    }

    /// How many names there are: they are numbered from 0.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The number of a directory's place.
    pub(super) fn find_place(&self, guest: u32, path: &[u8]) -> Option<u32> {
        let trail = Trail::along(path);
        let found = self.places.binary_search_by(|place| (place.guest, &place.trail).cmp(&(guest, &trail)));
        found.ok().map(|at| at as u32)
    }

    /// The number of a name in a place.
    pub(super) fn find(&self, place: u32, name: &[u8]) -> Option<u32> {
        let Range { start, end } = self.places[place as usize].rows;
        let rows = &self.rows[start as usize..end as usize];
        let names = &self.places[place as usize].names;
        let found = rows.binary_search_by(|row| census::name_at(names, row.name).cmp(name));
        found.ok().map(|at| start + at as u32)
    }

    pub(super) fn name(&self, row: u32) -> &[u8] {
        let Row { place, name, .. } = self.rows[row as usize];
        census::name_at(&self.places[place as usize].names, name)
    }

    /// The place of a name, and its number.
    pub(super) fn place(&self, row: u32) -> (&Place, u32) {
        let number = self.rows[row as usize].place;
        (&self.places[number as usize], number)
    }

    pub(super) fn ino(&self, row: u32) -> u64 {
        self.rows[row as usize].ino
    }

    /// The names of one inode in one guest, of which `first` is the first position in the order of inodes.
    pub(super) fn names(&self, first: u32, count: u32) -> &[u32] {
        &self.by_inode[first as usize..][..count as usize]
    }

    /// The names of one inode in one guest.
    pub(super) fn names_in(&self, guest: u32, ino: u64) -> &[u32] {
        let key = |row: &u32| (self.ino(*row), self.place(*row).0.guest);
        let first = self.by_inode.partition_point(|row| key(row) < (ino, guest));
        let names = &self.by_inode[first..];
        &names[..names.partition_point(|row| key(row) == (ino, guest))]
    }

    /// Every inode: what each guest has of it stays one inode. Positions are those of [`Held::names`].
    pub(super) fn inodes(&self) -> impl Iterator<Item = (u64, Vec<(u32, u32)>)> {
        let mut next = 0;
        self.by_inode.chunk_by(|a, b| self.ino(*a) == self.ino(*b)).map(move |names| {
            let by_guest = names.chunk_by(|a, b| self.place(*a).0.guest == self.place(*b).0.guest);
            let guests = by_guest.map(|names| {
                let (first, count) = (next, names.len() as u32);
                next += count;
                (first, count)
            });
            (self.ino(names[0]), guests.collect())
        })
    }
}

impl Session<'_> {
    /// Every name in the guests whose inode is an object; and how many directories that may have some of the scope could
    /// not be read.
    pub(super) fn held_by_guests(&self, objects: &HashMap<u64, Object>, scope: &Scope) -> (Held, u64) {
        self.around.observer.phase("walking", 0);
        let (found, missed) = (Mutex::default(), Count::default());
        let search = HeldSearch { session: self, objects, scope, found, missed };
        descend(self.around, &self.guests, 0..self.guests.len() as u32, &search);
        (Held::new(search.found.into_inner().unwrap_or_else(PoisonError::into_inner)), search.missed.get())
    }
}

struct HeldSearch<'h, 's> {
    session: &'h Session<'s>,
    objects: &'h HashMap<u64, Object>,
    scope: &'h Scope,
    found: Mutex<Vec<Found>>,
    missed: Count,
}

impl Search for HeldSearch<'_, '_> {
    fn look(&self, here: &Here<'_>, below: &mut Below) -> kernel::Result<()> {
        // Another subvolume: its inode numbers mean nothing here.
        if here.dir.stat_self()?.dev != self.session.place.dev() {
            return Ok(());
        }
        let (mut names, mut inodes) = (Vec::new(), Vec::new());
        let read = here.dir.for_each(&mut EntryBuffer::default(), |entry| -> kernel::Result<()> {
            if entry.kind == Kind::Directory {
                below.add(entry.name)?;
            } else if self.objects.contains_key(&entry.ino) {
                if names.len() > MAX_DIR_NAMES {
                    return Err(Errno::OVERFLOW);
                }
                inodes.push((entry.ino, census::add_name(&mut names, entry.name)));
            }
            Ok(())
        });
        if !inodes.is_empty() {
            names.shrink_to_fit();
            inodes.shrink_to_fit();
            let place = Place { guest: here.guest, trail: here.trail.clone(), names, rows: 0..0 };
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push((place, inodes));
        }
        read
    }

    fn miss(&self, guest: u32, path: &[u8], errno: Errno) {
        let (guest, why) = (&self.session.guests[guest as usize], Skip::from_errno(errno));
        let whole = guest.path.join(to_path(path));
        let may_have = |wanted: &PathBuf| whole.starts_with(wanted) || wanted.starts_with(&whole);
        if self.scope.paths.is_empty() || self.scope.paths.iter().any(may_have) {
            self.missed.add(u64::from(why != Skip::Vanished));
            self.session.notes.skip(&guest.key, to_path(path), why);
        }
    }
}
