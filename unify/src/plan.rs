//! Which files become one: the plan of a run, a value.
//!
//! Files are grouped by what can be known without reading (class), then by identity, which needs reading.
//! A file that is alone in its class is not read. An identity from an earlier run may show that a file is
//! alone; it never proves that it has company (law 2).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use kernel::{EntryBuffer, Errno, Kind, Time};
use rayon::prelude::*;
use store::index::{Census, FileRow, NONE, ObjectRow};
use store::journal::{Action, Batch, DirRef, NameRef, Verb};
use store::{IdentityPolicy, ObjectId, ObjectName, Store};

use crate::Result;
use crate::apply::for_overflows;
use crate::guest::Guest;
use crate::hash::{Proof, identify, prove};
use crate::notes::{Count, Notes, Skip, Surroundings};
use crate::objects::Objects;
use crate::walk::{TICK_NANOS, join, to_path};

/// Files that are read before they are grouped and forgotten: bounds the memory for identities.
const CHUNK: usize = 1 << 16;

/// Actions in a batch, at most. Parked inodes take space until their batch is durable.
const BATCH_ACTIONS: usize = 16 * 1024;

/// Directories in a batch, at most; each is held open meanwhile.
const BATCH_DIRS: usize = 2048;

/// One name of one candidate.
#[derive(Clone, Copy, Debug)]
struct Item {
    class: u64,
    guest: u32,
    file: u32,
}

/// One inode to be moved: `names` items from `first` on.
#[derive(Clone, Copy, Debug)]
struct Move {
    first: u32,
    names: u32,
    target: u32,
    verb: Verb,
}

/// One inode with its names: items from `first` on.
#[derive(Clone, Copy, Debug)]
struct Inode {
    first: u32,
    names: u32,
}

/// The inodes of one twin of an object that exist.
type Twin = Vec<(ObjectName, u64)>;

/// Inodes of one identity.
struct Group {
    id: ObjectId,
    members: Vec<Inode>,
    /// Inodes of its objects that exist already, by twin and overflow.
    existing: Vec<Vec<u64>>,
}

/// What a plan would do, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files that would become objects.
    pub admits: u64,
    /// Files that would be replaced by objects.
    pub links: u64,
    /// Names that would be replaced.
    pub names: u64,
    /// Bytes of the files that would be replaced.
    pub bytes: u64,
}

/// The list of actions a run would take.
pub struct Plan<'a> {
    guests: &'a [Guest],
    censuses: &'a [Census],
    items: Vec<Item>,
    moves: Vec<Move>,
    targets: Vec<ObjectName>,
    /// Objects that were found corrupt and must not be linked to.
    pub corrupt: Vec<ObjectName>,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Files that were read.
    pub files_read: u64,
}

/// What planning needs to know.
pub(crate) struct Planner<'a> {
    pub(crate) around: &'a Surroundings<'a>,
    /// None where there is no store yet.
    pub(crate) store: Option<&'a Store>,
    pub(crate) identity: IdentityPolicy,
    pub(crate) guests: &'a [Guest],
    pub(crate) objects: &'a Objects,
    pub(crate) notes: &'a Notes,
    pub(crate) bytes_read: Count,
    pub(crate) files_read: Count,
}

impl<'a> Planner<'a> {
    /// Reads what has to be read and decides what becomes one. Identities that were computed are kept in
    /// the censuses.
    pub(crate) fn plan(&self, censuses: &'a mut [Census]) -> Result<Plan<'a>> {
        let items = collect(censuses);
        let chunks = self.chunks(censuses, &items);
        let total = chunks.iter().flatten().map(|inode| row(censuses, &items, *inode).size).sum();
        self.around.observer.phase("reading", total);
        wait_for_tick(censuses);
        let (mut groups, mut corrupt) = (Vec::new(), Vec::new());
        for chunk in chunks {
            self.group(censuses, &items, &chunk, &mut groups, &mut corrupt)?;
        }
        let censuses: &'a [Census] = censuses;
        let mut plan = Plan {
            guests: self.guests,
            censuses,
            items,
            moves: Vec::new(),
            targets: Vec::new(),
            corrupt,
            bytes_read: self.bytes_read.get(),
            files_read: self.files_read.get(),
        };
        let occupied = self.occupied(&groups, &plan.items);
        for group in groups {
            plan.assign(&group, &occupied);
        }
        plan.order();
        Ok(plan)
    }

    /// Inodes worth reading, in chunks that end where a class ends.
    fn chunks(&self, censuses: &[Census], items: &[Item]) -> Vec<Vec<Inode>> {
        let mut chunks = vec![Vec::new()];
        let mut at = 0;
        for class in items.chunk_by(|a, b| a.class == b.class) {
            let inodes = inodes(censuses, class, at);
            at += class.len() as u32;
            let shared = |inode: &Inode| {
                let names = &items[inode.first as usize..][..inode.names as usize];
                names.iter().any(|name| name.guest != names[0].guest)
            };
            if inodes.len() < 2 && !self.objects.has_class(class[0].class) && !inodes.iter().any(shared) {
                continue;
            }
            if chunks.last().is_some_and(|chunk: &Vec<Inode>| chunk.len() + inodes.len() > CHUNK) {
                chunks.push(Vec::new());
            }
            if let Some(chunk) = chunks.last_mut() {
                chunk.extend(inodes);
            }
        }
        chunks
    }

    /// Reads the inodes of a chunk as far as needed and groups those that have company.
    fn group(
        &self,
        censuses: &mut [Census],
        items: &[Item],
        chunk: &[Inode],
        groups: &mut Vec<Group>,
        corrupt: &mut Vec<ObjectName>,
    ) -> Result<()> {
        // Identities that are not known are computed; what was known only groups.
        let unknown: Vec<Inode> =
            chunk.iter().copied().filter(|inode| known_id(censuses, items, *inode).is_none()).collect();
        let mut proven: HashMap<u32, ObjectId> = self.prove_all(censuses, items, &unknown);
        let id_of =
            |inode: &Inode| proven.get(&inode.first).copied().or_else(|| known_id(censuses, items, *inode));
        let mut sorted: Vec<(ObjectId, Inode)> =
            chunk.iter().filter_map(|inode| Some((id_of(inode)?, *inode))).collect();
        sorted.par_sort_unstable_by_key(|(id, inode)| (*id, inode.first));
        let runs: Vec<&[(ObjectId, Inode)]> = sorted.chunk_by(|a, b| a.0 == b.0).collect();
        let existing = self.existing(items, &runs)?;
        let has_company = |run: &[(ObjectId, Inode)], existing: &[Twin]| {
            run.len() > 1 || !existing.is_empty() || run.iter().any(|(_, inode)| spans_guests(items, *inode))
        };
        // Those that seem to have company and were not read in this run are read now.
        let unproven: Vec<Inode> = runs
            .iter()
            .zip(&existing)
            .filter(|(run, existing)| has_company(run, existing))
            .flat_map(|(run, _)| run.iter().map(|(_, inode)| *inode))
            .filter(|inode| !proven.contains_key(&inode.first))
            .collect();
        proven.extend(self.prove_all(censuses, items, &unproven));
        for (run, existing) in runs.iter().zip(existing) {
            let id = run[0].0;
            let members: Vec<Inode> = run
                .iter()
                .map(|(_, inode)| *inode)
                .filter(|inode| proven.get(&inode.first) == Some(&id))
                .collect();
            if members.is_empty() {
                continue;
            }
            if has_company(run, &existing) {
                let existing = self.trusted(existing, corrupt)?;
                groups.push(Group { id, members, existing });
            } else {
                // Alone so far: the next run need not read it again to know.
                remember(censuses, items, members[0].first, id);
            }
        }
        Ok(())
    }

    /// Reads inodes in parallel, each directory opened once; keyed by their first item.
    fn prove_all(&self, censuses: &[Census], items: &[Item], inodes: &[Inode]) -> HashMap<u32, ObjectId> {
        let mut ordered: Vec<(u32, u32, u64, Inode)> = inodes
            .iter()
            .map(|inode| {
                let file = row(censuses, items, *inode);
                (items[inode.first as usize].guest, file.dir, file.ino, *inode)
            })
            .collect();
        ordered.par_sort_unstable_by_key(|&(guest, dir, ino, _)| (guest, dir, ino));
        let dirs: Vec<&[(u32, u32, u64, Inode)]> =
            ordered.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)).collect();
        dirs.par_iter()
            .flat_map_iter(|dir| {
                let (guest, census) = (&self.guests[dir[0].0 as usize], &censuses[dir[0].0 as usize]);
                let path = census.dir_path(dir[0].1);
                let opened = guest.root.open_dir(&path).map_err(Skip::from_errno);
                let prove = move |&(.., inode): &(u32, u32, u64, Inode)| {
                    let file = row(censuses, items, inode);
                    let name = census.name(file.name);
                    let proof = match &opened {
                        Ok(dir) => self.prove(dir, name, file, inode),
                        Err(why) => Err(*why),
                    };
                    match proof {
                        Ok(proof) => Some((inode.first, proof.id)),
                        Err(why) => {
                            self.notes.skip(&guest.key, to_path(&join(&path, name)), why);
                            None
                        }
                    }
                };
                dir.iter().filter_map(prove).collect::<Vec<_>>()
            })
            .collect()
    }

    fn prove(
        &self,
        dir: &kernel::Dir,
        name: &[u8],
        file: &FileRow,
        inode: Inode,
    ) -> std::result::Result<Proof, Skip> {
        if self.around.stopping() {
            return Err(Skip::Changed);
        }
        if file.nlink != u16::MAX && u32::from(file.nlink) != inode.names {
            return Err(Skip::LinkedOutside);
        }
        let proof = prove(self.around, dir, name, self.identity, (file.ino, file.ctime))?;
        if proof.stat.nlink != inode.names {
            return Err(Skip::LinkedOutside);
        }
        self.bytes_read.add(proof.stat.size);
        self.files_read.add(1);
        Ok(proof)
    }

    /// The objects of each group's identity that exist, by twin.
    fn existing(&self, items: &[Item], runs: &[&[(ObjectId, Inode)]]) -> Result<Vec<Vec<Twin>>> {
        runs.par_iter()
            .map(|run| {
                let class = items[run[0].1.first as usize].class;
                let Some(store) = self.store.filter(|_| self.objects.has_class(class)) else {
                    return Ok(Vec::new());
                };
                let most = most_in_one_guest(items, run);
                let mut found = Vec::new();
                loop {
                    let name = ObjectName { id: run[0].0, twin: found.len() as u16, overflow: 0 };
                    let twin = inodes_of(store, name)?;
                    // Runs that were cut off and garbage collection leave gaps.
                    if twin.is_empty() && found.len() + 1 >= most {
                        break;
                    }
                    found.push(twin);
                }
                let last = found.iter().rposition(|twin| !twin.is_empty());
                found.truncate(last.map_or(0, |last| last + 1));
                Ok(found)
            })
            .collect()
    }

    /// Reads each object that is about to get new links (law 6). A corrupt one is as good as absent, and
    /// so are the overflows behind it.
    fn trusted(&self, existing: Vec<Twin>, corrupt: &mut Vec<ObjectName>) -> Result<Vec<Vec<u64>>> {
        let mut twins = Vec::new();
        for twin in existing {
            let mut inos = Vec::new();
            for (name, ino) in twin {
                let Some(store) = self.store else { continue };
                if !is_intact(self.around, store, name)? {
                    corrupt.push(name);
                    break;
                }
                inos.push(ino);
            }
            twins.push(inos);
        }
        Ok(twins)
    }

    /// Which guests have a name of which existing object already: they need the next twin. Only guests
    /// that are about to get links to existing objects are looked at.
    fn occupied(&self, groups: &[Group], items: &[Item]) -> BTreeSet<(u32, u64)> {
        let mut wanted: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); self.guests.len()];
        for group in groups.iter().filter(|group| !group.existing.is_empty()) {
            for item in group.members.iter().flat_map(|inode| names_of(items, *inode)) {
                wanted[item.guest as usize].extend(group.existing.iter().flatten());
            }
        }
        let found = Mutex::new(BTreeSet::new());
        for (number, wanted) in wanted.iter().enumerate().filter(|(_, wanted)| !wanted.is_empty()) {
            rayon::scope(|scope| {
                scope.spawn(|scope| {
                    find_inodes(scope, &self.guests[number], number as u32, wanted, &found, Vec::new());
                });
            });
        }
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of a group's inodes one guest has, at most: so many twins the group needs.
fn most_in_one_guest(items: &[Item], run: &[(ObjectId, Inode)]) -> usize {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for (_, inode) in run {
        *counts.entry(items[inode.first as usize].guest).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// The inodes of a twin that exist.
fn inodes_of(store: &Store, name: ObjectName) -> Result<Twin> {
    let mut found = Twin::new();
    for_overflows(store, name, |name, file| {
        let stat = file.stat().map_err(store::Error::at("stat", store.object_path(name)))?;
        found.push((name, stat.ino));
        Ok(())
    })?;
    Ok(found)
}

/// Whether an object still is what its name says; `false` too if it cannot be read.
pub(crate) fn is_intact(around: &Surroundings<'_>, store: &Store, name: ObjectName) -> Result<bool> {
    let identity = store.format().identity;
    let check = || -> std::result::Result<ObjectId, Skip> {
        let file = store.objects().open_file(name.path().as_bytes()).map_err(Skip::from_errno)?;
        let stat = file.stat().map_err(Skip::from_errno)?;
        identify(around, &file, &stat, identity)
    };
    match check() {
        Ok(id) => Ok(id == name.id),
        Err(_) if around.stopping() => Err(crate::Error::Interrupted),
        Err(_) => Ok(false),
    }
}

/// Reads directories only, without looking at a single inode.
fn find_inodes<'s>(
    scope: &rayon::Scope<'s>,
    guest: &'s Guest,
    number: u32,
    wanted: &'s BTreeSet<u64>,
    found: &'s Mutex<BTreeSet<(u32, u64)>>,
    path: Vec<u8>,
) {
    // What cannot be read cannot be linked into either: nothing is lost by passing it over.
    let Ok(dir) = guest.root.open_dir(&path) else { return };
    let entries = dir.for_each(&mut EntryBuffer::default(), |entry| -> std::result::Result<(), Errno> {
        if entry.kind == Kind::Directory {
            let path = join(&path, entry.name);
            scope.spawn(move |scope| find_inodes(scope, guest, number, wanted, found, path));
        } else if wanted.contains(&entry.ino) {
            found.lock().unwrap_or_else(PoisonError::into_inner).insert((number, entry.ino));
        }
        Ok(())
    });
    entries.ok();
}

impl Plan<'_> {
    /// Gives every member of a group an object: never one that its guest has already.
    fn assign(&mut self, group: &Group, occupied: &BTreeSet<(u32, u64)>) {
        let mut used: BTreeSet<(u32, usize)> = BTreeSet::new();
        for (twin, inos) in group.existing.iter().enumerate() {
            let has = |guest: &u32| inos.iter().any(|ino| occupied.contains(&(*guest, *ino)));
            used.extend((0..self.guests.len() as u32).filter(has).map(|guest| (guest, twin)));
        }
        let mut twins: Vec<Vec<Inode>> = Vec::new();
        for &inode in &group.members {
            let guests: BTreeSet<u32> = names_of(&self.items, inode).map(|item| item.guest).collect();
            let free = |twin: &usize| guests.iter().all(|&guest| !used.contains(&(guest, *twin)));
            let Some(twin) = (0..usize::from(u16::MAX)).find(free) else { continue };
            used.extend(guests.iter().map(|&guest| (guest, twin)));
            if twins.len() <= twin {
                twins.resize(twin + 1, Vec::new());
            }
            twins[twin].push(inode);
        }
        for (twin, members) in twins.into_iter().enumerate() {
            let exists = group.existing.get(twin).is_some_and(|inos| !inos.is_empty());
            self.assign_twin(ObjectName { id: group.id, twin: twin as u16, overflow: 0 }, exists, members);
        }
    }

    fn assign_twin(&mut self, name: ObjectName, exists: bool, mut members: Vec<Inode>) {
        let alone = members.len() == 1 && !spans_guests(&self.items, members[0]);
        if members.is_empty() || (!exists && alone) {
            return;
        }
        // The inode with the most names stays where it is: that moves the fewest names.
        members.sort_by_key(|inode| (std::cmp::Reverse(inode.names), inode.first));
        let target = self.targets.len() as u32;
        self.targets.push(name);
        for (at, &Inode { first, names }) in members.iter().enumerate() {
            let verb = if at == 0 && !exists { Verb::Admit } else { Verb::Link };
            self.moves.push(Move { first, names, target, verb });
        }
    }

    /// Admissions first, so that links find their objects; then by directory.
    fn order(&mut self) {
        let (items, censuses) = (&self.items, self.censuses);
        self.moves.par_sort_unstable_by_key(|step| {
            let item = &items[step.first as usize];
            let file = &censuses[item.guest as usize].files[item.file as usize];
            (step.verb != Verb::Admit, item.guest, file.dir, file.ino)
        });
    }

    /// What the index should know of the objects that the plan makes.
    pub(crate) fn admissions(&self) -> impl Iterator<Item = ObjectRow> {
        self.moves.iter().filter(|step| step.verb == Verb::Admit).map(|step| {
            let file = row(self.censuses, &self.items, Inode { first: step.first, names: step.names });
            ObjectRow { ino: file.ino, class: file.class }
        })
    }

    pub(crate) fn censuses(&self) -> &[Census] {
        self.censuses
    }

    /// How many actions it has.
    pub fn actions(&self) -> u64 {
        self.moves.len() as u64
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// What it would do, in numbers.
    pub fn size(&self) -> Size {
        let mut size = Size::default();
        for step in &self.moves {
            if step.verb == Verb::Admit {
                size.admits += 1;
            } else {
                let inode = Inode { first: step.first, names: step.names };
                size.links += 1;
                size.names += u64::from(step.names);
                size.bytes += row(self.censuses, &self.items, inode).size;
            }
        }
        size
    }

    /// The actions in batches, in the order in which they are to be carried out.
    pub fn batches(&self) -> impl Iterator<Item = Batch> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let mut batch = Builder::new(self.guests);
            while let Some(step) = self.moves.get(at).filter(|step| batch.takes(step.names)) {
                batch.add(self, step);
                at += 1;
            }
            (!batch.batch.actions.is_empty()).then_some(batch.batch)
        })
    }
}

/// Collects actions into a batch.
pub(crate) struct Builder {
    pub(crate) batch: Batch,
    dirs: HashMap<(u32, u32), u32>,
}

impl Builder {
    pub(crate) fn new(guests: &[Guest]) -> Self {
        let guests = guests.iter().map(|guest| guest.key.clone()).collect();
        Self { batch: Batch { guests, ..Batch::default() }, dirs: HashMap::new() }
    }

    /// Whether an action with so many names still fits. An empty batch takes any.
    pub(crate) fn takes(&self, names: u32) -> bool {
        let actions = self.batch.actions.len();
        actions == 0 || (actions < BATCH_ACTIONS && self.dirs.len() + names as usize <= BATCH_DIRS)
    }

    fn add(&mut self, plan: &Plan<'_>, step: &Move) {
        let inode = Inode { first: step.first, names: step.names };
        let file = row(plan.censuses, &plan.items, inode);
        let names = names_of(&plan.items, inode)
            .map(|item| {
                let census = &plan.censuses[item.guest as usize];
                let file = &census.files[item.file as usize];
                let dir = self.dir(item.guest, file.dir, || census.dir_path(file.dir));
                NameRef { dir, name: census.name(file.name).to_vec() }
            })
            .collect();
        self.batch.actions.push(Action {
            verb: step.verb,
            object: plan.targets[step.target as usize],
            ino: file.ino,
            ctime: file.ctime,
            size: file.size,
            mtime: None,
            names,
        });
    }

    /// The number of a directory in the batch; `row` tells directories of one guest apart. Its modification
    /// time is filled in when the batch is about to be carried out.
    pub(crate) fn dir(&mut self, guest: u32, row: u32, path: impl FnOnce() -> Vec<u8>) -> u32 {
        let next = self.batch.dirs.len() as u32;
        *self.dirs.entry((guest, row)).or_insert_with(|| {
            self.batch.dirs.push(DirRef { guest, path: path(), mtime: Time::default() });
            next
        })
    }
}

/// A change time of this very tick proves nothing yet: the clock must move on before files that were
/// written just now can be read for good.
fn wait_for_tick(censuses: &[Census]) {
    let now = Time::now().to_nanos();
    let files = censuses.iter().flat_map(|census| &census.files).filter(|file| file.state == 0);
    // The kernel may stamp finer than the clock that we read ticks: such a stamp is ahead of it.
    let fresh = files.filter(|file| (now - TICK_NANOS..now + TICK_NANOS).contains(&file.ctime)).count();
    if fresh > 0 {
        std::thread::sleep(std::time::Duration::from_nanos(2 * TICK_NANOS as u64));
    }
}

/// All candidates, those that might be one side by side.
fn collect(censuses: &[Census]) -> Vec<Item> {
    let count = censuses.iter().flat_map(|census| &census.files).filter(|file| file.state == 0).count();
    let mut items = Vec::with_capacity(count);
    for (guest, census) in censuses.iter().enumerate() {
        let files = census.files.iter().enumerate().filter(|(_, file)| file.state == 0);
        items.extend(files.map(|(at, file)| Item {
            class: file.class,
            guest: guest as u32,
            file: at as u32,
        }));
    }
    let ino = |item: &Item| censuses[item.guest as usize].files[item.file as usize].ino;
    items.par_sort_unstable_by_key(|item| (item.class, ino(item), item.guest, item.file));
    items
}

/// The inodes of one class, whose items begin at `at`.
fn inodes(censuses: &[Census], class: &[Item], mut at: u32) -> Vec<Inode> {
    let ino = |item: &Item| censuses[item.guest as usize].files[item.file as usize].ino;
    class
        .chunk_by(|a, b| ino(a) == ino(b))
        .map(|names| {
            let inode = Inode { first: at, names: names.len() as u32 };
            at += inode.names;
            inode
        })
        .collect()
}

fn names_of(items: &[Item], inode: Inode) -> impl Iterator<Item = &Item> {
    items[inode.first as usize..][..inode.names as usize].iter()
}

fn spans_guests(items: &[Item], inode: Inode) -> bool {
    let guest = items[inode.first as usize].guest;
    names_of(items, inode).any(|item| item.guest != guest)
}

fn row<'c>(censuses: &'c [Census], items: &[Item], inode: Inode) -> &'c FileRow {
    let item = &items[inode.first as usize];
    &censuses[item.guest as usize].files[item.file as usize]
}

fn known_id(censuses: &[Census], items: &[Item], inode: Inode) -> Option<ObjectId> {
    let item = &items[inode.first as usize];
    let census = &censuses[item.guest as usize];
    let id = census.files[item.file as usize].id;
    (id != NONE).then(|| census.ids[id as usize])
}

fn remember(censuses: &mut [Census], items: &[Item], first: u32, id: ObjectId) {
    let item = &items[first as usize];
    let census = &mut censuses[item.guest as usize];
    census.ids.push(id);
    census.files[item.file as usize].id = census.ids.len() as u32 - 1;
}
