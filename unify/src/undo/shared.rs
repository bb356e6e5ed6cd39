//! What runs have shared, as the journal has it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kernel::Time;
use store::journal::{Journal, RunId, RunKind, Settled};
use store::{ObjectName, Store};

use super::Object;
use super::held::Held;
use crate::guest::Guest;
use crate::{Error, Result};

/// What guests have under other names than they were given it, and the time that it had.
type Moved = BTreeMap<(u32, ObjectName), Option<Time>>;

/// Names that were shared.
#[derive(Default)]
pub(super) struct Shared {
    /// Of all names that guests have of objects, those of the run; none where no run is given.
    rows: Option<Vec<bool>>,
    /// The times that identity left out.
    times: HashMap<u32, Time>,
    /// All guests of the run are at hand.
    pub(super) whole: bool,
}

/// A name that the journal mentions.
#[derive(Clone, Copy)]
pub(super) struct Mention<'b> {
    pub(super) guest: u32,
    pub(super) dir: &'b [u8],
    pub(super) name: &'b [u8],
    /// What it became a name of.
    object: ObjectName,
}

impl Shared {
    /// Whether a name is one of the run's, if there is one.
    pub(super) fn has(&self, row: u32) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows[row as usize])
    }

    /// The time that was taken away from a file when it was shared.
    pub(super) fn time(&self, row: u32) -> Option<Time> {
        self.times.get(&row).copied()
    }

    fn note(&mut self, row: u32, time: Option<Time>, is_of_run: bool) {
        if let Some(rows) = &mut self.rows {
            rows[row as usize] = is_of_run;
        }
        match time {
            Some(time) => drop(self.times.insert(row, time)),
            None => drop(self.times.remove(&row)),
        }
    }
}

/// Whether there is something to be taken back of a run.
pub(super) fn check(journal: &Journal, run: RunId) -> Result<()> {
    let bad = |why| Err(Error::BadRun { run, why });
    match journal.runs()?.iter().find(|known| known.id == run) {
        None => bad("is not in the journal"),
        Some(known) if known.kind != RunKind::Unify => bad("has shared nothing"),
        Some(known) if known.undone_by.is_some() => bad("is undone already"),
        Some(_) => Ok(()),
    }
}

/// What the journal tells about names that guests have of objects.
pub(super) struct Past<'p> {
    pub(super) store: &'p Store,
    pub(super) journal: &'p Journal,
    pub(super) guests: &'p [Guest],
    pub(super) objects: &'p HashMap<u64, Object>,
    pub(super) held: &'p Held,
}

impl Past<'_> {
    /// What a run has shared, apart from what later runs have shared again after a guest had replaced it. Names that no
    /// longer are objects', and have not been moved either, go to `gone`.
    pub(super) fn shared_by(&self, run: RunId, mut gone: impl FnMut(Mention<'_>)) -> Result<Shared> {
        let mut shared = Shared { rows: Some(vec![false; self.held.len()]), ..Shared::default() };
        let mut moved = Moved::new();
        shared.whole = self.for_each_shared(run, |mention, row, time| {
            if let Some(row) = row {
                shared.note(row, time, true);
            }
            if !self.is_moved(&mention, row, time, &mut moved)? && row.is_none() {
                gone(mention);
            }
            Ok(())
        })?;
        for later in
            self.journal.runs()?.iter().filter(|later| later.id > run && later.kind == RunKind::Unify)
        {
            self.for_each_shared(later.id, |mention, row, _| {
                moved.remove(&(mention.guest, mention.object));
                if let Some(row) = row {
                    shared.note(row, None, false);
                }
                Ok(())
            })?;
        }
        self.note_moved(&moved, &mut shared)?;
        Ok(shared)
    }

    /// The times that identity leaves out, by the latest run that took each away.
    pub(super) fn times_taken(&self) -> Result<Shared> {
        let (mut shared, mut moved) = (Shared::default(), Moved::new());
        for run in self.journal.runs()?.iter().filter(|run| run.kind == RunKind::Unify) {
            self.for_each_shared(run.id, |mention, row, time| {
                moved.remove(&(mention.guest, mention.object));
                if let Some(row) = row {
                    shared.note(row, time, true);
                }
                self.is_moved(&mention, row, time, &mut moved)?;
                Ok(())
            })?;
        }
        self.note_moved(&moved, &mut shared)?;
        Ok(shared)
    }

    /// Whether the guest has what it was given under other names only; then it is added to `moved`. No two files of a
    /// guest become names of one object: what it has of this one is what it was given here, or by a later run.
    fn is_moved(
        &self,
        mention: &Mention<'_>,
        row: Option<u32>,
        time: Option<Time>,
        moved: &mut Moved,
    ) -> Result<bool> {
        let is_there =
            |row| self.objects.get(&self.held.ino(row)).is_some_and(|one| one.name == mention.object);
        if row.is_some_and(is_there) || self.names_of(mention.guest, mention.object)?.is_empty() {
            return Ok(false);
        }
        moved.insert((mention.guest, mention.object), time);
        Ok(true)
    }

    fn note_moved(&self, moved: &Moved, shared: &mut Shared) -> Result<()> {
        for (&(guest, object), &time) in moved {
            self.names_of(guest, object)?.iter().for_each(|row| shared.note(*row, time, true));
        }
        Ok(())
    }

    /// What a guest has of an object.
    fn names_of(&self, guest: u32, object: ObjectName) -> Result<&[u32]> {
        let stat = self.store.stat_object(object)?;
        Ok(stat.map_or(&[], |stat| self.held.names_in(guest, stat.ino)))
    }

    /// Calls `each` for every name that a run has shared, with its row where a guest still has it and the time it had;
    /// returns whether all its guests are at hand.
    fn for_each_shared(
        &self,
        run: RunId,
        mut each: impl FnMut(Mention<'_>, Option<u32>, Option<Time>) -> Result<()>,
    ) -> Result<bool> {
        let guests: HashMap<&Path, u32> =
            self.guests.iter().zip(0..).map(|(guest, number)| (&*guest.key, number)).collect();
        let (mut seq, mut all) = (0, true);
        while let Some((batch, settled)) = self.journal.batch(run, seq)? {
            let place = |dir: &store::journal::DirRef| {
                let guest = *guests.get(&*batch.guests[dir.guest as usize])?;
                Some((guest, self.held.find_place(guest, &dir.path)))
            };
            let places: Vec<Option<(u32, Option<u32>)>> = batch.dirs.iter().map(place).collect();
            for (action, how) in batch.actions.iter().zip(settled.unwrap_or_default()) {
                let (Settled::Done { overflow } | Settled::Admitted { overflow }) = how else { continue };
                let object = ObjectName { overflow, ..action.object };
                // An inode that became an object where it was still has its own time.
                let time = action.mtime.filter(|_| matches!(how, Settled::Done { .. }));
                for name in &action.names {
                    let Some((guest, place)) = places[name.dir as usize] else {
                        all = false;
                        continue;
                    };
                    let row = place.and_then(|place| self.held.find(place, &name.name));
                    let dir = &batch.dirs[name.dir as usize].path;
                    each(Mention { guest, dir, name: &name.name, object }, row, time)?;
                }
            }
            seq += 1;
        }
        Ok(all)
    }
}
