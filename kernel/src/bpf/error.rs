//! Why the eBPF provider can't do something, and what helps.

use std::path::PathBuf;

use crate::Errno;

/// What stands in the way. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Not root, or root of a container only.
    #[error("eBPF programs are loaded by the host's root with all capabilities only")]
    NotPrivileged,
    /// The kernel has no BTF.
    #[error("{0} is missing: this kernel does not describe its types, so programs can't be fitted to it")]
    NoTypes(PathBuf),
    /// What it has can't be read.
    #[error("the kernel's description of its types is not understood: {0}")]
    BadTypes(String),
    /// Nowhere to pin anything.
    #[error("no bpf file system is mounted at {0}")]
    NoBpffs(PathBuf),
    /// Kernel lockdown keeps programs from being loaded.
    #[error("the kernel is locked down ({mode}) and refused the program {object}/{program}")]
    LockedDown {
        /// As `/sys/kernel/security/lockdown` says.
        mode: String,
        /// The object.
        object: &'static str,
        /// The program.
        program: String,
    },
    /// `EPERM`, and the verifier has not even looked.
    #[error("this host refuses programs of this type before it looks at them ({object}/{program})")]
    Refused {
        /// The object.
        object: &'static str,
        /// The program.
        program: String,
    },
    /// The LSM is built in and asleep.
    #[error("`bpf` is not among the active security modules, so that programs are never asked")]
    NotActive,
    /// There is no LSM to attach to.
    #[error("this kernel has no hook {hook}, which {object} can't do without")]
    NoHook {
        /// The object.
        object: &'static str,
        /// The hook.
        hook: String,
    },
    /// For objects that attach to control groups.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroups,
    /// The verifier has looked, and said no.
    #[error("the kernel refused the program {object}/{program}: {why}")]
    Verifier {
        /// The object.
        object: &'static str,
        /// The program.
        program: String,
        /// The last words of the verifier.
        why: String,
    },
    /// An object that can't be read, or that the kernel's types don't fit.
    #[error("the object {object} can't be fitted to this kernel: {why}")]
    Unfit {
        /// The object.
        object: &'static str,
        /// Why.
        why: String,
    },
    /// Another build holds the pins.
    #[error("another version of {} is loaded ({found})", spoken(object))]
    OtherVersion {
        /// The object.
        object: &'static str,
        /// What its `version` says.
        found: String,
    },
    /// A pinned map of another shape: its contents can't be taken over.
    #[error("the map {map} of the loaded version has another layout, so that a reload can't keep it")]
    OtherShape {
        /// The map.
        map: String,
    },
    /// Attached, and not answering.
    #[error("{} was attached, but does not answer; it was taken out again", spoken(object))]
    Silent {
        /// The object.
        object: &'static str,
    },
    /// Nothing there to reload or unload.
    #[error("{} is not loaded", spoken(.0))]
    NotLoaded(&'static str),
    /// Somebody else is at it.
    #[error("another process is loading or unloading programs")]
    Busy,
    /// Something relies on what was to be unloaded.
    #[error("{0}")]
    InUse(String),
    /// A call to the kernel failed.
    #[error("{what} {path}: {why}", path = path.display(), why = crate::explain(*errno))]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// How it failed.
        errno: Errno,
    },
}

/// An object by the name of its feature, as options and reports have it.
pub(crate) fn spoken(object: &str) -> String {
    object.replace('_', "-")
}

impl BpfError {
    /// What the user can do about it.
    pub fn cure(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotPrivileged => "run it as root, outside containers and user namespaces",
            Self::NoTypes(_) | Self::BadTypes(_) => {
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as Debian, Fedora, Ubuntu and RHEL build theirs"
            }
            Self::NoBpffs(_) => "mount -t bpf bpf /sys/fs/bpf",
            Self::LockedDown { .. } => {
                "boot without lockdown=confidentiality (lockdown=integrity does no harm)"
            }
            Self::Refused { .. } => {
                "ask whoever runs this host to permit eBPF of types LSM and TRACING, or use a patched kernel"
            }
            Self::NotActive => {
                "boot with lsm=...,bpf (/sys/kernel/security/lsm has the list), then run vkernel load"
            }
            Self::NoHook { .. } => {
                "use a kernel with CONFIG_BPF_LSM=y; Linux 6.1 and later are known to work"
            }
            Self::NoCgroups => "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
            Self::Verifier { .. } | Self::Unfit { .. } => {
                "please report this with the output of uname -a; a patched kernel or --noflags go without"
            }
            Self::OtherVersion { .. } => "vkernel reload",
            Self::OtherShape { .. } => "vkernel unload --force, then vkernel load",
            Self::Silent { .. } => "see whether `bpf` is in /sys/kernel/security/lsm",
            Self::NotLoaded(_) => "vkernel load",
            Self::Busy => "wait for it to end",
            Self::InUse(_) => "vkernel unload --force, if it has to be",
            Self::Kernel { .. } => return None,
        })
    }

    pub(crate) fn at(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Kernel { what, path, errno }
    }
}
