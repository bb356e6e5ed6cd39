//! The eBPF programs. `kernel/bpf/abi.h` has the calls; contexts and IPv4 roots are loaded apart.

use std::net::Ipv4Addr;

use aya::maps::{HashMap, Map, MapData};
use rustix::net::{AddressFamily, SocketType, socket};

use super::{
    Capabilities, ContextError, Contexts, ENTER, Entry, Ipv4Root, LOOK, Properties, Provider, SET_ROOT,
    Status, refused,
};
use crate::Errno;
use crate::bpf::{
    ANSWER_BITS, FEATURE_CONTEXTS, GET_CONTEXT, GET_FLAGS, GET_INIT_PID, GET_REMOVED, Host, PRCTL_ENTER,
    PRCTL_GET, Pins, Root, getsockopt_root, objects, prctl_answer, setsockopt_root,
};

const CURE: &str = "run vkernel load";

/// `struct vs_task` of `kernel/bpf/vserver.h`: context, flags, removed (low, high), initpid, tgid, reserved.
type Task = [u32; 8];

/// Programs pinned in the bpf file system of a host; needed only to look at other processes.
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
        // prctl passes a long: a negative number keeps its sign.
        prctl_answer(PRCTL_ENTER, i64::from(number) as u64, remove, flags.into())
            .map_err(|errno| unanswered(ENTER, errno))?;
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

impl Bpf {
    /// Somebody else's status, from the pinned map: for root of the host. Its addresses are not told there.
    fn other(&self, pid: u32) -> Result<Status, ContextError> {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return Err(ContextError::NoProcess(pid));
        }
        let path = Pins::of(&self.host).map("tasks");
        let missing = ContextError::NotSupported { what: LOOK, cure: CURE };
        if !path.exists() {
            return Err(missing);
        }
        let denied = || ContextError::NotPermitted { what: LOOK, why: "run as root of the host" };
        let data = MapData::from_pin(&path).map_err(|_| denied())?;
        let tasks = HashMap::<_, u64, Task>::try_from(Map::HashMap(data)).map_err(|_| missing)?;
        let of_process = |task: &Task| task[5] == pid;
        let found = tasks.iter().filter_map(Result::ok).map(|(_, task)| task).find(of_process);
        Ok(from_task(&found.unwrap_or_default()))
    }
}

fn from_task(task: &Task) -> Status {
    let [context, flags, low, high, init_pid, ..] = *task;
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
        let status = from_task(&[7, 9, 1 << 9, 1, 55, 56, 0, 0]);
        assert_eq!((status.context, status.init_pid), (7, Some(55)));
        assert_eq!(status.ceiling, Capabilities(!(1 << 32 | 1 << 9)));
        assert!(status.properties.lock && status.properties.private && !status.properties.nproc);
    }
}
