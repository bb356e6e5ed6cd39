//! Counting an inode's links while guests may add and remove some.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use kernel::{At, File, Stat, Time};

use crate::walk::{TICK_NANOS, is_over, lasts};

/// How many links an inode has that are not among these names. None: it cannot be told, for it is being changed.
///
/// To count links and to look at names are two things, and a guest may remove a name before the one and add it again
/// before the other: then somebody else's link is taken for it. But either leaves a later change time, so that what
/// was seen between two looks at the same change time, one that was over before the first, was so at one moment.
pub(crate) fn links_besides(file: &File, names: &[At<'_>]) -> kernel::Result<Option<u32>> {
    let Some(before) = stat_over(file)? else { return Ok(None) };
    let mut seen = HashSet::new();
    for name in names {
        // A guest may have moved a directory to where another of the names is looked for.
        let dir = name.dir.stat_self()?.ino;
        if name.dir.stat(name.name).is_ok_and(|stat| stat.ino == before.ino) {
            seen.insert((dir, name.name));
        }
    }
    let after = file.stat()?;
    let is_same = (after.ctime, after.nlink) == (before.ctime, before.nlink);
    Ok(before.nlink.checked_sub(seen.len() as u32).filter(|_| is_same))
}

/// What an inode is like, once all that changes from now on will have another change time. None: it has changed again
/// while that was waited for.
fn stat_over(file: &File) -> kernel::Result<Option<Stat>> {
    for patience in [true, false] {
        let now = Time::now();
        let stat = file.stat()?;
        let ctime = stat.ctime.to_nanos();
        if is_over(ctime, now) {
            return Ok(Some(stat));
        }
        if patience {
            thread::sleep(Duration::from_nanos((lasts(ctime) + TICK_NANOS) as u64));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{Dir, Fs, Real};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_link_that_comes_and_goes_hides_no_other() {
        const TRIES: usize = 40;
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        let at = |name| At::new(&dir, name);
        let file = Real.create(at(b"object")).unwrap();
        for name in [b"guest's".as_slice(), b"another guest's"] {
            Real.link(at(b"object"), at(name)).unwrap();
        }
        // Names that are gone make the look long enough for something to happen meanwhile.
        let mut names = vec![at(b"gone"); 20_000];
        names.extend([at(b"guest's"), at(b"guest's"), at(b"toggled")]);
        let done = AtomicBool::new(false);
        let told = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    Real.link(at(b"object"), at(b"toggled")).unwrap();
                    thread::sleep(Duration::from_millis(31));
                    Real.unlink(at(b"toggled")).unwrap();
                    thread::sleep(Duration::from_millis(31));
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
        assert_eq!(links_besides(&file, &names), Ok(Some(1)));
    }
}
