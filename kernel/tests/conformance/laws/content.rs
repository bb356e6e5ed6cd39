//! Changing content by name, or through a descriptor that is only for reading.

use fixtures::loopfs::FsKind;
use kernel::Errno;

use crate::bytes;
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::laws::numbers;
use crate::raw::{self, at, call, num, text};

const REFLINK: &[FsKind] = &[FsKind::Xfs, FsKind::Btrfs];

pub(crate) const LAWS: &[Law] = &[
    Law::denied("truncate to nothing", |c| truncate(c, 0)),
    Law::denied("truncate to more", |c| truncate(c, 1 << 20)),
    Law::denied("truncate to its own size", |c| {
        let size = std::fs::metadata(c.victim()).ready()?.len();
        truncate(c, size as usize)
    }),
    Law::denied("32-bit truncate64", |c| {
        let low = raw::Mapping::low().ready()?;
        low.write(0, text(c.victim()).as_bytes_with_nul());
        Ok(raw::compat(193, [low.address() as u32, 1, 0]).map(drop)?)
    }),
    Law::denied("FIDEDUPERANGE into it, by root with a reader", |c| {
        let fd = c.reader()?;
        dedupe(c, &fd)
    })
    .only(REFLINK),
    Law::denied("fs-verity, enabled on it", |c| {
        let fd = c.reader()?;
        let mut request = vec![0u8; 128];
        request[..12].copy_from_slice(&bytes![1u32, 1u32, 4096u32]);
        Ok(raw::ioctl(&fd, numbers::ENABLE_VERITY, &mut request).map(drop)?)
    }),
    Law::denied("after a remount", |c| {
        remount(c)?;
        Ok(c.open(libc::O_RDWR).map(drop)?)
    }),
    Law::denied("after the caches were dropped", |c| {
        call(libc::SYS_sync, &[]).ready()?;
        std::fs::write("/proc/sys/vm/drop_caches", "3").ready()?;
        Ok(c.open(libc::O_RDWR).map(drop)?)
    }),
];

fn truncate(c: &Case, size: usize) -> Res {
    Ok(call(libc::SYS_truncate, &[at(text(c.victim()).as_bytes_with_nul()), size]).map(drop)?)
}

/// Asks the kernel to let the victim share extents of an equal file.
pub(crate) fn dedupe(c: &Case, victim: &impl std::os::fd::AsRawFd) -> Res {
    let source = raw::open(c.other("equal")?, libc::O_RDWR).ready()?;
    call(libc::SYS_fsync, &[num(&source)]).ready()?;
    call(libc::SYS_fsync, &[num(victim)]).ready()?;
    let mut request = bytes![0u64, 8192u64, 1u64, num(victim) as u64, 0u64, 0u64, 0u64];
    raw::ioctl(&source, numbers::FIDEDUPERANGE, &mut request)?;
    match i32::from_le_bytes(request[48..52].try_into().expect("four bytes")) {
        0 => Ok(()),
        errno if errno < 0 => Err(Errno::from_raw_os_error(-errno).into()),
        _ => Err(Stop::Setup("the contents differ".into())),
    }
}

pub(crate) fn remount(c: &Case) -> Res {
    let mount = text(&c.mount);
    call(libc::SYS_umount2, &[at(mount.as_bytes_with_nul()), 0]).ready()?;
    super::open::mount(&c.device, &c.mount, c.fs.name(), 0, "").ready()
}
