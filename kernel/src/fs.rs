//! The one door for changes to file systems under guests and stores.
#![allow(clippy::disallowed_methods)] // this is the door

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};

use crate::{Dir, Errno, File, Protection, Result, Seal, Time, Xattrs, seal, sys};

/// A name in a directory that is held open.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The directory.
    pub dir: &'a Dir,
    /// One name in it; inside the store also a short relative path of the store's own making.
    pub name: &'a [u8],
}

impl<'a> At<'a> {
    /// The name `name` in `dir`.
    pub fn new(dir: &'a Dir, name: &'a [u8]) -> Self {
        Self { dir, name }
    }
}

/// What an inode carries besides its content and type: all that a hard link makes its names share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes, sorted by name.
    pub xattrs: Xattrs,
}

/// Changes, stated as intent. Every effect of the project on a guest or a store is one of these calls.
pub trait Fs: Protection {
    /// Gives the inode at `from` another name.
    fn link(&self, from: At<'_>, to: At<'_>) -> Result<()>;
    /// Gives an open file another name, whatever has become of the one it was opened by.
    fn link_open(&self, file: &File, to: At<'_>) -> Result<()>;
    /// Swaps two names, atomically: neither is ever missing.
    fn exchange(&self, a: At<'_>, b: At<'_>) -> Result<()>;
    /// Moves a name to one that must not exist.
    fn rename_new(&self, from: At<'_>, to: At<'_>) -> Result<()>;
    /// Takes a name of a file away.
    fn unlink(&self, at: At<'_>) -> Result<()>;
    /// Makes a directory.
    fn make_dir(&self, at: At<'_>, mode: u32) -> Result<()>;
    /// Takes an empty directory away.
    fn remove_dir(&self, at: At<'_>) -> Result<()>;
    /// Makes an empty file, open for reading and writing, mode 0600, that must not exist.
    fn create(&self, at: At<'_>) -> Result<File>;
    /// Writes bytes at a position.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> Result<()>;
    /// Copies `size` bytes of content, sharing extents where the file system can; holes stay holes.
    fn copy_content(&self, from: &File, to: &File, size: u64) -> Result<()>;
    /// Sets owner, mode, attributes and times, in the order in which none undoes another.
    fn set_metadata(&self, file: &File, metadata: &Metadata) -> Result<()>;
    /// Sets a directory's modification time back to what it was before a name in it was exchanged.
    fn set_dir_mtime(&self, dir: &Dir, mtime: Time) -> Result<()>;
    /// Lets two files share the extents of their first `size` bytes, if the kernel finds them equal.
    /// Returns the bytes shared.
    fn dedupe(&self, from: &File, to: &File, size: u64) -> Result<u64>;
    /// Makes everything done so far on the file system durable (`syncfs(2)`).
    fn sync(&self, dir: &Dir) -> Result<()>;
}

/// The real door.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real;

impl Fs for Real {
    fn link(&self, from: At<'_>, to: At<'_>) -> Result<()> {
        fs::linkat(from.dir, from.name, to.dir, to.name, AtFlags::empty())
    }

    fn link_open(&self, file: &File, to: At<'_>) -> Result<()> {
        match fs::linkat(file, c"", to.dir, to.name, AtFlags::EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH the kernel answers ENOENT; /proc offers the same inode.
            Err(Errno::NOENT) => {
                fs::linkat(fs::CWD, file.name_in_proc(), to.dir, to.name, AtFlags::SYMLINK_FOLLOW)
            }
            other => other,
        }
    }

    fn exchange(&self, a: At<'_>, b: At<'_>) -> Result<()> {
        fs::renameat_with(a.dir, a.name, b.dir, b.name, RenameFlags::EXCHANGE)
    }

    fn rename_new(&self, from: At<'_>, to: At<'_>) -> Result<()> {
        fs::renameat_with(from.dir, from.name, to.dir, to.name, RenameFlags::NOREPLACE)
    }

    fn unlink(&self, at: At<'_>) -> Result<()> {
        fs::unlinkat(at.dir, at.name, AtFlags::empty())
    }

    fn make_dir(&self, at: At<'_>, mode: u32) -> Result<()> {
        fs::mkdirat(at.dir, at.name, Mode::from_raw_mode(mode))
    }

    fn remove_dir(&self, at: At<'_>) -> Result<()> {
        fs::unlinkat(at.dir, at.name, AtFlags::REMOVEDIR)
    }

    fn create(&self, at: At<'_>) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(fs::openat(at.dir, at.name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(file, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn copy_content(&self, from: &File, to: &File, size: u64) -> Result<()> {
        if fs::ioctl_ficlone(to, from).is_ok() {
            return Ok(());
        }
        fs::ftruncate(to, size)?;
        let mut at = 0;
        while let Some((start, end)) = next_data(from, at, size)? {
            copy_range(from, to, start, end)?;
            at = end;
        }
        Ok(())
    }

    fn set_metadata(&self, file: &File, metadata: &Metadata) -> Result<()> {
        // chown clears setuid, setgid and file capabilities, so it comes first; times come last.
        fs::fchown(file, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
        fs::fchmod(file, Mode::from_raw_mode(metadata.mode))?;
        for (name, value) in &metadata.xattrs {
            fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
        }
        fs::futimens(file, &with_mtime(metadata.mtime))
    }

    fn set_dir_mtime(&self, dir: &Dir, mtime: Time) -> Result<()> {
        set_mtime(dir, mtime)
    }

    fn dedupe(&self, from: &File, to: &File, size: u64) -> Result<u64> {
        // btrfs takes at most 16 MiB a call.
        const STEP: u64 = 16 << 20;
        let mut shared = 0;
        while shared < size {
            match sys::dedupe(from, to, shared, STEP.min(size - shared))? {
                0 => break,
                step => shared += step,
            }
        }
        Ok(shared)
    }

    fn sync(&self, dir: &Dir) -> Result<()> {
        fs::syncfs(dir)
    }
}

impl Protection for Real {
    fn seal(&self, file: &File, seal: Seal) -> Result<()> {
        seal::seal(file, seal)
    }

    fn unseal(&self, file: &File, seal: Seal) -> Result<()> {
        seal::unseal(file, seal)
    }
}

pub(crate) fn set_mtime(file: impl AsFd, mtime: Time) -> Result<()> {
    fs::futimens(file, &with_mtime(mtime))
}

/// An unnamed file on the file system of a directory (`O_TMPFILE`), for asking what that can do.
pub fn sample_file(dir: &std::path::Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Times for `utimensat(2)` that leave the access time alone.
fn with_mtime(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}

/// The next stretch of data at or after `at`, or none before `size`.
fn next_data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match fs::seek(file, fs::SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((at, size))), // no holes on this file system
        Err(other) => return Err(other),
    };
    let end = fs::seek(file, fs::SeekFrom::Hole(start))?;
    Ok((start < size).then_some((start, end.min(size))))
}

fn copy_range(from: &File, to: &File, mut at: u64, end: u64) -> Result<()> {
    let mut buffer = Vec::new();
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX);
        let (mut off_in, mut off_out) = (at, at);
        match fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), want) {
            Ok(0) => return Err(Errno::IO), // the source shrank: it was not sealed after all
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                buffer.resize(1 << 20, 0);
                let count = from.read_at(&mut buffer[..want.min(1 << 20)], at)?;
                if count == 0 {
                    return Err(Errno::IO);
                }
                Real.write_at(to, &buffer[..count], at)?;
                at += count as u64;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_holes_and_metadata() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        let from = Real.create(At::new(&dir, b"from")).unwrap();
        Real.write_at(&from, b"head", 0).unwrap();
        Real.write_at(&from, b"tail", 8 << 20).unwrap();
        let to = Real.create(At::new(&dir, b"to")).unwrap();
        let size = from.stat().unwrap().size;
        Real.copy_content(&from, &to, size).unwrap();
        let mtime = Time { seconds: 1_000_000_000, nanos: 123_456_789 };
        let wanted = Metadata { mode: 0o4755, xattrs: vec![], mtime, uid: 0, gid: 0 };
        let wanted = Metadata {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            ..wanted
        };
        Real.set_metadata(&to, &wanted).unwrap();
        let stat = to.stat().unwrap();
        assert_eq!((stat.size, stat.mode, stat.mtime), (size, 0o4755, mtime));
        assert!(stat.allocated() < size / 2);
        assert_eq!(from.read_all(1 << 30).unwrap(), to.read_all(1 << 30).unwrap());
    }
}
