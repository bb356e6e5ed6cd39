//! The objects that are built in, and what the loader has to know of each.

use super::{ABI, FEATURE_LINK_INVERT, Object, PRCTL_VERSION, prctl_answer};

/// Link-invert, by LSM hooks.
pub static LINK_INVERT: Object = Object {
    name: "link_invert",
    bytes: aya::include_bytes_aligned!("../../bpf/link_invert.o"),
    maps: &["scope", "tasks"],
    optional: &["file_ioctl_compat", "inode_file_setattr", "inode_remove_acl", "inode_set_acl"],
    last: &["file_ioctl", "task_prctl"],
    needs_lsm: true,
    state: None,
    is_live: || answers(FEATURE_LINK_INVERT),
};

/// All of them, in the order in which they are loaded.
pub static ALL: &[&Object] = &[&LINK_INVERT];

/// Maps with an entry for a task: as large as the host's limit of threads, so that no guest can fill them.
pub(super) const SIZED_BY_THREADS: &[&str] = &["tasks"];

/// Whether programs for a feature answer, and are of this version.
pub(crate) fn answers(feature: u64) -> bool {
    prctl_answer(PRCTL_VERSION, feature, 0, 0) == Ok(ABI)
}
