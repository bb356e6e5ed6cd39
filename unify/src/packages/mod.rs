//! Which package owns a file of a guest.
//!
//! The databases of dpkg, rpm, apk and pacman are read offline, from the host, confined to the guest's
//! tree; nothing of the guest is run. They are the guest's to forge and to break, so every read is
//! bounded in memory and time ([`Packages::read`] says how), and a database that can't be read whole
//! counts as none: its files then belong to no package, which shares less, never more, outside the
//! system's own trees.

use kernel::{Dir, Errno};

pub mod apk;
mod build;
pub mod dpkg;
mod fingerprint;
mod index;
pub mod pacman;
mod resolve;
pub mod rpm;
pub mod sqlite;

use build::Build;
use index::{Index, Prefix};

/// A package manager whose database is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // their names
pub enum Manager {
    Dpkg,
    Rpm,
    Apk,
    Pacman,
}

impl Manager {
    /// The command's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpkg => "dpkg",
            Self::Rpm => "rpm",
            Self::Apk => "apk",
            Self::Pacman => "pacman",
        }
    }

    fn consequence(self) -> String {
        let name = self.name();
        format!(
            "files of {name} packages count as owned by no package, and stay private outside /usr and its like"
        )
    }
}

/// Number of a package within one [`Packages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageId(u32);

/// A package of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name, as the manager's commands take it.
    pub name: Box<str>,
    /// Architecture, empty where the package has none.
    pub arch: Box<str>,
    /// Full version, with epoch and release.
    pub version: Box<str>,
    /// Whose database it is in.
    pub manager: Manager,
    /// False for a removed package of which only config files are left (dpkg's `config-files`).
    pub installed: bool,
}

/// What a file is to the package that owns it. The order is that of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Part of the package, as it was delivered.
    Content = 0,
    /// Made or rewritten while the system runs: rpm's `%ghost`, and files exempted from its digest check.
    Generated = 1,
    /// For the administrator to edit.
    Config = 2,
}

/// Who owns a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The package; the first, if several share the file.
    pub package: PackageId,
    /// What the file is to it: the strictest of what its owners say.
    pub role: Role,
}

/// Something about a guest's databases that its administrator should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}; {consequence}", String::from_utf8_lossy(path))]
pub struct Warning {
    /// The file or directory, relative to the guest's root.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: String,
    /// What follows from it, and what would cure it.
    pub consequence: String,
}

/// Why a database was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("{}", problem_text(*.0))]
    Kernel(Errno),
    #[error("not a valid database: {0}")]
    Malformed(&'static str),
    #[error("more {0} than any real system has")]
    TooMany(&'static str),
    #[error("reading took longer than {0} s")]
    TooSlow(u64),
    #[error("it is being changed just now; run again when the package manager is done")]
    Busy,
    #[error("not a readable SQLite database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}

fn problem_text(errno: Errno) -> String {
    match errno {
        Errno::FBIG => "larger than any real database".into(),
        Errno::INVAL => "not a regular file".into(),
        other => kernel::explain(other),
    }
}

/// Bytes that no package manager wrote; says what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// The packages of a guest and the files they own.
///
/// Twelve bytes a path, about a hundred a package.
pub struct Packages {
    list: Vec<Package>,
    /// Numbers of packages, by name.
    by_name: Vec<u32>,
    index: Index,
    warnings: Vec<Warning>,
    fingerprint: u64,
}

impl Packages {
    /// Reads every database that a guest has. Never fails: what can't be read is in
    /// [`Packages::warnings`], and counts as not there.
    ///
    /// Bounds: 4 million paths, 262,144 packages, 64 MiB a text file and 1 GiB of text in all, 512 MiB of
    /// rpm database, two minutes.
    pub fn read(root: &Dir) -> Self {
        let fingerprint = Self::fingerprint(root);
        let mut build = Build::new(root);
        dpkg::read(&mut build);
        rpm::read(&mut build);
        apk::read(&mut build);
        pacman::read(&mut build);
        let mut by_name: Vec<u32> = (0..build.packages.len() as u32).collect();
        by_name.sort_by(|&a, &b| build.packages[a as usize].cmp(&build.packages[b as usize]));
        Self {
            list: build.packages,
            by_name,
            index: build.owners.finish(),
            warnings: build.warnings,
            fingerprint,
        }
    }

    /// A guest without any database.
    pub fn none() -> Self {
        Self {
            list: Vec::new(),
            by_name: Vec::new(),
            index: index::Collect::default().finish(),
            warnings: Vec::new(),
            fingerprint: 0,
        }
    }

    /// A digest of the stamps (inode, size, mtime, ctime) of the databases' files and directories, the
    /// same in every process: while it stays the same, [`Packages::read`] would give what it gave before.
    /// Only looks at the files, reads none.
    pub fn fingerprint(root: &Dir) -> u64 {
        fingerprint::of(root)
    }

    /// The fingerprint as it was just before these packages were read.
    pub fn fingerprint_when_read(&self) -> u64 {
        self.fingerprint
    }

    /// What could not be read, and what follows.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Whether any package is known. Without a database nothing in a guest is owned.
    pub fn has_database(&self) -> bool {
        !self.list.is_empty()
    }

    /// Number of paths with an owner.
    pub fn paths(&self) -> usize {
        self.index.len()
    }

    /// All packages in the order of their names, removed ones with remaining config files among them.
    pub fn list(&self) -> impl Iterator<Item = (PackageId, &Package)> {
        self.by_name.iter().map(|&at| (PackageId(at), &self.list[at as usize]))
    }

    /// The package with a number that this `Packages` gave out.
    pub fn get(&self, id: PackageId) -> &Package {
        &self.list[id.0 as usize]
    }

    /// The installed packages of one name: several where architectures or versions coexist.
    pub fn find<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (PackageId, &'a Package)> {
        let start = self.by_name.partition_point(|&at| *self.list[at as usize].name < *name);
        let rest = self.by_name[start..].iter().map(|&at| (PackageId(at), &self.list[at as usize]));
        rest.take_while(move |(_, package)| *package.name == *name).filter(|(_, package)| package.installed)
    }

    /// Whether the very package `id` (name, version, architecture, manager) is installed in `other` too.
    pub fn is_in(&self, id: PackageId, other: &Self) -> bool {
        let package = self.get(id);
        package.installed && other.find(&package.name).any(|(_, found)| found == package)
    }

    /// Whether `name` is installed here and there in the same versions and architectures.
    pub fn same_version(&self, other: &Self, name: &str) -> bool {
        let here = self.find(name).map(|(_, package)| package);
        let there = other.find(name).map(|(_, package)| package);
        self.find(name).next().is_some() && here.eq(there)
    }

    /// Owners of the files in one directory, given by its real path relative to the guest's root
    /// (`usr/bin`; empty for the root), as a walk that follows no symbolic link sees it.
    pub fn in_dir(&self, dir: &[u8]) -> DirView<'_> {
        let start = dir.iter().take_while(|&&byte| byte == b'/').count();
        let dir = &dir[start..];
        let dir = dir.strip_suffix(b"/").unwrap_or(dir);
        DirView { index: &self.index, prefix: self.index.prefix(dir) }
    }
}

/// Owners of the files in one directory.
pub struct DirView<'a> {
    index: &'a Index,
    prefix: Prefix,
}

impl DirView<'_> {
    /// Who owns the file of this name.
    pub fn owner(&self, name: &[u8]) -> Option<Owner> {
        let (package, role) = self.index.owner(&self.prefix, name)?;
        Some(Owner { package, role })
    }
}
