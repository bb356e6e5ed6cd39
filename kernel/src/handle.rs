//! Directories and files held open. Law 5 lives here.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags};

use crate::stat::BASIC;
use crate::{Errno, Kind, Result, Stat};

/// How names inside a guest are resolved: beneath the handle, through no symbolic link, into no other
/// mount.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Longest piece of a path handed to the kernel at once; `PATH_MAX` counts the final NUL.
const PIECE: usize = 4000;

/// How often a walk that renames elsewhere disturb is begun again.
const TRIES: u32 = 100;

/// A directory, held open for reading.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// A file, held open.
#[derive(Debug)]
pub struct File(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Dir {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Opens without touching the access time where that is allowed (owner or `CAP_FOWNER`).
fn open_quietly(open: impl Fn(OFlags) -> Result<OwnedFd>, flags: OFlags) -> Result<OwnedFd> {
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        other => other,
    }
}

impl Dir {
    /// Opens a directory by a path that the administrator gave: symbolic links are followed.
    pub fn open_host(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(fs::open(path, flags, Mode::empty())?))
    }

    /// A second handle on the same directory, with a position of its own.
    pub fn reopen(&self) -> Result<Self> {
        self.open_dir(b".")
    }

    /// Opens a directory beneath this one, confined. `path` may have several components and any length.
    pub fn open_dir(&self, path: &[u8]) -> Result<Self> {
        if path.len() > PIECE {
            let (head, tail) = split_path(path)?;
            return self.open_dir(head)?.open_dir(tail);
        }
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Self(open_quietly(|flags| self.open_confined(path, flags), flags)?))
    }

    /// Opens a regular file beneath this one for reading, confined. Never blocks on a FIFO and never
    /// returns one: anything but a regular file is `EINVAL`.
    pub fn open_file(&self, path: &[u8]) -> Result<File> {
        let file = self.open_any(path)?;
        if file.stat()?.kind == Kind::File { Ok(file) } else { Err(Errno::INVAL) }
    }

    /// As [`Dir::open_file`], but leaves the check of the type to the caller, who stats anyway. Devices may be `EINVAL`
    /// here already: a view of a guest opens none.
    pub fn open_any(&self, path: &[u8]) -> Result<File> {
        if path.len() > PIECE {
            let (head, tail) = split_path(path)?;
            return self.open_dir(head)?.open_any(tail);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        match open_quietly(|flags| self.open_confined(path, flags), flags) {
            Err(Errno::ACCESS) if self.is_device(path) => Err(Errno::INVAL),
            opened => Ok(File(opened?)),
        }
    }

    fn is_device(&self, path: &[u8]) -> bool {
        let found = self.open_confined(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW);
        let stat = found.and_then(|found| File(found).stat());
        stat.is_ok_and(|stat| matches!(stat.kind, Kind::CharDevice | Kind::BlockDevice))
    }

    /// Opens a regular file of the store's own for writing, confined. Never used on guests' files.
    pub fn open_writable(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(File(self.open_confined(name, flags)?))
    }

    fn open_confined(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let mut tries = 0;
        loop {
            match fs::openat2(self, path, flags, Mode::empty(), CONFINED) {
                Err(Errno::INTR) => {}
                // A rename elsewhere made the confined walk uncertain; openat2(2) says: try again. Or somebody has
                // a write lease on the file, and is in no hurry.
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Metadata of one name here; a symbolic link's own, never its target's.
    pub fn stat(&self, name: &[u8]) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        Ok(fs::statx(self, name, flags, BASIC)?.into())
    }

    /// Metadata of this directory.
    pub fn stat_self(&self) -> Result<Stat> {
        Ok(fs::statx(self, c"", AtFlags::EMPTY_PATH, BASIC)?.into())
    }

    /// The target of a symbolic link here.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        Ok(fs::readlinkat(self, name, Vec::new())?.into_bytes())
    }

    /// The whole content of a regular file beneath this one, refused (`EFBIG`) beyond `limit` bytes.
    pub fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>> {
        self.open_file(path)?.read_all(limit)
    }

    /// File system statistics: (bytes in all, bytes free to root, type number of `statfs(2)`).
    pub fn space(&self) -> Result<(u64, u64, i64)> {
        let statfs = fs::fstatfs(self)?;
        let unit = statfs.f_frsize as u64;
        Ok((statfs.f_blocks * unit, statfs.f_bfree * unit, statfs.f_type))
    }
}

/// Splits a long path at the last slash that leaves a piece the kernel takes.
fn split_path(path: &[u8]) -> Result<(&[u8], &[u8])> {
    let cut = path[..PIECE].iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
    Ok((&path[..cut], &path[cut + 1..]))
}

impl File {
    /// A name of the open file, whatever became of those that it had, for calls that take no descriptor.
    pub(crate) fn name_in_proc(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Metadata of the open file.
    pub fn stat(&self) -> Result<Stat> {
        Ok(fs::statx(self, c"", AtFlags::EMPTY_PATH, BASIC)?.into())
    }

    /// The same file, opened once more and only for reading; closes this.
    pub fn reopen_to_read(self) -> Result<Self> {
        Ok(Self(fs::open(self.name_in_proc(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// The same file, opened once more to be read from the disk and not from memory (`O_DIRECT`): into aligned
    /// buffers, from aligned positions. `EINVAL` where the file system can't.
    pub fn reopen_direct(&self) -> Result<Self> {
        let path = self.name_in_proc();
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        Ok(Self(open_quietly(|flags| fs::open(&path, flags, Mode::empty()), flags)?))
    }

    /// Reads at a position until `buffer` is full or the file ends; returns the bytes read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(done)
    }

    /// The whole content, refused (`EFBIG`) beyond `limit` bytes; bounded even if the file grows meanwhile.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>> {
        let size = self.stat()?.size;
        if size > limit {
            return Err(Errno::FBIG);
        }
        let mut content = vec![0; size as usize];
        let count = self.read_at(&mut content, 0)?;
        content.truncate(count);
        Ok(content)
    }

    /// Tells the kernel that the file will be read once, from start to end.
    pub fn advise_sequential(&self) {
        // Advice only: a file system that does not take it reads as before.
        fs::fadvise(self, 0, None, fs::Advice::Sequential).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink as make_symlink;

    #[test]
    fn stays_beneath_and_follows_nothing() {
        let outside = tempfile::tempdir().unwrap();
        let guest = tempfile::tempdir().unwrap();
        std::fs::File::create(outside.path().join("secret")).unwrap();
        #[allow(clippy::disallowed_methods)] // building the hostile tree is the test
        make_symlink(outside.path(), guest.path().join("way")).unwrap();
        let root = Dir::open_host(guest.path()).unwrap();
        assert_eq!(root.open_file(b"way/secret").unwrap_err(), Errno::LOOP);
        assert_eq!(root.open_dir(b"way").unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.open_dir(b"..").unwrap_err(), Errno::XDEV);
        assert_eq!(root.open_file(b"/etc/passwd").unwrap_err(), Errno::XDEV);
        assert_eq!(root.open_file(b".").unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_fifo_does_not_block() {
        let guest = tempfile::tempdir().unwrap();
        let root = Dir::open_host(guest.path()).unwrap();
        rustix::fs::mknodat(&root, "pipe", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(root.open_file(b"pipe").unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn paths_longer_than_path_max_are_walked_in_pieces() {
        let (head, tail) = split_path(&[b"aaaaaaaaa/".repeat(500), b"end".to_vec()].concat())
            .map(|(head, tail)| (head.len(), tail.len()))
            .unwrap();
        assert_eq!(head + tail + 1, 5003);
        assert!(head <= PIECE);
        assert_eq!(split_path(&[b'x'; 5000]).unwrap_err(), Errno::NAMETOOLONG);
    }
}
