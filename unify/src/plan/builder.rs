//! Batches: what becomes durable together.

use std::collections::HashMap;

use kernel::Time;
use store::journal::{Action, Batch, DirRef, Verb};

use crate::guest::Guest;

/// Names in a batch, at most, apart from those of one action. Parked inodes take space, and leased ones a
/// descriptor, until their batch is durable.
const BATCH_NAMES: u64 = 16 * 1024;

/// Directories in a batch, at most; each is held open meanwhile.
const BATCH_DIRS: u64 = 8192;

/// Bytes of directories' paths in a batch, at most, apart from those of one action.
const BATCH_PATHS: usize = 16 << 20;

/// The same of one action, at most: it stands in the journal as a whole.
pub(crate) const MAX_PATHS: usize = BATCH_PATHS;

/// Bytes of private copies in a batch, at most, apart from those of one action: what they are copies of goes when all are
/// durable.
const BATCH_COPIES: u64 = 1 << 30;

/// Collects actions into a batch.
pub(crate) struct Builder {
    pub(crate) batch: Batch,
    dirs: HashMap<(u32, u32), u32>,
    names: usize,
    paths: usize,
    copies: u64,
    max_names: usize,
    max_dirs: usize,
}

impl Builder {
    pub(crate) fn new(guests: &[Guest]) -> Self {
        let guests = guests.iter().map(|guest| guest.key.clone()).collect();
        let files = kernel::open_file_limit();
        Self {
            batch: Batch { guests, ..Batch::default() },
            dirs: HashMap::new(),
            names: 0,
            paths: 0,
            copies: 0,
            // A private copy takes three at most: its own, the lease on the object, and what keeps its seal off.
            max_names: BATCH_NAMES.min(files / 4) as usize,
            max_dirs: BATCH_DIRS.min(files / 8) as usize,
        }
    }

    /// Whether an action with so many names still fits. An empty batch takes any.
    pub(crate) fn takes(&self, names: u32) -> bool {
        let names = names as usize;
        self.names == 0
            || (self.names + names <= self.max_names
                && self.dirs.len() + names <= self.max_dirs
                && self.paths <= BATCH_PATHS
                && self.copies <= BATCH_COPIES)
    }

    pub(crate) fn push(&mut self, action: Action) {
        self.names += action.names.len();
        if action.verb == Verb::Detach {
            self.copies += action.size;
        }
        self.batch.actions.push(action);
    }

    /// The number of a directory in the batch; `row` tells directories of one guest apart. Its modification
    /// time is filled in when the batch is about to be carried out.
    pub(crate) fn dir(&mut self, guest: u32, row: u32, path: impl FnOnce() -> Vec<u8>) -> u32 {
        let next = self.batch.dirs.len() as u32;
        *self.dirs.entry((guest, row)).or_insert_with(|| {
            let path = path();
            self.paths += path.len();
            self.batch.dirs.push(DirRef { guest, path, mtime: Time::default() });
            next
        })
    }
}
