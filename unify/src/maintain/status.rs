//! What a store holds and what protects it. Changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernel::{Dir, EntryBuffer, Kind, Offer, Seal, Stat};
use rayon::prelude::*;
use store::journal::{Journal, Run, RunKind};
use store::{ObjectName, Store};

use super::quarantine::{Kept, kept};
use crate::Result;

/// Figures of all objects together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// How many there are.
    pub count: u64,
    /// Space they take, in allocated bytes.
    pub allocated: u64,
    /// Names that guests have of them, by link counts.
    pub links: u64,
    /// Space that guests would take more if each name beyond an object's first were a copy of its own, in
    /// allocated bytes. Names that were hard links before they were shared count as copies too.
    pub saved: u64,
    /// Objects that no guest links to, and the space they take, in allocated bytes.
    pub garbage: (u64, u64),
    /// How many carry the tag of which seal, by name.
    pub seals: BTreeMap<&'static str, u64>,
    /// Objects whose metadata could not be read, or that are no regular files.
    pub unreadable: u64,
    /// Files below `objects/` that the store did not make.
    pub strangers: Vec<PathBuf>,
}

/// The whole picture.
pub struct Status {
    /// The objects.
    pub objects: Objects,
    /// What lies in quarantine.
    pub quarantine: Vec<Kept>,
    /// Size of the file system, and what is free to root, in bytes.
    pub space: (u64, u64),
    /// What the running kernel can enforce, best first.
    pub protection: Vec<Offer>,
    /// All runs, oldest first.
    pub runs: Vec<Run>,
    /// Files of guests that the last run found tagged like sealed ones though they are no objects.
    pub strays: u64,
}

/// Looks at a store.
pub fn status(store: &Store, journal: Option<&Journal>) -> Result<Status> {
    let (all, free, _) =
        store.dir().space().map_err(store::Error::at("ask for the space of", store.path()))?;
    let runs = journal.map(Journal::runs).transpose()?.unwrap_or_default();
    Ok(Status {
        strays: runs.iter().rev().filter(|run| run.kind == RunKind::Unify).find_map(strays).unwrap_or(0),
        objects: survey(store)?,
        quarantine: kept(store)?,
        space: (all, free),
        protection: kernel::probe(store.sample()),
        runs,
    })
}

/// What a run that looked for them has noted.
fn strays(run: &Run) -> Option<u64> {
    let summary: serde_json::Value = serde_json::from_str(run.summary.as_deref()?).ok()?;
    summary.get("strays")?.as_u64()
}

fn survey(store: &Store) -> Result<Objects> {
    let shard = |shard| -> Result<Objects> {
        let mut sum = Objects::default();
        let mut strangers = Vec::new();
        let each = |name: ObjectName, _, dir: &Dir| sum.add(dir, name.file_name().as_bytes());
        store.for_each_in_shard(shard, &mut EntryBuffer::default(), each, |path| strangers.push(path))?;
        sum.strangers = strangers;
        Ok(sum)
    };
    let sum = |a: Objects, b: Objects| Ok(a.plus(b));
    (0..=255_u8).into_par_iter().map(shard).try_reduce(Objects::default, sum)
}

impl Objects {
    fn add(&mut self, dir: &Dir, name: &[u8]) {
        self.count += 1;
        let Some(stat) = dir.stat(name).ok().filter(|stat| stat.kind == Kind::File) else {
            self.unreadable += 1;
            return;
        };
        let (space, names) = (stat.allocated(), u64::from(stat.nlink.saturating_sub(1)));
        self.allocated += space;
        self.links += names;
        self.saved += space * names.saturating_sub(1);
        if names == 0 {
            self.garbage.0 += 1;
            self.garbage.1 += space;
        }
        *self.seals.entry(seal_on(dir, name, &stat).name()).or_default() += 1;
    }

    fn plus(mut self, other: Self) -> Self {
        self.count += other.count;
        self.allocated += other.allocated;
        self.links += other.links;
        self.saved += other.saved;
        self.garbage.0 += other.garbage.0;
        self.garbage.1 += other.garbage.1;
        self.unreadable += other.unreadable;
        self.strangers.extend(other.strangers);
        for (seal, count) in other.seals {
            *self.seals.entry(seal).or_default() += count;
        }
        self
    }
}

/// The seal whose tag an inode carries; one call where `stat` says enough.
fn seal_on(dir: &Dir, name: &[u8], stat: &Stat) -> Seal {
    if stat.verity {
        return Seal::Verity;
    }
    let Ok(file) = dir.open_file(name) else { return Seal::None };
    let likely: &[Seal] = if stat.immutable { &[Seal::Patch, Seal::Immutable] } else { &[Seal::Bpf] };
    likely.iter().copied().find(|seal| seal.is_on(&file).unwrap_or(false)).unwrap_or(Seal::None)
}
