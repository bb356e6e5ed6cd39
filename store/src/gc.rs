//! Taking away objects that no guest links to any more.

use kernel::{At, Errno, Fs, change_names, unless_withheld};

use crate::{Error, ObjectName, Result, Store};

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects taken away.
    pub removed: u64,
    /// Space given back, in allocated bytes.
    pub freed: u64,
    /// Objects that no guest links to and that one keeps from us all the same.
    pub withheld: u64,
}

/// What became of an object that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone; so much space was given back, in allocated bytes.
    Freed(u64),
    /// A guest links to it, or it was gone before.
    Left,
    /// A guest keeps us from opening it, by a lease or by taking its key away: it stays for the next time.
    Withheld,
}

/// Objects without a guest: those whose only name is the store's.
pub fn garbage(store: &Store) -> Result<(u64, Vec<ObjectName>)> {
    let (mut seen, mut found) = (0, Vec::new());
    store.for_each_object(
        |name, _, dir| {
            seen += 1;
            if dir.stat(name.file_name().as_bytes()).is_ok_and(|stat| stat.nlink == 1) {
                found.push(name);
            }
        },
        drop,
    )?;
    Ok((seen, found))
}

/// Takes garbage away, under the exclusive lock that the open store holds.
pub fn collect(fs: &dyn Fs, store: &Store) -> Result<Outcome> {
    let (objects, garbage) = garbage(store)?;
    let mut outcome = Outcome { objects, ..Outcome::default() };
    for name in garbage {
        match remove_unused(fs, store, name)? {
            Removal::Freed(bytes) => {
                outcome.removed += 1;
                outcome.freed += bytes;
            }
            Removal::Left => {}
            Removal::Withheld => outcome.withheld += 1,
        }
    }
    Ok(outcome)
}

/// Takes an object away if no guest links to it.
///
/// Its seal stays on: a guest may have it open or mapped. One that links it in this very moment, as root may link what it
/// has open, makes it an object again.
pub fn remove_unused(fs: &dyn Fs, store: &Store, name: ObjectName) -> Result<Removal> {
    let failed = |doing| Error::at(doing, store.object_path(name));
    let path = name.path();
    let at = At::new(store.objects(), path.as_bytes());
    if store.stat_object(name)?.is_none_or(|stat| stat.nlink != 1) {
        return Ok(Removal::Left);
    }
    let opened = unless_withheld(at.dir.open_file(at.name)).map_err(failed("open"))?;
    let Some(file) = opened else { return Ok(Removal::Withheld) };
    let remove = || {
        match fs.unlink(at) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        if file.stat()?.nlink > 0 {
            match fs.link_open(&file, at) {
                // Gone for good, as the guest has taken its link away again; or there still, as an error does not prove
                // that nothing was done.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        let stat = file.stat()?;
        Ok(if stat.nlink == 0 { Removal::Freed(stat.allocated()) } else { Removal::Left })
    };
    change_names(fs, &file, remove).map_err(failed("remove"))
}
