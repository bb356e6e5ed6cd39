//! Changing mode, owner, times and extended attributes.

use std::os::fd::AsRawFd;

use crate::bytes;
use crate::case::{Case, Law, Ready, Res};
use crate::laws::numbers;
use crate::raw::{self, HERE, at, call, num, text};

pub(crate) const LAWS: &[Law] = &[
    Law::denied("chmod", |c| by_path(c, libc::SYS_chmod, &[0o600])),
    Law::denied("chmod to setuid", |c| by_path(c, libc::SYS_chmod, &[0o4755])),
    Law::denied("fchmod of a reader", |c| by_reader(c, libc::SYS_fchmod, &[0o600])),
    Law::denied("fchmodat", |c| at_here(c, libc::SYS_fchmodat, &[0o600])),
    Law::denied("fchmodat2", |c| at_here(c, numbers::SYS_FCHMODAT2, &[0o600, 0])),
    Law::denied("chmod through /proc/self/fd of an O_PATH handle", |c| {
        let held = c.open(libc::O_PATH).ready()?;
        let path = text(format!("/proc/self/fd/{}", held.as_raw_fd()));
        Ok(call(libc::SYS_chmod, &[at(path.as_bytes_with_nul()), 0o600]).map(drop)?)
    }),
    Law::denied("32-bit chmod", |c| {
        let low = raw::Mapping::low().ready()?;
        low.write(0, text(c.victim()).as_bytes_with_nul());
        Ok(raw::compat(15, [low.address() as u32, 0o600, 0]).map(drop)?)
    }),
    Law::denied("chown", |c| by_path(c, libc::SYS_chown, &[1, 1])),
    Law::denied("lchown", |c| by_path(c, libc::SYS_lchown, &[1, 1])),
    Law::denied("fchown of a reader", |c| by_reader(c, libc::SYS_fchown, &[1, 1])),
    Law::denied("fchownat", |c| at_here(c, libc::SYS_fchownat, &[1, 1, 0])),
    Law::denied("fchownat of an O_PATH handle", |c| {
        let held = c.open(libc::O_PATH).ready()?;
        let arguments = [num(&held), at(c"".to_bytes_with_nul()), 1, 1, libc::AT_EMPTY_PATH as usize];
        Ok(call(libc::SYS_fchownat, &arguments).map(drop)?)
    }),
    Law::denied("chmod by its owner", |c| {
        call(libc::SYS_setresgid, &[1000, 1000, 1000]).ready()?;
        call(libc::SYS_setresuid, &[1000, 1000, 1000]).ready()?;
        by_path(c, libc::SYS_chmod, &[0o600])
    })
    .prepared(|c| Ok(std::os::unix::fs::chown(c.victim(), Some(1000), Some(1000))?)),
    Law::denied("utime", |c| by_path(c, libc::SYS_utime, &[at(&[1u64, 1])])),
    Law::denied("utimes", |c| by_path(c, libc::SYS_utimes, &[at(&[1u64, 0, 1, 0])])),
    Law::denied("futimesat", |c| at_here(c, libc::SYS_futimesat, &[at(&[1u64, 0, 1, 0])])),
    Law::denied("utimensat", |c| at_here(c, libc::SYS_utimensat, &[at(&[1u64, 0, 1, 0]), 0])),
    Law::denied("utimensat to now", |c| at_here(c, libc::SYS_utimensat, &[0, 0])),
    Law::denied("utimensat of the access time only", |c| {
        at_here(c, libc::SYS_utimensat, &[at(&[1u64, 0, 1, libc::UTIME_OMIT as u64]), 0])
    }),
    Law::denied("futimens of a reader", |c| {
        let fd = c.reader()?;
        Ok(call(libc::SYS_utimensat, &[num(&fd), 0, at(&[1u64, 0, 1, 0]), 0]).map(drop)?)
    }),
    Law::denied("setxattr user.", |c| set(c, "user.new")),
    Law::denied("setxattr user., replaced", |c| set(c, "user.kept")),
    Law::denied("setxattr trusted.", |c| set(c, "trusted.new")),
    Law::denied("setxattr security.", |c| set(c, "security.new")),
    Law::denied("setxattr security.capability", |c| {
        let capability = bytes![0x0200_0001_u32, 1u32 << 10, 0u32, 0u32, 0u32];
        set_value(c, "security.capability", &capability)
    }),
    Law::denied("setxattr of an ACL", |c| set_value(c, "system.posix_acl_access", &acl())),
    Law::denied("removexattr of an ACL", |c| remove(c, "system.posix_acl_access"))
        .prepared(|c| set_value(c, "system.posix_acl_access", &acl())),
    Law::denied("setxattr btrfs.compression", |c| set_value(c, "btrfs.compression", b"zstd"))
        .only(&[fixtures::loopfs::FsKind::Btrfs]),
    Law::denied("lsetxattr", |c| {
        let name = text("user.new");
        let value = b"x";
        by_path(c, libc::SYS_lsetxattr, &[at(name.as_bytes_with_nul()), at(value), 1, 0])
    }),
    Law::denied("fsetxattr of a reader", |c| {
        let name = text("user.new");
        by_reader(c, libc::SYS_fsetxattr, &[at(name.as_bytes_with_nul()), at(b"x"), 1, 0])
    }),
    Law::denied("setxattrat", |c| {
        let (path, name) = (text(c.victim()), text("user.new"));
        let value = bytes![at(b"x") as u64, 1u32, 0u32];
        let arguments = [
            HERE,
            at(path.as_bytes_with_nul()),
            0,
            at(name.as_bytes_with_nul()),
            at(&value[..]),
            value.len(),
        ];
        Ok(call(numbers::SYS_SETXATTRAT, &arguments).map(drop)?)
    }),
    Law::denied("removexattr user.", |c| remove(c, "user.kept")),
    Law::denied("removexattr trusted.", |c| remove(c, "trusted.kept")),
    Law::denied("removexattr security.", |c| remove(c, "security.kept")),
    Law::denied("lremovexattr", |c| {
        by_path(c, libc::SYS_lremovexattr, &[at(text("user.kept").as_bytes_with_nul())])
    }),
    Law::denied("fremovexattr of a reader", |c| {
        by_reader(c, libc::SYS_fremovexattr, &[at(text("user.kept").as_bytes_with_nul())])
    }),
    Law::denied("removexattr after a cold mount", |c| {
        super::content::remount(c)?;
        remove(c, "user.kept")
    }),
    Law::denied("removexattrat", |c| {
        let (path, name) = (text(c.victim()), text("user.kept"));
        let arguments = [HERE, at(path.as_bytes_with_nul()), 0, at(name.as_bytes_with_nul())];
        Ok(call(numbers::SYS_REMOVEXATTRAT, &arguments).map(drop)?)
    }),
    Law::denied("io_uring setxattr", |c| uring_setxattr(c, false)),
    Law::denied("io_uring fsetxattr", |c| uring_setxattr(c, true)),
    Law::denied("setxattr in a user namespace", |c| {
        super::open::user_namespace()?;
        set(c, "user.new")
    }),
];

fn by_path(c: &Case, number: i64, rest: &[usize]) -> Res {
    let path = text(c.victim());
    let all: Vec<_> = [at(path.as_bytes_with_nul())].into_iter().chain(rest.iter().copied()).collect();
    Ok(call(number, &all).map(drop)?)
}

fn at_here(c: &Case, number: i64, rest: &[usize]) -> Res {
    let path = text(c.victim());
    let all: Vec<_> = [HERE, at(path.as_bytes_with_nul())].into_iter().chain(rest.iter().copied()).collect();
    Ok(call(number, &all).map(drop)?)
}

fn by_reader(c: &Case, number: i64, rest: &[usize]) -> Res {
    let fd = c.reader()?;
    let all: Vec<_> = [num(&fd)].into_iter().chain(rest.iter().copied()).collect();
    Ok(call(number, &all).map(drop)?)
}

fn set(c: &Case, name: &str) -> Res {
    set_value(c, name, b"new")
}

fn set_value(c: &Case, name: &str, value: &[u8]) -> Res {
    let name = text(name);
    by_path(c, libc::SYS_setxattr, &[at(name.as_bytes_with_nul()), at(value), value.len(), 0])
}

fn remove(c: &Case, name: &str) -> Res {
    by_path(c, libc::SYS_removexattr, &[at(text(name).as_bytes_with_nul())])
}

/// Version 2 with an entry for user 1000: owner, user, group, mask, others.
fn acl() -> Vec<u8> {
    let anyone = u32::MAX;
    bytes![
        2u32, 1u16, 7u16, anyone, 2u16, 6u16, 1000u32, 4u16, 5u16, anyone, 0x10u16, 7u16, anyone, 0x20u16,
        5u16, anyone
    ]
}

fn uring_setxattr(c: &Case, by_descriptor: bool) -> Res {
    use io_uring::{opcode, types};
    let (path, name, value) = (text(c.victim()), text("user.new"), b"x");
    let fd = c.reader()?;
    let value = value.as_ptr().cast();
    let entry = if by_descriptor {
        opcode::FSetXattr::new(types::Fd(fd.as_raw_fd()), name.as_ptr(), value, 1).build()
    } else {
        opcode::SetXattr::new(name.as_ptr(), value, path.as_ptr(), 1).build()
    };
    Ok(raw::Ring::new().ready()?.one(entry).map(drop)?)
}
