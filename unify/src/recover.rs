//! Settling what a crash left: intents that have no outcome, and parked names.
//!
//! Recovery trusts what it sees, not what the journal hoped for. Every step can be repeated: a crash during
//! recovery is recovered from in the same way.

use std::path::PathBuf;

use kernel::{At, Dir, Errno, Leased, Seal};
use store::journal::{Action, Batch, Journal, Run, RunEnd, Settled, Verb};
use store::{ObjectName, Store};

use crate::Result;
use crate::apply::{Parking, Swap, fasten, for_overflows, keep_aside, lift_seals, restore_time, swap};
use crate::hash::identify;
use crate::notes::{Skip, Surroundings};
use crate::walk::to_path;

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The run that was cut off.
    pub run: Option<i64>,
    /// Actions that had been done, or were completed.
    pub completed: u64,
    /// Actions that were taken back, or had not been begun.
    pub taken_back: u64,
    /// Files of unclear origin that were put into `quarantine/` instead of being removed.
    pub kept: Vec<PathBuf>,
}

/// Settles the run that was cut off, if there is one, and takes stray parked names away.
pub fn recover(around: &Surroundings<'_>, store: &Store, journal: &mut Journal) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some(run) = journal.open_run()? {
        outcome.run = Some(run.id);
        Recovery { around, store, seal: run.seal, outcome: &mut outcome }.settle_run(journal, &run)?;
    }
    for run in store.run_dirs("parked")? {
        // No batch that could be open accounts for these: in doubt nothing is removed.
        Recovery { around, store, seal: Seal::None, outcome: &mut outcome }.sweep(run)?;
    }
    if let Some(run) = outcome.run {
        journal.end(run, RunEnd::Recovered, "{}", &[])?;
    }
    Ok(outcome)
}

struct Recovery<'a> {
    around: &'a Surroundings<'a>,
    store: &'a Store,
    seal: Seal,
    outcome: &'a mut Outcome,
}

/// A name of an action, as far as it can still be reached.
struct Place {
    dir: Option<Dir>,
    name: Vec<u8>,
    lane: u32,
    parked: Vec<u8>,
}

/// Which side of its exchange a name is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It has what it had before.
    Before,
    /// It has what it was to get: this overflow of the object, or a copy of it.
    After(u16),
    /// The guest has replaced or removed it since, or it cannot be reached.
    Gone,
}

impl Recovery<'_> {
    /// The last batch is looked at even if it was settled: what it displaced may still be parked, and may
    /// have been written after it was displaced.
    fn settle_run(&mut self, journal: &Journal, run: &Run) -> Result<()> {
        let mut seq = 0;
        let mut next = journal.batch(run.id, seq)?;
        while let Some((batch, settled)) = next {
            next = journal.batch(run.id, seq + 1)?;
            if settled.is_none() || next.is_none() {
                let settled = self.settle_batch(run.id, seq, &batch)?;
                self.sync()?;
                journal.settle(run.id, seq, &settled)?;
            }
            seq += 1;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let failed = store::Error::at("sync", self.store.path());
        Ok(self.around.fs.sync(self.store.dir()).map_err(failed)?)
    }

    fn settle_batch(&mut self, run: i64, seq: u32, batch: &Batch) -> Result<Vec<Settled>> {
        let mut parking = Parking::open(self.around.fs, self.store, run)?;
        let names = batch.actions.iter().map(|action| action.names.len() as u32).sum();
        parking.prepare(self.around.fs, names)?;
        let dirs: Vec<Option<Dir>> = batch.dirs.iter().map(|dir| self.open_dir(batch, dir)).collect();
        let mut number = 0;
        let mut settled = Vec::new();
        for action in &batch.actions {
            let places: Vec<Place> = action
                .names
                .iter()
                .map(|name| {
                    let lane = number;
                    number += 1;
                    Place {
                        dir: dirs[name.dir as usize].as_ref().and_then(|dir| dir.reopen().ok()),
                        name: name.name.clone(),
                        lane,
                        parked: Parking::name(seq, lane),
                    }
                })
                .collect();
            let done = self.settle_action(&parking, action, &places)?;
            let count = if done == Settled::NotDone {
                &mut self.outcome.taken_back
            } else {
                &mut self.outcome.completed
            };
            *count += 1;
            settled.push(done);
        }
        fasten(self.around.fs, self.store, &batch.actions, self.seal)?;
        for (dir, opened) in batch.dirs.iter().zip(&dirs) {
            if let Some(opened) = opened {
                restore_time(self.around.fs, opened, dir.mtime);
            }
        }
        Ok(settled)
    }

    /// A directory the guest has moved or removed since cannot be reached; what is parked decides alone.
    fn open_dir(&self, batch: &Batch, dir: &store::journal::DirRef) -> Option<Dir> {
        let guest = self.store.place().base().join(&batch.guests[dir.guest as usize]);
        self.store.place().open_guest(&guest).ok()?.open_dir(&dir.path).ok()
    }

    fn settle_action(&mut self, parking: &Parking, action: &Action, places: &[Place]) -> Result<Settled> {
        match action.verb {
            Verb::Admit => self.settle_admit(action, places),
            Verb::Link | Verb::Detach | Verb::Repair => self.settle_exchange(parking, action, places),
            Verb::Retire => self.settle_retire(action, places),
        }
    }

    /// The object is there and is what its name says: sealed, it stays. Else it was not admitted.
    fn settle_admit(&mut self, action: &Action, places: &[Place]) -> Result<Settled> {
        let found = self.overflow_of(action.object, action.ino)?;
        let Some(name) = found else {
            // Sealed before it was published.
            self.lift_at(action, places)?;
            return Ok(Settled::NotDone);
        };
        Ok(if self.make_whole(action, name)? {
            Settled::Done { overflow: name.overflow }
        } else {
            Settled::NotDone
        })
    }

    /// Seals an object whose content is proven; gives it back to its guest otherwise.
    fn make_whole(&self, action: &Action, name: ObjectName) -> Result<bool> {
        let failed = |doing| store::Error::at(doing, self.store.object_path(name));
        let path = name.path();
        let file = self.store.objects().open_file(path.as_bytes()).map_err(failed("open"))?;
        let stat = file.stat().map_err(failed("stat"))?;
        if let Ok(leased) = Leased::take(file) {
            let file = leased.file();
            let intact = identify(self.around, file, &stat, self.store.format().identity) == Ok(name.id);
            if intact && leased.held() {
                if self.seal.leaves_names_free() {
                    self.around.fs.seal(file, self.seal).map_err(failed("seal"))?;
                }
                return Ok(true);
            }
        }
        let file = self.store.objects().open_file(path.as_bytes()).map_err(failed("open"))?;
        if stat.nlink as usize > action.names.len() + 1 {
            // Others have it already: it is an object, sealed or not; scrubbing looks after it.
            return Ok(true);
        }
        lift_seals(self.around.fs, &file).map_err(failed("unseal"))?;
        self.around.fs.unlink(At::new(self.store.objects(), path.as_bytes())).map_err(failed("remove"))?;
        Ok(false)
    }

    fn settle_retire(&mut self, action: &Action, places: &[Place]) -> Result<Settled> {
        let done = Settled::Done { overflow: action.object.overflow };
        let Some(stat) = self.store.stat_object(action.object)? else {
            self.lift_at(action, places)?;
            return Ok(done);
        };
        let failed = |doing| store::Error::at(doing, self.store.object_path(action.object));
        if stat.ino != action.ino || stat.nlink as usize != action.names.len() + 1 {
            return Ok(Settled::NotDone);
        }
        let path = action.object.path();
        let file = self.store.objects().open_file(path.as_bytes()).map_err(failed("open"))?;
        lift_seals(self.around.fs, &file).map_err(failed("unseal"))?;
        self.around.fs.unlink(At::new(self.store.objects(), path.as_bytes())).map_err(failed("remove"))?;
        Ok(done)
    }

    /// The object's name went before its seal did: nothing may stay sealed that is no object.
    fn lift_at(&self, action: &Action, places: &[Place]) -> Result<()> {
        for place in places {
            let Some(dir) = &place.dir else { continue };
            let Ok(file) = dir.open_file(&place.name) else { continue };
            if file.stat().is_ok_and(|stat| stat.ino == action.ino) {
                lift_seals(self.around.fs, &file)
                    .map_err(store::Error::at("unseal", self.store.object_path(action.object)))?;
            }
        }
        Ok(())
    }

    /// Names change places all or none. What is parked tells: an object's inode or copy that never got in,
    /// or what it displaced.
    fn settle_exchange(&mut self, parking: &Parking, action: &Action, places: &[Place]) -> Result<Settled> {
        let looks = places.iter().map(|place| self.look(action, place)).collect::<Result<Vec<_>>>()?;
        let all = !looks.contains(&Look::Before);
        for place in places {
            self.settle_parked(parking, action, place, all)?;
        }
        let exchanged = looks.iter().find_map(|look| match *look {
            Look::After(overflow) => Some(Settled::Done { overflow }),
            Look::Before | Look::Gone => None,
        });
        match exchanged {
            Some(done) if all => Ok(done),
            None if action.verb == Verb::Link => self.settle_unexchanged(action, places),
            _ => Ok(Settled::NotDone),
        }
    }

    /// A `Link` that may have become an `Admit`.
    fn settle_unexchanged(&mut self, action: &Action, places: &[Place]) -> Result<Settled> {
        match self.overflow_of(action.object, action.ino)? {
            Some(name) if self.make_whole(action, name)? => Ok(Settled::Admitted { overflow: name.overflow }),
            Some(_) => Ok(Settled::NotDone),
            None => {
                self.lift_at(action, places)?;
                Ok(Settled::NotDone)
            }
        }
    }

    /// Which side of its exchange a name is on.
    fn look(&self, action: &Action, place: &Place) -> Result<Look> {
        let stat = place.dir.as_ref().and_then(|dir| dir.stat(&place.name).ok());
        Ok(match (action.verb, stat) {
            (_, None) => Look::Gone,
            // An inode that became the object where it was is settled apart.
            (_, Some(stat)) if stat.ino == action.ino => Look::Before,
            (Verb::Detach, Some(_)) => Look::After(action.object.overflow),
            (_, Some(stat)) => {
                let object = self.overflow_of(action.object, stat.ino)?;
                object.map_or(Look::Gone, |name| Look::After(name.overflow))
            }
        })
    }

    /// The object of this twin that is the inode `ino`.
    fn overflow_of(&self, name: ObjectName, ino: u64) -> Result<Option<ObjectName>> {
        let mut found = None;
        for_overflows(self.store, name, |name, file| {
            if file.stat().is_ok_and(|stat| stat.ino == ino) {
                found = Some(name);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn settle_parked(&mut self, parking: &Parking, action: &Action, place: &Place, all: bool) -> Result<()> {
        let parked = At::new(parking.lane(place.lane), &place.parked);
        let Ok(stat) = parked.dir.stat(parked.name) else { return Ok(()) };
        let removable = match action.verb {
            Verb::Link => self.settle_displaced(action, place, parked, stat.ino, all)?,
            Verb::Repair => self.settle_replaced(action, place, parked, &stat)?,
            _ => self.settle_copy(action, place, parked, stat.ino, all)?,
        };
        if !removable {
            return self.keep(parked);
        }
        match self.around.fs.unlink(parked) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(store::Error::at("clear", self.store.path().join("parked"))(errno).into()),
        }
    }

    /// For a `Link`: whether the parked inode can go. What was displaced goes back, unless the exchange
    /// stands as a whole and displaced what it was meant to.
    fn settle_displaced(
        &self,
        action: &Action,
        place: &Place,
        parked: At<'_>,
        ino: u64,
        all: bool,
    ) -> Result<bool> {
        if self.overflow_of(action.object, ino)?.is_some() {
            return Ok(true); // the object's own link, which never got in
        }
        let expected = self.is_same(action, parked);
        if all && expected {
            return Ok(true);
        }
        let there = place.dir.as_ref().and_then(|dir| dir.stat(&place.name).ok());
        match there {
            Some(there) if self.overflow_of(action.object, there.ino)?.is_some() => {
                self.give_back(place, parked, ino, there.ino)
            }
            // The guest has replaced or removed the name since: what it had before is gone for it.
            _ => Ok(expected),
        }
    }

    /// For a `Detach`: whether the parked inode can go. It is the object that was displaced, and goes back
    /// unless the exchange stands as a whole; a copy that never got in; or a file of the guest's that a copy
    /// displaced by mistake, which goes back.
    fn settle_copy(
        &self,
        action: &Action,
        place: &Place,
        parked: At<'_>,
        ino: u64,
        all: bool,
    ) -> Result<bool> {
        let displaced = ino == action.ino;
        let there = place.dir.as_ref().and_then(|dir| dir.stat(&place.name).ok());
        if (displaced && all) || there.is_some_and(|there| there.ino == action.ino) {
            return Ok(true);
        }
        if !displaced && self.is_same(action, parked) {
            return Ok(true);
        }
        match (&place.dir, there) {
            (Some(dir), Some(there)) if self.is_same(action, At::new(dir, &place.name)) => {
                self.give_back(place, parked, ino, there.ino)
            }
            _ => Ok(displaced),
        }
    }

    /// For a `Repair`: whether the parked inode can go. It is the object's link that never got in, the
    /// corrupt inode (which quarantine has too), or a file of the guest's that was displaced by mistake;
    /// that one goes back. Names that were exchanged stay so.
    fn settle_replaced(
        &self,
        action: &Action,
        place: &Place,
        parked: At<'_>,
        stat: &kernel::Stat,
    ) -> Result<bool> {
        if self.overflow_of(action.object, stat.ino)?.is_some() {
            return Ok(true);
        }
        if stat.ino == action.ino {
            return Ok(stat.nlink > 1);
        }
        match place.dir.as_ref().and_then(|dir| dir.stat(&place.name).ok()) {
            Some(there) if self.overflow_of(action.object, there.ino)?.is_some() => {
                self.give_back(place, parked, stat.ino, there.ino)
            }
            _ => Ok(false),
        }
    }

    fn is_same(&self, action: &Action, parked: At<'_>) -> bool {
        let check = || -> std::result::Result<bool, Skip> {
            let file = parked.dir.open_file(parked.name).map_err(Skip::from_errno)?;
            let leased = Leased::take(file).map_err(Skip::from_errno)?;
            let file = leased.file();
            let stat = file.stat().map_err(Skip::from_errno)?;
            let id = identify(self.around, file, &stat, self.store.format().identity)?;
            Ok(id == action.object.id)
        };
        check().unwrap_or(false)
    }

    /// Puts a displaced inode back where an object or a copy of ours stands. `Ok(false)`: it could not be.
    fn give_back(&self, place: &Place, parked: At<'_>, ours: u64, there: u64) -> Result<bool> {
        let Some(dir) = &place.dir else { return Ok(false) };
        match swap(self.around.fs, parked, At::new(dir, &place.name), ours, there) {
            Swap::Done => Ok(true),
            Swap::Foreign | Swap::Stranded | Swap::Refused(_) => Ok(false),
            Swap::Stuck(errno) => {
                Err(store::Error::at("put a name back in", self.store.path())(errno).into())
            }
        }
    }

    /// In doubt nothing is removed.
    fn keep(&mut self, parked: At<'_>) -> Result<()> {
        let quarantine = self.store.path().join("quarantine");
        let kept = keep_aside(self.around.fs, self.store, parked);
        let name = kept.map_err(store::Error::at("keep a file in", &quarantine))?;
        self.outcome.kept.push(quarantine.join(to_path(&name)));
        Ok(())
    }

    /// Takes the directories of a run away, and keeps what is still in them.
    fn sweep(&mut self, run: i64) -> Result<()> {
        let parking = Parking::open(self.around.fs, self.store, run)?;
        let failed = |doing| store::Error::at(doing, self.store.path().join("parked"));
        for lane in parking.lanes()? {
            for name in lane.reopen().and_then(|lane| lane.names()).map_err(failed("read"))? {
                self.keep(At::new(&lane, &name))?;
            }
        }
        Ok(self.store.remove_run_dir(self.around.fs, "parked", run)?)
    }
}
