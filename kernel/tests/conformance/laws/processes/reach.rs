//! What one process does to another.

use kernel::Errno;

use super::{FOREIGN, FRESH, ONLY_PERM, Other, allows, enter, forbids, foreign, number, went_through};
use crate::bytes;
use crate::case::{Law, Ready, Res, Stop};
use crate::raw::{self, Call, at, call, into};

const WINCH: usize = libc::SIGWINCH as usize;

pub(crate) const LAWS: &[Law] = &[
    foreign!("kill(pid, 0)", |other| kill(other.pid(), 0)),
    foreign!("kill(pid, SIGKILL)", |other| kill(other.pid(), libc::SIGKILL as usize)),
    foreign!("kill(pid, SIGCONT)", |other| kill(other.pid(), libc::SIGCONT as usize)),
    foreign!("kill(-pgrp)", |other| kill(other.pid().wrapping_neg(), WINCH)),
    forbids("kill(-1) by root reaches other contexts", ONLY_PERM, |_| {
        let other = Other::fresh()?;
        enter(&FRESH)?;
        kill(usize::MAX, WINCH).ok();
        went_through(other.was_reached())
    }),
    foreign!("tkill", |other| call(libc::SYS_tkill, &[other.pid(), WINCH])),
    foreign!("tgkill", |other| call(libc::SYS_tgkill, &[other.pid(), other.pid(), WINCH])),
    foreign!("rt_sigqueueinfo", |other| queue(libc::SYS_rt_sigqueueinfo, &[other.pid(), WINCH])),
    foreign!("rt_tgsigqueueinfo", |other| {
        queue(libc::SYS_rt_tgsigqueueinfo, &[other.pid(), other.pid(), WINCH])
    }),
    foreign!("pidfd_send_signal", |other| {
        let pidfd = pidfd(&other)?;
        call(libc::SYS_pidfd_send_signal, &[pidfd, WINCH, 0, 0])
    }),
    forbids("pidfd_send_signal by a pidfd from before", FOREIGN, |_| {
        let other = Other::here()?;
        let pidfd = pidfd(&other).ready()?;
        enter(&FRESH)?;
        call(libc::SYS_pidfd_send_signal, &[pidfd, WINCH, 0, 0])?;
        Ok(())
    }),
    forbids("SIGIO by F_SETOWN", FOREIGN, |_| sigio(|fd, other| fcntl(fd, libc::F_SETOWN, other.pid()))),
    forbids("SIGIO by F_SETOWN to a group", FOREIGN, |_| {
        sigio(|fd, other| fcntl(fd, libc::F_SETOWN, other.pid().wrapping_neg()))
    }),
    forbids("SIGIO by F_SETOWN_EX", FOREIGN, |_| {
        sigio(|fd, other| fcntl(fd, 15, at(bytes![1_i32, other.pid].as_slice())))
    }),
    forbids("SIGIO by FIOSETOWN", FOREIGN, |_| {
        sigio(|fd, other| call(libc::SYS_ioctl, &[fd, 0x8901, at(&other.pid)]))
    }),
    forbids("SIGIO by F_SETOWN from context 0", FOREIGN, |_| {
        let other = Other::fresh()?;
        signal_of_socket(&other, |fd, other| fcntl(fd, libc::F_SETOWN, other.pid()))?;
        went_through(other.was_reached())
    }),
    forbids("SIGIO by FIOSETOWN from context 0", FOREIGN, |_| {
        let other = Other::fresh()?;
        signal_of_socket(&other, |fd, other| call(libc::SYS_ioctl, &[fd, 0x8901, at(&other.pid)]))?;
        went_through(other.was_reached())
    }),
    allows("SIGIO by F_SETOWN in context 0", |_| {
        let other = Other::here()?;
        signal_of_socket(&other, |fd, other| fcntl(fd, libc::F_SETOWN, other.pid()))?;
        went_through(other.was_reached())
    }),
    allows("SIGIO by F_SETOWN to oneself", |_| went_through(Other::start(signal_oneself)?.was_reached())),
    allows("SIGIO by F_SETOWN to oneself in a PID namespace", |_| {
        call(libc::SYS_unshare, &[libc::CLONE_NEWPID as usize])?;
        went_through(Other::start(signal_oneself)?.was_reached())
    }),
    allows("SIGIO of a lease that a writer breaks", |_| {
        went_through(Other::start(lease_oneself)?.was_reached())
    }),
    foreign!("ptrace(PTRACE_ATTACH)", |other| {
        ptrace(libc::PTRACE_ATTACH, &other)?;
        // It is stopped, and would stay so for ever.
        kill(other.pid(), libc::SIGKILL as usize)
    }),
    foreign!("ptrace(PTRACE_SEIZE)", |other| ptrace(libc::PTRACE_SEIZE, &other)),
    forbids("ptrace(PTRACE_TRACEME) by a child elsewhere", FOREIGN, |_| {
        enter(&FRESH)?;
        let child = raw::fork(|| {
            if enter(&FRESH).is_err() {
                return 9;
            }
            match call(libc::SYS_ptrace, &[libc::PTRACE_TRACEME as usize, 0, 0, 0]) {
                Ok(_) => 0,
                Err(Errno::PERM) => 1,
                Err(_) => 2,
            }
        });
        match libc::WEXITSTATUS(raw::wait(child)) {
            0 => Ok(()),
            1 => Err(Errno::PERM.into()),
            other => Err(Stop::Setup(format!("the child ended with {other}"))),
        }
    }),
    foreign!("process_vm_readv", |other| vm(libc::SYS_process_vm_readv, &other)),
    foreign!("process_vm_writev", |other| vm(libc::SYS_process_vm_writev, &other)),
    foreign!("process_madvise", |other| {
        let pidfd = pidfd(&other)?;
        let place = [WORD.as_ptr() as usize & !4095, 4096];
        call(libc::SYS_process_madvise, &[pidfd, at(&place), 1, libc::MADV_COLD as usize, 0])
    }),
    foreign!("pidfd_getfd", |other| call(libc::SYS_pidfd_getfd, &[pidfd(&other)?, 2, 0])),
    foreign!("kcmp", |other| call(libc::SYS_kcmp, &[std::process::id() as usize, other.pid(), 1, 0, 0])),
    foreign!("get_robust_list", |other| {
        let mut found = [0_usize; 2];
        let (head, length) = found.split_at_mut(1);
        call(libc::SYS_get_robust_list, &[other.pid(), into(head), into(length)])
    }),
    foreign!("perf_event_open", |other| {
        // struct perf_event_attr: software, its size, a clock, disabled.
        let attributes = bytes![1_u32, 64_u32, 0_u64, 0_u64, 0_u64, 0_u64, 1_u64, 0_u64, 0_u64];
        let arguments = [at(attributes.as_slice()), other.pid(), usize::MAX, usize::MAX, 0];
        call(libc::SYS_perf_event_open, &arguments)
    }),
    foreign!("setpriority", |other| call(libc::SYS_setpriority, &[0, other.pid(), 5])),
    foreign!("setpriority of a group", |other| call(libc::SYS_setpriority, &[1, other.pid(), 5])),
    foreign!("sched_setaffinity", |other| call(libc::SYS_sched_setaffinity, &[other.pid(), 8, at(&1_u64)])),
    foreign!("sched_setscheduler", |other| {
        call(libc::SYS_sched_setscheduler, &[other.pid(), libc::SCHED_BATCH as usize, at(&0_i32)])
    }),
    foreign!("sched_setattr", |other| {
        let attributes = bytes![48_u32, 3_u32, 0_u64, 0_i32, 0_u32, 0_u64, 0_u64, 0_u64];
        call(libc::SYS_sched_setattr, &[other.pid(), at(attributes.as_slice()), 0])
    }),
    foreign!("prlimit, to set", |other| {
        call(libc::SYS_prlimit64, &[other.pid(), libc::RLIMIT_CORE as usize, at(&[0_u64; 2]), 0])
    }),
    foreign!("ioprio_set", |other| call(libc::SYS_ioprio_set, &[1, other.pid(), 2 << 13 | 7])),
    foreign!("migrate_pages", |other| {
        call(libc::SYS_migrate_pages, &[other.pid(), 64, at(&1_u64), at(&1_u64)])
    }),
    forbids("setpgid of a child that went elsewhere", FOREIGN, |_| {
        let child = Other::start(|| {
            call(libc::SYS_setpgid, &[0, std::os::unix::process::parent_id() as usize]).ok();
            enter(&FRESH).map(|_| 0)
        })?;
        call(libc::SYS_setpgid, &[child.pid(), child.pid()])?;
        Ok(())
    }),
    forbids("context 0 signals another", FOREIGN, |_| {
        let other = Other::fresh()?;
        kill(other.pid(), WINCH)?;
        Ok(())
    }),
    forbids("context 0 traces another", FOREIGN, |_| {
        let other = Other::fresh()?;
        ptrace(libc::PTRACE_SEIZE, &other)?;
        Ok(())
    }),
    forbids("context 1 signals another", FOREIGN, |_| {
        let other = Other::fresh()?;
        enter(&number(1))?;
        kill(other.pid(), WINCH)?;
        Ok(())
    }),
    forbids("context 1 signals context 0", FOREIGN, |_| {
        let other = Other::here()?;
        enter(&number(1))?;
        kill(other.pid(), WINCH)?;
        Ok(())
    }),
    forbids("context 1 traces another", FOREIGN, |_| {
        let other = Other::fresh()?;
        enter(&number(1))?;
        ptrace(libc::PTRACE_SEIZE, &other)?;
        Ok(())
    }),
    forbids("context 1 reads the memory of another", FOREIGN, |_| {
        let other = Other::fresh()?;
        enter(&number(1))?;
        vm(libc::SYS_process_vm_readv, &other)?;
        Ok(())
    }),
    forbids("context 1 changes a priority", FOREIGN, |_| {
        let other = Other::fresh()?;
        enter(&number(1))?;
        call(libc::SYS_setpriority, &[0, other.pid(), 5])?;
        Ok(())
    }),
    forbids("a context signals process 1", FOREIGN, |_| {
        enter(&FRESH)?;
        kill(1, 0)?;
        Ok(())
    }),
    forbids("a context changes the priority of process 1", FOREIGN, |_| {
        enter(&FRESH)?;
        call(libc::SYS_setpriority, &[0, 1, 0])?;
        Ok(())
    }),
    forbids("a context traces process 1", FOREIGN, |_| {
        enter(&FRESH)?;
        call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, 1, 0, 0])?;
        Ok(())
    }),
    allows("root of context 0 touches process 1", |_| {
        kill(1, 0)?;
        call(libc::SYS_setpriority, &[0, 1, 0])?;
        Ok(())
    }),
    allows("processes of one context reach each other", |_| {
        enter(&FRESH)?;
        let other = Other::here()?;
        kill(other.pid(), 0)?;
        vm(libc::SYS_process_vm_readv, &other)?;
        call(libc::SYS_setpriority, &[0, other.pid(), 5])?;
        ptrace(libc::PTRACE_SEIZE, &other)?;
        kill(other.pid(), WINCH)?;
        Ok(())
    }),
    allows("kill(-1) reaches its own context", |_| {
        enter(&FRESH)?;
        let other = Other::here()?;
        kill(usize::MAX, WINCH)?;
        went_through(other.was_reached())
    }),
    allows("root of context 0 enters another by its number, and signals there", |_| {
        let other = Other::fresh()?;
        if other.told == 0 {
            return Err(Stop::Wrong("nobody makes contexts".into()));
        }
        enter(&number(other.told as u32))?;
        kill(other.pid(), WINCH)?;
        went_through(other.was_reached())
    }),
    allows("a parent waits for a child that went elsewhere", |_| {
        let other = Other::fresh()?;
        if other.was_reached() { Err(Stop::Wrong("it was signalled".into())) } else { Ok(()) }
    }),
];

fn kill(pid: usize, signal: usize) -> Call<usize> {
    call(libc::SYS_kill, &[pid, signal])
}

fn fcntl(fd: usize, command: i32, argument: usize) -> Call<usize> {
    call(libc::SYS_fcntl, &[fd, command as usize, argument])
}

/// With a `siginfo_t` that says `SI_QUEUE`.
fn queue(number: libc::c_long, to: &[usize]) -> Call<usize> {
    let mut info = [0_u32; 32];
    info[0] = WINCH as u32;
    info[2] = libc::SI_QUEUE as u32;
    let arguments = [to, &[at(&info)]].concat();
    call(number, &arguments)
}

fn pidfd(other: &Other) -> Call<usize> {
    call(libc::SYS_pidfd_open, &[other.pid(), 0])
}

fn ptrace(request: u32, other: &Other) -> Call<usize> {
    call(libc::SYS_ptrace, &[request as usize, other.pid(), 0, 0])
}

/// Something that is at the same address in both, as the other is a fork.
static WORD: [u8; 8] = *b"in place";

fn vm(number: libc::c_long, other: &Other) -> Call<usize> {
    let mut buffer = *b"........";
    // On the stack, so that it may be written there, too.
    let there = [into(&mut buffer), 8];
    let mut copy = [0_u8; 8];
    let here = [into(&mut copy), 8];
    call(number, &[other.pid(), at(&here), 1, at(&there), 1, 0])
}

/// Makes a socket's signal go somewhere by `direct`, and the socket send it: SIGWINCH, which the other blocks.
fn signal_of_socket(other: &Other, direct: fn(usize, &Other) -> Call<usize>) -> Res {
    signal_of(|fd| direct(fd, other))
}

fn signal_of(direct: impl FnOnce(usize) -> Call<usize>) -> Res {
    let (read, write) = std::os::unix::net::UnixStream::pair().ready()?;
    let fd = raw::num(&read);
    fcntl(fd, 10, WINCH).ready()?; // F_SETSIG
    direct(fd)?;
    fcntl(fd, libc::F_SETFL, libc::O_ASYNC as usize).ready()?;
    std::io::Write::write_all(&mut &write, b"x").ready()
}

/// From a fresh context.
fn signal_oneself() -> Res<usize> {
    enter(&FRESH)?;
    signal_of(|fd| fcntl(fd, libc::F_SETOWN, std::process::id() as usize))?;
    Ok(0)
}

/// From a fresh context; whoever opens the file for writing need not wait.
fn lease_oneself() -> Res<usize> {
    enter(&FRESH)?;
    let path = format!("/run/lease.{}", std::process::id());
    std::fs::write(&path, b"x").ready()?;
    let read = std::fs::File::open(&path).ready()?;
    fcntl(raw::num(&read), 10, WINCH).ready()?; // F_SETSIG
    fcntl(raw::num(&read), 1024, libc::F_RDLCK as usize).ready()?; // F_SETLEASE
    let flags = (libc::O_WRONLY | libc::O_NONBLOCK) as usize;
    let opened = raw::open(&path, flags as i32);
    std::fs::remove_file(&path).ready()?;
    went_through(matches!(opened, Err(Errno::AGAIN)))?;
    Ok(0)
}

fn sigio(direct: fn(usize, &Other) -> Call<usize>) -> Res {
    let other = Other::fresh()?;
    enter(&FRESH)?;
    signal_of_socket(&other, direct)?;
    went_through(other.was_reached())
}
