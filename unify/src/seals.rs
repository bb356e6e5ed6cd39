//! Seals of what is in the store: off and on again where they hold names fast, and on again where they were lost.
//!
//! What a guest keeps us from opening is passed over, and named.

use std::collections::BTreeMap;

use kernel::{Errno, File, Fs, Leased, Seal, unless_withheld};
use store::journal::Action;
use store::{ObjectName, Store};

use crate::Result;
use crate::hash::identify;
use crate::notes::{Skip, Surroundings};

/// Where a sealed inode can get no new names, its seal is off for the length of a batch. Returns the files, which are
/// to stay open until [`fasten`] has been there: no guest's lease keeps it out.
pub(crate) fn loosen(fs: &dyn Fs, store: &Store, actions: &[Action], seal: Seal) -> Result<Vec<File>> {
    let mut loose = Vec::new();
    for_each_object(store, actions, seal, |name, file| {
        if let Some(file) = file {
            fs.unseal(&file, seal).map_err(store::Error::at("unseal", store.object_path(name)))?;
            loose.push(file);
        }
        Ok(())
    })?;
    Ok(loose)
}

/// Puts back on what [`loosen`] took off; returns what is still without, as a guest keeps us from opening it.
pub(crate) fn fasten(fs: &dyn Fs, store: &Store, actions: &[Action], seal: Seal) -> Result<Vec<ObjectName>> {
    let mut unsealed = Vec::new();
    for_each_object(store, actions, seal, |name, file| {
        match file {
            Some(file) => {
                fs.seal(&file, seal).map_err(store::Error::at("seal", store.object_path(name)))?;
            }
            None if store.stat_object(name)?.is_some_and(|stat| !stat.immutable) => unsealed.push(name),
            None => {}
        }
        Ok(())
    })?;
    Ok(unsealed)
}

/// Calls `each` for every existing inode of the actions' twins, once each; without a file for those that guests keep
/// us from opening.
fn for_each_object(
    store: &Store,
    actions: &[Action],
    seal: Seal,
    mut each: impl FnMut(ObjectName, Option<File>) -> Result<()>,
) -> Result<()> {
    if seal.leaves_names_free() {
        return Ok(());
    }
    // The highest overflow of each twin that an action knows of.
    let mut twins: BTreeMap<ObjectName, u16> = BTreeMap::new();
    for ObjectName { id, twin, overflow } in actions.iter().map(|action| action.object) {
        let known = twins.entry(ObjectName { id, twin, overflow: 0 }).or_default();
        *known = overflow.max(*known);
    }
    for (mut name, known) in twins {
        loop {
            match unless_withheld(store.objects().open_file(name.path().as_bytes())) {
                Ok(file) => each(name, file)?,
                // One that no guest had any more may be gone from among them.
                Err(Errno::NOENT) if name.overflow < known => {}
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(store::Error::at("open", store.object_path(name))(errno).into()),
            }
            name = name.next_overflow();
        }
    }
    Ok(())
}

/// Puts the seal on an object that lacks it. Somebody may have it open for writing: it is proven once more, under a lease.
pub(crate) fn reseal(
    around: &Surroundings<'_>,
    store: &Store,
    name: ObjectName,
    seal: Seal,
) -> std::result::Result<(), Skip> {
    let opened = unless_withheld(store.objects().open_file(name.path().as_bytes()));
    let file = opened.map_err(Skip::from_errno)?.ok_or(Skip::Busy)?;
    let lease = Leased::take(file).map_err(Skip::from_errno)?;
    let stat = lease.file().stat().map_err(Skip::from_errno)?;
    let id = identify(around, lease.file(), &stat, store.format().identity)?;
    if id != name.id || !lease.held() {
        return Err(Skip::Busy);
    }
    around.fs.seal(lease.file(), seal).map_err(Skip::Failed)
}
