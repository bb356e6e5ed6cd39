//! The matrix: what each law came to in each column, as text that is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::case::Cell;
use crate::laws::Group;
use crate::overhead;

/// One line of what an agent found.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) column: String,
    pub(crate) group: String,
    pub(crate) law: String,
    pub(crate) fs: String,
    pub(crate) cell: Cell,
}

impl Finding {
    /// As an agent writes it.
    pub(crate) fn line(&self) -> String {
        let (word, why) = match &self.cell {
            Cell::Pass => ("pass", ""),
            Cell::Fail(why) => ("fail", why.as_str()),
            Cell::Skipped(why) => ("skip", why.as_str()),
        };
        let why = why.replace(['\t', '\n'], " ");
        [&self.column, &self.group, &self.law, &self.fs, word, &why].join("\t")
    }

    /// The inverse of [`line`](Self::line).
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').map(str::to_owned);
        let (column, group, law, fs) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let word = fields.next()?;
        let why = fields.next()?;
        let cell = match word.as_str() {
            "pass" => Cell::Pass,
            "fail" => Cell::Fail(why),
            "skip" => Cell::Skipped(why),
            _ => return None,
        };
        Some(Self { column, group, law, fs, cell })
    }
}

/// All that was found, by column, group, law and file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matrix {
    cells: BTreeMap<(String, String, String, String), Cell>,
}

/// The column of the machine that the suite runs on.
pub(crate) const HOST_COLUMN: &str = "host";

/// In place of a file system, where a law knows of none.
pub(crate) const NOWHERE: &str = "-";
const PLACES: [&str; 4] = ["ext4", "xfs", "btrfs", NOWHERE];

/// `✓` holds, `✗` does not, `–` was not tried.
const MARKS: [char; 3] = ['✓', '✗', '–'];

fn mark(cell: &Cell) -> char {
    match cell {
        Cell::Pass => MARKS[0],
        Cell::Fail(_) => MARKS[1],
        Cell::Skipped(_) => MARKS[2],
    }
}

/// File systems and columns.
type Where<'a> = (BTreeSet<&'a str>, BTreeSet<&'a str>);

/// How good a mark is.
fn rank(mark: char) -> usize {
    match mark {
        '✓' => 2,
        '–' => 1,
        _ => 0,
    }
}

impl Matrix {
    pub(crate) fn add(&mut self, found: Finding) {
        self.cells.insert((found.column, found.group, found.law, found.fs), found.cell);
    }

    /// The columns there are findings for.
    pub(crate) fn columns(&self) -> BTreeSet<&str> {
        self.cells.keys().map(|key| key.0.as_str()).collect()
    }

    /// The same of one group.
    fn columns_of(&self, group: &Group) -> BTreeSet<&str> {
        self.cells.keys().filter(|key| key.1 == group.name).map(|key| key.0.as_str()).collect()
    }

    fn cell(&self, column: &str, group: &str, law: &str, fs: &str) -> Option<&Cell> {
        self.cells.get(&(column.to_owned(), group.to_owned(), law.to_owned(), fs.to_owned()))
    }

    /// The marks of a law: one if the file systems agree, else one for each (ext4, xfs, btrfs).
    fn marks(&self, column: &str, group: &str, law: &str) -> Option<String> {
        let cells = PLACES.map(|fs| self.cell(column, group, law, fs));
        let marks: Vec<_> = cells.into_iter().flatten().map(mark).collect();
        let first = *marks.first()?;
        if marks.iter().all(|&mark| mark == first) {
            return Some(first.to_string());
        }
        Some(marks.iter().collect())
    }

    /// The tables and what they leave unsaid. Columns that were not run are taken from the `kept` text.
    pub(crate) fn render(&self, columns: &[&str], groups: &[Group], kept: &Kept) -> String {
        let mut text = String::new();
        for group in groups {
            writeln!(text, "## {}\n\n{}.\n", group.name, group.about).ok();
            writeln!(text, "| law | {} |", columns.join(" | ")).ok();
            writeln!(text, "|---|{}", "---|".repeat(columns.len())).ok();
            for (law, _) in group.laws.names() {
                let cell = |column: &&str| {
                    let now = self.marks(column, group.name, law);
                    now.or_else(|| kept.marks(column, group.name, law)).unwrap_or_default()
                };
                let cells: Vec<_> = columns.iter().map(cell).collect();
                writeln!(text, "| {} | {} |", law, cells.join(" | ")).ok();
            }
            text.push('\n');
            text.push_str(&self.remarks(columns, group, kept));
        }
        text
    }

    /// The reasons of what was not tried, and of what did not hold though it should.
    fn remarks(&self, columns: &[&str], group: &Group, kept: &Kept) -> String {
        let mut by_reason: BTreeMap<(String, Where), Vec<&str>> = BTreeMap::new();
        for (law, _) in group.laws.names() {
            for (why, places) in self.reasons(columns, group, law) {
                by_reason.entry((why, places)).or_default().push(law);
            }
        }
        let mut text = String::new();
        for ((why, (fs, columns)), laws) in by_reason {
            let laws = if laws.len() == group.laws.names().len() { "all".into() } else { laws.join("; ") };
            let join = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
            writeln!(text, "- {} on {}: {why}: {laws}", join(columns), join(fs)).ok();
        }
        let ran = self.columns_of(group);
        for (of, columns, rest) in &kept.remarks {
            let columns: Vec<_> = columns.split(", ").filter(|column| !ran.contains(column)).collect();
            if of == group.name && !columns.is_empty() {
                writeln!(text, "- {} on {rest}", columns.join(", ")).ok();
            }
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    /// Why a law was not tried or did not hold, and where.
    fn reasons<'a>(&self, columns: &[&'a str], group: &Group, law: &str) -> BTreeMap<String, Where<'a>> {
        let mut all: BTreeMap<String, Where> = BTreeMap::new();
        for &column in columns {
            for fs in PLACES {
                let why = match self.cell(column, group.name, law, fs) {
                    Some(Cell::Skipped(why)) if !why.starts_with("not a matter") => why.clone(),
                    Some(Cell::Fail(why)) if !is_proof(column) => format!("**{why}**"),
                    _ => continue,
                };
                let places = all.entry(why).or_default();
                places.0.insert(fs);
                places.1.insert(column);
            }
        }
        all
    }

    /// Where a column that enforces nothing, or that forbids everything, does not show that a law can be
    /// broken: there the suite proves nothing.
    pub(crate) fn unproven(&self, groups: &[Group]) -> Vec<String> {
        let mut all = Vec::new();
        for group in groups {
            for (law, denies) in group.laws.names() {
                let Some(proof) = group.proof(denies) else { continue };
                for column in self.columns().into_iter().filter(|column| column.starts_with(proof)) {
                    for fs in PLACES {
                        if self.cell(column, group.name, law, fs) == Some(&Cell::Pass) {
                            all.push(format!("{}: {law}: holds in column {column} on {fs}", group.name));
                        }
                    }
                }
            }
        }
        all
    }

    /// Cells that are worse than those kept, and laws that nobody tries any more.
    pub(crate) fn worse_than(&self, kept: &Kept) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let ran = self.columns();
        for (column, group, law) in kept.cells.keys().filter(|(column, ..)| ran.contains(column.as_str())) {
            if self.marks(column, group, law).is_none() {
                all.insert(format!("{group}: {law}: {column}: the file has it, the suite has not"));
            }
        }
        for ((column, group, law, fs), cell) in &self.cells {
            // What the machine itself can load is no merit and no fault of ours.
            if is_proof(column) || column == HOST_COLUMN && matches!(cell, Cell::Skipped(_)) {
                continue;
            }
            let Some(marks) = kept.marks(column, group, law) else {
                all.insert(format!("{group}: laws of column {column} are missing in the file"));
                continue;
            };
            let index = PLACES.iter().position(|place| place == fs).unwrap_or(0);
            let then = marks.chars().nth(index).or(marks.chars().next()).unwrap_or('✗');
            if rank(mark(cell)) < rank(then) {
                all.insert(format!("{group}: {law}: {column} on {fs}: was {then}, is {cell:?}"));
            }
        }
        all
    }
}

/// Whether a column is there to show that the laws can be broken.
fn is_proof(column: &str) -> bool {
    column.starts_with("none") || column.starts_with("immutable")
}

/// The matrix as it was kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    cells: BTreeMap<(String, String, String), String>,
    /// Group, columns, and what is said of them.
    remarks: Vec<(String, String, String)>,
    hash: Option<String>,
    overhead: String,
}

impl Kept {
    /// Reads the tables of a matrix that was rendered before.
    pub(crate) fn parse(text: &str) -> Self {
        let (text, overhead) = text.split_at(text.find(overhead::HEADING).unwrap_or(text.len()));
        let mut kept = Self { overhead: overhead.to_owned(), ..Self::default() };
        let (mut group, mut columns) = (String::new(), Vec::new());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("## ") {
                name.clone_into(&mut group);
            } else if let Some(hash) = line.strip_prefix(HASH_LINE) {
                kept.hash = Some(hash.trim_matches(['`', '.']).to_owned());
            } else if let Some((columns, rest)) =
                line.strip_prefix("- ").and_then(|line| line.split_once(" on "))
            {
                kept.remarks.push((group.clone(), columns.to_owned(), rest.to_owned()));
            } else if let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) {
                let fields: Vec<_> = row.split(" | ").map(|field| field.trim().to_owned()).collect();
                if fields[0] == "law" {
                    columns = fields;
                    continue;
                }
                for (column, marks) in columns.iter().zip(&fields).skip(1).filter(|(_, m)| !m.is_empty()) {
                    kept.cells.insert((column.clone(), group.clone(), fields[0].clone()), marks.clone());
                }
            }
        }
        kept
    }

    fn marks(&self, column: &str, group: &str, law: &str) -> Option<String> {
        self.cells.get(&(column.to_owned(), group.to_owned(), law.to_owned())).cloned()
    }

    /// The section of what was measured.
    pub(crate) fn overhead(&self) -> &str {
        &self.overhead
    }

    /// Of what the columns of the patched kernel were made.
    pub(crate) fn hash(&self) -> Option<&str> {
        self.hash.as_deref()
    }
}

/// Begins the line that names what the patched kernel's columns were made of.
pub(crate) const HASH_LINE: &str = "Patch, configuration and suite of the patched kernel's columns: ";

/// A test of the tables themselves, as this test has no harness: what is rendered reads back, and a cell that
/// gets worse is seen, one that gets better is not.
pub(crate) fn check_itself(groups: &[Group]) -> Result<(), String> {
    for group in groups {
        let mut seen = BTreeSet::new();
        if let Some((twice, _)) = group.laws.names().into_iter().find(|(name, _)| !seen.insert(*name)) {
            return Err(format!("{}: two laws are named {twice}", group.name));
        }
    }
    let finding = |cell| {
        let (column, fs) = ("bpf 6.1".to_owned(), "xfs".to_owned());
        Finding { column, group: "open".into(), law: "creat".into(), fs, cell }
    };
    let matrix = |cell: &Cell| {
        let mut matrix = Matrix::default();
        for fs in ["ext4", "btrfs"] {
            matrix.add(Finding { fs: fs.into(), ..finding(Cell::Pass) });
        }
        matrix.add(Finding::parse(&finding(cell.clone()).line()).expect("a line of our own"));
        matrix
    };
    let cells = [Cell::Fail("went\tthrough".into()), Cell::Skipped("ENOSYS".into()), Cell::Pass];
    for (then_rank, then) in cells.iter().enumerate() {
        let kept = Kept::parse(&matrix(then).render(&["none 6.1", "bpf 6.1"], groups, &Kept::default()));
        for (now_rank, now) in cells.iter().enumerate() {
            if matrix(now).worse_than(&kept).is_empty() != (now_rank >= then_rank) {
                return Err(format!("from {then:?} to {now:?} is misjudged"));
            }
        }
    }
    let mut kept = Kept::parse(&matrix(&Cell::Pass).render(&["bpf 6.1"], groups, &Kept::default()));
    kept.cells.insert(("bpf 6.1".into(), "open".into(), "gone".into()), "✓".into());
    if matrix(&Cell::Pass).worse_than(&kept).len() != 1 {
        return Err("a law that is gone is not missed".into());
    }
    Ok(())
}
