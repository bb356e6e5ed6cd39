//! Reading directories with `getdents64` into a buffer that is used again and again.

use std::mem::MaybeUninit;

use rustix::fs::RawDir;

use crate::{Dir, Errno, Kind, Result};

/// Big enough for most directories in one call, small enough for the second level cache.
const BUFFER: usize = 64 * 1024;

/// Memory for reading directories; keep one a thread.
pub struct EntryBuffer(Box<[MaybeUninit<u8>]>);

impl Default for EntryBuffer {
    fn default() -> Self {
        Self(vec![MaybeUninit::uninit(); BUFFER].into_boxed_slice())
    }
}

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The name: any bytes but `/` and NUL.
    pub name: &'a [u8],
    /// The inode number; of what lies below, if a file system is mounted there.
    pub ino: u64,
    /// What the directory says of the inode's type.
    pub kind: Kind,
}

impl Dir {
    /// Calls `each` for every entry but `.` and `..`, in the directory's order. The directory must not
    /// have been read through this handle before.
    pub fn for_each<E: From<Errno>>(
        &self,
        buffer: &mut EntryBuffer,
        mut each: impl FnMut(Entry<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut raw = RawDir::new(self, &mut buffer.0);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let kind = match entry.file_type().into() {
                    // Some file systems do not say; the inode does.
                    Kind::Unknown => self.stat(name).map_or(Kind::Unknown, |stat| stat.kind),
                    kind => kind,
                };
                each(Entry { name, ino: entry.ino(), kind })?;
            }
        }
        Ok(())
    }

    /// All names, sorted. For directories of the store, whose size is known to be modest.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.for_each(&mut EntryBuffer::default(), |entry| -> Result<()> {
            names.push(entry.name.to_vec());
            Ok(())
        })?;
        names.sort_unstable();
        Ok(names)
    }
}
