//! What the eBPF programs and their callers agree on: `kernel/bpf/abi.h`, which explains it, in Rust.

/// The version of everything here. Programs of another are not used, and replaced by a reload.
pub(crate) const ABI: u32 = 1;
/// An answer comes as an errno: this plus 11 bits.
pub(crate) const ANSWER: i32 = 1024;
/// How many bits an answer has.
pub(crate) const ANSWER_BITS: u32 = 11;

/// The private option of `prctl(2)`, and what its second argument asks for.
pub(crate) const PRCTL: libc::c_int = 0x5653_5831;
pub(crate) const PRCTL_VERSION: u64 = 0;
pub(crate) const PRCTL_ENTER: u64 = 1;
pub(crate) const PRCTL_GET: u64 = 2;

/// Features that `PRCTL_VERSION` is asked about.
pub(crate) const FEATURE_LINK_INVERT: u64 = 1;
pub(crate) const FEATURE_CONTEXTS: u64 = 2;

/// Fields that `PRCTL_GET` is asked for.
pub(crate) const GET_CONTEXT: u64 = 0;
pub(crate) const GET_FLAGS: u64 = 1;
pub(crate) const GET_INIT_PID: u64 = 2;
pub(crate) const GET_REMOVED: u64 = 3;

/// Instead of a context's number.
pub(crate) const CTX_FRESH: i32 = -1;
pub(crate) const CTX_KEEP: i32 = -2;

/// Flags of a context; the patched kernel has the same.
pub(crate) const FLAG_LOCK: u32 = 1;
pub(crate) const FLAG_SCHED: u32 = 2;
pub(crate) const FLAG_NPROC: u32 = 4;
pub(crate) const FLAG_PRIVATE: u32 = 8;
pub(crate) const FLAG_FAKEINIT: u32 = 16;

/// ioctls on any file, about the scope of link-invert.
pub(crate) const IOC_SCOPE_ASK: libc::c_ulong = 0x1653_d600;
pub(crate) const IOC_SCOPE_ADD: libc::c_ulong = 0x1653_d601;
pub(crate) const IOC_SCOPE_REMOVE: libc::c_ulong = 0x1653_d602;

/// The private level and options of `setsockopt(2)`.
pub(crate) const SOL: libc::c_int = 0x5653;
pub(crate) const SO_SET_ROOT: libc::c_int = 1;
pub(crate) const SO_GET_ROOT: libc::c_int = 2;
pub(crate) const SO_GET_ABI: libc::c_int = 3;
/// Addresses that a root has at most.
pub(crate) const ROOT_MAX: usize = 16;

/// `struct vs_root`; addresses are big-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) count: u32,
    pub(crate) broadcast: u32,
    pub(crate) address: [u32; ROOT_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a `#define` in `abi.h`.
    fn defined(name: &str) -> i64 {
        let line = include_str!("../../bpf/abi.h")
            .lines()
            .find_map(|line| line.strip_prefix(&format!("#define {name} ")))
            .unwrap_or_else(|| panic!("abi.h has no {name}"));
        let value = line.trim().trim_matches(['(', ')']);
        match value.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).unwrap(),
            None => value.parse().unwrap(),
        }
    }

    #[test]
    fn both_sides_say_the_same() {
        let ours: [(&str, i64); 29] = [
            ("VS_ABI", ABI.into()),
            ("VS_ANSWER", ANSWER.into()),
            ("VS_ANSWER_BITS", ANSWER_BITS.into()),
            ("VS_PRCTL", PRCTL.into()),
            ("VS_PRCTL_VERSION", PRCTL_VERSION as i64),
            ("VS_PRCTL_ENTER", PRCTL_ENTER as i64),
            ("VS_PRCTL_GET", PRCTL_GET as i64),
            ("VS_LINK_INVERT", FEATURE_LINK_INVERT as i64),
            ("VS_CONTEXTS", FEATURE_CONTEXTS as i64),
            ("VS_GET_CONTEXT", GET_CONTEXT as i64),
            ("VS_GET_FLAGS", GET_FLAGS as i64),
            ("VS_GET_INIT_PID", GET_INIT_PID as i64),
            ("VS_GET_REMOVED", GET_REMOVED as i64),
            ("VS_CTX_FRESH", CTX_FRESH.into()),
            ("VS_CTX_KEEP", CTX_KEEP.into()),
            ("VS_FLAG_LOCK", FLAG_LOCK.into()),
            ("VS_FLAG_SCHED", FLAG_SCHED.into()),
            ("VS_FLAG_NPROC", FLAG_NPROC.into()),
            ("VS_FLAG_PRIVATE", FLAG_PRIVATE.into()),
            ("VS_FLAG_FAKEINIT", FLAG_FAKEINIT.into()),
            ("VS_IOC_SCOPE_ASK", IOC_SCOPE_ASK as i64),
            ("VS_IOC_SCOPE_ADD", IOC_SCOPE_ADD as i64),
            ("VS_IOC_SCOPE_REMOVE", IOC_SCOPE_REMOVE as i64),
            ("VS_SOL", SOL.into()),
            ("VS_SO_SET_ROOT", SO_SET_ROOT.into()),
            ("VS_SO_GET_ROOT", SO_GET_ROOT.into()),
            ("VS_SO_GET_ABI", SO_GET_ABI.into()),
            ("VS_ROOT_MAX", ROOT_MAX as i64),
            ("VS_ANSWER", 1 << (ANSWER_BITS - 1)),
        ];
        for (name, value) in ours {
            assert_eq!(defined(name), value, "{name}");
        }
        assert_eq!(size_of::<Root>(), 4 * (2 + ROOT_MAX));
    }
}
