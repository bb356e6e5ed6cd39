//! Making the index anew. It is a cache: its loss costs the time of one full look, nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use kernel::Time;
use rayon::prelude::*;
use store::Store;
use store::census::Census;
use store::index::{self, Index};

use crate::guest::Guest;
use crate::judge::Judge;
use crate::notes::{Notes, Skipped, Surroundings};
use crate::objects::Objects;
use crate::policy::Policy;
use crate::walk::{self, Walk};
use crate::{Error, Result};

/// What was written down.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Objects in the store.
    pub objects: u64,
    /// Of each guest: its path as the store knows it, directories, private files that may be shared one day.
    pub guests: Vec<(PathBuf, u64, u64)>,
    /// Files and directories that could not be looked at.
    pub skipped: Vec<Skipped>,
}

/// Discards the index and surveys objects and guests. `policy` gives each guest's policy: what the next run
/// finds under another policy does not count.
pub fn rebuild(
    around: &Surroundings<'_>,
    store: &Store,
    guests: &[Guest],
    policy: impl Fn(&Guest) -> Result<Policy>,
) -> Result<Rebuilt> {
    let judge = |guest: &Guest| -> Result<Judge> {
        let root = guest.root.reopen().map_err(store::Error::at("open", &guest.path))?;
        Ok(Judge::new(root, Arc::new(policy(guest)?)))
    };
    let judges: Vec<Judge> = guests.iter().map(judge).collect::<Result<_>>()?;
    let notes = Notes::default();
    let began = Time::now();
    let objects = Objects::scan(store, Vec::new(), None)?;
    around.observer.phase("walking", 0);
    let (dev, identity) = (store.place().dev(), store.format().identity);
    let survey = |(guest, judge): (&Guest, &Judge)| {
        let (objects, notes, before) = (&objects, &notes, None);
        let mut census = Walk { around, guest, judge, objects, dev, identity, began, before, notes }.run();
        walk::settle(&mut census, began);
        census
    };
    let censuses: Vec<Census> = guests.par_iter().zip(&judges).map(survey).collect();
    if around.stopping() {
        return Err(Error::Interrupted);
    }
    let known: Vec<(PathBuf, Option<&Census>)> =
        guests.iter().zip(&censuses).map(|(guest, census)| (guest.key.clone(), Some(census))).collect();
    index::discard(store)?;
    let objects_known = objects.len() as u64;
    let rows = objects.into_rows_if_new(store, Vec::new()).unwrap_or_default();
    Index::open(store)?.store(&known, Some(&rows))?;
    let count = |(guest, census): (&Guest, &Census)| {
        let candidates = census.files.iter().filter(|file| file.state == 0).count();
        (guest.key.clone(), census.dirs.len() as u64, candidates as u64)
    };
    Ok(Rebuilt {
        objects: objects_known,
        guests: guests.iter().zip(&censuses).map(count).collect(),
        skipped: notes.into_parts().1,
    })
}
