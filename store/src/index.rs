//! What earlier runs found, so that the next one need not look again.
//!
//! A cache: every row can be found again by walking the guests, and nothing here proves a content (law 2).
//! It is read once into flat arrays, piece by piece, and written back in one transaction. A damaged index is an
//! empty one.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use crate::census::{Census, Decoder, put_rows};
use crate::journal::{in_database, log_ahead, make_private, open_for_reading};
use crate::wire::{Reader, Writer};
use crate::{Result, Store};

/// Version of rows and tables, kept in `user_version`. Another version is an empty index.
const SCHEMA: i64 = 4;

/// An object as it looked when it was last checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRow {
    /// Inode number.
    pub ino: u64,
    /// [`crate::identity::class`] of its metadata.
    pub class: u64,
}

impl ObjectRow {
    const BYTES: usize = 16;

    fn put(&self, out: &mut Writer) {
        out.u64(self.ino);
        out.u64(self.class);
    }

    fn get(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self { ino: input.u64()?, class: input.u64()? })
    }
}

/// An open index.
pub struct Index {
    db: Connection,
    path: PathBuf,
}

impl Index {
    /// Opens the index of a store for writing. One that is missing, damaged or of another version is made
    /// anew.
    pub fn open(store: &Store) -> Result<Self> {
        let path = store.path().join("index.db");
        let open = || -> rusqlite::Result<Connection> {
            let db = Connection::open(&path)?;
            set_up(&db)?;
            Ok(db)
        };
        make_private(store, b"index.db")?;
        let db = if let Ok(db) = open() {
            db
        } else {
            discard(store)?;
            make_private(store, b"index.db")?;
            open().map_err(in_database(&path))?
        };
        Ok(Self { db, path })
    }

    /// Opens the index of a store for reading; none if there is none that can be used.
    pub fn open_read_only(store: &Store) -> Option<Self> {
        let path = store.path().join("index.db");
        let db = path.exists().then(|| open_for_reading(&path))?.ok()?;
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).ok()?;
        (version == SCHEMA).then_some(Self { db, path })
    }

    /// What is known of a guest, by its path relative to the store's base.
    pub fn census(&self, guest: &Path) -> Option<Census> {
        let mut decoder: Option<Decoder> = None;
        self.for_each_piece(guest.as_os_str().as_bytes(), |length, piece| {
            if let Some(decoder) = &mut decoder {
                return decoder.take(piece);
            }
            decoder = Some(Decoder::new(piece, length)?);
            Some(())
        })?;
        decoder?.finish()
    }

    /// The guests something is known of.
    pub fn guests(&self) -> Result<Vec<PathBuf>> {
        let sql = "SELECT DISTINCT guest FROM piece WHERE guest != x'' ORDER BY guest";
        let read = || -> rusqlite::Result<Vec<Vec<u8>>> {
            self.db.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        let names = read().map_err(in_database(&self.path))?;
        Ok(names.into_iter().map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(&name))).collect())
    }

    /// The objects as they were last seen, by inode number.
    pub fn objects(&self) -> Vec<ObjectRow> {
        let mut rows = Vec::new();
        let whole = self.for_each_piece(b"", |length, piece| {
            if rows.is_empty() {
                rows.reserve_exact(usize::try_from(length).ok()? / ObjectRow::BYTES);
            }
            let mut input = Reader(piece);
            while !input.0.is_empty() {
                rows.push(ObjectRow::get(&mut input)?);
            }
            Some(())
        });
        whole.map(|()| rows).unwrap_or_default()
    }

    /// Hands out the pieces of a key in their order, each with the bytes that they have all together, until one
    /// is not taken.
    fn for_each_piece(&self, key: &[u8], mut take: impl FnMut(u64, &[u8]) -> Option<()>) -> Option<()> {
        let length = "SELECT coalesce(sum(length(data)), 0) FROM piece WHERE guest = ?";
        let length: u64 = self.db.query_row(length, params![key], |row| row.get(0)).ok()?;
        let mut query = self.db.prepare("SELECT data FROM piece WHERE guest = ? ORDER BY seq").ok()?;
        let mut rows = query.query(params![key]).ok()?;
        while let Some(row) = rows.next().ok()? {
            take(length, row.get_ref(0).ok()?.as_blob().ok()?)?;
        }
        Some(())
    }

    /// Replaces what is known: of the guests given (`None` forgets one) and, if given, of the objects.
    pub fn store(
        &mut self,
        guests: &[(PathBuf, Option<&Census>)],
        objects: Option<&[ObjectRow]>,
    ) -> Result<()> {
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.db.transaction()?;
            for (guest, census) in guests {
                let mut pieces = Pieces::of(&transaction, guest.as_os_str().as_bytes())?;
                if let Some(census) = census {
                    census.encode(|piece| pieces.put(piece))?;
                }
            }
            if let Some(objects) = objects {
                let mut pieces = Pieces::of(&transaction, b"")?;
                put_rows(objects, ObjectRow::BYTES, ObjectRow::put, |piece| pieces.put(piece))?;
            }
            transaction.commit()
        };
        write().map_err(in_database(&self.path))
    }
}

/// Takes the index away. The next run finds everything again.
pub fn discard(store: &Store) -> Result<()> {
    use kernel::{At, Errno, Fs, Real};
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        match Real.unlink(At::new(store.dir(), name.as_bytes())) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(crate::Error::at("remove", store.path().join(name))(errno)),
        }
    }
    Ok(())
}

fn set_up(db: &Connection) -> rusqlite::Result<()> {
    log_ahead(db)?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == SCHEMA {
        return Ok(());
    }
    db.execute_batch(&format!(
        "BEGIN;
         DROP TABLE IF EXISTS piece;
         CREATE TABLE piece (guest BLOB NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL,
                             PRIMARY KEY (guest, seq)) STRICT;
         PRAGMA user_version = {SCHEMA};
         COMMIT;"
    ))
}

/// The pieces of one key, written anew.
struct Pieces<'a> {
    insert: rusqlite::CachedStatement<'a>,
    key: &'a [u8],
    count: u32,
}

impl<'a> Pieces<'a> {
    fn of(db: &'a Connection, key: &'a [u8]) -> rusqlite::Result<Self> {
        db.execute("DELETE FROM piece WHERE guest = ?", params![key])?;
        let insert = db.prepare_cached("INSERT INTO piece (guest, seq, data) VALUES (?, ?, ?)")?;
        Ok(Self { insert, key, count: 0 })
    }

    fn put(&mut self, piece: &[u8]) -> rusqlite::Result<()> {
        self.insert.execute(params![self.key, self.count, piece])?;
        self.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::tests::sample;
    use crate::{Access, IdentityPolicy};

    fn with_store(test: impl FnOnce(&Store)) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().canonicalize().unwrap().join(".store");
        Store::create(&kernel::Real, &path, IdentityPolicy::Full).unwrap();
        test(&Store::open(&kernel::Real, &path, Access::Write, None).unwrap());
    }

    #[test]
    fn rows_come_back_as_they_were() {
        with_store(|store| {
            let objects = [ObjectRow { ino: 1, class: 2 }, ObjectRow { ino: 3, class: 4 }];
            let mut index = Index::open(store).unwrap();
            index.store(&[("web1".into(), Some(&sample()))], Some(&objects)).unwrap();
            drop(index);
            let index = Index::open_read_only(store).unwrap();
            assert_eq!(index.census(Path::new("web1")), Some(sample()));
            assert_eq!(index.census(Path::new("web2")), None);
            assert_eq!(index.guests().unwrap(), [PathBuf::from("web1")]);
            assert_eq!(index.objects(), objects);
            drop(index);
            let mut index = Index::open(store).unwrap();
            index.store(&[("web1".into(), None)], None).unwrap();
            assert_eq!(index.objects(), objects);
            assert_eq!(index.census(Path::new("web1")), None);
        });
    }

    #[test]
    fn a_damaged_index_is_an_empty_one() {
        with_store(|store| {
            drop(Index::open(store).unwrap());
            #[allow(clippy::disallowed_methods)] // breaking the index is the test
            std::fs::write(store.path().join("index.db"), [b'x'; 8192]).unwrap();
            assert!(Index::open_read_only(store).is_none());
            assert_eq!(Index::open(store).unwrap().objects(), []);
        });
    }
}
