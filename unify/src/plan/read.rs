//! Reading what has to be read, in the order that suits the device.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use rayon::prelude::*;
use store::census::{Census, FileRow};

use super::Planner;
use super::builder::MAX_PATHS;
use super::items::{Inode, Items, Known};
use crate::hash::{Proof, prove};
use crate::notes::Skip;
use crate::walk::{join, to_path};

/// Files that are read at once, one behind the other on the disk, where a head has to move.
const DISK_STRETCH: usize = 64;

/// Files of one directory that one thread reads, at most: a long directory would keep one thread at work
/// when all others are done.
const DIRECTORY_STRETCH: usize = 32;

/// Files that a directory is opened for, at least, where a thread reads in several at once.
const OPENED_FOR: usize = 8;

/// Directories that a thread holds open to read, at most; fewer where few files may be open.
const STREET_DIRS: usize = 128;

impl Planner<'_> {
    /// Reads inodes in parallel; what could not be read is left out. Directories that have the same path in their guests are read
    /// together, twin after twin, others in order of the inodes' numbers; where a head has to move, all in the order
    /// in which they lie on the disk.
    pub(super) fn prove_all(&self, censuses: &[Census], items: &Items, inodes: &[Inode]) -> Vec<Known> {
        let began = Instant::now();
        let proven = self.prove_in_order(censuses, items, inodes);
        self.read_micros.add(began.elapsed().as_micros() as u64);
        proven
    }

    fn prove_in_order(&self, censuses: &[Census], items: &Items, inodes: &[Inode]) -> Vec<Known> {
        let mut rows: Vec<Row> = inodes
            .par_iter()
            .map(|inode| {
                let file = items.row(censuses, *inode);
                Row {
                    guest: items.guest(*inode),
                    dir: file.dir,
                    class: file.class,
                    ino: file.ino,
                    inode: *inode,
                }
            })
            .collect();
        rows.par_sort_unstable_by_key(|row| (row.guest, row.dir, row.ino));
        if !self.rotational {
            let streets = streets(censuses, &rows);
            return streets
                .par_iter()
                .flat_map_iter(|rows| self.prove_street(censuses, items, rows))
                .collect();
        }
        let dirs: Vec<&[Row]> = rows
            .chunk_by(|a, b| (a.guest, a.dir) == (b.guest, b.dir))
            .flat_map(|dir| dir.chunks(DIRECTORY_STRETCH))
            .collect();
        let in_dir = |of: &&[Row]| self.open_dir(censuses, of[0].guest, of[0].dir);
        let place = |dir| place_each(censuses, items, &in_dir(dir), dir.iter().map(|row| row.inode));
        let placed = disk_order(dirs.par_iter().flat_map_iter(place).collect());
        let prove = |inode: &Inode| {
            let dir = items.row(censuses, *inode).dir;
            let dir = self.open_dir(censuses, items.guest(*inode), dir);
            self.prove_in(censuses, items, &dir, *inode)
        };
        // All threads stay near each other, so that the head does.
        placed
            .chunks(DISK_STRETCH)
            .flat_map(|near| near.par_iter().flat_map_iter(prove).collect::<Vec<_>>())
            .collect()
    }

    /// Reads inodes one behind the other, with their directories open.
    fn prove_street(&self, censuses: &[Census], items: &Items, rows: &[Row]) -> Vec<Known> {
        let mut dirs: HashMap<(u32, u32), OpenDir> = HashMap::new();
        let prove = |row: &Row| {
            let dir = dirs
                .entry((row.guest, row.dir))
                .or_insert_with(|| self.open_dir(censuses, row.guest, row.dir));
            self.prove_in(censuses, items, dir, row.inode)
        };
        rows.iter().filter_map(prove).collect()
    }

    fn open_dir(&self, censuses: &[Census], guest: u32, dir: u32) -> OpenDir {
        let path = censuses[guest as usize].dir_path(dir);
        let dir = self.guests[guest as usize].root.open_dir(&path).map_err(Skip::from_errno);
        OpenDir { path, dir }
    }

    fn prove_in(&self, censuses: &[Census], items: &Items, dir: &OpenDir, inode: Inode) -> Option<Known> {
        let guest = items.guest(inode) as usize;
        let file = items.row(censuses, inode);
        let name = censuses[guest].name(file.name);
        let skip = |why| {
            self.notes.skip(&self.guests[guest].key, to_path(&join(&dir.path, name)), why);
        };
        if items.path_bytes(censuses, inode) > MAX_PATHS {
            skip(Skip::OutOfReach);
            return None;
        }
        let proof = match &dir.dir {
            Ok(dir) => self.prove(dir, name, file, inode),
            Err(why) => Err(*why),
        };
        proof.map(|proof| Known { id: proof.id, inode, is_proven: true }).map_err(skip).ok()
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

/// One inode, and what decides when it is read.
#[derive(Clone, Copy)]
struct Row {
    guest: u32,
    dir: u32,
    class: u64,
    ino: u64,
    inode: Inode,
}

/// The same rows in stretches for one thread each: directories that have the same path in their guests together, and
/// in them what is of one class, so that twins are read one behind the other.
fn streets(censuses: &[Census], rows: &[Row]) -> Vec<Vec<Row>> {
    let of_dir = |dir: &[Row]| {
        let path = censuses[dir[0].guest as usize].dir_path(dir[0].dir);
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        hasher.finish()
    };
    let dirs: Vec<&[Row]> = rows.chunk_by(|a, b| (a.guest, a.dir) == (b.guest, b.dir)).collect();
    let mut dirs: Vec<(u64, &[Row])> = dirs.into_par_iter().map(|dir| (of_dir(dir), dir)).collect();
    dirs.par_sort_by_key(|(path, _)| *path);
    let fair = kernel::open_file_limit() as usize / (4 * rayon::current_num_threads());
    let most = STREET_DIRS.min(fair).max(1);
    let same_path: Vec<_> = dirs.chunk_by(|a, b| a.0 == b.0).flat_map(|same| same.chunks(most)).collect();
    let stretches = same_path.into_par_iter().flat_map_iter(|dirs| {
        let mut rows: Vec<Row> = dirs.iter().flat_map(|(_, rows)| *rows).copied().collect();
        if dirs.len() > 1 {
            rows.sort_by_key(|row| row.class);
        }
        let stretch = DIRECTORY_STRETCH.max(dirs.len() * OPENED_FOR);
        rows.chunks(stretch).map(<[Row]>::to_vec).collect::<Vec<_>>()
    });
    stretches.collect()
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
