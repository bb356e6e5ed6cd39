//! Durable intents: what a run is about to do is on disk before the first name moves.
//!
//! A journal is a history of *runs*, each a sequence of *batches*. Its rules are a state machine, checked
//! whenever a journal is opened, so that an illegal history cannot be loaded:
//!
//! ```text
//! run:    Begun ──▶ Ended          at most one run is Begun, and it is the last
//! batch:  Intended ──▶ Settled     numbered from 0 without gaps; at most the last of a Begun run is Intended
//! ```
//!
//! An intended batch that is not settled is what a crash left; recovery looks at the file system, completes
//! or takes back each action, and settles it.

mod batch;
mod history;

use std::path::{Path, PathBuf};

use kernel::{At, Errno, Fs, Real, Seal, Time};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

pub use batch::{Action, Batch, DirRef, NameRef, Settled, Verb};

use crate::{Error, Result, Store};
use history::check;

/// Version of the tables, kept in `user_version`.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE run (
    id      INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    command TEXT NOT NULL,
    seal    TEXT NOT NULL,
    begun   INTEGER NOT NULL,
    ended   INTEGER,
    outcome TEXT,
    summary TEXT,
    undone  INTEGER REFERENCES run
) STRICT;
CREATE TABLE batch (
    run     INTEGER NOT NULL REFERENCES run,
    seq     INTEGER NOT NULL,
    intent  BLOB NOT NULL,
    settled BLOB,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
";

/// Number of a run; they grow by one.
pub type RunId = i64;

/// What a run was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Files became objects, names were linked to them.
    Unify,
    /// Names became private again.
    Undo,
    /// Names of corrupt objects became names of good ones.
    Repair,
}

impl RunKind {
    /// The word in the journal and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unify => "unify",
            Self::Undo => "undo",
            Self::Repair => "repair",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Unify, Self::Undo, Self::Repair].into_iter().find(|kind| kind.name() == name)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// Everything planned was done.
    Complete,
    /// Some actions were skipped or failed.
    Partial,
    /// The user broke it off; what was begun was brought to an end.
    Interrupted,
    /// It was cut off and settled by recovery.
    Recovered,
}

impl RunEnd {
    const ALL: [Self; 4] = [Self::Complete, Self::Partial, Self::Interrupted, Self::Recovered];

    /// The word in the journal and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Interrupted => "interrupted",
            Self::Recovered => "recovered",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.name() == name)
    }
}

/// One run as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// What it was for.
    pub kind: RunKind,
    /// The command line that began it, escaped.
    pub command: String,
    /// The protection it put on objects.
    pub seal: Seal,
    /// When it began, seconds since the epoch.
    pub begun: i64,
    /// When and how it ended; none while it runs or after a crash.
    pub end: Option<(i64, RunEnd)>,
    /// What it reported, as JSON.
    pub summary: Option<String>,
    /// The run that undid it.
    pub undone_by: Option<RunId>,
}

/// An open journal.
pub struct Journal {
    db: Connection,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal of a store for writing, made on demand, and checks its history.
    pub fn open(store: &Store) -> Result<Self> {
        let path = store.path().join("journal.db");
        make_private(store, b"journal.db")?;
        let journal = Self { db: Connection::open(&path).map_err(in_database(&path))?, path };
        journal.set_up(store).map_err(in_database(&journal.path))??;
        check(&journal)?;
        Ok(journal)
    }

    /// Opens the journal of a store for reading; none if there is none yet.
    pub fn open_read_only(store: &Store) -> Result<Option<Self>> {
        let path = store.path().join("journal.db");
        if !path.exists() {
            return Ok(None);
        }
        let journal = Self { db: open_for_reading(&path).map_err(in_database(&path))?, path };
        match journal.schema().map_err(in_database(&journal.path))? {
            0 => Ok(None),
            SCHEMA => check(&journal).map(|()| Some(journal)),
            other => Err(newer(store, other)),
        }
    }

    fn set_up(&self, store: &Store) -> rusqlite::Result<Result<()>> {
        log_ahead(&self.db)?;
        self.db.pragma_update(None, "synchronous", "FULL")?;
        self.db.pragma_update(None, "foreign_keys", true)?;
        match self.schema()? {
            0 => {
                let sql = format!("BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;");
                self.db.execute_batch(&sql)?;
                Ok(Ok(()))
            }
            SCHEMA => Ok(Ok(())),
            other => Ok(Err(newer(store, other))),
        }
    }

    fn schema(&self) -> rusqlite::Result<i64> {
        self.db.pragma_query_value(None, "user_version", |row| row.get(0))
    }

    /// Begins a run. Durable on return.
    pub fn begin(&self, kind: RunKind, command: &str, seal: Seal) -> Result<RunId> {
        let sql = "INSERT INTO run (kind, command, seal, begun) VALUES (?, ?, ?, ?)";
        let row = params![kind.name(), command, seal.name(), Time::now().seconds];
        self.db.execute(sql, row).map_err(in_database(&self.path))?;
        Ok(self.db.last_insert_rowid())
    }

    /// Writes down what the next batch of a run is about to do. Durable on return.
    pub fn intend(&self, run: RunId, seq: u32, batch: &Batch) -> Result<()> {
        let sql = "INSERT INTO batch (run, seq, intent) VALUES (?, ?, ?)";
        self.db.execute(sql, params![run, seq, batch.encode()]).map_err(in_database(&self.path)).map(drop)
    }

    /// Writes down what became of each action of a batch; again, if a later look changed it. Durable on
    /// return.
    pub fn settle(&self, run: RunId, seq: u32, settled: &[Settled]) -> Result<()> {
        let sql = "UPDATE batch SET settled = ? WHERE run = ? AND seq = ?";
        let blob = Settled::encode_all(settled);
        self.db.execute(sql, params![blob, run, seq]).map_err(in_database(&self.path)).map(drop)
    }

    /// Ends a run; `undid` names the runs that this one undid as a whole.
    pub fn end(&mut self, run: RunId, how: RunEnd, summary: &str, undid: &[RunId]) -> Result<()> {
        let write = |db: &mut Connection| -> rusqlite::Result<()> {
            let transaction = db.transaction()?;
            let sql = "UPDATE run SET ended = ?, outcome = ?, summary = ? WHERE id = ?";
            transaction.execute(sql, params![Time::now().seconds, how.name(), summary, run])?;
            for other in undid {
                transaction.execute("UPDATE run SET undone = ? WHERE id = ?", params![run, other])?;
            }
            transaction.commit()
        };
        write(&mut self.db).map_err(in_database(&self.path))
    }

    /// All runs, oldest first.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let sql =
            "SELECT id, kind, command, seal, begun, ended, outcome, summary, undone FROM run ORDER BY id";
        let read = || -> rusqlite::Result<Vec<Option<Run>>> {
            self.db.prepare(sql)?.query_map([], read_run)?.collect()
        };
        let rows = read().map_err(in_database(&self.path))?;
        rows.into_iter()
            .collect::<Option<Vec<Run>>>()
            .ok_or_else(|| self.illegal("a run of an unknown kind, seal or outcome"))
    }

    /// The run that was begun and not ended, if there is one.
    pub fn open_run(&self) -> Result<Option<Run>> {
        Ok(self.runs()?.pop().filter(|run| run.end.is_none()))
    }

    /// One batch of a run and what became of it.
    pub fn batch(&self, run: RunId, seq: u32) -> Result<Option<(Batch, Option<Vec<Settled>>)>> {
        type Row = (Vec<u8>, Option<Vec<u8>>);
        let sql = "SELECT intent, settled FROM batch WHERE run = ? AND seq = ?";
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Row> { Ok((row.get(0)?, row.get(1)?)) };
        let row = self.db.query_row(sql, params![run, seq], read).optional();
        let Some((intent, settled)) = row.map_err(in_database(&self.path))? else { return Ok(None) };
        let decoded = Batch::decode(&intent).and_then(|batch| {
            let settled = match settled {
                Some(blob) => Some(Settled::decode_all(&blob, batch.actions.len())?),
                None => None,
            };
            Some((batch, settled))
        });
        decoded.map(Some).ok_or_else(|| self.illegal("a batch that does not decode"))
    }

    fn illegal(&self, why: impl Into<String>) -> Error {
        Error::IllegalHistory { path: self.path.clone(), why: why.into() }
    }
}

fn newer(store: &Store, schema: i64) -> Error {
    Error::Newer { path: store.path().to_path_buf(), what: format!("journal version {schema}") }
}

fn read_run(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Run>> {
    let text = |column| row.get::<_, String>(column);
    let ended: Option<i64> = row.get(5)?;
    let outcome: Option<String> = row.get(6)?;
    let end = match (ended, outcome.as_deref().map(RunEnd::from_name)) {
        (None, None) => None,
        (Some(when), Some(Some(how))) => Some((when, how)),
        _ => return Ok(None),
    };
    let (Some(kind), Some(seal)) = (RunKind::from_name(&text(1)?), Seal::from_name(&text(3)?)) else {
        return Ok(None);
    };
    Ok(Some(Run {
        id: row.get(0)?,
        kind,
        command: text(2)?,
        seal,
        begun: row.get(4)?,
        end,
        summary: row.get(7)?,
        undone_by: row.get(8)?,
    }))
}

/// Turns write-ahead logging on. The store's own lock keeps others out, so the log's index can be in memory
/// instead of in a shared mapping: when a disk dies, reading that would end the process by SIGBUS, where
/// everything else reports an error.
pub(crate) fn log_ahead(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "journal_mode", "WAL")
}

/// On a read-only file system `SQLite` cannot make the files of its write-ahead log; `immutable` does
/// without them.
pub(crate) fn open_for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let usable = |db: &Connection| db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    let db = Connection::open_with_flags(path, flags)?;
    if usable(&db).is_ok() {
        return Ok(db);
    }
    let escaped: String = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

/// `SQLite` would make a database by the umask; the files of its log take the database's mode.
pub(crate) fn make_private(store: &Store, name: &[u8]) -> Result<()> {
    match Real.create(At::new(store.dir(), name)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::at("make a database in", store.path())(errno)),
    }
}

/// For `map_err`: the database at `path` failed.
pub(crate) fn in_database(path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Database { path: path.clone(), source }
}

#[cfg(test)]
mod tests;
