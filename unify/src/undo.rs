//! Making shared files private again: another plan for the same executor.
//!
//! Names of an object become names of a private copy. Where one guest alone still uses the object, its
//! inode simply stops being one: nothing is copied.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, Kind, Seal, Time};
use store::index::Index;
use store::journal::{Action, Batch, Journal, NameRef, RunId, RunKind, Settled, Verb};
use store::{ObjectName, Store};

use crate::notes::Skip;
use crate::plan::Builder;
use crate::session::{Report, Run, Session};
use crate::walk::{join, to_path};
use crate::{Error, Result};

/// What is to be made private. Everything that is given narrows it down.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only what this run has shared.
    pub run: Option<RunId>,
    /// Only these files, or what lies below these directories; canonical paths on the host.
    pub paths: Vec<PathBuf>,
}

/// A name of an object in a guest.
#[derive(Clone, Debug)]
struct Held {
    guest: u32,
    dir: Vec<u8>,
    name: Vec<u8>,
    mtime: Option<Time>,
}

/// Names by object inode, then by guest.
type Holdings = BTreeMap<u64, (ObjectName, BTreeMap<u32, Vec<Held>>)>;

impl Session<'_> {
    /// Plans the undo and shows each batch to `show`; changes nothing.
    pub fn preview_undo(
        self,
        store: &Store,
        journal: Option<&Journal>,
        scope: &Scope,
        mut show: impl FnMut(&Batch),
    ) -> Result<Report> {
        let holdings = self.holdings(store, journal, scope)?;
        let mut report = Report::default();
        for batch in self.batches(store, holdings)? {
            count_planned(&mut report, &batch);
            show(&batch);
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// Makes shared files of the guests private again.
    pub fn undo(self, store: &Store, journal: &mut Journal, scope: &Scope, command: &str) -> Result<Report> {
        let holdings = self.holdings(store, Some(journal), scope)?;
        let batches = self.batches(store, holdings)?;
        let mut report = Report { end: Some(store::journal::RunEnd::Complete), ..Report::default() };
        batches.iter().for_each(|batch| count_planned(&mut report, batch));
        if !batches.is_empty() {
            let actions = batches.iter().map(|batch| batch.actions.len() as u64).sum();
            let whole = scope.paths.is_empty() && self.judges.iter().all(|judge| !judge.is_restricted());
            let undoes: Vec<RunId> = scope.run.filter(|_| whole).into_iter().collect();
            self.forget(store);
            let seal = seal_in_the_way(store, &batches)?;
            let run = Run { session: &self, store, journal, seal };
            run.carry_out(RunKind::Undo, command, batches.into_iter(), actions, &mut report, &undoes)?;
        }
        report.fill_skipped(self.notes);
        Ok(report)
    }

    /// An inode that stops being an object leaves no trace in its directory: what the index knows of these
    /// guests no longer holds.
    fn forget(&self, store: &Store) {
        if let Ok(mut index) = Index::open(store) {
            let objects = index.objects();
            let guests: Vec<_> = self.guests.iter().map(|guest| (guest.key.clone(), None)).collect();
            if index.store(&guests, &objects).is_err() {
                store::index::discard(store).ok();
            }
        }
    }

    fn holdings(&self, store: &Store, journal: Option<&Journal>, scope: &Scope) -> Result<Holdings> {
        let mut objects = HashMap::new();
        let mut add = |name, ino, _: &Dir| {
            objects.insert(ino, name);
        };
        store.for_each_object(&mut add, drop)?;
        let found = match (scope.run, journal) {
            (Some(run), Some(journal)) => self.held_by_run(journal, run)?,
            (Some(run), None) => return Err(Error::BadRun { run, why: "is not in the journal" }),
            (None, _) => self.held_by_guests(&objects),
        };
        let relaxed = store.format().identity == store::IdentityPolicy::WithoutMtime;
        let mtimes = match journal {
            Some(journal) if relaxed && scope.run.is_none() => self.recorded_times(journal)?,
            _ => HashMap::new(),
        };
        let mut holdings = Holdings::new();
        for mut held in found {
            if !self.is_in_scope(scope, &held) {
                continue;
            }
            let guest = &self.guests[held.guest as usize];
            let dir = guest.root.open_dir(&held.dir).map_err(Skip::from_errno);
            let stat = dir.and_then(|dir| dir.stat(&held.name).map_err(Skip::from_errno));
            let object = stat.map(|stat| (stat.ino, objects.get(&stat.ino)));
            match object {
                Ok((ino, Some(&name))) => {
                    let key = (held.guest, join(&held.dir, &held.name));
                    held.mtime = held.mtime.or_else(|| mtimes.get(&key).copied());
                    let (_, guests) = holdings.entry(ino).or_insert_with(|| (name, BTreeMap::new()));
                    guests.entry(held.guest).or_default().push(held);
                }
                Ok((_, None)) if scope.run.is_some() => self.pass_over(&held, Skip::NotOurs),
                Ok(_) => {}
                Err(why) => self.pass_over(&held, why),
            }
        }
        Ok(holdings)
    }

    fn pass_over(&self, held: &Held, why: Skip) {
        let path = to_path(&join(&held.dir, &held.name));
        self.notes.skip(&self.guests[held.guest as usize].key, path, why);
    }

    fn is_in_scope(&self, scope: &Scope, held: &Held) -> bool {
        let guest = held.guest as usize;
        let path = self.guests[guest].path.join(to_path(&join(&held.dir, &held.name)));
        let named = scope.paths.is_empty() || scope.paths.iter().any(|wanted| path.starts_with(wanted));
        named && self.judges[guest].selects(&held.dir, &held.name)
    }

    /// What a run has shared, as the journal has it.
    fn held_by_run(&self, journal: &Journal, run: RunId) -> Result<Vec<Held>> {
        let known = journal.runs()?.into_iter().find(|known| known.id == run);
        match known.ok_or(Error::BadRun { run, why: "is not in the journal" })? {
            known if known.kind != RunKind::Unify => {
                Err(Error::BadRun { run, why: "has shared nothing: it was an undo" })
            }
            known if known.undone_by.is_some() => Err(Error::BadRun { run, why: "is undone already" }),
            _ => self.shared_by(journal, run),
        }
    }

    fn shared_by(&self, journal: &Journal, run: RunId) -> Result<Vec<Held>> {
        let mut found = Vec::new();
        let mut seq = 0;
        while let Some((batch, settled)) = journal.batch(run, seq)? {
            let settled = settled.unwrap_or_default();
            let done = batch.actions.iter().zip(settled).filter(|(_, how)| *how != Settled::NotDone);
            for (action, how) in done {
                // An inode that became an object where it was still has its own time.
                let mtime = action.mtime.filter(|_| matches!(how, Settled::Done { .. }));
                found.extend(action.names.iter().filter_map(|name| self.held(&batch, name, mtime)));
            }
            seq += 1;
        }
        Ok(found)
    }

    fn held(&self, batch: &Batch, name: &NameRef, mtime: Option<Time>) -> Option<Held> {
        let dir = &batch.dirs[name.dir as usize];
        let key = &batch.guests[dir.guest as usize];
        let guest = self.guests.iter().position(|guest| guest.key == *key)? as u32;
        Some(Held { guest, dir: dir.path.clone(), name: name.name.clone(), mtime })
    }

    /// The times that identity leaves out, by the latest run that took each away.
    fn recorded_times(&self, journal: &Journal) -> Result<HashMap<(u32, Vec<u8>), Time>> {
        let mut times = HashMap::new();
        for run in journal.runs()?.iter().filter(|run| run.kind == RunKind::Unify) {
            for held in self.shared_by(journal, run.id)? {
                let key = (held.guest, join(&held.dir, &held.name));
                match held.mtime {
                    Some(mtime) => drop(times.insert(key, mtime)),
                    None => drop(times.remove(&key)),
                }
            }
        }
        Ok(times)
    }

    /// Every name in the guests whose inode is an object.
    fn held_by_guests(&self, objects: &HashMap<u64, ObjectName>) -> Vec<Held> {
        self.around.observer.phase("walking", 0);
        let found = Mutex::new(Vec::new());
        rayon::scope(|scope| {
            for guest in 0..self.guests.len() as u32 {
                let found = &found;
                scope.spawn(move |scope| self.find_held(scope, objects, found, guest, Vec::new()));
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by(|a: &Held, b: &Held| (a.guest, &a.dir, &a.name).cmp(&(b.guest, &b.dir, &b.name)));
        found
    }

    fn find_held<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        objects: &'s HashMap<u64, ObjectName>,
        found: &'s Mutex<Vec<Held>>,
        guest: u32,
        path: Vec<u8>,
    ) {
        let skip = |errno| {
            self.notes.skip(&self.guests[guest as usize].key, to_path(&path), Skip::from_errno(errno))
        };
        let open = || -> kernel::Result<Option<Dir>> {
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
                here.push(Held { guest, dir: path.clone(), name: entry.name.to_vec(), mtime: None });
            }
            Ok(())
        });
        found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut here);
        if let Err(errno) = read {
            skip(errno);
        }
    }

    /// Copies first; then, when they are through, the objects that are left to one guest alone.
    fn batches(&self, store: &Store, holdings: Holdings) -> Result<Vec<Batch>> {
        let (mut detaches, mut retires) = (Plan::new(self), Plan::new(self));
        for (ino, (object, guests)) in holdings {
            let Some(stat) = store.stat_object(object)? else { continue };
            let held: usize = guests.values().map(Vec::len).sum();
            let all = held + 1 == stat.nlink as usize;
            let last = guests.len() - 1;
            for (at, names) in guests.into_values().enumerate() {
                let mtime = names.iter().find_map(|held| held.mtime);
                let own_time = mtime.is_none_or(|mtime| mtime == stat.mtime);
                let retire = all && at == last && own_time && !stat.verity;
                let plan = if retire { &mut retires } else { &mut detaches };
                let verb = if retire { Verb::Retire } else { Verb::Detach };
                plan.add(verb, object, (ino, stat.size), mtime, &names);
            }
        }
        Ok(detaches.finish().into_iter().chain(retires.finish()).collect())
    }
}

/// Collects actions into batches.
struct Plan<'s, 'a> {
    session: &'s Session<'a>,
    rows: HashMap<(u32, Vec<u8>), u32>,
    done: Vec<Batch>,
    open: Builder,
}

impl<'s, 'a> Plan<'s, 'a> {
    fn new(session: &'s Session<'a>) -> Self {
        Self { session, rows: HashMap::new(), done: Vec::new(), open: Builder::new(&session.guests) }
    }

    fn add(
        &mut self,
        verb: Verb,
        object: ObjectName,
        (ino, size): (u64, u64),
        mtime: Option<Time>,
        held: &[Held],
    ) {
        if !self.open.takes(held.len() as u32) {
            let full = std::mem::replace(&mut self.open, Builder::new(&self.session.guests));
            self.done.push(full.batch);
        }
        let mut names = Vec::new();
        for one in held {
            let next = self.rows.len() as u32;
            let row = *self.rows.entry((one.guest, one.dir.clone())).or_insert(next);
            let dir = self.open.dir(one.guest, row, || one.dir.clone());
            names.push(NameRef { dir, name: one.name.clone() });
        }
        self.open.batch.actions.push(Action { verb, object, ino, ctime: 0, size, mtime, names });
    }

    fn finish(mut self) -> Vec<Batch> {
        if !self.open.batch.actions.is_empty() {
            self.done.push(self.open.batch);
        }
        self.done
    }
}

/// The seal that must be off while names move, if the objects have one of that kind.
fn seal_in_the_way(store: &Store, batches: &[Batch]) -> Result<Seal> {
    for action in batches.iter().flat_map(|batch| &batch.actions) {
        if store.stat_object(action.object)?.is_some_and(|stat| stat.immutable) {
            let failed = || store::Error::at("look at the seal of", store.object_path(action.object));
            let file = store.objects().open_file(action.object.path().as_bytes()).map_err(failed())?;
            let free = Seal::Patch.is_on(&file).map_err(failed())?;
            return Ok(if free { Seal::Patch } else { Seal::Immutable });
        }
    }
    Ok(Seal::None)
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
