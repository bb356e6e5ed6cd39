//! Making shared files private again: another plan for the same executor.
//!
//! Names of an object become names of a private copy. Where one guest alone still uses the object, its
//! inode simply stops being one: nothing is copied.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, Kind, Seal, Time};
use store::index::Index;
use store::journal::{Action, Batch, Journal, NameRef, RunEnd, RunId, RunKind, Settled, Verb};
use store::{ObjectName, Store};

use crate::notes::Skip;
use crate::plan::Builder;
use crate::session::{Report, Run, Session};
use crate::walk::{is_within_reach, join, to_path};
use crate::{Error, Result};

/// What is to be made private. Everything that is given narrows it down.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only what this run has shared.
    pub run: Option<RunId>,
    /// Only these files, or what lies below these directories; canonical paths on the host.
    pub paths: Vec<PathBuf>,
}

/// A name in a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Held {
    guest: u32,
    dir: Vec<u8>,
    name: Vec<u8>,
}

/// Names that a run has shared, with the times that identity left out.
type Shared = HashMap<Held, Option<Time>>;

/// Names of objects, by object and guest: what one guest has of one inode stays one inode.
type Holdings = BTreeMap<(u64, u32), Vec<Held>>;

/// One inode of a guest that is to become private.
struct Move {
    verb: Verb,
    object: ObjectName,
    ino: u64,
    size: u64,
    mtime: Option<Time>,
    names: Vec<Held>,
    /// Its names cannot be moved while its seal is on.
    locked: bool,
}

/// What an undo would do.
struct Planned {
    /// Batches, by the seal that has to come off their objects meanwhile.
    parts: Vec<(Seal, Vec<Batch>)>,
    /// It takes back all that the run of the scope has shared.
    whole: bool,
}

impl Planned {
    fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.parts.iter().flat_map(|(_, batches)| batches)
    }
}

/// The guests in which a run has shared files, by their paths relative to the store's base.
pub fn guests_of_run(journal: &Journal, run: RunId) -> Result<Vec<PathBuf>> {
    if !journal.runs()?.iter().any(|known| known.id == run) {
        return Err(Error::BadRun { run, why: "is not in the journal" });
    }
    let (mut guests, mut seq) = (BTreeSet::new(), 0);
    while let Some((batch, _)) = journal.batch(run, seq)? {
        guests.extend(batch.dirs.iter().map(|dir| batch.guests[dir.guest as usize].clone()));
        seq += 1;
    }
    Ok(guests.into_iter().collect())
}

impl Session<'_> {
    /// Plans the undo and shows each batch to `show`; changes nothing.
    pub fn preview_undo(
        self,
        store: &Store,
        journal: Option<&Journal>,
        scope: &Scope,
        mut show: impl FnMut(&Batch),
    ) -> Result<Report> {
        let planned = self.plan_undo(store, journal, scope)?;
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        let mut report = Report::default();
        for batch in planned.batches() {
            count_planned(&mut report, batch);
            show(batch);
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Makes shared files of the guests private again.
    pub fn undo(self, store: &Store, journal: &mut Journal, scope: &Scope, command: &str) -> Result<Report> {
        let planned = self.plan_undo(store, Some(journal), scope)?;
        let mut report = Report { end: Some(RunEnd::Complete), ..Report::default() };
        planned.batches().for_each(|batch| count_planned(&mut report, batch));
        if !planned.parts.is_empty() {
            self.forget(store);
        }
        let parts = planned.parts.len();
        for (at, (seal, batches)) in planned.parts.into_iter().enumerate() {
            if report.end == Some(RunEnd::Interrupted) {
                break;
            }
            let is_last = at + 1 == parts && report.end == Some(RunEnd::Complete);
            let undoes: Vec<RunId> = scope.run.filter(|_| planned.whole && is_last).into_iter().collect();
            let actions = batches.iter().map(|batch| batch.actions.len() as u64).sum();
            let run = Run { session: &self, store, journal, seal };
            let before = (report.end, report.done);
            run.carry_out(RunKind::Undo, command, batches.into_iter(), actions, &mut report, &undoes)?;
            report.done = before.1 + report.done;
            if before.0 == Some(RunEnd::Partial) {
                report.end = report.end.filter(|end| *end == RunEnd::Interrupted).or(before.0);
            }
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// An inode that stops being an object leaves no trace in its directory: what the index knows of these
    /// guests no longer holds.
    fn forget(&self, store: &Store) {
        if let Ok(mut index) = Index::open(store) {
            let guests: Vec<_> = self.guests.iter().map(|guest| (guest.key.clone(), None)).collect();
            if index.store(&guests, None).is_err() {
                store::index::discard(store).ok();
            }
        }
    }

    fn plan_undo(&self, store: &Store, journal: Option<&Journal>, scope: &Scope) -> Result<Planned> {
        let outside = |path: &&PathBuf| !self.guests.iter().any(|guest| path.starts_with(&guest.path));
        if let Some(path) = scope.paths.iter().find(outside) {
            return Err(Error::NotInGuest(path.clone()));
        }
        let mut objects = HashMap::new();
        let mut add = |name, ino, _: &Dir| {
            objects.insert(ino, name);
        };
        store.for_each_object(&mut add, drop)?;
        let relaxed = store.format().identity == store::IdentityPolicy::WithoutMtime;
        let (shared, mut whole) = match (scope.run, journal) {
            (Some(run), Some(journal)) => self.shared_by_run(journal, run)?,
            (Some(run), None) => return Err(Error::BadRun { run, why: "is not in the journal" }),
            (None, Some(journal)) if relaxed => (self.shared_last(journal)?, false),
            (None, _) => (Shared::new(), false),
        };
        let is_wanted =
            |held: &Held| (scope.run.is_none() || shared.contains_key(held)) && self.is_in_scope(scope, held);
        let mut holdings = self.held_by_guests(&objects);
        if scope.run.is_some() {
            self.note_replaced(&shared, &holdings);
            whole &= shared.keys().all(|held| self.is_in_scope(scope, held));
        }
        // All names of an inode or none: a guest's own hard links stay what they are.
        holdings.retain(|_, names| names.iter().any(is_wanted));
        let (locked, free): (Vec<Move>, Vec<Move>) =
            moves(store, &objects, holdings, &shared)?.into_iter().partition(|step| step.locked);
        let mut parts = vec![(Seal::None, self.batches(&free)), (Seal::Immutable, self.batches(&locked))];
        parts.retain(|(_, batches)| !batches.is_empty());
        Ok(Planned { parts, whole })
    }

    fn is_in_scope(&self, scope: &Scope, held: &Held) -> bool {
        let guest = held.guest as usize;
        let path = self.guests[guest].path.join(to_path(&join(&held.dir, &held.name)));
        let named = scope.paths.is_empty() || scope.paths.iter().any(|wanted| path.starts_with(wanted));
        named && self.judges[guest].selects(&held.dir, &held.name)
    }

    /// Notes the names that a run has shared and that no longer are objects'.
    fn note_replaced(&self, shared: &Shared, holdings: &Holdings) {
        let held: HashSet<&Held> = holdings.values().flatten().collect();
        for held in shared.keys().filter(|name| !held.contains(name)) {
            let guest = &self.guests[held.guest as usize];
            let dir = guest.root.open_dir(&held.dir);
            let why = match dir.and_then(|dir| dir.stat(&held.name)) {
                Ok(_) => Skip::NotOurs,
                Err(errno) => Skip::from_errno(errno),
            };
            self.notes.skip(&guest.key, to_path(&join(&held.dir, &held.name)), why);
        }
    }

    /// What a run has shared, apart from what later runs have shared again after a guest had replaced it;
    /// and whether all its guests are at hand.
    fn shared_by_run(&self, journal: &Journal, run: RunId) -> Result<(Shared, bool)> {
        let runs = journal.runs()?;
        let known = runs.iter().find(|known| known.id == run);
        match known.ok_or(Error::BadRun { run, why: "is not in the journal" })? {
            known if known.kind != RunKind::Unify => {
                return Err(Error::BadRun { run, why: "has shared nothing" });
            }
            known if known.undone_by.is_some() => {
                return Err(Error::BadRun { run, why: "is undone already" });
            }
            _ => {}
        }
        let (mut shared, mut whole) = (Shared::new(), true);
        whole &= self.for_each_shared(journal, run, |held, mtime| {
            shared.insert(held, mtime);
        })?;
        for later in runs.iter().filter(|later| later.id > run && later.kind == RunKind::Unify) {
            self.for_each_shared(journal, later.id, |held, _| {
                shared.remove(&held);
            })?;
        }
        Ok((shared, whole))
    }

    /// The times that identity leaves out, by the latest run that took each away.
    fn shared_last(&self, journal: &Journal) -> Result<Shared> {
        let mut shared = Shared::new();
        for run in journal.runs()?.iter().filter(|run| run.kind == RunKind::Unify) {
            self.for_each_shared(journal, run.id, |held, mtime| {
                shared.insert(held, mtime);
            })?;
        }
        Ok(shared)
    }

    /// Calls `each` for every name that a run has shared, as the journal has it; returns whether all its
    /// guests are at hand.
    fn for_each_shared(
        &self,
        journal: &Journal,
        run: RunId,
        mut each: impl FnMut(Held, Option<Time>),
    ) -> Result<bool> {
        let (mut seq, mut all) = (0, true);
        while let Some((batch, settled)) = journal.batch(run, seq)? {
            let settled = settled.unwrap_or_default();
            let done = batch.actions.iter().zip(settled).filter(|(_, how)| *how != Settled::NotDone);
            for (action, how) in done {
                // An inode that became an object where it was still has its own time.
                let mtime = action.mtime.filter(|_| matches!(how, Settled::Done { .. }));
                for name in &action.names {
                    match self.held(&batch, name) {
                        Some(held) => each(held, mtime),
                        None => all = false,
                    }
                }
            }
            seq += 1;
        }
        Ok(all)
    }

    fn held(&self, batch: &Batch, name: &NameRef) -> Option<Held> {
        let dir = &batch.dirs[name.dir as usize];
        let key = &batch.guests[dir.guest as usize];
        let guest = self.guests.iter().position(|guest| guest.key == *key)? as u32;
        Some(Held { guest, dir: dir.path.clone(), name: name.name.clone() })
    }

    /// Every name in the guests whose inode is an object.
    fn held_by_guests(&self, objects: &HashMap<u64, ObjectName>) -> Holdings {
        self.around.observer.phase("walking", 0);
        let found = Mutex::new(Holdings::new());
        rayon::scope(|scope| {
            for guest in 0..self.guests.len() as u32 {
                let found = &found;
                scope.spawn(move |scope| self.find_held(scope, objects, found, guest, Vec::new()));
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.values_mut().for_each(|names| names.sort_unstable());
        found
    }

    fn find_held<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        objects: &'s HashMap<u64, ObjectName>,
        found: &'s Mutex<Holdings>,
        guest: u32,
        path: Vec<u8>,
    ) {
        let skip = |errno| {
            self.notes.skip(&self.guests[guest as usize].key, to_path(&path), Skip::from_errno(errno));
        };
        let open = || -> kernel::Result<Option<Dir>> {
            if !is_within_reach(&path) {
                return Err(Errno::NAMETOOLONG);
            }
            let dir = self.guests[guest as usize].root.open_dir(&path)?;
            Ok((dir.stat_self()?.dev == self.place.dev()).then_some(dir))
        };
        let dir = match open() {
            Ok(Some(dir)) => dir,
            Ok(None) => return,
            Err(errno) => return skip(errno),
        };
        let mut here = Vec::new();
        let read = dir.for_each(&mut EntryBuffer::default(), |entry| -> std::result::Result<(), Errno> {
            if entry.kind == Kind::Directory {
                let path = join(&path, entry.name);
                scope.spawn(move |scope| self.find_held(scope, objects, found, guest, path));
            } else if objects.contains_key(&entry.ino) {
                here.push((entry.ino, Held { guest, dir: path.clone(), name: entry.name.to_vec() }));
            }
            Ok(())
        });
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        for (ino, held) in here {
            found.entry((ino, guest)).or_default().push(held);
        }
        drop(found);
        if let Err(errno) = read {
            skip(errno);
        }
    }

    /// Copies first; then, when they are through, the objects that are left to one guest alone. Those of
    /// one directory side by side: its time is restored once for all.
    fn batches(&self, moves: &[Move]) -> Vec<Batch> {
        let mut rows = HashMap::new();
        let mut done = Vec::new();
        for verb in [Verb::Detach, Verb::Retire] {
            let mut open = Builder::new(&self.guests);
            let mut chosen: Vec<&Move> = moves.iter().filter(|step| step.verb == verb).collect();
            chosen.sort_unstable_by(|a, b| a.names.cmp(&b.names));
            for step in chosen {
                if !open.takes(step.names.len() as u32) {
                    let full = std::mem::replace(&mut open, Builder::new(&self.guests));
                    done.push(full.batch);
                }
                add(&mut open, &mut rows, step);
            }
            if !open.batch.actions.is_empty() {
                done.push(open.batch);
            }
        }
        done
    }
}

/// What becomes of each inode: the last guest that uses an object keeps it, all others get copies.
fn moves(
    store: &Store,
    objects: &HashMap<u64, ObjectName>,
    holdings: Holdings,
    shared: &Shared,
) -> Result<Vec<Move>> {
    let mut moves: Vec<Move> = Vec::new();
    let mut holdings = holdings.into_iter().peekable();
    let mut held = 0;
    while let Some(((ino, _), names)) = holdings.next() {
        held += names.len();
        let is_last = holdings.peek().is_none_or(|((next, _), _)| *next != ino);
        let count = if is_last { std::mem::take(&mut held) } else { held };
        let Some(&object) = objects.get(&ino) else { continue };
        let Some(stat) = store.stat_object(object)? else { continue };
        let mtime = names.iter().find_map(|held| shared.get(held).copied().flatten());
        let own_time = mtime.is_none_or(|mtime| mtime == stat.mtime);
        let retire = is_last && count + 1 == stat.nlink as usize && own_time && !stat.verity;
        let verb = if retire { Verb::Retire } else { Verb::Detach };
        let locked = stat.immutable && is_locked(store, object)?;
        moves.push(Move { verb, object, ino, size: stat.size, mtime, names, locked });
    }
    Ok(moves)
}

/// Whether an immutable object is one whose names are not free: plain immutable, not link-invert.
fn is_locked(store: &Store, object: ObjectName) -> Result<bool> {
    let file = store.objects().open_file(object.path().as_bytes());
    let link_invert = file.and_then(|file| Seal::Patch.is_on(&file));
    Ok(!link_invert.map_err(store::Error::at("look at", store.object_path(object)))?)
}

/// Adds an action to a batch; `rows` numbers directories.
fn add<'m>(batch: &mut Builder, rows: &mut HashMap<(u32, &'m [u8]), u32>, step: &'m Move) {
    let mut names = Vec::with_capacity(step.names.len());
    for one in &step.names {
        let next = rows.len() as u32;
        let row = *rows.entry((one.guest, &one.dir)).or_insert(next);
        let dir = batch.dir(one.guest, row, || one.dir.clone());
        names.push(NameRef { dir, name: one.name.clone() });
    }
    let Move { verb, object, ino, size, mtime, .. } = *step;
    batch.push(Action { verb, object, ino, ctime: 0, size, mtime, names });
}

fn count_planned(report: &mut Report, batch: &Batch) {
    for action in &batch.actions {
        report.planned.names += action.names.len() as u64;
        match action.verb {
            Verb::Detach => {
                report.planned.links += 1;
                report.planned.bytes += action.size;
            }
            _ => report.planned.admits += 1,
        }
    }
}
