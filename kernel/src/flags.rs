//! What `chattr(1)` sets: inode flags and the project. An inode has them, so a link would spread them.

use rustix::fs::{IFlags, ioctl_getflags};

use crate::{Errno, File, Result, sys};

/// The flags of `chattr(1)` that somebody sets on purpose, and that of encrypted content: others can read it only as long as
/// its guest leaves the key with the kernel. Left out are those that a file system sets by
/// itself: `COMPR` and `NOCOMP` (btrfs, as it finds content to compress well or badly), extents, verity.
const SET_BY_USERS: IFlags = IFlags::UNRM
    .union(IFlags::SECURE_REMOVAL)
    .union(IFlags::SYNC)
    .union(IFlags::IMMUTABLE)
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::JOURNALING)
    .union(IFlags::NOTAIL)
    .union(IFlags::NOCOW)
    .union(IFlags::from_bits_retain(0x0000_0800)) // FS_ENCRYPT_FL
    .union(IFlags::from_bits_retain(0x0200_0000)) // FS_DAX_FL
    .union(IFlags::from_bits_retain(0x0800_0000)); // link-invert

impl File {
    /// Whether `chattr(1)` has left anything on the inode: a flag that a user sets, or a project other than
    /// 0. `false` where the file system has neither. Two calls, 1 µs or less together.
    pub fn is_marked(&self) -> Result<bool> {
        let flags = or_none(ioctl_getflags(self), IFlags::empty())?;
        Ok(flags.intersects(SET_BY_USERS) || or_none(sys::project(self), 0)? != 0)
    }

    /// Whether the file is append-only, which holds its names as immutable does.
    pub(crate) fn is_append_only(&self) -> Result<bool> {
        Ok(or_none(ioctl_getflags(self), IFlags::empty())?.contains(IFlags::APPEND))
    }
}

/// The value of a file system that does not know the call.
fn or_none<T>(answer: Result<T>, none: T) -> Result<T> {
    match answer {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(none),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::ioctl_setflags;

    use crate::{At, Dir, Fs, Real};

    #[test]
    fn a_flag_shows() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        let file = Real.create(At::new(&dir, b"file")).unwrap();
        assert!(!file.is_marked().unwrap());
        let flags = super::ioctl_getflags(&file).unwrap_or(super::IFlags::empty());
        // A file system without flags has nothing to show.
        if ioctl_setflags(&file, flags | super::IFlags::NODUMP).is_ok() {
            assert!(file.is_marked().unwrap());
        }
    }
}
