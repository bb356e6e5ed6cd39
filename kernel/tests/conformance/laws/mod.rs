//! The table of laws, by group.

use crate::case::{Law, Wants};
use crate::stage::ContextLaw;

mod attributes;
mod content;
mod contexts;
mod ioctls;
mod names;
pub(crate) mod numbers;
mod open;
mod prior;
mod processes;
mod tag;

pub(crate) use open::mount;

/// A group of laws, under one heading of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) laws: Laws,
}

/// The laws of a group, by what they are about.
#[derive(Clone, Copy)]
pub(crate) enum Laws {
    /// A sealed file: tried on every file system.
    Files(&'static [Law]),
    /// Processes in contexts.
    Contexts(&'static [ContextLaw]),
    /// Processes that enter contexts by themselves: tried once, with files on ext4.
    Processes(&'static [Law]),
    /// Guests with IPv4 roots, by a table of their own.
    Roots,
}

impl Laws {
    /// Their names, and whether each denies something.
    pub(crate) fn names(&self) -> Vec<(&'static str, bool)> {
        match self {
            Self::Files(laws) | Self::Processes(laws) => {
                laws.iter().map(|law| (law.name, matches!(law.wants, Wants::Denied(_)))).collect()
            }
            Self::Roots => crate::ipv4root::names().collect(),
            Self::Contexts(laws) => laws.iter().map(|law| (law.name, !law.wants.is_empty())).collect(),
        }
    }
}

impl Group {
    /// The beginning of the names of the columns in which a law must not hold: where nothing enforces it,
    /// or where everything is forbidden.
    pub(crate) fn proof(&self, denies: bool) -> Option<&'static str> {
        if denies { Some("none") } else { (self.name == "names").then_some("immutable") }
    }
}

/// The group of what takes two boots, and its law, which the agent tries in its own way.
pub(crate) const REBOOT: &str = "reboot";
pub(crate) const REBOOT_LAW: &str = "open(O_RDWR) in the next boot";

/// The group of IPv4 roots.
pub(crate) const ROOTS: &str = "ipv4root";

/// All laws.
pub(crate) const ALL: &[Group] = &[
    Group {
        name: "open",
        about: "A sealed file cannot be opened for writing",
        laws: Laws::Files(open::LAWS),
    },
    Group {
        name: "content",
        about: "Its content cannot be changed without opening it",
        laws: Laws::Files(content::LAWS),
    },
    Group {
        name: "attributes",
        about: "Its metadata cannot be changed",
        laws: Laws::Files(attributes::LAWS),
    },
    Group {
        name: "ioctls",
        about: "The file systems' own calls change nothing (some may be refused on any file)",
        laws: Laws::Files(ioctls::LAWS),
    },
    Group {
        name: "prior",
        about: "What got hold of the file before it was sealed (sealing may be refused as busy instead, and some calls on any file)",
        laws: Laws::Files(prior::LAWS),
    },
    Group {
        name: REBOOT,
        about: "The seal outlives the kernel that put it on",
        laws: Laws::Files(&[Law::denied(REBOOT_LAW, |_| Ok(()))]),
    },
    Group { name: "tag", about: "Who may seal and unseal", laws: Laws::Files(tag::LAWS) },
    Group { name: "reading", about: "Reading and running stay allowed", laws: Laws::Files(names::READING) },
    Group { name: "names", about: "So does every way of replacing it", laws: Laws::Files(names::REPLACING) },
    Group {
        name: "contexts",
        about: "Processes of the host and of other contexts are out of reach",
        laws: Laws::Contexts(contexts::CONTEXTS),
    },
    Group {
        name: "attack",
        about: "What root of a guest may try against the host",
        laws: Laws::Contexts(contexts::ATTACK),
    },
    Group {
        name: "entering",
        about: "Who changes contexts, and what holds from then on",
        laws: Laws::Processes(processes::ENTERING),
    },
    Group {
        name: "reach",
        about: "Root of one context does nothing to a process of another",
        laws: Laws::Processes(processes::REACH),
    },
    Group {
        name: "sight",
        about: "A context sees itself; context 1 sees all; process 1 is seen",
        laws: Laws::Processes(processes::SIGHT),
    },
    Group {
        name: "ipc",
        about: "System V objects are for the context that made them",
        laws: Laws::Processes(processes::IPC),
    },
    Group {
        name: "ceiling",
        about: "Capabilities that were given up stay lost",
        laws: Laws::Processes(processes::CEILING),
    },
    Group {
        name: "guest",
        about: "Root of a guest, under the usual ceiling, gets nowhere else",
        laws: Laws::Processes(processes::GUEST),
    },
    Group {
        name: "root",
        about: "A guest does not get above its root",
        laws: Laws::Processes(processes::ROOT),
    },
    Group {
        name: "share",
        about: "All processes of a context with `sched` get of the processors what one gets",
        laws: Laws::Processes(processes::SHARE),
    },
    Group {
        name: ROOTS,
        about: "Guests on one machine have an IPv4 address each, and no other",
        laws: Laws::Roots,
    },
];
