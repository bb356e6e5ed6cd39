//! The protection of a shared inode, and which kind this host can enforce.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::bpf::{Host, scope};
use crate::features::{self, Feature};
use crate::{Errno, File, Result, fs, sys};

/// A way to make content and metadata unwritable while names stay free.
///
/// The tag of each is kept on disk by the file system; whether it is enforced depends on the running
/// kernel, which [`probe`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Seal {
    /// No protection: guests must be trusted not to write in place.
    None,
    /// Immutable and link-invert, by the patched kernel.
    Patch,
    /// No-atime and sync attributes together (`chattr +A +S`), enforced by an eBPF program.
    Bpf,
    /// fs-verity: content only. Cannot be taken off again.
    Verity,
    /// Plain immutable: names cannot be unlinked, renamed or linked either.
    Immutable,
}

/// The link-invert flag of the patched kernel on ext4: a bit that stock kernels and `e2fsck` preserve.
const LINK_INVERT: u32 = 0x0800_0000;

impl Seal {
    /// Every seal, best first.
    pub const ALL: [Self; 5] = [Self::Patch, Self::Bpf, Self::Verity, Self::Immutable, Self::None];

    /// The word used in options, journals and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Patch => "patch",
            Self::Bpf => "bpf",
            Self::Verity => "verity",
            Self::Immutable => "immutable",
        }
    }

    /// The seal of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|seal| seal.name() == name)
    }

    /// Whether a sealed inode can still get new names and lose old ones. Where not, the executor lifts
    /// the seal for the length of a batch.
    pub fn leaves_names_free(self) -> bool {
        self != Self::Immutable
    }

    /// Whether the seal can be taken off.
    pub fn can_be_lifted(self) -> bool {
        self != Self::Verity
    }

    fn flags(self) -> Option<IFlags> {
        match self {
            Self::None | Self::Verity => None,
            Self::Patch => Some(IFlags::IMMUTABLE | IFlags::from_bits_retain(LINK_INVERT)),
            Self::Bpf => Some(IFlags::NOATIME | IFlags::SYNC),
            Self::Immutable => Some(IFlags::IMMUTABLE),
        }
    }

    /// Whether the inode carries this seal's tag.
    pub fn is_on(self, file: &File) -> Result<bool> {
        match (self, self.flags()) {
            (Self::Verity, _) => Ok(file.stat()?.verity),
            (_, Some(flags)) => Ok(ioctl_getflags(file)?.contains(flags)),
            (_, None) => Ok(true),
        }
    }
}

/// Whether nobody can exchange the extents of two files behind their times, by the calls of ext4 and xfs, once the
/// programs of a seal watch the file system of the sample.
pub fn are_extents_watched(seal: Seal, sample: &File) -> bool {
    seal == Seal::Bpf && scope::ask(sample) == Ok(scope::Answer::Inside)
}

/// Protects inodes: content and metadata become unwritable while names stay free.
pub trait Protection: Sync {
    /// Puts a seal on an inode. `EPERM`: not for this caller; `ETXTBSY`: somebody has it open for writing.
    fn seal(&self, file: &File, seal: Seal) -> Result<()>;
    /// Takes a seal off an inode. `EPERM`: not for this caller; `EOPNOTSUPP`: it can't be taken off.
    fn unseal(&self, file: &File, seal: Seal) -> Result<()>;
}

/// Takes off whatever seal is on.
pub fn lift_seals(door: &dyn Protection, file: &File) -> Result<()> {
    for seal in [Seal::Patch, Seal::Bpf, Seal::Immutable] {
        match seal.is_on(file) {
            Ok(true) => door.unseal(file, seal)?,
            Ok(false) | Err(Errno::NOTTY | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Takes off the one seal that holds names, too: plain immutable. Whether it was on. Append-only goes as well: no object
/// has it, unless a guest has set it to hold names.
pub fn free_names(door: &dyn Protection, file: &File) -> Result<bool> {
    let plain = Seal::Immutable.is_on(file).unwrap_or(false) && !Seal::Patch.is_on(file).unwrap_or(false);
    if plain || file.is_append_only().unwrap_or(false) {
        door.unseal(file, Seal::Immutable)?;
    }
    Ok(plain)
}

/// Changes names of a sealed inode. It is sealed as before then, even if it has lost its last name: who has it mapped, or
/// keeps a handle that can be opened again, has it still.
pub fn change_names<T>(door: &dyn Protection, file: &File, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let held = free_names(door, file)?;
    let changed = change();
    if held {
        door.seal(file, Seal::Immutable)?;
    }
    changed
}

/// Puts the seal on: all its flags in one call, so that no crash leaves half of it.
pub(crate) fn seal(file: &File, seal: Seal) -> Result<()> {
    match (seal, seal.flags()) {
        (Seal::Verity, _) => seal_with_verity(file),
        (_, Some(flags)) => change_flags(file, |now| now | flags),
        (_, None) => Ok(()),
    }
}

/// Building the hash tree changes the modification time, which is given back at once; a crash between the two is
/// for whoever knows the time to settle.
fn seal_with_verity(file: &File) -> Result<()> {
    let before = file.stat()?;
    match sys::enable_verity(file) {
        Err(Errno::EXIST) => return Ok(()), // already on
        other => other?,
    }
    fs::set_mtime(file, before.mtime)
}

/// Takes the seal off. fs-verity cannot be: `EOPNOTSUPP`.
pub(crate) fn unseal(file: &File, seal: Seal) -> Result<()> {
    match (seal, seal.flags()) {
        (Seal::Verity, _) => Err(Errno::OPNOTSUPP),
        (Seal::Immutable, Some(flags)) => change_flags(file, |now| now - flags - IFlags::APPEND),
        (_, Some(flags)) => change_flags(file, |now| now - flags),
        (_, None) => Ok(()),
    }
}

fn change_flags(file: &File, change: impl Fn(IFlags) -> IFlags) -> Result<()> {
    let now = ioctl_getflags(file)?;
    let wanted = change(now);
    if wanted == now { Ok(()) } else { ioctl_setflags(file, wanted) }
}

/// What a host says of one seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel enforces it now.
    Enforced,
    /// The kernel or file system has no such thing.
    Unsupported(String),
    /// It exists, but not for this caller.
    NotPermitted(String),
    /// It exists and is not switched on.
    Inactive(String),
    /// It could not be found out.
    Unknown(String),
}

impl Verdict {
    /// The stable word for it, and its reason.
    pub fn in_words(&self) -> (&'static str, &str) {
        match self {
            Self::Enforced => ("enforced", ""),
            Self::Unsupported(why) => ("unsupported", why),
            Self::NotPermitted(why) => ("not-permitted", why),
            Self::Inactive(why) => ("inactive", why),
            Self::Unknown(why) => ("unknown", why),
        }
    }
}

/// One line of the probe's report.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The seal in question.
    pub seal: Seal,
    /// Whether it can be had.
    pub verdict: Verdict,
    /// What it does not protect against.
    pub leaves_open: &'static str,
    /// How to get it.
    pub cure: &'static str,
}

impl Offer {
    /// Whether the kernel enforces the seal now.
    pub fn is_enforced(&self) -> bool {
        self.verdict == Verdict::Enforced
    }
}

/// Asks the running kernel about every seal, best first. `sample` is a regular file on the file system in
/// question; it is not changed.
pub fn probe(sample: &File) -> Vec<Offer> {
    vec![
        probe_patch(sample),
        probe_bpf(sample, &Host::default()),
        probe_verity(sample),
        Offer {
            seal: Seal::Immutable,
            verdict: probe_immutable(sample),
            leaves_open: "writers that had the file open before, on xfs and btrfs",
            cure: "ask for it with --immutable; package upgrades inside guests will fail",
        },
    ]
}

const EXT4: i64 = 0xef53; // EXT4_SUPER_MAGIC
const BTRFS: i64 = 0x9123_683e; // BTRFS_SUPER_MAGIC

/// Only ext4 has room for the flag on disk.
fn probe_patch(sample: &File) -> Offer {
    let (verdict, cure) = match (is_patched(), rustix::fs::fstatfs(sample)) {
        (Err(error), _) => {
            (Verdict::Unknown(format!("/proc/self/status cannot be read: {error}")), "mount /proc")
        }
        (Ok(false), _) => (
            Verdict::Unsupported("this kernel does not have the link-invert patch".into()),
            "boot a kernel with the link-invert patch (make kernel)",
        ),
        (Ok(true), Ok(fs)) if fs.f_type == EXT4 => (Verdict::Enforced, ""),
        (Ok(true), _) => (
            Verdict::Unsupported("only ext4 has room for the flag".into()),
            "use the tag instead: sysctl fs.vserver.honour_tag=1",
        ),
    };
    Offer { seal: Seal::Patch, verdict, leaves_open: "nothing", cure }
}

fn is_patched() -> std::io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(status.lines().any(|line| line.starts_with("s_context:")))
}

/// Whether a patched kernel enforces the tag itself; none on any other kernel.
fn honours_tag() -> Option<bool> {
    let setting = std::fs::read_to_string("/proc/sys/fs/vserver/honour_tag").ok()?;
    Some(setting.trim() != "0")
}

/// Whether a patched kernel enforces link-invert for a file, by its own flag or by the tag. Without one, it does.
pub(crate) fn by_patch(sample: Option<BorrowedFd<'_>>) -> (Verdict, &'static str) {
    let has_flag = sample.is_none_or(|sample| rustix::fs::fstatfs(sample).is_ok_and(|fs| fs.f_type == EXT4));
    if has_flag || honours_tag() == Some(true) { (Verdict::Enforced, "") } else { not_told() }
}

fn not_told() -> (Verdict, &'static str) {
    (
        Verdict::Inactive("this kernel could enforce the tag and is not told to".into()),
        "set sysctl fs.vserver.honour_tag=1 at boot, before anything is open",
    )
}

/// The programs themselves say whether they watch the file system of the sample; where they don't answer, the
/// host says why. A patched kernel needs no programs.
fn probe_bpf(sample: &File, host: &Host) -> Offer {
    let (verdict, cure) = match scope::ask(sample) {
        Ok(scope::Answer::None) if honours_tag() == Some(true) => (Verdict::Enforced, ""),
        Ok(scope::Answer::None) if honours_tag() == Some(false) => not_told(),
        Ok(scope::Answer::Inside) => features::loaded(host, Feature::LinkInvert),
        Ok(scope::Answer::Outside) => (
            Verdict::Inactive("link-invert is loaded, but this file system is not in its scope".into()),
            "run vkernel scope add with a directory of this file system",
        ),
        Ok(scope::Answer::OtherVersion) => {
            (Verdict::Inactive("another version of link-invert is loaded".into()), "run vkernel reload")
        }
        Ok(scope::Answer::None) => features::absent(host, Feature::LinkInvert),
        Err(errno) => (Verdict::Unknown(crate::explain(errno)), "run vkernel status"),
    };
    Offer { seal: Seal::Bpf, verdict, leaves_open: features::LINK_INVERT_LEAVES_OPEN, cure }
}

fn probe_verity(sample: &File) -> Offer {
    let (verdict, cure) = match sys::measure_verity(sample) {
        Ok(()) | Err(Errno::NODATA) => (Verdict::Enforced, ""),
        Err(Errno::NOTTY) => (
            Verdict::Unsupported("this kernel or file system has no fs-verity".into()),
            "keep guests on ext4 or btrfs, with a kernel that has CONFIG_FS_VERITY",
        ),
        Err(Errno::OPNOTSUPP) => {
            let magic = rustix::fs::fstatfs(sample).map_or(0, |fs| fs.f_type);
            let (why, cure) = without_verity(magic, "/sys/fs".as_ref());
            (Verdict::Unsupported(why.into()), cure)
        }
        Err(errno) => (Verdict::Unknown(crate::explain(errno)), "see dmesg"),
    };
    let leaves_open = "mode, owner, times and extended attributes; cannot be undone in place";
    Offer { seal: Seal::Verity, verdict, leaves_open, cure }
}

/// Whether it is the kernel or the file system that has no fs-verity, for which both give the same errno: a kernel
/// that has it lists it among the features of ext4 and btrfs in sysfs.
fn without_verity(magic: i64, sysfs: &Path) -> (&'static str, &'static str) {
    let kernel = "use a kernel with CONFIG_FS_VERITY";
    let features = sysfs.join(if magic == BTRFS { "btrfs/features" } else { "ext4/features" });
    match features.join("verity").exists() {
        true if magic == EXT4 => (
            "the file system was made without the verity feature",
            "make it with mkfs.ext4 -O verity, or add it by tune2fs -O verity while it is not mounted",
        ),
        false if features.exists() && (magic == EXT4 || magic == BTRFS) => {
            ("this kernel has no fs-verity", kernel)
        }
        _ => (
            "this kernel has no fs-verity, or the file system was made without",
            "use a kernel with CONFIG_FS_VERITY and a file system made with it (mkfs.ext4 -O verity)",
        ),
    }
}

fn probe_immutable(sample: &File) -> Verdict {
    match ioctl_getflags(sample) {
        Ok(_) => Verdict::Inactive("only when asked for".into()),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => {
            Verdict::Unsupported("the file system has no inode flags".into())
        }
        Err(errno) => Verdict::Unknown(crate::explain(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_program_bpf_is_not_offered() {
        let place = tempfile::tempdir().unwrap();
        let sample: File = std::os::fd::OwnedFd::from(tempfile::tempfile_in(place.path()).unwrap()).into();
        if scope::ask(&sample) != Ok(scope::Answer::None) {
            return; // a host that has it
        }
        let host = Host { security: place.path().to_path_buf(), ..Host::default() };
        #[allow(clippy::disallowed_methods)] // a fixture outside any guest
        std::fs::write(place.path().join("lsm"), "capability,yama\n").unwrap();
        let offer = probe_bpf(&sample, &host);
        let Verdict::Inactive(why) = &offer.verdict else { panic!("{:?}", offer.verdict) };
        assert!(why.contains("not among the active") && offer.cure.contains("lsm="), "{why}; {}", offer.cure);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn a_kernel_without_verity_is_told_from_a_file_system_without() {
        let place = tempfile::tempdir().unwrap();
        let why = |magic| without_verity(magic, place.path()).0;
        assert!(why(EXT4).contains("kernel") && why(EXT4).contains("file system"));
        for kind in ["ext4", "btrfs"] {
            std::fs::create_dir_all(place.path().join(kind).join("features")).unwrap();
        }
        assert_eq!([EXT4, BTRFS].map(why), ["this kernel has no fs-verity"; 2]);
        std::fs::write(place.path().join("ext4/features/verity"), "supported").unwrap();
        assert_eq!(why(EXT4), "the file system was made without the verity feature");
        assert_eq!(why(BTRFS), "this kernel has no fs-verity");
    }

    #[test]
    fn names_are_their_own_inverse() {
        for seal in Seal::ALL {
            assert_eq!(Seal::from_name(seal.name()), Some(seal));
        }
    }
}
