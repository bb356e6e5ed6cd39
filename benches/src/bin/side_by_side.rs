//! Runs tools that unify files side by side: each on its own copy of one file system image, in rounds whose
//! order rotates. Prints a report in Markdown and writes every measurement to a CSV file.
#![allow(clippy::disallowed_methods)] // works in a scratch directory of its own

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use benches::{Context, Format, Image, Mounted, Result, Spread, Tool, Usage, load, measure, shell, table};
use clap::Parser;

/// Size of the image: sparse, so only what the guests need is taken from memory.
const IMAGE_BYTES: u64 = 12 << 30;

/// Compare tools that unify files.
#[derive(Parser)]
struct Options {
    /// Directory of the corpus
    #[arg(long)]
    corpus: PathBuf,
    /// The program that makes clones of guests
    #[arg(long)]
    cloner: PathBuf,
    /// List of tools
    #[arg(long)]
    tools: PathBuf,
    /// Only these, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many guests; beyond the corpus, clones are made. Several numbers give several tables
    #[arg(long, value_delimiter = ',', default_value = "8,100")]
    guests: Vec<usize>,
    /// Rounds of all tools
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Runs over unchanged guests after each first run; long ones are not repeated
    #[arg(long, default_value_t = 3)]
    again: usize,
    /// Existing directory, in memory, for images and mounts
    #[arg(long)]
    scratch: PathBuf,
    /// File for the raw measurements
    #[arg(long)]
    csv: PathBuf,
}

/// Seconds; what takes longer is steady enough to be measured once a round.
const LONG: f64 = 2.0;

/// Stands for a tool in measurements of trees that no tool has touched.
const UNTOUCHED: &str = "(untouched)";

/// One measurement.
struct Row {
    guests: usize,
    round: usize,
    tool: String,
    phase: &'static str,
    usage: Usage,
    /// Bytes in use on the file system afterwards.
    used: u64,
}

/// Everything a trial needs to know.
struct Bench<'a> {
    options: &'a Options,
    raw: File,
    rows: Vec<Row>,
    /// Bytes hashed and seconds spent on it in the first run of the tool that tells.
    hashed: Option<(f64, f64)>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) => {
            std::io::stdout().write_all(report.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            say(&format!("side-by-side: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Progress, for whoever waits.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok(); // nobody is listening; the report still comes
}

fn run(options: &Options) -> Result<String> {
    let mut report = String::from("## Tools side by side\n\n");
    let tools = present(options, &mut report)?;
    let raw = File::create(&options.csv).context(format!("making {}", options.csv.display()))?;
    let mut bench = Bench { options, raw, rows: vec![], hashed: None };
    bench.line("guests,round,tool,phase,run_s,sync_s,user_s,system_s,rss_kib,status,used_bytes")?;
    for &guests in &options.guests {
        let (image, facts) = pristine(options, guests)?;
        bench.hashed = None;
        for round in 0..options.rounds {
            for place in 0..tools.len() {
                bench.trial(&image, guests, round, Some(&tools[(place + round) % tools.len()]))?;
            }
            bench.trial(&image, guests, round, None)?;
        }
        let tables = bench.summary(guests, &tools);
        report.extend(["\n### ", &guests.to_string(), " guests\n\n", &facts, "\n\n", &tables]);
    }
    Ok(report)
}

/// The tools that can be measured; the report says which and which not.
fn present(options: &Options, report: &mut String) -> Result<Vec<Tool>> {
    let mut there = vec![];
    for tool in load(&options.tools)? {
        if !options.only.is_empty() && !options.only.contains(&tool.name) {
            continue;
        }
        match tool.version() {
            Ok(version) => {
                report.extend(["- ", &tool.name, ": ", &version, "; `", tool.template(), "`\n"]);
                there.push(tool);
            }
            Err(reason) => {
                say(&format!("left out: {reason}"));
                report.extend(["- ", &tool.name, ": **left out**, ", &reason, "\n"]);
            }
        }
    }
    Ok(there)
}

/// The image that every trial starts from, and a line on what it holds.
fn pristine(options: &Options, guests: usize) -> Result<(Image, String)> {
    say(&format!("{guests} guests: making the image"));
    let image = Image::make(&options.scratch.join("pristine"), Format::Ext4, IMAGE_BYTES)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let place = mounted.path().join("guests");
    shell(&format!("cp -a {}/guests {}", options.corpus.display(), place.display()))?;
    shell(&format!("{} clones {} {guests}", options.cloner.display(), place.display()))?;
    let count = |what: &str| shell(&format!("find {} -type {what} | wc -l", place.display()));
    let facts = format!(
        "{} files in {} directories, {:.2} GB on disk; made by `{}`, mounted as {}; warm.",
        count("f")?.trim(),
        count("d")?.trim(),
        mounted.used()? as f64 / 1e9,
        Format::Ext4.command(),
        mounted.options()?,
    );
    Ok((image, facts))
}

impl Bench<'_> {
    /// One tool on a fresh copy of the image: first run, runs over unchanged guests, and what it costs
    /// just to look at the same trees. Without a tool: what it costs to look at and to hash what none has
    /// touched.
    fn trial(&mut self, pristine: &Image, guests: usize, round: usize, tool: Option<&Tool>) -> Result<()> {
        let scratch = &self.options.scratch;
        let image = pristine.copy(&scratch.join("trial"))?;
        let mounted = image.mount(&scratch.join("mnt"))?;
        let work = scratch.join("work");
        std::fs::create_dir_all(&work).context("making a work directory")?;
        let roots = roots(&mounted)?;
        warm(&mounted)?;
        let all = roots.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
        let mut steps = match tool.map(|tool| tool.commands(&roots, &work)) {
            Some((first, again)) => {
                [vec![("first", first)], vec![("again", again); self.options.again]].concat()
            }
            None => checksums(&all, &work)?,
        };
        steps.extend(vec![("find", format!("find {all} -size +1G")); self.options.again]);
        steps.push(("du", format!("du -s {all}")));
        let name = tool.map_or(UNTOUCHED, |tool| &tool.name);
        let mut last = ("", 0.0);
        for (phase, command) in steps {
            if last.0 == phase && last.1 > LONG {
                continue;
            }
            mounted.sync()?;
            let usage = measure(&command, mounted.path(), &work.join(phase))?;
            last = (phase, usage.wall());
            if usage.status != 0 && phase == "first" {
                say(&format!("{name} ended with {}: {}", usage.status, tail(&work.join(phase))));
            }
            self.hashed =
                self.hashed.or_else(|| hashing_figure(&work.join(phase)).filter(|_| phase == "first"));
            self.note(Row { guests, round, tool: name.into(), phase, usage, used: mounted.used()? })?;
        }
        Ok(())
    }

    fn note(&mut self, row: Row) -> Result<()> {
        let Usage { run, sync, user, system, rss, status } = row.usage;
        let Row { guests, round, tool, phase, used, .. } = &row;
        say(&format!("{guests} guests, round {round}: {tool} {phase}: {:.3} s, {rss} KiB", run + sync));
        self.line(&format!(
            "{guests},{round},{tool},{phase},{run:.6},{sync:.6},{user:.6},{system:.6},{rss},{status},{used}"
        ))?;
        self.rows.push(row);
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.raw, "{line}").context("writing measurements")
    }

    /// All measurements of one kind.
    fn spread(&self, guests: usize, tool: &str, phase: &str, value: impl Fn(&Row) -> f64) -> Option<Spread> {
        let rows =
            self.rows.iter().filter(|row| row.guests == guests && row.tool == tool && row.phase == phase);
        Spread::of(rows.map(value))
    }

    fn wall(&self, guests: usize, tool: &str, phase: &str) -> Option<Spread> {
        self.spread(guests, tool, phase, |row| row.usage.wall())
    }

    /// The tables of one set of guests.
    fn summary(&self, guests: usize, tools: &[Tool]) -> String {
        let ratio = |tool: &str, phase: &str, to: &str| {
            let pair = self.wall(guests, tool, phase).zip(self.wall(guests, to, phase));
            pair.map_or(String::new(), |(a, b)| format!("{:.2}", a.median / b.median))
        };
        let cell = |spread: Option<Spread>, scale: f64, digits: usize| {
            spread.map_or(String::new(), |s| format!("{:.digits$}", s.median / scale))
        };
        let range = |spread: Option<Spread>| {
            spread.map_or(String::new(), |s| format!("{:.3} ({:.3} to {:.3})", s.median, s.min, s.max))
        };
        let rows: Vec<Vec<String>> = tools
            .iter()
            .map(|Tool { name, .. }| {
                let cpu = self.spread(guests, name, "first", |row| row.usage.user + row.usage.system);
                let rss = |phase| self.spread(guests, name, phase, |row| row.usage.rss as f64);
                vec![
                    name.clone(),
                    range(self.wall(guests, name, "first")),
                    ratio(name, "first", "vunify"),
                    ratio(name, "first", "hardlink"),
                    cell(cpu, 1.0, 2),
                    cell(rss("first"), 1024.0, 0),
                    range(self.wall(guests, name, "again")),
                    ratio(name, "again", "vunify"),
                    cell(rss("again"), 1024.0, 0),
                    cell(self.wall(guests, name, "find"), 1.0, 3),
                    cell(self.wall(guests, name, "du"), 1.0, 3),
                    cell(self.spread(guests, name, "first", |row| row.used as f64), 1e9, 2),
                ]
            })
            .collect();
        let head = [
            "tool",
            "first, s",
            "÷ vunify",
            "÷ hardlink",
            "CPU, s",
            "MiB",
            "again, s",
            "÷ vunify",
            "MiB",
            "find, s",
            "du, s",
            "left, GB",
        ];
        table(&head, &rows) + &self.floor(guests)
    }

    /// What looking and hashing cost by themselves.
    fn floor(&self, guests: usize) -> String {
        let line = |(phase, what): (&str, &str)| {
            let spread = self.wall(guests, UNTOUCHED, phase)?;
            Some(format!("- {what}: {:.3} s ({:.3} to {:.3})\n", spread.median, spread.min, spread.max))
        };
        let lines = [
            ("b3sum", "`b3sum` over every file with company in size, mode, owner and time"),
            ("b3sum-parallel", "the same with a process for each core"),
            ("find", "`find -size +1G` over untouched guests"),
            ("du", "`du -s` over untouched guests"),
        ];
        let own = self.hashed.map(|(bytes, seconds)| {
            format!(
                "- hashing in the first run, by its own account: {:.2} GB in {seconds:.3} s\n",
                bytes / 1e9
            )
        });
        format!("\n{}", lines.into_iter().filter_map(line).chain(own).collect::<String>())
    }
}

/// The guests, sorted; a store beside them is none.
fn roots(mounted: &Mounted) -> Result<Vec<PathBuf>> {
    let place = mounted.path().join("guests");
    let found = shell(&format!("ls -d {}/*/", place.display()))?;
    Ok(found.lines().map(|line| PathBuf::from(line.trim_end_matches('/'))).collect())
}

/// Brings names and inodes into memory, and each content once.
fn warm(mounted: &Mounted) -> Result<()> {
    let at = mounted.path().display();
    shell(&format!(
        r"find {at} -type f -printf '%i\t%p\n' | awk -F '\t' '!seen[$1]++ {{ print $2 }}' |
          xargs -d '\n' -P 2 -n 500 cat >/dev/null"
    ))
    .map(drop)
}

/// Commands that hash what a first run has to: each inode that shares size, mode, owner and modification
/// time with another.
fn checksums(all: &str, work: &Path) -> Result<Vec<(&'static str, String)>> {
    let list = work.join("candidates").display().to_string();
    shell(&format!(
        r"find {all} -type f -size +0 -printf '%s %m %U %G %T@\t%i\t%p\n' |
          awk -F '\t' '
              !seen[$2]++ {{ class[n] = $1; name[n++] = $3; count[$1]++ }}
              END {{ for (i = 0; i < n; i++) if (count[class[i]] > 1) print name[i] }}' >{list}"
    ))?;
    let run = |how: &str, tool: &str| format!(r"xargs -d '\n' {how} {tool} <{list} >/dev/null");
    Ok(vec![
        ("b3sum", run("", "b3sum")),
        ("b3sum-parallel", run("-P $(nproc) -n 200", "b3sum --num-threads 1")),
    ])
}

/// Bytes hashed and seconds taken, where a tool's last line of output is a JSON object that tells.
fn hashing_figure(output: &Path) -> Option<(f64, f64)> {
    let text = std::fs::read_to_string(output).ok()?;
    let summary: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    Some((summary.get("bytes_read")?.as_f64()?, summary.get("read_seconds")?.as_f64()?))
}

/// The end of what a command printed.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(500)..]).trim().to_owned()
}
