//! Counting an inode's links while guests may add and remove some.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use kernel::{At, File, Time};
use store::Store;
use store::journal::{Action, Verb};

use crate::Result;
use crate::walk::{TICK_NANOS, lasts};

/// Links of an object that are no guest's.
pub(crate) const THE_STORES: u32 = 1;

/// How many links an inode has that are not among these names. None: it cannot be told, for it is being changed or was
/// just now.
///
/// To count links and to look at names are two things, and a guest may remove a name before the one and add it again
/// before the other: then somebody else's link is taken for it. But either leaves another change time, so that what
/// was seen between two looks at the same change time, one that later changes don't leave, was so at one moment.
pub(crate) fn links_besides(file: &File, names: &[At<'_>]) -> kernel::Result<Option<u32>> {
    let now = Time::now();
    let before = file.stat()?;
    let mut seen = HashSet::new();
    for name in names {
        // A guest may have moved a directory to where another of the names is looked for, or made a subvolume there.
        let dir = name.dir.stat_self()?.ino;
        if name.dir.stat(name.name).is_ok_and(|stat| stat.same_inode(&before)) {
            seen.insert((dir, name.name));
        }
    }
    let after = file.stat()?;
    let is_same = (after.ctime, after.nlink) == (before.ctime, before.nlink);
    let told = is_same && !is_fresh(before.ctime, now);
    Ok(before.nlink.checked_sub(seen.len() as u32).filter(|_| told))
}

/// Waits until the last change of every object that a batch retires can be told from a later one.
pub(crate) fn let_stamps_pass(store: &Store, actions: &[Action]) -> Result<()> {
    let now = Time::now();
    let mut longest = 0;
    for action in actions.iter().filter(|action| action.verb == Verb::Retire) {
        if let Some(stat) = store.stat_object(action.object)?.filter(|stat| is_fresh(stat.ctime, now)) {
            longest = longest.max(lasts(stat.ctime.to_nanos()) + TICK_NANOS);
        }
    }
    thread::sleep(Duration::from_nanos(longest as u64));
    Ok(())
}

/// Whether a change from `now` on may leave the same stamp. One that is far ahead, as after a reboot with a clock that
/// is behind, is as good as one that is long over.
fn is_fresh(stamp: Time, now: Time) -> bool {
    now.to_nanos().abs_diff(stamp.to_nanos()) <= lasts(stamp.to_nanos()).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{Dir, Fs, Real};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_link_that_comes_and_goes_hides_no_other() {
        const TRIES: usize = 400;
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        let at = |name| At::new(&dir, name);
        let file = Real.create(at(b"object")).unwrap();
        for name in [b"guest's".as_slice(), b"another guest's"] {
            Real.link(at(b"object"), at(name)).unwrap();
        }
        // Names that are gone make the look long enough for something to happen meanwhile.
        let mut names = vec![at(b"gone"); 10_000];
        names.extend([at(b"guest's"), at(b"guest's"), at(b"toggled")]);
        let done = AtomicBool::new(false);
        let told = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    Real.link(at(b"object"), at(b"toggled")).unwrap();
                    thread::sleep(Duration::from_millis(60));
                    Real.unlink(at(b"toggled")).unwrap();
                    thread::sleep(Duration::from_millis(60));
                }
            });
            let told: Vec<_> = (0..TRIES).map(|_| links_besides(&file, &names).unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            told
        });
        let right = told.iter().filter(|told| **told == Some(2)).count();
        let unclear = told.iter().filter(|told| told.is_none()).count();
        assert_eq!(right + unclear, TRIES, "{told:?}");
        assert!(right > 0 && unclear > 0, "{told:?}");
        Real.unlink(at(b"another guest's")).unwrap();
        assert_eq!(links_besides(&file, &names), Ok(None), "just changed");
        thread::sleep(Duration::from_nanos(2 * TICK_NANOS as u64));
        assert_eq!(links_besides(&file, &names), Ok(Some(1)));
    }
}
