//! Words and figures that several commands show.

use cli::PathText;
use serde::Serialize;
use store::journal::Run;
use unify::maintain::Kept;

/// A point in time for people: `2026-01-31 23:59:59 UTC`. Seconds are counted from the epoch.
pub(crate) fn utc(seconds: i64) -> String {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The Gregorian date so many days after 1970-01-01. Years are counted from March, so that the leap day is
/// a year's last; 400 of them have 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// A run, as an event.
#[derive(Serialize)]
pub(crate) struct RunShown {
    run: i64,
    kind: &'static str,
    command: String,
    seal: &'static str,
    begun: i64,
    ended: Option<i64>,
    pub(crate) outcome: &'static str,
    undone_by: Option<i64>,
    report: Option<serde_json::Value>,
}

impl RunShown {
    pub(crate) fn new(run: &Run) -> Self {
        Self {
            run: run.id,
            kind: run.kind.name(),
            command: run.command.clone(),
            seal: run.seal.name(),
            begun: run.begun,
            ended: run.end.map(|(when, _)| when),
            outcome: run.end.map_or("unfinished", |(_, how)| how.name()),
            undone_by: run.undone_by,
            report: run.summary.as_deref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }

    /// The outcome, and who undid it.
    pub(crate) fn fate(&self) -> String {
        match self.undone_by {
            Some(by) => format!("{}, undone by {by}", self.outcome),
            None => self.outcome.to_owned(),
        }
    }
}

/// Something in quarantine, as an event.
#[derive(Serialize)]
pub(crate) struct KeptShown<'a> {
    name: PathText<'a>,
    kind: &'static str,
    held: u32,
    bytes: u64,
}

impl<'a> KeptShown<'a> {
    pub(crate) fn new(kept: &'a Kept) -> Self {
        let (kind, bytes) = (kept.kind.name(), kept.stat.allocated());
        Self { name: PathText::from_bytes(&kept.name), kind, held: kept.held(), bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_772_323_199, "2026-02-28 23:59:59 UTC"),
            (1_772_323_200, "2026-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
        ];
        for (seconds, text) in cases {
            assert_eq!(utc(seconds), text);
        }
    }
}
