//! Whether a guest's package databases changed, by their stamps.

use kernel::{Dir, Stat};

use super::apk;
use super::build::Budget;
use super::resolve::Directories;

/// What the readers look at. A manager replaces files by renaming, so a directory's own stamp changes with
/// any file in it.
const FILES: &[&str] = &[
    "var/lib/dpkg/status",
    "var/lib/dpkg/status.d",
    "var/lib/dpkg/updates",
    "var/lib/dpkg/diversions",
    "var/lib/dpkg/info",
    "var/lib/rpm",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/rpmdb.sqlite-wal",
    "usr/lib/sysimage/rpm",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
    "usr/share/rpm/rpmdb.sqlite",
    "usr/share/rpm/rpmdb.sqlite-wal",
    "lib/apk/db/installed",
    "usr/lib/apk/db/installed",
    "etc/apk/protected_paths.d",
    "var/lib/pacman/local",
    // Merging /usr moves every path without touching a database.
    "bin",
    "sbin",
    "lib",
    "lib64",
];

pub(super) fn of(root: &Dir) -> u64 {
    let mut dirs = Directories::new(root);
    let budget = Budget::default();
    let mut hasher = blake3::Hasher::new();
    for path in FILES {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let stat = dirs.open(dir.as_bytes(), &budget).and_then(|dir| Ok(dir.stat(name.as_bytes())?)).ok();
        // A top directory that is no link says nothing; its stamp changes with every file made in it.
        let stat = stat.filter(|stat| !dir.is_empty() || stat.kind == kernel::Kind::Symlink);
        add(&mut hasher, stat.as_ref());
    }
    if let Ok(dir) = dirs.open(b"etc/apk/protected_paths.d", &budget) {
        for name in apk::list_names(&dir).unwrap_or_default() {
            add(&mut hasher, dir.stat(&name).ok().as_ref());
        }
    }
    let digest = hasher.finalize();
    let (head, _) = digest.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*head)
}

fn add(hasher: &mut blake3::Hasher, stat: Option<&Stat>) {
    hasher.update(&[u8::from(stat.is_some())]);
    if let Some(stat) = stat {
        for number in [stat.ino, stat.size, stat.mtime.to_nanos() as u64, stat.ctime.to_nanos() as u64] {
            hasher.update(&number.to_le_bytes());
        }
    }
}
