//! Reading files: under a lease, once.

use std::cell::RefCell;

use kernel::{Dir, Errno, File, Leased, Seal, Stat, Time};
use store::identity::{content_digest, content_hasher, object_id};
use store::{ContentDigest, IdentityPolicy, ObjectId};

use crate::notes::{Skip, Surroundings};
use crate::walk::is_over;

/// Read in pieces that stay in the second level cache.
const PIECE: usize = 128 * 1024;

/// Up to this size, a file is read as a whole and compared with the one before it: files come in the order of
/// likeness, and comparing takes a fraction of what hashing does.
const COMPARED: u64 = 1 << 20;

/// From this size on, one file is worth several threads: pieces of this size are hashed by all.
const LARGE: u64 = 16 << 20;

/// Bigger files that are mostly holes are left alone: reading nothing takes as long as reading something,
/// and a guest could make us read a million times the space it uses.
const SPARSE: u64 = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static BEFORE: RefCell<Before> = const { RefCell::new(Before { content: Vec::new(), digest: None }) };
}

/// The last file that was read as a whole.
struct Before {
    /// Its bytes, and some that are left of earlier ones.
    content: Vec<u8>,
    /// Its length and digest.
    digest: Option<(usize, ContentDigest)>,
}

/// A file as it was when its content was proven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof {
    pub(crate) id: ObjectId,
    pub(crate) stat: Stat,
}

/// Computes the identity of a file that nobody can write meanwhile (law 2).
///
/// `expected` is the inode and change time the file was seen with. Whoever later finds the same stamp under
/// a new lease may rely on the identity: a write after this would have left a later change time, for any
/// mapping made after this lease must fault on its first store. That needs a change time that is over; a
/// younger one is `Changed`.
///
/// fs-verity of a guest's own is a mark: a link would take it from one twin or give it to the other, and nothing
/// takes it off again. Where it is the `seal`, all get it.
pub(crate) fn prove(
    around: &Surroundings<'_>,
    dir: &Dir,
    name: &[u8],
    identity: IdentityPolicy,
    seal: Option<Seal>,
    expected: (u64, i64),
) -> Result<Proof, Skip> {
    let file = dir.open_any(name).map_err(Skip::from_errno)?;
    let leased = Leased::take(file).map_err(Skip::from_errno)?;
    let now = Time::now();
    let stat = leased.file().stat().map_err(Skip::from_errno)?;
    if (stat.ino, stat.ctime.to_nanos()) != expected || !is_over(expected.1, now) {
        return Err(Skip::Changed);
    }
    // Setting one later changes the change time, which is looked at again when the file is shared.
    if leased.file().is_marked().map_err(Skip::from_errno)? {
        let tagged = Seal::Bpf.is_on(leased.file()).unwrap_or(false);
        return Err(if tagged { Skip::Stray } else { Skip::Marked });
    }
    if stat.verity && seal != Some(Seal::Verity) {
        return Err(Skip::Marked);
    }
    let id = identify(around, leased.file(), &stat, identity)?;
    if leased.held() { Ok(Proof { id, stat }) } else { Err(Skip::Busy) }
}

/// The identity of an open file as its metadata and bytes are now.
pub(crate) fn identify(
    around: &Surroundings<'_>,
    file: &File,
    stat: &Stat,
    identity: IdentityPolicy,
) -> Result<ObjectId, Skip> {
    if is_hollow(stat) {
        return Err(Skip::Sparse);
    }
    let xattrs = file.xattrs().map_err(Skip::from_errno)?;
    Ok(object_id(identity, stat, &xattrs, &digest(around, file, stat.size)?))
}

/// The same of what is on the disk, past what is held in memory. Of a file whose changes are all written back.
pub(crate) fn identify_on_disk(
    around: &Surroundings<'_>,
    file: &File,
    stat: &Stat,
    identity: IdentityPolicy,
) -> Result<ObjectId, Skip> {
    match file.reopen_direct() {
        Ok(direct) => {
            let xattrs = file.xattrs().map_err(Skip::from_errno)?;
            Ok(object_id(identity, stat, &xattrs, &content_digest(&read_direct(around, &direct, stat.size)?)))
        }
        // Memory is all there is.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => identify(around, file, stat, identity),
        Err(errno) => Err(Skip::from_errno(errno)),
    }
}

/// What `O_DIRECT` wants memory and positions to be multiples of, on any disk.
const ALIGNMENT: usize = 4096;

fn read_direct(around: &Surroundings<'_>, file: &File, size: u64) -> Result<blake3::Hasher, Skip> {
    let mut memory = vec![0; PIECE + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[start..start + PIECE];
    let (mut hasher, mut at) = (content_hasher(), 0);
    while at < size {
        let want = (size - at).min(PIECE as u64) as usize;
        // A whole buffer, or what there is to the end of the file.
        let count = file.read_at(buffer, at).map_err(Skip::from_errno)?;
        if count < want || around.stopping() {
            return Err(Skip::Changed);
        }
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(hasher)
}

/// Huge and nearly all holes.
pub(crate) fn is_hollow(stat: &Stat) -> bool {
    stat.size > SPARSE && stat.allocated() < stat.size / 16
}

/// The digest of the first `size` bytes of a file as they are now.
pub(crate) fn digest(around: &Surroundings<'_>, file: &File, size: u64) -> Result<ContentDigest, Skip> {
    // Taken, not borrowed: while a large file is hashed by all threads, this one may begin another.
    let mut buffer = BUFFER.take();
    let digest = if size <= COMPARED {
        read_whole(around, file, size as usize, &mut buffer)
    } else {
        read(around, file, size, &mut buffer).map(|hasher| content_digest(&hasher))
    };
    buffer.truncate(COMPARED as usize);
    buffer.shrink_to(COMPARED as usize);
    BUFFER.set(buffer);
    digest
}

fn read_whole(
    around: &Surroundings<'_>,
    file: &File,
    size: usize,
    buffer: &mut Vec<u8>,
) -> Result<ContentDigest, Skip> {
    if buffer.len() < size {
        buffer.resize(size.next_power_of_two(), 0);
    }
    if file.read_at(&mut buffer[..size], 0).map_err(Skip::from_errno)? < size || around.stopping() {
        return Err(Skip::Changed); // shorter than it said it was
    }
    around.observer.advance(size as u64);
    BEFORE.with_borrow_mut(|before| {
        let digest = match before.digest {
            Some((length, digest)) if length == size && before.content[..size] == buffer[..size] => {
                return Ok(digest);
            }
            _ => content_digest(content_hasher().update(&buffer[..size])),
        };
        std::mem::swap(&mut before.content, buffer);
        before.digest = Some((size, digest));
        Ok(digest)
    })
}

fn read(
    around: &Surroundings<'_>,
    file: &File,
    size: u64,
    buffer: &mut Vec<u8>,
) -> Result<blake3::Hasher, Skip> {
    let mut hasher = content_hasher();
    let piece = if size >= LARGE { LARGE as usize } else { PIECE };
    if buffer.len() < piece {
        buffer.resize(piece, 0);
    }
    if size >= LARGE {
        file.advise_sequential();
    }
    let mut at = 0;
    while at < size {
        let want = piece.min(usize::try_from(size - at).unwrap_or(piece));
        let count = file.read_at(&mut buffer[..want], at).map_err(Skip::from_errno)?;
        if count < want || around.stopping() {
            return Err(Skip::Changed); // shorter than it said it was
        }
        if size >= LARGE {
            hasher.update_rayon(&buffer[..count]);
        } else {
            hasher.update(&buffer[..count]);
        }
        around.observer.advance(count as u64);
        at += count as u64;
    }
    Ok(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[allow(clippy::disallowed_methods)] // a fixture outside any guest
    #[test]
    fn a_file_after_its_twin_has_its_digest_and_no_other_has() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open_host(place.path()).unwrap();
        let around =
            Surroundings { fs: &kernel::Real, observer: &crate::Silent, stop: &AtomicBool::new(false) };
        let long = vec![b'x'; COMPARED as usize];
        let longer = vec![b'x'; COMPARED as usize + 1];
        let contents: [&[u8]; 9] = [b"one", b"one", b"two", b"tw", b"", b"two", &long, &longer, &long];
        for (at, content) in contents.into_iter().enumerate() {
            let name = at.to_string();
            std::fs::write(place.path().join(&name), content).unwrap();
            let file = dir.open_file(name.as_bytes()).unwrap();
            let digest = digest(&around, &file, content.len() as u64).unwrap();
            assert_eq!(digest, content_digest(content_hasher().update(content)), "file {at}");
        }
    }
}
