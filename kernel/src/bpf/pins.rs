//! What is pinned in the bpf file system, and the only changes that are made there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::load::hook_of;
use super::{BpfError, Host, Object};
use crate::{At, Dir, Errno, Fs, Real};

/// Our directory in the bpf file system.
const HOME: &str = "vserver";
/// The directory of maps in it.
const MAPS: &str = "maps";
/// The symbolic link that tells builds apart.
const VERSION: &str = "version";

/// What is pinned of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Absent,
    /// This build, whole.
    Loaded,
    /// Another build, or one that lost some of its links.
    Other {
        /// What is known of it.
        version: String,
    },
}

/// Our part of the bpf file system.
#[derive(Debug)]
pub struct Pins {
    home: PathBuf,
}

impl Pins {
    /// The pins of a host; nothing is touched.
    pub fn of(host: &Host) -> Self {
        Self { home: host.bpffs.join(HOME) }
    }

    /// Our directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.home.join(MAPS).join(name)
    }

    /// Where the links of an object are.
    pub fn links(&self, object: &Object) -> PathBuf {
        self.home.join(object.name)
    }

    /// What is pinned of an object. `EACCES` for others than root.
    pub fn state(&self, object: &Object) -> Result<State, BpfError> {
        let version = self.links(object).join(VERSION);
        match std::fs::read_link(&version) {
            Ok(text) => Ok(judge(object, &text.to_string_lossy(), self.attached(object).len())),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT) if !self.links(object).exists() => Ok(State::Absent),
                Some(Errno::NOENT | Errno::INVAL) => Ok(State::Other { version: "unknown".into() }),
                errno => Err(BpfError::at("look at", version)(errno.unwrap_or(Errno::IO))),
            },
        }
    }

    /// The names of the programs that are attached for an object.
    pub fn attached(&self, object: &Object) -> Vec<String> {
        let mut names: Vec<String> = entries(&self.links(object))
            .into_iter()
            .filter(|name| name != VERSION)
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    /// Of an object that leaves a hook to another: the other's name, if that has no program there either.
    pub fn let_down(&self, object: &Object) -> Option<&'static str> {
        let (hook, whom) = object.left_to?;
        let has_it = |object| self.attached(object).iter().any(|program| hook_of(program) == hook);
        (!has_it(object) && !has_it(whom)).then_some(whom.name)
    }

    /// What loads and unloads that were cut off have left.
    pub fn debris(&self) -> Vec<PathBuf> {
        let left = entries(&self.home).into_iter().filter(|name| name.as_bytes().contains(&b'-'));
        left.map(|name| self.home.join(name)).collect()
    }

    /// Takes the pins for this process alone, and clears away what was cut off. Dropping gives them back.
    pub(super) fn take(&self) -> Result<Held<'_>, BpfError> {
        let bpffs = self.home.parent().unwrap_or(&self.home);
        let above = open(bpffs)?;
        make(&above, HOME.as_bytes(), &self.home)?;
        let home = open(&self.home)?;
        match flock(&home, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(BpfError::Busy),
            Err(errno) => return Err(BpfError::at("lock", &self.home)(errno)),
        }
        make(&home, MAPS.as_bytes(), &self.home.join(MAPS))?;
        let held = Held { pins: self, home };
        for path in self.debris() {
            held.clear(&path)?;
        }
        Ok(held)
    }
}

/// The pins, for one process alone.
pub(super) struct Held<'a> {
    pub(super) pins: &'a Pins,
    home: Dir,
}

impl Held<'_> {
    /// A fresh directory beside that of an object.
    pub(super) fn stage(&self, object: &Object) -> Result<PathBuf, BpfError> {
        let name = format!("{}-new", object.name);
        let path = self.pins.home.join(&name);
        Real.make_dir(At::new(&self.home, name.as_bytes()), 0o700).map_err(BpfError::at("make", &path))?;
        Ok(path)
    }

    /// Puts a staged directory in the place of the object's: from here on it counts. What was there is gone.
    pub(super) fn publish(&self, object: &Object, stage: &Path) -> Result<(), BpfError> {
        let (new, live) = (format!("{}-new", object.name), object.name);
        let (new, live) = (At::new(&self.home, new.as_bytes()), At::new(&self.home, live.as_bytes()));
        let fault = BpfError::at("rename", stage);
        match Real.rename_new(new, live) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                Real.exchange(new, live).map_err(fault)?;
                self.clear(stage)
            }
            Err(errno) => Err(fault(errno)),
        }
    }

    /// Detaches an object: one rename, after which it does not count, then its links one by one.
    pub(super) fn retire(&self, object: &Object) -> Result<(), BpfError> {
        let old = format!("{}-old", object.name);
        let path = self.pins.home.join(&old);
        let live = At::new(&self.home, object.name.as_bytes());
        Real.rename_new(live, At::new(&self.home, old.as_bytes())).map_err(BpfError::at("rename", &path))?;
        // What the object is asked by goes last.
        self.clear_in_order(&path, |name| object.last.iter().any(|last| name == *last))
    }

    /// Removes a directory with all its pins.
    pub(super) fn clear(&self, path: &Path) -> Result<(), BpfError> {
        self.clear_in_order(path, |_| false)
    }

    fn clear_in_order(&self, path: &Path, is_late: impl Fn(&OsStr) -> bool) -> Result<(), BpfError> {
        let dir = open(path)?;
        let mut names = entries(path);
        names.sort_by_key(|name| is_late(name));
        for name in names {
            Real.unlink(At::new(&dir, name.as_bytes())).map_err(BpfError::at("remove", path.join(&name)))?;
        }
        let name = path.file_name().unwrap_or_default();
        Real.remove_dir(At::new(&self.home, name.as_bytes())).map_err(BpfError::at("remove", path))
    }

    /// Removes a map. Gone already is good enough.
    pub(super) fn forget_map(&self, name: &str) -> Result<(), BpfError> {
        let path = self.pins.map(name);
        let dir = open(&self.pins.home.join(MAPS))?;
        match Real.unlink(At::new(&dir, name.as_bytes())) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(BpfError::at("remove", path)(errno)),
        }
    }
}

/// Removes our directories, if nothing is in them any more.
impl Drop for Held<'_> {
    fn drop(&mut self) {
        Real.remove_dir(At::new(&self.home, MAPS.as_bytes())).ok();
        if let Some(above) = self.pins.home.parent().and_then(|path| Dir::open_host(path).ok()) {
            Real.remove_dir(At::new(&above, HOME.as_bytes())).ok();
        }
    }
}

/// Writes the version and the number of links, which makes a directory whole.
#[allow(clippy::disallowed_methods)] // bpffs is no guest and no store, and nothing else has symbolic links
pub(super) fn sign(object: &Object, links: usize, stage: &Path) -> Result<(), BpfError> {
    let version = stage.join(VERSION);
    let text = format!("{} {links}", object.version());
    rustix::fs::symlink(text, &version).map_err(BpfError::at("write", version))
}

/// What a signature says, where so many links are there.
fn judge(object: &Object, signature: &str, links: usize) -> State {
    match signature.rsplit_once(' ') {
        Some((version, count)) if version == object.version() => {
            if count == links.to_string() {
                State::Loaded
            } else {
                State::Other { version: format!("this one, with {links} of {count} programs left") }
            }
        }
        _ => State::Other { version: signature.to_owned() },
    }
}

fn open(path: &Path) -> Result<Dir, BpfError> {
    Dir::open_host(path).map_err(BpfError::at("open", path))
}

fn make(dir: &Dir, name: &[u8], path: &Path) -> Result<(), BpfError> {
    match Real.make_dir(At::new(dir, name), 0o700) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(BpfError::at("make", path)(errno)),
    }
}

/// The names in a directory; none where there is no such directory.
fn entries(path: &Path) -> Vec<std::ffi::OsString> {
    let Ok(reader) = std::fs::read_dir(path) else { return Vec::new() };
    reader.flatten().map(|entry| entry.file_name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::objects::{CONTEXTS, LINK_INVERT};

    #[test]
    fn only_this_build_with_all_its_links_is_loaded() {
        let version = LINK_INVERT.version();
        assert_eq!(judge(&LINK_INVERT, &format!("{version} 12"), 12), State::Loaded);
        assert!(matches!(judge(&LINK_INVERT, &format!("{version} 12"), 11), State::Other { .. }));
        assert!(matches!(judge(&LINK_INVERT, "1 0000000000000000 12", 12), State::Other { .. }));
        assert!(matches!(judge(&LINK_INVERT, "", 0), State::Other { .. }));
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn pins_are_read_from_their_names() {
        let place = tempfile::tempdir().unwrap();
        let host = Host { bpffs: place.path().to_path_buf(), ..Host::default() };
        let pins = Pins::of(&host);
        assert_eq!(pins.state(&LINK_INVERT).unwrap(), State::Absent);
        let stage = pins.links(&LINK_INVERT);
        std::fs::create_dir_all(&stage).unwrap();
        assert!(matches!(pins.state(&LINK_INVERT).unwrap(), State::Other { .. }));
        std::fs::write(stage.join("file_open"), "").unwrap();
        sign(&LINK_INVERT, 1, &stage).unwrap();
        assert_eq!(pins.state(&LINK_INVERT).unwrap(), State::Loaded);
        assert_eq!(pins.attached(&LINK_INVERT), ["file_open"]);
        std::fs::create_dir(pins.home().join("contexts-new")).unwrap();
        assert_eq!(pins.debris(), [pins.home().join("contexts-new")]);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn a_hook_is_left_to_who_has_it() {
        let place = tempfile::tempdir().unwrap();
        let host = Host { bpffs: place.path().to_path_buf(), ..Host::default() };
        let pins = Pins::of(&host);
        let link = |object| pins.links(object).join("file_open__blind");
        for object in [&LINK_INVERT, &CONTEXTS] {
            std::fs::create_dir_all(pins.links(object)).unwrap();
        }
        assert_eq!(pins.let_down(&CONTEXTS), Some("link_invert"));
        assert_eq!(pins.let_down(&LINK_INVERT), None);
        std::fs::write(link(&LINK_INVERT), "").unwrap();
        assert_eq!(pins.let_down(&CONTEXTS), None);
        std::fs::rename(link(&LINK_INVERT), link(&CONTEXTS)).unwrap();
        assert_eq!(pins.let_down(&CONTEXTS), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn a_load_that_was_cut_off_is_cleared_away() {
        let place = tempfile::tempdir().unwrap();
        let host = Host { bpffs: place.path().to_path_buf(), ..Host::default() };
        let pins = Pins::of(&host);
        for left in ["link_invert-new", "link_invert-old"] {
            std::fs::create_dir_all(pins.home().join(left)).unwrap();
            std::fs::write(pins.home().join(left).join("file_open"), "").unwrap();
        }
        let held = pins.take().unwrap();
        assert!(pins.debris().is_empty());
        assert!(matches!(pins.take(), Err(BpfError::Busy)));
        let stage = held.stage(&LINK_INVERT).unwrap();
        assert_eq!(pins.debris(), std::slice::from_ref(&stage));
        sign(&LINK_INVERT, 0, &stage).unwrap();
        held.publish(&LINK_INVERT, &stage).unwrap();
        assert_eq!(pins.state(&LINK_INVERT).unwrap(), State::Loaded);
        held.retire(&LINK_INVERT).unwrap();
        drop(held);
        assert!(!pins.home().exists());
    }
}
