//! Trees of any size, for growth curves: guests with the same files, each name an inode of its own, so
//! that a first run has everything to do, and after it the names are links to a limited number of objects.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kernel::{At, Dir, Fs, Metadata, Real, Time};

use crate::{Context, Result};

/// The shape of a generated tree.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of guests.
    pub guests: u64,
    /// Files in each guest that all other guests have too.
    pub shared: u64,
    /// Files in each guest that no other has.
    pub private: u64,
    /// Files in a directory.
    pub files_per_dir: u64,
}

impl Shape {
    /// Names of regular files in all guests.
    pub fn names(&self) -> u64 {
        self.guests * (self.shared + self.private)
    }

    /// Directories in all guests, their roots among them.
    pub fn dirs(&self) -> u64 {
        self.guests * (4 + (self.shared + self.private).div_ceil(self.files_per_dir))
    }

    /// Private files in all guests.
    pub fn privates(&self) -> u64 {
        self.guests * self.private
    }
}

/// Makes the guests below `root` with `threads` threads and returns their paths.
pub fn generate(root: &Path, shape: Shape, threads: usize) -> Result<Vec<PathBuf>> {
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        loop {
            let guest = next.fetch_add(1, Ordering::Relaxed);
            if guest >= shape.guests {
                return Ok(());
            }
            fill(&path(root, guest), guest, shape)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok((0..shape.guests).map(|guest| path(root, guest)).collect())
}

fn path(root: &Path, guest: u64) -> PathBuf {
    root.join(format!("guest{guest:04}"))
}

/// One guest: `usr/lib/dNNN/fNNN`, a merged-/usr link, and enough of /etc to be taken for a guest.
fn fill(guest_path: &Path, guest: u64, shape: Shape) -> Result<()> {
    let what = || format!("filling {}", guest_path.display());
    std::fs::create_dir_all(guest_path.join("usr/lib")).context(what())?;
    std::fs::create_dir_all(guest_path.join("etc")).context(what())?;
    symlink("usr/lib", guest_path.join("lib")).context(what())?;
    let lib = Dir::open_host(&guest_path.join("usr/lib")).context(what())?;
    let mut dir = None;
    for number in 0..shape.shared + shape.private {
        if number % shape.files_per_dir == 0 {
            let name = format!("d{:06}", number / shape.files_per_dir);
            Real.make_dir(At::new(&lib, name.as_bytes()), 0o755).context(what())?;
            dir = Some(lib.open_dir(name.as_bytes()).context(what())?);
        }
        if let Some(dir) = &dir {
            // Private files carry the guest's number in their content.
            let owner = if number < shape.shared { 0 } else { guest + 1 };
            file(dir, number, owner).context(what())?;
        }
    }
    Ok(())
}

/// A file of 24 to 55 bytes: small enough to lie in an inode of 256 bytes, never empty.
fn file(dir: &Dir, number: u64, owner: u64) -> kernel::Result<()> {
    let padding = ".".repeat((number % 32) as usize);
    let content = format!("{number:012x}{owner:012x}{padding}");
    let file = Real.create(At::new(dir, format!("file-{number:07}.so").as_bytes()))?;
    Real.write_at(&file, content.as_bytes(), 0)?;
    let mtime = Time { seconds: 1_600_000_000 + number as i64, nanos: 0 };
    let made = file.stat()?;
    Real.set_metadata(&file, &Metadata { mode: 0o644, uid: made.uid, gid: made.gid, mtime, xattrs: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    #[test]
    fn a_tree_has_what_its_shape_says() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let shape = Shape { guests: 3, shared: 50, private: 7, files_per_dir: 10 };
        assert_eq!(generate(root, shape, 2).unwrap().len(), 3);
        let count = |what: &str| -> u64 {
            shell(&format!("cd {} && {what} | wc -l", root.display())).unwrap().trim().parse().unwrap()
        };
        assert_eq!(count("find . -type f"), shape.names());
        assert_eq!(count("find . -mindepth 1 -type d"), shape.dirs());
        let contents = count("find . -type f -exec b2sum {} + | cut -c1-128 | sort -u");
        assert_eq!(contents, shape.shared + shape.privates());
    }
}
