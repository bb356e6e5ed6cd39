//! Shared memory, semaphores and message queues, by number and by key.

use std::os::fd::OwnedFd;

use kernel::{Errno, Provider};

use super::{FRESH, Other, allows, enter, forbids, patiently};
use crate::case::{Law, Ready, Res};
use crate::raw::{self, at, call, into};

pub(super) const BARRED: &[Errno] = &[Errno::ACCESS, Errno::PERM, Errno::INVAL, Errno::NOENT];
const FULL: &[Errno] = &[Errno::NOSPC];

pub(crate) const LAWS: &[Law] = &[
    forbids("shmget of a foreign key", BARRED, |_| by_key(libc::SYS_shmget, &[4096])),
    forbids("semget of a foreign key", BARRED, |_| by_key(libc::SYS_semget, &[1])),
    forbids("msgget of a foreign key", BARRED, |_| by_key(libc::SYS_msgget, &[])),
    forbids("shmat", BARRED, |_| by_number(&SHM, |id| call(libc::SYS_shmat, &[id, 0, 0]).map(drop))),
    forbids("shmctl(IPC_STAT)", BARRED, |_| {
        by_number(&SHM, |id| call(libc::SYS_shmctl, &[id, STAT, into(&mut [0_u64; 32])]).map(drop))
    }),
    forbids("shmctl(IPC_RMID)", BARRED, |_| {
        by_number(&SHM, |id| call(libc::SYS_shmctl, &[id, REMOVE, 0]).map(drop))
    }),
    forbids("semop", BARRED, |_| {
        by_number(&SEM, |id| call(libc::SYS_semop, &[id, at(&[0_u16, 1, 0]), 1]).map(drop))
    }),
    forbids("semctl(GETVAL)", BARRED, |_| {
        by_number(&SEM, |id| call(libc::SYS_semctl, &[id, 0, 12, 0]).map(drop))
    }),
    forbids("semctl(IPC_RMID)", BARRED, |_| {
        by_number(&SEM, |id| call(libc::SYS_semctl, &[id, 0, REMOVE, 0]).map(drop))
    }),
    forbids("msgsnd", BARRED, |_| {
        by_number(&MSG, |id| call(libc::SYS_msgsnd, &[id, at(&[1_u64, 1]), 8, 0]).map(drop))
    }),
    forbids("msgctl(IPC_RMID)", BARRED, |_| {
        by_number(&MSG, |id| call(libc::SYS_msgctl, &[id, REMOVE, 0]).map(drop))
    }),
    forbids("context 0 uses another's", BARRED, |_| {
        let other = Other::start(|| {
            enter(&FRESH)?;
            make(&SHM)
        })?;
        call(libc::SYS_shmat, &[other.told, 0, 0])?;
        Ok(())
    }),
    forbids("a context uses what context 0 made", BARRED, |_| {
        let id = make(&SHM)?;
        enter(&FRESH)?;
        call(libc::SYS_shmat, &[id, 0, 0])?;
        Ok(())
    }),
    allows("a context uses and removes its own", |_| {
        enter(&FRESH)?;
        for (kind, remove) in [(&SHM, libc::SYS_shmctl), (&SEM, libc::SYS_semctl), (&MSG, libc::SYS_msgctl)] {
            let other = Other::start(|| make(kind))?;
            let arguments: &[usize] = match remove {
                libc::SYS_semctl => &[other.told, 0, REMOVE, 0],
                _ => &[other.told, REMOVE, 0],
            };
            call(remove, arguments)?;
        }
        Ok(())
    }),
    forbids("objects beyond a guest's share, in namespaces of its own", FULL, |_| {
        enter(&FRESH)?;
        fill(&mut Vec::new(), || Ok(()))
    }),
    forbids("objects beyond a guest's share, in further contexts", FULL, |_| {
        enter(&FRESH)?;
        fill(&mut Vec::new(), || enter(&FRESH).map(drop))
    }),
    forbids("objects beyond the share of all that ordinary users made", FULL, |_| {
        is_shared()?;
        let mut namespaces = Vec::new();
        let other = Other::start(|| {
            by_a_user()?;
            fill(&mut namespaces, || Ok(())).ok();
            std::mem::forget(namespaces);
            Ok(0)
        })?;
        by_a_user()?;
        call(libc::SYS_semget, &[0, 1, CREATE])?;
        drop(other);
        Ok(())
    }),
    allows("a guest whose share is used up leaves context 0 and other guests theirs", |_| {
        let mut namespaces = Vec::new();
        let other = Other::start(|| {
            enter(&FRESH)?;
            fill(&mut namespaces, || Ok(())).ok();
            std::mem::forget(namespaces);
            Ok(0)
        })?;
        make(&SEM)?;
        enter(&FRESH)?;
        make(&SEM)?;
        drop(other);
        Ok(())
    }),
    allows("what another process of the context removes makes room", |_| {
        is_shared()?;
        enter(&FRESH)?;
        let mut namespaces = Vec::new();
        fill(&mut namespaces, || Ok(())).ok();
        // The first in a namespace.
        Other::start(|| call(libc::SYS_semctl, &[0, 0, REMOVE, 0]).ready())?;
        patiently(|| make(&SEM).map(drop))
    }),
    allows("so does a namespace that ends", |_| {
        is_shared()?;
        enter(&FRESH)?;
        let mut namespaces = Vec::new();
        fill(&mut namespaces, || Ok(())).ok();
        namespaces.clear();
        patiently(|| make(&SEM).map(drop))
    }),
];

/// Makes more objects than one guest may have in the eBPF programs' table, in IPC namespaces that last as long as
/// these are open; before each it does something else.
fn fill(namespaces: &mut Vec<OwnedFd>, before: fn() -> Res) -> Res {
    is_shared()?;
    for _ in 0..3 {
        before()?;
        call(libc::SYS_unshare, &[libc::CLONE_NEWIPC as usize]).ready()?;
        namespaces.push(raw::open("/proc/self/ns/ipc", libc::O_RDONLY).ready()?);
        for _ in 0..1500 {
            call(libc::SYS_semget, &[0, 1, CREATE])?;
        }
    }
    Ok(())
}

/// The patch has no table, and gives each context an IPC namespace.
fn is_shared() -> Res {
    match kernel::contexts().provider() {
        Provider::Patch => Err(Errno::NOSYS.into()),
        Provider::Bpf => Ok(()),
    }
}

/// Enters a fresh context as who has no `CAP_SYS_ADMIN` at that moment.
fn by_a_user() -> Res {
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    call(libc::SYS_capget, &[at(&header), into(&mut sets)]).ready()?;
    let effective = sets[0];
    sets[0] &= !(1 << 21);
    call(libc::SYS_capset, &[at(&header), at(&sets)]).ready()?;
    enter(&FRESH)?;
    sets[0] = effective;
    call(libc::SYS_capset, &[at(&header), at(&sets)]).ready().map(drop)
}

const CREATE: usize = libc::IPC_CREAT as usize | 0o666;
const REMOVE: usize = libc::IPC_RMID as usize;
const STAT: usize = libc::IPC_STAT as usize;
/// How to make one: the call, and what comes between key and flags.
struct Kind(libc::c_long, &'static [usize]);

const SHM: Kind = Kind(libc::SYS_shmget, &[4096]);
const SEM: Kind = Kind(libc::SYS_semget, &[1]);
const MSG: Kind = Kind(libc::SYS_msgget, &[]);

/// One without a key. What a law leaves is gone with the machine.
fn make(kind: &Kind) -> Res<usize> {
    let arguments = [&[0], kind.1, &[CREATE]].concat();
    call(kind.0, &arguments).ready()
}

fn by_number(kind: &'static Kind, deed: fn(usize) -> Result<(), Errno>) -> Res {
    let other = Other::start(|| {
        enter(&FRESH)?;
        make(kind)
    })?;
    enter(&FRESH)?;
    deed(other.told)?;
    Ok(())
}

/// By a key that no other law has.
fn by_key(number: libc::c_long, size: &'static [usize]) -> Res {
    let key = 0x7600_0000 | std::process::id() as usize;
    let get = |flags: usize| call(number, &[&[key], size, &[flags]].concat());
    let other = Other::start(|| {
        enter(&FRESH)?;
        get(CREATE).ready()
    })?;
    enter(&FRESH)?;
    get(0o666)?;
    drop(other);
    Ok(())
}
