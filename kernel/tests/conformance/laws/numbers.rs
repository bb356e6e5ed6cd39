//! Numbers of the kernel's interface (`linux/fs.h`, `linux/fsverity.h`, `linux/btrfs.h`, `linux/loop.h`,
//! and the headers of ext4 and xfs), which libc lacks.

pub(crate) const GETFLAGS: u32 = 0x8008_6601;
pub(crate) const SETFLAGS: u32 = 0x4008_6602;
pub(crate) const SETFLAGS_32: u32 = 0x4004_6602;
pub(crate) const GETVERSION: u32 = 0x8008_7601;
pub(crate) const SETVERSION: u32 = 0x4008_7602;
pub(crate) const SETVERSION_32: u32 = 0x4004_7602;
pub(crate) const FSGETXATTR: u32 = 0x801C_581F;
pub(crate) const FSSETXATTR: u32 = 0x401C_5820;
pub(crate) const ENABLE_VERITY: u32 = 0x4080_6685;
pub(crate) const FICLONE: u32 = 0x4004_9409;
pub(crate) const FICLONERANGE: u32 = 0x4020_940D;
pub(crate) const FIDEDUPERANGE: u32 = 0xC018_9436;

pub(crate) const EXT4_SETVERSION: u32 = 0x4008_6604;
pub(crate) const EXT4_MIGRATE: u32 = 0x6609;
pub(crate) const EXT4_MOVE_EXT: u32 = 0xC028_660F;
pub(crate) const EXT4_SWAP_BOOT: u32 = 0x6611;

pub(crate) const BTRFS_DEFRAG: u32 = 0x5000_9402;
pub(crate) const BTRFS_DEFRAG_RANGE: u32 = 0x4030_9410;
pub(crate) const BTRFS_ENCODED_WRITE: u32 = 0x4080_9440;

pub(crate) const XFS_ALLOCSP: u32 = 0x4030_5824;
pub(crate) const XFS_RESVSP: u32 = 0x4030_582A;
pub(crate) const XFS_UNRESVSP: u32 = 0x4030_582B;
pub(crate) const XFS_ZERO_RANGE: u32 = 0x4030_5839;
pub(crate) const XFS_BULKSTAT_SINGLE: u32 = 0xC020_5866;
pub(crate) const XFS_SWAPEXT: u32 = 0xC0C0_586D;
pub(crate) const XFS_PATH_TO_HANDLE: u32 = 0xC038_5869;
pub(crate) const XFS_OPEN_BY_HANDLE: u32 = 0xC038_586B;
pub(crate) const XFS_ATTRMULTI_BY_HANDLE: u32 = 0x4048_587B;
pub(crate) const XFS_EXCHANGE_RANGE: u32 = 0x4028_5881;
pub(crate) const XFS_START_COMMIT: u32 = 0x8058_5882;
pub(crate) const XFS_COMMIT_RANGE: u32 = 0x4058_5883;

pub(crate) const LOOP_SET_FD: u32 = 0x4C00;
pub(crate) const LOOP_CLR_FD: u32 = 0x4C01;
pub(crate) const LOOP_GET_FREE: u32 = 0x4C82;

/// Flags of GETFLAGS.
pub(crate) const SYNC: u32 = 0x8;
pub(crate) const NODUMP: u32 = 0x40;
pub(crate) const NOATIME: u32 = 0x80;
pub(crate) const EXTENTS: u32 = 0x8_0000;
pub(crate) const NOCOW: u32 = 0x80_0000;

/// Calls younger than the libc crate's tables.
pub(crate) const SYS_FCHMODAT2: i64 = 452;
pub(crate) const SYS_SETXATTRAT: i64 = 463;
pub(crate) const SYS_REMOVEXATTRAT: i64 = 466;
pub(crate) const SYS_FILE_SETATTR: i64 = 469;
