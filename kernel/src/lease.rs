//! Read leases: the kernel's word that nobody writes.

use crate::{File, Result, sys};

/// Held over a file that has no writable descriptor and no writable shared mapping anywhere.
///
/// While it is held, an open for writing waits (45 s at most) and breaks the lease; [`ReadLease::held`]
/// tells. Given back when dropped. See `fcntl(2)`, "Leases"; the caller must own the file or have
/// `CAP_LEASE`.
#[derive(Debug)]
pub struct ReadLease<'file>(&'file File);

impl<'file> ReadLease<'file> {
    /// `EAGAIN`: somebody has the file open, or mapped, for writing.
    pub fn take(file: &'file File) -> Result<Self> {
        sys::set_lease(file, true)?;
        Ok(Self(file))
    }

    /// Whether nobody has asked to write since the lease was taken.
    pub fn held(&self) -> bool {
        sys::has_read_lease(self.0)
    }
}

impl Drop for ReadLease<'_> {
    fn drop(&mut self) {
        // Nothing is lost if it fails: closing the file gives the lease back too.
        sys::set_lease(self.0, false).ok();
    }
}

/// Must be called once before leases are used: a lease break is announced by SIGIO, whose default action
/// ends the process.
pub fn ignore_lease_breaks() {
    sys::ignore_sigio();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dir, Errno};

    #[test]
    fn a_writer_prevents_and_breaks_the_lease() {
        ignore_lease_breaks();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        let writer = std::fs::File::create(&path).unwrap();
        let root = Dir::open_host(place.path()).unwrap();
        let file = root.open_file(b"file").unwrap();
        assert_eq!(ReadLease::take(&file).unwrap_err(), Errno::AGAIN);
        drop(writer);
        let lease = ReadLease::take(&file).unwrap();
        assert!(lease.held());
        let opener = std::thread::spawn(move || std::fs::File::options().write(true).open(path).map(drop));
        while lease.held() {
            std::thread::yield_now();
        }
        drop(lease);
        opener.join().unwrap().unwrap();
    }
}
