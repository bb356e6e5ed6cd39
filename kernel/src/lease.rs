//! Read leases: the kernel's word that nobody writes.

use crate::{Errno, File, Result, sys};

/// An open file that has no writable descriptor and no writable shared mapping anywhere.
///
/// While it is held, an open for writing waits (45 s at most) and breaks the lease; [`Leased::held`] tells.
/// Given back when dropped, with the file. See `fcntl(2)`, "Leases"; the caller must own the file or have
/// `CAP_LEASE`.
#[derive(Debug)]
pub struct Leased(File);

impl Leased {
    /// `EAGAIN`: somebody has the file open, or mapped, for writing.
    pub fn take(file: File) -> Result<Self> {
        sys::take_read_lease(&file)?;
        Ok(Self(file))
    }

    /// Whether nobody has asked to write since the lease was taken.
    pub fn held(&self) -> bool {
        sys::has_read_lease(&self.0)
    }

    /// The file under the lease.
    pub fn file(&self) -> &File {
        &self.0
    }
}

/// What an attempt to open a file gave; none if a guest that has it too keeps it from us, by a lease for writing or by
/// having taken its key away.
pub fn unless_withheld(opened: Result<File>) -> Result<Option<File>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::NOKEY) => Ok(None),
        Err(errno) => Err(errno),
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
    use crate::Dir;

    #[test]
    fn a_writer_prevents_and_breaks_the_lease() {
        ignore_lease_breaks();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        let writer = std::fs::File::create(&path).unwrap();
        let root = Dir::open_host(place.path()).unwrap();
        let file = root.open_file(b"file").unwrap();
        assert_eq!(Leased::take(file).unwrap_err(), Errno::AGAIN);
        drop(writer);
        let lease = Leased::take(root.open_file(b"file").unwrap()).unwrap();
        assert!(lease.held());
        let opener = std::thread::spawn(move || std::fs::File::options().write(true).open(path).map(drop));
        while lease.held() {
            std::thread::yield_now();
        }
        drop(lease);
        opener.join().unwrap().unwrap();
    }
}
