//! Candidates, those that might be one side by side.

use std::collections::HashSet;

use rayon::prelude::*;
use store::ObjectId;
use store::census::{Census, FileRow, NONE};

/// One name of one candidate: a row of a census.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) guest: u32,
    pub(super) file: u32,
}

/// One inode with its names: items from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) first: u32,
    pub(super) names: u32,
}

/// An inode and the identity of its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) id: ObjectId,
    pub(super) inode: Inode,
    /// This run has read it.
    pub(super) is_proven: bool,
}

/// All candidates by class, then by inode.
pub(super) struct Items(Vec<Item>);

impl Items {
    pub(super) fn collect(censuses: &[Census]) -> Self {
        let is_candidate = |file: &FileRow| file.state == 0;
        let count =
            censuses.iter().flat_map(|census| &census.files).filter(|file| is_candidate(file)).count();
        let mut sorted = Vec::with_capacity(count);
        for (guest, census) in censuses.iter().enumerate() {
            let files = census.files.iter().enumerate().filter(|(_, file)| is_candidate(file));
            let item = |at: usize| Item { guest: guest as u32, file: at as u32 };
            sorted.extend(files.map(|(at, file)| (file.class, item(at))));
        }
        let ino = |item: &Item| censuses[item.guest as usize].files[item.file as usize].ino;
        sorted.par_sort_unstable_by_key(|(class, item)| (*class, ino(item), item.guest, item.file));
        // Half the memory for the rest of the run: the class stands in the row.
        Self(sorted.into_iter().map(|(_, item)| item).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The inodes of the class whose first item is `at`, and where the next class begins.
    pub(super) fn class(&self, censuses: &[Census], at: u32) -> Option<(Vec<Inode>, u32)> {
        let rest = &self.0[at as usize..];
        let row = |item: &Item| &censuses[item.guest as usize].files[item.file as usize];
        let class = rest.chunk_by(|a, b| row(a).class == row(b).class).next()?;
        let mut next = at;
        let inodes = class.chunk_by(|a, b| row(a).ino == row(b).ino).map(|names| {
            let inode = Inode { first: next, names: names.len() as u32 };
            next += inode.names;
            inode
        });
        let inodes = inodes.collect();
        Some((inodes, next))
    }

    pub(super) fn names(&self, inode: Inode) -> &[Item] {
        &self.0[inode.first as usize..][..inode.names as usize]
    }

    /// Bytes of an inode's names and of the paths of all directories that have one; 0 for few names, whose paths
    /// cannot be many.
    pub(super) fn path_bytes(&self, censuses: &[Census], inode: Inode) -> usize {
        const FEW: u32 = 64;
        if inode.names <= FEW {
            return 0;
        }
        let row = |item: &Item| (item.guest, censuses[item.guest as usize].files[item.file as usize].dir);
        let dirs: HashSet<(u32, u32)> = self.names(inode).iter().map(row).collect();
        let name = |item: &Item| {
            let census = &censuses[item.guest as usize];
            census.name(census.files[item.file as usize].name).len()
        };
        let names: usize = self.names(inode).iter().map(name).sum();
        names + dirs.iter().map(|&(guest, dir)| censuses[guest as usize].dir_path(dir).len()).sum::<usize>()
    }

    /// The guest of the first name.
    pub(super) fn guest(&self, inode: Inode) -> u32 {
        self.0[inode.first as usize].guest
    }

    pub(super) fn spans_guests(&self, inode: Inode) -> bool {
        self.names(inode).iter().any(|item| item.guest != self.guest(inode))
    }

    /// The row of the first name.
    pub(super) fn row<'c>(&self, censuses: &'c [Census], inode: Inode) -> &'c FileRow {
        let item = &self.0[inode.first as usize];
        &censuses[item.guest as usize].files[item.file as usize]
    }

    /// The identity that this or an earlier run has computed.
    pub(super) fn known_id(&self, censuses: &[Census], inode: Inode) -> Option<ObjectId> {
        let id = self.row(censuses, inode).id;
        (id != NONE).then(|| censuses[self.guest(inode) as usize].ids[id as usize])
    }

    pub(super) fn remember(&self, censuses: &mut [Census], inode: Inode, id: ObjectId) {
        let item = &self.0[inode.first as usize];
        let census = &mut censuses[item.guest as usize];
        census.ids.push(id);
        census.files[item.file as usize].id = census.ids.len() as u32 - 1;
    }
}
