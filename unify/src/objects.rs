//! The objects of a store as this run found them: looked at once, each.

use std::sync::Mutex;

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
    /// trusted (law 6).
    pub suspects: Vec<ObjectName>,
    /// Whether the index does not know them as they are.
    is_new: bool,
}

impl Objects {
    /// Looks at every object once: type, class of its metadata against what the index recorded, and
    /// whether the seal that `enforced` names is still on.
    pub fn scan(store: &Store, recorded: Vec<ObjectRow>, enforced: Option<Seal>) -> Result<Self> {
        let found = Mutex::new((Vec::with_capacity(recorded.len()), Vec::new(), Vec::new()));
        (0..=255_u8).into_par_iter().try_for_each_init(EntryBuffer::default, |buffer, shard| {
            let (mut rows, mut suspects, mut further) = (Vec::new(), Vec::new(), Vec::new());
            let each = |name: ObjectName, ino, dir: &Dir| {
                let Some((row, good)) = look(store, &recorded, enforced, name, ino, dir) else { return };
                rows.push(row);
                suspects.extend((!good).then_some(name));
                further.extend((name != ObjectName::first(name.id)).then_some(name));
            };
            store.for_each_in_shard(shard, buffer, each, drop)?;
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.0.append(&mut rows);
            found.1.append(&mut suspects);
            found.2.append(&mut further);
            Ok::<_, Error>(())
        })?;
        let (mut rows, mut suspects, mut further) =
            found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        rows.par_sort_unstable();
        suspects.sort_unstable();
        further.par_sort_unstable();
        let is_new = rows != recorded;
        drop(recorded);
        let mut classes: Vec<u64> = rows.iter().map(|row: &ObjectRow| row.class).collect();
        classes.par_sort_unstable();
        classes.dedup();
        Ok(Self { rows, classes, further, suspects, is_new })
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

    /// What the index should remember, with the objects that were admitted since; none if it knows already.
    pub(crate) fn into_rows_if_new(mut self, admitted: Vec<ObjectRow>) -> Option<Vec<ObjectRow>> {
        if !self.is_new && admitted.is_empty() {
            return None;
        }
        self.rows.extend(admitted);
        self.rows.par_sort_unstable();
        self.rows.dedup_by_key(|row| row.ino);
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

/// The object's row and whether it looks as it should; none for one that vanished.
fn look(
    store: &Store,
    recorded: &[ObjectRow],
    enforced: Option<Seal>,
    name: ObjectName,
    ino: u64,
    dir: &Dir,
) -> Option<(ObjectRow, bool)> {
    let file_name = name.file_name();
    let stat = dir.stat(file_name.as_bytes()).ok()?;
    let row = ObjectRow { ino, class: identity::class(store.format().identity, &stat) };
    let known = recorded.binary_search_by_key(&ino, |row| row.ino).ok();
    let unchanged = known.is_none_or(|at| recorded[at].class == row.class);
    let sealed = match enforced {
        Some(Seal::Patch | Seal::Immutable) => stat.immutable,
        Some(Seal::Verity) => stat.verity,
        Some(Seal::Bpf) => {
            dir.open_file(file_name.as_bytes()).is_ok_and(|file| Seal::Bpf.is_on(&file).unwrap_or(false))
        }
        Some(Seal::None) | None => true,
    };
    Some((row, unchanged && sealed && stat.kind == Kind::File))
}
