//! A guest whose root is a directory of the host, and what it tries to get above it.

use std::os::unix::fs::PermissionsExt;

use kernel::Errno;

use super::super::open::{mount, private_mounts};
use super::guest::guest;
use super::{allows, forbids};
use crate::case::{Case, Law, Ready, Res, Stop};
use crate::raw::{self, at, call, text};

/// EPERM of who may not move its root, EACCES of the barrier.
const HELD: &[Errno] = &[Errno::PERM, Errno::ACCESS];

pub(crate) const LAWS: &[Law] = &[
    forbids("climb out of a chroot by the working directory", HELD, |c| {
        jail(c)?;
        chroot("inner")?;
        super::look("../../victim")
    }),
    forbids("climb out of a chroot by a descriptor", HELD, |c| {
        jail(c)?;
        let above = raw::open("/", libc::O_RDONLY | libc::O_DIRECTORY).ready()?;
        chroot("inner")?;
        call(libc::SYS_chdir, &[at(text("/").as_bytes_with_nul())]).ready()?;
        let path = text("../../victim");
        call(libc::SYS_openat, &[raw::num(&above), at(path.as_bytes_with_nul()), 0])?;
        Ok(())
    }),
    allows("chroot in a mount namespace whose root is one's own", |c| {
        let path = |name: &str| c.path(&format!("jail/{name}"));
        ["inner", "proc"].into_iter().try_for_each(|name| std::fs::create_dir_all(path(name))).ready()?;
        private_mounts()?;
        let jail = c.path("jail");
        mount(&jail, &jail, "", libc::MS_BIND, "").ready()?;
        mount("proc".as_ref(), &path("proc"), "proc", 0, "").ready()?;
        std::env::set_current_dir(&jail).ready()?;
        let here = text(".");
        call(libc::SYS_pivot_root, &[at(here.as_bytes_with_nul()); 2]).ready()?;
        call(libc::SYS_umount2, &[at(here.as_bytes_with_nul()), libc::MNT_DETACH as usize]).ready()?;
        std::env::set_current_dir("/").ready()?;
        guest()?;
        let above = raw::open("/", libc::O_RDONLY | libc::O_DIRECTORY).ready()?;
        chroot("inner")?;
        // As `rpm --root` goes down and up again.
        call(libc::SYS_fchdir, &[raw::num(&above)])?;
        chroot(".")?;
        match super::look("../../../victim") {
            Err(Stop::Refused(Errno::NOENT)) => Ok(()),
            other => Err(Stop::Wrong(format!("climbing came to {other:?}"))),
        }
    }),
];

/// Becomes root of a guest in `closed/jail`, below a directory that is a barrier where there are any.
fn jail(c: &Case) -> Res {
    let closed = c.path("closed");
    std::fs::create_dir_all(closed.join("jail/inner")).ready()?;
    std::env::set_current_dir(closed.join("jail")).ready()?;
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o0)).ready()?;
    guest()?;
    // Here nothing is above yet.
    chroot(".").ready()
}

fn chroot(path: &str) -> Res {
    call(libc::SYS_chroot, &[at(text(path).as_bytes_with_nul())])?;
    Ok(())
}
