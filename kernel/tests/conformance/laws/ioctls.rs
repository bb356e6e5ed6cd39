//! Ioctls on a descriptor that is only for reading, as guests have without any right.
//!
//! Where the administrator may lift a seal, the calls are made without `CAP_LINUX_IMMUTABLE`.

use fixtures::loopfs::FsKind;

use crate::bytes;
use crate::case::{Case, Law, Ready, Res};
use crate::laws::numbers::{self, FSGETXATTR, FSSETXATTR, GETFLAGS, SETFLAGS};
use crate::laws::tag::drop_capability;
use crate::raw::{self, at, text};

const EXT4: &[FsKind] = &[FsKind::Ext4];
const XFS: &[FsKind] = &[FsKind::Xfs];
const BTRFS: &[FsKind] = &[FsKind::Btrfs];

pub(crate) const LAWS: &[Law] = &[
    Law::denied("FS_IOC_SETFLAGS adds a flag", |c| set_flags(c, |now| now | numbers::NODUMP)),
    Law::denied("FS_IOC_SETFLAGS, 32-bit", |c| {
        drop_capability()?;
        let fd = c.reader()?;
        let now = flags(&fd)?;
        compat_ioctl(&fd, numbers::SETFLAGS_32, &bytes![now | numbers::NODUMP])
    }),
    Law::denied("FS_IOC_FSSETXATTR of the project", |c| set_xattr(c, 12, |now| now + 1)),
    Law::denied("FS_IOC_FSSETXATTR of a flag", |c| set_xattr(c, 0, |now| now | 0x80)), // FS_XFLAG_NODUMP
    Law::denied("FS_IOC_FSSETXATTR of the extent size", |c| {
        drop_capability()?;
        let fd = c.reader()?;
        let mut xattr = vec![0; 28];
        raw::ioctl(&fd, FSGETXATTR, &mut xattr).ready()?;
        let now = u32::from_le_bytes(xattr[..4].try_into().expect("four bytes"));
        xattr[..4].copy_from_slice(&bytes![now | 0x0001_0000]); // FS_XFLAG_COWEXTSIZE
        xattr[16..20].copy_from_slice(&bytes![65536u32]);
        Ok(raw::ioctl(&fd, FSSETXATTR, &mut xattr).map(drop)?)
    })
    .only(XFS),
    Law::denied("FS_IOC_FSSETXATTR, 32-bit", |c| {
        drop_capability()?;
        let fd = c.reader()?;
        let mut xattr = vec![0; 28];
        raw::ioctl(&fd, FSGETXATTR, &mut xattr).ready()?;
        xattr[0] |= 0x80;
        compat_ioctl(&fd, FSSETXATTR, &xattr)
    }),
    Law::denied("file_setattr", |c| {
        drop_capability()?;
        let path = text(c.victim());
        let attributes = bytes![0x80u64, 0u32, 0u32, 0u32, 0u32];
        let arguments = [raw::HERE, at(path.as_bytes_with_nul()), at(&attributes[..]), attributes.len(), 0];
        Ok(raw::call(numbers::SYS_FILE_SETATTR, &arguments).map(drop)?)
    }),
    Law::denied("FS_IOC_SETVERSION", |c| set_version(c, numbers::SETVERSION)).only(EXT4),
    Law::denied("EXT4_IOC_SETVERSION", |c| set_version(c, numbers::EXT4_SETVERSION)).only(EXT4),
    Law::denied("FS_IOC_SETVERSION, 32-bit", |c| {
        let fd = c.reader()?;
        compat_ioctl(&fd, numbers::SETVERSION_32, &bytes![7u32])
    })
    .only(EXT4),
    Law::denied("EXT4_IOC_MIGRATE", |c| {
        let fd = c.reader()?;
        Ok(raw::ioctl_value(&fd, numbers::EXT4_MIGRATE, 0).map(drop)?)
    })
    .only(EXT4)
    .prepared(|c| {
        let fd = c.reader()?;
        let mut without = bytes![u64::from(flags(&fd)? & !numbers::EXTENTS)];
        raw::ioctl(&fd, SETFLAGS, &mut without).map(drop).ready()
    }),
    Law::denied("XFS_IOC_ATTRMULTI_BY_HANDLE sets", |c| attribute_by_handle(c, 2)).only(XFS).broad(),
    Law::denied("XFS_IOC_ATTRMULTI_BY_HANDLE removes", |c| attribute_by_handle(c, 3)).only(XFS).broad(),
    Law::denied("BTRFS_IOC_DEFRAG", |c| {
        let fd = c.reader()?;
        Ok(raw::ioctl_value(&fd, numbers::BTRFS_DEFRAG, 0).map(drop)?)
    })
    .only(BTRFS),
    Law::denied("BTRFS_IOC_DEFRAG_RANGE that compresses", |c| {
        let fd = c.reader()?;
        let mut range = bytes![0u64, u64::MAX, 3u64, 0u32, 1u32, 0u64, 0u64];
        Ok(raw::ioctl(&fd, numbers::BTRFS_DEFRAG_RANGE, &mut range).map(drop)?)
    })
    .only(BTRFS),
];

/// The inode's flags, as `chattr` knows them.
pub(crate) fn flags(fd: &impl std::os::fd::AsRawFd) -> Res<u32> {
    let mut now = [0u8; 8];
    raw::ioctl(fd, GETFLAGS, &mut now).ready()?;
    Ok(u32::from_le_bytes(now[..4].try_into().expect("four bytes")))
}

fn set_flags(c: &Case, change: fn(u32) -> u32) -> Res {
    drop_capability()?;
    let fd = c.reader()?;
    let mut wanted = bytes![u64::from(change(flags(&fd)?))];
    Ok(raw::ioctl(&fd, SETFLAGS, &mut wanted).map(drop)?)
}

/// Changes the word at `offset` of `struct fsxattr`.
pub(crate) fn set_xattr(c: &Case, offset: usize, change: fn(u32) -> u32) -> Res {
    drop_capability()?;
    let fd = c.reader()?;
    let mut xattr = vec![0; 28];
    raw::ioctl(&fd, FSGETXATTR, &mut xattr).ready()?;
    let field = offset..offset + 4;
    let now = u32::from_le_bytes(xattr[field.clone()].try_into().expect("four bytes"));
    xattr[field].copy_from_slice(&bytes![change(now)]);
    Ok(raw::ioctl(&fd, FSSETXATTR, &mut xattr).map(drop)?)
}

/// The same by the 32-bit entry.
pub(crate) fn compat_ioctl(fd: &impl std::os::fd::AsRawFd, request: u32, argument: &[u8]) -> Res {
    let low = raw::Mapping::low().ready()?;
    low.write(0, argument);
    Ok(raw::compat(54, [fd.as_raw_fd() as u32, request, low.address() as u32]).map(drop)?)
}

fn set_version(c: &Case, request: u32) -> Res {
    let fd = c.reader()?;
    Ok(raw::ioctl(&fd, request, &mut bytes![7u64]).map(drop)?)
}

/// Sets or removes an attribute through any file of the file system: here its root.
fn attribute_by_handle(c: &Case, operation: u32) -> Res {
    let (mut request, _handle) = super::open::xfs_handle(c)?;
    let (name, value) = (c"kept", b"2");
    let operations = bytes![operation, 0u32, name.as_ptr() as u64, at(value) as u64, 1u32, 0u32];
    request.extend(bytes![1u64, at(&operations[..]) as u64]);
    let root = raw::open(&c.mount, libc::O_RDONLY).ready()?;
    raw::ioctl(&root, numbers::XFS_ATTRMULTI_BY_HANDLE, &mut request)?;
    raw::check_negated(i32::from_le_bytes(operations[4..8].try_into().expect("four bytes")))?;
    Ok(())
}
