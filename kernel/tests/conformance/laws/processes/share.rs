//! `sched`: all processes of a context get of the processors what one gets, and none of a guest gets out of that.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::{Capabilities, ContextEntry, Errno, Properties, Which};

use super::{FRESH, ONLY_PERM, allows, become_nobody, enter, forbids, try_fork, went_through, whereabouts};
use crate::bytes;
use crate::case::{Law, Ready, Res, Stop};
use crate::raw::{self, at, call, text};

/// A fresh context whose processes share.
const SHARING: ContextEntry =
    ContextEntry { properties: Properties { sched: true, ..FRESH.properties }, ..FRESH };

/// How long processes are busy.
const BUSY: Duration = Duration::from_secs(3);

/// What one process has to get of a processor beside the four of a context. If they share it is a half, else a fifth.
const FAIR: f64 = 0.38;

pub(crate) const LAWS: &[Law] = &[
    forbids("four processes get more than one gets", ONLY_PERM, |_| {
        outweigh(|until| {
            enter(&SHARING)?;
            three_more(until, || Ok(()))
        })
    }),
    forbids("four processes that came by the context's number get more", ONLY_PERM, |_| {
        outweigh(|until| {
            let number = ContextEntry { which: Which::Number(211), ..FRESH };
            one_more(until, &ContextEntry { properties: SHARING.properties, ..number })?;
            // Who comes later need not ask for it.
            one_more(until, &number)?;
            one_more(until, &number)?;
            enter(&number).map(drop)
        })
    }),
    forbids(
        "four processes get more, of which the last by the context's number asks for it",
        ONLY_PERM,
        |_| {
            outweigh(|until| {
                let number = ContextEntry { which: Which::Number(212), ..FRESH };
                for _ in 0..3 {
                    one_more(until, &number)?;
                }
                enter(&ContextEntry { properties: SHARING.properties, ..number }).map(drop)
            })
        },
    ),
    forbids("four processes get more, of a context that comes to share later", ONLY_PERM, |_| {
        outweigh(|until| {
            enter(&FRESH)?;
            three_more(until, || Ok(()))?;
            enter(&ContextEntry { which: Which::Keep, ..SHARING }).map(drop)
        })
    }),
    forbids("four processes get more, each in a session of its own", ONLY_PERM, |_| {
        outweigh(|until| {
            enter(&SHARING)?;
            three_more(until, || call(libc::SYS_setsid, &[]).ready().map(drop))
        })
    }),
    forbids("four processes get more, each gone on to a context and a session of its own", ONLY_PERM, |_| {
        outweigh(|until| {
            enter(&SHARING)?;
            three_more(until, || {
                enter(&FRESH)?;
                call(libc::SYS_setsid, &[]).ready().map(drop)
            })
        })
    }),
    forbids("four processes get more, started in the control group of a service", ONLY_PERM, |_| {
        into_a_service()?;
        outweigh(|until| {
            enter(&SHARING)?;
            three_more(until, || Ok(()))
        })
    }),
    forbids("a guest moves itself into the first control group", ONLY_PERM, |_| {
        in_a_group()?;
        Ok(std::fs::write(format!("{GROUPS}/cgroup.procs"), "0")?)
    }),
    forbids("a guest does so from a context that it has gone on to", ONLY_PERM, |_| {
        in_a_group()?;
        enter(&FRESH)?;
        Ok(std::fs::write(format!("{GROUPS}/cgroup.procs"), "0")?)
    }),
    forbids("a guest gives its control group another weight", ONLY_PERM, |_| {
        Ok(std::fs::write(in_a_group()?.join("cpu.weight"), "10000")?)
    }),
    forbids("a guest makes a control group", ONLY_PERM, |_| {
        in_a_group()?;
        Ok(std::fs::create_dir(format!("{GROUPS}/conformance-made-{}", std::process::id()))?)
    }),
    forbids("a guest removes a control group of the host's", ONLY_PERM, |_| {
        let empty = PathBuf::from(format!("{GROUPS}/conformance-empty-{}", std::process::id()));
        std::fs::create_dir(&empty).ready()?;
        in_a_group()?;
        Ok(std::fs::remove_dir(empty)?)
    }),
    forbids("a guest changes the mode of a control group's file", ONLY_PERM, |_| {
        let file = in_a_group()?.join("cpu.weight");
        Ok(std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?)
    }),
    forbids("a guest sets an attribute of a control group", ONLY_PERM, |_| {
        let place = text(in_a_group()?);
        let name = text("user.delegate");
        let arguments = [at(place.as_bytes_with_nul()), at(name.as_bytes_with_nul()), at(b"1"), 1, 0];
        call(libc::SYS_setxattr, &arguments)?;
        Ok(())
    }),
    forbids("root joins a context that a user has in a control group of his own", ONLY_PERM, |_| {
        let place = into_a_service()?;
        let theirs = place.with_file_name("theirs");
        std::fs::create_dir_all(&theirs).ready()?;
        hand_down_to(&theirs)?;
        for path in [theirs.clone(), theirs.join("cgroup.procs"), theirs.join("cgroup.subtree_control")] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).ready()?;
        }
        let (mut told, tell) = std::io::pipe().ready()?;
        let until = Instant::now() + BUSY;
        try_fork(|| {
            let entered = std::fs::write(theirs.join("cgroup.procs"), "0")
                .map_err(|error| Stop::Setup(error.to_string()))
                .and_then(|()| become_nobody())
                .and_then(|()| enter(&SHARING));
            let number = entered.ok().flatten().unwrap_or(u32::MAX);
            std::io::Write::write_all(&mut &tell, &number.to_ne_bytes()).ok();
            busy(until, Ok(()))
        })?;
        let mut number = [0; 4];
        std::io::Read::read_exact(&mut told, &mut number).ready()?;
        let number = u32::from_ne_bytes(number);
        if number == u32::MAX {
            return Err(Stop::Setup("the user has no context".into()));
        }
        enter(&ContextEntry { which: Which::Number(number), ..FRESH })?;
        went_through(control_group()?.contains("/theirs"))
    }),
    forbids("a guest starts a child in the first control group", ONLY_PERM, |_| {
        in_a_group()?;
        let group = raw::open(GROUPS, libc::O_PATH).ready()?;
        // struct clone_args: CLONE_INTO_CGROUP, and the group's descriptor at the end.
        let mut arguments = bytes![1_u64 << 33, 0_u64, 0_u64, 0_u64, libc::SIGCHLD as u64];
        arguments.extend(bytes![0_u64, 0_u64, 0_u64, 0_u64, 0_u64, raw::num(&group) as u64]);
        if call(libc::SYS_clone3, &[at(arguments.as_slice()), arguments.len()])? == 0 {
            call(libc::SYS_exit_group, &[0]).ok();
        }
        Ok(())
    }),
    allows("a guest forks, starts programs and reads of its control group", |_| {
        let place = in_a_group()?;
        std::fs::read(place.join("cgroup.controllers"))?;
        let ran = std::process::Command::new("/bin/true").status()?;
        demand(ran.success() && whereabouts().is_some_and(|context| context > 1), "nobody is a guest")
    }),
    allows("who is refused stays where it was, and leaves nothing", |_| {
        let place = into_a_service()?;
        enter(&ContextEntry { properties: Properties { lock: true, ..FRESH.properties }, ..FRESH })?;
        let (before, was) = (control_group()?, state(&place));
        let refused = matches!(enter(&SHARING), Err(Stop::Refused(Errno::PERM)));
        demand(refused, "who is locked in gets out")?;
        let after = control_group()?;
        demand(before == after, &format!("it was in {before}, and is in {after}"))?;
        demand(was == state(&place), &format!("{was:?} has become {:?}", state(&place)))
    }),
    allows("an ordinary user shares, or is refused before anything changes", |_| {
        become_nobody()?;
        let shares = || kernel::contexts().status(None).is_ok_and(|status| status.properties.sched);
        match enter(&SHARING) {
            Ok(_) => demand(shares(), "it is in a context that does not share"),
            Err(Stop::Refused(Errno::PERM)) => demand(whereabouts() == Some(0), "it is in the context"),
            Err(other) => Err(other),
        }
    }),
];

fn demand(holds: bool, otherwise: &str) -> Res {
    if holds { Ok(()) } else { Err(Stop::Wrong(otherwise.into())) }
}

/// Whether this process, busy for a while, gets less than its share of a processor beside a context of four. They
/// are `crowd`, which starts three of them and becomes the fourth.
fn outweigh(crowd: fn(Instant) -> Res) -> Res {
    call(libc::SYS_sched_setaffinity, &[0, 8, at(&1_u64)]).ready()?;
    let until = Instant::now() + BUSY;
    let fourth = raw::fork(|| {
        let entered = crowd(until);
        let status = busy(until, entered);
        let others = std::iter::from_fn(|| (call(libc::SYS_wait4, &[usize::MAX, 0, 0, 0])).ok());
        others.count();
        status
    });
    spin(until);
    match raw::wait(fourth) {
        0 => {}
        status if libc::WEXITSTATUS(status) == REFUSED => return Err(Errno::PERM.into()),
        _ => return Err(Stop::Setup("the context was not made".into())),
    }
    let (own, of_four) = (processor_time(libc::RUSAGE_SELF)?, processor_time(libc::RUSAGE_CHILDREN)?);
    went_through(own / (own + of_four) < FAIR)
}

fn three_more(until: Instant, first: fn() -> Res) -> Res {
    for _ in 0..3 {
        try_fork(|| busy(until, first()))?;
    }
    Ok(())
}

/// Starts one that has entered a context by itself by the time that this returns.
fn one_more(until: Instant, entry: &ContextEntry) -> Res {
    let (mut ready, tell) = std::io::pipe().ready()?;
    try_fork(|| {
        let entered = enter(entry).map(drop);
        std::io::Write::write_all(&mut &tell, b"x").ok();
        busy(until, entered)
    })?;
    std::io::Read::read_exact(&mut ready, &mut [0]).ready()
}

/// Is busy if all went well so far; an exit status.
fn busy(until: Instant, so_far: Res) -> i32 {
    match so_far {
        Ok(()) => {
            spin(until);
            0
        }
        Err(Stop::Refused(Errno::PERM)) => REFUSED,
        Err(_) => 1,
    }
}

/// An exit status.
const REFUSED: i32 = 2;

fn spin(until: Instant) {
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Seconds of a processor that this process, or its children that it has waited for, have had.
fn processor_time(whose: i32) -> Res<f64> {
    // struct rusage begins with the times in user mode and in the kernel, as seconds and microseconds.
    let mut usage = [0_i64; 18];
    call(libc::SYS_getrusage, &[whose as usize, raw::into(&mut usage)]).ready()?;
    Ok((usage[0] + usage[2]) as f64 + (usage[1] + usage[3]) as f64 / 1e6)
}

const GROUPS: &str = "/sys/fs/cgroup";

/// Moves this process into a group as services have: below another, which hands no controller down to it.
fn into_a_service() -> Res<PathBuf> {
    let controllers = std::fs::read_to_string(format!("{GROUPS}/cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "cpu") {
        return Err(Stop::Lacking("there are no control groups with the cpu controller".into()));
    }
    let place = Path::new(GROUPS).join(format!("conformance-{}/service", std::process::id()));
    std::fs::create_dir_all(&place).ready()?;
    std::fs::write(place.join("cgroup.procs"), "0").ready()?;
    Ok(place)
}

/// Becomes root of a guest that shares, started in a service; the group that it is in then.
fn in_a_group() -> Res<PathBuf> {
    let service = into_a_service()?;
    // So that it has a weight where nobody makes contexts.
    hand_down_to(&service)?;
    enter(&ContextEntry { remove: Capabilities::OF_A_GUEST.others(), ..SHARING })?;
    Ok(Path::new(GROUPS).join(control_group()?.trim_start_matches('/')))
}

/// Lets a service's group have the controller.
fn hand_down_to(service: &Path) -> Res {
    for above in [Path::new(GROUPS), service.parent().unwrap_or(service)] {
        std::fs::write(above.join("cgroup.subtree_control"), "+cpu").ready()?;
    }
    Ok(())
}

/// What a group and the one above it are, hand down and hold.
fn state(group: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    for group in [group, group.parent().unwrap_or(group)] {
        for file in ["cgroup.type", "cgroup.subtree_control"] {
            found.push(std::fs::read_to_string(group.join(file)).unwrap_or_default());
        }
    }
    found
}

/// The path of this process's group in version 2.
fn control_group() -> Res<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ready()?;
    Ok(text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned())
}
