//! Who may seal and unseal: root of the host with `CAP_LINUX_IMMUTABLE`, and nobody else.

use fixtures::loopfs::FsKind;
use kernel::{Capabilities, ContextEntry, Errno, Properties, Which};
use libc::O_RDWR;

use crate::bytes;
use crate::case::{Case, Law, Ready, Res, Stop, When};
use crate::laws::ioctls::{compat_ioctl, flags};
use crate::laws::numbers::{self, FSGETXATTR, FSSETXATTR, NOATIME, SETFLAGS, SYNC};
use crate::raw::{self, call};

/// A fresh context, with all capabilities that the caller has.
fn enter_guest() -> Res {
    let entry =
        ContextEntry { which: Which::Fresh, remove: Capabilities(0), properties: Properties::default() };
    kernel::contexts().enter(&entry).map(drop).map_err(|_| Errno::NOSYS.into())
}

const IMMUTABLE: u32 = 0x10;
const LINK_INVERT: u32 = 0x0800_0000;
/// The flags that make up any seal.
const TAGS: u32 = NOATIME | SYNC | IMMUTABLE | LINK_INVERT;
/// The same in `struct fsxattr`: immutable, sync, no-atime.
const X_TAGS: u32 = 0x8 | 0x20 | 0x40;

pub(crate) const LAWS: &[Law] = &[
    Law::allowed("root of the host lifts it, and then may write", |c| {
        let fd = c.reader()?;
        raw::ioctl(&fd, SETFLAGS, &mut bytes![u64::from(flags(&fd)? & !TAGS)])?;
        drop(c.open(O_RDWR)?);
        // Put back, as the law looks for changes.
        c.seal()
    })
    .when(When::OnlySealed),
    Law::denied("lifted without the capability", |c| {
        drop_capability()?;
        change(c, |now| now & !TAGS)
    })
    .when(When::OnlySealed),
    Law::denied("lifted by root of a guest that has the capability", |c| {
        enter_guest()?;
        change(c, |now| now & !TAGS)
    })
    .when(When::OnlySealed),
    Law::denied("its file system taken out of the scope by root of a guest that has the capability", |c| {
        let dir = kernel::Dir::open_host(&c.dir).ready()?;
        enter_guest()?;
        match kernel::bpf::scope::remove(&dir) {
            // Nobody watches file systems here.
            Err(Errno::NOTTY) => Err(Errno::NOSYS.into()),
            other => other.map_err(Into::into),
        }
    })
    .when(When::OnlySealed),
    Law::denied("no-atime alone taken away", |c| {
        drop_capability()?;
        change(c, |now| now & !NOATIME)
    })
    .when(When::OnlySealed),
    Law::denied("sync alone taken away", |c| {
        drop_capability()?;
        change(c, |now| now & !SYNC)
    })
    .when(When::OnlySealed),
    Law::denied("lifted by FS_IOC_FSSETXATTR", |c| super::ioctls::set_xattr(c, 0, |now| now & !X_TAGS))
        .when(When::OnlySealed),
    Law::denied("lifted by the 32-bit FS_IOC_SETFLAGS", |c| {
        drop_capability()?;
        let fd = c.reader()?;
        let wanted = flags(&fd)? & !TAGS;
        compat_ioctl(&fd, numbers::SETFLAGS_32, &bytes![wanted])
    })
    .when(When::OnlySealed),
    Law::denied("lifted by the 32-bit FS_IOC_FSSETXATTR", |c| {
        drop_capability()?;
        let fd = c.reader()?;
        let mut xattr = vec![0; 28];
        raw::ioctl(&fd, FSGETXATTR, &mut xattr).ready()?;
        let now = u32::from_le_bytes(xattr[..4].try_into().expect("four bytes"));
        xattr[..4].copy_from_slice(&bytes![now & !X_TAGS]);
        compat_ioctl(&fd, FSSETXATTR, &xattr)
    })
    .when(When::OnlySealed),
    Law::denied("lifted by root of a user namespace", |c| {
        super::open::user_namespace()?;
        change(c, |now| now & !TAGS)
    })
    .when(When::OnlySealed),
    Law::denied("lifted by its owner", |c| {
        call(libc::SYS_setresuid, &[1000, 1000, 1000]).ready()?;
        change(c, |now| now & !TAGS)
    })
    .prepared(|c| Ok(std::os::unix::fs::chown(c.victim(), Some(1000), Some(1000))?))
    .when(When::OnlySealed),
    Law::denied("lifted through an overlay", |c| {
        super::open::overlay(c)?;
        drop_capability()?;
        let fd = raw::open(c.path("merged/victim"), libc::O_RDONLY).ready()?;
        match raw::ioctl(&fd, SETFLAGS, &mut bytes![0u64]) {
            // The programs tell overlayfs that a sealed file has no flags, so that copies are made without.
            Err(Errno::NOTTY | Errno::OPNOTSUPP) => Err(Errno::PERM.into()),
            other => Ok(other.map(drop)?),
        }
    })
    .prepared(|c| {
        std::fs::create_dir(c.path("upper")).ready()?;
        std::fs::hard_link(c.victim(), c.path("upper/victim")).ready()
    })
    .when(When::OnlySealed),
    Law::denied("sealed by its owner without the capability", |c| {
        call(libc::SYS_setresuid, &[1000, 1000, 1000]).ready()?;
        Ok(c.seal_unasked()?)
    })
    .prepared(|c| Ok(std::os::unix::fs::chown(c.victim(), Some(1000), Some(1000))?))
    .when(When::Bare),
    Law::allowed("half the tag seals nothing", |c| {
        for half in [NOATIME, SYNC] {
            let fd = c.reader()?;
            raw::ioctl(&fd, SETFLAGS, &mut bytes![u64::from(flags(&fd)? & !TAGS | half)])?;
            drop(c.open(O_RDWR)?);
            raw::ioctl(&fd, SETFLAGS, &mut bytes![u64::from(flags(&fd)? & !TAGS)])?;
        }
        Ok(())
    })
    .when(When::Bare),
    Law::allowed("a directory with the tag is none", |c| {
        let path = c.path("directory");
        std::fs::create_dir(&path).ready()?;
        let dir = raw::open(&path, libc::O_RDONLY).ready()?;
        let tagged = flags(&dir)? | NOATIME | SYNC;
        raw::ioctl(&dir, SETFLAGS, &mut bytes![u64::from(tagged)])?;
        let made = path.join("made");
        let result = std::fs::write(&made, "x").map_err(Stop::from);
        raw::ioctl(&dir, SETFLAGS, &mut bytes![u64::from(tagged & !TAGS)])?;
        // What was made may have inherited the flags of the directory.
        if let Ok(made) = raw::open(&made, libc::O_RDONLY) {
            raw::ioctl(&made, SETFLAGS, &mut bytes![u64::from(flags(&made)? & !TAGS)])?;
        }
        result
    })
    .only(&FsKind::ALL)
    .when(When::Bare),
];

fn change(c: &Case, change: fn(u32) -> u32) -> Res {
    let fd = c.reader()?;
    let wanted = change(flags(&fd)?);
    Ok(raw::ioctl(&fd, SETFLAGS, &mut bytes![u64::from(wanted)]).map(drop)?)
}

/// Gives up `CAP_LINUX_IMMUTABLE`, as root of a guest has.
pub(crate) fn drop_capability() -> Res {
    drop_capabilities(1 << 9)
}

/// Gives up the capabilities of a set.
pub(crate) fn drop_capabilities(gone: u64) -> Res {
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0u32; 6]; // effective, permitted, inheritable; low words, then high words
    call(libc::SYS_capget, &[raw::at(&header), raw::into(&mut sets)]).ready()?;
    for (index, set) in sets.iter_mut().enumerate() {
        *set &= !((gone >> (32 * (index / 3))) as u32);
    }
    call(libc::SYS_capset, &[raw::at(&header), raw::at(&sets)]).map(drop).ready()
}
