//! Making shared files private again: another plan for the same executor.
//!
//! Names of an object become names of a private copy. Where one guest alone still uses the object, its
//! inode simply stops being one: nothing is copied.

mod held;
mod shared;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use kernel::{Dir, Errno, Seal};
use store::index::Index;
use store::journal::{Action, Batch, Journal, NameRef, RunEnd, RunId, RunKind, Verb};
use store::{ObjectName, Store};

use crate::guest::Guest;
use crate::notes::Skip;
use crate::plan::{Builder, Size};
use crate::session::{Report, Run, Session};
use crate::walk::{join, to_path};
use crate::{Error, Result};
use held::Held;
use shared::Shared;

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

/// What one guest has of an object, and what becomes of it.
struct Move {
    verb: Verb,
    /// Its names: see [`Held::names`].
    first: u32,
    count: u32,
}

/// What an undo would do.
struct Planned {
    objects: HashMap<u64, Object>,
    held: Held,
    shared: Shared,
    /// By the seal that has to come off the objects meanwhile.
    parts: Vec<(Seal, Vec<Move>)>,
    /// It takes back all that the run of the scope has shared.
    whole: bool,
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
        let mut report = Report { planned: planned.size(), ..Report::default() };
        for (_, moves) in &planned.parts {
            planned.batches(&self.guests, moves).for_each(|batch| show(&batch));
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Makes shared files of the guests private again.
    pub fn undo(self, store: &Store, journal: &mut Journal, scope: &Scope, command: &str) -> Result<Report> {
        let planned = self.plan_undo(store, Some(journal), scope)?;
        let mut report = Report { end: Some(RunEnd::Complete), planned: planned.size(), ..Report::default() };
        if !planned.parts.is_empty() {
            self.forget(store);
        }
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
        let held = self.held_by_guests(&objects);
        if self.around.stopping() {
            return Err(Error::Interrupted);
        }
        let relaxed = store.format().identity == store::IdentityPolicy::WithoutMtime;
        let shared = match (scope.run, journal) {
            (Some(run), Some(journal)) => self.shared_by_run(journal, run, &held)?,
            (None, Some(journal)) if relaxed => self.times_taken(journal, &held)?,
            _ => Shared::default(),
        };
        let none_is_missed = self.note_gone(&shared, &objects);
        let is_in_scope = |row: &u32| {
            let (place, _) = held.place(*row);
            self.is_in_scope(scope, place.guest, &place.path(), held.name(*row))
        };
        let whole = shared.whole
            && none_is_missed
            && (0..held.len() as u32).filter(|row| shared.has(*row)).all(|row| is_in_scope(&row))
            && shared.gone.iter().all(|(guest, dir, name)| self.is_in_scope(scope, *guest, dir, name));
        // All names of an inode or none: a guest's own hard links stay what they are.
        let is_wanted = |names: &[u32]| names.iter().any(|row| shared.has(*row) && is_in_scope(row));
        let mut parts = moves(store, &mut objects, &held, &shared, is_wanted)?;
        if parts.is_empty() && whole && scope.run.is_some() {
            // The guests have replaced all that the run had shared: that it is undone is all there is to do.
            parts.push((Seal::None, Vec::new()));
        }
        Ok(Planned { objects, held, shared, parts, whole })
    }

    fn is_in_scope(&self, scope: &Scope, guest: u32, dir: &[u8], name: &[u8]) -> bool {
        let is_named = || {
            let path = self.guests[guest as usize].path.join(to_path(&join(dir, name)));
            scope.paths.iter().any(|wanted| path.starts_with(wanted))
        };
        (scope.paths.is_empty() || is_named()) && self.judges[guest as usize].selects(dir, name)
    }

    /// Notes the names that a run has shared and that no longer are objects'. Returns `false` if one of them may be one
    /// all the same, which the walk has missed.
    fn note_gone(&self, shared: &Shared, objects: &HashMap<u64, Object>) -> bool {
        let mut all = true;
        for (guest, dir, name) in &shared.gone {
            let guest = &self.guests[*guest as usize];
            let found = guest.root.open_dir(dir).and_then(|dir| dir.stat(name));
            all &= match &found {
                Ok(stat) => !objects.contains_key(&stat.ino),
                Err(errno) => matches!(*errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP),
            };
            let why = match found {
                Ok(_) => Skip::NotOurs,
                Err(errno) => Skip::from_errno(errno),
            };
            self.notes.skip(&guest.key, to_path(&join(dir, name)), why);
        }
        all
    }
}

impl Planned {
    fn size(&self) -> Size {
        let mut size = Size::default();
        for step in self.parts.iter().flat_map(|(_, moves)| moves) {
            size.names += u64::from(step.count);
            if step.verb == Verb::Detach {
                size.links += 1;
                size.bytes += self.object(step).1.size;
            } else {
                size.admits += 1;
            }
        }
        size
    }

    /// The object that a move is about, and its inode.
    fn object(&self, step: &Move) -> (u64, &Object) {
        let ino = self.held.ino(self.held.names(step.first, 1)[0]);
        (ino, &self.objects[&ino])
    }

    /// The moves in batches: verbs are not mixed, for what is copied must be through before what is left stops being
    /// an object.
    fn batches<'p>(&'p self, guests: &'p [Guest], moves: &'p [Move]) -> impl Iterator<Item = Batch> + 'p {
        let mut rest = moves.iter().peekable();
        std::iter::from_fn(move || {
            let verb = rest.peek()?.verb;
            let mut batch = Builder::new(guests);
            while let Some(step) = rest.next_if(|step| step.verb == verb && batch.takes(step.count)) {
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
        batch.push(Action { verb: step.verb, object, ino, ctime: 0, size, mtime, names });
    }
}

/// What becomes of each inode: the last guest that uses an object keeps it, all others get copies. Copies come first;
/// what is in one directory stands side by side, as its time is restored once for all.
fn moves(
    store: &Store,
    objects: &mut HashMap<u64, Object>,
    held: &Held,
    shared: &Shared,
    is_wanted: impl Fn(&[u32]) -> bool,
) -> Result<Vec<(Seal, Vec<Move>)>> {
    let (mut free, mut locked) = (Vec::new(), Vec::new());
    for (ino, mut guests) in held.inodes() {
        guests.retain(|&(first, count)| is_wanted(held.names(first, count)));
        let (Some(&last), Some(object)) = (guests.last(), objects.get_mut(&ino)) else { continue };
        let Some(stat) = store.stat_object(object.name)? else { continue };
        object.size = stat.size;
        let own_time = held.names(last.0, last.1).iter().find_map(|row| shared.time(*row));
        let own_time = own_time.is_none_or(|time| time == stat.mtime);
        let names: u32 = guests.iter().map(|(_, count)| count).sum();
        let retire = names + 1 == stat.nlink && own_time && !stat.verity;
        let moves = if stat.immutable && is_locked(store, object.name)? { &mut locked } else { &mut free };
        moves.extend(guests.iter().map(|&(first, count)| {
            let verb = if retire && first == last.0 { Verb::Retire } else { Verb::Detach };
            Move { verb, first, count }
        }));
    }
    let mut parts = vec![(Seal::None, free), (Seal::Immutable, locked)];
    parts.retain(|(_, moves)| !moves.is_empty());
    for (_, moves) in &mut parts {
        moves.sort_unstable_by_key(|step| (step.verb == Verb::Retire, held.names(step.first, 1)[0]));
    }
    Ok(parts)
}

/// Whether an immutable object is one whose names are not free: plain immutable, not link-invert.
fn is_locked(store: &Store, object: ObjectName) -> Result<bool> {
    let file = store.objects().open_file(object.path().as_bytes());
    let link_invert = file.and_then(|file| Seal::Patch.is_on(&file));
    Ok(!link_invert.map_err(store::Error::at("look at", store.object_path(object)))?)
}
