//! Descriptors, mappings and requests from before the seal.

use std::os::fd::{AsRawFd, OwnedFd};

use fixtures::loopfs::FsKind;
use io_uring::{opcode, squeue, types};
use kernel::Errno;
use libc::{MAP_SHARED, O_DIRECT, O_RDWR, PROT_READ, PROT_WRITE};

use crate::bytes;
use crate::case::{Case, Law, Ready, Res};
use crate::laws::numbers;
use crate::laws::open::{overlay, with_loop, write_at};
use crate::raw::{self, Mapping, Ring, at, call, num};

const EXT4: &[FsKind] = &[FsKind::Ext4];
const XFS: &[FsKind] = &[FsKind::Xfs];
const BTRFS: &[FsKind] = &[FsKind::Btrfs];
const REFLINK: &[FsKind] = &[FsKind::Xfs, FsKind::Btrfs];
static PAGE: [u8; 4096] = [7; 4096];

pub(crate) const LAWS: &[Law] = &[
    Law::prior("write", |c| with_prior(c, libc::SYS_write, &[at(&PAGE), 4096])),
    Law::prior("pwrite", |c| with_prior(c, libc::SYS_pwrite64, &[at(&PAGE), 4096, 0])),
    Law::prior("writev", |c| with_prior(c, libc::SYS_writev, &[at(&[at(&PAGE), 4096]), 1])),
    Law::prior("pwritev", |c| with_prior(c, libc::SYS_pwritev, &[at(&[at(&PAGE), 4096]), 1, 0, 0])),
    Law::prior("pwritev2(RWF_APPEND)", |c| {
        with_prior(c, libc::SYS_pwritev2, &[at(&[at(&PAGE), 4096]), 1, 0, 0, libc::RWF_APPEND as usize])
    }),
    Law::prior("a direct write", |c| {
        let fd = c.open(O_RDWR | O_DIRECT).ready()?;
        c.seal()?;
        let page = Mapping::low().ready()?;
        Ok(call(libc::SYS_pwrite64, &[num(&fd), page.address(), 4096, 0]).map(drop)?)
    }),
    Law::prior("a write by another process", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let (mut go, mut told) = std::io::pipe().ready()?;
        let other = raw::fork(|| {
            std::io::Read::read_exact(&mut go, &mut [0]).ok();
            write_at(&fd).err().map_or(0, Errno::raw_os_error)
        });
        drop(fd);
        let sealed = c.seal();
        std::io::Write::write_all(&mut told, b"x").ready()?;
        let status = libc::WEXITSTATUS(raw::wait(other));
        sealed?;
        if status == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(status).into()) }
    }),
    Law::prior("ftruncate", |c| with_prior(c, libc::SYS_ftruncate, &[1])),
    Law::prior("fallocate", |c| allocate(c, 0)),
    Law::prior("fallocate, size kept", |c| allocate(c, 1)),
    Law::prior("fallocate, a hole punched", |c| allocate(c, 3)),
    Law::prior("fallocate, a range collapsed", |c| allocate(c, 8)),
    Law::prior("fallocate, a range zeroed", |c| allocate(c, 16)),
    Law::prior("fallocate, a range inserted", |c| allocate(c, 32)),
    Law::prior("fallocate, a range unshared", |c| allocate(c, 64)).only(REFLINK),
    Law::prior("copy_file_range into it", |c| {
        let (fd, source) = (c.prior()?, source(c)?);
        Ok(call(libc::SYS_copy_file_range, &[num(&source), 0, num(&fd), 0, 4096, 0]).map(drop)?)
    }),
    Law::prior("sendfile into it", |c| {
        let (fd, source) = (c.prior()?, source(c)?);
        Ok(call(libc::SYS_sendfile, &[num(&fd), num(&source), 0, 4096]).map(drop)?)
    }),
    Law::prior("splice into it", |c| {
        let fd = c.prior()?;
        let (read, mut write) = std::io::pipe().ready()?;
        std::io::Write::write_all(&mut write, &PAGE[..100]).ready()?;
        Ok(call(libc::SYS_splice, &[num(&read), 0, num(&fd), 0, 100, 0]).map(drop)?)
    }),
    Law::prior("FICLONE into it", |c| {
        let (fd, source) = (c.prior()?, source(c)?);
        Ok(raw::ioctl_value(&fd, numbers::FICLONE, num(&source)).map(drop)?)
    })
    .only(REFLINK),
    Law::prior("FICLONERANGE into it", |c| {
        let (fd, source) = (c.prior()?, source(c)?);
        let mut range = bytes![num(&source) as u64, 0u64, 4096u64, 0u64];
        Ok(raw::ioctl(&fd, numbers::FICLONERANGE, &mut range).map(drop)?)
    })
    .only(REFLINK),
    Law::prior("FIDEDUPERANGE into it", |c| {
        let fd = c.prior()?;
        super::content::dedupe(c, &fd)
    })
    .only(REFLINK),
    Law::prior("a shared mapping, written to", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let map = Mapping::of(&fd, PROT_READ | PROT_WRITE, MAP_SHARED).ready()?;
        drop(fd);
        c.seal()?;
        map.write(0, &PAGE[..9]);
        Ok(map.sync()?)
    }),
    Law::prior("a shared mapping that was dirty already", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let map = Mapping::of(&fd, PROT_READ | PROT_WRITE, MAP_SHARED).ready()?;
        let then = std::fs::metadata(c.victim()).and_then(|stat| stat.modified()).ready()?;
        map.write(0, &[map.read(0)]);
        let file = std::fs::File::from(fd);
        file.set_modified(then).ready()?;
        drop(file);
        c.seal()?;
        map.write(0, &PAGE[..9]);
        Ok(map.sync()?)
    }),
    Law::prior("a mapping for reading, made writable by mprotect", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let map = Mapping::of(&fd, PROT_READ, MAP_SHARED).ready()?;
        drop(fd);
        c.seal()?;
        map.protect(PROT_READ | PROT_WRITE)?;
        map.write(0, &PAGE[..9]);
        Ok(map.sync()?)
    }),
    Law::prior("a new mapping of a writable descriptor", |c| {
        let fd = c.prior()?;
        let map = Mapping::of(&fd, PROT_READ | PROT_WRITE, MAP_SHARED)?;
        map.write(0, &PAGE[..9]);
        Ok(map.sync()?)
    }),
    Law::prior("madvise(MADV_REMOVE) of a mapping", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let map = Mapping::of(&fd, PROT_READ | PROT_WRITE, MAP_SHARED).ready()?;
        drop(fd);
        c.seal()?;
        Ok(map.advise(libc::MADV_REMOVE)?)
    }),
    Law::prior("/proc/self/mem of a mapping", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let map = Mapping::of(&fd, PROT_READ | PROT_WRITE, MAP_SHARED).ready()?;
        drop(fd);
        c.seal()?;
        let memory = raw::open("/proc/self/mem", O_RDWR).ready()?;
        call(libc::SYS_pwrite64, &[num(&memory), at(&PAGE), 9, map.address()])?;
        Ok(map.sync()?)
    }),
    Law::prior("io_uring write", |c| {
        let fd = c.prior()?;
        Ok(Ring::new().ready()?.one(write_entry(&fd)).map(drop)?)
    }),
    Law::prior("io_uring write to a registered file", |c| {
        let fd = c.open(O_RDWR).ready()?;
        let mut ring = Ring::new().ready()?;
        ring.register(&[fd.as_raw_fd()]).ready()?;
        drop(fd);
        c.seal()?;
        Ok(ring.one(write_registered()).map(drop)?)
    }),
    Law::prior("io_uring write that was already queued", queued),
    Law::prior("io_uring fallocate", |c| {
        let fd = c.prior()?;
        let entry = opcode::Fallocate::new(types::Fd(fd.as_raw_fd()), 1 << 20).build();
        Ok(Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::prior("io_uring ftruncate", |c| {
        let fd = c.prior()?;
        let entry = opcode::Ftruncate::new(types::Fd(fd.as_raw_fd()), 1).build();
        Ok(Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::prior("AIO write", |c| {
        let fd = c.prior()?;
        aio_write(&fd)
    }),
    Law::prior("a loop device over it", |c| {
        let backing = c.open(O_RDWR).ready()?;
        with_loop(&backing, |device| {
            c.seal()?;
            Ok(write_at(device)?)
        })
    }),
    Law::prior("an active swap file", |c| {
        let path = raw::text(c.victim());
        call(libc::SYS_swapon, &[at(path.as_bytes_with_nul()), 0]).ready()?;
        let sealed = c.seal();
        c.unseal(); // or it could never be switched off
        call(libc::SYS_swapoff, &[at(path.as_bytes_with_nul())]).ready()?;
        sealed
    })
    .prepared(super::open::make_swap),
    Law::prior("a writer through an overlay", |c| {
        overlay(c)?;
        let fd = raw::open(c.path("merged/victim"), O_RDWR).ready()?;
        c.seal()?;
        Ok(write_at(&fd)?)
    })
    .prepared(|c| {
        std::fs::create_dir(c.path("upper")).ready()?;
        std::fs::hard_link(c.victim(), c.path("upper/victim")).ready()
    }),
    Law::prior("process accounting into it", |c| {
        let path = raw::text(c.victim());
        call(libc::SYS_acct, &[at(path.as_bytes_with_nul())]).ready()?;
        let sealed = c.seal();
        raw::wait(raw::fork(|| 0));
        call(libc::SYS_acct, &[0]).ready()?;
        sealed
    }),
    Law::prior("EXT4_IOC_MOVE_EXT from it", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        move_extents(&fd, &other)
    })
    .only(EXT4)
    .broad(),
    Law::prior("EXT4_IOC_MOVE_EXT into it", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        move_extents(&other, &fd)
    })
    .only(EXT4)
    .broad(),
    Law::prior("EXT4_IOC_SWAP_BOOT", |c| {
        let fd = c.prior()?;
        Ok(raw::ioctl_value(&fd, numbers::EXT4_SWAP_BOOT, 0).map(drop)?)
    })
    .only(EXT4)
    .prepared(|c| {
        // Only a file with one name and no attributes may be swapped; it is watched through itself.
        std::fs::remove_file(c.path("keep")).ready()?;
        std::fs::rename(c.victim(), c.path("keep")).ready()?;
        std::os::unix::fs::symlink("keep", c.victim()).ready()
    }),
    Law::prior("XFS_IOC_SWAPEXT", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        swap_extents(&fd, &other)
    })
    .only(XFS)
    .broad(),
    Law::prior("XFS_IOC_EXCHANGE_RANGE", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        let mut request = bytes![num(&other) as u64, 0u64, 0u64, 4096u64, 0u64];
        Ok(raw::ioctl(&fd, numbers::XFS_EXCHANGE_RANGE, &mut request).map(drop)?)
    })
    .only(XFS)
    .broad(),
    Law::prior("XFS_IOC_COMMIT_RANGE", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        commit_range(&other, &fd)
    })
    .only(XFS)
    .broad(),
    Law::prior("XFS_IOC_COMMIT_RANGE into another file", |c| {
        let (fd, other) = (c.prior()?, source(c)?);
        commit_range(&fd, &other)
    })
    .only(XFS)
    .broad(),
    Law::prior("XFS_IOC_ALLOCSP64", |c| xfs_space(c, numbers::XFS_ALLOCSP)).only(XFS),
    Law::prior("XFS_IOC_RESVSP64", |c| xfs_space(c, numbers::XFS_RESVSP)).only(XFS),
    Law::prior("XFS_IOC_UNRESVSP64", |c| xfs_space(c, numbers::XFS_UNRESVSP)).only(XFS),
    Law::prior("XFS_IOC_ZERO_RANGE", |c| xfs_space(c, numbers::XFS_ZERO_RANGE)).only(XFS),
    Law::prior("BTRFS_IOC_ENCODED_WRITE", |c| {
        let fd = c.prior()?;
        let vector = [at(&PAGE), 512];
        let mut request = bytes![at(&vector) as u64, 1u64, 0u64, 0u64, 4096u64, 4096u64, 0u64, 1u32, 0u32];
        request.resize(128, 0);
        Ok(raw::ioctl(&fd, numbers::BTRFS_ENCODED_WRITE, &mut request).map(drop)?)
    })
    .only(BTRFS),
];

fn source(c: &Case) -> Res<OwnedFd> {
    let path = c.path("source");
    std::fs::write(&path, vec![9u8; 65536]).ready()?;
    let fd = raw::open(path, O_RDWR).ready()?;
    call(libc::SYS_fsync, &[num(&fd)]).ready()?;
    Ok(fd)
}

/// Exchanges the beginnings of two files, if `second` is as it was.
fn commit_range(first: &OwnedFd, second: &OwnedFd) -> Res {
    let mut request =
        bytes![num(first) as u64, 0u64, 0u64, 4096u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64];
    raw::ioctl(second, numbers::XFS_START_COMMIT, &mut request)?;
    Ok(raw::ioctl(second, numbers::XFS_COMMIT_RANGE, &mut request).map(drop)?)
}

fn with_prior(c: &Case, number: i64, rest: &[usize]) -> Res {
    let fd = c.prior()?;
    let all: Vec<_> = [num(&fd)].into_iter().chain(rest.iter().copied()).collect();
    Ok(call(number, &all).map(drop)?)
}

fn allocate(c: &Case, mode: usize) -> Res {
    let fd = c.open(O_RDWR).ready()?;
    call(libc::SYS_fsync, &[num(&fd)]).ready()?;
    c.seal()?;
    // Large enough to be past the end where that is what the mode extends.
    let length = if mode <= 1 { 1 << 20 } else { 4096 };
    Ok(call(libc::SYS_fallocate, &[num(&fd), mode, 0, length]).map(drop)?)
}

/// A write of the first page to a plain descriptor.
fn write_entry(fd: &OwnedFd) -> squeue::Entry {
    opcode::Write::new(types::Fd(fd.as_raw_fd()), PAGE.as_ptr(), 4096).build()
}

/// The same to the first registered file.
fn write_registered() -> squeue::Entry {
    opcode::Write::new(types::Fixed(0), PAGE.as_ptr(), 4096).build()
}

/// The request waits in the kernel for a pipe to be filled; its file is held by the ring.
fn queued(c: &Case) -> Res {
    let fd = c.open(O_RDWR).ready()?;
    let (read, mut write) = std::io::pipe().ready()?;
    let mut ring = Ring::new().ready()?;
    ring.register(&[fd.as_raw_fd()]).ready()?;
    drop(fd);
    let mut byte = [0u8; 1];
    let first = opcode::Read::new(types::Fd(read.as_raw_fd()), byte.as_mut_ptr(), 1).build();
    let then = write_registered().user_data(1);
    ring.submit(&[first.flags(squeue::Flags::IO_LINK), then]).ready()?;
    let sealed = c.seal();
    std::io::Write::write_all(&mut write, b"x").ready()?;
    let written = ring.wait();
    sealed?;
    Ok(written.map(drop)?)
}

/// `io_setup`, one `IOCB_CMD_PWRITE`, `io_getevents`.
fn aio_write(fd: &OwnedFd) -> Res {
    let mut context = 0usize;
    call(libc::SYS_io_setup, &[1, raw::into(&mut context)]).ready()?;
    let request = bytes![0u64, 0u64, 1u16, 0u16, num(fd) as u32, at(&PAGE) as u64, 4096u64, 0u64, 0u64, 0u64];
    let list = [at(&request[..])];
    call(libc::SYS_io_submit, &[context, 1, at(&list)])?;
    let mut event = [0u64; 4];
    call(libc::SYS_io_getevents, &[context, 1, 1, raw::into(&mut event), 0]).ready()?;
    Ok(raw::check_negated(event[2] as i32).map(drop)?)
}

fn move_extents(from: &OwnedFd, donor: &OwnedFd) -> Res {
    let mut request = bytes![0u32, num(donor) as u32, 0u64, 0u64, 1u64, 0u64];
    Ok(raw::ioctl(from, numbers::EXT4_MOVE_EXT, &mut request).map(drop)?)
}

/// `struct xfs_swapext` carries the inode as the caller knows it, so that a changed one is left alone.
fn swap_extents(target: &OwnedFd, other: &OwnedFd) -> Res {
    use std::os::unix::fs::MetadataExt;
    let path = format!("/proc/self/fd/{}", target.as_raw_fd());
    let stat = std::fs::metadata(path).ready()?;
    let size = stat.size();
    call(libc::SYS_ftruncate, &[num(other), size as usize]).ready()?;
    let (mut inode, mut known, mut count) = (stat.ino(), [0u8; 136], 0u32);
    let mut ask = bytes![
        raw::into(&mut inode) as u64,
        1u64,
        raw::into(&mut known) as u64,
        raw::into(&mut count) as u64
    ];
    raw::ioctl(target, numbers::XFS_BULKSTAT_SINGLE, &mut ask).ready()?;
    let mut request = bytes![0u64, num(target) as u64, num(other) as u64, 0u64, size, 0u64, 0u64];
    request.extend(known);
    Ok(raw::ioctl(target, numbers::XFS_SWAPEXT, &mut request).map(drop)?)
}

/// `struct xfs_flock64` for the first page.
fn xfs_space(c: &Case, request: u32) -> Res {
    let fd = c.prior()?;
    let length = if request == numbers::XFS_RESVSP { 1u64 << 20 } else { 4096 };
    let mut range = bytes![0u64, 0u64, length, 0u64, 0u64, 0u64];
    Ok(raw::ioctl(&fd, request, &mut range).map(drop)?)
}
