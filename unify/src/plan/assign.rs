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

impl Assigned {
    /// Gives every member of a group an object: never one that its guest has already.
    pub(super) fn assign(
        &mut self,
        items: &Items,
        group: &Group,
        guests: &[u32],
        occupied: &BTreeSet<(u32, u64)>,
    ) {
        let mut used: BTreeSet<(u32, usize)> = BTreeSet::new();
        for (twin, inos) in group.existing.iter().enumerate() {
            let has = |guest: &u32| inos.iter().any(|ino| occupied.contains(&(*guest, *ino)));
            used.extend(guests.iter().filter(|guest| has(guest)).map(|&guest| (guest, twin)));
        }
        let mut twins: Vec<Vec<Inode>> = Vec::new();
        // Below this, a guest has every twin: a guest may have very many equal files.
        let mut full: HashMap<u32, usize> = HashMap::new();
        for &inode in &group.members {
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
        for (twin, members) in twins.into_iter().enumerate() {
            let exists = group.existing.get(twin).is_some_and(|inos| !inos.is_empty());
            let name = ObjectName { id: group.id, twin: twin as u16, overflow: 0 };
            self.assign_twin(items, name, exists, members);
        }
    }

    fn assign_twin(&mut self, items: &Items, name: ObjectName, exists: bool, mut members: Vec<Inode>) {
        let alone = members.len() == 1 && !items.spans_guests(members[0]);
        if members.is_empty() || (!exists && alone) {
            return;
        }
        // The inode with the most names stays where it is: that moves the fewest names.
        members.sort_by_key(|inode| (std::cmp::Reverse(inode.names), inode.first));
        let target = self.targets.len() as u32;
        self.targets.push(name);
        for (at, &Inode { first, names }) in members.iter().enumerate() {
            let moves = if at == 0 && !exists { &mut self.admits } else { &mut self.links };
            moves.push(Move { inode: Inode { first, names }, target });
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
