//! The call itself: who may make it, how long it holds, and the properties that come with it.

use kernel::{Capabilities, ContextEntry, Errno, Properties, Provider, Which};

use super::{
    FRESH, ONLY_PERM, Other, allows, become_nobody, enter, forbids, number, patiently, try_fork, whereabouts,
};
use crate::case::{Law, Ready, Res, Stop};
use crate::raw::{self, at, call};

const SYS_ADMIN: Capabilities = Capabilities(1 << 21);
const NET_RAW: Capabilities = Capabilities(1 << 13);

pub(crate) const LAWS: &[Law] = &[
    allows("anybody enters a fresh context", |_| {
        become_nobody()?;
        let first = fresh()?;
        let second = fresh()?;
        demand(first > 1 && second > 1 && first != second, &format!("{first} and {second}"))
    }),
    allows("fresh contexts of two processes differ", |_| {
        let one = Other::fresh()?;
        let two = Other::fresh()?;
        demand(one.told != two.told && one.told > 1, &format!("{} and {}", one.told, two.told))
    }),
    forbids("a number, asked for by root of a context", ONLY_PERM, |_| {
        enter(&FRESH)?;
        enter(&number(200)).map(drop)
    }),
    forbids("context 1, asked for by root of a context", ONLY_PERM, |_| {
        enter(&FRESH)?;
        enter(&number(1)).map(drop)
    }),
    forbids("the number of its own former context", ONLY_PERM, |_| {
        enter(&number(201))?;
        enter(&FRESH)?;
        enter(&number(201)).map(drop)
    }),
    forbids("a number, asked for by an ordinary user", ONLY_PERM, |_| {
        become_nobody()?;
        enter(&number(202)).map(drop)
    }),
    forbids("a number, asked for by root without CAP_SYS_ADMIN", ONLY_PERM, |_| {
        drop_effective()?;
        enter(&number(203)).map(drop)
    }),
    forbids("a number, asked for under a ceiling without CAP_SYS_ADMIN", ONLY_PERM, |_| {
        enter(&ContextEntry { which: Which::Keep, remove: SYS_ADMIN, ..FRESH })?;
        enter(&number(204)).map(drop)
    }),
    forbids("a number, asked for by root of a user namespace", ONLY_PERM, |_| {
        become_nobody()?;
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]).ready()?;
        enter(&number(205)).map(drop)
    }),
    forbids("entering with a second thread", &[Errno::BUSY], |_| {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv().ok());
        let result = enter(&FRESH);
        drop(release);
        thread.join().ok();
        result.map(drop)
    }),
    allows("a second thread that has ended is no hindrance", |_| {
        std::thread::spawn(|| ()).join().ok();
        // It is waited for before it is quite gone.
        patiently(|| fresh().map(drop))
    }),
    allows("a fork, a thread and a program stay inside", |_| {
        let outside = Other::here()?;
        let own = fresh()?;
        let thread = std::thread::spawn(whereabouts).join().ok().flatten();
        demand(thread == Some(own), &format!("a thread is in {thread:?}, not {own}"))?;
        let child = Other::start(|| Ok(whereabouts().unwrap_or_default() as usize))?;
        demand(child.told == own as usize, &format!("a child is in {}, not {own}", child.told))?;
        let kill = format!("(kill -0 {})", outside.pid);
        let sent = std::process::Command::new("sh").arg("-c").arg(kill).output().ready()?;
        demand(!sent.status.success(), "a program signals what is outside")
    }),
    allows("nobody else is taken along", |_| {
        let other = Other::start(|| fresh().map(|number| number as usize))?;
        demand(other.told > 1 && whereabouts() == Some(0), "the parent is elsewhere")
    }),
    forbids("lock: a fresh context", ONLY_PERM, |_| {
        enter(&with(|all| all.lock = true))?;
        enter(&FRESH).map(drop)
    }),
    forbids("lock: a fresh context for a child", ONLY_PERM, |_| {
        enter(&with(|all| all.lock = true))?;
        let child = Other::start(|| Ok(usize::from(enter(&FRESH).is_err())))?;
        super::went_through(child.told == 0)
    }),
    forbids("lock: a fresh context for who was there before", ONLY_PERM, |_| {
        enter(&FRESH)?;
        let other = Other::start(|| keep(|all| all.lock = true).map(|()| 0))?;
        enter(&FRESH)?;
        drop(other);
        Ok(())
    }),
    forbids("lock: of context 0", &[Errno::PERM, Errno::INVAL], |_| keep(|all| all.lock = true)),
    forbids("lock: by one of several without CAP_SYS_ADMIN", ONLY_PERM, |_| {
        by_one_of_several(|| keep(|all| all.lock = true))
    }),
    allows("lock: capabilities may still be given up", |_| {
        enter(&with(|all| all.lock = true))?;
        enter(&ContextEntry { which: Which::Keep, remove: NET_RAW, ..FRESH })?;
        Ok(())
    }),
    forbids("private: its number, asked for by root of context 0", ONLY_PERM, |_| {
        let other = Other::start(|| enter(&with(|all| all.private = true)).map(told))?;
        enter(&number(if other.told == 0 { 207 } else { other.told as u32 })).map(drop)
    }),
    allows("private: it ends with the context's last process", |_| {
        let private = ContextEntry { which: Which::Number(208), ..with(|all| all.private = true) };
        let other = Other::start(|| enter(&private).map(told))?;
        demand(other.told == 208, "nobody makes contexts")?;
        other.was_reached();
        // The kernel forgets a task a little later than its parent.
        patiently(|| enter(&number(208)).map(drop))
    }),
    forbids("private: by one of several without CAP_SYS_ADMIN", ONLY_PERM, |_| {
        by_one_of_several(|| keep(|all| all.private = true))
    }),
    forbids("nproc: forking past the limit", &[Errno::AGAIN], |_| {
        limit(5)?;
        enter(&with(|all| all.nproc = true))?;
        spawn(20, || 0)
    }),
    forbids("nproc: forking past it by going on to fresh contexts", &[Errno::AGAIN], |_| {
        limit(5)?;
        enter(&with(|all| all.nproc = true))?;
        spawn(20, || i32::from(enter(&FRESH).is_err()))
    }),
    forbids("nproc: forking past it by a second limit", &[Errno::AGAIN], |_| {
        limit(5)?;
        enter(&with(|all| all.nproc = true))?;
        limit(100)?;
        keep(|all| all.nproc = true)?;
        spawn(20, || 0)
    }),
    forbids("nproc: threads past the limit", &[Errno::AGAIN], |_| {
        limit(5)?;
        enter(&with(|all| all.nproc = true))?;
        for _ in 0..20 {
            let sleeper = || std::thread::sleep(std::time::Duration::from_secs(5));
            std::thread::Builder::new().stack_size(1 << 16).spawn(sleeper)?;
        }
        Ok(())
    }),
    allows("nproc: who has ended makes room", |_| {
        limit(5)?;
        enter(&with(|all| all.nproc = true))?;
        for _ in 0..20 {
            patiently(|| {
                raw::wait(try_fork(|| 0)?);
                Ok(())
            })?;
        }
        Ok(())
    }),
    allows("nproc: other contexts have their own", |_| {
        limit(5)?;
        let full = Other::start(|| {
            enter(&with(|all| all.nproc = true))?;
            spawn(20, || 0).ok();
            Ok(0)
        })?;
        enter(&with(|all| all.nproc = true))?;
        let children: Vec<_> = (0..3).map(|_| Other::here()).collect::<Result<_, _>>()?;
        drop((children, full));
        Ok(())
    }),
    allows("fakeinit: the context knows its first process", |_| {
        let own = std::process::id();
        enter(&with(|all| all.fake_init = true))?;
        let child = Other::start(|| {
            let status = kernel::contexts().status(None).map_err(|_| Errno::NOSYS)?;
            Ok(status.init_pid.unwrap_or_default() as usize)
        })?;
        demand(child.told == own as usize, &format!("it takes {} for process 1", child.told))
    }),
    allows("all properties are told", |_| {
        let all = Properties { lock: true, sched: true, nproc: true, private: true, fake_init: true };
        let remove = Capabilities(1 << 40 | 1 << 33 | 1 << 21);
        let Some(own) = enter(&ContextEntry { which: Which::Fresh, remove, properties: all })? else {
            return Err(Errno::NOSYS.into());
        };
        let status = kernel::contexts().status(None).map_err(|_| Errno::NOSYS)?;
        demand(
            status.context == own && status.properties == all && status.ceiling.0 & remove.0 == 0,
            &format!("{status:?}"),
        )
    }),
    allows("root of context 0 is told where a process is", |_| {
        let other = Other::start(|| {
            let own = fresh()?;
            enter(&ContextEntry { which: Which::Keep, remove: NET_RAW, ..with(|all| all.nproc = true) })?;
            Ok(own as usize)
        })?;
        let child = Other::here()?;
        let of = |one: &Other| kernel::contexts().status(Some(one.pid as u32)).map_err(|_| Errno::NOSYS);
        let status = of(&other)?;
        demand(
            status.context == other.told as u32
                && status.properties.nproc
                && status.ceiling.0 & NET_RAW.0 == 0
                && of(&child)?.context == 0,
            &format!("{status:?}"),
        )
    }),
    allows("a context's number is told of children, too", |_| {
        let other = Other::start(|| {
            fresh()?;
            let child = Other::here()?;
            let pid = child.pid as usize;
            // Stays until this process ends.
            std::mem::forget(child);
            Ok(pid)
        })?;
        let status = kernel::contexts().status(Some(other.told as u32)).map_err(|_| Errno::NOSYS)?;
        demand(status.context > 1, &format!("{status:?}"))
    }),
    forbids("a reload of the programs lets nobody out", ONLY_PERM, |_| {
        has_programs()?;
        let other = Other::fresh()?;
        let limited = raw::fork(|| i32::from(limited_forks().is_err()));
        if (kernel::bpf::objects::CONTEXTS.is_live)() {
            for _ in 0..3 {
                kernel::bpf::reload(&kernel::bpf::Host::default(), &kernel::bpf::objects::CONTEXTS)
                    .map_err(|error| Stop::Setup(error.to_string()))?;
            }
            demand(raw::wait(limited) == 0, "tasks were lost or counted twice")?;
        }
        call(libc::SYS_kill, &[other.pid(), 0])?;
        Ok(())
    }),
    allows("programs that are loaded anew know no context from before", |_| {
        has_programs()?;
        let private = ContextEntry { which: Which::Number(213), ..with(|all| all.private = true) };
        let other = Other::start(|| enter(&private).map(told))?;
        demand(other.told == 213, "nobody makes contexts")?;
        let (host, contexts) = (kernel::bpf::Host::default(), &kernel::bpf::objects::CONTEXTS);
        let anew = kernel::bpf::unload(&host, contexts).and_then(|()| kernel::bpf::load(&host, contexts));
        anew.map_err(|error| Stop::Setup(error.to_string()))?;
        enter(&private).map(drop)
    }),
    allows("two thousand contexts, one after the other", |_| {
        for _ in 0..2000 {
            fresh()?;
        }
        Ok(())
    }),
];

/// Whether it is programs that make contexts here, or would.
fn has_programs() -> Res {
    if kernel::contexts().provider() == Provider::Patch {
        return Err(Stop::Lacking("the patch has no programs".into()));
    }
    Ok(())
}

/// A fresh context with a property.
fn with(property: fn(&mut Properties)) -> ContextEntry {
    let mut entry = FRESH;
    property(&mut entry.properties);
    entry
}

/// A property for the present context.
fn keep(property: fn(&mut Properties)) -> Res {
    enter(&ContextEntry { which: Which::Keep, ..with(property) }).map(drop)
}

/// What an ordinary user asks for in a context that root has made and is in.
fn by_one_of_several(deed: fn() -> Res) -> Res {
    let member = Other::start(|| {
        enter(&FRESH)?;
        let child = Other::start(|| {
            become_nobody()?;
            Ok(usize::from(deed().is_err()))
        })?;
        Ok(child.told)
    })?;
    super::went_through(member.told == 0)
}

fn told(number: Option<u32>) -> usize {
    number.unwrap_or_default() as usize
}

/// The number of the fresh context that this process is in then.
fn fresh() -> Res<u32> {
    enter(&FRESH)?.ok_or_else(|| Stop::Wrong("nobody makes contexts".into()))
}

fn demand(holds: bool, otherwise: &str) -> Res {
    if holds { Ok(()) } else { Err(Stop::Wrong(otherwise.into())) }
}

/// Sets the limit of processes.
fn limit(count: u64) -> Res {
    let pair = [count, 100];
    call(libc::SYS_prlimit64, &[0, libc::RLIMIT_NPROC as usize, at(&pair), 0]).ready().map(drop)
}

/// Starts as many children, one when the other has done something; then they wait until the law is over.
fn spawn(count: u32, first: fn() -> i32) -> Res {
    let (released, _hold) = std::io::pipe().ready()?;
    let (mut done, tell) = std::io::pipe().ready()?;
    for _ in 0..count {
        try_fork(|| {
            let status = first();
            std::io::Write::write_all(&mut &tell, b"x").ok();
            // The end that this child holds itself is never closed: the alarm of the law, or its end, is.
            call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize]).ok();
            call(libc::SYS_alarm, &[5]).ok();
            std::io::Read::read(&mut &released, &mut [0]).ok();
            status
        })?;
        std::io::Read::read_exact(&mut done, &mut [0]).ready()?;
    }
    Ok(())
}

/// Forks under a limit for a while; in the end as many fit as before, and no more.
fn limited_forks() -> Res {
    limit(5)?;
    enter(&with(|all| all.nproc = true))?;
    let begin = std::time::Instant::now();
    while begin.elapsed().as_secs() < 3 {
        if let Ok(child) = try_fork(|| 0) {
            raw::wait(child);
        }
    }
    // The last ones are not forgotten yet.
    std::thread::sleep(std::time::Duration::from_secs(1));
    spawn(4, || 0)?;
    demand(spawn(1, || 0).is_err(), "one too many")
}

/// Keeps user 0 and nothing of what makes it root.
fn drop_effective() -> Res {
    let header = [0x2008_0522_u32, 0];
    call(libc::SYS_capset, &[at(&header), at(&[0_u32; 6])]).ready().map(drop)
}
