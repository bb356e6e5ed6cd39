//! The objects that are built in, and what the loader has to know of each.

use super::{
    ABI, FEATURE_CONTEXTS, FEATURE_LINK_INVERT, Object, PRCTL_VERSION, getsockopt_abi, prctl_answer,
};

/// Link-invert, by LSM hooks.
pub static LINK_INVERT: Object = Object {
    name: "link_invert",
    bytes: aya::include_bytes_aligned!("../../bpf/link_invert.o"),
    maps: &["scope", "tasks"],
    optional: &["file_ioctl_compat", "inode_file_setattr", "inode_remove_acl", "inode_set_acl"],
    last: &["file_ioctl", "task_prctl"],
    needs_lsm: true,
    state: None,
    left_to: None,
    is_live: || answers(FEATURE_LINK_INVERT),
};

/// IPv4 roots, by hooks of control groups. Needs no LSM.
pub static IPV4ROOT: Object = Object {
    name: "ipv4root",
    bytes: aya::include_bytes_aligned!("../../bpf/ipv4root.o"),
    maps: &["root_losses", "root_sockets", "root_spill", "root_tasks"],
    optional: &[],
    last: &["getsockopt", "setsockopt"],
    needs_lsm: false,
    state: Some("root_tasks"),
    left_to: None,
    is_live: || getsockopt_abi() == Ok(ABI),
};

/// Contexts, by LSM hooks. Nobody is in one before `task_prctl` answers.
pub static CONTEXTS: Object = Object {
    name: "contexts",
    bytes: aya::include_bytes_aligned!("../../bpf/context.o"),
    maps: &["contexts", "directed", "ipc", "ipc_counts", "last_fresh", "tasks"],
    optional: &["file_ioctl_compat", "path_chroot"],
    last: &["task_prctl"],
    needs_lsm: true,
    state: Some("tasks"),
    left_to: Some(("file_open", &LINK_INVERT)),
    is_live: || answers(FEATURE_CONTEXTS),
};

/// All of them, in the order in which they are loaded.
pub static ALL: &[&Object] = &[&LINK_INVERT, &CONTEXTS, &IPV4ROOT];

/// Maps with an entry for a task, and how many there are for each thread that the host can have (in quarters), so
/// that no guest can fill them. Where a fork can't be failed there is room for those, too, that have ended and
/// wait to be freed.
pub(super) const SIZED_BY_THREADS: &[(&str, u32)] = &[("tasks", 4), ("contexts", 4), ("root_tasks", 5)];

/// Whether programs for a feature answer, and are of this version.
pub(crate) fn answers(feature: u64) -> bool {
    prctl_answer(PRCTL_VERSION, feature, 0, 0) == Ok(ABI)
}
