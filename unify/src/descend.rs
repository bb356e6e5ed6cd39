//! Descending through the directories of guests, in parallel.
//!
//! What waits to be looked at has no path of its own: a guest can give a long one to very many directories.

use std::cmp::Ordering;
use std::sync::Arc;

use kernel::{Dir, Errno};
use store::census;

use crate::guest::Guest;
use crate::notes::Surroundings;

/// Longest path within a guest that is followed, in bytes and in directories. A hostile guest can nest directories
/// without end, and opening one costs a look-up for each above it.
const MAX_PATH: usize = 64 * 1024;
const MAX_DEPTH: usize = 512;

/// Bytes of names in one directory, at most: some ten million names.
pub(crate) const MAX_DIR_NAMES: usize = 1 << 30;

/// Subdirectories that are one piece of work: to note each by itself would take more memory than its name.
pub(crate) const STRETCH: usize = 32;

/// The way from a guest's root to a directory of it, kept once for all that lies below.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Option<Arc<Step>>);

#[derive(Debug)]
struct Step {
    above: Trail,
    name: Box<[u8]>,
    /// Bytes of the path, and names in it.
    length: usize,
    depth: usize,
}

impl Trail {
    /// The way along a path.
    pub(crate) fn along(path: &[u8]) -> Self {
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        names.fold(Self::default(), |trail, name| trail.to(name))
    }

    /// One directory further.
    pub(crate) fn to(&self, name: &[u8]) -> Self {
        let length = self.0.as_ref().map_or(0, |step| step.length + 1) + name.len();
        let depth = self.depth() + 1;
        Self(Some(Arc::new(Step { above: self.clone(), name: name.into(), length, depth })))
    }

    /// The path from the root, empty for the root itself.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut path = vec![b'/'; self.length()];
        let (mut end, mut trail) = (path.len(), self);
        while let Some(step) = &trail.0 {
            let start = end - step.name.len();
            path[start..end].copy_from_slice(&step.name);
            (end, trail) = (start.saturating_sub(1), &step.above);
        }
        path
    }

    /// Whether it is followed.
    pub(crate) fn is_within_reach(&self) -> bool {
        self.length() <= MAX_PATH && self.depth() <= MAX_DEPTH
    }

    /// Bytes of the path.
    pub(crate) fn length(&self) -> usize {
        self.0.as_ref().map_or(0, |step| step.length)
    }

    fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |step| step.depth)
    }

    /// What of it leads so deep.
    fn first(&self, depth: usize) -> &Self {
        let mut trail = self;
        while let Some(step) = trail.0.as_ref().filter(|step| step.depth > depth) {
            trail = &step.above;
        }
        trail
    }

    fn cmp_same_depth(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) if !Arc::ptr_eq(a, b) => {
                a.above.cmp_same_depth(&b.above).then_with(|| a.name.cmp(&b.name))
            }
            _ => Ordering::Equal,
        }
    }
}

/// By names from the root on; what lies above comes first.
impl Ord for Trail {
    fn cmp(&self, other: &Self) -> Ordering {
        let depth = self.depth().min(other.depth());
        self.first(depth).cmp_same_depth(other.first(depth)).then(self.depth().cmp(&other.depth()))
    }
}

impl PartialOrd for Trail {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Trail {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Trail {}

/// A directory that is looked at.
pub(crate) struct Here<'h> {
    /// Number of its guest.
    pub(crate) guest: u32,
    pub(crate) trail: &'h Trail,
    pub(crate) path: &'h [u8],
    pub(crate) dir: &'h Dir,
}

/// Names of the subdirectories of one directory.
#[derive(Default)]
pub(crate) struct Below {
    /// Kept as [`census::Census::names`] are.
    names: Vec<u8>,
    starts: Vec<u32>,
}

impl Below {
    /// `EOVERFLOW`: there are too many.
    pub(crate) fn add(&mut self, name: &[u8]) -> kernel::Result<()> {
        if self.names.len() > MAX_DIR_NAMES {
            return Err(Errno::OVERFLOW);
        }
        self.starts.push(census::add_name(&mut self.names, name));
        Ok(())
    }
}

/// What directories are looked through for.
pub(crate) trait Search: Sync {
    /// Looks at a directory; what it adds to `below` is looked at, too, even after an error.
    fn look(&self, here: &Here<'_>, below: &mut Below) -> kernel::Result<()>;
    /// Hears of a directory that was not looked at, or not as a whole.
    fn miss(&self, guest: u32, path: &[u8], errno: Errno);
}

/// Looks at every directory of some guests, given by number, until the user wants to stop.
pub(crate) fn descend(
    around: &Surroundings<'_>,
    guests: &[Guest],
    chosen: impl IntoIterator<Item = u32> + Send,
    search: &impl Search,
) {
    let descent = Descent { around, guests, search };
    rayon::scope(|scope| {
        for guest in chosen {
            let descent = &descent;
            scope.spawn(move |scope| descent.visit(scope, guest, &Trail::default()));
        }
    });
}

struct Descent<'d, S> {
    around: &'d Surroundings<'d>,
    guests: &'d [Guest],
    search: &'d S,
}

impl<S: Search> Descent<'_, S> {
    fn visit<'s>(&'s self, scope: &rayon::Scope<'s>, guest: u32, trail: &Trail) {
        if self.around.stopping() {
            return;
        }
        let path = trail.path();
        let mut below = Below::default();
        let mut look = || {
            if !trail.is_within_reach() {
                return Err(Errno::NAMETOOLONG);
            }
            let dir = &self.guests[guest as usize].root.open_dir(&path)?;
            self.search.look(&Here { guest, trail, path: &path, dir }, &mut below)
        };
        if let Err(errno) = look() {
            self.search.miss(guest, &path, errno);
        }
        let below = Arc::new(below);
        for from in (0..below.starts.len()).step_by(STRETCH) {
            let (below, trail) = (Arc::clone(&below), trail.clone());
            scope.spawn(move |scope| {
                for &start in below.starts.iter().skip(from).take(STRETCH) {
                    self.visit(scope, guest, &trail.to(census::name_at(&below.names, start)));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_leads_along_its_path() {
        for path in [b"".as_slice(), b"usr", b"usr/share/doc", b"a/b/\xff\n/d"] {
            assert_eq!(Trail::along(path).path(), path);
        }
        assert_eq!(Trail::along(b"usr").to(b"bin").path(), b"usr/bin");
    }

    #[test]
    fn trails_are_ordered_by_names_from_the_root() {
        let paths = [b"".as_slice(), b"a", b"a/b", b"a/b/c", b"a/c", b"a-b", b"b", b"b/a"];
        for (at, a) in paths.iter().enumerate() {
            for (other, b) in paths.iter().enumerate() {
                assert_eq!(Trail::along(a).cmp(&Trail::along(b)), at.cmp(&other), "{a:?} {b:?}");
            }
        }
        let above = Trail::along(b"usr/share");
        assert!(above.to(b"doc") < above.to(b"man"));
        assert_eq!(above.to(b"doc"), Trail::along(b"usr/share/doc"));
    }

    #[test]
    fn reach_ends_with_length_and_with_depth() {
        let deep = |depth: usize| Trail::along(&b"d/".repeat(depth));
        assert!(deep(MAX_DEPTH).is_within_reach() && !deep(MAX_DEPTH + 1).is_within_reach());
        let name = [b'n'; 255];
        let long = (0..MAX_PATH / 256).fold(Trail::default(), |trail, _| trail.to(&name));
        assert!(long.is_within_reach() && !long.to(b"n").is_within_reach());
    }
}
