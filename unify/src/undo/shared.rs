//! What runs have shared, as the journal has it.

use std::collections::HashMap;
use std::path::Path;

use kernel::Time;
use store::journal::{Journal, RunId, RunKind, Settled};

use super::held::Held;
use crate::session::Session;
use crate::{Error, Result};

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

impl Session<'_> {
    /// What a run has shared, apart from what later runs have shared again after a guest had replaced it. Names that no
    /// longer are objects' go to `gone`.
    pub(super) fn shared_by_run(
        &self,
        journal: &Journal,
        run: RunId,
        held: &Held,
        mut gone: impl FnMut(Mention<'_>),
    ) -> Result<Shared> {
        let mut shared = Shared { rows: Some(vec![false; held.len()]), ..Shared::default() };
        shared.whole = self.for_each_shared(journal, run, held, |mention, row, time| match row {
            Some(row) => shared.note(row, time, true),
            None => gone(mention),
        })?;
        for later in journal.runs()?.iter().filter(|later| later.id > run && later.kind == RunKind::Unify) {
            self.for_each_shared(journal, later.id, held, |_, row, _| {
                if let Some(row) = row {
                    shared.note(row, None, false);
                }
            })?;
        }
        Ok(shared)
    }

    /// The times that identity leaves out, by the latest run that took each away.
    pub(super) fn times_taken(&self, journal: &Journal, held: &Held) -> Result<Shared> {
        let mut shared = Shared::default();
        for run in journal.runs()?.iter().filter(|run| run.kind == RunKind::Unify) {
            self.for_each_shared(journal, run.id, held, |_, row, time| {
                if let Some(row) = row {
                    shared.note(row, time, true);
                }
            })?;
        }
        Ok(shared)
    }

    /// Calls `each` for every name that a run has shared, with its row where a guest still has it and the time it had;
    /// returns whether all its guests are at hand.
    fn for_each_shared(
        &self,
        journal: &Journal,
        run: RunId,
        held: &Held,
        mut each: impl FnMut(Mention<'_>, Option<u32>, Option<Time>),
    ) -> Result<bool> {
        let guests: HashMap<&Path, u32> =
            self.guests.iter().zip(0..).map(|(guest, number)| (&*guest.key, number)).collect();
        let (mut seq, mut all) = (0, true);
        while let Some((batch, settled)) = journal.batch(run, seq)? {
            let place = |dir: &store::journal::DirRef| {
                let guest = *guests.get(&*batch.guests[dir.guest as usize])?;
                Some((guest, held.find_place(guest, &dir.path)))
            };
            let places: Vec<Option<(u32, Option<u32>)>> = batch.dirs.iter().map(place).collect();
            let settled = settled.unwrap_or_default();
            let done = batch.actions.iter().zip(settled).filter(|(_, how)| *how != Settled::NotDone);
            for (action, how) in done {
                // An inode that became an object where it was still has its own time.
                let time = action.mtime.filter(|_| matches!(how, Settled::Done { .. }));
                for name in &action.names {
                    let Some((guest, place)) = places[name.dir as usize] else {
                        all = false;
                        continue;
                    };
                    let row = place.and_then(|place| held.find(place, &name.name));
                    let dir = &batch.dirs[name.dir as usize].path;
                    each(Mention { guest, dir, name: &name.name }, row, time);
                }
            }
            seq += 1;
        }
        Ok(all)
    }
}
