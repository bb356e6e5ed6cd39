//! Carrying out a plan, batch by batch: laws 2, 3 and 4.
//!
//! A batch is one transaction:
//!
//! 1. *barrier*: what the batch will let names refer to is durable (`syncfs`);
//! 2. the intent is durable in the journal;
//! 3. names move, in parallel; each action whole or not at all;
//! 4. *barrier*: the moves are durable;
//! 5. what became of each action is durable in the journal;
//! 6. a second look at what was displaced, and the parked names go;
//! 7. seals that hold names fast, off since 2, are on again;
//! 8. objects that have no guest any more, now that it has a copy, go.
//!
//! At every instant each guest name refers to an inode with the right bytes: to the displaced one or to
//! the object. A crash leaves parked names, which [`crate::recover`] settles by looking at them.

mod action;
mod parked;

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kernel::{Dir, Errno, Fs, Seal, Time};
use rayon::prelude::*;
use store::gc::{Removal, remove_unused};
use store::journal::{Action, Batch, Journal, RunEnd, RunId, Settled, Verb};
use store::{IdentityPolicy, ObjectName, Store};

use crate::guest::Guest;
use crate::notes::{Notes, Skip, Surroundings};
use crate::seals::{fasten, loosen};
use crate::walk::to_path;
use crate::{Error, Result};

pub(crate) use action::keep_aside;
use action::{Copy, Traces};
pub(crate) use parked::{Parking, Swap, clear, swap, with_names_free};

/// Neighbouring actions that one thread takes at a time.
const STRIDE: usize = 32;

/// Actions in one directory that one thread carries out, at most.
const DIRECTORY_STRETCH: usize = 128;

/// How long displaced inodes stay parked where processes wait for a processor; see [`let_openers_run`].
const GRACE: Duration = Duration::from_millis(50);

/// What a run has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Files that became objects where they were.
    pub admitted: u64,
    /// Files replaced by objects.
    pub linked: u64,
    /// Files that became private copies.
    pub detached: u64,
    /// Objects that no guest uses any more, and that were removed.
    pub removed: u64,
    /// Corrupt inodes that were replaced in a guest by a good object.
    pub repaired: u64,
    /// Actions that were not done.
    pub not_done: u64,
    /// Space given back, in allocated bytes.
    pub freed: u64,
    /// Space taken by private copies, in allocated bytes.
    pub taken: u64,
}

impl std::ops::Add for Done {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            admitted: self.admitted + other.admitted,
            linked: self.linked + other.linked,
            detached: self.detached + other.detached,
            removed: self.removed + other.removed,
            repaired: self.repaired + other.repaired,
            not_done: self.not_done + other.not_done,
            freed: self.freed + other.freed,
            taken: self.taken + other.taken,
        }
    }
}

/// Carries out batches of one run.
pub(crate) struct Executor<'a> {
    mover: Mover<'a>,
    journal: &'a Journal,
    run: RunId,
    durable: bool,
    done: Done,
}

/// Moves names; shared by all threads.
struct Mover<'a> {
    around: &'a Surroundings<'a>,
    store: &'a Store,
    guests: &'a [Guest],
    notes: &'a Notes,
    seal: Seal,
    /// Whether admissions are read once more, from the disk.
    look_twice: bool,
    parking: Parking,
    seq: u32,
    /// Held by who gives names back, one at a time: each restores its directories' times.
    reverting: Mutex<()>,
    /// The first error that left a name half-way: nothing more is done then but recovery.
    stuck: Mutex<Option<Errno>>,
}

/// A batch with its directories open.
pub(crate) struct Stage<'a> {
    batch: &'a Batch,
    dirs: Vec<std::result::Result<Dir, Skip>>,
    /// Directories of actions that have names in several: their times are restored when all is done.
    spread: HashSet<u32>,
    /// Number of the first parked name of each action.
    parks: Vec<u32>,
}

impl<'a> Executor<'a> {
    pub(crate) fn new(
        around: &'a Surroundings<'a>,
        store: &'a Store,
        journal: &'a Journal,
        guests: &'a [Guest],
        notes: &'a Notes,
        (run, seal): (RunId, Seal),
    ) -> Result<Self> {
        let parking = Parking::open(around.fs, store, run)?;
        // Guests that are trusted need no second look.
        let look_twice = seal != Seal::None && !kernel::are_extents_watched(seal, store.sample());
        let mover = Mover {
            look_twice,
            around,
            store,
            guests,
            notes,
            seal,
            parking,
            seq: 0,
            reverting: Mutex::default(),
            stuck: Mutex::default(),
        };
        Ok(Self { mover, journal, run, durable: false, done: Done::default() })
    }

    /// Carries out batches, until the user wants to stop. An error leaves an intended batch behind, which
    /// recovery settles.
    pub(crate) fn execute(&mut self, batches: impl Iterator<Item = Batch>) -> Result<RunEnd> {
        for batch in batches {
            if self.mover.around.stopping() {
                return Ok(RunEnd::Interrupted);
            }
            self.carry_out(batch)?;
        }
        Ok(RunEnd::Complete)
    }

    fn carry_out(&mut self, mut batch: Batch) -> Result<()> {
        let names = batch.actions.iter().map(|action| action.names.len() as u32).sum();
        self.mover.parking.prepare(self.mover.around.fs, names)?;
        let mover = &self.mover;
        let dirs = mover.open_dirs(&mut batch);
        mover.note_times(&mut batch, &dirs);
        let stage = Stage { parks: number_parks(&batch), spread: spread(&batch), batch: &batch, dirs };
        if !self.durable {
            // What this run links was proven before this barrier and must be unchanged when it is linked.
            mover.sync()?;
            self.durable = true;
        }
        self.journal.intend(self.run, mover.seq, &batch)?;
        let loose = loosen(mover.around.fs, mover.store, &batch.actions, mover.seal)?;
        let copies = mover.copy_all(&stage)?;
        let times = times_of(&stage, stage.spread.iter().copied());
        let mut traces = mover.move_names(&stage, &copies);
        let moved = Instant::now();
        mover.restore_times(&stage, &times);
        mover.check_stuck()?;
        mover.sync()?;
        self.settle(&traces)?;
        let_openers_run(moved);
        let reverted = mover.clean_up(&stage, &mut traces);
        mover.check_stuck()?;
        if reverted {
            self.settle(&traces)?;
        }
        if !mover.seal.leaves_names_free() {
            // All of them are open, here or under a lease of ours: no guest has one of its own.
            fasten(mover.around.fs, mover.store, &batch.actions, mover.seal)?;
            mover.sync()?;
        }
        drop(loose);
        let (removed, freed) = collect(mover.around.fs, mover.store, &batch.actions)?;
        self.done.removed += removed;
        self.done.freed += freed;
        self.count(&batch, &traces);
        self.mover.seq += 1;
        Ok(())
    }

    /// Takes the run's empty directories away. What was removed stays so: nobody looks for parked names of a run that
    /// has ended.
    pub(crate) fn finish(self) -> Result<Done> {
        self.mover.sync()?;
        self.mover.store.remove_run_dir(self.mover.around.fs, "parked", self.run)?;
        Ok(self.done)
    }

    fn settle(&self, traces: &[Traces]) -> Result<()> {
        let settled: Vec<Settled> = traces.iter().map(Traces::settled).collect();
        Ok(self.journal.settle(self.run, self.mover.seq, &settled)?)
    }

    fn count(&mut self, batch: &Batch, traces: &[Traces]) {
        for (action, trace) in batch.actions.iter().zip(traces) {
            match (action.verb, trace.settled()) {
                (_, Settled::NotDone) => self.done.not_done += 1,
                (Verb::Admit, _) | (_, Settled::Admitted { .. }) => self.done.admitted += 1,
                (Verb::Link, _) => self.done.linked += 1,
                (Verb::Detach, _) => self.done.detached += 1,
                (Verb::Repair, _) => self.done.repaired += 1,
            }
            self.done.freed += trace.freed;
            self.done.taken += trace.taken;
        }
    }
}

impl Mover<'_> {
    fn stuck(&self, errno: Errno) {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(errno);
    }

    fn is_stuck(&self) -> bool {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn check_stuck(&self) -> Result<()> {
        match *self.stuck.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(errno) => Err(store::Error::at("finish an exchange in", self.store.path())(errno).into()),
        }
    }

    fn sync(&self) -> Result<()> {
        let failed = store::Error::at("sync", self.store.path());
        self.around.fs.sync(self.store.dir()).map_err(failed).map_err(Error::from)
    }

    fn open_dirs(&self, batch: &mut Batch) -> Vec<std::result::Result<Dir, Skip>> {
        let open = |dir: &mut store::journal::DirRef| {
            let root = &self.guests[dir.guest as usize].root;
            let opened = root.open_dir(&dir.path).map_err(Skip::from_errno)?;
            dir.mtime = opened.stat_self().map_err(Skip::from_errno)?.mtime;
            Ok(opened)
        };
        batch.dirs.par_iter_mut().map(open).collect()
    }

    /// Where identity leaves the modification time out, undo gets it from the journal; where sealing changes it
    /// for a moment, recovery does.
    fn note_times(&self, batch: &mut Batch, dirs: &[std::result::Result<Dir, Skip>]) {
        if self.store.format().identity == IdentityPolicy::Full && self.seal != Seal::Verity {
            return;
        }
        let wanted = |action: &&mut Action| {
            action.verb == Verb::Link || (action.verb == Verb::Admit && self.seal == Seal::Verity)
        };
        batch.actions.par_iter_mut().filter(wanted).for_each(|action| {
            let Some(name) = action.names.first() else { return };
            let Ok(dir) = &dirs[name.dir as usize] else { return };
            action.mtime = dir.stat(&name.name).ok().map(|stat| stat.mtime);
        });
    }

    fn move_names(&self, stage: &Stage<'_>, copies: &[Mutex<Option<Copy>>]) -> Vec<Traces> {
        let actions = &stage.batch.actions;
        let mut traces: Vec<Traces> = actions.iter().map(|_| Traces::nothing()).collect();
        // Admissions of this batch must be there before its links look for them.
        for admissions in [true, false] {
            let chosen: Vec<usize> =
                (0..actions.len()).filter(|&at| (actions[at].verb == Verb::Admit) == admissions).collect();
            let dir = |at: usize| actions[at].names.first().map(|name| name.dir);
            let by_dir: Vec<&[usize]> = chosen
                .chunk_by(|a, b| dir(*a) == dir(*b))
                .flat_map(|same| same.chunks(DIRECTORY_STRETCH))
                .collect();
            let results: Vec<(usize, Traces)> =
                by_dir.par_iter().flat_map_iter(|chunk| self.act_in_dir(stage, chunk, copies)).collect();
            results.into_iter().for_each(|(at, trace)| traces[at] = trace);
        }
        traces
    }

    /// Actions whose first names are in one directory. Its time tells its guest that names came or went;
    /// none did, so it is given back at once.
    fn act_in_dir(
        &self,
        stage: &Stage<'_>,
        chunk: &[usize],
        copies: &[Mutex<Option<Copy>>],
    ) -> Vec<(usize, Traces)> {
        let number = stage.batch.actions[chunk[0]].names.first().map(|name| name.dir);
        let dir = number
            .filter(|dir| !stage.spread.contains(dir))
            .and_then(|dir| stage.dirs[dir as usize].as_ref().ok());
        let before = dir.and_then(|dir| dir.stat_self().ok());
        let act = |&at: &usize| {
            (
                at,
                self.act(
                    stage,
                    at,
                    copies
                        .get(at)
                        .and_then(|copy| copy.lock().unwrap_or_else(PoisonError::into_inner).take()),
                ),
            )
        };
        let traces = chunk.iter().map(act).collect();
        if let (Some(dir), Some(before)) = (dir, before) {
            restore_time(self.around.fs, dir, before.mtime);
        }
        traces
    }

    fn act(&self, stage: &Stage<'_>, at: usize, copy: Option<Copy>) -> Traces {
        let action = &stage.batch.actions[at];
        self.around.observer.advance(1);
        match self.try_action(stage, at, copy) {
            Ok(trace) => trace,
            Err(why) => {
                self.note(stage, action, why);
                Traces::nothing()
            }
        }
    }

    fn note(&self, stage: &Stage<'_>, action: &Action, why: Skip) {
        if let Some(name) = action.names.first() {
            let dir = &stage.batch.dirs[name.dir as usize];
            let path = to_path(&crate::walk::join(&dir.path, &name.name));
            self.notes.skip(&self.guests[dir.guest as usize].key, path, why);
        }
    }

    /// Looks once more at what was displaced and takes the parked names away. Returns whether something
    /// had to be given back.
    fn clean_up(&self, stage: &Stage<'_>, traces: &mut [Traces]) -> bool {
        let broken = self.broken(&stage.batch.actions, traces);
        let reverted = AtomicBool::new(false);
        let take_back = |at: usize, trace: &mut Traces, why: Skip| {
            self.note(stage, &stage.batch.actions[at], why);
            *trace = Traces::nothing();
            reverted.store(true, Ordering::Relaxed);
        };
        traces.par_iter_mut().with_min_len(STRIDE).enumerate().for_each(|(at, trace)| {
            if let Err(why) = self.second_look(stage, at, trace, &broken) {
                take_back(at, trace, why);
            }
        });
        for (at, trace) in traces.iter_mut().enumerate() {
            if broken.contains(&stage.batch.actions[at].ino)
                && let Err(why) = self.dismiss(stage, at, trace)
            {
                take_back(at, trace, why);
            }
        }
        reverted.into_inner()
    }

    fn restore_times(&self, stage: &Stage<'_>, times: &[(u32, Time)]) {
        for &(number, mtime) in times {
            if let Ok(dir) = &stage.dirs[number as usize] {
                restore_time(self.around.fs, dir, mtime);
            }
        }
    }
}

/// A process that looked a name up just before it `moved`, and has to give up the processor before it opens what
/// it found, finds no lease once the displaced inode is gone, and writes into a file without a name. Where
/// more wants to run than there are processors, such a one gets some time to go on.
fn let_openers_run(moved: Instant) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // "0.20 0.18 0.12 1/80 11206": the fourth is what is running or wants to, of how many.
    let running = |load: String| load.split(' ').nth(3)?.split('/').next()?.parse::<usize>().ok();
    let is_crowded =
        || std::fs::read_to_string("/proc/loadavg").ok().and_then(running).is_none_or(|n| n > processors);
    while moved.elapsed() < GRACE && is_crowded() {
        std::thread::sleep(GRACE / 10);
    }
}

/// Removes the objects that actions were to copy and that no guest uses any more, be it that a guest has removed its own
/// name. Returns how many, and the space given back.
pub(crate) fn collect(fs: &dyn Fs, store: &Store, actions: &[Action]) -> Result<(u64, u64)> {
    let detached = actions.iter().filter(|action| action.verb == Verb::Detach);
    let objects: BTreeSet<ObjectName> = detached.map(|action| action.object).collect();
    let freed = |name| match remove_unused(fs, store, name) {
        Ok(Removal::Freed(bytes)) => Some(Ok(bytes)),
        // What a guest keeps from us is garbage for `vstore gc`.
        Ok(Removal::Left | Removal::Withheld) => None,
        Err(error) => Some(Err(error)),
    };
    let freed: Vec<u64> = objects.into_par_iter().filter_map(freed).collect::<store::Result<_>>()?;
    Ok((freed.len() as u64, freed.iter().sum()))
}

/// The modification times of directories now.
fn times_of(stage: &Stage<'_>, dirs: impl Iterator<Item = u32>) -> Vec<(u32, Time)> {
    let time = |number| Some((number, stage.dirs[number as usize].as_ref().ok()?.stat_self().ok()?.mtime));
    dirs.filter_map(time).collect()
}

/// Failing to restore a directory's time loses nothing but the time; the names are right.
pub(crate) fn restore_time(fs: &dyn Fs, dir: &Dir, mtime: Time) {
    if dir.stat_self().is_ok_and(|stat| stat.mtime != mtime) {
        fs.set_dir_mtime(dir, mtime).ok();
    }
}

fn number_parks(batch: &Batch) -> Vec<u32> {
    let mut next = 0;
    batch
        .actions
        .iter()
        .map(|action| {
            let first = next;
            next += action.names.len() as u32;
            first
        })
        .collect()
}

/// Directories that several threads may work in: those of actions that have names in more than one, and
/// those of more actions than one thread takes.
fn spread(batch: &Batch) -> HashSet<u32> {
    let in_several = |action: &&Action| action.names.iter().any(|name| name.dir != action.names[0].dir);
    let names = batch.actions.iter().filter(in_several).flat_map(|action| &action.names);
    let mut dirs: HashSet<u32> = names.map(|name| name.dir).collect();
    let first = |action: &Action| action.names.first().map(|name| name.dir);
    let long =
        batch.actions.chunk_by(|a, b| first(a) == first(b)).filter(|same| same.len() > DIRECTORY_STRETCH);
    dirs.extend(long.filter_map(|same| first(&same[0])));
    dirs
}
