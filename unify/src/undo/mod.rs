//! Making shared files private again: another plan for the same executor.
//!
//! Names of an object become names of a private copy, and an object that no guest uses any more goes. It never
//! becomes a guest's own inode, though that would save a copy: processes of other guests may have it mapped, or a
//! handle by which they open it again.

mod held;
mod shared;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use kernel::{Dir, Errno, Seal, unless_withheld};
use store::journal::{Action, Batch, Journal, NameRef, RunEnd, RunId, RunKind, Verb};
use store::{ObjectName, Store};

use crate::guest::Guest;
use crate::notes::Skip;
use crate::plan::{Builder, MAX_PATHS, Size};
use crate::session::{Report, Run, Session};
use crate::walk::{join, to_path};
use crate::{Error, Result};
use held::Held;
use shared::{Mention, Past, Shared};

/// What is to be made private. Everything that is given narrows it down.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only what this run has shared.
    pub run: Option<RunId>,
    /// Only these files, or what lies below these directories; canonical paths on the host.
    pub paths: Vec<PathBuf>,
}

/// An object, by its inode.
struct Object {
    name: ObjectName,
    /// Known once it is planned with.
    size: u64,
}

/// What one guest has of an object, which becomes a copy: see [`Held::names`].
struct Move {
    first: u32,
    count: u32,
}

/// Moves, and the seal that has to come off their objects meanwhile.
type Part = (Seal, Vec<Move>);

/// What an undo would do.
struct Planned {
    objects: HashMap<u64, Object>,
    held: Held,
    shared: Shared,
    parts: Vec<Part>,
    /// It takes back all that the run of the scope has shared.
    whole: bool,
    /// What is in the scope and stays shared, or may: files, and directories that could not be read.
    left: u64,
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
        let mut report = Report { planned: planned.size(), left_shared: planned.left, ..Report::default() };
        for (_, moves) in &planned.parts {
            planned.batches(&self.guests, moves).for_each(|batch| show(&batch));
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Makes shared files of the guests private again.
    pub fn undo(self, store: &Store, journal: &mut Journal, scope: &Scope, command: &str) -> Result<Report> {
        let planned = self.plan_undo(store, Some(journal), scope)?;
        let (end, left_shared) = (Some(RunEnd::Complete), planned.left);
        let mut report = Report { end, planned: planned.size(), left_shared, ..Report::default() };
        let parts = planned.parts.len();
        for (at, (seal, moves)) in planned.parts.iter().enumerate() {
            if report.end == Some(RunEnd::Interrupted) {
                break;
            }
            let is_last = at + 1 == parts && report.end == Some(RunEnd::Complete);
            let undoes: Vec<RunId> = scope.run.filter(|_| planned.whole && is_last).into_iter().collect();
            let batches = planned.batches(&self.guests, moves);
            let run = Run { session: &self, store, journal, seal: *seal };
            let before = (report.end, report.done);
            run.carry_out(RunKind::Undo, command, batches, moves.len() as u64, &mut report, &undoes)?;
            report.done = before.1 + report.done;
            if before.0 == Some(RunEnd::Partial) {
                report.end = report.end.filter(|end| *end == RunEnd::Interrupted).or(before.0);
            }
        }
        report.left_shared += report.done.not_done;
        report.fill_skipped(self.notes);
        Ok(report)
    }

    fn plan_undo(&self, store: &Store, journal: Option<&Journal>, scope: &Scope) -> Result<Planned> {
        let outside = |path: &&PathBuf| !self.guests.iter().any(|guest| path.starts_with(&guest.path));
        if let Some(path) = scope.paths.iter().find(outside) {
            return Err(Error::NotInGuest(path.clone()));
        }
        match (scope.run, journal) {
            (Some(run), Some(journal)) => shared::check(journal, run)?,
            (Some(run), None) => return Err(Error::BadRun { run, why: "is not in the journal" }),
            (None, _) => {}
        }
        let mut objects = HashMap::new();
        let mut add = |name, ino, _: &Dir| {
            objects.insert(ino, Object { name, size: 0 });
        };
        store.for_each_object(&mut add, drop)?;
        let (held, mut left) = self.held_by_guests(&objects, scope);
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        let relaxed = store.format().identity == store::IdentityPolicy::WithoutMtime;
        let mut all_in_scope = true;
        let gone = |name: Mention<'_>| {
            if self.is_in_scope(scope, name.guest, || name.dir.to_vec(), name.name) {
                left += u64::from(!self.note_gone(name, &objects));
            } else {
                all_in_scope = false;
            }
        };
        let past = |journal| Past { store, journal, guests: &self.guests, objects: &objects, held: &held };
        let shared = match (scope.run, journal) {
            (Some(run), Some(journal)) => past(journal).shared_by(run, gone)?,
            (None, Some(journal)) if relaxed => past(journal).times_taken()?,
            _ => Shared::default(),
        };
        let is_in_scope = |row: &u32| {
            let (place, _) = held.place(*row);
            self.is_in_scope(scope, place.guest, || place.path(), held.name(*row))
        };
        // All names of an inode or none: a guest's own hard links stay what they are.
        let is_wanted = |names: &[u32]| names.iter().any(|row| shared.has(*row) && is_in_scope(row));
        let (mut parts, out_of_reach) = self.moves(store, &mut objects, &held, is_wanted)?;
        left += out_of_reach;
        let whole = shared.whole
            && all_in_scope
            && left == 0
            && (0..held.len() as u32).filter(|row| shared.has(*row)).all(|row| is_in_scope(&row));
        if parts.is_empty() && whole && scope.run.is_some() {
            // The guests have replaced all that the run had shared: that it is undone is all there is to do.
            parts.push((Seal::None, Vec::new()));
        }
        Ok(Planned { objects, held, shared, parts, whole, left })
    }

    fn is_in_scope(&self, scope: &Scope, guest: u32, dir: impl FnOnce() -> Vec<u8>, name: &[u8]) -> bool {
        let (guest, judge) = (&self.guests[guest as usize], &self.judges[guest as usize]);
        if scope.paths.is_empty() && !judge.is_restricted() {
            return true;
        }
        let dir = dir();
        let path = guest.path.join(to_path(&join(&dir, name)));
        let is_named = scope.paths.is_empty() || scope.paths.iter().any(|wanted| path.starts_with(wanted));
        is_named && judge.selects(&dir, name)
    }

    /// Notes a name that a run has shared and that no longer is an object's. Returns `false` if it may be one all the
    /// same, which the walk has missed.
    fn note_gone(&self, name: Mention<'_>, objects: &HashMap<u64, Object>) -> bool {
        let guest = &self.guests[name.guest as usize];
        let found = guest.root.open_dir(name.dir).and_then(|dir| dir.stat(name.name));
        let (is_gone, why) = match found {
            Ok(stat) => (!objects.contains_key(&stat.ino), Skip::NotOurs),
            Err(errno) => {
                (matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP), Skip::from_errno(errno))
            }
        };
        self.notes.skip(&guest.key, to_path(&join(name.dir, name.name)), why);
        is_gone
    }

    /// What is to be copied, and how many files are wanted and left: those are noted. What is in one directory stands side
    /// by side, as its time is restored once for all.
    fn moves(
        &self,
        store: &Store,
        objects: &mut HashMap<u64, Object>,
        held: &Held,
        is_wanted: impl Fn(&[u32]) -> bool,
    ) -> Result<(Vec<Part>, u64)> {
        let (mut free, mut locked, mut left) = (Vec::new(), Vec::new(), 0);
        let mut leave = |(first, count): (u32, u32), why| {
            let row = held.names(first, count)[0];
            let (place, _) = held.place(row);
            let path = to_path(&join(&place.path(), held.name(row)));
            self.notes.skip(&self.guests[place.guest as usize].key, path, why);
            left += 1;
            false
        };
        for (ino, mut guests) in held.inodes() {
            guests.retain(|&(first, count)| is_wanted(held.names(first, count)));
            guests.retain(|&(first, count)| {
                fits_the_journal(held, held.names(first, count)) || leave((first, count), Skip::OutOfReach)
            });
            let Some(object) = objects.get_mut(&ino).filter(|_| !guests.is_empty()) else { continue };
            let Some(stat) = store.stat_object(object.name)? else { continue };
            object.size = stat.size;
            let is_locked = match stat.immutable.then(|| is_locked(store, object.name)) {
                None => false,
                Some(known) => {
                    let known = known.map_err(store::Error::at("look at", store.object_path(object.name)))?;
                    let Some(is_locked) = known else {
                        guests.retain(|&names| leave(names, Skip::Busy));
                        continue;
                    };
                    is_locked
                }
            };
            let moves = if is_locked { &mut locked } else { &mut free };
            moves.extend(guests.into_iter().map(|(first, count)| Move { first, count }));
        }
        let mut parts = vec![(Seal::None, free), (Seal::Immutable, locked)];
        parts.retain(|(_, moves)| !moves.is_empty());
        for (_, moves) in &mut parts {
            moves.sort_unstable_by_key(|step| held.names(step.first, 1)[0]);
        }
        Ok((parts, left))
    }
}

/// Whether the paths of an inode's names are no more than the journal should hold.
fn fits_the_journal(held: &Held, names: &[u32]) -> bool {
    let places = names.chunk_by(|a, b| held.place(*a).1 == held.place(*b).1);
    let paths: usize = places.map(|names| held.place(names[0]).0.path_bytes()).sum();
    paths + names.iter().map(|row| held.name(*row).len()).sum::<usize>() <= MAX_PATHS
}

/// Whether an immutable object is one whose names are not free: plain immutable, not link-invert. None: a guest keeps it
/// from us.
fn is_locked(store: &Store, object: ObjectName) -> kernel::Result<Option<bool>> {
    let file = unless_withheld(store.objects().open_file(object.path().as_bytes()))?;
    file.map(|file| Ok(!Seal::Patch.is_on(&file)?)).transpose()
}

impl Planned {
    fn size(&self) -> Size {
        let mut size = Size::default();
        for step in self.parts.iter().flat_map(|(_, moves)| moves) {
            size.links += 1;
            size.names += u64::from(step.count);
            size.bytes += self.object(step).1.size;
        }
        size
    }

    /// The object that a move is about, and its inode.
    fn object(&self, step: &Move) -> (u64, &Object) {
        let ino = self.held.ino(self.held.names(step.first, 1)[0]);
        (ino, &self.objects[&ino])
    }

    fn batches<'p>(&'p self, guests: &'p [Guest], moves: &'p [Move]) -> impl Iterator<Item = Batch> + 'p {
        let mut rest = moves.iter().peekable();
        std::iter::from_fn(move || {
            rest.peek()?;
            let mut batch = Builder::new(guests);
            while let Some(step) = rest.next_if(|step| batch.takes(step.count)) {
                self.add(&mut batch, step);
            }
            Some(batch.batch)
        })
    }

    fn add(&self, batch: &mut Builder, step: &Move) {
        let rows = self.held.names(step.first, step.count);
        let name = |row: &u32| {
            let (place, number) = self.held.place(*row);
            let dir = batch.dir(place.guest, number, || place.path());
            NameRef { dir, name: self.held.name(*row).to_vec() }
        };
        let names = rows.iter().map(name).collect();
        let (ino, &Object { name: object, size }) = self.object(step);
        let mtime = rows.iter().find_map(|row| self.shared.time(*row));
        batch.push(Action { verb: Verb::Detach, object, ino, ctime: 0, size, mtime, names });
    }
}
