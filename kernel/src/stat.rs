//! What the kernel says about an inode.

use rustix::fs::{Statx, StatxFlags};

/// The fields a plain `stat` has; `STATX_BTIME` and the mount id are not asked for.
pub(crate) const BASIC: StatxFlags = StatxFlags::BASIC_STATS;

/// A point in time as inodes keep it. The derived order is chronological.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds within the second, below 10⁹.
    pub nanos: u32,
}

impl Time {
    /// Now, by the clock that inodes are stamped with (`CLOCK_REALTIME_COARSE`): never later than a
    /// stamp the kernel makes after this call.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self { seconds: now.tv_sec, nanos: now.tv_nsec as u32 }
    }

    /// Nanoseconds since the epoch, wrapping beyond the years 1678 to 2262; for comparing, not for dates.
    pub fn to_nanos(self) -> i64 {
        self.seconds.wrapping_mul(1_000_000_000).wrapping_add(i64::from(self.nanos))
    }
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names are stat(2)'s
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
    /// The directory entry did not say; `stat` will.
    Unknown,
}

impl From<rustix::fs::FileType> for Kind {
    fn from(kind: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType as T;
        match kind {
            T::RegularFile => Self::File,
            T::Directory => Self::Directory,
            T::Symlink => Self::Symlink,
            T::Fifo => Self::Fifo,
            T::Socket => Self::Socket,
            T::CharacterDevice => Self::CharDevice,
            T::BlockDevice => Self::BlockDevice,
            T::Unknown => Self::Unknown,
        }
    }
}

/// One inode's metadata, as `statx(2)` gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub mode: u32,
    /// Type of the inode.
    pub kind: Kind,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of content or metadata; no system call can set it.
    pub ctime: Time,
    /// `STATX_ATTR_IMMUTABLE`: plain immutable.
    pub immutable: bool,
    /// `STATX_ATTR_VERITY`: content protected by fs-verity.
    pub verity: bool,
}

impl Stat {
    /// Allocated space in bytes.
    pub fn allocated(&self) -> u64 {
        self.blocks * 512
    }

    /// Whether running the file changes the user's or group's identity.
    pub fn is_setid(&self) -> bool {
        self.mode & 0o6000 != 0
    }

    /// Same inode: device and number.
    pub fn same_inode(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

impl From<Statx> for Stat {
    fn from(x: Statx) -> Self {
        const IMMUTABLE: u64 = 0x10; // STATX_ATTR_IMMUTABLE
        const VERITY: u64 = 0x0010_0000; // STATX_ATTR_VERITY
        let attributes = x.stx_attributes.bits();
        Self {
            dev: rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor),
            ino: x.stx_ino,
            mode: u32::from(x.stx_mode) & 0o7777,
            kind: rustix::fs::FileType::from_raw_mode(u32::from(x.stx_mode)).into(),
            uid: x.stx_uid,
            gid: x.stx_gid,
            nlink: x.stx_nlink,
            size: x.stx_size,
            blocks: x.stx_blocks,
            mtime: Time { seconds: x.stx_mtime.tv_sec, nanos: x.stx_mtime.tv_nsec },
            ctime: Time { seconds: x.stx_ctime.tv_sec, nanos: x.stx_ctime.tv_nsec },
            immutable: attributes & IMMUTABLE != 0,
            verity: attributes & VERITY != 0,
        }
    }
}
