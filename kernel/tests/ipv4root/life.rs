//! Loading, reloading, unloading, and a table that is full.

use std::io;

use kernel::bpf::{Host, Roots, load, objects, reload, unload};

use crate::ensure;
use crate::ipv4root::case::{Case, Res, Who, child, same};
use crate::ipv4root::net::{A, Net};
use crate::ipv4root::raw;
use crate::ipv4root::state::whereabouts;

/// What is done to the programs, and what has to come of it.
pub(crate) type Stage = fn(&Case<'_>, &Host) -> Res;

/// In this order; the programs are loaded at the beginning and are not at the end.
pub(crate) const STAGES: &[(&str, Stage)] = &[
    ("what has ended is forgotten", forgets),
    ("a reload keeps the roots of those who run", reloads),
    ("while a reload runs, old and new programs agree", agrees),
    ("an unload leaves nothing", unloads),
    ("a full table keeps roots beside it, and says so", overflows),
    ("without a cgroup v2 hierarchy the load says so, and leaves nothing", no_cgroups),
];

/// Tries all that are asked for, and says what came of each.
pub(crate) fn all(net: &Net, host: &Host, wanted: fn(&str) -> bool, tell: &mut dyn FnMut(&'static str, Res)) {
    let case = Case { net, who: Who::Bpf };
    for (name, stage) in STAGES.iter().filter(|(name, _)| wanted(name)) {
        tell(name, stage(&case, host));
    }
}

fn other<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::other(error.to_string())
}

fn roots(host: &Host) -> Res<Roots> {
    Ok(Roots::of(host).map_err(other)?.ok_or_else(|| other("not loaded"))?)
}

fn forgets(_: &Case<'_>, host: &Host) -> Res {
    // The kernel frees a task a moment after it has ended.
    for _ in 0..300 {
        if roots(host)?.tasks == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let now = roots(host)?;
    same((now.tasks, now.spilled, now.lost), (0, 0, 0))
}

/// A guest that waits for a line in a pipe and says where it is then.
struct Sleeper {
    child: raw::Child,
    wake: io::PipeWriter,
}

impl Sleeper {
    fn start(case: &Case<'_>) -> io::Result<Self> {
        let (alarm, wake) = io::pipe()?;
        let (ready, tell) = io::pipe()?;
        let ours = wake.try_clone()?;
        let child = raw::fork(60, move || {
            drop((ours, ready));
            if let Err(error) = case.confine(&[A]) {
                return error.to_string();
            }
            drop(tell);
            io::Read::read(&mut &alarm, &mut [0]).ok();
            child(whereabouts).unwrap_or_else(|error| error.to_string())
        })?;
        Ok(Self { child, wake })
    }

    fn ask(mut self) -> io::Result<String> {
        io::Write::write_all(&mut self.wake, b"x")?;
        Ok(self.child.said())
    }
}

fn reloads(case: &Case<'_>, host: &Host) -> Res {
    let sleeper = Sleeper::start(case)?;
    for _ in 0..100 {
        if roots(host)?.tasks > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    reload(host, &objects::IPV4ROOT).map_err(other)?;
    ensure!(roots(host)?.tasks > 0, "the reload has emptied the table");
    same(sleeper.ask()?, A.to_string())?;
    same(case.told(&[A], whereabouts)?, A.to_string())
}

/// Keeps the old programs attached after a reload, by other names for their links.
fn agrees(case: &Case<'_>, host: &Host) -> Res {
    let names = ["setsockopt", "getsockopt", "bind4", "connect4", "task_newtask", "sched_process_free"];
    let kept = names.map(|name| host.bpffs.join(format!("kept_{name}")));
    for (name, kept) in names.iter().zip(&kept) {
        std::fs::hard_link(host.bpffs.join("vserver/ipv4root").join(name), kept)?;
    }
    let reloaded = reload(host, &objects::IPV4ROOT).map_err(other);
    let place = case.told(&[A], || child(whereabouts));
    for kept in &kept {
        std::fs::remove_file(kept)?;
    }
    reloaded?;
    same(place?, A.to_string())
}

/// `Err` unless nothing of ours is in the bpf file system.
fn is_clean(host: &Host) -> Res {
    let ours = host.bpffs.join("vserver");
    let within =
        std::fs::read_dir(&ours).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let within: Vec<_> = within.unwrap_or_default();
    ensure!(!ours.exists(), "{} is there, with {within:?}", ours.display());
    Ok(())
}

fn unloads(case: &Case<'_>, host: &Host) -> Res {
    unload(host, &objects::IPV4ROOT).map_err(other)?;
    is_clean(host)?;
    // The kernel detaches a program a moment after its link has gone.
    for _ in 0..100 {
        if !(objects::IPV4ROOT.is_live)() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    ensure!(!(objects::IPV4ROOT.is_live)(), "something answers");
    ensure!(case.told(&[A], whereabouts).is_err(), "a root was set");
    same(Roots::of(host).map_err(other)?, None)
}

/// More processes at once than the table has places for.
fn overflows(case: &Case<'_>, host: &Host) -> Res {
    let small = tempfile::NamedTempFile::new()?;
    std::fs::write(small.path(), "256\n")?;
    let host = Host { threads_max: small.path().into(), ..host.clone() };
    load(&host, &objects::IPV4ROOT).map_err(other)?;
    let places = roots(&host)?.capacity;
    same(places, 320)?;
    let said = case.told(&[A], || {
        let mut all = raw::crowd(places + 100, || whereabouts().unwrap_or_else(|error| error.to_string()))?;
        all.retain(|place| *place != A.to_string());
        Ok(format!("{all:?}"))
    })?;
    let now = roots(&host)?;
    same(said, "[]".to_owned())?;
    ensure!(now.spilled >= 100, "only {} were put beside the table", now.spilled);
    same(now.lost, 0)?;
    unload(&host, &objects::IPV4ROOT).map_err(other)?;
    is_clean(&host)?;
    Ok(())
}

fn no_cgroups(_: &Case<'_>, host: &Host) -> Res {
    let mounts = tempfile::NamedTempFile::new()?;
    let host = Host { mounts: mounts.path().into(), ..host.clone() };
    match load(&host, &objects::IPV4ROOT) {
        Err(kernel::bpf::BpfError::NoCgroups) => {}
        other => ensure!(false, "{other:?}"),
    }
    is_clean(&host)?;
    Ok(())
}
