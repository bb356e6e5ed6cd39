//! Looking after a store: what `vstore` does.
//!
//! - [`status()`] looks and changes nothing.
//! - [`scrub()`] reads objects again, takes corrupt ones out of use, names the guests that hold them and
//!   repairs those from a good copy (law 6).
//! - [`rebuild()`] makes the index anew.
//! - [`Kept`] is what lies in quarantine.

mod find;
mod quarantine;
mod rebuild;
mod repair;
mod scrub;
mod status;

use std::collections::BTreeSet;
use std::path::PathBuf;

use kernel::Seal;
use store::index::Index;
use store::journal::{Journal, RunKind};
use store::{Place, Store};

use crate::guest::Guest;
use crate::{Error, Result};

pub use find::Name;
pub use quarantine::{Emptied, Kept, KeptKind, empty, kept};
pub(crate) use quarantine::{fasten_corrupt, put_aside};
pub use rebuild::{Rebuilt, rebuild};
pub use scrub::{Corrupt, Fault, Scrub, Scrubbed, scrub};
pub use status::{Objects, Status, status};

/// Runs whose journals are read to learn which guests there are: the index knows, unless it was lost.
const RECENT: usize = 64;

/// Guests that are at hand, and those that were known and cannot be opened.
pub struct Known {
    /// Open.
    pub guests: Vec<Guest>,
    /// Their paths, and why not.
    pub missing: Vec<(PathBuf, Error)>,
}

/// Opens the guests given, which must be fit, and all others that the index or recent runs know.
pub fn known_guests(store: &Store, journal: Option<&Journal>, given: &[PathBuf]) -> Result<Known> {
    let place = store.place();
    let mut known = Known { guests: Guest::open_all(place, given)?, missing: Vec::new() };
    let mut keys: BTreeSet<PathBuf> = match Index::open_read_only(store) {
        Some(index) => index.guests()?.into_iter().collect(),
        None => BTreeSet::new(),
    };
    if let Some(journal) = journal {
        for run in journal.runs()?.iter().rev().take(RECENT) {
            let first = journal.batch(run.id, 0)?;
            keys.extend(first.into_iter().flat_map(|(batch, _)| batch.guests));
        }
    }
    for path in keys.iter().map(|key| place.base().join(key)) {
        add_known(place, path, &mut known);
    }
    Ok(known)
}

/// A guest that lies in another is reached through that one, or holds it: either would show names twice.
fn add_known(place: &Place, path: PathBuf, known: &mut Known) {
    let apart = |guest: &Guest| !guest.path.starts_with(&path) && !path.starts_with(&guest.path);
    if !known.guests.iter().all(apart) {
        return;
    }
    match Guest::open_all(place, std::slice::from_ref(&path)) {
        Ok(guest) => known.guests.extend(guest),
        Err(why) => known.missing.push((path, why)),
    }
}

/// The seal that objects should have: what the last run that shared put on. None if there was no such run.
pub fn expected_seal(journal: Option<&Journal>) -> Result<Option<Seal>> {
    let Some(journal) = journal else { return Ok(None) };
    let runs = journal.runs()?;
    Ok(runs.iter().rev().find(|run| run.kind == RunKind::Unify).map(|run| run.seal))
}
