//! Capabilities that a process gave up with its context, and the ways of getting one.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use kernel::{Capabilities, ContextEntry, Errno, Which};

use super::{FRESH, ONLY_PERM, Other, allows, become_nobody, enter, forbids};
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::raw::{at, call, text};

const NET_RAW: u64 = 1 << 13;
const SYS_CHROOT: u64 = 1 << 18;

pub(crate) const LAWS: &[Law] = &[
    forbids("a raw socket, by root", ONLY_PERM, |_| {
        lower(NET_RAW)?;
        raw_socket()
    }),
    forbids("a raw socket, by a child", ONLY_PERM, |_| {
        lower(NET_RAW)?;
        let child = Other::start(|| Ok(usize::from(raw_socket().is_err())))?;
        super::went_through(child.told == 0)
    }),
    forbids("a raw socket, in context 0 under a ceiling", ONLY_PERM, |_| {
        enter(&ContextEntry { which: Which::Keep, remove: Capabilities(NET_RAW), ..FRESH })?;
        raw_socket()
    }),
    forbids("a raw socket, after a second, smaller loss", ONLY_PERM, |_| {
        lower(NET_RAW)?;
        lower(SYS_CHROOT)?;
        raw_socket()
    }),
    forbids("chroot, by a setuid program", ONLY_PERM, |c| {
        let program = program(c, 0o4755)?;
        lower(SYS_CHROOT)?;
        become_nobody()?;
        chroot_by(&program)
    }),
    forbids("chroot, by a program with file capabilities", ONLY_PERM, |c| {
        let program = program(c, 0o755)?;
        // struct vfs_cap_data, version 2 and effective; CAP_SYS_CHROOT permitted.
        let value = crate::bytes![0x0200_0001_u32, SYS_CHROOT as u32, 0_u32, 0_u32, 0_u32];
        rustix::fs::setxattr(&program, "security.capability", &value, rustix::fs::XattrFlags::empty())
            .ready()?;
        lower(SYS_CHROOT)?;
        become_nobody()?;
        chroot_by(&program)
    }),
    forbids("chroot, in a user namespace", ONLY_PERM, |_| {
        lower(SYS_CHROOT)?;
        become_nobody()?;
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize])?;
        let path = text("/usr");
        call(libc::SYS_chroot, &[at(path.as_bytes_with_nul())])?;
        Ok(())
    }),
    forbids("chroot, in a user namespace from before", ONLY_PERM, |_| {
        become_nobody()?;
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]).ready()?;
        lower(SYS_CHROOT)?;
        let path = text("/usr");
        call(libc::SYS_chroot, &[at(path.as_bytes_with_nul())])?;
        Ok(())
    }),
    forbids("a raw socket in a user and a network namespace", ONLY_PERM, |_| {
        lower(NET_RAW)?;
        become_nobody()?;
        call(libc::SYS_unshare, &[(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as usize])?;
        call(libc::SYS_socket, &[libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP].map(|n| n as usize))?;
        Ok(())
    }),
    forbids("bpf(2), with all capabilities", ONLY_PERM, |_| {
        enter(&FRESH)?;
        // BPF_MAP_CREATE: an array of one.
        let attributes = crate::bytes![2_u32, 4_u32, 4_u32, 1_u32, 0_u32];
        call(libc::SYS_bpf, &[0, at(attributes.as_slice()), attributes.len()])?;
        Ok(())
    }),
    allows("what was not given up works on", |c| {
        let program = program(c, 0o4755)?;
        lower(NET_RAW)?;
        become_nobody()?;
        chroot_by(&program)
    }),
    allows("a parent keeps what a child gave up", |_| {
        let child = Other::start(|| lower(NET_RAW).map(|()| 0))?;
        raw_socket()?;
        drop(child);
        Ok(())
    }),
];

fn lower(remove: u64) -> Res {
    enter(&ContextEntry { remove: Capabilities(remove), ..FRESH }).map(drop)
}

fn raw_socket() -> Res {
    call(libc::SYS_socket, &[libc::AF_INET as usize, libc::SOCK_RAW as usize, 1])?;
    Ok(())
}

/// A program that anybody may run, and that changes its root.
fn program(c: &Case, mode: u32) -> Res<PathBuf> {
    let path = c.path("chroot");
    std::fs::copy("/usr/sbin/chroot", &path).ready()?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).ready()?;
    std::fs::set_permissions(&c.dir, PermissionsExt::from_mode(0o755)).ready()?;
    Ok(path)
}

fn chroot_by(program: &PathBuf) -> Res {
    // A kernel may refuse to execute what can't have its capabilities.
    let ran = Command::new(program).args(["/usr", "/bin/true"]).output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    match ran.status.code() {
        Some(0) => Ok(()),
        Some(125) if said.contains("not permitted") => Err(Errno::PERM.into()),
        _ => Err(Stop::Setup(format!("{}: {said}", ran.status))),
    }
}
