//! What must stay possible: reading, running, and every way of replacing a file.

use std::os::fd::AsRawFd;
use std::process::Command;

use fixtures::loopfs::FsKind;
use io_uring::{opcode, types};
use libc::{MAP_PRIVATE, MAP_SHARED, O_PATH, O_RDONLY, O_RDWR, PROT_EXEC, PROT_READ, PROT_WRITE};

use crate::bytes;
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::laws::numbers;
use crate::laws::open::{handle, mount, private_mounts};
use crate::raw::{self, HERE, Mapping, at, call, num, text};

const REFLINK: &[FsKind] = &[FsKind::Xfs, FsKind::Btrfs];

pub(crate) const READING: &[Law] = &[
    Law::allowed("read", |c| same(&std::fs::read(c.victim())?)),
    Law::allowed("direct read", |c| {
        let (fd, page) = (c.open(O_RDONLY | libc::O_DIRECT)?, Mapping::low().ready()?);
        Ok(call(libc::SYS_pread64, &[num(&fd), page.address(), 4096, 0]).map(drop)?)
    }),
    Law::allowed("open(O_RDONLY, O_CREAT) of what exists", |c| Ok(c.open(libc::O_CREAT).map(drop)?)),
    Law::allowed("open_by_handle_at for reading", |c| {
        let (handle, mount) = (handle(c)?, raw::open(&c.mount, O_RDONLY).ready()?);
        Ok(call(libc::SYS_open_by_handle_at, &[num(&mount), at(&handle[..]), 0]).map(drop)?)
    }),
    Law::allowed("an O_PATH handle reopened for reading", |c| {
        let held = c.open(O_PATH)?;
        same(&std::fs::read(format!("/proc/self/fd/{}", held.as_raw_fd()))?)
    }),
    Law::allowed("stat, attributes and ACL read", |c| {
        std::fs::metadata(c.victim())?;
        Ok(rustix::fs::getxattr(c.victim(), "user.kept", &mut [0u8; 9]).map(drop)?)
    }),
    Law::allowed("exec", |c| ran(&c.victim())),
    Law::allowed("exec of a descriptor", |c| {
        let fd = c.reader()?;
        ran(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_ref())
    }),
    Law::allowed("exec through a bind mount", |c| {
        private_mounts()?;
        std::fs::create_dir(c.path("bound")).ready()?;
        mount(&c.dir, &c.path("bound"), "", libc::MS_BIND, "").ready()?;
        ran(&c.path("bound/victim"))
    }),
    Law::allowed("a private mapping, written to", |c| {
        let map = Mapping::of(&c.reader()?, PROT_READ | PROT_WRITE, MAP_PRIVATE)?;
        map.write(0, b"mine");
        if map.read(0) == b'm' { Ok(()) } else { Err(Stop::Wrong("memory kept its content".into())) }
    }),
    Law::allowed("a shared mapping for reading and running", |c| {
        let map = Mapping::of(&c.reader()?, PROT_READ | PROT_EXEC, MAP_SHARED)?;
        if map.read(1) == b'E' { Ok(()) } else { Err(Stop::Wrong("other content".into())) }
    }),
    Law::allowed("io_uring read", |c| {
        let (fd, mut page) = (c.reader()?, vec![0u8; 4096]);
        let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), page.as_mut_ptr(), 4096).build();
        Ok(raw::Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::allowed("sendfile, splice and copy_file_range from it", |c| {
        let (fd, copy) = (c.reader()?, raw::open(c.path("copy"), O_RDWR | libc::O_CREAT).ready()?);
        let (_read, write) = std::io::pipe().ready()?;
        call(libc::SYS_sendfile, &[num(&copy), num(&fd), 0, 4096])?;
        call(libc::SYS_splice, &[num(&fd), 0, num(&write), 0, 4096, 0])?;
        Ok(call(libc::SYS_copy_file_range, &[num(&fd), 0, num(&copy), 0, 4096, 0]).map(drop)?)
    }),
    Law::allowed("FICLONE from it", |c| {
        let copy = raw::open(c.path("copy"), O_RDWR | libc::O_CREAT).ready()?;
        raw::ioctl_value(&copy, numbers::FICLONE, num(&c.reader()?))?;
        Ok(call(libc::SYS_pwrite64, &[num(&copy), at(b"x"), 1, 0]).map(drop)?)
    })
    .only(REFLINK),
    Law::allowed("FIDEDUPERANGE from it", |c| {
        let (source, other) = (c.reader()?, raw::open(c.other("equal")?, O_RDWR).ready()?);
        let mut request = bytes![0u64, 8192u64, 1u64, num(&other) as u64, 0u64, 0u64, 0u64];
        raw::ioctl(&source, numbers::FIDEDUPERANGE, &mut request)?;
        let status = i32::from_le_bytes(request[48..52].try_into().expect("four bytes"));
        Ok(raw::check_negated(status).map(drop)?)
    })
    .only(REFLINK),
    Law::allowed("flock and record locks", |c| {
        let fd = c.reader()?;
        call(libc::SYS_flock, &[num(&fd), libc::LOCK_EX as usize])?;
        let lock = bytes![0u32, 0u32, 0u64, 0u64, 0u64]; // F_RDLCK
        Ok(call(libc::SYS_fcntl, &[num(&fd), libc::F_SETLK as usize, at(&lock[..])]).map(drop)?)
    }),
    Law::allowed("a read lease", |c| {
        let fd = c.reader()?;
        let lease = [num(&fd), libc::F_SETLEASE as usize, libc::F_RDLCK as usize];
        Ok(call(libc::SYS_fcntl, &lease).map(drop)?)
    }),
    Law::allowed("posix_fadvise and readahead", |c| {
        let fd = c.reader()?;
        call(libc::SYS_fadvise64, &[num(&fd), 0, 0, libc::POSIX_FADV_DONTNEED as usize])?;
        Ok(call(libc::SYS_readahead, &[num(&fd), 0, 4096]).map(drop)?)
    }),
    Law::allowed("inotify", |c| {
        let watch = call(libc::SYS_inotify_init1, &[0]).map(raw::owned).ready()?;
        let path = text(c.victim());
        let all = libc::IN_ALL_EVENTS as usize;
        Ok(call(libc::SYS_inotify_add_watch, &[num(&watch), at(path.as_bytes_with_nul()), all]).map(drop)?)
    }),
];

pub(crate) const REPLACING: &[Law] = &[
    Law::allowed("link", |c| Ok(std::fs::hard_link(c.victim(), c.path("link"))?)),
    Law::allowed("linkat of a descriptor", |c| {
        let (fd, to) = (c.reader()?, text(c.path("link")));
        let empty = libc::AT_EMPTY_PATH as usize;
        let arguments = [num(&fd), at(c"".to_bytes_with_nul()), HERE, at(to.as_bytes_with_nul()), empty];
        Ok(call(libc::SYS_linkat, &arguments).map(drop)?)
    }),
    Law::allowed("unlink", |c| Ok(std::fs::remove_file(c.victim())?)),
    Law::allowed("unlink while it is mapped as a program's text", |c| {
        let _text = Mapping::of(&c.reader()?, PROT_READ | PROT_EXEC, MAP_PRIVATE)?;
        Ok(std::fs::remove_file(c.victim())?)
    }),
    Law::allowed("io_uring unlinkat", |c| {
        let path = text(c.victim());
        let entry = opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        Ok(raw::Ring::new().ready()?.one(entry).map(drop)?)
    }),
    Law::allowed("rename", |c| Ok(std::fs::rename(c.victim(), c.path("moved"))?)),
    Law::allowed("rename into another directory", |c| {
        std::fs::create_dir(c.path("directory")).ready()?;
        Ok(std::fs::rename(c.victim(), c.path("directory/moved"))?)
    }),
    Law::allowed("rename over it, and the new file is open to all", |c| {
        Ok(std::fs::rename(c.other("new")?, c.victim())?)
            .and_then(|()| Ok(std::fs::write(c.victim(), "changed")?))
    }),
    Law::allowed("rename of it over another", |c| Ok(std::fs::rename(c.victim(), c.other("other")?)?)),
    Law::allowed("rename(RENAME_NOREPLACE)", |c| rename(c, "moved", libc::RENAME_NOREPLACE)),
    Law::allowed("rename(RENAME_EXCHANGE)", |c| {
        c.other("other")?;
        rename(c, "other", libc::RENAME_EXCHANGE)
    }),
    Law::allowed("rename(RENAME_WHITEOUT)", |c| rename(c, "moved", libc::RENAME_WHITEOUT)),
    Law::allowed("a file without a name linked beside it and renamed over it", |c| {
        let fd = raw::open(&c.dir, libc::O_TMPFILE | O_RDWR)?;
        let (from, to) = (text(format!("/proc/self/fd/{}", fd.as_raw_fd())), text(c.path("new")));
        let follow = libc::AT_SYMLINK_FOLLOW as usize;
        let arguments = [HERE, at(from.as_bytes_with_nul()), HERE, at(to.as_bytes_with_nul()), follow];
        call(libc::SYS_linkat, &arguments)?;
        Ok(std::fs::rename(c.path("new"), c.victim())?)
    }),
    Law::allowed("unlinked and made again, as tar does", |c| {
        std::fs::remove_file(c.victim())?;
        Ok(std::fs::write(c.victim(), "new")?)
    }),
    Law::allowed("linked to a backup and renamed over, as dpkg does", |c| {
        std::fs::hard_link(c.victim(), c.path("victim.dpkg-tmp"))?;
        std::fs::rename(c.other("victim.dpkg-new")?, c.victim())?;
        Ok(std::fs::remove_file(c.path("victim.dpkg-tmp"))?)
    }),
    Law::allowed("its directory renamed and removed with it", |c| {
        std::fs::create_dir(c.path("directory")).ready()?;
        std::fs::rename(c.victim(), c.path("directory/victim"))?;
        std::fs::rename(c.path("directory"), c.path("renamed"))?;
        Ok(std::fs::remove_dir_all(c.path("renamed"))?)
    }),
    Law::allowed("removed through an overlay whose upper layer it is in", |c| {
        super::open::overlay(c)?;
        Ok(std::fs::remove_file(c.path("merged/victim"))?)
    })
    .prepared(|c| {
        std::fs::create_dir(c.path("upper")).ready()?;
        std::fs::hard_link(c.victim(), c.path("upper/victim")).ready()
    }),
];

fn same(content: &[u8]) -> Res {
    let right = std::fs::read("/bin/true").ready()?;
    if content == right { Ok(()) } else { Err(Stop::Wrong("other content was read".into())) }
}

fn ran(program: &std::path::Path) -> Res {
    let status = Command::new(program).status()?;
    if status.success() { Ok(()) } else { Err(Stop::Wrong(format!("{status}"))) }
}

fn rename(c: &Case, to: &str, flags: u32) -> Res {
    let (from, to) = (text(c.victim()), text(c.path(to)));
    let arguments = [HERE, at(from.as_bytes_with_nul()), HERE, at(to.as_bytes_with_nul()), flags as usize];
    Ok(call(libc::SYS_renameat2, &arguments).map(drop)?)
}
