//! What hard links cannot share may still share its bytes: `FIDEDUPERANGE` on btrfs and xfs.
//!
//! Files that stay private after unification (config, setuid files, other metadata, other subvolumes) and
//! have the same content get the same extents. Each keeps its inode, its metadata and its times, and a
//! write to one gives it blocks of its own: nothing can leak or spread, so no policy applies, no seal is
//! needed, and there is nothing to undo.
//!
//! Nothing here has to be proven either. Digests only find pairs; the kernel compares the bytes of both
//! files under its own locks and shares them only if they are equal (`ioctl_fideduperange(2)`). A guest's
//! file is never opened for writing.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use kernel::{Dir, EntryBuffer, Errno, File, Kind, Stat};
use rayon::prelude::*;
use store::journal::RunEnd;
use store::{ObjectName, Store};

use crate::descend::{Below, Here, Search, Trail, descend};
use crate::hash::{digest, is_hollow};
use crate::notes::{Count, Skip};
use crate::session::{Report, Session};
use crate::walk::to_path;

/// Smaller files are left alone: whole blocks are shared, and a block has 4096 bytes nearly everywhere.
const LEAST: u64 = 4096;

/// Read of each file that others have the size of, before the whole of any is read.
const HEAD: u64 = 4096;

/// What sharing extents came to, or would come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reflinks {
    /// Whether the file system can; if not, nothing was looked at.
    pub supported: bool,
    /// Files that share the extents of another now and did not before.
    pub files: u64,
    /// Their bytes, holes left out.
    pub bytes: u64,
}

/// Files that would share extents with another; paths on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shareable {
    /// The file that keeps its extents: an object, or one of the private files.
    pub source: PathBuf,
    /// The files that would share them.
    pub paths: Vec<PathBuf>,
    /// Bytes that those have allocated now.
    pub bytes: u64,
}

impl Session<'_> {
    /// Lets private files of the guests that have the same content share extents, with each other and with
    /// objects. To be called on a session of its own after [`Session::unify`], whose report it completes.
    pub fn reflink(self, store: &Store, report: &mut Report) -> crate::Result<()> {
        let mut reflinks = Reflinks { supported: self.can_reflink(), ..Reflinks::default() };
        if reflinks.supported {
            let none = HashSet::new();
            let pass = Pass::new(&self, Some(store), &none)?;
            let found = pass.find(Some(store))?;
            let members = pass.members(&found);
            let (files, bytes) = pass.share(&found, &members);
            (reflinks.files, reflinks.bytes) = (files, bytes);
            pass.report_read(report);
        }
        self.complete(reflinks, report);
        Ok(())
    }

    /// Shows each group of files that would share extents to `show`; changes nothing. `planned` are inodes
    /// that the run would make or replace by objects.
    pub fn preview_reflink(
        self,
        store: Option<&Store>,
        planned: &HashSet<u64>,
        report: &mut Report,
        mut show: impl FnMut(&Shareable),
    ) -> crate::Result<()> {
        let mut reflinks = Reflinks { supported: self.can_reflink(), ..Reflinks::default() };
        if reflinks.supported {
            let pass = Pass::new(&self, store, planned)?;
            let found = pass.find(store)?;
            for group in groups(&pass.members(&found)) {
                let Some(choice) = choose(group) else { continue };
                let shareable = pass.describe(&found, &choice);
                reflinks.files += shareable.paths.len() as u64;
                reflinks.bytes += shareable.bytes;
                show(&shareable);
            }
            pass.report_read(report);
        }
        self.complete(reflinks, report);
        Ok(())
    }

    fn complete(self, reflinks: Reflinks, report: &mut Report) {
        report.reflinks = Some(reflinks);
        if self.around.stopping() {
            report.end = report.end.map(|_| RunEnd::Interrupted);
        }
        report.fill_skipped(self.notes);
    }

    /// Tries it on two files without names. Whatever else goes wrong here will be told of each file.
    fn can_reflink(&self) -> bool {
        let attempt = || {
            let (a, b) = (kernel::sample_file(self.place.base())?, kernel::sample_file(self.place.base())?);
            self.around.fs.write_at(&a, &[0; LEAST as usize], 0)?;
            self.around.fs.write_at(&b, &[0; LEAST as usize], 0)?;
            self.around.fs.dedupe(&a, &b, LEAST)
        };
        !matches!(attempt(), Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS))
    }
}

/// Where a file was found.
#[derive(Debug)]
enum Where {
    /// Directory, by its place in [`Found::dirs`], and name.
    Guest(u32, Box<[u8]>),
    Object(ObjectName),
}

/// A file that may share its extents.
#[derive(Debug)]
struct Candidate {
    size: u64,
    dev: u64,
    ino: u64,
    allocated: u64,
    place: Where,
    /// Others may share its extents, but it never gives them up: it is an object, or is going to be one
    /// or to be replaced by one.
    fixed: bool,
}

/// Files that others have the size of, ordered by size.
#[derive(Debug, Default)]
struct Found {
    /// Guest and path in it.
    dirs: Vec<(u32, Trail)>,
    files: Vec<Candidate>,
}

/// What was read of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    size: u64,
    digest: [u8; 16],
    /// Equal for files that share all extents; none if it cannot be told where they are.
    layout: Option<[u8; 16]>,
    /// Place in [`Found::files`].
    file: u32,
    fixed: bool,
}

/// Looks for files that may share their extents.
struct Candidates<'c, 'p, 's> {
    pass: &'c Pass<'p, 's>,
    found: Mutex<Found>,
}

impl Search for Candidates<'_, '_, '_> {
    /// Another device number under the same mount is another subvolume of the same file system: links
    /// cannot cross there, extents can be shared.
    fn look(&self, here: &Here<'_>, below: &mut Below) -> kernel::Result<()> {
        let Pass { session, objects, planned, .. } = self.pass;
        session.around.observer.advance(1);
        let judge = &session.judges[here.guest as usize];
        let at_home = here.dir.stat_self()?.dev == session.place.dev();
        let mut files: Vec<(Box<[u8]>, Stat)> = Vec::new();
        let read = here.dir.for_each(&mut EntryBuffer::default(), |entry| -> kernel::Result<()> {
            let is_object = at_home && objects.contains_key(&entry.ino);
            match entry.kind {
                Kind::Directory => below.add(entry.name)?,
                Kind::File | Kind::Unknown if !is_object => match here.dir.stat(entry.name) {
                    Ok(stat) if stat.kind == Kind::Directory => below.add(entry.name)?,
                    Ok(stat) if is_worth(&stat) && judge.selects(here.path, entry.name) => {
                        files.push((entry.name.into(), stat));
                    }
                    _ => {}
                },
                _ => {}
            }
            Ok(())
        });
        if files.is_empty() {
            return read;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let row = found.dirs.len() as u32;
        found.dirs.push((here.guest, here.trail.clone()));
        found.files.extend(files.into_iter().map(|(name, stat)| Candidate {
            size: stat.size,
            dev: stat.dev,
            ino: stat.ino,
            allocated: stat.allocated(),
            place: Where::Guest(row, name),
            fixed: stat.dev == session.place.dev() && planned.contains(&stat.ino),
        }));
        read
    }

    /// What cannot be looked at was told by the walk before.
    fn miss(&self, _: u32, _: &[u8], _: Errno) {}
}

/// Who shares whose extents.
struct Choice {
    source: Member,
    targets: Vec<Member>,
}

/// One look at the guests.
struct Pass<'p, 's> {
    session: &'p Session<'s>,
    objects: HashMap<u64, ObjectName>,
    planned: &'p HashSet<u64>,
    root: Option<Dir>,
    read: (Count, Count),
}

impl<'p, 's> Pass<'p, 's> {
    fn new(
        session: &'p Session<'s>,
        store: Option<&Store>,
        planned: &'p HashSet<u64>,
    ) -> crate::Result<Self> {
        let mut objects = HashMap::new();
        let mut add = |name, ino, _: &Dir| {
            objects.insert(ino, name);
        };
        let mut root = None;
        if let Some(store) = store {
            store.for_each_object(&mut add, drop)?;
            let path = store.path().join("objects");
            root = Some(store.objects().reopen().map_err(store::Error::at("open", path))?);
        }
        Ok(Self { session, objects, planned, root, read: <(Count, Count)>::default() })
    }

    fn report_read(&self, report: &mut Report) {
        report.read.0 += self.read.0.get();
        report.read.1 += self.read.1.get();
    }

    /// Walks the guests; then looks at the objects. Only what has the size of something else stays in
    /// memory.
    fn find(&self, store: Option<&Store>) -> crate::Result<Found> {
        self.session.around.observer.phase("walking", 0);
        let search = Candidates { pass: self, found: Mutex::default() };
        let guests = &self.session.guests;
        descend(self.session.around, guests, 0..guests.len() as u32, &search);
        let mut found = search.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Of the names of one inode, one will do.
        found.files.par_sort_unstable_by_key(|file| (file.size, file.dev, file.ino));
        found.files.dedup_by_key(|file| (file.size, file.dev, file.ino));
        if let Some(store) = store {
            let mut objects = self.objects_of_sizes(store, &found.files)?;
            found.files.append(&mut objects);
            found.files.par_sort_by_key(|file| file.size);
        }
        let mut shared = found
            .files
            .chunk_by(|a, b| a.size == b.size)
            .flat_map(|same| {
                let worth = same.len() > 1 && same.iter().any(|file| !file.fixed);
                std::iter::repeat_n(worth, same.len())
            })
            .collect::<Vec<_>>()
            .into_iter();
        found.files.retain(|_| shared.next() == Some(true));
        Ok(found)
    }

    fn objects_of_sizes(&self, store: &Store, files: &[Candidate]) -> crate::Result<Vec<Candidate>> {
        let wanted: HashSet<u64> = files.iter().map(|file| file.size).collect();
        let look = |&name: &ObjectName| {
            let stat = match store.stat_object(name) {
                Ok(Some(stat)) if wanted.contains(&stat.size) && stat.kind == Kind::File => stat,
                Ok(_) => return None,
                Err(error) => return Some(Err(error)),
            };
            Some(Ok(Candidate {
                size: stat.size,
                dev: stat.dev,
                ino: stat.ino,
                allocated: stat.allocated(),
                place: Where::Object(name),
                fixed: true,
            }))
        };
        let found: store::Result<Vec<Candidate>> =
            self.objects.par_iter().filter_map(|(_, name)| look(name)).collect();
        let mut found = found?;
        found.sort_unstable_by_key(|file| file.ino);
        Ok(found)
    }

    /// Reads what has to be read, and leaves those that have the content of another.
    fn members(&self, found: &Found) -> Vec<Member> {
        self.session.around.observer.phase("reading", 0);
        let heads = found.files.par_iter().enumerate().filter_map(|(number, file)| {
            let member = Member {
                size: file.size,
                digest: [0; 16],
                layout: None,
                file: number as u32,
                fixed: file.fixed,
            };
            self.noted(found, &member, self.head(found, member))
        });
        let heads = promising(heads.collect());
        let same_extents: Vec<&[Member]> = heads.chunk_by(shares).collect();
        let whole = same_extents.par_iter().filter_map(|members| {
            let digest = match members[0].size {
                ..=HEAD => members[0].digest,
                size => {
                    let read = self.open(found, members[0].file).and_then(|file| self.digest(&file, size));
                    self.noted(found, &members[0], read)?
                }
            };
            Some(members.iter().map(move |member| Member { digest, ..*member }).collect::<Vec<_>>())
        });
        promising(whole.flatten_iter().collect())
    }

    fn head(&self, found: &Found, member: Member) -> Result<Member, Skip> {
        let file = self.open(found, member.file)?;
        let layout = kernel::layout(&file, member.size).unwrap_or(None);
        let digest = self.digest(&file, member.size.min(HEAD))?;
        self.read.0.add(1);
        Ok(Member { digest, layout: layout.as_ref().map(fingerprint), ..member })
    }

    fn digest(&self, file: &File, size: u64) -> Result<[u8; 16], Skip> {
        let whole = digest(self.session.around, file, size)?.0;
        self.read.1.add(size);
        Ok(first_half(&whole))
    }

    /// Opens the file that was found, and no other that has its name now.
    fn open(&self, found: &Found, file: u32) -> Result<File, Skip> {
        let candidate = &found.files[file as usize];
        let opened = match (&candidate.place, &self.root) {
            (Where::Guest(row, name), _) => {
                let (guest, dir) = &found.dirs[*row as usize];
                self.session.guests[*guest as usize].root.open_file(&dir.to(name).path())
            }
            (Where::Object(name), Some(root)) => root.open_file(name.path().as_bytes()),
            (Where::Object(_), None) => Err(Errno::NOENT),
        };
        let opened = opened.map_err(Skip::from_errno)?;
        let stat = opened.stat().map_err(Skip::from_errno)?;
        let same = (stat.dev, stat.ino, stat.size) == (candidate.dev, candidate.ino, candidate.size);
        if same { Ok(opened) } else { Err(Skip::Changed) }
    }

    /// Lets files share; returns how many do that did not, and their bytes.
    fn share(&self, found: &Found, members: &[Member]) -> (u64, u64) {
        let groups: Vec<&[Member]> = groups(members).collect();
        self.session.around.observer.phase("sharing extents", groups.len() as u64);
        let sums = groups.par_iter().map(|group| {
            let sum = choose(group).map_or((0, 0), |choice| self.share_group(found, &choice));
            self.session.around.observer.advance(1);
            sum
        });
        sums.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    fn share_group(&self, found: &Found, choice: &Choice) -> (u64, u64) {
        let source = self.open(found, choice.source.file);
        let Some(source) = self.noted(found, &choice.source, source) else { return (0, 0) };
        let (mut files, mut bytes) = (0, 0);
        for target in &choice.targets {
            if self.session.around.stopping() {
                break;
            }
            let shared = self.noted(found, target, self.share_one(found, &source, target)).unwrap_or(0);
            files += u64::from(shared > 0);
            bytes += shared;
        }
        (files, bytes)
    }

    /// The bytes of `target` that became shared.
    fn share_one(&self, found: &Found, source: &File, target: &Member) -> Result<u64, Skip> {
        let file = self.open(found, target.file)?;
        match self.session.around.fs.dedupe(source, &file, target.size) {
            Ok(shared) if shared >= target.size => {
                Ok(found.files[target.file as usize].allocated.min(shared))
            }
            // The kernel found a difference: one of the two was written to meanwhile.
            Ok(_) => Err(Skip::Changed),
            Err(Errno::INVAL) if file.stat().is_ok_and(|stat| stat.size != target.size) => Err(Skip::Changed),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::XDEV | Errno::ROFS | Errno::TXTBSY) => {
                Err(Skip::CannotShare)
            }
            Err(errno) => Err(Skip::from_errno(errno)),
        }
    }

    fn noted<T>(&self, found: &Found, member: &Member, result: Result<T, Skip>) -> Option<T> {
        result
            .inspect_err(|why| {
                // An object has no guest to tell; the store's own checks watch over it.
                if let Where::Guest(row, name) = &found.files[member.file as usize].place {
                    let (guest, dir) = &found.dirs[*row as usize];
                    let guest = &self.session.guests[*guest as usize];
                    self.session.notes.skip(&guest.key, to_path(&dir.to(name).path()), *why);
                }
            })
            .ok()
    }

    fn describe(&self, found: &Found, choice: &Choice) -> Shareable {
        let mut paths: Vec<PathBuf> = choice.targets.iter().map(|target| self.path(found, target)).collect();
        paths.sort_unstable();
        Shareable {
            source: self.path(found, &choice.source),
            paths,
            bytes: choice.targets.iter().map(|target| found.files[target.file as usize].allocated).sum(),
        }
    }

    fn path(&self, found: &Found, member: &Member) -> PathBuf {
        match &found.files[member.file as usize].place {
            Where::Guest(row, name) => {
                let (guest, dir) = &found.dirs[*row as usize];
                self.session.guests[*guest as usize].path.join(to_path(&dir.to(name).path()))
            }
            Where::Object(name) => self.session.place.path().join("objects").join(name.path()),
        }
    }
}

/// Immutable files refuse; those with fs-verity keep their blocks; files that are only holes have none.
fn is_worth(stat: &Stat) -> bool {
    let regular = stat.kind == Kind::File && stat.size >= LEAST && stat.allocated() > 0;
    regular && !stat.immutable && !stat.verity && !is_hollow(stat)
}

fn fingerprint(layout: &kernel::Layout) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for (logical, extent) in layout.extents() {
        for number in [*logical, extent.physical, extent.length] {
            hasher.update(&number.to_le_bytes());
        }
    }
    first_half(hasher.finalize().as_bytes())
}

/// Enough to find pairs by: nothing is trusted because of it.
fn first_half(digest: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// Whether two neighbours in order share all their extents already.
fn shares(a: &Member, b: &Member) -> bool {
    a.size == b.size && a.digest == b.digest && a.layout.is_some() && a.layout == b.layout
}

/// Members of one size and digest, in order.
fn groups(members: &[Member]) -> impl Iterator<Item = &[Member]> {
    members.chunk_by(|a, b| (a.size, a.digest) == (b.size, b.digest))
}

/// Orders members and leaves out the groups in which there is nothing to do.
fn promising(mut members: Vec<Member>) -> Vec<Member> {
    members.par_sort_unstable();
    let mut kept = Vec::new();
    groups(&members).filter(|group| choose(group).is_some()).for_each(|group| kept.extend_from_slice(group));
    kept
}

/// The source is what stays, else what most share already; the targets share with nothing that stays.
fn choose(group: &[Member]) -> Option<Choice> {
    let stays = |members: &[Member]| members.iter().any(|member| member.fixed);
    let parts = || group.chunk_by(shares);
    let (at, source) = parts().enumerate().max_by_key(|(_, part)| (stays(part), part.len()))?;
    let others = parts().enumerate().filter(|(number, part)| *number != at && !stays(part));
    let targets: Vec<Member> = others.flat_map(|(_, part)| part.iter().copied()).collect();
    (!targets.is_empty()).then_some(Choice { source: source[0], targets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(digest: u8, layout: u8, file: u32, fixed: bool) -> Member {
        let layout = (layout > 0).then_some([layout; 16]);
        Member { size: 8192, digest: [digest; 16], layout, file, fixed }
    }

    fn chosen(group: &[Member]) -> Option<(u32, Vec<u32>)> {
        let choice = choose(&promising(group.to_vec()))?;
        Some((choice.source.file, choice.targets.iter().map(|target| target.file).collect()))
    }

    #[test]
    fn what_most_share_is_the_source() {
        let group = [member(1, 5, 0, false), member(1, 7, 1, false), member(1, 7, 2, false)];
        assert_eq!(chosen(&group), Some((1, vec![0])));
    }

    #[test]
    fn objects_are_sources_and_never_targets() {
        let private = [member(1, 7, 0, false), member(1, 7, 1, false)];
        let object = |layout, file| member(1, layout, file, true);
        assert_eq!(chosen(&[&private[..], &[object(9, 2)]].concat()), Some((2, vec![0, 1])));
        // They share with an object already: another one changes nothing.
        assert_eq!(chosen(&[&private[..], &[object(9, 2), object(7, 3)]].concat()), None);
        assert_eq!(chosen(&[object(8, 0), object(9, 1)]), None);
    }

    #[test]
    fn unknown_places_are_always_tried_and_shared_ones_never() {
        assert_eq!(chosen(&[member(1, 7, 0, false), member(1, 7, 1, false)]), None);
        let unknown = chosen(&[member(1, 0, 0, false), member(1, 0, 1, false)]);
        assert_eq!(unknown, Some((1, vec![0])));
        assert_eq!(promising(vec![member(1, 5, 0, false), member(2, 6, 1, false)]), []);
    }
}
