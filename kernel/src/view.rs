//! A tree without the mounts in it.

use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::{Dir, Errno, Result};

/// Opens the tree at `path` as the file system has it: what is mounted below does not show, so that it is
/// neither crossed nor mistaken for files (`open_tree(2)` with `OPEN_TREE_CLONE`, not recursive).
///
/// All handles opened through one view belong to one mount, so links and renames work between them.
/// Without `CAP_SYS_ADMIN` the plain directory is returned; what is mounted below is then refused with
/// `EXDEV`, file by file.
pub fn view(path: &Path) -> Result<Dir> {
    match open_tree(rustix::fs::CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
    {
        // The clone is O_PATH; reading needs a real descriptor.
        Ok(clone) => Dir::from(clone).reopen(),
        // Not permitted, hidden mounts that must stay (EINVAL), or a kernel before 5.2.
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => Dir::open_host(path),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_work_within_one_view() {
        use crate::{At, Fs, Real};
        let place = tempfile::tempdir().unwrap();
        let whole = view(place.path()).unwrap();
        Real.make_dir(At { dir: &whole, name: b"guest" }, 0o755).unwrap();
        let guest = whole.open_dir(b"guest").unwrap();
        Real.create(At { dir: &guest, name: b"a" }).unwrap();
        Real.link(At { dir: &guest, name: b"a" }, At { dir: &whole, name: b"b" }).unwrap();
        assert!(whole.stat(b"b").unwrap().same_inode(&guest.stat(b"a").unwrap()));
    }
}
