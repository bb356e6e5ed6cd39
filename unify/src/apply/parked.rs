//! Parked names: where a name waits in the store before it changes places with a guest's (law 3).

use std::path::PathBuf;

use kernel::{At, Dir, Errno, Fs, change_names};
use store::Store;
use store::journal::RunId;

use crate::Result;

/// Directories between which parked names are spread: threads do not queue for one, and none grows so long
/// that looking a name up means searching.
const LANES: u32 = 128;

/// Neighbouring numbers that share a lane.
const BLOCK: u32 = 64;

/// How often a guest may replace a name under our hands before we call the name stuck. Each time, the
/// guest must win a race of microseconds.
const PATIENCE: u32 = 1000;

/// The parked names of one run: `parked/<run>/<lane>/<batch>.<number>`.
pub(crate) struct Parking {
    dir: Dir,
    path: PathBuf,
    lanes: Vec<Dir>,
}

impl Parking {
    /// Opens the directory of a run, made on demand.
    pub(crate) fn open(fs: &dyn Fs, store: &Store, run: RunId) -> Result<Self> {
        let dir = store.run_dir(fs, "parked", run)?;
        let path = store.path().join("parked").join(run.to_string());
        Ok(Self { dir, path, lanes: Vec::new() })
    }

    /// Makes the lanes for numbers below `names`.
    pub(crate) fn prepare(&mut self, fs: &dyn Fs, names: u32) -> Result<()> {
        for lane in self.lanes.len() as u32..names.div_ceil(BLOCK).min(LANES) {
            let name = lane.to_string();
            match fs.make_dir(At::new(&self.dir, name.as_bytes()), 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(store::Error::at("make a directory in", &self.path)(errno).into()),
            }
            let opened = self.dir.open_dir(name.as_bytes());
            self.lanes.push(opened.map_err(store::Error::at("open", &self.path))?);
        }
        Ok(())
    }

    /// The lane of a number that was prepared for.
    pub(crate) fn lane(&self, number: u32) -> &Dir {
        &self.lanes[(number / BLOCK % LANES) as usize]
    }

    /// All lanes that are there.
    pub(crate) fn lanes(&self) -> Result<Vec<Dir>> {
        let failed = || store::Error::at("read", &self.path);
        let names = self.dir.reopen().and_then(|dir| dir.names()).map_err(failed())?;
        Ok(names
            .iter()
            .map(|name| self.dir.open_dir(name))
            .collect::<kernel::Result<_>>()
            .map_err(failed())?)
    }

    /// A parked name's own name.
    pub(crate) fn name(seq: u32, number: u32) -> Vec<u8> {
        format!("{seq}.{number}").into_bytes()
    }

    /// The batch that a parked name belongs to.
    pub(crate) fn batch_of(name: &[u8]) -> Option<u32> {
        std::str::from_utf8(name).ok()?.split_once('.')?.0.parse().ok()
    }
}

/// What came of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    /// The two names have changed places, and what was displaced is what was expected.
    Done,
    /// Something else was found there and is there again.
    Foreign,
    /// Something else was found there, and the name was taken away before it could be put back: it is
    /// parked, and may be the guest's only link to it.
    Stranded,
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
///
/// It is looked at before, too: taking an exchange back is safe against a guest that replaces or unlinks its
/// name in between, but one that moves it elsewhere would move our inode. So what can be known to be foreign
/// is not touched.
pub(crate) fn swap(fs: &dyn Fs, parked: At<'_>, place: At<'_>, ours: u64, expected: u64) -> Swap {
    match place.dir.stat(place.name) {
        Ok(stat) if stat.ino == expected => {}
        Ok(_) => return Swap::Foreign,
        Err(errno) => return Swap::Refused(errno),
    }
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
            // The guest took the name away, or moved it elsewhere: then what came out is missed there.
            Err(Errno::NOENT) => return Swap::Stranded,
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

/// Takes a parked name away.
pub(crate) fn clear(fs: &dyn Fs, parked: At<'_>) -> kernel::Result<()> {
    match with_names_free(fs, parked, || fs.unlink(parked)) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Changes a parked name, also that of an inode that its guest has made immutable or append-only meanwhile.
pub(crate) fn with_names_free(
    fs: &dyn Fs,
    parked: At<'_>,
    change: impl Fn() -> kernel::Result<()>,
) -> kernel::Result<()> {
    match change() {
        Err(Errno::PERM) => change_names(fs, &parked.dir.open_file(parked.name)?, change),
        done => done,
    }
}
