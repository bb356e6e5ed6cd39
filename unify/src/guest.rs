//! The guests at hand.

use std::path::{Path, PathBuf};

use kernel::Dir;
use store::Place;

use crate::{Error, Result};

/// A guest whose tree is open.
pub struct Guest {
    /// Its canonical path on the host.
    pub path: PathBuf,
    /// Its path relative to the store's base: how journal and index know it.
    pub key: PathBuf,
    /// Its root, seen without the mounts in it.
    pub root: Dir,
}

impl Guest {
    /// Opens guests where a store is or would be. No guest may be named twice or lie in another, or hold the store: its
    /// root could then change what we trust.
    pub fn open_all(place: &Place, paths: &[PathBuf]) -> Result<Vec<Self>> {
        check_apart(place, paths)?;
        paths.iter().map(|path| Self::open(place, path)).collect()
    }

    fn open(place: &Place, path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), key: place.guest_key(path), root: place.open_guest(path)? })
    }
}

fn check_apart(place: &Place, paths: &[PathBuf]) -> Result<()> {
    let mut sorted: Vec<&PathBuf> = paths.iter().collect();
    sorted.sort();
    for pair in sorted.windows(2) {
        if pair[0] == pair[1] {
            return Err(Error::NamedTwice(pair[0].clone()));
        }
    }
    for (outer, inner) in sorted.iter().flat_map(|a| sorted.iter().map(move |b| (a, b))) {
        if outer != inner && inner.starts_with(outer) {
            return Err(Error::Nested { outer: (*outer).clone(), inner: (*inner).clone() });
        }
    }
    match sorted.iter().find(|path| place.path().starts_with(path)) {
        Some(guest) => Err(Error::HoldsStore { guest: (*guest).clone(), store: place.path().to_path_buf() }),
        None => Ok(()),
    }
}
