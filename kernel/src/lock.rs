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

/// An OFD lock over a whole file, held until it is dropped. A child that was started meanwhile and has the same open file
/// does not prolong it.
#[derive(Debug)]
pub struct OfdLock(File);

impl OfdLock {
    /// `Ok(Err(file))`: somebody else holds it in a way that excludes this.
    pub fn try_take(file: File, mode: LockMode) -> Result<std::result::Result<Self, File>> {
        let taken = sys::ofd_lock(&file, mode)?;
        Ok(if taken { Ok(Self(file)) } else { Err(file) })
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for OfdLock {
    fn drop(&mut self) {
        // Who has the last of its descriptors ends it at the latest.
        sys::ofd_unlock(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dir;

    #[test]
    fn a_copy_of_the_descriptor_does_not_prolong_the_lock() {
        let place = tempfile::tempdir().unwrap();
        std::fs::File::create(place.path().join("lock")).unwrap();
        let root = Dir::open_host(place.path()).unwrap();
        let take = || OfdLock::try_take(root.open_writable(b"lock").unwrap(), LockMode::Exclusive).unwrap();
        let held = take().unwrap();
        let copy = rustix::io::dup(held.file()).unwrap();
        assert!(take().is_err());
        drop(held);
        assert!(take().is_ok());
        drop(copy);
    }
}
