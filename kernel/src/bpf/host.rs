//! What the loader asks of the host before it tries anything.

use std::path::PathBuf;

use rustix::fs::statfs;

use super::BpfError;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// `CAP_SYS_ADMIN` of linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// Where the kernel shows itself. Tests look elsewhere.
#[derive(Clone, Debug)]
pub struct Host {
    /// The bpf file system.
    pub bpffs: PathBuf,
    /// The kernel's types.
    pub btf: PathBuf,
    /// The security file system.
    pub security: PathBuf,
    /// The list of mounts, for the cgroup v2 hierarchy.
    pub mounts: PathBuf,
    /// The limit of threads of the whole host.
    pub threads_max: PathBuf,
    /// What a process says of itself.
    pub status: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            bpffs: "/sys/fs/bpf".into(),
            btf: "/sys/kernel/btf/vmlinux".into(),
            security: "/sys/kernel/security".into(),
            mounts: "/proc/self/mounts".into(),
            threads_max: "/proc/sys/kernel/threads-max".into(),
            status: "/proc/self/status".into(),
        }
    }
}

impl Host {
    /// Whether programs could be loaded at all; says the first thing that is missing.
    pub fn check(&self) -> Result<(), BpfError> {
        if !self.is_privileged() {
            return Err(BpfError::NotPrivileged);
        }
        if !self.btf.is_file() {
            return Err(BpfError::NoTypes(self.btf.clone()));
        }
        if is_on(&self.bpffs, BPF_FS_MAGIC) { Ok(()) } else { Err(BpfError::NoBpffs(self.bpffs.clone())) }
    }

    fn is_privileged(&self) -> bool {
        let status = std::fs::read_to_string(&self.status).unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        effective.is_some_and(|set| set >> CAP_SYS_ADMIN & 1 == 1)
    }

    /// Whether `bpf` is an active security module; `None` where the list can't be seen.
    pub fn is_lsm_active(&self) -> Option<bool> {
        let list = std::fs::read_to_string(self.security.join("lsm")).ok()?;
        Some(list.trim().split(',').any(|name| name == "bpf"))
    }

    /// The mode of lockdown, unless it is none: `none [integrity] confidentiality` is `integrity`.
    pub(crate) fn lockdown(&self) -> Option<String> {
        let modes = std::fs::read_to_string(self.security.join("lockdown")).ok()?;
        let (_, rest) = modes.split_once('[')?;
        let (mode, _) = rest.split_once(']')?;
        (mode != "none").then(|| mode.to_owned())
    }

    /// The root of the cgroup v2 hierarchy, wherever it is mounted.
    pub(crate) fn cgroup(&self) -> Result<PathBuf, BpfError> {
        let mounts = std::fs::read_to_string(&self.mounts).unwrap_or_default();
        let mut found = cgroup2_mounts(&mounts);
        // A mount may be hidden by another, or show a part only: all groups but the root have events.
        found
            .find(|path| is_on(path, CGROUP2_MAGIC) && !path.join("cgroup.events").exists())
            .ok_or(BpfError::NoCgroups)
    }

    /// How many threads there can be.
    pub(crate) fn threads_max(&self) -> u32 {
        let text = std::fs::read_to_string(&self.threads_max).unwrap_or_default();
        text.trim().parse().unwrap_or(1 << 18).clamp(1 << 8, 1 << 22)
    }
}

/// Where cgroup v2 is mounted, by `proc_mounts(5)`.
fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| unescape(place).into())
    })
}

/// Undoes what lists of mounts do to blanks in names.
pub(crate) fn unescape(name: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn is_on(path: &std::path::Path, magic: u64) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.f_type as u64 == magic)
}

/// A host that is made of files, for tests.
#[cfg(test)]
pub(crate) mod of_files {
    use std::path::Path;

    use super::Host;

    pub(crate) fn host(place: &Path) -> Host {
        Host {
            bpffs: place.join("bpf"),
            btf: place.join("btf"),
            security: place.to_path_buf(),
            mounts: place.join("mounts"),
            threads_max: place.join("threads-max"),
            status: place.join("status"),
        }
    }

    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    pub(crate) fn put(place: &Path, name: &str, text: &str) {
        std::fs::write(place.join(name), text).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::of_files::{host, put};
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_order() {
        let place = tempfile::tempdir().unwrap();
        let host = host(place.path());
        assert!(matches!(host.check(), Err(BpfError::NotPrivileged)));
        put(place.path(), "status", "Name:\tx\nCapEff:\t000001ffffdfffff\n"); // all but CAP_SYS_ADMIN
        assert!(matches!(host.check(), Err(BpfError::NotPrivileged)));
        put(place.path(), "status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert!(matches!(host.check(), Err(BpfError::NoTypes(_))));
        put(place.path(), "btf", "");
        assert!(matches!(host.check(), Err(BpfError::NoBpffs(_))));
        assert!(matches!(host.cgroup(), Err(BpfError::NoCgroups)));
    }

    #[test]
    fn lists_of_the_security_file_system() {
        let place = tempfile::tempdir().unwrap();
        let host = host(place.path());
        assert_eq!(host.is_lsm_active(), None);
        put(place.path(), "lsm", "lockdown,capability,bpfx\n");
        assert_eq!(host.is_lsm_active(), Some(false));
        put(place.path(), "lsm", "lockdown,capability,bpf\n");
        assert_eq!(host.is_lsm_active(), Some(true));
        assert_eq!(host.lockdown(), None);
        put(place.path(), "lockdown", "[none] integrity confidentiality\n");
        assert_eq!(host.lockdown(), None);
        put(place.path(), "lockdown", "none integrity [confidentiality]\n");
        assert_eq!(host.lockdown().as_deref(), Some("confidentiality"));
    }

    #[test]
    fn control_groups_are_found_in_the_list_of_mounts() {
        let list = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                    none /with\\040blank cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncut";
        let found: Vec<PathBuf> = cgroup2_mounts(list).collect();
        assert_eq!(found, ["/with blank", "/sys/fs/cgroup/unified"].map(PathBuf::from));
        let place = tempfile::tempdir().unwrap();
        put(place.path(), "mounts", &format!("x {} cgroup2 rw 0 0\n", place.path().display()));
        assert!(matches!(host(place.path()).cgroup(), Err(BpfError::NoCgroups)), "no such file system there");
    }

    #[test]
    fn maps_are_as_large_as_the_limit_of_threads() {
        let place = tempfile::tempdir().unwrap();
        let host = host(place.path());
        assert_eq!(host.threads_max(), 1 << 18);
        put(place.path(), "threads-max", "95000\n");
        assert_eq!(host.threads_max(), 95_000);
        put(place.path(), "threads-max", "4294967295\n");
        assert_eq!(host.threads_max(), 1 << 22);
    }
}
