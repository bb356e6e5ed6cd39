//! The eBPF programs. `kernel/bpf/abi.h` has the calls; contexts and IPv4 roots are loaded apart.
//!
//! LSM hooks can refuse, and nothing else. So contexts are made of three things, and the launcher adds the third:
//!
//! | what | by whom |
//! |---|---|
//! | signals, ptrace, priorities, affinity, limits to set, process groups and sessions, memory, pidfds, `SIGIO`, performance counters of one process | the programs |
//! | in a guest, a file's signals go to the process that says so and to no other: `F_SETOWN` with its own number | the programs |
//! | `/proc/PID`, but for its name in the directory | the programs, unless lockdown is `confidentiality` |
//! | writing to what is the host's own in `/proc`, once `CAP_SYS_ADMIN` is given up | the programs |
//! | bpf(2) outside context 0; user namespaces once any capability is given up | the programs |
//! | System V objects | the programs bar those of others, and those beyond a guest's 4096 (`ENOSPC`); an IPC namespace gives keys of one's own |
//! | lock, of the whole context: by its administrator, or who is alone in it | the programs |
//! | leaving a chroot: chroot(2) again, where something of the host's is above | the programs refuse it; with `pivot_root` nothing is above |
//! | nproc | the programs: threads and zombies count, root does, and so do those that went on to fresh contexts |
//! | sched | a control group with `cpu` ([`share`]) that a process joins before it enters; the programs keep it there, once `CAP_SYS_ADMIN` is given up, in fresh contexts that it goes on to, too |
//! | modules, kexec, reboot, clocks, mounts, devices, raw sockets, open by handle, `perf` of whole processors | the ceiling: the launcher names the capability, the programs keep it lost |
//! | names in `/proc`, existence by `EPERM` instead of `ESRCH`, `pidfd_open`, getpriority(2), limits to read | a PID namespace |
//! | getpid(2), getppid(2) and reparenting of fakeinit; here its number is noted | a PID namespace |
//! | POSIX message queues | an IPC namespace |
//! | abstract sockets | a network namespace |
//!
//! `CAP_DAC_READ_SEARCH` opens files by handle past every chroot, and belongs under a guest's ceiling.
//!
//! Context 0 is no better than others, with one exception: the host's process 1 sees and signals all, so that
//! services and shutdown work. Whoever may write to a control group ends what is in it by `cgroup.kill`, which
//! asks nobody.
//!
//! A share of the processors is joined first and the context entered then, in one call of the programs: in a guest's
//! context with all the capabilities still needed for the other, a process could be traced by root of the guest, who
//! would have them.
//!
//! Fresh contexts have numbers from 65536 up. Smaller ones are only entered by root of the host, so that nobody
//! can wait in a guest's configured context before the guest starts.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Pid, test_kill_process};

use super::share::{self, Groups, Joined};
use super::{
    Capabilities, ContextError, Contexts, ENTER, Entry, Ipv4Root, LOOK, Properties, Provider, SET_ROOT,
    Status, Which, refused,
};
use crate::Errno;
use crate::bpf::{
    ANSWER_BITS, FEATURE_CONTEXTS, FLAG_PRIVATE, FLAG_SCHED, GET_CONTEXT, GET_FLAGS, GET_INIT_PID,
    GET_REMOVED, Host, PRCTL_ENTER, PRCTL_GET, Pins, Root, getsockopt_root, objects, prctl_answer,
    setsockopt_root,
};

const CURE: &str = "run vkernel load";

/// `struct vs_task` of `kernel/bpf/vserver.h`: context, account, removed (low, high), initpid, tgid, counted,
/// reserved.
type Task = [u32; 8];
/// `struct vs_context` of `kernel/bpf/context.bpf.c`: held, limit, flags, initpid.
type Group = [u32; 4];

/// Programs pinned in the bpf file system of a host; needed only to look at other processes, and to enter a context
/// by its number.
#[derive(Clone, Debug, Default)]
pub struct Bpf {
    host: Host,
}

impl Bpf {
    /// Whether programs for contexts are at work, of the version that is spoken here. Needs no privilege.
    pub fn is_loaded() -> bool {
        objects::answers(FEATURE_CONTEXTS)
    }

    /// The caller's addresses; `None`: all. Where the programs for roots are not loaded nobody has any. Needs no
    /// privilege.
    pub fn own_root() -> Result<Option<Ipv4Root>, ContextError> {
        let asked =
            socket(AddressFamily::INET, SocketType::DGRAM, None).and_then(|socket| getsockopt_root(&socket));
        match asked {
            Ok(raw) => Ok(from_raw(&raw)),
            Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(refused(LOOK, errno, CURE)),
        }
    }
}

impl Contexts for Bpf {
    fn provider(&self) -> Provider {
        Provider::Bpf
    }

    fn enter(&self, entry: &Entry) -> Result<u32, ContextError> {
        let number = entry.which.number().ok_or_else(|| refused(ENTER, Errno::INVAL, CURE))?;
        let (remove, flags) = (entry.remove.0, entry.properties.bits());
        let share = self.join_share(entry)?;
        // prctl passes a long: a negative number keeps its sign.
        let entered = prctl_answer(PRCTL_ENTER, i64::from(number) as u64, remove, flags.into());
        if let Err(errno) = entered {
            if let Some(share) = share {
                share.leave();
            }
            return Err(unanswered(ENTER, errno));
        }
        Ok(part(GET_CONTEXT, u32::BITS)? as u32)
    }

    fn set_ipv4root(&self, root: &Ipv4Root) -> Result<(), ContextError> {
        let raw = to_raw(root);
        socket(AddressFamily::INET, SocketType::DGRAM, None)
            .and_then(|socket| setsockopt_root(&socket, &raw))
            .map_err(|errno| refused(SET_ROOT, errno, CURE))
    }

    fn status(&self, pid: Option<u32>) -> Result<Status, ContextError> {
        match pid {
            Some(pid) if pid != std::process::id() => self.other(pid),
            _ => own(),
        }
    }
}

/// The caller's own status, which needs no privilege.
fn own() -> Result<Status, ContextError> {
    let init_pid = part(GET_INIT_PID, u32::BITS)? as u32;
    Ok(Status {
        context: part(GET_CONTEXT, u32::BITS)? as u32,
        properties: Properties::from_bits(part(GET_FLAGS, u32::BITS)? as u32),
        ceiling: Capabilities(!part(GET_REMOVED, u64::BITS)?),
        init_pid: (init_pid != 0).then_some(init_pid),
        root: Bpf::own_root()?,
    })
}

/// A field of the caller's, gathered from answers of 11 bits.
fn part(field: u64, bits: u32) -> Result<u64, ContextError> {
    let mut value = 0;
    for part in 0..bits.div_ceil(ANSWER_BITS) {
        let answer = prctl_answer(PRCTL_GET, field, part.into(), 0);
        let answer = answer.map_err(|errno| unanswered(LOOK, errno))?;
        value |= u64::from(answer) << (part * ANSWER_BITS);
    }
    Ok(value)
}

/// `EINVAL` from prctl means that nobody knows the call.
fn unanswered(what: &'static str, errno: Errno) -> ContextError {
    match errno {
        Errno::INVAL => ContextError::NotSupported { what, cure: CURE },
        errno => refused(what, errno, CURE),
    }
}

/// Where processes show themselves.
const PROC: &str = "/proc";

impl Bpf {
    /// Moves the caller to where the context that it is about to enter shares the processors, or will; `None` where
    /// nothing is to share. What the programs refuse is undone.
    fn join_share(&self, entry: &Entry) -> Result<Option<Joined>, ContextError> {
        if !Self::is_loaded() {
            return Ok(None);
        }
        let is_asked = entry.properties.sched;
        let own = part(GET_CONTEXT, u32::BITS)?;
        match entry.which {
            // A fresh context shares with the one before.
            Which::Fresh | Which::Keep if !is_asked || shares(part(GET_FLAGS, u32::BITS)? as u32) => Ok(None),
            Which::Keep if own == 0 => Ok(None),
            Which::Fresh | Which::Keep => groups()?.make(share::Name::Caller).map(Some),
            Which::Number(number) if own == 0 => self.join_share_of(number, is_asked),
            Which::Number(_) => Ok(None),
        }
    }

    /// The same for a context that others may be in, by its number.
    fn join_share_of(&self, number: u32, is_asked: bool) -> Result<Option<Joined>, ContextError> {
        let contexts = self.map::<u32, Group>(ENTER, "contexts")?;
        let [_held, _limit, flags, _init] = contexts.get(&number, 0).unwrap_or_default();
        match () {
            () if flags & FLAG_PRIVATE != 0 => Ok(None),
            () if shares(flags) => groups()?.join(number, &self.members(number)?).map(Some),
            () if is_asked => groups()?.make(share::Name::Number(number)).map(Some),
            () => Ok(None),
        }
    }

    /// The processes of a context, for the host's root outside it.
    fn members(&self, number: u32) -> Result<BTreeSet<u32>, ContextError> {
        let tasks = self.map::<u64, Task>(ENTER, "tasks")?;
        let numbers = || -> BTreeSet<u32> {
            let of_context = |(_, task): (u64, Task)| (task[0] == number).then_some(task[5]);
            tasks.iter().filter_map(Result::ok).filter_map(of_context).collect()
        };
        // Under lockdown the programs learn a task's number when its directory is looked up.
        if numbers().contains(&0) {
            processes().for_each(|pid| drop(std::fs::metadata(format!("{PROC}/{pid}"))));
        }
        let members = numbers();
        if !members.is_empty() && !is_in_hosts_numbers() {
            return Err(ContextError::NotPermitted {
                what: ENTER,
                why: "its processes share the processors, and are known by the host's numbers only: enter from the \
                      host's PID namespace",
            });
        }
        Ok(members)
    }

    /// Somebody else's status, from the pinned maps: for root of the host, in context 0. Its addresses are not
    /// told there.
    fn other(&self, pid: u32) -> Result<Status, ContextError> {
        // Under lockdown the programs learn a task's number when its directory is looked up.
        std::fs::metadata(format!("/proc/{pid}")).ok();
        let of_process = |(_, task): &(u64, Task)| task[5] == pid;
        if let Some((_, task)) =
            self.map::<u64, Task>(LOOK, "tasks")?.iter().filter_map(Result::ok).find(of_process)
        {
            let contexts = self.map::<u32, Group>(LOOK, "contexts")?;
            return Ok(from_task(&task, &contexts.get(&task[0], 0).unwrap_or_default()));
        }
        // Its directory in /proc would not be there for processes of other contexts.
        let known = i32::try_from(pid).ok().and_then(Pid::from_raw).map(test_kill_process);
        match known {
            Some(Ok(()) | Err(Errno::PERM)) => Ok(from_task(&Task::default(), &Group::default())),
            _ => Err(ContextError::NoProcess(pid)),
        }
    }

    /// A pinned map, for the call `what`.
    fn map<K: Pod, V: Pod>(
        &self,
        what: &'static str,
        name: &str,
    ) -> Result<HashMap<MapData, K, V>, ContextError> {
        let path = Pins::of(&self.host).map(name);
        let missing = ContextError::NotSupported { what, cure: CURE };
        let denied = ContextError::NotPermitted { what, why: "run as root of the host, in context 0" };
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) if Self::is_loaded() => {
                let why = "what the programs know is not seen from here: do it where the host's /sys/fs/bpf is mounted";
                return Err(ContextError::NotPermitted { what, why });
            }
            Ok(false) => return Err(missing),
            Err(_) => return Err(denied),
        }
        let data = MapData::from_pin(&path).map_err(|_| denied)?;
        HashMap::try_from(Map::HashMap(data)).map_err(|_| missing)
    }
}

fn groups() -> Result<Groups, ContextError> {
    Groups::find(Path::new(PROC))
}

fn shares(flags: u32) -> bool {
    flags & FLAG_SCHED != 0
}

/// The numbers in /proc.
fn processes() -> impl Iterator<Item = u32> {
    let names = std::fs::read_dir(PROC).into_iter().flatten().flatten();
    names.filter_map(|name| name.file_name().to_str()?.parse().ok())
}

/// Whether the caller knows processes by the numbers that the maps have.
fn is_in_hosts_numbers() -> bool {
    /// `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
    const HOSTS: &str = "pid:[4026531836]";
    std::fs::read_link(format!("{PROC}/self/ns/pid")).is_ok_and(|link| link == Path::new(HOSTS))
}

/// A context's initpid may be younger than what its tasks have of it.
fn from_task(task: &Task, group: &Group) -> Status {
    let [context, _account, low, high, task_init, ..] = *task;
    let [_held, _limit, flags, group_init] = *group;
    let init_pid = if group_init == 0 { task_init } else { group_init };
    Status {
        context,
        properties: Properties::from_bits(flags),
        ceiling: Capabilities(!(u64::from(high) << 32 | u64::from(low))),
        init_pid: (init_pid != 0).then_some(init_pid),
        root: None,
    }
}

fn to_raw(root: &Ipv4Root) -> Root {
    let raw = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    let mut to =
        Root { count: root.addresses().len() as u32, broadcast: raw(root.broadcast()), ..Root::default() };
    for (to, from) in to.address.iter_mut().zip(root.addresses()) {
        *to = raw(*from);
    }
    to
}

fn from_raw(raw: &Root) -> Option<Ipv4Root> {
    let address = |raw: &u32| Ipv4Addr::from(raw.to_ne_bytes());
    let addresses = raw.address.iter().take(raw.count as usize).map(address).collect();
    Ipv4Root::new(addresses, address(&raw.broadcast))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_keep_their_bytes() {
        let addresses = vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 168, 1, 2)];
        let root = Ipv4Root::new(addresses, Ipv4Addr::new(10, 0, 0, 255)).unwrap();
        let raw = to_raw(&root);
        assert_eq!(raw.count, 2);
        assert_eq!(raw.address[0].to_ne_bytes(), [10, 0, 0, 1]); // as on the wire
        assert_eq!(from_raw(&raw), Some(root));
        assert_eq!(from_raw(&Root::default()), None);
        assert_eq!(from_raw(&Root { count: 17, ..raw }), None);
    }

    #[test]
    fn a_task_of_the_map() {
        let task = [7, 7, 1 << 9, 1, 55, 56, 0, 0];
        let status = from_task(&task, &[0; 4]);
        assert_eq!((status.context, status.init_pid), (7, Some(55)));
        assert_eq!(status.ceiling, Capabilities(!(1 << 32 | 1 << 9)));
        assert_eq!(status.properties, Properties::default());
        let status = from_task(&task, &[2, 30, 5, 57]);
        assert!(status.properties.lock && status.properties.nproc && !status.properties.private);
        assert_eq!(status.init_pid, Some(57));
    }
}
