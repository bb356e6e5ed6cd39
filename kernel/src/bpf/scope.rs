//! The file systems on which link-invert enforces its tag.
//!
//! A file system is known by its UUID, as the programs see it, so that no number has to be guessed here: a file on
//! it is handed to them. Device numbers change with a remount, and one btrfs has many.

use std::os::fd::AsFd;

use aya::maps::{HashMap, Map, MapData};

use super::{
    ABI, BpfError, Host, IOC_SCOPE_ADD, IOC_SCOPE_ASK, IOC_SCOPE_REMOVE, Pins, ioctl_answer, objects,
};
use crate::{Dir, Errno, Result, Seal};

/// What the running programs say of a file's system. Needs no privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No program is loaded that knows the question.
    None,
    /// Programs of another version are.
    OtherVersion,
    /// It is not in the scope: tags there mean nothing.
    Outside,
    /// It is in the scope: tags are enforced.
    Inside,
}

/// Asks whether tags on the file system of a file are enforced.
pub fn ask(file: &impl AsFd) -> Result<Answer> {
    match ioctl_answer(file, IOC_SCOPE_ASK) {
        Ok(answer) if answer >> 1 != ABI => Ok(Answer::OtherVersion),
        Ok(answer) => Ok(if answer & 1 == 1 { Answer::Inside } else { Answer::Outside }),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(Answer::None),
        Err(errno) => Err(errno),
    }
}

/// Puts the file system of a directory into the scope. `EPERM`: for context 0 with `CAP_LINUX_IMMUTABLE`;
/// `EOPNOTSUPP`: the file system has no UUID; `ENOTTY`: nothing is loaded; `E2BIG`: the scope is full.
pub fn add(dir: &Dir) -> Result<()> {
    ioctl_answer(dir, IOC_SCOPE_ADD).map(drop)
}

/// Takes the file system of a directory out of the scope.
pub fn remove(dir: &Dir) -> Result<()> {
    ioctl_answer(dir, IOC_SCOPE_REMOVE).map(drop)
}

/// A file system in the scope, mounted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its kind, as `statfs(2)` numbers them.
    pub magic: u64,
}

/// All file systems in the scope, from the pinned map.
pub fn list(host: &Host) -> std::result::Result<Vec<FileSystem>, BpfError> {
    let path = Pins::of(host).map("scope");
    if !path.exists() {
        return Err(BpfError::NotLoaded(objects::LINK_INVERT.name));
    }
    let failed = |_| BpfError::at("open", &path)(Errno::PERM);
    let data = MapData::from_pin(&path).map_err(failed)?;
    let scope = HashMap::<_, [u8; 24], u32>::try_from(Map::HashMap(data)).map_err(failed)?;
    let mut all: Vec<FileSystem> = scope.keys().filter_map(std::result::Result::ok).map(unpack).collect();
    all.sort_unstable_by_key(|one| one.uuid);
    Ok(all)
}

/// The name of some object of a store that carries the tag, if there is one.
pub(crate) fn first_sealed(store: &Dir) -> Result<Option<Vec<u8>>> {
    let objects = match store.open_dir(b"objects") {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    for shard in objects.names()? {
        let shard = objects.open_dir(&shard)?;
        for name in shard.names()? {
            match shard.open_file(&name).and_then(|file| Seal::Bpf.is_on(&file)) {
                Ok(true) => return Ok(Some(name)),
                Ok(false) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(None)
}

fn unpack(key: [u8; 24]) -> FileSystem {
    let (uuid, magic) = key.split_at(16);
    let mut one = FileSystem { uuid: [0; 16], magic: 0 };
    one.uuid.copy_from_slice(uuid);
    one.magic = u64::from_ne_bytes(magic.try_into().unwrap_or_default());
    one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Real;
    use crate::seal::Protection;

    #[test]
    fn a_key_has_uuid_and_kind() {
        let mut key = [7; 24];
        key[16..].copy_from_slice(&0xef53_u64.to_ne_bytes());
        assert_eq!(unpack(key), FileSystem { uuid: [7; 16], magic: 0xef53 });
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    fn a_sealed_object_is_found_where_stores_have_theirs() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let name = "ab".repeat(32);
        let store = Dir::open_host(place.path()).unwrap();
        assert_eq!(first_sealed(&store), Ok(None));
        std::fs::create_dir_all(place.path().join("objects/ab")).unwrap();
        std::fs::write(place.path().join("objects/ab").join(&name), "object").unwrap();
        let object = store.open_dir(b"objects/ab").unwrap().open_file(name.as_bytes()).unwrap();
        if let Err(Errno::NOTTY | Errno::OPNOTSUPP) = Seal::Bpf.is_on(&object) {
            // Files here have no attributes: that is said, and not taken for "none is sealed".
            assert!(first_sealed(&store).is_err());
            return;
        }
        assert_eq!(first_sealed(&store), Ok(None));
        Real.seal(&object, Seal::Bpf).unwrap();
        assert_eq!(first_sealed(&store), Ok(Some(name.into_bytes())));
    }

    #[test]
    fn nobody_answers_where_nothing_is_loaded() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        if crate::bpf::objects::answers(crate::bpf::FEATURE_LINK_INVERT) {
            return; // a host that has it
        }
        assert_eq!(add(&dir).unwrap_err(), Errno::NOTTY);
        assert_eq!(remove(&dir).unwrap_err(), Errno::NOTTY);
    }
}
