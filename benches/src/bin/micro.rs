//! Where the time goes: walking, hashing and replacing names through the same calls as the tools, each
//! beside the physical limit that the same machine shows in the same minute.
#![allow(clippy::disallowed_methods)] // works in a scratch directory of its own

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Instant;

use benches::calls::{read_file, spread_over};
use benches::trees::{Shape, generate};
use benches::{Context, Format, Image, Result, Spread, table};
use clap::Parser;
use kernel::{At, Dir, EntryBuffer, Fs, Kind, Real};
use store::census::{Census, DirRow, FileRow, NONE};
use store::index::Index;
use store::{Access, IdentityPolicy, STORE_NAME, Store};

/// Measure walk, hash and exchange beside their limits.
#[derive(Parser)]
struct Options {
    /// Existing directory, in memory, for images and mounts
    #[arg(long)]
    scratch: PathBuf,
    /// A tenth of the work
    #[arg(long)]
    quick: bool,
    /// Repetitions; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) => {
            std::io::stdout().write_all(report.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            writeln!(std::io::stderr(), "micro: {error}").ok(); // nothing else is left to tell it to
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<String> {
    let parts = [walk(options)?, hash(options)?, replace(options)?, index(options)?];
    Ok(format!("## Micro benchmarks\n\nMedians of {} rounds, warm.\n\n{}", options.rounds, parts.join("\n")))
}

/// Median seconds of some rounds of `work`; what it says it took, so that it can leave out preparations.
fn median(rounds: usize, mut work: impl FnMut() -> Result<f64>) -> Result<f64> {
    let times = (0..rounds).map(|_| work()).collect::<Result<Vec<f64>>>()?;
    Ok(Spread::of(times).map_or(f64::NAN, |spread| spread.median))
}

/// Seconds that `work` took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// 1, and all cores where there are more.
fn thread_counts() -> Vec<usize> {
    let cores = available_parallelism().map_or(1, usize::from);
    if cores > 1 { vec![1, cores] } else { vec![1] }
}

// ---- walk

fn walk(options: &Options) -> Result<String> {
    let shape = Shape { guests: 12, shared: 10_000, private: 0, files_per_dir: 12 };
    let shape = if options.quick { Shape { shared: 1_000, ..shape } } else { shape };
    let image = Image::make(&options.scratch.join("walk"), Format::Ext4Tiny(shape.names() * 2), 2 << 30)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let guests = generate(mounted.path(), shape, 2)?;
    let per_entry = |threads: usize, stat: bool| {
        median(options.rounds, || timed(|| spread_over(threads, &guests, |guest| walk_guest(guest, stat))))
            .map(|seconds| seconds * 1e9 / (shape.names() + shape.dirs()) as f64)
    };
    let (entry_limit, stat_limit) = walk_limits(mounted.path(), shape.shared, options.rounds)?;
    let mut rows = vec![];
    for threads in thread_counts() {
        for (what, stat, limit) in
            [("getdents", false, entry_limit), ("getdents + statx", true, entry_limit + stat_limit)]
        {
            let cost = per_entry(threads, stat)?;
            let limit = limit / threads as f64;
            rows.push(vec![
                format!("{what}, {threads} at once"),
                format!("{cost:.0}"),
                format!("{limit:.0}"),
                format!("{:.2}", cost / limit),
            ]);
        }
    }
    Ok(format!(
        "### Walk\n\n{} names, {} in a directory, ext4. Limit: one huge directory, open already, read to its \
         end; and `statx` of one open file.\n\n{}",
        shape.names(),
        shape.files_per_dir,
        table(&["walk", "ns an entry", "limit", "×"], &rows)
    ))
}

fn walk_guest(guest: &Path, stat: bool) -> kernel::Result<()> {
    descend(&Dir::open_host(guest)?, stat, &mut EntryBuffer::default())
}

fn descend(dir: &Dir, stat: bool, buffer: &mut EntryBuffer) -> kernel::Result<()> {
    let mut below = vec![];
    dir.for_each(buffer, |entry| {
        if stat {
            std::hint::black_box(dir.stat(entry.name)?);
        }
        if entry.kind == Kind::Directory {
            below.push(entry.name.to_vec());
        }
        Ok::<(), kernel::Errno>(())
    })?;
    below.iter().try_for_each(|name| descend(&dir.open_dir(name)?, stat, buffer))
}

/// Nanoseconds an entry of a directory of `names` names, and a `statx` of an open file, cost at least.
fn walk_limits(place: &Path, names: u64, rounds: usize) -> Result<(f64, f64)> {
    std::fs::create_dir(place.join("huge")).context("making a huge directory")?;
    let huge = Dir::open_host(&place.join("huge")).context("opening it")?;
    for number in 0..names {
        Real.create(At::new(&huge, format!("file-{number:07}.so").as_bytes())).context("filling it")?;
    }
    let mut buffer = EntryBuffer::default();
    let entry = median(rounds, || {
        let dir = huge.reopen().context("opening it again")?;
        timed(|| dir.for_each(&mut buffer, |_| Ok::<(), kernel::Errno>(())).context("reading it"))
    })?;
    let file = huge.open_file(b"file-0000000.so").context("opening a file")?;
    let stat = median(rounds, || {
        timed(|| (0..names).try_for_each(|_| std::hint::black_box(file.stat()).map(|_| ())).context("statx"))
    })?;
    Ok((entry * 1e9 / names as f64, stat * 1e9 / names as f64))
}

// ---- hash

/// The class's name, a file's size, and the number of files.
const CLASSES: [(&str, usize, usize); 4] = [
    ("4 KiB", 4 << 10, 16_384),
    ("64 KiB", 64 << 10, 2_048),
    ("1 MiB", 1 << 20, 128),
    ("64 MiB", 64 << 20, 2),
];

fn hash(options: &Options) -> Result<String> {
    let image = Image::make(&options.scratch.join("hash"), Format::Ext4, 2 << 30)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let mut rows = vec![];
    for (class, size, count) in CLASSES {
        let count = if options.quick { count.div_ceil(10) } else { count };
        let place = mounted.path().join(class.replace(' ', ""));
        let names = fill(&place, size, count)?;
        let dir = Dir::open_host(&place).context("opening files to hash")?;
        let bytes = (size * count) as f64;
        let memory = vec![0x5a_u8; size.min(1 << 20)];
        for threads in thread_counts() {
            let rate = |work: &(dyn Fn(&String) -> kernel::Result<()> + Sync)| {
                median(options.rounds, || timed(|| spread_over(threads, &names, work)))
                    .map(|s| bytes / s / 1e6)
            };
            let read = rate(&|name| read_file(&dir, name.as_bytes(), |_| ()))?;
            let pure = rate(&|_| {
                hash_memory(&memory, size);
                Ok(())
            })?;
            let both = rate(&|name| hash_file(&dir, name))?;
            let limit = 1.0 / (1.0 / read + 1.0 / pure);
            let cells = [both, read, pure, limit].map(|rate| format!("{rate:.0}"));
            rows.push(
                [
                    vec![format!("{class}, {threads} at once")],
                    cells.into(),
                    vec![format!("{:.2}", limit / both)],
                ]
                .concat(),
            );
        }
    }
    Ok(format!(
        "### Hash\n\nMB/s of open, read into one buffer, BLAKE3, close. Limit: reading and hashing, each alone, \
         added up.\n\n{}",
        table(&["files of", "hash", "read only", "BLAKE3 in memory", "limit", "×"], &rows)
    ))
}

fn fill(place: &Path, size: usize, count: usize) -> Result<Vec<String>> {
    std::fs::create_dir(place).context("making files to hash")?;
    let mut content = vec![0_u8; size];
    (0..count)
        .map(|number| {
            content.chunks_mut(4096).for_each(|page| page[..8].copy_from_slice(&number.to_le_bytes()));
            let name = number.to_string();
            std::fs::write(place.join(&name), &content).context("writing files to hash").map(|()| name)
        })
        .collect()
}

fn hash_file(dir: &Dir, name: &str) -> kernel::Result<()> {
    let mut hasher = blake3::Hasher::new();
    read_file(dir, name.as_bytes(), |piece| {
        hasher.update(piece);
    })?;
    std::hint::black_box(hasher.finalize());
    Ok(())
}

/// Hashes `size` bytes that lie in memory.
fn hash_memory(memory: &[u8], size: usize) {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..size / memory.len() {
        hasher.update(memory);
    }
    std::hint::black_box(hasher.finalize());
}

// ---- replace

/// Directories that the replaced names lie in.
const DIRECTORIES: usize = 200;

/// The ways of replacing a name, and the single calls they are made of.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Link into a parked directory, exchange, look at what was displaced; unlink it at the end.
    Parked,
    /// Only the link into the parked directory.
    Link,
    /// Link to a temporary name in the same directory, rename over: what a crash or race makes unsafe.
    RenameOver,
}

fn replace(options: &Options) -> Result<String> {
    let count = if options.quick { 2_000 } else { 20_000 };
    let mut rows = vec![];
    for (name, format) in [("ext4", Format::Ext4), ("xfs", Format::Xfs)] {
        for threads in thread_counts() {
            let cost = |way| {
                median(options.rounds, || replace_once(options, format, way, count, threads))
                    .map(|seconds| seconds * 1e6 / count as f64)
            };
            let [link, over, parked] = [cost(Way::Link)?, cost(Way::RenameOver)?, cost(Way::Parked)?];
            let cells = [parked, link, over, parked / over].map(|cost| format!("{cost:.1}"));
            rows.push([vec![format!("{name}, {threads} at once")], cells.into()].concat());
        }
    }
    Ok(format!(
        "### Replace\n\nµs a name, `syncfs` included: {count} small files in {DIRECTORIES} directories. Limit: \
         link and rename-over in the guest's own directory, which a crash or a race makes unsafe.\n\n{}",
        table(
            &["file system", "link, exchange, stat, unlink", "link alone", "limit: rename over", "×"],
            &rows
        )
    ))
}

/// Seconds for replacing `count` names on a new file system.
fn replace_once(options: &Options, format: Format, way: Way, count: usize, threads: usize) -> Result<f64> {
    let image = Image::make(&options.scratch.join("replace"), format, 1 << 30)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let store = Dir::open_host(mounted.path()).context("opening the file system")?;
    let per_dir = count / DIRECTORIES;
    let prepare = || -> kernel::Result<Vec<(usize, Dir)>> {
        Real.make_dir(At::new(&store, b"objects"), 0o700)?;
        Real.make_dir(At::new(&store, b"parked"), 0o700)?;
        let objects = store.open_dir(b"objects")?;
        small_files(&objects, 0..count)?;
        (0..DIRECTORIES)
            .map(|number| {
                let name = format!("dir{number}");
                Real.make_dir(At::new(&store, name.as_bytes()), 0o755)?;
                let dir = store.open_dir(name.as_bytes())?;
                small_files(&dir, number * per_dir..(number + 1) * per_dir)?;
                Ok((number, dir))
            })
            .collect()
    };
    let dirs = prepare().context("preparing files to replace")?;
    let objects = store.open_dir(b"objects").context("opening objects")?;
    let parked = store.open_dir(b"parked").context("opening the parked directory")?;
    mounted.sync()?;
    timed(|| {
        spread_over(threads, &dirs, |(number, dir)| {
            (number * per_dir..(number + 1) * per_dir)
                .try_for_each(|file| replace_name(way, &objects, &parked, dir, file))
        })?;
        Real.sync(&store).context("syncfs")?;
        if way != Way::Parked {
            return Ok(());
        }
        spread_over(threads, &dirs, |(number, _)| {
            let mut files = number * per_dir..(number + 1) * per_dir;
            files.try_for_each(|file| Real.unlink(At::new(&parked, file.to_string().as_bytes())))
        })?;
        Ok(())
    })
}

fn replace_name(way: Way, objects: &Dir, parked: &Dir, dir: &Dir, file: usize) -> kernel::Result<()> {
    let name = file.to_string();
    let name = name.as_bytes();
    let (object, aside, place) = (At::new(objects, name), At::new(parked, name), At::new(dir, name));
    match way {
        Way::Link => Real.link(object, aside),
        Way::RenameOver => {
            let temporary = [b".", name].concat();
            Real.link(object, At::new(dir, &temporary))?;
            // Real has no rename over another name: nothing but a benchmark may do that.
            rustix::fs::renameat(dir, &temporary, dir, name)
        }
        Way::Parked => {
            Real.link(object, aside)?;
            Real.exchange(aside, place)?;
            std::hint::black_box(parked.stat(name)?);
            Ok(())
        }
    }
}

fn small_files(dir: &Dir, mut numbers: std::ops::Range<usize>) -> kernel::Result<()> {
    numbers.try_for_each(|number| {
        let file = Real.create(At::new(dir, number.to_string().as_bytes()))?;
        Real.write_at(&file, b"a small file's content", 0)
    })
}

// ---- index ----

/// Rows like those of a large guest: a tenth of its names are private.
fn census(files: u32) -> Census {
    const FILES_PER_DIR: u32 = 8;
    let mut census = Census::default();
    let root = census.add_name(b"");
    let dir = |name, number: u32| DirRow {
        stamp: 1 + u64::from(number),
        name,
        parent: 0,
        first_dir: NONE,
        first_file: number.saturating_sub(1) * FILES_PER_DIR,
        unified: 0,
        fixed: 0,
    };
    let dirs = files / FILES_PER_DIR;
    census.dirs.push(DirRow { first_dir: 1, ..dir(root, 0) });
    for number in 1..=dirs {
        let name = census.add_name(format!("directory{number}").as_bytes());
        census.dirs.push(dir(name, number));
    }
    for number in 0..dirs * FILES_PER_DIR {
        let name = census.add_name(format!("file-name-{number}").as_bytes());
        let ino = u64::from(number);
        let dir = 1 + number / FILES_PER_DIR;
        census.files.push(FileRow {
            ino,
            ctime: 1,
            size: 1,
            class: ino,
            name,
            dir,
            id: NONE,
            nlink: 1,
            state: 0,
        });
    }
    census
}

/// Loading and storing what is known of a guest, beside copying as many bytes in memory.
fn index(options: &Options) -> Result<String> {
    let image = Image::make(&options.scratch.join("index"), Format::Ext4, 2 << 30)?;
    let mounted = image.mount(&options.scratch.join("mnt"))?;
    let failed = |error: store::Error| std::io::Error::other(error.to_string());
    let path = mounted.path().join(STORE_NAME);
    Store::create(&Real, &path, IdentityPolicy::Full).map_err(failed).context("making a store")?;
    let store = Store::open(&Real, &path, Access::Write, None).map_err(failed).context("opening a store")?;
    let mut index = Index::open(&store).map_err(failed).context("opening an index")?;
    let (guest, mut rows) = (Path::new("guest"), vec![]);
    for files in [10_000, 100_000, 1_000_000] {
        let files = if options.quick { files / 10 } else { files };
        let census = census(files);
        let bytes = 40 * census.dirs.len() + 48 * census.files.len() + census.names.len();
        let save = median(options.rounds, || {
            timed(|| index.store(&[(guest.into(), Some(&census))], None).map_err(failed).context("storing"))
        })?;
        let load = median(options.rounds, || {
            timed(|| {
                index.census(guest).map(drop).ok_or_else(|| std::io::Error::other("lost")).context("loading")
            })
        })?;
        let memory = vec![1_u8; bytes];
        let copy = median(options.rounds, || {
            timed(|| {
                drop(std::hint::black_box(memory.clone()));
                Ok(())
            })
        })?;
        let cells = [save, load, copy].map(|s| format!("{:.1}", s * 1e3));
        rows.push([vec![files.to_string(), format!("{:.1}", bytes as f64 / 1e6)], cells.into()].concat());
    }
    Ok(format!(
        "### Index\n\nMilliseconds for the census of one guest: stored durably in one transaction, loaded and checked. \
         Limit of loading: copying as many bytes.\n\n{}",
        table(&["private files", "MB", "store", "load", "copy"], &rows)
    ))
}
