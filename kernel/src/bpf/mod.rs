//! The eBPF provider: objects that are built in, and the loader that brings them into the kernel.
//!
//! What is loaded lives in the bpf file system and needs no process:
//!
//! ```text
//! /sys/fs/bpf/vserver/maps/<map>              state; shared by objects, kept by a reload
//! /sys/fs/bpf/vserver/<object>/<program>      one link for each hook
//! /sys/fs/bpf/vserver/<object>/version        a symbolic link that says which build it is, and its links
//! /sys/fs/bpf/vserver/<object>-new, -old      what a cut-off load or unload left; the next one clears it away
//! ```
//!
//! A load happens beside and takes effect by one rename: a directory without a hyphen is whole. (The file system
//! keeps names with dots for itself.)
//! `kernel/bpf/vserver.h` has the rules for programs.

mod abi;
mod btf;
mod error;
mod host;
mod load;
pub mod objects;
mod pins;
mod roots;
pub mod scope;
mod sys;

pub use error::BpfError;
pub(crate) use error::spoken;
pub use host::Host;
pub use load::{Loaded, load, reload, unload};
pub use pins::{Pins, State};
pub use roots::Roots;

pub(crate) use abi::*;
#[cfg(test)]
pub(crate) use host::of_files;
pub(crate) use host::unescape;
pub(crate) use sys::{getsockopt_abi, getsockopt_root, ioctl_answer, prctl_answer, setsockopt_root};

/// An eBPF object that is built in.
#[derive(Debug)]
pub struct Object {
    /// Its name, and that of its directory of links.
    pub name: &'static str,
    /// The ELF file that clang made.
    pub bytes: &'static [u8],
    /// Its maps. Those of one name are shared by all objects.
    pub maps: &'static [&'static str],
    /// Hooks that a kernel may lack. Without any other, the object is refused.
    pub optional: &'static [&'static str],
    /// Hooks that are attached after all others, in this order, because state enters by them.
    pub last: &'static [&'static str],
    /// Whether it has LSM programs, which need `bpf` among the active security modules.
    pub needs_lsm: bool,
    /// The map whose entries are tasks that rely on it.
    pub state: Option<&'static str>,
    /// A hook whose rule another object applies, too. While that one is loaded, the program here is left out: a
    /// second one on a hook costs every call.
    pub left_to: Option<(&'static str, &'static Object)>,
    /// Asks the kernel whether the programs of the object are at work.
    pub is_live: fn() -> bool,
}

impl Object {
    /// Tells builds apart: the version of the interface, and a hash of the object.
    pub fn version(&self) -> String {
        format!("{} {:016x}", abi::ABI, fnv1a(self.bytes))
    }
}

/// FNV-1a: tells builds apart, and is no protection.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// How many entries a pinned map has, at a moment.
pub(crate) fn entries(host: &Host, map: &str) -> Result<usize, BpfError> {
    let path = Pins::of(host).map(map);
    sys::count_keys(&path).map_err(BpfError::at("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_builds_apart() {
        // Known values of FNV-1a.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn the_table_says_what_the_objects_hold() {
        for object in objects::ALL {
            let parsed = aya_obj::Object::parse(object.bytes).unwrap();
            let mut maps: Vec<&str> =
                parsed.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
            maps.sort_unstable();
            assert_eq!(maps, object.maps, "{}", object.name);
            let hooks: Vec<&str> = parsed.programs.keys().map(|name| load::hook_of(name)).collect();
            for named in object.optional.iter().chain(object.last) {
                assert!(hooks.contains(named), "{}: no program for {named}", object.name);
            }
        }
    }
}
