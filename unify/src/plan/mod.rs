//! Which files become one: the plan of a run, a value.
//!
//! Files are grouped by what can be known without reading (class), then by identity, which needs reading.
//! A file that is alone in its class is not read. An identity from an earlier run may show that a file is
//! alone; it never proves that it has company (law 2).
//!
//! A plan refers to rows of the censuses; paths are made batch by batch.

mod assign;
mod builder;
mod group;
mod items;
mod read;

use std::collections::HashSet;

use store::census::Census;
use store::index::ObjectRow;
use store::journal::{Action, Batch, NameRef, Verb};
use store::{ObjectId, ObjectName};

use crate::guest::Guest;
use assign::{Assigned, Move};
pub(crate) use builder::{Builder, MAX_PATHS};
pub(crate) use group::{Planner, is_intact};
use items::Items;

/// What a plan would do, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Files that would become objects.
    pub admits: u64,
    /// Files that would be replaced by objects.
    pub links: u64,
    /// Names that would be replaced.
    pub names: u64,
    /// Bytes of the files that would be replaced, in whole blocks.
    pub bytes: u64,
}

/// What file systems hand out space by.
const BLOCK: u64 = 4096;

/// The list of actions a run would take.
pub struct Plan<'a> {
    guests: &'a [Guest],
    censuses: &'a [Census],
    items: Items,
    assigned: Assigned,
    /// Objects that were found corrupt and must not be linked to.
    pub corrupt: Vec<ObjectName>,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Files that were read.
    pub files_read: u64,
    /// How long that took, in seconds.
    pub read_seconds: f64,
}

impl Plan<'_> {
    /// What the index should know of the objects that the plan makes.
    pub(crate) fn admissions(&self) -> impl Iterator<Item = ObjectRow> {
        self.assigned.admits.iter().map(|step| {
            let file = self.items.row(self.censuses, step.inode);
            ObjectRow { ino: file.ino, class: file.class }
        })
    }

    /// The directories that an action may change, of each guest.
    pub(crate) fn touched(&self) -> Vec<HashSet<u32>> {
        let mut touched = vec![HashSet::new(); self.guests.len()];
        for step in self.assigned.admits.iter().chain(&self.assigned.links) {
            for item in self.items.names(step.inode) {
                let file = &self.censuses[item.guest as usize].files[item.file as usize];
                touched[item.guest as usize].insert(file.dir);
            }
        }
        touched
    }

    /// Leaves the files of an identity as they are.
    pub(crate) fn leave_out(&mut self, id: ObjectId) {
        let Assigned { admits, links, targets } = &mut self.assigned;
        for moves in [admits, links] {
            moves.retain(|step| targets[step.target as usize].id != id);
        }
    }

    pub(crate) fn censuses(&self) -> &[Census] {
        self.censuses
    }

    /// How many actions it has.
    pub fn actions(&self) -> u64 {
        (self.assigned.admits.len() + self.assigned.links.len()) as u64
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.actions() == 0
    }

    /// What it would do, in numbers.
    pub fn size(&self) -> Size {
        let links = &self.assigned.links;
        Size {
            admits: self.assigned.admits.len() as u64,
            links: links.len() as u64,
            names: links.iter().map(|step| u64::from(step.inode.names)).sum(),
            bytes: links
                .iter()
                .map(|step| self.items.row(self.censuses, step.inode).size.next_multiple_of(BLOCK))
                .sum(),
        }
    }

    /// The actions in batches, in the order in which they are to be carried out: admissions first, so that
    /// links find their objects.
    pub fn batches(&self) -> impl Iterator<Item = Batch> {
        let admits = self.assigned.admits.iter().map(|step| (Verb::Admit, step));
        let links = self.assigned.links.iter().map(|step| (Verb::Link, step));
        let mut steps = admits.chain(links).peekable();
        std::iter::from_fn(move || {
            let mut batch = Builder::new(self.guests);
            while let Some((verb, step)) = steps.next_if(|(_, step)| batch.takes(step.inode.names)) {
                self.add(&mut batch, verb, step);
            }
            (!batch.batch.actions.is_empty()).then_some(batch.batch)
        })
    }

    fn add(&self, batch: &mut Builder, verb: Verb, step: &Move) {
        let file = self.items.row(self.censuses, step.inode);
        let name = |item: &items::Item| {
            let census = &self.censuses[item.guest as usize];
            let file = &census.files[item.file as usize];
            let dir = batch.dir(item.guest, file.dir, || census.dir_path(file.dir));
            NameRef { dir, name: census.name(file.name).to_vec() }
        };
        let names = self.items.names(step.inode).iter().map(name).collect();
        batch.push(Action {
            verb,
            object: self.assigned.targets[step.target as usize],
            ino: file.ino,
            ctime: file.ctime,
            size: file.size,
            mtime: None,
            names,
        });
    }
}
