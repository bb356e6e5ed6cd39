//! Shared memory, semaphores and message queues, by number and by key.

use kernel::Errno;

use super::{FRESH, Other, allows, enter, forbids};
use crate::case::{Law, Ready, Res};
use crate::raw::{at, call, into};

pub(super) const BARRED: &[Errno] = &[Errno::ACCESS, Errno::PERM, Errno::INVAL, Errno::NOENT];

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
];

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
