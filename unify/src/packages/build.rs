//! What reading a database of a guest may cost, and what it adds up to.

use std::cell::Cell;
use std::time::{Duration, Instant};

use kernel::Dir;

use super::index::Collect;
use super::resolve::{Directories, split};
use super::{Manager, Package, PackageId, Problem, Role, Warning};

/// Paths of a guest: ten times what the biggest installations have. At sixteen bytes each while reading,
/// 64 MiB.
const PATHS: usize = 4 << 20;

/// Packages of a guest: more than any distribution offers; also what thirty bits can name.
const PACKAGES: usize = 1 << 18;

/// Bytes of one text file. A status file of 5,000 packages has 10 MB, the longest list 2 MB.
pub(crate) const TEXT: u64 = 64 << 20;

/// Warnings kept of a guest.
const WARNINGS: usize = 100;
const LAST_WARNING: usize = WARNINGS - 1;

/// Bytes of a name or version: ten times what the longest have.
const NAME: usize = 1024;

/// Bytes read from a guest's text databases in all.
const BYTES: u64 = 1 << 30;

/// Time for the databases of one guest. The biggest take a second from a warm cache; a slow disk with
/// 5,000 small files may take a minute.
const TIME: Duration = Duration::from_mins(2);

/// What is left of the bounds above.
pub(crate) struct Budget {
    bytes: Cell<u64>,
    deadline: Instant,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: Cell::new(BYTES), deadline: Instant::now() + TIME }
    }
}

impl Budget {
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn check_time(&self) -> Result<(), Problem> {
        if Instant::now() > self.deadline { Err(Problem::TooSlow(TIME.as_secs())) } else { Ok(()) }
    }

    /// Reads a text file whole.
    pub(crate) fn read(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>, Problem> {
        self.check_time()?;
        let content = dir.read(name, TEXT.min(self.bytes.get()))?;
        self.bytes.set(self.bytes.get().saturating_sub(content.len() as u64));
        Ok(content)
    }
}

/// The packages of a guest in the making.
pub(crate) struct Build<'a> {
    pub(crate) budget: Budget,
    pub(crate) dirs: Directories<'a>,
    pub(crate) packages: Vec<Package>,
    pub(crate) owners: Collect,
    pub(crate) warnings: Vec<Warning>,
}

impl<'a> Build<'a> {
    pub(crate) fn new(root: &'a Dir) -> Self {
        Self {
            budget: Budget::default(),
            dirs: Directories::new(root),
            packages: Vec::new(),
            owners: Collect::default(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, package: Package) -> Result<PackageId, Problem> {
        if self.packages.len() >= PACKAGES {
            return Err(Problem::TooMany("packages"));
        }
        self.packages.push(package);
        Ok(PackageId((self.packages.len() - 1) as u32))
    }

    /// Notes that a package owns a path, written as its database writes it. What no package can own
    /// (`..`, the root) is passed over.
    pub(crate) fn own(&mut self, package: PackageId, path: &[u8], role: Role) -> Result<(), Problem> {
        match split(path) {
            Some((dir, name)) => self.own_in(package, dir, name, role),
            None => Ok(()),
        }
    }

    /// As [`Build::own`], for a path already in two pieces.
    fn own_in(&mut self, package: PackageId, dir: &[u8], name: &[u8], role: Role) -> Result<(), Problem> {
        if self.owners.len() >= PATHS {
            return Err(Problem::TooMany("paths"));
        }
        let dir = self.dirs.real(dir, &self.budget)?;
        self.owners.add(dir, name, package, role);
        Ok(())
    }

    /// Opens a directory that a manager keeps its database in, `None` without it.
    pub(crate) fn open(&mut self, dir: &[u8]) -> Result<Option<Dir>, Problem> {
        absent(self.dirs.open(dir, &self.budget))
    }

    /// Where directories really are, each place once: distributions link one to another.
    pub(crate) fn places(&mut self, names: &[&str]) -> Vec<Vec<u8>> {
        let mut places: Vec<Vec<u8>> = Vec::new();
        for name in names {
            // Only the deadline can fail here, and then the reader that follows says so.
            let place = self
                .dirs
                .real(name.as_bytes(), &self.budget)
                .map_or(name.as_bytes().to_vec(), <[u8]>::to_vec);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// Runs the reader of one database. If it fails, what it had added is taken back: half a database
    /// would call the config files of its other half content.
    pub(crate) fn database(
        &mut self,
        manager: Manager,
        path: &[u8],
        read: impl FnOnce(&mut Self) -> Result<(), Problem>,
    ) {
        let before = (self.packages.len(), self.owners.len());
        if let Err(problem) = read(self) {
            self.packages.truncate(before.0);
            self.owners.truncate(before.1);
            self.warn(path, problem.to_string(), manager.consequence());
        }
    }

    /// Keeps the first [`WARNINGS`]; the last of them says that there were more.
    pub(crate) fn warn(&mut self, path: &[u8], what: String, consequence: String) {
        match self.warnings.len() {
            WARNINGS.. => {}
            LAST_WARNING => self.warnings.push(Warning {
                path: path.to_vec(),
                what: "many more problems of this kind".into(),
                consequence: "the package database should be repaired in the guest".into(),
            }),
            _ => self.warnings.push(Warning { path: path.to_vec(), what, consequence }),
        }
    }
}

/// `None` for what is not there.
pub(crate) fn absent<T>(result: Result<T, Problem>) -> Result<Option<T>, Problem> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Problem::Kernel(kernel::Errno::NOENT | kernel::Errno::NOTDIR)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The lines of a text, without their ends.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// A name or version out of a guest's bytes, cut at [`NAME`].
pub(crate) fn text(bytes: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(NAME)]).into()
}
