//! Settling what a crash left: intents that have no outcome, and parked names.
//!
//! Recovery trusts what it sees, not what the journal hoped for. Every step can be repeated: a crash during
//! recovery is recovered from in the same way.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use kernel::{At, Dir, Errno, File, Leased, Metadata, Seal, Stat, Time, lift_seals};
use store::journal::{Action, Batch, DirRef, Journal, NameRef, Run, RunEnd, Settled, Verb};
use store::{ObjectName, Store};

use crate::apply::{Parking, Swap, clear, collect, keep_aside, restore_time, swap};
use crate::hash::identify;
use crate::maintain::{expected_seal, fasten_corrupt};
use crate::notes::{Skip, Surroundings};
use crate::seals::fasten;
use crate::walk::{TICK_NANOS, to_path};
use crate::{Error, Result};

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The run that was cut off.
    pub run: Option<i64>,
    /// Actions that had been done, or were completed.
    pub completed: u64,
    /// Actions that were taken back, or had not been begun.
    pub taken_back: u64,
    /// Objects that no guest uses any more, and that were removed.
    pub removed: u64,
    /// Files of unclear origin that were put into `quarantine/` instead of being removed.
    pub kept: Vec<PathBuf>,
    /// Files of the store that are still without their seal: a guest has them under a lease.
    pub unsealed: Vec<PathBuf>,
}

/// Settles the run that was cut off, if there is one, and takes stray parked names away.
pub fn recover(around: &Surroundings<'_>, store: &Store, journal: &mut Journal) -> Result<Outcome> {
    kernel::ignore_lease_breaks();
    let mut outcome = Outcome::default();
    if let Some(run) = journal.open_run()? {
        outcome.run = Some(run.id);
        Recovery::new(around, store, run.seal, &mut outcome).settle_run(journal, &run)?;
    }
    let seal = expected_seal(Some(journal))?.unwrap_or(Seal::None);
    if !seal.leaves_names_free() {
        outcome.unsealed.extend(fasten_corrupt(around.fs, store, seal)?);
    }
    for run in store.run_dirs("parked")? {
        // No batch that could be open accounts for these: in doubt nothing is removed.
        Recovery::new(around, store, Seal::None, &mut outcome).sweep(run)?;
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
    /// When the run, or an earlier recovery of it, last moved a name, in nanoseconds; a tick is added.
    last_move: i64,
    /// Whether objects that were looked at are what their names say.
    proven: HashMap<ObjectName, bool>,
    outcome: &'a mut Outcome,
}

impl<'a> Recovery<'a> {
    fn new(around: &'a Surroundings<'a>, store: &'a Store, seal: Seal, outcome: &'a mut Outcome) -> Self {
        Self { around, store, seal, last_move: i64::MIN, proven: HashMap::new(), outcome }
    }
}

/// A name of an action, as far as it can still be reached.
struct Place<'b> {
    dir: Option<&'b Dir>,
    name: &'b [u8],
    lane: u32,
    parked: Vec<u8>,
    /// The modification time its directory is to have.
    time: Option<Time>,
}

impl Place<'_> {
    /// What has the name now; none if it cannot be reached.
    fn stat(&self) -> Result<Option<Stat>> {
        self.dir.map_or(Ok(None), |dir| reached(dir.stat(self.name), self.name))
    }
}

/// The places of each action's names, numbered as they were parked.
fn places<'b>(seq: u32, batch: &'b Batch, dirs: &'b [Option<Dir>]) -> Vec<Vec<Place<'b>>> {
    let mut next = 0;
    let mut place = |name: &'b NameRef| {
        let lane = next;
        next += 1;
        let dir = dirs[name.dir as usize].as_ref();
        Place { dir, name: &name.name, lane, parked: Parking::name(seq, lane), time: None }
    };
    batch.actions.iter().map(|action| action.names.iter().map(&mut place).collect()).collect()
}

/// What a call gave; none if the guest has moved or removed what was called upon, or keeps it to itself. Whatever
/// else is refused is an error: nothing may be concluded from it.
fn reached<T>(answer: kernel::Result<T>, path: &[u8]) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(errno) if is_guests_doing(errno) => Ok(None),
        Err(errno) => Err(store::Error::at("look at", to_path(path))(errno).into()),
    }
}

/// The name or a directory above it is gone, or became something else; or it is open for writing, or leased, or
/// encrypted and its key taken away.
fn is_guests_doing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::STALE
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::NXIO
            | Errno::AGAIN
            | Errno::TXTBSY
            | Errno::NOKEY
    )
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
    /// A batch that was settled is looked at again if it is the last, or if something of it is parked: what
    /// it displaced may have been written after it was displaced. A power failure may undo the removal of
    /// parked names of any batch: nothing waits for that to be durable.
    fn settle_run(&mut self, journal: &Journal, run: &Run) -> Result<()> {
        let lanes = self.parked_names(run.id)?;
        let parked: BTreeSet<u32> =
            lanes.iter().flat_map(|(_, names)| names).filter_map(|name| Parking::batch_of(name)).collect();
        // An exchange stamps the guest's directory and the lane alike, and nobody else changes a lane.
        let stamp =
            |(lane, _): &(Dir, _)| lane.stat_self().ok().map(|stat| stat.mtime.to_nanos() + TICK_NANOS);
        self.last_move = lanes.iter().filter_map(stamp).max().unwrap_or(i64::MIN);
        let mut seq = 0;
        let mut next = journal.batch(run.id, seq)?;
        while let Some((batch, settled)) = next {
            next = journal.batch(run.id, seq + 1)?;
            if settled.is_none() || next.is_none() || parked.contains(&seq) {
                let settled = self.settle_batch(run.id, seq, &batch)?;
                self.sync()?;
                journal.settle(run.id, seq, &settled)?;
            }
            // Nor does anything wait for the removal of objects to be durable.
            self.outcome.removed += collect(self.around.fs, self.store, &batch.actions)?.0;
            seq += 1;
        }
        Ok(())
    }

    /// The lanes of a run and what is in them.
    fn parked_names(&self, run: i64) -> Result<Vec<(Dir, Vec<Vec<u8>>)>> {
        let failed = || store::Error::at("read", self.store.path().join("parked"));
        let names = |lane: Dir| {
            let names = lane.reopen().and_then(|lane| lane.names()).map_err(failed())?;
            Ok((lane, names))
        };
        Parking::open(self.around.fs, self.store, run)?.lanes()?.into_iter().map(names).collect()
    }

    fn sync(&self) -> Result<()> {
        let failed = store::Error::at("sync", self.store.path());
        Ok(self.around.fs.sync(self.store.dir()).map_err(failed)?)
    }

    fn settle_batch(&mut self, run: i64, seq: u32, batch: &Batch) -> Result<Vec<Settled>> {
        let mut parking = Parking::open(self.around.fs, self.store, run)?;
        let names = batch.actions.iter().map(|action| action.names.len() as u32).sum();
        parking.prepare(self.around.fs, names)?;
        let dirs: Vec<Option<Dir>> =
            batch.dirs.iter().map(|dir| self.open_dir(batch, dir)).collect::<Result<_>>()?;
        let mut places = places(seq, batch, &dirs);
        let times = self.times(batch, &dirs);
        for (action, places) in batch.actions.iter().zip(&mut places) {
            for (name, place) in action.names.iter().zip(places) {
                place.time = times[name.dir as usize];
            }
        }
        let mut settled = vec![Settled::NotDone; batch.actions.len()];
        // Admissions last: one that can't stay has lost all other names by then.
        for admissions in [false, true] {
            for (at, action) in batch.actions.iter().enumerate() {
                if (action.verb == Verb::Admit) == admissions {
                    settled[at] = self.settle_action(&parking, action, &places[at])?;
                }
            }
        }
        let not_done = settled.iter().filter(|how| **how == Settled::NotDone).count() as u64;
        self.outcome.taken_back += not_done;
        self.outcome.completed += settled.len() as u64 - not_done;
        let unsealed = fasten(self.around.fs, self.store, &batch.actions, self.seal)?;
        self.outcome.unsealed.extend(unsealed.into_iter().map(|name| self.store.object_path(name)));
        for (dir, time) in dirs.iter().zip(times) {
            if let (Some(dir), Some(time)) = (dir, time) {
                restore_time(self.around.fs, dir, time);
            }
        }
        Ok(settled)
    }

    /// The modification time that each directory is to have: what it had before the batch; what it has now,
    /// if its guest has changed it since the run was cut off.
    fn times(&self, batch: &Batch, dirs: &[Option<Dir>]) -> Vec<Option<Time>> {
        let time = |(dir, recorded): (&Option<Dir>, &DirRef)| {
            let now = dir.as_ref()?.stat_self().ok()?.mtime;
            Some(if now.to_nanos() <= self.last_move { recorded.mtime } else { now })
        };
        dirs.iter().zip(&batch.dirs).map(time).collect()
    }

    /// A directory the guest has moved or removed since cannot be reached; what is parked decides alone.
    fn open_dir(&self, batch: &Batch, dir: &DirRef) -> Result<Option<Dir>> {
        let guest = self.store.place().base().join(&batch.guests[dir.guest as usize]);
        match self.store.place().open_guest(&guest) {
            Ok(root) => reached(root.open_dir(&dir.path), &dir.path),
            Err(store::Error::Kernel { errno, .. }) if !is_guests_doing(errno) => {
                Err(store::Error::at("open", guest)(errno).into())
            }
            Err(_) => Ok(None),
        }
    }

    fn settle_action(&mut self, parking: &Parking, action: &Action, places: &[Place<'_>]) -> Result<Settled> {
        match action.verb {
            Verb::Admit => self.settle_admit(action, places),
            Verb::Link | Verb::Detach | Verb::Repair => self.settle_exchange(parking, action, places),
        }
    }

    /// The object is there and is what its name says: sealed, it stays. Else it was not admitted.
    fn settle_admit(&mut self, action: &Action, places: &[Place<'_>]) -> Result<Settled> {
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
        if let Some(leased) = self.leased_same(action, At::new(self.store.objects(), path.as_bytes()))?
            && leased.held()
        {
            if self.seal.leaves_names_free() {
                self.around.fs.seal(leased.file(), self.seal).map_err(failed("seal"))?;
            }
            return Ok(true);
        }
        let stat = self.store.objects().stat(path.as_bytes()).map_err(failed("stat"))?;
        if stat.nlink as usize > action.names.len() + 1 {
            // Others have it already: it is an object, sealed or not; scrubbing looks after it.
            return Ok(true);
        }
        // A guest that keeps us out by a lease keeps the seal.
        let opened = reached(self.store.objects().open_file(path.as_bytes()), path.as_bytes())?;
        opened.map_or(Ok(()), |file| lift_seals(self.around.fs, &file)).map_err(failed("unseal"))?;
        self.around.fs.unlink(At::new(self.store.objects(), path.as_bytes())).map_err(failed("remove"))?;
        Ok(false)
    }

    /// An admission's object lost its name before its seal, or never had one: nothing of a guest's may stay sealed
    /// that never was shared.
    fn lift_at(&self, action: &Action, places: &[Place<'_>]) -> Result<()> {
        for place in places {
            let Some(dir) = place.dir else { continue };
            let Some(file) = reached(dir.open_file(place.name), place.name)? else { continue };
            if file.stat().is_ok_and(|stat| stat.ino == action.ino) {
                lift_seals(self.around.fs, &file)
                    .and_then(|()| self.give_time_back(&file, action))
                    .map_err(store::Error::at("unseal", self.store.object_path(action.object)))?;
            }
        }
        Ok(())
    }

    /// fs-verity stays, and may have been cut off before the time was what it had been.
    fn give_time_back(&self, file: &File, action: &Action) -> kernel::Result<()> {
        let stat = file.stat()?;
        let Some(mtime) = action.mtime.filter(|mtime| stat.verity && *mtime != stat.mtime) else {
            return Ok(());
        };
        let (mode, uid, gid) = (stat.mode, stat.uid, stat.gid);
        let xattrs = file.xattrs()?;
        self.around.fs.set_metadata(file, &Metadata { mode, uid, gid, mtime, xattrs })
    }

    /// Names change places all or none. What is parked tells: an object's inode or copy that never got in,
    /// or what it displaced.
    fn settle_exchange(
        &mut self,
        parking: &Parking,
        action: &Action,
        places: &[Place<'_>],
    ) -> Result<Settled> {
        let look =
            |this: &Self| places.iter().map(|place| this.look(action, place)).collect::<Result<Vec<_>>>();
        let mut looks = look(self)?;
        if action.verb == Verb::Detach
            && looks.contains(&Look::Before)
            && self.is_copy_taken(action, places, &looks)?
        {
            self.go_on(parking, action, places, &looks)?;
            looks = look(self)?;
        }
        let all = !looks.contains(&Look::Before);
        for place in places {
            self.settle_parked(parking, action, place, all)?;
        }
        // Something may have been given back.
        let looks = look(self)?;
        let all = !looks.contains(&Look::Before);
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

    /// Whether a private copy that is in place can't be taken back: its guest has written it, or is about to.
    fn is_copy_taken(&self, action: &Action, places: &[Place<'_>], looks: &[Look]) -> Result<bool> {
        for (place, look) in places.iter().zip(looks) {
            if let (Look::After(_), Some(dir)) = (look, place.dir)
                && self.leased_same(action, At::new(dir, place.name))?.is_none_or(|copy| !copy.held())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The other names of a copy that its guest has taken get it, too: they are one file.
    fn go_on(&self, parking: &Parking, action: &Action, places: &[Place<'_>], looks: &[Look]) -> Result<()> {
        for (place, _) in places.iter().zip(looks).filter(|(_, look)| **look == Look::Before) {
            let parked = At::new(parking.lane(place.lane), &place.parked);
            let Some(stat) = reached(parked.dir.stat(parked.name), parked.name)? else { continue };
            if stat.ino != action.ino {
                self.give_back(place, parked, stat.ino, action.ino)?;
            }
        }
        Ok(())
    }

    /// A `Link` that may have become an `Admit`.
    fn settle_unexchanged(&mut self, action: &Action, places: &[Place<'_>]) -> Result<Settled> {
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
    fn look(&self, action: &Action, place: &Place<'_>) -> Result<Look> {
        Ok(match (action.verb, place.stat()?) {
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
    fn overflow_of(&self, first: ObjectName, ino: u64) -> Result<Option<ObjectName>> {
        let mut name = ObjectName { overflow: 0, ..first };
        loop {
            match self.store.stat_object(name)? {
                Some(stat) if stat.ino == ino => return Ok(Some(name)),
                // One that no guest had any more may be gone from among them.
                None if name.overflow >= first.overflow => return Ok(None),
                _ => name = name.next_overflow(),
            }
        }
    }

    fn settle_parked(
        &mut self,
        parking: &Parking,
        action: &Action,
        place: &Place<'_>,
        all: bool,
    ) -> Result<()> {
        let parked = At::new(parking.lane(place.lane), &place.parked);
        let Some(stat) = reached(parked.dir.stat(parked.name), parked.name)? else { return Ok(()) };
        let removable = match action.verb {
            Verb::Link => self.settle_displaced(action, place, parked, stat.ino, all)?,
            Verb::Repair => self.settle_replaced(action, place, parked, &stat)?,
            _ => self.settle_copy(action, place, parked, stat.ino, all)?,
        };
        if !removable {
            return self.keep(parked);
        }
        let failed = store::Error::at("clear", self.store.path().join("parked"));
        Ok(clear(self.around.fs, parked).map_err(failed)?)
    }

    /// For a `Link`: whether the parked inode can go. What was displaced goes back, unless the exchange
    /// stands as a whole and displaced what it was meant to.
    fn settle_displaced(
        &mut self,
        action: &Action,
        place: &Place<'_>,
        parked: At<'_>,
        ino: u64,
        all: bool,
    ) -> Result<bool> {
        if self.overflow_of(action.object, ino)?.is_some() {
            return Ok(true); // the object's own link, which never got in
        }
        let expected = self.is_same(action, parked)?;
        let there = place.stat()?;
        let object = there.map_or(Ok(None), |there| self.overflow_of(action.object, there.ino))?;
        match (there, object) {
            // What took its place may have been written before it was sealed.
            (Some(_), Some(object)) if all && expected && self.is_object_same(action, object)? => Ok(true),
            (Some(there), Some(_)) => self.give_back(place, parked, ino, there.ino),
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
        place: &Place<'_>,
        parked: At<'_>,
        ino: u64,
        all: bool,
    ) -> Result<bool> {
        let displaced = ino == action.ino;
        let there = place.stat()?;
        if (displaced && all) || there.is_some_and(|there| there.ino == action.ino) {
            return Ok(true);
        }
        if !displaced && self.is_same(action, parked)? {
            return Ok(true);
        }
        if let (Some(dir), Some(there)) = (place.dir, there)
            && let Some(copy) = self.leased_same(action, At::new(dir, place.name))?
        {
            let given_back = self.give_back(place, parked, ino, there.ino)?;
            if copy.held() {
                return Ok(given_back);
            }
            // Its guest is about to write the copy, which it had looked up: the copy stays.
            self.give_back(place, parked, there.ino, ino)?;
        }
        Ok(displaced)
    }

    /// For a `Repair`: whether the parked inode can go. It is the object's link that never got in, the
    /// corrupt inode (which quarantine has too), or a file of the guest's that was displaced by mistake;
    /// that one goes back. Names that were exchanged stay so.
    fn settle_replaced(
        &self,
        action: &Action,
        place: &Place<'_>,
        parked: At<'_>,
        stat: &kernel::Stat,
    ) -> Result<bool> {
        if self.overflow_of(action.object, stat.ino)?.is_some() {
            return Ok(true);
        }
        if stat.ino == action.ino {
            return Ok(stat.nlink > 1);
        }
        match place.stat()? {
            Some(there) if self.overflow_of(action.object, there.ino)?.is_some() => {
                self.give_back(place, parked, stat.ino, there.ino)
            }
            _ => Ok(false),
        }
    }

    /// Whether a name has the content and metadata that the action's object has.
    fn is_same(&self, action: &Action, at: At<'_>) -> Result<bool> {
        Ok(self.leased_same(action, at)?.is_some())
    }

    /// The same of an object; each is read once.
    fn is_object_same(&mut self, action: &Action, name: ObjectName) -> Result<bool> {
        if let Some(&known) = self.proven.get(&name) {
            return Ok(known);
        }
        let path = name.path();
        let same = self.is_same(action, At::new(self.store.objects(), path.as_bytes()))?;
        self.proven.insert(name, same);
        Ok(same)
    }

    /// The file of a name under a lease, if it is what the action's object is. None too if it is being written.
    fn leased_same(&self, action: &Action, at: At<'_>) -> Result<Option<Leased>> {
        let leased = reached(at.dir.open_file(at.name).and_then(Leased::take), at.name)?;
        let Some(leased) = leased else { return Ok(None) };
        let stat = leased.file().stat().map_err(store::Error::at("look at", to_path(at.name)))?;
        // A guest's file may be of any size.
        if stat.size != action.size {
            return Ok(None);
        }
        match identify(self.around, leased.file(), &stat, self.store.format().identity) {
            Ok(id) => Ok((id == action.object.id).then_some(leased)),
            Err(_) if self.around.stopping() => Err(Error::Interrupted),
            Err(Skip::Failed(errno)) => Err(store::Error::at("read", to_path(at.name))(errno).into()),
            Err(_) => Ok(None),
        }
    }

    /// Puts a displaced inode back where an object or a copy of ours stands. `Ok(false)`: it could not be.
    fn give_back(&self, place: &Place<'_>, parked: At<'_>, ours: u64, there: u64) -> Result<bool> {
        let Some(dir) = place.dir else { return Ok(false) };
        let swapped = swap(self.around.fs, parked, At::new(dir, place.name), ours, there);
        if let Some(time) = place.time {
            restore_time(self.around.fs, dir, time);
        }
        match swapped {
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
        for (lane, names) in self.parked_names(run)? {
            for name in names {
                self.keep(At::new(&lane, &name))?;
            }
        }
        Ok(self.store.remove_run_dir(self.around.fs, "parked", run)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_guest_does_counts_as_gone() {
        for errno in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV, Errno::STALE] {
            assert!(reached::<()>(Err(errno), b"name").is_ok_and(|found| found.is_none()), "{errno}");
        }
        for errno in [Errno::IO, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::UCLEAN, Errno::ACCESS] {
            assert!(reached::<()>(Err(errno), b"name").is_err(), "{errno}");
        }
    }
}
