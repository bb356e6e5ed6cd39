//! Opening for writing.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use io_uring::{opcode, types};
use libc::{O_APPEND, O_CREAT, O_DIRECT, O_PATH, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

use crate::bytes;
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::laws::numbers;
use crate::raw::{self, HERE, at, call, num, text};

pub(crate) const LAWS: &[Law] = &[
    Law::denied("open(O_WRONLY)", |c| opened(c, O_WRONLY)),
    Law::denied("open(O_RDWR)", |c| opened(c, O_RDWR)),
    Law::denied("open(O_WRONLY, O_APPEND)", |c| opened(c, O_WRONLY | O_APPEND)),
    Law::denied("open(O_WRONLY, O_TRUNC)", |c| opened(c, O_WRONLY | O_TRUNC)),
    Law::denied("open(O_RDONLY, O_TRUNC)", |c| opened(c, O_RDONLY | O_TRUNC)),
    Law::denied("open(O_CREAT, O_RDWR) of what exists", |c| opened(c, O_CREAT | O_RDWR)),
    Law::denied("open(O_WRONLY, O_DIRECT)", |c| opened(c, O_WRONLY | O_DIRECT)),
    Law::denied("creat", |c| {
        Ok(call(libc::SYS_creat, &[at(text(c.victim()).as_bytes_with_nul()), 0o644]).map(drop)?)
    }),
    Law::denied("open(2) by its old number", |c| {
        let path = text(c.victim());
        Ok(call(libc::SYS_open, &[at(path.as_bytes_with_nul()), O_RDWR as usize]).map(drop)?)
    }),
    Law::denied("openat2", |c| {
        let (path, how) = (text(c.victim()), bytes![O_RDWR as u64, 0u64, 0u64]);
        let arguments = [HERE, at(path.as_bytes_with_nul()), at(&how[..]), how.len()];
        Ok(call(libc::SYS_openat2, &arguments).map(drop)?)
    }),
    Law::denied("32-bit open", |c| {
        let low = raw::Mapping::low().ready()?;
        low.write(0, text(c.victim()).as_bytes_with_nul());
        Ok(raw::compat(5, [low.address() as u32, O_RDWR as u32, 0]).map(drop)?)
    }),
    Law::denied("open_by_handle_at", by_handle),
    Law::denied("a reader reopened through /proc/self/fd", |c| reopened(c, O_RDONLY)),
    Law::denied("an O_PATH handle reopened through /proc/self/fd", |c| reopened(c, O_PATH)),
    Law::denied("through a symbolic link", |c| {
        symlink(c.victim(), c.path("symlink")).ready()?;
        Ok(raw::open(c.path("symlink"), O_RDWR).map(drop)?)
    }),
    Law::denied("through its other name", |c| Ok(raw::open(c.path("keep"), O_RDWR).map(drop)?)),
    Law::denied("through a bind mount", |c| {
        private_mounts()?;
        std::fs::create_dir(c.path("bound")).ready()?;
        mount(&c.dir, &c.path("bound"), "", libc::MS_BIND, "").ready()?;
        Ok(raw::open(c.path("bound/victim"), O_RDWR).map(drop)?)
    }),
    Law::denied("through an id-mapped mount", id_mapped),
    Law::denied("as the upper layer of an overlay", |c| {
        overlay(c)?;
        let fd = raw::open(c.path("merged/victim"), O_RDWR)?;
        Ok(write_at(&fd)?)
    })
    .prepared(|c| {
        std::fs::create_dir(c.path("upper")).ready()?;
        std::fs::hard_link(c.victim(), c.path("upper/victim")).ready()
    }),
    Law::denied("in a user namespace", |c| {
        user_namespace()?;
        opened(c, O_RDWR)
    }),
    Law::denied("io_uring openat", |c| {
        let path = text(c.victim());
        let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(O_RDWR).build();
        Ok(raw::Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::denied("io_uring openat2", |c| {
        let path = text(c.victim());
        let how = types::OpenHow::new().flags(O_RDWR as u64);
        let entry = opcode::OpenAt2::new(types::Fd(libc::AT_FDCWD), path.as_ptr(), &raw const how).build();
        Ok(raw::Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::denied("a writable descriptor from fanotify", fanotify),
    Law::denied("xfs: open by handle", xfs_by_handle).only(&[fixtures::loopfs::FsKind::Xfs]),
    Law::denied("a writable loop device", |c| {
        let backing = c.open(O_RDWR)?;
        with_loop(&backing, |device| write_at(device).map_err(Stop::from))
    }),
    Law::denied("swapon", |c| {
        let path = text(c.victim());
        call(libc::SYS_swapon, &[at(path.as_bytes_with_nul()), 0])?;
        call(libc::SYS_swapoff, &[at(path.as_bytes_with_nul())]).map(drop).ready()
    })
    .prepared(make_swap),
    Law::denied("process accounting into it", |c| {
        let path = text(c.victim());
        call(libc::SYS_acct, &[at(path.as_bytes_with_nul())])?;
        raw::wait(raw::fork(|| 0));
        call(libc::SYS_acct, &[0]).map(drop).ready()
    }),
];

fn opened(c: &Case, flags: i32) -> Res {
    Ok(c.open(flags).map(drop)?)
}

fn reopened(c: &Case, flags: i32) -> Res {
    let held = c.open(flags).ready()?;
    Ok(raw::open(format!("/proc/self/fd/{}", held.as_raw_fd()), O_RDWR).map(drop)?)
}

/// Writes a byte of the file's own first page, differently.
pub(crate) fn write_at(fd: &impl AsRawFd) -> raw::Call {
    let page = vec![7u8; 4096];
    call(libc::SYS_pwrite64, &[num(fd), at(&page[..]), page.len(), 0])?;
    call(libc::SYS_fsync, &[num(fd)]).map(drop)
}

/// A mount table of the child's own.
pub(crate) fn private_mounts() -> Res {
    call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize]).ready()?;
    mount("none".as_ref(), "/".as_ref(), "", libc::MS_REC | libc::MS_PRIVATE, "").ready()
}

pub(crate) fn mount(
    what: &std::path::Path,
    place: &std::path::Path,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> raw::Call {
    let [what, place, kind, options] = [what, place, kind.as_ref(), options.as_ref()].map(text);
    let text = |s: &std::ffi::CString| at(s.as_bytes_with_nul());
    call(libc::SYS_mount, &[text(&what), text(&place), text(&kind), flags as usize, text(&options)]).map(drop)
}

/// Mounts an overlay on `merged`, whose upper layer is `upper`.
pub(crate) fn overlay(c: &Case) -> Res {
    private_mounts()?;
    for name in ["lower", "work", "merged"] {
        std::fs::create_dir_all(c.path(name)).ready()?;
    }
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| c.path(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount("overlay".as_ref(), &c.path("merged"), "overlay", 0, &options).ready()
}

/// Makes the process root of a user namespace where its ids stay what they are.
pub(crate) fn user_namespace() -> Res {
    call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]).ready()?;
    std::fs::write("/proc/self/setgroups", "deny").ready()?;
    std::fs::write("/proc/self/uid_map", "0 0 1").ready()?;
    std::fs::write("/proc/self/gid_map", "0 0 1").ready()
}

/// A `struct file_handle` with room, and the handle of the victim in it.
pub(crate) fn handle(c: &Case) -> Res<Vec<u8>> {
    let (path, mut handle, mut mount) = (text(c.victim()), vec![0u8; 136], [0u8; 4]);
    handle[0] = 128;
    let arguments =
        [HERE, at(path.as_bytes_with_nul()), raw::into(&mut handle[..]), raw::into(&mut mount), 0];
    call(libc::SYS_name_to_handle_at, &arguments).ready()?;
    Ok(handle)
}

fn by_handle(c: &Case) -> Res {
    let handle = handle(c)?;
    let mount = raw::open(&c.mount, O_RDONLY).ready()?;
    Ok(call(libc::SYS_open_by_handle_at, &[num(&mount), at(&handle[..]), O_RDWR as usize]).map(drop)?)
}

fn id_mapped(c: &Case) -> Res {
    private_mounts()?;
    let (mut stop, mut ready) = (std::io::pipe().ready()?, std::io::pipe().ready()?);
    let holder = raw::fork(|| {
        let _made = call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]);
        std::io::Write::write_all(&mut ready.1, b"x").ok();
        std::io::Read::read_exact(&mut stop.0, &mut [0]).ok();
        0
    });
    std::io::Read::read_exact(&mut ready.0, &mut [0]).ready()?;
    std::fs::write(format!("/proc/{holder}/uid_map"), "0 0 65536").ready()?;
    std::fs::write(format!("/proc/{holder}/gid_map"), "0 0 65536").ready()?;
    let namespace = raw::open(format!("/proc/{holder}/ns/user"), O_RDONLY).ready()?;
    std::io::Write::write_all(&mut stop.1, b"x").ready()?;
    raw::wait(holder);
    let dir = text(&c.dir);
    let clone = 1 | libc::O_CLOEXEC as usize; // OPEN_TREE_CLONE
    let tree =
        call(libc::SYS_open_tree, &[HERE, at(dir.as_bytes_with_nul()), clone]).map(raw::owned).ready()?;
    let attributes = bytes![0x0010_0000_u64, 0u64, 0u64, num(&namespace) as u64]; // MOUNT_ATTR_IDMAP
    let empty = libc::AT_EMPTY_PATH as usize;
    let arguments = [num(&tree), at(c"".to_bytes_with_nul()), empty, at(&attributes[..]), attributes.len()];
    call(libc::SYS_mount_setattr, &arguments).ready()?;
    let name = c"victim";
    Ok(call(libc::SYS_openat, &[num(&tree), at(name.to_bytes_with_nul()), O_RDWR as usize]).map(drop)?)
}

/// Events come with a descriptor that the kernel opens as the listener asked.
fn fanotify(c: &Case) -> Res {
    let group = call(libc::SYS_fanotify_init, &[0, O_RDWR as usize]).map(raw::owned).ready()?;
    let path = text(c.victim());
    let mark = [num(&group), 1, libc::FAN_OPEN as usize, HERE, at(path.as_bytes_with_nul())];
    call(libc::SYS_fanotify_mark, &mark).ready()?;
    drop(c.reader()?);
    let mut event = [0u8; 24];
    call(libc::SYS_read, &[num(&group), raw::into(&mut event), event.len()])?;
    let fd = i32::from_le_bytes(event[16..20].try_into().expect("four bytes"));
    if fd < 0 {
        return Err(kernel::Errno::PERM.into());
    }
    Ok(write_at(&raw::owned(fd as usize))?)
}

/// `struct xfs_fsop_handlereq`, with the handle it points to.
pub(crate) fn xfs_handle(c: &Case) -> Res<(Vec<u8>, Box<[u8; 32]>)> {
    let (path, mut handle, mut length) = (text(c.victim()), Box::new([0u8; 32]), 0u32);
    let (out, out_length) = (raw::into(&mut *handle) as u64, raw::into(&mut length) as u64);
    let mut request = bytes![0u64, at(path.as_bytes_with_nul()) as u64, 0u64, 0u64, 0u64, out, out_length];
    let root = raw::open(&c.mount, O_RDONLY).ready()?;
    raw::ioctl(&root, numbers::XFS_PATH_TO_HANDLE, &mut request).ready()?;
    Ok((bytes![0u64, 0u64, O_RDWR as u64, out, u64::from(length), 0u64, 0u64], handle))
}

fn xfs_by_handle(c: &Case) -> Res {
    let (mut request, _handle) = xfs_handle(c)?;
    let root = raw::open(&c.mount, O_RDONLY).ready()?;
    Ok(raw::ioctl(&root, numbers::XFS_OPEN_BY_HANDLE, &mut request).map(drop)?)
}

/// Puts a loop device over a descriptor, hands it to `job`, and takes it away.
pub(crate) fn with_loop(backing: &impl AsRawFd, job: impl FnOnce(&std::os::fd::OwnedFd) -> Res) -> Res {
    let control = raw::open("/dev/loop-control", O_RDWR).ready()?;
    let free = raw::ioctl_value(&control, numbers::LOOP_GET_FREE, 0).ready()?;
    let device = raw::open(format!("/dev/loop{free}"), O_RDWR).ready()?;
    raw::ioctl_value(&device, numbers::LOOP_SET_FD, num(backing)).ready()?;
    let result = job(&device);
    raw::ioctl_value(&device, numbers::LOOP_CLR_FD, 0).ready()?;
    result
}

/// Makes the victim a swap file.
pub(crate) fn make_swap(c: &Case) -> Res {
    let file = std::fs::File::create(c.victim()).ready()?;
    let mut flags = bytes![u64::from(numbers::NOCOW)];
    if c.fs == fixtures::loopfs::FsKind::Btrfs {
        raw::ioctl(&file, numbers::SETFLAGS, &mut flags).ready()?;
    }
    let mut swap = vec![0u8; 64 * 4096];
    swap[1024] = 1;
    swap[1028] = 63;
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    std::os::unix::fs::FileExt::write_all_at(&file, &swap, 0).ready()?;
    Ok(file.sync_all()?)
}
