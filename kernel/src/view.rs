//! A tree without the mounts in it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::{Dir, Errno, Result, sys};

/// A tree as its file system has it: what is mounted below does not show, so that it is neither crossed nor
/// mistaken for files.
///
/// All handles opened through one view belong to one mount, so links and renames work between them.
#[derive(Debug)]
pub struct View {
    root: Dir,
    /// The mount lives as long as this descriptor. It would outlive it in open files too, but as an orphan,
    /// for which the kernel takes a global lock at every close.
    _mount: Option<OwnedFd>,
}

impl View {
    /// Opens the tree at `path` (`open_tree(2)` with `OPEN_TREE_CLONE`, not recursive).
    ///
    /// Without `CAP_SYS_ADMIN` it is the plain directory; what is mounted below is then refused with
    /// `EXDEV`, name by name.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match open_tree(rustix::fs::CWD, path, flags) {
            Ok(clone) => {
                // A guest's device node, put where a file is expected, must not be opened by us. Before
                // Linux 5.12 it can be.
                sys::defuse_mount(&clone).ok();
                // The clone is O_PATH; reading needs a real descriptor.
                let root = Dir::from(clone.try_clone().map_err(|_| Errno::MFILE)?).reopen()?;
                Ok(Self { root, _mount: Some(clone) })
            }
            // Not permitted, hidden mounts that must stay (EINVAL), or a kernel before 5.2.
            Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => {
                Ok(Self { root: Dir::open_host(path)?, _mount: None })
            }
            Err(other) => Err(other),
        }
    }

    /// The root of the tree.
    pub fn root(&self) -> &Dir {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_work_within_one_view() {
        use crate::{At, Fs, Real};
        let place = tempfile::tempdir().unwrap();
        let view = View::open(place.path()).unwrap();
        let whole = view.root();
        Real.make_dir(At { dir: whole, name: b"guest" }, 0o755).unwrap();
        let guest = whole.open_dir(b"guest").unwrap();
        Real.create(At { dir: &guest, name: b"a" }).unwrap();
        Real.link(At { dir: &guest, name: b"a" }, At { dir: whole, name: b"b" }).unwrap();
        assert!(whole.stat(b"b").unwrap().same_inode(&guest.stat(b"a").unwrap()));
    }
}
