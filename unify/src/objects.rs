//! The objects of a store as this run found them: looked at once, each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Kind, Seal};
use rayon::prelude::*;
use store::index::ObjectRow;
use store::{ObjectId, ObjectName, Store, identity};

use crate::{Error, Result};

/// All objects, by inode number.
#[derive(Default)]
pub struct Objects {
    rows: Vec<ObjectRow>,
    classes: Vec<u64>,
    /// Twins and overflows of first objects, which cannot be counted up to: any of them may be gone.
    further: Vec<ObjectName>,
    /// Objects that no longer look as they were recorded: their content must be read before they are
    /// trusted (law 6). Those that are left after that are not: a guest keeps them from being read or sealed.
    pub suspects: Vec<ObjectName>,
    /// Whether some are immutable though the run's seal is another: then nobody can link them.
    pub is_locked: bool,
    /// Whether the index does not know them as they are.
    is_new: bool,
}

impl Objects {
    /// Looks at every object once: type, class of its metadata against what the index recorded, and
    /// whether the seal that `enforced` names is still on.
    pub fn scan(store: &Store, recorded: Vec<ObjectRow>, enforced: Option<Seal>) -> Result<Self> {
        // What cannot be searched is a damaged index.
        let mut rows = if recorded.is_sorted() { recorded } else { Vec::new() };
        let seen: Vec<AtomicBool> = rows.iter().map(|_| AtomicBool::new(false)).collect();
        let found = Mutex::new(Found::default());
        (0..=255_u8).into_par_iter().try_for_each_init(EntryBuffer::default, |buffer, shard| {
            let mut here = Found::default();
            let each = |name: ObjectName, ino, dir: &Dir| {
                let Some(Look { row, is_sealed, is_locked }) = look(store, enforced, name, ino, dir) else {
                    return;
                };
                let known = rows.binary_search_by_key(&ino, |row| row.ino).ok();
                match known.filter(|at| rows[*at] == row) {
                    Some(at) => seen[at].store(true, Ordering::Relaxed),
                    None => here.rows.push(row),
                }
                let is_unchanged = known.is_none_or(|at| rows[at].class == row.class);
                here.suspects.extend((!(is_unchanged && is_sealed)).then_some(name));
                here.is_locked |= is_locked;
                here.further.extend((name != ObjectName::first(name.id)).then_some(name));
            };
            store.for_each_in_shard(shard, buffer, each, drop)?;
            found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut here);
            Ok::<_, Error>(())
        })?;
        let Found { rows: mut others, mut suspects, mut further, is_locked } =
            found.into_inner().unwrap_or_else(PoisonError::into_inner);
        suspects.sort_unstable();
        further.par_sort_unstable();
        let is_new = !others.is_empty() || seen.iter().any(|seen| !seen.load(Ordering::Relaxed));
        if is_new {
            let mut seen = seen.iter();
            rows.retain(|_| seen.next().is_some_and(|seen| seen.load(Ordering::Relaxed)));
            rows.append(&mut others);
            rows.par_sort_unstable();
        }
        let mut classes: Vec<u64> = rows.iter().map(|row: &ObjectRow| row.class).collect();
        classes.par_sort_unstable();
        classes.dedup();
        Ok(Self { rows, classes, further, suspects, is_locked, is_new })
    }

    /// Adds some that nothing may be linked to.
    pub(crate) fn distrust(&mut self, more: &[ObjectName]) {
        self.suspects.extend(more);
        self.suspects.sort_unstable();
    }

    /// Whether an inode of the store's file system is an object.
    pub fn contains(&self, ino: u64) -> bool {
        self.rows.binary_search_by_key(&ino, |row| row.ino).is_ok()
    }

    /// Whether some object has this class.
    pub fn has_class(&self, class: u64) -> bool {
        self.classes.binary_search(&class).is_ok()
    }

    /// The names that objects of this identity have, in their order; the first whether or not there is one.
    pub(crate) fn names(&self, id: ObjectId) -> impl Iterator<Item = ObjectName> {
        let from = self.further.partition_point(|name| name.id < id);
        let further = self.further[from..].iter().copied().take_while(move |name| name.id == id);
        std::iter::once(ObjectName::first(id)).chain(further)
    }

    /// What the index should remember, with the objects that were admitted since; none if it knows already. Suspects are
    /// recorded as what they are not, so that they are suspects again.
    pub(crate) fn into_rows_if_new(
        mut self,
        store: &Store,
        admitted: Vec<ObjectRow>,
    ) -> Option<Vec<ObjectRow>> {
        if !self.is_new && admitted.is_empty() && self.suspects.is_empty() {
            return None;
        }
        self.rows.extend(admitted);
        self.rows.par_sort_unstable();
        self.rows.dedup_by_key(|row| row.ino);
        for stat in self.suspects.iter().filter_map(|name| store.stat_object(*name).ok().flatten()) {
            if let Ok(at) = self.rows.binary_search_by_key(&stat.ino, |row| row.ino) {
                self.rows[at].class = !identity::class(store.format().identity, &stat);
            }
        }
        Some(self.rows)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a look at a part of the store gave.
#[derive(Default)]
struct Found {
    /// Of objects that are not recorded as they are.
    rows: Vec<ObjectRow>,
    suspects: Vec<ObjectName>,
    further: Vec<ObjectName>,
    is_locked: bool,
}

impl Found {
    fn append(&mut self, other: &mut Self) {
        self.rows.append(&mut other.rows);
        self.suspects.append(&mut other.suspects);
        self.further.append(&mut other.further);
        self.is_locked |= other.is_locked;
    }
}

/// An object as it is.
struct Look {
    row: ObjectRow,
    /// A file with its seal on.
    is_sealed: bool,
    /// Sealed in a way that the run doesn't, and that lets it have no more links.
    is_locked: bool,
}

/// None for an object that vanished.
fn look(store: &Store, enforced: Option<Seal>, name: ObjectName, ino: u64, dir: &Dir) -> Option<Look> {
    let file_name = name.file_name();
    let stat = dir.stat(file_name.as_bytes()).ok()?;
    let row = ObjectRow { ino, class: identity::class(store.format().identity, &stat) };
    let is_sealed = match enforced {
        Some(Seal::Patch | Seal::Immutable) => stat.immutable,
        Some(Seal::Verity) => stat.verity,
        Some(Seal::Bpf) => {
            dir.open_file(file_name.as_bytes()).is_ok_and(|file| Seal::Bpf.is_on(&file).unwrap_or(false))
        }
        Some(Seal::None) | None => true,
    };
    let is_locked = stat.immutable && !matches!(enforced, Some(Seal::Patch | Seal::Immutable) | None);
    Some(Look { row, is_sealed: is_sealed && stat.kind == Kind::File, is_locked })
}
