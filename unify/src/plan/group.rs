//! Grouping: what might be one by class, then what is one by identity.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use kernel::{EntryBuffer, Errno, Kind, Seal, Time};
use rayon::prelude::*;
use store::census::Census;
use store::{IdentityPolicy, ObjectId, ObjectName, Store};

use super::Plan;
use super::assign::{Assigned, Decided, Group};
use super::items::{Inode, Items, Known};
use crate::Result;
use crate::descend::{Below, Here, Search, descend};
use crate::guest::Guest;
use crate::hash::identify;
use crate::notes::{Count, Notes, Skip, Surroundings};
use crate::objects::Objects;
use crate::walk::{TICK_NANOS, is_over, join, lasts, to_path};

/// Files that are read before they are grouped and forgotten: bounds the memory for identities.
const CHUNK: usize = 1 << 16;

/// Groups that are decided in parallel before what came of them is kept.
const AT_ONCE: usize = 1 << 12;

/// The inodes of an object's twin, by overflow.
type Twin = Vec<(ObjectName, u64)>;

/// What reading has led to so far.
#[derive(Default)]
struct Found {
    assigned: Assigned,
    /// Groups with objects from earlier runs: their guests are looked through first.
    waiting: Vec<Group>,
    corrupt: Vec<ObjectName>,
}

/// What comes of the inodes of one identity.
enum Outcome {
    Nothing,
    Alone(ObjectId, Inode),
    Decided(Vec<Decided>),
    Waiting(ObjectId, Vec<Inode>, Vec<Twin>),
}

/// What planning needs to know.
pub(crate) struct Planner<'a> {
    pub(crate) around: &'a Surroundings<'a>,
    /// None where there is no store yet.
    pub(crate) store: Option<&'a Store>,
    pub(crate) identity: IdentityPolicy,
    /// What the plan will be carried out with; none if it will not be.
    pub(crate) seal: Option<Seal>,
    pub(crate) guests: &'a [Guest],
    pub(crate) objects: &'a Objects,
    pub(crate) notes: &'a Notes,
    /// Whether the order on the device is the order to read in.
    pub(crate) rotational: bool,
    pub(crate) bytes_read: Count,
    pub(crate) files_read: Count,
    pub(crate) read_micros: Count,
}

impl<'a> Planner<'a> {
    /// Reads what has to be read and decides what becomes one. Identities that were computed are kept in
    /// the censuses.
    pub(crate) fn plan(&self, censuses: &'a mut [Census]) -> Result<Plan<'a>> {
        let items = Items::collect(censuses);
        let mut total = 0;
        self.for_each_chunk(censuses, &items, |censuses, chunk| {
            total += chunk.iter().map(|inode| items.row(censuses, *inode).size).sum::<u64>();
            Ok(())
        })?;
        self.around.observer.phase("reading", total);
        wait_for_tick(censuses);
        let mut found = Found { assigned: Assigned::for_items(items.len()), ..Found::default() };
        self.for_each_chunk(censuses, &items, |censuses, chunk| {
            self.group(censuses, &items, chunk, &mut found)
        })?;
        let Found { mut assigned, waiting, corrupt } = found;
        let occupied = self.occupied(&waiting, &items);
        let guests: Vec<u32> = (0..self.guests.len() as u32).collect();
        for group in waiting {
            assigned.add(group.decide(&items, &guests, &occupied));
        }
        let censuses: &'a [Census] = censuses;
        assigned.order(&items, censuses);
        let (bytes_read, files_read) = (self.bytes_read.get(), self.files_read.get());
        let read_seconds = self.read_micros.get() as f64 / 1e6;
        let guests = self.guests;
        Ok(Plan { guests, censuses, items, assigned, corrupt, bytes_read, files_read, read_seconds })
    }

    /// Calls `each` with inodes worth reading, in chunks that end where a class ends.
    fn for_each_chunk(
        &self,
        censuses: &mut [Census],
        items: &Items,
        mut each: impl FnMut(&mut [Census], &[Inode]) -> Result<()>,
    ) -> Result<()> {
        let (mut chunk, mut at) = (Vec::new(), 0);
        while let Some((inodes, next)) = items.class(censuses, at) {
            at = next;
            let class = items.row(censuses, inodes[0]).class;
            let has_company = inodes.len() > 1
                || self.objects.has_class(class)
                || inodes.iter().any(|inode| items.spans_guests(*inode));
            if !has_company {
                continue;
            }
            if chunk.len() + inodes.len() > CHUNK {
                each(censuses, &chunk)?;
                chunk.clear();
            }
            chunk.extend(inodes);
        }
        each(censuses, &chunk)
    }

    /// Reads the inodes of a chunk as far as needed and groups those that have company.
    fn group(
        &self,
        censuses: &mut [Census],
        items: &Items,
        chunk: &[Inode],
        found: &mut Found,
    ) -> Result<()> {
        // Identities that are not known are computed; what was known only groups.
        let known = |inode: &Inode| {
            let id = items.known_id(censuses, *inode)?;
            Some(Known { id, inode: *inode, is_proven: false })
        };
        let unknown: Vec<Inode> = chunk.iter().copied().filter(|inode| known(inode).is_none()).collect();
        let mut sorted = self.prove_all(censuses, items, &unknown);
        sorted.extend(chunk.iter().filter_map(known));
        sorted.par_sort_unstable_by_key(|one| (one.id, one.inode.first));
        let runs: Vec<&[Known]> = sorted.chunk_by(|a, b| a.id == b.id).collect();
        let existing = self.existing(&runs)?;
        let has_company = |run: &[Known], existing: &[Twin]| {
            run.len() > 1 || !existing.is_empty() || items.spans_guests(run[0].inode)
        };
        // Those that seem to have company and were not read in this run are read now.
        let unproven: Vec<Inode> = runs
            .iter()
            .zip(&existing)
            .filter(|(run, existing)| has_company(run, existing))
            .flat_map(|(run, _)| run.iter().filter(|one| !one.is_proven).map(|one| one.inode))
            .collect();
        let late = self.prove_all(censuses, items, &unproven);
        let late: HashMap<u32, ObjectId> = late.iter().map(|one| (one.inode.first, one.id)).collect();
        let is_member = |one: &&Known| one.is_proven || late.get(&one.inode.first) == Some(&one.id);
        let nothing_is_occupied = BTreeSet::new();
        let outcome = |(run, existing): (&&[Known], Vec<Twin>)| {
            let members: Vec<Inode> = run.iter().filter(is_member).map(|one| one.inode).collect();
            let id = run[0].id;
            match () {
                () if members.is_empty() => Outcome::Nothing,
                // Alone so far: the next run need not read it again to know.
                () if !has_company(run, &existing) => Outcome::Alone(id, members[0]),
                () if existing.is_empty() => {
                    let group = Group { id, members, existing: Vec::new() };
                    Outcome::Decided(group.decide(items, &[], &nothing_is_occupied))
                }
                () => Outcome::Waiting(id, members, existing),
            }
        };
        let mut existing = existing.into_iter();
        for some in runs.chunks(AT_ONCE) {
            let existing: Vec<Vec<Twin>> = existing.by_ref().take(some.len()).collect();
            let outcomes: Vec<Outcome> = some.par_iter().zip(existing).map(outcome).collect();
            for outcome in outcomes {
                match outcome {
                    Outcome::Nothing => {}
                    Outcome::Alone(id, inode) => items.remember(censuses, inode, id),
                    Outcome::Decided(decided) => found.assigned.add(decided),
                    Outcome::Waiting(id, members, existing) => {
                        match self.trusted(existing, &mut found.corrupt)? {
                            Some(existing) => found.waiting.push(Group { id, members, existing }),
                            None => members.iter().for_each(|inode| self.leave(censuses, items, *inode)),
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The objects of each group's identity that exist, by twin. Runs that were cut off, undo and garbage
    /// collection leave gaps.
    fn existing(&self, runs: &[&[Known]]) -> Result<Vec<Vec<Twin>>> {
        runs.par_iter()
            .map(|run| {
                // Not by class: an object that was changed may have another than its name says.
                let Some(store) = self.store.filter(|_| !self.objects.is_empty()) else {
                    return Ok(Vec::new());
                };
                let mut found: Vec<Twin> = Vec::new();
                for name in self.objects.names(run[0].id) {
                    let Some(stat) = store.stat_object(name)? else { continue };
                    let twin = usize::from(name.twin);
                    found.resize(found.len().max(twin + 1), Twin::new());
                    found[twin].push((name, stat.ino));
                }
                Ok(found)
            })
            .collect()
    }

    /// Reads each object that is about to get new links (law 6). A corrupt one is as good as absent. None: a guest keeps
    /// one from being read or sealed, and nothing may be linked to it.
    fn trusted(&self, existing: Vec<Twin>, corrupt: &mut Vec<ObjectName>) -> Result<Option<Vec<Vec<u64>>>> {
        let mut twins = Vec::new();
        for twin in existing {
            let mut inos = Vec::new();
            for (name, ino) in twin {
                let Some(store) = self.store else { continue };
                if self.objects.suspects.binary_search(&name).is_ok() {
                    return Ok(None);
                }
                match is_intact(self.around, store, name)? {
                    Some(true) => inos.push(ino),
                    Some(false) => corrupt.push(name),
                    None => return Ok(None),
                }
            }
            twins.push(inos);
        }
        Ok(Some(twins))
    }

    /// Leaves an inode as it is, whose object is busy.
    fn leave(&self, censuses: &[Census], items: &Items, inode: Inode) {
        let (guest, file) = (items.guest(inode) as usize, items.row(censuses, inode));
        let path = join(&censuses[guest].dir_path(file.dir), censuses[guest].name(file.name));
        self.notes.skip(&self.guests[guest].key, to_path(&path), Skip::Busy);
    }

    /// Which guests have a name of which existing object already: they need the next twin. Only guests
    /// that are about to get links to existing objects are looked at.
    fn occupied(&self, groups: &[Group], items: &Items) -> BTreeSet<(u32, u64)> {
        let mut wanted: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); self.guests.len()];
        for group in groups.iter().filter(|group| !group.existing.is_empty()) {
            for item in group.members.iter().flat_map(|inode| items.names(*inode)) {
                wanted[item.guest as usize].extend(group.existing.iter().flatten());
            }
        }
        let chosen = (0..).zip(&wanted).filter(|(_, wanted)| !wanted.is_empty()).map(|(guest, _)| guest);
        let search = Occupied { wanted: &wanted, found: Mutex::default() };
        descend(self.around, self.guests, chosen, &search);
        search.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an object still is what its name says; `false` too if it cannot be read. None: a guest keeps it from being
/// read, by a lease of its own.
pub(crate) fn is_intact(around: &Surroundings<'_>, store: &Store, name: ObjectName) -> Result<Option<bool>> {
    let identity = store.format().identity;
    let check = || -> std::result::Result<ObjectId, Skip> {
        let file = store.objects().open_file(name.path().as_bytes()).map_err(Skip::from_errno)?;
        let stat = file.stat().map_err(Skip::from_errno)?;
        identify(around, &file, &stat, identity)
    };
    match check() {
        Ok(id) => Ok(Some(id == name.id)),
        Err(Skip::Busy) => Ok(None),
        Err(_) if around.stopping() => Err(crate::Error::Interrupted),
        // What the disk refuses to give is damage; what this process lacks (descriptors, memory) is not.
        Err(Skip::Failed(errno))
            if !matches!(errno, Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::ILSEQ) =>
        {
            Err(store::Error::at("read", store.object_path(name))(errno).into())
        }
        Err(_) => Ok(Some(false)),
    }
}

/// Looks for names of inodes: reads directories only, without looking at a single inode.
struct Occupied<'w> {
    /// By guest.
    wanted: &'w [BTreeSet<u64>],
    found: Mutex<BTreeSet<(u32, u64)>>,
}

impl Search for Occupied<'_> {
    fn look(&self, here: &Here<'_>, below: &mut Below) -> kernel::Result<()> {
        let wanted = &self.wanted[here.guest as usize];
        here.dir.for_each(&mut EntryBuffer::default(), |entry| -> kernel::Result<()> {
            if entry.kind == Kind::Directory {
                below.add(entry.name)?;
            } else if wanted.contains(&entry.ino) {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.insert((here.guest, entry.ino));
            }
            Ok(())
        })
    }

    /// What cannot be read may hold any of them. Another file system, or subvolume, can't.
    fn miss(&self, guest: u32, _: &[u8], errno: Errno) {
        if errno != Errno::XDEV {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(self.wanted[guest as usize].iter().map(|ino| (guest, *ino)));
        }
    }
}

/// A change time that is not over proves nothing yet: the clock must move on before files that were written just now
/// can be read for good.
fn wait_for_tick(censuses: &[Census]) {
    let now = Time::now();
    let files = censuses.iter().flat_map(|census| &census.files).filter(|file| file.state == 0);
    // The kernel may stamp finer than the clock that we read ticks: such a stamp is ahead of it.
    let ahead = now.to_nanos() + TICK_NANOS;
    let fresh = files.map(|file| file.ctime).filter(|ctime| !is_over(*ctime, now) && *ctime < ahead);
    if let Some(longest) = fresh.map(lasts).max() {
        std::thread::sleep(std::time::Duration::from_nanos((longest + TICK_NANOS) as u64));
    }
}
