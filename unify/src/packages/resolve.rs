//! Where a directory of a guest really is.
//!
//! Package databases name files by the path the package was built with. Where a guest has merged /usr,
//! `/bin/sh` is `usr/bin/sh`, and only the real place is what a walk of the tree sees. Symbolic links are
//! followed by hand, as the guest would with its own root: an absolute target starts at the guest's root,
//! `..` at the root stays there. Each step is a confined open, so no link leads out.

use std::collections::HashMap;

use kernel::{Dir, Errno, Kind};

use super::Problem;
use super::build::Budget;

/// As many links as the kernel follows in one path (`MAXSYMLINKS`, `path_resolution(7)`).
const LINKS: u32 = 40;

/// Longest path a database may name, in bytes: `PATH_MAX`. Nothing longer could have been installed.
pub(crate) const PATH: usize = 4096;

/// Bytes remembered of directories before the memory is given back. A guest of 300,000 files has some
/// 40,000 directories: 5 MB.
const REMEMBERED: usize = 32 << 20;

/// Bytes that an entry takes besides its names.
const ENTRY: usize = 64;

/// A guest's directories.
pub(crate) struct Directories<'a> {
    root: &'a Dir,
    /// Real places, `None` where the name says it already.
    known: HashMap<Box<[u8]>, Option<Box<[u8]>>>,
    bytes: usize,
}

impl<'a> Directories<'a> {
    pub(crate) fn new(root: &'a Dir) -> Self {
        Self { root, known: HashMap::new(), bytes: 0 }
    }

    /// The real place of `dir`, both relative to the root without slashes at the ends.
    pub(crate) fn real<'s>(&'s mut self, dir: &'s [u8], budget: &Budget) -> Result<&'s [u8], Problem> {
        if !self.known.contains_key(dir) {
            budget.check_time()?;
            let real = self.look_up(dir);
            if self.bytes > REMEMBERED {
                self.known.clear();
                self.bytes = 0;
            }
            self.bytes += ENTRY + dir.len() + real.as_ref().map_or(0, Vec::len);
            self.known.insert(dir.into(), real.map(Vec::into_boxed_slice));
        }
        Ok(self.known.get(dir).and_then(Option::as_deref).unwrap_or(dir))
    }

    /// Opens a directory of the guest, its links followed.
    pub(crate) fn open(&mut self, dir: &[u8], budget: &Budget) -> Result<Dir, Problem> {
        let root = self.root;
        Ok(root.open_dir(self.real(dir, budget)?)?)
    }

    fn look_up(&self, dir: &[u8]) -> Option<Vec<u8>> {
        match self.root.open_dir(dir) {
            Err(Errno::LOOP | Errno::NOTDIR) => self.follow(dir).filter(|real| real != dir),
            // Without a link on the way the name is the place, whether it exists, is a mount or can't be read.
            _ => None,
        }
    }

    /// `None` where the guest's own kernel would answer ELOOP: nothing can be there.
    fn follow(&self, dir: &[u8]) -> Option<Vec<u8>> {
        let mut done = Vec::new();
        let mut todo: Vec<Vec<u8>> = pieces(dir);
        let mut links = 0;
        while let Some(piece) = todo.pop() {
            if piece == b".." {
                done.truncate(done.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                continue;
            }
            let Some(target) = self.link_target(&done, &piece) else {
                push(&mut done, &piece);
                continue;
            };
            links += 1;
            if links > LINKS || done.len() + target.len() > PATH {
                return None;
            }
            if target.starts_with(b"/") {
                done.clear();
            }
            todo.extend(pieces(&target));
        }
        Some(done)
    }

    /// The target, if `name` in the real directory `dir` is a symbolic link.
    fn link_target(&self, dir: &[u8], name: &[u8]) -> Option<Vec<u8>> {
        let dir = self.root.open_dir(dir).ok()?;
        let is_link = dir.stat(name).ok()?.kind == Kind::Symlink;
        if is_link { dir.read_link(name).ok() } else { None }
    }
}

/// The components of a path, last first.
fn pieces(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}

fn push(path: &mut Vec<u8>, piece: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(piece);
}

/// A path from a database as (directory, name), both relative to the root; `None` for the root itself and
/// for what no package can own: `..`, NUL, or more than [`PATH`] bytes.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() > PATH {
        return None;
    }
    let path = match path.iter().position(|&byte| byte != b'/') {
        Some(0) => path,
        Some(start) => &path[start..],
        None => return None,
    };
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let cut = path.iter().rposition(|&byte| byte == b'/');
    let (dir, name) = cut.map_or((&b""[..], path), |cut| (&path[..cut], &path[cut + 1..]));
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..");
    let fits = !path.contains(&0) && !odd(name);
    let plain = dir.is_empty() || !dir.split(|&byte| byte == b'/').any(odd);
    (fits && plain).then_some((dir, name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // building guests is the test
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn real(links: &[(&str, &str)], dir: &str) -> String {
        let guest = tempfile::tempdir().unwrap();
        fs::create_dir_all(guest.path().join("usr/lib/x")).unwrap();
        for (from, to) in links {
            symlink(to, guest.path().join(from)).unwrap();
        }
        let root = Dir::open_host(guest.path()).unwrap();
        let mut dirs = Directories::new(&root);
        let found = dirs.real(dir.as_bytes(), &Budget::default()).unwrap();
        String::from_utf8(found.to_vec()).unwrap()
    }

    #[test]
    fn merged_usr_is_followed() {
        assert_eq!(real(&[("lib", "usr/lib")], "lib/x"), "usr/lib/x");
        assert_eq!(real(&[("lib", "/usr/lib")], "lib"), "usr/lib");
        assert_eq!(real(&[("usr/lib64", "./lib")], "usr/lib64/x"), "usr/lib/x");
        assert_eq!(real(&[("usr/lib/y", "../lib/x")], "usr/lib/y/gone/z"), "usr/lib/x/gone/z");
        assert_eq!(real(&[], "usr/lib/x"), "usr/lib/x");
        assert_eq!(real(&[], "not/there"), "not/there");
    }

    #[test]
    fn no_link_leads_out_and_none_turns_for_ever() {
        assert_eq!(real(&[("up", "../../../../usr/lib")], "up/x"), "usr/lib/x");
        assert_eq!(real(&[("etc", "/proc/self/root/etc")], "etc"), "proc/self/root/etc");
        assert_eq!(real(&[("a", "b"), ("b", "a")], "a/x"), "a/x");
        assert_eq!(real(&[("a", "a/a")], "a"), "a");
    }

    #[test]
    fn paths_are_split_as_packages_write_them() {
        let cut = |path: &'static str| split(path.as_bytes());
        assert_eq!(cut("/usr/bin/sh"), Some((&b"usr/bin"[..], &b"sh"[..])));
        assert_eq!(cut("./usr/x"), Some((&b"usr"[..], &b"x"[..])));
        assert_eq!(cut("x"), Some((&b""[..], &b"x"[..])));
        for none in ["/.", "/", "", "/a/../b", "/a/..", "a\0b", "/usr/", "/a//b"] {
            assert_eq!(cut(none), None, "{none:?}");
        }
        assert_eq!(split(&[b'x'; PATH + 1]), None);
    }
}
