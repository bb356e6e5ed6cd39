//! Aligned tables.

use std::fmt;

use unicode_width::UnicodeWidthStr as _;

use crate::text::defuse;

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Figures.
    Right,
}

/// Rows under headings, two spaces between columns, as wide as the widest cell, no trailing blanks.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these headings and no rows.
    pub fn new(columns: [(&str, Align); N]) -> Self {
        Self {
            align: columns.map(|(_, align)| align),
            rows: vec![columns.map(|(heading, _)| heading.into())],
        }
    }

    /// Adds a row. Characters that could drive a terminal are escaped, line ends too.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| defuse(&cell, &[]).into_owned()));
    }

    /// Whether there are only headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        for (at, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.align) {
                let pad = " ".repeat(width - cell.width());
                match align {
                    Align::Left => line.extend([cell, &pad, "  "]),
                    Align::Right => line.extend([&pad, cell.as_str(), "  "]),
                }
            }
            write!(out, "{}{}", if at > 0 { "\n" } else { "" }, line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([("GUEST", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        assert!(table.is_empty());
        table.row(["web1".into(), "1.4 GB".into(), String::new()]);
        table.row(["d\u{e4}t\u{1f600}-long".into(), "3 kB".into(), "x\ny".into()]);
        let expected = "GUEST         SIZE  NOTE\nweb1        1.4 GB\nd\u{e4}t\u{1f600}-long    3 kB  x\\ny";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn no_rows_gives_headings() {
        assert_eq!(Table::new([("A", Align::Left), ("B", Align::Right)]).to_string(), "A  B");
    }
}
