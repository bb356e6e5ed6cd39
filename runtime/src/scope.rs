//! Which file systems link-invert watches, by paths on them.
//!
//! `/etc/vservers/kernel.toml` says what `vkernel load` puts into the scope; a path there stands for the whole file
//! system that holds it:
//!
//! ```toml
//! version = 1
//! scope = ["/vservers", "/srv/guests"]
//! ```

use std::path::{Path, PathBuf};

use kernel::{Dir, Errno};
use serde::Deserialize;

/// Where the host keeps it.
pub const CONFIG: &str = "/etc/vservers/kernel.toml";

/// Bytes read of it at most: nobody writes more by hand.
const BYTES: u64 = 1 << 16;

/// Why the scope can't be found out.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The file is there and can't be read.
    #[error("{path}: {why}", path = path.display(), why = kernel::explain(*errno))]
    Read {
        /// The file, or a directory that was named.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// A directory that was named or configured is none.
    #[error("{path}: {why}", path = path.display())]
    NoDirectory {
        /// What was named.
        path: PathBuf,
        /// How it is none.
        why: &'static str,
    },
    /// The file says something that it can't say.
    #[error("{path}: {why}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    version: u32,
    #[serde(default)]
    scope: Vec<PathBuf>,
}

/// The paths that a file configures; none if there is no such file.
pub fn configured(file: &Path) -> Result<Option<Vec<PathBuf>>, ScopeError> {
    let wrong = |why: String| ScopeError::Wrong { path: file.into(), why };
    let text = match read(file) {
        Ok(text) => text,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(ScopeError::Read { path: file.into(), errno }),
    };
    let text = String::from_utf8(text).map_err(|_| wrong("it is not UTF-8".into()))?;
    let config: Config = toml::from_str(&text).map_err(|error| {
        let line = text[..error.span().map_or(0, |span| span.start)].matches('\n').count() + 1;
        wrong(format!("line {line}: {}; it has version = 1 and scope = [\"/some/dir\"]", error.message()))
    })?;
    if config.version != 1 {
        return Err(wrong(format!("version {} is not known here, only 1", config.version)));
    }
    match config.scope.iter().find(|path| !path.is_absolute()) {
        Some(path) => Err(wrong(format!("{} is no absolute path", path.display()))),
        None => Ok(Some(config.scope)),
    }
}

fn read(file: &Path) -> kernel::Result<Vec<u8>> {
    let (Some(above), Some(name)) = (file.parent(), file.file_name()) else { return Err(Errno::INVAL) };
    Dir::open_host(above)?.read(name.as_encoded_bytes(), BYTES)
}

/// Opens each directory; all or none.
pub fn open(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Dir)>, ScopeError> {
    let open = |path: &PathBuf| {
        let path = path.clone();
        match Dir::open_host(&path) {
            Ok(dir) => Ok((path, dir)),
            Err(Errno::NOENT) => Err(ScopeError::NoDirectory { path, why: "there is no such directory" }),
            Err(Errno::NOTDIR) => Err(ScopeError::NoDirectory { path, why: "it is not a directory" }),
            Err(errno) => Err(ScopeError::Read { path, errno }),
        }
    };
    paths.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<Vec<PathBuf>>, ScopeError> {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("kernel.toml");
        #[allow(clippy::disallowed_methods)] // a fixture outside any guest
        std::fs::write(&file, text).unwrap();
        configured(&file)
    }

    #[test]
    fn paths_are_read() {
        let paths = of("version = 1\nscope = [\"/a\", \"/b\"]\n").unwrap().unwrap();
        assert_eq!(paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(of("version = 1\n").unwrap().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(configured(Path::new("/nowhere/kernel.toml")).unwrap(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "version = 2", "version = 1\nscop = []", "version = 1\nscope = [\"a\"]", "\u{0}"] {
            assert!(matches!(of(text), Err(ScopeError::Wrong { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = open(&["/nowhere/at/all".into()]).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/at/all: there is no such directory");
        let error = open(&["/dev/null".into()]).unwrap_err();
        assert_eq!(error.to_string(), "/dev/null: it is not a directory");
    }
}
