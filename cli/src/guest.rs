//! Guests by name or path, on the host's side.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{Exit, PathText, Problem};

/// Where guests are, unless `$VSERVERS` says otherwise (the seeds' place).
const DEFAULT_BASE: &str = "/vservers";

/// Why a guest was not found.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// An empty name, or one with a leading dot.
    #[error("not a guest's name: {}", PathText::new(.0))]
    BadName(OsString),
    /// Nothing there.
    #[error("no such guest: {}", PathText::new(.0))]
    Missing(PathBuf),
    /// A file, a device, …
    #[error("not a directory: {}", PathText::new(.0))]
    NotADirectory(PathBuf),
    /// Symbolic links that lead to each other.
    #[error("symbolic links in a circle: {}", PathText::new(.0))]
    Loop(PathBuf),
    /// Not permitted, an input/output error, …
    #[error("{path}: {error}", path = PathText::new(.0), error = .1)]
    Io(PathBuf, io::Error),
}

impl GuestError {
    fn from_io(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing(path.into()),
            io::ErrorKind::NotADirectory => Self::NotADirectory(path.into()),
            _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Self::Loop(path.into()),
            _ => Self::Io(path.into(), error),
        }
    }
}

impl From<GuestError> for Problem {
    fn from(error: GuestError) -> Self {
        let base = Guests::from_env().base;
        let problem = match error {
            GuestError::BadName(name) if name.is_empty() => Self::new("a guest's name is empty")
                .cure("give a name below /vservers, or a path with a slash in it"),
            GuestError::BadName(name) => Self::new("not a guest's name")
                .at(&name)
                .cure("give a name below /vservers, or a path with a slash in it"),
            GuestError::Missing(path) if path == base => {
                Self::new("no guests here").at(&path).cure("set VSERVERS to the directory that holds them")
            }
            GuestError::Missing(path) => Self::new("no such guest")
                .at(&path)
                .cure("give its name below /vservers (or $VSERVERS), or a path with a slash in it"),
            GuestError::NotADirectory(path) => {
                Self::new("not a directory").at(&path).cure("a guest is the directory that holds its root")
            }
            GuestError::Loop(path) => Self::new("symbolic links in a circle").at(&path),
            GuestError::Io(path, error) => Self::new(error.to_string()).at(&path),
        };
        problem.exit(Exit::Usage)
    }
}

/// The place where guests are.
#[derive(Clone, Debug)]
pub struct Guests {
    base: PathBuf,
}

impl Guests {
    /// Guests in this directory.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// Guests in `$VSERVERS`, else in `/vservers`.
    pub fn from_env() -> Self {
        let told = env::var_os("VSERVERS").filter(|value| !value.is_empty());
        Self::new(told.unwrap_or_else(|| DEFAULT_BASE.into()))
    }

    /// The directory itself.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The root of the guest that an argument means: a path if there is a slash in it or it is `.` or `..`, else a
    /// name in this directory. The answer is absolute and free of symbolic links, so that a guest named twice is
    /// noticed. Any directory will do.
    pub fn resolve(&self, argument: &OsStr) -> Result<PathBuf, GuestError> {
        let path = if argument.as_bytes().contains(&b'/') || argument == "." || argument == ".." {
            PathBuf::from(argument)
        } else if argument.is_empty() || argument.as_bytes().starts_with(b".") {
            return Err(GuestError::BadName(argument.into()));
        } else {
            self.base.join(argument)
        };
        let root = fs::canonicalize(&path).map_err(|error| GuestError::from_io(&path, error))?;
        let stat = fs::metadata(&root).map_err(|error| GuestError::from_io(&path, error))?;
        if stat.is_dir() { Ok(root) } else { Err(GuestError::NotADirectory(path)) }
    }

    /// The roots of all guests here, sorted: directories that have no leading dot
    /// (so the store is none) and look like a root. Symbolic links to such count, once.
    pub fn all(&self) -> Result<Vec<PathBuf>, GuestError> {
        let error = |error| GuestError::from_io(&self.base, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.base).map_err(error)? {
            names.push(entry.map_err(error)?.file_name());
        }
        let mut roots = Vec::new();
        for name in names {
            match self.resolve(&name) {
                Ok(root) if looks_like_root(&root) => roots.push(root),
                Err(error @ GuestError::Io(..)) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        roots.sort();
        roots.dedup();
        Ok(roots)
    }
}

/// Whether a directory has what every root has: `etc`, `usr` or `bin`. Symbolic links in it aren't
/// followed: the guest made them.
pub fn looks_like_root(directory: &Path) -> bool {
    ["etc", "usr", "bin"].iter().any(|name| fs::symlink_metadata(directory.join(name)).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // builds trees that are no guests of anybody
    use super::*;
    use std::os::unix::fs::symlink;

    fn sample() -> (tempfile::TempDir, Guests) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for path in ["web2/etc", "web1/usr", ".store/etc", "lost+found", "odd\u{1b}/bin"] {
            fs::create_dir_all(base.join(path)).unwrap();
        }
        fs::write(base.join("notes"), "x").unwrap();
        symlink("web1", base.join("alias")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        symlink("nowhere", base.join("dangling")).unwrap();
        (dir, Guests::new(base))
    }

    fn resolve(guests: &Guests, argument: impl AsRef<OsStr>) -> Result<PathBuf, GuestError> {
        guests.resolve(argument.as_ref())
    }

    #[test]
    fn by_name_by_path_and_by_link() {
        let (_dir, guests) = sample();
        let web1 = guests.base().join("web1");
        assert_eq!(resolve(&guests, "web1").unwrap(), web1);
        assert_eq!(resolve(&guests, "alias").unwrap(), web1);
        assert_eq!(resolve(&guests, guests.base().join("web2/../web1/")).unwrap(), web1);
        assert_eq!(resolve(&guests, guests.base().join(".store")).unwrap(), guests.base().join(".store"));
        assert_eq!(resolve(&guests, ".").unwrap(), std::env::current_dir().unwrap().canonicalize().unwrap());
    }

    #[test]
    fn what_is_no_guest_is_named() {
        let (_dir, guests) = sample();
        assert!(matches!(resolve(&guests, "web9"), Err(GuestError::Missing(_))));
        assert!(matches!(resolve(&guests, "dangling"), Err(GuestError::Missing(_))));
        assert!(matches!(resolve(&guests, "notes"), Err(GuestError::NotADirectory(_))));
        assert!(matches!(resolve(&guests, guests.base().join("notes/x")), Err(GuestError::NotADirectory(_))));
        assert!(matches!(resolve(&guests, "loop"), Err(GuestError::Loop(_))));
        for name in ["", ".store", "..."] {
            assert!(matches!(resolve(&guests, name), Err(GuestError::BadName(_))), "{name}");
        }
    }

    #[test]
    fn problems_carry_a_cure_and_the_usage_code() {
        let problem = Problem::from(GuestError::Missing("/vservers/we\u{1b}b9".into()));
        assert_eq!(problem.exit_code(), Exit::Usage);
        let text = problem.to_string();
        assert!(text.starts_with(r"no such guest: /vservers/we\x1bb9: give its name"), "{text}");
        let text = Problem::from(GuestError::BadName(OsString::new())).to_string();
        assert!(text.starts_with("a guest's name is empty: give a name"), "{text}");
    }

    #[test]
    fn all_finds_roots_once_in_order() {
        let (_dir, guests) = sample();
        let names: Vec<_> = guests.all().unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["odd\u{1b}", "web1", "web2"]);
    }

    #[test]
    fn no_base_is_an_error() {
        let error = Guests::new("/nonexistent/vservers").all().unwrap_err();
        assert!(matches!(&error, GuestError::Missing(path) if path == Path::new("/nonexistent/vservers")));
    }
}
