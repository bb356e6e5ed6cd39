//! What is known of one guest, as rows in flat arrays, and the pieces that those are kept in.

use std::result::Result as Outcome;

use crate::ObjectId;
use crate::wire::{Reader, Writer};

/// Rows are kept in pieces of about this many bytes: one at a time is in memory beside what is made of it.
const PIECE: usize = 1 << 18;

const ID_BYTES: usize = 32;

/// No number: a file without a digest, a directory that was not read.
pub const NONE: u32 = u32::MAX;

/// A directory of a guest. Its subdirectories and files stand in one piece each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirRow {
    /// The walker's word for its inode and change time, or [`DirRow::UNSETTLED`].
    pub stamp: u64,
    /// Where its name begins in [`Census::names`].
    pub name: u32,
    /// Row of the directory it is in; its own for the root.
    pub parent: u32,
    /// First row of its subdirectories; they end where the next has another parent. [`NONE`] if none were looked for.
    pub first_dir: u32,
    /// First row of its files; they end where the next is in another directory.
    pub first_file: u32,
    /// Names in it that are objects.
    pub unified: u32,
    /// Names in it that are private whatever becomes of the inode: by policy or by type.
    pub fixed: u32,
}

/// A regular file of a guest that is not an object and might become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// Inode number.
    pub ino: u64,
    /// Change time in nanoseconds, or [`FileRow::UNSETTLED`].
    pub ctime: i64,
    /// Size in bytes.
    pub size: u64,
    /// [`crate::identity::class`] of its metadata.
    pub class: u64,
    /// Where its name begins in [`Census::names`].
    pub name: u32,
    /// Row of the directory it is in.
    pub dir: u32,
    /// Index into [`Census::ids`], or [`NONE`].
    pub id: u32,
    /// Number of names of the inode, as far as 16 bits go.
    pub nlink: u16,
    /// Why it is private as it stands: the walker's code, 0 for a candidate.
    pub state: u8,
}

impl DirRow {
    /// The stamp of a directory that must be read again: it changed so lately that it may have changed again unseen, or
    /// was not read to the end.
    pub const UNSETTLED: u64 = 0;

    const BYTES: usize = 32;

    fn put(&self, out: &mut Writer) {
        out.u64(self.stamp);
        let rest = [self.name, self.parent, self.first_dir, self.first_file, self.unified, self.fixed];
        rest.into_iter().for_each(|value| out.u32(value));
    }

    fn get(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            stamp: input.u64()?,
            name: input.u32()?,
            parent: input.u32()?,
            first_dir: input.u32()?,
            first_file: input.u32()?,
            unified: input.u32()?,
            fixed: input.u32()?,
        })
    }
}

impl FileRow {
    /// The change time of a file that changed so lately that it may have changed again unseen.
    pub const UNSETTLED: i64 = i64::MIN;

    const BYTES: usize = 48;

    fn put(&self, out: &mut Writer) {
        out.u64(self.ino);
        out.i64(self.ctime);
        out.u64(self.size);
        out.u64(self.class);
        [self.name, self.dir, self.id].into_iter().for_each(|value| out.u32(value));
        out.u32(u32::from(self.nlink) << 8 | u32::from(self.state));
    }

    fn get(input: &mut Reader<'_>) -> Option<Self> {
        let row = Self {
            ino: input.u64()?,
            ctime: input.i64()?,
            size: input.u64()?,
            class: input.u64()?,
            name: input.u32()?,
            dir: input.u32()?,
            id: input.u32()?,
            nlink: 0,
            state: 0,
        };
        let last = input.u32()?;
        Some(Self { nlink: (last >> 8) as u16, state: last as u8, ..row })
    }
}

/// What is known of one guest: its directories and those of its files that are not objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// What the classification depended on besides the tree: policy and package databases.
    pub fingerprint: u64,
    /// Row 0 is the root.
    pub dirs: Vec<DirRow>,
    /// Grouped by directory.
    pub files: Vec<FileRow>,
    /// Names, each behind its length in one byte (a name has 255 bytes at most).
    pub names: Vec<u8>,
    /// Identities that were computed, referred to by [`FileRow::id`].
    pub ids: Vec<ObjectId>,
}

/// Appends a name, at most 255 bytes long, to names kept as [`Census::names`] are; returns where it begins.
pub fn add_name(names: &mut Vec<u8>, name: &[u8]) -> u32 {
    let (at, length) = (names.len() as u32, name.len().min(255));
    names.push(length as u8);
    names.extend_from_slice(&name[..length]);
    at
}

/// The name that begins at `at` in names kept as [`Census::names`] are.
pub fn name_at(names: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    let length = usize::from(names[at]);
    &names[at + 1..at + 1 + length]
}

impl Census {
    /// Adds a name and returns where it begins.
    pub fn add_name(&mut self, name: &[u8]) -> u32 {
        add_name(&mut self.names, name)
    }

    /// The name that begins at `at`.
    pub fn name(&self, at: u32) -> &[u8] {
        name_at(&self.names, at)
    }

    /// The path of a directory within the guest, empty for the root.
    pub fn dir_path(&self, dir: u32) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut row = dir;
        while row != 0 {
            let dir = &self.dirs[row as usize];
            parts.push(self.name(dir.name));
            row = dir.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The rows of a directory's subdirectories.
    pub fn subdirs(&self, dir: u32) -> std::ops::Range<u32> {
        let first = self.dirs[dir as usize].first_dir;
        let below = self.dirs.get(first as usize..).unwrap_or_default();
        first..first + below.iter().take_while(|row| row.parent == dir).count() as u32
    }

    /// The rows of a directory's files.
    pub fn files_in(&self, dir: u32) -> &[FileRow] {
        let first = self.dirs[dir as usize].first_file;
        let rest = self.files.get(first as usize..).unwrap_or_default();
        &rest[..rest.iter().take_while(|row| row.dir == dir).count()]
    }

    /// Hands out the pieces that the census is kept in. No row is cut in two.
    pub(crate) fn encode<E>(&self, mut put: impl FnMut(&[u8]) -> Outcome<(), E>) -> Outcome<(), E> {
        let mut head = Writer::default();
        head.u64(self.fingerprint);
        let counts = [self.dirs.len(), self.files.len(), self.names.len(), self.ids.len()];
        counts.into_iter().for_each(|count| head.u32(count as u32));
        put(&head.0)?;
        put_rows(&self.dirs, DirRow::BYTES, DirRow::put, &mut put)?;
        put_rows(&self.files, FileRow::BYTES, FileRow::put, &mut put)?;
        self.names.chunks(PIECE).try_for_each(&mut put)?;
        put_rows(&self.ids, ID_BYTES, |id, out| out.raw(&id.0), &mut put)
    }

    /// Whether every reference leads somewhere and every chain of parents ends: a damaged index must not
    /// make a run panic or turn in circles.
    fn is_sound(&self) -> bool {
        let name_fits = |at: u32| {
            self.names.get(at as usize).is_some_and(|&n| at as usize + usize::from(n) < self.names.len())
        };
        let dir_is_sound = |(at, row): (usize, &DirRow)| {
            name_fits(row.name)
                && (row.parent as usize) < at.max(1)
                // Never itself, or one above.
                && row.first_dir as usize > at
        };
        !self.dirs.is_empty()
            && self.dirs.iter().enumerate().all(dir_is_sound)
            && self.files.iter().all(|row| {
                name_fits(row.name)
                    && (row.dir as usize) < self.dirs.len()
                    && (row.id == NONE || (row.id as usize) < self.ids.len())
            })
    }
}

/// Rows of so many bytes each, as many in a piece as fit.
pub(crate) fn put_rows<T, E>(
    rows: &[T],
    bytes: usize,
    write: impl Fn(&T, &mut Writer),
    mut put: impl FnMut(&[u8]) -> Outcome<(), E>,
) -> Outcome<(), E> {
    let mut piece = Writer(Vec::with_capacity(rows.len().min(PIECE / bytes) * bytes));
    for some in rows.chunks(PIECE / bytes) {
        piece.0.clear();
        some.iter().for_each(|row| write(row, &mut piece));
        put(&piece.0)?;
    }
    Ok(())
}

/// A census that is put together from its pieces. Its vectors are not a byte too large.
pub(crate) struct Decoder {
    census: Census,
    dirs: usize,
    files: usize,
    names: usize,
    ids: usize,
}

impl Decoder {
    const HEAD: u64 = 8 + 4 * 4;

    /// Begins with the first piece of a census that is `length` bytes in all: a damaged count allocates nothing.
    pub(crate) fn new(head: &[u8], length: u64) -> Option<Self> {
        let mut input = Reader(head);
        let fingerprint = input.u64()?;
        let mut count = || Some(input.u32()? as usize);
        let (dirs, files, names, ids) = (count()?, count()?, count()?, count()?);
        let rows = |count: usize, bytes: usize| (count * bytes) as u64;
        let all =
            rows(dirs, DirRow::BYTES) + rows(files, FileRow::BYTES) + rows(names, 1) + rows(ids, ID_BYTES);
        if !input.0.is_empty() || all + Self::HEAD != length {
            return None;
        }
        let census = Census {
            fingerprint,
            dirs: Vec::with_capacity(dirs),
            files: Vec::with_capacity(files),
            names: Vec::with_capacity(names),
            ids: Vec::with_capacity(ids),
        };
        Some(Self { census, dirs, files, names, ids })
    }

    pub(crate) fn take(&mut self, piece: &[u8]) -> Option<()> {
        let (mut input, census) = (Reader(piece), &mut self.census);
        while !input.0.is_empty() {
            if census.dirs.len() < self.dirs {
                census.dirs.push(DirRow::get(&mut input)?);
            } else if census.files.len() < self.files {
                census.files.push(FileRow::get(&mut input)?);
            } else if census.names.len() < self.names {
                let count = input.0.len().min(self.names - census.names.len());
                census.names.extend_from_slice(input.raw(count)?);
            } else if census.ids.len() < self.ids {
                census.ids.push(ObjectId(input.array()?));
            } else {
                return None;
            }
        }
        Some(())
    }

    pub(crate) fn finish(self) -> Option<Census> {
        let Self { census, dirs, files, names, ids } = self;
        let lengths = (census.dirs.len(), census.files.len(), census.names.len(), census.ids.len());
        (lengths == (dirs, files, names, ids) && census.is_sound()).then_some(census)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Census {
        let mut census = Census { fingerprint: 9, ids: vec![ObjectId([3; 32])], ..Census::default() };
        let [root, usr, file] = [b"".as_slice(), b"usr", b"bash\xff"].map(|name| census.add_name(name));
        let dir = |stamp, name, parent, first_dir| DirRow {
            stamp,
            name,
            parent,
            first_dir,
            first_file: 0,
            unified: 4,
            fixed: 5,
        };
        census.dirs = vec![dir(2, root, 0, 1), dir(3, usr, 0, NONE)];
        census.files = vec![FileRow {
            ino: 11,
            ctime: 12,
            size: 13,
            class: 14,
            name: file,
            dir: 1,
            id: 0,
            nlink: 1,
            state: 7,
        }];
        census
    }

    #[test]
    fn paths_are_made_of_names() {
        let census = sample();
        assert_eq!(census.dir_path(0), b"");
        assert_eq!(census.dir_path(1), b"usr");
        assert_eq!(census.name(census.files_in(1)[0].name), b"bash\xff");
        assert_eq!((census.files_in(0), census.subdirs(0), census.subdirs(1).len()), (&[][..], 1..2, 0));
    }

    fn pieces_of(census: &Census) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let all = census.encode(|piece| -> Outcome<(), std::convert::Infallible> {
            pieces.push(piece.to_vec());
            Ok(())
        });
        all.unwrap();
        pieces
    }

    fn decode(pieces: &[Vec<u8>]) -> Option<Census> {
        let length: usize = pieces.iter().map(Vec::len).sum();
        let mut decoder = Decoder::new(pieces.first()?, length as u64)?;
        pieces[1..].iter().try_for_each(|piece| decoder.take(piece))?;
        decoder.finish()
    }

    #[test]
    fn no_row_is_cut_in_two() {
        let mut census = sample();
        let row = census.files[0];
        census.files = (0..PIECE as u64 / 20).map(|ino| FileRow { ino, ..row }).collect();
        let pieces = pieces_of(&census);
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() <= PIECE));
        assert_eq!(decode(&pieces), Some(census));
    }

    #[test]
    fn damaged_rows_are_refused_and_never_panic() {
        let good = pieces_of(&sample());
        assert_eq!(decode(&good), Some(sample()));
        for piece in 0..good.len() {
            assert_eq!(decode(&good[..piece]), None);
            for (at, bit) in (0..good[piece].len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bad = good.clone();
                bad[piece][at] ^= 1 << bit;
                if let Some(census) = decode(&bad) {
                    for dir in 0..census.dirs.len() as u32 {
                        census.dir_path(dir);
                        census.files_in(dir);
                        census.subdirs(dir);
                    }
                }
            }
        }
    }
}
