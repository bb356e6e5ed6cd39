//! Medians, tables and straight lines.

use std::fmt::Write;

/// Median, least and greatest of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of at least one measurement.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// Least squares: the coefficients `c` that bring the rows' `x · c` nearest to their `y`. `None` if the
/// rows don't determine them.
pub fn fit(rows: &[(Vec<f64>, f64)]) -> Option<Vec<f64>> {
    let unknowns = rows.first()?.0.len();
    // Normal equations, each as unknowns + 1 numbers.
    let mut system: Vec<Vec<f64>> = (0..unknowns)
        .map(|i| {
            let left = (0..unknowns).map(|j| rows.iter().map(|(x, _)| x[i] * x[j]).sum());
            left.chain([rows.iter().map(|(x, y)| x[i] * y).sum()]).collect()
        })
        .collect();
    for column in 0..unknowns {
        let pivot = (column..unknowns)
            .max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))?;
        system.swap(column, pivot);
        let head = system[column].clone();
        let scale = rows.iter().map(|(x, _)| x[column] * x[column]).sum::<f64>();
        if head[column].abs() <= 1e-9 * scale {
            return None;
        }
        for (row, line) in system.iter_mut().enumerate() {
            let factor = if row == column { 0.0 } else { line[column] / head[column] };
            line.iter_mut().zip(&head).for_each(|(cell, above)| *cell -= factor * above);
        }
    }
    Some((0..unknowns).map(|i| system[i][unknowns] / system[i][i]).collect())
}

/// A Markdown table; all columns but the first are aligned to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("| {} |\n|---|{}\n", head.join(" | "), "---:|".repeat(head.len() - 1));
    for row in rows {
        writeln!(out, "| {} |", row.join(" | ")).ok(); // a String takes all
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_fit_finds_what_the_rows_were_made_of() {
        let rows: Vec<_> = [(1.0, 7.0), (2.0, 1.0), (5.0, 3.0), (9.0, 9.0)]
            .map(|(a, b)| (vec![1.0, a * 1e6, b], 32e6 + 100.0 * a * 1e6 - 4.0 * b))
            .into();
        let found = fit(&rows).unwrap();
        for (value, wanted) in found.iter().zip([32e6, 100.0, -4.0]) {
            assert!((value - wanted).abs() < 1e-3 * wanted.abs(), "{found:?}");
        }
    }

    #[test]
    fn a_fit_refuses_columns_that_move_together() {
        assert_eq!(fit(&[(vec![1.0, 2.0], 1.0), (vec![2.0, 4.0], 2.0), (vec![3.0, 6.0], 3.0)]), None);
    }
}
