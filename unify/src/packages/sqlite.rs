//! A guest's SQLite database as one consistent image in memory.
//!
//! SQLite itself must not open a guest's file: it would take locks and write shared memory beside it, and
//! the guest could change pages between two looks. So the file is read once into memory, with the
//! committed frames of its write-ahead log laid over it ("The Database File Format", sections 1.3 and 4),
//! and SQLite opens the image, read-only and distrusting its schema.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use kernel::{Dir, File, Stat};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, MAIN_DB};

use super::Problem;
use super::build::absent;

/// Bytes of a database. rpm's takes 60 KB a package: 8,000 packages.
const DATABASE: u64 = 512 << 20;

/// Bytes of a write-ahead log: SQLite begins anew after 4 MB unless one transaction is larger.
const LOG: u64 = 256 << 20;

/// Bytes of one value: the largest rpm header (a kernel's) has 3 MB.
const VALUE: i32 = 64 << 20;

/// The committed content of a write-ahead log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Bytes of a page.
    pub page_size: usize,
    /// Pages of the database after the last commit.
    pub pages: u32,
    /// Where in the log the last version of each page (counted from 1) starts.
    pub frames: BTreeMap<u32, usize>,
}

/// Reads a write-ahead log; `None` where it holds no commit, as SQLite would find. Frames after the last
/// commit, of an earlier generation, or with a wrong checksum end it.
pub fn log(bytes: &[u8]) -> Option<Log> {
    const HEADER: usize = 32;
    const FRAME: usize = 24;
    let magic = be32(bytes, 0)?;
    let page_size = be32(bytes, 8)? as usize;
    let valid =
        magic & !1 == 0x377f_0682 && page_size.is_power_of_two() && (512..=65536).contains(&page_size);
    let big_endian = magic & 1 == 1;
    let salts = bytes.get(16..24)?;
    let mut sum = checksum((0, 0), bytes.get(..24)?, big_endian);
    if !valid || sum != (be32(bytes, 24)?, be32(bytes, 28)?) {
        return None;
    }
    let mut found = Log { page_size, ..Log::default() };
    let mut pending = Vec::new();
    for (at, frame) in bytes[HEADER..].chunks_exact(FRAME + page_size).enumerate() {
        sum = checksum(sum, &frame[..8], big_endian);
        sum = checksum(sum, &frame[FRAME..], big_endian);
        let page = be32(frame, 0)?;
        let intact = frame[8..16] == *salts && sum == (be32(frame, 16)?, be32(frame, 20)?) && page > 0;
        if !intact {
            break;
        }
        pending.push((page, HEADER + at * (FRAME + page_size) + FRAME));
        let commit = be32(frame, 4)?;
        if commit > 0 {
            found.frames.extend(pending.drain(..));
            found.pages = commit;
        }
    }
    (found.pages > 0).then_some(found)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The log's running checksum over a multiple of eight bytes.
fn checksum(sum: (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let number = |four: [u8; 4]| if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
    bytes.as_chunks::<8>().0.iter().fold(sum, |(a, b), &[x0, x1, x2, x3, y0, y1, y2, y3]| {
        let a = a.wrapping_add(number([x0, x1, x2, x3])).wrapping_add(b);
        (a, b.wrapping_add(number([y0, y1, y2, y3])).wrapping_add(a))
    })
}

/// Opens a database below a directory of a guest; `None` where there is none. Queries end with an error at
/// the deadline.
pub(crate) fn open(dir: &Dir, name: &[u8], deadline: Instant) -> Result<Option<Connection>, Problem> {
    let Some(file) = absent(dir.open_file(name).map_err(Problem::from))? else { return Ok(None) };
    let journal = absent(dir.stat(&[name, b"-journal"].concat()).map_err(Problem::from))?;
    if journal.is_some_and(|journal| journal.size > 0) {
        return Err(Problem::Busy); // a transaction is under way, or must be rolled back first
    }
    // A package manager at work changes the file while we read; then its stamps differ afterwards.
    for _ in 0..3 {
        let before = stamps(dir, name, &file)?;
        let connection = load(dir, name, &file)?;
        if stamps(dir, name, &file)? == before {
            harden(&connection, deadline)?;
            return Ok(Some(connection));
        }
    }
    Err(Problem::Busy)
}

fn stamps(dir: &Dir, name: &[u8], file: &File) -> Result<(Stat, Option<Stat>), Problem> {
    let log = absent(dir.stat(&[name, b"-wal"].concat()).map_err(Problem::from))?;
    Ok((file.stat()?, log))
}

fn load(dir: &Dir, name: &[u8], file: &File) -> Result<Connection, Problem> {
    let log_bytes = absent(dir.read(&[name, b"-wal"].concat(), LOG).map_err(Problem::from))?;
    let log_bytes = log_bytes.unwrap_or_default();
    let log = log(&log_bytes);
    let size = match &log {
        Some(log) => u64::from(log.pages) * log.page_size as u64,
        None => file.stat()?.size,
    };
    if size > DATABASE {
        return Err(kernel::Errno::FBIG.into());
    }
    if size < 512 {
        return Err(Problem::Malformed("shorter than one page"));
    }
    let image = Image { file, log: log.as_ref(), log_bytes: &log_bytes, at: 0 };
    let mut connection = Connection::open_in_memory()?;
    connection.deserialize_read_exact(MAIN_DB, image, size as usize, true)?;
    Ok(connection)
}

/// The database as it is after the last commit, from its start.
struct Image<'a> {
    file: &'a File,
    log: Option<&'a Log>,
    log_bytes: &'a [u8],
    at: u64,
}

impl Image<'_> {
    /// Fills `buffer`, which does not cross a page of the log.
    fn fill(&self, buffer: &mut [u8]) -> kernel::Result<usize> {
        if let Some(log) = self.log {
            let page = self.at / log.page_size as u64 + 1;
            let within = self.at as usize % log.page_size;
            if let Some(&start) = u32::try_from(page).ok().and_then(|page| log.frames.get(&page)) {
                let source = &self.log_bytes[start + within..start + log.page_size];
                let count = buffer.len().min(source.len());
                buffer[..count].copy_from_slice(&source[..count]);
                return Ok(count);
            }
        }
        self.file.read_at(buffer, self.at)
    }
}

impl io::Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let step = match self.log {
            Some(log) => log.page_size - self.at as usize % log.page_size,
            None => 1 << 20,
        };
        let length = buffer.len().min(step);
        let count = self.fill(&mut buffer[..length])?;
        // Bytes 18 and 19 are 2 in WAL mode, which a database in memory can't be opened in.
        for flag in 18..20_u64 {
            if (self.at..self.at + count as u64).contains(&flag) {
                buffer[(flag - self.at) as usize] = 1;
            }
        }
        self.at += count as u64;
        Ok(count)
    }
}

/// Nothing in the file may make SQLite do more than read tables, for longer than allowed.
fn harden(connection: &Connection, deadline: Instant) -> Result<(), Problem> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 64 << 10)?;
    connection.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, 20)?;
    connection.progress_handler(10_000, Some(move || Instant::now() > deadline));
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // making databases is the test
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    fn make(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
        connection
    }

    fn sum(dir: &Path) -> Result<i64, String> {
        let dir = Dir::open_host(dir).unwrap();
        let opened = open(&dir, b"db", Instant::now() + Duration::from_secs(5));
        let opened = opened.map_err(|problem| problem.to_string())?.ok_or("none")?;
        opened.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_log_that_was_not_merged_yet_is_read() {
        let place = tempfile::tempdir().unwrap();
        let writer = make(&place.path().join("db"));
        writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint=0").unwrap();
        writer.execute_batch("CREATE TABLE big(x); INSERT INTO t VALUES (10)").unwrap();
        writer
            .execute_batch("INSERT INTO big VALUES (zeroblob(100000)); INSERT INTO t VALUES (100)")
            .unwrap();
        assert!(fs::metadata(place.path().join("db-wal")).unwrap().len() > 100_000);
        assert_eq!(sum(place.path()), Ok(111));
        // A transaction that was cut off did not happen.
        let log = fs::read(place.path().join("db-wal")).unwrap();
        fs::write(place.path().join("db-wal"), &log[..log.len() - 1]).unwrap();
        assert_eq!(sum(place.path()), Ok(11));
        fs::write(place.path().join("db-wal"), b"not a log").unwrap();
        assert_eq!(sum(place.path()), Ok(1));
        drop(writer);
    }

    #[test]
    fn broken_files_are_refused_in_words() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(sum(place.path()), Err("none".into()));
        fs::write(place.path().join("db"), b"").unwrap();
        assert!(sum(place.path()).unwrap_err().contains("shorter than one page"));
        fs::write(place.path().join("db"), vec![7; 8192]).unwrap();
        assert!(sum(place.path()).unwrap_err().contains("not a database"));
        fs::write(place.path().join("db-journal"), b"x").unwrap();
        assert!(sum(place.path()).unwrap_err().contains("being changed"));
    }

    #[test]
    fn the_guests_file_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        drop(make(&place.path().join("db")));
        let before = fs::read(place.path().join("db")).unwrap();
        assert_eq!(sum(place.path()), Ok(1));
        assert_eq!(fs::read(place.path().join("db")).unwrap(), before);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
