//! Where a store is and what lies where in it.

use std::path::{Path, PathBuf};

use kernel::{At, Dir, Errno, File, Fs, OfdLock, Stat, View};

use crate::format::MAX_FORMAT;
use crate::{Access, Error, Format, IdentityPolicy, ObjectName, Result, lock};

/// The directory name of a store beside its guests.
pub const STORE_NAME: &str = ".store";

const FORMAT_NAME: &[u8] = b"format.toml";
const FORMAT_DRAFT: &[u8] = b"format.toml.new";
const PARTS: [&[u8]; 4] = [b"objects", b"staged", b"parked", b"quarantine"];

/// Where the store of a guest is, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A store serves the guest already.
    Existing(PathBuf),
    /// None does; one would be made here.
    Missing(PathBuf),
}

impl Located {
    /// The store's path either way.
    pub fn path(&self) -> &Path {
        match self {
            Self::Existing(path) | Self::Missing(path) => path,
        }
    }
}

/// Where a store is or would be: the tree that it and its guests lie in.
pub struct Place {
    path: PathBuf,
    base: PathBuf,
    view: View,
    dev: u64,
}

impl Place {
    /// The place of a store at `path`, whether or not there is one.
    pub fn new(path: &Path) -> Result<Self> {
        let (base, _) = split(path)?;
        let view = View::open(base).map_err(Error::at("open", base))?;
        let dev = view.root().stat_self().map_err(Error::at("stat", base))?.dev;
        Ok(Self { path: path.to_path_buf(), base: base.to_path_buf(), view, dev })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds the store and, at any depth, its guests.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// That directory, through the view that all guests are opened by.
    pub fn root(&self) -> &Dir {
        self.view.root()
    }

    /// Device number of the file system (of the subvolume, on btrfs).
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Opens the root of a guest through the store's view, so that links and renames work between the two
    /// and nothing mounted inside the guest shows. `guest` is canonical.
    pub fn open_guest(&self, guest: &Path) -> Result<Dir> {
        use std::os::unix::ffi::OsStrExt;
        let elsewhere = || Error::Elsewhere { guest: guest.to_path_buf(), store: self.path.clone() };
        let host = Dir::open_host(guest).and_then(|dir| dir.stat_self()).map_err(Error::at("open", guest))?;
        if host.dev != self.dev {
            return Err(elsewhere());
        }
        let relative = guest
            .strip_prefix(&self.base)
            .map_err(|_| Error::NotBelow { guest: guest.to_path_buf(), base: self.base.clone() })?;
        let root = match self.view.root().open_dir(relative.as_os_str().as_bytes()) {
            Err(Errno::XDEV) => return Err(elsewhere()),
            other => other.map_err(Error::at("open", guest))?,
        };
        let stat = root.stat_self().map_err(Error::at("open", guest))?;
        // What the host sees there is mounted, or another subvolume: no link could reach it.
        if !stat.same_inode(&host) {
            return Err(elsewhere());
        }
        Ok(root)
    }

    /// The path by which the journal and the index know a guest: relative to [`Place::base`].
    pub fn guest_key(&self, guest: &Path) -> PathBuf {
        guest.strip_prefix(&self.base).unwrap_or(guest).to_path_buf()
    }
}

/// Whether there is a store at a path. Where that can't be seen, it is not for this user to say.
pub fn is_store(path: &Path) -> Result<bool> {
    match path.join("format.toml").try_exists() {
        Ok(exists) => Ok(exists),
        Err(error) => match Errno::from_io_error(&error) {
            Some(errno @ (Errno::ACCESS | Errno::PERM | Errno::IO)) => {
                Err(Error::at("look into", path)(errno))
            }
            _ => Ok(false),
        },
    }
}

/// An open, locked store. Dropping it gives the lock back.
pub struct Store {
    place: Place,
    dir: Dir,
    objects: Dir,
    quarantine: Dir,
    format: Format,
    lock: OfdLock,
}

impl Store {
    /// Finds the store for a guest: the nearest `.store` upward from the guest's parent within the guest's
    /// file system, else the place beside the guest. `guest` is canonical.
    pub fn locate(guest: &Path) -> Result<Located> {
        let beside = guest.parent().ok_or_else(|| Error::NoStore(guest.to_path_buf()))?;
        let dev = device(beside)?;
        let mut place = Some(beside);
        while let Some(dir) = place.filter(|dir| device(dir).is_ok_and(|other| other == dev)) {
            let candidate = dir.join(STORE_NAME);
            if is_store(&candidate)? {
                return Ok(Located::Existing(candidate));
            }
            place = dir.parent();
        }
        Ok(Located::Missing(beside.join(STORE_NAME)))
    }

    /// Makes a store at `path`, or completes one whose making was interrupted. The format is written last:
    /// a store with a format is a whole store.
    pub fn create(fs: &dyn Fs, path: &Path, identity: IdentityPolicy) -> Result<()> {
        let (base, name) = split(path)?;
        let view = View::open(base).map_err(Error::at("open", base))?;
        let view = view.root();
        make_dir(fs, view, name, path)?;
        let dir = view.open_dir(name).map_err(Error::at("open", path))?;
        check_private(&dir, path)?;
        if dir.stat(FORMAT_NAME).is_ok() {
            return Ok(());
        }
        let _lock = match lock::take(fs, &dir, path, Access::Write, None) {
            // Somebody else has just made it, and works with it already.
            Err(Error::Busy { .. }) if dir.stat(FORMAT_NAME).is_ok() => return Ok(()),
            other => other?,
        };
        for part in PARTS {
            make_dir(fs, &dir, part, path)?;
        }
        let objects = dir.open_dir(b"objects").map_err(Error::at("open", path))?;
        for shard in 0..=255_u8 {
            make_dir(fs, &objects, format!("{shard:02x}").as_bytes(), path)?;
        }
        write_format(fs, &dir, &Format::new(identity)).map_err(Error::at("write the format of", path))
    }

    /// Opens and locks an existing store. `wait`: see [`Access`]; asked before each further try for the lock.
    pub fn open(fs: &dyn Fs, path: &Path, access: Access, wait: Option<&dyn Fn() -> bool>) -> Result<Self> {
        let (base, name) = split(path)?;
        let place = Place::new(path)?;
        let dir = match place.view.root().open_dir(name) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Error::NoStore(base.to_path_buf())),
            other => other.map_err(Error::at("open", path))?,
        };
        check_private(&dir, path)?;
        let format = match dir.read(FORMAT_NAME, MAX_FORMAT) {
            Err(Errno::NOENT) => return Err(Error::NoStore(base.to_path_buf())),
            other => other.map_err(Error::at("read the format of", path))?,
        };
        let format = Format::parse(&format, path, access == Access::Write)?;
        let lock = lock::take(fs, &dir, path, access, wait)?;
        let open = |part: &[u8]| dir.open_dir(part).map_err(Error::at("open", path));
        let (objects, quarantine) = (open(b"objects")?, open(b"quarantine")?);
        Ok(Self { place, dir, objects, quarantine, format, lock })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Where the store and its guests lie.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The store's format.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The store's directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// `objects/`
    pub fn objects(&self) -> &Dir {
        &self.objects
    }

    /// `quarantine/`
    pub fn quarantine(&self) -> &Dir {
        &self.quarantine
    }

    /// A regular file on the store's file system, for probing what that can do.
    pub fn sample(&self) -> &File {
        self.lock.file()
    }

    /// Metadata of an object, if the store has it.
    pub fn stat_object(&self, name: ObjectName) -> Result<Option<Stat>> {
        match self.objects.stat(name.path().as_bytes()) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::at("stat", self.object_path(name))(errno)),
        }
    }

    /// An object's path, for messages.
    pub fn object_path(&self, name: ObjectName) -> PathBuf {
        self.path().join("objects").join(name.path())
    }

    /// Calls `each` with every object's name and inode number; names the store did not make are passed
    /// to `stranger`.
    pub fn for_each_object(
        &self,
        mut each: impl FnMut(ObjectName, u64, &Dir),
        mut stranger: impl FnMut(PathBuf),
    ) -> Result<()> {
        let mut buffer = kernel::EntryBuffer::default();
        for shard in 0..=255_u8 {
            self.for_each_in_shard(shard, &mut buffer, &mut each, &mut stranger)?;
        }
        Ok(())
    }

    /// One of the 256 parts of [`Store::for_each_object`], for callers that spread them over threads.
    pub fn for_each_in_shard(
        &self,
        shard: u8,
        buffer: &mut kernel::EntryBuffer,
        mut each: impl FnMut(ObjectName, u64, &Dir),
        mut stranger: impl FnMut(PathBuf),
    ) -> Result<()> {
        let name = format!("{shard:02x}");
        let path = self.path().join("objects").join(&name);
        let dir = self.objects.open_dir(name.as_bytes()).map_err(Error::at("open", &path))?;
        dir.for_each(buffer, |entry| -> kernel::Result<()> {
            match ObjectName::parse(entry.name).filter(|object| object.id.0[0] == shard) {
                Some(object) => each(object, entry.ino, &dir),
                None => stranger(path.join(String::from_utf8_lossy(entry.name).as_ref())),
            }
            Ok(())
        })
        .map_err(Error::at("read", &path))
    }

    /// Opens a run's directory below `staged` or `parked`, made on demand.
    pub fn run_dir(&self, fs: &dyn Fs, part: &str, run: i64) -> Result<Dir> {
        let path = self.path().join(part);
        let parent = self.dir.open_dir(part.as_bytes()).map_err(Error::at("open", &path))?;
        let name = run.to_string();
        make_dir(fs, &parent, name.as_bytes(), &path)?;
        parent.open_dir(name.as_bytes()).map_err(Error::at("open", path.join(name)))
    }

    /// The runs that have a directory below `staged` or `parked`.
    pub fn run_dirs(&self, part: &str) -> Result<Vec<i64>> {
        let path = self.path().join(part);
        let parent = self.dir.open_dir(part.as_bytes()).map_err(Error::at("open", &path))?;
        let names = parent.names().map_err(Error::at("read", &path))?;
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    /// Takes a run's directory below `staged` or `parked` away; its lanes must be empty.
    pub fn remove_run_dir(&self, fs: &dyn Fs, part: &str, run: i64) -> Result<()> {
        let path = self.path().join(part);
        let parent = self.dir.open_dir(part.as_bytes()).map_err(Error::at("open", &path))?;
        let name = run.to_string();
        let dir = match parent.open_dir(name.as_bytes()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(Error::at("open", path.join(&name)))?,
        };
        for lane in dir.names().map_err(Error::at("read", &path))? {
            fs.remove_dir(At::new(&dir, &lane)).map_err(Error::at("remove", path.join(&name)))?;
        }
        fs.remove_dir(At::new(&parent, name.as_bytes())).map_err(Error::at("remove", path.join(&name)))
    }
}

fn device(dir: &Path) -> Result<u64> {
    let open = Dir::open_host(dir).map_err(Error::at("open", dir))?;
    Ok(open.stat_self().map_err(Error::at("stat", dir))?.dev)
}

fn split(path: &Path) -> Result<(&Path, &[u8])> {
    use std::os::unix::ffi::OsStrExt;
    match (path.parent(), path.file_name()) {
        (Some(base), Some(name)) => Ok((base, name.as_bytes())),
        _ => Err(Error::NoStore(path.to_path_buf())),
    }
}

fn make_dir(fs: &dyn Fs, parent: &Dir, name: &[u8], path: &Path) -> Result<()> {
    match fs.make_dir(At::new(parent, name), 0o700) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::at("make a directory in", path)(errno)),
    }
}

/// A guest must not be able to offer us a store of its own making.
fn check_private(dir: &Dir, path: &Path) -> Result<()> {
    let stat = dir.stat_self().map_err(Error::at("stat", path))?;
    let ours = stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o077 == 0; // nobody else
    if ours { Ok(()) } else { Err(Error::NotPrivate(path.to_path_buf())) }
}

/// Draft, sync, rename: the format is there whole or not at all.
fn write_format(fs: &dyn Fs, dir: &Dir, format: &Format) -> kernel::Result<()> {
    if dir.stat(FORMAT_NAME).is_ok() {
        return Ok(());
    }
    match fs.unlink(At::new(dir, FORMAT_DRAFT)) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let draft = fs.create(At::new(dir, FORMAT_DRAFT))?;
    fs.write_at(&draft, format.to_text().as_bytes(), 0)?;
    fs.sync(dir)?;
    match fs.rename_new(At::new(dir, FORMAT_DRAFT), At::new(dir, FORMAT_NAME)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::Real;

    fn new_store() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().canonicalize().unwrap().join(STORE_NAME);
        Store::create(&Real, &path, IdentityPolicy::Full).unwrap();
        (place, path)
    }

    #[test]
    fn is_found_from_a_guest_below() {
        let (place, path) = new_store();
        let base = place.path().canonicalize().unwrap();
        let guest = base.join("a/b/guest");
        #[allow(clippy::disallowed_methods)] // building the tree is the test
        std::fs::create_dir_all(&guest).unwrap();
        assert_eq!(Store::locate(&guest).unwrap(), Located::Existing(path));
        assert!(matches!(Store::locate(Path::new("/proc/self")).unwrap(), Located::Missing(_)));
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_place, path) = new_store();
        let writer = Store::open(&Real, &path, Access::Write, None).unwrap();
        match Store::open(&Real, &path, Access::Read, None).map(drop) {
            Err(Error::Busy { holder, .. }) => assert_eq!(holder.pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        let tries = std::cell::Cell::new(0);
        let impatient = || tries.replace(tries.get() + 1) < 2;
        assert!(matches!(
            Store::open(&Real, &path, Access::Write, Some(&impatient)).map(drop),
            Err(Error::Interrupted)
        ));
        drop(writer);
        let _one = Store::open(&Real, &path, Access::Read, None).unwrap();
        let _two = Store::open(&Real, &path, Access::Read, None).unwrap();
        assert!(Store::open(&Real, &path, Access::Write, None).is_err());
    }

    #[test]
    fn a_store_others_can_enter_is_not_trusted() {
        let (_place, path) = new_store();
        #[allow(clippy::disallowed_methods)] // breaking the store is the test
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(matches!(Store::open(&Real, &path, Access::Read, None).map(drop), Err(Error::NotPrivate(_))));
    }

    #[test]
    fn a_guest_elsewhere_is_refused() {
        let (_place, path) = new_store();
        let store = Store::open(&Real, &path, Access::Read, None).unwrap();
        assert!(matches!(store.place().open_guest(Path::new("/proc")), Err(Error::Elsewhere { .. })));
    }
}
