//! The table of laws, by group.

use crate::case::{Law, Wants};

mod attributes;
mod content;
mod ioctls;
mod names;
pub(crate) mod numbers;
mod open;
mod prior;
mod tag;

pub(crate) use open::mount;

/// A group of laws, under one heading of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) laws: &'static [Law],
}

impl Group {
    /// The beginning of the names of the columns in which the law must not hold: where nothing enforces it,
    /// or where everything is forbidden.
    pub(crate) fn proof(&self, law: &Law) -> &'static str {
        match law.wants {
            Wants::Denied(_) => "none",
            Wants::Allowed if self.name == "names" => "immutable",
            Wants::Allowed => "\0",
        }
    }
}

/// The group of what takes two boots, and its law, which the agent tries in its own way.
pub(crate) const REBOOT: &str = "reboot";
pub(crate) const REBOOT_LAW: &str = "open(O_RDWR) in the next boot";

/// Laws of link-invert: each is tried on every file system.
pub(crate) const LINK_INVERT: &[Group] = &[
    Group { name: "open", about: "A sealed file cannot be opened for writing", laws: open::LAWS },
    Group { name: "content", about: "Its content cannot be changed without opening it", laws: content::LAWS },
    Group { name: "attributes", about: "Its metadata cannot be changed", laws: attributes::LAWS },
    Group {
        name: "ioctls",
        about: "The file systems' own calls change nothing (some may be refused on any file)",
        laws: ioctls::LAWS,
    },
    Group {
        name: "prior",
        about: "What got hold of the file before it was sealed (sealing may be refused as busy instead, and some calls on any file)",
        laws: prior::LAWS,
    },
    Group {
        name: REBOOT,
        about: "The seal outlives the kernel that put it on",
        laws: &[Law::denied(REBOOT_LAW, |_| Ok(()))],
    },
    Group { name: "tag", about: "Who may seal and unseal", laws: tag::LAWS },
    Group { name: "reading", about: "Reading and running stay allowed", laws: names::READING },
    Group { name: "names", about: "So does every way of replacing it", laws: names::REPLACING },
];
