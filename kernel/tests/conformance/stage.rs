//! Laws of contexts: who is there, who attacks, and what comes of it.
//!
//! A law's deed is done by root in a context of its own, with what guests may at most. A process of the host
//! and one of another context stand by, children of neither: they must be as before afterwards.

use std::io::PipeWriter;
use std::os::fd::OwnedFd;

use kernel::{Capabilities, ContextEntry, Errno, Properties, Which};

use crate::case::{Cell, Res, Stop, spell};
use crate::laws;
use crate::raw::{self, Ended, call};

/// A law of contexts.
#[derive(Clone, Copy)]
pub(crate) struct ContextLaw {
    pub(crate) name: &'static str,
    /// The answers that are right; none: it must succeed.
    pub(crate) wants: &'static [Errno],
    pub(crate) deed: fn(&Stage) -> Res,
}

impl ContextLaw {
    pub(crate) const fn denied(name: &'static str, wants: &'static [Errno], deed: fn(&Stage) -> Res) -> Self {
        Self { name, wants, deed }
    }

    pub(crate) const fn allowed(name: &'static str, deed: fn(&Stage) -> Res) -> Self {
        Self { name, wants: &[], deed }
    }
}

/// Those who stand by.
#[derive(Debug)]
pub(crate) struct Stage {
    /// A process of the host, and a leader of its group and session.
    pub(crate) host: i32,
    /// One of another context.
    pub(crate) other: i32,
    /// A descriptor of the host's process from before.
    pub(crate) pidfd: OwnedFd,
    /// System V objects of the host, open to all: shared memory, semaphores, messages.
    pub(crate) ipc: [usize; 3],
    /// They last as long as these are open.
    held: [PipeWriter; 2],
}

impl Stage {
    pub(crate) fn host(&self) -> usize {
        self.host as usize
    }

    pub(crate) fn other(&self) -> usize {
        self.other as usize
    }
}

/// Moves the caller into a context of its own, below the ceiling.
fn enter() -> Result<(), String> {
    let remove = Capabilities::OF_A_GUEST.others();
    let entry = ContextEntry { which: Which::Fresh, remove, properties: Properties::default() };
    kernel::contexts().enter(&entry).map(drop).map_err(|error| error.to_string())
}

/// A process that lasts until the other end of a pipe is closed, in a context of its own if `confined`: the host
/// itself may not be able to signal it there.
fn bystander(confined: bool) -> Result<(i32, PipeWriter), String> {
    let fault = |error: std::io::Error| error.to_string();
    let (mut told, tell) = std::io::pipe().map_err(fault)?;
    let (mut stop, hold) = std::io::pipe().map_err(fault)?;
    let held = raw::num(&hold);
    let pid = raw::fork(|| {
        call(libc::SYS_close, &[held]).ok();
        let ready = call(libc::SYS_setsid, &[]).is_ok() && (!confined || enter().is_ok());
        std::io::Write::write_all(&mut &tell, if ready { b"y" } else { b"n" }).ok();
        std::io::Read::read(&mut stop, &mut [0]).ok();
        0
    });
    drop(tell);
    let mut answer = [0];
    std::io::Read::read_exact(&mut told, &mut answer).map_err(fault)?;
    if answer == *b"y" { Ok((pid, hold)) } else { Err("a bystander could not enter a context".into()) }
}

fn set(confined: bool) -> Result<Stage, String> {
    let made = |errno| format!("setting the stage: {}", spell(errno));
    let ipc = || -> raw::Call<[usize; 3]> {
        Ok([
            call(libc::SYS_shmget, &[0, 4096, 0o1666])?,
            call(libc::SYS_semget, &[0, 1, 0o1666])?,
            call(libc::SYS_msgget, &[0, 0o1666])?,
        ])
    };
    let (other, other_held) = bystander(confined)?;
    let (host, host_held) = bystander(false)?;
    Ok(Stage {
        host,
        other,
        held: [host_held, other_held],
        pidfd: call(libc::SYS_pidfd_open, &[host as usize, 0]).map(raw::owned).map_err(made)?,
        ipc: ipc().map_err(made)?,
    })
}

impl Stage {
    /// Ends those who are left; says which of them was gone.
    fn clear(self) -> Option<&'static str> {
        let gone = |pid: i32| raw::is_gone(pid);
        let fault = match (gone(self.host), gone(self.other)) {
            (true, _) => Some("a process of the host was ended"),
            (_, true) => Some("a process of another context was ended"),
            _ => None,
        };
        drop(self.held);
        raw::wait(self.host);
        raw::wait(self.other);
        call(libc::SYS_shmctl, &[self.ipc[0], libc::IPC_RMID as usize, 0]).ok();
        call(libc::SYS_semctl, &[self.ipc[1], 0, libc::IPC_RMID as usize, 0]).ok();
        call(libc::SYS_msgctl, &[self.ipc[2], libc::IPC_RMID as usize, 0]).ok();
        fault
    }
}

const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID;

/// The law whose deed would end the suite where nothing enforces it.
pub(crate) const KILL_ALL: &str = "kill of all there are";

fn said_by_child(job: impl FnOnce() -> String) -> String {
    let (read, write) = std::io::pipe().expect("a pipe");
    let child = raw::fork(|| {
        std::io::Write::write_all(&mut &write, job().as_bytes()).ok();
        0
    });
    raw::wait(child);
    raw::said(&read)
}

/// Seconds until a deed that hangs is given up.
const PATIENCE: u32 = 15;

impl ContextLaw {
    /// Tries the law; where nothing is `confined`, the deed is done by root of the host.
    pub(crate) fn try_it(&self, confined: bool) -> Cell {
        // A mount table and, where nothing else holds kill(-1) back, process numbers of its own.
        let spaces = if !confined || self.name == KILL_ALL { NAMESPACES } else { libc::CLONE_NEWNS };
        let ended = raw::in_child(PATIENCE, || {
            if let Err(errno) = call(libc::SYS_unshare, &[spaces as usize]) {
                return format!("skip namespaces: {}", spell(errno));
            }
            said_by_child(|| self.on_stage(confined))
        });
        let Ended::Said(said) = ended else { return Cell::Fail(format!("{ended:?}")) };
        match said.split_once(' ') {
            _ if said == "pass" => Cell::Pass,
            Some(("skip", why)) => Cell::Skipped(why.into()),
            Some((_, why)) => Cell::Fail(why.into()),
            None => Cell::Fail("said nothing".into()),
        }
    }

    fn on_stage(&self, confined: bool) -> String {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let mounted = laws::mount("none".as_ref(), "/".as_ref(), "", private, "")
            .and_then(|()| laws::mount("proc".as_ref(), "/proc".as_ref(), "proc", 0, ""));
        if let Err(errno) = mounted {
            return format!("skip /proc: {}", spell(errno));
        }
        match set(confined) {
            Ok(stage) => {
                let said = said_by_child(|| self.attack(&stage, confined));
                stage.clear().map_or(said, |fault| format!("fail {fault}"))
            }
            Err(why) => format!("skip {why}"),
        }
    }

    fn attack(&self, stage: &Stage, confined: bool) -> String {
        match if confined { enter() } else { Ok(()) } {
            Ok(()) => self.judge((self.deed)(stage)),
            Err(why) => format!("skip {why}"),
        }
    }

    fn judge(&self, result: Res) -> String {
        match result {
            Ok(()) if self.wants.is_empty() => "pass".into(),
            Ok(()) => "fail went through".into(),
            Err(Stop::Refused(errno)) if self.wants.contains(&errno) => "pass".into(),
            Err(Stop::Refused(Errno::NOSYS)) => "skip ENOSYS".into(),
            Err(Stop::Refused(errno) | Stop::NotSealed(errno)) => format!("fail {}", spell(errno)),
            Err(Stop::Setup(why) | Stop::Lacking(why)) => format!("skip {why}"),
            Err(Stop::Wrong(why)) => format!("fail {why}"),
        }
    }
}
