//! Laws of contexts: who enters them, whom one may see and reach from there, and what stays forbidden.
//!
//! Each is done by a process that enters contexts as it needs. Where no provider answers, entering
//! does nothing, and the law has to fail.

use std::io::{PipeReader, PipeWriter, Read, Write};

use fixtures::loopfs::FsKind;
use kernel::{Capabilities, ContextError, Errno, Properties, Which};

use crate::case::{Case, Law, Ready, Res, Stop, Wants, When};
use crate::raw::{self, Call, at, call, into};

mod ceiling;
mod entering;
mod guest;
mod ipc;
mod reach;
mod root;
mod share;
mod sight;

pub(crate) use ceiling::LAWS as CEILING;
pub(crate) use entering::LAWS as ENTERING;
pub(crate) use guest::LAWS as GUEST;
pub(crate) use ipc::LAWS as IPC;
pub(crate) use reach::LAWS as REACH;
pub(crate) use root::LAWS as ROOT;
pub(crate) use share::LAWS as SHARE;
pub(crate) use sight::LAWS as SIGHT;

/// A foreign process may be forbidden or not be there at all.
const FOREIGN: &[Errno] = &[Errno::PERM, Errno::SRCH, Errno::NOENT, Errno::ACCESS];
const ONLY_PERM: &[Errno] = &[Errno::PERM];

const fn law(name: &'static str, wants: Wants, deed: fn(&Case) -> Res) -> Law {
    Law { wants, ..Law::allowed(name, deed).when(When::Bare).only(&[FsKind::Ext4]) }
}

const fn forbids(name: &'static str, errnos: &'static [Errno], deed: fn(&Case) -> Res) -> Law {
    law(name, Wants::Denied(errnos), deed)
}

const fn allows(name: &'static str, deed: fn(&Case) -> Res) -> Law {
    law(name, Wants::Allowed, deed)
}

/// What to ask for: a fresh context, no capability less, no properties.
const FRESH: kernel::ContextEntry = kernel::ContextEntry {
    which: Which::Fresh,
    remove: Capabilities(0),
    properties: Properties { lock: false, sched: false, nproc: false, private: false, fake_init: false },
};

const fn number(number: u32) -> kernel::ContextEntry {
    kernel::ContextEntry { which: Which::Number(number), ..FRESH }
}

/// Changes the context of this process. Without a provider it stays where it is, and there is no number.
fn enter(entry: &kernel::ContextEntry) -> Res<Option<u32>> {
    match kernel::contexts().enter(entry) {
        Ok(number) => Ok(Some(number)),
        Err(ContextError::NotSupported { .. }) => Ok(None),
        Err(ContextError::NotPermitted { .. }) => Err(Errno::PERM.into()),
        Err(ContextError::Threads { .. }) => Err(Errno::BUSY.into()),
        Err(ContextError::NoProcess(_)) => Err(Errno::SRCH.into()),
        Err(ContextError::Group { errno, .. } | ContextError::Kernel { errno, .. }) => Err(errno.into()),
    }
}

/// The number of the context this process is in; `None` without a provider.
fn whereabouts() -> Option<u32> {
    kernel::contexts().status(None).ok().map(|status| status.context)
}

fn become_nobody() -> Res {
    call(libc::SYS_setgroups, &[0, 0]).ready()?;
    call(libc::SYS_setresgid, &[65534; 3]).ready()?;
    call(libc::SYS_setresuid, &[65534; 3]).ready().map(drop)
}

/// Tries for two seconds.
fn patiently(mut deed: impl FnMut() -> Res) -> Res {
    for _ in 0..40 {
        if deed().is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    deed()
}

/// A fork that may fail.
fn try_fork(job: impl FnOnce() -> i32) -> Call<i32> {
    match call(libc::SYS_clone, &[libc::SIGCHLD as usize, 0, 0, 0, 0])? {
        0 => {
            let status = job();
            call(libc::SYS_exit_group, &[status as usize]).ok();
            unreachable!("the process has ended")
        }
        pid => Ok(pid as i32),
    }
}

/// A process beside the law's own, waiting until it is let go.
struct Other {
    pid: i32,
    /// What it had to say when it was ready.
    told: usize,
    hold: PipeWriter,
}

/// Signals that it blocks and reports: ignored where they are not blocked.
const NOTED: [i32; 2] = [libc::SIGWINCH, libc::SIGURG];

impl Other {
    /// In a fresh context.
    fn fresh() -> Res<Self> {
        Self::start(|| enter(&FRESH).map(|number| number.unwrap_or_default() as usize))
    }

    /// Where the law's process is.
    fn here() -> Res<Self> {
        Self::start(|| Ok(0))
    }

    /// After it has done something, from which a number is told.
    fn start(first: impl FnOnce() -> Res<usize>) -> Res<Self> {
        let (mut ready, tell): (PipeReader, PipeWriter) = std::io::pipe().ready()?;
        let (released, hold) = std::io::pipe().ready()?;
        let pid = raw::fork(|| {
            // Its own copy of this end would keep it waiting for ever.
            call(libc::SYS_close, &[raw::num(&hold)]).ok();
            Self::live(first, &tell, &released)
        });
        drop((tell, released));
        let mut told = [0; 8];
        ready.read_exact(&mut told).map_err(|_| Stop::Setup("the other process got nowhere".into()))?;
        Ok(Self { pid, told: usize::from_le_bytes(told), hold })
    }

    fn live(first: impl FnOnce() -> Res<usize>, mut tell: &PipeWriter, mut released: &PipeReader) -> i32 {
        call(libc::SYS_setpgid, &[0, 0]).ok();
        call(libc::SYS_rt_sigprocmask, &[libc::SIG_BLOCK as usize, at(&mask(&NOTED)), 0, 8]).ok();
        let Ok(told) = first() else { return 91 };
        if tell.write_all(&told.to_le_bytes()).is_err() {
            return 92;
        }
        // Nothing ever comes: it ends when nobody holds the other end any more.
        released.read_exact(&mut [0]).ok();
        let mut pending = 0_u64;
        call(libc::SYS_rt_sigpending, &[into(&mut pending), 8]).ok();
        i32::from(pending & mask(&NOTED) != 0)
    }

    /// Lets it go. Whether a signal has reached it, be it its last.
    fn was_reached(self) -> bool {
        drop(self.hold);
        raw::wait(self.pid) != 0
    }

    fn pid(&self) -> usize {
        self.pid as usize
    }

    /// A path in its directory of /proc.
    fn proc(&self, name: &str) -> String {
        format!("/proc/{}{name}", self.pid)
    }
}

fn mask(signals: &[i32]) -> u64 {
    signals.iter().fold(0, |mask, signal| mask | 1 << (signal - 1))
}

/// For deeds that fail in silence: the errno that says so.
fn went_through(it_did: bool) -> Res {
    if it_did { Ok(()) } else { Err(Errno::PERM.into()) }
}

/// Opens a path and nothing more.
fn look(path: &str) -> Res {
    raw::open(path, libc::O_RDONLY).map(drop).map_err(Stop::from)
}

/// A law about what root of a fresh context does to a process of another.
macro_rules! foreign {
    ($name:expr, |$other:ident| $deed:expr) => {
        crate::laws::processes::forbids($name, crate::laws::processes::FOREIGN, |_| {
            let $other = crate::laws::processes::Other::fresh()?;
            crate::laws::processes::enter(&crate::laws::processes::FRESH)?;
            $deed?;
            Ok(())
        })
    };
}
use foreign;
