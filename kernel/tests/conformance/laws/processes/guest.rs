//! What root of a guest tries, under the ceiling that guests have.

use std::ffi::CString;

use kernel::{Capabilities, ContextEntry, Errno};

use super::super::open::{mount, private_mounts};
use super::ipc::BARRED;
use super::{FOREIGN, FRESH, ONLY_PERM, Other, enter, forbids, number};
use crate::bytes;
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::raw::{self, at, call, text};

/// What answers a call that needs a capability.
const NEEDS: &[Errno] = &[Errno::PERM, Errno::ACCESS];

pub(crate) const LAWS: &[Law] = &[
    forbids("take a file descriptor of the host", FOREIGN, |_| {
        let host = Other::here()?;
        let pidfd = call(libc::SYS_pidfd_open, &[host.pid(), 0]).ready()?;
        guest()?;
        call(libc::SYS_pidfd_getfd, &[pidfd, 2, 0])?;
        Ok(())
    }),
    forbids("reach a file through /proc/PID/root", FOREIGN, |_| {
        let host = Other::here()?;
        guest()?;
        super::look(&host.proc("/root/etc/shadow"))
    }),
    forbids("reach a file through /proc/1/root", FOREIGN, |_| {
        guest()?;
        super::look("/proc/1/root/etc/shadow")
    }),
    forbids("join the host's mount namespace", FOREIGN, |_| {
        guest()?;
        let namespace = raw::open("/proc/1/ns/mnt", libc::O_RDONLY)?;
        call(libc::SYS_setns, &[raw::num(&namespace), 0])?;
        Ok(())
    }),
    forbids("join the host's namespaces by a pidfd", FOREIGN, |_| {
        let host = Other::here()?;
        let pidfd = call(libc::SYS_pidfd_open, &[host.pid(), 0]).ready()?;
        guest()?;
        call(libc::SYS_setns, &[pidfd, libc::CLONE_NEWUTS as usize])?;
        Ok(())
    }),
    forbids("enter the context of another guest", ONLY_PERM, |_| {
        let other = Other::fresh()?;
        guest()?;
        enter(&number(if other.told == 0 { 209 } else { other.told as u32 })).map(drop)
    }),
    forbids("reboot", NEEDS, |_| {
        guest()?;
        call(libc::SYS_reboot, &[0xfee1_dead, 672_274_793, 0, 0])?; // Ctrl-Alt-Del off
        Ok(())
    }),
    forbids("watch all files with fanotify", NEEDS, |_| {
        guest()?;
        call(libc::SYS_fanotify_init, &[4, 0])?; // FAN_CLASS_CONTENT
        Ok(())
    }),
    forbids("open a pinned eBPF map", NEEDS, |_| {
        let attributes = |path: &std::ffi::CStr| bytes![path.as_ptr() as u64, 0_u32, 0_u32];
        guest()?;
        let path = text("/sys/fs/bpf/vserver/maps/tasks");
        match call(libc::SYS_bpf, &[7, at(attributes(&path).as_slice()), 16]) {
            // Where nothing is loaded there is no such map, and nobody who refuses it.
            Err(Errno::NOENT) => Ok(()),
            other => other.map(drop).map_err(Into::into),
        }
    }),
    forbids("take a pin out of the bpf file system", ONLY_PERM, |c| {
        let pin = pin(c)?;
        guest()?;
        call(libc::SYS_unlink, &[at(pin.as_bytes_with_nul())])?;
        Ok(())
    }),
    forbids("move a pin in the bpf file system", ONLY_PERM, |c| {
        let pin = pin(c)?;
        let aside = text(c.path("pins/aside"));
        guest()?;
        call(libc::SYS_rename, &[&pin, &aside].map(|path| at(path.as_bytes_with_nul())))?;
        Ok(())
    }),
    forbids("remove a directory of the bpf file system", ONLY_PERM, |c| {
        pin(c)?;
        let directory = text(c.path("pins/directory"));
        call(libc::SYS_mkdir, &[at(directory.as_bytes_with_nul()), 0o700]).ready()?;
        guest()?;
        call(libc::SYS_rmdir, &[at(directory.as_bytes_with_nul())])?;
        Ok(())
    }),
    forbids("name the machine in a user namespace", NEEDS, |_| {
        guest()?;
        call(libc::SYS_unshare, &[(libc::CLONE_NEWUSER | libc::CLONE_NEWUTS) as usize])?;
        let name = text("mine");
        call(libc::SYS_sethostname, &[at(name.as_bytes_with_nul()), 4])?;
        Ok(())
    }),
    forbids("press the host's keys by sysrq-trigger", NEEDS, |_| to_write("/proc/sysrq-trigger")),
    forbids("set the host's core pattern", NEEDS, |_| to_write("/proc/sys/kernel/core_pattern")),
    forbids("set the host's program for hotplug", NEEDS, |_| to_write("/proc/sys/kernel/modprobe")),
    forbids("change the mode of a file in /proc", NEEDS, |_| {
        guest()?;
        let path = text("/proc/sysrq-trigger");
        call(libc::SYS_chmod, &[at(path.as_bytes_with_nul()), 0o200])?;
        Ok(())
    }),
    forbids("attach the host's shared memory", BARRED, |_| {
        let id = call(libc::SYS_shmget, &[0, 4096, libc::IPC_CREAT as usize | 0o600]).ready()?;
        guest()?;
        call(libc::SYS_shmat, &[id, 0, 0])?;
        Ok(())
    }),
    forbids("make a file immutable", NEEDS, |c| {
        let file = raw::open(c.path("mine"), libc::O_RDWR | libc::O_CREAT).ready()?;
        guest()?;
        raw::ioctl(&file, super::super::numbers::SETFLAGS, &mut bytes![0x20_u64 | 0x10])?;
        raw::ioctl(&file, super::super::numbers::SETFLAGS, &mut bytes![0_u64])?;
        Ok(())
    }),
];

/// Becomes root of a guest, if it was root of the host.
pub(super) fn guest() -> Res {
    enter(&ContextEntry { remove: Capabilities::OF_A_GUEST.others(), ..FRESH }).map(drop)
}

/// A map, pinned in a bpf file system that the guest reaches.
fn pin(case: &Case) -> Res<CString> {
    let (place, pin) = (case.path("pins"), text(case.path("pins/map")));
    private_mounts()?;
    call(libc::SYS_mkdir, &[at(text(&place).as_bytes_with_nul()), 0o700]).ready()?;
    match mount("bpf".as_ref(), &place, "bpf", 0, "") {
        Err(Errno::NODEV) => return Err(Errno::NOSYS.into()),
        mounted => mounted.ready()?,
    }
    // BPF_MAP_CREATE: an array of one. BPF_OBJ_PIN.
    let attributes = bytes![2_u32, 4_u32, 4_u32, 1_u32, 0_u32];
    let map = call(libc::SYS_bpf, &[0, at(attributes.as_slice()), attributes.len()]).ready()?;
    let attributes = bytes![pin.as_ptr() as u64, map as u32, 0_u32];
    call(libc::SYS_bpf, &[6, at(attributes.as_slice()), attributes.len()]).ready()?;
    Ok(pin)
}

fn to_write(path: &str) -> Res {
    if !std::path::Path::new(path).exists() {
        return Err(Stop::Lacking(format!("this kernel has no {path}")));
    }
    guest()?;
    raw::open(path, libc::O_WRONLY)?;
    Ok(())
}
