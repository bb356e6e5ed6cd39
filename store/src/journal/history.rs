//! The rules of a history, checked when a journal is opened.

use rusqlite::params;

use super::{Journal, in_database};
use crate::Result;

/// Refuses a history that no run can have written. Reads rows' states only, not the batches themselves.
pub(super) fn check(journal: &Journal) -> Result<()> {
    let runs = journal.runs()?;
    let open: Vec<_> = runs.iter().filter(|run| run.end.is_none()).collect();
    match open.as_slice() {
        [] => {}
        [one] if Some(one.id) == runs.last().map(|run| run.id) => {}
        _ => return Err(journal.illegal("a run was begun before the one before it ended")),
    }
    if let Some(run) = runs.iter().find(|run| run.undone_by.is_some_and(|by| by <= run.id)) {
        return Err(journal.illegal(format!("run {} was undone before it began", run.id)));
    }
    let open = open.first().map(|run| run.id);
    for (run, count, last, first_unsettled) in batches(journal)? {
        if !runs.iter().any(|known| known.id == run) {
            return Err(journal.illegal(format!("a batch of run {run}, which never began")));
        }
        if last + 1 != count {
            return Err(journal.illegal(format!("run {run} has gaps between its batches")));
        }
        let Some(seq) = first_unsettled else { continue };
        if open != Some(run) {
            return Err(journal.illegal(format!("run {run} ended before its batches were settled")));
        }
        if seq != last {
            return Err(journal.illegal(format!("run {run} went on before batch {seq} was settled")));
        }
    }
    Ok(())
}

type Summary = (i64, i64, i64, Option<i64>);

/// Per run: (run, number of batches, highest number, lowest unsettled number).
fn batches(journal: &Journal) -> Result<Vec<Summary>> {
    let sql = "SELECT run, count(*), max(seq), min(CASE WHEN settled IS NULL THEN seq END)
               FROM batch GROUP BY run";
    let read = || -> rusqlite::Result<Vec<Summary>> {
        journal
            .db
            .prepare(sql)?
            .query_map(params![], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect()
    };
    read().map_err(in_database(&journal.path))
}
