//! The calls of a first run and nothing else: walk, hash, link, exchange, unlink. No policy, no journal, no proof of
//! anything. It shows what a first run can't be faster than, and is safe for nothing but a copy of a tree.
#![allow(clippy::disallowed_methods)] // the trees are the benchmark's own

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use benches::calls::{read_file, spread_over};
use benches::{Context, Result};
use clap::Parser;
use kernel::{At, Dir, EntryBuffer, Fs, Kind, Leased, Real, Stat, Time};

/// Join equal files of guests by bare calls: for measurements, on guests that nobody needs
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Link beside a name and rename over it, where a crash or a race loses files
    #[arg(long)]
    rename: bool,
    /// The guests' roots; what lies in their etc and var stays as it is
    #[arg(required = true)]
    guests: Vec<PathBuf>,
}

/// A directory with its regular files.
struct Directory {
    path: PathBuf,
    mtime: Time,
    files: Vec<(Vec<u8>, Stat)>,
}

impl Directory {
    fn open(&self) -> kernel::Result<Dir> {
        Dir::open_host(&self.path)
    }
}

/// A name: its directory, and its place there.
type Name = (usize, usize);

/// What is equal before contents are looked at.
type Class = (u64, u32, u32, u32, Time);

fn class(stat: &Stat) -> Class {
    (stat.size, stat.mode, stat.uid, stat.gid, stat.mtime)
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "bare: {error}").ok(); // nothing else is left to tell it to
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let threads = available_parallelism().map_or(1, usize::from);
    let dirs = walk(threads, &options.guests)?;
    let groups = equal(threads, &dirs)?;
    let beside = options.guests[0].parent().unwrap_or(Path::new("/"));
    let place = Place::make(&beside.join(".bare")).context("making a place for objects")?;
    let objects: Vec<usize> = (0..groups.len()).collect();
    spread_over(threads, &objects, |object| {
        let (dir, file) = groups[*object].0;
        let from = dirs[dir].open()?;
        place.with_object(*object, |to| Real.link(At::new(&from, &dirs[dir].files[file].0), to))
    })?;
    let mut moves: Vec<Vec<(usize, usize)>> = vec![vec![]; dirs.len()];
    for (object, (_, names)) in groups.iter().enumerate() {
        names.iter().for_each(|(dir, file)| moves[*dir].push((*file, object)));
    }
    let moves: Vec<(usize, Vec<(usize, usize)>)> =
        moves.into_iter().enumerate().filter(|(_, moves)| !moves.is_empty()).collect();
    spread_over(threads, &moves, |(dir, moves)| {
        let at = dirs[*dir].open()?;
        for (file, object) in moves {
            let name = At::new(&at, &dirs[*dir].files[*file].0);
            if options.rename {
                place.with_object(*object, |object| rename_over(object, name))?;
            } else {
                place.with_object(*object, |object| {
                    place.with_parked((*dir, *file), |to| exchange(object, to, name))
                })?;
            }
        }
        Real.set_dir_mtime(&at, dirs[*dir].mtime)
    })?;
    if options.rename {
        return Ok(());
    }
    Real.sync(&place.objects[0]).context("syncfs")?;
    spread_over(threads, &moves, |(dir, moves)| {
        moves.iter().try_for_each(|(file, _)| place.with_parked((*dir, *file), |parked| Real.unlink(parked)))
    })?;
    Ok(())
}

/// All directories of the guests.
fn walk(threads: usize, guests: &[PathBuf]) -> Result<Vec<Directory>> {
    let (mut dirs, mut level) = (vec![], guests.to_vec());
    while !level.is_empty() {
        let found = spread_over(threads, &level, |path| read(path))?;
        level.clear();
        for (dir, below) in found {
            let is_left = |name: &[u8]| guests.contains(&dir.path) && matches!(name, b"etc" | b"var");
            let taken = below.into_iter().filter(|name| !is_left(name));
            level.extend(taken.map(|name| dir.path.join(OsStr::from_bytes(&name))));
            dirs.push(dir);
        }
    }
    Ok(dirs)
}

/// A directory, and the names of those in it.
fn read(path: &Path) -> kernel::Result<(Directory, Vec<Vec<u8>>)> {
    let dir = Dir::open_host(path)?;
    let (mut files, mut below) = (vec![], vec![]);
    dir.for_each(&mut EntryBuffer::default(), |entry| {
        match entry.kind {
            Kind::Directory => below.push(entry.name.to_vec()),
            Kind::File => files.push((entry.name.to_vec(), dir.stat(entry.name)?)),
            _ => {}
        }
        Ok::<(), kernel::Errno>(())
    })?;
    Ok((Directory { path: path.into(), mtime: dir.stat_self()?.mtime, files }, below))
}

/// A name with what it is compared by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    class: Class,
    ino: u64,
    name: Name,
}

/// Equal inodes, two or more together: a name of the one that stays, and all names of the others.
fn equal(threads: usize, dirs: &[Directory]) -> Result<Vec<(Name, Vec<Name>)>> {
    let mut rows = vec![];
    for (number, dir) in dirs.iter().enumerate() {
        let files = dir.files.iter().enumerate().filter(|(_, (_, stat))| stat.size > 0);
        rows.extend(files.map(|(file, (_, stat))| Row {
            class: class(stat),
            ino: stat.ino,
            name: (number, file),
        }));
    }
    rows.sort_unstable();
    let has_company = |class: &&[Row]| class[0].ino != class[class.len() - 1].ino;
    let classes = rows.chunk_by(|a, b| a.class == b.class).filter(has_company);
    let mut inodes: Vec<&[Row]> = classes.flat_map(|class| class.chunk_by(|a, b| a.ino == b.ino)).collect();
    inodes.sort_unstable_by_key(|inode| inode[0].name);
    let by_dir: Vec<_> = inodes.chunk_by(|a, b| a[0].name.0 == b[0].name.0).collect();
    let hashed = spread_over(threads, &by_dir, |inodes| {
        let dir = &dirs[inodes[0][0].name.0];
        let at = dir.open()?;
        let hash = |inode: &[Row]| {
            let mut hasher = blake3::Hasher::new();
            read_file(&at, &dir.files[inode[0].name.1].0, |piece| {
                hasher.update(piece);
            })?;
            Ok(hasher.finalize())
        };
        inodes.iter().map(|inode| Ok((*inode, hash(inode)?))).collect::<kernel::Result<Vec<_>>>()
    })?;
    let mut groups: HashMap<_, Vec<&[Row]>> = HashMap::new();
    for (inode, hash) in hashed.into_iter().flatten() {
        groups.entry((inode[0].class, hash)).or_default().push(inode);
    }
    let groups = groups.into_values().filter(|inodes| inodes.len() > 1);
    let split = |inodes: Vec<&[Row]>| {
        (inodes[0][0].name, inodes[1..].iter().flat_map(|inode| inode.iter().map(|row| row.name)).collect())
    };
    Ok(groups.map(split).collect())
}

/// Where objects and what was displaced have their names, in directories of a size like that of a store's.
struct Place {
    objects: Vec<Dir>,
    parked: Vec<Dir>,
}

impl Place {
    fn make(path: &Path) -> kernel::Result<Self> {
        std::fs::create_dir_all(path).map_err(|_| kernel::Errno::IO)?;
        let place = Dir::open_host(path)?;
        let make = |kind: &str, count: usize| -> kernel::Result<Vec<Dir>> {
            (0..count)
                .map(|number| {
                    let name = format!("{kind}{number}");
                    match Real.make_dir(At::new(&place, name.as_bytes()), 0o700) {
                        Ok(()) | Err(kernel::Errno::EXIST) => place.open_dir(name.as_bytes()),
                        Err(errno) => Err(errno),
                    }
                })
                .collect()
        };
        Ok(Self { objects: make("objects", 256)?, parked: make("parked", 16)? })
    }

    fn with_object<T>(
        &self,
        object: usize,
        act: impl FnOnce(At<'_>) -> kernel::Result<T>,
    ) -> kernel::Result<T> {
        act(At::new(&self.objects[object % self.objects.len()], format!("{object:064x}").as_bytes()))
    }

    fn with_parked<T>(
        &self,
        (dir, file): Name,
        act: impl FnOnce(At<'_>) -> kernel::Result<T>,
    ) -> kernel::Result<T> {
        act(At::new(&self.parked[dir % self.parked.len()], format!("{dir:x}-{file:x}").as_bytes()))
    }
}

/// Parks what `name` had, under a lease.
fn exchange(object: At<'_>, parked: At<'_>, name: At<'_>) -> kernel::Result<()> {
    let leased = Leased::take(name.dir.open_file(name.name)?)?;
    std::hint::black_box(leased.file().stat()?);
    Real.link(object, parked)?;
    Real.exchange(parked, name)?;
    std::hint::black_box(parked.dir.stat(parked.name)?);
    Ok(())
}

fn rename_over(object: At<'_>, name: At<'_>) -> kernel::Result<()> {
    let beside = b".bare";
    Real.link(object, At::new(name.dir, beside))?;
    // Real has no rename over another name: nothing but a benchmark may do that.
    rustix::fs::renameat(name.dir, beside.as_slice(), name.dir, name.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use benches::trees::{Shape, generate};

    use super::*;

    #[test]
    fn both_ways_join_what_is_equal_and_nothing_else() {
        for rename in [false, true] {
            let place = tempfile::tempdir().unwrap();
            let shape = Shape { guests: 3, shared: 50, private: 7, files_per_dir: 10 };
            let guests = generate(place.path(), shape, 1).unwrap();
            let [first, second] =
                ["file-0000000.so", "again"].map(|name| guests[1].join("usr/lib/d000000").join(name));
            std::fs::hard_link(first, second).unwrap();
            let content = |dirs: &[Directory]| -> BTreeMap<PathBuf, String> {
                let paths = |dir: &Directory| -> Vec<PathBuf> {
                    dir.files.iter().map(|(name, _)| dir.path.join(OsStr::from_bytes(name))).collect()
                };
                let read = |path: PathBuf| (path.clone(), std::fs::read_to_string(path).unwrap());
                dirs.iter().flat_map(paths).map(read).collect()
            };
            let before = content(&walk(1, &guests).unwrap());
            run(&Options { rename, guests: guests.clone() }).unwrap();
            let after = walk(1, &guests).unwrap();
            assert_eq!(content(&after), before);
            let links = |nlink: u32| {
                after.iter().flat_map(|dir| &dir.files).filter(|(_, stat)| stat.nlink == nlink).count()
            };
            assert_eq!((links(5), links(4), links(1)), (4, 147, 21));
            let left = walk(1, &[place.path().join(".bare")]).unwrap();
            assert_eq!(left.iter().map(|dir| dir.files.len()).sum::<usize>(), 50);
        }
    }
}
