//! The stores on the file systems that link-invert watches.
//!
//! Nothing lists them: a store lies beside its guests, wherever these are. So they are looked for, from the mount
//! points of those file systems down.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use kernel::bpf::scope::{self, Answer};
use kernel::{Dir, EntryBuffer, Errno, Kind};

/// A store's name.
const STORE: &[u8] = b".store";
/// How far down a store is looked for.
const DEPTH: usize = 4;
/// Directories that are looked into at most, so that no guest can keep the search going.
const DIRECTORIES: usize = 50_000;

/// The search was given up: there is too much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// The mount points of the file systems that are in the scope.
pub fn watched() -> kernel::Result<Vec<(PathBuf, Dir)>> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let open = |path: PathBuf| Some((path.clone(), Dir::open_host(&path).ok()?));
    let is_watched = |dir: &Dir| scope::ask(dir) == Ok(Answer::Inside);
    Ok(mount_points(&table).filter_map(open).filter(|(_, dir)| is_watched(dir)).collect())
}

/// The fifth field of each line, in which blanks and the like are octal.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let fields =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            bytes.push(
                digits.iter().fold(0, |value: u8, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
            );
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    bytes
}

/// The stores in a directory and below it. What stands beside a store are its guests, and not looked into.
pub fn below(top: &Dir) -> Result<Vec<Dir>, TooMuch> {
    let mut stores = Vec::new();
    let mut buffer = EntryBuffer::default();
    let mut left = DIRECTORIES;
    let mut queue = VecDeque::from([(Vec::new(), 0)]);
    while let Some((path, depth)) = queue.pop_front() {
        left = left.checked_sub(1).ok_or(TooMuch)?;
        // What is gone, or is another file system, holds no store of this one.
        let Ok(dir) = top.open_dir(&path) else { continue };
        let mut found = Vec::new();
        let read = dir.for_each(&mut buffer, |entry| -> kernel::Result<()> {
            if entry.kind == Kind::Directory {
                found.push(entry.name.to_vec());
            }
            Ok(())
        });
        if read.is_err() {
            continue;
        }
        if found.iter().any(|name| name == STORE) {
            stores.extend(dir.open_dir(STORE).ok());
            continue;
        }
        for name in found.into_iter().filter(|_| depth < DEPTH) {
            let path = if path.is_empty() { name } else { [&path[..], &name].join(&b'/') };
            queue.push_back((path, depth + 1));
        }
    }
    Ok(stores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table = b"36 35 98:0 /mnt1 /srv/my\\040guests rw,noatime master:1 - ext3 /dev/root rw\n\
                      37 35 98:1 / /a\\134b rw - xfs /dev/b rw\n";
        let paths: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(paths, [PathBuf::from("/srv/my guests"), PathBuf::from("/a\\b")]);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn stores_are_found_near_the_top() {
        let place = tempfile::tempdir().unwrap();
        for path in ["a/.store/b/.store", "a/guest/.store", "b/c/d/e/.store", "b/c/d/e2/f/.store"] {
            std::fs::create_dir_all(place.path().join(path)).unwrap();
        }
        let count = || below(&Dir::open_host(place.path()).unwrap()).unwrap().len();
        assert_eq!(count(), 2);
        std::fs::create_dir(place.path().join(".store")).unwrap();
        assert_eq!(count(), 1);
    }
}
