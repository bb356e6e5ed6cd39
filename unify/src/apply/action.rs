//! One action: whole or not at all.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kernel::{At, Dir, Errno, File, Fs, Leased, Metadata, Stat, Xattrs, lift_seals};
use rayon::prelude::*;
use store::identity::class;
use store::journal::{Action, Settled, Verb};
use store::{IdentityPolicy, ObjectName, Store};

use super::{Mover, Parking, Stage, Swap, clear, swap, times_of, with_names_free};
use crate::Result;
use crate::hash::identify_on_disk;
use crate::notes::Skip;
use crate::plan::is_intact;

/// What an action left behind: what became of it, and the lease on the inode that it moved.
///
/// The lease is kept until the batch is durable. Whoever wanted to write meanwhile, having looked the name
/// up before it moved, waits for it; his is the last word.
#[derive(Debug)]
pub(crate) struct Traces {
    settled: Settled,
    lease: Option<Leased>,
    /// The private copy that a `Detach` put in its place. Whoever wants to write it waits, too: until then it
    /// may yet be taken back.
    copy: Option<Leased>,
    /// What the displaced inode was like when it was found unchanged.
    likeness: Option<Likeness>,
    /// The inode that took its place: the object's, or for a `Detach` the copy's. 0 for an admission.
    object: u64,
    /// Space given back, in allocated bytes.
    pub(super) freed: u64,
    /// Space taken, in allocated bytes.
    pub(super) taken: u64,
}

impl Traces {
    pub(crate) fn nothing() -> Self {
        Self::of(Settled::NotDone)
    }

    fn of(settled: Settled) -> Self {
        Self { settled, lease: None, copy: None, likeness: None, object: 0, freed: 0, taken: 0 }
    }

    fn admitted(settled: Settled, lease: Leased, likeness: Likeness) -> Self {
        Self { lease: Some(lease), likeness: Some(likeness), ..Self::of(settled) }
    }

    pub(crate) fn settled(&self) -> Settled {
        self.settled
    }
}

/// What a lease does not keep from changing: mode, owner, times, attributes.
#[derive(Debug, PartialEq, Eq)]
struct Likeness {
    class: u64,
    xattrs: Xattrs,
}

impl Likeness {
    /// The attributes are read first: a change time that is still the expected one covers them then.
    fn of(file: &File, identity: IdentityPolicy) -> Step<(Self, Stat)> {
        let xattrs = file.xattrs().map_err(Skip::from_errno)?;
        let stat = file.stat().map_err(Skip::from_errno)?;
        Ok((Self { class: class(identity, &stat), xattrs }, stat))
    }
}

/// A private copy that waits for its place, and the object it is of.
pub(super) struct Copy {
    copy: Leased,
    object: Leased,
}

/// An action's names and the parked names that they change places with.
pub(crate) struct Names<'s> {
    places: Vec<At<'s>>,
    lane: Vec<&'s Dir>,
    parked: Vec<Vec<u8>>,
}

impl Names<'_> {
    fn parked(&self, at: usize) -> At<'_> {
        At::new(self.lane[at], &self.parked[at])
    }

    fn len(&self) -> usize {
        self.places.len()
    }
}

type Step<T> = std::result::Result<T, Skip>;

impl Mover<'_> {
    pub(super) fn names<'s>(&'s self, stage: &'s Stage<'_>, at: usize) -> Step<Names<'s>> {
        let action = &stage.batch.actions[at];
        let numbers = stage.parks[at]..stage.parks[at] + action.names.len() as u32;
        let place = |name: &'s store::journal::NameRef| -> Step<At<'s>> {
            let dir = stage.dirs[name.dir as usize].as_ref().map_err(|why| *why)?;
            Ok(At::new(dir, &name.name))
        };
        Ok(Names {
            places: action.names.iter().map(place).collect::<Step<_>>()?,
            lane: numbers.clone().map(|number| self.parking.lane(number)).collect(),
            parked: numbers.map(|number| Parking::name(self.seq, number)).collect(),
        })
    }

    pub(super) fn try_action(&self, stage: &Stage<'_>, at: usize, copy: Option<Copy>) -> Step<Traces> {
        let action = &stage.batch.actions[at];
        let names = self.names(stage, at)?;
        match action.verb {
            Verb::Admit | Verb::Link => self.share(action, &names),
            // Without a copy it has been said why.
            Verb::Detach => copy.map_or(Ok(Traces::nothing()), |copy| self.detach(action, &names, copy)),
            Verb::Repair => self.repair(action, &names),
        }
    }

    /// The inode becomes the object, or its names become names of the object: whichever is planned, and the
    /// other if the store has changed its mind since.
    fn share(&self, action: &Action, names: &Names<'_>) -> Step<Traces> {
        let file = names.places[0].dir.open_any(names.places[0].name).map_err(Skip::from_errno)?;
        let lease = Leased::take(file).map_err(Skip::from_errno)?;
        let (likeness, stat) = Likeness::of(lease.file(), self.store.format().identity)?;
        if (stat.ino, stat.ctime.to_nanos()) != (action.ino, action.ctime) {
            return Err(Skip::Changed);
        }
        if stat.nlink as usize != names.len() {
            return Err(Skip::LinkedOutside);
        }
        if action.verb == Verb::Admit && self.admit(action.object, &lease, &likeness, names.len())? {
            return Ok(Traces::admitted(Settled::Done { overflow: action.object.overflow }, lease, likeness));
        }
        let mut name = action.object;
        // An object that was not planned with has not been read yet.
        if action.verb == Verb::Admit && !self.is_proven(name) {
            return Err(Skip::Changed);
        }
        loop {
            match self.park(name, names) {
                Ok(object) => {
                    self.exchange_all(names, object, stat.ino, None)?;
                    let done = Traces::of(Settled::Done { overflow: name.overflow });
                    let (lease, likeness, freed) = (Some(lease), Some(likeness), stat.allocated());
                    return Ok(Traces { lease, likeness, object, freed, ..done });
                }
                // Full: the next inode of this twin.
                Err(Errno::MLINK) => name = name.next_overflow(),
                // Not there: this inode can be it.
                Err(Errno::NOENT) => {
                    if self.admit(name, &lease, &likeness, names.len())? {
                        return Ok(Traces::admitted(
                            Settled::Admitted { overflow: name.overflow },
                            lease,
                            likeness,
                        ));
                    }
                    if !self.is_proven(name) {
                        return Err(Skip::Changed);
                    }
                }
                Err(errno) => return Err(Skip::Failed(errno)),
            }
        }
    }

    fn is_proven(&self, name: ObjectName) -> bool {
        is_intact(self.around, self.store, name).is_ok_and(|intact| intact == Some(true))
    }

    /// Whether an inode under lease is what it was: nobody waits to write it, its metadata is the same and
    /// it has as many names as expected.
    fn is_still(&self, lease: &Leased, likeness: &Likeness, names: usize) -> Step<()> {
        let (now, stat) = Likeness::of(lease.file(), self.store.format().identity)?;
        match () {
            () if !lease.held() => Err(Skip::Busy),
            () if now != *likeness || stat.nlink as usize != names => Err(Skip::Changed),
            () => Ok(()),
        }
    }

    /// The guest's own inode becomes an object, under its lease; no copy. `Ok(false)`: there is one of this
    /// name already.
    ///
    /// Sealed, then looked at, then published: others link to a published name at once.
    fn admit(&self, name: ObjectName, lease: &Leased, likeness: &Likeness, names: usize) -> Step<bool> {
        let (path, file) = (name.path(), lease.file());
        let at = At::new(self.store.objects(), path.as_bytes());
        self.is_on_disk(name, file)?;
        if self.seal.leaves_names_free() {
            self.around.fs.seal(file, self.seal).map_err(|errno| match errno {
                Errno::TXTBSY | Errno::BUSY | Errno::AGAIN => Skip::Busy,
                errno => Skip::Failed(errno),
            })?;
        } // else with the whole batch, once its names are in place
        let published = self.is_still(lease, likeness, names).and_then(|()| {
            let Err(errno) = self.around.fs.link_open(file, at) else { return Ok(true) };
            // An error does not prove that nothing was done.
            let ours = file.stat().and_then(|ours| Ok(at.dir.stat(at.name)?.ino == ours.ino));
            match errno {
                _ if ours == Ok(true) => Ok(true),
                Errno::EXIST => Ok(false),
                errno => Err(Skip::from_errno(errno)),
            }
        });
        if published != Ok(true) {
            lift_seals(self.around.fs, file).map_err(|errno| {
                self.stuck(errno);
                Skip::Failed(errno)
            })?;
        }
        published
    }

    /// Whether a file under lease has the content that it was read with, on the disk too. The file systems' own calls
    /// exchange the extents of two files and leave no trace in any time, nor always in memory. Where the programs or
    /// the kernel that seal files refuse those calls, or guests are trusted, there is nothing to look for.
    fn is_on_disk(&self, name: ObjectName, file: &File) -> Step<()> {
        if !self.look_twice {
            return Ok(());
        }
        let identity = self.store.format().identity;
        let stat = file.stat().map_err(Skip::from_errno)?;
        match identify_on_disk(self.around, file, &stat, identity)? {
            id if id == name.id => Ok(()),
            _ => Err(Skip::Changed),
        }
    }

    /// Links the object to every parked name; returns its inode number. Nothing is left on an error.
    fn park(&self, name: ObjectName, names: &Names<'_>) -> kernel::Result<u64> {
        let path = name.path();
        let object = At::new(self.store.objects(), path.as_bytes());
        for at in 0..names.len() {
            if let Err(errno) = self.around.fs.link(object, names.parked(at)) {
                self.unpark(names, at + 1); // an error does not prove that nothing was done
                return Err(errno);
            }
        }
        let stat = names.parked(0).dir.stat(names.parked(0).name);
        stat.map(|stat| stat.ino).inspect_err(|_| self.unpark(names, names.len()))
    }

    /// Takes the first `count` parked names away.
    fn unpark(&self, names: &Names<'_>, count: usize) {
        for at in 0..count {
            if let Err(errno) = clear(self.around.fs, names.parked(at)) {
                self.stuck(errno);
            }
        }
    }

    /// Exchanges every name with its parked one, all or none; see [`Mover::revert`] for `copy`.
    fn exchange_all(&self, names: &Names<'_>, ours: u64, expected: u64, copy: Option<&Leased>) -> Step<()> {
        for at in 0..names.len() {
            let why = match swap(self.around.fs, names.parked(at), names.places[at], ours, expected) {
                Swap::Done => continue,
                // What may not be moved is a directory: see `kernel::confine`.
                Swap::Foreign | Swap::Refused(Errno::ACCESS) => Skip::Changed,
                Swap::Stranded => {
                    self.keep_stranded(names.parked(at));
                    Skip::Changed
                }
                Swap::Refused(errno) => Skip::from_errno(errno),
                Swap::Stuck(errno) => {
                    self.stuck(errno);
                    Skip::Failed(errno)
                }
            };
            if self.revert(names, at, expected, ours, copy) {
                return Err(why);
            }
            // The copy is the guest's now: what names it still can have, it gets.
            self.exchange_some(names, at + 1..names.len(), ours, expected);
            return Ok(());
        }
        Ok(())
    }

    /// Takes the first `count` exchanges back and all parked names away. Returns false if the exchanges
    /// stand: somebody has asked to write the `copy` that they put in place, and it is the guest's now.
    fn revert(
        &self,
        names: &Names<'_>,
        count: usize,
        ours: u64,
        expected: u64,
        copy: Option<&Leased>,
    ) -> bool {
        let is_wanted = || copy.is_some_and(|copy| !copy.held());
        if is_wanted() {
            return false;
        }
        self.exchange_some(names, 0..count, ours, expected);
        if is_wanted() {
            self.exchange_some(names, 0..count, expected, ours);
            return false;
        }
        if !self.is_stuck() {
            self.unpark(names, names.len());
        }
        true
    }

    /// Exchanges some names with their parked ones. A name that the guest has replaced since stays as the guest made
    /// it, and so does one in a directory that it has made unchangeable, or given to a project.
    fn exchange_some(&self, names: &Names<'_>, some: std::ops::Range<usize>, ours: u64, expected: u64) {
        for at in some {
            match swap(self.around.fs, names.parked(at), names.places[at], ours, expected) {
                Swap::Done | Swap::Foreign => {}
                Swap::Stranded => self.keep_stranded(names.parked(at)),
                Swap::Refused(Errno::NOENT | Errno::PERM | Errno::ACCESS | Errno::XDEV | Errno::DQUOT) => {
                    self.keep(names.parked(at));
                }
                Swap::Refused(errno) | Swap::Stuck(errno) => self.stuck(errno),
            }
        }
    }

    /// What is parked has no place any more: the guest has taken the name away, or moved it with our inode.
    /// If it is the last link to a file, it is kept in quarantine.
    fn keep(&self, parked: At<'_>) {
        match parked.dir.stat(parked.name) {
            Ok(stat) if stat.nlink == 1 => self.keep_stranded(parked),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => self.stuck(errno),
        }
    }

    /// Of a file that is not known to be anybody's, other links may go at any moment.
    fn keep_stranded(&self, parked: At<'_>) {
        if let Err(errno) = keep_aside(self.around.fs, self.store, parked) {
            self.stuck(errno);
        }
    }

    /// Makes the private copies that the batch's `Detach` actions will put in place, each at its first
    /// parked name, and makes them durable.
    pub(super) fn copy_all(&self, stage: &Stage<'_>) -> Result<Vec<Mutex<Option<Copy>>>> {
        let actions = &stage.batch.actions;
        if !actions.iter().any(|action| action.verb == Verb::Detach) {
            return Ok(Vec::new());
        }
        let copy = |(at, action): (usize, &Action)| {
            // Without its directories the action is not tried, and nobody would take the copy away.
            if action.verb != Verb::Detach || self.names(stage, at).is_err() {
                return Mutex::default();
            }
            let number = stage.parks[at];
            let parked = Parking::name(self.seq, number);
            let to = At::new(self.parking.lane(number), &parked);
            match self.copy(action, to) {
                Ok(copy) => Mutex::new(Some(copy)),
                Err(why) => {
                    self.note(stage, action, why);
                    Mutex::default()
                }
            }
        };
        let copies = actions.par_iter().enumerate().map(copy).collect();
        self.sync()?;
        Ok(copies)
    }

    /// Under a lease on the object, which is kept until the batch is durable: where nothing seals it, a
    /// guest may write it in place.
    fn copy(&self, action: &Action, to: At<'_>) -> Step<Copy> {
        let object = self.store.objects().open_file(action.object.path().as_bytes());
        let lease = Leased::take(object.map_err(Skip::from_errno)?).map_err(Skip::from_errno)?;
        let object = lease.file();
        let stat = object.stat().map_err(Skip::from_errno)?;
        if stat.ino != action.ino {
            return Err(Skip::NotOurs);
        }
        let metadata = Metadata {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: action.mtime.unwrap_or(stat.mtime),
            xattrs: object.xattrs().map_err(Skip::Failed)?,
        };
        let fs = self.around.fs;
        let made = fs.create(to).and_then(|file| {
            fs.copy_content(object, &file, stat.size)?;
            fs.set_metadata(&file, &metadata)?;
            drop(file);
            lease_new(to)
        });
        made.map_err(|errno| {
            match fs.unlink(to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => self.stuck(errno),
            }
            Skip::Failed(errno)
        })
        .map(|copy| Copy { copy, object: lease })
    }

    /// Names of an object become names of its private copy.
    fn detach(&self, action: &Action, names: &Names<'_>, Copy { copy, object }: Copy) -> Step<Traces> {
        let stat = copy.file().stat().map_err(Skip::Failed)?;
        for at in 1..names.len() {
            if let Err(errno) = self.around.fs.link(names.parked(0), names.parked(at)) {
                self.unpark(names, at + 1);
                return Err(Skip::Failed(errno));
            }
        }
        let exchanged = self.exchange_all(names, stat.ino, action.ino, Some(&copy));
        // The object is what is displaced: that a guest has it no more is not a change.
        exchanged.map_err(|why| if why == Skip::Changed { Skip::NotOurs } else { why })?;
        let overflow = action.object.overflow;
        let done = Traces::of(Settled::Done { overflow });
        let (lease, copy) = (Some(object), Some(copy));
        Ok(Traces { lease, copy, object: stat.ino, taken: stat.allocated(), ..done })
    }

    /// A guest's names of a corrupt inode become names of the object that takes its place. The object is
    /// proven; the corrupt inode keeps its name in quarantine, so nothing is lost by mistake.
    fn repair(&self, action: &Action, names: &Names<'_>) -> Step<Traces> {
        let file = names.places[0].dir.open_any(names.places[0].name).map_err(Skip::from_errno)?;
        let lease = Leased::take(file).map_err(Skip::from_errno)?;
        if lease.file().stat().map_err(Skip::from_errno)?.ino != action.ino {
            return Err(Skip::NotOurs);
        }
        let object = self.park(action.object, names).map_err(Skip::Failed)?;
        self.exchange_all(names, object, action.ino, None)?;
        let done = Traces::of(Settled::Done { overflow: action.object.overflow });
        Ok(Traces { lease: Some(lease), object, ..done })
    }

    /// Admissions of the batch whose inode somebody waits to write, or has changed the metadata of since it
    /// was looked at, by inode number.
    pub(super) fn broken(&self, actions: &[Action], traces: &[Traces]) -> HashSet<u64> {
        let identity = self.store.format().identity;
        let is_broken = |trace: &Traces| {
            let (0, Some(lease), Some(likeness)) = (trace.object, &trace.lease, &trace.likeness) else {
                return false;
            };
            !lease.held() || !Likeness::of(lease.file(), identity).is_ok_and(|(now, _)| now == *likeness)
        };
        let pairs = actions.par_iter().zip(traces);
        pairs.filter(|(_, trace)| is_broken(trace)).map(|(action, _)| action.ino).collect()
    }

    /// Before the displaced inode goes: did somebody ask to write it, or change its metadata, who had looked
    /// its name up before it moved? Then it gets its names back. So it does if what took its place is
    /// waited for by a writer.
    pub(super) fn second_look(
        &self,
        stage: &Stage<'_>,
        at: usize,
        trace: &mut Traces,
        broken: &HashSet<u64>,
    ) -> Step<()> {
        let action = &stage.batch.actions[at];
        if trace.object == 0 {
            // A broken admission is dismissed under its lease, when it has lost its links; one that has no seal yet
            // gets it under its lease.
            let is_through = self.seal.leaves_names_free() && !broken.contains(&action.ino);
            drop(trace.lease.take_if(|_| is_through));
            return Ok(());
        }
        let Some(lease) = trace.lease.take() else { return Ok(()) };
        let copy = trace.copy.take();
        let names = self.names(stage, at)?;
        let still = match &trace.likeness {
            _ if broken.contains(&trace.object) => Err(Skip::Busy),
            Some(likeness) => self.is_still(&lease, likeness, names.len()),
            None if lease.held() => Ok(()),
            None => Err(Skip::Busy),
        };
        if still.is_err() {
            let _one = self.reverting.lock().unwrap_or_else(PoisonError::into_inner);
            let times = times_of(stage, action.names.iter().map(|name| name.dir));
            let is_back = self.revert(&names, names.len(), action.ino, trace.object, copy.as_ref());
            self.restore_times(stage, &times);
            if is_back {
                return still;
            }
        }
        self.unpark(&names, names.len());
        Ok(())
    }

    /// An object that somebody waits to write, admitted in this batch, is private again: no other guest has
    /// it any more, unless one linked it by itself. Then it stays.
    pub(super) fn dismiss(&self, stage: &Stage<'_>, at: usize, trace: &Traces) -> Step<()> {
        let action = &stage.batch.actions[at];
        let (Some(lease), Settled::Done { overflow } | Settled::Admitted { overflow }) =
            (&trace.lease, trace.settled)
        else {
            return Ok(());
        };
        let file = lease.file();
        if file.stat().map_err(Skip::Failed)?.nlink as usize != action.names.len() + 1 {
            return Ok(());
        }
        let path = ObjectName { overflow, ..action.object }.path();
        let unpublished = self.around.fs.unlink(At::new(self.store.objects(), path.as_bytes()));
        unpublished.and_then(|()| lift_seals(self.around.fs, file)).map_err(|errno| {
            self.stuck(errno);
            Skip::Failed(errno)
        })?;
        Err(Skip::Busy)
    }
}

/// Leases a file that this process alone knows and has just written. A child that another thread is starting
/// has our descriptors, too, until it has become its program.
fn lease_new(at: At<'_>) -> kernel::Result<Leased> {
    for _ in 0..1000 {
        match Leased::take(at.dir.open_file(at.name)?) {
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            leased => return leased,
        }
    }
    Err(Errno::AGAIN)
}

/// Puts a parked file of unclear origin into quarantine, where nothing is removed unasked.
pub(crate) fn keep_aside(fs: &dyn Fs, store: &Store, parked: At<'_>) -> kernel::Result<Vec<u8>> {
    for copy in 0..u32::MAX {
        let name = format!("unclear.{copy}.{}", String::from_utf8_lossy(parked.name)).into_bytes();
        let aside = At::new(store.quarantine(), &name);
        match with_names_free(fs, parked, || fs.rename_new(parked, aside)) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}
