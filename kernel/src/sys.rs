//! The only unsafe code of the project: system calls that rustix does not wrap.
#![allow(unsafe_code)] // this module is the edge; each block states why it is sound

use std::os::fd::{AsFd, AsRawFd};

use crate::{Errno, LockMode, Result};

// linux/fs.h, linux/fsverity.h: numbers and layouts are kernel ABI.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
const FIDEDUPERANGE: libc::c_ulong = 0xC018_9436;
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
const FS_IOC_MEASURE_VERITY: libc::c_ulong = 0xC004_6686;
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;
const SHUTDOWN_NOLOGFLUSH: u32 = 2;

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Runs an ioctl whose argument is a structure that the kernel reads and writes.
fn ioctl<T>(fd: &impl AsFd, request: libc::c_ulong, argument: &mut T) -> Result<libc::c_int> {
    // SAFETY: every caller pairs `request` with the `repr(C)` type the kernel defines for it, and the
    // reference outlives the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// `F_SETLEASE` with `F_RDLCK`. Closing the file gives the lease back.
pub(crate) fn take_read_lease(fd: &impl AsFd) -> Result<()> {
    // SAFETY: F_SETLEASE takes an int; the descriptor is open.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }).map(drop)
}

/// Whether a read lease taken before has not been broken.
pub(crate) fn has_read_lease(fd: &impl AsFd) -> bool {
    // SAFETY: F_GETLEASE takes no argument; the descriptor is open.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// A broken lease is announced by SIGIO, whose default action would end the process.
pub(crate) fn ignore_sigio() {
    // SAFETY: SIG_IGN installs no handler that could run.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// Raises the limit of open files as far as this process may.
pub(crate) fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let raised = now.maximum.map(|maximum| maximum.max(WANTED_FILES));
    let privileged = setrlimit(Resource::Nofile, Rlimit { current: raised, maximum: raised });
    if privileged.is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).ok();
    }
}

/// Makes the table of open files as large as it is likely to become. A table that is too small grows by doubling,
/// and once there are threads, each time waits until every processor has been elsewhere (RCU).
pub(crate) fn grow_open_file_table() {
    use rustix::fs::{Mode, OFlags, open};
    let last = open_file_limit().min(LIKELY_FILES).saturating_sub(1) as i32;
    let file = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    drop(file.map(|file| rustix::io::fcntl_dupfd_cloexec(file, last)));
}

/// Open files that a full batch could do with; below the kernel's own `fs.nr_open` of 1,048,576.
const WANTED_FILES: u64 = 128 * 1024;

/// Open files of a batch of the usual size, and its directories; a quarter of a mebibyte of table.
const LIKELY_FILES: u64 = 32 * 1024;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes device nodes, setuid bits and programs of a detached mount ineffective (`mount_setattr(2)`).
pub(crate) fn defuse_mount(fd: &impl AsFd) -> Result<()> {
    const NOSUID_NODEV_NOEXEC: u64 = 0x2 | 0x4 | 0x8; // MOUNT_ATTR_NOSUID, NODEV, NOEXEC
    let attr = MountAttr { set: NOSUID_NODEV_NOEXEC, clear: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the kernel reads the structure, whose size is passed, and the empty path; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// How many files this process may have open.
pub(crate) fn open_file_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Open-file-description lock over a whole file. `Ok(false)`: somebody else holds it.
pub(crate) fn ofd_lock(fd: &impl AsFd, mode: LockMode) -> Result<bool> {
    let kind = match mode {
        LockMode::Exclusive => libc::F_WRLCK,
        LockMode::Shared => libc::F_RDLCK,
    };
    match set_ofd_lock(fd, kind) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(other) => Err(other),
    }
}

pub(crate) fn ofd_unlock(fd: &impl AsFd) -> Result<()> {
    set_ofd_lock(fd, libc::F_UNLCK)
}

/// Of a whole file.
fn set_ofd_lock(fd: &impl AsFd, kind: libc::c_int) -> Result<()> {
    let (l_type, l_whence) = (kind as _, libc::SEEK_SET as _);
    let mut lock = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: F_OFD_SETLK takes a `struct flock` with l_pid 0.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }).map(drop)
}

/// One extent as `FS_IOC_FIEMAP` gives it (linux/fiemap.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct FiemapExtent {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

impl FiemapExtent {
    /// Whether `physical` says where the bytes are: not while they wait in memory for a place
    /// (`UNKNOWN`, `DELALLOC`), nor if they are kept in metadata (`NOT_ALIGNED`, `DATA_INLINE`).
    pub(crate) fn is_placed(&self) -> bool {
        self.flags & (0x2 | 0x4 | 0x100 | 0x200) == 0
    }

    /// `LAST`: no extent follows.
    pub(crate) fn is_last(&self) -> bool {
        self.flags & 0x1 != 0
    }
}

#[repr(C)]
struct Fiemap<const N: usize> {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; N],
}

/// The first extents of a file that touch a range, `N` at most. `sync` gives bytes that are only
/// in memory their place first.
fn fiemap<const N: usize>(fd: &impl AsFd, start: u64, length: u64, sync: bool) -> Result<Fiemap<N>> {
    let extents = [FiemapExtent::default(); N];
    let flags = u32::from(sync); // FIEMAP_FLAG_SYNC is 1
    let mut map =
        Fiemap { start, length, flags, mapped_extents: 0, extent_count: N as u32, reserved: 0, extents };
    ioctl(fd, FS_IOC_FIEMAP, &mut map)?;
    Ok(map)
}

/// The first extent of a file: (physical byte offset, length), or none for a file without blocks.
pub(crate) fn first_extent(fd: &impl AsFd) -> Result<Option<(u64, u64)>> {
    let map = fiemap::<1>(fd, 0, u64::MAX, false)?;
    Ok((map.mapped_extents > 0).then_some((map.extents[0].physical, map.extents[0].length)))
}

/// Some extents of a file from an offset on, in order; none if nothing is allocated there. Bytes that are
/// only in memory get their place first.
pub(crate) fn extents(fd: &impl AsFd, start: u64, length: u64) -> Result<Vec<FiemapExtent>> {
    let map = fiemap::<64>(fd, start, length, true)?;
    Ok(map.extents[..(map.mapped_extents as usize).min(map.extents.len())].to_vec())
}

#[repr(C)]
struct DedupeOne {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// `FIDEDUPERANGE` of one range: the kernel compares the bytes and shares the extents if they are equal.
/// Returns the bytes shared, 0 when the contents differ.
pub(crate) fn dedupe(src: &impl AsFd, dst: &impl AsFd, offset: u64, length: u64) -> Result<u64> {
    let mut range = DedupeOne {
        src_offset: offset,
        src_length: length,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: i64::from(dst.as_fd().as_raw_fd()),
        dest_offset: offset,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    ioctl(src, FIDEDUPERANGE, &mut range)?;
    match range.status {
        0 => Ok(range.bytes_deduped),
        status if status > 0 => Ok(0), // FILE_DEDUPE_RANGE_DIFFERS
        status => Err(Errno::from_raw_os_error(-status)),
    }
}

#[repr(C)]
#[derive(Default)]
struct VerityEnable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// Makes a file's content unwritable for ever (fs-verity, SHA-256). Blocks of the hash tree may not be larger
/// than the file system's (`EINVAL`); before Linux 6.3 both must be 4 KiB.
pub(crate) fn enable_verity(fd: &impl AsFd) -> Result<()> {
    let block_size = u32::try_from(rustix::fs::fstatfs(fd)?.f_bsize).map_or(4096, |size| size.min(4096));
    let mut how = VerityEnable { version: 1, hash_algorithm: 1, block_size, ..VerityEnable::default() };
    ioctl(fd, FS_IOC_ENABLE_VERITY, &mut how).map(drop)
}

#[repr(C)]
struct VerityDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// Whether a file has fs-verity; the errno tells "not this file" (`ENODATA`) from "not this file
/// system" (`EOPNOTSUPP`) and "not this kernel" (`ENOTTY`).
pub(crate) fn measure_verity(fd: &impl AsFd) -> Result<()> {
    let mut digest = VerityDigest { algorithm: 0, size: 64, digest: [0; 64] };
    ioctl(fd, FS_IOC_MEASURE_VERITY, &mut digest).map(drop)
}

/// `FS_IOC_SHUTDOWN` with `NOLOGFLUSH`.
pub(crate) fn shutdown_without_log_flush(fd: &impl AsFd) -> Result<()> {
    let mut how = SHUTDOWN_NOLOGFLUSH;
    ioctl(fd, FS_IOC_SHUTDOWN, &mut how).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// The project that a file's space is charged to, 0 for none.
pub(crate) fn project(fd: &impl AsFd) -> Result<u32> {
    let mut attributes = Fsxattr::default();
    ioctl(fd, FS_IOC_FSGETXATTR, &mut attributes)?;
    Ok(attributes.projid)
}

/// The patched kernel's call to change the context.
pub(crate) fn new_s_context(number: i64, context: i32, remove: u64, flags: u32) -> Result<()> {
    // SAFETY: the kernel gets numbers, never an address.
    let result = unsafe { libc::syscall(number as libc::c_long, context, remove, flags) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The patched kernel's call to confine the caller to addresses, which are big-endian.
pub(crate) fn set_ipv4root(number: i64, addresses: &[u32], broadcast: u32) -> Result<()> {
    // SAFETY: the kernel reads as many numbers as the slice has, and the slice outlives the call.
    let result = unsafe {
        libc::syscall(number as libc::c_long, addresses.as_ptr(), addresses.len() as u32, broadcast)
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
