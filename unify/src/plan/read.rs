//! Reading what has to be read, in the order that suits the device.

use std::collections::HashMap;
use std::time::Instant;

use rayon::prelude::*;
use store::ObjectId;
use store::census::{Census, FileRow};

use super::Planner;
use super::items::{Inode, Items};
use crate::hash::{Proof, prove};
use crate::notes::Skip;
use crate::walk::{join, to_path};

/// Files that are read at once, one behind the other on the disk, where a head has to move.
const DISK_STRETCH: usize = 64;

/// Files of one directory that one thread reads, at most: a long directory would keep one thread at work
/// when all others are done.
const DIRECTORY_STRETCH: usize = 32;

/// Bytes of directories' paths of one inode's names, at most: they stand in the journal together.
const MAX_PATHS: usize = 16 << 20;

impl Planner<'_> {
    /// Reads inodes in parallel; keyed by their first item. Each directory is opened once, its inodes in
    /// order of their numbers; where a head has to move, in the order in which they lie on the disk.
    pub(super) fn prove_all(
        &self,
        censuses: &[Census],
        items: &Items,
        inodes: &[Inode],
    ) -> HashMap<u32, ObjectId> {
        let began = Instant::now();
        let proven = self.prove_in_order(censuses, items, inodes);
        self.read_micros.add(began.elapsed().as_micros() as u64);
        proven
    }

    fn prove_in_order(&self, censuses: &[Census], items: &Items, inodes: &[Inode]) -> HashMap<u32, ObjectId> {
        let mut ordered: Vec<(u32, u32, u64, Inode)> = inodes
            .iter()
            .map(|inode| {
                let file = items.row(censuses, *inode);
                (items.guest(*inode), file.dir, file.ino, *inode)
            })
            .collect();
        ordered.par_sort_unstable_by_key(|&(guest, dir, ino, _)| (guest, dir, ino));
        let dirs: Vec<&[(u32, u32, u64, Inode)]> = ordered
            .chunk_by(|a, b| (a.0, a.1) == (b.0, b.1))
            .flat_map(|dir| dir.chunks(DIRECTORY_STRETCH))
            .collect();
        let in_dir = |of: &&[(u32, u32, u64, Inode)]| self.open_dir(censuses, of[0].0, of[0].1);
        if !self.rotational {
            let prove = |dir| self.prove_each(censuses, items, &in_dir(dir), dir.iter().map(|x| x.3));
            return dirs.par_iter().flat_map_iter(prove).collect();
        }
        let place = |dir| place_each(censuses, items, &in_dir(dir), dir.iter().map(|x| x.3));
        let placed = disk_order(dirs.par_iter().flat_map_iter(place).collect());
        let prove = |inode: &Inode| {
            let dir = items.row(censuses, *inode).dir;
            let dir = self.open_dir(censuses, items.guest(*inode), dir);
            self.prove_each(censuses, items, &dir, std::iter::once(*inode))
        };
        // All threads stay near each other, so that the head does.
        placed
            .chunks(DISK_STRETCH)
            .flat_map(|near| near.par_iter().flat_map_iter(prove).collect::<Vec<_>>())
            .collect()
    }

    fn open_dir(&self, censuses: &[Census], guest: u32, dir: u32) -> OpenDir {
        let path = censuses[guest as usize].dir_path(dir);
        let dir = self.guests[guest as usize].root.open_dir(&path).map_err(Skip::from_errno);
        OpenDir { path, dir }
    }

    fn prove_each(
        &self,
        censuses: &[Census],
        items: &Items,
        dir: &OpenDir,
        inodes: impl Iterator<Item = Inode>,
    ) -> Vec<(u32, ObjectId)> {
        let prove = |inode: Inode| {
            let guest = items.guest(inode) as usize;
            let file = items.row(censuses, inode);
            let name = censuses[guest].name(file.name);
            if items.path_bytes(censuses, inode) > MAX_PATHS {
                self.notes.skip(&self.guests[guest].key, to_path(&join(&dir.path, name)), Skip::OutOfReach);
                return None;
            }
            let proof = match &dir.dir {
                Ok(dir) => self.prove(dir, name, file, inode),
                Err(why) => Err(*why),
            };
            proof
                .map(|proof| (inode.first, proof.id))
                .inspect_err(|why| {
                    self.notes.skip(&self.guests[guest].key, to_path(&join(&dir.path, name)), *why);
                })
                .ok()
        };
        inodes.filter_map(prove).collect()
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
        let proof = prove(self.around, dir, name, self.identity, self.seal, (file.ino, file.ctime))?;
        if proof.stat.nlink != inode.names {
            return Err(Skip::LinkedOutside);
        }
        self.bytes_read.add(proof.stat.size);
        self.files_read.add(1);
        Ok(proof)
    }
}

/// A directory of a guest, held open if it could be.
struct OpenDir {
    path: Vec<u8>,
    dir: std::result::Result<kernel::Dir, Skip>,
}

/// The first byte's place on the device of each inode; of those that have none, or cannot be opened, 0.
fn place_each(
    censuses: &[Census],
    items: &Items,
    dir: &OpenDir,
    inodes: impl Iterator<Item = Inode>,
) -> Vec<(u64, Inode)> {
    let place = |inode: Inode| {
        let name = censuses[items.guest(inode) as usize].name(items.row(censuses, inode).name);
        let file = dir.dir.as_ref().ok().and_then(|dir| dir.open_file(name).ok());
        let extent = file.and_then(|file| kernel::first_extent(&file).ok().flatten());
        (extent.map_or(0, |extent| extent.physical), inode)
    };
    inodes.map(place).collect()
}

/// Inodes in the order in which they lie on the device.
fn disk_order(mut placed: Vec<(u64, Inode)>) -> Vec<Inode> {
    placed.par_sort_unstable_by_key(|&(physical, inode)| (physical, inode.first));
    placed.into_iter().map(|(_, inode)| inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_order_is_by_place_then_by_item() {
        let placed = [(8192, 0), (4096, 1), (0, 3), (1 << 40, 2), (0, 2)];
        let placed = placed.map(|(physical, first)| (physical, Inode { first, names: 1 }));
        let order: Vec<u32> = disk_order(placed.to_vec()).iter().map(|inode| inode.first).collect();
        assert_eq!(order, [2, 3, 1, 0, 2]);
    }
}
