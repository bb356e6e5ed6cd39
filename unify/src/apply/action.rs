//! One action: whole or not at all.

use kernel::{At, Dir, Errno, File, Fs, Metadata, ReadLease, Seal, Stat};
use rayon::prelude::*;
use store::ObjectName;
use store::journal::{Action, Settled, Verb};

use super::{Mover, Parking, Stage, Swap, swap};
use crate::Result;
use crate::notes::Skip;

/// What an action left behind: what became of it, and how to tell whether what it displaced was written
/// since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traces {
    settled: Settled,
    /// The object's inode.
    object: u64,
    /// Change time of the displaced inode after its last name went.
    ctime: i64,
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
        Self { settled, object: 0, ctime: 0, freed: 0, taken: 0 }
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
        }
    }

    /// The inode becomes the object, or its names become names of the object: whichever is planned, and the
    /// other if the store has changed its mind since.
    fn share(&self, action: &Action, names: &Names<'_>) -> Step<Traces> {
        let file = names.places[0].dir.open_any(names.places[0].name).map_err(Skip::from_errno)?;
        let lease = ReadLease::take(&file).map_err(Skip::from_errno)?;
        let stat = file.stat().map_err(Skip::from_errno)?;
        if (stat.ino, stat.ctime.to_nanos()) != (action.ino, action.ctime) {
            return Err(Skip::Changed);
        }
        if stat.nlink as usize != names.len() {
            return Err(Skip::LinkedOutside);
        }
        if action.verb == Verb::Admit && self.admit(action.object, &file, &lease)? {
            return Ok(Traces::of(Settled::Done { overflow: action.object.overflow }));
        }
        let mut name = action.object;
        loop {
            match self.park(name, names) {
                Ok(object) => return self.link(name, object, &file, &lease, &stat, names),
                // Full: the next inode of this twin.
                Err(Errno::MLINK) => name = name.next_overflow(),
                // Not there: this inode can be it.
                Err(Errno::NOENT) => {
                    if self.admit(name, &file, &lease)? {
                        return Ok(Traces::of(Settled::Admitted { overflow: name.overflow }));
                    }
                }
                Err(errno) => return Err(Skip::Failed(errno)),
            }
        }
    }

    /// The guest's own inode becomes an object, under its lease; no copy. `Ok(false)`: there is one of this
    /// name already.
    fn admit(&self, name: ObjectName, file: &File, lease: &ReadLease<'_>) -> Step<bool> {
        let path = name.path();
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
        file: &File,
        lease: &ReadLease<'_>,
        stat: &Stat,
        names: &Names<'_>,
    ) -> Step<Traces> {
        self.exchange_all(names, object, stat.ino)?;
        // A writer that waits for the lease has the displaced inode in its hands: it keeps its name.
        let after = if lease.held() { file.stat().map_err(Skip::from_errno) } else { Err(Skip::Busy) };
        let after = after.inspect_err(|_| self.revert(names, names.len(), stat.ino, object))?;
        Ok(Traces {
            settled: Settled::Done { overflow: name.overflow },
            object,
            ctime: after.ctime.to_nanos(),
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
            if action.verb != Verb::Detach {
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

    /// Before the displaced inode goes: was it written by somebody who had it in his hands when its name
    /// moved? Then he gets it back.
    pub(super) fn second_look(&self, stage: &Stage<'_>, at: usize, trace: &Traces) -> Step<()> {
        let action = &stage.batch.actions[at];
        match (action.verb, trace.settled) {
            (Verb::Link, Settled::Done { .. }) => {
                let names = self.names(stage, at)?;
                let unwritten = displaced_is_unwritten(names.parked(0), trace.ctime);
                if let Err(why) = unwritten {
                    self.revert(&names, names.len(), action.ino, trace.object);
                    return Err(why);
                }
                self.unpark(&names, names.len());
                Ok(())
            }
            (Verb::Detach, Settled::Done { .. }) => {
                let names = self.names(stage, at)?;
                self.unpark(&names, names.len());
                Ok(())
            }
            (Verb::Admit | Verb::Link, Settled::Done { .. } | Settled::Admitted { .. }) => {
                self.look_at_admitted(action, trace)
            }
            _ => Ok(()),
        }
    }

    /// A writer that passed the permission check before the seal was on has the object open: it does not
    /// stay one, if nobody else has it yet.
    fn look_at_admitted(&self, action: &Action, trace: &Traces) -> Step<()> {
        if self.seal == Seal::None {
            return Ok(());
        }
        let overflow = match trace.settled {
            Settled::Done { overflow } | Settled::Admitted { overflow } => overflow,
            Settled::NotDone => return Ok(()),
        };
        let path = ObjectName { overflow, ..action.object }.path();
        let at = At::new(self.store.objects(), path.as_bytes());
        let file = at.dir.open_file(at.name).map_err(Skip::from_errno)?;
        if ReadLease::take(&file).is_ok() {
            return Ok(());
        }
        if file.stat().map_err(Skip::Failed)?.nlink as usize == action.names.len() + 1 {
            lift_seals(self.around.fs, &file)
                .and_then(|()| self.around.fs.unlink(at))
                .map_err(Skip::Failed)?;
        }
        Err(Skip::Busy)
    }
}

/// The displaced inode has no writer, and has not been touched since its last name went.
fn displaced_is_unwritten(parked: At<'_>, ctime: i64) -> Step<()> {
    let file = parked.dir.open_any(parked.name).map_err(Skip::from_errno)?;
    let _lease = ReadLease::take(&file).map_err(Skip::from_errno)?;
    let stat = file.stat().map_err(Skip::from_errno)?;
    if stat.ctime.to_nanos() == ctime { Ok(()) } else { Err(Skip::Changed) }
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
