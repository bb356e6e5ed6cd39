//! Parked names: where a name waits in the store before it changes places with a guest's (law 3).

use kernel::{At, Dir, Errno, Fs};
use store::Store;
use store::journal::RunId;

use crate::Result;

/// Directories between which parked names are spread, so that threads do not queue for one.
const LANES: u32 = 8;

/// Neighbouring numbers that share a lane.
const BLOCK: u32 = 64;

/// How often a guest may replace a name under our hands before we call the name stuck. Each time, the
/// guest must win a race of microseconds.
const PATIENCE: u32 = 1000;

/// The parked names of one run: `parked/<run>/<lane>/<batch>.<number>`.
pub(crate) struct Parking {
    lanes: Vec<Dir>,
}

impl Parking {
    /// Opens the lanes of a run, made on demand.
    pub(crate) fn open(fs: &dyn Fs, store: &Store, run: RunId) -> Result<Self> {
        let dir = store.run_dir(fs, "parked", run)?;
        let path = store.path().join("parked").join(run.to_string());
        let lane = |lane: u32| -> Result<Dir> {
            let name = lane.to_string();
            match fs.make_dir(At::new(&dir, name.as_bytes()), 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(store::Error::at("make a directory in", &path)(errno).into()),
            }
            Ok(dir.open_dir(name.as_bytes()).map_err(store::Error::at("open", &path))?)
        };
        Ok(Self { lanes: (0..LANES).map(lane).collect::<Result<_>>()? })
    }

    /// The lane a number belongs to.
    pub(crate) fn lane(&self, number: u32) -> &Dir {
        &self.lanes[(number / BLOCK % LANES) as usize]
    }

    /// All lanes.
    pub(crate) fn lanes(&self) -> &[Dir] {
        &self.lanes
    }

    /// A parked name's own name.
    pub(crate) fn name(seq: u32, number: u32) -> Vec<u8> {
        format!("{seq}.{number}").into_bytes()
    }
}

/// What came of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    /// The two names have changed places, and what was displaced is what was expected.
    Done,
    /// Something else was found there and is there again.
    Foreign,
    /// The kernel refused; nothing changed.
    Refused(Errno),
    /// The kernel refused half-way: the parked name holds what belongs at the place.
    Stuck(Errno),
}

/// Exchanges a parked name with a guest's, if the guest's is the inode `expected`; `ours` is the inode that
/// is parked.
///
/// What was displaced is looked at afterwards, for a guest may have replaced its name at any moment before.
/// Then the exchange is taken back; should the guest have replaced the name yet again in between, its
/// latest file is what stays.
pub(crate) fn swap(fs: &dyn Fs, parked: At<'_>, place: At<'_>, ours: u64, expected: u64) -> Swap {
    let look = || parked.dir.stat(parked.name).map(|stat| stat.ino);
    if let Err(errno) = fs.exchange(parked, place) {
        // An error does not prove that nothing was done: what is parked does.
        match look() {
            Ok(ino) if ino == ours => return Swap::Refused(errno),
            Ok(_) => {}
            Err(errno) => return Swap::Stuck(errno),
        }
    }
    let mut put_in = ours;
    let mut latest = match look() {
        Ok(ino) if ino == expected => return Swap::Done,
        Ok(ino) => ino,
        Err(errno) => return Swap::Stuck(errno),
    };
    for _ in 0..PATIENCE {
        // `latest` is the guest's own and belongs there.
        match fs.exchange(parked, place) {
            Ok(()) => {}
            // The guest took the name away: what came out was gone for it already.
            Err(Errno::NOENT) => return Swap::Foreign,
            Err(errno) => return Swap::Stuck(errno),
        }
        match look() {
            Ok(ino) if ino == put_in => return Swap::Foreign,
            // Replaced once more, between the two exchanges: this is the latest now.
            Ok(ino) => (put_in, latest) = (latest, ino),
            Err(errno) => return Swap::Stuck(errno),
        }
    }
    Swap::Stuck(Errno::AGAIN)
}
