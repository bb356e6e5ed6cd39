//! One action: whole or not at all.

use kernel::{At, Dir, Errno, File, Fs, Leased, Metadata, Seal, Stat};
use rayon::prelude::*;
use store::ObjectName;
use store::journal::{Action, Settled, Verb};

use super::{Mover, Parking, Stage, Swap, swap};
use crate::Result;
use crate::notes::Skip;

/// What an action left behind: what became of it, and the lease on the inode that it moved.
///
/// The lease is kept until the batch is durable. Whoever wanted to write meanwhile, having looked the name
/// up before it moved, waits for it; his is the last word.
#[derive(Debug)]
pub(crate) struct Traces {
    settled: Settled,
    lease: Option<Leased>,
    /// The object's inode.
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
        Self { settled, lease: None, object: 0, freed: 0, taken: 0 }
    }

    fn admitted(settled: Settled, lease: Leased) -> Self {
        Self { lease: Some(lease), ..Self::of(settled) }
    }

    pub(crate) fn settled(&self) -> Settled {
        self.settled
    }
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

    pub(super) fn try_action(&self, stage: &Stage<'_>, at: usize, copy: Option<&File>) -> Step<Traces> {
        let action = &stage.batch.actions[at];
        let names = self.names(stage, at)?;
        match action.verb {
            Verb::Admit | Verb::Link => self.share(action, &names),
            Verb::Detach => self.detach(action, &names, copy.ok_or(Skip::NotOurs)?),
            Verb::Retire => self.retire(action, &names),
            Verb::Repair => self.repair(action, &names),
        }
    }

    /// The inode becomes the object, or its names become names of the object: whichever is planned, and the
    /// other if the store has changed its mind since.
    fn share(&self, action: &Action, names: &Names<'_>) -> Step<Traces> {
        let file = names.places[0].dir.open_any(names.places[0].name).map_err(Skip::from_errno)?;
        let lease = Leased::take(file).map_err(Skip::from_errno)?;
        let stat = lease.file().stat().map_err(Skip::from_errno)?;
        if (stat.ino, stat.ctime.to_nanos()) != (action.ino, action.ctime) {
            return Err(Skip::Changed);
        }
        if stat.nlink as usize != names.len() {
            return Err(Skip::LinkedOutside);
        }
        if action.verb == Verb::Admit && self.admit(action.object, &lease)? {
            return Ok(Traces::admitted(Settled::Done { overflow: action.object.overflow }, lease));
        }
        let mut name = action.object;
        loop {
            match self.park(name, names) {
                Ok(object) => return self.link(name, object, lease, &stat, names),
                // Full: the next inode of this twin.
                Err(Errno::MLINK) => name = name.next_overflow(),
                // Not there: this inode can be it.
                Err(Errno::NOENT) => {
                    if self.admit(name, &lease)? {
                        return Ok(Traces::admitted(Settled::Admitted { overflow: name.overflow }, lease));
                    }
                }
                Err(errno) => return Err(Skip::Failed(errno)),
            }
        }
    }

    /// The guest's own inode becomes an object, under its lease; no copy. `Ok(false)`: there is one of this
    /// name already.
    fn admit(&self, name: ObjectName, lease: &Leased) -> Step<bool> {
        let (path, file) = (name.path(), lease.file());
        let at = At::new(self.store.objects(), path.as_bytes());
        if let Err(errno) = self.around.fs.link_open(file, at) {
            // An error does not prove that nothing was done.
            let ours = file.stat().and_then(|ours| Ok(at.dir.stat(at.name)?.ino == ours.ino));
            match errno {
                _ if ours == Ok(true) => {}
                Errno::EXIST => return Ok(false),
                errno => return Err(Skip::Failed(errno)),
            }
        }
        let sealed = match self.seal {
            seal if seal.leaves_names_free() => self.around.fs.seal(file, seal),
            _ => Ok(()), // with the whole batch, once its names are in place
        };
        match sealed {
            Ok(()) if lease.held() => Ok(true),
            outcome => {
                // Somebody waits to write, or the seal does not hold: as if nothing had been.
                lift_seals(self.around.fs, file).and_then(|()| self.around.fs.unlink(at)).map_err(
                    |errno| {
                        self.stuck(errno);
                        Skip::Failed(errno)
                    },
                )?;
                Err(outcome.map_or_else(Skip::from_errno, |()| Skip::Busy))
            }
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
            match self.around.fs.unlink(names.parked(at)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => self.stuck(errno),
            }
        }
    }

    /// Exchanges every name with its parked one.
    fn link(
        &self,
        name: ObjectName,
        object: u64,
        lease: Leased,
        stat: &Stat,
        names: &Names<'_>,
    ) -> Step<Traces> {
        self.exchange_all(names, object, stat.ino)?;
        Ok(Traces {
            settled: Settled::Done { overflow: name.overflow },
            lease: Some(lease),
            object,
            freed: stat.allocated(),
            taken: 0,
        })
    }

    fn exchange_all(&self, names: &Names<'_>, ours: u64, expected: u64) -> Step<()> {
        for at in 0..names.len() {
            let why = match swap(self.around.fs, names.parked(at), names.places[at], ours, expected) {
                Swap::Done => continue,
                Swap::Foreign => Skip::Changed,
                Swap::Refused(errno) => Skip::from_errno(errno),
                Swap::Stuck(errno) => {
                    self.stuck(errno);
                    Skip::Failed(errno)
                }
            };
            self.revert(names, at, expected, ours);
            return Err(why);
        }
        Ok(())
    }

    /// Takes the first `count` exchanges back and all parked names away. A name that the guest has replaced
    /// since stays as the guest made it.
    fn revert(&self, names: &Names<'_>, count: usize, ours: u64, expected: u64) {
        for at in 0..count {
            match swap(self.around.fs, names.parked(at), names.places[at], ours, expected) {
                Swap::Done | Swap::Foreign | Swap::Refused(Errno::NOENT) => {}
                Swap::Refused(errno) | Swap::Stuck(errno) => self.stuck(errno),
            }
        }
        if !self.is_stuck() {
            self.unpark(names, names.len());
        }
    }

    /// Makes the private copies that the batch's `Detach` actions will put in place, each at its first
    /// parked name, and makes them durable.
    pub(super) fn copy_all(&self, stage: &Stage<'_>) -> Result<Vec<Option<File>>> {
        let actions = &stage.batch.actions;
        if !actions.iter().any(|action| action.verb == Verb::Detach) {
            return Ok(Vec::new());
        }
        let copy = |(at, action): (usize, &Action)| {
            // Without its directories the action is not tried, and nobody would take the copy away.
            if action.verb != Verb::Detach || self.names(stage, at).is_err() {
                return None;
            }
            let number = stage.parks[at];
            let parked = Parking::name(self.seq, number);
            let to = At::new(self.parking.lane(number), &parked);
            match self.copy(action, to) {
                Ok(file) => Some(file),
                Err(why) => {
                    self.note(stage, action, why);
                    None
                }
            }
        };
        let copies = actions.par_iter().enumerate().map(copy).collect();
        self.sync()?;
        Ok(copies)
    }

    fn copy(&self, action: &Action, to: At<'_>) -> Step<File> {
        let object = self.store.objects().open_file(action.object.path().as_bytes());
        let object = object.map_err(Skip::from_errno)?;
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
            fs.copy_content(&object, &file, stat.size)?;
            fs.set_metadata(&file, &metadata)?;
            Ok(file)
        });
        made.map_err(|errno| {
            match fs.unlink(to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => self.stuck(errno),
            }
            Skip::Failed(errno)
        })
    }

    /// Names of an object become names of its private copy.
    fn detach(&self, action: &Action, names: &Names<'_>, copy: &File) -> Step<Traces> {
        let stat = copy.stat().map_err(Skip::Failed)?;
        for at in 1..names.len() {
            if let Err(errno) = self.around.fs.link(names.parked(0), names.parked(at)) {
                self.unpark(names, at + 1);
                return Err(Skip::Failed(errno));
            }
        }
        let exchanged = self.exchange_all(names, stat.ino, action.ino);
        // The object is what is displaced: that a guest has it no more is not a change.
        exchanged.map_err(|why| if why == Skip::Changed { Skip::NotOurs } else { why })?;
        let overflow = action.object.overflow;
        Ok(Traces { taken: stat.allocated(), ..Traces::of(Settled::Done { overflow }) })
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
        self.exchange_all(names, object, action.ino)?;
        let done = Traces::of(Settled::Done { overflow: action.object.overflow });
        Ok(Traces { lease: Some(lease), object, ..done })
    }

    /// An object that one guest alone uses becomes that guest's private inode.
    fn retire(&self, action: &Action, names: &Names<'_>) -> Step<Traces> {
        let file = names.places[0].dir.open_any(names.places[0].name).map_err(Skip::from_errno)?;
        let stat = file.stat().map_err(Skip::from_errno)?;
        if stat.ino != action.ino || stat.nlink as usize != names.len() + 1 {
            return Err(Skip::NotOurs);
        }
        lift_seals(self.around.fs, &file).map_err(Skip::Failed)?;
        let path = action.object.path();
        let unlinked = self.around.fs.unlink(At::new(self.store.objects(), path.as_bytes()));
        unlinked.map_err(|errno| {
            self.stuck(errno);
            Skip::Failed(errno)
        })?;
        Ok(Traces::of(Settled::Done { overflow: action.object.overflow }))
    }

    /// Before the displaced inode goes: did somebody ask to write it, who had looked its name up before it
    /// moved? Then it gets its names back.
    pub(super) fn second_look(&self, stage: &Stage<'_>, at: usize, trace: &mut Traces) -> Step<()> {
        let action = &stage.batch.actions[at];
        let Some(lease) = trace.lease.take() else {
            if action.verb == Verb::Detach && trace.settled != Settled::NotDone {
                let names = self.names(stage, at)?;
                self.unpark(&names, names.len());
            }
            return Ok(());
        };
        let names = self.names(stage, at)?;
        match (lease.held(), trace.settled) {
            // An admission too, if it found its object there already and was replaced by it.
            (held, Settled::Done { .. }) if trace.object != 0 => {
                if held {
                    self.unpark(&names, names.len());
                    return Ok(());
                }
                self.revert(&names, names.len(), action.ino, trace.object);
                Err(Skip::Busy)
            }
            (false, Settled::Done { overflow } | Settled::Admitted { overflow }) => {
                self.dismiss(ObjectName { overflow, ..action.object }, lease.file(), names.len())?;
                Err(Skip::Busy)
            }
            _ => Ok(()),
        }
    }

    /// An object that somebody waits to write, admitted in this batch, is private again if no other guest
    /// has it yet. Otherwise it stays, sealed: that it was asked for is reported.
    fn dismiss(&self, name: ObjectName, file: &File, names: usize) -> Step<()> {
        if file.stat().map_err(Skip::Failed)?.nlink as usize != names + 1 {
            return Ok(());
        }
        let path = name.path();
        let at = At::new(self.store.objects(), path.as_bytes());
        let fs = self.around.fs;
        lift_seals(fs, file).and_then(|()| fs.unlink(at)).map_err(Skip::Failed)
    }
}

/// Takes off whatever seal is on.
pub(crate) fn lift_seals(fs: &dyn Fs, file: &File) -> kernel::Result<()> {
    for seal in [Seal::Patch, Seal::Bpf, Seal::Immutable] {
        match seal.is_on(file) {
            Ok(true) => fs.unseal(file, seal)?,
            Ok(false) | Err(Errno::NOTTY | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
