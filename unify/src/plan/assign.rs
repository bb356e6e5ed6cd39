//! Which inode becomes which object.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;
use store::census::Census;
use store::{ObjectId, ObjectName};

use super::items::{Inode, Items};

/// Inodes of one identity.
pub(super) struct Group {
    pub(super) id: ObjectId,
    pub(super) members: Vec<Inode>,
    /// Inodes of its objects that exist already, by twin and overflow.
    pub(super) existing: Vec<Vec<u64>>,
}

/// One inode and the object it becomes, or becomes names of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) inode: Inode,
    pub(super) target: u32,
}

/// What is decided: twelve bytes an inode, and the name of each object.
#[derive(Default)]
pub(super) struct Assigned {
    pub(super) admits: Vec<Move>,
    pub(super) links: Vec<Move>,
    pub(super) targets: Vec<ObjectName>,
}

/// The inodes that become names of one object.
pub(super) struct Decided {
    name: ObjectName,
    exists: bool,
    /// The one that becomes the object, if there is none, is the first.
    members: Vec<Inode>,
}

impl Group {
    /// Gives every member an object: never one that its guest has already.
    pub(super) fn decide(
        &self,
        items: &Items,
        guests: &[u32],
        occupied: &BTreeSet<(u32, u64)>,
    ) -> Vec<Decided> {
        let mut used: BTreeSet<(u32, usize)> = BTreeSet::new();
        for (twin, inos) in self.existing.iter().enumerate() {
            let has = |guest: &u32| inos.iter().any(|ino| occupied.contains(&(*guest, *ino)));
            used.extend(guests.iter().filter(|guest| has(guest)).map(|&guest| (guest, twin)));
        }
        let mut twins: Vec<Vec<Inode>> = Vec::new();
        // Below this, a guest has every twin: a guest may have very many equal files.
        let mut full: HashMap<u32, usize> = HashMap::new();
        for &inode in &self.members {
            let guests: BTreeSet<u32> = items.names(inode).iter().map(|item| item.guest).collect();
            let free = |twin: &usize| guests.iter().all(|&guest| !used.contains(&(guest, *twin)));
            let start = guests.iter().filter_map(|guest| full.get(guest)).max().copied().unwrap_or(0);
            let Some(twin) = (start..usize::from(u16::MAX)).find(free) else { continue };
            used.extend(guests.iter().map(|&guest| (guest, twin)));
            if let [guest] = *Vec::from_iter(&guests) {
                full.insert(*guest, twin + 1);
            }
            if twins.len() <= twin {
                twins.resize(twin + 1, Vec::new());
            }
            twins[twin].push(inode);
        }
        let decided = twins.into_iter().zip(0..).map(|(mut members, twin)| {
            // The inode with the most names stays where it is: that moves the fewest names.
            members.sort_by_key(|inode| (std::cmp::Reverse(inode.names), inode.first));
            let exists = self.existing.get(usize::from(twin)).is_some_and(|inos| !inos.is_empty());
            Decided { name: ObjectName { id: self.id, twin, overflow: 0 }, exists, members }
        });
        let is_alone = |members: &[Inode]| members.len() == 1 && !items.spans_guests(members[0]);
        decided
            .filter(|one| one.exists || !is_alone(&one.members))
            .filter(|one| !one.members.is_empty())
            .collect()
    }
}

impl Assigned {
    /// With room for all that may be moved: a vector that grows is there twice for a moment, and what is not used of one
    /// that doesn't is never touched.
    pub(super) fn for_items(count: usize) -> Self {
        Self { links: Vec::with_capacity(count), ..Self::default() }
    }

    pub(super) fn add(&mut self, decided: Vec<Decided>) {
        for Decided { name, exists, members } in decided {
            let target = self.targets.len() as u32;
            self.targets.push(name);
            let mut moves = members.into_iter().map(|inode| Move { inode, target });
            if !exists {
                self.admits.extend(moves.next());
            }
            self.links.extend(moves);
        }
    }

    /// By directory, so that each is opened once and neighbours are moved together.
    pub(super) fn order(&mut self, items: &Items, censuses: &[Census]) {
        for moves in [&mut self.admits, &mut self.links] {
            moves.par_sort_unstable_by_key(|step| {
                let file = items.row(censuses, step.inode);
                (items.guest(step.inode), file.dir, file.ino)
            });
        }
    }
}
