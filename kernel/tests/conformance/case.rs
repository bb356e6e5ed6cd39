//! A law, the file it is about, and what comes of trying to break it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use fixtures::loopfs::FsKind;
use kernel::{Errno, Protection, Seal};

use crate::raw::{self, Call, Ended};

/// What a law forbids or allows, and how to find out.
#[derive(Clone, Copy)]
pub(crate) struct Law {
    pub(crate) name: &'static str,
    pub(crate) wants: Wants,
    pub(crate) when: When,
    pub(crate) only: &'static [FsKind],
    /// Whether a provider may refuse the deed on any file, because the call names files by other means than
    /// the descriptor it is made on.
    pub(crate) broad: bool,
    pub(crate) prepare: Option<fn(&Case) -> Res>,
    pub(crate) deed: fn(&Case) -> Res,
}

/// What has to come of the deed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wants {
    /// One of these errors, and an inode that is as it was.
    Denied(&'static [Errno]),
    /// Success, and content and metadata as they were.
    Allowed,
}

/// When the file is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the deed begins.
    Sealed,
    /// By the deed, which has hold of the file before. That sealing is refused as busy is as good.
    Prior,
    /// As [`When::Sealed`], and it makes no sense on a file that is not sealed.
    OnlySealed,
    /// Not by us: the deed is about sealing.
    Bare,
}

/// The answer where a seal stands in the way.
pub(crate) const SEALED: &[Errno] = &[Errno::PERM];
/// And to what got hold of it before; memory answers by a signal.
const PRIOR: &[Errno] = &[Errno::PERM, Errno::FAULT];

impl Law {
    const fn new(name: &'static str, wants: Wants, when: When, deed: fn(&Case) -> Res) -> Self {
        Self { name, wants, when, only: &FsKind::ALL, broad: false, prepare: None, deed }
    }

    /// The deed must be refused on a sealed file.
    pub(crate) const fn denied(name: &'static str, deed: fn(&Case) -> Res) -> Self {
        Self::new(name, Wants::Denied(SEALED), When::Sealed, deed)
    }

    /// The deed begins before the file is sealed; sealing or the rest must be refused.
    pub(crate) const fn prior(name: &'static str, deed: fn(&Case) -> Res) -> Self {
        Self::new(name, Wants::Denied(PRIOR), When::Prior, deed)
    }

    /// The deed must succeed on a sealed file.
    pub(crate) const fn allowed(name: &'static str, deed: fn(&Case) -> Res) -> Self {
        Self::new(name, Wants::Allowed, When::Sealed, deed)
    }

    pub(crate) const fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    pub(crate) const fn broad(self) -> Self {
        Self { broad: true, ..self }
    }

    pub(crate) const fn only(self, only: &'static [FsKind]) -> Self {
        Self { only, ..self }
    }

    /// What is done to the file before it is sealed.
    pub(crate) const fn prepared(self, prepare: fn(&Case) -> Res) -> Self {
        Self { prepare: Some(prepare), ..self }
    }
}

/// Why a deed came to no good end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The deed itself was refused.
    Refused(Errno),
    /// The file was in use and was not sealed, so whatever changed it since was free to.
    NotSealed(Errno),
    /// It could not be begun, which says nothing about the seal.
    Setup(String),
    /// What it is about is not there.
    Lacking(String),
    /// The kernel said yes, and yet.
    Wrong(String),
}

pub(crate) type Res<T = ()> = Result<T, Stop>;

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Refused(raw::errno(error))
    }
}

/// Marks a step that is not the deed.
pub(crate) trait Ready<T> {
    fn ready(self) -> Res<T>;
}

impl<T, E: Into<Stop>> Ready<T> for Result<T, E> {
    #[track_caller]
    fn ready(self) -> Res<T> {
        let line = std::panic::Location::caller().line();
        self.map_err(|error| match error.into() {
            Stop::Refused(errno) => Stop::Setup(format!("{} at line {line}", spell(errno))),
            Stop::NotSealed(errno) => Stop::Setup(format!("{} from sealing", spell(errno))),
            other => other,
        })
    }
}

/// A place where a law is tried.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) dir: PathBuf,
    pub(crate) mount: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) fs: FsKind,
    /// What sealing means here.
    kind: Seal,
    seal: Option<Seal>,
}

/// The attributes that every victim carries.
pub(crate) const XATTRS: [&str; 3] = ["user.kept", "trusted.kept", "security.kept"];

impl Case {
    /// The file it is about. It has a second name, `keep`.
    pub(crate) fn victim(&self) -> PathBuf {
        self.path("victim")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn open(&self, flags: i32) -> Call<OwnedFd> {
        raw::open(self.victim(), flags)
    }

    /// The victim open for reading; not part of the deed.
    pub(crate) fn reader(&self) -> Res<OwnedFd> {
        self.open(libc::O_RDONLY).ready()
    }

    /// The victim open for writing since before it was sealed.
    pub(crate) fn prior(&self) -> Res<OwnedFd> {
        let fd = self.open(libc::O_RDWR).ready()?;
        self.seal()?;
        Ok(fd)
    }

    /// Another file, not sealed, with the victim's content.
    pub(crate) fn other(&self, name: &str) -> Res<PathBuf> {
        std::fs::copy("/bin/true", self.path(name)).ready()?;
        // Extents, not only pages: some calls move those.
        std::fs::File::open(self.path(name)).and_then(|file| file.sync_all()).ready()?;
        Ok(self.path(name))
    }

    /// Seals the victim, unless this is the control.
    pub(crate) fn seal(&self) -> Res {
        let Some(seal) = self.seal else { return Ok(()) };
        let file = kernel::File::from(self.open(libc::O_RDONLY)?);
        kernel::Real.seal(&file, seal).map_err(Stop::NotSealed)
    }

    /// Seals the victim as a guest would try to.
    pub(crate) fn seal_unasked(&self) -> Call {
        kernel::Real.seal(&kernel::File::from(self.open(libc::O_RDONLY)?), self.kind)
    }

    /// Takes the seal off, for tidying up.
    pub(crate) fn unseal(&self) {
        lift(&self.victim());
    }

    fn make_victim(&self) -> Res {
        std::fs::create_dir_all(&self.dir).ready()?;
        self.other("victim")?;
        for name in XATTRS {
            rustix::fs::setxattr(self.victim(), name, b"1", rustix::fs::XattrFlags::empty()).ready()?;
        }
        std::fs::hard_link(self.victim(), self.path("keep")).ready()
    }

    fn remove(&self) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                lift(&entry.path());
            }
        }
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Takes off any seal there may be.
fn lift(path: &Path) {
    let Ok(fd) = raw::open(path, libc::O_RDONLY) else { return };
    let file = kernel::File::from(fd);
    for seal in [Seal::Patch, Seal::Bpf, Seal::Immutable] {
        kernel::Real.unseal(&file, seal).ok();
    }
}

/// What came of a law in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Pass,
    Fail(String),
    Skipped(String),
}

/// A file system to try laws on, and with which seal.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) mount: PathBuf,
    pub(crate) device: PathBuf,
    pub(crate) fs: FsKind,
    pub(crate) seal: Seal,
    /// Whether anything is known to stand behind the seal, which must leave unsealed files alone.
    pub(crate) enforced: bool,
}

impl Place {
    fn case(&self, seal: Option<Seal>) -> Case {
        // A place of its own: what a law could not tidy up is not in the way of the next.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = self.mount.join(format!("case-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let (mount, device) = (self.mount.clone(), self.device.clone());
        Case { dir, mount, device, fs: self.fs, kind: self.seal, seal }
    }

    /// Tries a law: on an unsealed file, where it must be possible to break it, and on a sealed one.
    pub(crate) fn try_law(&self, law: &Law) -> Cell {
        if !law.only.contains(&self.fs) {
            return Cell::Skipped(format!("not a matter of {}", self.fs.name()));
        }
        if matches!(law.when, When::Sealed | When::Prior)
            && let Err(stop) = self.attempt(law, None).0
        {
            let refused = matches!(stop, Stop::Refused(Errno::PERM));
            if !(law.broad && self.enforced && refused) {
                return self.control_failed(&stop);
            }
        }
        let (result, changes) = self.attempt(law, Some(self.seal));
        judge(law, result, &changes)
    }

    /// This kernel cannot do it at all, unless it is the provider that has refused.
    fn control_failed(&self, stop: &Stop) -> Cell {
        const REFUSALS: [Errno; 4] = [Errno::PERM, Errno::ACCESS, Errno::BUSY, Errno::TXTBSY];
        let why = format!("unsealed, too: {}", say(stop));
        match stop {
            Stop::Refused(errno) if self.enforced && REFUSALS.contains(errno) => Cell::Fail(why),
            Stop::Wrong(_) => Cell::Fail(why),
            _ => Cell::Skipped(why),
        }
    }

    fn attempt(&self, law: &Law, seal: Option<Seal>) -> (Res, Vec<String>) {
        let case = self.case(seal);
        let outcome = case.make_victim().and_then(|()| law.prepare.map_or(Ok(()), |prepare| prepare(&case)));
        let outcome = outcome.and_then(|()| match law.when {
            When::Sealed | When::OnlySealed => case.seal().ready(),
            When::Prior | When::Bare => Ok(()),
        });
        if outcome.is_err() {
            return (outcome, Vec::new());
        }
        let before = inode(&case.path("keep"), law.when);
        let result = in_child(&case, law.deed);
        let after = inode(&case.path("keep"), law.when);
        case.remove();
        (result, differences(&before, &after))
    }
}

fn judge(law: &Law, result: Res, changes: &[String]) -> Cell {
    match (law.wants, result) {
        (_, Err(Stop::Refused(Errno::NOSYS))) => Cell::Skipped("ENOSYS".into()),
        (_, Err(Stop::Lacking(why))) => Cell::Skipped(why),
        (_, Err(Stop::Setup(why))) => Cell::Fail(format!("could not be tried: {why}")),
        (_, Err(Stop::Wrong(why))) => Cell::Fail(why),
        (Wants::Denied(_), Err(Stop::NotSealed(Errno::BUSY | Errno::TXTBSY | Errno::AGAIN))) => Cell::Pass,
        (_, Err(Stop::NotSealed(errno))) => Cell::Fail(format!("not sealed: {}", spell(errno))),
        (_, _) if !changes.is_empty() => Cell::Fail(format!("changed: {}", changes.join(", "))),
        (Wants::Denied(errnos), Err(Stop::Refused(errno))) if errnos.contains(&errno) => Cell::Pass,
        (_, Err(Stop::Refused(errno))) => Cell::Fail(spell(errno)),
        (Wants::Denied(_), Ok(())) => Cell::Fail("went through".into()),
        (Wants::Allowed, Ok(())) => Cell::Pass,
    }
}

fn say(stop: &Stop) -> String {
    match stop {
        Stop::Refused(errno) | Stop::NotSealed(errno) => spell(*errno),
        Stop::Setup(why) | Stop::Lacking(why) | Stop::Wrong(why) => why.clone(),
    }
}

/// The error's name, as manuals have it.
pub(crate) fn spell(errno: Errno) -> String {
    const NAMES: &[(Errno, &str)] = &[
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::SRCH, "ESRCH"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::FAULT, "EFAULT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::XDEV, "EXDEV"),
        (Errno::NODEV, "ENODEV"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOTTY, "ENOTTY"),
        (Errno::TXTBSY, "ETXTBSY"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::ROFS, "EROFS"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::IO, "EIO"),
        (Errno::NODATA, "ENODATA"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == errno);
    known.map_or_else(|| format!("errno {}", errno.raw_os_error()), |(_, name)| (*name).to_owned())
}

/// Seconds until a deed that hangs is given up.
const PATIENCE: u32 = 60;

fn in_child(case: &Case, deed: fn(&Case) -> Res) -> Res {
    let ended = raw::in_child(PATIENCE, || match deed(case) {
        Ok(()) => "ok".into(),
        Err(Stop::Refused(errno)) => format!("refused {}", errno.raw_os_error()),
        Err(Stop::NotSealed(errno)) => format!("unsealed {}", errno.raw_os_error()),
        Err(Stop::Setup(why)) => format!("setup {why}"),
        Err(Stop::Lacking(why)) => format!("lacking {why}"),
        Err(Stop::Wrong(why)) => format!("wrong {why}"),
    });
    let said = match ended {
        // What writing to memory answers instead of an errno.
        Ended::Killed(libc::SIGSEGV | libc::SIGBUS) => return Err(Errno::FAULT.into()),
        Ended::Killed(libc::SIGALRM) => return Err(Stop::Wrong("hung".into())),
        Ended::Killed(signal) => return Err(Stop::Wrong(format!("killed by signal {signal}"))),
        Ended::Said(said) => said,
    };
    match said.split_once(' ') {
        None if said == "ok" => Ok(()),
        Some(("refused", number)) => Err(errno_of(number).into()),
        Some(("unsealed", number)) => Err(Stop::NotSealed(errno_of(number))),
        Some(("setup", why)) => Err(Stop::Setup(why.into())),
        Some(("lacking", why)) => Err(Stop::Lacking(why.into())),
        Some((_, why)) => Err(Stop::Wrong(why.into())),
        None => Err(Stop::Wrong("said nothing".into())),
    }
}

fn errno_of(number: &str) -> Errno {
    Errno::from_raw_os_error(number.parse().expect("a number of our own"))
}

/// All that an inode holds, read by its other name.
fn inode(path: &Path, when: When) -> BTreeMap<&'static str, String> {
    use std::os::unix::fs::MetadataExt;
    let read = || -> Call<BTreeMap<&'static str, String>> {
        let content = std::fs::read(path).map_err(raw::errno)?;
        let stat = std::fs::metadata(path).map_err(raw::errno)?;
        let file = raw::open(path, libc::O_RDONLY)?;
        let mut xattr = vec![0; 28];
        raw::ioctl(&file, crate::laws::numbers::FSGETXATTR, &mut xattr)?;
        let mut version = vec![0; 8];
        raw::ioctl(&file, crate::laws::numbers::GETVERSION, &mut version).ok();
        let mut all = BTreeMap::from([
            ("content", blake3::hash(&content).to_hex().to_string()),
            ("mode", format!("{:o}", stat.mode())),
            ("owner", format!("{}:{}", stat.uid(), stat.gid())),
            ("mtime", format!("{}.{}", stat.mtime(), stat.mtime_nsec())),
            ("project", format!("{:?}", &xattr[12..16])),
            ("extent sizes", format!("{:?} {:?}", &xattr[4..8], &xattr[16..20])),
            ("version", format!("{version:?}")),
            ("xattrs", format!("{:?}", xattrs(path)?)),
        ]);
        // A deed that seals changes them, and that is all it may.
        if when != When::Prior {
            let flags = rustix::fs::ioctl_getflags(&file)?;
            all.insert("flags", format!("{:x}", flags.bits()));
        }
        Ok(all)
    };
    read().unwrap_or_else(|errno| BTreeMap::from([("all of it", spell(errno))]))
}

fn xattrs(path: &Path) -> Call<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 4096];
    let size = rustix::fs::listxattr(path, &mut names)?;
    let mut all = Vec::new();
    for name in names[..size].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let size = rustix::fs::getxattr(path, name, &mut value)?;
        value.truncate(size);
        all.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    all.sort();
    Ok(all)
}

fn differences(
    before: &BTreeMap<&'static str, String>,
    after: &BTreeMap<&'static str, String>,
) -> Vec<String> {
    let keys = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
    keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).map(ToString::to_string).collect()
}
