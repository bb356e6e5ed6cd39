//! When two files are the same: law 1.
//!
//! A hard link makes guests share content, mode, owner, group, size, modification time and every extended
//! attribute. All of it goes into the [`ObjectId`]; so two files with one id can become one inode and no
//! guest can tell the difference.

use std::fmt;

use kernel::{Stat, Xattrs};

use crate::format::IdentityPolicy;
use crate::wire::Writer;

/// Domain strings keep hashes of different meaning apart (BLAKE3's key derivation mode).
const CONTENT_DOMAIN: &str = "vserver 2026-11 content digest";
const OBJECT_DOMAIN: &str = "vserver 2026-11 object identity";
const CLASS_DOMAIN: &str = "vserver 2026-11 identity class";

/// BLAKE3 of a file's bytes alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 32]);

/// BLAKE3 of a canonical header of the metadata and the [`ContentDigest`].
///
/// The digest stands for the content, so an id is computed in one pass over the bytes and computed again
/// without them when only metadata changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// A hasher for content, to be fed with the file's bytes in order.
pub fn content_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key(CONTENT_DOMAIN)
}

/// The digest of all bytes fed to a [`content_hasher`].
pub fn content_digest(hasher: &blake3::Hasher) -> ContentDigest {
    ContentDigest(hasher.finalize().into())
}

/// The identity of a file with this metadata and content.
pub fn object_id(policy: IdentityPolicy, stat: &Stat, xattrs: &Xattrs, content: &ContentDigest) -> ObjectId {
    let mut header = Writer::default();
    put_class(&mut header, policy, stat);
    header.u32(xattrs.len() as u32);
    for (name, value) in xattrs {
        header.bytes(name);
        header.bytes(value);
    }
    header.raw(&content.0);
    ObjectId(blake3::derive_key(OBJECT_DOMAIN, &header.0))
}

/// What can be known of a file's identity without opening it, in 64 bits: files of different class cannot
/// be the same; files of one class are worth reading.
pub fn class(policy: IdentityPolicy, stat: &Stat) -> u64 {
    let mut header = Writer(Vec::with_capacity(64));
    put_class(&mut header, policy, stat);
    let hash = CLASS_HASHER.with(|hasher| hasher.clone().update(&header.0).finalize());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

thread_local! {
    /// Deriving the key costs as much as the hash; once a thread is enough.
    static CLASS_HASHER: blake3::Hasher = blake3::Hasher::new_derive_key(CLASS_DOMAIN);
}

/// The canonical header: a version byte, then fixed-width little-endian fields.
fn put_class(header: &mut Writer, policy: IdentityPolicy, stat: &Stat) {
    header.u8(1);
    header.u32(stat.mode);
    header.u32(stat.uid);
    header.u32(stat.gid);
    header.u64(stat.size);
    match policy {
        IdentityPolicy::Full => {
            header.u8(1);
            header.i64(stat.mtime.seconds);
            header.u32(stat.mtime.nanos);
        }
        IdentityPolicy::WithoutMtime => header.u8(0),
    }
}

/// The name of an object in the store.
///
/// Several inodes may have one identity. Two names of one guest that were two inodes must not become one:
/// the guest's second takes *twin* 1, which other guests' second names share. When the file system's link
/// ceiling is reached (`EMLINK`), the next *overflow* of the same twin is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The identity.
    pub id: ObjectId,
    /// Which of a guest's equal inodes this one stands for.
    pub twin: u16,
    /// How many inodes of this twin were full before this one.
    pub overflow: u16,
}

impl ObjectName {
    /// The first inode of this identity.
    pub fn first(id: ObjectId) -> Self {
        Self { id, twin: 0, overflow: 0 }
    }

    /// The inode to use when this one has no room for another link.
    #[must_use]
    pub fn next_overflow(self) -> Self {
        Self { overflow: self.overflow.saturating_add(1), ..self }
    }

    /// The slot's text: the twin, and the overflow behind a `+` where there is one.
    fn slot(self) -> String {
        if self.overflow == 0 { self.twin.to_string() } else { format!("{}+{}", self.twin, self.overflow) }
    }

    /// `<id>.<slot>`
    pub fn file_name(self) -> String {
        format!("{}.{}", self.id, self.slot())
    }

    /// `ab/<id>.<slot>`, relative to `objects/`.
    pub fn path(self) -> String {
        let name = self.file_name();
        format!("{}/{name}", &name[..2])
    }

    /// Reads a file name back; `None` for names the store does not make.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(name).ok()?;
        let (id, slot) = text.split_once('.')?;
        let (twin, overflow) = slot.split_once('+').unwrap_or((slot, "0"));
        let name =
            Self { id: ObjectId(from_hex(id)?), twin: twin.parse().ok()?, overflow: overflow.parse().ok()? };
        (name.file_name() == text).then_some(name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

fn to_hex(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?];
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{Kind, Time};

    fn stat() -> Stat {
        Stat {
            dev: 1,
            ino: 2,
            mode: 0o755,
            kind: Kind::File,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 3,
            blocks: 8,
            mtime: Time { seconds: 5, nanos: 7 },
            ctime: Time::default(),
            immutable: false,
            verity: false,
        }
    }

    fn id_of(policy: IdentityPolicy, stat: &Stat, xattrs: &Xattrs, content: &[u8]) -> ObjectId {
        let mut hasher = content_hasher();
        hasher.update(content);
        object_id(policy, stat, xattrs, &content_digest(&hasher))
    }

    #[test]
    fn everything_a_link_shares_is_part_of_identity() {
        let base = stat();
        let id =
            |stat: &Stat, xattrs: &Xattrs, content: &[u8]| id_of(IdentityPolicy::Full, stat, xattrs, content);
        let same = id(&base, &vec![], b"abc");
        assert_eq!(id(&Stat { ino: 9, dev: 9, nlink: 4, blocks: 0, ..base }, &vec![], b"abc"), same);
        let others = [
            id(&Stat { mode: 0o4755, ..base }, &vec![], b"abc"),
            id(&Stat { uid: 1, ..base }, &vec![], b"abc"),
            id(&Stat { gid: 1, ..base }, &vec![], b"abc"),
            id(&Stat { mtime: Time { seconds: 5, nanos: 8 }, ..base }, &vec![], b"abc"),
            id(&base, &vec![], b"abd"),
            id(&base, &vec![(b"user.a".to_vec(), vec![])], b"abc"),
            id(&base, &vec![(b"user.a".to_vec(), vec![0])], b"abc"),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(*other, same, "case {n}");
        }
    }

    #[test]
    fn relaxed_identity_forgets_mtime_only() {
        let base = stat();
        let later = Stat { mtime: Time { seconds: 6, nanos: 0 }, ..base };
        let relaxed = IdentityPolicy::WithoutMtime;
        assert_eq!(class(relaxed, &base), class(relaxed, &later));
        assert_ne!(class(IdentityPolicy::Full, &base), class(IdentityPolicy::Full, &later));
        assert_eq!(id_of(relaxed, &base, &vec![], b"abc"), id_of(relaxed, &later, &vec![], b"abc"));
        assert_ne!(
            id_of(relaxed, &base, &vec![], b"abc"),
            id_of(IdentityPolicy::Full, &base, &vec![], b"abc"),
            "ids of different policies must never meet"
        );
    }

    #[test]
    fn names_round_trip_and_strangers_are_refused() {
        let id = id_of(IdentityPolicy::Full, &stat(), &vec![], b"abc");
        for name in [
            ObjectName::first(id),
            ObjectName { id, twin: 3, overflow: 0 },
            ObjectName { id, twin: 0, overflow: 2 },
        ] {
            assert_eq!(ObjectName::parse(name.file_name().as_bytes()), Some(name));
        }
        for stranger in ["", "x", "lost+found", &format!("{id}"), &format!("{id}.01"), &format!("{id}.0+0")] {
            assert_eq!(ObjectName::parse(stranger.as_bytes()), None, "{stranger}");
        }
    }
}
