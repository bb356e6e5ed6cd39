//! What one process finds out about another.

use super::{FOREIGN, FRESH, ONLY_PERM, Other, allows, become_nobody, enter, forbids, foreign, look, number};
use crate::case::{Law, Res};
use crate::raw::{self, at, call, into, text};

pub(crate) const LAWS: &[Law] = &[
    foreign!("stat of /proc/PID", |other| stat(&other.proc(""))),
    foreign!("opendir of /proc/PID", |other| look(&other.proc(""))),
    foreign!("/proc/PID/stat", |other| look(&other.proc("/stat"))),
    foreign!("/proc/PID/status", |other| look(&other.proc("/status"))),
    foreign!("/proc/PID/cmdline", |other| look(&other.proc("/cmdline"))),
    foreign!("/proc/PID/environ", |other| look(&other.proc("/environ"))),
    foreign!("/proc/PID/maps", |other| look(&other.proc("/maps"))),
    foreign!("/proc/PID/mem", |other| look(&other.proc("/mem"))),
    foreign!("/proc/PID/limits", |other| look(&other.proc("/limits"))),
    foreign!("/proc/PID/task/TID/stat", |other| look(&other.proc(&format!("/task/{}/stat", other.pid)))),
    foreign!("/proc/PID/fd", |other| look(&other.proc("/fd"))),
    foreign!("/proc/PID/fd/N, to open", |other| look(&other.proc("/fd/2"))),
    foreign!("/proc/PID/root, to go through", |other| look(&other.proc("/root/etc/passwd"))),
    foreign!("/proc/PID/cwd, to go through", |other| look(&other.proc("/cwd/."))),
    foreign!("/proc/PID/exe, to read the link", |other| readlink(&other.proc("/exe"))),
    foreign!("/proc/PID/ns/pid, to open", |other| look(&other.proc("/ns/pid"))),
    foreign!("/proc/PID/oom_score_adj, to write", |other| {
        raw::open(other.proc("/oom_score_adj"), libc::O_WRONLY)
    }),
    forbids("/proc/1/oom_score_adj, to write", ONLY_PERM, |_| {
        enter(&FRESH)?;
        raw::open("/proc/1/oom_score_adj", libc::O_WRONLY)?;
        Ok(())
    }),
    forbids("/proc/1/oom_score_adj, to write, by context 1", ONLY_PERM, |_| {
        enter(&number(1))?;
        raw::open("/proc/1/oom_score_adj", libc::O_WRONLY)?;
        Ok(())
    }),
    forbids("fstat of a process in /proc, opened before", FOREIGN, |_| {
        let other = Other::fresh()?;
        let path = raw::open("/proc", libc::O_PATH)?;
        enter(&FRESH)?;
        let mut buffer = [0_u64; 32];
        let name = text(other.pid.to_string());
        call(libc::SYS_newfstatat, &[raw::num(&path), at(name.as_bytes_with_nul()), into(&mut buffer), 0])?;
        Ok(())
    }),
    foreign!("getpgid", |other| call(libc::SYS_getpgid, &[other.pid()])),
    foreign!("getsid", |other| call(libc::SYS_getsid, &[other.pid()])),
    foreign!("sched_getscheduler", |other| call(libc::SYS_sched_getscheduler, &[other.pid()])),
    foreign!("sched_getaffinity", |other| {
        call(libc::SYS_sched_getaffinity, &[other.pid(), 128, into(&mut [0_u64; 16])])
    }),
    foreign!("ioprio_get", |other| call(libc::SYS_ioprio_get, &[1, other.pid()])),
    forbids("an ordinary user's context sees that user's other processes", FOREIGN, |_| {
        become_nobody()?;
        let other = Other::here()?;
        enter(&FRESH)?;
        look(&other.proc("/stat"))
    }),
    forbids("context 0 sees another", FOREIGN, |_| {
        let other = Other::fresh()?;
        look(&other.proc("/stat"))
    }),
    forbids("a context sees context 0", FOREIGN, |_| {
        let other = Other::here()?;
        enter(&FRESH)?;
        look(&other.proc("/stat"))
    }),
    forbids("a context sees context 1", FOREIGN, |_| {
        let other = Other::start(|| enter(&number(1)).map(|_| 0))?;
        enter(&FRESH)?;
        look(&other.proc("/stat"))
    }),
    forbids("/proc/1/root from a context", FOREIGN, |_| {
        enter(&FRESH)?;
        look("/proc/1/root/etc/passwd")
    }),
    allows("process 1 is seen from a context", |_| {
        enter(&FRESH)?;
        stat("/proc/1")?;
        look("/proc/1/stat")?;
        call(libc::SYS_getpgid, &[1])?;
        Ok(())
    }),
    allows("context 1 sees all", |_| {
        let other = Other::fresh()?;
        let host = Other::here()?;
        enter(&number(1))?;
        for one in [&other, &host] {
            stat(&one.proc(""))?;
            look(&one.proc("/stat"))?;
            look(&one.proc("/status"))?;
            readlink(&one.proc("/exe"))?;
            call(libc::SYS_getpgid, &[one.pid()])?;
        }
        Ok(())
    }),
    allows("a process sees its own context", |_| {
        enter(&FRESH)?;
        let other = Other::here()?;
        for name in ["", "/stat", "/maps", "/fd", "/root", "/task"] {
            look(&other.proc(name))?;
        }
        look("/proc/self/stat")?;
        look("/proc/self/mem")?;
        call(libc::SYS_getsid, &[other.pid()])?;
        Ok(())
    }),
];

fn stat(path: &str) -> Res {
    std::fs::metadata(path)?;
    Ok(())
}

fn readlink(path: &str) -> Res {
    std::fs::read_link(path)?;
    Ok(())
}
