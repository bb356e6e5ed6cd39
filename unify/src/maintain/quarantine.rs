//! What was taken out of use: corrupt objects, and files that recovery could not place.

use std::path::PathBuf;

use kernel::{At, Dir, Errno, Fs, Kind, Seal, Stat, change_names, unless_withheld};
use store::{ObjectName, Store};

use crate::Result;
use crate::notes::Surroundings;

/// What kind of thing lies in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptKind {
    /// An object whose bytes or metadata were not what its name says.
    Corrupt(ObjectName),
    /// A file whose origin recovery could not tell: it may be the only copy of a guest's data.
    Unclear,
}

impl KeptKind {
    /// The stable word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Corrupt(_) => "corrupt",
            Self::Unclear => "unclear",
        }
    }

    fn of(name: &[u8]) -> Self {
        let corrupt = || {
            let rest = name.strip_prefix(b"corrupt.")?;
            let dot = rest.iter().position(|&byte| byte == b'.')?;
            ObjectName::parse(&rest[dot + 1..])
        };
        corrupt().map_or(Self::Unclear, Self::Corrupt)
    }
}

/// A file in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name there.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: KeptKind,
    /// Its metadata; one link is quarantine's own.
    pub stat: Stat,
}

impl Kept {
    /// Names that it has in guests.
    pub fn held(&self) -> u32 {
        self.stat.nlink.saturating_sub(1)
    }
}

/// Everything in quarantine.
pub fn kept(store: &Store) -> Result<Vec<Kept>> {
    let path = store.path().join("quarantine");
    let fresh = store.quarantine().reopen().map_err(store::Error::at("open", &path))?;
    let names = fresh.names().map_err(store::Error::at("read", &path))?;
    let look = |name: Vec<u8>| {
        let stat = fresh.stat(&name).ok()?;
        Some(Kept { kind: KeptKind::of(&name), name, stat })
    };
    Ok(names.into_iter().filter_map(look).collect())
}

/// What emptying quarantine did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emptied {
    /// What was removed, or would be.
    pub removed: Vec<Kept>,
    /// Space given back, in allocated bytes.
    pub freed: u64,
    /// Objects that stay because guests have names of them.
    pub held: u64,
    /// Objects that stay because a guest that has them open keeps them from us by a lease.
    pub withheld: u64,
    /// Files of unclear origin, which are never removed.
    pub unclear: u64,
}

/// Removes objects from quarantine that no guest links to. Files of unclear origin stay: only a person can
/// tell whether they are needed. `fs` is none for a dry run.
pub fn empty(fs: Option<&dyn Fs>, store: &Store) -> Result<Emptied> {
    let mut emptied = Emptied::default();
    for kept in kept(store)? {
        match kept.kind {
            KeptKind::Unclear => emptied.unclear += 1,
            _ if kept.held() > 0 => emptied.held += 1,
            KeptKind::Corrupt(_) => {
                if let Some(fs) = fs
                    && !remove(fs, store, &kept.name)?
                {
                    emptied.withheld += 1;
                    continue;
                }
                emptied.freed += kept.stat.allocated();
                emptied.removed.push(kept);
            }
        }
    }
    Ok(emptied)
}

/// `Ok(false)`: a guest that has it open keeps it from us by a lease.
fn remove(fs: &dyn Fs, store: &Store, name: &[u8]) -> Result<bool> {
    let failed = || store::Error::at("remove", path_of(store, name));
    let opened = unless_withheld(store.quarantine().open_file(name)).map_err(failed())?;
    let Some(file) = opened else { return Ok(false) };
    change_names(fs, &file, || fs.unlink(At::new(store.quarantine(), name))).map_err(failed())?;
    Ok(true)
}

/// Gives what lies in quarantine the name of an object again. `Ok(false)`: that name is taken.
pub(super) fn restore(fs: &dyn Fs, store: &Store, aside: &[u8], name: ObjectName) -> Result<bool> {
    let path = name.path();
    let from = At::new(store.quarantine(), aside);
    match fs.rename_new(from, At::new(store.objects(), path.as_bytes())) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(store::Error::at("bring back", path_of(store, aside))(errno).into()),
    }
}

/// Takes a corrupt object out of use; returns its name in quarantine. Guests that have it keep it, and its
/// seal stays on, so that none changes it for the others. None: its seal holds its name, and a guest keeps us from
/// opening it.
pub(crate) fn put_aside(
    around: &Surroundings<'_>,
    store: &Store,
    name: ObjectName,
) -> Result<Option<Vec<u8>>> {
    let path = name.path();
    let failed = || store::Error::at("quarantine", store.object_path(name));
    // Only a regular file can carry a seal; one that cannot even be opened is moved as it is.
    let object = At::new(store.objects(), path.as_bytes());
    let move_aside = || rename_aside(around.fs, object, store.quarantine(), name);
    let aside = match unless_withheld(store.objects().open_file(path.as_bytes())) {
        Ok(Some(file)) => change_names(around.fs, &file, move_aside),
        Ok(None) => match move_aside() {
            Err(Errno::PERM) => return Ok(None),
            moved => moved,
        },
        Err(_) => move_aside(),
    };
    Ok(Some(aside.map_err(failed())?))
}

/// Puts a seal that holds names on what lies corrupt in quarantine without it: who moved it there, or took names of it
/// away, was cut off. Returns what is still without, as a guest keeps us from opening it.
pub(crate) fn fasten_corrupt(fs: &dyn Fs, store: &Store, seal: Seal) -> Result<Vec<PathBuf>> {
    let mut unsealed = Vec::new();
    for kept in kept(store)? {
        let is_corrupt = matches!(kept.kind, KeptKind::Corrupt(_)) && kept.stat.kind == Kind::File;
        if !is_corrupt || kept.stat.immutable {
            continue;
        }
        let path = || path_of(store, &kept.name);
        match unless_withheld(store.quarantine().open_file(&kept.name)) {
            Ok(Some(file)) => fs.seal(&file, seal).map_err(store::Error::at("seal", path()))?,
            Ok(None) => unsealed.push(path()),
            // The disk gives it to nobody.
            Err(_) => {}
        }
    }
    Ok(unsealed)
}

fn rename_aside(fs: &dyn Fs, from: At<'_>, quarantine: &Dir, name: ObjectName) -> kernel::Result<Vec<u8>> {
    for copy in 0..u32::MAX {
        let aside = format!("corrupt.{copy}.{name}").into_bytes();
        match fs.rename_new(from, At::new(quarantine, &aside)) {
            Ok(()) => return Ok(aside),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

pub(super) fn path_of(store: &Store, name: &[u8]) -> PathBuf {
    store.path().join("quarantine").join(crate::walk::to_path(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::ObjectId;

    #[test]
    fn names_tell_what_is_kept() {
        let object = ObjectName { id: ObjectId([0xab; 32]), twin: 1, overflow: 2 };
        let kind = |name: String| KeptKind::of(name.as_bytes());
        assert_eq!(kind(format!("corrupt.0.{object}")), KeptKind::Corrupt(object));
        assert_eq!(kind(format!("corrupt.17.{object}")), KeptKind::Corrupt(object));
        let object = object.to_string();
        for unclear in ["unclear.0.3", "corrupt.", "corrupt.0", "corrupt.0.x", &object, ""] {
            assert_eq!(kind(unclear.into()), KeptKind::Unclear, "{unclear}");
        }
    }
}
