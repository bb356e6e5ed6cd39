//! A store and guests in one directory, and the library's calls on them as the commands make them.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // a fixture that fails is a test that fails

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fixtures::{Manifest, Snapshot};
use kernel::{Fs, Real, Seal};
use store::journal::Journal;
use store::{Access, IdentityPolicy, STORE_NAME, Store};
use unify::policy::Policy;
use unify::{Judge, Observer, Recovered, Report, Result, Scope, Session, Silent, Surroundings};

/// Guests side by side, with their store.
pub struct World {
    pub base: PathBuf,
    pub guests: Vec<PathBuf>,
    pub policy: Policy,
    pub identity: IdentityPolicy,
    pub seal: Seal,
}

impl World {
    /// Writes guests `g0`, `g1`, … below `base`; the store is made by the first run.
    pub fn new(base: &Path, manifests: &[Manifest]) -> Self {
        let base = base.canonicalize().unwrap();
        let guests: Vec<PathBuf> = (0..manifests.len()).map(|n| base.join(format!("g{n}"))).collect();
        for (guest, manifest) in guests.iter().zip(manifests) {
            #[allow(clippy::disallowed_methods)] // a fixture: no guest is at stake
            std::fs::create_dir(guest).unwrap();
            manifest.write(guest).unwrap();
        }
        Self::around(base, guests)
    }

    /// Guests that are there already.
    pub fn around(base: PathBuf, guests: Vec<PathBuf>) -> Self {
        let (policy, identity) = (Policy::default(), IdentityPolicy::Full);
        Self { base, guests, policy, identity, seal: Seal::None }
    }

    pub fn store_path(&self) -> PathBuf {
        self.base.join(STORE_NAME)
    }

    pub fn open(&self, fs: &dyn Fs) -> Result<(Store, Journal)> {
        Store::create(fs, &self.store_path(), self.identity)?;
        // A child that another test is starting has our lock until it has become its program.
        let tries = std::cell::Cell::new(0);
        let wait = || tries.replace(tries.get() + 1) < 50;
        let store = match Store::open(fs, &self.store_path(), Access::Write, Some(&wait)) {
            Err(store::Error::Interrupted) => Store::open(fs, &self.store_path(), Access::Write, None),
            other => other,
        }?;
        let journal = Journal::open(&store)?;
        Ok((store, journal))
    }

    /// What `vunify GUEST...` does: recover, then unify.
    pub fn unify(&self, fs: &dyn Fs) -> Result<Report> {
        self.with(fs, |session, store, journal| session.unify(store, journal, self.seal, "test"))
    }

    /// What `vunify --undo` does.
    pub fn undo(&self, fs: &dyn Fs, scope: &Scope) -> Result<Report> {
        self.with(fs, |session, store, journal| session.undo(store, journal, scope, "test"))
    }

    /// What `vstore recover` does.
    pub fn recover(&self, fs: &dyn Fs) -> Result<Recovered> {
        let stop = AtomicBool::new(false);
        let around = Surroundings { fs, observer: &Silent, stop: &stop };
        let (store, mut journal) = self.open(fs)?;
        unify::recover(&around, &store, &mut journal)
    }

    pub fn with<T>(
        &self,
        fs: &dyn Fs,
        act: impl FnOnce(Session<'_>, &Store, &mut Journal) -> Result<T>,
    ) -> Result<T> {
        self.with_observer(fs, &Silent, &AtomicBool::new(false), act)
    }

    pub fn with_observer<T>(
        &self,
        fs: &dyn Fs,
        observer: &dyn Observer,
        stop: &AtomicBool,
        act: impl FnOnce(Session<'_>, &Store, &mut Journal) -> Result<T>,
    ) -> Result<T> {
        let around = Surroundings { fs, observer, stop };
        let (store, mut journal) = self.open(fs)?;
        unify::recover(&around, &store, &mut journal)?;
        let policy = Arc::new(self.policy.clone());
        let session = Session::open(&around, store.place(), &self.guests, |guest| {
            let root = guest.root.reopen().map_err(store::Error::at("open", &guest.path))?;
            Ok(Judge::new(root, Arc::clone(&policy)))
        })?;
        act(session, &store, &mut journal)
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.guests.iter().map(|guest| Snapshot::take(guest).unwrap()).collect()
    }

    /// Differences of every guest from what it was; empty if no guest can tell.
    pub fn differences(&self, before: &[Snapshot]) -> Vec<String> {
        let after = self.snapshots();
        before.iter().zip(&after).flat_map(|(before, after)| before.diff(after)).collect()
    }

    /// Inode number of a file.
    pub fn ino(&self, guest: usize, path: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(self.guests[guest].join(path)).unwrap().ino()
    }

    pub fn shares(&self, path: &str) -> bool {
        self.ino(0, path) == self.ino(1, path)
    }

    /// Whether nothing is left parked.
    pub fn is_tidy(&self) -> bool {
        std::fs::read_dir(self.store_path().join("parked")).unwrap().next().is_none()
    }
}

/// One place for the real door.
pub const REAL: Real = Real;

/// For tests in one process that write files, and some of which start programs: a child that another test is
/// starting has our descriptors until it has become its program, and keeps what we write busy.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
