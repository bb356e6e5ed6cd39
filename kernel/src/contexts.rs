//! Contexts: groups of processes that see each other only, with the IPv4 addresses they may use.
//!
//! A call takes effect on the calling thread, which must be the only one of its process, on its later children
//! and on nothing else; it can't be taken back. Nobody has to be root to enter a fresh context or to give up
//! capabilities: both only take away.
//!
//! [`Contexts`] states what is wanted; [`Patch`] asks a patched kernel and [`Bpf`] the eBPF programs.

mod bpf;
mod patch;
mod share;
mod status;

use std::net::Ipv4Addr;
use std::path::PathBuf;

pub use bpf::Bpf;
pub use patch::Patch;

use crate::Errno;

/// The largest number of addresses in an [`Ipv4Root`].
pub const MAX_ADDRESSES: usize = 16;

/// Which context to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One that nobody is in.
    Fresh,
    /// This one, from 1 on; 1 sees all processes. Only for context 0 with `CAP_SYS_ADMIN`.
    Number(u32),
    /// The present one: capabilities and properties change alone.
    Keep,
}

/// A set of capabilities, bit n for that of number n in linux/capability.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// What root of a guest keeps: files' owners and modes, file capabilities, signals and tracing (of its own
    /// context), users, low ports, chroot, audit messages.
    pub const OF_A_GUEST: Self = Self::of(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 19, 29, 31]);
    /// How many Linux has.
    const COUNT: u32 = 41;

    const fn of(mut numbers: &[u32]) -> Self {
        let mut set = 0;
        while let [number, rest @ ..] = numbers {
            set |= 1 << *number;
            numbers = rest;
        }
        Self(set)
    }

    /// All but these.
    #[must_use]
    pub const fn others(self) -> Self {
        Self(!self.0 & ((1 << Self::COUNT) - 1))
    }
}

/// What holds for a context from then on. Properties are added, never taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent properties, each a word of the user's
pub struct Properties {
    /// No further change of context, for anybody who is in it.
    pub lock: bool,
    /// All processes of the context share one process's part of the processors. By the eBPF programs that takes a
    /// control group below the caller's own, and so root of the host or a group that is delegated, and somebody who
    /// asks for it before there are others.
    pub sched: bool,
    /// The limit of processes of a user counts for the whole context.
    pub nproc: bool,
    /// Nobody enters the context any more.
    pub private: bool,
    /// The process that enters is process 1 in the eyes of the context.
    pub fake_init: bool,
}

/// A change of context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where to.
    pub which: Which,
    /// What no process of the context can ever have, whatever it executes.
    pub remove: Capabilities,
    /// What holds from then on.
    pub properties: Properties,
}

/// The IPv4 addresses that a process and its children may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4Root {
    addresses: Vec<Ipv4Addr>,
    broadcast: Ipv4Addr,
}

impl Ipv4Root {
    /// 1 to [`MAX_ADDRESSES`] addresses, the first of which is taken where any would do, and the address for
    /// broadcasts, 0.0.0.0 for none. `None` if there are none or too many, or one is 0.0.0.0 or
    /// 255.255.255.255.
    pub fn new(addresses: Vec<Ipv4Addr>, broadcast: Ipv4Addr) -> Option<Self> {
        let fits = (1..=MAX_ADDRESSES).contains(&addresses.len());
        let named = addresses.iter().all(|address| !address.is_unspecified() && !address.is_broadcast());
        (fits && named).then_some(Self { addresses, broadcast })
    }

    /// The addresses, the main one first.
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// The address for broadcasts.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.broadcast
    }
}

/// Where a process belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The number of its context; 0 is the host's own.
    pub context: u32,
    /// What holds there.
    pub properties: Properties,
    /// What processes of the context can have at most.
    pub ceiling: Capabilities,
    /// The process that the context takes for process 1, if that is not the host's.
    pub init_pid: Option<u32>,
    /// The addresses that it may use; `None`: all.
    pub root: Option<Ipv4Root>,
}

/// Who makes contexts on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// A patched kernel.
    Patch,
    /// eBPF programs on a stock kernel.
    Bpf,
}

impl Provider {
    /// The word used in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::Bpf => "bpf",
        }
    }
}

/// Why it was not done. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The running kernel has no such thing, or it is not loaded.
    #[error("this kernel can't {what}: {cure}")]
    NotSupported {
        /// What was wanted.
        what: &'static str,
        /// How to get it.
        cure: &'static str,
    },
    /// It exists, but not for this caller.
    #[error("not permitted to {what}: {why}")]
    NotPermitted {
        /// What was wanted.
        what: &'static str,
        /// Who may, or what forbids it.
        why: &'static str,
    },
    /// Credentials and contexts belong to threads: the others would stay behind.
    #[error("only a process with one thread can {what}")]
    Threads {
        /// What was wanted.
        what: &'static str,
    },
    /// There is no such process, or it belongs to somebody else's context.
    #[error("there is no process {0} here")]
    NoProcess(u32),
    /// A share of the processors takes a control group, and the kernel refused something about it.
    #[error(
        "can't give the context one share of the processors: {path}: {why}; start in a control group of your own \
         (systemd-run --scope)", path = path.display(), why = std::io::Error::from(*errno)
    )]
    Group {
        /// The group, or a file of it.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel said something else.
    #[error("can't {what}: {why}", why = std::io::Error::from(*errno))]
    Kernel {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// The two system calls of the original, as intent.
pub trait Contexts {
    /// Who answers.
    fn provider(&self) -> Provider;
    /// Moves the caller, for good. Returns the number of the context it is in then.
    fn enter(&self, entry: &Entry) -> Result<u32, ContextError>;
    /// Confines the caller to addresses, for good.
    fn set_ipv4root(&self, root: &Ipv4Root) -> Result<(), ContextError>;
    /// Where a process belongs: the caller, or the one that the host numbers so.
    fn status(&self, pid: Option<u32>) -> Result<Status, ContextError>;
}

/// The best provider of this host: the patched kernel, else the eBPF programs. Whether those are loaded is
/// seen when they are asked: each call says what is missing.
pub fn contexts() -> Box<dyn Contexts> {
    match Patch::find() {
        Ok(patch) => Box::new(patch),
        Err(_) => Box::new(Bpf::default()),
    }
}

const ENTER: &str = "change the context";
const SET_ROOT: &str = "set the IPv4 root";
const LOOK: &str = "look at a context";

/// What an errno of either provider means, for the call `what`.
fn refused(what: &'static str, errno: Errno, cure: &'static str) -> ContextError {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            let why = match what {
                ENTER => {
                    "the context is locked or private, or a number was asked for outside context 0 or without \
                     CAP_SYS_ADMIN, or a property for a context that others are in"
                }
                SET_ROOT => "it is set already, or the caller is in a locked context",
                _ => "run as root of the host",
            };
            ContextError::NotPermitted { what, why }
        }
        Errno::BUSY => ContextError::Threads { what },
        Errno::NOSYS | Errno::NOTTY | Errno::NOPROTOOPT | Errno::OPNOTSUPP => {
            ContextError::NotSupported { what, cure }
        }
        errno => ContextError::Kernel { what, errno },
    }
}

impl Properties {
    /// As both providers count them.
    fn bits(self) -> u32 {
        use crate::bpf::{FLAG_FAKEINIT, FLAG_LOCK, FLAG_NPROC, FLAG_PRIVATE, FLAG_SCHED};
        let bit = |on: bool, bit| if on { bit } else { 0 };
        bit(self.lock, FLAG_LOCK)
            | bit(self.sched, FLAG_SCHED)
            | bit(self.nproc, FLAG_NPROC)
            | bit(self.private, FLAG_PRIVATE)
            | bit(self.fake_init, FLAG_FAKEINIT)
    }

    fn from_bits(bits: u32) -> Self {
        use crate::bpf::{FLAG_FAKEINIT, FLAG_LOCK, FLAG_NPROC, FLAG_PRIVATE, FLAG_SCHED};
        Self {
            lock: bits & FLAG_LOCK != 0,
            sched: bits & FLAG_SCHED != 0,
            nproc: bits & FLAG_NPROC != 0,
            private: bits & FLAG_PRIVATE != 0,
            fake_init: bits & FLAG_FAKEINIT != 0,
        }
    }
}

impl Which {
    /// As both providers number them. `None`: 0 can't be entered, nor what a signed number can't hold.
    fn number(self) -> Option<i32> {
        match self {
            Self::Fresh => Some(crate::bpf::CTX_FRESH),
            Self::Keep => Some(crate::bpf::CTX_KEEP),
            Self::Number(number) => i32::try_from(number).ok().filter(|number| *number > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_their_own_inverse() {
        for bits in 0..32 {
            assert_eq!(Properties::from_bits(bits).bits(), bits);
        }
        assert_eq!(Properties { lock: true, ..Properties::default() }.bits(), 1);
        assert_eq!(Properties { fake_init: true, ..Properties::default() }.bits(), 16);
    }

    #[test]
    fn a_guest_keeps_nothing_of_the_machine() {
        let (kept, lost) = (Capabilities::OF_A_GUEST.0, Capabilities::OF_A_GUEST.others().0);
        assert_eq!((kept & lost, kept | lost), (0, 0x1ff_ffff_ffff));
        // DAC_READ_SEARCH opens by handle past every chroot; LINUX_IMMUTABLE, NET_ADMIN, SYS_MODULE, SYS_RAWIO,
        // SYS_ADMIN, SYS_BOOT, SYS_TIME, MKNOD, AUDIT_CONTROL, BPF.
        assert!([2, 9, 12, 16, 17, 21, 22, 25, 27, 30, 39].iter().all(|number| lost >> number & 1 == 1));
    }

    #[test]
    fn context_0_is_never_entered() {
        assert_eq!(Which::Number(0).number(), None);
        assert_eq!(Which::Number(u32::MAX).number(), None);
        assert_eq!(Which::Number(2).number(), Some(2));
        assert_eq!(Which::Fresh.number(), Some(-1));
        assert_eq!(Which::Keep.number(), Some(-2));
    }

    #[test]
    fn a_root_has_one_to_sixteen_addresses() {
        let one = Ipv4Addr::new(10, 0, 0, 1);
        let root = |count| Ipv4Root::new(vec![one; count], Ipv4Addr::BROADCAST);
        assert!(root(0).is_none() && root(17).is_none());
        assert_eq!(root(16).unwrap().addresses().len(), 16);
        assert!(Ipv4Root::new(vec![one, Ipv4Addr::UNSPECIFIED], one).is_none());
        assert!(Ipv4Root::new(vec![one, Ipv4Addr::BROADCAST], one).is_none());
    }

    #[test]
    fn errors_tell_permission_from_support() {
        let of = |errno| refused(ENTER, errno, "cure");
        assert!(matches!(of(Errno::PERM), ContextError::NotPermitted { .. }));
        assert!(matches!(of(Errno::NOSYS), ContextError::NotSupported { .. }));
        assert!(matches!(of(Errno::BUSY), ContextError::Threads { .. }));
        assert!(matches!(of(Errno::NOMEM), ContextError::Kernel { .. }));
    }
}
