//! Taking away objects that no guest links to any more.

use kernel::{At, Errno, Fs, Seal, lift_seals};

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
///
/// Each object is first moved where no planner finds it and its links are counted once more; one that a
/// guest has linked meanwhile (its root may link what it can read) goes back.
pub fn collect(fs: &dyn Fs, store: &Store) -> Result<Outcome> {
    let (objects, garbage) = garbage(store)?;
    let mut outcome = Outcome { objects, ..Outcome::default() };
    for name in garbage {
        if let Some(freed) = remove(fs, store, name)? {
            outcome.removed += 1;
            outcome.freed += freed;
        }
    }
    Ok(outcome)
}

fn remove(fs: &dyn Fs, store: &Store, name: ObjectName) -> Result<Option<u64>> {
    let failed = |doing| Error::at(doing, store.object_path(name));
    let (path, aside) = (name.path(), name.file_name());
    let from = At::new(store.objects(), path.as_bytes());
    let aside = At::new(store.quarantine(), aside.as_bytes());
    let file = match store.objects().open_file(from.name) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(failed("open"))?,
    };
    // A plainly immutable object can be neither moved nor unlinked before its flag is off.
    let locked = Seal::Immutable.is_on(&file).unwrap_or(false) && !Seal::Patch.is_on(&file).unwrap_or(false);
    if locked {
        fs.unseal(&file, Seal::Immutable).map_err(failed("unseal"))?;
    }
    match fs.rename_new(from, aside) {
        // What a collection that was cut off has left, and an object of that name was made since.
        Err(Errno::EXIST) => {
            if store.quarantine().stat(aside.name).map_err(failed("look at"))?.nlink > 1 {
                return Ok(None);
            }
            let left = store.quarantine().open_file(aside.name).map_err(failed("open"))?;
            lift_seals(fs, &left).and_then(|()| fs.unlink(aside)).map_err(failed("remove"))?;
            fs.rename_new(from, aside).map_err(failed("move"))?;
        }
        other => other.map_err(failed("move"))?,
    }
    let stat = file.stat().map_err(failed("stat"))?;
    if stat.nlink > 1 {
        fs.rename_new(aside, from).map_err(failed("move back"))?;
        if locked {
            fs.seal(&file, Seal::Immutable).map_err(failed("seal"))?;
        }
        return Ok(None);
    }
    // Whoever has it open may link it in this very moment: it is then no object, and not sealed either.
    lift_seals(fs, &file).map_err(failed("unseal"))?;
    fs.unlink(aside).map_err(failed("remove"))?;
    Ok(Some(stat.allocated()))
}
