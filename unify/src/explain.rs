//! Why a file is shared, or is not: law 10.

use std::path::{Path, PathBuf};

use kernel::{Errno, Kind, Leased, Seal, Stat};
use store::index::Index;
use store::{ObjectName, Store, identity};

use crate::classify::{Class, explain};
use crate::guest::Guest;
use crate::hash::{identify, is_hollow};
use crate::notes::Skip;
use crate::session::Session;
use crate::{Error, Result};

/// What a file is to unification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is an object, with this many names in guests.
    Shared {
        /// The object.
        object: ObjectName,
        /// Its names apart from the store's.
        names: u32,
    },
    /// It may be shared and is not yet.
    Candidate,
    /// It stays the guest's own.
    Private,
}

/// The answer for one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The path that was asked for.
    pub path: PathBuf,
    /// What the file is.
    pub state: State,
    /// Why, in words; names in it are as the guest has them.
    pub why: String,
}

impl Session<'_> {
    /// Explains one file, by its canonical path on the host.
    pub fn explain(&self, store: Option<&Store>, path: &Path) -> Result<Explanation> {
        let found = self
            .guests
            .iter()
            .zip(&self.judges)
            .find_map(|(guest, judge)| Some((guest, judge, path.strip_prefix(&guest.path).ok()?)));
        let (guest, judge, inside) = found.ok_or_else(|| Error::NotInGuest(path.to_path_buf()))?;
        let failed = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR => Error::NoFile(path.to_path_buf()),
            errno => Error::Store(store::Error::at("look at", path)(errno)),
        };
        let (dir, name) = split(inside);
        let stat = guest.root.open_dir(dir).and_then(|dir| dir.stat(name)).map_err(failed)?;
        let answer = |state, why| Ok(Explanation { path: path.to_path_buf(), state, why });
        if let Some(object) = store.map(|store| object_of(store, stat.ino)).transpose()?.flatten() {
            let names = stat.nlink - 1;
            return answer(
                State::Shared { object, names },
                format!("shared: {names} names in guests have this inode"),
            );
        }
        let (class, why) = explain(judge.policy(), judge.packages(), dir, name, &stat);
        match class {
            Class::Private(_) => answer(State::Private, why),
            Class::Candidate => {
                let not_yet = self.not_yet(store, guest, dir, name, &stat)?;
                answer(State::Candidate, format!("{why}; {not_yet}"))
            }
        }
    }

    /// Why a candidate is not shared.
    fn not_yet(
        &self,
        store: Option<&Store>,
        guest: &Guest,
        dir: &[u8],
        name: &[u8],
        stat: &Stat,
    ) -> Result<String> {
        let Some(store) = store else { return Ok("no run has been made yet".into()) };
        let opened = guest.root.open_dir(dir).and_then(|dir| dir.open_file(name));
        let Ok(file) = opened else { return Ok("it cannot be opened".into()) };
        let Ok(leased) = Leased::take(file) else {
            return Ok("it is open for writing now: the next run tries again".into());
        };
        if stat.nlink > 1 && stat.kind == Kind::File {
            let names = stat.nlink;
            return Ok(format!("it has {names} names, which are shared together if all are in guests"));
        }
        if leased.file().is_marked().unwrap_or(false) || stat.verity {
            let tagged = Seal::Bpf.is_on(leased.file()).unwrap_or(false);
            return Ok(format!("it {}", if tagged { Skip::Stray } else { Skip::Marked }));
        }
        if is_hollow(stat) {
            return Ok(format!("it is {}", Skip::Sparse));
        }
        let policy = store.format().identity;
        if let Ok(id) = identify(self.around, leased.file(), stat, policy)
            && store.stat_object(ObjectName::first(id))?.is_some()
        {
            return Ok("an equal object is in the store: the next run links it".into());
        }
        let class = identity::class(policy, stat);
        let like = Index::open_read_only(store).map_or(Ok(0), |index| count_like(&index, class))?;
        Ok(match like {
            0 | 1 => "no other guest that was seen has a file of this size, mode, owner and time".into(),
            _ => "others of its size, mode, owner and time differ in content or were not read yet".into(),
        })
    }
}

fn count_like(index: &Index, class: u64) -> Result<usize> {
    let mut count = 0;
    for guest in index.guests()? {
        let Some(census) = index.census(&guest) else { continue };
        count += census.files.iter().filter(|file| file.class == class).count();
    }
    Ok(count)
}

fn object_of(store: &Store, ino: u64) -> Result<Option<ObjectName>> {
    let mut found = None;
    store.for_each_object(|name, object, _| found = found.or((object == ino).then_some(name)), drop)?;
    Ok(found)
}

fn split(path: &Path) -> (&[u8], &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (b"", bytes),
    }
}
