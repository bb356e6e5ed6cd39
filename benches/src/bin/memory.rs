//! How a tool's memory grows with the tree: peak resident set of a first run, of a run over unchanged guests
//! and of taking it all back on generated trees, and by least squares what a name, an object, a private file
//! and a directory each add.
#![allow(clippy::disallowed_methods)] // works in a scratch directory of its own

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use benches::trees::{Shape, generate};
use benches::{Context, Error, Format, Image, Result, Tool, Usage, fit, load, measure, table};
use clap::Parser;

/// Measure how memory grows with names, objects, private files and directories.
#[derive(Parser)]
struct Options {
    /// List of tools
    #[arg(long)]
    tools: PathBuf,
    /// The tool to measure
    #[arg(long, default_value = "vunify")]
    only: String,
    /// Names of the trees along the curve; variants of the second one tell the kinds apart
    #[arg(long, value_delimiter = ',', default_value = "250000,500000,1000000,2000000")]
    names: Vec<u64>,
    /// Existing directory, in memory, for images and mounts
    #[arg(long)]
    scratch: PathBuf,
    /// File for the raw measurements
    #[arg(long)]
    csv: PathBuf,
}

/// One tree and what the tool took for it.
struct Row {
    shape: Shape,
    first: Usage,
    again: Usage,
    /// None for a tool that can't.
    undo: Option<Usage>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) => {
            std::io::stdout().write_all(report.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            writeln!(std::io::stderr(), "memory: {error}").ok(); // nothing else is left to tell it to
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<String> {
    let tool = load(&options.tools)?.into_iter().find(|tool| tool.name == options.only);
    let version = tool.as_ref().map_or_else(|| Err(format!("no tool {}", options.only)), Tool::version);
    let (Some(tool), Ok(version)) = (tool, &version) else {
        return Ok(format!("## Memory\n\nLeft out: {}\n", version.err().unwrap_or_default()));
    };
    let mut raw = File::create(&options.csv).context(format!("making {}", options.csv.display()))?;
    let head = "names,objects,private,dirs,first_s,first_rss_kib,again_s,again_rss_kib,again_find_s,undo_s,undo_rss_kib";
    writeln!(raw, "{head}").context("writing measurements")?;
    let rows = shapes(&options.names).into_iter().map(|shape| {
        let (row, find) = trial(options, &tool, shape)?;
        let (first, again) = (row.first, row.again);
        let undo = row.undo.map_or(",".into(), |undo| format!("{:.3},{}", undo.wall(), undo.rss));
        let Shape { shared, .. } = shape;
        let line = format!(
            "{},{shared},{},{},{:.3},{},{:.3},{},{:.3},{undo}",
            shape.names(),
            shape.privates(),
            shape.dirs(),
            first.wall(),
            first.rss,
            again.wall(),
            again.rss,
            find.wall(),
        );
        writeln!(std::io::stderr(), "memory: {line}").ok(); // progress for whoever waits
        writeln!(raw, "{line}").context("writing measurements")?;
        Ok(row)
    });
    Ok(report(&tool.name, version, &rows.collect::<Result<Vec<_>>>()?))
}

/// The curve, and variants of one point on it that have more objects, private files and directories for
/// the same number of names.
fn shapes(names: &[u64]) -> Vec<Shape> {
    let usual = |names: u64| Shape {
        guests: (names / 20_000).max(2),
        shared: 20_000.min(names / 2) * 98 / 100,
        private: 20_000.min(names / 2) * 2 / 100,
        files_per_dir: 12,
    };
    let mut shapes: Vec<Shape> = names.iter().copied().map(usual).collect();
    if let Some(base) = shapes.get(1).copied() {
        let Shape { guests, shared, private, .. } = base;
        let fewer = guests.div_ceil(5).max(2);
        shapes.push(Shape { guests: fewer, shared: shared * guests / fewer, private, ..base });
        shapes.push(Shape { shared: shared / 2, private: private + shared / 2, ..base });
        shapes.push(Shape { files_per_dir: 3, ..base });
    }
    shapes
}

/// A first run, a run over unchanged guests with `find` beside it, and an undo.
fn trial(options: &Options, tool: &Tool, shape: Shape) -> Result<(Row, Usage)> {
    // Room for the store's own names and parked inodes; a directory takes a block of its own.
    let inodes = (shape.names() + shape.dirs()) * 6 / 5 + 100_000;
    let bytes = inodes * 256 + shape.dirs() * 8192 + shape.names() * 400 + (1 << 30);
    let image = Image::make(&options.scratch.join("tree"), Format::Ext4Tiny(inodes), bytes)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let place = mounted.path().join("guests");
    let guests = generate(&place, shape, available_parallelism().map_or(1, usize::from))?;
    let work = options.scratch.join("work");
    std::fs::create_dir_all(&work).context("making a work directory")?;
    let (first, again) = tool.commands(&guests, &work);
    let find = format!("find {} -size +1G", place.display());
    let timed = |command: &str| -> Result<Usage> {
        mounted.sync()?;
        let output = work.join("output");
        let usage = measure(command, mounted.path(), &output)?;
        if usage.status == 0 {
            return Ok(usage);
        }
        let output = std::fs::read_to_string(output).unwrap_or_default();
        Err(Error::Command { command: tool.template().into(), output: output.chars().take(2000).collect() })
    };
    let (first, again, find) = (timed(&first)?, timed(&again)?, timed(&find)?);
    let undo = tool.undo(&guests, &work).map(|command| timed(&command)).transpose()?;
    Ok((Row { shape, first, again, undo }, find))
}

fn report(tool: &str, version: &str, rows: &[Row]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|Row { shape, first, again, undo }| {
            let undo_cell = |cell: fn(&Usage) -> String| undo.as_ref().map_or("-".into(), cell);
            vec![
                shape.names().to_string(),
                shape.shared.to_string(),
                shape.privates().to_string(),
                shape.dirs().to_string(),
                format!("{:.1}", first.wall()),
                format!("{:.1}", first.rss as f64 / 1024.0),
                format!("{:.0}", first.rss as f64 * 1024.0 / shape.names() as f64),
                format!("{:.2}", again.wall()),
                format!("{:.1}", again.rss as f64 / 1024.0),
                undo_cell(|undo| format!("{:.1}", undo.wall())),
                undo_cell(|undo| format!("{:.1}", undo.rss as f64 / 1024.0)),
            ]
        })
        .collect();
    let head = [
        "names",
        "objects",
        "private files",
        "directories",
        "first, s",
        "first, MiB",
        "B a name",
        "again, s",
        "again, MiB",
        "undo, s",
        "undo, MiB",
    ];
    let curve = table(&head, &lines);
    format!(
        "## Memory\n\n{tool} ({version}) on generated trees: peak resident set of its largest process.\n\n\
         {curve}\nLeast squares, in bytes:\n\n{}",
        growth(rows)
    )
}

/// What each kind of thing adds, for all runs.
fn growth(rows: &[Row]) -> String {
    let of = |usage: fn(&Row) -> Option<&Usage>| {
        let rows: Vec<(&Row, u64)> = rows.iter().filter_map(|row| Some((row, usage(row)?.rss))).collect();
        let points: Vec<(Vec<f64>, f64)> = rows
            .iter()
            .map(|(row, rss)| {
                let Shape { shared, .. } = row.shape;
                let counts = [1, row.shape.names(), shared, row.shape.privates(), row.shape.dirs()];
                (counts.map(|count| count as f64).into(), *rss as f64 * 1024.0)
            })
            .collect();
        (points.len() >= 5).then(|| fit(&points)).flatten()
    };
    let line = |run: &str, found: Option<Vec<f64>>| {
        let cells = found.map_or(vec!["not determined".into()], |found| {
            let each = found[1..].iter().map(|bytes| format!("{:.0}", bytes.round() + 0.0));
            [format!("{:.1} MiB", found[0] / 1_048_576.0)].into_iter().chain(each).collect()
        });
        [vec![run.to_owned()], cells].concat()
    };
    let rows = [
        line("first", of(|row| Some(&row.first))),
        line("again", of(|row| Some(&row.again))),
        line("undo", of(|row| row.undo.as_ref())),
    ];
    table(&["run", "fixed", "a name", "an object", "a private file", "a directory"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_tell_all_kinds_apart() {
        let usage = |rss: u64| Usage { run: 1.0, sync: 0.0, user: 0.0, system: 0.0, rss, status: 0 };
        let rows: Vec<Row> = shapes(&[250_000, 500_000, 1_000_000, 2_000_000])
            .into_iter()
            .map(|shape| {
                let bytes = (16 << 20) + 32 * shape.shared + 200 * shape.privates() + 64 * shape.dirs();
                let first = usage((bytes + 100 * shape.names()) / 1024);
                Row { shape, first, again: usage(bytes / 1024), undo: None }
            })
            .collect();
        let text = growth(&rows);
        assert!(text.contains("| first | 16.0 MiB | 100 | 32 | 200 | 64 |"), "{text}");
        assert!(text.contains("| again | 16.0 MiB | 0 | 32 | 200 | 64 |"), "{text}");
        assert!(text.contains("| undo | not determined |"), "{text}");
    }
}
