//! Locks that belong to an open file, not to a process.

use crate::{File, Result, sys};

/// Who else may hold the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Other readers.
    Shared,
    /// Nobody.
    Exclusive,
}

/// An OFD lock over a whole file, held until the file is closed.
#[derive(Debug)]
pub struct OfdLock(#[allow(dead_code)] File); // the open file is the lock

impl OfdLock {
    /// `Ok(Err(file))`: somebody else holds it in a way that excludes this.
    pub fn try_take(file: File, mode: LockMode) -> Result<std::result::Result<Self, File>> {
        let taken = sys::ofd_lock(&file, mode == LockMode::Exclusive)?;
        Ok(if taken { Ok(Self(file)) } else { Err(file) })
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.0
    }
}
