//! Giving guests good bytes for corrupt ones (law 6).
//!
//! A fresh copy of a good file is made in the store, and its identity is computed: only if that is the one
//! the corrupt object stood for does anything else happen. The copy becomes the object; the executor then
//! exchanges every guest's names of the corrupt inode for names of the copy, as it exchanges any. One
//! inode takes the place of one inode, so link groups stay what they were and no link ceiling is met. The
//! corrupt inode keeps its name in quarantine: even a repair by mistake would lose nothing.

use std::collections::{BTreeMap, BTreeSet};

use kernel::{At, Dir, EntryBuffer, Errno, File, Kind, Metadata, Seal, free_names};
use store::identity::class;
use store::index::Index;
use store::journal::{Action, Batch, Journal, NameRef, RunEnd, RunId, RunKind, Verb};
use store::{IdentityPolicy, ObjectId, ObjectName, Store};

use super::Name;
use super::find::Found;
use super::scrub::Corrupt;
use crate::Result;
use crate::apply::Executor;
use crate::descend::Trail;
use crate::guest::Guest;
use crate::hash::identify;
use crate::notes::{Notes, Skip, Surroundings};
use crate::plan::{Builder, MAX_PATHS, is_intact};

/// The identity classes that good copies of these objects have, as far as that is known.
pub(super) fn find_classes(store: &Store, corrupt: &mut [Corrupt]) {
    let inodes: BTreeSet<u64> = corrupt.iter().map(|one| one.ino).collect();
    let rows = Index::open_read_only(store).map(|index| index.objects()).unwrap_or_default();
    let recorded: BTreeMap<u64, u64> =
        rows.into_iter().filter(|row| inodes.contains(&row.ino)).map(|row| (row.ino, row.class)).collect();
    for one in corrupt {
        one.classes.extend(recorded.get(&one.ino));
        one.classes.extend(class_now(store, one));
    }
}

/// Right unless it is the metadata that is corrupt.
fn class_now(store: &Store, one: &Corrupt) -> Option<u64> {
    let stat = store.quarantine().stat(one.aside.as_ref()?).ok()?;
    (stat.kind == Kind::File).then(|| class(store.format().identity, &stat))
}

/// Where copies are made: their run begins only when there are some.
const STAGING: RunId = 0;

/// Opens a file that may be a good copy.
type Source<'s> = Box<dyn Fn() -> kernel::Result<File> + 's>;

/// One repair of all that a scrub found.
pub(super) struct Task<'a> {
    pub(super) around: &'a Surroundings<'a>,
    pub(super) store: &'a Store,
    pub(super) guests: &'a [Guest],
    pub(super) notes: &'a Notes,
    pub(super) found: &'a Found,
    pub(super) seal: Seal,
    pub(super) command: &'a str,
}

/// Whether guests are to get a good object for it. One that could not be put aside has its slot still, and its seal.
fn is_wanted(one: &Corrupt) -> bool {
    !one.names.is_empty() && one.aside.is_some()
}

/// A corrupt object and the good one that takes its place.
struct Replacement {
    at: usize,
    object: ObjectName,
}

impl Task<'_> {
    /// Repairs what can be. Returns the run, if there was something to do.
    pub(super) fn run(&self, journal: &mut Journal, corrupt: &mut [Corrupt]) -> Result<Option<RunId>> {
        self.clear_staged()?;
        if !corrupt.iter().any(is_wanted) {
            return Ok(None);
        }
        let replacements = self.replace(corrupt)?;
        if replacements.is_empty() {
            return Ok(None);
        }
        let run = journal.begin(RunKind::Repair, self.command, self.seal)?;
        let batches = self.batches(corrupt, &replacements);
        let names: usize = batches.iter().flat_map(|batch| &batch.actions).map(|one| one.names.len()).sum();
        self.around.observer.phase("linking", names as u64);
        let loose = self.loosen(corrupt, &replacements)?;
        let setting = (run, self.seal);
        let mut executor = Executor::new(self.around, self.store, journal, self.guests, self.notes, setting)?;
        let mut end = executor.execute(batches.into_iter())?;
        let done = executor.finish()?;
        for file in &loose {
            self.around.fs.seal(file, self.seal).map_err(self.failed("seal what is in quarantine of"))?;
        }
        let without = corrupt.iter().filter(|one| is_wanted(one) && !one.replaced).count();
        let wanted: usize = replacements.iter().map(|one| corrupt[one.at].names.len()).sum();
        if end == RunEnd::Complete && (done.not_done > 0 || without > 0 || names < wanted) {
            end = RunEnd::Partial;
        }
        let summary = serde_json::json!({
            "replaced": replacements.len(),
            "repaired": done.repaired,
            "not_done": done.not_done,
        });
        journal.end(run, end, &summary.to_string(), &[])?;
        Ok(Some(run))
    }

    /// Makes a good object for each corrupt one that guests hold, as far as good copies are found.
    fn replace(&self, corrupt: &mut [Corrupt]) -> Result<Vec<Replacement>> {
        self.around.observer.phase("copying", 0);
        let staged = self.store.run_dir(self.around.fs, "staged", STAGING)?;
        let (mut copies, mut replacements) = (Vec::new(), Vec::new());
        for (at, one) in corrupt.iter().enumerate().filter(|(_, one)| is_wanted(one)) {
            let name = format!("{at}").into_bytes();
            if self.is_there(one.object)? {
                replacements.push(Replacement { at, object: one.object });
                continue;
            }
            if self.copy_any(one, At::new(&staged, &name))? {
                copies.push((at, name));
            }
        }
        // Data before names (law 4).
        self.around.fs.sync(self.store.dir()).map_err(self.failed("sync"))?;
        for (at, name) in copies {
            let object = self.publish(corrupt[at].object, At::new(&staged, &name))?;
            replacements.push(Replacement { at, object });
        }
        replacements.iter().for_each(|replacement| corrupt[replacement.at].replaced = true);
        drop(staged);
        self.store.remove_run_dir(self.around.fs, "staged", STAGING)?;
        Ok(replacements)
    }

    /// Whether an earlier repair had published a good object and was cut off before any guest got it. One
    /// that guests have is not used: two inodes of one guest would become one.
    fn is_there(&self, name: ObjectName) -> Result<bool> {
        let unused = self.store.stat_object(name)?.is_some_and(|stat| stat.nlink == 1);
        Ok(unused && is_intact(self.around, self.store, name)? == Some(true))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(Errno) -> store::Error {
        store::Error::at(doing, self.store.path())
    }

    /// Copies the first source whose copy has the identity in question.
    fn copy_any(&self, one: &Corrupt, to: At<'_>) -> Result<bool> {
        for source in self.sources(one)? {
            let Ok(file) = source() else { continue };
            match self.copy(one, &file, to) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(errno) => return Err(self.failed("copy a good file into")(errno).into()),
            }
        }
        Ok(false)
    }

    /// Files that may be what the corrupt object was: other objects of its identity, then private files
    /// of its class. Each is proven by its copy, so a wrong one costs time only.
    fn sources<'s>(&'s self, one: &Corrupt) -> Result<Vec<Source<'s>>> {
        let mut sources: Vec<Source<'s>> = Vec::new();
        for object in self.objects_of(one.object.id)? {
            sources.push(Box::new(move || self.store.objects().open_file(object.path().as_bytes())));
        }
        for name in one.classes.iter().filter_map(|class| self.found.alike.get(class)).flatten() {
            let root = &self.guests[name.guest as usize].root;
            sources.push(Box::new(move || root.open_dir(&name.dir.path())?.open_file(&name.name)));
        }
        Ok(sources)
    }

    fn objects_of(&self, id: ObjectId) -> Result<Vec<ObjectName>> {
        let mut same = Vec::new();
        let mut each = |name: ObjectName, _, _: &Dir| {
            if name.id == id {
                same.push(name);
            }
        };
        self.store.for_each_in_shard(id.0[0], &mut EntryBuffer::default(), &mut each, drop)?;
        same.sort_unstable();
        Ok(same)
    }

    /// Copies one file and computes the copy's identity. `Ok(false)`: it is another file, or cannot be
    /// read; nothing is left of it.
    fn copy(&self, one: &Corrupt, from: &File, to: At<'_>) -> kernel::Result<bool> {
        let (Ok(stat), Ok(xattrs)) = (from.stat(), from.xattrs()) else { return Ok(false) };
        let identity = self.store.format().identity;
        let mtime = match identity {
            IdentityPolicy::Full => stat.mtime,
            // Not part of identity: guests keep the time that they see now.
            IdentityPolicy::WithoutMtime => one
                .aside
                .as_ref()
                .and_then(|aside| self.store.quarantine().stat(aside).ok())
                .map_or(stat.mtime, |bad| bad.mtime),
        };
        let metadata = Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime, xattrs };
        let fs = self.around.fs;
        let file = fs.create(to)?;
        let copied = fs.copy_content(from, &file, stat.size).and_then(|()| fs.set_metadata(&file, &metadata));
        let proven = copied.is_ok()
            && file
                .stat()
                .is_ok_and(|stat| identify(self.around, &file, &stat, identity) == Ok(one.object.id));
        if proven {
            return Ok(true);
        }
        fs.unlink(to)?;
        match copied {
            // Ours to report; what the source cannot give is not.
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::ROFS)) => Err(errno),
            _ => Ok(false),
        }
    }

    /// The proven copy becomes an object: in the corrupt one's slot, or if that was taken since, as the
    /// next twin.
    fn publish(&self, wanted: ObjectName, staged: At<'_>) -> Result<ObjectName> {
        if self.seal != Seal::None && self.seal.leaves_names_free() {
            let file = staged.dir.open_file(staged.name).map_err(self.failed("open a copy in"))?;
            self.around.fs.seal(&file, self.seal).map_err(self.failed("seal a copy in"))?;
        }
        let twins = (0..u16::MAX).map(|twin| ObjectName { twin, overflow: 0, ..wanted });
        for name in std::iter::once(wanted).chain(twins) {
            let path = name.path();
            match self.around.fs.rename_new(staged, At::new(self.store.objects(), path.as_bytes())) {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    return Err(store::Error::at("publish", self.store.object_path(name))(errno).into());
                }
            }
        }
        Err(self.failed("find a free twin in")(Errno::EXIST).into())
    }

    /// One action for each guest and corrupt inode: its names there move as a whole or not at all.
    fn batches<'c>(&self, corrupt: &'c [Corrupt], replacements: &[Replacement]) -> Vec<Batch> {
        let mut done = Vec::new();
        let mut open = Builder::new(self.guests);
        let mut rows: BTreeMap<(u32, &Trail), u32> = BTreeMap::new();
        for replacement in replacements {
            let one = &corrupt[replacement.at];
            for names in one.names.chunk_by(|a, b| a.guest == b.guest) {
                if !self.is_within_reach(names) {
                    continue;
                }
                if !open.takes(names.len() as u32) {
                    done.push(std::mem::replace(&mut open, Builder::new(self.guests)).batch);
                }
                let mut place = |name: &'c Name| {
                    let next = rows.len() as u32;
                    let row = *rows.entry((name.guest, &name.dir)).or_insert(next);
                    let dir = open.dir(name.guest, row, || name.dir.path());
                    NameRef { dir, name: name.name.clone() }
                };
                let names = names.iter().map(&mut place).collect();
                let (object, ino) = (replacement.object, one.ino);
                let size = self.store.stat_object(object).ok().flatten().map_or(0, |stat| stat.size);
                let action = Action { verb: Verb::Repair, object, ino, ctime: 0, size, mtime: None, names };
                open.push(action);
            }
        }
        if !open.batch.actions.is_empty() {
            done.push(open.batch);
        }
        done
    }

    /// Whether an inode's names and their paths fit into the journal; noted if not.
    fn is_within_reach(&self, names: &[Name]) -> bool {
        let dirs = names.chunk_by(|a, b| a.dir == b.dir);
        let paths: usize = dirs.map(|names| names[0].dir.length()).sum();
        let fit = paths + names.iter().map(|name| name.name.len()).sum::<usize>() <= MAX_PATHS;
        if !fit {
            let guest = &self.guests[names[0].guest as usize];
            self.notes.skip(&guest.key, names[0].path(), Skip::OutOfReach);
        }
        fit
    }

    /// A plainly immutable inode cannot lose names: its seal is off while it does. The files stay open meanwhile, so that
    /// no guest's lease keeps the seal from being put on again.
    fn loosen(&self, corrupt: &[Corrupt], replacements: &[Replacement]) -> Result<Vec<File>> {
        let mut loose = Vec::new();
        if self.seal.leaves_names_free() {
            return Ok(loose);
        }
        for aside in replacements.iter().filter_map(|one| corrupt[one.at].aside.as_ref()) {
            let Ok(file) = self.store.quarantine().open_file(aside) else { continue };
            free_names(self.around.fs, &file).map_err(self.failed("unseal what is in quarantine of"))?;
            loose.push(file);
        }
        Ok(loose)
    }

    /// What is staged belongs to nobody: an earlier repair was cut off before it published it.
    fn clear_staged(&self) -> Result<()> {
        for run in self.store.run_dirs("staged")? {
            let dir = self.store.run_dir(self.around.fs, "staged", run)?;
            for name in dir.names().map_err(self.failed("read what is staged in"))? {
                let file = dir.open_file(&name).map_err(self.failed("open what is staged in"))?;
                free_names(self.around.fs, &file)
                    .and_then(|_| self.around.fs.unlink(At::new(&dir, &name)))
                    .map_err(self.failed("clear what is staged in"))?;
            }
            drop(dir);
            self.store.remove_run_dir(self.around.fs, "staged", run)?;
        }
        Ok(())
    }
}
